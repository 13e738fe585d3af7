"""Inputs that are nearly right: damaged examples, and damaged inputs that led to something new before."""

from __future__ import annotations

import random
from collections.abc import Sequence

__all__ = ("Corpus",)

_LONGEST = 64 << 10
_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF)
_COUNTS = (
    b"0",
    b"-1",
    b"1e999",
    b"-0.0",
    b"9" * 25,
    b"0.1" + b"1" * 25,
    b"4294967296",
    b"9223372036854775808",
)


class Corpus:
    """What there is to damage; equal seeds give equal inputs as long as the outcomes are equal."""

    def __init__(self, examples: Sequence[bytes], words: Sequence[bytes], *, seed: int) -> None:
        self._chance = random.Random(seed)
        self._bodies = list(examples)
        self._words = list(words)
        self._known: set[str] = set()
        self._untried = list(examples)

    def __len__(self) -> int:
        """How many kinds of outcome were seen."""
        return len(self._known)

    def next(self) -> bytes:
        """An input: each example once as it is, then damaged ones."""
        if self._untried:
            return self._untried.pop()
        body = bytearray(self._pick())
        for _ in range(self._chance.choice((1, 1, 1, 2, 2, 3, 5, 8))):
            self._damage(body)
        return bytes(body[:_LONGEST])

    def learn(self, body: bytes, signature: str) -> None:
        """Keep an input whose outcome is new."""
        if signature not in self._known:
            self._known.add(signature)
            self._bodies.append(body)

    def _pick(self) -> bytes:
        # Newer ones more often: they lead further from the examples.
        count = len(self._bodies)
        return self._bodies[max(self._chance.randrange(count), self._chance.randrange(count))]

    def _span(self, body: bytearray) -> tuple[int, int]:
        start = self._chance.randrange(len(body) + 1)
        return start, min(len(body), start + self._chance.choice((1, 1, 2, 4, 8, 16, 64, 512)))

    def _damage(self, body: bytearray) -> None:
        chance = self._chance
        start, stop = self._span(body)
        match chance.randrange(10):
            case 0 if body:
                body[start % len(body)] ^= 1 << chance.randrange(8)
            case 1 if body:
                body[start % len(body)] = chance.choice((*_NUMBERS, chance.randrange(256)))
            case 2:
                del body[start:stop]
            case 3:
                body[start:start] = body[start:stop] * chance.choice((1, 2, 3, 10, 200))
            case 4 | 5:
                body[start:start] = chance.choice(self._words)
            case 6:
                body[start:stop] = chance.choice(self._words)
            case 7:
                other = self._pick()
                at = chance.randrange(len(other) + 1)
                body[start:] = other[at:]
            case 8:
                del body[start:]
            case _:
                body[start:stop] = chance.choice(_COUNTS)
        del body[_LONGEST:]
