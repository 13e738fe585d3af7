"""`compact`: merge small files, beside runs and readers."""

from __future__ import annotations

import click

from extractor.cli.arguments import Arguments, verb
from extractor.cli.upkeep import grace_seconds, write_report

__all__ = ("compact",)


@verb("compact", example="skysql-extract compact metrics --target-mb 128 --lake lake")
@click.argument("tables", metavar="[TABLE]…", nargs=-1)
@click.option("--target-mb", type=float, help="Size of a file; parquet.target_file_mb if not given.")
@click.option("--grace", default="1h", metavar="AGE", help="How long readers may still need the old files.")
def compact(arguments: Arguments, tables: tuple[str, ...], target_mb: float | None, grace: str) -> int:
    """Merge small files into one for each partition, or files of the target size.

    All tables, or those named; a name may be a glob. Safe beside runs and readers.
    """
    config = arguments.load()
    from extractor import compaction
    from extractor.upkeep import Upkeep

    up = Upkeep(config, "compact", note=arguments.output.note, grace_seconds=grace_seconds(grace))
    return write_report(arguments, compaction.compact(config, tables, target_mb=target_mb, upkeep=up))
