"""JSON bodies → one record batch, without Python objects where the shape allows it, exactly where not.

Two paths give equal batches. The fast one hands whole pages to pyarrow's reader under an explicit schema that
refuses anything unexpected. What it refuses, and what it cannot represent (open maps, free-form JSON, values that
must be dropped or hashed), goes through orjson value by value, where nothing can vanish unseen: unknown keys
become columns or rescued data, duplicate keys are refused, long numbers keep all their digits.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from decimal import Decimal
from operator import itemgetter

import msgspec
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from extractor.drift import Drift, misfit, words
from extractor.endpoint import ColumnType, ListType, MapType, Scalar, StructType
from extractor.errors import BodyTooLarge, DriftRefused, MalformedBody
from extractor.schema import (
    MISSING,
    NANOS,
    REDACTED,
    SECRET_VALUE,
    Field,
    TableSchema,
    arrow_type,
    cast_column,
    fit,
    infer_type,
    is_castable,
    is_secret_name,
    is_secret_value,
    json_text,
    read_type,
)

__all__ = ("Decoded", "Envelope", "decode_rows", "open_body", "open_lines")

_Members = dict[str, msgspec.Raw]

# An unpaired surrogate is no text; a number this long may not fit a double.
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_FINE_TIME = re.compile(r"(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d\.\d{6})(\d{1,3})(Z|[+-]\d\d:\d\d)?", re.ASCII)
_PAGING_NAME = re.compile(
    r"count|page|next|prev|total|limit|offset|cursor|token|meta|links|has_?more|status", re.I
)

# Maps with more keys than this are open in earnest.
_MAP_KEYS = 64
# Keys that were only ever null: of a table with more of them, further ones are as any new key.
_NULL_KEYS = 256
_DRIFTS_TOLD = 3
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
# A number of up to 17 digits is what a double prints as.
_DOUBLE_DIGITS = 17
# One of more has a point or an exponent beside its digits, or is an integer, whose size tells.
_LONG_NUMBER = b"0" * (_DOUBLE_DIGITS + 2)
_AS_ZEROS = bytes(ord("0") if character in b"0123456789.eE" else ord(" ") for character in range(256))
_LONGEST_PREFIX = 400
_TINIEST = 1e-99
_TINY_NUMBER = r"[\[,:\s]-?[0-9.]+[eE]-[0-9]{3}"
_NUMBER = re.compile(rb"-?([0-9.]+(?:[eE][-+]?[0-9]+)?)")
_MICROS_LENGTH = len("2026-01-09T00:31:43.123456")
# Arrow looks up the power of ten of a decimal's digits in a table, and beyond its end where they are too many: that
# ends the process (`1e-9999999`). Texts count, as they may be decimals; so does what may hide a character of one.
_LONG_FRACTION = r"\.[0-9]{38}"
_FINE_EXPONENT = r'["\[,:\s][-+]?[0-9.]+[eE]-[0-9]{2,}["\s,\]}]'
_ESCAPED_CHARACTER = r"\\u00[2-7]"
# What hides a pair from a count of quotes before colons.
_HIDDEN_PAIR = re.compile(rb'"[ \t\r\n]+:|\\u00(?:22|3[aA])')
_DECIMAL_END = Decimal(10) ** 26
_KINDS: Mapping[str, type] = {
    **dict.fromkeys(("string", "timestamp", "timestamp_naive"), str),
    **dict.fromkeys(("int64", "epoch"), int),
    "float64": float,
    "bool": bool,
}
_ONE = pa.scalar(1, pa.int32())
_FIRST_OFFSET = pa.repeat(pa.scalar(0, pa.int32()), 1)


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """A body taken apart: its rows as the JSON array that they are, and what the body says of its paging.

    `rows` may be a view of the body. `facts` maps each JSON pointer that was asked for, and found, to its value.
    """

    rows: bytes | memoryview
    facts: Mapping[str, object]


class Decoded(msgspec.Struct, frozen=True, kw_only=True):
    """The rows of one or more pages, and what was noticed on the way.

    `lengths` counts the rows of each page; `schema` is the one to use from now on; `drift` says what
    was new, `rescued` counts the values that fitted no column.
    """

    batch: pa.RecordBatch
    schema: TableSchema
    lengths: tuple[int, ...]
    drift: tuple[Drift, ...] = ()
    rescued: int = 0
    is_fast: bool = False


# --- the envelope -------------------------------------------------------------------------------------------


def open_body(
    body: bytes,
    *,
    records: str,
    columns: frozenset[str],
    key: frozenset[str] = frozenset(),
    pointers: Iterable[str] = (),
) -> Envelope:
    """Find the rows in a body and check that all of it is JSON.

    `records` is a JSON pointer to the rows; where sources disagree about an envelope, a bare array, an object with
    one array beside no known column, a single object, and null (no rows) are all understood. A single object that
    has nothing of the `key` is no row: many servers say so that something went wrong.

    Raises:
        MalformedBody: the body is no JSON, or holds no rows where they should be.
    """
    body = body.removeprefix(b"\xef\xbb\xbf").strip(b" \t\r\n")
    _check_text(body)
    try:
        if body.startswith(b"{"):  # what is taken apart is checked on the way
            return _open_object(body, records, columns, key, pointers)
        msgspec.json.decode(body, type=msgspec.Raw)
        if body.startswith(b"["):
            return Envelope(rows=body, facts={})
        if body == b"null":
            return Envelope(rows=b"[]", facts={})
    except (ValueError, RecursionError) as error:
        raise MalformedBody(f"the body is no JSON ({_reason(error)}); it begins {describe(body)}") from error
    raise MalformedBody(f"the body is neither an array nor an object; it begins {describe(body)}")


def open_lines(body: bytes) -> Envelope:
    """Newline-delimited JSON as an envelope."""
    lines = [line for line in body.removeprefix(b"\xef\xbb\xbf").splitlines() if line.strip()]
    return open_body(b"[" + b",".join(lines) + b"]", records="", columns=frozenset())


def describe(body: bytes) -> str:
    """The start of a body for people: at most 60 characters, without anything in the shape of a key."""
    text = body[:60].decode("utf-8", "replace")
    return repr("…" if is_secret_value(body[:4096].decode("utf-8", "replace")) else text)


def _open_object(
    body: bytes, records: str, columns: frozenset[str], key: frozenset[str], pointers: Iterable[str]
) -> Envelope:
    members = _members(body)
    facts = {pointer: value for pointer in pointers if (value := _follow(members, pointer)) is not MISSING}
    if records:
        found = _raw_at(members, records)
        if found is None and not columns.intersection(members):
            found = _only_array(members)
        if found is None:
            raise MalformedBody(f"the body has no {records}; it begins {describe(body)}")
        return Envelope(rows=_as_array(found, records), facts=facts)
    only = _only_array(members) if _is_envelope(members, columns) else None
    if only is not None:
        return Envelope(rows=only, facts=facts)
    if members and key and not key.intersection(members):
        names = " or ".join(sorted(key))
        raise MalformedBody(
            f"the body is one object without {names}, the key of a row; it begins {describe(body)}"
        )
    return Envelope(rows=b"[" + body + b"]" if members else b"[]", facts=facts)


def _is_envelope(members: _Members, columns: frozenset[str]) -> bool:
    """True for an object that wraps rows: no known column in it, and beside one array only what tells of paging."""
    if columns:
        return not columns.intersection(members)
    return all(_first(raw) == b"[" or _PAGING_NAME.search(name) for name, raw in members.items())


def _members(body: bytes) -> _Members:
    members = msgspec.json.decode(body, type=_Members)
    # Of a key that stands twice the decoder keeps one: the lengths then do not add up.
    length = sum(len(orjson.dumps(key)) + memoryview(raw).nbytes + 2 for key, raw in members.items())
    if length + 1 != len(body) and members:
        json.loads(body, object_pairs_hook=_refuse_duplicates)
    return members


def _raw_at(members: _Members, pointer: str) -> memoryview | None:
    *parents, last = pointer.removeprefix("/").split("/")
    for name in parents:
        raw = members.get(name)
        if raw is None or _first(raw) != b"{":
            return None
        members = msgspec.json.decode(raw, type=_Members)
    found = members.get(last)
    return None if found is None else memoryview(found)


def _follow(members: _Members, pointer: str) -> object:
    raw = _raw_at(members, pointer)
    return MISSING if raw is None else orjson.loads(raw)


def _only_array(members: _Members) -> memoryview | None:
    arrays = [memoryview(raw) for raw in members.values() if _first(raw) == b"["]
    return arrays[0] if len(arrays) == 1 else None


def _as_array(raw: memoryview, records: str) -> bytes | memoryview:
    match _first(raw):
        case b"[":
            return raw
        case b"{":
            return b"[" + raw + b"]"
        case b"n":
            return b"[]"
        case _:
            raise MalformedBody(f"{records} holds no rows but {describe(bytes(raw[:4096]))}")


def _first(raw: msgspec.Raw | memoryview) -> bytes:
    """The character with which a value begins."""
    return bytes(memoryview(raw)[:1])


def _check_text(body: bytes) -> None:
    if body.isascii():
        return
    try:
        body.decode()
    except UnicodeDecodeError as error:
        raise MalformedBody(
            f"the body is not UTF-8 at byte {error.start}; it begins {describe(body)}"
        ) from error


def _reason(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


# --- rows ---------------------------------------------------------------------------------------------------


def decode_rows(pages: Sequence[bytes | memoryview], schema: TableSchema, *, depth: int = 64) -> Decoded:
    """Decode the arrays of rows of one or more pages under `schema`; nothing is dropped unseen.

    Each page is a JSON array that `open_body` has checked. The batch has the columns of the returned schema and
    `_rescued_data`.

    Raises:
        MalformedBody: a row is no object, or holds a key twice.
        BodyTooLarge: a value is nested deeper than `depth`.
        DriftRefused: an unknown key or a value that does not fit, where the policy is "fail".
    """
    fast = _decode_fast(pages, schema)
    if fast is None and (learnt := _learn_keys_in(pages, schema)) is not schema:
        fast = _decode_fast(pages, learnt)
    if fast is not None:
        return fast
    whole = [bytes(page) for page in pages]
    parsed = [_parse(page) for page in whole]
    rows = [row for page in parsed for row in page]
    _check_rows(rows)
    if any(_may_be_deeper(page, depth) for page in whole):
        _check_depth(rows, depth)
    return _decode_exactly(rows, schema, lengths=tuple(map(len, parsed)))


class _Reading(msgspec.Struct, frozen=True, kw_only=True):
    """What pyarrow's reader is told of a schema, and what must be looked at in what it gives."""

    types: Mapping[str, pa.DataType]
    explicit: pa.Schema
    columns: Mapping[str, Field]
    """The fields that it reads, by key as their types."""
    target: pa.Schema
    has_doubles: bool
    has_decimals: bool


