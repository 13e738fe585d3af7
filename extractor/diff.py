"""What two states of one table differ in, row by row: for people, as JSON values, and as Arrow.

Only rows that may differ are looked at: what both states hold in the same files is not read. Where one of them has
no such rows, the others are passed on as they are read; else both are compared in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc

from extractor.compare import align, changed_columns, compare, union_schema
from extractor.normal import canonical, json_value
from extractor.schema import META_COLUMNS

__all__ = ("Chunk", "Part", "RowChange", "Rows", "TableDiff", "change_schema", "chunks", "to_changes")

_ROWS_AT_ONCE = 4_096
OPERATIONS = ("added", "removed", "changed")


class Rows(Protocol):
    """Landed rows that can be read more than once."""

    @property
    def schema(self) -> pa.Schema: ...

    def to_batches(self) -> Iterator[pa.RecordBatch]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One account of a table: what of the one state may not be in the other."""

    account: str
    before: Rows | None
    after: Rows | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Some rows of one operation; of `changed` the two tables stand row by row."""

    operation: str
    before: pa.Table | None
    after: pa.Table | None

    @property
    def rows(self) -> int:
        present = self.after if self.after is not None else self.before
        return 0 if present is None else int(present.num_rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowChange:
    """One row that differs, in the normal form of the content digest: no nulls, times as text."""

    operation: str
    """`added`, `removed` or `changed`."""
    account: str
    key: dict[str, object]
    before: dict[str, object] | None
    after: dict[str, object] | None
    columns: dict[str, tuple[object, object]]
    """Of a changed row: the old and the new value by column, None where there is none."""

    def to_json(self) -> dict[str, object]:
        if self.operation != "changed":
            return _json_object(self.after if self.after is not None else self.before or {})
        columns = {
            name: {"before": json_value(old), "after": json_value(new)}
            for name, (old, new) in self.columns.items()
        }
        return {"key": _json_object(self.key), "columns": columns}


class TableDiff:
    """The difference of one table between two runs, by its key; without a key, by whole rows.

    It is worked out anew by each call, so that nothing is held in between.
    """

    def __init__(self, name: str, key: tuple[str, ...], parts: Sequence[Part]) -> None:
        self.name = name
        self.key = key
        self._parts = tuple(parts)

    @property
    def schema(self) -> pa.Schema:
        """`operation`, `key`, the names of the changed `columns`, the row `before` and `after`, `_account`."""
        return change_schema(self._columns, self.key)

    def rows(self) -> Iterator[RowChange]:
        """Every row that differs, account by account."""
        for part in self._parts:
            for chunk in chunks(part.before, part.after, self.key):
                yield from _row_changes(chunk, part.account, self.key)

    def counts(self) -> dict[str, int]:
        """How many rows were `added`, `removed` and `changed`."""
        counted = dict.fromkeys(OPERATIONS, 0)
        for part in self._parts:
            for chunk in chunks(part.before, part.after, self.key):
                counted[chunk.operation] += chunk.rows
        return counted

    def to_batches(self) -> Iterator[pa.RecordBatch]:
        """Every row that differs, with `schema`."""
        columns = self._columns
        for part in self._parts:
            for chunk in chunks(part.before, part.after, self.key):
                yield from to_changes(chunk, columns, self.key, part.account).to_batches()

    def to_arrow(self) -> pa.Table:
        return pa.Table.from_batches(list(self.to_batches()), schema=self.schema)

    def to_json(self) -> dict[str, object]:
        """`name`, `key`, the rows `added` and `removed`, and of those `changed` key and columns; all in memory."""
        found: dict[str, list[dict[str, object]]] = {operation: [] for operation in OPERATIONS}
        for row in self.rows():
            found[row.operation].append(row.to_json())
        return {"name": self.name, "key": list(self.key), **found}

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        reader = pa.RecordBatchReader.from_batches(self.schema, self.to_batches())
        return reader.__arrow_c_stream__(requested_schema)

    @property
    def _columns(self) -> pa.Schema:
        sides = [side for part in self._parts for side in (part.after, part.before) if side is not None]
        return union_schema(side.schema for side in sides)


def chunks(before: Rows | None, after: Rows | None, key: Sequence[str]) -> Iterator[Chunk]:
    """What differs between some rows and others, a few thousand rows at a time."""
    if before is None and after is None:
        return
    if before is None or after is None:
        rows = after if before is None else before
        assert rows is not None
        for batch in rows.to_batches():
            table = pa.Table.from_batches([batch])
            if before is None:
                yield Chunk(operation="added", before=None, after=table)
            else:
                yield Chunk(operation="removed", before=table, after=None)
        return
    schema = union_schema((after.schema, before.schema))
    earlier, later = _read(before, schema), _read(after, schema)
    found = compare(earlier, later, key)
    for start in range(0, len(found.removed), _ROWS_AT_ONCE):
        rows = _take(earlier, found.removed[start : start + _ROWS_AT_ONCE])
        yield Chunk(operation="removed", before=rows, after=None)
    for start in range(0, len(found.added), _ROWS_AT_ONCE):
        rows = _take(later, found.added[start : start + _ROWS_AT_ONCE])
        yield Chunk(operation="added", before=None, after=rows)
    for start in range(0, len(found.changed), _ROWS_AT_ONCE):
        pairs = found.changed[start : start + _ROWS_AT_ONCE]
        yield Chunk(
            operation="changed",
            before=_take(earlier, [left for left, _ in pairs]),
            after=_take(later, [right for _, right in pairs]),
        )


def change_schema(columns: pa.Schema, key: Sequence[str], *, more: Sequence[pa.Field] = ()) -> pa.Schema:
    """The columns of a table of changes; `columns` are those of the table's own files."""
    row = pa.struct([column for column in columns if column.name not in META_COLUMNS])
    return pa.schema(
        [
            pa.field("operation", pa.string()),
            pa.field("key", _key_type(columns, key)),
            pa.field("columns", pa.list_(pa.string())),
            pa.field("before", row),
            pa.field("after", row),
            pa.field("_account", pa.string()),
            *more,
        ]
    )


