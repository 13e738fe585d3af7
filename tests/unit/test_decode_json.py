from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from math import inf

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from extractor.decode.json import (
    Decoded,
    _decode_exactly,
    _decode_fast,
    _parse,
    decode_rows,
    open_body,
    open_lines,
)
from extractor.digest import format_time, row_bytes
from extractor.drift import words
from extractor.endpoint import ColumnType, ListType, MapType, Scalar, StructType, parse_type
from extractor.errors import BodyTooLarge, DriftRefused, MalformedBody
from extractor.schema import REDACTED, RESCUED, Field, TableSchema
from extractor.testing import canonical

Row = dict[str, object]

thorough = settings(
    max_examples=60,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
)


# --- JSON as it is written ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Number:
    """A number with the very text that a server chose for it."""

    text: str


@dataclass(frozen=True)
class Style:
    """How a server writes: what stands around colons and commas, and what it escapes."""

    colon: str = ":"
    comma: str = ","
    escapes: str = "few"
    mark: str = ""
    end: str = ""


def written(value: object, style: Style) -> str:
    match value:
        case Number(text):
            return text
        case str():
            return _quoted(value, style.escapes)
        case list():
            return "[" + style.comma.join(written(item, style) for item in value) + "]"
        case dict():
            pairs = (written(key, style) + style.colon + written(item, style) for key, item in value.items())
            return "{" + style.comma.join(pairs) + "}"
        case _:
            return json.dumps(value)


def _quoted(text: str, escapes: str) -> str:
    match escapes:
        case "few":
            return json.dumps(text, ensure_ascii=False)
        case "ascii":
            return json.dumps(text).replace("/", "\\/")
        case _:
            units = text.encode("utf-16-be")
            return '"' + "".join(f"\\u{units[n : n + 2].hex()}" for n in range(0, len(units), 2)) + '"'


styles = st.builds(
    Style,
    colon=st.sampled_from([":", ": ", " :", "\t:\n "]),
    comma=st.sampled_from([",", ", ", "\n  ,\r\n"]),
    escapes=st.sampled_from(["few", "few", "ascii", "all"]),
    mark=st.sampled_from(["", "", "\ufeff"]),
    end=st.sampled_from(["", "\n", " \r\n"]),
)

NUMBERS = """0 -0 -0.0 1 -1 5.0 2.5 1e3 1E-3 1e22 1e25 123e24 170e36 1e400 -1e400 1e-400 4.9e-324 1.5e-310
    0.1 0.30000000000000004 0.10000000000000001 1.0000000000000001 123456789.123456789 -0.4700432146934562
    1.2345678901234567e-07 -3.0000000000000000000 12.50000000000000000001
    0.1234567890123456789 1.000000000000 1.0000000000000 0.1234567890123 1e16
    9007199254740991 9007199254740992 9007199254740993 9223372036854775807 -9223372036854775808
    9223372036854775808 18446744073709551616 12345678901234567890.5 99999999999999999999999999
    1700000000 1700000000000 99999999999 100000000000 253402300799 253402300800 -62135596800 -62135596801
    1700000000.0 123456789012345678901234567890123456789012345678901234567890""".split()
TEXTS = (
    """x:null ": ":null \\": \\ \\\\ " null true 12.5 -0.50 1_0 +5 .5 5. 1e3 NaN １２ 1e30 [] {} a]}[{
    \ud83d\ude00 é
    2026-01-09T00:31:43Z 2026-01-09T00:31:43.123456Z 2026-01-09T00:31:43.123456789Z 2026-01-09T00:31:43.1234560Z
    2026-01-09T00:31:43.000000000Z 2026-01-09T00:31:43.100000001+05:30 2026-01-09T00:31:43+02:00 2026-01-09
    2026-01-09T00:31:43+0200 2026-01-09T00:31:43+02 2026-01-09T00:31Z 2026-01-09T00Z 2026-02-30T00:31:43Z
    2026-02-30T00:31:43.123456789Z 0000-01-01T00:00:00Z 0001-01-01T00:00:00Z 0001-01-01T00:00:00+05:00
    9999-12-31T23:59:59.999999Z 9999-12-31T23:59:59-05:00 2026-01-09T24:00:00Z 2026-01-09T23:59:60Z
    2026-01-09T00:31:43 2026-01-09T00:31:43.5 2026-01-09T00:31:43.123456789 9999-12-31T23:59:59.9999999
    3e-123 1.5e-400""".encode("utf-16", "surrogatepass")
    .decode("utf-16")
    .split()
)
SPACED = ["", " ", "2026-01-09 00:31:43", "2026-01-09 00:31:43.25Z", " 5", "a\nb", "\x00", "a\tb", '" :']
STRANGE_KEYS = [
    *(
        "new",
        "other",
        "NEW",
        "A",
        "x:null",
        '":',
        'q"',
        "back\\",
        "dot.ted",
        "a.b",
        "",
        "_own",
        "_rescued_data",
    ),
    *(
        "a__v2",
        "new__v3",
        "run",
        "event_date",
        "a_nanos",
        "b_nanos",
        "é",
        "\x00",
        "null",
        '":null',
        "a b",
        "\n",
    ),
]
NAMES = ["a", "b", "c", "id"]

