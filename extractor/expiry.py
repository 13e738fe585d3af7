"""Old snapshots, dropped: by a commit first, their files after a grace period. The current state never goes.

Event tables are one state that grows. Their old days go only where the table is named and an age is given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from extractor.batch import NULL_PARTITION
from extractor.catalog import load_catalog
from extractor.commitlog import LogEntry, TableState
from extractor.config import Config, parse_duration
from extractor.errors import ConfigError
from extractor.lease import TableKey
from extractor.past import Snapshot, snapshots
from extractor.upkeep import Change, Sound, Upkeep, UpkeepReport, chosen_tables
from extractor.write import DataFile, open_file

__all__ = ("expire",)


def expire(
    config: Config,
    tables: Sequence[str] = (),
    *,
    keep_last: int | None = None,
    older_than: str | None = None,
    is_dry_run: bool = False,
    upkeep: Upkeep | None = None,
) -> UpkeepReport:
    """Drop all but the newest `keep_last` snapshots of each table, or those that were replaced longer ago than
    `older_than` (as `90d`); of tables that match, or of all.

    With `older_than`, event tables that are named outright lose the days before that too.

    Raises: ConfigError for a table that is not there, or an impossible age; LakeError as any writing verb.
    """
    if (keep_last is None) == (older_than is None):
        raise ConfigError("expire needs either --keep-last N or --older-than AGE, as in --older-than 90d")
    if keep_last is not None and keep_last < 1:
        raise ConfigError("--keep-last must be 1 or more: the current state never goes")
    age = parse_duration(older_than) if older_than is not None else None
    up = upkeep or Upkeep(config, "expire")
    before = None if age is None else up.started_at - timedelta(seconds=age)
    entry = up.lake.entry()
    chosen = chosen_tables(entry, tables, up.store.uri)
    events = {key for key in chosen if key[0] in tables and age is not None and entry.tables[key].is_event}
    if events and age is not None:
        _check_lookback(config, {name for name, _ in events}, age, str(older_than))
    found = snapshots(up.log, entry, [key for key in chosen if key not in events])
    with up.at_work(is_dry_run=is_dry_run):
        for key in chosen:
            dropped = _dropped(found.get(key, []), keep_last, before)
            if key in events and before is not None:
                _drop_days(up, key, before.date(), is_dry_run=is_dry_run)
            elif dropped:
                _drop_snapshots(up, key, dropped, entry, is_dry_run=is_dry_run)
    return up.report(is_dry_run=is_dry_run)


def _dropped(found: Sequence[Snapshot], keep_last: int | None, before: datetime | None) -> list[Snapshot]:
    """Of snapshots, the newest first, those that are to go."""
    kept: dict[str, int] = {}
    dropped: list[Snapshot] = []
    for snapshot in found:
        kept[snapshot.window] = kept.get(snapshot.window, 0) + 1
        if snapshot.ended_at is None:
            continue
        if keep_last is not None and kept[snapshot.window] > keep_last:
            dropped.append(snapshot)
        if before is not None and snapshot.ended_at < before:
            dropped.append(snapshot)
    return dropped


def _drop_snapshots(
    up: Upkeep, key: TableKey, dropped: Sequence[Snapshot], planned: LogEntry, *, is_dry_run: bool
) -> None:
    files = {path: file for snapshot in dropped for path, file in snapshot.files.items()}
    if is_dry_run:
        up.foresee(_change(key, files, len(dropped)), files)
        return
    with up.held(key) as leases:
        entry = up.lake.entry()
        # Of a repaired table an earlier snapshot may be the current one again.
        for file in up.log.state_of(entry, *key).files:
            files.pop(file.path, None)
        for later in up.log.backwards(entry):
            if later.sequence <= planned.sequence:
                break
            # Another one removed or rewrote them meanwhile.
            for path in up.log.replacements(later):
                files.pop(path, None)
        if files:
            up.commit(
                leases,
                _change(key, files, len({path.rpartition("/")[0] for path in files})),
                up.log.state_of(entry, *key),
                entry.tables[key],
                replaced={path: [] for path in sorted(files)},
            )


def _drop_days(up: Upkeep, key: TableKey, first_kept: date, *, is_dry_run: bool) -> None:
    if is_dry_run:
        files = _old_days(up.log.state_of(up.lake.entry(), *key), first_kept)
        if files:
            up.foresee(_change(key, files, 0), files)
        return
    with up.held(key) as leases:
        entry = up.lake.entry()
        state = up.log.state_of(entry, *key)
        files = _old_days(state, first_kept)
        if not files:
            return
        kept = [file for file in state.files if file.path not in files]
        if not kept:
            kept = [_empty(up, state.files[-1])]
        rows = sum(file.rows for file in kept)
        up.commit(
            leases,
            _change(key, files, 0, rows=state.rows - rows),
            replace(state, files=tuple(kept), rows=rows),
            entry.tables[key],
            replaced={path: [] for path in sorted(files)},
        )


def _old_days(state: TableState, first_kept: date) -> dict[str, DataFile]:
    return {
        file.path: file
        for file in state.files
        if (day := dict(file.partition).get("event_date", NULL_PARTITION)) != NULL_PARTITION
        and day < first_kept.isoformat()
    }


def _empty(up: Upkeep, like: DataFile) -> DataFile:
    """A typed file without rows, staged: what stands for an event table that has none."""
    place = up.lake.locate(like.path, up.lake.entry())
    with Sound(up.store, {place: like}).open_input(place) as stream:
        schema = pq.read_schema(pa.PythonFile(stream, mode="r")).remove_metadata()
    account, _ = like.partition
    folder = f"{like.path.rpartition('/')[0].rpartition('/')[0]}/event_date={NULL_PARTITION}"
    opened = open_file(
        up.store,
        up.run_id,
        f"{folder}/{up.run_id}-00000.parquet",
        (account, ("event_date", NULL_PARTITION)),
        schema.empty_table(),
        compression=up.config.parquet.compression,
    )
    return opened.close()


def _change(key: TableKey, files: Mapping[str, DataFile], removed: int, *, rows: int | None = None) -> Change:
    rows = sum(file.rows for file in files.values()) if rows is None else rows
    return Change.of_files(key, files.values(), rows=rows, snapshots=removed)


def _check_lookback(config: Config, names: set[str], age: float, text: str) -> None:
    """Rows that the next run reads again must still be known, or they would come back."""
    folders = [Path(folder) for folder in config.source.catalogs]
    endpoints = load_catalog(folders, builtin=config.source.builtin).endpoints
    for name in sorted(names):
        window = endpoints[name].sync.window if name in endpoints else None
        if window is not None and age < parse_duration(window.lookback) + 86_400:
            raise ConfigError(
                f"--older-than {text}: runs read {name} again for {window.lookback} back, and would bring the rows "
                "back; give an age that is a day above that, at least"
            )
