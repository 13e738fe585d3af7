"""`verify`: is every file of the lake still what was written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from extractor.cli.arguments import Arguments, verb
from extractor.cli.layout import bytes_text, count_text

if TYPE_CHECKING:
    from extractor.repair import Repair
    from extractor.verify import VerifyReport

__all__ = ("verify",)


@verb("verify", example="skysql-extract verify --lake lake\nskysql-extract verify --all --repair --lake lake")
@click.argument("run", metavar="[RUN]", required=False)
@click.option("--all", "everything", is_flag=True, help="The files of all runs, not only of one state.")
@click.option("--repair", "is_repair", is_flag=True, help="Move damaged and foreign files aside.")
def verify(arguments: Arguments, run: str | None, everything: bool, is_repair: bool) -> int:
    """Read every file of the current state again, or of the state after RUN.

    Digests, row counts, schemas and statistics are held against the log, and nothing else may stand in the
    folders of the tables. Exits with 8 and names each difference.
    """
    if run is not None and everything:
        raise click.UsageError("give a RUN or --all, not both")
    config = arguments.load()
    from extractor.lake import Lake

    lake = Lake(config.lake.uri)
    report = lake.verify(run, everything=everything)
    done: Repair | None = None
    if is_repair and report.findings:
        from extractor.catalog import load_catalog
        from extractor.repair import repair

        folders = [Path(folder) for folder in config.source.catalogs]
        endpoints = load_catalog(folders, builtin=config.source.builtin).endpoints
        observe = arguments.output.note if not arguments.is_quiet else _say_nothing
        done = repair(lake.store, lake.log, report.findings, endpoints=endpoints, observe=observe)
    if arguments.is_json:
        repaired = done.to_json() if done is not None else None
        arguments.output.write_json({**report.to_json(), "repair": repaired})
    elif report.findings or not arguments.is_quiet:
        arguments.output.write(_text(report, done))
    if report.findings:
        arguments.output.complain(_closing(report, done))
    return report.exit_code


def _text(report: VerifyReport, done: Repair | None) -> str:
    lines = [f"{found.kind:<10}  {found.path}: {found.detail}" for found in report.findings]
    state = f"run {report.run_id}" if report.run_id else "all runs"
    dropped = f"; {count_text(report.dropped, 'file')} of it removed since" if report.dropped else ""
    lines.append(
        f"{state}: {count_text(report.files, 'file')}, {count_text(report.rows, 'row')}, "
        f"{bytes_text(report.size_bytes)} read; {count_text(len(report.findings), 'difference')}{dropped}"
    )
    if done is not None:
        lines += [f"moved aside: {path} is now {aside}" for path, aside in sorted(done.moved.items())]
        lines += [f"lost: {line}" for line in done.lost]
    return "\n".join(lines)


def _closing(report: VerifyReport, done: Repair | None) -> str:
    first = report.findings[0]
    more = f" and {len(report.findings) - 1} more" if len(report.findings) > 1 else ""
    what = f"{first.path} is {first.kind}{more}"
    if done is None:
        return f"{what}; restore it from a copy of the lake, or let --repair move it aside"
    return f"{what}; the lake goes on without, run `skysql-extract run` for what can be read again"


def _say_nothing(line: str) -> None:
    """Drop the line."""
