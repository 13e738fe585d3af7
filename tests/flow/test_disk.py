"""A lake that fails under a run: full, read-only, taken away, forbidden. Nothing is lost; the next run goes on."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

import extractor
from extractor.cli.app import invoke
from extractor.clock import SystemClock
from extractor.commitlog import CommitLog
from extractor.config import load_config
from extractor.errors import LakeError
from extractor.pipeline import World, extract
from extractor.store import Output, staged_path
from extractor.stores.memory import MemoryStore

KEY = "skysql.1zzz.disk1234." + "Dk" * 18 + ".0a1b2c3d"
CATALOGUE = """
[ships]
path = "/ships"
key  = ["id"]

[ports]
path = "/ports"
key  = ["id"]

[large]
path = "/large"
key  = ["id"]

[lines]
path   = "/lines"
format = "log_archive"

[events]
path = "/events"
key  = ["id"]
sync = { kind = "append", cursor = "at" }
"""
FULL = "No space left on device; free some space"


class Site:
    """An API whose rows are others with each `version`."""

    def __init__(self) -> None:
        self.version = 1
        self.before_answer: Callable[[str], None] = lambda path: None
        self.url = ""

    def body(self, path: str) -> bytes:
        version = self.version
        chance = random.Random(f"{path} {version}")
        match path:
            case "/large":  # larger than what is held in memory while it comes
                rows = [{"id": number, "text": chance.randbytes(20).hex()} for number in range(6000)]
            case "/events":
                rows = [
                    {"id": number, "at": f"2026-11-0{number}T00:00:00Z"} for number in range(1, 3 + version)
                ]
            case "/lines":
                return b"".join(
                    b"2026-11-22 10:00:00 0 [Note] %d\n" % number for number in range(1000 * version)
                )
            case _:
                rows = [{"id": number, "version": version} for number in range(20)]
        return json.dumps(rows).encode()


@pytest.fixture(scope="module")
def server() -> Iterator[Site]:
    site = Site()

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        await asyncio.to_thread(site.before_answer, request.path)
        return web.Response(body=site.body(request.path), content_type="application/json")

    async def start() -> web.ServerRunner:
        runner = web.ServerRunner(web.Server(answer))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner

    loop = asyncio.new_event_loop()
    runner = loop.run_until_complete(start())
    site.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield site
    asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(30)
    asyncio.run_coroutine_threadsafe(loop.shutdown_default_executor(), loop).result(30)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture
def site(server: Site) -> Site:
    server.version, server.before_answer = 1, lambda path: None
    return server


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the catalogue, and a key in the environment."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "own.toml").write_text(CATALOGUE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SKYSQL_API_KEY", KEY)
    return tmp_path


def settings(site: Site) -> dict[str, object]:
    return {
        "source.base_url": site.url,
        "source.builtin": False,
        "source.catalogs": ("own",),
        "limits.requests_per_second": 1000,
        "limits.memory_mb": 8,
    }


# --- full at every write, in a store that is made to be full --------------------------------------------------


class Filling(MemoryStore):
    """A store with room for so many more writes."""

    def __init__(self) -> None:
        super().__init__()
        self.room = 1_000_000

    def _take_room(self, path: str) -> None:
        self.room -= 1
        if self.room < 0:
            raise LakeError(f"cannot write {path} in lake {self.uri}: {FULL} and run again")

    def put(self, path: str, content: bytes) -> None:
        self._take_room(path)
        super().put(path, content)

    def put_if_absent(self, path: str, content: bytes) -> bool:
        self._take_room(path)
        return super().put_if_absent(path, content)

    def move(self, source: str, target: str) -> None:
        self._take_room(target)
        super().move(source, target)

    def move_folder(self, source: str, target: str) -> None:
        self._take_room(target)
        super().move_folder(source, target)

    def open_output(self, path: str) -> Output:
        self._take_room(path)
        return _Output(self, path, super().open_output(path))


class _Output:
    def __init__(self, store: Filling, path: str, output: Output) -> None:
        self._store, self._path, self._output = store, path, output

    def __getattr__(self, name: str) -> Any:
        return getattr(self._output, name)

    def close(self) -> None:
        if not self._output.closed:
            try:
                self._store._take_room(self._path)
            except LakeError:
                self._output.abort()
                raise
        self._output.close()


def state_of(store: MemoryStore) -> dict[str, tuple[str, int]]:
    """What a reader of the log sees: each table's run and rows, once each of its files was found whole."""
    log = CommitLog(store)
    entry = log.newest()
    if entry is None:
        return {}
    for table in log.tables(entry):
        for file in table.files:
            places = [file.path, *(staged_path(run_id, file.path) for run_id in entry.publishing)]
            place = next(place for place in places if store.exists(place))
            assert hashlib.sha256(store.read(place)).hexdigest() == file.sha256, file.path
    return {name: (ref.run_id, ref.rows) for (name, _), ref in entry.tables.items()}


