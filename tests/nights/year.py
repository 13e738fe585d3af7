"""A backfill of a year, killed twice, while two nightly runs go on: every row once.

`python -m tests.nights.year`; with `step URL LAKE NAME` it is one backfill in a process of its own, to be killed.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp

import extractor
from extractor.backfilling import backfill
from extractor.pipeline import World
from extractor.sandbox import running
from tests.nights.play import FIRST_DAY, KEY, NightClock, configured, extract
from tests.nights.site import ENDPOINTS, Site, options

_TOP = Path(__file__).parents[2]
_START = datetime.combine(FIRST_DAY, datetime.min.time(), UTC)
_NOW = _START + timedelta(days=365, hours=2)
_NAMES = ("notifications", "logs", "log_lines")


async def fill(url: str, lake: str, name: str) -> int:
    """The backfill of one endpoint over the whole year."""
    world = World(clock=NightClock(_NOW), chance=random.random, environment=KEY)
    report = await backfill(
        name, configured(url, lake), start=_START - timedelta(days=28), end=_NOW, parallel=4, world=world
    )
    print(
        f"{name}: {report.status}, {report.rows} rows, {report.requests.sent} requests, {report.seconds:.0f} s"
    )
    return report.exit_code


async def _fill_and_kill(url: str, lake: str, name: str, kills: list[float]) -> list[str]:
    """Start the backfill in a process, kill it after each of these seconds, and let the last one end."""
    told: list[str] = []
    for seconds in (*kills, None):
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.nights.year", "step", url, lake, name),
            cwd=_TOP,
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            out, _ = await asyncio.wait_for(child.communicate(), seconds)
            told.append(out.decode().strip())
        except TimeoutError:
            child.kill()
            await child.wait()
            told.append(f"{name}: killed after {seconds:.1f} s")
    return told


async def _play(seed: int) -> int:
    chance = random.Random(seed)
    began = time.monotonic()
    bad = 0
    with tempfile.TemporaryDirectory(prefix="nights-") as folder:
        lake = str(Path(folder) / "lake")
        async with (
            running(options(first_day=FIRST_DAY, seed=seed)) as url,
            aiohttp.ClientSession(headers={"X-API-Key": "any"}) as session,
        ):
            site = Site(url, session)
            await site.set_time(_NOW)
            kills = [
                chance.uniform(3, 8),
                chance.uniform(3, 8),
                chance.uniform(15, 45),
                chance.uniform(15, 45),
            ]
            async with asyncio.TaskGroup() as tasks:
                fills = [
                    tasks.create_task(_fill_and_kill(url, lake, "notifications", kills[:2])),
                    tasks.create_task(_fill_and_kill(url, lake, "logs", kills[2:])),
                ]
                for night in (0, 1):
                    await asyncio.sleep(10 * night + 4)
                    at = _NOW + timedelta(days=night)
                    await site.set_time(at)
                    report = await extract(url, Path(lake), at, **{"run.include": _NAMES})
                    print(f"nightly run {night + 1}: {report.status}, {report.rows} rows", flush=True)
            print(*(line for task in fills for line in task.result()), sep="\n")
            templates = site.templates()
            for name in _NAMES:
                endpoint = ENDPOINTS[name]
                key = list(endpoint.key)
                table = extractor.Lake(lake).table(name).to_arrow().select(key).to_pylist()
                found = Counter(tuple(row.values()) for row in table)
                rows = await site.rows(endpoint, templates)
                ever = {tuple(row[column] for column in key) for row in rows}
                wanted = ever if name != "notifications" else await _present(site, ever)
                twice = found.total() - len(found)
                missing, extra = len(wanted - set(found)), len(set(found) - ever)
                bad += bool(twice or missing or extra)
                print(f"{name}: {found.total()} rows, {twice} twice, {missing} missing, {extra} too many")
    print(f"{time.monotonic() - began:.0f} s")
    return bad


async def _present(site: Site, ever: set[tuple[object, ...]]) -> set[tuple[object, ...]]:
    """Those that can be read now: what was deleted before the backfill began is nowhere to be had."""
    import json

    text = await site.get("/_sandbox/truth/notifications/v1/notifications?as=ndjson")
    return ever & {(json.loads(line)["id"],) for line in text.splitlines()}


def _main() -> int:
    if sys.argv[1:2] == ["step"]:
        return asyncio.run(fill(*sys.argv[2:]))
    parser = argparse.ArgumentParser(prog="python -m tests.nights.year", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    return asyncio.run(_play(parser.parse_args().seed))


if __name__ == "__main__":
    sys.exit(_main())
