"""The one place where the stages are joined: plan → read → settle → commit → publish.

`extract` is a whole run. What it needs of the world (clock, chance, environment, executor, observer) is passed in.
The reading half yields data files in staging and touches nothing that others see; the committing half makes all of
them visible at once.
"""

from __future__ import annotations

import os
import random
import secrets
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import anyio.abc
import pyarrow as pa

from extractor.account import AccountRun, Credential, TableRun
from extractor.auth import TokenAnswer, TokenSource, read_keyinfo, read_token_answer
from extractor.batch import Stamp
from extractor.catalog import load_catalog
from extractor.clock import Clock, SystemClock
from extractor.commit import (
    CommitLog,
    Leases,
    LogEntry,
    TableState,
    clean_orphans,
    commit,
    live_runs,
    publish,
    roll_forward,
)
from extractor.config import Account, Config, KeySources, SecretText, find_key
from extractor.errors import (
    AuthError,
    ConfigError,
    ExtractError,
    LakeError,
    RequestError,
    SourceUnreachable,
)
from extractor.events import Committed, Observer, RunFinished, RunStarted, TableFinished, Warned, ignore
from extractor.fetch import Fetcher, FetchLimits, Request, parse_date
from extractor.lane import Budget, DecodeBounds, Executor, Lane, Part, Sink, ThreadExecutor
from extractor.ledger import Ledger, Outcome
from extractor.limit import Limiter, Limits
from extractor.plan import Plan, Span, TablePlan, make_plan, plan_windows
from extractor.report import RequestFigures, RunReport, TableReport, exit_code_of
from extractor.retry import RetryPolicy
from extractor.schedule import drain
from extractor.schema import TableSchema, plan_schema
from extractor.settle import Reading, Settled, settle_table
from extractor.store import Store
from extractor.stores import open_store
from extractor.write import TableWriter, WriteSettings

__all__ = ("Interruption", "World", "extract", "stream")

_GRACE_SECONDS = 5.0
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Setup:
    """What is known before the first request."""

    config: Config
    plan: Plan
    accounts: tuple[tuple[Account, SecretText], ...]


async def extract(
    config: Config,
    *,
    key_file: str = "",
    observer: Observer = ignore,
    interruption: Interruption | None = None,
    accept: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    world: World | None = None,
) -> RunReport:
    """Extract everything that the configuration selects into its lake, once.

    Raises:
        ConfigError: nothing was requested.
        AuthError: the key is missing or refused; nothing is in the lake.
        LakeBusy: another run holds one of the tables.
        LakeError: the lake cannot be read or written.
        SourceUnreachable: nothing ever answered; nothing was committed.
    """
    if world is None:
        world = World(
            clock=SystemClock(),
            chance=random.random,
            environment=os.environ if environment is None else environment,
        )
    setup = _set_up(config, key_file, world, accept)
    store = open_store(config.lake.uri)
    run = _Run(setup, store, world, observer, frozenset(accept))
    return await run.to_the_end(interruption or Interruption())


def _set_up(config: Config, key_file: str, world: World, accept: Sequence[str]) -> _Setup:
    """Everything that can be wrong before a request is sent."""
    catalog = load_catalog([Path(folder) for folder in config.source.catalogs], builtin=config.source.builtin)
    plan = make_plan(catalog.endpoints, config)
    for name in accept:
        if name not in catalog.endpoints:
            raise ConfigError(f"--accept {name}: no such table")
    return _Setup(config=config, plan=plan, accounts=find_accounts(config, key_file, world.environment))


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
        found.append((account, find_key(sources)))
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


@contextmanager
def unwrapped() -> Iterator[None]:
    """Let an error that ends the run leave its task groups as itself, the most telling one if there are several."""
    try:
        yield
    except BaseExceptionGroup as group:
        leaves = list(_leaves(group))
        for kind in (AuthError, LakeError, ExtractError, Exception):
            for error in leaves:
                if isinstance(error, kind):
                    raise error from error.__cause__
        raise


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


