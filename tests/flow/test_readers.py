"""What other engines read of a lake that changed in every way, with the statements that `ddl` prints for them.

DuckDB, polars and pyarrow always; Spark where it is installed, as in the environment of `make spark`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import polars
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

import extractor
from extractor.catalog import load_catalog
from extractor.ddl.engines import make_script
from extractor.digest import digest_rows
from extractor.testing import canonical

Rows = list[dict[str, Any]]


_EVOLVING = """
[services]
path = "/services"
key  = ["id"]
[services.columns]
id    = "string"
size  = "int64"
spec  = "struct<cpu: int64, tags: map<string, string>>"
price = "decimal"
seen  = "timestamp"
local = "timestamp_naive"
tags  = "map<string, string>"
nodes = "list<struct<name: string, port: int64>>"

[alerts]
path = "/alerts"
key  = ["id"]
sync = { kind = "append", cursor = "at" }
[alerts.columns]
id = "int64"
at = "timestamp"

[bills]
path = "/bills"
key  = ["id"]
[bills.sync]
kind       = "window"
from_param = "y"
to_param   = "m"
format     = "year_month"
step       = "1M"
replace    = true
[bills.columns]
id    = "string"
total = "decimal"

[notes]
path = "/notes"
"""


def _service(name: str, night: int) -> dict[str, object]:
    row: dict[str, object] = {
        "id": name,
        "size": 4,
        "spec": {"cpu": 2, "tags": {"k": "v"}},
        "price": 12.25,
        "seen": "2026-10-31T23:59:59.123456Z",
        "local": "2026-10-31 08:15:00",
        "tags": {"team": "blue", "env": "prod"},
        "nodes": [{"name": "n1", "port": 3306}, {"name": "n2", "port": None}],
    }
    if night >= 1 and name != "a":
        row["zone"] = f"z'{name}\\"
    if night >= 2 and name == "b":
        row["spec"] = {"cpu": 2, "disk": {"gb": night // 4}, "tags": {}}
    if night >= 3:
        row["size"] = "large" if night < 6 or name != "c" else "small"
    if night >= 4:
        row["price"] = 0.000000000001 if name == "a" else 99999999999.5
    if night >= 5 and name == "c":
        row["seen"] = "2026-11-05T10:00:00.123456789Z"
    if night >= 7:
        row |= {"owner": name == "a", "tags": {"env": "prod", "team": "blue"}}
    return row


def _bill(query: Mapping[str, str], night: int) -> list[dict[str, object]]:
    month = f"{int(query['y'])}-{int(query['m']):02}"
    if month == "2026-10":
        return [{"id": "b10", "total": 10.5}] if night < 1 else []
    more = {"tax": 1.5} if night >= 6 else {}
    return [{"id": "b11", "total": night // 2, **more}, {"id": "b12", "total": 7}][: 2 if night < 8 else 1]


@dataclass(slots=True)
class Evolved:
    """A lake after ten nights in which its tables changed in every way, and what the API said in each of them."""

    nights: Any
    served: list[dict[str, list[dict[str, Any]]]]
    runs: list[extractor.RunReport]

    @property
    def place(self) -> Path:
        return self.nights.folder / "lake"


@pytest.fixture(scope="module")
def evolved(make_nights: Callable[[Path], Any], tmp_path_factory: pytest.TempPathFactory) -> Evolved:
    """Columns that come, a type that is corrected, keys inside of values that nobody knew, tables without rows."""
    # A place that glob, SQL and Hive would all like to read something into.
    folder = tmp_path_factory.mktemp("evolved") / "it's [a] home=1"
    folder.mkdir()
    nights = make_nights(folder)
    nights.catalogue = _EVOLVING
    served, runs = [], []
    for night in range(10):
        names = "" if night == 6 else "abc" if night % 4 else "ab" if night else "abcd"
        services = [_service(name, night) for name in names]
        alerts = [
            {
                "id": number,
                "at": f"2026-11-{number:02}T0{number % 10}:00:00Z",
                **({"by": "me"} if number > 4 else {}),
            }
            for number in range(1, night + 2)
        ]
        notes = [{"text": f"note {number}"} for number in range(night % 3)]
        nights.rows = {
            "/services": services,
            "/alerts": [*alerts, {"id": 0}],
            "/bills": lambda query, night=night: _bill(query, night),
            "/notes": notes,
        }
        if night == 4:
            nights.catalogue = _EVOLVING.replace('size  = "int64"', 'size  = "string"')
        served.append({"services": services, "alerts": [*alerts, {"id": 0}], "notes": notes})
        runs.append(nights.run())
        nights.pass_night()
    assert [run.exit_code for run in runs] == [0] * 10, [run.message for run in runs]
    return Evolved(nights=nights, served=served, runs=runs)


# --- rows that can be compared ------------------------------------------------------------------------------


def plain(value: object) -> object:
    """A value in the same form whatever read it: maps as dicts, times in UTC."""
    match value:
        case datetime():
            aware = value.astimezone(UTC) if value.tzinfo else value
            return f"{aware:%Y-%m-%d %H:%M:%S.%f}{'Z' if value.tzinfo else ''}"
        case date() | Decimal():
            return str(value)
        case float():
            return repr(value)
        case dict() if not value:
            return []  # of a map without pairs one cannot tell
        case dict():
            return {str(key): plain(item) for key, item in sorted(value.items())}
        case list() if value and all(_is_pair(item) for item in value):
            return plain(dict(map(_parts, value)))
        case list() | tuple():
            return [plain(item) for item in value]
        case _:
            return value


def _is_pair(item: object) -> bool:
    return isinstance(item, tuple) or (isinstance(item, dict) and set(item) == {"key", "value"})


def _parts(item: Any) -> tuple[Any, Any]:
    return (item["key"], item["value"]) if isinstance(item, dict) else item


def comparable(rows: Rows) -> Counter[str]:
    """Rows as texts; a column that is null throughout is as good as none."""
    return Counter(
        json.dumps({name: plain(value) for name, value in sorted(row.items()) if value is not None})
        for row in rows
    )


def with_path(path: Path, rows: Rows) -> Rows:
    """The rows of a file, with what its path says."""
    found = dict(part.split("=", 1) for part in path.parts[-5:] if "=" in part)
    names: dict[str, object] = {
        name: None if value == "__HIVE_DEFAULT_PARTITION__" else value for name, value in found.items()
    }
    for name in ("snapshot_date", "event_date"):
        if names.get(name):
            names[name] = date.fromisoformat(str(names[name]))
    return [{**row, **names} for row in rows]


def every_row(evolved: Evolved, table: str) -> Rows:
    """What stands in all files of a table, each read for itself."""
    files = sorted((evolved.place / table).rglob("*.parquet"))
    assert len(files) > 1
    return [row for file in files for row in with_path(file, pq.ParquetFile(file).read().to_pylist())]


def current_rows(evolved: Evolved, table: str) -> Rows:
    files = [evolved.place / file.path for file in evolved.nights.lake.files(table)]
    return [row for file in files for row in with_path(file, pq.ParquetFile(file).read().to_pylist())]


# --- the engines --------------------------------------------------------------------------------------------

Query = Callable[[str], Rows]


def endpoints(evolved: Evolved) -> Any:
    return load_catalog([evolved.nights.folder / "own"], builtin=False).endpoints


@pytest.fixture(scope="module")
def duck(evolved: Evolved) -> Iterator[Query]:
    script = make_script("duckdb", evolved.nights.lake, endpoints(evolved))
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'Asia/Tokyo'")  # what the engine is set to changes no value
        for statement in script.statements:
            connection.execute(statement.sql)
        yield lambda sql: connection.sql(sql).to_arrow_table().to_pylist()


@pytest.fixture(scope="module")
def spark(evolved: Evolved) -> Iterator[Query]:
    if importlib.util.find_spec("pyspark") is None:
        pytest.skip("Spark is not installed; `make spark` makes an environment that has it")
    if shutil.which("java") is None:
        pytest.skip("Spark needs Java, and there is none")
    from pyspark.sql import SparkSession

    settings = {
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
        "spark.ui.enabled": "false",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.shuffle.partitions": "2",
        "spark.sql.warehouse.dir": str(evolved.nights.folder / "warehouse"),
    }
    os.environ["TZ"] = "UTC"  # Spark's Python gives times of this machine's zone
    builder = SparkSession.builder.master("local[2]")
    for name, value in settings.items():
        builder = builder.config(name, value)
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    script = make_script("spark", evolved.nights.lake, endpoints(evolved))
    for statement in script.statements:
        session.sql(statement.sql.rstrip(";"))

    def query(sql: str) -> Rows:
        found = session.sql(sql.replace('"', "`").replace(INSTANT, "TIMESTAMP"))
        times = {field.name for field in found.schema if field.dataType.typeName() == "timestamp"}
        rows = [row.asDict(recursive=True) for row in found.collect()]
        return [
            {
                name: value.replace(tzinfo=UTC) if name in times and value is not None else value
                for name, value in row.items()
            }
            for row in rows
        ]

    yield query
    session.stop()


@pytest.fixture(params=["duck", "spark"])
def engine(request: pytest.FixtureRequest) -> Query:
    found: Query = request.getfixturevalue(request.param)
    return found


INSTANT = "TIMESTAMPTZ"  # as DuckDB calls it
TABLES = ("services", "alerts", "bills", "notes")


@pytest.mark.parametrize("table", TABLES)
def test_the_table_has_every_row_of_every_file(engine: Query, evolved: Evolved, table: str) -> None:
    assert comparable(engine(f'SELECT * FROM "{table}"')) == comparable(every_row(evolved, table))


@pytest.mark.parametrize("table", TABLES)
def test_current_has_exactly_the_rows_of_the_current_files(
    engine: Query, evolved: Evolved, table: str
) -> None:
    found = engine(f'SELECT * FROM "{table}_current"')

    assert comparable(found) == comparable(current_rows(evolved, table))
    if table in evolved.served[-1]:
        rows = [
            {
                name: value
                for name, value in row.items()
                if name not in ("account", "snapshot_date", "run", "event_date")
            }
            for row in found
        ]
        schema = evolved.nights.lake.table(table).schema
        landed = canonical(pa.Table.from_pylist([_as_arrow(row) for row in rows], schema=schema))
        assert digest_rows(landed) == digest_rows(evolved.served[-1][table])


def _as_arrow(row: dict[str, Any]) -> dict[str, Any]:
    """Spark gives maps as dicts, of which Arrow makes structs."""
    return {
        name: list(value.items()) if name == "tags" and isinstance(value, dict) else value
        for name, value in row.items()
    }


def expected_history(evolved: Evolved, table: str) -> set[tuple[str, int, int | None]]:
    """By key each state with the night in which it began, and the one in which it was no more."""
    found: set[tuple[str, int, int | None]] = set()
    open_: dict[str, tuple[str, int]] = {}
    for night, served in enumerate(evolved.served):
        now = {row["id"]: json.dumps(row, sort_keys=True) for row in served[table]}
        for key, (state, since) in list(open_.items()):
            if now.get(key) != state:
                found.add((key, since, night))
                del open_[key]
        for key, state in now.items():
            open_.setdefault(key, (state, night))
    return found | {(key, since, None) for key, (_, since) in open_.items()}


def nights_of(evolved: Evolved) -> dict[str, int]:
    """The night of each run's time."""
    return {
        f"{datetime.fromisoformat(run.started_at):%Y-%m-%d %H:%M:%S.%f}": number
        for number, run in enumerate(evolved.runs)
    }


