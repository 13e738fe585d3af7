"""Past windows, filled beside the runs that go on."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

import extractor
from extractor.backfilling import backfill
from extractor.commitlog import CommitLog
from extractor.config import Config
from extractor.errors import AuthError, ConfigError
from extractor.pipeline import World, extract
from extractor.report import RunReport
from extractor.sandbox import running
from extractor.stores import open_store
from tests.flow import own
from tests.nights.play import KEY, NightClock, configured
from tests.nights.play import extract as run_at
from tests.nights.site import ENDPOINTS, Site, options

FIRST_DAY = date(2026, 8, 1)
START = datetime(2026, 8, 1, tzinfo=UTC)
NOW = START + timedelta(days=40, hours=2)
EVENTS = ("notifications", "logs", "log_lines")


@asynccontextmanager
async def account(now: datetime = NOW) -> AsyncIterator[Site]:
    """An account that has lived for forty days."""
    async with (
        running(options(first_day=FIRST_DAY, seed=3)) as url,
        aiohttp.ClientSession(headers={"X-API-Key": "any"}) as session,
    ):
        site = Site(url, session)
        await site.set_time(now)
        yield site


async def fill(
    site: Site,
    lake: Path,
    name: str = "notifications",
    *,
    start: datetime = START,
    parallel: int = 2,
    **kw: Any,
) -> RunReport:
    world = World(clock=NightClock(NOW), chance=lambda: 0.5, environment=KEY)
    return await backfill(
        name, configured(site.url, lake), start=start, end=NOW, parallel=parallel, world=world, **kw
    )


def ids(lake: Path, name: str) -> Counter[tuple[object, ...]]:
    key = list(ENDPOINTS[name].key)
    table = extractor.Lake(str(lake)).table(name).to_arrow().select(key)
    return Counter(tuple(row.values()) for row in table.to_pylist())


async def truth(site: Site, name: str, *, since: datetime) -> set[tuple[object, ...]]:
    """What can be read now and happened since then; what was deleted before it was read is nowhere to be had."""
    endpoint = ENDPOINTS[name]
    path = site.templates()[endpoint.path]
    rows = [json.loads(line) for line in (await site.get(f"/_sandbox/truth{path}?as=ndjson")).splitlines()]
    first = f"{since:%Y-%m-%dT%H:%M:%SZ}"
    return {
        tuple(row[column] for column in endpoint.key)
        for row in rows
        if str(row.get(endpoint.sync.cursor, "")) >= first
    }


def state_of(lake: Path, name: str) -> dict[str, object]:
    log = CommitLog(open_store(str(lake)))
    entry = log.newest()
    assert entry is not None
    return dict(log.state_of(entry, name, "default").state)


async def test_a_backfill_beside_runs_adds_every_row_once_and_leaves_their_cursor_alone(
    tmp_path: Path,
) -> None:
    lake = tmp_path / "lake"
    async with account() as site:
        await run_at(site.url, lake, NOW - timedelta(days=1), **{"run.include": EVENTS, "run.since": "3d"})
        before = {name: state_of(lake, name)["windows"] for name in EVENTS}

        async with asyncio.TaskGroup() as tasks:
            notes = tasks.create_task(fill(site, lake, "notifications"))
            logs = tasks.create_task(fill(site, lake, "logs", start=NOW - timedelta(days=5), parallel=1))
            for _ in range(2):
                await run_at(site.url, lake, NOW - timedelta(days=1), **{"run.include": EVENTS})
        after = {name: state_of(lake, name) for name in EVENTS}

        assert (notes.result().exit_code, logs.result().exit_code) == (0, 0)
        assert {name: state["windows"] for name, state in after.items()} == before
        assert not any(key.startswith("backfill:") for state in after.values() for key in state)
        for name in EVENTS:
            found = ids(lake, name)
            assert set(found.values()) == {1}, name
            assert not await truth(site, name, since=NOW - timedelta(days=5)) - set(found), name


async def test_the_key_is_known_as_a_secret_before_anything_is_asked(tmp_path: Path) -> None:
    async with account() as site:
        world = World(clock=NightClock(NOW), chance=lambda: 0.5, environment=KEY)
        config = configured(site.url, tmp_path / "lake")
        await backfill("notifications", config, start=NOW - timedelta(days=1), end=NOW, world=world)

    assert KEY["SKYSQL_API_KEY"] not in world.secrets.text(f"it said {KEY['SKYSQL_API_KEY']}")


async def test_a_refused_key_leaves_nothing_of_a_new_lake(tmp_path: Path) -> None:
    async with running(replace(options(first_day=FIRST_DAY, seed=3), keys=("another",))) as url:
        config = configured(url, tmp_path / "lake")
        world = World(clock=NightClock(NOW), chance=lambda: 0.5, environment=KEY)

        with pytest.raises(AuthError):
            await backfill("notifications", config, start=NOW - timedelta(days=1), end=NOW, world=world)

    assert not (tmp_path / "lake").exists()


async def test_a_backfill_that_was_cut_off_goes_on_with_the_windows_that_are_left(tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    async with account() as site:
        interruption = extractor.pipeline.Interruption()

        def stop_after_two(event: object) -> None:
            committed.append(event)
            if len(committed) == 2:
                interruption.set(143, "interrupted by SIGTERM")

        committed: list[object] = []
        observer = lambda event: stop_after_two(event) if type(event).__name__ == "Committed" else None  # noqa: E731
        first = await fill(site, lake, observer=observer, interruption=interruption)
        done = next(
            value for key, value in state_of(lake, "notifications").items() if key.startswith("backfill:")
        )
        await site.requests()

        second = await fill(site, lake)
        asked = (await site.requests()).total()
        again = await fill(site, lake)

        assert (first.exit_code, second.exit_code, again.exit_code) == (143, 0, 0)
        assert isinstance(done, list)
        assert len(done) == 4
        assert asked < 3 * (7 - len(done))
        assert set(ids(lake, "notifications").values()) == {1}
        # Once all is done it reads everything again: rows that came late are found by it alone.
        assert again.tables[0].requests >= 7
        assert again.rows == 0


async def test_a_backfill_counts_as_its_own_only_the_rows_that_were_not_there(tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    async with account(START + timedelta(days=30)) as site:
        await run_at(site.url, lake, START + timedelta(days=30), **{"run.include": ("notifications",)})
        before = set(ids(lake, "notifications"))
        await site.set_time(NOW)
        report = await fill(site, lake, start=START + timedelta(days=28))

        assert report.exit_code == 0
        assert report.rows == len(set(ids(lake, "notifications")) - before) == 100


@pytest.mark.parametrize(
    ("name", "start", "end", "complaint"),
    [
        ("services", START, NOW, "it has no window; those with one are"),
        ("notification", START, NOW, "did you mean notifications"),
        ("notifications", NOW, START, "is not after"),
        ("notifications", NOW + timedelta(days=9), NOW + timedelta(days=10), "lies in the future"),
    ],
)
async def test_what_cannot_be_filled_is_refused_before_anything_is_asked(
    tmp_path: Path, name: str, start: datetime, end: datetime, complaint: str
) -> None:
    config: Config = configured("http://127.0.0.1:9", tmp_path / "lake")
    world = World(clock=NightClock(NOW), chance=lambda: 0.5, environment=KEY)

    with pytest.raises(ConfigError, match=complaint):
        await backfill(name, config, start=start, end=end, world=world)

    assert not (tmp_path / "lake").exists()
    assert callable(extractor.backfill)


def test_the_command_refuses_what_it_cannot_fill_in_one_line(program: Any) -> None:
    def complaint(*argv: str) -> tuple[int, str]:
        found = program.call([*program.command, "backfill", *argv, "--lake", "lake"], {})
        return found.code, found.complaint

    code, line = complaint("notifications", "--from", "2026-02-01", "--to", "2026-01-01")
    assert (code, line) == (2, "backfill notifications: --to 2026-01-01 is not after --from 2026-02-01")
    code, line = complaint("notifications", "--from", "soon", "--to", "2026-01-01")
    assert (code, line) == (2, "--from: 'soon' is no date such as 2026-01-31")
    assert not program.lake("lake").exists()


async def test_past_samples_are_read_window_by_window_where_a_query_is_configured(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "own.toml").write_text("""
[clients]
path    = "/observability/v2/query_range"
params  = { query = "mariadb_global_status_aborted_clients", step = "3600" }
records = "/data/result"

