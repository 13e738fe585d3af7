"""How far a run is: a live table on a terminal, a plain line now and then elsewhere.

Both are observers of the run's events: they count, touch nothing, and cost little, since they are called for
every page. The counting is done in `Tally`, which knows no terminal.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self, TextIO

from extractor.events import (
    Committed,
    Event,
    PageStored,
    RequestFailed,
    RequestRetried,
    RequestSucceeded,
    RunFinished,
    RunStarted,
    TableFinished,
    Throttled,
)

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

__all__ = ("LiveProgress", "NoProgress", "PlainProgress", "Progress", "TableTally", "Tally")

_RATE_SECONDS = 10.0  # what is averaged over for "requests per second"
_LINE_SECONDS = 10.0  # between two plain lines
_REFRESHES_PER_SECOND = 4


class Progress(AbstractContextManager["Progress"], Protocol):
    """An observer with a beginning and an end; log lines go through it, so as not to tear the display."""

    def __call__(self, event: Event) -> None: ...

    def write_line(self, text: str) -> None: ...

    def close(self) -> None: ...


# --- counting -----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class TableTally:
    """One table and account so far; `status` is empty until it is finished."""

    pages: int = 0
    rows: int = 0
    requests: int = 0
    status: str = ""
    place: int = 0
    """How many were finished before it."""
    is_written: bool = True
    """False of a table that is read only for those that hang on its rows."""

    @property
    def is_running(self) -> bool:
        return not self.status and (self.requests > 0 or self.pages > 0)


@dataclass(slots=True, kw_only=True)
class Tally:
    """The run as a whole, as far as events tell. Times are monotonic seconds of `clock`."""

    permitted_per_second: float = 0.0
    expected_requests: int | None = None
    clock: Callable[[], float] = time.monotonic
    run_id: str = ""
    lake: str = ""
    requests: int = 0
    retried: int = 0
    failed: int = 0
    waits_until: float = 0.0
    wait_reason: str = ""
    tables: dict[tuple[str, str], TableTally] = field(default_factory=dict)
    started: float = field(init=False)
    _answered: deque[float] = field(default_factory=deque, init=False)

    def __post_init__(self) -> None:
        self.started = self.clock()

    def add(self, event: Event) -> None:
        """Count one event."""
        match event:
            case RequestSucceeded():
                self.requests += 1
                self._answer()
                self._of(event.table, event.account).requests += 1
            case PageStored():
                table = self._of(event.table, event.account)
                table.pages += 1
                table.rows += event.rows
            case RequestRetried():
                self.retried += 1
                self._wait(event.pause_seconds, f"{event.table}: {event.reason}")
            case Throttled():
                self.permitted_per_second = event.requests_per_second
                self._wait(event.pause_seconds, "the server asked for fewer requests")
            case RequestFailed():
                self.failed += not event.is_absent
            case TableFinished():
                table = self._of(event.table, event.account)
                table.place = self.finished
                table.status, table.rows = event.status, event.rows
            case RunStarted():
                for name, account in event.tables:
                    self._of(name, account)
                self.run_id, self.lake = event.run_id, event.lake
            case _:
                pass

    @property
    def written(self) -> list[TableTally]:
        """The tables that the run is about."""
        return [table for table in list(self.tables.values()) if table.is_written]

    @property
    def rows(self) -> int:
        return sum(table.rows for table in self.written)

    @property
    def finished(self) -> int:
        return sum(bool(table.status) for table in self.written)

    @property
    def elapsed_seconds(self) -> float:
        return self.clock() - self.started

    @property
    def requests_per_second(self) -> float:
        """The mean over the last ten seconds, or over the run while it is younger."""
        oldest = self.clock() - _RATE_SECONDS
        # A copy, and nothing forgotten here: the display reads this from its own thread.
        recent = sum(answered >= oldest for answered in self._answered.copy())
        return recent / max(min(_RATE_SECONDS, self.elapsed_seconds), 1.0)

    @property
    def left_seconds(self) -> float | None:
        """An estimate of the time left, where the number of requests is known and some have been answered."""
        rate = self.requests_per_second
        if self.expected_requests is None or not rate:
            return None
        return max(0, self.expected_requests - self.requests) / rate

    @property
    def waiting(self) -> str:
        """Why nothing may be moving at present; empty where nothing waits."""
        pause_seconds = self.waits_until - self.clock()
        return f"waiting {pause_seconds:.0f} s: {self.wait_reason}" if pause_seconds >= 0.5 else ""

    def line(self) -> str:
        """All of it in one line."""
        parts = [
            _clock_text(self.elapsed_seconds),
            f"{self.finished} of {_count(len(self.written), 'table')}",
            f"{_count(self.requests, 'request')} ({self.speed})",
            _count(self.rows, "row"),
        ]
        if self.retried:
            parts.append(f"{self.retried:,} retried")
        if self.failed:
            parts.append(f"{self.failed:,} failed")
        left_seconds = self.left_seconds
        if left_seconds is not None:
            parts.append(f"about {_clock_text(left_seconds)} left")
        return ", ".join(part for part in (*parts, self.waiting) if part)

    @property
    def speed(self) -> str:
        """Requests per second against what is permitted."""
        permitted = f" of {self.permitted_per_second:g}" if self.permitted_per_second else ""
        return f"{self.requests_per_second:.1f}{permitted}/s"

    def _of(self, table: str, account: str) -> TableTally:
        # When the run began it named all that it will write.
        return self.tables.setdefault((table, account), TableTally(is_written=not self.run_id))

    def _wait(self, pause_seconds: float, reason: str) -> None:
        until = self.clock() + pause_seconds
        if until > self.waits_until:
            self.waits_until, self.wait_reason = until, reason

    def _answer(self) -> None:
        now = self.clock()
        self._answered.append(now)
        while self._answered[0] < now - _RATE_SECONDS:
            self._answered.popleft()


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _clock_text(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


# --- showing ------------------------------------------------------------------------------------------------


class NoProgress:
    """Nothing is shown; lines of the log still are."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self.write_line = write

    def __call__(self, event: Event) -> None:
        return

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        return


