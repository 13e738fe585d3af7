"""Every public module says what it exports, in one order."""

from __future__ import annotations

import ast
import inspect
import os
import re
import sysconfig
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

import extractor

TOP = Path(__file__).parents[2]
PACKAGE = TOP / "extractor"
INSTALLED = os.environ.get("SKYSQL_EXTRACTOR_TEST_INSTALLED") == "1"

only_installed = pytest.mark.skipif(
    not INSTALLED, reason="not started by `make test`: the sources are tested"
)


def _public_modules() -> list[str]:
    paths = (path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
    return sorted(
        path.as_posix()
        for path in paths
        if path.name != "__main__.py"
        and not any(part.startswith("_") and part != "__init__.py" for part in path.parts)
    )


def _assigned(tree: ast.Module, name: str) -> ast.expr | None:
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=found)], value=value) if found == name:
                return value
            case ast.AnnAssign(target=ast.Name(id=found), value=value) if found == name:
                return value
    return None


def _says_nothing(node: ast.stmt) -> bool:
    """A docstring, or an import from the future."""
    match node:
        case ast.Expr(value=ast.Constant()) | ast.ImportFrom(module="__future__"):
            return True
    return False


def _rank(name: str) -> tuple[int, list[int | str]]:
    """Constants, then classes, then functions; numbers in names count as numbers."""
    family = 0 if name.isupper() and len(name) > 1 else 1 if name[:1].isupper() else 2
    parts = re.split(r"(\d+)", name)
    return family, [int(part) if part.isdigit() else part for part in parts]


@pytest.mark.parametrize("module", _public_modules())
def test_a_public_module_lists_its_names_in_a_sorted_tuple(module: str) -> None:
    tree = ast.parse((PACKAGE / module).read_bytes())
    if module.endswith("__init__.py") and all(_says_nothing(node) for node in tree.body):
        return  # a package that holds no names has none to list

    exported = _assigned(tree, "__all__")

    assert isinstance(exported, ast.Tuple), f"extractor/{module}: no tuple __all__"
    names = list(ast.literal_eval(exported))
    assert names == sorted(names, key=_rank)
    assert len(names) == len(set(names))


def test_what_one_module_takes_of_another_is_in_its_list() -> None:
    trees = {module: ast.parse((PACKAGE / module).read_bytes()) for module in _public_modules()}
    lists = {
        f"extractor.{module.removesuffix('.py').replace('/', '.')}": ast.literal_eval(exported)
        for module, tree in trees.items()
        if (exported := _assigned(tree, "__all__")) is not None
    }

    unlisted = [
        f"{node.module}.{alias.name}"
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module in lists
        for alias in node.names
        if alias.name not in lists[node.module]
    ]

    assert unlisted == []


def test_every_name_that_the_package_exports_is_there() -> None:
    missing = [name for name in extractor.__all__ if not hasattr(extractor, name)]

    assert missing == []


@only_installed
def test_the_installed_package_is_tested() -> None:
    assert extractor.__file__ is not None
    found = Path(extractor.__file__).resolve()

    assert Path(sysconfig.get_path("purelib")).resolve() in found.parents


@only_installed
def test_the_version_is_told_by_the_package_as_by_its_metadata() -> None:
    assert extractor.__version__ == version("skysql-extractor")


@pytest.mark.parametrize(
    ("blocking", "asynchronous"),
    [(extractor.run, extractor.extract), (extractor.backfill, extractor.backfill_async)],
)
def test_a_blocking_call_takes_all_that_its_asynchronous_form_takes_of_the_user(
    blocking: Callable[..., object], asynchronous: Callable[..., object]
) -> None:
    surroundings = {"interruption", "environment", "world"}

    taken = inspect.signature(asynchronous).parameters.keys() - surroundings

    assert inspect.signature(blocking).parameters.keys() == taken
