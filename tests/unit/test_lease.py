from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from extractor.commitlog import CommitLog
from extractor.errors import CommitConflict, LakeBusy, LakeError
from extractor.lease import Holder, Leases, live_runs, this_process
from extractor.store import Store
from extractor.stores.local import LocalStore
from extractor.stores.memory import MemoryStore
from tests.unit.commits import commit_run, entry_path, snapshot, stage, updates
from tests.unit.lakes import Watch

SERVICES = ("services", "default")
BILLS = ("bills", "default")
ORGS = ("organizations", "default")
METRICS = ("metrics", "default")


def leases(store: Store, run_id: str, *tables: tuple[str, str], holder: Holder | None = None) -> Leases:
    return Leases(store, run_id=run_id, clock=Watch(), tables=tables, holder=holder)


def dead_process() -> Holder:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return replace(this_process(), pid=ended.pid)


def test_a_held_table_is_refused_to_others_naming_the_holder() -> None:
    store = MemoryStore()
    first = leases(store, "r1", SERVICES, BILLS)
    first.acquire()

    with pytest.raises(LakeBusy) as caught:
        leases(store, "r2", ORGS, SERVICES).acquire()

    assert "table services of account default" in caught.value.message
    assert f"run r1 (process {os.getpid()} on " in caught.value.message
    assert "last sign of life 0 s ago" in caught.value.message
    assert first.are_mine()
    # All or none: the table that was free stayed so.
    leases(store, "r3", ORGS).acquire()
    assert live_runs(store) == {"r1", "r3"}


def test_a_released_table_is_free() -> None:
    store = MemoryStore()
    for number in range(60):
        held = leases(store, f"r{number}", SERVICES)
        held.acquire()
        assert held.are_mine()
        held.release()
        held.release()
        assert not held.are_mine()

    assert live_runs(store) == frozenset()
    assert len(list(store.list("_extractor/leases"))) <= 17


def test_the_same_table_of_another_account_can_be_held_by_another_run() -> None:
    store = MemoryStore()
    leases(store, "r1", ("services", "one")).acquire()

    leases(store, "r2", ("services", "two")).acquire()

    assert live_runs(store) == {"r1", "r2"}


def test_a_dead_process_loses_its_tables_at_once() -> None:
    store = MemoryStore()
    killed = leases(store, "r1", SERVICES, holder=dead_process())
    killed.acquire()
    assert live_runs(store) == frozenset()

    second = leases(store, "r2", SERVICES)
    second.acquire()

    assert second.are_mine()
    assert not killed.are_mine()


def test_a_killed_process_that_nobody_waited_for_is_dead() -> None:
    store = MemoryStore()
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    holder = replace(this_process(), pid=process.pid, process_started="")
    leases(store, "r1", SERVICES, holder=holder).acquire()
    assert live_runs(store) == {"r1"}

    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)

    assert live_runs(store) == frozenset()
    process.communicate()


@pytest.mark.parametrize(
    ("change", "is_free"),
    [
        ({"process_started": "1"}, True),  # another process with the same number
        ({"boot_id": "before the machine was started again"}, True),
        ({"host": "elsewhere", "pid": 1 << 22}, False),  # cannot be asked
        ({"pid_namespace": "pid:[1]", "pid": 1 << 22}, False),  # another container of this machine
        ({}, False),
    ],
)
def test_a_holder_is_dead_only_where_that_can_be_known(change: dict[str, Any], is_free: bool) -> None:
    watch = Watch()
    store = MemoryStore(clock=watch.now)
    leases(store, "r1", SERVICES, holder=replace(this_process(), **change)).acquire()

    if is_free:
        leases(store, "r2", SERVICES).acquire()
    else:
        with pytest.raises(LakeBusy):
            leases(store, "r2", SERVICES).acquire()
        watch.moment += timedelta(seconds=61)
        leases(store, "r2", SERVICES).acquire()


def test_a_heartbeat_keeps_a_lease_and_silence_loses_it() -> None:
    watch = Watch()
    store = MemoryStore(clock=watch.now)
    first = leases(store, "r1", SERVICES)
    first.acquire()
    for _ in range(5):
        watch.moment += timedelta(seconds=50)
        first.beat()
        with pytest.raises(LakeBusy):
            leases(store, "r2", SERVICES).acquire()

    watch.moment += timedelta(seconds=61)
    leases(store, "r2", BILLS).acquire()
    assert first.are_mine()  # nobody needed it
    second = leases(store, "r2", SERVICES)
    second.acquire()

    assert not first.are_mine()
    first.beat()
    first.release()
    assert second.are_mine()


