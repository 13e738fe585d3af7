from __future__ import annotations

import asyncio
import gzip
import json
import random
import socket
import struct
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aioresponses
import anyio
import anyio.lowlevel
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port

from extractor.errors import (
    BodyTooLarge,
    ConfigError,
    ExtractError,
    LakeError,
    NetworkError,
    RedirectRefused,
    RequestError,
    StatusError,
)
from extractor.fetch import Fetcher, FetchLimits, Request, Response, parse_date
from extractor.testing.clock import VirtualClock

API = "https://api.skysql.com"
CANARY = "canary-0123456789-abcdefghij"
START = datetime(2026, 11, 22, 12, tzinfo=UTC)
HEADERS = (("X-API-Key", CANARY), ("Authorization", f"Bearer {CANARY}"))

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def get(path: str = "/v1/ships", *query: tuple[str, str]) -> Request:
    return Request(method="GET", path=path, query=query, headers=HEADERS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where large bodies go."""
    made = tmp_path / "spool"
    made.mkdir()
    return made


def files_in(folder: Path) -> list[Path]:
    return list(folder.iterdir())


@asynccontextmanager
async def fetching(url: str, folder: Path = Path("/nonexistent"), **limits: float) -> AsyncIterator[Fetcher]:
    async with Fetcher(
        url,
        limits=FetchLimits(**limits),  # type: ignore[arg-type]  # each test's own bounds
        clock=VirtualClock(),
        user_agent="test/1",
        spool_folder=lambda: folder,
    ) as fetcher:
        yield fetcher


@asynccontextmanager
async def serving(handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    """An HTTP server on loopback that gives every request to `handler`."""
    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", handler)
    async with TestServer(app, host="127.0.0.1") as server:
        yield f"http://127.0.0.1:{server.port}"


@asynccontextmanager
async def speaking(handler: Handler) -> AsyncIterator[str]:
    """A server on loopback that says whatever `handler` writes, HTTP or not."""
    writers: list[asyncio.StreamWriter] = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        await reader.readuntil(b"\r\n\r\n")
        await handler(reader, writer)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for writer in writers:
            writer.close()
        await server.wait_closed()


def saying(*parts: bytes, end: str = "close") -> Handler:
    """Write `parts` and then `close` properly, `reset`, or `stall` until the client goes."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()
        if end == "stall":
            await reader.read()
        if end == "reset":
            connection: socket.socket = writer.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.close()

    return handler


async def refusal(
    url: str, kind: type[ExtractError], folder: Path = Path("/nonexistent"), **limits: float
) -> ExtractError:
    """The error of one attempt, after a look for credentials in all that could be shown of it."""
    async with fetching(url, folder, **limits) as fetcher:
        with pytest.raises(kind) as caught:
            await fetcher.fetch(get())
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert CANARY not in shown
    return caught.value


def head(*lines: str, status: str = "200 OK") -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode()


# --- answers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 201, 202, 206])
async def test_an_answer_of_success_is_given_whole(status: int, answers: aioresponses.aioresponses) -> None:
    answers.get(f"{API}/v1/ships", status=status, body=b"[1]", headers={"X-SkySQL-Page-Token-Next": "t"})

    async with fetching(API) as fetcher:
        response = await fetcher.fetch(get())

    assert response == Response(
        status=status,
        headers={"content-type": "application/json", "x-skysql-page-token-next": "t"},
        body=b"[1]",
        spool=None,
        size_bytes=3,
        elapsed_seconds=0.0,
        received_at=START,
    )
    assert (response.read(), response.open().read()) == (b"[1]", b"[1]")


async def test_an_answer_without_a_body_is_an_answer(answers: aioresponses.aioresponses) -> None:
    answers.get(f"{API}/v1/ships", status=204, body=b"")

    async with fetching(API) as fetcher:
        response = await fetcher.fetch(get())

    assert (response.status, response.read(), response.size_bytes) == (204, b"", 0)


@pytest.mark.parametrize("status", [300, 304, 400, 401, 403, 404, 409, 422, 429, 500, 502, 503, 504])
async def test_any_other_status_is_an_error_with_headers_and_the_start_of_the_body(
    status: int, answers: aioresponses.aioresponses
) -> None:
    answers.get(f"{API}/v1/ships", status=status, body="é" + "x" * 5000, headers={"Retry-After": "7"})

    async with fetching(API) as fetcher:
        with pytest.raises(StatusError) as caught:
            await fetcher.fetch(get())

    error = caught.value
    assert error.message == str(error) == f"/v1/ships: status {status}"
    assert error.status == status
    assert error.headers == {"content-type": "application/json", "retry-after": "7"}
    assert error.excerpt == "é" + "x" * 1998


async def test_one_attempt_is_one_attempt(answers: aioresponses.aioresponses) -> None:
    answers.get(f"{API}/v1/ships", status=503)
    answers.get(f"{API}/v1/ships", status=200, body=b"[]")

    async with fetching(API) as fetcher:
        with pytest.raises(StatusError):
            await fetcher.fetch(get())
        response = await fetcher.fetch(get())

    assert response.status == 200


async def test_headers_that_come_twice_are_joined_and_names_are_lower_case() -> None:
    async def answer(request: web.Request) -> web.Response:
        response = web.Response(text="x", headers={"Content-Type": "Text/Plain; Charset=UTF-8"})
        response.headers.add("Link", "<a>")
        response.headers.add("link", "<b>")
        response.headers["Date"] = "Sun, 22 Nov 2026 12:00:00 GMT"
        return response

    async with serving(answer) as url, fetching(url) as fetcher:
        response = await fetcher.fetch(get())

    assert response.headers["link"] == "<a>, <b>"
    assert response.media_type == "text/plain"
    assert response.server_date == START


def test_an_answer_that_says_nothing_of_itself_has_no_type_and_no_date() -> None:
    response = Response(
        status=200, headers={}, body=b"", spool=None, size_bytes=0, elapsed_seconds=0.0, received_at=START
    )

    assert (response.media_type, response.server_date) == ("", None)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("Sun, 22 Nov 2026 12:00:00 GMT", START),
        ("Sun, 22 Nov 2026 14:00:00 +0200", START),
        ("Sun, 22 Nov 2026 12:00:00 -0000", None),
        ("2026-11-22T12:00:00Z", None),
        ("Sun, 22 Nov 2026 25:00:00 GMT", None),
        ("Fri, 31 Dec 9999 23:59:59 -0200", None),
        ("", None),
        ("soon", None),
    ],
)
def test_a_date_is_given_in_utc_or_not_at_all(text: str, moment: datetime | None) -> None:
    found = parse_date(text)

    assert found == moment
    assert found is None or found.utcoffset() == timedelta(0)


