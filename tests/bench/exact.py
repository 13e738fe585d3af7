"""The exact path against the plain one, in one process: pages that are already in memory become record batches.

    python -m tests.bench.exact FOLDER CASE [ROUNDS]

Ours is `open_body` and `decode_rows` under a schema that pyarrow's reader cannot represent: a column of free-form
JSON is declared, which no row has. The plain way is `orjson.loads`, `pa.array(rows, struct)` and the casts. All get
the same pages, about a megabyte in each call, in turn; rates are
those of the median round, in CPU seconds of the thread.
The package is that of this folder, or of PYTHONPATH.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from extractor.catalog import load_catalog
from extractor.decode.json import decode_rows, open_body
from extractor.schema import TableSchema, plan_schema
from tests.bench.bare import decode_arrow, decode_exact
from tests.bench.cases import Pages, parse_case
from tests.bench.shapes import arrow_schema
from tests.bench.tools import write_catalogue

__all__ = ("compare",)

_CALL_BYTES = 1 << 20
_PAGES_MAX = 400

Group = list[bytes]


def compare(folder: Path, pages: Pages, rounds: int) -> dict[str, float]:
    """MB of JSON per CPU second of each way, and the ratio of ours to the plain one."""
    groups = _read_groups(folder / pages.name / "e00")
    size = sum(len(page) for group in groups for page in group) / 1e6
    arrow = arrow_schema(pages.shape)
    ways: dict[str, Callable[[Group], object]] = {
        "ours exact": _ours(_schema(pages.shape, is_open=True), is_fast=False),
        "orjson + pa.array": lambda group: decode_exact(group, arrow),
        "ours fast": _ours(_schema(pages.shape, is_open=False), is_fast=True),
        "pyarrow.json": lambda group: decode_arrow(group, arrow),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            began = time.thread_time()
            for group in groups:
                way(group)
            rates[name].append(size / (time.thread_time() - began))
    found = {name: round(median(values), 1) for name, values in rates.items()}
    return {
        **found,
        "exact / plain": _ratio(rates["ours exact"], rates["orjson + pa.array"]),
        "fast / plain": _ratio(rates["ours fast"], rates["pyarrow.json"]),
    }


def _ratio(mine: list[float], theirs: list[float]) -> float:
    return round(median(a / b for a, b in zip(mine, theirs, strict=True)), 3)


def _schema(shape: str, *, is_open: bool) -> TableSchema:
    more = {"anything": "json"} if is_open else {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "catalogue"
        write_catalogue(folder, shape, "", ("e00",), more=more)
        return plan_schema(load_catalog((folder,), builtin=False).endpoints["e00"])


def _ours(schema: TableSchema, *, is_fast: bool) -> Callable[[Group], object]:
    """The way of one table's pages, whose schema goes on from call to call."""
    known = [schema]
    columns = frozenset(column.source for column in schema.fields)
    calls = [0]

    def decode(group: Group) -> object:
        rows = [open_body(page, records="/data", columns=columns).rows for page in group]
        decoded = decode_rows(rows, known[0])
        known[0] = decoded.schema
        # The first call may learn the keys of open maps the exact way.
        if calls[0] and decoded.is_fast != is_fast:
            raise AssertionError(f"pages went the {'fast' if decoded.is_fast else 'exact'} way")
        calls[0] += 1
        return decoded

    return decode


def _read_groups(folder: Path) -> list[Group]:
    groups: list[Group] = [[]]
    for number in range(_PAGES_MAX):
        place = folder / f"p{number or ''}.json"
        if not place.exists():
            break
        groups[-1].append(place.read_bytes())
        if sum(map(len, groups[-1])) >= _CALL_BYTES:
            groups.append([])
    return [group for group in groups if group]


if __name__ == "__main__":
    given = sys.argv[1:]
    case = parse_case(given[1])
    print(json.dumps(compare(Path(given[0]), case.pages, int(given[2]) if len(given) > 2 else 5), indent=1))
