from __future__ import annotations

import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

import extractor
from extractor.cli.app import invoke
from extractor.cli.failure import exit_code_for, first_code, message_for
from extractor.cli.output import Output
from extractor.config import Config, load_config
from extractor.errors import (
    AuthError,
    ConfigError,
    ExtractError,
    LakeBusy,
    LakeError,
    NetworkError,
    SourceUnreachable,
)

VERBS = (
    *("run", "demo", "init", "plan", "check", "catalog"),
    *("runs", "show", "files", "sql", "diff", "verify", "backfill", "compact", "expire", "ddl"),
    "sandbox",
)
KEY = "skysql.1zzz.ab12cd34." + "Q7" * 18 + ".0a1b2c3d"


def command(*argv: str) -> list[str]:
    return [sys.executable, "-m", "extractor", *argv]


def environment(**more: str) -> dict[str, str]:
    """An environment in which this very package is found, without settings of whoever runs the tests."""
    root = str(Path(extractor.__file__).parents[1])
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SKYSQL_")}
    return {**kept, "PYTHONPATH": root, **more}


def call(*argv: str, folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*argv),
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment(**more),
        timeout=60,
        stdin=subprocess.DEVNULL,
        check=False,
    )


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and no settings in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("SKYSQL_"):
            monkeypatch.delenv(name)
    return tmp_path


# --- help ---------------------------------------------------------------------------------------------------


def test_a_bare_call_prints_the_three_lines_that_a_newcomer_needs(folder: Path) -> None:
    found = call(folder=folder)

    assert found.returncode == 0
    assert found.stderr == ""
    assert [line.split()[:2] for line in found.stdout.splitlines()] == [
        ["skysql-extract", "demo"],
        ["skysql-extract", "run"],
        ["skysql-extract", "init"],
    ]


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_each_verb_ends_in_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = invoke([verb, "--help"])

    text = capsys.readouterr().out
    assert code == 0
    assert f"  skysql-extract {verb}" in text.partition("Example:")[2]


def test_the_help_lists_exactly_the_verbs_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    invoke(["--help"])

    listed = capsys.readouterr().out.partition("Commands:")[2].strip().splitlines()
    assert tuple(line.split()[0] for line in listed) == VERBS


def test_the_help_of_the_sandbox_shows_its_flags(capsys: pytest.CaptureFixture[str]) -> None:
    invoke(["sandbox", "--help"])

    text = capsys.readouterr().out
    for flag in ("--port", "--services", "--fault", "--rate-limit", "--seed"):
        assert flag in text


def test_help_imports_nothing_heavy(folder: Path) -> None:
    heavy = ("aiohttp", "pyarrow", "rich", "msgspec", "duckdb", "yaml")
    program = (
        "import sys; from extractor.cli.app import invoke; invoke(['run', '--help']); "
        f"print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr)"
    )

    found = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment(),
        timeout=60,
        check=True,
    )

    assert found.stderr.strip() == "[]"


def test_the_version_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["--version"]) == 0
    assert capsys.readouterr().out.startswith("skysql-extract ")


# --- wrong usage --------------------------------------------------------------------------------------------

WRONG: tuple[tuple[Sequence[str], str], ...] = (
    (("rnu",), "unknown verb 'rnu'; did you mean run?"),
    (("run", "--inclde", "x"), "--inclde"),
    (("run", "--set", "limits.concurency=8"), "did you mean limits.concurrency?"),
    (("run", "--set", "limits"), "write --set table.key=value"),
    (("run", "--set", "limits.concurrency=many"), "limits.concurrency"),
    (("run", "--config", "absent.toml"), "absent.toml: cannot be read"),
    (("run", "--lake", ""), "--lake is empty"),
    (("run", "--lake"), "--lake"),
    (("run", "surplus"), "surplus"),
    (("plan", "--set", "lake.format=delta"), "lake.format"),
    (("catalog", "servces"), "did you mean services?"),
    (("catalog", "--include", "servces"), "did you mean services?"),
    (("catalog", "--tag", "inventry"), "did you mean inventory?"),
    (("catalog", "--against", "absent.yaml"), "absent.yaml"),
    (("sandbox", "--port", "many"), "--port"),
    (("sandbox", "--fault", "fire=1"), "unknown fault 'fire'"),
    (("demo", "--services", "-1"), "--services"),
    (("show",), "RUN"),
)


