from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from extractor.commit import roll_forward
from extractor.commitlog import CommitLog
from extractor.compaction import compact
from extractor.errors import ConfigError, LakeError
from extractor.lake import Lake
from extractor.lease import Leases
from extractor.stores.local import LocalStore
from extractor.stores.memory import MemoryStore, PowerLost
from tests.unit.lakes import SmallLake, Watch, cut_off, rows, small_lake

METRICS = ("metrics", "default")


def scrape(run_id: str, day: str, number: int, count: int = 3, **more: pa.Array) -> tuple[str, str, pa.Table]:
    """Samples of some series at one moment, in no order of theirs."""
    series = [(number * 7 + one) % count for one in range(count)]
    found = rows(
        run_id,
        *(f"s{one}@{number}" for one in series),
        name=pa.array([f"metric{one}" for one in series]),
        _series=pa.array(series, pa.int64()),
        timestamp=pa.array([number * 1_000_000] * count, pa.timestamp("us", "UTC")),
        **more,
    )
    return ("metrics", f"event_date={day}", found)


def fill(lake: SmallLake, count: int = 6) -> list[str]:
    """Runs that each add a file to one of two days, and a snapshot now and then; their names."""
    for number in range(count):
        tables = [scrape(f"r{number}", f"2026-11-2{number % 2}", number)]
        if number % 3 == 0:
            tables.append(("services", "snapshot_date=2026-11-22", rows(f"r{number}", "a", f"b{number}")))
        lake.run(f"r{number}", *tables)
    return [f"r{number}" for number in range(count)]


def test_each_partition_becomes_one_file_with_the_same_rows(lake: SmallLake) -> None:
    runs = fill(lake)
    before = {run: lake.ids("metrics", run) for run in runs}

    report = compact(lake.config, upkeep=lake.upkeep())

    [change] = report.tables
    assert (change.name, change.files_removed, change.files_added, change.rows_removed) == (
        "metrics",
        6,
        2,
        0,
    )
    assert lake.places("metrics") == [
        f"event_date=2026-11-2{day}/{report.run_id}-00000.parquet" for day in (0, 1)
    ]
    assert {run: lake.ids("metrics", run) for run in runs} == before
    assert lake.ids("metrics") == lake.glob_ids("metrics") == before["r5"]
    assert lake.hidden("staging") == []
    assert len(lake.hidden("old")) == 6
    lake.check_files([*runs, report.run_id])


def test_append_tables_are_sorted_by_series_and_time(lake: SmallLake) -> None:
    fill(lake, 8)

    compact(lake.config, upkeep=lake.upkeep())

    for row in lake.lake.files("metrics"):
        found = pq.read_table(io.BytesIO(lake.store.read(row.path)))
        order = list(zip(found["name"].to_pylist(), found["timestamp"].to_pylist(), strict=True))
        assert len(order) == 12
        assert order == sorted(order)


def test_rows_that_do_not_fit_into_memory_are_sorted_all_the_same(tmp_path: Path, watch: Watch) -> None:
    lake = small_lake(MemoryStore(clock=watch.now), tmp_path, watch)
    for number in range(12):
        lake.run(f"r{number}", scrape(f"r{number}", "2026-11-20", number, count=4_000))
    before = lake.ids("metrics")

    report = compact(lake.config, upkeep=lake.upkeep(), rows_held=20_000)

    [row] = lake.lake.files("metrics")
    file = pq.ParquetFile(io.BytesIO(lake.store.read(row.path)))
    found = file.read()
    order = list(zip(found["name"].to_pylist(), found["timestamp"].to_pylist(), strict=True))
    assert order == sorted(order)
    assert max(file.metadata.row_group(one).num_rows for one in range(file.num_row_groups)) <= 20_000
    assert lake.ids("metrics") == before
    assert report.tables[0].files_added == 1


def test_a_second_call_finds_nothing_and_commits_nothing(lake: SmallLake) -> None:
    fill(lake)
    compact(lake.config, upkeep=lake.upkeep())
    newest = lake.lake.entry()

    report = compact(lake.config, upkeep=lake.upkeep())

    assert (report.tables, report.run_id) == ((), "")
    assert lake.lake.entry() == newest


def test_what_comes_later_is_merged_with_what_was_merged_before(lake: SmallLake) -> None:
    fill(lake)
    compact(lake.config, upkeep=lake.upkeep())
    lake.run("r6", scrape("r6", "2026-11-20", 6))
    before = {run: lake.ids("metrics", run) for run in ("r1", "r5", "r6")}

    report = compact(lake.config, upkeep=lake.upkeep())

    assert [len(lake.places("metrics")), report.tables[0].files_removed] == [2, 2]
    assert {run: lake.ids("metrics", run) for run in before} == before


