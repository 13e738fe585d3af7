"""Log archives as record batches: one row for every line of every member, in archive order.

An archive is a ZIP, a gzip (of a tar or of one text) or plain text, told by its first bytes. Lines are split,
unwrapped and read with Arrow kernels, one chunk at a time; what the kernels refuse goes an exact way.

What starts an entry: a line that states a time of its own (container, error, audit, MaxScale); in a slow log
the first of the lines `# Time:` and `# User@Host:`. From the first of these on a member is a slow log to its
end, where statements may hold anything, even lines that look like those of another log: nothing else has a
time there. All lines up to the next start belong to the entry.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import struct
import tarfile
import zipfile
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pa_json

from extractor.errors import BodyTooLarge, MalformedBody

__all__ = ("LOG_SCHEMA", "read_log_archive")

LOG_SCHEMA = pa.schema(
    [
        pa.field("member", pa.string()),
        pa.field("line_number", pa.int64()),
        pa.field("entry", pa.int64()),
        pa.field("line", pa.string()),
        pa.field("line_bytes", pa.binary()),
        pa.field("timestamp", pa.timestamp("us", "UTC")),
        pa.field("timestamp_nanos", pa.int64()),
        pa.field("level", pa.string()),
        pa.field("stream", pa.string()),
    ]
)
"""Columns of a line. `entry` is the number of the line that started the entry, counted within the member."""

_CHUNK_BYTES_MAX = 8 << 20
_LINE_BYTES_MAX = 16 << 20
# More than any chunk: only a directory of members can ask for so much at once.
_READ_BYTES_MAX = 2 * _CHUNK_BYTES_MAX
_TAR_HEADER_BYTES_MAX = 1 << 20
_MEMBER_NAME_MAX = 1024
_BATCH_ROWS = 1 << 16
_NAMES_BYTES = 8 << 20
_RATIO_FREE_BYTES = 1 << 20
_BOM = b"\xef\xbb\xbf"

# Where the time of a line stands. The last three belong to slow logs. A line of form `container` has the form
# `rfc3339` too, so that one comes later; no other two overlap.
_DAY = r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
_CLOCK = r"[0-9]{2}:[0-9]{2}:[0-9]{2}"
_PADDED = r"[ 0-9][0-9]:[0-9]{2}:[0-9]{2}"
_SLOW_USER = b"# User@Host: "
_FORMS: Mapping[str, str] = {
    "error": rf"^{_DAY} {_PADDED}(?: |$)",
    "container": rf"^{_DAY}T{_CLOCK}(?:\.[0-9]{{1,9}})?Z (?:stdout|stderr) [FP](?: |$)",
    "audit": rf"^[0-9]{{8}} {_CLOCK},",
    "plain": rf"^[0-9]{{6}} {_PADDED}(?: |$)",
    "fraction": rf"^{_DAY} {_CLOCK}\.[0-9]{{1,9}}(?: |$)",
    "rfc3339": rf"^{_DAY}T{_CLOCK}(?:\.[0-9]{{1,9}})?Z(?: |$)",
    "slow_time": rf"^# Time: [0-9]{{6}} {_PADDED}[ ]*$",
    "slow_time_rfc3339": rf"^# Time: {_DAY}T{_CLOCK}(?:\.[0-9]{{1,9}})?Z[ ]*$",
    "slow_user": rf"^{_SLOW_USER.decode()}",
}
_SLOW_TIMES = ("slow_time", "slow_time_rfc3339")
_INNER_LONG = rf"^{_DAY} {_PADDED}(?:[ .]|$)"
_ANY_FORM = rf"^(?:{_DAY}[ T]|[0-9]{{6}} |[0-9]{{8}} |# Time: |# User@Host: )"
# Those of syslog, as MaxScale writes them.
_LEVEL_WORDS = frozenset("emergency emerg alert critical crit error warning notice info debug".split())
_LEVEL_BYTES = 64
# A time, a stream, a flag, and the server's own time and level.
_CONTAINER_BYTES = 31 + 9 + 19 + 64
_LEVEL_WORD_BYTES = 24
_STAMP = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[T ]([ \d]\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(?:Z|([+-])(\d\d):(\d\d))?", re.ASCII
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROS_MIN = -62_135_596_800_000_000

_MARKUP = (b"<!doctype", b"<html", b"<?xml")
_WRAPPER_KEYS = ("log", "time", "timestamp", "stream")
_WRAPPER_SCHEMA = pa.schema([(key, pa.string()) for key in _WRAPPER_KEYS])

# Typed scalars: given a Python number, each kernel call looks for numpy first (0.1 ms where it is absent).
_NO_TEXT = pa.scalar(None, pa.string())
_NO_BYTES = pa.scalar(None, pa.binary())
_NO_INT = pa.scalar(None, pa.int64())
_FALSE = pa.scalar(False)


def read_log_archive(
    source: BinaryIO, *, ratio_max: float, member_bytes_max: int, chunk_bytes: int = 4 << 20
) -> Iterator[pa.RecordBatch]:
    """Every line of every member as exactly one row of `LOG_SCHEMA`, in order, one chunk in memory at a time.

    `source` must be seekable. Names of members are kept as text and are never a path; a text that is no
    archive is one member with an empty name. A JSON line whose `log` is a text is unwrapped where nothing
    else would be lost. A line that is no UTF-8 goes to `line_bytes`. Any `chunk_bytes` gives the same rows.

    Raises:
        MalformedBody: no archive and no log text; a cut or damaged archive; a member that is encrypted, named
            twice, or has a name over 1024 characters.
        BodyTooLarge: over `member_bytes_max`, over `ratio_max` times the archive's size, a line over 16 MiB.
    """
    if chunk_bytes < 1:
        raise ValueError("chunk_bytes must be at least 1")
    budget = _Budget(
        archive_bytes=source.seek(0, io.SEEK_END), ratio_max=ratio_max, member_bytes_max=member_bytes_max
    )
    source.seek(0)
    head = source.read(4096)
    source.seek(0)
    with _translated():
        names: set[str] = set()
        for member in _members(source, head):
            if len(member.name) > _MEMBER_NAME_MAX:
                raise MalformedBody(
                    f"a member of the log archive has a name of {len(member.name)} characters"
                )
            if member.name in names:
                raise MalformedBody(f"the log archive holds two members named {_excerpt(member.name)}")
            names.add(member.name)
            yield from _read_member(member, budget, min(chunk_bytes, _CHUNK_BYTES_MAX))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Member:
    """A member to be read now, before the next one is asked for."""

    name: str
    read: Callable[[int], bytes]


class _Budget:
    """How much the archive may still unfold to."""

    __slots__ = ("_archive_bytes", "_member_bytes_max", "_ratio_max", "_unfolded")

    def __init__(self, *, archive_bytes: int, ratio_max: float, member_bytes_max: int) -> None:
        self._archive_bytes = archive_bytes
        self._ratio_max = ratio_max
        self._member_bytes_max = member_bytes_max
        self._unfolded = 0

    def take(self, member: _Member, piece: bytes, member_bytes: int) -> None:
        self._unfolded += len(piece)
        if member_bytes > self._member_bytes_max:
            raise BodyTooLarge(
                f"member {_excerpt(member.name)} is over {self._member_bytes_max} bytes; raise bounds.body_mb"
            )
        if self._unfolded > _RATIO_FREE_BYTES and self._unfolded > self._ratio_max * self._archive_bytes:
            raise BodyTooLarge(
                f"the log archive unfolds to over {self._ratio_max:g} times its size (bounds.archive_ratio)"
            )


@contextmanager
def _translated() -> Iterator[None]:
    """Damage of an archive as `MalformedBody`; faults of the disk stay what they are."""
    try:
        yield
    except (
        zipfile.BadZipFile,
        zipfile.LargeZipFile,
        tarfile.TarError,
        zlib.error,
        EOFError,
        struct.error,
        NotImplementedError,
        RuntimeError,
        OverflowError,
        UnicodeDecodeError,
    ) as error:
        raise MalformedBody(f"the log archive is damaged or cut: {type(error).__name__}: {error}") from error
    except OSError as error:
        if isinstance(error, gzip.BadGzipFile) or error.errno is None:
            raise MalformedBody(f"the log archive is damaged or cut: {error}") from error
        raise


def _members(source: BinaryIO, head: bytes) -> Iterator[_Member]:
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return _zip_members(source)
    if head[:3] == b"\x1f\x8b\x08":
        return _gzip_members(source)
    _refuse_other(head)
    return iter((_Member(name="", read=source.read),))


def _refuse_other(head: bytes) -> None:
    """Raise unless `head` begins a log text."""
    if not head:
        raise MalformedBody("the log archive is empty")
    text = head.removeprefix(_BOM).lstrip()
    if text[:16].lower().startswith(_MARKUP):
        raise MalformedBody(
            f"the body is HTML or XML, not a log archive: {_excerpt(text.decode(errors='replace'))}"
        )
    if b"\0" in head:
        raise MalformedBody(f"the body is neither ZIP, gzip nor text; it begins with {head[:16]!r}")
    if text[:1] == b"{":
        first = text.partition(b"\n")[0].decode(errors="replace")
        # A wrapped line may be longer than the head; an answer about an error is short.
        if _unwrap(first) is None and not (len(first) > 1024 and first.startswith('{"log":')):
            raise MalformedBody(f"the body is JSON, not a log archive: {_excerpt(first)}")


class _Guarded(io.RawIOBase):
    """The source, refusing single reads that only a swollen directory of members asks for."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source

    def read(self, size: int = -1, /) -> bytes:
        if size > _READ_BYTES_MAX:
            raise BodyTooLarge(f"the directory of the log archive is larger than {_READ_BYTES_MAX} bytes")
        return self._source.read(_READ_BYTES_MAX if size < 0 else size)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        try:
            return self._source.seek(offset, whence)
        except (ValueError, OSError) as error:
            raise MalformedBody("the log archive points outside itself") from error

    def tell(self) -> int:
        return self._source.tell()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True


