from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from extractor.watchdog import Watch, Watchdog

SILENT = "no answer within limits.idle_seconds"


@asynccontextmanager
async def watching(*, idle_seconds: float = 0.05, longest_seconds: float = 60.0) -> AsyncIterator[Watchdog]:
    watchdog = Watchdog(idle_seconds=idle_seconds, longest_seconds=longest_seconds)
    watchdog.start()
    try:
        yield watchdog
    finally:
        watchdog.stop()


async def until_ended(watch: Watch) -> bool:
    """Wait for ever; whether the watch was the cause of the end."""
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        return watch.is_cause()
    raise AssertionError


async def test_a_silent_attempt_is_ended_and_its_task_goes_on() -> None:
    async with watching() as watchdog:
        watch = watchdog.begin()
        is_cause = await until_ended(watch)
        watchdog.end(watch)

    assert is_cause
    assert watch.reason == SILENT
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_one_that_hears_something_is_ended_only_when_it_lasts_too_long() -> None:
    async with watching(idle_seconds=0.1, longest_seconds=0.3) as watchdog:
        watch = watchdog.begin()
        loop = asyncio.get_running_loop()

        def hear() -> None:
            watch.hear()
            if not watch.reason:
                loop.call_later(0.01, hear)

        hear()
        is_cause = await until_ended(watch)

    assert is_cause
    assert watch.reason == "no whole answer within limits.retry_seconds"
    assert loop.time() - watch.began >= 0.3


async def test_of_two_attempts_only_the_silent_one_is_ended() -> None:
    async with watching() as watchdog:
        ended = asyncio.Event()

        async def silent() -> bool:
            is_cause = await until_ended(watchdog.begin())
            ended.set()
            return is_cause

        resting = watchdog.begin()
        resting.rest()
        assert await asyncio.create_task(silent())
        await ended.wait()

    assert resting.reason == ""


async def test_one_that_is_over_is_left_alone() -> None:
    async with watching(idle_seconds=0.02) as watchdog:
        over = watchdog.begin()
        watchdog.end(over)
        later = watchdog.begin()
        assert await until_ended(later)

    assert over.reason == ""


async def test_whoever_is_cancelled_by_others_too_stays_cancelled() -> None:
    async with watching() as watchdog:

        async def work() -> None:
            watch = watchdog.begin()
            watch.end(SILENT)
            asyncio.current_task().cancel()  # type: ignore[union-attr]  # it runs in one
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if not watch.is_cause():
                    raise

        with pytest.raises(asyncio.CancelledError):
            await asyncio.create_task(work())
