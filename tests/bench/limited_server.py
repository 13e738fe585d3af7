"""A server with a rate limit that costs little beside the client it measures, and that writes down what it saw.

It speaks just enough HTTP/1.1 for kept-alive GETs: `/branches` names the chains, `/branches/ID/leaves` is a
chain of pages of ten rows, each naming the next in `X-Next`. The limit is a token bucket, full at the start; what
finds less than one token gets 429 and `Retry-After: 1`. Run as a program it prints its address, serves until
SIGTERM, and then prints what it saw: of each request the monotonic second of its arrival, and its status.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import time
from array import array
from dataclasses import dataclass, field

__all__ = ("Bucket", "Seen", "serve")

_ROWS = 10
_ROW = b'{"id": %d, "name": "leaf", "size": 12345.5, "is_new": true, "at": "2026-11-22T08:00:00Z"}'
_PAGE = b"[" + b", ".join([_ROW] * _ROWS) + b"]"
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
_REFUSAL = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"
_UNKNOWN = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"


class Bucket:
    """`rate` tokens a second, at most `capacity` of them; a rate of 0 refuses nothing."""

    def __init__(self, rate: float, capacity: float) -> None:
        self._rate = rate
        self._capacity = max(1.0, capacity)
        self._level = self._capacity
        self._at = 0.0

    def take(self, now: float) -> bool:
        if not self._rate:
            return True
        self._level = min(self._capacity, self._level + (now - self._at) * self._rate)
        self._at = now
        if self._level < 1:
            return False
        self._level -= 1
        return True


@dataclass(slots=True)
class Seen:
    """The requests in the order of their arrival."""

    at: array[float] = field(default_factory=lambda: array("d"))
    status: array[int] = field(default_factory=lambda: array("H"))


class _Connection(asyncio.Protocol):
    def __init__(self, bucket: Bucket, seen: Seen, *, chains: int, pages: int) -> None:
        self._bucket = bucket
        self._seen = seen
        self._chains = chains
        self._pages = pages
        self._received = b""
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        self._received += data
        while b"\r\n\r\n" in self._received:
            request, _, self._received = self._received.partition(b"\r\n\r\n")
            answer = self._answer(request) if self._bucket.take(now) else _REFUSAL
            self._seen.at.append(now)
            self._seen.status.append(int(answer[9:12]))
            assert self._transport is not None
            self._transport.write(answer)

    def _answer(self, request: bytes) -> bytes:
        path, _, query = request.split(b" ", 2)[1].partition(b"?")
        match path.split(b"/")[1:]:
            case [b"branches"]:
                rows = [{"id": str(number)} for number in range(self._chains)]
                return _whole(json.dumps(rows).encode())
            case [b"branches", branch, _]:
                page = int(query.partition(b"page=")[2] or 0)
                first = (int(branch) * self._pages + page) * _ROWS
                following = b"X-Next: %d\r\n" % (page + 1) if page + 1 < self._pages else b""
                return _whole(_PAGE % tuple(range(first, first + _ROWS)), following)
            case _:
                return _UNKNOWN


def _whole(body: bytes, headers: bytes = b"") -> bytes:
    return b"%s%sContent-Length: %d\r\n\r\n%s" % (_HEAD, headers, len(body), body)


async def serve(bucket: Bucket, *, chains: int, pages: int) -> Seen:
    """What was seen until SIGTERM; prints the base URL once it is listened on."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    seen = Seen()
    server = await loop.create_server(
        lambda: _Connection(bucket, seen, chains=chains, pages=pages), "127.0.0.1", 0
    )
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await stopped.wait()
    server.close()
    return seen


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, required=True, help="requests a second; 0 refuses nothing")
    parser.add_argument("--capacity", type=float, required=True, help="requests that the bucket holds")
    parser.add_argument("--chains", type=int, default=64)
    parser.add_argument("--pages", type=int, default=100, help="pages of each chain")
    options = parser.parse_args()
    bucket = Bucket(options.rate, options.capacity)
    seen = asyncio.run(serve(bucket, chains=options.chains, pages=options.pages))
    print(json.dumps({"at": seen.at.tolist(), "status": seen.status.tolist()}))


if __name__ == "__main__":
    _main()
