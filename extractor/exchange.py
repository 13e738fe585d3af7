"""Files that take the place of others: published so that a reader by glob sees the old ones or the new ones.

Where the store can exchange two folders, the folder of the partition is made anew beside it, and the two take each
other's place in one step. Elsewhere the old files go first: for a moment a glob sees neither, and never both.
All of it may be cut off anywhere and be done again. Only a holder of the table's lease may do it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from extractor.store import Store

__all__ = ("exchange_files",)

_EXCHANGE = "exchange"


def exchange_files(
    store: Store,
    *,
    staging: str,
    token: str,
    added: Sequence[str],
    removed: Sequence[str],
    old_place: Callable[[str], str] | None,
    beat: Callable[[], None] = lambda: None,
) -> int:
    """Put the staged files `added` where they belong and take `removed` away; the number of files that moved.

    `staging` is the folder of the run, `token` tells its attempts apart. `old_place` says where a removed file
    stands during its grace period; None removes it at once. `beat` is called between folders.
    """
    _rescue(store, staging, frozenset(added), frozenset(removed))
    new, gone = _by_folder(added), _by_folder(removed)
    moved = 0
    for folder in sorted({*new, *gone}):
        beat()
        coming, going = new.get(folder, []), gone.get(folder, [])
        standing = {stored.path for stored in store.list(folder) if stored.path.rpartition("/")[0] == folder}
        if standing.issuperset(coming) and standing.isdisjoint(going):
            continue
        moved += len(standing.intersection(going)) + len(set(coming) - standing)
        if not coming:
            _take_away(store, folder, standing, going, old_place)
        elif standing and store.has_folder_exchange:
            _exchange(store, folder, standing, coming, going, old_place, staging, token)
        else:
            _one_by_one(store, standing, coming, going, old_place, staging)
    _rescue(store, staging, frozenset(added), frozenset(removed))
    return moved


def _take_away(
    store: Store,
    folder: str,
    standing: Collection[str],
    going: Sequence[str],
    old_place: Callable[[str], str] | None,
) -> None:
    leaving = [path for path in going if path in standing]
    if old_place is None:
        store.delete_files(leaving)
        return
    if len(leaving) == len(standing) and next(store.list(old_place(folder)), None) is None:
        # The whole folder: one step where the store has one.
        store.move_folder(folder, old_place(folder))
        return
    store.copy_files([(path, old_place(path)) for path in leaving])
    store.delete_files(leaving)


def _exchange(
    store: Store,
    folder: str,
    standing: Collection[str],
    coming: Sequence[str],
    going: Sequence[str],
    old_place: Callable[[str], str] | None,
    staging: str,
    token: str,
) -> None:
    beside = f"{staging}/{_EXCHANGE}/{token}"
    leaving = frozenset(going)
    if old_place is not None:
        # First, so that a reader which holds an older entry finds them all the time.
        store.copy_files([(path, old_place(path)) for path in going if path in standing])
    kept = [path for path in standing if path not in leaving and path not in coming]
    store.copy_files([(path, f"{beside}/{path}") for path in kept])
    store.copy_files(
        [(path if path in standing else f"{staging}/{path}", f"{beside}/{path}") for path in coming]
    )
    store.exchange_folder(f"{beside}/{folder}", folder)


def _one_by_one(
    store: Store,
    standing: Collection[str],
    coming: Sequence[str],
    going: Sequence[str],
    old_place: Callable[[str], str] | None,
    staging: str,
) -> None:
    leaving = [path for path in going if path in standing]
    if old_place is not None:
        store.copy_files([(path, old_place(path)) for path in leaving])
    store.delete_files(leaving)
    for path in coming:
        if path not in standing:
            store.move(f"{staging}/{path}", path)


def _rescue(store: Store, staging: str, added: Collection[str], removed: Collection[str]) -> None:
    """Remove what exchanges left behind, and put back what came into a folder while it was exchanged.

    Nothing does come while the lease is held; but a holder that slept may have lost it.
    """
    start = f"{staging}/{_EXCHANGE}/"
    left = [stored.path for stored in store.list(start)]
    for path in left:
        place = path.removeprefix(start).partition("/")[2]
        if place not in added and place not in removed and not store.exists(place):
            store.copy_files([(path, place)])
    if left:
        store.delete_folder(start)


def _by_folder(paths: Iterable[str]) -> Mapping[str, list[str]]:
    folders: dict[str, list[str]] = {}
    for path in paths:
        folders.setdefault(path.rpartition("/")[0], []).append(path)
    return folders
