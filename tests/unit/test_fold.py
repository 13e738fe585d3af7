from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from extractor.commit import Update, commit, publish, roll_forward
from extractor.commitlog import CommitLog, LogEntry, TableState
from extractor.errors import LakeError
from extractor.fold import FOLD_ENTRIES, fold_of
from extractor.lake import Lake
from extractor.store import Store, staged_path
from extractor.stores.memory import MemoryStore, PowerLost
from extractor.write import DataFile
from tests.unit.lakes import NOON, Watch

CONTENT = b"rows"


def minute(number: int) -> datetime:
    """When the entry with this number is made."""
    return NOON + timedelta(minutes=number)


def event_file(run_id: str) -> DataFile:
    return DataFile(
        path=f"metrics/account=default/event_date=2026-11-22/{run_id}-00000.parquet",
        rows=3,
        size_bytes=len(CONTENT),
        sha256="0" * 64,
        partition=(("account", "default"), ("event_date", "2026-11-22")),
    )


def table(name: str, run_id: str, files: Sequence[DataFile] = ()) -> TableState:
    return TableState(
        table=name,
        account="default",
        sync="append" if files else "snapshot",
        status="complete",
        reason="end of chain seen",
        rows=3 * len(files),
        files=tuple(files),
        columns=({"name": "id"},),
        state={},
        run_id=run_id,
        proved_by=run_id,
        snapshot_at=None,
        content="",
    )


def add_runs(store: Store, count: int, *, tables: int = 0) -> list[LogEntry]:
    """So many runs, each of which adds a file to one table; the other tables stay as they are."""
    log = CommitLog(store)
    entry = log.newest()
    state = log.state_of(entry, "metrics", "default") if entry else table("metrics", "")
    entries: list[LogEntry] = []
    for _ in range(count):
        number = entry.sequence + 1 if entry else 1
        run_id = f"r{number:05d}"
        added = event_file(run_id)
        state = replace(table("metrics", run_id, [*state.files, added]), run_id=run_id)
        store.put(staged_path(run_id, added.path), CONTENT)
        known = entry.tables if entry else {}
        states = [state, *(table(f"t{one:02d}", run_id) for one in range(tables) if entry is None)]
        entry = commit(
            store,
            log,
            run_id=run_id,
            updates=[
                Update(
                    table=one.table, account="default", state=one, expected=known.get((one.table, "default"))
                )
                for one in states
            ],
            summary={"requests": number},
            source={},
            started_at=minute(number),
            clock=Watch(minute(number)),
            leases=None,
        )
        publish(store, log, entry)
        entries.append(entry)
    return entries


def copied(store: Store, into: MemoryStore | None = None) -> MemoryStore:
    copy = into or MemoryStore()
    for stored in store.list(""):
        copy.put(stored.path, store.read(stored.path))
    return copy


def paths(store: Store, folder: str) -> list[str]:
    return [stored.path for stored in store.list(folder)]


@pytest.fixture(scope="module")
def almost() -> tuple[MemoryStore, list[LogEntry]]:
    """A lake before its first fold, to be read only."""
    store = MemoryStore()
    return store, add_runs(store, 2 * FOLD_ENTRIES - 1)


@pytest.fixture(scope="module")
def folded(almost: tuple[MemoryStore, list[LogEntry]]) -> tuple[MemoryStore, list[LogEntry]]:
    """A lake of two folds, to be read only."""
    store = copied(almost[0])
    return store, [*almost[1], *add_runs(store, FOLD_ENTRIES + 1)]


def test_a_number_belongs_to_the_fold_that_ends_behind_it() -> None:
    assert [fold_of(number) for number in (1, 255, 256, 257, 512)] == [256, 256, 256, 512, 512]


def test_old_entries_are_folded_and_all_of_them_are_still_read(
    folded: tuple[MemoryStore, list[LogEntry]],
) -> None:
    store, entries = folded
    log = CommitLog(store)

    assert len(paths(store, "_extractor/log")) == FOLD_ENTRIES
    assert len(paths(store, "_extractor/folds")) == 2
    assert list(log.entries()) == entries
    assert list(log.backwards()) == entries[::-1]
    assert log.check_numbers() == 3 * FOLD_ENTRIES
    assert log.newest() == entries[-1]
    assert roll_forward(store, log) == []


def test_the_state_after_every_run_is_still_known(folded: tuple[MemoryStore, list[LogEntry]]) -> None:
    store, entries = folded
    log = CommitLog(store)

    for number in (1, 2, 17, 256, 257, 300, 512, 513, 768):
        found = log.state_of(entries[number - 1], "metrics", "default")
        assert [file.path for file in found.files] == [
            event_file(f"r{one:05d}").path for one in range(1, number + 1)
        ]
    assert len(Lake(store).files("metrics", as_of="r00100")) == 100
    assert [run.run_id for run in Lake(store).runs()] == [entry.run_id for entry in entries]


