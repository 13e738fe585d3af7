"""What the tests and CI install is pinned, each file by its digest."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

TOP = Path(__file__).parents[2]


def locked() -> dict[str, str]:
    """By normal name, what stands in the lock for it."""
    text = (TOP / "requirements" / "ci.txt").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return {normal(line): line for line in lines}


def normal(requirement: str) -> str:
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name is not None, requirement
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def test_each_locked_requirement_has_one_version_and_a_digest_for_each_file() -> None:
    wrong = [
        line
        for line in locked().values()
        if not re.fullmatch(r"[^ =]+==[^ ;]+(?: ;[^-]+)?(?: +--hash=sha256:[0-9a-f]{64})+", line)
    ]

    assert len(locked()) > 20
    assert wrong == []


def test_all_that_the_package_and_its_developers_need_is_locked() -> None:
    project = tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = {normal(item) for item in [*project["dependencies"], *project["optional-dependencies"]["dev"]]}

    assert needed - set(locked()) == set()
