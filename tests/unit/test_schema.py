from __future__ import annotations

from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extractor.endpoint import Column, ColumnType, Endpoint, ListType, MapType, Scalar, StructType, parse_type
from extractor.schema import (
    JSON_TEXT,
    MISSING,
    RESCUED,
    Field,
    TableSchema,
    arrow_type,
    cast_column,
    fit,
    infer_type,
    is_secret_name,
    is_secret_value,
    json_text,
    plan_schema,
    read_type,
    render_type,
)

SCALARS = "string int64 float64 bool decimal timestamp timestamp_naive epoch json binary".split()

column_types: st.SearchStrategy[ColumnType] = st.recursive(
    st.sampled_from(SCALARS).map(Scalar),
    lambda inner: (
        inner.map(ListType)
        | inner.map(MapType)
        | st.dictionaries(st.sampled_from(["a", "b-c", "d.e"]), inner, min_size=1).map(
            lambda fields: StructType(tuple(fields.items()))
        )
    ),
    max_leaves=5,
)


def endpoint(*columns: tuple[str, str] | tuple[str, str, str], **more: object) -> Endpoint:
    made = tuple(
        Column(path=path, type=parse_type(text) if text else None, class_=next(iter(rest), ""))  # type: ignore[arg-type]  # a class
        for path, text, *rest in columns
    )
    return Endpoint(name="t", path="/t", columns=made, **more)  # type: ignore[arg-type]  # of the caller's choice


def field(name: str, type_: str, **more: object) -> Field:
    return Field(name=name, type=parse_type(type_), source=str(more.pop("source", name)), **more)  # type: ignore[arg-type]


# --- types --------------------------------------------------------------------------------------------------


@given(column_types)
def test_a_type_is_read_back_from_the_text_it_is_rendered_to(column_type: ColumnType) -> None:
    assert parse_type(render_type(column_type)) == column_type


@given(column_types)
def test_a_column_of_nulls_is_cast_to_the_type_of_the_files(column_type: ColumnType) -> None:
    read = read_type(column_type)

    if read is not None:
        assert cast_column(pa.nulls(3, read), column_type).equals(pa.nulls(3, arrow_type(column_type)))


def test_no_type_of_the_files_is_unsigned_or_an_empty_object() -> None:
    assert {name: str(arrow_type(Scalar(name))) for name in SCALARS} == {
        "string": "string",
        "int64": "int64",
        "float64": "double",
        "bool": "bool",
        "decimal": "decimal128(38, 12)",
        "timestamp": "timestamp[us, tz=UTC]",
        "timestamp_naive": "timestamp[us]",
        "epoch": "timestamp[us, tz=UTC]",
        "json": "string",
        "binary": "binary",
    }
    assert str(arrow_type(parse_type("map<string, int64>"))) == "map<string, int64>"


def test_free_form_json_is_marked_at_every_depth_so_that_it_can_be_turned_back() -> None:
    schema = TableSchema(
        table="t", fields=(field("a", "json"), field("b", "list<struct<c: json, d: string>>"))
    )

    inner = schema.arrow.field("b").type.value_type

    assert schema.arrow.field("a").metadata == JSON_TEXT
    assert (inner.field("c").metadata, inner.field("d").metadata) == (JSON_TEXT, None)
    assert schema.arrow.field(RESCUED).metadata == JSON_TEXT


@pytest.mark.parametrize(
    ("values", "type_"),
    [
        ([None, None], None),
        ([], None),
        ([1, None], "int64"),
        ([2**63 - 1, -(2**63)], "int64"),
        ([2**63], "json"),
        ([1, 2.5], "float64"),
        ([Decimal("0.12345678901234567890")], "json"),
        ([True], "bool"),
        ([True, 1], "json"),
        (["x"], "string"),
        (["x", 1], "json"),
        ([{}], "json"),
        ([[]], "json"),
    ],
)
def test_the_type_of_a_new_key_takes_all_its_values(values: list[object], type_: str | None) -> None:
    assert infer_type(values) == (None if type_ is None else Scalar(type_))


# --- values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "type_", "kept", "left"),
    [
        (None, "int64", None, MISSING),
        (5, "int64", 5, MISSING),
        (5.0, "int64", 5, MISSING),
        (5.5, "int64", None, 5.5),
        (True, "int64", None, True),
        (True, "float64", None, True),
        (1, "bool", None, 1),
        (2**63, "int64", None, 2**63),
        (2**53, "float64", 2.0**53, MISSING),
        (2**53 + 1, "float64", None, 2**53 + 1),
        (Decimal("1E+400"), "float64", None, Decimal("1E+400")),
        ("12.50", "decimal", Decimal("12.500000000000"), MISSING),
        ("1_0", "decimal", None, "1_0"),
        (" 1", "decimal", None, " 1"),
        ("１", "decimal", None, "１"),
        ("NaN", "decimal", None, "NaN"),
        (0.1, "decimal", Decimal("0.100000000000"), MISSING),
        (10**26, "decimal", None, 10**26),
        (Decimal("1E-13"), "decimal", None, Decimal("1E-13")),
        ("soon", "timestamp", None, "soon"),
        ("2026-01-09", "timestamp_naive", None, "2026-01-09"),
        ("9999-12-31T23:59:59-05:00", "timestamp", None, "9999-12-31T23:59:59-05:00"),
        (253_402_300_799_999, "epoch", 253_402_300_799_999, MISSING),
        (253_402_300_800_000, "epoch", None, 253_402_300_800_000),
        (-62_135_596_800, "epoch", -62_135_596_800, MISSING),
        (-62_135_596_801, "epoch", None, -62_135_596_801),
        ({"a": 1}, "json", '{"a":1}', MISSING),
        ("abc", "list<string>", None, "abc"),
        ([1, "x"], "list<int64>", [1, None], [1, "x"]),
        ({"a": 1, "z": 2}, "struct<a: int64>", {"a": 1}, {"z": 2}),
        ({"a": "x", "z": None}, "struct<a: int64>", {}, {"a": "x"}),
        ({"a": 1, "b": "x", "c": None}, "map<string, int64>", [("a", 1)], {"b": "x"}),
        ([], "map<string, int64>", None, []),
        ("x", "binary", None, "x"),
    ],
)
def test_a_value_fits_whole_or_leaves_over_what_does_not(
    value: object, type_: str, kept: object, left: object
) -> None:
    assert fit(value, parse_type(type_)) == (kept, left)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": [1, None, True]}, '{"a":[1,null,true]}'),
        ({'q"': [2**70, "é\n"]}, '{"q\\"":[1180591620717411303424,"é\\n"]}'),
        ([Decimal("0.10000000000000000001"), False], "[0.10000000000000000001,false]"),
    ],
)
def test_json_text_keeps_every_digit(value: object, text: str) -> None:
    assert json_text(value) == text


