from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from threading import Barrier

import orjson
import pytest

from extractor import write
from extractor.commit import clean_orphans, old_path, publish, roll_forward
from extractor.commitlog import CommitLog, LogEntry, TableState
from extractor.errors import CommitConflict, LakeError
from extractor.store import Store, staged_path
from extractor.stores.local import LocalStore
from extractor.stores.memory import MemoryStore, PowerLost
from tests.unit.commits import (
    LATEST,
    commit_run,
    content_of,
    data_file,
    entry_path,
    events,
    snapshot,
    stage,
    staged,
    state,
    updates,
    visible,
    whole_run,
)
from tests.unit.lakes import NOON, Watch

# An entry is the whole logical state.


def test_a_lake_without_entries_has_no_newest_one() -> None:
    log = CommitLog(MemoryStore())

    assert log.newest() is None
    assert list(log.entries()) == []
    assert list(log.backwards()) == []
    assert roll_forward(MemoryStore(), log) == []


@pytest.mark.parametrize("parts", [0, 1, 64, 65, 700])
def test_what_was_committed_is_read_back(parts: int) -> None:
    store = MemoryStore()
    written = snapshot("r1", parts=parts)

    entry = commit_run(store, "r1", written)

    log = CommitLog(store)
    assert log.newest() == entry
    assert list(log.tables(entry)) == [written]
    assert entry.tables["services", "default"].files == parts
    assert (entry.sequence, entry.run_part, entry.predecessor) == (1, 1, "")
    assert entry.digest == hashlib.sha256(store.read(entry_path(1))).hexdigest()


def test_state_with_many_or_large_keys_is_read_back() -> None:
    store = MemoryStore()
    cursors = {f"series {number}": {"at": number, "text": "x" * (number % 300)} for number in range(2_000)}
    written = replace(snapshot("r1"), state={**cursors, "large": ["y" * 100_000], "none": None})

    entry = commit_run(store, "r1", written)

    assert CommitLog(store).state_of(entry, "services", "default") == written


def test_every_other_table_is_carried_forward_whole() -> None:
    store = MemoryStore()
    first = whole_run(store, "r1", snapshot("r1"), events("r1", "2026-11-20"))

    second = whole_run(store, "r2", snapshot("r2"))

    assert second.tables["notifications", "default"] == first.tables["notifications", "default"]
    assert second.tables["services", "default"] != first.tables["services", "default"]
    assert CommitLog(store).state_of(second, "notifications", "default") == events("r1", "2026-11-20")


def test_a_run_without_anything_new_is_recorded_all_the_same() -> None:
    store = MemoryStore()
    first = whole_run(store, "r1", snapshot("r1"))

    second = commit_run(store, "r2", status="partial", summary={"requests": 1})

    assert second.tables == first.tables
    assert (second.status, second.summary, second.run_id) == ("partial", {"requests": 1}, "r2")
    assert [entry.run_id for entry in CommitLog(store).entries()] == ["r1", "r2"]
    assert [entry.run_id for entry in CommitLog(store).backwards()] == ["r2", "r1"]


def test_the_entries_of_one_run_are_numbered_even_with_others_between() -> None:
    store = MemoryStore()
    commit_run(store, "r0", started_at=NOON - timedelta(hours=1), clock=Watch(NOON - timedelta(hours=1)))

    parts = [
        commit_run(store, "r1", snapshot("r1"), is_final=False).run_part,
        commit_run(store, "r2").run_part,
        commit_run(store, "r1", events("r1", "2026-11-20")).run_part,
    ]

    assert parts == [1, 1, 2]


def test_an_entry_that_proves_a_table_anew_writes_no_list() -> None:
    store = MemoryStore()
    whole_run(store, "r1", snapshot("r1"))
    lists = [(found.path, found.modified_at) for found in store.list("_extractor/lists")]

    entry = commit_run(store, "r2", replace(snapshot("r1"), proved_by="r2"))

    assert entry.tables["services", "default"].proved_by == "r2"
    assert [(found.path, found.modified_at) for found in store.list("_extractor/lists")] == lists


