from __future__ import annotations

import io
import itertools
import zipfile
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import msgspec
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extractor.drift import Drift
from extractor.endpoint import Endpoint
from extractor.errors import DriftRefused, ExtractError, MalformedBody
from extractor.fetch import Response
from extractor.lane import (
    Budget,
    DecodeBounds,
    Executor,
    InlineExecutor,
    Lane,
    Page,
    Part,
    ThreadExecutor,
    _Held,
    parent_values,
    shape_batch,
    with_kept,
)
from extractor.plan import PageRequest
from extractor.schema import RESCUED, Field, Scalar, TableSchema

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
SCHEMA = TableSchema(table="t", fields=(Field(name="id", type=Scalar("int64"), source="id"),))


@dataclass
class Shelf:
    """A sink that keeps what it is given, and writes it when told."""

    ids: list[int] = field(default_factory=list)
    buffered_bytes: int = 0
    full_bytes: int = 1 << 40
    written: int = 0
    flushed: int = 0

    @property
    def is_full(self) -> bool:
        return self.buffered_bytes >= self.full_bytes

    async def take(self, parts: Sequence[Part]) -> None:
        for part in parts:
            await anyio.lowlevel.checkpoint()
            self.ids += part.batch.column("id").to_pylist()
            self.buffered_bytes += part.batch.nbytes

    async def write(self) -> None:
        await anyio.lowlevel.checkpoint()
        self.written += 1
        self.buffered_bytes = 0

    async def flush(self) -> None:
        await anyio.lowlevel.checkpoint()
        self.flushed += 1
        self.buffered_bytes = 0


@dataclass
class Bench:
    """A lane with everything it reports."""

    schema: TableSchema = SCHEMA
    executor: Executor = field(default_factory=InlineExecutor)
    budget: Budget = field(default_factory=lambda: Budget(1 << 20))
    format: str = "json"
    shelf: Shelf = field(default_factory=Shelf)
    pages: list[tuple[str, int]] = field(default_factory=list)
    failures: list[tuple[str, type[ExtractError]]] = field(default_factory=list)
    drift: list[Drift] = field(default_factory=list)
    is_eager: bool = True
    works: list[Callable[[], Coroutine[Any, Any, None]]] = field(default_factory=list)
    spawn: Callable[[Callable[[], Coroutine[Any, Any, None]]], object] | None = None

    def __post_init__(self) -> None:
        self.lane = Lane(
            Endpoint(name="t", path="/t", format=self.format),  # type: ignore[arg-type]  # of the test's choice
            self.schema,
            self.shelf,
            executor=self.executor,
            budget=self.budget,
            bounds=DecodeBounds(body_bytes=1 << 20, depth=64, archive_ratio=200),
            spool_folder=lambda: Path(),
            on_page=lambda page, batch, rows: self.pages.append((page.request.path, rows)),
            on_failure=lambda page, failure: self.failures.append((page.request.path, type(failure))),
            on_drift=self.drift.extend,
            spawn=lambda work: (self.spawn or self.works.append)(work),
            is_eager=self.is_eager,
        )

    async def work(self) -> None:
        """Do what was spawned, and what that spawns."""
        while self.works:
            works, self.works[:] = list(self.works), []
            async with anyio.create_task_group() as group:
                for work in works:
                    group.start_soon(work)


def page(
    path: str, rows: str, *, keep: tuple[tuple[str, str], ...] = (), size_bytes: int | None = None
) -> Page:
    return Page(
        request=PageRequest(table="t", account="default", path=path, keep=keep, window="w"),
        rows=rows.encode(),
        response=None,
        received_at=NOON,
        size_bytes=len(rows) if size_bytes is None else size_bytes,
    )


def ids(*numbers: int) -> str:
    return "[" + ",".join(f'{{"id":{number}}}' for number in numbers) + "]"


# --- the order of pages -------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 700_000)), min_size=1, max_size=12))
def test_rows_reach_the_sink_in_the_order_in_which_pages_came(shapes: list[tuple[int, int]]) -> None:
    async def scene() -> Bench:
        bench = Bench(executor=ThreadExecutor(2), budget=Budget(1 << 40))
        for number, (rows, size) in enumerate(shapes):
            text = ids(*(10 * number + row for row in range(rows)))
            bench.lane.put(page(f"/{number}", text, size_bytes=size))
            if size % 3:
                await bench.work()
        await bench.work()
        return bench

    bench = anyio.run(scene)

    assert bench.shelf.ids == [10 * n + row for n, (rows, _) in enumerate(shapes) for row in range(rows)]
    assert bench.pages == [(f"/{number}", rows) for number, (rows, _) in enumerate(shapes)]
    assert (bench.budget.bodies, bench.budget.rows) == (0, bench.shelf.buffered_bytes)
    assert not bench.lane.is_running


