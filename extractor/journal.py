"""What a run has read, safe in staging piece by piece, so that a killed run goes on at the next page.

    _extractor/staging/RUN/journal/
      origin.json       which run it is, and what a later one must have in common with it to take it up
      claim-0001.json   that a later process took it up, and how far the one before it counts
      0000-00000000     segments: the generation of the process, and a number; put whole, and synced

A record is one call of the decoder: rows as they were decoded (after what must not be kept was dropped), and for
each answer its request and what it said of paging. Told again in order, answers bring chains, counts and the
requests of children back to where they were; nothing else has to be restored.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import ParamSpec, Protocol, TypeVar

import anyio
import msgspec
import pyarrow as pa

from extractor.batch import with_arrival
from extractor.clock import Clock
from extractor.drift import Drift
from extractor.errors import LakeBusy, LakeError
from extractor.paging import PageFacts
from extractor.plan import PageRequest
from extractor.schema import TableSchema, pinned_field
from extractor.store import STAGING, Store, StoreMissing

__all__ = (
    "Answer",
    "Claim",
    "Facts",
    "Fate",
    "Found",
    "Head",
    "Journal",
    "Origin",
    "Place",
    "Record",
    "Recorder",
    "encode_record",
    "find_journals",
    "read_journal",
    "read_rows",
    "restore_schema",
    "survey",
)

_FOLDER = "journal"
_MAGIC = b"SKYJ1\n"
_LENGTHS = struct.Struct("<IIII")
"""Before each record: the bytes of its head, of its rows, of its rows as they are, and a checksum."""
_SEGMENT = re.compile(r"(\d{4})-(\d{8})")
_CLAIM = re.compile(r"claim-(\d{4})\.json")

_SEGMENT_BYTES = 4 << 20
"""So many bytes are put at once; less waits for the next turn of `keep`."""
_BETWEEN_SECONDS = 4.0
"""Twice this, and the time of one put, is how far the journal may be behind the answers."""
_SHORTEST_SECRET = 12
"""What is shorter holds none; page numbers and most tokens need not be looked at."""
_VOID = 0
"""The status that stands for: what was told of this chain before does not count."""

Place = tuple[str, int, int, int]
"""Some rows of a record: its segment, its offset, the first row and how many."""

P = ParamSpec("P")
T = TypeVar("T")


class _Executor(Protocol):
    async def run(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...


# --- what it holds ------------------------------------------------------------------------------------------


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """Which run a journal is of. A later one takes it up if `version` and `configuration` would be its own."""

    run_id: str
    version: str
    configuration: str
    """Digest of what decides over the rows: all but limits, bounds (but for `pages`), checks and notify."""
    started_at: datetime
    own_start: datetime
    """The same by the clock of the machine, whatever the log says."""
    committed: int
    """Number of the newest entry of the log when the run began; 0 for none."""


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """That another process took the journal up."""

    segments: tuple[int, ...]
    """How many segments of each generation before it count: a process that still sleeps may yet write more."""
    committed: int
    """Number of the newest entry of the log at that time."""
    afresh: tuple[tuple[str, str], ...]
    """Tables and accounts that another run had committed meanwhile: what was told of them does not count."""


class Facts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an answer said of paging, with a fingerprint in place of its body."""

    fingerprint: bytes
    headers: Mapping[str, str] = {}
    pointers: Mapping[str, object] = {}
    rows: int | None = None

    def whole(self) -> PageFacts:
        """As the chain takes it."""
        return PageFacts(headers=self.headers, facts=self.pointers, body=self.fingerprint, rows=self.rows)


