"""Prometheus and OpenMetrics text as record batches: one row for every sample, in the order of the text.

Most lines differ only in their quoted values. So a chunk is split at the quotes with Arrow kernels, and what
stands between the quotes (names, keys, commas) is parsed in Python once for each distinct text. Lines with
odd spacing, unknown escapes, exemplars or rare label sets go line by line through one exact grammar, which
alone raises errors. Both ways give equal rows; the tests compare them.

Exemplars are read over: they are samples of another series than the one of their line.
"""

from __future__ import annotations

import re
import struct
import sys
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from hashlib import blake2b
from typing import BinaryIO, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from extractor.errors import BodyTooLarge, MalformedBody

__all__ = ("METRIC_SCHEMA", "read_metrics")

_CONSTANT_LABELS = ("namespace", "server_name", "server_type", "service_name", "topology_type")
_LABEL_MAP = pa.map_(pa.string(), pa.string())

METRIC_SCHEMA = pa.schema(
    [
        pa.field("name", pa.string()),
        pa.field("type", pa.string()),
        *(pa.field(label, pa.string()) for label in _CONSTANT_LABELS),
        pa.field("labels", _LABEL_MAP),
        pa.field("value", pa.float64()),
        pa.field("timestamp", pa.timestamp("us", "UTC")),
        pa.field("_series", pa.int64()),
    ]
)
"""Columns of a sample; `_series` is equal for equal name and labels, in whatever order the labels stood."""

_CHUNK_BYTES_MAX = 64 << 20
_LINE_BYTES_MAX = 16 << 20
_FAMILIES_MAX = 500_000
# A label set with fewer lines in a chunk costs less line by line than in kernels.
_SHAPE_ROWS_MIN = 48
_SHAPES_MAX = 256
_LABELS_FAST_MAX = 64
_CACHED_TEXT_MAX = 1024
# What a Python datetime can hold, in milliseconds since 1970.
_MILLIS_MIN = -62_135_596_800_000
_MILLIS_MAX = 253_402_300_799_999
# Typed scalars: given a Python number, each kernel call looks for numpy first (0.1 ms where it is absent).
_NO_TEXT = pa.scalar(None, pa.string())
_NO_OFFSET = pa.scalar(None, pa.int32())
_NO_NUMBER = pa.scalar(None, pa.float64())
_NO_MILLIS = pa.scalar(None, pa.int64())
_FALSE = pa.scalar(False)
_CLOSED = pa.array(["}", ",}"], pa.string())
# No byte of UTF-8, so that joined names and values cannot run into each other.
_SEPARATOR = b"\xff"

# No group is possessive: up to Python 3.11.4 such a one may not match what it should.
_SPACE = r"[ \t\v\f\r]"
_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*+"
_KEY = r"[a-zA-Z_][a-zA-Z0-9_]*+"
_QUOTED = r'"[^"\\]*+(?:\\.[^"\\]*+)*"'
_SAMPLE = re.compile(
    rf"{_SPACE}*+(?P<name>{_NAME})"
    rf"(?:{_SPACE}*+\{{(?P<labels>[^\"{{}}]*+(?:{_QUOTED}[^\"{{}}]*+)*)\}}{_SPACE}*+|{_SPACE}++)"
    rf"(?P<value>[^ \t\v\f\r#]++)(?:{_SPACE}++(?P<time>[^ \t\v\f\r#]++))?"
    rf"{_SPACE}*+(?:(?<={_SPACE})\#{_SPACE}*+\{{.*+)?",
    re.ASCII | re.DOTALL,
)
_PAIR = re.compile(
    rf"{_SPACE}*+({_KEY}){_SPACE}*+={_SPACE}*+({_QUOTED}){_SPACE}*+(,|$)", re.ASCII | re.DOTALL
)
_HEAD_TOKEN = re.compile(rf"({_NAME}){_SPACE}*+\{{{_SPACE}*+({_KEY}){_SPACE}*+={_SPACE}*+", re.ASCII)
_KEY_TOKEN = re.compile(rf"{_SPACE}*+,{_SPACE}*+({_KEY}){_SPACE}*+={_SPACE}*+", re.ASCII)
_BARE_NAME = re.compile(rf"({_NAME})(?:\{{\}})?", re.ASCII)
_TYPE = re.compile(rf"#{_SPACE}*+TYPE{_SPACE}++({_NAME}){_SPACE}++([^ \t\v\f\r]++)", re.ASCII)
_NUMBER = re.compile(r"[-+]?(?:(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?|inf|infinity|nan)", re.ASCII | re.IGNORECASE)
_NUMBER_FILTER = r"(?i)^[-+]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[-+]?[0-9]+)?|inf|infinity|nan)$"
_MILLIS = re.compile(r"-?\d{1,15}", re.ASCII)
_MILLIS_FILTER = r"^-?[0-9]{1,15}$"
_SECONDS = re.compile(r"-?(?:\d+\.\d*|\.\d+)(?:[eE][-+]?\d{1,2})?", re.ASCII)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_ESCAPED = {"\\": "\\", '"': '"', "n": "\n"}
# A control character, the escape in whose place it stands, and what that means.
_MASKS = (("\x01", b"\\\\", "\\"), ("\x02", b'\\"', '"'), ("\x03", b"\\n", "\n"))

