"""Each promise names a test that exists."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
PAGE = (TOP / "docs" / "guarantees.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.splitlines()
    if line.startswith("| ") and not line.startswith("| promise ")
]


@cache
def names_in(path: str) -> frozenset[str]:
    tree = ast.parse((TOP / path).read_text(encoding="utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(node.name for node in tree.body if isinstance(node, functions))


@pytest.mark.parametrize(("promise", "proof"), ROWS, ids=lambda cell: cell[:60])
def test_a_promise_is_one_sentence_and_names_a_test_that_exists(promise: str, proof: str) -> None:
    found = re.fullmatch(r"`(tests/\w+/test_\w+\.py)::(test_\w+)`", proof)

    assert promise.endswith(".")
    assert found is not None, proof
    assert found[2] in names_in(found[1]), f"{found[1]} has no {found[2]}"


def test_no_promise_is_made_twice() -> None:
    proofs = [proof for _, proof in ROWS]

    assert len(proofs) > 40
    assert sorted(set(proofs)) == sorted(proofs)
