"""Past windows of one endpoint: read a few at a time, and committed as they are done.

A backfill holds its tables only while it commits, so that runs go on beside it: it waits for a run that holds them,
and a run waits for it. What a run will read next does not change for it. The windows that are done stand in the
state of the table until all of them are, so that a backfill that was cut off goes on where it was.
"""

from __future__ import annotations

import difflib
import os
import random
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio

from extractor.catalog import load_catalog
from extractor.clock import SystemClock
from extractor.commitlog import LogEntry, TableState
from extractor.config import Config, with_run
from extractor.endpoint import Endpoint
from extractor.errors import ConfigError, LakeError
from extractor.events import Observer, RunFinished, RunStarted, ignore
from extractor.lease import Leases
from extractor.pipeline import Run, WriterSink
from extractor.plan import Span, TablePlan, make_plan, plan_windows
from extractor.reader import Interruption, Setup, World, prepared
from extractor.report import RequestFigures, RunReport, TableReport, exit_code_of
from extractor.settle import BACKFILL_STATE, Settled
from extractor.stores import open_store
from extractor.windows import source_of

__all__ = ("backfill", "parse_moment")


async def backfill(
    name: str,
    config: Config,
    *,
    start: datetime,
    end: datetime,
    parallel: int = 4,
    accept: Sequence[str] = (),
    key_file: str = "",
    observer: Observer = ignore,
    interruption: Interruption | None = None,
    environment: Mapping[str, str] | None = None,
    world: World | None = None,
) -> RunReport:
    """Read the windows of endpoint `name` that touch the time from `start` to before `end`, `parallel` at a time.

    Tables that hang on its rows and are selected by the configuration are filled with it. Called again with the
    same times after it was cut off, it goes on with what is left. Tables of `accept` are published although a check
    holds them back.

    Raises:
        ConfigError: there is no such endpoint, it has no window, or the times make none; nothing was requested.
        AuthError, LakeError, SourceUnreachable: as `extract`; what was committed before stays.
    """
    if world is None:
        world = World(
            clock=SystemClock(),
            chance=random.random,
            environment=os.environ if environment is None else environment,
        )
    if end <= start:
        raise ConfigError(f"backfill {name}: --to {end:%Y-%m-%d} is not after --from {start:%Y-%m-%d}")
    if parallel < 1:
        raise ConfigError(f"backfill {name}: --parallel must be at least 1")
    setup, source = _set_up(name, config, key_file, world)
    for table in accept:
        if table not in {planned.name for planned in setup.plan.written}:
            raise ConfigError(f"backfill {name}: --accept {table}: it does not fill that table")
    window = source.sync.window
    assert window is not None
    until = min(end, world.clock.now())
    if until <= start:
        raise ConfigError(f"backfill {name}: --from {start:%Y-%m-%d} lies in the future")
    spans = plan_windows(window, since="all", now=until - timedelta(microseconds=1), done_until=start)
    if not window.step and window.to_param:
        spans = tuple(replace(span, end=until) for span in spans)
    label = f"{start.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}..{end.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
    work = _Backfill(
        setup,
        world,
        observer,
        source=source,
        spans=spans,
        label=label,
        parallel=parallel,
        accepted=frozenset(accept),
    )
    return await work.to_the_end(interruption or Interruption())


