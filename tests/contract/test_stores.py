from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from extractor.errors import ConfigError, LakeError
from extractor.store import SCRATCH, Store, StoreMissing
from extractor.stores import open_store
from extractor.stores.local import LocalStore
from extractor.stores.memory import MemoryStore, PowerLost
from extractor.testing.store_contract import CHECKS, Check

MakeStore = Callable[[], Store]


@pytest.fixture(params=["local", "memory"])
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> MakeStore:
    if request.param == "local":
        return lambda: LocalStore(tmp_path / "lake")
    return MemoryStore


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_every_store_keeps_the_contract(check: Check, make_store: MakeStore) -> None:
    check(make_store())


def test_the_suite_finds_a_store_that_replaces_what_it_should_not() -> None:
    class Careless(MemoryStore):
        def put_if_absent(self, path: str, content: bytes) -> bool:
            self.put(path, content)
            return True

    failed = []
    for check in CHECKS:
        try:
            check(Careless())
        except AssertionError:
            failed.append(check.__name__)

    assert failed == ["put_if_absent_never_replaces", "put_if_absent_has_one_winner_among_many"]


def test_every_function_that_looks_like_a_check_is_in_the_list() -> None:
    from extractor.testing import store_contract

    functions = {
        value
        for name, value in vars(store_contract).items()
        if callable(value) and getattr(value, "__module__", "") == store_contract.__name__ and name[0] != "_"
    }

    assert functions == set(CHECKS)


# The address of a lake.


def test_a_path_and_a_file_address_are_the_same_lake(tmp_path: Path) -> None:
    open_store(str(tmp_path / "my lake")).put("a", b"x")

    assert open_store((tmp_path / "my lake").as_uri()).read("a") == b"x"
    assert open_store(tmp_path / "my lake").read("a") == b"x"


def test_a_relative_lake_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = open_store("lake")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")

    store.put("a", b"x")

    assert (tmp_path / "lake/a").read_bytes() == b"x"
    assert store.uri == "lake"


@pytest.mark.parametrize("uri", ["s3://bucket/lake", "gs://bucket/lake", "abfss://c@a.dfs/lake"])
def test_object_stores_are_refused_with_the_reason(uri: str) -> None:
    with pytest.raises(ConfigError, match="object stores are not supported yet"):
        open_store(uri)


@pytest.mark.parametrize("uri", ["", " ", "ftp://x/y", "file://otherhost/lake", "file://"])
def test_an_address_that_is_no_lake_is_a_configuration_error(uri: str) -> None:
    with pytest.raises(ConfigError):
        open_store(uri)


def test_opening_a_store_makes_no_folder(tmp_path: Path) -> None:
    store = open_store(tmp_path / "lake")

    assert not store.exists("a")
    assert list(store.list("")) == []
    assert not (tmp_path / "lake").exists()


# Errors of the medium.


def test_a_file_where_the_lake_should_be_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "lake").write_bytes(b"")
    store = LocalStore(tmp_path / "lake")

    with pytest.raises(LakeError) as caught:
        store.put("services/part", b"x")

    assert "services/part" in caught.value.message
    assert str(tmp_path / "lake") in caught.value.message
    assert "choose another lake" in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_a_full_disk_is_told_with_a_remedy_and_leaves_nothing(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    output = store.open_output("a/b")
    (unfinished,) = (tmp_path / SCRATCH).iterdir()
    (descriptor,) = (
        int(link.name)
        for link in Path("/proc/self/fd").iterdir()
        if link.exists() and link.samefile(unfinished)
    )
    with Path("/dev/full").open("wb") as full:
        os.dup2(full.fileno(), descriptor)
    output.write(b"x" * 100)

    with pytest.raises(LakeError, match="No space left on device; free some space"):
        output.close()

    assert output.closed
    assert list(store.list("")) == []
    assert list(store.list(SCRATCH)) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_told_with_a_remedy(tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    lake.mkdir(mode=0o500)

    with pytest.raises(LakeError, match="give this user the right"):
        LocalStore(lake).check_writable()


def test_a_lake_that_came_to_nothing_is_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "mine" / "empty").mkdir(parents=True)
    new, mine, shared = (LocalStore(tmp_path / name) for name in ("new/deep/lake", "mine", "shared"))
    for store in (new, mine, shared):
        store.check_writable()
    LocalStore(tmp_path / "shared").put("_extractor/incoming/of-another", b"x")

    for store in (new, mine, shared):
        store.withdraw()

    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == [
        "mine",
        "mine/empty",
        "shared",
        "shared/_extractor",
        "shared/_extractor/incoming",
        "shared/_extractor/incoming/of-another",
    ]


# Data files.


def test_parquet_is_written_to_an_output_of_every_store(make_store: MakeStore) -> None:
    store = make_store()
    table = pa.table({"id": list(range(1_000))})
    output = store.open_output("services/part-00000.parquet")

    with pq.ParquetWriter(output, table.schema) as writer:
        writer.write_table(table)

    assert not store.exists("services/part-00000.parquet")
    output.close()
    with store.open_input("services/part-00000.parquet") as source:
        assert pq.ParquetFile(source).read() == table


# What a killed process leaves.


def test_unfinished_files_are_in_one_place_and_never_listed(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    output = store.open_output("services/part")
    output.write(b"half")
    output.flush()

    assert list(store.list("")) == []
    assert [found.path.rpartition("/")[0] for found in store.list(SCRATCH)] == [SCRATCH]
    assert not (tmp_path / "services").exists()

    output.abort()
    assert list(store.list(SCRATCH)) == []


# The store in memory loses power.


def acts() -> Iterator[tuple[str, Callable[[Store], object]]]:
    yield "put", lambda store: store.put("a", b"new")
    yield "put_if_absent", lambda store: store.put_if_absent("b", b"new")
    yield "delete", lambda store: store.delete("a")
    yield "move", lambda store: store.move("a", "b")
    yield "move_folder", lambda store: store.move_folder("f", "g")


@pytest.mark.parametrize("act", [act for _, act in acts()], ids=[name for name, _ in acts()])
@pytest.mark.parametrize("keep_unsynced", [False, True])
def test_after_a_crash_a_change_is_there_whole_or_not_at_all(
    act: Callable[[Store], object], keep_unsynced: bool
) -> None:
    def prepared() -> MemoryStore:
        store = MemoryStore()
        for path in ("a", "f/1", "f/2"):
            store.put(path, b"old")
        return store

    def content(store: Store) -> dict[str, bytes]:
        return {found.path: store.read(found.path) for found in store.list("")}

    before = content(prepared())
    finished = prepared()
    finished.steps = 0
    act(finished)
    finished_steps = finished.steps
    finished.crash()
    after = content(finished)
    assert after != before

    for after_steps in range(finished_steps):
        store = prepared()
        store.lose_power(after_steps=after_steps)
        with pytest.raises(PowerLost):
            act(store)
        with pytest.raises(PowerLost):
            store.exists("a")

        store.crash(keep_unsynced=keep_unsynced)

        # A move may leave both names, never none.
        assert content(store) in (before, after, {**before, **after})
        with suppress(StoreMissing):
            act(store)
        assert content(store) == after


def test_a_torn_delete_is_repeated_safely(tmp_path: Path) -> None:
    # Two processes remove the same staging.
    store = LocalStore(tmp_path)
    for number in range(200):
        (tmp_path / "s" / str(number)).mkdir(parents=True)
        (tmp_path / "s" / str(number) / "f").write_bytes(b"x")
    threads = [threading.Thread(target=store.delete_folder, args=("s",)) for _ in range(3)]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not (tmp_path / "s").exists()
