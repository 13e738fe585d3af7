"""Snowflake: one stage for the lake, an external table for each of its tables, and views over them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import datetime

import pyarrow as pa

from extractor.ddl.dialect import Statement, views
from extractor.ddl.shape import TableShape, timestamp_text

__all__ = ("FOLLOWS", "NOTES", "Snowflake", "setup", "statements")

FOLLOWS = (
    "after each run, and after compact, expire and verify --repair: ALTER EXTERNAL TABLE … REFRESH finds "
    "the files that came and went (events need no more), then make the views again"
)
NOTES = (
    "the stage needs the rights to read: add STORAGE_INTEGRATION = … to it",
    "USE_LOGICAL_TYPE makes times of times, in UTC and without a zone; lists, maps and structs are VARIANT",
    "names are as in the lake: write them in double quotes",
)

_STAGE = "skysql_lake"


class Snowflake:
    """How Snowflake writes names, values and types."""

    def identifier(self, name: str) -> str:
        return '"' + name.replace('"', '""') + '"'

    def text(self, value: str) -> str:
        return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"

    def instant(self, moment: datetime) -> str:
        return f"'{timestamp_text(moment)}'::TIMESTAMP_NTZ"

    def type(self, type_: pa.DataType) -> str:
        if pa.types.is_nested(type_):
            return "VARIANT"
        if pa.types.is_timestamp(type_):
            return "TIMESTAMP_NTZ"
        if pa.types.is_decimal(type_):
            return f"NUMBER({type_.precision}, {type_.scale})"
        return _SCALARS[type_]

    def content(self, columns: Sequence[tuple[str, pa.DataType]], prefix: str) -> str:
        pairs = [f"{self.text(name)}, {prefix}{self.identifier(name)}" for name, _ in columns]
        return f"TO_JSON(OBJECT_CONSTRUCT({', '.join(pairs)}))"

    def is_same(self, first: str, second: str) -> str:
        return f"{first} IS NOT DISTINCT FROM {second}"


_SCALARS = {
    pa.string(): "VARCHAR",
    pa.int64(): "NUMBER(19, 0)",
    pa.float64(): "DOUBLE",
    pa.bool_(): "BOOLEAN",
    pa.binary(): "BINARY",
    pa.date32(): "DATE",
}


def setup(location: str) -> Iterator[Statement]:
    """What all tables need."""
    dialect = Snowflake()
    sql = (
        f"CREATE STAGE IF NOT EXISTS {dialect.identifier(_STAGE)}\n"
        f"  URL = {dialect.text(_address(location.rstrip('/')) + '/')}\n"
        "  FILE_FORMAT = (TYPE = PARQUET USE_LOGICAL_TYPE = TRUE BINARY_AS_TEXT = FALSE);"
    )
    yield Statement(object="setup", name=_STAGE, sql=sql)


def _address(location: str) -> str:
    """The lake's place as Snowflake writes it."""
    azure = re.fullmatch(r"abfss?://([^@/]+)@([^/.]+)\.dfs\.([^/]+)(/.*)?", location)
    if azure is not None:
        container, account, domain, path = azure.groups()
        return f"azure://{account}.blob.{domain}/{container}{path or ''}"
    return location.replace("gs://", "gcs://", 1) if location.startswith("gs://") else location


def statements(shape: TableShape, location: str, tables: Sequence[str]) -> Iterator[Statement]:
    """The table and its two views, in the order in which they are to be made."""
    dialect = Snowflake()
    q = dialect.identifier
    columns = [f"{q(name)} {_type_in_path(name)} AS ({_value_in_path(name)})" for name in shape.partitions]
    columns += [
        f"{q(name)} {dialect.type(type_)} AS (VALUE:{q(name)}::{dialect.type(type_)})"
        for name, type_ in shape.columns
    ]
    listed = ",\n  ".join(columns)
    yield Statement(
        object="table",
        name=shape.name,
        sql=f"CREATE OR REPLACE EXTERNAL TABLE {q(shape.name)} (\n  {listed}\n)\n"
        f"PARTITION BY ({', '.join(q(name) for name in shape.partitions)})\n"
        f"LOCATION = @{q(_STAGE)}/{shape.name}/\nAUTO_REFRESH = FALSE\nPATTERN = '.*[.]parquet'\n"
        "FILE_FORMAT = (TYPE = PARQUET USE_LOGICAL_TYPE = TRUE BINARY_AS_TEXT = FALSE);",
    )
    yield from views(dialect, shape, tables)


def _type_in_path(name: str) -> str:
    return "DATE" if name.endswith("_date") else "VARCHAR"


def _value_in_path(name: str) -> str:
    value = f"SPLIT_PART(SPLIT_PART(METADATA$FILENAME, '/{name}=', 2), '/', 1)"
    return f"TO_DATE(NULLIF({value}, '__HIVE_DEFAULT_PARTITION__'))" if name.endswith("_date") else value
