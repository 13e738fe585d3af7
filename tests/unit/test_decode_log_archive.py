from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
import threading
import zipfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extractor.decode.log_archive import LOG_SCHEMA, read_log_archive
from extractor.errors import BodyTooLarge, MalformedBody

LOGS = Path(__file__).parents[2].parent / "shared" / "real-data" / "logs"


def read(
    archive: bytes, *, ratio_max: float = 1e9, member_bytes_max: int = 1 << 40, chunk_bytes: int = 4 << 20
) -> list[dict[str, object]]:
    batches = list(
        read_log_archive(
            io.BytesIO(archive),
            ratio_max=ratio_max,
            member_bytes_max=member_bytes_max,
            chunk_bytes=chunk_bytes,
        )
    )
    for batch in batches:
        batch.validate(full=True)
    return pa.Table.from_batches(batches, LOG_SCHEMA).to_pylist()


def zipped(members: Mapping[str, bytes | str], *, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return body.getvalue()


def lines_of(text: str | bytes, **options: int) -> list[dict[str, object]]:
    return read(zipped({"a.log": text}), **options)


def facts(row: Mapping[str, object]) -> tuple[object, ...]:
    """What the grammars give of a row: entry, time, nanoseconds, level, stream."""
    return tuple(row[key] for key in ("entry", "timestamp", "timestamp_nanos", "level", "stream"))


def at(*moment: int) -> datetime:
    return datetime(*moment, tzinfo=UTC)  # type: ignore[misc,arg-type]


def wrap(text: str, **others: object) -> str:
    return json.dumps({"log": text + "\n", **others}, ensure_ascii=False) + "\n"


@pytest.fixture(scope="module")
def logs() -> dict[str, str]:
    if not LOGS.exists():
        pytest.skip("the real logs in ../shared are absent")
    return {path.name: path.read_text() for path in sorted(LOGS.iterdir())}


def expected_row(member: str, number: int, line: str, entry: int) -> dict[str, object]:
    """What a line of the real logs must become, told by plain Python."""
    form, stamp = next(
        (
            (form, found[1])
            for form, pattern in {
                "%Y-%m-%d %H:%M:%S": r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) ",
                "%Y%m%d %H:%M:%S": r"(\d{8} \d\d:\d\d:\d\d),",
                "%y%m%d %H:%M:%S": r"(?:# Time: )?(\d{6} \d\d:\d\d:\d\d)",
            }.items()
            if (found := re.match(pattern, line))
        ),
        (None, None),
    )
    level = re.match(r"\S+ \S+ \d+ \[(\w+)\]", line)
    return {
        "member": member,
        "line_number": number,
        "entry": number if form else entry,
        "line": line,
        "line_bytes": None,
        "timestamp": None if form is None else datetime.strptime(stamp, form).replace(tzinfo=UTC),
        "timestamp_nanos": None,
        "level": level[1] if level else None,
        "stream": None,
    }


@pytest.mark.parametrize("is_wrapped", [False, True])
def test_every_line_of_the_real_logs_is_the_row_that_it_says(logs: dict[str, str], is_wrapped: bool) -> None:
    expected = []
    for name, text in logs.items():
        entry: int | None = None
        before = ""
        for number, line in enumerate(text.splitlines(), 1):
            if line.startswith("# User@Host:") and not before.startswith("# Time:"):
                entry = number
            row = expected_row(name, number, line, number if entry is None else entry)
            entry = row["entry"] if row["timestamp"] else entry
            before = line
            expected.append(row)

    members = {
        name: "".join(map(wrap, text.splitlines())) if is_wrapped else text for name, text in logs.items()
    }

    assert read(zipped(members)) == expected
    assert sum(row["timestamp"] is not None for row in expected) == 20 + 37 + 1
    assert sum(row["level"] == "Warning" for row in expected) == 1


