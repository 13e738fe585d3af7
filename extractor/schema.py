"""Columns → Arrow: what each table's files hold, checked casts, and drift as a value.

A `TableSchema` is made before anything is decoded, from the catalogue and from the columns that the lake has
pinned. It never loses a value: what has no column or does not fit goes to `_rescued_data`, a key that is seen for
the first time becomes a column at the end, and a physical type never changes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Context, Decimal, InvalidOperation
from types import MappingProxyType
from typing import Literal

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from extractor.endpoint import (
    Column,
    ColumnType,
    Endpoint,
    ListType,
    MapType,
    Scalar,
    StructType,
    parse_type,
)

__all__ = (
    "JSON_TEXT",
    "META_COLUMNS",
    "MISSING",
    "NANOS",
    "REDACTED",
    "RESCUED",
    "SECRET_VALUE",
    "UTC_TIME",
    "Field",
    "TableSchema",
    "arrow_type",
    "cast_column",
    "fit",
    "infer_type",
    "is_castable",
    "is_secret_name",
    "is_secret_value",
    "json_text",
    "pinned_field",
    "plan_schema",
    "read_type",
    "render_type",
    "source_name",
)

RESCUED = "_rescued_data"
NANOS = "_nanos"
"""The ending of the column that holds what of a time is finer than a microsecond."""
SERIES = "_series"
"""The column of metrics that tells one series from another: a hash of name and labels."""
META_COLUMNS = ("_run_id", "_extracted_at", "_account", "_snapshot_at", "_event_date")
_PATH_NAMES = frozenset({"account", "snapshot_date", "event_date", "window", "run"})

JSON_TEXT = {b"extractor.type": b"json"}
"""Field metadata that marks text which is JSON, so that a reader can turn it back."""

DECIMAL = pa.decimal128(38, 12)
UTC_TIME = pa.timestamp("us", "UTC")
NAIVE_TIME = pa.timestamp("us")

_WIDE = Context(prec=60)

MISSING = object()
"""No leftover: the value fitted whole (a leftover may well be None)."""

_MILLIS_FROM = 100_000_000_000
# As Arrow scalars: a Python number handed to a kernel makes pyarrow look for numpy each time.
_MICROS, _MILLIS = pa.scalar(1_000_000), pa.scalar(1_000)

_SCALARS: Mapping[str, pa.DataType] = {
    "string": pa.string(),
    "int64": pa.int64(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
    "decimal": DECIMAL,
    "timestamp": UTC_TIME,
    "timestamp_naive": NAIVE_TIME,
    "epoch": UTC_TIME,
    "json": pa.string(),
    "binary": pa.binary(),
}

_TIMES = (Scalar("timestamp"), Scalar("timestamp_naive"))

# What the JSON reader is asked for; times are cast afterwards, with a check.
_READ_SCALARS: Mapping[str, pa.DataType] = {
    **{name: _SCALARS[name] for name in ("string", "int64", "float64", "bool", "decimal")},
    "timestamp": pa.string(),
    "timestamp_naive": pa.string(),
    "epoch": pa.int64(),
}

_SECRET_NAME = re.compile(
    r"(?:^|[_.\-\s])(?:pass(?:word|wd|phrase)?|pwd|secrets?|tokens?|api_?keys?|access_?keys?|private_?keys?|"
    r"credentials?|bearer|jwt|client_?secret)(?:$|[_.\-\s\d])"
)
SECRET_VALUE = (
    r"skysql\.[0-9a-z]{4}\.[0-9a-z]{8}\.[A-Za-z0-9]{36}\.[0-9a-f]{8}"
    r"|eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
"""What keys and tokens look like; in the syntax that Python and RE2 share."""
_SECRET_TEXT = re.compile(SECRET_VALUE)
REDACTED = "[redacted]"

_DECIMAL_TEXT = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_UTC_TEXT = r"^\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$"
_VERSIONED = re.compile(r"(.+)__v\d+", re.ASCII | re.DOTALL)
_YEAR_1, _YEAR_10000 = -62_135_596_800_000_000, 253_402_300_800_000_000


# --- types --------------------------------------------------------------------------------------------------


def arrow_type(column_type: ColumnType) -> pa.DataType:
    """The type that files hold."""
    match column_type:
        case Scalar(name):
            return _SCALARS[name]
        case ListType(item):
            return pa.list_(_field("element", item))
        case MapType(value):
            return pa.map_(pa.field("key", pa.string(), nullable=False), _field("value", value))
        case StructType(fields):
            return pa.struct([_field(name, inner) for name, inner in fields])


def _field(name: str, column_type: ColumnType) -> pa.Field:
    is_json = column_type == Scalar("json")
    return pa.field(name, arrow_type(column_type), metadata=JSON_TEXT if is_json else None)


def read_type(column_type: ColumnType) -> pa.DataType | None:
    """The type that pyarrow's JSON reader is asked for; None where it has none (maps, free-form JSON)."""
    match column_type:
        case Scalar(name):
            return _READ_SCALARS.get(name)
        case ListType(item):
            inner = read_type(item)
            return None if inner is None else pa.list_(inner)
        case MapType():
            return None
        case StructType(fields):
            read = [(name, read_type(inner)) for name, inner in fields]
            if not read or any(inner is None for _, inner in read):
                return None
            return pa.struct(read)