def _explicit(types: Mapping[str, pa.DataType]) -> pa.Schema:
    """The schema of a page: its rows as a list."""
    return pa.schema([("data", pa.list_(pa.struct(list(types.items()))))])


@functools.lru_cache(maxsize=1024)
def _reading(schema: TableSchema, *, is_partial: bool = False) -> _Reading | None:
    """How to read a table the fast way, or in part, of rows that orjson writes: lists, objects and decimals.

    None where that cannot be.
    """
    if not is_partial and (not schema.is_pinned or schema.drops or schema.hashes):
        return None
    nanos = schema.nanos
    fields = {field.source: field for field in schema.live if field.name not in nanos}
    types = {name: _fast_type(field, schema) for name, field in fields.items()}
    if is_partial:
        types = {
            name: type_
            for name, type_ in types.items()
            if type_ is not None and _kind_of(fields[name].type) is None
        }
    if not types or None in types.values():
        return None
    return _Reading(
        types=types,
        explicit=_explicit(types),
        target=schema.arrow,
        columns={name: fields[name] for name in types},
        # What orjson writes has the digits that were read.
        has_doubles=not is_partial and any("float64" in _scalars(field.type) for field in fields.values()),
        has_decimals=any("decimal" in _scalars(fields[name].type) for name in types),
    )


