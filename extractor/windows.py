"""Where the windows of a table stand: what the state in the log says of them, and what the next run reads.

A window is closed once its end is further back than the lookback: nothing is expected in it any more. A closed
window that was read whole is never read again; one that was not is a hole, and the next run begins with it. Open
windows are read by every run. Rows of a windowed table's children belong to the window of their parent's row
(`follows`): each such child has a progress of its own, and the parent is read wherever one of them still needs it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from extractor.config import parse_duration
from extractor.endpoint import Endpoint, Window
from extractor.plan import Plan, Span, TablePlan, plan_windows

__all__ = (
    "BACKFILL_STATE",
    "Progress",
    "advance",
    "days_from",
    "filled_days",
    "follows",
    "parents_read",
    "parents_state",
    "progress_of",
    "progress_state",
    "source_of",
    "spans_to_read",
)

BACKFILL_STATE = "backfill:"
"""How the keys of the state begin that name the times of a backfill which goes on; they hold the windows it did."""
_KEY = "windows"
_PARENT = "parent:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Up to where the windows of a table are done, and which before that are not: the days of their starts."""

    done_until: datetime | None = None
    holes: tuple[str, ...] = ()


def follows(endpoint: Endpoint, plan: Plan) -> TablePlan | None:
    """The windowed table to whose windows the rows of `endpoint` belong, though it has no window of its own."""
    return source_of(endpoint, {table.name: table for table in plan.tables})


def source_of(endpoint: Endpoint, tables: Mapping[str, TablePlan]) -> TablePlan | None:
    """As `follows`, among these tables."""
    if endpoint.parent is None or not endpoint.sync.is_event or endpoint.sync.window is not None:
        return None
    above = tables.get(endpoint.parent.endpoint)
    if above is None or above.endpoint.sync.window is not None:
        return above
    return source_of(above.endpoint, tables)


def spans_to_read(
    planned: TablePlan, plan: Plan, states: Mapping[str, Mapping[str, object]], *, since: str, now: datetime
) -> tuple[Span, ...]:
    """The windows of a table that a run at the server's `now` must read, oldest first; () where it has none.

    `states` are those in the log, by table. A table that has none yet is read from `since` on.
    """
    window = planned.endpoint.sync.window
    if window is None:
        return ()
    followers = (table for table in plan.written if follows(table.endpoint, plan) is planned)
    wanted: dict[str, Span] = {}
    for table in (planned, *followers):
        if table.mode == "run":
            progress = progress_of(states.get(table.name, {}))
            for span in _spans(window, progress, since, now):
                # Without a step there is one window, which begins where the one furthest behind begins.
                if span.label not in wanted or span.start < wanted[span.label].start:
                    wanted[span.label] = span
    found = wanted.values() or _spans(window, Progress(), since, now)
    return tuple(sorted(found, key=lambda span: span.start))


def _spans(window: Window, progress: Progress, since: str, now: datetime) -> tuple[Span, ...]:
    return plan_windows(window, since=since, now=now, done_until=progress.done_until, holes=progress.holes)


def progress_of(state: Mapping[str, object]) -> Progress:
    """What a table's state in the log says of its windows."""
    found = state.get(_KEY)
    if not isinstance(found, Mapping) or not found.get("done_until"):
        return Progress()
    done_until = datetime.fromisoformat(str(found["done_until"]))
    return Progress(done_until=done_until, holes=tuple(found.get("holes") or ()))


def progress_state(progress: Progress) -> Mapping[str, object]:
    """The same for the log."""
    if progress.done_until is None:
        return {}
    done_until = progress.done_until.astimezone(UTC).isoformat()
    return {_KEY: {"done_until": done_until, "holes": sorted(progress.holes)}}


def advance(
    before: Progress, window: Window, spans: Sequence[Span], complete: Collection[str], *, moment: datetime
) -> Progress:
    """The progress after a run that read `spans`, those in `complete` to their end, at the server's `moment`."""
    horizon = moment - timedelta(seconds=parse_duration(window.lookback))
    if not window.step:
        is_done = all(span.label in complete for span in spans)
        return Progress(done_until=horizon) if spans and is_done else before
    holes = {hole for hole in before.holes if not any(_holds(span, hole) for span in spans)}
    known = set(before.holes) - holes
    done_until = before.done_until
    for span in spans:
        if span.label not in complete and any(_holds(span, hole) for hole in known):
            holes.add(_day(span))  # whatever the clock says now
        if not span.is_closed_at(horizon) or span.end is None:
            continue
        if span.label not in complete:
            holes.add(_day(span))
        done_until = max(done_until or span.end, span.end)
    if done_until is None and spans:
        done_until = spans[0].start
    return Progress(done_until=done_until, holes=tuple(sorted(holes)))


def _holds(span: Span, hole: str) -> bool:
    """Whether a hole, which may be any day of its window, was read with the span."""
    day = datetime.fromisoformat(hole).replace(tzinfo=UTC)
    return span.start <= day and (span.end is None or day < span.end)


def _day(span: Span) -> str:
    return f"{span.start:%Y-%m-%d}"


def days_from(first: date, last: date) -> set[str]:
    """Every day from one to the other, both included."""
    return {f"{first + timedelta(days=number)}" for number in range((last - first).days + 1)}


def filled_days(before: Mapping[str, object], after: Mapping[str, object]) -> set[str]:
    """Days, one at least of each window that backfills did between two states of a table in the log.

    A backfill that was done in one step leaves no trace there.
    """
    days: set[str] = set()
    for key in {*before, *after}:
        if not key.startswith(BACKFILL_STATE):
            continue
        known, done = _days_done(before.get(key)), _days_done(after.get(key))
        if key not in after:
            start, end = map(datetime.fromisoformat, key.removeprefix(BACKFILL_STATE).split(".."))
            done = days_from(start.date(), end.date())
        days |= done - known
    return days


def _days_done(labels: object) -> set[str]:
    """The first days of windows by their names."""
    return {f"{label}-01"[:10] for label in labels} if isinstance(labels, list) else set()


# --- rows of the parent -------------------------------------------------------------------------------------


def parents_read(state: Mapping[str, object]) -> Mapping[str, str]:
    """The parent's rows whose answer was taken whole, each with the version that it had then."""
    return {
        key.removeprefix(_PARENT): str(version) for key, version in state.items() if key.startswith(_PARENT)
    }


def parents_state(versions: Mapping[str, str] | Iterable[tuple[str, str]]) -> Mapping[str, str]:
    """The same for the log: a key for each, so that a commit writes those that changed."""
    return {f"{_PARENT}{key}": version for key, version in dict(versions).items()}
