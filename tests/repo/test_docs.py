"""What the pages say is so: their code runs and prints what they show, their tables are those of the program."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import tomllib
import types
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import msgspec
import pytest

import extractor
from extractor import config as settings
from extractor import endpoint as endpoints
from extractor.catalog import load_catalog
from extractor.cli.app import invoke
from extractor.cli.failure import ORDER
from extractor.report import EXIT_CODES
from extractor.sandbox import SandboxOptions, running
from extractor.sandbox.options import FAULT_KINDS, FLAGS, VARIANTS

TOP = Path(__file__).parents[2]
PAGES = [
    path.relative_to(TOP).as_posix()
    for path in (TOP / "README.md", TOP / "CHANGELOG.md", *sorted((TOP / "docs").rglob("*.md")))
]
KEY = f"skysql.docs.docsdocs.{'Docs' * 9}.00000000"
# Verbs that send nothing and leave nothing: what a page shows of them is run, in a folder after `make demo`.
LOOKING = {"plan", "catalog", "runs", "show", "files", "sql", "diff", "verify", "ddl"}

_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<!\!)\[[^\]]+\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Fence:
    """A block of code, and the output that a page shows right behind it."""

    language: str
    text: str
    line: int
    shown: str = ""


def fences(page: str) -> list[Fence]:
    """The blocks of a page, in order; a `text` block that follows with nothing between is output."""
    text = read(page)
    found = list(_FENCE.finditer(text))
    blocks = []
    for number, match in enumerate(found):
        after = found[number + 1] if number + 1 < len(found) else None
        is_next = after is not None and after[2] == "text" and not text[match.end() : after.start()].strip()
        blocks.append(
            Fence(
                language=match[2],
                text=dedented(match),
                line=text.count("\n", 0, match.start()) + 2,
                shown=dedented(after) if is_next and after is not None else "",
            )
        )
    return blocks


def dedented(match: re.Match[str]) -> str:
    return "".join(line.removeprefix(match[1]) for line in match[3].splitlines(keepends=True))


def read(page: str) -> str:
    return (TOP / page).read_text(encoding="utf-8")


def rows_of(page: str, heading: str) -> list[list[str]]:
    """The cells of the first table under a heading."""
    part = f"\n{read(page)}".partition(f"\n{heading}\n")[2]
    table: list[list[str]] = []
    for line in part.splitlines():
        if line.startswith("|"):
            table.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))])
        elif table or line.startswith("#"):
            break
    return table[2:]


def code_in(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def as_pattern(shown: str) -> str:
    """A line `…` stands for any lines, `…` within a line for any text."""
    parts = [
        r"(?:.*\n)*?" if line.strip() == "…" else re.escape(line).replace("…", ".*") + r"\n"
        for line in shown.splitlines()
    ]
    return "".join(parts)


def blurred(text: str) -> str:
    """Without what differs from day to day: numbers, ids, and the width of columns."""
    text = re.sub(r"\d{8}T\d{6}Z-[0-9a-f]{8}", "RUN", text)
    return re.sub(r" +", " ", re.sub(r"\d[\d.,-]*", "N", text))


# --- the world in which the pages are run -------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder in which the demo was run, and what it printed."""
    folder = tmp_path_factory.mktemp("demo")
    assert extractor.__file__ is not None
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SKYSQL_")}
    done = subprocess.run(
        [sys.executable, "-m", "extractor", "demo"],
        cwd=folder,
        env=kept | {"PYTHONPATH": str(Path(extractor.__file__).parents[1])},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A sandbox in a thread of its own, for code that blocks."""
    loop = asyncio.new_event_loop()
    stack = contextlib.AsyncExitStack()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        started = stack.enter_async_context(running(SandboxOptions()))
        yield asyncio.run_coroutine_threadsafe(started, loop).result(30)
    finally:
        asyncio.run_coroutine_threadsafe(stack.aclose(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        loop.close()


@pytest.fixture
def folder(demo: tuple[Path, str], url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a demo lake, and a key and an address in the environment."""
    shutil.copytree(demo[0] / "demo-lake", tmp_path / "demo-lake")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SKYSQL_API_KEY", KEY)
    monkeypatch.setenv("SKYSQL_SOURCE__BASE_URL", url)
    monkeypatch.setenv("SKYSQL_LIMITS__REQUESTS_PER_SECOND", "300")
    return tmp_path


# --- code ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(f.language == "python" for f in fences(page))]
)
def test_the_python_on_a_page_runs_and_prints_what_the_page_shows(page: str, folder: Path) -> None:
    blocks = [block for block in fences(page) if block.language == "python"]
    codes = [
        compile("\n" * (block.line - 1) + block.text, str(TOP / page), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        for block in blocks
    ]
    names: dict[str, object] = {"__name__": "__main__"}

    def check(block: Fence, printed: str) -> None:
        where = f"{page}:{block.line} printed:\n{printed}"
        assert re.fullmatch(as_pattern(block.shown), printed), where

    async def run_in_a_loop() -> None:
        for block, code in zip(blocks, codes, strict=True):
            with contextlib.redirect_stdout(io.StringIO()) as out:
                made = eval(code, names)
                if inspect.isawaitable(made):
                    await made
            check(block, out.getvalue())

    if any(code.co_flags & inspect.CO_COROUTINE for code in codes):
        asyncio.run(run_in_a_loop())
        return
    for block, code in zip(blocks, codes, strict=True):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            eval(code, names)
        check(block, out.getvalue())


def test_the_output_of_the_demo_on_the_first_page_is_what_it_prints(demo: tuple[Path, str]) -> None:
    shown = next(block.text for block in fences("README.md") if block.language == "text")

    pattern = as_pattern(blurred(shown))

    assert re.fullmatch(pattern, blurred(demo[1])), demo[1]


@pytest.mark.parametrize("page", PAGES)
def test_commands_that_only_look_do_what_a_page_says(page: str, folder: Path) -> None:
    write_catalogues(page, folder)
    for block in fences(page):
        for line in block.text.splitlines() if block.language == "sh" else ():
            words = shlex.split(line, comments=True)
            if words[:1] != ["skysql-extract"] or words[1] not in LOOKING:
                continue
            if "openapi.yaml" in words or any("~" in word for word in words):
                continue  # a file of the reader's own
            if words[1] == "show" and "--lake" not in words:
                words += ["--lake", "demo-lake"]

            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as err:
                code = invoke(words[1:])

            assert code == 0, f"{page}: {line}: {err.getvalue()}"


# --- TOML ---------------------------------------------------------------------------------------------------


def toml_files(page: str) -> list[tuple[str, str]]:
    """The TOML blocks of a page by the file that their first line names."""
    found = []
    for block in fences(page):
        if block.language == "toml":
            name = re.match(r"# (\S+\.toml)\n", block.text)
            assert name is not None, f"{page}:{block.line}: the first line names no file"
            found.append((name[1], block.text))
    return found


def write_catalogues(page: str, folder: Path) -> None:
    for name, text in toml_files(page):
        if name != settings.DEFAULT_FILE:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)