async def one_run(site: Site, store: MemoryStore) -> str:
    """A run of the small tables: empty if it was good, else what it ended in."""
    small = {"run.exclude": ("large", "ports")}
    config = load_config(overrides={**settings(site), **small}, environment={})
    world = World(clock=SystemClock(), chance=random.random, environment={"SKYSQL_API_KEY": KEY}, store=store)
    try:
        return (await extract(config, world=world)).message
    except LakeError as error:
        return error.message


async def test_a_disk_that_is_full_from_any_write_on_loses_nothing_and_the_next_run_goes_on(
    site: Site, folder: Path
) -> None:
    store = Filling()
    assert await one_run(site, store) == ""
    pattern = (dict(store._visible), dict(store._synced))
    old = state_of(store)
    site.version = 2
    assert await one_run(site, store) == ""
    writes = 1_000_000 - store.room
    new_rows = {name: rows for name, (_, rows) in state_of(store).items()}

    refused = published = 0
    for room in range(writes):
        store._visible, store._synced = dict(pattern[0]), dict(pattern[1])
        store.room = room
        told = await one_run(site, store)
        if told:
            assert FULL in told
            is_committed = "is committed" in told  # then only publishing is left
            published, refused = published + is_committed, refused + (not is_committed)
            assert (state_of(store) != old) == is_committed, told

        store.room = 1_000_000
        assert await one_run(site, store) == "", f"after room for {room} writes, which ended in: {told}"
        assert {name: rows for name, (_, rows) in state_of(store).items()} == new_rows
    assert refused > 10
    assert published > 1


# --- a real file system: full, read-only ----------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB, where this user may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("only the superuser may mount a file system of 4 MB")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def run(site: Site, lake: Path, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, str]:
    """The exit code of a run, and the line that it ended in."""
    told = {**settings(site), "source.builtin": "false", "source.catalogs": '["own"]'}
    flags = [flag for key, value in told.items() for flag in ("--set", f"{key}={value}")]
    code = invoke(["run", "--json", "--lake", str(lake), *flags, *more])
    lines = capsys.readouterr().err.splitlines()
    return code, lines[-1] if code else ""


def rows_of(lake: Path) -> dict[str, int]:
    opened = extractor.Lake(str(lake))
    return {name: opened.table(name).to_arrow().num_rows for name in opened.tables()}


def fill(place: Path, room: int) -> None:
    """Leave room for so many bytes."""
    free = shutil.disk_usage(place).free
    (place / "ballast").write_bytes(b"x" * max(0, free - room))


