"""DuckDB: views over `read_parquet`, with every option that it needs to read a lake as it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

import pyarrow as pa

from extractor.ddl.dialect import Statement, columns_of, history_select, indented, no_rows, view_names
from extractor.ddl.shape import TableShape, timestamp_text

__all__ = ("FOLLOWS", "NOTES", "DuckDb", "statements")

FOLLOWS = (
    "events follow by themselves; of snapshots and windows the view of the current state lists its files: "
    "run this again after each run, and after compact, expire and verify --repair"
)
NOTES = (
    "union_by_name lets older files lack newer columns; hive_types keeps an account such as 007 a text",
    "a column that is new in the lake appears when this is run again",
)


class DuckDb:
    """How DuckDB writes names, values and types."""

    def identifier(self, name: str) -> str:
        return '"' + name.replace('"', '""') + '"'

    def text(self, value: str) -> str:
        return "'" + value.replace("'", "''") + "'"

    def instant(self, moment: datetime) -> str:
        return f"TIMESTAMPTZ '{timestamp_text(moment)}+00'"

    def type(self, type_: pa.DataType) -> str:
        if pa.types.is_list(type_):
            return f"{self.type(type_.value_type)}[]"
        if pa.types.is_map(type_):
            return f"MAP({self.type(type_.key_type)}, {self.type(type_.item_type)})"
        if pa.types.is_struct(type_):
            return f"STRUCT({', '.join(f'{self.identifier(f.name)} {self.type(f.type)}' for f in type_)})"
        if pa.types.is_timestamp(type_):
            return "TIMESTAMP WITH TIME ZONE" if type_.tz else "TIMESTAMP"
        if pa.types.is_decimal(type_):
            return f"DECIMAL({type_.precision}, {type_.scale})"
        return _SCALARS[type_]

    def content(self, columns: Sequence[tuple[str, pa.DataType]], prefix: str) -> str:
        return f"ROW({', '.join(self._comparable(name, type_, prefix) for name, type_ in columns)})"

    def _comparable(self, name: str, type_: pa.DataType, prefix: str) -> str:
        column = f"{prefix}{self.identifier(name)}"
        # The pairs of a map stand in any order.
        return f"list_sort(map_entries({column}))" if pa.types.is_map(type_) else column

    def is_same(self, first: str, second: str) -> str:
        return f"{first} IS NOT DISTINCT FROM {second}"


_SCALARS = {
    pa.string(): "VARCHAR",
    pa.int64(): "BIGINT",
    pa.float64(): "DOUBLE",
    pa.bool_(): "BOOLEAN",
    pa.binary(): "BLOB",
    pa.date32(): "DATE",
}


def statements(shape: TableShape, location: str, tables: Sequence[str]) -> Iterator[Statement]:
    """The table and its two views, in the order in which they are to be made."""
    dialect = DuckDb()
    q = dialect.identifier
    current, history = view_names(shape, tables)
    root = _plain(location.rstrip("/"))
    glob = f"{root}/{shape.name}/{'*/' * len(shape.partitions)}*.parquet"
    every = [glob] if shape.has_files else []
    files = every if shape.kind == "events" else [f"{root}/{_plain(path)}" for path in shape.paths]
    yield _view("table", shape.name, _read(dialect, shape, every), dialect)
    yield _view("current", current, _read(dialect, shape, files), dialect)
    yield _view("history", history, history_select(dialect, shape, q(shape.name)), dialect)


def _view(object_: str, name: str, select: str, dialect: DuckDb) -> Statement:
    sql = f"CREATE OR REPLACE VIEW {dialect.identifier(name)} AS\n{select};"
    return Statement(object=object_, name=name, sql=sql)


def _read(dialect: DuckDb, shape: TableShape, files: Sequence[str]) -> str:
    """The rows of files under the columns that the lake has now: none more, none less, and in one order.

    Else a view would be of no use from the first new column on, and a folder `x=y` above the lake a column.
    """
    typed = no_rows(dialect, shape)
    if not files:
        return typed
    types = ", ".join(
        f"{dialect.text(name)}: {'DATE' if name.endswith('_date') else 'VARCHAR'}"
        for name in shape.partitions
    )
    listed = ",\n      ".join(dialect.text(file) for file in files)
    return (
        f"SELECT {columns_of(dialect, shape)}\nFROM (\n{indented(typed)}\n  UNION ALL BY NAME\n"
        f"  SELECT * FROM read_parquet(\n    [{listed}],\n"
        f"    hive_partitioning = true, union_by_name = true, hive_types = {{{types}}}\n  )\n)"
    )


def _plain(path: str) -> str:
    """A path in which nothing stands for other letters."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in path)
