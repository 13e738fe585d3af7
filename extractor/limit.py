"""One `acquire` for everything a request must wait for: a slot, the rate, and the pause all of them share.

The rate follows the server. A limit is taken for a token bucket that holds one second's worth of requests,
so a refusal says that the bucket is empty, and what was answered between two refusals says how fast it fills:
limit = answered / seconds. A rise that starts from a plateau just below that finds out, ever more seldom,
whether the limit is still the same. See `docs/decisions/0002-limiter.md`.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import anyio

from extractor.clock import Clock

__all__ = (
    "SHORTEST_PAUSE_SECONDS",
    "Limiter",
    "LimiterStatistics",
    "Limits",
    "RateHeaders",
    "parse_retry_after",
    "read_rate_headers",
)

SHORTEST_PAUSE_SECONDS = 0.1
"""The pause after a `Retry-After` that names no future moment: an attempt made at once would be burnt."""

_SLOWEST = 1 / 60
_CATCH_UP_SECONDS = 0.004
"""How much of the schedule a late event loop may make up for, to begin with: what timers are late by, …"""
_LONGEST_CATCH_UP_SECONDS = 0.5
"""… and at most, …"""
_CATCH_UP_GROWTH = 4
"""… in steps of this factor, …"""
_FORFEITED_SECONDS = 0.05
_FORFEITED_SHARE = 0.004
"""… each taken when more than so much, and more than this share of the time, was lost by being late."""
_ROUNDING_SECONDS = 1e-9
_DEFAULT_PAUSE_SECONDS = 1.0
_LONGEST_OWN_PAUSE_SECONDS = 60.0

_BUCKET_SECONDS = 1.0
"""The capacity a server's bucket is taken to have, as seconds of its limit."""
_BENEATH = 0.985
"""The share of a measured limit that is used while it is not being probed."""
_BLIND_CUT = 0.5
"""The deepest cut without any measure, …"""
_DOUBTFUL_CUT = 0.8
"""… and with one that the measure before it contradicts."""
_SHORTEST_EVIDENCE_SECONDS = 1.0
_FEW_ANSWERS = 4
"""With fewer since the last refusal most requests are refused: no measure, and no coincidence either."""
_SUSPICIOUS = 3
"""Cuts in vain after which refusals are taken to have nothing to do with the rate."""
_RISE_PER_SECOND = 1.1
_LONGEST_HOLD_SECONDS = 22.0
_LONGEST_SCALE_SECONDS = 70.0
"""After a hold and this long the rate is twice the plateau: how soon a doubled limit is found."""
_HISTORY_SECONDS = 120.0
_SAMPLE_SECONDS = 0.1
_LONGEST_POLICY_WINDOW_SECONDS = 60.0
"""A policy over a longer window is a quota, to be used when it is wanted, not spread over the window."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one run may ask of one account.

    `requests_per_second` is a ceiling. `starts_at` is the rate to begin with where nobody chose the ceiling;
    without it the ceiling is used from the start. `longest_pause_seconds` bounds what a server may impose.
    """

    requests_per_second: float
    burst: int = 1
    concurrency: int = 16
    starts_at: float | None = None
    longest_pause_seconds: float = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LimiterStatistics:
    """What the limiter does at one moment.

    `waiting_reason` says what the next request waits for: "rate", "pause", "concurrency", or "" if it may go.
    `paused_until` is in monotonic seconds and may be past; 0 before the first pause.
    """

    rate: float
    ceiling: float
    in_flight: int
    granted: int
    answered: int
    refused: int
    paused_until: float
    waiting_reason: str


@dataclass(slots=True)
class _Refusal:
    """The server's bucket was empty `at` that moment, after `answered` requests; `rate` was refused.

    The rest says what was made of it: the limit it was taken for, whether the cut went all the way there,
    how many cuts in a row were in vain, and the rate from before the first of these.
    """

    at: float
    answered: int
    rate: float
    seconds: float = 0.0
    estimate: float = 0.0
    evidence: int = 0
    suspicion: int = 0
    spared_rate: float = 0.0