class Answer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One answer that was taken: its request, its rows, and what it said of paging.

    Without `facts` it stood for no rows, and `status` says why. `is_last` says that the chain saw its end.
    """

    request: PageRequest
    rows: int = 0
    facts: Facts | None = None
    status: int = 200
    is_last: bool = False

    @classmethod
    def void(cls, first: PageRequest) -> Answer:
        """What was told of this chain before does not count: it begins anew."""
        return cls(request=first, status=_VOID)

    def positions(self) -> Iterator[str]:
        """The texts in it that the server may have chosen, to say where a chain goes on."""
        if self.request.page:
            yield self.request.path
            yield from (value for _, value in self.request.query)
        if self.facts is not None:
            yield from self.facts.headers.values()
            for value in self.facts.pointers.values():
                if isinstance(value, str | list | dict):
                    yield value if isinstance(value, str) else repr(value)

    @property
    def is_void(self) -> bool:
        return self.facts is None and self.status == _VOID


class Head(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A record without its rows: the answers of one table of one account, one after the other.

    `columns` is the table's schema as the log keeps it, with what the decoder has learnt in `map_keys` and
    `null_keys`, where they are not those of the record before. `drift` is what was noticed in these answers.
    A record without answers holds rows of the answer that a later one names; with `is_lost` that one may not be
    written down, and such rows are nothing.
    """

    table: str
    account: str
    answers: tuple[Answer, ...] = ()
    columns: tuple[Mapping[str, object], ...] = ()
    map_keys: Mapping[str, tuple[str, ...]] = {}
    null_keys: tuple[str, ...] = ()
    drift: tuple[Mapping[str, object], ...] = ()
    is_lost: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A record as it is read back; `place` is where, and `generation` which process wrote it."""

    head: Head
    generation: int
    place: tuple[str, int]
    content: memoryview
    plain_bytes: int

    def rows(self) -> pa.RecordBatch | None:
        """Its rows: the columns of the table, and a last one with the times of arrival."""
        if not self.content:
            return None
        plain = pa.decompress(self.content, decompressed_size=self.plain_bytes, codec="lz4")
        with pa.ipc.open_stream(plain) as reader:
            return reader.read_next_batch()


def encode_record(head: Head, batch: pa.RecordBatch | None) -> bytes:
    """The bytes of a record in a segment; none if a request is no text, as a header may make it."""
    try:
        about = msgspec.json.encode(head)
    except UnicodeEncodeError:
        return b""
    rows, plain_bytes = b"", 0
    if batch is not None and batch.num_rows:
        # As one piece: to compress each buffer of a batch by itself takes five times as long.
        plain = b"".join((batch.schema.serialize(), batch.serialize()))
        rows, plain_bytes = pa.compress(plain, codec="lz4", asbytes=True), len(plain)
    checksum = zlib.crc32(rows, zlib.crc32(about))
    return b"".join((_LENGTHS.pack(len(about), len(rows), plain_bytes, checksum), about, rows))


def restore_schema(schema: TableSchema, head: Head) -> TableSchema:
    """The schema as it was when the record was written; `schema` is what the configuration makes of it."""
    if not head.columns:
        return schema
    fields = tuple(pinned_field(entry) for entry in head.columns)
    nulls = frozenset(head.null_keys)
    return replace(schema, fields=fields, map_keys=dict(head.map_keys), null_keys=nulls, is_pinned=True)


# --- writing ------------------------------------------------------------------------------------------------


class Journal:
    """The journal of one process of a run. Nothing is written before there is something to save.

    What was added is safe at most two turns of `keep` later, and at most two segments are held: `add` waits for
    room. What `save` has put survives the loss of power.
    """

    def __init__(
        self,
        store: Store,
        origin: Origin,
        *,
        generation: int,
        executor: _Executor,
        memory_bytes: int = 64 << 20,
        conceal: Callable[[str], str] = str,
    ) -> None:
        self._conceal = conceal
        self._store = store
        self._origin = origin
        self._generation = generation
        self._executor = executor
        self._segment_bytes = min(_SEGMENT_BYTES, max(1, memory_bytes // 16))
        self._records: list[bytes] = []
        self._segment: bytes | None = None
        """What is being put."""
        self._unsaved_bytes = 0
        self._number = 0
        self._due = anyio.Event()
        self._saved = anyio.Event()
        self._turn = anyio.Lock()

    @property
    def is_begun(self) -> bool:
        """True if there is something to go on from."""
        return self._generation > 0 or self._number > 0

    def recorder(self, table: str, account: str) -> Recorder:
        """What writes down the answers of one table."""
        return Recorder(self, table, account, self._conceal)

    async def add(self, encoded: bytes) -> None:
        """Take what `encode_record` gave, once there is room for it."""
        while self._unsaved_bytes >= 2 * self._segment_bytes:
            await self._saved.wait()
        self.add_at_once(encoded)

    def add_at_once(self, encoded: bytes) -> None:
        """Take a record that is small."""
        if encoded:
            self._records.append(encoded)
            self._unsaved_bytes += len(encoded)
            if self._unsaved_bytes >= self._segment_bytes:
                self._due.set()

    async def keep(self, clock: Clock, hurry: Callable[[], None]) -> None:
        """Save now and then, for ever; `hurry` is called now and then, so that no answer waits to be decoded."""
        hurried_at = clock.monotonic()
        while True:
            await self._next_turn(clock, hurried_at + _BETWEEN_SECONDS)
            if clock.monotonic() >= hurried_at + _BETWEEN_SECONDS:
                hurried_at = clock.monotonic()
                hurry()
            await self.save()

    async def _next_turn(self, clock: Clock, latest: float) -> None:
        due = self._due
        async with anyio.create_task_group() as tasks:

            async def alarm() -> None:
                await clock.sleep_until(latest)
                tasks.cancel_scope.cancel()

            tasks.start_soon(alarm)
            await due.wait()
            tasks.cancel_scope.cancel()

    async def save(self) -> None:
        """Put what was added. Raises: LakeError; LakeBusy if another process has taken the run up."""
        async with self._turn:
            if self._segment is not None:  # a call before was cut off
                await self._put_segment(self._segment)
            if self._records:
                self._segment, self._records = b"".join((_MAGIC, *self._records)), []
                self._due = anyio.Event()
                await self._put_segment(self._segment)

    async def _put_segment(self, segment: bytes) -> None:
        await self._executor.run(self._put, self._number, segment)
        self._unsaved_bytes = sum(map(len, self._records))
        self._segment = None
        self._number += 1
        self._saved.set()
        self._saved = anyio.Event()
        if self._unsaved_bytes >= self._segment_bytes:
            self._due.set()

    def _put(self, number: int, content: bytes) -> None:
        if number == 0 and self._generation == 0:
            self._store.put(_path(self._origin.run_id, "origin.json"), msgspec.json.encode(self._origin))
        name = f"{self._generation:04d}-{number:08d}"
        path = _path(self._origin.run_id, name)
        is_mine = self._store.put_if_absent(path, content) or self._store.read(path) == content
        if not is_mine or self._store.exists(_claim_path(self._origin.run_id, self._generation + 1)):
            raise LakeBusy(
                f"run {self._origin.run_id} was taken up by another process while this one gave no sign of "
                f"life in lake {self._store.uri}; nothing was committed, and the other goes on"
            )


class Recorder:
    """Writes down the answers of one table of one account, but for what `conceal` would not leave as it is."""

    def __init__(self, journal: Journal, table: str, account: str, conceal: Callable[[str], str]) -> None:
        self.add = journal.add
        self._add_at_once = journal.add_at_once
        self._table = table
        self._account = account
        self._conceal = conceal
        self._told: TableSchema | None = None
        self._harmless = ""
        """The last text that turned out to hold no secret: most pages of a table have one path."""

    def encode(
        self,
        schema: TableSchema,
        answers: Sequence[Answer],
        batch: pa.RecordBatch | None,
        received_at: pa.Array | None,
        drift: Iterable[Drift] = (),
    ) -> bytes:
        """A record, for `add`; meant for a thread. Calls may overlap while the schema stays the same."""
        is_new = self._told is not schema and not _is_same(self._told, schema)
        head = Head(
            table=self._table,
            account=self._account,
            answers=tuple(answers),
            columns=schema.to_json() if is_new else (),
            map_keys=dict(schema.map_keys) if is_new else {},
            null_keys=tuple(sorted(schema.null_keys)) if is_new else (),
            drift=tuple(found.to_json() for found in drift),
        )
        encoded = self._encode(head, with_arrival(batch, received_at) if batch is not None else None)
        if encoded:
            self._told = schema
            return encoded
        return encode_record(Head(table=self._table, account=self._account, is_lost=True), None)

    def note(self, answer: Answer) -> None:
        """Write down an answer without rows."""
        self._add_at_once(
            self._encode(Head(table=self._table, account=self._account, answers=(answer,)), None)
        )

    def _encode(self, head: Head, batch: pa.RecordBatch | None) -> bytes:
        """The record; none if a position that the server named holds a secret."""
        for answer in head.answers:
            for text in answer.positions():
                if len(text) < _SHORTEST_SECRET or text == self._harmless:
                    continue
                if self._conceal(text) != text:
                    return b""
                self._harmless = text
        return encode_record(head, batch)


def _is_same(told: TableSchema | None, schema: TableSchema) -> bool:
    return told == schema and told.null_keys == schema.null_keys


# --- finding and reading ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A journal that was left, with the time of its last safe byte by the store's clock."""

    origin: Origin
    claims: tuple[Claim, ...]
    saved_at: datetime
    segments: tuple[tuple[int, str], ...]
    """Generation and path, in order, of those that count."""

    @property
    def generation(self) -> int:
        """That of the process that takes it up."""
        return len(self.claims) + 1

    def counts_from(self, key: tuple[str, str]) -> tuple[int, int]:
        """The generation from which on what was told of a table counts, and the entry of the log it goes by."""
        for number in range(len(self.claims), 0, -1):
            if key in self.claims[number - 1].afresh:
                return number, self.claims[number - 1].committed
        return 0, self.origin.committed

    def claim(self, store: Store, *, committed: int, afresh: Sequence[tuple[str, str]]) -> Found:
        """Take it up: the journal with this claim in it.

        Raises: LakeBusy if another process was first.
        """
        counts = [0] * self.generation
        for generation, _ in self.segments:
            counts[generation] += 1
        claim = Claim(segments=tuple(counts), committed=committed, afresh=tuple(afresh))
        path = _claim_path(self.origin.run_id, self.generation)
        if not store.put_if_absent(path, msgspec.json.encode(claim)):
            raise LakeBusy(
                f"run {self.origin.run_id} in lake {store.uri} was taken up by another process; wait for it"
            )
        return replace(self, claims=(*self.claims, claim))


