"""One chain of pages: what comes next, and when the end has been seen.

A chain ends with a proof or not at all. It refuses what would loop: a token seen before, the same page again and
again, more pages than `bounds.pages`.

Where the answers say how many pages there are, `Chain.guess` names those to come, and `Turns` brings their answers
back into order: see `docs/decisions/0006-prefetch.md`.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar
from urllib.parse import parse_qsl, urljoin, urlsplit

import msgspec
from msgspec.structs import replace

from extractor.endpoint import (
    Endpoint,
    LinkPaging,
    NextUrlPaging,
    NoPaging,
    OffsetPaging,
    PagePaging,
    TokenPaging,
)
from extractor.errors import PagingError
from extractor.plan import PageRequest

__all__ = ("Chain", "PageFacts", "Step", "Turns", "needs_row_count", "paging_headers", "pointers_of")

A = TypeVar("A")

# So many equal pages in a row are a loop, not a coincidence.
_REPEATS = 7
_GLANCE_BYTES = 256

_PARAMETER = r";\s*([^,;=\"]+)(?:=\s*(\"[^\"]*\"|[^,;]*))?"
_LINK = re.compile(rf"<([^<>]*)>\s*((?:{_PARAMETER}\s*)*)")


class PageFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What one answer says that matters for paging.

    `headers` have lower-case names; `facts` maps JSON pointers to values; `body` tells a page that comes again and
    again; `rows` is the number of rows, or None where nobody counted.
    """

    headers: Mapping[str, str]
    facts: Mapping[str, object]
    body: bytes | memoryview
    rows: int | None = None


def pointers_of(endpoint: Endpoint) -> tuple[str, ...]:
    """The JSON pointers that the paging of an endpoint needs."""
    match endpoint.paging:
        case TokenPaging(response_pointer=str(pointer)) | NextUrlPaging(response_pointer=pointer):
            return (pointer,)
        case PagePaging(pages_pointer=pages, total_pointer=total):
            return tuple(pointer for pointer in (pages, total) if pointer)
        case OffsetPaging(total_pointer=str(total)):
            return (total,)
        case _:
            return ()


def paging_headers(endpoint: Endpoint, headers: Mapping[str, str]) -> dict[str, str]:
    """Of an answer's headers those by which its chain goes on; no other ever leaves the memory."""
    match endpoint.paging:
        case TokenPaging(response_header=str(header)) if header:
            name = header.lower()
        case LinkPaging():
            name = "link"
        case _:
            return {}
    return {name: headers[name]} if name in headers else {}


def needs_row_count(endpoint: Endpoint) -> bool:
    """True where the end of a chain is told by the number of rows."""
    return isinstance(endpoint.paging, PagePaging | OffsetPaging)


