"""What must hold of a table before it is published, looked for in the files that were staged.

Each function gives reasons in words, none where all is well, and reads only the columns concerned, batch by batch:
memory does not grow with the table. Values are compared inside Arrow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from extractor.config import Checks, Config, nearest_name, parse_duration
from extractor.endpoint import Endpoint
from extractor.errors import ConfigError
from extractor.schema import Field, TableSchema, arrow_type, render_type
from extractor.store import Store
from extractor.write import open_parquet

__all__ = (
    "Subject",
    "check_names",
    "check_schema",
    "dangling",
    "fallen",
    "nulls_and_ages",
    "target_of",
)

_BATCH_ROWS = 65_536
_VALUES_HELD = 250_000
"""So many distinct values are looked up at once: for each share of so many the other table is read."""
_EXAMPLES = 3


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """The rows that are judged: the staged files of one table, and the files that stand already.

    `paths` and `standing` are places in the store; `standing` is asked for only where new rows alone do not tell,
    the likeliest first. `columns` maps each key of the answer to the column that holds it now.
    """

    table: str
    paths: tuple[str, ...]
    columns: Mapping[str, str]
    standing: Callable[[str, datetime], Iterable[str]] = lambda _column, _after: ()


# --- before the first request -------------------------------------------------------------------------------


def check_names(config: Config, endpoints: Mapping[str, Endpoint]) -> None:
    """Return if every table that a check refers to is in the catalogue.

    Raises:
        ConfigError: one line with the nearest name.
    """
    for table, checks in config.table_checks.items():
        for column, target in checks.references.items():
            other = target_of(target)[0]
            if other not in endpoints:
                near = nearest_name(other, set(endpoints), "")
                raise ConfigError(f"checks.{table}.references.{column}: no table {other}{near}")


def check_schema(config: Config, schemas: Mapping[str, Sequence[TableSchema]]) -> None:
    """Return if every column that the checks name is there and can be judged, as far as that is known.

    `schemas` has one schema of each account for a table; of a table that is not in it nothing is known.

    Raises:
        ConfigError: one line with the nearest name.
    """
    for table, checks in config.table_checks.items():
        for kind in ("max_nulls", "max_age", "references"):
            for column in getattr(checks, kind):
                _check_column(f"checks.{table}.{kind}.{column}", column, schemas.get(table, ()), kind)
        for column, target in checks.references.items():
            other, wanted = target_of(target)
            _check_column(
                f"checks.{table}.references.{column}", wanted, schemas.get(other, ()), "references", other
            )


def _check_column(
    where: str, column: str, schemas: Sequence[TableSchema], kind: str, table: str = ""
) -> None:
    if not schemas or not all(schema.is_pinned for schema in schemas):
        return  # the first rows will tell
    fields = {field.source: field for schema in schemas for field in schema.live}
    found = fields.get(column)
    if found is None:
        of = f"table {table or schemas[0].table}"
        raise ConfigError(f"{where}: {of} has no column {column}{nearest_name(column, set(fields), '')}")
    if kind == "max_age" and not pa.types.is_timestamp(arrow_type(found.type)):
        raise ConfigError(
            f"{where}: the column is {render_type(found.type)}, and no time; {_hint(schemas, found)}"
        )
    if kind == "references" and pa.types.is_nested(arrow_type(found.type)):
        raise ConfigError(f"{where}: column {column} is {render_type(found.type)}, which cannot be looked up")


def _hint(schemas: Sequence[TableSchema], found: Field) -> str:
    return f'give it a type in the catalogue: [{schemas[0].table}.columns] {found.source} = "timestamp"'


def target_of(target: str) -> tuple[str, str]:
    """Table and column of `table.column`."""
    table, _, column = target.partition(".")
    return table, column


# --- rows ---------------------------------------------------------------------------------------------------


def fallen(checks: Checks, before: int, now: int, *, what: str = "") -> Iterator[str]:
    """The reason if too many of the rows are gone."""
    lost = 1 - now / before if before else 0.0
    if before >= max(1, checks.min_rows) and lost > 0 and lost >= checks.max_drop:
        yield f"{before} rows{what} fell to {now} (checks.max_drop = {checks.max_drop:g})"


# --- columns ------------------------------------------------------------------------------------------------


def nulls_and_ages(store: Store, subject: Subject, checks: Checks, moment: datetime) -> Iterator[str]:
    """The reasons of columns with too few values, or none that is fresh; `moment` is the server's time."""
    for source, most in checks.max_nulls.items():
        rows, nulls = _count_nulls(store, subject.paths, subject.columns.get(source, source))
        if rows and nulls / rows > most:
            yield (
                f"{nulls} of {rows} rows ({nulls / rows:.1%}) have no {source} "
                f"(checks.{subject.table}.max_nulls.{source} = {most:g})"
            )
    for source, age in checks.max_age.items():
        oldest = moment - timedelta(seconds=parse_duration(age))
        column = subject.columns.get(source, source)
        newest = _newest(store, subject.paths, column)
        if newest is None or newest < oldest:
            newest = _newest(store, subject.standing(source, oldest), column, enough=oldest, start=newest)
        if newest is None or newest < oldest:
            told = (
                f"the newest {source} is {newest:%Y-%m-%dT%H:%M:%SZ}"
                if newest
                else f"no row has a time in {source}"
            )
            yield f"{told} (checks.{subject.table}.max_age.{source} = {age})"


