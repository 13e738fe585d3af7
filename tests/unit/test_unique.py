from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from extractor.store import staged_path
from extractor.stores.memory import MemoryStore
from extractor.unique import Uniqueness, make_unique, plain_row
from extractor.write import DataFile, Staged

RUN = "r1"


def put(store: MemoryStore, path: str, table: pa.Table, row_group: int = 2) -> bytes:
    with pa.BufferOutputStream() as sink:
        pq.write_table(table, sink, row_group_size=row_group)
        content = sink.getvalue().to_pybytes()
    store.put(path, content)
    return content


def described(path: str, table: pa.Table, content: bytes) -> DataFile:
    return DataFile(
        path=path,
        rows=table.num_rows,
        size_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        partition=(("account", "default"),),
    )


def stage(store: MemoryStore, *tables: pa.Table) -> list[Staged]:
    staged = []
    for number, table in enumerate(tables):
        path = f"t/part-{number}.parquet"
        content = put(store, staged_path(RUN, path), table)
        staged.append(Staged(file=described(path, table, content), window=str(number)))
    return staged


def landed(store: MemoryStore, *tables: pa.Table) -> list[DataFile]:
    paths = [f"t/old-{number}.parquet" for number in range(len(tables))]
    return [
        described(path, table, put(store, path, table)) for path, table in zip(paths, tables, strict=True)
    ]


def rows_of(store: MemoryStore, staged: Sequence[Staged]) -> list[list[Mapping[str, object]]]:
    return [pq.read_table(store.open_input(staged_path(RUN, item.file.path))).to_pylist() for item in staged]


def of(ids: Sequence[object], **columns: Sequence[object]) -> pa.Table:
    return pa.table({"id": ids, **columns})


def counts(found: Uniqueness) -> tuple[int, int, tuple[str, ...], int]:
    return found.repeated, found.known, found.conflicts, found.without_key


def test_files_without_a_row_twice_stay_as_they_are() -> None:
    store = MemoryStore()
    staged = stage(store, of([1, 2]), of([3]))
    steps = store.steps

    found = make_unique(store, RUN, staged, ["id"])

    assert found == Uniqueness(staged=tuple(staged))
    assert store.steps == steps


def test_rows_that_came_twice_with_equal_values_stand_once_where_they_came_first() -> None:
    store = MemoryStore()
    staged = stage(
        store,
        of([1, 2, 1], x=["a", "b", "a"], _extracted_at=[1, 2, 3]),
        of([2, 3], x=["b", "c"], _extracted_at=[4, 5]),
    )

    found = make_unique(store, RUN, staged, ["id"])

    assert counts(found) == (2, 0, (), 0)
    assert [[row["id"] for row in rows] for rows in rows_of(store, found.staged)] == [[1, 2], [3]]
    assert [item.file.rows for item in found.staged] == [2, 1]
    for item in found.staged:
        content = store.read(staged_path(RUN, item.file.path))
        assert (item.file.sha256, item.file.size_bytes) == (hashlib.sha256(content).hexdigest(), len(content))


def test_a_file_that_loses_every_row_is_gone() -> None:
    store = MemoryStore()
    staged = stage(store, of([1]), of([1]))

    found = make_unique(store, RUN, staged, ["id"])

    assert (found.staged, found.repeated) == ((staged[0],), 1)
    assert not store.exists(staged_path(RUN, staged[1].file.path))


def test_rows_with_one_key_and_different_values_are_all_kept_and_told() -> None:
    store = MemoryStore()
    staged = stage(store, of([1, 1, 1, 2], x=["a", "b", "a", "c"], name=["n", "n", "n", "n"]))

    found = make_unique(store, RUN, staged, ["id", "name"])

    assert counts(found) == (1, 0, ("id=1, name=n",), 0)
    assert [row["x"] for row in rows_of(store, found.staged)[0]] == ["a", "b", "c"]


def test_columns_that_may_change_make_no_conflict() -> None:
    store = MemoryStore()
    staged = stage(store, of([1, 1], status=["open", "closed"]))

    found = make_unique(store, RUN, staged, ["id"], mutable=["status"])

    assert counts(found) == (1, 0, (), 0)
    assert rows_of(store, found.staged) == [[{"id": 1, "status": "open"}]]


