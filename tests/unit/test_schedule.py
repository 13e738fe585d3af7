from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extractor.schedule import Frontier, FrontierStatistics, drain
from extractor.testing.clock import VirtualClock


@dataclass(frozen=True)
class Request:
    """A request of a table, by number; `note` does not make it another one."""

    table: str
    number: int
    note: str = ""


def new_frontier(rank: Mapping[str, int] | None = None) -> Frontier[Request]:
    ranks = rank or {}
    return Frontier(
        identity=lambda request: (request.table, request.number),
        group=lambda request: request.table,
        rank=lambda table: ranks.get(str(table), 0),
    )


def requests(*names: str) -> list[Request]:
    return [Request(name[:-1], int(name[-1])) for name in names]


def take_all(frontier: Frontier[Request], now: float = 0.0) -> list[str]:
    taken = []
    while (request := frontier.take(now)) is not None:
        taken.append(f"{request.table}{request.number}")
    return taken


def filled(*names: str) -> Frontier[Request]:
    frontier = new_frontier()
    for request in requests(*names):
        frontier.add(request)
    return frontier


# --- the frontier -------------------------------------------------------------------------------------------


def test_a_new_frontier_is_drained() -> None:
    frontier = new_frontier()

    assert frontier.is_drained
    assert frontier.take(0.0) is None
    assert frontier.ready_at(5.0) is None
    assert frontier.statistics() == FrontierStatistics(known=0, ready=0, waiting=0, in_flight=0)


def test_an_equal_request_is_taken_once_even_after_it_was_answered() -> None:
    frontier = filled("a1")

    again = [frontier.add(Request("a", 1, note="again"))]
    taken = take_all(frontier)
    frontier.finish()
    again.append(frontier.add(Request("a", 1)))

    assert (taken, again, frontier.is_drained) == (["a1"], [False, False], True)


def test_groups_take_turns_and_within_a_group_order_is_kept() -> None:
    frontier = filled("a1", "a2", "a3", "b1", "c1", "c2")

    assert take_all(frontier) == ["a1", "b1", "c1", "a2", "c2", "a3"]


def test_a_group_that_comes_late_waits_one_turn_at_most() -> None:
    frontier = filled("a1", "a2", "a3", "a4")

    taken = [frontier.take(0.0)]
    frontier.add(Request("b", 1))

    assert taken == requests("a1")
    assert take_all(frontier) == ["b1", "a2", "a3", "a4"]


def test_in_each_round_the_lowest_rank_comes_first() -> None:
    frontier = new_frontier(rank={"a": 3, "b": 1, "c": 2})
    for request in requests("a1", "a2", "b1", "b2", "c1", "c2", "c3"):
        frontier.add(request)

    assert take_all(frontier) == ["b1", "c1", "a1", "b2", "c2", "a2", "c3"]


def test_a_chain_with_one_request_at_a_time_has_a_turn_in_every_round() -> None:
    frontier = new_frontier(rank={"chain": -1})
    for table in "abcd":
        for number in range(10):
            frontier.add(Request(table, number))
    frontier.add(Request("chain", 0))

    taken: list[str] = []
    for _ in range(40):
        request = frontier.take(0.0)
        assert request is not None
        taken.append(request.table)
        if taken[-4:-3] == ["chain"]:  # it was answered while three others were sent
            frontier.add(Request("chain", len(taken)))

    assert "".join(name[0] if name == "chain" else "." for name in taken) == "c...." * 8


def test_who_comes_back_within_a_round_does_not_have_two_turns_in_it() -> None:
    frontier = new_frontier(rank={"chain": -1})
    for request in [Request("a", 1), Request("b", 1), Request("chain", 0)]:
        frontier.add(request)

    taken = []
    for number in range(1, 9):
        request = frontier.take(0.0)
        assert request is not None
        taken.append(request.table)
        if request.table == "chain":
            frontier.add(Request("chain", number))

    assert taken[:3] == ["chain", "a", "b"]


