"""What a seed stands for: an API with its rows, a server with its moods, and the runs that meet them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ("Episode", "Moods", "Scenario", "Table", "catalogue", "make_scenario")

KEYSET = ("token_header", "token_pointer", "link", "next_url")
COUNTED = ("page_total", "page_pages", "offset_total", "offset")


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One endpoint of the API. Rates are chances for each answer."""

    name: str
    path: str
    paging: str
    page_size: int
    rows: tuple[int, int]
    """Fewest and most rows (of one parent, for children)."""
    parent: str = ""
    by_query: str = ""
    """For children asked by a query parameter: `whole` if the server answers without it, else `refused`."""
    sync: str = "snapshot"
    is_keyed: bool = True
    is_typed: bool = True
    has_text_ids: bool = False
    format: str = "json"
    moves: float = 0.0
    """Rows that come (or go) between two pages."""
    may_delete: bool = False
    empty_404: float = 0.0
    """Share of parents for which the server answers 404, meaning no rows."""
    nameless: float = 0.0
    """Share of rows that lack the value by which children are asked for."""
    short_pages: float = 0.0
    duplicates: float = 0.0
    extra_column: float = 0.0
    fate: str = ""
    """`denied`, `absent` or `broken`: what every request meets."""

    @property
    def is_counted(self) -> bool:
        return self.paging in COUNTED


