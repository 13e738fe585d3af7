"""The content digest: one number for the rows of a table, whatever their order.

The sum modulo 2^128 of blake2b-128 over each row as JSON with sorted keys. Nulls are dropped at every depth,
numbers stand in shortest decimal form, times in RFC 3339 UTC, so that a row read from the API and the same row
read back from Parquet give the same bytes. It judges; it does not sign.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime
from decimal import Decimal

import orjson

__all__ = ("ContentDigest", "digest_rows", "format_time", "normalise", "row_bytes")

_MODULUS = 1 << 128
_TIME = re.compile(
    r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)?",
    re.ASCII,
)


class ContentDigest:
    """A running digest of rows; adding the same rows in any order gives the same value."""

    __slots__ = ("_sum", "rows")

    def __init__(self) -> None:
        self._sum = 0
        self.rows = 0

    def add(self, row: Mapping[str, object]) -> None:
        """Count one row, given as JSON-like values (see `normalise`)."""
        self._sum = (
            self._sum + int.from_bytes(hashlib.blake2b(row_bytes(row), digest_size=16).digest())
        ) % _MODULUS
        self.rows += 1

    def hexdigest(self) -> str:
        """The digest as 32 hexadecimal digits; 32 zeros for no rows."""
        return f"{self._sum:032x}"


def digest_rows(rows: Iterable[Mapping[str, object]]) -> tuple[int, str]:
    """Count and digest of `rows`."""
    digest = ContentDigest()
    for row in rows:
        digest.add(row)
    return digest.rows, digest.hexdigest()


def row_bytes(row: Mapping[str, object]) -> bytes:
    """The bytes of one row that the digest hashes."""
    return _encode(normalise(row))


def normalise(value: object) -> object:
    """The JSON value in normal form: no nulls, shortest numbers, times in RFC 3339 UTC, binary as base64.

    Numbers that a double cannot hold stay `int` or `Decimal`.
    """
    match value:
        case None | bool():
            return value
        case str():
            return _normal_text(value)
        case int():
            return value
        case float():
            return _normal_float(value)
        case Mapping():
            return {str(key): normalise(item) for key, item in value.items() if item is not None}
        case list() | tuple():
            return [normalise(item) for item in value if item is not None]
        case Decimal():
            return _normal_decimal(value)
        case datetime():
            return format_time(value)
        case date():
            return value.isoformat()
        case bytes():
            return base64.b64encode(value).decode()
        case _:
            raise TypeError(f"no JSON form for {type(value).__name__}")


def format_time(moment: datetime, nanos: int = 0) -> str:
    """RFC 3339 in UTC without trailing zeros; `nanos` are those beyond the microsecond (0 to 999)."""
    if moment.tzinfo is not None:
        moment = moment.astimezone(UTC)
    fraction = f"{moment.microsecond * 1000 + nanos:09d}".rstrip("0")
    # strftime does not pad years below 1000, and the API has 0001-01-01.
    head = moment.replace(microsecond=0, tzinfo=None).isoformat()
    return f"{head}.{fraction}Z" if fraction else f"{head}Z"


def _normal_text(text: str) -> str:
    # Cheap tests first: nearly no string is a time.
    if not 19 <= len(text) <= 35 or text[4] != "-" or text[13] != ":":
        return text
    found = _TIME.fullmatch(text)
    if found is None:
        return text
    day, clock, fraction, zone = found.groups()
    nanos = int((fraction or "").ljust(9, "0"))
    try:
        moment = datetime.fromisoformat(f"{day}T{clock}{'+00:00' if zone in (None, 'Z') else zone}")
        moment = moment.astimezone(UTC).replace(microsecond=nanos // 1000)
    except (ValueError, OverflowError):
        return text
    return format_time(moment, nanos % 1000)


def _normal_float(value: float) -> object:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    if value == int(value):
        return int(Decimal(repr(value)))
    return value


def _normal_decimal(value: Decimal) -> object:
    if value.is_nan():
        return "NaN"
    if value.is_infinite():
        return "+Inf" if value > 0 else "-Inf"
    if value == value.to_integral_value():
        return int(value)
    nearest = float(value)
    return nearest if Decimal(repr(nearest)) == value else value


def _encode(value: object) -> bytes:
    try:
        if not _is_exotic(value):
            return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except TypeError:
        pass
    return _encode_slowly(value)


def _is_exotic(value: object) -> bool:
    """True where orjson would write an exponent, or refuse the number."""
    match value:
        case dict():
            return any(map(_is_exotic, value.values()))
        case list():
            return any(map(_is_exotic, value))
        case float():
            return not 1e-4 <= abs(value) < 1e15
        case Decimal():
            return True
        case _:
            return False


def _encode_slowly(value: object) -> bytes:
    match value:
        case dict():
            pairs = (orjson.dumps(key) + b":" + _encode_slowly(value[key]) for key in sorted(value))
            return b"{" + b",".join(pairs) + b"}"
        case list():
            return b"[" + b",".join(map(_encode_slowly, value)) + b"]"
        case bool() | None | str():
            return orjson.dumps(value)
        case int():
            return str(value).encode()
        case float():
            return format(Decimal(repr(value)).normalize(), "f").encode()
        case Decimal():
            # Not `normalize`: it rounds to the context's 28 digits, and money has 38.
            text = format(value, "f")
            return (text.rstrip("0").rstrip(".") if "." in text else text).encode()
        case _:
            raise TypeError(f"no JSON form for {type(value).__name__}")
