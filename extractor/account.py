"""What the requests of one account go through: credential, attempt, failure, and what follows an answer.

One `AccountRun` owns the frontier, the limiter and the credential of its account. Every attempt ends in one of
four ways: its page goes to the table's lane, it is put back for another attempt, its chain is given up, or the run
ends because the key is refused or the server cannot be reached. The first and the third wait for the turn of their
page: where the pages of a chain can be counted, several are asked for at once.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import repeat
from urllib.parse import quote

import anyio
import msgspec
import orjson
import pyarrow as pa
from msgspec.structs import replace

from extractor.auth import Token, TokenSource
from extractor.clock import Clock
from extractor.config import SecretText
from extractor.decode.json import Envelope, open_body, open_lines
from extractor.endpoint import Endpoint, NoPaging, Parent
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
from extractor.fetch import Fetcher, Request, Response, parse_date
from extractor.journal import Answer, Facts, Place, Recorder
from extractor.lane import Budget, Lane, Page, parent_values
from extractor.ledger import Ledger, OpenChain, Resumed
from extractor.limit import Limiter, parse_retry_after
from extractor.paging import Chain, PageFacts, Step, Turns, needs_row_count, paging_headers, pointers_of
from extractor.plan import PageRequest, Plan, Span, first_requests, requests_of_parent
from extractor.retry import GiveUp, RetryAt, RetryPolicy, Verdict, classify, decide
from extractor.schedule import Frontier

__all__ = ("AccountRun", "Credential", "Ending", "Figures", "TableRun")

_PROBES = 3

_ParentRow = tuple[dict[str, str], tuple[tuple[str, str], ...]]
"""What a request takes from its parent's row: parameters, and values to keep."""


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


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """How a request ended; to `act` on it, at its turn, gives the next page of its chain if there is one."""

    act: Callable[[], PageRequest | None]
    size_bytes: int = 0
    """What it holds in memory until then."""


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
    waiting: list[tuple[_ParentRow, str]] = field(default_factory=list)
    """Rows of the parent that may have to be asked for, each with its window."""
    spans_at: Callable[[datetime], tuple[Span, ...]] | None = None
    """The windows to read by the server's clock."""
    is_follower: bool = False
    """True where rows belong to the window of their parent's row."""
    versions_before: Mapping[str, str] = field(default_factory=dict)
    """Of the parent's rows that were read whole in earlier runs, the version that they had then."""
    versions: dict[str, str] = field(default_factory=dict)
    """The same for the rows that came in this run."""
    turns: dict[str, Turns[Ending]] = field(default_factory=dict)
    """Of the chains that go on."""
    last_longest_chain: int = 0
    """Pages of the longest chain of the last run; 0 where nobody knows."""
    recorder: Recorder | None = None
    is_settled: bool = False
    """True where this very run has committed the table before it was stopped, and no child needs its rows."""
    pointers: tuple[str, ...] = field(init=False)
    is_counted: bool = field(init=False)
    """True where rows must be counted before they are decoded."""
    key: frozenset[str] = field(init=False)
    """Of the key what stands in the answer; the rest is the parent's."""

    def __post_init__(self) -> None:
        self.pointers = pointers_of(self.endpoint)
        self.is_counted = needs_row_count(self.endpoint)
        self.key = frozenset(self.endpoint.key) - {name for name, _ in self.endpoint.keep}


