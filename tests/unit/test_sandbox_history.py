from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import Any

import aiohttp
import pytest

from extractor.digest import digest_rows, row_bytes
from extractor.sandbox import SandboxOptions, running
from extractor.sandbox.logs import archive_of
from extractor.sandbox.routes import ROUTES
from extractor.sandbox.truth import changes, judged_routes, rows_of
from extractor.sandbox.world import World

START = datetime(2026, 11, 2, tzinfo=UTC)
OPTIONS = SandboxOptions(
    services=6, series=60, log_lines=40, log_days=1, notifications=54, today=date(2026, 11, 2), changes=4
)
NOTIFICATIONS = "/notifications/v1/notifications"


class Moment:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.at = START.timestamp()

    def __call__(self) -> float:
        return self.at


def world_at(*days: float) -> World:
    """A world that was asked for everything on each of these days in turn."""
    moment = Moment()
    world = World(OPTIONS, "org1", START, moment)
    for day in days:
        moment.at = (START + timedelta(days=day)).timestamp()
        world.catch_up()
        if day != days[-1]:
            truth(world)
    return world


def truth(world: World) -> Mapping[str, tuple[int, str]]:
    """Of everything but the lines of the archives, which are many and have a test of their own."""
    routes = [route for route in judged_routes() if not route.path.endswith("/archive")]
    return {route.path: digest_rows(rows_of(world, route)) for route in routes}


def test_the_world_of_a_moment_does_not_depend_on_what_was_asked_before() -> None:
    direct = truth(world_at(9.3))

    assert truth(world_at(2.5, 9.3)) == direct
    assert truth(world_at(12, 9.3)) == direct


def test_without_the_option_time_changes_nothing() -> None:
    still = SandboxOptions(services=6, today=date(2026, 11, 2))
    moment = Moment()
    world = World(still, "org1", START, moment)
    before = truth(world)
    moment.at += 90 * 86_400
    world.catch_up()

    assert truth(world) == before


@pytest.mark.parametrize(
    ("path", "ops"),
    [
        ("/provisioning/v1/services", {"added", "removed", "changed"}),
        ("/organization/v1/users", {"added", "removed", "changed"}),
        ("/skybackup/v1/backups", {"added", "removed", "changed"}),
        ("/billing/v1/bills", {"added", "changed"}),
        ("/billing/v1/invoices", {"added"}),
    ],
)
def test_rows_come_change_and_go_and_the_list_of_changes_leads_from_one_moment_to_the_other(
    path: str, ops: set[str]
) -> None:
    before, after = world_at(3), world_at(6 if "services" in path else 30)

    found = changes(before, after, ROUTES[path])

    rows = [row_bytes(row) for row in rows_of(before, ROUTES[path])]
    for row in found["removed"]:
        rows.remove(row_bytes(row))  # type: ignore[arg-type]
    for pair in found["changed"]:
        rows.remove(row_bytes(pair["before"]))  # type: ignore[index]
        rows.append(row_bytes(pair["after"]))  # type: ignore[index]
    rows += [row_bytes(row) for row in found["added"]]  # type: ignore[arg-type]
    assert sorted(rows) == sorted(row_bytes(row) for row in rows_of(after, ROUTES[path]))
    assert {op for op, changed in found.items() if changed} == ops


def test_notifications_come_up_to_48_hours_late_and_some_are_gone_again_later() -> None:
    first_seen: dict[str, float] = {}
    created: dict[str, float] = {}
    last: set[str] = set()
    gone: set[str] = set()
    for hour in range(0, 24 * 24, 3):
        rows = list(rows_of(world := world_at(hour / 24), ROUTES[NOTIFICATIONS]))
        now = START + timedelta(hours=hour)
        for row in rows:
            first_seen.setdefault(str(row["id"]), now.timestamp())
            created[str(row["id"])] = row["created_on"].timestamp()  # type: ignore[attr-defined]
        present = {str(row["id"]) for row in rows}
        gone |= last - present
        last = present
        assert all(row["created_on"] <= now for row in rows)  # type: ignore[operator]
    ever = {str(row["id"]) for row in rows_of(world, ROUTES[NOTIFICATIONS], when="ever")}
    delays = [first_seen[name] - created[name] for name in created if created[name] >= START.timestamp()]

    assert 24 * 3600 < max(delays) <= 51 * 3600
    assert sum(delay > 3 * 3600 for delay in delays) >= 5
    assert gone
    assert ever == set(created)
    assert any(stamp % 86_400 == 0 for stamp in created.values())


def test_an_archive_only_grows_and_ends_two_days_after_its_day() -> None:
    sizes: list[list[bytes]] = []
    log_id = next(
        str(row["id"])
        for row in rows_of(world_at(0.9), ROUTES["/observability/v2/logs"])
        if str(row["startTime"]) == "2026-11-02T00:00:00Z"
    )
    for day in (0.2, 0.9, 1.5, 2.9, 3.1, 20):
        world = world_at(day)
        archive = archive_of(world, log_id)
        assert archive is not None
        rows = rows_of(world, ROUTES["/observability/v2/logs/archive"])
        sizes.append([row_bytes(row) for row in rows if row["log_id"] == log_id])

    assert [len(lines) for lines in sizes] == [7, 32, 37, 39, 40, 40]
    assert all(later[: len(lines)] == lines for lines, later in pairwise(sizes))


async def test_the_clock_is_set_by_a_request_and_every_answer_shows_it() -> None:
    async with running(OPTIONS) as url, aiohttp.ClientSession(url) as session:

        async def get(path: str) -> Any:
            async with session.get(path, headers={"X-API-Key": "any"}) as answer:
                return json.loads(await answer.read())

        async with session.post("/_sandbox/time?to=2026-11-12T03:00:00Z") as answer:
            assert await answer.json() == {"now": "2026-11-12T03:00:00+00:00"}
        async with session.get(NOTIFICATIONS, headers={"X-API-Key": "any"}) as answer:
            assert answer.headers["Date"] == "Thu, 12 Nov 2026 03:00:00 GMT"
        told = await get("/_sandbox/truth?path=/provisioning/v1/services")
        found = await get("/_sandbox/changes?from=2026-11-02T00:00:00Z&to=2026-11-12T03:00:00Z")
        async with session.post("/_sandbox/time?to=yesterday") as answer:
            assert answer.status == 400

    rows, digest = digest_rows(rows_of(world_at(10.125), ROUTES["/provisioning/v1/services"]))
    # The organization's name differs, and with it the chance of everything.
    assert told["/provisioning/v1/services"]["rows"] > 0
    assert (rows, digest) != (0, "")
    assert "/provisioning/v1/services" in found
    assert NOTIFICATIONS not in found


def test_the_samples_of_every_scrape_that_was_made_count_once() -> None:
    world = world_at(1)
    world.scraped |= {world.minute, world.minute + 1}

    rows = list(rows_of(world, ROUTES["/observability/v2/metrics"], when="ever"))

    now = list(rows_of(world, ROUTES["/observability/v2/metrics"]))
    assert len(now) < len(rows) < 2 * len(now)


def test_rows_that_a_fault_inserts_and_time_that_passes_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="row-inserted"):
        SandboxOptions(changes=1, faults={"row-inserted": 0.1})
