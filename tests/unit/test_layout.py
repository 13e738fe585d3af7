"""Sorted rows are the same rows, in runs of one series; encodings are small, and such as every reader takes."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import duckdb
import polars
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from extractor.batch import Stamp, stamp_schema
from extractor.catalog import load_catalog
from extractor.decode.openmetrics import METRIC_SCHEMA, read_metrics
from extractor.endpoint import Endpoint, read_endpoint
from extractor.layout import GROUP_ROWS, dictionary_columns, sort_columns, sort_rows, writer_options
from extractor.schema import UTC_TIME, plan_schema

CATALOG = load_catalog().endpoints
METRICS = CATALOG["metrics"]
MIDNIGHT = datetime(2026, 1, 15, tzinfo=UTC)
TAKEN_BY_ALL = {"PLAIN", "RLE", "RLE_DICTIONARY", "DELTA_BINARY_PACKED"}


def scrape() -> pa.RecordBatch:
    """Forty series of four servers; the last ten have labels of their own."""
    lines = [
        f'{name}{{namespace="db.orders", server_name="Server-{server}", server_type="server", '
        f'service_name="orders", topology_type="es"{label}}} 0\n'
        for name, label in [
            *((f"mariadb_status_{number:02d}", "") for number in (4, 2, 6, 0, 5, 1, 3)),
            *(("mariadb_pages", f', state="{state}", kind="x"') for state in ("dirty", "free", "data")),
        ]
        for server in (3, 1, 0, 2)
    ]
    (batch,) = read_metrics(io.BytesIO("".join(lines).encode()), body_bytes_max=1 << 20)
    return batch


def scrapes(minutes: int, seed: int = 7) -> pa.Table:
    """A table as that many runs write it, one a minute; half of the series never change."""
    chance = random.Random(seed)
    head = scrape()
    levels = [float(chance.randrange(10**6)) for _ in range(head.num_rows)]
    parts = []
    for minute in range(minutes):
        started = MIDNIGHT + timedelta(minutes=minute, seconds=chance.random())
        levels = [level + chance.randrange(1000) * (n % 2) for n, level in enumerate(levels)]
        by_server = {
            f"Server-{n}": started - timedelta(milliseconds=chance.randrange(60_000)) for n in range(4)
        }
        own = {
            "value": levels,
            "timestamp": [by_server[server] for server in head["server_name"].to_pylist()],
            "_run_id": [f"{started:%Y%m%dT%H%M%SZ}-{chance.getrandbits(32):08x}"] * head.num_rows,
            "_extracted_at": [started + timedelta(seconds=1)] * head.num_rows,
            "_account": ["acme"] * head.num_rows,
            "_event_date": [date(2026, 1, 15)] * head.num_rows,
        }
        arrays = [
            head[field.name]
            if field.name in head.schema.names and field.name not in own
            else pa.array(own.get(field.name, [None] * head.num_rows), field.type)
            for field in file_schema(METRICS)
        ]
        parts.append(pa.Table.from_arrays(arrays, schema=file_schema(METRICS)))
    return pa.concat_tables(parts)


def file_schema(endpoint: Endpoint) -> pa.Schema:
    stamp = Stamp(run_id="", account="acme", snapshot_at=MIDNIGHT, is_event=endpoint.sync.is_event)
    return stamp_schema(plan_schema(endpoint, customer_data_allowed=True).arrow, stamp)


def in_order(table: pa.Table, endpoint: Endpoint) -> pa.Table:
    return pa.concat_tables(sort_rows(table, endpoint))


def texts(table: pa.Table) -> list[str]:
    return [repr(row) for row in table.to_pylist()]


def write(path: Path, groups: Iterator[pa.Table] | list[pa.Table], *, is_compacted: bool = True) -> Path:
    groups = list(groups)
    options = writer_options(groups[0], compression="zstd", is_compacted=is_compacted)
    with pq.ParquetWriter(path, groups[0].schema, **options) as writer:
        for group in groups:
            writer.write_table(group, row_group_size=group.num_rows)
    return path


def chunks(path: Path) -> Iterator[pq.ColumnChunkMetaData]:
    metadata = pq.read_metadata(path)
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            yield metadata.row_group(group).column(number)


# --- order --------------------------------------------------------------------------------------------------


def test_metrics_stand_by_name_and_server_then_series_then_time_and_no_row_is_changed() -> None:
    table = scrapes(30).replace_schema_metadata({"written by": "a test"})

    found = in_order(table, METRICS)

    order = [
        (
            row["name"],
            row["namespace"],
            row["service_name"],
            row["server_name"],
            row["_series"],
            row["timestamp"],
        )
        for row in found.to_pylist()
    ]
    assert order == sorted(order)
    assert sorted(texts(found)) == sorted(texts(table))
    assert found.schema.equals(table.schema, check_metadata=True)


def test_a_series_is_the_key_without_the_time() -> None:
    columns = ["log_id", "member", "line_number", "line", "timestamp"]

    assert sort_columns(CATALOG["log_lines"], columns) == ("log_id", "member", "line_number", "timestamp")


def test_where_the_key_only_names_rows_they_stand_by_time() -> None:
    assert sort_columns(CATALOG["logs"], ["id", "name", "startTime"]) == ("startTime", "id")


def test_all_versions_of_a_column_whose_type_was_corrected_count() -> None:
    columns = ["name", "timestamp", "_series", "timestamp__v2"]

    assert sort_columns(METRICS, columns) == ("name", "_series", "timestamp", "timestamp__v2")


def test_rows_without_a_time_come_last_in_their_series_and_equal_rows_stay_as_they_came() -> None:
    table = pa.table(
        {
            "_series": pa.array([2, 1, 2, 1, None, 2, 1], pa.int64()),
            "timestamp": pa.array([None, 5, 3, None, 1, 3, None], pa.int64()).cast(UTC_TIME),
            "value": pa.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
        }
    )

    assert in_order(table, METRICS)["value"].to_pylist() == [1.0, 3.0, 6.0, 2.0, 5.0, 0.0, 4.0]


def test_maps_have_no_order_so_rows_are_ordered_without_them() -> None:
    table = read_endpoint(
        "t", {"path": "/t", "key": ["labels", "at"], "sync": {"kind": "append"}}, file="t.toml"
    )
    labels = pa.array([[("b", "1")], [("a", "2")], None], METRIC_SCHEMA.field("labels").type)
    rows = pa.table({"labels": labels, "at": [2, 1, 1], "value": [1.0, 2.0, 3.0]})

    assert in_order(rows, table)["value"].to_pylist() == [2.0, 3.0, 1.0]
    assert in_order(rows.drop_columns(["at"]), table)["value"].to_pylist() == [1.0, 2.0, 3.0]


def test_a_table_without_rows_has_no_row_groups() -> None:
    assert list(sort_rows(file_schema(METRICS).empty_table(), METRICS)) == []


def test_dictionaries_are_sorted_like_the_text_that_they_stand_for(tmp_path: Path) -> None:
    parts = [scrapes(20), scrapes(20, seed=8)]
    paths = [write(tmp_path / f"{n}.parquet", [part], is_compacted=False) for n, part in enumerate(parts)]
    names = dictionary_columns(pq.read_metadata(paths[0]))

    encoded = pa.concat_tables(pq.ParquetFile(path, read_dictionary=names).read() for path in paths)

    assert {"name", "namespace", "_run_id", "_account"} <= set(names)
    assert pa.types.is_dictionary(encoded.schema.field("name").type)
    assert in_order(encoded, METRICS).equals(in_order(pa.concat_tables(parts), METRICS))


def test_only_text_that_a_file_holds_as_dictionaries_is_read_as_such(tmp_path: Path) -> None:
    table = pa.table({"line": [f"line {n}" for n in range(100)], "level": ["note"] * 100, "entry": [1] * 100})

    path = write(tmp_path / "x.parquet", [table])

    assert dictionary_columns(pq.read_metadata(path)) == ("level",)


def test_a_dictionary_may_hold_a_value_twice() -> None:
    names = pa.DictionaryArray.from_arrays(pa.array([0, 1, 2, 0], pa.int32()), pa.array(["b", "a", "b"]))
    table = pa.table({"name": names, "_series": [1, 1, 1, 1], "timestamp": [4, 3, 2, 1]})

    assert in_order(table, METRICS)["timestamp"].to_pylist() == [3, 1, 2, 4]


def test_row_groups_are_bounded_in_rows_and_bytes() -> None:
    table = scrapes(20)
    whole = in_order(table, METRICS)

    by_rows = list(sort_rows(table, METRICS, group_rows=300))
    by_bytes = list(sort_rows(table, METRICS, group_rows=300, group_bytes=table.nbytes // 8))

    assert [group.num_rows for group in by_rows] == [300, 300, 200]
    assert max(group.num_rows for group in by_bytes) <= 100
    assert pa.concat_tables(by_rows).equals(whole)
    assert pa.concat_tables(by_bytes).equals(whole)


# --- encodings ----------------------------------------------------------------------------------------------


def test_every_column_of_every_table_is_named_by_its_path_in_the_file() -> None:
    for name, endpoint in CATALOG.items():
        table = file_schema(endpoint).empty_table()
        sink = io.BytesIO()

        options = writer_options(table, compression="zstd")

        pq.write_table(table, sink, **options)
        schema = pq.ParquetFile(sink).schema
        columns = [schema.column(number) for number in range(len(schema))]
        named = {*options["use_dictionary"], *options["column_encoding"]}
        assert named == {column.path for column in columns if column.physical_type != "BOOLEAN"}, name


def test_each_column_gets_the_encoding_of_its_values(tmp_path: Path) -> None:
    rows = 5000
    nested = pa.struct([("times", pa.list_(UTC_TIME)), ("open", pa.map_(pa.string(), pa.int64()))])
    table = pa.table(
        {
            "state": ["ready", "failed"] * (rows // 2),
            "note": [f"note {number}" for number in range(rows)],
            "size": pa.array([number % 3 for number in range(rows)], pa.int64()),
            "number": pa.array(range(rows), pa.int64()),
            "price": pa.array([1.5] * rows),
            "is_on": [True] * rows,
            "nested": pa.array(
                [{"times": [MIDNIGHT + timedelta(seconds=n)] * 2, "open": [("k", n)]} for n in range(rows)],
                nested,
            ),
        }
    )

    options = writer_options(table, compression="snappy")

    assert options["use_dictionary"] == [
        "state",
        "size",
        "nested.times.list.element",
        "nested.open.key_value.key",
    ]
    assert options["column_encoding"] == {
        "note": "PLAIN",
        "number": "DELTA_BINARY_PACKED",
        "price": "PLAIN",
        "nested.open.key_value.value": "DELTA_BINARY_PACKED",
    }
    path = write(tmp_path / "x.parquet", [table], is_compacted=False)
    assert pq.read_table(path).equals(table)
    assert set().union(*(chunk.encodings for chunk in chunks(path))) <= TAKEN_BY_ALL


def test_the_sample_is_taken_from_the_whole_table_not_from_its_first_rows() -> None:
    begins_alike = [f"note {max(0, number - 3000)}" for number in range(40_000)]

    options = writer_options(pa.table({"note": begins_alike}), compression="zstd")

    assert options["use_dictionary"] == []


def test_pages_of_a_compacted_file_may_be_as_long_as_its_row_groups() -> None:
    options = writer_options(scrapes(1), compression="zstd", is_compacted=True)

    assert options["max_rows_per_page"] == GROUP_ROWS


@pytest.mark.parametrize("compression", ["zstd", "snappy", "gzip", "lz4", "none"])
def test_every_compression_of_the_settings_is_taken(compression: str, tmp_path: Path) -> None:
    table = in_order(scrapes(5), METRICS)
    options = writer_options(table, compression=compression, is_compacted=True)

    pq.write_table(table, tmp_path / "x.parquet", **options)

    assert pq.read_table(tmp_path / "x.parquet").equals(table)


# --- both together ------------------------------------------------------------------------------------------


def test_a_compacted_sample_takes_less_than_three_bytes_in_encodings_that_all_readers_have(
    tmp_path: Path,
) -> None:
    table = scrapes(480)
    by_default = tmp_path / "default.parquet"
    pq.write_table(in_order(table, METRICS), by_default, compression="zstd")

    path = write(tmp_path / "x.parquet", sort_rows(table, METRICS))

    sizes = {file: sum(chunk.total_compressed_size for chunk in chunks(file)) for file in (path, by_default)}
    assert sizes[path] < 3 * table.num_rows
    assert sizes[path] < 0.75 * sizes[by_default]
    assert set().union(*(chunk.encodings for chunk in chunks(path))) <= TAKEN_BY_ALL


def test_duckdb_polars_and_pyarrow_read_a_compacted_file_back_equal(tmp_path: Path) -> None:
    expected = in_order(scrapes(60), METRICS)
    path = write(tmp_path / "x.parquet", [expected])

    found = {
        "pyarrow": pq.read_table(path),
        "DuckDB": duckdb.connect().read_parquet(str(path)).to_arrow_table(),
        "polars": polars.read_parquet(path).to_arrow(),
    }

    for reader, table in found.items():
        for field in expected.schema:
            if pa.types.is_map(field.type):
                pairs = pa.list_(pa.struct([("key", pa.string()), ("value", pa.string())]))
                ours, theirs = expected[field.name].cast(pairs), table[field.name].cast(pairs)
                assert ours.to_pylist() == theirs.to_pylist(), reader
            else:
                assert table[field.name].cast(field.type).equals(expected[field.name]), (reader, field.name)
    assert pc.sum(pc.list_value_length(expected["labels"].cast(pairs))).as_py() > 0
