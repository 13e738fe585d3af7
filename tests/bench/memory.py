"""`python -m tests.bench.memory`: the product's peak memory over rows, endpoints and samples.

Rows are flat ones in pages of 1,000. Samples are one Prometheus text of 2,500 series; it is read as a table that
only grows, whose key is the series and the time. Large inputs are made one at a time and removed after their run.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.bench.ask import ask
from tests.bench.cases import parse_case
from tests.bench.measure import Cost, run_measured
from tests.bench.server import running
from tests.bench.shapes import SAMPLE_COLUMNS, SHAPES
from tests.bench.tools import (
    BUILD,
    PAGES,
    Interpreters,
    Job,
    make_job,
    ours_command,
    ours_environment,
    write_config,
)

__all__ = ("write_samples",)

ROW_CASES = tuple(
    f"flat-{rows}-{endpoints}-p1000" for rows in ("100k", "1m", "10m") for endpoints in (1, 8, 64)
)
SAMPLE_CASES = ("samples-1m", "samples-10m")
_FREE_BYTES = 5 << 30
_SERIES = 2_500

_METRICS = """\
[metrics]
path = "/samples/{name}.txt"
format = "openmetrics"
key = ["_series", "timestamp"]
sync = {{ kind = "append", cursor = "timestamp" }}
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.memory")
    parser.add_argument("--case", type=lambda text: text.split(","), default=[*ROW_CASES, *SAMPLE_CASES])
    parser.add_argument("--python", type=Path, help="measure the working tree with this interpreter")
    given = parser.parse_args()
    pythons = Interpreters.chosen(given.python)
    PAGES.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="run-", dir=BUILD))
    found: dict[str, dict[str, float]] = {}
    try:
        with running(PAGES, scratch / "nginx") as url:
            print("| case | peak MiB | wall s | CPU s |\n|---|---|---|---|", flush=True)
            for name in given.case:
                cost = (_read_samples if name in SAMPLE_CASES else _read_rows)(
                    name, url, scratch / "out", pythons
                )
                found[name] = {"peak_mib": cost.peak_mib, "wall": cost.wall_seconds, "cpu": cost.cpu_seconds}
                figures = f"{cost.peak_mib:.0f} | {cost.wall_seconds:.1f} | {cost.cpu_seconds:.1f}"
                print(f"| {name} | {figures} |", flush=True)
    except (FileNotFoundError, RuntimeError) as failure:
        sys.exit(f"tests.bench.memory: {failure}")
    finally:
        shutil.rmtree(scratch)
    (BUILD / "memory.json").write_text(json.dumps(found, indent=1))


def write_samples(place: Path, count: int) -> int:
    """Write `count` samples of different series or times as one text; the sum of their values.

    A family is one block of the text, as the format demands; in it each series has its times one after the other.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    unfinished = place.with_suffix(".part")
    total = 0
    chance = random.Random(count)  # not for secrets
    with unfinished.open("w", buffering=1 << 20) as file:
        for prefix, is_first in _series():
            if is_first:
                file.write(f"# TYPE {prefix.partition('{')[0]} gauge\n")
            values = [chance.getrandbits(20) for _ in range(count // _SERIES)]
            total += sum(values)
            file.writelines(
                f"{prefix} {value} {1_767_225_600_000 + minute * 60_000}\n"
                for minute, value in enumerate(values)
            )
    unfinished.replace(place)
    return total


def _series() -> Iterator[tuple[str, bool]]:
    for number in range(_SERIES):
        family, server = divmod(number, 50)
        labels = {
            "namespace": f"dbpgf{server // 5:08d}",
            "server_name": f"dbpgf{server // 5:08d}-mdb-ms-{server % 5}",
            "server_type": "server",
            "service_name": f"orders-{server // 5}",
            "topology_type": "es-replica",
            "instance": f"10.1.{server}.7:9104",
        }
        text = ",".join(f'{key}="{value}"' for key, value in labels.items())
        yield f"mariadb_global_status_family_{family}{{{text}}}", server == 0


def _read_rows(name: str, url: str, folder: Path, pythons: Interpreters) -> Cost:
    case = parse_case(name)
    _demand_room()
    expected = ask(pythons, "tests.bench.pages", PAGES, name)
    try:
        _make_fresh(folder)
        job = make_job("ours", case, url, PAGES, folder, pythons)
        cost = _run(job)
        checked = SHAPES[case.pages.shape].checked
        _verify(pythons, job, "id", checked, expected["rows"], expected["checked"])
        return cost
    finally:
        shutil.rmtree(PAGES / case.pages.name)
        shutil.rmtree(folder, ignore_errors=True)


def _read_samples(name: str, url: str, folder: Path, pythons: Interpreters) -> Cost:
    count = {"1m": 1_000_000, "10m": 10_000_000}[name.removeprefix("samples-")]
    _demand_room()
    text = PAGES / "samples" / f"{name}.txt"
    total = write_samples(text, count)
    try:
        _make_fresh(folder)
        (folder / "catalogue").mkdir()
        (folder / "catalogue" / "metrics.toml").write_text(_METRICS.format(name=name) + SAMPLE_COLUMNS)
        write_config(folder, url, concurrency=16, bounds="body_mb = 4096")
        job = Job(
            command=ours_command(pythons),
            folder=folder,
            pattern="lake/metrics/**/*.parquet",
            environment=ours_environment(pythons),
        )
        cost = _run(job)
        _verify(pythons, job, "", "value", count, total)
        return cost
    finally:
        text.unlink()
        shutil.rmtree(folder, ignore_errors=True)


def _make_fresh(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _run(job: Job) -> Cost:
    return run_measured(
        job.command, folder=job.folder, environment=job.environment, log=job.folder.with_name("log")
    )


def _verify(pythons: Interpreters, job: Job, key: str, checked: str, rows: int, total: int) -> None:
    """An empty `key` asks for rows and sum only."""
    found = ask(pythons, "tests.bench.verify", job.folder, job.pattern, checked, key)
    if (found["rows"], found["distinct"], found["checked"]) != (rows, rows if key else 0, total):
        raise RuntimeError(f"the lake holds {found}, not {rows} rows that add up to {total}")


def _demand_room() -> None:
    if shutil.disk_usage(BUILD).free < _FREE_BYTES:
        raise RuntimeError(f"this needs {_FREE_BYTES >> 30} GiB of disk below {BUILD}")


if __name__ == "__main__":
    main()
