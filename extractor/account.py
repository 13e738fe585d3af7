"""What the requests of one account go through: credential, attempt, failure, and what follows an answer.

One `AccountRun` owns the frontier, the limiter and the credential of its account. Every attempt ends in one of
four ways: its page goes to the table's lane, it is put back for another attempt, its chain is given up, or the run
ends because the key is refused or the server cannot be reached.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import anyio
import msgspec
import orjson
import pyarrow as pa

from extractor.auth import Token, TokenSource
from extractor.clock import Clock
from extractor.config import SecretText
from extractor.decode.json import Envelope, open_body, open_lines
from extractor.endpoint import Endpoint
from extractor.errors import (
    AuthError,
    DriftRefused,
    ExtractError,
    MalformedBody,
    NetworkError,
    PagingError,
    RequestError,
    SourceUnreachable,
    StatusError,
)
from extractor.events import Observer, PageStored, RequestFailed, RequestRetried, RequestSucceeded, Throttled
from extractor.fetch import Fetcher, Request, Response
from extractor.lane import Lane, Page, parent_values
from extractor.ledger import Ledger, OpenChain
from extractor.limit import Limiter, parse_retry_after
from extractor.paging import Chain, PageFacts, fingerprint, needs_row_count, pointers_of
from extractor.plan import PageRequest, Plan, Span, first_requests, requests_of_parent
from extractor.retry import GiveUp, RetryAt, RetryPolicy, Verdict, classify, decide
from extractor.schedule import Frontier

__all__ = ("AccountRun", "Credential", "Figures", "TableRun")

_PROBES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """How an account proves itself: its key on every request, or a token from `tokens`."""

    key: SecretText
    tokens: TokenSource | None = None


@dataclass(slots=True, kw_only=True)
class Figures:
    """Counts of requests of one account."""

    sent: int = 0
    succeeded: int = 0
    retried: int = 0
    throttled: int = 0
    failed: int = 0


@dataclass(slots=True, kw_only=True)
class TableRun:
    """One table of one account while it is read."""

    endpoint: Endpoint
    ledger: Ledger
    lane: Lane
    spans: tuple[Span, ...] = ()
    columns: frozenset[str] = frozenset()
    is_dormant: bool = False
    """True while it is not known whether the endpoint must be asked parent by parent (`fallback_on`)."""
    waiting: list[tuple[dict[str, str], tuple[tuple[str, str], ...]]] = field(default_factory=list)


@dataclass(slots=True)
class _Attempts:
    first_at: float
    count: int = 0
    is_reauthorized: bool = False


class Spawn(Protocol):
    """Starts a task that lives as long as the reading."""

    def __call__(self, work: Callable[[], Coroutine[Any, Any, None]], /) -> None: ...


class AccountRun:
    """Reads everything of the plan for one account."""

    def __init__(
        self,
        name: str,
        *,
        plan: Plan,
        tables: Mapping[str, TableRun],
        credential: Credential,
        organization: str,
        fetcher: Fetcher,
        limiter: Limiter,
        policy: RetryPolicy,
        base_url: str,
        pages_max: int,
        clock: Clock,
        chance: Callable[[], float],
        observer: Observer,
        spawn: Spawn,
    ) -> None:
        self.name = name
        self.figures = Figures()
        self.limiter = limiter
        self.fetcher = fetcher
        self.tables = tables
        self.server_offset: timedelta | None = None
        self.frontier: Frontier[PageRequest] = Frontier(
            identity=lambda request: request.identity, group=lambda request: request.table
        )
        self._plan = plan
        self._credential = credential
        self._organization = organization
        self._policy = policy
        self._base_url = base_url
        self._pages_max = pages_max
        self._clock = clock
        self._chance = chance
        self._observer = observer
        self._spawn = spawn
        self._attempts: dict[tuple[object, ...], _Attempts] = {}
        self._children = {table.name: plan.children_of(table.name) for table in plan.active}
        self._known_good: PageRequest | None = None
        self._is_reached = False
        self._is_refused = False
        self._probe = anyio.Lock()
        self._probed_good_at = float("-inf")

    @property
    def tokens(self) -> TokenSource | None:
        """The source of bearer tokens, where they are used."""
        return self._credential.tokens

    def refuse(self, reason: str) -> None:
        """The key is refused: nothing of this account can be read."""
        self._is_refused = True
        for table in self.tables.values():
            table.ledger.denied = table.ledger.denied or reason
        self.frontier.forget()

    def start(self) -> None:
        """Put the first request of every chain that needs no parent into the frontier."""
        if self._is_refused:
            return
        for planned in self._plan.active:
            table = self.tables[planned.name]
            for request in first_requests(planned.endpoint, self.name, table.spans):
                self._add(table, request)

    async def attempt(self, request: PageRequest, sent_at: float) -> None:
        """Make one attempt of one request and deal with how it ended."""
        table = self.tables[request.table]
        if table.ledger.denied or table.ledger.drift_refused:
            self._give_up(table, request, table.ledger.denied or table.ledger.drift_refused)
            return
        attempts = self._attempts.setdefault(request.identity, _Attempts(self._clock.monotonic()))
        attempts.count += 1
        table.ledger.requests += 1
        self.figures.sent += 1
        token: Token | None = None
        try:
            token = await self._credential.tokens.get() if self._credential.tokens else None
            response = await self.fetcher.fetch(self._wire(table.endpoint, request, token))
        except RequestError as failure:
            await self._fail(table, request, failure, attempts, sent_at, token)
            return
        self.limiter.on_success(response.headers, sent_at=sent_at)
        self._note_answer(request, response)
        try:
            self._accept(table, request, response)
        except MalformedBody as failure:
            response.discard()
            await self._fail(table, request, failure, attempts, sent_at, token)
        except (PagingError, RequestError) as failure:
            self._give_up(table, request, f"{request.label}: {failure.message}")

    # --- an answer ------------------------------------------------------------------------------------------

    def _note_answer(self, request: PageRequest, response: Response) -> None:
        self._is_reached = True
        self._known_good = self._known_good or request
        self.figures.succeeded += 1
        if self.server_offset is None and (date := response.server_date) is not None:
            self.server_offset = date - self._clock.now()
        self._observer(
            RequestSucceeded(
                table=request.table,
                account=self.name,
                status=response.status,
                size_bytes=response.size_bytes,
                elapsed_seconds=response.elapsed_seconds,
            )
        )

    def _accept(self, table: TableRun, request: PageRequest, response: Response) -> None:
        """Advance the chain, and hand the page to the lane."""
        chain = table.ledger.chains[request.chain]
        if request.page == 0:
            chain.closed_window = self._is_closed(table, request)
        if response.size_bytes == 0 or response.status == 204:
            envelope: Envelope | None = Envelope(rows=b"[]", facts={})
        elif table.endpoint.format == "json":
            pointers = pointers_of(table.endpoint)
            envelope = open_body(
                response.read(), records=table.endpoint.records, columns=table.columns, pointers=pointers
            )
        elif table.endpoint.format == "ndjson":
            envelope = open_lines(response.read())
        else:
            envelope = None
        rows = envelope.rows if envelope is not None else b""
        page = PageFacts(
            headers=response.headers,
            facts=envelope.facts if envelope is not None else {},
            fingerprint=fingerprint(rows),
            rows=len(msgspec.json.decode(rows, type=list[msgspec.Raw]))
            if needs_row_count(table.endpoint)
            else None,
        )
        following = chain.chain.advance(request, page)
        if request.is_trial:
            table.waiting.clear()
            table.is_dormant = False
        chain.undecoded += 1
        if following is not None:
            self.frontier.add(following)
        self._hand_on(table, request, rows, None if envelope is not None else response, response)

    def _hand_on(
        self, table: TableRun, request: PageRequest, rows: bytes, held: Response | None, response: Response
    ) -> None:
        if held is None:
            response.discard()
        size = len(rows) if held is None else (0 if held.spool else held.size_bytes)
        page = Page(
            request=request, rows=rows, response=held, received_at=response.received_at, size_bytes=size
        )
        if table.lane.put(page):
            self._spawn(table.lane.work)

    def _is_closed(self, table: TableRun, request: PageRequest) -> bool:
        moment = self._clock.now() + (self.server_offset or timedelta())
        span = next((span for span in table.spans if span.label == request.window), None)
        return span is not None and span.is_closed_at(moment)

    # --- called by the lane ---------------------------------------------------------------------------------

    def page_decoded(self, page: Page, batch: pa.RecordBatch | None, rows: int) -> None:
        """The rows of a page are with the sink: count them, and ask for their children."""
        table = self.tables[page.request.table]
        table.ledger.chains[page.request.chain].undecoded -= 1
        table.ledger.pages += 1
        table.ledger.rows += rows
        self._attempts.pop(page.request.identity, None)
        if batch is not None:
            self._add_children(table, batch)
        self._observer(PageStored(table=page.request.table, account=self.name, rows=rows))
        self.frontier.finish()

    def page_failed(self, page: Page, failure: ExtractError) -> None:
        """A page is not what it claims to be, and nothing of it was kept: ask again, or give up."""
        request = page.request
        table = self.tables[request.table]
        chain = table.ledger.chains[request.chain]
        chain.undecoded -= 1
        if isinstance(failure, DriftRefused):
            table.ledger.drift_refused = failure.message
            table.ledger.note_drift([failure.message])
            self._give_up(table, request, failure.message)
            return
        # JSON was checked before its chain went on, so that asking again would not help; other formats are one
        # answer each and may have been cut.
        if page.response is not None and isinstance(failure, RequestError):
            chain.chain = self._new_chain(table)
            attempts = self._attempts.setdefault(request.identity, _Attempts(self._clock.monotonic()))
            self._retry_or_give_up(table, request, failure, attempts)
            return
        self._give_up(table, request, f"{request.label}: {failure.message}")

    def _add_children(self, table: TableRun, batch: pa.RecordBatch) -> None:
        for planned in self._children[table.endpoint.name]:
            child = self.tables[planned.name]
            parent = child.endpoint.parent
            assert parent is not None
            for values in parent_values(batch, parent.params, child.endpoint.keep):
                if values is None:
                    child.ledger.parents_without_value += 1
                elif child.is_dormant:
                    child.waiting.append(values)
                elif not parent.fallback_on or child.ledger.parents:
                    self._add_child(child, *values)

    def _add_child(self, child: TableRun, params: dict[str, str], keep: tuple[tuple[str, str], ...]) -> None:
        child.ledger.parents += 1
        for request in requests_of_parent(child.endpoint, self.name, child.spans, params=params, keep=keep):
            self._add(child, request)

    def _add(self, table: TableRun, request: PageRequest) -> None:
        if not self.frontier.add(request):
            return
        if request.chain not in table.ledger.chains:
            chain = OpenChain(chain=self._new_chain(table), window=request.window)
            table.ledger.chains[request.chain] = chain

    def _new_chain(self, table: TableRun) -> Chain:
        return Chain(endpoint=table.endpoint, base_url=self._base_url, pages_max=self._pages_max)

    # --- a failure ------------------------------------------------------------------------------------------

    async def _fail(
        self,
        table: TableRun,
        request: PageRequest,
        failure: RequestError,
        attempts: _Attempts,
        sent_at: float,
        token: Token | None,
    ) -> None:
        status = failure.status if isinstance(failure, StatusError) else 0
        if isinstance(failure, StatusError):
            self._is_reached = True
            self._report_to_limiter(failure, sent_at)
        parent = table.endpoint.parent
        if status in table.endpoint.empty_on:
            self._accept_empty(table, request, status)
            return
        if request.is_trial and parent is not None and status in parent.fallback_on:
            self._fall_back(table, request)
            return
        match classify(failure):
            case Verdict.AUTH:
                await self._unauthorized(table, request, failure, attempts, token)
            case _ if status in table.endpoint.auth_on:
                await self._unauthorized(table, request, failure, attempts, token)
            case Verdict.DENIED:
                table.ledger.denied = f"{request.label}: the key may not read this (403)"
                self._give_up(table, request, table.ledger.denied)
            case Verdict.ABSENT:
                table.ledger.absent += 1
                self._give_up(table, request, f"{request.label}: {_told(failure)}", is_fault=False)
            case Verdict.TRANSIENT:
                self._retry_or_give_up(table, request, failure, attempts)
            case _:
                self._give_up(table, request, f"{request.label}: {_told(failure)}")

    def _report_to_limiter(self, failure: StatusError, sent_at: float) -> None:
        named = parse_retry_after(
            failure.headers.get("retry-after"),
            now=self._server_now(),
            longest_seconds=self._policy.longest_seconds,
        )
        if failure.status == 429 or (failure.status == 503 and named is not None):
            self.figures.throttled += 1
            self.limiter.on_throttled(retry_after=named, headers=failure.headers, sent_at=sent_at)
            now = self.limiter.statistics()
            self._observer(
                Throttled(
                    account=self.name,
                    pause_seconds=max(0.0, (now.paused_until or 0.0) - self._clock.monotonic()),
                    requests_per_second=now.rate,
                )
            )
        else:
            self.limiter.on_success(failure.headers, sent_at=sent_at)

    def _accept_empty(self, table: TableRun, request: PageRequest, status: int) -> None:
        chain = table.ledger.chains[request.chain]
        chain.chain.proof = f"status {status} means no rows here"
        if request.is_trial:
            table.is_dormant = False
            table.waiting.clear()
        self.frontier.finish()

    def _fall_back(self, table: TableRun, request: PageRequest) -> None:
        """The endpoint must be asked parent by parent after all."""
        table.ledger.chains.pop(request.chain)
        table.ledger.note("asked row by row of its parent, as the API refused it whole")
        table.is_dormant = False
        # Marks the table as asked by parent even while the parent has given no row yet.
        table.ledger.parents += 1
        for values in table.waiting:
            self._add_child(table, *values)
        table.waiting.clear()
        self.frontier.finish()

    def _retry_or_give_up(
        self, table: TableRun, request: PageRequest, failure: RequestError, attempts: _Attempts
    ) -> None:
        now = self._clock.monotonic()
        verdict = decide(
            failure,
            attempt=max(1, attempts.count),
            first_at=attempts.first_at,
            now=now,
            policy=self._policy,
            chance=self._chance(),
            server_now=self._server_now(),
        )
        match verdict:
            case RetryAt(not_before=not_before):
                self.figures.retried += 1
                self._observer(
                    RequestRetried(
                        table=request.table,
                        account=self.name,
                        reason=_told(failure),
                        attempt=attempts.count,
                        pause_seconds=max(0.0, not_before - now),
                    )
                )
                self.frontier.put_back(request, not_before=not_before)
            case GiveUp(reason=reason):
                if isinstance(failure, NetworkError) and not self._is_reached:
                    raise SourceUnreachable(
                        f"{self._base_url} could not be reached: {failure.message} ({reason}); "
                        "check source.base_url and the network, then run again"
                    )
                self._give_up(table, request, f"{request.label}: {_told(failure)} ({reason})")

    def _give_up(self, table: TableRun, request: PageRequest, reason: str, *, is_fault: bool = True) -> None:
        self.figures.failed += is_fault
        table.ledger.fail(table.ledger.chains[request.chain], reason)
        self._attempts.pop(request.identity, None)
        self._observer(RequestFailed(table=request.table, account=self.name, reason=reason))
        self.frontier.finish()

    # --- the credential -------------------------------------------------------------------------------------

    async def _unauthorized(
        self,
        table: TableRun,
        request: PageRequest,
        failure: RequestError,
        attempts: _Attempts,
        token: Token | None,
    ) -> None:
        is_401 = isinstance(failure, StatusError) and failure.status == 401
        if (
            token is not None
            and self._credential.tokens is not None
            and is_401
            and not attempts.is_reauthorized
        ):
            # The token may have ended on the way: once more, with another.
            attempts.is_reauthorized = True
            self._credential.tokens.invalidate(token.generation)
            self.frontier.put_back(request, not_before=self._clock.monotonic())
            return
        if await self._is_key_refused(request):
            raise AuthError(
                f"account {self.name}: the API key is refused ({_told(failure)}): it is wrong, expired or revoked; "
                "see skysql-extract check"
            )
        if is_401:
            table.ledger.denied = f"{request.label}: the key may not read this (401)"
        self._give_up(table, request, table.ledger.denied or f"{request.label}: {_told(failure)}")

    async def _is_key_refused(self, request: PageRequest) -> bool:
        """Tell a key that is refused everywhere from one that may not read this: ask for something else."""
        asked_at = self._clock.monotonic()
        async with self._probe:
            if self._probed_good_at >= asked_at:
                return False
            others = [
                first
                for planned in self._plan.active
                if planned.name != request.table
                for first in list(first_requests(planned.endpoint, self.name, ()))[:1]
            ]
            good = [self._known_good] if self._known_good and self._known_good.table != request.table else []
            candidates = [*good, *others][:_PROBES]
            answers = [await self._probe_status(candidate) for candidate in candidates]
            if any(answer not in (0, 401) for answer in answers):
                self._probed_good_at = self._clock.monotonic()
                return False
            # No answer proves nothing: without another refusal only this table is denied.
            return 401 in answers or not candidates

    async def _probe_status(self, request: PageRequest) -> int:
        """The status that a request gets now; 0 if there is no answer, or none that tells."""
        table = self.tables[request.table]
        try:
            token = await self._credential.tokens.get() if self._credential.tokens else None
            response = await self.fetcher.fetch(self._wire(table.endpoint, request, token))
        except StatusError as failure:
            doubtful = (
                failure.status in table.endpoint.auth_on or failure.status == 429 or failure.status >= 500
            )
            return 0 if doubtful else failure.status
        except RequestError:
            return 0
        response.discard()
        return response.status

    def _wire(self, endpoint: Endpoint, request: PageRequest, token: Token | None) -> Request:
        headers = [("X-MDB-Org", self._organization)] if self._organization else []
        if token is not None:
            headers.append(("Authorization", f"Bearer {token.value}"))
        else:
            headers.append(("X-API-Key", self._credential.key.reveal()))
        body = orjson.dumps(dict(endpoint.body)) if endpoint.body is not None else None
        if body is not None:
            headers.append(("Content-Type", "application/json"))
        return Request(
            method=endpoint.method,
            path=request.path,
            query=request.query,
            headers=tuple(headers),
            json_body=body,
        )

    def _server_now(self) -> datetime:
        return self._clock.now().astimezone(UTC) + (self.server_offset or timedelta())


def _told(failure: ExtractError) -> str:
    """A failure for people, without the path that it begins with."""
    return failure.message.partition(": ")[2] or failure.message
