"""Long lists as small immutable pieces, so that a commit writes what it changed and shares the rest.

A list of keys and values is cut behind keys that their own hash picks: equal lists have equal pieces, and one more
item changes the piece it falls into and the few above it. The newest items of a list of files stand apart until
there are enough of them to be worth cutting anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import orjson

__all__ = (
    "Pieces",
    "can_stand_apart",
    "cut",
    "cut_growing",
    "encoded",
    "pair_of",
    "recent_items",
    "sha256",
    "with_recent",
)

_INLINE_ITEMS = 24
_INLINE_BYTES = 24_000
_PIECE_ITEMS = 256
_PIECE_BYTES = 64_000
_CUT = 64
"""A list is cut behind one of so many keys, on average."""
_RECENT = 16
"""So many items stand apart at most: they are written with every commit, the pieces once in so many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pieces:
    """A list of keys and values, cut: its root, the pieces by digest, the keys of each leaf."""

    part: Mapping[str, object]
    contents: Mapping[str, bytes]
    leaves: Mapping[str, frozenset[str]]


def cut(items: Sequence[tuple[str, object]]) -> Pieces:
    """The pieces of items in the order of their keys, equal for equal items; a short list is its root."""
    contents_of = [(key, encoded((key, value))) for key, value in items]
    if len(items) <= _INLINE_ITEMS and sum(len(content) for _, content in contents_of) <= _INLINE_BYTES:
        return Pieces(
            part={"items": [orjson.Fragment(content) for _, content in contents_of]},
            contents={},
            leaves={"": frozenset(key for key, _ in items)},
        )
    contents: dict[str, bytes] = {}
    leaves: dict[str, frozenset[str]] = {}
    level: list[tuple[str, bytes]] = []
    for piece in _runs(contents_of):
        content = encoded({"items": [orjson.Fragment(item) for _, item in piece]})
        digest = sha256(content)
        contents[digest] = content
        leaves[digest] = frozenset(key for key, _ in piece)
        level.append((digest, encoded(digest)))
    height = 0
    while len(level) > 1:
        above: list[tuple[str, bytes]] = []
        for piece in _runs(level):
            content = encoded({"children": [digest for digest, _ in piece]})
            contents[sha256(content)] = content
            above.append((sha256(content), encoded(sha256(content))))
        level, height = above, height + 1
    return Pieces(part={"tree": level[0][0], "height": height}, contents=contents, leaves=leaves)


def cut_growing(items: Sequence[tuple[str, object]], before: object, fresh: Collection[str]) -> Pieces:
    """As `cut`, of a list that was `before` and has got the keys `fresh`: those stand apart while they are few."""
    if not isinstance(before, Mapping) or "tree" not in before:
        return cut(items)
    recent = {key for key, _ in recent_items(before)}.union(fresh)
    apart = [(key, value) for key, value in items if key in recent]
    if len(apart) <= _RECENT:
        pieces = cut([(key, value) for key, value in items if key not in recent])
        if pieces.part.get("tree") == before["tree"]:
            inner = {**pieces.part, **({"recent": apart} if apart else {})}
            return replace(
                pieces, part=inner, leaves={**pieces.leaves, "": frozenset(key for key, _ in apart)}
            )
    return cut(items)


def can_stand_apart(before: object, count: int) -> bool:
    """True where a list is long, and so many more items may still stand apart from its pieces."""
    part = cast(Mapping[str, object], before)
    return "tree" in part and len(cast(list[object], part.get("recent", []))) + count <= _RECENT


def with_recent(before: object, items: Sequence[tuple[str, object]]) -> Mapping[str, object]:
    """The root of a list that has got these items, which stand apart."""
    apart = sorted([*recent_items(before), *items], key=lambda item: item[0])
    return {**cast(Mapping[str, object], before), **({"recent": apart} if apart else {})}


def recent_items(part: object) -> Iterator[tuple[str, object]]:
    """The items of a list that stand apart from its pieces."""
    for item in cast(list[object], cast(Mapping[str, object], part).get("recent", [])):
        yield pair_of(item)


def pair_of(item: object) -> tuple[str, object]:
    """A key and its value, as a list holds them."""
    key, value = cast(list[object], item)
    return str(key), value


def encoded(value: object) -> bytes:
    """The one JSON text of a value: sorted keys, a newline at its end."""
    return orjson.dumps(value, default=_plain, option=orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE)


def sha256(content: bytes) -> str:
    """The digest by which contents are named."""
    return hashlib.sha256(content).hexdigest()


def _runs(items: Sequence[tuple[str, bytes]]) -> Iterator[Sequence[tuple[str, bytes]]]:
    """Consecutive items, cut behind keys that their own hash picks: an insertion moves no cut but its own."""
    piece: list[tuple[str, bytes]] = []
    size_bytes = 0
    for key, content in items:
        piece.append((key, content))
        size_bytes += len(content)
        is_cut = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=4).digest()) % _CUT == 0
        # Two at least, or the levels above would never come to one piece.
        if len(piece) > 1 and (is_cut or len(piece) >= _PIECE_ITEMS or size_bytes >= _PIECE_BYTES):
            yield piece
            piece, size_bytes = [], 0
    if piece:
        yield piece


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"no JSON form for {type(value).__name__}")