def _decode_fast(pages: Sequence[bytes | memoryview], schema: TableSchema) -> Decoded | None:
    """The batch by pyarrow's reader, or None where the exact path must look."""
    reading = _reading(schema)
    if reading is None:
        return None
    pieces: list[bytes | memoryview] = []
    for page in pages:
        pieces += (b'{"data":', page, b"}\n")
    body = b"".join(pieces)
    # A search for one character takes a tenth of the time of any other.
    if b"\\" in body and _SURROGATE.search(body):
        return None
    read = _read_strictly(body, len(pages), reading)
    if read is None:
        return None
    columns, lengths = read
    batch = _assemble(columns, None, reading.target, sum(lengths))
    return Decoded(batch=batch, schema=schema, lengths=lengths, is_fast=True)


def _read_strictly(
    body: bytes, pages: int, reading: _Reading
) -> tuple[dict[str, pa.Array], tuple[int, ...]] | None:
    """The columns by name, and the rows of each page; None where anything is not as it is expected."""
    if reading.has_decimals and _may_exceed_powers(body):
        return None
    try:
        table = pyarrow.json.read_json(
            pa.BufferReader(body),
            read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=len(body) + 1),
            parse_options=pyarrow.json.ParseOptions(
                explicit_schema=reading.explicit, unexpected_field_behavior="error"
            ),
        )
    except pa.ArrowInvalid:
        return None
    if table.num_rows != pages:
        return None
    lists = table.column(0).combine_chunks()
    if isinstance(lists, pa.ChunkedArray):
        lists = lists.chunk(0)
    rows = lists.flatten()
    if rows.null_count:
        return None
    if reading.has_doubles and (_holds_long(body) or (_holds_tiny(rows) and _matches(body, _TINY_NUMBER))):
        return None
    columns = {}
    try:
        for field, column in zip(reading.columns.values(), rows.flatten(), strict=True):
            if _is_beyond(column) or (field.is_inferred and _may_hold_secret(column)):
                return None
            columns[field.name] = _cast_fast(column, field.type)
    except pa.ArrowInvalid:
        return None
    return columns, tuple(lists.value_lengths().fill_null(0).to_pylist())


def _may_hold_secret(column: pa.Array) -> bool:
    """True where a column that no catalogue declares may hold a credential: it is looked at value by value."""
    return pa.types.is_string(column.type) and bool(
        pc.any(pc.match_substring_regex(column, SECRET_VALUE)).as_py()
    )