def find_journals(store: Store) -> list[Found]:
    """The journals in the lake, the one saved last first; one that cannot be read is left out."""
    names: dict[str, list[str]] = {}
    saved: dict[str, datetime] = {}
    for stored in store.list(STAGING):
        run_id, _, rest = stored.path.removeprefix(f"{STAGING}/").partition("/")
        folder, _, name = rest.partition("/")
        if folder == _FOLDER and "/" not in name:
            names.setdefault(run_id, []).append(name)
            if _SEGMENT.fullmatch(name):
                saved[run_id] = max(stored.modified_at, saved.get(run_id, stored.modified_at))
    found = [
        journal
        for run_id, moment in saved.items()
        if (journal := _open_journal(store, run_id, sorted(names[run_id]), moment)) is not None
    ]
    return sorted(found, key=lambda journal: journal.saved_at, reverse=True)


def _open_journal(store: Store, run_id: str, names: Sequence[str], saved_at: datetime) -> Found | None:
    try:
        origin = msgspec.json.decode(store.read(_path(run_id, "origin.json")), type=Origin)
        claims = [
            msgspec.json.decode(store.read(_path(run_id, name)), type=Claim)
            for name in names
            if _CLAIM.fullmatch(name)
        ]
    except (LakeError, msgspec.DecodeError):
        return None
    numbers = [int(found[1]) for name in names if (found := _CLAIM.fullmatch(name))]
    if origin.run_id != run_id or numbers != list(range(1, len(claims) + 1)):
        return None
    segments: list[tuple[int, str]] = []
    for generation in range(len(claims) + 1):
        own = [name for name in names if _SEGMENT.fullmatch(name) and int(name[:4]) == generation]
        most = claims[-1].segments[generation] if generation < len(claims) else len(own)
        for number, name in enumerate(own[:most]):
            if int(name[5:]) != number:
                break
            segments.append((generation, _path(run_id, name)))
    return Found(origin=origin, claims=tuple(claims), saved_at=saved_at, segments=tuple(segments))


