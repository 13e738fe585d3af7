from __future__ import annotations

import io
from decimal import Decimal
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from extractor.compaction import compact
from extractor.erasure import erase
from extractor.errors import ConfigError, LakeError
from extractor.lease import Leases
from extractor.stores.memory import MemoryStore
from tests.unit.lakes import SmallLake, Watch, cut_off, rows, small_lake

USERS = ("users", "default")


def fill(lake: SmallLake) -> list[str]:
    """Three snapshots of users, `bob` in the first two; and notices that name him, merged since."""
    lake.run("r0", ("users", "snapshot_date=2026-11-20", rows("r0", "ann", "bob")))
    lake.run("r1", ("users", "snapshot_date=2026-11-21", rows("r1", "ann", "bob", "cid")))
    lake.run("r2", ("users", "snapshot_date=2026-11-22", rows("r2", "ann", "cid", "dan")))
    lake.run("r3", ("notices", "event_date=2026-11-20", rows("r3", "bob", "x")))
    lake.run("r4", ("notices", "event_date=2026-11-20", rows("r4", "y")))
    return [f"r{number}" for number in range(5)]


def everywhere(lake: SmallLake) -> list[str]:
    """The Parquet files of the lake, wherever they lie, that still hold bob."""
    return [
        stored.path
        for stored in lake.store.list("")
        if stored.path.endswith(".parquet")
        and "bob" in pq.read_table(io.BytesIO(lake.store.read(stored.path)))["id"].to_pylist()
    ]


def test_a_person_is_removed_from_every_snapshot(lake: SmallLake) -> None:
    runs = fill(lake)

    report = erase(lake.config, "users", {"id": "bob"}, upkeep=lake.upkeep("expire"))

    assert [lake.ids("users", run) for run in runs[:3]] == [["ann"], ["ann", "cid"], ["ann", "cid", "dan"]]
    assert [path for path in everywhere(lake) if "users" in path] == []
    [change] = report.tables
    assert (change.name, change.rows_removed, change.files_removed, change.files_added) == ("users", 2, 2, 2)
    assert lake.hidden("old") == lake.hidden("staging") == []
    assert lake.ids("notices") == ["bob", "x", "y"]


def test_digests_and_row_counts_in_the_log_are_right_afterwards(lake: SmallLake) -> None:
    runs = fill(lake)
    erase(lake.config, "users", {"id": "bob"}, upkeep=lake.upkeep("expire"))
    erase(lake.config, "users", {"id": "dan"}, upkeep=lake.upkeep("expire"))

    lake.check_files([*runs, "latest"])

    assert lake.lake.entry().tables["users", "default"].rows == 2
    named = {row.path for run in (*runs, "latest") for row in lake.lake.files(as_of=run)}
    standing = {stored.path for name in ("users", "notices") for stored in lake.store.list(name)}
    assert named == standing
    verify = getattr(lake.lake, "verify", None)
    if verify is not None:
        assert verify(everything=True).findings == ()


def test_the_log_says_what_was_erased_and_not_whose(lake: SmallLake) -> None:
    fill(lake)

    report = erase(lake.config, "users", {"id": "bob"}, upkeep=lake.upkeep("expire"))

    entry = lake.lake.entry()
    assert entry.run_id == report.run_id
    assert entry.summary["erased"] == {"table": "users", "columns": ["id"]}
    assert entry.summary["changes"][0]["rows_removed"] == 2  # type: ignore[index]  # JSON
    text = orjson.dumps(entry.summary).decode()
    assert "bob" not in text


def test_rows_that_were_merged_go_too_and_so_do_copies_for_readers(lake: SmallLake) -> None:
    fill(lake)
    compact(lake.config, upkeep=lake.upkeep())
    assert len(lake.hidden("old")) == 2

    erase(lake.config, "notices", {"id": "bob"}, upkeep=lake.upkeep("expire"))

    assert lake.ids("notices") == lake.glob_ids("notices") == ["x", "y"]
    assert lake.ids("notices", "r3") == ["x"]
    assert [path for path in everywhere(lake) if "notices" in path] == []
    assert [path.rpartition("/")[2] for path in lake.hidden("old")] == ["r4-00000.parquet"]


