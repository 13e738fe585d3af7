"""`python -m extractor.sandbox`: serve until SIGINT or SIGTERM, then end with 0; wrong usage ends with 2."""

from __future__ import annotations

import asyncio
import signal
import sys

from extractor.sandbox.options import SandboxOptions, parse_options
from extractor.sandbox.server import serve

__all__ = ("main",)


def main(argv: list[str] | None = None) -> int:
    """Serve as `argv` says and return the exit code."""
    try:
        options = parse_options(sys.argv[1:] if argv is None else argv)
    except ValueError as error:
        print(f"sandbox: {error}", file=sys.stderr)
        return 2
    try:
        asyncio.run(_serve_until_signalled(options))
    except OSError as error:
        print(f"sandbox: cannot listen on port {options.port}: {error.strerror}", file=sys.stderr)
        return 2
    return 0


async def _serve_until_signalled(options: SandboxOptions) -> None:
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    try:
        await serve(options)
    except asyncio.CancelledError:
        return


if __name__ == "__main__":
    sys.exit(main())
