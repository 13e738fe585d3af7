"""Spark SQL: temporary views over `parquet`, with the columns given, so that no schema has to be merged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

import pyarrow as pa

from extractor.ddl.dialect import Statement, no_rows, views
from extractor.ddl.shape import TableShape, timestamp_text

__all__ = ("FOLLOWS", "NOTES", "Spark", "statements")

FOLLOWS = (
    "files and current folders are those of now: run this again after each run, after compact, expire and verify "
    "--repair, and in each session"
)
NOTES = (
    "Spark 3.4 or newer; the columns are given, so mergeSchema is not needed and older files lack newer ones",
    "without a zone a time is TIMESTAMP_NTZ; all others are instants, shown in spark.sql.session.timeZone",
)


class Spark:
    """How Spark writes names, values and types; with `spark.sql.parser.escapedStringLiterals` as it comes."""

    def identifier(self, name: str) -> str:
        return "`" + name.replace("`", "``") + "`"

    def text(self, value: str) -> str:
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"

    def instant(self, moment: datetime) -> str:
        return f"TIMESTAMP '{timestamp_text(moment)} UTC'"

    def type(self, type_: pa.DataType) -> str:
        if pa.types.is_list(type_):
            return f"ARRAY<{self.type(type_.value_type)}>"
        if pa.types.is_map(type_):
            return f"MAP<{self.type(type_.key_type)}, {self.type(type_.item_type)}>"
        if pa.types.is_struct(type_):
            return f"STRUCT<{', '.join(f'{self.identifier(f.name)}: {self.type(f.type)}' for f in type_)}>"
        if pa.types.is_timestamp(type_):
            return "TIMESTAMP" if type_.tz else "TIMESTAMP_NTZ"
        if pa.types.is_decimal(type_):
            return f"DECIMAL({type_.precision}, {type_.scale})"
        return _SCALARS[type_]

    def content(self, columns: Sequence[tuple[str, pa.DataType]], prefix: str) -> str:
        return f"STRUCT({', '.join(self._comparable(name, type_, prefix) for name, type_ in columns)})"

    def _comparable(self, name: str, type_: pa.DataType, prefix: str) -> str:
        column = f"{prefix}{self.identifier(name)}"
        # Maps cannot be compared, and their pairs stand in any order.
        if pa.types.is_map(type_) and not _holds_map(type_.item_type):
            return f"ARRAY_SORT(MAP_ENTRIES({column}))"
        return f"TO_JSON({column})" if _holds_map(type_) else column

    def is_same(self, first: str, second: str) -> str:
        return f"{first} <=> {second}"


_SCALARS = {
    pa.string(): "STRING",
    pa.int64(): "BIGINT",
    pa.float64(): "DOUBLE",
    pa.bool_(): "BOOLEAN",
    pa.binary(): "BINARY",
    pa.date32(): "DATE",
}


def _holds_map(type_: pa.DataType) -> bool:
    if pa.types.is_map(type_):
        return True
    if pa.types.is_list(type_):
        return _holds_map(type_.value_type)
    return pa.types.is_struct(type_) and any(_holds_map(field.type) for field in type_)


def statements(shape: TableShape, location: str, tables: Sequence[str]) -> Iterator[Statement]:
    """The table and its two views, in the order in which they are to be made."""
    dialect = Spark()
    table = dialect.identifier(shape.name)
    made = f"CREATE OR REPLACE TEMPORARY VIEW {table}"
    if shape.has_files:
        types = {name: "DATE" if name.endswith("_date") else "STRING" for name in shape.partitions}
        types |= {name: dialect.type(type_) for name, type_ in shape.columns}
        columns = ",\n  ".join(f"{dialect.identifier(name)} {types[name]}" for name in shape.names)
        path = dialect.text(f"{_plain(location.rstrip('/'))}/{shape.name}")
        sql = f"{made} (\n  {columns}\n) USING parquet OPTIONS (path {path});"
    else:
        sql = f"{made} AS\n{no_rows(dialect, shape)};"
    yield Statement(object="table", name=shape.name, sql=sql)
    yield from views(dialect, shape, tables, kind="TEMPORARY VIEW")


def _plain(path: str) -> str:
    """A path in which nothing stands for other letters."""
    return "".join(f"\\{letter}" if letter in "*?[]{}\\" else letter for letter in path)