def test_a_file_that_must_not_be_merged_must_not_be_so_afterwards_either(lake: SmallLake) -> None:
    day = "event_date=2026-11-20"
    lake.run("b", ("notices", day, rows("b", "first")))
    lake.run("r", ("notices", day, rows("r", "between")))
    lake.run("b", ("notices", day, rows("b", "bob", "third")))

    erase(lake.config, "notices", {"id": "bob"}, upkeep=lake.upkeep("expire"))
    compact(lake.config, upkeep=lake.upkeep())

    assert lake.ids("notices", "r") == ["between", "first"]
    assert lake.ids("notices") == ["between", "first", "third"]


def test_all_conditions_must_hold_and_values_are_those_of_the_column(lake: SmallLake) -> None:
    number = pa.array([1, 2, 1], pa.int64())
    lake.run("r0", ("users", "snapshot_date=2026-11-20", rows("r0", "a", "a", "b", number=number)))

    erase(lake.config, "users", {"id": "a", "number": "1"}, upkeep=lake.upkeep("expire"))

    assert lake.lake.table("users").to_arrow().select(["id", "number"]).to_pylist() == [
        {"id": "a", "number": 2},
        {"id": "b", "number": 1},
    ]


def test_a_corrected_column_is_looked_at_in_all_its_versions(lake: SmallLake) -> None:
    corrected = rows("r1", "x", "y", id__v2=pa.array([7, 8], pa.int64()))
    corrected = corrected.set_column(0, "id", pa.nulls(2, pa.string()))
    lake.run("r0", ("users", "snapshot_date=2026-11-20", rows("r0", "7", "8")))
    lake.run("r1", ("users", "snapshot_date=2026-11-21", corrected))

    erase(lake.config, "users", {"id": "7"}, upkeep=lake.upkeep("expire"))

    assert lake.ids("users", "r0") == ["8"]
    assert lake.lake.table("users").to_arrow()["id__v2"].to_pylist() == [8]


def test_a_column_whose_name_only_begins_like_another_is_not_looked_at(lake: SmallLake) -> None:
    verified = pa.array(["a", "z"], pa.string())
    lake.run("r0", ("users", "snapshot_date=2026-11-20", rows("r0", "a", "b", id__verified=verified)))
    lake.run("r1", ("users", "snapshot_date=2026-11-21", rows("r1", "z", "b", id__verified=verified)))

    erase(lake.config, "users", {"id": "z"}, upkeep=lake.upkeep("expire"))

    assert (lake.ids("users", "r0"), lake.ids("users")) == (["a", "b"], ["b"])


def rescued(run_id: str, *left: str | None, **more: pa.Array) -> pa.Table:
    """Rows `0`, `1` and so on, with what was left over of them."""
    ids = [str(number) for number in range(len(left))]
    return rows(run_id, *ids, **more, _rescued_data=pa.array(left, pa.string()))


def test_a_value_that_fitted_no_column_is_found_in_the_rescued_data(lake: SmallLake) -> None:
    numbers = rescued(
        "r0",
        None,
        '{"number":"bob"}',
        '{"other":"bob"}',
        '{"number":{"name":"bob"}}',
        number__v2=pa.array([7, None, None, None], pa.int64()),
    )
    lake.run("r0", ("users", "snapshot_date=2026-11-20", numbers))
    lake.run(
        "r1", ("users", "snapshot_date=2026-11-21", rescued("r1", None, '{"mail":"ann","number":"bob"}'))
    )

    report = erase(lake.config, "users", {"number": "bob"}, upkeep=lake.upkeep("expire"))

    assert (lake.ids("users", "r0"), lake.ids("users")) == (["0", "2", "3"], ["0"])
    assert report.tables[0].rows_removed == 2
    assert lake.lake.verify(everything=True).findings == ()


@pytest.mark.parametrize(
    ("left", "value", "is_found"),
    [
        ('{"mail":"bob"}', "bob", True),
        ('{"mail":1.50}', "1.5", True),
        ('{"mail":12345678901234567891}', "12345678901234567891", True),
        ('{"mail":12345678901234567891}', "12345678901234567892", False),
        ('{"mail":true}', "true", True),
        ('{"mail":true}', "1", False),
        ('{"mail":["bob"]}', "bob", False),
        ('{"mail":["bob"]}', '["bob"]', True),
        ('{"mail":null}', "null", False),
        ('{"name":{"mail":"bob"}}', "bob", False),
    ],
)
def test_a_rescued_value_is_compared_as_text_or_as_what_it_is(
    left: str, value: str, is_found: bool, tmp_path: Path, watch: Watch
) -> None:
    lake = small_lake(MemoryStore(clock=watch.now), tmp_path, watch)
    lake.run("r0", ("users", "snapshot_date=2026-11-20", rescued("r0", left, '{"mail":"ann"}')))

    erase(lake.config, "users", {"mail": value}, upkeep=lake.upkeep("expire"))

    assert lake.ids("users") == (["1"] if is_found else ["0", "1"])


