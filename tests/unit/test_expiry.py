from __future__ import annotations

from pathlib import Path

import pytest

from extractor.commit import clean_orphans, roll_forward
from extractor.commitlog import CommitLog
from extractor.compaction import compact
from extractor.errors import ConfigError, LakeError
from extractor.expiry import expire
from extractor.lease import Leases, live_runs
from extractor.store import staged_path
from extractor.stores.memory import MemoryStore
from tests.unit.lakes import SmallLake, Watch, cut_off, rows, small_lake

DAY = 86_400


def fill(lake: SmallLake, days: int = 5) -> None:
    """A snapshot, a day of events and a reading of each of two windows a day."""
    for day in range(days):
        run = f"r{day}"
        lake.run(
            run,
            ("services", f"snapshot_date=2026-11-{20 + day}", rows(run, "a", f"s{day}")),
            ("notices", f"event_date=2026-11-{15 + day}", rows(run, f"n{day}")),
            ("bills", f"window=2026-{10 + day % 2}", rows(run, f"b{day}")),
        )
        lake.watch.pass_seconds(DAY - 60)


def runs_of(lake: SmallLake, table: str) -> list[str]:
    return sorted(place.split("run=")[1].split("/")[0] for place in lake.places(table))


def test_only_the_newest_snapshots_stay_and_each_window_counts_for_itself(lake: SmallLake) -> None:
    fill(lake)

    report = expire(lake.config, keep_last=2, upkeep=lake.upkeep("expire"))

    assert runs_of(lake, "services") == ["r3", "r4"]
    assert runs_of(lake, "bills") == ["r1", "r2", "r3", "r4"]
    assert len(lake.places("notices")) == 5
    assert [(change.name, change.snapshots_removed, change.rows_removed) for change in report.tables] == [
        ("bills", 1, 1),
        ("services", 3, 6),
    ]
    assert lake.ids("services") == ["a", "s4"]
    assert lake.ids("services", "r3") == ["a", "s3"]
    assert lake.ids("bills") == ["b3", "b4"]
    assert lake.hidden("staging") == []


def test_what_was_replaced_long_ago_goes_by_its_age(lake: SmallLake) -> None:
    fill(lake)

    # r0 was replaced four days ago, r1 three; the newest was never.
    report = expire(lake.config, older_than="60h", upkeep=lake.upkeep("expire"))

    assert runs_of(lake, "services") == ["r2", "r3", "r4"]
    assert runs_of(lake, "bills") == ["r1", "r2", "r3", "r4"]
    assert len(lake.places("notices")) == 5
    lake.watch.pass_seconds(1000 * DAY)
    expire(lake.config, older_than="1d", upkeep=lake.upkeep("expire"))
    assert runs_of(lake, "services") == ["r4"]
    assert runs_of(lake, "bills") == ["r3", "r4"]
    assert lake.ids("services") == ["a", "s4"]
    assert report.run_id != ""


def test_days_of_event_tables_go_only_where_the_table_is_named(lake: SmallLake) -> None:
    fill(lake)
    lake.watch.moment = lake.watch.moment.replace(day=25)

    expire(lake.config, ["not*", "services"], older_than="7d", upkeep=lake.upkeep("expire"))
    assert lake.ids("notices") == ["n0", "n1", "n2", "n3", "n4"]
    report = expire(lake.config, ["notices"], older_than="7d", upkeep=lake.upkeep("expire"))

    assert lake.ids("notices") == ["n3", "n4"]
    assert lake.places("notices") == [
        f"event_date=2026-11-{18 + day}/r{3 + day}-00000.parquet" for day in (0, 1)
    ]
    assert [(change.name, change.files_removed, change.rows_removed) for change in report.tables] == [
        ("notices", 3, 3)
    ]
    assert lake.lake.entry().tables["notices", "default"].rows == 2
    assert lake.ids("notices", "r4") == ["n0", "n1", "n2", "n3", "n4"]
    expire(lake.config, ["notices"], keep_last=1, upkeep=lake.upkeep("expire"))
    assert lake.ids("notices") == ["n3", "n4"]


def test_what_was_lacks_the_days_that_are_gone_once_their_grace_is_over(lake: SmallLake) -> None:
    fill(lake)
    lake.watch.moment = lake.watch.moment.replace(day=25)

    expire(lake.config, ["notices"], older_than="7d", upkeep=lake.upkeep("expire", grace_seconds=0))

    assert lake.ids("notices", "r4") == lake.ids("notices") == ["n3", "n4"]


def test_what_is_staged_is_left_alone_as_long_as_the_verb_lives(lake: SmallLake) -> None:
    up = lake.upkeep()
    path = staged_path(up.run_id, "metrics/new.parquet")
    with up.at_work():
        lake.store.put(path, b"new")
        lake.watch.pass_seconds(30)
        assert clean_orphans(lake.store, up.log, live_runs=live_runs(lake.store), resume_seconds=0) == []
        assert lake.store.exists(path)

    assert not lake.store.exists(path)
    assert live_runs(lake.store) == frozenset()


def test_an_event_table_that_loses_all_its_days_is_a_typed_empty_file(lake: SmallLake) -> None:
    fill(lake)
    lake.watch.pass_seconds(400 * DAY)

    expire(lake.config, ["notices"], older_than="90d", upkeep=lake.upkeep("expire"))

    assert lake.ids("notices") == []
    assert lake.lake.table("notices").schema.names == ["id", "_run_id"]
    [place] = lake.places("notices")
    assert place.startswith("event_date=__HIVE_DEFAULT_PARTITION__/")


