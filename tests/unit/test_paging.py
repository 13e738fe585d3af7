from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from extractor.endpoint import (
    Endpoint,
    LinkPaging,
    NextUrlPaging,
    NoPaging,
    OffsetPaging,
    PagePaging,
    Paging,
    TokenPaging,
)
from extractor.errors import PagingError
from extractor.paging import Chain, PageFacts, Step, Turns, needs_row_count, pointers_of
from extractor.plan import PageRequest, first_requests

BASE = "https://api.skysql.com"
HEADER = "X-SkySQL-Page-Token-Next"

TOKEN = TokenPaging(request_param="page_token", response_header=HEADER)
BODY_TOKEN = TokenPaging(request_param="page_token", response_pointer="/next")
LINK = LinkPaging()
NEXT_URL = NextUrlPaging(response_pointer="/next")
PAGES = PagePaging(page_param="page", pages_pointer="/pages")
BOTH = PagePaging(page_param="page", pages_pointer="/pages", total_pointer="/total")
TOTAL = PagePaging(page_param="page", total_pointer="/total")
OFFSET = OffsetPaging(offset_param="offset", limit_param="limit", limit=3, total_pointer="/total")
SHORT = OffsetPaging(offset_param="offset", limit_param="limit", limit=3)


@dataclass(frozen=True)
class Answer:
    """One page of a scripted server."""

    rows: int = 1
    headers: Mapping[str, str] = ()  # type: ignore[assignment]  # none
    facts: Mapping[str, object] = ()  # type: ignore[assignment]  # none
    body: str = ""

    def facts_for(self, number: int) -> PageFacts:
        return PageFacts(
            headers={name.lower(): value for name, value in dict(self.headers).items()},
            facts=dict(self.facts),
            body=(self.body or f"page {number}").encode(),
            rows=self.rows,
        )


def endpoint_of(paging: Paging, **params: str) -> Endpoint:
    return Endpoint(name="ships", path="/v1/ships", paging=paging, params=tuple(params.items()))


def start(
    paging: Paging, *, base_url: str = BASE, pages_max: int = 1000, **params: str
) -> tuple[Chain, PageRequest]:
    endpoint = endpoint_of(paging, **params)
    (request,) = first_requests(endpoint, "default", ())
    return Chain(endpoint=endpoint, base_url=base_url, pages_max=pages_max), request


def follow(
    paging: Paging, server: Callable[[dict[str, str]], Answer], *, pages_max: int = 1000, **params: str
) -> tuple[Chain, list[PageRequest]]:
    """Read a chain to its end; what was asked for, in order."""
    chain, request = start(paging, pages_max=pages_max, **params)
    asked: list[PageRequest] = []
    following: PageRequest | None = request
    while following is not None:
        asked.append(following)
        answer = server(dict(following.query))
        following = chain.advance(following, answer.facts_for(len(asked)))
    return chain, asked


def step(paging: Paging, answer: Answer, **keywords: str) -> tuple[Chain, PageRequest | None]:
    chain, request = start(paging, **keywords)  # type: ignore[arg-type]  # texts only
    return chain, chain.advance(request, answer.facts_for(1))


# --- every kind comes to its end ----------------------------------------------------------------------------

tokens = st.lists(st.text(min_size=1, max_size=6), unique=True, max_size=8)


def token_server(chain: list[str], answer_of: Callable[[str], Answer]) -> Callable[[dict[str, str]], Answer]:
    following = dict(zip(["", *chain], [*chain, ""], strict=True))
    return lambda query: answer_of(following[query.get("page_token", "")])


@given(tokens, st.sampled_from([TOKEN, BODY_TOKEN]), st.booleans())
def test_any_chain_of_tokens_is_read_to_its_end(names: list[str], paging: TokenPaging, is_bare: bool) -> None:
    def answer(token: str) -> Answer:
        if not token and is_bare:
            return Answer()
        return Answer(headers={HEADER: token}) if paging is TOKEN else Answer(facts={"/next": token})

    chain, asked = follow(paging, token_server(names, answer), page_size="100", order="asc")

    fixed = {"page_size": "100", "order": "asc"}
    assert [dict(request.query) for request in asked] == [
        fixed,
        *({**fixed, "page_token": name} for name in names),
    ]
    assert [request.page for request in asked] == list(range(len(names) + 1))
    assert {request.chain for request in asked} == {asked[0].chain}
    assert chain.proof == f"end of chain seen: no token after page {len(names) + 1}"
    assert (chain.is_ended, chain.pages, chain.rows) == (True, len(names) + 1, len(names) + 1)