def put_aside(lake: SmallLake) -> list[str]:
    """Copies that a repair took out: two that hold bob, one of them not to be read; others of no concern."""
    folder = "_extractor/aside/r9/users/account=default/snapshot_date=2026-11-19/run=r9"
    contents = {
        f"{folder}/part-00000.parquet": parquet(rows("r9", "bob", "fay")),
        f"{folder}/part-00001.parquet": parquet(rows("r9", "bob"))[:-9],
        f"{folder}/part-00002.parquet": parquet(rows("r9", "gus")),
        "_extractor/aside/r9/notices/account=default/x.parquet": parquet(rows("r9", "bob")),
        "_extractor/aside/r9/users/notes.txt": b"mine",
    }
    for path, content in contents.items():
        lake.store.put(path, content)
    return list(contents)


def parquet(table: pa.Table) -> bytes:
    written = io.BytesIO()
    pq.write_table(table, written)
    return written.getvalue()


def test_what_a_repair_put_aside_is_erased_too(lake: SmallLake) -> None:
    fill(lake)
    whole, cut, other, foreign, notes = put_aside(lake)
    kept = {path: lake.store.read(path) for path in (other, foreign, notes)}

    foreseen = erase(lake.config, "users", {"id": "bob"}, is_dry_run=True, upkeep=lake.upkeep("expire"))
    assert sorted(foreseen.paths)[:2] == [whole, cut]
    report = erase(lake.config, "users", {"id": "bob"}, upkeep=lake.upkeep("expire"))

    assert pq.read_table(io.BytesIO(lake.store.read(whole)))["id"].to_pylist() == ["fay"]
    assert lake.hidden("aside") == sorted((whole, other, foreign, notes))
    assert {path: lake.store.read(path) for path in kept} == kept
    assert foreseen.tables[0].files_aside == report.tables[0].files_aside == 2
    assert set(report.paths) > {whole, cut}
    assert lake.lake.entry().summary["changes"][0]["files_aside"] == 2  # type: ignore[index]  # JSON
    assert lake.lake.verify(everything=True).findings == ()


def test_rows_that_are_only_aside_are_erased_and_the_log_says_so(lake: SmallLake) -> None:
    lake.run("r0", ("users", "snapshot_date=2026-11-20", rows("r0", "ann")))
    put_aside(lake)

    report = erase(lake.config, "users", {"id": "bob"}, upkeep=lake.upkeep("expire"))

    [change] = report.tables
    assert (change.rows_removed, change.files_removed, change.files_aside) == (0, 0, 2)
    assert lake.lake.entry().summary["erased"] == {"table": "users", "columns": ["id"]}
    assert lake.ids("users") == ["ann"]
    again = erase(lake.config, "users", {"id": "bob"}, upkeep=lake.upkeep("expire"))
    assert again.tables == ()


def test_a_copy_for_readers_that_cannot_be_read_is_removed(lake: SmallLake) -> None:
    fill(lake)
    compact(lake.config, upkeep=lake.upkeep())
    old = lake.hidden("old")
    lake.store.put(old[0], b"no Parquet")

    erase(lake.config, "notices", {"id": "nobody"}, upkeep=lake.upkeep("expire"))

    assert lake.hidden("old") == old[1:]


def test_a_file_that_loses_all_its_rows_stays_typed_and_empty(lake: SmallLake) -> None:
    lake.run("r0", ("users", "snapshot_date=2026-11-20", rows("r0", "bob")))

    erase(lake.config, "users", {"id": "bob"}, upkeep=lake.upkeep("expire"))

    assert lake.ids("users") == []
    assert lake.lake.table("users").schema.names == ["id", "_run_id"]


def test_a_dry_run_counts_and_changes_nothing(lake: SmallLake) -> None:
    fill(lake)
    newest = lake.lake.entry()

    report = erase(lake.config, "users", {"id": "bob"}, is_dry_run=True, upkeep=lake.upkeep("expire"))

    assert (report.tables[0].rows_removed, len(report.paths)) == (2, 2)
    assert lake.lake.entry() == newest


def test_rows_of_nobody_commit_nothing(lake: SmallLake) -> None:
    fill(lake)
    newest = lake.lake.entry()

    report = erase(lake.config, "users", {"id": "zed"}, upkeep=lake.upkeep("expire"))

    assert (report.tables, lake.lake.entry()) == ((), newest)


