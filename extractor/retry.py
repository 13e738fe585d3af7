"""Which failed attempts deserve another, and when: one table and one decision, both pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from types import MappingProxyType

from extractor.errors import (
    AuthError,
    BodyTooLarge,
    ExtractError,
    MalformedBody,
    NetworkError,
    PagingError,
    RedirectRefused,
    StatusError,
)
from extractor.limit import parse_retry_after

__all__ = (
    "ERROR_VERDICTS",
    "STATUS_VERDICTS",
    "GiveUp",
    "RetryAt",
    "RetryPolicy",
    "Verdict",
    "classify",
    "decide",
    "is_throttling",
)


class Verdict(Enum):
    """What a failed attempt says about its request."""

    TRANSIENT = "transient"
    """Another attempt may succeed."""
    AUTH = "auth"
    """The credential is not accepted; with a fresh token one more attempt may be."""
    DENIED = "denied"
    """The credential is accepted and may not read this."""
    ABSENT = "absent"
    """There is no such thing."""
    TOO_LARGE = "too_large"
    """The answer, or what was asked for, is beyond a bound."""
    FATAL = "fatal"
    """The same request will fail the same way."""


# The table. Of the errors the first that matches counts.
STATUS_VERDICTS: Mapping[int, Verdict] = MappingProxyType(
    {
        401: Verdict.AUTH,
        403: Verdict.DENIED,
        404: Verdict.ABSENT,
        408: Verdict.TRANSIENT,
        410: Verdict.ABSENT,
        413: Verdict.TOO_LARGE,
        425: Verdict.TRANSIENT,
        429: Verdict.TRANSIENT,
        # Every 5xx is transient, every other status that is no success is fatal: see `classify`.
    }
)
ERROR_VERDICTS: Mapping[type[ExtractError], Verdict] = MappingProxyType(
    {
        AuthError: Verdict.AUTH,
        NetworkError: Verdict.TRANSIENT,
        MalformedBody: Verdict.TRANSIENT,
        BodyTooLarge: Verdict.TOO_LARGE,
        RedirectRefused: Verdict.FATAL,
        PagingError: Verdict.FATAL,
        # Any other error is fatal.
    }
)

_THROTTLED_FACTOR = 5
"""Refusals by a rate limit are no fault of the request: it may meet this many times more of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often and how long one request may be tried.

    `longest_seconds` counts from the first attempt, pauses included. A pause of the client's own grows by
    `factor` from `first_pause_seconds` to `longest_pause_seconds`.
    """

    attempts: int = 6
    longest_seconds: float = 600.0
    first_pause_seconds: float = 1.0
    factor: float = 2.0
    longest_pause_seconds: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryAt:
    """The request may run again once the monotonic clock reads `not_before`."""

    not_before: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveUp:
    """The request is over; `reason` says why in a few words for people."""

    reason: str


def classify(failure: ExtractError) -> Verdict:
    """The verdict of the table on one failure."""
    if isinstance(failure, StatusError):
        fallback = Verdict.TRANSIENT if 500 <= failure.status <= 599 else Verdict.FATAL
        return STATUS_VERDICTS.get(failure.status, fallback)
    for kind, verdict in ERROR_VERDICTS.items():
        if isinstance(failure, kind):
            return verdict
    return Verdict.FATAL


def is_throttling(failure: ExtractError) -> bool:
    """Whether the server asked all requests to slow down: a 429, or a 503 that names a pause."""
    if not isinstance(failure, StatusError):
        return False
    return failure.status == 429 or (failure.status == 503 and "retry-after" in failure.headers)


def decide(
    failure: ExtractError,
    *,
    attempt: int,
    first_at: float,
    now: float,
    server_now: datetime,
    policy: RetryPolicy,
    chance: float,
) -> RetryAt | GiveUp:
    """Say whether a failed attempt deserves another, and when.

    Depends on its arguments only. `attempt` counts the attempts made so far, this one included; `first_at`
    and `now` are monotonic seconds; `server_now` is the failed answer's `Date`, or the own time, and serves
    to read a `Retry-After` that is a date; `chance` in [0, 1) spreads the pauses of requests that failed
    together over the upper half of the pause. A pause that the server names is kept to. Throttled attempts,
    whose pause the limiter imposes on everybody, may be five times as many.
    """
    verdict = classify(failure)
    if verdict is not Verdict.TRANSIENT:
        return GiveUp(reason=verdict.value)
    is_throttled = is_throttling(failure)
    attempts = policy.attempts * _THROTTLED_FACTOR if is_throttled else policy.attempts
    if attempt >= attempts:
        return GiveUp(reason=f"{attempt} attempt{'s' if attempt > 1 else ''} failed")
    named = None
    if isinstance(failure, StatusError):
        text = failure.headers.get("retry-after")
        # Beyond what is left is as good as never: `inf` keeps such a pause from being cut into the bound.
        named = parse_retry_after(text, now=server_now, longest_seconds=float("inf"))
    # The limiter makes everybody pause after a throttled attempt, so that this one need not wait ever longer.
    own = _own_pause(1 if is_throttled else attempt, policy=policy, chance=chance)
    pause_seconds = own if named is None else named
    if now + pause_seconds - first_at > policy.longest_seconds:
        return GiveUp(reason=f"no attempt left within {policy.longest_seconds:g} s")
    return RetryAt(not_before=now + pause_seconds)


def _own_pause(attempt: int, *, policy: RetryPolicy, chance: float) -> float:
    try:
        base = min(policy.first_pause_seconds * policy.factor ** (attempt - 1), policy.longest_pause_seconds)
    except OverflowError:
        base = policy.longest_pause_seconds
    return base * (0.5 + chance / 2)
