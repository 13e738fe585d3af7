from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from extractor.cli.app import invoke
from extractor.clock import SystemClock
from extractor.commit import Update, commit, old_path
from extractor.commitlog import CommitLog
from extractor.compaction import compact
from extractor.endpoint import Endpoint, Parent, Sync, Window
from extractor.errors import ConfigError, LakeBusy, LakeError
from extractor.lease import Leases
from extractor.places import ASIDE
from extractor.repair import Repair, repair
from extractor.store import Store
from extractor.stores.local import LocalStore
from extractor.stores.memory import MemoryStore, PowerLost
from extractor.upkeep import Upkeep
from tests.unit.lakes import Watch, small_lake

FIRST = datetime(2026, 3, 1, tzinfo=UTC)
TABLES = {
    "services": [{"id": "a", "size": 1}, {"id": "b", "size": 2}],
    "notices": [{"id": "x", "at": "2026-03-01T01:00:00Z", "window": "2026-03-01"}],
    "bills": [
        {"id": "m", "amount": 1.5, "window": "2026-03"},
        {"id": "f", "amount": 2.0, "window": "2026-02"},
    ],
}

OPEN = Sync(kind="window", window=Window(from_param="from", replace=True))


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return LocalStore(tmp_path / "lake") if request.param == "local" else MemoryStore()


@pytest.fixture
def past(store: Store, nights: Any, syncs: dict[str, Any]) -> Any:
    """Two nights; the second one changed services and February's bill, and saw another notice."""
    found = nights(store, types={"id": "string", "at": "timestamp"})
    found.night(TABLES, syncs=syncs)
    found.night(
        {
            "services": [{"id": "a", "size": 5}, {"id": "c", "size": 2}],
            "notices": [{"id": "y", "at": "2026-03-02T01:00:00Z", "window": "2026-03-02"}],
            "bills": [{"id": "f", "amount": 2.5, "window": "2026-02"}],
        },
        syncs=syncs,
    )
    return found


def flip(store: Store, path: str) -> None:
    """One bit of one byte, in the middle."""
    content = bytearray(store.read(path))
    content[len(content) // 2] ^= 1
    store.put(path, bytes(content))


def paths(past: Any, table: str, as_of: str | None = None) -> list[str]:
    return [file.path for file in past.lake.files(table, as_of)]


def told(past: Any, *arguments: Any, **more: Any) -> list[tuple[str, str]]:
    return [(found.kind, found.path) for found in past.lake.verify(*arguments, **more).findings]


def mend(past: Any, **more: Any) -> Repair:
    lake = past.lake
    return repair(lake.store, lake.log, lake.verify(everything=True).findings, **more)


def ids(past: Any, table: str, as_of: str | None = None) -> list[str]:
    found: list[str] = past.lake.table(table, as_of=as_of).to_arrow()["id"].to_pylist()
    return sorted(found)


# --- verify -------------------------------------------------------------------------------------------------


def test_a_sound_lake_has_no_differences(past: Any) -> None:
    report = past.lake.verify()

    assert (report.findings, report.exit_code, report.run_id) == ((), 0, "night-2")
    assert (report.files, report.rows) == (5, 6)
    assert past.lake.verify(everything=True).files == 7
    assert past.lake.verify("night-1").files == 4


def test_one_byte_flipped_one_file_removed_and_one_added_are_each_named(past: Any, store: Store) -> None:
    (flipped,), (removed, _) = paths(past, "services"), paths(past, "notices")
    added = f"{flipped.rpartition('/')[0]}/part-00001.parquet"
    store.put(added, store.read(flipped))
    flip(store, flipped)
    store.delete(removed)

    report = past.lake.verify()

    assert [(found.kind, found.path, found.rows) for found in report.findings] == [
        ("missing", removed, 1),
        ("damaged", flipped, 2),
        ("extra", added, 0),
    ]
    assert report.exit_code == 8
    assert report.to_json()["exit_code"] == 8


def test_every_byte_of_every_file_counts(past: Any, store: Store) -> None:
    (path,) = paths(past, "services")
    content = store.read(path)
    for place in range(0, len(content), 97):
        store.put(path, content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :])
        assert told(past) == [("damaged", path)]
    store.put(path, content[:-1])
    assert told(past) == [("damaged", path)]
    store.put(path, content)
    assert told(past) == []


