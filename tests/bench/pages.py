"""The pages of a set as static files, made once: `SET/ENDPOINT/p.json`, `p1.json`, `p2.json`, …

A page is `{"data": [...], "next_page_token": "1"}`; the last one has an empty token. The same seed gives the same
bytes. `expected.json` is written last and says what the rows add up to, and which version of this code made them.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from zlib import crc32

import orjson

from tests.bench import shapes
from tests.bench.cases import Pages, parse_case
from tests.bench.shapes import SHAPES

__all__ = ("make_pages", "write_endpoint")

EXPECTED = "expected.json"


def make_pages(folder: Path, pages: Pages, *, workers: int = 2) -> dict[str, int]:
    """Write the set below `folder` unless it is there; what its rows add up to."""
    place = folder / pages.name
    expected = place / EXPECTED
    source = crc32(b"".join(Path(file).read_bytes() for file in (__file__, shapes.__file__)))
    if not expected.exists() or json.loads(expected.read_text()).get("source") != source:
        shutil.rmtree(place, ignore_errors=True)
        with ProcessPoolExecutor(workers) as pool:
            found = list(pool.map(partial(write_endpoint, place, pages), range(pages.endpoints)))
        totals = {key: sum(part[key] for part in found) for key in found[0]}
        expected.write_text(json.dumps(totals | {"source": source}))
    return dict(json.loads(expected.read_text()))


def write_endpoint(place: Path, pages: Pages, endpoint: int) -> dict[str, int]:
    """Write the chain of one endpoint; its rows, the sum of the checked column, pages and bytes."""
    shape = SHAPES[pages.shape]
    folder = place / pages.names[endpoint]
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(endpoint)  # not for secrets
    span = pages.span(endpoint)
    count = max(1, -(-len(span) // pages.page_size))
    checked = size = 0
    for page in range(count):
        numbers = span[page * pages.page_size : (page + 1) * pages.page_size]
        rows = [shape.make_row(number, chance) for number in numbers]
        checked += sum(int(str(row[shape.checked])) for row in rows)
        token = str(page + 1) if page + 1 < count else ""
        body = orjson.dumps({"data": rows, "next_page_token": token})
        size += len(body)
        (folder / f"p{page or ''}.json").write_bytes(body)
    return {"rows": len(span), "checked": checked, "pages": count, "bytes": size}


if __name__ == "__main__":
    print(json.dumps(make_pages(Path(sys.argv[1]), parse_case(sys.argv[2]).pages)))