FORMS = {
    "2026-01-09T00:31:43.198168478Z stdout F 2026-01-09 00:31:43   error  : (1) x": (
        at(2026, 1, 9, 0, 31, 43, 198168),
        478,
        "error",
        "stdout",
    ),
    "2026-01-09T00:31:43.1Z stderr P 2026-01-09  0:31:43 7 [Warning] x": (
        at(2026, 1, 9, 0, 31, 43, 100000),
        None,
        "Warning",
        "stderr",
    ),
    "2026-01-09T00:31:43Z stdout F": (at(2026, 1, 9, 0, 31, 43), None, None, "stdout"),
    "2026-01-09T00:31:43Z stdout F [Note] x": (at(2026, 1, 9, 0, 31, 43), None, "Note", "stdout"),
    "2026-01-09T00:31:43.000000001Z stdout F 260109  0:31:43 [ERROR] x": (
        at(2026, 1, 9, 0, 31, 43),
        1,
        "ERROR",
        "stdout",
    ),
    "1969-12-31T23:59:59.999999999Z stdout F x": (
        at(1969, 12, 31, 23, 59, 59, 999999),
        999,
        None,
        "stdout",
    ),
    "2026-01-09T00:31:43.5Z 0 [Note] x": (at(2026, 1, 9, 0, 31, 43, 500000), None, "Note", None),
    "2026-01-09T00:31:43Z started": (at(2026, 1, 9, 0, 31, 43), None, None, None),
    "2026-11-22 10:31:46 0 [Note] x [ERROR]": (at(2026, 11, 22, 10, 31, 46), None, "Note", None),
    "2026-11-22  9:31:46 140123 [ERROR] x": (at(2026, 11, 22, 9, 31, 46), None, "ERROR", None),
    "2026-11-22 10:31:46 0x7f18 INNODB MONITOR OUTPUT": (at(2026, 11, 22, 10, 31, 46), None, None, None),
    "2026-11-22 10:31:46": (at(2026, 11, 22, 10, 31, 46), None, None, None),
    "2026-01-09 00:31:43   notice : x: [y]": (at(2026, 1, 9, 0, 31, 43), None, "notice", None),
    "2026-01-09 00:31:43.123   alert  : x": (at(2026, 1, 9, 0, 31, 43, 123000), None, "alert", None),
    "2026-01-09 00:31:43   warning  : x": (at(2026, 1, 9, 0, 31, 43), None, "warning", None),
    "2026-01-09 00:31:43 7 [note] x": (at(2026, 1, 9, 0, 31, 43), None, "note", None),
    "2026-01-09 00:31:43 7 [no level] x": (at(2026, 1, 9, 0, 31, 43), None, None, None),
    "261122 10:31:46 server_audit: STOPPED": (at(2026, 11, 22, 10, 31, 46), None, None, None),
    "261122  9:31:46 [Note] x": (at(2026, 11, 22, 9, 31, 46), None, "Note", None),
    "20261122 10:31:50,vm,root,localhost,3,0,CONNECT,,,0": (at(2026, 11, 22, 10, 31, 50), None, None, None),
    # Forms of times that no calendar has.
    "2026-13-09 00:31:43 0 [Note] x": (None, None, "Note", None),
    "2026-02-30 00:31:43 0 [Note] x": (None, None, "Note", None),
    "2026-01-09T24:31:43Z stdout F x": (None, None, None, "stdout"),
    "0000-01-09 00:31:43 0 [Note] x": (None, None, "Note", None),
    "20261131 10:31:50,vm": (None, None, None, None),
    "261122 10:61:46 x": (None, None, None, None),
}
NO_FORMS = (
    "",
    " 2026-11-22 10:31:46 0 [Note] x",
    "2026-11-22 10:31:46,x",
    "error : x",
    "[Note] x",
    "{}",
    "# x",
    "é",
)


@pytest.mark.parametrize("line", FORMS)
def test_a_line_states_what_its_form_says(line: str) -> None:
    first, second = lines_of(f"{line}\nits continuation\n")

    assert facts(first) == (1, *FORMS[line])
    assert facts(second) == (1, None, None, None, None)
    assert [first["line"], second["line"]] == [line, "its continuation"]


