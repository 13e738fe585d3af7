from __future__ import annotations

from datetime import UTC, date, datetime

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extractor.batch import (
    Buffer,
    Stamp,
    arrivals,
    split_by_date,
    stamp_rows,
    stamp_schema,
    with_arrival,
)
from extractor.endpoint import Endpoint, Sync
from extractor.schema import UTC_TIME

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
LATER = datetime(2026, 11, 22, 12, 5, tzinfo=UTC)


def events(cursor: str = "at") -> Endpoint:
    return Endpoint(name="events", path="/e", key=("id",), sync=Sync(kind="append", cursor=cursor))


def days_of(column: pa.Array, cursor: str = "at") -> list[tuple[date | None, list[int]]]:
    batch = pa.record_batch({"id": list(range(len(column))), "at": column})
    return [(day, part.column("id").to_pylist()) for day, part in split_by_date(batch, events(cursor))]


@pytest.mark.parametrize("is_event", [True, False])
def test_a_stamped_row_says_which_run_wrote_it_and_when_it_arrived(is_event: bool) -> None:
    stamp = Stamp(run_id="r1", account="default", snapshot_at=NOON, is_event=is_event)
    batch = pa.record_batch({"id": [1, 2]})
    rows = pa.Table.from_batches([with_arrival(batch, arrivals([1, 0, 1], [LATER, NOON, NOON]))])

    stamped = stamp_rows(rows, stamp, event_date=date(2026, 11, 21))

    last = {"_event_date": date(2026, 11, 21)} if is_event else {"_snapshot_at": NOON}
    own = {"_run_id": "r1", "_account": "default", **last}
    assert stamped.to_pylist() == [
        {"id": 1, "_extracted_at": LATER, **own},
        {"id": 2, "_extracted_at": NOON, **own},
    ]
    assert stamped.schema == stamp_schema(batch.schema, stamp)


def test_a_row_without_a_day_is_stamped_with_none() -> None:
    stamp = Stamp(run_id="r1", account="default", snapshot_at=NOON, is_event=True)

    rows = pa.Table.from_batches([with_arrival(pa.record_batch({"id": [1]}), arrivals([1], [LATER]))])

    stamped = stamp_rows(rows, stamp)

    assert stamped.column("_event_date").to_pylist() == [None]


def test_events_are_split_by_the_utc_day_on_which_they_happened() -> None:
    times = [
        datetime(2026, 1, 2, 0, 0, tzinfo=UTC),
        datetime(2026, 1, 1, 23, 59, 59, 999_999, tzinfo=UTC),
        None,
    ]
    times += [datetime(1969, 12, 31, 23, tzinfo=UTC), times[0]]

    assert days_of(pa.array(times, UTC_TIME)) == [
        (date(2026, 1, 2), [0, 4]),
        (date(2026, 1, 1), [1]),
        (None, [2]),
        (date(1969, 12, 31), [3]),
    ]


def test_events_of_one_day_stay_one_batch() -> None:
    assert days_of(pa.array([NOON, LATER], UTC_TIME)) == [(date(2026, 11, 22), [0, 1])]


def test_a_text_that_begins_with_a_day_of_the_calendar_has_that_day() -> None:
    texts = ["2026-01-02", "2026-01-02T10:00 local", "2028-02-29", "0001-01-01", "9999-12-31x"]
    assert [day for day, _ in days_of(pa.array(texts))] == [
        date(2026, 1, 2),
        date(2028, 2, 29),
        date(1, 1, 1),
        date(9999, 12, 31),
    ]


@pytest.mark.parametrize(
    "text", ["2026-02-31", "2026-02-29", "0000-01-01", "2026-13-01", "2026-1-1", "soon", "", "２026-01-01"]
)
def test_a_text_that_begins_with_no_day_has_none(text: str) -> None:
    assert days_of(pa.array([text, None])) == [(None, [0, 1])]


@pytest.mark.parametrize("column", [pa.array([1, 2]), pa.array([1.5, None])])
def test_a_cursor_that_is_no_time_gives_no_days(column: pa.Array) -> None:
    assert days_of(column) == [(None, [0, 1])]


@pytest.mark.parametrize("cursor", ["", "absent"])
def test_a_table_without_a_cursor_has_no_days(cursor: str) -> None:
    assert days_of(pa.array([NOON, None], UTC_TIME), cursor) == [(None, [0, 1])]


@given(st.lists(st.none() | st.datetimes(timezones=st.just(UTC)), min_size=1, max_size=20))
def test_each_event_comes_once_and_under_its_own_day(times: list[datetime | None]) -> None:
    days = days_of(pa.array(times, UTC_TIME))

    assert sorted(index for _, part in days for index in part) == list(range(len(times)))
    for day, part in days:
        assert {moment and moment.date() for moment in (times[index] for index in part)} == {day}


def test_a_buffer_gives_all_it_holds_in_order_and_then_holds_nothing() -> None:
    buffer = Buffer()
    buffer.add(pa.record_batch({"id": [1, 2]}))
    buffer.add(pa.record_batch({"id": [3]}))
    held = (buffer.rows, buffer.size_bytes)

    table = buffer.take()

    assert held == (3, 24)
    assert table.column("id").to_pylist() == [1, 2, 3]
    assert (buffer.batches, buffer.rows, buffer.size_bytes) == ([], 0, 0)
