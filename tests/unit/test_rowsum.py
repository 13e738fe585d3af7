from __future__ import annotations

import random
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pyarrow as pa
import pytest

from extractor.rowsum import RowSum, sum_rows

COUNT = 200
CHANCE = random.Random(7)
MAPS = pa.map_(pa.string(), pa.string())
NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)

ROWS = pa.table(
    {
        "whole": pa.array([CHANCE.choice([None, number]) for number in range(COUNT)], pa.int64()),
        "text": [f"{CHANCE.choice('abc')}{number % 30}" for number in range(COUNT)],
        "bytes": [number.to_bytes(2) for number in range(COUNT)],
        "ratio": [CHANCE.choice([CHANCE.random(), None]) for _ in range(COUNT)],
        "map": pa.array([[("a", str(n % 5)), ("b", "x")] if n % 3 else None for n in range(COUNT)], MAPS),
        "list": [[n % 3] * (n % 4) if n % 5 else None for n in range(COUNT)],
        "struct": [{"x": n % 9, "y": None} if n % 4 else None for n in range(COUNT)],
        "moment": [NOON + timedelta(microseconds=n) for n in range(COUNT)],
        "day": [date(2026, 1, 1) + timedelta(days=n) for n in range(COUNT)],
        "money": [Decimal(n) / 4 for n in range(COUNT)],
        "flag": [None if n % 2 else n % 4 == 0 for n in range(COUNT)],
        "nothing": pa.nulls(COUNT, pa.string()),
    }
)
EXPECTED = sum_rows(ROWS)


def test_the_order_of_rows_and_columns_does_not_matter() -> None:
    shuffled = list(range(COUNT))
    CHANCE.shuffle(shuffled)

    assert sum_rows(ROWS.take(pa.array(shuffled))) == EXPECTED
    assert sum_rows(ROWS.select(ROWS.schema.names[::-1])) == EXPECTED


def test_sums_of_parts_add_up_to_that_of_the_whole() -> None:
    parts = [ROWS.slice(start, 37) for start in range(0, COUNT, 37)]

    total = RowSum()
    for part in parts:
        total += sum_rows(part)

    assert total == EXPECTED
    assert sum_rows(pa.concat_tables(parts)) == EXPECTED
    assert sum_rows(ROWS.slice(0, 0)) == RowSum()


def test_a_column_of_nulls_is_as_none() -> None:
    assert sum_rows(ROWS.drop_columns(["nothing"])) == EXPECTED


def test_dictionaries_are_as_what_they_stand_for() -> None:
    place = ROWS.schema.get_field_index("text")
    parts = [
        part.set_column(place, "text", part["text"].dictionary_encode())
        for part in (ROWS.slice(0, 90), ROWS.slice(90))
    ]

    assert sum_rows(pa.concat_tables(parts)) == EXPECTED


@pytest.mark.parametrize("name", [name for name in ROWS.schema.names if name != "nothing"])
def test_two_rows_that_exchange_one_value_are_other_rows(name: str) -> None:
    values = ROWS[name].to_pylist()
    other = next(number for number in range(1, COUNT) if values[number] != values[0])
    values[0], values[other] = values[other], values[0]
    changed = ROWS.set_column(ROWS.schema.get_field_index(name), name, pa.array(values, ROWS[name].type))

    assert sum_rows(changed) != EXPECTED


def test_a_row_twice_or_a_row_less_is_another_sum() -> None:
    assert sum_rows(pa.concat_tables([ROWS, ROWS.slice(3, 1)])) != EXPECTED
    assert sum_rows(pa.concat_tables([ROWS.slice(1), ROWS.slice(3, 1)])) != EXPECTED


def test_lists_differ_by_order_and_length_and_maps_do_not_by_order() -> None:
    def total(values: list[object], type_: pa.DataType | None = None) -> tuple[int, int]:
        return sum_rows(pa.table({"x": pa.array(values, type_)})).total

    lists = [total([[1, 2], [3]]), total([[2, 1], [3]]), total([[1], [2, 3]]), total([[], [1, 2, 3]])]
    assert len(set(lists)) == 4
    assert total([None], pa.list_(pa.int64())) != total([[]], pa.list_(pa.int64()))
    assert total([[("a", "1"), ("b", "2")]], MAPS) == total([[("b", "2"), ("a", "1")]], MAPS)
    assert total([[("a", "1"), ("b", "2")]], MAPS) != total([[("a", "2"), ("b", "1")]], MAPS)
    assert total([float("nan")]) == total([-float("nan")])
