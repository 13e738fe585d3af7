from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extractor.compare import compare
from extractor.digest import normalise, row_bytes
from extractor.errors import ConfigError, LakeError
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


@settings(max_examples=15)
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


@settings(max_examples=15)
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


# --- tables that are no snapshots, accounts, and what became of snapshots -----------------------------------


def notice(number: int) -> dict[str, Any]:
    day = f"2026-03-{number:02d}"
    return {"id": f"n{number}", "at": f"{day}T01:00:00Z", "window": day}


def test_of_events_the_rows_of_runs_in_between_are_added(nights: Any, syncs: Any) -> None:
    past = nights(types={"id": "string", "at": "timestamp"})
    for number in (1, 2, 3):
        past.night({"notices": [notice(number)]}, syncs=syncs)
    lake = past.lake

    assert told(lake.diff("night-1", "night-3", "notices"))["added"].keys() == {"n2", "n3"}
    assert told(lake.diff("night-3", "night-2", "notices"))["removed"].keys() == {"n3"}
    assert lake.diff("night-2", "night-2", "notices").counts() == {"added": 0, "removed": 0, "changed": 0}
    history = lake.history("notices").to_arrow().to_pylist()
    assert {row["id"]: row["valid_from"] for row in history} == {
        f"n{number}": past.moment(number) for number in (1, 2, 3)
    }
    assert {row["valid_to"] for row in history} == {None}
    feed = lake.changes("notices", since="night-1").to_arrow().to_pylist()
    assert [(row["operation"], row["key"], row["_run_id"]) for row in feed] == [
        ("insert", {"id": "n2"}, "night-2"),
        ("insert", {"id": "n3"}, "night-3"),
    ]


def test_events_that_were_merged_since_are_told_apart_by_their_runs(nights: Any, syncs: Any) -> None:
    past = nights(types={"id": "string", "at": "timestamp"})
    for number in (1, 2, 3):
        # All of one day, so that one file can take them.
        past.night({"notices": [{**notice(1), "id": f"n{number}"}]}, syncs=syncs)
    before = past.lake.changes("notices").to_arrow()
    past.merge("notices")
    past.night({"notices": [notice(4)]}, syncs=syncs)
    lake = past.lake

    assert len(lake.files("notices")) == 2
    assert told(lake.diff("night-1", "night-3", "notices"))["added"].keys() == {"n2", "n3"}
    assert told(lake.diff("night-2", "night-5", "notices"))["added"].keys() == {"n3", "n4"}
    assert told(lake.diff("night-5", "night-1", "notices"))["removed"].keys() == {"n2", "n3", "n4"}
    after = lake.changes("notices", as_of="night-4").to_arrow()
    assert after.select(["key", "_run_id"]).equals(before.select(["key", "_run_id"]))
    assert lake.history("notices", as_of="night-2").to_arrow()["id"].to_pylist() == ["n1", "n2"]


def test_of_windows_that_are_read_anew_only_the_readings_that_differ_count(nights: Any, syncs: Any) -> None:
    past = nights()
    march, february = {"id": "m", "sum": 1.5, "window": "2026-03"}, {"id": "f", "sum": 2, "window": "2026-02"}
    past.night({"bills": [march, february]}, syncs=syncs)
    past.night({"bills": [{**march, "sum": 3}]}, syncs=syncs)
    past.night({"bills": [{**march, "sum": 3}, {**february, "sum": 2.0}]}, syncs=syncs)
    lake = past.lake

    assert told(lake.diff("night-1", "night-3", "bills")) == {
        "added": {},
        "removed": {},
        "changed": {"m": {"sum": (1.5, 3)}},
    }
    held = at(lake.history("bills").to_arrow(), past.moment(1))
    assert {key: row["sum"] for key, row in held.items()} == {"m": 1.5, "f": 2}
    assert lake.history("bills").to_arrow().num_rows == 3


def test_each_account_has_rows_and_a_history_of_its_own(nights: Any) -> None:
    past = nights()
    past.night({"services": [{"id": "a", "size": 1}]}, account="one")
    past.night({"services": [{"id": "a", "size": 2}]}, account="two")
    past.night({"services": [{"id": "a", "size": 3}]}, account="two")
    lake = past.lake

    (row,) = lake.diff("night-2", "night-3", "services").rows()
    assert (row.account, row.columns) == ("two", {"size": (2, 3)})
    (added,) = lake.diff("night-1", "night-2", "services").rows()
    assert (added.operation, added.account) == ("added", "two")
    assert lake.diff("night-1", "night-3", "services", account="one").counts()["added"] == 0
    history = lake.history("services").to_arrow().to_pylist()
    assert [(row["_account"], row["size"], row["valid_to"] is None) for row in history] == [
        ("one", 1, True),
        ("two", 2, False),
        ("two", 3, True),
    ]
    assert lake.history("services", account="two").to_arrow().num_rows == 2
    assert lake.changes("services", account="one").to_arrow().num_rows == 1
    for ask in (lake.history, lake.changes):
        with pytest.raises(ConfigError, match="no account three"):
            ask("services", account="three")
    with pytest.raises(ConfigError, match="no account three"):
        lake.diff("night-1", "night-2", "services", account="three")


