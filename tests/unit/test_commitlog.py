from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from extractor.commit import roll_forward
from extractor.commitlog import CommitLog
from extractor.errors import LakeError
from extractor.stores.memory import MemoryStore
from tests.unit.commits import LATEST, commit_run, entry_path, snapshot, whole_run


def lake_of_three() -> MemoryStore:
    store = MemoryStore()
    for number in (1, 2, 3):
        whole_run(store, f"r{number}", snapshot(f"r{number}"))
    return store


@pytest.mark.parametrize(
    "hint",
    [
        None,
        b"",
        b"[]",
        b"\xff{",
        b'{"sequence":"3"}',
        b'{"sequence":-1}',
        b'{"sequence":1}',
        b'{"sequence":2}',
        b'{"sequence":99}',
    ],
)
def test_a_hint_that_lags_or_lies_changes_nothing(hint: bytes | None) -> None:
    store = lake_of_three()
    store.delete(LATEST)
    if hint is not None:
        store.put(LATEST, hint)

    newest = CommitLog(store).newest()

    assert newest is not None
    assert newest.sequence == 3


def test_the_newest_entry_is_found_without_reading_the_history() -> None:
    class Counting(MemoryStore):
        reads = 0

        def read(self, path: str) -> bytes:
            self.reads += path.startswith("_extractor/log/")
            return super().read(path)

    store = Counting()
    for number in range(150):
        commit_run(store, f"r{number}")
    for sequence in (150, 149, 100, 1):
        store.put(LATEST, b'{"sequence":%d}' % sequence)
        store.reads = 0

        newest = CommitLog(store).newest()

        assert newest is not None
        assert newest.sequence == 150
        assert store.reads == 2


def changed_by_hand(content: bytes) -> bytes:
    changed = content.replace(b'"requests":7', b'"requests":8')
    assert changed != content
    return changed


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-20], "is damaged or was changed by hand; restore it"),
        (lambda content: b"", "is damaged or was changed by hand; restore it"),
        (lambda content: b"[1]", "is damaged or was changed by hand; restore it"),
        (changed_by_hand, "is damaged or was changed by hand; restore it"),
        (
            lambda content: content.replace(b'"format_version":1', b'"format_version":2'),
            "has format 2, this version reads up to 1; upgrade skysql-extractor",
        ),
    ],
)
@pytest.mark.parametrize("sequence", [2, 3])
def test_an_entry_that_cannot_be_trusted_is_an_error_with_a_remedy(
    damage: Callable[[bytes], bytes], message: str, sequence: int
) -> None:
    store = lake_of_three()
    store.put(entry_path(sequence), damage(store.read(entry_path(sequence))))

    with pytest.raises(LakeError) as caught:
        list(CommitLog(store).entries())
    assert message in caught.value.message
    assert entry_path(sequence) in caught.value.message
    assert "\n" not in caught.value.message
    with pytest.raises(LakeError):
        CommitLog(store).newest()
    with pytest.raises(LakeError):
        commit_run(store, "r4")


def test_a_copied_entry_under_another_number_is_refused() -> None:
    store = lake_of_three()
    store.put(entry_path(4), store.read(entry_path(3)))

    with pytest.raises(LakeError, match="changed by hand"):
        CommitLog(store).newest()


@pytest.mark.parametrize("sequence", [1, 2])
def test_a_missing_number_in_the_middle_is_an_error(sequence: int) -> None:
    store = lake_of_three()
    store.delete(entry_path(sequence))

    for act in (
        lambda: list(CommitLog(store).entries()),
        lambda: list(CommitLog(store).backwards()),
        lambda: CommitLog(store).check_numbers(),
        lambda: roll_forward(store, CommitLog(store)),
    ):
        with pytest.raises(LakeError, match=rf"log entry {sequence} is missing|entry {sequence} as it is"):
            act()


def test_a_hole_behind_the_hint_is_never_filled() -> None:
    store = lake_of_three()
    store.delete(entry_path(2))
    store.put(LATEST, b'{"sequence":1}')

    with pytest.raises(LakeError, match="log entry 2 is missing"):
        commit_run(store, "r4")


def test_an_exchanged_entry_breaks_the_chain() -> None:
    store = lake_of_three()
    other = lake_of_three()
    commit_run(store, "r4")
    store.put(entry_path(3), CommitLogOf(other, "another").content(3))

    for act in (lambda: CommitLog(store).newest(), lambda: list(CommitLog(store).entries())):
        with pytest.raises(LakeError, match=r"log entry 4 .* was not built on entry 3"):
            act()


@dataclass
class CommitLogOf:
    """A lake whose last entry is another run's."""

    store: MemoryStore
    run_id: str

    def content(self, sequence: int) -> bytes:
        self.store.delete(entry_path(sequence))
        commit_run(self.store, self.run_id)
        return self.store.read(entry_path(sequence))


def test_a_changed_list_is_an_error_with_a_remedy() -> None:
    store = MemoryStore()
    entry = whole_run(store, "r1", snapshot("r1"))
    path = f"_extractor/lists/{entry.tables['services', 'default'].digest}.json"
    store.put(path, store.read(path).replace(b"part", b"trap", 1))

    with pytest.raises(LakeError, match="was changed after it was written; restore it"):
        CommitLog(store).state_of(entry, "services", "default")
