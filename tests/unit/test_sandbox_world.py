from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extractor.sandbox.chance import Scramble
from extractor.sandbox.logs import archive_list, archive_of, archive_ordinals
from extractor.sandbox.options import SandboxOptions, parse_options
from extractor.sandbox.paging import BadQuery, cut_by_token
from extractor.sandbox.people import notification_ordinals, notifications
from extractor.sandbox.routes import ROUTES, match
from extractor.sandbox.rows import Ragged, Row, Rows, Selection
from extractor.sandbox.truth import judged_routes, rows_of
from extractor.sandbox.world import World

ANCHOR = datetime(2026, 3, 10, tzinfo=UTC)
SPECIFICATION = (
    Path(__file__).parents[3] / "shared/skysql-openapi/mariadb-cloud-api.2026-08-18.d66c91a4a.openapi.yaml"
)


def world_of(**options: int) -> World:
    return World(SandboxOptions(**options), "orgtest", ANCHOR, ANCHOR.timestamp)  # type: ignore[arg-type]


def texts(value: object) -> Iterator[str]:
    match value:
        case str():
            yield value
        case datetime():
            yield value.isoformat()
        case dict():
            for item in value.values():
                yield from texts(item)
        case list():
            for item in value:
                yield from texts(item)


@given(pattern=st.lists(st.integers(0, 4), min_size=1, max_size=6).filter(any), parents=st.integers(0, 40))
def test_each_child_lies_within_its_parent(pattern: list[int], parents: int) -> None:
    shape = Ragged(*pattern)
    listed = [(parent, place) for parent in range(parents) for place in range(shape.size(parent))]

    assert [shape.locate(child) for child in range(shape.start(parents))] == listed


@given(index=st.integers(0, 10**9 - 1), shift=st.integers(0, 1 << 64))
def test_a_scrambled_number_leads_back(index: int, shift: int) -> None:
    scramble = Scramble(76_543_217, 10**9, shift)

    assert scramble.back(scramble.forward(index)) == index


@given(index=st.integers(0, 199_999))
def test_a_service_is_found_by_its_id_without_a_search(index: int) -> None:
    world = world_of(services=200_000)
    row = world.services.row(index)

    assert world.service_index(str(row["id"])) == index


def test_an_id_that_was_never_given_names_no_service() -> None:
    world = world_of(services=3)

    for service_id in ("", "db", "dbxxx000000000", world.service_id(3), "dbxxx٠٠٠٠٠٠٠٠٠"):
        assert world.service_index(service_id) is None


def test_each_archive_is_found_by_its_id() -> None:
    world = world_of(services=6)
    rows = list(Selection.all(archive_list(world)))
    names = {row["name"] for row in rows}

    assert len(names) == len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        archive = archive_of(world, str(row["id"]))
        assert archive is not None
        assert archive.name == row["name"]
    assert archive_of(world, "ffffffffff") is None
    assert archive_of(world, "no number") is None


def test_all_times_lie_in_the_28_days_before_the_anchor() -> None:
    world = world_of(services=7, log_lines=9)
    pattern = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d.*")
    first = ANCHOR - timedelta(days=28)
    zeros = {"0001-01-01T00:00:00Z", "1970-01-01T00:00:00+00:00"}
    found = 0

    for route in judged_routes():
        for row in rows_of(world, route):
            for text in texts({key: value for key, value in row.items() if key != "line"}):
                if text in zeros or not pattern.fullmatch(text):
                    continue
                moment = datetime.fromisoformat(text.replace(" ", "T"))
                moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
                found += 1
                assert first <= moment <= ANCHOR + timedelta(days=1), (route.path, text)

    assert found > 1000


def test_rows_of_a_route_have_distinct_keys() -> None:
    world = world_of(services=23)
    keys = {"/provisioning/v1/services": "id", "/skybackup/v1/backups": "id", "/observability/v2/logs": "id"}

    for path, key in keys.items():
        values = [row[key] for row in rows_of(world, ROUTES[path])]
        assert len(set(map(str, values))) == len(values)


@given(size=st.integers(1, 9), insertions=st.lists(st.booleans(), max_size=30), repeats=st.booleans())
def test_tokens_lose_no_row_whatever_comes_in(size: int, insertions: list[bool], repeats: bool) -> None:
    rows = Rows(20, lambda n: {"id": n}, lambda n: {"id": f"new {n}"})
    found: list[Row] = []
    token: str | None = ""
    turns = iter(insertions)
    while token is not None:
        if next(turns, False):
            rows.insert()
        query = {"page_size": str(size), "page_token": token}
        page = cut_by_token(Selection.all(rows), query, default_size=10, repeat=repeats, nonce=1)
        found += page.rows
        assert page.next_token != token
        token = page.next_token

    assert {row["id"] for row in found} >= set(range(20))


