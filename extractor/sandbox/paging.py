"""The three ways in which the API cuts a collection into pages."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from extractor.sandbox.rows import Row, Selection

__all__ = ("BadQuery", "Page", "cut_by_number", "cut_by_offset", "cut_by_token")

_LARGEST_TOKEN_PAGE = 100
_DEFAULT_LIMIT = 100


class BadQuery(ValueError):
    """The query of a request cannot be answered: 400."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """The rows of an answer; which of the other fields are set depends on the way of paging."""

    rows: list[Row]
    next_token: str | None = None
    previous_token: str | None = None
    total: int = 0
    pages: int = 0
    is_repeat: bool = False


def cut_by_token(
    selection: Selection, query: Mapping[str, str], *, default_size: int, repeat: bool, nonce: int
) -> Page:
    """The page that `page_token` leads to; a token names the row that comes next, so insertions lose none.

    With `repeat`, a page that has a page before it gives the rows of that one again, and a token of
    another spelling for the page that was due; never twice for the same page.

    Raises: BadQuery.
    """
    size = _number(query, "page_size", default_size, least=1, most=_LARGEST_TOKEN_PAGE)
    order = _order(query, "page_order", "asc")
    ordinals = selection.ordinals if order == "asc" else selection.ordinals[::-1]
    token = query.get("page_token", "")
    place, was_repeated = _position(ordinals, token, order) if token else (0, False)
    if repeat and 0 < place < len(ordinals) and not was_repeated:
        shown = ordinals[max(0, place - size) : place]
        due = _encode(ordinals[place], is_repeat=True, nonce=nonce)
        return Page(rows=list(map(selection.rows.row, shown)), next_token=due, is_repeat=True)
    end = place + size
    return Page(
        rows=list(map(selection.rows.row, ordinals[place:end])),
        next_token=_encode(ordinals[end]) if end < len(ordinals) else None,
        previous_token=_encode(ordinals[max(0, place - size)]) if place else None,
    )


def cut_by_number(selection: Selection, query: Mapping[str, str], *, default_size: int, repeat: bool) -> Page:
    """The page of number `page`, newest first unless `order=asc`; with `repeat`, after the page before.

    Raises: BadQuery.
    """
    number = _number(query, "page", 1, least=1)
    size = _number(query, "page_size", default_size, least=1)
    is_newest_first = _order(query, "order", "desc") == "desc"
    ordinals = selection.ordinals if is_newest_first else selection.ordinals[::-1]
    start = (number - 1) * size
    page = _shifted(selection, ordinals, start, size, repeat=repeat)
    return Page(rows=page.rows, total=page.total, pages=-(-page.total // size), is_repeat=page.is_repeat)


def cut_by_offset(selection: Selection, query: Mapping[str, str], *, repeat: bool) -> Page:
    """`limit` rows from `offset` on; with `repeat`, the rows before them stand in front.

    Raises: BadQuery.
    """
    limit = _number(query, "limit", _DEFAULT_LIMIT, least=0)
    offset = _number(query, "offset", 0, least=0)
    is_ascending = (
        "asc" in query.get("orderBy", "").lower() or query.get("orderByDirection", "").lower() == "asc"
    )
    ordinals = selection.ordinals[::-1] if is_ascending else selection.ordinals
    return _shifted(selection, ordinals, offset, limit, repeat=repeat)


def _shifted(selection: Selection, ordinals: Sequence[int], start: int, size: int, *, repeat: bool) -> Page:
    is_repeat = repeat and 0 < start < len(ordinals)
    first = max(0, start - size) if is_repeat else start
    rows = list(map(selection.rows.row, ordinals[first : start + size]))
    return Page(rows=rows, total=len(ordinals), is_repeat=is_repeat)


def _number(query: Mapping[str, str], name: str, default: int, *, least: int, most: int | None = None) -> int:
    text = query.get(name)
    if text is None or text == "":
        return default
    try:
        value = int(text)
    except ValueError:
        raise BadQuery(f"{name} must be an integer") from None
    if value < least or (most is not None and value > most):
        raise BadQuery(f"{name} must be {least} to {most}" if most else f"{name} must be {least} or more")
    return value


def _order(query: Mapping[str, str], name: str, default: str) -> str:
    order = query.get(name) or default
    if order not in ("asc", "desc"):
        raise BadQuery(f"{name} must be asc or desc")
    return order


def _encode(ordinal: int, *, is_repeat: bool = False, nonce: int = 0) -> str:
    text = f"{ordinal}/{int(is_repeat)}/{nonce}"
    return urlsafe_b64encode(text.encode()).decode()


def _position(ordinals: Sequence[int], token: str, order: str) -> tuple[int, bool]:
    try:
        ordinal, is_repeat, _ = map(int, urlsafe_b64decode(token.encode()).decode().split("/"))
    except ValueError:
        raise BadQuery("page_token is not valid") from None
    if order == "asc":
        return bisect_left(ordinals, ordinal), bool(is_repeat)
    return bisect_left(ordinals, -ordinal, key=lambda o: -o), bool(is_repeat)