@pytest.mark.long
def test_files_of_the_target_size_are_left_alone_and_made(tmp_path: Path, watch: Watch) -> None:
    lake = small_lake(MemoryStore(clock=watch.now), tmp_path, watch, **{"parquet.compression": "none"})
    for number in range(6):
        ids = [f"{number}-{one * 7919 % 1_000_003}" for one in range(50_000)]
        lake.run(f"r{number}", ("notices", "event_date=2026-11-20", rows(f"r{number}", *ids)))
    sizes = [row.size_bytes for row in lake.lake.files("notices")]
    before = lake.ids("notices")

    compact(lake.config, target_mb=1.5 * max(sizes) / (1 << 20), upkeep=lake.upkeep())

    after = lake.lake.files("notices")
    assert [row.rows for row in after] == [100_000] * 3
    assert lake.ids("notices") == before
    compact(lake.config, target_mb=min(sizes) / (1 << 20), upkeep=lake.upkeep())
    assert lake.lake.files("notices") == after


def test_columns_that_came_later_are_null_in_older_rows(lake: SmallLake) -> None:
    lake.run("r0", scrape("r0", "2026-11-20", 0))
    lake.run("r1", scrape("r1", "2026-11-20", 1, unit=pa.array(["s"] * 3)))

    compact(lake.config, upkeep=lake.upkeep())

    [row] = lake.lake.files("metrics")
    found = pq.read_table(io.BytesIO(lake.store.read(row.path)))
    assert found.schema.names == ["id", "name", "_series", "timestamp", "unit", "_run_id"]
    assert sorted(
        zip(found["_run_id"].to_pylist(), found["unit"].to_pylist(), strict=True), key=str
    ) == sorted([("r0", None)] * 3 + [("r1", "s")] * 3, key=str)


def test_only_the_named_tables_are_merged(lake: SmallLake) -> None:
    fill(lake)
    lake.run("r7", ("notices", "event_date=2026-11-20", rows("r7", "x")))
    lake.run("r8", ("notices", "event_date=2026-11-20", rows("r8", "y")))

    report = compact(lake.config, ["not*"], upkeep=lake.upkeep())

    assert [change.name for change in report.tables] == ["notices"]
    with pytest.raises(ConfigError, match="no table nonsense in lake"):
        compact(lake.config, ["nonsense"], upkeep=lake.upkeep())
    with pytest.raises(ConfigError, match="--target-mb must be above 0"):
        compact(lake.config, target_mb=0, upkeep=lake.upkeep())


def test_the_source_of_the_newest_entry_is_carried_on(lake: SmallLake) -> None:
    fill(lake)

    report = compact(lake.config, upkeep=lake.upkeep())

    entry = lake.lake.entry()
    assert entry.run_id == report.run_id
    assert entry.source == {"learnt_rates": {"default": 7.0}}
    assert entry.summary["verb"] == "compact"


def test_a_row_that_changes_on_the_way_stops_it(tmp_path: Path, watch: Watch) -> None:
    class Flipping(MemoryStore):
        """What is written into staging is not what was given."""

        def put(self, path: str, content: bytes) -> None:
            if "compact" not in path and path.startswith("_extractor/staging/2026") and "event_date" in path:
                table = pq.read_table(io.BytesIO(content))
                values = [("s0@0" if one == "s1@0" else one) for one in table["id"].to_pylist()]
                written = io.BytesIO()
                pq.write_table(table.set_column(0, "id", pa.array(values)), written)
                content = written.getvalue()
            super().put(path, content)

    lake = small_lake(Flipping(clock=watch.now), tmp_path, watch)
    fill(lake)
    newest = lake.lake.entry()

    with pytest.raises(LakeError, match="would change its rows"):
        compact(lake.config, upkeep=lake.upkeep())

    assert lake.lake.entry() == newest
    assert lake.hidden("staging") == []


@pytest.mark.parametrize("harm", ["another value", "no end"])
def test_a_damaged_file_is_never_merged(harm: str, lake: SmallLake) -> None:
    fill(lake)
    newest = lake.lake.entry()
    path = lake.lake.files("metrics")[-1].path
    if harm == "another value":
        lake.rot(path)
    else:
        lake.store.put(path, lake.store.read(path)[:-9])

    with pytest.raises(
        LakeError, match=f"{path} of lake .* is damaged: it.* run `skysql-extract verify --all"
    ):
        compact(lake.config, ["metrics"], upkeep=lake.upkeep())

    assert lake.lake.entry() == newest
    assert lake.hidden("staging") == lake.hidden("old") == []


