"""How much of a server's rate limit a run uses, and how much of what it asks is refused, at the server's clock.

The real command reads an endpoint of many page chains from `limited_server`, with `limits.requests_per_second`
equal to the server's limit and a burst of 1. The time begins with the first request that the server sees. Answered
is what it answered in that time over `rate * seconds`; refused is the share of all requests of that time; needed is
the least bucket, in requests, that would have refused none of them: how evenly they came. CPU is that of the whole
process, start-up included. `--bare` measures the CPU of a loop of bare aiohttp GETs besides.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path

__all__ = ("Measured", "bucket_needed", "measure")

_TOP = Path(__file__).parents[2]
_SERVER = Path(__file__).with_name("limited_server.py")
_CHAINS = 64
_DURATIONS = {5.0: 300.0, 50.0: 30.0, 200.0: 30.0, 1000.0: 30.0}
_HEAD = " rate  slots  bucket  answered  refused        needed  gap ms p50 / p99 / max    CPU ms a request"
_MARGIN = 1.1
"""So much more work there is than the rate allows in the time."""

_CATALOGUE = """
[branches]
path = "/branches"
key = ["id"]
columns = { id = "string" }
"""
_LEAVES = """
[leaves_%(number)d]
path = "/branches/{branch}/leaves_%(number)d"
paging = { kind = "token", request_param = "page", response_header = "X-Next" }
parent = { endpoint = "branches", params = { branch = "id" } }
keep = { branch = "id" }
key = ["id"]
columns = { branch = "string", id = "int64", name = "string", size = "float64", is_new = "bool", at = "timestamp" }
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One run, as the server saw it; shares of 1, gaps in milliseconds."""

    answered: float
    refused: int
    requests: int
    needed: float
    gap_p50: float
    gap_p99: float
    longest_gap: float
    client_cpu: float
    """Milliseconds of CPU for each request of the whole run."""

    @property
    def refused_share(self) -> float:
        return self.refused / self.requests


def bucket_needed(at: Sequence[float], rate: float) -> float:
    """The least capacity, in requests, of a bucket filled at `rate` that lets every request through."""
    used = most = 0.0
    before = at[0]
    for moment in at:
        used = max(0.0, used - rate * (moment - before)) + 1
        before = moment
        most = max(most, used)
    return most


@contextmanager
def _serving(rate: float, capacity: float, pages: int) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server's base URL and process; what is not ended is killed."""
    command = [sys.executable, str(_SERVER), f"--rate={rate}", f"--capacity={capacity}"]
    server = subprocess.Popen(
        [*command, f"--chains={_CHAINS}", f"--pages={pages}"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        yield server.stdout.readline().strip(), server
    finally:
        server.kill()
        server.wait()


def _seen(server: subprocess.Popen[str]) -> tuple[list[float], list[int]]:
    server.terminate()
    out, _ = server.communicate()
    seen = json.loads(out)
    return seen["at"], seen["status"]


def _cpu_of(command: Sequence[str], folder: Path) -> float:
    """The CPU seconds of a command; it must succeed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SKYSQL_")}
    environment |= {"SKYSQL_API_KEY": "bench", "PYTHONPATH": str(_TOP)}
    client = subprocess.Popen(command, cwd=folder, env=environment)
    _, status, usage = os.wait4(client.pid, 0)
    client.returncode = os.waitstatus_to_exitcode(status)
    if client.returncode:
        raise SystemExit(f"the client ended with {client.returncode}")
    return usage.ru_utime + usage.ru_stime


def measure(
    rate: float, seconds: float, *, capacity: float, concurrency: int, tables: int, limit: float | None = None
) -> Measured:
    """Run the command once against a server whose bucket holds `capacity` requests."""
    limit = rate if limit is None else limit
    pages = -(-int(rate * seconds * _MARGIN) // (_CHAINS * tables))
    with tempfile.TemporaryDirectory() as name, _serving(limit, capacity, pages) as (url, server):
        folder = Path(name)
        catalogue = folder / "catalogue"
        catalogue.mkdir()
        leaves = [_LEAVES % {"number": number} for number in range(tables)]
        (catalogue / "tree.toml").write_text(_CATALOGUE + "".join(leaves))
        settings = {
            "source.base_url": url,
            "source.builtin": "false",
            "source.catalogs": str(catalogue),
            "limits.requests_per_second": rate,
            "limits.burst": 1,
            "limits.concurrency": concurrency,
        }
        flags = [f"--set={key}={value}" for key, value in settings.items()]
        cpu = _cpu_of([sys.executable, "-m", "extractor", "run", "--quiet", "--lake=lake", *flags], folder)
        at, status = _seen(server)
    end = at[0] + seconds
    if at[-1] < end:
        raise SystemExit(f"the work ended after {at[-1] - at[0]:.1f} s")
    within = [(moment, code) for moment, code in zip(at, status, strict=True) if moment < end]
    moments = [moment for moment, _ in within]
    gaps = sorted(1000 * (after - before) for before, after in pairwise(moments))
    return Measured(
        answered=sum(code == 200 for _, code in within) / (rate * seconds),
        refused=sum(code == 429 for _, code in within),
        requests=len(within),
        needed=bucket_needed(moments, rate),
        gap_p50=statistics.median(gaps),
        gap_p99=gaps[int(0.99 * len(gaps))],
        longest_gap=gaps[-1],
        client_cpu=1000 * cpu / len(at),
    )


# A loop of bare GETs


async def _get_all(url: str, pages: int, concurrency: int) -> None:
    import aiohttp

    places = product(range(pages), range(_CHAINS))
    paths = iter([f"{url}/branches/{chain}/leaves?page={page}" for page, chain in places])
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=concurrency)) as session:

        async def worker() -> None:
            for path in paths:
                async with session.get(path) as answer:
                    await answer.read()

        async with asyncio.TaskGroup() as tasks:
            for _ in range(concurrency):
                tasks.create_task(worker())


def _measure_bare(requests: int, concurrency: int) -> float:
    """Milliseconds of CPU for each bare GET, as fast as they go."""
    pages = -(-requests // _CHAINS)
    with tempfile.TemporaryDirectory() as name, _serving(0, 1, pages) as (url, server):
        command = [sys.executable, str(Path(__file__)), f"--get={url}", f"--pages={pages}"]
        cpu = _cpu_of([*command, f"--concurrency={concurrency}"], Path(name))
        at, _ = _seen(server)
    return 1000 * cpu / len(at)


def _main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rate", type=float, action="append", help="requests a second; repeatable")
    parser.add_argument("--seconds", type=float, help="how long to look; 30, or 300 at 5 a second")
    parser.add_argument(
        "--bucket", action="append", help="what the server's bucket holds, in requests, or '1s'; repeatable"
    )
    parser.add_argument("--concurrency", type=int, action="append", help="slots; repeatable")
    parser.add_argument("--tables", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--bare", action="store_true", help="measure a loop of bare aiohttp GETs too")
    parser.add_argument("--get", help=argparse.SUPPRESS)
    parser.add_argument("--pages", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    slots = options.concurrency or [16, 64]
    if options.get:
        asyncio.run(_get_all(options.get, options.pages, slots[0]))
        return
    print(_HEAD, flush=True)
    rates, buckets = options.rate or _DURATIONS, options.bucket or ["1s"]
    for _ in range(options.rounds):
        for rate, bucket, concurrency in product(rates, buckets, slots):
            seconds = options.seconds or _DURATIONS.get(rate, 30.0)
            capacity = rate if bucket == "1s" else float(bucket)
            one = measure(rate, seconds, capacity=capacity, concurrency=concurrency, tables=options.tables)
            print(f"{rate:5g}  {concurrency:5d}  {bucket:>6}  {_told(one)}", flush=True)
        if options.bare:
            for concurrency in slots:
                print(f" bare  {concurrency:5d}{'':70}{_measure_bare(20_000, concurrency):8.3f}", flush=True)


def _told(one: Measured) -> str:
    return (
        f"{one.answered:8.4f}  {one.refused:4d} = {one.refused_share:6.3%}  {one.needed:6.2f}  "
        f"{one.gap_p50:6.1f} /{one.gap_p99:6.1f} /{one.longest_gap:7.1f}  {one.client_cpu:16.3f}"
    )


if __name__ == "__main__":
    _main()
