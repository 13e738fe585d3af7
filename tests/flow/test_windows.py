"""Runs one after the other on tables that are read window by window, against a small API."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

import extractor
from extractor.commitlog import CommitLog
from extractor.pipeline import World
from extractor.report import RunReport
from extractor.stores import open_store
from tests.flow import own
from tests.nights.play import KEY, NightClock

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
DAY = timedelta(days=1)
HOUR = timedelta(hours=1)

CATALOGUE = """
[events]
path = "/events"
key  = ["id"]

[events.sync]
kind = "window"
from_param = "after"
to_param = "before"
format = "epoch"
bounds = "()"
step = "1d"
cursor = "at"
mutable = ["read"]

[events.columns]
id = "string"
at = "epoch"
read = "bool"

[files]
path = "/files"
key  = ["id"]

[files.sync]
kind = "window"
from_param = "from"
to_param = "to"
format = "epoch"
step = "1d"
cursor = "at"
mutable = ["size"]

[files.columns]
id = "string"
at = "epoch"
size = "int64"

[lines]
path   = "/files/{id}/lines"
parent = { endpoint = "files", params = { id = "id" }, version = ["size"] }
keep   = { file = "id" }
key    = ["file", "n"]
sync   = { kind = "append", cursor = "at" }

[lines.columns]
file = "string"
n = "int64"
at = "epoch"

[bills]
path = "/bills"
key  = ["name"]

[bills.sync]
kind = "window"
from_param = "year"
to_param = "month"
format = "year_month"
step = "1M"
replace = true

[bills.columns]
name = "string"
total = "int64"

[samples]
path = "/samples"
key  = ["series", "at"]
sync = { kind = "append", cursor = "at" }
tags = ["metrics"]

[samples.columns]
series = "string"
at = "epoch"

