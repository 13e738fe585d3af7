"""What a run will ask for, before it asks: the tables, their windows, and the first request of each chain.

Pure. Parents come before children; a child's requests are made when its parent's rows are known, by
`requests_of_parent`.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal
from urllib.parse import quote

import msgspec

from extractor.config import Config, parse_duration
from extractor.endpoint import Endpoint, OffsetPaging, PagePaging, Window
from extractor.errors import ConfigError

__all__ = (
    "PageRequest",
    "Plan",
    "Span",
    "TablePlan",
    "first_requests",
    "make_plan",
    "plan_windows",
    "requests_of_parent",
)

# Before this the service did not exist.
EARLIEST = datetime(2019, 1, 1, tzinfo=UTC)

# Bounds that leave a boundary out are met one second outside of it: the API's finest unit.
_GRAIN = timedelta(seconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A window of time: from `start` to before `end`; without `end` it has no upper bound."""

    label: str
    start: datetime
    end: datetime | None

    def is_closed_at(self, moment: datetime) -> bool:
        """True once nothing more can fall into the window."""
        return self.end is not None and self.end <= moment


class PageRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One page to be read. Two requests with equal `identity` are the same request.

    `path` is percent-encoded; `keep` are the parent's values for the rows; `window` is the label of the span;
    `chain` names what the pages of one chain have in common, `page` counts them from 0.
    """

    table: str
    account: str
    path: str
    query: tuple[tuple[str, str], ...] = ()
    keep: tuple[tuple[str, str], ...] = ()
    window: str = ""
    chain: str = ""
    page: int = 0
    is_trial: bool = False
    """True for an endpoint that is asked once without its parent (`fallback_on`)."""

    @property
    def identity(self) -> tuple[object, ...]:
        return (self.table, self.account, self.path, self.query)

    @property
    def label(self) -> str:
        """The request for people: long values, such as page tokens, are cut."""
        query = "&".join(f"{key}={value[:40]}" for key, value in self.query)
        return f"{self.path}?{query}" if query else self.path

    @property
    def full_label(self) -> str:
        """The request, uncut."""
        query = "&".join(f"{key}={value}" for key, value in self.query)
        return f"{self.path}?{query}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TablePlan:
    """One endpoint of one account.

    `mode` is `run`, `keys` (read only for the sake of its children; nothing is written), or `skip` with a reason.
    """

    endpoint: Endpoint
    mode: Literal["run", "keys", "skip"]
    reason: str = ""

    @property
    def name(self) -> str:
        return self.endpoint.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The tables of a run, parents before children."""

    tables: tuple[TablePlan, ...]

    @property
    def active(self) -> tuple[TablePlan, ...]:
        """Those that are asked for."""
        return tuple(table for table in self.tables if table.mode != "skip")

    @property
    def written(self) -> tuple[TablePlan, ...]:
        """Those that are written."""
        return tuple(table for table in self.tables if table.mode == "run")

    def children_of(self, name: str) -> tuple[TablePlan, ...]:
        """The active tables that need the rows of `name`."""
        return tuple(
            table for table in self.active if table.endpoint.parent and table.endpoint.parent.endpoint == name
        )


def make_plan(endpoints: Mapping[str, Endpoint], config: Config) -> Plan:
    """Choose the tables.

    Raises:
        ConfigError: a glob, tag or table that there is not, with the nearest name; a selection that is empty.
    """
    run = config.run
    named = {pattern for pattern in run.include if pattern in endpoints}
    for key, patterns in (
        ("run.include", run.include),
        ("run.exclude", run.exclude),
    ):
        for pattern in patterns:
            if not fnmatch.filter(endpoints, pattern):
                raise ConfigError(f"{key}: {pattern!r} matches no endpoint{_nearest(pattern, endpoints)}")
    for key, names in (("run.secret", run.secret), ("checks", tuple(config.table_checks))):
        for name in names:
            if name not in endpoints:
                raise ConfigError(f"{key}: {name!r} is the name of no endpoint{_nearest(name, endpoints)}")
    tags = {tag for endpoint in endpoints.values() for tag in endpoint.tags}
    for tag in run.tags:
        if tag not in tags:
            raise ConfigError(f"--tag {tag}: no endpoint has it{_nearest(tag, tags)}")
    chosen: dict[str, TablePlan] = {}
    for name, endpoint in endpoints.items():
        if _is_selected(endpoint, config, named):
            reason = _refusal(endpoint, config) or _refusal_of_parents(endpoint, endpoints, config)
            chosen[name] = TablePlan(endpoint=endpoint, mode="skip" if reason else "run", reason=reason)
    if not any(table.mode == "run" for table in chosen.values()):
        why = "; ".join(table.reason for table in chosen.values()) or "everything is excluded"
        raise ConfigError(f"nothing is selected: {why}")
    for table in list(chosen.values()):
        if table.mode == "run":
            _add_parents(chosen, table.endpoint, endpoints)
    return Plan(tables=tuple(_parents_first(chosen)))


