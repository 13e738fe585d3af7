"""The faults of a network and of a busy server: which request meets one, and what it looks like on the wire.

None of them loses a row for a client that tries again and knows its rows by key.
"""

from __future__ import annotations

import asyncio
import gzip
import random
import socket
import struct
from collections.abc import Iterator
from dataclasses import replace

from aiohttp import web

from extractor.sandbox.options import SandboxOptions
from extractor.sandbox.replies import Reply

__all__ = ("PAGE_FAULTS", "STATUS_FAULTS", "FaultSource", "deliver", "spoil")

PAGE_FAULTS = frozenset(("duplicate-page", "row-inserted"))
STATUS_FAULTS = frozenset(("500", "503", "429"))
_BURST = 3
_STALL_SECONDS = 600.0
_DRIP_BYTES = 1000
_DRIPPED_BYTES = 8000  # what is longer comes at once after these, so that runs end
_COMPRESSED_FROM = 1000
_HTML = b"<!DOCTYPE html><html><head><title>Bad gateway</title></head><body><h1>502</h1></body></html>"
_NO_LINGER = struct.pack("ii", 1, 0)


class FaultSource:
    """Draws faults from a seeded generator, one request after the other."""

    def __init__(self, options: SandboxOptions) -> None:
        self._chances = tuple(options.faults.items())
        self._random = random.Random(f"faults {options.seed}")
        self._has_bursts = "bursts" in options.variants
        self._burst: list[str] = []
        self._turn = 0

    def draw(self, *, is_paged: bool) -> str | None:
        """The fault that a request meets; page faults only where there are pages."""
        if self._burst:
            return self._burst.pop()
        for kind, probability in self._chances:
            if kind in PAGE_FAULTS and not is_paged:
                continue
            if self._random.random() < probability:
                if self._has_bursts and kind in STATUS_FAULTS:
                    self._burst = [kind] * _BURST
                return kind
        return None

    def turn(self) -> bool:
        """True and False in turns, for faults that have two faces."""
        self._turn += 1
        return self._turn % 2 == 1


def spoil(reply: Reply, *, as_page: bool) -> Reply:
    """An answer of 200 that is not what it says: an HTML page, or a body that breaks off."""
    is_archive = reply.media_type == "application/zip"
    if reply.pieces is not None and is_archive:
        reply = replace(reply, body=next(reply.pieces(), b""), pieces=None)
    # Half a text or half a PDF could pass for the whole of a shorter one; half a ZIP or JSON cannot.
    is_cut = is_archive or (reply.media_type == "application/json" and not as_page)
    if not is_cut or not reply.body:
        return Reply(media_type="text/html; charset=utf-8", body=_HTML)
    return Reply(
        media_type=reply.media_type, body=reply.body[: max(1, len(reply.body) // 2)], headers=reply.headers
    )


async def deliver(
    request: web.BaseRequest,
    reply: Reply,
    fault: str | None,
    *,
    headers: dict[str, str],
    in_chunks: bool,
    stopping: asyncio.Event,
    may_compress: bool,
) -> web.StreamResponse:
    """Send an answer, or as much of it as the fault lets through. `in_chunks` is the second face of a cut."""
    if fault == "reset":
        _abort(request)
        return web.Response()
    if reply.pieces is None and fault is None:
        response = _whole(request, reply, headers, may_compress=may_compress)
        await response.prepare(request)
        return response
    return await _in_parts(request, reply, fault, headers, in_chunks=in_chunks, stopping=stopping)


def _whole(
    request: web.BaseRequest, reply: Reply, headers: dict[str, str], *, may_compress: bool
) -> web.Response:
    body = reply.body
    is_large_json = len(body) > _COMPRESSED_FROM and reply.media_type == "application/json"
    if may_compress and is_large_json and "gzip" in request.headers.get("Accept-Encoding", ""):
        body = gzip.compress(body, 1, mtime=0)
        headers["Content-Encoding"] = "gzip"
    return web.Response(status=reply.status, body=body or None, headers=headers)


async def _in_parts(
    request: web.BaseRequest,
    reply: Reply,
    fault: str | None,
    headers: dict[str, str],
    *,
    in_chunks: bool,
    stopping: asyncio.Event,
) -> web.StreamResponse:
    response = web.StreamResponse(status=reply.status, headers=headers)
    if reply.pieces is None and not (fault == "truncate" and in_chunks):
        response.content_length = len(reply.body)
    elif request.version >= (1, 1):
        response.enable_chunked_encoding()
    pieces = reply.pieces() if reply.pieces else iter((reply.body,))
    await response.prepare(request)
    match fault:
        case "stall":
            await response.write(_half(pieces))
            await _wait(stopping, _STALL_SECONDS)
            _abort(request)
        case "truncate":
            await response.write(_half(pieces))
            _close(request)
        case "slow-drip":
            await _drip(response, pieces, stopping)
        case _:
            for piece in pieces:
                await response.write(piece)
                await asyncio.sleep(0)
    return response


def _half(pieces: Iterator[bytes]) -> bytes:
    first = next(pieces, b"")
    return first[: len(first) // 2] or first[:0]


async def _drip(response: web.StreamResponse, pieces: Iterator[bytes], stopping: asyncio.Event) -> None:
    left = _DRIPPED_BYTES
    for piece in pieces:
        rest = piece
        while left > 0 and rest:
            await response.write(rest[:_DRIP_BYTES])
            rest = rest[_DRIP_BYTES:]
            left -= _DRIP_BYTES
            if rest and await _wait(stopping, 1.0):
                return
        if rest:
            await response.write(rest)


async def _wait(stopping: asyncio.Event, seconds: float) -> bool:
    """Wait, unless the server stops before: then True. A client that leaves cancels the caller."""
    try:
        await asyncio.wait_for(stopping.wait(), seconds)
    except TimeoutError:
        return False
    return True


def _abort(request: web.BaseRequest) -> None:
    transport = request.transport
    if transport is None:
        return
    peer = transport.get_extra_info("socket")
    if peer is not None:
        # Without lingering, closing sends a reset instead of an orderly end.
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    transport.abort()


def _close(request: web.BaseRequest) -> None:
    if request.transport is not None:
        request.transport.close()
