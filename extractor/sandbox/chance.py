"""Values that look random and depend on seed, kind and index only, cheap enough for 30,000 rows a second."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar
from zlib import crc32

__all__ = ("Chance", "Scramble")

_MASK = (1 << 64) - 1
_Item = TypeVar("_Item")


class Chance:
    """A family of fixed 64-bit values, one for each kind and index."""

    __slots__ = ("_kinds", "_seed")

    def __init__(self, *parts: object) -> None:
        text = "\x1f".join(map(str, parts)).encode()
        self._seed = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest())
        self._kinds: dict[str, int] = {}

    def bits(self, kind: str, index: int) -> int:
        """64 bits; equal arguments give equal bits."""
        salt = self._kinds.get(kind)
        if salt is None:
            salt = self._kinds[kind] = crc32(kind.encode()) * 0x632BE59BD9B4E019 + self._seed
        # The finaliser of splitmix64: neighbours in `index` share no visible pattern.
        z = (salt + index * 0x9E3779B97F4A7C15) & _MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        return z ^ (z >> 31)

    def uuid(self, kind: str, index: int) -> str:
        """A UUID of version 4's form."""
        digits = f"{self.bits(kind, 2 * index):016x}{self.bits(kind, 2 * index + 1):016x}"
        return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"

    def pick(self, kind: str, index: int, choices: Sequence[_Item]) -> _Item:
        """One of `choices`."""
        return choices[self.bits(kind, index) % len(choices)]

    def money(self, kind: str, index: int, most: int) -> float:
        """An amount below `most` with up to four decimals."""
        return (self.bits(kind, index) % (most * 10_000)) / 10_000


class Scramble:
    """A reversible shuffle of 0 to modulus - 1, so that an identifier leads back to its index."""

    __slots__ = ("_back", "_factor", "_modulus", "_shift")

    def __init__(self, factor: int, modulus: int, shift: int) -> None:
        self._factor, self._modulus, self._shift = factor, modulus, shift % modulus
        self._back = pow(factor, -1, modulus)

    def forward(self, index: int) -> int:
        """The number that stands for `index`."""
        return (index * self._factor + self._shift) % self._modulus

    def back(self, number: int) -> int:
        """The index that `number` stands for."""
        return ((number - self._shift) * self._back) % self._modulus
