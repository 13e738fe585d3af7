"""Names that others supply: of endpoints, partitions, members of archives, columns. None of them is a path."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

import extractor
from extractor.config import load_config
from extractor.errors import ConfigError
from extractor.sandbox import SandboxOptions, running
from tests.flow.faulty import zipped

NAMES = (
    "../../out",
    "/etc/out",
    "..",
    "a/b",
    "a\\b",
    "C:\\out",
    "x\0y",
    "%2e%2e%2fout",
    "=cmd|'/c'!A1",
    "<b>x</b>",
)
CATALOGUE = """
[lines]
path   = "/lines"
format = "log_archive"
columns = { member = "string" }

[things]
path = "/things"
key  = ["id"]
sync = { kind = "append", cursor = "at" }
"""


async def answer(request: web.BaseRequest) -> web.StreamResponse:
    if request.path == "/lines":
        return web.Response(body=zipped("../../../out/lines.log", b"2026-11-22 10:00:00 0 [Note] x\n"))
    rows = [{"id": name, "at": name, name: name, "account": "../../out"} for name in NAMES]
    return web.Response(body=json.dumps(rows).encode(), content_type="application/json")


@pytest.fixture
def outside(tmp_path: Path) -> set[Path]:
    """What stood beside the lake before."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "own.toml").write_text(CATALOGUE)
    return set(tmp_path.iterdir())


async def test_no_name_from_outside_leaves_the_lake(tmp_path: Path, outside: set[Path]) -> None:
    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    config = load_config(
        overrides={
            "source.base_url": f"http://127.0.0.1:{runner.addresses[0][1]}",
            "source.builtin": False,
            "source.catalogs": (str(tmp_path / "own"),),
            "lake.uri": str(tmp_path / "lake"),
            "limits.requests_per_second": 1000,
        },
        environment={},
    )

    report = await extractor.extract(config, environment={"SKYSQL_API_KEY": "k" * 30})
    await runner.cleanup()

    assert report.exit_code == 0
    assert_all_is_inside(tmp_path, outside)


def assert_all_is_inside(folder: Path, outside: set[Path]) -> None:
    lake = extractor.Lake(str(folder / "lake"))
    rows = lake.table("things").to_arrow().to_pylist()
    assert sorted(row["id"] for row in rows) == sorted(NAMES)
    assert lake.table("lines").to_arrow()["member"].to_pylist() == ["../../../out/lines.log"]
    assert {path.name for path in (folder / "lake").iterdir()} == {"_extractor", "lines", "things"}
    assert {path.name for path in (folder / "lake" / "things").iterdir()} == {"account=default"}
    assert set(folder.iterdir()) - outside == {folder / "lake"}


@pytest.mark.parametrize("name", ["../out", "a/b", "..", "_extractor", "a b", ""])
def test_an_endpoint_whose_name_is_no_name_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "own.toml").write_text(f'[{json.dumps(name)}]\npath = "/x"\n')

    with pytest.raises(ConfigError):
        extractor.run(
            load_config(
                overrides={
                    "source.builtin": False,
                    "source.catalogs": (str(tmp_path / "own"),),
                    "lake.uri": str(tmp_path / "lake"),
                },
                environment={"SKYSQL_API_KEY": "k" * 30},
            )
        )

    assert not (tmp_path / "lake").exists()


async def test_the_sandbox_listens_on_this_machine_only() -> None:
    async with running(SandboxOptions(services=1)) as url:
        port = int(url.rpartition(":")[2])
        others = {
            address[4][0]
            for address in socket.getaddrinfo(socket.gethostname(), port, family=socket.AF_INET)
            if not address[4][0].startswith("127.")
        }
        with socket.socket() as probe:
            probe.settimeout(5)
            assert probe.connect_ex(("127.0.0.1", port)) == 0
        for address in others:
            with socket.socket() as probe:
                probe.settimeout(5)
                assert probe.connect_ex((address, port)) != 0
        assert listening_at(port) in ([], [f"0100007F:{port:04X}"])


def listening_at(port: int) -> list[str]:
    """The addresses, in the kernel's form, at which somebody listens; none where it does not tell."""
    table = Path("/proc/net/tcp")
    lines = [line.split() for line in table.read_text().splitlines()[1:]] if table.exists() else []
    return [line[1] for line in lines if line[3] == "0A" and line[1].endswith(f":{port:04X}")]


def test_what_a_link_in_the_lake_leads_to_is_not_touched(serve: Callable[..., Any], program: Any) -> None:
    site = serve()
    program.run(site, "lake", "--include", "services")
    outside = program.folder / "outside"
    outside.mkdir()
    (outside / "mine.txt").write_text("mine")
    (program.lake("lake") / "services" / "account=elsewhere").symlink_to(outside)

    told = program.call([*program.command, "verify", "--all", "--lake", "lake"], {})
    program.call([*program.command, "verify", "--all", "--repair", "--lake", "lake"], {})

    assert told.code == 8
    assert told.complaint.startswith("services/account=elsewhere is extra")
    assert (outside / "mine.txt").read_text() == "mine"