DAY = "event_date=2026-11-20"


def test_rows_that_a_run_adds_after_another_one_are_not_those_of_that_one(lake: SmallLake) -> None:
    lake.run("b", ("notices", DAY, rows("b", "first")))
    lake.run("b", ("notices", DAY, rows("b", "second")))
    lake.run("r", ("notices", DAY, rows("r", "between")))
    lake.run("b", ("notices", DAY, rows("b", "third")))
    lake.run("b", ("notices", DAY, rows("b", "fourth")))
    lake.run("s", ("notices", DAY, rows("s", "last")))
    then = {"b": lake.ids("notices", "b"), "r": lake.ids("notices", "r"), "s": lake.ids("notices", "s")}
    assert then["r"] == ["between", "first", "second"]

    for _ in range(2):
        compact(lake.config, upkeep=lake.upkeep())
        lake.run("t", ("notices", DAY, rows("t", "later")))
        assert {run: lake.ids("notices", run) for run in then} == then

    assert lake.places("notices")[1:] == [
        f"{DAY}/{name}.parquet" for name in ("b-00002", "b-00003", "t-00000")
    ]
    assert lake.lake.files("notices", "r")[0].where == "_run_id IN ('b', 'r')"
    assert lake.glob_ids("notices") == lake.ids("notices")


def test_the_condition_on_rows_of_merged_files_is_told(lake: SmallLake) -> None:
    fill(lake, 4)
    assert {row.where for row in lake.lake.files(as_of="r2")} == {""}

    report = compact(lake.config, upkeep=lake.upkeep())

    def conditions(run: str) -> dict[str, str]:
        return {row.table: row.where for row in lake.lake.files(as_of=run)}

    assert conditions("r0") == {"metrics": "_run_id IN ('r0')", "services": ""}
    assert conditions("r2") == {"metrics": f"_run_id NOT IN ('{report.run_id}', 'r3')", "services": ""}
    assert conditions("latest") == {"metrics": "", "services": ""}


# Beside others.


def test_it_waits_for_a_run_and_keeps_what_that_added(lake: SmallLake) -> None:
    fill(lake)
    run = Leases(lake.store, run_id="r9", clock=lake.watch, tables=[METRICS])
    run.acquire()
    upkeep = lake.upkeep()
    paused: list[float] = []

    def pause(seconds: float) -> None:
        paused.append(seconds)
        if len(paused) == 3:
            lake.run("r9", scrape("r9", "2026-11-20", 9))
            run.release()

    upkeep._pause = pause

    report = compact(lake.config, upkeep=upkeep)

    assert len(paused) == 3
    assert "table metrics of account default is being written by run r9" in lake.waits[0]
    assert report.tables[0].files_removed == 6
    assert len(lake.ids("metrics")) == 21
    assert sorted(lake.places("metrics")) == [
        f"event_date=2026-11-20/{report.run_id}-00000.parquet",
        "event_date=2026-11-20/r9-00000.parquet",
        f"event_date=2026-11-21/{report.run_id}-00000.parquet",
    ]
    lake.check_files(["r5", "r9", report.run_id])


def test_a_partition_that_another_merged_meanwhile_is_left_alone(lake: SmallLake) -> None:
    fill(lake)
    run = Leases(lake.store, run_id="r9", clock=lake.watch, tables=[METRICS])
    run.acquire()
    upkeep = lake.upkeep()

    def pause(seconds: float) -> None:
        run.release()
        compact(lake.config, upkeep=lake.upkeep())

    upkeep._pause = pause

    report = compact(lake.config, upkeep=upkeep)

    assert report.tables == ()
    assert len(lake.ids("metrics")) == 18
    assert lake.hidden("staging") == []


def test_a_reader_that_holds_an_older_entry_keeps_working_for_the_grace_period(lake: SmallLake) -> None:
    fill(lake)
    held = lake.lake.table("metrics")
    before = lake.ids("metrics")

    compact(lake.config, upkeep=lake.upkeep(grace_seconds=600))

    assert sorted(held.to_arrow()["id"].to_pylist()) == before
    if isinstance(lake.store, LocalStore):
        return  # its clock is not ours
    lake.watch.pass_seconds(500)
    lake.run("r7")
    roll_forward(lake.store, CommitLog(lake.store))
    assert len(lake.hidden("old")) == 6
    lake.watch.pass_seconds(600)
    roll_forward(lake.store, CommitLog(lake.store))
    assert lake.hidden("old") == []
    lake.run("r8")
    assert lake.lake.entry().graces == {}
    assert lake.ids("metrics") == lake.ids("metrics", "r5") == before