@pytest.mark.parametrize("page", [page for page in PAGES if "```toml" in read(page)])
def test_the_toml_on_a_page_is_accepted(page: str, tmp_path: Path) -> None:
    for name, text in toml_files(page):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
        if name == settings.DEFAULT_FILE:
            settings.load_config(tmp_path / name, environment={})
        else:
            named = set(tomllib.loads(text)) - {"excluded"}
            assert named <= load_catalog([(tmp_path / name).parent]).endpoints.keys()


# --- links --------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """The anchors that a forge makes of the headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_each_link_on_a_page_leads_somewhere(page: str) -> None:
    broken = []
    for target in _LINK.findall(_FENCE.sub("", read(page))):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (TOP / page).parent / path if path else TOP / page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)

    assert broken == []


def test_every_page_is_linked_from_another() -> None:
    linked = {
        ((TOP / page).parent / target.partition("#")[0]).resolve()
        for page in PAGES
        for target in _LINK.findall(read(page))
        if "://" not in target
    }

    assert [page for page in PAGES if page != "README.md" and (TOP / page).resolve() not in linked] == []


# --- tables -------------------------------------------------------------------------------------------------


def test_the_glossary_has_at_most_twenty_words() -> None:
    words = [cell for cell, _ in rows_of("docs/glossary.md", "# Glossary")]

    assert 0 < len(words) <= 20
    assert len(set(words)) == len(words)


