"""`runs`: the past runs of a lake, the newest last."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from extractor.cli.arguments import Arguments, verb
from extractor.cli.layout import bytes_text, columns_text, seconds_text

if TYPE_CHECKING:
    from extractor.lake import RunRow

__all__ = ("run_json", "runs")

_HEADS = ("run", "status", "exit", "started", "time", "tables", "rows", "files", "size", "requests")
_NUMBERS = frozenset({"exit", "time", "tables", "rows", "files", "size", "requests"})


@verb("runs", example="skysql-extract runs --lake lake --json")
@click.option("--last", type=click.IntRange(1), metavar="N", help="Only the newest N.")
def runs(arguments: Arguments, last: int | None) -> int:
    """List the past runs of a lake, the newest last."""
    uri = arguments.load().lake.uri
    from extractor.lake import Lake

    found = Lake(uri).runs(last)
    if arguments.is_json:
        arguments.output.write_json([run_json(run) for run in found])
    elif found:
        arguments.output.write(columns_text(_HEADS, [_cells(run) for run in found], numbers=_NUMBERS))
    else:
        arguments.output.write(f"no runs in lake {uri}")
    return 0


def run_json(run: RunRow) -> dict[str, object]:
    """A run's report, and where the log holds it; what the log alone knows where there is no report."""
    return {
        "run_id": run.run_id,
        "sequence": run.sequence,
        "status": run.status,
        "started_at": run.started_at.isoformat(),
        "committed_at": run.committed_at.isoformat(),
        **run.summary,
    }


def _cells(run: RunRow) -> tuple[str, ...]:
    from extractor.report import report_from_json

    started = f"{run.started_at:%Y-%m-%d %H:%M:%S}"
    if "tables" not in run.summary:
        return run.run_id, str(run.summary.get("verb", run.status)), "", started, "", "", "", "", "", ""
    report = report_from_json(run.summary)
    complete = sum(table.status == "complete" for table in report.tables)
    selected = sum(table.status != "skipped" for table in report.tables)
    return (
        run.run_id,
        report.status,
        str(report.exit_code),
        started,
        seconds_text(report.seconds),
        f"{complete}/{selected}",
        f"{report.rows:,}",
        f"{report.files:,}",
        bytes_text(report.size_bytes),
        f"{report.requests.sent:,}",
    )
