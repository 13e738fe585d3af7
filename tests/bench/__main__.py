"""`python -m tests.bench`: run tools over cases in turn, check what they wrote, print what it cost.

This module and what it imports stay within the standard library, see `run_measured`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.ask import ask
from tests.bench.cases import CASES, EXACT_CASES, PEER_CASES, Case, parse_case
from tests.bench.measure import Cost, run_measured
from tests.bench.report import Run, render_case, render_exact, write_docs
from tests.bench.server import measure_delay, running
from tests.bench.shapes import SHAPES
from tests.bench.tools import BUILD, PAGES, TOOLS, TOP, Interpreters, Job, make_job

Expected = dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Where one call of the benchmark reads and writes, and with what."""

    url: str
    folder: Path
    pythons: Interpreters


def main() -> None:
    given = _arguments()
    pythons = Interpreters.chosen(given.python)
    cases = [parse_case(name) for name in given.case or CASES]
    expected = {case.name: ask(pythons, "tests.bench.pages", PAGES, case.name) for case in cases}
    _make_empty()
    scratch = Path(tempfile.mkdtemp(prefix="run-", dir=BUILD))
    texts: dict[str, str] = {}
    runs: list[Run] = []
    try:
        latencies = tuple(sorted({case.latency_ms for case in cases if case.latency_ms}))
        with running(PAGES, scratch / "nginx", latencies_ms=latencies) as url:
            bench = Bench(url=url, folder=scratch, pythons=pythons)
            for case in cases:
                delay_ms = (
                    measure_delay(url, f"/late/{case.latency_ms}/empty/e00") if case.latency_ms else 0.0
                )
                done = _run_case(
                    bench, case, given.tool or _tools(case, given.case), given.rounds, expected[case.name]
                )
                texts[case.name] = render_case(case, done, expected[case.name], delay_ms=delay_ms)
                print(texts[case.name], flush=True)
                runs += done
    except (FileNotFoundError, RuntimeError) as failure:
        sys.exit(f"tests.bench: {failure}")
    finally:
        if given.keep:
            print(f"kept: {scratch}", file=sys.stderr)
        else:
            shutil.rmtree(scratch)
    if not given.case:
        texts["exact"] = render_exact(
            {name: ask(pythons, "tests.bench.exact", PAGES, name, 5) for name in EXACT_CASES}
        )
        print(texts["exact"])
    (BUILD / "results.json").write_text(json.dumps([run.to_json() for run in runs], indent=1))
    if given.write_docs:
        write_docs(TOP / "docs/performance.md", "\n".join(texts.values()))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    parser.add_argument("--case", type=_names, help=f"with commas; by default {','.join(CASES)}")
    parser.add_argument(
        "--tool", type=_tool_names, help=f"with commas, of {','.join(TOOLS)}; the default is by case"
    )
    parser.add_argument("--rounds", type=int, default=3, help="how often each tool runs, in turn (3)")
    parser.add_argument("--python", type=Path, help="measure the working tree with this interpreter")
    parser.add_argument("--keep", action="store_true", help="leave what the last run wrote")
    parser.add_argument("--write-docs", action="store_true", help="put the tables into docs/performance.md")
    return parser.parse_args()


def _names(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        try:
            parse_case(name)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
    return names


def _tool_names(text: str) -> list[str]:
    names = text.split(",")
    if not set(names) <= set(TOOLS):
        raise argparse.ArgumentTypeError(f"there are {', '.join(TOOLS)}")
    return names


def _tools(case: Case, asked: Sequence[str] | None) -> tuple[str, ...]:
    """All that take part in a full run; the two that matter where a case is asked for by name."""
    if asked:
        return ("ours", "bare")
    if case.latency_ms:
        return ("ours", "bare")
    return (
        ("ours", "bare", "limit", "dlt", "dlt-arrow")
        if case.name in PEER_CASES
        else ("ours", "bare", "limit")
    )


def _run_case(bench: Bench, case: Case, tools: Sequence[str], rounds: int, expected: Expected) -> list[Run]:
    """Each tool once in each round, beginning with another one each time."""
    runs = []
    for number in range(rounds):
        first = number % len(tools)
        for tool in [*tools[first:], *tools[:first]]:
            startup = _run(bench, tool, case, None).wall_seconds if case.latency_ms else 0.0
            cost = _run(bench, tool, case, expected)
            runs.append(Run(case=case.name, tool=tool, round=number, cost=cost, startup_seconds=startup))
            print(
                f"{case.name} {number + 1}/{rounds} {tool:10} wall {cost.wall_seconds:7.2f} s  "
                f"cpu {cost.cpu_seconds:7.2f} s  peak {cost.peak_mib:6.0f} MiB  startup {startup:5.2f} s",
                file=sys.stderr,
                flush=True,
            )
    return runs


def _run(bench: Bench, tool: str, case: Case, expected: Expected | None) -> Cost:
    """What one run cost; without `expected` it is one of no rows.

    Raises:
        RuntimeError: the run failed, or its files do not hold exactly the rows that were served.
    """
    folder = bench.folder / "out"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    job = make_job(tool, case, bench.url, PAGES, folder, bench.pythons, empty=expected is None)
    cost = run_measured(job.command, folder=folder, environment=job.environment, log=bench.folder / "log")
    if expected is not None:
        _verify(bench, job, SHAPES[case.pages.shape].checked, expected)
    return cost


def _verify(bench: Bench, job: Job, checked: str, expected: Expected) -> None:
    found = ask(bench.pythons, "tests.bench.verify", job.folder, job.pattern, checked)
    wanted = {"rows": expected["rows"], "distinct": expected["rows"], "checked": expected["checked"]}
    if {key: found[key] for key in wanted} != wanted:
        raise RuntimeError(f"{' '.join(job.command)} wrote {found}, not {wanted}")


def _make_empty() -> None:
    place = PAGES / "empty" / "e00"
    place.mkdir(parents=True, exist_ok=True)
    (place / "p.json").write_text('{"data":[],"next_page_token":""}')


if __name__ == "__main__":
    main()