[clients.sync]
kind = "window"
from_param = "start"
to_param = "end"
format = "epoch"
bounds = "[]"
step = "1d"
replace = true

[clients.columns]
metric = "map<string, string>"
values = "json"
""")
    lake = tmp_path / "lake"
    async with account() as site:
        config = configured(site.url, lake, **{"source.catalogs": (str(tmp_path / "own"),)})
        world = World(clock=NightClock(NOW), chance=lambda: 0.5, environment=KEY)
        report = await backfill("clients", config, start=NOW - timedelta(days=2), end=NOW, world=world)

    table = extractor.Lake(str(lake)).table("clients").to_arrow().to_pylist()
    moments = Counter(at for row in table for at, _ in json.loads(row["values"]))
    windows = {path.parts[-3] for path in (lake / "clients").rglob("*.parquet")}
    assert report.exit_code == 0
    assert windows == {"window=2026-09-08", "window=2026-09-09", "window=2026-09-10"}
    # A sample on a boundary belongs to one window: no hour has more samples than another.
    assert len(moments) == 3 * 24
    assert len(set(moments.values())) == 1


DAILY = """
[daily]
path = "/daily"
key  = ["day"]

[daily.sync]
kind = "window"
from_param = "from"
to_param = "to"
step = "1d"
replace = true
"""


async def test_of_a_window_that_a_run_reads_meanwhile_the_later_reading_counts(tmp_path: Path) -> None:
    lives = World(clock=NightClock(NOW), chance=lambda: 0.5, environment=KEY)
    asked: list[str] = []
    is_beside = False

    async def answer(request: web.Request) -> web.Response:
        nonlocal is_beside
        reading = len(asked)
        asked.append(request.query["from"])
        if is_beside:
            is_beside = False
            report = await extract(config, world=lives)
            assert report.exit_code == 0
        return web.json_response([{"day": request.query["from"], "reading": reading}])

    async with own.serving(answer) as url:
        config = own.configured(tmp_path, url, DAILY, run__since="2d")
        await extract(config, world=lives)
        is_beside = True
        start = NOW.replace(hour=0) - timedelta(days=1)
        report = await backfill("daily", config, start=start, end=NOW, world=lives)

    rows = extractor.Lake(str(tmp_path / "lake")).table("daily").to_arrow().to_pylist()
    last = {day: number for number, day in enumerate(asked)}
    assert report.exit_code == 0
    assert {row["day"]: row["reading"] for row in rows} == last


async def test_what_a_check_holds_back_is_published_once_where_it_is_accepted(tmp_path: Path) -> None:
    lives = World(clock=NightClock(NOW), chance=lambda: 0.5, environment=KEY)
    (tmp_path / "skysql-extract.toml").write_text("[checks.daily]\nmax_nulls = { note = 0.5 }\n")

    async def answer(request: web.Request) -> web.Response:
        return web.json_response([{"day": request.query["from"], "note": None}])

    async with own.serving(answer) as url:
        config = own.configured(tmp_path, url, DAILY + '\n[daily.columns]\nday = "string"\nnote = "string"\n')
        times: dict[str, Any] = {"start": NOW - timedelta(days=1), "end": NOW, "world": lives}
        held = await backfill("daily", config, **times)
        with pytest.raises(ConfigError, match="--accept other: it does not fill that table"):
            await backfill("daily", config, accept=["other"], **times)
        published = await backfill("daily", config, accept=["daily"], **times)

    assert (held.exit_code, published.exit_code) == (3, 0)
    assert "publish once with --accept daily" in held.message
    assert len(extractor.Lake(str(tmp_path / "lake")).table("daily").to_arrow()) == 2
