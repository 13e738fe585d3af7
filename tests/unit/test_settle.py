from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from extractor.batch import Stamp
from extractor.commitlog import TableState
from extractor.config import Checks
from extractor.decode.json import decode_rows
from extractor.endpoint import Endpoint, Sync, TokenPaging, Window
from extractor.ledger import Ledger, OpenChain, Outcome
from extractor.paging import Chain
from extractor.plan import Span
from extractor.schema import Field, Scalar, TableSchema
from extractor.settle import Reading, Settled, settle_table
from extractor.store import staged_path
from extractor.stores.memory import MemoryStore
from extractor.write import TableWriter, WriteSettings

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
DAY = timedelta(days=1)

THINGS = Endpoint(
    name="things", path="/t", key=("id",), paging=TokenPaging(request_param="t", response_header="n")
)
EVENTS = Endpoint(
    name="events",
    path="/e",
    key=("id",),
    sync=Sync(
        kind="window",
        window=Window(from_param="from", to_param="to", step="1d", lookback="1h", cursor="at"),
        cursor="at",
    ),
)
SEEN = Endpoint(name="seen", path="/s", key=("id",), sync=Sync(kind="append", cursor="at"))
BILLS = Endpoint(
    name="bills",
    path="/b",
    key=("id",),
    sync=Sync(kind="window", window=Window(from_param="y", to_param="m", step="1M", replace=True)),
)

SCHEMA = TableSchema(
    table="things",
    fields=tuple(
        Field(name=name, type=Scalar(type_), source=name)
        for name, type_ in {"id": "string", "n": "int64", "at": "timestamp"}.items()
    ),
)


@dataclass
class Lake:
    """Runs of one table, one after the other, each committed if it may be."""

    endpoint: Endpoint = THINGS
    store: MemoryStore = field(default_factory=MemoryStore)
    prior: TableState | None = None
    runs: int = 0

    def run(
        self,
        rows: Mapping[str, str] | str,
        *,
        at: datetime = NOON,
        cut: Sequence[str] = (),
        total: int | None = None,
        status: Literal["complete", "partial", "failed"] | None = None,
        checks: Checks | None = None,
        is_accepted: bool = False,
        schema: TableSchema = SCHEMA,
    ) -> Settled:
        """`rows` is a page, or a page by window; the windows in `cut` saw no end."""
        self.runs += 1
        pages = {"": rows} if isinstance(rows, str) else dict(rows)
        spans = tuple(span(label) for label in pages if label)
        ledger = Ledger(table=self.endpoint.name)
        stamp = Stamp(
            run_id=f"r{self.runs}", account="default", snapshot_at=at, is_event=self.endpoint.sync.is_event
        )
        writer = TableWriter(
            self.store, self.endpoint, stamp, settings=WriteSettings(), snapshot_date=f"{at:%Y-%m-%d}"
        )
        for window, page in pages.items():
            chain = Chain(endpoint=self.endpoint, base_url="http://127.0.0.1", pages_max=9, total=total)
            chain.proof = "" if window in cut else "end: no next page"
            ledger.chains[window] = OpenChain(chain=chain, window=window)
            decoded = decode_rows([page.encode()], schema)
            ledger.rows += decoded.batch.num_rows
            schema = decoded.schema
            writer.add(decoded.batch, window=window, received_at=at)
        outcome = Outcome(status=status or ("partial" if cut else "complete"), reason="as the test says")
        settled = settle_table(
            self.store,
            Reading(
                endpoint=self.endpoint,
                ledger=ledger,
                outcome=outcome,
                schema=schema,
                stamp=stamp,
                spans=spans,
                prior=self.prior,
                expected=None,
                checks=checks or Checks(),
                is_accepted=is_accepted,
                is_parent_whole=True,
                moment=at,
                compression="zstd",
            ),
            writer,
        )
        self._publish(settled, stamp.run_id)
        return settled

    def _publish(self, settled: Settled, run_id: str) -> None:
        if settled.update is None:
            return
        old = {file.path for file in self.prior.files} if self.prior else set()
        for file in settled.update.state.files:
            if file.path not in old:
                self.store.move(staged_path(run_id, file.path), file.path)
        self.prior = settled.update.state

    @property
    def ids(self) -> list[str]:
        assert self.prior is not None
        tables = [pq.read_table(pa.BufferReader(self.store.read(file.path))) for file in self.prior.files]
        return sorted(id_ for table in tables for id_ in table.column("id").to_pylist())


