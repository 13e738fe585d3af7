from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from datetime import UTC, datetime

import anyio
import pytest

from extractor.auth import (
    KeyFacts,
    Token,
    TokenAnswer,
    TokenSource,
    read_keyinfo,
    read_token_answer,
)
from extractor.errors import AuthError, ExtractError, MalformedBody, NetworkError, StatusError
from extractor.events import Event, TokenRefreshed
from extractor.retry import RetryPolicy
from extractor.testing import VirtualClock

DATE = datetime(2026, 11, 22, 12, tzinfo=UTC)


class Issuer:
    """An exchange that takes a second and answers from a list, its last entry again and again."""

    def __init__(
        self, clock: VirtualClock, *answers: float | ExtractError | None, seconds: float = 1.0
    ) -> None:
        self.clock = clock
        self.answers = list(answers)
        self.seconds = seconds
        self.asked_at: list[float] = []
        self.in_flight = 0
        self.most_in_flight = 0

    async def __call__(self) -> TokenAnswer:
        self.asked_at.append(self.clock.monotonic())
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await self.clock.sleep_until(self.clock.monotonic() + self.seconds)
        finally:
            self.in_flight -= 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, ExtractError):
            raise answer
        return TokenAnswer(
            token=f"token-{len(self.asked_at)}",
            lifetime_seconds=answer,
            jti=f"jti-{len(self.asked_at)}",
            scopes=("read",),
        )


def source(
    clock: VirtualClock, issuer: Issuer, observer: Callable[[Event], None] | None = None
) -> TokenSource:
    return TokenSource(
        issuer,
        clock,
        observer or (lambda event: None),
        account="a",
        policy=RetryPolicy(attempts=4, longest_seconds=100),
        chance=lambda: 0.0,
    )


def refused(status: int) -> StatusError:
    return StatusError("POST /token: refused", status=status, headers={})


# The source


async def test_a_token_is_exchanged_once_and_used_until_a_minute_before_its_end() -> None:
    clock = VirtualClock(start_monotonic=1000.0)
    issuer = Issuer(clock, 3600.0)
    tokens = source(clock, issuer)

    async def work() -> list[Token]:
        got = [await tokens.get()]
        for moment in (1001.0, 4539.9, 4540.0):
            await clock.sleep_until(moment)
            got.append(await tokens.get())
        return got

    got = await clock.run(work())

    first = Token(value="token-1", generation=1, expires_at=4600.0)
    assert got == [first, first, first, Token(value="token-2", generation=2, expires_at=8140.0)]


async def test_two_expired_requests_share_one_token_refresh() -> None:
    clock = VirtualClock()
    issuer = Issuer(clock, 3600.0)
    events: list[Event] = []
    tokens = source(clock, issuer, events.append)
    got: list[Token] = []

    async def request() -> None:
        got.append(await tokens.get())

    async def work() -> None:
        for moment in (0.0, 4000.0):
            await clock.sleep_until(moment)
            async with anyio.create_task_group() as tasks:
                for _ in range(16):
                    tasks.start_soon(request)

    await clock.run(work())

    assert [token.generation for token in got] == [1] * 16 + [2] * 16
    assert (issuer.asked_at, issuer.most_in_flight) == ([0.0, 4000.0], 1)
    assert events == [
        TokenRefreshed(account="a", generation=1, lifetime_seconds=3600.0),
        TokenRefreshed(account="a", generation=2, lifetime_seconds=3600.0),
    ]


async def test_a_refusal_invalidates_only_the_generation_that_was_used() -> None:
    clock = VirtualClock()
    tokens = source(clock, Issuer(clock, 3600.0))

    async def work() -> list[int]:
        generations = [(await tokens.get()).generation]
        tokens.invalidate(1)
        generations.append((await tokens.get()).generation)
        tokens.invalidate(1)
        generations.append((await tokens.get()).generation)
        return generations

    assert await clock.run(work()) == [1, 2, 2]


async def test_a_token_of_five_seconds_is_refreshed_no_more_often_than_every_three() -> None:
    clock = VirtualClock()
    issuer = Issuer(clock, 5.0, seconds=0.1)
    tokens = source(clock, issuer)

    async def work() -> None:
        for tenth in range(600):
            await clock.sleep_until(tenth / 10)
            token = await tokens.get()
            assert clock.monotonic() < token.expires_at

    await clock.run(work())

    pauses = [later - sooner for sooner, later in zip(issuer.asked_at, issuer.asked_at[1:], strict=False)]
    assert min(pauses) >= 3