@given(tokens.filter(bool), st.data())
def test_a_circle_of_tokens_of_any_length_is_refused(names: list[str], data: st.DataObject) -> None:
    back = data.draw(st.sampled_from(names))
    following = dict(zip(["", *names], [*names, back], strict=True))

    with pytest.raises(PagingError) as caught:
        follow(TOKEN, lambda query: Answer(headers={HEADER: following[query.get("page_token", "")]}))

    assert caught.value.message == (f"the token of page {len(names) + 2} was seen before: the chain loops")


@given(st.integers(0, 60), st.integers(1, 7), st.sampled_from(["int", "text"]))
def test_any_number_of_rows_is_read_by_page_number(rows: int, size: int, form: str) -> None:
    pages = -(-rows // size)

    def server(query: dict[str, str]) -> Answer:
        left = rows - (int(query["page"]) - 1) * size
        assert left > 0 or query["page"] == "1", "nothing is asked for behind the end"
        return Answer(
            rows=min(size, max(0, left)),
            facts={"/pages": str(pages) if form == "text" else pages, "/total": rows},
        )

    for paging in (PAGES, TOTAL):
        chain, asked = follow(paging, server)

        assert (chain.rows, chain.is_ended) == (rows, True)
        assert len(asked) == max(1, pages)


@given(st.integers(0, 60), st.integers(1, 7), st.booleans())
def test_any_number_of_rows_is_read_by_offset(rows: int, limit: int, is_total_told: bool) -> None:
    paging = OffsetPaging(offset_param="offset", limit_param="limit", limit=limit, total_pointer="/total")

    def server(query: dict[str, str]) -> Answer:
        found = min(int(query["limit"]), max(0, rows - int(query["offset"])))
        return Answer(rows=found, facts={"/total": rows} if is_total_told else {})

    chain, asked = follow(paging, server)

    assert (chain.rows, chain.is_ended) == (rows, True)
    offsets = [int(dict(request.query)["offset"]) for request in asked]
    assert offsets == [limit * number for number in range(len(offsets))]
    assert chain.total == (rows if is_total_told else None)


@given(st.integers(1, 8), st.sampled_from([LINK, NEXT_URL]), st.booleans())
def test_any_chain_of_links_is_read_to_its_end(pages: int, paging: Paging, is_relative: bool) -> None:
    def server(query: dict[str, str]) -> Answer:
        number = int(query.get("cursor", "1"))
        if number == pages:
            return Answer()
        url = f"{'' if is_relative else BASE}/v1/ships?cursor={number + 1}&a=%2F%20b"
        return Answer(headers={"Link": f'<{url}>; rel="next"'}, facts={"/next": url})

    chain, asked = follow(paging, server)

    assert [dict(request.query) for request in asked] == [
        {},
        *({"cursor": str(number), "a": "/ b"} for number in range(2, pages + 1)),
    ]
    assert {request.path for request in asked} == {"/v1/ships"}
    assert chain.proof == f"end of chain seen: no next link after page {pages}"


# --- the proof ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("paging", "answer", "proof"),
    [
        (NoPaging(), Answer(), "one answer is everything"),
        (NoPaging(), Answer(headers={HEADER: ""}), "one answer is everything"),
        (NoPaging(), Answer(headers={"Link": '<a>; rel="prev"'}), "one answer is everything"),
        (TOKEN, Answer(headers={HEADER: ""}), "end of chain seen: no token after page 1"),
        (TOKEN, Answer(headers={"X-Other": "t"}), "end of chain seen: no token after page 1"),
        (BODY_TOKEN, Answer(facts={"/next": None}), "end of chain seen: no token after page 1"),
        (LINK, Answer(headers={"Link": '<a>; rel="prev"'}), "end of chain seen: no next link after page 1"),
        (NEXT_URL, Answer(facts={"/next": None}), "end of chain seen: no next link after page 1"),
        (PAGES, Answer(facts={"/pages": 1}), "end of chain seen: page 1 of 1"),
        (PAGES, Answer(rows=0, facts={"/pages": 0}), "end of chain seen: page 1 of 0"),
        (PAGES, Answer(rows=0), "end of chain seen: page 1 is empty"),
        (TOTAL, Answer(rows=5, facts={"/total": 5}), "total matched: 5 rows"),
        (OFFSET, Answer(rows=3, facts={"/total": 3}), "total matched: 3 of 3 rows"),
        (SHORT, Answer(rows=2), "end of chain seen: 2 rows at offset 0"),
        (SHORT, Answer(rows=0), "end of chain seen: 0 rows at offset 0"),
    ],
)
def test_a_chain_that_ends_says_how_its_end_was_seen(paging: Paging, answer: Answer, proof: str) -> None:
    chain, following = step(paging, answer)

    assert following is None
    assert chain.proof == proof
    assert chain.is_ended