def test_the_order_of_the_pairs_of_a_map_makes_no_conflict() -> None:
    store = MemoryStore()
    maps = pa.array([[("a", 1), ("b", 2)], [("b", 2), ("a", 1)]], pa.map_(pa.string(), pa.int64()))

    found = make_unique(store, RUN, stage(store, of([1, 1], tags=maps)), ["id"])

    assert counts(found) == (1, 0, (), 0)
    assert plain_row({"m": [("b", 2), ("a", 1)], "l": [2, 1]}) == {"m": [("a", 1), ("b", 2)], "l": [2, 1]}


def test_rows_that_the_lake_knows_are_dropped_whatever_their_values_are_now() -> None:
    store = MemoryStore()
    staged = stage(store, of([1, 2, 3, 2], x=["a", "changed", "c", "b"]))
    present = landed(store, of([2, 9], x=["b", "z"]), of([1], x=["a"]))

    found = make_unique(store, RUN, staged, ["id"], present=present)

    assert counts(found) == (0, 3, (), 0)
    assert rows_of(store, found.staged) == [[{"id": 3, "x": "c"}]]


def test_rows_that_stand_twice_in_the_lake_are_no_matter_of_this_run() -> None:
    store = MemoryStore()
    staged = stage(store, of([1]))
    present = landed(store, of([7, 7]), of([7]))

    found = make_unique(store, RUN, staged, ["id"], present=present)

    assert found == Uniqueness(staged=tuple(staged))


def test_rows_without_a_whole_key_are_kept_and_counted() -> None:
    store = MemoryStore()
    staged = stage(store, of([1, None, None, 1], part=["a", "a", "a", None]), of([None, 1], part=[None, "a"]))
    present = landed(store, of([None], part=["a"]))

    found = make_unique(store, RUN, staged, ["id", "part"], present=present)

    assert counts(found) == (1, 0, (), 4)
    assert [len(rows) for rows in rows_of(store, found.staged)] == [4, 1]


def test_a_file_without_the_column_of_the_key_has_rows_without_key() -> None:
    store = MemoryStore()
    staged = stage(store, pa.table({"x": [1, 1]}), of([5, 5]))

    found = make_unique(store, RUN, staged, ["id"])

    assert counts(found) == (1, 0, (), 2)
    assert rows_of(store, found.staged) == [[{"x": 1}, {"x": 1}], [{"id": 5}]]


def test_a_column_whose_name_begins_like_the_key_is_no_part_of_it() -> None:
    store = MemoryStore()
    staged = stage(store, pa.table({"id": [1, 2, 1], "id.sub": ["a", "b", "a"]}))

    found = make_unique(store, RUN, staged, ["id"])

    assert counts(found) == (1, 0, (), 0)


def test_without_a_key_or_without_rows_nothing_is_compared() -> None:
    store = MemoryStore()

    for tables, key in (([of([1, 1])], []), ([of([]).slice(0, 0)], ["id"])):
        staged = stage(store, *tables)

        assert make_unique(store, RUN, staged, key) == Uniqueness(staged=tuple(staged))


keys = st.none() | st.integers(0, 4)


@settings(max_examples=60)
@given(
    st.lists(st.lists(st.tuples(keys, keys, st.integers(0, 1)), max_size=8), min_size=1, max_size=3),
    st.lists(st.tuples(keys, keys), max_size=4),
)
def test_each_whole_key_stands_once_unless_its_values_differ(
    files: list[list[tuple[int | None, int | None, int]]], old: list[tuple[int | None, int | None]]
) -> None:
    store = MemoryStore()
    types = {"a": pa.int64(), "b": pa.int64(), "x": pa.int64()}
    tables = [
        pa.table({name: pa.array([row[n] for row in file], types[name]) for n, name in enumerate("abx")})
        for file in files
    ]
    lake = pa.table({name: pa.array([row[n] for row in old], types[name]) for n, name in enumerate("ab")})
    staged = stage(store, *tables)

    found = make_unique(store, RUN, staged, ["a", "b"], present=landed(store, lake))

    rows, conflicts = once(files, set(old))
    assert [tuple(row.values()) for rows in rows_of(store, found.staged) for row in rows] == rows
    assert set(found.conflicts) == conflicts
    assert found.repeated + found.known + len(rows) == sum(map(len, files))


