from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extractor.errors import (
    AuthError,
    BodyTooLarge,
    ConfigError,
    ExtractError,
    MalformedBody,
    NetworkError,
    PagingError,
    RedirectRefused,
    StatusError,
)
from extractor.retry import GiveUp, RetryAt, RetryPolicy, Verdict, classify, decide, is_throttling

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
POLICY = RetryPolicy(attempts=6, longest_seconds=600)


def status(code: int, retry_after: str | None = None) -> StatusError:
    headers = {} if retry_after is None else {"retry-after": retry_after}
    return StatusError(f"status {code}", status=code, headers=headers)


def judge(
    failure: ExtractError,
    *,
    attempt: int = 1,
    now: float = 100.0,
    chance: float = 0.0,
    first_at: float = 100.0,
) -> RetryAt | GiveUp:
    return decide(
        failure, attempt=attempt, first_at=first_at, now=now, server_now=NOW, policy=POLICY, chance=chance
    )


@pytest.mark.parametrize(
    ("verdict", "statuses"),
    [
        (Verdict.TRANSIENT, [408, 425, 429, 500, 501, 502, 503, 504, 507, 520, 599]),
        (Verdict.AUTH, [401]),
        (Verdict.DENIED, [403]),
        (Verdict.ABSENT, [404, 410]),
        (Verdict.TOO_LARGE, [413]),
        (Verdict.FATAL, [304, 400, 402, 405, 406, 409, 415, 418, 422, 451, 600]),
    ],
)
def test_each_status_has_one_verdict(verdict: Verdict, statuses: list[int]) -> None:
    assert {classify(status(code)) for code in statuses} == {verdict}


@pytest.mark.parametrize(
    ("failure", "verdict"),
    [
        (NetworkError("reset"), Verdict.TRANSIENT),
        (MalformedBody("cut"), Verdict.TRANSIENT),
        (BodyTooLarge("1 GB"), Verdict.TOO_LARGE),
        (RedirectRefused("elsewhere"), Verdict.FATAL),
        (PagingError("circle"), Verdict.FATAL),
        (AuthError("revoked"), Verdict.AUTH),
        (ConfigError("typing error"), Verdict.FATAL),
    ],
)
def test_each_error_has_one_verdict(failure: ExtractError, verdict: Verdict) -> None:
    assert classify(failure) is verdict


def test_throttling_is_a_429_or_a_503_that_names_a_pause() -> None:
    throttling = [status(429), status(429, "3"), status(503, "3")]
    others = [status(503), status(500, "3"), NetworkError("reset")]

    assert [is_throttling(failure) for failure in throttling + others] == [True] * 3 + [False] * 3


@pytest.mark.parametrize("code", [400, 401, 403, 404, 413, 422])
def test_what_is_not_transient_is_given_up_at_once(code: int) -> None:
    assert judge(status(code)) == GiveUp(reason=classify(status(code)).value)


def test_pauses_double_up_to_the_longest_and_chance_spreads_their_upper_half() -> None:
    policy = RetryPolicy(attempts=20, longest_seconds=1e6)

    def pauses(chance: float) -> list[float]:
        answers = [
            decide(
                NetworkError("x"),
                attempt=n,
                first_at=0,
                now=0,
                server_now=NOW,
                policy=policy,
                chance=chance,
            )
            for n in range(1, 9)
        ]
        return [answer.not_before for answer in answers if isinstance(answer, RetryAt)]

    assert pauses(0.0) == [0.5, 1, 2, 4, 8, 15, 15, 15]
    assert pauses(0.5) == [0.75, 1.5, 3, 6, 12, 22.5, 22.5, 22.5]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("7", 7), ("0", 0.1), ("-1", 0.1), ("Sun, 22 Nov 2026 12:00:40 GMT", 40), ("soon", 0.5)],
)
def test_a_pause_named_by_the_server_wins_over_the_policy(text: str, seconds: float) -> None:
    assert judge(status(503, text)) == RetryAt(not_before=100 + seconds)
    assert judge(status(500, text)) == RetryAt(not_before=100 + seconds)


def test_a_named_pause_beyond_what_is_left_ends_the_request() -> None:
    assert judge(status(503, "600")) == RetryAt(not_before=700)
    assert isinstance(judge(status(503, "601")), GiveUp)
    assert isinstance(judge(status(503, "600"), now=101.0), GiveUp)


def test_attempts_are_bounded_and_throttled_ones_five_times_as_many() -> None:
    assert isinstance(judge(status(500), attempt=5), RetryAt)
    assert judge(status(500), attempt=6) == GiveUp(reason="6 attempts failed")
    assert judge(status(429), attempt=29, chance=0.5) == RetryAt(not_before=100.75)
    assert judge(status(429), attempt=30) == GiveUp(reason="30 attempts failed")


FAILURES = st.one_of(
    st.builds(NetworkError, st.just("x")),
    st.builds(status, st.integers(300, 599), st.one_of(st.none(), st.text(max_size=5), st.just("9" * 400))),
)
POLICIES = st.builds(
    RetryPolicy,
    attempts=st.integers(1, 10),
    longest_seconds=st.floats(0, 1e4),
    first_pause_seconds=st.floats(0, 100),
    factor=st.floats(1, 10),
    longest_pause_seconds=st.floats(0.1, 100),
)


@given(
    failures=st.lists(FAILURES, min_size=1, max_size=10),
    policy=POLICIES,
    chance=st.floats(0, 1, exclude_max=True),
    work=st.floats(0, 10),
)
def test_however_it_fails_a_request_ends_within_its_bounds(
    failures: list[ExtractError], policy: RetryPolicy, chance: float, work: float
) -> None:
    attempt, now = 0, 1000.0
    while True:
        attempt += 1
        now += work
        answers = [
            decide(
                failures[attempt % len(failures)],
                attempt=attempt,
                first_at=1000.0,
                now=now,
                server_now=NOW,
                policy=policy,
                chance=chance,
            )
            for _ in range(2)
        ]
        assert answers[0] == answers[1]
        if isinstance(answers[0], GiveUp):
            break
        assert now <= answers[0].not_before <= 1000 + policy.longest_seconds + 1e-6
        now = answers[0].not_before

    assert attempt <= 5 * policy.attempts


@given(attempt=st.integers(1, 10**9))
def test_any_number_of_attempts_has_a_finite_pause(attempt: int) -> None:
    policy = RetryPolicy(attempts=2 * 10**9, factor=1e6)

    answer = decide(
        NetworkError("x"), attempt=attempt, first_at=0, now=0, server_now=NOW, policy=policy, chance=0.5
    )

    assert isinstance(answer, RetryAt)
    assert 0 < answer.not_before <= policy.longest_pause_seconds