def told_history(engine: Query, evolved: Evolved, table: str) -> list[tuple[str, int, int | None]]:
    nights = nights_of(evolved)

    def night(moment: datetime | None) -> int | None:
        return None if moment is None else nights[f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}"]

    rows = engine(f'SELECT "id", "valid_from", "valid_to" FROM "{table}_history"')
    return [(row["id"], night(row["valid_from"]) or 0, night(row["valid_to"])) for row in rows]


def test_history_has_each_state_of_each_row_once_also_around_an_empty_night(
    engine: Query, evolved: Evolved
) -> None:
    told = told_history(engine, evolved, "services")

    assert Counter(told) == Counter(expected_history(evolved, "services"))
    assert any(until == 6 for _, _, until in told)


def test_history_answers_what_stood_on_any_night(engine: Query, evolved: Evolved) -> None:
    for night, run in enumerate(evolved.runs):
        at = f"CAST('{datetime.fromisoformat(run.started_at):%Y-%m-%d %H:%M:%S.%f}+00:00' AS {INSTANT})"
        rows = engine(
            f'SELECT "id" FROM "services_history" WHERE "valid_from" <= {at} '
            f'AND ("valid_to" > {at} OR "valid_to" IS NULL)'
        )

        assert sorted(row["id"] for row in rows) == [row["id"] for row in evolved.served[night]["services"]]