def _count_nulls(store: Store, paths: Iterable[str], column: str) -> tuple[int, int]:
    """Rows, and how many of them have no value."""
    rows = nulls = 0
    for path in paths:
        with open_parquet(store, path) as file:
            rows += file.metadata.num_rows
            if column not in file.schema_arrow.names:
                nulls += file.metadata.num_rows
                continue
            counted = _counted_nulls(file.metadata, column)
            nulls += (
                sum(batch.column(0).null_count for batch in _batches(file, column))
                if counted is None
                else counted
            )
    return rows, nulls


def _counted_nulls(metadata: pq.FileMetaData, column: str) -> int | None:
    """The nulls of a plain column as the end of the file counts them; None where it does not."""
    index = next(
        (number for number in range(metadata.num_columns) if metadata.schema.column(number).path == column),
        None,
    )
    if index is None:
        return None  # it consists of several: a null of a part is none of the whole
    total = 0
    for number in range(metadata.num_row_groups):
        statistics = metadata.row_group(number).column(index).statistics
        if statistics is None or not statistics.has_null_count:
            return None
        total += statistics.null_count
    return total


def _newest(
    store: Store,
    paths: Iterable[str],
    column: str,
    *,
    enough: datetime | None = None,
    start: datetime | None = None,
) -> datetime | None:
    """The newest time of a column, `start` where none is newer; ends early at one that is `enough`."""
    newest = start
    for path in paths:
        with open_parquet(store, path) as file:
            if column not in file.schema_arrow.names:
                continue
            for batch in _batches(file, column):
                found = pc.max(batch.column(0)).as_py()
                if not isinstance(found, datetime):
                    continue
                # Where the API gives no zone, UTC is as good as any: ages are in hours.
                found = found if found.tzinfo else found.replace(tzinfo=UTC)
                newest = found if newest is None or found > newest else newest
        if enough is not None and newest is not None and newest >= enough:
            break
    return newest


def _batches(file: pq.ParquetFile, column: str) -> Iterator[pa.RecordBatch]:
    return file.iter_batches(batch_size=_BATCH_ROWS, columns=[column], use_threads=False)  # type: ignore[no-any-return]  # untyped


# --- references ---------------------------------------------------------------------------------------------


def dangling(
    store: Store,
    paths: Sequence[str],
    column: str,
    targets: Sequence[str],
    target: str,
    *,
    values_held: int = _VALUES_HELD,
) -> tuple[int, tuple[str, ...]]:
    """How many distinct values of a column do not stand in the target column, and some of them.

    Nulls refer to nothing. Of so many values at once, and a batch, the memory is; a value that is met again after
    them counts again.
    """
    missing, examples = 0, list[str]()
    for values in _distinct(store, paths, column, values_held):
        left = _without(store, values, targets, target)
        missing += len(left)
        examples += left.slice(0, _EXAMPLES - len(examples)).to_pylist() if len(examples) < _EXAMPLES else []
    return missing, tuple(examples)


def _distinct(store: Store, paths: Sequence[str], column: str, values_held: int) -> Iterator[pa.Array]:
    """The values of a column, each once in a share; as text, whatever their type."""
    held = pa.array([], pa.string())
    for values in _texts(store, paths, column):
        held = pc.unique(pa.concat_arrays([held, pc.unique(values)])).drop_null()
        if len(held) >= values_held:
            yield held
            held = held.slice(0, 0)
    if len(held):
        yield held


def _without(store: Store, values: pa.Array, paths: Sequence[str], column: str) -> pa.Array:
    for found in _texts(store, paths, column):
        if not len(values):
            break
        values = values.filter(pc.invert(pc.is_in(values, value_set=pc.unique(found))))
    return values


def _texts(store: Store, paths: Sequence[str], column: str) -> Iterator[pa.Array]:
    for path in paths:
        with open_parquet(store, path) as file:
            if column in file.schema_arrow.names:
                for batch in _batches(file, column):
                    yield batch.column(0).cast(pa.string())
