"""The frontier of requests not yet answered, and `drain`, which turns it into tasks.

`Frontier` awaits nothing and knows no HTTP: it de-duplicates, takes turns between groups in rounds so that none
starves, and keeps what has to wait in a heap. `drain` is the only one who takes from it: it waits for memory, then
for the limiter, and only then starts a task, so that live tasks never exceed the slots; a task whose request has
ended goes on with the next one that need not wait. Termination is the end of
the task group.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import anyio

from extractor.clock import Clock

__all__ = ("Frontier", "FrontierStatistics", "Slots", "drain")

R = TypeVar("R")


class Slots(Protocol):
    """What admits one attempt: concurrency, rate and shared pause at once (`limit.Limiter`)."""

    async def acquire(self) -> float: ...

    def try_acquire(self, now: float) -> bool: ...

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

    Groups take turns in rounds: one request of each that has one, the lowest `rank` first. Who comes back within a
    round, as a chain does that has one request at a time, has its turn in the next; who comes back later, at once.
    Drained means: nothing waits and nothing is in flight, so that no answer can add work any more.
    """

    def __init__(
        self,
        *,
        identity: Callable[[R], Hashable],
        group: Callable[[R], Hashable],
        rank: Callable[[Hashable], int] = lambda _: 0,
    ) -> None:
        self._identity = identity
        self._group = group
        self._rank = rank
        self._known: set[Hashable] = set()
        self._ready: dict[Hashable, deque[R]] = {}
        self._round = 0
        self._next_round: dict[Hashable, int] = {}
        self._line: list[tuple[int, int, int, Hashable]] = []
        """A heap of round, rank, order of arrival and group, for each group that is ready."""
        self._waiting: list[tuple[float, int, R]] = []
        self._order = 0
        self._ready_count = 0
        self.in_flight = 0
        self._is_closed = False
        self._changed: anyio.Event | None = None

    @property
    def changed(self) -> anyio.Event:
        """Set when anything of the frontier changes from now on."""
        if self._changed is None:
            self._changed = anyio.Event()
        return self._changed

    @property
    def has_ready(self) -> bool:
        """True while a request waits for nothing but its turn."""
        return self._ready_count > 0

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

    def know(self, request: R) -> None:
        """Take a request for one that was answered before."""
        self._known.add(self._identity(request))

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

    def resume(self) -> None:
        """What was finished for the time being is taken up again: it counts as in flight once more."""
        self.in_flight += 1

    def withdraw(self, requests: Iterable[R]) -> None:
        """Unknow requests, so that they may be added again; those that are ready or wait are never taken."""
        gone = {self._identity(request): self._group(request) for request in requests}
        self._known.difference_update(gone)
        waiting = [item for item in self._waiting if self._identity(item[2]) not in gone]
        if len(waiting) != len(self._waiting):
            self._waiting = waiting
            heapq.heapify(self._waiting)
        for group in set(gone.values()) & self._ready.keys():
            queue = self._ready[group]
            kept = deque(request for request in queue if self._identity(request) not in gone)
            self._ready_count -= len(queue) - len(kept)
            self._ready[group] = kept
        if not all(self._ready.values()):
            self._ready = {group: queue for group, queue in self._ready.items() if queue}
            self._line = [turn for turn in self._line if turn[3] in self._ready]
            heapq.heapify(self._line)
        self._notify()

    def forget(self) -> int:
        """Drop all that is not in flight, take nothing more, and say how many were dropped: the run is to end."""
        self._is_closed = True
        dropped = self._ready_count + len(self._waiting)
        self._ready.clear()
        self._line.clear()
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

    def ready_in(self, group: Hashable) -> int:
        """How many requests of the group may be sent."""
        return len(self._ready.get(group, ()))

    def take(self, now: float) -> R | None:
        """The next request, groups in turn, or None if none is ready; it counts as in flight."""
        self._promote(now)
        if not self._ready_count:
            return None
        self._round, _, _, group = heapq.heappop(self._line)
        self._next_round[group] = self._round + 1
        queue = self._ready[group]
        request = queue.popleft()
        if queue:
            self._line_up(group)
        else:
            del self._ready[group]
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
            self._queue_of(request)
        # The last one first, so that in front of its group stands what was due earliest.
        for request in reversed(due):
            self._push(request, is_first=True)

    def _push(self, request: R, *, is_first: bool = False) -> None:
        queue = self._queue_of(request)
        if is_first:
            queue.appendleft(request)
        else:
            queue.append(request)
        self._ready_count += 1
        self._notify()

    def _queue_of(self, request: R) -> deque[R]:
        """The queue of the request's group, which is in line from now on."""
        group = self._group(request)
        if group not in self._ready:
            self._ready[group] = deque()
            self._line_up(group)
        return self._ready[group]

    def _line_up(self, group: Hashable) -> None:
        self._order += 1
        turn = max(self._round, self._next_round.get(group, 0))
        heapq.heappush(self._line, (turn, self._rank(group), self._order, group))

    def _notify(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None


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
            if request is None:  # withdrawn, or the run was told to end, while we waited
                slots.release()
                continue
            tasks.start_soon(_run, attempt, request, sent_at, frontier, slots, clock)


async def _run(
    attempt: Callable[[R, float], Awaitable[None]],
    first: R,
    sent_at: float,
    frontier: Frontier[R],
    slots: Slots,
    clock: Clock,
) -> None:
    """Attempt one request, and go on with the next as long as it need not wait: a task for each would cost more."""
    request: R | None = first
    while request is not None:
        try:
            await attempt(request, sent_at)
        finally:
            slots.release()
        sent_at = clock.monotonic()
        if frontier.ready_at(sent_at) != sent_at or not slots.try_acquire(sent_at):
            return
        request = frontier.take(sent_at)


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
