"""What another module finds out in a process of its own: the one that measures must stay small."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from tests.bench.tools import TOP, Interpreters

__all__ = ("ask",)


def ask(pythons: Interpreters, module: str, *arguments: object) -> dict[str, Any]:
    """The JSON object that `module` prints.

    Raises:
        RuntimeError: it failed; why is on stderr.
    """
    command = [str(pythons.ours), "-m", module, *map(str, arguments)]
    done = subprocess.run(command, cwd=TOP, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}")
    return dict(json.loads(done.stdout))