def test_dropped_snapshots_are_left_out_of_history(nights: Any) -> None:
    past = nights()
    for size in (1, 2, 3):
        past.night({"services": [{"id": "a", "size": size}]})
    (dropped,) = past.lake.files("services", as_of="night-2")
    past.drop(dropped.path)

    history = past.lake.history("services").to_arrow().to_pylist()
    assert [(row["size"], row["valid_from"], row["valid_to"]) for row in history] == [
        (1, past.moment(1), past.moment(3)),
        (3, past.moment(3), None),
    ]
    changes = past.lake.changes("services").to_arrow().to_pylist()
    assert [(row["operation"], row["_run_id"]) for row in changes] == [
        ("insert", "night-1"),
        ("update", "night-3"),
    ]
    with pytest.raises(LakeError, match=r"--as-of night-\d reads the newest whole run"):
        past.lake.diff("night-2", "night-3", "services").counts()


def test_a_clock_that_goes_back_lets_no_state_end_before_it_began(nights: Any) -> None:
    past = nights(late={2: timedelta(days=-5)})
    for size in (1, 2, 3):
        past.night({"services": [{"id": "a", "size": size}]})

    history = past.lake.history("services").to_arrow().to_pylist()
    assert [row["size"] for row in history] == [1, 2, 3]
    assert [row["valid_from"] <= (row["valid_to"] or past.moment(9)) for row in history] == [True] * 3


def test_a_run_that_found_nothing_new_is_no_snapshot(nights: Any) -> None:
    past = nights(hours=1)
    for _ in range(3):
        past.night({"services": [{"id": "a"}]})

    assert len({file.path for name in ("night-1", "night-3") for file in past.lake.files(as_of=name)}) == 1
    assert past.lake.changes("services").to_arrow().num_rows == 1
    assert past.lake.changes("services", since="night-1").to_arrow().num_rows == 0


def test_the_shapes_that_arrow_takes_are_known_before_the_rows(nights: Any) -> None:
    past = nights(types={"id": "string", "size": "int64"})
    past.night({"services": [{"id": "a", "size": 1}]})
    past.night({"services": [{"id": "a", "size": 2, "more": "x"}]})
    lake = past.lake

    for found in (
        lake.diff("night-1", "night-2", "services"),
        lake.history("services"),
        lake.changes("services"),
        lake.table("services"),
    ):
        assert pa.table(found).equals(found.to_arrow())
        assert found.to_arrow().schema == found.schema
    changed = lake.diff("night-1", "night-2", "services").to_arrow().to_pylist()
    assert [(row["operation"], row["key"], row["columns"]) for row in changed] == [
        ("changed", {"id": "a"}, ["size", "more"])
    ]
    assert (changed[0]["before"]["more"], changed[0]["after"]["more"]) == (None, "x")
    assert changed[0]["after"]["size"] == 2


def test_a_table_that_one_run_does_not_have_is_empty_there(nights: Any) -> None:
    past = nights()
    past.night({"services": [{"id": "a"}]})
    past.night({"users": [{"id": "u"}]})

    assert past.lake.diff("night-1", "night-2", "users").counts()["added"] == 1
    assert past.lake.diff("night-2", "night-1", "users").counts()["removed"] == 1
    with pytest.raises(ConfigError, match=r"no table usrs in lake .*did you mean users"):
        past.lake.diff("night-1", "night-2", "usrs")
    with pytest.raises(ConfigError, match="no run night-7"):
        past.lake.diff("night-1", "night-7", "users")
    with pytest.raises(ConfigError, match="no table usrs"):
        past.lake.history("usrs")


def test_rows_that_share_a_key_are_the_same_change_or_come_and_go(nights: Any) -> None:
    past = nights(types={"id": "string", "n": "int64"})
    past.night({"services": [{"id": "a", "n": 1}, {"id": "a", "n": 2}, {"n": 5}, {"id": "b", "n": 1}]})
    past.night({"services": [{"id": "b", "n": 1}, {"id": "a", "n": 2}, {"id": "a", "n": 3}, {"n": 6}]})

    rows = [
        (row.operation, row.key, row.columns)
        for row in past.lake.diff("night-1", "night-2", "services").rows()
    ]

    assert rows == [
        ("removed", {}, {}),
        ("added", {}, {}),
        ("changed", {"id": "a"}, {"n": (1, 3)}),
    ]


def test_values_of_every_type_are_compared_where_the_rows_stand_in_another_order() -> None:
    kinds: Mapping[str, tuple[pa.DataType, Any, Any]] = {
        "nan": (pa.float64(), float("nan"), 1.0),
        "list": (pa.list_(pa.int64()), [1, 2], [2, 1]),
        "empty": (pa.list_(pa.int64()), [], None),
        "struct": (pa.struct([("a", pa.list_(pa.string()))]), {"a": ["x"]}, {"a": ["x", "y"]}),
        "map": (pa.map_(pa.string(), pa.int64()), [("k", 1)], [("k", 2)]),
        "text": (pa.string(), "a", None),
        "time": (
            pa.timestamp("us", "UTC"),
            datetime(2026, 1, 1, tzinfo=UTC),
            datetime(2026, 1, 2, tzinfo=UTC),
        ),
        "whole": (
            pa.list_(pa.struct([("m", pa.map_(pa.string(), pa.string()))])),
            [{"m": [("a", "b")]}],
            [{}],
        ),
    }
    for name, (kind, one, other) in kinds.items():
        keys = [str(number) for number in range(50)]
        values = [one, other] * 25
        before = pa.table({"id": keys, name: pa.array(values, kind)})
        after = pa.table({"id": keys[::-1], name: pa.array(values[::-1], kind)})
        assert not compare(before, after, ["id"]), name
        twisted = pa.table({"id": keys[::-1], name: pa.array([*values[::-1][:-1], other], kind)})
        assert compare(before, twisted, ["id"]).changed == ((0, 49),), name
        assert not compare(before.slice(3, 20), before.slice(3, 20), ["id"]), name
