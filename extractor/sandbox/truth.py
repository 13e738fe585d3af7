"""What a complete and careful reader of a route ends up with: its rows, and their digest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Literal

from extractor.digest import digest_rows
from extractor.sandbox.routes import ROUTES, Params, Route, selected
from extractor.sandbox.rows import Row
from extractor.sandbox.world import World

__all__ = ("Truth", "When", "changes", "judged_routes", "rows_of")

When = Literal["now", "start", "ever"]

# The integers of these names are epoch seconds, in every resource that has them as integers.
_EPOCH_FIELDS = frozenset(
    (
        "created_on",
        "updated_on",
        "created_date",
        "updated_date",
        "assigned_on",
        "volume_modified_on",
        "expire_on",
    )
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Truth:
    """Counts and digests by route, computed when asked for and again after data changed."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str, When], tuple[int, tuple[int, str]]] = {}

    def of(self, world: World, route: Route, *, when: When = "now") -> Mapping[str, object]:
        """`rows` and `digest` of a route; may take long in a large world."""
        key = (world.org, route.path, when)
        version = world.version
        known = self._known.get(key)
        if known is None or known[0] != version:
            known = self._known[key] = (version, digest_rows(rows_of(world, route, when=when)))
        rows, digest = known[1]
        return {"rows": rows, "digest": digest}


def judged_routes() -> list[Route]:
    """The routes that have a truth: not the secret ones, and not those that answer a question."""
    return [route for route in ROUTES.values() if route.parents is not None and not route.is_secret]


def rows_of(world: World, route: Route, *, when: When = "now") -> Iterator[Row]:
    """All rows of a route; `start` leaves out what was inserted since, `ever` gives those that are gone too.

    Only rows of events are ever gone and still wanted: of other routes `ever` means now.
    """
    if route.is_secret or route.parents is None:
        return
    of_start = when == "start"
    if when == "ever" and route.ever is not None:
        for row in route.ever(world):
            yield _finished(route, {}, row)
        return
    if route.truth is not None:
        for row in route.truth(world, of_start):
            yield _finished(route, {}, row)
        return
    for params in route.parents(world, of_start):
        selection = selected(world, route, params, {})
        if selection is None:
            continue
        for ordinal in selection.ordinals:
            if ordinal >= 0 or not of_start:
                yield _finished(route, params, selection.rows.row(ordinal))


def changes(before: World, after: World, route: Route) -> dict[str, list[object]]:
    """What differs between two moments of one organization: rows `added`, `removed`, and `changed` as pairs."""
    old, new = _by_identity(before, route), _by_identity(after, route)
    return {
        "added": [row for identity, row in new.items() if identity not in old],
        "removed": [row for identity, row in old.items() if identity not in new],
        "changed": [
            {"before": old[identity], "after": row}
            for identity, row in new.items()
            if identity in old and old[identity] != row
        ],
    }


# What tells the rows under one path apart: the first of these names that they have.
_IDENTITIES = (
    "id key_id config_key_id invoice_id offering_id meter_id payment_method_id iso3166_2 iso_short "
    "serverDataSourceId bucket_name number name service_id subscriber_id"
).split()


def _by_identity(world: World, route: Route) -> dict[tuple[object, ...], Row]:
    found: dict[tuple[object, ...], Row] = {}
    copies: Counter[tuple[object, ...]] = Counter()
    for row in rows_of(world, route):
        names = [name for name in _IDENTITIES if name in row][:1]
        params = [
            str(row[part[1:-1]]) for part in route.segments if part.startswith("{") and part[1:-1] in row
        ]
        identity = (*params, *(row[name] for name in names))
        found[(*identity, copies[identity])] = row
        copies[identity] += 1
    return found


def _finished(route: Route, params: Params, row: Row) -> Row:
    """The row with its path's parameters and real times, without what is secret."""
    for path in route.secret_fields:
        row = _without(row, path.split("."))
    # A field of the row wins over a parameter of the same name: it has the field's own type.
    timed = _timed({**params, **row})
    assert isinstance(timed, dict)
    return timed


def _without(row: Row, path: list[str]) -> Row:
    head, *rest = path
    if not rest:
        return {key: value for key, value in row.items() if key != head}
    nested = row.get(head)
    if isinstance(nested, list):
        return {**row, head: [_without(item, rest) for item in nested]}
    return row


def _timed(value: object, name: str = "") -> object:
    if isinstance(value, dict):
        return {key: _timed(item, key) for key, item in value.items()}
    if isinstance(value, list):
        return [_timed(item) for item in value]
    if name in _EPOCH_FIELDS and isinstance(value, int) and not isinstance(value, bool):
        return _EPOCH + timedelta(seconds=value)
    return value
