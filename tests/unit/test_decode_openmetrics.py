from __future__ import annotations

import io
import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from extractor.decode.openmetrics import METRIC_SCHEMA, read_metrics
from extractor.errors import BodyTooLarge, MalformedBody

SCRAPE = Path(__file__).parents[2].parent / "shared" / "real-data" / "metrics.prom"
CONSTANTS = ("namespace", "server_name", "server_type", "service_name", "topology_type")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Beyond this many like lines in a chunk they are read with kernels.
MANY = 60


def read(text: str | bytes, *, chunk_bytes: int = 4 << 20, body_bytes_max: int = 1 << 30) -> pa.Table:
    body = text.encode() if isinstance(text, str) else text
    batches = list(read_metrics(io.BytesIO(body), chunk_bytes=chunk_bytes, body_bytes_max=body_bytes_max))
    for batch in batches:
        batch.validate(full=True)
    return pa.Table.from_batches(batches, METRIC_SCHEMA)


def rows(text: str | bytes, **options: int) -> list[dict[str, object]]:
    return read(text, **options).to_pylist()


def sample(
    name: str = "up",
    *,
    value: float = 1.0,
    labels: Mapping[str, str] | None = None,
    type: str | None = None,
    timestamp: datetime | None = None,
) -> dict[str, object]:
    """A row as it should be, without `_series`."""
    given_labels = labels or {}
    return {
        "name": name,
        "type": type,
        **{label: given_labels.get(label) for label in CONSTANTS},
        "labels": sorted((key, text) for key, text in given_labels.items() if key not in CONSTANTS),
        "value": value,
        "timestamp": timestamp,
    }


def without_series(table: list[dict[str, object]]) -> list[dict[str, object]]:
    return [{key: value for key, value in row.items() if key != "_series"} for row in table]


def comparable(table: list[dict[str, object]]) -> list[dict[str, object]]:
    """Rows with their value as text, since NaN equals nothing."""
    return [{**row, "value": repr(row["value"])} for row in table]


@pytest.fixture(scope="module")
def scrape() -> str:
    if not SCRAPE.exists():
        pytest.skip("the real scrape in ../shared is absent")
    return SCRAPE.read_text()


@pytest.mark.parametrize("repeats", [1, 3 * MANY])
def test_every_sample_of_the_real_scrape_is_the_row_that_the_reference_parser_reads(
    scrape: str, repeats: int
) -> None:
    expected = [
        sample(
            found.name,
            value=found.value,
            labels=found.labels,
            type=family.type,
            timestamp=EPOCH + timedelta(milliseconds=round(found.timestamp * 1000)),
        )
        for family in text_string_to_metric_families(scrape)
        for found in family.samples
    ] * repeats

    found = rows((scrape + "\n") * repeats)

    # The reference drops `_total` of a counter's name; the text has it.
    assert [row["name"] for row in found] == [
        line.partition("{")[0] for line in scrape.splitlines() if line and line[0] != "#"
    ] * repeats
    assert without_series(found) == expected
    assert len({row["_series"] for row in found}) == len(expected) // repeats


def test_a_scrape_read_in_chunks_of_any_size_gives_the_same_rows(scrape: str) -> None:
    whole = rows(scrape * 6)

    for chunk_bytes in (1, 7, 64, 1000, 4096, 50_000):
        assert rows(scrape * 6, chunk_bytes=chunk_bytes) == whole


TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
PLAIN_TEXTS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters='"\\\n\r'), max_size=12)
NAMES = st.from_regex(r"\A[a-zA-Z_:][a-zA-Z0-9_:]{0,8}\Z")
KEYS = st.one_of(st.sampled_from(CONSTANTS), st.from_regex(r"\A[a-zA-Z_][a-zA-Z0-9_]{0,8}\Z"))
VALUES = st.floats(allow_nan=True, allow_infinity=True)
MILLIS = st.one_of(st.none(), st.integers(-62_135_596_800_000, 253_402_300_799_999))


@st.composite
def drawn_samples(draw: st.DrawFn) -> tuple[str, dict[str, str], float, int | None]:
    labels = draw(st.dictionaries(KEYS, draw(st.sampled_from([TEXTS, PLAIN_TEXTS])), max_size=6))
    return draw(NAMES), labels, draw(VALUES), draw(MILLIS)


def escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


@st.composite
def rendered(draw: st.DrawFn, found: tuple[str, dict[str, str], float, int | None]) -> str:
    name, labels, value, millis = found
    comma = draw(st.sampled_from([",", ", ", " , "]))
    pairs = comma.join(f'{key}="{escaped(text)}"' for key, text in labels.items())
    tail = draw(st.sampled_from(["", ","])) if labels else ""
    braces = f"{{{pairs}{tail}}}" if labels or draw(st.booleans()) else ""
    number = draw(st.sampled_from(["NaN", "nan"])) if math.isnan(value) else repr(value)
    number = {"inf": "+Inf", "-inf": "-Inf"}.get(number, number)
    time = "" if millis is None else f" {millis}"
    return name + braces + draw(st.sampled_from([" ", "  "])) + number + time