numbers = (
    st.sampled_from(NUMBERS)
    | st.integers().map(str)
    | st.floats(allow_nan=False, allow_infinity=False).map(repr)
    | st.decimals(allow_nan=False, allow_infinity=False, places=9, min_value=-(10**12), max_value=10**12).map(
        str
    )
).map(Number)
texts = st.sampled_from(TEXTS + SPACED) | st.text(max_size=5)
keys = st.sampled_from(STRANGE_KEYS + NAMES)
anything: st.SearchStrategy[object] = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=6,
)

scalar_types = st.sampled_from(
    "string int64 float64 bool decimal timestamp timestamp_naive epoch json binary".split()
).map(Scalar)
column_types: st.SearchStrategy[ColumnType] = st.recursive(
    scalar_types,
    lambda inner: (
        inner.map(ListType)
        | inner.map(MapType)
        | st.dictionaries(st.sampled_from(NAMES), inner, min_size=1, max_size=3).map(
            lambda fields: StructType(tuple(fields.items()))
        )
    ),
    max_leaves=4,
)


def values_of(column_type: ColumnType, odd: int) -> st.SearchStrategy[object]:
    """Values that fit but for some `odd` of a hundred."""
    match column_type:
        case Scalar("string"):
            fitting: st.SearchStrategy[object] = texts
        case Scalar("bool"):
            fitting = st.booleans()
        case Scalar("int64"):
            fitting = st.integers(-(2**63), 2**63 - 1).map(lambda number: Number(str(number)))
        case Scalar("float64" | "decimal"):
            fitting = (
                numbers
                if odd
                else st.sampled_from(["-0", "2.5", "1e3", "0.30000000000000004", "7"]).map(Number)
            )
        case Scalar("epoch"):
            fitting = st.integers(0, 2 * 10**12).map(lambda number: Number(str(number)))
        case Scalar("timestamp" | "timestamp_naive"):
            end = "Z" if column_type == Scalar("timestamp") else ""
            fitting = st.datetimes().map(lambda moment: moment.isoformat() + end)
        case ListType(item):
            fitting = st.lists(values_of(item, odd), max_size=3)
        case MapType(inner):
            fitting = st.dictionaries(keys, values_of(inner, odd), max_size=3)
        case StructType(fields):
            fitting = st.fixed_dictionaries(
                {}, optional={name: values_of(inner, odd) for name, inner in fields}
            )
        case _:
            fitting = anything
    strange = anything | nearly(column_type)
    return st.integers(0, 99).flatmap(
        lambda chance: strange if chance < odd else st.none() if chance > 90 else fitting
    )


def nearly(column_type: ColumnType) -> st.SearchStrategy[object]:
    """Values that a careless reader would take for others."""
    match column_type:
        case Scalar("timestamp" | "timestamp_naive"):
            return st.sampled_from([text for text in TEXTS + SPACED if len(text) > 9])
        case Scalar("decimal"):
            return st.sampled_from([text for text in TEXTS + SPACED if len(text) < 8])
        case Scalar("epoch" | "int64" | "float64"):
            return numbers
        case ListType() | MapType() | StructType():
            return st.sampled_from(["abc", "", [], {}, [["a", "b"]], [{"key": "a", "value": "b"}]])
        case _:
            return anything


def is_readable(column_type: ColumnType) -> bool:
    """True where pyarrow's reader has a type, maps left aside."""
    match column_type:
        case Scalar(name):
            return name not in ("json", "binary")
        case ListType(item):
            return not isinstance(item, MapType) and is_readable(item)
        case MapType(inner):
            return inner in (Scalar("string"), Scalar("int64"), Scalar("bool"))
        case StructType(fields):
            return all(not isinstance(inner, MapType) and is_readable(inner) for _, inner in fields)


