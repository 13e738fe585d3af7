"""The repository holds nothing of the machines it was written on, and no secret."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]

# Written in pieces, so that this file does not hold what it looks for.
_FOREIGN = re.compile(
    rb"(?<![\w.~:/{}$-])/(?:work|root)/"  # absolute paths
    rb"|/opt/py" + rb"pi|\.py" + rb"env/versions"
    rb"|python"
    + rb"hosted\.org|/simple"
    + rb"/?(?:\s|$)|--(?:extra-)?index"
    + rb"-url[ =](?!\$)"  # registries
)
_PRIVATE_KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE " + rb"KEY-----")


@pytest.fixture(scope="module")
def files() -> list[Path]:
    """The files that git has, or would take."""
    git = shutil.which("git")
    if git is None or not (TOP / ".git").exists():
        pytest.skip("not a git clone: its files cannot be told from others")
    listed = subprocess.run(
        [git, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=TOP,
        capture_output=True,
        check=True,
        timeout=30,
    )
    paths = [TOP / name for name in listed.stdout.decode().split("\0") if name]
    return [path for path in paths if path.is_file()]


def test_no_file_names_a_folder_of_one_machine_or_a_registry(files: list[Path]) -> None:
    found = {
        f"{path.relative_to(TOP)}: {match[0].decode(errors='replace')}"
        for path in files
        for match in _FOREIGN.finditer(path.read_bytes())
    }

    assert found == set()


def test_no_file_holds_a_private_key(files: list[Path]) -> None:
    assert [path for path in files if _PRIVATE_KEY.search(path.read_bytes())] == []


def test_no_link_leads_out_of_the_repository(files: list[Path]) -> None:
    assert [path for path in files if not path.resolve().is_relative_to(TOP.resolve())] == []
