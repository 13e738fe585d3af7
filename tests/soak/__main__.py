"""Runs that are killed for hours: `make soak`, with `SOAK_ARGS="--kills 20 --mean 5"` for a short one.

First one kill before each step of a commit that changes the disk, then kills at random instants over runs through
every fault that the sandbox has. After each, readers by the log and by glob look at the lake; in the end its rows
are the sandbox's. The last line has the figures, also after Ctrl-C; the exit code is 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from extractor.lake import Lake
from tests.flow.conftest import Site
from tests.soak.drive import Driver, seen_by_glob, settings

WORLD = ["--services", "120", "--series", "300", "--log-lines", "300", "--notifications", "20000"]
# None of them ends a request for good: each is retried until it passes.
FAULTS = {
    "reset": 0.01,
    "truncate": 0.01,
    "500": 0.01,
    "503": 0.005,
    "429": 0.002,
    "garbage": 0.01,
    "duplicate-page": 0.01,
    "row-inserted": 0.01,
}


@dataclass(slots=True)
class Findings:
    """What was seen."""

    wrong: list[str] = field(default_factory=list)
    answers: int = 0
    again: int = 0
    kills: int = 0
    rounds: int = 0
    guard: threading.Lock = field(default_factory=threading.Lock)

    def begin(self) -> int:
        """The number of one more lake."""
        with self.guard:
            self.rounds += 1
            return self.rounds

    def count(self, driver: Driver) -> None:
        """What one lake gave in the end."""
        with self.guard:
            self.answers += len(driver.answers)
            self.again += len(driver.again())
            self.kills += len(driver.kills)

    def note(self, where: str, lines: Iterator[str]) -> None:
        for line in lines:
            self.wrong.append(f"{where}: {line}")
            print(f"WRONG {where}: {line}", flush=True)


@contextmanager
def sandbox(*flags: str) -> Iterator[Site]:
    """A sandbox in a process of its own."""
    command = [sys.executable, "-m", "extractor.sandbox", "--port", "0", *flags]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        yield Site(server.stdout.readline().strip())
    finally:
        server.terminate()
        server.wait()


def at_each_step(folder: Path, findings: Findings) -> None:
    """One kill before each step of a commit: everybody then sees all of the old state or all of the new one."""
    tables = ("services", "providers", "notifications", "bills")
    with sandbox("--services", "4") as old, sandbox("--services", "6", "--seed", "2") as new:
        first = folder / "first"
        Driver(first, settings(old.url, first / "lake", *tables)).run()
        shutil.copytree(first / "lake", folder / "dry" / "lake")
        dry = Driver(folder / "dry", settings(new.url, folder / "dry" / "lake", *tables))
        dry.run()
        for step in range(1, dry.steps + 1):
            place = folder / "step"
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(first / "lake", place / "lake")
            driver = Driver(place, settings(new.url, place / "lake", *tables))
            code, _ = driver.run(dies_at=step)
            where = f"step {step}"
            # Events of the old site stay: only snapshots change sides.
            snapshots = {"services", "providers"}
            sides = [not snapshots & site.judge(place / "lake").keys() for site in (old, new)]
            findings.note(where, iter(() if sum(sides) == 1 else (f"neither old nor new: {sides}",)))
            findings.note(where, seen_by_glob(place / "lake"))
            again, complaint = driver.run()
            findings.note(
                where, iter(() if again == 0 else (f"the next run ends with {again}: {complaint}",))
            )
            findings.note(
                where,
                (f"{name} {told}" for name, told in new.judge(place / "lake").items() if name in snapshots),
            )
            findings.kills += code == -9
        print(
            f"{dry.steps} steps of a commit, {findings.kills} kills, {len(findings.wrong)} wrong", flush=True
        )


def at_random(folder: Path, arguments: argparse.Namespace, findings: Findings) -> None:
    """Kills at random instants, over as many lakes as it takes, some of them at the same time."""
    kills = Kills(arguments.kills)
    with ThreadPoolExecutor(arguments.side) as pool:
        sides = [pool.submit(_lakes, folder, arguments, kills, findings) for _ in range(arguments.side)]
        try:
            for side in as_completed(sides):
                side.result()
        except BaseException:
            kills.stop()
            raise


class Kills:
    """The kills that are left, and the children that are up: for all sides."""

    def __init__(self, count: int) -> None:
        self._left = count
        self._guard = threading.Lock()
        self._children: set[subprocess.Popen[bytes]] = set()
        self.stopped = False

    def any_left(self) -> bool:
        return self._left > 0 and not self.stopped

    def take(self) -> bool:
        """One of them, if any is left."""
        with self._guard:
            taken = self._left > 0
            self._left -= taken
            return taken

    @contextmanager
    def watched(self, child: subprocess.Popen[bytes]) -> Iterator[None]:
        """Ends this child when all stops."""
        with self._guard:
            self._children.add(child)
            if self.stopped:
                child.kill()
        try:
            yield
        finally:
            with self._guard:
                self._children.discard(child)

    def stop(self) -> None:
        with self._guard:
            self.stopped = True
            for child in self._children:
                child.kill()


def _lakes(folder: Path, arguments: argparse.Namespace, kills: Kills, findings: Findings) -> None:
    """One lake after the other, until no kill is left."""
    flags = [flag for kind, share in FAULTS.items() for flag in ("--fault", f"{kind}={share}")]
    while kills.any_left():
        number = findings.begin()
        place = folder / f"round-{number}"
        with sandbox(*WORLD, *flags, "--seed", str(number)) as site:
            driver = Driver(
                place,
                settings(
                    site.url,
                    place / "lake",
                    limits__requests_per_second=arguments.rate,
                    limits__retry_seconds=900.0,
                ),
                is_apart=True,
            )
            try:
                _one_lake(
                    driver, site, random.Random(f"{arguments.seed}/{number}"), arguments.mean, kills, findings
                )
            finally:
                findings.count(driver)
        shutil.rmtree(place)


def _one_lake(
    driver: Driver, site: Site, chance: random.Random, mean: float, kills: Kills, findings: Findings
) -> None:
    """Kill runs into one lake until one ends by itself."""
    lake = driver.folder / "lake"
    name = driver.folder.name
    judged: tuple[int, dict[str, int]] | None = None
    while True:
        is_killed = False
        with driver.start() as child, kills.watched(child):
            lives = chance.expovariate(1 / mean) if kills.any_left() else None
            try:
                _, complaint = child.communicate(timeout=lives)
            except subprocess.TimeoutExpired:
                if is_killed := kills.take():
                    child.kill()
                _, complaint = child.communicate()
        if kills.stopped:
            return
        if is_killed:
            driver.kills.append(time.time())
            where = f"{name}, kill {len(driver.kills)}"
            newest = Lake(str(lake)).log.newest()
            # To judge takes half a minute: what was judged before need only be there, whole.
            if newest is not None and (seen := (newest.sequence, rows_by_table(lake))) != judged:
                findings.note(where, _judged(site, lake))
                judged = seen
            findings.note(where, seen_by_glob(lake))
            print(f"{where}: {len(driver.answers)} answers", flush=True)
            continue
        if child.returncode:
            findings.note(name, iter((f"exit {child.returncode}: {complaint!r}",)))
        findings.note(name, _judged(site, lake))
        findings.note(name, seen_by_glob(lake))
        findings.note(name, (f"{table} is missing" for table in sorted(site.lacking(lake))))
        print(f"{name}: ended by itself after {len(driver.kills)} kills", flush=True)
        return


def _judged(site: Site, lake: Path) -> Iterator[str]:
    return (f"{name} {told}" for name, told in site.judge(lake, is_growing=True).items())


def rows_by_table(lake: Path) -> dict[str, int]:
    """The rows of each table, all of them read."""
    opened = Lake(str(lake))
    return {name: opened.table(name).to_arrow().num_rows for name in sorted(set(opened.tables()))}


def main() -> int:
    parser = argparse.ArgumentParser(prog="make soak")
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--mean", type=float, default=20.0, help="seconds between two kills, on average")
    parser.add_argument("--rate", type=float, default=50.0, help="requests a second")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--side", type=int, default=os.cpu_count() or 1, help="lakes at the same time")
    parser.add_argument("--no-steps", action="store_true", help="leave out the steps of a commit")
    arguments = parser.parse_args()
    # SIGTERM ends it as Ctrl-C does: with its figures, and with no process left behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    findings = Findings()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder, suppress(KeyboardInterrupt):
        if not arguments.no_steps:
            at_each_step(Path(folder), findings)
        at_random(Path(folder), arguments, findings)
    share = 100 * findings.again / max(1, findings.answers)
    print(
        f"{findings.kills} kills, {findings.rounds} lakes, {findings.answers} answers, of which {findings.again} "
        f"({share:.2f} %) had come more than 10 s before a kill; {len(findings.wrong)} wrong; "
        f"{time.monotonic() - begun:.0f} s"
    )
    return 1 if findings.wrong or share >= 5 else 0


if __name__ == "__main__":
    sys.exit(main())
