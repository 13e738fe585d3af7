"""The readers of what others wrote, each as a function of bytes, and what counts as a fault of one.

A reader may take its input or refuse it with an error of this project. Any other exception, and more than a few
seconds for some kilobytes, is a fault.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import signal
import tarfile
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from msgspec import structs

from extractor.catalog import load_catalog
from extractor.config import load_config
from extractor.decode.json import decode_rows, open_body, open_lines
from extractor.decode.log_archive import read_log_archive
from extractor.decode.openmetrics import read_metrics
from extractor.digest import row_bytes
from extractor.endpoint import Endpoint
from extractor.errors import ExtractError
from extractor.plan import make_plan
from extractor.schema import TableSchema, plan_schema

__all__ = ("READERS", "Outcome", "Reader", "read")

_SECONDS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """One reader: `take` gives something that tells outcomes apart."""

    take: Callable[[bytes], str]
    examples: tuple[bytes, ...]
    words: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How an input was taken; `fault` is empty where that is as it should be, `place` says where it arose."""

    signature: str
    seconds: float
    fault: str = ""
    place: str = ""


class _Hung(BaseException):
    pass


def read(reader: Reader, body: bytes) -> Outcome:
    """Let a reader take an input; after ten seconds it counts as hung."""

    def hang(number: int, frame: FrameType | None) -> None:
        raise _Hung(f"still at it after {_SECONDS} s")

    before = signal.signal(signal.SIGALRM, hang)
    signal.setitimer(signal.ITIMER_REAL, _SECONDS)
    began = time.monotonic()
    try:
        signature, fault, place = reader.take(body), "", ""
    except ExtractError as error:
        signature, fault, place = f"{type(error).__name__}: {_blurred(error.message)}", "", ""
        if "\n" in error.message:
            fault, place = f"a message of several lines: {error.message!r}", "message"
    except (Exception, _Hung) as error:  # noqa: BLE001  # this is what is looked for
        frames = [
            frame for frame in traceback.extract_tb(error.__traceback__) if "/extractor/" in frame.filename
        ]
        last = frames[-1] if frames else None
        place = f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}" if last else repr(error)
        signature, fault = place, f"{place}: {str(error)[:300]}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return Outcome(signature=signature, seconds=time.monotonic() - began, fault=fault, place=place)


def _blurred(message: str) -> str:
    return re.sub(r"'[^']*'|\"[^\"]*\"|\d+", "…", message)[:40]


# --- JSON -----------------------------------------------------------------------------------------------------

_COLUMNS = {
    "id": "int64",
    "name": "string",
    "at": "timestamp",
    "cost": "decimal",
    "share": "float64",
    "on": "bool",
    "labels": "map<string,string>",
    "parts": "list<string>",
    "any": "json",
}
_ROW = {
    "id": 7,
    "name": "é \u2028 \\ud83d",
    "at": "2026-11-22T10:11:12.123456789Z",
    "cost": "12.340000",
    "share": 0.1,
    "on": True,
    "labels": {"a": "b", "c": None},
    "parts": ["x", "y"],
    "any": {"deep": [1, {"er": [None, -0.0, 1e300]}]},
    "new": [{"x": 1}, {"x": "y"}],
}


def _schemas() -> tuple[TableSchema, ...]:
    bare = Endpoint(name="things", path="/things")
    declared = _declared()
    few = tuple(column for column in declared.columns if column.path in ("id", "name", "share"))
    plain = structs.replace(declared, columns=few)
    return tuple(
        plan_schema(endpoint, policy=policy)
        for endpoint, policy in (
            (bare, "evolve"),
            (declared, "evolve"),
            (declared, "rescue"),
            (plain, "rescue"),
        )
    )


