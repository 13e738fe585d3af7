"""Compacting and expiring beside runs and readers, and as commands."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

import extractor
from extractor.cli.app import invoke
from extractor.commitlog import CommitLog
from extractor.lease import Leases
from tests.bench.runs import Month, check_by_glob, check_by_log, number_of, rows_after


@pytest.fixture(scope="module")
def month(tmp_path_factory: pytest.TempPathFactory) -> Month:
    """A lake of some whole runs; tests only add to it."""
    month = Month(tmp_path_factory.mktemp("month"))
    for _ in range(6):
        month.run()
    return month


def test_readers_are_right_while_runs_add_and_others_merge_and_drop(tmp_path: Path) -> None:
    month = Month(tmp_path, is_bare=True)
    month.next()
    is_over = threading.Event()
    failures: list[BaseException] = []
    readings = {"log": 0, "glob": 0}

    def read(kind: str) -> None:
        seen = 0
        while not is_over.is_set() or not readings[kind]:
            try:
                seen = check_by_log(month.lake) if kind == "log" else check_by_glob(month.lake, seen)
                readings[kind] += 1
            except FileNotFoundError:
                assert kind == "glob"  # listed before an exchange and opened after it
            except BaseException as error:  # noqa: BLE001  # told below
                failures.append(error)
                return
            time.sleep(0.02)

    readers = [threading.Thread(target=read, args=(kind,)) for kind in readings]
    for reader in readers:
        reader.start()
    try:
        for number in range(60):
            month.next()
            if number % 20 == 19:
                month.compact()
                month.expire(keep_last=1)
    finally:
        is_over.set()
        for reader in readers:
            reader.join()

    assert failures == []
    assert month.runs == 61
    assert check_by_glob(month.lake, 0) == rows_after(60)
    # A file for the day that is over or going on, and what the newest run added since.
    assert len(list((month.lake / "metrics").rglob("*.parquet"))) <= 2
    assert len(list((month.lake / "services").rglob("*.parquet"))) == 1


def test_a_run_waits_for_a_lease_that_is_held_for_a_moment(month: Month) -> None:
    brief = Leases(
        month.store, run_id="compacting", clock=month.clock, tables=[("metrics", "default")], is_brief=True
    )
    brief.acquire()
    before = month.clock.monotonic()
    slept: list[float] = []
    sleep_until = month.clock.sleep_until

    async def release_then_sleep(deadline: float) -> None:
        slept.append(deadline)
        if len(slept) == 3:
            brief.release()
        await sleep_until(deadline)

    month.clock.sleep_until = release_then_sleep  # type: ignore[method-assign]  # a clock that acts

    month.run()

    month.clock.sleep_until = sleep_until  # type: ignore[method-assign]  # as it was
    assert len(slept) >= 3
    assert month.clock.monotonic() > before
    newest = CommitLog(month.store).newest()
    assert newest is not None
    assert number_of(newest.started_at) == month.runs - 1


def run_cli(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = invoke(argv)
    out, err = capsys.readouterr()
    return code, out, err


def test_the_commands_say_what_they_did(month: Month, capsys: pytest.CaptureFixture[str]) -> None:
    lake = str(month.lake)
    rows = check_by_glob(month.lake, 0)

    code, out, _ = run_cli(capsys, "compact", "--lake", lake, "--json", "metrics")
    report = json.loads(out)
    assert (code, report["verb"], report["status"], report["exit_code"]) == (0, "compact", "complete", 0)
    assert report["tables"][0]["name"] == "metrics"
    assert "paths" not in report
    assert check_by_glob(month.lake, rows) == rows

    code, out, _ = run_cli(capsys, "compact", "--lake", lake)
    assert (code, out.strip()) == (0, f"nothing to compact in lake {lake}")

    code, out, _ = run_cli(
        capsys, "expire", "--lake", lake, "--rows", "services", "--where", "id=dbs003", "--dry-run"
    )
    assert (code, "would remove 1 file; nothing was changed" in out) == (0, True)

    code, out, _ = run_cli(capsys, "expire", "--lake", lake, "--rows", "services", "--where", "id=dbs003")
    assert (code, "services" in out) == (0, True)
    ids = extractor.Lake(lake).table("services").to_arrow()["id"].to_pylist()
    assert ("dbs003" in ids, len(ids)) == (False, 24)

    code, out, _ = run_cli(capsys, "runs", "--lake", lake)
    assert code == 0
    assert "compact" in out
    code, out, _ = run_cli(capsys, "show", "latest", "--lake", lake)
    assert (code, "expire" in out) == (0, True)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["expire"], "give either --keep-last N or --older-than AGE"),
        (["expire", "--keep-last", "2", "--older-than", "3d"], "give either --keep-last N"),
        (["expire", "--rows", "services"], "--rows needs --where COLUMN=VALUE"),
        (["expire", "--where", "id=3"], "--where needs --rows TABLE"),
        (["expire", "--rows", "services", "--where", "id"], "write COLUMN=VALUE"),
        (["expire", "--rows", "services", "--where", "id=3", "--keep-last", "1"], "--rows stands alone"),
        (["expire", "--older-than", "soon"], "'soon' is no duration"),
        (["expire", "--keep-last", "0"], "--keep-last must be 1 or more"),
        (["compact", "service"], "no table service in lake"),
        (["compact", "--target-mb", "-1"], "--target-mb must be above 0"),
        (["compact", "--grace", "x"], "'x' is no duration"),
    ],
)
def test_wrong_usage_is_one_line_and_changes_nothing(
    argv: list[str], message: str, month: Month, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = CommitLog(month.store).newest()

    code, out, err = run_cli(capsys, *argv, "--lake", str(month.lake))

    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert CommitLog(month.store).newest() == newest


def test_an_empty_lake_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run_cli(capsys, "compact", "--lake", str(tmp_path / "none"))

    assert code == 7
    assert "nothing was committed" in err
