from __future__ import annotations

import json
from typing import Any

import pytest

from extractor.catalog import load_catalog
from extractor.decode.json import decode_rows
from extractor.drift import (
    Drift,
    SchemaVersion,
    changes_between,
    merged,
    toml_line,
    versions_of,
    widened,
    with_version,
    words,
)
from extractor.endpoint import Scalar, parse_type
from extractor.schema import MISSING, Field, TableSchema, fit


def found(rows: list[dict[str, Any]], *, policy: Any = "evolve", **columns: str) -> list[str]:
    """What the decoder says of rows under these columns."""
    fields = tuple(Field(name=name, type=parse_type(type_), source=name) for name, type_ in columns.items())
    schema = TableSchema(table="things", fields=fields, policy=policy)
    return [words(drift) for drift in decode_rows([json.dumps(rows).encode()], schema).drift]


# --- in words -----------------------------------------------------------------------------------------------


def test_a_new_key_is_a_new_column_with_its_type() -> None:
    assert found([{"a": 1, "zone": "x"}, {"a": 2}], a="int64") == ["things.zone: new column (string)"]


def test_where_no_column_is_made_the_line_names_the_toml_that_makes_one() -> None:
    rows = [{"a": 1, "zone": 5}, {"a": 2, "zone": 7.5}]

    assert found(rows, policy="rescue", a="int64") == [
        'things.zone: no column, 2 values rescued; for a column of their own: [things.columns] zone = "float64"'
    ]


def test_values_that_do_not_fit_name_a_type_that_takes_them() -> None:
    assert found([{"a": 1}, {"a": 2.5}], a="int64") == [
        'things.a: 1 value does not fit int64, rescued; for a column of their own: [things.columns] a = "float64"'
    ]
    assert found([{"a": "s"}, {"a": "m"}], a="int64") == [
        'things.a: 2 values do not fit int64, rescued; for a column of their own: [things.columns] a = "string"'
    ]


def test_a_new_key_inside_of_a_value_is_named_and_so_is_the_type_that_has_it() -> None:
    rows = [{"spec": {"cpu": 1, "disk": {"gb": 5}}}, {"spec": {"cpu": 2}}]

    assert found(rows, spec="struct<cpu: int64>") == [
        (
            "things.spec: new inside of it disk in 1 value, rescued; for a column of their own: "
            '[things.columns] spec = "struct<cpu: int64, disk: json>"'
        )
    ]


def test_the_paths_of_new_keys_lead_through_lists_and_maps() -> None:
    rows = [{"nodes": [{"id": 1}, {"id": 2, "zone": "x"}], "tags": {"a": {"n": 1, "by": "me"}}}]

    said = found(rows, nodes="list<struct<id: int64>>", tags="map<string, struct<n: int64>>")

    assert [line.partition(" in ")[0] for line in said] == [
        "things.nodes: new inside of it [].zone",
        "things.tags: new inside of it *.by",
    ]
    assert '"list<struct<id: int64, zone: string>>"' in said[0]
    assert '"map<string, struct<n: int64, by: string>>"' in said[1]


def test_no_advice_leads_to_a_column_of_credentials() -> None:
    said = found([{"spec": {"cpu": 1, "password": "x"}, "api_key": "y"}], spec="struct<cpu: int64>")

    assert len(said) == 2
    assert not any("password:" in line or "[things.columns] api_key" in line for line in said)


@pytest.mark.parametrize("is_known", [True, False])
def test_what_was_met_before_is_told_apart_from_what_is_new(is_known: bool) -> None:
    drift = Drift(table="t", column="x", kind="unknown", count=1)

    assert ("as in the last run" in words(drift, is_known=is_known)) is is_known


def test_of_several_accounts_each_is_named() -> None:
    assert words(Drift(table="t", column="x", kind="column"), account="eu") == "t.x (eu): new column"


def test_a_very_long_type_is_not_printed() -> None:
    fields = ", ".join(f"field_{number}: string" for number in range(60))

    line = toml_line("t", "x", parse_type(f"struct<{fields}>"))

    assert line == '[t.columns] x = "json"'


# --- the TOML works -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["plain", "with blank", 'with "quotes"', "dotted-name"])
def test_a_catalogue_takes_the_line(tmp_path: Any, column: str) -> None:
    head, _, line = toml_line("things", column, Scalar("int64")).partition("] ")
    (tmp_path / "x.toml").write_text(f'[things]\npath = "/things"\n{head}]\n{line}\n')

    endpoint = load_catalog([tmp_path], builtin=False).endpoints["things"]

    assert [(known.path, known.type) for known in endpoint.columns] == [(column, Scalar("int64"))]


