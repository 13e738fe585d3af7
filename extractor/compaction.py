"""Small files of a partition, merged into one or into files of the target size; append tables sorted on the way.

The files are written beside whatever goes on. The table is held only to commit and publish: what a run added
meanwhile stays as it is. The rows are summed before and after, and nothing is committed if they differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from extractor.batch import ROWS_MAX
from extractor.catalog import load_catalog
from extractor.commitlog import LogEntry, TableState
from extractor.config import Config
from extractor.endpoint import Endpoint
from extractor.errors import ConfigError, LakeError
from extractor.lake import is_event_file
from extractor.lease import TableKey
from extractor.mergesort import ROWS_HELD, read_tables, sorted_groups
from extractor.rowsum import RowSum, sum_rows
from extractor.store import staged_path
from extractor.upkeep import (
    Change,
    Sound,
    Upkeep,
    UpkeepReport,
    chosen_tables,
    column_order,
    sum_files,
    union_schema,
)
from extractor.write import DataFile, OpenFile, open_file

__all__ = ("Merge", "compact", "plan_merges")

_SMALL = 0.75
"""A file of this share of the target size is large enough to be left alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Merge:
    """Files of one partition that are to become fewer."""

    folder: str
    partition: tuple[tuple[str, str], ...]
    sources: tuple[DataFile, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Merged:
    sources: tuple[DataFile, ...]
    files: tuple[DataFile, ...]


def compact(
    config: Config,
    tables: Sequence[str] = (),
    *,
    target_mb: float | None = None,
    upkeep: Upkeep | None = None,
    rows_held: int = ROWS_HELD,
) -> UpkeepReport:
    """Merge the small files of the current state, of all tables or those that match; safe beside runs and readers.

    Raises: ConfigError for a table that is not there; LakeError if the lake cannot be read or written.
    """
    target_bytes = int((target_mb if target_mb is not None else config.parquet.target_file_mb) * (1 << 20))
    if target_bytes <= 0:
        raise ConfigError("--target-mb must be above 0")
    up = upkeep or Upkeep(config, "compact")
    entry = up.lake.entry()
    endpoints = _endpoints(config)
    chosen = chosen_tables(entry, tables, up.store.uri)
    with up.at_work():
        for key in chosen:
            if entry.tables[key].files < 2:
                continue
            state = up.log.state_of(entry, *key)
            merges = plan_merges(state, target_bytes)
            if merges:
                writer = _Merger(up, entry, state, endpoints.get(key[0]), target_bytes, rows_held)
                _commit(up, key, [writer.merge(merge) for merge in merges])
    return up.report()


def plan_merges(state: TableState, target_bytes: int) -> list[Merge]:
    """Which files of a table belong together: the small ones of a partition, if there are several."""
    folders: dict[str, list[DataFile]] = {}
    for file in state.files:
        if file.size_bytes < _SMALL * target_bytes and not (file.is_apart and is_event_file(file)):
            folders.setdefault(file.path.rpartition("/")[0], []).append(file)
    return [
        Merge(folder=folder, partition=files[0].partition, sources=tuple(files))
        for folder, files in folders.items()
        if len(files) > 1
    ]


def _endpoints(config: Config) -> Mapping[str, Endpoint]:
    folders = [Path(folder) for folder in config.source.catalogs]
    return load_catalog(folders, builtin=config.source.builtin).endpoints


class _Merger:
    """Writes the merged files of one table into staging."""

    def __init__(
        self,
        up: Upkeep,
        entry: LogEntry,
        state: TableState,
        endpoint: Endpoint | None,
        target_bytes: int,
        rows_held: int,
    ) -> None:
        self._up = up
        self._order = column_order(state)
        self._entry = entry
        self._endpoint = endpoint
        self._is_sorted = endpoint is not None and endpoint.sync.kind == "append"
        self._target_bytes = target_bytes
        self._rows_held = rows_held
        self._before = RowSum()

    def merge(self, merge: Merge) -> _Merged:
        """The new files of one partition, staged, with the very rows of the old ones."""
        store = self._up.store
        located = {self._up.lake.locate(file.path, self._entry): file for file in merge.sources}
        sound = Sound(store, located)
        schema = self._schema(sound, located)
        self._before = RowSum()
        files: list[DataFile] = []
        opened: OpenFile | None = None
        try:
            for group in self._groups(sound, list(located), schema, merge.folder):
                if opened is None:
                    opened = self._open(merge, len(files), group)
                opened.write(group)
                if opened.size_bytes >= self._target_bytes:
                    files.append(opened.close())
                    opened = None
            if opened is None and not files:
                opened = self._open(merge, 0, schema.empty_table())
            if opened is not None:
                files.append(opened.close())
        except BaseException:
            if opened is not None:
                opened.abort()
            raise
        staged = [staged_path(self._up.run_id, file.path) for file in files]
        after = sum_files(store, staged, schema, rows_max=self._rows_held)
        if after != self._before or after.rows != sum(file.rows for file in merge.sources):
            raise LakeError(
                f"merging {merge.folder} of lake {store.uri} would change its rows "
                f"({self._before.rows} before, {after.rows} after, or other values); "
                "nothing was committed: run `skysql-extract verify`, and report this if it finds nothing"
            )
        return _Merged(sources=merge.sources, files=tuple(files))

    def _schema(self, sound: Sound, places: Iterable[str]) -> pa.Schema:
        try:
            return union_schema(self._up.store, places, self._order)
        except (OSError, pa.ArrowException):
            for place in places:
                sound.open_input(place).close()
            raise

    def _groups(
        self, sound: Sound, places: Sequence[str], schema: pa.Schema, folder: str
    ) -> Iterator[pa.Table]:
        store = self._up.store
        rows_max = self._rows_held if self._is_sorted else ROWS_MAX
        tables = self._counted(read_tables(sound, places, schema, rows_max=rows_max))
        if self._is_sorted:
            assert self._endpoint is not None
            scratch = staged_path(self._up.run_id, f"sorting/{folder}")
            yield from sorted_groups(store, tables, self._endpoint, scratch=scratch, rows_max=rows_max)
        else:
            for table in tables:
                yield table.cast(schema)

    def _counted(self, tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
        for table in tables:
            self._before += sum_rows(table)
            yield table

    def _open(self, merge: Merge, number: int, first: pa.Table) -> OpenFile:
        return open_file(
            self._up.store,
            self._up.run_id,
            f"{merge.folder}/{self._up.run_id}-{number:05d}.parquet",
            merge.partition,
            first,
            compression=self._up.config.parquet.compression,
            is_compacted=self._is_sorted,
        )


def _commit(up: Upkeep, key: TableKey, merged: Sequence[_Merged]) -> None:
    with up.held(key) as leases:
        entry = up.lake.entry()
        state = up.log.state_of(entry, *key)
        current = {file.path for file in state.files}
        # Another may have merged or removed some of them meanwhile.
        sound = [one for one in merged if current.issuperset(file.path for file in one.sources)]
        if not sound:
            return
        replaced = {file.path: [new.path for new in one.files] for one in sound for file in one.sources}
        new = [file for one in sound for file in one.files]
        old = [file for one in sound for file in one.sources]
        kept = [file for file in state.files if file.path not in replaced]
        files = tuple(sorted([*kept, *new], key=lambda file: file.path))
        change = Change.of_files(key, old, new)
        up.commit(leases, change, replace(state, files=files), entry.tables[key], replaced=replaced)
