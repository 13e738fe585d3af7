"""What differs between two readings of a table: rows added, removed and changed, by key.

Arrow compares what it can, column by column: rows that hold the same values in the same columns are the same. Only
the few rows that are left are put into normal form (`extractor.normal`), in which a rescued value, a corrected type
and the order of a map make no difference, and compared one by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import pyarrow as pa
import pyarrow.compute as pc

from extractor.digest import row_bytes
from extractor.normal import canonical
from extractor.schema import NANOS, RESCUED

__all__ = ("Difference", "align", "changed_columns", "compare", "union_schema")

_LEFT, _RIGHT = "_left", "_right"
_ONE = pa.scalar(1, pa.int64())

# Rows that are compared, or put into normal form, at a time.
_SLICE = 65_536
_ROWS_AT_ONCE = 4_096


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Row numbers: of the earlier table those removed, of the later one those added, and pairs of both that share a
    key and differ. All in the order of the rows.
    """

    removed: tuple[int, ...] = ()
    added: tuple[int, ...] = ()
    changed: tuple[tuple[int, int], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.removed or self.added or self.changed)


def compare(before: pa.Table, after: pa.Table, key: Sequence[str]) -> Difference:
    """The difference between two tables of landed rows.

    `key` names columns as the answers do. Rows without a whole key, and all rows where there is no key, are either
    the same or not. Where several rows share a key, equal ones are the same, and the others change in their order.
    """
    if not before.num_rows or not after.num_rows:
        return Difference(removed=tuple(range(before.num_rows)), added=tuple(range(after.num_rows)))
    pairs = _pairs_by_key(before, after, key) if _is_plain(before, after, key) else None
    if pairs is None:
        return _without_pairs(before, after, key)
    same = _equal_pairs(before, after, pairs.left, pairs.right)
    changed = list(
        _changed(before, after, pairs.left.filter(pc.invert(same)), pairs.right.filter(pc.invert(same)))
    )
    rest = _settle(before, after, pairs.open_left, pairs.open_right, key)
    return Difference(
        removed=tuple(sorted((*pairs.lone_left.to_pylist(), *rest.removed))),
        added=tuple(sorted((*pairs.lone_right.to_pylist(), *rest.added))),
        changed=tuple(sorted((*changed, *rest.changed), key=lambda pair: pair[1])),
    )


def changed_columns(
    before: Mapping[str, object], after: Mapping[str, object]
) -> dict[str, tuple[object, object]]:
    """Of two rows in normal form what differs: by column, the old value and the new one (None: there is none)."""
    names = dict.fromkeys((*before, *after))
    return {
        name: (before.get(name), after.get(name))
        for name in names
        if row_bytes({"": before.get(name)}) != row_bytes({"": after.get(name)})
    }


def union_schema(schemas: Iterable[pa.Schema]) -> pa.Schema:
    """The columns of all of them, those of the first one first."""
    fields: dict[str, pa.Field] = {}
    for schema in schemas:
        for column in schema:
            fields.setdefault(column.name, column)
    return pa.schema([column.with_nullable(True) for column in fields.values()])


