"""Rates of the decoders of text: log archives against `unzip -p FILE | wc -l`, metrics against their client.

    python tests/bench/formats.py [--megabytes 64] [--rounds 5] [GRAMMAR ...]
    python tests/bench/formats.py --megabytes 2000 --rounds 1 slow          # what a large member needs of memory

Both sides of a row read the same bytes, in turn; rates and ratios are those of the median round. The time is that
of the clock, for unzip with the pipeline as the shell runs it; `CPU` compares the seconds of all cores instead,
which depends less on what else the machine does. The peak is that of a process that only decodes the archive.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import random
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import cycle, islice
from pathlib import Path

from prometheus_client.parser import text_fd_to_metric_families

if importlib.util.find_spec("extractor") is None:
    sys.path.insert(0, str(Path(__file__).parents[2]))

from extractor.decode.log_archive import read_log_archive
from extractor.decode.openmetrics import read_metrics

REAL = Path(__file__).parents[3] / "shared" / "real-data"
START = datetime(2026, 1, 9, tzinfo=UTC)
BLOCK_LINES = 20_000
DISTINCT_BYTES = 64_000_000
LONGEST_BYTES = 1 << 40

WORDS = (
    "InnoDB: Buffer pool(s) load completed at",
    "Access denied for user 'nobody'@'localhost' (using password: YES)",
    "Slave SQL: Could not execute Write_rows_v1 event on table shop.orders; Duplicate entry",
    "Server socket created on IP: '127.0.0.1', port: '3306'.",
    "mariadbd: ready for connections, zażółć gęślą jaźń",
    "Aborted connection to db: 'shop' user: 'app' host: '10.0.3.7' (Got timeout reading communication packets)",
)
Lines = Iterator[str]


def moments(chance: random.Random) -> Iterator[datetime]:
    """Times of a busy log: some lines share a second."""
    moment = START
    while True:
        moment += timedelta(microseconds=int(chance.expovariate(1 / 300_000)))
        yield moment


def error_lines(chance: random.Random) -> Lines:
    for moment in moments(chance):
        level = chance.choice(("Note", "Note", "Note", "Warning", "ERROR"))
        stamp = f"{moment:%Y-%m-%d} {moment.hour:2d}:{moment:%M:%S}"
        yield f"{stamp} {chance.randrange(900)} [{level}] {message(chance)}"


def maxscale_lines(chance: random.Random) -> Lines:
    for moment in moments(chance):
        level = chance.choice(("error", "notice", "notice", "warning"))
        number = chance.randrange(10_000)
        yield f"{moment:%Y-%m-%d %H:%M:%S}   {level:<7}: ({number}) [mariadbmon] {message(chance)}"


def audit_lines(chance: random.Random) -> Lines:
    for number, moment in enumerate(moments(chance)):
        address = f"10.0.{chance.randrange(250)}.{chance.randrange(250)}"
        yield (
            f"{moment:%Y%m%d %H:%M:%S},db-1-0,app,{address},{chance.randrange(10_000)},{number},"
            f"QUERY,shop,'insert into orders(id, note) values({chance.getrandbits(30)}, \\'{message(chance)}\\')',0"
        )


def slow_lines(chance: random.Random) -> Lines:
    before = START
    for moment in moments(chance):
        if moment.replace(microsecond=0) != before:
            before = moment.replace(microsecond=0)
            yield f"# Time: {moment:%y%m%d} {moment.hour:2d}:{moment:%M:%S}"
        yield f"# User@Host: app[app] @  [10.0.0.{chance.randrange(250)}]"
        yield f"# Thread_id: {chance.randrange(10_000)}  Schema: shop  QC_hit: No"
        seconds = chance.expovariate(1)
        yield f"# Query_time: {seconds:.6f}  Lock_time: {seconds / 9:.6f}  Rows_sent: 0  Rows_examined: 77"
        yield f"# Rows_affected: 0  Bytes_sent: {chance.randrange(9999)}"
        yield f"SET timestamp={int(moment.timestamp())};"
        yield "select note, sum(amount)"
        yield f"  from orders where id > {chance.getrandbits(30)} and note like 'zażółć%' group by 1;"


def in_container(lines: Lines, chance: random.Random) -> Lines:
    """The lines behind the prefix that a container's runtime gives each."""
    for moment, line in zip(moments(chance), lines, strict=False):
        nanos = f"{moment:%Y-%m-%dT%H:%M:%S.%f}{chance.randrange(1000):03d}"
        yield f"{nanos}Z {chance.choice(('stdout', 'stderr'))} F {line}"


