"""A clock whose time passes only when told to, or only when nothing else is left to do."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import Awaitable
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import anyio
import anyio.lowlevel

__all__ = ("VirtualClock",)

T = TypeVar("T")

_QUIET_YIELDS = 3
"""Yields in a row with an empty ready queue after which nobody can run any more (on asyncio's own loop)."""
_BLIND_YIELDS = 50
"""The same for an event loop that does not show its ready queue."""


class VirtualClock:
    """A `Clock` for tests and simulations: no call ever takes real time.

    `advance` moves it by hand. `run` moves it by itself: whenever every task of the loop is blocked, time
    jumps to the earliest deadline. Sleepers wake in order of deadline, equal ones in order of arrival, and
    each runs until it blocks before the next one wakes, so that equal programs see equal times.
    What waits for a thread or a socket is blocked too: keep both out of a simulation.
    """

    def __init__(
        self, start_monotonic: float = 0.0, start: datetime = datetime(2026, 11, 22, 12, tzinfo=UTC)
    ) -> None:
        self._monotonic = start_monotonic
        self._start_monotonic = start_monotonic
        self._start = start
        self._sleepers: list[tuple[float, int, anyio.Event]] = []
        self._arrivals = itertools.count()
        self._stirred = 0

    def monotonic(self) -> float:
        return self._monotonic

    def now(self) -> datetime:
        return self._start + timedelta(seconds=self._monotonic - self._start_monotonic)

    async def sleep_until(self, deadline: float) -> None:
        if deadline <= self._monotonic:
            await anyio.lowlevel.checkpoint()
            return
        sleeper = (deadline, next(self._arrivals), anyio.Event())
        heapq.heappush(self._sleepers, sleeper)
        self._stirred += 1
        try:
            await sleeper[2].wait()
        except BaseException:
            if sleeper in self._sleepers:
                self._sleepers.remove(sleeper)
                heapq.heapify(self._sleepers)
            raise

    @property
    def sleeping(self) -> int:
        """How many tasks wait for a moment to come."""
        return len(self._sleepers)

    async def advance(self, seconds: float) -> None:
        """Let `seconds` pass, waking whoever is due on the way; on return all of them are blocked again."""
        end = self._monotonic + seconds
        await self._settle()
        while self._sleepers and self._sleepers[0][0] <= end:
            await self._jump()
        self._monotonic = end

    async def run(self, awaitable: Awaitable[T]) -> T:
        """The result of `awaitable`, with time jumping to the next deadline whenever nothing can run."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._drive)
            failure: Exception | None = None
            result: T
            try:
                result = await awaitable
            except Exception as error:  # noqa: BLE001  # raised again below: the group would wrap it
                failure = error
            tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure
        return result

    async def _drive(self) -> None:
        while True:
            await self._settle()
            if self._sleepers:
                await self._jump()

    async def _jump(self) -> None:
        deadline, _, event = heapq.heappop(self._sleepers)
        self._monotonic = max(self._monotonic, deadline)
        self._stirred += 1
        event.set()
        await self._settle()

    async def _settle(self) -> None:
        """Return once no other task can run without the clock moving."""
        ready: deque[object] | None = getattr(asyncio.get_running_loop(), "_ready", None)
        enough = _BLIND_YIELDS if ready is None else _QUIET_YIELDS
        quiet = 0
        while quiet < enough:
            before = self._stirred
            await anyio.lowlevel.checkpoint()
            quiet = 0 if ready or self._stirred != before else quiet + 1
