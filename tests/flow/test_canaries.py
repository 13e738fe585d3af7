"""Credentials are planted wherever a run can meet them, and every byte that it leaves is searched for them."""

from __future__ import annotations

import asyncio
import base64
import html
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import pyarrow.parquet as pq
import pytest
from aiohttp import web

import extractor
from extractor.config import load_config
from extractor.errors import ExtractError

# One in the shape of a key, and one that nothing but its value gives away, with all that encodings change.
SHAPED = "skysql.1zzz.cana1234." + "Zq3" * 12 + ".deadbeef"
ODD = "cAna+rY/\"k<e>y'&\\%41;0123{456}~789"
TOKEN = "eyJhbGciOiJub25l." + "eyJDYW5hcnkiOiJUb2tlbiJ9" + ".c2lnbmF0dXJlQ2FuYXJ5"
SECRETS = (SHAPED, ODD, TOKEN)


def encodings(secret: str) -> dict[str, str]:
    """How a server, a library or a file might write it. None of this is taken from the program."""
    raw = secret.encode()
    return {
        "plain": secret,
        "lower": secret.lower(),
        "percent": quote(secret, safe=""),
        "percent-all": "".join(f"%{byte:02x}" for byte in raw),
        "base64": base64.b64encode(raw).decode(),
        "base64-url": base64.urlsafe_b64encode(b"x" + raw).decode(),
        "base64-basic": base64.b64encode(b"user:" + raw).decode(),
        "hex": raw.hex(),
        "json": json.dumps(secret)[1:-1],
        "html": html.escape(secret),
        "python": repr(secret)[1:-1],
        "reversed": secret[::-1],
    }


def needles(secret: str) -> dict[str, bytes]:
    """What is looked for. Of base64 there are three forms, by the place at which the secret begins."""
    found = {name: text.encode() for name, text in encodings(secret).items() if "base64" not in name}
    for pad in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            found[f"base64 {pad} {encode.__name__}"] = encode(b"x" * pad + secret.encode())[4:-4]
    if secret == SHAPED:
        found["the part that authenticates"] = secret.split(".")[3].encode()
    return found


def hits(texts: dict[str, bytes]) -> list[str]:
    return sorted(
        f"{where}: {name}"
        for secret in SECRETS
        for name, needle in needles(secret).items()
        for where, text in texts.items()
        if needle in text
    )


# --- a server that repeats what it was sent -----------------------------------------------------------------

FORMS = tuple(encodings("x"))
KINDS = (
    *(f"html-{form}" for form in FORMS),
    "status-500",
    "status-400",
    "status-403",
    "reset",
    "cut",
    "twice",
    "names",
    "values",
    "deep",
    "token",
    "header",
    "redirect",
    "redirect-host",
    "link",
    "link-host",
    "archive",
    "archive-name",
    "metrics",
    "lines",
    "total",
)
FORMATS = {
    "archive": "log_archive",
    "archive-name": "log_archive",
    "metrics": "openmetrics",
    "lines": "ndjson",
}
PAGINGS = {
    "token": '{ kind = "token", request_param = "t", response_header = "X-Next" }',
    "link": '{ kind = "link" }',
    "link-host": '{ kind = "link" }',
    "total": '{ kind = "page", page_param = "page", first_page = 1, total_pointer = "/total" }',
}


def catalogue() -> str:
    tables = ['[good]\npath = "/good"\nkey = ["id"]\n']
    for kind in KINDS:
        name, format_ = kind.replace("-", "_"), FORMATS.get(kind, "json")
        paging = PAGINGS.get(kind, '{ kind = "none" }')
        tables += [f"[{name}]", f'path = "/{kind}"', f'format = "{format_}"', f"paging = {paging}"]
    return "\n".join(tables)


def sent_with(request: web.BaseRequest) -> str:
    header = request.headers.get("X-API-Key") or request.headers.get("Authorization", "")
    return header.removeprefix("Bearer ").removeprefix("Token ")