def _is_selected(endpoint: Endpoint, config: Config, named: set[str]) -> bool:
    run = config.run
    name = endpoint.name
    if any(fnmatch.fnmatchcase(name, pattern) for pattern in run.exclude):
        return False
    if run.tags and not set(run.tags) & set(endpoint.tags):
        return False
    if name in named or name in run.secret:
        return True
    return endpoint.enabled and any(fnmatch.fnmatchcase(name, pattern) for pattern in run.include)


def _refusal(endpoint: Endpoint, config: Config) -> str:
    """Why an endpoint is not read although it is selected; empty where nothing stands against it."""
    name, run = endpoint.name, config.run
    match endpoint.class_:
        case "secret" if name not in run.secret:
            return f"{name} holds credentials; to read it all the same: run.secret = ['{name}']"
        case "customer_data" if "customer_data" not in run.allow:
            return f"{name} holds customer data; to read it: run.allow = ['customer_data']"
        case "pii" if run.pii != "keep" and not any(column.class_ == "pii" for column in endpoint.columns):
            return f"{name} holds personal data in columns that nobody knows, and run.pii is {run.pii}"
        case _:
            return ""


def _refusal_of_parents(endpoint: Endpoint, endpoints: Mapping[str, Endpoint], config: Config) -> str:
    """Why an ancestor may not be asked, not even for the values that its children need."""
    if endpoint.parent is None:
        return ""
    parent = endpoints[endpoint.parent.endpoint]
    if parent.class_ in ("secret", "customer_data") and (reason := _refusal(parent, config)):
        return f"{endpoint.name} needs the rows of {parent.name}, and {reason}"
    return _refusal_of_parents(parent, endpoints, config)


def _add_parents(chosen: dict[str, TablePlan], endpoint: Endpoint, endpoints: Mapping[str, Endpoint]) -> None:
    if endpoint.parent is None:
        return
    parent = endpoints[endpoint.parent.endpoint]
    present = chosen.get(parent.name)
    if present is None or present.mode == "skip":
        reason = present.reason if present else f"read for the rows of {endpoint.name} only"
        chosen[parent.name] = TablePlan(endpoint=parent, mode="keys", reason=reason)
    _add_parents(chosen, parent, endpoints)


def _parents_first(chosen: Mapping[str, TablePlan]) -> Iterator[TablePlan]:
    done: set[str] = set()

    def visit(table: TablePlan) -> Iterator[TablePlan]:
        if table.name in done:
            return
        done.add(table.name)
        parent = table.endpoint.parent
        if parent and parent.endpoint in chosen:
            yield from visit(chosen[parent.endpoint])
        yield table

    for table in chosen.values():
        yield from visit(table)


def _nearest(name: str, valid: Sequence[str] | set[str] | Mapping[str, object]) -> str:
    close = difflib.get_close_matches(name, sorted(valid), n=1, cutoff=0.4)
    return f"; did you mean {close[0]}?" if close else ""


# --- windows ------------------------------------------------------------------------------------------------


def plan_windows(
    window: Window, *, since: str, now: datetime, done_until: datetime | None, holes: Sequence[str] = ()
) -> tuple[Span, ...]:
    """The spans to read, oldest first: those with holes, then from `done_until` (or `since`) to the open one.

    Spans are aligned to whole steps, so that every run cuts time alike.
    """
    # A clock that went back must not leave the open window out.
    first = min(done_until or _since(window, since, now), now)
    if not window.step:
        return (Span(label="all", start=first, end=None),)
    start = _floor(first, window.step)
    missed = {_floor(datetime.fromisoformat(hole).replace(tzinfo=UTC), window.step) for hole in holes}
    spans = [_span(hole, window.step) for hole in sorted(missed) if hole < start]
    while start <= now:
        span = _span(start, window.step)
        spans.append(span)
        assert span.end is not None
        start = span.end
    return tuple(spans)