def _may_exceed_powers(body: bytes) -> bool:
    """False if no decimal of the text surely has more digits after its point than Arrow has powers of ten."""
    # RE2 is the faster one, and frees the interpreter's lock.
    has_exponent = _matches(body, "e-") or (b"E" in body and b"E-" in body)
    return (
        (has_exponent and _matches(body, _FINE_EXPONENT))
        or _matches(body, _LONG_FRACTION)
        or (b"\\" in body and _matches(body, _ESCAPED_CHARACTER))
    )


def _is_beyond(column: pa.Array) -> bool:
    """True where the reader may have rounded a number, or taken one that its type cannot hold."""
    # It rounds integers from 2^53 on.
    ends: dict[int, float | Decimal] = {pa.lib.Type_DOUBLE: 2.0**53, pa.lib.Type_DECIMAL128: _DECIMAL_END}
    return not all(_is_within(leaf, ends[leaf.type.id]) for leaf in _leaves(column) if leaf.type.id in ends)


def _leaves(column: pa.Array) -> Iterator[pa.Array]:
    """The column itself, or what its lists and structs hold."""
    match column.type.id:
        case pa.lib.Type_LIST:
            yield from _leaves(column.values)
        case pa.lib.Type_STRUCT:
            for index in range(column.type.num_fields):
                yield from _leaves(column.field(index))
        case _:
            yield column


def _is_within(column: pa.Array, end: float | Decimal) -> bool:
    limits = pc.min_max(column)
    low, high = limits["min"].as_py(), limits["max"].as_py()
    return low is None or -end < low <= high < end


def _fast_type(field: Field, schema: TableSchema) -> pa.DataType | None:
    """What the reader is asked for: an open map is read as a struct of the keys that were seen before."""
    match field.type:
        case MapType(Scalar("string" | "int64" | "bool") as inner):
            keys = schema.map_keys.get(field.name)
            return pa.struct([(key, read_type(inner)) for key in keys]) if keys else None
        case _:
            return read_type(field.type)


def _cast_fast(column: pa.Array, column_type: ColumnType) -> pa.Array:
    if isinstance(column_type, MapType):
        return _struct_to_map(column, column_type)
    return cast_column(column, column_type)


def _struct_to_map(column: pa.StructArray, column_type: MapType) -> pa.MapArray:
    """Row by row the fields that are not null, as entries of a map."""
    rows, names = len(column), [field.name for field in column.type]
    # As numbers of the type that they meet: others would first be cast.
    length, width = pa.scalar(rows, pa.int32()), pa.scalar(len(names), pa.int32())
    place = pc.subtract(pc.cumulative_sum(pa.repeat(_ONE, rows * len(names))), _ONE)
    row = pc.divide(place, width)
    key = pc.subtract(place, pc.multiply(row, width))
    # From key by key to row by row.
    values = pa.concat_arrays(column.flatten()).take(pc.add(pc.multiply(key, length), row))
    is_there = values.is_valid()
    last_of_row = pc.subtract(pc.multiply(pc.add(place[:rows], _ONE), width), _ONE)
    ends = pc.cumulative_sum(is_there.cast(pa.int32())).take(last_of_row)
    return pa.MapArray.from_arrays(
        pa.concat_arrays([_FIRST_OFFSET, ends]),
        pa.array(names, pa.string()).take(key.filter(is_there)),
        values.drop_null(),
        type=arrow_type(column_type),
        mask=column.is_null() if column.null_count else None,
    )


def _assemble(
    columns: Mapping[str, pa.Array], rescued: list[str | None] | None, target: pa.Schema, length: int
) -> pa.RecordBatch:
    arrays = [
        columns[field.name] if field.name in columns else pa.nulls(length, field.type) for field in target
    ]
    arrays[-1] = pa.array(rescued, pa.string()) if rescued is not None else pa.nulls(length, pa.string())
    return pa.RecordBatch.from_arrays(arrays, schema=target)


# --- the exact path -----------------------------------------------------------------------------------------


def _parse(page: bytes) -> list[dict[str, object]]:
    """The rows of one page as Python values: no digit lost, no duplicate key passed over."""
    try:
        rows = orjson.loads(page)
    except orjson.JSONDecodeError:
        return _parse_slowly(page)
    try:
        kept = orjson.dumps(rows)
    except TypeError as error:  # orjson writes less deep than it reads
        if _may_be_inexact(page) or _may_hide_pairs(page):
            return _parse_slowly(page)
        raise BodyTooLarge("the body is nested too deeply") from error
    # What is written as it was read was read as what it says.
    if kept == page:
        return rows  # type: ignore[no-any-return]  # _check_rows looks at every row
    # orjson keeps the last of two equal keys. Both texts hold the same colons after quotes unless one was lost.
    if _may_be_inexact(page) or _may_hide_pairs(page) or page.count(b'":') != kept.count(b'":'):
        return _parse_slowly(page)
    return rows  # type: ignore[no-any-return]  # _check_rows looks at every row


