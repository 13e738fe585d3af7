from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

import extractor

CATALOGUE = """
[linked]
path   = "/linked"
paging = { kind = "link" }
key    = ["id"]

[relative]
path    = "/relative"
records = "/items"
paging  = { kind = "next_url", response_pointer = "/next" }
key     = ["id"]

[absolute]
path    = "/absolute"
records = "/items"
paging  = { kind = "next_url", response_pointer = "/next" }
key     = ["id"]

[foreign]
path    = "/foreign"
records = "/items"
paging  = { kind = "next_url", response_pointer = "/next" }
key     = ["id"]

[concealed]
path    = "/concealed"
records = "/items"
paging  = { kind = "next_url", response_pointer = "/next" }
key     = ["id"]

[numbered]
path    = "/numbered"
records = "/items"
paging  = { kind = "page", page_param = "page", first_page = 0, total_pointer = "/total" }
key     = ["id"]

[untold]
path    = "/untold"
paging  = { kind = "offset", offset_param = "from", limit_param = "size", limit = 2 }
key     = ["id"]

[overlapping]
path    = "/overlapping"
records = "/items"
paging  = { kind = "offset", offset_param = "from", limit_param = "size", limit = 2, total_pointer = "/total" }
key     = ["id"]
sync    = { kind = "append", cursor = "at" }

[promised]
path    = "/promised"
records = "/items"
paging  = { kind = "offset", offset_param = "from", limit_param = "size", limit = 2, total_pointer = "/total" }
key     = ["id"]
sync    = { kind = "append", cursor = "at" }

[pointed]
path    = "/pointed"
records = "/deep/items"
paging  = { kind = "token", request_param = "t", response_pointer = "/deep/more" }
key     = ["id"]

[lines]
path   = "/lines"
format = "ndjson"
key    = ["id"]

[searched]
path   = "/searched"
method = "POST"
body   = { kind = "x", limits = [1, 2] }
key    = ["id"]

[looping]
path   = "/looping"
paging = { kind = "token", request_param = "t", response_header = "X-Next" }

[repeating]
path   = "/repeating"
paging = { kind = "token", request_param = "t", response_header = "X-Next" }

[endless]
path   = "/endless"
paging = { kind = "token", request_param = "t", response_header = "X-Next" }

[unpaged_link]
path = "/unpaged/link"

[unpaged_token]
path = "/unpaged/token"

[wrapped]
path    = "/wrapped"
records = "/items"
paging  = { kind = "next_url", response_pointer = "/next" }
key     = ["id"]

[part]
path = "/part"
key  = ["id"]

[apology]
path = "/apology"
key  = ["id"]

[understated]
path    = "/understated"
records = "/items"
paging  = { kind = "page", page_param = "page", first_page = 0, total_pointer = "/total" }
key     = ["id"]

[stuck]
path    = "/stuck"
records = "/items"
paging  = { kind = "offset", offset_param = "from", limit_param = "size", limit = 2, total_pointer = "/total" }
key     = ["id"]
sync    = { kind = "window", from_param = "since", to_param = "until", step = "7d", cursor = "at" }

[stuck_readings]
path    = "/stuck"
records = "/items"
paging  = { kind = "offset", offset_param = "from", limit_param = "size", limit = 2, total_pointer = "/total" }
key     = ["id"]
sync    = { kind = "window", from_param = "since", to_param = "until", step = "7d", cursor = "at", replace = true }

[children]
path    = "/parents/{name}/children"
parent  = { endpoint = "named", params = { name = "name" } }
keep    = { parent_name = "name" }
key     = ["parent_name", "id"]

[named]
path = "/named"
key  = ["name"]
"""

NAMES = ("plain", "a/b", "a b", "ü", "50%", "x?y#z", "..%2f")
ROWS = [{"id": number, "at": f"2026-11-0{number + 1}T00:00:00Z"} for number in range(5)]


def page_of(request: web.BaseRequest, name: str = "page") -> int:
    return int(request.query.get(name, "0"))


