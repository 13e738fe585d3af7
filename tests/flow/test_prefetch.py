"""Pages that can be counted are asked for before their turn, and what is read is what reading in turn reads."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

import extractor
from extractor.account import AccountRun, Credential, TableRun
from extractor.commitlog import CommitLog
from extractor.config import SecretText
from extractor.endpoint import Endpoint, OffsetPaging, PagePaging, Paging, Parent, TokenPaging
from extractor.errors import NetworkError, StatusError
from extractor.events import ignore
from extractor.fetch import Fetcher, Request, Response
from extractor.lane import Budget, DecodeBounds, InlineExecutor, Lane, Part, Spawn
from extractor.ledger import Ledger
from extractor.limit import Limiter, Limits
from extractor.plan import PageRequest, Plan, TablePlan
from extractor.retry import RetryPolicy
from extractor.schedule import Frontier, drain
from extractor.schema import plan_schema
from extractor.stores import open_store
from extractor.testing.clock import VirtualClock
from tests.flow import own

PAGES = PagePaging(page_param="page", pages_pointer="/pages", total_pointer="/total")
TOTAL = PagePaging(page_param="page", total_pointer="/total")
OFFSET = OffsetPaging(offset_param="from", limit_param="size", limit=3, total_pointer="/total")
TOKEN = TokenPaging(request_param="t", response_pointer="/next")


def endpoint_of(paging: Paging, name: str = "ships", **more: Any) -> Endpoint:
    return Endpoint(name=name, path=f"/{name}", records="/items", paging=paging, **more)


# --- one account in virtual time, against a scripted server ------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """What one attempt gets, after so many seconds."""

    rows: Sequence[Mapping[str, object]] = ()
    facts: Mapping[str, object] = field(default_factory=dict)
    status: int = 200
    seconds: float = 0.0
    is_cut: bool = False

    @property
    def body(self) -> bytes:
        body = json.dumps({"items": list(self.rows), **self.facts}).encode()
        return body[:-2] if self.is_cut else body


Server = Callable[[str, Mapping[str, str], int], Answer]
"""The answer to a path, a query and the number of the attempt, counted from 1."""


class Network(Fetcher):
    """Answers as the server says, and knows who was asked when, and how many at once."""

    def __init__(self, server: Server, clock: VirtualClock) -> None:
        self.asked: list[tuple[str, tuple[tuple[str, str], ...]]] = []
        self.received_bytes = 0
        self.open = 0
        self.most = 0
        self.most_ready = 0
        self.frontier: Frontier[PageRequest] | None = None
        self._server = server
        self._time = clock
        self._attempts: Counter[object] = Counter()

    async def fetch(self, request: Request) -> Response:
        key = (request.path, request.query)
        self.asked.append(key)
        self._attempts[key] += 1
        answer = self._server(request.path, dict(request.query), self._attempts[key])
        self.open += 1
        self.most = max(self.most, self.open)
        assert self.frontier is not None
        self.most_ready = max(self.most_ready, self.frontier.statistics().ready)
        await self._time.sleep_until(self._time.monotonic() + answer.seconds)
        self.open -= 1
        if not answer.status:
            raise NetworkError(f"{request.path}: the connection was reset")
        if answer.status != 200:
            raise StatusError(f"{request.path}: status {answer.status}", status=answer.status, headers={})
        return Response(
            status=200,
            headers={},
            body=answer.body,
            spool=None,
            size_bytes=len(answer.body),
            elapsed_seconds=answer.seconds,
            received_at=self._time.now(),
        )


@dataclass(slots=True)
class RowsSink:
    """The rows of a table in the order in which they came."""

    rows: list[dict[str, object]] = field(default_factory=list)
    buffered_bytes: int = 0
    is_full: bool = False

    async def take(self, parts: Sequence[Part]) -> None:
        for part in parts:
            self.rows.extend(part.batch.to_pylist())

    async def write(self) -> None:
        return

    async def flush(self) -> None:
        return


@dataclass(slots=True)
class Read:
    """What came of reading an account to its end."""

    run: AccountRun
    network: Network
    clock: VirtualClock
    budget: Budget
    sinks: Mapping[str, RowsSink]

    def ids(self, table: str = "ships") -> list[object]:
        return [row["id"] for row in self.sinks[table].rows]

    def told(self) -> dict[str, object]:
        """Everything that is known of each table, but not how many requests it took."""
        return {
            name: (
                self.ids(name),
                [(key, c.window, c.failure, c.undecoded) for key, c in table.ledger.chains.items()],
                [
                    (c.chain.proof, c.chain.pages, c.chain.rows, c.chain.total, sorted(c.chain.notes))
                    for c in table.ledger.chains.values()
                ],
                (table.ledger.failures, table.ledger.failure_count, table.ledger.absent),
                (table.ledger.pages, table.ledger.rows, table.ledger.parents, self.run.figures.failed),
                table.ledger.outcome(None, had_rows=False),
            )
            for name, table in self.run.tables.items()
        }


def read(
    server: Server,
    *endpoints: Endpoint,
    ahead: int,
    concurrency: int = 8,
    memory: int = 64 << 20,
    pages_max: int = 1000,
    last: Mapping[str, int] | None = None,
    stop_at: float = 0.0,
    stop: Callable[[AccountRun], object] = lambda run: run.frontier.forget(),
) -> Read:
    """Read the endpoints of one account to the end, in virtual time."""

    async def scenario() -> Read:
        clock = VirtualClock()
        budget = Budget(memory)
        network = Network(server, clock)
        tables: dict[str, TableRun] = {}
        async with anyio.create_task_group() as lanes:

            def spawn(work: Callable[[], Coroutine[Any, Any, None]], /) -> None:
                lanes.start_soon(work)

            run = AccountRun(
                "default",
                plan=Plan(tables=tuple(TablePlan(endpoint=endpoint, mode="run") for endpoint in endpoints)),
                tables=tables,
                credential=Credential(key=SecretText("k" * 30)),
                organization="",
                fetcher=network,
                limiter=Limiter(Limits(requests_per_second=1e6, concurrency=concurrency), clock),
                policy=RetryPolicy(attempts=3, longest_seconds=1e6),
                base_url="http://127.0.0.1",
                pages_max=pages_max,
                clock=clock,
                chance=lambda: 0.5,
                observer=ignore,
                budget=budget,
                ahead=ahead,
            )
            network.frontier = run.frontier
            sinks = {endpoint.name: RowsSink() for endpoint in endpoints}
            for endpoint in endpoints:
                is_parent = any(e.parent and e.parent.endpoint == endpoint.name for e in endpoints)
                lane = lane_of(run, endpoint, sinks[endpoint.name], budget, spawn, is_eager=is_parent)
                tables[endpoint.name] = table_of(endpoint, lane, (last or {}).get(endpoint.name, 0))
            run.start()

            async def stop_in_time() -> None:
                await clock.sleep_until(stop_at)
                stop(run)

            if stop_at:
                lanes.start_soon(stop_in_time)
            await clock.run(
                drain(run.frontier, slots=run.limiter, clock=clock, attempt=run.attempt, admit=budget.admit)
            )
        return Read(run, network, clock, budget, sinks)

    return asyncio.run(scenario())


def lane_of(
    run: AccountRun, endpoint: Endpoint, sink: RowsSink, budget: Budget, spawn: Spawn, *, is_eager: bool
) -> Lane:
    return Lane(
        endpoint,
        plan_schema(endpoint),
        sink,
        executor=InlineExecutor(),
        budget=budget,
        bounds=DecodeBounds(body_bytes=1 << 20, depth=20, archive_ratio=100),
        spool_folder=Path,
        on_page=run.page_decoded,
        on_failure=run.page_failed,
        on_drift=lambda _: None,
        spawn=spawn,
        is_eager=is_eager,
    )


def table_of(endpoint: Endpoint, lane: Lane, last_longest_chain: int) -> TableRun:
    return TableRun(
        endpoint=endpoint,
        ledger=Ledger(table=endpoint.name),
        lane=lane,
        columns=frozenset(column.source for column in lane.schema.fields),
        is_dormant=bool(endpoint.parent and endpoint.parent.fallback_on),
        last_longest_chain=last_longest_chain,
    )


def assert_nothing_is_left(found: Read) -> None:
    assert found.run.frontier.is_drained
    assert found.budget.bodies == 0
    assert [table.turns for table in found.run.tables.values()] == [{}] * len(found.run.tables)
    assert found.run.limiter.statistics().in_flight == 0


def counted(rows: int, size: int, seconds: Callable[[int], float] = lambda _: 1.0, width: int = 0) -> Server:
    """A healthy server of numbered pages; `seconds` are for each page, `width` makes rows as wide."""

    def server(_path: str, query: Mapping[str, str], _attempt: int) -> Answer:
        number = int(query["page"]) if "page" in query else int(query["from"]) // size + 1
        found = [{"id": row, "text": "x" * width} for row in range((number - 1) * size, rows)][:size]
        return Answer(rows=found, facts={"pages": -(-rows // size), "total": rows}, seconds=seconds(number))

    return server


@pytest.mark.parametrize("paging", [PAGES, TOTAL, OFFSET])
def test_the_pages_after_the_first_are_read_at_once_and_none_beyond_the_end(paging: Paging) -> None:
    found = read(counted(30, 3), endpoint_of(paging), ahead=32, concurrency=16)

    assert found.ids() == list(range(30))
    assert (len(found.network.asked), found.network.most) == (10, 9)
    assert found.clock.monotonic() == 2.0
    assert_nothing_is_left(found)


def test_no_more_pages_are_ahead_than_may_be() -> None:
    found = read(counted(300, 3, lambda number: 9.0 if number == 2 else 1.0), endpoint_of(PAGES), ahead=4)

    assert found.network.most == 1 + 4
    assert found.ids() == list(range(300))


def test_a_table_with_enough_to_ask_for_asks_for_nothing_ahead() -> None:
    ports = endpoint_of(PAGES, "ports")
    ships = Endpoint(
        name="ships",
        path="/{port}/ships",
        records="/items",
        paging=PAGES,
        parent=Parent(endpoint="ports", params={"port": "id"}),
    )

    def server(path: str, query: Mapping[str, str], attempt: int) -> Answer:
        return counted(40 if path == "/ports" else 5, 40 if path == "/ports" else 1)(path, query, attempt)

    found = read(server, ports, ships, ahead=4, concurrency=4)

    assert len(found.ids()) == 40 * 5
    assert found.network.most_ready <= 40 + 4


def test_a_chain_of_tokens_goes_page_by_page_and_those_of_many_parents_side_by_side() -> None:
    ports = endpoint_of(PagePaging(page_param="page", pages_pointer="/pages"), "ports")
    ships = Endpoint(
        name="ships",
        path="/ports/{port}/ships",
        records="/items",
        paging=TOKEN,
        parent=Parent(endpoint="ports", params={"port": "id"}),
    )

    def server(path: str, query: Mapping[str, str], _attempt: int) -> Answer:
        if path == "/ports":
            return Answer(rows=[{"id": number} for number in range(8)], facts={"pages": 1}, seconds=1.0)
        at = int(query.get("t", "0"))
        return Answer(
            rows=[{"id": at}], facts={"next": at + 1} if at < 4 else {}, seconds=1.0 + int(path[7]) / 100
        )

    found = read(server, ports, ships, ahead=32, concurrency=8)

    assert Counter(found.ids()) == dict.fromkeys(range(5), 8)
    assert found.network.most == 8
    assert found.clock.monotonic() == pytest.approx(1.0 + 5 * 1.07)


# --- the same as in turn ------------------------------------------------------------------------------------

faults = st.sampled_from([0, 429, 500, 503, 400, 404, 413, "cut"])


@dataclass(frozen=True)
class World:
    """A server that may say anything of its pages; equal questions get equal answers."""

    paging: Paging
    lengths: tuple[int, ...]
    pages_told: tuple[object, ...]
    totals_told: tuple[object, ...]
    seconds: Mapping[int, tuple[float, ...]]
    faults: Mapping[int, tuple[object, int]]

    def __call__(self, _path: str, query: Mapping[str, str], attempt: int) -> Answer:
        at = int(query.get("page", "1")) - 1 if "page" in query else int(query["from"])
        index = at if "page" in query else at // 3
        length = self.lengths[index] if index < len(self.lengths) else 0
        pauses = self.seconds.get(index, (1.0,))
        seconds = pauses[(attempt - 1) % len(pauses)]
        fault, times = self.faults.get(index, (None, 0))
        if fault is not None and attempt <= times and fault != "cut":
            assert isinstance(fault, int)
            # Where nothing was ever answered the run ends instead.
            return Answer(status=fault or (500 if index == 0 else 0), seconds=seconds)
        facts = {
            "pages": self.pages_told[index % len(self.pages_told)],
            "total": self.totals_told[index % len(self.totals_told)],
        }
        rows = [{"id": f"{at}.{number}"} for number in range(length)]
        return Answer(rows=rows, facts=facts, seconds=seconds, is_cut=fault == "cut" and attempt <= times)


@st.composite
def worlds(draw: st.DrawFn, *, totals: int = 1, is_faulty: bool = True) -> World:
    """Servers that say up to so many different totals."""
    lengths = draw(
        st.one_of(
            st.integers(1, 14).map(lambda pages: (3,) * pages),  # as they should be
            st.lists(st.integers(0, 4), min_size=1, max_size=14).map(tuple),
        )
    )
    true, rows = len(lengths), sum(lengths)

    def told(number: int, most: int) -> st.SearchStrategy[tuple[object, ...]]:
        strange = st.one_of(st.integers(max(0, number - 3), number + 3), st.none(), st.just("many"))
        return st.one_of(st.just((number,)), st.lists(strange, min_size=1, max_size=most).map(tuple))

    return World(
        paging=draw(st.sampled_from([PAGES, TOTAL, OFFSET])),
        lengths=lengths,
        pages_told=draw(told(true, 5)),
        totals_told=draw(told(rows, totals)),
        seconds=draw(
            st.dictionaries(
                st.integers(0, 16), st.lists(st.integers(0, 9).map(float), min_size=1, max_size=3).map(tuple)
            )
        ),
        faults=draw(
            st.dictionaries(st.integers(0, 16), st.tuples(faults, st.integers(1, 4)), max_size=3 * is_faulty)
        ),
    )


@settings(max_examples=100)
@given(
    worlds(),
    st.integers(1, 20),
    st.integers(1, 9),
    st.sampled_from([400, 4000, 64 << 20]),
    st.sampled_from([4, 1000]),
    st.booleans(),
)
def test_in_whatever_order_pages_come_rows_proof_and_ledger_are_those_of_reading_in_turn(
    world: World, ahead: int, concurrency: int, memory: int, pages_max: int, has_empty: bool
) -> None:
    endpoint = endpoint_of(world.paging, empty_on=(404,) if has_empty else ())
    in_turn = read(world, endpoint, ahead=0, concurrency=concurrency, pages_max=pages_max)

    found = read(world, endpoint, ahead=ahead, concurrency=concurrency, memory=memory, pages_max=pages_max)

    assert found.told() == in_turn.told()
    assert_nothing_is_left(in_turn)
    assert_nothing_is_left(found)
    assert in_turn.network.most == 1


# --- rows that move -----------------------------------------------------------------------------------------

MOVED = "rows moved between pages, and no key tells them apart"


def chain_told(found: Read) -> tuple[object, ...]:
    """How the one chain of an account ended."""
    (chain,) = found.run.tables["ships"].ledger.chains.values()
    state = chain.chain
    return state.proof, state.pages, state.rows, state.total, state.notes, chain.failure, chain.undecoded


@settings(max_examples=60)
@given(
    worlds(totals=5, is_faulty=False),
    st.integers(1, 20),
    st.integers(1, 9),
    st.sampled_from([400, 4000, 64 << 20]),
    st.booleans(),
)
def test_where_totals_change_the_chain_is_read_as_in_turn_in_the_end_or_fails_without_a_key(
    world: World, ahead: int, concurrency: int, memory: int, has_key: bool
) -> None:
    endpoint = endpoint_of(world.paging, key=("id",) if has_key else ())
    in_turn = read(world, endpoint, ahead=0)

    found = read(world, endpoint, ahead=ahead, concurrency=concurrency, memory=memory)

    ledger = found.run.tables["ships"].ledger
    assert ledger.rows == len(found.ids())
    assert_nothing_is_left(found)
    if ledger.failures and ledger.failures[0].endswith(MOVED):
        assert not has_key
        assert len(set(world.totals_told)) > 1
        assert (ledger.failure_count, found.run.figures.failed) == (1, 1)
        assert found.ids() == in_turn.ids()[: len(found.ids())]
        return
    assert chain_told(found) == chain_told(in_turn)
    first_reading = len(found.ids()) - len(in_turn.ids())
    assert found.ids()[first_reading:] == in_turn.ids()
    if ledger.notes:
        assert has_key
        assert found.ids()[:first_reading] == in_turn.ids()[:first_reading]
    else:
        assert found.told() == in_turn.told()


class Growing:
    """A server that sorts rows which come while it is read among those that stood before.

    A row comes in front of the `n`th request, wherever `inserted` says; `seconds` are for each request in turn.
    The pages in `late` are refused at first, and so seen after those that were asked for later.
    """

    def __init__(
        self, rows: int, inserted: Mapping[int, int], seconds: Sequence[int], late: frozenset[int]
    ) -> None:
        self.rows: list[object] = list(range(rows))
        self._inserted = inserted
        self._late = late
        self._seconds = seconds
        self._served = 0

    def __call__(self, _path: str, query: Mapping[str, str], attempt: int) -> Answer:
        self._served += 1
        if self._served in self._inserted:
            self.rows.insert(self._inserted[self._served] % (len(self.rows) + 1), 1000 + self._served)
        at = (int(query["page"]) - 1) * 3 if "page" in query else int(query["from"])
        return Answer(
            status=503 if attempt == 1 and at // 3 in self._late else 200,
            rows=[{"id": row} for row in self.rows[at : at + 3]],
            facts={"pages": -(-len(self.rows) // 3), "total": len(self.rows)},
            seconds=float(self._seconds[self._served % len(self._seconds)]),
        )


@settings(max_examples=100)
@given(
    st.sampled_from([PAGES, TOTAL, OFFSET]),
    st.integers(0, 30),
    st.dictionaries(st.integers(4, 20), st.integers(0, 12), max_size=3),
    st.lists(st.integers(0, 9), min_size=1, max_size=7),
    st.frozensets(st.integers(1, 5), max_size=3),
    st.integers(1, 20),
    st.sampled_from([800, 64 << 20]),
    st.booleans(),
)
def test_every_row_that_stood_all_the_time_is_read_or_the_chain_is_not_complete(
    paging: Paging,
    rows: int,
    inserted: Mapping[int, int],
    seconds: list[int],
    late: frozenset[int],
    ahead: int,
    memory: int,
    has_key: bool,
) -> None:
    endpoint = endpoint_of(paging, key=("id",) if has_key else ())

    found = read(Growing(rows, inserted, seconds, late), endpoint, ahead=ahead, memory=memory)

    ledger = found.run.tables["ships"].ledger
    outcome = ledger.outcome(None, had_rows=False)
    assert_nothing_is_left(found)
    if outcome.status != "complete":
        assert not has_key
        assert outcome.reason.endswith(MOVED)
        return
    assert set(range(rows)) <= set(found.ids())
    if not inserted:
        assert found.ids() == list(range(rows))


def moving(at: int, *, is_gone: bool = False) -> Server:
    """Twelve rows, and one more in front of them from page `at` on, and whenever a page is read again.

    Or there until page `at`, and gone from then on.
    """

    def server(_path: str, query: Mapping[str, str], attempt: int) -> Answer:
        number = int(query["page"])
        has_moved = number >= at or attempt > 1
        stands = [*(["another"] if has_moved != is_gone else []), *(f"r{n}" for n in range(12))]
        found = [{"id": id_} for id_ in stands[3 * (number - 1) : 3 * number]]
        return Answer(rows=found, facts={"total": len(stands)}, seconds=1.0)

    return server


def pages_asked(found: Read) -> dict[str, int]:
    return dict(Counter(dict(query)["page"] for _, query in found.network.asked))


@pytest.mark.parametrize("at", [2, 3, 4])
def test_a_chain_whose_rows_moved_while_pages_were_ahead_is_read_again_in_turn(at: int) -> None:
    """Page four is the last of the chain as it was, and would have ended it."""
    found = read(moving(at), endpoint_of(TOTAL, key=("id",)), ahead=8)

    ledger = found.run.tables["ships"].ledger
    whole = ["another", *(f"r{n}" for n in range(12))]
    assert found.ids() == [f"r{n}" for n in range(3 * (at - 1))] + whole
    assert pages_asked(found) == {"1": 2, "2": 2, "3": 2, "4": 2, "5": 1}
    # Once more page by page: five pages after the first two round trips.
    assert found.clock.monotonic() == 2.0 + 5.0
    assert ledger.outcome(None, had_rows=False).reason == "total matched: 13 rows"
    assert list(ledger.notes) == [
        "read again page by page, as rows moved between pages that were read side by side"
    ]
    assert (ledger.pages, ledger.rows, ledger.failure_count, found.run.figures.failed) == (
        at - 1 + 5,
        3 * (at - 1) + 13,
        0,
        0,
    )
    assert_nothing_is_left(found)


@pytest.mark.parametrize("at", [2, 3, 4, 5])
def test_rows_that_moved_to_a_page_that_was_read_before_are_read_in_the_end(at: int) -> None:
    """One in front of them is gone: read in turn only once, the first of each page would be missing."""
    found = read(moving(at, is_gone=True), endpoint_of(TOTAL, key=("id",)), ahead=8)

    assert found.ids()[-12:] == [f"r{n}" for n in range(12)]
    assert found.run.tables["ships"].ledger.outcome(None, had_rows=False).status == "complete"
    assert_nothing_is_left(found)


@pytest.mark.parametrize("at", [2, 3, 4])
def test_without_a_key_a_chain_whose_rows_moved_fails_once_and_is_not_read_again(at: int) -> None:
    found = read(moving(at), endpoint_of(TOTAL), ahead=8)

    ledger = found.run.tables["ships"].ledger
    assert ledger.failures == [f"/ships?page={at}: {MOVED}"]
    assert (ledger.failure_count, found.run.figures.failed) == (1, 1)
    assert ledger.outcome(None, had_rows=False).status == "failed"
    assert pages_asked(found) == dict.fromkeys("1234", 1)
    assert_nothing_is_left(found)


@pytest.mark.parametrize(("last", "is_read_again"), [(1, False), (2, True)])
def test_a_page_ahead_that_names_no_total_is_not_taken_for_one_that_joins(
    last: int, is_read_again: bool
) -> None:
    def server(path: str, query: Mapping[str, str], attempt: int) -> Answer:
        found = counted(11, 3)(path, query, attempt)
        return found if int(query["page"]) <= last else replace(found, facts={})

    found = read(server, endpoint_of(TOTAL, key=("id",), params=(("page_size", "3"),)), ahead=8)

    ledger = found.run.tables["ships"].ledger
    once = list(range(11))
    assert found.ids() == (once[: 3 * last] + once if is_read_again else once)
    assert bool(ledger.notes) == is_read_again
    assert ledger.outcome(None, had_rows=False).status == "complete"
    assert_nothing_is_left(found)


def test_a_page_that_is_refused_and_shows_that_rows_moved_is_read_again_with_its_chain() -> None:
    def server(path: str, query: Mapping[str, str], attempt: int) -> Answer:
        if query["from"] == "6" and attempt == 1:
            return Answer(facts={"total": 13}, seconds=1.0)
        return counted(12, 3)(path, query, attempt)

    keyed, keyless = (read(server, endpoint_of(OFFSET, key=key), ahead=8) for key in (("id",), ()))

    assert keyed.ids() == [*range(6), *range(12)]
    assert keyed.run.tables["ships"].ledger.outcome(None, had_rows=False).status == "complete"
    assert keyless.run.tables["ships"].ledger.failure_count == keyless.run.figures.failed == 1
    assert_nothing_is_left(keyed)
    assert_nothing_is_left(keyless)


@pytest.mark.parametrize("status", [200, 400, 404, 503])
def test_an_answer_of_the_first_reading_that_comes_in_the_second_counts_for_nothing(status: int) -> None:
    rows = [f"r{n}" for n in range(12)]

    def server(_path: str, query: Mapping[str, str], attempt: int) -> Answer:
        number = int(query["page"])
        if number == 3 and attempt == 1:
            return Answer(status=503, seconds=1.0)
        if number == 4 and attempt == 1:  # comes while the second reading waits for its own
            old = [{"id": id_} for id_ in rows[9:]]
            return Answer(rows=old, facts={"total": 12}, status=status, seconds=50.0)
        stands = ["new", *rows] if attempt > 1 or number == 5 else rows
        found = [{"id": id_} for id_ in stands[3 * (number - 1) : 3 * number]]
        return Answer(rows=found, facts={"total": len(stands)}, seconds=90.0 if number == 4 else 1.0)

    found = read(server, endpoint_of(TOTAL, key=("id",)), ahead=8)

    ledger = found.run.tables["ships"].ledger
    assert found.ids()[6:] == ["new", *rows]
    assert pages_asked(found) == {"1": 2, "2": 2, "3": 3, "4": 2, "5": 1}
    assert ledger.outcome(None, had_rows=False).status == "complete"
    assert (ledger.failure_count, ledger.absent, found.run.figures.failed) == (0, 0, 0)
    assert found.clock.monotonic() > 90.0
    assert_nothing_is_left(found)


def test_attempts_are_counted_anew_when_a_chain_is_read_again() -> None:
    """Three are allowed; the second page needs as many in each reading."""

    def server(path: str, query: Mapping[str, str], attempt: int) -> Answer:
        if query["page"] != "2":
            return moving(3)(path, query, attempt)
        return moving(3)(path, query, attempt // 3) if attempt in (3, 6) else Answer(status=503)

    found = read(server, endpoint_of(TOTAL, key=("id",)), ahead=8)

    assert pages_asked(found)["2"] == 6
    assert found.run.tables["ships"].ledger.outcome(None, had_rows=False).status == "complete"


def test_of_a_run_that_is_told_to_end_a_chain_that_is_read_again_stays_open() -> None:
    found = read(moving(3), endpoint_of(TOTAL, key=("id",)), ahead=8, stop_at=1.5)

    ledger = found.run.tables["ships"].ledger
    assert found.run.frontier.is_drained
    assert ledger.outcome(None, had_rows=False).reason == "1 of 1 chains were cut off"


def test_a_second_reading_that_is_refused_does_not_ask_by_parent() -> None:
    ports = endpoint_of(PAGES, "ports")
    parent = Parent(endpoint="ports", params={"port": "id"}, fallback_on=(400,))
    ships = endpoint_of(TOTAL, key=("id",), parent=parent)

    def server(path: str, query: Mapping[str, str], attempt: int) -> Answer:
        if path == "/ports":
            return counted(3, 3)(path, query, attempt)
        if query["page"] == "1" and attempt == 2:
            return Answer(status=400, seconds=1.0)
        return moving(3)(path, query, attempt)

    found = read(server, ports, ships, ahead=8)

    ledger = found.run.tables["ships"].ledger
    assert ledger.failures == ["/ships?page=1: status 400"]
    assert (len(ledger.chains), ledger.parents) == (1, 0)
    assert_nothing_is_left(found)


def test_children_whose_parent_comes_when_the_run_is_told_to_end_are_open_and_not_forgotten() -> None:
    ports = endpoint_of(PAGES, "ports")
    ships = Endpoint(
        name="ships",
        path="/ports/{port}/ships",
        records="/items",
        paging=TOKEN,
        parent=Parent(endpoint="ports", params={"port": "id"}),
    )

    found = read(counted(3, 3, lambda _: 2.0), ports, ships, ahead=8, stop_at=1.0)

    above = found.run.tables["ports"].ledger.outcome(None, had_rows=False)
    children = found.run.tables["ships"].ledger.outcome(above, had_rows=False)
    assert above.status == "complete"
    assert (children.status, children.reason) == ("partial", "3 of 3 chains were cut off")
    assert [path for path, _ in found.network.asked] == ["/ports"]


# --- what fails ---------------------------------------------------------------------------------------------


def test_a_page_that_fails_for_a_time_is_asked_for_again_alone() -> None:
    def server(path: str, query: Mapping[str, str], attempt: int) -> Answer:
        if query["page"] == "3" and attempt < 3:
            return Answer(status=503, seconds=1.0)
        return counted(24, 3)(path, query, attempt)

    found = read(server, endpoint_of(PAGES), ahead=32)

    assert Counter(dict(query)["page"] for _, query in found.network.asked) == {
        **dict.fromkeys("12345678", 1),
        "3": 3,
    }
    assert found.ids() == list(range(24))


def test_a_page_that_is_given_up_gives_up_its_chain_once_and_at_its_turn() -> None:
    def server(path: str, query: Mapping[str, str], attempt: int) -> Answer:
        if query["page"] in "56":
            return Answer(status=400)
        return counted(30, 3)(path, query, attempt)

    found = read(server, endpoint_of(PAGES), ahead=32, concurrency=16)

    (chain,) = found.run.tables["ships"].ledger.chains.values()
    assert chain.failure == "/ships?page=5: status 400"
    assert (found.run.tables["ships"].ledger.failure_count, found.run.figures.failed) == (1, 1)
    assert found.ids() == list(range(12))
    assert_nothing_is_left(found)


@pytest.mark.parametrize(
    ("seconds", "ended"), [(1.0, 2.5), (3.0, 4.0)], ids=["waiting for another attempt", "on their way"]
)
def test_pages_that_turn_out_not_to_exist_are_no_failure_and_are_not_asked_for_again(
    seconds: float, ended: float
) -> None:
    def server(_path: str, query: Mapping[str, str], _attempt: int) -> Answer:
        number = int(query["page"])
        if number > 3:  # there were seven pages when the first was asked for
            status = {5: 404, 7: 200}.get(number, 503)
            return Answer(
                rows=[{"id": number}], facts={"pages": 7, "total": 7}, status=status, seconds=seconds
            )
        return Answer(
            rows=[{"id": number}],
            facts={"pages": 7 if number == 1 else 3, "total": 7},
            seconds=1.5 if number == 3 else 1.0,
        )

    found = read(server, endpoint_of(PAGES), ahead=32)

    ledger = found.run.tables["ships"].ledger
    assert ledger.outcome(None, had_rows=False).reason == "end of chain seen: page 3 of 3"
    assert (ledger.failure_count, ledger.absent, found.run.figures.failed) == (0, 0, 0)
    assert found.ids() == [1, 2, 3]
    assert found.clock.monotonic() == ended
    assert_nothing_is_left(found)


def test_a_guess_that_was_wrong_is_the_last_of_its_chain() -> None:
    def server(_path: str, query: Mapping[str, str], _attempt: int) -> Answer:
        at = int(query["from"])
        # The second page lacks a row, so that all offsets after it are others than one would think.
        length = 2 if at == 3 else 3
        return Answer(
            rows=[{"id": at + n} for n in range(length)][: 50 - at], facts={"total": 50}, seconds=1.0
        )

    found = read(server, endpoint_of(OFFSET), ahead=4)

    assert found.ids() == list(range(50))
    assert [dict(query)["from"] for _, query in found.network.asked][:8] == "0 3 6 9 12 15 5 8".split()
    assert len(found.network.asked) == 17 + 4


def test_early_pages_beyond_half_of_the_memory_are_asked_for_again_and_nothing_waits_for_ever() -> None:
    slow_second = counted(60, 3, lambda number: 50.0 if number == 2 else 1.0, width=1000)

    found = read(slow_second, endpoint_of(PAGES), ahead=32, concurrency=16, memory=20_000)

    assert found.ids() == list(range(60))
    assert 20 < len(found.network.asked) <= 40
    assert found.budget.peak < 20_000
    assert_nothing_is_left(found)


def test_a_run_that_is_told_to_end_does_not_wait_for_the_turn_of_what_is_early() -> None:
    def server(path: str, query: Mapping[str, str], attempt: int) -> Answer:
        if query["page"] == "2":
            return Answer(status=503, seconds=1.0)
        return counted(60, 3)(path, query, attempt)

    found = read(server, endpoint_of(PAGES), ahead=8, concurrency=4, stop_at=2.25)

    (chain,) = found.run.tables["ships"].ledger.chains.values()
    assert found.run.frontier.is_drained
    assert found.clock.monotonic() < 4.0
    assert not chain.is_complete
    assert found.ids() == [0, 1, 2]


def test_a_refused_key_leaves_nothing_in_memory_that_others_could_use() -> None:
    def server(path: str, query: Mapping[str, str], attempt: int) -> Answer:
        return counted(60, 3, lambda number: 50.0 if number == 2 else 1.0)(path, query, attempt)

    found = read(
        server,
        endpoint_of(PAGES),
        ahead=8,
        concurrency=4,
        stop_at=9.0,
        stop=lambda run: run.refuse("refused"),
    )

    ledger = found.run.tables["ships"].ledger
    assert ledger.outcome(None, had_rows=False).reason == "refused"
    assert_nothing_is_left(found)


def test_only_the_first_page_tells_that_an_endpoint_must_be_asked_by_parent() -> None:
    ports = endpoint_of(PAGES, "ports")
    ships = endpoint_of(PAGES, parent=Parent(endpoint="ports", params={"port": "id"}, fallback_on=(400,)))

    def server(path: str, query: Mapping[str, str], attempt: int) -> Answer:
        if path == "/ships" and query["page"] == "3":
            return Answer(status=400)
        return counted(12, 3)(path, query, attempt)

    found = read(server, ports, ships, ahead=8)

    ledger = found.run.tables["ships"].ledger
    assert ledger.failures == ["/ships?page=3: status 400"]
    assert (len(ledger.chains), ledger.parents) == (1, 0)


# --- who comes first ----------------------------------------------------------------------------------------


def test_the_longest_way_of_the_last_run_starts_first_children_included() -> None:
    names = ["short", "unknown", "ports", "long"]
    endpoints = [endpoint_of(TOKEN, name) for name in names]
    child = Endpoint(
        name="ships",
        path="/ships/{port}",
        records="/items",
        paging=TOKEN,
        parent=Parent(endpoint="ports", params={"port": "id"}),
    )
    last = {"short": 2, "ports": 3, "ships": 9, "long": 11}

    found = read(lambda *_: Answer(rows=[{"id": 1}], seconds=1.0), *endpoints, child, ahead=8, last=last)

    assert [path for path, _ in found.network.asked] == [
        "/ports",
        "/long",
        "/short",
        "/unknown",
        "/ships/1",
    ]


def test_of_a_thousand_parents_and_unequal_endpoints_none_starves() -> None:
    """Every table has its first request soon after it is known, and a long chain has one in every round."""
    pages = {"long": 150, "counted": 40, "one": 1, "two": 2}
    ports = endpoint_of(PAGES, "ports")
    roots = [*(endpoint_of(TOKEN, f"single{number}") for number in range(5)), ports]
    roots += [endpoint_of(PAGES, "counted"), endpoint_of(TOKEN, "long")]
    children = [
        Endpoint(
            name=name,
            path=f"/{name}/{{port}}",
            records="/items",
            paging=TOKEN,
            parent=Parent(endpoint="ports", params={"port": "id"}),
        )
        for name in ("one", "two")
    ]

    def server(path: str, query: Mapping[str, str], _attempt: int) -> Answer:
        name = path.split("/")[1]
        number = int(query.get("page", query.get("t", "1")))
        if name == "ports":
            rows = [{"id": row} for row in range(100 * (number - 1), 100 * number)]
            return Answer(rows=rows, facts={"pages": 10, "total": 1000}, seconds=0.1)
        last = pages.get(name, 1)
        facts = {"pages": last, "total": last, **({"next": number + 1} if number < last else {})}
        return Answer(rows=() if name in ("one", "two") else [{"id": number}], facts=facts, seconds=0.1)

    found = read(server, *roots, *children, ahead=32, concurrency=16, last={**pages, "ports": 10})

    asked = [path.split("/")[1] for path, _ in found.network.asked]
    first = {table: asked.index(table) for table in found.run.tables}
    turns_of_long = [index for index, table in enumerate(asked) if table == "long"]
    assert len(asked) == 10 + 150 + 40 + 5 + 1000 * (1 + 2)
    assert (asked[0], max(first[root.name] for root in roots)) == ("long", len(roots) - 1)
    # Sixteen requests are out at once, and a round has one of each table: nobody waits for more.
    assert max(later - earlier for earlier, later in pairwise(turns_of_long)) <= 16 + len(pages) + 1
    assert max(first[child.name] for child in children) <= first["ports"] + 16 + len(first)
    for table in found.run.tables.values():
        assert table.ledger.outcome(None, had_rows=False).status == "complete"


# --- a real server ------------------------------------------------------------------------------------------

CATALOGUE = """
[numbered]
path    = "/numbered"
records = "/items"
paging  = { kind = "page", page_param = "page", pages_pointer = "/pages", total_pointer = "/total" }
key     = ["id"]

