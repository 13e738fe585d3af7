"""An account that lives on from night to night, and what a lake must hold of it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any
from urllib.parse import quote

import aiohttp

import extractor
from extractor.catalog import load_catalog
from extractor.digest import row_bytes
from extractor.endpoint import Endpoint
from extractor.plan import Span
from extractor.sandbox import SandboxOptions
from extractor.sandbox.truth import judged_routes
from extractor.testing import canonical
from extractor.windows import Progress, advance

__all__ = ("ENDPOINTS", "WINDOWED", "Site", "options")

ENDPOINTS = {name: endpoint for name, endpoint in load_catalog().endpoints.items() if endpoint.enabled}
_PAGE_ROWS = 100


def options(*, first_day: date, seed: int, services: int = 4) -> SandboxOptions:
    """A small account in which much happens."""
    return SandboxOptions(
        services=services,
        series=60,
        log_lines=20,
        log_days=2,
        notifications=270,
        seed=seed,
        today=first_day,
        changes=4,
    )


def _normal(path: str) -> str:
    """A path template without the names of its parameters."""
    parts = ["{}" if part.startswith("{") and part.endswith("}") else part for part in path.split("/")]
    return "/".join(parts).rstrip("/")


WINDOWED = frozenset(_normal(e.path) for e in ENDPOINTS.values() if e.sync.kind != "snapshot")
"""The paths whose answers are not read whole by every run."""


@dataclass(slots=True)
class Site:
    """A sandbox that serves, asked from outside as anyone could."""

    url: str
    session: aiohttp.ClientSession
    sizes: dict[str, int] = field(default_factory=dict)
    """Of the log archives that the lake holds."""
    known: dict[str, str] = field(default_factory=dict)
    """The path templates that have a truth."""

    async def get(self, path: str) -> bytes:
        async with self.session.get(self.url + path) as answer:
            assert answer.status == 200, (path, answer.status)
            return await answer.read()

    async def set_time(self, moment: datetime) -> None:
        async with self.session.post(f"{self.url}/_sandbox/time?to={moment:%Y-%m-%dT%H:%M:%SZ}") as answer:
            assert answer.status == 200

    async def requests(self) -> Counter[str]:
        """How often each path template was asked for since the last time that one asked this."""
        found = json.loads(await self.get("/_sandbox/stats"))
        async with self.session.post(f"{self.url}/_sandbox/reset-stats"):
            return Counter({_normal(path): count for path, count in found["paths"].items()})

    async def rows(self, endpoint: Endpoint, templates: Mapping[str, str]) -> list[dict[str, Any]]:
        """What there is, and of events what ever was."""
        when = "ever" if endpoint.sync.is_event else "now"
        path = quote(templates[_normal(endpoint.path)], safe="/")
        text = await self.get(f"/_sandbox/truth{path}?as=ndjson&when={when}")
        return [json.loads(line) for line in text.splitlines()]

    def templates(self) -> Mapping[str, str]:
        if not self.known:
            self.known = {_normal(route.path): route.path for route in judged_routes()}
        return self.known

    async def judge(self, lake: str, include: Collection[str] = ()) -> Mapping[str, str]:
        """What is wrong with each table, or each of those; empty where the lake equals the account."""
        templates = self.templates()
        opened = extractor.Lake(lake)
        wrong: dict[str, str] = {}
        for name, endpoint in ENDPOINTS.items():
            is_judged = _normal(endpoint.path) in templates and (not include or name in include)
            if not is_judged or endpoint.class_ == "secret":
                continue
            left_out = set(endpoint.sync.mutable) if endpoint.sync.is_event else set()
            truth = Counter(_identities(await self.rows(endpoint, templates), left_out))
            landed: Counter[bytes] = Counter()
            if name in opened.tables():
                landed.update(_identities(canonical(opened.table(name).to_arrow()), left_out))
            if truth != landed:
                extra, missing = landed - truth, truth - landed
                wrong[name] = (
                    f"{extra.total()} rows too many, {missing.total()} missing of {truth.total()}; "
                    f"{next(iter(extra), b'')!r} {next(iter(missing), b'')!r}"
                )
        return wrong

    async def window_pages(self, now: datetime, last: datetime) -> int:
        """The pages of the windows that are open or were within their lookback last night, and what hangs on them.

        A window whose lookback ended since is read a last time: only now it is known that nothing more can come.
        """
        templates = self.templates()
        pages = 1  # of metrics there is one reading
        for endpoint in ENDPOINTS.values():
            window = endpoint.sync.window
            if window is None:
                continue
            spans = list(_spans_around(endpoint, now))
            is_closed = advance(Progress(), window, spans, {span.label for span in spans}, moment=last)
            still = [
                span for span in spans if is_closed.done_until is None or span.start >= is_closed.done_until
            ]
            rows = [] if window.replace else await self.rows(endpoint, templates)
            for span in still:
                inside = [row for row in rows if _is_in(row, endpoint, span)]
                pages += max(1, -(-len(inside) // _PAGE_ROWS))
                if endpoint.name == "logs":
                    pages += self._archives(inside)
        return pages

    def _archives(self, rows: list[dict[str, Any]]) -> int:
        """How many of these archives have another size than last night."""
        fresh = {row["id"]: row["size"] for row in rows if self.sizes.get(row["id"]) != row["size"]}
        self.sizes.update(fresh)
        return len(fresh)


def _identities(rows: Iterator[dict[str, Any]] | list[dict[str, Any]], left_out: set[str]) -> Iterator[bytes]:
    for row in rows:
        yield row_bytes({name: value for name, value in row.items() if name not in left_out})


def _spans_around(endpoint: Endpoint, now: datetime) -> Iterator[Span]:
    from extractor.plan import plan_windows

    assert endpoint.sync.window is not None
    since = now - timedelta(days=70)
    yield from plan_windows(endpoint.sync.window, since="all", now=now, done_until=since)


def _is_in(row: dict[str, Any], endpoint: Endpoint, span: Span) -> bool:
    moment = datetime.fromisoformat(str(row[endpoint.sync.cursor]))
    assert span.end is not None
    return span.start <= moment <= span.end
