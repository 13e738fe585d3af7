"""From what was read of a table to what the log will say of it: proof, checks, uniqueness, and the new state.

Runs after the last page. A table that is not complete, or that a check holds back, gives no update: its last
state is carried forward whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from hashlib import blake2b

import msgspec

from extractor.batch import NULL_PARTITION, Stamp
from extractor.checks import Subject, fallen, nulls_and_ages
from extractor.commit import Update
from extractor.commitlog import TableRef, TableState
from extractor.config import Checks
from extractor.endpoint import Endpoint, Window
from extractor.evolution import drift_lines, filled_columns, gone_columns, schema_state
from extractor.ledger import Ledger, Outcome
from extractor.plan import Span
from extractor.report import TableReport
from extractor.schema import META_COLUMNS, TableSchema
from extractor.store import Store, staged_path
from extractor.suspect import suspicions
from extractor.unique import Uniqueness, count_unique, make_unique, plain_row
from extractor.windows import (
    BACKFILL_STATE,
    Progress,
    advance,
    parents_state,
    progress_of,
    progress_state,
)
from extractor.write import DamagedFile, DataFile, Staged, TableWriter, open_parquet

__all__ = ("BACKFILL_STATE", "Reading", "Settled", "last_longest_chain", "settle_table")

_LONGEST_CHAIN = "longest_chain"
_TELLING_ROWS = 20
"""Of so few new rows all may lack a value by chance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Everything that is known of one table of one account when the last page is in."""

    endpoint: Endpoint
    ledger: Ledger
    outcome: Outcome
    schema: TableSchema
    stamp: Stamp
    spans: tuple[Span, ...]
    """The windows that were read; of a follower, those of the table that it follows."""
    prior: TableState | None
    expected: TableRef | None
    checks: Checks
    is_accepted: bool
    is_parent_whole: bool
    """False where rows of the parent, and so requests of this table, may be missing."""
    moment: datetime
    """The server's clock when the reading began."""
    compression: str
    followed: Window | None = None
    """The window to which the rows belong of a table that has none of its own (`windows.follows`)."""
    parent_windows: frozenset[str] = frozenset()
    """Of a follower: the windows of which every row of its parent came."""
    is_backfill: bool = False
    """True where past windows are filled: what the next run will read does not change for it."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of the parent's rows that came: what tells whether there is anything new under them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """What becomes of a table: its line of the report, its update of the log if it has one, and warnings."""

    report: TableReport
    update: Update | None
    warnings: tuple[str, ...] = field(default=())
    drift: tuple[str, ...] = field(default=())
    """In words what changed since the last run."""


def settle_table(store: Store, reading: Reading, writer: TableWriter) -> Settled:
    """Close the table's files, judge them, and make its update.

    Raises:
        LakeError: a file cannot be written or read back.
    """
    windows = _windows_to_commit(reading)
    if reading.outcome.status != "complete" and not windows:
        writer.abort()
        lines = drift_lines(reading.ledger, reading.prior, reading.stamp.account)
        return Settled(report=_report(reading, reading.outcome), update=None, drift=lines)
    staged = list(writer.finish(reading.schema))
    if windows is not None and (short := _short_windows(store, reading, staged, windows)):
        reading, windows = replace(reading, outcome=short), _complete_windows(reading)
        if not windows:
            lines = drift_lines(reading.ledger, reading.prior, reading.stamp.account)
            return Settled(report=_report(reading, short), update=None, drift=lines)
    staged = [item for item in staged if windows is None or item.window in windows]
    unique = _unique(store, reading, staged)
    empty = _empty_columns(store, reading, unique.staged)
    gone = gone_columns(reading.prior, empty)
    drift = drift_lines(
        reading.ledger, reading.prior, reading.stamp.account, schema=reading.schema, gone=gone
    )
    held = _held_back(store, reading, unique, is_by_window=windows is not None)
    if held is not None:
        return Settled(report=_report(reading, held), update=None, drift=drift)
    warnings = tuple(_warnings(reading, unique))
    settled = _new_state(store, reading, writer, list(unique.staged))
    return replace(_with_schema_state(settled, reading, empty, gone), warnings=warnings, drift=drift)


def _with_schema_state(
    settled: Settled, reading: Reading, empty: frozenset[str] | None, gone: Sequence[str]
) -> Settled:
    if settled.update is None:
        return settled
    found = schema_state(
        reading.schema,
        reading.prior,
        reading.ledger,
        empty,
        gone,
        is_event=reading.endpoint.sync.kind != "snapshot",
        run_id=reading.stamp.run_id,
        at=reading.stamp.snapshot_at.isoformat(),
    )
    state = replace(settled.update.state, state={**settled.update.state.state, **found})
    return replace(settled, update=replace(settled.update, state=state))


def _empty_columns(store: Store, reading: Reading, staged: Sequence[Staged]) -> frozenset[str] | None:
    """The columns of which no row that was read has a value; None where too few rows were read to tell."""
    rows = sum(item.file.rows for item in staged)
    if not rows or (reading.endpoint.sync.kind != "snapshot" and rows < _TELLING_ROWS):
        return None
    paths = [staged_path(reading.stamp.run_id, item.file.path) for item in staged]
    return frozenset(field.source for field in reading.schema.live) - filled_columns(
        store, paths, {field.name: field.source for field in reading.schema.live}
    )


def _unique(store: Store, reading: Reading, staged: Sequence[Staged]) -> Uniqueness:
    """Each row once; what is kept window by window has each key once in each window."""
    groups = [staged]
    if reading.endpoint.sync.is_replaced:
        windows = dict.fromkeys(item.window for item in staged)
        groups = [[item for item in staged if item.window == window] for window in windows]
    found = [
        make_unique(
            store,
            reading.stamp.run_id,
            group,
            _columns_of(reading, reading.endpoint.key),
            present=_present_files(reading, group),
            mutable=_columns_of(reading, reading.endpoint.sync.mutable),
            compression=reading.compression,
        )
        for group in groups
    ]
    return Uniqueness(
        staged=tuple(item for unique in found for item in unique.staged),
        repeated=sum(unique.repeated for unique in found),
        known=sum(unique.known for unique in found),
        known_keys=sum(unique.known_keys for unique in found),
        conflicts=tuple(conflict for unique in found for conflict in unique.conflicts),
        conflicting_keys=sum(unique.conflicting_keys for unique in found),
        without_key=sum(unique.without_key for unique in found),
    )


def _columns_of(reading: Reading, keys: Sequence[str]) -> list[str]:
    """The columns that hold those keys of the answer now: a corrected type has a column of its own."""
    names = {field.source: field.name for field in reading.schema.live}
    return [names.get(key, key) for key in keys]


def _windows_to_commit(reading: Reading) -> frozenset[str] | None:
    """The windows whose rows may be committed; None where windows do not matter."""
    if reading.endpoint.sync.kind != "window" and reading.followed is None:
        return None
    return _complete_windows(reading) if reading.outcome.status in ("complete", "partial") else frozenset()


def _complete_windows(reading: Reading) -> frozenset[str]:
    """The windows all of whose rows came; those of a follower need every row of the parent too."""
    if reading.followed is None:
        return reading.ledger.complete_windows()
    # Without a window are the rows of an endpoint that was asked whole instead of row by row.
    return (reading.parent_windows | {""}) - reading.ledger.cut_windows()


def _present_files(reading: Reading, staged: Sequence[Staged]) -> list[DataFile]:
    """The lake's files that may hold a row which was read again: those of the same days, and of none."""
    if not reading.endpoint.sync.is_event or reading.prior is None:
        return []
    touched = {item.file.partition[1][1] for item in staged}
    days = {*touched, NULL_PARTITION}
    # A row without a day may stand under any: it may have had one when it was first seen, or have got one since.
    is_any = NULL_PARTITION in touched
    return [file for file in reading.prior.files if file.rows and (is_any or file.partition[1][1] in days)]