@settings(max_examples=80)
@given(st.data())
def test_samples_written_as_text_are_read_back_equal(data: st.DataObject) -> None:
    samples = data.draw(st.lists(drawn_samples(), min_size=1, max_size=6))
    lines = [data.draw(rendered(found)) for found in samples]
    line_end = data.draw(st.sampled_from(["\n", "\r\n", "\n\n", "\n# a comment\n"]))
    repeats = data.draw(st.sampled_from([1, MANY]))
    chunk_bytes = data.draw(st.sampled_from([1, 13, 4096, 1 << 20]))
    text = line_end.join(lines * repeats) + data.draw(st.sampled_from(["", line_end]))

    found = rows(text, chunk_bytes=chunk_bytes)

    expected = [
        sample(
            name,
            value=value,
            labels=labels,
            timestamp=None if millis is None else EPOCH + timedelta(milliseconds=millis),
        )
        for name, labels, value, millis in samples
    ]
    assert comparable(without_series(found)) == comparable(expected * repeats)


ODD_NUMBERS = (
    "1 +1 -1 ++1 +-1 1. .5 . 1e5 1E+5 1e 1e+ e5 0x10 1_0 inf +Inf Infinity infinit nan -nan nan(1) 1e999"
)
ODD_TIMES = "0 -5 +5 1.5 .5 1e9 1.5e3 0x10 1_0 99999999999999999 253402300800000 nan x -"


@pytest.mark.parametrize("number", ODD_NUMBERS.split())
def test_one_line_and_many_alike_get_the_same_judgement_of_their_value(number: str) -> None:
    assert outcome(f"up {number}\n") == outcome(f"up {number}\n" * MANY)
    assert outcome(f'up{{a="b"}} {number} 5\n') == outcome(f'up{{a="b"}} {number} 5\n' * MANY)


@pytest.mark.parametrize("time", ODD_TIMES.split())
def test_one_line_and_many_alike_get_the_same_judgement_of_their_time(time: str) -> None:
    assert outcome(f"up 1 {time}\n") == outcome(f"up 1 {time}\n" * MANY)
    assert outcome(f'up{{a="b"}} 1 {time}\n') == outcome(f'up{{a="b"}} 1 {time}\n' * MANY)


FRAGMENTS = ("up", "a", "{", "}", '"', '"b"', "=", ",", " ", "1", "#", "\\", "1.5", "\t", "é")


@settings(max_examples=300)
@given(
    st.lists(st.sampled_from(FRAGMENTS), max_size=9).map("".join), st.sampled_from(["", "up{a=", 'up{a="b"'])
)
def test_one_line_and_many_alike_get_the_same_judgement(line: str, start: str) -> None:
    assert outcome(f"{start}{line}\n") == outcome(f"{start}{line}\n" * MANY)


def outcome(text: str) -> set[str]:
    """The distinct rows, or why there are none."""
    try:
        return set(map(str, comparable(rows(text))))
    except MalformedBody as error:
        return {str(error)}


def test_equal_series_have_equal_numbers_and_others_differ() -> None:
    (a, b, c, d, e, f, g) = (
        row["_series"]
        for row in rows(
            'up{x="1",server_name="s"} 1\nup{server_name="s", x="1",} 2 5\nup{x="1s",server_name=""} 1\n'
            'up{x="1"} 1\ndown{x="1"} 1\nup 1\nup{} 1\n'
        )
    )

    assert a == b
    assert f == g
    assert len({a, c, d, e, f}) == 5


def test_the_number_of_a_series_stays_what_it_was_in_earlier_releases() -> None:
    text = 'up{server_name="s",x="\\"1"} 1\n' + 'mariadb_up{namespace="n",x="1"} 2\n' * MANY

    found = {row["name"]: row["_series"] for row in rows(text)}

    assert found == {
        name: int.from_bytes(blake2b(identity, digest_size=8).digest(), "little", signed=True)
        for name, identity in {
            "up": b'up\xffserver_name\xffs\xffx\xff"1',
            "mariadb_up": b"mariadb_up\xffnamespace\xffn\xffx\xff1",
        }.items()
    }


def test_a_type_line_holds_for_the_samples_that_follow_also_across_chunks() -> None:
    text = "a 1\n#TYPE a gauge\na 2\n# TYPE b counter\na 3\nb_total 4\nb 5\n# TYPE a counter\na 6\nc 7\n"

    for chunk_bytes in (1, 16, 1 << 20):
        found = rows(text, chunk_bytes=chunk_bytes)
        assert [(row["value"], row["type"]) for row in found] == [
            (1, None),
            (2, "gauge"),
            (3, "gauge"),
            (4, "counter"),
            (5, "counter"),
            (6, "counter"),
            (7, None),
        ]


