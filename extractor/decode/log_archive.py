"""Log archives as record batches: one row for every line of every member, in archive order.

An archive is a ZIP, a gzip (of a tar or of one text) or plain text, told by its first bytes. Lines are split,
unwrapped and read with Arrow kernels, one chunk at a time; what the kernels refuse goes an exact way. The next
chunk is unfolded and split meanwhile, in a second thread.

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
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache
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
_PIECE_BYTES = 1 << 18
_LINE_BYTES_MAX = 16 << 20
# More than any chunk: only a directory of members can ask for so much at once.
_READ_BYTES_MAX = 2 * _CHUNK_BYTES_MAX
_TAR_HEADER_BYTES_MAX = 1 << 20
_MEMBER_NAME_MAX = 1024
_BATCH_ROWS = 1 << 16
_NAMES_BYTES = 8 << 20
_FEW_STAMPS = 256
_GUESS_LINES = 16
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
_FORM_PATTERNS = {form: re.compile(pattern.encode()) for form, pattern in _FORMS.items()}
_SLOW_TIME = b"# Time: "
_SLOW_TIMES = ("slow_time", "slow_time_rfc3339")
_FORMS_OF_SLOW = ("slow_user", *_SLOW_TIMES, "container")
# How nearly all lines of a form begin, with 0 for every digit: far quicker told than a pattern.
_SHAPES: Mapping[str, tuple[bytes, ...]] = {
    "error": (b"0000-00-00 00:00:00 ", b"0000-00-00  0:00:00 "),
    "container": (b"0000-00-00T00:00:00.000000000Z stdout F ", b"0000-00-00T00:00:00.000000000Z stderr F "),
    "audit": (b"00000000 00:00:00,",),
    "plain": (b"000000 00:00:00 ", b"000000  0:00:00 "),
    "fraction": (b"0000-00-00 00:00:00.000 ",),
}
_SHAPE_OF_DIGITS = bytes.maketrans(b"123456789", b"0" * 9)
# The server's own time in lines that a container wrapped: form, width, shapes.
_INNER_STAMPS = (
    (rf"^{_DAY} {_PADDED}(?:[ .]|$)", 19, (*_SHAPES["error"], b"0000-00-00 00:00:00.")),
    (_FORMS["plain"], 15, _SHAPES["plain"]),
)
# Those of syslog, as MaxScale writes them.
_LEVEL_WORDS = frozenset("emergency emerg alert critical crit error warning notice info debug".split())
_LEVEL_BYTES = 64
# A time, a stream, a flag, and the server's own time and level.
_CONTAINER_BYTES = 31 + 9 + 19 + 64
_LEVEL_WORD_BYTES = 24
# As the servers write nearly all of them.
_USUAL_LEVELS: Mapping[bytes, str] = {
    b"[Note]": "Note",
    b"notice :": "notice",
    b"[Warning]": "Warning",
    b"warning:": "warning",
    b"[ERROR]": "ERROR",
    b"error  :": "error",
}
_STAMP = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[T ]([ \d]\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(?:Z|([+-])(\d\d):(\d\d))?", re.ASCII
)
_STAMP_BYTES = len("YYYY-MM-DD hh:mm:ss")
_DIGIT_PLACES = (0, 1, 2, 3, 5, 6, 8, 9, 11, 12, 14, 15, 17, 18)
_HOUR_PLACE = 11
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROS_MIN = -62_135_596_800_000_000

_MARKUP = (b"<!doctype", b"<html", b"<?xml")
_WRAPPER_KEYS = ("log", "time", "timestamp", "stream")
_OPENINGS = (b'{"log":"', b'{"log": "')
_CLOSINGS = (b'\\n"}', b'"}')
_SIMPLE_ESCAPES = (
    (b"\\t", b"\t"),
    (b"\\/", b"/"),
    (b"\\u003c", b"<"),
    (b"\\u003e", b">"),
    (b"\\u0026", b"&"),
)
_WRAPPER_SCHEMA = pa.schema([(key, pa.string()) for key in _WRAPPER_KEYS])

# Typed scalars: given a Python number, each kernel call looks for numpy first (0.1 ms where it is absent).
_NO_TEXT = pa.scalar(None, pa.string())
_NO_BYTES = pa.scalar(None, pa.binary())
_NO_INT = pa.scalar(None, pa.int64())
_FALSE = pa.scalar(False)
_TRUE = pa.scalar(True)


def read_log_archive(
    source: BinaryIO, *, ratio_max: float, member_bytes_max: int, chunk_bytes: int = 3 << 20
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
    for chunk in _one_ahead(_chunks(member, budget, chunk_bytes), chunk_bytes):
        for start in range(0, len(chunk.lines), batch_rows):
            yield _read_lines(chunk.slice(start, batch_rows), position)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chunk:
    """Lines that follow each other; whether all are UTF-8, and whether all were wrapped and no longer are."""

    lines: pa.BinaryArray
    is_utf8: bool
    is_unwrapped: bool

    def slice(self, start: int, count: int) -> _Chunk:
        return replace(self, lines=self.lines.slice(start, count))


def _one_ahead(chunks: Iterator[_Chunk], chunk_bytes: int) -> Iterator[_Chunk]:
    """The chunks of lines; when they are large, the next one is made in a second thread while one is in use."""
    chunk = next(chunks, None)
    if chunk is None:
        return
    if chunk.lines.nbytes < chunk_bytes // 4:
        yield chunk
        yield from chunks
        return
    with ThreadPoolExecutor(1) as pool:
        while chunk is not None:
            coming = pool.submit(next, chunks, None)
            yield chunk
            chunk = coming.result()


def _chunks(member: _Member, budget: _Budget, chunk_bytes: int) -> Iterator[_Chunk]:
    is_first = True
    for text in _whole_lines(member, budget, chunk_bytes):
        if is_first:
            text = text.removeprefix(_BOM)
        is_first = False
        if text:
            yield _split_lines(text.replace(b"\r\n", b"\n") if b"\r" in text else text)


def _whole_lines(member: _Member, budget: _Budget, chunk_bytes: int) -> Iterator[bytes]:
    """The member in texts of at least `chunk_bytes` that end where a line ends."""
    held: list[bytes] = []
    held_bytes = open_bytes = total = 0
    while piece := member.read(min(chunk_bytes, _PIECE_BYTES)):
        total += len(piece)
        budget.take(member, piece, total)
        end = piece.rfind(b"\n") + 1
        if open_bytes + (piece.find(b"\n") if end else len(piece)) > _LINE_BYTES_MAX:
            raise BodyTooLarge(
                f"member {_excerpt(member.name)} has a line longer than {_LINE_BYTES_MAX} bytes"
            )
        open_bytes = len(piece) - end + (0 if end else open_bytes)
        held.append(piece)
        held_bytes += len(piece)
        if end and held_bytes - open_bytes >= chunk_bytes:
            held[-1] = piece[:end]
            text = b"".join(held)
            held, held_bytes = [piece[end:]], open_bytes
            yield text
    if held_bytes:
        yield b"".join(held)


def _split_lines(text: bytes) -> _Chunk:
    whole = _span(text, 0, len(text) - text.endswith(b"\n"))
    is_utf8 = _holds_utf8(whole)
    unwrapped = _unwrap_text(text) if is_utf8 else None
    lines = pc.split_pattern(whole, b"\n").values if unwrapped is None else unwrapped
    return _Chunk(lines=lines, is_utf8=is_utf8, is_unwrapped=unwrapped is not None)


def _span(text: bytes, start: int, stop: int) -> pa.BinaryArray:
    """A part of the text as the one element of an array, without a copy."""
    return pa.Array.from_buffers(
        pa.binary(), 1, [None, pa.py_buffer(struct.pack("=ii", start, stop)), pa.py_buffer(text)]
    )


def _holds_utf8(texts: pa.BinaryArray) -> bool:
    try:
        texts.cast(pa.string())
    except pa.ArrowInvalid:
        return False
    return True


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
    likely_form: str | None = None
    names: pa.StringArray | None = None

    def repeat_member(self, count: int) -> pa.StringArray:
        """The member's name for each of `count` rows."""
        if self.names is None or len(self.names) < count:
            self.names = pa.repeat(pa.scalar(self.member, pa.string()), count)
        return self.names.slice(0, count)