class _Attempts(msgspec.Struct):
    first_at: float
    count: int = 0
    is_reauthorized: bool = False


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
        budget: Budget,
        ahead: int,
    ) -> None:
        self.name = name
        self.figures = Figures()
        self.limiter = limiter
        self.fetcher = fetcher
        self.tables = tables
        self.server_offset: timedelta | None = None
        self.frontier: Frontier[PageRequest] = Frontier(
            identity=lambda request: request.identity,
            group=lambda request: request.table,
            rank=lambda table: -self._path_pages.get(table, 0),
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
        self._on_wire = 0
        self._budget = budget
        self._ahead = ahead
        self._path_pages: dict[Hashable, int] = {}
        self._attempts: dict[tuple[object, ...], _Attempts] = {}
        self._children = {table.name: plan.children_of(table.name) for table in plan.active}
        self._known_good: PageRequest | None = None
        self._is_reached = False
        self._is_refused = False
        self._replayed: dict[str, tuple[PageRequest, Answer | None]] | None = None
        """While the journal is told again: where each open chain goes on, and the last answer that it has."""
        self._is_started = False
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
            for turns in table.turns.values():
                self._drop(turns.move(None))
            table.turns.clear()
        self.frontier.forget()

    def start(self) -> None:
        """Put the first request of every chain that needs no parent into the frontier.

        In each round of the frontier that table comes first whose pages, and those of its children, took the
        longest way last time: it is the one that the run would wait for in the end.
        """
        if self._is_refused or self._is_started:
            return
        self._is_started = True
        for planned in reversed(self._plan.active):
            below = [self._path_pages[child.name] for child in self._children[planned.name]]
            own = self.tables[planned.name].last_longest_chain
            self._path_pages[planned.name] = own + max(below, default=0)
        for planned in self._plan.active:
            table = self.tables[planned.name]
            if not table.is_settled:
                for request in first_requests(planned.endpoint, self.name, table.spans):
                    self._add(table, request)

    async def attempt(self, request: PageRequest, sent_at: float) -> None:
        """Make one attempt of one request and deal with how it ended."""
        table = self.tables[request.table]
        self._on_wire += 1
        try:
            if self._is_unwanted(table, request):
                self.frontier.finish()
            elif table.ledger.denied or table.ledger.drift_refused:
                self._give_up(table, request, table.ledger.denied or table.ledger.drift_refused)
            else:
                await self._attempt(table, request, sent_at)
        finally:
            self._on_wire -= 1
            if not self.frontier.has_ready:
                self.hurry()

    def hurry(self) -> None:
        """Let no lane wait for more pages if none is on the wire."""
        if not self._on_wire:
            for table in self.tables.values():
                table.lane.hurry()

    async def _attempt(self, table: TableRun, request: PageRequest, sent_at: float) -> None:
        attempts = self._attempts.setdefault(request.identity, _Attempts(self._clock.monotonic()))
        attempts.count += 1
        turns = table.turns.get(request.chain)
        table.ledger.requests += 1
        self.figures.sent += 1
        token: Token | None = None
        try:
            token, sent_at = await self._fresh_token(sent_at)
            response = await self.fetcher.fetch(self._wire(table.endpoint, request, token))
        except RequestError as failure:
            if isinstance(failure, StatusError):
                self._is_reached = True
                self._note_time(parse_date(failure.headers.get("date", "")))
                self._report_to_limiter(failure, sent_at)
            if self._is_unwanted(table, request, turns):
                self.frontier.finish()
            else:
                await self._fail(table, request, failure, attempts, token)
            return
        self.limiter.on_success(response.headers, sent_at=sent_at)
        self._note_answer(request, response)
        if self._is_unwanted(table, request, turns):
            response.discard()
            self.frontier.finish()
            return
        try:
            self._accept(table, request, response)
        except MalformedBody as failure:
            response.discard()
            await self._fail(table, request, failure, attempts, token)
        except (PagingError, RequestError) as failure:
            self._give_up(table, request, f"{request.label}: {failure.message}")

    async def _fresh_token(self, sent_at: float) -> tuple[Token | None, float]:
        """The token for a request, if tokens are used, and the moment at which it goes.

        Requests that waited for a token would go out together, or in a pause: they pass the limiter again.
        """
        tokens = self._credential.tokens
        if tokens is None:
            return None, sent_at
        while not tokens.is_fresh:
            await tokens.get()
            sent_at = await self.limiter.renew(sent_at)
        return await tokens.get(), sent_at

    # --- an answer ------------------------------------------------------------------------------------------

    def _note_answer(self, request: PageRequest, response: Response) -> None:
        self._is_reached = True
        self._known_good = self._known_good or request
        self.figures.succeeded += 1
        if self.server_offset is None:
            self._note_time(response.server_date)
        self._observer(
            RequestSucceeded(
                table=request.table,
                account=self.name,
                status=response.status,
                size_bytes=response.size_bytes,
                elapsed_seconds=response.elapsed_seconds,
            )
        )

    def _note_time(self, date: datetime | None) -> None:
        """The first answer that says so, be it a refusal, tells how far the server's clock is from ours."""
        if self.server_offset is None and date is not None:
            self.server_offset = date - self._clock.now()
            self._open_windows()

    def _open_windows(self) -> None:
        """Ask also for the windows that are due by the server's clock and were not by ours."""
        for planned in self._plan.active:
            table = self.tables[planned.name]
            if table.spans_at is None or table.ledger.parents or self._is_refused:
                continue
            known = {span.label for span in table.spans}
            due = tuple(span for span in table.spans_at(self._server_now()) if span.label not in known)
            table.spans = tuple(sorted((*table.spans, *due), key=lambda span: span.start))
            for request in first_requests(planned.endpoint, self.name, due) if due else ():
                self._add(table, request)

    def _accept(self, table: TableRun, request: PageRequest, response: Response) -> None:
        """Open the answer, and keep it for its turn in the chain."""
        if response.status == 206 and isinstance(table.endpoint.paging, NoPaging):
            response.discard()
            raise PagingError(
                "the answer says that it is only a part (status 206), but the catalogue says paging = none"
            )
        envelope = _open(table, response)
        rows = envelope.rows if envelope is not None else b""
        facts = PageFacts(
            headers=response.headers,
            facts=envelope.facts if envelope is not None else {},
            body=rows,
            rows=len(msgspec.json.decode(rows, type=list[msgspec.Raw])) if table.is_counted else None,
        )
        held = response if envelope is None else None
        if held is None:
            response.discard()
        page = Page(
            request=request,
            rows=rows,
            response=held,
            received_at=response.received_at,
            size_bytes=len(rows) if held is None else (0 if held.spool else held.size_bytes),
        )
        self._in_turn(
            table, request, Ending(act=partial(self._take, table, page, facts), size_bytes=page.size_bytes)
        )

    def _take(self, table: TableRun, page: Page, facts: PageFacts) -> PageRequest | None:
        """Advance the chain by a page whose turn has come, and hand it to the lane."""
        request = page.request
        chain = table.ledger.chains[request.chain]
        turns = table.turns[request.chain]
        resumed = chain.resumed
        if resumed is not None and resumed.last is not None:
            return self._compare(table, request, chain, resumed, facts)
        following: PageRequest | None = None
        refusal = ""
        try:
            following = chain.chain.advance(request, facts)
        except PagingError as failure:
            refusal = f"{request.label}: {failure.message}"
        is_torn = (chain.chain.has_shifted and turns.was_ahead) or (
            chain.chain.lacks_total and turns.is_turn_early
        )
        if (refusal or is_torn) and page.response is not None:
            page.response.discard()
        if resumed is not None and (is_torn or refusal):
            self._start_anew(table, request, chain)
            return None
        if is_torn:
            self._read_again(table, request, chain)
            return None
        if refusal:
            return self._fail_chain(table, request, refusal)
        if request.is_trial:
            table.waiting.clear()
            table.is_dormant = False
        chain.undecoded += 1
        if table.recorder is not None:
            page = _told_of(page, table, facts, is_last=following is None)
        if resumed is not None:
            page = msgspec.structs.replace(page, places=resumed.places)
            chain.resumed = None
        table.lane.put(page)
        # It is not needed any more, and must not count for the same page of a chain that is read again.
        if page.response is None:
            self._attempts.pop(request.identity, None)
        if following is not None and chain.chain.lacks_total and turns.ahead:
            # Asked for at its turn, this page joins those before it; whether those ahead do, nobody can see.
            self._go_in_turn(table, chain, following)
            return None
        return following

    def _read_again(self, table: TableRun, request: PageRequest, chain: OpenChain) -> None:
        """Begin a chain anew, page by page: a row may have moved from a page read late to one read early.

        Rows that come again have the same key. The page that told is left out: it will come again.
        """
        if not table.endpoint.key or chain.first is None:
            reason = f"{request.label}: rows moved between pages, and no key tells them apart"
            self._fail_chain(table, request, reason)
            return
        table.ledger.note("read again page by page, as rows moved between pages that were read side by side")
        self._attempts.pop(request.identity, None)
        chain.chain = self._new_chain(table)
        self._go_in_turn(table, chain, chain.first)
        self.frontier.finish()

    def _go_in_turn(self, table: TableRun, chain: OpenChain, following: PageRequest) -> None:
        """Ask for the following page, and for none of this chain before its turn any more.

        Answers that are on their way are those of other turns, and count for nothing.
        """
        self._drop(table.turns[following.chain].move(None))
        chain.chain.is_in_turn = True
        table.turns[following.chain] = Turns(following)
        # It may be known from before.
        self.frontier.withdraw((following,))
        self.frontier.add(following)

    # --- what an earlier process read -----------------------------------------------------------------------

    def begin_replay(self) -> None:
        """From now on answers come from the journal, by `replay`, until `end_replay`."""
        self._replayed = {}
        self.start()

    def replay(self, answer: Answer, rows: pa.RecordBatch | None, *, is_again: bool) -> bool:
        """Take an answer with its rows (None: nobody needs them); False if no chain asks for it now."""
        assert self._replayed is not None
        request = answer.request
        table = self.tables[request.table]
        asked, _ = self._replayed.get(request.chain, (None, None))
        if asked is None or asked.identity != request.identity:
            return False
        if request.page == 0:  # a parent's row may name it again
            self.frontier.know(request)
        if answer.facts is None:
            self._replay_status(table, request, answer.status)
            return True
        chain = table.ledger.chains[request.chain]
        if request.page == 0:
            chain.chain.is_in_turn = is_again
        try:
            following = chain.chain.advance(request, answer.facts.whole())
        except PagingError:
            # Another version of the program may have taken it: the chain is read anew.
            chain.chain, following = self._new_chain(table), chain.first
        if request.is_trial:
            table.waiting.clear()
            table.is_dormant = False
        self._replay_following(table, request, following, answer)
        table.ledger.count_page(answer.rows)
        if rows is not None:
            self._add_children(table, rows, request.window)
        self._observer(PageStored(table=request.table, account=self.name, rows=answer.rows))
        return True

    def _replay_status(self, table: TableRun, request: PageRequest, status: int) -> None:
        self._replay_following(table, request, None, None)
        if status in table.endpoint.empty_on:
            self._end_empty(table, request, status)
        else:
            self._ask_by_parent(table, request)

    def _replay_following(
        self, table: TableRun, request: PageRequest, following: PageRequest | None, answer: Answer | None
    ) -> None:
        assert self._replayed is not None
        if following is None:
            del self._replayed[request.chain], table.turns[request.chain]
        else:
            self._replayed[request.chain] = (following, answer)

    def end_replay(self, places: Mapping[str, tuple[Place, ...]]) -> None:
        """Ask for what comes next; `places` are where the rows of open chains wait."""
        waiting, self._replayed = self._replayed or {}, None
        for name, (following, answer) in waiting.items():
            table = self.tables[following.table]
            chain = table.ledger.chains[name]
            asked = following
            if answer is not None and chain.chain.pages:
                last = answer.facts.fingerprint if answer.facts and table.is_counted else None
                asked = following if last is None else answer.request
                chain.resumed = Resumed(
                    pages=chain.chain.pages,
                    asked=asked,
                    following=following,
                    last=last,
                    places=places.get(name, ()),
                )
                table.turns[name] = Turns(asked)
                # If the total is another now, rows have moved since those pages were read.
                table.turns[name].was_ahead = not chain.chain.is_in_turn
                if last is not None:
                    self.frontier.withdraw((asked,))
            self.frontier.add(asked)

    def _compare(
        self, table: TableRun, request: PageRequest, chain: OpenChain, resumed: Resumed, facts: PageFacts
    ) -> PageRequest | None:
        """Go on behind a page that was asked for again, if it is what it was."""
        if _fingerprint(facts.body) != resumed.last:
            self._start_anew(table, request, chain)
            return None
        resumed.last = None
        self._attempts.pop(request.identity, None)
        self.frontier.finish()
        return resumed.following

    def _start_anew(self, table: TableRun, request: PageRequest, chain: OpenChain) -> None:
        """Read a chain from its first page, as the server does not let it go on; what was read is dropped."""
        resumed, chain.resumed = chain.resumed, None
        assert resumed is not None
        assert chain.first is not None
        table.ledger.pages -= resumed.pages
        table.ledger.note("begun anew, as the API did not go on where the run was stopped")
        if table.recorder is not None:
            table.recorder.note(Answer.void(chain.first))
        self._attempts.pop(request.identity, None)
        self._drop(table.turns[request.chain].move(None))
        chain.chain = self._new_chain(table)
        table.turns[request.chain] = Turns(chain.first)
        # All that was asked for of it so far: the new reading may come by the same.
        self.frontier.withdraw((chain.first, resumed.asked, resumed.following))
        self.frontier.add(chain.first)
        self.frontier.finish()

    def _is_position_refused(self, table: TableRun, request: PageRequest, status: int) -> bool:
        """True if the server does not take the position at which an earlier process stopped."""
        chain = table.ledger.chains.get(request.chain)
        turns = table.turns.get(request.chain)
        if chain is None or chain.resumed is None or turns is None or turns.place(request) != "turn":
            return False
        return 400 <= status < 500 and status not in (401, 403, 408, 429)

    # --- the order of a chain --------------------------------------------------------------------------------

    def _is_unwanted(
        self, table: TableRun, request: PageRequest, asked_in: Turns[Ending] | None = None
    ) -> bool:
        """True for a page that was asked for ahead, of a chain that ended before it, or was begun anew since."""
        turns = table.turns.get(request.chain)
        is_old = asked_in is not None and asked_in is not turns
        return turns is None or is_old or turns.place(request) == "unwanted"

    def _in_turn(self, table: TableRun, request: PageRequest, ending: Ending) -> None:
        """Act on how a request ended once it is its turn, and then on those that follow and are here already."""
        turns = table.turns.get(request.chain)
        place = turns.place(request) if turns is not None else "unwanted"
        if turns is None or place == "unwanted":
            self.frontier.finish()
            return
        if place == "early":
            self._hold(turns, request, ending)
            return
        due: Ending | None = ending
        while due is not None:
            due = self._go_on(table, request.chain, turns, due.act())

    def _go_on(
        self, table: TableRun, chain: str, turns: Turns[Ending], following: PageRequest | None
    ) -> Ending | None:
        """Let the chain go on at `following`; how that request ended, if it came early."""
        if table.turns.get(chain) is not turns:  # it goes on in others
            return None
        step = turns.move(following)
        self._drop(step)
        if following is None:
            del table.turns[chain]
            return None
        if step.is_new:
            if table.ledger.chains[chain].chain.is_in_turn:
                self.frontier.withdraw((following,))
            self.frontier.add(following)
        if step.early is not None:
            self._budget.free_body(step.early.size_bytes)
            self.frontier.resume()
        self._ask_ahead(table, table.ledger.chains[chain].chain, turns)
        return step.early

    def _ask_ahead(self, table: TableRun, chain: Chain, turns: Turns[Ending]) -> None:
        """Ask for pages before their turn, unless the table has enough to ask for, or there is much in memory."""
        while (
            turns.furthest is not None
            and not turns.has_missed
            and turns.ahead < self._ahead
            and self.frontier.ready_in(table.endpoint.name) <= self._ahead
            and self._budget.bodies < self._budget.size_bytes // 4
        ):
            request = chain.guess(turns.furthest)
            if request is None or not self.frontier.add(request):
                return
            turns.ask(request)

    def _hold(self, turns: Turns[Ending], request: PageRequest, ending: Ending) -> None:
        """Keep an early answer, unless bodies take half of the memory: then it is asked for again at its turn.

        Rows take the other half at most. So, whatever is held, the page whose turn it is will be admitted.
        """
        size = ending.size_bytes
        if size and self._budget.bodies + size >= self._budget.size_bytes // 2:
            turns.lose(request)
            self.frontier.withdraw((request,))
            self._attempts.pop(request.identity, None)
        else:
            turns.hold(request, ending)
            self._budget.take_body(size)
        # It is not in flight while it is held, or a run that is told to end would wait for its turn for ever.
        self.frontier.finish()

    def _drop(self, step: Step[Ending]) -> None:
        """Forget what was asked for ahead in vain."""
        for answer in step.answers:
            self._budget.free_body(answer.size_bytes)
        for request in step.dropped:
            self._attempts.pop(request.identity, None)
        if step.dropped:
            self.frontier.withdraw(step.dropped)

    # --- called by the lane ---------------------------------------------------------------------------------

    def page_decoded(self, page: Page, batch: pa.RecordBatch | None, rows: int) -> None:
        """The rows of a page are with the sink: count them, and ask for their children."""
        table = self.tables[page.request.table]
        table.ledger.chains[page.request.chain].undecoded -= 1
        table.ledger.count_page(rows)
        if page.response is not None:
            self._attempts.pop(page.request.identity, None)
        if batch is not None:
            self._add_children(table, batch, page.request.window)
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
            self._fail_chain(table, request, failure.message)
            return
        # JSON was checked before its chain went on, so that asking again would not help; other formats are one
        # answer each and may have been cut.
        if page.response is not None and isinstance(failure, RequestError):
            chain.chain = self._new_chain(table)
            table.turns[request.chain] = Turns(request)
            attempts = self._attempts.setdefault(request.identity, _Attempts(self._clock.monotonic()))
            self._retry_or_give_up(table, request, failure, attempts)
            return
        self._fail_chain(table, request, f"{request.label}: {failure.message}")

    def _add_children(self, table: TableRun, batch: pa.RecordBatch, window: str) -> None:
        for planned in self._children[table.endpoint.name]:
            child = self.tables[planned.name]
            if child.is_settled:
                continue
            parent = child.endpoint.parent
            assert parent is not None
            rows = parent_values(batch, parent.params, child.endpoint.keep)
            versions = _versions(batch, parent) if parent.version else repeat("")
            for values, version in zip(rows, versions, strict=False):
                if values is None:
                    child.ledger.parents_without_value += 1
                elif version and _is_read(child, _key_of(values), version):
                    child.ledger.parents_unchanged += 1
                elif child.is_dormant:
                    child.waiting.append((values, window))
                elif not parent.fallback_on or child.ledger.parents:
                    self._add_child(child, values, window)

    def _add_child(self, child: TableRun, row: _ParentRow, window: str) -> None:
        child.ledger.parents += 1
        params, keep = row
        for request in requests_of_parent(child.endpoint, self.name, child.spans, params=params, keep=keep):
            self._add(child, replace(request, window=window) if child.is_follower else request)
            if child.versions:
                child.ledger.chains[request.chain].parent = _key_of(row)

    def _add(self, table: TableRun, request: PageRequest) -> None:
        is_new = request.chain not in table.ledger.chains
        if is_new:
            # Also where the run is about to end, and takes no request any more: the chain then stays open.
            chain = OpenChain(chain=self._new_chain(table), window=request.window, first=request)
            table.ledger.chains[request.chain] = chain
            table.turns[request.chain] = Turns(request)
        if self._replayed is None:
            self.frontier.add(request)
        elif is_new:
            self._replayed[request.chain] = (request, None)

    def _new_chain(self, table: TableRun) -> Chain:
        return Chain(endpoint=table.endpoint, base_url=self._base_url, pages_max=self._pages_max)

    # --- a failure ------------------------------------------------------------------------------------------

    async def _fail(
        self,
        table: TableRun,
        request: PageRequest,
        failure: RequestError,
        attempts: _Attempts,
        token: Token | None,
    ) -> None:
        status = failure.status if isinstance(failure, StatusError) else 0
        parent = table.endpoint.parent
        if self._is_position_refused(table, request, status):
            self._start_anew(table, request, table.ledger.chains[request.chain])
            return
        if status in table.endpoint.empty_on:
            self._in_turn(table, request, Ending(act=partial(self._accept_empty, table, request, status)))
            return
        # Only the first answer tells: after it the endpoint was asked without its parent, and answered.
        is_open = table.is_dormant or table.ledger.parents > 0
        is_first_trial = request.is_trial and request.page == 0 and is_open
        if is_first_trial and parent is not None and status in parent.fallback_on:
            self._note(table, request, status)
            self._ask_by_parent(table, request)
            table.turns.pop(request.chain)
            self.frontier.finish()
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
                self._give_up(table, request, f"{request.label}: {_told(failure)}", is_absent=True)
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

    def _accept_empty(self, table: TableRun, request: PageRequest, status: int) -> PageRequest | None:
        self._note(table, request, status)
        self._end_empty(table, request, status)
        self.frontier.finish()
        return None

    def _note(self, table: TableRun, request: PageRequest, status: int) -> None:
        """Tell the journal of an answer that stands for no rows."""
        if table.recorder is not None:
            table.recorder.note(Answer(request=request, status=status, is_last=True))

    def _end_empty(self, table: TableRun, request: PageRequest, status: int) -> None:
        chain = table.ledger.chains[request.chain]
        chain.chain.proof = f"status {status} means no rows here"
        if request.is_trial:
            table.is_dormant = False
            table.waiting.clear()

    def _ask_by_parent(self, table: TableRun, request: PageRequest) -> None:
        """The endpoint must be asked parent by parent after all."""
        table.ledger.chains.pop(request.chain)
        table.ledger.note("asked row by row of its parent, as the API refused it whole")
        table.is_dormant = False
        # Marks the table as asked by parent even while the parent has given no row yet.
        table.ledger.parents += 1
        for values, window in table.waiting:
            self._add_child(table, values, window)
        table.waiting.clear()

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
                tried = f" ({reason})" if classify(failure) is Verdict.TRANSIENT else ""
                self._give_up(table, request, f"{request.label}: {_told(failure)}{tried}")

    def _give_up(
        self, table: TableRun, request: PageRequest, reason: str, *, is_absent: bool = False
    ) -> None:
        """The request has failed for good; that ends its chain if the chain gets so far."""
        act = partial(self._fail_chain, table, request, reason, is_absent=is_absent)
        self._in_turn(table, request, Ending(act=act))

    def _fail_chain(
        self, table: TableRun, request: PageRequest, reason: str, *, is_absent: bool = False
    ) -> PageRequest | None:
        table.ledger.absent += is_absent
        self.figures.failed += not is_absent
        table.ledger.fail(table.ledger.chains[request.chain], reason)
        self._attempts.pop(request.identity, None)
        self._observer(
            RequestFailed(table=request.table, account=self.name, reason=reason, is_absent=is_absent)
        )
        self.frontier.finish()
        return None

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
        turns = table.turns.get(request.chain)
        if await self._is_key_refused(request):
            raise AuthError(
                f"account {self.name}: the API key is refused ({_told(failure)}): it is wrong, expired or revoked; "
                "see skysql-extract check"
            )
        if is_401:
            table.ledger.denied = f"{request.label}: the key may not read this (401)"
        if self._is_unwanted(table, request, turns):
            self.frontier.finish()
            return
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


def _open(table: TableRun, response: Response) -> Envelope | None:
    """The rows of an answer in JSON and what it says of paging; None for other formats."""
    if response.size_bytes == 0:
        if response.status == 200 and table.endpoint.format in ("json", "log_archive"):
            raise MalformedBody("the body is empty, with status 200")
        return Envelope(rows=b"[]", facts={})
    if response.status == 204:
        return Envelope(rows=b"[]", facts={})
    match table.endpoint.format:
        case "json":
            return open_body(
                response.read(),
                records=table.endpoint.records,
                columns=table.columns,
                key=table.key,
                pointers=table.pointers,
            )
        case "ndjson":
            return open_lines(response.read())
        case _:
            return None


def _versions(batch: pa.RecordBatch, parent: Parent) -> Iterator[str]:
    """For each row of the parent what tells whether there is anything new under it; empty where nothing does."""
    columns = tuple((name, name) for name in parent.version)
    for row in parent_values(batch, parent.params, columns):
        yield "/".join(quote(value, safe="") for _, value in row[1]) if row is not None else ""


def _key_of(row: _ParentRow) -> str:
    return "/".join(quote(value, safe="") for value in row[0].values())


def _is_read(child: TableRun, key: str, version: str) -> bool:
    """Note the version of a parent's row, of which the first reading counts; True if its answer is in the lake."""
    return child.versions_before.get(key) == child.versions.setdefault(key, version)


def _fingerprint(body: bytes | memoryview) -> bytes:
    return b"%d:%d" % (len(body), zlib.crc32(body))


def _told_of(page: Page, table: TableRun, facts: PageFacts, *, is_last: bool) -> Page:
    """The page with what the journal will be told of it."""
    kept = Facts(
        # Only a page that is named by its number will be compared; any other was no repetition when it came.
        fingerprint=_fingerprint(facts.body) if table.is_counted else b"%d" % page.request.page,
        headers=paging_headers(table.endpoint, facts.headers),
        pointers=facts.facts,
        rows=facts.rows,
    )
    answer = Answer(request=page.request, facts=kept, is_last=is_last)
    return msgspec.structs.replace(page, answer=answer)


def _told(failure: ExtractError) -> str:
    """A failure for people, without the path that one of the network begins with."""
    path, _, what = failure.message.partition(": ")
    return what if what and path.startswith("/") else failure.message
