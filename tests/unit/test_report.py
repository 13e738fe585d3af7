from __future__ import annotations

import json
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extractor.report import (
    EXIT_CODES,
    RequestFigures,
    RunReport,
    Status,
    TableReport,
    exit_code_of,
    report_from_json,
)

SHIPS = TableReport(
    name="ships",
    account="eu",
    status="complete",
    rows=7,
    pages=2,
    requests=3,
    files=1,
    size_bytes=900,
    reason="total matched: 7 rows",
)
PORTS = TableReport(
    name="ports",
    account="eu",
    status="partial",
    rows=5,
    pages=1,
    requests=2,
    files=2,
    size_bytes=80,
    reason="1 of 2 requests failed: status 500",
    failures=("/v1/ports/7: status 500",),
)
REPORT = RunReport(
    run_id="r1",
    status="partial",
    exit_code=3,
    lake="/srv/lake",
    started_at="2026-11-22T12:00:00Z",
    finished_at="2026-11-22T12:01:00Z",
    seconds=60.0,
    tables=(SHIPS, PORTS),
    requests=RequestFigures(
        sent=6, succeeded=4, retried=1, throttled=1, failed=1, received_bytes=99, rate_share=0.5
    ),
    drift=("ships: a new column",),
    warnings=("ports: asked twice",),
    message="ports is partial",
)


def table(status: str, *, is_drift_refused: bool = False) -> TableReport:
    return TableReport(
        name=status,
        account="default",
        status=status,  # type: ignore[arg-type]  # one of them
        is_drift_refused=is_drift_refused,
    )


# --- the exit code ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statuses", "code"),
    [
        ([], 0),
        (["complete"], 0),
        (["complete", "absent"], 0),
        (["absent"], 0),
        (["skipped"], 0),
        (["complete", "skipped"], 0),
        (["complete", "partial"], 3),
        (["complete", "failed"], 3),
        (["complete", "denied"], 3),
        (["complete", "held"], 3),
        (["denied", "absent"], 3),
        (["denied"], 4),
        (["denied", "denied", "skipped"], 4),
        (["denied", "failed"], 3),
    ],
)
def test_the_exit_code_is_that_of_the_worst_that_applies_first(statuses: list[str], code: int) -> None:
    assert exit_code_of(table(status) for status in statuses) == code


def test_drift_is_an_exit_code_of_its_own_while_it_is_the_only_fault() -> None:
    drifted = table("held", is_drift_refused=True)

    assert exit_code_of([drifted]) == 6
    assert exit_code_of([drifted, table("complete"), table("absent"), table("skipped")]) == 6
    assert exit_code_of([drifted, table("held")]) == 3
    assert exit_code_of([drifted, table("denied")]) == 3


def test_what_was_left_out_on_purpose_is_no_fault() -> None:
    assert exit_code_of([table("complete"), table("skipped")]) == 0
    assert exit_code_of([table("denied"), table("skipped")]) == 4


@given(st.lists(st.sampled_from(get_args(Status)), max_size=6))
def test_nought_means_that_every_selected_table_is_complete_or_absent(statuses: list[str]) -> None:
    code = exit_code_of(map(table, statuses))

    assert (code == 0) == (set(statuses) <= {"complete", "absent", "skipped"})
    assert code in EXIT_CODES


@given(st.lists(st.sampled_from(get_args(Status)), max_size=6), st.randoms())
def test_the_order_of_tables_does_not_matter(statuses: list[str], chance: Any) -> None:
    shuffled = list(statuses)
    chance.shuffle(shuffled)

    assert exit_code_of(map(table, shuffled)) == exit_code_of(map(table, statuses))


def test_each_code_of_the_contract_has_its_meaning() -> None:
    assert sorted(EXIT_CODES) == [*range(11), 130, 143]
    assert all(EXIT_CODES.values())


# --- the value ----------------------------------------------------------------------------------------------


def test_rows_are_those_of_complete_tables_and_files_those_of_all() -> None:
    assert (REPORT.rows, REPORT.files, REPORT.size_bytes) == (7, 3, 980)


def test_a_report_prints_as_json_under_the_names_of_the_contract() -> None:
    assert json.loads(json.dumps(REPORT.to_json())) == {
        "run_id": "r1",
        "status": "partial",
        "exit_code": 3,
        "lake": "/srv/lake",
        "started_at": "2026-11-22T12:00:00Z",
        "finished_at": "2026-11-22T12:01:00Z",
        "seconds": 60.0,
        "tables": [
            {
                "name": "ships",
                "account": "eu",
                "status": "complete",
                "rows": 7,
                "pages": 2,
                "requests": 3,
                "files": 1,
                "size_bytes": 900,
                "reason": "total matched: 7 rows",
                "failures": [],
                "is_drift_refused": False,
            },
            {
                "name": "ports",
                "account": "eu",
                "status": "partial",
                "rows": 5,
                "pages": 1,
                "requests": 2,
                "files": 2,
                "size_bytes": 80,
                "reason": "1 of 2 requests failed: status 500",
                "failures": ["/v1/ports/7: status 500"],
                "is_drift_refused": False,
            },
        ],
        "requests": {
            "sent": 6,
            "succeeded": 4,
            "retried": 1,
            "throttled": 1,
            "failed": 1,
            "received_bytes": 99,
            "rate_share": 0.5,
        },
        "drift": ["ships: a new column"],
        "warnings": ["ports: asked twice"],
        "message": "ports is partial",
        "rows": 7,
        "files": 3,
        "bytes": 980,
    }


def test_a_report_is_read_back_from_its_json_and_from_that_of_later_versions() -> None:
    written = json.loads(json.dumps(REPORT.to_json()))

    assert report_from_json(written) == REPORT
    written["a_later_key"] = {"x": 1}
    written["tables"][0]["a_later_key"] = 2
    assert report_from_json(written) == REPORT


def test_a_report_of_nothing_is_read_back_too() -> None:
    empty = RunReport(run_id="r", status="complete", exit_code=0, lake="l", started_at="2026-11-22T12:00:00Z")

    assert report_from_json(empty.to_json()) == empty
