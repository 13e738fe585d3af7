from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import pytest

from extractor.clock import SystemClock
from extractor.commit import Update, commit
from extractor.commitlog import CommitLog, TableState
from extractor.endpoint import Endpoint, Parent, Sync, Window
from extractor.plan import Plan, TablePlan
from extractor.stores.memory import MemoryStore
from extractor.windows import (
    Progress,
    advance,
    filled_days,
    follows,
    parents_read,
    parents_state,
    progress_of,
    progress_state,
    spans_to_read,
)

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
DAY = timedelta(days=1)
DAILY = Window(from_param="from", to_param="to", step="1d", lookback="48h", cursor="at")
OPEN = Window(from_param="from", lookback="48h", cursor="at")


def windowed(name: str, window: Window = DAILY) -> Endpoint:
    return Endpoint(name=name, path="/p", key=("id",), sync=Sync(kind="window", window=window, cursor="at"))


def child(name: str, parent: str) -> Endpoint:
    return Endpoint(
        name=name,
        path="/c/{id}",
        key=("id",),
        parent=Parent(endpoint=parent, params={"id": "id"}),
        sync=Sync(kind="append", cursor="at"),
    )


def plan_of(*endpoints: Endpoint, keys: str = "") -> Plan:
    return Plan(
        tables=tuple(TablePlan(endpoint=e, mode="keys" if e.name == keys else "run") for e in endpoints)
    )


def labels(plan: Plan, states: Mapping[str, Mapping[str, object]], *, now: datetime = NOON) -> list[str]:
    return [span.label for span in spans_to_read(plan.tables[0], plan, states, since="3d", now=now)]


def state(done: str, *holes: str) -> Mapping[str, object]:
    return {"windows": {"done_until": f"{done}T00:00:00+00:00", "holes": list(holes)}}


def test_a_new_table_is_read_from_since_on_and_a_known_one_from_its_oldest_open_window() -> None:
    plan = plan_of(windowed("logs"))

    assert labels(plan, {}) == ["2026-11-19", "2026-11-20", "2026-11-21", "2026-11-22"]
    assert labels(plan, {"logs": state("2026-11-21")}) == ["2026-11-21", "2026-11-22"]


def test_holes_come_first() -> None:
    plan = plan_of(windowed("logs"))

    found = labels(plan, {"logs": state("2026-11-22", "2026-09-03", "2026-10-01")})

    assert found == ["2026-09-03", "2026-10-01", "2026-11-22"]


def test_a_parent_is_read_wherever_a_child_that_follows_it_still_needs_it() -> None:
    plan = plan_of(windowed("logs"), child("lines", "logs"), child("words", "lines"))
    states = {
        "logs": state("2026-11-22"),
        "lines": state("2026-11-22", "2026-10-01"),
        "words": state("2026-11-21"),
    }

    assert labels(plan, states) == ["2026-10-01", "2026-11-21", "2026-11-22"]


def test_a_child_that_was_never_read_needs_the_windows_since_the_beginning() -> None:
    plan = plan_of(windowed("logs"), child("lines", "logs"))

    assert labels(plan, {"logs": state("2026-11-22")})[0] == "2026-11-19"


def test_a_parent_read_for_its_keys_only_goes_by_its_children_alone() -> None:
    plan = plan_of(windowed("logs"), child("lines", "logs"), keys="logs")
    states = {"logs": state("2026-11-01", "2026-10-01"), "lines": state("2026-11-22")}

    assert labels(plan, states) == ["2026-11-22"]


def test_what_follows_a_window_is_told_by_the_parents_alone() -> None:
    snapshot = Endpoint(name="things", path="/t")
    plan = plan_of(snapshot, windowed("logs"), child("lines", "logs"), child("parts", "things"))

    assert follows(plan.tables[2].endpoint, plan) is plan.tables[1]
    assert follows(plan.tables[3].endpoint, plan) is None
    assert follows(plan.tables[1].endpoint, plan) is None


@pytest.mark.parametrize(
    ("complete", "moment", "after"),
    [
        # 19 November ends 60 hours before: closed. The 20th ends 36 hours before: open.
        ({"2026-11-19", "2026-11-20", "2026-11-21", "2026-11-22"}, NOON, ("2026-11-20",)),
        ({"2026-11-20", "2026-11-21", "2026-11-22"}, NOON, ("2026-11-20", "2026-11-19")),
        ({"2026-11-19"}, NOON, ("2026-11-20",)),
        (set(), NOON - 3 * DAY, ("2026-11-19",)),
        # A clock that was a day back closes nothing that the right one would not.
        ({"2026-11-19", "2026-11-20", "2026-11-21", "2026-11-22"}, NOON - DAY, ("2026-11-19",)),
    ],
)
def test_closed_windows_are_done_or_holes_and_open_ones_are_neither(
    complete: set[str], moment: datetime, after: tuple[str, ...]
) -> None:
    plan = plan_of(windowed("logs"))
    spans = spans_to_read(plan.tables[0], plan, {}, since="3d", now=NOON)

    found = advance(Progress(), DAILY, spans, complete, moment=moment)

    assert found == Progress(
        done_until=datetime.fromisoformat(f"{after[0]}T00:00:00+00:00"), holes=tuple(after[1:])
    )


