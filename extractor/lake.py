"""The lake for readers: tables as they stand, or stood after a run; nothing here writes.

A reader follows the log, so it sees all tables of one commit or none of them, and finds each file in its
place, in staging where it is not published yet, or in `old/` for its grace period.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from extractor.commitlog import CommitLog, LogEntry, TableState
from extractor.errors import ConfigError, LakeError
from extractor.lease import TableKey
from extractor.places import places
from extractor.store import Store, StoreMissing
from extractor.stores import open_store

if TYPE_CHECKING:
    # Read at run time only where rows are: listing runs must not wait for it.
    import pyarrow as pa
    import pyarrow.parquet as pq

    from extractor.diff import TableDiff
    from extractor.drift import SchemaVersion
    from extractor.history import Changes, History, Series, Snapshot
    from extractor.verify import VerifyReport
    from extractor.write import DataFile

__all__ = ("FileRow", "Lake", "LakeTable", "RunRow", "Successors", "is_event_file")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """One run, as its last entry in the log tells it."""

    run_id: str
    sequence: int
    status: str
    started_at: datetime
    committed_at: datetime
    summary: Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRow:
    """One data file of the state that was asked for; `path` is its place in the lake."""

    path: str
    table: str
    account: str
    rows: int
    size_bytes: int
    sha256: str
    partition: tuple[tuple[str, str], ...]
    where: str = ""
    """As SQL, which of its rows belong to the state; empty if all do. A merged file holds later ones too."""


class Lake:
    """A lake by its address, or by its store."""

    def __init__(self, uri: str | Path | Store) -> None:
        self.store: Store = open_store(uri) if isinstance(uri, (str, Path)) else uri
        self.log = CommitLog(self.store)

    def entry(self, as_of: str | LogEntry | None = None) -> LogEntry:
        """The newest entry, or the last one of a run: its id, a unique beginning of it, or `latest`.

        Every `as_of` may also be an entry: whoever reads several tables of one commit asks for it once.

        Raises: LakeError if nothing was committed yet; ConfigError for an unknown run.
        """
        if isinstance(as_of, LogEntry):
            return as_of
        if as_of is None or as_of == "latest":
            newest = self.log.newest()
            if newest is None:
                raise LakeError(
                    f"nothing was committed to lake {self.store.uri} yet; begin with `skysql-extract run`"
                )
            return newest
        begun: dict[str, LogEntry] = {}
        names: dict[str, None] = {}
        for entry in self.log.backwards():
            if entry.run_id == as_of:
                return entry
            names.setdefault(entry.run_id)
            if as_of and entry.run_id.startswith(as_of):
                begun.setdefault(entry.run_id, entry)
        if len(begun) == 1:
            return next(iter(begun.values()))
        if begun:
            raise ConfigError(f"run {as_of} may be {' or '.join(list(begun)[:3])}; give more of its name")
        raise ConfigError(f"no run {as_of} in lake {self.store.uri}{_nearest(as_of, names)}")

    def runs(self, last: int | None = None) -> list[RunRow]:
        """Every run, or the `last` ones, in the order of their last entries."""
        found: dict[str, RunRow] = {}
        for entry in self.log.backwards():
            if entry.run_id not in found:
                if last is not None and len(found) >= last:
                    break
                found[entry.run_id] = _run_row(entry)
        return list(reversed(found.values()))

    def run(self, name: str) -> RunRow:
        """One run. Arguments and errors as of `entry`."""
        return _run_row(self.entry(name))

    def tables(self, as_of: str | LogEntry | None = None) -> list[str]:
        """The names of the tables that have files, sorted."""
        return _table_names(self.entry(as_of))

    def table(
        self, name: str, *, as_of: str | LogEntry | None = None, account: str | None = None
    ) -> LakeTable:
        """One table, of all accounts unless one is named.

        Raises: ConfigError for an unknown table, account or run; LakeError if the log cannot be read.
        """
        entry = self.entry(as_of)
        return self._table(name, account, entry, self._merges(entry))

    def schema_history(self, name: str, *, account: str | None = None) -> list[SchemaVersion]:
        """How the columns of a table changed from run to run, oldest first, account by account.

        Reads the newest entry only. Errors as of `table`.
        """
        from extractor.drift import versions_of

        states = self.table(name, account=account).states
        return [version for state in states for version in versions_of(state.account, state.state)]

    def files(self, table: str | None = None, as_of: str | LogEntry | None = None) -> list[FileRow]:
        """The data files of the state, by table, account and path. Errors as of `table`."""
        entry = self.entry(as_of)
        merges = self._merges(entry)
        later = self._later_runs(entry) if merges else []
        names = [table] if table is not None else _table_names(entry)
        return [
            FileRow(
                path=file.path,
                table=name,
                account=state.account,
                rows=file.rows,
                size_bytes=file.size_bytes,
                sha256=file.sha256,
                partition=file.partition,
                where=self._where(table, file, later),
            )
            for name in names
            for table in [self._table(name, None, entry, merges)]
            for state in table.states
            for file in state.files
        ]

    def _where(self, table: LakeTable, file: DataFile, later: Sequence[str]) -> str:
        """The condition on rows of a merged file, by the runs that are in or by those that are out: the fewer."""
        if table.committed_runs is None or not is_event_file(file):
            return ""
        is_shorter = len(later) < len(table.committed_runs)
        runs = later if is_shorter else sorted(table.committed_runs)
        names = ", ".join(f"'{run}'" for run in runs)
        return f"_run_id {'NOT IN' if is_shorter else 'IN'} ({names})" if runs else ""

    def diff(self, before: str, after: str, name: str, *, account: str | None = None) -> TableDiff:
        """What the table's rows after one run and after another differ in, by key. Errors as of `table`.

        A table that one of them does not have is taken for empty there.
        """
        from extractor.diff import Part, TableDiff

        entries = [self.entry(before), self.entry(after)]
        merges = [self._merges(entry) for entry in entries]
        accounts = sorted({other for entry in entries for table, other in entry.tables if table == name})
        if not accounts or account not in (None, *accounts):
            self._table(name, account, entries[1], merges[1])  # says what there is instead
        parts: list[Part] = []
        key: tuple[str, ...] = ()
        for other in accounts if account is None else [account]:
            sides = [
                self._table(name, other, entry, merged) if (name, other) in entry.tables else None
                for entry, merged in zip(entries, merges, strict=True)
            ]
            old, new = sides
            key = next((side.key for side in (new, old) if side is not None and side.key), key)
            parts.append(Part(account=other, before=_only_in(old, new), after=_only_in(new, old)))
        return TableDiff(name, key, parts)

    def history(
        self, name: str, *, as_of: str | LogEntry | None = None, account: str | None = None
    ) -> History:
        """Every state that every row of the table had, and from when to when. Errors as of `table`.

        Snapshots that have been dropped are not in it: what stood before them is taken to have held on.
        """
        from extractor.history import History

        past = _Past(self, name, self.entry(as_of))
        return History(name, past.key, past.schema, past.series(account))

    def changes(
        self,
        name: str,
        *,
        since: str | None = None,
        as_of: str | LogEntry | None = None,
        account: str | None = None,
    ) -> Changes:
        """Every change between one snapshot of the table and the next, after the run `since`, or from the
        first snapshot on. Errors as of `table`.
        """
        from extractor.history import Changes

        past = _Past(self, name, self.entry(as_of))
        base = self.entry(since) if since is not None else None
        return Changes(name, past.key, past.schema, past.series(account, base))

    def verify(self, run: str | None = None, *, everything: bool = False) -> VerifyReport:
        """Read the files of the current state again, of the state after a run, or `everything`; and look for
        files in the folders of the tables that no entry of the log names.

        Raises: LakeError if the log cannot be read; ConfigError for an unknown run.
        """
        from extractor.verify import verify

        return verify(self.store, self.log, self.entry(run), everything=everything)

    def locate(self, path: str, entry: LogEntry) -> str:
        """Where in the store the data file is now. Raises: LakeError if nowhere, naming a whole run."""
        for place in places(path, entry.publishing):
            if self.store.exists(place):
                return place
        raise self._missing(path, entry)

    def _later_runs(self, entry: LogEntry) -> list[str]:
        """The runs whose rows came after an entry, in their order; not those of before that went on."""
        later: dict[str, None] = {}
        for found in self.log.backwards():
            if found.sequence <= entry.sequence:
                break
            later.setdefault(found.run_id)
        if later:
            for found in self.log.backwards(entry):
                later.pop(found.run_id, None)
        return sorted(later)

    def _merges(self, entry: LogEntry) -> list[LogEntry]:
        """The later entries that exchanged files, oldest first."""
        later: list[LogEntry] = []
        for found in self.log.backwards():
            if found.sequence <= entry.sequence:
                break
            if found.replaced:
                later.append(found)
        return later[::-1]

    def _table(
        self, name: str, account: str | None, entry: LogEntry, merges: Sequence[LogEntry]
    ) -> LakeTable:
        known = sorted({table for table, _ in entry.tables})
        accounts = sorted(other for table, other in entry.tables if table == name)
        if not accounts:
            raise ConfigError(f"no table {name} in lake {self.store.uri}{_nearest(name, known)}")
        if account is not None and account not in accounts:
            nearest = _nearest(account, accounts)
            raise ConfigError(f"no account {account} in table {name} of lake {self.store.uri}{nearest}")
        states = [
            self.log.state_of(entry, name, other) for other in (accounts if account is None else [account])
        ]
        followed = states
        for later in merges:
            replacements = self.log.replacements(later)
            followed = [
                self._without_dropped(_replaced(self.log, later, replacements, state), later, replacements)
                for state in followed
            ]
        committed_runs = None
        if followed != states and any(is_event_file(file) for state in followed for file in state.files):
            # A merged file also holds rows that came later.
            committed_runs = frozenset(earlier.run_id for earlier in self.log.backwards(entry))
        publishing = tuple(dict.fromkeys(run_id for found in (entry, *merges) for run_id in found.publishing))
        return LakeTable(self, name, entry, tuple(followed), committed_runs, publishing)

    def _without_dropped(
        self, state: TableState, later: LogEntry, replacements: Mapping[str, tuple[str, ...]]
    ) -> TableState:
        """The state without the days of events that a later entry dropped, once their grace period is over."""
        gone = {
            file.path
            for file in state.files
            if is_event_file(file)
            and replacements.get(file.path) == ()
            and not any(map(self.store.exists, places(file.path, later.publishing)))
        }
        kept = tuple(file for file in state.files if file.path not in gone)
        return replace(state, files=kept) if gone else state

    def _missing(self, path: str, entry: LogEntry) -> LakeError:
        run_id = self._newest_whole_run(entry)
        for later in self.log.backwards():
            if later.sequence <= entry.sequence:
                break
            others = self.log.replacements(later).get(path)
            if others:
                return LakeError(
                    f"data file {path} of lake {self.store.uri} was merged by run {later.run_id}, and its "
                    "grace period is over; read again from the newest state"
                )
            if others is not None:
                return LakeError(
                    f"data file {path} of lake {self.store.uri} was dropped by run {later.run_id} on "
                    f"{later.committed_at:%Y-%m-%d}; --as-of {run_id or later.run_id} reads the newest whole run"
                )
        remedy = f"--as-of {run_id} reads the newest whole run" if run_id else "restore it from a copy"
        return LakeError(f"data file {path} is nowhere in lake {self.store.uri}; {remedy}")

    def _newest_whole_run(self, damaged: LogEntry) -> str | None:
        successors = Successors(self.log)
        publishing: dict[str, None] = {}
        whole: dict[str, bool] = {}
        there: dict[str, bool] = {}
        seen = {damaged.run_id}
        for entry in self.log.backwards():
            publishing |= dict.fromkeys(entry.publishing)
            if entry.run_id not in seen:
                seen.add(entry.run_id)
                for key, reference in entry.tables.items():
                    if reference.digest not in whole:
                        paths = successors.paths(self.log.state_of(entry, *key))
                        for path in paths - there.keys():
                            there[path] = any(map(self.store.exists, places(path, publishing)))
                        whole[reference.digest] = all(there[path] for path in paths)
                if all(whole[reference.digest] for reference in entry.tables.values()):
                    return entry.run_id
            successors.add(entry)
        return None


class Successors:
    """Where the rows of files are now; learns from the entries of a log, the newest first."""

    def __init__(self, log: CommitLog) -> None:
        self._log = log
        self._files: dict[str, tuple[DataFile, ...]] = {}

    def add(self, entry: LogEntry) -> None:
        """Learn what became of the files that an entry replaced, all later entries being known."""
        files = self._log.replacing_files(entry)
        for path, others in self._log.replacements(entry).items():
            found = (self._files.get(other, (files[other],) if other in files else ()) for other in others)
            self._files[path] = tuple(live for lives in found for live in lives)

    def files(self, file: DataFile) -> tuple[DataFile, ...]:
        """Those that hold the rows of a file of the entry before the last one that was learnt; none if dropped."""
        return self._files.get(file.path, (file,))

    def paths(self, state: TableState) -> set[str]:
        """What must be there to read such a state: days of events that were dropped are not missed."""
        return {
            live.path
            for file in state.files
            for live in self.files(file) or (() if is_event_file(file) else (file,))
        }


class LakeTable:
    """One table of a lake after one commit; iterating reads the files, one after the other."""

    def __init__(
        self,
        lake: Lake,
        name: str,
        entry: LogEntry,
        states: tuple[TableState, ...],
        committed_runs: frozenset[str] | None,
        publishing: tuple[str, ...],
    ) -> None:
        self.name = name
        self.entry = entry
        self.states = states
        """One per account, sorted."""
        self.committed_runs = committed_runs
        """If set, only rows whose `_run_id` is one of these belong to the state: a file holds later ones
        too.
        """
        self._lake = lake
        self._publishing = publishing

    @property
    def key(self) -> tuple[str, ...]:
        """The keys of the answer that tell its rows apart; empty if nobody knows."""
        return next((key for state in self.states if (key := _key_of(state))), ())

    def files(self) -> tuple[DataFile, ...]:
        """Its data files, by account and path."""
        return tuple(file for state in self.states for file in state.files)

    @property
    def schema(self) -> pa.Schema:
        """The columns of its newest file, then those that only other files have. Reads the end of every file.

        Raises: LakeError if the table has no files yet, or one is missing or damaged.
        """
        import pyarrow as pa

        newest = self._newest_files()
        if not newest:
            raise LakeError(f"table {self.name} in lake {self._lake.store.uri} has no files yet")
        schemas = {path: self._file_schema(path) for path in newest}
        for file in self.files():
            if file.path not in schemas:
                schemas[file.path] = self._file_schema(file.path)
        # The widest of the accounts' newest files gives the order: columns are only ever added at the end.
        first = max(newest, key=lambda path: len(schemas[path]))
        fields: dict[str, pa.Field] = {column.name: column for column in schemas[first]}
        for schema in schemas.values():
            for column in schema:
                fields.setdefault(column.name, column)
        return pa.schema(
            [
                column
                if all(name in schema.names for schema in schemas.values())
                else column.with_nullable(True)
                for name, column in fields.items()
            ]
        )

    def to_batches(self) -> Iterator[pa.RecordBatch]:
        """The rows, file by file, all with `schema`: what a file does not have is null. Errors as of
        `schema`.
        """
        schema = self.schema
        for file in self.files():
            with self._opened(file.path) as source:
                for batch in source.iter_batches(batch_size=65_536):
                    kept = self._kept(batch)
                    if kept.num_rows:
                        yield self._aligned(kept, schema, file.path)

    def to_arrow(self) -> pa.Table:
        """All rows in memory. Errors as of `schema`."""
        import pyarrow as pa

        schema = self.schema
        return pa.Table.from_batches(list(self.to_batches()), schema=schema)

    @property
    def uri(self) -> str:
        return self._lake.store.uri

    def local_paths(self) -> list[Path] | None:
        """Where its files are now, for programs that open files by name; None where there is no such thing.

        Raises: LakeError if a file is nowhere.
        """
        store = self._lake.store
        found: list[Path] = []
        for file in self.files():
            place = next(
                (place for place in places(file.path, self._publishing) if store.exists(place)), None
            )
            if place is None:
                raise self._lake._missing(file.path, self.entry)
            path = store.local_path(place)
            if path is None:
                return None
            found.append(path)
        return found

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        import pyarrow as pa

        reader = pa.RecordBatchReader.from_batches(self.schema, self.to_batches())
        return reader.__arrow_c_stream__(requested_schema)

    def only(self, paths: Collection[str], committed_runs: frozenset[str] | None) -> LakeTable:
        """The part of it that stands in these files, of these runs if any are given."""
        states = tuple(
            replace(state, files=tuple(file for file in state.files if file.path in paths))
            for state in self.states
        )
        return LakeTable(self._lake, self.name, self.entry, states, committed_runs, self._publishing)

    def all_runs(self) -> frozenset[str]:
        """The runs whose rows belong to it."""
        if self.committed_runs is not None:
            return self.committed_runs
        return frozenset(earlier.run_id for earlier in self._lake.log.backwards(self.entry))

    def _newest_files(self) -> list[str]:
        """Per account, a file of the run that wrote its newest ones."""
        newest: list[str] = []
        for state in self.states:
            paths = [file.path for file in state.files]
            mine = [path for path in paths if _is_written_by(path, state.run_id)]
            newest.extend((mine or paths)[-1:])
        return newest

    def _file_schema(self, path: str) -> pa.Schema:
        with self._opened(path) as source:
            return source.schema_arrow.remove_metadata()

    def _kept(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        if self.committed_runs is None or "_run_id" not in batch.schema.names:
            return batch
        import pyarrow as pa
        import pyarrow.compute as pc

        runs = batch.column("_run_id")
        return batch.filter(pc.is_in(runs, value_set=pa.array(sorted(self.committed_runs), runs.type)))

    def _aligned(self, batch: pa.RecordBatch, schema: pa.Schema, path: str) -> pa.RecordBatch:
        import pyarrow as pa

        names = frozenset(batch.schema.names)
        columns = []
        for column in schema:
            if column.name not in names:
                columns.append(pa.nulls(batch.num_rows, column.type))
                continue
            values = batch.column(column.name)
            try:
                columns.append(values if values.type == column.type else values.cast(column.type))
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise LakeError(
                    f"column {column.name} of {path} in lake {self._lake.store.uri} is {values.type}, "
                    f"elsewhere {column.type}; run `skysql-extract verify`"
                ) from error
        return pa.RecordBatch.from_arrays(columns, schema=schema)

    @contextmanager
    def _opened(self, path: str) -> Iterator[pq.ParquetFile]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        for place in places(path, self._publishing):
            try:
                source = self._open_place(place)
            except StoreMissing:
                continue
            try:
                with source, pq.ParquetFile(source) as opened:
                    yield opened
            except (OSError, pa.ArrowInvalid) as error:
                raise LakeError(
                    f"{path} in lake {self._lake.store.uri} is damaged; run `skysql-extract verify`, "
                    "then restore it from a copy of the lake"
                ) from error
            return
        raise self._lake._missing(path, self.entry)

    def _open_place(self, place: str) -> pa.NativeFile:
        import pyarrow as pa

        store = self._lake.store
        local = store.local_path(place)
        if local is None:
            return pa.PythonFile(store.open_input(place), mode="r")
        try:
            return pa.OSFile(str(local), "r")
        except FileNotFoundError as error:
            raise StoreMissing(f"cannot read {place} in lake {store.uri}: there is no such file") from error
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise LakeError(
                f"cannot read {place} in lake {store.uri}: {reason}; see to the file system"
            ) from error


@dataclass(frozen=True, slots=True)
class _Together:
    """Parts of a table that are read as one."""

    parts: tuple[LakeTable, ...]

    @property
    def schema(self) -> pa.Schema:
        from extractor.compare import union_schema

        return union_schema(part.schema for part in self.parts)

    def to_batches(self) -> Iterator[pa.RecordBatch]:
        from extractor.compare import align

        schema = self.schema
        for part in self.parts:
            for batch in part.to_batches():
                yield from align(_as_table(batch), schema).to_batches()


def _as_table(batch: pa.RecordBatch) -> pa.Table:
    import pyarrow as pa

    return pa.Table.from_batches([batch])


def _only_in(table: LakeTable | None, other: LakeTable | None) -> _Together | None:
    """The rows of a table that may not be in the other one; None if there are none.

    What stands in a file of both is in both, but for rows of runs that only one of them knows.
    """
    if table is None:
        return None
    shared = {file.path for file in other.files()} if other is not None else set()
    own = {file.path for file in table.files() if file.rows} - shared
    parts = [table.only(own, table.committed_runs)] if own else []
    if (
        other is not None
        and other.committed_runs is not None
        and other.committed_runs != table.committed_runs
    ):
        runs = table.all_runs() - other.committed_runs
        common = {file.path for file in table.files() if file.path in shared}
        if runs and common:
            parts.append(table.only(common, runs))
    return _Together(tuple(parts)) if parts else None


class _Past:
    """The states of one table up to an entry: each once, as it can be read now."""

    def __init__(self, lake: Lake, name: str, entry: LogEntry) -> None:
        self._lake = lake
        self._name = name
        self._entry = entry
        newest = lake._table(name, None, entry, ())
        self.key = newest.key
        self._accounts = [state.account for state in newest.states]
        self._is_event = {state.account: state.is_event for state in newest.states}
        self._runs: list[str] = []
        """The run of each entry, by sequence."""
        self._merges: list[LogEntry] = lake._merges(entry)
        self._numbers: dict[str, list[int]] = {account: [] for account in self._accounts}
        """The entries after which the table was another one, oldest first."""
        self._read_log()

    def _read_log(self) -> None:
        digests: dict[str, str] = {}
        merges: list[LogEntry] = []
        for entry in self._lake.log.backwards(self._entry):
            self._runs.append(entry.run_id)
            if entry.replaced:
                merges.append(entry)
            for account in self._accounts:
                reference = entry.tables.get((self._name, account))
                if reference is None:
                    continue
                if digests.get(account) == reference.digest:
                    self._numbers[account].pop()
                digests[account] = reference.digest
                self._numbers[account].append(entry.sequence)
        self._runs.reverse()
        self._merges = [*reversed(merges), *self._merges]
        for numbers in self._numbers.values():
            numbers.reverse()

    @property
    def schema(self) -> pa.Schema:
        """Every column that it ever had, the newest order first."""
        from extractor.compare import union_schema

        known: set[str] = set()
        schemas: list[pa.Schema] = []
        for account in self._accounts:
            for table in reversed(list(self._tables(account, 0))):
                columns = repr(table.states[0].columns)
                if (columns not in known or columns == "()") and table.files():
                    known.add(columns)
                    schemas.append(table.schema)
        return union_schema(schemas)

    def series(self, account: str | None, base: LogEntry | None = None) -> list[Series]:
        """Its snapshots by account, those after `base` if it is given. Raises: ConfigError for an unknown
        account.
        """
        from extractor.history import Series

        if account is not None and account not in self._accounts:
            self._lake._table(self._name, account, self._entry, ())  # says which there are
        return [
            Series(
                account=other,
                is_event=self._is_event[other],
                snapshots=partial(self._snapshots, other, base),
            )
            for other in self._accounts
            if account in (None, other)
        ]

    def _snapshots(self, account: str, base: LogEntry | None) -> Iterator[Snapshot]:
        from extractor.history import Snapshot

        before: LakeTable | None = None
        if base is not None and (self._name, account) in base.tables:
            before = self._lake._table(self._name, account, base, self._lake._merges(base))
        moment: datetime | None = None
        for table in self._tables(account, base.sequence if base is not None else 0):
            state = table.states[0]
            began = datetime.fromisoformat(state.snapshot_at) if state.snapshot_at else table.entry.started_at
            # A clock may go back; what came later held later.
            moment = began if moment is None else max(moment, began)
            yield Snapshot(
                run_id=table.entry.run_id,
                moment=moment,
                rows=_Together((table,)) if table.files() else _Together(()),
                came=_only_in(table, before),
                went=_only_in(before, table),
            )
            before = table

    def _tables(self, account: str, after: int) -> Iterator[LakeTable]:
        """The table after each entry that changed its files, oldest first; no dropped snapshots."""
        last: object = None
        for number in self._numbers[account]:
            if number <= after:
                continue
            entry = self._lake.log.read(number)
            table = self._table(entry, (self._name, account))
            if table is None:
                continue
            # Of events one merged file holds the rows of many runs.
            content = (table.files(), table.committed_runs if self._is_event[account] else None)
            if content != last:
                last = content
                yield table

    def _table(self, entry: LogEntry, key: TableKey) -> LakeTable | None:
        state = followed = self._lake.log.state_of(entry, *key)
        later = [merge for merge in self._merges if merge.sequence > entry.sequence]
        dropped: set[str] = set()
        for merge in later:
            replacements = self._lake.log.replacements(merge)
            dropped.update(path for path, paths in replacements.items() if not paths)
            followed = _replaced(self._lake.log, merge, replacements, followed)
        if any(file.path in dropped for file in followed.files):
            if not state.is_event:
                return None
            kept = tuple(file for file in followed.files if file.path not in dropped)
            followed = replace(followed, files=kept)
        runs = None if followed == state else frozenset(self._runs[: entry.sequence])
        publishing = tuple(dict.fromkeys(run for found in (entry, *later) for run in found.publishing))
        return LakeTable(self._lake, self._name, entry, (followed,), runs, publishing)


def _key_of(state: TableState) -> tuple[str, ...]:
    key = state.state.get("key")
    return tuple(str(name) for name in key) if isinstance(key, (list, tuple)) else ()


def _replaced(
    log: CommitLog, later: LogEntry, replacements: Mapping[str, tuple[str, ...]], state: TableState
) -> TableState:
    """The state with files that a later entry merged exchanged for those that hold their rows now.

    Files that were dropped without a replacement stay: they may still be in their grace period.
    """
    wanted = {path for file in state.files for path in replacements.get(file.path, ())}
    if not wanted:
        return state
    merged = [file for path, file in log.replacing_files(later).items() if path in wanted]
    kept = [file for file in state.files if not replacements.get(file.path)]
    files = {file.path: file for file in (*kept, *merged)}
    return replace(state, files=tuple(files[path] for path in sorted(files)))


def _is_written_by(path: str, run_id: str) -> bool:
    folder, _, name = path.rpartition("/")
    return name.startswith(f"{run_id}-") or folder.endswith(f"/run={run_id}")


def is_event_file(file: DataFile) -> bool:
    """True for a file of rows that are added once, under `event_date=`."""
    return "/event_date=" in file.path


def _table_names(entry: LogEntry) -> list[str]:
    return sorted({table for (table, _), reference in entry.tables.items() if reference.files})


def _run_row(entry: LogEntry) -> RunRow:
    return RunRow(
        run_id=entry.run_id,
        sequence=entry.sequence,
        status=entry.status,
        started_at=entry.started_at,
        committed_at=entry.committed_at,
        summary=entry.summary,
    )


def _nearest(name: str, names: Iterable[str]) -> str:
    """What an error says about the name that was probably meant."""
    known = sorted(set(names))
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; there are {', '.join(known[:5])}{' and others' if len(known) > 5 else ''}" if known else ""
