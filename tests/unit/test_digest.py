from __future__ import annotations

import hashlib
import json
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extractor.digest import ContentDigest, digest_rows, format_time, normalise, row_bytes

INDIA = timezone(timedelta(hours=5, minutes=30))

texts = st.text(max_size=8)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.decimals(allow_nan=False, allow_infinity=False, places=12, min_value=-(10**20), max_value=10**20)
    | st.datetimes(timezones=st.just(UTC))
    | texts
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
rows = st.dictionaries(texts, values, max_size=4)


# --- the digest ---------------------------------------------------------------------------------------------


def test_no_rows_have_the_digest_zero() -> None:
    assert digest_rows([]) == (0, "0" * 32)


def test_the_digest_is_the_sum_of_the_hashes_of_the_rows() -> None:
    written = [b'{"a":1,"b":[true,"x"]}', b"{}", b"{}"]
    total = sum(int.from_bytes(hashlib.blake2b(row, digest_size=16).digest(), "big") for row in written)

    assert digest_rows([{"b": [True, None, "x"], "a": 1.0, "c": None}, {}, {"a": None}]) == (
        3,
        f"{total % 2**128:032x}",
    )


@given(st.lists(rows, max_size=6), st.randoms())
def test_the_order_of_rows_does_not_matter(some: list[dict[str, object]], chance: object) -> None:
    shuffled = list(some)
    chance.shuffle(shuffled)  # type: ignore[attr-defined]  # a random.Random

    assert digest_rows(shuffled) == digest_rows(some)


@given(rows)
def test_the_order_of_keys_does_not_matter(row: dict[str, object]) -> None:
    assert row_bytes(dict(reversed(row.items()))) == row_bytes(row)


@given(rows)
def test_a_row_once_and_twice_are_different(row: dict[str, object]) -> None:
    assert digest_rows([row]) != digest_rows([row, row])


def test_a_digest_may_be_read_while_rows_are_added() -> None:
    digest = ContentDigest()

    seen = [digest.hexdigest()]
    for row in ({"a": 1}, {"a": 2}):
        digest.add(row)
        seen.append(digest.hexdigest())

    assert seen == [digest_rows([{"a": 1}, {"a": 2}][:count])[1] for count in range(3)]
    assert digest.rows == 2


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": "1"}, {"a": 1}),
        ({"a": True}, {"a": 1}),
        ({"a": "true"}, {"a": True}),
        ({"a": [1, 2]}, {"a": [2, 1]}),
        ({"a": {"b": 1}}, {"a.b": 1}),
        ({"a": ""}, {}),
        ({"a": []}, {}),
        ({"a": {}}, {}),
        ({"a": 0.1}, {"a": 0.1 + 2**-56}),
        ({"a": 2**53}, {"a": 2**53 + 1}),
        ({"a": "x"}, {"a": "x "}),
    ],
)
def test_rows_that_differ_have_digests_that_differ(one: dict[str, object], other: dict[str, object]) -> None:
    assert digest_rows([one]) != digest_rows([other])


# --- the normal form ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ({"a": None, "b": {"c": None, "d": [None, 1, None]}}, b'{"b":{"d":[1]}}'),
        ({"a": {"b": None}}, b'{"a":{}}'),
        ({"b": 1, "a": 2, "ä": 3, "B": 4}, '{"B":4,"a":2,"b":1,"ä":3}'.encode()),
        ({"a": 'q"\\\n\x00é€'}, '{"a":"q\\"\\\\\\n\\u0000é€"}'.encode()),
        ({"a": b"\x00\xff"}, b'{"a":"AP8="}'),
        ({"a": date(2026, 11, 22)}, b'{"a":"2026-11-22"}'),
        ({"a": (1, 2)}, b'{"a":[1,2]}'),
        ({"a": 1.0}, b'{"a":1}'),
        ({"a": -0.0}, b'{"a":0}'),
        ({"a": 1.5}, b'{"a":1.5}'),
        ({"a": 1e15}, b'{"a":1000000000000000}'),
        ({"a": 1e22}, b'{"a":10000000000000000000000}'),
        ({"a": 1.5e-7}, b'{"a":0.00000015}'),
        ({"a": 2**70}, b'{"a":1180591620717411303424}'),
        ({"a": float("nan")}, b'{"a":"NaN"}'),
        ({"a": [float("inf"), float("-inf")]}, b'{"a":["+Inf","-Inf"]}'),
        ({"a": Decimal("1.500000000000")}, b'{"a":1.5}'),
        ({"a": Decimal("-2.000")}, b'{"a":-2}'),
        ({"a": Decimal("0.000000000001")}, b'{"a":0.000000000001}'),
        (
            {"a": Decimal("12345678901234567890.123456789012")},
            b'{"a":12345678901234567890.123456789012}',
        ),
        ({"a": [Decimal("NaN"), Decimal("-Infinity")]}, b'{"a":["NaN","-Inf"]}'),
    ],
)
def test_each_value_has_one_written_form(value: dict[str, object], written: bytes) -> None:
    assert row_bytes(value) == written


