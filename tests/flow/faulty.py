"""A server that misbehaves on purpose, byte by byte, and the list of the ways in which it does.

`FAULTS` is the one place where a fault, and what a run makes of it, are declared. The tests hold the program to it,
and the table of `docs/faults.md` is made of it: `python -m tests.flow.faulty` writes that table anew.
"""

from __future__ import annotations

import asyncio
import gzip
import io
import random
import shutil
import socket
import ssl
import struct
import subprocess
import tempfile
import threading
import zipfile
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

DOCUMENT = Path(__file__).parents[2] / "docs" / "faults.md"
BEGIN, END = "<!-- made by tests.flow.faulty: begin -->", "<!-- made by tests.flow.faulty: end -->"

CATALOGUE = """
[rest]
path = "/rest"
key  = ["id"]

[things]
path   = "/things"
key    = ["id"]
paging = { kind = "token", request_param = "t", response_header = "X-Next" }

[linked]
path   = "/linked"
key    = ["id"]
paging = { kind = "link" }

[archive]
path   = "/archive"
format = "log_archive"

[metrics]
path   = "/metrics"
format = "openmetrics"
"""
"""`rest` is always well. The others meet the fault, `things` and `linked` on their second page."""

SETTINGS = (
    "source.builtin=false",
    "limits.requests_per_second=1000",
    "limits.connect_seconds=2",
    "limits.idle_seconds=0.4",
    "limits.retry_seconds=20",
    "bounds.body_mb=1",
    "bounds.pages=20",
)
"""Bounds scaled down, so that a test meets them within a second."""


# --- what a fault is ----------------------------------------------------------------------------------------


