"""One command, run to its end as a fresh process, and what it cost."""

from __future__ import annotations

import os
import resource
import select
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ("Cost", "run_measured")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one process cost, those that it started and waited for included.

    `peak_mib` is the peak resident memory of the largest of them, so one that starts others is flattered.
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
        status, usage = _wait(child, began + seconds_max)
        wall = time.perf_counter() - began
    if status != 0:
        text = log.read_text(errors="replace")[-3000:]
        raise RuntimeError(f"{' '.join(command)} ended with {status}:\n{text}")
    return Cost(
        wall_seconds=wall,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        peak_mib=usage.ru_maxrss / 1024,
    )


def _wait(child: subprocess.Popen[bytes], deadline: float) -> tuple[int, resource.struct_rusage]:
    try:
        pidfd = os.pidfd_open(child.pid)
        try:
            ready, _, _ = select.select([pidfd], [], [], max(0.0, deadline - time.perf_counter()))
        finally:
            os.close(pidfd)
        if not ready:
            child.kill()
        _, status, usage = os.wait4(child.pid, 0)
    except KeyboardInterrupt:
        child.kill()
        raise
    child.returncode = os.waitstatus_to_exitcode(status)
    return child.returncode, usage