def with_continuations(lines: Lines, chance: random.Random) -> Lines:
    """The lines, each third followed by lines that continue it."""
    for line in lines:
        yield line
        if not chance.randrange(3):
            yield from (
                f"    at router session {chance.getrandbits(20)}",
                "",
                "  \tfrom orders where note = 'a'",
            )


def in_json(lines: Lines, chance: random.Random) -> Lines:
    return (json.dumps({"log": f"{line}\n"}, ensure_ascii=False) for line in lines)


def message(chance: random.Random) -> str:
    return f"{chance.choice(WORDS)} {chance.getrandbits(24)}"


def repeated(path: Path) -> Callable[[random.Random], Lines]:
    lines = path.read_text().splitlines()

    def forever(_: random.Random) -> Lines:
        while True:
            yield from lines

    return forever


GRAMMARS: Mapping[str, Callable[[random.Random], Lines]] = {
    "container error": lambda chance: in_container(error_lines(chance), chance),
    "container maxscale": lambda chance: in_container(maxscale_lines(chance), chance),
    "error": error_lines,
    "maxscale": maxscale_lines,
    "audit": audit_lines,
    "slow": slow_lines,
    "container slow": lambda chance: in_container(slow_lines(chance), chance),
    "container error, continued": lambda chance: with_continuations(
        in_container(error_lines(chance), chance), chance
    ),
    "error, continued": lambda chance: with_continuations(error_lines(chance), chance),
    "maxscale, continued": lambda chance: with_continuations(maxscale_lines(chance), chance),
    "audit, continued": lambda chance: with_continuations(audit_lines(chance), chance),
    "json of container error": lambda chance: in_json(in_container(error_lines(chance), chance), chance),
    "json of audit": lambda chance: in_json(audit_lines(chance), chance),
    "json of slow": lambda chance: in_json(slow_lines(chance), chance),
    **{f"real {path.stem}": repeated(path) for path in sorted(REAL.glob("logs/*.log"))},
}


def write_archive(path: Path, grammar: str, size_bytes: int) -> int:
    """Write a ZIP of one member of about that size; gives its exact size."""
    written = 0
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        name = "orders_dbpgf00000001_orders-0_log_2026-01-09.log"
        with archive.open(name, "w", force_zip64=True) as member:
            for block in cycle(blocks(GRAMMARS[grammar](random.Random(7)), min(size_bytes, DISTINCT_BYTES))):
                written += member.write(block)
                if written >= size_bytes:
                    return written
    raise AssertionError("blocks never end")


def blocks(lines: Lines, size_bytes: int) -> Iterator[bytes]:
    """So many bytes of lines, a few at a time."""
    left = size_bytes
    while left > 0:
        block = "".join(f"{line}\n" for line in islice(lines, BLOCK_LINES)).encode()
        left -= len(block)
        yield block


def count_by_shell(path: Path) -> int:
    done = subprocess.run(
        f"unzip -p {shlex.quote(str(path))} | wc -l", shell=True, check=True, capture_output=True
    )
    return int(done.stdout)


def count_decoded(path: Path) -> int:
    with path.open("rb") as source:
        batches = read_log_archive(source, ratio_max=1e9, member_bytes_max=LONGEST_BYTES)
        return sum(batch.num_rows for batch in batches)


