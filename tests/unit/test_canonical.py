from __future__ import annotations

import io
from datetime import UTC, datetime
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq

from extractor.batch import Stamp, arrivals, stamp_rows, with_arrival
from extractor.decode.json import decode_rows
from extractor.digest import digest_rows
from extractor.endpoint import parse_type
from extractor.schema import RESCUED, Field, TableSchema
from extractor.testing import canonical

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


def schema_of(**types: str) -> TableSchema:
    fields = tuple(Field(name=name, type=parse_type(text), source=name) for name, text in types.items())
    return TableSchema(table="t", fields=fields)


def landed(page: bytes, schema: TableSchema) -> pa.Table:
    """The rows of a page as they are read back from a file."""
    stamp = Stamp(run_id="r1", account="default", snapshot_at=NOON, is_event=False)
    batch = decode_rows([page], schema).batch
    rows = pa.Table.from_batches([with_arrival(batch, arrivals([batch.num_rows], [NOON]))])
    sink = io.BytesIO()
    pq.write_table(stamp_rows(rows, stamp), sink)
    return pq.read_table(io.BytesIO(sink.getvalue()))


def test_rows_come_back_from_a_file_as_the_server_sent_them() -> None:
    types = {
        "id": "int64",
        "at": "timestamp",
        "tags": "map<string, string>",
        "items": "list<struct<price: decimal, spec: json, at: timestamp_naive>>",
        "free": "json",
    }
    page = b"""[{"id":1,"at":"2026-01-09T02:31:43.123456789+02:00","tags":{"b":"2","a":"1"},"new":[1,{"x":null}],
        "items":[{"price":1.50,"spec":{"n":12345678901234567890123},"at":"2026-01-09 00:00:00","odd":true}],
        "free":{"x":0.12345678901234567890}},{"id":"two","tags":{},"items":[],"free":false}]"""

    rows = list(canonical(landed(page, schema_of(**types))))

    item = {"price": 1.5, "spec": {"n": 12345678901234567890123}, "at": "2026-01-09T00:00:00Z", "odd": True}
    first = {
        "id": 1,
        "at": "2026-01-09T00:31:43.123456789Z",
        "tags": {"a": "1", "b": "2"},
        "new": [1, {}],
        "items": [item | {"at": "2026-01-09T00:00:00Z"}],
        "free": {"x": Decimal("0.12345678901234567890")},
    }
    assert digest_rows(rows) == digest_rows([first, {"id": "two", "tags": {}, "items": [], "free": False}])


def test_columns_of_the_extractor_are_left_out() -> None:
    table = landed(b'[{"id":1}]', schema_of(id="int64"))

    assert {name for name in table.schema.names if name.startswith("_")} == {
        *(RESCUED, "_run_id", "_extracted_at", "_account", "_snapshot_at")
    }
    assert list(canonical(table)) == [{"id": 1}]


def test_a_corrected_column_stands_under_the_name_of_its_key() -> None:
    table = pa.table(
        {"x": [1, None, None], "x__v2": [None, "b", None], "y__v2": [3, 3, 3], "z__vb": [4, 4, 4]}
    )

    assert list(canonical(table)) == [
        {"x": 1, "y__v2": 3, "z__vb": 4},
        {"x": "b", "y__v2": 3, "z__vb": 4},
        {"y__v2": 3, "z__vb": 4},
    ]


def test_nanoseconds_go_into_their_time_and_only_into_a_time() -> None:
    whole = datetime(2026, 1, 9, 0, 31, 43, tzinfo=UTC)
    table = pa.table(
        {
            "t": pa.array([whole, whole, None], pa.timestamp("us", "UTC")),
            "t_nanos": [0, 7, None],
            "x": ["a", "b", "c"],
            "x_nanos": [1, 2, 3],
        }
    )

    assert list(canonical(table)) == [
        {"t": "2026-01-09T00:31:43Z", "x": "a", "x_nanos": 1},
        {"t": "2026-01-09T00:31:43.000000007Z", "x": "b", "x_nanos": 2},
        {"x": "c", "x_nanos": 3},
    ]


def test_rescued_values_are_put_back_under_their_keys_at_every_depth() -> None:
    table = pa.table(
        {
            "a": pa.array(
                [{"n": 1, "m": None}], pa.struct([("n", pa.int64()), ("m", pa.struct([("x", pa.int64())]))])
            ),
            "l": [[1, None]],
            RESCUED: ['{"a":{"m":{"y":18446744073709551616}},"l":[1,"x"],"_own":1e400}'],
        }
    )

    assert list(canonical(table)) == [
        {"a": {"n": 1, "m": {"y": 2**64}}, "l": [1, "x"], "_own": 10**400},
    ]
