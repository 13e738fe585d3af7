from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pytest

from extractor.cli.app import invoke
from extractor.errors import ConfigError, LakeError
from extractor.integrations.duckdb import query
from extractor.store import Store
from extractor.stores.local import LocalStore
from extractor.stores.memory import MemoryStore


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return LocalStore(tmp_path / "lake's") if request.param == "local" else MemoryStore()


@pytest.fixture
def past(store: Store, nights: Any, syncs: Any) -> Any:
    return filled(nights(store, types={"id": "string", "at": "timestamp"}), syncs)


def filled(past: Any, syncs: Any) -> Any:
    past.night(
        {
            "services": [{"id": "a", "size": 1}, {"id": "b", "size": 2}],
            "notices": [{"id": "x", "at": "2026-03-01T01:00:00Z", "window": "2026-03-01"}],
        },
        syncs=syncs,
    )
    past.night(
        {
            "services": [{"id": "a", "size": 5}, {"id": "c", "size": 2, "tags": {"k": "v"}}],
            "notices": [{"id": "y", "at": "2026-03-01T02:00:00Z", "window": "2026-03-01"}],
        },
        syncs=syncs,
    )
    return past


def values(found: pa.Table) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in found.to_pylist()]


def test_each_table_is_a_view_over_its_current_state(past: Any) -> None:
    found = query(
        past.lake, "SELECT s.id, size, count(n.id) FROM services s, notices n GROUP BY ALL ORDER BY ALL"
    )

    assert values(found) == [("a", 5, 2), ("c", 2, 2)]
    assert values(query(past.lake, "SHOW TABLES")) == [("notices",), ("services",)]
    assert query(past.lake, "FROM services").schema.names == past.lake.table("services").schema.names


def test_as_of_a_run_is_what_was_then(past: Any) -> None:
    found = query(past.lake, "SELECT id, size FROM services ORDER BY id", as_of="night-1")

    assert values(found) == [("a", 1), ("b", 2)]
    past.merge("notices")
    assert values(query(past.lake, "SELECT id FROM notices", as_of="night-1")) == [("x",)]
    assert values(query(past.lake, "SELECT id FROM notices ORDER BY id")) == [("x",), ("y",)]


def test_what_held_on_a_day_is_one_query(past: Any) -> None:
    text = (
        "SELECT id, size FROM services_history WHERE valid_from <= '2026-03-01 12:00:00+00' "
        "AND coalesce(valid_to > '2026-03-01 12:00:00+00', true) ORDER BY id"
    )

    assert values(query(past.lake, text)) == [("a", 1), ("b", 2)]


def test_changes_are_a_view_too(past: Any) -> None:
    text = (
        "SELECT operation, key.id, before.size AS old, after.size AS new, columns FROM services_changes "
        "WHERE _run_id = 'night-2' ORDER BY 2"
    )

    assert values(query(past.lake, text)) == [
        ("update", "a", 1, 5, ["size"]),
        ("delete", "b", 2, None, None),
        ("insert", "c", None, 2, None),
    ]


