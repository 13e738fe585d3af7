"""Landed tables turned back into the rows that the API gave, in normal form, so that any judge can compare them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from decimal import Decimal

import pyarrow as pa

from extractor.digest import format_time, normalise
from extractor.schema import JSON_TEXT, NANOS, RESCUED

__all__ = ("canonical", "json_value")

_VERSION = "__v"


def canonical(table: pa.Table) -> Iterator[dict[str, object]]:
    """The rows of a landed table in the normal form of the content digest (`extractor.digest`).

    Rescued values are put back under their keys, `name__v2` under `name`, `name_nanos` into `name`; the
    extractor's own columns, which begin with `_`, are left out, and so are nulls at every depth.
    """
    readers = {field.name: _Reader(field.type, field.metadata) for field in table.schema}
    names = [name for name in table.schema.names if not name.startswith("_")]
    for batch in table.to_batches(max_chunksize=4096):
        for row in batch.to_pylist():
            yield _restore({name: readers[name](row[name]) for name in names}, row.get(RESCUED), table.schema)


def _restore(row: dict[str, object], rescued: object, schema: pa.Schema) -> dict[str, object]:
    for name in [name for name in row if name.endswith(NANOS)]:
        time = name.removesuffix(NANOS)
        if time in row and pa.types.is_timestamp(schema.field(time).type):
            row[time] = _with_nanos(row[time], row.pop(name))
    restored: dict[str, object] = {}
    for name, value in row.items():
        base, _, number = name.rpartition(_VERSION)
        target = base if base in row and number.isdigit() else name
        if value is not None or target not in restored:
            restored[target] = value
    left = _read_json(rescued) if isinstance(rescued, str) else {}
    whole = _merge(restored, left)
    assert isinstance(whole, dict)
    normal = normalise(whole)
    assert isinstance(normal, dict)
    return normal


def _with_nanos(time: object, nanos: object) -> object:
    if not isinstance(nanos, int) or not isinstance(time, str):
        return time
    head, _, fraction = time.removesuffix("Z").partition(".")
    return f"{head}.{fraction.ljust(6, '0')}{nanos:03d}".rstrip("0").rstrip(".") + "Z"


def _read_json(text: str) -> object:
    """The value with every digit of its numbers."""
    return json.loads(text, parse_float=_exact_number)


def _exact_number(text: str) -> float | Decimal:
    nearest = float(text)
    return nearest if Decimal(repr(nearest)) == Decimal(text) else Decimal(text)


def _merge(base: object, left: object) -> object:
    """What was rescued over what landed: objects key by key, anything else whole."""
    if isinstance(base, dict) and isinstance(left, dict):
        merged = dict(base)
        for key, value in left.items():
            merged[key] = _merge(merged.get(key), value)
        return merged
    return left


def json_value(value: object) -> object:
    """A value of a normal row for `json.dumps`: what a double would round is the text of its digits."""
    match value:
        case Decimal():
            return format(value, "f")
        case dict():
            return {key: json_value(item) for key, item in value.items()}
        case list():
            return [json_value(item) for item in value]
        case _:
            return value


class _Reader:
    """Turns a value that Arrow gave into a JSON value."""

    def __init__(self, column_type: pa.DataType, metadata: Mapping[bytes, bytes] | None) -> None:
        self._type = column_type
        self._is_json = metadata is not None and JSON_TEXT.items() <= metadata.items()
        self._inner: dict[str, _Reader] = {}
        if pa.types.is_list(column_type):
            self._inner["item"] = _Reader(column_type.value_type, column_type.value_field.metadata)
        elif pa.types.is_map(column_type):
            self._inner["item"] = _Reader(column_type.item_type, column_type.item_field.metadata)
        elif pa.types.is_struct(column_type):
            self._inner = {field.name: _Reader(field.type, field.metadata) for field in column_type}

    def __call__(self, value: object) -> object:
        match value:
            case None:
                return None
            case str() if self._is_json:
                return _read_json(value)
            case datetime():
                return format_time(value)
            case list() if pa.types.is_map(self._type):
                return {key: self._inner["item"](item) for key, item in value}
            case list():
                return [self._inner["item"](item) for item in value]
            case dict():
                return {name: self._inner[name](item) for name, item in value.items()}
            case _:
                return value
