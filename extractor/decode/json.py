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
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

import msgspec
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from extractor.endpoint import ColumnType, ListType, MapType, Scalar, StructType
from extractor.errors import BodyTooLarge, DriftRefused, MalformedBody
from extractor.schema import (
    MISSING,
    NANOS,
    REDACTED,
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
    toml_hint,
)

__all__ = ("Decoded", "Envelope", "decode_rows", "open_body", "open_lines")

_Members = dict[str, msgspec.Raw]

# An unpaired surrogate is no text; a number this long may not fit a double.
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_FINE_TIME = re.compile(r"(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d\.\d{6})(\d{1,3})(Z|[+-]\d\d:\d\d)?", re.ASCII)
# What may be a credential in a column that no catalogue declares is looked at value by value.
_SUSPECT = re.compile(
    rb"skysql\.|eyJ[A-Za-z0-9_-]{8}|PRIVATE KEY-----|(?i:passw|passphrase|pwd|secret|token|api_?key|access_?key"
    rb"|private_?key|credential|bearer|jwt)"
)
_PAGING_NAME = re.compile(
    r"count|page|next|prev|total|limit|offset|cursor|token|meta|links|has_?more|status", re.I
)

# Maps with more keys than this are open in earnest.
_MAP_KEYS = 64
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
# What a double may not hold: many digits, or an exponent beyond its least. (A UUID has no such piece.)
_LONG_NUMBER = re.compile(
    rb"-?[0-9][0-9.]{15,}(?:[eE][-+]?[0-9]+)?|-?[0-9][0-9.]*[eE]-[0-9]{3,}(?![0-9A-Za-z-])"
)
# What hides a pair from a count of quotes before colons.
_HIDDEN_PAIR = re.compile(rb'"[ \t\r\n]+:|\\u00(?:22|3[aA])')
_DECIMAL_END = Decimal(10) ** 26


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """A body taken apart: its rows as the JSON array that they are, and what the body says of its paging.

    `facts` maps each JSON pointer that was asked for, and found, to its value.
    """

    rows: bytes
    facts: Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """The rows of one or more pages, and what was noticed on the way.

    `lengths` counts the rows of each page; `schema` is the one to use from now on; `drift` says in words what
    was new, `rescued` counts the values that fitted no column.
    """

    batch: pa.RecordBatch
    schema: TableSchema
    lengths: tuple[int, ...]
    drift: tuple[str, ...] = ()
    rescued: int = 0
    is_fast: bool = False


# --- the envelope -------------------------------------------------------------------------------------------


def open_body(
    body: bytes, *, records: str, columns: frozenset[str], pointers: Iterable[str] = ()
) -> Envelope:
    """Find the rows in a body and check that all of it is JSON.

    `records` is a JSON pointer to the rows; where sources disagree about an envelope, a bare array, an object with
    one array beside no known column, a single object, and null (no rows) are all understood.

    Raises:
        MalformedBody: the body is no JSON, or holds no rows where they should be.
    """
    body = body.removeprefix(b"\xef\xbb\xbf").strip(b" \t\r\n")
    _check_text(body)
    try:
        whole = msgspec.json.decode(body, type=msgspec.Raw)
        match body[:1]:
            case b"[":
                return Envelope(rows=body, facts={})
            case b"{":
                return _open_object(body, records, columns, pointers)
            case _ if bytes(whole) == b"null":
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


def _open_object(body: bytes, records: str, columns: frozenset[str], pointers: Iterable[str]) -> Envelope:
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
    return Envelope(rows=b"[" + body + b"]" if members else b"[]", facts=facts)


def _is_envelope(members: _Members, columns: frozenset[str]) -> bool:
    """True for an object that wraps rows: no known column in it, and beside one array only what tells of paging."""
    if columns:
        return not columns.intersection(members)
    return all(bytes(raw).startswith(b"[") or _PAGING_NAME.search(name) for name, raw in members.items())


def _members(body: bytes) -> _Members:
    members = msgspec.json.decode(body, type=_Members)
    # Of a key that stands twice the decoder keeps one: the lengths then do not add up.
    length = sum(len(orjson.dumps(key)) + len(bytes(raw)) + 2 for key, raw in members.items())
    if length + 1 != len(body) and members:
        json.loads(body, object_pairs_hook=_refuse_duplicates)
    return members


