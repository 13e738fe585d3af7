from __future__ import annotations

from datetime import UTC, datetime

import anyio
import msgspec
import pyarrow as pa
import pytest

from extractor.errors import LakeBusy
from extractor.journal import (
    Answer,
    Claim,
    Facts,
    Fate,
    Found,
    Head,
    Journal,
    Origin,
    find_journals,
    read_journal,
    read_rows,
    restore_schema,
    survey,
)
from extractor.lane import InlineExecutor
from extractor.plan import PageRequest
from extractor.schema import Field, Scalar, TableSchema
from extractor.stores.memory import MemoryStore
from extractor.testing import VirtualClock

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
ORIGIN = Origin(run_id="r1", version="1", configuration="c", started_at=NOON, own_start=NOON, committed=7)
SCHEMA = TableSchema(
    table="t",
    fields=(Field(name="id", type=Scalar("int64"), source="id"),),
    map_keys={"tags": ("a", "b")},
    null_keys=frozenset({"ended_on"}),
)


def answer(page: int, rows: int, *, chain: str = "c", is_last: bool = False) -> Answer:
    request = PageRequest(
        table="t",
        account="default",
        path="/t/%2F",
        query=(("page_token", f"é{page}"), ("size", "2")),
        keep=(("service_id", "s1"),),
        window="2026-11-22",
        chain=chain,
        page=page,
    )
    facts = Facts(fingerprint=b"\x00\xff", headers={"x-next": "n"}, pointers={"/total": 3}, rows=rows)
    return Answer(request=request, facts=facts, rows=rows, is_last=is_last)


def journal(store: MemoryStore, generation: int = 0) -> Journal:
    return Journal(store, ORIGIN, generation=generation, executor=InlineExecutor())


async def written(store: MemoryStore, *told: tuple[Answer, ...], generation: int = 0) -> Found:
    """A journal with a segment for each of these, whose rows count up from 0."""
    kept = journal(store, generation)
    recorder = kept.recorder("t", "default")
    for answers in told:
        rows = sum(one.rows for one in answers)
        batch = pa.record_batch({"id": pa.array(range(rows), pa.int64())})
        times = pa.array([NOON] * rows, pa.timestamp("us", "UTC"))
        await kept.add(recorder.encode(SCHEMA, answers, batch, times))
        await kept.save()
    (found,) = find_journals(store)
    return found


def pages(store: MemoryStore, found: Found) -> list[int]:
    return [one.request.page for record in read_journal(store, found) for one in record.head.answers]


async def test_what_was_saved_comes_back_in_order_and_whole() -> None:
    store = MemoryStore()
    told = ((answer(0, 2), answer(1, 1)), (answer(2, 0, is_last=True),))

    found = await written(store, *told)

    records = list(read_journal(store, found))
    assert (found.origin, found.claims) == (ORIGIN, ())
    assert tuple(record.head.answers for record in records) == told
    rows = records[0].rows()
    assert rows is not None
    assert rows.to_pydict() == {"id": [0, 1, 2], "_extracted_at": [NOON] * 3}
    assert records[1].rows() is None


async def test_the_columns_come_back_as_they_were_and_stand_once() -> None:
    store = MemoryStore()
    found = await written(store, (answer(0, 2),), (answer(1, 1),))
    bare = TableSchema(table="t", fields=(), drops=("secret",), is_pinned=False)

    first, second = (record.head for record in read_journal(store, found))

    restored = restore_schema(bare, first)
    assert restored.null_keys == SCHEMA.null_keys != frozenset()
    assert (restored.fields, restored.map_keys, restored.is_pinned) == (SCHEMA.fields, SCHEMA.map_keys, True)
    assert restored.drops == ("secret",)
    assert restore_schema(bare, second) is bare


async def test_rows_are_found_again_by_their_place() -> None:
    store = MemoryStore()
    found = await written(store, (answer(0, 2), answer(1, 3)), (answer(2, 4),))
    one, two = (record.place for record in read_journal(store, found))

    batches = list(read_rows(store, [(*one, 2, 3), (*two, 0, 1 << 62)]))

    assert [batch.column("id").to_pylist() for batch in batches] == [[2, 3, 4], [0, 1, 2, 3]]


