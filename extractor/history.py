"""What was true when: the rows of all snapshots with the time for which each held, and the changes between them.

Both go through the snapshots in order and hold two of them in memory at most: the rows that stand, and those of the
next one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc

from extractor.compare import align, compare
from extractor.diff import Rows, change_schema, chunks, to_changes
from extractor.schema import UTC_TIME

__all__ = ("Changes", "History", "Series", "Snapshot")

_FROM = "_valid_from"
_OPERATIONS = {"added": "insert", "removed": "delete", "changed": "update"}
_WHEN = (pa.field("_run_id", pa.string()), pa.field("_changed_at", UTC_TIME))


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A table of one account as one run found it."""

    run_id: str
    moment: datetime
    """When the run began to look: what it found held from then on."""
    rows: Rows
    came: Rows | None
    """Its rows that may not have been in the snapshot before."""
    went: Rows | None
    """The rows of the snapshot before that may not be in this one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """The snapshots of one account, oldest first; `events` are rows that are added once and then stay."""

    account: str
    is_event: bool
    snapshots: Callable[[], Iterable[Snapshot]]


class _Stream:
    """Batches that can be read more than once."""

    def __init__(self, name: str, key: tuple[str, ...], columns: pa.Schema, series: Sequence[Series]) -> None:
        self.name = name
        self.key = key
        self._columns = columns
        self._series = tuple(series)

    @property
    def schema(self) -> pa.Schema:
        raise NotImplementedError

    def to_batches(self) -> Iterator[pa.RecordBatch]:
        raise NotImplementedError

    def to_arrow(self) -> pa.Table:
        """All of it in memory."""
        return pa.Table.from_batches(list(self.to_batches()), schema=self.schema)

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        reader = pa.RecordBatchReader.from_batches(self.schema, self.to_batches())
        return reader.__arrow_c_stream__(requested_schema)


class History(_Stream):
    """Every state that every row had: the table's columns, and the time from `valid_from` to before `valid_to`.

    `valid_from` is the start of the run that found the row so, `valid_to` that of the first run that did not; null
    where the row still stands. Rows of events are valid from when they were first seen.
    """

    @property
    def schema(self) -> pa.Schema:
        taken = self._columns.names
        own = [name if name not in taken else f"_{name}" for name in ("valid_from", "valid_to")]
        return pa.schema([*self._columns, *(pa.field(name, UTC_TIME) for name in own)])

    def to_batches(self) -> Iterator[pa.RecordBatch]:
        """The states that ended, in the order in which they did, then those that hold; account by account."""
        schema = self.schema
        for series in self._series:
            tables = _events(series, self._columns) if series.is_event else self._versions(series)
            for table in tables:
                yield from table.rename_columns(schema.names).cast(schema).to_batches()

    def _versions(self, series: Series) -> Iterator[pa.Table]:
        standing: pa.Table | None = None
        for snapshot in series.snapshots():
            rows = _read(snapshot.rows, self._columns)
            if standing is None:
                standing = _since(rows, snapshot.moment)
                continue
            found = compare(standing, rows, self.key)
            if not found:
                continue
            ended = [*found.removed, *(left for left, _ in found.changed)]
            begun = [*found.added, *(right for _, right in found.changed)]
            gone = pa.array(sorted(ended), pa.int64())
            if ended:
                yield _until(standing.take(gone), snapshot.moment)
            fresh = _since(rows.take(pa.array(sorted(begun), pa.int64())), snapshot.moment)
            standing = pa.concat_tables([_without(standing, gone), fresh])
        if standing is not None:
            yield _until(standing, None)


class Changes(_Stream):
    """Every change between one snapshot and the next: `operation` is `insert`, `update` or `delete`.

    With the `key`, the names of the changed `columns`, the row `before` and `after`, and the run that found it so.
    """

    @property
    def schema(self) -> pa.Schema:
        return change_schema(self._columns, self.key, more=_WHEN)

    def to_batches(self) -> Iterator[pa.RecordBatch]:
        """In the order of the runs, account by account."""
        for series in self._series:
            for snapshot in series.snapshots():
                for chunk in chunks(snapshot.went, snapshot.came, self.key):
                    yield from to_changes(
                        chunk,
                        self._columns,
                        self.key,
                        series.account,
                        operation=_OPERATIONS[chunk.operation],
                        more=list(zip(_WHEN, (snapshot.run_id, snapshot.moment), strict=True)),
                    ).to_batches()


def _events(series: Series, columns: pa.Schema) -> Iterator[pa.Table]:
    last = None
    for last in series.snapshots():  # noqa: B007  # what came early is in the last one too
        pass
    if last is None:
        return
    for batch in last.rows.to_batches():
        table = align(pa.Table.from_batches([batch]), columns)
        yield _until(table.append_column(_FROM, table.column("_extracted_at").cast(UTC_TIME)), None)


def _read(rows: Rows, columns: pa.Schema) -> pa.Table:
    return align(pa.Table.from_batches(list(rows.to_batches()), schema=rows.schema), columns)


def _since(rows: pa.Table, moment: datetime) -> pa.Table:
    return rows.append_column(_FROM, pa.repeat(pa.scalar(moment, UTC_TIME), rows.num_rows))


def _until(rows: pa.Table, moment: datetime | None) -> pa.Table:
    return rows.append_column("_valid_to", pa.repeat(pa.scalar(moment, UTC_TIME), rows.num_rows))


def _without(rows: pa.Table, gone: pa.Array) -> pa.Table:
    if not len(gone):
        return rows
    numbers = pa.array(range(rows.num_rows), pa.int64())
    return rows.filter(pc.invert(pc.is_in(numbers, value_set=gone)))