# A crash anywhere.


@pytest.mark.long
@pytest.mark.parametrize("keep_unsynced", [False, True])
def test_a_crash_at_any_step_loses_nothing_and_the_next_verb_ends_it(
    keep_unsynced: bool, tmp_path: Path
) -> None:
    def filled(lake: SmallLake) -> None:
        fill(lake, 4)

    def call(lake: SmallLake) -> None:
        compact(lake.config, upkeep=lake.upkeep())

    whole = small_lake(MemoryStore(), tmp_path, Watch())
    filled(whole)
    before = {run: whole.ids("metrics", run) for run in ("r1", "r3")}
    outcomes = set()
    for lake in cut_off(tmp_path, filled, call, keep_unsynced=keep_unsynced, every=3):
        assert {run: lake.ids("metrics", run) for run in before} == before
        assert lake.ids("metrics") == lake.glob_ids("metrics") == before["r3"]
        is_committed = lake.lake.entry().summary.get("verb") == "compact"
        outcomes.add((is_committed, len(lake.places("metrics"))))

        # A run of another table leaves it; the next verb on the table finishes it.
        lake.clean() if is_committed else None
        call(lake)
        with lake.upkeep().held(METRICS):
            pass
        assert {run: lake.ids("metrics", run) for run in before} == before
        assert lake.ids("metrics") == lake.glob_ids("metrics")
        assert len(lake.places("metrics")) == 2
        lake.clean()
        assert lake.hidden("staging") == []

    # Before the commit, after it with both, one and no folder exchanged.
    assert outcomes == {(False, 4), (True, 4), (True, 3), (True, 2)}


def test_a_cut_off_publication_is_finished_by_who_holds_the_table(tmp_path: Path, watch: Watch) -> None:
    # The power goes as soon as it is committed.
    lake = small_lake(MemoryStore(clock=watch.now), tmp_path, watch)
    fill(lake, 4)
    found = lake.store
    assert isinstance(found, MemoryStore)
    for steps in range(10, 400):
        found.lose_power(after_steps=steps)
        try:
            compact(lake.config, upkeep=lake.upkeep())
        except PowerLost:
            found.crash()
        if lake.lake.entry().summary.get("verb") == "compact":
            break
    assert len(lake.places("metrics")) == 4

    other = Leases(found, run_id="r8", clock=watch, tables=[("services", "default")])
    assert roll_forward(found, CommitLog(found), other) == []
    assert len(lake.places("metrics")) == 4
    mine = Leases(found, run_id="r9", clock=watch, tables=[METRICS, ("services", "default")])
    assert len(roll_forward(found, CommitLog(found), mine)) == 1

    assert len(lake.places("metrics")) == 2


def test_a_publication_that_fails_says_that_it_is_committed(tmp_path: Path, watch: Watch) -> None:
    class Full(MemoryStore):
        def exchange_folder(self, one: str, other: str) -> None:
            raise LakeError("the disk is full; free some space and run again")

    lake = small_lake(Full(clock=watch.now), tmp_path, watch)
    fill(lake)

    with pytest.raises(LakeError, match="is committed, but publishing was cut off: the disk is full"):
        compact(lake.config, upkeep=lake.upkeep())

    assert lake.lake.entry().summary["verb"] == "compact"
    assert len(lake.ids("metrics")) == 18


def test_a_file_that_came_while_folders_were_exchanged_is_not_lost(tmp_path: Path, watch: Watch) -> None:
    class Slow(MemoryStore):
        """The holder slept so long that it lost its lease, and a run added a file before it exchanged."""

        is_first = True

        def exchange_folder(self, one: str, other: str) -> None:
            if self.is_first:
                self.is_first = False
                self.put(f"{other}/r9-00000.parquet", b"of a run that came in between")
            super().exchange_folder(one, other)

    lake = small_lake(Slow(clock=watch.now), tmp_path, watch)
    fill(lake)

    compact(lake.config, upkeep=lake.upkeep())

    assert "event_date=2026-11-20/r9-00000.parquet" in lake.places("metrics")
    assert Lake(lake.store).table("metrics").to_arrow().num_rows == 18