@pytest.mark.parametrize("keep", [0, 10, 40, 200, -1])
async def test_reading_ends_before_a_record_that_is_cut(keep: int) -> None:
    store = MemoryStore()
    found = await written(store, (answer(0, 2),), (answer(1, 2),), (answer(2, 2),))
    _, path = found.segments[1]
    store.put(path, store.read(path)[:keep])

    assert pages(store, found) == [0]


async def test_reading_ends_before_a_record_of_which_a_byte_changed() -> None:
    store = MemoryStore()
    found = await written(store, (answer(0, 2),), (answer(1, 2),))
    _, path = found.segments[1]
    content = bytearray(store.read(path))
    content[-20] ^= 1
    store.put(path, bytes(content))

    assert pages(store, found) == [0]


async def test_reading_ends_before_a_segment_that_is_missing() -> None:
    store = MemoryStore()
    found = await written(store, (answer(0, 2),), (answer(1, 2),), (answer(2, 2),))
    store.delete(found.segments[1][1])

    (rest,) = find_journals(store)
    assert pages(store, rest) == [0]


async def test_a_folder_that_is_no_journal_is_left_out() -> None:
    store = MemoryStore()
    await written(store, (answer(0, 2),))
    store.put("_extractor/staging/r2/journal/0000-00000000", b"SKYJ1\n")
    store.put("_extractor/staging/r3/journal/origin.json", b"{")
    store.put("_extractor/staging/r3/journal/0000-00000000", b"SKYJ1\n")
    store.put("_extractor/staging/r4/journal/account=default/part-00000.parquet", b"a table of that name")

    assert [found.origin.run_id for found in find_journals(store)] == ["r1"]


async def test_nothing_is_written_before_there_is_something_to_save() -> None:
    store = MemoryStore()
    kept = journal(store)

    await kept.save()

    assert not kept.is_begun
    assert list(store.list("")) == []


async def test_of_a_process_that_wakes_late_nothing_counts_and_it_is_told() -> None:
    store = MemoryStore()
    found = await written(store, (answer(0, 2),))
    sleeper = journal(store)
    sleeper._number = 1  # it wrote the segment above
    claimed = found.claim(store, committed=9, afresh=())
    await written(store, (answer(1, 2),), generation=claimed.generation - 1)

    sleeper.add_at_once(sleeper.recorder("t", "default").encode(SCHEMA, (answer(7, 0),), None, None))
    with pytest.raises(LakeBusy, match="taken up"):
        await sleeper.save()

    (again,) = find_journals(store)
    assert pages(store, again) == [0, 1]
    assert again.generation == 2


async def test_a_journal_is_taken_up_by_one_process_only() -> None:
    store = MemoryStore()
    found = await written(store, (answer(0, 2),))
    claimed = found.claim(store, committed=9, afresh=[("t", "default")])

    with pytest.raises(LakeBusy, match="taken up"):
        found.claim(store, committed=9, afresh=())

    assert claimed.claims == (Claim(segments=(1,), committed=9, afresh=(("t", "default"),)),)
    assert claimed.counts_from(("t", "default")) == (1, 9)
    assert claimed.counts_from(("u", "default")) == (0, 7)


async def test_a_reading_begun_anew_makes_what_was_told_before_void() -> None:
    store = MemoryStore()
    first = answer(0, 1).request

    found = await written(
        store,
        (answer(0, 2), answer(1, 1)),
        (Answer.void(first), answer(0, 2), answer(1, 2)),
        (answer(0, 1, chain="d"), answer(1, 1, chain="d")),
        (answer(0, 1, chain="d", is_last=True),),
        (answer(0, 1, chain="e"), Answer.void(answer(0, 1, chain="e").request)),
    )

    assert survey(store, found) == {
        "c": Fate(since=(1, 1), answers=2),
        "d": Fate(since=(3, 0), answers=1, is_last=True, is_again=True),
        "e": Fate(since=(4, 2)),
    }