@st.composite
def tables(draw: st.DrawFn, odd: int = 20) -> tuple[TableSchema, list[Row]]:
    """A schema, and rows that a server might send for it; `odd` of a hundred values are for no column."""
    chosen = column_types if odd else column_types.filter(is_readable)
    types = draw(st.dictionaries(st.sampled_from(NAMES), chosen, min_size=0 if odd else 1, max_size=3))
    schema = TableSchema(
        table="t",
        fields=tuple(Field(name=name, type=type_, source=name) for name, type_ in types.items()),
        is_pinned=bool(types),
        policy=draw(st.sampled_from(["evolve", "rescue"])) if types else "evolve",  # type: ignore[arg-type]  # hypothesis gives str
    )
    known = st.fixed_dictionaries({}, optional={name: values_of(type_, odd) for name, type_ in types.items()})
    strange = st.just({}) | st.dictionaries(keys, anything, max_size=2) if odd else st.just({})
    row = st.tuples(known, strange).map(lambda two: {**two[1], **two[0]})
    return schema, draw(st.lists(row, max_size=5))


# --- what must come back ------------------------------------------------------------------------------------


def read_strictly(text: str) -> object:
    """JSON with all of its digits; ValueError where it is none, or holds a key twice."""

    def members(pairs: list[tuple[str, object]]) -> Row:
        if len({key for key, _ in pairs}) != len(pairs):
            raise ValueError("a key twice")
        return dict(pairs)

    def constant(name: str) -> object:
        raise ValueError(name)

    return json.loads(text, parse_float=Decimal, parse_constant=constant, object_pairs_hook=members)


def expected(row: Mapping[str, object], schema: TableSchema) -> bytes:
    types = {field.source: field.type for field in schema.fields}
    return row_bytes({key: nearest(meant(value, types.get(key))) for key, value in row.items()})


class Money(Decimal):
    """A number in a column of exact ones."""


def nearest(value: object) -> object:
    """Numbers as doubles where they have the digits of one, as any reader has them."""
    match value:
        case Money():
            return Decimal(value)
        case Decimal():
            is_doubles_own = len(value.as_tuple().digits) <= 17 and float(value) not in (0.0, inf, -inf)
            return float(value) if is_doubles_own or Decimal(repr(float(value))) == value else value
        case list():
            return [nearest(item) for item in value]
        case dict():
            return {key: nearest(item) for key, item in value.items()}
        case _:
            return value


def meant(value: object, column_type: ColumnType | None) -> object:
    """The value as its column says it is meant: epochs are times, texts in a column of money are numbers."""
    match column_type, value:
        case Scalar("epoch"), _ if (moment := epoch_of(value)) is not None:
            return format_time(moment)
        case Scalar("decimal"), str() | int() | Decimal() if fits(value, Scalar("decimal")):
            return Money(value)
        case ListType(item), list() if fits(value, column_type):
            return [meant(element, item) for element in value]
        case MapType(inner), dict():
            return {key: meant(element, inner) for key, element in value.items()}
        case StructType(fields), dict():
            return {key: meant(element, dict(fields).get(key)) for key, element in value.items()}
        case _:
            return value


def fits(value: object, column_type: ColumnType) -> bool:
    match column_type, value:
        case _, None:
            return True
        case Scalar("json"), _:
            return True
        case Scalar("bool"), bool():
            return True
        case _, bool():
            return False
        case Scalar("string"), str():
            return True
        case Scalar("int64"), int() | Decimal():
            return value == int(value) and -(2**63) <= value < 2**63
        case Scalar("epoch"), _:
            return epoch_of(value) is not None
        case Scalar("float64"), int():
            return abs(value) <= 2**53
        case Scalar("float64"), Decimal():
            return Decimal(repr(float(value))) == value
        case Scalar("decimal"), str() if not re.fullmatch(_DECIMAL, value):
            return False
        case Scalar("decimal"), int() | Decimal() | str():
            exact = Fraction(Decimal(value))
            return (exact * 10**12).denominator == 1 and abs(exact) < 10**26
        case Scalar("timestamp"), str():
            return is_time(value, r"Z|[+-]\d\d:\d\d")
        case Scalar("timestamp_naive"), str():
            return is_time(value, "")
        case ListType(item), list():
            return all(fits(element, item) for element in value)
        case MapType(inner), dict():
            return all(fits(element, inner) for element in value.values())
        case StructType(fields), dict():
            types = dict(fields)
            return all(
                element is None or (key in types and fits(element, types[key]))
                for key, element in value.items()
            )
        case _:
            return False


def epoch_of(value: object) -> datetime | None:
    if isinstance(value, bool) or not isinstance(value, int | Decimal) or value != int(value):
        return None
    try:
        seconds = (
            timedelta(milliseconds=int(value)) if abs(value) >= 10**11 else timedelta(seconds=int(value))
        )
        return datetime(1970, 1, 1, tzinfo=UTC) + seconds
    except OverflowError:
        return None