@pytest.mark.parametrize(
    ("paging", "answer", "query"),
    [
        (TOKEN, Answer(headers={HEADER.lower(): "t"}), {"page_token": "t"}),
        (BODY_TOKEN, Answer(facts={"/next": 0}), {"page_token": "0"}),
        (PAGES, Answer(rows=1, facts={"/pages": 2}), {"page": "2"}),
        (PAGES, Answer(rows=1), {"page": "2"}),
        (PAGES, Answer(rows=1, facts={"/pages": "many"}), {"page": "2"}),
        (TOTAL, Answer(rows=5, facts={"/total": 6}), {"page": "2"}),
        (OFFSET, Answer(rows=2, facts={"/total": 6}), {"offset": "2", "limit": "3"}),
        (SHORT, Answer(rows=3), {"offset": "3", "limit": "3"}),
        (TOKEN, Answer(rows=0, headers={HEADER: "t"}), {"page_token": "t"}),
    ],
)
def test_a_chain_whose_end_was_not_seen_goes_on(
    paging: Paging, answer: Answer, query: dict[str, str]
) -> None:
    chain, following = step(paging, answer)

    assert following is not None
    assert dict(following.query) == query
    assert (following.page, chain.proof, chain.is_ended) == (1, "", False)


def test_a_page_shorter_than_its_size_is_the_last_where_nothing_else_tells() -> None:
    assert step(PAGES, Answer(rows=99), page_size="100")[0].proof == "end of chain seen: page 1 is short"
    assert step(PAGES, Answer(rows=100), page_size="100")[1] is not None
    assert step(PAGES, Answer(rows=99, facts={"/pages": 2}), page_size="100")[1] is not None


def test_pages_may_be_counted_from_nought() -> None:
    paging = PagePaging(page_param="page", first_page=0, pages_pointer="/pages")

    chain, asked = follow(paging, lambda _: Answer(facts={"/pages": 3}))

    assert [request.query for request in asked] == [(("page", str(number)),) for number in range(3)]
    assert chain.proof == "end of chain seen: page 2 of 3"


def test_a_total_that_changes_is_noted_and_the_smallest_counts() -> None:
    totals = iter([6, 7, 5])

    chain, asked = follow(OFFSET, lambda _: Answer(rows=2, facts={"/total": next(totals)}))

    assert len(asked) == 3
    assert chain.total == 5
    assert chain.notes == {"the total changed while it was read"}


# --- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers", [{HEADER: "t"}, {"link": '<https://api.skysql.com/v1/ships?page=2>; rel="next"'}]
)
def test_a_next_page_that_the_catalogue_does_not_know_of_is_never_dropped(headers: dict[str, str]) -> None:
    with pytest.raises(PagingError) as caught:
        step(NoPaging(), Answer(headers=headers))

    (name,) = headers
    assert caught.value.message == (
        f"the answer names a next page in {name.lower()}, but the catalogue says paging = none"
    )


@pytest.mark.parametrize("paging", [BODY_TOKEN, NEXT_URL])
@pytest.mark.parametrize("named", [{"href": "/v1/ships?page=2"}, ["t"], True, 1.5])
def test_a_next_page_that_is_named_by_no_text_is_never_dropped(paging: Paging, named: object) -> None:
    with pytest.raises(PagingError) as caught:
        step(paging, Answer(facts={"/next": named}))

    assert caught.value.message == (
        "the answer names a next page by what is no text; correct the pointer in the catalogue"
    )


