"""A seed, played from its first run to its last: the trace, and the law that was broken if one was."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

import anyio
import anyio.lowlevel
import pyarrow as pa

from extractor.config import Checks, Config, LakeConfig, LimitsConfig, ParquetConfig, Source
from extractor.errors import AuthError, LakeBusy, LakeError, SourceUnreachable
from extractor.events import Event, RunStarted
from extractor.lane import Budget, InlineExecutor
from extractor.lease import live_runs
from extractor.pipeline import Interruption, World, extract
from extractor.report import RunReport
from extractor.stores.memory import PowerLost
from tests.laws.simulation.check import Judge
from tests.laws.simulation.clock import START, LoopClock, Stuck, VirtualLoop
from tests.laws.simulation.network import API, IDENTITY, Law, Network, Server, Trace
from tests.laws.simulation.site import Site
from tests.laws.simulation.store import Disk
from tests.laws.simulation.world import Episode, Scenario, catalogue, make_scenario

__all__ = ("Played", "play", "play_all")

_DELAYS = {"inline": (), "delayed": (0.0, 0.001, 0.02, 0.5), "slow": (0.0, 0.5, 5.0)}

_SLACK_SECONDS = 20.0
_FAULTS = ("fault", "unanswered", "late fault")

# Arrow's readers hand each small body to another thread and wait for it: the fewer there are, the sooner it comes.
pa.set_io_thread_count(1)

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(slots=True)
class Played:
    """What came of a seed; `broken` is empty if every law held."""

    seed: int
    broken: str = ""
    requests: int = 0
    runs: int = 0
    crashes: int = 0
    outcomes: list[str] = field(default_factory=list)
    trace: list[str] = field(default_factory=list)
    error: BaseException | None = None


class SimulatedExecutor(InlineExecutor):
    """Work done in place: at once, or after a while and seen to be done after another, as threads do it."""

    def __init__(
        self,
        clock: LoopClock,
        chance: random.Random,
        *,
        delays: tuple[float, ...],
        is_off: Callable[[], bool],
    ) -> None:
        self.on_budget: Callable[[Budget], None] = lambda budget: None
        self._clock = clock
        self._chance = chance
        self._delays = delays
        self._is_off = is_off
        self._slots = anyio.CapacityLimiter(2)

    async def run(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        for argument in args:
            if isinstance(argument, Budget):
                self.on_budget(argument)
        if not self._delays:
            return self._done(work, *args, **kwargs)
        await anyio.lowlevel.checkpoint()
        async with self._slots:
            with anyio.CancelScope(shield=True):
                await self._clock.sleep(self._chance.choice(self._delays))
                result = self._done(work, *args, **kwargs)
                await self._clock.sleep(self._chance.choice((0.0, 0.001, 0.02)))
        return result

    def _done(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        if self._is_off():
            raise PowerLost("the power is off")
        return work(*args, **kwargs)


class Play:
    """The state that outlives a run: the server, the disk, the clock, and what the judge knows."""

    def __init__(self, scenario: Scenario, folder: Path) -> None:
        self.scenario = scenario
        self.played = Played(scenario.seed)
        self._folder = folder
        self._chance = random.Random(f"client {scenario.seed}")
        self.clock = LoopClock(timedelta(seconds=scenario.client_offset_seconds))
        self.trace = Trace(self.clock, self.played.trace)
        self.site = Site(scenario, random.Random(f"site {scenario.seed}"))
        self.server = Server(scenario, self.site, self.clock, self.trace)
        skew = timedelta(seconds=scenario.store_offset_seconds)
        self.disk = Disk(clock=lambda: START + timedelta(seconds=self.clock.monotonic()) + skew)
        self.judge = Judge(scenario, self.site, self.disk)
        self._is_off = False
        self._run_id = ""
        self._killed = ""
        """The run that was killed before it committed anything."""
        self._busy_until = 0.0

    def to_the_end(self) -> None:
        """Play every episode. Raises: Law, Stuck, and whatever the program raises that it should not."""
        for episode in self.scenario.episodes:
            self._pass(episode)
            self.played.runs += 1
            self._run(episode)
            self.played.requests += self.server.sent

    def _pass(self, episode: Episode) -> None:
        self.clock.idle_seconds += episode.gap_seconds
        roots = [table for table in self.scenario.tables if not table.parent]
        for _ in range(episode.changes):
            table = self._chance.choice(roots)
            may_delete = table.sync == "snapshot"
            self.site.change(table, self.clock.monotonic(), may_delete=may_delete, may_update=table.is_keyed)
            self.clock.idle_seconds += 0.001

    def _run(self, episode: Episode) -> None:
        loop = VirtualLoop(self.clock.monotonic())
        self.clock.loop = loop
        self.server.begin(is_calm=episode.is_calm)
        silence = 2 * self.scenario.retry_seconds + 300

        def watch(moment: float) -> None:
            if moment - self.server.last_activity > silence:
                raise Stuck(f"no request for {silence:g} s, and the run does not end")

        loop.watch = watch
        loop.each_turn = self.server.look_at_memory
        self._run_id = ""
        self._arm(episode, loop)
        report: RunReport | None = None
        error: BaseException | None = None
        try:
            report = loop.play(self._extract(episode, loop))
        except BaseException as caught:  # noqa: BLE001  # judged below
            error = caught
        self.clock.idle_seconds = loop.time()
        self.clock.loop = None
        if self._run_id:
            self.server.ended_at = loop.time()
            self.judge.end(self._run_id, loop.time())
        self._judge(episode, report, error)

    async def _extract(self, episode: Episode, loop: VirtualLoop) -> RunReport:
        scenario = self.scenario
        executor = SimulatedExecutor(
            self.clock, self._chance, delays=_DELAYS[scenario.executor], is_off=lambda: self._is_off
        )
        executor.on_budget = partial(setattr, self.server, "budget")
        world = World(
            clock=self.clock,
            chance=self._chance.random,
            environment={"SKYSQL_API_KEY": "key"},
            executor=executor,
            store=self.disk,
            network=lambda url, **given: Network(self.server, url, **given),  # type: ignore[arg-type,return-value]  # a fake
            token=lambda size: f"{self._chance.getrandbits(8 * size):0{2 * size}x}",
        )
        interruption = Interruption()
        if episode.interrupt_at:
            loop.call_later(episode.interrupt_at, interruption.set, 130, "interrupted")
        report = await extract(
            self._config(episode), observer=self._observe, interruption=interruption, world=world
        )
        is_stopped = report.exit_code in (
            9,
            130,
        )  # answers that waited for their turn are left where they are
        if self.server.budget is not None and not is_stopped:
            self._judge_budget(self.server.budget)
        return report

    def _config(self, episode: Episode) -> Config:
        scenario = self.scenario
        return Config(
            source=Source(
                base_url=API,
                auth=scenario.auth,  # type: ignore[arg-type]  # one of the two
                token_url=f"{IDENTITY}/token",
                keyinfo_url=f"{IDENTITY}/keyinfo",
                builtin=False,
                catalogs=(str(self._folder),),
            ),
            limits=LimitsConfig(
                requests_per_second=scenario.requests_per_second,
                burst=scenario.burst,
                concurrency=scenario.concurrency,
                memory_mb=scenario.memory_bytes / (1 << 20),
                retry_attempts=scenario.retry_attempts,
                retry_seconds=scenario.retry_seconds,
                run_seconds=episode.run_seconds,
                resume_seconds=scenario.resume_seconds,
            ),
            lake=LakeConfig(uri=self.disk.uri),
            parquet=ParquetConfig(
                row_group_mb=scenario.row_group_bytes / (1 << 20),
                target_file_mb=scenario.target_file_bytes / (1 << 20),
                compression="none",
            ),
            checks=Checks(max_drop=scenario.max_drop),
            is_rate_set=scenario.is_rate_set,
        )

    def _observe(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self._run_id = event.run_id
            age_seconds = self.clock.monotonic() - self.server.safe_at
            is_young = age_seconds < self.scenario.resume_seconds - _SLACK_SECONDS
            if self._killed and is_young and event.run_id != self._killed and self.server.safe():
                self.server.broken.append(f"run {self._killed} was killed, and not taken up")
            self._killed = ""
            self.server.take_up(is_taken_up=event.run_id in self.judge.spans)
            self.judge.begin(event.run_id, self.server.began)
        self.trace.add(str(event))

    # --- what befalls a run ---------------------------------------------------------------------------------

    def _arm(self, episode: Episode, loop: VirtualLoop) -> None:
        self._is_off = self.server.is_off = False
        self.server.on_request = lambda number: None
        self.disk.operations = self.disk.fails_at = 0
        self.disk.steps_after_commit = self.disk.operations_after_commit = None
        self.disk.before_operation = lambda number: self._operate(number, episode.glance_at)

        def kill() -> None:
            self.trace.add("the power goes")
            self._is_off = self.server.is_off = True
            self.disk.lose_power(after_steps=0)
            loop.cancel()

        match episode.crash:
            case "step":
                self.disk.lose_power(after_steps=int(episode.crash_at))
            case "commit":
                self.disk.steps_after_commit = int(episode.crash_at)
            case "late fault":
                self.disk.operations_after_commit = int(episode.crash_at)
                self.disk.is_unanswered = episode.keeps_unsynced
            case "request":
                self.server.on_request = lambda number: kill() if number == int(episode.crash_at) else None
            case "time":
                loop.call_later(episode.crash_at, kill)
            case "fault" | "unanswered":
                self.disk.fails_at = int(episode.crash_at)
                self.disk.is_unanswered = episode.crash == "unanswered"

    def _operate(self, number: int, glance_at: int) -> None:
        if number == glance_at and self._run_id:
            self.judge.end(self._run_id, self.clock.monotonic())
            self.judge.look(keeps=False)
            self.judge.end(self._run_id, float("inf"))

    # --- what came of it ------------------------------------------------------------------------------------

    def _judge(self, episode: Episode, report: RunReport | None, error: BaseException | None) -> None:
        self.disk.before_operation = None
        if self.server.broken:
            raise Law(self.server.broken[0]) from error
        leaves = list(_leaves(error)) if error is not None else []
        for leaf in leaves:
            if isinstance(leaf, Law | Stuck):
                raise leaf from error
        is_killed = self._is_off or any(isinstance(leaf, PowerLost) for leaf in leaves)
        outcome = (
            "killed" if is_killed else f"exit {report.exit_code}" if report else type(leaves[0]).__name__
        )
        self.played.outcomes.append(outcome)
        self.trace.add(f"run {self._run_id} ends: {outcome}")
        if is_killed:
            self.played.crashes += 1
            self.disk.crash(keep_unsynced=episode.keeps_unsynced)
            self._busy_until = self.clock.monotonic() + 61
            entry = self.judge.look(keeps=True)
            if self._run_id and (entry is None or entry.run_id != self._run_id):
                self._killed = self._run_id
            return
        self.disk.crash(keep_unsynced=False)  # what a run has reported stays, whatever happens then
        if error is not None:
            self._judge_error(episode, error)
            if episode.crash not in _FAULTS and self._run_id in live_runs(self.disk):
                raise Law("the run has failed and still holds its lease")
            self.judge.look(keeps=True)
            return
        assert report is not None
        is_stopped = report.exit_code in (9, 130)
        if is_stopped and not (episode.interrupt_at or episode.run_seconds):
            raise Law(f"exit code {report.exit_code}, and nobody stopped the run")
        self.judge.close(
            report,
            self.server.causes,
            is_stopped=bool(episode.interrupt_at or episode.run_seconds) and is_stopped,
        )

    def _judge_error(self, episode: Episode, error: BaseException) -> None:
        """A run may end with an error only if there was a cause for it."""
        match error:
            case LakeBusy() if self.clock.monotonic() < self._busy_until:
                return
            case LakeError() if episode.crash in _FAULTS:
                self._busy_until = self.clock.monotonic() + 61  # it could not even give back its lease
                return
            case AuthError() if self.scenario.moods.revoke_after or self.scenario.moods.token_revokes:
                return
            case AuthError() if any(table.fate == "denied" for table in self.scenario.tables):
                return
            case SourceUnreachable() if not self.server.answered_any and not self.server.moods.is_calm:
                return
            case _:
                raise error

    def _judge_budget(self, budget: Budget) -> None:
        if budget.bodies:
            raise Law(f"{budget.bodies} bytes of bodies are still counted after the run")
        # A page is admitted while there is room, so that those in flight may come on top; and what is being decoded
        # is there twice, as JSON and as rows, which take up to twice as much.
        most = 3 * self.scenario.memory_bytes + 2 * (self.scenario.concurrency + 1) * self.server.largest_body
        if budget.peak > most:
            raise Law(f"{budget.peak} bytes were held, {self.scenario.memory_bytes} are allowed")


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def play(seed: int, change: Callable[[Scenario], Scenario] = lambda scenario: scenario) -> Played:
    """Play one seed to its end or to the first law that is broken; nothing but the seed decides what happens."""
    scenario = change(make_scenario(seed))
    folder = Path(tempfile.mkdtemp(prefix="laws-"))
    try:
        (folder / "api.toml").write_text(catalogue(scenario))
        played = Play(scenario, folder)
        try:
            played.to_the_end()
        except Exception as error:  # noqa: BLE001  # whatever it is, it is what the seed shows
            leaf = next(_leaves(error))
            played.played.broken = f"{type(leaf).__name__}: {leaf}"
            played.played.error = error
        return played.played
    finally:
        shutil.rmtree(folder)


def play_all(seeds: Iterable[int]) -> list[Played]:
    """Each seed played, without its trace."""
    found = []
    for seed in seeds:
        played = play(seed)
        played.trace, played.error = [], None
        found.append(played)
    return found
