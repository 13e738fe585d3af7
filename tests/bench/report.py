"""Runs → medians and ratios, as a table for people and for the documentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from tests.bench.cases import Case
from tests.bench.measure import Cost
from tests.bench.tools import TOOLS

__all__ = ("Run", "render_case", "render_exact", "write_docs")

BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of one tool that wrote exactly the rows it was to write."""

    case: str
    tool: str
    round: int
    cost: Cost
    startup_seconds: float = 0.0

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def render_case(
    case: Case, runs: Sequence[Run], expected: Mapping[str, int], *, delay_ms: float = 0.0
) -> str:
    """A Markdown table. Ratios are medians of the ratios within each round: all tools ran in each."""
    tools = list(dict.fromkeys(run.tool for run in runs))
    rows = expected["rows"]
    head = [
        "tool",
        "wall s",
        "krows/s",
        "rate / bare",
        "CPU s",
        "CPU / bare",
        "CPU / dlt",
        "peak MiB",
        "peak / dlt",
    ]
    if case.latency_ms:
        head.append("share of ideal")
    lines = [f"### {case.name}: {rows:,} rows, {expected['bytes'] / 1e6:,.0f} MB of JSON", ""]
    lines += [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for tool in sorted(tools, key=TOOLS.index):
        mine = [run for run in runs if run.tool == tool]
        wall = median(run.cost.wall_seconds for run in mine)
        cells = [
            tool,
            f"{wall:.2f}",
            f"{rows / wall / 1000:.1f}",
            _ratio(runs, "bare", tool, "wall_seconds"),
            f"{median(run.cost.cpu_seconds for run in mine):.2f}",
            _ratio(runs, tool, "bare", "cpu_seconds"),
            _ratio(runs, tool, "dlt", "cpu_seconds"),
            f"{median(run.cost.peak_mib for run in mine):.0f}",
            _ratio(runs, tool, "dlt", "peak_mib"),
        ]
        if case.latency_ms:
            cells.append(f"{median(_share(case, run) for run in mine):.3f}")
        lines.append(f"| {' | '.join(cells)} |")
    if case.latency_ms:
        lines += ["", f"{case.pages.longest_chain} pages in a chain; measured delay {delay_ms:.1f} ms."]
    return "\n".join(lines) + "\n"


def render_exact(found: Mapping[str, Mapping[str, float]]) -> str:
    """A Markdown table of what `tests.bench.exact` found for each case."""
    names = list(next(iter(found.values())))
    lines = ["### JSON to Arrow in one thread: MB of JSON per CPU second", ""]
    lines += [f"| pages | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    lines += [
        f"| {case} | {' | '.join(f'{rates[name]:g}' for name in names)} |" for case, rates in found.items()
    ]
    return "\n".join(lines) + "\n"


def write_docs(path: Path, text: str) -> None:
    """Put `text` between the two markers of a page; what stands around them stays.

    Raises:
        ValueError: the page has no such markers.
    """
    before, begin, rest = path.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path} has no {BEGIN} … {END}")
    path.write_text(f"{before}{begin}\n\n{text}\n{end}{after}")


def _ratio(runs: Sequence[Run], tool: str, base: str, figure: str) -> str:
    """`tool` over `base`, the median over the rounds in which both ran."""
    found = {
        name: {run.round: getattr(run.cost, figure) for run in runs if run.tool == name}
        for name in (tool, base)
    }
    both = found[tool].keys() & found[base].keys()
    return f"{median(found[tool][number] / found[base][number] for number in both):.3f}" if both else ""


def _share(case: Case, run: Run) -> float:
    """The least time that the longest chain of pages can take, over what the run took without its start-up."""
    ideal = case.pages.longest_chain * case.latency_ms / 1000
    return ideal / (run.cost.wall_seconds - run.startup_seconds)