def test_a_chain_without_an_end_stops_at_the_bound() -> None:
    numbers = iter(range(100))

    with pytest.raises(PagingError) as caught:
        follow(TOKEN, lambda _: Answer(headers={HEADER: str(next(numbers))}), pages_max=7)

    assert caught.value.message == "no end after 7 pages (bounds.pages)"
    assert next(numbers) == 7


def test_a_chain_as_long_as_the_bound_is_whole() -> None:
    chain, asked = follow(PAGES, lambda _: Answer(facts={"/pages": 7}), pages_max=7)

    assert (len(asked), chain.proof) == (7, "end of chain seen: page 7 of 7")


def test_pages_that_differ_only_in_the_middle_are_no_loop() -> None:
    numbers = iter(range(100))

    def answer(_: object) -> Answer:
        number = next(numbers)
        end = "x" * 1000
        return Answer(headers={HEADER: str(number)} if number < 30 else {}, body=f"{end}{number:05d}{end}")

    chain, asked = follow(TOKEN, answer)

    assert (len(asked), chain.is_ended) == (31, True)


def test_the_same_page_again_and_again_is_a_loop() -> None:
    numbers = iter(range(100))

    with pytest.raises(PagingError) as caught:
        follow(TOKEN, lambda _: Answer(headers={HEADER: str(next(numbers))}, body="same"))

    assert caught.value.message == "the same page came 9 times in a row"


@pytest.mark.parametrize("paging", [PAGES, TOTAL, OFFSET])
def test_a_server_that_ignores_which_page_is_asked_for_doubles_no_row_without_a_key(paging: Paging) -> None:
    with pytest.raises(PagingError) as caught:
        follow(paging, lambda _: Answer(rows=3, facts={"/pages": 2, "/total": 6}, body="three rows"))

    assert caught.value.message == "page 2 is the one before it again, and no key tells their rows apart"


def test_equal_pages_that_are_not_in_a_row_are_no_loop() -> None:
    numbers = iter(range(1, 41))

    def answer(_: object) -> Answer:
        number = next(numbers)
        more = {HEADER: str(number)} if number < 40 else {}
        return Answer(headers=more, body="same" if number % 5 else "other")

    chain, asked = follow(TOKEN, answer)

    assert (len(asked), chain.is_ended) == (40, True)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://evil.example/v1/ships?p=2", "the next link leads to another host: https://evil.example"),
        ("//evil.example/v1/ships", "the next link leads to another host: https://evil.example"),
        ("http://api.skysql.com/v1/ships", "the next link leads to another host: http://api.skysql.com"),
        ("https://u:pw@evil.example/", "the next link leads to another host: https://evil.example"),
        ("https://[::1/v1", "the next link is no URL"),
    ],
)
@pytest.mark.parametrize("paging", [LINK, NEXT_URL])
def test_a_link_to_another_host_is_not_followed(paging: Paging, url: str, message: str) -> None:
    with pytest.raises(PagingError) as caught:
        step(paging, Answer(headers={"Link": f'<{url}>; rel="next"'}, facts={"/next": url}))

    assert caught.value.message == message


def test_a_link_that_was_followed_before_is_refused() -> None:
    with pytest.raises(PagingError) as caught:
        follow(NEXT_URL, lambda _: Answer(facts={"/next": "?cursor=2"}))

    assert caught.value.message == "the token of page 3 was seen before: the chain loops"


# --- links --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "path", "query"),
    [
        ("?cursor=2", "/v1/ships", (("cursor", "2"),)),
        ("/v1/boats?cursor=2", "/v1/boats", (("cursor", "2"),)),
        ("more?cursor=2", "/v1/more", (("cursor", "2"),)),
        ("../v2/ships", "/v2/ships", ()),
        ("/v1/a%2Fb?x=&y=1+2&y=%C3%BC", "/v1/a%2Fb", (("x", ""), ("y", "1 2"), ("y", "ü"))),
    ],
)
@pytest.mark.parametrize("base", ["https://api.skysql.com", "https://api.skysql.com/"])
def test_a_link_may_be_relative_to_the_page_that_names_it(
    url: str, path: str, query: tuple[tuple[str, str], ...], base: str
) -> None:
    _, following = step(NEXT_URL, Answer(facts={"/next": url}), base_url=base)

    assert following is not None
    assert (following.path, following.query) == (path, query)


