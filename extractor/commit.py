"""The log of the lake: a run becomes visible, in all its tables at once, by creating one numbered file.

    _extractor/log/N.json       an entry: the whole logical state, by reference
    _extractor/lists/DIGEST.json  immutable lists of files, columns and state, shared by entries
    _extractor/leases/N.json    who writes what, itself a log of small entries
    _extractor/staging/RUN/     data files that are complete but not yet in their place
    _extractor/latest.json      a hint where to begin looking for the newest entry

Every decision between writers is a put-if-absent of the next number, so there is nothing to lock and no order
of steps in which a crash could leave half a commit. A list that grows is cut where the hash of a path says
so: adding a file changes the piece it falls into and the few pieces above, however long the list is.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, cast

import orjson

from extractor.clock import Clock
from extractor.errors import CommitConflict, LakeBusy, LakeError
from extractor.store import SCRATCH, Store, StoredFile, StoreMissing

if TYPE_CHECKING:
    # It brings Arrow with it, and listing the runs of a lake must not wait for that.
    from extractor.write import DataFile

__all__ = (
    "FORMAT_VERSION",
    "CommitLog",
    "Holder",
    "Leases",
    "LogEntry",
    "TableKey",
    "TableRef",
    "TableState",
    "Update",
    "clean_orphans",
    "commit",
    "live_runs",
    "old_path",
    "publish",
    "roll_forward",
    "staged_path",
    "this_process",
)

FORMAT_VERSION = 1

TableKey = tuple[str, str]
"""Table and account."""

_LOG = "_extractor/log"
_LISTS = "_extractor/lists"
_LEASES = "_extractor/leases"
_BEATS = "_extractor/leases/beats"
_STAGING = "_extractor/staging"
_OLD = "_extractor/old"
_LATEST = "_extractor/latest.json"

_PROBES = 64
"""So many entries a hint may lag before listing the log is quicker than probing on."""
_REBASES = 100
_LEASES_KEPT = 16
_INLINE_ITEMS = 64
_INLINE_BYTES = 24_000
_PIECE_ITEMS = 256
_PIECE_BYTES = 64_000
_CUT = 64
"""A list is cut behind one of so many keys, on average."""
_DEBRIS_SECONDS = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class TableState:
    """What one table of one account is, logically: its files, and what the next run must know."""

    table: str
    account: str
    sync: str
    """`snapshot`, `window` or `append`."""
    status: str
    """Outcome of its last run: `complete`, `partial`, `failed`, `denied`, `held`, `absent` or `skipped`."""
    reason: str
    """Why its rows are all of them, or why not."""
    rows: int
    files: tuple[DataFile, ...]
    """Read back they stand in the order of their paths."""
    columns: tuple[Mapping[str, object], ...]
    """The table's schema, as JSON-like values that the log does not look into."""
    state: Mapping[str, object]
    """Cursors, windows, positions, as JSON-like values; what changes apart should have a key of its own."""
    run_id: str
    """The run that wrote its newest files."""
    proved_by: str
    """The run that last proved it."""
    snapshot_at: str | None
    content: str
    """Order-free digest of the current snapshot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRef:
    """A table's state as it stands in an entry: what is asked often, and the digest of the rest."""

    digest: str
    """Names the list that holds files, columns and state."""
    sync: str
    status: str
    reason: str
    rows: int
    files: int
    size_bytes: int
    folder: str
    """The folder `…/run=RUN` if all its files stand in one, else empty."""
    run_id: str
    proved_by: str
    snapshot_at: str | None
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEntry:
    """One commit: the state of every table of every account after it."""

    sequence: int
    run_id: str
    run_part: int
    """1 for the first entry of the run; a run may commit several times."""
    is_final: bool
    """The run is over: nothing in its staging is wanted once this entry is published."""
    status: str
    started_at: datetime
    committed_at: datetime
    """Never earlier than that of the entry before."""
    tables: Mapping[TableKey, TableRef]
    publishing: Mapping[str, tuple[int, ...]]
    """Runs whose staging is not gone yet, with their entries: what may be left to publish."""
    replaced: str
    """Digest of the list that maps files this entry removed to those that hold their rows now, or empty."""
    summary: Mapping[str, object]
    source: Mapping[str, object]
    predecessor: str
    """SHA-256 of the bytes of the entry before; empty for the first."""
    format_version: int = FORMAT_VERSION
    digest: str = field(default="", compare=False)
    """SHA-256 of this entry's own bytes; not part of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """A new state of one table, and what it was computed from."""

    table: str
    account: str
    state: TableState
    expected: TableRef | None
    """The table's reference in the entry that the run started from; None if it was not there."""