def is_time(text: str, zone: str) -> bool:
    """A time of the years 1 to 9999 UTC, with seconds and no finer than a microsecond."""
    found = re.fullmatch(rf"(\d{{4}}-\d\d-\d\d[T ]\d\d:\d\d:\d\d)(?:\.\d{{1,6}})?({zone})", text, re.ASCII)
    try:
        return found is not None and bool(
            datetime.fromisoformat(found[1] + (found[2] or "Z")).astimezone(UTC)
        )
    except (ValueError, OverflowError):
        return False


_DECIMAL = r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"


def rows_of(batches: Sequence[pa.RecordBatch]) -> list[bytes]:
    tables_ = [pa.Table.from_batches([batch]) for batch in batches]
    return [row_bytes(row) for row in canonical(pa.concat_tables(tables_, promote_options="default"))]


def plain(batch: pa.RecordBatch) -> tuple[object, ...]:
    """The values of a batch; the order of a map's pairs means nothing."""
    return (batch.schema, [sorted_maps(batch.column(name), field) for name, field in named(batch)])


def named(batch: pa.RecordBatch) -> Iterator[tuple[str, pa.DataType]]:
    return ((field.name, field.type) for field in batch.schema)


def sorted_maps(column: pa.Array, column_type: pa.DataType) -> list[object]:
    if pa.types.is_map(column_type):
        return [None if pairs is None else sorted(map(repr, pairs)) for pairs in column.to_pylist()]
    # Of integers, minus zero is zero; of doubles it is, too, but shows.
    return [re.sub(r"-(0\.0\b)", r"\1", repr(value)) for value in column.to_pylist()]


# --- nothing is lost, nothing invented ----------------------------------------------------------------------


@thorough
@given(tables(), styles, st.booleans())
def test_a_batch_turned_back_is_what_the_server_sent(
    table: tuple[TableSchema, list[Row]], style: Style, is_wrapped: bool
) -> None:
    schema, rows = table
    text = written(rows, style)
    body = f'{{"rows":{text}, "next":"x"}}' if is_wrapped else text
    columns = frozenset(field.name for field in schema.fields)

    envelope = open_body(
        f"{style.mark}{body}{style.end}".encode(), records="/rows" if is_wrapped else "", columns=columns
    )
    decoded = decode_rows([envelope.rows], schema)

    sent = read_strictly(text)
    assert isinstance(sent, list)
    decoded.batch.validate(full=True)
    assert rows_of([decoded.batch]) == [expected(row, schema) for row in sent]
    assert decoded.lengths == (len(rows),)


@thorough
@given(tables(odd=20) | tables(odd=0), styles)
def test_the_fast_path_gives_what_the_exact_one_gives(
    table: tuple[TableSchema, list[Row]], style: Style
) -> None:
    schema, rows = table
    page = written(rows, style).encode()
    # Once through the exact path, so that the keys of maps are known.
    schema = decode_rows([page], schema).schema

    fast = _decode_fast([page], schema)
    exact = _decode_exactly(_parse(page), schema, lengths=(len(rows),))

    if fast is not None:
        fast.batch.validate(full=True)
        assert plain(fast.batch) == plain(exact.batch)
        assert (fast.lengths, fast.drift, fast.rescued) == (exact.lengths, (), 0)


@thorough
@given(tables(), st.lists(tables().map(lambda table: table[1]), max_size=3), styles)
def test_pages_over_several_calls_lose_nothing_while_the_schema_grows(
    table: tuple[TableSchema, list[Row]], more: list[list[Row]], style: Style
) -> None:
    first, rows = table
    pages = [written(page, style) for page in (rows, *more)]
    schema, batches = first, []

    for page in pages:
        decoded = decode_rows([page.encode()], schema)
        assert decoded.schema.fields[: len(schema.fields)] == schema.fields
        schema = decoded.schema
        batches.append(decoded.batch)

    sent = [row for page in pages for row in json.loads(page, parse_float=Decimal)]
    assert rows_of(batches) == [expected(row, first) for row in sent]


@thorough
@given(tables(), styles, st.integers(0, 10_000), st.binary(min_size=0, max_size=2), st.integers(0, 3))
def test_a_damaged_body_is_refused_or_read_as_what_it_now_says(
    table: tuple[TableSchema, list[Row]], style: Style, place: int, inserted: bytes, cut: int
) -> None:
    schema, rows = table
    whole = written(rows, style).encode()
    place = place % (len(whole) + 1)
    damaged = whole[:place] + inserted + whole[place + cut :]
    try:
        sent: object = read_strictly(damaged.removeprefix(b"\xef\xbb\xbf").decode())
        is_text = "surrogate" if re.search(rb"\\u[dD][89a-fA-F]", damaged) else "text"
    except ValueError:
        sent, is_text = None, "no JSON"

    try:
        envelope = open_body(damaged, records="", columns=frozenset(NAMES))
        decoded: Decoded | None = decode_rows([envelope.rows], schema)
    except MalformedBody:
        decoded = None

    if decoded is None:
        is_rows = isinstance(sent, list) and all(isinstance(row, dict) for row in sent)
        assert is_text != "text" or not is_rows
    else:
        sent_rows = [sent] if isinstance(sent, dict) and sent else sent or []
        assert isinstance(sent_rows, list)
        assert rows_of([decoded.batch]) == [expected(row, schema) for row in sent_rows]