@given(st.decimals(allow_nan=False, allow_infinity=False, places=12, min_value=-(10**9), max_value=10**9))
def test_a_number_is_written_alike_as_decimal_and_as_double_where_a_double_can_hold_it(
    value: Decimal,
) -> None:
    double = float(value)

    same = row_bytes({"a": value}) == row_bytes({"a": double})

    assert same == (Decimal(repr(double)) == value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_written_number_has_no_exponent_and_is_the_number(value: float) -> None:
    written = row_bytes({"a": value}).decode()

    assert "e" not in written.lower()
    assert float(json.loads(written)["a"]) == value


@given(rows)
def test_what_is_in_normal_form_stays_as_it_is(row: dict[str, object]) -> None:
    once = normalise(row)

    assert row_bytes(once) == row_bytes(row)  # type: ignore[arg-type]  # of a mapping comes a mapping


def holds_null(value: object) -> bool:
    match value:
        case dict():
            return any(map(holds_null, value.values()))
        case list():
            return any(map(holds_null, value))
        case _:
            return value is None


@given(rows)
def test_no_null_is_left_at_any_depth(row: dict[str, object]) -> None:
    assert not holds_null(json.loads(row_bytes(row)))


@pytest.mark.parametrize("value", [object(), {1, 2}, 1j])
def test_a_value_without_a_json_form_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match=rf"^no JSON form for {type(value).__name__}$"):
        row_bytes({"a": value})


# --- times --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("2026-11-22T10:31:50Z", "2026-11-22T10:31:50Z"),
        ("2026-11-22 10:31:50", "2026-11-22T10:31:50Z"),
        ("2026-11-22T10:31:50.000Z", "2026-11-22T10:31:50Z"),
        ("2026-11-22T10:31:50.120+00:00", "2026-11-22T10:31:50.12Z"),
        ("2026-11-22T00:31:50+02:00", "2026-11-21T22:31:50Z"),
        ("2026-11-22T10:31:50.198168478Z", "2026-11-22T10:31:50.198168478Z"),
        ("2026-11-22T10:31:50.000000001-05:30", "2026-11-22T16:01:50.000000001Z"),
        ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
    ],
)
def test_a_text_that_is_a_time_is_written_in_utc_without_trailing_zeros(text: str, normal: str) -> None:
    assert normalise(text) == normal
    assert normalise(normal) == normal


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-22",
        "2026-11-22T10:31",
        "2026-11-22T10:31:50 Z",
        "2026-11-22T10:31:50.Z",
        "2026-11-22T10:31:50.1234567890Z",
        "2026-13-22T10:31:50Z",
        "2026-11-22T25:31:50Z",
        "2026-11-22T10:31:50+0200",
        "at 2026-11-22T10:31:50Z",
        "2026-11-22T10:31:50Z\n",
        "٢٠٢٦-11-22T10:31:50Z",
        "0001-01-01T00:00:00+02:00",
        "xxxx-xx-xxTxx:xx:xx",
    ],
)
def test_a_text_that_is_no_whole_time_is_left_alone(text: str) -> None:
    assert normalise(text) == text


@given(st.datetimes(timezones=st.sampled_from([UTC, INDIA]), min_value=datetime(1, 1, 3)))  # noqa: DTZ001  # the zone is the strategy's
def test_a_moment_and_its_text_are_written_alike(moment: datetime) -> None:
    assert normalise(moment.isoformat()) == normalise(moment)


def test_a_moment_without_a_zone_is_taken_for_utc() -> None:
    moment = datetime(2026, 11, 22, 10, 31, 50, 120_000, tzinfo=UTC)

    assert normalise(moment.replace(tzinfo=None)) == normalise(moment) == "2026-11-22T10:31:50.12Z"


@given(st.integers(0, 999_999), st.integers(0, 999))
def test_nanoseconds_stand_behind_the_microseconds(micros: int, nanos: int) -> None:
    moment = datetime(2026, 11, 22, tzinfo=UTC).replace(microsecond=micros)

    fraction = f"{micros * 1000 + nanos:09d}".rstrip("0")

    assert format_time(moment, nanos) == "2026-11-22T00:00:00" + (f".{fraction}" if fraction else "") + "Z"