@pytest.mark.parametrize(
    ("table", "where", "message"),
    [
        ("users", {}, "--rows needs --where"),
        ("users", {"mail": "x"}, "--where mail: table users has no such column"),
        ("user*", {"id": "x"}, "give the name of one table"),
        ("people", {"id": "x"}, "no table people in lake"),
    ],
)
def test_bad_input_is_one_clear_line(
    table: str, where: dict[str, str], message: str, lake: SmallLake
) -> None:
    fill(lake)
    newest = lake.lake.entry()

    with pytest.raises(ConfigError, match=message):
        erase(lake.config, table, where, upkeep=lake.upkeep("expire"))

    assert lake.lake.entry() == newest


def test_a_value_that_can_stand_nowhere_is_refused(lake: SmallLake) -> None:
    number = pa.array([1, None], pa.int64())
    lake.run("r0", ("users", "snapshot_date=2026-11-20", rescued("r0", None, '{"id":"x"}', number=number)))

    with pytest.raises(ConfigError, match="--where number=x: no value of int64"):
        erase(lake.config, "users", {"number": "x"}, upkeep=lake.upkeep("expire"))
    assert erase(lake.config, "users", {"number": "3"}, upkeep=lake.upkeep("expire")).tables == ()


def test_money_is_compared_as_a_number_and_an_absurd_one_is_refused(lake: SmallLake) -> None:
    cost = pa.array([Decimal("12.5"), Decimal("7")], pa.decimal128(38, 12))
    lake.run("r0", ("users", "snapshot_date=2026-11-20", rows("r0", "ann", "bob", cost=cost)))

    with pytest.raises(ConfigError, match="--where cost=1e-9999999: no value of decimal"):
        erase(lake.config, "users", {"cost": "1e-9999999"}, upkeep=lake.upkeep("expire"))
    assert erase(lake.config, "users", {"cost": "12.50"}, upkeep=lake.upkeep("expire")).tables != ()
    assert lake.ids("users") == ["bob"]


@pytest.mark.parametrize("harm", ["another value", "no end"])
@pytest.mark.parametrize("is_dry_run", [False, True])
def test_a_damaged_file_is_never_rewritten(is_dry_run: bool, harm: str, lake: SmallLake) -> None:
    fill(lake)
    newest = lake.lake.entry()
    (path,) = [file.path for file in lake.lake.files("users", "r1")]
    if harm == "another value":
        lake.rot(path)
    else:
        lake.store.put(path, lake.store.read(path)[:-9])

    with pytest.raises(
        LakeError, match=f"{path} of lake .* is damaged: it.* run `skysql-extract verify --all"
    ):
        erase(lake.config, "users", {"id": "bob"}, is_dry_run=is_dry_run, upkeep=lake.upkeep("expire"))

    assert lake.lake.entry() == newest
    assert lake.hidden("staging") == lake.hidden("old") == []


def test_a_snapshot_that_a_run_added_meanwhile_is_searched_too(lake: SmallLake) -> None:
    fill(lake)
    run = Leases(lake.store, run_id="r9", clock=lake.watch, tables=[USERS])
    run.acquire()
    upkeep = lake.upkeep("expire")

    def pause(seconds: float) -> None:
        lake.run("r9", ("users", "snapshot_date=2026-11-29", rows("r9", "bob", "eve")))
        run.release()

    upkeep._pause = pause

    erase(lake.config, "users", {"id": "bob"}, upkeep=upkeep)

    assert lake.ids("users") == ["eve"]
    assert [path for path in everywhere(lake) if "users" in path] == []


@pytest.mark.parametrize("keep_unsynced", [False, True])
def test_a_crash_at_any_step_leaves_all_other_rows_and_the_next_call_ends_it(
    keep_unsynced: bool, tmp_path: Path
) -> None:
    def call(lake: SmallLake) -> None:
        erase(lake.config, "users", {"id": "bob"}, upkeep=lake.upkeep("expire"))

    for lake in cut_off(tmp_path, fill, call, keep_unsynced=keep_unsynced, every=3):
        assert set(lake.ids("users", "r1")) - {"bob"} == {"ann", "cid"}
        assert lake.ids("users") == ["ann", "cid", "dan"]

        call(lake)
        with lake.upkeep("expire").held(USERS):
            pass
        lake.clean()
        assert [path for path in everywhere(lake) if "users" in path] == []
        assert lake.hidden("staging") == []
        assert lake.ids("users", "r0") == ["ann"]