class PlainProgress(NoProgress):
    """A line at each phase of the run, and between them one every ten seconds at most."""

    def __init__(self, tally: Tally, write: Callable[[str], None]) -> None:
        super().__init__(write)
        self._tally = tally
        self._last = tally.clock()

    def __call__(self, event: Event) -> None:
        self._tally.add(event)
        match event:
            case RunStarted():
                self._say(f"run {event.run_id} into {event.lake}: {_count(len(event.tables), 'table')}")
            case Committed():
                what = f"{_count(event.rows, 'row')} in {_count(event.files, 'file')}"
                self._say(f"committed {what} (entry {event.sequence})")
            case RunFinished():
                self._say(self._tally.line())
            case _ if self._tally.clock() - self._last >= _LINE_SECONDS:
                self._say(self._tally.line())

    def _say(self, line: str) -> None:
        self._last = self._tally.clock()
        self.write_line(line)


class LiveProgress:
    """A table of the endpoints that redraws itself four times a second, below whatever lines are written.

    `shown` makes a server's text fit for a terminal.
    """

    def __init__(self, tally: Tally, stream: TextIO, shown: Callable[[str], str] = str) -> None:
        from rich.console import Console
        from rich.live import Live

        self._tally = tally
        self._shown = shown
        self._console = Console(file=stream, highlight=False)
        # The clock of the display is a thread of rich's; it reads the tally, which only this observer writes.
        self._live: Live = Live(
            console=self._console,
            get_renderable=self.render,
            refresh_per_second=_REFRESHES_PER_SECOND,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __call__(self, event: Event) -> None:
        self._tally.add(event)

    def write_line(self, text: str) -> None:
        """Print a line above the display."""
        from rich.text import Text

        self._console.print(Text(self._shown(text)), soft_wrap=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the display away and give the cursor back; a second time nothing happens."""
        try:
            self._live.stop()
        except OSError:
            return  # the terminal is gone, and with it all that there was to tidy

    def render(self) -> RenderableType:
        """The display as it stands now, no higher than the terminal."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        parts: list[RenderableType] = [
            Text(self._shown(self._tally.line()), overflow="ellipsis", no_wrap=True)
        ]
        chosen, more = _chosen(self._tally, max(3, self._console.height - 4))
        has_accounts = len({account for _, account in self._tally.tables}) > 1
        grid = Table(box=None, pad_edge=False, header_style="dim")
        grid.add_column("endpoint", no_wrap=True)
        for head in ("pages", "rows"):
            grid.add_column(head, justify="right", no_wrap=True)
        grid.add_column("", no_wrap=True)
        for (name, account), table in chosen:
            style = {"": "", "complete": "green", "absent": "dim", "skipped": "dim"}.get(table.status, "red")
            label = f"{name} ({account})" if has_accounts else name
            state = table.status or ("…" if table.is_running else "")
            grid.add_row(
                Text(self._shown(label)), f"{table.pages:,}", f"{table.rows:,}", Text(state, style=style)
            )
        if chosen:
            parts.append(grid)
        if more:
            parts.append(Text(f"and {more} more", style="dim"))
        return Group(*parts)


def _chosen(tally: Tally, room: int) -> tuple[list[tuple[tuple[str, str], TableTally]], int]:
    """The tables to show, and how many are left out: at work, then faults, then the newest."""

    def rank(table: TableTally) -> int:
        if table.is_running:
            return 0
        if table.status not in ("", "complete", "absent", "skipped"):
            return 1
        return 2 if table.status == "complete" else 3

    seen = [(pair, table) for pair, table in list(tally.tables.items()) if table.is_running or table.status]
    ranked = sorted(seen, key=lambda entry: (rank(entry[1]), -entry[1].place))
    return ranked[:room], len(tally.tables) - len(ranked[:room])
