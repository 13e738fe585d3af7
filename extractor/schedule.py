"""The frontier of requests not yet answered, and `drain`, which turns it into tasks.

`Frontier` awaits nothing and knows no HTTP: it de-duplicates, takes turns between groups so that none starves, and
keeps what has to wait in a heap. `drain` is the only one who takes from it: it waits for memory, then for the
limiter, and only then starts a task, so that live tasks never exceed the slots. Termination is the end of the
task group.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import anyio

from extractor.clock import Clock

__all__ = ("Frontier", "FrontierStatistics", "Slots", "drain")

R = TypeVar("R")


class Slots(Protocol):
    """What admits one attempt: concurrency, rate and shared pause at once (`limit.Limiter`)."""

    async def acquire(self) -> float: ...

    def release(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontierStatistics:
    """A look at the frontier: `ready` may be sent, `waiting` have a not-before time, `in_flight` are out."""

    known: int
    ready: int
    waiting: int
    in_flight: int


class Frontier(Generic[R]):
    """Requests not yet answered, each known once.

    Drained means: nothing waits and nothing is in flight, so that no answer can add work any more.
    """

    def __init__(self, *, identity: Callable[[R], Hashable], group: Callable[[R], Hashable]) -> None:
        self._identity = identity
        self._group = group
        self._known: set[Hashable] = set()
        self._ready: OrderedDict[Hashable, deque[R]] = OrderedDict()
        self._waiting: list[tuple[float, int, R]] = []
        self._order = 0
        self._ready_count = 0
        self.in_flight = 0
        self._is_closed = False
        self.changed = anyio.Event()

    @property
    def is_drained(self) -> bool:
        return not self._ready_count and not self._waiting and not self.in_flight

    def add(self, request: R) -> bool:
        """Take a new request; False if an equal one was taken before, or `forget` has closed the frontier."""
        identity = self._identity(request)
        if self._is_closed or identity in self._known:
            return False
        self._known.add(identity)
        self._push(request)
        return True

    def put_back(self, request: R, *, not_before: float) -> None:
        """Keep a request that was in flight for another attempt, not before that monotonic time."""
        self.in_flight -= 1
        self.wait(request, not_before=not_before)

    def wait(self, request: R, *, not_before: float) -> None:
        """Keep a request until that monotonic time; not at all once the frontier is closed."""
        if not self._is_closed:
            self._order += 1
            heapq.heappush(self._waiting, (not_before, self._order, request))
        self._notify()

    def finish(self) -> None:
        """One request in flight is answered for good, or given up."""
        self.in_flight -= 1
        self._notify()

    def forget(self) -> int:
        """Drop all that is not in flight, take nothing more, and say how many were dropped: the run is to end."""
        self._is_closed = True
        dropped = self._ready_count + len(self._waiting)
        self._ready.clear()
        self._waiting.clear()
        self._ready_count = 0
        self._notify()
        return dropped

    def ready_at(self, now: float) -> float | None:
        """When the next request may be taken: `now`, a later time, or None while nothing waits."""
        self._promote(now)
        if self._ready_count:
            return now
        return self._waiting[0][0] if self._waiting else None

    def take(self, now: float) -> R | None:
        """The next request, groups in turn, or None if none is ready; it counts as in flight."""
        self._promote(now)
        if not self._ready_count:
            return None
        group, queue = self._ready.popitem(last=False)
        request = queue.popleft()
        if queue:
            self._ready[group] = queue
        self._ready_count -= 1
        self.in_flight += 1
        return request

    def statistics(self) -> FrontierStatistics:
        return FrontierStatistics(
            known=len(self._known),
            ready=self._ready_count,
            waiting=len(self._waiting),
            in_flight=self.in_flight,
        )

    def _promote(self, now: float) -> None:
        due: list[R] = []
        while self._waiting and self._waiting[0][0] <= now:
            due.append(heapq.heappop(self._waiting)[2])
        for request in due:
            self._ready.setdefault(self._group(request), deque())
        # The last one first, so that in front of its group stands what was due earliest.
        for request in reversed(due):
            self._push(request, is_first=True)

    def _push(self, request: R, *, is_first: bool = False) -> None:
        queue = self._ready.setdefault(self._group(request), deque())
        if is_first:
            queue.appendleft(request)
        else:
            queue.append(request)
        self._ready_count += 1
        self._notify()

    def _notify(self) -> None:
        self.changed.set()
        self.changed = anyio.Event()


async def drain(
    frontier: Frontier[R],
    *,
    slots: Slots,
    clock: Clock,
    attempt: Callable[[R, float], Awaitable[None]],
    admit: Callable[[], Awaitable[None]],
) -> None:
    """Send every request of the frontier until it is drained.

    `attempt` is given the moment of its grant; it makes one attempt, sees to it that what follows is added and
    that `finish` or `put_back` is called in the end, and raises only what ends the run. `admit` returns once
    there is memory for another page.
    """
    async with anyio.create_task_group() as tasks:
        while not frontier.is_drained:
            changed = frontier.changed
            ready_at = frontier.ready_at(clock.monotonic())
            if ready_at is None or ready_at > clock.monotonic():
                await _wait(changed, clock, ready_at)
                continue
            await admit()
            sent_at = await slots.acquire()
            request = frontier.take(clock.monotonic())
            if request is None:  # the run was told to end while we waited
                slots.release()
                continue
            tasks.start_soon(_run, attempt, request, sent_at, slots)


async def _run(
    attempt: Callable[[R, float], Awaitable[None]], request: R, sent_at: float, slots: Slots
) -> None:
    try:
        await attempt(request, sent_at)
    finally:
        slots.release()


async def _wait(changed: anyio.Event, clock: Clock, deadline: float | None) -> None:
    """Return when the frontier changed or the deadline has come."""
    if deadline is None:
        await changed.wait()
        return
    async with anyio.create_task_group() as tasks:

        async def alarm() -> None:
            await clock.sleep_until(deadline)
            tasks.cancel_scope.cancel()

        tasks.start_soon(alarm)
        await changed.wait()
        tasks.cancel_scope.cancel()