def _declared() -> Endpoint:
    with tempfile.TemporaryDirectory() as folder:
        lines = ["[things]", 'path = "/things"', "[things.columns]"]
        lines += [f'"{name}" = "{kind}"' for name, kind in _COLUMNS.items()]
        (Path(folder) / "own.toml").write_text("\n".join(lines))
        return load_catalog([Path(folder)], builtin=False).endpoints["things"]


def _take_json(body: bytes) -> str:
    told = []
    columns = frozenset(_COLUMNS)
    for envelope in (
        lambda: open_body(body, records="", columns=columns, pointers=("/next", "/a/b")),
        lambda: open_body(body, records="/items", columns=frozenset()),
        lambda: open_lines(body),
    ):
        try:
            rows = envelope().rows
        except ExtractError as error:
            told.append(type(error).__name__ + _blurred(error.message))
            continue
        for schema in _SCHEMAS:
            try:
                decoded = decode_rows([rows], schema, depth=64)
            except ExtractError as error:
                told.append(type(error).__name__ + _blurred(error.message))
                continue
            decoded.batch.validate(full=True)
            for row in decoded.batch.to_pylist():
                row_bytes({key: value for key, value in row.items() if isinstance(value, str | int)})
            told.append(
                f"{decoded.is_fast} {len(decoded.drift)} {bool(decoded.rescued)} {min(sum(decoded.lengths), 3)}"
            )
    return "; ".join(told)


# --- metrics, archives ------------------------------------------------------------------------------------------


def _take_metrics(body: bytes) -> str:
    rows = 0
    for batch in read_metrics(io.BytesIO(body), body_bytes_max=1 << 20):
        batch.validate(full=True)
        rows += batch.num_rows
    return f"{min(rows, 5)} rows"


def _take_archive(body: bytes) -> str:
    told = []
    for chunk_bytes in (64, 3 << 20):
        rows, members, odd = 0, set(), 0
        reading = read_log_archive(
            io.BytesIO(body), ratio_max=200, member_bytes_max=1 << 20, chunk_bytes=chunk_bytes
        )
        for batch in reading:
            batch.validate(full=True)
            rows += batch.num_rows
            members.update(batch["member"].to_pylist())
            odd += batch["line_bytes"].null_count < batch.num_rows
        told.append(f"{min(rows, 9)} {min(len(members), 3)} {bool(odd)}")
    assert told[0].split()[:2] == told[1].split()[:2], f"chunks make a difference: {told}"
    return told[0]


