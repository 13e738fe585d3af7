"""A scripted network: each request takes its time, meets the moods of the server, and is watched on its way."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from email.utils import format_datetime
from pathlib import Path
from urllib.parse import urlsplit

from extractor.errors import NetworkError, RequestError, StatusError
from extractor.fetch import FetchLimits, Request, Response
from extractor.lane import Budget
from extractor.stores.memory import PowerLost
from tests.laws.simulation.clock import START, LoopClock
from tests.laws.simulation.site import Answer, Site
from tests.laws.simulation.world import Moods, Scenario, Table

__all__ = ("API", "IDENTITY", "Law", "Network", "Server", "Trace")

API = "https://api.example.test"
IDENTITY = "https://id.example.test"

_REQUESTS_MAX = 3000
_CATCH_UP_SECONDS = 0.05
_SAFE_SECONDS = 12.0
"""So much later an answer is in the journal: two turns of it, and the work on the way."""


class Law(AssertionError):
    """A law was broken."""


@dataclass(slots=True)
class Trace:
    """Everything that happened, in order: equal seeds give equal traces."""

    clock: LoopClock
    lines: list[str] = field(default_factory=list)

    def add(self, what: str) -> None:
        self.lines.append(f"{self.clock.monotonic():.6f} {what}")


@dataclass(slots=True)
class _Asked:
    """What the server has seen of one request in one run."""

    first_at: float
    key: tuple[object, ...]
    failures: int = 0
    refusals: int = 0
    answers: int = 0
    is_over: bool = False
    """Its attempts are used up."""
    in_flight: int = 0


class Server:
    """The API and its identity service: one origin each, one clock, one bucket, one token at a time."""

    def __init__(self, scenario: Scenario, site: Site, clock: LoopClock, trace: Trace) -> None:
        self.site = site
        self.clock = clock
        self.trace = trace
        self.last_activity = 0.0
        self.on_request: Callable[[int], None] = lambda number: None
        self.is_off = False
        self.is_taken_up = False
        """True in a run that goes on where it was stopped: rows may have moved meanwhile."""
        self.ended_at = 0.0
        self._answered: dict[tuple[object, ...], float] = {}
        self._safe: set[tuple[object, ...]] = set()
        self.broken: list[str] = []
        self.largest_body = 0
        self._scenario = scenario
        self._chance = random.Random(f"server {scenario.seed}")
        self._serial = 0
        self._tokens: dict[str, float] = {}
        self._revoked: set[str] = set()
        self._bucket = scenario.moods.rate
        self._bucket_at = 0.0
        self._is_key_revoked = False
        self.begin(is_calm=False)

    def begin(self, *, is_calm: bool) -> None:
        """A run begins: what is watched is watched of each run alone."""
        moods = self._scenario.moods
        if is_calm:
            moods = Moods(
                latency=moods.latency,
                token_life=moods.token_life,
                token_style=moods.token_style,
                rate=moods.rate,
            )
        self.moods = moods
        self.began = self.last_activity = self.clock.monotonic()
        self.sent = 0
        self.budget: Budget | None = None
        self._sent_when_full = 0
        self.causes: dict[str, set[str]] = {}
        self.answered_any = False
        self._asked: dict[tuple[object, ...], _Asked] = {}
        self._in_flight = 0
        self._exchanges = 0
        self._paused_until = self._paused_at = -math.inf
        self._level = float(self._scenario.burst) + 1e-6
        self._level_at = self.began
        self._refused: dict[str, float] = {}
        self._is_doubted = False
        """True once a 401 came: the client may then ask out of turn whether its key is good."""

    def _law(self, what: str) -> Law:
        self.broken.append(what)
        return Law(what)

    # --- what is watched ------------------------------------------------------------------------------------

    def depart(self, request: Request, table: str) -> _Asked:
        """A request leaves the client. Raises: Law."""
        now = self.last_activity = self.clock.monotonic()
        self.sent += 1
        self._in_flight += 1
        self.on_request(self.sent)
        if self.sent > _REQUESTS_MAX:
            raise self._law(f"the run never ends: {self.sent} requests")
        key = (request.method, request.path, request.query)
        asked = self._asked.setdefault(key, _Asked(now, key))
        asked.in_flight += 1
        if self._is_doubted:
            return asked
        if self._in_flight > self._scenario.concurrency:
            raise self._law(f"{self._in_flight} requests in flight, {self._scenario.concurrency} allowed")
        if asked.in_flight > 1 and not self._may_be_read_again(table):
            raise self._law(f"{request.path} {request.query} is asked twice at the same time")
        if asked.is_over and not self._may_be_read_again(table):
            raise self._law(
                f"{request.path} {request.query} failed {asked.failures} times, and is tried again"
            )
        if asked.answers and not self._may_be_read_again(table):
            raise self._law(f"{request.path} {request.query} was answered, and is asked again")
        self._check_safe(request)
        # What was granted in the moment of the refusal may still go in the same.
        if self._paused_at < now < self._paused_until - 1e-6:
            raise self._law(f"a request went {self._paused_until - now:.3f} s before the end of a pause")
        self._check_memory()
        self._check_rate(now)
        self._check_token(request, now)
        return asked

    def take_up(self, *, is_taken_up: bool) -> None:
        """The run that begins goes on where it was stopped, or is another."""
        self.is_taken_up = is_taken_up
        self._safe = self.safe()
        if not is_taken_up:
            self._answered.clear()
            self._safe.clear()

    def safe(self) -> set[tuple[object, ...]]:
        """What the stopped run must have in its journal.

        Not numbered pages: those that are early are not safe, and the last one tells whether rows have moved. Nor
        children: their rows may be gone with those of their parents.
        """
        if self._scenario.executor == "slow":
            return set()
        return {
            key
            for key, moment in self._answered.items()
            if moment < self.ended_at - _SAFE_SECONDS
            and not (table := self.site.places[str(key[1])][0]).parent
            and not table.is_counted
        }

    @property
    def safe_at(self) -> float:
        """The last moment at which something came that is in the journal."""
        return max((self._answered[key] for key in self.safe()), default=-math.inf)

    def _check_safe(self, request: Request) -> None:
        """What arrived long enough before the run was stopped is not asked for again. Raises: Law."""
        if (request.method, request.path, request.query) in self._safe:
            raise self._law(
                f"{request.path} {request.query} was safe when the run was stopped, and is asked again"
            )

    def look_at_memory(self) -> None:
        """Called between any two steps of the program: once there is room, another page may be asked for."""
        if self.budget is None or self.budget.bodies + self.budget.rows < self.budget.size_bytes:
            self._sent_when_full = 0

    def _check_memory(self) -> None:
        if self.budget is not None and self.budget.bodies + self.budget.rows >= self.budget.size_bytes:
            self._sent_when_full += 1
        # Some had been admitted before, or were where room came and went within a step.
        if self._sent_when_full > self._scenario.concurrency + 3:
            raise self._law(f"{self._sent_when_full} pages were asked for while there was no room for one")

    def _may_be_read_again(self, name: str) -> bool:
        """True for numbered pages, which are read ahead: there may be no room for one, or rows have moved on."""
        lineage = list(self._scenario.lineage(name))
        is_moving = any(table.moves or table.duplicates for table in lineage) or self.is_taken_up
        return lineage[0].is_counted and (is_moving or self._scenario.memory_bytes < 1 << 20)

    def _check_rate(self, now: float) -> None:
        rate = self._scenario.requests_per_second
        # What may be made up for is seconds of a rate that has risen since: of a burst that is up to as much again.
        most = 2 * self._scenario.burst - 1 + _CATCH_UP_SECONDS * rate + 1e-6
        self._level = min(most, self._level + (now - self._level_at) * rate)
        self._level_at = now
        if self._level < 1 - 1e-6:
            raise self._law(f"more than {rate:g} requests a second: {self._level:.3f} were left")
        self._level -= 1

    def _check_token(self, request: Request, now: float) -> None:
        if self._scenario.auth != "bearer":
            return
        token = dict(request.headers).get("Authorization", "").removeprefix("Bearer ")
        if token not in self._tokens:
            raise self._law("a request without a token of the identity service")
        if self._refused.get(token, math.inf) < now:
            raise self._law("a request with a token that was refused before")
        if now >= self._tokens[token]:
            raise self._law(f"a request with a token that expired {now - self._tokens[token]:.3f} s ago")

    def arrive_back(self, asked: _Asked, table: str, failure: RequestError | None, token: str) -> None:
        """An answer, or the failure to get one, reaches the client."""
        now = self.last_activity = self.clock.monotonic()
        status = failure.status if isinstance(failure, StatusError) else 0
        is_expected = status and status in self._expected(table)
        if failure is None or is_expected:
            asked.answers += 1
            self._answered[asked.key] = now
            self.answered_any = True
            return
        asked.failures += 1
        self.answered_any = self.answered_any or bool(status)
        pause = 31.0
        if isinstance(failure, StatusError):
            named = failure.headers.get("retry-after", "")
            if named.isdecimal():
                pause = max(pause, float(named))
                if status == 429 or status == 503:
                    longest = max(1.0, self._scenario.retry_seconds)
                    self._paused_until = max(self._paused_until, now + min(float(named), longest))
                    self._paused_at = now
        if asked.failures >= self._scenario.retry_attempts:
            self.blame(table, f"{asked.failures} attempts of one request failed")
            is_throttled = status == 429 or (status == 503 and bool(failure.headers.get("retry-after")))  # type: ignore[attr-defined]  # a StatusError
            asked.is_over = (
                status not in (0, 401)
                and not is_throttled
                and asked.failures > asked.refusals + self._scenario.retry_attempts
            )
        if now + pause - asked.first_at > self._scenario.retry_seconds:
            self.blame(table, "no time left for another attempt")
        if status in (403, 404, 400):
            self.blame(table, f"status {status}")
        if status == 401:
            asked.refusals += 1
            self._refused.setdefault(token, now)
            if self._scenario.auth != "bearer" or asked.refusals > 1:
                self.blame(table, "status 401")
            is_new = self._scenario.auth == "bearer" and asked.refusals == 1
            self._is_doubted = self._is_doubted or not is_new

    def blame(self, table: str, why: str) -> None:
        """A reason for which a table need not be complete."""
        self.causes.setdefault(table, set()).add(why)

    def _expected(self, name: str) -> tuple[int, ...]:
        table = self._scenario.table(name)
        return (*((404,) if table.empty_404 else ()), *((400,) if table.by_query == "refused" else ()))

    # --- the answer -----------------------------------------------------------------------------------------

    async def serve(self, request: Request, limits: FetchLimits) -> Answer:
        """The way there, the server, and the way back. Raises: NetworkError."""
        moods, chance = self.moods, self._chance
        table = self.site.places[request.path][0]
        await self._travel()
        if chance.random() < moods.reset or self._is_out():
            raise NetworkError(f"{request.path}: the connection was reset")
        if chance.random() < moods.timeout:
            await self.clock.sleep(limits.idle_seconds)
            raise NetworkError(f"{request.path}: no answer within limits.idle_seconds")
        answer = self._decide(request, table)
        self._check_power()
        self.trace.add(f"answers {answer.status} {len(answer.body)} bytes to {request.path} {request.query}")
        await self._travel()
        if chance.random() < moods.lost_answer:
            raise NetworkError(f"{request.path}: the connection was reset")
        return answer

    async def _travel(self) -> None:
        low, high = self.moods.latency
        seconds = self._chance.uniform(low, high)
        if self._chance.random() < self.moods.slow:
            seconds += self._chance.uniform(1, 20)
        if seconds > 0:
            await self.clock.sleep(seconds)

    def _is_out(self) -> bool:
        start, end = self.moods.outage
        return start <= self.clock.monotonic() - self.began < end

    def _decide(self, request: Request, table: Table) -> Answer:
        """What the server says at this moment."""
        moods, chance, now = self.moods, self._chance, self.clock.monotonic()
        if self._is_refused(request, now):
            return Answer(b'{"error": "unauthorized"}', status=401)
        if moods.rate and not self._take_from_bucket(now):
            return Answer(b"slow down", headers=self._pause_headers(), status=429)
        match table.fate:
            case "denied":
                return Answer(b"no", status=403)
            case "absent":
                return Answer(b"no such thing", status=404)
            case "broken":
                return Answer(b"oops", status=500)
        for kind, status in (("error_500", 500), ("error_503", 503), ("error_408", 408)):
            if chance.random() < getattr(moods, kind):
                return Answer(b"<html>", status=status)
        if chance.random() < moods.error_503_named:
            return Answer(b"", headers=self._pause_headers(), status=503)
        answer = self.site.answer(request.path, dict(request.query), now)
        if table.moves and chance.random() < table.moves and self.sent < 250:
            self.trace.add(self.site.change(table, now, may_delete=table.may_delete))
            if table.may_delete:
                self.blame(table.name, "rows were deleted")
        if answer.status == 200 and chance.random() < moods.garbage and answer.body:
            return Answer(
                chance.choice((b"<html>sorry</html>", answer.body[:-1] + b"\xff", b"{")), answer.headers
            )
        return answer

    def _is_refused(self, request: Request, now: float) -> bool:
        moods = self.moods
        if moods.revoke_after and self.sent > moods.revoke_after:
            self._is_key_revoked = True
        if self._is_key_revoked:
            return True
        if self._scenario.auth != "bearer":
            return dict(request.headers).get("X-API-Key") != "key"
        token = dict(request.headers).get("Authorization", "").removeprefix("Bearer ")
        if self._chance.random() < moods.token_revokes:
            self._revoked.add(token)
        return token in self._revoked or now >= self._tokens.get(token, 0.0)

    def _take_from_bucket(self, now: float) -> bool:
        rate = self.moods.rate
        self._bucket = min(max(rate, 1.0), self._bucket + (now - self._bucket_at) * rate)
        self._bucket_at = now
        if self._bucket < 1:
            return False
        self._bucket -= 1
        return True

    def _pause_headers(self) -> dict[str, str]:
        seconds = self._chance.choice((1, 1, 2, 5))
        match self.moods.retry_after:
            case "seconds":
                return {"retry-after": str(seconds)}
            case "date":
                return {"retry-after": self._date(seconds)}
            case _:
                return {}

    def _date(self, ahead: float = 0.0) -> str:
        moment = START + timedelta(seconds=self.clock.monotonic() + ahead)
        return format_datetime(moment, usegmt=True)

    def date_headers(self) -> dict[str, str]:
        return {"date": self._date(), "content-type": "application/json"}

    # --- the identity service -------------------------------------------------------------------------------

    async def exchange(self, request: Request) -> Answer:
        """A token for the key, or what else that service answers. Raises: Law, NetworkError."""
        if request.method == "GET":
            await self._travel()
            return Answer(b'{"jti": "key-1", "scopes": "read"}')
        self._exchanges += 1
        if self._exchanges > 1:
            raise self._law(f"{self._exchanges} refreshes at the same time")
        try:
            await self._travel()
            if self._chance.random() < self.moods.token_faults:
                self._blame_all("an exchange failed")
                if self._chance.random() < 0.5:
                    raise NetworkError(f"{request.path}: the connection was reset")
                return Answer(b"", status=self._chance.choice((500, 503, 429)))
            if self._is_key_revoked:
                return Answer(b"", status=401)
            answer = Answer(self._new_token())
            await self._travel()
            return answer
        finally:
            self._exchanges -= 1

    def _blame_all(self, why: str) -> None:
        for table in self._scenario.tables:
            self.blame(table.name, why)

    def _new_token(self) -> bytes:
        self._serial += 1
        token = f"token-{self._serial}"
        now = self.clock.monotonic()
        end = now + self.moods.token_life
        start, expires = (START + timedelta(seconds=moment) for moment in (now, end))
        self.trace.add(f"issues {token}")
        match self.moods.token_style:
            case "epoch":
                facts: dict[str, object] = {"iat": start.timestamp(), "exp": expires.timestamp()}
            case "iso":
                facts = {"iat": start.isoformat(), "exp": expires.isoformat()}
            case _:
                # Its Date header has whole seconds: the token lives up to one less than it seems to.
                facts, end = {"exp": expires.isoformat()}, end
        self._tokens[token] = end
        return json.dumps({"token": token, **facts}).encode()

    def _check_power(self) -> None:
        if self.is_off:
            raise PowerLost("the power is off")


class Network:
    """What `World.network` makes: speaks with the server as `Fetcher` does."""

    def __init__(
        self,
        server: Server,
        url: str,
        *,
        limits: FetchLimits,
        clock: LoopClock,
        user_agent: str,
        spool_folder: Callable[[], Path],
    ) -> None:
        self.received_bytes = 0
        self._server = server
        self._limits = limits
        self._clock = clock
        self._is_identity = urlsplit(url).netloc == urlsplit(IDENTITY).netloc

    async def __aenter__(self) -> Network:
        return self

    async def __aexit__(self, *_: object) -> None:
        return

    async def fetch(self, request: Request) -> Response:
        server = self._server
        server._check_power()
        if self._is_identity:
            return self._received(request, await server.exchange(request))
        if request.path not in server.site.places:
            raise server._law(f"{request.path} was never offered")
        table = server.site.places[request.path][0].name
        server.trace.add(f"sends {request.method} {request.path} {request.query}")
        asked = server.depart(request, table)
        token = dict(request.headers).get("Authorization", "").removeprefix("Bearer ")
        try:
            response = self._received(request, await server.serve(request, self._limits))
        except RequestError as failure:
            server._check_power()
            server.trace.add(f"fails {request.path}: {failure}")
            server.arrive_back(asked, table, failure, token)
            raise
        else:
            server._check_power()
            server.arrive_back(asked, table, None if self._is_sound(response, table) else _garbled(), token)
            return response
        finally:
            asked.in_flight -= 1
            server._in_flight -= 1

    def _is_sound(self, response: Response, table: str) -> bool:
        if self._server._scenario.table(table).format == "ndjson":
            return b"<html>" not in response.body and b"\xff" not in response.body and response.body != b"{"
        try:
            json.loads(response.body)
        except ValueError:
            return False
        return True

    def _received(self, request: Request, answer: Answer) -> Response:
        headers = {**self._server.date_headers(), **answer.headers}
        if not 200 <= answer.status < 300:
            raise StatusError(
                f"{request.path}: status {answer.status}", status=answer.status, headers=headers, excerpt=""
            )
        self.received_bytes += len(answer.body)
        self._server.largest_body = max(self._server.largest_body, len(answer.body))
        return Response(
            status=answer.status,
            headers=headers,
            body=answer.body,
            spool=None,
            size_bytes=len(answer.body),
            elapsed_seconds=0.0,
            received_at=self._clock.now(),
        )


def _garbled() -> RequestError:
    return NetworkError("garbled")