def test_what_was_withdrawn_is_not_taken_and_may_be_added_again() -> None:
    frontier = filled("a1", "a2", "a3", "b1", "c1", "c2")
    for not_before in (9.0, 8.0):
        request = frontier.take(0.0)
        assert request is not None
        frontier.put_back(request, not_before=not_before)

    frontier.withdraw(requests("a1", "a2", "c1", "c2", "x9"))

    assert frontier.statistics() == FrontierStatistics(known=2, ready=1, waiting=1, in_flight=0)
    assert [frontier.add(request) for request in requests("c1", "b1")] == [True, False]
    assert take_all(frontier, 10.0) == ["c1", "a3", "b1"]


def test_what_is_set_aside_can_be_resumed_and_is_waited_for_only_then() -> None:
    frontier = filled("a1")
    frontier.take(0.0)

    frontier.finish()
    seen = [frontier.is_drained]
    frontier.resume()
    seen.append(frontier.is_drained)

    assert seen == [True, False]


def test_the_requests_that_are_ready_are_counted_by_group() -> None:
    frontier = filled("a1", "a2", "b1")
    frontier.take(0.0)

    assert [frontier.ready_in(group) for group in "abc"] == [1, 1, 0]


def test_a_request_that_was_put_back_is_not_taken_before_its_time() -> None:
    frontier = filled("a1", "b1")
    request = frontier.take(0.0)
    assert request is not None

    frontier.put_back(request, not_before=3.0)

    assert take_all(frontier, 2.9) == ["b1"]
    assert frontier.ready_at(2.9) == 3.0
    assert frontier.statistics() == FrontierStatistics(known=2, ready=0, waiting=1, in_flight=1)
    assert frontier.ready_at(3.5) == 3.5
    assert take_all(frontier, 3.5) == ["a1"]


def test_what_waited_goes_before_what_is_new_in_its_group_and_the_earliest_first() -> None:
    frontier = filled("a1", "a2", "a3", "a4")
    for not_before in (2.0, 1.0, 2.0):
        request = frontier.take(0.0)
        assert request is not None
        frontier.put_back(request, not_before=not_before)

    assert take_all(frontier, 5.0) == ["a2", "a1", "a3", "a4"]


def test_drained_means_that_nothing_waits_and_nothing_is_in_flight() -> None:
    frontier = filled("a1")
    seen = [frontier.is_drained]

    request = frontier.take(0.0)
    assert request is not None
    seen.append(frontier.is_drained)
    frontier.put_back(request, not_before=1.0)
    seen.append(frontier.is_drained)
    frontier.take(1.0)
    seen.append(frontier.is_drained)
    frontier.finish()
    seen.append(frontier.is_drained)

    assert seen == [False, False, False, False, True]


def test_what_is_forgotten_is_never_taken_but_what_is_in_flight_is_waited_for() -> None:
    frontier = filled("a1", "a2", "b1", "b2")
    request = frontier.take(0.0)
    assert request is not None
    frontier.put_back(request, not_before=9.0)
    frontier.take(0.0)

    dropped = frontier.forget()

    assert dropped == 3
    assert take_all(frontier, 10.0) == []
    assert not frontier.is_drained
    frontier.finish()
    assert frontier.is_drained


@pytest.mark.parametrize(
    "change",
    [
        lambda frontier: frontier.add(Request("z", 9)),
        lambda frontier: frontier.finish(),
        lambda frontier: frontier.put_back(Request("a", 1), not_before=1.0),
        lambda frontier: frontier.forget(),
    ],
)
def test_whoever_waits_for_a_change_is_told_of_each(change: Callable[[Frontier[Request]], object]) -> None:
    async def scenario() -> tuple[bool, bool]:
        frontier = filled("a1")
        frontier.take(0.0)
        changed = frontier.changed
        before = changed.is_set()
        change(frontier)
        return before, changed.is_set()

    assert asyncio.run(scenario()) == (False, True)