def test_files_of_earlier_runs_are_read_where_they_are_asked_for(past: Any, store: Store) -> None:
    (earlier,) = paths(past, "services", "night-1")
    flip(store, earlier)

    assert told(past) == []
    assert told(past, "night-1") == [("damaged", earlier)]
    assert told(past, everything=True) == [("damaged", earlier)]
    with pytest.raises(ConfigError, match="no run night-3"):
        past.lake.verify("night-3")


def test_any_file_in_the_folder_of_a_table_is_extra_and_none_elsewhere(past: Any, store: Store) -> None:
    extra = [
        "notices/account=default/event_date=2026-03-01/x.parquet",
        "services/.hidden",
        "services/notes.txt",
    ]
    for path in (*extra, "other/part.parquet", "readme.txt", "_extractor/anything"):
        store.put(path, b"?")

    assert told(past) == [("extra", path) for path in extra]


def test_files_that_are_committed_and_not_yet_published_are_in_order(
    store: Store, nights: Any, syncs: dict[str, Any]
) -> None:
    past = nights(store, types={"id": "string", "at": "timestamp"})
    past.night(TABLES, syncs=syncs, moves=False)

    assert past.lake.verify().findings == ()
    assert past.lake.verify().rows == 5


def test_files_that_a_later_entry_removed_are_not_missed(past: Any, store: Store) -> None:
    (earlier,) = paths(past, "services", "night-1")
    dropping(past, {earlier: ()})
    assert told(past, everything=True) == []

    store.move(earlier, old_path(earlier))
    assert told(past, everything=True) == []
    store.delete(old_path(earlier))
    assert told(past, everything=True) == []
    assert past.lake.verify("night-1").dropped == 1


def test_a_file_that_was_removed_and_is_back_in_its_place_is_extra(past: Any, store: Store) -> None:
    (earlier,) = paths(past, "services", "night-1")
    content = store.read(earlier)
    dropping(past, {earlier: ()})
    store.delete_folder("_extractor/staging/expiry")
    store.delete(earlier)
    assert told(past, everything=True) == []

    store.put(earlier, content)

    assert told(past, everything=True) == [("extra", earlier)]


def test_a_file_removed_by_a_commit_beside_the_verification_is_not_missed(
    nights: Any, syncs: dict[str, Any]
) -> None:
    class Expiring(MemoryStore):
        """The old snapshot goes just before it is read."""

        target = ""

        def open_input(self, path: str) -> Any:
            if path == self.target:
                self.target = ""
                dropping(past, {path: ()})
                self.delete(path)
            return super().open_input(path)

    store = Expiring()
    past = nights(store, types={"id": "string", "at": "timestamp"})
    past.night(TABLES, syncs=syncs)
    past.night({"services": []})
    (store.target,) = paths(past, "services", "night-1")

    assert told(past, everything=True) == []
    assert store.target == ""


def dropping(past: Any, replaced: dict[str, tuple[str, ...]]) -> None:
    """Commit that files were removed, as expiry does."""
    log = CommitLog(past.store)
    moment = past.moment(past.count)
    clock = SystemClock()
    commit(
        past.store,
        log,
        run_id="expiry",
        updates=[],
        summary={},
        source={},
        started_at=moment,
        clock=clock,
        leases=None,
        replaced=replaced,
    )


# What is wrong inside a file that is what was written.