def commit(
    store: Store,
    log: CommitLog,
    *,
    run_id: str,
    updates: Sequence[Update],
    summary: Mapping[str, object],
    source: Mapping[str, object],
    started_at: datetime,
    clock: Clock,
    leases: Leases | None,
    status: str = "complete",
    is_final: bool = True,
    replaced: Mapping[str, Sequence[str]] | None = None,
) -> LogEntry:
    """The entry that makes all `updates` visible at once; every other table is carried forward as it is.

    The new files must be staged. Without updates the entry records that the run took place. `replaced` maps
    paths of files that are no longer current to the paths of those that hold their rows (none: the rows are
    gone). Calling it again after an error with the same updates does not commit twice.

    Raises: LakeBusy if a lease was taken over; CommitConflict if another writer changed one of the tables;
    LakeError if a new file is not staged or the lake cannot be written. Nothing is committed then, unless the
    medium failed in the very act: the next writing verb finds that out.
    """
    newest = log.newest()
    written = _write_states(store, log, run_id, updates)
    replacements = log.write_list({"replaced": replaced}) if replaced else ""
    for _ in range(_REBASES):
        current = newest.tables if newest is not None else {}
        if any(current.get(key) != expected for key, expected in written.expected.items()):
            return _committed_before(log, run_id, written, leases)
        entry = LogEntry(
            sequence=newest.sequence + 1 if newest is not None else 1,
            run_id=run_id,
            run_part=_run_part(log, newest, run_id, started_at),
            is_final=is_final,
            status=status,
            started_at=started_at,
            committed_at=_commit_time(newest, started_at, clock),
            tables={**current, **written.references},
            publishing=_publishing(store, newest, run_id),
            replaced=replacements,
            summary=_warned(summary, newest, started_at, clock),
            source=source,
            predecessor=newest.digest if newest is not None else "",
        )
        content = _encode_entry(entry)
        if leases is not None:
            leases.check()
        if _put_entry(store, entry.sequence, content):
            if newest is None or log.digest_of(newest.sequence) == newest.digest:
                return _decode_entry(content, sequence=entry.sequence, lake=store.uri)
            # What it was built on is gone: void. It goes too, before anyone builds on it.
            store.delete(_entry_path(entry.sequence))
        newest = log.newest()
    raise CommitConflict(f"cannot commit to lake {store.uri}: other writers were always first; run again")


def publish(store: Store, log: CommitLog, entry: LogEntry) -> int:
    """Move what `entry` made current from staging to its place, write the hint, and say how many files moved.

    May be repeated, and be done by several at once. After the last entry of a run its staging is removed.
    """
    moved = 0
    staged = _staged(store, entry.run_id)
    if staged:
        for state in _changed_states(log, entry):
            moved += _publish_files(store, entry.run_id, state.files, staged)
    _write_hint(store, log)
    if entry.is_final:
        store.delete_folder(f"{_STAGING}/{entry.run_id}")
    return moved


def roll_forward(store: Store, log: CommitLog) -> list[str]:
    """Finish what cut-off runs committed but did not publish; the ids of those runs.

    Every writing verb begins with this, after it has its leases.
    """
    log.check_numbers()
    newest = log.newest()
    finished: list[str] = []
    for run_id, sequences in newest.publishing.items() if newest is not None else ():
        if not _staged(store, run_id):
            continue
        entries = [log.read(sequence) for sequence in sequences]
        moved = sum(publish(store, log, entry) for entry in entries)
        if moved or entries[-1].is_final:
            finished.append(run_id)
    return finished


def clean_orphans(
    store: Store, log: CommitLog, *, live_runs: Collection[str], resume_seconds: float
) -> list[str]:
    """Remove the staging of runs that nobody will finish, and debris of crashed writes; the ids of those
    runs.

    Kept are runs in `live_runs` (see the function of that name), runs whose newest staged file is younger
    than `resume_seconds` by the store's clock, and committed files that are not published yet.
    """
    now = store.now()
    newest_file: dict[str, datetime] = {}
    for stored in store.list(_STAGING):
        run_id = stored.path.split("/")[2]
        newest_file[run_id] = max(stored.modified_at, newest_file.get(run_id, stored.modified_at))
    newest = log.newest()
    publishing = newest.publishing if newest is not None else {}
    removed: list[str] = []
    for run_id, modified_at in sorted(newest_file.items()):
        if run_id in live_runs or (now - modified_at).total_seconds() < resume_seconds:
            continue
        for sequence in publishing.get(run_id, ()):
            publish(store, log, log.read(sequence))
        store.delete_folder(f"{_STAGING}/{run_id}")
        removed.append(run_id)
    for stored in store.list(SCRATCH):
        if (now - stored.modified_at).total_seconds() > max(resume_seconds, _DEBRIS_SECONDS):
            store.delete(stored.path)
    return removed


def staged_path(run_id: str, path: str) -> str:
    """Where the file that will stand at `path` is while its run has not published it."""
    return f"{_STAGING}/{run_id}/{path}"


def old_path(path: str) -> str:
    """Where the file that stood at `path` is during its grace period."""
    return f"{_OLD}/{path}"