def answer(request: web.BaseRequest) -> web.StreamResponse:
    secret = sent_with(request)
    forms = encodings(secret)
    dump = "\r\n".join(f"{name}: {value}" for name, value in request.headers.items())
    kind = request.path.strip("/")
    where = f"http://{quote(secret, safe='')}@elsewhere.invalid/{quote(secret, safe='')}"
    host = (
        f"http://{secret if secret.isascii() and '<' not in secret else 'x' + secret.encode().hex()}.invalid/"
    )
    dumped = {
        "X-Echo": secret,
        "Set-Cookie": f"k={quote(secret, safe='')}",
        "WWW-Authenticate": f"Bearer {secret}",
    }
    match kind:
        case "api/v1/token":
            return web.json_response({"token": TOKEN, "jti": secret, "scopes": [secret]})
        case "api/v1/keyinfo":
            return web.json_response({"jti": secret, "scopes": [secret], "key_prefix": secret, "echo": dump})
        case _ if kind.startswith("html-"):
            return web.Response(text=f"<p>{forms[kind.removeprefix('html-')]}", content_type="text/html")
        case _ if kind.startswith("status-"):
            return web.Response(status=int(kind[-3:]), text=dump + json.dumps(forms), headers=dumped)
        case "reset":
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        case "cut":
            return web.Response(body=f'[{{"{json.dumps(secret)[1:-1]}": "{dump[:20]}'.encode())
        case "twice":
            name = json.dumps(secret)
            return web.Response(body=f"[{{{name}: 1, {name}: 2}}]".encode())
        case "names":
            return web.json_response([{"id": 1, f"of {SHAPED}": "x", TOKEN: {TOKEN: 1}, "a": {SHAPED: 2}}])
        case "values":  # data are told by their shape alone
            return web.json_response([{"id": 1, "api_key": secret, "token": TOKEN, "x": SHAPED}])
        case "deep":
            return web.json_response([{"id": 1, "a": {"api_key": forms, "list": [SHAPED, TOKEN]}}])
        case "token" if "t" not in request.query:
            return web.json_response([{"id": 1}], headers={"X-Next": secret})
        case "token":
            return web.Response(status=400, text=dump)
        case "header":
            return web.Response(body=b"x", headers={"Content-Encoding": quote(secret, safe="")})
        case "redirect" | "redirect-host":
            return web.Response(status=302, headers={"Location": where if kind == "redirect" else host})
        case "link" | "link-host":
            target = where if kind == "link" else host
            return web.json_response([{"id": 1}], headers={"Link": f'<{target}>; rel="next"'})
        case "archive":
            return web.Response(text=json.dumps({"error": forms["json"], "dump": dump}))
        case "archive-name":
            return web.Response(body=b"PK\x05\x06" + secret.encode())
        case "metrics":
            return web.Response(text=f'up{{key="{forms["json"]}" 1 {secret}\n')
        case "lines":
            return web.Response(text=f'{{"id": 1}}\n{{"{forms["json"]}": \n')
        case "total":
            return web.json_response({"items": [{"id": 1}], "total": secret, "error": dump})
    return web.json_response([{"id": 1}])


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    async def serve(request: web.BaseRequest) -> web.StreamResponse:
        return answer(request)

    async def start() -> web.ServerRunner:
        runner = web.ServerRunner(web.Server(serve))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner

    loop = asyncio.new_event_loop()
    runner = loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(30)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


# --- runs, and what they leave ----------------------------------------------------------------------------------


