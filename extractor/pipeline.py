"""The one place where the stages are joined: plan → read → settle → commit → publish.

`extract` is a whole run. What it needs of the world (clock, chance, environment, executor, observer) is passed in.
The reading half yields data files in staging and touches nothing that others see; the committing half makes all of
them visible at once.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from datetime import UTC, timedelta
from functools import partial
from pathlib import Path

import anyio
import anyio.abc

from extractor.account import TableRun
from extractor.batch import Stamp
from extractor.checks import check_schema
from extractor.clock import SystemClock
from extractor.commit import Update, clean_orphans, commit, publish, roll_forward
from extractor.commitlog import CommitLog, LogEntry, TableState
from extractor.config import Account, Config, SecretText
from extractor.errors import (
    AuthError,
    ConfigError,
    LakeBusy,
    LakeError,
)
from extractor.events import Committed, Observer, RunFinished, RunStarted, TableFinished, Warned, ignore
from extractor.evolution import drift_lines, null_keys_of
from extractor.journal import Found, Journal, Origin, read_rows
from extractor.lake import Lake
from extractor.lane import Budget, Executor, Part, Sink, ThreadExecutor
from extractor.lease import Leases, TableKey, live_runs
from extractor.ledger import Outcome
from extractor.plan import Span, TablePlan
from extractor.reader import (
    Interruption,
    NoSink,
    Reader,
    Setup,
    World,
    gravest,
    outcome_of,
    read_all,
    set_up,
    user_agent,
)
from extractor.references import Referring, hold_back_dangling
from extractor.report import RequestFigures, RunReport, TableReport, exit_code_of, report_from_json
from extractor.resume import (
    FILES_A_GENERATION,
    Standing,
    configuration_digest,
    find_run,
    replay,
    settled_tables,
    standing_of,
)
from extractor.schema import TableSchema, plan_schema
from extractor.settle import Reading, Settled, settle_table
from extractor.store import STAGING, Store
from extractor.stores import open_store
from extractor.windows import follows
from extractor.write import RowGroup, TableWriter, WriteSettings

__all__ = ("Interruption", "Run", "World", "WriterSink", "extract")

_BUSY_SECONDS = 0.2
_PATIENCE_SECONDS = 2.0


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
    setup = set_up(config, key_file, world, accept)
    store = world.store or open_store(config.lake.uri)
    run = Run(setup, store, world, observer, frozenset(accept))
    return await run.to_the_end(interruption or Interruption())


class WriterSink:
    """A table's writer as the lane's sink: what computes is done off the event loop."""

    def __init__(self, writer: TableWriter, executor: Executor, *, is_event: bool) -> None:
        self.writer = writer
        self._executor = executor
        self._is_event = is_event

    @property
    def buffered_bytes(self) -> int:
        return self.writer.buffered_bytes

    @property
    def is_full(self) -> bool:
        return self.writer.is_full

    async def take(self, parts: Sequence[Part]) -> None:
        # Only events have to be looked at, for the days on which they happened.
        for part in parts:
            split = partial(
                self.writer.partition, part.batch, window=part.window, received_at=part.received_at
            )
            self.writer.keep(await self._executor.run(split) if self._is_event else split())

    async def write(self) -> None:
        await self._write(self.writer.take_groups())

    async def flush(self) -> None:
        await self._write(self.writer.take_groups(everything=True))

    async def _write(self, groups: Sequence[RowGroup]) -> None:
        await self._executor.run(self.writer.write_groups, groups)
        self.writer.let_go(groups)


class Run:
    """One run: what it holds while it lasts."""

    def __init__(
        self, setup: Setup, store: Store, world: World, observer: Observer, accepted: frozenset[str]
    ) -> None:
        self._setup = setup
        self._config = setup.config
        self._plan = setup.plan
        self._store = store
        self._log = CommitLog(store)
        self._world = world
        self._clock = world.clock
        self._secrets = world.secrets
        self._observer = self._secrets.observer(observer)
        self._accepted = accepted
        self._executor = world.executor or ThreadExecutor()
        self._own_start = self._clock.now()
        """By the clock of this machine, whatever the log says."""
        self._started_at = self._own_start
        self._started = self._clock.monotonic()
        self._run_id = f"{self._started_at:%Y%m%dT%H%M%SZ}-{world.token(4)}"
        self._warnings: list[str] = []
        self._provenance: dict[str, object] = {}
        self._readers: list[Reader] = []
        self._numbers: dict[tuple[str, str], dict[str, int]] = {}
        self._given_spans: Mapping[str, tuple[Span, ...]] | None = None
        """The windows to read where it is not the state that says so."""
        self._configuration = configuration_digest(self._config, self._plan)
        self._journal: Journal | None = None
        self._found: Found | None = None
        self._standing = Standing(done=frozenset(), afresh=frozenset())
        self._earlier: Mapping[TableKey, TableReport] = {}
        """What was reported of the tables that this run committed before it was stopped."""
        self._may_be_committed = False
        """True from before the put of the log on: what is staged may then be all there is of committed files."""

    async def to_the_end(self, interruption: Interruption) -> RunReport:
        keys = [
            (table.name, account.name) for table in self._plan.written for account, _ in self._setup.accounts
        ]
        before = await self._executor.run(self._log.newest)
        leases = await self._hold_tables(keys, interruption)
        if leases is None:
            return self._secrets.report(self._told_while_waiting(interruption))
        self._observer(RunStarted(run_id=self._run_id, lake=self._store.uri, tables=tuple(keys)))
        try:
            report = await self._read_and_commit(leases, interruption)
        except BaseException as error:
            told = self._gravest(error)
            with anyio.CancelScope(shield=True):
                await self._executor.run(self._abandon, leases, told, before is None)
            if told is error:
                raise
            raise told from error
        if before is None and report.exit_code == 4 and not self._is_resumable:
            with suppress(LakeError):
                await self._executor.run(self._withdraw)
        self._observer(RunFinished(run_id=report.run_id, status=report.status, exit_code=report.exit_code))
        return report

    def _gravest(self, error: BaseException) -> BaseException:
        """Of a group of errors the one to tell of, without what nobody may know."""
        told = gravest(error)
        self._secrets.clean(error)
        self._secrets.clean(told)
        return told

    def _told_while_waiting(self, interruption: Interruption) -> RunReport:
        reason = f"{interruption.reason}, while another verb had the tables"
        return self._sum_up(interruption.exit_code, (), RequestFigures(), (), reason, interruption)

    async def _hold_tables(self, keys: Sequence[TableKey], interruption: Interruption) -> Leases | None:
        """Take the tables, under the id of the run that was stopped if there is one to go on with.

        Leases in its name keep it from being cleaned up. None if the run was told to end while others had them.
        """
        while True:
            found = await self._executor.run(self._find_stopped_run)
            run_id = found.origin.run_id if found is not None else self._run_id
            leases = Leases(
                self._store, run_id=run_id, clock=self._clock, tables=keys, token=self._world.token(16)
            )
            if not await self._hold_unless_told(leases, interruption):
                await self._executor.run(leases.release)
                return None
            try:
                # Until the leases were there, another process may have finished the run.
                if found is None or await self._executor.run(self._take_up, run_id, keys):
                    return leases
            except BaseException:
                with anyio.CancelScope(shield=True), suppress(LakeError):
                    await self._executor.run(leases.release)
                raise
            await self._executor.run(leases.release)

    async def _hold_unless_told(self, leases: Leases, interruption: Interruption) -> bool:
        """Wait for the tables; False if the run was told to end while others had them."""
        is_held = False
        try:
            async with anyio.create_task_group() as tasks:

                async def stop_when_told() -> None:
                    await interruption.wait()
                    # What is complete is committed, unless that would have to wait.
                    await self._clock.sleep_until(self._clock.monotonic() + _PATIENCE_SECONDS)
                    tasks.cancel_scope.cancel()

                tasks.start_soon(self._stop_in_time, interruption)
                tasks.start_soon(stop_when_told)
                await self._hold(leases)
                is_held = True
                tasks.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            told = gravest(group)
            if told is group:
                raise
            raise told from None
        return is_held

    async def _hold(self, leases: Leases) -> None:
        """Take the tables and prepare the lake; what has them only for a moment is waited for."""
        while True:
            try:
                return await self._executor.run(self._prepare, leases)
            except LakeBusy as busy:
                if not busy.is_brief:
                    raise
            await self._clock.sleep_until(self._clock.monotonic() + _BUSY_SECONDS)

    def _prepare(self, leases: Leases) -> None:
        """Make sure of the lake: it can be written, nobody else writes these tables, and it is in order."""
        self._store.check_writable()
        leases.acquire()
        try:
            for run_id in roll_forward(self._store, self._log, leases):
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

    def _find_stopped_run(self) -> Found | None:
        return find_run(
            self._store,
            version=user_agent(),
            configuration=self._configuration,
            resume_seconds=self._config.limits.resume_seconds,
        )

    def _take_up(self, run_id: str, keys: Sequence[TableKey]) -> bool:
        """Go on as the run that was stopped; False if there is nothing left of it."""
        found = self._find_stopped_run()
        if found is None or found.origin.run_id != run_id:
            return False
        entry = self._log.newest()
        told = _tables_told(self._log, run_id)
        standing = standing_of(self._log, entry, found, keys)
        self._standing = Standing(
            done=standing.done & told.keys(), afresh=standing.afresh | (standing.done - told.keys())
        )
        self._earlier = {key: told[key] for key in self._standing.done}
        committed = entry.sequence if entry is not None else 0
        self._found = found.claim(self._store, committed=committed, afresh=sorted(self._standing.afresh))
        self._run_id, self._started_at = run_id, found.origin.started_at
        self._own_start = found.origin.own_start
        # Files without a footer are nothing, and whole ones are of chains that may go on otherwise.
        for stored in list(self._store.list(f"{STAGING}/{run_id}")):
            if not stored.path.startswith(f"{STAGING}/{run_id}/journal/"):
                self._store.delete(stored.path)
        return True

    def _open_journal(self, newest: LogEntry | None) -> None:
        """Only a run that may be taken up keeps one."""
        limits = self._config.limits
        if limits.resume_seconds <= 0:
            return
        origin = Origin(
            run_id=self._run_id,
            version=user_agent(),
            configuration=self._configuration,
            started_at=self._started_at,
            own_start=self._own_start,
            committed=newest.sequence if newest is not None else 0,
        )
        self._journal = Journal(
            self._store,
            origin,
            generation=len(self._found.claims) if self._found is not None else 0,
            executor=self._executor,
            memory_bytes=int(limits.memory_mb * (1 << 20)),
            conceal=self._secrets.text,
        )

    @property
    def _staging(self) -> str:
        """The folder of what this run has written and not published."""
        return f"{STAGING}/{self._run_id}"

    @property
    def _is_resumable(self) -> bool:
        return self._journal is not None and self._journal.is_begun

    def _abandon(self, leases: Leases, error: BaseException, is_new_lake: bool) -> None:
        """Remove what a run staged that committed nothing and cannot be taken up; a new lake becomes as it was."""
        is_refused = is_new_lake and isinstance(error, AuthError | ConfigError)
        is_wanted = self._is_resumable and (self._found is not None or not is_refused)
        try:
            if not self._may_be_committed and not is_wanted:
                self._store.delete_folder(self._staging)
            leases.release()
            if is_new_lake and not self._may_be_committed and not is_wanted:
                self._withdraw()
        except LakeError:
            pass  # the lake itself is what failed; the next run cleans up

    def _withdraw(self) -> None:
        """Leave nothing of a lake in which nothing was ever committed, unless somebody else uses it."""
        if self._log.newest() is None and not live_runs(self._store):
            for stored in list(self._store.list("_extractor/leases")):
                self._store.delete(stored.path)
            self._store.withdraw()

    async def _read_and_commit(self, leases: Leases, interruption: Interruption) -> RunReport:
        entry = await self._executor.run(self._log.newest)
        if entry is not None and entry.committed_at > self._started_at and self._found is None:
            self._started_at = entry.committed_at
            self._warn(
                "this machine's clock is behind the newest commit; the run has its time, "
                f"{entry.committed_at:%Y-%m-%dT%H:%M:%SZ}"
            )
        self._open_journal(entry)
        async with anyio.create_task_group() as beats:
            beats.start_soon(self._beat, leases)
            try:
                await self._read(entry, interruption)
                settled = await self._settle(entry)
                report = self._secrets.report(self._report(settled, interruption))
                if report.exit_code != 4:
                    report = await self._commit(settled, report, leases)
                elif not self._is_resumable:
                    await self._executor.run(self._store.delete_folder, self._staging)
            finally:
                beats.cancel_scope.cancel()
        with suppress(LakeError):  # all is committed; the tables are free as soon as the holder is silent
            await self._executor.run(leases.release)
        return report

    async def _beat(self, leases: Leases) -> None:
        while True:
            await self._clock.sleep_until(self._clock.monotonic() + leases.heartbeat_seconds)
            await self._executor.run(leases.beat)

    # --- reading --------------------------------------------------------------------------------------------

    async def _read(self, entry: LogEntry | None, interruption: Interruption) -> None:
        budget = Budget(int(self._config.limits.memory_mb * (1 << 20)))
        for account, key in self._setup.accounts:
            self._readers.append(await self._executor.run(self._open_reader, account, key, entry, budget))
        await self._executor.run(self._check_columns)
        async with anyio.create_task_group() as watch:
            watch.start_soon(self._stop_in_time, interruption)
            await self._go_on(interruption)
            if self._journal is not None:
                watch.start_soon(self._journal.keep, self._clock, self._hurry)
            async with AsyncExitStack() as stack:
                await self._connect_all(stack, interruption)
                if not interruption.exit_code:
                    await read_all(self._readers, budget, self._clock, interruption)
            watch.cancel_scope.cancel()
        if self._journal is not None and (self._journal.is_begun or interruption.exit_code):
            await self._journal.save()
        for reader in self._readers:
            self._provenance[reader.account.name] = reader.provenance
            self._warnings.extend(reader.warnings)

    async def _go_on(self, interruption: Interruption) -> None:
        """Bring the readers to where the run was stopped, if it was."""
        if self._found is None:
            return
        readers = {reader.account.name: reader for reader in self._readers}
        pages = await replay(
            self._store, self._found, readers, executor=self._executor, interruption=interruption
        )
        self._warn(f"took up run {self._run_id}, which was stopped: {pages} pages were safe")

    def _hurry(self) -> None:
        for reader in self._readers:
            for table in reader.tables.values():
                table.lane.hurry()

    async def _stop_in_time(self, interruption: Interruption) -> None:
        seconds = self._config.limits.run_seconds
        if seconds:
            await self._clock.sleep_until(self._started + seconds)
            interruption.set(9, f"the run's deadline of {seconds:g} s passed (limits.run_seconds)")

    async def _connect_all(self, stack: AsyncExitStack, interruption: Interruption) -> None:
        """Open every account's connections, unless the run is told to end meanwhile."""
        async with anyio.create_task_group() as tasks:

            async def stop_when_told() -> None:
                await interruption.wait()
                tasks.cancel_scope.cancel()

            tasks.start_soon(stop_when_told)
            for reader in self._readers:
                await self._connect(reader, stack)
            tasks.cancel_scope.cancel()

    async def _connect(self, reader: Reader, stack: AsyncExitStack) -> None:
        try:
            await reader.connect(stack)
        except AuthError as error:
            if len(self._setup.accounts) == 1:
                raise
            reader.run.refuse(error.message)

    def _open_reader(
        self, account: Account, key: SecretText, entry: LogEntry | None, budget: Budget
    ) -> Reader:
        priors: dict[str, TableState] = {}
        for table in self._plan.active:
            if entry is not None and (table.name, account.name) in entry.tables:
                priors[table.name] = self._log.state_of(entry, table.name, account.name)
        learnt = entry.source.get("learnt_rates") if entry is not None else None
        rate = learnt.get(account.name) if isinstance(learnt, Mapping) else None
        return Reader(
            self._config,
            self._plan,
            account,
            key,
            world=replace(self._world, executor=self._executor),
            observer=self._observer,
            budget=budget,
            priors=priors,
            schemas={table.name: self._schema(table, priors.get(table.name)) for table in self._plan.active},
            sink_of=lambda table: self._sink(table, account.name),
            spool_folder=self._spool_folder,
            learnt_rate=float(rate) if isinstance(rate, int | float) else None,
            spans=self._given_spans,
            moment=self._own_start,
            journal=self._journal,
            recall=partial(read_rows, self._store),
            settled=settled_tables(
                self._plan, {table for table, owner in self._standing.done if owner == account.name}
            ),
        )

    def _schema(self, table: TablePlan, prior: TableState | None) -> TableSchema:
        run = self._config.run
        planned = plan_schema(
            table.endpoint,
            prior.columns if prior is not None else (),
            # What is accepted for once may bring what the policy refuses.
            policy="evolve" if run.schema == "fail" and table.name in self._accepted else run.schema,
            pii=run.pii,
            secrets_allowed=table.name in run.secret,
            customer_data_allowed="customer_data" in run.allow,
        )
        return replace(planned, null_keys=null_keys_of(prior))

    def _check_columns(self) -> None:
        """Return if the columns that checks name are known, as far as catalogue and lake tell."""
        schemas: dict[str, list[TableSchema]] = {}
        for planned in self._plan.active if self._config.table_checks else ():
            schemas[planned.name] = [
                self._schema(planned, reader.priors.get(planned.name)) for reader in self._readers
            ]
        check_schema(self._config, schemas)

    def _sink(self, table: TablePlan, account: str) -> Sink:
        if table.mode == "keys" or (table.name, account) in self._standing.done:
            return NoSink()
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
            numbers=self._numbers.setdefault((table.name, account), {}),
            first_number=len(self._found.claims) * FILES_A_GENERATION if self._found is not None else 0,
        )
        return WriterSink(writer, self._executor, is_event=table.endpoint.sync.is_event)

    def _stamp(self, table: TablePlan, account: str) -> Stamp:
        return Stamp(
            run_id=self._run_id,
            account=account,
            snapshot_at=self._started_at,
            is_event=table.endpoint.sync.is_event,
        )

    def _spool_folder(self) -> Path:
        local = self._store.local_path(f"{self._staging}/spool")
        if local is None:
            return Path(tempfile.gettempdir())
        local.mkdir(parents=True, exist_ok=True)
        return local

    # --- settling and committing ----------------------------------------------------------------------------

    async def _close_files(self) -> None:
        """Complete the files of all tables side by side: most of that is waiting for the disk."""
        async with anyio.create_task_group() as tasks:
            for reader in self._readers:
                for table in reader.tables.values():
                    sink = table.lane.sink
                    if isinstance(sink, WriterSink) and table.ledger.is_any_complete:
                        tasks.start_soon(self._executor.run, sink.writer.close)

    async def _settle(self, entry: LogEntry | None) -> list[Settled]:
        settled: list[Settled] = []
        await self._close_files()
        for reader in self._readers:
            outcomes: dict[str, Outcome] = {}
            for planned in self._plan.active:
                table = reader.tables[planned.name]
                earlier = self._earlier.get((planned.name, reader.account.name))
                if earlier is not None:
                    outcomes[planned.name] = Outcome(status=earlier.status, reason=earlier.reason)
                    settled.append(Settled(report=earlier, update=None))
                    continue
                outcome = outcome_of(planned, table, outcomes, reader.priors.get(planned.name))
                outcomes[planned.name] = outcome
                if planned.mode == "run":
                    above = planned.endpoint.parent
                    # A follower is told window by window what came of its parent.
                    is_whole = not table.ledger.parents_without_value and (
                        not above
                        or above.endpoint not in outcomes
                        or outcomes[above.endpoint].status == "complete"
                        or table.is_follower
                    )
                    found = await self._settle_one(planned, table, outcome, reader, entry, is_whole)
                    settled.append(found)
                    # Children are judged by what became of their parent, checks included.
                    outcomes[planned.name] = Outcome(status=found.report.status, reason=found.report.reason)
        if any(checks.references for checks in self._config.table_checks.values()):
            settled = await self._executor.run(self._look_up_references, settled, entry)
        for found in settled:
            self._finish_table(found)
        return settled

    def _look_up_references(self, settled: Sequence[Settled], entry: LogEntry | None) -> list[Settled]:
        def standing(table: str, account: str) -> TableState | None:
            is_there = entry is not None and (table, account) in entry.tables
            return self._log.state_of(entry, table, account) if entry is not None and is_there else None

        lake = Lake(self._store)
        referring = Referring(
            run_id=self._run_id,
            checks_of=self._config.checks_of,
            parents={
                planned.name: planned.endpoint.parent.endpoint
                for planned in self._plan.active
                if planned.endpoint.parent
            },
            accepted=self._accepted,
            standing=standing,
            place_of=lambda path: lake.locate(path, entry) if entry is not None else path,
            is_there=self._store.exists,
        )
        return hold_back_dangling(self._store, settled, referring)

    def _finish_table(self, settled: Settled) -> None:
        for warning in settled.warnings:
            self._warn(warning)
        self._observer(
            TableFinished(
                table=settled.report.name,
                account=settled.report.account,
                status=settled.report.status,
                rows=settled.report.rows,
                reason=settled.report.reason,
            )
        )

    async def _settle_one(
        self,
        planned: TablePlan,
        table: TableRun,
        outcome: Outcome,
        reader: Reader,
        entry: LogEntry | None,
        is_parent_whole: bool,
    ) -> Settled:
        sink = table.lane.sink
        assert isinstance(sink, WriterSink)
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
            is_parent_whole=is_parent_whole,
            moment=self._own_start.astimezone(UTC) + (reader.run.server_offset or timedelta()),
            compression=self._config.parquet.compression,
            versions=table.versions,
            is_backfill=self._given_spans is not None,
        )
        source = follows(planned.endpoint, self._plan)
        if source is not None and planned.endpoint.parent is not None:
            reading = replace(
                reading,
                spans=reader.tables[source.name].spans,
                followed=source.endpoint.sync.window,
                parent_windows=reader.whole_windows(planned.endpoint.parent.endpoint),
            )
        return await self._executor.run(settle_table, self._store, reading, sink.writer)

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
        judged = exit_code_of(tables)
        exit_code = judged if judged == 4 else interruption.exit_code or judged
        drift = [line for item in settled for line in item.drift]
        # Of tables that are read for the sake of others nothing is settled.
        for reader in self._readers:
            for planned in self._plan.active:
                if planned.mode == "keys":
                    ledger = reader.tables[planned.name].ledger
                    drift += drift_lines(ledger, reader.priors.get(planned.name), reader.account.name)
        message = _message(exit_code, tables, interruption)
        figures = _figures(self._readers, self._clock.monotonic() - self._started)
        return self._sum_up(exit_code, tables, figures, drift, message, interruption)

    def _sum_up(
        self,
        exit_code: int,
        tables: Sequence[TableReport],
        figures: RequestFigures,
        drift: Iterable[str],
        message: str,
        interruption: Interruption,
    ) -> RunReport:
        return RunReport(
            run_id=self._run_id,
            status="complete" if exit_code == 0 else "interrupted" if interruption.exit_code else "partial",
            exit_code=exit_code,
            lake=self._store.uri,
            started_at=self._started_at.isoformat(),
            finished_at=self._clock.now().isoformat(),
            seconds=round(self._clock.monotonic() - self._started, 3),
            tables=tuple(tables),
            requests=figures,
            drift=tuple(drift),
            warnings=tuple(dict.fromkeys(self._warnings)),
            message=message,
        )

    async def _commit(
        self, settled: Sequence[Settled], report: RunReport, leases: Leases, *, is_final: bool = True
    ) -> RunReport:
        is_stopped = report.status == "interrupted" and any(
            table.status not in ("complete", "absent", "skipped") for table in report.tables
        )
        updates = [self._told(item.update) for item in settled if item.update is not None]
        source = {
            "base_url": self._config.source.base_url,
            "accounts": [account.name for account, _ in self._setup.accounts],
            "credentials": self._secrets.values(self._provenance),
            "learnt_rates": {
                reader.account.name: reader.run.limiter.learnt
                for reader in self._readers
                if reader.run.limiter.learnt is not None
            },
        }
        self._may_be_committed = True
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
            is_final=is_final and not (is_stopped and self._is_resumable),
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

    def _told(self, update: Update) -> Update:
        return replace(update, state=replace(update.state, reason=self._secrets.text(update.state.reason)))

    def _warn(self, message: str) -> None:
        self._warnings.append(message)
        self._observer(Warned(message=message))


def _tables_told(log: CommitLog, run_id: str) -> dict[TableKey, TableReport]:
    """What the entries of a run say of the tables that they made complete."""
    told: dict[TableKey, TableReport] = {}
    newest = log.newest()
    for sequence in newest.publishing.get(run_id, ()) if newest is not None else ():
        entry = log.read(sequence)
        for table in report_from_json(entry.summary).tables:
            if table.status == "complete":
                told[table.name, table.account] = table
    return told


def _figures(readers: Sequence[Reader], seconds: float) -> RequestFigures:
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
