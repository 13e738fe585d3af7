"""`diff`: what differs between two runs, table by table."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from extractor.cli.arguments import Arguments, verb

if TYPE_CHECKING:
    from extractor.diff import RowChange, TableDiff

__all__ = ("diff",)

_MARKS = {"added": "+", "removed": "-", "changed": "~"}


@verb(
    "diff",
    example=(
        "skysql-extract diff 20261121T020000Z latest --lake lake\n"
        "skysql-extract diff 20261121T020000Z latest services --json"
    ),
)
@click.argument("before", metavar="A")
@click.argument("after", metavar="B")
@click.argument("tables", metavar="[TABLE]...", nargs=-1)
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    default=10,
    show_default=True,
    help="Rows to show of each table, as text; JSON has all.",
)
def diff(arguments: Arguments, before: str, after: str, tables: tuple[str, ...], limit: int) -> int:
    """Show the rows that were added, removed and changed between two runs, by key.

    A and B are the ids of runs, their beginnings, or `latest`. Rows of tables without a key are compared whole.
    """
    uri = arguments.load().lake.uri
    from extractor.lake import Lake

    lake = Lake(uri)
    older, newer = lake.entry(before), lake.entry(after)
    differing = sorted(
        {
            table
            for table, account in older.tables.keys() | newer.tables.keys()
            if _digest(older.tables.get((table, account))) != _digest(newer.tables.get((table, account)))
        }
    )
    found = (lake.diff(older.run_id, newer.run_id, name) for name in (tables or differing))
    if arguments.is_json:
        arguments.output.write_json(
            {"before": older.run_id, "after": newer.run_id, "tables": [table.to_json() for table in found]}
        )
        return 0
    is_any = False
    for table in found:
        text = _text(table, limit)
        is_any = is_any or bool(text)
        if text:
            arguments.output.write(text)
    if not is_any:
        arguments.output.write(f"nothing differs between {older.run_id} and {newer.run_id}")
    return 0


def _digest(reference: object) -> object:
    return getattr(reference, "digest", None)


def _text(table: TableDiff, limit: int) -> str:
    """How many rows, and the first of them; empty if there are none."""
    counts = dict.fromkeys(_MARKS, 0)
    lines: list[str] = []
    for row in table.rows():
        counts[row.operation] += 1
        if len(lines) < limit:
            lines.append(f"  {_MARKS[row.operation]} {_row_text(row)}")
    total = sum(counts.values())
    if not total:
        return ""
    if total > len(lines):
        lines.append(f"  … and {total - len(lines):,} more")
    told = ", ".join(f"{count:,} {operation}" for operation, count in counts.items() if count)
    return "\n".join((f"{table.name}: {told}", *lines))


def _row_text(row: RowChange) -> str:
    key = " ".join(f"{name}={_value(value)}" for name, value in row.key.items())
    if row.operation == "changed":
        columns = (f"{name}: {_value(old)} → {_value(new)}" for name, (old, new) in row.columns.items())
        return f"{key}  {', '.join(columns)}"
    whole = row.after if row.after is not None else row.before or {}
    rest = (f"{name}={_value(value)}" for name, value in whole.items() if name not in row.key)
    return _cut("  ".join(part for part in (key, " ".join(rest)) if part))


def _value(value: object) -> str:
    from extractor.normal import json_value

    text = value if isinstance(value, str) else json.dumps(json_value(value), ensure_ascii=False)
    return _cut(text, 60)


def _cut(text: str, length: int = 160) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