# What may happen to a frontier: a step is a name and two numbers that it may use as it likes.
steps = st.tuples(
    st.sampled_from(["add", "take", "finish", "put back", "pass", "set aside", "resume", "withdraw"]),
    st.integers(0, 9),
    st.integers(0, 9),
)


@given(st.lists(steps, max_size=60))
def test_every_request_is_answered_once_whatever_happens_in_between(
    script: list[tuple[str, int, int]],
) -> None:
    frontier = new_frontier()
    now = 0.0
    known: set[Request] = set()
    in_flight: list[Request] = []
    aside: list[Request] = []
    earliest: dict[Request, float] = {}
    answered: Counter[Request] = Counter()

    def take() -> None:
        request = frontier.take(now)
        if request is not None:
            assert earliest.get(request, 0.0) <= now
            in_flight.append(request)

    for name, one, other in script:
        match name:
            case "add":
                request = Request("abc"[one % 3], other)
                assert frontier.add(request) == (request not in known)
                known.add(request)
            case "take":
                take()
            case "finish" if in_flight:
                answered[in_flight.pop(one % len(in_flight))] += 1
                frontier.finish()
            case "put back" if in_flight:
                request = in_flight.pop(one % len(in_flight))
                earliest[request] = now + other
                frontier.put_back(request, not_before=now + other)
            case "set aside" if in_flight:
                aside.append(in_flight.pop(one % len(in_flight)))
                frontier.finish()
            case "resume" if aside:
                in_flight.append(aside.pop())
                frontier.resume()
            case "withdraw":
                # Of what is out and of what is done nothing changes, and it stays unwelcome only while it is known.
                gone = {Request("abc"[one % 3], number) for number in (other, other + 1)}
                gone = {request for request in gone if not answered[request]} - {*in_flight, *aside}
                frontier.withdraw(gone)
                known -= gone
            case "pass":
                now += one
        statistics = frontier.statistics()
        assert statistics.in_flight == len(in_flight)
        assert statistics.known == len(known)
        assert statistics.ready + statistics.waiting + len(in_flight) + len(aside) + answered.total() == len(
            known
        )
        assert frontier.is_drained == (answered.total() + len(aside) == len(known))

    for request in aside:
        in_flight.append(request)
        frontier.resume()
    while not frontier.is_drained:
        ready_at = frontier.ready_at(now)
        if ready_at is not None:
            now = max(now, ready_at)
            take()
        answered[in_flight.pop()] += 1
        frontier.finish()

    assert answered == Counter(known)


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 99)), unique=True, max_size=40))
def test_no_group_is_passed_over_while_it_has_something_ready(names: list[tuple[str, int]]) -> None:
    frontier = new_frontier()
    left: Counter[str] = Counter()
    for table, number in names:
        frontier.add(Request(table, number))
        left[table] += 1

    since: Counter[str] = Counter()
    while (request := frontier.take(0.0)) is not None:
        left[request.table] -= 1
        since[request.table] = 0
        for table in left:
            if left[table] and table != request.table:
                since[table] += 1
                assert since[table] < 4, "one turn of each other group at most"

    assert left.total() == 0


# --- drain --------------------------------------------------------------------------------------------------


class CountedSlots:
    """So many attempts at once; knows the most that there ever were."""

    def __init__(self, clock: VirtualClock, count: int) -> None:
        self.live = 0
        self.peak = 0
        self.granted = 0
        self._clock = clock
        self._semaphore = anyio.Semaphore(count, max_value=count)

    async def acquire(self) -> float:
        await self._semaphore.acquire()
        self.live += 1
        self.granted += 1
        self.peak = max(self.peak, self.live)
        return self._clock.monotonic()

    def try_acquire(self, now: float) -> bool:
        try:
            self._semaphore.acquire_nowait()
        except anyio.WouldBlock:
            return False
        self.live += 1
        self.granted += 1
        self.peak = max(self.peak, self.live)
        return True

    def release(self) -> None:
        self.live -= 1
        self._semaphore.release()


