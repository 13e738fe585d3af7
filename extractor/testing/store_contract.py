"""What every store must do, as checks that its author can run without any test framework.

    for check in CHECKS:
        check(make_an_empty_store())

A check takes a store with nothing in it, returns if the store keeps the rule in the check's name, and fails
an assertion if not.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from extractor.errors import LakeError
from extractor.store import Store, StoreMissing

__all__ = ("CHECKS", "Check")

Check = Callable[[Store], None]

_PATHS_THAT_ESCAPE = ("", "/etc/x", "../x", "a/../../x", "a/..", "./a", "a//b", "a/", "a\0b", "a\ud800")


def what_was_put_is_read(store: Store) -> None:
    store.put("a/b.bin", b"one\0\xff")

    assert store.read("a/b.bin") == b"one\0\xff"


def a_put_replaces_the_whole_file(store: Store) -> None:
    store.put("a", b"a long content")
    store.put("a", b"short")

    assert store.read("a") == b"short"


def an_empty_file_is_a_file(store: Store) -> None:
    store.put("a", b"")

    assert store.exists("a")
    assert store.read("a") == b""


def a_missing_file_has_its_own_error(store: Store) -> None:
    for read in (store.read, store.open_input):
        error = _refusal(lambda read=read: read("no/such"))  # type: ignore[misc]  # mypy infers no default
        assert isinstance(error, StoreMissing)
        assert "no/such" in error.message
        assert store.uri in error.message
        assert "\n" not in error.message
    assert isinstance(_refusal(lambda: store.move("no/such", "a")), StoreMissing)
    assert isinstance(_refusal(lambda: store.move_folder("no/such", "a")), StoreMissing)


def put_if_absent_never_replaces(store: Store) -> None:
    assert store.put_if_absent("log/1", b"first") is True
    assert store.put_if_absent("log/1", b"second") is False
    assert store.read("log/1") == b"first"


def put_if_absent_has_one_winner_among_many(store: Store) -> None:
    for number in range(20):
        path = f"log/{number}"
        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(lambda who, path=path: store.put_if_absent(path, b"%d" % who), range(8)))
        assert sum(won) == 1
        assert store.read(path) == b"%d" % won.index(True)


def a_reader_never_sees_half_a_put(store: Store) -> None:
    contents = (b"a" * 200_000, b"b" * 300_000)
    store.put("f", contents[0])

    def write() -> None:
        for turn in range(30):
            store.put("f", contents[turn % 2])

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        while not writing.done():
            assert store.read("f") in contents
        writing.result()


def a_file_exists_but_its_folder_is_no_file(store: Store) -> None:
    store.put("a/b", b"x")

    assert store.exists("a/b")
    assert not store.exists("a")
    assert not store.exists("a/b/c")
    assert store.stat("a") is None
    assert store.stat("c") is None


def stat_tells_size_and_time_by_the_clock_of_the_store(store: Store) -> None:
    before = store.now()
    store.put("a", b"12345")
    after = store.now()

    found = store.stat("a")

    assert found is not None
    assert (found.path, found.size_bytes) == ("a", 5)
    assert before.tzinfo is not None
    # Some media keep times no finer than a second.
    slack = timedelta(seconds=1)
    assert before - slack <= found.modified_at <= after + slack


def a_list_is_recursive_and_sorted_and_knows_folders_from_prefixes(store: Store) -> None:
    for path in ("a/c", "a/b/d", "a-b/x", "ab/x", "a/b-c", "z"):
        store.put(path, b"x")

    assert [found.path for found in store.list("a")] == ["a/b-c", "a/b/d", "a/c"]
    assert [found.path for found in store.list("a/")] == ["a/b-c", "a/b/d", "a/c"]
    assert [found.path for found in store.list("")] == ["a-b/x", "a/b-c", "a/b/d", "a/c", "ab/x", "z"]
    assert list(store.list("no/such")) == []
    assert [found.size_bytes for found in store.list("z")] == []


def a_delete_may_be_repeated(store: Store) -> None:
    store.put("a/b", b"x")
    store.put("a/c", b"x")

    store.delete("a/b")
    store.delete("a/b")
    store.delete("no/such")

    assert [found.path for found in store.list("")] == ["a/c"]


def deleting_a_folder_leaves_its_neighbours(store: Store) -> None:
    for path in ("a/b/c", "a/b/d/e", "a/bc", "a/b-c"):
        store.put(path, b"x")

    store.delete_folder("a/b")
    store.delete_folder("a/b")

    assert [found.path for found in store.list("")] == ["a/b-c", "a/bc"]


def the_whole_lake_cannot_be_deleted_or_moved(store: Store) -> None:
    store.put("a", b"x")

    for act in (
        lambda: store.delete_folder(""),
        lambda: store.move_folder("", "b"),
        lambda: store.move_folder("a", ""),
    ):
        assert _refusal(act) is not None
    assert store.exists("a")


def a_move_takes_the_file_to_a_folder_that_did_not_exist(store: Store) -> None:
    store.put("a/b", b"x")

    store.move("a/b", "c/d/e")

    assert store.read("c/d/e") == b"x"
    assert not store.exists("a/b")


def a_move_onto_the_same_content_succeeds(store: Store) -> None:
    store.put("a", b"x")
    store.put("b", b"x")

    store.move("a", "b")

    assert [found.path for found in store.list("")] == ["b"]


def a_move_never_replaces_another_content(store: Store) -> None:
    store.put("a", b"x")
    store.put("b", b"y")

    error = _refusal(lambda: store.move("a", "b"))

    assert error is not None
    assert not isinstance(error, StoreMissing)
    assert (store.read("a"), store.read("b")) == (b"x", b"y")


def a_file_that_is_being_moved_is_always_found(store: Store) -> None:
    with ThreadPoolExecutor(1) as pool:
        for turn in range(20):
            store.put(f"a/{turn}", b"x")
            moving = pool.submit(store.move, f"a/{turn}", f"b/{turn}")
            while not moving.done():
                assert store.exists(f"a/{turn}") or store.exists(f"b/{turn}")
            moving.result()


def a_folder_moves_with_all_that_is_in_it(store: Store) -> None:
    store.put("a/b/1", b"1")
    store.put("a/b/c/2", b"2")
    store.put("a/bc", b"3")

    store.move_folder("a/b", "x/y/run=1")

    assert [found.path for found in store.list("")] == ["a/bc", "x/y/run=1/1", "x/y/run=1/c/2"]


def a_folder_move_that_was_cut_off_is_finished(store: Store) -> None:
    store.put("target/1", b"1")
    store.put("target/2", b"2")
    store.put("source/2", b"2")
    store.put("source/3", b"3")

    store.move_folder("source", "target")

    assert [found.path for found in store.list("")] == ["target/1", "target/2", "target/3"]


def a_folder_move_never_replaces_another_content(store: Store) -> None:
    store.put("target/1", b"1")
    store.put("source/1", b"other")

    assert _refusal(lambda: store.move_folder("source", "target")) is not None
    assert (store.read("target/1"), store.read("source/1")) == (b"1", b"other")


def a_folder_moves_in_one_step_where_the_store_says_so(store: Store) -> None:
    if not store.has_atomic_folder_move:
        return
    names = [f"{number:02d}" for number in range(20)]
    for name in names:
        store.put(f"new/{name}", b"x")
    seen: set[int] = set()
    with ThreadPoolExecutor(1) as pool:
        moving = pool.submit(store.move_folder, "new", "place/run=1")
        while not moving.done():
            seen.add(len(list(store.list("place/run=1"))))
        moving.result()
    assert seen <= {0, len(names)}


def a_copied_file_stands_at_both_paths_and_replaces_nothing(store: Store) -> None:
    store.put("a", b"x")
    store.put("b", b"y")

    store.copy_files([("a", "c/d"), ("a", "b"), ("a", "c/d")])
    store.delete("a")

    assert (store.read("c/d"), store.read("b")) == (b"x", b"y")
    assert isinstance(_refusal(lambda: store.copy_files([("no/such", "e")])), StoreMissing)


def many_files_are_deleted_at_once(store: Store) -> None:
    for path in ("a/b", "a/c", "d/e", "f"):
        store.put(path, b"x")

    store.delete_files(["a/b", "no/such", "d/e"])

    assert [found.path for found in store.list("")] == ["a/c", "f"]


def folders_are_exchanged_in_one_step_where_the_store_says_so(store: Store) -> None:
    if not store.has_folder_exchange:
        assert _refusal(lambda: store.exchange_folder("new", "place")) is not None
        return
    old, new = {f"old{number}" for number in range(20)}, {f"new{number}" for number in range(5)}
    for name in old:
        store.put(f"place/day=1/{name}", b"x")
    for name in new:
        store.put(f"staged/day=1/{name}", b"x")
    seen: list[set[str]] = []
    with ThreadPoolExecutor(1) as pool:
        exchanging = pool.submit(store.exchange_folder, "staged/day=1", "place/day=1")
        while not exchanging.done():
            seen.append({found.path.rpartition("/")[2] for found in store.list("place/day=1")})
        exchanging.result()
    # A listing may miss what went while it ran; it never mixes.
    assert all(names <= old or names <= new for names in seen)
    assert {found.path for found in store.list("")} == {
        *(f"staged/day=1/{name}" for name in old),
        *(f"place/day=1/{name}" for name in new),
    }
    assert isinstance(_refusal(lambda: store.exchange_folder("no/such", "place/day=1")), StoreMissing)


def an_output_is_invisible_until_closed(store: Store) -> None:
    output = store.open_output("a/b")
    output.write(b"one")
    output.write(memoryview(b"two").tobytes())
    output.flush()

    assert output.tell() == 6
    assert not store.exists("a/b")
    assert list(store.list("")) == []

    output.close()
    output.close()

    assert output.closed
    assert store.read("a/b") == b"onetwo"


def an_aborted_output_leaves_nothing(store: Store) -> None:
    output = store.open_output("a/b")
    output.write(b"one")

    output.abort()
    output.abort()

    assert output.closed
    assert list(store.list("")) == []


def an_abort_after_the_close_changes_nothing(store: Store) -> None:
    output = store.open_output("a")
    output.write(b"one")
    output.close()

    output.abort()

    assert store.read("a") == b"one"


def an_input_can_be_read_from_anywhere_and_outlives_its_name(store: Store) -> None:
    store.put("a", b"0123456789")

    with store.open_input("a") as found:
        found.seek(-3, 2)
        assert found.read() == b"789"
        store.move("a", "b")
        store.delete("b")
        found.seek(0)
        assert found.read(2) == b"01"


def a_path_that_leaves_the_lake_is_refused(store: Store) -> None:
    store.put("a", b"x")

    for path in _PATHS_THAT_ESCAPE:
        for act in _acts(store, path):
            assert _refusal(act) is not None, path
    assert [found.path for found in store.list("")] == ["a"]


def unusual_names_are_kept_as_they_are(store: Store) -> None:
    names = ("a b", "ä", "a%2Fb", "a=b:c", "…", ".hidden", "a\\b", "日本", "a\nb", "*", "x" * 200)
    for name in names:
        store.put(f"f/{name}", name.encode())

    assert {found.path for found in store.list("f")} == {f"f/{name}" for name in names}
    assert all(store.read(f"f/{name}") == name.encode() for name in names)


def a_local_path_is_the_file_itself(store: Store) -> None:
    store.put("a/b", b"x")

    local = store.local_path("a/b")

    assert local is None or local.read_bytes() == b"x"


def checking_leaves_nothing(store: Store) -> None:
    store.check_writable()

    assert list(store.list("")) == []


def a_lake_that_is_withdrawn_keeps_its_files(store: Store) -> None:
    store.check_writable()
    store.withdraw()
    store.put("a/b", b"x")
    store.withdraw()

    assert [found.path for found in store.list("")] == ["a/b"]


def a_store_can_be_used_by_threads(store: Store) -> None:
    def work(who: int) -> None:
        for turn in range(10):
            store.put(f"{who}/{turn}", b"%d" % turn)
            store.put("shared", b"%d" % who)
            store.move(f"{who}/{turn}", f"moved/{who}-{turn}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))

    assert len(list(store.list("moved"))) == 40


CHECKS: tuple[Check, ...] = (
    what_was_put_is_read,
    a_put_replaces_the_whole_file,
    an_empty_file_is_a_file,
    a_missing_file_has_its_own_error,
    put_if_absent_never_replaces,
    put_if_absent_has_one_winner_among_many,
    a_reader_never_sees_half_a_put,
    a_file_exists_but_its_folder_is_no_file,
    stat_tells_size_and_time_by_the_clock_of_the_store,
    a_list_is_recursive_and_sorted_and_knows_folders_from_prefixes,
    a_delete_may_be_repeated,
    deleting_a_folder_leaves_its_neighbours,
    the_whole_lake_cannot_be_deleted_or_moved,
    a_move_takes_the_file_to_a_folder_that_did_not_exist,
    a_move_onto_the_same_content_succeeds,
    a_move_never_replaces_another_content,
    a_file_that_is_being_moved_is_always_found,
    a_folder_moves_with_all_that_is_in_it,
    a_folder_move_that_was_cut_off_is_finished,
    a_folder_move_never_replaces_another_content,
    a_folder_moves_in_one_step_where_the_store_says_so,
    a_copied_file_stands_at_both_paths_and_replaces_nothing,
    many_files_are_deleted_at_once,
    folders_are_exchanged_in_one_step_where_the_store_says_so,
    an_output_is_invisible_until_closed,
    an_aborted_output_leaves_nothing,
    an_abort_after_the_close_changes_nothing,
    an_input_can_be_read_from_anywhere_and_outlives_its_name,
    a_path_that_leaves_the_lake_is_refused,
    unusual_names_are_kept_as_they_are,
    a_local_path_is_the_file_itself,
    checking_leaves_nothing,
    a_lake_that_is_withdrawn_keeps_its_files,
    a_store_can_be_used_by_threads,
)
"""Every check; each needs a new, empty store."""


def _acts(store: Store, path: str) -> tuple[Callable[[], object], ...]:
    return (
        lambda: store.read(path),
        lambda: store.put(path, b"x"),
        lambda: store.put_if_absent(path, b"x"),
        lambda: store.exists(path),
        lambda: store.stat(path),
        lambda: store.delete(path),
        lambda: store.move("a", path),
        lambda: store.move(path, "b"),
        lambda: store.copy_files([("a", path)]),
        lambda: store.delete_files([path]),
        lambda: store.open_input(path),
        lambda: store.open_output(path),
        lambda: store.local_path(path),
    )


def _refusal(act: Callable[[], object]) -> LakeError | None:
    try:
        act()
    except LakeError as error:
        return error
    return None
