"""A run in a process of its own, which writes down each answer that it gets and may kill itself on the way.

    python -m tests.soak.child SPECIFICATION.json

Answers go to a file that survives a kill: the time, the id of the run, method, path and query.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from extractor import journal
from extractor.clock import SystemClock
from extractor.config import load_config
from extractor.errors import LakeBusy, LakeError
from extractor.events import Event, RunStarted, TableFinished
from extractor.fetch import Fetcher, Request, Response
from extractor.pipeline import Interruption, World, extract


class Specification(msgspec.Struct, frozen=True, kw_only=True):
    """What a child does."""

    overrides: dict[str, Any]
    key: str
    answers: str
    """The file for the answers."""
    segment_bytes: int = 0
    """The size of the journal's segments; 0: as it is."""
    dies_at: int = 0
    """Which step that changes the disk, from the first settled table on, is not done any more; 0: none."""


class Steps:
    """Counts what changes the disk, once it is `armed`, and dies before one of them."""

    def __init__(self, dies_at: int) -> None:
        self.count = 0
        self.armed = False
        self._dies_at = dies_at
        for name in ("fsync", "link", "rename", "replace", "unlink", "mkdir", "rmdir"):
            setattr(os, name, self._watched(getattr(os, name)))

    def _watched(self, operation: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            if self.armed:
                self.count += 1
                if self.count == self._dies_at:
                    os.kill(os.getpid(), signal.SIGKILL)
            return operation(*args, **kwargs)

        return watched


async def run(specification: Specification, folder: Path) -> int:
    if specification.segment_bytes:
        journal._SEGMENT_BYTES = specification.segment_bytes
    steps = Steps(specification.dies_at)
    answers = os.open(specification.answers, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    run_id = ""

    def observe(event: Event) -> None:
        nonlocal run_id
        if isinstance(event, RunStarted):
            run_id = event.run_id
        steps.armed = steps.armed or isinstance(event, TableFinished)

    class Recording(Fetcher):
        async def fetch(self, request: Request) -> Response:
            response = await super().fetch(request)
            line = json.dumps([time.time(), run_id, request.method, request.path, request.query])
            os.write(answers, f"{line}\n".encode())
            return response

    interruption = Interruption()
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        asyncio.get_running_loop().add_signal_handler(number, interruption.set, code, number.name)
    world = World(
        clock=SystemClock(),
        chance=random.random,
        environment={"SKYSQL_API_KEY": specification.key},
        network=Recording,
    )
    config = load_config(overrides=specification.overrides, environment={})
    try:
        report = await extract(config, observer=observe, interruption=interruption, world=world)
    except LakeError as error:
        print(error.message, file=sys.stderr)
        return 5 if isinstance(error, LakeBusy) else 7
    (folder / "steps").write_bytes(b"%d" % steps.count)
    if report.message:
        print(report.message, file=sys.stderr)
    return report.exit_code


if __name__ == "__main__":
    path = Path(sys.argv[1])
    sys.exit(asyncio.run(run(msgspec.json.decode(path.read_bytes(), type=Specification), path.parent)))
