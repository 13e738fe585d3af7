"""A body that is kept as it came, as one row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

import pyarrow as pa

from extractor.errors import BodyTooLarge

__all__ = ("BINARY_SCHEMA", "read_binary")

BINARY_SCHEMA = pa.schema(
    [
        pa.field("content", pa.binary()),
        pa.field("media_type", pa.string()),
        pa.field("size_bytes", pa.int64()),
    ]
)

_PIECE_BYTES = 4 << 20
# One Arrow `binary` value has 32-bit offsets.
_CONTENT_BYTES_MAX = (1 << 31) - 1


def read_binary(source: BinaryIO, *, media_type: str, body_bytes_max: int) -> Iterator[pa.RecordBatch]:
    """One batch of one row: the bytes, their media type as given, and their number; also for no bytes.

    Raises:
        BodyTooLarge: over `body_bytes_max`, or over what one Arrow value can hold.
    """
    bound = min(body_bytes_max, _CONTENT_BYTES_MAX)
    pieces: list[bytes] = []
    total = 0
    while piece := source.read(_PIECE_BYTES):
        total += len(piece)
        if total > bound:
            raise BodyTooLarge(f"the body is larger than {bound} bytes; raise bounds.body_mb")
        pieces.append(piece)
    yield pa.RecordBatch.from_arrays(
        [
            pa.array([b"".join(pieces)], pa.binary()),
            pa.array([media_type], pa.string()),
            pa.array([total], pa.int64()),
        ],
        schema=BINARY_SCHEMA,
    )