def _may_hide_pairs(page: bytes) -> bool:
    """False if each pair of the page surely has a quote right before its colon, and no text has one."""
    # Compact JSON has none of these: searching for them first is many times faster.
    is_plain = not any(mark in page for mark in (b'" ', b'"\n', b'"\t', b'"\r', b"\\u00"))
    return not is_plain and bool(_HIDDEN_PAIR.search(page))


def _parse_slowly(page: bytes) -> list[dict[str, object]]:
    try:
        rows = json.loads(page, object_pairs_hook=_refuse_duplicates, parse_float=_exact_number)
    except RecursionError as error:
        raise BodyTooLarge("the body is nested too deeply") from error
    except ValueError as error:
        raise MalformedBody(f"the body is no JSON ({error})") from error
    if _SURROGATE.search(page):
        _refuse_surrogates(rows)
    return rows  # type: ignore[no-any-return]  # _check_rows looks at every row


def _holds_tiny(rows: pa.Array) -> bool:
    """True where a number may have been smaller than a double's least, and was read as nothing."""
    least = [pc.min(pc.abs(leaf)).as_py() for leaf in _leaves(rows) if leaf.type.id == pa.lib.Type_DOUBLE]
    return any(value is not None and value < _TINIEST for value in least)


def _holds_long(text: bytes) -> bool:
    """True if a number of the text has more digits than are kept of it."""
    # Few are long enough: that these are looked at one by one costs little.
    zeros = text.translate(_AS_ZEROS)
    place = zeros.find(_LONG_NUMBER)
    while place >= 0:
        if _is_inexact_at(text, place):
            return True
        end = zeros.find(b" ", place)
        place = zeros.find(_LONG_NUMBER, end) if end >= 0 else -1
    return False


def _is_inexact_at(text: bytes, place: int) -> bool:
    """True if the digits at a place belong to a number that is not read as what it says."""
    farthest = max(place - _LONGEST_PREFIX, 1)
    while text[place - 1] in b"0123456789.+-eE":
        place -= 1
        if place < farthest:
            return True  # whatever it is, it is to be looked at
    if text[place - 1] not in b"[,: \t\r\n":
        return False  # they stand in a text
    number = _NUMBER.match(text, place)
    return number is not None and not _is_exact(number[1])


def _matches(text: bytes, pattern: str) -> bool:
    """True if the pattern, of RE2, is found in the text."""
    offsets = pa.py_buffer(struct.pack("=2i", 0, len(text)))
    whole = pa.Array.from_buffers(pa.binary(), 1, [None, offsets, pa.py_buffer(text)])
    return bool(pc.match_substring_regex(whole, pattern)[0].as_py())


def _may_be_inexact(page: bytes) -> bool:
    """False if orjson surely reads each number of the page as what it says."""
    is_tiny = (b"e-" in page or b"E-" in page) and _matches(page, _TINY_NUMBER)
    return is_tiny or _holds_long(page)


def _is_exact(number: bytes) -> bool:
    """True for a number, without its sign, that is read as what it says."""
    if number.isdigit():
        return len(number) < 20 and int(number) < 2**63
    if number.replace(b".", b"", 1).lstrip(b"0").isdigit() and len(number.lstrip(b"0.")) <= _DOUBLE_DIGITS:
        return True  # without looking closer, as that takes long
    try:
        return isinstance(_exact_number(number.decode()), float)
    except (ArithmeticError, ValueError):
        return False  # it stands in a text


def _refuse_surrogates(rows: object) -> None:
    try:
        json.dumps(rows, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        raise MalformedBody("a text of the body holds half of a surrogate pair") from error


def _exact_number(text: str) -> float | Decimal:
    """A fraction as a double, or with all its digits where a double has no room for them."""
    try:
        nearest, exact = float(text), Decimal(text)
    except ArithmeticError as error:
        raise ValueError("a number has an exponent of too many digits") from error
    is_doubles_own = len(exact.as_tuple().digits) <= _DOUBLE_DIGITS and nearest not in (
        0.0,
        math.inf,
        -math.inf,
    )
    return nearest if is_doubles_own or Decimal(repr(nearest)) == exact else exact


def _refuse_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]  # idiom
        raise MalformedBody(f"the key {twice!r} stands twice in one object")
    return members


def _check_rows(rows: Sequence[object]) -> None:
    if set(map(type, rows)) <= {dict}:
        return
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise MalformedBody(f"row {number} is no object but {type(row).__name__}")


def _may_be_deeper(page: bytes, depth: int) -> bool:
    """False if the page is surely not nested deeper: innermost pairs of brackets are taken away, level by level."""
    brackets = page.translate(None, _NO_BRACKETS)
    # The array of rows and the rows themselves are two levels more than a value of a row has.
    for _ in range(depth + 1):
        fewer = brackets.replace(b"{}", b"").replace(b"[]", b"")
        if len(fewer) == len(brackets):
            break
        brackets = fewer
    return bool(brackets)


