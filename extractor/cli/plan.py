"""`plan`: what `run` would do, without a data request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from extractor.cli.arguments import Arguments, verb
from extractor.cli.layout import columns_text, count_text, seconds_text

if TYPE_CHECKING:
    from extractor.preview import Preview

__all__ = ("plan",)

_HEADS = ("table", "account", "requests", "windows", "state", "path", "note")
_NUMBERS = frozenset({"requests", "windows"})


@verb("plan", selects=True, needs_key=True, example="skysql-extract plan --tag billing --json")
def plan(arguments: Arguments) -> int:
    """Show what a run would do, without a data request.

    Endpoints, requests (known and estimated), time at this rate limit, windows from the state, files.
    """
    config = arguments.load()
    from extractor.preview import preview

    found = preview(config)
    if arguments.is_json:
        arguments.output.write_json(found.to_json())
    else:
        arguments.output.write(_text(found))
    return 0


def _text(preview: Preview) -> str:
    accounts = {table.account for table in preview.tables}
    rows = [
        (
            table.name,
            table.account if len(accounts) > 1 else "",
            _requests_text(table.requests_known, table.requests_estimated),
            f"{table.windows:,}" if table.windows else "",
            table.state,
            table.path,
            f"{table.status}: {table.reason}" if table.status != "run" else table.reason,
        )
        for table in preview.tables
    ]
    selected = sum(table.status == "run" for table in preview.tables)
    lines = [columns_text(_HEADS, rows, numbers=_NUMBERS), ""] if rows else []
    known, estimated = preview.requests_known, preview.requests_estimated
    guess = f", about {estimated:,} in all" if estimated is not None and estimated != known else ""
    lines.append(
        f"{count_text(selected, 'table')} into {preview.lake}: {count_text(known, 'request')} known{guess}; "
        f"about {seconds_text(preview.seconds)} at {preview.requests_per_second:g} requests a second, "
        f"{count_text(preview.files, 'file')}"
    )
    return "\n".join((*lines, *(f"warning: {line}" for line in preview.warnings)))


def _requests_text(known: int, estimated: int | None) -> str:
    if estimated is None:
        return f"{known:,}+"
    return f"{known:,}" if estimated == known else f"~{estimated:,}"
