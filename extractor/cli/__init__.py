"""The command line: arguments → `Config` → `pipeline` → exit code."""

from __future__ import annotations

import os
import sys

__all__ = ("main",)


def main() -> None:
    """The console script."""
    # Whoever starts a program may have closed them; what is opened first would then take their place.
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(os.devnull, mode))  # noqa: PTH123, SIM115  # for as long as the process
    try:
        from extractor.cli import app
    except KeyboardInterrupt:
        sys.stderr.write("skysql-extract: interrupted\n")
        sys.exit(130)
    app.main()