@pytest.mark.parametrize(
    "text",
    ["PIVOT services ON id USING max(size)", "SELECT * FROM (PIVOT services ON id USING max(size))"],
)
def test_a_pivot_is_a_query(text: str, past: Any) -> None:
    assert query(past.lake, text).num_rows > 0


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("SELEC 1", "syntax error"),
        ("SELECT nope FROM services", '"nope" not found'),
        ("SELECT * FROM service", "no table service in lake .*; did you mean services?"),
        ("SELECT 1; SELECT 2", "there are 2 statements"),
        ("", "there are 0 statements"),
        ("COPY services TO 'out.csv'", "only queries"),
        ("COPY (PIVOT services ON id USING count(*)) TO 'out.csv'", "only queries"),
        ("/* SELECT */ COPY (PIVOT services ON id USING count(*)) TO 'out.csv'", "only queries"),
        ("CREATE TABLE x AS PIVOT services ON id USING count(*)", "only queries"),
        ("EXPLAIN ANALYZE COPY services TO 'out.csv'", "only queries"),
        ("CREATE TABLE x AS SELECT 1", "only queries"),
        ("DROP VIEW services", "only queries"),
        ("SET enable_external_access = true", "only queries"),
        ("INSTALL httpfs", "only queries"),
        ("ATTACH 'x.db'", "only queries"),
        ("SELECT * FROM read_csv('secret.csv')", "disabled by configuration"),
        ("SELECT * FROM 'secret.csv'", "no table secret.csv|disabled by configuration"),
        ("SELECT * FROM glob('*')", "disabled by configuration"),
        ("SELECT * FROM read_parquet('http://127.0.0.1:1/x.parquet')", "cannot be run"),
        ("SELECT CAST(id AS INTEGER) FROM services", "Could not convert"),
    ],
)
def test_what_is_no_query_over_the_lake_is_refused_in_one_line(
    text: str, told: str, past: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("secret.csv").write_text("a,b\n1,2\n")

    with pytest.raises(ConfigError, match=told) as caught:
        query(past.lake, text)

    assert "\n" not in caught.value.message
    assert not Path("out.csv").exists()


def test_files_of_the_lake_that_the_query_does_not_name_are_out_of_reach(
    nights: Any, syncs: Any, tmp_path: Path
) -> None:
    past = filled(nights(LocalStore(tmp_path), types={"id": "string", "at": "timestamp"}), syncs)
    (path,) = [tmp_path / file.path for file in past.lake.files("services")]

    with pytest.raises(ConfigError, match="disabled by configuration"):
        query(
            past.lake, "SELECT * FROM read_parquet('" + str(path).replace("services", "serv' || 'ices") + "')"
        )


def test_a_damaged_or_missing_file_is_the_lake_s_fault(nights: Any, syncs: Any, tmp_path: Path) -> None:
    past = filled(nights(LocalStore(tmp_path), types={"id": "string", "at": "timestamp"}), syncs)
    (path,) = [tmp_path / file.path for file in past.lake.files("services")]
    content = path.read_bytes()
    for damage in (content[:-7], b"PAR1" + bytes(len(content) - 4), content[:4] + bytes(400) + content[404:]):
        path.write_bytes(damage)
        with pytest.raises(LakeError, match="is damaged; run `skysql-extract verify`"):
            query(past.lake, "SELECT * FROM services")
    path.unlink()
    with pytest.raises(LakeError, match=r"is nowhere in lake .*--as-of night-1"):
        query(past.lake, "SELECT * FROM services")
    assert values(query(past.lake, "SELECT count(*) FROM notices")) == [(2,)]


def test_files_that_are_published_meanwhile_are_looked_for_again(
    nights: Any, syncs: Any, tmp_path: Path
) -> None:
    past = nights(LocalStore(tmp_path), types={"id": "string", "at": "timestamp"})
    past.night({"services": [{"id": "a"}]}, moves=False)

    assert values(query(past.lake, "SELECT id FROM services")) == [("a",)]


@pytest.mark.parametrize("as_of", [None, "latest", "night-1"])
@pytest.mark.parametrize("ending", ["", "_history", "_changes"])
def test_all_tables_of_a_query_are_those_of_one_commit(
    ending: str, as_of: str | None, nights: Any, syncs: Any
) -> None:
    class Busy(MemoryStore):
        """A run commits to both tables while the first one is read."""

        is_armed = False

        def open_input(self, path: str) -> BinaryIO:
            if self.is_armed and path.startswith("alerts/"):
                self.is_armed = False
                commit_both("2026-03-02")
            return super().open_input(path)

    store = Busy()
    past = nights(store, types={"id": "string", "at": "timestamp"})

    def commit_both(day: str) -> None:
        past.count = 0  # one run, in several steps
        row = {"id": day, "at": f"{day}T01:00:00Z", "window": day}
        events = syncs["notices"]
        past.night({"alerts": [row], "notices": [row]}, syncs={"alerts": events, "notices": events})

    commit_both("2026-03-01")
    store.is_armed = True

    text = f"SELECT (SELECT count(*) FROM alerts{ending}), (SELECT count(*) FROM notices{ending})"

    assert values(query(past.lake, text, as_of=as_of)) == [(1, 1)]
    assert values(query(past.lake, text, as_of=as_of)) == [(2, 2)]


# --- the command --------------------------------------------------------------------------------------------


@pytest.fixture
def lake(nights: Any, syncs: Any, tmp_path: Path) -> str:
    filled(nights(LocalStore(tmp_path / "lake"), types={"id": "string", "at": "timestamp"}), syncs)
    return str(tmp_path / "lake")


def called(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = invoke(argv)
    out, err = capsys.readouterr()
    return code, out, err


def test_rows_come_as_an_aligned_table_or_as_json(lake: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = "SELECT id, size, size / 4 AS part, tags, NULL AS id FROM services ORDER BY id"

    code, out, _ = called(capsys, "sql", text, "--lake", lake)
    assert (code, [line.split() for line in out.splitlines()]) == (
        0,
        [
            ["id", "size", "part", "tags", "id_2"],
            ["a", "5", "1.25", "NULL", "NULL"],
            ["c", "2", "0.5", '{"k":"v"}', "NULL"],
            ["(2", "rows)"],
        ],
    )
    code, out, _ = called(capsys, "sql", text, "--lake", lake, "--json")
    assert (code, json.loads(out)[1]) == (
        0,
        {"id": "c", "size": 2, "part": 0.5, "tags": '{"k":"v"}', "id_2": None},
    )


def test_json_values_are_exact(lake: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = (
        "SELECT sum(9007199254740993) AS a, 1.50::DECIMAL(9, 2) AS b, 'nan'::DOUBLE AS c, DATE '2026-03-01' AS d, "
        "TIMESTAMPTZ '2026-03-01 02:00:00+00' AS e, TIMESTAMP '2026-03-01 02:00:00.5' AS f, '\\x00'::BLOB AS g, "
        "MAP {'k': 1} AS h, {'x': [NULL, 2]} AS i, 12345678901234567890.125::DECIMAL(38, 3) AS j, true AS k"
    )

    _, out, _ = called(capsys, "sql", text, "--lake", lake, "--json")

    assert json.loads(out) == [
        {
            "a": 9007199254740993,
            "b": 1.5,
            "c": "NaN",
            "d": "2026-03-01",
            "e": "2026-03-01T02:00:00Z",
            "f": "2026-03-01T02:00:00.5",
            "g": "AA==",
            "h": {"k": 1},
            "i": {"x": [None, 2]},
            "j": "12345678901234567890.125",
            "k": True,
        }
    ]


@pytest.mark.parametrize(
    ("argv", "code", "told"),
    [
        (("sql", "SELECT nope FROM services"), 2, "nope"),
        (("sql", "SELECT * FROM services", "--as-of", "night-9"), 2, "no run night-9"),
        (("diff", "night-1", "night-9"), 2, "no run night-9"),
        (("diff", "night-1", "latest", "servces"), 2, "did you mean services?"),
        (("verify", "night-9"), 2, "no run night-9"),
        (("verify", "night-1", "--all"), 2, "not both"),
    ],
)
def test_wrong_names_are_wrong_usage(
    argv: Sequence[str], code: int, told: str, lake: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found, out, err = called(capsys, *argv, "--lake", lake)

    assert (found, out, err.count("\n")) == (code, "", 1)
    assert told in err


def newer(lake: Path) -> None:
    path = lake / "_extractor/log/00000000000000000002.json"
    path.write_text(path.read_text().replace('"format_version":1', '"format_version":99'))


def edited(lake: Path) -> None:
    path = lake / "_extractor/log/00000000000000000002.json"
    path.write_text(path.read_text().replace("complete", "compleat"))


def lacking(lake: Path) -> None:
    (lake / "_extractor/log/00000000000000000001.json").unlink()


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (newer, "has format 99, this version reads up to 1; upgrade skysql-extractor"),
        (edited, "00002.json in lake .* is damaged or was changed by hand; restore it from a copy"),
        (lacking, "log entry 1 is missing in lake"),
    ],
)
@pytest.mark.parametrize(
    "argv",
    [
        ("sql", "SELECT * FROM services"),
        ("diff", "night-1", "latest"),
        ("verify",),
        ("verify", "--all", "--repair"),
        ("files",),
        ("runs",),
    ],
)
def test_a_log_that_is_not_sound_ends_every_reader_in_one_line_and_changes_nothing(
    harm: Any, told: str, argv: Sequence[str], lake: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    harm(Path(lake))
    before = {path: path.read_bytes() for path in Path(lake).rglob("*") if path.is_file()}

    code, out, err = called(capsys, *argv, "--lake", lake)

    assert (code, out, err.count("\n")) == (7, "", 1)
    assert re.search(told, err)
    assert {path: path.read_bytes() for path in Path(lake).rglob("*") if path.is_file()} == before


def ticks_of(pid: int) -> int:
    """How much a process has computed."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11])


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="this system does not tell of its processes")
def test_a_query_that_is_interrupted_is_130(lake: str, tmp_path: Path) -> None:
    endless = "SELECT count(*) FROM range(100000000) a, range(100000) b"
    (tmp_path / "scratch").mkdir()

    with subprocess.Popen(
        [sys.executable, "-m", "extractor", "sql", endless, "--lake", lake],
        env={**os.environ, "TMPDIR": str(tmp_path / "scratch")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        try:
            while not any((tmp_path / "scratch").iterdir()):
                assert child.poll() is None
            connected = ticks_of(child.pid)
            while ticks_of(child.pid) < connected + 50:  # the query is all that takes so long
                assert child.poll() is None
            child.send_signal(signal.SIGINT)
            out, err = child.communicate(timeout=60)
        finally:
            child.kill()

    assert (child.returncode, out, err.strip()) == (130, "", "skysql-extract: interrupted")


def test_without_duckdb_one_line_says_what_to_install(lake: str) -> None:
    program = (
        "import sys; sys.modules['duckdb'] = None; from extractor.cli.app import invoke; "
        "sys.exit(invoke(sys.argv[1:]))"
    )

    found = subprocess.run(
        [sys.executable, "-c", program, "sql", "SELECT 1", "--lake", lake],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr == "skysql-extract: sql needs DuckDB: pip install 'skysql-extractor[sql]'\n"


def test_a_difference_is_told_row_by_row(lake: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = called(capsys, "diff", "night-1", "latest", "--lake", lake)

    assert code == 0
    assert out.splitlines() == [
        "notices: 1 added",
        "  + id=y  at=2026-03-01T02:00:00Z",
        "services: 1 added, 1 removed, 1 changed",
        "  - id=b  size=2",
        '  + id=c  size=2 tags={"k": "v"}',
        "  ~ id=a  size: 1 → 5",
    ]
    _, out, _ = called(capsys, "diff", "night-1", "latest", "services", "--limit", "1", "--lake", lake)
    assert out.splitlines()[1:] == ["  - id=b  size=2", "  … and 2 more"]
    _, out, _ = called(capsys, "diff", "latest", "latest", "--lake", lake)
    assert out == "nothing differs between night-2 and night-2\n"


def test_a_difference_as_json_has_every_row(lake: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = called(capsys, "diff", "night-1", "night-2", "--json", "--lake", lake)

    found = json.loads(out)
    assert (code, found["before"], found["after"]) == (0, "night-1", "night-2")
    assert found["tables"][1] == {
        "name": "services",
        "key": ["id"],
        "added": [{"id": "c", "size": 2, "tags": {"k": "v"}}],
        "removed": [{"id": "b", "size": 2}],
        "changed": [{"key": {"id": "a"}, "columns": {"size": {"before": 1, "after": 5}}}],
    }


def test_verify_names_each_difference_and_exits_8(lake: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert called(capsys, "verify", "--lake", lake)[0] == 0
    extra = Path(lake) / "services" / "x.parquet"
    extra.write_bytes(b"?")

    code, out, err = called(capsys, "verify", "--lake", lake)
    assert code == 8
    assert "extra       services/x.parquet: no entry of the log names it" in out
    assert err.startswith("skysql-extract: services/x.parquet is extra; restore it from a copy")
    code, out, _ = called(capsys, "verify", "--json", "--repair", "--lake", lake)
    assert (code, json.loads(out)["exit_code"], json.loads(out)["findings"][0]["kind"]) == (8, 8, "extra")
    assert list(json.loads(out)["repair"]["moved"]) == ["services/x.parquet"]
    assert not extra.exists()
    assert called(capsys, "verify", "--quiet", "--lake", lake) == (0, "", "")
