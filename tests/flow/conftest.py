"""The real command against the real sandbox: how a run is started, and how its lake is judged."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from random import Random
from typing import Any

import pyarrow.compute as pc
import pytest
from aiohttp import web

import extractor
from extractor.catalog import load_catalog
from extractor.clock import SystemClock
from extractor.digest import digest_rows, row_bytes
from extractor.pipeline import World
from extractor.sandbox import running
from extractor.sandbox.options import parse_options
from extractor.testing import canonical

KEY = "skysql.1zzz.ab12cd34." + "Q7" * 18 + ".0a1b2c3d"
SMALL = "--services 4 --series 60 --log-lines 20 --notifications 40 --log-days 1".split()


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """One call of the program that is over."""

    code: int
    out: str
    err: str

    @property
    def report(self) -> dict[str, Any]:
        """The run's report, of a call with `--json`."""
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found

    @property
    def complaint(self) -> str:
        """The one line that the call ended in; empty if it ended well."""
        lines = self.err.splitlines()
        last = lines[-1] if lines else ""
        return last.removeprefix("skysql-extract: ") if last.startswith("skysql-extract: ") else ""

    def told(self, status: str = "") -> dict[str, str]:
        """The reasons of the tables by name, of one status if it is given."""
        return {
            table["name"]: table["reason"]
            for table in self.report["tables"]
            if not status or table["status"] == status
        }

    @property
    def statuses(self) -> dict[str, str]:
        return {table["name"]: table["status"] for table in self.report["tables"]}


@dataclass(slots=True)
class Program:
    """The command, in a process and a working directory of its own, without settings of whoever runs the tests."""

    folder: Path
    key: str = KEY

    @property
    def command(self) -> list[str]:
        if os.environ.get("SKYSQL_EXTRACTOR_TEST_INSTALLED") == "1":
            return [str(Path(sys.executable).with_name("skysql-extract"))]
        return [sys.executable, "-m", "extractor"]

    def environment(self, more: Mapping[str, str]) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SKYSQL_")}
        if os.environ.get("SKYSQL_EXTRACTOR_TEST_INSTALLED") != "1":
            kept["PYTHONPATH"] = str(Path(extractor.__file__).parents[1])
        if self.key:
            kept["SKYSQL_API_KEY"] = self.key
        return {**kept, **more}

    def arguments(self, site: Site, lake: str, *argv: str) -> list[str]:
        """A run of `site` into `lake` (a name in the working directory), faster than one would in earnest."""
        return [
            *self.command,
            "run",
            "--json",
            "--lake",
            lake,
            "--set",
            f"source.base_url={site.url}",
            "--set",
            f"source.token_url={site.url}/api/v1/token/",
            "--set",
            f"source.keyinfo_url={site.url}/api/v1/keyinfo/",
            "--set",
            "limits.requests_per_second=1000",
            "--set",
            'run.allow=["customer_data"]',
            *argv,
        ]

    def run(self, site: Site, lake: str, *argv: str, **environment: str) -> Finished:
        return self.call(self.arguments(site, lake, *argv), environment)

    def call(self, command: list[str], environment: Mapping[str, str]) -> Finished:
        found = subprocess.run(
            command,
            capture_output=True,
            text=True,
            cwd=self.folder,
            env=self.environment(environment),
            stdin=subprocess.DEVNULL,
            timeout=110,
            check=False,
        )
        return Finished(code=found.returncode, out=found.stdout, err=found.stderr)

    def start(self, site: Site, lake: str, *argv: str) -> subprocess.Popen[str]:
        """A run that has begun: its first line of progress was written."""
        child = subprocess.Popen(
            self.arguments(site, lake, *argv),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            env=self.environment({}),
            stdin=subprocess.DEVNULL,
        )
        assert child.stderr is not None
        child.stderr.readline()
        return child

    def lake(self, name: str) -> Path:
        return self.folder / name


