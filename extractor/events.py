"""What happened, as values: the core emits events and never logs; observers listen.

An observer is a callable; it must not raise and should return at once. Events carry names and counts,
never rows, bodies or credentials.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

__all__ = (
    "Committed",
    "Event",
    "Observer",
    "PageStored",
    "RequestFailed",
    "RequestRetried",
    "RequestSucceeded",
    "RunFinished",
    "RunStarted",
    "TableFinished",
    "Throttled",
    "TokenRefreshed",
    "Warned",
    "ignore",
)


class RunStarted(msgspec.Struct, frozen=True, kw_only=True):
    """A run begins: its id, where it writes, and the tables it will fill."""

    run_id: str
    lake: str
    tables: tuple[tuple[str, str], ...]
    """Pairs of table and account."""


class RequestSucceeded(msgspec.Struct, frozen=True, kw_only=True):
    """One answer arrived whole."""

    table: str
    account: str
    status: int
    size_bytes: int
    elapsed_seconds: float


class RequestRetried(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt failed and the request waits for another."""

    table: str
    account: str
    reason: str
    attempt: int
    pause_seconds: float


class RequestFailed(msgspec.Struct, frozen=True, kw_only=True):
    """A request is given up; `is_absent` where the API has no such resource, which is no fault."""

    table: str
    account: str
    reason: str
    is_absent: bool = False


class Throttled(msgspec.Struct, frozen=True, kw_only=True):
    """The server asked for fewer requests; all of them pause."""

    account: str
    pause_seconds: float
    requests_per_second: float


class TokenRefreshed(msgspec.Struct, frozen=True, kw_only=True):
    """A new bearer token is in use."""

    account: str
    generation: int
    lifetime_seconds: float


class PageStored(msgspec.Struct, frozen=True, kw_only=True):
    """The rows of one page are decoded and on their way to the data file."""

    table: str
    account: str
    rows: int


class TableFinished(msgspec.Struct, frozen=True, kw_only=True):
    """All that could be read of one table and account has been read, or given up."""

    table: str
    account: str
    status: str
    rows: int
    reason: str


class Committed(msgspec.Struct, frozen=True, kw_only=True):
    """The log has a new entry: everything in it is now visible."""

    sequence: int
    run_id: str
    files: int
    rows: int
    size_bytes: int


class Warned(msgspec.Struct, frozen=True, kw_only=True):
    """Something a person should know, in one line."""

    message: str
    table: str = ""
    account: str = ""


class RunFinished(msgspec.Struct, frozen=True, kw_only=True):
    """The run is over."""

    run_id: str
    status: str
    exit_code: int


Event = (
    RunStarted
    | RequestSucceeded
    | RequestRetried
    | RequestFailed
    | Throttled
    | TokenRefreshed
    | PageStored
    | TableFinished
    | Committed
    | Warned
    | RunFinished
)
Observer = Callable[[Event], None]


def ignore(event: Event) -> None:
    """The observer that listens to nothing."""