def _raw_at(members: _Members, pointer: str) -> bytes | None:
    *parents, last = pointer.removeprefix("/").split("/")
    for name in parents:
        raw = members.get(name)
        if raw is None or not bytes(raw).lstrip().startswith(b"{"):
            return None
        members = msgspec.json.decode(raw, type=_Members)
    found = members.get(last)
    return None if found is None else bytes(found)


def _follow(members: _Members, pointer: str) -> object:
    raw = _raw_at(members, pointer)
    return MISSING if raw is None else orjson.loads(raw)


def _only_array(members: _Members) -> bytes | None:
    arrays = [bytes(raw) for raw in members.values() if bytes(raw).startswith(b"[")]
    return arrays[0] if len(arrays) == 1 else None


def _as_array(raw: bytes, records: str) -> bytes:
    match raw.lstrip()[:1]:
        case b"[":
            return raw
        case b"{":
            return b"[" + raw + b"]"
        case b"n":
            return b"[]"
        case _:
            raise MalformedBody(f"{records} holds no rows but {describe(raw)}")


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


def decode_rows(pages: Sequence[bytes], schema: TableSchema, *, depth: int = 64) -> Decoded:
    """Decode the arrays of rows of one or more pages under `schema`; nothing is dropped unseen.

    Each page is a JSON array that `open_body` has checked. The batch has the columns of the returned schema and
    `_rescued_data`.

    Raises:
        MalformedBody: a row is no object, or holds a key twice.
        BodyTooLarge: a value is nested deeper than `depth`.
        DriftRefused: an unknown key or a value that does not fit, where the policy is "fail".
    """
    fast = _decode_fast(pages, schema)
    if fast is not None:
        return fast
    parsed = [_parse(page) for page in pages]
    rows = [row for page in parsed for row in page]
    _check_rows(rows)
    if any(_may_be_deeper(page, depth) for page in pages):
        _check_depth(rows, depth)
    return _decode_exactly(rows, schema, lengths=tuple(map(len, parsed)))


def _decode_fast(pages: Sequence[bytes], schema: TableSchema) -> Decoded | None:
    """The batch by pyarrow's reader, or None where the exact path must look."""
    if not schema.is_pinned or schema.drops or schema.hashes:
        return None
    if any(field.is_inferred for field in schema.live) and any(map(_SUSPECT.search, pages)):
        return None
    nanos = schema.nanos
    fields = [field for field in schema.live if field.name not in nanos]
    reads = {field.source: _fast_type(field, schema) for field in fields}
    if not reads or None in reads.values() or any(_SURROGATE.search(page) for page in pages):
        return None
    body = b"\n".join(b'{"data":' + page + b"}" for page in pages)
    explicit = pa.schema([("data", pa.list_(pa.struct(list(reads.items()))))])
    try:
        table = pyarrow.json.read_json(
            pa.BufferReader(body),
            read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=len(body) + 1),
            parse_options=pyarrow.json.ParseOptions(
                explicit_schema=explicit, unexpected_field_behavior="error"
            ),
        )
    except pa.ArrowInvalid:
        return None
    if table.num_rows != len(pages):
        return None
    lists = table.column(0).combine_chunks()
    if isinstance(lists, pa.ChunkedArray):
        lists = lists.chunk(0)
    rows = lists.flatten()
    if rows.null_count:
        return None
    try:
        if any(_is_beyond(rows.field(field.source), pages) for field in fields):
            return None
        columns = {field.name: _cast_fast(rows.field(field.source), field.type) for field in fields}
    except pa.ArrowInvalid:
        return None
    lengths = tuple(lists.value_lengths().fill_null(0).to_pylist())
    return Decoded(
        batch=_assemble(columns, None, schema, len(rows)), schema=schema, lengths=lengths, is_fast=True
    )