# --- requests -----------------------------------------------------------------------------------------------


async def test_a_request_goes_out_as_it_is() -> None:
    seen: list[tuple[str, str, dict[str, str], bytes]] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append((request.method, request.raw_path, dict(request.headers), await request.read()))
        return web.json_response([])

    async with serving(answer) as url, fetching(f"{url}/base/") as fetcher:
        await fetcher.fetch(get("/v1/a%2Fb%3A%20c", ("page_token", "a+b/c=="), ("q", "x y&z"), ("q", "")))
        await fetcher.fetch(
            Request(
                method="POST",
                path="/v1/query",
                headers=(("Content-Type", "application/json"),),
                json_body=b'{"a":1}',
            )
        )
    host = url.removeprefix("http://")

    common = {"Host": host, "User-Agent": "test/1", "Accept": "*/*", "Accept-Encoding": "gzip"}
    assert seen == [
        (
            "GET",
            "/base/v1/a%2Fb%3A%20c?page_token=a%2Bb/c%3D%3D&q=x+y%26z&q=",
            {**common, "X-API-Key": CANARY, "Authorization": f"Bearer {CANARY}"},
            b"",
        ),
        (
            "POST",
            "/base/v1/query",
            {**common, "Content-Type": "application/json", "Content-Length": "7"},
            b'{"a":1}',
        ),
    ]


async def test_any_value_of_a_query_arrives_as_it_was() -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.json_response([list(pair) for pair in request.query.items()])

    chance = random.Random(7)
    letters = [*map(chr, range(1, 128)), "é", "日", "\U0001f600", "%41", "%", "+"]
    async with serving(answer) as url, fetching(url) as fetcher:
        for _ in range(40):
            query = [("t" + "".join(chance.choices(letters, k=2)), "".join(chance.choices(letters, k=12)))]
            query.append(("t", query[0][1]))

            response = await fetcher.fetch(get("/v1", *query))

            assert json.loads(response.read()) == [list(pair) for pair in query]