def once(
    files: list[list[tuple[int | None, int | None, int]]], old: set[tuple[int | None, int | None]]
) -> tuple[list[tuple[object, ...]], set[str]]:
    first: dict[tuple[object, object], int] = {}
    rows: list[tuple[object, ...]] = []
    conflicts: set[str] = set()
    for a, b, x in (row for file in files for row in file):
        if a is None or b is None:
            rows.append((a, b, x))
        elif (a, b) not in old and first.setdefault((a, b), x) != x:
            rows.append((a, b, x))
            conflicts.add(f"a={a}, b={b}")
        elif (a, b) not in old and (a, b, x) not in rows:
            rows.append((a, b, x))
    return rows, conflicts


def test_a_large_table_read_again_whole_is_known_row_by_row() -> None:
    store = MemoryStore()
    many = 400_000
    ids = [f"id-{number:07d}" for number in range(many)]
    path, new = "t/part-0.parquet", of([*ids, "new", "new"])
    content = put(store, staged_path(RUN, path), new, row_group=100_000)
    staged = [Staged(file=described(path, new, content), window="")]
    old = of(ids[::-1])
    present = [described("t/old.parquet", old, put(store, "t/old.parquet", old, row_group=100_000))]
    begun = time.process_time()

    found = make_unique(store, RUN, staged, ["id"], present=present)

    assert counts(found) == (1, many, (), 0)
    assert rows_of(store, found.staged) == [[{"id": "new"}]]
    assert time.process_time() - begun < 30


def test_of_a_key_that_tells_no_rows_apart_some_values_are_told_and_all_are_counted() -> None:
    store = MemoryStore()
    rows = of([number % 30 for number in range(90)], n=list(range(90)))

    found = make_unique(store, RUN, stage(store, rows), ["id"])

    assert (found.conflicting_keys, found.repeated, len(found.conflicts)) == (30, 0, 20)
    assert set(found.conflicts) <= {f"id={number}" for number in range(30)}
    assert [item.file.rows for item in found.staged] == [90]


def test_of_rows_that_share_a_key_only_those_that_are_equal_go() -> None:
    store = MemoryStore()
    first, second = of([1, 1, 2, 1], n=[5, 5, 6, 7]), of([2, 3, 1], n=[6, 8, 5])

    found = make_unique(store, RUN, stage(store, first, second), ["id"])

    assert (found.conflicting_keys, found.repeated, found.conflicts) == (1, 3, ("id=1",))
    assert rows_of(store, found.staged) == [
        [{"id": 1, "n": 5}, {"id": 2, "n": 6}, {"id": 1, "n": 7}],
        [{"id": 3, "n": 8}],
    ]


def _peak_bytes(files: int) -> int:
    """The most that Arrow held while a thousand new rows were looked up in so many files of the lake."""
    store = MemoryStore()
    rows = 20_000

    def table(first: int, count: int) -> pa.Table:
        ids = pa.array(range(first, first + count), pa.int64())
        # No row group can be passed over: each holds the whole range of both columns.
        return pa.table(
            {"series": ids.cast(pa.string()), "id": pa.array([n * 7919 % 100_003 for n in ids.to_pylist()])}
        )

    present = [
        described(f"t/{n}.parquet", t := table(n * rows, rows), put(store, f"t/{n}.parquet", t, 10_000))
        for n in range(files)
    ]
    staged = stage(store, pa.concat_tables([table(0, 500), table(10**9, 500)]))
    before, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(pool)
    try:
        found = make_unique(store, RUN, staged, ["series", "id"], present=present)
    finally:
        pa.set_memory_pool(before)
    assert (found.known, sum(item.file.rows for item in found.staged)) == (500, 500)
    return int(pool.max_memory())


def test_memory_does_not_grow_with_the_rows_that_the_lake_holds() -> None:
    few, many = _peak_bytes(2), _peak_bytes(20)

    assert many < 1.3 * few


def test_row_groups_that_can_hold_none_of_the_new_keys_are_not_read() -> None:
    store = MemoryStore()
    old = of(range(100), at=range(100))
    present = landed(store, old)
    content = store.read(present[0].path)
    file = pq.ParquetFile(pa.BufferReader(content))
    for number in range(file.num_row_groups):
        column = file.metadata.row_group(number).column(0)
        if file.metadata.row_group(number).column(0).statistics.max < 90:
            start, size = column.data_page_offset, column.total_compressed_size
            content = content[:start] + b"\0" * (size - 8) + content[start + size - 8 :]
    store.put(present[0].path, content)
    staged = stage(store, of([95, 200], at=[95, 200]))

    found = make_unique(store, RUN, staged, ["id"], present=present)

    assert rows_of(store, found.staged) == [[{"id": 200, "at": 200}]]
