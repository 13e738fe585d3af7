"""The API as data: what an endpoint file may say, and what it means once read.

One TOML table is one `Endpoint`; a folder of such files is a catalogue (see `catalog`). Nothing here knows HTTP
or Arrow: paths, paging, parents, windows and column types are plain values, checked when they are read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from functools import cache
from typing import Literal

import msgspec

from extractor.config import parse_duration
from extractor.errors import ConfigError

__all__ = (
    "Class",
    "Column",
    "ColumnType",
    "Endpoint",
    "Format",
    "LinkPaging",
    "ListType",
    "MapType",
    "Method",
    "NextUrlPaging",
    "NoPaging",
    "OffsetPaging",
    "PagePaging",
    "Paging",
    "Parent",
    "Scalar",
    "StructType",
    "Sync",
    "TimeFormat",
    "TokenPaging",
    "Window",
    "WindowBounds",
    "parse_type",
    "read_endpoint",
)

Class = Literal["", "secret", "customer_data", "pii"]
Format = Literal["json", "ndjson", "openmetrics", "log_archive", "binary"]
Method = Literal["GET", "POST"]
TimeFormat = Literal["epoch", "epoch_ms", "rfc3339", "date", "year_month"]
WindowBounds = Literal["[)", "()", "[]", "(]"]

_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_STEP = re.compile(r"[1-9]\d*[dwM]")
_PLACEHOLDER = re.compile(r"\{([^{}]+)\}")


# --- column types -------------------------------------------------------------------------------------------


SCALARS = (
    "string",  # text
    "int64",
    "float64",
    "bool",
    "decimal",  # money: 38 digits, 12 of them after the point
    "timestamp",  # RFC 3339 text; microseconds, UTC
    "timestamp_naive",  # text without a zone; microseconds
    "epoch",  # integer seconds, or milliseconds by magnitude; microseconds, UTC
    "json",  # any JSON, kept as text
    "binary",
)


class Scalar(msgspec.Struct, frozen=True):
    """One of `SCALARS`."""

    name: str


class ListType(msgspec.Struct, frozen=True):
    """A JSON array whose items have one type."""

    item: ColumnType


class MapType(msgspec.Struct, frozen=True):
    """A JSON object with open keys: map<string, value>."""

    value: ColumnType


class StructType(msgspec.Struct, frozen=True):
    """A JSON object with known keys."""

    fields: tuple[tuple[str, ColumnType], ...]


ColumnType = Scalar | ListType | MapType | StructType


@cache  # the catalogue names some hundred types a thousand times
def parse_type(text: str) -> ColumnType:
    """Read `string`, `list<T>`, `map<string,T>` or `struct<name:T,…>`, at any depth.

    Raises:
        ConfigError: naming the place at which the text stops making sense.
    """
    tokens = re.findall(r"[^\s<>,:]+|[<>,:]", text)
    parsed, rest = _parse_tokens(tokens, text)
    if rest:
        raise ConfigError(f"column type {text!r}: nothing may follow {''.join(tokens[: -len(rest)])!r}")
    return parsed


def _parse_tokens(tokens: list[str], text: str) -> tuple[ColumnType, list[str]]:
    def expect(rest: list[str], token: str) -> list[str]:
        if not rest or rest[0] != token:
            found = rest[0] if rest else "the end"
            raise ConfigError(f"column type {text!r}: {token!r} expected, found {found!r}")
        return rest[1:]

    if not tokens:
        raise ConfigError(f"column type {text!r} ends too early")
    head, rest = tokens[0], tokens[1:]
    match head:
        case "list":
            item, rest = _parse_tokens(expect(rest, "<"), text)
            return ListType(item), expect(rest, ">")
        case "map":
            rest = expect(expect(expect(rest, "<"), "string"), ",")
            value, rest = _parse_tokens(rest, text)
            return MapType(value), expect(rest, ">")
        case "struct":
            rest = expect(rest, "<")
            fields: list[tuple[str, ColumnType]] = []
            while True:
                if not rest:
                    raise ConfigError(f"column type {text!r} ends too early")
                name, rest = rest[0], expect(rest[1:], ":")
                field_type, rest = _parse_tokens(rest, text)
                fields.append((name, field_type))
                if rest[:1] != [","]:
                    return StructType(tuple(fields)), expect(rest, ">")
                rest = rest[1:]
        case _ if head in SCALARS:
            return Scalar(head), rest
        case _:
            raise ConfigError(
                f"column type {text!r}: {head!r} is none of {', '.join(SCALARS)}, list, map, struct"
            )


# --- paging -------------------------------------------------------------------------------------------------


class NoPaging(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="none"
):
    """One answer is everything."""


class TokenPaging(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="token"
):
    """An opaque token leads to the next page; it is absent or empty at the end."""

    request_param: str
    response_header: str = ""
    response_pointer: str | None = None


class LinkPaging(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="link"
):
    """RFC 8288: `Link: <…>; rel="next"`."""


class NextUrlPaging(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="next_url"
):
    """The body names the next page's URL."""

    response_pointer: str


