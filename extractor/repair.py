"""After `verify`: what is damaged or foreign is moved aside, and the lake goes on without it.

One commit takes the files out of the log. A snapshot goes back to the newest earlier one that is whole, a window to
its last whole reading, and the windows of lost events are open again, so that the next run reads them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from functools import partial
from itertools import chain, pairwise
from secrets import token_hex

from extractor.batch import NULL_PARTITION
from extractor.clock import Clock, SystemClock
from extractor.commit import Update, commit, publish, roll_forward
from extractor.commitlog import CommitLog, LogEntry, TableState
from extractor.endpoint import Endpoint
from extractor.lease import Leases, TableKey
from extractor.places import ASIDE, places
from extractor.plan import TablePlan
from extractor.store import Store, StoreMissing
from extractor.upkeep import holding
from extractor.verify import Finding, Target, check_files, read_log
from extractor.windows import days_from, filled_days, progress_of, source_of
from extractor.write import DataFile

__all__ = ("Repair", "repair")


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """What was done: the entry's run id, empty if the log needed none; where each file is now; and what is lost."""

    run_id: str
    moved: Mapping[str, str]
    lost: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        return {"run_id": self.run_id, "moved": dict(self.moved), "lost": list(self.lost)}


def repair(
    store: Store,
    log: CommitLog,
    findings: Sequence[Finding],
    *,
    endpoints: Mapping[str, Endpoint] | None = None,
    clock: Clock | None = None,
    wait_seconds: float = 3600,
    pause: Callable[[float], None] = time.sleep,
    observe: Callable[[str], None] = lambda line: None,
) -> Repair:
    """Take the files of `findings` out of the lake, by one commit, and then out of the folders of the tables.

    `endpoints` tell how the windows of lost events are cut. Waits up to `wait_seconds` for runs that write those
    tables, all of them at once; `observe` is told of it.
    Raises: LakeBusy if such a run goes on for longer; LakeError if the lake cannot be written.
    """
    clock = clock or SystemClock()
    run_id = f"{clock.now():%Y%m%dT%H%M%SZ}-{token_hex(4)}"
    store.check_writable()
    newest = log.newest()
    keys = _concerned(newest, findings) if newest is not None else []
    leases = Leases(store, run_id=run_id, clock=clock, tables=keys, is_brief=True)
    # Held before anything is decided: whatever is found now stays so until it is repaired.
    with holding(leases, pause=pause, note=observe, wait_seconds=wait_seconds):
        roll_forward(store, log, leases)
        newest = log.newest()
        if newest is None:
            return Repair(run_id="", moved={}, lost=())
        patient = _Patient(store=store, log=log, newest=newest, endpoints=endpoints or {}, run_id=run_id)
        return _carry_out(store, log, newest, patient.plan(findings), findings, run_id, clock, leases)


def _concerned(newest: LogEntry, findings: Iterable[Finding]) -> list[TableKey]:
    tables = {found.table for found in findings}
    return sorted(key for key in newest.tables if key[0] in tables)


