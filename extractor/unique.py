"""Each row once: keys of staged files against each other, and for event tables against the lake.

Rows that came twice with equal values (a page that was served twice, rows that shifted between pages) are dropped;
rows that share a key and differ are a conflict, which is for a check to judge and never settled in silence.
Only key columns are read, and they are compared inside Arrow.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, TypeGuard
from zlib import crc32

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from extractor.digest import row_bytes
from extractor.schema import META_COLUMNS
from extractor.store import Store, staged_path
from extractor.write import DataFile, Staged, open_parquet, rewrite

__all__ = ("Uniqueness", "count_unique", "make_unique", "plain_row")

_FILE, _ROW = "_file", "_row"
_FIRST_FILE, _FIRST_ROW = "_first_file", "_first_row"
_ZERO, _ONE = pa.scalar(0, pa.int64()), pa.scalar(1, pa.int64())

# Keys of so many new rows are held at once, and of the lake's those that are equal to one of them.
_ROWS_PER_PASS = 250_000
# Rows that share a key are compared so many at a time, and so many keys of differing ones are told.
_ROWS_COMPARED = 20_000
_CONFLICTS_TOLD = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Uniqueness:
    """What was found: rows dropped because they came twice or stood in the lake (and how many keys those had), keys
    that rows with different values share, and rows without a whole key (kept, as nothing tells them apart).
    """

    staged: tuple[Staged, ...]
    repeated: int = 0
    known: int = 0
    known_keys: int = 0
    conflicts: tuple[str, ...] = ()
    """Some of those keys, in words."""
    conflicting_keys: int = 0
    without_key: int = 0


def make_unique(
    store: Store,
    run_id: str,
    staged: Sequence[Staged],
    key: Sequence[str],
    *,
    present: Sequence[DataFile] = (),
    mutable: Sequence[str] = (),
    compression: str = "zstd",
) -> Uniqueness:
    """Drop from the staged files what the key says was there before; rewrite only files that lose rows.

    `present` are files of the lake whose rows count as seen; `mutable` columns do not make a conflict.
    """
    if not key or not any(item.file.rows for item in staged):
        return Uniqueness(staged=tuple(staged))
    sources = [(staged_path(run_id, item.file.path), number) for number, item in enumerate(staged)]
    passes = -(-sum(item.file.rows for item in staged) // _ROWS_PER_PASS)
    without_key = 0
    found = _Found(store, run_id, staged, key, mutable)
    schema = _key_schema(store, sources, key)
    for share in range(passes):
        table = _read_keys(store, sources, schema, share, passes)
        table = pa.concat_tables([*_known_keys(store, present, table, schema), table]).combine_chunks()
        is_whole = _all_valid(table, key)
        without_key += (
            pc.sum(pc.and_(pc.invert(is_whole), pc.greater_equal(table[_FILE], _ZERO))).as_py() or 0
        )
        # Equal keys belong to one share, so that each is settled for itself.
        found.settle(_doubled(table.filter(is_whole) if without_key else table, key))
    kept = [
        item
        if number not in found.dropped
        else _without(store, run_id, item, pa.concat_arrays(found.dropped[number]), compression)
        for number, item in enumerate(staged)
    ]
    return Uniqueness(
        staged=tuple(item for item in kept if item is not None),
        repeated=found.repeated,
        known=found.known,
        known_keys=found.known_keys,
        conflicts=tuple(found.conflicts),
        conflicting_keys=found.conflicting_keys,
        without_key=without_key,
    )


def count_unique(store: Store, run_id: str, staged: Sequence[Staged], key: Sequence[str]) -> int:
    """How many rows the staged files have if each key counts once; a row without a whole key counts for itself."""
    rows = sum(item.file.rows for item in staged)
    if not key or not rows:
        return rows
    sources = [(staged_path(run_id, item.file.path), number) for number, item in enumerate(staged)]
    passes = -(-rows // _ROWS_PER_PASS)
    schema = _key_schema(store, sources, key)
    count = 0
    for share in range(passes):
        table = _read_keys(store, sources, schema, share, passes)
        whole = table.filter(_all_valid(table, key))
        keys = whole.group_by(list(key), use_threads=False).aggregate([])
        count += keys.num_rows + table.num_rows - whole.num_rows
    return count


def _doubled(table: pa.Table, key: Sequence[str]) -> pa.Table:
    """The rows whose key stands more than once."""
    counts = table.group_by(list(key), use_threads=False).aggregate([(_FILE, "count")])
    often = counts.filter(pc.greater(counts[f"{_FILE}_count"], _ONE)).select(list(key))
    if often.num_rows == 0:
        return table.slice(0, 0)
    return table.join(often, keys=list(key), join_type="inner", use_threads=False).select(table.schema.names)


def _key_schema(store: Store, sources: Sequence[tuple[str, int]], key: Sequence[str]) -> pa.Schema:
    """The key columns as the newest file has them; a file without one of them has nulls there."""
    types: dict[str, pa.DataType] = {}
    for path, _ in sources:
        with store.open_input(path) as stream:
            present = pq.read_schema(pa.PythonFile(stream, mode="r"))
        types |= {name: present.field(name).type for name in key if name in present.names}
    return pa.schema([(name, types.get(name, pa.string())) for name in key])


def _read_keys(
    store: Store, sources: Sequence[tuple[str, int]], schema: pa.Schema, share: int, passes: int
) -> pa.Table:
    """The key columns of all sources with file and row numbers; of several passes, the rows of one share."""
    parts: list[pa.Table] = []
    for path, number in sources:
        with store.open_input(path) as stream:
            file = pq.ParquetFile(pa.PythonFile(stream, mode="r"))
            names = [name for name in schema.names if name in file.schema_arrow.names]
            offset = 0
            parts.append(_numbered(schema.empty_table(), number, 0))
            # Of a file without any of them, some column must say how many rows there are.
            for batch in file.iter_batches(columns=names or file.schema_arrow.names[-1:], use_threads=False):
                arrays = [
                    batch.column(field.name).cast(field.type)
                    if field.name in names
                    else pa.nulls(batch.num_rows, field.type)
                    for field in schema
                ]
                table = _numbered(pa.Table.from_arrays(arrays, schema=schema), number, offset)
                offset += batch.num_rows
                is_share = None if passes == 1 else _is_share(table, schema.names, share, passes)
                parts.append(table if is_share is None else table.filter(is_share))
    return pa.concat_tables(parts).combine_chunks()


def _known_keys(
    store: Store, present: Sequence[DataFile], wanted: pa.Table, schema: pa.Schema
) -> Iterator[pa.Table]:
    """The rows of the lake whose key is among the wanted ones: however many there are, no others are held."""
    if not present:
        return
    keys = wanted.select(schema.names).group_by(schema.names, use_threads=False).aggregate([])
    values = {name: pc.unique(keys[name].drop_null()) for name in schema.names}
    bounds = {name: _bounds(found) for name, found in values.items()}
    for data_file in present:
        with open_parquet(store, data_file.path) as file:
            if not set(schema.names) <= set(file.schema_arrow.names):
                continue  # a file that lacks a column of the key has no whole key
            groups = [n for n in range(file.num_row_groups) if _may_hold(file.metadata.row_group(n), bounds)]
            for batch in file.iter_batches(row_groups=groups, columns=schema.names, use_threads=False):
                table = pa.Table.from_batches([batch]).select(schema.names).cast(schema)
                # Most rows differ in some column of the key, which is cheaper to see than a whole key.
                for name in schema.names:
                    table = table.filter(pc.is_in(table[name], value_set=values[name]))
                if table.num_rows:
                    table = table.join(keys, keys=schema.names, join_type="left semi", use_threads=False)
                    yield _numbered(table.select(schema.names), -1, 0)


def _bounds(values: pa.Array) -> tuple[object, object] | None:
    """The least and the greatest of some values; None where there is no order, or nothing."""
    try:
        found = pc.min_max(values).as_py()
    except pa.ArrowNotImplementedError:
        return None
    return None if found["min"] is None else (found["min"], found["max"])


def _may_hold(group: Any, bounds: Mapping[str, tuple[object, object] | None]) -> bool:
    """False if a row group's own statistics say that it holds none of the values."""
    for number in range(group.num_columns):
        column = group.column(number)
        wanted = bounds.get(column.path_in_schema)
        found = column.statistics
        if wanted is None or found is None or not found.has_min_max:
            continue
        try:
            if found.max < wanted[0] or found.min > wanted[1]:
                return False
        except TypeError:
            continue  # the statistics are of another type than the values
    return True


