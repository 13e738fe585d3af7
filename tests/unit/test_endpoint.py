from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extractor.endpoint import (
    SCALARS,
    Column,
    ColumnType,
    Endpoint,
    LinkPaging,
    ListType,
    MapType,
    NextUrlPaging,
    NoPaging,
    OffsetPaging,
    PagePaging,
    Paging,
    Parent,
    Scalar,
    StructType,
    Sync,
    TokenPaging,
    Window,
    parse_type,
    read_endpoint,
)
from extractor.errors import ConfigError
from extractor.schema import render_type

names = st.from_regex(r"[A-Za-z_$][A-Za-z0-9_.$-]{0,8}", fullmatch=True)
column_types: st.SearchStrategy[ColumnType] = st.recursive(
    st.sampled_from(SCALARS).map(Scalar),
    lambda inner: st.one_of(
        inner.map(ListType),
        inner.map(MapType),
        st.lists(st.tuples(names, inner), min_size=1, max_size=3, unique_by=lambda pair: pair[0]).map(
            lambda fields: StructType(tuple(fields))
        ),
    ),
    max_leaves=8,
)


def read(**table: Any) -> Endpoint:
    return read_endpoint("ships", {"path": "/v1/ships", **table}, file="a.toml")


def refusal(name: str = "ships", **table: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        read_endpoint(name, {"path": "/v1/ships", **table}, file="a.toml")
    return caught.value.message


# --- column types -------------------------------------------------------------------------------------------


@given(column_types)
def test_a_type_that_is_rendered_is_read_back(column_type: ColumnType) -> None:
    assert parse_type(render_type(column_type)) == column_type


def test_blanks_in_a_type_mean_nothing() -> None:
    spaced = " struct < id : string , tags : map< string ,list<int64 >> > "

    assert parse_type(spaced) == parse_type("struct<id:string,tags:map<string,list<int64>>>")
    assert parse_type(spaced) == StructType(
        (("id", Scalar("string")), ("tags", MapType(ListType(Scalar("int64")))))
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "column type '' ends too early"),
        ("list<", "column type 'list<' ends too early"),
        ("list", "column type 'list': '<' expected, found 'the end'"),
        ("list<string", "column type 'list<string': '>' expected, found 'the end'"),
        ("map<int64,string>", "column type 'map<int64,string>': 'string' expected, found 'int64'"),
        ("map<string>", "column type 'map<string>': ',' expected, found '>'"),
        ("struct<", "column type 'struct<' ends too early"),
        ("struct<a>", "column type 'struct<a>': ':' expected, found '>'"),
        ("struct<a:string,", "column type 'struct<a:string,' ends too early"),
        ("string>", "column type 'string>': nothing may follow 'string'"),
        (
            "integer",
            (
                "column type 'integer': 'integer' is none of string, int64, float64, bool, decimal, timestamp, "
                "timestamp_naive, epoch, json, binary, list, map, struct"
            ),
        ),
    ],
)
def test_a_type_that_makes_no_sense_is_refused_at_the_place(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_type(text)

    assert caught.value.message == message


@given(st.text(alphabet="abst<>,: int64rglsmp", max_size=24))
def test_any_text_is_a_type_or_is_refused(text: str) -> None:
    try:
        parsed = parse_type(text)
    except ConfigError:
        return
    assert parse_type(render_type(parsed)) == parsed


# --- an endpoint --------------------------------------------------------------------------------------------


def test_only_the_path_is_mandatory() -> None:
    assert read() == Endpoint(name="ships", path="/v1/ships", file="a.toml")
    assert refusal(path=7).startswith("a.toml: [ships]: ")
    with pytest.raises(ConfigError, match=r"^a\.toml: \[ships\]: .*`path`"):
        read_endpoint("ships", {}, file="a.toml")


def test_a_table_says_everything_about_its_endpoint() -> None:
    endpoint = read(
        path="/v1/ports/{port}/ships",
        method="POST",
        body={"query": {"all": True}},
        params={"page_size": 100, "full": True, "order": "asc"},
        format="ndjson",
        records="/rows",
        paging={"kind": "page", "page_param": "page", "pages_pointer": "/pages"},
        parent={"endpoint": "ports", "params": {"port": "id"}},
        keep={"port_id": "id"},
        empty_on=[404],
        auth_on=[500],
        key=["id", "port_id"],
        sync={"kind": "append", "cursor": "seen_at", "mutable": ["flag"]},
        tags=["fleet"],
        columns={
            "id": "string",
            "crew": {"type": "list<struct<name:string>>", "class": "pii"},
            "crew[].pin": {"class": "secret"},
        },
        enabled=False,
        origin="user",
        note="seldom",
        **{"class": "customer_data"},
    )

    assert endpoint == Endpoint(
        name="ships",
        path="/v1/ports/{port}/ships",
        method="POST",
        body={"query": {"all": True}},
        params=(("page_size", "100"), ("full", "true"), ("order", "asc")),
        format="ndjson",
        records="/rows",
        paging=PagePaging(page_param="page", pages_pointer="/pages"),
        parent=Parent(endpoint="ports", params={"port": "id"}),
        keep=(("port_id", "id"),),
        empty_on=(404,),
        auth_on=(500,),
        key=("id", "port_id"),
        sync=Sync(kind="append", cursor="seen_at", mutable=("flag",)),
        tags=("fleet",),
        class_="customer_data",
        columns=(
            Column(path="id", type=Scalar("string")),
            Column(path="crew", type=ListType(StructType((("name", Scalar("string")),))), class_="pii"),
            Column(path="crew[].pin", type=None, class_="secret"),
        ),
        enabled=False,
        origin="user",
        note="seldom",
        file="a.toml",
    )
    assert endpoint.placeholders == ("port",)
    assert [column.path for column in endpoint.top_columns] == ["id", "crew"]


@pytest.mark.parametrize(
    ("table", "paging"),
    [
        ({"kind": "none"}, NoPaging()),
        (
            {"kind": "token", "request_param": "t", "response_header": "Next"},
            TokenPaging(request_param="t", response_header="Next"),
        ),
        (
            {"kind": "token", "request_param": "t", "response_pointer": "/next"},
            TokenPaging(request_param="t", response_pointer="/next"),
        ),
        ({"kind": "link"}, LinkPaging()),
        ({"kind": "next_url", "response_pointer": "/next"}, NextUrlPaging(response_pointer="/next")),
        (
            {"kind": "page", "page_param": "p", "first_page": 0, "total_pointer": "/n"},
            PagePaging(page_param="p", first_page=0, total_pointer="/n"),
        ),
        (
            {"kind": "offset", "offset_param": "o", "limit_param": "l", "limit": 50},
            OffsetPaging(offset_param="o", limit_param="l", limit=50),
        ),
    ],
)
def test_each_kind_of_paging_is_read(table: dict[str, object], paging: Paging) -> None:
    assert read(paging=table).paging == paging


WINDOW = {"kind": "window", "from_param": "from", "to_param": "to", "cursor": "at"}


@pytest.mark.parametrize(
    ("sync", "expected", "is_event", "is_replaced"),
    [
        ("snapshot", Sync(kind="snapshot"), False, False),
        ({"kind": "snapshot"}, Sync(kind="snapshot"), False, False),
        ("append", Sync(kind="append"), True, False),
        ({"kind": "append", "cursor": "at"}, Sync(kind="append", cursor="at"), True, False),
        (
            {**WINDOW, "step": "7d", "mutable": ["read"]},
            Sync(
                kind="window",
                window=Window(from_param="from", to_param="to", cursor="at", step="7d", mutable=("read",)),
                cursor="at",
                mutable=("read",),
            ),
            True,
            False,
        ),
        (
            {"kind": "window", "from_param": "from", "replace": True},
            Sync(kind="window", window=Window(from_param="from", replace=True)),
            False,
            True,
        ),
    ],
)
def test_each_kind_of_sync_is_read(sync: object, expected: Sync, is_event: bool, is_replaced: bool) -> None:
    endpoint = read(sync=sync, key=["id"])

    assert endpoint.sync == expected
    assert (endpoint.sync.is_event, endpoint.sync.is_replaced) == (is_event, is_replaced)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"path": "v1/ships"}, "path 'v1/ships' must start with /"),
        ({"path": "/v1/{port}"}, "no parent parameter fills {port} of /v1/{port}"),
        (
            {"path": "/v1/{a}/{b}", "parent": {"endpoint": "ports", "params": {"a": "id"}}},
            "no parent parameter fills {b} of /v1/{a}/{b}",
        ),
        (
            {
                "path": "/v1/{a}",
                "parent": {"endpoint": "ports", "params": {"a": "id"}, "fallback_on": [400]},
            },
            "fallback_on: /v1/{a} cannot be asked without its parent",
        ),
        ({"sync": "append"}, "sync = 'append' needs a key, or rows could be added twice"),
        ({"sync": WINDOW}, "sync = 'window' needs a key, or rows could be added twice"),
        (
            {"sync": "window"},
            'sync = "window" needs its parameters: sync = { kind = "window", from_param = … }',
        ),
        ({"sync": "full"}, "sync 'full' is none of snapshot, window, append"),
        ({"sync": {"kind": "full"}}, "sync.kind is none of snapshot, window, append"),
        ({"empty_on": [404, 403]}, "empty_on may not hold 403: refused is not empty"),
        ({"empty_on": [401]}, "empty_on may not hold 401: refused is not empty"),
        (
            {"paging": {"kind": "token", "request_param": "t"}},
            "paging kind token needs response_header or response_pointer",
        ),
        (
            {"paging": {"kind": "page", "page_param": "p"}},
            "paging kind page needs pages_pointer or total_pointer",
        ),
        (
            {"paging": {"kind": "offset", "offset_param": "o", "limit_param": "l", "limit": 0}},
            "paging limit must be at least 1",
        ),
        ({"columns": {"_id": "string"}}, "column '_id': names that start with _ are the extractor's own"),
        ({"columns": {"id": {"class": "pii"}}}, "column 'id' has no type"),
        ({"columns": {"id": {"typ": "string"}}}, "column 'id': 'typ' is none of type, class"),
        (
            {"columns": {"a.b": "string"}},
            "column 'a.b': a value inside a column has a class only, its type stands in the column's",
        ),
        (
            {"columns": {"id": "text"}},
            (
                "column type 'text': 'text' is none of string, int64, float64, bool, decimal, timestamp, "
                "timestamp_naive, epoch, json, binary, list, map, struct"
            ),
        ),
    ],
)
def test_a_table_that_cannot_work_is_refused_with_its_file_and_name(
    table: dict[str, Any], message: str
) -> None:
    assert refusal(**table) == f"a.toml: [ships]: {message}"


