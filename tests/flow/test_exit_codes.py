from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest

import extractor
from extractor.clock import SystemClock
from extractor.lease import Leases
from extractor.stores.local import LocalStore

REDUCED = (
    "providers",
    "services",
    "service_replicas",
    "service_maintenance",
    "topologies",
    "notifications",
    "countries",
)


def included(*names: str) -> list[str]:
    return [flag for name in names for flag in ("--include", name)]


def contents(folder: Path) -> dict[str, bytes]:
    """What a reader of the lake sees."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "_extractor" not in path.relative_to(folder).parts
    }


def commits(lake: Path) -> int:
    return len(list(lake.glob("_extractor/log/*.json")))


def is_one_line_that_advises(complaint: str, *words: str) -> bool:
    return bool(complaint) and all(word in complaint for word in words)


# --- 2: nothing was requested -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (("--set", "limits.rte=1"), "limits.rte"),
        (("--set", "bogus"), "table.key=value"),
        (("--set", "limits.requests_per_second=0"), "must be more than 0"),
        (("--include", "servces"), "did you mean services?"),
        (("--set", 'source.catalogs=["nowhere"]'), "nowhere"),
        (("--set", 'source.catalogs=["broken"]'), "broken/x.toml"),
        (("--set", 'source.catalogs=["orphan"]'), "[kids]"),
        (("--set", 'source.catalogs=["lost"]'), "there is no endpoint"),
        (("--set", 'source.catalogs=["keyless"]'), "key"),
        (("--api-key-file", "other"), "two different API keys"),
    ],
)
def test_what_is_wrong_before_the_first_request_is_2_and_leaves_no_lake(
    argv: Sequence[str], told: str, healthy: Any, program: Any
) -> None:
    texts = {
        "broken": "[kids",
        "orphan": '[kids]\npath = "/x/{id}"',
        "lost": '[kids]\npath = "/x/{id}"\nparent = { endpoint = "nobody", params = { id = "id" } }',
        "keyless": '[kids]\npath = "/x"\nsync = "append"',
    }
    for name, text in texts.items():
        (program.folder / name).mkdir()
        (program.folder / name / "x.toml").write_text(text)
    (program.folder / "other").write_text(program.key[:-1] + "e")
    (program.folder / "other").chmod(0o600)
    before = healthy.stats["requests"]

    found = program.run(healthy, "lake", *argv)

    assert found.code == 2
    assert is_one_line_that_advises(found.complaint, told)
    assert found.err.count("\n") == 1
    assert not program.lake("lake").exists()
    assert healthy.stats["requests"] == before


# --- 3: partial ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pattern(healthy: Any, module_program: Any) -> Path:
    """A lake as a good run leaves it."""
    assert module_program.run(healthy, "lake", *included(*REDUCED)).code == 0
    lake = module_program.lake("lake")
    assert isinstance(lake, Path)
    return lake


@pytest.fixture
def landed(pattern: Path, program: Any) -> dict[str, bytes]:
    """What a good run left in `lake`."""
    shutil.copytree(pattern, program.lake("lake"))
    return contents(pattern)


def test_a_denied_child_alone_is_3_and_everything_else_is_there(
    serve: Callable[..., Any], program: Any
) -> None:
    site = serve("--deny", "/provisioning/v1/services/*/replicas")

    found = program.run(site, "lake", *included(*REDUCED))

    assert found.code == 3
    assert set(found.told("denied")) == {"service_replicas"}
    assert is_one_line_that_advises(found.complaint, "service_replicas", "403", "next run")
    assert site.judge(program.lake("lake")) == {}
    assert set(extractor.Lake(str(program.lake("lake"))).tables()) == set(REDUCED) - {"service_replicas"}


def test_a_denied_parent_keeps_its_last_state_and_that_of_its_children(
    serve: Callable[..., Any], program: Any, landed: dict[str, bytes]
) -> None:
    site = serve("--deny", "/provisioning/v1/services")

    found = program.run(site, "lake", *included(*REDUCED))

    assert found.code == 3
    assert found.statuses["services"] == "denied"
    assert {found.statuses["service_replicas"], found.statuses["service_maintenance"]} == {"denied"}
    assert contents(program.lake("lake")) == landed
    assert site.judge(program.lake("lake")) == {}


def test_an_endpoint_that_keeps_failing_is_partial_and_keeps_its_last_state(
    serve: Callable[..., Any], program: Any, landed: dict[str, bytes]
) -> None:
    site = serve("--fault", "500=1")

    found = program.run(site, "lake", *included("services", "topologies"), "--set", "limits.retry_attempts=2")

    assert found.code == 3
    assert {found.statuses["services"], found.statuses["topologies"]} == {"failed"}
    assert is_one_line_that_advises(found.complaint, "services", "500", "2 attempts")
    assert contents(program.lake("lake")) == landed


# --- 4: the key ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv",
    [
        (),
        ("--set", "source.auth=bearer"),
        ("--include", "metrics"),
    ],
)
def test_a_wrong_key_is_4_and_nothing_is_in_the_lake(
    argv: Sequence[str], serve: Callable[..., Any], program: Any
) -> None:
    site = serve("--key", "another", "--variant", "observability-400")

    found = program.run(site, "lake", *argv)

    assert found.code == 4
    assert is_one_line_that_advises(found.complaint, "API key", "revoked")
    assert not program.lake("lake").exists()


@pytest.mark.parametrize("auth", ["api_key", "bearer"])
def test_a_key_that_is_revoked_on_the_way_is_4_and_the_lake_stays_as_it_was(
    auth: str, serve: Callable[..., Any], program: Any, landed: dict[str, bytes]
) -> None:
    site = serve("--revoke-after", "12")
    before = commits(program.lake("lake"))

    found = program.run(site, "lake", "--set", f"source.auth={auth}")

    assert found.code == 4
    assert contents(program.lake("lake")) == landed
    assert commits(program.lake("lake")) == before


def test_a_key_that_may_read_nothing_of_what_was_selected_is_4(
    serve: Callable[..., Any], program: Any
) -> None:
    site = serve("--deny", "*")

    found = program.run(site, "lake", *included(*REDUCED))

    assert found.code == 4
    assert is_one_line_that_advises(found.complaint, "may read nothing", "check")
    assert not program.lake("lake").exists()


def test_no_key_at_all_is_4(healthy: Any, program: Any) -> None:
    program.key = ""

    found = program.run(healthy, "lake")

    assert found.code == 4
    assert is_one_line_that_advises(found.complaint, "SKYSQL_API_KEY", "--api-key-file")
    assert not program.lake("lake").exists()


# --- check: the code that a run would end with ----------------------------------------------------------------


def checked(program: Any, site: Any, *argv: str, **environment: str) -> Any:
    base_url = f"source.base_url={site.url}"
    return program.call([*program.command, "check", "--lake", "lake", "--set", base_url, *argv], environment)


def test_a_check_of_a_wrong_key_is_4_and_leaves_no_lake(serve: Callable[..., Any], program: Any) -> None:
    found = checked(program, serve("--key", "another"))

    assert found.code == 4
    assert is_one_line_that_advises(found.complaint, "refused", "generate a new key")
    assert not program.lake("lake").exists()


def test_a_check_of_a_key_that_is_denied_everywhere_is_4_and_of_one_denied_here_and_there_3(
    serve: Callable[..., Any], program: Any
) -> None:
    nowhere = checked(program, serve("--deny", "*"), *included(*REDUCED))
    partly = checked(program, serve("--deny", "/provisioning/*"), *included(*REDUCED))

    assert (nowhere.code, partly.code) == (4, 3)


def test_a_check_and_a_run_end_alike_where_one_account_of_two_is_refused(
    serve: Callable[..., Any], program: Any
) -> None:
    site = serve("--key", program.key)
    accounts = [f'[[accounts]]\nname = "{name}"\nkey_env = "{name.upper()}"\n' for name in ("one", "two")]
    (program.folder / "two.toml").write_text("".join(accounts))
    argv = ("--config", "two.toml", *included("services", "countries"))

    for other, code in (("wrong", 3), (program.key, 0)):
        keys = {"ONE": program.key, "TWO": other}
        assert checked(program, site, *argv, **keys).code == code
        assert program.run(site, "lake", *argv, **keys).code == code
    assert checked(program, site, *argv, ONE="wrong", TWO="bad").code == 4


# --- 5, 9, 130, 143: a run in time --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def slow(serve: Callable[..., Any]) -> Any:
    """A sandbox in which a run takes many seconds."""
    return serve("--latency-ms", "200")


SLOWLY = (*included(*REDUCED, "topology_options", "topology_nodes"), "--set", "limits.concurrency=2")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_commits_what_is_complete_and_meanwhile_no_other_run_may_write(
    number: signal.Signals, code: int, slow: Any, program: Any
) -> None:
    child = program.start(slow, "lake", *SLOWLY)

    second = program.run(slow, "lake", *included("services"))
    child.send_signal(number)
    out, err = child.communicate(timeout=60)

    complete = {table["name"] for table in json.loads(out)["tables"] if table["status"] == "complete"}
    assert second.code == 5
    assert is_one_line_that_advises(second.complaint, "services", f"process {child.pid}", "wait")
    assert child.returncode == code
    assert is_one_line_that_advises(err.splitlines()[-1], "interrupted", "the next run resumes the rest")
    assert complete
    assert not complete & set(slow.judge(program.lake("lake")))
    assert commits(program.lake("lake")) == 1
    assert "Traceback" not in out + err


def test_a_deadline_is_9_and_commits_what_is_complete_and_the_next_run_gets_the_rest(
    slow: Any, program: Any
) -> None:
    found = program.run(slow, "lake", *SLOWLY, "--set", "limits.run_seconds=1.5")
    early = set(slow.judge(program.lake("lake")))
    rest = program.run(slow, "lake", *SLOWLY, "--set", "limits.concurrency=32")

    assert found.code == 9
    assert is_one_line_that_advises(found.complaint, "deadline", "limits.run_seconds", "next run")
    assert found.complaint.count("limits.run_seconds") == 1
    assert set(found.told("complete"))
    assert set(found.told("partial")) | set(found.told("skipped"))
    assert not early & set(found.told("complete"))
    assert rest.code == 0, rest.complaint
    assert slow.judge(program.lake("lake")) == {}


@pytest.fixture
def taken(program: Any) -> Iterator[None]:
    """A lake whose users another verb has, that needs them only for a moment."""
    leases = Leases(
        LocalStore(program.lake("lake")),
        run_id="compacting",
        clock=SystemClock(),
        tables=[("users", "default")],
        is_brief=True,
    )
    leases.acquire()
    yield
    leases.release()


@pytest.mark.usefixtures("taken")
def test_a_deadline_counts_while_another_verb_has_the_tables(slow: Any, program: Any) -> None:
    found = program.run(slow, "lake", *included("users"), "--set", "limits.run_seconds=0.5")

    assert found.code == 9
    assert is_one_line_that_advises(found.complaint, "deadline", "another verb had the tables")
    assert commits(program.lake("lake")) == 0


@pytest.mark.usefixtures("taken")
def test_a_signal_ends_a_run_that_waits_for_another_verb(slow: Any, program: Any) -> None:
    arguments = program.arguments(slow, "lake", *included("users"))
    beats = program.lake("lake") / "_extractor" / "leases" / "beats"
    with subprocess.Popen(
        arguments, stdout=PIPE, stderr=PIPE, text=True, cwd=program.folder, env=program.environment({})
    ) as child:
        # It asks for the tables again and again, with a sign of life each time.
        before = {path.name for path in beats.iterdir()}
        while not {path.name for path in beats.iterdir()} - before:
            assert child.poll() is None
        child.send_signal(signal.SIGTERM)
        out, err = child.communicate(timeout=10)

    assert child.returncode == 143
    assert json.loads(out)["status"] == "interrupted"
    assert is_one_line_that_advises(err.splitlines()[-1], "SIGTERM", "another verb had the tables")
    assert commits(program.lake("lake")) == 0


# --- 6: drift -----------------------------------------------------------------------------------------------


def test_drift_that_the_policy_refuses_is_6_and_holds_back_those_tables(
    serve: Callable[..., Any], program: Any, landed: dict[str, bytes]
) -> None:
    site = serve("--variant", "extra-fields")

    refused = program.run(site, "lake", *included(*REDUCED), "--set", "run.schema=fail")
    kept = contents(program.lake("lake"))
    rescued = program.run(site, "lake", *included(*REDUCED), "--set", "run.schema=rescue")

    assert refused.code == 6
    assert "services" in refused.told("held")
    assert is_one_line_that_advises(refused.complaint, "held: ", "run.schema=evolve")
    assert refused.report["drift"]
    assert {path: kept.get(path) for path in landed} == landed
    assert rescued.code == 0
    # Rows of events were added at first sight, when they had no extra fields.
    assert set(site.judge(program.lake("lake"))) == {"notifications"}


# --- 7: the lake --------------------------------------------------------------------------------------------


def test_a_lake_that_cannot_be_is_7_and_nothing_is_requested(healthy: Any, program: Any) -> None:
    (program.folder / "file").write_text("a file")
    before = healthy.stats["requests"]

    found = program.run(healthy, "file")

    assert found.code == 7
    assert is_one_line_that_advises(found.complaint, "file", "choose another lake")
    assert (program.folder / "file").read_text() == "a file"
    assert healthy.stats["requests"] == before


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_lake_that_may_not_be_written_is_7(healthy: Any, program: Any) -> None:
    program.lake("lake").mkdir(mode=0o500)

    found = program.run(healthy, "lake")

    assert found.code == 7
    assert is_one_line_that_advises(found.complaint, "lake")


@pytest.mark.parametrize("folder", ["lists", "log"])
def test_a_damaged_log_is_7_and_is_named(
    folder: str, healthy: Any, program: Any, landed: dict[str, bytes]
) -> None:
    for file in (program.lake("lake") / "_extractor" / folder).iterdir():
        file.write_bytes(file.read_bytes()[:-2])

    found = program.run(healthy, "lake", *included(*REDUCED))

    assert found.code == 7
    assert is_one_line_that_advises(found.complaint, f"_extractor/{folder}/", "restore")
    assert contents(program.lake("lake")) == landed


# --- 10: the source -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("auth", ["api_key", "bearer"])
def test_a_source_that_nobody_answers_for_is_10_and_nothing_is_committed(
    auth: str, healthy: Any, program: Any
) -> None:
    nowhere = "http://127.0.0.1:9"
    argv = ["--set", "limits.retry_attempts=2", "--set", "limits.retry_seconds=3"]
    for key in ("base_url", "token_url", "keyinfo_url"):
        argv += ["--set", f"source.{key}={nowhere}"]

    found = program.run(healthy, "lake", *argv, "--set", f"source.auth={auth}")

    assert found.code == 10
    assert is_one_line_that_advises(found.complaint, "127.0.0.1:9", "could not be reached", "check")
    assert not program.lake("lake").exists()
