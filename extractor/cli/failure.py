"""What a failure means to whoever called the program: an exit code and one line.

The order of the codes is the public contract's: of several faults the first in `ORDER` counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from traceback import format_exception, walk_tb

import click

from extractor.cli.output import PROGRAM, Output
from extractor.errors import (
    AuthError,
    ConfigError,
    DriftRefused,
    ExtractError,
    LakeBusy,
    LakeError,
    RequestError,
    SourceUnreachable,
)

__all__ = (
    "DEBUG_VARIABLE",
    "ORDER",
    "exit_code_for",
    "first_code",
    "message_for",
    "report_failure",
)

ORDER = (1, 2, 7, 5, 4, 130, 143, 9, 10, 6, 3, 8, 0)
DEBUG_VARIABLE = "SKYSQL_EXTRACTOR_DEBUG"

_PACKAGE = Path(__file__).resolve().parents[1]

# The more special class stands before the one that it is a kind of.
_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (KeyboardInterrupt, 130),
    (click.exceptions.Abort, 130),
    (ConfigError, 2),
    (LakeBusy, 5),
    (LakeError, 7),
    (AuthError, 4),
    (SourceUnreachable, 10),
    (DriftRefused, 6),
    (RequestError, 3),
)


def first_code(codes: Iterable[int]) -> int:
    """Of several exit codes the one that the contract names first; 0 of none."""
    return min(codes, key=lambda code: ORDER.index(code) if code in ORDER else -1, default=0)


def exit_code_for(error: BaseException) -> int:
    """The exit code of a call that ended in `error`."""
    if isinstance(error, BaseExceptionGroup):
        return first_code(exit_code_for(inner) for inner in error.exceptions)
    if isinstance(error, click.ClickException):
        return error.exit_code
    return next((code for kind, code in _CODES if isinstance(error, kind)), 1)


def message_for(error: BaseException) -> str:
    """What happened and what to do next, in one line; the words of a foreign exception are never in it."""
    match error:
        case BaseExceptionGroup():
            worst = min(error.exceptions, key=lambda inner: ORDER.index(exit_code_for(inner)))
            return message_for(worst)
        case ExtractError():
            return error.message
        case click.UsageError():
            command = error.ctx.command_path if error.ctx else PROGRAM
            return f"{_sentence(error)}; see {command} --help"
        case click.ClickException():
            return _sentence(error)
        case KeyboardInterrupt() | click.exceptions.Abort():
            return "interrupted"
        case _:
            return (
                f"fault of the program: {type(error).__name__} at {_place(error)}; "
                f"run with {DEBUG_VARIABLE}=1 for the whole of it, and please report it"
            )


def report_failure(error: BaseException, output: Output) -> int:
    """Tell of a failure, on stderr and where asked for as JSON; gives the exit code."""
    from extractor.report import RunReport

    code, message = exit_code_for(error), message_for(error)
    if output.is_debug and not isinstance(error, click.ClickException):
        output.note("".join(format_exception(error)).rstrip())
    if output.is_json:
        report = RunReport(
            run_id="", status="error", exit_code=code, lake="", started_at="", message=output.shown(message)
        )
        output.write_json(report.to_json())
    output.complain(message)
    return code


def _sentence(error: click.ClickException) -> str:
    return error.format_message().strip().rstrip(".")


def _place(error: BaseException) -> str:
    """Where in this package it happened, or else where at all."""
    place = "an unknown place"
    for frame, line in walk_tb(error.__traceback__):
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(_PACKAGE):
            place = f"{file.relative_to(_PACKAGE.parent)}:{line}"
    return place
