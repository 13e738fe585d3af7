from __future__ import annotations

import gc
import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from extractor.batch import Stamp
from extractor.endpoint import Endpoint, Sync, Window
from extractor.schema import RESCUED, UTC_TIME, Field, Scalar, TableSchema
from extractor.store import Output, Store, staged_path
from extractor.stores.local import LocalStore
from extractor.stores.memory import MemoryStore
from extractor.write import DataFile, Staged, TableWriter, WriteSettings, rewrite

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
SCHEMA = TableSchema(
    table="t",
    fields=(
        Field(name="id", type=Scalar("int64"), source="id"),
        Field(name="at", type=Scalar("timestamp"), source="at"),
    ),
)
SNAPSHOT = Endpoint(name="things", path="/t", key=("id",))
EVENTS = Endpoint(name="events", path="/e", key=("id",), sync=Sync(kind="append", cursor="at"))
BILLS = Endpoint(
    name="bills",
    path="/b",
    key=("id",),
    sync=Sync(kind="window", window=Window(from_param="from", step="1M", replace=True)),
)


@pytest.fixture(params=["memory", "local"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return MemoryStore() if request.param == "memory" else LocalStore(tmp_path)


def writer_of(
    store: Store, endpoint: Endpoint, *, account: str = "default", **settings: object
) -> TableWriter:
    return TableWriter(
        store,
        endpoint,
        Stamp(run_id="r1", account=account, snapshot_at=NOON, is_event=endpoint.sync.is_event),
        settings=WriteSettings(**settings),  # type: ignore[arg-type]  # of the test's choice
        snapshot_date="2026-11-22",
    )


def rows(
    ids: list[int], at: datetime | list[datetime | None] | None = NOON, **more: list[object]
) -> pa.RecordBatch:
    times = at if isinstance(at, list) else [at] * len(ids)
    columns = {"id": pa.array(ids, pa.int64()), "at": pa.array(times, UTC_TIME), **more}
    return pa.record_batch({**columns, RESCUED: pa.nulls(len(ids), pa.string())})


def read(store: Store, file: DataFile) -> pq.ParquetFile:
    return pq.ParquetFile(pa.BufferReader(store.read(staged_path("r1", file.path))))


def ids_of(store: Store, staged: tuple[Staged, ...]) -> list[list[int]]:
    return [read(store, item.file).read(["id"]).column("id").to_pylist() for item in staged]


def test_a_file_is_described_by_what_stands_in_the_store(store: Store) -> None:
    writer = writer_of(store, SNAPSHOT)
    writer.add(rows([1, 2]), window="", received_at=NOON)

    (staged,) = writer.finish(SCHEMA)

    content = store.read(staged_path("r1", staged.file.path))
    assert staged == Staged(
        file=DataFile(
            path="things/account=default/snapshot_date=2026-11-22/run=r1/part-00000.parquet",
            rows=2,
            size_bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            partition=(("account", "default"), ("snapshot_date", "2026-11-22"), ("run", "r1")),
        ),
        window="",
    )
    assert [file.path for file in store.list("")] == [f"_extractor/staging/r1/{staged.file.path}"]


@pytest.mark.parametrize("endpoint", [SNAPSHOT, EVENTS, BILLS])
def test_names_of_the_path_are_never_columns_of_the_file(endpoint: Endpoint) -> None:
    store = MemoryStore()
    writer = writer_of(store, endpoint)
    writer.add(rows([1]), window="2026-11", received_at=NOON)

    (staged,) = writer.finish(SCHEMA)

    names = read(store, staged.file).schema_arrow.names
    own = ["_run_id", "_extracted_at", "_account", "_event_date" if endpoint is EVENTS else "_snapshot_at"]
    assert names == ["id", "at", RESCUED, *own]
    assert not set(names) & {name for name, _ in staged.file.partition}


def test_a_file_that_has_reached_its_size_is_followed_by_another_and_no_row_is_lost(store: Store) -> None:
    writer = writer_of(store, SNAPSHOT, target_file_bytes=1, row_group_bytes=1)
    for number in range(4):
        writer.add(rows([2 * number, 2 * number + 1]), window="", received_at=NOON)

    staged = writer.finish(SCHEMA)

    assert ids_of(store, staged) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert [item.file.path[-13:] for item in staged] == [f"{number:05d}.parquet" for number in range(4)]
    assert sum(item.file.rows for item in staged) == writer.rows == 8


def test_a_row_group_is_written_when_its_bytes_are_there() -> None:
    store = MemoryStore()
    writer = writer_of(store, SNAPSHOT, row_group_bytes=100)
    for number in range(6):
        writer.add(rows([number]), window="", received_at=NOON)

    (staged,) = writer.finish(SCHEMA)

    metadata = read(store, staged.file).metadata
    groups = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
    assert (sum(groups), groups) == (6, [groups[0]] * (len(groups) - 1) + [groups[-1]])
    assert 1 < len(groups) <= 6


def test_a_row_group_never_has_more_rows_than_readers_plan_for() -> None:
    store = MemoryStore()
    writer = writer_of(store, SNAPSHOT, row_group_bytes=1 << 40)
    for _ in range(3):
        writer.add(rows(list(range(61_440))), window="", received_at=NOON)

    (staged,) = writer.finish(SCHEMA)

    metadata = read(store, staged.file).metadata
    assert [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)] == [122_880, 61_440]


def test_what_is_buffered_is_counted_until_it_is_flushed() -> None:
    writer = writer_of(MemoryStore(), SNAPSHOT)
    writer.add(rows([1, 2, 3]), window="", received_at=NOON)
    before = writer.buffered_bytes

    writer.flush()

    assert before > 24
    assert writer.buffered_bytes == 0
    assert len(writer.finish(SCHEMA)) == 1


def test_a_new_column_starts_a_new_file_and_the_old_rows_stay_in_theirs(store: Store) -> None:
    writer = writer_of(store, SNAPSHOT)
    writer.add(rows([1]), window="", received_at=NOON)
    writer.add(rows([2], new=["x"]), window="", received_at=NOON)

    staged = writer.finish(SCHEMA)

    assert ids_of(store, staged) == [[1], [2]]
    assert ["new" in read(store, item.file).schema_arrow.names for item in staged] == [False, True]


def test_events_stand_under_the_day_they_happened_and_those_without_a_time_under_their_own_name() -> None:
    store = MemoryStore()
    writer = writer_of(store, EVENTS)
    other = datetime(2026, 11, 21, 1, tzinfo=UTC)
    writer.add(rows([1, 2, 3, 4], [NOON, None, other, NOON]), window="", received_at=NOON)

    staged = writer.finish(SCHEMA)

    assert {item.file.path: ids for item, ids in zip(staged, ids_of(store, staged), strict=True)} == {
        "events/account=default/event_date=2026-11-22/r1-00000.parquet": [1, 4],
        "events/account=default/event_date=__HIVE_DEFAULT_PARTITION__/r1-00000.parquet": [2],
        "events/account=default/event_date=2026-11-21/r1-00000.parquet": [3],
    }
    dates = [read(store, item.file).read(["_event_date"]).column(0).to_pylist() for item in staged]
    assert dates == [[NOON.date()] * 2, [None], [other.date()]]


def test_windows_of_one_day_have_files_of_their_own() -> None:
    store = MemoryStore()
    writer = writer_of(store, EVENTS)
    writer.add(rows([1]), window="a", received_at=NOON)
    writer.add(rows([2]), window="b", received_at=NOON)

    staged = writer.finish(SCHEMA)

    assert [(item.window, item.file.path[-16:]) for item in staged] == [
        ("a", "r1-00000.parquet"),
        ("b", "r1-00001.parquet"),
    ]
    assert ids_of(store, staged) == [[1], [2]]


def test_a_reading_of_a_window_stands_under_its_label() -> None:
    writer = writer_of(MemoryStore(), BILLS, account="a/b c")
    writer.add(rows([1]), window="2026-11", received_at=NOON)

    (staged,) = writer.finish(SCHEMA)

    assert staged.file.path == "bills/account=a%2Fb%20c/window=2026-11/run=r1/part-00000.parquet"
    assert staged.file.partition == (("account", "a/b c"), ("window", "2026-11"), ("run", "r1"))


class CountingStore(MemoryStore):
    """Counts outputs that are open at once."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: list[Output] = []
        self.most = 0

    def open_output(self, path: str) -> Output:
        self.outputs.append(super().open_output(path))
        self.most = max(self.most, sum(not output.closed for output in self.outputs))
        return self.outputs[-1]


def test_no_more_files_are_open_than_allowed_and_every_row_is_written() -> None:
    store = CountingStore()
    writer = writer_of(store, EVENTS, open_files=3, row_group_bytes=1)
    for turn in range(2):
        for day in range(1, 11):
            at = datetime(2026, 1, day, tzinfo=UTC)
            writer.add(rows([100 * turn + day], at), window="", received_at=NOON)

    staged = writer.finish(SCHEMA)

    assert store.most == 3
    assert all(output.closed for output in store.outputs)
    assert sorted(id_ for ids in ids_of(store, staged) for id_ in ids) == [*range(1, 11), *range(101, 111)]
    assert len({item.file.path for item in staged}) == len(staged) == 20


def test_a_snapshot_of_no_rows_is_one_typed_empty_file(store: Store) -> None:
    (staged,) = writer_of(store, SNAPSHOT).finish(SCHEMA)

    file = read(store, staged.file)
    assert (staged.file.rows, file.metadata.num_rows) == (0, 0)
    assert file.schema_arrow.field("at").type == UTC_TIME
    assert staged.file.path == "things/account=default/snapshot_date=2026-11-22/run=r1/part-00000.parquet"


@pytest.mark.parametrize("endpoint", [EVENTS, BILLS])
def test_other_tables_without_rows_have_no_file_unless_one_is_asked_for(endpoint: Endpoint) -> None:
    assert writer_of(MemoryStore(), endpoint).finish(SCHEMA) == ()


def test_the_empty_file_of_an_event_table_stands_where_rows_without_a_time_do() -> None:
    staged = writer_of(MemoryStore(), EVENTS).empty(SCHEMA)

    assert staged.file.path == "events/account=default/event_date=__HIVE_DEFAULT_PARTITION__/r1-00000.parquet"


def test_an_aborted_writer_leaves_no_file_behind(store: Store) -> None:
    writer = writer_of(store, SNAPSHOT, row_group_bytes=1)
    writer.add(rows([1]), window="", received_at=NOON)

    writer.abort()
    del writer
    gc.collect()

    assert list(store.list("")) == []


def tables(*groups: list[int]) -> Iterator[pa.Table]:
    return (pa.table({"id": group}) for group in groups)


def test_a_rewritten_file_has_the_rows_that_were_kept_at_the_same_place(store: Store) -> None:
    writer = writer_of(store, SNAPSHOT)
    writer.add(rows([1, 2, 3]), window="w", received_at=NOON)
    (staged,) = writer.finish(SCHEMA)

    again = rewrite(store, "r1", staged, list(tables([1], [], [3])), compression="zstd")

    assert again is not None
    content = store.read(staged_path("r1", again.file.path))
    assert (again.window, again.file.path, again.file.rows) == (staged.window, staged.file.path, 2)
    assert (again.file.sha256, again.file.size_bytes) == (hashlib.sha256(content).hexdigest(), len(content))
    assert ids_of(store, (again,)) == [[1, 3]]


def test_a_file_of_which_nothing_is_kept_is_gone(store: Store) -> None:
    writer = writer_of(store, SNAPSHOT)
    writer.add(rows([1]), window="", received_at=NOON)
    (staged,) = writer.finish(SCHEMA)

    assert rewrite(store, "r1", staged, list(tables([])), compression="zstd") is None
    assert list(store.list("")) == []