def _agree(one: _Refusal, other: _Refusal) -> bool:
    """Whether two measures are of one limit, give or take a tenth and the request that rounding costs."""
    fewest = min(one.evidence, other.evidence)
    low, high = sorted((one.estimate, other.estimate))
    return fewest >= _FEW_ANSWERS and high <= low * (1.1 + 1 / fewest)


class Limiter:
    """Concurrency slots, request rate and shared pause of one account.

    `ready_at` and `try_acquire` decide and never wait; `acquire` waits for what they say, first come, first
    served. Each grant is given back by one `release`, after one report of how the attempt ended: `on_success`
    for any answer that does not ask to slow down (a 404 too), `on_throttled` for a 429, or a 503 that names a
    pause, and neither when no answer came. Pass the moment that `acquire` returned as `sent_at`, so that
    a refusal on its way since before a pause is not taken for one that came in spite of it.

    Steady requests keep to a schedule: the nth is granted no sooner than `t0 + (n - burst) / rate`. A caller
    that comes late may catch up 4 ms of it. Where wakes are so late that this costs throughput, it may be up to
    half a second, until a refusal shows that the server's bucket is too small for it.
    """

    def __init__(self, limits: Limits, clock: Clock, *, learnt: float | None = None) -> None:
        self._limits = limits
        self._clock = clock
        # Without a turn of the event loop for each grant: a late loop would get no further behind.
        self._turn = anyio.Lock(fast_acquire=True)
        self._changed: anyio.Event | None = None

        self._in_flight = 0
        self._granted = 0
        self._answered = 0
        self._refused = 0

        self._slot: float | None = None
        self._last_grant = -math.inf
        self._resume_at = -math.inf
        self._reset_at = -math.inf
        self._barren = 0
        self._is_probing = False

        self._catch_up_seconds = _CATCH_UP_SECONDS
        self._catch_up_requests = math.inf
        self._forfeited_seconds = 0.0
        self._forfeited_since = clock.monotonic()
        self._depth = 0.0
        self._proven_depth = float(limits.burst)
        self._deeper: deque[tuple[float, float]] = deque()
        self._is_burst_to_blame = False

        self._announced = math.inf
        self._refusals: deque[_Refusal] = deque(maxlen=16)
        self._samples: deque[tuple[float, int]] = deque()
        self._learnt = learnt
        self._knows_limit = learnt is not None
        self._active_seconds = 0.0
        self._hold_seconds = _LONGEST_HOLD_SECONDS
        self._scale_seconds = _LONGEST_SCALE_SECONDS
        if learnt is not None:
            self._base = learnt * _BENEATH
        elif limits.starts_at is not None:
            self._base = limits.starts_at
        else:
            self._base = limits.requests_per_second
        self._base = self._rate = self._bounded(self._base)

    # What is decided, without waiting

    def ready_at(self, now: float) -> float:
        """The first moment from `now` on when a request may go; infinity while an answer must come first."""
        if self._in_flight >= self._limits.concurrency or self._is_probing:
            return math.inf
        paused_until = max(self._resume_at, self._reset_at)
        if self._slot is None:
            return max(now, paused_until)
        return max(now, paused_until, self._slot + 1 / self._rate - _ROUNDING_SECONDS)

    def try_acquire(self, now: float) -> bool:
        """Take a slot if a request may go `now`; whoever waits in `acquire` is overtaken."""
        if self.ready_at(now) > now:
            return False
        interval = 1 / self._rate
        if self._slot is None:
            self._slot = now - (self._limits.burst - 1) * interval
        else:
            earliest = now - self._allowance_seconds
            self._slot = max(self._slot + interval, earliest, self._resume_at, self._reset_at)
        self._sample(now)
        self._plumb(now)
        # Growth is paid for by use: time in which far fewer requests went than might have proves nothing.
        self._active_seconds += min(now - self._last_grant, 4 * interval) if self._granted else 0.0
        self._last_grant = now
        self._is_probing = self._barren > 0
        self._in_flight += 1
        self._granted += 1
        return True

    async def acquire(self) -> float:
        """Wait for a slot, the rate and the end of any pause; the moment of the grant, for `sent_at`.

        Cancelled, it has taken nothing.
        """
        async with self._turn:
            while True:
                now = self._clock.monotonic()
                if self.try_acquire(now):
                    return now
                ready_at = self.ready_at(now)
                if ready_at == math.inf:
                    self._changed = anyio.Event()
                    await self._changed.wait()
                else:
                    await self._clock.sleep_until(ready_at)
                    self._forfeit(ready_at, self._clock.monotonic())

    async def renew(self, granted: float) -> float:
        """Let a grant of an earlier moment that could not be used count from now on; the new moment.

        It goes after any pause that began, and an interval after whoever was granted since.
        """
        while True:
            now = self._clock.monotonic()
            ready_at = max(self._resume_at, self._reset_at)
            if self._slot is not None and self._last_grant > granted:
                ready_at = max(ready_at, self._slot + 1 / self._rate - _ROUNDING_SECONDS)
            if ready_at <= now:
                self._slot = now if self._slot is None else max(self._slot, now)
                self._last_grant = now
                return now
            # Not in the line of those who wait for a slot: they may wait for this one.
            await self._clock.sleep_until(ready_at)

    def release(self) -> None:
        """Give a grant back; call it once for each."""
        if self._in_flight == 0:
            raise RuntimeError("release without acquire")
        self._in_flight -= 1
        self._is_probing = False
        self._wake()

    # What the server says

    def on_success(self, headers: Mapping[str, str] | None = None, *, sent_at: float | None = None) -> None:
        """Count an answer, rise if it is time to, and heed what its headers say about the limit."""
        now = self._clock.monotonic()
        self._answered += 1
        self._is_probing = False
        self._barren = 0
        if headers:
            self._heed(read_rate_headers(headers, now=self._clock.now()), now)
        self._prove(sent_at)
        if self._was_sent_before_the_pause(now, sent_at):
            if not self._is_burst_to_blame:
                self._refusals[-1].answered = self._answered
                self._cut()
        else:
            self._rise()
        self._wake()

    def on_throttled(
        self,
        *,
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
        sent_at: float | None = None,
    ) -> None:
        """Pause everybody and lower the rate, once for all refusals of requests sent before the pause.

        The rate stays when the request came closer behind others than any that was answered: then it was the
        catching up that the server's bucket was too small for, and there will be less of it.
        `retry_after` are the seconds the server named, as `parse_retry_after` gives them. Where it named none
        the pause is a second, and doubles while a pause is followed by a refusal and no answer at all.
        """
        now = self._clock.monotonic()
        self._refused += 1
        self._is_probing = False
        if headers:
            said = read_rate_headers(headers, now=self._clock.now())
            self._announce(said)
            if retry_after is None and said.reset_seconds:
                retry_after = said.reset_seconds
        if self._was_sent_before_the_pause(now, sent_at):
            if now < self._resume_at:
                self._resume_at = max(self._resume_at, now + self._pause_seconds(retry_after or 0.0))
                if not self._is_burst_to_blame:
                    self._refusals[-1].at = now
                    self._cut()
            elif retry_after is not None:
                # It took longer than the pause to come back, and names another: that is obeyed, no more.
                self._resume_at = now + self._pause_seconds(retry_after)
        elif self._refusals and self._answered == self._refusals[-1].answered:
            # Nothing was answered since the last refusal: the pause was too short; the rate may be right.
            self._barren += 1
            own = min(_DEFAULT_PAUSE_SECONDS * 2.0**self._barren, _LONGEST_OWN_PAUSE_SECONDS)
            self._resume_at = now + self._pause_seconds(max(own, retry_after or 0.0))
        else:
            self._resume_at = now + self._pause_seconds(
                _DEFAULT_PAUSE_SECONDS if retry_after is None else retry_after
            )
            self._is_burst_to_blame = any(at == sent_at for at, _ in self._deeper)
            if self._is_burst_to_blame:
                # Half: on the way requests come closer together, or further apart.
                self._catch_up_requests = (self._proven_depth - 1) / 2
            else:
                self._refusals.append(_Refusal(at=now, answered=self._answered, rate=self._rate))
                self._cut()
        # What else was under way may be refused as well, and a later answer would prove it.
        self._deeper.clear()
        self._wake()

    def statistics(self) -> LimiterStatistics:
        """A snapshot: counts since the start, and what the next request would wait for now."""
        now = self._clock.monotonic()
        paused_until = max(self._resume_at, self._reset_at)
        if now < paused_until:
            reason = "pause"
        elif self._is_probing or self._in_flight >= self._limits.concurrency:
            reason = "concurrency"
        else:
            reason = "rate" if self.ready_at(now) > now else ""
        return LimiterStatistics(
            rate=self._rate,
            ceiling=self._ceiling,
            in_flight=self._in_flight,
            granted=self._granted,
            answered=self._answered,
            refused=self._refused,
            paused_until=max(0.0, paused_until),
            waiting_reason=reason,
        )

    @property
    def learnt(self) -> float | None:
        """The server's limit as measured, for the next run; None if it never showed."""
        if self._learnt is None or self._refusals:
            return self._learnt
        return max(self._learnt, self._rate)

    # What a late loop may catch up

    @property
    def _allowance_seconds(self) -> float:
        saved = min(self._catch_up_seconds, self._catch_up_requests / self._rate)
        return max((self._limits.burst - 1) / self._rate, saved)

    def _forfeit(self, due: float, now: float) -> None:
        """Count what a wake at `now` instead of `due` costs; where that is too much, allow for more."""
        self._forfeited_seconds += max(0.0, now - due - self._allowance_seconds)
        enough = max(_FORFEITED_SECONDS, _FORFEITED_SHARE * (now - self._forfeited_since))
        if self._forfeited_seconds > enough:
            longer = _CATCH_UP_GROWTH * self._catch_up_seconds
            self._catch_up_seconds = min(longer, _LONGEST_CATCH_UP_SECONDS)
            self._forfeited_seconds = 0.0
            self._forfeited_since = now

    def _plumb(self, now: float) -> None:
        """Note how much of a bucket a grant uses that fills as fast as requests go, if it is more than ever."""
        self._depth = max(0.0, self._depth - self._rate * (now - self._last_grant)) + 1
        deepest = self._deeper[-1][1] if self._deeper else self._proven_depth
        if self._depth > deepest + _ROUNDING_SECONDS:
            self._deeper.append((now, self._depth))

    def _prove(self, sent_at: float | None) -> None:
        """The server's bucket is as deep as an answered request needed."""
        while self._deeper and sent_at is not None and self._deeper[0][0] <= sent_at:
            at, self._proven_depth = self._deeper.popleft()
            if at == sent_at:
                break

    # How the rate moves

    @property
    def _ceiling(self) -> float:
        return min(self._limits.requests_per_second, self._announced)

    def _bounded(self, rate: float) -> float:
        return min(max(rate, _SLOWEST), self._ceiling)

    def _rise(self) -> None:
        """Rise by a tenth a second before the first refusal; later, stay, then rise as a cubic does."""
        if not self._knows_limit:
            factor = _RISE_PER_SECOND ** min(self._active_seconds, 1000.0)
        else:
            factor = 1 + (max(0.0, self._active_seconds - self._hold_seconds) / self._scale_seconds) ** 3
        self._rate = self._bounded(self._base * factor)

    def _cut(self) -> None:
        """Settle just below what the refusals so far say about the limit.

        Called again when late answers of the same generation change the count.
        """
        last = self._refusals[-1]
        last.estimate, last.seconds, last.evidence = self._measure(last)
        self._suspect(last)
        before = self._refusals[-2] if len(self._refusals) > 1 else None
        rate = _BENEATH * min(last.estimate, last.rate)
        if last.suspicion >= _SUSPICIOUS:
            rate = last.spared_rate
        elif before is None or last.evidence < _FEW_ANSWERS:
            rate = max(rate, last.rate * _BLIND_CUT)
        elif _agree(before, last):
            self._learnt = last.estimate
        else:
            rate = max(rate, last.rate * _DOUBTFUL_CUT)
        self._knows_limit = True
        self._base = self._rate = self._bounded(rate)
        self._active_seconds = 0.0
        # The shorter the evidence, the sooner it is tried again: each cycle lasts about twice as long.
        self._hold_seconds = min(max(last.seconds / 2, 0.5), _LONGEST_HOLD_SECONDS)
        self._scale_seconds = min(max(last.seconds * 2, 5.0), _LONGEST_SCALE_SECONDS)

    def _suspect(self, last: _Refusal) -> None:
        """Count how often cutting the rate to what was measured did not make the next refusal come later.

        A real limit shows the same measure again, or leaves a rate beneath it alone for longer and longer.
        Refusals at random do neither and would drive the rate towards nothing. Then the rate from before is
        tried again, and higher ones while most requests are answered, until the measures agree: a pause
        after each refusal is enough for any server, the rate only makes refusals rare.
        """
        last.suspicion, last.spared_rate = 0, last.rate
        *earlier, before = list(self._refusals)[-4:-1] or [last]
        if all(_agree(refusal, last) for refusal in (*earlier, before)):
            return
        answers = last.answered - before.answered
        is_later = (
            last.seconds >= min(1.5 * max(before.seconds, 4.0), 40.0) and answers >= 1.5 * before.evidence
        )
        if is_later or answers < _FEW_ANSWERS:
            last.suspicion = max(0, before.suspicion - 1)
        else:
            last.suspicion = before.suspicion + 1
        if last.suspicion:
            last.spared_rate = before.spared_rate
        if last.suspicion >= _SUSPICIOUS:
            greatest = max(refusal.estimate for refusal in (*earlier, before, last))
            factor = 1.5 if answers >= 2 * _FEW_ANSWERS else 0.95
            last.spared_rate = min(last.spared_rate * factor, 4 * greatest)

    def _measure(self, last: _Refusal) -> tuple[float, float, int]:
        """The limit that explains the last refusal; the seconds and the answers that it rests on.

        A bucket that was empty at an earlier refusal gave `limit * seconds` since, unless it ran over in
        between; one that was full at some moment gave what it held and then the same. It is empty now, so
        the limit is the greatest of these.
        """
        since = None
        for refusal in self._refusals:
            if last.at - refusal.at >= _SHORTEST_EVIDENCE_SECONDS:
                since = refusal
        start, answered = (-math.inf, 0) if since is None else (since.at, since.answered)
        estimate = 0.0 if since is None else (last.answered - answered) / (last.at - start)
        for moment, count in self._samples:
            if start <= moment <= last.at:
                estimate = max(estimate, (last.answered - count) / (_BUCKET_SECONDS + last.at - moment))
        if since is None:
            first = self._samples[0][0] if self._samples else last.at
            return estimate, last.at - first, last.answered
        return estimate, last.at - start, last.answered - answered

    def _sample(self, now: float) -> None:
        if self._samples and now - self._samples[-1][0] < _SAMPLE_SECONDS:
            return
        self._samples.append((now, self._answered))
        while now - self._samples[0][0] > _HISTORY_SECONDS:
            self._samples.popleft()

    # Particulars

    def _was_sent_before_the_pause(self, now: float, sent_at: float | None) -> bool:
        return (now if sent_at is None else sent_at) < self._resume_at

    def _pause_seconds(self, seconds: float) -> float:
        return min(max(seconds, SHORTEST_PAUSE_SECONDS), self._limits.longest_pause_seconds)

    def _heed(self, said: RateHeaders, now: float) -> None:
        self._announce(said)
        if said.remaining is not None and said.remaining < 1 and said.reset_seconds is not None:
            pause = min(said.reset_seconds, self._limits.longest_pause_seconds)
            self._reset_at = max(self._reset_at, now + pause)

    def _announce(self, said: RateHeaders) -> None:
        if said.requests_per_second is not None:
            self._announced = max(said.requests_per_second, _SLOWEST)
            self._rate = min(self._rate, self._ceiling)

    def _wake(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None


# What headers say


@dataclass(frozen=True, slots=True, kw_only=True)
class RateHeaders:
    """What an answer's headers say about the limit; None where they say nothing that can be understood."""

    requests_per_second: float | None = None
    remaining: float | None = None
    reset_seconds: float | None = None


_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)", re.ASCII)
_FIELD = re.compile(r"x?-?rate-?limit(?:-(limit|remaining|reset|policy))?", re.ASCII | re.IGNORECASE)
_PARAMETER = re.compile(r"([a-z]+)\s*=\s*\"?([^\s;,\"]+)", re.ASCII | re.IGNORECASE)
_UNHEARD = RateHeaders()
_EPOCH_SECONDS = 1e9
_EPOCH_MILLISECONDS = 1e11


