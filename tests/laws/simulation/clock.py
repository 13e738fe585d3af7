"""An event loop without a selector, whose time jumps to the next timer whenever nothing can run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

__all__ = ("START", "LoopClock", "Stuck", "VirtualLoop")

T = TypeVar("T")

START = datetime(2026, 11, 22, 9, 30, tzinfo=UTC)
_TURNS_MAX = 400_000
_IDLE_TURNS_MAX = 50_000


class Stuck(Exception):
    """The program waits for what can never come, or goes round without time passing."""


class VirtualLoop(asyncio.BaseEventLoop):
    """asyncio's own loop over virtual seconds: no socket, no thread, no real waiting.

    Tasks run in asyncio's order. When none can run, time jumps to the earliest timer; when there is no timer
    either, nothing will ever happen again, which is `Stuck`. `watch` is called before each jump, `each_turn` also
    between two steps.
    """

    def __init__(self, start: float = 0.0) -> None:
        super().__init__()
        self._seconds = start
        self._selector = self
        self._clock_resolution = 1e-9
        self._turns = 0
        self._turns_at_jump = 0
        self._main: asyncio.Task[Any] | None = None
        self.watch: Callable[[float], None] = lambda moment: None
        self.each_turn: Callable[[], None] = lambda: None

    def time(self) -> float:
        return self._seconds

    def select(self, timeout: float | None) -> list[object]:
        """What the base class asks between two turns: here, the place where time passes."""
        self._turns += 1
        self.each_turn()
        if self._turns > _TURNS_MAX or self._turns - self._turns_at_jump > _IDLE_TURNS_MAX:
            raise Stuck(f"{self._turns} turns of the loop and no end")
        if timeout is None:
            raise Stuck("every task waits, and no timer is set")
        if timeout > 0:
            moment = self._scheduled[0]._when
            self.watch(moment)
            self._seconds = max(self._seconds, moment)
            self._turns_at_jump = self._turns
        return []

    def _process_events(self, event_list: list[object]) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Nobody sleeps in a selector."""

    def play(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`; whatever is left of it then is cancelled and brought to its end."""
        asyncio.set_event_loop(self)
        self.set_exception_handler(lambda loop, context: None)
        self._main = self.create_task(work)
        try:
            return self.run_until_complete(self._main)
        finally:
            self._discard()
            asyncio.set_event_loop(None)
            self.close()

    def cancel(self) -> None:
        """Cancel what `play` plays: it takes the tasks that it has started with it."""
        assert self._main is not None
        self._main.cancel()

    def _discard(self) -> None:
        left = asyncio.all_tasks(self)
        for task in left:
            task._log_destroy_pending = False
            task.cancel()
        if left:
            self.watch = lambda moment: None
            self._turns = self._turns_at_jump = 0
            with suppress(Stuck):
                self.run_until_complete(asyncio.wait(left, timeout=60))


class LoopClock:
    """A `Clock` on the running loop; its wall clock is `offset` away from the server's and can be set anew."""

    def __init__(self, offset: timedelta = timedelta()) -> None:
        self.loop: VirtualLoop | None = None
        self.offset = offset
        self.idle_seconds = 0.0

    def monotonic(self) -> float:
        return self.idle_seconds if self.loop is None else self.loop.time()

    def now(self) -> datetime:
        return START + timedelta(seconds=self.monotonic()) + self.offset

    async def sleep_until(self, deadline: float) -> None:
        assert self.loop is not None
        woken = self.loop.create_future()
        timer = self.loop.call_at(deadline, lambda: woken.done() or woken.set_result(None))
        try:
            await woken
        finally:
            timer.cancel()

    async def sleep(self, seconds: float) -> None:
        await self.sleep_until(self.monotonic() + seconds)
