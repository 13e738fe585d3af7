"""The rows that a made-up server holds, through time, and the pages it makes of them."""

from __future__ import annotations

import json
import math
import random
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import quote

from tests.laws.simulation.world import KEYSET, Scenario, Table, has_envelope

__all__ = ("Answer", "Row", "Site")

_PAGES_MAX = 280


@dataclass(eq=False, slots=True)
class Row:
    """One row: its JSON, when it was there, and in which place of the server's order it stands."""

    values: dict[str, object]
    landed: tuple[tuple[str, object], ...]
    order: float
    born: float
    died: float = math.inf
    parent: Row | None = None

    def is_alive(self, moment: float) -> bool:
        return self.born <= moment < self.died

    def was_stable(self, since: float, until: float) -> bool:
        """There all the time, and so was its parent."""
        is_here = self.born < since and until < self.died
        return is_here and (self.parent is None or self.parent.was_stable(since, until))

    def was_ever(self, since: float, until: float) -> bool:
        is_here = self.born <= until and since <= self.died
        return is_here and (self.parent is None or self.parent.was_ever(since, until))


@dataclass(slots=True)
class Answer:
    """A page as it goes out."""

    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 200


class Site:
    """The tables of a scenario: rows by table, and by the path under which they are asked for."""

    def __init__(self, scenario: Scenario, chance: random.Random) -> None:
        self._scenario = scenario
        self._chance = chance
        self._numbers = dict.fromkeys((table.name for table in scenario.tables), 0)
        self._pages = 0
        self.rows: dict[str, list[Row]] = {table.name: [] for table in scenario.tables}
        self.places: dict[str, tuple[Table, Row | None]] = {}
        self._by_parent: dict[tuple[str, int], list[Row]] = {}
        self._are_empty: set[tuple[str, int]] = set()
        for table in scenario.tables:
            if not table.parent:
                self.places[table.path] = (table, None)
                for _ in range(chance.randint(*table.rows)):
                    self._grow(table, None, born=-1.0)
            elif table.by_query:
                self.places[table.path] = (table, None)

    # --- rows -----------------------------------------------------------------------------------------------

    def _grow(self, table: Table, parent: Row | None, *, born: float, order: float | None = None) -> Row:
        chance = self._chance
        self._numbers[table.name] += 1
        number = self._numbers[table.name]
        identity: object = f"{table.name}/é {number}" if table.has_text_ids else number * 7
        if chance.random() < table.nameless:
            identity = None
        values: dict[str, object] = {"id": identity, "label": f"row {number} of {table.name}"}
        values["size"] = None if chance.random() < 0.2 else chance.randint(-5, 10**12)
        values["is_on"] = chance.random() < 0.5
        if chance.random() < table.extra_column:
            values["extra"] = f"x{number}"
        return self._place(table, parent, values, born, order)

    def _place(
        self, table: Table, parent: Row | None, values: dict[str, object], born: float, order: float | None
    ) -> Row:
        landed = dict(values)
        if parent is not None:
            above = parent.values["id"]
            if table.by_query:
                values["parent_id"] = above
            landed["parent_id"] = above if table.is_typed or table.by_query else str(above)
        kept = tuple(sorted((name, value) for name, value in landed.items() if value is not None))
        siblings = self._siblings(table, parent)
        if table.by_query:
            order = float(
                self._numbers[table.name]
            )  # one order for all parents, as they may be asked for at once
        if order is None:
            order = siblings[-1].order + 1.0 if siblings else 0.0
        row = Row(values, kept, order, born, parent=parent)
        siblings.insert(bisect_right([other.order for other in siblings], order), row)
        if siblings is not self.rows[table.name]:
            self.rows[table.name].append(row)
        self._add_children(table, row)
        return row

    def _siblings(self, table: Table, parent: Row | None) -> list[Row]:
        if parent is None:
            return self.rows[table.name]
        return self._by_parent.setdefault((table.name, id(parent)), [])

    def _add_children(self, table: Table, row: Row) -> None:
        if row.values["id"] is None:
            return
        for child in self._scenario.tables:
            if child.parent != table.name:
                continue
            if not child.by_query:
                path = child.path.replace("{parent_id}", quote(str(row.values["id"]), safe=""))
                self.places[path] = (child, row)
            self._siblings(child, row)
            if self._chance.random() < child.empty_404:
                self._are_empty.add((child.name, id(row)))
                continue
            self._pages += 1
            for _ in range(self._chance.randint(*child.rows)):
                if self._pages < _PAGES_MAX:
                    self._pages += 1
                    self._grow(child, row, born=row.born)

    def change(self, table: Table, moment: float, *, may_delete: bool, may_update: bool = False) -> str:
        """One row of a table without a parent comes, or goes, or gets new values."""
        chance = self._chance
        alive = [row for row in self.rows[table.name] if row.is_alive(moment)]
        if alive and may_delete and chance.random() < 0.5:
            chance.choice(alive).died = moment
            return "row deleted"
        if alive and may_update and table.sync == "snapshot" and chance.random() < 0.5:
            row = chance.choice(alive)
            row.died = moment
            values = {**row.values, "size": chance.randint(0, 99)}
            self._place(table, None, values, moment, row.order)
            return "row updated"
        order: float | None = None
        if alive and chance.random() < 0.7:
            spot = chance.randrange(len(alive))
            before = alive[spot - 1].order if spot else alive[0].order - 2.0
            order = (before + alive[spot].order) / 2
        self._grow(table, None, born=moment, order=order)
        return "row inserted"

    def truth(self, name: str, since: float, until: float) -> tuple[list[Row], list[Row]]:
        """The rows that were there all the time, and those that were there at any moment."""
        rows = self.rows[name]
        return (
            [row for row in rows if row.was_stable(since, until)],
            [row for row in rows if row.was_ever(since, until)],
        )

    # --- pages ----------------------------------------------------------------------------------------------

    def answer(self, path: str, query: Mapping[str, str], moment: float) -> Answer:
        """The page that a request gets now; a status where there is none."""
        table, parent = self.places[path]
        if parent is not None and not parent.is_alive(moment):
            return Answer(b'{"error": "gone"}', status=404)
        if parent is not None and (table.name, id(parent)) in self._are_empty:
            return Answer(b'{"error": "none"}', status=404)
        if table.by_query and "parent_id" not in query and table.by_query == "refused":
            return Answer(b'{"error": "parent_id is needed"}', status=400)
        return self._page(table, path, query, self._rows_at(table, parent, query, moment))

    def _rows_at(
        self, table: Table, parent: Row | None, query: Mapping[str, str], moment: float
    ) -> list[Row]:
        if not table.by_query:
            return [row for row in self._siblings(table, parent) if row.is_alive(moment)]
        wanted = query.get("parent_id")
        return [
            row
            for row in self.rows[table.name]
            if row.is_alive(moment)
            and (row.parent is None or row.parent.is_alive(moment))
            and (wanted is None or str(row.values["parent_id"]) == wanted)
        ]

    def _page(self, table: Table, path: str, query: Mapping[str, str], rows: list[Row]) -> Answer:
        facts: dict[str, object] = {}
        headers: dict[str, str] = {}
        if table.paging in KEYSET:
            rows = self._keyset(table, path, query, rows, facts, headers)
        elif table.paging.startswith("page"):
            number = int(query["page"]) - (1 if table.paging == "page_total" else 0)
            facts["total" if table.paging == "page_total" else "pages"] = (
                len(rows) if table.paging == "page_total" else -(-len(rows) // table.page_size)
            )
            number = self._doubled(table, number)
            rows = rows[number * table.page_size : (number + 1) * table.page_size]
        elif table.paging.startswith("offset"):
            assert int(query["limit"]) == table.page_size
            if table.paging == "offset_total":
                facts["total"] = len(rows)
            offset = int(query["offset"])
            offset = self._doubled(table, offset // table.page_size) * table.page_size if offset else 0
            offset = offset if table.duplicates else int(query["offset"])
            rows = rows[offset : offset + table.page_size]
        return Answer(self._body(table, [row.values for row in rows], facts), headers)

    def _doubled(self, table: Table, number: int) -> int:
        """By chance the number of the page before: its rows come in the place of others."""
        return number - 1 if number > 0 and self._chance.random() < table.duplicates else number

    def _keyset(
        self,
        table: Table,
        path: str,
        query: Mapping[str, str],
        rows: list[Row],
        facts: dict[str, object],
        headers: dict[str, str],
    ) -> list[Row]:
        chance = self._chance
        after, _, serial = query["cursor"].partition("~") if "cursor" in query else ("-inf", "", "0")
        start = next((at for at, row in enumerate(rows) if row.order > float(after)), len(rows))
        size = table.page_size
        if chance.random() < table.short_pages:
            size = chance.randrange(size)
        is_doubled = start > 0 and chance.random() < table.duplicates
        page = rows[max(0, start - table.page_size) : start] if is_doubled else rows[start : start + size]
        reached = start if is_doubled else start + len(page)
        if reached < len(rows):
            last = after if is_doubled or not page else repr(page[-1].order)
            self._lead_on(table, path, query, f"{last}~{int(serial) + 1}", facts, headers)
        return page

    def _lead_on(
        self,
        table: Table,
        path: str,
        query: Mapping[str, str],
        token: str,
        facts: dict[str, object],
        headers: dict[str, str],
    ) -> None:
        following = {**query, "cursor": token}
        url = path + "?" + "&".join(f"{quote(k)}={quote(v)}" for k, v in following.items())
        match table.paging:
            case "token_header":
                headers["x-next"] = token
            case "token_pointer":
                facts["next"] = token
            case "link":
                headers["link"] = f'</v1>; rel="up", <{url}>; rel="next"'
            case _:
                facts["next"] = url

    def _body(self, table: Table, rows: list[dict[str, object]], facts: dict[str, object]) -> bytes:
        if table.format == "ndjson":
            return b"".join(json.dumps(row).encode() + b"\n" for row in rows)
        if has_envelope(table):
            return json.dumps({"answer": {"items": rows}, **facts}).encode()
        return json.dumps(rows).encode()

    def describe(self) -> Iterator[str]:
        """The tables for people."""
        for table in self._scenario.tables:
            yield f"{table.name}: {len(self.rows[table.name])} rows ever, {table}"