# --- one rule each ------------------------------------------------------------------------------------------


def schema_of(policy: str = "evolve", **types: str) -> TableSchema:
    fields = tuple(Field(name=name, type=parse_type(text), source=name) for name, text in types.items())
    return TableSchema(table="t", fields=fields, is_pinned=bool(types), policy=policy)  # type: ignore[arg-type]


def decoded(page: str, policy: str = "evolve", **types: str) -> Decoded:
    return decode_rows([page.encode()], schema_of(policy, **types))


def rescued_of(batch: pa.RecordBatch) -> list[object]:
    return [None if text is None else json.loads(text) for text in batch.column(RESCUED).to_pylist()]


@pytest.mark.parametrize(
    "row",
    [
        '{"a":1,"a":2}',
        '{"a" :1,"a":2}',
        '{"a" :1, "a" :2}',
        '{"a":1,"\\u0061":2}',
        '{"a":{"b":1,"b":2}}',
        '{"a":1,"b":"\\"\\u003a","a":2}',
        '{"a":1,"b":"\\u0022:","a":2}',
        '{"new":1,"new":null}',
    ],
)
def test_a_key_that_stands_twice_refuses_the_body(row: str) -> None:
    for types in ({"a": "int64", "b": "string"}, {"a": "json"}, {}):
        with pytest.raises(MalformedBody, match="stands twice"):
            decoded(f"[{row}]", **types)


@pytest.mark.parametrize("escape", ["\\ud800", "\\udc00", "\\ud800\\u0041", "\\uDfFf\\ud800"])
def test_half_a_surrogate_pair_refuses_the_body(escape: str) -> None:
    for body in (f'[{{"a":"{escape}"}}]', f'[{{"a":{{"{escape}":1}}}}]', f'[{{"{escape}":1}}]'):
        with pytest.raises(MalformedBody):
            open_body(body.encode(), records="", columns=frozenset())
        with pytest.raises(MalformedBody):
            decoded(body, a="string")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"[NaN]",
        b"[Infinity]",
        b"[1,]",
        b"[1 2]",
        b'["\xff"]',
        b"[][]",
        b"<html>",
        b"true",
        b'"text"',
    ],
)
def test_what_is_no_json_array_or_object_refuses_the_body(body: bytes) -> None:
    with pytest.raises(MalformedBody):
        open_body(body, records="", columns=frozenset())


@pytest.mark.parametrize(
    ("body", "records", "rows"),
    [
        ('[{"id":1}]', "", '[{"id":1}]'),
        (' \r\n\t[{"id":1}]\n', "", '[{"id":1}]'),
        (" " * 100 + '[{"id":1}]', "", '[{"id":1}]'),
        ('\ufeff[{"id":1}]', "", '[{"id":1}]'),
        ('{"data":[{"id":1}],"n":5}', "/data", '[{"id":1}]'),
        ('{"data":{"items":[{"id":1}]}}', "/data/items", '[{"id":1}]'),
        ('{"other":[{"id":1}],"n":5}', "/data", '[{"id":1}]'),
        ('{"data":null}', "/data", "[]"),
        ('{"data":{"id":1}}', "/data", '[{"id":1}]'),
        ('{"rows":[{"id":1}]}', "", '[{"id":1}]'),
        ('{"id":1,"tags":["x"]}', "", '[{"id":1,"tags":["x"]}]'),
        ("null", "", "[]"),
        ("{}", "", "[]"),
    ],
)
def test_rows_are_found_in_every_envelope_that_sources_speak_of(body: str, records: str, rows: str) -> None:
    envelope = open_body(body.encode(), records=records, columns=frozenset({"id"}))

    assert json.loads(bytes(envelope.rows)) == json.loads(rows)


@pytest.mark.parametrize("body", ['{"data":5}', '{"id":[1]}', '{"data":"x"}', '{"n":1,"n":2,"data":[]}'])
def test_an_envelope_without_its_rows_refuses_the_body(body: str) -> None:
    with pytest.raises(MalformedBody):
        open_body(body.encode(), records="/data", columns=frozenset({"id"}))


