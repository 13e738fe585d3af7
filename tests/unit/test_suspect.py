from __future__ import annotations

import pytest

from extractor.endpoint import Endpoint, NoPaging, OffsetPaging, PagePaging, Paging, TokenPaging
from extractor.ledger import Ledger, OpenChain
from extractor.paging import Chain
from extractor.suspect import suspicions

TOKEN = TokenPaging(request_param="t", response_header="X-Next")
OFFSET = OffsetPaging(offset_param="o", limit_param="l", limit=50)
NUMBERED = PagePaging(page_param="page", total_pointer="/total")


def told(
    *pages: int,
    paging: Paging,
    size: int = 0,
    total: int | None = None,
    chains: int = 1,
    format_: str = "json",
) -> list[str]:
    """What is odd about a table whose every chain had these pages."""
    params = (("page_size", str(size)),) if size else ()
    endpoint = Endpoint(name="ships", path="/ships", paging=paging, params=params, format=format_)  # type: ignore[arg-type]  # one of them
    ledger = Ledger(table="ships")
    for number in range(chains):
        chain = Chain(endpoint=endpoint, base_url="http://x", pages_max=99, pages=len(pages), total=total)
        ledger.chains[str(number)] = OpenChain(chain=chain, window="")
        for rows in pages:
            ledger.count_page(rows)
    return list(suspicions(endpoint, ledger))


@pytest.mark.parametrize("pages", [(10, 10, 3), (99, 99, 99)])
def test_a_server_that_gives_less_than_a_page_and_goes_on_ignores_the_size(pages: tuple[int, ...]) -> None:
    [line] = told(*pages, paging=TOKEN, size=100)

    assert line.startswith(f"no page had more than {pages[0]} rows, where 100 were asked for")


def test_a_server_that_gives_more_than_was_asked_for_ignores_the_size() -> None:
    [line] = told(120, 120, 7, paging=OFFSET)

    assert line.startswith("120 rows came in one page, where 50 were asked for")


@pytest.mark.parametrize(
    ("rows", "paging", "size"),
    [(100, NoPaging(), 0), (1000, NoPaging(), 0), (100, TOKEN, 100), (50, OFFSET, 0)],
)
def test_a_single_page_of_just_the_size_may_have_been_cut(rows: int, paging: Paging, size: int) -> None:
    [line] = told(rows, paging=paging, size=size)

    assert line.startswith(f"exactly {rows} rows came in a single page")


def test_nothing_is_odd_about_most_tables() -> None:
    assert told(100, 100, 7, paging=TOKEN, size=100) == []
    assert told(7, paging=TOKEN, size=100) == []
    assert told(0, paging=TOKEN, size=100) == []
    assert told(101, paging=NoPaging()) == []
    assert told(100, paging=NUMBERED, size=100, total=100) == []  # all that the server says there are
    assert told(100, paging=NoPaging(), chains=3) == []  # of parents, each with a page
    assert told(1000, paging=NoPaging(), format_="openmetrics") == []
    assert told(paging=TOKEN, size=100) == []
