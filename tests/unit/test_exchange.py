from __future__ import annotations

import pytest

from extractor.commit import old_path
from extractor.exchange import exchange_files
from extractor.store import Store
from extractor.stores.memory import MemoryStore, PowerLost

DAY = "metrics/account=default/event_date=2026-11-20"
STAGING = "_extractor/staging/r9"


def lake(*, has_folder_exchange: bool = True) -> MemoryStore:
    store = MemoryStore(has_folder_exchange=has_folder_exchange)
    for name in ("a", "b", "large", "foreign"):
        store.put(f"{DAY}/{name}", name.encode())
    store.put(f"{STAGING}/{DAY}/merged", b"merged")
    store.put(f"{STAGING}/replaced/x", b"{}")
    return store


def exchange(store: Store, *, token: str = "one", is_kept: bool = True) -> int:
    return exchange_files(
        store,
        staging=STAGING,
        token=token,
        added=[f"{DAY}/merged"],
        removed=[f"{DAY}/a", f"{DAY}/b"],
        old_place=old_path if is_kept else None,
    )


def names(store: Store, folder: str) -> list[str]:
    return [stored.path.rpartition("/")[2] for stored in store.list(folder)]


@pytest.mark.parametrize("has_folder_exchange", [True, False])
def test_new_files_take_the_place_of_old_ones_and_others_stay(has_folder_exchange: bool) -> None:
    store = lake(has_folder_exchange=has_folder_exchange)

    moved = exchange(store)

    assert moved == 3
    assert names(store, DAY) == ["foreign", "large", "merged"]
    assert names(store, old_path(DAY)) == ["a", "b"]
    assert names(store, f"{STAGING}/exchange") == []


def test_done_again_it_changes_nothing_whoever_does_it() -> None:
    store = lake()
    exchange(store)
    before = {stored.path: store.read(stored.path) for stored in store.list("")}

    assert exchange(store, token="two") == 0
    assert {stored.path: store.read(stored.path) for stored in store.list("")} == before


def test_two_attempts_at_once_end_as_one() -> None:
    class Twice(MemoryStore):
        """While one attempt is about to exchange, another one does all of it."""

        is_first = True

        def exchange_folder(self, one: str, other: str) -> None:
            if self.is_first:
                self.is_first = False
                beside = f"{STAGING}/exchange/two/{DAY}"
                pairs = [(f"{STAGING}/{DAY}/merged", f"{beside}/merged")]
                super().copy_files([*pairs, *((f"{DAY}/{n}", f"{beside}/{n}") for n in ("large", "foreign"))])
                super().exchange_folder(f"{STAGING}/exchange/two/{DAY}", other)
            super().exchange_folder(one, other)

    store = Twice()
    for stored in lake().list(""):
        store.put(stored.path, lake().read(stored.path))

    exchange(store)

    assert names(store, DAY) == ["foreign", "large", "merged"]


def test_without_a_grace_period_nothing_is_kept() -> None:
    store = lake()

    exchange(store, is_kept=False)

    assert names(store, "_extractor/old") == []
    assert names(store, DAY) == ["foreign", "large", "merged"]


def test_a_folder_that_is_to_go_moves_as_one() -> None:
    store = lake()
    everything = [f"{DAY}/{name}" for name in names(store, DAY)]

    exchange_files(store, staging=STAGING, token="one", added=[], removed=everything, old_place=old_path)

    assert names(store, DAY) == []
    assert names(store, old_path(DAY)) == ["a", "b", "foreign", "large"]


@pytest.mark.parametrize("has_folder_exchange", [True, False])
def test_a_glob_never_sees_old_and_new_at_once_and_an_older_reader_finds_its_files(
    has_folder_exchange: bool,
) -> None:
    done = lake(has_folder_exchange=has_folder_exchange)
    done.steps = 0
    exchange(done)
    seen = set()

    for after_steps in range(done.steps):
        store = lake(has_folder_exchange=has_folder_exchange)
        store.lose_power(after_steps=after_steps)
        with pytest.raises(PowerLost):
            exchange(store)
        store.crash(keep_unsynced=True)

        standing = set(names(store, DAY)) - {"foreign", "large"}
        seen.add(frozenset(standing))
        assert {"foreign", "large"} <= set(names(store, DAY))
        for name in ("a", "b"):
            assert store.exists(f"{DAY}/{name}") or store.exists(old_path(f"{DAY}/{name}"))
        assert store.exists(f"{DAY}/merged") or store.exists(f"{STAGING}/{DAY}/merged")

        exchange(store, token="two")
        assert names(store, DAY) == ["foreign", "large", "merged"]
        assert names(store, f"{STAGING}/exchange") == []

    if has_folder_exchange:
        assert seen == {frozenset({"a", "b"}), frozenset({"merged"})}
    else:
        assert not [standing for standing in seen if "merged" in standing and standing & {"a", "b"}]
