"""Damage inputs and feed them to the readers: `python -m tests.fuzz --target json --minutes 10 --seed 7`.

Without `--target` all readers have their turn, each for so many minutes. What breaks one is made small and kept in
`tests/recorded/TARGET/`, where a test reads it again from then on; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import hashlib
import mmap
import os
import resource
import signal
import sys
import time
from pathlib import Path

from tests.fuzz.mutate import Corpus
from tests.fuzz.readers import READERS, Outcome, Reader, read

_LAST_BYTES = 64 << 20

RECORDED = Path(__file__).parents[1] / "recorded"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--target", choices=tuple(READERS), action="append")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument(
        "--memory-mb", type=int, default=700, help="peak of the process that counts as a fault"
    )
    arguments = parser.parse_args()
    found = 0
    for target in arguments.target or READERS:
        found += fuzz(
            READERS[target], arguments.minutes * 60, arguments.seed, arguments.memory_mb, RECORDED / target
        )
    return 1 if found else 0


def fuzz(reader: Reader, seconds: float, seed: int, memory_mb: int, folder: Path) -> int:
    """Fuzz in a process of its own, as an input may end it; the number of faults, which are kept in `folder`."""
    last = mmap.mmap(-1, _LAST_BYTES)
    worker = os.fork()
    if not worker:
        found = 1
        try:
            found = _fuzz(reader, seconds, seed, memory_mb, folder, last)
        finally:
            os._exit(min(found, 100))
    _, status = os.waitpid(worker, 0)
    if not os.WIFSIGNALED(status):
        return os.WEXITSTATUS(status)
    name = signal.Signals(os.WTERMSIG(status)).name
    size = int.from_bytes(last.read(8), "big")
    _keep(folder, last.read(size), f"{name} ended the process, seed {seed}")
    return 1


def _fuzz(reader: Reader, seconds: float, seed: int, memory_mb: int, folder: Path, last: mmap.mmap) -> int:
    corpus = Corpus(reader.examples, reader.words, seed=seed)
    ends = time.monotonic() + seconds
    count, slowest, kept = 0, 0.0, {}
    while time.monotonic() < ends:
        body = corpus.next()
        last[: 8 + len(body)] = len(body).to_bytes(8, "big") + body
        outcome = read(reader, body)
        count += 1
        slowest = max(slowest, outcome.seconds)
        corpus.learn(body, outcome.signature)
        if outcome.fault and outcome.place not in kept:
            kept[outcome.place] = _keep(folder, _smaller(reader, body, outcome), outcome.fault)
        if count % 1000 == 0 and _peak_mb() > memory_mb:
            kept["memory"] = _keep(folder, body, f"the process took {_peak_mb()} MB")
            break
    print(
        f"{folder.name}: seed {seed}, {count:,} inputs in {seconds:.0f} s, {len(corpus)} kinds of outcome, "
        f"slowest {slowest:.2f} s, peak {_peak_mb()} MB, {len(kept)} faults",
        flush=True,
    )
    return len(kept)


def _peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def _smaller(reader: Reader, body: bytes, outcome: Outcome) -> bytes:
    """As little of the input as fails in the same place, as far as twenty seconds go."""
    ends = time.monotonic() + 20
    width = len(body) // 2
    while width and time.monotonic() < ends:
        at = 0
        while at < len(body) and time.monotonic() < ends:
            less = body[:at] + body[at + width :]
            if read(reader, less).place == outcome.place:
                body = less
            else:
                at += width
        width //= 2
    return body


def _keep(folder: Path, body: bytes, fault: str) -> Path:
    path = folder / f"{hashlib.sha256(body).hexdigest()[:12]}.bin"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)
    print(f"{folder.name}: {fault}\n  kept as {path}", flush=True)
    return path


if __name__ == "__main__":
    sys.exit(main())