def test_what_a_body_says_of_its_paging_is_found_beside_the_rows() -> None:
    body = b'{"data":[],"meta":{"next":"abc","total":7}}'

    envelope = open_body(
        body, records="/data", columns=frozenset(), pointers=["/meta/next", "/meta/total", "/x"]
    )

    assert envelope.facts == {"/meta/next": "abc", "/meta/total": 7}


def test_each_line_of_a_body_of_lines_is_a_row() -> None:
    envelope = open_lines(b'\xef\xbb\xbf{"id":1}\r\n\n{"id":2}')

    assert json.loads(bytes(envelope.rows)) == [{"id": 1}, {"id": 2}]


@pytest.mark.parametrize("page", ["[1]", "[null]", '[{"a":1},null]', "[[]]", '["x"]'])
def test_a_row_that_is_no_object_refuses_the_body(page: str) -> None:
    with pytest.raises(MalformedBody, match="is no object"):
        decoded(page, a="int64")


@pytest.mark.parametrize("levels", [65, 300, 900])
def test_a_value_nested_deeper_than_the_bound_refuses_the_body(levels: int) -> None:
    deep = "[" * levels + "]" * levels

    with pytest.raises(BodyTooLarge):
        decoded(f'[{{"a":{deep}}}]', a="json")


def test_a_value_nested_as_deep_as_the_bound_is_kept() -> None:
    deep = "[" * 64 + "]" * 64

    assert decoded(f'[{{"a":{deep}}}]', a="json").batch.column("a").to_pylist() == [deep]


def test_the_rows_of_several_pages_are_counted_page_by_page() -> None:
    schema = schema_of(a="int64")

    fast = decode_rows([b'[{"a":1},{"a":2}]', b"[]", b'[{"a":3}]'], schema)
    exact = decode_rows([b'[{"a":1},{"a":2}]', b"[]", b'[{"a":3,"b":4}]'], schema)

    assert (fast.is_fast, fast.lengths) == (True, (2, 0, 1))
    assert (exact.is_fast, exact.lengths) == (False, (2, 0, 1))


def test_a_text_is_no_list_of_its_letters_and_an_empty_list_no_object() -> None:
    done = decoded(
        '[{"a":"abc","b":[],"c":[]}]', a="list<string>", b="struct<x: int64>", c="map<string, string>"
    )

    assert rescued_of(done.batch) == [{"a": "abc", "b": [], "c": []}]


@pytest.mark.parametrize("number", ["0.1234567890123456789", "1e-400", "9007199254740993", "1e400"])
def test_a_number_that_a_double_cannot_hold_keeps_its_digits(number: str) -> None:
    for page in (f'[{{"a":{number}}}]', f'[{{"a":{number}}},{{"a":1,"b":2}}]'):
        done = decoded(page, a="float64")

        assert done.batch.column("a")[0].as_py() is None
        assert Decimal(done.batch.column(RESCUED)[0].as_py()[5:-1]) == Decimal(number)


def test_a_double_that_stands_for_several_integers_is_no_integer() -> None:
    found = decoded('[{"n":5.991929888050481e+16},{"n":7e3}]', n="int64")

    assert found.batch.column("n").to_pylist() == [None, 7000]
    assert rescued_of(found.batch) == [{"n": 5.991929888050481e16}, None]


def test_a_number_in_a_short_form_hides_no_other_that_is_too_long() -> None:
    page = '[{"a":1.2345678901234567e-5},{"a":0.1234567890123456789012}]'

    done = decoded(page, a="float64")

    assert done.batch.column("a").to_pylist() == [1.2345678901234567e-5, None]
    assert done.batch.column(RESCUED).to_pylist() == [None, '{"a":0.1234567890123456789012}']


@pytest.mark.parametrize(
    "number",
    [
        "123456789012345678e-5",
        "0.000123456789012345678",
        "-1.23456789012345678",
        "12345678901234567.8",
        "1.23456789012345678E-7",
    ],
)
def test_a_number_of_more_digits_than_a_double_has_is_found_in_every_form(number: str) -> None:
    page = f'[{{"a":{number},"b":"0123456789abcdef0123456789012345678901"}}]'

    done = decoded(page, a="float64", b="string")

    assert done.batch.column("a").to_pylist() == [None]
    assert Decimal(json.loads(done.batch.column(RESCUED)[0].as_py(), parse_float=str)["a"]) == Decimal(number)


def test_doubles_as_servers_write_them_stay_on_the_fast_path() -> None:
    done = decoded('[{"a":0.30000000000000004,"b":"1234567890123456"}]', a="float64", b="string")

    assert (done.is_fast, done.batch.column("a").to_pylist()) == (True, [0.30000000000000004])