async def test_connections_are_kept_and_cookies_are_not() -> None:
    ports: set[object] = set()
    cookies: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        assert request.transport is not None
        ports.add(request.transport.get_extra_info("peername"))
        cookies.append(request.headers.get("Cookie", ""))
        status = 200 if len(cookies) % 2 else 404
        response = web.Response(text="x", status=status)
        response.set_cookie("session", CANARY)
        return response

    async with serving(answer) as url, fetching(url) as fetcher:
        for _ in range(3):
            await fetcher.fetch(get())
            with pytest.raises(StatusError):
                await fetcher.fetch(get())

    assert len(ports) == 1
    assert cookies == [""] * 6


async def test_there_are_never_more_connections_than_allowed() -> None:
    live, peak = 0, 0
    both = asyncio.Event()

    async def answer(request: web.Request) -> web.Response:
        nonlocal live, peak
        live += 1
        peak = max(peak, live)
        if live == 2:
            both.set()
        await both.wait()
        live -= 1
        return web.Response(text="x")

    async with (
        serving(answer) as url,
        fetching(url, connections=2) as fetcher,
        anyio.create_task_group() as tasks,
    ):
        for _ in range(6):
            tasks.start_soon(fetcher.fetch, get())

    assert peak == 2


async def test_the_proxy_of_the_environment_is_never_asked_for_this_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(text="straight")

    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{unused_port()}")
    monkeypatch.delenv("no_proxy", raising=False)

    async with serving(answer) as url, fetching(url) as fetcher:
        response = await fetcher.fetch(get())

    assert response.read() == b"straight"


async def test_any_other_host_is_asked_through_the_proxy_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=request.raw_path)

    async with serving(answer) as proxy:
        monkeypatch.setenv("http_proxy", proxy)
        monkeypatch.delenv("no_proxy", raising=False)

        async with fetching("http://api.invalid") as fetcher:
            response = await fetcher.fetch(get())

    assert response.read() == b"http://api.invalid/v1/ships"