def read_rate_headers(headers: Mapping[str, str], *, now: datetime) -> RateHeaders:
    """The limit, the remaining requests and the seconds to the reset, in any of the forms in use.

    `RateLimit-*` and `X-RateLimit-*`, `RateLimit: limit=…, remaining=…, reset=…`, `RateLimit: "…";r=…;t=…`,
    `RateLimit-Policy`. A reset beyond 10^9 is an epoch time, in milliseconds beyond 10^11, compared with the
    server's `Date` or else `now`. A policy counts if its window is a minute at most. Names have any case.
    """
    fields: dict[str, str] = {}
    for name, value in headers.items():
        matched = _FIELD.fullmatch(name)
        if matched is not None:
            fields[(matched[1] or "both").lower()] = value
    if not fields:
        return _UNHEARD
    remaining = _leading_number(fields.get("remaining"))
    reset = _leading_number(fields.get("reset"))
    for item in _items(fields.get("both", "")):
        remaining = _least(remaining, item.get("remaining", item.get("r")))
        reset = _most(reset, item.get("reset", item.get("t")))
    if reset is not None and reset >= _EPOCH_SECONDS:
        here = next((_date(value) for name, value in headers.items() if name.lower() == "date"), None) or now
        reset = (reset / 1000 if reset >= _EPOCH_MILLISECONDS else reset) - here.timestamp()
    return RateHeaders(
        requests_per_second=_slowest_policy(fields),
        remaining=None if remaining is None else max(0.0, remaining),
        reset_seconds=None if reset is None else max(0.0, reset),
    )


