from __future__ import annotations

import hashlib
import io
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from extractor.commit import Update, commit, old_path, publish
from extractor.commitlog import CommitLog, LogEntry, TableState
from extractor.errors import ConfigError, LakeError
from extractor.lake import FileRow, Lake, RunRow
from extractor.store import Store, staged_path
from extractor.stores.local import LocalStore
from extractor.stores.memory import MemoryStore
from extractor.write import DataFile
from tests.unit.lakes import NOON, Watch


def parquet(table: pa.Table) -> bytes:
    written = io.BytesIO()
    pq.write_table(table, written)
    return written.getvalue()


def rows(run_id: str, *ids: str, **more: pa.Array) -> pa.Table:
    return pa.table({"id": pa.array(ids, pa.string()), "_run_id": pa.array([run_id] * len(ids)), **more})


Contents = Mapping[str, pa.Table]
"""Tables by path."""


def state_of(
    table: str,
    account: str,
    run_id: str,
    contents: Contents,
    earlier: TableState | None = None,
    sync: str = "append",
) -> TableState:
    files = [*(earlier.files if earlier is not None else ())]
    for path, content in contents.items():
        encoded = parquet(content)
        files.append(
            DataFile(
                path=path,
                rows=content.num_rows,
                size_bytes=len(encoded),
                sha256=hashlib.sha256(encoded).hexdigest(),
                partition=(("account", account),),
                content="0" * 32,
            )
        )
    return TableState(
        table=table,
        account=account,
        sync=sync,
        status="complete",
        reason="",
        rows=sum(file.rows for file in files),
        files=tuple(sorted(files, key=lambda file: file.path)),
        columns=(),
        state={},
        run_id=run_id,
        proved_by=run_id,
        snapshot_at=None,
        content="",
    )


def write(
    store: Store,
    run_id: str,
    *written: tuple[TableState, Contents],
    is_published: bool = True,
    status: str = "complete",
    replaced: Mapping[str, Sequence[str]] | None = None,
) -> LogEntry:
    log = CommitLog(store)
    for _, contents in written:
        for path, content in contents.items():
            store.put(staged_path(run_id, path), parquet(content))
    newest = log.newest()
    tables = newest.tables if newest is not None else {}
    entry = commit(
        store,
        log,
        run_id=run_id,
        updates=[
            Update(
                table=state.table,
                account=state.account,
                state=state,
                expected=tables.get((state.table, state.account)),
            )
            for state, _ in written
        ],
        summary={"requests": 3},
        source={},
        started_at=NOON,
        clock=Watch(),
        leases=None,
        status=status,
        replaced=replaced,
    )
    if is_published:
        publish(store, log, entry)
    return entry


def services(
    run_id: str, *ids: str, account: str = "default", **more: pa.Array
) -> tuple[TableState, Contents]:
    folder = f"services/account={account}/snapshot_date=2026-11-22/run={run_id}"
    contents = {f"{folder}/part-00000.parquet": rows(run_id, *ids, **more)}
    return state_of("services", account, run_id, contents, sync="snapshot"), contents


def notices(
    run_id: str, day: str, *ids: str, earlier: TableState | None = None
) -> tuple[TableState, Contents]:
    contents = {f"notices/account=default/event_date={day}/{run_id}-00000.parquet": rows(run_id, *ids)}
    return state_of("notices", "default", run_id, contents, earlier), contents


def ids(lake: Lake, table: str, as_of: str | None = None) -> list[str]:
    found: list[str] = lake.table(table, as_of=as_of).to_arrow().column("id").to_pylist()
    return found


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return LocalStore(tmp_path / "lake") if request.param == "local" else MemoryStore()


@pytest.fixture
def two_runs(store: Store) -> Store:
    """Run r1 wrote both tables, r2 a new snapshot and one more day."""
    first = notices("r1", "2026-11-20", "a", "b")
    write(store, "r1", services("r1", "x", "y"), first)
    write(
        store,
        "r2",
        services("r2", "y", "z"),
        notices("r2", "2026-11-21", "c", earlier=first[0]),
        status="partial",
    )
    return store


def contents(store: Store) -> dict[str, bytes]:
    return {found.path: store.read(found.path) for found in store.list("")}


# What there is.


def test_the_current_state_is_that_of_the_newest_run(two_runs: Store) -> None:
    lake = Lake(two_runs)

    assert lake.tables() == ["notices", "services"]
    assert ids(lake, "services") == ["y", "z"]
    assert ids(lake, "notices") == ["a", "b", "c"]


def test_reading_writes_nothing(two_runs: Store) -> None:
    before = contents(two_runs)
    lake = Lake(two_runs)

    ids(lake, "services"), ids(lake, "notices", as_of="r1"), lake.runs(), lake.files()

    assert contents(two_runs) == before


