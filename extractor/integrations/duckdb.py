"""SQL over a lake, with DuckDB: one view for each table, and nothing else within reach.

DuckDB is given the paths of the lake's data files and no others, no network and no extensions, and takes only
queries. Views are made of those tables that a query names.
"""

from __future__ import annotations

import difflib
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from extractor.errors import ConfigError, LakeError
from extractor.lake import Lake, LakeTable

if TYPE_CHECKING:
    import duckdb

    from extractor.commitlog import LogEntry

__all__ = ("connect", "query")

HISTORY, CHANGES = "_history", "_changes"

_ATTEMPTS = 3
_WORD = re.compile(r"[^\W\d]\w*")
_QUERY = re.compile(r"\s*(\(|(pivot|unpivot|from|select)\b)", re.IGNORECASE)
# Of such a query nobody can tell which tables it will show.
_LISTS = frozenset(
    {"show", "information_schema", "duckdb_tables", "duckdb_views", "duckdb_columns", "pg_catalog"}
)
_RUNS = "_committed_runs"


def query(lake: Lake, text: str, *, as_of: str | None = None) -> pa.Table:
    """The rows that one query gives, over the current state or that after a run.

    Raises: ConfigError if the query cannot be run as it is, or DuckDB is not installed; LakeError if the lake
    cannot be read.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        entry = lake.entry(as_of)
        with _interruptible(), connect(lake, text, as_of=entry) as connection:
            try:
                return _run(connection, text)
            except _errors() as error:
                # Files may have been published between the look and the query.
                if _is_io(error) and attempt < _ATTEMPTS:
                    continue
                _blame_the_lake(lake, text, entry, error)
                raise ConfigError(f"the query cannot be run: {_told(lake, entry, error)}") from error
    raise LakeError(f"the files of lake {lake.store.uri} are moved all the time; run the query again")


@contextmanager
def connect(
    lake: Lake, text: str, *, as_of: str | LogEntry | None = None
) -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB connection with the views that the query names, all of one commit; everything else is closed to it.

    Raises: as `query`.
    """
    duckdb = _duckdb()
    entry = lake.entry(as_of)
    settings = {"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"}
    with tempfile.TemporaryDirectory(prefix="skysql-extract-") as folder:
        connection = duckdb.connect(":memory:", config=settings)
        try:
            connection.execute("SET TimeZone = 'UTC'")
            connection.execute(f"SET temp_directory = {_quoted(folder)}")
            paths = _make_views(connection, lake, text, entry)
            connection.execute(f"SET allowed_paths = [{', '.join(map(_quoted, paths))}]")
            connection.execute("SET enable_external_access = false")
            connection.execute("SET lock_configuration = true")
            yield connection
        finally:
            connection.close()


@contextmanager
def _interruptible() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        # DuckDB takes Ctrl-C for itself, and tells of it in these words only.
        if str(error) == "Query interrupted":
            raise KeyboardInterrupt from error
        raise


def _run(connection: duckdb.DuckDBPyConnection, text: str) -> pa.Table:
    duckdb = _duckdb()
    statements = connection.extract_statements(text)
    if len(statements) != 1:
        raise ConfigError(f"give one query; there are {len(statements)} statements")
    kinds = duckdb.StatementType
    kind = statements[0].type
    is_analyzed = re.search(r"\banaly[sz]e\b", text, re.IGNORECASE) is not None
    # An analysed statement is carried out, whatever it is.
    # One that holds a PIVOT may be anything: it is told by its first word.
    is_query = kind in (kinds.SELECT, kinds.EXPLAIN) or (kind == kinds.MULTI and _QUERY.match(text))
    if not is_query or (kind == kinds.EXPLAIN and is_analyzed):
        raise ConfigError("only queries can be run: a lake is changed by runs alone")
    found = connection.sql(text)
    if found is None:
        raise ConfigError("only queries can be run: this one gives no rows")
    return found.to_arrow_table()


# --- views --------------------------------------------------------------------------------------------------