class YieldingExecutor:
    """Work that others overtake: each call lets them run so many times first, as drawn."""

    def __init__(self, yields: Sequence[int]) -> None:
        self._yields = itertools.cycle(yields)
        self.now = self.most = 0

    async def run(self, work: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        self.now += 1
        self.most = max(self.most, self.now)
        for _ in range(next(self._yields)):
            await anyio.lowlevel.checkpoint()
        self.now -= 1
        return work(*args, **kwargs)


ANY_PAGE = st.tuples(
    st.sampled_from(("ids", "named", "broken")), st.sampled_from((1, 1 << 19, 1 << 20)), st.integers(0, 9)
)


@settings(max_examples=60)
@given(st.lists(ANY_PAGE, min_size=1, max_size=12), st.lists(st.integers(0, 9), min_size=1, max_size=5))
def test_whatever_is_decoded_ahead_each_page_is_taken_once_and_in_order(
    shapes: list[tuple[str, int, int]], yields: list[int]
) -> None:
    texts = {
        "ids": ids,
        "named": lambda number: f'[{{"id":{number},"n{number}":"x"}}]',
        "broken": lambda _: "[1]",
    }

    async def scene() -> Bench:
        bench = Bench(executor=YieldingExecutor(yields), is_eager=False)
        async with anyio.create_task_group() as tasks:
            bench.spawn = tasks.start_soon
            for number, (kind, size, pause) in enumerate(shapes):
                bench.lane.put(page(f"/{number}", texts[kind](number), size_bytes=size))
                for _ in range(pause):
                    await anyio.lowlevel.checkpoint()
            bench.lane.hurry()
        return bench

    bench = anyio.run(scene)
    good = [number for number, (kind, _, _) in enumerate(shapes) if kind != "broken"]

    assert bench.shelf.ids == good
    assert [path for path, _ in bench.pages] == [f"/{number}" for number in good]
    assert len(bench.failures) == len(shapes) - len(good)
    assert (bench.budget.bodies, bench.lane.is_running) == (0, False)


async def test_at_whatever_moment_of_another_a_page_comes_it_is_decoded() -> None:
    for moment in range(40):
        bench = Bench(executor=YieldingExecutor([3]), is_eager=False)
        async with anyio.create_task_group() as tasks:
            bench.spawn = tasks.start_soon
            bench.lane.put(page("/0", ids(0), size_bytes=1 << 20))
            for _ in range(moment):
                await anyio.lowlevel.checkpoint()
            bench.lane.put(page("/1", ids(1)))
            bench.lane.hurry()

        assert bench.shelf.ids == [0, 1], moment


async def test_what_was_decoded_ahead_of_a_new_column_is_decoded_again_and_rows_stay_in_order() -> None:
    bench = Bench(is_eager=False)
    texts = [ids(1), ids(2), '[{"id":3,"name":"x"}]', '[{"id":4,"name":"y"}]', ids(5)]
    for number, text in enumerate(texts):
        bench.lane.put(page(f"/{number}", text, size_bytes=1 << 20))  # each in a call of its own
    await bench.work()

    assert bench.shelf.ids == [1, 2, 3, 4, 5]
    assert [path for path, _ in bench.pages] == ["/0", "/1", "/2", "/3", "/4"]
    assert [drift.column for drift in bench.drift] == ["name"]
    assert "name" in bench.lane.schema.arrow.names


async def test_two_calls_of_the_decoder_are_under_way_while_the_schema_stays() -> None:
    executor = YieldingExecutor([1])
    bench = Bench(is_eager=False, executor=executor)
    for number in range(6):
        bench.lane.put(page(f"/{number}", ids(number), size_bytes=1 << 20))
    await bench.work()

    assert bench.shelf.ids == [0, 1, 2, 3, 4, 5]
    assert executor.most == 2


async def test_only_one_task_is_at_work_at_a_time() -> None:
    bench = Bench()

    bench.lane.put(page("/0", ids(1)))
    bench.lane.put(page("/1", ids(2)))
    tasks = len(bench.works)
    await bench.work()
    bench.lane.put(page("/2", ids(3)))

    assert (tasks, bench.shelf.ids, len(bench.works)) == (1, [1, 2], 1)


async def test_pages_nobody_waits_for_are_decoded_when_there_are_enough_or_no_more_will_come() -> None:
    bench = Bench(is_eager=False, budget=Budget(4 << 20))
    bench.lane.put(page("/0", ids(1), size_bytes=1_000_000))
    few = len(bench.works)
    bench.lane.put(page("/1", ids(2), size_bytes=100_000))
    enough = len(bench.works)
    await bench.work()
    bench.lane.put(page("/2", ids(3), size_bytes=1))
    left = len(bench.works)
    bench.lane.hurry()
    await bench.work()
    bench.lane.hurry()

    assert (few, enough, left) == (0, 1, 0)
    assert (bench.shelf.ids, bench.works) == ([1, 2, 3], [])


async def test_hurry_is_for_the_pages_that_are_there_not_for_those_that_come_meanwhile() -> None:
    bench = Bench(is_eager=False)
    bench.lane.put(page("/1", ids(1)))
    bench.lane.hurry()
    bench.lane.put(page("/2", ids(2), size_bytes=1 << 20))  # not in one call with the first
    bench.lane.put(page("/3", ids(3)))
    await bench.work()

    assert bench.pages == [("/1", 1), ("/2", 1)]

    bench.lane.hurry()
    await bench.work()

    assert bench.pages[2:] == [("/3", 1)]


async def test_row_groups_are_written_while_pages_are_decoded_one_ahead_at_most() -> None:
    bench = Bench(budget=Budget(1 << 40), shelf=Shelf(full_bytes=8))
    async with anyio.create_task_group() as group:
        bench.lane._spawn = group.start_soon
        for number in range(3):
            bench.lane.put(page(f"/{number}", ids(number), size_bytes=1 << 20))

    assert (bench.shelf.ids, bench.shelf.written, bench.shelf.flushed) == ([0, 1, 2], 3, 0)
    assert (bench.budget.bodies, bench.budget.rows, bench.lane.is_encoding) == (0, 0, False)


async def test_a_page_that_is_to_blame_is_found_and_its_neighbours_are_kept() -> None:
    bench = Bench()
    for number, rows in enumerate([ids(1), "[7]", ids(3)]):
        bench.lane.put(page(f"/{number}", rows))

    await bench.work()

    assert bench.shelf.ids == [1, 3]
    assert (bench.pages, bench.failures) == ([("/0", 1), ("/2", 1)], [("/1", MalformedBody)])
    assert bench.budget.bodies == 0


async def test_drift_that_the_policy_refuses_fails_the_page_that_drifts() -> None:
    bench = Bench(schema=TableSchema(table="t", fields=SCHEMA.fields, policy="fail"))
    for number, rows in enumerate([ids(1), '[{"id":2,"new":1}]']):
        bench.lane.put(page(f"/{number}", rows))

    await bench.work()

    assert (bench.shelf.ids, bench.failures) == ([1], [("/1", DriftRefused)])


async def test_a_schema_that_grew_is_used_for_the_pages_after() -> None:
    bench = Bench()
    bench.lane.put(page("/0", '[{"id":1,"new":"x"}]'))
    await bench.work()
    bench.lane.put(page("/1", '[{"id":2,"new":"y"}]'))

    await bench.work()

    assert [known.name for known in bench.lane.schema.fields] == ["id", "new"]
    assert bench.drift == [Drift(table="t", column="new", kind="column", type=Scalar("string"))]


# --- the budget ---------------------------------------------------------------------------------------------


async def test_no_page_is_admitted_while_the_budget_is_used_up() -> None:
    budget = Budget(100)
    admitted: list[int] = []

    async def ask(number: int) -> None:
        await budget.admit()
        budget.take_body(60)
        admitted.append(number)

    async with anyio.create_task_group() as group:
        for number in range(4):
            group.start_soon(ask, number)
        await anyio.wait_all_tasks_blocked()
        before = list(admitted)
        peak = budget.peak
        budget.free_body(60)
        await anyio.wait_all_tasks_blocked()
        after = list(admitted)
        budget.set_rows(0, 100)
        budget.free_body(60)
        budget.free_body(60)
        await anyio.wait_all_tasks_blocked()
        with_rows = list(admitted)
        budget.set_rows(100, 0)

    assert peak == 120
    assert (before, after, with_rows, admitted) == ([0, 1], [0, 1, 2], [0, 1, 2], [0, 1, 2, 3])


@settings(max_examples=25)
@given(st.lists(st.integers(1, 400), min_size=1, max_size=30), st.integers(500, 3000))
def test_what_is_held_never_exceeds_the_budget_by_more_than_the_page_last_admitted(
    sizes: list[int], size_bytes: int
) -> None:
    async def scene() -> Bench:
        bench = Bench(budget=Budget(size_bytes))
        async with anyio.create_task_group() as group:
            bench.lane._spawn = group.start_soon
            for number, rows in enumerate(sizes):
                await bench.budget.admit()
                bench.lane.put(page(f"/{number}", ids(*range(rows // 20)), size_bytes=rows))
        return bench

    bench = anyio.run(scene)

    # 20 rows of 16 bytes each at most are decoded from a page while its body is still counted.
    assert bench.budget.peak <= size_bytes + max(sizes) + 2 * 20 * 24 + size_bytes // 2
    assert len(bench.pages) == len(sizes)
    assert bench.budget.bodies == 0


async def test_rows_beyond_half_of_the_budget_are_written_early() -> None:
    bench = Bench(budget=Budget(64))
    bench.lane.put(page("/0", ids(1, 2, 3, 4, 5), size_bytes=1))

    await bench.work()

    assert (bench.shelf.flushed, bench.budget.rows) == (1, 0)


# --- formats that are read piece by piece -------------------------------------------------------------------

LINES = TableSchema(
    table="lines",
    fields=(
        Field(name="log_id", type=Scalar("string"), source="log_id"),
        Field(name="id", type=Scalar("int64"), source="line_number"),
        Field(name="line", type=Scalar("string"), source="line"),
    ),
)


def archive(spool: Path, *members: str, cut: int = 0) -> Page:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for number, text in enumerate(members):
            file.writestr(f"{number}.log", text)
    spool.write_bytes(content.getvalue()[: -cut or None])
    response = Response(
        status=200,
        headers={},
        body=b"",
        spool=spool,
        size_bytes=spool.stat().st_size,
        elapsed_seconds=0,
        received_at=NOON,
    )
    return msgspec.structs.replace(
        page(f"/{spool.name}", "", size_bytes=response.size_bytes), response=response
    )


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def test_an_archive_is_read_line_by_line_and_its_body_removed(tmp_path: Path) -> None:
    bench = Bench(schema=LINES, format="log_archive")
    bench.lane.put(archive(tmp_path / "a", "one\ntwo\n", "three\n"))
    bench.lane.put(archive(tmp_path / "b", "four\n"))

    await bench.work()

    assert bench.shelf.ids == [1, 2, 1, 1]
    assert (bench.pages, bench.failures) == ([("/a", 3), ("/b", 1)], [])
    assert (bench.budget.bodies, names_in(tmp_path)) == (0, [])


async def test_of_a_damaged_archive_nothing_is_kept(tmp_path: Path) -> None:
    bench = Bench(schema=LINES, format="log_archive")
    bench.lane.put(archive(tmp_path / "a", "one\n", cut=30))

    await bench.work()

    assert (bench.shelf.ids, bench.pages, bench.failures) == ([], [], [("/a", MalformedBody)])
    assert (bench.budget.bodies, names_in(tmp_path)) == (0, [])


@pytest.mark.parametrize("batches", [0, 1, 4])
def test_batches_of_one_answer_come_back_in_order_from_memory_or_from_a_file(
    batches: int, tmp_path: Path
) -> None:
    whole = [pa.record_batch({"id": pa.array([number] * 400_000, pa.int64())}) for number in range(batches)]
    held = _Held(lambda: tmp_path)

    held.fill(iter(whole))
    on_disk = len(list(tmp_path.iterdir()))
    back = [batch for some in held.drain() for batch in some]
    held.discard()

    assert (back, on_disk, list(tmp_path.iterdir())) == (whole, int(batches > 2), [])


# --- what the parent says -----------------------------------------------------------------------------------


def test_a_batch_of_a_fixed_format_has_the_columns_of_the_table() -> None:
    batch = pa.record_batch({"line": ["x"], "line_number": pa.array([7], pa.int32()), "more": [1]})

    shaped = shape_batch(batch, LINES)

    assert shaped.schema == LINES.arrow
    assert shaped.to_pylist() == [{"log_id": None, "id": 7, "line": "x", RESCUED: None}]


def test_a_value_of_the_parent_fills_its_column_where_the_row_has_none_of_its_own() -> None:
    batch = pa.record_batch(
        {"service_id": pa.array([None, "own"]), "n": pa.array([None, None], pa.int64()), "x": [1, 2]}
    )

    filled = with_kept(
        batch,
        [[("service_id", "s1"), ("n", "5"), ("absent", "y")], [("service_id", "s2"), ("n", "6")]],
        [1, 1],
    )

    assert filled.to_pylist() == [{"service_id": "s1", "n": 5, "x": 1}, {"service_id": "own", "n": 6, "x": 2}]
    assert filled.schema == batch.schema


def test_each_row_or_element_of_the_parent_gives_the_values_of_a_child() -> None:
    batch = pa.record_batch(
        {
            "id": ["a", "b", None],
            "users": [[{"id": 1}, {"id": None}], [], None],
            "place": [{"region": "x"}, {"region": None}, None],
        }
    )

    rows = list(parent_values(batch, {"service": "id"}, [("region", "place.region")]))
    elements = list(parent_values(batch, {"user": "users[].id", "service": "id"}, [("service_id", "id")]))

    assert rows == [({"service": "a"}, (("region", "x"),)), ({"service": "b"}, ()), None]
    assert elements == [({"user": "1", "service": "a"}, (("service_id", "a"),)), None]
