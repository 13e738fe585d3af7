from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from extractor.catalog import (
    Catalog,
    Comparison,
    Excluded,
    Match,
    Operation,
    compare,
    load_catalog,
    read_specification,
)
from extractor.errors import ConfigError

Write = Callable[..., Path]

SHIPS = """
[ships]
path = "/v1/ships"
key  = ["id"]

[ships.columns]
id = "string"
name = "string"
crew = "list<struct<id: string, email: string>>"
"crew[].cabin" = { class = "secret" }
"""


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Files of one folder, by name; the folder."""

    def folder(name: str = "mine", /, **files: str) -> Path:
        (tmp_path / name).mkdir(exist_ok=True)
        for stem, text in files.items():
            (tmp_path / name / f"{stem}.toml").write_text(text)
        return tmp_path / name

    return folder


def loaded(*folders: Path) -> Catalog:
    return load_catalog(folders, builtin=False)


def refusal(*folders: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        loaded(*folders)
    assert "\n" not in caught.value.message
    return caught.value.message


# --- loading ------------------------------------------------------------------------------------------------


def test_endpoints_come_in_the_order_of_their_files_and_tables(write: Write) -> None:
    folder = write(b='[third]\npath = "/3"\n', a='[second]\npath = "/2"\n[first]\npath = "/1"\n')

    assert list(loaded(folder).endpoints) == ["second", "first", "third"]


def test_an_endpoint_of_a_later_folder_replaces_one_of_the_same_name(write: Write) -> None:
    early = write("early", a=SHIPS + '[ports]\npath = "/v1/ports"\n')
    late = write("late", z='[ships]\npath = "/v2/ships"\n')

    found = loaded(early, late).endpoints

    assert [(name, endpoint.path) for name, endpoint in found.items()] == [
        ("ships", "/v2/ships"),
        ("ports", "/v1/ports"),
    ]
    assert found["ships"].columns == ()
    assert found["ships"].file == f"{late}/z.toml"


def test_a_folder_may_add_to_the_built_in_catalogue(write: Write) -> None:
    folder = write(
        a='[crews]\npath = "/v1/crews/{id}"\nparent = { endpoint = "services", params = { id = "id" } }\n'
    )

    found = load_catalog([folder]).endpoints

    assert list(found)[-1] == "crews"
    assert found["services"].file.startswith("built-in/")


def test_paths_left_out_on_purpose_are_read_with_their_reasons(write: Write) -> None:
    folder = write(a='[[excluded]]\npath = "/v1/key/{version}"\nreason = "nobody knows a version"\n')

    assert loaded(folder) == Catalog(
        endpoints={}, excluded=(Excluded(path="/v1/key/{version}", reason="nobody knows a version"),)
    )


def test_only_toml_files_that_are_not_hidden_are_read(write: Write) -> None:
    folder = write(a=SHIPS)
    (folder / ".a.toml").write_text("half a ta")
    (folder / "notes.txt").write_text("none of it")

    assert list(loaded(folder).endpoints) == ["ships"]


def test_one_name_may_not_stand_in_two_files_of_a_folder(write: Write) -> None:
    folder = write(a=SHIPS, b=SHIPS)

    assert refusal(folder) == f"{folder}/b.toml: [ships] stands in {folder}/a.toml as well"


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path / "absent").startswith(f"catalogue folder {tmp_path / 'absent'}: ")


def test_a_folder_without_files_is_taken_for_a_mistake(tmp_path: Path) -> None:
    assert refusal(tmp_path) == f"catalogue folder {tmp_path}: there is no .toml file in it"


def test_a_syntax_error_names_the_file_and_the_line(write: Write) -> None:
    folder = write(a='[ships]\npath = "/v1/ships"\nkey = [\n\n[ports]\n')

    message = refusal(folder)

    assert message.startswith(f"{folder}/a.toml: ")
    assert "line 5" in message


def test_a_file_that_is_not_text_is_named(write: Write) -> None:
    folder = write(a="")
    (folder / "a.toml").write_bytes(b'[ships]\npath = "\xff"\n')

    assert refusal(folder) == f"{folder}/a.toml: not UTF-8 at byte 16"


@pytest.mark.parametrize("value", ["[" * 5000, "9" * 5000])
def test_a_file_with_a_value_beyond_what_can_be_read_is_named(value: str, write: Write) -> None:
    folder = write(a=f"ships = {value}")

    assert refusal(folder) == f"{folder}/a.toml: a number is too long, or a value nested too deeply"


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ('pagin = { kind = "none" }', ": 'pagin' is no key of it; did you mean 'paging'?"),
        ('clas = "pii"', ": 'clas' is no key of it; did you mean 'class'?"),
        (
            'paging = { kind = "tokn" }',
            " paging: kind 'tokn' is none of none, token, link, next_url, page, offset",
        ),
        ("paging = { kind = [] }", " paging: kind [] is none of none, token"),
        (
            'format = "openmetric"',
            (
                ": format 'openmetric' is none of json, ndjson, openmetrics, log_archive, binary;"
                " did you mean 'openmetrics'?"
            ),
        ),
        (
            'class = "secrets"',
            ": class 'secrets' is none of secret, customer_data, pii; did you mean 'secret'?",
        ),
        ('method = "PUT"', ": method 'PUT' is none of GET, POST"),
        (
            'sync = { kind = "window", from_param = "after", format = "unix" }',
            " sync: format 'unix' is none of epoch, epoch_ms, rfc3339, date, year_month",
        ),
        (
            'sync = { kind = "window", from_param = "after", bounds = "[[" }',
            " sync: bounds '[[' is none of [), (), [], (]",
        ),
        (
            'paging = { kind = "token", request_parm = "t", response_header = "H" }',
            " paging: 'request_parm' is no key of it; did you mean 'request_param'?",
        ),
        (
            'sync = { kind = "window", fromparam = "after" }',
            " sync: 'fromparam' is no key of it; did you mean 'from_param'?",
        ),
        (
            'sync = { kind = "append", step = "7d" }',
            " sync: 'step' is no key of it",
        ),
        (
            'parent = { endpoint = "ships", param = { id = "id" } }',
            " parent: 'param' is no key of it; did you mean 'params'?",
        ),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest_one(write: Write, table: str, expected: str) -> None:
    folder = write(a=f'[ports]\npath = "/v1/ports"\n{table}\n')

    assert refusal(folder).startswith(f"{folder}/a.toml: [ports]{expected}")


def test_a_wrong_value_is_refused_with_file_table_and_key(write: Write) -> None:
    folder = write(a='[ports]\npath = "/v1/ports"\nformat = "jsn"\n')

    message = refusal(folder)

    assert message.startswith(f"{folder}/a.toml: [ports]: ")
    assert "format" in message


def test_a_value_outside_of_any_table_is_refused(write: Write) -> None:
    folder = write(a='path = "/v1/ships"\n')

    assert refusal(folder) == f"{folder}/a.toml: path stands outside of any table"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('excluded = "/v1"\n', "excluded is a list of tables: [[excluded]]"),
        ('[[excluded]]\npath = "/v1"\n', "[[excluded]] needs a path that starts with / and a reason"),
        (
            '[[excluded]]\npath = "/v1"\nreson = "x"\n',
            "[[excluded]]: 'reson' is no key of it; did you mean 'reason'?",
        ),
    ],
)
def test_a_path_is_not_left_out_without_a_reason(write: Write, text: str, expected: str) -> None:
    folder = write(a=text)

    assert refusal(folder) == f"{folder}/a.toml: {expected}"


CHILD = '[decks]\npath = "/v1/ships/{ship}/decks"\n'


@pytest.mark.parametrize(
    ("child", "expected"),
    [
        (
            'parent = { endpoint = "shops", params = { ship = "id" } }',
            "parent: there is no endpoint 'shops'; did you mean 'ships'?",
        ),
        (
            'parent = { endpoint = "ships", params = { ship = "nme" } }',
            "parent.params.ship: ships has no column 'nme'; did you mean 'name'?",
        ),
        (
            'parent = { endpoint = "ships", params = { ship = "crew[].ids" } }',
            "parent.params.ship: ships has no column 'crew[].ids'",
        ),
        (
            'parent = { endpoint = "ships", params = { ship = "crew[].cabin" } }',
            "parent.params.ship: ships has no column 'crew[].cabin'",
        ),
        (
            'parent = { endpoint = "ships", params = { ship = "id" } }\nkeep = { ship = "idd" }',
            "keep.ship: ships has no column 'idd'; did you mean 'id'?",
        ),
    ],
)
def test_a_child_may_use_only_what_its_parent_has(write: Write, child: str, expected: str) -> None:
    folder = write(a=SHIPS + CHILD + child + "\n")

    assert refusal(folder).startswith(f"{folder}/a.toml: [decks] {expected}")


def test_a_value_inside_a_column_of_the_parent_may_fill_a_parameter(write: Write) -> None:
    folder = write(a=SHIPS + CHILD + 'parent = { endpoint = "ships", params = { ship = "crew[].id" } }\n')

    assert "decks" in loaded(folder).endpoints


def test_a_parent_whose_columns_are_inferred_is_trusted(write: Write) -> None:
    folder = write(
        a='[ships]\npath = "/s"\n'
        + CHILD
        + 'parent = { endpoint = "ships", params = { ship = "anything" } }\n'
    )

    assert "decks" in loaded(folder).endpoints


def test_a_value_kept_from_a_grandparent_may_fill_a_parameter(write: Write) -> None:
    folder = write(
        a=SHIPS
        + CHILD
        + 'parent = { endpoint = "ships", params = { ship = "id" } }\nkeep = { ship = "id" }\n'
        + 'columns = { number = "int64" }\n'
        + '[cabins]\npath = "/v1/ships/{ship}/decks/{deck}"\n'
        + 'parent = { endpoint = "decks", params = { ship = "ship", deck = "number" } }\n'
    )

    assert "cabins" in loaded(folder).endpoints


def test_parents_may_not_go_round_in_a_circle(write: Write) -> None:
    folder = write(
        a='[hen]\npath = "/h/{x}"\nparent = { endpoint = "egg", params = { x = "id" } }\n'
        '[egg]\npath = "/e/{x}"\nparent = { endpoint = "hen", params = { x = "id" } }\n'
    )

    assert refusal(folder) == f"{folder}/a.toml: [hen] parent: hen → egg → hen goes round in a circle"


def test_nothing_can_be_kept_without_a_parent(write: Write) -> None:
    folder = write(a='[ships]\npath = "/s"\nkeep = { id = "id" }\n')

    assert refusal(folder) == f"{folder}/a.toml: [ships] keep: there is no parent to keep anything of"


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ('key = ["idd"]', "key: there is no column 'idd'; did you mean 'id'?"),
        (
            'key = ["id"]\nsync = { kind = "append", cursor = "seen" }',
            "sync.cursor: there is no column 'seen'",
        ),
        (
            'key = ["id"]\nsync = { kind = "append", mutable = ["nme"] }',
            "sync.mutable: there is no column 'nme'",
        ),
        ('key = ["token"]', "key: there is no column 'token'"),
    ],
)
def test_keys_and_cursors_name_columns_that_are_kept(write: Write, table: str, expected: str) -> None:
    columns = 'columns = { id = "string", name = "string", token = { class = "secret" } }'
    folder = write(a=f'[ships]\npath = "/s"\n{table}\n{columns}\n')

    assert refusal(folder).startswith(f"{folder}/a.toml: [ships] {expected}")


def test_a_key_may_name_a_column_of_the_extractor(write: Write) -> None:
    folder = write(a='[ships]\npath = "/s"\nkey = ["_series", "at"]\ncolumns = { at = "timestamp" }\n')

    assert loaded(folder).endpoints["ships"].key == ("_series", "at")


def test_a_class_that_hits_no_value_is_refused(write: Write) -> None:
    folder = write(a=SHIPS + '"crew[].emial" = { class = "pii" }\n')

    assert refusal(folder).startswith(f"{folder}/a.toml: [ships] columns: 'crew[].emial' is in no column")


# --- comparing ----------------------------------------------------------------------------------------------


def document(paths: Mapping[str, object], **rest: object) -> dict[str, object]:
    return {"openapi": "3.1.0", "info": {"title": "Harbour", "version": "1"}, "paths": paths, **rest}


def answer(schema: object, *, parameters: tuple[object, ...] = (), summary: str = "") -> dict[str, object]:
    return {
        "get": {
            "summary": summary,
            "parameters": list(parameters),
            "responses": {"200": {"content": {"application/json": {"schema": schema}}}},
        }
    }


def query(name: str, *, required: bool = False) -> dict[str, object]:
    return {"name": name, "in": "query", "required": required}


def record(**properties: object) -> dict[str, object]:
    return {"type": "object", "properties": properties}


TEXT: dict[str, object] = {"type": "string"}
SHIP = record(id=TEXT, name=TEXT, crew={"type": "array", "items": record(id=TEXT, email=TEXT, cabin=TEXT)})


def compared(folder: Path, paths: Mapping[str, object], **rest: object) -> Comparison:
    return compare(loaded(folder), document(paths, **rest))


def test_a_catalogue_that_says_what_the_specification_says_shows_no_difference(write: Write) -> None:
    result = compared(write(a=SHIPS), {"/v1/ships": answer({"type": "array", "items": SHIP})})

    assert result == Comparison(
        title="Harbour 1", operations=1, matches=(Match(endpoint="ships", path="/v1/ships"),)
    )
    assert result.lines() == ["Harbour 1: 1 GETs; 1 in the catalogue, 0 left out on purpose, 0 lacking"]


def test_each_side_is_told_what_the_other_has(write: Write) -> None:
    folder = write(
        a=SHIPS
        + '[tides]\npath = "/v1/tides"\norigin = "user"\n[old]\npath = "/v1/old"\n'
        + '[[excluded]]\npath = "/v1/keys/{x}"\nreason = "why not"\n'
    )
    paths = {
        "/v1/ships": answer(SHIP),
        "/v1/keys/{version}": answer({}),
        "/v1/docks": answer(
            {}, parameters=(query("size"), query("port", required=True)), summary="All docks"
        ),
        "/v1/docks/close": {"post": {}},
    }

    result = compared(folder, paths)

    assert result == Comparison(
        title="Harbour 1",
        operations=3,
        matches=(Match(endpoint="ships", path="/v1/ships"),),
        excluded=(Excluded(path="/v1/keys/{x}", reason="why not"),),
        lacking=(Operation(path="/v1/docks", summary="All docks", parameters=("size", "port*")),),
        retired=(("old", "/v1/old"),),
        elsewhere=(("tides", "/v1/tides", "user"),),
    )
    assert result.lines() == [
        "Harbour 1: 3 GETs; 1 in the catalogue, 1 left out on purpose, 1 lacking",
        "",
        "the catalogue lacks (1)",
        "  /v1/docks  ?size&port*  All docks",
        "",
        "the specification lacks (1)",
        "  /v1/old  [old]",
        "",
        "known from elsewhere, not in the specification (1)",
        "  /v1/tides  [tides], user",
        "",
        "left out on purpose (1)",
        "  /v1/keys/{x}: why not",
    ]


@pytest.mark.parametrize(
    "spelling", ["/v1/ships/{id}/decks", "/v1/ships/:ship_id/decks", "/v1/ships/{}/decks"]
)
def test_the_name_of_a_placeholder_makes_no_other_path(write: Write, spelling: str) -> None:
    folder = write(a=SHIPS + CHILD + 'parent = { endpoint = "ships", params = { ship = "id" } }\n')

    result = compared(folder, {"/v1/ships": answer(SHIP), spelling: answer({})})

    assert (result.lacking, result.retired) == ((), ())
    assert result.matches[1] == Match(endpoint="decks", path=spelling)


def test_a_placeholder_is_not_a_literal_segment(write: Write) -> None:
    result = compared(write(a=SHIPS), {"/v1/{fleet}": answer(SHIP)})

    assert (result.lacking, result.retired) == ((Operation(path="/v1/{fleet}"),), (("ships", "/v1/ships"),))


def test_a_slash_at_the_end_is_a_note(write: Write) -> None:
    result = compared(write(a=SHIPS), {"/v1/ships/": answer(SHIP)})

    assert result.matches == (
        Match(
            endpoint="ships",
            path="/v1/ships/",
            notes=("the specification writes /v1/ships/, the catalogue /v1/ships",),
        ),
    )


def test_query_parameters_differ_both_ways(write: Write) -> None:
    folder = write(
        a="""
