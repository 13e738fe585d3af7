from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from extractor.checks import Subject, check_names, check_schema, dangling, fallen, nulls_and_ages
from extractor.config import Checks, Config
from extractor.endpoint import Endpoint
from extractor.errors import ConfigError
from extractor.schema import Field, ListType, Scalar, TableSchema
from extractor.stores.memory import MemoryStore

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def put(store: MemoryStore, path: str, columns: dict[str, Any], *, rows_in_group: int = 2) -> str:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, row_group_size=rows_in_group)
    store.put(path, sink.getvalue().to_pybytes())
    return path


def subject(*paths: str, standing: Sequence[str] = ()) -> Subject:
    return Subject(
        table="things", paths=paths, columns={"size": "size__v2"}, standing=lambda column, after: standing
    )


def told(store: MemoryStore, checks: Checks, *paths: str, standing: Sequence[str] = ()) -> list[str]:
    return list(nulls_and_ages(store, subject(*paths, standing=standing), checks, NOON))


# --- rows ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "now", "is_fallen"),
    [(20, 0, True), (19, 0, False), (20, 1, False), (0, 0, False), (20, 20, False), (20, 30, False)],
)
def test_left_alone_a_table_of_twenty_rows_or_more_may_not_drop_to_none(
    before: int, now: int, is_fallen: bool
) -> None:
    assert bool(list(fallen(Checks(), before, now))) is is_fallen


@pytest.mark.parametrize(("now", "is_fallen"), [(75, False), (74, False), (70, True), (69, True)])
def test_the_share_that_may_be_lost_is_below_max_drop(now: int, is_fallen: bool) -> None:
    assert bool(list(fallen(Checks(max_drop=0.3), 100, now))) is is_fallen


# --- values that are missing --------------------------------------------------------------------------------


def test_the_share_of_rows_without_a_value_is_counted_over_all_files() -> None:
    store = MemoryStore()
    first = put(store, "a", {"id": [1, 2, 3], "zone": ["x", None, "y"]})
    second = put(store, "b", {"id": [4], "zone": [None]})

    assert told(store, Checks(max_nulls={"zone": 0.5}), first, second) == []
    assert told(store, Checks(max_nulls={"zone": 0.49}), first, second) == [
        "2 of 4 rows (50.0%) have no zone (checks.things.max_nulls.zone = 0.49)"
    ]


def test_a_file_without_the_column_has_no_values_in_it() -> None:
    store = MemoryStore()
    path = put(store, "a", {"id": [1, 2]})

    assert told(store, Checks(max_nulls={"zone": 0.9}), path) != []


def test_a_nested_value_is_missing_only_where_all_of_it_is() -> None:
    store = MemoryStore()
    path = put(store, "a", {"spec": [{"cpu": None}, {"cpu": 1}, None, {"cpu": None}]})

    [reason] = told(store, Checks(max_nulls={"spec": 0.0}), path)

    assert reason.startswith("1 of 4 rows (25.0%) have no spec")


def test_of_a_corrected_type_the_column_that_is_live_now_counts() -> None:
    store = MemoryStore()
    path = put(store, "a", {"size": [None, None], "size__v2": ["s", "m"]})

    assert told(store, Checks(max_nulls={"size": 0.0}), path) == []


def test_a_table_without_rows_lacks_no_values() -> None:
    store = MemoryStore()
    path = put(store, "a", {"id": pa.array([], pa.int64())})

    assert told(store, Checks(max_nulls={"id": 0.0}), path) == []


# --- how old ------------------------------------------------------------------------------------------------


def test_the_newest_time_decides_whether_a_table_is_fresh() -> None:
    store = MemoryStore()
    path = put(store, "a", {"at": [NOON - 5 * HOUR, NOON - 2 * HOUR, None, NOON - 9 * HOUR]})

    assert told(store, Checks(max_age={"at": "2h"}), path) == []
    assert told(store, Checks(max_age={"at": "1h"}), path) == [
        "the newest at is 2026-11-22T10:00:00Z (checks.things.max_age.at = 1h)"
    ]


def test_a_time_without_a_zone_is_taken_as_utc() -> None:
    store = MemoryStore()
    path = put(store, "a", {"at": [(NOON - HOUR).replace(tzinfo=None)]})

    assert told(store, Checks(max_age={"at": "1h"}), path) == []


def test_where_no_new_row_is_fresh_enough_those_that_stand_count() -> None:
    store = MemoryStore()
    new = put(store, "new", {"at": [NOON - 50 * HOUR]})
    fresh = put(store, "fresh", {"at": [NOON - HOUR]})

    assert told(store, Checks(max_age={"at": "3h"}), new, standing=[fresh, "never read"]) == []
    assert told(store, Checks(max_age={"at": "3h"}), standing=[fresh]) == []


