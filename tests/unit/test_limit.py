from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extractor.limit import (
    SHORTEST_PAUSE_SECONDS,
    Limiter,
    LimiterStatistics,
    Limits,
    RateHeaders,
    parse_retry_after,
    read_rate_headers,
)
from extractor.testing import VirtualClock

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


class HandClock:
    """A clock that stands where it is put: the simulation below awaits nothing."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return NOW + timedelta(seconds=self.seconds)

    async def sleep_until(self, deadline: float) -> None:
        raise AssertionError("nothing waits here")


class Server(Protocol):
    pause: float | None

    def admits(self, now: float) -> bool: ...


class Bucket:
    """Refuses what finds less than one token; holds `capacity` seconds' worth of them."""

    def __init__(
        self, limit: Callable[[float], float], *, capacity: float = 1.0, pause: float | None = 1.0
    ) -> None:
        self.limit = limit
        self.capacity = capacity
        self.pause = pause
        self.tokens = math.inf
        self.at = 0.0

    def admits(self, now: float) -> bool:
        limit = self.limit(now)
        self.tokens = min(max(1.0, limit * self.capacity), self.tokens + limit * (now - self.at))
        self.at = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


class Window:
    """Refuses what exceeds the quota of the current window, and names no pause."""

    pause: float | None = None

    def __init__(self, quota: int, seconds: float) -> None:
        self.quota = quota
        self.seconds = seconds
        self.number = -1
        self.used = 0

    def admits(self, now: float) -> bool:
        number = int(now // self.seconds)
        if number != self.number:
            self.number, self.used = number, 0
        self.used += 1
        return self.used <= self.quota


class Capricious:
    """Refuses by chance, whatever the rate."""

    pause: float | None = 1.0

    def __init__(self, share: float) -> None:
        self.share = share
        self.random = random.Random(7)

    def admits(self, now: float) -> bool:
        return self.random.random() >= self.share


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    at: float
    is_answered: bool


def simulate(
    server: Server, limits: Limits, *, seconds: float, lateness: tuple[float, float] = (0.0, 0.0)
) -> list[Asked]:
    """What the server saw of a client with endless requests; asking and being told takes 1 to 5 ms."""
    chance = random.Random(1)
    clock = HandClock()
    limiter = Limiter(limits, clock)
    seen: list[Asked] = []
    events: list[tuple[float, int, str, float]] = [(0.0, 0, "wake", 0.0)]
    order = 0
    is_woken = True
    while events[0][0] < seconds:
        now, _, kind, sent_at = heapq.heappop(events)
        clock.seconds = now
        order += 1
        if kind == "arrive":
            seen.append(Asked(at=now, is_answered=server.admits(now)))
            outcome = "answered" if seen[-1].is_answered else "refused"
            heapq.heappush(events, (now + chance.uniform(0.0005, 0.0025), order, outcome, sent_at))
            continue
        if kind == "wake":
            is_woken = False
        elif kind == "answered":
            limiter.on_success(sent_at=sent_at)
            limiter.release()
        else:
            limiter.on_throttled(retry_after=server.pause, sent_at=sent_at)
            limiter.release()
        while limiter.try_acquire(now):
            order += 1
            heapq.heappush(events, (now + chance.uniform(0.0005, 0.0025), order, "arrive", now))
        ready_at = limiter.ready_at(now)
        if ready_at < math.inf and not is_woken:
            is_woken = True
            order += 1
            heapq.heappush(events, (ready_at + chance.uniform(*lateness), order, "wake", 0.0))
    return seen


def answered(seen: list[Asked], start: float, end: float) -> int:
    return sum(one.is_answered for one in seen if start <= one.at < end)


def refused(seen: list[Asked], start: float, end: float) -> int:
    return sum(not one.is_answered for one in seen if start <= one.at < end)


def constant(limit: float) -> Callable[[float], float]:
    return lambda now: limit


# The schedule


@pytest.mark.parametrize("burst", [1, 3])
def test_the_nth_request_goes_when_its_turn_has_come_and_no_sooner(burst: int) -> None:
    clock = HandClock()
    limiter = Limiter(Limits(requests_per_second=4, burst=burst, concurrency=100), clock)
    grants = []
    for _ in range(8):
        clock.seconds = limiter.ready_at(clock.seconds)
        assert limiter.try_acquire(clock.seconds)
        grants.append(clock.seconds)

    assert grants == pytest.approx([max(0, n - burst) * 0.25 for n in range(1, 9)], abs=1e-6)


def test_between_turns_nothing_is_granted() -> None:
    limiter = Limiter(Limits(requests_per_second=4), HandClock())

    assert limiter.try_acquire(0.0)
    limiter.release()

    assert not limiter.try_acquire(0.2499)
    assert limiter.try_acquire(0.25)


@given(
    rate=st.floats(0.5, 2000),
    burst=st.integers(1, 20),
    waits=st.lists(st.one_of(st.just(0.0), st.floats(0, 0.01), st.floats(0, 20)), max_size=150),
)
def test_no_window_holds_more_than_rate_and_burst_and_what_a_late_loop_may_catch_up(
    rate: float, burst: int, waits: list[float]
) -> None:
    limiter = Limiter(Limits(requests_per_second=rate, burst=burst, concurrency=10**6), HandClock())
    now, grants = 0.0, []
    for wait in waits:
        now = max(now + wait, limiter.ready_at(now))
        assert limiter.try_acquire(now)
        grants.append(now)

    slack = rate * 0.004
    for first, start in enumerate(grants):
        for last in range(first, len(grants)):
            assert last - first + 1 <= rate * (grants[last] - start) + burst + slack + 1e-6
    for n, at in enumerate(grants, 1):
        assert at >= grants[0] + (n - burst) / rate - 1e-6


@pytest.mark.parametrize(("burst", "most"), [(1, 5), (30, 30)])
def test_an_idle_minute_saves_up_the_burst_or_four_milliseconds_and_no_more(burst: int, most: int) -> None:
    limiter = Limiter(Limits(requests_per_second=1000, burst=burst, concurrency=1000), HandClock())
    limiter.try_acquire(0.0)

    assert sum(limiter.try_acquire(60.0) for _ in range(100)) == most


@pytest.mark.parametrize(("rate", "least"), [(10, 0.99), (50, 0.99), (200, 0.99), (1000, 0.98)])
def test_a_loop_whose_timers_are_late_still_uses_the_rate(rate: float, least: float) -> None:
    limits = Limits(requests_per_second=rate, concurrency=64)

    seen = simulate(Bucket(constant(1e6)), limits, seconds=20, lateness=(0.001, 0.002))

    assert least * rate * 20 <= len(seen) <= rate * 20 + 1


# A late loop


class LateClock(HandClock):
    """Wakes a sleeper up to 2 ms late, and every so many times by a whole `stall`."""

    def __init__(self, *, stall: float = 0.0, every: int = 1) -> None:
        super().__init__()
        self.stall = stall
        self.every = every
        self.wakes = 0
        self.chance = random.Random(3)

    async def sleep_until(self, deadline: float) -> None:
        self.wakes += 1
        late = self.chance.uniform(0, 0.002) + self.stall * (self.wakes % self.every == 0)
        self.seconds = max(self.seconds, deadline) + late


async def paced(server: Server, limiter: Limiter, clock: LateClock, *, seconds: float) -> list[Asked]:
    """What the server saw of a client that is answered at once."""
    seen: list[Asked] = []
    while clock.seconds < seconds:
        sent_at = await limiter.acquire()
        seen.append(Asked(at=sent_at, is_answered=server.admits(sent_at)))
        if seen[-1].is_answered:
            limiter.on_success(sent_at=sent_at)
        else:
            limiter.on_throttled(retry_after=server.pause, sent_at=sent_at)
        limiter.release()
    return seen


@pytest.mark.parametrize("rate", [5, 50, 200])
async def test_a_server_that_allows_two_at_once_refuses_nothing_though_timers_are_late(rate: float) -> None:
    clock = LateClock()
    limiter = Limiter(Limits(requests_per_second=rate), clock)

    seen = await paced(Bucket(constant(rate), capacity=2 / rate), limiter, clock, seconds=60)

    assert answered(seen, 0, 60) >= 0.995 * rate * 60
    assert refused(seen, 0, 60) == 0


@pytest.mark.parametrize(
    ("rate", "stall", "every"),
    [(5, 0.3, 20), (50, 0.03, 10), (50, 0.3, 200), (200, 0.02, 20), (200, 0.1, 50), (1000, 0.02, 20)],
)
async def test_a_loop_that_stalls_so_often_that_it_costs_throughput_may_catch_up_more(
    rate: float, stall: float, every: int
) -> None:
    clock = LateClock(stall=stall, every=every)
    limiter = Limiter(Limits(requests_per_second=rate), clock)

    seen = await paced(Bucket(constant(rate)), limiter, clock, seconds=40)

    assert answered(seen, 20, 40) >= 0.995 * rate * 20 - 1
    assert refused(seen, 0, 40) == 0


async def test_a_loop_that_stalls_seldom_may_catch_up_no_more_for_it() -> None:
    clock = LateClock(stall=0.04, every=2_000)
    limiter = Limiter(Limits(requests_per_second=200), clock)

    seen = await paced(Bucket(constant(200), capacity=2 / 200), limiter, clock, seconds=120)

    assert answered(seen, 0, 120) >= 0.99 * 200 * 120
    assert refused(seen, 0, 120) == 0


@pytest.mark.parametrize("requests", [3, 5, 20])
async def test_a_refusal_that_only_the_catching_up_earned_ends_that_and_leaves_the_rate(
    requests: int,
) -> None:
    clock = LateClock(stall=0.15, every=40)
    limiter = Limiter(Limits(requests_per_second=200), clock)

    seen = await paced(Bucket(constant(200), capacity=requests / 200), limiter, clock, seconds=60)

    # The loop is awake for 200 of each 350 ms.
    assert limiter.statistics().rate == 200
    assert refused(seen, 0, 60) == 1
    assert answered(seen, 5, 60) >= 0.55 * 200 * 55


async def test_a_grant_that_could_not_be_used_at_once_counts_from_when_it_can() -> None:
    clock = HandClock()
    limiter = Limiter(Limits(requests_per_second=10, burst=3), clock)
    assert limiter.try_acquire(0.0)
    clock.seconds = 7.0

    used_at = await limiter.renew(0.0)

    assert (used_at, limiter.ready_at(7.0)) == (7.0, pytest.approx(7.1))
    assert limiter.statistics().in_flight == 1


async def test_grants_that_waited_together_go_an_interval_apart() -> None:
    clock = VirtualClock()
    limiter = Limiter(Limits(requests_per_second=10, burst=3, concurrency=3), clock)
    granted = [clock.monotonic() for _ in range(3) if limiter.try_acquire(clock.monotonic())]
    await clock.advance(7.0)
    used: list[float] = []

    async def renew(moment: float) -> None:
        used.append(round(await limiter.renew(moment), 6))

    async with anyio.create_task_group() as tasks:
        for moment in granted:
            tasks.start_soon(renew, moment)
        await clock.advance(1.0)

    assert (len(granted), used) == (3, [7.0, 7.1, 7.2])


async def test_a_grant_is_not_used_in_a_pause_that_began_after_it() -> None:
    clock = VirtualClock()
    limiter = Limiter(Limits(requests_per_second=10, concurrency=2), clock)
    began = clock.monotonic()
    assert limiter.try_acquire(began)
    limiter.on_throttled(retry_after=5.0, sent_at=began)

    async with anyio.create_task_group() as tasks:
        used: list[float] = []

        async def renew() -> None:
            used.append(await limiter.renew(began) - began)

        tasks.start_soon(renew)
        await anyio.wait_all_tasks_blocked()
        before = list(used)
        await clock.advance(5.0)

    assert (before, used) == ([], [5.0])


def test_all_refusals_of_what_was_caught_up_at_once_are_laid_to_it() -> None:
    clock = HandClock()
    limiter = Limiter(Limits(requests_per_second=1000), clock)
    limiter.try_acquire(0.0)
    limiter.on_success(sent_at=0.0)
    sent = [1.0, 1.00001, 1.00002, 1.00003, 1.00004]
    granted = [limiter.try_acquire(now) for now in sent]
    clock.seconds = 1.01
    for sent_at in sent[:2]:
        limiter.on_success(sent_at=sent_at)
    for sent_at in sent[2:4]:
        limiter.on_throttled(retry_after=2.0, sent_at=sent_at)
    limiter.on_success(sent_at=sent[4])

    statistics = limiter.statistics()
    again = [limiter.try_acquire(9.0 + turn / 100_000) for turn in range(5)]

    assert granted == [True] * 5
    assert (statistics.rate, statistics.refused, statistics.paused_until) == (1000.0, 2, 3.01)
    assert again == [True, False, False, False, False]


def test_a_refusal_of_a_request_no_closer_behind_others_than_an_answered_one_lowers_the_rate() -> None:
    clock = HandClock()
    limiter = Limiter(Limits(requests_per_second=1000), clock)
    limiter.try_acquire(0.0)
    limiter.on_success(sent_at=0.0)
    for sent_at in (1.0, 1.00001):
        assert limiter.try_acquire(sent_at)
        limiter.on_success(sent_at=sent_at)
    for sent_at in (2.0, 2.00001):
        assert limiter.try_acquire(sent_at)
    clock.seconds = 2.01

    limiter.on_throttled(retry_after=2.0, sent_at=2.00001)

    assert limiter.statistics().rate < 1000


def test_a_refused_request_does_not_prove_that_the_server_lets_requests_come_so_close() -> None:
    clock = HandClock()
    limiter = Limiter(Limits(requests_per_second=1000), clock)
    for sent_at in (1.0, 1.00001, 1.00002):
        assert limiter.try_acquire(sent_at) == (sent_at == 1.0)
    for sent_at in (2.0, 2.00001, 2.00002):
        assert limiter.try_acquire(sent_at)
    for sent_at in (2.0, 2.00001, 2.00002):
        clock.seconds = sent_at + 0.01
        limiter.on_throttled(retry_after=1.0, sent_at=sent_at)
    rate = limiter.statistics().rate
    clock.seconds = 5.0
    assert limiter.try_acquire(5.0)
    limiter.on_success(sent_at=5.0)
    for sent_at in (9.0, 9.00001):
        assert limiter.try_acquire(sent_at)
    clock.seconds = 9.01

    limiter.on_throttled(retry_after=1.0, sent_at=9.00001)

    assert rate < 1000
    assert limiter.statistics().rate == rate


async def test_a_rate_that_is_too_high_is_found_out_though_the_loop_is_late() -> None:
    clock = LateClock(stall=0.05, every=30)
    limiter = Limiter(Limits(requests_per_second=1000), clock)

    seen = await paced(Bucket(constant(50)), limiter, clock, seconds=180)

    for start in (60, 120):
        assert answered(seen, start, start + 60) >= 0.9 * 50 * 60
        assert refused(seen, start, start + 60) <= 0.02 * 50 * 60


async def test_a_grant_that_is_due_costs_no_turn_of_the_event_loop() -> None:
    limiter = Limiter(Limits(requests_per_second=10, burst=5, concurrency=5), HandClock())
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(count)
        for _ in range(5):
            await limiter.acquire()
        turns_for_grants = turns
        tasks.cancel_scope.cancel()

    assert turns_for_grants == 0


# Slots and waiting


async def test_no_more_requests_are_in_flight_than_there_are_slots() -> None:
    clock = VirtualClock()
    limiter = Limiter(Limits(requests_per_second=1000, concurrency=3), clock)
    in_flight, most = 0, 0

    async def request() -> None:
        nonlocal in_flight, most
        await limiter.acquire()
        in_flight += 1
        most = max(most, in_flight)
        await clock.sleep_until(clock.monotonic() + 1)
        in_flight -= 1
        limiter.release()

    async def all_of_them() -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(request)

    await clock.run(all_of_them())

    assert (most, in_flight) == (3, 0)
    assert clock.monotonic() == pytest.approx(4, abs=0.01)


async def test_whoever_came_first_goes_first_and_the_cancelled_take_nothing() -> None:
    clock = VirtualClock()
    limiter = Limiter(Limits(requests_per_second=1, concurrency=10), clock)
    grants: list[tuple[int, float]] = []

    async def request(number: int) -> None:
        with anyio.CancelScope() as scope:
            scopes.append(scope)
            grants.append((number, await limiter.acquire()))

    async def all_of_them() -> None:
        async with anyio.create_task_group() as tasks:
            for number in range(5):
                tasks.start_soon(request, number)
            await clock.sleep_until(0.5)
            scopes[1].cancel()
            scopes[3].cancel()

    scopes: list[anyio.CancelScope] = []
    await clock.run(all_of_them())

    assert [number for number, _ in grants] == [0, 2, 4]
    assert [at for _, at in grants] == pytest.approx([0.0, 1.0, 2.0])
    assert limiter.statistics().in_flight == 3


async def test_a_pause_that_begins_while_one_waits_is_waited_for() -> None:
    clock = VirtualClock()
    limiter = Limiter(Limits(requests_per_second=10), clock)

    async def two() -> None:
        grants.append(await limiter.acquire())
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(throttle)
            grants.append(await limiter.acquire())

    async def throttle() -> None:
        await clock.sleep_until(0.05)
        limiter.on_throttled(retry_after=7.0)

    grants: list[float] = []
    await clock.run(two())

    assert grants == pytest.approx([0.0, 7.05])


def test_a_grant_is_given_back_once() -> None:
    limiter = Limiter(Limits(requests_per_second=10), HandClock())

    with pytest.raises(RuntimeError, match="release without acquire"):
        limiter.release()


def test_statistics_say_what_the_next_request_waits_for() -> None:
    clock = HandClock()
    limiter = Limiter(Limits(requests_per_second=2, concurrency=2), clock)
    reasons = [limiter.statistics().waiting_reason]
    limiter.try_acquire(0.0)
    reasons.append(limiter.statistics().waiting_reason)
    clock.seconds = 0.5
    limiter.try_acquire(0.5)
    reasons.append(limiter.statistics().waiting_reason)
    limiter.on_throttled(retry_after=3.0, sent_at=0.5)
    reasons.append(limiter.statistics().waiting_reason)

    assert reasons == ["", "rate", "concurrency", "pause"]
    assert limiter.statistics() == LimiterStatistics(
        rate=1.0,
        ceiling=2.0,
        in_flight=2,
        granted=2,
        answered=0,
        refused=1,
        paused_until=3.5,
        waiting_reason="pause",
    )


# Refusals


def test_refusals_of_requests_sent_before_the_pause_cut_the_rate_once() -> None:
    clock = HandClock()
    limiter = Limiter(Limits(requests_per_second=100, burst=10, concurrency=10), clock)
    for _ in range(10):
        assert limiter.try_acquire(0.0)
    clock.seconds = 0.01
    limiter.on_throttled(retry_after=1.0, sent_at=0.0)
    after_first = limiter.statistics().rate
    for _ in range(8):
        limiter.on_throttled(retry_after=1.0, sent_at=0.0)
    # One that took longer than the pause names another, which is obeyed; the rate was cut for it already.
    clock.seconds = 5.0
    limiter.on_throttled(retry_after=1.0, sent_at=0.0)

    assert (after_first, limiter.statistics().rate) == (50.0, 50.0)
    assert (limiter.statistics().refused, limiter.statistics().paused_until) == (10, 6.0)


def test_without_a_named_pause_each_pause_in_vain_doubles_the_next_and_one_request_tries_it() -> None:
    clock = HandClock()
    limiter = Limiter(Limits(requests_per_second=100), clock)
    pauses, rates = [], []
    for _ in range(9):
        assert limiter.try_acquire(clock.seconds)
        limiter.on_throttled(sent_at=clock.seconds)
        limiter.release()
        statistics = limiter.statistics()
        pauses.append(statistics.paused_until - clock.seconds)
        rates.append(statistics.rate)
        clock.seconds = statistics.paused_until

    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert set(rates) == {50.0}
    assert limiter.try_acquire(clock.seconds)
    assert limiter.ready_at(clock.seconds + 10) == math.inf
    limiter.on_success(sent_at=clock.seconds)
    assert limiter.ready_at(clock.seconds + 10) == clock.seconds + 10


def test_no_server_imposes_a_longer_pause_than_allowed() -> None:
    clock = HandClock()
    limiter = Limiter(Limits(requests_per_second=1, longest_pause_seconds=20), clock)

    limiter.on_throttled(retry_after=86400.0)

    assert limiter.statistics().paused_until == 20


@given(st.lists(st.one_of(st.none(), st.floats(0, 1e9)), max_size=40))
def test_the_rate_never_falls_below_one_a_minute(pauses: list[float | None]) -> None:
    clock = HandClock()
    limiter = Limiter(Limits(requests_per_second=5, longest_pause_seconds=60), clock)
    for pause in pauses:
        clock.seconds = limiter.ready_at(clock.seconds)
        assert limiter.try_acquire(clock.seconds)
        limiter.on_success(sent_at=clock.seconds)
        limiter.on_throttled(retry_after=pause, sent_at=clock.seconds)
        limiter.release()

        assert 1 / 60 <= limiter.statistics().rate <= 5
        assert limiter.ready_at(clock.seconds) <= clock.seconds + 60


# Convergence, as the server sees it


def test_a_ceiling_that_is_the_servers_limit_is_used_whole() -> None:
    seen = simulate(
        Bucket(constant(50)), Limits(requests_per_second=50), seconds=180, lateness=(0.001, 0.002)
    )

    for start in (0, 60, 120):
        assert answered(seen, start, start + 60) >= 0.98 * 50 * 60
        assert refused(seen, start, start + 60) <= 0.005 * 50 * 60


@pytest.mark.parametrize("limit", [5, 12, 50, 200, 1000])
def test_a_ceiling_far_above_the_servers_limit_settles_within_a_minute(limit: float) -> None:
    seen = simulate(Bucket(constant(limit)), Limits(requests_per_second=5000), seconds=181)

    for start in (60, 90, 120):
        assert answered(seen, start, start + 60) >= 0.95 * limit * 60
        assert refused(seen, start, start + 60) <= 0.02 * limit * 60


@pytest.mark.parametrize(
    ("server", "share", "start"),
    [
        pytest.param(Bucket(constant(50), pause=None), 0.95, 60, id="no Retry-After"),
        pytest.param(Bucket(constant(50), pause=0.1), 0.95, 60, id="shortest Retry-After"),
        pytest.param(Bucket(constant(50), pause=5.0), 0.9, 60, id="long Retry-After"),
        pytest.param(Bucket(constant(50), capacity=5), 0.95, 60, id="five seconds in the bucket"),
        pytest.param(Bucket(constant(50), capacity=0.1), 0.8, 60, id="small bucket"),
        pytest.param(Bucket(constant(50), capacity=0), 0.7, 60, id="no bucket at all"),
        pytest.param(Window(50, 1), 0.8, 60, id="windows of a second"),
        pytest.param(Window(3000, 60), 0.95, 60, id="windows of a minute"),
    ],
)
def test_other_kinds_of_limit_are_found_too(server: Server, share: float, start: float) -> None:
    seen = simulate(server, Limits(requests_per_second=5000), seconds=241)

    assert answered(seen, start, start + 180) >= share * 50 * 180
    assert refused(seen, start, start + 180) <= 0.02 * 50 * 180


@pytest.mark.parametrize("limit", [20, 100])
def test_a_limit_that_halves_and_later_doubles_is_followed(limit: float) -> None:
    server = Bucket(lambda now: limit / 2 if 100 <= now < 600 else limit)

    seen = simulate(server, Limits(requests_per_second=5000), seconds=781)

    assert answered(seen, 120, 180) >= 0.95 * limit / 2 * 60
    assert refused(seen, 100, 600) <= 0.01 * limit / 2 * 500
    assert answered(seen, 720, 780) >= 0.95 * limit * 60
    assert refused(seen, 600, 780) <= 0.01 * limit * 180


@pytest.mark.parametrize(("share", "least"), [(0.02, 0.5), (0.05, 0.35)])
def test_refusals_by_chance_do_not_drive_the_rate_to_nothing(share: float, least: float) -> None:
    seen = simulate(Capricious(share), Limits(requests_per_second=10), seconds=601)

    assert answered(seen, 0, 600) >= least * 10 * 600


def test_a_rate_that_nobody_chose_starts_low_and_rises_while_clean() -> None:
    seen = simulate(Bucket(constant(50)), Limits(requests_per_second=10, starts_at=2), seconds=61)

    assert len([one for one in seen if one.at < 1]) == 2
    assert len([one for one in seen if 5 <= one.at < 10]) < 25
    assert len([one for one in seen if 30 <= one.at < 60]) == pytest.approx(300, abs=1)


def test_a_rate_is_not_raised_by_time_in_which_it_was_not_used() -> None:
    clock = HandClock()
    limiter = Limiter(Limits(requests_per_second=1000, starts_at=2), clock)
    for second in range(0, 600, 60):
        clock.seconds = second
        assert limiter.try_acquire(second)
        limiter.on_success(sent_at=second)
        limiter.release()

    assert limiter.statistics().rate < 20


def test_what_a_run_learnt_is_where_the_next_begins() -> None:
    clock = HandClock()
    fresh = Limiter(Limits(requests_per_second=10, starts_at=2), clock)
    taught = Limiter(Limits(requests_per_second=10, starts_at=2), clock, learnt=8.0)

    assert (fresh.learnt, fresh.statistics().rate) == (None, 2.0)
    assert taught.learnt == 8.0
    assert taught.statistics().rate == pytest.approx(7.88)


# What headers say


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({}, RateHeaders()),
        ({"content-type": "text/plain"}, RateHeaders()),
        (
            {"RateLimit-Limit": "100, 100;w=50", "RateLimit-Remaining": "7", "RateLimit-Reset": "12"},
            RateHeaders(requests_per_second=2.0, remaining=7, reset_seconds=12),
        ),
        (
            {"ratelimit": "limit=100, remaining=0, reset=30"},
            RateHeaders(remaining=0, reset_seconds=30),
        ),
        (
            {"ratelimit": '"default";r=50;t=30, "day";r=3;t=40', "ratelimit-policy": '"default";q=100;w=20'},
            RateHeaders(requests_per_second=5.0, remaining=3, reset_seconds=40),
        ),
        ({"ratelimit-policy": "10;w=1, 1000;w=3600"}, RateHeaders(requests_per_second=10.0)),
        (
            {"x-ratelimit-limit": "60", "x-ratelimit-remaining": "0", "x-ratelimit-reset": "2.5"},
            RateHeaders(remaining=0, reset_seconds=2.5),
        ),
        ({"X-Rate-Limit-Reset": str(NOW.timestamp() + 9)}, RateHeaders(reset_seconds=9)),
        ({"x-ratelimit-reset": str(int(NOW.timestamp() * 1000) + 1500)}, RateHeaders(reset_seconds=1.5)),
        ({"x-ratelimit-reset": str(NOW.timestamp() - 9)}, RateHeaders(reset_seconds=0)),
        (
            {"x-ratelimit-reset": str(NOW.timestamp()), "Date": "Sun, 22 Nov 2026 11:59:50 GMT"},
            RateHeaders(reset_seconds=10),
        ),
        ({"ratelimit": "🙃;;=,", "ratelimit-policy": "w=0", "x-ratelimit-reset": "soon"}, RateHeaders()),
        ({"ratelimit-policy": "-5;w=1, 5;w=0, 5;w=-1", "x-ratelimit-remaining": "nan"}, RateHeaders()),
    ],
)
def test_limit_headers_are_understood_in_every_form_and_else_ignored(
    headers: dict[str, str], said: RateHeaders
) -> None:
    assert read_rate_headers(headers, now=NOW) == said