[ships]
path   = "/v1/ships"
params = { page_size = 100 }
paging = { kind = "token", request_param = "page_token", response_header = "Next" }
sync   = { kind = "window", from_param = "after", to_param = "before", replace = true }
"""
    )
    stated = (
        query("page_size"),
        query("page_token"),
        query("after"),
        query("colour"),
        query("port", required=True),
    )

    result = compared(folder, {"/v1/ships": answer({}, parameters=stated)})

    assert result.matches == (
        Match(
            endpoint="ships",
            path="/v1/ships",
            parameters_unsent=("colour", "port*"),
            parameters_unknown=("before",),
        ),
    )


def test_parameters_of_paging_and_parents_count_as_sent(write: Write) -> None:
    folder = write(
        a=SHIPS
        + '[decks]\npath = "/v1/decks"\nparent = { endpoint = "ships", params = { ship = "id" } }\n'
        + 'paging = { kind = "offset", offset_param = "skip", limit_param = "take", limit = 5 }\n'
        + '[masts]\npath = "/v1/masts"\n'
        + 'paging = { kind = "page", page_param = "page", total_pointer = "/n" }\n'
    )

    result = compared(folder, {"/v1/decks": answer({}), "/v1/masts": answer({})})

    assert [match.parameters_unknown for match in result.matches] == [("ship", "skip", "take"), ("page",)]


def test_properties_and_columns_differ_both_ways_at_every_depth(write: Write) -> None:
    folder = write(
        a="""
