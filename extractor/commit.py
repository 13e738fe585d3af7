"""The log of the lake: a run becomes visible, in all its tables at once, by creating one numbered file.

    _extractor/log/N.json       an entry: the whole logical state, by reference
    _extractor/lists/DIGEST.json  immutable lists of files, columns and state, shared by entries
    _extractor/folds/N.json.gz  entries that are old, 256 in a file, with the lists that only they refer to
    _extractor/leases/N.json    who writes what (see `lease`)
    _extractor/staging/RUN/     data files that are complete but not yet in their place
    _extractor/latest.json      a hint where to begin looking for the newest entry

Every decision between writers is a put-if-absent of the next number, so there is nothing to lock and no order
of steps in which a crash could leave half a commit. A list that grows is cut where the hash of a path says
so: adding a file changes the piece it falls into and the few pieces above, however long the list is.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import unquote

import msgspec
import orjson

from extractor.clock import Clock
from extractor.errors import CommitConflict, LakeError
from extractor.exchange import exchange_files
from extractor.fold import FOLD_ENTRIES, Fold, Folds
from extractor.lease import FORMAT_VERSION, Holder, Leases, TableKey, live_runs, this_process
from extractor.lists import (
    Pieces,
    can_stand_apart,
    cut,
    cut_growing,
    encoded,
    pair_of,
    recent_items,
    sha256,
    with_recent,
)
from extractor.store import SCRATCH, STAGING, Store, StoredFile, StoreMissing, staged_path

if TYPE_CHECKING:
    # It brings Arrow with it, and listing the runs of a lake must not wait for that.
    from extractor.write import DataFile

__all__ = (
    "FORMAT_VERSION",
    "GRACE_SECONDS",
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
    "is_waiting",
    "live_runs",
    "old_path",
    "publish",
    "roll_forward",
    "staged_path",
    "this_process",
)

GRACE_SECONDS = 3_600.0
"""So long files that were replaced stay for readers who hold an older entry."""

_LOG = "_extractor/log"
_LISTS = "_extractor/lists"
_OLD = "_extractor/old"
_LATEST = "_extractor/latest.json"

_PROBES = 64
"""So many entries a hint may lag before listing the log is quicker than probing on."""
_REBASES = 100
_TABLES_APART = 8
"""So many tables stand in every entry; of more only those do that differ from a list which entries share."""
_BASES_OPEN = 4
_FILES_READ = 256
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

    @property
    def is_event(self) -> bool:
        """True where rows are added once and then stay."""
        return self.snapshot_at is None


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

    @property
    def is_event(self) -> bool:
        """True where rows are added once and then stay."""
        return self.snapshot_at is None


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
    graces: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """By their number, entries whose removed files are still kept: until when, and one of the files."""
    base: str = field(default="", compare=False)
    """Digest of a list of tables that entries share, or empty: only what differs from it is in the entry itself."""
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
    rewritten: Sequence[DataFile] = (),
    grace_seconds: float = GRACE_SECONDS,
) -> LogEntry:
    """The entry that makes all `updates` visible at once; every other table is carried forward as it is.

    The new files must be staged. Without updates the entry records that the run took place. `replaced` maps
    paths of files that are no longer current to the paths of those that hold their rows (none: the rows are
    gone); `rewritten` are those of the new files that are in no state of the updates. Replaced files are kept for
    `grace_seconds` once this is published; 0 removes them at once. Calling it again after an error with the same
    updates does not commit twice.

    Raises: LakeBusy if a lease was taken over; CommitConflict if another writer changed one of the tables;
    LakeError if a new file is not staged or the lake cannot be written. Nothing is committed then, unless the
    medium failed in the very act: the next writing verb finds that out.
    """
    newest = log.newest()
    made: dict[bool, _Written] = {}

    def written(is_apart: bool) -> _Written:
        if is_apart not in made:
            made[is_apart] = _write_states(store, log, run_id, updates, is_apart=is_apart)
        return made[is_apart]

    def is_apart() -> bool:
        # What takes the place of other files holds rows of other runs.
        return not replaced and _is_apart(log, newest, run_id, started_at)

    written(is_apart())
    replacements = ""
    if replaced:
        _check_staged(store, run_id, rewritten)
        replacements = _write_replaced(log, replaced, [*rewritten, *_files_of(updates)], grace_seconds)
        # So that there is something in staging for as long as this is to be published.
        store.put(staged_path(run_id, _marker(replacements)), b"{}\n")
    for _ in range(_REBASES):
        current = newest.tables if newest is not None else {}
        states = written(is_apart())
        if any(current.get(key) != expected for key, expected in states.expected.items()):
            return _committed_before(log, run_id, [written(False), written(True)], leases)
        tables = {**current, **states.references}
        publishing = _publishing(store, newest, run_id)
        entry = LogEntry(
            sequence=newest.sequence + 1 if newest is not None else 1,
            run_id=run_id,
            run_part=_run_part(log, newest, run_id, started_at),
            is_final=is_final,
            status=status,
            started_at=started_at,
            committed_at=_commit_time(newest, started_at, clock),
            tables=tables,
            publishing=publishing,
            replaced=replacements,
            summary=_warned(summary, newest, started_at, clock),
            source=source,
            predecessor=newest.digest if newest is not None else "",
            graces=_graces(store, newest, publishing, replaced or {}, grace_seconds),
            base=_base_for(log, newest, tables),
        )
        content = _encode_entry(entry, log.base(entry.base))
        if leases is not None:
            leases.check()
        if _put_entry(store, entry.sequence, content):
            is_known = log.folds.entry(entry.sequence) in (None, content)
            if is_known and (newest is None or log.digest_of(newest.sequence) == newest.digest):
                return log.decoded(content, entry.sequence)
            # What it was built on is gone, or the number was used and folded long ago: void. It goes too, before
            # anyone builds on it.
            store.delete(_entry_path(entry.sequence))
        newest = log.newest()
    raise CommitConflict(f"cannot commit to lake {store.uri}: other writers were always first; run again")


def publish(store: Store, log: CommitLog, entry: LogEntry, *, beat: Callable[[], None] = lambda: None) -> int:
    """Move what `entry` made current from staging to its place, write the hint, and say how many files moved.

    May be repeated, and be done by several at once; an entry that replaced files only by the holder of the lease.
    After the last entry of a run its staging is removed. Sometimes old entries are folded in passing.
    """
    moved = 0
    if entry.replaced and is_waiting(store, entry):
        moved += _publish_replaced(store, log, entry, beat)
    staged = _staged(store, entry.run_id)
    if staged:
        for paths in _changed_paths(log, entry):
            moved += _publish_files(store, entry.run_id, paths, staged)
    _write_hint(store, log)
    if entry.is_final:
        store.delete_folder(f"{STAGING}/{entry.run_id}")
    _fold_older(store, log)
    return moved


def roll_forward(store: Store, log: CommitLog, leases: Leases | None = None) -> list[str]:
    """Finish what cut-off runs committed but did not publish; the ids of those runs. Remove what is past its grace.

    Every writing verb begins with this, after it has its leases. Files that take the place of others need the lease
    of their table: without it they are left to the next verb that has it.
    """
    log.check_numbers()
    newest = log.newest()
    finished: list[str] = []
    for run_id, sequences in newest.publishing.items() if newest is not None else ():
        if not _staged(store, run_id):
            continue
        entries = [log.read(sequence) for sequence in sequences]
        entries = [entry for entry in entries if _may_publish(store, log, entry, leases)]
        if not entries:
            continue
        moved = sum(publish(store, log, entry) for entry in entries)
        if moved or entries[-1].is_final:
            finished.append(run_id)
    if newest is not None and newest.graces:
        _remove_old(store, log, newest)
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
    for stored in store.list(STAGING):
        run_id = stored.path.split("/")[2]
        newest_file[run_id] = max(stored.modified_at, newest_file.get(run_id, stored.modified_at))
    newest = log.newest()
    publishing = newest.publishing if newest is not None else {}
    removed: list[str] = []
    for run_id, modified_at in sorted(newest_file.items()):
        if run_id in live_runs or (now - modified_at).total_seconds() < resume_seconds:
            continue
        entries = [log.read(sequence) for sequence in publishing.get(run_id, ())]
        if any(entry.replaced and is_waiting(store, entry) for entry in entries):
            continue  # it takes the lease of its tables to finish those
        for entry in entries:
            publish(store, log, entry)
        store.delete_folder(f"{STAGING}/{run_id}")
        removed.append(run_id)
    for stored in store.list(SCRATCH):
        if (now - stored.modified_at).total_seconds() > max(resume_seconds, _DEBRIS_SECONDS):
            store.delete(stored.path)
    return removed


def old_path(path: str) -> str:
    """Where the file that stood at `path` is during its grace period."""
    return f"{_OLD}/{path}"


class CommitLog:
    """The entries of a lake, and the lists they refer to. Reading one writes nothing."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.folds = Folds(store)
        self._bases: OrderedDict[str, Mapping[TableKey, TableRef]] = OrderedDict()
        self._files_read: OrderedDict[str, tuple[DataFile, ...]] = OrderedDict()

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
        content = self._content(sequence)
        if content is None:
            raise self._missing_number(sequence)
        return self.decoded(content, sequence)

    def decoded(self, content: bytes, sequence: int) -> LogEntry:
        """The entry in these bytes. Raises: as `read`."""
        return _decode_entry(
            content,
            sequence=sequence,
            lake=self._store.uri,
            base_of=lambda digest: self.base(digest, sequence),
        )

    def base(self, digest: str, near: int = 0) -> Mapping[TableKey, TableRef]:
        """The tables of a list that entries share."""
        if not digest:
            return {}
        found = self._bases.get(digest)
        if found is None:
            found = _flat(self.read_list(digest, near)["tables"])
            self._bases[digest] = found
        self._bases.move_to_end(digest)
        while len(self._bases) > _BASES_OPEN:
            self._bases.popitem(last=False)
        return found

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
        near = entry.sequence
        content = self.read_list(reference.digest, near)
        columns = cast(list[Mapping[str, object]], self.read_list(str(content["columns"]), near)["columns"])
        files = tuple(_file_of(path, value) for path, value in self._items(content["files"], near))
        self._files_read[reference.digest] = files
        while len(self._files_read) > _FILES_READ:
            self._files_read.popitem(last=False)
        return TableState(
            table=table,
            account=account,
            sync=reference.sync,
            status=reference.status,
            reason=reference.reason,
            rows=reference.rows,
            files=files,
            columns=tuple(columns),
            state=dict(self._items(content["state"], near)),
            run_id=reference.run_id,
            proved_by=reference.proved_by,
            snapshot_at=reference.snapshot_at,
            content=reference.content,
        )

    def files_read(self, digest: str) -> tuple[DataFile, ...]:
        """The files of a table as `state_of` gave them, if it did lately; else none."""
        return self._files_read.get(digest, ())

    def paths_since(self, reference: TableRef, earlier: TableRef | None, near: int) -> set[str]:
        """The paths in the pieces of a table's list of files that are not those of an earlier one."""
        part = self.read_list(reference.digest, near)["files"]
        _, leaves = self._nodes(part)
        if earlier is not None and leaves:
            leaves -= self._nodes(self.read_list(earlier.digest, near)["files"])[1]
        return self._keys(part, leaves)

    def replacements(self, entry: LogEntry) -> Mapping[str, tuple[str, ...]]:
        """The paths of the files that `entry` removed, each with those that hold its rows now."""
        if not entry.replaced:
            return {}
        content = self.read_list(entry.replaced, entry.sequence)
        found = cast(Mapping[str, Sequence[str]], content["replaced"])
        return {path: tuple(paths) for path, paths in found.items()}

    def replacing_files(self, entry: LogEntry) -> Mapping[str, DataFile]:
        """The files that hold the rows of those that `entry` removed, by path."""
        if not entry.replaced:
            return {}
        content = self.read_list(entry.replaced, entry.sequence)
        return {
            path: _file_of(path, value) for path, value in map(pair_of, cast(list[object], content["files"]))
        }

    def lists_of(self, reference: TableRef) -> frozenset[str]:
        """The digests of every list that a table's state consists of: to be kept while an entry has it."""
        content = self.read_list(reference.digest)
        digests = {reference.digest, str(content["columns"])}
        for part in (content["files"], content["state"]):
            inner, leaves = self._nodes(part)
            digests |= inner | leaves
        return frozenset(digests)

    def lists_of_entry(self, entry: LogEntry, seen: set[str]) -> set[str]:
        """The digests of every list that an entry needs; those of tables in `seen` are left out, and put there."""
        digests = {digest for digest in (entry.base, entry.replaced) if digest}
        for reference in entry.tables.values():
            if reference.digest not in seen:
                seen.add(reference.digest)
                digests |= self.lists_of(reference)
        return digests

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
        # What is folded and what is about to be removed for it may both be there.
        folded = set(self.folds.numbers())
        for missing in _gaps(numbers, folded):
            # A listing that ran beside two commits may show the second without the first.
            if self._content(missing) is None:
                raise self._missing_number(missing)
        return max(newest, max(folded, default=0))

    def digest_of(self, sequence: int) -> str:
        """SHA-256 of the entry's bytes, empty if there is no such entry."""
        content = self._content(sequence)
        return "" if content is None else sha256(content)

    def read_list(self, digest: str, near: int = 0) -> Mapping[str, object]:
        """The content of a list; `near` is the number of an entry that refers to it, if that may be an old one.

        Raises: LakeError if it is missing or is not what its name says.
        """
        path = _list_path(digest)
        try:
            content = self._store.read(path)
        except StoreMissing:
            folded = self.folds.content(digest, near)
            if folded is None:
                raise
            content = folded
        if sha256(content) != digest:
            raise LakeError(
                f"{path} in lake {self._store.uri} was changed after it was written; "
                "restore it from a copy of the lake"
            )
        return cast(Mapping[str, object], orjson.loads(content))

    def write_list(self, content: Mapping[str, object]) -> str:
        """The digest under which the list now can be read."""
        return self.write_content(encoded(content))

    def write_content(self, content: bytes) -> str:
        digest = sha256(content)
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

    def _content(self, sequence: int) -> bytes | None:
        try:
            return self._store.read(_entry_path(sequence))
        except StoreMissing:
            return self.folds.entry(sequence)

    def _items(self, part: object, near: int = 0) -> Iterator[tuple[str, object]]:
        content = cast(Mapping[str, object], part)
        if "recent" in content:
            older = {key: value for key, value in content.items() if key != "recent"}
            yield from sorted([*self._items(older, near), *recent_items(content)], key=lambda item: item[0])
            return
        if "tree" in content:
            content = self.read_list(str(content["tree"]), near)
        if "items" in content:
            yield from map(pair_of, cast(list[object], content["items"]))
            return
        for digest in cast(list[str], content["children"]):
            yield from self._items({"tree": digest}, near)

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
        recent = {key for key, _ in recent_items(part)}
        return recent.union(key for leaf in leaves for key, _ in self._items({"tree": leaf}))

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


