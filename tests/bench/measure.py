"""One command, run to its end as a fresh process, and what it cost."""

from __future__ import annotations

import os
import resource
import select
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = ("Cost", "run_measured")

_LOOK_SECONDS = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one process cost, those that it started and waited for included.

    `peak_mib` is its peak resident memory; where it starts others, the most that all of them were seen to have at
    one time, what they share counted once. That is looked at now and then, so that they have rather more.
    """

    wall_seconds: float
    cpu_seconds: float
    peak_mib: float


def run_measured(
    command: Sequence[str],
    *,
    folder: Path,
    environment: Mapping[str, str],
    log: Path,
    seconds_max: float = 3600,
) -> Cost:
    """Run `command` in `folder` and wait for it.

    Its peak memory cannot be below this process's own: what measures must stay small and import nothing large.

    Raises:
        RuntimeError: it failed or took too long; the message has the end of its log.
    """
    with log.open("wb") as output:
        began = time.perf_counter()
        child = subprocess.Popen(
            command, cwd=folder, env=dict(environment), stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
        status, usage, together = _wait(child, began + seconds_max)
        wall = time.perf_counter() - began
    if status != 0:
        text = log.read_text(errors="replace")[-3000:]
        raise RuntimeError(f"{' '.join(command)} ended with {status}:\n{text}")
    return Cost(
        wall_seconds=wall,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        peak_mib=max(usage.ru_maxrss / 1024, together),
    )


def _wait(child: subprocess.Popen[bytes], deadline: float) -> tuple[int, resource.struct_rusage, float]:
    """Its status and usage once it ended, and the most MiB that it had together with those it started."""
    together = 0.0
    try:
        pidfd = os.pidfd_open(child.pid)
        try:
            while not select.select([pidfd], [], [], _LOOK_SECONDS)[0]:
                if time.perf_counter() > deadline:
                    child.kill()
                if started := _started_by(child.pid):
                    together = max(together, sum(map(_share_mib, [child.pid, *started])))
        finally:
            os.close(pidfd)
        _, status, usage = os.wait4(child.pid, 0)
    except KeyboardInterrupt:
        child.kill()
        raise
    child.returncode = os.waitstatus_to_exitcode(status)
    return child.returncode, usage, together


def _started_by(pid: int) -> list[int]:
    """The processes that one has started, and those that they have."""
    children: list[int] = []
    with suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            children += map(int, (thread / "children").read_text().split())
    return children + [each for child in children for each in _started_by(child)]


def _share_mib(pid: int) -> float:
    """Its share of memory: pages of its own, and its part of those that it has in common with others."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0