class PagePaging(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="page"
):
    """Numbered pages; the body says how many pages, or how many rows, there are."""

    page_param: str
    first_page: int = 1
    pages_pointer: str | None = None
    total_pointer: str | None = None


class OffsetPaging(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="offset"
):
    """Rows from `offset` on, at most `limit` of them."""

    offset_param: str
    limit_param: str
    limit: int
    total_pointer: str | None = None


Paging = NoPaging | TokenPaging | LinkPaging | NextUrlPaging | PagePaging | OffsetPaging


# --- the endpoint -------------------------------------------------------------------------------------------


class Parent(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One request for each row of another endpoint.

    `params` maps a placeholder of the path, or else a query parameter, to a value of the parent's row: a column,
    or a path such as `invitees[].id`. With `fallback_on`, the endpoint is first asked once without its parent, and
    row by row only when the answer has one of those statuses. `version` names columns of the parent's row that
    tell whether there is anything new: a row whose answer was taken whole is not asked for again while they read
    the same.
    """

    endpoint: str
    params: dict[str, str]
    fallback_on: tuple[int, ...] = ()
    version: tuple[str, ...] = ()


class Window(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The server-side time window of an endpoint.

    With `format = "year_month"`, `from_param` takes the year and `to_param` the month. Without `to_param` the
    window has no upper end. `step` is in whole days, weeks or months (`7d`, `2w`, `1M`): a window is named after
    the day or month of its start. `cursor` is the column that holds a row's event time.
    """

    from_param: str
    to_param: str = ""
    format: TimeFormat = "rfc3339"
    start: str = ""
    step: str = ""
    lookback: str = "48h"
    bounds: WindowBounds = "[)"
    cursor: str = ""
    mutable: tuple[str, ...] = ()
    replace: bool = False


class Sync(msgspec.Struct, frozen=True, kw_only=True):
    """How a table grows: `snapshot`, `window` or `append`; `cursor` dates the rows of the last two."""

    kind: Literal["snapshot", "window", "append"]
    window: Window | None = None
    cursor: str = ""
    mutable: tuple[str, ...] = ()

    @property
    def is_event(self) -> bool:
        """True where rows are added once, at first sight, under `event_date=`."""
        return self.kind != "snapshot" and not (self.window and self.window.replace)

    @property
    def is_replaced(self) -> bool:
        """True where each run keeps its own reading of a window, under `window=`."""
        return self.window is not None and self.window.replace


class Column(msgspec.Struct, frozen=True, kw_only=True):
    """A column of the table, or, where `path` has a dot or brackets, a value inside one."""

    path: str
    type: ColumnType | None
    class_: Class = ""

    @property
    def is_nested(self) -> bool:
        return "." in self.path or "[]" in self.path


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """One readable resource of the API and the table that it fills; `name` is the table's."""

    name: str
    path: str
    method: Method = "GET"
    body: Mapping[str, object] | None = None
    params: tuple[tuple[str, str], ...] = ()
    format: Format = "json"
    records: str = ""
    paging: Paging = NoPaging()
    parent: Parent | None = None
    keep: tuple[tuple[str, str], ...] = ()
    empty_on: tuple[int, ...] = ()
    auth_on: tuple[int, ...] = ()
    """Statuses, besides 401, that may mean a refused key; they do if the key is refused elsewhere too."""
    key: tuple[str, ...] = ()
    sync: Sync = Sync(kind="snapshot")
    tags: tuple[str, ...] = ()
    class_: Class = ""
    columns: tuple[Column, ...] = ()
    enabled: bool = True
    origin: str = "spec"
    """Where the endpoint is known from: `spec`, `vendor code`, `third party`, `user`."""
    note: str = ""
    file: str = ""

    @property
    def placeholders(self) -> tuple[str, ...]:
        """The parameters in the path, in order."""
        return tuple(_PLACEHOLDER.findall(self.path))

    @property
    def top_columns(self) -> Iterator[Column]:
        """The columns that have a type of their own, in order."""
        return (column for column in self.columns if not column.is_nested)


class _EndpointTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The TOML table as it stands in a file."""

    path: str
    method: Method = "GET"
    body: dict[str, object] | None = None
    params: dict[str, str | int | bool] = {}
    format: Format = "json"
    records: str = ""
    paging: Paging = NoPaging()
    parent: Parent | None = None
    keep: dict[str, str] = {}
    empty_on: tuple[int, ...] = ()
    auth_on: tuple[int, ...] = ()
    key: tuple[str, ...] = ()
    sync: str | dict[str, object] = "snapshot"
    tags: tuple[str, ...] = ()
    class_: Class = msgspec.field(default="", name="class")
    columns: dict[str, str | dict[str, str]] = {}
    enabled: bool = True
    origin: str = "spec"
    note: str = ""


def read_endpoint(name: str, table: object, *, file: str) -> Endpoint:
    """Check one TOML table and give the endpoint that it describes.

    Raises:
        ConfigError: one line that names the file, the table and the key.
    """
    where = f"{file}: [{name}]"
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{where}: a table's name has lower-case letters, digits and _ only")
    try:
        raw = msgspec.convert(table, _EndpointTable)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {_explain(error)}") from error
    try:
        endpoint = Endpoint(
            name=name,
            path=raw.path,
            method=raw.method,
            body=raw.body,
            params=tuple((key, _text(value)) for key, value in raw.params.items()),
            format=raw.format,
            records=raw.records,
            paging=raw.paging,
            parent=raw.parent,
            keep=tuple(raw.keep.items()),
            empty_on=raw.empty_on,
            auth_on=raw.auth_on,
            key=raw.key,
            sync=_read_sync(raw.sync),
            tags=raw.tags,
            class_=raw.class_,
            columns=tuple(_read_column(path, spec) for path, spec in raw.columns.items()),
            enabled=raw.enabled,
            origin=raw.origin,
            note=raw.note,
            file=file,
        )
        _check(endpoint)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error.message}") from error
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {_explain(error)}") from error
    return endpoint


def _check(endpoint: Endpoint) -> None:
    if not endpoint.path.startswith("/"):
        raise ConfigError(f"path {endpoint.path!r} must start with /")
    given = set(endpoint.parent.params) if endpoint.parent else set()
    missing = [name for name in endpoint.placeholders if name not in given]
    if missing:
        raise ConfigError(f"no parent parameter fills {{{missing[0]}}} of {endpoint.path}")
    if endpoint.parent and endpoint.parent.fallback_on and endpoint.placeholders:
        raise ConfigError(f"fallback_on: {endpoint.path} cannot be asked without its parent")
    if endpoint.parent and endpoint.parent.version and not endpoint.sync.is_event:
        raise ConfigError(
            "parent.version: only rows that stay are not asked for again, so sync must be append"
        )
    if endpoint.sync.is_event and not endpoint.key:
        raise ConfigError(f"sync = {endpoint.sync.kind!r} needs a key, or rows could be added twice")
    if refused := [status for status in endpoint.empty_on if status in (401, 403)]:
        raise ConfigError(f"empty_on may not hold {refused[0]}: refused is not empty")
    if endpoint.sync.window is not None:
        _check_window(endpoint.sync.window)
    match endpoint.paging:
        case TokenPaging(response_header="", response_pointer=None):
            raise ConfigError("paging kind token needs response_header or response_pointer")
        case PagePaging(pages_pointer=None, total_pointer=None):
            raise ConfigError("paging kind page needs pages_pointer or total_pointer")
        case OffsetPaging(limit=limit) if limit < 1:
            raise ConfigError("paging limit must be at least 1")
        case _:
            pass


def _check_window(window: Window) -> None:
    if window.step and not _STEP.fullmatch(window.step):
        raise ConfigError(
            f"sync.step {window.step!r} is no number of days, weeks or months such as 7d, 2w, 1M"
        )
    if window.format == "year_month" and not (window.step == "1M" and window.to_param):
        raise ConfigError('sync.format "year_month" needs step = "1M", and to_param for the month')
    try:
        parse_duration(window.lookback)
    except ConfigError as error:
        raise ConfigError(f"sync.lookback: {error.message}") from error
    try:
        datetime.fromisoformat(window.start or "2019-01-01")
    except ValueError as error:
        raise ConfigError(f"sync.start {window.start!r} is no date such as 2019-01-01") from error


def _read_sync(raw: str | dict[str, object]) -> Sync:
    if isinstance(raw, str):
        match raw:
            case "snapshot":
                return Sync(kind="snapshot")
            case "append":
                return Sync(kind="append")
            case "window":
                raise ConfigError(
                    'sync = "window" needs its parameters: sync = { kind = "window", from_param = … }'
                )
            case _:
                raise ConfigError(f"sync {raw!r} is none of snapshot, window, append")
    rest = {key: value for key, value in raw.items() if key != "kind"}
    match raw.get("kind"):
        case "snapshot" if not rest:
            return Sync(kind="snapshot")
        case "append":
            append = msgspec.convert(rest, _AppendTable)
            return Sync(kind="append", cursor=append.cursor, mutable=append.mutable)
        case "window":
            window = msgspec.convert(rest, Window)
            return Sync(kind="window", window=window, cursor=window.cursor, mutable=window.mutable)
        case _:
            raise ConfigError("sync.kind is none of snapshot, window, append")


class _AppendTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    cursor: str = ""
    mutable: tuple[str, ...] = ()


def _read_column(path: str, raw: str | dict[str, str]) -> Column:
    spec = {"type": raw} if isinstance(raw, str) else raw
    if unknown := set(spec) - {"type", "class"}:
        raise ConfigError(f"column {path!r}: {sorted(unknown)[0]!r} is none of type, class")
    class_: Class = msgspec.convert(spec["class"], Class) if "class" in spec else ""
    column = Column(path=path, type=parse_type(spec["type"]) if "type" in spec else None, class_=class_)
    if path.startswith("_"):
        raise ConfigError(f"column {path!r}: names that start with _ are the extractor's own")
    if column.is_nested and column.type is not None:
        raise ConfigError(
            f"column {path!r}: a value inside a column has a class only, its type stands in the column's"
        )
    if not column.is_nested and column.type is None and column.class_ != "secret":
        raise ConfigError(f"column {path!r} has no type")
    return column


def _text(value: str | int | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _explain(error: msgspec.ValidationError) -> str:
    return str(error).replace("`$.", "`").replace("Object contains", "").strip()
