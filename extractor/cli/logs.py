"""Events as lines of a log, for people and for whatever collects a job's stderr."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from extractor.events import (
    Committed,
    Event,
    Observer,
    PageStored,
    RequestFailed,
    RequestRetried,
    RequestSucceeded,
    RunFinished,
    RunStarted,
    TableFinished,
    Throttled,
    TokenRefreshed,
    Warned,
)

__all__ = ("DEBUG", "INFORMATION", "NOTHING", "WARNING", "log_lines")

NOTHING, WARNING, INFORMATION, DEBUG = range(4)
_LABELS = {WARNING: "warning", INFORMATION: "info", DEBUG: "debug"}
_FAULTS = ("partial", "failed", "denied", "held")


def log_lines(
    write: Callable[[str], None], *, level: int, now: Callable[[], datetime] = lambda: datetime.now(UTC)
) -> Observer:
    """An observer that writes one line for each event up to `level`."""

    def observe(event: Event) -> None:
        if level < DEBUG and isinstance(event, RequestSucceeded | PageStored):
            return  # they come with every request
        weight, text = _described(event)
        if weight <= level:
            write(f"{now():%Y-%m-%dT%H:%M:%SZ} {_LABELS[weight]}: {text}")

    return observe


def _described(event: Event) -> tuple[int, str]:
    match event:
        case Warned():
            return WARNING, f"{_where(event)}: {event.message}" if event.table else event.message
        case TableFinished():
            weight = WARNING if event.status in _FAULTS else INFORMATION
            reason = f": {event.reason}" if event.reason else ""
            return weight, f"{_where(event)}: {event.status}, {event.rows:,} rows{reason}"
        case RequestFailed():
            return INFORMATION, f"{_where(event)}: given up: {event.reason}"
        case RequestRetried():
            again = f"attempt {event.attempt} failed, again in {event.pause_seconds:.1f} s"
            return INFORMATION, f"{_where(event)}: {again}: {event.reason}"
        case Throttled():
            pause = f"all requests pause for {event.pause_seconds:.1f} s"
            return INFORMATION, f"throttled ({event.account}): {pause}, then {event.requests_per_second:g}/s"
        case RunStarted():
            return INFORMATION, f"run {event.run_id} into {event.lake}, {len(event.tables)} tables"
        case Committed():
            return (
                INFORMATION,
                f"committed entry {event.sequence}: {event.rows:,} rows, {event.files:,} files",
            )
        case RunFinished():
            return INFORMATION, f"run {event.run_id} {event.status}, exit code {event.exit_code}"
        case TokenRefreshed():
            life = f"good for {event.lifetime_seconds:.0f} s"
            return INFORMATION, f"bearer token {event.generation} ({event.account}), {life}"
        case RequestSucceeded():
            answer = f"{event.status}, {event.size_bytes:,} bytes, {event.elapsed_seconds:.3f} s"
            return DEBUG, f"{_where(event)}: {answer}"
        case PageStored():
            return DEBUG, f"{_where(event)}: page of {event.rows:,} rows"


def _where(
    event: Warned | TableFinished | RequestFailed | RequestRetried | RequestSucceeded | PageStored,
) -> str:
    return event.table if event.account in ("", "default") else f"{event.table} ({event.account})"
