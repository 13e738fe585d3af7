"""What `compact` and `expire` have in common: their report, and the age that they are given."""

from __future__ import annotations

from typing import TYPE_CHECKING

from extractor.cli.arguments import Arguments
from extractor.cli.layout import bytes_text, columns_text, count_text

if TYPE_CHECKING:
    from extractor.upkeep import Change, UpkeepReport

__all__ = ("grace_seconds", "write_report")

_HEADS = ("table", "account", "snapshots", "files", "now", "size", "now ", "rows removed")


def grace_seconds(text: str) -> float:
    """The grace period that was asked for. Raises: ConfigError for what is no age."""
    from extractor.config import parse_duration

    return parse_duration(text)


def write_report(arguments: Arguments, report: UpkeepReport) -> int:
    """Write what was done; gives the exit code."""
    if arguments.is_json:
        arguments.output.write_json(report.to_json())
    elif not arguments.is_quiet:
        arguments.output.write(_text(report))
    return 0


def _text(report: UpkeepReport) -> str:
    if not report.tables:
        return f"nothing to {report.verb} in lake {report.lake}"
    lines = [
        columns_text(_HEADS, [_cells(change) for change in report.tables], numbers=frozenset(_HEADS[2:]))
    ]
    lines += [
        f"{change.name}: rows were in {count_text(change.files_aside, 'file')} put aside by a repair as well"
        for change in report.tables
        if change.files_aside
    ]
    if report.is_dry_run:
        lines += [
            "",
            *report.paths,
            "",
            f"would remove {count_text(len(report.paths), 'file')}; nothing was changed",
        ]
    return "\n".join(lines)


def _cells(change: Change) -> tuple[str, ...]:
    return (
        change.name,
        change.account,
        f"{change.snapshots_removed:,}" if change.snapshots_removed else "",
        f"{change.files_removed:,}",
        f"{change.files_added:,}" if change.files_added else "",
        bytes_text(change.bytes_removed),
        bytes_text(change.bytes_added) if change.files_added else "",
        f"{change.rows_removed:,}" if change.rows_removed else "",
    )
