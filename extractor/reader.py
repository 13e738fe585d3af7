"""The reading half of a run: one account's tables, lanes, limiter and credential, drained to the end.

What a run takes from outside (clock, chance, environment, executor) and what can end it early are defined here.
Rows go to the sinks that the caller gives; nothing here knows the log.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import anyio.abc
import pyarrow as pa

from extractor.account import AccountRun, Credential, TableRun
from extractor.auth import TokenAnswer, TokenSource, read_keyinfo, read_token_answer
from extractor.catalog import load_catalog
from extractor.checks import check_names
from extractor.clock import Clock
from extractor.commitlog import TableState
from extractor.conceal import Secrets
from extractor.config import Account, Config, KeySources, SecretText, find_key, nearest_name
from extractor.endpoint import Endpoint
from extractor.errors import (
    AuthError,
    ConfigError,
    ExtractError,
    LakeError,
    RequestError,
    SourceUnreachable,
)
from extractor.events import Observer
from extractor.fetch import Fetcher, FetchLimits, Request, parse_date
from extractor.journal import Journal, Place
from extractor.lane import Budget, DecodeBounds, Executor, Lane, Part, Sink
from extractor.ledger import Ledger, Outcome
from extractor.limit import Limiter, Limits
from extractor.plan import Plan, Span, TablePlan, make_plan
from extractor.retry import RetryPolicy
from extractor.schedule import drain
from extractor.schema import TableSchema
from extractor.settle import last_longest_chain
from extractor.store import Store
from extractor.windows import follows, parents_read, spans_to_read

__all__ = (
    "Interruption",
    "NoSink",
    "Reader",
    "Setup",
    "World",
    "find_accounts",
    "gravest",
    "outcome_of",
    "prepared",
    "read_all",
    "set_up",
    "user_agent",
)

_GRACE_SECONDS = 5.0
_SOON_SECONDS = 0.005
_START_RATE = 2.0
"""Requests per second with which an unknown server is first met, where the user chose no ceiling."""


class Interruption:
    """Says that a run is to end early, and why; set from a signal handler or a deadline."""

    def __init__(self) -> None:
        self.exit_code = 0
        self.reason = ""
        self._event = anyio.Event()

    def set(self, exit_code: int, reason: str) -> None:
        """End the run; the first call counts."""
        if not self.exit_code:
            self.exit_code, self.reason = exit_code, reason
            self._event.set()

    async def wait(self) -> None:
        await self._event.wait()


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What a run takes from outside."""

    clock: Clock
    chance: Callable[[], float]
    environment: Mapping[str, str]
    executor: Executor | None = None
    """Threads, unless another is given."""
    store: Store | None = None
    """The store at `lake.uri`, unless another is given."""
    network: Callable[..., Fetcher] = Fetcher
    """What makes the connection to one origin; called as `Fetcher` is."""
    token: Callable[[int], str] = secrets.token_hex
    """So many random bytes as text: of them are the names that no other run may have."""
    secrets: Secrets = field(default_factory=Secrets)
    """The keys and tokens of the run; whatever it tells is told without them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What is known before the first request."""

    config: Config
    plan: Plan
    accounts: tuple[tuple[Account, SecretText], ...]


def set_up(config: Config, key_file: str, world: World, accept: Sequence[str]) -> Setup:
    """Everything that can be wrong before a request is sent."""
    catalog = load_catalog([Path(folder) for folder in config.source.catalogs], builtin=config.source.builtin)
    plan = make_plan(catalog.endpoints, config)
    for name in accept:
        if name not in catalog.endpoints:
            raise ConfigError(
                f"--accept {name}: no such table{nearest_name(name, set(catalog.endpoints), '')}"
            )
    return prepared(config, plan, catalog.endpoints, key_file, world)


def prepared(
    config: Config, plan: Plan, endpoints: Mapping[str, Endpoint], key_file: str, world: World
) -> Setup:
    """The plan with the accounts to read it for; their keys are what nobody may see from here on."""
    check_names(config, endpoints)
    accounts = find_accounts(config, key_file, world.environment)
    for _, key in accounts:
        world.secrets.add(key.reveal())
    return Setup(config=config, plan=plan, accounts=accounts)


