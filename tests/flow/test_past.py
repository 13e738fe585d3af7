"""An account that lives on: what the lake tells of any two nights, and of any moment, is what happened."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from itertools import combinations
from pathlib import Path
from typing import Any

import aiohttp
import pyarrow as pa
import pyarrow.compute as pc

import extractor
from extractor.catalog import load_catalog
from extractor.digest import row_bytes
from extractor.integrations.duckdb import connect
from extractor.pipeline import World
from extractor.sandbox import SandboxOptions, running
from extractor.testing import canonical

NIGHTS = 4
FIRST = datetime(2026, 11, 10, 2, tzinfo=UTC)
KEY = {"SKYSQL_API_KEY": "k" * 30}
# Where much happens; some are keyed by their parent's row too, and some have no key.
LIVELY = (
    *("services", "service_replicas", "service_detail", "users", "projects", "backups"),
    *("email_channels", "credit_ledger", "contacts", "tax"),
)
ENDPOINTS = {name: endpoint for name, endpoint in load_catalog().endpoints.items() if name in LIVELY}


class At:
    """A clock that stands at a moment, though time passes for whoever waits."""

    def __init__(self, moment: datetime) -> None:
        self.moment = moment

    def now(self) -> datetime:
        return self.moment

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep_until(self, deadline: float) -> None:
        await asyncio.sleep(max(0.0, deadline - self.monotonic()))


def normal(path: str) -> str:
    """A path template without the names of its parameters."""
    return "/".join("{}" if part.startswith("{") else part for part in path.split("/")).rstrip("/")


SNAPSHOTS = {
    normal(endpoint.path): name
    for name, endpoint in ENDPOINTS.items()
    if not endpoint.sync.is_event and not endpoint.sync.is_replaced and endpoint.class_ != "secret"
}
Changes = Mapping[str, Mapping[str, list[Any]]]


def multiset(rows: Iterable[Mapping[str, object] | None]) -> Counter[bytes]:
    return Counter(row_bytes(row) for row in rows if row is not None)


def test_differences_and_history_are_what_the_account_went_through(tmp_path: Path) -> None:
    lived = asyncio.run(_live(tmp_path / "lake"))
    lake = extractor.Lake(tmp_path / "lake")
    runs = [run.run_id for run in lake.runs()]
    assert len(runs) == NIGHTS
    _judge_differences(lake, runs, lived)
    _judge_history(lake, runs)


async def _live(folder: Path) -> dict[tuple[int, int], Changes]:
    """Extract night after night; the account's own list of changes for each two of them."""
    options = SandboxOptions(
        services=6, series=20, log_lines=5, log_days=1, notifications=20, changes=8, today=FIRST.date()
    )
    lived: dict[tuple[int, int], Changes] = {}
    async with running(options) as url, aiohttp.ClientSession(url) as session:
        for number in range(NIGHTS):
            moment = FIRST + number * timedelta(days=1)
            async with session.post(f"/_sandbox/time?to={moment:%Y-%m-%dT%H:%M:%SZ}") as answer:
                assert answer.status == 200
            config = extractor.load_config(
                environment={},
                overrides={
                    "source.base_url": url,
                    "lake.uri": str(folder),
                    "limits.requests_per_second": 1000.0,
                    "run.include": LIVELY,
                },
            )
            world = World(clock=At(moment), chance=random.Random(number).random, environment=KEY)
            report = await extractor.extract(config, environment=KEY, world=world)  # type: ignore[call-arg]
            assert report.status == "complete"
        for first, last in combinations(range(NIGHTS), 2):
            moments = (FIRST + number * timedelta(days=1) for number in (first, last))
            start, end = (f"{moment:%Y-%m-%dT%H:%M:%SZ}" for moment in moments)
            async with session.get(f"/_sandbox/changes?from={start}&to={end}") as answer:
                lived[first, last] = json.loads(await answer.read())
    return lived


def _judge_differences(
    lake: extractor.Lake, runs: list[str], lived: Mapping[tuple[int, int], Changes]
) -> None:
    kinds: Counter[str] = Counter()
    for (first, last), changes in lived.items():
        wanted = {
            SNAPSHOTS[normal(path)]: found for path, found in changes.items() if normal(path) in SNAPSHOTS
        }
        assert {"services", "users"} <= wanted.keys()
        for name in SNAPSHOTS.values():
            if name not in lake.tables():
                continue
            rows = list(lake.diff(runs[first], runs[last], name).rows())
            kinds.update(row.operation for row in rows)
            truth = wanted.get(name, {"added": [], "removed": [], "changed": []})
            come = [*truth["added"], *(pair["after"] for pair in truth["changed"])]
            gone = [*truth["removed"], *(pair["before"] for pair in truth["changed"])]
            assert multiset(row.after for row in rows) == multiset(come), (name, first, last)
            assert multiset(row.before for row in rows) == multiset(gone), (name, first, last)
            if name in ("services", "users", "projects", "backups"):
                told = {op: sum(row.operation == op for row in rows) for op in truth}
                assert told == {op: len(truth[op]) for op in truth}, (name, first, last)
                back = list(lake.diff(runs[last], runs[first], name).rows())
                assert multiset(row.before for row in back) == multiset(come)
    assert min(kinds[kind] for kind in ("added", "removed", "changed")) > 10


def _judge_history(lake: extractor.Lake, runs: list[str]) -> None:
    """Twenty questions: what stood at a moment, asked of the history alone, and with SQL."""
    chance = random.Random(7)
    names = [name for name in lake.tables() if name in SNAPSHOTS.values()]
    told = {name: lake.history(name).to_arrow() for name in names}
    stood = {
        (name, night): lake.table(name, as_of=run).to_arrow()
        for name in names
        for night, run in enumerate(runs)
    }
    with connect(lake, "services_history") as connection:
        for number in range(20):
            night = number % NIGHTS
            moment = FIRST + night * timedelta(days=1) + timedelta(hours=chance.uniform(0, 23.9))
            for name in ("services", chance.choice(names)):
                truth = multiset(canonical(stood[name, night]))
                assert multiset(canonical(_held(told[name], moment))) == truth, (name, night)
            found = connection.sql(
                f"SELECT id, size FROM services_history WHERE valid_from <= '{moment.isoformat()}' "
                f"AND (valid_to IS NULL OR valid_to > '{moment.isoformat()}') ORDER BY id"
            )
            landed = stood["services", night].sort_by("id").select(["id", "size"])
            assert found.to_arrow_table().to_pylist() == landed.to_pylist()


def _held(history: pa.Table, moment: datetime) -> pa.Table:
    at = pa.scalar(moment, pa.timestamp("us", "UTC"))
    is_begun = pc.less_equal(history["valid_from"], at)
    is_on = pc.fill_null(pc.greater(history["valid_to"], at), True)
    return history.filter(pc.and_(is_begun, is_on)).drop_columns(["valid_from", "valid_to"])