class _WriterSink:
    """A table's writer as the lane's sink: its work is done off the event loop."""

    def __init__(self, writer: TableWriter, executor: Executor) -> None:
        self.writer = writer
        self._executor = executor

    @property
    def buffered_bytes(self) -> int:
        return self.writer.buffered_bytes

    async def take(self, parts: Sequence[Part]) -> None:
        if parts:
            await self._executor.run(self._add, parts)

    async def flush(self) -> None:
        await self._executor.run(self.writer.flush)

    def _add(self, parts: Sequence[Part]) -> None:
        for part in parts:
            self.writer.add(part.batch, window=part.window, received_at=part.received_at)


class _NoSink:
    """For tables that are read only for the sake of their children."""

    buffered_bytes = 0

    async def take(self, parts: Sequence[Part]) -> None:
        return

    async def flush(self) -> None:
        return


class _Run:
    """One run: what it holds while it lasts."""

    def __init__(
        self, setup: _Setup, store: Store, world: World, observer: Observer, accepted: frozenset[str]
    ) -> None:
        self._setup = setup
        self._config = setup.config
        self._plan = setup.plan
        self._store = store
        self._log = CommitLog(store)
        self._world = world
        self._clock = world.clock
        self._observer = observer
        self._accepted = accepted
        self._executor = world.executor or ThreadExecutor()
        self._started_at = self._clock.now()
        self._started = self._clock.monotonic()
        self._run_id = f"{self._started_at:%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"
        self._warnings: list[str] = []
        self._provenance: dict[str, object] = {}
        self._readers: list[_Reader] = []

    async def to_the_end(self, interruption: Interruption) -> RunReport:
        keys = [
            (table.name, account.name) for table in self._plan.written for account, _ in self._setup.accounts
        ]
        leases = Leases(self._store, run_id=self._run_id, clock=self._clock, tables=keys)
        before = await self._executor.run(self._log.newest)
        await self._executor.run(self._prepare, leases)
        self._observer(RunStarted(run_id=self._run_id, lake=self._store.uri, tables=tuple(keys)))
        try:
            report = await self._read_and_commit(leases, interruption)
        except BaseException as error:
            gravest = _gravest(error)
            with anyio.CancelScope(shield=True):
                await self._executor.run(
                    self._abandon, leases, before is None and isinstance(gravest, AuthError)
                )
            if gravest is error:
                raise
            raise gravest from error
        self._observer(RunFinished(run_id=report.run_id, status=report.status, exit_code=report.exit_code))
        return report

    def _prepare(self, leases: Leases) -> None:
        """Make sure of the lake: it can be written, nobody else writes these tables, and it is in order."""
        self._store.check_writable()
        leases.acquire()
        try:
            for run_id in roll_forward(self._store, self._log):
                self._warn(f"finished the publication of run {run_id}, which was cut off")
            clean_orphans(
                self._store,
                self._log,
                live_runs=live_runs(self._store),
                resume_seconds=self._config.limits.resume_seconds,
            )
        except BaseException:
            leases.release()
            raise

    def _abandon(self, leases: Leases, leave_nothing: bool) -> None:
        """Remove what a run staged that committed nothing."""
        try:
            self._store.delete_folder(f"_extractor/staging/{self._run_id}")
            leases.release()
            if leave_nothing:
                self._store.delete_folder("_extractor")
        except LakeError:
            pass  # the lake itself is what failed; the next run cleans up

    async def _read_and_commit(self, leases: Leases, interruption: Interruption) -> RunReport:
        entry = await self._executor.run(self._log.newest)
        async with anyio.create_task_group() as beats:
            beats.start_soon(self._beat, leases)
            try:
                await self._read(entry, interruption)
                settled = await self._settle(entry)
                report = self._report(settled, interruption)
                if report.exit_code != 4:
                    report = await self._commit(settled, report, leases)
            finally:
                beats.cancel_scope.cancel()
        await self._executor.run(leases.release)
        return report

    async def _beat(self, leases: Leases) -> None:
        while True:
            await self._clock.sleep_until(self._clock.monotonic() + leases.heartbeat_seconds)
            await self._executor.run(leases.beat)

    # --- reading --------------------------------------------------------------------------------------------

    async def _read(self, entry: LogEntry | None, interruption: Interruption) -> None:
        budget = Budget(int(self._config.limits.memory_mb * (1 << 20)))
        async with AsyncExitStack() as stack:
            for account, key in self._setup.accounts:
                reader = await self._executor.run(self._open_reader, account, key, entry, budget)
                self._readers.append(reader)
                await reader.connect(stack)
            await read_all(self._readers, budget, self._clock, interruption, self._config.limits.run_seconds)
        for reader in self._readers:
            self._provenance[reader.account.name] = reader.provenance
            self._warnings.extend(reader.warnings)

    def _open_reader(
        self, account: Account, key: SecretText, entry: LogEntry | None, budget: Budget
    ) -> _Reader:
        now = self._clock.now()
        priors: dict[str, TableState] = {}
        for table in self._plan.active:
            if entry is not None and (table.name, account.name) in entry.tables:
                priors[table.name] = self._log.state_of(entry, table.name, account.name)
        learnt = entry.source.get("learnt_rates") if entry is not None else None
        rate = learnt.get(account.name) if isinstance(learnt, Mapping) else None
        return _Reader(
            self._config,
            self._plan,
            account,
            key,
            world=replace(self._world, executor=self._executor),
            observer=self._observer,
            budget=budget,
            priors=priors,
            schemas={table.name: self._schema(table, priors.get(table.name)) for table in self._plan.active},
            sink_of=lambda table: self._sink(table, account.name, now),
            spool_folder=self._spool_folder,
            learnt_rate=float(rate) if isinstance(rate, int | float) else None,
        )

    def _schema(self, table: TablePlan, prior: TableState | None) -> TableSchema:
        run = self._config.run
        return plan_schema(
            table.endpoint,
            prior.columns if prior is not None else (),
            policy=run.schema,
            pii=run.pii,
            secrets_allowed=table.name in run.secret,
            customer_data_allowed="customer_data" in run.allow,
        )

    def _sink(self, table: TablePlan, account: str, now: datetime) -> Sink:
        if table.mode == "keys":
            return _NoSink()
        parquet = self._config.parquet
        writer = TableWriter(
            self._store,
            table.endpoint,
            self._stamp(table, account),
            settings=WriteSettings(
                compression=parquet.compression,
                target_file_bytes=int(parquet.target_file_mb * (1 << 20)),
                row_group_bytes=min(
                    int(parquet.row_group_mb * (1 << 20)), int(self._config.limits.memory_mb * (1 << 20)) // 4
                ),
                open_files=parquet.open_files,
            ),
            snapshot_date=self._started_at.date().isoformat(),
        )
        return _WriterSink(writer, self._executor)

    def _stamp(self, table: TablePlan, account: str) -> Stamp:
        return Stamp(
            run_id=self._run_id,
            account=account,
            snapshot_at=self._started_at,
            is_event=table.endpoint.sync.is_event,
        )

    def _spool_folder(self) -> Path:
        local = self._store.local_path(f"_extractor/staging/{self._run_id}/spool")
        if local is None:
            return Path(tempfile.gettempdir())
        local.mkdir(parents=True, exist_ok=True)
        return local

    # --- settling and committing ----------------------------------------------------------------------------

    async def _settle(self, entry: LogEntry | None) -> list[Settled]:
        settled: list[Settled] = []
        for reader in self._readers:
            outcomes: dict[str, Outcome] = {}
            for planned in self._plan.active:
                table = reader.tables[planned.name]
                outcome = _outcome(planned, table, outcomes, reader.priors.get(planned.name))
                outcomes[planned.name] = outcome
                if planned.mode == "run":
                    settled.append(await self._settle_one(planned, table, outcome, reader, entry))
        return settled

    async def _settle_one(
        self, planned: TablePlan, table: TableRun, outcome: Outcome, reader: _Reader, entry: LogEntry | None
    ) -> Settled:
        sink = table.lane.sink
        assert isinstance(sink, _WriterSink)
        reading = Reading(
            endpoint=planned.endpoint,
            ledger=table.ledger,
            outcome=outcome,
            schema=table.lane.schema,
            stamp=self._stamp(planned, reader.account.name),
            spans=table.spans,
            prior=reader.priors.get(planned.name),
            expected=entry.tables.get((planned.name, reader.account.name)) if entry is not None else None,
            checks=self._config.checks_of(planned.name),
            is_accepted=planned.name in self._accepted,
            moment=self._started_at.astimezone(UTC) + (reader.run.server_offset or timedelta()),
            compression=self._config.parquet.compression,
        )
        settled = await self._executor.run(settle_table, self._store, reading, sink.writer)
        for warning in settled.warnings:
            self._warn(warning)
        self._observer(
            TableFinished(
                table=planned.name,
                account=reader.account.name,
                status=settled.report.status,
                rows=settled.report.rows,
                reason=settled.report.reason,
            )
        )
        return settled

    def _report(self, settled: Sequence[Settled], interruption: Interruption) -> RunReport:
        tables = [item.report for item in settled]
        for planned in self._plan.tables:
            if planned.mode == "skip":
                tables.extend(
                    TableReport(
                        name=planned.name, account=account.name, status="skipped", reason=planned.reason
                    )
                    for account, _ in self._setup.accounts
                )
        exit_code = interruption.exit_code or exit_code_of(tables)
        seconds = self._clock.monotonic() - self._started
        drift = tuple(
            line if count == 1 else f"{line} ({count} pages)"
            for reader in self._readers
            for table in reader.tables.values()
            for line, count in table.ledger.drift.items()
        )
        return RunReport(
            run_id=self._run_id,
            status="complete" if exit_code == 0 else "interrupted" if interruption.exit_code else "partial",
            exit_code=exit_code,
            lake=self._store.uri,
            started_at=self._started_at.isoformat(),
            finished_at=self._clock.now().isoformat(),
            seconds=round(seconds, 3),
            tables=tuple(tables),
            requests=_figures(self._readers, seconds),
            drift=drift,
            warnings=tuple(self._warnings),
            message=_message(exit_code, tables, interruption),
        )

    async def _commit(self, settled: Sequence[Settled], report: RunReport, leases: Leases) -> RunReport:
        updates = [item.update for item in settled if item.update is not None]
        source = {
            "base_url": self._config.source.base_url,
            "accounts": [account.name for account, _ in self._setup.accounts],
            "credentials": self._provenance,
            "learnt_rates": {
                reader.account.name: reader.run.limiter.learnt
                for reader in self._readers
                if reader.run.limiter.learnt is not None
            },
        }
        entry = await self._executor.run(
            commit,
            self._store,
            self._log,
            run_id=self._run_id,
            updates=updates,
            summary=report.to_json(),
            source=source,
            started_at=self._started_at,
            clock=self._clock,
            leases=leases,
            status=report.status,
        )
        self._observer(
            Committed(
                sequence=entry.sequence,
                run_id=self._run_id,
                files=report.files,
                rows=report.rows,
                size_bytes=report.size_bytes,
            )
        )
        try:
            await self._executor.run(publish, self._store, self._log, entry)
        except LakeError as error:
            raise LakeError(
                f"run {self._run_id} is committed, but publishing was cut off: {error.message}; "
                "the next run finishes it"
            ) from error
        return report

    def _warn(self, message: str) -> None:
        self._warnings.append(message)
        self._observer(Warned(message=message))


