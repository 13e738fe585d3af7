from __future__ import annotations

import itertools
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extractor.config import Checks, Config, RunConfig
from extractor.endpoint import Column, Endpoint, OffsetPaging, PagePaging, Parent, Scalar, Sync, Window
from extractor.errors import ConfigError
from extractor.plan import (
    EARLIEST,
    PageRequest,
    Plan,
    Span,
    first_requests,
    make_plan,
    plan_windows,
    requests_of_parent,
)

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)

FLEET: tuple[Endpoint, ...] = (
    # Children first, so that the order of a plan is its own work.
    Endpoint(
        name="sailors",
        path="/v1/ships/{ship}/sailors",
        parent=Parent(endpoint="ships", params={"ship": "id"}),
        tags=("people",),
        class_="pii",
    ),
    Endpoint(
        name="ships", path="/v1/ports/{port}/ships", parent=Parent(endpoint="ports", params={"port": "id"})
    ),
    Endpoint(name="ports", path="/v1/ports", tags=("places",)),
    Endpoint(name="seas", path="/v1/seas", tags=("places",)),
    Endpoint(name="keys", path="/v1/keys", class_="secret"),
    Endpoint(name="diaries", path="/v1/diaries", class_="customer_data"),
    Endpoint(name="wrecks", path="/v1/wrecks", enabled=False),
)
ENDPOINTS: Mapping[str, Endpoint] = {endpoint.name: endpoint for endpoint in FLEET}


def plan(endpoints: Mapping[str, Endpoint] = ENDPOINTS, **run: object) -> Plan:
    return make_plan(endpoints, Config(run=RunConfig(**run)))  # type: ignore[arg-type]  # each test's own keys


def modes(found: Plan) -> dict[str, str]:
    return {table.name: table.mode for table in found.tables}


def refusal(**run: object) -> str:
    with pytest.raises(ConfigError) as caught:
        plan(**run)
    return caught.value.message


# --- the selection ------------------------------------------------------------------------------------------


def test_everything_is_selected_but_what_is_off_and_parents_come_first() -> None:
    found = plan()

    assert [(table.name, table.mode) for table in found.tables] == [
        ("ports", "run"),
        ("ships", "run"),
        ("sailors", "run"),
        ("seas", "run"),
        ("keys", "skip"),
        ("diaries", "skip"),
    ]
    assert [table.name for table in found.active] == [table.name for table in found.written]
    assert [table.name for table in found.children_of("ports")] == ["ships"]
    assert found.children_of("seas") == ()


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        ({"include": ("s*",)}, {"ports": "keys", "ships": "run", "sailors": "run", "seas": "run"}),
        ({"include": ("sailors",)}, {"ports": "keys", "ships": "keys", "sailors": "run"}),
        ({"include": ("sailors",), "exclude": ("ports",)}, {"ports": "keys", "ships": "keys", "sailors": "run"}),
        ({"include": ("p*", "ships")}, {"ports": "run", "ships": "run"}),
        ({"include": ("s*",), "exclude": ("sa*", "ships")}, {"seas": "run"}),
        ({"tags": ("places",)}, {"ports": "run", "seas": "run"}),
        ({"tags": ("places", "people"), "exclude": ("seas",)},
         {"ports": "run", "ships": "keys", "sailors": "run"}),
        ({"include": ("w*", "seas")}, {"seas": "run"}),
        ({"include": ("wrecks",)}, {"wrecks": "run"}),
        ({"include": ("keys", "seas")}, {"keys": "skip", "seas": "run"}),
        ({"include": ("seas",), "secret": ("keys",)}, {"seas": "run", "keys": "run"}),
        ({"include": ("diaries",), "allow": ("customer_data",)}, {"diaries": "run"}),
        ({"include": ("sailors", "seas"), "pii": "drop"}, {"sailors": "skip", "seas": "run"}),
        ({"include": ("sailors", "seas"), "pii": "hash"}, {"sailors": "skip", "seas": "run"}),
    ],
)  # fmt: skip
def test_what_is_read_follows_from_names_tags_and_classes(
    run: dict[str, object], expected: dict[str, str]
) -> None:
    assert modes(plan(**run)) == expected


