"""Half an hour of runs at a steady rate, with faults: `make soak-steady`.

Rounds of two runs in one process: a wide world without its log archives, whose pages keep the rate, and a small
world with everything. After each round memory, tasks and open files are looked at: they must not grow. The
last line has the figures; the exit code is 1 if anything grew, if a run failed, or if the rate was not kept.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import gc
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from extractor.clock import SystemClock
from extractor.config import load_config
from extractor.fetch import Fetcher, Request, Response
from extractor.pipeline import World, extract
from tests.soak.__main__ import FAULTS, sandbox
from tests.soak.drive import KEY, settings

# Log archives cost more than their requests: with all of the wide world's, a core is full before the limit is.
WIDE = ["--services", "6000", "--log-days", "1", "--notifications", "40000"]
WHOLE = ["--services", "150", "--log-days", "1"]

# A server that throttles is not asked 200 times a second: these two are left, but rare.
RARE = {"429": 0.0002, "503": 0.0002}


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


@dataclass(frozen=True, slots=True)
class Look:
    """What the process held after a round."""

    resident: float
    """MiB, with what the allocators keep for later."""
    kept: float
    """MiB, after the allocators were asked to give back what is free."""
    arrow: int
    """Bytes of Arrow's buffers."""
    blocks: int
    """Python's own pieces of memory; most objects are one."""
    files: int
    tasks: int


def look() -> Look:
    """Look at this process."""
    gc.collect()
    resident = resident_mb()
    pa.default_memory_pool().release_unused()
    with contextlib.suppress(OSError, AttributeError):  # only glibc has it
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    return Look(
        resident=resident,
        kept=resident_mb(),
        arrow=pa.total_allocated_bytes(),
        blocks=sys.getallocatedblocks(),
        files=open_files(),
        tasks=len(asyncio.all_tasks()),
    )


# What of these may come and go, as a share. Allocators cannot give back all that is free, so that equal runs leave
# more or less; what they use is nearly the same each time.
GROWTH = {"resident": 0.05, "kept": 0.05, "arrow": 0.01, "blocks": 0.01}


@dataclass(slots=True)
class Half:
    """What was seen in all rounds."""

    looks: list[Look]
    wrong: list[str]
    requests: int = 0

    async def run(self, url: str, lake: Path, rate: float, **more: Any) -> None:
        config = load_config(
            overrides=settings(url, lake, limits__requests_per_second=rate, **more), environment={}
        )
        world = World(
            clock=SystemClock(), chance=random.random, environment={"SKYSQL_API_KEY": KEY}, network=Counting
        )
        report = await extract(config, world=world)
        if report.exit_code:
            self.wrong.append(f"a run ended with {report.exit_code}: {report.message}")
        self.requests += report.requests.sent
        shutil.rmtree(lake)

    def judge(self, seconds: float, wanted: float) -> str:
        """The figures; what is wrong is added to `wrong`."""
        rate = self.requests / seconds
        if rate < wanted:
            self.wrong.append(f"{wanted:.0f} a second were wanted")
        # The first round fills caches; then the first third is compared with the last.
        settled = self.looks[1:] if len(self.looks) > 3 else self.looks
        third = max(1, len(settled) // 3)
        early, late = settled[:third], settled[-third:]
        grown = {
            name: statistics.median(getattr(seen, name) for seen in late)
            / statistics.median(getattr(seen, name) for seen in early)
            - 1
            for name in GROWTH
        }
        self.wrong += [
            f"{name} grew by {100 * grown[name]:.1f} %" for name, most in GROWTH.items() if grown[name] > most
        ]
        self.wrong += [
            f"{name} grew"
            for name in ("files", "tasks")
            if max(getattr(a, name) for a in late) > max(getattr(a, name) for a in early)
        ]
        last = self.looks[-1]
        return (
            f"{len(self.looks)} rounds, {self.requests} requests, {rate:.0f} a second, "
            f"{statistics.median(Counting.sent.values()):.0f} in the median second of those with any; "
            f"resident {100 * grown['resident']:+.1f} % ({last.resident:.0f} MiB), "
            f"kept {100 * grown['kept']:+.1f} % ({last.kept:.0f} MiB), "
            f"Arrow {100 * grown['arrow']:+.1f} % ({last.arrow / (1 << 20):.2f} MiB), "
            f"blocks {100 * grown['blocks']:+.2f} % ({last.blocks}), {last.files} files, {last.tasks} tasks; "
            f"{'; '.join(self.wrong) or 'nothing grew'}"
        )


async def soak(arguments: argparse.Namespace, folder: Path) -> int:
    faults = {**FAULTS, **RARE}
    flags = [flag for kind, share in faults.items() for flag in ("--fault", f"{kind}={share}")]
    half = Half([], [])
    with sandbox(*WIDE, *flags) as wide, sandbox(*WHOLE, *flags) as whole:
        began = time.monotonic()
        while time.monotonic() < began + arguments.minutes * 60:
            before, at = half.requests, time.monotonic()
            await half.run(wide.url, folder / "wide", arguments.limit, run__exclude=("log_lines",))
            await half.run(whole.url, folder / "whole", arguments.limit)
            await asyncio.sleep(0.1)  # what is closed leaves the loop
            half.looks.append(look())
            seen = half.looks[-1]
            print(
                f"round {len(half.looks)}: {half.requests - before} requests in {time.monotonic() - at:.0f} s, "
                f"{seen.resident:.0f} MiB, {seen.kept:.0f} kept, {seen.arrow >> 10} kB of Arrow, "
                f"{seen.blocks} blocks, {seen.files} files, {seen.tasks} tasks",
                flush=True,
            )
        print(half.judge(time.monotonic() - began, arguments.rate))
    return 1 if half.wrong else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="make soak-steady")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument(
        "--rate", type=float, default=200.0, help="requests a second, from start to end, wanted"
    )
    parser.add_argument("--limit", type=float, default=290.0, help="the limit: runs begin and end with fewer")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        return asyncio.run(soak(arguments, Path(folder)))


if __name__ == "__main__":
    sys.exit(main())
