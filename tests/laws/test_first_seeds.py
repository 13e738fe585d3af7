"""Whole runs in made-up worlds, the first half of those that are played each time; the rest is `make laws`."""

from __future__ import annotations

import pytest

from tests.laws.simulation.play import play

CHUNK = 10


@pytest.mark.parametrize("first", range(0, 250, CHUNK))
def test_no_law_is_broken(first: int) -> None:
    broken = {seed: played.broken for seed in range(first, first + CHUNK) if (played := play(seed)).broken}

    assert broken == {}, "replay one with: python -m tests.laws --seed NUMBER"