def span(label: str) -> Span:
    if len(label) == 7:
        start = datetime.fromisoformat(f"{label}-01").replace(tzinfo=UTC)
        return Span(label=label, start=start, end=(start + 32 * DAY).replace(day=1))
    start = datetime.fromisoformat(label).replace(tzinfo=UTC)
    return Span(label=label, start=start, end=start + DAY)


def page(*ids: str, n: int = 0, at: str = "2026-11-22T01:00:00Z") -> str:
    return "[" + ",".join(f'{{"id":"{id_}","n":{n},"at":"{at}"}}' for id_ in ids) + "]"


def told(settled: Settled) -> tuple[str, int, int]:
    return settled.report.status, settled.report.rows, settled.report.files


# --- snapshots ----------------------------------------------------------------------------------------------


def test_a_first_snapshot_is_the_state_of_the_table() -> None:
    lake = Lake()

    settled = lake.run(page("a", "b"))

    assert told(settled) == ("complete", 2, 1)
    assert settled.update is not None
    state = settled.update.state
    assert (settled.update.table, settled.update.account, settled.update.expected) == (
        "things",
        "default",
        None,
    )
    assert (state.rows, state.status, state.run_id, state.proved_by) == (2, "complete", "r1", "r1")
    assert (state.snapshot_at, state.columns) == (NOON.isoformat(), SCHEMA.to_json())
    assert lake.ids == ["a", "b"]


def test_a_run_keeps_what_a_backfill_has_done() -> None:
    lake = Lake()
    lake.run(page("a"))
    assert lake.prior is not None
    lake.prior = replace(lake.prior, state={**lake.prior.state, "backfill:2025": ["2025-01-01"]})

    lake.run(page("a", "b"))

    assert lake.prior.state["backfill:2025"] == ["2025-01-01"]


def test_an_unchanged_snapshot_of_the_same_day_writes_nothing_and_is_proved_again() -> None:
    lake = Lake()
    first = lake.run(page("a", "b")).update

    second = lake.run(page("b", "a"), at=NOON + timedelta(hours=3))
    third = lake.run(page("a", "b"), at=NOON + timedelta(hours=4))

    assert first is not None
    assert second.update is not None
    assert third.update is not None
    assert told(second) == ("complete", 2, 0)
    assert "unchanged since run r1" in second.report.reason
    assert second.update.state.files == third.update.state.files == first.state.files
    assert [third.update.state.run_id, third.update.state.proved_by] == ["r1", "r3"]
    assert second.update.state.snapshot_at == first.state.snapshot_at


def test_the_first_complete_run_of_another_day_writes_though_nothing_changed() -> None:
    lake = Lake()
    lake.run(page("a"))

    settled = lake.run(page("a"), at=NOON + DAY)

    assert told(settled) == ("complete", 1, 1)
    assert lake.prior is not None
    assert [dict(file.partition)["snapshot_date"] for file in lake.prior.files] == ["2026-11-23"]


def test_a_changed_snapshot_replaces_the_files_of_the_last() -> None:
    for changed in (page("a", "c"), page("a", "b", n=1), page("a", "b", "c")):
        lake = Lake()
        lake.run(page("a", "b"))

        settled = lake.run(changed)

        assert settled.report.files == 1
        assert lake.prior is not None
        assert lake.prior.run_id == "r2"


def test_an_unchanged_snapshot_is_written_again_when_a_file_of_it_is_gone() -> None:
    lake = Lake()
    lake.run(page("a"))
    assert lake.prior is not None
    lake.store.delete(lake.prior.files[0].path)

    assert told(lake.run(page("a"))) == ("complete", 1, 1)


def test_equal_rows_under_a_new_column_are_written_again() -> None:
    lake = Lake()
    lake.run(page("a"))
    grown = replace(SCHEMA, fields=(*SCHEMA.fields, Field(name="x", type=Scalar("bool"), source="x")))

    assert told(lake.run(page("a"), schema=grown)) == ("complete", 1, 1)