@pytest.mark.parametrize(
    ("column_type", "values", "is_all"),
    [
        ("int64", [1.5, 2], True),
        ("int64", ["x"], True),
        ("int64", ["x"], False),
        ("string", [1], False),
        ("timestamp", ["yesterday"], False),
        ("bool", [{"a": 1}], False),
        ("list<int64>", [["x"], [1]], False),
        ("list<int64>", ["x"], False),
        ("struct<a: int64>", [{"a": "x"}, {"b": {"c": 1}}], False),
        ("struct<a: struct<b: int64>>", [{"a": {"b": 2.5, "c": True}}], False),
        ("map<string, int64>", [{"x": "y"}], False),
        ("int64", [2**70], False),
    ],
)
def test_the_wider_type_takes_every_value_that_did_not_fit(
    column_type: str, values: list[object], is_all: bool
) -> None:
    wider = widened(parse_type(column_type), values, is_all=is_all)

    assert [fit(value, wider)[1] is MISSING for value in values] == [True] * len(values)


@pytest.mark.parametrize(
    ("column_type", "value", "fitted"),
    [("int64", 2.5, 7), ("timestamp", "soon", "2026-11-22T00:00:00Z"), ("string", 5, "x")],
)
def test_a_type_for_some_values_takes_those_that_fitted_too(
    column_type: str, value: object, fitted: object
) -> None:
    wider = widened(parse_type(column_type), [value], is_all=False)

    assert fit(fitted, wider)[1] is MISSING


def test_what_pages_say_of_a_column_is_one_line_in_the_end() -> None:
    pages = [found_drift(value) for value in (2.5, 7.5, "x")]

    whole = merged(merged(pages[0], pages[1]), pages[2])

    assert (whole.count, whole.type) == (3, Scalar("json"))


def found_drift(value: object) -> Drift:
    schema = TableSchema(table="t", fields=(Field(name="a", type=Scalar("int64"), source="a"),))
    [drift] = decode_rows([json.dumps([{"a": value}, {"a": 1}]).encode()], schema).drift
    return drift


# --- first columns ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["evolve", "rescue", "fail"])
def test_the_first_column_of_a_key_that_was_only_ever_null_is_no_drift(policy: Any) -> None:
    fields = (Field(name="a", type=Scalar("int64"), source="a"),)
    schema = TableSchema(table="t", fields=fields, policy=policy)
    nulls = decode_rows([b'[{"a":1,"gone_at":null}]'], schema)

    first = decode_rows([b'[{"a":2,"gone_at":"today"}]'], nulls.schema)

    assert (nulls.drift, first.drift) == ((), ())
    assert [known.name for known in first.schema.fields] == ["a", "gone_at"]
    assert first.batch.to_pylist()[0]["gone_at"] == "today"


# --- history ------------------------------------------------------------------------------------------------


def column(name: str, type_: str, source: str = "", **more: object) -> dict[str, object]:
    return {"name": name, "type": type_, "source": source or name, "class": "", "live": True, **more}


def test_what_became_of_the_columns_is_told_by_key() -> None:
    before = [column("id", "string"), column("size", "int64")]
    after = [
        column("id", "string"),
        column("size", "int64", live=False),
        column("size__v2", "string", "size"),
        column("zone", "bool", inferred=True),
        column("made", "timestamp"),
    ]

    assert changes_between(before, after) == (
        ("size", "type corrected from int64 to string; size__v2 has the values from now on"),
        ("zone", "new column (bool)"),
        ("made", "new column (timestamp) from the catalogue"),
    )
    assert changes_between([], after) == changes_between(after, after) == ()


def test_each_change_is_kept_with_its_run_under_a_key_of_its_own() -> None:
    state: dict[str, object] = {"windows": {"done_until": "2026"}}
    first = with_version(state, [("zone", "new column (bool)")], run_id="r2", at="monday")
    same = with_version(first, [], run_id="r3", at="tuesday")
    second = with_version(same, [("made", "new column (string)")], run_id="r4", at="wednesday")

    assert same == first
    assert sorted(second) == ["schema:00001", "schema:00002"]
    assert second["schema:00001"] == first["schema:00001"]
    assert versions_of("eu", {**state, **second}) == [
        SchemaVersion(account="eu", run_id="r2", at="monday", changes=("zone: new column (bool)",)),
        SchemaVersion(account="eu", run_id="r4", at="wednesday", changes=("made: new column (string)",)),
    ]