_SUFFIX_TYPES: Mapping[str, frozenset[str]] = {
    "_total": frozenset({"counter"}),
    "_bucket": frozenset({"histogram", "gaugehistogram"}),
    "_sum": frozenset({"histogram", "summary"}),
    "_count": frozenset({"histogram", "summary"}),
    "_gsum": frozenset({"gaugehistogram"}),
    "_gcount": frozenset({"gaugehistogram"}),
    "_created": frozenset({"counter", "histogram", "summary"}),
    "_info": frozenset({"info"}),
}


def read_metrics(
    source: BinaryIO, *, chunk_bytes: int = 4 << 20, body_bytes_max: int
) -> Iterator[pa.RecordBatch]:
    """Every sample as exactly one row of `METRIC_SCHEMA`, in the order of the text, a batch for each chunk.

    Holds one chunk at a time, and at most 16 MiB of one line. A `# TYPE` line holds for the samples of its
    family that follow. An integer time is milliseconds, one with a point seconds. An exemplar is read over.

    Raises:
        MalformedBody: a line is no sample, comment or blank; the text is no UTF-8; the body is HTML.
        BodyTooLarge: over `body_bytes_max`, or a line or the number of families passes its bound.
    """
    types: dict[str, str] = {}
    first_line = 1
    for text in _whole_lines(source, chunk_bytes=chunk_bytes, body_bytes_max=body_bytes_max):
        if first_line == 1:
            text = text.removeprefix(b"\xef\xbb\xbf")
            _refuse_html(text)
        lines = _split_lines(text, first_line)
        batch = _read_lines(lines, text, types, first_line)
        first_line += len(lines)
        if batch.num_rows:
            yield batch


def _whole_lines(source: BinaryIO, *, chunk_bytes: int, body_bytes_max: int) -> Iterator[bytes]:
    """The body in pieces that end where a line ends; the final line end of each piece is kept out."""
    if chunk_bytes < 1:
        raise ValueError("chunk_bytes must be at least 1")
    carry: list[bytes] = []
    carried = total = 0
    while piece := source.read(min(chunk_bytes, _CHUNK_BYTES_MAX)):
        total += len(piece)
        if total > body_bytes_max:
            raise BodyTooLarge(
                f"the metrics text is larger than {body_bytes_max} bytes; raise bounds.body_mb"
            )
        end = piece.rfind(b"\n")
        if end >= 0:
            yield b"".join((*carry, piece[:end]))
            carry, carried = [], 0
        carry.append(piece[end + 1 :])
        carried += len(carry[-1])
        if carried > _LINE_BYTES_MAX:
            raise BodyTooLarge(f"a line of the metrics text is longer than {_LINE_BYTES_MAX} bytes")
    if carried:
        yield b"".join(carry)


def _refuse_html(text: bytes) -> None:
    if text.lstrip()[:1] == b"<":
        raise MalformedBody(
            f"the body is HTML or XML, not metrics text: {_excerpt(text[:320].decode(errors='replace'))}"
        )


def _split_lines(text: bytes, first_line: int) -> pa.StringArray:
    try:
        text.decode()
    except UnicodeDecodeError as error:
        line = first_line + text.count(b"\n", 0, error.start)
        raise MalformedBody(f"line {line} of the metrics text is not UTF-8") from error
    return _split_text(text)


