"""Half an hour of runs at a steady rate, with faults: `make soak-steady`.

Memory, tasks and open files of one process are looked at after each run: they must not grow. The last lines are the
figures; the exit code is 1 if anything grew.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import ClassVar

from extractor.clock import SystemClock
from extractor.config import load_config
from extractor.fetch import Fetcher, Request, Response
from extractor.pipeline import World, extract
from tests.soak.__main__ import FAULTS, sandbox
from tests.soak.drive import KEY, settings

WORLD = ["--services", "2400", "--log-days", "1", "--notifications", "40000"]


class Counting(Fetcher):
    """Counts the requests of each second."""

    sent: ClassVar[Counter[int]] = Counter()

    async def fetch(self, request: Request) -> Response:
        self.sent[int(time.monotonic())] += 1
        return await super().fetch(request)


def resident_mb() -> float:
    """What the process holds in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def open_files() -> int:
    """Files and sockets that the process has open."""
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208  # names are enough


async def soak(arguments: argparse.Namespace, folder: Path) -> int:
    # A server that throttles is not asked 200 times a second: these two are left, but rare.
    faults = {**FAULTS, "429": 0.0002, "503": 0.0002}
    flags = [flag for kind, share in faults.items() for flag in ("--fault", f"{kind}={share}")]
    ends_at = time.monotonic() + arguments.minutes * 60
    seen: list[tuple[float, int, int]] = []
    answers = 0
    seconds = 0.0
    wrong: list[str] = []
    with sandbox(*WORLD, *flags) as site:
        while time.monotonic() < ends_at:
            lake = folder / "lake"
            overrides = settings(site.url, lake, limits__requests_per_second=arguments.rate)
            config = load_config(overrides=overrides, environment={})
            world = World(
                clock=SystemClock(),
                chance=random.random,
                environment={"SKYSQL_API_KEY": KEY},
                network=Counting,
            )
            report = await extract(config, world=world)
            if report.exit_code:
                wrong.append(f"a run ended with {report.exit_code}: {report.message}")
            answers += report.requests.sent
            seconds += report.seconds
            await asyncio.sleep(0.1)
            gc.collect()
            seen.append((resident_mb(), open_files(), len(asyncio.all_tasks())))
            shutil.rmtree(lake)
            print(
                f"run {len(seen)}: {report.requests.sent} requests in {report.seconds:.0f} s, "
                f"{seen[-1][0]:.0f} MiB, {seen[-1][1]} files, {seen[-1][2]} tasks",
                flush=True,
            )
    return _told(seen, answers, seconds, wrong)


def _told(seen: list[tuple[float, int, int]], answers: int, seconds: float, wrong: list[str]) -> int:
    # The first runs fill caches; then the first third is compared with the last.
    settled = seen[1:] if len(seen) > 3 else seen
    third = max(1, len(settled) // 3)
    early, late = settled[:third], settled[-third:]
    grown = statistics.median(m for m, _, _ in late) / statistics.median(m for m, _, _ in early) - 1
    if grown > 0.05:
        wrong.append(f"memory grew by {100 * grown:.1f} %")
    for index, name in ((1, "open files"), (2, "tasks")):
        if max(look[index] for look in late) > max(look[index] for look in early):
            wrong.append(f"{name} grew")
    print(
        f"{len(seen)} runs, {answers} requests, {answers / max(seconds, 1e-9):.0f} a second, "
        f"{statistics.median(Counting.sent.values()):.0f} in the median second of those with any; "
        f"memory {100 * grown:+.1f} % ({seen[-1][0]:.0f} MiB), {seen[-1][1]} files, {seen[-1][2]} tasks; "
        f"{'; '.join(wrong) or 'nothing grew'}"
    )
    return 1 if wrong else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="make soak-steady")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        return asyncio.run(soak(arguments, Path(folder)))


if __name__ == "__main__":
    sys.exit(main())
