"""`files`: the data files that make up the current state, or the state as of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from extractor.cli.arguments import Arguments, verb
from extractor.cli.layout import bytes_text, columns_text, count_text

if TYPE_CHECKING:
    from extractor.lake import FileRow

__all__ = ("files",)

_HEADS = ("path", "table", "account", "rows", "size", "sha256")
_NUMBERS = frozenset({"rows", "size"})


@verb("files", example="skysql-extract files services --lake lake --json")
@click.argument("table", required=False)
@click.option("--as-of", metavar="RUN", help="The state after this run.")
def files(arguments: Arguments, table: str | None, as_of: str | None) -> int:
    """List the data files of the current state."""
    uri = arguments.load().lake.uri
    from extractor.lake import Lake

    found = Lake(uri).files(table, as_of)
    if arguments.is_json:
        arguments.output.write_json([_file_json(file) for file in found])
    else:
        arguments.output.write(_text(found, uri))
    return 0


def _text(found: Sequence[FileRow], uri: str) -> str:
    if not found:
        return f"no files in lake {uri}"
    rows = [
        (file.path, file.table, file.account, f"{file.rows:,}", bytes_text(file.size_bytes), file.sha256)
        for file in found
    ]
    total = f"{count_text(sum(file.rows for file in found), 'row')}, "
    total += bytes_text(sum(file.size_bytes for file in found))
    text = f"{columns_text(_HEADS, rows, numbers=_NUMBERS)}\n\n{count_text(len(found), 'file')}, {total}"
    conditions = {file.table: file.where for file in found if file.where}
    for table, where in conditions.items():
        text += f"\nof {table}, files were merged since: only rows WHERE {where}"
    return text


def _file_json(file: FileRow) -> dict[str, object]:
    return {
        "path": file.path,
        "table": file.table,
        "account": file.account,
        "rows": file.rows,
        "bytes": file.size_bytes,
        "sha256": file.sha256,
        "partition": dict(file.partition),
        "where": file.where,
    }