def test_days_that_runs_read_again_cannot_be_dropped(lake: SmallLake) -> None:
    fill(lake)

    with pytest.raises(ConfigError, match="runs read notices again for 48h back"):
        expire(lake.config, ["notices"], older_than="2d", upkeep=lake.upkeep("expire"))

    assert len(lake.ids("notices")) == 5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "either --keep-last N or --older-than AGE"),
        ({"keep_last": 2, "older_than": "3d"}, "either --keep-last N or --older-than AGE"),
        ({"keep_last": 0}, "must be 1 or more"),
        ({"older_than": "soon"}, "'soon' is no duration"),
        ({"tables": ["service"], "keep_last": 1}, "no table service in lake"),
    ],
)
def test_bad_input_is_one_clear_line_and_changes_nothing(
    given: dict[str, object], message: str, lake: SmallLake
) -> None:
    fill(lake, 2)
    newest = lake.lake.entry()

    with pytest.raises(ConfigError, match=message):
        expire(lake.config, upkeep=lake.upkeep("expire"), **given)  # type: ignore[arg-type]  # as a user might

    assert lake.lake.entry() == newest
    assert lake.hidden("staging") == []


def test_a_dry_run_names_the_files_and_changes_nothing(lake: SmallLake) -> None:
    fill(lake)
    before = {stored.path for stored in lake.store.list("")}

    report = expire(lake.config, keep_last=4, is_dry_run=True, upkeep=lake.upkeep("expire"))

    assert report.paths == ("services/account=default/snapshot_date=2026-11-20/run=r0/part-00000.parquet",)
    assert report.to_json()["paths"] == list(report.paths)
    assert {stored.path for stored in lake.store.list("")} == before


def test_readers_of_an_older_entry_keep_working_and_then_are_told(tmp_path: Path, watch: Watch) -> None:
    lake = small_lake(MemoryStore(clock=watch.now), tmp_path, watch)
    fill(lake)

    report = expire(lake.config, keep_last=1, upkeep=lake.upkeep("expire", grace_seconds=600))

    assert lake.ids("services", "r0") == ["a", "s0"]
    lake.watch.pass_seconds(601)
    roll_forward(lake.store, CommitLog(lake.store))
    assert lake.hidden("old") == []
    with pytest.raises(LakeError, match=f"was dropped by run {report.run_id} .*--as-of"):
        lake.ids("services", "r0")
    assert lake.ids("services") == ["a", "s4"]
    assert lake.ids("notices", "r0") == ["n0"]


def test_a_second_call_finds_nothing(lake: SmallLake) -> None:
    fill(lake)
    expire(lake.config, keep_last=1, upkeep=lake.upkeep("expire"))

    report = expire(lake.config, keep_last=1, upkeep=lake.upkeep("expire"))

    assert (report.tables, report.run_id) == ((), "")


def test_merged_snapshots_are_dropped_as_they_are_now(lake: SmallLake) -> None:
    fill(lake, 1)
    folder = "services/account=default/snapshot_date=2026-11-20/run=r0"
    first = lake.lake.entry()
    compact(lake.config, upkeep=lake.upkeep())
    fill(lake, 3)

    expire(lake.config, ["services"], keep_last=1, upkeep=lake.upkeep("expire"))

    assert runs_of(lake, "services") == ["r2"]
    assert first.tables["services", "default"].folder == folder


def test_it_waits_for_a_run_and_drops_nothing_of_its(lake: SmallLake) -> None:
    fill(lake)
    run = Leases(lake.store, run_id="r9", clock=lake.watch, tables=[("services", "default")])
    run.acquire()
    upkeep = lake.upkeep("expire")

    def pause(seconds: float) -> None:
        lake.run("r9", ("services", "snapshot_date=2026-11-29", rows("r9", "new")))
        run.release()

    upkeep._pause = pause

    expire(lake.config, ["services"], keep_last=1, upkeep=upkeep)

    assert runs_of(lake, "services") == ["r4", "r9"]
    assert lake.ids("services") == ["new"]
    assert lake.ids("services", "r4") == ["a", "s4"]


@pytest.mark.parametrize("keep_unsynced", [False, True])
def test_a_crash_at_any_step_loses_nothing_and_the_next_verb_ends_it(
    keep_unsynced: bool, tmp_path: Path
) -> None:
    def call(lake: SmallLake) -> None:
        expire(lake.config, ["services"], keep_last=1, upkeep=lake.upkeep("expire"))

    places = set()
    for lake in cut_off(tmp_path, lambda lake: fill(lake, 3), call, keep_unsynced=keep_unsynced):
        assert [lake.ids("services", f"r{day}") for day in range(3)] == [["a", f"s{day}"] for day in range(3)]
        places.add(tuple(runs_of(lake, "services")))

        call(lake)
        with lake.upkeep("expire").held(("services", "default")):
            pass
        assert runs_of(lake, "services") == ["r2"]
        assert lake.ids("services") == ["a", "s2"]
        lake.clean()
        assert lake.hidden("staging") == []

    assert places == {("r0", "r1", "r2"), ("r1", "r2"), ("r2",)}