@dataclass(slots=True, kw_only=True)
class Chain:
    """The state of one chain; `advance` takes each page once, in order."""

    endpoint: Endpoint
    base_url: str
    pages_max: int
    pages: int = 0
    rows: int = 0
    total: int | None = None
    """Rows that the server says there are: the smallest it has said."""
    expected: int | None = None
    """Pages that there are by all that the last answer says; None where it does not say."""
    is_in_turn: bool = False
    """True for a chain of which no page may be asked for before its turn."""
    has_shifted: bool = False
    """True once an answer named another total than the one before: rows have moved between pages."""
    lacks_total: bool = False
    """True where one before named a total and the last answer does not: whether rows have moved, nobody can see."""
    proof: str = ""
    notes: set[str] = field(default_factory=set)
    _rows_a_page: int = 0
    _tokens: set[str] = field(default_factory=set)
    _glance: tuple[int, bytes, bytes] = (-1, b"", b"")
    _whole: int | None = None
    _repeats: int = 0

    @property
    def is_ended(self) -> bool:
        return bool(self.proof)

    @property
    def is_doubtful(self) -> bool:
        """True if the last page may not join those before it."""
        return self.has_shifted or self.lacks_total

    def advance(self, request: PageRequest, page: PageFacts) -> PageRequest | None:
        """The next page to read, or None: the end was seen, `proof` says how.

        Raises:
            PagingError: the chain cannot be trusted.
        """
        self.pages += 1
        self.rows += page.rows or 0
        self._refuse_repeats(page)
        following = self._next(request, page)
        if following is not None and self.pages >= self.pages_max:
            raise PagingError(f"no end after {self.pages} pages (bounds.pages)")
        return following

    def guess(self, request: PageRequest) -> PageRequest | None:
        """The page after `request`, which was not read yet, if the answers go on as they did.

        None where nothing says that there is one. Only `advance` knows what really comes next. Without a total
        nobody could see that rows move to a later page, which was read already.
        """
        if (
            self.is_ended
            or self.is_in_turn
            or self.is_doubtful
            or self.expected is None
            or self.total is None
        ):
            return None
        if request.page + 1 >= min(self.expected, self.pages_max):
            return None
        match self.endpoint.paging:
            case PagePaging(page_param=name):
                step = 1
            case OffsetPaging(offset_param=name):
                step = self._rows_a_page
            case _:
                return None
        return _with(request, {name: str(int(dict(request.query)[name]) + step)})

    def _refuse_repeats(self, page: PageFacts) -> None:
        # Pages seldom look alike; only then all of their bytes count.
        body = page.body
        glance = (len(body), bytes(body[:_GLANCE_BYTES]), bytes(body[-_GLANCE_BYTES:]))
        # Rows without a key, under a number that the server may ignore, would stand twice at the first repetition.
        is_keyless = needs_row_count(self.endpoint) and not self.endpoint.key
        whole = zlib.crc32(body) if is_keyless or glance == self._glance else None
        is_again = whole is not None and (glance, whole) == (self._glance, self._whole)
        self._repeats = self._repeats + 1 if is_again else 0
        self._glance, self._whole = glance, whole
        if is_again and is_keyless and page.rows:
            raise PagingError(
                f"page {self.pages} is the one before it again, and no key tells their rows apart"
            )
        if self._repeats >= _REPEATS:
            raise PagingError(f"the same page came {self._repeats + 2} times in a row")

    def _next(self, request: PageRequest, page: PageFacts) -> PageRequest | None:
        match self.endpoint.paging:
            case NoPaging():
                self._end_of_single(page)
                return None
            case TokenPaging() as paging:
                return self._next_token(request, page, paging)
            case LinkPaging():
                return self._next_url(request, _next_link(page.headers.get("link", "")))
            case NextUrlPaging(response_pointer=pointer):
                return self._next_url(request, _text(page.facts.get(pointer)))
            case PagePaging() as paging:
                return self._next_page(request, page, paging)
            case OffsetPaging() as paging:
                return self._next_offset(request, page, paging)

    def _end_of_single(self, page: PageFacts) -> None:
        for name, value in page.headers.items():
            if value and ("page-token-next" in name or (name == "link" and _next_link(value))):
                raise PagingError(
                    f"the answer names a next page in {name}, but the catalogue says paging = none"
                )
        self.proof = "one answer is everything"

    def _next_token(self, request: PageRequest, page: PageFacts, paging: TokenPaging) -> PageRequest | None:
        token = page.headers.get(paging.response_header.lower(), "") if paging.response_header else ""
        if not token and paging.response_pointer:
            token = _text(page.facts.get(paging.response_pointer))
        if not token:
            self.proof = f"end of chain seen: no token after page {self.pages}"
            return None
        self._refuse_seen(token)
        return _with(request, {paging.request_param: token})

    def _next_url(self, request: PageRequest, url: str) -> PageRequest | None:
        if not url:
            self.proof = f"end of chain seen: no next link after page {self.pages}"
            return None
        self._refuse_seen(url)
        base = self.base_url.rstrip("/")
        try:
            there, here = urlsplit(urljoin(base + request.path, url)), urlsplit(base)
        except ValueError as error:
            raise PagingError("the next link is no URL") from error
        # A key goes to the configured origin and nowhere else.
        if (there.scheme, there.netloc) != (here.scheme, here.netloc):
            raise PagingError(f"the next link leads to another host: {there.scheme}://{there.hostname}")
        if not there.path.startswith(f"{here.path}/"):
            raise PagingError("the next link leads out of source.base_url")
        path = there.path.removeprefix(here.path)
        query = tuple(parse_qsl(there.query, keep_blank_values=True))
        return replace(request, path=path, query=query, page=request.page + 1)

    def _next_page(self, request: PageRequest, page: PageFacts, paging: PagePaging) -> PageRequest | None:
        pages = _count(page.facts.get(paging.pages_pointer)) if paging.pages_pointer else None
        total = self._note_total(page.facts.get(paging.total_pointer)) if paging.total_pointer else None
        number = int(dict(request.query)[paging.page_param])
        size = int(dict(request.query).get("page_size", "0"))
        if pages is not None and number - paging.first_page + 1 >= pages:
            self.proof = f"end of chain seen: page {number} of {pages}"
        elif pages is None and total is not None and self.rows >= total:
            self.proof = f"total matched: {self.rows} rows"
        elif page.rows == 0 and total is not None and self.rows < total:
            raise PagingError(
                f"page {number} has no rows, though the server says {total} and {self.rows} came"
            )
        elif page.rows == 0 or (
            pages is None and total is None and page.rows is not None and page.rows < size
        ):
            self.proof = f"end of chain seen: page {number} is {'empty' if not page.rows else 'short'}"
        if self.proof:
            return None
        # The fullest page tells how many rows a page can have: better to ask for too few ahead than beyond the end.
        self._rows_a_page = max(self._rows_a_page, page.rows or 0)
        self.expected = pages if pages is not None else self._pages_for(total, self.rows)
        return _with(request, {paging.page_param: str(number + 1)})

    def _next_offset(self, request: PageRequest, page: PageFacts, paging: OffsetPaging) -> PageRequest | None:
        total = self._note_total(page.facts.get(paging.total_pointer)) if paging.total_pointer else None
        offset = int(dict(request.query)[paging.offset_param])
        # Rows beyond the limit came before, or were not asked for: counting them would skip what follows.
        rows = min(page.rows or 0, paging.limit)
        if total is not None and rows == 0 and offset < total:
            raise PagingError(f"no rows at offset {offset}, though the server says that there are {total}")
        if total is not None and offset + rows >= total:
            self.proof = f"total matched: {offset + rows} of {total} rows"
        elif rows == 0 or (total is None and rows < paging.limit):
            self.proof = f"end of chain seen: {rows} rows at offset {offset}"
        if self.proof:
            return None
        self._rows_a_page = rows
        self.expected = self._pages_for(total, offset + rows)
        return _with(request, {paging.offset_param: str(offset + rows)})

    def _pages_for(self, total: int | None, rows: int) -> int | None:
        """How many pages there are if those to come are full, and `rows` of `total` rows came in those before."""
        if total is None or not self._rows_a_page:
            return None
        return self.pages - (rows - total) // self._rows_a_page

    def _note_total(self, value: object) -> int | None:
        count = _count(value)
        self.lacks_total = count is None and self.total is not None
        if count is not None:
            if self.total is not None and count != self.total:
                self.notes.add("the total changed while it was read")
                self.has_shifted = True
            self.total = count if self.total is None else min(self.total, count)
        return count

    def _refuse_seen(self, token: str) -> None:
        if token in self._tokens:
            raise PagingError(f"the token of page {self.pages + 1} was seen before: the chain loops")
        self._tokens.add(token)


