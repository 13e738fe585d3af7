from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from extractor.cli.app import invoke
from extractor.clock import SystemClock
from extractor.commit import Update, commit, publish
from extractor.commitlog import CommitLog, TableState
from extractor.ddl import athena, bigquery, snowflake, spark
from extractor.ddl import duckdb as duckdb_ddl
from extractor.ddl.dialect import view_names
from extractor.ddl.engines import ENGINES, Script, make_script
from extractor.ddl.shape import Emptied, TableShape, shapes_of
from extractor.endpoint import Endpoint, Sync, Window
from extractor.errors import ConfigError, LakeError
from extractor.lake import Lake
from extractor.store import staged_path
from extractor.stores.local import LocalStore
from extractor.write import DataFile

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
NASTY = 'it\'s "a" `b` \\ c; -- d'
PLACES = {"athena": "s3://b/lake", "snowflake": "s3://b/lake", "bigquery": "gs://b/lake"}


def shape(name: str = "things", **changes: Any) -> TableShape:
    given: dict[str, Any] = {
        "name": name,
        "kind": "snapshot",
        "columns": (
            ("id", pa.string()),
            ("_run_id", pa.string()),
            ("_snapshot_at", pa.timestamp("us", "UTC")),
        ),
        "key": (("id",),),
        "time": "",
        "paths": (f"{name}/account=default/snapshot_date=2026-11-22/run=r1/part-00000.parquet",),
        "current": ((("account", "default"), ("snapshot_date", "2026-11-22"), ("run", "r1")),),
        "emptied": (),
        "has_files": True,
    }
    return TableShape(**{**given, **changes})


MODULES: dict[str, Any] = {
    "duckdb": duckdb_ddl,
    "spark": spark,
    "athena": athena,
    "snowflake": snowflake,
    "bigquery": bigquery,
}


def sql_of(engine: str, given: TableShape, object_: str, location: str = "/lake") -> str:
    found = [
        made.sql
        for made in MODULES[engine].statements(given, location, [given.name])
        if made.object == object_
    ]
    return "\n".join(found)


# --- names and values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine", "table", "text"),
    [
        ("duckdb", '"it\'s ""a"" `b` \\ c; -- d"', "'it''s \"a\" `b` \\ c; -- d'"),
        ("spark", '`it\'s "a" ``b`` \\ c; -- d`', "'it\\'s \"a\" `b` \\\\ c; -- d'"),
        ("athena", '`it\'s "a" ``b`` \\ c; -- d`', "'it''s \"a\" `b` \\ c; -- d'"),
        ("snowflake", '"it\'s ""a"" `b` \\ c; -- d"', "'it''s \"a\" `b` \\\\ c; -- d'"),
        ("bigquery", '`it\'s "a" \\`b\\` \\\\ c; -- d`', "'it\\'s \"a\" `b` \\\\ c; -- d'"),
    ],
)
def test_names_and_values_are_quoted_as_the_engine_reads_them(engine: str, table: str, text: str) -> None:
    given = shape(
        columns=((NASTY, pa.string()), ("_snapshot_at", pa.timestamp("us", "UTC"))),
        current=((("account", NASTY), ("snapshot_date", "2026-11-22"), ("run", "r1")),),
    )

    if engine != "duckdb":  # that lists files
        assert f" = {text} AND" in sql_of(engine, given, "current")
    assert table in sql_of(engine, given, "table")


def test_a_struct_may_have_fields_of_any_name() -> None:
    given = shape(columns=(("s", pa.struct([("a b", pa.int64()), ("ok", pa.list_(pa.bool_()))])),))

    assert 'STRUCT("a b" BIGINT, "ok" BOOLEAN[])' in sql_of("duckdb", given, "table")
    assert "STRUCT<`a b`: BIGINT, `ok`: ARRAY<BOOLEAN>>" in sql_of("spark", given, "table")
    assert "struct<`a b`:bigint,ok:array<boolean>>" in sql_of("athena", given, "table")
    assert "STRUCT<`a b` INT64, `ok` ARRAY<BOOL>>" in sql_of("bigquery", given, "table")
    assert '"s" VARIANT AS (VALUE:"s"::VARIANT)' in sql_of("snowflake", given, "table")


TYPES = {
    "t": pa.timestamp("us", "UTC"),
    "n": pa.timestamp("us"),
    "d": pa.decimal128(38, 12),
    "m": pa.map_(pa.string(), pa.float64()),
    "b": pa.binary(),
    "e": pa.date32(),
}