async def test_no_credential_but_the_one_of_the_run_goes_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.json_response([request.headers.get("Authorization"), request.headers.get("X-API-Key")])

    (tmp_path / "netrc").write_text("machine api.invalid login me password mine\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("no_proxy", raising=False)
    requests = [
        Request(method="GET", path="/v1", headers=(("Authorization", f"Bearer {CANARY}"),)),
        Request(method="GET", path="/v1", headers=(("X-API-Key", CANARY),)),
    ]

    async with serving(answer) as proxy:
        monkeypatch.setenv("http_proxy", proxy)
        async with fetching("http://api.invalid") as fetcher:
            seen = [json.loads((await fetcher.fetch(request)).read()) for request in requests]

    assert seen == [[f"Bearer {CANARY}", None], [None, CANARY]]


@pytest.mark.parametrize("proxy", ["http://[bad", "http://me:s3cret@proxy:99999", "proxy"])
def test_a_proxy_that_is_no_url_is_told_before_anything_is_sent(
    proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", proxy)
    monkeypatch.delenv("no_proxy", raising=False)

    with pytest.raises(ConfigError, match=r"^the proxy of the environment is no URL") as told:
        Fetcher(
            "http://api.invalid",
            limits=FetchLimits(),
            clock=VirtualClock(),
            user_agent="test/1",
            spool_folder=lambda: Path("/nonexistent"),
        )

    assert "s3cret" not in "".join(traceback.format_exception(told.value))


def test_a_request_does_not_show_its_credential() -> None:
    request = Request(
        method="POST", path="/v1", headers=HEADERS, query=(("a", CANARY),), json_body=CANARY.encode()
    )

    assert f"{request} {request!r}" == "Request(POST /v1) Request(POST /v1)"


# --- bodies -------------------------------------------------------------------------------------------------


async def test_a_compressed_body_is_given_plain() -> None:
    body = b'{"name": "x"}' * 1000

    async def answer(request: web.Request) -> web.Response:
        assert request.headers["Accept-Encoding"] == "gzip"
        return web.Response(body=gzip.compress(body), headers={"Content-Encoding": "gzip"})

    async with serving(answer) as url, fetching(url) as fetcher:
        response = await fetcher.fetch(get())

    assert (response.read(), response.size_bytes) == (body, len(body))
    assert fetcher.received_bytes == len(body)


async def test_a_body_up_to_the_threshold_is_held_and_a_larger_one_is_in_a_file(folder: Path) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=bytes(range(250)) * (4 if request.path == "/held" else 4001))

    async with serving(answer) as url, fetching(url, folder, spool_bytes=1000) as fetcher:
        held = await fetcher.fetch(get("/held"))
        spooled = await fetcher.fetch(get("/spooled"))

    assert (held.spool, held.size_bytes, held.read()) == (None, 1000, bytes(range(250)) * 4)
    assert spooled.spool is not None
    assert (spooled.spool.parent, spooled.body, spooled.size_bytes) == (folder, b"", 1_000_250)
    assert spooled.spool.stat().st_mode & 0o077 == 0
    assert spooled.read() == bytes(range(250)) * 4001
    with spooled.open() as stream:
        stream.seek(-2, 2)
        assert stream.read() == b"\xf8\xf9"

    held.discard()
    spooled.discard()
    spooled.discard()

    assert files_in(folder) == []


@pytest.mark.parametrize("is_compressed", [False, True])
@pytest.mark.parametrize("spool_bytes", [100, 1 << 20])
async def test_a_body_beyond_the_bound_is_refused_and_leaves_nothing(
    is_compressed: bool, spool_bytes: int, folder: Path
) -> None:
    body = bytes(2 << 20)
    sent = gzip.compress(body) if is_compressed else body

    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=sent, headers={"Content-Encoding": "gzip"} if is_compressed else {})

    async with serving(answer) as url:
        error = await refusal(url, BodyTooLarge, folder, body_bytes_max=3 << 19, spool_bytes=spool_bytes)

    assert error.message == "/v1/ships: the body has more than 1.5 MiB (bounds.body_mb)"
    assert files_in(folder) == []


async def test_a_body_as_large_as_the_bound_is_good() -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=b"x" * 1000)

    async with serving(answer) as url, fetching(url, body_bytes_max=1000) as fetcher:
        response = await fetcher.fetch(get())

    assert response.size_bytes == 1000


