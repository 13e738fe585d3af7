"""Record batches → row groups → data files: staged, complete, digested and synced, but not yet visible."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from urllib.parse import quote

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from extractor.batch import (
    NULL_PARTITION,
    ROWS_MAX,
    Buffer,
    PartitionKey,
    Stamp,
    arrivals,
    split_by_date,
    stamp_rows,
    stamp_schema,
    with_arrival,
)
from extractor.endpoint import Endpoint
from extractor.errors import LakeError
from extractor.layout import writer_options
from extractor.schema import TableSchema
from extractor.store import Output, Store, Unclosed, staged_path

__all__ = (
    "DamagedFile",
    "DataFile",
    "OpenFile",
    "RowGroup",
    "Staged",
    "TableWriter",
    "WriteSettings",
    "open_file",
    "open_parquet",
    "rewrite",
)

_BUFFER_BYTES = 128 << 10


class DataFile(msgspec.Struct, frozen=True, kw_only=True):
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
    is_apart: bool = False
    """A later commit of its run brought it, after others had committed. Events in it are not merged: only by their
    file can a reader tell them from those that the run had before."""


class DamagedFile(LakeError):
    """A data file is there and cannot be read."""


@contextmanager
def open_parquet(store: Store, path: str) -> Iterator[pq.ParquetFile]:
    """A data file of the lake, for reading. Raises: StoreMissing; DamagedFile, also while it is read."""
    with store.open_input(path) as stream:
        try:
            yield pq.ParquetFile(pa.PythonFile(stream, mode="r"))
        except (OSError, pa.ArrowException) as error:
            raise DamagedFile(
                f"{path} in lake {store.uri} is damaged; run `skysql-extract verify`, "
                "then restore it from a copy of the lake"
            ) from error


class Staged(msgspec.Struct, frozen=True, kw_only=True):
    """A data file with the window whose rows it holds."""

    file: DataFile
    window: str


class WriteSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The shape of files; bytes of row groups are of decoded rows, bytes of files as they are stored."""

    compression: str = "zstd"
    target_file_bytes: int = 128 << 20
    row_group_bytes: int = 16 << 20
    open_files: int = 32


class RowGroup(msgspec.Struct, frozen=True, kw_only=True):
    """Stamped rows of one partition, about to be encoded."""

    key: PartitionKey
    rows: pa.Table
    size_bytes: int


class TableWriter:
    """The files of one table and account in one run.

    Rows are buffered by partition with `partition` (which only computes, and may run anywhere) and `keep`; a full
    buffer becomes a row group with `take_groups`, which `write_groups` encodes, on one thread at a time, while more
    rows are kept. The next file is started when one has reached its target size. `finish` closes everything; until
    then no file is whole.
    """

    def __init__(
        self,
        store: Store,
        endpoint: Endpoint,
        stamp: Stamp,
        *,
        settings: WriteSettings,
        snapshot_date: str,
        numbers: dict[str, int] | None = None,
        first_number: int = 0,
    ) -> None:
        """`numbers` counts the files of each folder, for runs that write a table several times.

        The first is `first_number`, so that no file of an earlier process of the run is replaced.
        """
        self._store = store
        self._endpoint = endpoint
        self._stamp = stamp
        self._settings = settings
        self._snapshot_date = snapshot_date
        self._buffers: dict[PartitionKey, Buffer] = {}
        self._groups: list[RowGroup] = []
        self._open: OrderedDict[PartitionKey, OpenFile] = OrderedDict()
        self._numbers = {} if numbers is None else numbers
        self._first_number = first_number
        self._staged: list[Staged] = []
        self.rows = 0
        self.buffered_bytes = 0
        """Bytes of rows that are not encoded yet."""

    @property
    def is_full(self) -> bool:
        """True while there is a row group to take."""
        return bool(self._groups)

    def add(self, batch: pa.RecordBatch, *, window: str, received_at: datetime | pa.Array) -> None:
        """Take rows, and write the row groups that they fill: all in one step."""
        self.keep(self.partition(batch, window=window, received_at=received_at))
        self._write_and_let_go(self.take_groups())

    def flush(self) -> None:
        """Write what is buffered, as smaller row groups than one would like."""
        self._write_and_let_go(self.take_groups(everything=True))

    def partition(
        self, batch: pa.RecordBatch, *, window: str, received_at: datetime | pa.Array
    ) -> list[tuple[PartitionKey, pa.RecordBatch]]:
        """The rows by partition; `received_at` is one moment, or one for each row."""
        if not batch.num_rows:
            return []
        if isinstance(received_at, datetime):
            received_at = arrivals([batch.num_rows], [received_at])
        batch = with_arrival(batch, received_at)
        if not self._endpoint.sync.is_event:
            return [(PartitionKey(window=window), batch)]
        days = split_by_date(batch, self._endpoint)
        return [(PartitionKey(window=window, event_date=day), part) for day, part in days]

    def keep(self, parts: Sequence[tuple[PartitionKey, pa.RecordBatch]]) -> None:
        """Buffer what `partition` gave."""
        for key, part in parts:
            buffer = self._buffers.setdefault(key, Buffer())
            if buffer.batches and (
                buffer.rows + part.num_rows > ROWS_MAX or buffer.batches[0].schema != part.schema
            ):
                self._close_group(key)
            before = buffer.size_bytes
            buffer.add(part)
            self.rows += part.num_rows
            self.buffered_bytes += buffer.size_bytes - before
            if buffer.size_bytes >= self._settings.row_group_bytes:
                self._close_group(key)

    def take_groups(self, *, everything: bool = False) -> list[RowGroup]:
        """The row groups that are full; with `everything` also smaller ones than one would like.

        They count as buffered until they are written.
        """
        if everything:
            for key in [key for key, buffer in self._buffers.items() if buffer.batches]:
                self._close_group(key)
        groups, self._groups = self._groups, []
        return groups

    def write_groups(self, groups: Sequence[RowGroup]) -> None:
        """Encode row groups, in order; nothing else may write meanwhile."""
        for group in groups:
            self._write_group(group)

    def let_go(self, groups: Sequence[RowGroup]) -> None:
        """Count written groups as buffered no more."""
        self.buffered_bytes -= sum(group.size_bytes for group in groups)

    def finish(self, schema: TableSchema) -> tuple[Staged, ...]:
        """Close all files and give them; a snapshot of no rows is one typed, empty file.

        `schema` types that file. Event files of no rows are made by `empty` where the lake has none.
        """
        self.close()
        if not self._staged and not self._endpoint.sync.is_event and not self._endpoint.sync.is_replaced:
            self._staged.append(self.empty(schema))
        return tuple(self._staged)

    def close(self) -> None:
        """Write what is buffered and complete the files that are open, durably; `finish` gives them."""
        self.flush()
        for key in list(self._open):
            self._close(key)

    def empty(self, schema: TableSchema) -> Staged:
        """One typed file without rows, staged."""
        key = PartitionKey()
        opened = self._start(key, stamp_schema(schema.arrow, self._stamp).empty_table())
        return Staged(file=opened.close(), window="")

    def abort(self) -> None:
        """Leave open files unfinished; their staging folder is removed with the run's."""
        for opened in self._open.values():
            opened.abort()
        self._open.clear()
        self._buffers.clear()
        self._groups.clear()

    def _write_and_let_go(self, groups: Sequence[RowGroup]) -> None:
        self.write_groups(groups)
        self.let_go(groups)

    def _close_group(self, key: PartitionKey) -> None:
        buffer = self._buffers[key]
        size_bytes = buffer.size_bytes
        rows = stamp_rows(buffer.take(), self._stamp, event_date=key.event_date)
        self._groups.append(RowGroup(key=key, rows=rows, size_bytes=size_bytes))

    def _write_group(self, group: RowGroup) -> None:
        key, table = group.key, group.rows
        opened = self._open.get(key)
        if opened is not None and opened.schema != table.schema:
            self._close(key)
            opened = None
        if opened is None:
            if len(self._open) >= self._settings.open_files:
                self._close(next(iter(self._open)))
            opened = self._open[key] = self._start(key, table)
        self._open.move_to_end(key)
        opened.write(table)
        if opened.size_bytes >= self._settings.target_file_bytes:
            self._close(key)

    def _start(self, key: PartitionKey, first: pa.Table) -> OpenFile:
        folder, partition = self._place(key)
        number = self._numbers.get(folder, self._first_number)
        self._numbers[folder] = number + 1
        name = f"{self._stamp.run_id}-{number:05d}" if self._stamp.is_event else f"part-{number:05d}"
        path = f"{folder}/{name}.parquet"
        output = self._store.open_output(staged_path(self._stamp.run_id, path))
        return OpenFile(output, path, partition, first, self._settings.compression)

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


