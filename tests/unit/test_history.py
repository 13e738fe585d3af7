from __future__ import annotations

from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import pyarrow as pa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from extractor.digest import normalise, row_bytes
from extractor.testing import canonical

World = dict[str, dict[str, Any]]

# Of a column that is declared int64 some values do not fit; others come and go, or nest.
VALUES = st.fixed_dictionaries(
    {},
    optional={
        "size": st.sampled_from([1, 2, 3.0, "big", None]),
        "ratio": st.sampled_from([0.5, 1, 1.0, float(2**60)]),
        "name": st.sampled_from(["a", "b", "", None]),
        "since": st.sampled_from(["2026-01-09T00:31:43Z", "2026-01-09T00:31:43.123456789Z", "soon"]),
        "tags": st.dictionaries(st.sampled_from(["x", "y"]), st.sampled_from(["1", "2"]), max_size=2),
        "nodes": st.lists(
            st.fixed_dictionaries({"n": st.sampled_from([1, 2, None])}, optional={"m": st.just("q")}),
            max_size=2,
        ),
        "late": st.sampled_from([True, "text", {"deep": [1]}]),
    },
)
TYPES = {
    "id": "string",
    "size": "int64",
    "ratio": "float64",
    "since": "timestamp",
    "tags": "map<string, string>",
    "nodes": "list<struct<n: int64>>",
}
WORLDS = st.lists(st.dictionaries(st.sampled_from("abcde"), VALUES, max_size=5), min_size=2, max_size=5)


def rows_of(world: World) -> list[dict[str, Any]]:
    return [{"id": key, **row} for key, row in world.items()]


def normal(world: World) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for row in rows_of(world):
        value = normalise(row)
        assert isinstance(value, dict)
        found[row["id"]] = value
    return found


def change_list(before: World, after: World) -> dict[str, Any]:
    """What anybody would say who knows both worlds."""
    old, new = normal(before), normal(after)
    changed = {
        key: {
            name: (old[key].get(name), new[key].get(name))
            for name in {**old[key], **new[key]}
            if row_bytes({"v": old[key].get(name)}) != row_bytes({"v": new[key].get(name)})
        }
        for key in old.keys() & new.keys()
    }
    return {
        "added": {key: new[key] for key in new.keys() - old.keys()},
        "removed": {key: old[key] for key in old.keys() - new.keys()},
        "changed": {key: columns for key, columns in changed.items() if columns},
    }


def told(diff: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"added": {}, "removed": {}, "changed": {}}
    for row in diff.rows():
        if row.operation == "changed":
            found["changed"][row.key["id"]] = row.columns
        else:
            found[row.operation][row.key["id"]] = row.after if row.operation == "added" else row.before
    return found


def at(history: pa.Table, moment: datetime) -> dict[str, dict[str, Any]]:
    """The rows that held at a moment, by the history alone."""
    held = [
        row
        for row, begun, ended in zip(
            range(history.num_rows),
            history["valid_from"].to_pylist(),
            history["valid_to"].to_pylist(),
            strict=True,
        )
        if begun <= moment and (ended is None or moment < ended)
    ]
    rows = history.drop_columns(["valid_from", "valid_to"]).take(pa.array(held, pa.int64()))
    return {str(row["id"]): row for row in canonical(rows)}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(worlds=WORLDS, corrected=st.integers(1, 5))
def test_what_is_told_of_generated_worlds_is_what_happened_in_them(
    worlds: list[World], corrected: int, nights: Any
) -> None:
    past = nights(types=dict(TYPES))
    for number, world in enumerate(worlds, 1):
        if number == corrected:
            past.types["size"] = "string"
        past.night({"services": rows_of(world)})
    lake = past.lake

    for number, before in enumerate(worlds, 1):
        for other, after in enumerate(worlds, 1):
            diff = lake.diff(f"night-{number}", f"night-{other}", "services")
            assert told(diff) == change_list(before, after)
    history = lake.history("services").to_arrow()
    for number, world in enumerate(worlds, 1):
        for moment in (past.moment(number), past.moment(number) + timedelta(hours=23)):
            assert at(history, moment) == normal(world)
    assert at(history, past.moment(1) - timedelta(seconds=1)) == {}
    changes = lake.changes("services").to_arrow().to_pylist()
    for number, (before, after) in enumerate(zip([{}, *worlds], worlds, strict=False), 1):
        wanted = change_list(before, after)
        mine = [row for row in changes if row["_run_id"] == f"night-{number}"]
        assert {row["key"]["id"]: row["operation"] for row in mine} == {
            **dict.fromkeys(wanted["added"], "insert"),
            **dict.fromkeys(wanted["removed"], "delete"),
            **dict.fromkeys(wanted["changed"], "update"),
        }
        for row in mine:
            if row["operation"] == "update":
                assert set(row["columns"]) == set(wanted["changed"][row["key"]["id"]])
            assert (row["before"] is None, row["after"] is None) == (
                row["operation"] == "insert",
                row["operation"] == "delete",
            )


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(worlds=WORLDS)
def test_without_a_key_rows_are_added_or_removed_whole(worlds: list[World], nights: Any) -> None:
    past = nights(types=dict(TYPES), key=())
    for world in worlds:
        past.night({"services": [row for row in world.values() if row]})

    for number, (before, after) in enumerate(pairwise(worlds), 1):
        old, new = (sorted(row_bytes(row) for row in world.values() if row) for world in (before, after))
        diff = past.lake.diff(f"night-{number}", f"night-{number + 1}", "services")
        rows = list(diff.rows())
        assert not [row for row in rows if row.operation == "changed"]
        gone = sorted(row_bytes(row.before) for row in rows if row.before is not None)
        come = sorted(row_bytes(row.after) for row in rows if row.after is not None)
        assert sorted([*old, *come]) == sorted([*new, *gone])
        assert not set(gone) & set(come)