def test_a_disk_of_4_mb_that_is_full_at_any_point_keeps_the_old_snapshot(
    site: Site, folder: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lake = small_disk / "lake"
    assert run(site, lake, capsys) == (0, "")
    old = rows_of(lake)
    site.version = 2
    codes = []

    for room in range(0, 1 << 20, 48 << 10):
        fill(small_disk, room)
        code, line = run(site, lake, capsys)
        codes.append(code)
        if code == 0:
            break
        assert code == 7, line
        assert FULL in line
        if "is committed" not in line:
            assert rows_of(lake) == old, f"with room for {room} bytes: {line}"
        (small_disk / "ballast").unlink()

    (small_disk / "ballast").unlink(missing_ok=True)
    assert run(site, lake, capsys) == (0, "")
    assert rows_of(lake) == {"events": 4, "large": 6000, "lines": 2000, "ports": 20, "ships": 20}
    assert len(codes) > 8


def test_a_lake_that_is_read_only_is_7_and_nothing_is_requested(
    site: Site, folder: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lake = small_disk / "lake"
    assert run(site, lake, capsys) == (0, "")
    old = rows_of(lake)
    asked: list[str] = []
    site.before_answer = asked.append
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)

    code, line = run(site, lake, capsys)

    assert code == 7
    assert "Read-only file system; mount the file system for writing, or choose another lake" in line
    assert asked == []
    assert rows_of(lake) == old


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no file system here refuses folders so")
def test_a_lake_where_no_folder_can_be_made_is_7_and_is_said_to_be_so(
    site: Site, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, line = run(site, Path("/proc/lake"), capsys)

    assert code == 7
    assert "its folder is gone or cannot be made; see to the file system, then run again" in line


# --- taken away, forbidden -------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_new", [True, False])
def test_a_lake_that_is_removed_during_a_run_is_7_and_the_next_run_begins_anew(
    is_new: bool, site: Site, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lake = folder / "lake"
    if not is_new:
        assert run(site, lake, capsys) == (0, "")
    site.version = 2
    gone = threading.Event()

    def remove(path: str) -> None:
        if path == "/ports" and not gone.is_set():
            lake.rename(folder / "elsewhere")
            gone.set()

    site.before_answer = remove

    code, line = run(site, lake, capsys)
    left = [path for path in lake.glob("*/**/*.parquet") if "_extractor" not in path.parts]
    entries = list(lake.glob("_extractor/log/*.json"))
    again = run(site, lake, capsys)

    assert code == 7, line
    assert (left, entries) == ([], [])
    assert again == (0, "")
    assert rows_of(lake) == {"events": 4, "large": 6000, "lines": 2000, "ports": 20, "ships": 20}


def test_a_lake_whose_permission_is_lost_during_a_run_is_7_and_the_old_snapshot_stays(
    site: Site, folder: Path
) -> None:
    lake = folder / "lake"
    assert run_apart(site, lake) == (0, "")
    old = rows_of(lake)
    site.version = 2

    def forbid(path: str) -> None:
        for place in (lake, *lake.rglob("*")):
            if place.is_dir():
                place.chmod(0o500)

    site.before_answer = forbid

    code, line = run_apart(site, lake)
    kept = rows_of(lake)
    site.before_answer = lambda path: None
    for place in (lake, *lake.rglob("*")):
        if place.is_dir():
            place.chmod(0o755)

    assert code == 7, line
    assert "Permission denied; " in line
    assert kept == old
    assert run_apart(site, lake) == (0, "")
    assert rows_of(lake)["lines"] == 2000


def start(site: Site, lake: Path, *more: str) -> subprocess.Popen[str]:
    """A run in a process of its own, to whom permissions apply though it be the superuser's."""
    told = {**settings(site), "source.builtin": "false", "source.catalogs": '["own"]'}
    flags = [flag for key, value in told.items() for flag in ("--set", f"{key}={value}")]
    powers = "-dac_override,-dac_read_search"
    prefix = ["setpriv", f"--bounding-set={powers}", f"--inh-caps={powers}"] if os.geteuid() == 0 else []
    if prefix and shutil.which("setpriv") is None:
        pytest.skip("the superuser may write anywhere, and there is no setpriv to take that away")
    return subprocess.Popen(
        [*prefix, sys.executable, "-m", "extractor", "run", "--json", "--lake", str(lake), *flags, *more],
        env={**os.environ, "PYTHONPATH": str(Path(extractor.__file__).parents[1])},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_apart(site: Site, lake: Path, *more: str) -> tuple[int, str]:
    """As `run`, in a process of its own."""
    child = start(site, lake, *more)
    _, err = child.communicate(timeout=60)
    return child.returncode, err.splitlines()[-1] if child.returncode else ""


# --- several runs at once ---------------------------------------------------------------------------------------


def test_two_runs_that_share_no_table_both_commit_one_rebasing_on_the_other(
    site: Site, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lake = folder / "lake"
    second: list[tuple[int, str]] = []
    begun = threading.Event()

    def beside(path: str) -> None:
        if path == "/ships" and not begun.is_set():
            begun.set()
            second.append(run_apart(site, lake, "--include", "ports"))

    site.before_answer = beside

    first = run(site, lake, capsys, "--include", "ships")

    assert (first, second) == ((0, ""), [(0, "")])
    assert rows_of(lake) == {"ports": 20, "ships": 20}
    assert [run.sequence for run in extractor.Lake(str(lake)).runs()] in ([1, 2], [2, 1])


def test_a_run_that_shares_a_table_ends_in_5_at_once_and_names_the_holder(
    site: Site, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lake = folder / "lake"
    second: list[tuple[int, str]] = []
    asked: list[str] = []

    def beside(path: str) -> None:
        asked.append(path)
        if path == "/ships" and not second:
            second.append(run_apart(site, lake))

    site.before_answer = beside

    first = run(site, lake, capsys, "--include", "ships")

    [(code, line)] = second
    assert first == (0, "")
    assert code == 5
    assert "table ships of account default is being written by run" in line
    assert f"(process {os.getpid()} on " in line
    assert asked == ["/ships"]
    assert rows_of(lake) == {"ships": 20}


def test_a_run_whose_holder_was_killed_begins_at_once(
    site: Site, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lake = folder / "lake"
    killed = start(site, lake)
    site.before_answer = lambda path: killed.kill()
    killed.communicate(timeout=60)
    site.before_answer = lambda path: None

    assert killed.returncode == -9
    assert run(site, lake, capsys) == (0, "")
    assert rows_of(lake)["ships"] == 20