@pytest.mark.parametrize(
    ("change", "kind", "detail"),
    [
        (lambda table: table.slice(0, 1), "rows", "it has 1 rows, the log says 2"),
        (
            lambda table: table.set_column(1, "at", table["id"]),
            "schema",
            "column at is string, the log says timestamp",
        ),
        (lambda table: table.append_column("odd", table["id"]), "schema", "the log knows no column odd"),
        (lambda table: table.drop_columns(["_account"]), "schema", "column _account is not there"),
        (
            lambda table: table.select(["at", "id", *table.schema.names[2:]]),
            "schema",
            "column id stands in another order",
        ),
    ],
)
def test_a_file_that_differs_from_the_log_is_told_by_how(
    change: Callable[[pa.Table], pa.Table], kind: str, detail: str, nights: Any
) -> None:
    past = nights(types={"id": "string", "at": "timestamp"})
    past.night({"services": TABLES["services"]}, rewrite=change)

    (found,) = past.lake.verify().findings

    assert (found.kind, found.path) == (kind, paths(past, "services")[0])
    assert detail in found.detail


def test_a_column_that_older_files_lack_is_no_difference(nights: Any, syncs: dict[str, Any]) -> None:
    past = nights(types={"id": "string", "at": "timestamp"})
    past.night({"notices": TABLES["notices"]}, syncs=syncs)
    past.types["more"] = "int64"
    past.night({"notices": [{**TABLES["notices"][0], "id": "z", "more": 1}]}, syncs=syncs)

    assert told(past, everything=True) == []
    assert past.lake.table("notices").schema.names[:3] == ["id", "at", "more"]


def test_statistics_that_do_not_hold_are_found() -> None:
    from extractor.verify import _statistics_fault

    def written(table: pa.Table) -> Any:
        sink = io.BytesIO()
        pq.write_table(table, sink)
        return pq.ParquetFile(sink).metadata.row_group(0)

    when = pa.array([datetime(2026, 1, 1, tzinfo=UTC), None], pa.timestamp("us", "UTC"))
    numbers = pa.table({"n": [1, 5], "t": ["a", "c"], "w": when, "f": [float("nan"), 1.0]})

    assert _statistics_fault(written(numbers), numbers) is None
    assert _statistics_fault(written(numbers), numbers.set_column(0, "n", pa.array([1, 6]))) is not None
    assert _statistics_fault(written(numbers), numbers.set_column(0, "n", pa.array([0, 5]))) is not None
    assert _statistics_fault(written(numbers), numbers.set_column(1, "t", pa.array(["a", "cc"]))) is not None
    assert _statistics_fault(written(numbers), numbers.set_column(1, "t", pa.array(["a", None]))) is not None
    assert _statistics_fault(written(numbers), numbers.slice(0, 1)) is not None


# A log that is not sound.


def test_a_log_that_is_not_sound_is_one_clear_line(past: Any, store: Store) -> None:
    entry = "_extractor/log/00000000000000000001.json"
    content = store.read(entry)
    store.put(entry, content.replace(b"complete", b"compleat"))
    with pytest.raises(LakeError, match="one of them was changed or replaced") as caught:
        past.lake.verify()
    assert "\n" not in caught.value.message
    store.delete(entry)
    with pytest.raises(LakeError, match="log entry 1 is missing"):
        past.lake.verify()
    store.put(entry, content)
    lists = [stored.path for stored in store.list("_extractor/lists")]
    store.put(lists[0], b"{}")
    with pytest.raises(LakeError, match="was changed after it was written"):
        past.lake.verify(everything=True)


# --- repair -------------------------------------------------------------------------------------------------


def test_a_repaired_lake_is_sound_and_what_was_taken_out_is_kept(past: Any, store: Store) -> None:
    (services,) = paths(past, "services")
    store.put("services/notes.txt", b"mine")
    flip(store, services)
    damaged = store.read(services)

    done = mend(past)

    assert told(past, everything=True) == []
    assert done.moved == {path: f"{ASIDE}/{done.run_id}/{path}" for path in (services, "services/notes.txt")}
    assert store.read(done.moved[services]) == damaged
    assert store.read(done.moved["services/notes.txt"]) == b"mine"
    assert past.lake.entry().run_id == done.run_id
    assert past.lake.entry().status == "repaired"


