"""The yardstick: the least code that reads the same pages into Parquet, as fast as this machine's libraries can.

No retries, no rate limit, no state, no checks. The event loop fetches and finds the next token, without looking at
the rows; raw pages go to one thread, which has pyarrow read whole pages, about a megabyte in each call, and writes.
With `--decoder exact` rows become Python objects instead. With `--pages FOLDER` one thread reads the pages from it
and does all the rest: what is left without a network.
"""

from __future__ import annotations

import argparse
import asyncio
import queue
import threading
from collections.abc import Callable
from pathlib import Path

import aiohttp
import msgspec
import orjson
import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq

from tests.bench.shapes import arrow_schema

__all__ = ("TableFiles", "decode_arrow", "decode_exact")

_HELD_BYTES = 64 << 20
_CALL_BYTES = 1 << 20
_IDLE_BYTES = 1 << 19
_GROUP_BYTES = 16 << 20

Decode = Callable[[list[bytes], pa.Schema], pa.RecordBatch]


class Envelope(msgspec.Struct):
    """All that the loop wants to know of a page; the rows are skipped."""

    next_page_token: str = ""


def decode_arrow(pages: list[bytes], schema: pa.Schema) -> pa.RecordBatch:
    body = b"\n".join(pages)
    envelope = pa.schema([("data", pa.list_(pa.struct(list(schema)))), ("next_page_token", pa.string())])
    table = pyarrow.json.read_json(
        pa.BufferReader(body),
        read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=len(body) + 1),
        parse_options=pyarrow.json.ParseOptions(explicit_schema=envelope, unexpected_field_behavior="error"),
    )
    return pa.RecordBatch.from_struct_array(table.column(0).chunk(0).flatten())


def decode_exact(pages: list[bytes], schema: pa.Schema) -> pa.RecordBatch:
    """The same rows by way of Python objects; times and money are cast, which is cheaper than objects of them."""
    rows = [row for page in pages for row in orjson.loads(page)["data"]]
    read = pa.struct([field.with_type(_object_type(field.type)) for field in schema])
    return pa.RecordBatch.from_struct_array(pa.array(rows, read)).cast(schema)


def _object_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(kind):
        return pa.string()
    return pa.float64() if pa.types.is_decimal(kind) else kind


class TableFiles:
    """One Parquet file for each table: decodes pages a megabyte at a time, writes row groups when large enough.

    `free` is called with the bytes of pages that are no longer held.
    """

    def __init__(
        self,
        folder: Path,
        schema: pa.Schema,
        decode: Decode,
        free: Callable[[int], object] = lambda size: None,
    ) -> None:
        self._folder = folder
        self._schema = schema
        self._decode = decode
        self._free = free
        self._raw: dict[str, list[bytes]] = {}
        self._raw_bytes: dict[str, int] = {}
        self._rows: dict[str, list[pa.RecordBatch]] = {}
        self._rows_bytes: dict[str, int] = {}
        self._writers: dict[str, pq.ParquetWriter] = {}

    def add(self, table: str, page: bytes) -> None:
        self._raw.setdefault(table, []).append(page)
        self._raw_bytes[table] = self._raw_bytes.get(table, 0) + len(page)
        if self._raw_bytes[table] >= _CALL_BYTES:
            self._convert(table)

    def use_idle_time(self) -> bool:
        """Decode some of what has come so far; False if it is too little to be worth it."""
        fullest = max(self._raw_bytes, key=self._raw_bytes.__getitem__, default=None)
        if fullest is None or self._raw_bytes[fullest] < _IDLE_BYTES:
            return False
        self._convert(fullest)
        return True

    def finish(self) -> None:
        for table in list(self._raw):
            self._convert(table)
        for table in list(self._rows):
            self._write(table)
        for writer in self._writers.values():
            writer.close()

    def _convert(self, table: str) -> None:
        pages = self._raw.pop(table)
        size = self._raw_bytes.pop(table)
        batch = self._decode(pages, self._schema)
        index = batch.schema.get_field_index("updated_on")
        if index >= 0:
            batch = batch.set_column(index, "updated_on", batch.column(index).cast(pa.timestamp("s", "UTC")))
        self._free(size)
        self._rows.setdefault(table, []).append(batch)
        self._rows_bytes[table] = self._rows_bytes.get(table, 0) + batch.nbytes
        if self._rows_bytes[table] >= _GROUP_BYTES:
            self._write(table)
        elif sum(self._rows_bytes.values()) >= _HELD_BYTES:
            self._write(max(self._rows_bytes, key=self._rows_bytes.__getitem__))

    def _write(self, table: str) -> None:
        rows = pa.Table.from_batches(self._rows.pop(table))
        del self._rows_bytes[table]
        if table not in self._writers:
            place = str(self._folder / f"{table}.parquet")
            self._writers[table] = pq.ParquetWriter(place, rows.schema, compression="zstd")
        self._writers[table].write_table(rows, row_group_size=max(1, rows.num_rows))