@pytest.mark.parametrize("line", NO_FORMS)
def test_a_line_of_no_form_continues_the_entry_or_stands_alone(line: str) -> None:
    rows = lines_of(f"{line}\n{line}\n261122 10:31:46 x\n{line}\n{line}\n")

    assert [row["line"] for row in rows] == [line, line, "261122 10:31:46 x", line, line]
    assert [row["entry"] for row in rows] == [1, 2, 3, 3, 3]
    assert [row["timestamp"] for row in rows if row["line"] == line] == [None] * 4


COMPANIES = {
    "containers": "2026-01-09T00:31:43.198168478Z stderr F 2026-01-09  0:31:43 7 [Warning] y",
    "errors": "2026-11-22 10:31:46 12 [Note] y",
    "errors before ten": "2026-11-22  9:31:46 12 [Note] y",
    "MaxScale": "2026-01-09 00:31:43.123   notice : y",
    "audit": "20261122 10:31:50,vm,root,localhost,3,0,CONNECT,,,0",
    "old forms": "261122  9:31:46 [Note] y",
    "no forms": "  at y",
}


@pytest.mark.parametrize("company", COMPANIES)
def test_what_a_line_states_does_not_depend_on_the_lines_around_it(company: str) -> None:
    around = [COMPANIES[company]] * 20
    lines = [line for odd in FORMS for line in (*around, odd)]

    rows = lines_of("\n".join(lines))

    stated = {row["line"]: facts(row)[1:] for row in rows if row["line"] in FORMS}
    assert stated == FORMS
    of_company = {facts(row)[1:] for row in rows if row["line"] == COMPANIES[company]}
    assert of_company == {facts(lines_of(COMPANIES[company])[0])[1:]}


@pytest.mark.parametrize("form", ["2026-11-22 10:31:46 {}", "2026-01-09T00:31:43.198168478Z stdout F {}"])
def test_a_text_is_looked_at_for_a_level_up_to_any_byte_of_a_character(form: str) -> None:
    lines = [form.format("x" * length + "ż" * 60) for length in range(4)]
    lines += [form.format("9" * (62 + length) + "ż [Note]") for length in range(-4, 3)]

    rows = lines_of("\n".join(lines))

    assert [row["line"] for row in rows] == lines
    assert {row["level"] for row in rows} == {None}


@pytest.mark.parametrize(
    ("usual", "odd"),
    [
        ("2026-11-22  9:31:46 0 [Note] x", "2026-02-30  9:31:46 0 [Note] x"),
        ("2026-01-09T00:31:43.198168478Z stdout F x", "2026-01-09T24:31:43.198168478Z stdout F x"),
        ("20261122 10:31:50,vm", "20261131 10:31:50,vm"),
    ],
)
def test_an_impossible_time_takes_nothing_from_the_times_of_other_lines(usual: str, odd: str) -> None:
    stated = lines_of(usual)[0]["timestamp"]

    rows = lines_of(f"{usual}\n" * 700 + f"{odd}\n" + f"{usual}\n" * 700)

    assert [row["timestamp"] for row in rows] == [*[stated] * 700, None, *[stated] * 700]


def test_a_time_beyond_nanoseconds_of_arrow_is_still_a_time() -> None:
    (row,) = lines_of("3026-01-09T00:31:43.198168478Z stdout F x")

    assert facts(row)[1:3] == (at(3026, 1, 9, 0, 31, 43, 198168), 478)


