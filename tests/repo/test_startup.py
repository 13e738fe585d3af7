"""What a start may cost: which modules it does without, and how much processor time it takes."""

from __future__ import annotations

import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import extractor
from tests.bench.startup import Empty

# Tens to hundreds of milliseconds each: for those who speak to a server or read rows.
HEAVY = {"aiohttp", "asyncio", "numpy", "pandas", "pyarrow", "rich", "ssl"}

# Run by the interpreter that is tested; what it says of itself in the end stands behind the last mark.
MAIN = """
import sys
from extractor.cli import main
try:
    main()
except SystemExit as stop:
    assert stop.code in (None, 0), stop.code
"""
LOADED = (
    MAIN + "print('loaded:', *sorted(name for name in sys.modules if sys.modules[name]), file=sys.stderr)"
)
COLLECTS = MAIN + "import gc; print('loaded:', gc.isenabled(), gc.get_freeze_count() > 0, file=sys.stderr)"

# What a run cannot do without.
NEEDED = (
    "aiohttp, anyio, click, msgspec, orjson, platformdirs, "
    "pyarrow, pyarrow.parquet, pyarrow.json, pyarrow.compute, rich"
)

STARTS = {
    "help": ("--help",),
    "help of a verb": ("run", "--help"),
    "catalog": ("catalog",),
    "plan without a lake": ("plan",),
    "plan after a run": ("plan", "--lake", "LAKE"),
}


def _environment(*before: Path) -> dict[str, str]:
    """The package that this test imported, whether installed or not; byte code is kept, as it is for users."""
    assert extractor.__file__ is not None
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    paths = (*before, Path(extractor.__file__).parents[1])
    return kept | {"PYTHONPATH": os.pathsep.join(map(str, paths)), "SKYSQL_API_KEY": "any"}


def _say(code: str, *argv: str, cwd: Path, environment: Mapping[str, str] | None = None) -> list[str]:
    """What the code says behind its last mark."""
    done = subprocess.run(
        (sys.executable, "-c", code, *argv),
        cwd=cwd,
        env=environment or _environment(),
        input="",
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr.rpartition("loaded:")[2].split()


@pytest.fixture(scope="module")
def run() -> Iterator[tuple[str, ...]]:
    """The arguments of a run of one endpoint that has no rows; it lacks a lake."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Empty) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        yield ("run", "--quiet", "--include", "services", "--set", f"source.base_url={url}", "--lake")
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def lake(run: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A lake that holds one run. Made by the start that is measured, so its byte code is written by now."""
    folder = tmp_path_factory.mktemp("earlier")
    _say(MAIN, *run, "lake", cwd=folder)
    return str(folder / "lake")


# --- modules ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", STARTS)
def test_who_asks_for_no_rows_waits_for_nothing_that_reads_them(
    start: str, lake: str, tmp_path: Path
) -> None:
    argv = [lake if word == "LAKE" else word for word in STARTS[start]]

    loaded = set(_say(LOADED, *argv, cwd=tmp_path))

    assert "extractor.cli.app" in loaded
    assert loaded & HEAVY == set()


def test_a_verb_is_imported_without_the_others(tmp_path: Path) -> None:
    loaded = set(_say(LOADED, "run", "--help", cwd=tmp_path))

    assert "extractor.cli.run" in loaded
    assert loaded & {"extractor.cli.demo", "extractor.cli.init", "extractor.cli.sandbox"} == set()


def test_a_run_uses_no_numpy_and_no_pandas_where_they_are_installed(
    run: tuple[str, ...], tmp_path: Path
) -> None:
    for name in ("numpy", "pandas"):
        (tmp_path / "installed" / name).mkdir(parents=True)
        (tmp_path / "installed" / name / "__init__.py").write_text(
            f"raise RuntimeError('{name} is imported')"
        )

    loaded = _say(LOADED, *run, "lake", cwd=tmp_path, environment=_environment(tmp_path / "installed"))

    assert "pyarrow" in loaded
    assert {"numpy", "pandas"} & set(loaded) == set()


# --- garbage collection -------------------------------------------------------------------------------------


def test_garbage_is_collected_once_a_run_begins(run: tuple[str, ...], tmp_path: Path) -> None:
    assert _say(COLLECTS, *run, "lake", cwd=tmp_path) == ["True", "True"]


def test_garbage_is_collected_while_the_sandbox_serves(tmp_path: Path) -> None:
    assert _say(COLLECTS, "sandbox", "--until-stdin-ends", "--port", "0", cwd=tmp_path) == ["True", "True"]


def test_who_imports_the_package_keeps_numpy_and_garbage_collection(tmp_path: Path) -> None:
    (tmp_path / "installed" / "numpy").mkdir(parents=True)
    (tmp_path / "installed" / "numpy" / "__init__.py").touch()
    code = """
import gc, sys
import extractor.cli.extraction
from extractor.cli.app import invoke
invoke(["catalog"])
import numpy
print("loaded:", gc.isenabled(), gc.get_freeze_count(), numpy.__name__, file=sys.stderr)
"""

    told = _say(code, cwd=tmp_path, environment=_environment(tmp_path / "installed"))

    assert told == ["True", "0", "numpy"]


# --- processor time -----------------------------------------------------------------------------------------


def _cpu_seconds(code: str, argv: tuple[str, ...], cwd: Path) -> float:
    child = subprocess.Popen(
        (sys.executable, "-c", code, *argv),
        cwd=cwd,
        env=_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0
    return usage.ru_utime + usage.ru_stime


@pytest.mark.parametrize(
    ("name", "imports", "ratio_max", "seconds_max"),
    [("help", "click", 4, 1), ("plan", "click", 8, 2), ("run", NEEDED, 1.7, 4)],
)
def test_a_start_costs_little_more_than_importing_what_it_needs(
    name: str,
    imports: str,
    ratio_max: float,
    seconds_max: float,
    run: tuple[str, ...],
    lake: str,
    tmp_path: Path,
) -> None:
    argv = {"help": ("--help",), "plan": ("plan", "--lake", lake), "run": run}[name]
    mine: list[float] = []
    alone: list[float] = []

    # In turn, and the least of each: others who use the machine can only add to it.
    for turn in range(3):
        last = (str(tmp_path / f"lake-{turn}"),) if name == "run" else ()
        mine.append(_cpu_seconds(MAIN, (*argv, *last), tmp_path))
        alone.append(_cpu_seconds(f"import {imports}", (), tmp_path))

    assert min(mine) < ratio_max * min(alone)
    assert min(mine) < seconds_max