@pytest.mark.parametrize(("argv", "told"), WRONG)
def test_wrong_usage_ends_in_one_line_and_exit_code_2(
    argv: Sequence[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = invoke(argv)

    out, err = capsys.readouterr()
    assert code == 2
    assert out == ""
    assert err.startswith("skysql-extract: ")
    assert err.count("\n") == 1
    assert told in err


def test_a_wrong_configuration_file_is_named_with_its_key(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.joinpath("skysql-extract.toml").write_text("[limits]\nconcurrencyy = 3\n")

    code = invoke(["run", "--json"])

    out, err = capsys.readouterr()
    assert code == 2
    assert "skysql-extract.toml: unknown key limits.concurrencyy; did you mean limits.concurrency?" in err
    assert err.count("\n") == 1
    assert json.loads(out)["exit_code"] == 2


@pytest.mark.parametrize(
    "argv", [("run", "--json", "--set", "x"), ("--json", "rnu"), ("run", "--jsno", "--json")]
)
def test_with_json_a_failure_is_an_object_with_the_keys_of_a_report(
    argv: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code = invoke(argv)

    found = json.loads(capsys.readouterr().out)
    assert (code, found["status"], found["exit_code"], found["tables"]) == (2, "error", 2, [])
    assert {"run_id", "requests", "seconds", "drift", "warnings", "message"} <= set(found)


def test_global_flags_may_stand_before_the_verb(capsys: pytest.CaptureFixture[str]) -> None:
    before = invoke(["--json", "--include", "services", "catalog"])
    first = capsys.readouterr().out
    after = invoke(["catalog", "--json", "--include", "services"])

    assert (before, after) == (0, 0)
    assert capsys.readouterr().out == first


def test_a_key_on_the_command_line_is_refused_and_not_repeated(folder: Path) -> None:
    for argv in (("run", KEY), ("run", "--api-key", KEY), (KEY,), ("run", f"--api-key={KEY}")):
        found = call(*argv, folder=folder)

        assert found.returncode == 2
        assert "Q7Q7" not in found.stdout + found.stderr


# --- exit codes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), 2),
        (LakeBusy("x"), 5),
        (LakeError("x"), 7),
        (AuthError("x"), 4),
        (SourceUnreachable("x"), 10),
        (NetworkError("x"), 3),
        (ExtractError("x"), 1),
        (KeyboardInterrupt(), 130),
        (ZeroDivisionError("x"), 1),
        (ExceptionGroup("g", [AuthError("x"), ExceptionGroup("h", [LakeBusy("y")])]), 5),
        (ExceptionGroup("g", [AuthError("x"), KeyError("y")]), 1),
    ],
)
def test_each_failure_has_its_exit_code(error: BaseException, code: int) -> None:
    assert exit_code_for(error) == code


def test_of_several_codes_the_one_that_the_contract_names_first_counts() -> None:
    assert first_code([0, 3, 10, 4, 130]) == 4
    assert first_code([3, 6, 9]) == 9
    assert first_code([]) == 0


def test_a_fault_of_the_program_is_named_by_type_and_place_and_never_by_its_words() -> None:
    with pytest.raises(AttributeError) as raised:
        load_config(environment=None, settings=(1,))  # type: ignore[arg-type]  # a fault is what is wanted

    message = message_for(raised.value)
    assert message.startswith("fault of the program: AttributeError at extractor/config.py:")
    assert "partition" not in message
    assert "\n" not in message


def test_the_worst_of_a_group_speaks_for_it() -> None:
    group = ExceptionGroup("g", [AuthError("the key expired"), LakeError("the disk is full")])

    assert message_for(group) == "the disk is full"


def test_no_text_shows_a_secret_or_steers_the_terminal() -> None:
    output = Output(secrets=["hunter2hunter2"])

    assert output.shown("a hunter2hunter2 \x1b[31mb\r\u202e") == "a [redacted] �[31mb��"


# --- init ---------------------------------------------------------------------------------------------------


def test_init_writes_a_file_that_loads_and_holds_every_default_as_a_comment(folder: Path) -> None:
    assert invoke(["init", "--quiet"]) == 0

    file = folder / "skysql-extract.toml"
    whole = "\n".join(
        line.removeprefix("# ") if " = " in line and not line.startswith("# name") else line
        for line in file.read_text().partition("# Several accounts")[0].splitlines()
    )
    written = tomllib.loads(whole)
    sections = {key: value for key, value in msgspec.to_builtins(Config()).items() if key in written}
    assert written == json.loads(json.dumps(sections))
    assert load_config(file, environment={}) == msgspec.structs.replace(
        Config(), lake=msgspec.structs.replace(Config().lake, uri=str(folder / "lake"))
    )


def test_init_puts_what_flags_say_into_force(folder: Path) -> None:
    argv = [
        "--lake",
        "data/lake",
        "--include",
        "services*",
        "--include",
        "bills",
        "--set",
        "limits.concurrency=8",
    ]

    code = invoke(["init", "-o", "conf/my.toml", "--quiet", *argv, "--set", "run.pii=hash"])

    config = load_config(folder / "conf" / "my.toml", environment={})
    assert code == 0
    assert Path(config.lake.uri).resolve() == folder / "data" / "lake"
    assert config.run.include == ("services*", "bills")
    assert (config.limits.concurrency, config.run.pii) == (8, "hash")


def test_init_never_overwrites_unless_forced(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = folder / "skysql-extract.toml"
    file.write_text("# mine\n")

    refused = invoke(["init"])
    kept = file.read_text()
    forced = invoke(["init", "--force", "--quiet"])

    assert (refused, kept, forced) == (2, "# mine\n", 0)
    assert "--force" in capsys.readouterr().err
    assert "[limits]" in file.read_text()


def test_init_says_what_to_do_next(capsys: pytest.CaptureFixture[str]) -> None:
    invoke(["init", "-o", "my.toml"])

    text = capsys.readouterr().out
    for verb in ("check", "plan", "run"):
        assert f"skysql-extract {verb} --config my.toml" in text


# --- catalog ------------------------------------------------------------------------------------------------


def test_the_catalogue_as_json_is_a_list_of_whole_objects(capsys: pytest.CaptureFixture[str]) -> None:
    code = invoke(["catalog", "--json"])

    found = json.loads(capsys.readouterr().out)
    services = next(endpoint for endpoint in found if endpoint["name"] == "services")
    assert code == 0
    assert len(found) > 50
    assert services["path"] == "/provisioning/v1/services"
    assert services["paging"]["kind"] == "token"
    assert (services["sync"], services["key"], services["parent"]) == ("snapshot", ["id"], None)
    assert services["columns"]["id"] == {"type": "string", "class": ""}
    assert {"method", "format", "keep", "class", "tags", "origin", "enabled", "note", "file"} <= set(services)


def test_column_types_are_printed_as_an_endpoint_file_writes_them() -> None:
    from extractor.cli.catalog import type_text
    from extractor.endpoint import parse_type

    text = "list<struct<name: string, ports: map<string, list<int64>>>>"

    assert type_text(parse_type(text)) == text


def test_one_endpoint_is_shown_with_its_columns(capsys: pytest.CaptureFixture[str]) -> None:
    code = invoke(["catalog", "service_replicas"])

    text = capsys.readouterr().out
    assert code == 0
    assert "/provisioning/v1/services/{service_id}/replicas" in text
    assert "endpoint = services" in text


SPECIFICATION = """\
openapi: 3.0.0
info: {title: T, version: "1"}
paths:
  /provisioning/v1/services:
    get: {summary: known, responses: {"200": {description: ok}}}
"""


def test_comparing_exits_3_when_the_catalogue_lacks_a_get(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.joinpath("known.yaml").write_text(SPECIFICATION)
    folder.joinpath("more.yaml").write_text(
        SPECIFICATION + "  /new/v1/things:\n    get: {responses: {'200': {description: ok}}}\n"
    )

    known = invoke(["catalog", "--against", "known.yaml"])
    more = invoke(["catalog", "--against", "more.yaml", "--json"])

    out, err = capsys.readouterr()
    assert (known, more) == (0, 3)
    assert "/new/v1/things" in out
    assert "the catalogue lacks 1 GET of more.yaml, first /new/v1/things" in err


# --- streams ------------------------------------------------------------------------------------------------


def test_a_reader_that_goes_away_is_no_fault(folder: Path) -> None:
    with subprocess.Popen(
        command("catalog", "--json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=folder,
        env=environment(),
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.read(1)
        child.stdout.close()
        err = child.stderr.read()

    assert (child.returncode, err) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_a_result_that_cannot_be_written_is_no_success(folder: Path) -> None:
    with Path("/dev/full").open("w") as full:
        found = subprocess.run(
            command("catalog"),
            stdout=full,
            stderr=subprocess.PIPE,
            cwd=folder,
            env=environment(),
            check=False,
        )

    assert found.returncode == 1
    assert found.stderr == b"skysql-extract: the result cannot be written: No space left on device\n"


# --- sandbox ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_stream_that_whoever_started_it_has_closed_is_not_missed(closed: str, folder: Path) -> None:
    shown = subprocess.run(
        [
            "sh",
            "-c",
            f'"$@" {closed}',
            "sh",
            *command("demo", "--lake", "lake", "--include", "users", "--json"),
        ],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment(),
        check=False,
        timeout=60,
    )

    assert shown.returncode == 0, shown.stderr
    assert "Traceback" not in shown.stderr
    assert "fault of the program" not in shown.stderr
    if closed == "2>&-":
        assert json.loads(shown.stdout)["status"] == "complete"
    assert list(extractor.Lake(str(folder / "lake")).tables()) == ["users"]


def test_an_interrupt_while_the_program_starts_is_one_line(folder: Path) -> None:
    (folder / "click.py").write_text("raise KeyboardInterrupt\n")

    found = call("runs", folder=folder, PYTHONPATH=f"{folder}:{Path(extractor.__file__).parents[1]}")

    assert (found.returncode, found.stdout, found.stderr) == (130, "", "skysql-extract: interrupted\n")


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (
            ("backfill", "notifications", "--from", "0001-01-01", "--to", "2026-01-01"),
            "--from: '0001-01-01' lies",
        ),
        (
            ("backfill", "notifications", "--from", "2026-01-01", "--to", "9999-12-31"),
            "--to: '9999-12-31' lies",
        ),
        (("run", "--set", "run.since=999999999999d"), "'999999999999d' is more than a hundred years"),
        (("expire", "--older-than", "999999999999d"), "'999999999999d' is more than a hundred years"),
    ],
)
def test_a_time_that_cannot_be_is_wrong_usage(argv: tuple[str, ...], told: str, folder: Path) -> None:
    found = call(*argv, folder=folder, SKYSQL_API_KEY=KEY, SKYSQL_SOURCE__BASE_URL="http://127.0.0.1:9")

    assert (found.returncode, found.stderr.count("\n")) == (2, 1)
    assert told in found.stderr


def test_the_sandbox_prints_its_address_first_and_ends_when_told_to(folder: Path) -> None:
    with subprocess.Popen(
        command("sandbox", "--port", "0", "--services", "3"),
        stdout=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=environment(),
    ) as child:
        assert child.stdout is not None
        url = child.stdout.readline().strip()
        with urllib.request.urlopen(f"{url}/_sandbox/truth") as answer:
            status = answer.status
        child.send_signal(signal.SIGTERM)

    assert url.startswith("http://127.0.0.1:")
    assert (status, child.returncode) == (200, 0)


def test_a_sandbox_of_a_demo_ends_with_whoever_started_it(folder: Path) -> None:
    with subprocess.Popen(
        command("sandbox", "--until-stdin-ends", "--port", "0"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=environment(),
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        url = child.stdout.readline()
        child.stdin.close()
        code = child.wait(timeout=30)

    assert url.startswith("http://127.0.0.1:")
    assert code == 0


# --- with the pipeline --------------------------------------------------------------------------------------

SMALL = (
    "--services",
    "3",
    "--include",
    "services",
    "--include",
    "service_replicas",
    "--include",
    "providers",
)


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder with the lake of one small demo, and what the demo reported."""
    root = tmp_path_factory.mktemp("demo")
    found = call("demo", "--json", "--lake", "lake", *SMALL, folder=root)
    assert found.returncode == 0, found.stderr
    return root, json.loads(found.stdout)


def test_a_demo_needs_neither_key_nor_network_and_completes_every_table(
    extracted: tuple[Path, dict[str, Any]],
) -> None:
    _, report = extracted

    assert report["exit_code"] == 0
    assert {table["name"]: table["status"] for table in report["tables"]} == {
        "services": "complete",
        "service_replicas": "complete",
        "providers": "complete",
    }


def test_runs_and_show_tell_of_the_run_as_it_told_of_itself(
    extracted: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    root, report = extracted
    lake = str(root / "lake")

    codes = [invoke(["runs", "--json", "--lake", lake])]
    runs = json.loads(capsys.readouterr().out)
    codes.append(invoke(["show", "latest", "--json", "--lake", lake]))
    shown = json.loads(capsys.readouterr().out)
    codes.append(invoke(["show", report["run_id"], "--lake", lake]))
    text = capsys.readouterr().out

    assert codes == [0, 0, 0]
    assert [run["run_id"] for run in runs] == [report["run_id"]]
    assert shown["tables"] == report["tables"]
    assert f"{report['run_id']}: complete, 3 of 3 tables complete" in text


def test_files_names_every_file_with_its_rows_and_digest(
    extracted: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    root, report = extracted

    invoke(["files", "--json", "--lake", str(root / "lake")])

    found = json.loads(capsys.readouterr().out)
    rows = {table["name"]: table["rows"] for table in report["tables"]}
    assert {name: sum(file["rows"] for file in found if file["table"] == name) for name in rows} == rows
    for file in found:
        content = (root / "lake" / file["path"]).read_bytes()
        assert (file["bytes"], file["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
        assert file["partition"]["account"] == file["account"] == "default"


@pytest.mark.parametrize(
    ("argv", "told"),
    [(("files", "servces"), "did you mean services?"), (("show", "nothing"), "no run nothing")],
)
def test_an_unknown_table_or_run_is_wrong_usage(
    argv: Sequence[str],
    told: str,
    extracted: tuple[Path, dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = invoke([*argv, "--lake", str(extracted[0] / "lake")])

    assert code == 2
    assert told in capsys.readouterr().err


def test_what_a_demo_says_about_opening_the_lake_is_true(folder: Path) -> None:
    found = call("demo", *SMALL, folder=folder)

    lines = found.stdout.splitlines()
    python = next(line.strip() for line in lines if "python" in line and " -c " in line)
    query = next(line.strip() for line in lines if line.strip().startswith("duckdb -c"))
    opened = subprocess.run(
        [sys.executable, *shlex.split(python)[1:]], capture_output=True, text=True, cwd=folder, check=True
    )
    duckdb = pytest.importorskip("duckdb")
    assert found.returncode == 0
    assert "'id':" in opened.stdout
    assert (folder / "demo-lake").is_dir()
    assert duckdb.sql(shlex.split(query)[2]).count("*").fetchall() == [(3,)]


def test_a_plan_asks_for_nothing_and_names_every_table(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "key").write_text(KEY)
    (folder / "key").chmod(0o600)

    argv = [
        "plan",
        "--api-key-file",
        "key",
        "--set",
        "source.base_url=http://127.0.0.1:9",
        "--include",
        "services",
    ]
    codes = [invoke([*argv, "--json"]), invoke(argv)]

    out, err = capsys.readouterr()
    assert (codes, err) == ([0, 0], "")
    assert '"services"' in out
    assert "1 table into" in out


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        ((), 4),
        (("--api-key-file", "absent"), 2),
        (("--api-key-file", "key", "--include", "servces"), 2),
        (("--api-key-file", "key", "--set", "limits.retry_seconds=0"), 10),
    ],
)
def test_what_keeps_a_run_from_starting_is_told_in_one_line(
    flags: Sequence[str], code: int, folder: Path
) -> None:
    (folder / "key").write_text(KEY)
    (folder / "key").chmod(0o600)
    closed = ("--set", "source.base_url=http://127.0.0.1:9", "--include", "services")

    found = call("run", "--json", "--quiet", *closed, *flags, folder=folder)

    assert (found.returncode, json.loads(found.stdout)["exit_code"]) == (code, code)
    assert found.stderr.startswith("skysql-extract: ")
    assert found.stderr.count("\n") == 1
    assert "Q7Q7" not in found.stdout + found.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_in_good_order(number: signal.Signals, code: int, folder: Path) -> None:
    with subprocess.Popen(
        command("demo", "--rate-limit", "2", "--set", "limits.requests_per_second=2"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=environment(),
    ) as child:
        assert child.stderr is not None
        child.stderr.readline()  # the run has begun
        child.send_signal(number)
        out, err = child.communicate(timeout=60)

    assert child.returncode == code
    assert "the next run resumes the rest" in err.splitlines()[-1]
    assert "Traceback" not in out + err


def test_a_check_ends_in_the_remedy_of_what_is_wrong(folder: Path) -> None:
    found = call("check", "--set", "source.base_url=http://127.0.0.1:9", folder=folder)

    assert found.returncode == 4
    assert "FAIL" in found.stdout
    assert found.stderr.startswith("skysql-extract: ")
    assert found.stderr.count("\n") == 1