def test_a_slow_log_is_cut_at_its_times_and_users_only() -> None:
    text = (
        "2026-11-22 10:31:46 0 [Note] before\n# Time: 261122  9:31:50\n# User@Host: a\nselect '\n"
        "2026-11-22 10:31:46 0 [Note] a value\n20261122 10:31:50,x\n';\n# User@Host: b\n"
        "# Time: 261122 10:31:51 is no time line\n# Time: 261122 10:31:51\n# User@Host: c\n# User@Host: d\n"
    )

    rows = lines_of(text)

    assert [row["entry"] for row in rows] == [1, 2, 2, 2, 2, 2, 2, 8, 8, 10, 10, 12]
    assert {row["line_number"]: row["timestamp"] for row in rows if row["timestamp"]} == {
        1: at(2026, 11, 22, 10, 31, 46),
        2: at(2026, 11, 22, 9, 31, 50),
        10: at(2026, 11, 22, 10, 31, 51),
    }
    assert [row["level"] for row in rows] == ["Note", *[None] * 11]
    for chunk_bytes in (1, 30, 60, 100, 150):
        assert lines_of(text, chunk_bytes=chunk_bytes) == rows


def test_a_wrapped_line_gives_its_text_and_what_the_wrapper_adds() -> None:
    time = "2026-01-09T00:31:43.198168478Z"
    text = (
        wrap("261122 10:31:46 x", stream="stderr", time=time)
        + wrap("no time", stream="stdout", timestamp="2026-01-09T02:31:43+02:00")
        + wrap("two\nlines")
        + '{"log": "no line end"}\n{"log":""}\n'
        + '{"log":"\\r\\n"}\n{"log":"a\\r"}\n{"log":"tab\there","time":null}\n'
    )

    rows = lines_of(text)

    assert [(row["line"], *facts(row)) for row in rows] == [
        ("261122 10:31:46 x", 1, at(2026, 11, 22, 10, 31, 46), None, None, "stderr"),
        ("no time", 2, at(2026, 1, 9, 0, 31, 43), None, None, "stdout"),
        ("two\nlines", 2, None, None, None, None),
        ("no line end", 2, None, None, None, None),
        ("", 2, None, None, None, None),
        ("", 2, None, None, None, None),
        ("a\r", 2, None, None, None, None),
        ("tab\there", 2, None, None, None, None),
    ]


TEXTS = (
    "plain żółć",
    "",
    'a "quoted" word',
    'a path\\to\\n \\" and \\\\',
    "\ttabs\t",
    "a/b <c> & d",
    '{"log":"wrapped itself"}',
    "2026-11-22 10:31:46 0 [Note] x",
    "two\nlines",
    "\\",
    "\x00\x01",
    "x\r",
)


@pytest.mark.parametrize("end", ["\n", ""])
@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
@pytest.mark.parametrize("escapes", ["few", "of HTML", "all beyond ASCII"])
@pytest.mark.parametrize("texts", [TEXTS, *[(text,) for text in TEXTS], TEXTS[:2], TEXTS[:7]], ids=str)
def test_wrapped_texts_come_back_as_they_were(
    texts: tuple[str, ...], escapes: str, separators: tuple[str, str], end: str
) -> None:
    wrapped = [
        json.dumps({"log": text + end}, ensure_ascii=escapes == "all beyond ASCII", separators=separators)
        for text in texts
    ]
    if escapes == "of HTML":
        wrapped = [
            line.replace("<", "\\u003c").replace(">", "\\u003e").replace("/", "\\/") for line in wrapped
        ]

    for line_end in ("\n", ""):
        rows = lines_of("\n".join(wrapped) + line_end)

        assert [row["line"] for row in rows] == [re.sub(r"\r\Z", "", text) if end else text for text in texts]


@pytest.mark.parametrize(
    ("odd", "lines"),
    [
        ('{"log":"b\nc\\n"}\n', ['{"log":"b', 'c\\n"}']),
        ('{"log":"\0 and \\\\ \\n"}\n', ["\0 and \\ "]),
        ('{"log":"\1 and \\"\\n"}\n', ['\1 and "']),
    ],
)
def test_an_odd_line_among_wrapped_ones_is_read_as_itself(odd: str, lines: list[str]) -> None:
    plain = '{"log":"plain\\n"}\n' * 40

    assert [row["line"] for row in lines_of(plain + odd + plain)] == ["plain"] * 40 + lines + ["plain"] * 40


