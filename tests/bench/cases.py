"""What is measured: a case says in its name which rows there are, over how many endpoints, in which pages."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ("CASES", "EXACT_CASES", "PEER_CASES", "Case", "Pages", "parse_case")

CASES = (
    "nested-1m-8",
    "flat-1m-8",
    "nested-100k-64",
    "nested-100k-1",
    "nested-100k-8-p1000",
    "flat-1m-64-50ms",
)
"""The cases of a full run."""

PEER_CASES = ("flat-1m-8", "nested-100k-64", "nested-100k-1")
"""Those in which the other tools take part: they need minutes for the rest."""

EXACT_CASES = ("nested-1m-8", "nested-100k-8-p1000", "flat-1m-8")
"""Those whose pages are decoded without a network, see `tests.bench.exact`."""

_NAME = re.compile(r"(nested|flat)-(\d+)(k|m)-(\d+)(?:-p(\d+))?(?:-(\d+)ms)?")
_SCALE = {"k": 1_000, "m": 1_000_000}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pages:
    """A set of static pages: `rows` in all, shared out evenly over the endpoints."""

    shape: str
    rows: int
    endpoints: int
    page_size: int = 100

    @property
    def name(self) -> str:
        return f"{self.shape}-{self.rows}-{self.endpoints}-p{self.page_size}"

    @property
    def names(self) -> tuple[str, ...]:
        """The endpoints, each of which is one chain of pages and one table."""
        return tuple(f"e{number:02d}" for number in range(self.endpoints))

    def span(self, endpoint: int) -> range:
        """The numbers of the rows of one endpoint; no row stands in two."""
        return range(self.rows * endpoint // self.endpoints, self.rows * (endpoint + 1) // self.endpoints)

    @property
    def longest_chain(self) -> int:
        """Pages of the endpoint that has most."""
        rows = max(len(self.span(endpoint)) for endpoint in range(self.endpoints))
        return max(1, -(-rows // self.page_size))


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One thing to measure: pages, and how late the server answers."""

    name: str
    pages: Pages
    latency_ms: int = 0

    @property
    def concurrency(self) -> int:
        """Requests in flight: as many as chains where the server is slow, else the product's default."""
        return self.pages.endpoints if self.latency_ms else 16


def parse_case(name: str) -> Case:
    """The case of a name such as `nested-100k-8-p1000` or `flat-1m-64-50ms`.

    Raises:
        ValueError: the name is not of this form.
    """
    found = _NAME.fullmatch(name)
    if found is None:
        raise ValueError(f"{name!r} is no case; one is named like nested-100k-8-p1000 or flat-1m-64-50ms")
    shape, count, scale, endpoints, page_size, latency = found.groups()
    pages = Pages(
        shape=shape,
        rows=int(count) * _SCALE[scale],
        endpoints=int(endpoints),
        page_size=int(page_size or 100),
    )
    return Case(name=name, pages=pages, latency_ms=int(latency or 0))