def _short_windows(
    store: Store, reading: Reading, staged: Sequence[Staged], windows: frozenset[str]
) -> Outcome | None:
    """Fail the chains of each window that has fewer rows than the server says; what that makes of the table.

    Each row counts once: one page in the place of another has the right number of rows.
    """
    key = _columns_of(reading, reading.endpoint.key)
    reasons: list[str] = []
    for window in sorted(windows):
        chains = [chain for chain in reading.ledger.chains.values() if chain.window == window]
        totals = [chain.chain.total for chain in chains]
        if not totals or None in totals:
            continue
        total = sum(total for total in totals if total is not None)
        came = count_unique(
            store, reading.stamp.run_id, [item for item in staged if item.window == window], key
        )
        if came < total:
            reasons.append(f"{window}: the server says {total} rows, {came} came")
            for chain in chains:
                reading.ledger.fail(chain, reasons[-1])
    if not reasons:
        return None
    if reading.outcome.status != "complete":
        return reading.outcome
    others = f", and {len(reasons) - 1} more" if len(reasons) > 1 else ""
    return Outcome(status="partial", reason=f"{reasons[0]}{others}")


def _held_back(store: Store, reading: Reading, unique: Uniqueness, *, is_by_window: bool) -> Outcome | None:
    """The reason for which the table is not published, if there is one."""
    total = reading.ledger.total
    # Each row counts once: one page in the place of another has the right number of rows.
    came = sum(item.file.rows for item in unique.staged) + unique.known_keys
    if not is_by_window and total is not None and came < total:
        return Outcome(status="partial", reason=f"the server says {total} rows, {came} came")
    reasons = () if reading.is_accepted else tuple(_failed_checks(store, reading, unique))
    if not reasons:
        return None
    return Outcome(
        status="held", reason=f"{'; '.join(reasons)}; publish once with --accept {reading.endpoint.name}"
    )