[slow]
path = "/slow"
key  = ["id"]
"""


@dataclass(slots=True)
class Site:
    """What there is, what was asked for, and what goes wrong."""

    now: datetime = NOON
    events: dict[str, tuple[datetime, bool]] = field(default_factory=dict)
    files: dict[str, tuple[datetime, int]] = field(default_factory=dict)
    bills: dict[str, int] = field(default_factory=dict)
    samples: list[tuple[str, datetime]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    failing: set[str] = field(default_factory=set)
    may_answer: asyncio.Event = field(default_factory=asyncio.Event)
    is_asked_slowly: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, request: web.Request) -> web.Response:
        query = request.query
        label = self._label(request)
        self.asked.append(label)
        headers = {"Date": format_datetime(self.now, usegmt=True)}
        if label in self.failing:
            return web.Response(status=400, headers=headers)
        match request.path.split("/")[1:]:
            case ["events"]:
                after, before = int(query["after"]), int(query["before"])
                rows: list[dict[str, Any]] = [
                    {"id": name, "at": int(at.timestamp()), "read": read}
                    for name, (at, read) in self.events.items()
                    if after < at.timestamp() < before
                ]
            case ["files"]:
                first, last = int(query["from"]), int(query["to"])
                rows = [
                    {"id": name, "at": int(at.timestamp()), "size": size}
                    for name, (at, size) in self.files.items()
                    if first <= at.timestamp() <= last
                ]
            case ["files", name, "lines"]:
                at, size = self.files[name]
                rows = [{"n": n, "at": int(at.timestamp()) + n} for n in range(size)]
            case ["bills"]:
                total = self.bills.get(f"{query['year']}-{query['month']}")
                rows = [] if total is None else [{"name": "bill", "total": total}]
            case ["samples"]:
                rows = [{"series": name, "at": int(at.timestamp())} for name, at in self.samples]
            case _:
                self.is_asked_slowly.set()
                await self.may_answer.wait()
                rows = [{"id": 1}]
        return web.json_response(rows, headers=headers)

    @staticmethod
    def _label(request: web.Request) -> str:
        start = request.query.get("after") or request.query.get("from")
        if start is None:
            return "-".join((request.path, *request.query.values()))
        day = datetime.fromtimestamp(int(start) + 1, UTC)
        return f"{request.path} {day:%m-%d}"

    def take_asked(self) -> list[str]:
        asked, self.asked = self.asked, []
        return asked


@asynccontextmanager
async def serving(site: Site) -> AsyncIterator[str]:
    async with own.serving(site.answer) as url:
        try:
            yield url
        finally:
            site.may_answer.set()


async def run(url: str, folder: Path, *include: str, at: datetime = NOON, **overrides: object) -> RunReport:
    settings = {"run.include": include or ("events",), "run.since": "4d", **overrides}
    config = own.configured(
        folder, url, CATALOGUE, **{name.replace(".", "__"): value for name, value in settings.items()}
    )
    world = World(clock=NightClock(at), chance=lambda: 0.5, environment=KEY)
    return await extractor.extract(config, environment=KEY, world=world)


def rows(folder: Path, table: str, *columns: str) -> list[tuple[Any, ...]]:
    found = extractor.Lake(str(folder / "lake")).table(table).to_arrow().select(list(columns)).to_pylist()
    return sorted(tuple(row.values()) for row in found)


def state(folder: Path, table: str) -> dict[str, Any]:
    log = CommitLog(open_store(str(folder / "lake")))
    entry = log.newest()
    assert entry is not None
    return dict(log.state_of(entry, table, "default").state)


async def test_closed_windows_are_never_read_again_and_open_ones_give_what_is_new(tmp_path: Path) -> None:
    site = Site(events={"old": (NOON - 4 * DAY, False), "new": (NOON - DAY, False)})
    async with serving(site) as url:
        await run(url, tmp_path)
        first = site.take_asked()
        site.events |= {"late": (NOON - 35 * HOUR, False), "too late": (NOON - 4 * DAY + HOUR, False)}
        site.now = NOON + HOUR
        await run(url, tmp_path, at=NOON + HOUR)

    assert sorted(first) == [f"/events 11-{day}" for day in (18, 19, 20, 21, 22)]
    assert sorted(site.take_asked()) == [f"/events 11-{day}" for day in (20, 21, 22)]
    assert rows(tmp_path, "events", "id") == [("late",), ("new",), ("old",)]


async def test_a_row_stamped_on_a_boundary_is_neither_lost_nor_doubled_where_both_bounds_are_strict(
    tmp_path: Path,
) -> None:
    midnight = datetime(2026, 11, 21, tzinfo=UTC)
    seconds = (-1, 0, 1)
    site = Site(events={f"{n}": (midnight + timedelta(seconds=n), False) for n in seconds})
    async with serving(site) as url:
        await run(url, tmp_path)
        await run(url, tmp_path)

    assert rows(tmp_path, "events", "id") == [("-1",), ("0",), ("1",)]


async def test_a_mutable_column_keeps_its_first_value(tmp_path: Path) -> None:
    site = Site(events={"a": (NOON - HOUR, False)})
    async with serving(site) as url:
        await run(url, tmp_path)
        site.events["a"] = (NOON - HOUR, True)
        report = await run(url, tmp_path)

    assert report.exit_code == 0
    assert rows(tmp_path, "events", "id", "read") == [("a", False)]


async def test_a_failed_window_leaves_a_hole_that_the_next_run_fills_first(tmp_path: Path) -> None:
    site = Site(
        events={"old": (NOON - 4 * DAY, False), "new": (NOON - HOUR, False)}, failing={"/events 11-18"}
    )
    async with serving(site) as url:
        first = await run(url, tmp_path)
        site.take_asked()
        assert rows(tmp_path, "events", "id") == [("new",)]
        assert state(tmp_path, "events")["windows"]["holes"] == ["2026-11-18"]
        site.failing.clear()
        # Long after the window would have been read for its own sake.
        site.now = NOON + 30 * DAY
        second = await run(url, tmp_path, at=NOON + 30 * DAY)

    assert (first.exit_code, second.exit_code) == (3, 0)
    assert site.take_asked()[0] == "/events 11-18"
    assert rows(tmp_path, "events", "id") == [("new",), ("old",)]
    assert state(tmp_path, "events")["windows"] == {"done_until": "2026-12-20T00:00:00+00:00", "holes": []}


@pytest.mark.parametrize("error", [-DAY, DAY, -400 * DAY])
async def test_windows_end_by_the_servers_clock_whatever_the_clients_says(
    tmp_path: Path, error: timedelta
) -> None:
    site = Site(events={"a": (NOON - HOUR, False)})
    async with serving(site) as url:
        await run(url, tmp_path, at=NOON + error)
        assert rows(tmp_path, "events", "id") == [("a",)]
        site.events |= {"b": (NOON, False)}
        site.now = NOON + HOUR
        await run(url, tmp_path, at=NOON + HOUR)

    assert rows(tmp_path, "events", "id") == [("a",), ("b",)]
    assert state(tmp_path, "events")["windows"] == {"done_until": "2026-11-20T00:00:00+00:00", "holes": []}


async def test_a_run_before_the_newest_commit_takes_its_time_and_says_so(tmp_path: Path) -> None:
    site = Site(events={"a": (NOON - HOUR, False)})
    async with serving(site) as url:
        await run(url, tmp_path)
        report = await run(url, tmp_path, at=NOON - DAY)

    started = [run.started_at for run in extractor.Lake(str(tmp_path / "lake")).runs()]
    assert report.exit_code == 0
    assert any("clock is behind" in warning for warning in report.warnings)
    assert started == sorted(started)


async def test_only_archives_that_changed_are_fetched_and_only_their_new_lines_land(tmp_path: Path) -> None:
    site = Site(files={"a": (NOON - DAY, 3), "b": (NOON - 2 * HOUR, 2)})
    async with serving(site) as url:
        await run(url, tmp_path, "files", "lines")
        site.take_asked()
        site.files |= {"b": (NOON - 2 * HOUR, 4), "c": (NOON - HOUR, 1)}
        second = await run(url, tmp_path, "files", "lines")
        asked = [label for label in site.take_asked() if label.endswith("lines")]
        third = await run(url, tmp_path, "files", "lines")

    found = {table.name: table for table in (*second.tables, *third.tables)}
    assert sorted(asked) == ["/files/b/lines", "/files/c/lines"]
    assert [label for label in site.take_asked() if label.endswith("lines")] == []
    assert second.tables[1].rows == 3
    assert found["lines"].status == "complete"
    assert "none of 3 rows of its parent has changed" in found["lines"].reason
    assert Counter(name for name, _ in rows(tmp_path, "lines", "file", "n")) == {"a": 3, "b": 4, "c": 1}
    # What its file says of itself stays as it was first seen.
    assert rows(tmp_path, "files", "id", "size") == [("a", 3), ("b", 2), ("c", 1)]


async def test_a_child_that_failed_is_asked_again_even_when_its_parents_window_is_closed(
    tmp_path: Path,
) -> None:
    site = Site(
        files={"a": (NOON - 4 * DAY, 2), "b": (NOON - 4 * DAY, 2), "c": (NOON - HOUR, 1)},
        failing={"/files/a/lines"},
    )
    async with serving(site) as url:
        first = await run(url, tmp_path, "files", "lines")
        landed = rows(tmp_path, "lines", "file", "n")
        holes = state(tmp_path, "lines")["windows"]["holes"]
        site.take_asked()
        site.failing.clear()
        site.now = NOON + 9 * DAY
        second = await run(url, tmp_path, "files", "lines", at=NOON + 9 * DAY)
        asked = site.take_asked()

    assert (first.exit_code, second.exit_code) == (3, 0)
    # Of the window that lacks an archive nothing is there yet.
    assert landed == [("c", 0)]
    assert holes == ["2026-11-18"]
    assert asked[0] == "/files 11-18"
    assert sorted(label for label in asked if label.endswith("lines")) == ["/files/a/lines", "/files/b/lines"]
    assert Counter(name for name, _ in rows(tmp_path, "lines", "file", "n")) == {"a": 2, "b": 2, "c": 1}


async def test_the_open_window_of_a_replaced_table_keeps_each_reading_that_differs(tmp_path: Path) -> None:
    site = Site(bills={"2026-10": 5, "2026-11": 7})
    async with serving(site) as url:
        for total in (7, 8, 8):
            site.bills["2026-11"] = total
            await run(url, tmp_path, "bills", **{"run.since": "30d"})

    readings = sorted(path.parts[-3] for path in (tmp_path / "lake" / "bills").rglob("*.parquet"))
    assert rows(tmp_path, "bills", "total") == [(5,), (8,)]
    assert readings == ["window=2026-10", "window=2026-11", "window=2026-11"]


async def test_a_sample_stands_once_however_scrapes_overlap(tmp_path: Path) -> None:
    site = Site()
    async with serving(site) as url:
        for minute in range(4):
            now = NOON + timedelta(minutes=minute)
            # The last two minutes of each series are in every scrape, and one comes twice in it.
            site.samples = [(name, now - timedelta(minutes=back)) for name in "ab" for back in (0, 1, 1)]
            await run(url, tmp_path, "samples", at=now)

    found = Counter(rows(tmp_path, "samples", "series", "at"))
    assert set(found.values()) == {1}
    assert len(found) == 2 * 5


async def test_scrapes_every_minute_go_on_beside_a_nightly_run_and_neither_waits(tmp_path: Path) -> None:
    site = Site(events={"a": (NOON - HOUR, False)}, samples=[("a", NOON)])
    async with serving(site) as url, asyncio.TaskGroup() as tasks:
        nightly = tasks.create_task(run(url, tmp_path, "events", "slow"))
        await site.is_asked_slowly.wait()
        scrapes = []
        for minute in range(3):
            site.samples = [("a", NOON + timedelta(minutes=minute))]
            scrapes.append(await run(url, tmp_path, "*", at=NOON, **{"run.tags": ("metrics",)}))
        is_over = nightly.done()
        site.may_answer.set()
        await nightly

    assert not is_over
    assert [report.exit_code for report in (*scrapes, nightly.result())] == [0, 0, 0, 0]
    assert len(rows(tmp_path, "samples", "at")) == 3
    assert rows(tmp_path, "events", "id") == [("a",)]
    assert rows(tmp_path, "slow", "id") == [(1,)]