@pytest.mark.parametrize("name", ["Ships", "1ship", "", "ships-old", "a/b", "x" * 64])
def test_the_name_of_a_table_is_fit_for_a_folder_and_for_sql(name: str) -> None:
    assert refusal(name) == (f"a.toml: [{name}]: a table's name has lower-case letters, digits and _ only")


@pytest.mark.parametrize(
    "table",
    [
        {"format": "csv"},
        {"method": "DELETE"},
        {"class": "private"},
        {"params": {"a": 1.5}},
        {"pagin": {}},
        {"columns": {"id": {"type": "string", "class": "hidden"}}},
        {"sync": {"kind": "append", "step": "1d"}},
        {"sync": {**WINDOW, "bounds": "<>"}},
        {"paging": {"kind": "cursor"}},
    ],
)
def test_a_wrong_value_is_refused_with_the_file_and_the_table(table: dict[str, Any]) -> None:
    assert refusal(**table).startswith("a.toml: [ships]: ")


# --- windows ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["", "1d", "7d", "30d", "2w", "1M", "12M"])
def test_a_step_is_in_whole_days_weeks_or_months(step: str) -> None:
    window = read(sync={**WINDOW, "step": step}, key=["id"]).sync.window

    assert window == Window(from_param="from", to_param="to", cursor="at", step=step)