async def test_an_attempt_that_is_cancelled_leaves_no_file(folder: Path) -> None:
    handler = saying(head("Content-Length: 100000"), b"x" * 50_000, end="stall")

    async with (
        speaking(handler) as url,
        fetching(url, folder, spool_bytes=1000) as fetcher,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(fetcher.fetch, get())
        while not files_in(folder):
            await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()

    assert files_in(folder) == []


async def test_a_full_or_missing_disk_is_told_from_a_bad_answer(tmp_path: Path) -> None:
    handler = saying(head("Content-Length: 5000"), b"x" * 5000)

    async with speaking(handler) as url:
        error = await refusal(url, LakeError, tmp_path / "missing", spool_bytes=1000)

    assert error.message == (
        "/v1/ships: the answer could not be kept on disk: No such file or directory; "
        "see to the folder and run again"
    )


# --- answers that are none ----------------------------------------------------------------------------------

CUT = "the body was cut or is not encoded as it says"
NO_HTTP = "the answer is no HTTP (ClientResponseError)"
LENGTH = "Content-Length: 1000"
CHUNKED = "Transfer-Encoding: chunked"
GZIP = "Content-Encoding: gzip"


@pytest.mark.parametrize(
    ("handler", "what"),
    [
        (saying(), "the connection was reset"),
        (saying(end="reset"), "the connection was reset"),
        (saying(head(LENGTH), b"x" * 500, end="reset"), CUT),
        (saying(head(LENGTH), b"x" * 500), CUT),
        (saying(head(CHUNKED), b"5\r\nhello\r\n"), CUT),
        (saying(head(CHUNKED), b"5\r\nhel"), CUT),
        (saying(head(CHUNKED), b"zz\r\nhello\r\n0\r\n\r\n"), NO_HTTP),
        (saying(head(GZIP, "Content-Length: 5"), b"plain"), CUT),
        (saying(head(GZIP, LENGTH), gzip.compress(random.Random(1).randbytes(2000))[:500]), CUT),
        (saying(b"garbage\r\n\r\n"), NO_HTTP),
        (saying(head("X-Long: " + "x" * 40_000)), NO_HTTP),
    ],
)
async def test_an_answer_that_is_not_whole_is_a_fault_of_the_network(handler: Handler, what: str) -> None:
    async with speaking(handler) as url:
        error = await refusal(url, NetworkError)

    assert error.message == f"/v1/ships: {what}"


@pytest.mark.parametrize(
    ("handler", "missing"),
    [
        (saying(end="stall"), "answer"),
        (saying(b"HTTP/1.1 200", end="stall"), "answer"),
        (saying(head(LENGTH), end="stall"), "byte"),
        (saying(head(LENGTH), b"x" * 500, end="stall"), "byte"),
        (saying(head(CHUNKED), b"5\r\nhello\r\n", end="stall"), "byte"),
    ],
)
async def test_an_answer_that_stalls_is_given_up_after_the_idle_time(handler: Handler, missing: str) -> None:
    async with speaking(handler) as url:
        error = await refusal(url, NetworkError, idle_seconds=0.1)

    assert error.message == f"/v1/ships: no {missing} within limits.idle_seconds"


async def test_a_chunk_that_makes_no_sense_is_told_also_when_it_comes_late() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(head(CHUNKED))
        await writer.drain()
        await asyncio.sleep(0.1)  # until the client waits for the body
        writer.write(b"zz\r\n[]\r\n")
        await reader.read()

    async with speaking(handler) as url:
        error = await refusal(url, NetworkError, idle_seconds=0.2)

    assert error.message == "/v1/ships: the answer is no HTTP (ClientResponseError)"


async def test_a_slow_answer_is_no_stalled_one() -> None:
    pieces = 6

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(head(f"Content-Length: {pieces}"))
        for _ in range(pieces):
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.1)  # the server's slowness is what is under test
        writer.close()

    async with speaking(handler) as url, fetching(url, idle_seconds=0.4) as fetcher:
        response = await fetcher.fetch(get())

    assert response.read() == b"x" * pieces


async def test_an_answer_that_never_ends_is_given_up_in_time() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(head(CHUNKED))
        while not writer.is_closing():
            writer.write(b"1\r\nx\r\n")
            await writer.drain()
            await asyncio.sleep(0.01)  # it is never silent

    async with speaking(handler) as url:
        error = await refusal(url, NetworkError, idle_seconds=5, longest_seconds=0.2)

    assert error.message == "/v1/ships: no whole answer within limits.retry_seconds"


async def test_who_is_cancelled_while_nothing_comes_is_cancelled() -> None:
    async with speaking(saying(end="stall")) as url, fetching(url, idle_seconds=5) as fetcher:
        with anyio.move_on_after(0.1) as scope:
            await fetcher.fetch(get())

    assert scope.cancelled_caught


async def test_a_body_that_ends_with_its_connection_is_taken_as_it_came() -> None:
    async with speaking(saying(head("Connection: close"), b"whole")) as url, fetching(url) as fetcher:
        response = await fetcher.fetch(get())

    assert response.read() == b"whole"


@pytest.mark.parametrize("end", ["close", "reset", "stall"])
async def test_a_file_of_a_body_that_was_cut_is_removed(end: str, folder: Path) -> None:
    handler = saying(head("Content-Length: 100000"), b"x" * 50_000, end=end)

    async with speaking(handler) as url:
        await refusal(url, NetworkError, folder, spool_bytes=1000, idle_seconds=0.1)

    assert files_in(folder) == []


async def test_nobody_who_listens_is_told_from_a_reset() -> None:
    error = await refusal(f"http://127.0.0.1:{unused_port()}", NetworkError)

    assert error.message == "/v1/ships: no connection (Connection refused)"


async def test_a_server_that_does_not_speak_tls_is_told() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(head("Content-Length: 0"))
        writer.close()

    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    async with server:
        error = await refusal(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}", NetworkError)

    assert error.message == "/v1/ships: TLS failed: the certificate or protocol was refused"


