"""One extraction as the command line runs it: with progress, a log, and signals that end it in good order."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from extractor.cli.arguments import Arguments
from extractor.cli.logs import DEBUG, INFORMATION, NOTHING, WARNING, log_lines
from extractor.cli.output import PROGRAM
from extractor.cli.result import failure_line, report_text
from extractor.cli.startup import begin_work
from extractor.errors import ExtractError

if TYPE_CHECKING:
    from extractor.config import Config
    from extractor.dashboard.progress import Progress
    from extractor.events import Event, Observer
    from extractor.pipeline import Interruption
    from extractor.report import RunReport

__all__ = ("run_async", "run_extraction", "run_observed", "show_report")

T = TypeVar("T")

_SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143}


def run_extraction(
    config: Config,
    arguments: Arguments,
    *,
    accept: tuple[str, ...] = (),
    environment: Mapping[str, str] | None = None,
) -> RunReport:
    """Run the pipeline once, to its end or to the first signal.

    Raises:
        ExtractError: what kept the run from committing anything.
    """
    from extractor.pipeline import extract

    async def work(observer: Observer, interruption: Interruption) -> RunReport:
        return await extract(
            config,
            key_file=arguments.key_file,
            observer=observer,
            interruption=interruption,
            accept=accept,
            environment=environment,
        )

    expected = _expected_requests(config) if _is_live(arguments) and environment is None else None
    return run_observed(config, arguments, work, expected=expected)


def run_observed(
    config: Config,
    arguments: Arguments,
    work: Callable[[Observer, Interruption], Coroutine[object, object, RunReport]],
    *,
    expected: int | None = None,
) -> RunReport:
    """Do `work`, which is given whom to tell and what can end it, with progress, a log and signals.

    Raises:
        ExtractError: as `work`.
    """
    from extractor.pipeline import Interruption

    progress = _progress(config, arguments, expected)
    level = _level(arguments)
    log = log_lines(progress.write_line, level=level)

    def observe(event: Event) -> None:
        progress(event)
        log(event)

    async def extraction() -> RunReport:
        interruption = Interruption()
        with progress, _signals(interruption, arguments, progress):
            return await work(observe, interruption)

    return run_async(extraction())


def show_report(report: RunReport, arguments: Arguments) -> int:
    """Print a run's result as the flags ask for it; gives its exit code."""
    output = arguments.output
    if arguments.is_json:
        output.write_json(report.to_json())
    elif not arguments.is_quiet:
        output.write(report_text(report))
    if report.exit_code:
        output.complain(failure_line(report))
    return report.exit_code


def run_async(coroutine: Coroutine[object, object, T]) -> T:
    """The coroutine's result, on the fastest event loop that is installed."""
    try:
        import uvloop
    except ImportError:
        begin_work()
        return asyncio.run(coroutine)
    begin_work()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(coroutine)


# --- progress and log ---------------------------------------------------------------------------------------


def _is_live(arguments: Arguments) -> bool:
    return not arguments.is_quiet and sys.stderr.isatty() and os.environ.get("TERM", "") not in ("", "dumb")


def _level(arguments: Arguments) -> int:
    if arguments.verbosity:
        return DEBUG if arguments.verbosity > 1 else INFORMATION
    # On a terminal the report tells of every warning a moment later, in its place.
    return NOTHING if arguments.is_quiet or _is_live(arguments) else WARNING


def _progress(config: Config, arguments: Arguments, expected_requests: int | None) -> Progress:
    from extractor.dashboard.progress import LiveProgress, NoProgress, PlainProgress, Tally

    output = arguments.output
    if arguments.is_quiet:
        return NoProgress(output.note)
    tally = Tally(
        permitted_per_second=config.limits.requests_per_second * max(1, len(config.accounts)),
        expected_requests=expected_requests,
    )
    if _is_live(arguments):
        return LiveProgress(tally, sys.stderr, output.shown)
    return PlainProgress(tally, output.note)


def _expected_requests(config: Config) -> int | None:
    from extractor.preview import preview

    try:
        return preview(config).requests_estimated
    except ExtractError:
        return None  # the run itself will say what is wrong


# --- signals ------------------------------------------------------------------------------------------------


@contextmanager
def _signals(interruption: Interruption, arguments: Arguments, progress: Progress) -> Iterator[None]:
    """The first SIGINT or SIGTERM ends the run in good order, the second one at once."""
    loop = asyncio.get_running_loop()
    seen: list[signal.Signals] = []

    def receive(number: signal.Signals) -> None:
        if seen:
            progress.close()
            os._exit(_SIGNALS[seen[0]])
        seen.append(number)
        if not arguments.is_quiet:
            progress.write_line(
                f"{PROGRAM}: {number.name}: committing what is complete; a second signal leaves at once"
            )
        interruption.set(_SIGNALS[number], f"interrupted by {number.name}")

    for number in _SIGNALS:
        loop.add_signal_handler(number, receive, number)
    try:
        yield
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