def _failed_checks(store: Store, reading: Reading, unique: Uniqueness) -> Iterator[str]:
    checks, run_id = reading.checks, reading.stamp.run_id
    if unique.conflicts and checks.unique_key:
        examples = "; ".join(unique.conflicts[:3])
        yield (
            f"{unique.conflicting_keys} rows share their key {list(reading.endpoint.key)} with another row "
            f"({examples}): correct the key in the catalogue"
        )
    yield from _fallen(reading, unique)
    subject = Subject(
        table=reading.endpoint.name,
        paths=tuple(staged_path(run_id, item.file.path) for item in unique.staged),
        columns={field.source: field.name for field in reading.schema.live},
        standing=partial(_standing, reading),
    )
    # What a backfill reads is old.
    ages = {} if reading.is_backfill else checks.max_age
    yield from nulls_and_ages(store, subject, msgspec.structs.replace(checks, max_age=ages), reading.moment)


def _fallen(reading: Reading, unique: Uniqueness) -> Iterator[str]:
    """The reasons of a snapshot, or of windows that are read anew, that lost too many rows."""
    if reading.prior is None or reading.endpoint.sync.is_event:
        return
    if not reading.endpoint.sync.is_replaced:
        now = sum(item.file.rows for item in unique.staged)
        yield from fallen(reading.checks, reading.prior.rows, now)
        return
    for window in sorted(reading.ledger.complete_windows()):
        before = sum(file.rows for file in reading.prior.files if ("window", window) in file.partition)
        now = sum(item.file.rows for item in unique.staged if item.window == window)
        yield from fallen(reading.checks, before, now, what=f" of {window}")


def _standing(reading: Reading, column: str, after: datetime) -> Iterator[str]:
    """The lake's files of an event table in which a column may have a time after the given one, newest first."""
    if reading.prior is None or not reading.endpoint.sync.is_event:
        return
    # Rows stand under the day of their own time, or under none.
    first = f"{after - timedelta(days=1):%Y-%m-%d}" if column == reading.endpoint.sync.cursor else ""
    for file in sorted(reading.prior.files, key=lambda file: file.partition[1][1], reverse=True):
        if file.rows and file.partition[1][1] >= first:
            yield file.path


def _warnings(reading: Reading, unique: Uniqueness) -> Iterable[str]:
    name = reading.endpoint.name
    # Neighbouring windows may both give what lies on their boundary: that is meant.
    if unique.repeated and reading.endpoint.sync.kind != "window":
        yield f"{name}: {unique.repeated} rows came twice and stand once"
    if unique.without_key:
        yield f"{name}: {unique.without_key} rows have no whole key {list(reading.endpoint.key)}"
    yield from (f"{name}: {line}" for line in reading.ledger.notes)
    notes = {note for chain in reading.ledger.chains.values() for note in chain.chain.notes}
    yield from (f"{name}: {note}" for note in sorted(notes))
    total, came = reading.ledger.total, sum(item.file.rows for item in unique.staged) + unique.known_keys
    # A row on the boundary of two windows counts in both totals.
    if total is not None and came > total and not notes and reading.endpoint.sync.kind != "window":
        yield f"{name}: {came} rows came, though the server says that there are {total}"
    if reading.outcome.status == "complete":
        yield from (f"{name}: {line}" for line in suspicions(reading.endpoint, reading.ledger))


