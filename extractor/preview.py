"""What `run` would do: the tables, their requests as far as they can be known, and the time at this rate.

Reads the configuration, the catalogue and the newest log entry; sends nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from extractor.catalog import load_catalog
from extractor.commitlog import CommitLog, LogEntry
from extractor.config import Config
from extractor.plan import Plan, TablePlan, first_requests, make_plan
from extractor.stores import open_store
from extractor.windows import follows, spans_to_read

__all__ = ("Preview", "PreviewTable", "preview")


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviewTable:
    """One table of one account.

    `requests_known` are those that need no answer to be known; `requests_estimated` is their number in the last
    run, further pages and children included, or None where there was no run. `status` is `run`, `keys` (read
    for the sake of its children only) or `skipped`.
    """

    name: str
    account: str
    status: str
    path: str
    parent: str
    requests_known: int
    requests_estimated: int | None
    windows: int
    state: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """A run before it happens; `seconds` is the time that the rate limit alone takes."""

    lake: str
    tables: tuple[PreviewTable, ...]
    requests_known: int
    requests_estimated: int | None
    requests_per_second: float
    seconds: float
    files: int
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def preview(config: Config, *, now: datetime | None = None) -> Preview:
    """Look ahead from `now`, by default this moment.

    Raises:
        ConfigError: as `run` would.
        LakeError: the lake's log cannot be read.
    """
    from pathlib import Path

    catalog = load_catalog([Path(folder) for folder in config.source.catalogs], builtin=config.source.builtin)
    plan = make_plan(catalog.endpoints, config)
    store = open_store(config.lake.uri)
    log = CommitLog(store)
    entry = log.newest()
    accounts = [account.name for account in config.accounts] or ["default"]
    last = _last_requests(entry)
    now = now or datetime.now(UTC)
    states = {account: _states(log, entry, plan, account) for account in accounts}
    tables = tuple(
        _table(planned, account, plan, config, states[account], entry, last, now)
        for account in accounts
        for planned in plan.tables
    )
    known = sum(table.requests_known for table in tables)
    estimates = [table.requests_estimated for table in tables if table.status != "skipped"]
    estimated = None if None in estimates else sum(number or 0 for number in estimates)
    rate = config.limits.requests_per_second
    return Preview(
        lake=store.uri,
        tables=tables,
        requests_known=known,
        requests_estimated=estimated,
        requests_per_second=rate,
        seconds=round((estimated or known) / (rate * len(accounts)), 1),
        files=sum(table.status == "run" for table in tables),
        warnings=_warnings(entry, plan.active),
    )


def _table(
    planned: TablePlan,
    account: str,
    plan: Plan,
    config: Config,
    states: Mapping[str, Mapping[str, object]],
    entry: LogEntry | None,
    last: Mapping[tuple[str, str], int],
    now: datetime,
) -> PreviewTable:
    endpoint = planned.endpoint
    reference = entry.tables.get((planned.name, account)) if entry is not None else None
    state = "first run"
    if reference is not None and entry is not None:
        state = f"{reference.rows} rows of run {reference.run_id}"
    spans = spans_to_read(planned, plan, states, since=config.run.since, now=now)
    if spans:
        state = f"from {spans[0].start:%Y-%m-%d}"
    is_asked = planned.mode != "skip"
    return PreviewTable(
        name=planned.name,
        account=account,
        status={"run": "run", "keys": "keys", "skip": "skipped"}[planned.mode],
        path=endpoint.path,
        parent=endpoint.parent.endpoint if endpoint.parent else "",
        requests_known=len(list(first_requests(endpoint, account, spans))) if is_asked else 0,
        requests_estimated=last.get((planned.name, account)) if is_asked else 0,
        windows=len(spans) if is_asked else 0,
        state=state,
        reason=planned.reason,
    )


def _states(
    log: CommitLog, entry: LogEntry | None, plan: Plan, account: str
) -> Mapping[str, Mapping[str, object]]:
    """The state in the log of the tables that have to do with windows."""
    return {
        table.name: log.state_of(entry, table.name, account).state
        for table in plan.active
        if entry is not None and (table.name, account) in entry.tables
        if table.endpoint.sync.window is not None or follows(table.endpoint, plan) is not None
    }


def _last_requests(entry: LogEntry | None) -> Mapping[tuple[str, str], int]:
    """Requests per table in the newest run, from its report in the log."""
    tables = entry.summary.get("tables") if entry is not None else None
    found: dict[tuple[str, str], int] = {}
    for table in tables if isinstance(tables, Sequence) else ():
        if isinstance(table, Mapping) and isinstance(table.get("requests"), int):
            found[str(table.get("name")), str(table.get("account"))] = int(table["requests"])
    return found


def _warnings(entry: LogEntry | None, active: Sequence[TablePlan]) -> tuple[str, ...]:
    if entry is not None:
        return ()
    has_children = any(table.endpoint.parent for table in active)
    return ("first run: further pages and children are not counted",) if has_children else ()