def test_a_commit_writes_kilobytes_and_the_log_is_small_however_many_runs_there_were(
    folded: tuple[MemoryStore, list[LogEntry]],
) -> None:
    store, _ = folded
    files = [
        stored for stored in store.list("_extractor") if "/log/" in stored.path or "/lists/" in stored.path
    ]
    folds = sum(stored.size_bytes for stored in store.list("_extractor/folds"))

    # Entries and lists of the last 256 runs, whose tables have 768 files.
    assert sum(stored.size_bytes for stored in files) / FOLD_ENTRIES < 8_000
    assert folds / (2 * FOLD_ENTRIES) < 1_500


def test_the_newest_entry_is_found_without_listing_the_log(
    folded: tuple[MemoryStore, list[LogEntry]],
) -> None:
    store, entries = folded
    asked: list[str] = []

    class Watched(MemoryStore):
        def read(self, path: str) -> bytes:
            asked.append(f"read {path.split('/')[1]}")
            return store.read(path)

        def exists(self, path: str) -> bool:
            asked.append("exists")
            return store.exists(path)

    assert CommitLog(Watched()).newest() == entries[-1]
    assert asked == ["read latest.json", "exists", "exists", "exists", "read log", "read log"]


def test_a_crash_while_folding_loses_nothing_and_the_next_run_ends_it(
    almost: tuple[MemoryStore, list[LogEntry]],
) -> None:
    before = almost[0]
    whole = copied(before)
    whole.steps = 0
    add_runs(whole, 1)
    expected = [entry.run_id for entry in CommitLog(whole).entries()]
    steps = whole.steps
    assert steps > 4 * FOLD_ENTRIES

    for after_steps in (*range(15, 40, 3), *range(40, steps, 211), steps - 1):
        store = copied(before)
        store.lose_power(after_steps=after_steps)
        with pytest.raises(PowerLost):
            add_runs(store, 1)
        store.crash()

        log = CommitLog(store)
        found = [entry.run_id for entry in log.entries()]
        assert found in (expected, expected[:-1])
        assert log.check_numbers() == len(found)
        entry = log.newest()
        assert entry is not None
        assert len(log.state_of(entry, "metrics", "default").files) == len(found)

        roll_forward(store, log)
        add_runs(store, 3)
        assert len(paths(store, "_extractor/log")) == len(found) + 3 - FOLD_ENTRIES
        assert len(list(CommitLog(store).entries())) == len(found) + 3


def test_a_writer_that_slept_does_not_commit_under_a_folded_number(
    almost: tuple[MemoryStore, list[LogEntry]],
) -> None:
    class Sleeping(MemoryStore):
        """Just before entry 512 is put, hundreds of others come in, and are folded."""

        is_awake = True

        def put_if_absent(self, path: str, content: bytes) -> bool:
            if path.endswith(f"{2 * FOLD_ENTRIES:020d}.json") and self.is_awake:
                self.is_awake = False
                add_runs(self, FOLD_ENTRIES + 1)
                assert not self.exists(path)
            return super().put_if_absent(path, content)

    store = Sleeping()
    store.is_awake = False
    copied(almost[0], store)
    store.is_awake = True
    log = CommitLog(store)
    newest = log.newest()
    assert newest is not None

    late = commit(
        store,
        log,
        run_id="late",
        updates=[Update(table="other", account="default", state=table("other", "late"), expected=None)],
        summary={},
        source={},
        started_at=minute(2 * FOLD_ENTRIES),
        clock=Watch(minute(2 * FOLD_ENTRIES)),
        leases=None,
    )

    assert late.sequence == 3 * FOLD_ENTRIES + 1
    assert [entry.run_id for entry in CommitLog(store).entries()][-1] == "late"
    assert len({entry.run_id for entry in CommitLog(store).entries()}) == late.sequence


def test_a_missing_or_damaged_fold_is_an_error_with_a_remedy(
    folded: tuple[MemoryStore, list[LogEntry]],
) -> None:
    store = MemoryStore()
    for stored in folded[0].list(""):
        store.put(stored.path, folded[0].read(stored.path))
    first, second = paths(store, "_extractor/folds")
    content = store.read(first)

    store.put(first, content[:-30])
    with pytest.raises(LakeError, match="damaged or was changed by hand; restore it"):
        list(CommitLog(store).entries())
    changed = gzip.decompress(content).replace(b'"requests\\":9}', b'"requests\\":8}')
    assert changed != gzip.decompress(content)
    store.put(first, gzip.compress(changed))
    with pytest.raises(LakeError, match="damaged or was changed by hand; restore it"):
        list(CommitLog(store).entries())
    store.delete(first)
    with pytest.raises(LakeError, match="log entry 1 is missing"):
        CommitLog(store).check_numbers()
    store.put(first, content)
    store.delete(second)
    with pytest.raises(LakeError, match="log entry 257 is missing"):
        CommitLog(store).check_numbers()


def test_many_tables_stand_in_a_shared_list_and_an_entry_has_what_changed() -> None:
    store = MemoryStore()

    entries = add_runs(store, 3, tables=60)

    sizes = [stored.size_bytes for stored in store.list("_extractor/log")]
    assert max(sizes) < 2_000
    assert len(entries[-1].tables) == 61
    assert entries[0].base == entries[-1].base != ""
    assert list(CommitLog(store).entries()) == entries
