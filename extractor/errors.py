"""Every error that a caller may meet, by the phase in which it arises.

    ExtractError
    ├── ConfigError           wrong usage or configuration; nothing was requested
    ├── AuthError             the key is missing, refused, expired or revoked
    ├── LakeError             the lake cannot be read or written
    │   ├── LakeBusy          another run holds a table
    │   └── CommitConflict    the log moved on in a way that cannot be rebased
    ├── DriftRefused          the answer's schema drifted and the policy says fail
    ├── SourceUnreachable     no request was ever answered
    └── RequestError          one attempt of one request failed
        ├── NetworkError      no whole answer: DNS, connect, reset, time-out, cut body
        ├── StatusError       an answer with a status that is no success
        ├── MalformedBody     a success whose body is not what it claims to be
        ├── BodyTooLarge      a body beyond the configured bounds
        ├── RedirectRefused   a redirect to another host, or too many
        └── PagingError       a chain of pages that cannot be trusted

A message says what, which endpoint, and what to do next. No message holds a credential.
Which of them deserve another attempt stands in `retry`, not here.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = (
    "AuthError",
    "BodyTooLarge",
    "CommitConflict",
    "ConfigError",
    "DriftRefused",
    "ExtractError",
    "LakeBusy",
    "LakeError",
    "MalformedBody",
    "NetworkError",
    "PagingError",
    "RedirectRefused",
    "RequestError",
    "SourceUnreachable",
    "StatusError",
)


class ExtractError(Exception):
    """The root: anything this package raises on purpose. Its message is one line, whatever it quotes."""

    def __init__(self, message: str) -> None:
        message = " ".join(message.splitlines())
        super().__init__(message)
        self.message = message


class ConfigError(ExtractError):
    """Wrong usage or configuration; nothing was requested."""


class AuthError(ExtractError):
    """The key is missing, invalid, expired or revoked."""


class LakeError(ExtractError):
    """The lake cannot be read or written, or a committed file is missing."""


class LakeBusy(LakeError):
    """Another run is writing one of the selected tables.

    `is_brief` is true where it is worth waiting: one of the two needs the tables only for a moment.
    """

    def __init__(self, message: str, *, is_brief: bool = False) -> None:
        super().__init__(message)
        self.is_brief = is_brief


class CommitConflict(LakeError):
    """Another writer committed what this run wanted to commit."""


class DriftRefused(ExtractError):
    """The schema of an answer drifted and `run.schema = "fail"` refuses that."""


class SourceUnreachable(ExtractError):
    """No request of the run was ever answered."""


class RequestError(ExtractError):
    """One attempt of one request failed."""


class NetworkError(RequestError):
    """There was no whole answer: name lookup, connection, reset, time-out or cut body."""


class StatusError(RequestError):
    """The answer's status is no success.

    `headers` have lower-case names; `excerpt` is the start of the body, for people.
    """

    def __init__(self, message: str, *, status: int, headers: Mapping[str, str], excerpt: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers
        self.excerpt = excerpt


class MalformedBody(RequestError):
    """The status says success but the body is not what it claims to be."""


class BodyTooLarge(RequestError):
    """A body, archive or nesting beyond `[bounds]`."""


class RedirectRefused(RequestError):
    """A redirect to another origin, or more of them than `bounds.redirects`."""


class PagingError(RequestError):
    """A chain of pages that cannot be trusted: a token seen before, or no end."""