async def test_a_token_that_is_no_text_is_not_written_down() -> None:
    store = MemoryStore()
    kept = journal(store)
    request = PageRequest(table="t", account="default", path="/t", query=(("token", "\udcff"),), chain="c")

    kept.add_at_once(kept.recorder("t", "default").encode(SCHEMA, (Answer(request=request),), None, None))
    await kept.save()

    (found,) = find_journals(store)
    assert [record.head for record in read_journal(store, found)] == [
        Head(table="t", account="default", is_lost=True)
    ]


@pytest.mark.parametrize("place", ["headers", "pointers", "query", "path"])
async def test_a_position_that_holds_a_secret_is_not_written_down_and_its_chain_ends_before(
    place: str,
) -> None:
    store = MemoryStore()
    secret = "k3y" * 10
    kept = Journal(
        store,
        ORIGIN,
        generation=0,
        executor=InlineExecutor(),
        conceal=lambda text: text.replace(secret, "[redacted]"),
    )
    recorder = kept.recorder("t", "default")
    told = [answer(page, 1, is_last=page == 3) for page in range(4)]
    one = told[2]
    assert one.facts is not None
    with_secret = {
        "headers": msgspec.structs.replace(
            one, facts=msgspec.structs.replace(one.facts, headers={"x-next": f"after-{secret}"})
        ),
        "pointers": msgspec.structs.replace(
            one, facts=msgspec.structs.replace(one.facts, pointers={"/next": {"token": secret}})
        ),
        "query": msgspec.structs.replace(
            one, request=msgspec.structs.replace(one.request, query=(("t", secret),))
        ),
        "path": msgspec.structs.replace(one, request=msgspec.structs.replace(one.request, path=f"/{secret}")),
    }
    told[2] = with_secret[place]
    batch = pa.record_batch({"id": pa.array([1], pa.int64())})
    times = pa.array([NOON], pa.timestamp("us", "UTC"))
    for answered in told:
        await kept.add(recorder.encode(SCHEMA, (answered,), batch, times))
    await kept.save()

    (found,) = find_journals(store)
    assert survey(store, found) == {"c": Fate(since=(0, 0), answers=2)}
    assert not any(secret.encode() in store.read(path) for _, path in found.segments)


async def test_what_came_is_saved_within_ten_seconds_and_lanes_are_hurried_before() -> None:
    store = MemoryStore()
    clock = VirtualClock()
    kept = journal(store)
    encoded = kept.recorder("t", "default").encode(SCHEMA, (answer(0, 0),), None, None)
    arrived = clock.monotonic()

    async with anyio.create_task_group() as tasks:
        # A lane that waits for more pages, until it is hurried, and then takes its time.
        tasks.start_soon(kept.keep, clock, lambda: tasks.start_soon(decode, clock, kept, encoded))
        while not find_journals(store):
            await clock.advance(0.5)
        tasks.cancel_scope.cancel()

    assert clock.monotonic() - arrived <= 10


async def decode(clock: VirtualClock, kept: Journal, encoded: bytes) -> None:
    await clock.sleep_until(clock.monotonic() + 0.5)
    await kept.add(encoded)


async def test_a_segment_is_put_at_once_when_it_is_full_and_no_more_than_two_are_held() -> None:
    store = MemoryStore()
    clock = VirtualClock()
    hurries: list[float] = []
    kept = Journal(store, ORIGIN, generation=0, executor=InlineExecutor(), memory_bytes=16 * 1000)
    added = 0

    async def add_many() -> None:
        nonlocal added
        while added < 12:
            await kept.add(b"x" * 400)
            added += 1

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(add_many)
        await clock.advance(1)
        held = added
        tasks.start_soon(kept.keep, clock, lambda: hurries.append(clock.monotonic()))
        await clock.advance(1)
        tasks.cancel_scope.cancel()

    assert held == 5
    assert kept.is_begun
    assert added == 12
    assert hurries == []  # small calls of the decoder cost more, and there was no need yet