COMPANIES_OF_JSON = {
    "": [],
    '{"log":"plain\\n"}\n' * 40: ["plain"] * 40,
    '{"log":"a \\\\ b \\"c\\" \\n"}\n' * 40: ['a \\ b "c" '] * 40,
    "raw\n" * 3: ["raw"] * 3,
}


@pytest.mark.parametrize("company", COMPANIES_OF_JSON)
@pytest.mark.parametrize(
    "line",
    [
        '{"log":"a","other":1}',
        '{"log":"a","other":"b\\n"}',
        '{"log":1}',
        '{"log":null}',
        '{"log":"a","log":"b"}',
        '{"log":"a","time":5}',
        '{"log":"a","time":"yesterday"}',
        '{"log":"a","time":"2026-01-09T00:31:43Z","timestamp":"2026-01-09T00:31:44Z"}',
        '{"log":"a","stream":["x"]}',
        '{"log":"\\ud800"}',
        '{"log":"a"}{"log":"b"}',
        '{"log":"a"',
        '{"log":"}',
        '{"log":"a"} b',
        '{"log":NaN}',
        '{"nested":{"log":"a"}}',
        '{"time":"2026-01-09T00:31:43Z"}',
        "{" * 5000,
        "{" + "ż" * 9,
        "{ " + "ż" * 9,
        "[1]",
        '"text"',
        "{}",
        "{",
    ],
)
def test_json_that_unwrapping_would_shorten_stays_as_it_is(line: str, company: str) -> None:
    for first in ("first\n", ""):
        rows = lines_of(f"{first}{company}{line}\n{company}")

        companions = COMPANIES_OF_JSON[company]
        assert [row["line"] for row in rows] == [*first.split(), *companions, line, *companions]


def test_line_ends_are_kept_out_and_empty_lines_are_rows() -> None:
    rows = lines_of("\ufeffa\r\n\r\n\n b\rc \n\ufeffd\r")

    assert [row["line"] for row in rows] == ["a", "", "", " b\rc ", "\ufeffd\r"]
    assert [row["line_number"] for row in rows] == [1, 2, 3, 4, 5]


def test_a_member_without_bytes_has_no_rows() -> None:
    assert read(zipped({"empty.log": b"", "bom.log": b"\xef\xbb\xbf", "a.log": b"\n"})) == [
        {**dict.fromkeys(LOG_SCHEMA.names), "member": "a.log", "line_number": 1, "entry": 1, "line": ""}
    ]


def test_lines_that_are_no_utf8_keep_their_bytes_and_their_time() -> None:
    rows = lines_of(b'261122 10:31:46 \xe9\nfine \xc3\xa9\n{"log":"\xff"}\n')

    assert [(row["line"], row["line_bytes"], row["timestamp"]) for row in rows] == [
        (None, b"261122 10:31:46 \xe9", at(2026, 11, 22, 10, 31, 46)),
        ("fine é", None, None),
        (None, b'{"log":"\xff"}', None),
    ]


PIECES = st.one_of(
    st.sampled_from([*FORMS, *NO_FORMS, "# Time: 261122 10:31:50", "# User@Host: a", "# Thread_id: 3"]),
    st.sampled_from([*FORMS, *NO_FORMS]).map(lambda line: wrap(line).rstrip("\n")),
    st.sampled_from(
        ["\r", '{"log":"a\\tb\\n"}', '{"log":"a","time":"2026-01-09T00:31:43Z"}', '{"log":"x","y":1}']
    ),
    st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\n"), max_size=20),
)