[offsets]
path    = "/offsets"
records = "/items"
paging  = { kind = "offset", offset_param = "from", limit_param = "size", limit = 5, total_pointer = "/total" }
key     = ["id"]

[tokens]
path    = "/tokens"
records = "/items"
paging  = { kind = "token", request_param = "t", response_pointer = "/next" }
key     = ["id"]
"""


@dataclass(slots=True)
class Counts:
    """How many requests of each path came, and how many were open at once."""

    url: str = ""
    asked: Counter[str] = field(default_factory=Counter)
    most: Counter[str] = field(default_factory=Counter)
    open: Counter[str] = field(default_factory=Counter)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        self.asked[path] += 1
        self.open[path] += 1
        self.most[path] = max(self.most[path], self.open[path])
        page = int(request.query.get("page", request.query.get("t", "1")))
        first = int(request.query.get("from", (page - 1) * 5))
        # The later of two pages is often the first to come.
        await asyncio.sleep(0.02 + 0.02 * (page * 7 % 3))
        self.open[path] -= 1
        rows = [{"id": number} for number in range(first, min(first + 5, 200))]
        following = page + 1 if page < 40 else None
        return web.json_response({"items": rows, "pages": 40, "total": 200, "next": following})


@asynccontextmanager
async def counting() -> AsyncIterator[Counts]:
    counts = Counts()
    async with own.serving(counts.answer) as counts.url:
        yield counts


async def test_forty_pages_are_read_several_at_once_and_stand_in_their_order(tmp_path: Path) -> None:
    async with counting() as counts:
        config = own.configured(tmp_path, counts.url, CATALOGUE, limits__requests_per_second=2000)

        report = await extractor.extract(config, environment={"SKYSQL_API_KEY": "k" * 30})

    told = {table.name: (table.status, table.rows, table.pages, table.requests) for table in report.tables}
    assert told == dict.fromkeys(["numbered", "offsets", "tokens"], ("complete", 200, 40, 40))
    lake = extractor.Lake(str(tmp_path / "lake"))
    for table in told:
        assert lake.table(table).to_arrow()["id"].to_pylist() == list(range(200))
    assert counts.asked == dict.fromkeys(["/numbered", "/offsets", "/tokens"], 40)
    assert counts.most["/tokens"] == 1
    assert 4 < counts.most["/numbered"] <= 16
    assert 4 < counts.most["/offsets"] <= 16
    log = CommitLog(open_store(str(tmp_path / "lake")))
    entry = log.newest()
    assert entry is not None
    for table in told:
        assert log.state_of(entry, table, "default").state["longest_chain"] == 40


async def test_the_table_with_the_most_pages_of_the_last_run_is_asked_first(tmp_path: Path) -> None:
    short = '[another]\npath = "/another"\nrecords = "/items"\n'
    catalogue = short + CATALOGUE.partition("[tokens]")[0]
    order = []
    async with counting() as counts:
        config = own.configured(tmp_path, counts.url, catalogue, limits__requests_per_second=2000)
        for _ in range(2):
            counts.asked.clear()
            await extractor.extract(config, environment={"SKYSQL_API_KEY": "k" * 30})
            order.append(list(counts.asked))

    assert order == [["/another", "/numbered", "/offsets"], ["/numbered", "/offsets", "/another"]]