def align(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with the columns of `schema`: those that it does not have are null."""
    columns = [
        table.column(column.name).cast(column.type)
        if column.name in table.schema.names
        else pa.nulls(table.num_rows, column.type)
        for column in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


# --- rows with a key ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pairs:
    """Row numbers: pairs whose key only they have, rows whose key the other table lacks, and rows of which this
    does not tell.
    """

    left: pa.Array
    right: pa.Array
    lone_left: pa.Array
    lone_right: pa.Array
    open_left: pa.Array
    open_right: pa.Array


def _is_plain(before: pa.Table, after: pa.Table, key: Sequence[str]) -> bool:
    """True if equal keys are equal values of the key's columns, and nothing else."""
    if not key:
        return False
    for name in key:
        for table in (before, after):
            names = table.schema.names
            if name not in names or pa.types.is_nested(table.schema.field(name).type):
                return False
            if f"{name}{NANOS}" in names or any(other.startswith(f"{name}__v") for other in names):
                return False
        if before.schema.field(name).type != after.schema.field(name).type:
            return False
    return True


def _pairs_by_key(before: pa.Table, after: pa.Table, key: Sequence[str]) -> _Pairs:
    left, left_open = _keyed(before, key, _LEFT)
    right, right_open = _keyed(after, key, _RIGHT)
    joined = left.join(right, keys=list(key), join_type="inner").select([_LEFT, _RIGHT])
    met_left, met_right = joined[_LEFT], joined[_RIGHT]
    is_single = pc.and_(_is_once(met_left), _is_once(met_right))
    single = joined.filter(is_single).sort_by(_LEFT)
    often = joined.filter(pc.invert(is_single))
    return _Pairs(
        left=_numbers(single[_LEFT]),
        right=_numbers(single[_RIGHT]),
        lone_left=_numbers(left[_LEFT].filter(pc.invert(pc.is_in(left[_LEFT], value_set=met_left)))),
        lone_right=_numbers(right[_RIGHT].filter(pc.invert(pc.is_in(right[_RIGHT], value_set=met_right)))),
        open_left=pa.concat_arrays([left_open, pc.unique(often[_LEFT])]),
        open_right=pa.concat_arrays([right_open, pc.unique(often[_RIGHT])]),
    )


def _keyed(table: pa.Table, key: Sequence[str], numbers: str) -> tuple[pa.Table, pa.Array]:
    """The whole keys with their row numbers, and the numbers of the rows without a whole one."""
    keys = table.select(list(key)).append_column(numbers, _range(table.num_rows))
    is_whole = pc.is_valid(keys[key[0]])
    for name in key[1:]:
        is_whole = pc.and_(is_whole, pc.is_valid(keys[name]))
    if pc.all(is_whole).as_py():
        return keys, pa.array([], pa.int64())
    return keys.filter(is_whole), _numbers(keys[numbers].filter(pc.invert(is_whole)))


def _is_once(numbers: pa.ChunkedArray) -> pa.ChunkedArray:
    """Which numbers occur once only."""
    counted = pa.table({"number": numbers}).group_by("number").aggregate([("number", "count")])
    often = counted.filter(pc.greater(counted["number_count"], _ONE))["number"]
    return pc.invert(pc.is_in(numbers, value_set=often))


def _equal_pairs(before: pa.Table, after: pa.Table, left: pa.Array, right: pa.Array) -> pa.Array:
    """Which pairs of rows hold the same values in the same columns."""
    parts = []
    for start in range(0, len(left), _SLICE):
        one = _taken(before, left.slice(start, _SLICE))
        other = _taken(after, right.slice(start, _SLICE))
        differs = pa.repeat(pa.scalar(False), one.num_rows)
        for name in dict.fromkeys((*_compared(before.schema), *_compared(after.schema))):
            differs = pc.or_(differs, _column_differs(one, other, name))
        parts.append(pc.invert(differs))
    return pa.concat_arrays(parts) if parts else pa.array([], pa.bool_())


def _taken(table: pa.Table, rows: pa.Array) -> pa.Table:
    first, last = rows[0].as_py(), rows[-1].as_py()
    if last - first == len(rows) - 1 and rows.equals(_range(len(rows), first)):
        return table.slice(first, len(rows))
    return table.take(rows)


def _compared(schema: pa.Schema) -> list[str]:
    return [name for name in schema.names if name == RESCUED or not name.startswith("_")]


def _column_differs(one: pa.Table, other: pa.Table, name: str) -> pa.Array:
    present = [_whole(table.column(name)) for table in (one, other) if name in table.schema.names]
    if len(present) == 1:
        return present[0].is_valid()
    left, right = present
    if left.type != right.type:
        return pc.or_(left.is_valid(), right.is_valid())
    return _differs(left, right)


def _differs(one: pa.Array, other: pa.Array) -> pa.Array:
    """Which values differ; NaN is NaN, and the order of a map's pairs is taken to matter."""
    kind = one.type
    if pa.types.is_map(kind):
        pairs = pa.list_(pa.struct([pa.field("key", kind.key_type), pa.field("value", kind.item_type)]))
        return _differs(one.cast(pairs), other.cast(pairs))
    valid, other_valid = one.is_valid(), other.is_valid()
    differs = pc.not_equal(valid, other_valid)
    both = pc.and_(valid, other_valid)
    if pa.types.is_struct(kind):
        for left, right in zip(one.flatten(), other.flatten(), strict=True):
            differs = pc.or_(differs, pc.and_(both, _differs(left, right)))
        return differs
    if pa.types.is_list(kind):
        return pc.or_(differs, _lists_differ(one, other, both))
    if pa.types.is_null(kind):
        return differs
    unequal = pc.fill_null(pc.not_equal(one, other), False)
    if pa.types.is_floating(kind):
        are_nan = pc.fill_null(pc.and_(pc.is_nan(one), pc.is_nan(other)), False)
        unequal = pc.and_(unequal, pc.invert(are_nan))
    return pc.or_(differs, unequal)


def _lists_differ(one: pa.Array, other: pa.Array, both: pa.Array) -> pa.Array:
    is_longer = pc.fill_null(pc.not_equal(pc.list_value_length(one), pc.list_value_length(other)), False)
    is_open = pc.and_(both, pc.invert(is_longer))
    left, right = one.filter(is_open), other.filter(is_open)
    unequal = _differs(left.flatten(), right.flatten())
    lists = pc.unique(pc.list_parent_indices(left).filter(unequal)).cast(pa.int64())
    rows = _range(len(one))
    return pc.or_(is_longer, pc.is_in(rows, value_set=rows.filter(is_open).take(lists)))


def _changed(before: pa.Table, after: pa.Table, left: pa.Array, right: pa.Array) -> Iterator[tuple[int, int]]:
    """Of pairs that share a key those whose rows differ in normal form."""
    for start in range(0, len(left), _ROWS_AT_ONCE):
        here, there = left.slice(start, _ROWS_AT_ONCE), right.slice(start, _ROWS_AT_ONCE)
        rows = zip(canonical(before.take(here)), canonical(after.take(there)), strict=True)
        for number, other, (row, changed) in zip(here.to_pylist(), there.to_pylist(), rows, strict=True):
            if row_bytes(row) != row_bytes(changed):
                yield number, other


# --- rows one by one ----------------------------------------------------------------------------------------


def _without_pairs(before: pa.Table, after: pa.Table, key: Sequence[str]) -> Difference:
    """Rows that stand at the same place and are equal cancel out; the others are settled one by one."""
    length = min(before.num_rows, after.num_rows)
    places = _range(length)
    rest = places.filter(pc.invert(_equal_pairs(before, after, places, places)))
    left = pa.concat_arrays([rest, _range(before.num_rows - length, length)])
    right = pa.concat_arrays([rest, _range(after.num_rows - length, length)])
    return _settle(before, after, left, right, key)


def _settle(
    before: pa.Table, after: pa.Table, left: pa.Array, right: pa.Array, key: Sequence[str]
) -> Difference:
    """The difference between some rows of both tables, told by their normal form."""
    if not len(left) or not len(right):
        return Difference(removed=tuple(left.to_pylist()), added=tuple(right.to_pylist()))
    earlier, later = _by_key(before, left, key), _by_key(after, right, key)
    removed: list[int] = []
    added: list[int] = []
    changed: list[tuple[int, int]] = []
    for identity in dict.fromkeys((*earlier, *later)):
        gone, come = _without_equal(earlier.get(identity, []), later.get(identity, []))
        if identity:
            pairs = list(zip(gone, come, strict=False))
            changed += pairs
            gone, come = gone[len(pairs) :], come[len(pairs) :]
        removed += gone
        added += come
    return Difference(
        removed=tuple(sorted(removed)),
        added=tuple(sorted(added)),
        changed=tuple(sorted(changed, key=lambda pair: pair[1])),
    )


def _by_key(table: pa.Table, rows: pa.Array, key: Sequence[str]) -> dict[bytes, list[tuple[bytes, int]]]:
    """Digests and numbers of rows by their key; empty is the key of rows without a whole one."""
    found: dict[bytes, list[tuple[bytes, int]]] = {}
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        numbers = rows.slice(start, _ROWS_AT_ONCE)
        for number, row in zip(numbers.to_pylist(), canonical(table.take(numbers)), strict=True):
            is_whole = bool(key) and all(name in row for name in key)
            identity = _digest({name: row[name] for name in key}) if is_whole else b""
            found.setdefault(identity, []).append((_digest(row), number))
    return found


def _without_equal(
    earlier: Sequence[tuple[bytes, int]], later: Sequence[tuple[bytes, int]]
) -> tuple[list[int], list[int]]:
    """The numbers of the rows that the other side does not have as often."""
    present: dict[bytes, list[int]] = {}
    for digest, number in earlier:
        present.setdefault(digest, []).append(number)
    come: list[int] = []
    for digest, number in later:
        if present.get(digest):
            present[digest].pop()
        else:
            come.append(number)
    return sorted(number for numbers in present.values() for number in numbers), come


def _digest(row: Mapping[str, object]) -> bytes:
    return blake2b(row_bytes(row), digest_size=16).digest()


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _numbers(column: pa.ChunkedArray) -> pa.Array:
    return _whole(column).cast(pa.int64())


def _range(length: int, first: int = 0) -> pa.Array:
    """The numbers from `first` on."""
    if not length:
        return pa.array([], pa.int64())
    return pc.cumulative_sum(pa.concat_arrays([pa.array([first], pa.int64()), pa.repeat(_ONE, length - 1)]))