def test_links_stay_below_a_base_url_that_has_a_path() -> None:
    base = "https://gate.example/sky"

    _, following = step(NEXT_URL, Answer(facts={"/next": f"{base}/v1/ships?cursor=2"}), base_url=base)

    assert following is not None
    assert (following.path, following.query) == ("/v1/ships", (("cursor", "2"),))
    for url in ("https://gate.example/skyline/v1", "/v1/ships"):
        with pytest.raises(PagingError, match=r"^the next link leads out of source\.base_url$"):
            step(NEXT_URL, Answer(facts={"/next": url}), base_url=base)


@pytest.mark.parametrize(
    "header",
    [
        '</v1/ships?n=1>; rel="next"',
        "</v1/ships?n=1>; rel=next",
        "</v1/ships?n=1>;REL=Next",
        '</a>; rel="prev", </v1/ships?n=1>; rel="next"',
        '</v1/ships?n=1>; rel="last next"',
        '</v1/ships?n=1>; title="a, b; c"; rel="next"',
        '</v1/ships?n=1>; crossorigin; rel="next"',
        '</a>; rel="prev"; title="</b>; rel=next", </v1/ships?n=1> ; rel = "next"',
        '</v1/ships?n=1>; rel="next", </c>; rel="next"',
    ],
)
def test_the_next_link_is_found_in_any_form_of_the_header(header: str) -> None:
    _, following = step(LINK, Answer(headers={"Link": header}))

    assert following is not None
    assert following.query == (("n", "1"),)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "nonsense",
        "</a>",
        '</a>; rel="nextt"',
        '</a>; title="x; rel=next"; rel="prev"',
        '</a>; rev="next"',
    ],
)
def test_what_names_no_next_link_is_the_end(header: str) -> None:
    chain, following = step(LINK, Answer(headers={"Link": header}))

    assert (following, chain.is_ended) == (None, True)


@given(st.text(max_size=60))
def test_any_link_header_is_read_without_a_fault(header: str) -> None:
    chain, request = start(LINK)

    try:
        following = chain.advance(request, Answer(headers={"Link": header}).facts_for(1))
    except PagingError:
        return
    assert (following is None) == chain.is_ended


@given(st.text(min_size=1, max_size=40))
def test_any_next_url_stays_with_the_source_or_is_refused(url: str) -> None:
    chain, request = start(NEXT_URL)

    try:
        following = chain.advance(request, Answer(facts={"/next": url}).facts_for(1))
    except PagingError:
        return
    assert following is not None
    assert urlsplit(BASE + following.path).netloc == "api.skysql.com"
    assert following.path.startswith("/")


# --- ahead of their turn ------------------------------------------------------------------------------------


def guesses(chain: Chain, request: PageRequest | None) -> list[str]:
    """The page numbers, or offsets, that the chain would ask for after `request`."""
    found = []
    while request is not None and (request := chain.guess(request)) is not None:
        found.append(dict(request.query)["offset" if "offset" in dict(request.query) else "page"])
    return found


@pytest.mark.parametrize(
    ("paging", "answer", "expected"),
    [
        (BOTH, Answer(rows=3, facts={"/pages": 5, "/total": 14}), ["3", "4", "5"]),
        (BOTH, Answer(rows=3, facts={"/pages": 2, "/total": 14}), []),
        (BOTH, Answer(rows=3, facts={"/total": 11}), ["3", "4"]),
        (BOTH, Answer(rows=3, facts={"/pages": 5}), []),  # nobody would see that rows move
        (PAGES, Answer(rows=3, facts={"/pages": 5}), []),
        (PAGES, Answer(rows=3, facts={"/pages": 5, "/total": 14}), []),
        (TOTAL, Answer(rows=3, facts={"/total": 11}), ["3", "4"]),
        (TOTAL, Answer(rows=3, facts={"/total": 9}), ["3"]),
        (OFFSET, Answer(rows=3, facts={"/total": 11}), ["6", "9"]),
        (OFFSET, Answer(rows=3, facts={"/total": 12}), ["6", "9"]),
        (OFFSET, Answer(rows=2, facts={"/total": 7}), ["4", "6"]),  # the server has a limit of its own
        (OFFSET, Answer(rows=9, facts={"/total": 11}), ["6", "9"]),  # and one that ignores ours
        (SHORT, Answer(rows=3), []),
        (TOKEN, Answer(headers={HEADER: "t"}), []),
        (NEXT_URL, Answer(facts={"/next": "?page=2", "/pages": 9}), []),
    ],
)
def test_pages_are_guessed_where_a_total_is_told_and_none_beyond_their_number(
    paging: Paging, answer: Answer, expected: list[str]
) -> None:
    chain, following = step(paging, answer)

    assert guesses(chain, following) == expected


