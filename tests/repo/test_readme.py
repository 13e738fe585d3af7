"""The commands that the pages show are commands that exist."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import extractor

TOP = Path(__file__).parents[2]
PAGES = sorted(
    path.relative_to(TOP).as_posix()
    for path in [TOP / "README.md", *(TOP / "docs").rglob("*.md")]
    if path.exists()
)
# Global options that take a value, which so may stand before the verb.
VALUED = {"--config", "--set", "--lake", "--include", "--exclude", "--tag", "--api-key-file"}

_FENCE = re.compile(r"^```(?:sh|bash|shell|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def _commands(page: str) -> list[list[str]]:
    """The commands in the shell blocks of a page, as words."""
    text = (TOP / page).read_text(encoding="utf-8")
    found = []
    for block in _FENCE.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            for command in re.split(r"&&|\|\||[|;]", line.removeprefix("$ ")):
                try:
                    words = shlex.split(command, comments=True)
                except ValueError:  # the quotes span commands, as in SQL with a `;`
                    words = shlex.split(line.removeprefix("$ "), comments=True)
                while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                    words.pop(0)
                if words:
                    found.append(words)
    return found


def _ours(page: str) -> list[list[str]]:
    """What follows `skysql-extract` in those commands."""
    found = []
    for words in _commands(page):
        for place, word in enumerate(words):
            if word.rpartition("/")[2] == "skysql-extract" and (
                place == 0 or words[0] in {"uvx", "uv", "pipx"}
            ):
                found.append(words[place + 1 :])
                break
    return found


def _verb(words: list[str]) -> str | None:
    ahead = iter(words)
    for word in ahead:
        if not word.startswith("-"):
            return word
        if word in VALUED:
            next(ahead, None)
    return None


@cache
def _help(*verb: str) -> str:
    assert extractor.__file__ is not None
    done = subprocess.run(
        [sys.executable, "-P", "-m", "extractor", *verb, "--help"],
        # The package that this test imported, whether installed or not; and no line broken within an option.
        env=os.environ | {"PYTHONPATH": str(Path(extractor.__file__).parents[1]), "COLUMNS": "200"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, f"skysql-extract {' '.join(verb)} --help: {done.stderr}"
    return done.stdout


def test_the_readme_shows_how_to_see_it_and_how_to_test_it() -> None:
    targets = {words[1] for words in _commands("README.md") if words[0] == "make" and len(words) > 1}

    assert {"demo", "test"} <= targets


@pytest.mark.parametrize("page", PAGES)
def test_each_make_target_on_a_page_exists(page: str) -> None:
    makefile = (TOP / "Makefile").read_text(encoding="utf-8")
    known = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))

    named = {
        word
        for words in _commands(page)
        if words[0] == "make"
        for word in words[1:]
        if "=" not in word and not word.startswith("-")
    }

    assert named - known == set()


@pytest.mark.parametrize("page", PAGES)
def test_each_verb_and_option_on_a_page_exists(page: str) -> None:
    for words in _ours(page):
        verb = _verb(words)
        known = _help() + (_help(verb) if verb else "")
        options = {word.partition("=")[0] for word in words if re.match(r"--[a-z]", word)}

        assert {option for option in options if not re.search(rf"{option}\b(?!-)", known)} == set(), words


def test_each_target_of_the_makefile_tells_what_it_does() -> None:
    makefile = (TOP / "Makefile").read_text(encoding="utf-8")

    told = re.findall(r"^([a-z]+):.*##", makefile, re.MULTILINE)

    assert set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE)) == set(told)