def find_accounts(
    config: Config, key_file: str, environment: Mapping[str, str]
) -> tuple[tuple[Account, SecretText], ...]:
    """The accounts of a run with their keys; one called `default` where none are configured."""
    source = config.source
    if not config.accounts:
        sources = KeySources(
            file_flag=key_file,
            environment=environment,
            key_file=source.key_file,
            key_command=source.key_command,
            keyring=_keyring,
        )
        return ((Account(name="default", organization=source.organization), find_key(sources)),)
    found = []
    for account in config.accounts:
        if not (account.key_file or account.key_env or account.key_command):
            raise ConfigError(f"[[accounts]] {account.name}: names no key_file, key_env or key_command")
        sources = KeySources(
            environment=environment if account.key_env else {},
            key_file=account.key_file,
            key_env=account.key_env,
            key_command=account.key_command,
        )
        try:
            found.append((account, find_key(sources)))
        except AuthError:
            where = account.key_env or account.key_file or "its key_command"
            raise AuthError(f"[[accounts]] {account.name}: {where} holds no API key") from None
    return tuple(found)


def _keyring() -> str | None:
    """The key in the system keyring, where the optional package `keyring` is installed."""
    try:
        import keyring
    except ImportError:
        return None
    try:
        key = keyring.get_password("skysql-extractor", "api_key")
    except Exception:  # noqa: BLE001  # whatever a backend raises: a locked keyring is the same as none
        return None
    return key if isinstance(key, str) else None


class NoSink:
    """For tables that are read only for the sake of their children."""

    buffered_bytes = 0
    is_full = False

    async def take(self, parts: Sequence[Part]) -> None:
        return

    async def write(self) -> None:
        return

    async def flush(self) -> None:
        return