def test_no_page_is_guessed_beyond_the_bound_or_after_the_end() -> None:
    chain, request = start(BOTH, pages_max=4)
    following = chain.advance(request, Answer(facts={"/pages": 9, "/total": 9}).facts_for(1))

    assert guesses(chain, following) == ["3", "4"]
    assert following is not None
    assert chain.advance(following, Answer(facts={"/pages": 2, "/total": 9}).facts_for(2)) is None
    assert chain.guess(following) is None


def test_how_many_pages_there_are_is_learnt_anew_from_each() -> None:
    chain, request = start(TOTAL)
    second = chain.advance(request, Answer(rows=2, facts={"/total": 9}).facts_for(1))
    before = guesses(chain, second)
    assert second is not None

    third = chain.advance(second, Answer(rows=3, facts={"/total": 9}).facts_for(2))

    assert (before, guesses(chain, third)) == (["3", "4", "5"], ["4"])


@pytest.mark.parametrize("paging", [BOTH, TOTAL, OFFSET])
@pytest.mark.parametrize(
    ("totals", "is_doubtful", "has_guesses"),
    [
        ([32], False, True),
        ([32, 32], False, True),
        ([32, 33], True, False),
        ([32, 31], True, False),
        ([32, None], True, False),
        ([32, "many"], True, False),
        ([32, None, 32], False, True),
        ([32, 33, 33], True, False),
        ([32, 33, 32], True, False),
        ([None], False, False),
        ([None, 32], False, True),
    ],
)
def test_nothing_is_guessed_where_rows_have_moved_or_nobody_can_see_whether_they_have(
    paging: Paging, totals: list[object], is_doubtful: bool, has_guesses: bool
) -> None:
    chain, following = start(paging)

    for total in totals:
        answer = Answer(rows=3, facts={"/total": total, "/pages": 9}, body=str(following.query))
        found = chain.advance(following, answer.facts_for(1))
        assert found is not None
        following = found

    assert (chain.is_doubtful, bool(guesses(chain, following))) == (is_doubtful, has_guesses)


def test_of_a_chain_that_goes_in_turn_nothing_is_guessed() -> None:
    chain, following = step(TOTAL, Answer(rows=3, facts={"/total": 11}))
    before = guesses(chain, following)

    chain.is_in_turn = True

    assert (before, guesses(chain, following)) == (["3", "4"], [])


def requests_of(count: int) -> list[PageRequest]:
    _, request = start(PAGES)
    return [replace(request, query=(("page", str(n + 1)),), page=n) for n in range(count)]


def test_an_early_answer_waits_for_its_turn() -> None:
    first, second, third, _ = requests_of(4)
    turns: Turns[str] = Turns(first)
    turns.ask(second)
    turns.ask(third)
    turns.hold(third, "three")

    places = [turns.place(request) for request in requests_of(4)]
    steps = [turns.move(second), turns.move(third), turns.move(None)]

    assert places == ["turn", "early", "unwanted", "unwanted"]
    assert steps == [Step(), Step(early="three"), Step()]
    assert [turns.place(request) for request in requests_of(4)] == ["unwanted"] * 4


def test_an_answer_for_which_there_was_no_room_is_asked_for_at_its_turn() -> None:
    first, second, _ = requests_of(3)
    turns: Turns[str] = Turns(first)
    turns.ask(second)
    turns.lose(second)

    assert turns.place(second) == "unwanted"
    assert turns.move(second) == Step(is_new=True)
    assert turns.place(second) == "turn"


