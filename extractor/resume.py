"""Going on where an earlier process of the run was stopped: which journal, which tables, and telling it again.

A journal is taken up by a run of the same program and configuration that would write the same tables. What another
run has committed since is read afresh; what the stopped run has committed itself is not read again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import msgspec
import pyarrow as pa

from extractor.commitlog import CommitLog, LogEntry
from extractor.config import Bounds, Checks, Config, LimitsConfig, Notify
from extractor.drift import Drift
from extractor.errors import LakeError
from extractor.journal import (
    Fate,
    Found,
    Place,
    Record,
    find_journals,
    read_journal,
    restore_schema,
    survey,
)
from extractor.lane import Executor
from extractor.lease import TableKey
from extractor.plan import Plan
from extractor.reader import Interruption, Reader
from extractor.store import Store

__all__ = (
    "FILES_A_GENERATION",
    "Standing",
    "configuration_digest",
    "find_run",
    "replay",
    "settled_tables",
    "standing_of",
)

FILES_A_GENERATION = 100_000
"""So many files a process may write into one folder before its names meet those of the next one."""
_ALL_ROWS = 1 << 62
_LOT_BYTES = 4 << 20
_LOT_RECORDS = 64


def configuration_digest(config: Config, plan: Plan) -> str:
    """What decides over the rows of a run, as one text: equal if one may go on where the other stopped."""
    deciding = msgspec.structs.replace(
        config,
        limits=LimitsConfig(),
        bounds=Bounds(pages=config.bounds.pages),
        checks=Checks(),
        table_checks={},
        notify=Notify(),
        is_rate_set=False,
    )
    content = msgspec.json.encode([deciding, plan], order="deterministic")
    return hashlib.sha256(content).hexdigest()


def find_run(store: Store, *, version: str, configuration: str, resume_seconds: float) -> Found | None:
    """The journal to go on with: of this program and configuration, and young enough by the store's clock."""
    if resume_seconds <= 0:
        return None
    now = store.now()
    for found in find_journals(store):
        is_own = found.origin.version == version and found.origin.configuration == configuration
        if is_own and (now - found.saved_at).total_seconds() < resume_seconds:
            return found
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How the tables of a stopped run stand in the log: those it has committed, and those another run has."""

    done: frozenset[TableKey]
    afresh: frozenset[TableKey]


def standing_of(log: CommitLog, entry: LogEntry | None, found: Found, keys: Collection[TableKey]) -> Standing:
    """Compare the newest entry with those that the journal goes by."""
    entries: dict[int, LogEntry | None] = {0: None}
    done: set[TableKey] = set()
    afresh: set[TableKey] = set()
    for key in keys:
        _, committed = found.counts_from(key)
        if committed not in entries:
            try:
                entries[committed] = log.read(committed)
            except LakeError:
                afresh.add(key)
                continue
        before = entries[committed]
        then = before.tables.get(key) if before is not None else None
        now = entry.tables.get(key) if entry is not None else None
        if now == then:
            continue
        if now is None or now.proved_by != found.origin.run_id:
            afresh.add(key)
        elif now.status == "complete":
            done.add(key)
    return Standing(done=frozenset(done), afresh=frozenset(afresh))


def settled_tables(plan: Plan, done: Collection[str]) -> frozenset[str]:
    """Of the tables that are committed those that nobody needs to know: their children are committed too."""
    settled: set[str] = set()
    for table in reversed(plan.active):
        if table.name in done and all(child.name in settled for child in plan.children_of(table.name)):
            settled.add(table.name)
    return frozenset(settled)


# --- telling it again ---------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class _Waiting:
    """Rows of the journal that no sink has: of open chains by name, and of answers that are not told of yet."""

    places: dict[str, list[Place]] = field(default_factory=dict)
    untold: dict[tuple[str, str, int], list[Place]] = field(default_factory=dict)

    def park(self, chain: str, places: Sequence[Place]) -> None:
        parked = self.places.setdefault(chain, [])
        for place in places:
            if parked and parked[-1][:2] == place[:2] and parked[-1][2] + parked[-1][3] == place[2]:
                path, offset, first, length = parked[-1]
                parked[-1] = (path, offset, first, length + place[3])
            else:
                parked.append(place)


async def replay(
    store: Store,
    found: Found,
    readers: Mapping[str, Reader],
    *,
    executor: Executor,
    interruption: Interruption,
) -> int:
    """Bring the readers to where the journal ends; gives the number of pages. Segment by segment.

    Rows of chains that saw their end go to the sinks; those of others wait in the journal until the server lets
    their chain go on.
    """
    fates = await executor.run(survey, store, found)
    waiting = _Waiting()
    pages = 0
    for reader in readers.values():
        reader.run.begin_replay()
    lots = _in_lots(read_journal(store, found), partial(_counts, found, readers))
    while not interruption.exit_code and (lot := await executor.run(next, lots, None)) is not None:
        for number, record, rows in lot:
            if interruption.exit_code:
                break
            reader = readers[record.head.account]
            pages += await _Told(reader, record, rows, number, fates, waiting).tell()
    for reader in readers.values():
        reader.run.end_replay({chain: tuple(places) for chain, places in waiting.places.items()})
    return pages


def _counts(found: Found, readers: Mapping[str, Reader], record: Record) -> bool:
    """True for a record of which anybody needs to know."""
    table, account = record.head.table, record.head.account
    if account not in readers or table not in readers[account].tables:
        return False
    is_settled = readers[account].tables[table].is_settled
    return not is_settled and record.generation >= found.counts_from((table, account))[0]


def _in_lots(
    records: Iterable[Record], counts: Callable[[Record], bool]
) -> Iterator[list[tuple[int, Record, pa.RecordBatch | None]]]:
    """The records that count, with their numbers and the rows of their answers: a turn of a thread for each lot."""
    lot: list[tuple[int, Record, pa.RecordBatch | None]] = []
    size = 0
    for number, record in enumerate(records):
        if counts(record):
            lot.append((number, record, record.rows() if record.head.answers else None))
            size += record.plain_bytes
        if size >= _LOT_BYTES or len(lot) >= _LOT_RECORDS:
            yield lot
            lot, size = [], 0
    if lot:
        yield lot


class _Told:
    """One record that is told again."""

    def __init__(
        self,
        reader: Reader,
        record: Record,
        rows: pa.RecordBatch | None,
        number: int,
        fates: Mapping[str, Fate],
        waiting: _Waiting,
    ) -> None:
        self._reader = reader
        self._record = record
        self._rows = rows
        self._number = number
        self._fates = fates
        self._waiting = waiting
        self._table = reader.tables[record.head.table]

    async def tell(self) -> int:
        """Take the answers that count; gives how many."""
        head, lane = self._record.head, self._table.lane
        key = (head.table, head.account, self._record.generation)
        place = self._record.place
        if head.is_lost:
            self._waiting.untold.pop(key, None)
            return 0
        if not head.answers:
            self._waiting.untold.setdefault(key, []).append((*place, 0, _ALL_ROWS))
            return 0
        lane.schema = restore_schema(lane.schema, head)
        before = self._waiting.untold.pop(key, [])
        batch = None if before else self._rows
        pages = offset = 0
        due: list[tuple[str, int, int]] = []
        for index, answer in enumerate(head.answers):
            first, offset = offset, offset + answer.rows
            fate = self._fates.get(answer.request.chain)
            if fate is None or answer.is_void or (self._number, index) < fate.since:
                continue
            rows = batch.slice(first, answer.rows) if batch is not None else None
            if not self._reader.run.replay(answer, rows, is_again=fate.is_again):
                continue
            pages += 1
            if not fate.is_last:
                self._waiting.park(answer.request.chain, before or [(*place, first, answer.rows)])
            elif before:
                await lane.restore(answer.request.window, before)
            elif due and due[-1][0] == answer.request.window and due[-1][2] == first:
                due[-1] = (due[-1][0], due[-1][1], offset)
            else:
                due.append((answer.request.window, first, offset))
        for window, first, end in due:
            if batch is not None and end > first:
                await lane.restore_rows(window, batch.slice(first, end - first))
        if pages:
            self._table.ledger.note_drift(Drift.from_json(head.table, found) for found in head.drift)
        return pages
