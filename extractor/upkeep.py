"""What compacting and expiring have in common: they prepare beside runs, and hold a table only to commit.

One call is one run of the log, with an entry for each table that it changed.
"""

from __future__ import annotations

import math
import secrets
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC
from fnmatch import fnmatchcase
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from extractor.clock import Clock, SystemClock
from extractor.commit import GRACE_SECONDS, Update, commit, publish, roll_forward
from extractor.commitlog import LogEntry, TableRef, TableState
from extractor.config import Config
from extractor.endpoint import Endpoint
from extractor.errors import ConfigError, LakeBusy, LakeError
from extractor.lake import Lake
from extractor.lease import Leases, TableKey
from extractor.mergesort import read_tables
from extractor.places import damage_of
from extractor.rowsum import RowSum, sum_rows
from extractor.schema import META_COLUMNS, plan_schema
from extractor.store import STAGING, Store
from extractor.write import DataFile

__all__ = (
    "Change",
    "Sound",
    "Upkeep",
    "UpkeepReport",
    "chosen_tables",
    "column_order",
    "holding",
    "sum_files",
    "union_schema",
)

_BUSY_SECONDS = 0.2
_SAY_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What became of one table of one account."""

    name: str
    account: str
    files_removed: int = 0
    files_added: int = 0
    bytes_removed: int = 0
    bytes_added: int = 0
    rows_removed: int = 0
    snapshots_removed: int = 0
    files_aside: int = 0
    """Files that a repair had put aside, and that were rewritten or removed too."""

    @classmethod
    def of_files(
        cls,
        key: TableKey,
        old: Collection[DataFile],
        new: Collection[DataFile] = (),
        *,
        rows: int = 0,
        snapshots: int = 0,
        aside: int = 0,
    ) -> Change:
        """Files that went and came."""
        return cls(
            name=key[0],
            account=key[1],
            files_removed=len(old),
            files_added=len(new),
            bytes_removed=sum(file.size_bytes for file in old),
            bytes_added=sum(file.size_bytes for file in new),
            rows_removed=rows,
            snapshots_removed=snapshots,
            files_aside=aside,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class UpkeepReport:
    """What one call did, or with `is_dry_run` would do; the tables that it left alone are not in it."""

    verb: str
    run_id: str
    lake: str
    tables: tuple[Change, ...] = ()
    is_dry_run: bool = False
    seconds: float = 0.0
    paths: tuple[str, ...] = field(default=(), repr=False)
    """The files that were removed, or would be."""

    def to_json(self) -> dict[str, object]:
        found = asdict(self)
        paths = found.pop("paths")
        return {
            **found,
            "status": "complete",
            "exit_code": 0,
            "tables": list(found["tables"]),
            **({"paths": list(paths)} if self.is_dry_run else {}),
        }


class Upkeep:
    """One call of a verb that changes what is in the lake without reading from the source."""

    def __init__(
        self,
        config: Config,
        verb: str,
        *,
        store: Store | None = None,
        clock: Clock | None = None,
        pause: Callable[[float], None] = time.sleep,
        note: Callable[[str], None] = lambda text: None,
        grace_seconds: float = GRACE_SECONDS,
    ) -> None:
        self.verb = verb
        self.config = config
        self.lake = Lake(store if store is not None else config.lake.uri)
        self.store, self.log = self.lake.store, self.lake.log
        self.clock = clock or SystemClock()
        self.grace_seconds = grace_seconds
        self.started_at = self.clock.now().astimezone(UTC)
        self.run_id = f"{self.started_at:%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"
        self.changes: list[Change] = []
        self.paths: list[str] = []
        self._pause = pause
        self._note = note
        self._began = self.clock.monotonic()
        self._is_committed = False

    def report(self, *, is_dry_run: bool = False) -> UpkeepReport:
        return UpkeepReport(
            verb=self.verb,
            run_id="" if is_dry_run or not self._is_committed else self.run_id,
            lake=self.store.uri,
            tables=tuple(self.changes),
            is_dry_run=is_dry_run,
            seconds=round(self.clock.monotonic() - self._began, 3),
            paths=tuple(self.paths),
        )

    def foresee(self, change: Change, paths: Iterable[str]) -> None:
        """Note what would be done."""
        self.changes.append(change)
        self.paths.extend(paths)

    @contextmanager
    def at_work(self, *, is_dry_run: bool = False) -> Iterator[None]:
        """Leave nothing in staging but what is committed and not published, and let nobody else remove it."""
        if is_dry_run:
            yield
            return
        self.store.check_writable()
        # Holds no table, but says that what is staged is wanted.
        sign_of_life = self._leases(())
        sign_of_life.acquire()
        try:
            with _beating(sign_of_life):
                yield
        except BaseException:
            if not self._is_committed:
                self.store.delete_folder(f"{STAGING}/{self.run_id}")
            raise
        else:
            self.store.delete_folder(f"{STAGING}/{self.run_id}")
        finally:
            sign_of_life.release()

    def _leases(self, tables: Iterable[TableKey]) -> Leases:
        return Leases(self.store, run_id=self.run_id, clock=self.clock, tables=tables, is_brief=True)

    @contextmanager
    def held(self, key: TableKey) -> Iterator[Leases]:
        """The right to change one table, once nobody else has it; what was cut off before is finished first."""
        leases = self._leases([key])
        with holding(leases, pause=self._pause, note=self._note):
            roll_forward(self.store, self.log, leases)
            yield leases

    def commit(
        self,
        leases: Leases,
        change: Change,
        state: TableState,
        expected: TableRef,
        *,
        replaced: Mapping[str, Sequence[str]],
        rewritten: Sequence[DataFile] = (),
        grace_seconds: float | None = None,
        **summary: object,
    ) -> LogEntry:
        """Commit and publish what became of one table."""
        newest = self.log.newest()
        self._is_committed = True
        update = Update(table=state.table, account=state.account, state=state, expected=expected)
        entry = commit(
            self.store,
            self.log,
            run_id=self.run_id,
            updates=[update],
            summary={"verb": self.verb, "changes": [asdict(change)], **summary},
            source=newest.source if newest is not None else {},
            started_at=self.started_at,
            clock=self.clock,
            leases=leases,
            is_final=False,
            replaced=replaced,
            rewritten=rewritten,
            grace_seconds=self.grace_seconds if grace_seconds is None else grace_seconds,
        )
        self.changes.append(change)
        self.paths.extend(replaced)
        try:
            publish(self.store, self.log, entry, beat=leases.beat)
        except LakeError as error:
            raise LakeError(
                f"{self.verb} of {change.name} is committed, but publishing was cut off: {error.message}; "
                "the next run or verb on that table finishes it"
            ) from error
        return entry


@contextmanager
def holding(
    leases: Leases,
    *,
    pause: Callable[[float], None],
    note: Callable[[str], None],
    wait_seconds: float = math.inf,
) -> Iterator[None]:
    """Hold tables, once nobody else does, and give signs of life meanwhile.

    `note` is told of whoever has them, again and again. Raises: LakeBusy where that lasts longer than
    `wait_seconds`; LakeError.
    """
    waited = 0.0
    while True:
        try:
            leases.acquire()
            break
        except LakeBusy as busy:
            if waited >= wait_seconds:
                raise
            if waited % _SAY_SECONDS < _BUSY_SECONDS:
                note(f"waiting: {busy.message}")
        pause(_BUSY_SECONDS)
        waited += _BUSY_SECONDS
    try:
        with _beating(leases):
            yield
    finally:
        leases.release()


@contextmanager
def _beating(leases: Leases) -> Iterator[None]:
    """Say again and again that the holder lives."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(leases.heartbeat_seconds):
            with suppress(LakeError):  # who holds it will notice
                leases.beat()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class Sound:
    """Data files by their places, each given for reading only once its bytes were found to be those written.

    What is written anew gets a digest of its own: it must not be made of damaged rows.
    """

    def __init__(self, store: Store, files: Mapping[str, DataFile]) -> None:
        self._store = store
        self._files = files

    def open_input(self, path: str) -> BinaryIO:
        """The file, at its beginning. Raises: LakeError if it is damaged; StoreMissing."""
        file = self._files[path]
        stream = self._store.open_input(path)
        try:
            if damage := damage_of(stream, file):
                raise LakeError(
                    f"{file.path} of lake {self._store.uri} is damaged: {damage}; the table was left as it is, "
                    "restore the file from a copy or run `skysql-extract verify --all --repair`"
                )
            stream.seek(0)
        except BaseException:
            stream.close()
            raise
        return stream