def parse_retry_after(text: str | None, *, now: datetime, longest_seconds: float) -> float | None:
    """The seconds that a `Retry-After` asks for, between `SHORTEST_PAUSE_SECONDS` and `longest_seconds`.

    Whole or fractional seconds, or a date in any of HTTP's three forms, seen from `now` (the server's `Date`
    if there is one). Zero, negative seconds and past dates give the shortest pause, absurd ones the longest.
    Of several values, as from a header sent twice, the longest counts. None if there is no header or it
    cannot be understood.
    """
    if text is None:
        return None
    numbers = [float(part) for part in map(str.strip, text.split(",")) if _NUMBER.fullmatch(part)]
    if numbers:
        seconds = max(numbers)
    else:
        moment = _date(text)
        if moment is None:
            return None
        seconds = (moment - now).total_seconds()
    return min(max(seconds, SHORTEST_PAUSE_SECONDS), longest_seconds)


def _date(text: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _leading_number(text: str | None) -> float | None:
    """The number a field starts with: `100, 100;w=60` is 100."""
    part = "" if text is None else re.split(r"[;,]", text, maxsplit=1)[0].strip()
    return float(part) if _NUMBER.fullmatch(part) else None


def _items(text: str) -> list[dict[str, float]]:
    """The parameters of each policy in a `RateLimit` field; those of the older form are one policy."""
    parts = [text] if re.search(r"\b(remaining|reset|limit)\s*=", text, re.IGNORECASE) else text.split(",")
    return [
        {name.lower(): float(value) for name, value in _PARAMETER.findall(part) if _NUMBER.fullmatch(value)}
        for part in parts
    ]


def _slowest_policy(fields: Mapping[str, str]) -> float | None:
    """The least requests a second that a stated policy allows: `50;w=1`, or `"default";q=50;w=1`."""
    rates = []
    for text in (fields.get("policy", ""), fields.get("limit", "")):
        for part in text.split(","):
            (item,) = _items(part)
            quota, window = item.get("q", _leading_number(part)), item.get("w")
            if quota and window and quota > 0 and 0 < window <= _LONGEST_POLICY_WINDOW_SECONDS:
                rates.append(quota / window)
    return min(rates, default=None)


def _least(one: float | None, other: float | None) -> float | None:
    return min((value for value in (one, other) if value is not None), default=None)


def _most(one: float | None, other: float | None) -> float | None:
    return max((value for value in (one, other) if value is not None), default=None)