def _split_text(text: bytes) -> pa.StringArray:
    whole = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(struct.pack("=ii", 0, len(text))), pa.py_buffer(text)]
    )
    lines = pc.split_pattern(whole, "\n").values
    return pc.ascii_trim_whitespace(lines) if _has_margins(lines, text) else lines


def _has_margins(lines: pa.StringArray, text: bytes) -> bool:
    """True where a line may begin or end with white space."""
    if any(mark in text for mark in (b"\r", b"\t", b"\v", b"\f")):
        return True
    margins: bool = pc.any(pc.or_(pc.starts_with(lines, " "), pc.ends_with(lines, " "))).as_py()
    return margins


@dataclass(frozen=True, slots=True, kw_only=True)
class _Samples:
    """Columns of some samples of a chunk, and the row numbers of their lines in it."""

    rows: pa.Int64Array
    name: pa.StringArray
    constants: Mapping[str, pa.StringArray]
    labels: pa.MapArray
    value: pa.DoubleArray
    micros: pa.Int64Array
    series: pa.Int64Array


def _read_lines(lines: pa.StringArray, text: bytes, types: dict[str, str], first_line: int) -> pa.RecordBatch:
    is_comment = pc.starts_with(lines, "#")
    is_sample = pc.and_not(pc.greater(pc.binary_length(lines), _int32(0)), is_comment)
    rows = pc.indices_nonzero(is_sample).cast(pa.int64())
    groups = list(_read_alike(lines, rows) if b"\\" not in text else _read_alike_escaped(text, rows))
    left = _without(rows, [group.rows for group in groups])
    if len(left):
        groups.append(_read_exactly(lines.take(left), left, first_line))
    samples = _in_order(groups)
    type_column = _type_column(samples, _type_lines(lines, is_comment), types)
    return pa.RecordBatch.from_arrays(
        [
            samples.name,
            type_column,
            *(samples.constants[label] for label in _CONSTANT_LABELS),
            samples.labels,
            samples.value,
            samples.micros.cast(METRIC_SCHEMA.field("timestamp").type),
            samples.series,
        ],
        schema=METRIC_SCHEMA,
    )


def _without(rows: pa.Int64Array, taken: Sequence[pa.Int64Array]) -> pa.Int64Array:
    if not taken:
        return rows
    if sum(map(len, taken)) == len(rows):
        return rows.slice(0, 0)
    return rows.filter(pc.invert(pc.is_in(rows, value_set=pa.concat_arrays(taken))))


def _in_order(groups: Sequence[_Samples]) -> _Samples:
    if len(groups) == 1:
        return groups[0]
    if not groups:
        return _samples_from_lines((), ())
    rows = pa.concat_arrays([group.rows for group in groups])
    order = pc.sort_indices(rows)

    def joined(columns: Sequence[pa.Array]) -> pa.Array:
        return pa.concat_arrays(columns).take(order)

    return _Samples(
        rows=rows.take(order),
        name=joined([group.name for group in groups]),
        constants={label: joined([group.constants[label] for group in groups]) for label in _CONSTANT_LABELS},
        labels=joined([group.labels for group in groups]),
        value=joined([group.value for group in groups]),
        micros=joined([group.micros for group in groups]),
        series=joined([group.series for group in groups]),
    )


def _read_alike_escaped(text: bytes, rows: pa.Int64Array) -> Iterator[_Samples]:
    """As `_read_alike`, with each escape standing as one control character while the text is split."""
    is_maskable = not any(mask.encode() in text for mask, _, _ in _MASKS)
    if is_maskable:
        # Two backslashes first: a run of them begins where an escape begins, so each pair is one.
        for mask, escape, _ in _MASKS:
            text = text.replace(escape, mask.encode())
    lines = _split_text(text)
    if b"\\" in text:
        rows = rows.filter(pc.invert(pc.match_substring(lines, "\\").take(rows)))
    yield from _read_alike(lines, rows, is_masked=is_maskable)


def _unmasked(texts: pa.StringArray) -> pa.StringArray:
    for mask, _, meaning in _MASKS:
        texts = pc.replace_substring(texts, mask, meaning)
    return texts


