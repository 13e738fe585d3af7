"""How each tool is told to read a case: its command, its environment, and where its Parquet files then lie."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from tests.bench.cases import Case
from tests.bench.shapes import SHAPES

__all__ = (
    "BUILD",
    "PAGES",
    "TOOLS",
    "TOP",
    "Interpreters",
    "Job",
    "make_job",
    "ours_command",
    "ours_environment",
    "write_catalogue",
    "write_config",
)

TOOLS = ("ours", "bare", "bare-exact", "limit", "dlt", "dlt-arrow")
TOP = Path(__file__).parents[2]
BUILD = TOP / "build" / "bench"
PAGES = BUILD / "pages"

_CONFIG = """\
[source]
base_url = "{base}"
catalogs = ["catalogue"]
builtin = false

[limits]
requests_per_second = 100000
concurrency = {concurrency}

[bounds]
{bounds}

[lake]
uri = "lake"
"""

_ENDPOINT = """\
[{name}]
path = "{path}"
records = "/data"
paging = {{ kind = "token", request_param = "page_token", response_pointer = "/next_page_token" }}
key = ["id"]

[{name}.columns]
{columns}

"""

# What its documentation offers to make it fast; see the README for what was tried.
_DLT = {
    "EXTRACT__WORKERS": "16",
    "NORMALIZE__WORKERS": "2",
    "LOAD__WORKERS": "2",
    "DATA_WRITER__BUFFER_MAX_ITEMS": "20000",
    "DATA_WRITER__FILE_MAX_ITEMS": "50000",
    "EXTRACT__MAX_PARALLEL_ITEMS": "64",
    "RUNTIME__DLTHUB_TELEMETRY": "false",
    "RUNTIME__LOG_LEVEL": "ERROR",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Interpreters:
    """The Python of the product and the bare loop, and that of the other tools.

    With `is_tree` the product is not an installed one but that of this folder.
    """

    ours: Path
    peers: Path
    is_tree: bool = False

    @classmethod
    def chosen(cls, python: Path | None) -> Interpreters:
        """Those that `make bench` has installed, or `python` for the tree."""
        peers = BUILD / "venv-peers/bin/python"
        if python is None:
            return cls(ours=BUILD / "venv/bin/python", peers=peers)
        return cls(ours=python.absolute(), peers=peers, is_tree=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One process to run in `folder`; `pattern` finds its Parquet files there."""

    command: tuple[str, ...]
    folder: Path
    pattern: str
    environment: Mapping[str, str] = field(default_factory=dict)


def make_job(
    tool: str, case: Case, url: str, pages: Path, folder: Path, pythons: Interpreters, *, empty: bool = False
) -> Job:
    """The job of `tool`, whose fresh `folder` is filled with what it needs; `pages` is where the server has them.

    With `empty` it reads one endpoint without rows: what it then takes is its start-up.
    """
    late = f"/late/{case.latency_ms}" if case.latency_ms and not empty else ""
    base, path = url, f"{late}/empty" if empty else f"{late}/{case.pages.name}"
    names = ("e00",) if empty else case.pages.names
    if tool == "ours":
        return _ours(case, base, path, names, folder, pythons)
    environment = _environment() | {"PYTHONPATH": str(TOP)}
    tables = ",".join(names)
    if tool in ("bare", "bare-exact", "limit"):
        options: dict[str, tuple[str, ...]] = {
            "bare": (),
            "bare-exact": ("--decoder", "exact"),
            "limit": ("--pages", str(pages / ("empty" if empty else case.pages.name))),
        }
        asked = (f"{base}{path}", tables, case.pages.shape, ".", "--concurrency", str(case.concurrency))
        return Job(
            command=(str(pythons.ours), "-m", "tests.bench.bare", *asked, *options[tool]),
            folder=folder,
            pattern="*.parquet",
            environment=environment,
        )
    environment |= _DLT | {"DLT_DATA_DIR": str(folder / "dlt")}
    command = (str(pythons.peers), "-m", "tests.bench.peers", tool, base, path, tables, case.pages.shape, ".")
    return Job(command=command, folder=folder, pattern="lake/rows/e*/**/*.parquet", environment=environment)


def write_catalogue(
    folder: Path,
    shape: str,
    path: str,
    names: tuple[str, ...],
    *,
    more: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Endpoints with declared columns, and `more` of them, as a user would write them."""
    declared = {**SHAPES[shape].columns, **more}
    columns = "\n".join(f'{name} = "{kind}"' for name, kind in declared.items())
    text = "".join(_ENDPOINT.format(name=name, path=f"{path}/{name}", columns=columns) for name in names)
    folder.mkdir()
    (folder / "endpoints.toml").write_text(text)


def write_config(folder: Path, base: str, *, concurrency: int, bounds: str = "") -> None:
    (folder / "bench.toml").write_text(_CONFIG.format(base=base, concurrency=concurrency, bounds=bounds))


def ours_command(pythons: Interpreters) -> tuple[str, ...]:
    """`skysql-extract run`, as installed or of this folder."""
    if pythons.is_tree:
        program: tuple[str, ...] = (str(pythons.ours), "-m", "extractor")
    else:
        program = (str(pythons.ours.parent / "skysql-extract"),)
    return (*program, "run", "--config", "bench.toml", "--quiet")


def ours_environment(pythons: Interpreters) -> dict[str, str]:
    environment = _environment() | {"SKYSQL_API_KEY": "any"}
    return environment | {"PYTHONPATH": str(TOP)} if pythons.is_tree else environment


def _ours(
    case: Case, base: str, path: str, names: tuple[str, ...], folder: Path, pythons: Interpreters
) -> Job:
    write_catalogue(folder / "catalogue", case.pages.shape, path, names)
    write_config(folder, base, concurrency=case.concurrency)
    return Job(
        command=ours_command(pythons),
        folder=folder,
        pattern="lake/e*/**/*.parquet",
        environment=ours_environment(pythons),
    )


def _environment() -> dict[str, str]:
    """The caller's, without what would steer a tool or send it through a proxy."""
    steering = ("PYTHON", "SKYSQL_", "DLT_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(steering)}
    return kept | {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