def test_a_table_without_any_time_is_not_fresh() -> None:
    store = MemoryStore()
    path = put(store, "a", {"at": pa.array([None], pa.timestamp("us"))})

    assert told(store, Checks(max_age={"at": "3h"}), path) == [
        "no row has a time in at (checks.things.max_age.at = 3h)"
    ]


# --- references ---------------------------------------------------------------------------------------------


def test_values_that_the_other_table_does_not_have_are_counted_once_each() -> None:
    store = MemoryStore()
    mine = put(store, "mine", {"service": ["a", "b", "x", "x", None, "y"]})
    theirs = put(store, "theirs", {"id": ["a", "b", "c"]})

    assert dangling(store, [mine], "service", [theirs], "id") == (2, ("x", "y"))
    assert dangling(store, [mine], "service", [theirs, mine], "id")[0] == 2
    assert dangling(store, [theirs], "id", [theirs], "id") == (0, ())
    assert dangling(store, [mine], "service", [], "id")[0] == 4


def test_values_are_looked_up_whatever_their_types() -> None:
    store = MemoryStore()
    mine = put(store, "mine", {"number": [1, 2, 3]})
    theirs = put(store, "theirs", {"number": ["1", "2"]})

    assert dangling(store, [mine], "number", [theirs], "number") == (1, ("3",))


def test_however_many_values_there_are_only_a_share_of_them_is_looked_up_at_once() -> None:
    store = MemoryStore()
    mine = [put(store, f"mine{part}", {"n": list(range(part, 100, 10))}) for part in range(10)]
    theirs = put(store, "theirs", {"n": list(range(3, 100))})

    found = dangling(store, mine, "n", [theirs], "n", values_held=10)

    assert found == (3, ("0", "1", "2"))


# --- before the first request -------------------------------------------------------------------------------

SCHEMA = TableSchema(
    table="things",
    fields=(
        Field(name="id", type=Scalar("string"), source="id"),
        Field(name="size", type=Scalar("int64"), source="size", is_live=False),
        Field(name="size__v2", type=Scalar("string"), source="size"),
        Field(name="tags", type=ListType(Scalar("string")), source="tags"),
        Field(name="made", type=Scalar("string"), source="made"),
        Field(name="seen", type=Scalar("epoch"), source="seen"),
    ),
)


@pytest.mark.parametrize(
    ("checks", "message"),
    [
        (
            Checks(max_nulls={"idd": 0}),
            "checks.things.max_nulls.idd: table things has no column idd; did you mean id?",
        ),
        (
            Checks(max_age={"made": "1d"}),
            (
                "checks.things.max_age.made: the column is string, and no time; give it a type in the catalogue: "
                '[things.columns] made = "timestamp"'
            ),
        ),
        (
            Checks(references={"tags": "others.id"}),
            "checks.things.references.tags: column tags is list<string>, which cannot be looked up",
        ),
        (
            Checks(references={"id": "others.nr"}),
            "checks.things.references.id: table others has no column nr; valid are id, made, seen, size, tags",
        ),
    ],
)
def test_a_column_that_cannot_be_judged_is_one_line_before_the_first_request(
    checks: Checks, message: str
) -> None:
    other = TableSchema(table="others", fields=SCHEMA.fields)

    with pytest.raises(ConfigError) as caught:
        check_schema(Config(table_checks={"things": checks}), {"things": [SCHEMA], "others": [other]})

    assert caught.value.message == message


def test_columns_that_are_known_and_those_of_unknown_tables_pass() -> None:
    checks = Checks(max_nulls={"size": 0}, max_age={"seen": "1d"}, references={"id": "others.id"})
    unpinned = TableSchema(table="others", fields=(), is_pinned=False)

    check_schema(Config(table_checks={"things": checks}), {"things": [SCHEMA]})
    check_schema(Config(table_checks={"things": checks}), {"things": [SCHEMA], "others": [unpinned]})
    check_schema(Config(table_checks={"others": Checks(max_nulls={"x": 0})}), {"others": [unpinned]})


def test_a_table_that_is_referred_to_must_be_in_the_catalogue() -> None:
    endpoints = {name: Endpoint(name=name, path="/x") for name in ("services", "replicas")}
    config = Config(table_checks={"replicas": Checks(references={"service_id": "service.id"})})

    with pytest.raises(ConfigError) as caught:
        check_names(config, endpoints)

    assert (
        caught.value.message
        == "checks.replicas.references.service_id: no table service; did you mean services?"
    )
