"""Runs that are killed for hours: `make soak`, with `SOAK_ARGS="--kills 20 --mean 5"` for a short one.

First one kill before each step of a commit that changes the disk, then kills at random instants over runs through
every fault that the sandbox has. After each, readers by the log and by glob look at the lake; in the end its rows
are the sandbox's. The last line has the figures, also after Ctrl-C; the exit code is 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
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
    """Kills at random instants, over as many lakes as it takes."""
    chance = random.Random(arguments.seed)
    flags = [flag for kind, share in FAULTS.items() for flag in ("--fault", f"{kind}={share}")]
    left = arguments.kills
    while left > 0:
        findings.rounds += 1
        place = folder / f"round-{findings.rounds}"
        with sandbox(*WORLD, *flags, "--seed", str(findings.rounds)) as site:
            driver = Driver(
                place,
                settings(
                    site.url,
                    place / "lake",
                    limits__requests_per_second=arguments.rate,
                    limits__retry_seconds=900.0,
                ),
            )
            left = _one_lake(driver, site, chance, arguments.mean, left, findings)
        findings.answers += len(driver.answers)
        findings.again += len(driver.again())
        shutil.rmtree(place)


def _one_lake(
    driver: Driver, site: Site, chance: random.Random, mean: float, left: int, findings: Findings
) -> int:
    """Kill runs into one lake until one ends by itself; gives how many kills are left."""
    lake = driver.folder / "lake"
    judged: tuple[int, dict[str, int]] | None = None
    while True:
        with driver.start() as child:
            try:
                _, complaint = child.communicate(timeout=chance.expovariate(1 / mean) if left > 0 else None)
            except subprocess.TimeoutExpired:
                child.kill()
                child.communicate()
                driver.kills.append(time.time())
                left, findings.kills = left - 1, findings.kills + 1
                where = f"kill {findings.kills}"
                newest = Lake(str(lake)).log.newest()
                # To judge takes half a minute: what was judged before need only be there, whole.
                if newest is not None and (seen := (newest.sequence, rows_by_table(lake))) != judged:
                    findings.note(
                        where, (f"{name} {told}" for name, told in site.judge(lake, is_growing=True).items())
                    )
                    judged = seen
                findings.note(where, seen_by_glob(lake))
                print(f"{where}: {len(driver.answers)} answers", flush=True)
                continue
        findings.note(
            "end", iter(() if child.returncode == 0 else (f"exit {child.returncode}: {complaint!r}",))
        )
        findings.note("end", (f"{name} {told}" for name, told in site.judge(lake, is_growing=True).items()))
        findings.note("end", seen_by_glob(lake))
        findings.note("end", (f"{name} is missing" for name in sorted(site.lacking(lake))))
        return left


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
    parser.add_argument("--no-steps", action="store_true", help="leave out the steps of a commit")
    arguments = parser.parse_args()
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