def _make_views(connection: duckdb.DuckDBPyConnection, lake: Lake, text: str, entry: LogEntry) -> list[str]:
    """Make the views that the query needs, and give the paths that they read."""
    words = {word.lower() for word in _WORD.findall(text)}
    tables = lake.tables(entry)
    is_list = not words.isdisjoint(_LISTS)
    paths: list[str] = []
    for name in tables:
        if is_list or name.lower() in words:
            paths += _make_view(connection, lake.table(name, as_of=entry))
    for name in tables:
        for ending, past in ((HISTORY, lake.history), (CHANGES, lake.changes)):
            view = f"{name}{ending}"
            if view.lower() in words and view not in tables:
                # Into DuckDB's own memory, which may go to disk.
                connection.register("_stream", pa.RecordBatchReader.from_stream(past(name, as_of=entry)))
                connection.execute(f"CREATE TABLE {_name(view)} AS SELECT * FROM _stream")
                connection.unregister("_stream")
    return paths


def _make_view(connection: duckdb.DuckDBPyConnection, table: LakeTable) -> list[str]:
    local = table.local_paths()
    if local is None:
        connection.register(table.name, pa.table(table))
        return []
    paths = [str(path) for path in local]
    condition = ""
    if table.committed_runs is not None:
        runs = f"{_RUNS}_{table.name}"
        connection.register("_stream", pa.table({"run_id": sorted(table.committed_runs)}))
        connection.execute(f"CREATE TABLE {_name(runs)} AS SELECT * FROM _stream")
        connection.unregister("_stream")
        condition = f" WHERE _run_id IN (SELECT run_id FROM {_name(runs)})"
    try:
        connection.execute(
            f"CREATE VIEW {_name(table.name)} AS SELECT {', '.join(map(_name, table.schema.names))} "
            f"FROM read_parquet([{', '.join(map(_quoted, paths))}], union_by_name = true, "
            f"hive_partitioning = false){condition}"
        )
    except _errors() as error:
        # The lake says itself which file it is.
        _read_through(table)
        raise LakeError(
            f"table {table.name} of lake {table.uri} cannot be read: {_one_line(error)}; "
            "run `skysql-extract verify`"
        ) from error
    return paths


# --- errors -------------------------------------------------------------------------------------------------


def _duckdb() -> Any:
    try:
        import duckdb
    except ImportError as error:
        raise ConfigError("sql needs DuckDB: pip install 'skysql-extractor[sql]'") from error
    return duckdb


def _errors() -> type[Exception]:
    error: type[Exception] = _duckdb().Error
    return error


def _is_io(error: Exception) -> bool:
    duckdb = _duckdb()
    return isinstance(error, (duckdb.IOException, duckdb.FatalException))


def _blame_the_lake(lake: Lake, text: str, entry: LogEntry, error: Exception) -> None:
    """Raise LakeError if it is a file of the lake that cannot be read, and not the query that is wrong."""
    duckdb = _duckdb()
    if isinstance(error, duckdb.ProgrammingError) and not isinstance(error, duckdb.InvalidInputException):
        return
    words = {word.lower() for word in _WORD.findall(text)}
    for name in lake.tables(entry):
        if name.lower() in words:
            _read_through(lake.table(name, as_of=entry))


def _read_through(table: LakeTable) -> None:
    for _ in table.to_batches():
        pass


def _told(lake: Lake, entry: LogEntry, error: Exception) -> str:
    """What is wrong with a query, with the lake's own names for a table that there is not."""
    unknown = re.search(r"Table with name (\S+) does not exist", str(error))
    if unknown is None:
        return _one_line(error)
    tables = lake.tables(entry)
    close = difflib.get_close_matches(
        unknown[1], [f"{name}{ending}" for name in tables for ending in ("", HISTORY, CHANGES)], n=1
    )
    advice = f"did you mean {close[0]}?" if close else f"there are {', '.join(tables[:5])} and others"
    return f"no table {unknown[1]} in lake {lake.store.uri}; {advice}"


def _one_line(error: Exception) -> str:
    """What DuckDB says, without the query and the mark under it."""
    text = str(error).partition("\n\nLINE ")[0]
    return " ".join(text.split())


def _name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _quoted(text: str | Path) -> str:
    return "'" + str(text).replace("'", "''") + "'"