def _zip_members(source: BinaryIO) -> Iterator[_Member]:
    with zipfile.ZipFile(_Guarded(source)) as archive:
        for entry in archive.infolist():
            # `filename` ends at a NUL; the name is only text here, so the whole of it is kept.
            name = entry.orig_filename
            if name.endswith("/") and not entry.file_size:
                continue
            if entry.flag_bits & 0x1:
                raise MalformedBody(f"member {_excerpt(name)} of the log archive is encrypted")
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise MalformedBody(f"member {_excerpt(name)} has compression method {entry.compress_type}")
            with archive.open(entry) as stream:
                counted = _Counted(stream.read)
                yield _Member(name=name, read=counted.read)
            if counted.total != entry.file_size:
                raise MalformedBody(f"member {_excerpt(name)} of the log archive is not as long as it says")


class _Counted:
    """A reader that knows how much it gave."""

    __slots__ = ("_read", "total")

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self.total = 0

    def read(self, size: int) -> bytes:
        piece = self._read(size)
        self.total += len(piece)
        return piece


def _gzip_members(source: BinaryIO) -> Iterator[_Member]:
    with gzip.GzipFile(fileobj=source, mode="rb") as stream:
        head = stream.read(512)
        stream.seek(0)
        if head[257:262] != b"ustar":
            if b"\0" in head:
                raise MalformedBody("the body is a gzip of neither a tar nor a text")
            yield _Member(name="", read=stream.read)
            return
        yield from _tar_members(stream)
        # The checksum stands behind the last member.
        while stream.read(1 << 16):
            pass