def _normal(path: str) -> str:
    """A path template without the names of its parameters, which sandbox and catalogue choose each for itself."""
    parts = [
        "{}" if part.startswith("{") and part.endswith("}") else part for part in path.rstrip("/").split("/")
    ]
    return "/".join(parts)


@dataclass(slots=True)
class Site:
    """A sandbox that serves."""

    url: str
    lake_tables: Mapping[str, str] = field(
        default_factory=lambda: {
            name: _normal(endpoint.path) for name, endpoint in load_catalog().endpoints.items()
        }
    )

    def read(self, path: str) -> bytes:
        with urllib.request.urlopen(self.url + path, timeout=300) as answer:
            content = answer.read()
        assert isinstance(content, bytes)
        return content

    @property
    def stats(self) -> dict[str, Any]:
        found = json.loads(self.read("/_sandbox/stats"))
        assert isinstance(found, dict)
        return found

    def truth(self, query: str = "") -> dict[str, tuple[str, int, str]]:
        """By normal path: the template, the rows and the digest."""
        found = json.loads(self.read(f"/_sandbox/truth?{query}"))
        return {_normal(path): (path, value["rows"], value["digest"]) for path, value in found.items()}

    def rows(self, template: str, query: str = "") -> set[bytes]:
        path = urllib.parse.quote(template, safe="/")
        return set(self.read(f"/_sandbox/truth{path}?as=ndjson&{query}").splitlines())

    def judge(
        self, lake: Path, *, account: str = "default", query: str = "", is_growing: bool = False
    ) -> dict[str, str]:
        """What is wrong with each table of the lake that has a truth; empty if each equals it.

        With `is_growing` rows may come while they are read: all that stood at the start must be there, and nothing
        that does not stand now.
        """
        wrong: dict[str, str] = {}
        truth = self.truth(query)
        opened = extractor.Lake(str(lake))
        for name in sorted(set(opened.tables())):
            known = truth.get(self.lake_tables.get(name, ""))
            if known is None:
                continue
            template, rows, digest = known
            landed = list(self.landed(lake, name, account=account))
            if digest_rows(landed) != (rows, digest):
                ours, theirs = {row_bytes(row) for row in landed}, self.rows(template, query)
                if is_growing and len(ours) == len(landed) and ours <= theirs:
                    theirs = self.rows(template, "when=start")
                    if theirs <= ours:
                        continue
                wrong[name] = (
                    f"{len(landed)} rows ({len(landed) - len(ours)} twice) for {rows}; "
                    f"extra {sorted(ours - theirs)[:1]}, missing {sorted(theirs - ours)[:1]}"
                )
        return wrong

    def landed(self, lake: Path, table: str, *, account: str = "default") -> Iterator[dict[str, object]]:
        """The rows of a table as the API gave them."""
        whole = extractor.Lake(str(lake)).table(table).to_arrow()
        yield from canonical(whole.filter(pc.equal(whole["_account"], account)))

    def lacking(self, lake: Path) -> set[str]:
        """The tables that are on by default and have a truth with rows, but are not in the lake."""
        truth = self.truth()
        present = set(extractor.Lake(str(lake)).tables())
        return {
            name
            for name, endpoint in load_catalog().endpoints.items()
            if endpoint.enabled and name not in present and truth.get(_normal(endpoint.path), ("", 0, ""))[1]
        }


@dataclass(slots=True)
class _Servers:
    """Sandboxes of this very process, all on one event loop in a thread of its own."""

    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    def serve(self, *flags: str) -> Site:
        options = parse_options([*SMALL, *flags])
        future: Future[str] = asyncio.run_coroutine_threadsafe(
            self.stack.enter_async_context(running(options)), self.loop
        )
        return Site(future.result(30))

    def run(self) -> None:
        self.loop.run_forever()
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self.stack.aclose(), self.loop).result(30)
        self.loop.call_soon_threadsafe(self.loop.stop)


@pytest.fixture(scope="module")
def serve() -> Iterator[Callable[..., Site]]:
    """`serve("--deny", "/x*")`: a small sandbox with these flags, until the module's tests are over."""
    servers = _Servers()
    thread = threading.Thread(target=servers.run, name="sandboxes")
    thread.start()
    yield servers.serve
    servers.close()
    thread.join()