def peak_mib(path: Path) -> float:
    """Peak resident memory of a process that decodes the archive."""
    command = [sys.executable, __file__, "--decode", str(path)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """Medians over the rounds: seconds of both sides, and how many times as fast ours is."""

    ours: float
    theirs: float
    ratio: float
    cpu_ratio: float
    counted: int


def compare(ours: Callable[[], int], theirs: Callable[[], int], rounds: int) -> Compared:
    """Run both in turn; they must count the same."""
    taken: list[tuple[tuple[float, float], tuple[float, float]]] = []
    counts = set()
    for _ in range(rounds):
        sides = []
        for count in (ours, theirs):
            wall, cpu = time.perf_counter(), cpu_seconds()
            counts.add(count())
            sides.append((time.perf_counter() - wall, cpu_seconds() - cpu))
        taken.append((sides[0], sides[1]))
    if len(counts) != 1:
        raise SystemExit(f"the two sides do not agree on how many there are: {sorted(counts)}")
    return Compared(
        ours=statistics.median(mine[0] for mine, _ in taken),
        theirs=statistics.median(other[0] for _, other in taken),
        ratio=statistics.median(other[0] / mine[0] for mine, other in taken),
        cpu_ratio=statistics.median(other[1] / mine[1] for mine, other in taken),
        counted=counts.pop(),
    )


def cpu_seconds() -> float:
    """Of this process and of the children that it waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def show_logs(grammars: list[str], *, size_bytes: int, rounds: int) -> None:
    print(
        f"{'log archive':28} {'ours MB/s':>10} {'lines/s':>11} {'unzip|wc MB/s':>14} {'ours/unzip':>11}"
        f" {'CPU':>5} {'peak MiB':>9}"
    )
    for grammar in grammars:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "logs.zip")
            size = write_archive(path, grammar, size_bytes)
            found = compare(partial(count_decoded, path), partial(count_by_shell, path), rounds)
            peak = peak_mib(path)
        print(
            f"{grammar:28} {size / found.ours / 1e6:10.0f} {found.counted / found.ours:11,.0f}"
            f" {size / found.theirs / 1e6:14.0f} {found.ratio:11.2f} {found.cpu_ratio:5.2f} {peak:9.0f}",
            flush=True,
        )


def scrape(samples: int) -> bytes:
    """A scrape of a hundred servers, in the form of the metrics API."""
    chance = random.Random(7)
    lines = []
    families = max(samples // 100, 1)
    for family in range(families):
        lines.append(f"# TYPE mariadb_global_status_{family} {chance.choice(('gauge', 'counter'))}")
        for server in range(100):
            labels = f'namespace="db.orders",server_name="orders-{server}",server_type="server"'
            stamp = 1767916800000 + chance.randrange(60_000)
            lines.append(f"mariadb_global_status_{family}{{{labels}}} {chance.uniform(0, 1e9):.3f} {stamp}")
    return "".join(f"{line}\n" for line in lines).encode()


def show_metrics(*, rounds: int) -> None:
    print(f"\n{'metrics':28} {'samples/s':>10} {'client':>11} {'ours/client':>12}")
    bodies = {"a generated scrape": scrape(100_000)}
    if (real := REAL / "metrics.prom").exists():
        text = real.read_bytes()
        bodies["the real scrape, repeated"] = text * (12_000_000 // len(text))
    for name, body in bodies.items():
        found = compare(partial(count_samples, body), partial(count_by_client, body), rounds)
        ours, theirs = found.counted / found.ours, found.counted / found.theirs
        print(f"{name:28} {ours:10,.0f} {theirs:11,.0f} {found.ratio:12.1f}", flush=True)


def count_samples(body: bytes) -> int:
    return sum(batch.num_rows for batch in read_metrics(io.BytesIO(body), body_bytes_max=LONGEST_BYTES))


def count_by_client(body: bytes) -> int:
    families = text_fd_to_metric_families(io.StringIO(body.decode()))
    return sum(len(family.samples) for family in families)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("grammars", nargs="*", metavar="GRAMMAR", help=f"of: {'; '.join(GRAMMARS)}; metrics")
    parser.add_argument("--megabytes", type=int, default=64, help="of text in each archive")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--decode", type=Path, metavar="ZIP", help="decode that and print the peak in MiB")
    chosen = parser.parse_args()
    if chosen.decode:
        count_decoded(chosen.decode)
        status = Path("/proc/self/status").read_text()
        print(int(status.partition("VmHWM:")[2].split()[0]) / 1024)
        return
    names = chosen.grammars or [*GRAMMARS, "metrics"]
    if unknown := set(names) - {*GRAMMARS, "metrics"}:
        sys.exit(f"no such grammar: {', '.join(sorted(unknown))}")
    logs = [name for name in names if name != "metrics"]
    if logs:
        show_logs(logs, size_bytes=chosen.megabytes * 1_000_000, rounds=chosen.rounds)
    if "metrics" in names:
        show_metrics(rounds=chosen.rounds)


if __name__ == "__main__":
    main()
