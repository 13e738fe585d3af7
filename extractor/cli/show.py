"""`show`: one run, as text or JSON."""

from __future__ import annotations

import click

from extractor.cli.arguments import Arguments, verb
from extractor.cli.result import report_text
from extractor.cli.runs import run_json

__all__ = ("show",)


@verb("show", example="skysql-extract show latest --lake lake")
@click.argument("run", metavar="RUN")
def show(arguments: Arguments, run: str) -> int:
    """Show one run; RUN is its id, the start of it, or `latest`."""
    uri = arguments.load().lake.uri
    from extractor.lake import Lake
    from extractor.report import report_from_json

    found = Lake(uri).run(run)
    if arguments.is_json:
        arguments.output.write_json(run_json(found))
    elif "tables" in found.summary:
        arguments.output.write(report_text(report_from_json(found.summary)))
    else:
        what = found.summary.get("verb", found.status)
        warnings = found.summary.get("warnings")
        lines = [f"{found.run_id}: {what}, committed {found.committed_at.isoformat()}"]
        lines += [f"warning: {line}" for line in warnings] if isinstance(warnings, list) else []
        arguments.output.write("\n".join(lines))
    return 0