def render_type(column_type: ColumnType) -> str:
    """The text that `parse_type` reads."""
    match column_type:
        case Scalar(name):
            return name
        case ListType(item):
            return f"list<{render_type(item)}>"
        case MapType(value):
            return f"map<string, {render_type(value)}>"
        case StructType(fields):
            return f"struct<{', '.join(f'{name}: {render_type(inner)}' for name, inner in fields)}>"


def infer_type(values: Iterable[object]) -> ColumnType | None:
    """The narrowest type for the values of a key without a column; None if all are null."""
    kinds = {type(value) for value in values if value is not None}
    if not kinds:
        return None
    if kinds == {bool}:
        return Scalar("bool")
    if kinds == {int}:
        fits = all(-(2**63) <= value < 2**63 for value in values if isinstance(value, int))
        return Scalar("int64") if fits else Scalar("json")
    if kinds <= {int, float}:
        return Scalar("float64")
    if kinds <= {int, float, Decimal}:
        return Scalar("json")
    return Scalar("string") if kinds == {str} else Scalar("json")


# --- the schema of a table ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One column of the files.

    `source` is the key in the answer; it differs from `name` for `name__v2`. A field that is not live was
    superseded by a corrected type and is null from then on.
    """

    name: str
    type: ColumnType
    source: str
    class_: str = ""
    is_live: bool = True
    is_inferred: bool = False

    def to_json(self) -> dict[str, object]:
        return {
            "name": self.name,
            "type": render_type(self.type),
            "source": self.source,
            "class": self.class_,
            "live": self.is_live,
            "inferred": self.is_inferred,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSchema:
    """The columns of one table, in order, and what is done with anything else.

    `drops` are the keys, or paths inside a value, that are never kept; `policy` is `run.schema`.
    """

    table: str
    fields: tuple[Field, ...]
    drops: tuple[str, ...] = ()
    hashes: tuple[str, ...] = ()
    policy: Literal["evolve", "rescue", "fail"] = "evolve"
    map_keys: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    """The keys seen so far in open maps, by column: a hint for the decoder, which no file shows."""
    null_keys: frozenset[str] = field(default=frozenset(), compare=False)
    """Keys without a column that were met, and null each time: their first column is no drift."""
    is_pinned: bool = True
    """False while no row has been seen and the catalogue gives no columns: the first rows then decide."""

    def __hash__(self) -> int:
        # Cheap, as what is known of a schema is looked up by it for every few pages.
        return hash((self.table, len(self.fields)))

    @property
    def live(self) -> tuple[Field, ...]:
        return tuple(field for field in self.fields if field.is_live)

    @property
    def arrow(self) -> pa.Schema:
        """The columns of the data, and `_rescued_data`."""
        columns = [_field(field.name, field.type) for field in self.fields]
        return pa.schema([*columns, pa.field(RESCUED, pa.string(), metadata=JSON_TEXT)])

    @property
    def nanos(self) -> frozenset[str]:
        """The names that columns have, or would have, for what of a time is finer than a microsecond.

        No key of the answer belongs there. A column that the catalogue declares is the answer's own.
        """
        declared = {field.name for field in self.fields if not field.is_inferred}
        times = (field.name for field in self.fields if field.type in _TIMES)
        return frozenset(f"{name}{NANOS}" for name in times) - declared

    def to_json(self) -> tuple[dict[str, object], ...]:
        return tuple(field.to_json() for field in self.fields)

    def grow(self, added: Mapping[str, ColumnType]) -> TableSchema:
        """The schema with new columns at the end, and pinned."""
        fields = tuple(
            Field(name=name, type=column_type, source=name, is_inferred=True)
            for name, column_type in added.items()
        )
        return replace(self, fields=self.fields + fields, is_pinned=True)

    def may_add(self, name: str) -> bool:
        """True where a key may become a column of that name."""
        taken = {field.name.lower() for field in self.fields}
        return (
            bool(name)
            and len(name) <= 128
            and not name.startswith("_")
            and name.isprintable()
            and name.lower() not in taken
            and name.lower() not in _PATH_NAMES
            and not _VERSIONED.fullmatch(name)
            and name not in self.nanos
            and not is_secret_name(name)
            and not is_secret_value(name)
        )


def plan_schema(
    endpoint: Endpoint,
    pinned: Sequence[Mapping[str, object]] = (),
    *,
    policy: Literal["evolve", "rescue", "fail"] = "evolve",
    pii: Literal["keep", "hash", "drop"] = "keep",
    secrets_allowed: bool = False,
    customer_data_allowed: bool = False,
) -> TableSchema:
    """The schema of a table before its first answer: what the lake has pinned, then what the catalogue adds.

    A catalogue type that differs from the pinned one makes a new column `name__v2`; the old one stays, null.
    """
    refused = {
        "secret": not secrets_allowed,
        "customer_data": not customer_data_allowed,
        "pii": pii == "drop",
    }
    dropped_classes = {class_ for class_, is_refused in refused.items() if is_refused}
    drops = tuple(column.path for column in endpoint.columns if column.class_ in dropped_classes)
    hashes = tuple(column.path for column in endpoint.columns if column.class_ == "pii" and pii == "hash")
    fields = [pinned_field(entry) for entry in pinned]
    for column in endpoint.top_columns:
        if column.type is None or column.path in drops:
            continue
        _place(fields, column, column.type)
    for name, _ in endpoint.keep:
        if not any(field.source == name for field in fields):
            fields.append(Field(name=name, type=Scalar("string"), source=name))
    if endpoint.format == "openmetrics" and not any(field.name == SERIES for field in fields):
        fields.append(Field(name=SERIES, type=Scalar("int64"), source=SERIES))
    return TableSchema(
        table=endpoint.name,
        fields=tuple(fields),
        drops=drops,
        hashes=hashes,
        policy=policy,
        is_pinned=bool(pinned) or any(column.type for column in endpoint.top_columns),
    )


def _place(fields: list[Field], column: Column, column_type: ColumnType) -> None:
    versions = [index for index, field in enumerate(fields) if field.source == column.path]
    live = next((index for index in versions if fields[index].is_live), None)
    if live is not None and fields[live].type == column_type:
        return
    name = column.path if not versions else f"{column.path}__v{len(versions) + 1}"
    if live is not None:
        fields[live] = replace(fields[live], is_live=False)
    fields.append(Field(name=name, type=column_type, source=column.path, class_=column.class_))


def pinned_field(entry: Mapping[str, object]) -> Field:
    """The column that `TableSchema.to_json` wrote down."""
    return Field(
        name=str(entry["name"]),
        type=parse_type(str(entry["type"])),
        source=str(entry["source"]),
        class_=str(entry.get("class", "")),
        is_live=bool(entry.get("live", True)),
        is_inferred=bool(entry.get("inferred", False)),
    )


def source_name(column: str) -> str:
    """The key of the answers whose values stand in a column, which may be one of a corrected type."""
    versioned = _VERSIONED.fullmatch(column)
    return versioned[1] if versioned else column


def is_secret_name(name: str) -> bool:
    """True for names under which APIs hand out credentials."""
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    return bool(_SECRET_NAME.search(snake))


def is_secret_value(text: str) -> bool:
    """True for texts in the shape of a key or token."""
    return bool(_SECRET_TEXT.search(text))


# --- checked casts ------------------------------------------------------------------------------------------


def cast_column(column: pa.Array, column_type: ColumnType) -> pa.Array:
    """A column as it was read (`read_type`) as the files hold it.

    Raises:
        pa.ArrowInvalid: a value does not fit; the caller then goes value by value.
    """
    match column_type:
        case Scalar("timestamp"):
            _check_utc_text(column)
            return _within_years(pc.cast(column, UTC_TIME))
        case Scalar("timestamp_naive"):
            _check_length(column, len("2026-01-09 00:31:43"))
            return _within_years(pc.cast(column, NAIVE_TIME))
        case Scalar("epoch"):
            return _within_years(_cast_epoch(column))
        case Scalar():
            return column
        case ListType(item):
            values = cast_column(column.values, item)
            return pa.ListArray.from_arrays(
                column.offsets, values, type=arrow_type(column_type), mask=_null_mask(column)
            )
        case StructType(fields):
            # Not `field`: where the struct is null, its fields hold empty texts, which are no times.
            members = column.flatten()
            inner = [cast_column(members[index], field) for index, (_, field) in enumerate(fields)]
            target = arrow_type(column_type)
            return pa.StructArray.from_arrays(inner, fields=list(target), mask=_null_mask(column))
        case MapType(value):
            if column.type == arrow_type(column_type):
                return column
            return pa.MapArray.from_arrays(
                column.offsets,
                column.keys,
                cast_column(column.items, value),
                type=arrow_type(column_type),
                mask=_null_mask(column),
            )


def _null_mask(column: pa.Array) -> pa.Array | None:
    return column.is_null() if column.null_count else None


def _cast_epoch(column: pa.Array) -> pa.Array:
    """Seconds, or milliseconds from 10^11 on (in seconds that were the year 5138)."""
    if len(column) == column.null_count:
        return pa.nulls(len(column), UTC_TIME)
    limits = pc.min_max(column)
    low, high = limits["min"].as_py(), limits["max"].as_py()
    if max(abs(low), abs(high)) < _MILLIS_FROM:
        micros = pc.multiply_checked(column, _MICROS)
    else:
        is_milli = pc.greater_equal(pc.abs_checked(column), pa.scalar(_MILLIS_FROM))
        micros = pc.multiply_checked(column, pc.if_else(is_milli, _MILLIS, _MICROS))
    return micros.view(pa.timestamp("us")).cast(UTC_TIME)


def _within_years(times: pa.Array) -> pa.Array:
    """The times themselves, if Python has all of them: the years 1 to 9999."""
    limits = pc.min_max(times.view(pa.int64()))
    low, high = limits["min"].as_py(), limits["max"].as_py()
    if low is not None and not _YEAR_1 <= low <= high < _YEAR_10000:
        raise pa.ArrowInvalid("a time outside of the years 1 to 9999")
    return times


def _check_utc_text(column: pa.Array) -> None:
    # The cast also takes hours without minutes, and other offsets: not the text that the digest knows as a time.
    _check_length(column, len("2026-01-09T00:31:43Z"))
    if pc.all(pc.ends_with(column, "Z")).as_py() is False and not (
        pc.all(pc.match_substring_regex(column, _UTC_TEXT)).as_py()
    ):
        raise pa.ArrowInvalid("a time that is no RFC 3339 text")


def _check_length(column: pa.Array, length: int) -> None:
    shortest = pc.min_max(pc.binary_length(column))["min"].as_py()
    if shortest is not None and shortest < length:
        raise pa.ArrowInvalid("a time without seconds")


def fit(value: object, column_type: ColumnType) -> tuple[object, object]:
    """One value as its column takes it, and what is left over (`MISSING`: nothing).

    Given `json` values, with `Decimal` for numbers that a double cannot hold. Times come back as text or integer
    as they were read: the caller casts them. Of a struct or map the leftover holds only what did not fit, of a
    list the whole list, so that nothing is lost by position.
    """
    if value is None:
        return None, MISSING
    match column_type:
        case Scalar(name):
            fitted = _fit_scalar(value, name)
            return (None, value) if fitted is MISSING else (fitted, MISSING)
        case ListType(item):
            return _fit_list(value, item)
        case StructType(fields):
            return _fit_struct(value, dict(fields))
        case MapType(inner):
            if not isinstance(value, dict):
                return None, value
            return _fit_struct(value, dict.fromkeys(value, inner), is_map=True)


def _fit_scalar(value: object, name: str) -> object:
    match name, value:
        case "json", _:
            return json_text(value)
        case "bool", bool():
            return value
        case _, bool():
            return MISSING
        case "string", str():
            return value
        case (("int64" | "epoch"), int()) if -(2**63) <= value < 2**63:
            return value if name == "int64" or is_castable(value, Scalar(name)) else MISSING
        # Beyond, a double stands for several integers.
        case (("int64" | "epoch"), float()) if value.is_integer() and abs(value) <= 2**53:
            return _fit_scalar(int(value), name)
        case "float64", int():
            return float(value) if abs(value) <= 2**53 else MISSING
        case "float64", float():
            return value
        case "float64", Decimal():
            return float(value) if Decimal(repr(float(value))) == value else MISSING
        case "decimal", (int() | float() | Decimal() | str()):
            return _fit_decimal(value)
        case (("timestamp" | "timestamp_naive"), str()):
            return value if is_castable(value, Scalar(name)) else MISSING
        case _:
            return MISSING


def _fit_decimal(value: int | float | Decimal | str) -> object:
    try:
        # Decimal takes "1_0", blanks and the digits of all scripts, too.
        if isinstance(value, str) and not _DECIMAL_TEXT.fullmatch(value):
            return MISSING
        exact = Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
        if not exact.is_finite():
            return MISSING
        scaled = exact.quantize(Decimal("1e-12"), context=_WIDE)
    except (InvalidOperation, ValueError):
        return MISSING
    return scaled if scaled == exact and abs(scaled) < Decimal(10) ** 26 else MISSING


def is_castable(value: object, column_type: ColumnType) -> bool:
    """True for a time or an epoch that the column takes."""
    try:
        cast_column(pa.array([value], read_type(column_type)), column_type)
    except pa.ArrowInvalid:
        return False
    return True


def _fit_list(value: object, item: ColumnType) -> tuple[object, object]:
    if not isinstance(value, list):
        return None, value
    fitted, is_whole = [], True
    for element in value:
        kept, rest = fit(element, item)
        fitted.append(kept)
        is_whole = is_whole and rest is MISSING
    return fitted, MISSING if is_whole else value


def _fit_struct(
    value: object, fields: Mapping[str, ColumnType], *, is_map: bool = False
) -> tuple[object, object]:
    if not isinstance(value, dict):
        return None, value
    fitted: dict[str, object] = {}
    left: dict[str, object] = {}
    for key, inner in value.items():
        if inner is None:
            continue
        if key not in fields:
            left[key] = inner
            continue
        kept, rest = fit(inner, fields[key])
        if rest is not MISSING:
            left[key] = rest
        if kept is not None:
            fitted[key] = kept
    leftover = left if left else MISSING
    return (list(fitted.items()) if is_map else fitted), leftover


def json_text(value: object) -> str:
    """JSON of a value, exactly: numbers that orjson cannot write are written digit by digit."""
    try:
        return orjson.dumps(value).decode()
    except TypeError:
        pass
    match value:
        case dict():
            return "{" + ",".join(f"{json_text(key)}:{json_text(item)}" for key, item in value.items()) + "}"
        case list():
            return "[" + ",".join(map(json_text, value)) + "]"
        case _:
            return str(value)