def test_what_is_not_read_says_why_and_how_it_would_be() -> None:
    reasons = {table.name: table.reason for table in plan(pii="drop").tables}

    assert reasons == {
        "ports": "",
        "ships": "",
        "seas": "",
        "sailors": "sailors holds personal data in columns that nobody knows, and run.pii is drop",
        "keys": "keys holds credentials; to read it all the same: run.secret = ['keys']",
        "diaries": "diaries holds customer data; to read it: run.allow = ['customer_data']",
    }
    assert {table.name: table.reason for table in plan(include=("ships",)).tables} == {
        "ports": "read for the rows of ships only",
        "ships": "",
    }


def test_an_endpoint_whose_personal_columns_are_known_is_read_without_them() -> None:
    column = Column(path="name", type=Scalar("string"), class_="pii")
    sailors = Endpoint(name="sailors", path="/v1/sailors", class_="pii", columns=(column,))

    assert modes(plan({"sailors": sailors}, pii="drop")) == {"sailors": "run"}


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ({"include": ("shps",)}, "run.include: 'shps' matches no endpoint; did you mean ships?"),
        ({"exclude": ("port",)}, "run.exclude: 'port' matches no endpoint; did you mean ports?"),
        ({"include": ("zzz*",)}, "run.include: 'zzz*' matches no endpoint"),
        ({"secret": ("key",)}, "run.secret: 'key' is the name of no endpoint; did you mean keys?"),
        ({"secret": ("*",)}, "run.secret: '*' is the name of no endpoint"),
        ({"tags": ("place",)}, "--tag place: no endpoint has it; did you mean places?"),
        ({"exclude": ("*",)}, "nothing is selected: everything is excluded"),
        (
            {"include": ("keys",)},
            "nothing is selected: keys holds credentials; to read it all the same: run.secret = ['keys']",
        ),
    ],
)
def test_a_selection_of_nothing_is_refused_with_the_nearest_name(
    run: dict[str, object], message: str
) -> None:
    assert refusal(**run) == message


def test_checks_of_a_table_that_there_is_not_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        make_plan(ENDPOINTS, Config(table_checks={"seas": Checks(), "shps": Checks()}))

    assert caught.value.message == "checks: 'shps' is the name of no endpoint; did you mean ships?"


@pytest.mark.parametrize("class_", ["secret", "customer_data"])
def test_a_parent_that_may_not_be_read_is_not_asked_for_the_sake_of_its_children(class_: str) -> None:
    endpoints = {
        "vaults": Endpoint(name="vaults", path="/vaults", class_=class_),  # type: ignore[arg-type]  # one of its values
        "doors": Endpoint(name="doors", path="/d/{v}", parent=Parent(endpoint="vaults", params={"v": "id"})),
        "locks": Endpoint(name="locks", path="/l/{d}", parent=Parent(endpoint="doors", params={"d": "id"})),
        "seas": Endpoint(name="seas", path="/seas"),
    }
    allowed = {"secret": ("vaults",)} if class_ == "secret" else {"allow": ("customer_data",)}

    refused = plan(endpoints, include=("locks", "seas"))

    assert modes(refused) == {"locks": "skip", "seas": "run"}
    assert refused.tables[0].reason.startswith("doors needs the rows of vaults, and vaults holds c")
    assert modes(plan(endpoints, include=("locks",), **allowed)) == {
        "vaults": "run" if class_ == "secret" else "keys",
        "doors": "keys",
        "locks": "run",
    }


def day(month: int, number: int) -> datetime:
    return datetime(2026, month, number, tzinfo=UTC)


# --- windows ------------------------------------------------------------------------------------------------