@pytest.mark.parametrize("step", ["0d", "0M", "6h", "1.5d", "-1d", "M", "1y", "d7"])
def test_a_step_of_which_two_windows_would_share_a_name_or_that_never_ends_is_refused(step: str) -> None:
    assert refusal(sync={**WINDOW, "step": step}, key=["id"]) == (
        f"a.toml: [ships]: sync.step {step!r} is no number of days, weeks or months such as 7d, 2w, 1M"
    )


@pytest.mark.parametrize(
    ("window", "message"),
    [
        ({"lookback": "soon"}, "sync.lookback: 'soon' is no duration; write 90s, 15m, 48h, 30d or 2w"),
        ({"start": "2026"}, "sync.start '2026' is no date such as 2019-01-01"),
        (
            {"format": "year_month", "step": "7d"},
            'sync.format "year_month" needs step = "1M", and to_param for the month',
        ),
        (
            {"format": "year_month", "step": "1M", "to_param": ""},
            'sync.format "year_month" needs step = "1M", and to_param for the month',
        ),
    ],
)
def test_a_window_that_could_not_be_planned_is_refused_when_it_is_read(
    window: dict[str, str], message: str
) -> None:
    assert refusal(sync={**WINDOW, **window}, key=["id"]) == f"a.toml: [ships]: {message}"