def _is_beyond(column: pa.Array, pages: Sequence[bytes]) -> bool:
    """True where the reader may have rounded a number, or taken one that its type cannot hold."""
    match column.type.id:
        case pa.lib.Type_LIST:
            return _is_beyond(column.values, pages)
        case pa.lib.Type_STRUCT:
            return any(_is_beyond(column.field(index), pages) for index in range(column.type.num_fields))
        case pa.lib.Type_DOUBLE:
            # It rounds integers from 2^53 on, and fractions of more digits than a double has.
            return not _is_within(column, 2.0**53) or any(map(_has_inexact, pages))
        case pa.lib.Type_DECIMAL128:
            return not _is_within(column, _DECIMAL_END)
        case _:
            return False


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
    names = [field.name for field in column.type]
    rows = len(column)
    fields = column.flatten()
    order = _row_major(rows, len(names))
    values = pa.concat_arrays(fields).take(order)
    keys = pa.concat_arrays([pa.repeat(pa.scalar(name), rows) for name in names]).take(order)
    is_there = values.is_valid()
    counts = functools.reduce(pc.add, (field.is_valid().cast(pa.int32()) for field in fields))
    ends = pc.cumulative_sum(counts)
    offsets = pa.concat_arrays([pa.array([0], pa.int32()), ends])
    mask = column.is_null() if column.null_count else None
    return pa.MapArray.from_arrays(
        offsets, keys.filter(is_there), values.filter(is_there), type=arrow_type(column_type), mask=mask
    )


@functools.lru_cache(maxsize=64)
def _row_major(rows: int, fields: int) -> pa.Array:
    """Positions that turn fields one after the other into rows one after the other."""
    return pa.array([field * rows + row for row in range(rows) for field in range(fields)], pa.int32())


def _assemble(
    columns: Mapping[str, pa.Array], rescued: list[str | None] | None, schema: TableSchema, length: int
) -> pa.RecordBatch:
    target = schema.arrow
    arrays = [
        columns[field.name] if field.name in columns else pa.nulls(length, field.type) for field in target
    ]
    arrays[-1] = pa.array(rescued, pa.string()) if rescued is not None else pa.nulls(length, pa.string())
    return pa.RecordBatch.from_arrays(arrays, schema=target)


# --- the exact path -----------------------------------------------------------------------------------------


def _parse(page: bytes) -> list[dict[str, object]]:
    """The rows of one page as Python values: no digit lost, no duplicate key passed over."""
    if _has_inexact(page) or _HIDDEN_PAIR.search(page):
        return _parse_slowly(page)
    try:
        rows = orjson.loads(page)
    except orjson.JSONDecodeError:
        return _parse_slowly(page)
    # orjson keeps the last of two equal keys. Both texts hold the same colons after quotes unless one was lost.
    try:
        kept = orjson.dumps(rows)
    except TypeError as error:  # orjson writes less deep than it reads
        raise BodyTooLarge("the body is nested too deeply") from error
    if page.count(b'":') != kept.count(b'":'):
        return _parse_slowly(page)
    return rows  # type: ignore[no-any-return]  # _check_rows looks at every row


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


def _has_inexact(page: bytes) -> bool:
    """True if orjson may read a number of the page as another one."""
    return any(not _is_exact(token) for token in set(_LONG_NUMBER.findall(page)))


def _is_exact(token: bytes) -> bool:
    text = token.decode()
    if text.removeprefix("-").isdigit():
        return -(2**63) <= int(text[:20]) < 2**63 and len(text) <= 20
    try:
        return Decimal(repr(float(text))) == Decimal(text)
    except (ArithmeticError, ValueError):
        return False  # it stands in a text


def _refuse_surrogates(rows: object) -> None:
    try:
        json.dumps(rows, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        raise MalformedBody("a text of the body holds half of a surrogate pair") from error


def _exact_number(text: str) -> float | Decimal:
    nearest, exact = float(text), Decimal(text)
    return nearest if Decimal(repr(nearest)) == exact else exact


def _refuse_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]  # idiom
        raise MalformedBody(f"the key {twice!r} stands twice in one object")
    return members


