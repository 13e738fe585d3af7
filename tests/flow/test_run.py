from __future__ import annotations

import base64
import subprocess
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest

import extractor
from extractor.catalog import load_catalog

# Children that are off unless named, and that have a truth.
NAMED = (
    "invoice_pdfs",
    "service_detail",
    "config_detail",
    "user_detail",
    "user_api_key_detail",
    "project_detail",
    "agent_detail",
    "email_channel_detail",
    "backup_schedule_detail",
    "restore_detail",
    "service_backups",
    "role_detail",
    "invite_detail",
    "architectures",
)
REDUCED = ("providers", "topologies", "services", "service_replicas", "notifications", "metrics")


def included(*names: str) -> list[str]:
    return [flag for name in names for flag in ("--include", name)]


def data_files(lake: Path) -> dict[str, int]:
    """Every data file by its path in the lake, with its size."""
    return {
        path.relative_to(lake).as_posix(): path.stat().st_size
        for path in lake.rglob("*.parquet")
        if "_extractor" not in path.parts
    }


# --- a whole account ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def twice(healthy: Any, module_program: Any) -> tuple[Any, Any, dict[str, int]]:
    """Two runs over everything on one day, and the files that there were between them."""
    argv = [*included("*", *NAMED), "-vv"]
    first = module_program.run(healthy, "lake", *argv)
    assert first.code == 0, first.complaint
    assert healthy.judge(module_program.lake("lake")) == {}
    between = data_files(module_program.lake("lake"))
    return first, module_program.run(healthy, "lake", *argv), between


def test_every_table_that_is_on_equals_the_truth_and_so_do_named_details(
    twice: Any, healthy: Any, module_program: Any
) -> None:
    first, _, _ = twice

    assert first.complaint == ""
    assert " failed" not in first.err
    assert healthy.lacking(module_program.lake("lake")) == set()
    assert {first.statuses[name] for name in NAMED} == {"complete"}
    assert set(first.statuses.values()) == {"complete", "absent", "skipped"}
    assert set(first.told("skipped")) == {"log_credentials", "service_credentials"}


def test_a_complete_table_says_how_its_end_was_seen(twice: Any) -> None:
    first, _, _ = twice

    assert all(first.told("complete").values())
    assert first.told()["services"] == "end of chain seen: no token after page 1"


# What hangs on a window's rows is asked for the rows of this run's windows only.
WINDOWED = {"invoice_details", "invoice_pdfs"}


def test_a_second_run_of_the_day_adds_no_file_for_what_did_not_change(
    twice: Any, module_program: Any, healthy: Any
) -> None:
    _, second, between = twice

    added = set(data_files(module_program.lake("lake"))) - set(between)
    wrong = set(healthy.judge(module_program.lake("lake")))
    assert second.code == 0
    assert {path.partition("/")[0] for path in added} <= WINDOWED
    assert wrong <= WINDOWED
    assert set(between) <= set(data_files(module_program.lake("lake")))


def test_a_child_of_a_windowed_parent_keeps_the_rows_of_earlier_windows(
    twice: Any, module_program: Any, healthy: Any
) -> None:
    assert not WINDOWED & set(healthy.judge(module_program.lake("lake")))


def test_no_file_of_an_event_table_holds_a_row_that_another_holds(twice: Any, module_program: Any) -> None:
    lake = extractor.Lake(str(module_program.lake("lake")))

    events = [
        endpoint
        for endpoint in load_catalog().endpoints.values()
        if endpoint.sync.is_event and endpoint.name in set(lake.tables())
    ]
    for endpoint in events:
        keys = ds.dataset(module_program.lake("lake") / endpoint.name, format="parquet").to_table(
            columns=list(endpoint.key)
        )
        rows = [tuple(row.values()) for row in keys.to_pylist()]
        assert len(rows) == len(set(rows)), endpoint.name
    assert {"notifications", "log_lines", "metrics", "logs"} <= {endpoint.name for endpoint in events}


def test_polars_duckdb_and_pyarrow_read_each_table_by_glob(twice: Any, module_program: Any) -> None:
    duckdb = pytest.importorskip("duckdb")
    polars = pytest.importorskip("polars")
    lake = module_program.lake("lake")
    opened = extractor.Lake(str(lake))

    for name in sorted(set(opened.tables()) - WINDOWED):
        files = [path for path in data_files(lake) if path.startswith(f"{name}/")]
        runs = {part for path in files for part in path.split("/") if part.startswith("run=")}
        pattern = str(lake / name / "**" / (next(iter(runs)) if runs else "") / "*.parquet")
        rows = opened.table(name).to_arrow().num_rows

        assert len(runs) <= 1, name
        assert duckdb.sql(f"SELECT count(*) FROM read_parquet('{pattern}')").fetchall() == [(rows,)], name
        assert polars.scan_parquet(pattern).collect().height == rows, name
        assert ds.dataset(lake / name, partitioning="hive").to_table().num_rows == rows, name


def test_nothing_that_a_run_writes_holds_its_key(twice: Any, module_program: Any) -> None:
    first, second, _ = twice

    assert holders(module_program.folder, module_program.key, first, second) == []