def _new_state(store: Store, reading: Reading, writer: TableWriter, staged: list[Staged]) -> Settled:
    prior = reading.prior
    content = ""
    if reading.endpoint.sync.is_event:
        if not staged and prior is None:
            staged = [writer.empty(reading.schema)]
        # The first, empty file of an event table stays: a run only adds.
        files = (*(prior.files if prior else ()), *(item.file for item in staged))
    elif reading.endpoint.sync.is_replaced:
        emptied = reading.ledger.complete_windows() - {item.window for item in staged}
        staged = _changed_windows(store, reading, staged)
        fresh = {item.file.partition[1] for item in staged} | {("window", label) for label in emptied}
        files = (
            *(file for file in (prior.files if prior else ()) if file.partition[1] not in fresh),
            *(item.file for item in staged),
        )
    else:
        is_unchanged, content = _compare(store, reading, staged)
        if is_unchanged and prior is not None:
            return _unchanged(reading, prior, staged, content)
        files = tuple(item.file for item in staged)
    rows = sum(file.rows for file in files)
    is_new = bool(staged) or prior is None
    state = TableState(
        table=reading.endpoint.name,
        account=reading.stamp.account,
        sync=reading.endpoint.sync.kind,
        status=reading.outcome.status,
        reason=reading.outcome.reason,
        rows=rows,
        files=files,
        columns=reading.schema.to_json(),
        state=_state(reading),
        run_id=reading.stamp.run_id if is_new or prior is None else prior.run_id,
        proved_by=reading.stamp.run_id,
        snapshot_at=None if reading.stamp.is_event else reading.stamp.snapshot_at.isoformat(),
        content=content,
    )
    if reading.is_backfill and prior is not None:
        # It proves nothing of the table as a whole.
        state = replace(state, status=prior.status, reason=prior.reason, proved_by=prior.proved_by)
    added = tuple(item.file for item in staged)
    return Settled(report=_report(reading, reading.outcome, added), update=_update(reading, state))


def _unchanged(reading: Reading, prior: TableState, staged: Sequence[Staged], content: str) -> Settled:
    """The same rows as last time: the lake keeps its files, and the log the proof of this run."""
    state = replace(
        prior,
        status=reading.outcome.status,
        reason=reading.outcome.reason,
        proved_by=reading.stamp.run_id,
        columns=reading.schema.to_json(),
        state=_state(reading),
        content=content,
    )
    outcome = Outcome(
        status="complete", reason=f"{reading.outcome.reason}; unchanged since run {prior.run_id}"
    )
    report = replace(_report(reading, outcome), rows=sum(item.file.rows for item in staged))
    return Settled(report=report, update=_update(reading, state))


def _update(reading: Reading, state: TableState) -> Update:
    # The key is for readers, who compare by it and have no catalogue.
    key = {"key": list(reading.endpoint.key)} if reading.endpoint.key else {}
    return Update(
        table=reading.endpoint.name,
        account=reading.stamp.account,
        state=replace(state, state={**key, **state.state}),
        expected=reading.expected,
    )


def _report(reading: Reading, outcome: Outcome, added: Sequence[DataFile] = ()) -> TableReport:
    ledger = reading.ledger
    return TableReport(
        name=reading.endpoint.name,
        account=reading.stamp.account,
        status=outcome.status,
        rows=sum(file.rows for file in added),
        pages=ledger.pages,
        requests=ledger.requests,
        files=len(added),
        size_bytes=sum(file.size_bytes for file in added),
        reason=outcome.reason,
        failures=tuple(ledger.failures),
        is_drift_refused=reading.outcome.status == "held",
    )


# --- unchanged? ---------------------------------------------------------------------------------------------


