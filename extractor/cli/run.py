"""`run`: extract the selected endpoints into the lake, once."""

from __future__ import annotations

import click

from extractor.cli.arguments import Arguments, verb

__all__ = ("run",)


@verb(
    "run",
    selects=True,
    needs_key=True,
    example="skysql-extract run --api-key-file ~/.skysql-key --lake lake --include 'services*'",
)
@click.option(
    "--accept",
    multiple=True,
    metavar="TABLE",
    help="Publish this table once although a check or the schema policy holds it back; repeatable.",
)
def run(arguments: Arguments, accept: tuple[str, ...]) -> int:
    """Extract the selected endpoints into the lake, once.

    Safe to call from cron: a run that was cut off is taken up again, and two runs never write one table.
    """
    from extractor.cli.extraction import run_extraction, show_report

    config = arguments.load()
    return show_report(run_extraction(config, arguments, accept=accept), arguments)