def _gravest(error: BaseException) -> BaseException:
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


def _outcome(
    planned: TablePlan, table: TableRun, outcomes: Mapping[str, Outcome], prior: TableState | None
) -> Outcome:
    parent = planned.endpoint.parent
    is_asked_whole = parent is None or (bool(parent.fallback_on) and not table.ledger.parents)
    above = None if is_asked_whole or parent is None else outcomes[parent.endpoint]
    return table.ledger.outcome(above, had_rows=prior is not None and prior.rows > 0)


def _figures(readers: Sequence[_Reader], seconds: float) -> RequestFigures:
    counts = [reader.run.figures for reader in readers]
    permitted = sum(reader.run.limiter.statistics().rate for reader in readers) * max(seconds, 1e-9)
    sent = sum(count.sent for count in counts)
    return RequestFigures(
        sent=sent,
        succeeded=sum(count.succeeded for count in counts),
        retried=sum(count.retried for count in counts),
        throttled=sum(count.throttled for count in counts),
        failed=sum(count.failed for count in counts),
        received_bytes=sum(reader.run.fetcher.received_bytes for reader in readers),
        rate_share=round(min(1.0, sent / permitted), 3) if permitted else 0.0,
    )


def _message(exit_code: int, tables: Sequence[TableReport], interruption: Interruption) -> str:
    if interruption.exit_code:
        return interruption.reason
    faults = [table for table in tables if table.status not in ("complete", "absent", "skipped")]
    match exit_code:
        case 0:
            return ""
        case 4:
            return "the key may read nothing that was selected"
        case _ if faults:
            first = faults[0]
            more = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
            return f"{first.name}{more}: {first.status}: {first.reason}"
        case _:
            return "not every table is complete"