@given(st.text(max_size=60), st.sampled_from(["ratelimit", "ratelimit-policy", "x-ratelimit-reset", "date"]))
def test_no_header_value_breaks_the_reading(text: str, name: str) -> None:
    read_rate_headers({name: text, "ratelimit-reset": "1"}, now=NOW)
    parse_retry_after(text, now=NOW, longest_seconds=9)


def test_when_nothing_remains_everybody_waits_for_the_reset_and_the_rate_stays() -> None:
    clock = HandClock()
    limiter = Limiter(Limits(requests_per_second=10, longest_pause_seconds=60), clock)

    limiter.on_success({"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "30"})

    assert limiter.ready_at(0.0) == 30
    assert limiter.statistics().rate == 10
    limiter.on_success({"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "86400"})
    assert limiter.ready_at(0.0) == 60


def test_a_stated_policy_lowers_the_ceiling_and_never_raises_it() -> None:
    limiter = Limiter(Limits(requests_per_second=10), HandClock())
    ceilings = []
    for policy in ("4;w=1", "500;w=1", "120;w=60", "10;w=3600"):
        limiter.on_success({"ratelimit-policy": policy})
        ceilings.append((limiter.statistics().ceiling, limiter.statistics().rate))

    assert ceilings == [(4, 4), (10, 10), (2, 2), (2, 2)]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (None, None),
        ("", None),
        ("soon", None),
        ("nan", None),
        ("inf", None),
        ("1e3", None),
        ("5 s", None),
        ("٥", None),
        ("Wed, 99 Nov 2026 08:00:00 GMT", None),
        ("7", 7),
        (" 7 ", 7),
        ("+7", 7),
        ("1.5", 1.5),
        (".5", 0.5),
        ("0", SHORTEST_PAUSE_SECONDS),
        ("-3", SHORTEST_PAUSE_SECONDS),
        ("0.001", SHORTEST_PAUSE_SECONDS),
        ("3, 9, 4", 9),
        ("3, soon", 3),
        ("99999", 600),
        ("9" * 400, 600),
        ("Sun, 22 Nov 2026 12:00:20 GMT", 20),
        ("Sunday, 22-Nov-26 12:00:20 GMT", 20),
        ("Sun Nov 22 12:00:20 2026", 20),
        ("Sun, 22 Nov 2026 14:00:20 +0200", 20),
        ("Sun, 22 Nov 2026 11:00:00 GMT", SHORTEST_PAUSE_SECONDS),
        ("Sun, 22 Nov 2099 12:00:00 GMT", 600),
    ],
)
def test_a_retry_after_of_any_kind_has_one_meaning(text: str | None, seconds: float | None) -> None:
    assert parse_retry_after(text, now=NOW, longest_seconds=600) == seconds
