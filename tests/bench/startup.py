"""`python -m tests.bench.startup PYTHON…`: what a start costs, in processor time and memory.

Each PYTHON is the interpreter of an environment with the package installed, and its console script beside it.
What is compared runs in turn, round after round, and is told as medians; of a run the script also says how much
more it costs than importing what it needs, as the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import http.server
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tests.bench.measure import Cost, run_measured

TOP = Path(__file__).parents[2]

_READERS = "pyarrow, pyarrow.parquet, pyarrow.json, pyarrow.compute"
IMPORTS: Mapping[str, str] = {
    "import, narrow": f"import aiohttp, anyio, orjson, {_READERS}",
    "import, all": f"import aiohttp, anyio, click, msgspec, orjson, platformdirs, {_READERS}, rich",
}
_RUN = "run, one empty endpoint"


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """One command that is measured; `fresh` is a folder that must not be there when it begins."""

    name: str
    command: tuple[str, ...]
    fresh: Path | None = None


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.startup", description=__doc__)
    parser.add_argument("pythons", nargs="*", metavar="PYTHON", default=[sys.executable])
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    for python in given.pythons:
        scratch = Path(tempfile.mkdtemp(prefix="startup-"))
        try:
            with _empty_api() as url:
                starts = _starts(Path(python), scratch, url)
                costs = _measured(starts, scratch, given.rounds)
            print(f"\n{python}\n{_table(costs)}", flush=True)
        finally:
            shutil.rmtree(scratch)


def _starts(python: Path, scratch: Path, url: str) -> list[Start]:
    script = str(python.parent / "skysql-extract")
    setting = ("--set", f"source.base_url={url}")
    earlier, fresh = scratch / "earlier", scratch / "fresh"
    quick = ("--set", "limits.requests_per_second=1000", "--set", "limits.retry_attempts=1")
    _run_once((script, "run", "--lake", str(earlier), *setting, *quick))
    only = ("--include", "services")
    return [
        Start(name="python", command=(str(python), "-c", "pass")),
        *(Start(name=name, command=(str(python), "-c", code)) for name, code in IMPORTS.items()),
        Start(name="--help", command=(script, "--help")),
        Start(name="plan, no lake", command=(script, "plan", "--lake", str(fresh))),
        Start(name="plan, after a run", command=(script, "plan", "--lake", str(earlier))),
        Start(name=_RUN, command=(script, "run", "--lake", str(fresh), *only, *setting), fresh=fresh),
    ]


def _run_once(command: tuple[str, ...]) -> None:
    """Whether every table can make something of `[]` is of no interest here: 3 is as good as 0."""
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False)
    if done.returncode not in (0, 3):
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")


def _measured(starts: list[Start], scratch: Path, rounds: int) -> dict[str, list[Cost]]:
    costs: dict[str, list[Cost]] = {start.name: [] for start in starts}
    for _ in range(rounds):
        for start in starts:
            if start.fresh is not None:
                shutil.rmtree(start.fresh, ignore_errors=True)
            cost = run_measured(
                start.command, folder=scratch, environment=_environment(), log=scratch / "log"
            )
            costs[start.name].append(cost)
    for start in starts:
        if start.fresh is not None:
            shutil.rmtree(start.fresh, ignore_errors=True)
    return costs


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SKYSQL_", "PYTHON"))}
    return kept | {"SKYSQL_API_KEY": "any"}


def _table(costs: Mapping[str, list[Cost]]) -> str:
    lines = [f"{'':26} {'CPU s':>7} {'least':>7} {'MiB':>5}"]
    for name, found in costs.items():
        seconds = [cost.cpu_seconds for cost in found]
        peak = median(cost.peak_mib for cost in found)
        lines.append(f"{name:26} {median(seconds):7.3f} {min(seconds):7.3f} {peak:5.0f}")
    for name in IMPORTS:
        ratios = [
            run.cpu_seconds / alone.cpu_seconds for run, alone in zip(costs[_RUN], costs[name], strict=True)
        ]
        lines.append(f"the run is {median(ratios):.2f} times {name!r}")
    return "\n".join(lines)


# --- the server, a process of its own -----------------------------------------------------------------------


@contextmanager
def _empty_api() -> Iterator[str]:
    """The address of a server whose every answer is `[]`."""
    child = subprocess.Popen(
        [sys.executable, "-c", "from tests.bench.startup import serve_empty; serve_empty()"],
        cwd=TOP,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    try:
        yield child.stdout.readline().strip()
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


class Empty(http.server.BaseHTTPRequestHandler):
    """A server without rows."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"[]")

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is logged."""


def serve_empty() -> None:
    """Answer `[]` on a free port, which is the first line on stdout, until ended."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Empty) as server:
        print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
