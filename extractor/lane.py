"""The way of one table's pages from fetched body to data file.

A lane decodes the pages of its table several at a time, off the event loop, and hands their rows, in the order of
their chains, to the table's writer, whose row groups are encoded while the next pages are decoded. It waits until
enough pages are there for one call of the decoder, unless nothing else is to come, and makes the next call ahead of
its turn where the schema is not likely to change. What it holds is counted in the run's one memory budget.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar

import anyio
import anyio.to_thread
import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from extractor.batch import arrivals
from extractor.decode.binary import read_binary
from extractor.decode.json import Decoded, decode_rows
from extractor.decode.log_archive import read_log_archive
from extractor.decode.openmetrics import read_metrics
from extractor.drift import Drift
from extractor.endpoint import Endpoint
from extractor.errors import DriftRefused, ExtractError, RequestError
from extractor.fetch import Response
from extractor.journal import Answer, Place, Recorder
from extractor.plan import PageRequest
from extractor.schema import RESCUED, TableSchema
from extractor.spool import spooling

__all__ = (
    "Budget",
    "DecodeBounds",
    "Executor",
    "InlineExecutor",
    "Lane",
    "Page",
    "Part",
    "Sink",
    "Spawn",
    "ThreadExecutor",
    "parent_values",
)

_GROUP_BYTES = 1 << 20
_CALLS = 2
"""Calls of the decoder for one table at a time, at most: there are no more threads."""
_HELD_BYTES = 8 << 20

P = ParamSpec("P")
T = TypeVar("T")


class Executor(Protocol):
    """Where work for the CPU is done."""

    async def run(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...


class ThreadExecutor:
    """A bounded number of threads: pyarrow frees the interpreter's lock while it works."""

    def __init__(self, threads: int = 2) -> None:
        self._limiter = anyio.CapacityLimiter(threads)

    async def run(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await anyio.to_thread.run_sync(lambda: work(*args, **kwargs), limiter=self._limiter)


class InlineExecutor:
    """Work done where it is asked for, so that a whole run can be simulated."""

    async def run(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return work(*args, **kwargs)


class Budget:
    """Bytes of bodies and rows that a run holds; `admit` waits while there are too many.

    Bodies take the room that rows leave. Rows are kept to half of the budget by writing smaller row groups.
    """

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.bodies = 0
        self.rows = 0
        self.peak = 0
        self._lanes: list[Lane] = []
        self._freed: anyio.Event | None = None

    def join(self, lane: Lane) -> None:
        """Count a lane among those that hold rows."""
        self._lanes.append(lane)

    @property
    def group_bytes(self) -> int:
        """Bytes of pages for one call of a decoder: more do not pay, and all lanes together may wait for theirs."""
        return min(_GROUP_BYTES, self.size_bytes // (4 * max(1, len(self._lanes))))

    async def relieve(self) -> None:
        """Write out what lanes hold, the fullest first, until rows have their half again.

        What is being written already will be free without that.
        """
        while self.is_full_of_rows:
            idle = [lane for lane in self._lanes if lane.sink.buffered_bytes and not lane.is_encoding]
            if not idle:
                return
            await max(idle, key=lambda lane: lane.sink.buffered_bytes).flush()

    @property
    def is_full(self) -> bool:
        return self.bodies + self.rows >= self.size_bytes

    async def admit(self) -> None:
        """Return once another page may be asked for."""
        while self.is_full:
            self._freed = self._freed or anyio.Event()
            await self._freed.wait()

    def take_body(self, size_bytes: int) -> None:
        self.bodies += size_bytes
        self.peak = max(self.peak, self.bodies + self.rows)

    def free_body(self, size_bytes: int) -> None:
        self.bodies -= size_bytes
        self._wake()

    def set_rows(self, before: int, after: int) -> None:
        """A table's buffered rows went from `before` to `after` bytes."""
        self.rows += after - before
        self.peak = max(self.peak, self.bodies + self.rows)
        self._wake()

    @property
    def is_full_of_rows(self) -> bool:
        return self.rows > self.size_bytes // 2

    def _wake(self) -> None:
        if self._freed is not None:
            self._freed.set()
            self._freed = None


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """One fetched answer on its way to be decoded: of JSON its `rows`, of other formats the whole `response`."""

    request: PageRequest
    rows: bytes | memoryview
    response: Response | None
    received_at: datetime
    size_bytes: int
    answer: Answer | None = None
    """What the journal is told of it."""
    places: tuple[Place, ...] = ()
    """Where in the journal the rows are that come before it."""


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """Decoded rows of one window, of one page or more; `received_at` has a time for each row."""

    batch: pa.RecordBatch
    window: str
    received_at: pa.Array


class DecodeBounds(msgspec.Struct, frozen=True, kw_only=True):
    """What a body may be at most."""

    body_bytes: int
    depth: int
    archive_ratio: float


@dataclass(slots=True)
class _Call:
    """One call of the decoder: its pages, the schema it was made with, and what came of it."""

    pages: Sequence[Page]
    schema: TableSchema
    ended: anyio.Event = dataclasses.field(default_factory=anyio.Event)
    result: tuple[Decoded, list[Part], bytes] | None = None
    failure: RequestError | DriftRefused | None = None


class Sink(Protocol):
    """Where decoded rows go: a table's writer, or whoever streams them.

    `is_full` asks for `write`, which writes the row groups that are full; `flush` writes all there is.
    """

    @property
    def buffered_bytes(self) -> int: ...

    @property
    def is_full(self) -> bool: ...

    async def take(self, parts: Sequence[Part]) -> None: ...

    async def write(self) -> None: ...

    async def flush(self) -> None: ...


class Spawn(Protocol):
    """Starts a task that lives as long as the reading."""

    def __call__(self, work: Callable[[], Coroutine[Any, Any, None]], /) -> None: ...


class Lane:
    """The pages of one table of one account, whose rows one task at a time hands on in order.

    `on_page` is called for each page with its number of rows, once they are with the sink, and with the rows
    themselves (JSON only) if `is_eager`: others wait for them, so that pages are decoded as they come. `on_failure`
    is called for a page that is not what it claims to be, of which nothing was kept.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        schema: TableSchema,
        sink: Sink,
        *,
        executor: Executor,
        budget: Budget,
        bounds: DecodeBounds,
        spool_folder: Callable[[], Path],
        on_page: Callable[[Page, pa.RecordBatch | None, int], None],
        on_failure: Callable[[Page, ExtractError], None],
        on_drift: Callable[[Sequence[Drift]], None],
        spawn: Spawn,
        is_eager: bool = False,
        recorder: Recorder | None = None,
        recall: Callable[[Sequence[Place]], Iterator[pa.RecordBatch]] | None = None,
    ) -> None:
        """With a `recorder` rows are in the journal before they are with the sink; `recall` reads them back."""
        self.schema = schema
        self.sink = sink
        self.is_running = False
        self._endpoint = endpoint
        self._executor = executor
        self._budget = budget
        self._bounds = bounds
        self._spool_folder = spool_folder
        self._on_page = on_page
        self._on_failure = on_failure
        self._on_drift = on_drift
        self._spawn = spawn
        self._is_eager = is_eager
        self._recorder = recorder
        self._recall = recall
        self._hurried = 0
        """How many pages at the head of the queue do not wait for others."""
        self._is_steady = False
        """True while the decoder gives back the schema that it was given."""
        self._counted = 0
        self._queue: deque[Page] = deque()
        self._queued_bytes = 0
        self._encoded: anyio.Event | None = None
        budget.join(self)

    @property
    def is_encoding(self) -> bool:
        """True while row groups are written."""
        return self._encoded is not None

    def put(self, page: Page) -> None:
        """Queue a page; it is decoded when enough pages are there, or at once if somebody waits for it."""
        self._budget.take_body(page.size_bytes)
        self._queue.append(page)
        self._queued_bytes += page.size_bytes
        if self._is_eager or page.response is not None:
            self._hurried = len(self._queue)
        self._start()

    def hurry(self) -> None:
        """Decode what there is, without waiting for more."""
        self._hurried = len(self._queue)
        self._start()

    @property
    def _is_due(self) -> bool:
        return self._hurried > 0 or (bool(self._queue) and self._queued_bytes >= self._budget.group_bytes)

    def _start(self) -> None:
        if self._is_due and not self.is_running:
            self.is_running = True
            self._spawn(self._work)

    async def _work(self) -> None:
        """Decode until no more is due."""
        calls: deque[_Call] = deque()
        async with anyio.create_task_group() as tasks:
            while calls or self._is_due:
                while self._is_due and len(calls) < (_CALLS if self._is_steady else 1):
                    calls.append(_Call(self._next_pages(), self.schema))
                    if calls[-1].pages[0].response is None:
                        tasks.start_soon(self._make, calls[-1])
                await self._handle(calls.popleft())
                if self.sink.is_full:
                    # At most one row group ahead of the encoder.
                    await self._until_encoded()
                    self._encoded = anyio.Event()
                    self._spawn(self._encode)
                await self._budget.relieve()
            # Before the end of the group, which waits: who puts a page meanwhile starts another.
            self.is_running = False

    async def flush(self) -> None:
        """Write what the table has buffered."""
        await self._until_encoded()
        self._encoded = anyio.Event()
        await self._encode(everything=True)

    async def _until_encoded(self) -> None:
        while self._encoded is not None:
            await self._encoded.wait()

    async def _encode(self, *, everything: bool = False) -> None:
        """Write row groups; `_encoded` was set by the caller, so that nobody else begins."""
        try:
            await (self.sink.flush() if everything else self.sink.write())
        finally:
            ended, self._encoded = self._encoded, None
            self._count_rows()
            if ended is not None:
                ended.set()

    def _count_rows(self) -> None:
        """Tell the budget what the sink holds now."""
        held = self.sink.buffered_bytes
        self._budget.set_rows(self._counted, held)
        self._counted = held

    def _next_pages(self) -> list[Page]:
        """Pages for one call of the decoder: several JSON pages up to a megabyte, or one of anything else."""
        pages = [self._queue.popleft()]
        size = pages[0].size_bytes
        while self._queue and pages[0].response is None and self._queue[0].response is None:
            if size + self._queue[0].size_bytes > _GROUP_BYTES or self._queue[0].places:
                break
            pages.append(self._queue.popleft())
            size += pages[-1].size_bytes
        self._queued_bytes -= size
        self._hurried = max(0, self._hurried - len(pages))
        return pages

    async def _handle(self, call: _Call) -> None:
        pages = call.pages
        try:
            if pages[0].places:
                await self.restore(pages[0].request.window, pages[0].places)
            if pages[0].response is None:
                await self._take(call)
            else:
                await self._handle_stream(pages[0], pages[0].response)
        finally:
            self._count_rows()
            for page in pages:
                self._budget.free_body(page.size_bytes)
                if page.response is not None:
                    page.response.discard()

    async def _make(self, call: _Call) -> None:
        """Decode the pages of a call."""
        try:
            call.result = await self._executor.run(self._decode, call.pages, call.schema)
        except (RequestError, DriftRefused) as failure:
            call.failure = failure
        call.ended.set()

    async def _take(self, call: _Call) -> None:
        """Take the rows of a call whose turn has come."""
        await call.ended.wait()
        if call.schema is not self.schema:  # the one before it has learnt something
            call = _Call(call.pages, self.schema)
            await self._make(call)
        if call.result is None:
            await self._fail(call)
            return
        decoded, parts, encoded = call.result
        self.schema = decoded.schema
        self._is_steady = decoded.is_fast and decoded.schema is call.schema
        self._on_drift(decoded.drift)
        if self._recorder is not None:
            await self._recorder.add(encoded)
        await self.sink.take(parts)
        offset = 0
        for page, length in zip(call.pages, decoded.lengths, strict=True):
            self._on_page(page, decoded.batch.slice(offset, length) if self._is_eager else None, length)
            offset += length

    async def _fail(self, call: _Call) -> None:
        """Find the page that is to blame, and take the others."""
        assert call.failure is not None
        if len(call.pages) == 1:
            self._on_failure(call.pages[0], call.failure)
            return
        for page in call.pages:
            alone = _Call([page], self.schema)
            await self._make(alone)
            await self._take(alone)

    def _decode(self, pages: Sequence[Page], schema: TableSchema) -> tuple[Decoded, list[Part], bytes]:
        """The rows of pages, with the values of their parents, by window too, and as the journal keeps them."""
        decoded = decode_rows([page.rows for page in pages], schema, depth=self._bounds.depth)
        batch = with_kept(decoded.batch, [page.request.keep for page in pages], decoded.lengths)
        decoded = msgspec.structs.replace(decoded, batch=batch)
        parts = _parts(batch, pages, decoded.lengths)
        if self._recorder is None:
            return decoded, parts, b""
        answers = [
            msgspec.structs.replace(page.answer, rows=length)
            for page, length in zip(pages, decoded.lengths, strict=True)
            if page.answer is not None
        ]
        times = parts[0].received_at if len(parts) == 1 else _arrivals(pages, decoded.lengths)
        return decoded, parts, self._recorder.encode(decoded.schema, answers, batch, times, decoded.drift)

    async def restore(self, window: str, places: Sequence[Place]) -> None:
        """Give the sink rows that are in the journal."""
        assert self._recall is not None
        batches = self._recall(places)
        while (batch := await self._executor.run(next, batches, None)) is not None:
            await self.restore_rows(window, batch)

    async def restore_rows(self, window: str, batch: pa.RecordBatch) -> None:
        """Give the sink rows as they were in the journal, with their arrival."""
        names = batch.schema.names[:-1]
        await self.sink.take(
            [Part(batch=batch.select(names), window=window, received_at=batch.column(len(names)))]
        )
        self._count_rows()
        if self.sink.is_full or self._budget.is_full_of_rows:
            await self.flush()

    async def _handle_stream(self, page: Page, response: Response) -> None:
        """A format that is read piece by piece: all of it must be good before any of it is kept."""
        held = _Held(self._spool_folder)
        rows = 0
        try:
            with spooling(f"{page.request.label}: the answer"):
                await self._executor.run(held.fill, self._read_stream(response))
                for batches in held.drain():
                    for batch in batches:
                        shaped = with_kept(
                            shape_batch(batch, self.schema), [page.request.keep], [batch.num_rows]
                        )
                        parts = _parts(shaped, [page], [batch.num_rows])
                        await self._record(shaped, parts)
                        await self.sink.take(parts)
                    rows += sum(batch.num_rows for batch in batches)
                    self._count_rows()
                    if self.sink.is_full or self._budget.is_full_of_rows:
                        await self.flush()
        except RequestError as failure:
            self._on_failure(page, failure)
            return
        finally:
            held.discard()
        if self._recorder is not None and page.answer is not None:
            answer = msgspec.structs.replace(page.answer, rows=rows)
            await self._recorder.add(self._recorder.encode(self.schema, [answer], None, None))
        self._on_page(page, None, rows)

    async def _record(self, batch: pa.RecordBatch, parts: Sequence[Part]) -> None:
        """Write down rows of an answer that is not told of yet."""
        if self._recorder is not None and parts:
            times = parts[0].received_at
            encode = self._recorder.encode
            await self._recorder.add(await self._executor.run(encode, self.schema, (), batch, times))

    def _read_stream(self, response: Response) -> Iterator[pa.RecordBatch]:
        bounds = self._bounds
        with response.open() as source:
            match self._endpoint.format:
                case "openmetrics":
                    yield from read_metrics(source, body_bytes_max=bounds.body_bytes)
                case "log_archive":
                    yield from read_log_archive(
                        source, ratio_max=bounds.archive_ratio, member_bytes_max=bounds.body_bytes * 64
                    )
                case "binary":
                    yield from read_binary(
                        source, media_type=response.media_type, body_bytes_max=bounds.body_bytes
                    )
                case "json" | "ndjson":
                    raise AssertionError("JSON is decoded page by page")


class _Held:
    """Batches of one answer, in memory or, when they are many, in an Arrow file of their own."""

    def __init__(self, spool_folder: Callable[[], Path]) -> None:
        self._spool_folder = spool_folder
        self._batches: list[pa.RecordBatch] = []
        self._path: Path | None = None

    def fill(self, batches: Iterator[pa.RecordBatch]) -> None:
        """Take all batches, or raise what the decoder raised."""
        size = 0
        writer: pa.RecordBatchWriter | None = None
        try:
            for batch in batches:
                size += batch.nbytes
                if writer is None:
                    self._batches.append(batch)
                    if size > _HELD_BYTES:
                        writer = self._spill(batch.schema)
                else:
                    writer.write_batch(batch)
        finally:
            if writer is not None:
                writer.close()

    def drain(self) -> Iterator[list[pa.RecordBatch]]:
        """The batches, in order, a few at a time."""
        if self._path is None:
            yield self._batches
            return
        with pa.OSFile(str(self._path), "rb") as stream, pa.ipc.open_stream(stream) as reader:
            for batch in reader:
                yield [batch]

    def discard(self) -> None:
        self._batches.clear()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _spill(self, schema: pa.Schema) -> pa.RecordBatchWriter:
        with tempfile.NamedTemporaryFile(dir=self._spool_folder(), prefix="rows-", delete=False) as file:
            self._path = Path(file.name)
        writer = pa.ipc.new_stream(str(self._path), schema)
        for held in self._batches:
            writer.write_batch(held)
        self._batches.clear()
        return writer


def shape_batch(batch: pa.RecordBatch, schema: TableSchema) -> pa.RecordBatch:
    """A batch of a fixed format under the table's schema."""
    target = schema.arrow
    names = {field.name: field.source for field in schema.live}
    arrays = []
    for field in target:
        source = names.get(field.name, "")
        if field.name != RESCUED and source in batch.schema.names:
            arrays.append(batch.column(source).cast(field.type))
        else:
            arrays.append(pa.nulls(batch.num_rows, field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=target)


def _parts(batch: pa.RecordBatch, pages: Sequence[Page], lengths: Sequence[int]) -> list[Part]:
    """The rows of several pages, those of one window together."""
    parts: list[Part] = []
    offset = 0
    for window, group in groupby(zip(pages, lengths, strict=True), key=lambda pair: pair[0].request.window):
        answers = list(group)
        rows = sum(length for _, length in answers)
        if rows:
            times = arrivals([length for _, length in answers], [page.received_at for page, _ in answers])
            whole = batch if rows == batch.num_rows else batch.slice(offset, rows)
            parts.append(Part(batch=whole, window=window, received_at=times))
        offset += rows
    return parts


def _arrivals(pages: Sequence[Page], lengths: Sequence[int]) -> pa.Array:
    """For each row of several pages when its answer arrived."""
    return arrivals(lengths, [page.received_at for page in pages])


def with_kept(
    batch: pa.RecordBatch, keeps: Sequence[Sequence[tuple[str, str]]], lengths: Sequence[int]
) -> pa.RecordBatch:
    """The batch of several pages with their parents' values in their columns; a row's own value stays."""
    names = dict.fromkeys(name for keep in keeps for name, _ in keep)
    if not names or not batch.num_rows:
        return batch
    arrays = list(batch.columns)
    for name in names:
        index = batch.schema.get_field_index(name)
        if index < 0:
            continue
        own = arrays[index]
        values = [pa.scalar(dict(keep).get(name), pa.string()).cast(own.type) for keep in keeps]
        kept = pa.concat_arrays(
            [pa.repeat(value, length) for value, length in zip(values, lengths, strict=True)]
        )
        arrays[index] = kept if own.null_count == batch.num_rows else pc.coalesce(own, kept)
    return pa.RecordBatch.from_arrays(arrays, schema=batch.schema)


def parent_values(
    batch: pa.RecordBatch, params: Mapping[str, str], keep: Sequence[tuple[str, str]]
) -> Iterator[tuple[dict[str, str], tuple[tuple[str, str], ...]] | None]:
    """For each row (or element, where a path leads through a list) the values that a child needs.

    None where one of them is null: that child cannot be asked for.
    """
    paths = dict.fromkeys([*params.values(), *(path for _, path in keep)])
    heads = {path.partition(".")[0].removesuffix("[]") for path in paths}
    names = [name for name in heads if name in batch.schema.names]
    for row in batch.select(names).to_pylist():
        for found in _expand(row, list(paths)):
            if any(found[path] is None for path in params.values()):
                yield None
                continue
            yield (
                {name: str(found[path]) for name, path in params.items()},
                tuple((name, str(found[path])) for name, path in keep if found[path] is not None),
            )


def _expand(row: Mapping[str, object], paths: Sequence[str]) -> Iterator[dict[str, object]]:
    """The values at the paths; paths through one list go element by element, together."""
    prefix = next((path.partition("[]")[0] for path in paths if "[]" in path), None)
    if prefix is None:
        yield {path: _at(row, path) for path in paths}
        return
    items = _at(row, prefix)
    for item in items if isinstance(items, list) else ():
        inner = {path: path.removeprefix(f"{prefix}[].") for path in paths}
        yield {
            path: _at(item if isinstance(item, dict) else {}, rest) if rest != path else _at(row, path)
            for path, rest in inner.items()
        }


def _at(row: Mapping[str, object], path: str) -> object:
    value: object = row
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value