# --- what becomes of the tables -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    updates: tuple[Update, ...]
    removed: tuple[str, ...]
    """Paths that no reader of an earlier state shall look for any more."""
    lost: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Patient:
    """A lake after one entry, and what is known of its endpoints."""

    store: Store
    log: CommitLog
    newest: LogEntry
    endpoints: Mapping[str, Endpoint]
    run_id: str

    def plan(self, findings: Sequence[Finding]) -> _Plan:
        bad = {found.path: found for found in findings if found.kind != "extra"}
        updates: list[Update] = []
        lost: list[str] = []
        current: set[str] = set()
        for table, account in _concerned(self.newest, bad.values()):
            state = self.log.state_of(self.newest, table, account)
            gone = [file for file in state.files if file.path in bad]
            if not gone:
                continue
            current.update(file.path for file in gone)
            healed, lines = self._healed(state, gone)
            lost += lines
            expected = self.newest.tables[table, account]
            updates.append(Update(table=table, account=account, state=healed, expected=expected))
        for path in sorted(bad.keys() - current):
            found = bad[path]
            lost.append(f"{found.table}: {_rows(found.rows)} of {path}, which only earlier states had")
        return _Plan(updates=tuple(updates), removed=tuple(sorted(bad)), lost=tuple(lost))

    def _healed(self, state: TableState, gone: Sequence[DataFile]) -> tuple[TableState, list[str]]:
        """The state without those files, and in words what is lost with them."""
        if state.is_event:
            return self._without_events(state, gone)
        if state.sync == "window":
            return self._with_earlier_windows(state, gone)
        return self._earlier_snapshot(state)

    def _without_events(self, state: TableState, gone: Sequence[DataFile]) -> tuple[TableState, list[str]]:
        paths = {file.path for file in gone}
        files = tuple(file for file in state.files if file.path not in paths)
        days = {_partition(file, "event_date") for file in gone}
        rows = _rows(sum(file.rows for file in gone))
        shown = ", ".join(sorted(day if day != NULL_PARTITION else "no date" for day in days))
        opened, is_read_again = self._reopened(state, self._days_to_read(state, gone))
        outlook = (
            "the next run reads them again, as far as the API still has them"
            if is_read_again
            else "what the API still has of them comes with the next run"
        )
        healed = replace(
            state,
            files=files,
            rows=sum(file.rows for file in files),
            state=opened,
            status="partial",
            reason=f"{rows} of {shown} were lost (repair {self.run_id})",
        )
        return healed, [f"{state.table}: {rows} of {shown}; {outlook}"]

    def _reopened(self, state: TableState, days: Collection[str] | None) -> tuple[dict[str, object], bool]:
        """What the next run knows: the windows of those days are holes, or not done yet; None are all days."""
        # What is remembered of the parent's rows says that nothing is new under them: now something is.
        known = {name: value for name, value in state.state.items() if not name.startswith("parent:")}
        windows = known.pop("windows", None)
        if not isinstance(windows, Mapping) or days is None:
            return known, windows is not None
        opened = dict(windows)
        source = self._followed(state.table) or self.endpoints.get(state.table)
        window = source.sync.window if source is not None else None
        if window is None or window.step:
            opened["holes"] = sorted({*(opened.get("holes") or ()), *days})
        elif until := str(opened.get("done_until") or ""):
            first = datetime.combine(date.fromisoformat(min(days)), datetime.min.time(), UTC)
            opened["done_until"] = min(until, first.isoformat())
        return {**known, "windows": opened}, True

    def _followed(self, table: str) -> Endpoint | None:
        """The windowed endpoint to whose windows the rows of a table belong that has none of its own."""
        endpoint = self.endpoints.get(table)
        plans = {name: TablePlan(endpoint=other, mode="run") for name, other in self.endpoints.items()}
        source = source_of(endpoint, plans) if endpoint is not None else None
        return source.endpoint if source is not None else None

    def _days_to_read(self, state: TableState, gone: Sequence[DataFile]) -> set[str] | None:
        """One day at least of each window in which lost rows came; None if nobody knows."""
        if "windows" not in state.state:
            return set()
        followed = self._followed(state.table)
        days: set[str] = set()
        for file in gone:
            day = _partition(file, "event_date")
            # A day says nothing of the window if there is none, or where that is the window of another row.
            if day != NULL_PARTITION and followed is None:
                days.add(day)
                continue
            found = self._days_of_runs(state, file, followed.name if followed is not None else state.table)
            if found is None:
                return None
            days |= found
        return days

    def _days_of_runs(self, state: TableState, file: DataFile, source: str) -> set[str] | None:
        """The days of the windows that the runs read which wrote the rows of a file."""
        key = (state.table, state.account)
        wanted = {file.path}
        days: set[str] = set()
        for entry, before in pairwise(chain(self.log.backwards(self.newest), (None,))):
            assert entry is not None
            replacements = self.log.replacements(entry)
            if merged := {path for path, others in replacements.items() if not wanted.isdisjoint(others)}:
                wanted |= merged
            elif any(path.rpartition("/")[2].startswith(f"{entry.run_id}-") for path in wanted):
                now, then = self._state(entry, key), self._state(before, key)
                if wanted.isdisjoint(_brought(now, then)):
                    continue
                above = (source, state.account)
                seen = _brought(self._state(entry, above), self._state(before, above)).values()
                found = _days_read(entry, now, then, set(filter(_is_date, map(_day, seen))))
                if found is None:
                    return None
                days |= found
        return days or None

    def _state(self, entry: LogEntry | None, key: TableKey) -> TableState | None:
        return self.log.state_of(entry, *key) if entry is not None and key in entry.tables else None

    def _with_earlier_windows(
        self, state: TableState, gone: Sequence[DataFile]
    ) -> tuple[TableState, list[str]]:
        labels = sorted({_partition(file, "window") for file in gone})
        kept = [file for file in state.files if _partition(file, "window") not in labels]
        lines: list[str] = []
        for label in labels:
            is_of_window = partial(_is_of_window, label)
            what = f"{state.table}: the reading of window {label}"
            what += f" ({_rows(sum(file.rows for file in filter(is_of_window, state.files)))})"
            found = self._earlier(state, is_of_window)
            if found is None:
                lines.append(f"{what}; the next run reads it again")
                continue
            earlier, files = found
            kept += files
            lines.append(f"{what}; back to that of run {earlier.run_id}, and the next run reads it again")
        firsts = {f"{label}-01"[:10] for label in labels}
        opened, _ = self._reopened(state, firsts if all(map(_is_date, firsts)) else None)
        healed = replace(
            state,
            files=tuple(sorted(kept, key=lambda file: file.path)),
            rows=sum(file.rows for file in kept),
            state=opened,
            status="partial",
            reason=f"windows {', '.join(labels)} were damaged (repair {self.run_id})",
            content="",
        )
        return healed, lines

    def _earlier_snapshot(self, state: TableState) -> tuple[TableState, list[str]]:
        what = f"{state.table}: the snapshot of run {state.run_id} ({_rows(state.rows)})"
        found = self._earlier(state, lambda file: True)
        if found is None:
            reason = f"its snapshot was damaged, and there is no earlier one (repair {self.run_id})"
            lost = replace(state, files=(), rows=0, status="failed", reason=reason, content="")
            return lost, [f"{what}; there is no earlier one, and the next run reads the table again"]
        earlier, files = found
        healed = replace(
            earlier,
            files=files,
            rows=sum(file.rows for file in files),
            columns=state.columns,
            state=state.state,
            status="partial",
            reason=f"the snapshot of run {state.run_id} was damaged (repair {self.run_id})",
            content="",
        )
        return healed, [f"{what}; back to that of run {earlier.run_id} ({_rows(healed.rows)})"]

    def _earlier(
        self, state: TableState, belongs: Callable[[DataFile], bool]
    ) -> tuple[TableState, tuple[DataFile, ...]] | None:
        """The newest earlier state that has such files, and all of them whole; with those files."""
        key = (state.table, state.account)
        known = read_log(self.log)
        seen = {tuple(sorted(file.path for file in state.files if belongs(file)))}
        digests: set[str] = set()
        for entry in self.log.backwards(self.newest):
            reference = entry.tables.get(key)
            if reference is None or reference.digest in digests:
                continue
            digests.add(reference.digest)
            earlier = self.log.state_of(entry, *key)
            wanted = {
                file.path: Target(
                    file=file, table=key[0], account=key[1], columns=earlier.columns, is_event=False
                )
                for file in earlier.files
                if belongs(file)
            }
            targets, dropped = known.follow(wanted)
            paths = tuple(target.file.path for target in targets)
            if not paths or dropped or paths in seen:
                continue
            seen.add(paths)
            if not any(check_files(self.store, targets, self.newest.publishing)):
                return earlier, tuple(target.file for target in targets)
        return None


