"""Runs that are killed, stopped or cut off, and what readers and the next run make of it. `make soak` does more."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import extractor
from extractor.clock import SystemClock
from extractor.config import load_config
from extractor.errors import LakeError
from extractor.lake import Lake
from extractor.pipeline import World, extract
from extractor.stores import open_store
from extractor.stores.local import LocalStore
from tests.soak.drive import KEY, Driver, seen_by_glob, settings

TABLES = (
    "services",
    "service_replicas",
    "topologies",
    "backups",
    "logs",
    "log_lines",
    "metrics",
    "notifications",
)
WORLD = ("--services", "20", "--notifications", "900", "--page-default", "3", "--latency-ms", "15")
# So small that what arrived is put at once, and not after seconds.
SEGMENT_BYTES = 8_000


@pytest.fixture(scope="module")
def busy(serve: Callable[..., Any]) -> Any:
    """A sandbox with many small pages, each of which takes its time."""
    return serve(*WORLD)


def log_of(lake: Path) -> Lake:
    return Lake(open_store(str(lake)))


def wait_for_answers(driver: Driver, child: Any, count: int) -> None:
    while len(driver.answers) < count and child.poll() is None:
        time.sleep(0.01)


def test_a_killed_run_goes_on_and_asks_again_for_next_to_nothing(busy: Any, tmp_path: Path) -> None:
    driver = Driver(
        tmp_path, settings(busy.url, tmp_path / "lake", *TABLES, limits__concurrency=4), SEGMENT_BYTES
    )
    for count in (40, 110):
        with driver.start() as child:
            wait_for_answers(driver, child, count)
            child.kill()
            child.communicate()
        driver.kills.append(time.time())
        assert child.returncode == -signal.SIGKILL
        assert not list(seen_by_glob(tmp_path / "lake"))

    code, complaint = driver.run()

    runs = {answer.run_id for answer in driver.answers}
    # Killed within seconds, what was with the decoder is asked again; far less than all that had come.
    assert (code, len(runs)) == (0, 1), complaint
    again = driver.again(slack_seconds=0)
    assert len(again) < (40 + 110) / 2, f"{len(again)} of {len(driver.answers)} answers came before"
    assert busy.judge(tmp_path / "lake") == {}
    assert not list((tmp_path / "lake" / "_extractor" / "staging").glob("*"))


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_was_stopped_commits_what_is_complete_and_the_next_run_reads_only_the_rest(
    number: signal.Signals, busy: Any, tmp_path: Path
) -> None:
    lake = tmp_path / "lake"
    driver = Driver(tmp_path, settings(busy.url, lake, *TABLES, limits__concurrency=4))
    with driver.start() as child:
        wait_for_answers(driver, child, 60)
        child.send_signal(number)
        child.communicate()
    first = log_of(lake).log.newest()
    early = busy.judge(lake)
    before = {answer.request for answer in driver.answers}

    code, complaint = driver.run()

    last = log_of(lake).log.newest()
    assert first is not None
    assert last is not None
    assert (child.returncode, code) == (128 + number, 0), complaint
    assert [(entry.run_id, entry.run_part, entry.is_final) for entry in (first, last)] == [
        (first.run_id, 1, False),
        (first.run_id, 2, True),
    ]
    assert first.tables
    # Of tables of windows those are committed that were complete.
    assert all(first.tables[name, "default"].status != "complete" for name in early)
    assert len([answer for answer in driver.answers if answer.request in before]) < len(before) + 12
    assert busy.judge(lake) == {}
    assert log_of(lake).table("services", as_of=first.run_id).to_arrow().num_rows == 20


@pytest.mark.long
def test_a_nightly_run_that_its_deadline_always_cuts_is_whole_after_some_nights(
    busy: Any, tmp_path: Path
) -> None:
    driver = Driver(
        tmp_path,
        settings(
            busy.url,
            tmp_path / "lake",
            *TABLES,
            limits__requests_per_second=40.0,
            limits__run_seconds=1.0,
            limits__resume_seconds=172_800.0,
        ),
    )
    codes = [driver.run()[0]]
    while codes[-1] == 9 and len(codes) < 20:
        codes.append(driver.run()[0])

    assert 3 <= len(codes) < 20
    assert set(codes[:-1]) == {9}
    assert codes[-1] == 0
    assert busy.judge(tmp_path / "lake") == {}


# --- the commit ---------------------------------------------------------------------------------------------

FEW = ("services", "providers", "notifications")


@pytest.fixture(scope="module")
def before_and_after(serve: Callable[..., Any]) -> tuple[Any, Any]:
    """Two sandboxes that hold different rows of the same tables."""
    return serve("--services", "4"), serve("--services", "7", "--seed", "2", "--notifications", "90")


def states(lake: Path, *sites: Any) -> set[int]:
    """Of which of the sites the readers of the log see everything."""
    return {number for number, site in enumerate(sites) if not site.judge(lake)}


def test_a_run_killed_at_any_step_of_its_commit_leaves_the_old_state_or_the_new_one(
    before_and_after: tuple[Any, Any], tmp_path: Path
) -> None:
    old, new = before_and_after
    tables = FEW[:2]
    first = tmp_path / "first"
    assert Driver(first, settings(old.url, first / "lake", *tables)).run()[0] == 0
    shutil.copytree(first / "lake", tmp_path / "dry" / "lake")
    dry = Driver(tmp_path / "dry", settings(new.url, tmp_path / "dry" / "lake", *tables))
    assert dry.run()[0] == 0
    seen: list[set[int]] = []
    for step in (dry.steps // 3, 2 * dry.steps // 3, dry.steps):
        folder = tmp_path / str(step)
        shutil.copytree(first / "lake", folder / "lake")
        driver = Driver(folder, settings(new.url, folder / "lake", *tables))

        code, _ = driver.run(dies_at=step)

        assert code == -signal.SIGKILL
        seen.append(states(folder / "lake", old, new))
        assert not list(seen_by_glob(folder / "lake"))
        assert driver.run()[0] == 0
        assert new.judge(folder / "lake") == {}
        assert not list(seen_by_glob(folder / "lake"))
    assert all(len(state) == 1 for state in seen)


class Unanswered(LocalStore):
    """A store that puts the first entry of the log and then says that it could not."""

    has_failed = False

    def put_if_absent(self, path: str, content: bytes) -> bool:
        won = super().put_if_absent(path, content)
        if path.startswith("_extractor/log/") and not self.has_failed:
            self.has_failed = True
            raise LakeError("no answer")
        return won


async def test_an_entry_that_was_put_but_not_confirmed_is_committed_once(
    before_and_after: tuple[Any, Any], tmp_path: Path
) -> None:
    site, _ = before_and_after
    world = World(
        clock=SystemClock(),
        chance=lambda: 0.5,
        environment={"SKYSQL_API_KEY": KEY},
        store=Unanswered(tmp_path / "lake"),
    )
    config = load_config(overrides=settings(site.url, tmp_path / "lake", *FEW), environment={})

    report = await extract(config, world=world)

    assert report.exit_code == 0
    assert len(list(log_of(tmp_path / "lake").log.entries())) == 1
    assert site.judge(tmp_path / "lake") == {}


def test_a_writer_that_wakes_after_another_took_its_run_up_changes_nothing(busy: Any, tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    driver = Driver(tmp_path, settings(busy.url, lake, *TABLES, limits__concurrency=4), SEGMENT_BYTES)
    with driver.start() as sleeper:
        wait_for_answers(driver, sleeper, 40)
        sleeper.send_signal(signal.SIGSTOP)
        for beat in (lake / "_extractor" / "leases" / "beats").iterdir():
            os.utime(beat, (time.time() - 120, time.time() - 120))

        code, complaint = driver.run()
        sleeper.send_signal(signal.SIGCONT)
        _, told = sleeper.communicate()

    assert code == 0, complaint
    assert sleeper.returncode == 5, told
    assert b"took them over" in told or b"taken up" in told
    assert len(list(log_of(lake).log.entries())) == 1
    assert len({answer.run_id for answer in driver.answers}) == 1
    assert busy.judge(lake) == {}
    assert not list(seen_by_glob(lake))
    assert extractor.Lake(str(lake)).tables()
