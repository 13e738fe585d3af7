"""Night after night: the account has changed, one run brings the lake up to date, and the lake is judged."""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import aiohttp

import extractor
from extractor.config import Config, load_config
from extractor.pipeline import World
from extractor.report import RunReport
from extractor.sandbox import running
from tests.nights.site import ENDPOINTS, WINDOWED, Site, options

__all__ = ("KEY", "Night", "NightClock", "configured", "play")

FIRST_DAY = date(2026, 10, 28)
KEY = {"SKYSQL_API_KEY": "k" * 30}
_TOP = Path(__file__).parents[2]


class NightClock:
    """A clock that reads `at` when it is made; time passes as it does."""

    def __init__(self, at: datetime) -> None:
        self._at = at
        self._began = time.monotonic()

    def monotonic(self) -> float:
        return time.monotonic()

    def now(self) -> datetime:
        return self._at + timedelta(seconds=time.monotonic() - self._began)

    async def sleep_until(self, deadline: float) -> None:
        await asyncio.sleep(max(0.0, deadline - time.monotonic()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Night:
    """How a night went.

    `requests` are those of its run, `window_requests` those of tables with windows and samples among them; `bound`
    and `window_pages` say what they may be. `requests_killed` were sent by a run before that was killed.
    """

    number: int
    clock_is_back: bool
    killed_after: float | None
    requests: int
    requests_killed: int
    window_requests: int
    bound: int
    window_pages: int
    rows: int
    status: str
    wrong: dict[str, str]

    @property
    def is_good(self) -> bool:
        is_bounded = self.requests <= self.bound and self.window_requests <= self.window_pages
        return not self.wrong and self.status == "complete" and (is_bounded or self.number == 1)


def configured(url: str, lake: Path | str, **overrides: object) -> Config:
    return load_config(
        environment={},
        overrides={
            "source.base_url": url,
            "lake.uri": str(lake),
            "run.allow": ("customer_data",),
            "limits.requests_per_second": 1000.0,
            **overrides,
        },
    )


async def extract(url: str, lake: Path, at: datetime, **overrides: object) -> RunReport:
    """One run whose clock reads `at`."""
    world = World(clock=NightClock(at), chance=random.Random(0).random, environment=KEY)
    return await extractor.extract(configured(url, lake, **overrides), environment=KEY, world=world)


async def play(
    nights: int,
    folder: Path,
    *,
    seed: int = 1,
    crashes: bool = False,
    clock_back_on: int = 4,
    include: tuple[str, ...] = (),
    services: int = 4,
) -> AsyncIterator[Night]:
    """The nights one after the other; with `crashes` every third has a run that is killed at some instant.

    With `include` only those tables are read and judged, and of the requests only those of windows have a bound.
    """
    chance = random.Random(seed)
    took = 1.5
    chosen: dict[str, object] = {"run.include": include} if include else {}
    async with (
        running(options(first_day=FIRST_DAY, seed=seed, services=services)) as url,
        aiohttp.ClientSession(headers={"X-API-Key": "any"}) as session,
    ):
        site = Site(url, session)
        for number in range(1, nights + 1):
            now = datetime.combine(FIRST_DAY, datetime.min.time(), UTC) + timedelta(days=number, hours=2)
            await site.set_time(now + timedelta(minutes=chance.randrange(60)))
            at = now - timedelta(days=number == clock_back_on)
            await site.requests()
            snapshots = 10**6 if include else await _snapshot_requests(site, now)
            killed_after, killed = None, 0
            if crashes and number % 3 == 0:
                killed_after = chance.uniform(0, took)
                await _killed(url, folder / "lake", at, killed_after)
                killed = (await site.requests()).total()
            began = time.monotonic()
            report = await extract(url, folder / "lake", at, **chosen)
            took = time.monotonic() - began
            requests = await site.requests()
            pages = await site.window_pages(now, now - timedelta(days=1))
            yield Night(
                number=number,
                clock_is_back=number == clock_back_on,
                killed_after=killed_after,
                requests=requests.total(),
                window_requests=sum(requests[path] for path in WINDOWED),
                window_pages=pages,
                requests_killed=killed,
                bound=int(1.1 * (snapshots + pages)),
                rows=report.rows,
                status=report.status,
                wrong=dict(await site.judge(str(folder / "lake"), include)),
            )


async def _snapshot_requests(site: Site, now: datetime) -> int:
    """The pages of all snapshot tables, counted on a lake of their own."""
    windowed = tuple(name for name, endpoint in ENDPOINTS.items() if endpoint.sync.kind != "snapshot")
    with tempfile.TemporaryDirectory(prefix="nights-") as folder:
        await extract(site.url, Path(folder) / "lake", now, **{"run.exclude": windowed})
    return (await site.requests()).total()


async def _killed(url: str, lake: Path, at: datetime, seconds: float) -> None:
    """A run in a process of its own that is killed so long after it began; it may have ended before."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.nights.one", url, str(lake), at.isoformat()),
        cwd=_TOP,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert child.stdout is not None
    await child.stdout.readline()
    await asyncio.sleep(seconds)
    if child.returncode is None:
        child.kill()
    await child.wait()