async def admitted() -> None:
    """There is always memory."""


@dataclass
class Outcome:
    """What became of a drained frontier."""

    clock: VirtualClock
    slots: CountedSlots
    sent: list[tuple[float, str]]
    frontier: Frontier[Request]


def drained(
    frontier: Frontier[Request],
    answer: Callable[[Frontier[Request], Request, VirtualClock], Awaitable[None]],
    *,
    slots: int = 2,
    admit: Callable[[], Awaitable[None]] = admitted,
) -> Outcome:
    """Drain a frontier in virtual time; `answer` is one attempt, without the finish."""

    async def scenario() -> Outcome:
        clock = VirtualClock()
        outcome = Outcome(clock, CountedSlots(clock, slots), [], frontier)

        async def attempt(request: Request, sent_at: float) -> None:
            outcome.sent.append((sent_at, f"{request.table}{request.number}"))
            await answer(frontier, request, clock)

        await clock.run(drain(frontier, slots=outcome.slots, clock=clock, attempt=attempt, admit=admit))
        return outcome

    return asyncio.run(scenario())


async def answer_after_a_second(frontier: Frontier[Request], request: Request, clock: VirtualClock) -> None:
    await clock.sleep_until(clock.monotonic() + 1.0)
    frontier.finish()


def test_draining_nothing_ends_at_once() -> None:
    outcome = drained(new_frontier(), answer_after_a_second)

    assert (outcome.sent, outcome.slots.granted, outcome.clock.monotonic()) == ([], 0, 0.0)


def test_as_many_requests_are_out_as_there_are_slots() -> None:
    outcome = drained(filled("a1", "a2", "a3", "b1", "b2"), answer_after_a_second, slots=2)

    assert outcome.sent == [(0.0, "a1"), (0.0, "b1"), (1.0, "a2"), (1.0, "b2"), (2.0, "a3")]
    assert (outcome.slots.peak, outcome.slots.live, outcome.clock.monotonic()) == (2, 0, 3.0)


def test_what_an_answer_adds_is_sent_though_it_was_the_last_in_flight() -> None:
    async def answer(frontier: Frontier[Request], request: Request, clock: VirtualClock) -> None:
        await clock.sleep_until(clock.monotonic() + 1.0)
        if request.number < 4:
            frontier.add(Request(request.table, request.number + 1))
        frontier.finish()

    outcome = drained(filled("a1"), answer)

    assert outcome.sent == [(0.0, "a1"), (1.0, "a2"), (2.0, "a3"), (3.0, "a4")]


def test_a_request_that_was_put_back_is_sent_again_at_its_time() -> None:
    attempts: Counter[Request] = Counter()

    async def answer(frontier: Frontier[Request], request: Request, clock: VirtualClock) -> None:
        attempts[request] += 1
        if attempts[request] < 3:
            frontier.put_back(request, not_before=clock.monotonic() + 5.0)
        else:
            frontier.finish()

    outcome = drained(filled("a1", "b1"), answer, slots=1)

    assert outcome.sent == [(at, name) for at in (0.0, 5.0, 10.0) for name in ("a1", "b1")]


def test_new_work_does_not_wait_for_what_has_to_wait() -> None:
    async def answer(frontier: Frontier[Request], request: Request, clock: VirtualClock) -> None:
        if request.table == "slow" and clock.monotonic() < 60.0:
            frontier.put_back(request, not_before=60.0)
            return
        await clock.sleep_until(clock.monotonic() + 1.0)
        if request.number < 3:
            frontier.add(Request(request.table, request.number + 1))
        frontier.finish()

    outcome = drained(filled("slow3", "a1"), answer)

    assert outcome.sent == [(0.0, "slow3"), (0.0, "a1"), (1.0, "a2"), (2.0, "a3"), (60.0, "slow3")]


