"""The simulation itself: it repeats itself exactly, jumps over idle time, and finds what is wrong."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.laws.mutations import MUTATIONS, TOP, apply, hunt
from tests.laws.simulation.clock import LoopClock, Stuck, VirtualLoop
from tests.laws.simulation.play import play
from tests.laws.simulation.world import Moods, Scenario, make_scenario


def of_eleven_seeds() -> list[int]:
    """Some with faults, crashes, tokens and threads that take their time."""
    return list(range(0, 110, 10))


@pytest.mark.parametrize("seed", of_eleven_seeds())
def test_a_seed_played_twice_gives_the_same_trace(seed: int) -> None:
    once, again = play(seed), play(seed)

    assert once.trace == again.trace
    assert once.outcomes == again.outcomes


@pytest.mark.parametrize(
    ("seed", "what_happened"),
    [
        (3016, "a request waited for a token after its grant, and the next one came too soon after it"),
        (3103, "pages waited for more after the last requests had been dropped unsent"),
        (4170, "a token lasted no longer than the time between two grants, and was renewed without end"),
        (6671, "the same, as the rate was cut"),
        (3973, "two requests that had waited for a token went at the same moment"),
        (4906, "a token was used in its last second, which a Date header does not tell"),
        (5432, "the same, as clocks differed"),
    ],
)
def test_a_world_that_once_broke_a_law_breaks_none(seed: int, what_happened: str) -> None:
    assert play(seed).broken == "", what_happened


def test_a_seed_means_the_same_in_another_process() -> None:
    command = [sys.executable, "-m", "tests.laws", "--seed", "20"]
    printed = [
        subprocess.run(
            command, cwd=TOP, env={**os.environ, "PYTHONHASHSEED": number}, capture_output=True, check=True
        ).stdout
        for number in ("1", "2")
    ]

    assert printed[0] == printed[1]


def test_time_jumps_to_the_next_timer_when_nothing_can_run() -> None:
    loop, clock = VirtualLoop(), LoopClock()
    clock.loop = loop
    woken: list[tuple[str, float]] = []

    async def sleep(name: str, seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append((name, clock.monotonic()))

    async def all_of_them() -> None:
        await asyncio.wait([loop.create_task(sleep(name, at)) for name, at in (("b", 86_400.5), ("a", 0.25))])

    loop.play(all_of_them())

    assert woken == [("a", 0.25), ("b", 86_400.5)]


def test_a_program_that_waits_for_what_never_comes_is_stuck() -> None:
    async def wait() -> None:
        await asyncio.Event().wait()

    with pytest.raises(Stuck, match="no timer"):
        VirtualLoop().play(wait())


def test_a_calm_world_is_complete_at_the_first_run() -> None:
    def calmed(scenario: Scenario) -> Scenario:
        tables = tuple(
            replace(table, fate="", nameless=0.0, moves=0.0, duplicates=0.0, may_delete=False)
            for table in scenario.tables
        )
        episode = replace(scenario.episodes[-1], gap_seconds=0.0, is_calm=True)
        return replace(
            scenario, tables=tables, moods=Moods(), auth="api_key", max_drop=1.0, episodes=(episode,)
        )

    outcomes = [play(seed, calmed) for seed in range(10)]

    assert [(played.broken, played.outcomes) for played in outcomes] == [("", ["exit 0"])] * 10


def test_the_worlds_of_the_first_seeds_have_all_that_can_happen() -> None:
    scenarios = [make_scenario(seed) for seed in range(500)]

    tables = [table for scenario in scenarios for table in scenario.tables]
    assert len({table.paging for table in tables}) == 9
    assert {table.sync for table in tables} == {"snapshot", "append"}
    assert {table.fate for table in tables} == {"", "absent", "broken", "denied"}
    assert {table.by_query for table in tables} == {"", "refused", "whole"}
    crashes = {episode.crash for scenario in scenarios for episode in scenario.episodes}
    assert crashes == {"", "step", "commit", "request", "time", "fault", "unanswered", "late fault"}
    assert {scenario.executor for scenario in scenarios} == {"inline", "delayed", "slow"}


def test_every_planted_bug_still_applies(tmp_path: Path) -> None:
    sources = {path.relative_to(TOP / "extractor") for path in (TOP / "extractor").rglob("*.py")}
    for number, mutation in enumerate(MUTATIONS):
        for file, _, _ in mutation.edits:
            assert Path(file) in sources
            copy = tmp_path / str(number) / file
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes((TOP / "extractor" / file).read_bytes())
        apply(mutation, tmp_path / str(number))
    assert len(MUTATIONS) >= 25


@pytest.mark.parametrize("name", ["a retry is put back twice", "a free slot wakes nobody"])
def test_a_planted_bug_is_found(name: str) -> None:
    (mutation,) = (mutation for mutation in MUTATIONS if mutation.name == name)

    assert hunt(mutation).startswith("seed ")
