"""Athena: external tables of Hive, and views of Trino over them. Two dialects, with two ways to quote."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import datetime

import pyarrow as pa

from extractor.ddl.dialect import Statement, views
from extractor.ddl.shape import TableShape, timestamp_text

__all__ = ("FOLLOWS", "NOTES", "Athena", "statements")

FOLLOWS = (
    "after each run and verify --repair: MSCK REPAIR TABLE finds the new folders (events need no more), then "
    "make the views again; a table must be dropped and made anew only for a new column"
)
NOTES = (
    "columns are found by their names, as Athena does with Parquet; older files may lack newer ones",
    "times are in UTC and without a zone, and Athena keeps milliseconds of them",
    "names are in small letters in Athena",
)

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_]+", re.ASCII)


class Athena:
    """How Trino, which makes Athena's views, writes names, values and types."""

    def identifier(self, name: str) -> str:
        return '"' + name.replace('"', '""') + '"'

    def text(self, value: str) -> str:
        return "'" + value.replace("'", "''") + "'"

    def instant(self, moment: datetime) -> str:
        return f"TIMESTAMP '{timestamp_text(moment)[:-3]}'"

    def type(self, type_: pa.DataType) -> str:
        if pa.types.is_timestamp(type_):
            return "TIMESTAMP(3)"
        return {pa.string(): "VARCHAR", pa.int64(): "BIGINT", pa.date32(): "DATE"}[type_]

    def content(self, columns: Sequence[tuple[str, pa.DataType]], prefix: str) -> str:
        return f"ROW({', '.join(f'{prefix}{self.identifier(name)}' for name, _ in columns)})"

    def is_same(self, first: str, second: str) -> str:
        return f"{first} IS NOT DISTINCT FROM {second}"


_SCALARS = {
    pa.string(): "string",
    pa.int64(): "bigint",
    pa.float64(): "double",
    pa.bool_(): "boolean",
    pa.binary(): "binary",
    pa.date32(): "date",
}


def _hive_type(type_: pa.DataType) -> str:
    if pa.types.is_list(type_):
        return f"array<{_hive_type(type_.value_type)}>"
    if pa.types.is_map(type_):
        return f"map<{_hive_type(type_.key_type)},{_hive_type(type_.item_type)}>"
    if pa.types.is_struct(type_):
        return f"struct<{','.join(f'{_field_name(f.name)}:{_hive_type(f.type)}' for f in type_)}>"
    if pa.types.is_timestamp(type_):
        return "timestamp"
    if pa.types.is_decimal(type_):
        return f"decimal({type_.precision},{type_.scale})"
    return _SCALARS[type_]


def _field_name(name: str) -> str:
    return name if _PLAIN_NAME.fullmatch(name) else _hive_name(name)


def _hive_name(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"


def statements(shape: TableShape, location: str, tables: Sequence[str]) -> Iterator[Statement]:
    """The table and its two views, in the order in which they are to be made."""
    dialect = Athena()
    columns = ",\n  ".join(f"{_hive_name(name)} {_hive_type(type_)}" for name, type_ in shape.columns)
    partitions = ", ".join(
        f"{_hive_name(name)} {'date' if name.endswith('_date') else 'string'}" for name in shape.partitions
    )
    # A literal of Hive, in which a backslash escapes.
    place = f"{location.rstrip('/')}/{shape.name}/".replace("\\", "\\\\").replace("'", "\\'")
    yield Statement(
        object="table",
        name=shape.name,
        sql=f"CREATE EXTERNAL TABLE IF NOT EXISTS {_hive_name(shape.name)} (\n  {columns}\n)\n"
        f"PARTITIONED BY ({partitions})\nSTORED AS PARQUET\nLOCATION '{place}'\n"
        "TBLPROPERTIES ('parquet.column.index.access' = 'false');",
    )
    yield Statement(object="table", name=shape.name, sql=f"MSCK REPAIR TABLE {_hive_name(shape.name)};")
    yield from views(dialect, shape, tables)
