"""A number for the rows of Arrow tables, whatever their order: to see that rewriting files lost and made nothing.

Columns are hashed as columns, so that it costs some dozen nanoseconds a value. It finds faults; it does not sign.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import reduce

import pyarrow as pa
import pyarrow.compute as pc

__all__ = ("RowSum", "sum_rows")

_U64 = pa.uint64()
_SEEDS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F)
_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSum:
    """How many rows, and a sum over the hashes of their values; sums of parts add up to that of the whole."""

    rows: int = 0
    total: tuple[int, int] = (0, 0)

    def __add__(self, other: RowSum) -> RowSum:
        one, two = ((mine + theirs) & _MASK for mine, theirs in zip(self.total, other.total, strict=True))
        return RowSum(rows=self.rows + other.rows, total=(one, two))


def sum_rows(table: pa.Table | pa.RecordBatch) -> RowSum:
    """The number of these rows: free of the order of rows and columns, and of columns that are null throughout."""
    if not table.num_rows:
        return RowSum()
    totals: list[int] = []
    for seed in _SEEDS:
        row = pa.repeat(pa.scalar(seed, _U64), table.num_rows)
        for name in table.schema.names:
            column = table[name]
            if column.null_count < len(column):
                array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
                row = pc.add(row, _mixed(_hashes(array, seed), _text_hash(name, seed), nulls_are=0))
        totals.append(pc.sum(_mixed(row, seed)).as_py())
    return RowSum(rows=table.num_rows, total=(totals[0], totals[1]))


def _hashes(values: pa.Array, seed: int) -> pa.Array:
    """A hash for each value; null for nulls."""
    type_ = values.type
    if pa.types.is_dictionary(type_):
        return _hashes(values.dictionary, seed).take(values.indices)
    if pa.types.is_struct(type_):
        return _struct_hashes(values, seed)
    if pa.types.is_map(type_) or pa.types.is_list(type_) or pa.types.is_large_list(type_):
        return _list_hashes(values, seed)
    if pa.types.is_floating(type_):
        return _normal_floats(values.cast(pa.float64())).view(_U64)
    if pa.types.is_boolean(type_) or pa.types.is_integer(type_):
        return values.cast(pa.int64()).view(_U64)
    if pa.types.is_timestamp(type_) or pa.types.is_time64(type_) or pa.types.is_date64(type_):
        return values.view(pa.int64()).view(_U64)
    if pa.types.is_date32(type_) or pa.types.is_time32(type_):
        return values.view(pa.int32()).cast(pa.int64()).view(_U64)
    found = values.dictionary_encode()
    hashes = pa.array([_text_hash(value, seed) for value in found.dictionary.to_pylist()], _U64)
    return hashes.take(found.indices)


def _normal_floats(values: pa.Array) -> pa.Array:
    """All NaN alike."""
    return pc.if_else(pc.is_nan(values), pa.scalar(float("nan")), values)


def _struct_hashes(values: pa.Array, seed: int) -> pa.Array:
    fields = [
        _mixed(_hashes(part, seed), _text_hash(values.type.field(number).name, seed), nulls_are=0)
        for number, part in enumerate(values.flatten())
    ]
    start = pa.repeat(pa.scalar(1, _U64), len(values))
    return pc.if_else(values.is_valid(), reduce(pc.add, fields, start), pa.scalar(None, _U64))


def _list_hashes(values: pa.Array, seed: int) -> pa.Array:
    """Of lists by position, of maps whatever the order of their pairs."""
    is_map = pa.types.is_map(values.type)
    if is_map:
        pairs = pa.struct([("key", values.type.key_type), ("value", values.type.item_type)])
        values = values.cast(pa.list_(pairs))
    lengths = pc.fill_null(pc.list_value_length(values), 0).cast(pa.int64())
    items = pc.list_flatten(values)
    ends = pc.cumulative_sum(lengths)
    starts = pc.subtract(ends, lengths)
    hashes = _mixed(_hashes(items, seed), seed, nulls_are=0)
    if not is_map:
        parents = pc.list_parent_indices(values)
        places = pc.subtract(
            pc.cumulative_sum(pa.repeat(pa.scalar(1, pa.int64()), len(items))), starts.take(parents)
        )
        hashes = _mixed(pc.add(hashes, places.cast(_U64)), seed)
    sums = (
        pa.concat_arrays([pa.array([0], _U64), pc.cumulative_sum(hashes)])
        if len(items)
        else pa.array([0], _U64)
    )
    found = pc.add(pc.subtract(sums.take(ends), sums.take(starts)), pc.add(lengths, 1).cast(_U64))
    return pc.if_else(values.is_valid(), found, pa.scalar(None, _U64))


def _mixed(hashes: pa.Array, seed: int, *, nulls_are: int | None = None) -> pa.Array:
    """The hashes stirred, so that sums of them tell values and columns apart."""
    stirred = pc.add(hashes, pa.scalar(seed, _U64))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        stirred = pc.bit_wise_xor(stirred, pc.shift_right(stirred, pa.scalar(shift, _U64)))
        stirred = pc.multiply(stirred, pa.scalar(factor, _U64))
    stirred = pc.bit_wise_xor(stirred, pc.shift_right(stirred, pa.scalar(31, _U64)))
    return stirred if nulls_are is None else pc.fill_null(stirred, pa.scalar(nulls_are, _U64))


def _text_hash(value: object, seed: int) -> int:
    content = value if isinstance(value, bytes) else repr(value).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8, key=seed.to_bytes(8)).digest())