def answer(request: web.BaseRequest) -> web.Response:
    """Five rows, two a page, in the manner that the path is called after."""
    at = page_of(request)
    rows, more = ROWS[2 * at : 2 * at + 2], 2 * at + 2 < len(ROWS)
    origin = f"http://{request.host}"
    following = f"{request.path}?page={at + 1}&q=a%26b" if more else None
    match request.path:
        case "/v9/linked":
            links = ['</v9/first?x=a,b>; rel="first"', f'<{following}>; title="a, b"; rel="prev next"']
            return web.json_response(rows, headers={"Link": ", ".join(links if more else links[:1])})
        case "/v9/relative":
            return web.json_response({"items": rows, "next": f"?page={at + 1}" if more else None})
        case "/v9/absolute":
            return web.json_response({"items": rows, "next": origin + following if following else ""})
        case "/v9/foreign":
            return web.json_response(
                {"items": rows, "next": f"http://localhost:{request.url.port}/v9/foreign"}
            )
        case "/v9/concealed":
            return web.json_response({"items": rows, "next": f"@localhost:{request.url.port}/v9/concealed"})
        case "/v9/numbered":
            return web.json_response({"items": rows, "total": len(ROWS)})
        case "/v9/untold":
            first = page_of(request, "from")
            return web.json_response(ROWS[first : first + 2])
        case "/v9/overlapping":
            first = page_of(request, "from")
            # Every page but the first begins with the rows of the one before.
            return web.json_response({"items": ROWS[max(0, first - 2) : first + 2], "total": len(ROWS)})
        case "/v9/promised":
            first = page_of(request, "from")
            return web.json_response({"items": ROWS[first : first + 2], "total": len(ROWS) + 3})
        case "/v9/pointed":
            at = page_of(request, "t")
            more = 2 * at + 2 < len(ROWS)
            return web.json_response(
                {"deep": {"items": ROWS[2 * at : 2 * at + 2], "more": at + 1 if more else None}}
            )
        case "/v9/lines":
            text = "\n".join(map(json.dumps, ROWS)) + "\n\n"
            return web.Response(text=text, content_type="application/x-ndjson")
        case "/v9/looping":
            return web.json_response(rows, headers={"X-Next": "1"})
        case "/v9/repeating":
            return web.json_response(ROWS[:2], headers={"X-Next": f"{page_of(request, 't') + 1}"})
        case "/v9/endless":
            at = page_of(request, "t")
            return web.json_response([{"id": at}], headers={"X-Next": f"{at + 1}"})
        case "/v9/unpaged/link":
            return web.json_response(rows, headers={"Link": '</v9/more>; rel="next"'})
        case "/v9/unpaged/token":
            return web.json_response(rows, headers={"X-SkySQL-Page-Token-Next": "abc"})
        case "/v9/wrapped":
            return web.json_response({"items": rows, "next": {"href": following}})
        case "/v9/part":
            return web.json_response(rows, status=206, headers={"Content-Range": "items 0-1/5"})
        case "/v9/apology":
            return web.json_response({"error": {"code": 500, "message": "the database is away"}})
        case "/v9/understated":
            return web.json_response({"items": rows, "total": 1})
        case "/v9/stuck":
            # The first page, whichever is asked for.
            return web.json_response({"items": ROWS[:2], "total": 4})
        case "/v9/named":
            return web.json_response([{"name": name} for name in NAMES])
        case path if path.startswith("/v9/parents/"):
            return web.json_response([{"id": 1, "path": request.rel_url.raw_path}])
    return web.json_response({"detail": "no such path"}, status=404)


async def serve_rows(request: web.BaseRequest) -> web.StreamResponse:
    if not request.host.startswith("127.0.0.1") or request.headers.get("X-API-Key") is None:
        STRAYED.append(str(request.url))
    if request.path == "/v9/searched":
        body = json.loads(await request.read() or b"null")
        is_asked = request.method == "POST" and body == {"kind": "x", "limits": [1, 2]}
        return web.json_response(ROWS if is_asked else [])
    return answer(request)