class Reader:
    """One account's share of a run, ready to be drained."""

    def __init__(
        self,
        config: Config,
        plan: Plan,
        account: Account,
        key: SecretText,
        *,
        world: World,
        observer: Observer,
        budget: Budget,
        priors: Mapping[str, TableState],
        schemas: Mapping[str, TableSchema],
        sink_of: Callable[[TablePlan], Sink],
        spool_folder: Callable[[], Path],
        learnt_rate: float | None,
        is_prompt: bool = False,
        spans: Mapping[str, tuple[Span, ...]] | None = None,
        moment: datetime | None = None,
        journal: Journal | None = None,
        recall: Callable[[Sequence[Place]], Iterator[pa.RecordBatch]] | None = None,
        settled: Collection[str] = (),
    ) -> None:
        """With `is_prompt` pages are decoded as they come, at the price of more work for small ones.

        `spans` are the windows to read, by table, where it is not the state in `priors` that says so. Windows are
        those of the `moment` at which the run began, now if none is given. Tables that are `settled` are not asked
        for.
        """
        self.account = account
        self.priors = priors
        self.provenance: Mapping[str, object] = {}
        self.warnings: list[str] = []
        self.tables: dict[str, TableRun] = {}
        self._config = config
        self._plan = plan
        self._clock = world.clock
        self._secrets = world.secrets
        self._tasks: anyio.abc.TaskGroup | None = None
        self._is_prompt = is_prompt
        self._given_spans = spans
        self._moment = moment or world.clock.now()
        self._journal = journal
        self._recall = recall
        self._settled = settled
        fetch_limits = _fetch_limits(config)
        self._fetchers = [
            world.network(
                url,
                limits=fetch_limits,
                clock=world.clock,
                user_agent=user_agent(),
                spool_folder=spool_folder,
            )
            for url in (config.source.base_url, *_identity_urls(config))
        ]
        self._key = key
        tokens = None
        if config.source.auth == "bearer":
            tokens = TokenSource(
                self._exchange,
                world.clock,
                observer,
                account=account.name,
                policy=_retry_policy(config),
                chance=world.chance,
            )
        limits = config.limits
        limiter = Limiter(
            Limits(
                requests_per_second=limits.requests_per_second,
                burst=limits.burst,
                concurrency=limits.concurrency,
                starts_at=None if config.is_rate_set else min(_START_RATE, limits.requests_per_second),
                longest_pause_seconds=max(1.0, limits.retry_seconds),
            ),
            world.clock,
            learnt=learnt_rate,
        )
        self.run = AccountRun(
            account.name,
            plan=plan,
            tables=self.tables,
            credential=Credential(key=key, tokens=tokens),
            organization=account.organization or config.source.organization,
            fetcher=self._fetchers[0],
            limiter=limiter,
            policy=_retry_policy(config),
            base_url=config.source.base_url,
            pages_max=config.bounds.pages,
            clock=world.clock,
            chance=world.chance,
            observer=observer,
            budget=budget,
            ahead=2 * limits.concurrency,
        )
        for planned in plan.active:
            self.tables[planned.name] = self._table(
                planned, schemas[planned.name], sink_of(planned), world, budget, spool_folder
            )

    def _table(
        self,
        planned: TablePlan,
        schema: TableSchema,
        sink: Sink,
        world: World,
        budget: Budget,
        spool_folder: Callable[[], Path],
    ) -> TableRun:
        endpoint = planned.endpoint
        prior = self.priors.get(planned.name)
        ledger = Ledger(table=planned.name)
        bounds = self._config.bounds
        assert world.executor is not None
        recorder = self._journal.recorder(planned.name, self.account.name) if self._journal else None
        lane = Lane(
            endpoint,
            schema,
            sink,
            executor=world.executor,
            budget=budget,
            bounds=DecodeBounds(
                body_bytes=int(bounds.body_mb * (1 << 20)),
                depth=bounds.depth,
                archive_ratio=bounds.archive_ratio,
            ),
            spool_folder=spool_folder,
            on_page=self.run.page_decoded,
            on_failure=self.run.page_failed,
            on_drift=ledger.note_drift,
            spawn=self._start,
            is_eager=self._is_prompt or bool(self._plan.children_of(planned.name)),
            recorder=recorder,
            recall=self._recall,
        )
        return TableRun(
            endpoint=endpoint,
            ledger=ledger,
            lane=lane,
            spans=self._spans(planned, self._moment),
            spans_at=partial(self._spans, planned) if endpoint.sync.window is not None else None,
            is_follower=follows(endpoint, self._plan) is not None,
            versions_before=parents_read(prior.state) if prior is not None else {},
            columns=frozenset(field.source for field in schema.fields),
            is_dormant=bool(endpoint.parent and endpoint.parent.fallback_on),
            last_longest_chain=last_longest_chain(prior),
            recorder=recorder,
            is_settled=planned.name in self._settled,
        )

    def _spans(self, planned: TablePlan, now: datetime) -> tuple[Span, ...]:
        if self._given_spans is not None:
            return self._given_spans.get(planned.name, ())
        states = {name: prior.state for name, prior in self.priors.items()}
        return spans_to_read(planned, self._plan, states, since=self._config.run.since, now=now)

    def whole_windows(self, name: str) -> frozenset[str]:
        """The windows all of whose rows came, of a windowed table or of one that follows it."""
        table = self.tables[name]
        if table.endpoint.parent is None or not table.is_follower:
            return table.ledger.complete_windows()
        return (self.whole_windows(table.endpoint.parent.endpoint) | {""}) - table.ledger.cut_windows()

    async def connect(self, stack: AsyncExitStack) -> None:
        """Open the connections, and take the first token if tokens are used."""
        for fetcher in self._fetchers:
            await stack.enter_async_context(fetcher)
        tokens = self.run.tokens
        if tokens is not None:
            try:
                await tokens.get()
            except RequestError as error:
                url = self._config.source.token_url
                raise SourceUnreachable(
                    f"{url} could not be reached: {error.message}; "
                    "check source.token_url and the network, then run again"
                ) from error
            self.provenance = {"key": await self._keyinfo(), "token": dict(tokens.provenance)}

    def _start(self, work: Callable[[], Coroutine[Any, Any, None]], /) -> None:
        assert self._tasks is not None
        # A group that is being cancelled does not tell those that begin now.
        if not self._tasks.cancel_scope.cancel_called:
            self._tasks.start_soon(work)

    def use(self, tasks: anyio.abc.TaskGroup) -> None:
        """Let lanes live in this task group."""
        self._tasks = tasks

    async def _exchange(self) -> TokenAnswer:
        """Exchange the key for a token (MariaDB ID, `POST` token endpoint)."""
        response = await self._fetchers[1].fetch(
            self._identity_request("POST", self._config.source.token_url)
        )
        date = parse_date(response.headers.get("date", ""))
        answer = read_token_answer(response.read(), date_header=date)
        self._secrets.add(answer.token)
        return answer

    async def _keyinfo(self) -> Mapping[str, object]:
        """What the identity service says of the key; it is provenance, so that a run goes on without it."""
        try:
            response = await self._fetchers[2].fetch(
                self._identity_request("GET", self._config.source.keyinfo_url)
            )
            facts = read_keyinfo(response.read())
        except (RequestError, AuthError) as error:
            self.warnings.append(f"account {self.account.name}: keyinfo gave no answer ({error.message})")
            return {}
        return {
            "jti": facts.jti,
            "exp": facts.exp.isoformat() if facts.exp else None,
            "scopes": list(facts.scopes),
            "tenant_id": facts.tenant_id,
        }

    def _identity_request(self, method: str, url: str) -> Request:
        parts = urlsplit(url)
        return Request(
            method=method,
            path=parts.path or "/",
            headers=(("Authorization", f"Token {self._key.reveal()}"), ("Content-Length", "0")),
        )