@settings(max_examples=60)
@given(
    members=st.lists(
        st.lists(
            st.one_of(
                PIECES.map(str.encode), st.binary(max_size=12).map(lambda raw: raw.replace(b"\n", b""))
            ),
            max_size=12,
        ),
        max_size=3,
    ),
    line_end=st.sampled_from([b"\n", b"\r\n"]),
    is_ended=st.booleans(),
    chunk_bytes=st.integers(1, 64),
)
def test_lines_are_conserved_and_rows_do_not_depend_on_the_size_of_chunks(
    members: list[list[bytes]], line_end: bytes, is_ended: bool, chunk_bytes: int
) -> None:
    bodies = {
        f"{number}.log": line_end.join(lines) + (line_end if is_ended else b"")
        for number, lines in enumerate(members)
    }
    archive = zipped(bodies)

    whole = read(archive)

    assert read(archive, chunk_bytes=chunk_bytes) == whole
    assert [(row["member"], row["line_number"]) for row in whole] == [
        (name, number) for name, body in bodies.items() for number in range(1, len(plain_lines(body)) + 1)
    ]
    for row, line in zip(
        whole, (line for body in bodies.values() for line in plain_lines(body)), strict=True
    ):
        assert shown(row) in (line, unwrapped(line))
        assert (row["line"] is None) != (row["line_bytes"] is None)
        assert row["entry"] <= row["line_number"]  # type: ignore[operator]
        assert row["timestamp"] is None or row["entry"] == row["line_number"]


def plain_lines(body: bytes) -> list[bytes]:
    """The lines of a member as bytes, told by the shortest means."""
    body = body.removeprefix(b"\xef\xbb\xbf")
    lines = body.replace(b"\r\n", b"\n").split(b"\n")
    return lines if lines[-1] else lines[:-1]


def shown(row: Mapping[str, object]) -> bytes:
    line, line_bytes = row["line"], row["line_bytes"]
    return line.encode() if isinstance(line, str) else line_bytes  # type: ignore[return-value]


def unwrapped(line: bytes) -> bytes | None:
    try:
        found = json.loads(line, strict=False)
        text = found["log"] if isinstance(found, dict) and found.keys() <= {"log", "time"} else None
    except (ValueError, KeyError):
        return None
    return re.sub(r"\r?\n\Z", "", text).encode() if isinstance(text, str) else None


def test_more_lines_than_a_batch_holds_are_numbered_through() -> None:
    lines = ["2026-11-22 10:31:46 0 [Note] x", "y"] * 50_000

    batches = list(
        read_log_archive(
            io.BytesIO(zipped({"a.log": "\n".join(lines)})), ratio_max=1e9, member_bytes_max=1 << 30
        )
    )

    table = pa.Table.from_batches(batches)
    assert len(batches) > 1
    assert table["line_number"].to_pylist() == list(range(1, 100_001))
    assert table["entry"].to_pylist() == [number - (number + 1) % 2 for number in range(1, 100_001)]


LONG_TEXT = b"".join(b"2026-11-22 10:31:46 %d [Note] x\n" % number for number in range(40_000))


def test_a_reader_that_leaves_early_leaves_no_thread_and_was_not_run_ahead_of() -> None:
    source = io.BytesIO(zipped({"a.log": LONG_TEXT}, method=zipfile.ZIP_STORED))
    before = set(threading.enumerate())
    batches = read_log_archive(source, ratio_max=1e9, member_bytes_max=1 << 30, chunk_bytes=1 << 16)

    first = next(batches)
    batches.close()  # type: ignore[attr-defined]  # a generator

    assert set(threading.enumerate()) == before
    assert first.num_rows < 5000
    assert source.tell() <= 5 << 16


@pytest.mark.parametrize("chunk_bytes", [1 << 14, 1 << 18, 1 << 23])
def test_damage_far_behind_the_first_chunk_is_found(chunk_bytes: int) -> None:
    body = bytearray(zipped({"a.log": LONG_TEXT}, method=zipfile.ZIP_STORED))
    body[len(body) - 500] ^= 1

    with pytest.raises(MalformedBody, match="CRC"):
        read(bytes(body), chunk_bytes=chunk_bytes)