def holders(folder: Path, key: str, *finished: Any) -> list[str]:
    """Where the key stands, plain or as an encoding shows it."""
    # Of base64 there are three forms, by the place where the key begins; the ends depend on what is around it.
    shifted = [base64.b64encode(b"x" * pad + key.encode())[4:-4] for pad in range(3)]
    needles = [key.encode(), key[12:-9].encode(), urllib.parse.quote(key, safe="").encode(), *shifted]
    needles += ["".join(f"%{byte:02X}" for byte in key.encode()).encode(), key.encode().hex().encode()]
    texts = {str(number): (one.out + one.err).encode() for number, one in enumerate(finished)}
    texts |= {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return [name for name, text in texts.items() if any(needle in text for needle in needles)]


# --- what the server does differently -----------------------------------------------------------------------

ODDITIES = (
    "duplicate-samples empty-error-body extra-fields keyinfo-exp-null log-bare-types metrics-space missing-fields "
    "observability-400 rate-headers restores-array retry-after-missing roles-present schedules-need-service "
    "session-404 string-error-timestamp tax-404 token-end-empty write-scopes"
).split()


def test_all_oddities_of_the_api_together_change_no_row(serve: Callable[..., Any], program: Any) -> None:
    site = serve(*[flag for name in ODDITIES for flag in ("--variant", name)], "--gzip", "--clock-skew", "90")

    found = program.run(site, "lake")

    assert (found.code, found.complaint) == (0, "")
    assert site.judge(program.lake("lake")) == {}
    assert site.lacking(program.lake("lake")) == set()
    assert any("extra" in line or "new column" in line for line in found.report["drift"])


def test_an_empty_organization_is_no_failure(serve: Callable[..., Any], program: Any) -> None:
    site = serve("--variant", "organization-empty", "--services", "0", "--notifications", "0")

    found = program.run(site, "lake")

    # Without a user nothing names the organization, so that what hangs on its id cannot be asked for.
    assert (found.code, found.complaint) == (0, "")
    assert set(site.judge(program.lake("lake"))) <= {"orgs", "contracts"}


def test_an_archive_that_grows_is_read_on_and_no_line_comes_twice(
    serve: Callable[..., Any], program: Any
) -> None:
    site = serve("--variant", "growing-archive", "--services", "2")
    argv = included("logs", "log_lines")

    codes = [program.run(site, "lake", *argv).code for _ in range(2)]

    lines = [
        (row["log_id"], row["member"], row["line_number"])
        for row in site.landed(program.lake("lake"), "log_lines")
    ]
    assert codes == [0, 0]
    assert len(lines) == len(set(lines))
    assert "log_lines" not in site.judge(program.lake("lake"))


# --- credentials --------------------------------------------------------------------------------------------


def test_a_token_is_replaced_before_it_ends_and_once_for_all(serve: Callable[..., Any], program: Any) -> None:
    site = serve("--token-ttl", "2", "--latency-ms", "150")
    slowly = ("--set", "source.auth=bearer", "--set", "limits.concurrency=1")

    found = program.run(site, "lake", *slowly, *included(*REDUCED))

    stats = site.stats
    seconds = found.report["seconds"]
    assert found.code == 0, found.complaint
    assert site.judge(program.lake("lake")) == {}
    assert (stats["expired_token_requests"], stats["unauthenticated"]) == (0, 0)
    assert 2 <= stats["tokens_issued"] <= 2 + seconds / 1.5


ACCOUNTS = """
[[accounts]]
name = "north"
key_env = "NORTH_KEY"

[[accounts]]
name = "south"
key_env = "SOUTH_KEY"
organization = "orgsouth"
"""


@pytest.fixture
def two_accounts(serve: Callable[..., Any], program: Any) -> Any:
    program.key = ""
    (program.folder / "skysql-extract.toml").write_text(ACCOUNTS)
    return serve("--key", "northernkey", "--key", "southernkey")


def test_each_account_has_its_own_key_organization_and_partition(two_accounts: Any, program: Any) -> None:
    site = two_accounts

    found = program.run(site, "lake", *included(*REDUCED), NORTH_KEY="northernkey", SOUTH_KEY="southernkey")

    lake = program.lake("lake")
    assert found.code == 0, found.complaint
    assert site.judge(lake, account="north") == {}
    assert site.judge(lake, account="south", query="org=orgsouth") == {}
    assert {path.name for path in (lake / "services").iterdir()} == {"account=north", "account=south"}


@pytest.mark.parametrize("auth", ["api_key", "bearer"])
def test_a_refused_key_of_one_account_denies_its_tables_only(
    two_accounts: Any, program: Any, auth: str
) -> None:
    site = two_accounts

    found = program.run(
        site,
        "lake",
        "--set",
        f"source.auth={auth}",
        *included("providers", "services"),
        NORTH_KEY="northernkey",
        SOUTH_KEY="strangerkey",
    )

    assert found.code == 3
    assert {(table["account"], table["status"]) for table in found.report["tables"]} == {
        ("north", "complete"),
        ("south", "denied"),
    }
    assert site.judge(program.lake("lake"), account="north") == {}


def test_a_failing_run_shows_no_key_either(serve: Callable[..., Any], program: Any) -> None:
    program.key = "skysql.9zzz.canary99." + "Zq3" * 12 + ".deadbeef"
    site = serve("--revoke-after", "20", "--fault", "500=0.1", "--fault", "garbage=0.1")

    argv = ["-vv", *included("services", "service_replicas", "topolog*", "p*")]
    found = program.run(site, "lake", *argv, SKYSQL_EXTRACTOR_DEBUG="1")
    bearer = program.run(site, "lake", *argv, "--set", "source.auth=bearer", SKYSQL_EXTRACTOR_DEBUG="1")

    assert (found.code, bearer.code) == (4, 4)
    assert holders(program.folder, program.key, found, bearer) == []


def test_the_key_does_not_stand_in_the_list_of_processes(healthy: Any, program: Any) -> None:
    child: subprocess.Popen[str] = program.start(healthy, "lake", *included("services"))

    command = Path(f"/proc/{child.pid}/cmdline")
    if not command.exists():
        child.communicate(timeout=60)
        pytest.skip("this system shows no command lines under /proc")
    line = command.read_bytes()
    child.communicate(timeout=60)

    assert program.key.encode() not in line
    assert child.returncode == 0
