"""The credentials of a run, known by value: whatever leaves it as text goes through here.

Messages are written without credentials, but servers repeat what they were sent: in an error page, a page token,
the name of a key. The log of the lake, observers and exceptions tell of such answers without them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import msgspec

from extractor.errors import ExtractError, StatusError
from extractor.events import Event, Observer, RequestFailed, RequestRetried, TableFinished, Warned
from extractor.redact import redact
from extractor.report import RunReport

__all__ = ("Secrets",)


class Secrets:
    """Keys and tokens, which can only be added, and the texts of a run without them."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def __repr__(self) -> str:
        return "Secrets(…)"

    def add(self, secret: str) -> None:
        self._known.add(secret)

    def text(self, text: str) -> str:
        """The text without any of them, in whatever encoding."""
        return redact(text, self._known) if text else text

    def values(self, value: object) -> object:
        """JSON-like values, the texts among them without any."""
        match value:
            case str():
                return self.text(value)
            case dict():
                return {key: self.values(item) for key, item in value.items()}
            case list() | tuple():
                return [self.values(item) for item in value]
            case _:
                return value

    def observer(self, observer: Observer) -> Observer:
        """An observer that tells another one of every event, without any."""

        def tell(event: Event) -> None:
            match event:
                case RequestRetried() | RequestFailed() | TableFinished():
                    event = msgspec.structs.replace(event, reason=self.text(event.reason))
                case Warned():
                    event = msgspec.structs.replace(event, message=self.text(event.message))
                case _:
                    pass
            observer(event)

        return tell

    def report(self, report: RunReport) -> RunReport:
        tables = tuple(
            replace(
                table,
                reason=self.text(table.reason),
                failures=tuple(map(self.text, table.failures)),
            )
            for table in report.tables
        )
        return replace(
            report,
            tables=tables,
            drift=tuple(map(self.text, report.drift)),
            warnings=tuple(map(self.text, report.warnings)),
            message=self.text(report.message),
        )

    def clean(self, error: BaseException) -> None:
        """Take them out of an exception, and of those that led to it."""
        for found in _chain(error):
            found.args = tuple(self.text(item) if isinstance(item, str) else item for item in found.args)
            if isinstance(found, ExtractError):
                found.message = self.text(found.message)
            if isinstance(found, StatusError):
                found.excerpt = self.text(found.excerpt)
                found.headers = cast(dict[str, str], self.values(dict(found.headers)))


def _chain(error: BaseException) -> Iterator[BaseException]:
    pending, seen = [error], set[int]()
    while pending:
        found = pending.pop()
        if id(found) in seen:
            continue
        seen.add(id(found))
        yield found
        pending += [link for link in (found.__cause__, found.__context__) if link is not None]
        if isinstance(found, BaseExceptionGroup):
            pending += found.exceptions