def test_a_snapshot_of_no_rows_is_complete_with_one_typed_file() -> None:
    lake = Lake()

    settled = lake.run("[]")

    assert told(settled) == ("complete", 0, 1)
    assert lake.ids == []


def test_a_snapshot_that_is_not_complete_changes_nothing() -> None:
    lake = Lake()
    lake.run(page("a"))

    for status in ("partial", "failed"):
        settled = lake.run(page("b"), status=status)  # type: ignore[arg-type]  # a loop forgets literals

        assert (settled.update, settled.report.status, lake.ids) == (None, status, ["a"])


# --- checks -------------------------------------------------------------------------------------------------


def test_rows_that_share_a_key_and_differ_hold_the_table_back_until_they_are_accepted() -> None:
    lake = Lake()
    both = page("a", "b")[:-1] + "," + page("a", n=1)[1:]

    held = lake.run(both)
    accepted = lake.run(both, is_accepted=True)
    unchecked = Lake().run(both, checks=Checks(unique_key=False))

    assert (held.update, held.report.status) == (None, "held")
    assert "id=a" in held.report.reason
    assert "--accept things" in held.report.reason
    assert told(accepted) == told(unchecked) == ("complete", 3, 1)


def test_rows_that_came_twice_stand_once_with_a_warning() -> None:
    lake = Lake()

    settled = lake.run(page("a", "b", "a"))

    assert (told(settled), lake.ids) == (("complete", 2, 1), ["a", "b"])
    assert settled.warnings == ("things: 1 rows came twice and stand once",)


def test_a_key_whose_type_was_corrected_still_tells_rows_apart() -> None:
    id_, *others = SCHEMA.fields
    dead = replace(id_, type=Scalar("int64"), is_live=False)
    schema = replace(SCHEMA, fields=(dead, *others, replace(id_, name="id__v2")))

    settled = Lake().run(page("a", "b", "a"), schema=schema)

    assert (told(settled), settled.warnings) == (
        ("complete", 2, 1),
        ("things: 1 rows came twice and stand once",),
    )


def test_fewer_rows_than_the_server_says_there_are_make_the_table_partial() -> None:
    lake = Lake()

    fewer = lake.run(page("a", "b"), total=3)
    accepted = lake.run(page("a", "b"), total=3, is_accepted=True)
    as_many = lake.run(page("a", "b"), total=2)

    assert (accepted.update, accepted.report.status) == (None, "partial")
    assert (fewer.update, fewer.report.status, fewer.report.reason) == (
        None,
        "partial",
        "the server says 3 rows, 2 came",
    )
    assert as_many.report.status == "complete"


def test_rows_that_came_twice_do_not_make_up_for_missing_ones() -> None:
    settled = Lake().run(page("a", "a"), total=2)

    assert (settled.report.status, settled.report.reason) == ("partial", "the server says 2 rows, 1 came")


def test_an_append_table_that_reads_what_stands_in_the_lake_already_counts_it_among_what_came() -> None:
    lake = Lake(endpoint=SEEN)
    lake.run(page("a", "b"), total=2)

    settled = lake.run(page("a", "b", "c"), total=3)

    assert (told(settled), lake.ids) == (("complete", 1, 1), ["a", "b", "c"])


def test_an_append_table_counts_each_row_that_came_once_whether_the_lake_has_it_or_not() -> None:
    """One page in the place of another gives the right number of rows, and not the right rows."""
    lake = Lake(endpoint=SEEN)
    lake.run(page("a", "b"), total=2)

    new_twice = lake.run(page("a", "b", "c", "c"), total=4)
    known_twice = lake.run(page("a", "a", "b", "c"), total=4)
    fewer = lake.run(page("a", "c"), total=3)

    assert [settled.report.status for settled in (new_twice, known_twice, fewer)] == ["partial"] * 3
    assert [settled.report.reason for settled in (new_twice, known_twice, fewer)] == [
        "the server says 4 rows, 3 came",
        "the server says 4 rows, 3 came",
        "the server says 3 rows, 2 came",
    ]
    assert lake.ids == ["a", "b"]


