"""A person's rows, removed from every snapshot: each file that holds some is written anew without them.

Nothing of it waits for a grace period: the old files go at once, and so do copies that are kept for readers.
The log says from which table, by which columns and how many rows were erased; not whose.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from extractor.batch import ROWS_MAX
from extractor.commit import LogEntry, TableKey, TableState, staged_path
from extractor.config import Config
from extractor.errors import ConfigError, LakeError
from extractor.mergesort import ROWS_HELD
from extractor.past import live_files
from extractor.rowsum import RowSum, sum_rows
from extractor.upkeep import Change, Upkeep, UpkeepReport, chosen_tables, sum_files
from extractor.write import DataFile, OpenFile, open_file

__all__ = ("erase",)

_OLD = "_extractor/old"


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
        if not eraser.columns.issuperset(where):
            missing = sorted(set(where) - eraser.columns)[0]
            raise ConfigError(f"--where {missing}: table {table} has no such column")
    return up.report(is_dry_run=is_dry_run)


class _Eraser:
    def __init__(self, up: Upkeep, where: Mapping[str, str]) -> None:
        self._up = up
        self._where = where
        self._count = 0
        self.columns: set[str] = set()
        """Those of the wanted columns that were found in a file."""

    def erase(self, key: TableKey, entry: LogEntry, *, is_dry_run: bool) -> None:
        up = self._up
        seen = live_files(up.log, entry, key)
        if is_dry_run:
            hits = {file.path: rows for file in seen.values() if (rows := self._rows(file, entry))}
            if hits:
                change = Change.of_files(key, [seen[path] for path in hits], rows=sum(hits.values()))
                up.foresee(change, hits)
            return
        rewritten = self._rewrite(seen.values(), entry)
        with up.held(key) as leases:
            newest = up.lake.entry()
            files = live_files(up.log, newest, key)
            # What was merged or dropped meanwhile is another file now, or none.
            rewritten = [one for one in rewritten if one.old.path in files]
            rewritten += self._rewrite((file for path, file in files.items() if path not in seen), newest)
            if rewritten:
                change = Change.of_files(
                    key,
                    [one.old for one in rewritten],
                    [one.new for one in rewritten],
                    rows=sum(one.old.rows - one.new.rows for one in rewritten),
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

    def _purge_old(self, key: TableKey) -> None:
        """Remove what is kept for readers of older entries, where it holds such rows."""
        store = self._up.store
        start = f"{_OLD}/{key[0]}/"
        places = [stored.path for stored in store.list(start) if stored.path.endswith(".parquet")]
        store.delete_files([place for place in places if any(map(_any, self._masks(place)))])

    def _rows(self, file: DataFile, entry: LogEntry) -> int:
        place = self._up.lake.locate(file.path, entry)
        return sum(pc.sum(mask).as_py() or 0 for mask in self._masks(place))

    def _rewrite(self, files: Iterable[DataFile], entry: LogEntry) -> list[_Rewritten]:
        return [
            self._rewrite_one(file, self._up.lake.locate(file.path, entry))
            for file in files
            if file.rows and self._rows(file, entry)
        ]

    def _rewrite_one(self, file: DataFile, place: str) -> _Rewritten:
        up = self._up
        path = f"{file.path.rpartition('/')[0]}/{up.run_id}-{self._count:05d}.parquet"
        self._count += 1
        before = RowSum()
        opened: OpenFile | None = None
        with up.store.open_input(place) as stream:
            source = pq.ParquetFile(pa.PythonFile(stream, mode="r"))
            schema = source.schema_arrow.remove_metadata()
            metadata = source.metadata
            is_compacted = any(
                metadata.row_group(number).num_rows > ROWS_MAX for number in range(metadata.num_row_groups)
            )
            for number in range(source.num_row_groups):
                group = source.read_row_group(number, use_threads=False).replace_schema_metadata()
                kept = group.filter(pc.invert(self._mask(group)))
                before += sum_rows(kept)
                if kept.num_rows:
                    opened = opened or self._open(file, path, kept, is_compacted=is_compacted)
                    opened.write(kept)
        opened = opened or self._open(file, path, schema.empty_table(), is_compacted=False)
        new = opened.close()
        after = sum_files(up.store, [staged_path(up.run_id, path)], schema, rows_max=ROWS_HELD)
        if after != before:
            raise LakeError(
                f"rewriting {file.path} of lake {up.store.uri} would change other rows; nothing was committed: "
                "run `skysql-extract verify`, and report this if it finds nothing"
            )
        return _Rewritten(old=file, new=new)

    def _open(self, file: DataFile, path: str, first: pa.Table, *, is_compacted: bool) -> OpenFile:
        return open_file(
            self._up.store,
            self._up.run_id,
            path,
            file.partition,
            first,
            compression=self._up.config.parquet.compression,
            is_compacted=is_compacted,
        )

    def _masks(self, place: str) -> Iterator[pa.ChunkedArray]:
        """For each row group of a file, which of its rows are to go; only the columns asked for are read."""
        with self._up.store.open_input(place) as stream:
            source = pq.ParquetFile(pa.PythonFile(stream, mode="r"))
            names = [name for column in self._where for name in _versions(column, source.schema_arrow.names)]
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
        """The rows that have the value in the column, in whichever of its versions."""
        versions = _versions(column, rows.schema.names)
        found: pa.Array | pa.ChunkedArray = pa.repeat(pa.scalar(False), rows.num_rows)
        if not versions:
            return found
        self.columns.add(column)
        values = [_scalar(text, rows.schema.field(name).type) for name in versions]
        if not any(value is not None for value in values):
            raise ConfigError(f"--where {column}={text}: no value of {rows.schema.field(versions[0]).type}")
        for name, value in zip(versions, values, strict=True):
            if value is not None:
                found = pc.or_(found, pc.fill_null(pc.equal(rows[name], value), False))
        return found


def _without(state: TableState, rewritten: Sequence[_Rewritten]) -> TableState:
    """The state with the new files; what it said of the rows as a whole is no longer known."""
    new = {one.old.path: one.new for one in rewritten}
    files = sorted((new.get(file.path, file) for file in state.files), key=lambda file: file.path)
    if not any(file.path in new for file in state.files):
        return state
    return replace(state, files=tuple(files), rows=sum(file.rows for file in files), content="")


def _versions(column: str, names: Sequence[str]) -> list[str]:
    return [name for name in names if name == column or name.startswith(f"{column}__v")]


def _scalar(text: str, type_: pa.DataType) -> pa.Scalar | None:
    try:
        return pa.scalar(text).cast(type_)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None


def _any(mask: pa.ChunkedArray) -> bool:
    return bool(pc.any(mask).as_py())
