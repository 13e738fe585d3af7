"""The program as a whole: its verbs, what it says when called bare, and how any call ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

import click

from extractor.cli.arguments import SWITCHES, VALUED, known_secrets
from extractor.cli.failure import DEBUG_VARIABLE, report_failure
from extractor.cli.output import PROGRAM, Output
from extractor.cli.startup import start_lean

__all__ = ("invoke", "main")

_FIRST_STEPS = f"""\
{PROGRAM} demo                       try it: a made-up account, no key, no network
{PROGRAM} run --api-key-file FILE    extract your SkySQL account into ./lake
{PROGRAM} init                       write a commented configuration file; more in --help"""

# Each verb is what its module is named after, and imported only where it is asked for.
_VERBS = (
    *("run", "demo", "init", "plan", "check", "catalog"),
    *("runs", "show", "files", "sql", "diff", "verify", "backfill", "compact", "expire", "ddl"),
    "sandbox",
)


class _Program(click.Group):
    """The verbs in the order in which one meets them; global flags may stand before the verb too."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _VERBS:
            return None
        command: click.Command = getattr(import_module(f"extractor.cli.{cmd_name}"), cmd_name)
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, _verb_first(args))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in _VERBS:
            import difflib

            close = difflib.get_close_matches(args[0], _VERBS, n=1, cutoff=0.5)
            advice = f"; did you mean {close[0]}?" if close else f"; the verbs are {', '.join(_VERBS)}"
            raise click.UsageError(f"unknown verb {args[0]!r}{advice}", ctx=ctx)
        return super().resolve_command(ctx, args)


def _verb_first(args: Sequence[str]) -> list[str]:
    """`--lake X run` is `run --lake X`; without a verb the global flags mean nothing."""
    rest = list(args)
    front: list[str] = []
    while rest and rest[0].partition("=")[0] in VALUED | SWITCHES:
        width = 2 if rest[0] in VALUED else 1
        front += rest[:width]
        del rest[:width]
    if rest and not rest[0].startswith("-"):
        return [rest[0], *front, *rest[1:]]
    return rest


@click.group(
    cls=_Program,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option("--version", is_flag=True, help="Show the version and exit.")
@click.pass_context
def _program(context: click.Context, version: bool) -> int:
    """Extract everything that a SkySQL account can read into a Parquet lake.

    The flags --config, --set, --lake, --include, --exclude, --tag, --json, --quiet, -v and --api-key-file
    may stand before or after the verb.
    """
    if version:
        click.echo(f"{PROGRAM} {_version()}")
        context.exit(0)
    if context.invoked_subcommand is None:
        click.echo(_FIRST_STEPS)
    return 0


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("skysql-extractor")
    except metadata.PackageNotFoundError:
        return "of an uninstalled source tree"


def invoke(argv: Sequence[str]) -> int:
    """Do what `argv` (without the program's name) asks for and return the exit code; never raises."""
    ours = argv[: list(argv).index("--")] if "--" in argv else argv
    secrets = known_secrets(files=[], variables=["SKYSQL_API_KEY"])
    is_debug = os.environ.get(DEBUG_VARIABLE, "") not in ("", "0")
    output = Output(is_json="--json" in ours, is_debug=is_debug, secrets=secrets)
    try:
        code = _program.main(args=list(argv), prog_name=PROGRAM, standalone_mode=False, obj=output)
        return code if isinstance(code, int) else 0
    except BrokenPipeError:
        return 0  # help or version text that nobody read to its end
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  # the last fence: no traceback reaches a user
        return report_failure(error, output)


def main() -> None:
    """The console script."""
    start_lean()
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
    code = invoke(sys.argv[1:])
    sys.exit(code)
