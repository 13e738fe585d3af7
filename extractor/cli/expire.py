"""`expire`: drop old snapshots, or erase a person's rows from all of them."""

from __future__ import annotations

import click

from extractor.cli.arguments import Arguments, verb
from extractor.cli.upkeep import grace_seconds, write_report

__all__ = ("expire",)


@verb("expire", example="skysql-extract expire --older-than 90d --dry-run --lake lake")
@click.argument("tables", metavar="[TABLE]…", nargs=-1)
@click.option("--keep-last", type=int, metavar="N", help="Keep the newest N snapshots of each table.")
@click.option(
    "--older-than",
    metavar="AGE",
    help="Drop what was replaced so long ago, as 90d; of event tables that are named, days before that.",
)
@click.option("--rows", metavar="TABLE", help="Erase rows of this table from every snapshot; with --where.")
@click.option(
    "--where", multiple=True, metavar="COLUMN=VALUE", help="Which rows to erase; repeatable: all must hold."
)
@click.option("--dry-run", "is_dry_run", is_flag=True, help="Say what would go, and change nothing.")
@click.option("--grace", default="1h", metavar="AGE", help="How long readers may still need the old files.")
def expire(
    arguments: Arguments,
    tables: tuple[str, ...],
    keep_last: int | None,
    older_than: str | None,
    rows: str | None,
    where: tuple[str, ...],
    is_dry_run: bool,
    grace: str,
) -> int:
    """Drop old snapshots; the current state never goes.

    Of all tables, or of those named; a name may be a glob. Safe beside runs and readers.
    """
    conditions = _conditions(tables, keep_last, older_than, rows, where)
    config = arguments.load()
    from extractor.upkeep import Upkeep

    up = Upkeep(config, "expire", note=arguments.output.note, grace_seconds=grace_seconds(grace))
    if rows is not None:
        from extractor.erasure import erase

        return write_report(arguments, erase(config, rows, conditions, is_dry_run=is_dry_run, upkeep=up))
    from extractor import expiry

    report = expiry.expire(
        config, tables, keep_last=keep_last, older_than=older_than, is_dry_run=is_dry_run, upkeep=up
    )
    return write_report(arguments, report)


def _conditions(
    tables: tuple[str, ...],
    keep_last: int | None,
    older_than: str | None,
    rows: str | None,
    where: tuple[str, ...],
) -> dict[str, str]:
    if rows is None:
        if where:
            raise click.UsageError("--where needs --rows TABLE")
        if (keep_last is None) == (older_than is None):
            raise click.UsageError(
                "give either --keep-last N or --older-than AGE, or --rows TABLE with --where"
            )
        return {}
    if tables or keep_last is not None or older_than is not None:
        raise click.UsageError("--rows stands alone: it erases from every snapshot of its table")
    conditions: dict[str, str] = {}
    for text in where:
        column, sign, value = text.partition("=")
        if not sign or not column or column in conditions:
            raise click.UsageError(f"--where {column}: write COLUMN=VALUE, each column once")
        conditions[column] = value
    if not conditions:
        raise click.UsageError("--rows needs --where COLUMN=VALUE")
    return conditions