def test_each_window_is_held_to_its_own_total() -> None:
    """One page in the place of another has the right number of rows: that window is open, the others are done."""
    lake = Lake(endpoint=EVENTS)

    settled = lake.run({FIRST: events("a", "b", on=FIRST), SECOND: events("c", "c", on=SECOND)}, total=2)

    assert settled.report.status == "partial"
    assert settled.report.reason == f"{SECOND}: the server says 2 rows, 1 came"
    assert lake.ids == ["a", "b"]
    assert lake.prior is not None
    assert SECOND in lake.prior.state["windows"]["holes"]  # type: ignore[index]  # a table of the state


def test_neighbouring_windows_may_both_count_what_lies_on_their_boundary() -> None:
    lake = Lake(endpoint=EVENTS)

    settled = lake.run({FIRST: events("a", on=SECOND), SECOND: events("a", on=SECOND)}, total=1)

    assert (settled.report.status, lake.ids) == ("complete", ["a"])


def test_a_table_that_loses_too_many_rows_is_held_until_it_is_accepted() -> None:
    checks = Checks(max_drop=0.5, min_rows=4)
    lake = Lake()
    lake.run(page("a", "b", "c", "d"))

    held = lake.run(page("a", "b"), checks=checks)
    fewer_lost = lake.run(page("a", "b", "c"), checks=checks)
    too_small = lake.run(page("a"), checks=checks)
    accepted = lake.run("[]", checks=Checks(max_drop=0.5, min_rows=0), is_accepted=True)

    assert (held.report.status, held.update) == ("held", None)
    assert "4 rows fell to 2" in held.report.reason
    assert [told(settled)[0] for settled in (fewer_lost, too_small, accepted)] == ["complete"] * 3
    assert lake.ids == []


def test_a_window_that_is_read_anew_and_lost_its_rows_is_held_too() -> None:
    lake = Lake(endpoint=BILLS)
    many = [f"b{number}" for number in range(20)]
    lake.run({"2026-10": page("a"), "2026-11": page(*many)})

    held = lake.run({"2026-10": page("a"), "2026-11": "[]"})
    fewer = lake.run({"2026-10": "[]", "2026-11": page("b0")})

    assert (held.update, held.report.status) == (None, "held")
    assert held.report.reason.startswith("20 rows of 2026-11 fell to 0 (checks.max_drop = 1)")
    assert fewer.report.status == "complete"


# --- windows of events --------------------------------------------------------------------------------------

FIRST, SECOND, THIRD = "2026-11-20", "2026-11-21", "2026-11-22"


def events(*ids: str, on: str) -> str:
    return page(*ids, at=f"{on}T05:00:00Z")


def test_only_complete_windows_are_committed_and_the_others_stay_holes() -> None:
    lake = Lake(endpoint=EVENTS)

    settled = lake.run(
        {FIRST: events("a", on=FIRST), SECOND: events("b", on=SECOND), THIRD: events("c", on=THIRD)},
        cut=[FIRST],
    )

    assert told(settled) == ("partial", 2, 2)
    assert lake.ids == ["b", "c"]
    assert lake.prior is not None
    assert lake.prior.state["windows"] == {"done_until": "2026-11-22T00:00:00+00:00", "holes": [FIRST]}
    assert lake.prior.snapshot_at is None


def test_a_hole_is_filled_by_the_run_that_reads_it() -> None:
    lake = Lake(endpoint=EVENTS)
    pages = {FIRST: events("a", on=FIRST), SECOND: events("b", on=SECOND)}
    lake.run(pages, cut=[FIRST])

    settled = lake.run(pages)

    assert (told(settled), lake.ids) == (("complete", 1, 1), ["a", "b"])
    assert lake.prior is not None
    assert lake.prior.state["windows"] == {"done_until": "2026-11-22T00:00:00+00:00", "holes": []}


def test_a_window_is_done_only_when_the_lookback_is_over() -> None:
    lake = Lake(endpoint=EVENTS)

    lake.run({FIRST: "[]", SECOND: "[]"}, at=datetime(2026, 11, 22, 0, 59, tzinfo=UTC))

    assert lake.prior is not None
    assert lake.prior.state["windows"] == {"done_until": "2026-11-21T00:00:00+00:00", "holes": []}


