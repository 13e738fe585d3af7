"""One request, one attempt: a `Response`, or an error of the phase in which it failed.

No loop and no retry. No aiohttp type leaves this file. Bodies up to a threshold stay in memory, larger ones are
spooled to a file. Credentials go to the configured origin only.
"""

from __future__ import annotations

import asyncio
import io
import os
import ssl
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import IO, BinaryIO
from urllib.parse import urljoin, urlsplit

import aiohttp
import msgspec
from aiohttp.helpers import get_env_proxy_for_url
from multidict import CIMultiDictProxy
from yarl import URL

from extractor.clock import Clock
from extractor.config import is_loopback
from extractor.errors import (
    BodyTooLarge,
    ConfigError,
    NetworkError,
    RedirectRefused,
    RequestError,
    StatusError,
)
from extractor.inflate import Inflater
from extractor.spool import spooling
from extractor.watchdog import Watch, Watchdog

__all__ = ("FetchLimits", "Fetcher", "Request", "Response", "parse_date")

_CHUNK_BYTES = 1 << 18
_EXCERPT_BYTES = 2_000
# Two names of one encoding (RFC 9110, section 8.4.1.3).
_GZIP = frozenset(("gzip", "x-gzip"))
_CUT = "the body was cut or is not encoded as it says"


class FetchLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of one attempt, in seconds and bytes."""

    connect_seconds: float = 10.0
    idle_seconds: float = 60.0
    longest_seconds: float = 600.0
    body_bytes_max: int = 1 << 30
    spool_bytes: int = 1 << 20
    redirects: int = 3
    connections: int = 16


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What goes over the wire: `path` is percent-encoded already, `headers` may hold a credential."""

    method: str
    path: str
    query: tuple[tuple[str, str], ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    json_body: bytes | None = None

    def __repr__(self) -> str:
        return f"Request({self.method} {self.path})"


class Response(msgspec.Struct, frozen=True, kw_only=True):
    """A whole answer with a status of success.

    The body is in `body`, or in the file `spool`, which the taker removes. `headers` have lower-case names.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    spool: Path | None
    size_bytes: int
    elapsed_seconds: float
    received_at: datetime

    @property
    def media_type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    @property
    def server_date(self) -> datetime | None:
        """The server's clock, from the Date header."""
        return parse_date(self.headers.get("date", ""))

    def open(self) -> BinaryIO:
        """The body as a seekable stream. Raises: LakeError."""
        if self.spool is None:
            return io.BytesIO(self.body)
        with spooling("an answer"):
            return self.spool.open("rb")

    def read(self) -> bytes:
        """The body, whole. Raises: LakeError."""
        if self.spool is None:
            return self.body
        with spooling("an answer"):
            return self.spool.read_bytes()

    def discard(self) -> None:
        """Remove the spooled file, if any."""
        if self.spool is not None:
            with suppress(OSError):
                self.spool.unlink(missing_ok=True)


def parse_date(text: str) -> datetime | None:
    """An HTTP date as aware UTC, or None."""
    try:
        moment = parsedate_to_datetime(text)
        return moment.astimezone(UTC) if moment.tzinfo else None
    except (TypeError, ValueError, OverflowError):
        return None


class Fetcher:
    """Speaks HTTP with one origin over kept-alive connections; use it as an async context manager.

    `spool_folder` is where large bodies go; it is made when first needed.

    Raises: ConfigError if the environment names a proxy that is no URL.
    """

    def __init__(
        self,
        base_url: str,
        *,
        limits: FetchLimits,
        clock: Clock,
        user_agent: str,
        spool_folder: Callable[[], Path],
    ) -> None:
        self._base = base_url.rstrip("/")
        self._limits = limits
        self._clock = clock
        self._spool_folder = spool_folder
        self._user_agent = user_agent
        self._session: aiohttp.ClientSession | None = None
        self._watchdog = Watchdog(idle_seconds=limits.idle_seconds, longest_seconds=limits.longest_seconds)
        self._proxy, self._proxy_headers = _proxy_of_environment(self._base)
        self.received_bytes = 0

    async def __aenter__(self) -> Fetcher:
        limits = self._limits
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=limits.connections, ttl_dns_cache=300, keepalive_timeout=75),
            # The watchdog sees to the rest.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=limits.connect_seconds),
            headers={"User-Agent": self._user_agent, "Accept": "*/*", "Accept-Encoding": "gzip"},
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            # It would also send, in place of the token, what ~/.netrc has for this host or for any.
            trust_env=False,
            skip_auto_headers=("Content-Type",),
            read_bufsize=_CHUNK_BYTES,
            max_line_size=16_384,
            max_field_size=32_768,
        )
        # Left to itself aiohttp sends a request again when a kept connection was reset: behind the limiter's back.
        self._session._retry_connection = False
        self._watchdog.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._watchdog.stop()
        if self._session is not None:
            await self._session.close()

    async def fetch(self, request: Request) -> Response:
        """Make one attempt.

        Raises:
            NetworkError, StatusError, BodyTooLarge, RedirectRefused: see `errors`.
            LakeError: a large body could not be kept on disk.
        """
        started = self._clock.monotonic()
        watch = self._watchdog.begin()
        try:
            return await self._follow(request, started, watch)
        except asyncio.CancelledError:
            if not watch.is_cause():
                raise
            raise NetworkError(f"{request.path}: {watch.reason}") from None
        except RequestError:
            raise
        except (aiohttp.ClientError, TimeoutError, ssl.SSLError, OSError) as error:
            raise _translate(error, request) from None
        except ValueError as error:
            # aiohttp quotes headers in its complaints: only the kind of error may be repeated.
            raise NetworkError(f"{request.path}: the answer is no HTTP ({type(error).__name__})") from None
        finally:
            self._watchdog.end(watch)

    async def _follow(self, request: Request, started: float, watch: Watch) -> Response:
        url = self._base + request.path
        query = request.query
        for _ in range(self._limits.redirects + 1):
            assert self._session is not None
            async with self._session.request(
                request.method,
                URL(url, encoded=True).with_query(list(query)) if query else URL(url, encoded=True),
                headers=list(request.headers),
                data=request.json_body,
                proxy=self._proxy,
                proxy_headers=self._proxy_headers,
                allow_redirects=False,
            ) as answer:
                watch.hear()
                headers = _plain_headers(answer.headers)
                if answer.status in (301, 302, 303, 307, 308) and "location" in headers:
                    url, query = self._redirected(url, headers["location"], request), ()
                    continue
                if not 200 <= answer.status < 300:
                    raise await self._status_error(answer, headers, request, watch)
                body = await self._receive(answer, headers, request, watch)
                now = self._clock.monotonic()
                return Response(
                    status=answer.status,
                    headers=headers,
                    body=body.close(),
                    spool=body.spool,
                    size_bytes=body.size_bytes,
                    elapsed_seconds=now - started,
                    received_at=self._clock.now(),
                )
        raise RedirectRefused(
            f"{request.path}: more than {self._limits.redirects} redirects (bounds.redirects)"
        )

    def _redirected(self, url: str, location: str, request: Request) -> str:
        target = urljoin(url, location)
        there, here = urlsplit(target), urlsplit(self._base)
        if (there.scheme, there.netloc) != (here.scheme, here.netloc):
            raise RedirectRefused(
                f"{request.path}: redirected to another host, {there.scheme}://{there.hostname}; not followed"
            )
        return target

    async def _status_error(
        self, answer: aiohttp.ClientResponse, headers: Mapping[str, str], request: Request, watch: Watch
    ) -> StatusError:
        try:
            # The status counts, also where nothing follows it: the watchdog stays quiet.
            watch.rest()
            async with asyncio.timeout(self._limits.idle_seconds):
                start = await answer.content.read(_EXCERPT_BYTES)
            if _encoding(headers) in _GZIP:
                start = next(Inflater().feed(start), b"")[:_EXCERPT_BYTES]
            excerpt = start.decode("utf-8", "replace")
        except (aiohttp.ClientError, TimeoutError, ValueError):
            excerpt = ""
        message = f"{request.path}: status {answer.status}"
        return StatusError(message, status=answer.status, headers=headers, excerpt=excerpt)

    async def _receive(
        self, answer: aiohttp.ClientResponse, headers: Mapping[str, str], request: Request, watch: Watch
    ) -> _Body:
        inflater = _inflater(headers, request)
        body = _Body(self._limits.spool_bytes, self._spool_folder, request.path)
        try:
            while chunk := await answer.content.readany():
                watch.hear()
                if inflater is None:
                    self._take(chunk, body, request)
                    continue
                for piece in inflater.feed(chunk):
                    self._take(piece, body, request)
            if inflater is not None:
                inflater.end()
            return body
        except ValueError:
            body.discard()
            raise NetworkError(f"{request.path}: {_CUT}") from None
        except asyncio.CancelledError:
            body.discard()
            connection = answer.connection
            # aiohttp ends a connection on which a chunk makes no sense, and tells nobody who waits for its body.
            if watch.reason and (connection is None or connection.transport is None):
                watch.reason = "the answer is no HTTP (ClientResponseError)"
            raise
        except BaseException:
            body.discard()
            raise

    def _take(self, piece: bytes, body: _Body, request: Request) -> None:
        self.received_bytes += len(piece)
        body.add(piece)
        if body.size_bytes > self._limits.body_bytes_max:
            most = self._limits.body_bytes_max / (1 << 20)
            raise BodyTooLarge(f"{request.path}: the body has more than {most:g} MiB (bounds.body_mb)")