def _encode_entry(entry: LogEntry, base: Mapping[TableKey, TableRef]) -> bytes:
    """The bytes of an entry: JSON with sorted keys, and a checksum over the rest of it."""
    apart = {key: reference for key, reference in entry.tables.items() if base.get(key) != reference}
    body = {
        "format_version": entry.format_version,
        "sequence": entry.sequence,
        "run_id": entry.run_id,
        "run_part": entry.run_part,
        "is_final": entry.is_final,
        "status": entry.status,
        "started_at": _time_text(entry.started_at),
        "committed_at": _time_text(entry.committed_at),
        "tables": _nested(apart),
        "base": entry.base,
        "graces": entry.graces,
        "publishing": entry.publishing,
        "replaced": entry.replaced,
        "summary": entry.summary,
        "source": entry.source,
        "predecessor": entry.predecessor,
    }
    # Through JSON once, so that the checksum is over what a reader will get.
    body = orjson.loads(encoded(body))
    return encoded({**body, "checksum": sha256(encoded(body))})


def _decode_entry(
    content: bytes, *, sequence: int, lake: str, base_of: Callable[[str], Mapping[TableKey, TableRef]]
) -> LogEntry:
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
        if checksum != sha256(encoded(body)) or body["sequence"] != sequence:
            raise ValueError("checksum")
        return LogEntry(
            sequence=sequence,
            run_id=body["run_id"],
            run_part=body["run_part"],
            is_final=body["is_final"],
            status=body["status"],
            started_at=datetime.fromisoformat(body["started_at"]),
            committed_at=datetime.fromisoformat(body["committed_at"]),
            tables={**base_of(body["base"]), **_flat(body["tables"])},
            base=body["base"],
            graces={number: (until, path) for number, (until, path) in body["graces"].items()},
            publishing={run_id: tuple(sequences) for run_id, sequences in body["publishing"].items()},
            replaced=body["replaced"],
            summary=body["summary"],
            source=body["source"],
            predecessor=body["predecessor"],
            format_version=version,
            digest=sha256(content),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise LakeError(
            f"{path} in lake {lake} is damaged or was changed by hand; restore it from a copy of the lake"
        ) from error


def _nested(tables: Mapping[TableKey, TableRef]) -> Mapping[str, object]:
    nested: dict[str, dict[str, object]] = {}
    for (table, account), reference in tables.items():
        nested.setdefault(table, {})[account] = reference
    return nested


def _flat(nested: object) -> dict[TableKey, TableRef]:
    return {
        (table, account): TableRef(**reference)
        for table, accounts in cast(dict[str, dict[str, dict[str, Any]]], nested).items()
        for account, reference in accounts.items()
    }


def _base_for(log: CommitLog, newest: LogEntry | None, tables: Mapping[TableKey, TableRef]) -> str:
    """The list of tables that the next entry shares with those before it, or a new one for those to come."""
    if len(tables) <= _TABLES_APART:
        return ""
    before = newest.base if newest is not None else ""
    if before:
        shared = log.base(before)
        apart = sum(shared.get(key) != reference for key, reference in tables.items())
        if apart <= max(_TABLES_APART, len(tables) // 4):
            return before
    return log.write_list({"tables": _nested(tables)})


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


def _write_states(
    store: Store, log: CommitLog, run_id: str, updates: Sequence[Update], *, is_apart: bool
) -> _Written:
    expected = {(update.table, update.account): update.expected for update in updates}
    if len(expected) != len(updates):
        raise LakeError("one commit updates a table of an account twice; this is a fault of the caller")
    staged = _staged(store, run_id) if updates else {}
    references = {
        (update.table, update.account): _write_state(
            store, log, run_id, _set_apart(log, update) if is_apart else update, staged
        )
        for update in updates
    }
    return _Written(references=references, expected=expected)


def _set_apart(log: CommitLog, update: Update) -> Update:
    """The update with its new files marked as those that are not to be merged."""
    before = log.read_list(update.expected.digest)["files"] if update.expected is not None else {"items": []}
    known = {path for path, _ in log._items(before)}
    files = tuple(
        file if file.path in known else msgspec.structs.replace(file, is_apart=True)
        for file in update.state.files
    )
    return replace(update, state=replace(update.state, files=files))


def _check_staged(store: Store, run_id: str, files: Iterable[DataFile]) -> None:
    """Raises: LakeError if one of them is not staged as it was written."""
    for file in files:
        found = store.stat(staged_path(run_id, file.path)) or store.stat(file.path)
        if found is None or found.size_bytes != file.size_bytes:
            raise _not_staged(store, run_id, file.path)


def _not_staged(store: Store, run_id: str, path: str) -> LakeError:
    return LakeError(
        f"cannot commit to lake {store.uri}: {path} of run {run_id} is not staged as it was written; "
        "nothing was committed, run again"
    )


def _write_state(
    store: Store, log: CommitLog, run_id: str, update: Update, staged: Mapping[str, StoredFile]
) -> TableRef:
    state = update.state
    before: Mapping[str, object] = {}
    if update.expected is not None:
        before = log.read_list(update.expected.digest)
    added = _added_files(log, update)
    if added is None:
        files = sorted(((file.path, _file_value(file)) for file in state.files), key=lambda pair: pair[0])
        file_list = cut_growing(files, before.get("files"), staged)
        new = _new_keys(log, before.get("files"), file_list)
    else:
        values = [(file.path, _file_value(file)) for file in added]
        file_list = Pieces(part=with_recent(before["files"], values), contents={}, leaves={})
        new = {file.path for file in added}
    state_list = cut(sorted(state.state.items()))
    sizes = {file.path: file.size_bytes for file in state.files if file.path in new}
    for path in sorted(new):
        found = staged.get(path) or store.stat(path)
        if found is None or found.size_bytes != sizes[path]:
            raise _not_staged(store, run_id, path)
    for part, pieces in ((before.get("files"), file_list), (before.get("state"), state_list)):
        _write_pieces(log, part, pieces)
    columns = encoded({"columns": state.columns})
    if before.get("columns") != sha256(columns):
        log.write_content(columns)
    content = encoded(
        {
            "table": state.table,
            "account": state.account,
            "columns": sha256(columns),
            "files": file_list.part,
            "state": state_list.part,
        }
    )
    if update.expected is None or update.expected.digest != sha256(content):
        log.write_content(content)
    return TableRef(
        digest=sha256(content),
        sync=state.sync,
        status=state.status,
        reason=state.reason,
        rows=state.rows,
        files=len(state.files),
        size_bytes=sum(file.size_bytes for file in state.files),
        folder=_common_run_folder(file.path for file in state.files),
        run_id=state.run_id,
        proved_by=state.proved_by,
        snapshot_at=state.snapshot_at,
        content=state.content,
    )


def _added_files(log: CommitLog, update: Update) -> Sequence[DataFile] | None:
    """The files that came to those that the table had, where that is known without comparing lists and they are
    few: a long list is then neither read nor cut again.
    """
    if update.expected is None:
        return None
    known = log.files_read(update.expected.digest)
    added = update.state.files[len(known) :] if known else ()
    # The very objects that were read, so that this compares no more than their places.
    if not known or update.state.files[: len(known)] != known:
        return None
    before = log.read_list(update.expected.digest)["files"]
    return added if can_stand_apart(before, len(added)) else None


def _new_keys(log: CommitLog, before: object, pieces: Pieces) -> set[str]:
    """The keys that the list had not before; reads only leaves that changed."""
    if before is None:
        return set().union(*pieces.leaves.values())
    _, old_leaves = log._nodes(before)
    new = set().union(*(keys for leaf, keys in pieces.leaves.items() if leaf not in old_leaves))
    return new - log._keys(before, old_leaves.difference(pieces.leaves))


def _write_pieces(log: CommitLog, before: object, pieces: Pieces) -> None:
    inner, leaves = (
        log._nodes(before) if before is not None and pieces.contents else (frozenset(), frozenset())
    )
    for digest, content in pieces.contents.items():
        if digest not in inner and digest not in leaves:
            log.write_content(content)


def _committed_before(
    log: CommitLog, run_id: str, written: Sequence[_Written], leases: Leases | None
) -> LogEntry:
    """The entry that holds these very updates already, in one of their forms. Raises: LakeBusy or CommitConflict if
    there is none.
    """
    newest = log.newest()
    if newest is not None and any(
        all(newest.tables.get(key) == made for key, made in one.references.items()) for one in written
    ):
        for sequence in reversed(newest.publishing.get(run_id, ())):
            return log.read(sequence)
        if newest.run_id == run_id:
            return newest
    if leases is not None:
        leases.check()
    current = newest.tables if newest is not None else {}
    moved = sorted(key for key, expected in written[0].expected.items() if current.get(key) != expected)
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


def _is_apart(log: CommitLog, newest: LogEntry | None, run_id: str, started_at: datetime) -> bool:
    """True where others have committed since the first entry of the run."""
    if newest is None or _run_part(log, newest, run_id, started_at) == 1:
        return False
    if newest.run_id != run_id:
        return True
    first = log.read(newest.sequence - newest.run_part + 1)
    return (first.run_id, first.run_part) != (run_id, 1)


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


def _files_of(updates: Sequence[Update]) -> Iterator[DataFile]:
    for update in updates:
        yield from update.state.files


def _write_replaced(
    log: CommitLog, replaced: Mapping[str, Sequence[str]], files: Iterable[DataFile], grace_seconds: float
) -> str:
    new = {path for paths in replaced.values() for path in paths}
    values = sorted({file.path: _file_value(file) for file in files if file.path in new}.items())
    return log.write_list({"replaced": replaced, "files": values, "is_kept": grace_seconds > 0})


def _marker(replaced: str) -> str:
    return f"replaced/{replaced}"


def is_waiting(store: Store, entry: LogEntry) -> bool:
    """True while files that the entry replaced are still in their places."""
    return store.exists(staged_path(entry.run_id, _marker(entry.replaced)))


def _tables_of(paths: Iterable[str]) -> frozenset[TableKey]:
    """The tables and accounts that data files belong to, by their places."""
    return frozenset(
        (table, unquote(account.partition("=")[2]))
        for table, account, *_ in (path.split("/", 2) for path in paths)
    )


def _may_publish(store: Store, log: CommitLog, entry: LogEntry, leases: Leases | None) -> bool:
    if not entry.replaced or not is_waiting(store, entry):
        return True
    return leases is not None and leases.tables >= _tables_of(log.replacements(entry))


def _publish_replaced(store: Store, log: CommitLog, entry: LogEntry, beat: Callable[[], None]) -> int:
    content = log.read_list(entry.replaced, entry.sequence)
    new = [path for path, _ in map(pair_of, cast(list[object], content["files"]))]
    moved = exchange_files(
        store,
        staging=f"{STAGING}/{entry.run_id}",
        token=secrets.token_hex(8),
        added=new,
        removed=list(cast(Mapping[str, object], content["replaced"])),
        old_place=old_path if content["is_kept"] else None,
        beat=beat,
    )
    store.delete(staged_path(entry.run_id, _marker(entry.replaced)))
    return moved


def _graces(
    store: Store,
    newest: LogEntry | None,
    publishing: Mapping[str, tuple[int, ...]],
    replaced: Mapping[str, object],
    grace_seconds: float,
) -> dict[str, tuple[str, str]]:
    """The entries whose removed files are still kept, with the one that is being made."""
    before = newest.graces if newest is not None else {}
    if not before and not (replaced and grace_seconds):
        return {}
    now = store.now()
    waiting = {str(sequence) for sequences in publishing.values() for sequence in sequences}
    kept = {
        number: (until, path)
        for number, (until, path) in before.items()
        if number in waiting or datetime.fromisoformat(until) > now or store.exists(old_path(path))
    }
    if replaced and grace_seconds:
        sequence = newest.sequence + 1 if newest is not None else 1
        kept[str(sequence)] = (_time_text(now + timedelta(seconds=grace_seconds)), max(replaced))
    return kept


def _remove_old(store: Store, log: CommitLog, newest: LogEntry) -> None:
    """Remove the files whose grace is over; the one that the log names goes last, so that it stands for all."""
    now = store.now()
    for number, (until, path) in newest.graces.items():
        if datetime.fromisoformat(until) <= now:
            paths = sorted(log.replacements(log.read(int(number))))
            store.delete_files([old_path(other) for other in paths if other != path])
            store.delete(old_path(path))


def _fold_older(store: Store, log: CommitLog) -> None:
    """Fold entries that are old enough, as soon as there are enough of them for a fold."""
    newest = log.newest()
    last = ((newest.sequence if newest is not None else 0) // FOLD_ENTRIES - 1) * FOLD_ENTRIES
    # Of what a fold holds its last entry is removed last.
    if last <= 0 or not store.exists(_entry_path(last)):
        return
    for end in range(FOLD_ENTRIES, last + 1, FOLD_ENTRIES):
        if not store.exists(_entry_path(end)):
            continue
        if not log.folds.is_there(end):
            log.folds.write(_make_fold(store, log, end))
        fold = log.folds.read(end)
        assert fold is not None
        store.delete_files([_list_path(digest) for digest in fold.lists])
        store.delete_files([_entry_path(number) for number in range(end - FOLD_ENTRIES + 1, end + 1)])


def _make_fold(store: Store, log: CommitLog, end: int) -> Fold:
    numbers = range(end - FOLD_ENTRIES + 1, end + 1)
    wanted: dict[str, None] = {}
    seen: set[str] = set()
    for entry in map(log.read, numbers):
        wanted.update(dict.fromkeys(sorted(log.lists_of_entry(entry, seen))))
    later = log.lists_of_entry(log.read(end + 1), set())
    lists: dict[str, bytes] = {}
    for digest in wanted:
        if digest not in later:
            with suppress(StoreMissing):  # it is in an earlier fold
                lists[digest] = store.read(_list_path(digest))
    return Fold(last=end, entries=tuple(store.read(_entry_path(number)) for number in numbers), lists=lists)


def _gaps(numbers: Collection[int], folded: Collection[int]) -> list[int]:
    """The numbers that are missing before the newest one, unless a fold has them."""
    newest = max((*numbers, *folded), default=0)
    there = frozenset(numbers)
    return [
        number
        for end in range(FOLD_ENTRIES, newest + FOLD_ENTRIES, FOLD_ENTRIES)
        if end not in folded
        for number in range(end - FOLD_ENTRIES + 1, min(end, newest) + 1)
        if number not in there
    ]


def _has_staging(store: Store, run_id: str) -> bool:
    return next(store.list(f"{STAGING}/{run_id}"), None) is not None


def _staged(store: Store, run_id: str) -> dict[str, StoredFile]:
    """What stands in a run's staging, by the path it is meant for."""
    start = f"{STAGING}/{run_id}/"
    return {stored.path.removeprefix(start): stored for stored in store.list(start)}


def _changed_paths(log: CommitLog, entry: LogEntry) -> Iterator[list[str]]:
    """Table by table the files that were not there before the entry, or may not have been."""
    before = log.read(entry.sequence - 1).tables if entry.sequence > 1 else {}
    for key, reference in sorted(entry.tables.items()):
        earlier = before.get(key)
        if reference.files and (earlier is None or earlier.digest != reference.digest):
            yield sorted(log.paths_since(reference, earlier, entry.sequence))


def _publish_files(store: Store, run_id: str, paths: Sequence[str], staged: Mapping[str, StoredFile]) -> int:
    committed = [path for path in paths if path in staged]
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
        store.put(_LATEST, encoded(hint))


def _common_run_folder(paths: Iterable[str]) -> str:
    folder = ""
    for path in paths:
        here = path.rpartition("/")[0]
        if folder and here != folder:
            return ""
        folder = here
    return folder if folder.rpartition("/")[2].startswith("run=") else ""


def _file_value(file: DataFile) -> Mapping[str, object]:
    return {
        "rows": file.rows,
        "size_bytes": file.size_bytes,
        "sha256": file.sha256,
        "partition": file.partition,
        "content": file.content,
        **({"is_apart": True} if file.is_apart else {}),
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
        is_apart=bool(content.get("is_apart")),
    )


def _entry_path(sequence: int) -> str:
    return f"{_LOG}/{sequence:020d}.json"


def _list_path(digest: str) -> str:
    return f"{_LISTS}/{digest}.json"


def _time_text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
