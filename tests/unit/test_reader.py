from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from extractor.config import load_config
from extractor.errors import NetworkError, StatusError
from extractor.events import ignore
from extractor.fetch import Fetcher, Request, Response
from extractor.lane import Budget, InlineExecutor
from extractor.ledger import Outcome
from extractor.reader import Interruption, NoSink, Reader, World, outcome_of, read_all, set_up
from extractor.schema import plan_schema
from extractor.testing.clock import VirtualClock

RATE = 2.0
SHORTEST_WAIT = 0.99 / RATE
"""The limiter may make up for a timer that was late by some milliseconds."""
TABLES = 40


@dataclass(slots=True)
class Source:
    """An API and its identity service; knows when each was asked, and when each token came and ended."""

    clock: VirtualClock
    lifetime_seconds: float
    exchange_seconds: float
    answers: list[int] = field(default_factory=list)
    """The statuses of the exchanges, in order; 200 after them, 0 for no connection."""
    sent_at: list[float] = field(default_factory=list)
    exchanges: list[tuple[float, float]] = field(default_factory=list)

    async def exchange(self) -> bytes:
        asked_at = self.clock.monotonic()
        issued = self.clock.now()
        number = len(self.exchanges)
        self.exchanges.append((asked_at, asked_at + self.exchange_seconds))
        await self.clock.sleep_until(asked_at + self.exchange_seconds)
        status = self.answers[number] if number < len(self.answers) else 200
        if not status:
            raise NetworkError("/token: the connection was reset")
        if status != 200:
            raise StatusError(f"/token: status {status}", status=status, headers={})
        end = issued + timedelta(seconds=self.lifetime_seconds)
        return json.dumps({"token": f"t{number}", "iat": issued.isoformat(), "exp": end.isoformat()}).encode()

    async def rows(self) -> bytes:
        self.sent_at.append(self.clock.monotonic())
        await self.clock.sleep_until(self.clock.monotonic() + 0.1)
        return b'[{"id": 1}]'


class Network(Fetcher):
    """A connection to one origin of the source."""

    def __init__(self, source: Source) -> None:
        self.received_bytes = 0
        self._source = source

    async def fetch(self, request: Request) -> Response:
        body = await (self._source.exchange() if request.method == "POST" else self._source.rows())
        return Response(
            status=200,
            headers={},
            body=body,
            spool=None,
            size_bytes=len(body),
            elapsed_seconds=0.1,
            received_at=self._source.clock.now(),
        )


def read(
    folder: Path, *, lifetime: float, exchange: float, answers: Sequence[int] = ()
) -> tuple[Source, dict[str, Outcome]]:
    """Read forty tables of one page with a bearer token, two requests per second."""
    (folder / "own").mkdir()
    tables = [f'[t{number}]\npath = "/t{number}"\n' for number in range(TABLES)]
    (folder / "own" / "own.toml").write_text("\n".join(tables))
    config = load_config(
        overrides={
            "source.base_url": "http://127.0.0.1",
            "source.token_url": "http://127.0.0.1/token",
            "source.auth": "bearer",
            "source.builtin": False,
            "source.catalogs": (str(folder / "own"),),
            "lake.uri": str(folder / "lake"),
            "limits.requests_per_second": RATE,
        },
        environment={},
        directory=folder,
    )

    async def scenario() -> tuple[Source, dict[str, Outcome]]:
        clock = VirtualClock()
        source = Source(clock, lifetime, exchange, list(answers))
        world = World(
            clock=clock,
            chance=lambda: 0.5,
            environment={"SKYSQL_API_KEY": "k" * 30},
            executor=InlineExecutor(),
            network=lambda *_args, **_keywords: Network(source),
        )
        setup = set_up(config, "", world, ())
        budget = Budget(64 << 20)
        account, key = setup.accounts[0]
        reader = Reader(
            config,
            setup.plan,
            account,
            key,
            world=world,
            observer=ignore,
            budget=budget,
            priors={},
            schemas={planned.name: plan_schema(planned.endpoint) for planned in setup.plan.active},
            sink_of=lambda _: NoSink(),
            spool_folder=lambda: folder,
            learnt_rate=None,
        )
        await clock.run(read_all([reader], budget, clock, Interruption()))
        outcomes: dict[str, Outcome] = {}
        for planned in setup.plan.active:
            outcomes[planned.name] = outcome_of(planned, reader.tables[planned.name], outcomes, None)
        return source, outcomes

    return asyncio.run(scenario())


def waits(source: Source) -> list[float]:
    return [later - earlier for earlier, later in pairwise(source.sent_at)]


@pytest.mark.parametrize(("lifetime", "exchange"), [(10.0, 5.0), (10.0, 0.7), (4.0, 2.0), (3600.0, 1.0)])
def test_no_request_goes_out_while_a_token_is_exchanged_and_those_that_wait_keep_to_the_rate(
    tmp_path: Path, lifetime: float, exchange: float
) -> None:
    source, outcomes = read(tmp_path, lifetime=lifetime, exchange=exchange)

    assert len(source.sent_at) == TABLES
    assert (len(source.exchanges) > 1) == (lifetime < 60)
    for begin, end in source.exchanges:
        assert not [moment for moment in source.sent_at if begin < moment < end]
    assert min(waits(source)) >= SHORTEST_WAIT
    assert {outcome.status for outcome in outcomes.values()} == {"complete"}


def test_an_exchange_that_fails_for_a_time_holds_every_request_back(tmp_path: Path) -> None:
    source, outcomes = read(tmp_path, lifetime=10.0, exchange=2.0, answers=[200, 503, 0, 503])

    begin, end = source.exchanges[1][0], source.exchanges[4][1]
    assert not [moment for moment in source.sent_at if begin < moment < end]
    assert min(waits(source)) >= SHORTEST_WAIT
    assert {outcome.status for outcome in outcomes.values()} == {"complete"}


def test_without_a_token_any_more_every_request_is_given_up_and_the_run_ends(tmp_path: Path) -> None:
    source, outcomes = read(tmp_path, lifetime=10.0, exchange=2.0, answers=[200, *[0] * 10_000])

    statuses = [outcome.status for outcome in outcomes.values()]
    assert len(source.sent_at) == statuses.count("complete") < TABLES
    assert set(statuses) == {"complete", "failed"}
    assert max(source.sent_at) < source.exchanges[2][0]