def _check_depth(rows: Sequence[dict[str, object]], depth: int) -> None:
    for number, row in enumerate(rows):
        for value in row.values():
            if isinstance(value, dict | list) and _is_deeper(value, depth - 1):
                raise BodyTooLarge(f"row {number} is nested deeper than bounds.depth = {depth}")


def _is_deeper(value: dict[str, object] | list[object], depth: int) -> bool:
    if depth <= 0:
        return True
    items = value.values() if isinstance(value, dict) else value
    return any(isinstance(item, dict | list) and _is_deeper(item, depth - 1) for item in items)


def _decode_exactly(
    rows: list[dict[str, object]], schema: TableSchema, *, lengths: tuple[int, ...]
) -> Decoded:
    for path in schema.drops:
        _edit(rows, path, _forget)
    for path in schema.hashes:
        _edit(rows, path, _pseudonym)
    keys: set[str] = set().union(*rows)
    schema, drift = _grow(rows, keys, schema)
    schema, nanos = _split_nanos(rows, schema)
    schema = _learn_keys_of(rows, schema)
    again = _read_again(rows, schema)
    rest: dict[int, dict[str, object]] = {}
    columns: dict[str, pa.Array] = {}
    for field in schema.live:
        if field.name in schema.nanos:
            columns[field.name] = pa.array(nanos.get(field.name, [None] * len(rows)), pa.int64())
            continue
        if field.name in again:
            columns[field.name] = again[field.name]
            continue
        if field.source not in keys:
            columns[field.name] = pa.nulls(len(rows), arrow_type(field.type))
            continue
        values = _values_of(rows, field.source)
        if (built := _build_at_once(values, field)) is not None:
            columns[field.name] = built
            continue
        if field.is_inferred and _holds_secret(values):
            # Nobody said what this column is: credentials may come in it at any time.
            values = [_redacted(field.source, value) for value in values]
            redacted = sum(value == REDACTED for value in values)
            drift += (Drift(table=schema.table, column=field.source, kind="redacted", count=redacted),)
        column, misfits = _fit_column(values, field.type)
        columns[field.name] = column
        for index, left in misfits.items():
            rest.setdefault(index, {})[field.source] = left
        if misfits:
            left, is_all = list(misfits.values()), column.null_count == len(column)
            drift += (misfit(schema.table, field.source, field.type, left, is_all=is_all),)
    known = {field.source for field in schema.live} - schema.nanos
    if keys - known:
        drift += _rescue_unknown(rows, known, rest, schema)
    for index in rest:
        rest[index] = {key: _redacted(key, value) for key, value in rest[index].items()}
    if drift and schema.policy == "fail":
        said = "; ".join(words(found, is_refused=True) for found in drift[:_DRIFTS_TOLD])
        raise DriftRefused(f'{said}; refused, as run.schema = "fail"')
    rescued = (
        [json_text(rest[index]) if index in rest else None for index in range(len(rows))] if rest else None
    )
    batch = _assemble(columns, rescued, schema.arrow, len(rows))
    return Decoded(batch=batch, schema=schema, lengths=lengths, drift=drift, rescued=len(rest))


def _values_of(rows: Sequence[Mapping[str, object]], key: str) -> list[object]:
    """The values of a key row by row; None where a row has it not."""
    try:
        return list(map(itemgetter(key), rows))
    except KeyError:
        return [row.get(key) for row in rows]


def _grow(
    rows: Sequence[dict[str, object]], keys: Set[str], schema: TableSchema
) -> tuple[TableSchema, tuple[Drift, ...]]:
    """Make columns of the keys that have none, as far as the policy and their names allow.

    A key that was only ever null gets its first column under any policy, and that is no drift.
    """
    known = {field.source for field in schema.fields}
    if keys <= known:
        return schema, ()
    unknown = [key for key in dict.fromkeys(key for row in rows for key in row) if key not in known]
    added: dict[str, ColumnType] = {}
    nulls = set(schema.null_keys)
    may_all = not schema.is_pinned or schema.policy == "evolve"
    for key in unknown:
        values = _values_of(rows, key)
        inferred = infer_type(values)
        if inferred is None:
            nulls.add(key)
        elif (
            (may_all or key in schema.null_keys)
            and schema.grow(added).may_add(key)
            and not _holds_secret(values)
        ):
            added[key] = inferred
    if nulls != schema.null_keys and len(nulls) <= _NULL_KEYS:
        schema = replace(schema, null_keys=frozenset(nulls))
    if not added:
        return schema, ()
    drift = tuple(
        Drift(table=schema.table, column=key, kind="column", type=column_type)
        for key, column_type in added.items()
        if schema.is_pinned and key not in schema.null_keys
    )
    return schema.grow(added), drift


