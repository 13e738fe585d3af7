"""JSON bodies → one record batch, without Python objects where the shape allows it, exactly where not.

Two paths give equal batches. The fast one hands whole pages to pyarrow's reader under an explicit schema that
refuses anything unexpected. What it refuses, and what it cannot represent (open maps, free-form JSON, values that
must be dropped or hashed), goes through orjson value by value, where nothing can vanish unseen: unknown keys
become columns or rescued data, duplicate keys are refused, long numbers keep all their digits.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

import msgspec
import orjson
import pyarrow as pa
import pyarrow.json

from extractor.endpoint import ColumnType, ListType, MapType, Scalar, StructType
from extractor.errors import BodyTooLarge, DriftRefused, MalformedBody
from extractor.schema import (
    MISSING,
    NANOS,
    REDACTED,
    TableSchema,
    arrow_type,
    cast_column,
    fit,
    infer_type,
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
_LONG_NUMBER = re.compile(rb"[0-9][0-9.]{15,}")


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
    body = body.removeprefix(b"\xef\xbb\xbf")
    _check_text(body)
    try:
        whole = msgspec.json.decode(body, type=msgspec.Raw)
        match bytes(memoryview(body).cast("B")[:64]).lstrip()[:1]:
            case b"[":
                return Envelope(rows=body, facts={})
            case b"{":
                return _open_object(body, records, columns, pointers)
            case _ if bytes(whole) == b"null":
                return Envelope(rows=b"[]", facts={})
    except (msgspec.DecodeError, RecursionError) as error:
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
    if not columns.intersection(members) and (only := _only_array(members)) is not None:
        return Envelope(rows=only, facts=facts)
    return Envelope(rows=b"[" + body + b"]" if members else b"[]", facts=facts)


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
    _check_rows(rows, depth)
    return _decode_exactly(rows, schema, lengths=tuple(map(len, parsed)))


def _decode_fast(pages: Sequence[bytes], schema: TableSchema) -> Decoded | None:
    """The batch by pyarrow's reader, or None where the exact path must look."""
    if not schema.is_pinned or schema.drops or schema.hashes:
        return None
    reads = {field.source: read_type(field.type) for field in schema.live}
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
        columns = {field.name: cast_column(rows.field(field.source), field.type) for field in schema.live}
    except pa.ArrowInvalid:
        return None
    lengths = tuple(lists.value_lengths().fill_null(0).to_pylist())
    return Decoded(
        batch=_assemble(columns, None, schema, len(rows)), schema=schema, lengths=lengths, is_fast=True
    )


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
    if _LONG_NUMBER.search(page):
        return _parse_slowly(page)
    try:
        rows = orjson.loads(page)
    except orjson.JSONDecodeError:
        return _parse_slowly(page)
    # orjson keeps the last of two equal keys. Both texts hold the same colons after quotes unless one was lost.
    if page.count(b'":') != orjson.dumps(rows).count(b'":') or b"\\u0022" in page:
        return _parse_slowly(page)
    return rows  # type: ignore[no-any-return]  # _check_rows looks at every row


def _parse_slowly(page: bytes) -> list[dict[str, object]]:
    try:
        rows = json.loads(page, object_pairs_hook=_refuse_duplicates, parse_float=_exact_number)
    except RecursionError as error:
        raise BodyTooLarge("the body is nested too deeply") from error
    except ValueError as error:
        raise MalformedBody(f"the body is no JSON ({error})") from error
    return rows  # type: ignore[no-any-return]  # _check_rows looks at every row


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


def _check_rows(rows: Sequence[object], depth: int) -> None:
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise MalformedBody(f"row {number} is no object but {type(row).__name__}")
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
    schema = _split_nanos(rows, schema)
    rest: dict[int, dict[str, object]] = {}
    columns: dict[str, pa.Array] = {}
    for field in schema.live:
        values = [row.get(field.source) for row in rows]
        column, misfits = _fit_column(values, field.type)
        columns[field.name] = column
        for index, left in misfits.items():
            rest.setdefault(index, {})[field.source] = left
        if misfits:
            hint = toml_hint(schema.table, field.source, misfits.values())
            drift += (f"{schema.table}.{field.source}: {len(misfits)} values do not fit, rescued; {hint}",)
    known = {field.source for field in schema.live}
    drift += _rescue_unknown(rows, known, rest, schema.table)
    if drift and schema.policy == "fail":
        raise DriftRefused(drift[0])
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


def _split_nanos(rows: Iterable[dict[str, object]], schema: TableSchema) -> TableSchema:
    """Move what is finer than a microsecond from a time into a column `name_nanos` of its own (0 to 999)."""
    for field in schema.live:
        if field.type not in (Scalar("timestamp"), Scalar("timestamp_naive")):
            continue
        name = f"{field.source}{NANOS}"
        is_own = any(known.name == name and not known.is_inferred for known in schema.fields)
        if is_own or (any(name in row for row in rows)):
            continue  # the API has a key of that name: fine times are rescued instead
        for row in rows:
            value = row.get(field.source)
            found = _FINE_TIME.fullmatch(value) if isinstance(value, str) else None
            if found is None:
                continue
            if all(known.name != name for known in schema.fields):
                schema = schema.grow({name: Scalar("int64")})
            row[field.source] = found[1] + (found[3] or "")
            row[name] = int(found[2].ljust(3, "0"))
    return schema


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
                pairs = [list(value.items()) if isinstance(value, dict) else value for value in values]
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
    if wanted is None:
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
        case MapType():
            return arrow_type(column_type)


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
