"""`sandbox`: serve the SkySQL API emulator on loopback until stopped."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from extractor.sandbox.options import SandboxOptions

__all__ = ("sandbox",)


class _Sandbox(click.Command):
    """Its flags are the sandbox's own, so they are listed from there."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from extractor.sandbox.options import FLAGS

        rows = [(f"{flag.name} {flag.metavar}".strip(), flag.explanation) for flag in FLAGS]
        with formatter.section("Options"):
            formatter.write_dl([*rows, ("-h, --help", "Show this message and exit.")])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_paragraph()
        with formatter.section("Example"):
            formatter.write(
                "  skysql-extract sandbox --port 8080 --services 40 --rate-limit 20 --fault 503=0.02\n"
            )


@click.command(
    "sandbox",
    cls=_Sandbox,
    context_settings={
        "ignore_unknown_options": True,
        "allow_interspersed_args": False,
        "help_option_names": ["-h", "--help"],
    },
)
@click.argument("flags", nargs=-1, type=click.UNPROCESSED)
@click.option("--until-stdin-ends", is_flag=True, hidden=True)
def sandbox(flags: tuple[str, ...], until_stdin_ends: bool) -> int:
    """Serve the SkySQL API emulator on loopback.

    Its address is the first line on stdout; it serves until stopped.
    """
    import asyncio

    from extractor.sandbox.options import parse_options

    try:
        options = parse_options(list(flags))
    except ValueError as error:
        raise click.UsageError(str(error), ctx=click.get_current_context()) from error
    try:
        asyncio.run(_serve(options, until_stdin_ends))
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise click.UsageError(f"port {options.port} cannot be listened on: {reason}") from error
    return 0


async def _serve(options: SandboxOptions, until_stdin_ends: bool) -> None:
    """Serve until a signal, or until whoever holds the other end of stdin is gone."""
    import asyncio
    import signal

    from extractor.cli.startup import begin_work
    from extractor.sandbox import serve

    begin_work()
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    if until_stdin_ends:
        loop.add_reader(sys.stdin.fileno(), task.cancel)
    try:
        await serve(options)
    except asyncio.CancelledError:
        return