@pytest.mark.parametrize(
    "name", ["password", "db.passwd", "apiKey", "API_KEY", "accessToken", "client-secret", "jwt"]
)
def test_names_of_credentials_are_known(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name", ["passenger", "tokenizer", "secretary", "author", "keyboard", "monkey", "pwdx"]
)
def test_names_that_only_resemble_those_of_credentials_are_harmless(name: str) -> None:
    assert not is_secret_name(name)


def test_texts_in_the_shape_of_a_key_are_known_inside_other_texts() -> None:
    key = "skysql.1abc.2bcdefgh." + "K" * 36 + ".0123abcd"

    assert is_secret_value(f"the key {key} leaked")
    assert not is_secret_value("skysql.com is a host")


# --- the schema of a table ----------------------------------------------------------------------------------


def test_pinned_columns_come_first_and_new_ones_of_the_catalogue_after_them() -> None:
    pinned = [field("id", "string").to_json(), field("seen", "int64", is_inferred=True).to_json()]

    schema = plan_schema(endpoint(("fresh", "bool"), ("id", "string")), pinned)

    assert schema.fields == (
        field("id", "string"),
        field("seen", "int64", is_inferred=True),
        field("fresh", "bool"),
    )


def test_a_schema_is_the_same_after_it_was_pinned() -> None:
    schema = plan_schema(
        endpoint(("id", "string"), ("x", "map<string, list<decimal>>"), ("p", "string", "pii"))
    )

    assert plan_schema(endpoint(), schema.to_json()).fields == schema.fields


def test_a_corrected_type_is_a_new_column_and_the_old_one_stays_null() -> None:
    second = plan_schema(endpoint(("x", "float64")), [field("x", "int64").to_json()])
    third = plan_schema(endpoint(("x", "decimal")), second.to_json())

    assert third.fields == (
        field("x", "int64", is_live=False),
        field("x__v2", "float64", source="x", is_live=False),
        field("x__v3", "decimal", source="x"),
    )


def test_what_may_not_be_kept_is_no_column() -> None:
    of = endpoint(
        ("id", "string"), ("mail", "string", "pii"), ("pin", "string", "secret"), ("a.pin", "", "secret")
    )

    kept, hashed, dropped = (plan_schema(of, pii=pii) for pii in ("keep", "hash", "drop"))  # type: ignore[arg-type]  # a generator forgets literals

    assert ([f.name for f in kept.fields], kept.drops, kept.hashes) == (["id", "mail"], ("pin", "a.pin"), ())
    assert ([f.name for f in hashed.fields], hashed.hashes) == (["id", "mail"], ("mail",))
    assert ([f.name for f in dropped.fields], dropped.drops) == (["id"], ("mail", "pin", "a.pin"))
    assert plan_schema(of, secrets_allowed=True).drops == ()


def test_values_of_the_parent_have_columns_of_their_own() -> None:
    schema = plan_schema(endpoint(("id", "string"), keep=(("service_id", "id"), ("id", "id"))))

    assert [(f.name, f.type) for f in schema.fields] == [
        ("id", Scalar("string")),
        ("service_id", Scalar("string")),
    ]


def test_a_table_that_nobody_described_is_decided_by_its_first_rows() -> None:
    assert not plan_schema(endpoint()).is_pinned
    assert plan_schema(endpoint(("id", "string"))).is_pinned
    assert plan_schema(endpoint()).grow({"id": Scalar("string")}).is_pinned


@pytest.mark.parametrize(
    ("name", "may"),
    [
        *(("new", True), ("é", True), ("dot.ted", True), ("a b", True), ("t_nano", True), ("x_nanos", True)),
        *(("T", False), ("_x", False), ("", False), ("window", False), ("Account", False), ("a\n", False)),
        *(("t__v2", False), ("t_nanos", False), ("api_key", False), ("x" * 129, False)),
    ],
)
def test_a_key_becomes_a_column_where_its_name_means_nothing_else(name: str, may: bool) -> None:
    schema = TableSchema(table="t", fields=(field("t", "timestamp"), field("x", "string")))

    assert schema.may_add(name) is may


def test_nanoseconds_that_the_catalogue_declares_are_the_answers_own() -> None:
    assert TableSchema(table="t", fields=(field("t", "timestamp"),)).nanos == {"t_nanos"}
    assert (
        TableSchema(table="t", fields=(field("t", "timestamp"), field("t_nanos", "int64"))).nanos
        == frozenset()
    )