class _TarStream:
    """Bytes of a tar; between members only as many as headers need, since these are read whole."""

    def __init__(self, source: gzip.GzipFile) -> None:
        self._source = source
        self._header_bytes: int | None = 0

    def in_header(self, is_header: bool) -> None:
        self._header_bytes = 0 if is_header else None

    def read(self, size: int) -> bytes:
        piece = self._source.read(size)
        if self._header_bytes is not None:
            self._header_bytes += len(piece)
            if self._header_bytes > _TAR_HEADER_BYTES_MAX:
                raise BodyTooLarge("a member of the log archive has too long a header, or is no file")
        return piece


def _tar_members(source: gzip.GzipFile) -> Iterator[_Member]:
    stream = _TarStream(source)
    with tarfile.open(fileobj=stream, mode="r|", encoding="utf-8", errors="replace") as archive:  # type: ignore[call-overload]  # asks for IO[bytes], calls read only
        while (entry := archive.next()) is not None:
            # Kept by tarfile for lookups that never come here.
            archive.members.clear()
            if entry.issym() or entry.islnk() or not entry.isfile():
                continue
            body = archive.extractfile(entry)
            if body is None:
                continue
            stream.in_header(False)
            yield _Member(name=entry.name, read=body.read)
            stream.in_header(True)