def _zipped(*members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, body in members:
            archive.writestr(name, body)
    return stream.getvalue()


def _tarred(*members: tuple[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, body in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(body)
            archive.addfile(entry, io.BytesIO(body))
    return stream.getvalue()


_LINES = (
    b"2026-11-22 10:00:00 0 [Note] started\n"
    b"2026-11-22T10:00:00.123456789Z stdout F 2026-11-22 10:00:00 1 [ERROR] x\n"
    b'{"log":"2026-11-22 10:00:00 0 [Warning] \\u003cx\\u003e\\n","stream":"stderr",'
    b'"time":"2026-11-22T10:00:00Z"}\n'
    b"20261122 10:00:00,host,user,10.0.0.1,1,2,QUERY,db,'select 1',0\n"
)
_SLOW = b"# Time: 261122 10:00:00\n# User@Host: a[a] @ b []\n# Query_time: 1\nSET timestamp=1;\nselect 1;\n"

_METRICS = (
    b"# HELP a_total what it is\n# TYPE a_total counter\n"
    b'a_total{service_id="x",le="+Inf"} 12 1763800000000\na_total{service_id="y \\"q\\" \\\\ \\n"} NaN\n'
    b'#TYPE b gauge\nb -Inf\nb{} 1e-320\n# TYPE h histogram\nh_bucket{le="0.5"} 3 # {trace="z"} 0.4 1.0\n'
    b"h_sum 1\nh_count 3\n"
    b"# UNIT b seconds\n# EOF\n"
)


# --- configuration ------------------------------------------------------------------------------------------------


def _take_config(body: bytes) -> str:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "own").mkdir()
        (folder / "own" / "own.toml").write_bytes(body)
        (folder / "settings.toml").write_bytes(body)
        text = body[:200].decode("utf-8", "replace").replace("\0", "")
        told = []
        for attempt in (
            lambda: load_config(folder / "settings.toml", environment={}),
            lambda: load_config(
                environment={"SKYSQL_RUN__INCLUDE": text}, settings=(text,), directory=folder
            ),
            lambda: make_plan(
                load_catalog([folder / "own"], builtin=False).endpoints,
                load_config(environment={}, directory=folder),
            ),
        ):
            try:
                attempt()
                told.append("good")
            except ExtractError as error:
                if "\n" in error.message:
                    raise
                # A message may quote the input at length.
                told.append(_blurred(error.message.replace(name, "")))
        return "; ".join(told)


_SETTINGS = b"""\
[source]
base_url = "https://api.skysql.com"
auth = "bearer"
catalogs = ["own"]
[limits]
requests_per_second = 10.5
concurrency = 8
[bounds]
depth = 64
[lake]
uri = "lake"
[run]
include = ["serv*"]
since = "30d"
allow = ["customer_data"]
[checks]
max_drop = 0.5
[checks.services]
unique_key = false
[[accounts]]
name = "north"
key_env = "NORTH"
"""
_ENDPOINTS = b"""\
[services]
path = "/v1/services"
params = { page_size = 100 }
paging = { kind = "token", request_param = "page_token", response_header = "X-Next" }
key = ["id"]
tags = ["inventory"]
[services.columns]
id = "string"
tags = "map<string,string>"
parts = "list<struct<a: int64, b: string>>"
[replicas]
path = "/v1/services/{service_id}/replicas"
parent = { endpoint = "services", params = { service_id = "id" } }
keep = { service_id = "id" }
empty_on = [404]
[events]
path = "/v1/events"
key = ["id"]
sync = { kind = "window", from_param = "from", to_param = "to", step = "1d", lookback = "2h", cursor = "at" }
[pages]
path = "/v1/pages"
records = "/items"
paging = { kind = "page", page_param = "p", first_page = 1, total_pointer = "/total" }
"""

_SCHEMAS = _schemas()
_JSON_ROWS = json.dumps([_ROW, {**_ROW, "id": None, "labels": {}}]).encode()

READERS: Mapping[str, Reader] = {
    "json": Reader(
        take=_take_json,
        examples=(
            _JSON_ROWS,
            b'{"items":' + _JSON_ROWS + b',"next":"x","a":{"b":3},"total":2}',
            json.dumps(_ROW).encode() + b"\n" + json.dumps(_ROW).encode(),
            b"\xef\xbb\xbf [ ] ",
            b"null",
            b'[{"id":1,"name":"x","share":0.5},{"id":2,"name":"y"},{"share":1e-5}]',
        ),
        words=(
            *(
                b"[",
                b"]",
                b"{",
                b"}",
                b",",
                b":",
                b'"',
                b"\\",
                b"\\u0000",
                b"\\ud800",
                b"\\udc00",
                b"null",
                b"NaN",
            ),
            *(b"true", b"-", b"1e5", b"1E-400", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\0", b"\n", b" "),
            *(
                b'"id":',
                b'"name":',
                b'"at":',
                b'"cost":',
                b'"labels":',
                b'"any":',
                b'"":',
                b'"_run_id":',
                b'"ID":1',
            ),
            *(b"[" * 70, b'{"a":' * 70, b"[" * 5000, b'"2026-02-30T25:61:61Z"', b'"0000-00-00T00:00:00Z"'),
            *(
                b'"99999-01-01T00:00:00Z"',
                b'"1e400"',
                b'"' + b"9" * 60 + b'"',
                b'"Infinity"',
                b"1e-9999999",
                b'"1E-9999999"',
                b"0." + b"0" * 60 + b"1",
                b'{"items":[]}',
            ),
        ),
    ),
    "openmetrics": Reader(
        take=_take_metrics,
        examples=(_METRICS, _METRICS.replace(b"\n", b"\r\n"), b"", b"# EOF\n", b"a 1\n" * 100),
        words=(
            *(
                b"{",
                b"}",
                b'"',
                b"\\",
                b"=",
                b",",
                b" ",
                b"\t",
                b"\n",
                b"\r",
                b"#",
                b"# TYPE ",
                b"# HELP ",
                b"# EOF\n",
            ),
            *(
                b" # {",
                b"+Inf",
                b"NaN",
                b"0x1p3",
                b"1_0",
                b"1e309",
                b" 99999999999999999999",
                b'le="',
                b"\xff",
                b"\0",
            ),
            *(
                b"a" * 5000,
                b'{a="b"} 1 2\n',
                b'{a="b",a="b"} 1\n',
                b"<html>",
                b"\xc2\x85",
                b"\xe2\x80\xa8",
                b" 1.5e18",
            ),
        ),
    ),
    "archive": Reader(
        take=_take_archive,
        examples=(
            _zipped(("error.log", _LINES), ("slow/", b""), ("slow/slow.log", _SLOW * 3)),
            _zipped(("../../x", _LINES * 20), method=zipfile.ZIP_STORED),
            _tarred(("error.log", _LINES), ("a" * 200, _SLOW)),
            gzip.compress(_LINES * 5),
            _LINES + _SLOW + _LINES,
            _zipped(),
        ),
        words=(
            *(
                b"PK\x03\x04",
                b"PK\x01\x02",
                b"PK\x05\x06",
                b"PK\x06\x06",
                b"PK\x06\x07",
                b"\x1f\x8b\x08",
                b"ustar",
            ),
            *(
                b"\0" * 512,
                b"\xff\xff\xff\xff",
                b"\0\0\0\0",
                b"\n",
                b"\r\n",
                b"\0",
                b"\xff",
                b"# Time: 261122 10:00:00\n",
            ),
            *(
                b"# User@Host: x\n",
                b'{"log":"',
                b'\\n"}',
                b"2026-13-45T99:99:99.999999999Z",
                b"0000-00-00 00:00:00 ",
            ),
            *(b"99991231 23:59:59,", b"\xef\xbb\xbf", b"stdout P ", b"[Note]", b"\\u0026", b"<html>"),
        ),
    ),
    "config": Reader(
        take=_take_config,
        examples=(_SETTINGS, _ENDPOINTS, b"", b"limits.concurrency=8"),
        words=(
            *(
                b"[",
                b"]",
                b"[[",
                b"]]",
                b"=",
                b'"',
                b"'",
                b'"""',
                b"{",
                b"}",
                b",",
                b".",
                b"#",
                b"\n",
                b"\0",
                b"\xff",
            ),
            *(
                b"true",
                b"nan",
                b"inf",
                b"-1",
                b"1e400",
                b"9" * 30,
                b"2026-01-01",
                b"07:32:00",
                b"{ kind = 'page' }",
            ),
            *(
                b"[services]",
                b"[source]",
                b"[accounts]",
                b"[[accounts]]",
                b"[checks.x]",
                b"[x.columns]",
                b"path = '/x'\n",
            ),
            *(
                b"parent = { endpoint = 'services', params = { x = 'y' } }\n",
                b"sync = 'append'\n",
                b"key = ['id']\n",
            ),
            *(
                b"base_url = 'http://[::1'\n",
                b"uri = '~nobody/x'\n",
                b"list<list<",
                b"map<map<",
                b"struct<a: ",
                b">",
                b"{x}",
            ),
            *(b"limits.", b"checks.", b"run.include=", b"step = '0d'\n", b"lookback = '-1h'\n", b"[" * 500),
        ),
    ),
}