def _read_alike(lines: pa.StringArray, rows: pa.Int64Array, *, is_masked: bool = False) -> Iterator[_Samples]:
    """The samples whose lines are alike enough to be read with kernels; what is in doubt is left out."""
    if len(rows) < _SHAPE_ROWS_MIN:
        return
    tokens = pc.split_pattern(lines, '"')
    starts = tokens.offsets.take(rows)
    counts = pc.list_value_length(tokens).take(rows)
    for found in pc.value_counts(counts).to_pylist():
        count = found["values"]
        if found["counts"] < _SHAPE_ROWS_MIN or count % 2 == 0 or count > 2 * _LABELS_FAST_MAX + 1:
            continue
        is_of_count = pc.equal(counts, _int32(count))
        group = _Tokens(
            texts=tokens.values,
            rows=rows.filter(is_of_count),
            starts=starts.filter(is_of_count),
            label_count=count // 2,
            is_masked=is_masked,
        )
        if count == 1:
            yield from _read_bare(group)
        else:
            yield from _read_labelled(group)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tokens:
    """Lines with equally many quotes, as the texts before, in and after them."""

    texts: pa.StringArray
    rows: pa.Int64Array
    starts: pa.Int32Array
    label_count: int
    is_masked: bool

    def at(self, index: int) -> pa.StringArray:
        return self.texts.take(pc.add(self.starts, _int32(index)))

    def filter(self, mask: pa.BooleanArray) -> _Tokens:
        return _Tokens(
            texts=self.texts,
            rows=self.rows.filter(mask),
            starts=self.starts.filter(mask),
            label_count=self.label_count,
            is_masked=self.is_masked,
        )

    def label_texts(self, index: int) -> pa.StringArray:
        texts = self.at(2 * index + 1)
        return _unmasked(texts) if self.is_masked else texts


def _read_bare(group: _Tokens) -> Iterator[_Samples]:
    head, value, micros = _split_tail(group.at(0))
    heads = head.dictionary_encode()
    name = pa.array(list(map(_bare_name, heads.dictionary.to_pylist())), pa.string()).take(heads.indices)
    sound = pc.and_(name.is_valid(), value.is_valid())
    yield from _samples_alike(
        group.filter(sound), name.filter(sound), (), value.filter(sound), micros.filter(sound)
    )


def _read_labelled(group: _Tokens) -> Iterator[_Samples]:
    head, value, micros = _split_tail(group.at(2 * group.label_count))
    names, shapes, keys_by_shape = _label_shapes(group)
    is_closed = pc.is_in(head, value_set=_CLOSED)
    sound = pc.and_(pc.and_(is_closed, value.is_valid()), shapes.is_valid())
    if not pc.all(sound).as_py():
        group, names, shapes = group.filter(sound), names.filter(sound), shapes.filter(sound)
        value, micros = value.filter(sound), micros.filter(sound)
    frequent = [
        found["values"]
        for found in pc.value_counts(shapes).to_pylist()
        if found["counts"] >= _SHAPE_ROWS_MIN and _is_set(keys_by_shape[found["values"]])
    ]
    for shape in frequent[:_SHAPES_MAX]:
        alike = pc.equal(shapes, _int32(shape))
        yield from _samples_alike(
            group.filter(alike),
            names.filter(alike),
            keys_by_shape[shape],
            value.filter(alike),
            micros.filter(alike),
        )


def _is_set(keys: Sequence[str]) -> bool:
    return len(set(keys)) == len(keys)