def test_a_stalled_holder_cannot_commit_after_a_take_over() -> None:
    watch = Watch()
    store = MemoryStore(clock=watch.now)
    stalled = leases(store, "r1", SERVICES)
    stalled.acquire()
    planned = updates(CommitLog(store), snapshot("r1"))
    stage(store, "r1", [snapshot("r1")])
    watch.moment += timedelta(seconds=61)
    leases(store, "r2", SERVICES).acquire()

    with pytest.raises(LakeBusy, match="run r2 took them over"):
        commit_run(store, "r1", planned=planned, leases=stalled)

    assert CommitLog(store).newest() is None


def test_a_holder_that_stalls_between_check_and_put_loses_to_the_commit_of_its_successor() -> None:
    class Stalling(MemoryStore):
        """Before the first put of an entry the machine sleeps, and another run takes over and commits."""

        asleep = False

        def put_if_absent(self, path: str, content: bytes) -> bool:
            if path == entry_path(1) and not self.asleep:
                self.asleep = True
                watch.moment += timedelta(seconds=61)
                successor.acquire()
                commit_run(self, "r2", snapshot("r2"), leases=successor)
            return super().put_if_absent(path, content)

    watch = Watch()
    store = Stalling(clock=watch.now)
    stalled, successor = leases(store, "r1", SERVICES), leases(store, "r2", SERVICES)
    stalled.acquire()
    planned = updates(CommitLog(store), snapshot("r1"))
    stage(store, "r1", [snapshot("r1")])

    with pytest.raises((LakeBusy, CommitConflict)):
        commit_run(store, "r1", planned=planned, leases=stalled)

    assert [entry.run_id for entry in CommitLog(store).entries()] == ["r2"]


def test_of_many_that_take_over_one_wins(tmp_path: Path) -> None:
    for number in range(10):
        store = LocalStore(tmp_path / str(number))
        leases(store, "r0", SERVICES, BILLS, holder=replace(this_process(), boot_id="before")).acquire()
        barrier = Barrier(6)

        def take(who: int, store: Store = store, barrier: Barrier = barrier) -> Leases | None:
            mine = leases(store, f"r{who}", SERVICES, (BILLS, ORGS)[who % 2])
            barrier.wait()
            try:
                mine.acquire()
            except LakeBusy:
                return None
            return mine

        with ThreadPoolExecutor(6) as pool:
            winners = [found for found in pool.map(take, range(1, 7)) if found is not None]

        assert len(winners) == 1
        assert winners[0].are_mine()


def test_a_writer_that_slept_through_many_leases_gets_nothing_by_an_old_number() -> None:
    class Sleeping(MemoryStore):
        """Between the reading and the put of the first lease, forty others come and go."""

        asleep = True

        def put_if_absent(self, path: str, content: bytes) -> bool:
            if self.asleep:
                self.asleep = False
                for number in range(20):
                    other = leases(self, f"r{number}", SERVICES)
                    other.acquire()
                    other.release()
                last.acquire()
            return super().put_if_absent(path, content)

    store = Sleeping()
    last = leases(store, "last", SERVICES)

    with pytest.raises(LakeBusy, match="run last"):
        leases(store, "sleeper", SERVICES).acquire()

    assert last.are_mine()
    assert live_runs(store) == {"last"}


def test_an_unanswered_lease_that_arrived_is_held() -> None:
    class UnsureLease(MemoryStore):
        losses = 1

        def put_if_absent(self, path: str, content: bytes) -> bool:
            won = super().put_if_absent(path, content)
            if self.losses:
                self.losses -= 1
                raise LakeError("no answer; run again")
            return won

    store = UnsureLease()
    held = leases(store, "r1", SERVICES)

    held.acquire()

    assert held.are_mine()


def test_damaged_leases_are_an_error_with_a_remedy() -> None:
    store = MemoryStore()
    leases(store, "r1", SERVICES).acquire()
    store.put(f"_extractor/leases/{2:020d}.json", b"{")

    with pytest.raises(LakeError, match="if no run is active, remove the folder _extractor/leases"):
        leases(store, "r2", SERVICES).acquire()


@pytest.mark.parametrize(
    ("is_first_brief", "is_second_brief", "is_worth_waiting"),
    [(False, False, False), (True, False, True), (False, True, True), (True, True, True)],
)
def test_what_needs_the_tables_only_for_a_moment_is_waited_for_and_waits(
    is_first_brief: bool, is_second_brief: bool, is_worth_waiting: bool
) -> None:
    store = MemoryStore()
    first = Leases(store, run_id="r1", clock=Watch(), tables=[METRICS], is_brief=is_first_brief)
    second = Leases(store, run_id="r2", clock=Watch(), tables=[METRICS], is_brief=is_second_brief)
    first.acquire()

    with pytest.raises(LakeBusy) as caught:
        second.acquire()
    assert caught.value.is_brief is is_worth_waiting

    first.release()
    second.acquire()
    assert second.are_mine()
