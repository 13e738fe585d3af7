"""The laws of the lake: what must hold of it at any moment, and after each run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from extractor.commitlog import LogEntry
from extractor.lake import Lake
from extractor.lease import live_runs
from extractor.report import RunReport, TableReport
from tests.laws.simulation.network import Law
from tests.laws.simulation.site import Site
from tests.laws.simulation.store import Disk
from tests.laws.simulation.world import Scenario, Table

__all__ = ("Judge", "Known")

Landed = Counter[tuple[tuple[str, object], ...]]
_ACCOUNT = "default"


@dataclass(frozen=True, slots=True)
class Known:
    """What a table was when the judge last looked."""

    proved_by: str
    rows: Landed


@dataclass(slots=True)
class Judge:
    """Compares the lake with what the server held; `spans` are the runs with their beginning and end."""

    scenario: Scenario
    site: Site
    disk: Disk
    spans: dict[str, tuple[float, float]] = field(default_factory=dict)
    known: dict[str, Known] = field(default_factory=dict)
    sequence: int = 0

    def begin(self, run_id: str, moment: float) -> None:
        """A run begins, or is taken up: what it reads is of the time since it began first."""
        since, _ = self.spans.get(run_id, (moment, 0.0))
        self.spans[run_id] = (since, float("inf"))

    def end(self, run_id: str, moment: float) -> None:
        self.spans[run_id] = (self.spans[run_id][0], moment)

    def look(self, *, keeps: bool) -> LogEntry | None:
        """Read every table as a reader would now. Raises: Law.

        A table that this run did not prove is what it was; one that a run proved is what the server held
        while that run read it. With `keeps` this is what later looks are compared with.
        """
        with self.disk.unwatched():
            lake = Lake(self.disk)
            entry = lake.log.newest()
            if entry is None:
                if self.known:
                    raise Law("the log is gone")
                return None
            if entry.sequence < self.sequence:
                raise Law(f"entry {self.sequence} was committed, and {entry.sequence} is the newest")
            found: dict[str, Known] = {}
            for table in self.scenario.tables:
                reference = entry.tables.get((table.name, _ACCOUNT))
                if reference is not None:
                    rows = self._rows(lake, table)
                    found[table.name] = Known(reference.proved_by, rows)
                    if reference.rows != rows.total():
                        raise Law(
                            f"{table.name}: the log says {reference.rows} rows, {rows.total()} are there"
                        )
                elif table.name in self.known:
                    raise Law(f"{table.name} is no longer in the log")
        for name, state in found.items():
            self._judge(self.scenario.table(name), state)
        if keeps:
            self.known, self.sequence = found, entry.sequence
        return entry

    def _rows(self, lake: Lake, table: Table) -> Landed:
        read = lake.table(table.name).to_arrow()
        names = [name for name in read.schema.names if not name.startswith("_") or name == "_rescued_data"]
        rows: Landed = Counter()
        for row in read.select(names).to_pylist():
            rescued = row.pop("_rescued_data", None)
            if rescued:
                row |= json.loads(rescued)
            values = {name.partition("__v")[0]: value for name, value in row.items() if value is not None}
            rows[tuple(sorted(values.items()))] += 1
        return rows

    def _judge(self, table: Table, state: Known) -> None:
        before = self.known.get(table.name)
        if before is not None and before.proved_by == state.proved_by:
            if before.rows != state.rows:
                raise Law(
                    f"{table.name} changed without a run that proved it: {_difference(before.rows, state.rows)}"
                )
            return
        if state.proved_by not in self.spans:
            raise Law(f"{table.name} was proved by run {state.proved_by}, which there was not")
        since, until = self.spans[state.proved_by]
        stable, ever = self.site.truth(table.name, since, until)
        must, may = Counter(row.landed for row in stable), Counter(row.landed for row in ever)
        if table.sync == "append" and before is not None:
            must = must | before.rows
            may = may | before.rows
        if table.is_keyed and (
            doubled := [
                key
                for key, n in Counter(map(_key, state.rows.elements())).items()
                if n > 1 and key[0] is not None
            ]
        ):
            raise Law(f"{table.name} has a row twice: {doubled[:3]}")
        if missing := must - state.rows:
            raise Law(
                f"{table.name} is complete, and {missing.total()} rows are missing: {list(missing)[:2]}"
            )
        if surplus := state.rows - may:
            raise Law(
                f"{table.name} has {surplus.total()} rows that the server never had: {list(surplus)[:2]}"
            )

    # --- after a run ----------------------------------------------------------------------------------------

    def close(self, report: RunReport, causes: Mapping[str, set[str]], *, is_stopped: bool) -> None:
        """Judge what a run says of itself, when it has ended by itself. Raises: Law."""
        entry = self.look(keeps=True)
        self._judge_report(report, entry, causes, is_stopped=is_stopped)
        self._judge_leftovers(report, entry, is_stopped=is_stopped)

    def _judge_report(
        self,
        report: RunReport,
        entry: LogEntry | None,
        causes: Mapping[str, set[str]],
        *,
        is_stopped: bool,
    ) -> None:
        for table in report.tables:
            proved = entry is not None and (table.name, _ACCOUNT) in entry.tables
            proved = proved and entry.tables[table.name, _ACCOUNT].proved_by == report.run_id  # type: ignore[union-attr]  # see above
            if proved != (table.status == "complete"):
                raise Law(f"{table.name} is {table.status}, and is {'' if proved else 'not '}in the commit")
            if not table.reason:
                raise Law(f"{table.name} is {table.status} without a reason")
            self._judge_status(table, report.run_id, causes, is_stopped=is_stopped)
        if len(report.tables) != len(self.scenario.tables):
            raise Law(f"{len(report.tables)} tables of {len(self.scenario.tables)} in the report")
        statuses = {table.status for table in report.tables}
        is_good = statuses <= {"complete", "absent"}
        if (report.exit_code == 0) != (is_good and not is_stopped) and not (
            is_stopped and report.exit_code in (0, 9, 130)
        ):
            raise Law(f"exit code {report.exit_code} with {statuses}")

    def _judge_status(
        self, report: TableReport, run_id: str, causes: Mapping[str, set[str]], *, is_stopped: bool
    ) -> None:
        fates = {"denied": "denied", "absent": "absent", "broken": "failed"}
        lineage = list(self.scenario.lineage(report.name))
        if report.status == "complete":
            hidden = [above for above in lineage if above.fate and self._was_asked(above, run_id)]
            if hidden:
                raise Law(f"{report.name} is complete, though the server gives nothing of {hidden[0].name}")
            return
        reasons = set().union(*(causes.get(above.name, set()) for above in lineage))
        if any(above.nameless for above in lineage[1:]):
            reasons.add("rows of its parent name no value")
        if any(above.fate for above in lineage):
            reasons.add("it can be seen nowhere")
        if any(above.duplicates and above.is_counted for above in lineage):
            reasons.add("pages came in the place of others")
        if report.status == "held" and any(above.name in self.known for above in lineage):
            reasons.add("rows became fewer")
        if lineage[0].fate and len(lineage) == 1 and not is_stopped and not causes.get("", ()):
            expected = fates[lineage[0].fate]
            if report.status not in (expected, "failed", "partial"):
                raise Law(f"{report.name} is {report.status}, and should be {expected}")
        if not reasons and not is_stopped:
            raise Law(f"{report.name} is {report.status} without a cause: {report.reason}")

    def _was_asked(self, table: Table, run_id: str) -> bool:
        """False for a child whose parent has no rows: nothing is asked for it, whatever the server would say."""
        if not table.parent:
            return True
        stable, _ = self.site.truth(table.parent, *self.spans[run_id])
        return any(row.values["id"] is not None for row in stable)

    def _judge_leftovers(self, report: RunReport, entry: LogEntry | None, *, is_stopped: bool) -> None:
        with self.disk.unwatched():
            staged = [file.path for file in self.disk.list(f"_extractor/staging/{report.run_id}")]
            if staged and not is_stopped:
                raise Law(f"left in staging: {staged[:3]}")
            if report.run_id in live_runs(self.disk):
                raise Law("the run has ended and still holds its lease")
            if entry is None:
                return
            lake = Lake(self.disk)
            for name in lake.tables():
                for file in lake.files(name):
                    if not self.disk.exists(file.path):
                        raise Law(f"{file.path} is committed and not in its place")


def _key(row: tuple[tuple[str, object], ...]) -> tuple[object, object]:
    values = dict(row)
    return values.get("id"), values.get("parent_id")


def _difference(before: Landed, after: Landed) -> str:
    lost, won = before - after, after - before
    return f"{lost.total()} rows less, {won.total()} more ({list(lost)[:1]}, {list(won)[:1]})"
