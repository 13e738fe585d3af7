"""One timer for all attempts: ends those whose answer does not begin, stops, or does not end.

aiohttp would set a timer for each request, and another at each read.
"""

from __future__ import annotations

import asyncio

__all__ = ("Watch", "Watchdog")

_LOOKS = 8
"""A silence is seen at most this part of the idle time late, …"""
_LONGEST_PAUSE_SECONDS = 1.0
"""… and no later than this."""


class Watch:
    """One attempt of the task that began it."""

    __slots__ = ("_cancelling", "_is_ended", "_loop", "_task", "began", "heard", "is_answered", "reason")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        task = asyncio.current_task(loop)
        assert task is not None
        self._loop = loop
        self._task = task
        self._cancelling = task.cancelling()
        self._is_ended = False
        self.began = self.heard = loop.time()
        self.is_answered = False
        self.reason = ""
        """Why the attempt was ended, for people; empty while it was not."""

    def hear(self) -> None:
        """The head of an answer came, or something of its body."""
        self.is_answered = True
        self.heard = self._loop.time()

    def rest(self) -> None:
        """Do not end this attempt: somebody else sees to it from now on."""
        self._is_ended = True

    def end(self, reason: str) -> None:
        """Cancel the task, unless that was done before."""
        if not self._is_ended:
            self._is_ended = True
            self.reason = reason
            self._task.cancel()

    def is_cause(self) -> bool:
        """Called where a cancellation arrives: True if it is of this watch alone, which then takes it back."""
        return bool(self.reason) and self._task.uncancel() <= self._cancelling


class Watchdog:
    """Watches attempts from `start` to `stop`; times are in seconds, by the event loop's clock."""

    def __init__(self, *, idle_seconds: float, longest_seconds: float) -> None:
        self._idle_seconds = idle_seconds
        self._longest_seconds = longest_seconds
        self._pause_seconds = min(idle_seconds / _LOOKS, longest_seconds / _LOOKS, _LONGEST_PAUSE_SECONDS)
        self._watches: set[Watch] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Look at all attempts from time to time."""
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(self._pause_seconds, self._look)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def begin(self) -> Watch:
        """Watch an attempt of the current task; `end` it in any case."""
        assert self._loop is not None
        watch = Watch(self._loop)
        self._watches.add(watch)
        return watch

    def end(self, watch: Watch) -> None:
        """The attempt is over."""
        self._watches.discard(watch)

    def _look(self) -> None:
        assert self._loop is not None
        now = self._loop.time()
        for watch in self._watches:
            if now - watch.heard >= self._idle_seconds:
                what = "byte" if watch.is_answered else "answer"
                watch.end(f"no {what} within limits.idle_seconds")
            elif now - watch.began >= self._longest_seconds:
                watch.end("no whole answer within limits.retry_seconds")
        self._timer = self._loop.call_later(self._pause_seconds, self._look)