def _compare(store: Store, reading: Reading, staged: Sequence[Staged]) -> tuple[bool, str]:
    """Whether a snapshot equals the last one, which then need not be written; and its digest, if it was needed.

    The first complete run of a UTC day always writes, so that every day has its snapshot.
    """
    prior = reading.prior
    if prior is None or prior.snapshot_at is None or prior.status != "complete":
        return False, ""
    is_same_day = prior.snapshot_at[:10] == reading.stamp.snapshot_at.isoformat()[:10]
    rows = sum(item.file.rows for item in staged)
    if not is_same_day or prior.rows != rows or list(prior.columns) != list(reading.schema.to_json()):
        return False, ""
    if not all(store.exists(file.path) for file in prior.files):
        return False, ""
    new = _digest(store, [staged_path(reading.stamp.run_id, item.file.path) for item in staged])
    old = prior.content or _standing_digest(store, prior.files)
    return new == old, new


def _changed_windows(store: Store, reading: Reading, staged: Sequence[Staged]) -> list[Staged]:
    """The windows whose reading differs from the last one."""
    if reading.prior is None:
        return list(staged)
    changed: list[Staged] = []
    for window in dict.fromkeys(item.window for item in staged):
        new = [item for item in staged if item.window == window]
        old = [file for file in reading.prior.files if file.partition[1] == new[0].file.partition[1]]
        paths = [staged_path(reading.stamp.run_id, item.file.path) for item in new]
        is_as_many = sum(file.rows for file in old) == sum(item.file.rows for item in new)
        is_equal = is_as_many and _standing_digest(store, old) == _digest(store, paths)
        if not is_equal:
            changed.extend(new)
        else:
            for item in new:
                store.delete(staged_path(reading.stamp.run_id, item.file.path))
    return changed


def _standing_digest(store: Store, files: Sequence[DataFile]) -> str:
    """The digest of files of the lake; empty where one is damaged, so that its rows are written anew."""
    try:
        return _digest(store, [file.path for file in files])
    except DamagedFile:
        return ""


def _digest(store: Store, paths: Sequence[str]) -> str:
    """An order-free digest of the values of files that have equal columns.

    Equal values of one type print alike: no normal form is needed, which costs more.
    """
    total = 0
    for path in paths:
        with open_parquet(store, path) as file:
            names = [name for name in file.schema_arrow.names if name not in META_COLUMNS]
            for batch in file.iter_batches(batch_size=4096, columns=names, use_threads=False):
                for row in batch.to_pylist():
                    text = repr(plain_row(row)).encode("utf-8", "surrogatepass")
                    total += int.from_bytes(blake2b(text, digest_size=16).digest())
    return f"{total % 2**128:032x}"


# --- state --------------------------------------------------------------------------------------------------


def last_longest_chain(prior: TableState | None) -> int:
    """Pages of the longest chain when the table was last read, by its state in the log; 0 if nobody knows."""
    pages = prior.state.get(_LONGEST_CHAIN) if prior is not None else None
    return pages if isinstance(pages, int) else 0


def _state(reading: Reading) -> Mapping[str, object]:
    """What the next run must know: where its windows stand, and how long the way through its pages is."""
    if reading.is_backfill:
        return dict(reading.prior.state) if reading.prior is not None else {}
    longest = reading.ledger.longest_chain
    before = reading.prior.state if reading.prior is not None else {}
    # One page is what is taken for granted: most tables need no more, and their state then stays as it is.
    return {
        **_windows(reading),
        **parents_state(_versions_read(reading)),
        **({_LONGEST_CHAIN: longest} if longest > 1 else {}),
        # What a backfill has done, which goes on beside this run or was cut off.
        **{key: value for key, value in before.items() if key.startswith(BACKFILL_STATE)},
    }


def _windows(reading: Reading) -> Mapping[str, object]:
    """Up to where the windows are done, and which of them are holes."""
    window = reading.endpoint.sync.window or reading.followed
    if window is None:
        return {}
    before = progress_of(reading.prior.state) if reading.prior is not None else Progress()
    # Of parents that were never seen nothing was asked: no window is complete then.
    complete = _complete_windows(reading) if reading.is_parent_whole else frozenset[str]()
    after = advance(before, window, reading.spans, complete, moment=reading.moment)
    return progress_state(after)


def _versions_read(reading: Reading) -> Mapping[str, str]:
    """The parent's rows whose answer is in the lake now. Those that did not come again are not remembered."""
    committed = _windows_to_commit(reading)
    lacking = {
        chain.parent
        for chain in reading.ledger.chains.values()
        if not chain.is_complete or (committed is not None and chain.window not in committed)
    }
    return {key: version for key, version in reading.versions.items() if key not in lacking}