def test_rows_of_events_are_added_once_at_first_sight() -> None:
    lake = Lake(endpoint=EVENTS)
    lake.run({THIRD: events("a", on=THIRD)})

    settled = lake.run({THIRD: page("a", "b", n=7, at=f"{THIRD}T05:00:00Z")})

    assert (told(settled), lake.ids) == (("complete", 1, 1), ["a", "b"])
    assert lake.prior is not None
    assert (lake.prior.rows, len(lake.prior.files), lake.prior.run_id) == (2, 2, "r2")


def test_events_of_which_none_is_new_leave_the_files_as_they_are() -> None:
    lake = Lake(endpoint=EVENTS)
    first = lake.run({THIRD: events("a", on=THIRD)}).update

    settled = lake.run({THIRD: events("a", on=THIRD)})

    assert first is not None
    assert told(settled) == ("complete", 0, 0)
    assert lake.prior is not None
    assert (lake.prior.files, lake.prior.run_id, lake.prior.proved_by) == (first.state.files, "r1", "r2")


def test_an_event_table_that_never_had_a_row_is_one_typed_file() -> None:
    lake = Lake(endpoint=EVENTS)

    settled = lake.run({THIRD: "[]"})
    again = lake.run({THIRD: "[]"})

    assert (told(settled), told(again)) == (("complete", 0, 1), ("complete", 0, 0))
    assert lake.prior is not None
    assert [file.path for file in lake.prior.files] == [
        "events/account=default/event_date=__HIVE_DEFAULT_PARTITION__/r1-00000.parquet"
    ]


def test_events_of_which_no_window_is_complete_change_nothing() -> None:
    lake = Lake(endpoint=EVENTS)

    settled = lake.run({FIRST: events("a", on=FIRST)}, cut=[FIRST])
    failed = lake.run({FIRST: events("a", on=FIRST)}, status="failed")

    assert (settled.update, failed.update) == (None, None)


# --- windows that are read anew -----------------------------------------------------------------------------


def test_a_window_that_was_read_anew_replaces_only_its_own_reading() -> None:
    lake = Lake(endpoint=BILLS)
    lake.run({"2026-10": page("a"), "2026-11": page("b")})

    settled = lake.run({"2026-10": page("a"), "2026-11": page("b", n=1)})

    assert told(settled) == ("complete", 1, 1)
    assert lake.prior is not None
    assert [file.path for file in lake.prior.files] == [
        "bills/account=default/window=2026-10/run=r1/part-00000.parquet",
        "bills/account=default/window=2026-11/run=r2/part-00000.parquet",
    ]


def test_of_windows_that_are_read_anew_only_complete_ones_are_taken() -> None:
    lake = Lake(endpoint=BILLS)
    lake.run({"2026-10": page("a"), "2026-11": page("b")})

    settled = lake.run({"2026-10": page("x"), "2026-11": page("y")}, cut=["2026-10"])

    assert (told(settled), lake.ids) == (("partial", 1, 1), ["a", "y"])


def test_windows_that_did_not_change_write_nothing() -> None:
    lake = Lake(endpoint=BILLS)
    lake.run({"2026-11": page("b")})

    settled = lake.run({"2026-11": page("b")})

    assert told(settled) == ("complete", 0, 0)
    assert [file.path for file in lake.store.list("_extractor/staging/r2")] == []


def test_a_window_that_lost_all_its_rows_has_none() -> None:
    lake = Lake(endpoint=BILLS)
    lake.run({"2026-10": page("a"), "2026-11": page("b")})

    settled = lake.run({"2026-10": page("a"), "2026-11": "[]"})

    assert (settled.report.status, lake.ids) == ("complete", ["a"])


def test_each_key_stands_once_in_each_window_that_is_read_anew() -> None:
    lake = Lake(endpoint=BILLS)

    settled = lake.run({"2026-10": page("a", "a"), "2026-11": page("a", n=1)})

    assert told(settled) == ("complete", 2, 2)
    assert lake.ids == ["a", "a"]