def test_a_great_double_is_kept() -> None:
    assert decoded('[{"a":1e300},{"a":null}]', a="float64").batch.column("a").to_pylist() == [1e300, None]


def test_money_beyond_38_digits_is_rescued_on_both_paths() -> None:
    done = decoded('[{"a":123e24},{"a":99e24}]', a="decimal")

    assert done.batch.column("a").to_pylist() == [None, Decimal("99e24")]
    assert rescued_of(done.batch) == [{"a": 123e24}, None]


@pytest.mark.parametrize("page", ['[{"a":%s}]', '[{"a":%s},{"a":1,"b":{"x":2}}]', '[{"a" : %s\n}]'])
@pytest.mark.parametrize(
    "number",
    [
        *("1e-9999999", "-0.5E-2147483647", "0e-9999999", "1e-00000000099999999", "1e-70"),
        *('"1e-9999999"', '"+1E-99"', '" 1e-99 "', r'"1\u0065-9999999"', r'"1\u002e0e-9999999"'),
        *("0." + "0" * 60 + "1", "1." + "3" * 39 + "e-9"),
    ],
)
def test_money_of_more_fractional_digits_than_arrow_has_powers_of_ten_ends_no_process(
    number: str, page: str
) -> None:
    done = decoded(page % number, a="decimal", b="string")

    value, rest = done.batch.column("a")[0].as_py(), done.batch.column(RESCUED)[0].as_py()
    assert value in (None, 0)
    assert (value is None) == (rest is not None)


@pytest.mark.parametrize(
    "page",
    [
        '[{"a":{"x":1e-9999999}}]',
        '[{"a":{"x":"1e-9999999"}}]',
        '[{"a":{"x":{"y":1}},"b":[1e-9999999],"c":{"k":1e-9999999}}]',
    ],
)
def test_nor_does_money_deep_inside(page: str) -> None:
    done = decoded(page, a="struct<x: decimal>", b="list<decimal>", c="map<string, decimal>")

    assert done.rescued == 1


def test_money_with_few_fractional_digits_stays_on_the_fast_path() -> None:
    page = '[{"a":3.6444,"b":"1e-9 e-10-11 7e-4f3a"},{"a":"12.5","b":"é\\n"},{"a":1e-9,"b":"x"}]'

    done = decoded(page, a="decimal", b="string")

    assert done.is_fast
    assert done.batch.column("a").to_pylist() == [Decimal("3.6444"), Decimal("12.5"), Decimal("1e-9")]


def test_a_null_object_that_would_hold_a_time_is_null() -> None:
    done = decoded(
        '[{"a":null},{"a":{"t":"2026-01-09T00:31:43Z"}}]', a="struct<t: timestamp, m: map<string, int64>>"
    )

    assert done.batch.column("a")[0].as_py() is None


def test_times_in_an_open_map_are_times() -> None:
    done = decoded('[{"a":{"x":"2026-01-09T00:31:43Z","y":"soon"}},{"a":null}]', a="map<string, timestamp>")

    assert done.batch.column("a").to_pylist() == [[("x", datetime(2026, 1, 9, 0, 31, 43, tzinfo=UTC))], None]
    assert rescued_of(done.batch) == [{"a": {"y": "soon"}}, None]


@pytest.mark.parametrize(
    "text", ["2026-01-09", "2026-01-09T00:31", "2026-01-09T00:31:43+02", "0000-01-01T00:00:00Z"]
)
def test_a_time_in_another_form_is_kept_as_it_came(text: str) -> None:
    for type_ in ("timestamp", "timestamp_naive"):
        assert rescued_of(decoded(f'[{{"a":"{text}"}}]', a=type_).batch) == [{"a": text}]


@pytest.mark.parametrize("epoch", [253_402_300_800_000, -62_135_596_801, -62_135_596_801_000, 2**63, 0.5])
def test_an_epoch_that_no_calendar_has_is_kept_as_it_came(epoch: float) -> None:
    done = decoded(f'[{{"a":{epoch}}},{{"a":0}}]', a="epoch")

    assert done.batch.column("a").to_pylist() == [None, datetime(1970, 1, 1, tzinfo=UTC)]
    assert rescued_of(done.batch) == [{"a": epoch}, None]


def test_nanoseconds_get_a_column_and_come_back() -> None:
    done = decoded(
        '[{"a":"2026-01-09T00:31:43.123456789Z"},{"a":"2026-01-09T00:31:43.1234560Z"}]', a="timestamp"
    )

    assert done.batch.column("a_nanos").to_pylist() == [789, None]
    assert rows_of([done.batch]) == [
        b'{"a":"2026-01-09T00:31:43.123456789Z"}',
        b'{"a":"2026-01-09T00:31:43.123456Z"}',
    ]


