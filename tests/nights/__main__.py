"""Play the nights from the command line: `python -m tests.nights --nights 30`, with `--crashes` or without."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.nights.play import Night, play

_HEADS = ("night", "clock", "killed after", "requests", "bound", "of windows", "pages", "rows")


def _line(night: Night) -> str:
    killed = "" if night.killed_after is None else f"{night.killed_after:.2f} s ({night.requests_killed})"
    is_first = night.number == 1
    cells = (
        night.number,
        "-24 h" if night.clock_is_back else "",
        killed,
        night.requests,
        "-" if is_first else night.bound,
        night.window_requests,
        "-" if is_first else night.window_pages,
        night.rows,
    )
    equal = "yes" if night.is_good else f"NO: {night.status} {night.wrong}"
    return f"{_row(cells)}  {equal}"


def _row(cells: Sequence[object]) -> str:
    return " ".join(str(cell).rjust(len(head)) for cell, head in zip(cells, _HEADS, strict=True))


async def _play(nights: int, seed: int, *, crashes: bool) -> int:
    print(
        f"{nights} nights, seed {seed}, {'a crash every third night' if crashes else 'no crash'}",
        f"{_row(_HEADS)}  equal",
        sep="\n",
    )
    bad = 0
    with tempfile.TemporaryDirectory(prefix="nights-") as folder:
        async for night in play(nights, Path(folder), seed=seed, crashes=crashes, clock_back_on=11):
            print(_line(night), flush=True)
            bad += not night.is_good
    print(f"{nights - bad} of {nights} nights equal and within the bound\n")
    return bad


def _main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.nights", description=__doc__)
    parser.add_argument("--nights", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--crashes", choices=("both", "no", "yes"), default="both")
    given = parser.parse_args()
    ways = {"both": (False, True), "no": (False,), "yes": (True,)}[given.crashes]
    return 1 if sum(asyncio.run(_play(given.nights, given.seed, crashes=way)) for way in ways) else 0


if __name__ == "__main__":
    sys.exit(_main())