@pytest.mark.parametrize(
    ("engine", "types"),
    [
        (
            "duckdb",
            [
                "TIMESTAMP WITH TIME ZONE",
                "TIMESTAMP",
                "DECIMAL(38, 12)",
                "MAP(VARCHAR, DOUBLE)",
                "BLOB",
                "DATE",
            ],
        ),
        (
            "spark",
            ["TIMESTAMP", "TIMESTAMP_NTZ", "DECIMAL(38, 12)", "MAP<STRING, DOUBLE>", "BINARY", "DATE"],
        ),
        ("athena", ["timestamp", "timestamp", "decimal(38,12)", "map<string,double>", "binary", "date"]),
        ("snowflake", ["TIMESTAMP_NTZ", "TIMESTAMP_NTZ", "NUMBER(38, 12)", "VARIANT", "BINARY", "DATE"]),
        (
            "bigquery",
            [
                "TIMESTAMP",
                "DATETIME",
                "BIGNUMERIC(38, 12)",
                "STRUCT<key_value ARRAY<STRUCT<key STRING, value FLOAT64>>>",
                "BYTES",
                "DATE",
            ],
        ),
    ],
)
def test_times_money_and_maps_have_the_engines_own_types(engine: str, types: list[str]) -> None:
    sql = sql_of(engine, shape(columns=tuple(TYPES.items())), "table")

    q = "`" if engine in ("spark", "athena", "bigquery") else '"'
    for name, type_ in zip(TYPES, types, strict=True):
        assert (f"NULL AS {type_}) AS {q}{name}{q}" if engine == "duckdb" else f"{q}{name}{q} {type_}") in sql


# --- what is current ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["spark", "athena", "snowflake", "bigquery"])
def test_current_is_told_by_the_folders_of_the_newest_state(engine: str) -> None:
    two = tuple(
        (("account", account), ("snapshot_date", "2026-11-22"), ("run", run))
        for account, run in (("eu", "r1"), ("us", "r2"))
    )
    q = '"' if engine in ("athena", "snowflake") else "`"

    sql = sql_of(engine, shape(current=two), "current")

    assert sql.rstrip(";").endswith(
        f"WHERE ({q}account{q} = 'eu' AND {q}snapshot_date{q} = DATE '2026-11-22' AND {q}run{q} = 'r1')\n"
        f"   OR ({q}account{q} = 'us' AND {q}snapshot_date{q} = DATE '2026-11-22' AND {q}run{q} = 'r2')"
    )
    assert "1 = 0" in sql_of(engine, shape(current=(), kind="window"), "current")
    assert "WHERE" not in sql_of(engine, shape(kind="events", current=()), "current")


def test_duckdb_lists_the_files_of_snapshots_and_follows_those_of_events() -> None:
    assert "['/lake/things/account=default/snapshot_date=2026-11-22/run=r1/part-00000.parquet']" in sql_of(
        "duckdb", shape(), "current"
    )
    assert "['/lake/things/*/*/*.parquet']" in sql_of("duckdb", shape(kind="events"), "current")


def test_a_view_never_takes_the_name_of_a_table() -> None:
    names = ["metrics", "metrics_history", "metrics__history", "bills"]

    assert view_names(shape("metrics"), names) == ("metrics_current", "metrics___history")
    assert view_names(shape("bills"), names) == ("bills_current", "bills_history")


def test_the_columns_of_history_step_aside_for_those_of_the_table() -> None:
    given = shape(
        columns=(
            ("id", pa.string()),
            ("valid_from", pa.string()),
            ("_snapshot_at", pa.timestamp("us", "UTC")),
        )
    )

    sql = sql_of("duckdb", given, "history")

    assert '"_valid_from"' in sql
    assert 'AS "valid_to"' in sql


@pytest.mark.parametrize("engine", ENGINES)
def test_a_key_whose_type_was_corrected_is_compared_as_text(engine: str) -> None:
    given = shape(
        columns=(("id", pa.int64()), ("id__v2", pa.string()), ("_snapshot_at", pa.timestamp("us", "UTC"))),
        key=(("id", "id__v2"),),
    )
    q = '"' if engine in ("duckdb", "athena", "snowflake") else "`"

    assert f"COALESCE(CAST(t.{q}id{q} AS" in sql_of(engine, given, "history")