def test_a_token_that_was_never_given_is_refused() -> None:
    with pytest.raises(BadQuery):
        cut_by_token(Selection.of([]), {"page_token": "nonsense"}, default_size=10, repeat=False, nonce=0)


def test_a_percent_encoded_parameter_is_one_segment() -> None:
    found = match("/provisioning/v1/configs/a%2Fb%3Ac/values")

    assert found is not None
    assert (found[0].path, found[1]) == (
        "/provisioning/v1/configs/{config_id}/values",
        {"config_id": "a/b:c"},
    )


def test_a_fixed_path_wins_over_a_parameter() -> None:
    found = match("/skybackup/v1/backups/schedules")

    assert found is not None
    assert found[0].path == "/skybackup/v1/backups/schedules"


def test_the_routes_are_the_gets_of_the_specification_and_three_more() -> None:
    if not SPECIFICATION.exists():
        pytest.skip("the specification is not beside this repository")
    path, specified = "", set()
    for line in SPECIFICATION.read_text(encoding="utf-8").splitlines():
        if found := re.fullmatch(r"  [\"']?(/[^\"':]*(?:\{[^}]*\}[^\"':]*)*)[\"']?:", line):
            path = found[1]
        if line == "    get:":
            specified.add(path)

    extra = {"/als/v1/actions", "/observability/v2/query", "/observability/v2/query_range"}
    assert len(specified) == 86
    assert set(ROUTES) - extra == specified


def test_a_command_line_becomes_options() -> None:
    options = parse_options(
        "--port 0 --services 3 --fault reset=0.5 --fault 500=1 --deny /a/* --key k --variant bursts --gzip "
        "--today 2026-03-10 --rate-limit 2.5".split()
    )

    assert options == SandboxOptions(
        services=3,
        faults={"reset": 0.5, "500": 1.0},
        deny=("/a/*",),
        keys=("k",),
        variants=frozenset(("bursts",)),
        gzip=True,
        today=date(2026, 3, 10),
        rate_limit=2.5,
    )


@pytest.mark.parametrize(
    "line",
    [
        "--services many",
        "--services -1",
        "--fault flood=0.1",
        "--fault reset",
        "--fault reset=2",
        "--variant odd",
        "--token-ttl 0",
        "--port 70000",
        "--today yesterday",
        "--unknown",
    ],
)
def test_a_wrong_command_line_is_one_line_of_error(line: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_options(line.split())

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("count", [1, 5, 45, 260, 4000])
def test_notifications_never_grow_newer(count: int) -> None:
    rows = Selection.all(notifications(world_of(notifications=count)))
    stamps = [int(str(row["created_on"])) for row in rows]

    assert stamps == sorted(stamps, reverse=True)


@given(after=st.integers(-30 * 86_400, 86_400), before=st.integers(-30 * 86_400, 86_400))
def test_a_notification_window_is_what_a_search_finds(after: int, before: int) -> None:
    world = world_of(notifications=60)
    anchor = int(ANCHOR.timestamp())
    rows = notifications(world)
    rows.insert()
    low, high = anchor + after, anchor + before
    found = [o for o in rows.ordinals() if low < int(str(rows.row(o)["created_on"])) < high]

    assert list(notification_ordinals(world, low, high)) == found


@given(
    since=st.none() | st.integers(-5, 1),
    until=st.none() | st.integers(-5, 1),
    service=st.none() | st.integers(0, 6),
)
def test_an_archive_window_is_what_a_search_finds(
    since: int | None, until: int | None, service: int | None
) -> None:
    world = world_of(services=6)
    rows = archive_list(world)
    if service is None:
        rows.insert()
    first = None if since is None else ANCHOR + timedelta(days=since)
    last = None if until is None else ANCHOR + timedelta(days=until)
    wanted = None if service is None else world.service_id(service) if service < 6 else "onprem01"

    def is_wanted(row: Row) -> bool:
        start = datetime.fromisoformat(str(row["startTime"]))
        is_in_time = (first is None or start >= first) and (last is None or start <= last)
        return is_in_time and (wanted is None or str(row["serverDataSourceId"]).startswith(f"{wanted}/"))

    found = [ordinal for ordinal in rows.ordinals() if is_wanted(rows.row(ordinal))]
    assert list(archive_ordinals(world, first, last, wanted and [wanted])) == found
