"""The rows of many files in order, however many they are: sorted runs on the medium, merged range by range.

What fits is sorted in memory at once. Else each memory-full becomes a sorted file, and the keys at which the row
groups of those begin cut all rows into ranges that fit: a range is read from every sorted file, and sorted. No row
is looked at alone but for the few that a binary search asks for.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from extractor.endpoint import Endpoint
from extractor.layout import dictionary_columns, sort_columns, sort_rows
from extractor.store import Inputs, Store, Unclosed

__all__ = ("BYTES_MAX", "ROWS_HELD", "read_tables", "sorted_groups")

ROWS_HELD = 245_760
"""Rows in memory at once, at most: two row groups of a run's files."""
BYTES_MAX = 128 << 20
"""Bytes of them as they are read, about."""

_GROUP_ROWS = 8_192

Key = tuple[tuple[bool, object], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sorted:
    """A file of sorted rows, and the key of the first row of each of its row groups."""

    path: str
    rows: int
    firsts: tuple[Key, ...]


def read_tables(
    store: Inputs, places: Sequence[str], schema: pa.Schema, *, rows_max: int, bytes_max: int = BYTES_MAX
) -> Iterator[pa.Table]:
    """The rows of Parquet files in their order, with all columns of `schema`; text that repeats as dictionaries.

    A table has `rows_max` rows or `bytes_max` bytes, about, and one row group at least. What a file does not have
    is null.
    """
    dictionaries: tuple[str, ...] | None = None
    held: list[pa.Table] = []
    rows = size_bytes = 0
    for place in places:
        with store.open_input(place) as stream:
            if dictionaries is None:
                metadata = pq.read_metadata(pa.PythonFile(stream, mode="r"))
                dictionaries = dictionary_columns(metadata)
                stream.seek(0)
            file = pq.ParquetFile(pa.PythonFile(stream, mode="r"), read_dictionary=list(dictionaries))
            for number in range(file.num_row_groups):
                group = _aligned(file.read_row_group(number, use_threads=False), schema, dictionaries)
                if held and (rows + group.num_rows > rows_max or size_bytes + group.nbytes > bytes_max):
                    yield pa.concat_tables(held)
                    held, rows, size_bytes = [], 0, 0
                held.append(group)
                rows += group.num_rows
                size_bytes += group.nbytes
    if held:
        yield pa.concat_tables(held)


def sorted_groups(
    store: Store,
    tables: Iterator[pa.Table],
    endpoint: Endpoint,
    *,
    scratch: str,
    rows_max: int = ROWS_HELD,
) -> Iterator[pa.Table]:
    """Row groups of all the rows in the order of `sort_columns`; `scratch` is a folder for sorted files, and empty
    in the end.
    """
    first = next(tables, None)
    if first is None:
        return
    second = next(tables, None)
    if second is None:
        yield from sort_rows(first, endpoint)
        return
    names = [
        name
        for name in sort_columns(endpoint, first.schema.names)
        if not pa.types.is_nested(first.schema.field(name).type)
    ]
    parts: list[_Sorted] = []
    for table in _again(first, second, tables):
        parts.append(_write_sorted(store, f"{scratch}/{len(parts):05d}.parquet", table, endpoint, names))
    del first, second
    try:
        yield from _merged(store, parts, endpoint, names, rows_max)
    finally:
        store.delete_files([part.path for part in parts])


def _again(first: pa.Table, second: pa.Table, rest: Iterator[pa.Table]) -> Iterator[pa.Table]:
    yield first
    yield second
    yield from rest


def _write_sorted(
    store: Store, path: str, table: pa.Table, endpoint: Endpoint, names: Sequence[str]
) -> _Sorted:
    firsts: list[Key] = []
    output = store.open_output(path)
    writer: pq.ParquetWriter | None = None
    for group in sort_rows(table, endpoint):
        if writer is None:
            writer = pq.ParquetWriter(
                pa.PythonFile(Unclosed(output), mode="w"), group.schema, compression="lz4"
            )
        key_of = _keys(group, names)
        for start in range(0, group.num_rows, _GROUP_ROWS):
            firsts.append(key_of(start))
            piece = group.slice(start, _GROUP_ROWS)
            writer.write_table(piece, row_group_size=piece.num_rows)
    assert writer is not None
    writer.close()
    output.close()
    return _Sorted(path=path, rows=table.num_rows, firsts=tuple(firsts))


def _merged(
    store: Store, parts: Sequence[_Sorted], endpoint: Endpoint, names: Sequence[str], rows_max: int
) -> Iterator[pa.Table]:
    starts = [0] * len(parts)
    for splitter in [*_splitters(parts, rows_max), None]:
        ends = [
            part.rows if splitter is None else _rows_before(store, part, splitter, names) for part in parts
        ]
        pieces = [
            _slice(store, part, start, end)
            for part, start, end in zip(parts, starts, ends, strict=True)
            if end > start
        ]
        if pieces:
            yield from sort_rows(pa.concat_tables(pieces), endpoint)
        starts = ends


def _splitters(parts: Sequence[_Sorted], rows_max: int) -> list[Key]:
    """Keys that cut the rows into ranges of `rows_max` rows at most, where no key has more than that."""
    # From each file a range takes whole row groups, and at both its ends parts of one.
    step = max(1, rows_max // _GROUP_ROWS - 2 * len(parts))
    return sorted(key for part in parts for key in part.firsts)[step::step]


def _rows_before(store: Store, part: _Sorted, splitter: Key, names: Sequence[str]) -> int:
    """How many rows of the file come before a key."""
    group = bisect_left(part.firsts, splitter) - 1
    if group < 0:
        return 0
    with store.open_input(part.path) as stream:
        file = pq.ParquetFile(pa.PythonFile(stream, mode="r"))
        rows = file.read_row_group(group, columns=list(names), use_threads=False)
    key_of = _keys(rows, names)
    return group * _GROUP_ROWS + bisect_left(range(rows.num_rows), splitter, key=key_of)


def _slice(store: Store, part: _Sorted, start: int, end: int) -> pa.Table:
    first, last = start // _GROUP_ROWS, (end - 1) // _GROUP_ROWS
    with store.open_input(part.path) as stream:
        file = pq.ParquetFile(pa.PythonFile(stream, mode="r"))
        rows = file.read_row_groups(range(first, last + 1), use_threads=False)
    return rows.slice(start - first * _GROUP_ROWS, end - start)


def _keys(rows: pa.Table, names: Sequence[str]) -> Callable[[int], Key]:
    """Gives the key of a row, comparable as rows are ordered: nulls last."""
    columns = [rows[name] for name in names]

    def key_of(row: int) -> Key:
        values = [column[row].as_py() for column in columns]
        return tuple((value is None, 0 if value is None else value) for value in values)

    return key_of


def _aligned(table: pa.Table, schema: pa.Schema, dictionaries: Sequence[str]) -> pa.Table:
    columns = []
    for field in schema:
        type_ = pa.dictionary(pa.int32(), field.type) if field.name in dictionaries else field.type
        if field.name not in table.schema.names:
            columns.append(pa.nulls(table.num_rows, type_))
            continue
        column = table[field.name]
        columns.append(column if column.type == type_ else column.cast(type_))
    fields = [field.with_type(column.type) for field, column in zip(schema, columns, strict=True)]
    return pa.Table.from_arrays(columns, schema=pa.schema(fields))