@pytest.fixture(scope="module")
def healthy(serve: Callable[..., Site]) -> Site:
    """A small sandbox with nothing wrong."""
    return serve()


@pytest.fixture
def program(tmp_path: Path) -> Program:
    """The command in an empty folder."""
    return Program(tmp_path)


@pytest.fixture(scope="module")
def module_program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """The command in a folder that a module's tests share."""
    return Program(tmp_path_factory.mktemp("program"))


class _NightClock(SystemClock):
    """The machine's clock, some nights ahead."""

    def __init__(self, first: datetime) -> None:
        self.ahead = first - datetime.now(UTC)

    def now(self) -> datetime:
        return super().now() + self.ahead


@dataclass(slots=True)
class Nights:
    """An API of one's own whose rows change from run to run, and a lake that follows it, in this process.

    `rows` has the answer of each path, or what makes it of the query; `catalogue` is the text of the endpoints.
    """

    folder: Path
    catalogue: str = ""
    rows: dict[str, object] = field(default_factory=dict)
    clock: _NightClock = field(default_factory=lambda: _NightClock(datetime(2026, 11, 1, 3, tzinfo=UTC)))
    asked: list[str] = field(default_factory=list)
    chance: Random = field(default_factory=lambda: Random(7))

    @property
    def lake(self) -> extractor.Lake:
        return extractor.Lake(self.folder / "lake")

    def landed(self, table: str, as_of: str | None = None) -> list[dict[str, Any]]:
        """The rows of a table as it stands."""
        rows = self.lake.table(table, as_of=as_of).to_arrow().to_pylist()
        assert isinstance(rows, list)
        return rows

    def pass_night(self, nights: int = 1) -> None:
        self.clock.ahead += timedelta(days=nights)

    def run(self, *, accept: tuple[str, ...] = (), file: str = "", **settings: object) -> extractor.RunReport:
        """Extract everything once; `file` is the text of the configuration, `settings` have `__` for the dot."""
        own = self.folder / "own"
        own.mkdir(exist_ok=True)
        (own / "own.toml").write_text(self.catalogue)
        configured = self.folder / "configured.toml"
        configured.write_text(file)
        return asyncio.run(self._run(accept, configured, settings))

    async def _run(
        self, accept: tuple[str, ...], configured: Path, settings: Mapping[str, object]
    ) -> extractor.RunReport:
        runner = web.ServerRunner(web.Server(self._answer))
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            overrides = {
                "source.base_url": f"http://127.0.0.1:{runner.addresses[0][1]}",
                "source.builtin": False,
                "source.catalogs": (str(self.folder / "own"),),
                "lake.uri": str(self.folder / "lake"),
                "limits.requests_per_second": 1000.0,
                "limits.retry_attempts": 1,
                **{name.replace("__", "."): value for name, value in settings.items()},
            }
            config = extractor.load_config(configured, environment={}, overrides=overrides)
            world = World(clock=self.clock, chance=self.chance.random, environment={"SKYSQL_API_KEY": KEY})
            return await extractor.extract(config, accept=accept, world=world)
        finally:
            await runner.cleanup()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.asked.append(request.path)
        headers = {"Date": format_datetime(self.clock.now(), usegmt=True)}
        if request.path not in self.rows:
            return web.json_response({"detail": "no such path"}, status=404, headers=headers)
        rows = self.rows[request.path]
        return web.json_response(rows(request.query) if callable(rows) else rows, headers=headers)


@pytest.fixture(scope="session")
def make_nights() -> Callable[[Path], Nights]:
    """`make_nights(folder)`: an API whose rows the test changes, and an empty lake, in a folder."""
    return Nights


@pytest.fixture
def nights(tmp_path: Path) -> Nights:
    """An API whose rows the test changes, and an empty lake."""
    return Nights(tmp_path)
