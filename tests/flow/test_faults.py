from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import extractor
from extractor.catalog import load_catalog
from extractor.digest import row_bytes
from extractor.sandbox.options import FAULT_KINDS

# Every way of paging and every format, with several pages of some of them.
SELECTED = (
    "providers",
    "services",
    "service_replicas",
    "topologies",
    "topology_configs",
    "backups",
    "logs",
    "log_lines",
    "metrics",
    "notifications",
    "bills",
)
PATIENT = ("limits.retry_attempts=12", "limits.retry_seconds=600", "limits.idle_seconds=1")
PAGED = ("duplicate-page", "row-inserted")
# Each 429 stops everybody for a second, each slow answer takes seconds: seldom enough for a short test.
CHANCES = {"429": 0.02, "slow-drip": 0.02, "503": 0.05, "duplicate-page": 0.4, "row-inserted": 0.4}
WORLD = ("--services", "6", "--notifications", "300", "--log-days", "2", "--log-lines", "10")

CASES = {
    **{kind: (f"{kind}={CHANCES.get(kind, 0.1)}",) for kind in FAULT_KINDS},
    "all together": tuple(f"{kind}=0.02" for kind in FAULT_KINDS),
}


@pytest.fixture(scope="module")
def finished(serve: Callable[..., Any], module_program: Any) -> Iterator[dict[str, tuple[Any, Any]]]:
    """For each kind of fault the sandbox and the run through it; four at a time, as they mostly wait."""
    selection = [flag for name in SELECTED for flag in ("--include", name)]
    settings = [flag for setting in PATIENT for flag in ("--set", setting)]

    def run(name: str) -> tuple[Any, Any]:
        flags = [flag for fault in CASES[name] for flag in ("--fault", fault)]
        flags += ["--variant", "bursts"] if name == "503" else []
        site = serve(*WORLD, *flags)
        return site, module_program.run(site, name, *selection, *settings)

    with ThreadPoolExecutor(4) as threads:
        yield dict(zip(CASES, threads.map(run, CASES), strict=True))


def identities(lake: Any, table: str) -> list[tuple[object, ...]]:
    key = load_catalog().endpoints[table].key
    rows = extractor.Lake(str(lake)).table(table).to_arrow().select(list(key)).to_pylist()
    return [tuple(map(str, row.values())) for row in rows]


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("row-inserted", "all together")])
def test_a_fault_of_the_network_or_server_costs_no_row_and_doubles_none(
    name: str, finished: dict[str, tuple[Any, Any]], module_program: Any
) -> None:
    site, found = finished[name]

    assert found.code == 0, found.complaint
    assert set(found.statuses.values()) == {"complete"}
    assert sum(site.stats["faults"].values()) > 0
    assert site.judge(module_program.lake(name)) == {}


@pytest.mark.parametrize("name", ["row-inserted", "all together"])
def test_rows_that_come_while_pages_are_read_push_no_other_row_out(
    name: str, finished: dict[str, tuple[Any, Any]], module_program: Any
) -> None:
    site, found = finished[name]
    lake = module_program.lake(name)

    before, after = site.truth("when=start"), site.truth()
    assert found.code == 0, found.complaint
    for table in SELECTED:
        path = site.lake_tables[table]
        landed = {row_bytes(row) for row in site.landed(lake, table)}
        assert site.rows(before[path][0], "when=start") <= landed, table
        assert landed <= site.rows(after[path][0]), table
        keys = identities(lake, table)
        assert len(keys) == len(set(keys)), table


def test_a_request_that_a_fault_met_is_sent_again_once_and_is_counted(
    finished: dict[str, tuple[Any, Any]],
) -> None:
    for kind in ("500", "503", "truncate", "garbage", "429", "stall"):
        site, found = finished[kind]
        figures, stats = found.report["requests"], site.stats

        assert figures["retried"] == stats["faults"][kind], kind
        assert figures["sent"] == stats["requests"], kind


def test_no_request_is_sent_behind_the_limiters_back(finished: dict[str, tuple[Any, Any]]) -> None:
    site, found = finished["reset"]

    assert found.report["requests"]["sent"] == site.stats["requests"]
