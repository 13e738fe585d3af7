"""The command as it is, but for what a test changes before it starts: redaction off, or a fault of the program.

`python -m tests.flow.canary_run [--bare] [--crash] ARGUMENTS`
"""

from __future__ import annotations

import sys

from extractor import redact


def main() -> None:
    while sys.argv[1] in ("--bare", "--crash"):
        if sys.argv.pop(1) == "--bare":
            redact.redact = lambda text, secrets=(): text  # before anybody else imports it
        else:
            from extractor.fetch import Fetcher

            async def crash(self: Fetcher, request: object) -> None:
                """The worst that a library may do: repeat the headers in its own exception."""
                headers = dict(request.headers)  # type: ignore[attr-defined]  # a Request
                raise RuntimeError(f"cannot send {headers}")

            Fetcher.fetch = crash  # type: ignore[method-assign, assignment]  # the seam
    from extractor.cli import main as command

    command()


if __name__ == "__main__":
    main()
