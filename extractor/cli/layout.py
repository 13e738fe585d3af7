"""Values as text for people: aligned columns, counts, sizes and times."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from datetime import timedelta

__all__ = ("bytes_text", "columns_text", "count_text", "seconds_text", "table_text")


def columns_text(
    heads: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: frozenset[str] = frozenset()
) -> str:
    """An aligned table; columns without any text are left out, `numbers` are set to the right.

    On a terminal the last column is cut to its width; elsewhere nothing is.
    """
    kept = [place for place in range(len(heads)) if any(row[place] for row in rows)]
    heads = [heads[place] for place in kept]
    return table_text(heads, [[row[place] for place in kept] for row in rows], numbers=numbers)


def table_text(
    heads: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: frozenset[str] = frozenset()
) -> str:
    """As `columns_text`, with every column."""
    lines = [heads, *([" ".join(cell.split()) for cell in row] for row in rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(heads))]
    limit = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    return "\n".join(_line(line, heads, widths, numbers, limit) for line in lines)


def _line(
    cells: Sequence[str], heads: Sequence[str], widths: Sequence[int], numbers: frozenset[str], limit: int
) -> str:
    padded = (
        cell.rjust(width) if head in numbers else cell.ljust(width)
        for cell, head, width in zip(cells, heads, widths, strict=True)
    )
    line = "  ".join(padded).rstrip()
    return line if not limit or len(line) <= limit else line[: limit - 1] + "…"


def count_text(number: int, noun: str) -> str:
    """`1 row`, `12,345 rows`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def bytes_text(size_bytes: float) -> str:
    """`312 B`, `1.4 MB`: decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} B" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} TB"


def seconds_text(seconds: float) -> str:
    """`0.4 s`, `12 s`, `0:03:20`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return str(timedelta(seconds=round(seconds)))
