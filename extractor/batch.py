"""Decoded rows → stamped record batches by partition, held until a row group is worth writing.

A batch leaves here with the run's own columns and the partition that it belongs to. What is held is counted in
bytes, so that one budget bounds all tables together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date, datetime

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from extractor.endpoint import Endpoint
from extractor.schema import UTC_TIME

__all__ = (
    "NULL_PARTITION",
    "ROWS_MAX",
    "Buffer",
    "PartitionKey",
    "Stamp",
    "arrivals",
    "split_by_date",
    "stamp_rows",
    "stamp_schema",
    "with_arrival",
)

NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
ROWS_MAX = 122_880
"""Rows of a row group at most: readers plan their work by row groups of this size."""
_ARRIVAL = pa.field("_extracted_at", UTC_TIME)


class PartitionKey(msgspec.Struct, frozen=True, kw_only=True):
    """Where rows belong: the window they were read for, and for events the day on which they happened."""

    window: str = ""
    event_date: date | None = None


class Stamp(msgspec.Struct, frozen=True, kw_only=True):
    """What a run writes into each row of a table."""

    run_id: str
    account: str
    snapshot_at: datetime
    is_event: bool


def stamp_schema(columns: pa.Schema, stamp: Stamp) -> pa.Schema:
    """The schema of a file: the table's columns, then the run's."""
    own = [
        pa.field("_run_id", pa.string()),
        pa.field("_extracted_at", UTC_TIME),
        pa.field("_account", pa.string()),
        pa.field("_event_date", pa.date32()) if stamp.is_event else pa.field("_snapshot_at", UTC_TIME),
    ]
    return pa.schema([*columns, *own])


def arrivals(lengths: Sequence[int], moments: Sequence[datetime]) -> pa.Array:
    """For each row of several answers, one after the other, when its answer arrived."""
    parts = [
        pa.repeat(pa.scalar(moment, UTC_TIME), length)
        for length, moment in zip(lengths, moments, strict=True)
    ]
    return pa.concat_arrays(parts) if parts else pa.nulls(0, UTC_TIME)


def with_arrival(batch: pa.RecordBatch, received_at: pa.Array) -> pa.RecordBatch:
    """The batch with a last column that says when each row arrived."""
    return batch.append_column(_ARRIVAL, received_at)


def stamp_rows(rows: pa.Table, stamp: Stamp, *, event_date: date | None = None) -> pa.Table:
    """Rows `with_arrival`, with all of the run's own columns in their places."""
    length = rows.num_rows
    last = (
        pa.repeat(pa.scalar(event_date, pa.date32()), length)
        if stamp.is_event
        else pa.repeat(pa.scalar(stamp.snapshot_at, UTC_TIME), length)
    )
    *columns, arrival = rows.columns
    own = [
        pa.repeat(pa.scalar(stamp.run_id, pa.string()), length),
        arrival,
        pa.repeat(pa.scalar(stamp.account, pa.string()), length),
        last,
    ]
    schema = stamp_schema(pa.schema(list(rows.schema)[:-1]), stamp)
    return pa.Table.from_arrays([*columns, *own], schema=schema)


def split_by_date(batch: pa.RecordBatch, endpoint: Endpoint) -> Iterator[tuple[date | None, pa.RecordBatch]]:
    """The rows of an event table day by day; rows without an event time come under None."""
    days = _event_dates(batch, endpoint.sync.cursor)
    distinct = pc.unique(days).to_pylist()
    if len(distinct) == 1:
        yield distinct[0], batch
        return
    for day in distinct:
        mask = (
            days.is_null()
            if day is None
            else pc.fill_null(pc.equal(days, pa.scalar(day, pa.date32())), False)
        )
        yield day, batch.filter(mask)


def _event_dates(batch: pa.RecordBatch, cursor: str) -> pa.Array:
    # Of a cursor whose type was corrected the newest version holds the values.
    versions = [name for name in batch.schema.names if name == cursor or name.startswith(f"{cursor}__v")]
    column = batch.column(versions[-1]) if cursor and versions else None
    if column is None:
        return pa.nulls(batch.num_rows, pa.date32())
    if pa.types.is_timestamp(column.type):
        return column.cast(pa.date32())
    if pa.types.is_string(column.type):
        # Dates of unknown format: what begins with YYYY-MM-DD has a day, anything else has none.
        head = pc.utf8_slice_codeunits(column, 0, 10)
        is_date = pc.match_substring_regex(head, r"^\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])$")
        text = pc.if_else(pc.fill_null(is_date, False), head, pa.scalar(None, pa.string()))
        moments = pc.strptime(text, format="%Y-%m-%d", unit="s", error_is_null=True)
        # strptime makes 3 March of 31 February, and knows a year 0.
        is_day = pc.and_(pc.equal(pc.strftime(moments, format="%Y-%m-%d"), text), pc.greater(text, "0001"))
        return pc.if_else(is_day, moments, pa.scalar(None, moments.type)).cast(pa.date32())
    return pa.nulls(batch.num_rows, pa.date32())


class Buffer:
    """Batches of one partition that wait for a row group; all of one schema, and with their arrival."""

    __slots__ = ("batches", "rows", "size_bytes")

    def __init__(self) -> None:
        self.batches: list[pa.RecordBatch] = []
        self.rows = 0
        self.size_bytes = 0

    def add(self, batch: pa.RecordBatch) -> None:
        self.batches.append(batch)
        self.rows += batch.num_rows
        self.size_bytes += batch.nbytes

    def take(self) -> pa.Table:
        """All that is held, at least one batch, and hold nothing."""
        table = pa.Table.from_batches(self.batches)
        self.batches, self.rows, self.size_bytes = [], 0, 0
        return table