def chosen_tables(entry: LogEntry, names: Sequence[str], lake: str) -> list[TableKey]:
    """The tables and accounts of an entry that match one of the names or globs; all where none are given.

    Raises: ConfigError for a name that matches nothing.
    """
    for name in names:
        if not any(fnmatchcase(table, name) for table, _ in entry.tables):
            raise ConfigError(f"no table {name} in lake {lake}; `skysql-extract files` lists what there is")
    return sorted(
        key for key in entry.tables if not names or any(fnmatchcase(key[0], name) for name in names)
    )


def column_order(state: TableState) -> tuple[str, ...]:
    """The names of a table's columns in the order in which they stand in its files."""
    return tuple(plan_schema(Endpoint(name=state.table, path="/"), state.columns).arrow.names)


def union_schema(store: Store, places: Iterable[str], order: Sequence[str]) -> pa.Schema:
    """The columns of all the files, in this order as far as it goes, the run's own last."""
    schemas = []
    for place in places:
        with store.open_input(place) as stream:
            schemas.append(pq.read_schema(pa.PythonFile(stream, mode="r")).remove_metadata())
    fields: dict[str, pa.Field] = {}
    for schema in sorted(schemas, key=len, reverse=True):
        for column in schema:
            fields.setdefault(column.name, column)
    columns = [
        column if all(name in schema.names for schema in schemas) else column.with_nullable(True)
        for name, column in fields.items()
    ]
    own = {name: number for number, name in enumerate(META_COLUMNS)}
    known = {name: number for number, name in enumerate(order)}
    columns.sort(key=lambda column: (own.get(column.name, -1), known.get(column.name, len(known))))
    return pa.schema(columns)


def sum_files(store: Store, places: Sequence[str], schema: pa.Schema, *, rows_max: int) -> RowSum:
    """The sum of the rows of files, as they are read back."""
    total = RowSum()
    for table in read_tables(store, places, schema, rows_max=rows_max):
        total += sum_rows(table)
    return total
