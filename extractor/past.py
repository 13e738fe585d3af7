"""What of a lake's past still lies in it: every snapshot that the log knows, with the files that hold it now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from extractor.commitlog import CommitLog, LogEntry
from extractor.lake import Successors
from extractor.lease import TableKey
from extractor.write import DataFile

__all__ = ("Snapshot", "live_files", "snapshots")


@dataclass(slots=True, kw_only=True)
class Snapshot:
    """One reading of a table, or of one of its windows: a folder `run=RUN`."""

    folder: str
    window: str
    """Empty for a snapshot of the whole table."""
    ended_at: datetime | None
    """When another one took its place; None while it is current."""
    files: dict[str, DataFile] = field(default_factory=dict)


def snapshots(log: CommitLog, newest: LogEntry, keys: Sequence[TableKey]) -> dict[TableKey, list[Snapshot]]:
    """The snapshots of these tables that are still in the lake, the newest first; event tables have none.

    Files that were rewritten or merged stand there as they are now. Reads the whole log.
    """
    found: dict[TableKey, dict[str, Snapshot]] = {key: {} for key in keys if not newest.tables[key].is_event}
    digests: dict[TableKey, str] = {}
    successors = Successors(log)
    ended_at: datetime | None = None
    for entry in log.backwards(newest):
        for key, known in found.items():
            reference = entry.tables.get(key)
            if reference is None or digests.get(key) == reference.digest:
                continue
            digests[key] = reference.digest
            for file in log.state_of(entry, *key).files:
                for live in successors.files(file):
                    folder = live.path.rpartition("/")[0]
                    if folder not in known:
                        window = dict(live.partition).get("window", "")
                        known[folder] = Snapshot(folder=folder, window=window, ended_at=ended_at)
                    known[folder].files[live.path] = live
        successors.add(entry)
        ended_at = entry.committed_at
    return {key: list(known.values()) for key, known in found.items()}


def live_files(log: CommitLog, newest: LogEntry, key: TableKey) -> dict[str, DataFile]:
    """Every file of a table that is still in the lake: of the current state, and of the snapshots before it."""
    files = {file.path: file for file in log.state_of(newest, *key).files}
    for snapshot in snapshots(log, newest, [key]).get(key, []):
        files |= snapshot.files
    return files
