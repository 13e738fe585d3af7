"""What every engine's statements share: how names and values are written, and the two views over a table.

`…_current` are the rows of the current files, told by the names in their paths: those of a snapshot are a folder,
and rows of events are all current. `…_history` has each state of each row once, and from when to when it held.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Protocol

import msgspec
import pyarrow as pa

from extractor.ddl.shape import TableShape

__all__ = (
    "Dialect",
    "Statement",
    "columns_of",
    "history_select",
    "indented",
    "no_rows",
    "view_names",
    "views",
)


class Statement(msgspec.Struct, frozen=True, kw_only=True):
    """One statement; `object` is `setup`, `table`, `current` or `history`, `name` what it makes."""

    object: str
    name: str
    sql: str


class Dialect(Protocol):
    """How an engine writes what its queries are made of."""

    def identifier(self, name: str) -> str: ...

    def text(self, value: str) -> str: ...

    def type(self, type_: pa.DataType) -> str: ...

    def instant(self, moment: datetime) -> str:
        """A time of the type that `_snapshot_at` has in this engine."""

    def content(self, columns: Sequence[tuple[str, pa.DataType]], prefix: str) -> str:
        """One value that is equal where all of the columns are."""

    def is_same(self, first: str, second: str) -> str:
        """True where both are equal, or both null."""


def view_names(shape: TableShape, tables: Sequence[str]) -> tuple[str, str]:
    """The names of its two views; one more `_` where a table has the name already."""
    found = []
    for suffix in ("current", "history"):
        name = f"{shape.name}_{suffix}"
        while name in tables:
            name = name.removesuffix(suffix) + f"_{suffix}"
        found.append(name)
    return found[0], found[1]


def columns_of(dialect: Dialect, shape: TableShape, prefix: str = "") -> str:
    return ", ".join(f"{prefix}{dialect.identifier(name)}" for name in shape.names)


def views(
    dialect: Dialect, shape: TableShape, tables: Sequence[str], *, kind: str = "VIEW"
) -> Iterator[Statement]:
    """The two views over the table."""
    current, history = view_names(shape, tables)
    table = dialect.identifier(shape.name)
    for object_, name, select in (
        ("current", current, _current_select(dialect, shape, table)),
        ("history", history, history_select(dialect, shape, table)),
    ):
        sql = f"CREATE OR REPLACE {kind} {dialect.identifier(name)} AS\n{select};"
        yield Statement(object=object_, name=name, sql=sql)


def no_rows(dialect: Dialect, shape: TableShape) -> str:
    """A query with all columns, typed, and no rows."""
    types = {name: pa.string() for name in shape.partitions}
    types |= {name: pa.date32() for name in ("snapshot_date", "event_date") if name in types}
    types |= dict(shape.columns)
    columns = [
        f"CAST(NULL AS {dialect.type(types[name])}) AS {dialect.identifier(name)}" for name in shape.names
    ]
    listed = ",\n  ".join(columns)
    return f"SELECT\n  {listed}\nFROM (SELECT 1 AS one) AS nothing WHERE 1 = 0"


def _current_select(dialect: Dialect, shape: TableShape, table: str) -> str:
    """The rows of the current files, by the names in their paths."""
    select = f"SELECT {columns_of(dialect, shape)}\nFROM {table}"
    if shape.kind == "events":
        return select
    return f"{select}\nWHERE {_is_current(dialect, shape)}"


def _is_current(dialect: Dialect, shape: TableShape) -> str:
    if not shape.current:
        return "1 = 0"
    return "\n   OR ".join(_is_in(dialect, partition) for partition in shape.current)


def _is_in(dialect: Dialect, partition: Sequence[tuple[str, str]]) -> str:
    values = {
        name: f"DATE {dialect.text(value)}" if name.endswith("_date") else dialect.text(value)
        for name, value in partition
    }
    return "(" + " AND ".join(f"{dialect.identifier(name)} = {value}" for name, value in values.items()) + ")"


# --- history ------------------------------------------------------------------------------------------------


def history_select(dialect: Dialect, shape: TableShape, table: str) -> str:
    """Each state of each row once, with `valid_from` and, unless it still holds, `valid_to`.

    Rows are told apart by the key. Without one, each row of each reading holds until the next reading.
    """
    q = dialect.identifier
    since, until = (q(name if name not in shape.names else f"_{name}") for name in ("valid_from", "valid_to"))
    if shape.kind == "events":
        begun = q(shape.time or "_extracted_at")
        none = f"CAST(NULL AS {dialect.type(pa.timestamp('us', 'UTC'))})"
        return f"SELECT {columns_of(dialect, shape)}, {begun} AS {since}, {none} AS {until}\nFROM {table}"
    at = q("_snapshot_at")
    scope = [q(name) for name in shape.scope]
    joined = " AND ".join(f"r.{name} = t.{name}" for name in (*scope, at))
    readings = f"WITH {q('readings')} AS (\n{indented(_readings(dialect, shape, table))}\n)"
    if not shape.key:
        return (
            f"{readings}\nSELECT {columns_of(dialect, shape, 't.')}, t.{at} AS {since}, r._next_at AS {until}\n"
            f"FROM {table} AS t JOIN {q('readings')} AS r ON {joined}"
        )
    steps = _steps(dialect, shape, table, joined)
    parts = [readings, *(f"{q(name)} AS (\n{indented(step)}\n)" for name, step in steps)]
    again = " AND ".join(f"r.{name} = t.{name}" for name in scope)
    return (
        ",\n".join(parts)
        + f"\nSELECT {columns_of(dialect, shape, 't.')}, t.{at} AS {since}, r._next_at AS {until}\n"
        f"FROM {q('placed')} AS t JOIN {q('readings')} AS r ON {again} AND r._reading = t._last\n"
        "WHERE t._place = 1"
    )


def _readings(dialect: Dialect, shape: TableShape, table: str) -> str:
    """Every reading in its order, and when the next one was."""
    q = dialect.identifier
    names = [q(name) for name in (*shape.scope, "_snapshot_at")]
    seen = [f"SELECT DISTINCT {', '.join(names)} FROM {table}"]
    for emptied in shape.emptied:
        values = {"account": dialect.text(emptied.account), "window": dialect.text(emptied.window)}
        given = [f"{values[name]} AS {q(name)}" for name in shape.scope]
        seen.append(f"SELECT {', '.join(given)}, {dialect.instant(emptied.at)} AS {q('_snapshot_at')}")
    order = f"OVER (PARTITION BY {', '.join(names[:-1])} ORDER BY {names[-1]})"
    union = "\nUNION ALL ".join(seen)
    return (
        f"SELECT {', '.join(names)},\n  ROW_NUMBER() {order} AS _reading, LEAD({names[-1]}) {order} AS _next_at\n"
        f"FROM (\n{indented(union)}\n) AS seen"
    )


def _steps(dialect: Dialect, shape: TableShape, table: str, joined: str) -> Iterator[tuple[str, str]]:
    """From rows of readings to versions: with their content, with what was before, numbered, and the last."""
    q = dialect.identifier
    keys = [f"_key{number}" for number in range(len(shape.key))]
    given = [f"{_key(dialect, names)} AS {key}" for key, names in zip(keys, shape.key, strict=True)]
    content = dialect.content(shape.content, "t.")
    yield (
        "stood",
        (
            f"SELECT t.*, {', '.join(given)}, r._reading,\n  {content} AS _content\n"
            f"FROM {table} AS t JOIN {q('readings')} AS r ON {joined}"
        ),
    )
    row = ", ".join([*(q(name) for name in shape.scope), *keys])
    order = f"PARTITION BY {row} ORDER BY _reading"
    before = [f"LAG({name}) OVER ({order}) AS {name}_before" for name in ("_reading", "_content")]
    yield "compared", f"SELECT *, {', '.join(before)}\nFROM {q('stood')}"
    same = f"_reading_before = _reading - 1 AND {dialect.is_same('_content', '_content_before')}"
    summed = f"OVER ({order} ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)"
    yield (
        "begun",
        f"SELECT *, SUM(CASE WHEN {same} THEN 0 ELSE 1 END)\n  {summed} AS _version\nFROM {q('compared')}",
    )
    version = f"PARTITION BY {row}, _version"
    place = f"ROW_NUMBER() OVER ({version} ORDER BY _reading) AS _place"
    yield "placed", f"SELECT *, {place}, MAX(_reading) OVER ({version}) AS _last\nFROM {q('begun')}"


def _key(dialect: Dialect, names: Sequence[str]) -> str:
    """One part of the key; of several types as text."""
    if len(names) == 1:
        return f"t.{dialect.identifier(names[0])}"
    text = dialect.type(pa.string())
    versions = [f"CAST(t.{dialect.identifier(name)} AS {text})" for name in names]
    return f"COALESCE({', '.join(versions)})"


def indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