# --- one account --------------------------------------------------------------------------------------------


class _Reader:
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
    ) -> None:
        self.account = account
        self.priors = priors
        self.provenance: Mapping[str, object] = {}
        self.warnings: list[str] = []
        self.tables: dict[str, TableRun] = {}
        self._config = config
        self._clock = world.clock
        self._tasks: anyio.abc.TaskGroup | None = None
        fetch_limits = _fetch_limits(config)
        self._fetchers = [
            Fetcher(
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
            spawn=self._start,
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
        ledger = Ledger(table=planned.name)
        bounds = self._config.bounds
        assert world.executor is not None
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
            on_pressure=self._relieve,
        )
        return TableRun(
            endpoint=endpoint,
            ledger=ledger,
            lane=lane,
            spans=self._spans(planned),
            columns=frozenset(field.source for field in schema.fields),
            is_dormant=bool(endpoint.parent and endpoint.parent.fallback_on),
        )

    def _spans(self, planned: TablePlan) -> tuple[Span, ...]:
        window = planned.endpoint.sync.window
        if window is None:
            return ()
        prior = self.priors.get(planned.name)
        state = prior.state.get("windows") if prior is not None else None
        done, holes = None, ()
        if isinstance(state, Mapping) and state.get("done_until"):
            done = datetime.fromisoformat(str(state["done_until"]))
            holes = tuple(state.get("holes") or ())
        return plan_windows(
            window, since=self._config.run.since, now=self._clock.now(), done_until=done, holes=holes
        )

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
        self._tasks.start_soon(work)

    def use(self, tasks: anyio.abc.TaskGroup) -> None:
        """Let lanes live in this task group."""
        self._tasks = tasks

    async def _relieve(self) -> None:
        """Rows fill the budget: write out the table that holds most."""
        fullest = max(self.tables.values(), key=lambda table: table.lane.sink.buffered_bytes)
        if fullest.lane.sink.buffered_bytes:
            await fullest.lane.flush()

    async def _exchange(self) -> TokenAnswer:
        """Exchange the key for a token (MariaDB ID, `POST` token endpoint)."""
        response = await self._fetchers[1].fetch(
            self._identity_request("POST", self._config.source.token_url)
        )
        return read_token_answer(response.read(), date_header=parse_date(response.headers.get("date", "")))

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
    readers: Sequence[_Reader],
    budget: Budget,
    clock: Clock,
    interruption: Interruption,
    run_seconds: float,
) -> None:
    """Drain every account's frontier; return early, with what is decoded, when the run is told to end."""
    async with anyio.create_task_group() as watch:

        async def stop_when_told() -> None:
            await interruption.wait()
            for reader in readers:
                reader.run.frontier.forget()
            await clock.sleep_until(clock.monotonic() + _GRACE_SECONDS)
            drains.cancel_scope.cancel()

        async def stop_in_time() -> None:
            await clock.sleep_until(clock.monotonic() + run_seconds)
            interruption.set(9, f"the run's deadline of {run_seconds:g} s passed (limits.run_seconds)")

        watch.start_soon(stop_when_told)
        if run_seconds:
            watch.start_soon(stop_in_time)
        async with anyio.create_task_group() as lanes, anyio.create_task_group() as drains:
            for reader in readers:
                reader.use(lanes)
                reader.run.start()
                drains.start_soon(_drain, reader, budget, clock)
        watch.cancel_scope.cancel()


