from __future__ import annotations

import io

import pyarrow as pa
import pytest

from extractor.decode.binary import BINARY_SCHEMA, read_binary
from extractor.errors import BodyTooLarge


@pytest.mark.parametrize("body", [b"", b"%PDF-1.7\n\x00\xff", b"x" * (5 << 20)])
def test_a_body_is_one_row_with_its_bytes_as_they_came(body: bytes) -> None:
    batches = list(read_binary(io.BytesIO(body), media_type="application/pdf", body_bytes_max=8 << 20))

    assert [batch.schema for batch in batches] == [BINARY_SCHEMA]
    assert pa.Table.from_batches(batches).to_pylist() == [
        {"content": body, "media_type": "application/pdf", "size_bytes": len(body)}
    ]


def test_a_body_of_just_the_bound_is_read_and_one_byte_more_is_refused() -> None:
    (batch,) = read_binary(io.BytesIO(b"1234"), media_type="a/b", body_bytes_max=4)

    assert batch.num_rows == 1
    with pytest.raises(BodyTooLarge, match="larger than 4 bytes"):
        list(read_binary(io.BytesIO(b"12345"), media_type="a/b", body_bytes_max=4))