def _read_member(member: _Member, budget: _Budget, chunk_bytes: int) -> Iterator[pa.RecordBatch]:
    position = _Position(member=member.name)
    # Each row repeats the name.
    batch_rows = min(_BATCH_ROWS, _NAMES_BYTES // max(len(member.name.encode()), 1))
    for text in _whole_lines(member, budget, chunk_bytes):
        if position.line_number == 1:
            text = text.removeprefix(_BOM)
        if not text:
            continue
        lines = _split_lines(text)
        is_utf8 = _is_utf8(text)
        for start in range(0, len(lines), batch_rows):
            yield _read_lines(lines.slice(start, batch_rows), position, is_utf8=is_utf8)


def _whole_lines(member: _Member, budget: _Budget, chunk_bytes: int) -> Iterator[bytes]:
    """The member in pieces that end where a line ends."""
    carry: list[bytes] = []
    carried = total = 0
    while piece := member.read(chunk_bytes):
        total += len(piece)
        budget.take(member, piece, total)
        end = piece.rfind(b"\n") + 1
        if carried + (piece.find(b"\n") if end else len(piece)) > _LINE_BYTES_MAX:
            raise BodyTooLarge(
                f"member {_excerpt(member.name)} has a line longer than {_LINE_BYTES_MAX} bytes"
            )
        if end:
            yield b"".join((*carry, piece[:end]))
            carry, carried = [], 0
        carry.append(piece[end:])
        carried += len(piece) - end
    if carried:
        yield b"".join(carry)


def _split_lines(text: bytes) -> pa.BinaryArray:
    if b"\r" in text:
        text = text.replace(b"\r\n", b"\n")
    text = text.removesuffix(b"\n")
    ends = pa.py_buffer(struct.pack("=ii", 0, len(text)))
    whole = pa.Array.from_buffers(pa.binary(), 1, [None, ends, pa.py_buffer(text)])
    return pc.split_pattern(whole, b"\n").values


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


@dataclass(slots=True, kw_only=True)
class _Position:
    """Where a member's reading stands between two batches."""

    member: str
    line_number: int = 1
    entry: int | None = None
    is_slow: bool = False
    is_after_time: bool = False
    form: str = "error"


def _read_lines(lines: pa.BinaryArray, position: _Position, *, is_utf8: bool) -> pa.RecordBatch:
    count = len(lines)
    line_bytes = pa.nulls(count, pa.binary())
    if is_utf8:
        line = texts = lines.cast(pa.string())
    else:
        line, line_bytes, texts = _part_utf8(lines)
    wrapped = _unwrap_lines(line)
    if wrapped is not None:
        line = wrapped.line
        texts = pc.coalesce(line, texts)
    facts = _read_texts(texts.cast(pa.binary()), wrapped, position)
    numbers = pc.add(_count(count), _int64(position.line_number))
    started = pc.fill_null_forward(pc.if_else(facts.is_start, numbers, _NO_INT))
    entry = pc.coalesce(started, numbers if position.entry is None else _int64(position.entry))
    position.line_number += count
    if started[-1].is_valid:
        position.entry = started[-1].as_py()
    return pa.RecordBatch.from_arrays(
        [
            pa.repeat(pa.scalar(position.member, pa.string()), count),
            numbers,
            entry,
            line,
            line_bytes,
            facts.micros.cast(LOG_SCHEMA.field("timestamp").type),
            facts.nanos,
            facts.level,
            facts.stream,
        ],
        schema=LOG_SCHEMA,
    )


def _part_utf8(lines: pa.BinaryArray) -> tuple[pa.StringArray, pa.BinaryArray, pa.StringArray]:
    """Texts, the bytes of those that are none, and for each line something to look for a time in."""
    raw = lines.to_pylist()
    texts = [line.decode() if _is_utf8(line) else None for line in raw]
    readable = [
        line.decode(errors="replace") if text is None else text for line, text in zip(raw, texts, strict=True)
    ]
    odd = [line if text is None else None for line, text in zip(raw, texts, strict=True)]
    return pa.array(texts, pa.string()), pa.array(odd, pa.binary()), pa.array(readable, pa.string())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wrapped:
    """All lines, unwrapped where they were wrapped, and what their wrappers said."""

    line: pa.StringArray
    stream: pa.StringArray
    times: _Times


def _unwrap_lines(lines: pa.StringArray) -> _Wrapped | None:
    """None where no line is wrapped."""
    is_object = pc.fill_null(pc.starts_with(lines, "{"), _FALSE)
    objects = lines.filter(is_object)
    if not len(objects):
        return None
    columns = _unwrap_plain(objects)
    times = _times(columns["time"], has_zone=True, has_fraction=True)
    # A time that cannot be kept as such keeps its line whole.
    is_kept = pc.and_(columns["log"].is_valid(), pc.or_(times.micros.is_valid(), columns["time"].is_null()))
    unwrapped, stream = _without_line_end(columns["log"]), columns["stream"]
    if not pc.all(is_kept).as_py():
        unwrapped = pc.if_else(is_kept, unwrapped, objects)
        stream = pc.if_else(is_kept, stream, _NO_TEXT)
    if len(objects) < len(lines):
        nowhere = pa.nulls(len(lines), pa.int64())
        return _Wrapped(
            line=pc.replace_with_mask(lines, is_object, unwrapped),
            stream=pc.replace_with_mask(pa.nulls(len(lines), pa.string()), is_object, stream),
            times=_Times(
                micros=pc.replace_with_mask(nowhere, is_object, times.micros),
                nanos=pc.replace_with_mask(nowhere, is_object, times.nanos),
            ),
        )
    return _Wrapped(line=unwrapped, stream=stream, times=times)


def _without_line_end(texts: pa.StringArray) -> pa.StringArray:
    ends = pc.fill_null(pc.ends_with(texts, "\n"), _FALSE)
    for end in ("\n", "\r"):
        ends = pc.and_(ends, pc.fill_null(pc.ends_with(texts, end), _FALSE))
        if not pc.any(ends).as_py():
            break
        cut = pc.binary_slice(texts.cast(pa.binary()), 0, -1).cast(pa.string())
        texts = pc.if_else(ends, cut, texts)
    return texts


def _unwrap_plain(objects: pa.StringArray) -> Mapping[str, pa.StringArray]:
    """The columns of wrappers, the quick way for lines that are but a `log` without escapes."""
    count = len(objects)
    first = objects[0].as_py()
    opening = '{"log": "' if first.startswith('{"log": "') else '{"log":"'
    closing = '\\n"}' if first.endswith('\\n"}') else '"}'
    is_plain = pc.and_(
        pc.and_(pc.starts_with(objects, opening), pc.ends_with(objects, closing)),
        pc.greater_equal(pc.binary_length(objects), pa.scalar(len(opening) + len(closing), pa.int32())),
    )
    inner = pc.binary_slice(objects.cast(pa.binary()), len(opening), -len(closing))
    escaped = _rows_with_escapes(inner)
    if len(escaped):
        is_plain = pc.and_not(is_plain, _places(escaped, count).is_valid())
    texts = inner.cast(pa.string())
    plain_count: int = pc.sum(is_plain).as_py()
    if plain_count == count:
        nothing = pa.nulls(count, pa.string())
        return {"log": texts, "time": nothing, "stream": nothing}
    is_odd = pc.invert(is_plain)
    odd = objects.filter(is_odd) if plain_count else objects
    columns = _unwrap_alike(odd) or _unwrap_each(odd)
    if not plain_count:
        return columns
    return {
        "log": pc.replace_with_mask(texts, is_odd, columns["log"]),
        "time": pc.replace_with_mask(pa.nulls(count, pa.string()), is_odd, columns["time"]),
        "stream": pc.replace_with_mask(pa.nulls(count, pa.string()), is_odd, columns["stream"]),
    }


def _rows_with_escapes(texts: pa.BinaryArray) -> pa.Int64Array:
    """The rows with a quote, a backslash or a carriage return; all rows when these are many."""
    ends = memoryview(texts.buffers()[1]).cast("i")
    content = texts.buffers()[2].to_pybytes() if texts.buffers()[2] else b""
    rows: set[int] = set()
    for mark in (b'"', b"\\", b"\r"):
        place = content.find(mark)
        while place >= 0:
            row = bisect_right(ends, place) - 1
            rows.add(row)
            if len(rows) > len(texts) // 8:
                return _count(len(texts))
            place = content.find(mark, ends[row + 1])
    return pa.array(sorted(rows), pa.int64())


def _unwrap_alike(objects: pa.StringArray) -> Mapping[str, pa.StringArray] | None:
    """The columns of plain wrappers; None where any line might be something else.

    Each line begins and ends with a brace, and no JSON has an opening brace right after a closing one, nor a
    raw line end in a string: so with as many objects as lines, each line is one object.
    """
    if not pc.all(pc.ends_with(objects, "}")).as_py():
        return None
    whole = pa.ListArray.from_arrays(pa.array([0, len(objects)], pa.int32()), objects)
    body = pc.binary_join(whole, "\n")[0].as_buffer()
    try:
        table = pa_json.read_json(
            pa.BufferReader(body),
            read_options=pa_json.ReadOptions(use_threads=False, block_size=body.size + 1),
            parse_options=pa_json.ParseOptions(
                explicit_schema=_WRAPPER_SCHEMA, unexpected_field_behavior="error"
            ),
        )
        table.validate(full=True)
    except pa.ArrowInvalid:
        return None
    columns = {key: table[key].combine_chunks() for key in _WRAPPER_KEYS}
    if table.num_rows != len(objects) or columns["log"].null_count:
        return None
    if columns["time"].null_count == len(objects):
        columns["time"] = columns["timestamp"]
    elif columns["timestamp"].null_count < len(objects):
        return None
    return columns


def _unwrap_each(objects: pa.StringArray) -> Mapping[str, pa.StringArray]:
    unwrapped = [_unwrap(line) or (None, None, None) for line in objects.to_pylist()]
    return {
        key: pa.array([parts[index] for parts in unwrapped], pa.string())
        for index, key in enumerate(("log", "time", "stream"))
    }


def _unwrap(line: str) -> tuple[str, str | None, str | None] | None:
    """Text, time and stream of a wrapped line; None where unwrapping would lose something."""
    try:
        # A raw tab or other control character is no JSON, but no reason to leave a line wrapped.
        pairs = json.loads(line, strict=False, object_pairs_hook=_Pairs, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return None
    if not isinstance(pairs, _Pairs) or len({key for key, _ in pairs}) < len(pairs):
        return None
    parts = {key: value for key, value in pairs if isinstance(value, str) and _is_encodable(value)}
    if "log" not in parts or not parts.keys() <= set(_WRAPPER_KEYS):
        return None
    if any(value is not None and key not in parts for key, value in pairs):
        return None
    times = {parts[key] for key in ("time", "timestamp") if key in parts}
    return (parts["log"], next(iter(times), None), parts.get("stream")) if len(times) < 2 else None


class _Pairs(list[tuple[str, object]]):
    """A JSON object with its keys as they stood, doubles included."""


def _refuse_constant(text: str) -> object:
    raise ValueError(text)


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class _Times:
    """Microseconds since 1970, null where there is no such time; nanoseconds beyond, null for none."""

    micros: pa.Int64Array
    nanos: pa.Int64Array


@dataclass(frozen=True, slots=True, kw_only=True)
class _Facts:
    """What lines say about themselves."""

    is_start: pa.BooleanArray
    micros: pa.Int64Array
    nanos: pa.Int64Array
    level: pa.StringArray
    stream: pa.StringArray


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """The lines of one form, and their row numbers."""

    form: str
    rows: pa.Int64Array
    texts: pa.BinaryArray


def _read_texts(texts: pa.BinaryArray, wrapped: _Wrapped | None, position: _Position) -> _Facts:
    count = len(texts)
    groups = _by_form(texts, position.form)
    if groups:
        likely = max(groups, key=lambda group: len(group.rows)).form
        position.form = likely if likely != "rfc3339" else "container"
    groups, slow_from = _slow_log(groups, position, count)
    facts = _gather(groups, _start_rows(groups, position, count), count)
    if wrapped is None:
        return facts
    stated = wrapped.times.micros.is_valid()
    if slow_from < count:
        stated = pc.and_(stated, pc.or_(pc.less(_count(count), _int64(slow_from)), facts.is_start))
    is_used = pc.and_(stated, facts.micros.is_null())
    return _Facts(
        is_start=pc.or_(facts.is_start, is_used),
        micros=pc.if_else(is_used, wrapped.times.micros, facts.micros),
        nanos=pc.if_else(is_used, wrapped.times.nanos, facts.nanos),
        level=facts.level,
        stream=pc.coalesce(facts.stream, wrapped.stream),
    )


def _by_form(texts: pa.BinaryArray, likely: str) -> list[_Group]:
    """The lines that have a form; the likely one is tried first, since most lines of a member are alike."""
    groups: list[_Group] = []
    rows = _count(len(texts))
    for form in (likely, None, *(form for form in _FORMS if form != likely)):
        if not len(texts):
            break
        matches = _matches(texts, form)
        found: int = pc.sum(matches).as_py()
        if form is None:
            if found < len(texts):
                rows, texts = rows.filter(matches), texts.filter(matches)
            continue
        if found == len(texts):
            groups.append(_Group(form=form, rows=rows, texts=texts))
            break
        if found:
            groups.append(_Group(form=form, rows=rows.filter(matches), texts=texts.filter(matches)))
            others = pc.invert(matches)
            rows, texts = rows.filter(others), texts.filter(others)
    return groups


def _matches(texts: pa.BinaryArray, form: str | None) -> pa.BooleanArray:
    if form == "slow_user":
        return pc.starts_with(texts, _SLOW_USER)
    return pc.match_substring_regex(texts, _FORMS[form] if form else _ANY_FORM)


def _slow_log(groups: Sequence[_Group], position: _Position, count: int) -> tuple[list[_Group], int]:
    """The groups without what only looks like a start, and the row from which the member is a slow log."""
    firsts = [group.rows[0].as_py() for group in groups if group.form.startswith("slow")]
    slow_from = 0 if position.is_slow else min(firsts, default=count)
    position.is_slow = slow_from < count
    if not position.is_slow:
        return list(groups), slow_from
    kept = []
    for group in groups:
        if not group.form.startswith("slow") and group.form != "container":
            is_before = pc.less(group.rows, _int64(slow_from))
            group = _Group(
                form=group.form, rows=group.rows.filter(is_before), texts=group.texts.filter(is_before)
            )
        if len(group.rows):
            kept.append(group)
    return kept, slow_from


def _start_rows(groups: Sequence[_Group], position: _Position, count: int) -> list[pa.Int64Array]:
    """Rows that start an entry: all but a `# User@Host:` right after its `# Time:`."""
    time_rows = [group.rows for group in groups if group.form in _SLOW_TIMES]
    if position.is_after_time:
        time_rows.append(pa.array([-1], pa.int64()))
    starts = []
    for group in groups:
        rows = group.rows
        if group.form == "slow_user" and time_rows:
            before = pc.subtract(rows, _int64(1))
            rows = rows.filter(pc.invert(pc.is_in(before, value_set=pa.concat_arrays(time_rows))))
        starts.append(rows)
    position.is_after_time = any(rows[-1].as_py() == count - 1 for rows in time_rows)
    return starts


def _gather(groups: Sequence[_Group], start_rows: Sequence[pa.Int64Array], count: int) -> _Facts:
    if not groups:
        nothing = pa.nulls(count, pa.int64())
        no_text = pa.nulls(count, pa.string())
        is_start = pa.repeat(_FALSE, count)
        return _Facts(is_start=is_start, micros=nothing, nanos=nothing, level=no_text, stream=no_text)
    parts = [_read_form(group.form, group.texts) for group in groups]
    if len(groups) == 1 and len(groups[0].rows) == count:
        is_start = _places(start_rows[0], count).is_valid()
        part = parts[0]
        return _Facts(
            is_start=is_start, micros=part.micros, nanos=part.nanos, level=part.level, stream=part.stream
        )
    places = _places(pa.concat_arrays([group.rows for group in groups]), count)
    return _Facts(
        is_start=_places(pa.concat_arrays(start_rows), count).is_valid(),
        micros=pa.concat_arrays([part.micros for part in parts]).take(places),
        nanos=pa.concat_arrays([part.nanos for part in parts]).take(places),
        level=pa.concat_arrays([part.level for part in parts]).take(places),
        stream=pa.concat_arrays([part.stream for part in parts]).take(places),
    )


def _places(rows: pa.Int64Array, count: int) -> pa.Int64Array:
    """For each of `count` rows its index in `rows`; null where it is not among them."""
    return pc.inverse_permutation(rows, max_index=count - 1, output_type=pa.int64())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stated:
    """What the lines of one form state."""

    micros: pa.Int64Array
    nanos: pa.Int64Array
    level: pa.StringArray
    stream: pa.StringArray


def _read_form(form: str, texts: pa.BinaryArray) -> _Stated:
    """Time, level and stream of lines that all have the form."""
    stream = level = pa.nulls(len(texts), pa.string())
    match form:
        case "error":
            times = _times(_slice(texts, 0, 19).cast(pa.string()))
            level = _levels(_slice(texts, 19, 19 + _LEVEL_BYTES))
        case "fraction":
            stamps = pc.extract_regex(texts, r"^(?P<stamp>[^ ]+ [^ ]+)")
            times = _times(pc.struct_field(stamps, "stamp").cast(pa.string()), has_fraction=True)
            level = _levels(_slice(texts, 19, 19 + _LEVEL_BYTES))
        case "plain":
            times = _times(_long_stamps(texts, 0, century=True))
            level = _levels(_slice(texts, 15, 15 + _LEVEL_BYTES))
        case "audit":
            times = _times(_long_stamps(texts, 0, century=False))
        case "slow_time":
            times = _times(_long_stamps(texts, 8, century=True))
        case "slow_time_rfc3339":
            stamps = _slice(texts, 8, 64).cast(pa.string())
            times = _times(pc.ascii_rtrim(stamps, characters=" "), has_zone=True, has_fraction=True)
        case "container":
            words = pc.split_pattern(_slice(texts, 0, _CONTAINER_BYTES), b" ", max_splits=3)
            times = _times(_word(words, 0).cast(pa.string()), has_zone=True, has_fraction=True)
            stream = _word(words, 1).cast(pa.string())
            level = _levels(_after_stamp(_word(words, 3)))
        case "rfc3339":
            words = pc.split_pattern(texts, b" ", max_splits=1)
            times = _times(_word(words, 0).cast(pa.string()), has_zone=True, has_fraction=True)
            level = _levels(_slice(_word(words, 1), 0, _LEVEL_BYTES))
        case _:
            nothing = pa.nulls(len(texts), pa.int64())
            times = _Times(micros=nothing, nanos=nothing)
    return _Stated(micros=times.micros, nanos=times.nanos, level=level, stream=stream)


def _word(words: pa.ListArray, index: int) -> pa.BinaryArray:
    """The word at `index` of each line; null where a line has fewer."""
    places = pc.add(words.offsets.slice(0, len(words)), pa.scalar(index, pa.int32()))
    exists = pc.greater(pc.list_value_length(words), pa.scalar(index, pa.int32()))
    return words.values.take(pc.if_else(exists, places, pa.scalar(None, pa.int32())))


def _slice(texts: pa.BinaryArray, start: int, stop: int) -> pa.BinaryArray:
    # Always with an end: without one, Arrow counts a text shorter than `start` as of negative length.
    return pc.binary_slice(texts, start, stop)


def _after_stamp(texts: pa.BinaryArray) -> pa.BinaryArray:
    """What follows the server's own time in lines that a container wrapped."""
    for form, width in ((_INNER_LONG, 19), (_FORMS["plain"], 15)):
        has_stamp = pc.fill_null(pc.match_substring_regex(texts, form), _FALSE)
        found: int = pc.sum(has_stamp).as_py()
        if found:
            texts = pc.if_else(has_stamp, _slice(texts, width, width + _LEVEL_BYTES), texts)
        if found == len(texts):
            break
    return texts


def _levels(texts: pa.BinaryArray) -> pa.StringArray:
    """The levels that follow a time: a word in brackets, or one of syslog's before a colon.

    Only blanks, digits and points (thread, fraction of the second) may stand before them.
    """
    texts = pc.ascii_ltrim(texts.cast(pa.string()), characters=" .0123456789").cast(pa.binary())
    is_bracketed = pc.fill_null(pc.starts_with(texts, b"["), _FALSE)
    if pc.all(is_bracketed).as_py():
        return _words_before(_slice(texts, 0, _LEVEL_WORD_BYTES), b"]", _bracketed_level)
    plain = _words_before(_slice(texts, 0, _LEVEL_WORD_BYTES), b":", _plain_level)
    if not pc.any(is_bracketed).as_py():
        return plain
    bracketed = _words_before(_slice(texts, 0, _LEVEL_WORD_BYTES), b"]", _bracketed_level)
    return pc.if_else(is_bracketed, bracketed, plain)


def _words_before(
    texts: pa.BinaryArray, mark: bytes, read_level: Callable[[bytes | None], str | None]
) -> pa.StringArray:
    words = pc.split_pattern(texts, mark, max_splits=1)
    has_mark = pc.equal(pc.list_value_length(words), pa.scalar(2, pa.int32()))
    found = pc.if_else(has_mark, _word(words, 0), _NO_BYTES).dictionary_encode()
    levels = pa.array([read_level(word) for word in found.dictionary.to_pylist()], pa.string())
    return levels.take(found.indices)


def _bracketed_level(word: bytes | None) -> str | None:
    return word[1:].decode() if word and word[:1] == b"[" and word[1:].isalpha() else None


def _plain_level(word: bytes | None) -> str | None:
    level = (word or b"").rstrip(b" ").decode(errors="replace")
    return level if level in _LEVEL_WORDS else None


def _long_stamps(texts: pa.BinaryArray, start: int, *, century: bool) -> pa.StringArray:
    """`YYMMDD` or `YYYYMMDD` and a clock, at `start`, as `YYYY-MM-DD hh:mm:ss`."""
    width = 2 if century else 4
    year = _slice(texts, start, start + width)
    if century:
        year = pc.binary_join_element_wise(pa.scalar(b"20", pa.binary()), year, pa.scalar(b"", pa.binary()))
    month = _slice(texts, start + width, start + width + 2)
    rest = _slice(texts, start + width + 2, start + width + 13)
    return pc.binary_join_element_wise(year, month, rest, pa.scalar(b"-", pa.binary())).cast(pa.string())


def _times(stamps: pa.StringArray, *, has_zone: bool = False, has_fraction: bool = False) -> _Times:
    """The moments that `stamps` name, in UTC where they name no zone; null for impossible ones."""
    unit = pa.timestamp("ns" if has_fraction else "s", "UTC" if has_zone else None)
    try:
        ticks = stamps.cast(unit).cast(pa.int64())
    except pa.ArrowInvalid:
        return _times_each(stamps)
    earliest = pc.min(ticks).as_py()
    if earliest is not None and earliest < 0:
        # Division cuts towards zero, and Arrow knows a year 0.
        return _times_each(stamps)
    if not has_fraction:
        return _Times(micros=pc.multiply(ticks, _int64(1_000_000)), nanos=pa.nulls(len(stamps), pa.int64()))
    micros = pc.divide(ticks, _int64(1000))
    nanos = pc.subtract(ticks, pc.multiply(micros, _int64(1000)))
    return _Times(micros=micros, nanos=pc.if_else(pc.equal(nanos, _int64(0)), _NO_INT, nanos))


def _times_each(stamps: pa.StringArray) -> _Times:
    encoded = stamps.dictionary_encode()
    moments = [_read_stamp(stamp) for stamp in encoded.dictionary.to_pylist()]
    micros = pa.array([micros for micros, _ in moments], pa.int64())
    nanos = pa.array([nanos or None for _, nanos in moments], pa.int64())
    return _Times(micros=micros.take(encoded.indices), nanos=nanos.take(encoded.indices))


def _read_stamp(stamp: str) -> tuple[int | None, int]:
    found = _STAMP.fullmatch(stamp)
    if found is None:
        return None, 0
    year, month, day, hour, minute, second = map(int, found.groups()[:6])
    sign, *offset = found.group(8, 9, 10)
    try:
        moment = datetime(year, month, day, hour, minute, second, tzinfo=UTC)
        if sign:
            shift = timedelta(hours=int(offset[0]), minutes=int(offset[1]))
            moment = moment - shift if sign == "+" else moment + shift
    except (ValueError, OverflowError):
        return None, 0
    nanos = int((found[7] or "").ljust(9, "0"))
    micros = (moment - _EPOCH) // timedelta(microseconds=1) + nanos // 1000
    return micros, nanos % 1000


def _count(length: int) -> pa.Int64Array:
    """The numbers from 0 up to, not including, `length`."""
    return pc.cumulative_sum(pa.repeat(_int64(1), length), start=_int64(-1))


def _int64(value: int) -> pa.Int64Scalar:
    return pa.scalar(value, pa.int64())


def _excerpt(text: str) -> str:
    return repr(text[:80])