def _numbered(table: pa.Table, number: int, offset: int) -> pa.Table:
    length = table.num_rows
    rows = pc.add(pc.cumulative_sum(pa.repeat(_ONE, length)), pa.scalar(offset - 1, pa.int64()))
    return table.append_column(_FILE, pa.repeat(pa.scalar(number, pa.int64()), length)).append_column(
        _ROW, rows
    )


def _is_share(table: pa.Table, key: Sequence[str], share: int, passes: int) -> pa.ChunkedArray:
    """Which rows belong to one share: equal keys always belong to the same."""
    whole = [name for name in key if pa.types.is_integer(table.schema.field(name).type)]
    if whole:
        value = table[whole[0]].cast(pa.int64())
        divisor = pa.scalar(passes, pa.int64())
        rest = pc.subtract(value, pc.multiply(pc.divide(value, divisor), divisor))
        return pc.fill_null(pc.equal(pc.abs(rest), pa.scalar(share, pa.int64())), share == 0)
    text = pc.utf8_slice_codeunits(table[key[-1]].cast(pa.string()), -3)
    ends = pc.unique(text)
    mine = [end for end in ends.to_pylist() if crc32((end or "").encode()) % passes == share]
    return pc.is_in(text, value_set=pa.array(mine, pa.string()))