[ships]
path    = "/v1/ships"
records = "/rows"

[ships.columns]
id = "string"
flag = "string"
crew = "list<struct<id: string, rank: string>>"
logs = "map<string, list<struct<day: string>>>"
"crew[].cabin" = { class = "secret" }
papers = "json"
"""
    )
    row = record(
        id=TEXT,
        mast=TEXT,
        crew={"type": "array", "items": record(id=TEXT, email=TEXT, cabin=TEXT)},
        logs={
            "type": "object",
            "additionalProperties": {"type": "array", "items": record(day=TEXT, miles=TEXT)},
        },
        papers=record(title=TEXT),
    )

    result = compared(folder, {"/v1/ships": answer(record(rows={"type": "array", "items": row}))})

    assert result.matches == (
        Match(
            endpoint="ships",
            path="/v1/ships",
            columns_lacking=("mast", "crew[].email", "logs{}[].miles"),
            columns_unknown=("flag", "crew[].rank"),
        ),
    )


def test_a_column_that_cannot_hold_its_property_is_named_with_both_types(write: Write) -> None:
    folder = write(
        a="""
[ships]
path = "/v1/ships"

[ships.columns]
crew = "string"
tons = "int64"
built = "epoch"
price = "decimal"
seen = "timestamp"
afloat = "string"
masts = "list<string>"
"""
    )
    row = record(
        crew={"type": "array", "items": TEXT},
        tons={"type": "number"},
        built={"type": "integer"},
        price={"type": "number"},
        seen=TEXT,
        afloat={"type": "boolean"},
        masts={"type": "array", "items": {"type": "integer"}},
    )

    result = compared(folder, {"/v1/ships": answer(row)})

    assert result.matches[0].columns_retyped == (
        "crew: array, string",
        "tons: number, int64",
        "afloat: boolean, string",
        "masts[]: integer, string",
    )


def test_what_is_kept_of_the_parent_is_no_column_of_the_answer(write: Write) -> None:
    folder = write(
        a=SHIPS
        + CHILD
        + 'parent = { endpoint = "ships", params = { ship = "id" } }\nkeep = { ship = "id" }\n'
        + 'columns = { ship = "string", number = "int64" }\n'
    )

    result = compared(folder, {"/v1/ships/{ship}/decks": answer(record(number={"type": "integer"}))})

    assert result.matches == (Match(endpoint="decks", path="/v1/ships/{ship}/decks"),)


def test_columns_that_are_inferred_lack_nothing(write: Write) -> None:
    result = compared(write(a='[ships]\npath = "/v1/ships"\n'), {"/v1/ships": answer(SHIP)})

    assert result.matches == (Match(endpoint="ships", path="/v1/ships"),)


def test_rows_that_the_answer_does_not_have_are_noted(write: Write) -> None:
    folder = write(a='[ships]\npath = "/v1/ships"\nrecords = "/rows"\ncolumns = { id = "string" }\n')

    result = compared(folder, {"/v1/ships": answer(record(ships={"type": "array", "items": SHIP}))})

    assert result.matches[0].notes == ("the specification's answer has no rows at '/rows'",)


def test_references_combinations_and_nullable_choices_are_followed(write: Write) -> None:
    schemas = {
        "Ship": {"allOf": [{"$ref": "#/components/schemas/Named"}, record(id=TEXT)]},
        "Named": record(name={"anyOf": [TEXT, {"type": "null"}]}, crew={"$ref": "#/components/schemas/Crew"}),
        "Crew": {"type": ["array", "null"], "items": record(id=TEXT, email=TEXT, cabin=TEXT, rank=TEXT)},
    }

    result = compared(
        write(a=SHIPS),
        {"/v1/ships": answer({"type": "array", "items": {"$ref": "#/components/schemas/Ship"}})},
        components={"schemas": schemas},
    )

    assert result.matches == (Match(endpoint="ships", path="/v1/ships", columns_lacking=("crew[].rank",)),)


def test_schemas_that_hold_themselves_come_to_an_end(write: Write) -> None:
    schemas = {
        "Loop": {"$ref": "#/components/schemas/Loop"},
        "Knot": {"allOf": [{"$ref": "#/components/schemas/Knot"}]},
        "Ship": record(
            id=TEXT, name={"$ref": "#/components/schemas/Loop"}, crew={"$ref": "#/components/schemas/Knot"}
        ),
    }

    result = compared(
        write(a=SHIPS),
        {"/v1/ships": answer({"$ref": "#/components/schemas/Ship"})},
        components={"schemas": schemas},
    )

    assert result.matches == (Match(endpoint="ships", path="/v1/ships"),)


@pytest.mark.parametrize(
    "base",
    [
        {"basePath": "/v1/"},
        {"servers": [{"url": "https://harbour.example/v1"}]},
        {"servers": [{"url": "/v1"}]},
    ],
)
def test_the_base_path_of_a_specification_belongs_to_its_paths(write: Write, base: dict[str, object]) -> None:
    result = compared(write(a=SHIPS), {"/ships": answer(SHIP)}, **base)

    assert result.covered == ("/v1/ships",)


def test_swagger_2_answers_and_shared_parameters_are_read(write: Write) -> None:
    specification: dict[str, object] = {
        "swagger": "2.0",
        "paths": {
            "/v1/ships": {
                "parameters": [{"$ref": "#/parameters/Colour"}],
                "get": {
                    "responses": {
                        "200": {"schema": {"type": "array", "items": {"$ref": "#/definitions/Ship"}}}
                    }
                },
            }
        },
        "parameters": {"Colour": {"name": "colour", "in": "query", "type": "string"}},
        "definitions": {"Ship": record(**SHIP["properties"], flag=TEXT)},
    }

    result = compare(loaded(write(a=SHIPS)), specification)

    assert result.title == "the specification"
    assert result.matches == (
        Match(endpoint="ships", path="/v1/ships", parameters_unsent=("colour",), columns_lacking=("flag",)),
    )


def test_a_comparison_as_json_holds_every_finding(write: Write) -> None:
    folder = write(
        a=SHIPS + '[[excluded]]\npath = "/v1/k"\nreason = "why"\n[tides]\npath = "/t"\norigin = "user"\n'
    )
    result = compared(
        folder,
        {"/v1/ships": answer(record(id=TEXT, flag=TEXT)), "/v1/k": answer({}), "/v1/docks": answer({})},
    )

    assert json.loads(json.dumps(result.to_json())) == {
        "title": "Harbour 1",
        "operations": 3,
        "lacking": [{"path": "/v1/docks", "summary": "", "parameters": [], "deprecated": False}],
        "retired": [],
        "elsewhere": [{"endpoint": "tides", "path": "/t", "origin": "user"}],
        "excluded": [{"path": "/v1/k", "reason": "why"}],
        "matches": [
            {
                "endpoint": "ships",
                "path": "/v1/ships",
                "parameters_unsent": [],
                "parameters_unknown": [],
                "columns_lacking": ["flag"],
                "columns_unknown": ["name", "crew"],
                "columns_retyped": [],
                "notes": [],
            }
        ],
    }


# --- reading a specification --------------------------------------------------------------------------------


def test_a_specification_may_be_json_or_yaml(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"paths": {"/v1/ships": {}}}')
    (tmp_path / "a.yaml").write_text("paths:\n  /v1/ships: {}\n")

    assert read_specification(tmp_path / "a.json") == {"paths": {"/v1/ships": {}}}
    assert read_specification(tmp_path / "a.yaml") == {"paths": {"/v1/ships": {}}}


@pytest.mark.parametrize("text", ["{", "[1]", '{"swagger": "2.0"}', "paths: [", "paths: 1", "- 1", ""])
def test_a_file_that_is_no_specification_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.spec"
    path.write_text(text)

    with pytest.raises(ConfigError) as caught:
        read_specification(path)

    assert caught.value.message.startswith(f"{path}: ")
    assert "\n" not in caught.value.message


def test_a_specification_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.json: No such file"):
        read_specification(tmp_path / "absent.json")


WITHOUT_PYYAML = """
import pathlib, sys
from extractor.catalog import read_specification
from extractor.errors import ConfigError

sys.modules["yaml"] = None
folder = pathlib.Path(sys.argv[1])
print(read_specification(folder / "a.json"))
try:
    read_specification(folder / "a.yaml")
except ConfigError as error:
    print(error.message.removeprefix(str(folder)))
"""


def test_only_yaml_needs_pyyaml_and_the_message_names_the_extra(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("paths: {}\n")
    (tmp_path / "a.json").write_text('{"paths": {}}')

    printed = subprocess.run(
        [sys.executable, "-c", WITHOUT_PYYAML, str(tmp_path)], check=True, capture_output=True, text=True
    )

    assert printed.stdout.splitlines() == [
        "{'paths': {}}",
        "/a.yaml: YAML needs PyYAML: pip install 'skysql-extractor[openapi]'",
    ]