def _read_again(rows: Sequence[dict[str, object]], schema: TableSchema) -> Mapping[str, pa.Array]:
    """The lists, objects and decimals that pyarrow's reader can represent and takes, read from what orjson writes.

    That is cheaper than to build them from Python objects, and stricter.
    """
    whole = _reading(schema, is_partial=True)
    if whole is None or not rows:
        return {}
    columns = _read_columns(rows, whole)
    if columns is not None:
        return columns
    found: dict[str, pa.Array] = {}
    for name, field in whole.columns.items():
        types = {name: whole.types[name]}
        alone = msgspec.structs.replace(
            whole,
            types=types,
            explicit=_explicit(types),
            columns={name: field},
            has_decimals="decimal" in _scalars(field.type),
        )
        found |= _read_columns(rows, alone) or {}
    return found


def _read_columns(rows: Sequence[dict[str, object]], reading: _Reading) -> dict[str, pa.Array] | None:
    wanted = reading.columns.keys()
    parts = [{name: row[name] for name in wanted if name in row} for row in rows]
    try:
        body = b'{"data":' + orjson.dumps(parts) + b"}"
    except TypeError:  # a number that has more digits than orjson writes
        return None
    read = _read_strictly(body, 1, reading)
    return read[0] if read is not None else None


@functools.lru_cache(maxsize=1024)
def _is_representable(schema: TableSchema) -> bool:
    """True if a table can be read the fast way once the keys of its open maps are known."""
    maps = {field.name: ("key",) for field in schema.live if isinstance(field.type, MapType)}
    return _reading(replace(schema, map_keys=maps)) is not None


@functools.lru_cache(maxsize=1024)
def _map_decoder(sources: tuple[str, ...]) -> msgspec.json.Decoder[list[msgspec.Struct]]:
    """Reads rows of which only open maps matter, and of these only the keys."""
    names = [f"map{number}" for number in range(len(sources))]
    row = msgspec.defstruct(
        "Row",
        [(name, dict[str, msgspec.Raw] | None, None) for name in names],
        rename=dict(zip(names, sources, strict=True)),
    )
    return msgspec.json.Decoder(list[row])  # type: ignore[valid-type]  # a type made for these keys


def _learn_keys_in(pages: Sequence[bytes | memoryview], schema: TableSchema) -> TableSchema:
    """The schema with the keys that open maps have in these pages; the schema itself where nothing is new."""
    maps = [field for field in schema.live if isinstance(field.type, MapType)]
    if not maps or not _is_representable(schema):
        return schema
    decoder = _map_decoder(tuple(field.source for field in maps))
    found: list[dict[str, object]] = []
    try:
        for page in pages:
            for row in decoder.decode(page):
                values = msgspec.structs.astuple(row)
                found.append({field.source: value for field, value in zip(maps, values, strict=True)})
    except (msgspec.DecodeError, RecursionError):
        return schema
    return _learn_keys_of(found, schema)


def _learn_keys_of(rows: Sequence[dict[str, object]], schema: TableSchema) -> TableSchema:
    """The schema with the keys that open maps have in these rows; a map with too many is not to be read."""
    learnt = dict(schema.map_keys)
    for field in schema.live:
        if isinstance(field.type, MapType) and isinstance(field.type.value, Scalar):
            values = _values_of(rows, field.source)
            keys = dict.fromkeys(learnt.get(field.name, ()))
            for value in values:
                if isinstance(value, dict):
                    keys.update(value)
            if len(keys) <= _MAP_KEYS:
                learnt[field.name] = tuple(sorted(keys))  # in one order, however the pages came
            else:
                learnt.pop(field.name, None)
    return schema if learnt == schema.map_keys else replace(schema, map_keys=learnt)


def _split_nanos(
    rows: Sequence[dict[str, object]], schema: TableSchema
) -> tuple[TableSchema, dict[str, list[int | None]]]:
    """Cut times to microseconds; what was finer (0 to 999) is for a column `name_nanos` of its own."""
    found: dict[str, list[int | None]] = {}
    for field in schema.live:
        name = f"{field.name}{NANOS}"
        if name not in schema.nanos:
            continue
        values = _values_of(rows, field.source)
        if not any(isinstance(value, str) and len(value) > _MICROS_LENGTH for value in values):
            continue
        for index, (row, value) in enumerate(zip(rows, values, strict=True)):
            fine = _FINE_TIME.fullmatch(value) if isinstance(value, str) else None
            if fine is None or not is_castable(fine[1] + (fine[3] or ""), field.type):
                continue
            row[field.source] = fine[1] + (fine[3] or "")
            if nanos := int(fine[2].ljust(3, "0")):
                found.setdefault(name, [None] * len(rows))[index] = nanos
    missing = found.keys() - {field.name for field in schema.fields}
    added: dict[str, ColumnType] = {name: Scalar("int64") for name in found if name in missing}
    return (schema.grow(added) if added else schema), found


