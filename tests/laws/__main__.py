"""Play seeds from the command line: `python -m tests.laws --seeds 0-10000`, or one of them: `--seed 7 -v`."""

from __future__ import annotations

import argparse
import resource
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import chain, islice

from tests.laws.simulation.play import Played, play, play_all
from tests.laws.simulation.world import catalogue, make_scenario

_CHUNK = 25


def _show(seed: int) -> int:
    scenario = make_scenario(seed)
    print(scenario)
    print(catalogue(scenario))
    played = play(seed)
    print(*played.trace, sep="\n")
    if played.error is not None:
        traceback.print_exception(played.error)
    print(f"seed {seed}: {played.broken or 'every law held'} ({', '.join(played.outcomes)})")
    return 1 if played.broken else 0


def _batches(first: int, last: int, workers: int) -> Iterator[list[Played]]:
    """The seeds, played in order, by that many processes; 0: by this one."""
    chunks = (range(start, min(start + _CHUNK, last)) for start in range(first, last, _CHUNK))
    if not workers:
        yield from ([played] for seed in range(first, last) for played in play_all(range(seed, seed + 1)))
        return
    with ProcessPoolExecutor(workers) as pool:
        waiting = [pool.submit(play_all, chunk) for chunk in islice(chunks, 2 * workers)]
        try:
            while waiting:
                yield waiting.pop(0).result()
                waiting += [pool.submit(play_all, chunk) for chunk in islice(chunks, 1)]
        finally:
            for left in waiting:
                left.cancel()


def _play_range(first: int, last: int, workers: int, stops_after: int, skipped: frozenset[int]) -> int:
    outcomes: Counter[str] = Counter()
    played = requests = broken = 0
    begun = time.perf_counter()
    for one in chain.from_iterable(_batches(first, last, workers)):
        if one.seed in skipped:
            continue
        played += 1
        requests += one.requests
        outcomes.update(one.outcomes)
        if one.broken:
            broken += 1
            print(f"seed {one.seed}: {one.broken}", flush=True)
            if broken == stops_after:
                break
    seconds = time.perf_counter() - begun
    told = ", ".join(f"{name} {count}" for name, count in outcomes.most_common())
    used = sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )
    print(
        f"{played} seeds, {requests} requests, {broken} broken, {seconds:.1f} s ({used:.1f} s of CPU); runs: {told}"
    )
    return 1 if broken else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.laws", description=__doc__)
    parser.add_argument("--seeds", default="0-500", help="FIRST-LAST, without the last")
    parser.add_argument("--seed", type=int, help="replay one seed, with its trace")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--stop", type=int, default=0, help="stop after so many broken seeds")
    parser.add_argument("--skip", default="", help="seeds to leave out, with commas")
    options = parser.parse_args()
    if options.seed is not None:
        return _show(options.seed)
    first, _, last = options.seeds.partition("-")
    skipped = frozenset(map(int, filter(None, options.skip.split(","))))
    return _play_range(int(first), int(last), options.workers, options.stop, skipped)


if __name__ == "__main__":
    sys.exit(main())
