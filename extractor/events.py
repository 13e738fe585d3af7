"""What happened, as values: the core emits events and never logs; observers listen.

An observer is a callable; it must not raise and should return at once. Events carry names and counts,
never rows, bodies or credentials.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted:
    """A run begins: its id, where it writes, and the tables it will fill."""

    run_id: str
    lake: str
    tables: tuple[tuple[str, str], ...]
    """Pairs of table and account."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestSucceeded:
    """One answer arrived whole."""

    table: str
    account: str
    status: int
    size_bytes: int
    elapsed_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRetried:
    """An attempt failed and the request waits for another."""

    table: str
    account: str
    reason: str
    attempt: int
    pause_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestFailed:
    """A request is given up."""

    table: str
    account: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Throttled:
    """The server asked for fewer requests; all of them pause."""

    account: str
    pause_seconds: float
    requests_per_second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRefreshed:
    """A new bearer token is in use."""

    account: str
    generation: int
    lifetime_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PageStored:
    """The rows of one page are decoded and on their way to the data file."""

    table: str
    account: str
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TableFinished:
    """All that could be read of one table and account has been read, or given up."""

    table: str
    account: str
    status: str
    rows: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """The log has a new entry: everything in it is now visible."""

    sequence: int
    run_id: str
    files: int
    rows: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Warned:
    """Something a person should know, in one line."""

    message: str
    table: str = ""
    account: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFinished:
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