async def test_a_token_that_is_expired_at_birth_is_still_used_for_a_while() -> None:
    clock = VirtualClock()
    issuer = Issuer(clock, 0.0, seconds=0.01)
    tokens = source(clock, issuer)

    async def work() -> None:
        for hundredth in range(200):
            await clock.sleep_until(hundredth / 100)
            await tokens.get()

    await clock.run(work())

    assert len(issuer.asked_at) <= 3


async def test_a_token_without_an_end_is_never_refreshed() -> None:
    clock = VirtualClock()
    issuer = Issuer(clock, None)
    tokens = source(clock, issuer)

    async def work() -> Token:
        await tokens.get()
        await clock.sleep_until(1e9)
        return await tokens.get()

    assert (await clock.run(work())).expires_at == math.inf
    assert len(issuer.asked_at) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404])
async def test_a_refused_exchange_says_what_to_do_and_is_not_asked_again(status: int) -> None:
    clock = VirtualClock()
    issuer = Issuer(clock, refused(status))
    tokens = source(clock, issuer)
    messages = []

    async def request() -> None:
        with pytest.raises(AuthError) as caught:
            await tokens.get()
        messages.append(caught.value.message)
        assert isinstance(caught.value.__cause__, StatusError)

    async def work() -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(request)
        await request()

    await clock.run(work())

    assert issuer.asked_at == [0.0]
    assert len(messages) == 6
    assert len(set(messages)) == 1
    assert ("source.token_url" if status == 404 else "make a new key") in messages[0]


async def test_transient_failures_are_tried_again_with_growing_pauses() -> None:
    clock = VirtualClock()
    issuer = Issuer(clock, NetworkError("reset"), refused(503), MalformedBody("cut"), 3600.0)
    tokens = source(clock, issuer)

    token = await clock.run(tokens.get())

    assert issuer.asked_at == [0.0, 1.5, 3.5, 6.5]
    assert token == Token(value="token-4", generation=1, expires_at=3606.5)


async def test_an_exchange_that_keeps_failing_fails_for_all_who_wait_and_is_tried_anew_later() -> None:
    clock = VirtualClock()
    failure = NetworkError("POST /token: connection refused")
    issuer = Issuer(clock, failure, failure, failure, failure, 3600.0)
    tokens = source(clock, issuer)
    failures: list[ExtractError] = []

    async def request() -> None:
        try:
            await tokens.get()
        except NetworkError as error:
            failures.append(error)

    async def work() -> Token:
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(request)
        assert len(issuer.asked_at) == 4
        return await tokens.get()

    token = await clock.run(work())

    assert failures == [failure] * 5
    assert token.generation == 1


async def test_a_failed_refresh_ahead_of_time_leaves_the_token_in_use_to_its_end() -> None:
    clock = VirtualClock()
    issuer = Issuer(clock, 100.0, NetworkError("reset"), NetworkError("reset"), 100.0)
    tokens = source(clock, issuer)

    async def work() -> list[tuple[float, int]]:
        got = []
        for moment in (0.0, 80.0, 81.5, 84.0, 90.0):
            await clock.sleep_until(moment)
            token = await tokens.get()
            got.append((clock.monotonic(), token.generation))
        return got

    assert await clock.run(work()) == [(1.0, 1), (81.0, 1), (81.5, 1), (85.0, 1), (91.0, 2)]


async def three_waiters(*, cancelled: int) -> tuple[Issuer, dict[int, int], asyncio.Future[None]]:
    """Three that ask for a token at once, one of whom is cancelled meanwhile; what the others got, by number."""
    clock = VirtualClock()
    issuer = Issuer(clock, 3600.0)
    tokens = source(clock, issuer)
    got: dict[int, int] = {}

    async def request(number: int) -> None:
        got[number] = (await tokens.get()).generation

    tasks = [asyncio.ensure_future(request(number)) for number in range(3)]
    await clock.advance(0.5)
    tasks[cancelled].cancel()
    await clock.advance(2.0)
    return issuer, got, tasks[cancelled]


async def test_a_cancelled_waiter_does_not_cancel_the_refresh_of_the_others() -> None:
    issuer, got, task = await three_waiters(cancelled=1)

    assert got == {0: 1, 2: 1}
    assert task.cancelled()
    assert issuer.asked_at == [0.0]


async def test_when_the_one_who_refreshes_is_cancelled_the_next_in_line_takes_over() -> None:
    issuer, got, task = await three_waiters(cancelled=0)

    assert got == {1: 1, 2: 1}
    assert task.cancelled()
    assert (issuer.asked_at, issuer.in_flight) == ([0.0, 0.5], 0)