def _all_valid(table: pa.Table, key: Sequence[str]) -> pa.ChunkedArray:
    valid = pc.is_valid(table[key[0]])
    for name in key[1:]:
        valid = pc.and_(valid, pc.is_valid(table[name]))
    return valid


class _Found:
    """What doubled keys come to, share by share: rows to drop, and keys that differing rows share."""

    def __init__(
        self, store: Store, run_id: str, staged: Sequence[Staged], key: Sequence[str], mutable: Sequence[str]
    ) -> None:
        self.dropped: dict[int, list[pa.Array]] = {}
        """By staged file the numbers of the rows that go."""
        self.repeated = 0
        self.known = 0
        self.known_keys = 0
        self.conflicts: list[str] = []
        self.conflicting_keys = 0
        self._store = store
        self._run_id = run_id
        self._staged = staged
        self._key = list(key)
        self._mutable = mutable

    def settle(self, doubled: pa.Table) -> None:
        """Take the rows of one share whose key stands more than once."""
        if doubled.num_rows == 0:
            return
        later = _later_rows(doubled, self._key)
        is_known = pc.less(later[_FIRST_FILE], _ZERO)
        # What stands in the lake stays, whatever came now.
        known = later.filter(is_known)
        self.known += known.num_rows
        self.known_keys += known.group_by(self._key).aggregate([]).num_rows
        self._drop(known)
        again = later.filter(pc.invert(is_known))
        conflicting: list[pa.Table] = []
        for start in range(0, again.num_rows, _ROWS_COMPARED):
            part = again.slice(start, _ROWS_COMPARED)
            is_equal = pa.array(self._are_equal(part), pa.bool_())
            self._drop(part.filter(is_equal))
            self.repeated += is_equal.true_count
            conflicting.append(part.filter(pc.invert(is_equal)).select(self._key))
        if conflicting:
            self._note_conflicts(pa.concat_tables(conflicting))

    def _note_conflicts(self, rows: pa.Table) -> None:
        keys = rows.group_by(self._key, use_threads=False).aggregate([])
        self.conflicting_keys += keys.num_rows
        for row in keys.slice(0, max(0, _CONFLICTS_TOLD - len(self.conflicts))).to_pylist():
            self.conflicts.append(", ".join(f"{name}={row[name]}" for name in self._key))

    def _drop(self, rows: pa.Table) -> None:
        for number in pc.unique(rows[_FILE]).to_pylist():
            mine = rows.filter(pc.equal(rows[_FILE], pa.scalar(number, pa.int64())))
            self.dropped.setdefault(number, []).append(mine[_ROW].combine_chunks())

    def _are_equal(self, rows: pa.Table) -> list[bool]:
        """Whether each row holds the values of the first row of its key."""
        columns = [rows[name].to_pylist() for name in (_FILE, _ROW, _FIRST_FILE, _FIRST_ROW)]
        pairs = [((file, row), (first, number)) for file, row, first, number in zip(*columns, strict=True)]
        wanted: dict[int, set[int]] = {}
        for pair in pairs:
            for file, row in pair:
                wanted.setdefault(file, set()).add(row)
        contents = _contents(self._store, self._run_id, self._staged, wanted, self._mutable)
        return [contents[row] == contents[first] for row, first in pairs]