class Step(msgspec.Struct, Generic[A], frozen=True, kw_only=True):
    """What follows when a chain goes on: the answer to the next page if it came `early`, or that
    its request `is_new`; neither where it is on its way.

    `dropped` are requests ahead that nobody waits for any more, `answers` those answers of theirs that came.
    """

    early: A | None = None
    is_new: bool = False
    dropped: tuple[PageRequest, ...] = ()
    answers: tuple[A, ...] = ()


class _Ahead(msgspec.Struct, Generic[A]):
    request: PageRequest
    answer: A | None = None
    is_lost: bool = False


class Turns(Generic[A]):
    """Whose turn it is in one chain, and what was asked for ahead of its turn.

    A chain takes answers in the order of its pages. One that comes early is held until the chain asks for that very
    request, so that a wrong guess costs a request and never changes what is read. After one there are no more.
    """

    __slots__ = ("_ahead", "has_missed", "is_turn_early", "turn", "was_ahead")

    def __init__(self, first: PageRequest) -> None:
        self.turn: PageRequest | None = first
        self.has_missed = False
        self.was_ahead = False
        """True once a page was asked for before its turn."""
        self.is_turn_early = False
        """True if the page whose turn it is was asked for before its turn."""
        self._ahead: dict[Hashable, _Ahead[A]] = {}

    @property
    def ahead(self) -> int:
        """How many requests were made ahead of their turn and still are."""
        return len(self._ahead)

    @property
    def furthest(self) -> PageRequest | None:
        """The last page of the chain that was asked for."""
        return next(reversed(self._ahead.values())).request if self._ahead else self.turn

    def place(self, request: PageRequest) -> Literal["turn", "early", "unwanted"]:
        """Whether an answer to the request is awaited now, or later, or not at all (any more)."""
        if self.turn is not None and (request is self.turn or request.identity == self.turn.identity):
            return "turn"
        ahead = self._ahead.get(request.identity)
        return "early" if ahead is not None and ahead.answer is None and not ahead.is_lost else "unwanted"

    def ask(self, request: PageRequest) -> None:
        """The page after `furthest` is asked for."""
        self.was_ahead = True
        self._ahead[request.identity] = _Ahead(request)

    def hold(self, request: PageRequest, answer: A) -> None:
        """Keep an early answer until its turn."""
        self._ahead[request.identity].answer = answer

    def lose(self, request: PageRequest) -> None:
        """There is no room for an early answer: at its turn the request will be new again."""
        self._ahead[request.identity].is_lost = True

    def move(self, following: PageRequest | None) -> Step[A]:
        """Make it the turn of `following`, which the chain asks for; None: the chain is over."""
        self.turn = following
        found = self._ahead.pop(following.identity, None) if following is not None else None
        self.is_turn_early = found is not None and not found.is_lost
        if found is not None:
            return Step(early=found.answer, is_new=found.is_lost)
        dropped = tuple(self._ahead.values())
        self._ahead.clear()
        self.has_missed = self.has_missed or bool(dropped)
        return Step(
            is_new=following is not None,
            dropped=tuple(ahead.request for ahead in dropped),
            answers=tuple(ahead.answer for ahead in dropped if ahead.answer is not None),
        )


def _with(request: PageRequest, changed: Mapping[str, str]) -> PageRequest:
    return replace(request, query=tuple({**dict(request.query), **changed}.items()), page=request.page + 1)


def _count(value: object) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    return int(value) if isinstance(value, str) and value.isdecimal() else None


def _text(value: object) -> str:
    """A token or link as text, empty where there is none. Raises: PagingError if it is neither."""
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value:
        raise PagingError(
            "the answer names a next page by what is no text; correct the pointer in the catalogue"
        )
    return ""


def _next_link(header: str) -> str:
    """The target of `rel="next"` in a Link header (RFC 8288), or an empty text."""
    for link in _LINK.finditer(header):
        for name, value in re.findall(_PARAMETER, link[2]):
            if name.strip().lower() == "rel" and "next" in value.strip().strip('"').lower().split():
                return link[1]
    return ""