def test_a_file_that_is_not_staged_is_never_committed() -> None:
    store = MemoryStore()
    planned = updates(CommitLog(store), snapshot("r1"))

    with pytest.raises(LakeError, match=r"part-00000\.parquet of run r1 is not staged"):
        commit_run(store, "r1", planned=planned)

    assert CommitLog(store).newest() is None


def test_a_lost_file_of_an_earlier_run_does_not_stop_the_next_one() -> None:
    store = MemoryStore()
    days = [f"2026-{month:02d}-{day:02d}" for month in range(1, 13) for day in range(1, 29)]
    earlier = events("r1", *days)
    whole_run(store, "r1", earlier)
    for path in visible(store):
        store.delete(path)
    later = events("r2", "2026-06-15", earlier=earlier)
    store.put(staged_path("r2", later.files[-1].path), b"")
    path = "notifications/account=default/event_date=2026-06-15/r2-00000.parquet"
    store.put(staged_path("r2", path), content_of(path))

    entry = commit_run(store, "r2", planned=updates(CommitLog(store), later))

    assert CommitLog(store).state_of(entry, "notifications", "default") == later


# Entries stay small.


def test_adding_a_file_to_a_table_of_5000_writes_kilobytes() -> None:
    store = MemoryStore()
    days = [f"2026-{1 + day // 28:02d}-{1 + day % 28:02d}" for day in range(250)]
    paths = [
        f"metrics/account=default/event_date={day}/r-{day}-{part:05d}.parquet"
        for day in days
        for part in range(20)
    ]
    first = state("metrics", "default", "append", "r0", paths)
    entry = commit_run(store, "r0", first)
    before = {found.path for found in store.list("_extractor/lists")}
    assert len(first.files) == 5_000
    assert len(store.read(entry_path(1))) < 2_000

    added = "metrics/account=default/event_date=2026-05-03/r999-00000.parquet"
    second = state("metrics", "default", "append", "r999", [*paths, added])
    store.put(staged_path("r999", added), content_of(added))
    entry = commit_run(store, "r999", planned=updates(CommitLog(store), second))

    written = [found for found in store.list("_extractor/lists") if found.path not in before]
    assert len(store.read(entry_path(2))) < 2_000
    assert len(written) <= 4
    assert sum(found.size_bytes for found in written) < 100_000
    log = CommitLog(store)
    assert log.state_of(entry, "metrics", "default") == second
    # The lists of both entries are all that there is, so that others can be told apart from them.
    everything = {found.path.split("/")[-1].removesuffix(".json") for found in store.list("_extractor/lists")}
    known = [log.lists_of(found.tables["metrics", "default"]) for found in log.entries()]
    assert known[0] | known[1] == everything
    assert len(known[1] - known[0]) == len(written)


# Writers side by side.


def test_a_run_on_other_tables_is_rebased() -> None:
    store = MemoryStore()
    log = CommitLog(store)
    planned = updates(log, snapshot("r1"))
    stage(store, "r1", [snapshot("r1")])
    commit_run(store, "r2", events("r2", "2026-11-20"))

    entry = commit_run(store, "r1", planned=planned)

    assert entry.sequence == 2
    assert sorted(entry.tables) == [("notifications", "default"), ("services", "default")]


def test_a_run_on_the_same_table_conflicts() -> None:
    store = MemoryStore()
    planned = updates(CommitLog(store), snapshot("r1"))
    stage(store, "r1", [snapshot("r1")])
    second = commit_run(store, "r2", snapshot("r2"))

    with pytest.raises(CommitConflict, match="services of account default"):
        commit_run(store, "r1", planned=planned)

    assert CommitLog(store).newest() == second


