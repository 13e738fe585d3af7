"""`backfill`: fill the past windows of one endpoint, beside the runs that go on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from extractor.cli.arguments import Arguments, verb

if TYPE_CHECKING:
    from extractor.events import Observer
    from extractor.pipeline import Interruption
    from extractor.report import RunReport

__all__ = ("backfill",)


@verb(
    "backfill",
    needs_key=True,
    example="skysql-extract backfill notifications --from 2025-11-22 --to 2026-11-22 --lake lake",
)
@click.argument("endpoint")
@click.option("--from", "start", required=True, metavar="DATE", help="First day, or an RFC 3339 time.")
@click.option("--to", "end", required=True, metavar="DATE", help="The day before which to end.")
@click.option(
    "--parallel", default=4, metavar="N", help="Windows read side by side and committed at once (4)."
)
@click.option(
    "--accept",
    multiple=True,
    metavar="TABLE",
    help="Publish this table although a check or the schema policy holds it back; repeatable.",
)
def backfill(
    arguments: Arguments, endpoint: str, start: str, end: str, parallel: int, accept: tuple[str, ...]
) -> int:
    """Fill the past windows of ENDPOINT from --from to before --to.

    Commits in steps and may be started again after it was cut off. Runs may go on beside it, and what they
    read next does not change for it. Tables that hang on its rows are filled too, if they are selected.
    """
    from extractor.backfilling import backfill as fill
    from extractor.backfilling import parse_moment
    from extractor.cli.extraction import run_observed, show_report

    config = arguments.load()
    since, until = parse_moment(start, "--from"), parse_moment(end, "--to")

    async def work(observer: Observer, interruption: Interruption) -> RunReport:
        return await fill(
            endpoint,
            config,
            start=since,
            end=until,
            parallel=parallel,
            accept=accept,
            key_file=arguments.key_file,
            observer=observer,
            interruption=interruption,
        )

    return show_report(run_observed(config, arguments, work), arguments)