def to_changes(
    chunk: Chunk,
    columns: pa.Schema,
    key: Sequence[str],
    account: str,
    *,
    operation: str = "",
    more: Sequence[tuple[pa.Field, object]] = (),
) -> pa.Table:
    """The chunk with the columns of `change_schema`; `more` are columns that hold one value each."""
    present = chunk.after if chunk.after is not None else chunk.before
    assert present is not None
    length = present.num_rows
    named: list[list[str] | None] = [None] * length
    if chunk.before is not None and chunk.after is not None:
        pairs = zip(canonical(chunk.before), canonical(chunk.after), strict=True)
        named = [list(changed_columns(before, after)) for before, after in pairs]
    schema = change_schema(columns, key, more=[column for column, _ in more])
    arrays = [
        pa.repeat(pa.scalar(operation or chunk.operation), length),
        _key_array(align(present, columns), schema.field("key").type, key),
        pa.array(named, pa.list_(pa.string())),
        _row_array(chunk.before, columns, schema.field("before").type, length),
        _row_array(chunk.after, columns, schema.field("after").type, length),
        pa.repeat(pa.scalar(account), length),
        *(pa.repeat(pa.scalar(value, column.type), length) for column, value in more),
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def _row_changes(chunk: Chunk, account: str, key: Sequence[str]) -> Iterator[RowChange]:
    before = canonical(chunk.before) if chunk.before is not None else None
    after = canonical(chunk.after) if chunk.after is not None else None
    for _ in range(chunk.rows):
        old = next(before) if before is not None else None
        new = next(after) if after is not None else None
        shown = new if new is not None else old or {}
        yield RowChange(
            operation=chunk.operation,
            account=account,
            key={name: shown[name] for name in key if name in shown},
            before=old,
            after=new,
            columns=changed_columns(old, new) if old is not None and new is not None else {},
        )


def _read(rows: Rows, schema: pa.Schema) -> pa.Table:
    return align(pa.Table.from_batches(list(rows.to_batches()), schema=rows.schema), schema)


def _take(table: pa.Table, rows: Sequence[int]) -> pa.Table:
    return table.take(pa.array(rows, pa.int64()))


def _versions(columns: pa.Schema, name: str) -> list[str]:
    """The columns that hold a key of the answers: its corrected types first."""
    corrected = [other for other in columns.names if other.rpartition("__v")[0] == name]
    return [*reversed(corrected), *([name] if name in columns.names else [])]


def _key_type(columns: pa.Schema, key: Sequence[str]) -> pa.DataType:
    fields = []
    for name in key:
        versions = _versions(columns, name)
        fields.append(pa.field(name, columns.field(versions[0]).type if len(versions) == 1 else pa.string()))
    return pa.struct(fields) if fields else pa.null()


def _key_array(table: pa.Table, kind: pa.DataType, key: Sequence[str]) -> pa.Array:
    if not key:
        return pa.nulls(table.num_rows)
    arrays = []
    for name, column in zip(key, kind, strict=True):
        versions = [table.column(other).cast(column.type) for other in _versions(table.schema, name)]
        if not versions:
            arrays.append(pa.nulls(table.num_rows, column.type))
            continue
        whole = versions[0] if len(versions) == 1 else pc.coalesce(*versions)
        arrays.append(whole.combine_chunks())
    return pa.StructArray.from_arrays(arrays, fields=list(kind))


def _row_array(rows: pa.Table | None, columns: pa.Schema, kind: pa.DataType, length: int) -> pa.Array:
    if rows is None:
        return pa.nulls(length, kind)
    table = align(rows, columns)
    arrays = [table.column(column.name).combine_chunks() for column in kind]
    return pa.StructArray.from_arrays(arrays, fields=list(kind))


def _json_object(row: dict[str, object]) -> dict[str, object]:
    return {name: json_value(value) for name, value in row.items()}
