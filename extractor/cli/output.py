"""Where the command line writes: results on stdout, all else on stderr, neither with a secret in it.

A reader that went away (`… | head`) is no fault: what is still to be written is dropped, the exit code stays.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable
from typing import TextIO

import click

from extractor.redact import redact

__all__ = ("PROGRAM", "Output")

PROGRAM = "skysql-extract"

# A server's text must not steer the terminal: no escape sequences, no carriage returns.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


class Output:
    """The two streams of one call of the program, and the secrets that neither may show."""

    def __init__(self, *, is_json: bool = False, is_debug: bool = False, secrets: Iterable[str] = ()) -> None:
        self.is_json = is_json
        self.is_debug = is_debug
        self._secrets = set(secrets)

    def conceal(self, secrets: Iterable[str]) -> None:
        """From now on no text shows one of `secrets`."""
        self._secrets.update(secrets)

    def shown(self, text: str) -> str:
        """`text` as it may be shown on a terminal."""
        return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", redact(text, self._secrets))

    def write(self, text: str) -> None:
        """Print a result, for people."""
        _print(self.shown(text), sys.stdout)

    def write_json(self, value: object) -> None:
        """Print the one JSON value that is this call's result.

        ASCII only, so that it reads the same whatever the terminal's encoding is.
        """
        _print(redact(json.dumps(value, indent=2), self._secrets), sys.stdout)

    def note(self, text: str) -> None:
        """Print one line of log or progress."""
        _print(self.shown(text), sys.stderr)

    def complain(self, message: str) -> None:
        """Print the one line that a failure ends in."""
        line = " ".join(self.shown(message).split())
        _print(f"{PROGRAM}: {line}", sys.stderr)


def _print(text: str, stream: TextIO) -> None:
    try:
        print(text, file=stream, flush=True)
    except BrokenPipeError:
        _discard(stream)
    except OSError as error:
        _discard(stream)
        if stream is sys.stdout:
            raise click.ClickException(f"the result cannot be written: {error.strerror}") from error


def _discard(stream: TextIO) -> None:
    """Send what this stream still holds, and all that follows, nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