def test_the_first_page_lists_every_verb() -> None:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        invoke(["--help"])
    verbs = [line.split()[0] for line in out.getvalue().partition("Commands:")[2].strip().splitlines()]

    listed = [verb for first, _ in rows_of("README.md", "## Commands") for verb in code_in(first)]

    assert listed == verbs


def test_the_exit_codes_are_those_of_the_program_in_their_order() -> None:
    listed = [int(row[0]) for row in rows_of("docs/exit-codes.md", "# Exit codes")]

    assert tuple(listed) == ORDER
    assert set(listed) == EXIT_CODES.keys()


@pytest.mark.parametrize(
    ("section", "kind"), [*settings._SECTIONS.items(), ("accounts", settings.Account)], ids=str
)
def test_the_page_of_settings_gives_each_key_with_its_default(
    section: str, kind: type[msgspec.Struct]
) -> None:
    heading = "## `[[accounts]]`" if section == "accounts" else f"## `[{section}]`"
    listed = {
        code_in(row[0])[0]: (
            tomllib.loads(f"value = {code_in(row[1])[0]}")["value"] if code_in(row[1]) else None
        )
        for row in rows_of("docs/configuration.md", heading)
    }

    actual = {
        field.name: None
        if field.default is msgspec.NODEFAULT
        else json.loads(msgspec.json.encode(field.default))
        for field in msgspec.structs.fields(kind)
    }
    assert listed == actual


@pytest.mark.parametrize(
    ("heading", "kind"),
    [
        ("## Keys of an endpoint", endpoints._EndpointTable),
        ("## Sync", None),
        ("## Columns", None),
        ("## Paging", None),
    ],
)
def test_the_page_of_endpoints_gives_each_key(heading: str, kind: type[msgspec.Struct] | None) -> None:
    text = read("docs/endpoints.md")
    match heading:
        case "## Keys of an endpoint":
            assert kind is not None
            listed = [code_in(row[0])[0] for row in rows_of("docs/endpoints.md", heading)]
            actual = [field.encode_name for field in msgspec.structs.fields(kind)]
            assert sorted(listed) == sorted(actual)
        case "## Sync":
            part = text.partition("| key of a window |")[2].partition("\n\n")[0]
            listed = re.findall(r"^\| `(\w+)` \|", part, re.MULTILINE)
            assert listed == list(endpoints.Window.__struct_fields__)
        case "## Columns":
            listed = [name for row in rows_of("docs/endpoints.md", heading) for name in code_in(row[0])]
            kinds = {name.partition("<")[0] for name in listed}
            assert kinds == {*endpoints.SCALARS, "list", "map", "struct"}
        case _:
            listed_keys = {
                code_in(row[0])[0]: set(code_in(row[1])) for row in rows_of("docs/endpoints.md", heading)
            }
            actual_keys = {
                str(paging.__struct_config__.tag): set(paging.__struct_fields__)
                for paging in _members_of(endpoints.Paging)
            }
            assert listed_keys == actual_keys


def _members_of(union: types.UnionType) -> tuple[type[msgspec.Struct], ...]:
    return union.__args__


def test_the_page_of_the_sandbox_gives_each_flag_fault_and_variant() -> None:
    page = "docs/sandbox.md"

    flags = [(code_in(row[0])[0], code_in(row[1])[0]) for row in rows_of(page, "## Flags")]
    faults = [kind for row in rows_of(page, "## Faults") for kind in code_in(row[0])]
    variants = [code_in(row[0])[0] for row in rows_of(page, "## Variants")]

    assert flags == [(f"{flag.name} {flag.metavar}".strip(), flag.field) for flag in FLAGS]
    assert {name for _, name in flags} == {field.name for field in fields(SandboxOptions)}
    assert sorted(faults) == sorted(FAULT_KINDS)
    assert variants == list(VARIANTS)


def test_the_page_of_the_sandbox_gives_each_default() -> None:
    plain = SandboxOptions()

    wrong = [
        row[0]
        for row in rows_of("docs/sandbox.md", "## Flags")
        if re.fullmatch(r"\d+", row[2]) and float(row[2]) != getattr(plain, code_in(row[1])[0])
    ]

    assert wrong == []


def test_the_page_of_security_names_the_endpoints_that_are_not_asked_for() -> None:
    text = read("docs/security.md")

    secret = [name for name, found in load_catalog().endpoints.items() if found.class_ == "secret"]

    assert [name for name in secret if f"`{name}`" not in text] == []