@pytest.mark.parametrize("engine", ENGINES)
def test_readings_without_rows_are_part_of_the_history(engine: str) -> None:
    emptied = (Emptied(account="o'x", window="", at=NOON),)

    sql = sql_of(engine, shape(emptied=emptied), "history")

    assert "2026-11-22 12:00:00.000" in sql
    assert "UNION ALL SELECT 'o" in sql


def test_a_table_that_never_had_a_file_is_one_of_no_rows() -> None:
    given = shape(paths=(), current=(), has_files=False)
    with duckdb.connect() as connection:
        for made in duckdb_ddl.statements(given, "/nowhere", ["things"]):
            connection.execute(made.sql)
            assert connection.sql(f"SELECT * FROM {made.name}").to_arrow_table().num_rows == 0
    assert "parquet" not in sql_of("spark", given, "table")


# --- places -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("location", "url"),
    [
        ("s3://bucket/a lake", "s3://bucket/a lake/"),
        ("gs://bucket/lake/", "gcs://bucket/lake/"),
        (
            "abfss://box@firm.dfs.core.windows.net/deep/lake",
            "azure://firm.blob.core.windows.net/box/deep/lake/",
        ),
    ],
)
def test_snowflake_has_its_own_names_for_places(location: str, url: str) -> None:
    [stage] = snowflake.setup(location)

    assert f"URL = '{url}'" in stage.sql


# --- over a lake --------------------------------------------------------------------------------------------


def commit_rows(
    root: Path,
    name: str,
    *,
    run_id: str = "r1",
    is_published: bool = True,
    rows: int = 1,
    account: str = "default",
    type_: str = "string",
    has_file: bool = True,
) -> Lake:
    store = LocalStore(root)
    path = f"{name}/account={account}/snapshot_date=2026-11-22/run={run_id}/part-00000.parquet"
    content = b"x" * 10
    store.put(staged_path(run_id, path), content)
    file = DataFile(
        path=path,
        rows=rows,
        size_bytes=10,
        sha256="",
        partition=(("account", account), ("snapshot_date", "2026-11-22"), ("run", run_id)),
    )
    state = TableState(
        table=name,
        account=account,
        sync="snapshot",
        status="complete",
        reason="",
        rows=rows,
        files=(file,) if has_file else (),
        columns=({"name": "id", "type": type_, "source": "id", "live": True},),
        state={},
        run_id=run_id,
        proved_by=run_id,
        snapshot_at=NOON.isoformat(),
        content="",
    )
    log = CommitLog(store)
    newest = log.newest()
    expected = newest.tables.get((name, account)) if newest is not None else None
    entry = commit(
        store,
        log,
        run_id=run_id,
        updates=[Update(table=name, account=account, state=state, expected=expected)],
        summary={},
        source={},
        started_at=NOON,
        clock=SystemClock(),
        leases=None,
    )
    if is_published:
        publish(store, log, entry)
    return Lake(root)


ENDPOINTS = {"things": Endpoint(name="things", path="/t", key=("id",))}


def script(lake: Lake, engine: str = "duckdb", **more: Any) -> Script:
    return make_script(engine, lake, ENDPOINTS, **{"location": PLACES.get(engine, ""), **more})


@pytest.mark.parametrize("engine", ENGINES)
def test_each_table_has_a_table_and_two_views(engine: str, tmp_path: Path) -> None:
    lake = commit_rows(tmp_path / "lake", "things")

    made = script(lake, engine)

    objects = [statement.object for statement in made.statements if statement.object != "setup"]
    assert list(dict.fromkeys(objects)) == ["table", "current", "history"]
    assert all(statement.sql.endswith(";") for statement in made.statements)
    assert made.text.startswith(
        f"-- {engine}: lake {made.location} after run r1 (entry 1)\n-- {made.follows}\n"
    )
    assert made.to_json()["tables"][0]["name"] == "things"  # type: ignore[index]  # it is a list
    json.dumps(made.to_json())


def test_an_empty_snapshot_is_found_in_the_log(tmp_path: Path) -> None:
    commit_rows(tmp_path / "lake", "things", run_id="r1", rows=0)
    lake = commit_rows(tmp_path / "lake", "things", run_id="r2")

    _, [found] = shapes_of(lake, ENDPOINTS)

    assert found.emptied == (Emptied(account="default", window="", at=NOON),)