def _since(window: Window, since: str, now: datetime) -> datetime:
    if since == "all":
        return datetime.fromisoformat(window.start).replace(tzinfo=UTC) if window.start else EARLIEST
    return now - timedelta(seconds=parse_duration(since))


def _span(start: datetime, step: str) -> Span:
    if step.endswith("M"):
        return Span(label=f"{start:%Y-%m}", start=start, end=_add_months(start, int(step[:-1])))
    return Span(label=f"{start:%Y-%m-%d}", start=start, end=start + timedelta(seconds=parse_duration(step)))


def _floor(moment: datetime, step: str) -> datetime:
    if step.endswith("M"):
        months = (moment.year * 12 + moment.month - 1) // int(step[:-1]) * int(step[:-1])
        return datetime(months // 12, months % 12 + 1, 1, tzinfo=UTC)
    seconds = int(parse_duration(step))
    return datetime.fromtimestamp(int(moment.timestamp()) // seconds * seconds, UTC)


def _add_months(start: datetime, months: int) -> datetime:
    total = start.year * 12 + start.month - 1 + months
    return start.replace(year=total // 12, month=total % 12 + 1)


def _window_query(window: Window, span: Span) -> Iterator[tuple[str, str]]:
    if window.format == "year_month":
        yield window.from_param, f"{span.start:%Y}"
        yield window.to_param, f"{span.start:%m}"
        return
    start = span.start - _GRAIN if window.bounds[0] == "(" else span.start
    yield window.from_param, _moment(start, window.format)
    if window.to_param and span.end is not None:
        # Where rows are told apart by key, an end that is inside the window may be met twice, and none is missed.
        is_shared = window.bounds[1] == "]" and (window.replace or window.format == "date")
        yield window.to_param, _moment(span.end - _GRAIN if is_shared else span.end, window.format)


def _moment(moment: datetime, style: str) -> str:
    match style:
        case "epoch":
            return str(int(moment.timestamp()))
        case "epoch_ms":
            return str(int(moment.timestamp() * 1000))
        case "date":
            return f"{moment:%Y-%m-%d}"
        case _:
            return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


# --- requests -----------------------------------------------------------------------------------------------


def first_requests(endpoint: Endpoint, account: str, spans: Sequence[Span]) -> Iterator[PageRequest]:
    """The first page of each chain of an endpoint that can be asked without a parent's row."""
    if endpoint.parent is None:
        yield from _requests(endpoint, account, spans, {}, (), is_trial=False)
    elif endpoint.parent.fallback_on:
        yield from _requests(endpoint, account, spans, {}, (), is_trial=True)


def requests_of_parent(
    endpoint: Endpoint,
    account: str,
    spans: Sequence[Span],
    *,
    params: Mapping[str, str],
    keep: tuple[tuple[str, str], ...],
) -> Iterator[PageRequest]:
    """The first page of each chain for one row of the parent."""
    yield from _requests(endpoint, account, spans, params, keep, is_trial=False)


def _requests(
    endpoint: Endpoint,
    account: str,
    spans: Sequence[Span],
    params: Mapping[str, str],
    keep: tuple[tuple[str, str], ...],
    *,
    is_trial: bool,
) -> Iterator[PageRequest]:
    path = endpoint.path
    query = dict(endpoint.params)
    for name, value in params.items():
        if name in endpoint.placeholders:
            path = path.replace("{" + name + "}", quote(value, safe=""))
        else:
            query[name] = value
    match endpoint.paging:
        case PagePaging() as paging:
            query[paging.page_param] = str(paging.first_page)
        case OffsetPaging() as paging:
            query[paging.offset_param] = "0"
            query[paging.limit_param] = str(paging.limit)
        case _:
            pass
    window = endpoint.sync.window
    for span in spans or (None,):
        bounds = dict(_window_query(window, span)) if window is not None and span is not None else {}
        request = PageRequest(
            table=endpoint.name,
            account=account,
            path=path,
            query=tuple({**query, **bounds}.items()),
            keep=keep,
            window=span.label if span is not None else "",
            is_trial=is_trial,
        )
        yield msgspec.structs.replace(request, chain=f"{account} {endpoint.name} {request.full_label}")