def _rescue_unknown(
    rows: Sequence[dict[str, object]],
    known: set[str],
    rest: dict[int, dict[str, object]],
    schema: TableSchema,
) -> tuple[Drift, ...]:
    found: dict[str, list[object]] = {}
    redacted: dict[str, int] = {}
    for index, row in enumerate(rows):
        for key in row.keys() - known:
            value = row[key]
            if value is None:
                continue
            name = _shown(key)
            if name == REDACTED or is_secret_name(key) or _holds_secret([value]):
                value = REDACTED
                redacted[name] = redacted.get(name, 0) + 1
            else:
                found.setdefault(name, []).append(value)
            rest.setdefault(index, {})[name] = value
    drift = [
        Drift(
            table=schema.table,
            column=key,
            kind="unknown",
            count=len(values),
            type=infer_type(values) if schema.may_add(key) else None,
        )
        for key, values in found.items()
    ]
    drift += [
        Drift(table=schema.table, column=key, kind="redacted", count=count) for key, count in redacted.items()
    ]
    return tuple(drift)


def _redacted(key: str, value: object) -> object:
    """A rescued value without what looks like a credential, at any depth."""
    if isinstance(value, dict):
        return {
            _shown(name): REDACTED if is_secret_name(name) and item is not None else _redacted(name, item)
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [_redacted(key, item) for item in value]
    return REDACTED if isinstance(value, str) and is_secret_value(value) else value


def _shown(key: str) -> str:
    """A key of the answer as it may be kept."""
    return REDACTED if is_secret_value(key) else key


def _holds_secret(values: Iterable[object]) -> bool:
    for value in values:
        match value:
            case str() if is_secret_value(value):
                return True
            case dict() if (
                any(is_secret_name(key) for key in value)
                or _holds_secret(value)
                or _holds_secret(value.values())
            ):
                return True
            case list() if _holds_secret(value):
                return True
            case _:
                pass
    return False


def _kind_of(column_type: ColumnType) -> type | None:
    """The Python type of which all values, and no others, go into such a column as they are."""
    return _KINDS.get(column_type.name) if isinstance(column_type, Scalar) else None


def _build_at_once(values: list[object], field: Field) -> pa.Array | None:
    """The column if all values are of the one kind that it takes as it is; None where they must be looked at."""
    kind = _kind_of(field.type)
    if kind is None or not set(map(type, values)) <= {kind, type(None)}:
        return None
    try:
        column = pa.array(values, read_type(field.type))
        if field.is_inferred and _may_hold_secret(column):
            return None
        return cast_column(column, field.type)
    except (pa.ArrowInvalid, OverflowError):
        return None


def _fit_column(values: list[object], column_type: ColumnType) -> tuple[pa.Array, dict[int, object]]:
    """One column, and by row what did not fit it."""
    if not any(value is not None for value in values):
        return pa.nulls(len(values), arrow_type(column_type)), {}
    fitted, misfits = [], {}
    for index, value in enumerate(values):
        kept, left = fit(value, column_type)
        fitted.append(kept)
        if left is not MISSING:
            misfits[index] = left
    return cast_column(pa.array(fitted, _build_type(column_type)), column_type), misfits


def _scalars(column_type: ColumnType) -> set[str]:
    match column_type:
        case Scalar(name):
            return {name}
        case ListType(inner) | MapType(inner):
            return _scalars(inner)
        case StructType(fields):
            return set().union(*(_scalars(inner) for _, inner in fields))


def _build_type(column_type: ColumnType) -> pa.DataType:
    """What `pa.array` builds from fitted values, before times are cast."""
    match column_type:
        case Scalar("timestamp" | "timestamp_naive"):
            return pa.string()
        case Scalar("epoch"):
            return pa.int64()
        case Scalar():
            return arrow_type(column_type)
        case ListType(item):
            return pa.list_(_build_type(item))
        case StructType(fields):
            return pa.struct([(name, _build_type(inner)) for name, inner in fields])
        case MapType(value):
            return pa.map_(pa.string(), _build_type(value))


# --- values that are not kept as they are -------------------------------------------------------------------


def _forget(value: object) -> object:
    return MISSING


def _pseudonym(value: object) -> object:
    """The same text always gives the same pseudonym, so that joins still work."""
    if value is None:
        return None
    text = value if isinstance(value, str) else json_text(value)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _edit(rows: Iterable[object], path: str, change: Callable[[object], object]) -> None:
    """Apply `change` to the values at `path` (`a.b`, `list[].c`) of each row, in place."""
    name, _, rest = path.partition(".")
    through_list = name.endswith("[]")
    name = name.removesuffix("[]")
    for row in rows:
        if not isinstance(row, dict) or name not in row:
            continue
        value = row[name]
        if rest:
            _edit(value if through_list and isinstance(value, list) else [value], rest, change)
        elif through_list and isinstance(value, list):
            row[name] = [kept for item in value if (kept := change(item)) is not MISSING]
        else:
            kept = change(value)
            if kept is MISSING:
                del row[name]
            else:
                row[name] = kept