STRAYED: list[str] = []
"""Requests that came to another host, or without a key."""


@pytest.fixture(scope="module")
def origin() -> Iterator[str]:
    """An API of another make, on loopback, under a path of its own."""
    loop = asyncio.new_event_loop()

    async def start() -> tuple[web.ServerRunner, int]:
        runner = web.ServerRunner(web.Server(serve_rows))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner, int(runner.addresses[0][1])

    runner, port = loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield f"http://127.0.0.1:{port}/v9"
    asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(30)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture(scope="module")
def finished(origin: str, serve: Callable[..., Any], module_program: Any) -> Any:
    """One run over the whole of it."""
    folder: Path = module_program.folder / "own"
    folder.mkdir()
    (folder / "own.toml").write_text(CATALOGUE)
    settings = (
        "source.builtin=false",
        'source.catalogs=["own"]',
        f"source.base_url={origin}",
        "bounds.pages=40",
    )
    return module_program.run(serve(), "lake", *[flag for setting in settings for flag in ("--set", setting)])


def landed(program: Any, table: str) -> list[dict[str, Any]]:
    whole = extractor.Lake(str(program.lake("lake"))).table(table).to_arrow()
    rows = whole.drop_columns([name for name in whole.column_names if name.startswith("_")]).to_pylist()
    assert isinstance(rows, list)
    return rows


@pytest.mark.parametrize(
    "table",
    ["linked", "relative", "absolute", "numbered", "untold", "overlapping", "pointed", "lines", "searched"],
)
def test_every_manner_of_paging_and_asking_lands_each_row_once(
    table: str, finished: Any, module_program: Any
) -> None:
    assert finished.statuses[table] == "complete", finished.told()[table]
    assert sorted(row["id"] for row in landed(module_program, table)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ("foreign", "another host"),
        ("concealed", ""),
        ("looping", "seen before"),
        ("repeating", "same page"),
        ("endless", "bounds.pages"),
        ("unpaged_link", "names a next page"),
        ("unpaged_token", "names a next page"),
        ("wrapped", "names a next page by what is no text"),
        ("part", "only a part (status 206)"),
        ("apology", "one object without id, the key of a row"),
        ("stuck", "the server says 4 rows, 2 came"),
        ("stuck_readings", "the server says 4 rows, 2 came"),
    ],
)
def test_a_chain_that_cannot_be_trusted_is_never_complete_and_never_in_the_lake(
    table: str, told: str, finished: Any, module_program: Any
) -> None:
    assert finished.code == 3
    assert finished.statuses[table] in ("failed", "partial")
    assert told in finished.told()[table]
    assert table not in extractor.Lake(str(module_program.lake("lake"))).tables()


def test_no_link_leads_the_key_to_another_host(finished: Any) -> None:
    assert finished.code == 3
    assert STRAYED == []


def test_more_rows_than_the_server_says_are_told_of(finished: Any) -> None:
    assert finished.statuses["understated"] == "complete"
    assert "understated: 2 rows came, though the server says that there are 1" in finished.report["warnings"]


def test_rows_that_the_server_promised_and_never_sent_are_missed(finished: Any) -> None:
    assert finished.statuses["promised"] == "failed"


def test_values_of_a_parent_are_encoded_into_the_path_whatever_they_hold(
    finished: Any, module_program: Any
) -> None:
    rows = {row["parent_name"]: row["path"] for row in landed(module_program, "children")}

    assert finished.statuses["children"] == "complete", finished.told()["children"]
    assert rows == {
        "plain": "/v9/parents/plain/children",
        "a/b": "/v9/parents/a%2Fb/children",
        "a b": "/v9/parents/a%20b/children",
        "ü": "/v9/parents/%C3%BC/children",
        "50%": "/v9/parents/50%25/children",
        "x?y#z": "/v9/parents/x%3Fy%23z/children",
        "..%2f": "/v9/parents/..%252f/children",
    }
