from __future__ import annotations

import io

import pytest
from rich.console import Console

from extractor.dashboard.progress import LiveProgress, NoProgress, PlainProgress, Tally
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


class Watch:
    """A clock that moves when told to."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def started(*tables: str) -> RunStarted:
    return RunStarted(run_id="R1", lake="lake", tables=tuple((table, "default") for table in tables))


def answered(table: str) -> RequestSucceeded:
    return RequestSucceeded(table=table, account="default", status=200, size_bytes=10, elapsed_seconds=0.1)


def stored(table: str, rows: int) -> PageStored:
    return PageStored(table=table, account="default", rows=rows)


def finished(table: str, status: str, rows: int) -> TableFinished:
    return TableFinished(table=table, account="default", status=status, rows=rows, reason="")


def tally_of(watch: Watch, *events: Event, **attributes: float | int | None) -> Tally:
    tally = Tally(clock=watch, **attributes)  # type: ignore[arg-type]  # of the attributes that a test names
    for event in events:
        tally.add(event)
    return tally


def test_rows_pages_and_finished_tables_are_counted() -> None:
    tally = tally_of(
        Watch(),
        started("a", "b"),
        answered("a"),
        stored("a", 3),
        stored("a", 4),
        finished("a", "complete", 7),
    )

    assert (tally.rows, tally.finished, tally.requests, len(tally.tables)) == (7, 1, 1, 2)
    assert tally.tables["a", "default"].pages == 2


def test_a_table_that_is_read_for_its_children_alone_counts_as_none_of_the_run() -> None:
    tally = tally_of(
        Watch(),
        started("children"),
        answered("parents"),
        stored("parents", 30),
        answered("children"),
        stored("children", 4),
        finished("children", "complete", 4),
    )

    assert tally.line().startswith("0:00, 1 of 1 table, 2 requests (2.0/s), 4 rows")


def test_the_speed_is_that_of_the_last_ten_seconds() -> None:
    watch = Watch()
    tally = tally_of(watch, permitted_per_second=10.0)
    for _ in range(40):
        watch.seconds += 0.5
        tally.add(answered("a"))

    fast = tally.requests_per_second
    watch.seconds += 60

    assert fast == pytest.approx(2.0, abs=0.2)
    assert tally.requests_per_second == 0
    assert tally.speed == "0.0 of 10/s"


def test_a_throttle_lowers_the_permitted_rate_and_is_why_the_run_waits() -> None:
    watch = Watch()
    tally = tally_of(watch, Throttled(account="default", pause_seconds=12, requests_per_second=4.0))

    while_pausing = tally.waiting
    watch.seconds += 12

    assert while_pausing == "waiting 12 s: the server asked for fewer requests"
    assert tally.waiting == ""
    assert tally.permitted_per_second == 4.0


def test_the_longest_of_several_pauses_is_named() -> None:
    tally = tally_of(
        Watch(),
        RequestRetried(table="a", account="default", reason="503", attempt=1, pause_seconds=30),
        RequestRetried(table="b", account="default", reason="reset", attempt=1, pause_seconds=2),
    )

    assert tally.waiting == "waiting 30 s: a: 503"


def test_the_time_left_is_told_only_where_the_requests_are_known() -> None:
    watch = Watch()
    unknown = tally_of(watch, answered("a"))
    known = tally_of(watch, expected_requests=21)
    for _ in range(10):
        watch.seconds += 1
        known.add(answered("a"))

    assert unknown.left_seconds is None
    assert known.left_seconds == pytest.approx(11.0)


def test_without_a_terminal_there_is_a_line_at_phases_and_every_ten_seconds() -> None:
    watch = Watch()
    lines: list[str] = []
    with PlainProgress(Tally(clock=watch), lines.append) as progress:
        progress(started("a"))
        for _ in range(50):
            watch.seconds += 0.5
            progress(stored("a", 2))
        progress(Committed(sequence=3, run_id="R1", files=1, rows=100, size_bytes=9))
        progress(RunFinished(run_id="R1", status="complete", exit_code=0))

    assert lines == [
        "run R1 into lake: 1 table",
        "0:10, 0 of 1 table, 0 requests (0.0/s), 40 rows",
        "0:20, 0 of 1 table, 0 requests (0.0/s), 80 rows",
        "committed 100 rows in 1 file (entry 3)",
        "0:25, 0 of 1 table, 0 requests (0.0/s), 100 rows",
    ]


def test_quiet_shows_nothing_of_the_run_but_passes_lines_on() -> None:
    lines: list[str] = []
    with NoProgress(lines.append) as progress:
        progress(started("a"))
        progress.write_line("a line")

    assert lines == ["a line"]


def drawn(progress: LiveProgress, *, height: int = 25) -> str:
    console = Console(file=io.StringIO(), width=100, height=height)
    with console.capture() as capture:
        console.print(progress.render())
    return capture.get()


def test_the_live_table_shows_what_is_at_work_before_what_is_done() -> None:
    tally = tally_of(
        Watch(),
        started("done", "busy", "waiting"),
        finished("done", "complete", 5),
        answered("busy"),
        stored("busy", 1234),
        RequestFailed(table="busy", account="default", reason="500"),
        RequestFailed(table="done", account="default", reason="404", is_absent=True),
    )

    lines = [line.split() for line in drawn(LiveProgress(tally, io.StringIO())).splitlines()]

    assert " ".join(lines[0]).startswith("0:00, 1 of 3 tables, 1 request (1.0/s), 1,239 rows, 1 failed")
    assert [line for line in lines[1:] if line] == [
        ["endpoint", "pages", "rows"],
        ["busy", "1", "1,234", "…"],
        ["done", "0", "5", "complete"],
        ["and", "1", "more"],
    ]


def test_the_live_table_is_never_higher_than_the_terminal() -> None:
    names = [f"t{number}" for number in range(200)]
    tally = tally_of(Watch(), started(*names), *(answered(name) for name in names))

    progress = LiveProgress(tally, io.StringIO())

    assert len(drawn(progress).splitlines()) <= 25


def test_a_servers_markup_is_shown_as_it_is() -> None:
    tally = tally_of(
        Watch(), RequestRetried(table="a", account="default", reason="[red]x[/]", attempt=1, pause_seconds=5)
    )

    assert "a: [red]x[/]" in drawn(LiveProgress(tally, io.StringIO()))


def test_lines_are_written_above_the_display_and_closing_twice_is_fine() -> None:
    stream = io.StringIO()
    with LiveProgress(Tally(clock=Watch()), stream) as progress:
        progress.write_line("2026-11-22T10:00:00Z info: [bold]hello[/bold]")
        progress.close()

    assert "2026-11-22T10:00:00Z info: [bold]hello[/bold]\n" in stream.getvalue()