def test_the_state_as_of_a_run_is_what_it_was_then(two_runs: Store) -> None:
    lake = Lake(two_runs)

    assert ids(lake, "services", "r1") == ["x", "y"]
    assert ids(lake, "notices", "r1") == ["a", "b"]
    assert ids(lake, "notices", "latest") == ["a", "b", "c"]


def test_as_of_a_run_with_several_entries_means_its_last(store: Store) -> None:
    write(store, "r1", services("r1", "x"))
    write(store, "r1", notices("r1", "2026-11-20", "a"))
    write(store, "r2", services("r2", "z"))
    lake = Lake(store)

    assert ids(lake, "notices", "r1") == ["a"]
    assert [(row.run_id, row.sequence) for row in lake.runs()] == [("r1", 2), ("r2", 3)]


def test_runs_come_in_the_order_of_their_commits(two_runs: Store) -> None:
    lake = Lake(two_runs)

    second = RunRow(
        run_id="r2", sequence=2, status="partial", started_at=NOON, committed_at=NOON, summary={"requests": 3}
    )
    assert [row.run_id for row in lake.runs()] == ["r1", "r2"]
    assert lake.runs()[1] == second
    assert lake.run("latest") == second
    assert lake.run("r2") == second


def test_a_run_may_be_named_by_a_unique_beginning(store: Store) -> None:
    for run_id in ("20261122-aa", "20261122-ab", "20261123-aa", "20261123-aabb"):
        write(store, run_id)
    lake = Lake(store)

    assert lake.run("20261122-ab").run_id == "20261122-ab"
    assert lake.run("20261123-aab").run_id == "20261123-aabb"
    assert lake.run("20261123-aa").run_id == "20261123-aa"
    with pytest.raises(ConfigError, match="20261122-ab or 20261122-aa"):
        lake.run("20261122")
    with pytest.raises(ConfigError, match=r"no run 20261122-ac in lake .*did you mean 20261122-a[ab]\?"):
        lake.run("20261122-ac")
    with pytest.raises(ConfigError):
        lake.run("")


def test_files_are_listed_with_what_is_in_them(two_runs: Store) -> None:
    lake = Lake(two_runs)

    found = lake.files()

    assert [(row.table, row.rows, row.path.rpartition("/")[2]) for row in found] == [
        ("notices", 2, "r1-00000.parquet"),
        ("notices", 1, "r2-00000.parquet"),
        ("services", 2, "part-00000.parquet"),
    ]
    content = two_runs.read(found[1].path)
    assert found[1] == FileRow(
        path="notices/account=default/event_date=2026-11-21/r2-00000.parquet",
        table="notices",
        account="default",
        rows=1,
        size_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        partition=(("account", "default"),),
    )
    assert [row.path for row in lake.files("notices", as_of="r1")] == [found[0].path]


def test_unknown_names_are_configuration_errors_with_the_nearest_name(two_runs: Store) -> None:
    lake = Lake(two_runs)

    with pytest.raises(ConfigError, match=r"no table service in lake .*; did you mean services\?"):
        lake.table("service")
    with pytest.raises(ConfigError, match=r"no table zzz in lake .*; there are notices, services"):
        lake.files("zzz")
    with pytest.raises(ConfigError, match=r"no account defualt in table services .* did you mean default\?"):
        lake.table("services", account="defualt")
    with pytest.raises(ConfigError, match="no run r9"):
        lake.table("services", as_of="r9")


def test_an_empty_lake_says_how_to_begin(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))

    assert lake.runs() == []
    for act in (lake.tables, lambda: lake.table("services"), lambda: lake.run("latest"), lake.files):
        with pytest.raises(LakeError, match=r"nothing was committed .* begin with `skysql-extract run`"):
            act()
    assert not (tmp_path / "lake").exists()


# Accounts and columns.


def test_all_accounts_are_read_unless_one_is_named(store: Store) -> None:
    write(store, "r1", services("r1", "x", account="one"), services("r1", "y", account="two"))
    lake = Lake(store)

    assert ids(lake, "services") == ["x", "y"]
    assert lake.table("services", account="two").to_arrow().column("id").to_pylist() == ["y"]
    assert len(lake.table("services", account="one").files()) == 1


