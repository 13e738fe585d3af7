"""What a user downloads holds all that is needed, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("hatchling", reason="hatchling is not installed: pip install '.[dev]'")

TOP = Path(__file__).parents[2]


def _run(*command: str | Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *map(str, command)],
        cwd=TOP,
        env=os.environ | {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of the wheel, as pip builds it."""
    folder = tmp_path_factory.mktemp("wheel")
    _run("pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, TOP)
    [built] = folder.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def source_names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names in the source distribution, without its top folder."""
    folder = tmp_path_factory.mktemp("sdist")
    _run("hatchling", "build", "--target", "sdist", "--directory", folder)
    [built] = folder.glob("*.tar.gz")
    with tarfile.open(built) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


def test_the_wheel_holds_every_module_and_the_mark_of_types(wheel: dict[str, bytes]) -> None:
    sources = {path.relative_to(TOP).as_posix() for path in (TOP / "extractor").rglob("*.py")}

    assert sources <= wheel.keys()
    assert "extractor/py.typed" in wheel


def test_the_wheel_holds_the_catalogue_as_it_stands_in_config(wheel: dict[str, bytes]) -> None:
    folder = TOP / "config" / "endpoints"
    written = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.toml")}

    shipped = {
        name.removeprefix("extractor/catalogue/"): content
        for name, content in wheel.items()
        if name.startswith("extractor/catalogue/")
    }

    assert written
    assert shipped == written


def test_the_wheel_installs_one_package_and_one_command(wheel: dict[str, bytes]) -> None:
    tops = {name.partition("/")[0] for name in wheel}
    [entry_points] = [content for name, content in wheel.items() if name.endswith("/entry_points.txt")]

    assert {name for name in tops if not name.endswith(".dist-info")} == {"extractor"}
    assert entry_points.decode().split() == ["[console_scripts]", "skysql-extract", "=", "extractor.cli:main"]


def test_the_wheel_states_its_licence(wheel: dict[str, bytes]) -> None:
    [metadata] = [content for name, content in wheel.items() if name.endswith(".dist-info/METADATA")]
    [licence] = [content for name, content in wheel.items() if name.endswith("/licenses/LICENSE")]

    assert "License-Expression: Apache-2.0\n" in metadata.decode()
    assert licence == (TOP / "LICENSE").read_bytes()


def test_the_source_distribution_can_be_built_and_tested(source_names: set[str]) -> None:
    needed = {"Makefile", "README.md", "LICENSE", "CHANGELOG.md", "pyproject.toml", "requirements/ci.txt"}
    for folder, pattern in (("extractor", "*.py"), ("config", "*.toml"), ("tests", "*.py")):
        needed |= {path.relative_to(TOP).as_posix() for path in (TOP / folder).rglob(pattern)}

    assert needed - source_names == set()