moments = st.datetimes(
    min_value=datetime(2019, 1, 1),  # noqa: DTZ001  # the strategy's zone is added
    max_value=datetime(2030, 1, 1),  # noqa: DTZ001
    timezones=st.just(UTC),
)
steps = st.one_of(
    st.integers(20, 400).map(lambda count: f"{count}d"),
    st.integers(3, 50).map(lambda count: f"{count}w"),
    st.integers(1, 24).map(lambda count: f"{count}M"),
)
sinces = st.just("all") | st.integers(0, 4000).map(lambda days: f"{days}d")


def spans_of(
    step: str,
    *,
    since: str = "30d",
    now: datetime = NOW,
    done_until: datetime | None = None,
    holes: tuple[str, ...] = (),
    start: str = "",
) -> tuple[Span, ...]:
    window = Window(from_param="from", to_param="to", step=step, start=start)
    return plan_windows(window, since=since, now=now, done_until=done_until, holes=holes)


@given(steps, sinces, moments, st.none() | moments)
def test_the_windows_cover_the_time_without_gap_or_overlap(
    step: str, since: str, now: datetime, done_until: datetime | None
) -> None:
    spans = spans_of(step, since=since, now=now, done_until=done_until)

    first = EARLIEST if since == "all" else now - timedelta(days=int(since[:-1]))
    assert spans[0].start <= min(done_until or first, now)
    assert [span.end for span in spans[:-1]] == [span.start for span in spans[1:]]
    assert [span.is_closed_at(now) for span in spans] == [True] * (len(spans) - 1) + [False]
    assert spans[-1].start <= now
    assert len({span.label for span in spans}) == len(spans)


@given(steps, sinces, sinces, moments, moments)
def test_every_run_cuts_time_alike(step: str, one: str, other: str, now: datetime, later: datetime) -> None:
    cuts = {span.label: span for span in spans_of(step, since=one, now=now)}

    same = [span for span in spans_of(step, since=other, now=later) if span.label in cuts]

    assert same == [cuts[span.label] for span in same]
    starts = sorted([*cuts.values(), *spans_of(step, since=other, now=later)], key=lambda span: span.start)
    assert all(a == b or a.end is None or a.end <= b.start for a, b in itertools.pairwise(starts))


@given(steps, moments, st.lists(moments, max_size=4))
def test_holes_are_read_again_once_each_before_the_rest(
    step: str, done_until: datetime, missed: list[datetime]
) -> None:
    now = done_until + timedelta(days=40)
    regular = spans_of(step, now=now, done_until=done_until)
    earlier = [moment for moment in missed if moment < regular[0].start]

    spans = spans_of(
        step, now=now, done_until=done_until, holes=tuple(f"{moment:%Y-%m-%d}" for moment in missed)
    )

    again = spans[: len(spans) - len(regular)]
    assert spans[len(again) :] == regular
    assert all(a.end is not None and a.end <= b.start for a, b in zip(again, spans[1:], strict=False))
    for moment in earlier:
        day = moment.replace(hour=0, minute=0, second=0, microsecond=0)
        assert sum(span.start <= day < (span.end or day) for span in again) == 1
    assert len(again) <= len(earlier)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (
            "1M",
            [
                Span(label="2026-10", start=day(10, 1), end=day(11, 1)),
                Span(label="2026-11", start=day(11, 1), end=day(12, 1)),
            ],
        ),
        (
            "1d",
            [
                Span(label=f"2026-11-{number}", start=day(11, number), end=day(11, number + 1))
                for number in (20, 21, 22)
            ],
        ),
        ("", [Span(label="all", start=datetime(2026, 11, 20, 12, tzinfo=UTC), end=None)]),
    ],
)  # fmt: skip
def test_windows_start_on_whole_days_and_months_of_utc(step: str, expected: list[Span]) -> None:
    since = "30d" if step == "1M" else "2d"

    assert list(spans_of(step, since=since)) == expected


