"""Old entries of the log, folded: 256 of them in one compressed file, with the lists that nothing newer refers to.

    _extractor/folds/N.json.gz    the entries N-255 to N, and lists by their digest

A fold is written before what it holds is removed, and it is never changed. So a reader that finds an entry or a
list gone looks here, and nothing is ever nowhere. Equal entries make equal folds, whoever writes them.
"""

from __future__ import annotations

import gzip
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import orjson

from extractor.errors import LakeError
from extractor.lists import encoded
from extractor.store import Store, StoreMissing

__all__ = ("FOLD_ENTRIES", "Fold", "Folds", "fold_of")

FOLD_ENTRIES = 256
"""Entries of a fold; part of the format."""

_FOLDS = "_extractor/folds"
_FOLDS_OPEN = 4
_LEVEL = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """Consecutive entries, and lists that only they and older ones refer to, as they were written."""

    last: int
    """The number of its newest entry."""
    entries: tuple[bytes, ...]
    lists: Mapping[str, bytes]


def fold_of(sequence: int) -> int:
    """The number of the newest entry of the fold that an entry belongs to."""
    return -(-sequence // FOLD_ENTRIES) * FOLD_ENTRIES


class Folds:
    """The folds of a lake; a few of them are kept open."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._open: OrderedDict[int, Fold] = OrderedDict()

    def write(self, fold: Fold) -> None:
        """Keep the fold; one that is there already stays, and holds the same entries."""
        body = {
            "entries": [content.decode() for content in fold.entries],
            "lists": {digest: content.decode() for digest, content in fold.lists.items()},
        }
        # Without a time in it, so that two writers write the same.
        self._store.put_if_absent(_path(fold.last), gzip.compress(encoded(body), _LEVEL, mtime=0))

    def numbers(self) -> list[int]:
        """The newest entry of each fold, in order."""
        stems = (
            stored.path.rpartition("/")[2].removesuffix(".json.gz") for stored in self._store.list(_FOLDS)
        )
        return sorted(int(stem) for stem in stems if stem.isdecimal())

    def is_there(self, last: int) -> bool:
        return last in self._open or self._store.exists(_path(last))

    def entry(self, sequence: int) -> bytes | None:
        """The bytes of an entry, None if it was not folded."""
        fold = self.read(fold_of(sequence))
        return None if fold is None else fold.entries[sequence - fold.last - 1]

    def content(self, digest: str, near: int) -> bytes | None:
        """The bytes of a list, None if no fold has it; looked for first where the entry `near` was folded."""
        start = fold_of(near) if near else 0
        numbers = self.numbers()
        # A list is folded with the last entries that refer to it.
        for last in [number for number in numbers if number >= start > 0] + numbers[::-1]:
            fold = self.read(last)
            if fold is not None and digest in fold.lists:
                return fold.lists[digest]
        return None

    def read(self, last: int) -> Fold | None:
        """A fold, None if there is none. Raises: LakeError if it is damaged."""
        found = self._open.get(last)
        if found is None:
            try:
                content = self._store.read(_path(last))
            except StoreMissing:
                return None
            found = _decoded(content, last, self._store.uri)
            self._open[last] = found
        self._open.move_to_end(last)
        while len(self._open) > _FOLDS_OPEN:
            self._open.popitem(last=False)
        return found


def _decoded(content: bytes, last: int, lake: str) -> Fold:
    try:
        body = orjson.loads(gzip.decompress(content))
        entries = tuple(text.encode() for text in body["entries"])
        if len(entries) != FOLD_ENTRIES:
            raise ValueError("entries")
        lists = {digest: text.encode() for digest, text in body["lists"].items()}
    except (AttributeError, EOFError, KeyError, OSError, TypeError, ValueError) as error:
        raise LakeError(
            f"{_path(last)} in lake {lake} is damaged or was changed by hand; "
            "restore it from a copy of the lake"
        ) from error
    return Fold(last=last, entries=entries, lists=lists)


def _path(last: int) -> str:
    return f"{_FOLDS}/{last:020d}.json.gz"
