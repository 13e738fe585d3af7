"""What a statement needs to know of a table: its columns, its partitions, and which of its files are current.

Read from the log, with no look into the data files. Columns are those of all files ever written: a column never
goes away, and its type never changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Literal

import msgspec
import pyarrow as pa

from extractor.batch import Stamp, stamp_schema
from extractor.commitlog import CommitLog, LogEntry, TableState
from extractor.endpoint import Endpoint, parse_type
from extractor.errors import ConfigError, LakeError
from extractor.lake import Lake
from extractor.schema import Field, TableSchema

__all__ = ("Emptied", "Kind", "TableShape", "check_location", "shapes_of", "timestamp_text")

Kind = Literal["snapshot", "window", "events"]

_PARTITIONS: Mapping[Kind, tuple[str, ...]] = {
    "snapshot": ("account", "snapshot_date", "run"),
    "window": ("account", "window", "run"),
    "events": ("account", "event_date"),
}


class Emptied(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """A reading without rows, which no row of the table can tell of."""

    account: str
    window: str
    at: datetime


class TableShape(msgspec.Struct, frozen=True, kw_only=True):
    """One table of a lake after its newest commit."""

    name: str
    kind: Kind
    columns: tuple[tuple[str, pa.DataType], ...]
    """Those of the files, in order."""
    key: tuple[tuple[str, ...], ...]
    """By which rows are told apart: for each part the columns that hold it, one for each type that it had."""
    time: str
    """The column of times by which events are dated; empty if there is none of that type."""
    paths: tuple[str, ...]
    """The current files, relative to the lake."""
    current: tuple[tuple[tuple[str, str], ...], ...]
    """The partitions of the current files, each once."""
    emptied: tuple[Emptied, ...]
    has_files: bool
    """False where no file was ever written, so that there is nothing to read."""

    @property
    def partitions(self) -> tuple[str, ...]:
        """The names in the path, in order."""
        return _PARTITIONS[self.kind]

    @property
    def names(self) -> tuple[str, ...]:
        """All columns: those of the files, then those of the path."""
        return (*(name for name, _ in self.columns), *self.partitions)

    @property
    def content(self) -> tuple[tuple[str, pa.DataType], ...]:
        """The columns that the API gave, without those that each run writes anew."""
        own = ("_run_id", "_extracted_at", "_account", "_snapshot_at", "_event_date")
        return tuple((name, type_) for name, type_ in self.columns if name not in own)

    @property
    def scope(self) -> tuple[str, ...]:
        """What is read as a whole, and again and again: a table of an account, or a window of it."""
        return ("account", "window") if self.kind == "window" else ("account",)


def shapes_of(
    lake: Lake, endpoints: Mapping[str, Endpoint], tables: Sequence[str] = ()
) -> tuple[LogEntry, tuple[TableShape, ...]]:
    """The newest entry, and the shape of each table in it, or of those named.

    Raises:
        ConfigError: an unknown table.
        LakeError: nothing was committed, or a file is not in its place.
    """
    entry = lake.entry()
    for name in tables:
        lake.table(name)  # says which name was probably meant
    wanted = sorted(tables) or sorted({name for name, _ in entry.tables})
    emptied = _emptied(lake.log, entry, frozenset(wanted))
    shapes = []
    for name in wanted:
        states = [
            lake.log.state_of(entry, name, account)
            for table, account in sorted(entry.tables)
            if table == name
        ]
        _check_places(lake, entry, states)
        shapes.append(_shape(lake, name, states, endpoints.get(name), emptied.get(name, ())))
    return entry, tuple(shape for shape in shapes if shape.columns)


def _shape(
    lake: Lake, name: str, states: Sequence[TableState], endpoint: Endpoint | None, emptied: Iterable[Emptied]
) -> TableShape:
    files = sorted((file for state in states for file in state.files), key=lambda file: file.path)
    kind = _kind(states, endpoint)
    columns = tuple(_columns(name, states, is_event=kind == "events"))
    types = dict(columns)
    cursor = endpoint.sync.cursor if endpoint is not None else ""
    return TableShape(
        name=name,
        kind=kind,
        columns=columns,
        key=tuple(_key(states, endpoint)) if endpoint is not None else (),
        time=cursor if types.get(cursor) == pa.timestamp("us", "UTC") else "",
        paths=tuple(file.path for file in files),
        current=tuple(dict.fromkeys(file.partition for file in files)),
        emptied=tuple(sorted(emptied)),
        has_files=bool(files) or any(True for _ in lake.store.list(name)),
    )


def _kind(states: Sequence[TableState], endpoint: Endpoint | None) -> Kind:
    for state in states:
        for file in state.files:
            names = tuple(name for name, _ in file.partition)
            return next(kind for kind, known in _PARTITIONS.items() if known == names)
    if endpoint is not None:
        return "events" if endpoint.sync.is_event else "window" if endpoint.sync.is_replaced else "snapshot"
    return "snapshot" if any(state.sync == "snapshot" for state in states) else "window"


def _columns(name: str, states: Sequence[TableState], *, is_event: bool) -> Iterator[tuple[str, pa.DataType]]:
    """The columns of all accounts, as the files have them: of any order that they differ in, the first counts."""
    fields: dict[str, Field] = {}
    for state in states:
        for column in state.columns:
            found = Field(
                name=str(column["name"]),
                type=parse_type(str(column["type"])),
                source=str(column["source"]),
            )
            known = fields.setdefault(found.name, found)
            if known.type != found.type:
                raise LakeError(
                    f"column {found.name} of table {name} has another type in account {state.account}; "
                    f"give it one in the catalogue: [{name}.columns] {found.source} = …"
                )
    if not fields:
        return
    schema = TableSchema(table=name, fields=tuple(fields.values()))
    stamp = Stamp(run_id="", account="", snapshot_at=datetime.now(UTC), is_event=is_event)
    for field in stamp_schema(schema.arrow, stamp):
        yield field.name, field.type


def _key(states: Sequence[TableState], endpoint: Endpoint) -> Iterator[tuple[str, ...]]:
    columns = [column for state in states for column in state.columns]
    for source in endpoint.key:
        names = dict.fromkeys(str(column["name"]) for column in columns if column["source"] == source)
        yield tuple(names) or (source,)


def _check_places(lake: Lake, entry: LogEntry, states: Sequence[TableState]) -> None:
    """Return if every current file is where readers look for it: what is on its way is in staging."""
    if not entry.publishing:
        return
    for state in states:
        for file in state.files:
            if lake.locate(file.path, entry) != file.path:
                raise LakeError(
                    f"{file.path} is committed, but not yet in its place; the next run publishes it, "
                    "then ask again"
                )


# --- readings without rows ----------------------------------------------------------------------------------


def _emptied(log: CommitLog, newest: LogEntry, tables: frozenset[str]) -> dict[str, list[Emptied]]:
    """By table the readings of which there is no row: an empty snapshot, a window that lost all its rows."""
    found: dict[str, list[Emptied]] = {}
    later = newest
    _add_empty_snapshots(later, tables, found)
    for entry in log.backwards(newest):
        if entry.sequence == newest.sequence:
            continue
        for key, reference in later.tables.items():
            before = entry.tables.get(key)
            if key[0] not in tables or before is None or before.digest == reference.digest:
                continue
            if reference.sync == "window" and before.files:
                found.setdefault(key[0], []).extend(_lost_windows(log, entry, later, key))
        _add_empty_snapshots(entry, tables, found)
        later = entry
    return {name: list(dict.fromkeys(readings)) for name, readings in found.items()}


def _add_empty_snapshots(entry: LogEntry, tables: frozenset[str], found: dict[str, list[Emptied]]) -> None:
    for (table, account), reference in entry.tables.items():
        if table in tables and reference.sync == "snapshot" and not reference.rows and reference.snapshot_at:
            at = datetime.fromisoformat(reference.snapshot_at)
            found.setdefault(table, []).append(Emptied(account=account, window="", at=at))


def _lost_windows(
    log: CommitLog, before: LogEntry, after: LogEntry, key: tuple[str, str]
) -> Iterator[Emptied]:
    def windows(entry: LogEntry) -> set[str]:
        files = log.state_of(entry, *key).files
        return {value for file in files for name, value in file.partition if name == "window"}

    at = after.tables[key].snapshot_at
    for window in sorted(windows(before) - windows(after)) if at else ():
        yield Emptied(account=key[1], window=window, at=datetime.fromisoformat(str(at)))


def timestamp_text(moment: datetime) -> str:
    """`2026-11-22 12:00:00.000000` in UTC: what every engine reads behind `TIMESTAMP`."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}"


def check_location(location: str) -> None:
    """Return if no part of the lake's own path looks like a partition of it.

    Raises:
        ConfigError: one does, and readers would take its value.
    """
    for part in location.replace("\\", "/").split("/"):
        name = part.partition("=")[0]
        if "=" in part and name in {name for names in _PARTITIONS.values() for name in names}:
            raise ConfigError(
                f"the lake's path holds {part}, which readers would take for a partition; give it another name"
            )