def test_all_time_begins_where_the_endpoint_says_or_before_the_service_did() -> None:
    month = "1M"

    assert spans_of(month, since="all", start="2025-03-05")[0].start == datetime(2025, 3, 1, tzinfo=UTC)
    assert spans_of(month, since="all")[0].start == datetime(2019, 1, 1, tzinfo=UTC) == EARLIEST
    assert spans_of(month, since="2d", start="2025-03-05")[0].start == datetime(2026, 11, 1, tzinfo=UTC)


def test_a_window_that_was_done_is_not_read_again_and_since_no_longer_counts() -> None:
    done = datetime(2026, 11, 1, tzinfo=UTC)

    assert spans_of("1M", since="all", done_until=done) == spans_of("1M", since="2d")


# --- requests -----------------------------------------------------------------------------------------------


def window_of(**window: object) -> Endpoint:
    made = Window(**{"from_param": "from", "to_param": "to", "step": "1M", **window})  # type: ignore[arg-type]
    return Endpoint(name="log", path="/log", sync=Sync(kind="window", window=made))


def queries(endpoint: Endpoint, *spans: Span) -> list[dict[str, str]]:
    return [dict(request.query) for request in first_requests(endpoint, "default", spans)]


OCTOBER = Span(
    label="2026-10", start=datetime(2026, 10, 1, tzinfo=UTC), end=datetime(2026, 11, 1, tzinfo=UTC)
)
OPEN = Span(label="all", start=datetime(2026, 11, 20, 12, tzinfo=UTC), end=None)


def test_an_endpoint_without_parent_and_window_is_one_request() -> None:
    endpoint = Endpoint(name="seas", path="/v1/seas", params=(("page_size", "100"),))

    assert list(first_requests(endpoint, "eu", ())) == [
        PageRequest(
            table="seas",
            account="eu",
            path="/v1/seas",
            query=(("page_size", "100"),),
            chain="eu seas /v1/seas?page_size=100",
        )
    ]


@pytest.mark.parametrize(
    ("window", "query"),
    [
        ({"format": "rfc3339"}, {"from": "2026-10-01T00:00:00Z", "to": "2026-11-01T00:00:00Z"}),
        ({"format": "date"}, {"from": "2026-10-01", "to": "2026-11-01"}),
        ({"format": "date", "bounds": "[]"}, {"from": "2026-10-01", "to": "2026-10-31"}),
        ({"format": "epoch"}, {"from": "1790812800", "to": "1793491200"}),
        ({"format": "epoch", "bounds": "()"}, {"from": "1790812799", "to": "1793491200"}),
        # Rows are told apart by key: an end that is inside is asked for as well, or its last second were missed.
        ({"format": "epoch", "bounds": "(]"}, {"from": "1790812799", "to": "1793491200"}),
        ({"format": "epoch", "bounds": "[]", "replace": True}, {"from": "1790812800", "to": "1793491199"}),
        ({"format": "epoch_ms"}, {"from": "1790812800000", "to": "1793491200000"}),
        ({"format": "year_month"}, {"from": "2026", "to": "10"}),
        ({"to_param": ""}, {"from": "2026-10-01T00:00:00Z"}),
    ],
)
def test_a_window_is_asked_for_as_the_api_counts_its_bounds(
    window: dict[str, object], query: dict[str, str]
) -> None:
    assert queries(window_of(**window), OCTOBER) == [query]


def test_a_window_without_an_end_is_asked_for_without_one() -> None:
    assert queries(window_of(), OPEN) == [{"from": "2026-11-20T12:00:00Z"}]


def test_each_window_is_a_chain_of_its_own() -> None:
    requests = list(first_requests(window_of(), "default", (OCTOBER, OPEN)))

    assert [request.window for request in requests] == ["2026-10", "all"]
    assert (
        len({request.chain for request in requests}) == len({request.identity for request in requests}) == 2
    )


