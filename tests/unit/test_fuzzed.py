"""What damaged input may do to a reader: be taken, or be refused. `make fuzz` looks for more of it."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fuzz.__main__ import fuzz
from tests.fuzz.mutate import Corpus
from tests.fuzz.readers import READERS, read

RECORDED = Path(__file__).parents[1] / "recorded"
KEPT = sorted(path for target in READERS for path in (RECORDED / target).glob("*.bin"))


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_what_once_broke_a_reader_is_taken_or_refused(path: Path) -> None:
    outcome = read(READERS[path.parent.name], path.read_bytes())

    assert outcome.fault == ""
    assert outcome.seconds < 5


@pytest.mark.parametrize("target", READERS)
def test_damaged_examples_are_taken_or_refused(target: str) -> None:
    reader = READERS[target]
    corpus = Corpus(reader.examples, reader.words, seed=1)

    for _ in range(150):
        body = corpus.next()
        outcome = read(reader, body)
        corpus.learn(body, outcome.signature)
        assert outcome.fault == "", body


@pytest.mark.parametrize("target", READERS)
def test_the_examples_themselves_are_read(target: str) -> None:
    first = read(READERS[target], READERS[target].examples[0]).signature

    expected = {"json": "False 0 False 2; ", "openmetrics": "5 rows", "archive": "9 2 ", "config": "good; "}
    assert first.startswith(expected[target])


def test_a_fault_is_found() -> None:
    def take(body: bytes) -> str:
        if b"NaN\xff" in body:
            raise ValueError("planted")
        return READERS["openmetrics"].take(body)

    reader = replace(READERS["openmetrics"], take=take)
    corpus = Corpus(reader.examples, reader.words, seed=3)

    assert any(read(reader, corpus.next()).fault for _ in range(20_000))


def test_an_input_that_ends_the_process_is_kept(tmp_path: Path) -> None:
    def take(body: bytes) -> str:
        if b"NaN\xff" in body:
            os.kill(os.getpid(), signal.SIGKILL)
        return "taken"

    found = fuzz(replace(READERS["openmetrics"], take=take), 60, 3, 2000, tmp_path)

    [kept] = tmp_path.iterdir()
    assert (found, b"NaN\xff" in kept.read_bytes()) == (1, True)