def _check_rows(rows: Sequence[object]) -> None:
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
    schema, drift = _grow(rows, schema)
    schema, nanos = _split_nanos(rows, schema)
    rest: dict[int, dict[str, object]] = {}
    columns: dict[str, pa.Array] = {}
    for field in schema.live:
        if field.name in schema.nanos:
            columns[field.name] = pa.array(nanos.get(field.name, [None] * len(rows)), pa.int64())
            continue
        values = [row.get(field.source) for row in rows]
        if field.is_inferred and _holds_secret(values):
            # Nobody said what this column is: credentials may come in it at any time.
            values = [_redacted(field.source, value) for value in values]
            drift += (f"{schema.table}.{field.source}: looks like a credential, redacted",)
        column, misfits = _fit_column(values, field.type)
        columns[field.name] = column
        for index, left in misfits.items():
            rest.setdefault(index, {})[field.source] = left
        if misfits:
            hint = toml_hint(schema.table, field.source, misfits.values())
            drift += (f"{schema.table}.{field.source}: {len(misfits)} values do not fit, rescued; {hint}",)
    schema = _learn_map_keys(columns, schema)
    known = {field.source for field in schema.live} - schema.nanos
    drift += _rescue_unknown(rows, known, rest, schema.table)
    if drift and schema.policy == "fail":
        raise DriftRefused(f'{drift[0]}; refused, as run.schema = "fail"')
    rescued = (
        [json_text(rest[index]) if index in rest else None for index in range(len(rows))] if rest else None
    )
    batch = _assemble(columns, rescued, schema, len(rows))
    return Decoded(batch=batch, schema=schema, lengths=lengths, drift=drift, rescued=len(rest))


def _grow(rows: Sequence[dict[str, object]], schema: TableSchema) -> tuple[TableSchema, tuple[str, ...]]:
    """Make columns of the keys that have none, as far as the policy and their names allow."""
    known = {field.source for field in schema.fields}
    unknown = [key for key in dict.fromkeys(key for row in rows for key in row) if key not in known]
    if not unknown or (schema.is_pinned and schema.policy != "evolve"):
        return schema, ()
    added: dict[str, ColumnType] = {}
    for key in unknown:
        values = [row.get(key) for row in rows]
        inferred = infer_type(values)
        if inferred is not None and schema.grow(added).may_add(key) and not _holds_secret(values):
            added[key] = inferred
    if not added:
        return schema, ()
    drift = tuple(f"{schema.table}.{key}: new column" for key in added) if schema.is_pinned else ()
    return schema.grow(added), drift


def _learn_map_keys(columns: Mapping[str, pa.Array], schema: TableSchema) -> TableSchema:
    """Remember the keys of open maps, so that the next pages may go the fast way; too many are not remembered."""
    learnt = dict(schema.map_keys)
    for field in schema.live:
        if isinstance(field.type, MapType) and isinstance(field.type.value, Scalar):
            keys = dict.fromkeys(
                [*learnt.get(field.name, ()), *pc.unique(columns[field.name].keys).to_pylist()]
            )
            if len(keys) <= _MAP_KEYS:
                learnt[field.name] = tuple(keys)
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
        for index, row in enumerate(rows):
            value = row.get(field.source)
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
    rows: Sequence[dict[str, object]], known: set[str], rest: dict[int, dict[str, object]], table: str
) -> tuple[str, ...]:
    counts: dict[str, int] = {}
    redacted: dict[str, int] = {}
    for index, row in enumerate(rows):
        for key in row.keys() - known:
            value = row[key]
            if value is None:
                continue
            if is_secret_name(key) or _holds_secret([value]):
                value = REDACTED
                redacted[key] = redacted.get(key, 0) + 1
            else:
                counts[key] = counts.get(key, 0) + 1
            rest.setdefault(index, {})[key] = value
    for index in rest:
        rest[index] = {key: _redacted(key, value) for key, value in rest[index].items()}
    return tuple(
        f"{table}.{key}: no column, {count} values rescued" for key, count in counts.items()
    ) + tuple(
        f"{table}.{key}: looks like a credential, {count} values redacted" for key, count in redacted.items()
    )


