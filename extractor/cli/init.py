"""`init`: a commented configuration file, asking what matters."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from extractor.cli.arguments import Arguments, verb
from extractor.cli.output import PROGRAM

if TYPE_CHECKING:
    from extractor.config import Config

__all__ = ("configuration_text", "init")

_DEFAULT_FILE = Path("skysql-extract.toml")
_EMPTY_FOLDER = Path(__file__).parent

_TITLES: Mapping[str, str] = {
    "source": "Where the API is. The key itself never stands here: --api-key-file, SKYSQL_API_KEY.",
    "limits": "How fast, how much at once, how long to try.",
    "bounds": "What an answer may be at most.",
    "lake": "Where the data go.",
    "parquet": "The shape of the files.",
    "run": "What is read.",
    "checks": "What must hold before a table is published; for one table in [checks.TABLE].",
    "notify": "Who is told about a run.",
}
_COMMENTS: Mapping[str, str] = {
    "source.auth": '"api_key": X-API-Key | "bearer": the key is exchanged for a token of 1 h',
    "source.organization": "sent as X-MDB-Org when set",
    "source.key_file": "file that holds the key; relative to this file",
    "source.key_command": 'prints the key: ["vault", "kv", "get", "…"]',
    "source.catalogs": "folders of endpoint files over the built-in catalogue; later wins",
    "source.builtin": "false: only `catalogs`",
    "limits.requests_per_second": "ceiling per account; if left alone, a new lake starts at 2 and rises",
    "limits.concurrency": "requests in flight",
    "limits.memory_mb": "MiB of answers and rows held, all stages together",
    "limits.idle_seconds": "without a byte",
    "limits.retry_seconds": "longest time spent on one request, pauses included",
    "limits.run_seconds": "deadline of a run; 0: none",
    "limits.resume_seconds": "a killed run whose last safe byte is older starts afresh",
    "bounds.pages": "of one chain",
    "lake.uri": "folder, relative to this file",
    "parquet.row_group_mb": "of decoded rows",
    "parquet.open_files": "at most",
    "run.include": "names or globs of endpoints; see skysql-extract catalog",
    "run.tags": "only endpoints with one of these tags",
    "run.since": 'how far back a window endpoint starts on a new lake; "all"',
    "run.allow": '"customer_data": log lines, copilot sessions',
    "run.secret": "endpoints of class secret to read all the same, by exact name",
    "run.pii": "keep | hash | drop: names, mail addresses and the like",
    "run.schema": "evolve | rescue | fail: when an answer has columns that are new",
    "checks.max_drop": "share of rows lost since the last run that holds back a table",
    "checks.min_rows": "… of at least so many rows; `run --accept TABLE` publishes it once",
    "checks.max_nulls": "by column, of one table only: [checks.TABLE.max_nulls] COLUMN = 0.1",
    "checks.max_age": '[checks.TABLE.max_age] COLUMN = "48h"',
    "checks.references": '[checks.TABLE.references] COLUMN = "other_table.column"',
    "notify.url": "not in this version: pinged at start, success, failure",
}
_ASKED = ("lake.uri", "run.include", "run.pii")
_FOOT = """\
# Several accounts, each with its own key, limiter and folder in the lake:
# [[accounts]]
# name = "production"
# key_file = "keys/production"
"""


@verb("init", selects=True, example=f"{PROGRAM} init --lake lake --include 'services*'\n{PROGRAM} init --yes")
@click.option(
    "-o",
    "--output",
    "file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Where to write it; skysql-extract.toml unless given.",
)
@click.option("--yes", "-y", "is_silent", is_flag=True, help="Ask nothing.")
@click.option("--force", is_flag=True, help="Overwrite a file that is there.")
def init(arguments: Arguments, file: Path | None, is_silent: bool, force: bool) -> int:
    """Write a commented configuration file.

    Asks what matters (lake, personal data, what to include) where there is a terminal; says what to do next.
    """
    file = file or arguments.config or _DEFAULT_FILE
    arguments = replace(arguments, config=None)
    if file.exists() and not force:
        raise click.UsageError(f"{file} is there already; --force overwrites it, -o FILE writes another")
    given = arguments.load(environment={}, directory=_EMPTY_FOLDER)
    is_asking = not (is_silent or arguments.is_json) and sys.stdin.isatty() and sys.stderr.isatty()
    answers = _ask(arguments, given) if is_asking else {}
    overrides = {**answers, "lake.uri": _anchored(str(answers.get("lake.uri", given.lake.uri)), file)}
    config = arguments.load(overrides=overrides, environment={}, directory=_EMPTY_FOLDER)
    _write(file, configuration_text(config), force)
    if arguments.is_json:
        arguments.output.write_json({"file": str(file), "next": _next_steps(file)})
    elif not arguments.is_quiet:
        arguments.output.write(
            "\n".join((f"{file} is written. Next:", *(f"  {step}" for step in _next_steps(file))))
        )
    return 0


def _ask(arguments: Arguments, given: Config) -> dict[str, object]:
    """The answers to what matters; what a flag says already is not asked."""
    answers: dict[str, object] = {}
    settings = {setting.partition("=")[0].strip() for setting in arguments.settings}
    if not arguments.lake and "lake.uri" not in settings:
        answers["lake.uri"] = click.prompt("Folder of the lake", default=given.lake.uri, err=True)
    if "run.pii" not in settings:
        kinds = click.Choice(["keep", "hash", "drop"])
        answers["run.pii"] = click.prompt("Personal data", default=given.run.pii, type=kinds, err=True)
    if not arguments.include and "run.include" not in settings:
        globs = click.prompt(
            "Endpoints, names or globs with commas", default=",".join(given.run.include), err=True
        )
        answers["run.include"] = tuple(glob.strip() for glob in globs.split(",") if glob.strip())
    return answers


def _anchored(lake: str, file: Path) -> str:
    """The lake as the file has to name it: a path in a file is relative to that file."""
    if "://" in lake or Path(lake).is_absolute() or lake.startswith("~"):
        return lake
    return os.path.relpath(lake, file.parent)


def _write(file: Path, text: str, force: bool) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("w" if force else "x", encoding="utf-8") as stream:
            stream.write(text)
    except OSError as error:
        raise click.UsageError(f"{file} cannot be written: {error.strerror}") from error


def _next_steps(file: Path) -> list[str]:
    flag = "" if file == _DEFAULT_FILE else f" --config {file}"
    return [
        f"{PROGRAM} check{flag} --api-key-file FILE    is the key good, is the lake writable",
        f"{PROGRAM} plan{flag} --api-key-file FILE     what a run would ask for",
        f"{PROGRAM} run{flag} --api-key-file FILE      extract; again whenever you like",
    ]


# --- the text -----------------------------------------------------------------------------------------------


def configuration_text(config: Config) -> str:
    """Every setting with its default, commented out; in force are those that differ and those asked for."""
    from extractor.config import Config

    default = Config()
    parts = [
        f"# Settings of {PROGRAM}. What is commented out is the default; flags and SKYSQL_… variables win.\n"
    ]
    for section, title in _TITLES.items():
        lines = [f"# {title}", f"[{section}]"]
        table, usual = getattr(config, section), getattr(default, section)
        for key in table.__struct_fields__:
            value = getattr(table, key)
            is_active = value != getattr(usual, key) or f"{section}.{key}" in _ASKED
            lines.append(_line(f"{section}.{key}", key, value, is_active))
        parts.append("\n".join(lines) + "\n")
    return "\n".join((*parts, _FOOT))


def _line(dotted: str, key: str, value: object, is_active: bool) -> str:
    text = f"{'' if is_active else '# '}{key} = {_toml(value)}"
    comment = _COMMENTS.get(dotted)
    return f"{text:<44}  # {comment}" if comment else text


def _toml(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case float() if value.is_integer():
            return str(int(value))
        case tuple() | list():
            return f"[{', '.join(_toml(item) for item in value)}]"
        case str():
            return json.dumps(value)
        case _:
            return str(value)