def test_the_same_table_of_another_account_is_another_table() -> None:
    store = MemoryStore()
    planned = updates(CommitLog(store), snapshot("r1", account="one"))
    stage(store, "r1", [snapshot("r1", account="one")])
    commit_run(store, "r2", snapshot("r2", account="two"))

    entry = commit_run(store, "r1", planned=planned)

    assert sorted(entry.tables) == [("services", "one"), ("services", "two")]


def test_many_writers_at_once_all_commit_and_none_is_lost(tmp_path: Path) -> None:
    def commit_some(who: int) -> None:
        store = LocalStore(tmp_path)
        for turn in range(4):
            whole_run(store, f"r{who}-{turn}", snapshot(f"r{who}-{turn}", table=f"table{who}"))

    with ThreadPoolExecutor(5) as pool:
        list(pool.map(commit_some, range(5)))

    store = LocalStore(tmp_path)
    log = CommitLog(store)
    entries = list(log.entries())
    runs = {f"r{who}-{turn}" for who in range(5) for turn in range(4)}
    assert (len(entries), {entry.run_id for entry in entries}) == (20, runs)
    assert {key: ref.run_id for key, ref in entries[-1].tables.items()} == {
        (f"table{who}", "default"): f"r{who}-3" for who in range(5)
    }
    assert len(visible(store)) == 40
    assert staged(store) == []


class Unsure(MemoryStore):
    """Its answer to the first put of an entry is lost: after it won, or before it arrived."""

    def __init__(self, *, arrives: bool, losses: int = 1) -> None:
        super().__init__()
        self.arrives = arrives
        self.losses = losses

    def put_if_absent(self, path: str, content: bytes) -> bool:
        if not path.startswith("_extractor/log/") or not self.losses:
            return super().put_if_absent(path, content)
        self.losses -= 1
        if self.arrives:
            super().put_if_absent(path, content)
        raise LakeError(f"no answer to the put of {path}; run again")


@pytest.mark.parametrize("arrives", [True, False])
def test_an_unanswered_put_is_settled_by_reading_that_number(arrives: bool) -> None:
    store = Unsure(arrives=arrives)

    entry = commit_run(store, "r1", snapshot("r1"))

    assert list(CommitLog(store).entries()) == [entry]


def test_a_put_that_never_arrives_is_an_error_and_commits_nothing() -> None:
    store = Unsure(arrives=False, losses=1_000)

    with pytest.raises(LakeError, match="no answer"):
        commit_run(store, "r1", snapshot("r1"))

    assert CommitLog(store).newest() is None


def test_a_refused_put_whose_number_holds_this_very_entry_has_won() -> None:
    class SentTwice(MemoryStore):
        """A proxy sends the put again and hands on the second answer."""

        def put_if_absent(self, path: str, content: bytes) -> bool:
            super().put_if_absent(path, content)
            return super().put_if_absent(path, content)

    store = SentTwice()

    entry = commit_run(store, "r1", snapshot("r1"))

    assert list(CommitLog(store).entries()) == [entry]


def test_committing_again_after_an_error_does_not_commit_twice() -> None:
    store = MemoryStore()
    planned = updates(CommitLog(store), snapshot("r1"))
    stage(store, "r1", [snapshot("r1")])
    first = commit_run(store, "r1", planned=planned)

    second = commit_run(store, "r1", planned=planned, clock=Watch(NOON + timedelta(minutes=1)))

    assert second == first
    assert len(list(CommitLog(store).entries())) == 1


def apart(store: Store) -> list[str]:
    """The events that are marked as standing apart, by the name of their file."""
    log = CommitLog(store)
    newest = log.newest()
    assert newest is not None
    files = log.state_of(newest, "notifications", "default").files
    return [file.path.rpartition("/")[2] for file in files if file.is_apart]


def more_events(store: Store, run_id: str, day: str) -> TableState:
    """What stands in the lake, and a file of one more day."""
    log = CommitLog(store)
    newest = log.newest()
    assert newest is not None
    before = log.state_of(newest, "notifications", "default")
    path = f"notifications/account=default/event_date=2026-11-{day}/{run_id}-{day}.parquet"
    store.put(staged_path(run_id, path), content_of(path))
    return replace(before, rows=before.rows + 3, files=(*before.files, data_file(path)))