@dataclass(slots=True)
class Exchange:
    """One request, and the connection on which it is answered."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    site: Site
    target: str

    @property
    def base(self) -> str:
        """The path of the source: `/FAULT/MODE`."""
        return "/".join(self.target.split("/")[:3])

    async def say(self, *parts: bytes) -> None:
        for part in parts:
            self.writer.write(part)
            await self.writer.drain()

    def reset(self) -> None:
        connection: socket.socket = self.writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.close()


Speak = Callable[[Exchange], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A fault, and what a run is held to that meets it."""

    name: str
    what: str
    """What happens, for people."""
    speak: Speak
    code: int = 3
    """The exit code if the fault stays."""
    told: str = ""
    """What the closing line says of it then."""
    is_retried: bool = False
    """True if the request is sent again: a fault that goes away within `limits.retry_…` then costs nothing."""
    because: str = ""
    """Why it is not sent (once more)."""
    table: str = "things"
    last: str = ""
    """The request that meets it, where it is not the second page."""
    origin: str = "URL"
    """Where the source is: at the server itself, elsewhere on it, or behind a proxy (see `Site.origins`)."""
    settings: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The request that meets it, as messages name it."""
        return self.last or {"things": "/things?t=2", "linked": "/linked?p=2"}.get(
            self.table, f"/{self.table}"
        )

    def closing_line(self, url: str) -> str:
        """What a run ends in if the fault stays; attempts are one."""
        attempts = f" ({self.because})" if self.because else ""
        if self.code == 10:
            what = f"{url} could not be reached: /things: {self.told}{attempts}"
            return f"{what}; check source.base_url and the network, then run again"
        status = f"{self.table}: failed: 1 of 1 requests failed: {self.label}: {self.told}{attempts}"
        return f"{status}; what is complete is committed, the next run tries the rest again"


def again(name: str, what: str, speak: Speak, told: str, **more: Any) -> Fault:
    """A fault of the moment: the request is sent again."""
    because = "1 attempt failed"
    return Fault(name=name, what=what, speak=speak, is_retried=True, told=told, because=because, **more)


def final(name: str, what: str, speak: Speak, told: str, **more: Any) -> Fault:
    """A fault that would be the same again."""
    return Fault(name=name, what=what, speak=speak, told=told, **more)


def harmless(name: str, what: str, speak: Speak, **more: Any) -> Fault:
    """Odd, but a whole answer."""
    return Fault(name=name, what=what, speak=speak, code=0, **more)


# --- what is said on the wire -------------------------------------------------------------------------------


def head(*lines: str, status: str = "200 OK") -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode()


def whole(body: bytes, *lines: str, status: str = "200 OK") -> bytes:
    return head(JSON, *lines, f"Content-Length: {len(body)}", status=status) + body


def saying(*parts: bytes, end: str = "close") -> Speak:
    """Say `parts`, and then `close` in order, `reset`, `stall`, or `keep` the connection."""

    async def speak(exchange: Exchange) -> None:
        await exchange.say(*parts)
        match end:
            case "close":
                exchange.writer.close()
            case "reset":
                if parts:
                    await asyncio.sleep(0.05)  # what was said is to arrive before
                exchange.reset()
            case "stall":
                await exchange.reader.read()

    return speak


def answering(body: bytes, *lines: str, status: str = "200 OK") -> Speak:
    """A whole answer."""
    return saying(whole(body, *lines, status=status), end="keep")


def dripping(start: bytes, *, drip: bytes, seconds: float = 0.05, times: int = 1_000_000) -> Speak:
    """`drip` again and again, with pauses that are shorter than the idle time."""

    async def speak(exchange: Exchange) -> None:
        await exchange.say(start)
        for _ in range(times):
            await exchange.say(drip)
            await asyncio.sleep(seconds)

    return speak


async def pages_without_end(exchange: Exchange) -> None:
    number = int(exchange.target.rpartition("=")[2]) + 1
    await exchange.say(whole(b'[{"id":%d}]' % number, f"X-Next: {number}"))


async def redirects_without_end(exchange: Exchange) -> None:
    target = f"{exchange.base}/things?t=2&n={exchange.site.next_number()}"
    await exchange.say(head(f"Location: {target}", "Content-Length: 0", status="302 Found"))


async def redirect_abroad(exchange: Exchange) -> None:
    target = f"{exchange.site.elsewhere}/things"
    await exchange.say(head(f"Location: {target}", "Content-Length: 0", status="307 Temporary Redirect"))


async def link_abroad(exchange: Exchange) -> None:
    await exchange.say(whole(ROW, f'Link: <{exchange.site.elsewhere}/linked?p=3>; rel="next"'))


def skewed(days: int) -> Speak:
    """A server whose clock is off, and which wants a pause until a second from its now."""
    asked: Counter[str] = Counter()

    async def speak(exchange: Exchange) -> None:
        now = datetime.now(UTC) + timedelta(days=days)
        date = f"Date: {format_datetime(now, usegmt=True)}"
        asked[exchange.base] += 1
        if asked[exchange.base] == 1:
            until = f"Retry-After: {format_datetime(now + timedelta(seconds=1), usegmt=True)}"
            await exchange.say(whole(b"", date, until, status="503 Service Unavailable"))
        else:
            await exchange.say(whole(ROW, date))

    return speak


def zipped(name: str, body: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, body)
    return stream.getvalue()


def bomb(megabytes: int) -> bytes:
    """So many megabytes of blanks, squeezed to a thousandth."""
    squeeze = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join([*(squeeze.compress(b" " * (1 << 20)) for _ in range(megabytes)), squeeze.flush()])


JSON = "Content-Type: application/json"
CHUNKED = "Transfer-Encoding: chunked"
LENGTH = "Content-Length: 1000"
ROW = b'[{"id":2}]'
LOG = b"2026-11-22 10:00:00 0 [Note] started\n" * 50
ZIP = zipped("error.log", random.Random(1).randbytes(3000).hex().encode() + b"\n")
SQUEEZED = gzip.compress(b'[{"id":2,"text":"' + random.Random(1).randbytes(2000).hex().encode() + b'"}]')
BOMB = bomb(200)
METRICS = b"# TYPE a gauge\na 1\n"
HTML = b"<!DOCTYPE html><html><body><h1>Sign in</h1></body></html>"
DEEP = b'[{"id":2,"deep":' + b"[" * 10_000 + b"]" * 10_000 + b"}]"
A_BIT_DEEP = b'[{"id":2,"deep":' + b"[" * 65 + b"]" * 65 + b"}]"

RESET = "the connection was reset"
CUT = "the body was cut or is not encoded as it says"
MUTE = "no answer within limits.idle_seconds"
IDLE = "no byte within limits.idle_seconds"
SLOW = "no whole answer within limits.retry_seconds"
NO_HTTP = "the answer is no HTTP (ClientResponseError)"
TLS = "TLS failed: the certificate or protocol was refused"
SOON = ("limits.retry_seconds=1", "limits.retry_attempts=6")
TOO_LATE = "no attempt left within 1 s"

CONNECTION = (
    again("reset", "the connection is reset before the answer", saying(end="reset"), RESET),
    again("reset-in-head", "… within the headers", saying(b"HTTP/1.1 200 OK\r\nX-A", end="reset"), RESET),
    again("reset-in-body", "… within the body", saying(head(JSON, LENGTH), b"[", end="reset"), CUT),
    again("closed", "the connection is closed without an answer", saying(), RESET),
    again("stall", "no answer comes", saying(end="stall"), MUTE),
    again("stall-in-head", "the headers stop half-way", saying(b"HTTP/1.1 200", end="stall"), MUTE),
    again("stall-in-body", "the body stops half-way", saying(head(JSON, LENGTH), b"[", end="stall"), IDLE),
    harmless(
        "slow-drip",
        "a body that drips, and ends",
        dripping(head(JSON, "Content-Length: 12") + ROW, drip=b" ", times=2),
    ),
    final(
        "drip",
        "a body that drips without end",
        dripping(head(JSON, CHUNKED), drip=b"1\r\n \r\n"),
        SLOW,
        because=TOO_LATE,
        settings=SOON,
    ),
    final(
        "drip-in-head",
        "headers that drip without end",
        dripping(b"HTTP/1.1 200 OK\r\nX-Slow: ", drip=b"x"),
        MUTE,
        because=TOO_LATE,
        settings=SOON,
    ),
    harmless("ipv6", "the source is an IPv6 address", answering(ROW), origin="IPV6"),
)
SOURCE = (
    again(
        "refused", "nobody listens", saying(), "no connection (Connection refused)", code=10, origin="NOBODY"
    ),
    again("silence", "somebody listens, and no answer ever comes", saying(end="stall"), MUTE, code=10),
    again("no-tls", "the source does not speak TLS", saying(), TLS, code=10, origin="HTTPS"),
    again("certificate", "nobody vouches for its certificate", answering(ROW), TLS, code=10, origin="TLS"),
    again(
        "proxy-refuses",
        "the proxy of the environment refuses",
        saying(),
        "the proxy refused the connection (status 407)",
        code=10,
        origin="PROXY",
    ),
    again(
        "proxy-is-gone",
        "the proxy of the environment is not there",
        saying(),
        "no connection to the proxy (Connection refused)",
        code=10,
        origin="NOPROXY",
    ),
)
BODY = (
    again("truncated", "a body shorter than its Content-Length", saying(head(JSON, LENGTH), b"[]"), CUT),
    again(
        "truncated-chunks", "chunks without the last one", saying(head(JSON, CHUNKED), b"2\r\n[]\r\n"), CUT
    ),
    again(
        "truncated-unseen",
        "a body cut where nothing says how long it is",
        saying(head(JSON, "Connection: close"), ROW[:-3]),
        "the body is no JSON (Input data was truncated); it begins '[{\"id\":'",
    ),
    again(
        "too-long",
        "a body longer than its Content-Length",
        saying(head(JSON, "Content-Length: 5") + ROW),  # in one piece: what comes later belongs to no answer
        NO_HTTP,
    ),
    again(
        "two-lengths",
        "two lengths that differ",
        saying(head(JSON, "Content-Length: 10", LENGTH), ROW),
        NO_HTTP,
    ),
    again("bad-chunk", "a chunk without its length", saying(head(JSON, CHUNKED), b"zz\r\n[]\r\n"), NO_HTTP),
    again("no-http", "something that is no HTTP", saying(b"+OK ready\r\n\r\n"), NO_HTTP),
    again("not-gzip", "a plain body that says gzip", answering(ROW, "Content-Encoding: gzip"), CUT),
    again(
        "cut-gzip", "a compressed body that was cut", answering(SQUEEZED[:-9], "Content-Encoding: gzip"), CUT
    ),
    again(
        "brotli",
        "an encoding that was not asked for",
        answering(ROW, "Content-Encoding: br"),
        "the body is encoded in a way that was not asked for",
    ),
    final(
        "bomb",
        "200 MiB in 200 KiB of gzip, past `bounds.body_mb`",
        answering(BOMB, "Content-Encoding: gzip"),
        "the body has more than 1 MiB (bounds.body_mb)",
    ),
    final(
        "endless",
        "a body that never ends, past `bounds.body_mb`",
        dripping(
            head(JSON, CHUNKED) + b"1\r\n[\r\n", drip=b"10000\r\n" + b" " * 0x10000 + b"\r\n", seconds=0
        ),
        "the body has more than 1 MiB (bounds.body_mb)",
    ),
    again(
        "html",
        "a web page with status 200",
        saying(whole(HTML).replace(b"application/json", b"text/html"), end="keep"),
        "the body is no JSON (JSON is malformed: invalid character (byte 0)); it begins "
        "'<!DOCTYPE html><html><body><h1>Sign in</h1></body></html>'",
    ),
    again("empty", "status 200 and no body", answering(b""), "the body is empty, with status 200"),
    again(
        "half-a-character",
        "JSON cut in the middle of a character",
        answering('[{"id":2,"name":"é"}]'.encode()[:-4]),
        'the body is not UTF-8 at byte 17; it begins \'[{"id":2,"name":"�\'',
    ),
    again(
        "nan",
        "NaN, which JSON has not",
        answering(b'[{"id":2,"x":NaN}]'),
        'the body is no JSON (JSON is malformed: invalid character (byte 13)); it begins \'[{"id":2,"x":NaN}]\'',
    ),
    final(
        "duplicate-key",
        "a key that stands twice in a row",
        answering(b'[{"id":2,"id":3}]'),
        "the key 'id' stands twice in one object",
    ),
    again(
        "nesting",
        "10,000 levels of nesting",
        answering(DEEP),
        'the body is no JSON (nested too deeply); it begins \'[{"id":2,"deep":' + "[" * 44 + "'",
    ),
    final(
        "depth",
        "65 levels, past `bounds.depth`",
        answering(A_BIT_DEEP),
        "row 0 is nested deeper than bounds.depth = 64",
    ),
)
HTTP = (
    harmless(
        "continue",
        "100 and 103 before the answer",
        saying(
            head(status="100 Continue"), head("Link: </x>", status="103 Early Hints"), whole(ROW), end="keep"
        ),
    ),
    final(
        "switch",
        "101, which nobody asked for",
        saying(head("Upgrade: x", "Connection: upgrade", status="101 Switching Protocols"), end="stall"),
        "status 101",
    ),
    final(
        "continue-without-end",
        "100 again and again",
        dripping(b"", drip=head(status="100 Continue")),
        MUTE,
        because=TOO_LATE,
        settings=SOON,
    ),
    again("long-header", "a header of 40,000 bytes", answering(ROW, "X-Long: " + "x" * 40_000), NO_HTTP),
    again(
        "many-headers", "200 headers", answering(ROW, *(f"X-{number}: x" for number in range(200))), NO_HTTP
    ),
    final(
        "redirects",
        "redirects without end, past `bounds.redirects`",
        redirects_without_end,
        "more than 3 redirects (bounds.redirects)",
    ),
    final(
        "redirect-abroad",
        "a redirect to another host",
        redirect_abroad,
        "redirected to another host, http://127.0.0.1; not followed",
    ),
    final(
        "link-abroad",
        "a next link to another host",
        link_abroad,
        "the next link leads to another host: http://127.0.0.1",
        table="linked",
    ),
    final(
        "pages",
        "pages without end, past `bounds.pages`",
        pages_without_end,
        "no end after 20 pages (bounds.pages)",
        last="/things?t=20",
    ),
    final(
        "circle",
        "a page token that was there before",
        answering(ROW, "X-Next: 2"),
        "the token of page 3 was seen before: the chain loops",
    ),
    again("status-500", "status 500", answering(b"{}", status="500 Oops"), "status 500"),
    final(
        "status-429",
        "status 429, with a pause longer than `limits.retry_seconds`",
        answering(b"{}", "Retry-After: 900", status="429 Slow down"),
        "status 429",
        because="no attempt left within 20 s",
        settings=("limits.retry_attempts=6",),
    ),
    final("status-418", "a status that nobody knows", answering(b"{}", status="418 Teapot"), "status 418"),
    harmless("clock-ahead", "the server's clock is a day ahead", skewed(1)),
    harmless("clock-behind", "… or a day behind", skewed(-1)),
)
FORMATS = (
    again(
        "cut-archive",
        "a log archive that was cut",
        answering(ZIP[:-40]),
        "the log archive is damaged or cut: BadZipFile: File is not a zip file",
        table="archive",
    ),
    final(
        "archive-bomb",
        "a log archive past `bounds.archive_ratio`",
        answering(zipped("a.log", LOG * 20_000)),
        "the log archive unfolds to over 200 times its size (bounds.archive_ratio)",
        table="archive",
    ),
    again(
        "archive-html",
        "a web page for a log archive",
        answering(HTML),
        f"the body is HTML or XML, not a log archive: '{HTML.decode()}'",
        table="archive",
    ),
    harmless(
        "archive-name",
        "a member named `../../../etc/x`",
        answering(zipped("../../../etc/x", LOG)),
        table="archive",
    ),
    again(
        "cut-gzip-metrics",
        "a compressed metrics text that was cut, as long as it says",
        answering(gzip.compress(METRICS * 500)[:-20], "Content-Encoding: gzip"),
        CUT,
        table="metrics",
    ),
    again("cut-metrics", "a metrics text that was cut", saying(head(LENGTH), METRICS), CUT, table="metrics"),
    again(
        "metrics-html",
        "a web page for a metrics text",
        answering(HTML),
        f"the body is HTML or XML, not metrics text: '{HTML.decode()}'",
        table="metrics",
    ),
)
SECTIONS: tuple[tuple[str, tuple[Fault, ...]], ...] = (
    ("The connection", CONNECTION),
    ("The source as a whole", SOURCE),
    ("The body", BODY),
    ("HTTP", HTTP),
    ("Archives and metrics", FORMATS),
)
FAULTS = tuple(fault for _, faults in SECTIONS for fault in faults)


# --- the server ---------------------------------------------------------------------------------------------


class Site:
    """Serves `/FAULT/stays/…`, where the fault stays, and `/FAULT/once/…`, where it goes away."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []
        """The heads of the requests that came to the source."""
        self.strays: list[bytes] = []
        """Whatever came to a host that nobody may be led to."""
        self.through_proxy: list[bytes] = []
        self.origins: dict[str, str] = {}
        """By name, what `source.base_url` begins with."""
        self.elsewhere = ""
        self.certificate: Path | None = None
        self._number = 0
        self._met: Counter[str] = Counter()
        self._faults = {fault.name: fault for fault in FAULTS}
        self._servers: list[asyncio.Server] = []
        self._writers: set[asyncio.StreamWriter] = set()

    def next_number(self) -> int:
        self._number += 1
        return self._number

    def environment(self, fault: Fault) -> dict[str, str]:
        """The proxies that a run is to find in its environment."""
        proxy = self.origins.get({"PROXY": "PROXY_AT", "NOPROXY": "NOBODY"}.get(fault.origin, ""), "")
        return {"https_proxy": proxy.replace("//", "//proxyuser:proxypassword@")} if proxy else {}

    def url(self, fault: Fault, mode: str) -> str:
        return f"{self.origins[fault.origin]}/{fault.name}/{mode}"

    async def start(self, folder: Path) -> None:
        port = await self._listen(self._answer)
        self.origins["URL"] = f"http://127.0.0.1:{port}"
        self.origins["HTTPS"] = f"https://127.0.0.1:{await self._listen(self._stray, greeting=head())}"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.origins["NOBODY"] = f"http://127.0.0.1:{free.getsockname()[1]}"
        self.elsewhere = f"http://127.0.0.1:{await self._listen(self._stray)}"
        self.origins["PROXY_AT"] = f"http://127.0.0.1:{await self._listen(self._refuse_as_proxy)}"
        self.origins["PROXY"] = self.origins["NOPROXY"] = "https://api.invalid"
        with suppress(OSError):
            self.origins["IPV6"] = f"http://[::1]:{await self._listen(self._answer, '::1')}"
        self.certificate = make_certificate(folder)
        if self.certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.certificate)
            self.origins["TLS"] = f"https://127.0.0.1:{await self._listen(self._answer, tls=context)}"
            self.tunnel_port = int(self.origins["TLS"].rpartition(":")[2])
            self.origins["TUNNEL_AT"] = f"http://127.0.0.1:{await self._listen(self._tunnel)}"

    async def stop(self) -> None:
        for server in self._servers:
            server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        for server in self._servers:
            await server.wait_closed()

    async def _listen(
        self,
        answer: Callable[..., Awaitable[None]],
        host: str = "127.0.0.1",
        *,
        tls: ssl.SSLContext | None = None,
        greeting: bytes = b"",
    ) -> int:
        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._writers.add(writer)
            writer.write(greeting)
            try:
                while not writer.is_closing():
                    await answer(reader, writer, await reader.readuntil(b"\r\n\r\n"))
            except (OSError, asyncio.IncompleteReadError):
                pass
            finally:
                self._writers.discard(writer)
                writer.close()

        server = await asyncio.start_server(connected, host, 0, ssl=tls)
        self._servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    async def _answer(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
    ) -> None:
        self.seen.append(request)
        target = request.split(b" ")[1].decode()
        _, name, mode, table = urlsplit(target).path.split("/")
        query = parse_qs(urlsplit(target).query)
        fault = self._faults[name]
        is_first_page = table in ("things", "linked") and not query
        if table == fault.table and (not is_first_page or fault.code == 10):
            self._met[f"{name}/{mode}"] += 1
            if mode == "stays" or self._met[f"{name}/{mode}"] == 1:
                await fault.speak(Exchange(reader, writer, self, target))
                return
        writer.write(healthy(table, query, target))
        await writer.drain()

    async def _stray(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
    ) -> None:
        self.strays.append(request)
        writer.write(whole(ROW))

    async def _refuse_as_proxy(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
    ) -> None:
        self.through_proxy.append(request)
        writer.write(head("Content-Length: 0", status="407 Proxy Authentication Required"))
        await writer.drain()
        writer.close()

    async def _tunnel(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
    ) -> None:
        """A proxy that does as it is asked, wherever the request leads: to the server that speaks TLS."""
        self.through_proxy.append(request)
        there, to_there = await asyncio.open_connection("127.0.0.1", self.tunnel_port)
        self._writers.add(to_there)
        writer.write(head(status="200 Connection established"))

        async def carry(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            with suppress(OSError):
                while piece := await source.read(1 << 16):
                    if source is reader:
                        self.through_proxy.append(piece)
                    target.write(piece)
            target.close()

        await asyncio.gather(carry(reader, to_there), carry(there, writer))


def healthy(table: str, query: dict[str, list[str]], target: str) -> bytes:
    match table:
        case "things" if not query:
            return whole(b'[{"id":1}]', "X-Next: 2")
        case "linked" if not query:
            return whole(b'[{"id":1}]', f'Link: <{target}?p=2>; rel="next"')
        case "things" | "linked":
            return whole(ROW)
        case "archive":
            return whole(ZIP)
        case "metrics":
            return whole(METRICS)
    return whole(b'[{"id":1}]')


def make_certificate(folder: Path) -> Path | None:
    """Key and certificate of `api.invalid` and 127.0.0.1 in one file, signed by itself; None without OpenSSL."""
    openssl = shutil.which("openssl")
    if openssl is None:
        return None
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    words = (
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=api.invalid "
        "-addext subjectAltName=DNS:api.invalid,IP:127.0.0.1"
    )
    subprocess.run(
        [openssl, *words.split(), "-keyout", str(key), "-out", str(certificate)],
        check=True,
        capture_output=True,
        timeout=60,
    )
    certificate.write_bytes(certificate.read_bytes() + key.read_bytes())
    return certificate


@contextmanager
def serving() -> Iterator[Site]:
    """The server, on an event loop in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="faults")
    thread.start()
    site = Site()
    try:
        with tempfile.TemporaryDirectory() as folder:
            asyncio.run_coroutine_threadsafe(site.start(Path(folder)), loop).result(30)
            yield site
    finally:
        asyncio.run_coroutine_threadsafe(site.stop(), loop).result(30)
        asyncio.run_coroutine_threadsafe(_end_tasks(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _end_tasks() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


# --- the table ----------------------------------------------------------------------------------------------


def table(sections: Sequence[tuple[str, tuple[Fault, ...]]] = SECTIONS) -> str:
    """The faults as Markdown."""
    lines: list[str] = []
    for title, faults in sections:
        lines += ["", f"### {title}", ""]
        lines += [
            "| fault | what happens | sent again | exit code | what the closing line says |",
            "|---|---|---|---|---|",
        ]
        for fault in faults:
            told = f"`{fault.told}`" if fault.told else ""
            sent_again = "yes" if fault.is_retried else "" if fault.code == 0 else "no"
            cells = (f"`{fault.name}`", fault.what, sent_again, str(fault.code), told)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines).strip() + "\n"


def documented(page: str) -> str:
    """The page with the table as it ought to be."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table()}\n{END}{after}"


if __name__ == "__main__":
    DOCUMENT.write_text(documented(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