def read_journal(store: Store, found: Found) -> Iterator[Record]:
    """The records, in the order in which they were added; a generation ends where one is damaged or missing."""
    damaged = -1
    for generation, path in found.segments:
        if generation == damaged:
            continue
        try:
            content = memoryview(store.read(path))
        except StoreMissing:
            damaged = generation
            continue
        offset = len(_MAGIC)
        if content[:offset] != _MAGIC:
            damaged = generation
            continue
        while offset < len(content):
            record, offset = _record_at(content, generation, path, offset)
            if record is None:
                damaged = generation
                break
            yield record


def read_rows(store: Store, places: Sequence[Place]) -> Iterator[pa.RecordBatch]:
    """The rows at these places, in order, with a last column for the times of arrival.

    Raises: LakeError if a place does not hold any more what it held.
    """
    path, content = "", memoryview(b"")
    for wanted, offset, first, length in places:
        if wanted != path:
            path, content = wanted, memoryview(store.read(wanted))
        record, _ = _record_at(content, 0, path, offset)
        if record is None:
            raise LakeError(
                f"{path} in lake {store.uri} was changed after it was written; "
                f"remove the folder {path.rpartition('/')[0]} and run again"
            )
        rows = record.rows()
        if rows is not None:
            yield rows.slice(first, length)