def test_a_local_lake_has_its_whole_path_whatever_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit_rows(tmp_path / "lake", "things")
    monkeypatch.chdir(tmp_path)

    made = script(Lake("lake"))

    assert made.location == str((tmp_path / "lake").resolve())


@pytest.mark.parametrize(
    ("engine", "location", "message"),
    [
        ("athena", "/srv/lake", "athena reads s3:// only, and the lake is /srv/lake"),
        ("bigquery", "s3://b/lake", "bigquery reads gs:// only"),
        ("snowflake", "/srv/lake", "snowflake reads s3:// or gs://"),
        ("duckdb", "/data/account=7/lake", "the lake's path holds account=7"),
        ("oracle", "", "--engine oracle: the engines are duckdb, spark"),
    ],
)
def test_a_place_that_cannot_be_read_is_one_line(
    tmp_path: Path, engine: str, location: str, message: str
) -> None:
    lake = commit_rows(tmp_path / "lake", "things")

    with pytest.raises(ConfigError) as caught:
        script(lake, engine, location=location)

    assert caught.value.message.startswith(message)


def test_an_unknown_table_is_one_line_with_the_nearest_name(tmp_path: Path) -> None:
    lake = commit_rows(tmp_path / "lake", "things")

    with pytest.raises(ConfigError, match=r"no table thing in lake .*; did you mean things"):
        script(lake, tables=("thing",))


def test_files_that_are_not_in_their_place_yet_are_not_promised(tmp_path: Path) -> None:
    lake = commit_rows(tmp_path / "lake", "things", is_published=False)

    with pytest.raises(LakeError, match="committed, but not yet in its place"):
        script(lake)


def test_a_column_of_two_types_in_two_accounts_is_one_line(tmp_path: Path) -> None:
    commit_rows(tmp_path / "lake", "things")
    lake = commit_rows(tmp_path / "lake", "things", run_id="r2", account="eu", type_="int64")

    with pytest.raises(
        LakeError, match="column id of table things has another type in account eu; give it one"
    ):
        script(lake)


def test_the_current_folders_are_those_of_all_accounts(tmp_path: Path) -> None:
    commit_rows(tmp_path / "lake", "things")
    lake = commit_rows(tmp_path / "lake", "things", run_id="r2", account="eu")

    _, [found] = shapes_of(lake, ENDPOINTS)

    assert [dict(partition)["account"] for partition in found.current] == ["default", "eu"]


def test_the_kind_of_a_table_without_files_is_that_of_the_catalogue(tmp_path: Path) -> None:
    window = Window(from_param="y", to_param="m", step="1M", replace=True)
    endpoint = Endpoint(name="things", path="/t", key=("id",), sync=Sync(kind="window", window=window))
    lake = commit_rows(tmp_path / "lake", "things", has_file=False)

    _, [found] = shapes_of(lake, {"things": endpoint})

    assert (found.kind, found.has_files) == ("window", False)


# --- the verb -----------------------------------------------------------------------------------------------


def test_the_verb_prints_a_script_or_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    commit_rows(tmp_path / "lake", "services")
    monkeypatch.chdir(tmp_path)

    code = invoke(["ddl", "--engine", "spark", "--lake", "lake", "services"])
    text = capsys.readouterr().out
    invoke(["ddl", "--engine", "spark", "--lake", "lake", "--json"])
    values = json.loads(capsys.readouterr().out)

    assert code == 0
    assert "CREATE OR REPLACE TEMPORARY VIEW `services_current` AS" in text
    assert [made["object"] for made in values["tables"][0]["statements"]] == ["table", "current", "history"]
    assert values["tables"][0]["statements"][0]["sql"] in text


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["--engine", "spark"], "nothing was committed to lake"),
        (["--engine", "mysql"], "Invalid value for '--engine'"),
        ([], "Missing option '--engine'"),
    ],
)
def test_what_cannot_be_printed_is_one_line(
    argv: list[str],
    complaint: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)

    code = invoke(["ddl", *argv])

    captured = capsys.readouterr()
    assert code in (2, 7)
    assert captured.out == ""
    assert complaint in captured.err
    assert len(captured.err.splitlines()) == 1


def test_the_verb_offers_every_engine_that_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    invoke(["ddl", "--help"])

    assert f"[{'|'.join(ENGINES)}]" in capsys.readouterr().out