def test_a_key_in_the_place_of_nanoseconds_is_not_taken_for_them() -> None:
    schema = decoded('[{"a":"2026-01-09T00:31:43.123456789Z"}]', a="timestamp").schema
    row = b'{"a":"2026-01-09T00:31:43.123456Z","a_nanos":5}'

    done = decode_rows([b"[" + row + b"]"], schema)

    assert rows_of([done.batch]) == [row]


def test_a_fine_time_that_is_none_keeps_all_its_digits() -> None:
    row = b'{"a":"2026-02-30T00:31:43.123456789Z"}'

    assert rows_of([decoded(f"[{row.decode()}]", a="timestamp").batch]) == [row]


def test_names_that_the_lake_gives_a_meaning_never_become_columns() -> None:
    names = ["a__v2", "window", "RUN", "_x", "A", "", "a\u0000", "secret_token", "x" * 129]
    row = {name: index for index, name in enumerate(names)}

    done = decoded(json.dumps([row]), a="int64")

    assert done.schema == schema_of(a="int64")
    assert rescued_of(done.batch) == [{**row, "secret_token": REDACTED}]


def test_a_key_of_which_all_values_are_null_changes_nothing() -> None:
    done = decoded('[{"a":1,"new":null,"deep":null}]', a="int64")

    assert (done.schema, done.drift, rescued_of(done.batch)) == (schema_of(a="int64"), (), [None])


@pytest.mark.parametrize(
    ("values", "type_"),
    [
        ("1 2", "int64"),
        ("1 2.5", "float64"),
        ("true", "bool"),
        ('"x"', "string"),
        ('1 "x"', "json"),
        ("true 1", "json"),
        ("[1]", "json"),
        ("18446744073709551616", "json"),
    ],
)
def test_a_new_key_gets_the_narrowest_type_that_loses_nothing(values: str, type_: str) -> None:
    page = "[" + ",".join(f'{{"new":{value}}}' for value in values.split()) + "]"

    assert decoded(page, a="int64").schema.fields[1] == Field(
        name="new", type=Scalar(type_), source="new", is_inferred=True
    )


def test_the_policy_rescue_adds_no_column_and_the_policy_fail_takes_nothing_new() -> None:
    rescue = decoded('[{"new":1}]', policy="rescue", a="int64")

    assert (rescue.schema.fields, rescued_of(rescue.batch)) == (schema_of(a="int64").fields, [{"new": 1}])
    for page in ('[{"new":1}]', '[{"a":"x"}]'):
        with pytest.raises(DriftRefused, match="refused"):
            decoded(page, policy="fail", a="int64")


KEY = "skysql.1abc.2bcdefgh." + "K" * 36 + ".0123abcd"


def test_what_looks_like_a_credential_is_never_kept_under_a_name_that_nobody_knows() -> None:
    page = json.dumps(
        [
            {
                "password": "p",
                "apiKey": "k",
                "x": KEY,
                "y": {"deep": [{"access_token": "t"}]},
                "z": [KEY],
                "n": 1,
            },
            {"a": {"password": "q", "n": 2, "l": [KEY, "ok"]}, "b": {"token": "u"}},
        ]
    )

    done = decoded(page, a="struct<n: int64>", b="string")

    assert rescued_of(done.batch) == [
        {"password": REDACTED, "apiKey": REDACTED, "x": REDACTED, "y": REDACTED, "z": REDACTED},
        {"a": {"password": REDACTED, "l": [REDACTED, "ok"]}, "b": {"token": REDACTED}},
    ]
    told = str(done.batch.to_pylist()) + str([words(drift) for drift in done.drift])
    assert not any(word in told for word in (KEY, "'p'", "'t'", "'u'"))


def test_dropped_values_are_gone_and_hashed_ones_are_pseudonyms_at_every_depth() -> None:
    schema = replace(
        schema_of(a="struct<n: int64>", b="list<struct<mail: string>>", mail="string"),
        drops=("pin", "a.pin", "b[].pin", "gone[]"),
        hashes=("mail", "b[].mail"),
    )
    page = b"""[{"pin":1,"gone":["x"],"a":{"n":1,"pin":2},"b":[{"mail":"x","pin":3}],"mail":"x"}]"""

    row = decode_rows([page], schema).batch.to_pylist()[0]

    pseudonym = row["mail"]
    assert len(pseudonym) == 32
    assert row == {
        "a": {"n": 1},
        "b": [{"mail": pseudonym}],
        "mail": pseudonym,
        **({"gone": "[]"} if "gone" in row else {}),
        RESCUED: row[RESCUED],
    }
    assert "pin" not in str(row)