async def _drain(reader: _Reader, budget: Budget, clock: Clock) -> None:
    run = reader.run
    await drain(run.frontier, slots=run.limiter, clock=clock, attempt=run.attempt, admit=budget.admit)


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


# --- without a lake -----------------------------------------------------------------------------------------


class _StreamSink:
    """Hands batches to whoever iterates; its send waits, so that back-pressure reaches the socket."""

    buffered_bytes = 0

    def __init__(self, send: Callable[[pa.RecordBatch], Awaitable[None]]) -> None:
        self._send = send

    async def take(self, parts: Sequence[Part]) -> None:
        for part in parts:
            await self._send(part.batch)

    async def flush(self) -> None:
        return


async def stream(
    name: str,
    config: Config,
    *,
    key_file: str = "",
    observer: Observer = ignore,
    environment: Mapping[str, str] | None = None,
) -> AsyncIterator[pa.RecordBatch]:
    """The record batches of one endpoint, as they arrive; no lake is involved.

    Batches have the table's columns and `_rescued_data`. Rows of repeated pages are not removed. The iteration
    ends normally only if the endpoint is complete.

    Raises:
        ConfigError, AuthError, SourceUnreachable: as `extract`.
        ExtractError: the endpoint is not complete, and why.
    """
    chosen = replace_run(config, include=(name,), exclude=(), tags=())
    world = World(
        clock=SystemClock(),
        chance=random.random,
        environment=os.environ if environment is None else environment,
        executor=ThreadExecutor(),
    )
    setup = _set_up(chosen, key_file, world, ())
    budget = Budget(int(config.limits.memory_mb * (1 << 20)))
    send, receive = anyio.create_memory_object_stream[pa.RecordBatch](1)
    account, key = setup.accounts[0]
    with tempfile.TemporaryDirectory(prefix="skysql-extract-") as folder:
        reader = _Reader(
            chosen,
            setup.plan,
            account,
            key,
            world=world,
            observer=observer,
            budget=budget,
            priors={},
            schemas={
                t.name: plan_schema(t.endpoint, policy=chosen.run.schema, pii=chosen.run.pii)
                for t in setup.plan.active
            },
            sink_of=lambda table: _StreamSink(send.send) if table.name == name else _NoSink(),
            spool_folder=lambda: Path(folder),
            learnt_rate=None,
        )

        async def read() -> None:
            async with send, AsyncExitStack() as stack:
                await reader.connect(stack)
                await read_all([reader], budget, world.clock, Interruption(), 0)

        async with anyio.create_task_group() as tasks, receive:
            tasks.start_soon(read)
            async for batch in receive:
                yield batch
    outcomes: dict[str, Outcome] = {}
    for planned in setup.plan.active:
        outcomes[planned.name] = _outcome(planned, reader.tables[planned.name], outcomes, None)
    if outcomes[name].status not in ("complete", "absent"):
        raise ExtractError(f"{name}: {outcomes[name].status}: {outcomes[name].reason}")


def replace_run(config: Config, **changes: object) -> Config:
    """The configuration with some keys of `[run]` changed."""
    import msgspec

    return msgspec.structs.replace(config, run=msgspec.structs.replace(config.run, **changes))
