"""A compressed body as it arrives → its plain bytes, a bounded piece at a time, and the proof that all of it came.

HTTP libraries take a stream that ends too early for a whole one where its length is as announced, and unfold a
piece of any size at once.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

__all__ = ("Inflater",)

_PIECE_BYTES = 1 << 18
_GZIP = 16 + zlib.MAX_WBITS


class Inflater:
    """Unfolds one gzip stream, of one or more members; its checksum is verified."""

    __slots__ = ("_is_begun", "_squeezed")

    def __init__(self) -> None:
        self._squeezed = zlib.decompressobj(_GZIP)
        self._is_begun = False

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """What the next bytes unfold to, in pieces of 256 KiB at most.

        Raises: ValueError if they are no gzip.
        """
        while chunk:
            if self._squeezed.eof:  # another member follows
                self._squeezed = zlib.decompressobj(_GZIP)
            self._is_begun = True
            try:
                piece = self._squeezed.decompress(chunk, _PIECE_BYTES)
            except zlib.error as error:
                raise ValueError("no gzip") from error
            if piece:
                yield piece
            chunk = self._squeezed.unconsumed_tail or self._squeezed.unused_data

    def end(self) -> None:
        """All bytes were fed. Raises: ValueError if the stream does not end here; no bytes are an empty body."""
        if self._is_begun and not self._squeezed.eof:
            raise ValueError("cut")
