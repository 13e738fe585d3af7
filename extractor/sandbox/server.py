"""The loopback server: admits a request, finds its route, and answers it, faults included."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from datetime import time as time_of_day
from email.utils import formatdate
from fnmatch import fnmatchcase
from itertools import islice
from urllib.parse import unquote

import orjson
from aiohttp import web

from extractor.digest import row_bytes
from extractor.sandbox import logs, metrics
from extractor.sandbox.auth import Bucket, Doorkeeper
from extractor.sandbox.faults import STATUS_FAULTS, FaultSource, deliver, spoil
from extractor.sandbox.options import SandboxOptions
from extractor.sandbox.paging import BadQuery, Page, cut_by_number, cut_by_offset, cut_by_token
from extractor.sandbox.replies import Reply, failure, json_reply
from extractor.sandbox.routes import ROUTES, Params, Query, Route, match, selected
from extractor.sandbox.rows import Selection
from extractor.sandbox.stats import Stats
from extractor.sandbox.truth import Truth, When, changes, judged_routes, rows_of
from extractor.sandbox.world import World

__all__ = ("running", "serve")

_HOST = "127.0.0.1"
_NEXT, _PREVIOUS = "X-SkySQL-Page-Token-Next", "X-SkySQL-Page-Token-Previous"
_TOKEN_PATHS = ("/api/v1/token/", "/api/v1/token")
_KEYINFO_PATHS = ("/api/v1/keyinfo/", "/api/v1/keyinfo")
_LOG_QUERY_PATH = "/observability/v2/logs/query"
_TRUTH_PATH = "/_sandbox/truth"
_TRUTH_LINES = 500
_MOST_STEPS = 11_000


async def serve(options: SandboxOptions, *, announce: Callable[[str], object] | None = None) -> None:
    """Serve until cancelled; `announce` gets the base URL once it is listened on (default: a flushed line).

    Raises: OSError where the port is taken.
    """
    async with running(options) as url:
        if announce is None:
            print(url, flush=True)
        else:
            announce(url)
        await asyncio.Event().wait()


@asynccontextmanager
async def running(options: SandboxOptions) -> AsyncIterator[str]:
    """The base URL of a sandbox that serves while the context is open, on loopback alone.

    Raises: OSError where the port is taken.
    """
    sandbox = _Sandbox(options)
    server = web.Server(sandbox.answer, handler_cancellation=True, access_log=None)
    runner = web.ServerRunner(server, shutdown_timeout=0.2)
    await runner.setup()
    try:
        site = web.TCPSite(runner, _HOST, options.port)
        await site.start()
        _, port = runner.addresses[0]
        yield f"http://{_HOST}:{port}"
    finally:
        sandbox.stopping.set()
        await runner.cleanup()


class _Sandbox:
    """One server's state: its worlds by organization, who may enter, what goes wrong, and the counts."""

    def __init__(self, options: SandboxOptions) -> None:
        self.options = options
        self.stopping = asyncio.Event()
        self._set_to: float | None = None
        day = options.today or datetime.fromtimestamp(self.now(), UTC).date()
        self._anchor = datetime.combine(day, time_of_day(), UTC)
        digest = hashlib.blake2b(f"org {options.seed}".encode(), digest_size=4).hexdigest()
        self._default_org = f"org{digest}"
        self._worlds: dict[str, World] = {}
        self._bucket = Bucket(options.rate_limit, time.monotonic)
        self._door = Doorkeeper(options, time.monotonic, self.now)
        self._faults = FaultSource(options)
        self._stats = Stats(time.monotonic)
        self._truth = Truth()
        self._truth_lock = asyncio.Lock()
        self._nonce = 0

    def now(self) -> float:
        """Epoch seconds by the server's clock, which stands still once it was set."""
        return time.time() + self.options.clock_skew if self._set_to is None else self._set_to

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        path = request.rel_url.raw_path
        if path.startswith("/_sandbox"):
            return await self._answer_about_itself(request, path)
        if self.options.latency_ms:
            await asyncio.sleep(self.options.latency_ms / 1000)
        if path in _TOKEN_PATHS or path in _KEYINFO_PATHS:
            return await self._send(request, self._identify(request, path))
        arrived = self._stats.uptime()
        found = match(path if path != _LOG_QUERY_PATH else "/observability/v2/logs")
        template = found[0].path if found else "(unknown)"
        refusal = self._refuse(request, path, template)
        if refusal is not None:
            self._stats.count(template, refusal.status, arrived)
            return await self._send(request, refusal)
        fault = self._faults.draw(is_paged=found[0].is_paged) if found else None
        if fault in STATUS_FAULTS:
            reply = self._fail(path, int(fault), "the sandbox was asked to fail")
            applied: str | None = fault
        else:
            reply, applied = await self._reply(request, path, found, fault)
        if applied:
            self._stats.count_fault(applied)
        self._stats.count(template, reply.status, arrived)
        if applied == "garbage":
            reply = spoil(reply, as_page=self._faults.turn())
        on_the_wire = applied if applied in ("reset", "stall", "truncate", "slow-drip") else None
        return await self._send(request, reply, on_the_wire)

    def _refuse(self, request: web.BaseRequest, path: str, template: str) -> Reply | None:
        if not self._bucket.take():
            return self._fail(path, 429, "rate limit exceeded")
        entry = self._door.admit(request.headers)
        if not entry.is_granted:
            self._stats.unauthenticated += 1
            self._stats.expired_token_requests += entry.is_expired
            return self._fail(path, 401, entry.message)
        plain = unquote(path)
        if any(fnmatchcase(plain, glob) or fnmatchcase(template, glob) for glob in self.options.deny):
            return self._fail(path, 403, "not allowed")
        return None

    async def _reply(
        self, request: web.BaseRequest, path: str, found: tuple[Route, Params] | None, fault: str | None
    ) -> tuple[Reply, str | None]:
        """The answer to an admitted request, and the fault that did apply."""
        is_log_query = path == _LOG_QUERY_PATH
        if request.method not in (("POST",) if is_log_query else ("GET",)):
            return self._fail(path, 405, "method not allowed"), None
        if found is None:
            return self._lead_on(request, path), None
        route, params = found
        world = self._world(request)
        try:
            query = await _log_query(request) if is_log_query else dict(request.rel_url.query)
            if fault == "row-inserted" and not self._insert(world, route, params, query):
                fault = None
            return await self._compose(world, route, params, query, path, fault)
        except BadQuery as error:
            return self._fail(path, 422 if path.startswith("/copilot/") else 400, str(error)), None

    def _insert(self, world: World, route: Route, params: Params, query: Query) -> bool:
        selection = selected(world, route, params, query)
        return selection is not None and selection.rows.insert()

    async def _compose(
        self, world: World, route: Route, params: Params, query: Query, path: str, fault: str | None
    ) -> tuple[Reply, str | None]:
        selection = selected(world, route, params, query)
        if selection is None:
            return self._fail(path, 404, "not found"), fault if fault not in (
                "duplicate-page",
                "row-inserted",
            ) else None
        repeat = fault == "duplicate-page"
        match route.shape:
            case "metrics":
                return self._scrape(world, query), fault
            case "archive":
                return await self._archive(world, query, path), fault
            case "promql":
                return self._ask(world, route, query, path), fault
            case "pdf":
                content = next(iter(selection))["content"]
                assert isinstance(content, bytes)
                return Reply(media_type="application/pdf", body=content), fault
            case "pages" | "offset":
                reply, is_repeat = self._numbered(world, route, selection, query, repeat)
            case _ if route.has_tokens and route.shape == "array":
                reply, is_repeat = self._tokened(route, selection, query, repeat)
            case _:
                reply, is_repeat = self._plain(route, selection, path), False
        return reply, None if repeat and not is_repeat else fault

    def _tokened(self, route: Route, selection: Selection, query: Query, repeat: bool) -> tuple[Reply, bool]:
        self._nonce += repeat
        page = cut_by_token(
            selection, query, default_size=self.options.page_default, repeat=repeat, nonce=self._nonce
        )
        headers: dict[str, str] = {}
        if page.next_token is not None:
            headers[_NEXT] = page.next_token
        elif "token-end-empty" in self.options.variants:
            headers[_NEXT] = ""
        if page.previous_token is not None:
            headers[_PREVIOUS] = page.previous_token
        return json_reply(page.rows, status=route.status, headers=headers), page.is_repeat

    def _numbered(
        self, world: World, route: Route, selection: Selection, query: Query, repeat: bool
    ) -> tuple[Reply, bool]:
        name = route.envelope
        if name == "restores" and "restores-array" in self.options.variants:
            return json_reply(list(selection)), False
        if route.shape == "offset":
            page = cut_by_offset(selection, query, repeat=repeat)
            if "growing-archive" in self.options.variants:
                world.archive_growth += 1
            return json_reply({"count": page.total, name: page.rows}), page.is_repeat
        page = cut_by_number(selection, query, default_size=self.options.page_default, repeat=repeat)
        return json_reply(_paged_body(name, page)), page.is_repeat

    def _plain(self, route: Route, selection: Selection, path: str) -> Reply:
        rows = list(selection)
        if not rows and route.when_empty == 204:
            return Reply(status=204)
        if not rows and route.when_empty:
            return self._fail(path, route.when_empty, "nothing here")
        match route.shape:
            case "object" | "nullable" if rows:
                is_array = (
                    path.startswith("/skybackup/v1/restores/") and "restores-array" in self.options.variants
                )
                return json_reply(rows if is_array else rows[0], status=route.status)
            case "nullable":
                return json_reply(None)
            case "object":
                return self._fail(path, 404, "not found")
            case "envelope":
                is_bare = route.envelope == "logTypes" and "log-bare-types" in self.options.variants
                return json_reply(rows if is_bare else {route.envelope: rows})
            case _:
                return json_reply(rows, status=route.status)

    def _scrape(self, world: World, query: Query) -> Reply:
        if self.options.changes:
            world.scraped.add(world.minute)

        def pieces() -> Iterator[bytes]:
            return metrics.chunks(world, query.get("service") or None)

        return Reply(media_type="text/plain; version=0.0.4; charset=utf-8", pieces=pieces)

    async def _archive(self, world: World, query: Query, path: str) -> Reply:
        is_json = query.get("logFormat", "raw") == "json"
        if query.get("logFormat", "raw") not in ("raw", "json"):
            raise BadQuery("logFormat must be raw or json")
        ids = dict.fromkeys(filter(None, query["logIds"].split(",")))
        archives = [
            archive for archive in (logs.archive_of(world, log_id) for log_id in ids) if archive is not None
        ]
        if not archives:
            return self._fail(path, 404, "no such log")
        bundle = await asyncio.to_thread(logs.Bundle().write, world, archives, is_json=is_json)
        headers = {"Content-Disposition": 'attachment; filename="logs.zip"'}
        if bundle.size_bytes <= logs.SPOOL_BYTES:
            return Reply(media_type="application/zip", body=bundle.read(), headers=headers)
        return Reply(media_type="application/zip", pieces=bundle.pieces, headers=headers)

    def _ask(self, world: World, route: Route, query: Query, path: str) -> Reply:
        samples = metrics.select(world, query["query"])
        if samples is None:
            return self._fail(path, 400, "the sandbox answers plain selectors only")
        is_range = route.path.endswith("_range")
        times = _steps(query) if is_range else (_seconds(query, "time", str(self.now())),)
        result = [
            {
                "metric": {
                    "__name__": sample.name,
                    "mariadb": sample.server.service_name,
                    **dict(sample.labels),
                },
                **(
                    {"values": [[at, sample.value] for at in times]}
                    if is_range
                    else {"value": [times[0], sample.value]}
                ),
            }
            for sample in samples
        ]
        kind = "matrix" if is_range else "vector"
        return json_reply({"status": "success", "data": {"resultType": kind, "result": result}})

    def _identify(self, request: web.BaseRequest, path: str) -> Reply:
        is_exchange = path in _TOKEN_PATHS
        if request.method != ("POST" if is_exchange else "GET"):
            return json_reply({"detail": "Method not allowed."}, status=405)
        key = self._door.key_of(request.headers)
        if key is None:
            self._stats.unauthenticated += 1
            return json_reply({"detail": "Invalid token."}, status=401)
        org = self._world(request).org
        if not is_exchange:
            return json_reply(self._door.keyinfo(org))
        self._stats.count_token()
        return json_reply(self._door.issue(key, org))

    def _lead_on(self, request: web.BaseRequest, path: str) -> Reply:
        """To a path that lacks its trailing slash, where it goes on; to any other, 404."""
        if path.startswith("/copilot/") and match(f"{path}/") is not None:
            query = request.rel_url.raw_query_string
            return Reply(status=307, headers={"Location": f"{path}/?{query}" if query else f"{path}/"})
        return self._fail(path, 404, "no such path")

    def _fail(self, path: str, status: int, message: str) -> Reply:
        names_pause = status == 429 and "retry-after-missing" not in self.options.variants
        headers = {"Retry-After": "1"} if names_pause else None
        return failure(self.options, path, status, message, now=self.now(), headers=headers)

    def _world(self, request: web.BaseRequest) -> World:
        org = request.headers.get("X-MDB-Org") or self._default_org
        return self._world_of(org)

    def _world_of(self, org: str) -> World:
        world = self._worlds.get(org)
        if world is None:
            world = self._worlds[org] = World(self.options, org, self._anchor, self.now)
        world.catch_up()
        return world

    async def _send(
        self, request: web.BaseRequest, reply: Reply, fault: str | None = None
    ) -> web.StreamResponse:
        headers = dict(reply.headers)
        if reply.media_type:
            headers["Content-Type"] = reply.media_type
        if self.options.clock_skew or self._set_to is not None:
            headers["Date"] = formatdate(self.now(), usegmt=True)
        if "rate-headers" in self.options.variants:
            headers |= self._bucket.headers()
        return await deliver(
            request,
            reply,
            fault,
            headers=headers,
            in_chunks=fault == "truncate" and self._faults.turn(),
            stopping=self.stopping,
            may_compress=self.options.gzip,
        )

    async def _answer_about_itself(self, request: web.BaseRequest, path: str) -> web.StreamResponse:
        query = request.rel_url.query
        world = self._world_of(query["org"]) if query.get("org") else self._world(request)
        asked = query.get("when")
        when: When = "start" if asked == "start" else "ever" if asked == "ever" else "now"
        if path == "/_sandbox/stats":
            return await self._send(request, json_reply(self._stats.as_json()))
        if path == "/_sandbox/reset-stats" and request.method == "POST":
            self._stats.reset()
            return await self._send(request, Reply(status=204))
        if path == "/_sandbox/time":
            return await self._send(request, self._tell_time(request))
        if path == "/_sandbox/changes":
            return await self._send(request, await self._compare(world, query))
        if path in (_TRUTH_PATH, f"{_TRUTH_PATH}/"):
            wanted = query.get("path")
            routes = judged_routes() if wanted is None else [r for r in judged_routes() if r.path == wanted]
            if not routes:
                return await self._send(request, json_reply({"detail": f"no truth for {wanted}"}, status=404))
            return await self._send(request, json_reply(await self._judge(world, routes, when)))
        if path.startswith(f"{_TRUTH_PATH}/"):
            return await self._tell(request, world, unquote(path.removeprefix(_TRUTH_PATH)), when)
        return await self._send(request, json_reply({"detail": "no such path"}, status=404))

    def _tell_time(self, request: web.BaseRequest) -> Reply:
        """The clock; with POST and `to`, set to that moment, at which it then stands still."""
        if request.method == "POST":
            moment = _moment(request.rel_url.query.get("to", ""))
            if moment is None:
                return json_reply({"detail": "to must be an RFC 3339 time"}, status=400)
            self._set_to = moment
        return json_reply({"now": datetime.fromtimestamp(self.now(), UTC).isoformat()})

    async def _compare(self, world: World, query: Mapping[str, str]) -> Reply:
        """What happened between two moments, by path template; templates without a change are left out."""
        moments = [_moment(query.get(name, "")) for name in ("from", "to")]
        first, last = moments
        if first is None or last is None:
            return json_reply({"detail": "from and to must be RFC 3339 times"}, status=400)
        wanted = query.get("path")
        routes = [r for r in judged_routes() if not r.is_event and wanted in (None, r.path)]

        def found() -> dict[str, object]:
            before, after = (
                World(self.options, world.org, self._anchor, lambda at=at: at)  # type: ignore[misc]  # bound
                for at in (first, last)
            )
            compared = {route.path: changes(before, after, route) for route in routes}
            return {path: value for path, value in compared.items() if any(value.values())}

        text = await asyncio.to_thread(lambda: row_bytes(found()))
        return Reply(media_type="application/json", body=text)

    async def _judge(self, world: World, routes: list[Route], when: When) -> dict[str, Mapping[str, object]]:
        # One computation at a time: a second asker finds the first one's results.
        async with self._truth_lock:
            return {
                route.path: await asyncio.to_thread(self._truth.of, world, route, when=when)
                for route in routes
            }

    async def _tell(
        self, request: web.BaseRequest, world: World, path: str, when: When
    ) -> web.StreamResponse:
        path = f"/{path.lstrip('/')}"
        route = ROUTES.get(path) or ROUTES.get(f"{path}/") or ROUTES.get(path.rstrip("/"))
        if route is None or route not in judged_routes():
            return await self._send(request, json_reply({"detail": f"no truth for {path}"}, status=404))
        if request.rel_url.query.get("as") != "ndjson":
            return await self._send(
                request, json_reply((await self._judge(world, [route], when))[route.path])
            )
        rows = rows_of(world, route, when=when)

        def pieces() -> Iterator[bytes]:
            while lines := [row_bytes(row) + b"\n" for row in islice(rows, _TRUTH_LINES)]:
                yield b"".join(lines)

        return await self._send(request, Reply(media_type="application/x-ndjson", pieces=pieces))