def test_files_of_an_older_schema_get_nulls_for_newer_columns(store: Store) -> None:
    first = notices("r9", "2026-11-20", "a")
    write(store, "r9", first)
    tags = pa.array([[("k", "v")]], pa.map_(pa.string(), pa.string()))
    added = rows("r10", "b", size=pa.array([5], pa.int64()), tags=tags)
    newer = {"notices/account=default/event_date=2026-11-19/r10-00000.parquet": added}
    write(store, "r10", (state_of("notices", "default", "r10", newer, first[0]), newer))

    table = Lake(store).table("notices")

    assert table.schema == added.schema
    assert table.to_arrow().schema == added.schema
    assert table.to_arrow().to_pylist() == [
        {"id": "b", "_run_id": "r10", "size": 5, "tags": [("k", "v")]},
        {"id": "a", "_run_id": "r9", "size": None, "tags": None},
    ]
    assert all(batch.schema == added.schema for batch in table.to_batches())


def test_a_column_that_only_another_account_has_is_kept(store: Store) -> None:
    one = services("r1", "x", account="one", a=pa.array([1]), b=pa.array([2]))
    two = services("r1", "y", account="two", c=pa.array([True]))
    write(store, "r1", one, two)

    found = Lake(store).table("services").to_arrow()

    assert found.schema.names == ["id", "_run_id", "a", "b", "c"]
    assert found.to_pylist()[1] == {"id": "y", "_run_id": "r1", "a": None, "b": None, "c": True}


def test_a_table_of_one_typed_empty_file_is_empty_and_typed(store: Store) -> None:
    write(store, "r1", services("r1"))

    found = Lake(store).table("services").to_arrow()

    assert (found.num_rows, found.schema) == (0, rows("r1").schema)


def test_the_partition_in_a_path_is_no_column(store: Store) -> None:
    write(store, "r1", services("r1", "x"))

    assert Lake(store).table("services").to_arrow().schema.names == ["id", "_run_id"]


def test_a_table_without_files_is_known_but_not_listed(store: Store) -> None:
    write(store, "r1", (state_of("services", "default", "r1", {}), {}))
    lake = Lake(store)

    assert lake.tables() == []
    with pytest.raises(LakeError, match="has no files yet"):
        lake.table("services").to_arrow()


# Where files are.


def test_a_committed_file_is_read_from_staging_until_it_is_published(store: Store) -> None:
    write(store, "r1", services("r1", "x"), is_published=False)
    write(store, "r2", notices("r2", "2026-11-20", "a"))
    lake = Lake(store)

    assert ids(lake, "services") == ["x"]
    (row,) = lake.files("services")
    assert lake.locate(row.path, lake.entry()) == staged_path("r1", row.path)


def test_a_file_that_is_published_while_it_is_looked_for_is_found() -> None:
    class Moving(MemoryStore):
        """The publication comes just before the reader looks into staging."""

        def open_input(self, path: str) -> BinaryIO:
            if path.startswith("_extractor/staging/"):
                publish(self, CommitLog(self), entry)
            return super().open_input(path)

    store = Moving()
    entry = write(store, "r1", services("r1", "x"), is_published=False)

    assert ids(Lake(store), "services") == ["x"]


def test_a_file_in_its_grace_period_is_still_read(two_runs: Store) -> None:
    lake = Lake(two_runs)
    (row,) = lake.files("services", as_of="r1")

    two_runs.move(row.path, old_path(row.path))

    assert ids(lake, "services", "r1") == ["x", "y"]


def test_a_file_that_is_nowhere_is_named_with_a_run_that_is_whole(two_runs: Store) -> None:
    lake = Lake(two_runs)
    (row,) = lake.files("services")
    two_runs.delete(row.path)

    with pytest.raises(LakeError) as caught:
        lake.table("services").to_arrow()

    assert row.path in caught.value.message
    assert "--as-of r1" in caught.value.message
    assert "\n" not in caught.value.message
    assert ids(lake, "services", "r1") == ["x", "y"]
    with pytest.raises(LakeError, match="--as-of r1"):
        lake.locate(row.path, lake.entry())


def test_without_a_whole_run_the_remedy_is_a_copy(two_runs: Store) -> None:
    lake = Lake(two_runs)
    for row in (*lake.files("services", as_of="r1"), *lake.files("notices", as_of="r1")):
        two_runs.delete(row.path)

    with pytest.raises(LakeError, match="restore it from a copy"):
        ids(lake, "notices")


def test_a_damaged_file_is_an_error_with_a_remedy(two_runs: Store) -> None:
    lake = Lake(two_runs)
    (row,) = lake.files("services")
    two_runs.put(row.path, two_runs.read(row.path)[:-20])

    with pytest.raises(LakeError, match="is damaged; run `skysql-extract verify`"):
        ids(lake, "services")