def test_progress_never_goes_back_and_a_hole_stays_until_it_is_filled() -> None:
    before = Progress(done_until=NOON - DAY, holes=("2026-10-01", "2026-10-09"))
    plan = plan_of(windowed("logs"))
    spans = spans_to_read(
        plan.tables[0], plan, {"logs": state("2026-11-01", "2026-10-01")}, since="3d", now=NOON - 20 * DAY
    )

    found = advance(before, DAILY, spans, {"2026-10-01"}, moment=NOON - 20 * DAY)

    assert found == Progress(done_until=NOON - DAY, holes=("2026-10-09",))


def test_a_hole_that_fails_again_stays_one_whatever_the_lookback_is_now() -> None:
    late = Window(from_param="from", to_param="to", step="1d", lookback="30d", cursor="at")
    before = Progress(done_until=NOON - DAY, holes=(f"{NOON - 10 * DAY:%Y-%m-%d}",))
    plan = plan_of(windowed("logs", late))
    spans = spans_to_read(plan.tables[0], plan, {"logs": progress_state(before)}, since="3d", now=NOON)

    assert advance(before, late, spans, {span.label for span in spans[1:]}, moment=NOON).holes == before.holes
    assert advance(before, late, spans, {span.label for span in spans}, moment=NOON).holes == ()


def test_a_hole_may_be_any_day_of_its_window() -> None:
    weekly = Window(from_param="from", to_param="to", step="7d", lookback="48h", cursor="at")
    plan = plan_of(windowed("notices", weekly))
    first = datetime(2026, 10, 1, tzinfo=UTC)
    for number in range(7):
        before = Progress(done_until=NOON - DAY, holes=(f"{first + number * DAY:%Y-%m-%d}",))
        states = {"notices": progress_state(before)}
        spans = spans_to_read(plan.tables[0], plan, states, since="3d", now=NOON)

        assert advance(before, weekly, spans, {span.label for span in spans}, moment=NOON).holes == ()


def test_a_window_without_end_goes_on_from_its_lookback_and_only_after_it_was_read_whole() -> None:
    plan = plan_of(windowed("invoices", OPEN))
    before = Progress(done_until=NOON - 9 * DAY)
    states = {"invoices": progress_state(before)}
    spans = spans_to_read(plan.tables[0], plan, states, since="3d", now=NOON)

    assert [(span.start, span.end) for span in spans] == [(NOON - 9 * DAY, None)]
    assert advance(before, OPEN, spans, (), moment=NOON) == before
    assert advance(before, OPEN, spans, {"all"}, moment=NOON).done_until == NOON - 2 * DAY


def test_the_state_in_the_log_reads_back_as_it_was() -> None:
    progress = Progress(done_until=NOON, holes=("2026-01-01", "2026-02-01"))
    versions = {"a/b": "3", "c": ""}

    state_in_log = {**progress_state(progress), **parents_state(versions), "longest_chain": 4}

    assert progress_of(state_in_log) == progress
    assert parents_read(state_in_log) == versions
    assert progress_state(Progress()) == {}
    assert progress_of({}) == Progress()


def remembering(versions: Mapping[str, str], run_id: str) -> TableState:
    progress = progress_state(Progress(done_until=NOON))
    return TableState(
        table="lines",
        account="default",
        sync="append",
        status="complete",
        reason="end of chain seen",
        rows=0,
        files=(),
        columns=(),
        state={**progress, **parents_state(versions)},
        run_id=run_id,
        proved_by=run_id,
        snapshot_at=None,
        content="",
    )


def test_with_100_000_rows_of_a_parent_a_commit_writes_what_changed() -> None:
    store = MemoryStore()
    log = CommitLog(store)
    versions = {f"db{n * 7919 % 100_003:09d}": str(n % 977) for n in range(100_000)}

    def written_bytes(run_id: str) -> int:
        before = {found.path: found.modified_at for found in store.list("_extractor")}
        newest = log.newest()
        expected = newest.tables["lines", "default"] if newest is not None else None
        update = Update(
            table="lines", account="default", state=remembering(versions, run_id), expected=expected
        )
        commit(
            store,
            log,
            run_id=run_id,
            updates=[update],
            summary={},
            source={},
            started_at=NOON,
            clock=SystemClock(),
            leases=None,
        )
        return sum(found.size_bytes for found in store.list("_extractor") if found.path not in before)

    first = written_bytes("r1")
    for key in list(versions)[:10]:
        versions[key] = "new"
    changed = written_bytes("r2")
    unchanged = written_bytes("r3")
    newest = log.newest()
    assert newest is not None

    assert parents_read(log.state_of(newest, "lines", "default").state) == versions
    assert first > 2_000_000
    assert changed < 150_000
    assert unchanged < 2_000


def test_what_backfills_did_between_two_states_is_told_by_their_keys() -> None:
    march = "backfill:2026-03-01T00:00:00Z..2026-03-04T00:00:00Z"
    year = "backfill:2025-01-01T00:00:00Z..2026-01-01T00:00:00Z"
    before = {march: ["2026-03-01"], year: ["2025-01"], "key": ["id"]}

    assert filled_days(before, before) == set()
    assert filled_days(before, {**before, year: ["2025-01", "2025-02"]}) == {"2025-02-01"}
    assert filled_days({}, {march: ["2026-03-01"]}) == {"2026-03-01"}
    # One that is over held all its windows at last.
    assert filled_days(before, {year: ["2025-01"]}) == {"2026-03-02", "2026-03-03", "2026-03-04"}