@pytest.mark.parametrize(
    ("paging", "query"),
    [
        (PagePaging(page_param="page", pages_pointer="/n"), {"page": "1"}),
        (PagePaging(page_param="page", first_page=0, pages_pointer="/n"), {"page": "0"}),
        (
            OffsetPaging(offset_param="offset", limit_param="limit", limit=100),
            {"offset": "0", "limit": "100"},
        ),
    ],
)
def test_the_first_page_says_where_it_begins(
    paging: PagePaging | OffsetPaging, query: dict[str, str]
) -> None:
    endpoint = Endpoint(name="seas", path="/v1/seas", paging=paging)

    assert queries(endpoint) == [query]


def test_a_child_is_asked_for_once_its_parent_has_rows() -> None:
    endpoint = Endpoint(
        name="sailors",
        path="/v1/ships/{ship}/sailors",
        params=(("order", "asc"),),
        parent=Parent(endpoint="ships", params={"ship": "id", "flag": "flag"}),
    )

    first = list(first_requests(endpoint, "default", ()))
    then = list(
        requests_of_parent(
            endpoint, "default", (), params={"ship": "a/b:c ü", "flag": "x y"}, keep=(("ship_id", "a/b:c ü"),)
        )
    )

    path = "/v1/ships/a%2Fb%3Ac%20%C3%BC/sailors"
    assert first == []
    assert then == [
        PageRequest(
            table="sailors",
            account="default",
            path=path,
            query=(("order", "asc"), ("flag", "x y")),
            keep=(("ship_id", "a/b:c ü"),),
            chain=f"default sailors {path}?order=asc&flag=x y",
        )
    ]


def test_a_child_that_may_do_without_its_parent_is_tried_once() -> None:
    parent = Parent(endpoint="ships", params={"ship": "id"}, fallback_on=(400,))
    endpoint = Endpoint(name="sailors", path="/v1/sailors", parent=parent)

    trial = list(first_requests(endpoint, "default", ()))
    then = list(requests_of_parent(endpoint, "default", (), params={"ship": "7"}, keep=()))

    assert [(request.query, request.is_trial) for request in trial] == [((), True)]
    assert [(request.query, request.is_trial) for request in then] == [((("ship", "7"),), False)]


@given(st.text(max_size=12))
def test_no_value_of_a_parent_leads_to_another_path(value: str) -> None:
    endpoint = Endpoint(
        name="sailors",
        path="/v1/ships/{ship}/sailors",
        parent=Parent(endpoint="ships", params={"ship": "id"}),
    )

    (request,) = requests_of_parent(endpoint, "default", (), params={"ship": value}, keep=())

    assert request.path.startswith("/v1/ships/")
    assert request.path.endswith("/sailors")
    assert request.path.count("/") == 4
    assert not set(request.path) & set("?#\\ ")


def test_long_values_are_cut_for_people_only() -> None:
    request = PageRequest(table="t", account="a", path="/v1", query=(("token", "x" * 50), ("a", "b")))

    assert request.label == f"/v1?token={'x' * 40}&a=b"
    assert request.full_label == f"/v1?token={'x' * 50}&a=b"
    assert PageRequest(table="t", account="a", path="/v1").label == "/v1"


def test_requests_are_the_same_by_table_account_path_and_query() -> None:
    request = PageRequest(table="t", account="a", path="/v1", query=(("b", "c"),))

    others = [
        PageRequest(table="u", account="a", path="/v1", query=(("b", "c"),)),
        PageRequest(table="t", account="b", path="/v1", query=(("b", "c"),)),
        PageRequest(table="t", account="a", path="/v2", query=(("b", "c"),)),
        PageRequest(table="t", account="a", path="/v1", query=(("b", "d"),)),
    ]

    again = PageRequest(table="t", account="a", path="/v1", query=(("b", "c"),), page=3, keep=(("k", "v"),))
    assert again.identity == request.identity
    assert request.identity not in {other.identity for other in others}