@dataclass(slots=True)
class Traces:
    """Runs in a folder of their own, and all the bytes that they left."""

    folder: Path
    url: str
    seam: tuple[str, ...] = ()
    outputs: dict[str, bytes] = field(default_factory=dict)

    def call(self, name: str, *argv: str, key: str, seam: tuple[str, ...] = ()) -> int:
        (self.folder / "key").write_text(key)
        (self.folder / "key").chmod(0o600)
        settings = [
            "source.builtin=false",
            'source.catalogs=["own"]',
            f"source.base_url={self.url}",
            f"source.token_url={self.url}/api/v1/token/",
            f"source.keyinfo_url={self.url}/api/v1/keyinfo/",
            "limits.requests_per_second=1000",
            f"limits.retry_attempts={1 + ('-vv' in argv)}",
        ]
        flags = [flag for setting in settings for flag in ("--set", setting)]
        child = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.flow.canary_run",
                *self.seam,
                *seam,
                *argv,
                "--lake",
                "lake",
                *flags,
            ],
            cwd=self.folder,
            env={
                **{name: value for name, value in os.environ.items() if not name.startswith("SKYSQL_")},
                "PYTHONPATH": str(Path(__file__).parents[2]),
                "SKYSQL_EXTRACTOR_DEBUG": "1",
                "TMPDIR": str(self.folder),
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        shown = Path(f"/proc/{child.pid}/cmdline")
        self.outputs[f"{name}: ps"] = shown.read_bytes() if shown.exists() else b""
        self.outputs[f"{name}: stdout"], self.outputs[f"{name}: stderr"] = child.communicate(timeout=100)
        (self.folder / "key").unlink()
        return child.returncode

    def everything(self) -> dict[str, bytes]:
        """Outputs and files, and of Parquet files also what is in them."""
        texts = dict(self.outputs)
        for path in self.folder.rglob("*"):
            if path.is_file():
                name = path.relative_to(self.folder).as_posix()
                texts[name] = name.encode() + path.read_bytes()
                if path.suffix == ".parquet":
                    read = pq.read_table(path)
                    texts[f"{name}: rows"] = f"{read.schema}{read.to_pylist()}".encode()
        return texts


RUN = ("run", "--api-key-file", "key")


@pytest.fixture(scope="module", params=[(), ("--bare",)], ids=["as it is", "without redaction"])
def traces(request: pytest.FixtureRequest, url: str, tmp_path_factory: pytest.TempPathFactory) -> Traces:
    """Every kind of failure with every kind of credential, and the verbs that tell of it afterwards."""
    made = Traces(tmp_path_factory.mktemp("canaries"), url, seam=request.param)
    (made.folder / "own").mkdir()
    (made.folder / "own" / "own.toml").write_text(catalogue())
    bearer = ("--set", "source.auth=bearer")
    codes = {
        "odd run": made.call("odd run", *RUN, "-vv", key=ODD),
        "odd json": made.call("odd json", *RUN, "--json", key=ODD),
        "odd bearer": made.call("odd bearer", *RUN, *bearer, key=ODD),
        "crash": made.call("crash", *RUN, key=ODD, seam=("--crash",)),
        "show": made.call("show", "show", "latest", "--json", key=ODD),
    }
    assert codes == {"odd run": 3, "odd json": 3, "odd bearer": 3, "crash": 1, "show": 0}
    if not made.seam:
        codes = {
            "shaped run": made.call("shaped run", *RUN, key=SHAPED),
            "shaped bearer": made.call("shaped bearer", *RUN, *bearer, "-vv", key=SHAPED),
            "crash json": made.call("crash json", *RUN, "--json", key=SHAPED, seam=("--crash",)),
            "show text": made.call("show text", "show", "latest", key=ODD),
        }
        made.call("check", "check", "--api-key-file", "key", *bearer, key=ODD)
        assert codes == {"shaped run": 3, "shaped bearer": 3, "crash json": 1, "show text": 0}
    return made


def test_no_byte_that_a_run_leaves_holds_a_credential_and_without_redaction_some_do(traces: Traces) -> None:
    found = hits(traces.everything())

    if traces.seam:
        places = {hit.split(":")[0] for hit in found}
        assert len(found) > 50
        assert {"odd run", "odd json", "odd bearer", "crash", "show"} <= places
        assert any(place.startswith("lake/_extractor/log/") for place in places)
    else:
        assert found == [], "\n".join(found)


def test_every_failure_was_met(traces: Traces) -> None:
    report = json.loads(traces.outputs["odd json: stdout"])
    statuses = {table["name"]: table["status"] for table in report["tables"]}

    assert statuses["good"] == "complete"
    kept = {"names", "values", "deep", "total"}  # what is read all the same, without what is secret in it
    wrong = {kind.replace("-", "_") for kind in KINDS} - kept
    assert {name for name, status in statuses.items() if status in ("failed", "partial", "denied")} >= wrong


def chain_of(error: BaseException) -> list[BaseException]:
    """The exception and all that led to it, each once."""
    found: list[BaseException] = []
    pending: list[BaseException | None] = [error]
    while pending:
        link = pending.pop()
        if link is not None and link not in found:
            found.append(link)
            pending += [link.__cause__, link.__context__, *getattr(link, "exceptions", ())]
    return found


async def test_an_exception_of_the_core_and_what_led_to_it_holds_no_credential(
    url: str, tmp_path: Path
) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "own.toml").write_text(catalogue())
    config = load_config(
        overrides={
            "source.builtin": False,
            "source.catalogs": (str(tmp_path / "own"),),
            "source.base_url": url,
            "limits.requests_per_second": 1000,
            "limits.retry_attempts": 1,
        },
        environment={},
    )
    told: list[str] = []
    for kind in KINDS:
        try:
            async for _ in extractor.stream(
                kind.replace("-", "_"), config, environment={"SKYSQL_API_KEY": ODD}
            ):
                pass
        except ExtractError as error:
            told += [f"{link!r} {link} {vars(link)}" for link in chain_of(error)]

    assert len(told) >= len(KINDS) - 4
    assert hits({str(number): text.encode() for number, text in enumerate(told)}) == []
