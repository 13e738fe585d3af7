"""A finished run as text: its tables, one closing line, what went wrong and what to do next."""

from __future__ import annotations

from typing import TYPE_CHECKING

from extractor.cli.layout import bytes_text, columns_text, count_text, seconds_text
from extractor.cli.output import PROGRAM

if TYPE_CHECKING:
    from extractor.report import RunReport, TableReport

__all__ = ("closing_line", "failure_line", "report_text")

_HEADS = ("table", "account", "status", "rows", "pages", "requests", "files", "reason")
_NUMBERS = frozenset({"rows", "pages", "requests", "files"})
_FAULTS = ("partial", "failed", "denied", "held")
_SHOWN_FAILURES = 5

_NEXT = {
    3: "what is complete is committed, the next run tries the rest again",
    4: f"see {PROGRAM} check",
    5: "wait for the other run to end, or start it again later",
    6: (
        'look at the drift above, then allow it with --set run.schema=evolve or "rescue", '
        "or once with --accept TABLE"
    ),
    7: f"see {PROGRAM} check",
    9: "what is complete is committed, the next run resumes the rest",
    10: f"see {PROGRAM} check, and source.base_url",
    130: "what is complete is committed, the next run resumes the rest",
    143: "what is complete is committed, the next run resumes the rest",
}


_ENDED = {
    9: "the run's deadline passed (limits.run_seconds)",
    130: "interrupted by SIGINT",
    143: "interrupted by SIGTERM",
}


def report_text(report: RunReport) -> str:
    """The whole report for people: table, closing line, failures, drift and warnings."""
    parts = [_table_text(report)] if report.tables else []
    parts.append(closing_line(report))
    parts += _failure_lines(report)
    parts += [f"drift: {line}" for line in report.drift]
    parts += [f"warning: {line}" for line in report.warnings]
    return "\n".join(parts)


def _table_text(report: RunReport) -> str:
    accounts = {table.account for table in report.tables}
    rows = [
        (
            table.name,
            table.account if len(accounts) > 1 else "",
            table.status,
            f"{table.rows:,}",
            f"{table.pages:,}",
            f"{table.requests:,}",
            f"{table.files:,}",
            table.reason,
        )
        for table in report.tables
    ]
    return columns_text(_HEADS, rows, numbers=_NUMBERS) + "\n"


def closing_line(report: RunReport) -> str:
    """Rows, files, bytes, seconds, requests, retries, and how much of the permitted rate was used."""
    figures = report.requests
    complete = sum(table.status == "complete" for table in report.tables)
    selected = sum(table.status != "skipped" for table in report.tables)
    spoken = [count_text(figures.sent, "request")]
    if figures.retried:
        spoken.append(f"{figures.retried:,} retried")
    if figures.throttled:
        spoken.append(f"{figures.throttled:,} throttled")
    if figures.sent:
        spoken.append(f"{figures.rate_share:.0%} of the permitted rate used")
    return (
        f"{report.run_id}: {report.status}, {complete} of {count_text(selected, 'table')} complete; "
        f"{count_text(report.rows, 'row')}, {count_text(report.files, 'new file')} "
        f"({bytes_text(report.size_bytes)}) in {seconds_text(report.seconds)}; {', '.join(spoken)}"
    )


def _failure_lines(report: RunReport) -> list[str]:
    lines: list[str] = []
    for table in report.tables:
        shown = table.failures[:_SHOWN_FAILURES]
        lines += [f"{table.status}: {_named(table, report)}: {failure}" for failure in shown]
        if more := len(table.failures) - len(shown):
            lines.append(f"{table.status}: {_named(table, report)}: and {more:,} more")
    return lines


def failure_line(report: RunReport) -> str:
    """What, which endpoint, and what to do next: the line that a run without full success ends in."""
    faults = [table for table in report.tables if table.status in _FAULTS]
    what = report.message or _ENDED.get(report.exit_code, "")
    if not what and faults:
        first = faults[0]
        reason = f" ({first.reason})" if first.reason else ""
        others = f", and {len(faults) - 1} more" if len(faults) > 1 else ""
        what = f"{_named(first, report)}: {first.status}{reason}{others}"
    advice = _NEXT.get(report.exit_code, "")
    return "; ".join(part for part in (what or report.status, advice) if part)


def _named(table: TableReport, report: RunReport) -> str:
    is_alone = len({other.account for other in report.tables}) == 1
    return table.name if is_alone else f"{table.name} ({table.account})"
