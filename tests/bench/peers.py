"""dlt over the same pages, into Parquet files in a folder, with the settings that made it fastest.

`dlt` is its REST source, as its documentation shows it. `dlt-arrow` gives it Arrow tables instead: pages read by
pyarrow, about a megabyte in each call, so that dlt has no row to look at.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dlt
import pyarrow as pa
import pyarrow.json
import requests
from dlt.destinations import filesystem
from dlt.sources.rest_api import rest_api_source

from tests.bench.shapes import arrow_schema

__all__ = ("arrow_source", "rest_source")

_CALL_BYTES = 1 << 20
_TOKEN = b'"next_page_token":"'


def rest_source(base: str, path: str, tables: list[str]) -> Any:
    resources = [
        {
            "name": table,
            "endpoint": {
                "path": f"{path}/{table}",
                "data_selector": "data",
                "paginator": {
                    "type": "cursor",
                    "cursor_path": "next_page_token",
                    "cursor_param": "page_token",
                },
            },
        }
        for table in tables
    ]
    config = {
        "client": {"base_url": base},
        "resource_defaults": {"write_disposition": "append"},
        "resources": resources,
    }
    source = rest_api_source(config, name="bench", parallelized=True)  # type: ignore[arg-type]
    source.max_table_nesting = 0  # objects and lists become JSON text, not tables of their own
    return source


def arrow_source(base: str, path: str, tables: list[str], shape: str) -> Any:
    envelope = pa.schema(
        [("data", pa.list_(pa.struct(list(arrow_schema(shape))))), ("next_page_token", pa.string())]
    )

    @dlt.source(name="bench")
    def source() -> Iterator[Any]:
        for table in tables:
            rows = read_tables(f"{base}{path}/{table}", envelope)
            yield dlt.resource(rows, name=table, write_disposition="append", parallelized=True)

    return source()


def read_tables(url: str, envelope: pa.Schema) -> Iterator[pa.Table]:
    pages: list[bytes] = []
    token = ""
    with requests.Session() as session:
        while True:
            answer = session.get(url, params={"page_token": token})
            answer.raise_for_status()
            pages.append(answer.content)
            begin = answer.content.rfind(_TOKEN) + len(_TOKEN)
            token = answer.content[begin : answer.content.index(b'"', begin)].decode()
            if not token or sum(map(len, pages)) >= _CALL_BYTES:
                yield read_table(pages, envelope)
                pages = []
            if not token:
                return


def read_table(pages: list[bytes], envelope: pa.Schema) -> pa.Table:
    body = b"\n".join(pages)
    table = pyarrow.json.read_json(
        pa.BufferReader(body),
        read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=len(body) + 1),
        parse_options=pyarrow.json.ParseOptions(explicit_schema=envelope, unexpected_field_behavior="error"),
    )
    rows = table.column(0).chunk(0).flatten()
    return pa.Table.from_batches([pa.RecordBatch.from_struct_array(rows)])


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("tool", choices=("dlt", "dlt-arrow"))
    arguments.add_argument("base")
    arguments.add_argument("path")
    arguments.add_argument("tables")
    arguments.add_argument("shape")
    arguments.add_argument("folder", type=Path)
    given = arguments.parse_args()
    tables = given.tables.split(",")
    if given.tool == "dlt":
        source = rest_source(given.base, given.path, tables)
    else:
        source = arrow_source(given.base, given.path, tables, given.shape)
    folder = given.folder.absolute()
    pipeline = dlt.pipeline(
        "bench",
        destination=filesystem(bucket_url=(folder / "lake").as_uri()),
        dataset_name="rows",
        pipelines_dir=str(folder / "pipelines"),
    )
    pipeline.run(source, loader_file_format="parquet").raise_on_failed_jobs()


if __name__ == "__main__":
    main()
