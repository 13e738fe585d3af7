"""Signs that a table may be shorter than it looks, though the end of every chain was seen: for warnings only.

A server that ignores the size of a page, or cuts an answer that has no pages, says nothing of it.
"""

from __future__ import annotations

from collections.abc import Iterator

from extractor.endpoint import Endpoint, NoPaging, OffsetPaging
from extractor.ledger import Ledger

__all__ = ("suspicions",)

# What servers cut an answer to when nobody says how much they want.
_USUAL_LIMITS = frozenset({10, 20, 25, 50, 100, 200, 250, 500, 1000, 2000, 5000, 10_000})
_SIZE_PARAMS = ("page_size", "pageSize", "per_page", "limit", "size")


def suspicions(endpoint: Endpoint, ledger: Ledger) -> Iterator[str]:
    """One line for each sign."""
    asked, largest = page_size(endpoint), ledger.largest_page
    if asked and largest > asked:
        yield (
            f"{largest} rows came in one page, where {asked} were asked for: "
            "the server ignores the size of a page"
        )
    elif asked and ledger.longest_chain > 1 and 0 < largest < asked:
        yield (
            f"no page had more than {largest} rows, where {asked} were asked for, and more pages followed: "
            "the server ignores the size of a page, or allows less"
        )
    if ledger.longest_chain != 1 or len(ledger.chains) != 1 or ledger.total is not None:
        return
    is_cut = (
        largest in _USUAL_LIMITS if isinstance(endpoint.paging, NoPaging) and not asked else largest == asked
    )
    if is_cut and endpoint.format in ("json", "ndjson"):
        yield f"exactly {largest} rows came in a single page: the server may have more that it does not tell of"


def page_size(endpoint: Endpoint) -> int:
    """How many rows a page are asked for; 0 where the server chooses."""
    if isinstance(endpoint.paging, OffsetPaging):
        return endpoint.paging.limit
    given = dict(endpoint.params)
    found = next((str(given[name]) for name in _SIZE_PARAMS if name in given), "")
    return int(found) if found.isdecimal() else 0