def test_members_come_in_archive_order_without_folders() -> None:
    archive = zipped({"z/": b"", "z/b.log": b"1", "a.log": b"2\n3"})

    assert [(row["member"], row["line"]) for row in read(archive)] == [
        ("z/b.log", "1"),
        ("a.log", "2"),
        ("a.log", "3"),
    ]


def test_a_gzip_of_a_tar_or_of_a_text_and_a_bare_text_are_read_too() -> None:
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        folder, link, member = tarfile.TarInfo("d"), tarfile.TarInfo("d/l"), tarfile.TarInfo("d/a.log")
        folder.type, link.type, link.linkname, member.size = (
            tarfile.DIRTYPE,
            tarfile.SYMTYPE,
            "/etc/passwd",
            3,
        )
        archive.addfile(folder)
        archive.addfile(link)
        archive.addfile(member, io.BytesIO(b"1\n2"))

    def found(body: bytes) -> list[tuple[object, object]]:
        return [(row["member"], row["line"]) for row in read(body)]

    assert found(gzip.compress(tar.getvalue())) == [("d/a.log", "1"), ("d/a.log", "2")]
    assert found(gzip.compress(b"1\n2\n")) == [("", "1"), ("", "2")]
    assert found(b"1\n2\n") == [("", "1"), ("", "2")]
    assert found(b'{"log":"1\\n"}\n') == [("", "1")]


@pytest.mark.parametrize("name", ["/etc/passwd", "../../x.log", "C:\\x.log", "a\0b.log", "é.log", "x" * 1024])
def test_names_of_members_are_kept_as_text_and_nothing_more(name: str) -> None:
    # The writer would cut such names, so they are put into the finished archive.
    stand_in = "n" * len(name.encode())
    archive = zipped({stand_in: b"x"}).replace(stand_in.encode(), name.encode())
    archive = flagged(archive, 0x800)

    assert [row["member"] for row in read(archive)] == [name]


def flagged(archive: bytes, flag: int) -> bytes:
    """The archive of one member with a bit set in the flags of both its headers."""
    body = bytearray(archive)
    for signature, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = body.index(signature) + place
        body[start : start + 2] = (int.from_bytes(body[start : start + 2], "little") | flag).to_bytes(
            2, "little"
        )
    return bytes(body)


def damaged(archive: bytes) -> bytes:
    """The archive with one bit of its member's content turned."""
    body = bytearray(archive)
    body[body.index(b"2026-11-22") + 3] ^= 1
    return bytes(body)


def longer(archive: bytes) -> bytes:
    """The archive claiming its member to be a byte longer, in its directory."""
    body = bytearray(archive)
    body[body.index(b"PK\x01\x02") + 24] += 1
    return bytes(body)