def _brought(now: TableState | None, then: TableState | None) -> dict[str, DataFile]:
    """The files that a table has now and had not then, by path."""
    known = {file.path for file in then.files} if then is not None else set()
    return {file.path: file for file in now.files if file.path not in known} if now is not None else {}


def _days_read(
    entry: LogEntry, now: TableState | None, then: TableState | None, seen: set[str]
) -> set[str] | None:
    """The days of the windows that a run read, by its table before and after, and the days of rows that it saw."""
    before, after = (state.state if state is not None else {} for state in (then, now))
    until, holes = progress_of(before).done_until, progress_of(before).holes
    if until is None and not seen:
        return None
    first = until.date() if until is not None else date.fromisoformat(min(seen))
    closed = set(holes) - set(progress_of(after).holes)
    return seen | closed | filled_days(before, after) | days_from(first, entry.committed_at.date())


def _rows(count: int) -> str:
    return f"{count:,} row{'' if count == 1 else 's'}"


def _is_of_window(label: str, file: DataFile) -> bool:
    return _partition(file, "window") == label


def _is_date(text: str) -> bool:
    return bool(re.fullmatch(r"\d{4}-\d\d-\d\d", text))


def _day(file: DataFile) -> str:
    """The day of a file's rows, or the first one of their window."""
    day = _partition(file, "event_date")
    return day if day != NULL_PARTITION else f"{_partition(file, 'window')}-01"[:10]


def _partition(file: DataFile, name: str) -> str:
    return dict(file.partition).get(name, NULL_PARTITION)


# --- doing it -----------------------------------------------------------------------------------------------


def _carry_out(
    store: Store,
    log: CommitLog,
    newest: LogEntry,
    plan: _Plan,
    findings: Sequence[Finding],
    run_id: str,
    clock: Clock,
    leases: Leases,
) -> Repair:
    moved: dict[str, str] = {}
    for found in findings:
        aside = f"{ASIDE}/{run_id}/{found.path}"
        for place in places(found.path, newest.publishing):
            try:
                # What an entry names stays until that is no longer so: nothing may be lost in between.
                if found.path in plan.removed:
                    store.copy_files([(place, aside)])
                else:
                    store.move(place, aside)
            except StoreMissing:
                continue
            moved[found.path] = aside
            break
    entry: LogEntry | None = None
    if plan.removed:
        entry = commit(
            store,
            log,
            run_id=run_id,
            updates=plan.updates,
            summary={"warnings": [f"lost: {line}" for line in plan.lost]},
            source=newest.source,
            started_at=clock.now(),
            clock=clock,
            leases=leases,
            status="repaired",
            replaced=dict.fromkeys(plan.removed, ()),
        )
        publish(store, log, entry)
    return Repair(run_id=run_id if entry is not None else "", moved=moved, lost=plan.lost)