def test_files_of_a_later_part_of_a_run_stand_apart_if_others_came_in_between() -> None:
    store = MemoryStore()
    commit_run(store, "b", events("b", "2026-11-01"), is_final=False)
    commit_run(store, "b", more_events(store, "b", "02"), is_final=False)
    assert apart(store) == []

    commit_run(store, "r", more_events(store, "r", "03"))
    commit_run(store, "b", more_events(store, "b", "04"), is_final=False)
    commit_run(store, "b", more_events(store, "b", "05"))
    commit_run(store, "s", more_events(store, "s", "06"))

    assert apart(store) == ["b-04.parquet", "b-05.parquet"]


def test_a_run_that_commits_in_the_very_act_counts_as_in_between() -> None:
    class Contested(MemoryStore):
        """Another run is first with entry 2."""

        is_contested = True

        def put_if_absent(self, path: str, content: bytes) -> bool:
            if path == entry_path(2) and self.is_contested:
                self.is_contested = False
                commit_run(self, "r", snapshot("r"))
            return super().put_if_absent(path, content)

    store = Contested()
    commit_run(store, "b", events("b", "2026-11-01"), is_final=False)

    commit_run(store, "b", more_events(store, "b", "02"))

    assert apart(store) == ["b-02.parquet"]


@pytest.mark.parametrize("is_between", [False, True])
def test_committing_a_later_part_again_does_not_commit_twice(is_between: bool) -> None:
    store = MemoryStore()
    commit_run(store, "b", events("b", "2026-11-01"), is_final=False)
    if is_between:
        commit_run(store, "r", snapshot("r"))
    planned = updates(CommitLog(store), more_events(store, "b", "02"))
    first = commit_run(store, "b", planned=planned)
    commit_run(store, "s", snapshot("s", table="other"))

    assert commit_run(store, "b", planned=planned) == first


def test_an_entry_whose_predecessor_does_not_stand_is_void_and_made_again() -> None:
    class Slipping(MemoryStore):
        """While entry 2 is put for the first time, the entry below it is exchanged."""

        exchanged = False

        def put_if_absent(self, path: str, content: bytes) -> bool:
            won = super().put_if_absent(path, content)
            if path == entry_path(2) and not self.exchanged:
                self.exchanged = True
                other = MemoryStore()
                commit_run(other, "other", events("other", "2026-11-20"))
                for found in other.list("_extractor/lists"):
                    self.put(found.path, other.read(found.path))
                self.put(entry_path(1), other.read(entry_path(1)))
            return won

    store = Slipping()
    commit_run(store, "r1", events("r1", "2026-11-19"))

    entry = commit_run(store, "r2", snapshot("r2"))

    entries = list(CommitLog(store).entries())
    assert [found.run_id for found in entries] == ["other", "r2"]
    assert entries[1] == entry
    assert entry.tables["notifications", "default"] == entries[0].tables["notifications", "default"]


# Time.


def test_time_in_the_log_never_goes_back() -> None:
    store = MemoryStore()
    commit_run(store, "r1", clock=Watch(NOON))
    earlier = NOON - timedelta(hours=2)

    entry = commit_run(
        store, "r2", clock=Watch(earlier), started_at=earlier, summary={"warnings": ["a first one"]}
    )

    assert entry.committed_at == NOON
    assert entry.summary["warnings"] == [
        "a first one",
        "this machine's clock is behind the newest commit; the entry has its time, 2026-11-22T12:00:00Z",
    ]


# Publishing.