STORED = zipped({"a.log": b"2026-11-22 10:31:46 0 [Note] x\n" * 9}, method=zipfile.ZIP_STORED)
DEFLATED = zipped({"a.log": bytes(range(256)) * 99})
HOSTILE = {
    "no bytes": b"",
    "HTML": b"\n<!doctype HTML><p>502</p>",
    "XML": b"\xef\xbb\xbf<?xml version='1.0'?><Error/>",
    "JSON": b'{"errors":[{"message":"no such log"}]}',
    "JSON of many lines": b'{\n  "error": 1\n}',
    "a picture": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    "an encrypted member": flagged(STORED, 1),
    "a wrong checksum": damaged(STORED),
    "a wrong length": longer(DEFLATED),
    "half a ZIP": DEFLATED[: len(DEFLATED) // 2],
    "a ZIP without its last bytes": DEFLATED[:-5],
    "only the end of a ZIP": b"PK\x03\x04" + DEFLATED[-60:],
    "half a gzip": gzip.compress(bytes(range(1, 256)) * 99)[:150],
    "a gzip with a wrong checksum": gzip.compress(b"text")[:-8] + bytes(8),
    "a gzip of no text": gzip.compress(b"\0\1\2"),
    "a strange compression": zipped({"a.log": b"x" * 99}, method=zipfile.ZIP_LZMA),
    "too long a name": zipped({"x" * 1025: b"x"}),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_is_no_sound_archive_is_refused_as_malformed(kind: str) -> None:
    with pytest.raises(MalformedBody):
        read(HOSTILE[kind])


@pytest.mark.parametrize(
    "body", [STORED, DEFLATED, gzip.compress(b"some text\n" * 99)], ids=("stored", "deflated", "gz")
)
def test_an_archive_cut_anywhere_is_refused_or_a_whole_one(body: bytes) -> None:
    for end in range(1, len(body) - 1, 7):
        try:
            rows = read(body[:end])
        except MalformedBody:
            continue
        # Two bytes of a signature may be a text of their own.
        assert end < 4 or rows == read(body), end


@settings(max_examples=150)
@given(place=st.integers(0, len(DEFLATED) - 1), value=st.integers(0, 255))
def test_an_archive_with_any_byte_changed_is_read_or_refused(place: int, value: int) -> None:
    body = bytearray(DEFLATED)
    body[place] = value

    try:
        rows = read(bytes(body))
    except (MalformedBody, BodyTooLarge):
        return
    assert all(row["line_number"] for row in rows)


def test_two_members_of_one_name_are_refused() -> None:
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w") as archive:
        archive.writestr("a.log", "1")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a.log", "2")

    with pytest.raises(MalformedBody, match=r"two members named 'a\.log'"):
        read(body.getvalue())


def test_an_archive_that_unfolds_beyond_the_ratio_is_refused_early() -> None:
    archive = zipped({"a.log": b"0\n" * (4 << 20)})
    counts: list[int] = []
    batches = read_log_archive(
        io.BytesIO(archive), ratio_max=50, member_bytes_max=1 << 30, chunk_bytes=1 << 16
    )

    with pytest.raises(BodyTooLarge, match="over 50 times its size"):
        counts.extend(batch.num_rows for batch in batches)

    assert 0 < sum(counts) < 1 << 20
    assert len(read(zipped({"a.log": b"0\n" * (1 << 19)}), ratio_max=1)) == 1 << 19


@pytest.mark.parametrize("pack", [lambda content: zipped({"a.log": content}), gzip.compress, bytes])
def test_a_member_over_its_bound_is_refused(pack: object) -> None:
    body = pack(b"text\n" * 20)  # type: ignore[operator]

    assert len(read(body, member_bytes_max=100)) == 20
    with pytest.raises(BodyTooLarge, match="over 99 bytes"):
        read(body, member_bytes_max=99)


@pytest.mark.parametrize("end", [b"", b"\n", b"\nx\n"])
def test_a_line_over_16_mib_is_refused_whatever_the_chunk(end: bytes) -> None:
    longest = b"x" * (16 << 20)

    for chunk_bytes in (1 << 20, 5_000_000, 64 << 20):
        assert lines_of(b"y\n" + longest + end, chunk_bytes=chunk_bytes)[1]["line"] == longest.decode()
        with pytest.raises(BodyTooLarge, match="a line longer than"):
            lines_of(b"y\n" + longest + b"x" + end, chunk_bytes=chunk_bytes)


def test_a_tar_header_that_would_fill_the_memory_is_refused() -> None:
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("a.log" + "x" * (2 << 20)))

    with pytest.raises(BodyTooLarge, match="header"):
        read(gzip.compress(tar.getvalue()))


def test_a_directory_that_would_fill_the_memory_is_refused() -> None:
    # A ZIP whose end claims 32 MiB of directory, which are there.
    size = 32 << 20
    end = b"PK\5\6" + bytes(4) + b"\1\0\1\0" + size.to_bytes(4, "little") + bytes(4) + bytes(2)
    body = b"PK\3\4" + bytes(size - 4) + end

    with pytest.raises(BodyTooLarge, match="directory"):
        read(body)