def test_a_page_that_was_asked_for_ahead_is_told_from_one_that_was_asked_for_at_its_turn() -> None:
    first, second, third, fourth, fifth = requests_of(5)
    turns: Turns[str] = Turns(first)
    told = [(turns.was_ahead, turns.is_turn_early)]

    turns.move(second)
    told.append((turns.was_ahead, turns.is_turn_early))
    for request in (third, fourth, fifth):
        turns.ask(request)
    told.append((turns.was_ahead, turns.is_turn_early))
    turns.lose(fourth)
    for request in (third, fourth, fifth):
        turns.move(request)
        told.append((turns.was_ahead, turns.is_turn_early))

    # The fourth is asked for once more, at its turn.
    assert told == [(False, False), (False, False), (True, False), (True, True), (True, False), (True, True)]


@pytest.mark.parametrize("is_over", [False, True])
def test_what_was_asked_for_in_vain_is_dropped(is_over: bool) -> None:
    first, second, third, fourth = requests_of(4)
    turns: Turns[str] = Turns(first)
    turns.ask(second)
    turns.ask(third)
    turns.hold(third, "three")

    step = turns.move(None if is_over else fourth)

    assert step == Step(is_new=not is_over, dropped=(second, third), answers=("three",))
    assert (turns.ahead, turns.has_missed) == (0, True)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.integers(-3, 3), st.data())
def test_whatever_the_order_of_the_answers_a_chain_takes_its_pages_in_their_order(
    lengths: list[int], lie: int, data: st.DataObject
) -> None:
    paging = data.draw(st.sampled_from([BOTH, TOTAL, OFFSET]))
    most = data.draw(st.integers(0, 9))

    def server(query: dict[str, str]) -> Answer:
        at = int(query["offset"]) // 3 if "offset" in query else int(query["page"]) - 1
        rows = lengths[at] if at < len(lengths) else 0
        facts = {"/pages": len(lengths) + lie, "/total": max(0, sum(lengths) + lie)}
        return Answer(rows=rows, facts=facts, body=str(sorted(query.items())))

    def in_turn() -> tuple[list[str], Chain, str]:
        chain, request = start(paging)
        taken: list[str] = []
        following: PageRequest | None = request
        try:
            while following is not None:
                taken.append(following.label)
                following = chain.advance(following, server(dict(following.query)).facts_for(0))
        except PagingError as error:
            return taken, chain, error.message
        return taken, chain, ""

    def out_of_turn() -> tuple[list[str], Chain, str]:
        chain, first = start(paging)
        turns: Turns[PageFacts] = Turns(first)
        asked, taken = [first], []
        while asked:
            request = asked.pop(data.draw(st.integers(0, len(asked) - 1)))
            answer = server(dict(request.query)).facts_for(0)
            match turns.place(request):
                case "unwanted":
                    continue
                case "early" if data.draw(st.integers(0, 5)) == 0:
                    turns.lose(request)
                    continue
                case "early":
                    turns.hold(request, answer)
                    continue
            due: PageFacts | None = answer
            while due is not None and turns.turn is not None:
                taken.append(turns.turn.label)
                try:
                    following = chain.advance(turns.turn, due)
                except PagingError as error:
                    turns.move(None)
                    return taken, chain, error.message
                found = turns.move(following)
                if found.is_new and following is not None:
                    asked.append(following)
                due = found.early
                while turns.ahead < most and turns.furthest and (more := chain.guess(turns.furthest)):
                    turns.ask(more)
                    asked.append(more)
        return taken, chain, ""

    taken, chain, failure = out_of_turn()
    expected, reference, reason = in_turn()

    assert (taken, failure) == (expected, reason)
    assert (chain.proof, chain.rows, chain.total) == (reference.proof, reference.rows, reference.total)
    assert chain.notes == reference.notes


# --- what a page must tell ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("paging", "pointers", "counts"),
    [
        (NoPaging(), (), False),
        (TOKEN, (), False),
        (BODY_TOKEN, ("/next",), False),
        (LINK, (), False),
        (NEXT_URL, ("/next",), False),
        (PAGES, ("/pages",), True),
        (PagePaging(page_param="p", pages_pointer="/a", total_pointer="/b"), ("/a", "/b"), True),
        (OFFSET, ("/total",), True),
        (SHORT, (), True),
    ],
)
def test_only_what_the_paging_needs_is_looked_up(
    paging: Paging, pointers: tuple[str, ...], counts: bool
) -> None:
    endpoint = endpoint_of(paging)

    assert (pointers_of(endpoint), needs_row_count(endpoint)) == (pointers, counts)