def test_no_slot_is_held_while_there_is_no_memory() -> None:
    async def scenario() -> list[tuple[float, int]]:
        clock = VirtualClock()
        slots = CountedSlots(clock, 2)
        frontier = filled("a1")
        seen: list[tuple[float, int]] = []

        async def admit() -> None:
            seen.append((clock.monotonic(), slots.live))
            await clock.sleep_until(clock.monotonic() + 10.0)

        async def attempt(request: Request, sent_at: float) -> None:
            seen.append((sent_at, slots.live))
            frontier.finish()

        await clock.run(drain(frontier, slots=slots, clock=clock, attempt=attempt, admit=admit))
        return seen

    assert asyncio.run(scenario()) == [(0.0, 0), (10.0, 1)]


def test_a_run_that_is_told_to_end_waits_for_what_is_in_flight_and_sends_no_more() -> None:
    async def answer(frontier: Frontier[Request], request: Request, clock: VirtualClock) -> None:
        await clock.sleep_until(clock.monotonic() + 1.0)
        if request == Request("a", 1):
            frontier.forget()
            await clock.sleep_until(clock.monotonic() + 1.0)
        frontier.finish()

    outcome = drained(filled("a1", "a2", "a3", "b1", "b2"), answer, slots=2)

    assert outcome.sent == [(0.0, "a1"), (0.0, "b1")]
    assert (outcome.slots.live, outcome.clock.monotonic()) == (0, 2.0)


def test_an_attempt_that_raises_ends_the_run_and_gives_every_slot_back() -> None:
    class Ended(Exception):
        pass

    async def scenario() -> CountedSlots:
        clock = VirtualClock()
        slots = CountedSlots(clock, 3)
        frontier = filled("a1", "a2", "a3", "a4")

        async def attempt(request: Request, sent_at: float) -> None:
            await clock.sleep_until(float(request.number))
            if request.number == 2:
                raise Ended
            frontier.finish()

        with pytest.raises(ExceptionGroup) as caught:
            await clock.run(drain(frontier, slots=slots, clock=clock, attempt=attempt, admit=admitted))
        assert [type(error) for error in caught.value.exceptions] == [Ended]
        return slots

    slots = asyncio.run(scenario())

    assert (slots.live, slots.peak) == (0, 3)


@given(
    st.dictionaries(
        st.tuples(st.sampled_from("abc"), st.integers(0, 5)),
        st.tuples(
            st.lists(st.floats(0, 9), max_size=3),  # the pauses before it is answered
            st.lists(st.tuples(st.sampled_from("abc"), st.integers(6, 12)), max_size=3),  # what it leads to
            st.floats(0, 3),  # how long each attempt takes
        ),
        max_size=10,
    ),
    st.integers(1, 4),
)
def test_a_drained_frontier_has_answered_everything_once_within_its_slots(
    world: dict[tuple[str, int], tuple[list[float], list[tuple[str, int]], float]], slots: int
) -> None:
    attempts: Counter[Request] = Counter()
    answered: Counter[Request] = Counter()
    frontier = new_frontier()
    for table, number in world:
        frontier.add(Request(table, number))

    async def answer(frontier: Frontier[Request], request: Request, clock: VirtualClock) -> None:
        pauses, children, seconds = world.get((request.table, request.number), ([], [], 0.5))
        await clock.sleep_until(clock.monotonic() + seconds)
        attempts[request] += 1
        if attempts[request] <= len(pauses):
            frontier.put_back(request, not_before=clock.monotonic() + pauses[attempts[request] - 1])
            return
        for child in children:
            frontier.add(Request(*child))
        answered[request] += 1
        frontier.finish()

    outcome = drained(frontier, answer, slots=slots)

    expected = {Request(*name) for name in world}
    expected |= {Request(*child) for _, children, _ in world.values() for child in children}
    assert answered == Counter(expected)
    assert attempts.total() == len(expected) + sum(len(pauses) for pauses, _, _ in world.values())
    assert outcome.slots.peak <= slots
    assert outcome.slots.live == 0
    assert outcome.frontier.is_drained