def test_the_history_of_windows_knows_when_one_lost_its_rows(engine: Query, evolved: Evolved) -> None:
    told = told_history(engine, evolved, "bills")

    assert Counter(told) == Counter(
        [
            ("b10", 0, 1),
            ("b11", 0, 2),
            ("b11", 2, 4),
            ("b11", 4, 6),
            ("b11", 6, 8),
            ("b11", 8, None),
            ("b12", 0, 8),
        ]
    )


def test_events_hold_from_their_own_time_on(engine: Query, evolved: Evolved) -> None:
    rows = engine('SELECT "id", "at", "valid_from", "valid_to" FROM "alerts_history"')

    assert len(rows) == 11
    assert all(row["valid_from"] == row["at"] and row["valid_to"] is None for row in rows)


# --- readers without SQL ------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", TABLES)
def test_polars_reads_all_files_under_the_columns_of_the_newest(evolved: Evolved, table: str) -> None:
    files = sorted((evolved.place / table).rglob("*.parquet"))
    schema = polars.from_arrow(evolved.nights.lake.table(table).schema.empty_table()).schema

    rows = [
        row
        for file in files
        for row in with_path(
            file,
            polars.scan_parquet(file, schema=schema, missing_columns="insert", glob=False)
            .collect()
            .to_arrow()
            .to_pylist(),
        )
    ]
    whole = polars.scan_parquet(
        files, schema=schema, missing_columns="insert", glob=False, hive_partitioning=False
    ).collect()

    assert comparable(rows) == comparable(every_row(evolved, table))
    assert whole.height == len(rows)


@pytest.mark.parametrize("table", TABLES)
def test_pyarrow_reads_all_files_under_the_columns_of_the_lake(evolved: Evolved, table: str) -> None:
    files = sorted((evolved.place / table).rglob("*.parquet"))
    schema = evolved.nights.lake.table(table).schema

    dataset = pyarrow.dataset.dataset([str(file) for file in files], schema=schema)

    without_path = [
        {name: value for name, value in row.items() if name in schema.names}
        for row in every_row(evolved, table)
    ]
    assert comparable(dataset.to_table().to_pylist()) == comparable(without_path)


# --- the lake itself ----------------------------------------------------------------------------------------


def test_the_ten_nights_told_what_changed(evolved: Evolved) -> None:
    lines = [line for run in evolved.runs for line in run.drift]

    assert any("services.zone: new column" in line for line in lines)
    assert any("services.spec: new inside of it disk" in line for line in lines)
    assert any("services.size: type corrected from int64 to string" in line for line in lines)
    assert [
        name for name in evolved.nights.lake.table("services").schema.names if not name.startswith("_")
    ] == [*("id size spec price seen local tags nodes zone size__v2 seen_nanos owner".split())]