async def test_provenance_tells_where_the_newest_token_comes_from_and_not_the_token() -> None:
    clock = VirtualClock()
    tokens = source(clock, Issuer(clock, 3600.0))
    before = dict(tokens.provenance)
    token = await clock.run(tokens.get())

    assert before == {}
    assert tokens.provenance == {
        "jti": "jti-1",
        "parent": None,
        "tenant_id": None,
        "scopes": ("read",),
        "exp": None,
    }
    assert token.value not in repr((tokens.provenance, token, TokenAnswer(token=token.value)))


# The answers

SAMPLE = {
    "jti": "4f1c",
    "email": "owner@example.com",
    "full_name": "An Owner",
    "exp": "2026-11-22T13:00:00.123456Z",
    "iat": "2026-11-22T12:00:00.123456Z",
    "scopes": ["skysql::database::read", "skysql::database::write"],
    "iss": "id",
    "parent": "9a2b",
    "token": "abc.def-ghi",
    "entitlements": [],
    "tenant_id": "t1",
}


def test_a_token_answer_is_read_without_its_owner() -> None:
    answer = read_token_answer(json.dumps(SAMPLE).encode(), date_header=None)

    assert answer == TokenAnswer(
        token="abc.def-ghi",
        lifetime_seconds=3600.0,
        jti="4f1c",
        parent="9a2b",
        tenant_id="t1",
        scopes=("skysql::database::read", "skysql::database::write"),
        exp=datetime(2026, 11, 22, 13, 0, 0, 123456, tzinfo=UTC),
    )


@pytest.mark.parametrize(
    ("times", "seconds"),
    [
        ({"exp": "2026-11-22T12:10:00Z", "iat": "2026-11-22T12:00:00Z"}, 600),
        ({"exp": "2026-11-22T12:10:00+00:00", "iat": "2026-11-22T12:00:00"}, 600),
        ({"exp": "2026-11-22T12:10:00.5Z", "iat": "2026-11-22 12:00:00Z"}, 600.5),
        ({"exp": 1795349400, "iat": 1795348800}, 600),
        ({"exp": "1795349400", "iat": 1795348800.0}, 600),
        ({"exp": 1795349400000, "iat": 1795348800}, 600),
        ({"exp": "2026-11-22T12:20:00Z"}, 1199),
        ({"exp": "2026-11-22T12:20:00Z", "iat": None}, 1199),
        ({"exp": "2026-11-22T12:20:00Z", "iat": "?"}, 1199),
        ({"exp": None, "iat": "2026-11-22T12:00:00Z"}, 3600),
        ({"exp": "never", "iat": "2026-11-22T12:00:00Z"}, 3600),
        ({"exp": 1e300}, 3600),
        ({"exp": True}, 3600),
        ({"exp": []}, 3600),
        ({}, 3600),
        ({"exp": "2026-11-22T11:00:00Z"}, 0),
    ],
)
def test_a_lifetime_is_by_the_servers_clock(times: dict[str, object], seconds: float) -> None:
    answer = read_token_answer(json.dumps({"token": "abc", **times}).encode(), date_header=DATE)

    assert answer.lifetime_seconds == pytest.approx(seconds)


def test_without_any_start_a_token_lives_an_hour() -> None:
    body = json.dumps({"token": "abc", "exp": "2026-11-22T12:20:00Z"}).encode()

    assert read_token_answer(body, date_header=None).lifetime_seconds == 3600


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"secret-token"',
        b"<html>secret-token</html>",
        b'{"token": "secret-token"',
        b'{"token": "secret-token\\n"}',
        b'{"token": "secret token"}',
        b'{"token": ""}',
        b'{"token": null, "access": "secret-token"}',
        b'{"token": "\xff secret-token"}',
        b"[" * 100_000,
    ],
)
def test_an_answer_without_a_usable_token_is_malformed_and_never_quoted(body: bytes) -> None:
    with pytest.raises(MalformedBody) as caught:
        read_token_answer(body, date_header=DATE)

    assert "secret" not in str(caught.value) + repr(caught.value.__cause__)


def test_keyinfo_is_read_without_its_owner() -> None:
    body = {
        **SAMPLE,
        "exp": None,
        "key_prefix": "abcd",
        "description": "ci",
        "entitlements": ["x", 3],
        "token": 1,
    }

    assert read_keyinfo(json.dumps(body).encode()) == KeyFacts(
        jti="4f1c",
        key_prefix="abcd",
        description="ci",
        exp=None,
        iat=datetime(2026, 11, 22, 12, 0, 0, 123456, tzinfo=UTC),
        scopes=("skysql::database::read", "skysql::database::write"),
        entitlements=("x",),
        iss="id",
        tenant_id="t1",
    )


def test_keyinfo_that_lacks_everything_is_fine_and_one_that_is_no_object_is_malformed() -> None:
    assert read_keyinfo(b"{}") == KeyFacts()
    with pytest.raises(MalformedBody):
        read_keyinfo(b"[]")