class CommitLog:
    """The entries of a lake, and the lists they refer to. Reading one writes nothing."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def newest(self) -> LogEntry | None:
        """The newest entry, None if there is none yet; reads two entries at most.

        Raises: LakeError as `read`, and if the entry before it is missing or is not the one it was built on.
        """
        sequence = self._newest_number()
        if sequence == 0:
            return None
        entry = self.read(sequence)
        if sequence > 1 and self.digest_of(sequence - 1) != entry.predecessor:
            raise self._broken_chain(sequence)
        return entry

    def read(self, sequence: int) -> LogEntry:
        """The entry with this number. Raises: LakeError if missing, changed by hand, or of a newer format."""
        try:
            content = self._store.read(_entry_path(sequence))
        except StoreMissing as error:
            raise self._missing_number(sequence) from error
        return _decode_entry(content, sequence=sequence, lake=self._store.uri)

    def entries(self) -> Iterator[LogEntry]:
        """All entries, oldest first. Raises: LakeError as `newest`, and where a number is missing."""
        predecessor = ""
        for sequence in range(1, self.check_numbers() + 1):
            entry = self.read(sequence)
            if entry.predecessor != predecessor:
                raise self._broken_chain(sequence)
            predecessor = entry.digest
            yield entry

    def backwards(self, entry: LogEntry | None = None) -> Iterator[LogEntry]:
        """The entries from `entry`, or the newest, to the oldest. Raises: LakeError as `entries`."""
        found = entry if entry is not None else self.newest()
        while found is not None:
            yield found
            if found.sequence == 1:
                return
            before = self.read(found.sequence - 1)
            if before.digest != found.predecessor:
                raise self._broken_chain(found.sequence)
            found = before

    def tables(self, entry: LogEntry) -> Iterator[TableState]:
        """The state of every table and account of the entry, in order, each read when it is its turn."""
        for table, account in sorted(entry.tables):
            yield self.state_of(entry, table, account)

    def state_of(self, entry: LogEntry, table: str, account: str) -> TableState:
        """The state of one table. Raises: KeyError if the entry has none; LakeError if a list is damaged."""
        reference = entry.tables[table, account]
        content = self.read_list(reference.digest)
        columns = cast(list[Mapping[str, object]], self.read_list(str(content["columns"]))["columns"])
        return TableState(
            table=table,
            account=account,
            sync=reference.sync,
            status=reference.status,
            reason=reference.reason,
            rows=reference.rows,
            files=tuple(_file_of(path, value) for path, value in self._items(content["files"])),
            columns=tuple(columns),
            state=dict(self._items(content["state"])),
            run_id=reference.run_id,
            proved_by=reference.proved_by,
            snapshot_at=reference.snapshot_at,
            content=reference.content,
        )

    def replacements(self, entry: LogEntry) -> Mapping[str, tuple[str, ...]]:
        """The paths of the files that `entry` removed, each with those that hold its rows now."""
        if not entry.replaced:
            return {}
        found = cast(Mapping[str, Sequence[str]], self.read_list(entry.replaced)["replaced"])
        return {path: tuple(paths) for path, paths in found.items()}

    def replacing_files(self, entry: LogEntry) -> Mapping[str, DataFile]:
        """Those files by path that hold the rows of what `entry` removed and are in no table's state."""
        content = self.read_list(entry.replaced) if entry.replaced else {}
        found = map(_pair, cast(list[object], content.get("files", [])))
        return {path: _file_of(path, value) for path, value in found}

    def lists_of(self, reference: TableRef) -> frozenset[str]:
        """The digests of every list that a table's state consists of: to be kept while an entry has it."""
        content = self.read_list(reference.digest)
        digests = {reference.digest, str(content["columns"])}
        for part in (content["files"], content["state"]):
            inner, leaves = self._nodes(part)
            digests |= inner | leaves
        return frozenset(digests)

    def check_numbers(self) -> int:
        """The number of the newest entry, 0 if there is none. Raises: LakeError if an earlier one is
        missing.
        """
        numbers = [
            int(stem)
            for stored in self._store.list(_LOG)
            if (stem := stored.path.rpartition("/")[2].removesuffix(".json")).isdecimal()
        ]
        newest = max(numbers, default=0)
        for missing in sorted(set(range(1, newest)).difference(numbers)):
            # A listing that ran beside two commits may show the second without the first.
            if not self._store.exists(_entry_path(missing)):
                raise self._missing_number(missing)
        return newest

    def digest_of(self, sequence: int) -> str:
        """SHA-256 of the entry's bytes, empty if there is no such entry."""
        try:
            return _sha256(self._store.read(_entry_path(sequence)))
        except StoreMissing:
            return ""

    def read_list(self, digest: str) -> Mapping[str, object]:
        """The content of a list. Raises: LakeError if it is missing or is not what its name says."""
        path = _list_path(digest)
        content = self._store.read(path)
        if _sha256(content) != digest:
            raise LakeError(
                f"{path} in lake {self._store.uri} was changed after it was written; "
                "restore it from a copy of the lake"
            )
        return cast(Mapping[str, object], orjson.loads(content))

    def write_list(self, content: Mapping[str, object]) -> str:
        """The digest under which the list now can be read."""
        return self.write_content(_encoded(content))

    def write_content(self, content: bytes) -> str:
        digest = _sha256(content)
        if not self._store.put_if_absent(_list_path(digest), content):
            # Renewed, so that by its age it is not taken for one that nobody refers to.
            self._store.put(_list_path(digest), content)
        return digest

    def _newest_number(self) -> int:
        number = self._hinted_number()
        if number == 0 or not self._store.exists(_entry_path(number)):
            return self.check_numbers()
        for _ in range(_PROBES):
            if self._store.exists(_entry_path(number + 1)):
                number += 1
            elif not self._store.exists(_entry_path(number + 2)):
                return number
            elif not self._store.exists(_entry_path(number + 1)):
                raise self._missing_number(number + 1)
        return self.check_numbers()

    def _hinted_number(self) -> int:
        sequence = _read_hint(self._store).get("sequence")
        return sequence if isinstance(sequence, int) and sequence > 0 else 0

    def _items(self, part: object) -> Iterator[tuple[str, object]]:
        content = cast(Mapping[str, object], part)
        if "tree" in content:
            content = self.read_list(str(content["tree"]))
        if "items" in content:
            yield from map(_pair, cast(list[object], content["items"]))
            return
        for digest in cast(list[str], content["children"]):
            yield from self._items({"tree": digest})

    def _nodes(self, part: object) -> tuple[frozenset[str], frozenset[str]]:
        """Digests of the inner pieces and of the leaves of a list; reads the inner ones only."""
        content = cast(Mapping[str, object], part)
        if "tree" not in content:
            return frozenset(), frozenset()
        inner: set[str] = set()
        level = [str(content["tree"])]
        for _ in range(int(cast(int, content["height"]))):
            inner.update(level)
            level = [child for node in level for child in cast(list[str], self.read_list(node)["children"])]
        return frozenset(inner), frozenset(level)

    def _keys(self, part: object, leaves: Iterable[str]) -> set[str]:
        """The keys that stand in these leaves of a list; all of them where the list is one piece."""
        if "tree" not in cast(Mapping[str, object], part):
            return {key for key, _ in self._items(part)}
        return {key for leaf in leaves for key, _ in self._items({"tree": leaf})}

    def _missing_number(self, sequence: int) -> LakeError:
        return LakeError(
            f"log entry {sequence} is missing in lake {self._store.uri}; "
            f"restore {_entry_path(sequence)} from a copy of the lake"
        )

    def _broken_chain(self, sequence: int) -> LakeError:
        if not self.digest_of(sequence - 1):
            return self._missing_number(sequence - 1)
        return LakeError(
            f"log entry {sequence} in lake {self._store.uri} was not built on entry {sequence - 1} as it is; "
            "one of them was changed or replaced: restore both from one copy of the lake"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A process, so described that another one can tell whether it still lives."""

    pid: int
    process_started: str
    """Tells apart two processes that had the same number in turn; empty where it cannot be known."""
    pid_namespace: str
    boot_id: str
    host: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lease:
    token: str
    run_id: str
    taken_at: str
    holder: Holder
    tables: tuple[TableKey, ...]
    is_brief: bool = False


class Leases:
    """The right of one run to commit to some tables, all of them or none.

    The leases of a lake are a log of small files, each the whole list of who holds what; taking and releasing
    is creating the next number. So no two runs can hold a table, and a take-over is seen by the holder that
    lost it. The holder calls `beat` every `heartbeat_seconds`; whoever finds its process gone, or no beat for
    `stale_seconds` by the store's clock, may take the tables.
    """

    def __init__(
        self,
        store: Store,
        *,
        run_id: str,
        clock: Clock,
        tables: Iterable[TableKey],
        heartbeat_seconds: float = 10,
        stale_seconds: float = 60,
        holder: Holder | None = None,
        token: str = "",
        is_brief: bool = False,
    ) -> None:
        self.heartbeat_seconds = heartbeat_seconds
        self._store = store
        self._clock = clock
        self._stale_seconds = stale_seconds
        self._number = 0
        self._mine = _Lease(
            token=token or secrets.token_hex(16),
            run_id=run_id,
            taken_at="",
            holder=holder if holder is not None else this_process(),
            tables=tuple(sorted(set(tables))),
            is_brief=is_brief,
        )

    def acquire(self) -> None:
        """Hold all the tables.

        Raises: LakeBusy, naming the run in the way; nothing is held then. If its `is_brief` is true it is worth
        asking again in a moment.
        """
        self.beat()
        mine = replace(self._mine, taken_at=_time_text(self._clock.now()))
        try:
            for _ in range(_REBASES):
                number, leases = _read_leases(self._store)
                kept = [lease for lease in leases if lease.token != mine.token and self._keeps(lease)]
                if _put_leases(self._store, number + 1, [*kept, mine]):
                    self._number = number + 1
                    return
            raise LakeBusy(
                f"cannot lease tables of lake {self._store.uri}: other runs were always first; run again",
                is_brief=True,
            )
        except LakeError:  # a list that may have been put all the same names a holder without a sign of life
            self._store.delete(_beat_path(mine.token))
            raise

    def beat(self) -> None:
        """Say that the holder lives."""
        self._store.put(_beat_path(self._mine.token), b"{}\n")

    def are_mine(self) -> bool:
        """True as long as nobody has taken them over."""
        _, leases = _read_leases(self._store)
        return any(lease.token == self._mine.token for lease in leases)

    def check(self) -> None:
        """Return if they are still held.

        Raises: LakeBusy, naming the run that took them; LakeError if the lake was removed meanwhile.
        """
        number, leases = _read_leases(self._store)
        if any(lease.token == self._mine.token for lease in leases):
            return
        if number < self._number:
            raise LakeError(
                f"the leases in lake {self._store.uri} are gone: it was removed or replaced during the run; "
                "nothing was committed, run again"
            )
        others = [lease for lease in leases if set(lease.tables) & set(self._mine.tables)]
        taker = (
            f"run {others[0].run_id} took them over" if others else "another run took them over and has ended"
        )
        raise LakeBusy(
            f"run {self._mine.run_id} no longer holds its tables in lake {self._store.uri}: "
            f"it gave no sign of life and {taker}; nothing was committed, run again"
        )

    def release(self) -> None:
        """Hold nothing; what another run has taken over stays with it."""
        try:
            for _ in range(_REBASES):
                number, leases = _read_leases(self._store)
                kept = [lease for lease in leases if lease.token != self._mine.token]
                if len(kept) == len(leases) or _put_leases(self._store, number + 1, kept):
                    break
        finally:
            # Where nothing more can be written, this alone frees the tables: a holder without it is silent.
            self._store.delete(_beat_path(self._mine.token))

    def _keeps(self, lease: _Lease) -> bool:
        """Whether another's lease stays beside this one. Raises: LakeBusy if it stands in the way."""
        if _is_dead(lease.holder, self._mine.holder):
            return False
        wanted = sorted(set(lease.tables) & set(self._mine.tables))
        if not wanted:
            return True
        age_seconds = _silent_seconds(self._store, lease)
        if age_seconds > self._stale_seconds:
            return False
        table, account = wanted[0]
        others = f" and {len(wanted) - 1} more" if len(wanted) > 1 else ""
        raise LakeBusy(
            f"table {table} of account {account}{others} is being written by run {lease.run_id} "
            f"(process {lease.holder.pid} on {lease.holder.host}, since {lease.taken_at}, "
            f"last sign of life {age_seconds:.0f} s ago); wait for it, then run again",
            is_brief=lease.is_brief or self._mine.is_brief,
        )


def live_runs(store: Store, *, stale_seconds: float = 60, holder: Holder | None = None) -> frozenset[str]:
    """The runs that hold a lease and show signs of life."""
    observer = holder if holder is not None else this_process()
    _, leases = _read_leases(store)
    return frozenset(
        lease.run_id
        for lease in leases
        if not _is_dead(lease.holder, observer) and _silent_seconds(store, lease) <= stale_seconds
    )


def this_process() -> Holder:
    """The process that asks."""
    boot_id = pid_namespace = ""
    with suppress(OSError):
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with suppress(OSError):
        pid_namespace = str(Path("/proc/self/ns/pid").readlink())
    return Holder(
        pid=os.getpid(),
        process_started=_process_started(os.getpid()) or "",
        pid_namespace=pid_namespace,
        boot_id=boot_id,
        host=socket.gethostname(),
    )


def _encode_entry(entry: LogEntry) -> bytes:
    """The bytes of an entry: JSON with sorted keys, and a checksum over the rest of it."""
    tables: dict[str, dict[str, object]] = {}
    for (table, account), reference in entry.tables.items():
        tables.setdefault(table, {})[account] = reference
    body = {
        "format_version": entry.format_version,
        "sequence": entry.sequence,
        "run_id": entry.run_id,
        "run_part": entry.run_part,
        "is_final": entry.is_final,
        "status": entry.status,
        "started_at": _time_text(entry.started_at),
        "committed_at": _time_text(entry.committed_at),
        "tables": tables,
        "publishing": entry.publishing,
        "replaced": entry.replaced,
        "summary": entry.summary,
        "source": entry.source,
        "predecessor": entry.predecessor,
    }
    # Through JSON once, so that the checksum is over what a reader will get.
    body = orjson.loads(_encoded(body))
    return _encoded({**body, "checksum": _sha256(_encoded(body))})


def _decode_entry(content: bytes, *, sequence: int, lake: str) -> LogEntry:
    """The entry in these bytes. Raises: LakeError if this program did not write them, or a newer one did."""
    path = _entry_path(sequence)
    try:
        body = orjson.loads(content)
        version = body["format_version"]
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise LakeError(
                f"{path} in lake {lake} has format {version}, this version reads up to {FORMAT_VERSION}; "
                "upgrade skysql-extractor"
            )
        checksum = body.pop("checksum")
        if checksum != _sha256(_encoded(body)) or body["sequence"] != sequence:
            raise ValueError("checksum")
        return LogEntry(
            sequence=sequence,
            run_id=body["run_id"],
            run_part=body["run_part"],
            is_final=body["is_final"],
            status=body["status"],
            started_at=datetime.fromisoformat(body["started_at"]),
            committed_at=datetime.fromisoformat(body["committed_at"]),
            tables={
                (table, account): TableRef(**reference)
                for table, accounts in body["tables"].items()
                for account, reference in accounts.items()
            },
            publishing={run_id: tuple(sequences) for run_id, sequences in body["publishing"].items()},
            replaced=body["replaced"],
            summary=body["summary"],
            source=body["source"],
            predecessor=body["predecessor"],
            format_version=version,
            digest=_sha256(content),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise LakeError(
            f"{path} in lake {lake} is damaged or was changed by hand; restore it from a copy of the lake"
        ) from error


def _read_hint(store: Store) -> Mapping[str, object]:
    """What `latest.json` says; empty if there is none or it makes no sense."""
    try:
        content = orjson.loads(store.read(_LATEST))
    except (StoreMissing, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Written:
    """References whose lists are in the lake, and those they are to take the place of."""

    references: Mapping[TableKey, TableRef]
    expected: Mapping[TableKey, TableRef | None]


def _write_states(store: Store, log: CommitLog, run_id: str, updates: Sequence[Update]) -> _Written:
    expected = {(update.table, update.account): update.expected for update in updates}
    if len(expected) != len(updates):
        raise LakeError("one commit updates a table of an account twice; this is a fault of the caller")
    staged = _staged(store, run_id) if updates else {}
    references = {
        (update.table, update.account): _write_state(store, log, run_id, update, staged) for update in updates
    }
    return _Written(references=references, expected=expected)


def _write_state(
    store: Store, log: CommitLog, run_id: str, update: Update, staged: Mapping[str, StoredFile]
) -> TableRef:
    state = update.state
    before: Mapping[str, object] = {}
    if update.expected is not None:
        before = log.read_list(update.expected.digest)
    files = sorted(((file.path, _file_value(file)) for file in state.files), key=lambda pair: pair[0])
    file_list = _cut(files)
    state_list = _cut(sorted(state.state.items()))
    sizes = {file.path: file.size_bytes for file in state.files}
    for path in sorted(_new_keys(log, before.get("files"), file_list)):
        found = staged.get(path) or store.stat(path)
        if found is None or found.size_bytes != sizes[path]:
            raise LakeError(
                f"cannot commit to lake {store.uri}: {path} of run {run_id} is not staged as it was written; "
                "nothing was committed, run again"
            )
    for part, pieces in ((before.get("files"), file_list), (before.get("state"), state_list)):
        _write_pieces(log, part, pieces)
    columns = _encoded({"columns": state.columns})
    if before.get("columns") != _sha256(columns):
        log.write_content(columns)
    content = _encoded(
        {
            "table": state.table,
            "account": state.account,
            "columns": _sha256(columns),
            "files": file_list.part,
            "state": state_list.part,
        }
    )
    if update.expected is None or update.expected.digest != _sha256(content):
        log.write_content(content)
    return TableRef(
        digest=_sha256(content),
        sync=state.sync,
        status=state.status,
        reason=state.reason,
        rows=state.rows,
        files=len(state.files),
        size_bytes=sum(sizes.values()),
        folder=_common_run_folder(sizes),
        run_id=state.run_id,
        proved_by=state.proved_by,
        snapshot_at=state.snapshot_at,
        content=state.content,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pieces:
    """A list of keys and values, cut: its root, the pieces by digest, the keys of each leaf."""

    part: Mapping[str, object]
    contents: Mapping[str, bytes]
    leaves: Mapping[str, frozenset[str]]


def _cut(items: Sequence[tuple[str, object]]) -> _Pieces:
    """The pieces of items in the order of their keys, equal for equal items; a short list is its root."""
    encoded = [(key, _encoded((key, value))) for key, value in items]
    if len(items) <= _INLINE_ITEMS and sum(len(content) for _, content in encoded) <= _INLINE_BYTES:
        return _Pieces(
            part={"items": [orjson.Fragment(content) for _, content in encoded]},
            contents={},
            leaves={"": frozenset(key for key, _ in items)},
        )
    contents: dict[str, bytes] = {}
    leaves: dict[str, frozenset[str]] = {}
    level: list[tuple[str, bytes]] = []
    for piece in _runs(encoded):
        content = _encoded({"items": [orjson.Fragment(item) for _, item in piece]})
        digest = _sha256(content)
        contents[digest] = content
        leaves[digest] = frozenset(key for key, _ in piece)
        level.append((digest, _encoded(digest)))
    height = 0
    while len(level) > 1:
        above: list[tuple[str, bytes]] = []
        for piece in _runs(level):
            content = _encoded({"children": [digest for digest, _ in piece]})
            contents[_sha256(content)] = content
            above.append((_sha256(content), _encoded(_sha256(content))))
        level, height = above, height + 1
    return _Pieces(part={"tree": level[0][0], "height": height}, contents=contents, leaves=leaves)


def _runs(items: Sequence[tuple[str, bytes]]) -> Iterator[Sequence[tuple[str, bytes]]]:
    """Consecutive items, cut behind keys that their own hash picks: an insertion moves no cut but its own."""
    piece: list[tuple[str, bytes]] = []
    size_bytes = 0
    for key, content in items:
        piece.append((key, content))
        size_bytes += len(content)
        is_cut = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=4).digest()) % _CUT == 0
        # Two at least, or the levels above would never come to one piece.
        if len(piece) > 1 and (is_cut or len(piece) >= _PIECE_ITEMS or size_bytes >= _PIECE_BYTES):
            yield piece
            piece, size_bytes = [], 0
    if piece:
        yield piece


def _new_keys(log: CommitLog, before: object, pieces: _Pieces) -> set[str]:
    """The keys that the list had not before; reads only leaves that changed."""
    if before is None:
        return set().union(*pieces.leaves.values())
    _, old_leaves = log._nodes(before)
    new = set().union(*(keys for leaf, keys in pieces.leaves.items() if leaf not in old_leaves))
    return new - log._keys(before, old_leaves.difference(pieces.leaves))


def _write_pieces(log: CommitLog, before: object, pieces: _Pieces) -> None:
    inner, leaves = (
        log._nodes(before) if before is not None and pieces.contents else (frozenset(), frozenset())
    )
    for digest, content in pieces.contents.items():
        if digest not in inner and digest not in leaves:
            log.write_content(content)


def _committed_before(log: CommitLog, run_id: str, written: _Written, leases: Leases | None) -> LogEntry:
    """The entry that holds these very updates already. Raises: LakeBusy or CommitConflict if there is none."""
    newest = log.newest()
    if newest is not None and all(newest.tables.get(key) == made for key, made in written.references.items()):
        for sequence in reversed(newest.publishing.get(run_id, ())):
            return log.read(sequence)
        if newest.run_id == run_id:
            return newest
    if leases is not None:
        leases.check()
    current = newest.tables if newest is not None else {}
    moved = sorted(key for key, expected in written.expected.items() if current.get(key) != expected)
    names = ", ".join(f"{table} of account {account}" for table, account in moved[:3])
    raise CommitConflict(
        f"another run changed {names or 'the same tables'} since run {run_id} began; "
        "nothing was committed, run again"
    )


def _run_part(log: CommitLog, newest: LogEntry | None, run_id: str, started_at: datetime) -> int:
    if newest is None:
        return 1
    for entry in log.backwards(newest):
        if entry.run_id == run_id:
            return entry.run_part + 1
        # Times in the log never go back, so none of this run's entries stands before this one.
        if entry.committed_at < started_at:
            break
    return 1


def _commit_time(newest: LogEntry | None, started_at: datetime, clock: Clock) -> datetime:
    moments = [clock.now(), started_at]
    if newest is not None:
        moments.append(newest.committed_at)
    return max(moments)


def _warned(
    summary: Mapping[str, object], newest: LogEntry | None, started_at: datetime, clock: Clock
) -> Mapping[str, object]:
    if newest is None or max(clock.now(), started_at) >= newest.committed_at:
        return summary
    warnings = summary.get("warnings")
    kept = list(warnings) if isinstance(warnings, (list, tuple)) else []
    moment = _time_text(newest.committed_at)
    return {
        **summary,
        "warnings": [
            *kept,
            f"this machine's clock is behind the newest commit; the entry has its time, {moment}",
        ],
    }


def _publishing(store: Store, newest: LogEntry | None, run_id: str) -> dict[str, tuple[int, ...]]:
    """Which runs still have something in staging, and in which entries they committed."""
    before = newest.publishing if newest is not None else {}
    kept = {
        other: sequences
        for other, sequences in before.items()
        if other == run_id or _has_staging(store, other)
    }
    sequence = newest.sequence + 1 if newest is not None else 1
    return {**kept, run_id: (*kept.get(run_id, ()), sequence)}


def _put_entry(store: Store, sequence: int, content: bytes) -> bool:
    """True if this content is the entry of that number, False if another is."""
    path = _entry_path(sequence)
    failure: LakeError | None = None
    for _ in range(3):
        try:
            if store.put_if_absent(path, content):
                return True
        except LakeError as error:
            # It may have won all the same: only the number itself can tell.
            failure = error
        with suppress(StoreMissing):
            return store.read(path) == content
    raise failure or LakeError(f"cannot commit to lake {store.uri}: {path} comes and goes; run again")


def _has_staging(store: Store, run_id: str) -> bool:
    return next(store.list(f"{_STAGING}/{run_id}"), None) is not None


def _staged(store: Store, run_id: str) -> dict[str, StoredFile]:
    """What stands in a run's staging, by the path it is meant for."""
    start = f"{_STAGING}/{run_id}/"
    return {stored.path.removeprefix(start): stored for stored in store.list(start)}


def _changed_states(log: CommitLog, entry: LogEntry) -> Iterator[TableState]:
    before = log.read(entry.sequence - 1).tables if entry.sequence > 1 else {}
    for key, reference in sorted(entry.tables.items()):
        earlier = before.get(key)
        if reference.files and (earlier is None or earlier.digest != reference.digest):
            yield log.state_of(entry, *key)


def _publish_files(
    store: Store, run_id: str, files: Sequence[DataFile], staged: Mapping[str, StoredFile]
) -> int:
    committed = [file.path for file in files if file.path in staged]
    by_folder: dict[str, list[str]] = {}
    for path in committed:
        by_folder.setdefault(path.rpartition("/")[0], []).append(path)
    for folder, paths in by_folder.items():
        if not folder.endswith(f"/run={run_id}"):
            for path in paths:
                _move(store, staged_path(run_id, path), path)
            continue
        for path in staged:
            # What a killed attempt left in the folder was never committed and must not appear with it.
            if path.startswith(f"{folder}/") and path not in paths:
                store.delete(staged_path(run_id, path))
        try:
            store.move_folder(staged_path(run_id, folder), folder)
        except StoreMissing:
            for path in paths:
                if not store.exists(path):
                    raise
    return len(committed)


def _move(store: Store, source: str, target: str) -> None:
    try:
        store.move(source, target)
    except StoreMissing:
        # Another writer finishes the same publication.
        if not store.exists(target):
            raise


def _write_hint(store: Store, log: CommitLog) -> None:
    newest = log.newest()
    if newest is None:
        return
    before = _read_hint(store)
    known = before.get("snapshots")
    folders: Mapping[str, object] = known if isinstance(known, dict) else {}
    snapshots: dict[str, object] = {}
    for (table, account), reference in newest.tables.items():
        if reference.sync != "snapshot" or not reference.folder:
            continue
        name = f"{table}/{account}"
        # Another run may have committed it and not published it yet: its folder is not there to be read.
        if folders.get(name) == reference.folder or next(store.list(reference.folder), None) is not None:
            snapshots[name] = reference.folder
        elif name in folders:
            snapshots[name] = folders[name]
    hint = {"sequence": newest.sequence, "run_id": newest.run_id, "snapshots": snapshots}
    if hint != before:
        store.put(_LATEST, _encoded(hint))


def _read_leases(store: Store) -> tuple[int, tuple[_Lease, ...]]:
    """The number of the newest list of leases, 0 if there is none, and what it says."""
    for _ in range(_REBASES):
        number = max(_lease_numbers(store), default=0)
        if number == 0:
            return 0, ()
        try:
            content = store.read(_leases_path(number))
        except StoreMissing:
            # Many others came and went between the two calls.
            continue
        try:
            return number, tuple(map(_lease_of, orjson.loads(content)["leases"]))
        except (KeyError, TypeError, ValueError) as error:
            raise LakeError(
                f"{_leases_path(number)} in lake {store.uri} is damaged; "
                f"if no run is active, remove the folder {_LEASES} and run again"
            ) from error
    raise LakeError(f"cannot read {_LEASES} in lake {store.uri}: it changes all the time; run again")


def _put_leases(store: Store, number: int, leases: Sequence[_Lease]) -> bool:
    """True if this is the newest list of leases now; False if another writer was first."""
    content = _encoded({"format_version": FORMAT_VERSION, "leases": leases})
    try:
        is_mine = store.put_if_absent(_leases_path(number), content)
    except LakeError:
        # Unanswered is not refused. Tokens are unique, so equal bytes are this call's.
        if not store.exists(_leases_path(number)) or store.read(_leases_path(number)) != content:
            raise
        is_mine = True
    numbers = _lease_numbers(store)
    if not is_mine:
        return False
    if max(numbers, default=number) >= number + _LEASES_KEPT:
        # The number was used and removed long ago: this caller slept, and what it wrote says nothing.
        store.delete(_leases_path(number))
        return False
    for done in numbers:
        if done <= number - _LEASES_KEPT:
            store.delete(_leases_path(done))
    return True


def _lease_numbers(store: Store) -> list[int]:
    numbers: list[int] = []
    for stored in store.list(_LEASES):
        stem = stored.path.removeprefix(f"{_LEASES}/").removesuffix(".json")
        if stem.isdecimal():
            numbers.append(int(stem))
    return numbers


def _lease_of(content: Mapping[str, object]) -> _Lease:
    return _Lease(
        token=str(content["token"]),
        run_id=str(content["run_id"]),
        taken_at=str(content["taken_at"]),
        holder=Holder(**cast(dict[str, str], content["holder"])),  # type: ignore[arg-type]  # pid is a number
        tables=tuple((table, account) for table, account in cast(list[list[str]], content["tables"])),
        is_brief=bool(content.get("is_brief", False)),
    )


def _is_dead(holder: Holder, observer: Holder) -> bool:
    """True if the process is known to be gone; only a process of the same machine can know that."""
    if holder.host != observer.host or not holder.boot_id or not observer.boot_id:
        return False
    if holder.boot_id != observer.boot_id:
        return True
    if holder.pid_namespace != observer.pid_namespace:
        return False
    started = _process_started(holder.pid)
    return started is None or bool(started and holder.process_started and started != holder.process_started)


def _process_started(pid: int) -> str | None:
    """When the process began, in its system's terms, empty if that cannot be known; None if it is gone."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except (PermissionError, OverflowError):
        pass
    try:
        # The name in parentheses may hold anything, so count from behind it.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    state, started = fields[0], fields[19]
    return None if state in "ZX" else started


def _silent_seconds(store: Store, lease: _Lease) -> float:
    found = store.stat(_beat_path(lease.token))
    if found is None:
        # Released a moment ago, or the file was removed by hand: not a sign of life either way.
        return float("inf")
    return max(0.0, (store.now() - found.modified_at).total_seconds())


def _common_run_folder(paths: Iterable[str]) -> str:
    folders = {path.rpartition("/")[0] for path in paths}
    if len(folders) != 1:
        return ""
    folder = folders.pop()
    return folder if folder.rpartition("/")[2].startswith("run=") else ""


def _file_value(file: DataFile) -> Mapping[str, object]:
    return {
        "rows": file.rows,
        "size_bytes": file.size_bytes,
        "sha256": file.sha256,
        "partition": file.partition,
        "content": file.content,
    }


def _file_of(path: str, value: object) -> DataFile:
    from extractor.write import DataFile

    content = cast(Mapping[str, object], value)
    return DataFile(
        path=path,
        rows=cast(int, content["rows"]),
        size_bytes=cast(int, content["size_bytes"]),
        sha256=str(content["sha256"]),
        partition=tuple((key, item) for key, item in cast(list[list[str]], content["partition"])),
        content=str(content["content"]),
    )


def _pair(item: object) -> tuple[str, object]:
    key, value = cast(list[object], item)
    return str(key), value


def _entry_path(sequence: int) -> str:
    return f"{_LOG}/{sequence:020d}.json"


def _list_path(digest: str) -> str:
    return f"{_LISTS}/{digest}.json"


def _leases_path(number: int) -> str:
    return f"{_LEASES}/{number:020d}.json"


def _beat_path(token: str) -> str:
    return f"{_BEATS}/{token}.json"


def _time_text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _encoded(value: object) -> bytes:
    return orjson.dumps(value, default=_plain, option=orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE)


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"no JSON form for {type(value).__name__}")
