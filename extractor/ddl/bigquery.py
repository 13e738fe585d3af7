"""BigQuery: external tables with the partitions of the path, and views over them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

import pyarrow as pa

from extractor.ddl.dialect import Statement, views
from extractor.ddl.shape import TableShape, timestamp_text

__all__ = ("FOLLOWS", "NOTES", "BigQuery", "statements")

FOLLOWS = (
    "events and new files follow by themselves; of snapshots and windows make both views again after each run "
    "and verify --repair, and all of it for a new column"
)
NOTES = (
    "run it with a default dataset, such as: bq query --dataset_id=skysql --use_legacy_sql=false",
    "a map is a STRUCT of key_value, an ARRAY of key and value; without a zone a time is DATETIME",
    "money is BIGNUMERIC: 26 digits before the point, 12 behind it",
)


class BigQuery:
    """How BigQuery writes names, values and types."""

    def identifier(self, name: str) -> str:
        return "`" + name.replace("\\", "\\\\").replace("`", "\\`") + "`"

    def text(self, value: str) -> str:
        escaped = value.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\r", "\\r")
        return f"'{escaped}'"

    def instant(self, moment: datetime) -> str:
        return f"TIMESTAMP '{timestamp_text(moment)}+00'"

    def type(self, type_: pa.DataType) -> str:
        if pa.types.is_list(type_):
            return f"ARRAY<{self.type(type_.value_type)}>"
        if pa.types.is_map(type_):
            pair = f"STRUCT<key {self.type(type_.key_type)}, value {self.type(type_.item_type)}>"
            return f"STRUCT<key_value ARRAY<{pair}>>"
        if pa.types.is_struct(type_):
            return f"STRUCT<{', '.join(f'{self.identifier(f.name)} {self.type(f.type)}' for f in type_)}>"
        if pa.types.is_timestamp(type_):
            return "TIMESTAMP" if type_.tz else "DATETIME"
        if pa.types.is_decimal(type_):
            return f"BIGNUMERIC({type_.precision}, {type_.scale})"
        return _SCALARS[type_]

    def content(self, columns: Sequence[tuple[str, pa.DataType]], prefix: str) -> str:
        values = [
            f"{self._comparable(name, type_, prefix)} AS c{n}" for n, (name, type_) in enumerate(columns)
        ]
        return f"TO_JSON_STRING(STRUCT({', '.join(values)}))"

    def _comparable(self, name: str, type_: pa.DataType, prefix: str) -> str:
        column = f"{prefix}{self.identifier(name)}"
        # The pairs of a map stand in any order.
        pairs = f"ARRAY(SELECT AS STRUCT key, value FROM UNNEST({column}.key_value) ORDER BY key)"
        return pairs if pa.types.is_map(type_) else column

    def is_same(self, first: str, second: str) -> str:
        return f"{first} IS NOT DISTINCT FROM {second}"


_SCALARS = {
    pa.string(): "STRING",
    pa.int64(): "INT64",
    pa.float64(): "FLOAT64",
    pa.bool_(): "BOOL",
    pa.binary(): "BYTES",
    pa.date32(): "DATE",
}


def statements(shape: TableShape, location: str, tables: Sequence[str]) -> Iterator[Statement]:
    """The table and its two views, in the order in which they are to be made."""
    dialect = BigQuery()
    q = dialect.identifier
    columns = ",\n  ".join(f"{q(name)} {dialect.type(type_)}" for name, type_ in shape.columns)
    partitions = ", ".join(
        f"{q(name)} {'DATE' if name.endswith('_date') else 'STRING'}" for name in shape.partitions
    )
    folder = f"{location.rstrip('/')}/{shape.name}"
    yield Statement(
        object="table",
        name=shape.name,
        sql=f"CREATE OR REPLACE EXTERNAL TABLE {q(shape.name)} (\n  {columns}\n)\n"
        f"WITH PARTITION COLUMNS ({partitions})\nOPTIONS (\n  format = 'PARQUET',\n"
        f"  uris = [{dialect.text(folder + '/*.parquet')}],\n"
        f"  hive_partition_uri_prefix = {dialect.text(folder)},\n"
        "  require_hive_partition_filter = false,\n  enable_list_inference = true\n);",
    )
    yield from views(dialect, shape, tables)