@dataclass(frozen=True, slots=True, kw_only=True)
class Moods:
    """How the server behaves beyond its rows. Chances are for each request."""

    latency: tuple[float, float] = (0.01, 0.2)
    slow: float = 0.0
    reset: float = 0.0
    lost_answer: float = 0.0
    timeout: float = 0.0
    error_500: float = 0.0
    error_503: float = 0.0
    error_503_named: float = 0.0
    error_408: float = 0.0
    garbage: float = 0.0
    rate: float = 0.0
    """Requests a second that the server allows; 0: any number."""
    retry_after: str = "seconds"
    outage: tuple[float, float] = (0.0, 0.0)
    """From when to when, in seconds of a run, every request is reset."""
    token_life: float = 0.0
    token_style: str = "epoch"
    token_faults: float = 0.0
    token_revokes: float = 0.0
    revoke_after: int = 0
    """Requests after which the key is refused for good; 0: never."""

    @property
    def is_calm(self) -> bool:
        """True where no request can fail by chance."""
        chances = (
            self.reset,
            self.lost_answer,
            self.timeout,
            self.error_500,
            self.error_503,
            self.error_503_named,
            self.error_408,
            self.garbage,
            self.token_faults,
            self.token_revokes,
            self.outage[1],
            self.rate,
        )
        return not any(chances) and not self.revoke_after


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """One run, and what befalls it."""

    gap_seconds: float
    changes: int = 0
    """Rows that come, go or change before it."""
    crash: str = ""
    """What counts up to `crash_at`: the `step` of the store, or its step from the `commit` on, `request` or
    `time` at which the power goes, or the operation of the store that is a `fault` or stays `unanswered`,
    or is a `late fault`, from the commit on.
    """
    crash_at: float = 0
    keeps_unsynced: bool = False
    interrupt_at: float = 0.0
    run_seconds: float = 0.0
    glance_at: int = 0
    """The operation of the store before which a reader looks at the lake; 0: none does."""
    is_calm: bool = False
    """No faults by chance: the server has calmed down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """All that a seed decides before the first run; what chance does later comes from the seed too."""

    seed: int
    tables: tuple[Table, ...]
    moods: Moods
    episodes: tuple[Episode, ...]
    requests_per_second: float = 10.0
    is_rate_set: bool = True
    burst: int = 1
    concurrency: int = 8
    memory_bytes: int = 1 << 24
    row_group_bytes: int = 1 << 20
    target_file_bytes: int = 1 << 22
    retry_attempts: int = 6
    retry_seconds: float = 600.0
    resume_seconds: float = 3600.0
    max_drop: float = 1.0
    auth: str = "api_key"
    client_offset_seconds: float = 0.0
    store_offset_seconds: float = 0.0
    executor: str = "inline"

    def table(self, name: str) -> Table:
        return next(table for table in self.tables if table.name == name)

    def lineage(self, name: str) -> Iterator[Table]:
        """The table and its ancestors."""
        while name:
            table = self.table(name)
            yield table
            name = table.parent


def make_scenario(seed: int) -> Scenario:
    """The world of a seed."""
    chance = random.Random(f"world {seed}")
    size = chance.choices(("tiny", "small", "large"), (5, 4, 1))[0]
    tables = _tables(chance, size)
    moods = _moods(chance, size)
    is_rough = chance.random() < 0.15
    retry_seconds = chance.choice((20.0, 60.0, 200.0, 600.0)) if is_rough else 600.0
    is_starved = chance.random() < 0.25
    return Scenario(
        seed=seed,
        tables=tables,
        moods=moods,
        episodes=tuple(_episodes(chance)),
        requests_per_second=chance.choice((2.0, 5.0, 10.0, 20.0, 50.0, 200.0)),
        is_rate_set=chance.random() < 0.7,
        burst=chance.choice((1, 1, 1, 2, 5)),
        concurrency=chance.choice((1, 2, 4, 8, 16)),
        memory_bytes=chance.choice((1_000, 4_000, 20_000)) if is_starved else 1 << 24,
        row_group_bytes=chance.choice((500, 5_000, 1 << 20)),
        target_file_bytes=chance.choice((3_000, 1 << 22, 1 << 22)),
        retry_attempts=chance.choice((2, 4, 6)) if is_rough else 6,
        retry_seconds=retry_seconds,
        resume_seconds=chance.choice((0.0, 100.0, 3600.0)),
        max_drop=chance.choice((1.0, 1.0, 0.5)),
        auth="bearer" if moods.token_life else "api_key",
        client_offset_seconds=chance.choice((0.0, 0.0, 0.4, -75.0, 3700.0, -90_000.0)),
        store_offset_seconds=chance.choice((0.0, 0.0, -40.0, 5000.0)),
        executor=chance.choice(("inline", "inline", "delayed", "delayed", "delayed", "slow")),
    )


def _tables(chance: random.Random, size: str) -> tuple[Table, ...]:
    roots = {"tiny": (1, 2), "small": (1, 4), "large": (2, 6)}[size]
    most = {"tiny": 12, "small": 60, "large": 400}[size]
    made = [_root(chance, f"r{number}", most) for number in range(chance.randint(*roots))]
    # Children multiply: their number is kept so that a world has some 300 requests at most.
    parents = [table for table in made if table.rows[1] <= 40 and not table.fate]
    for number in range(chance.choice((0, 1, 1, 2)) if parents else 0):
        parent = chance.choice(parents)
        child = _child(chance, f"c{number}", parent)
        made.append(child)
        if parent.rows[1] * child.rows[1] <= 60 and chance.random() < 0.5 and not child.by_query:
            made.append(_child(chance, f"g{number}", child))
    chance.shuffle(made)
    return tuple(made)


def _root(chance: random.Random, name: str, most: int) -> Table:
    paging = chance.choice(("none", *KEYSET, *COUNTED))
    is_keyed = chance.random() < 0.8
    sync = "append" if is_keyed and chance.random() < 0.2 else "snapshot"
    fewest = chance.choice((0, 1, 1, most // 2))
    rows = (fewest, max(fewest, chance.randint(1, most)))
    page_size = chance.choice((1, 2, 3, 7, 10, 25))
    while rows[1] / page_size > 40:
        page_size *= 2
    fate = chance.choice(("denied", "absent", "broken")) if chance.random() < 0.05 else ""
    moves = chance.choice((0.1, 0.5)) if is_keyed and paging != "none" and chance.random() < 0.35 else 0.0
    is_nameless = chance.random() < 0.2 and not moves and sync == "snapshot"
    doubles = is_keyed and not moves and not is_nameless and paging in (*KEYSET, "page_total", "offset_total")
    return Table(
        name=name,
        path=f"/v1/{name}",
        paging=paging,
        page_size=page_size,
        rows=rows,
        sync=sync,
        is_keyed=is_keyed,
        is_typed=chance.random() < 0.7,
        has_text_ids=chance.random() < 0.4,
        format="ndjson" if paging in ("none", "token_header", "link") and chance.random() < 0.2 else "json",
        moves=moves,
        may_delete=bool(moves) and paging in KEYSET and chance.random() < 0.5,
        # What has no key cannot be told apart: it is appended, or comes twice, as often as it is read.
        nameless=0.1 if is_nameless else 0.0,
        short_pages=chance.choice((0.0, 0.0, 0.3)) if paging in KEYSET else 0.0,
        duplicates=chance.choice((0.05, 0.3)) if doubles and chance.random() < 0.2 else 0.0,
        extra_column=chance.choice((0.0, 0.0, 0.2)),
        fate=fate,
    )


def _child(chance: random.Random, name: str, parent: Table) -> Table:
    by_query = ""
    path = f"{parent.path}/{name}"
    is_keyed = chance.random() < 0.7 or parent.sync == "append"
    if not parent.parent and is_keyed and chance.random() < 0.25:
        by_query = chance.choice(("whole", "refused"))
    else:
        path = f"/v1/{name}/{{parent_id}}/items"
    # Who counts pages while rows go cannot see all that stay.
    paging = chance.choice(("none", "none", *KEYSET, *(() if parent.may_delete else COUNTED)))
    return Table(
        name=name,
        path=path,
        paging=paging,
        page_size=chance.choice((1, 2, 5)),
        rows=chance.choice(((0, 1), (0, 3), (1, 4), (0, 8))),
        sync=parent.sync,
        parent=parent.name,
        by_query=by_query,
        is_keyed=is_keyed,
        has_text_ids=chance.random() < 0.4,
        empty_404=chance.choice((0.0, 0.0, 0.4)) if not by_query else 0.0,
        fate="broken" if chance.random() < 0.03 and not by_query else "",
    )


def _moods(chance: random.Random, size: str) -> Moods:
    low = chance.choice((0.0, 0.01, 0.1))
    settings: dict[str, object] = {
        "latency": (low, low + chance.choice((0.0, 0.05, 0.4, 2.0))),
        "slow": chance.choice((0.0, 0.0, 0.05)),
    }
    if chance.random() < 0.6:
        kinds = (
            *("reset", "lost_answer", "timeout", "error_500", "error_503"),
            *("error_503_named", "error_408", "garbage"),
        )
        for kind in chance.sample(kinds, chance.randint(1, 4)):
            settings[kind] = chance.choice((0.02, 0.05, 0.15))
    if chance.random() < 0.3:
        settings["rate"] = chance.choice((1.0, 3.0, 8.0, 20.0))
        settings["retry_after"] = chance.choice(("seconds", "seconds", "date", "none"))
    if chance.random() < 0.1:
        start = chance.uniform(0, 10)
        settings["outage"] = (start, start + chance.choice((5.0, 60.0, 2000.0)))
    if chance.random() < 0.4:
        # A token that does not live as long as a request travels is no token.
        shortest = 200.0 if settings["slow"] else 8.0 if settings["latency"][1] < 1 else 20.0  # type: ignore[index]  # a pair
        settings["token_life"] = chance.choice((shortest, 2 * shortest, 600.0, 3600.0))
        settings["token_style"] = chance.choice(("epoch", "iso", "no_iat"))
        settings["token_faults"] = chance.choice((0.0, 0.0, 0.3))
        settings["token_revokes"] = chance.choice((0.0, 0.0, 0.02))
    if chance.random() < 0.03:
        settings["revoke_after"] = chance.randint(1, 40)
    return Moods(**settings)  # type: ignore[arg-type]


def _episodes(chance: random.Random) -> Iterator[Episode]:
    gap = 0.0
    for _ in range(chance.choices((0, 1, 2, 3), (4, 4, 2, 1))[0]):
        crash = chance.choice(
            (
                "",
                "",
                "step",
                "step",
                "commit",
                "commit",
                "request",
                "time",
                "fault",
                "unanswered",
                "late fault",
            )
        )
        crash_at = {
            "": 0.0,
            "step": float(int(2 ** chance.uniform(0, 8))),
            "commit": float(chance.randint(0, 25)),
            "request": float(chance.randint(1, 40)),
            "time": 2 ** chance.uniform(-3, 6),
            "late fault": float(chance.randint(0, 12)),
            "fault": float(int(2 ** chance.uniform(0, 9))),
            "unanswered": float(int(2 ** chance.uniform(0, 9))),
        }[crash]
        is_stopped = not crash and chance.random() < 0.4
        yield Episode(
            gap_seconds=gap,
            changes=chance.choice((0, 0, 1, 5)),
            crash=crash,
            crash_at=crash_at,
            keeps_unsynced=chance.random() < 0.3,
            interrupt_at=2 ** chance.uniform(-2, 5) if is_stopped and chance.random() < 0.5 else 0.0,
            run_seconds=2 ** chance.uniform(-2, 5) if is_stopped else 0.0,
            glance_at=int(2 ** chance.uniform(0, 9)) if chance.random() < 0.4 else 0,
        )
        gap = chance.choice((1.0, 61.0, 70.0, 5000.0, 100_000.0))
    yield Episode(
        gap_seconds=gap,
        changes=chance.choice((0, 0, 3)),
        glance_at=int(2 ** chance.uniform(0, 9)) if chance.random() < 0.3 else 0,
        is_calm=chance.random() < 0.5,
    )


def catalogue(scenario: Scenario) -> str:
    """The endpoints as an endpoint file."""
    return "\n".join(_toml(scenario, table) for table in scenario.tables)


_PAGING = {
    "none": 'kind = "none"',
    "token_header": 'kind = "token", request_param = "cursor", response_header = "X-Next"',
    "token_pointer": 'kind = "token", request_param = "cursor", response_pointer = "/next"',
    "link": 'kind = "link"',
    "next_url": 'kind = "next_url", response_pointer = "/next"',
    "page_total": 'kind = "page", page_param = "page", total_pointer = "/total"',
    "page_pages": 'kind = "page", page_param = "page", first_page = 0, pages_pointer = "/pages"',
    "offset_total": 'kind = "offset", offset_param = "offset", limit_param = "limit", limit = {size}, '
    'total_pointer = "/total"',
    "offset": 'kind = "offset", offset_param = "offset", limit_param = "limit", limit = {size}',
}


def _toml(scenario: Scenario, table: Table) -> str:
    lines = [f"[{table.name}]", f'path = "{table.path}"']
    lines.append(f"paging = {{ {_PAGING[table.paging].format(size=table.page_size)} }}")
    if not table.paging.startswith("offset") and table.paging != "none":
        lines.append(f"params = {{ page_size = {table.page_size} }}")
    if has_envelope(table):
        lines.append('records = "/answer/items"')
    lines += [f'format = "{table.format}"', f'sync = "{table.sync}"']
    if table.parent:
        fallback = ", fallback_on = [400]" if table.by_query else ""
        lines.append(f'parent = {{ endpoint = "{table.parent}", params = {{ parent_id = "id" }}{fallback} }}')
        if not table.by_query:
            lines.append('keep = { parent_id = "id" }')
    if table.is_keyed:
        lines.append('key = ["parent_id", "id"]' if table.parent and not table.by_query else 'key = ["id"]')
    if table.empty_404:
        lines.append("empty_on = [404]")
    if table.is_typed:
        lines.append(f"[{table.name}.columns]")
        lines.append(f'id = "{"string" if table.has_text_ids else "int64"}"')
        if table.parent:
            above = scenario.table(table.parent)
            lines.append(f'parent_id = "{"string" if above.has_text_ids else "int64"}"')
        lines += ['label = "string"', 'size = "int64"', 'is_on = "bool"']
    return "\n".join(lines) + "\n"


def has_envelope(table: Table) -> bool:
    """True where the rows stand inside an object."""
    return table.format == "json" and table.paging not in ("none", "token_header", "link")