def test_published_files_are_in_their_places_and_staging_is_gone() -> None:
    store = MemoryStore()
    states = [snapshot("r1"), events("r1", "2026-11-20", "2026-11-21")]

    entry = commit_run(store, "r1", *states)
    assert visible(store) == []
    moved = publish(store, CommitLog(store), entry)

    assert moved == 4
    assert visible(store) == sorted(file.path for found in states for file in found.files)
    assert staged(store) == []
    assert orjson.loads(store.read(LATEST)) == {
        "sequence": 1,
        "run_id": "r1",
        "snapshots": {"services/default": "services/account=default/snapshot_date=2026-11-22/run=r1"},
    }
    assert publish(store, CommitLog(store), entry) == 0


def test_what_a_killed_attempt_left_in_a_folder_is_not_published_with_it() -> None:
    store = MemoryStore()
    entry = commit_run(store, "r1", snapshot("r1", parts=2), events("r1", "2026-11-20"))
    folder = snapshot("r1").files[0].path.rpartition("/")[0]
    store.put(staged_path("r1", f"{folder}/part-00002.parquet"), b"never committed")
    beside = "notifications/account=default/event_date=2026-11-20/r1-00001.parquet"
    store.put(staged_path("r1", beside), b"nor this")
    store.put(staged_path("r1", "journal/0001.arrow"), b"nor this")

    publish(store, CommitLog(store), entry)

    assert visible(store) == [
        "notifications/account=default/event_date=2026-11-20/r1-00000.parquet",
        f"{folder}/part-00000.parquet",
        f"{folder}/part-00001.parquet",
    ]


def test_publishing_a_part_of_a_run_keeps_the_rest_of_its_staging() -> None:
    store = MemoryStore()
    store.put(staged_path("r1", "journal/0001.arrow"), b"to be resumed")
    entry = commit_run(store, "r1", snapshot("r1"), is_final=False)

    publish(store, CommitLog(store), entry)

    assert staged(store) == [staged_path("r1", "journal/0001.arrow")]
    assert roll_forward(store, CommitLog(store)) == []
    last = commit_run(store, "r1", events("r1", "2026-11-20"))
    publish(store, CommitLog(store), last)
    assert staged(store) == []
    assert commit_run(store, "r2").publishing == {"r2": (3,)}


def test_several_writers_may_publish_the_same_run_at_once(tmp_path: Path) -> None:
    days = [f"2026-11-{day:02d}" for day in range(1, 21)]
    for number in range(5):
        store = LocalStore(tmp_path / str(number))
        entry = commit_run(store, "r1", snapshot("r1", parts=5), events("r1", *days))
        barrier = Barrier(4)

        def work(_: int, store: Store = store, entry: LogEntry = entry, barrier: Barrier = barrier) -> None:
            barrier.wait()
            publish(store, CommitLog(store), entry)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))

        assert len(visible(store)) == 25
        assert staged(store) == []


def test_the_hint_never_names_a_snapshot_that_is_not_published_yet() -> None:
    store = MemoryStore()
    whole_run(store, "r1", snapshot("r1"))
    commit_run(store, "r2", snapshot("r2"))

    whole_run(store, "r3", events("r3", "2026-11-20"))

    assert orjson.loads(store.read(LATEST)) == {
        "sequence": 3,
        "run_id": "r3",
        "snapshots": {"services/default": "services/account=default/snapshot_date=2026-11-22/run=r1"},
    }
    assert roll_forward(store, CommitLog(store)) == ["r2"]
    assert orjson.loads(store.read(LATEST))["snapshots"]["services/default"].endswith("run=r2")


def test_roll_forward_finishes_what_others_left() -> None:
    store = MemoryStore()
    commit_run(store, "r1", snapshot("r1"))
    commit_run(store, "r2", events("r2", "2026-11-20"))
    stage(store, "r3", [snapshot("r3", table="other")])

    assert roll_forward(store, CommitLog(store)) == ["r1", "r2"]

    assert len(visible(store)) == 3
    assert {path.split("/")[2] for path in staged(store)} == {"r3"}
    assert roll_forward(store, CommitLog(store)) == []


def test_files_are_published_from_where_they_are_written() -> None:
    assert staged_path("r1", "a/b.parquet") == write.staged_path("r1", "a/b.parquet")


# Staging that nobody will finish.