def _label_shapes(group: _Tokens) -> tuple[pa.StringArray, pa.Int32Array, list[tuple[str, ...]]]:
    """Names, and the number of each line's label key sequence in the returned list; null where in doubt."""
    first = group.at(0).dictionary_encode()
    heads = list(map(_head_token, first.dictionary.to_pylist()))
    names = pa.array([head and head[0] for head in heads], pa.string()).take(first.indices)
    keys, codes = _numbered([head and head[1] for head in heads])
    shapes = codes.take(first.indices)
    keys_by_shape: list[tuple[str, ...]] = [(key,) for key in keys]
    for position in range(1, group.label_count):
        encoded = group.at(2 * position).dictionary_encode()
        tokens = list(map(_key_token, encoded.dictionary.to_pylist()))
        if len(tokens) == 1 and tokens[0] is not None:
            keys_by_shape = [(*keys, tokens[0]) for keys in keys_by_shape]
            continue
        keys, codes = _numbered(tokens)
        mixed = pc.add(
            pc.multiply(shapes.cast(pa.int64()), _int64(len(keys))), codes.take(encoded.indices)
        ).dictionary_encode()
        shapes = mixed.indices
        keys_by_shape = [
            (*keys_by_shape[code // len(keys)], keys[code % len(keys)])
            for code in mixed.dictionary.to_pylist()
        ]
    return names, shapes, keys_by_shape


def _numbered(texts: Sequence[str | None]) -> tuple[list[str], pa.Int64Array]:
    """The distinct texts, and the number of each of `texts` among them; null stays null."""
    numbers = {
        text: number for number, text in enumerate(dict.fromkeys(text for text in texts if text is not None))
    }
    return list(numbers), pa.array([None if text is None else numbers[text] for text in texts], pa.int64())


@lru_cache(maxsize=4096)
def _head_token(text: str) -> tuple[str, str] | None:
    found = _HEAD_TOKEN.fullmatch(text)
    return None if found is None else (found[1], found[2])


@lru_cache(maxsize=4096)
def _key_token(text: str) -> str | None:
    found = _KEY_TOKEN.fullmatch(text)
    return None if found is None else found[1]


def _bare_name(text: str | None) -> str | None:
    found = _BARE_NAME.fullmatch(text or "")
    return None if found is None else found[1]


def _split_tail(tails: pa.StringArray) -> tuple[pa.StringArray, pa.DoubleArray, pa.Int64Array]:
    """The first word of each text, the value and the time after it; no value where the text is in doubt."""
    parts = pc.ascii_split_whitespace(tails)
    lengths = pc.list_value_length(parts)
    starts = parts.offsets.slice(0, len(parts))
    has_time = pc.equal(lengths, _int32(3))
    is_sound = pc.or_(has_time, pc.equal(lengths, _int32(2)))
    head = parts.values.take(pc.if_else(is_sound, starts, _NO_OFFSET))
    value = parts.values.take(pc.if_else(is_sound, pc.add(starts, _int32(1)), _NO_OFFSET))
    time = parts.values.take(pc.if_else(has_time, pc.add(starts, _int32(2)), _NO_OFFSET))
    number = _matching(value, _NUMBER_FILTER).cast(pa.float64())
    millis = _matching(time, _MILLIS_FILTER).cast(pa.int64())
    in_range = pc.and_(
        pc.greater_equal(millis, _int64(_MILLIS_MIN)), pc.less_equal(millis, _int64(_MILLIS_MAX))
    )
    is_timed = pc.fill_null(in_range, _FALSE)
    number = pc.if_else(pc.or_(time.is_null(), is_timed), number, _NO_NUMBER)
    return head, number, pc.multiply(pc.if_else(is_timed, millis, _NO_MILLIS), _int64(1000))


def _matching(texts: pa.StringArray, pattern: str) -> pa.StringArray:
    matches = pc.match_substring_regex(texts, pattern)
    return pc.if_else(matches, texts, _NO_TEXT)


def _samples_alike(
    group: _Tokens, name: pa.StringArray, keys: Sequence[str], value: pa.DoubleArray, micros: pa.Int64Array
) -> Iterator[_Samples]:
    if not len(name):
        return
    texts = {
        keys[index]: group.label_texts(index) for index in sorted(range(len(keys)), key=keys.__getitem__)
    }
    absent = pa.nulls(len(name), pa.string())
    yield _Samples(
        rows=group.rows,
        name=name,
        constants={label: texts.get(label, absent) for label in _CONSTANT_LABELS},
        labels=_label_map(
            {key: text for key, text in texts.items() if key not in _CONSTANT_LABELS}, len(name)
        ),
        value=value,
        micros=micros,
        series=_series(_identities(name, texts)),
    )


def _label_map(texts: Mapping[str, pa.StringArray], row_count: int) -> pa.MapArray:
    """A map of equal keys for each row, in the order of `texts`."""
    width = len(texts)
    if not width:
        offsets = pa.repeat(_int32(0), row_count + 1)
        nothing = pa.nulls(0, pa.string())
        return pa.MapArray.from_arrays(offsets, nothing, nothing, _LABEL_MAP)
    # Item i of the result is label i % width of row i // width; the labels stand one column after the other.
    numbers = _count(row_count * width)
    row = pc.divide(numbers, _int64(width))
    label = pc.subtract(numbers, pc.multiply(row, _int64(width)))
    keys = pa.array(list(texts), pa.string()).take(label)
    items = pa.concat_arrays(list(texts.values())).take(pc.add(pc.multiply(label, _int64(row_count)), row))
    offsets = pc.multiply(_count(row_count + 1), _int64(width)).cast(pa.int32())
    return pa.MapArray.from_arrays(offsets, keys, items, _LABEL_MAP)


def _count(length: int) -> pa.Int64Array:
    """The numbers from 0 up to, not including, `length`."""
    return pc.cumulative_sum(pa.repeat(_int64(1), length), start=_int64(-1))


def _identities(name: pa.StringArray, texts: Mapping[str, pa.StringArray]) -> pa.BinaryArray:
    """Name and labels, sorted by label name, as bytes that differ between any two series."""
    columns: list[pa.Array | pa.Scalar] = [name.cast(pa.binary())]
    for key, text in texts.items():
        columns += (pa.scalar(key.encode(), pa.binary()), text.cast(pa.binary()))
    return pc.binary_join_element_wise(*columns, pa.scalar(_SEPARATOR, pa.binary()))


def _series(identities: pa.BinaryArray) -> pa.Int64Array:
    encoded = identities.dictionary_encode()
    digests = array(
        "q", b"".join([blake2b(text, digest_size=8).digest() for text in encoded.dictionary.to_pylist()])
    )
    if sys.byteorder == "big":
        digests.byteswap()
    distinct = pa.Array.from_buffers(pa.int64(), len(digests), [None, pa.py_buffer(digests)])
    return distinct.take(encoded.indices)


def _read_exactly(lines: pa.StringArray, rows: pa.Int64Array, first_line: int) -> _Samples:
    numbers: list[int] = rows.to_pylist()
    samples = []
    for row, line in zip(numbers, lines.to_pylist(), strict=True):
        samples.append(_read_sample(line, first_line + row))
    return _samples_from_lines(numbers, samples)


_Sample: TypeAlias = tuple[str, tuple[tuple[str, str], ...], float, int | None]


def _samples_from_lines(rows: Sequence[int], samples: Sequence[_Sample]) -> _Samples:
    labels = [dict(pairs) for _, pairs, _, _ in samples]
    return _Samples(
        rows=pa.array(rows, pa.int64()),
        name=pa.array([name for name, _, _, _ in samples], pa.string()),
        constants={
            label: pa.array([pairs.get(label) for pairs in labels], pa.string()) for label in _CONSTANT_LABELS
        },
        labels=pa.array(
            [[pair for pair in pairs if pair[0] not in _CONSTANT_LABELS] for _, pairs, _, _ in samples],
            _LABEL_MAP,
        ),
        value=pa.array([value for _, _, value, _ in samples], pa.float64()),
        micros=pa.array([micros for _, _, _, micros in samples], pa.int64()),
        series=_series(
            pa.array(
                [
                    _SEPARATOR.join([name.encode(), *(part.encode() for pair in pairs for part in pair)])
                    for name, pairs, _, _ in samples
                ],
                pa.binary(),
            )
        ),
    )


def _read_sample(line: str, number: int) -> _Sample:
    """Name, sorted labels, value and time in microseconds of one line.

    Raises:
        MalformedBody: naming the line.
    """
    found = _SAMPLE.fullmatch(line)
    if found is None or _NUMBER.fullmatch(found["value"]) is None:
        raise MalformedBody(f"line {number} of the metrics text is no sample: {_excerpt(line)}")
    labels = found["labels"] or ""
    pairs = _cached_pairs(labels) if len(labels) <= _CACHED_TEXT_MAX else _read_pairs(labels)
    if pairs is None:
        raise MalformedBody(f"line {number} of the metrics text has malformed labels: {_excerpt(line)}")
    if not _is_set([key for key, _ in pairs]):
        raise MalformedBody(f"line {number} of the metrics text has a label twice: {_excerpt(line)}")
    micros = None if found["time"] is None else _read_micros(found["time"])
    if found["time"] is not None and micros is None:
        raise MalformedBody(f"line {number} of the metrics text has an impossible time: {_excerpt(line)}")
    return found["name"], pairs, float(found["value"]), micros


def _read_pairs(text: str) -> tuple[tuple[str, str], ...] | None:
    """The label pairs sorted by key; None where `text` is no list of labels."""
    pairs = []
    end = 0
    while found := _PAIR.match(text, end):
        pairs.append((found[1], _ESCAPE.sub(_unescape, found[2][1:-1])))
        end = found.end()
    return tuple(sorted(pairs)) if not text[end:].strip() else None


_cached_pairs = lru_cache(maxsize=4096)(_read_pairs)


def _unescape(found: re.Match[str]) -> str:
    # An escape that the format does not know stands for itself, backslash included.
    return _ESCAPED.get(found[1], found[0])


def _read_micros(text: str) -> int | None:
    if _MILLIS.fullmatch(text):
        millis = int(text)
        return millis * 1000 if _MILLIS_MIN <= millis <= _MILLIS_MAX else None
    if _SECONDS.fullmatch(text):
        micros = int((Decimal(text) * 1_000_000).to_integral_value())
        return micros if _MILLIS_MIN * 1000 <= micros <= _MILLIS_MAX * 1000 else None
    return None


def _int32(value: int) -> pa.Int32Scalar:
    return pa.scalar(value, pa.int32())


def _int64(value: int) -> pa.Int64Scalar:
    return pa.scalar(value, pa.int64())


def _excerpt(text: str) -> str:
    return repr(text[:80])


_TypeLine: TypeAlias = tuple[int, str, str]
"""Row number, family, type."""


def _type_lines(lines: pa.StringArray, is_comment: pa.BooleanArray) -> Iterator[_TypeLine]:
    rows = pc.indices_nonzero(is_comment)
    comments = lines.take(rows).dictionary_encode()
    found = [_TYPE.fullmatch(comment) for comment in comments.dictionary.to_pylist()]
    for row, code in zip(rows.to_pylist(), comments.indices.to_pylist(), strict=True):
        if (match := found[code]) is not None:
            yield row, match[1], match[2]


def _type_column(samples: _Samples, type_lines: Iterator[_TypeLine], types: dict[str, str]) -> pa.StringArray:
    """The type of each sample; `types` holds those of earlier chunks and takes up those of this one."""
    known_before: dict[str, str | None] = {}
    changes: dict[str, list[tuple[int, str]]] = {}
    for row, family, declared in type_lines:
        if types.get(family) != declared:
            known_before.setdefault(family, types.get(family))
            changes.setdefault(family, []).append((row, declared))
            types[family] = declared
    if len(types) > _FAMILIES_MAX:
        raise BodyTooLarge(f"the metrics text declares more than {_FAMILIES_MAX} families")

    def changes_before(family: str, row: int) -> int:
        return bisect_left(changes.get(family, ()), (row, ""))

    def type_at(family: str, row: int) -> str | None:
        if family not in changes:
            return types.get(family)
        past = changes_before(family, row)
        return changes[family][past - 1][1] if past else known_before[family]

    names = samples.name.dictionary_encode()
    distinct: list[str] = names.dictionary.to_pylist()
    if not changes:
        return pa.array([_sample_type(name, 0, type_at) for name in distinct], pa.string()).take(
            names.indices
        )
    spans = pa.table({"name": names.indices, "row": samples.rows}).group_by("name", use_threads=False)
    settled: dict[str, str | None] = {}
    for span in spans.aggregate([("row", "min_max")]).to_pylist():
        name, rows = distinct[span["name"]], span["row_min_max"]
        first, last = rows["min"], rows["max"]
        if all(changes_before(family, first) == changes_before(family, last) for family in _families(name)):
            settled[name] = _sample_type(name, first, type_at)
    if len(settled) == len(distinct):
        return pa.array([settled[name] for name in distinct], pa.string()).take(names.indices)
    return pa.array(
        [
            settled[name] if name in settled else _sample_type(name, row, type_at)
            for name, row in zip(samples.name.to_pylist(), samples.rows.to_pylist(), strict=True)
        ],
        pa.string(),
    )


def _families(name: str) -> tuple[str, ...]:
    base, mark, suffix = name.rpartition("_")
    return (name, base) if base and mark + suffix in _SUFFIX_TYPES else (name,)


def _sample_type(name: str, row: int, type_at: Callable[[str, int], str | None]) -> str | None:
    """What the name itself was declared to be; else its family's type, if that type has such samples."""
    declared = type_at(name, row)
    families = _families(name)
    if declared is not None or len(families) == 1:
        return declared
    declared = type_at(families[1], row)
    return declared if declared in _SUFFIX_TYPES[name[len(families[1]) :]] else None