def _redacted(key: str, value: object) -> object:
    """A rescued value without what looks like a credential, at any depth."""
    if isinstance(value, dict):
        return {
            name: REDACTED if is_secret_name(name) and item is not None else _redacted(name, item)
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [_redacted(key, item) for item in value]
    return REDACTED if isinstance(value, str) and is_secret_value(value) else value


def _holds_secret(values: Iterable[object]) -> bool:
    for value in values:
        match value:
            case str() if is_secret_value(value):
                return True
            case dict() if any(is_secret_name(key) for key in value) or _holds_secret(value.values()):
                return True
            case list() if _holds_secret(value):
                return True
            case _:
                pass
    return False


def _fit_column(values: list[object], column_type: ColumnType) -> tuple[pa.Array, dict[int, object]]:
    """One column, and by row what did not fit it."""
    quick = _fit_quickly(values, column_type)
    if quick is not None:
        return quick, {}
    fitted, misfits = [], {}
    for index, value in enumerate(values):
        kept, left = fit(value, column_type)
        fitted.append(kept)
        if left is not MISSING:
            misfits[index] = left
    return cast_column(pa.array(fitted, _build_type(column_type)), column_type), misfits


# The Python types of which `pa.array` loses nothing. Told int64 it cuts floats, told double it takes booleans.
_EXACT_TYPES: Mapping[str, set[type]] = {
    "string": {str},
    "int64": {int},
    "float64": {int, float},
    "bool": {bool},
    "timestamp": {str},
    "timestamp_naive": {str},
    "epoch": {int},
}


def _fit_quickly(values: list[object], column_type: ColumnType) -> pa.Array | None:
    """The column in one call, or None where a value does not fit or something would be lost."""
    try:
        match column_type:
            case MapType(Scalar("string" | "bool")):
                if not set(map(type, values)) <= {dict, type(None)}:
                    return None
                pairs = [list(value.items()) if isinstance(value, dict) else None for value in values]
                column = pa.array(pairs, arrow_type(column_type))
                return column if column.items.null_count == 0 else None
            case Scalar(name) if name in _EXACT_TYPES:
                if not set(map(type, values)) <= _EXACT_TYPES[name] | {type(None)}:
                    return None
                return cast_column(pa.array(values, read_type(column_type)), column_type)
            case ListType() | StructType() if not _scalars(column_type) & {"decimal", "float64", "json"}:
                return _fit_nested_quickly(values, column_type)
            case _:
                return None
    except (
        pa.ArrowInvalid,
        pa.ArrowTypeError,
        pa.ArrowNotImplementedError,
        OverflowError,
        TypeError,
        ValueError,
    ):
        return None


def _fit_nested_quickly(values: list[object], column_type: ColumnType) -> pa.Array | None:
    wanted = read_type(column_type)
    if wanted is None or not _has_shape(values, column_type):
        return None
    column = pa.array(values, wanted)
    # pa.array passes over the keys that a struct does not name: count the pairs on both sides.
    if _pairs_in(values) != _pairs_of(column):
        return None
    if _scalars(column_type) & {"int64", "epoch"}:
        wide = _widened(wanted)
        if not pa.array(values, wide).equals(column.cast(wide)):
            return None
    return cast_column(column, column_type)


def _has_shape(values: Sequence[object], column_type: ColumnType) -> bool:
    """True if lists and objects stand where the type has them: pa.array makes a list of a text, too."""
    match column_type:
        case ListType(item):
            if not set(map(type, values)) <= {list, type(None)}:
                return False
            return isinstance(item, Scalar) or _has_shape(
                [element for value in values if isinstance(value, list) for element in value], item
            )
        case StructType(fields):
            if not set(map(type, values)) <= {dict, type(None)}:
                return False
            return all(
                isinstance(inner, Scalar)
                or _has_shape([value.get(name) for value in values if isinstance(value, dict)], inner)
                for name, inner in fields
            )
        case _:
            return True


def _scalars(column_type: ColumnType) -> set[str]:
    match column_type:
        case Scalar(name):
            return {name}
        case ListType(inner) | MapType(inner):
            return _scalars(inner)
        case StructType(fields):
            return set().union(*(_scalars(inner) for _, inner in fields))


def _widened(read: pa.DataType) -> pa.DataType:
    """The same shape with doubles for integers: where the values differ, a fraction was cut."""
    if pa.types.is_list(read):
        return pa.list_(_widened(read.value_type))
    if pa.types.is_struct(read):
        return pa.struct([(field.name, _widened(field.type)) for field in read])
    return pa.float64() if pa.types.is_integer(read) else read


def _pairs_in(values: list[object]) -> int:
    """Key-value pairs in JSON values, those with null left out; -1 where the text is ambiguous."""
    text = orjson.dumps(values)
    if b'\\":' in text:
        return -1
    return text.count(b'":') - text.count(b'":null')


def _pairs_of(column: pa.Array) -> int:
    """Valid fields of valid structs in a column, at every depth."""
    if pa.types.is_list(column.type):
        return _pairs_of(column.flatten())
    if not pa.types.is_struct(column.type):
        return 0
    inner = column.flatten()
    return sum(len(field) - field.null_count + _pairs_of(field) for field in inner)


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
