"""Runs into a lake of which a data file was damaged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import extractor

SELECTED = ("--include", "services", "--include", "bills", "--include", "users")


@pytest.mark.parametrize("table", ["services", "bills"])
def test_what_can_be_read_again_is_written_anew(table: str, serve: Callable[..., Any], program: Any) -> None:
    site = serve()
    program.run(site, "lake", *SELECTED)
    damaged = next((program.lake("lake") / table).rglob("*.parquet"))
    damaged.write_bytes(b"rust" + damaged.read_bytes()[4:-8])

    found = program.run(site, "lake", *SELECTED)

    assert (found.code, set(found.statuses.values())) == (0, {"complete"})
    assert site.judge(program.lake("lake")).get(table) is None
    assert damaged.relative_to(program.lake("lake")).as_posix() not in {
        file.path for file in extractor.Lake(str(program.lake("lake"))).files(table)
    }


def test_a_file_without_which_no_row_can_be_told_to_be_new_is_named(
    serve: Callable[..., Any], program: Any
) -> None:
    site = serve()
    program.run(site, "lake", "--include", "notifications")
    for damaged in (program.lake("lake") / "notifications").rglob("*.parquet"):
        damaged.write_bytes(b"rust" + damaged.read_bytes()[4:-8])

    found = program.run(site, "lake", "--include", "notifications")

    assert found.code == 7
    assert found.complaint.startswith("notifications/account=default/event_date=")
    assert "is damaged; run `skysql-extract verify`" in found.complaint