@pytest.mark.parametrize("body", [b"", b"denied"])
async def test_a_status_counts_though_the_body_behind_it_was_cut(body: bytes) -> None:
    handler = saying(head("Content-Length: 100", status="403 Forbidden"), body, end="stall")

    async with speaking(handler) as url:
        error = await refusal(url, StatusError, idle_seconds=0.1)

    assert isinstance(error, StatusError)
    assert (error.status, error.excerpt) == (403, body.decode())


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "GZIP"])
async def test_what_an_error_says_is_unfolded(encoding: str) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=403, body=gzip.compress(b"denied"), headers={"Content-Encoding": encoding})

    async with serving(answer) as url:
        error = await refusal(url, StatusError)

    assert isinstance(error, StatusError)
    assert error.excerpt == "denied"


async def test_a_key_that_the_server_repeats_is_in_no_message() -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=401, text=f"no: {request.headers['X-API-Key']}")

    async with serving(answer) as url:
        error = await refusal(url, StatusError)

    assert isinstance(error, StatusError)
    assert error.message == "/v1/ships: status 401"
    assert error.excerpt == f"no: {CANARY}"  # for `redact`, before it is shown to anybody


@pytest.mark.parametrize("value", [f"{CANARY}\r\nX: y", f"{CANARY}\0"])
async def test_a_header_that_cannot_be_sent_is_not_quoted(value: str) -> None:
    async with fetching("http://127.0.0.1:1") as fetcher:
        with pytest.raises(NetworkError) as caught:
            await fetcher.fetch(Request(method="GET", path="/v1", headers=(("X-API-Key", value),)))

    assert CANARY not in "".join(traceback.format_exception(caught.value))


# --- redirects ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_within_the_source_is_followed_with_the_key(status: int) -> None:
    seen: list[tuple[str, str]] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append((request.raw_path, request.headers["X-API-Key"]))
        if request.path == "/v1/ships":
            return web.Response(status=status, headers={"Location": "/v1/ships/?b=%2F"})
        return web.Response(text="there")

    async with serving(answer) as url, fetching(url) as fetcher:
        response = await fetcher.fetch(get("/v1/ships", ("a", "1")))

    assert response.read() == b"there"
    assert seen == [("/v1/ships?a=1", CANARY), ("/v1/ships/?b=%2F", CANARY)]


async def test_a_redirect_to_another_host_is_refused_before_anything_is_sent_there() -> None:
    reached: list[str] = []

    async def other(request: web.Request) -> web.Response:
        reached.append(request.raw_path)
        return web.Response(text="x")

    async with serving(other) as elsewhere:
        for target in (
            f"{elsewhere}/v1/ships",
            f"http://{CANARY}:{CANARY}@127.0.0.1:1/{CANARY}?k={CANARY}",
            f"//127.0.0.1:1/{CANARY}",
            "https://127.0.0.1/",
        ):

            async def answer(request: web.Request, target: str = target) -> web.Response:
                return web.Response(status=302, headers={"Location": target})

            async with serving(answer) as url:
                error = await refusal(url, RedirectRefused)

            scheme = target.partition(":")[0] if "://" in target else "http"
            assert error.message == (
                f"/v1/ships: redirected to another host, {scheme}://127.0.0.1; not followed"
            )

    assert reached == []


@pytest.mark.parametrize("redirects", [0, 2])
async def test_redirects_come_to_an_end(redirects: int) -> None:
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response(status=302, headers={"Location": f"/{len(asked)}"})

    async with serving(answer) as url:
        error = await refusal(url, RedirectRefused, redirects=redirects)

    assert error.message == f"/v1/ships: more than {redirects} redirects (bounds.redirects)"
    assert len(asked) == redirects + 1


async def test_a_redirect_to_nowhere_is_no_success() -> None:
    async with speaking(saying(head("Content-Length: 0", status="302 Found"))) as url:
        error = await refusal(url, StatusError)

    assert error.message == "/v1/ships: status 302"


async def test_a_redirect_that_is_no_url_is_refused() -> None:
    async with speaking(
        saying(head("Content-Length: 0", f"Location: http://[{CANARY}", status="302 Found"))
    ) as url:
        error = await refusal(url, RequestError)

    assert error.message == "/v1/ships: the answer is no HTTP (ValueError)"