class Sink(threading.Thread):
    """The one thread that decodes and writes."""

    def __init__(self, files: TableFiles, on_error: Callable[[], object]) -> None:
        super().__init__()
        self.pages: queue.SimpleQueue[tuple[str, bytes] | None] = queue.SimpleQueue()
        self.error: Exception | None = None
        self._files = files
        self._on_error = on_error

    def run(self) -> None:
        try:
            while (item := self._next()) is not None:
                self._files.add(*item)
            self._files.finish()
        except Exception as error:  # noqa: BLE001  # the loop raises it
            self.error = error
            self._on_error()

    def _next(self) -> tuple[str, bytes] | None:
        while True:
            try:
                return self.pages.get_nowait()
            except queue.Empty:
                if not self._files.use_idle_time():
                    return self.pages.get()


class Room:
    """Bytes of raw pages that may still be held."""

    def __init__(self) -> None:
        self._held = 0
        self._freed = asyncio.Event()

    async def take(self, size: int) -> None:
        while self._held >= _HELD_BYTES:
            self._freed.clear()
            await self._freed.wait()
        self._held += size

    def free(self, size: int) -> None:
        self._held -= size
        self._freed.set()

    def open(self) -> None:
        """Let everybody in: nothing is decoded any more."""
        self.free(1 << 60)


async def read_chain(session: aiohttp.ClientSession, url: str, table: str, sink: Sink, room: Room) -> None:
    token = ""
    while True:
        async with session.get(f"{url}/{table}?page_token={token}") as answer:
            answer.raise_for_status()
            body = await answer.read()
        await room.take(len(body))
        if sink.error is not None:
            raise sink.error
        sink.pages.put((table, body))
        token = msgspec.json.decode(body, type=Envelope).next_page_token
        if not token:
            return


async def fetch(
    url: str, tables: list[str], schema: pa.Schema, folder: Path, decode: Decode, concurrency: int
) -> None:
    room, loop = Room(), asyncio.get_running_loop()
    files = TableFiles(folder, schema, decode, lambda size: loop.call_soon_threadsafe(room.free, size))
    sink = Sink(files, lambda: loop.call_soon_threadsafe(room.open))
    sink.start()
    try:
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=concurrency)) as session,
            asyncio.TaskGroup() as group,
        ):
            for table in tables:
                group.create_task(read_chain(session, url, table, sink, room))
    finally:
        sink.pages.put(None)
        await asyncio.to_thread(sink.join)
    if sink.error is not None:
        raise sink.error


def read_files(pages: Path, tables: list[str], files: TableFiles) -> None:
    for table in tables:
        number, place = 0, pages / table / "p.json"
        while place.exists():
            files.add(table, place.read_bytes())
            number += 1
            place = pages / table / f"p{number}.json"
    files.finish()


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("url")
    arguments.add_argument("tables")
    arguments.add_argument("shape")
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--decoder", choices=("arrow", "exact"), default="arrow")
    arguments.add_argument("--concurrency", type=int, default=16)
    arguments.add_argument("--pages", type=Path)
    given = arguments.parse_args()
    decode = decode_arrow if given.decoder == "arrow" else decode_exact
    tables, schema = given.tables.split(","), arrow_schema(given.shape)
    if given.pages:
        read_files(given.pages, tables, TableFiles(given.folder, schema, decode))
    else:
        asyncio.run(fetch(given.url, tables, schema, given.folder, decode, given.concurrency))


if __name__ == "__main__":
    main()
