"""Record batches → row groups → data files: staged, complete, digested and synced, but not yet visible."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

from extractor.batch import (
    NULL_PARTITION,
    ROWS_MAX,
    Buffer,
    PartitionKey,
    Stamp,
    split_by_date,
    stamp_batch,
    stamp_schema,
)
from extractor.endpoint import Endpoint
from extractor.schema import TableSchema
from extractor.store import Output, Store

__all__ = ("DataFile", "Staged", "TableWriter", "WriteSettings", "rewrite", "staged_path")

STAGING = "_extractor/staging"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFile:
    """One immutable Parquet file: where it will stand, and what is in it."""

    path: str
    """Relative to the lake, with `/`; while staged it stands under `_extractor/staging/RUN/` at the same path."""
    rows: int
    size_bytes: int
    sha256: str
    partition: tuple[tuple[str, str], ...]
    """The Hive keys in the path, in order, with their values unescaped."""
    content: str = ""
    """Order-free digest of the Arrow values of its rows, where one was needed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """A data file with the window whose rows it holds."""

    file: DataFile
    window: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteSettings:
    """The shape of files; bytes of row groups are of decoded rows, bytes of files as they are stored."""

    compression: str = "zstd"
    target_file_bytes: int = 128 << 20
    row_group_bytes: int = 16 << 20
    open_files: int = 32


def staged_path(run_id: str, path: str) -> str:
    """Where a file of a run stands until it is published."""
    return f"{STAGING}/{run_id}/{path}"


class TableWriter:
    """The files of one table and account in one run.

    Not for several threads at once. Buffers rows by partition, writes a row group when one is full, and starts the
    next file when one has reached its target size. `finish` closes everything; until then no file is whole.
    """

    def __init__(
        self, store: Store, endpoint: Endpoint, stamp: Stamp, *, settings: WriteSettings, snapshot_date: str
    ) -> None:
        self._store = store
        self._endpoint = endpoint
        self._stamp = stamp
        self._settings = settings
        self._snapshot_date = snapshot_date
        self._buffers: dict[PartitionKey, Buffer] = {}
        self._open: OrderedDict[PartitionKey, _OpenFile] = OrderedDict()
        self._numbers: dict[str, int] = {}
        self._staged: list[Staged] = []
        self.rows = 0

    @property
    def buffered_bytes(self) -> int:
        """Bytes of rows that wait for a row group."""
        return sum(buffer.size_bytes for buffer in list(self._buffers.values()))

    def add(self, batch: pa.RecordBatch, *, window: str, received_at: datetime) -> None:
        """Take the rows of one answer, and write the row groups that they fill."""
        self.rows += batch.num_rows
        for key, part in self._partitions(batch, window):
            buffer = self._buffers.setdefault(key, Buffer())
            stamped = stamp_batch(part, self._stamp, received_at=received_at, event_date=key.event_date)
            if buffer.batches and buffer.batches[0].schema != stamped.schema:
                self._write_group(key)
            buffer.add(stamped)
            if buffer.size_bytes >= self._settings.row_group_bytes or buffer.rows >= ROWS_MAX:
                self._write_group(key)

    def flush(self) -> None:
        """Write what is buffered, as smaller row groups than one would like: memory is needed elsewhere."""
        for key in list(self._buffers):
            self._write_group(key)

    def finish(self, schema: TableSchema) -> tuple[Staged, ...]:
        """Close all files and give them; a snapshot of no rows is one typed, empty file.

        `schema` types that file. Event files of no rows are made by `empty` where the lake has none.
        """
        self.flush()
        for key in list(self._open):
            self._close(key)
        if not self._staged and not self._endpoint.sync.is_event and not self._endpoint.sync.is_replaced:
            self._staged.append(self.empty(schema))
        return tuple(self._staged)

    def empty(self, schema: TableSchema) -> Staged:
        """One typed file without rows, staged."""
        key = PartitionKey()
        opened = self._start(key, stamp_schema(schema.arrow, self._stamp))
        return Staged(file=opened.close(), window="")

    def abort(self) -> None:
        """Leave open files unfinished; their staging folder is removed with the run's."""
        for opened in self._open.values():
            opened.abort()
        self._open.clear()
        self._buffers.clear()

    def _partitions(
        self, batch: pa.RecordBatch, window: str
    ) -> Iterator[tuple[PartitionKey, pa.RecordBatch]]:
        if batch.num_rows == 0:
            return
        if not self._endpoint.sync.is_event:
            yield PartitionKey(window=window), batch
            return
        for day, part in split_by_date(batch, self._endpoint):
            yield PartitionKey(window=window, event_date=day), part

    def _write_group(self, key: PartitionKey) -> None:
        buffer = self._buffers[key]
        if not buffer.batches:
            return
        table = buffer.take()
        opened = self._open.get(key)
        if opened is not None and opened.schema != table.schema:
            self._close(key)
            opened = None
        if opened is None:
            if len(self._open) >= self._settings.open_files:
                self._close(next(iter(self._open)))
            opened = self._open[key] = self._start(key, table.schema)
        self._open.move_to_end(key)
        opened.write(table)
        if opened.size_bytes >= self._settings.target_file_bytes:
            self._close(key)

    def _start(self, key: PartitionKey, schema: pa.Schema) -> _OpenFile:
        folder, partition = self._place(key)
        number = self._numbers.get(folder, 0)
        self._numbers[folder] = number + 1
        name = f"{self._stamp.run_id}-{number:05d}" if self._stamp.is_event else f"part-{number:05d}"
        path = f"{folder}/{name}.parquet"
        output = self._store.open_output(staged_path(self._stamp.run_id, path))
        return _OpenFile(output, path, partition, schema, self._settings.compression)

    def _place(self, key: PartitionKey) -> tuple[str, tuple[tuple[str, str], ...]]:
        account = ("account", self._stamp.account)
        run = ("run", self._stamp.run_id)
        if self._endpoint.sync.is_event:
            day = key.event_date.isoformat() if key.event_date else NULL_PARTITION
            partition: tuple[tuple[str, str], ...] = (account, ("event_date", day))
        elif self._endpoint.sync.is_replaced:
            partition = (account, ("window", key.window), run)
        else:
            partition = (account, ("snapshot_date", self._snapshot_date), run)
        hive = "/".join(f"{name}={quote(value, safe='')}" for name, value in partition)
        return f"{self._endpoint.name}/{hive}", partition

    def _close(self, key: PartitionKey) -> None:
        self._staged.append(Staged(file=self._open.pop(key).close(), window=key.window))