def parse_moment(text: str, flag: str) -> datetime:
    """A date or an RFC 3339 time, in UTC where it names no zone.

    Raises:
        ConfigError: it is neither, or lies outside of 1970 to 9998.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"{flag}: {text!r} is no date such as 2026-01-31") from None
    if not 1970 <= moment.year <= 9998:
        raise ConfigError(f"{flag}: {text!r} lies outside of the years 1970 to 9998")
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _set_up(name: str, config: Config, key_file: str, world: World) -> tuple[Setup, Endpoint]:
    """The tables to fill, and the windowed one among them or above them."""
    endpoints = load_catalog(
        [Path(folder) for folder in config.source.catalogs], builtin=config.source.builtin
    ).endpoints
    tables = {key: TablePlan(endpoint=value, mode="run") for key, value in endpoints.items()}
    if name not in endpoints:
        close = difflib.get_close_matches(name, endpoints, n=1, cutoff=0.4)
        near = f"; did you mean {close[0]}?" if close else ""
        raise ConfigError(f"backfill {name}: there is no such endpoint{near}")
    endpoint = endpoints[name]
    above = tables[name] if endpoint.sync.window else source_of(endpoint, tables)
    if above is None:
        windowed = sorted(key for key, value in endpoints.items() if value.sync.window)
        raise ConfigError(f"backfill {name}: it has no window; those with one are {', '.join(windowed)}")
    chosen = make_plan(endpoints, config).written
    below = [table.name for table in chosen if source_of(table.endpoint, tables) is tables[name]]
    plan = make_plan(endpoints, with_run(config, include=(name, *below), exclude=(), tags=()))
    return prepared(config, plan, endpoints, key_file, world), above.endpoint


class _Backfill(Run):
    """The windows of one endpoint, in steps."""

    def __init__(
        self,
        setup: Setup,
        world: World,
        observer: Observer,
        *,
        source: Endpoint,
        spans: Sequence[Span],
        label: str,
        parallel: int,
        accepted: frozenset[str],
    ) -> None:
        super().__init__(setup, world.store or open_store(setup.config.lake.uri), world, observer, accepted)
        self._source = source
        self._spans = spans
        self._state_key = f"{BACKFILL_STATE}{label}"
        self._parallel = parallel
        self._keys = [
            (table.name, account.name) for table in setup.plan.written for account, _ in setup.accounts
        ]
        self._tables: dict[tuple[str, str], TableReport] = {}
        self._figures: list[RequestFigures] = []
        self._drift: dict[str, None] = {}

    async def to_the_end(self, interruption: Interruption) -> RunReport:
        # Holds no table, but says that this run lives and what it has staged is wanted.
        sign_of_life = self._leases(())
        await self._hold(sign_of_life)
        self._observer(RunStarted(run_id=self._run_id, lake=self._store.uri, tables=tuple(self._keys)))
        try:
            async with anyio.create_task_group() as beats:
                beats.start_soon(self._beat, sign_of_life)
                try:
                    report = await self._steps(interruption)
                finally:
                    beats.cancel_scope.cancel()
        except BaseException as error:
            with anyio.CancelScope(shield=True), suppress(LakeError):
                if not self._may_be_committed:
                    await self._executor.run(self._store.delete_folder, self._staging)
                await self._executor.run(sign_of_life.release)
                if not self._may_be_committed:
                    await self._executor.run(self._withdraw)
            told = self._gravest(error)
            if told is error:
                raise
            raise told from error
        await self._executor.run(sign_of_life.release)
        self._observer(RunFinished(run_id=report.run_id, status=report.status, exit_code=report.exit_code))
        return report

    def _leases(self, tables: Iterable[tuple[str, str]]) -> Leases:
        return Leases(
            self._store,
            run_id=self._run_id,
            clock=self._clock,
            tables=tables,
            token=self._world.token(16),
            is_brief=True,
        )

    async def _steps(self, interruption: Interruption) -> RunReport:
        done = await self._executor.run(self._done_before)
        left = [span for span in self._spans if span.label not in done]
        steps = [left[at : at + self._parallel] for at in range(0, len(left), self._parallel)]
        report = self._summary(interruption)
        for step in steps:
            report = await self._step(step, interruption, is_last=step is steps[-1])
            if interruption.exit_code or report.exit_code == 4:
                return self._summary(interruption)
        return report

    def _done_before(self) -> frozenset[str]:
        """The windows that an earlier call with the same times has committed, of every account."""
        entry = self._log.newest()
        found: list[frozenset[str]] = []
        for key in self._keys:
            state = self._log.state_of(entry, *key).state if entry is not None and key in entry.tables else {}
            labels = state.get(self._state_key)
            found.append(frozenset(labels) if isinstance(labels, list) else frozenset())
        return frozenset.intersection(*found)

    async def _step(self, spans: Sequence[Span], interruption: Interruption, *, is_last: bool) -> RunReport:
        self._given_spans = {self._source.name: tuple(spans)}
        while True:
            entry = await self._executor.run(self._log.newest)
            self._readers = []
            await self._read(entry, interruption)
            leases = self._leases(self._keys)
            try:
                if not await self._hold_unless_told(leases, interruption):
                    await self._discard()
                    return self._summary(interruption)
                newest = await self._executor.run(self._log.newest)
                if await self._executor.run(self._is_outdated, newest, frozenset(s.label for s in spans)):
                    await self._discard()
                    continue
                async with anyio.create_task_group() as beats:
                    beats.start_soon(self._beat, leases)
                    try:
                        return await self._settle_and_commit(newest, leases, interruption, spans, is_last)
                    finally:
                        beats.cancel_scope.cancel()
            finally:
                await self._executor.run(leases.release)

    async def _discard(self) -> None:
        """Forget what the step has staged; what steps before it committed is in its place."""
        for reader in self._readers:
            for table in reader.tables.values():
                if isinstance(table.lane.sink, WriterSink):
                    await self._executor.run(table.lane.sink.writer.abort)
        await self._executor.run(self._store.delete_folder, self._staging)

    def _is_outdated(self, newest: LogEntry | None, windows: frozenset[str]) -> bool:
        """Give each reader the tables as they are now; True if it must read again.

        That is where rows were written by columns that are no longer the table's, or where another one has read
        one of the windows meanwhile of which only one reading is kept: the later one counts.
        """
        has_changed = False
        for reader in self._readers:
            priors: dict[str, TableState] = {}
            for table in self._plan.active:
                if newest is not None and (table.name, reader.account.name) in newest.tables:
                    priors[table.name] = self._log.state_of(newest, table.name, reader.account.name)
            for name, state in priors.items():
                before = reader.priors.get(name)
                has_changed |= before is None or list(before.columns) != list(state.columns)
                if before is not None and reader.tables[name].endpoint.sync.is_replaced:
                    has_changed |= _readings(before, windows) != _readings(state, windows)
            reader.priors = priors
        return has_changed

    async def _settle_and_commit(
        self,
        newest: LogEntry | None,
        leases: Leases,
        interruption: Interruption,
        spans: Sequence[Span],
        is_last: bool,
    ) -> RunReport:
        settled = self._with_progress(await self._settle(newest), spans)
        self._add_up(self._secrets.report(self._report(settled, interruption)))
        report = self._summary(interruption)
        if report.exit_code == 4:
            return report
        is_final = is_last or bool(interruption.exit_code)
        await self._commit(settled, report, leases, is_final=is_final)
        self._may_be_committed = False
        return report

    def _with_progress(self, settled: Sequence[Settled], spans: Sequence[Span]) -> list[Settled]:
        """The updates, each saying which windows are done of all tables; nothing any more once all are."""
        done = {
            (item.report.name, item.report.account): self._windows_done(item, settled, spans)
            for item in settled
            if item.update is not None
        }
        # Of several accounts all must be done: what is left is what one of them lacks.
        are_all = len(done) == len(settled) and all(
            len(labels) == len(self._spans) for labels in done.values()
        )
        marked: list[Settled] = []
        for item in settled:
            if item.update is None:
                marked.append(item)
                continue
            before = item.update.state.state
            state = {key: value for key, value in before.items() if key != self._state_key}
            if not are_all:
                state[self._state_key] = done[item.report.name, item.report.account]
            update = replace(item.update, state=replace(item.update.state, state=state))
            marked.append(replace(item, update=update))
        return marked

    def _windows_done(self, item: Settled, settled: Sequence[Settled], spans: Sequence[Span]) -> list[str]:
        """The windows that are done of all tables of the account of `item`, now or in steps before."""
        assert item.update is not None
        account = item.report.account
        whole = frozenset(span.label for span in spans)
        for other in settled:
            if other.report.account == account:
                whole &= self._whole_windows(other, account)
        known = item.update.state.state.get(self._state_key)
        return sorted({*(known if isinstance(known, list) else ()), *whole})

    def _whole_windows(self, item: Settled, account: str) -> frozenset[str]:
        reader = next(reader for reader in self._readers if reader.account.name == account)
        table = reader.tables[item.report.name]
        # Where a parent is not whole, nobody knows which windows lack rows.
        is_known = table.endpoint.parent is None or (
            table.is_follower and not table.ledger.parents_without_value
        )
        if item.update is None or (item.report.status != "complete" and not is_known):
            return frozenset()
        return reader.whole_windows(item.report.name)

    # --- the report -----------------------------------------------------------------------------------------

    def _add_up(self, report: RunReport) -> None:
        self._figures.append(report.requests)
        self._drift |= dict.fromkeys(report.drift)
        for table in report.tables:
            key = (table.name, table.account)
            before = self._tables.get(key)
            self._tables[key] = table if before is None else _sum(before, table)

    def _summary(self, interruption: Interruption) -> RunReport:
        """What all steps did until now."""
        windows = f"{len(self._spans)} windows"
        tables = tuple(
            replace(table, reason=f"{windows} closed") if table.status == "complete" else table
            for table in self._tables.values()
        ) or tuple(
            TableReport(name=name, account=account, status="complete", reason=f"{windows}, all done before")
            for name, account in self._keys
        )
        exit_code = interruption.exit_code or exit_code_of(tables)
        faults = [table for table in tables if table.status not in ("complete", "absent", "skipped")]
        message = f"{faults[0].name}: {faults[0].status}: {faults[0].reason}" if faults else ""
        return self._secrets.report(
            self._sum_up(
                exit_code,
                tables,
                _sum_figures(self._figures),
                self._drift,
                interruption.reason if interruption.exit_code else message,
                interruption,
            )
        )


def _readings(state: TableState, windows: frozenset[str]) -> set[str]:
    """The files of these windows."""
    return {file.path for file in state.files if windows & {label for _, label in file.partition}}


def _sum(before: TableReport, after: TableReport) -> TableReport:
    """Two steps of one table: the counts of both, and what was wrong with either."""
    is_worse = before.status not in ("complete", "absent") and after.status in ("complete", "absent")
    told = before if is_worse else after
    return replace(
        told,
        rows=before.rows + after.rows,
        pages=before.pages + after.pages,
        requests=before.requests + after.requests,
        files=before.files + after.files,
        size_bytes=before.size_bytes + after.size_bytes,
        failures=tuple(dict.fromkeys((*before.failures, *after.failures))),
    )


def _sum_figures(figures: Sequence[RequestFigures]) -> RequestFigures:
    return RequestFigures(
        sent=sum(figure.sent for figure in figures),
        succeeded=sum(figure.succeeded for figure in figures),
        retried=sum(figure.retried for figure in figures),
        throttled=sum(figure.throttled for figure in figures),
        failed=sum(figure.failed for figure in figures),
        received_bytes=sum(figure.received_bytes for figure in figures),
        rate_share=max((figure.rate_share for figure in figures), default=0.0),
    )
