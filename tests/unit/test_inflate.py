from __future__ import annotations

import gzip
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extractor.inflate import Inflater

PLAIN = random.Random(3).randbytes(3000).hex().encode()


def unfolded(squeezed: bytes, step: int) -> bytes:
    inflater = Inflater()
    pieces = [
        piece for at in range(0, len(squeezed), step) for piece in inflater.feed(squeezed[at : at + step])
    ]
    inflater.end()
    return b"".join(pieces)


@given(bodies=st.lists(st.binary(max_size=2000), max_size=4), step=st.integers(1, 500))
def test_any_members_in_any_chunks_unfold_to_what_was_squeezed(bodies: list[bytes], step: int) -> None:
    assert unfolded(b"".join(map(gzip.compress, bodies)), step) == b"".join(bodies)


@pytest.mark.parametrize("missing", [1, 8, 9, 100, 2000])
def test_a_stream_that_lacks_its_end_is_refused(missing: int) -> None:
    with pytest.raises(ValueError):
        unfolded(gzip.compress(PLAIN, mtime=0)[:-missing], 700)


def test_a_stream_whose_checksum_is_another_is_refused() -> None:
    squeezed = bytearray(gzip.compress(PLAIN, mtime=0))
    squeezed[-7] ^= 1

    with pytest.raises(ValueError):
        unfolded(bytes(squeezed), 700)


@pytest.mark.parametrize("text", [b"plain", b"\x1f\x8b\x07", gzip.compress(b"x", mtime=0) + b"more"])
def test_what_is_no_gzip_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError):
        unfolded(text, 700)


def test_a_bomb_comes_in_small_pieces() -> None:
    sizes = [len(piece) for piece in Inflater().feed(gzip.compress(bytes(20 << 20)))]

    assert sum(sizes) == 20 << 20
    assert max(sizes) == 1 << 18