def test_a_family_types_the_samples_that_its_type_has() -> None:
    text = (
        '# TYPE h histogram\nh_bucket{le="1"} 1\nh_sum 2\nh_count 3\nh_total 4\n'
        "# TYPE s summary\ns_sum 5\ns_bucket 6\n# TYPE s_sum gauge\ns_sum 7\n"
    )

    assert [row["type"] for row in rows(text)] == [
        "histogram",
        "histogram",
        "histogram",
        None,
        "summary",
        None,
        "gauge",
    ]


@pytest.mark.parametrize("repeats", [1, MANY])
def test_odd_but_sound_lines_are_samples(repeats: int) -> None:
    lines = {
        'up{a="x\\\\y\\"z\\nw\\q"} 1': sample(labels={"a": 'x\\y"z\nw\\q'}),
        'up { a = "x" , b = "}{,#" , } 1': sample(labels={"a": "x", "b": "}{,#"}),
        'up{a="\\\\n\\\\\\n\\\\\\""} 1': sample(labels={"a": '\\n\\\n\\"'}),
        " \tup 1 ": sample(),
        ":a:b_1 -1e-3": sample(":a:b_1", value=-0.001),
        "up 1 -1": sample(timestamp=EPOCH - timedelta(milliseconds=1)),
        "up 1 1683321834.174": sample(timestamp=datetime(2023, 5, 5, 21, 23, 54, 174000, tzinfo=UTC)),
        'up_bucket{le="1"} 5 # {trace_id="a b"} 0.5 1.5': sample("up_bucket", value=5.0, labels={"le": "1"}),
        'up{a="1"} 5 7 # {} 0.5': sample(
            value=5.0, labels={"a": "1"}, timestamp=EPOCH + timedelta(milliseconds=7)
        ),
    }
    text = "".join(f"{line}\n" * repeats for line in lines)

    expected = [row for row in lines.values() for _ in range(repeats)]
    assert without_series(rows(f"# HELP up It is.\n#\n\n   \n# UNIT up s\n{text}# EOF\n")) == expected


def test_control_characters_beside_escapes_are_kept() -> None:
    assert (
        without_series(rows('up{a="\x01\x02\\\\\x03"} 1\n' * MANY))
        == [sample(labels={"a": "\x01\x02\\\x03"})] * MANY
    )


def test_an_escape_outside_a_label_value_is_no_sample() -> None:
    for line in ('up{a\\"="b"} 1', 'up{a="b"} 1\\n', 'up{a="b\\"} 1', '\\\\up{a="b"} 1'):
        with pytest.raises(MalformedBody, match=r"^line 1 "):
            rows(f"{line}\n" * MANY)


@pytest.mark.parametrize("repeats", [1, MANY])
@pytest.mark.parametrize(
    "line",
    [
        "up",
        "up x",
        "up 1 2 3",
        "1up 1",
        "up 1 # a comment",
        "up{a=1} 1",
        'up{a="1" 1',
        'up{a="1"b="2"} 1',
        'up{,a="1"} 1',
        'up{a="1",,} 1',
        'up{1a="1"} 1',
        'up{a="1",a="1"} 1',
        'up{a="1"} 0x1F',
        '{"error":"no such service"}',
        "just words here",
    ],
)
def test_a_line_that_is_nothing_known_is_named_in_the_error(line: str, repeats: int) -> None:
    with pytest.raises(MalformedBody, match=r"^line 3 of the metrics text ") as caught:
        rows("# HELP up It is.\nup 1\n" + f"{line}\n" * repeats)

    assert repr(line[:80]) in caught.value.message


def test_the_number_of_a_bad_line_counts_those_of_earlier_chunks() -> None:
    for chunk_bytes in (1, 10, 1 << 20):
        with pytest.raises(MalformedBody, match=r"^line 203 "):
            rows("up 1\r\n\n" * 101 + "bad\n", chunk_bytes=chunk_bytes)


def test_html_is_no_metrics_text() -> None:
    with pytest.raises(MalformedBody, match="HTML"):
        rows("\ufeff\n <!DOCTYPE html><html>\n<p>502</p>\n")


def test_bytes_that_are_no_utf8_are_refused_with_their_line() -> None:
    with pytest.raises(MalformedBody, match=r"line 2 .* not UTF-8"):
        rows(b'up 1\nup{a="\xe9"} 1\n')


def test_a_body_over_its_bound_is_refused() -> None:
    assert len(rows("up 1\n", body_bytes_max=5)) == 1
    with pytest.raises(BodyTooLarge, match="larger than 4 bytes"):
        rows("up 1\n", body_bytes_max=4)


def test_a_line_without_end_is_refused_before_it_fills_the_memory() -> None:
    with pytest.raises(BodyTooLarge, match="longer than"):
        rows("x" * (17 << 20), chunk_bytes=1 << 20)


def test_no_samples_are_no_batches() -> None:
    assert list(read_metrics(io.BytesIO(b"# EOF\n\n"), body_bytes_max=10)) == []
    assert list(read_metrics(io.BytesIO(b""), body_bytes_max=10)) == []
