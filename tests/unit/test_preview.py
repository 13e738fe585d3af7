from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from extractor.commit import Update, commit
from extractor.commitlog import CommitLog, TableState
from extractor.config import Account, Config, LakeConfig, LimitsConfig, RunConfig, Source
from extractor.errors import ConfigError
from extractor.preview import Preview, PreviewTable, preview
from extractor.stores.local import LocalStore
from extractor.testing.clock import VirtualClock

NOON = datetime(2025, 3, 10, 12, tzinfo=UTC)

CATALOGUE = """
[ports]
path = "/v1/ports"

[ships]
path   = "/v1/ports/{port}/ships"
parent = { endpoint = "ports", params = { port = "id" } }

[keys]
path  = "/v1/keys"
class = "secret"

[log]
path = "/v1/log"
key  = ["id"]
sync = { kind = "window", from_param = "from", to_param = "to", step = "1d", cursor = "at" }
columns = { id = "string", at = "timestamp" }
"""


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A catalogue of four endpoints, and a lake that is not there yet."""
    (tmp_path / "endpoints").mkdir()
    (tmp_path / "endpoints" / "fleet.toml").write_text(CATALOGUE)
    return Config(
        source=Source(builtin=False, catalogs=(str(tmp_path / "endpoints"),)),
        limits=LimitsConfig(requests_per_second=2.0),
        lake=LakeConfig(uri=str(tmp_path / "lake")),
        run=RunConfig(since="2d"),
    )


def selecting(config: Config, *names: str, accounts: tuple[str, ...] = ()) -> Config:
    return Config(
        source=config.source,
        limits=config.limits,
        lake=config.lake,
        run=RunConfig(include=names, since="2d"),
        accounts=tuple(Account(name=name, key_env="KEY") for name in accounts),
    )


def table_of(found: Preview, name: str) -> PreviewTable:
    (table,) = [table for table in found.tables if table.name == name]
    return table


def commit_run(
    config: Config,
    table: str = "log",
    *,
    requests: Mapping[str, int],
    state: Mapping[str, object] = MappingProxyType({}),
) -> None:
    """Let a lake hold one run: nine rows of `table`, and a report of so many requests per table."""
    store = LocalStore(Path(config.lake.uri))
    found = TableState(
        table=table,
        account="default",
        sync="snapshot",
        status="complete",
        reason="window closed",
        rows=9,
        files=(),
        columns=(),
        state=state,
        run_id="r1",
        proved_by="r1",
        snapshot_at=None,
        content="",
    )
    tables = [{"name": name, "account": "default", "requests": count} for name, count in requests.items()]
    commit(
        store,
        CommitLog(store),
        run_id="r1",
        updates=[Update(table=table, account="default", state=found, expected=None)],
        summary={"tables": tables},
        source={},
        started_at=NOON,
        clock=VirtualClock(start=NOON),
        leases=None,
        is_final=True,
        status="complete",
    )


def planned(name: str, path: str, **other: Any) -> PreviewTable:
    """A table that will be read with one request, but for what is given otherwise."""
    usual = {
        "account": "default",
        "status": "run",
        "parent": "",
        "requests_known": 1,
        "requests_estimated": None,
        "windows": 0,
        "state": "first run",
        "reason": "",
    }
    return PreviewTable(name=name, path=path, **{**usual, **other})


def test_a_first_run_is_looked_at_without_a_lake_and_without_a_key(config: Config) -> None:
    found = preview(config, now=NOON)

    assert found == Preview(
        lake=found.lake,
        tables=(
            planned("ports", "/v1/ports"),
            planned("ships", "/v1/ports/{port}/ships", parent="ports", requests_known=0),
            planned(
                "keys",
                "/v1/keys",
                status="skipped",
                requests_known=0,
                requests_estimated=0,
                reason="keys holds credentials; to read it all the same: run.secret = ['keys']",
            ),
            planned("log", "/v1/log", requests_known=3, windows=3, state="from 2025-03-08"),
        ),
        requests_known=4,
        requests_estimated=None,
        requests_per_second=2.0,
        seconds=2.0,
        files=3,
        warnings=("first run: further pages and children are not counted",),
    )
    assert not Path(config.lake.uri).exists()


def test_a_parent_that_is_read_for_its_children_only_counts_as_requests_and_not_as_a_file(
    config: Config,
) -> None:
    found = preview(selecting(config, "ships"), now=NOON)

    assert [(table.name, table.status, table.requests_known) for table in found.tables] == [
        ("ports", "keys", 1),
        ("ships", "run", 0),
    ]
    assert (found.files, found.requests_known) == (1, 1)


def test_each_account_is_asked_at_its_own_rate(config: Config) -> None:
    found = preview(selecting(config, "log", accounts=("eu", "us")), now=NOON)

    assert [(table.name, table.account, table.requests_known) for table in found.tables] == [
        ("log", "eu", 3),
        ("log", "us", 3),
    ]
    assert (found.requests_known, found.seconds) == (6, 1.5)


def test_windows_start_where_the_last_run_ended_and_at_its_holes(config: Config) -> None:
    windows = {"done_until": "2025-03-09T00:00:00+00:00", "holes": ["2025-03-01"]}
    commit_run(config, state={"windows": windows}, requests={"log": 40})

    found = preview(selecting(config, "log"), now=NOON)

    assert table_of(found, "log") == planned(
        "log", "/v1/log", requests_known=3, requests_estimated=40, windows=3, state="from 2025-03-01"
    )
    assert (found.requests_estimated, found.seconds, found.warnings) == (40, 20.0, ())


def test_an_estimate_is_given_only_where_every_table_has_one(config: Config) -> None:
    commit_run(config, requests={"log": 40, "ports": 2, "keys": 9})

    assert preview(selecting(config, "log", "ports"), now=NOON).requests_estimated == 42
    assert preview(selecting(config, "log", "ports", "keys"), now=NOON).requests_estimated == 42
    assert preview(selecting(config, "log", "ships"), now=NOON).requests_estimated is None


def test_a_preview_prints_as_json(config: Config) -> None:
    found = preview(config, now=NOON)

    written = json.loads(json.dumps(found.to_json()))

    assert written["requests_known"] == 4
    tables = tuple(PreviewTable(**table) for table in written.pop("tables"))
    assert Preview(**{**written, "tables": tables, "warnings": tuple(written["warnings"])}) == found


def test_what_run_would_refuse_is_refused(config: Config) -> None:
    with pytest.raises(ConfigError) as caught:
        preview(selecting(config, "shps"), now=NOON)

    assert caught.value.message == "run.include: 'shps' matches no endpoint; did you mean ships?"


def test_a_snapshot_that_the_lake_has_says_how_much_it_holds_and_of_which_run(config: Config) -> None:
    commit_run(config, "ports", requests={"ports": 2})

    assert table_of(preview(selecting(config, "ports"), now=NOON), "ports") == planned(
        "ports", "/v1/ports", requests_estimated=2, state="9 rows of run r1"
    )