def test_a_reader_beside_publications_always_sees_one_commit_whole(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    state, content = notices("r0", "2026-11-01", "0")
    write(store, "r0", services("r0", "0"), (state, content))

    def work() -> None:
        earlier = state
        for turn in range(1, 25):
            added = notices(f"r{turn}", f"2026-11-{turn:02d}", str(turn), earlier=earlier)
            earlier = added[0]
            write(store, f"r{turn}", services(f"r{turn}", str(turn)), added)

    seen = set()
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(work)
        while not working.done():
            lake = Lake(LocalStore(tmp_path))
            entry = lake.entry()
            (service,) = ids(lake, "services", entry.run_id)
            assert entry.run_id == f"r{service}"
            assert len(ids(lake, "notices", entry.run_id)) == int(service) + 1
            seen.add(service)
        working.result()
    assert len(seen) > 1


# After files were merged.


@pytest.fixture
def merged(store: Store) -> Store:
    """Runs r1 and r2 added notices; r3 merged them into one file and removed the old ones; r4 added again."""
    first = notices("r1", "2026-11-20", "a", "b")
    second = notices("r2", "2026-11-20", "c", earlier=first[0])
    write(store, "r1", first)
    write(store, "r2", second)
    merge(store, "r3", second[0])
    compacted = CommitLog(store).state_of(Lake(store).entry(), "notices", "default")
    write(store, "r4", notices("r4", "2026-11-21", "d", earlier=compacted))
    return store


def merge(store: Store, run_id: str, state: TableState, *, is_in_grace: bool = False) -> str:
    """Put the notices into one file, and give its path; those of before are gone, or in their grace period."""
    path = f"notices/account=default/event_date=2026-11-20/{run_id}-00000.parquet"
    parts = [pq.read_table(io.BytesIO(store.read(file.path))) for file in state.files]
    content = {path: pa.concat_tables(parts)}
    compacted = state_of("notices", "default", run_id, content)
    write(store, run_id, (compacted, content), replaced={file.path: [path] for file in state.files})
    for file in state.files if not is_in_grace else ():
        store.delete(old_path(file.path))
    return path


def test_as_of_an_earlier_run_follows_merged_files_and_leaves_out_later_rows(merged: Store) -> None:
    lake = Lake(merged)

    assert ids(lake, "notices", "r1") == ["a", "b"]
    assert ids(lake, "notices", "r2") == ["a", "b", "c"]
    assert ids(lake, "notices", "r3") == ["a", "b", "c"]
    assert ids(lake, "notices") == ["a", "b", "c", "d"]


def test_a_run_whose_files_were_merged_is_whole_if_the_merged_ones_are_there(store: Store) -> None:
    first = notices("r1", "2026-11-20", "a")
    second = notices("r2", "2026-11-20", "b", earlier=first[0])
    write(store, "r1", services("r1", "x"), first)
    write(store, "r2", services("r2", "y"), second)
    merge(store, "r3", second[0])
    write(store, "r4", services("r4", "z"))
    lake = Lake(store)
    for run in ("r2", "r4"):
        store.delete(lake.files("services", run)[0].path)

    with pytest.raises(LakeError, match="--as-of r1 reads the newest whole run"):
        ids(lake, "services")
    assert (ids(lake, "services", "r1"), ids(lake, "notices", "r1")) == (["x"], ["a"])


def test_a_run_whose_files_were_merged_is_not_whole_if_the_merged_ones_are_lost(store: Store) -> None:
    first = notices("r1", "2026-11-20", "a")
    second = notices("r2", "2026-11-20", "b", earlier=first[0])
    write(store, "r1", first)
    write(store, "r2", second)
    store.delete(merge(store, "r3", second[0], is_in_grace=True))

    with pytest.raises(LakeError, match="restore it from a copy"):
        ids(Lake(store), "notices")


def test_the_filter_of_merged_files_is_told(merged: Store) -> None:
    lake = Lake(merged)

    assert lake.table("notices", as_of="r1").committed_runs == {"r1"}
    assert lake.table("notices", as_of="r3").committed_runs is None
    assert [row.path.rpartition("/")[2] for row in lake.files("notices", as_of="r1")] == ["r3-00000.parquet"]


def test_files_removed_without_a_replacement_are_read_while_they_are_in_grace(two_runs: Store) -> None:
    lake = Lake(two_runs)
    (row,) = lake.files("services", as_of="r1")
    write(two_runs, "r3", replaced={row.path: []})
    assert not two_runs.exists(row.path)

    assert ids(lake, "services", "r1") == ["x", "y"]

    two_runs.delete(old_path(row.path))
    with pytest.raises(LakeError, match="--as-of r3"):
        ids(lake, "services", "r1")


# What it costs.


def test_listing_runs_does_not_load_arrow(tmp_path: Path) -> None:
    write(LocalStore(tmp_path), "r1", services("r1", "x"))
    program = """
import sys, extractor.lake
assert [row.run_id for row in extractor.lake.Lake(sys.argv[1]).runs()] == ["r1"]
assert "pyarrow" not in sys.modules
"""

    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)
