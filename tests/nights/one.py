"""One run at a given time, in a process of its own, so that it can be killed: `URL LAKE TIME`.

It says when it begins, so that one that is killed a moment later is killed at its work.
"""

from __future__ import annotations

import asyncio
import sys
from datetime import datetime
from pathlib import Path

from tests.nights.play import extract

if __name__ == "__main__":
    url, lake, at = sys.argv[1:]
    print("begun", flush=True)
    print(asyncio.run(extract(url, Path(lake), datetime.fromisoformat(at))).status)
