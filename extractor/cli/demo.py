"""`demo`: the same run as ever, against the built-in sandbox: no account, no network."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from extractor.cli.arguments import Arguments, verb
from extractor.cli.output import PROGRAM

if TYPE_CHECKING:
    from extractor.config import Config

__all__ = ("demo",)

_LAKE = "demo-lake"
_REQUESTS_PER_SECOND = 500.0
# Shaped like a key, so that all that looks at keys is exercised; it opens nothing.
_KEY = f"skysql.demo.demodemo.{'Demo' * 9}.00000000"
# Neither the user's own lake nor the address of the real API may be taken for the demo's.
_IGNORED = ("SKYSQL_LAKE__", "SKYSQL_SOURCE__", "SKYSQL_API_KEY")
_EMPTY_FOLDER = Path(__file__).parent


@verb("demo", selects=True, example=f"{PROGRAM} demo --lake {_LAKE} --services 40 --seed 7")
@click.option("--services", type=click.IntRange(min=0), metavar="N", help="Services of the made-up account.")
@click.option("--seed", type=int, metavar="N", help="Equal seeds, equal data.")
@click.option(
    "--rate-limit", type=click.FloatRange(min=0), metavar="RPS", help="What the made-up server permits."
)
def demo(arguments: Arguments, services: int | None, seed: int | None, rate_limit: float | None) -> int:
    """Extract a made-up account: no key, no network.

    The same as run, against the built-in sandbox.
    """
    from extractor.cli.extraction import run_extraction, show_report

    given = {"--services": services, "--seed": seed, "--rate-limit": rate_limit}
    flags = [text for flag, value in given.items() if value is not None for text in (flag, str(value))]
    _load(arguments, "http://127.0.0.1")  # wrong settings are told of before anything starts
    with _sandbox(flags) as url:
        config = _load(arguments, url)
        report = run_extraction(config, arguments, environment={"SKYSQL_API_KEY": _KEY})
    code = show_report(report, arguments)
    if not (code or arguments.is_json or arguments.is_quiet):
        arguments.output.write(_next_steps(config.lake.uri))
    return code


def _load(arguments: Arguments, url: str) -> Config:
    """The user's settings, with the sandbox for the source and a lake that is no one's."""
    import msgspec

    is_lake_set = arguments.lake or any(
        text.split("=")[0].strip() == "lake.uri" for text in arguments.settings
    )
    overrides: dict[str, object] = {
        "source.base_url": url,
        "source.token_url": f"{url}/api/v1/token/",
        "source.keyinfo_url": f"{url}/api/v1/keyinfo/",
        "source.key_file": "",
        "source.key_command": (),
        "source.organization": "",
    }
    if not is_lake_set:
        overrides["lake.uri"] = _LAKE
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_IGNORED)}
    config = arguments.load(overrides=overrides, environment=environment, directory=_EMPTY_FOLDER)
    if not config.is_rate_set:
        overrides["limits.requests_per_second"] = _REQUESTS_PER_SECOND
        config = arguments.load(overrides=overrides, environment=environment, directory=_EMPTY_FOLDER)
    return msgspec.structs.replace(config, accounts=())


@contextmanager
def _sandbox(flags: list[str]) -> Iterator[str]:
    """The address of a sandbox in a process of its own; it ends with this block, or with this process."""
    import subprocess

    command = [sys.executable, "-m", "extractor", "sandbox", "--until-stdin-ends", "--port", "0", *flags]
    child = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,  # Ctrl-C is for the run, which still has to commit what it has
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        url = child.stdout.readline().strip()
        if not url:
            raise click.ClickException(f"the sandbox did not start; try {PROGRAM} sandbox --port 0")
        yield url
    finally:
        child.stdin.close()
        child.terminate()
        child.wait()
        child.stdout.close()


def _next_steps(lake: str) -> str:
    """How to look at what is there now, with the current files of a table that has rows."""
    folder = _folder(lake)
    lines = ["", f"The lake is {lake}. Its current files: {PROGRAM} files --lake {lake}"]
    if folder:
        lines += [
            f"  duckdb -c \"SELECT * FROM read_parquet('{folder}/*.parquet')\"",
            f"  {_python()} -c \"import pyarrow.parquet as pq; print(pq.read_table('{folder}').to_pylist()[0])\"",
        ]
    return "\n".join(lines)


def _python() -> str:
    """The interpreter that has what the line needs: this one, by its shortest name."""
    here = Path(sys.executable)
    return str(here.relative_to(Path.cwd())) if here.is_relative_to(Path.cwd()) else str(here)


def _folder(lake: str) -> str:
    """The folder of one small table's current state: of `services`, or else of the first that has rows."""
    from extractor.lake import Lake

    files = [file for file in Lake(lake).files() if file.rows and "/run=" in file.path]
    chosen = next((file for file in files if file.table == "services"), files[0] if files else None)
    return f"{lake.rstrip('/')}/{chosen.path.rpartition('/')[0]}" if chosen else ""