def test_only_old_staging_without_a_live_run_is_removed() -> None:
    watch = Watch()
    store = MemoryStore(clock=watch.now)
    for run_id in ("dead", "alive"):
        stage(store, run_id, [snapshot(run_id)])
    commit_run(store, "unpublished", snapshot("unpublished", table="services2"))
    commit_run(store, "stopped", snapshot("stopped", table="services3"), is_final=False)
    store.put(staged_path("stopped", "journal/1"), b"x")
    store.put("_extractor/incoming/1", b"x")
    watch.moment += timedelta(seconds=3_000)
    stage(store, "young", [snapshot("young")])
    watch.moment += timedelta(seconds=700)

    removed = clean_orphans(store, CommitLog(store), live_runs={"alive"}, resume_seconds=3_600)

    assert removed == ["dead", "stopped", "unpublished"]
    assert {path.split("/")[2] for path in staged(store)} == {"alive", "young"}
    assert {path.split("/")[0] for path in visible(store)} == {"services2", "services3"}
    assert store.exists("_extractor/incoming/1")
    watch.moment += timedelta(days=1, seconds=1)
    clean_orphans(store, CommitLog(store), live_runs={"alive", "young"}, resume_seconds=3_600)
    assert not store.exists("_extractor/incoming/1")


# A crash anywhere.


@pytest.mark.parametrize("keep_unsynced", [False, True])
def test_a_crash_at_any_step_leaves_the_old_state_or_the_new_and_the_next_run_ends_it(
    keep_unsynced: bool,
) -> None:
    before = [snapshot("r1"), events("r1", "2026-11-19"), snapshot("r1", table="untouched")]
    after = [snapshot("r2"), events("r2", "2026-11-20", "2026-11-21", earlier=before[1])]

    def lake() -> MemoryStore:
        store = MemoryStore()
        whole_run(store, "r1", *before)
        stage(store, "r2", after)
        return store

    def logical(store: Store) -> list[TableState]:
        log = CommitLog(store)
        entry = log.newest()
        assert entry is not None
        for found in log.tables(entry):
            for file in found.files:
                places = (file.path, staged_path("r2", file.path))
                assert any(
                    store.exists(place) and store.read(place) == content_of(file.path) for place in places
                )
        return list(log.tables(entry))

    old = logical(lake())
    finished = lake()
    planned = updates(CommitLog(finished), *after)
    finished.steps = 0
    publish(finished, CommitLog(finished), commit_run(finished, "r2", planned=planned))
    new, steps = logical(finished), finished.steps
    assert old != new
    assert steps > 15
    outcomes = set()

    for after_steps in range(steps):
        store = lake()
        store.lose_power(after_steps=after_steps)
        with pytest.raises(PowerLost):
            publish(store, CommitLog(store), commit_run(store, "r2", planned=planned))
        store.crash(keep_unsynced=keep_unsynced)

        found = logical(store)
        assert found in (old, new)
        committed = {file.path for state in (*old, *new) for file in state.files}
        assert set(visible(store)) <= committed
        outcomes.add(found == new)

        roll_forward(store, CommitLog(store))
        if found == old:
            assert not [path for path in visible(store) if "r2" in path]
            publish(store, CommitLog(store), commit_run(store, "r2", planned=planned))
        assert logical(store) == new
        assert visible(store) == visible(finished)
        assert staged(store) == []
        assert len(list(CommitLog(store).entries())) == 2

    assert outcomes == {True, False}


def test_replaced_files_are_recorded_with_those_that_hold_their_rows() -> None:
    store = MemoryStore()
    commit_run(store, "r1", snapshot("r1"))

    entry = commit_run(store, "r2", replaced={"a": ["c"], "b": ["c"], "gone": []})

    log = CommitLog(store)
    assert log.replacements(entry) == {"a": ("c",), "b": ("c",), "gone": ()}
    assert log.replacements(log.read(1)) == {}
    assert old_path("a/b") == "_extractor/old/a/b"
