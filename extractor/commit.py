"""A run becomes visible, in all its tables at once, by creating one numbered file: the next entry of the log.

    _extractor/log/N.json       see `commitlog`
    _extractor/leases/N.json    who writes what (see `lease`)
    _extractor/staging/RUN/     data files that are complete but not yet in their place
    _extractor/old/             data files that were replaced, for readers who hold an older entry

Every decision between writers is a put-if-absent of the next number, so there is nothing to lock and no order
of steps in which a crash could leave half a commit. A list that grows is cut where the hash of a path says
so: adding a file changes the piece it falls into and the few pieces above, however long the list is.
"""

from __future__ import annotations

import functools
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, cast
from urllib.parse import unquote

import msgspec

from extractor.clock import Clock
from extractor.commitlog import (
    LATEST,
    CommitLog,
    LogEntry,
    TableRef,
    TableState,
    encode_entry,
    entry_path,
    file_value,
    list_path,
    nested,
    read_hint,
    time_text,
)
from extractor.errors import CommitConflict, LakeError
from extractor.exchange import exchange_files
from extractor.fold import FOLD_ENTRIES, Fold
from extractor.lease import Leases, TableKey
from extractor.lists import (
    Pieces,
    can_stand_apart,
    cut,
    cut_growing,
    encoded,
    pair_of,
    sha256,
    with_recent,
)
from extractor.store import SCRATCH, STAGING, Store, StoredFile, StoreMissing, staged_path

if TYPE_CHECKING:
    from extractor.write import DataFile

__all__ = (
    "GRACE_SECONDS",
    "Update",
    "clean_orphans",
    "commit",
    "is_waiting",
    "old_path",
    "publish",
    "roll_forward",
)
GRACE_SECONDS = 3_600.0
"""So long files that were replaced stay for readers who hold an older entry."""
_OLD = "_extractor/old"
_REBASES = 100
_TABLES_APART = 8
"""So many tables stand in every entry; of more only those do that differ from a list which entries share."""
_DEBRIS_SECONDS = 86_400


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

    @functools.cache
    def written(is_apart: bool) -> _Written:
        return _write_states(store, log, run_id, updates, is_apart=is_apart)

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
        content = encode_entry(entry, log.base(entry.base))
        if leases is not None:
            leases.check()
        if _put_entry(store, entry.sequence, content):
            is_known = log.folds.entry(entry.sequence) in (None, content)
            if is_known and (newest is None or log.digest_of(newest.sequence) == newest.digest):
                return log.decoded(content, entry.sequence)
            # What it was built on is gone, or the number was used and folded long ago: void. It goes too, before
            # anyone builds on it.
            store.delete(entry_path(entry.sequence))
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
    return log.write_list({"tables": nested(tables)})


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
    known = {path for path, _ in log.items(before)}
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
        files = sorted(((file.path, file_value(file)) for file in state.files), key=lambda pair: pair[0])
        file_list = cut_growing(files, before.get("files"), staged)
        new = _new_keys(log, before.get("files"), file_list)
    else:
        values = [(file.path, file_value(file)) for file in added]
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
    _, old_leaves = log.nodes(before)
    new = set().union(*(keys for leaf, keys in pieces.leaves.items() if leaf not in old_leaves))
    return new - log.keys(before, old_leaves.difference(pieces.leaves))


def _write_pieces(log: CommitLog, before: object, pieces: Pieces) -> None:
    inner, leaves = (
        log.nodes(before) if before is not None and pieces.contents else (frozenset(), frozenset())
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
    moment = time_text(newest.committed_at)
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
    path = entry_path(sequence)
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
    values = sorted({file.path: file_value(file) for file in files if file.path in new}.items())
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
        kept[str(sequence)] = (time_text(now + timedelta(seconds=grace_seconds)), max(replaced))
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
    if last <= 0 or not store.exists(entry_path(last)):
        return
    for end in range(FOLD_ENTRIES, last + 1, FOLD_ENTRIES):
        if not store.exists(entry_path(end)):
            continue
        if not log.folds.is_there(end):
            log.folds.write(_make_fold(store, log, end))
        fold = log.folds.read(end)
        assert fold is not None
        store.delete_files([list_path(digest) for digest in fold.lists])
        store.delete_files([entry_path(number) for number in range(end - FOLD_ENTRIES + 1, end + 1)])


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
                lists[digest] = store.read(list_path(digest))
    return Fold(last=end, entries=tuple(store.read(entry_path(number)) for number in numbers), lists=lists)


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
    before = read_hint(store)
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
        store.put(LATEST, encoded(hint))


def _common_run_folder(paths: Iterable[str]) -> str:
    folder = ""
    for path in paths:
        here = path.rpartition("/")[0]
        if folder and here != folder:
            return ""
        folder = here
    return folder if folder.rpartition("/")[2].startswith("run=") else ""
