"""A person's rows, removed from every snapshot: each file that holds some is written anew without them.

A value counts wherever it landed: in any version of its column, or in the rescued data. Nothing of it waits for a
grace period: the old files go at once, and so do copies that are kept for readers or that a repair put aside. The
log says from which table, by which columns and how many rows were erased; not whose.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import IO

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from extractor.batch import ROWS_MAX
from extractor.commit import old_path
from extractor.commitlog import LogEntry, TableState
from extractor.config import Config
from extractor.endpoint import Scalar
from extractor.errors import ConfigError, LakeError
from extractor.lease import TableKey
from extractor.mergesort import ROWS_HELD
from extractor.past import live_files
from extractor.places import ASIDE
from extractor.rowsum import RowSum, sum_rows
from extractor.schema import RESCUED, fit, source_name
from extractor.store import StoreMissing, staged_path
from extractor.upkeep import Change, Sound, Upkeep, UpkeepReport, chosen_tables, sum_files
from extractor.write import DataFile, OpenFile, open_file

__all__ = ("erase",)

_UNREADABLE = (OSError, pa.ArrowException)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rewritten:
    old: DataFile
    new: DataFile


def erase(
    config: Config,
    table: str,
    where: Mapping[str, str],
    *,
    is_dry_run: bool = False,
    upkeep: Upkeep | None = None,
) -> UpkeepReport:
    """Remove the rows of a table whose columns all have these values, from every snapshot and every account.

    Values are given as text. Readers that hold an older entry find the old files gone.

    Raises: ConfigError for a table or column that is not there, or a value that cannot be one of the column;
    LakeError as any writing verb.
    """
    if not where:
        raise ConfigError("--rows needs --where COLUMN=VALUE")
    up = upkeep or Upkeep(config, "expire")
    entry = up.lake.entry()
    keys = [key for key in chosen_tables(entry, [table], up.store.uri) if key[0] == table]
    if not keys:
        raise ConfigError(f"--rows {table}: give the name of one table")
    eraser = _Eraser(up, where)
    with up.at_work(is_dry_run=is_dry_run):
        for key in keys:
            eraser.erase(key, entry, is_dry_run=is_dry_run)
        eraser.check_columns(table)
    return up.report(is_dry_run=is_dry_run)


class _Eraser:
    def __init__(self, up: Upkeep, where: Mapping[str, str]) -> None:
        self._up = up
        self._where = where
        self._count = 0
        self._answered: set[str] = set()
        """Those of the wanted columns in which some file could have the value."""
        self._refused: dict[str, pa.DataType] = {}
        """The types of columns that were found and cannot have it."""
        self._aside_told: set[str] = set()

    def check_columns(self, table: str) -> None:
        """Return if each condition could be met somewhere. Raises: ConfigError; nothing was erased then."""
        for column in sorted(self._where.keys() - self._answered):
            if column in self._refused:
                raise ConfigError(
                    f"--where {column}={self._where[column]}: no value of {self._refused[column]}"
                )
            raise ConfigError(f"--where {column}: table {table} has no such column")

    def erase(self, key: TableKey, entry: LogEntry, *, is_dry_run: bool) -> None:
        up = self._up
        seen = live_files(up.log, entry, key)
        if is_dry_run:
            hits = {file.path: rows for file in seen.values() if (rows := self._rows(file, entry))}
            aside = self._aside(key)
            if hits or aside:
                old = [seen[path] for path in hits]
                change = Change.of_files(key, old, rows=sum(hits.values()), aside=len(aside))
                up.foresee(change, [*hits, *aside])
            return
        rewritten = self._rewrite(seen.values(), entry)
        with up.held(key) as leases:
            newest = up.lake.entry()
            files = live_files(up.log, newest, key)
            # What was merged or dropped meanwhile is another file now, or none.
            rewritten = [one for one in rewritten if one.old.path in files]
            rewritten += self._rewrite((file for path, file in files.items() if path not in seen), newest)
            aside = self._aside(key)
            if rewritten or aside:
                change = Change.of_files(
                    key,
                    [one.old for one in rewritten],
                    [one.new for one in rewritten],
                    rows=sum(one.old.rows - one.new.rows for one in rewritten),
                    aside=len(aside),
                )
                up.commit(
                    leases,
                    change,
                    _without(up.log.state_of(newest, *key), rewritten),
                    newest.tables[key],
                    replaced={one.old.path: [one.new.path] for one in rewritten},
                    rewritten=[one.new for one in rewritten],
                    grace_seconds=0,
                    erased={"table": key[0], "columns": sorted(self._where)},
                )
            self._purge_old(key)
            for place in aside:
                self._purge_aside(place)
            up.paths.extend(aside)

    def _purge_old(self, key: TableKey) -> None:
        """Remove what is kept for readers of older entries, where it holds such rows."""
        store = self._up.store
        store.delete_files([place for place in self._copies(old_path(key[0])) if self._holds(place)])

    def _aside(self, key: TableKey) -> list[str]:
        """What a repair took out of the table, where it holds such rows; each is given once."""
        found = [
            place
            for place in self._copies(ASIDE)
            if place.removeprefix(f"{ASIDE}/").split("/")[1] == key[0]
            and place not in self._aside_told
            and self._holds(place)
        ]
        self._aside_told.update(found)
        return found

    def _purge_aside(self, place: str) -> None:
        """Write the copy anew without such rows; what cannot be read goes whole."""
        store = self._up.store

        def start(first: pa.Table, is_compacted: bool) -> OpenFile:
            compression = self._up.config.parquet.compression
            return OpenFile(store.open_output(place), place, (), first, compression, is_compacted)

        try:
            with store.open_input(place) as stream:
                self._copy_kept(stream, start)
        except _UNREADABLE:
            store.delete(place)

    def _copies(self, folder: str) -> list[str]:
        return [stored.path for stored in self._up.store.list(folder) if stored.path.endswith(".parquet")]

    def _holds(self, place: str) -> bool:
        """True where a copy holds such rows, or cannot be read, so that nobody can tell."""
        with suppress(StoreMissing), self._up.store.open_input(place) as stream:
            try:
                return any(map(_any, self._masks(stream)))
            except _UNREADABLE:
                return True
        return False

    def _open(self, file: DataFile, entry: LogEntry) -> IO[bytes]:
        place = self._up.lake.locate(file.path, entry)
        return Sound(self._up.store, {place: file}).open_input(place)

    def _rows(self, file: DataFile, entry: LogEntry) -> int:
        with self._open(file, entry) as stream:
            return self._count_rows(stream)

    def _count_rows(self, stream: IO[bytes]) -> int:
        return sum(pc.sum(mask).as_py() or 0 for mask in self._masks(stream))

    def _rewrite(self, files: Iterable[DataFile], entry: LogEntry) -> list[_Rewritten]:
        found = (self._rewrite_one(file, entry) for file in files)
        return [one for one in found if one is not None]

    def _rewrite_one(self, file: DataFile, entry: LogEntry) -> _Rewritten | None:
        """The file without such rows, staged; None if it holds none."""
        up = self._up
        path = f"{file.path.rpartition('/')[0]}/{up.run_id}-{self._count:05d}.parquet"

        def start(first: pa.Table, is_compacted: bool) -> OpenFile:
            compression = up.config.parquet.compression
            return open_file(
                up.store,
                up.run_id,
                path,
                file.partition,
                first,
                compression=compression,
                is_compacted=is_compacted,
            )

        with self._open(file, entry) as stream:
            if not self._count_rows(stream):
                return None
            stream.seek(0)
            self._count += 1
            new, schema, before = self._copy_kept(stream, start)
        after = sum_files(up.store, [staged_path(up.run_id, path)], schema, rows_max=ROWS_HELD)
        if after != before:
            raise LakeError(
                f"rewriting {file.path} of lake {up.store.uri} would change other rows; nothing was committed: "
                "run `skysql-extract verify`, and report this if it finds nothing"
            )
        return _Rewritten(old=file, new=msgspec.structs.replace(new, is_apart=file.is_apart))

    def _copy_kept(
        self, stream: IO[bytes], start: Callable[[pa.Table, bool], OpenFile]
    ) -> tuple[DataFile, pa.Schema, RowSum]:
        """Write the rows that stay to the file that `start` begins; with their schema and sum."""
        before = RowSum()
        opened: OpenFile | None = None
        source = pq.ParquetFile(pa.PythonFile(stream, mode="r"))
        schema = source.schema_arrow.remove_metadata()
        metadata = source.metadata
        is_compacted = any(
            metadata.row_group(number).num_rows > ROWS_MAX for number in range(metadata.num_row_groups)
        )
        try:
            for number in range(source.num_row_groups):
                group = source.read_row_group(number, use_threads=False).replace_schema_metadata()
                kept = group.filter(pc.invert(self._mask(group)))
                before += sum_rows(kept)
                if kept.num_rows:
                    opened = opened or start(kept, is_compacted)
                    opened.write(kept)
            opened = opened or start(schema.empty_table(), False)
            return opened.close(), schema, before
        except BaseException:
            if opened is not None:
                opened.abort()
            raise

    def _masks(self, stream: IO[bytes]) -> Iterator[pa.ChunkedArray]:
        """For each row group of a file, which of its rows are to go; only the columns asked for are read."""
        source = pq.ParquetFile(pa.PythonFile(stream, mode="r"))
        present = source.schema_arrow.names
        names = [name for column in self._where for name in _versions(column, present)]
        names += [RESCUED] if RESCUED in present else []
        if not names:
            return
        for number in range(source.num_row_groups):
            yield self._mask(source.read_row_group(number, columns=names, use_threads=False))
        if not source.num_row_groups:
            self._mask(source.schema_arrow.empty_table())

    def _mask(self, rows: pa.Table) -> pa.ChunkedArray:
        mask: pa.Array | pa.ChunkedArray = pa.repeat(pa.scalar(True), rows.num_rows)
        for column, text in self._where.items():
            mask = pc.and_(mask, self._matches(rows, column, text))
        return mask

    def _matches(self, rows: pa.Table, column: str, text: str) -> pa.Array | pa.ChunkedArray:
        """The rows that have the value in the column, in whichever of its versions, or rescued under its key."""
        found: pa.Array | pa.ChunkedArray = pa.repeat(pa.scalar(False), rows.num_rows)
        for name in _versions(column, rows.schema.names):
            value = _scalar(text, rows.schema.field(name).type)
            if value is None:
                self._refused.setdefault(column, rows.schema.field(name).type)
                continue
            self._answered.add(column)
            found = pc.or_(found, pc.fill_null(pc.equal(rows[name], value), False))
        if RESCUED in rows.schema.names:
            found = pc.or_(found, self._rescued_matches(rows[RESCUED], column, text))
        return found

    def _rescued_matches(self, rescued: pa.ChunkedArray, column: str, text: str) -> pa.Array:
        if rescued.null_count == len(rescued):
            return pa.repeat(pa.scalar(False), len(rescued))
        key, wanted = source_name(column), _read_json(text)
        matches: list[bool] = []
        for left in rescued.to_pylist():
            values = _read_json(left) if isinstance(left, str) else None
            value = values.get(key) if isinstance(values, dict) else None
            if value is not None:
                self._answered.add(column)
            # As text, or as the number that it is however it is written.
            matches.append(
                value is not None and (value == text or (type(value) is type(wanted) and value == wanted))
            )
        return pa.array(matches, pa.bool_())


def _without(state: TableState, rewritten: Sequence[_Rewritten]) -> TableState:
    """The state with the new files; what it said of the rows as a whole is no longer known."""
    new = {one.old.path: one.new for one in rewritten}
    files = sorted((new.get(file.path, file) for file in state.files), key=lambda file: file.path)
    if not any(file.path in new for file in state.files):
        return state
    return replace(state, files=tuple(files), rows=sum(file.rows for file in files), content="")


def _versions(column: str, names: Sequence[str]) -> list[str]:
    return [name for name in names if column in (name, source_name(name))]


def _scalar(text: str, type_: pa.DataType) -> pa.Scalar | None:
    try:
        if pa.types.is_decimal(
            type_
        ):  # Arrow's own cast may fail on an exponent, and take the process with it
            number, _ = fit(text, Scalar("decimal"))
            return None if number is None else pa.scalar(number, type_)
        return pa.scalar(text).cast(type_)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None


def _read_json(text: str) -> object:
    """The value with every digit of its numbers; None for what is no JSON."""
    try:
        return json.loads(text, parse_int=Decimal, parse_float=Decimal)
    except (ValueError, RecursionError):
        return None


def _any(mask: pa.ChunkedArray) -> bool:
    return bool(pc.any(mask).as_py())