class _OpenFile:
    """A Parquet file on its way: digested as it is written."""

    def __init__(
        self,
        output: Output,
        path: str,
        partition: tuple[tuple[str, str], ...],
        schema: pa.Schema,
        compression: str,
    ) -> None:
        self.schema = schema
        self._path = path
        self._partition = partition
        self._output = output
        self._sink = _DigestingSink(output)
        self._rows = 0
        self._writer = pq.ParquetWriter(
            pa.PythonFile(self._sink, mode="w"), schema, compression=compression, write_page_index=True
        )

    @property
    def size_bytes(self) -> int:
        return self._sink.size_bytes

    def write(self, table: pa.Table) -> None:
        """Append one row group."""
        self._writer.write_table(table, row_group_size=table.num_rows)
        self._rows += table.num_rows

    def close(self) -> DataFile:
        """Complete the file, durably."""
        self._writer.close()
        self._output.close()
        return DataFile(
            path=self._path,
            rows=self._rows,
            size_bytes=self._sink.size_bytes,
            sha256=self._sink.hexdigest(),
            partition=self._partition,
        )

    def abort(self) -> None:
        """Leave nothing. What Parquet's writer still ends its file with goes nowhere."""
        self._output.abort()
        self._sink.is_dropped = True
        self._writer.close()


class _DigestingSink:
    """Passes bytes on to the store and digests them on the way."""

    closed = False

    def __init__(self, output: Output) -> None:
        self._output = output
        self._digest = hashlib.sha256()
        self.size_bytes = 0
        self.is_dropped = False

    def write(self, content: bytes) -> int:
        self._digest.update(content)
        self.size_bytes += len(content)
        return len(content) if self.is_dropped else self._output.write(content)

    def tell(self) -> int:
        return self.size_bytes

    def flush(self) -> None:
        if not self.is_dropped:
            self._output.flush()

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    def close(self) -> None:
        """The output is closed by its owner, when the footer is written."""

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def rewrite(
    store: Store, run_id: str, staged: Staged, kept: list[pa.Table], *, compression: str
) -> Staged | None:
    """Replace a staged file by one with the given row groups; None, and no file, if they hold no rows."""
    file = staged.file
    place = staged_path(run_id, file.path)
    kept = [table for table in kept if table.num_rows]
    if not kept:
        store.delete(place)
        return None
    opened = _OpenFile(store.open_output(place), file.path, file.partition, kept[0].schema, compression)
    for table in kept:
        opened.write(table)
    return replace(staged, file=opened.close())