def _later_rows(doubled: pa.Table, key: Sequence[str]) -> pa.Table:
    """The staged rows that are not the first of their key, in order, each with the place of that first one."""
    ordered = doubled.sort_by([(_FILE, "ascending"), (_ROW, "ascending")])
    first = ordered.group_by(list(key), use_threads=False).aggregate([(_FILE, "first"), (_ROW, "first")])
    first = first.rename_columns([*key, _FIRST_FILE, _FIRST_ROW])
    both = ordered.join(first, keys=list(key), join_type="inner", use_threads=False)
    is_first = pc.and_(pc.equal(both[_FILE], both[_FIRST_FILE]), pc.equal(both[_ROW], both[_FIRST_ROW]))
    later = both.filter(pc.and_(pc.greater_equal(both[_FILE], _ZERO), pc.invert(is_first)))
    return later.sort_by([(_FILE, "ascending"), (_ROW, "ascending")])


def _contents(
    store: Store,
    run_id: str,
    staged: Sequence[Staged],
    wanted: Mapping[int, set[int]],
    mutable: Sequence[str],
) -> dict[tuple[int, int], bytes]:
    """A digest of the values of the rows concerned, by file and row; the run's own columns left out."""
    left_out = {*META_COLUMNS, *mutable}
    found: dict[tuple[int, int], bytes] = {}
    for number, rows in wanted.items():
        for offset, group in _row_groups(store, run_id, staged[number], rows):
            here = sorted(row - offset for row in rows if offset <= row < offset + group.num_rows)
            names = [name for name in group.schema.names if name not in left_out]
            taken = group.select(names).take(pa.array(here, pa.int64())).to_pylist()
            for index, row in zip(here, taken, strict=True):
                found[(number, offset + index)] = blake2b(row_bytes(plain_row(row)), digest_size=16).digest()
    return found


def plain_row(row: dict[str, object]) -> dict[str, object]:
    """A row as Arrow gives it, with the pairs of its maps in one order: theirs means nothing."""
    return {name: sorted(value, key=repr) if _is_pairs(value) else value for name, value in row.items()}


def _is_pairs(value: object) -> TypeGuard[list[tuple[object, object]]]:
    return isinstance(value, list) and bool(value) and all(isinstance(item, tuple) for item in value)


def _without(store: Store, run_id: str, item: Staged, dropped: pa.Array, compression: str) -> Staged | None:
    kept: list[pa.Table] = []
    for offset, group in _row_groups(store, run_id, item):
        numbers = pc.add(
            pc.cumulative_sum(pa.repeat(_ONE, group.num_rows)), pa.scalar(offset - 1, pa.int64())
        )
        is_gone = pc.is_in(numbers, value_set=dropped)
        kept.append(group if not is_gone.true_count else group.filter(pc.invert(is_gone)))
    return rewrite(store, run_id, item, kept, compression=compression)


def _row_groups(
    store: Store, run_id: str, item: Staged, wanted: set[int] | None = None
) -> Iterator[tuple[int, pa.Table]]:
    """Where each row group of a file begins, and its rows; only those with a wanted row, if any are named."""
    with store.open_input(staged_path(run_id, item.file.path)) as stream:
        file = pq.ParquetFile(pa.PythonFile(stream, mode="r"))
        offset = 0
        for number in range(file.num_row_groups):
            rows = file.metadata.row_group(number).num_rows
            if wanted is None or any(offset <= row < offset + rows for row in wanted):
                yield offset, file.read_row_group(number, use_threads=False)
            offset += rows