class OpenFile:
    """A Parquet file on its way: digested as it is written, and encoded as suits its first row group."""

    def __init__(
        self,
        output: Output,
        path: str,
        partition: tuple[tuple[str, str], ...],
        first: pa.Table,
        compression: str,
        is_compacted: bool = False,
    ) -> None:
        self.schema = first.schema
        self._is_compacted = is_compacted
        self._path = path
        self._partition = partition
        self._output = output
        self._sink = _DigestingSink(output)
        self._rows = 0
        # Parquet's writer gives many small pieces.
        self._stream = pa.BufferedOutputStream(pa.PythonFile(self._sink, mode="w"), _BUFFER_BYTES)
        self._writer = pq.ParquetWriter(
            self._stream,
            self.schema,
            **writer_options(first, compression=compression, is_compacted=is_compacted),
        )

    @property
    def size_bytes(self) -> int:
        return int(self._stream.tell())

    def write(self, table: pa.Table) -> None:
        """Append one row group, or more if there are too many rows for one."""
        self._writer.write_table(table, row_group_size=table.num_rows if self._is_compacted else ROWS_MAX)
        self._rows += table.num_rows

    def close(self) -> DataFile:
        """Complete the file, durably."""
        self._writer.close()
        self._stream.close()
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
        self._stream.close()


class _DigestingSink(Unclosed):
    """Passes bytes on to the store and digests them on the way."""

    def __init__(self, output: Output) -> None:
        super().__init__(output)
        self._digest = hashlib.sha256()
        self.size_bytes = 0
        self.is_dropped = False

    def write(self, content: bytes, /) -> int:
        self._digest.update(content)
        self.size_bytes += len(content)
        return len(content) if self.is_dropped else super().write(content)

    def tell(self) -> int:
        return self.size_bytes

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def open_file(
    store: Store,
    run_id: str,
    path: str,
    partition: tuple[tuple[str, str], ...],
    first: pa.Table,
    *,
    compression: str,
    is_compacted: bool = False,
) -> OpenFile:
    """A staged data file on its way, laid out as suits `first`; a compacted one has the row groups it is given."""
    output = store.open_output(staged_path(run_id, path))
    return OpenFile(output, path, partition, first, compression, is_compacted)


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
    opened = OpenFile(store.open_output(place), file.path, file.partition, kept[0], compression)
    for table in kept:
        opened.write(table)
    return msgspec.structs.replace(staged, file=opened.close())