def _read_lines(chunk: _Chunk, position: _Position) -> pa.RecordBatch:
    count = len(chunk.lines)
    line_bytes = pa.nulls(count, pa.binary())
    if chunk.is_utf8:
        line = texts = chunk.lines.view(pa.string())
    else:
        line, line_bytes, texts = _part_utf8(chunk.lines)
    wrapped = None if chunk.is_unwrapped else _unwrap_lines(line)
    if wrapped is not None:
        line = wrapped.line
        texts = pc.coalesce(line, texts) if line.null_count else line
    facts = _read_texts(texts.view(pa.binary()), wrapped, position)
    numbers = pc.add(_count(count), _int64(position.line_number))
    started = pc.fill_null_forward(pc.if_else(facts.is_start, numbers, _NO_INT))
    entry = pc.coalesce(started, numbers if position.entry is None else _int64(position.entry))
    position.line_number += count
    if started[-1].is_valid:
        position.entry = started[-1].as_py()
    return pa.RecordBatch.from_arrays(
        [
            position.repeat_member(count),
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


def _unwrap_text(text: bytes) -> pa.BinaryArray | None:
    """The lines, where each is but a `log` with simple escapes; else None."""
    opening = next((opening for opening in _OPENINGS if text.startswith(opening)), None)
    if opening is None or b"\r" in text:
        return None
    first_stop = text.find(b"\n") + 1
    if 0 < first_stop < len(text) and _unwrap_text(text[:first_stop]) is None:
        return None
    stop = len(text) - text.endswith(b"\n")
    closing = next((closing for closing in _CLOSINGS if text.endswith(closing, len(opening), stop)), None)
    if closing is None:
        return None
    whole = _span(text, len(opening), stop - len(closing))
    lines = pc.split_pattern(whole, closing + b"\n" + opening).values
    content = _content(lines)
    return None if b"\n" in content else _unescape(lines, content)


def _unescape(lines: pa.BinaryArray, content: bytes) -> pa.BinaryArray | None:
    """JSON strings as they are meant; None where one ends early or has an escape that is not simple."""
    if b"\\" not in content:
        return None if b'"' in content else lines
    if b"\0" in content or b"\1" in content:
        return None
    # Pairs of backslashes come first, from the left: what is left of a run escapes what follows it.
    for escape, meant in ((b"\\\\", b"\0"), (b'\\"', b"\1"), *_SIMPLE_ESCAPES):
        if b"\\" in content:
            lines = pc.replace_substring(lines, escape, meant)
            content = _content(lines)
    if b"\\" in content or b'"' in content:
        return None
    content = content.replace(b"\1", b'"').replace(b"\0", b"\\")
    return pa.Array.from_buffers(pa.binary(), len(lines), [None, lines.buffers()[1], pa.py_buffer(content)])


def _content(texts: pa.BinaryArray) -> bytes:
    """All texts of an array that is no slice, one after the other."""
    buffer = texts.buffers()[2]
    return buffer.to_pybytes() if buffer else b""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wrapped:
    """All lines, unwrapped where they were wrapped, and what their wrappers said."""

    line: pa.StringArray
    stream: pa.StringArray
    times: _Times


def _unwrap_lines(lines: pa.StringArray) -> _Wrapped | None:
    """None where no line is wrapped."""
    is_object = pc.fill_null(pc.starts_with(lines, "{"), _FALSE)
    if not is_object.true_count:
        return None
    objects = lines.filter(is_object)
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
        cut = pc.binary_slice(texts.view(pa.binary()), 0, -1).view(pa.string())
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
    inner = pc.binary_slice(objects.view(pa.binary()), len(opening), -len(closing))
    escaped = _rows_with_escapes(inner)
    if len(escaped):
        is_plain = pc.and_not(is_plain, _places(escaped, count).is_valid())
    texts = inner.view(pa.string())
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
    content = _content(texts)
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
    """The lines of one form, and their row numbers; where all have its usual shape, `is_usual`."""

    form: str
    rows: pa.Int64Array
    texts: pa.BinaryArray
    is_usual: bool = False

    def part(self, belongs: pa.BooleanArray, **changes: object) -> _Group:
        """The lines for which `belongs` holds."""
        part = replace(self, **changes)  # type: ignore[arg-type]  # names of fields only
        if belongs.true_count == len(belongs):
            return part
        return replace(part, rows=self.rows.filter(belongs), texts=self.texts.filter(belongs))


def _read_texts(texts: pa.BinaryArray, wrapped: _Wrapped | None, position: _Position) -> _Facts:
    count = len(texts)
    groups = _by_form(texts, position)
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


def _by_form(texts: pa.BinaryArray, position: _Position) -> list[_Group]:
    """The lines that have a form; the likely ones are tried first, since most lines of a member are alike."""
    forms = _FORMS_OF_SLOW if position.is_slow else tuple(_FORMS)
    groups: list[_Group] = []
    rest = _Group(form="", rows=_count(len(texts)), texts=texts)
    likely = position.likely_form or _guess_form(texts, forms)
    rest = _split_off_usual(groups, rest, likely)
    if len(rest.rows):
        rest = rest.part(_may_start(rest.texts))
        rest = _split_off_usual(groups, rest, _guess_form(rest.texts, forms))
    for form in forms:
        if not len(rest.rows):
            break
        rest = _split_off(groups, rest, _have_form(rest.texts, form), form)
    if groups:
        position.likely_form = max(groups, key=lambda group: len(group.rows)).form
    return groups


def _guess_form(texts: pa.BinaryArray, forms: Sequence[str]) -> str:
    """The form of one of the first lines; empty where none of them has one."""
    heads = _slice(texts.slice(0, _GUESS_LINES), 0, _LEVEL_BYTES).to_pylist()
    found = (form for head in heads for form in forms if _FORM_PATTERNS[form].match(head))
    return next(found, "")


def _split_off(
    groups: list[_Group], rest: _Group, belongs: pa.BooleanArray, form: str, *, is_usual: bool = False
) -> _Group:
    """What is left of `rest` when the lines for which `belongs` holds are a group of their own."""
    if not belongs.true_count:
        return rest
    groups.append(rest.part(belongs, form=form, is_usual=is_usual))
    return rest.part(pc.invert(belongs))


def _split_off_usual(groups: list[_Group], rest: _Group, form: str) -> _Group:
    """What is left of `rest` when lines of a form's usual shape are a group of their own."""
    if form not in _SHAPES:
        return rest
    return _split_off(groups, rest, _have_shape(rest.texts, _SHAPES[form]), form, is_usual=True)


def _may_start(texts: pa.BinaryArray) -> pa.BooleanArray:
    """False for lines that have no form, told by their first bytes."""
    return pc.or_(
        _begin_with_digit(texts), pc.or_(pc.starts_with(texts, _SLOW_TIME), pc.starts_with(texts, _SLOW_USER))
    )


def _begin_with_digit(texts: pa.BinaryArray) -> pa.BooleanArray:
    return pc.and_(
        pc.greater_equal(texts, pa.scalar(b"0", pa.binary())), pc.less(texts, pa.scalar(b":", pa.binary()))
    )


def _have_form(texts: pa.BinaryArray, form: str) -> pa.BooleanArray:
    if form == "slow_user":
        return pc.starts_with(texts, _SLOW_USER)
    return pc.match_substring_regex(texts, _FORMS[form])


def _have_shape(texts: pa.BinaryArray, shapes: Sequence[bytes], start: int = 0) -> pa.BooleanArray:
    """Which lines have at `start` one of `shapes`, all of one length."""
    heads = _slice(texts, start, start + len(shapes[0]))
    zeroed = pa.py_buffer(_content(heads).translate(_SHAPE_OF_DIGITS))
    heads = pa.Array.from_buffers(pa.binary(), len(heads), [*heads.buffers()[:2], zeroed])
    found = pc.equal(heads, pa.scalar(shapes[0], pa.binary()))
    for shape in shapes[1:]:
        if found.true_count == len(heads):
            break
        found = pc.or_(found, pc.equal(heads, pa.scalar(shape, pa.binary())))
    return found


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
            group = group.part(is_before)
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
    parts = [_read_form(group) for group in groups]
    is_whole = len(groups) == 1 and len(groups[0].rows) == count
    places = None if is_whole or not groups else _places(pa.concat_arrays([g.rows for g in groups]), count)

    def gathered(column: str, kind: pa.DataType) -> pa.Array:
        arrays = [getattr(part, column) for part in parts]
        if all(array is None for array in arrays):
            return pa.nulls(count, kind)
        if places is None:
            return arrays[0]
        filled = [
            pa.nulls(len(group.rows), kind) if array is None else array
            for group, array in zip(groups, arrays, strict=True)
        ]
        return pa.concat_arrays(filled).take(places)

    return _Facts(
        is_start=_are_among(start_rows, count),
        micros=gathered("micros", pa.int64()),
        nanos=gathered("nanos", pa.int64()),
        level=gathered("level", pa.string()),
        stream=gathered("stream", pa.string()),
    )


def _are_among(rows: Sequence[pa.Int64Array], count: int) -> pa.BooleanArray:
    """Which of `count` rows are among the rows given."""
    if not rows:
        return pa.repeat(_FALSE, count)
    if len(rows) == 1 and len(rows[0]) == count:
        return pa.repeat(_TRUE, count)
    return _places(pa.concat_arrays(list(rows)), count).is_valid()


def _places(rows: pa.Int64Array, count: int) -> pa.Int64Array:
    """For each of `count` rows its index in `rows`; null where it is not among them."""
    return pc.inverse_permutation(rows, max_index=count - 1, output_type=pa.int64())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stated:
    """What the lines of one form state; None for what none of them does."""

    micros: pa.Int64Array | None
    nanos: pa.Int64Array | None = None
    level: pa.StringArray | None = None
    stream: pa.StringArray | None = None


def _read_form(group: _Group) -> _Stated:
    """Time, level and stream of lines that all have the form."""
    texts = group.texts
    stream = level = None
    match group.form:
        case "error":
            times = _times(_unpadded(_slice(texts, 0, 19)))
            level = _levels(_slice(texts, 19, 19 + _LEVEL_BYTES))
        case "fraction":
            times = _times(_fractional_stamps(group).view(pa.string()), has_fraction=True)
            level = _levels(_slice(texts, 19, 19 + _LEVEL_BYTES))
        case "plain":
            times = _times(_long_stamps(texts, 0, century=True))
            level = _levels(_slice(texts, 15, 15 + _LEVEL_BYTES))
        case "audit":
            times = _times(_long_stamps(texts, 0, century=False))
        case "slow_time":
            times = _times(_long_stamps(texts, 8, century=True))
        case "slow_time_rfc3339":
            stamps = _slice(texts, 8, 64).view(pa.string())
            times = _times(pc.ascii_rtrim(stamps, characters=" "), has_zone=True, has_fraction=True)
        case "container" if group.is_usual:
            times = _times(_slice(texts, 0, 30).view(pa.string()), has_zone=True, has_fraction=True)
            stream = _slice(texts, 31, 37).view(pa.string())
            level = _levels(_after_stamp(texts, len(_SHAPES["container"][0])))
        case "container":
            words = pc.split_pattern(_slice(texts, 0, _CONTAINER_BYTES), b" ", max_splits=3)
            times = _times(_word(words, 0).view(pa.string()), has_zone=True, has_fraction=True)
            stream = _word(words, 1).view(pa.string())
            level = _levels(_after_stamp(_word(words, 3), 0))
        case "rfc3339":
            words = pc.split_pattern(_slice(texts, 0, _CONTAINER_BYTES), b" ", max_splits=1)
            times = _times(_word(words, 0).view(pa.string()), has_zone=True, has_fraction=True)
            level = _levels(_slice(_word(words, 1), 0, _LEVEL_BYTES))
        case _:
            return _Stated(micros=None)
    nanos = times.nanos if times.nanos.null_count < len(texts) else None
    return _Stated(micros=times.micros, nanos=nanos, level=level, stream=stream)


def _fractional_stamps(group: _Group) -> pa.BinaryArray:
    if group.is_usual:
        return _slice(group.texts, 0, 23)
    return pc.struct_field(pc.extract_regex(group.texts, r"^(?P<stamp>[^ ]+ [^ ]+)"), "stamp")


def _word(words: pa.ListArray, index: int) -> pa.BinaryArray:
    """The word at `index` of each line; null where a line has fewer."""
    places = pc.add(words.offsets.slice(0, len(words)), pa.scalar(index, pa.int32()))
    exists = pc.greater(pc.list_value_length(words), pa.scalar(index, pa.int32()))
    return words.values.take(pc.if_else(exists, places, pa.scalar(None, pa.int32())))


def _slice(texts: pa.BinaryArray, start: int, stop: int) -> pa.BinaryArray:
    # Always with an end: without one, Arrow counts a text shorter than `start` as of negative length.
    return pc.binary_slice(texts, start, stop)


def _after_stamp(texts: pa.BinaryArray, start: int) -> pa.BinaryArray:
    """What follows the server's own time in lines that a container wrapped, whose own texts begin at `start`."""
    _, width, shapes = _INNER_STAMPS[0]
    if _have_shape(texts, shapes, start).true_count == len(texts):
        return _slice(texts, start + width, start + width + _LEVEL_BYTES)
    texts = _slice(texts, start, _CONTAINER_BYTES)
    may_have = pc.fill_null(_begin_with_digit(texts), _FALSE)
    for form, width, shapes in _INNER_STAMPS:
        if not may_have.true_count:
            break
        has_stamp = pc.fill_null(_have_shape(texts, shapes), _FALSE)
        is_odd = pc.and_not(may_have, has_stamp)
        if is_odd.true_count:
            found = pc.match_substring_regex(texts.filter(is_odd), form)
            has_stamp = pc.replace_with_mask(has_stamp, is_odd, found)
        if has_stamp.true_count:
            texts = pc.if_else(has_stamp, _slice(texts, width, width + _LEVEL_BYTES), texts)
        may_have = pc.and_not(may_have, has_stamp)
    return texts


def _levels(texts: pa.BinaryArray) -> pa.StringArray:
    """The levels that follow a time: a word in brackets, or one of syslog's before a colon.

    Only blanks, digits and points (thread, fraction of the second) may stand before them.
    """
    texts = pc.ascii_ltrim(texts.view(pa.string()), characters=" .0123456789").view(pa.binary())
    places = pa.nulls(len(texts), pa.int8())
    first = texts[0].as_py() or b""
    usual_levels, words = _usual_levels(first[:1])
    for place, usual in enumerate(usual_levels):
        if places.null_count == 0:
            break
        is_usual = pc.starts_with(texts, usual)
        if is_usual.true_count:
            places = pc.if_else(is_usual, pa.scalar(place, pa.int8()), places)
    levels = words.take(places)
    if not levels.null_count:
        return levels
    # All that may be a level begins with a bracket or with a small letter.
    is_odd = pc.and_(
        pc.greater_equal(texts, pa.scalar(b"[", pa.binary())), pc.less(texts, pa.scalar(b"x", pa.binary()))
    )
    is_odd = pc.and_(pc.fill_null(is_odd, _FALSE), places.is_null())
    if not is_odd.true_count:
        return levels
    return pc.replace_with_mask(
        levels, is_odd, _odd_levels(_slice(texts.filter(is_odd), 0, _LEVEL_WORD_BYTES))
    )


@cache
def _usual_levels(first: bytes) -> tuple[Sequence[bytes], pa.StringArray]:
    """The usual levels as they are written, those that begin as the log's own do before others, and as words."""
    usual_levels = sorted(_USUAL_LEVELS, key=lambda usual: (usual[:1] == b"[") != (first == b"["))
    return usual_levels, pa.array([_USUAL_LEVELS[usual] for usual in usual_levels], pa.string())


def _odd_levels(texts: pa.BinaryArray) -> pa.StringArray:
    is_bracketed = pc.starts_with(texts, b"[")
    if is_bracketed.true_count == len(texts):
        return _words_before(texts, b"]", _bracketed_level)
    plain = _words_before(texts, b":", _plain_level)
    if not is_bracketed.true_count:
        return plain
    return pc.if_else(is_bracketed, _words_before(texts, b"]", _bracketed_level), plain)


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
    width = 15 if century else 17
    packed = _slice(texts, start, start + width).buffers()[2].to_pybytes()
    stamps = bytearray(b"2000-00-00 00:00:00" * len(texts))
    # All are of one width, so that a digit's place in all of them is written at once.
    sources = [place for place in range(width) if place not in (width - 9, width - 6, width - 3)]
    for source, target in zip(sources, _DIGIT_PLACES[-len(sources) :], strict=True):
        stamps[target::_STAMP_BYTES] = packed[source::width]
    return _unpadded_stamps(stamps)


def _unpadded(stamps: pa.BinaryArray) -> pa.StringArray:
    """Stamps of the form `YYYY-MM-DD hh:mm:ss` with a 0 where the hour has a blank."""
    return _unpadded_stamps(bytearray(stamps.buffers()[2]))


def _unpadded_stamps(stamps: bytearray) -> pa.StringArray:
    hours = stamps[_HOUR_PLACE::_STAMP_BYTES]
    if b" " in hours:
        stamps[_HOUR_PLACE::_STAMP_BYTES] = hours.replace(b" ", b"0")
    count = len(stamps) // _STAMP_BYTES
    whole = pa.Array.from_buffers(pa.binary(_STAMP_BYTES), count, [None, pa.py_buffer(stamps)])
    return whole.cast(pa.binary()).view(pa.string())


def _times(stamps: pa.StringArray, *, has_zone: bool = False, has_fraction: bool = False) -> _Times:
    """The moments that `stamps` name, in UTC where they name no zone; null for impossible ones."""
    unit = pa.timestamp("ns" if has_fraction else "s", "UTC" if has_zone else None)
    ticks = _ticks(stamps, unit)
    if ticks is None:
        return _times_apart(stamps, has_zone=has_zone, has_fraction=has_fraction)
    if not has_fraction:
        return _Times(micros=pc.multiply(ticks, _int64(1_000_000)), nanos=pa.nulls(len(stamps), pa.int64()))
    micros = pc.divide(ticks, _int64(1000))
    nanos = pc.subtract(ticks, pc.multiply(micros, _int64(1000)))
    return _Times(micros=micros, nanos=pc.if_else(pc.equal(nanos, _int64(0)), _NO_INT, nanos))


def _ticks(stamps: pa.StringArray, unit: pa.DataType) -> pa.Int64Array | None:
    """The stamps as numbers of `unit` since 1970; None where some are none, or may not be told so."""
    try:
        ticks = stamps.cast(unit).cast(pa.int64())
    except pa.ArrowInvalid:
        return None
    earliest = pc.min(ticks).as_py()
    # Division cuts towards zero, and Arrow knows a year 0.
    return ticks if earliest is None or earliest >= 0 else None


def _times_apart(stamps: pa.StringArray, *, has_zone: bool, has_fraction: bool) -> _Times:
    """The moments of stamps of which some are odd: the few around these one by one."""
    if len(stamps) <= _FEW_STAMPS:
        return _times_each(stamps)
    parts = [
        _times(stamps.slice(start, _FEW_STAMPS), has_zone=has_zone, has_fraction=has_fraction)
        for start in range(0, len(stamps), _FEW_STAMPS)
    ]
    return _Times(
        micros=pa.concat_arrays([part.micros for part in parts]),
        nanos=pa.concat_arrays([part.nanos for part in parts]),
    )


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
    """The numbers from 0 up to, not including, `length`, which is no more than the rows of a batch."""
    return _batch_count().slice(0, length)


@cache
def _batch_count() -> pa.Int64Array:
    return pc.cumulative_sum(pa.repeat(_int64(1), _BATCH_ROWS), start=_int64(-1))


def _int64(value: int) -> pa.Int64Scalar:
    return pa.scalar(value, pa.int64())


def _excerpt(text: str) -> str:
    return repr(text[:80])
