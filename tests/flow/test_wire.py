"""Every fault of the list, on real sockets: its exit code, its line, and that it costs nothing once it is gone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import extractor
from extractor.cli.app import invoke
from tests.flow.faulty import (
    CATALOGUE,
    DOCUMENT,
    FAULTS,
    SETTINGS,
    Fault,
    Site,
    documented,
    serving,
)

KEY = "skysql.1zzz.wire1234." + "Wr" * 18 + ".0a1b2c3d"


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with serving() as started:
        yield started


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the catalogue, and a key in the environment."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "own.toml").write_text(CATALOGUE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SKYSQL_API_KEY", KEY)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return tmp_path


def arguments(url: str, *tables: str, settings: tuple[str, ...] = (), attempts: int = 1) -> list[str]:
    told = [
        *SETTINGS,
        'source.catalogs=["own"]',
        f"source.base_url={url}",
        f"limits.retry_attempts={attempts}",
        *settings,
    ]
    flags = [flag for setting in told for flag in ("--set", setting)]
    flags += [flag for table in tables for flag in ("--include", table)]
    return ["run", "--json", "--lake", "lake", *flags]


def rows(folder: Path, table: str) -> list[dict[str, Any]]:
    whole = extractor.Lake(str(folder / "lake")).table(table).to_arrow()
    found: list[dict[str, Any]] = whole.select(["id"]).to_pylist()
    return found


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_that_stays_ends_in_its_exit_code_and_its_line(
    fault: Fault,
    site: Site,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if fault.origin not in site.origins:
        pytest.skip(f"this machine has no {fault.origin}")
    for name, value in site.environment(fault).items():
        monkeypatch.setenv(name, value)
    url = site.url(fault, "stays")
    tables = (fault.table,) if fault.code == 10 else ("rest", fault.table)
    attempts = 1 if fault.code else 3

    code = invoke(arguments(url, *tables, settings=fault.settings, attempts=attempts))

    printed = capsys.readouterr()
    report = json.loads(printed.out)
    statuses = {table["name"]: table["status"] for table in report["tables"]}
    assert (code, report["exit_code"]) == (fault.code, fault.code), printed.err
    match code:
        case 0:
            assert set(statuses.values()) == {"complete"}
            assert printed.err.count("skysql-extract: ") == 0
        case 3:
            assert statuses == {"rest": "complete", fault.table: "failed"}
            assert printed.err.splitlines()[-1] == f"skysql-extract: {fault.closing_line(url)}"
            assert rows(folder, "rest") == [{"id": 1}]
            assert extractor.Lake("lake").tables() == ["rest"]
        case _:
            assert printed.err.splitlines()[-1] == f"skysql-extract: {fault.closing_line(url)}"
            assert not list(Path("lake").rglob("*.parquet"))
    assert site.strays == []
    assert not list(Path("lake").glob("_extractor/staging/*"))


ONCE = [fault for fault in FAULTS if fault.is_retried and fault.code == 3]


def test_faults_that_go_away_cost_one_more_request_each_and_nothing_else(
    site: Site, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "own" / "own.toml").write_text("\n".join(map(table_of, ONCE)))
    url = site.origins["URL"]

    code = invoke(arguments(url, settings=("limits.concurrency=64",), attempts=2))

    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert code == 0, printed.err
    assert {table["status"] for table in report["tables"]} == {"complete"}
    assert report["requests"]["retried"] == len(ONCE)
    for fault in ONCE:
        if fault.table == "things":
            assert [row["id"] for row in rows(folder, name_of(fault))] == [1, 2], fault.name
        assert extractor.Lake("lake").table(name_of(fault)).to_arrow().num_rows > 0, fault.name


def name_of(fault: Fault) -> str:
    return fault.name.replace("-", "_")


def table_of(fault: Fault) -> str:
    """The table that meets a fault, under the fault's name, and at its own address."""
    text = CATALOGUE.partition(f"[{fault.table}]")[2].partition("\n[")[0]
    return f"[{name_of(fault)}]{text}".replace('"/', f'"/{fault.name}/once/')


def test_the_page_about_faults_is_what_the_tests_hold_the_program_to() -> None:
    page = DOCUMENT.read_text(encoding="utf-8")

    assert page == documented(page), "write it anew: python -m tests.flow.faulty"


# --- memory -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bomb", "endless", "archive-bomb", "nesting"])
def test_a_body_that_is_too_large_takes_no_more_memory_than_its_bound(
    name: str, site: Site, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fault = next(fault for fault in FAULTS if fault.name == name)
    argv = arguments(site.url(fault, "stays"), fault.table)
    invoke(argv)  # what is imported and kept for ever is there now

    tracemalloc.start()
    try:
        code = invoke(argv)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert code == 3, capsys.readouterr().err
    assert peak_bytes < 16 << 20


# --- where the key goes -------------------------------------------------------------------------------------


def test_the_key_goes_to_the_source_and_to_nobody_that_an_answer_names(site: Site) -> None:
    """Runs after all others of this file have been on their way."""
    assert any(KEY.encode() in request for request in site.seen)
    assert site.strays == []
    assert not any(KEY.encode() in request for request in site.through_proxy)


def test_through_a_proxy_only_whom_the_certificate_names_sees_the_key(site: Site, folder: Path) -> None:
    if site.certificate is None:
        pytest.skip("there is no openssl to make a certificate with")
    fault = next(fault for fault in FAULTS if fault.name == "proxy-refuses")
    proxy = site.origins["TUNNEL_AT"].replace("//", "//proxyuser:proxypassword@")
    trusted = {**os.environ, "https_proxy": proxy, "SSL_CERT_FILE": str(site.certificate)}
    argv = arguments(f"https://api.invalid/{fault.name}/stays", "rest")

    found = subprocess.run(
        [sys.executable, "-m", "extractor", *argv],
        env={**trusted, "PYTHONPATH": str(Path(extractor.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    seen = b"".join(site.through_proxy)
    assert found.returncode == 0, found.stderr
    assert b"CONNECT api.invalid:443" in seen
    assert b"Proxy-Authorization: Basic" in seen
    assert KEY.encode() not in seen
    assert "proxypassword" not in found.stdout + found.stderr
    assert any(KEY.encode() in request for request in site.seen if b"Host: api.invalid" in request)