async def read_all(
    readers: Sequence[Reader],
    budget: Budget,
    clock: Clock,
    interruption: Interruption,
) -> None:
    """Drain every account's frontier; return early, with what is decoded, when the run is told to end."""
    async with anyio.create_task_group() as watch:

        async def stop_when_told() -> None:
            await interruption.wait()
            for reader in readers:
                reader.run.frontier.forget()
            await clock.sleep_until(clock.monotonic() + _GRACE_SECONDS)
            drains.cancel_scope.cancel()

        watch.start_soon(stop_when_told)
        async with anyio.create_task_group() as lanes, anyio.create_task_group() as drains:
            for reader in readers:
                reader.use(lanes)
                reader.run.start()
                drains.start_soon(partial(_drain, reader, budget, clock, is_alone=len(readers) == 1))
        watch.cancel_scope.cancel()


class _Gate:
    """What a request passes before it is sent: memory, then the limiter.

    Where a request has to wait, lanes do not wait for its page.
    """

    def __init__(self, run: AccountRun, budget: Budget, clock: Clock) -> None:
        self._run = run
        self._limiter = run.limiter
        self._budget = budget
        self._clock = clock

    async def admit(self) -> None:
        if self._budget.is_full:
            self._run.hurry()
        await self._budget.admit()

    async def acquire(self) -> float:
        now = self._clock.monotonic()
        if self._limiter.ready_at(now) > now + _SOON_SECONDS:
            self._run.hurry()
        return await self._limiter.acquire()

    def try_acquire(self, now: float) -> bool:
        return not self._budget.is_full and self._limiter.try_acquire(now)

    def release(self) -> None:
        self._limiter.release()


async def _drain(reader: Reader, budget: Budget, clock: Clock, *, is_alone: bool) -> None:
    run = reader.run
    try:
        gate = _Gate(run, budget, clock)
        await drain(run.frontier, slots=gate, clock=clock, attempt=run.attempt, admit=gate.admit)
    except* AuthError as group:
        # Of several accounts the others go on.
        if is_alone:
            raise
        run.refuse(gravest(group).args[0])


def _identity_urls(config: Config) -> tuple[str, str]:
    """The origins of the token and keyinfo endpoints."""

    def origin(url: str) -> str:
        parts = urlsplit(url)
        return f"{parts.scheme}://{parts.netloc}"

    return origin(config.source.token_url), origin(config.source.keyinfo_url)


def _retry_policy(config: Config) -> RetryPolicy:
    limits = config.limits
    return RetryPolicy(attempts=limits.retry_attempts, longest_seconds=limits.retry_seconds)


def _fetch_limits(config: Config) -> FetchLimits:
    limits = config.limits
    memory = int(limits.memory_mb * (1 << 20))
    return FetchLimits(
        connect_seconds=limits.connect_seconds,
        idle_seconds=limits.idle_seconds,
        longest_seconds=max(limits.retry_seconds, limits.idle_seconds),
        body_bytes_max=int(config.bounds.body_mb * (1 << 20)),
        # Bodies on their way are at most a quarter of the budget, all together.
        spool_bytes=min(max(memory // (4 * limits.concurrency), 256 << 10), 4 << 20),
        redirects=config.bounds.redirects,
        connections=limits.concurrency,
    )


def user_agent() -> str:
    """`skysql-extractor/VERSION`."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"skysql-extractor/{version('skysql-extractor')}"
    except PackageNotFoundError:
        return "skysql-extractor"


def outcome_of(
    planned: TablePlan, table: TableRun, outcomes: Mapping[str, Outcome], prior: TableState | None
) -> Outcome:
    parent = planned.endpoint.parent
    is_asked_whole = parent is None or (bool(parent.fallback_on) and not table.ledger.parents)
    above = None if is_asked_whole or parent is None else outcomes[parent.endpoint]
    return table.ledger.outcome(above, had_rows=prior is not None and prior.rows > 0)


def gravest(error: BaseException) -> BaseException:
    """Of a group of foreseen errors, as task groups raise it, the one to tell of; anything else as it is."""
    leaves = [error]
    while any(isinstance(leaf, BaseExceptionGroup) for leaf in leaves):
        leaves = [
            inner
            for leaf in leaves
            for inner in (leaf.exceptions if isinstance(leaf, BaseExceptionGroup) else (leaf,))
        ]
    if not all(isinstance(leaf, ExtractError) for leaf in leaves):
        return error
    kinds = (LakeError, AuthError, SourceUnreachable, ExtractError)
    return next(leaf for kind in kinds for leaf in leaves if isinstance(leaf, kind))