def _paged_body(name: str, page: Page) -> dict[str, object]:
    return {name: page.rows, f"{name}_count": page.total, "pages_count": page.pages}


def _moment(text: str) -> float | None:
    """Epoch seconds of an RFC 3339 time; without a zone it is UTC."""
    try:
        moment = datetime.fromisoformat(text.replace(" ", "+"))
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _seconds(query: Query, name: str, default: str) -> float:
    try:
        return float(query.get(name, default))
    except ValueError:
        raise BadQuery(f"{name} must be epoch seconds") from None


def _steps(query: Query) -> tuple[float, ...]:
    start, end, step = (_seconds(query, name, "") for name in ("start", "end", "step"))
    if step <= 0 or end < start or (end - start) / step > _MOST_STEPS:
        raise BadQuery(f"start, end and step must give 1 to {_MOST_STEPS} points")
    return tuple(start + n * step for n in range(int((end - start) // step) + 1))


async def _log_query(request: web.BaseRequest) -> dict[str, str]:
    """The body of a log query as the parameters of the GET that means the same."""
    try:
        body = orjson.loads(await request.read() or b"{}")
    except orjson.JSONDecodeError:
        raise BadQuery("the body must be JSON") from None
    if not isinstance(body, dict):
        raise BadQuery("the body must be an object")
    query: dict[str, str] = {}
    for name in ("fromDate", "toDate", "limit", "offset", "orderByDirection", "serverContext", "logType"):
        value = body.get(name)
        if isinstance(value, list):
            query[name] = ",".join(map(str, value))
        elif value is not None:
            query[name] = str(value)
    return query