class _Body:
    """Bytes as they arrive: held in memory up to a threshold, then in a file."""

    def __init__(self, spool_bytes: int, spool_folder: Callable[[], Path], path: str) -> None:
        self.size_bytes = 0
        self._path = path
        self.spool: Path | None = None
        self._spool_bytes = spool_bytes
        self._spool_folder = spool_folder
        self._held: list[bytes] = []
        self._file: IO[bytes] | None = None

    def add(self, chunk: bytes) -> None:
        self.size_bytes += len(chunk)
        if self.size_bytes <= self._spool_bytes:
            self._held.append(chunk)
            return
        with spooling(f"{self._path}: the answer"):
            if self._file is None:
                number, name = tempfile.mkstemp(dir=self._spool_folder(), prefix="body-")
                self.spool, self._file = Path(name), os.fdopen(number, "wb")
                self._file.writelines(self._held)
                self._held.clear()
            self._file.write(chunk)

    def close(self) -> bytes:
        """Complete the body; its bytes where they are held, else nothing: they are in `spool`."""
        if self._file is not None:
            with spooling(f"{self._path}: the answer"):
                self._file.close()
        return self._held[0] if len(self._held) == 1 else b"".join(self._held)

    def discard(self) -> None:
        """Leave nothing."""
        # Closing writes what is buffered, which fails again on a full disk; the file goes either way.
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
        if self.spool is not None:
            with suppress(OSError):
                self.spool.unlink(missing_ok=True)


def _proxy_of_environment(base: str) -> tuple[URL | None, dict[str, str]]:
    """The proxy that the environment has for an origin, but never one for this machine itself, and what it alone
    gets.
    """
    if is_loopback(urlsplit(base).hostname or ""):
        return None, {}
    proxy = credentials = None
    with suppress(ValueError):  # its message would quote a password
        try:
            proxy, credentials = get_env_proxy_for_url(URL(base))
        except LookupError:
            return None, {}
    if proxy is None or not proxy.host:
        raise ConfigError(
            "the proxy of the environment is no URL; see to HTTPS_PROXY, HTTP_PROXY and NO_PROXY"
        )
    return proxy, {"Proxy-Authorization": credentials.encode()} if credentials is not None else {}


def _inflater(headers: Mapping[str, str], request: Request) -> Inflater | None:
    """What unfolds the body; None where it is plain. Raises: NetworkError for an encoding nobody asked for."""
    encoding = _encoding(headers)
    if encoding in ("", "identity"):
        return None
    if encoding in _GZIP:
        return Inflater()
    raise NetworkError(f"{request.path}: the body is encoded in a way that was not asked for")


def _encoding(headers: Mapping[str, str]) -> str:
    return headers.get("content-encoding", "").strip().lower()


def _plain_headers(headers: CIMultiDictProxy[str]) -> dict[str, str]:
    plain: dict[str, str] = {}
    for name, value in headers.items():
        lower = name.lower()
        plain[lower] = f"{plain[lower]}, {value}" if lower in plain else value
    return plain


def _translate(error: Exception, request: Request) -> RequestError:
    """Foreign errors where they enter; their own texts may hold headers, so that only their kind is told."""
    match error:
        case aiohttp.ClientConnectorDNSError():
            what = "the host's name could not be found"
        case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientConnectorSSLError() | ssl.SSLError():
            what = "TLS failed: the certificate or protocol was refused"
        case aiohttp.ConnectionTimeoutError():
            what = "no connection within limits.connect_seconds"
        case aiohttp.ClientProxyConnectionError():
            what = f"no connection to the proxy ({_reason(error.os_error)})"
        case aiohttp.ClientHttpProxyError():
            what = f"the proxy refused the connection (status {error.status})"
        case aiohttp.ClientConnectorError():
            what = f"no connection ({_reason(error.os_error)})"
        case aiohttp.ClientPayloadError():
            what = _CUT
        case aiohttp.ServerDisconnectedError() | aiohttp.ClientOSError() | ConnectionError():
            what = "the connection was reset"
        case OSError():
            what = f"the connection failed ({_reason(error)})"
        case _:
            what = f"the answer is no HTTP ({type(error).__name__})"
    return NetworkError(f"{request.path}: {what}")


def _reason(error: OSError) -> str:
    # Not `strerror`: asyncio puts the address into it.
    number = error.errno or 0
    return os.strerror(number) if number > 0 else type(error).__name__