def test_a_snapshot_goes_back_to_the_newest_earlier_one_that_is_whole(past: Any, store: Store) -> None:
    past.night({"services": [{"id": "d", "size": 1}]})
    newest, middle = paths(past, "services"), paths(past, "services", "night-2")
    flip(store, newest[0])
    flip(store, middle[0])

    done = mend(past)

    assert ids(past, "services") == ["a", "b"]
    state = past.lake.table("services").states[0]
    assert (state.status, state.run_id) == ("partial", "night-1")
    assert past.lake.table("services").key == ("id",)
    assert done.lost == (
        "services: the snapshot of run night-3 (1 row); back to that of run night-1 (2 rows)",
        f"services: 2 rows of {middle[0]}, which only earlier states had",
    )
    # The next run writes its snapshot, even if it is what was lost.
    past.night({"services": [{"id": "d", "size": 1}]})
    assert ids(past, "services") == ["d"]
    assert past.lake.verify(everything=True).findings == ()


def test_what_a_repair_lost_is_told_by_show(
    nights: Any, syncs: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lake = LocalStore(tmp_path / "lake")
    past = nights(lake)
    past.night({"services": [{"id": "a"}]}, syncs=syncs)
    flip(lake, paths(past, "services")[0])

    done = mend(past)

    assert invoke(["show", "latest", "--lake", str(tmp_path / "lake")]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{done.run_id}: repaired, committed ")
    assert rest == [f"warning: lost: {line}" for line in done.lost]


def test_a_snapshot_without_an_earlier_one_is_read_again(nights: Any) -> None:
    past = nights()
    past.night({"services": [{"id": "a"}]})
    flip(past.store, paths(past, "services")[0])

    done = mend(past)

    assert past.lake.tables() == []
    (lost,) = done.lost
    assert lost.startswith(
        "services: the snapshot of run night-1 (1 row); there is no earlier one, and the next run"
    )
    past.night({"services": [{"id": "a"}]})
    assert ids(past, "services") == ["a"]


def test_the_windows_of_lost_events_are_open_again(past: Any, store: Store) -> None:
    first, _ = paths(past, "notices")
    store.delete(first)

    done = mend(past)

    assert ids(past, "notices") == ["y"]
    assert past.lake.table("notices").states[0].state["windows"]["holes"] == ["2026-03-01"]
    assert done.lost == (
        "notices: 1 row of 2026-03-01; the next run reads them again, as far as the API still has them",
    )
    assert done.moved == {}
    assert told(past, everything=True) == []


def notice(name: str, window: str, at: str | None = None) -> dict[str, Any]:
    return {"id": name, "at": at, "window": window}


def windows_of(past: Any, table: str) -> dict[str, Any]:
    found: dict[str, Any] = past.lake.table(table).states[0].state["windows"]
    return found


def without_day(past: Any, syncs: dict[str, Any]) -> None:
    """Four nights that read the windows of two days each; from the second on a row has no time."""
    past.count = 1
    for night in range(2, 6):
        days = [f"2026-03-0{night - 1}", f"2026-03-0{night}"]
        rows = [notice(f"{night}-{day}", day, f"{day}T00:10:00Z") for day in days]
        rows += [notice(f"{night}-none", days[0])] if night > 2 else []
        past.night({"notices": rows}, syncs=syncs)


def test_lost_rows_without_a_day_are_read_again_where_their_run_had_read(
    store: Store, nights: Any, syncs: dict[str, Any]
) -> None:
    past = nights(store, types={"id": "string", "at": "timestamp"})
    without_day(past, syncs)
    lost = next(path for path in paths(past, "notices") if "__/night-3-" in path)
    done_until = windows_of(past, "notices")["done_until"]
    flip(store, lost)

    done = mend(past)

    assert windows_of(past, "notices") == {
        "done_until": done_until,
        "holes": ["2026-03-02", "2026-03-03"],
    }
    assert done.lost == (
        "notices: 1 row of no date; the next run reads them again, as far as the API still has them",
    )


def test_lost_rows_that_were_merged_are_read_again_where_their_runs_had_read(
    store: Store, tmp_path: Path, nights: Any, syncs: dict[str, Any]
) -> None:
    past = nights(store, types={"id": "string", "at": "timestamp"})
    without_day(past, syncs)
    config = small_lake(store, tmp_path, Watch()).config
    compact(config, ["notices"], upkeep=Upkeep(config, "compact", store=store))
    (lost,) = [path for path in paths(past, "notices") if "__/" in path]
    flip(store, lost)

    mend(past)

    assert windows_of(past, "notices")["holes"] == [f"2026-03-0{day}" for day in (2, 3, 4, 5)]


def test_where_nobody_knows_the_windows_of_lost_rows_all_are_read_again(
    store: Store, nights: Any, syncs: dict[str, Any]
) -> None:
    past = nights(store, types={"id": "string", "at": "timestamp"})
    past.night({"notices": [notice("x", "2026-03-01")]}, syncs=syncs)
    flip(store, paths(past, "notices")[0])

    mend(past)

    assert "windows" not in past.lake.table("notices").states[0].state


def test_a_damaged_reading_of_all_time_is_read_again_from_the_beginning(
    store: Store, nights: Any, syncs: dict[str, Any]
) -> None:
    past = nights(store)
    past.night({"bills": TABLES["bills"][:1]}, syncs=syncs)
    table = past.lake.table("bills")
    (state,) = table.states
    (file,) = state.files
    whole = msgspec.structs.replace(file, partition=(file.partition[0], ("window", "all"), file.partition[2]))
    update = Update(
        table="bills",
        account="default",
        state=replace(state, files=(whole,)),
        expected=table.entry.tables["bills", "default"],
    )
    past._commit("night-2", [update])
    flip(store, file.path)

    mend(past, endpoints={"bills": past.endpoint("bills", OPEN)})

    assert "windows" not in past.lake.table("bills").states[0].state


def test_lost_rows_of_a_child_are_read_again_in_the_windows_of_their_parents(
    store: Store, nights: Any, syncs: dict[str, Any]
) -> None:
    past = nights(store, types={"id": "string", "at": "timestamp"})
    events = {"notices": syncs["notices"], "replies": syncs["notices"]}
    for day in ("2026-03-01", "2026-03-02", "2026-03-03"):
        parent = notice(f"p-{day}", day, f"{day}T00:10:00Z")
        child = notice(f"c-{day}", day, "2026-02-20T00:10:00Z")
        past.night({"notices": [parent], "replies": [child]}, syncs=events)
    endpoints = {
        "notices": past.endpoint("notices", syncs["notices"]),
        "replies": Endpoint(
            name="replies",
            path="/replies/{id}",
            parent=Parent(endpoint="notices", params={"id": "id"}),
            sync=Sync(kind="append"),
        ),
    }
    lost = next(path for path in paths(past, "replies") if "night-2-" in path)
    flip(store, lost)

    mend(past, endpoints=endpoints)

    holes = windows_of(past, "replies")["holes"]
    assert "2026-03-02" in holes
    assert "2026-02-20" not in holes


def test_a_damaged_window_goes_back_to_its_last_whole_reading_and_is_open_again(
    past: Any, store: Store
) -> None:
    february = next(path for path in paths(past, "bills") if "window=2026-02" in path)
    flip(store, february)

    done = mend(past)

    rows = past.lake.table("bills").to_arrow().to_pylist()
    assert {row["id"]: row["amount"] for row in rows} == {"m": 1.5, "f": 2.0}
    assert past.lake.table("bills").states[0].state["windows"]["holes"] == ["2026-02-01"]
    assert done.lost[0].startswith(
        "bills: the reading of window 2026-02 (1 row); back to that of run night-1"
    )


def test_only_foreign_files_need_no_entry(past: Any, store: Store) -> None:
    store.put("services/notes.txt", b"mine")

    done = mend(past)

    assert (done.run_id, done.lost) == ("", ())
    assert past.lake.entry().run_id == "night-2"
    assert list(done.moved) == ["services/notes.txt"]
    assert told(past) == []


def test_a_snapshot_lost_from_the_past_leaves_its_history_readable(past: Any, store: Store) -> None:
    flip(store, paths(past, "services", "night-1")[0])

    mend(past)

    assert sorted(past.lake.history("services").to_arrow()["id"].to_pylist()) == ["a", "c"]


def test_a_repair_waits_for_the_run_that_writes_the_table(past: Any, store: Store) -> None:
    flip(store, paths(past, "services")[0])
    leases = Leases(store, run_id="at-work", clock=SystemClock(), tables=[("services", "default")])
    leases.acquire()
    told_of: list[str] = []
    with pytest.raises(LakeBusy, match="at-work"):
        mend(past, wait_seconds=0)

    done = mend(past, pause=lambda seconds: leases.release(), observe=told_of.append)

    assert done.run_id
    assert len(told_of) == 1
    assert "at-work" in told_of[0]


def test_a_repair_holds_all_its_tables_from_before_it_decides_until_it_is_done(
    nights: Any, syncs: dict[str, Any]
) -> None:
    attempts: list[str] = []

    class Contested(MemoryStore):
        """Whenever a file is opened or moved, another run asks for a table of the repair."""

        is_contested = False

        def open_input(self, path: str) -> BinaryIO:
            self.contest()
            return super().open_input(path)

        def copy_files(self, pairs: Sequence[tuple[str, str]]) -> None:
            self.contest()
            super().copy_files(pairs)

        def contest(self) -> None:
            if not self.is_contested:
                return
            self.is_contested = False
            for table in ("notices", "services"):
                leases = Leases(self, run_id="other", clock=SystemClock(), tables=[(table, "default")])
                try:
                    leases.acquire()
                except LakeBusy:
                    attempts.append(f"{table}: refused")
                else:
                    leases.release()
                    attempts.append(f"{table}: taken")
            self.is_contested = True

    store = Contested()
    past = nights(store, types={"id": "string", "at": "timestamp"})
    past.night(TABLES, syncs=syncs)
    past.night({"services": [{"id": "z", "size": 9}]})
    flip(store, paths(past, "services")[0])
    flip(store, paths(past, "notices")[0])
    findings = past.lake.verify().findings

    store.is_contested = True
    repair(store, past.lake.log, findings)

    assert set(attempts) == {"notices: refused", "services: refused"}
    store.is_contested = False
    leases = Leases(store, run_id="r", clock=SystemClock(), tables=[("services", "default")])
    leases.acquire()


@pytest.mark.parametrize("keep_unsynced", [False, True])
def test_a_repair_that_was_cut_off_is_finished_by_the_next_one(
    keep_unsynced: bool, nights: Any, syncs: dict[str, Any]
) -> None:
    for steps in range(1, 200, 3):
        seconds: list[float] = [0]
        store = MemoryStore(clock=lambda now=seconds: FIRST + timedelta(seconds=sum(now)))  # type: ignore[misc]
        past = nights(store, types={"id": "string", "at": "timestamp"})
        past.night(TABLES, syncs=syncs)
        past.night({"services": [{"id": "z", "size": 9}]})
        services, notices = paths(past, "services")[0], paths(past, "notices")[0]
        flip(past.store, services)
        flip(past.store, notices)
        past.store.put("services/notes.txt", b"mine")
        past.store.lose_power(after_steps=steps)
        try:
            mend(past)
        except PowerLost:
            past.store.crash(keep_unsynced=keep_unsynced)
            mend(past, pause=lambda _, passed=seconds: passed.append(30))
        else:
            return
        assert told(past, everything=True) == []
        assert (ids(past, "services"), past.lake.table("notices").files()) == (["a", "b"], ())
        aside = [stored.path for stored in past.store.list("_extractor/aside")]
        assert all(any(kept.endswith(path) for kept in aside) for path in (services, notices))
    pytest.fail("the power never held long enough")
