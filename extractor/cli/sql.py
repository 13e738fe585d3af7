"""`sql`: a query over the lake, with DuckDB."""

from __future__ import annotations

import base64
import os
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import date, datetime
from decimal import Decimal
from math import isfinite
from threading import Thread
from typing import TYPE_CHECKING

import click

from extractor.cli.arguments import Arguments, verb
from extractor.cli.failure import report_failure
from extractor.cli.layout import count_text, table_text
from extractor.cli.output import Output

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ("sql",)

_DOUBLE_DIGITS = 2**53
_PATIENCE_SECONDS = 2.0


@verb(
    "sql",
    example=(
        'skysql-extract sql "SELECT status, count(*) FROM services GROUP BY ALL" --lake lake\n'
        "skysql-extract sql \"SELECT name, size FROM services_history WHERE valid_from <= '2026-03-01' "
        "AND coalesce(valid_to > '2026-03-01', true)\""
    ),
)
@click.argument("query", metavar="QUERY")
@click.option("--as-of", metavar="RUN", help="The state after this run.")
def sql(arguments: Arguments, query: str, as_of: str | None) -> int:
    """Run one query over the current state, one view for each table.

    TABLE_history has each row with the time for which it held (valid_from, valid_to), TABLE_changes what
    changed from run to run. DuckDB runs it, and can reach nothing but the lake's own files.
    """
    uri = arguments.load().lake.uri
    from extractor.integrations.duckdb import query as run_query
    from extractor.lake import Lake

    with _ended_by_interrupt(arguments.output):
        found = run_query(Lake(uri), query, as_of=as_of)
    names = _unique(found.schema.names)
    columns = [[_json_value(value, column.type) for value in column.to_pylist()] for column in found.columns]
    rows = list(zip(*columns, strict=True)) if columns else []
    if arguments.is_json:
        arguments.output.write_json([dict(zip(names, row, strict=True)) for row in rows])
    elif names == ["explain_key", "explain_value"]:
        arguments.output.write("\n".join(str(row[1]) for row in rows))
    else:
        numbers = frozenset(
            name for name, column in zip(names, found.schema, strict=True) if _is_number(column.type)
        )
        cells = [[_text(value) for value in row] for row in rows]
        arguments.output.write(
            f"{table_text(names, cells, numbers=numbers)}\n({count_text(len(rows), 'row')})"
        )
    return 0


@contextmanager
def _ended_by_interrupt(output: Output) -> Iterator[None]:
    """End the process at Ctrl-C even where DuckDB, told to stop, waits for its own threads for ever."""
    told, telling = socket.socketpair()
    telling.setblocking(False)

    def watch() -> None:
        while numbers := told.recv(64):
            if signal.SIGINT in numbers:
                break
        else:
            return
        told.settimeout(_PATIENCE_SECONDS)
        with suppress(TimeoutError):
            while told.recv(64):
                pass
            return
        os._exit(report_failure(KeyboardInterrupt(), output))

    with told, telling:
        before = signal.set_wakeup_fd(telling.fileno(), warn_on_full_buffer=False)
        watcher = Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            telling.close()
            watcher.join()


def _unique(names: Sequence[str]) -> list[str]:
    """The names, told apart where two are equal: an object has each of its keys once."""
    found: list[str] = []
    for name in names:
        number, unique = 1, name
        while unique in found:
            number += 1
            unique = f"{name}_{number}"
        found.append(unique)
    return found


def _json_value(value: object, kind: pa.DataType) -> object:
    """A value of a result as JSON has it: exact, times as text."""
    import pyarrow as pa

    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if isfinite(value) else "NaN" if value != value else "+Inf" if value > 0 else "-Inf"
        case Decimal():
            if value == value.to_integral_value():
                return int(value)
            return float(value) if Decimal(repr(float(value))) == value else format(value, "f")
        case datetime():
            from extractor.digest import format_time

            text = format_time(value)
            return text if value.tzinfo is not None else text.removesuffix("Z")
        case date():
            return value.isoformat()
        case bytes():
            return base64.b64encode(value).decode()
        case list() if pa.types.is_map(kind):
            return {str(key): _json_value(item, kind.item_type) for key, item in value}
        case list():
            return [_json_value(item, kind.value_type) for item in value]
        case dict():
            return {field.name: _json_value(value[field.name], field.type) for field in kind}
        case _:
            return str(value)


def _text(value: object) -> str:
    import json

    match value:
        case None:
            return "NULL"
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case list() | dict():
            return json.dumps(value, ensure_ascii=False)
        case _:
            return str(value)


def _is_number(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))