def _record_at(content: memoryview, generation: int, path: str, offset: int) -> tuple[Record | None, int]:
    """The record there, None if it is damaged, and where the next one begins."""
    begin = offset + _LENGTHS.size
    if begin > len(content):
        return None, len(content)
    about_length, rows_length, plain_bytes, checksum = _LENGTHS.unpack(content[offset:begin])
    about = content[begin : begin + about_length]
    end = begin + about_length + rows_length
    rows = content[begin + about_length : end]
    if end > len(content) or zlib.crc32(rows, zlib.crc32(about)) != checksum:
        return None, len(content)
    try:
        head = msgspec.json.decode(about, type=Head)
    except msgspec.DecodeError:
        return None, len(content)
    place = (path, offset)
    record = Record(head=head, generation=generation, place=place, content=rows, plain_bytes=plain_bytes)
    return record, end


@dataclass(slots=True, kw_only=True)
class Fate:
    """What became of a chain by the end of the journal.

    What was told before `since` (number of the record, and of the answer in it) does not count; `is_again` says
    that the chain was read again from its first page, page by page.
    """

    since: tuple[int, int]
    answers: int = 0
    is_last: bool = False
    is_again: bool = False


def survey(store: Store, found: Found) -> dict[str, Fate]:
    """The fate of each chain of which the journal tells."""
    fates: dict[str, Fate] = {}
    for number, record in enumerate(read_journal(store, found)):
        head = record.head
        if record.generation < found.counts_from((head.table, head.account))[0]:
            continue
        for index, answer in enumerate(head.answers):
            fate = fates.get(answer.request.chain)
            is_first = answer.request.page == 0 and not answer.is_void
            if answer.is_void:
                fates[answer.request.chain] = Fate(since=(number, index + 1))
                continue
            if fate is None or (is_first and fate.answers):
                fate = fates[answer.request.chain] = Fate(since=(number, index), is_again=fate is not None)
            if answer.request.page != fate.answers:
                continue  # one before it could not be written down
            fate.answers += 1
            fate.is_last = answer.is_last
    return fates


def _path(run_id: str, name: str) -> str:
    return f"{STAGING}/{run_id}/{_FOLDER}/{name}"


def _claim_path(run_id: str, generation: int) -> str:
    return _path(run_id, f"claim-{generation:04d}.json")
