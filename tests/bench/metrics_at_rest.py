"""Bytes and CPU time of a sample at rest: a day of scrapes as runs write it, and as one compacted file.

    python tests/bench/metrics_at_rest.py [--servers 10] [--series 250] [--minutes 1440] [--rounds 3] [--keep DIR]

The day is made up: names and labels like those of the API, a run for each minute with its own id and time, a time
for each server's scrape, one scrape in 500 missing. DuckDB, polars and pyarrow must read the compacted file back
equal.
"""

from __future__ import annotations

import argparse
import io
import math
import random
import statistics
import tempfile
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import polars
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from extractor.batch import ROWS_MAX, Stamp, stamp_schema
from extractor.catalog import load_catalog
from extractor.decode.openmetrics import read_metrics
from extractor.layout import sort_rows, writer_options
from extractor.schema import plan_schema

MIDNIGHT = datetime(2026, 1, 15, tzinfo=UTC)
EPOCH_MS = int(MIDNIGHT.timestamp() * 1000)
METRICS = load_catalog().endpoints["metrics"]
# Of a hundred series. A status that never moves or a variable; something counted; a level; a measured ratio.
SHARES = {"constant": 52, "counter": 28, "gauge": 14, "noise": 6}
LEVELS = (0.0, 0.0, 0.0, 1.0, 128.0, 16384.0, 134217728.0, 8053063680.0, 0.5, 99.95)
STATES = "data dirty flushed free misc old".split()
VERBS = (
    "commit delete prepare read_first read_key read_last read_next read_prev rollback update write".split()
)
COMMANDS = "begin change_db commit delete flush insert replace rollback select set_option update".split()
SUBJECTS = (
    "aborted innodb_data innodb_log key_cache open_tables qcache queries replica select sort table".split()
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    name: str
    type: str
    server: int
    label: tuple[str, str] | None
    kind: str

    @property
    def line(self) -> str:
        """The series as the text of a scrape has it, with a sample of 0."""
        service = f"orders-{self.server // 3:02d}"
        label = f'{self.label[0]}="{self.label[1]}", ' if self.label else ""
        return (
            f"# TYPE {self.name} {self.type}\n"
            f'{self.name}{{{label}namespace="db.{service}", server_name="Server-{self.server % 3}", '
            f'server_type="server", service_name="{service}", topology_type="primaryreplica"}} 0\n'
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Day:
    """Samples in the order of the scrapes, the length of each scrape, and the kind of each sample's series."""

    rows: pa.Table
    lengths: tuple[int, ...]
    kinds: pa.DictionaryArray


def make_series(servers: int, count: int, chance: random.Random) -> list[Series]:
    heads: list[tuple[str, str, tuple[str, str] | None]] = [
        *(("mariadb_global_status_buffer_pool_pages", "gauge", ("state", text)) for text in STATES),
        *(("mariadb_global_status_handlers_total", "counter", ("handler", text)) for text in VERBS),
        *(("mariadb_global_status_commands_total", "counter", ("command", text)) for text in COMMANDS),
    ]
    while len(heads) < count:
        number = len(heads)
        group = ("status", "variables")[number % 2]
        heads.append((f"mariadb_global_{group}_{SUBJECTS[number % len(SUBJECTS)]}_{number}", "gauge", None))
    kinds = [kind for kind, share in SHARES.items() for _ in range(math.ceil(count * share / 100))]
    chance.shuffle(kinds)
    return [
        Series(name=name, type=type_, server=server, label=label, kind=kind)
        for (name, type_, label), kind in zip(heads[:count], kinds, strict=False)
        for server in range(servers)
    ]


def values_of(kind: str, minutes: int, chance: random.Random) -> Iterator[float]:
    match kind:
        case "constant":
            level = chance.choice(LEVELS)
            yield from (level for _ in range(minutes))
        case "counter":
            rate = 10 ** chance.uniform(-2, 5)
            total, phase = chance.randrange(10 ** chance.randrange(1, 10)), chance.uniform(0, math.tau)
            for minute in range(minutes):
                expected = rate * (1 + math.sin(math.tau * minute / 1440 + phase) / 2)
                total += max(0, round(chance.gauss(expected, math.sqrt(expected) * 1.5)))
                yield float(total)
        case "gauge":
            step = chance.randrange(1, 200)
            for _ in range(minutes):
                step = max(0, step + chance.choice((-3, -2, -1, 0, 0, 0, 0, 0, 0, 1, 2, 3)))
                yield float(step)
        case _:
            middle = 10 ** chance.uniform(-3, 2)
            yield from (middle * chance.lognormvariate(0, 0.3) for _ in range(minutes))


def make_day(servers: int, series_count: int, minutes: int) -> Day:
    chance = random.Random(7)
    series = make_series(servers, series_count, chance)
    values = [array("d", values_of(one.kind, minutes, chance)) for one in series]
    phases = [chance.randrange(60_000) for _ in range(servers)]
    numbers, runs, samples, micros = array("i"), array("i"), array("d"), array("q")
    lengths: list[int] = []
    started: list[datetime] = []
    for minute in range(minutes):
        started.append(MIDNIGHT + timedelta(minutes=minute, seconds=chance.uniform(0, 2)))
        stamps = [
            EPOCH_MS + minute * 60_000 + phase + chance.choice((0, 0, 0, 1, 1, 2, 3, 5, 8))
            if chance.randrange(500)
            else 0
            for phase in phases
        ]
        before = len(numbers)
        for number, one in enumerate(series):
            if stamp := stamps[one.server]:
                numbers.append(number)
                samples.append(values[number][minute])
                micros.append(stamp * 1000)
        lengths.append(len(numbers) - before)
        runs.extend([minute] * lengths[-1])
    number, run = _array(numbers, pa.int32()), _array(runs, pa.int32())
    (head,) = read_metrics(io.BytesIO("".join(one.line for one in series).encode()), body_bytes_max=1 << 30)
    made = {
        **{name: head[name].take(number) for name in head.schema.names},
        "value": _array(samples, pa.float64()),
        "timestamp": _array(micros, pa.int64()),
        "_run_id": pa.array([f"{at:%Y%m%dT%H%M%SZ}-{chance.getrandbits(32):08x}" for at in started]).take(
            run
        ),
        "_extracted_at": pa.array([at + timedelta(seconds=chance.uniform(0.2, 1.5)) for at in started]).take(
            run
        ),
        "_account": pa.repeat(pa.scalar("acme"), len(run)),
        "_event_date": pa.repeat(pa.scalar(MIDNIGHT.date()), len(run)),
        "_rescued_data": pa.nulls(len(run), pa.string()),
    }
    stamp = Stamp(run_id="", account="acme", snapshot_at=MIDNIGHT, is_event=True)
    schema = stamp_schema(plan_schema(METRICS).arrow, stamp)
    return Day(
        rows=pa.table([made[field.name].cast(field.type) for field in schema], schema=schema),
        lengths=tuple(lengths),
        kinds=pa.array([one.kind for one in series]).dictionary_encode().take(number),
    )


def _array(numbers: array[int] | array[float], type_: pa.DataType) -> pa.Array:
    return pa.Array.from_buffers(type_, len(numbers), [None, pa.py_buffer(numbers)])


# --- what is compared ---------------------------------------------------------------------------------------


def write(path: Path, groups: Iterable[pa.Table], options: Mapping[str, object] | None) -> int:
    """Write row groups; without options those of the layout for a compacted file. Gives the size."""
    writer = None
    for group in groups:
        if writer is None:
            chosen = options or writer_options(group, compression="zstd", is_compacted=True)
            writer = pq.ParquetWriter(path, group.schema, **chosen)
        writer.write_table(group, row_group_size=group.num_rows)
    assert writer is not None
    writer.close()
    return path.stat().st_size


def write_runs(folder: Path, day: Day, options: Callable[[pa.Table], Mapping[str, object]]) -> int:
    size = start = 0
    for number, length in enumerate(day.lengths):
        rows = day.rows.slice(start, length)
        size += write(folder / f"{number:05d}.parquet", [rows], options(rows))
        start += length
    return size


def cut(rows: pa.Table) -> list[pa.Table]:
    return [rows.slice(start, ROWS_MAX) for start in range(0, rows.num_rows, ROWS_MAX)]


def measure(day: Day, folder: Path, rounds: int) -> Path:
    """Print bytes and CPU time of each layout, taken in turn; gives the compacted file."""
    plain = {"compression": "zstd", "write_page_index": True}
    ordered = list(sort_rows(day.rows, METRICS))
    whole = pa.concat_tables(ordered)
    best = folder / "compacted.parquet"
    ways: dict[str, Callable[[], int]] = {
        "a file for each run, pyarrow's defaults": lambda: write_runs(folder, day, lambda _: plain),
        "a file for each run, encodings chosen": lambda: write_runs(
            folder, day, lambda rows: writer_options(rows, compression="zstd")
        ),
        "one file in the order of runs, defaults": lambda: write(folder / "runs", cut(day.rows), plain),
        "one file by series and time, defaults": lambda: write(folder / "plain", cut(whole), plain),
        "one file by series and time, as compacted": lambda: write(best, ordered, None),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    sizes: dict[str, int] = {}
    sorting: list[float] = []
    for _ in range(rounds):
        for way, write_it in ways.items():
            start = time.process_time()
            sizes[way] = write_it()
            seconds[way].append(time.process_time() - start)
        start = time.process_time()
        for _group in sort_rows(day.rows, METRICS):
            pass
        sorting.append(time.process_time() - start)
    print(f"{'':45} {'bytes/sample':>12} {'CPU µs/sample':>14}")
    count = day.rows.num_rows
    for way in ways:
        spent = statistics.median(seconds[way]) / count * 1e6
        print(f"{way:45} {sizes[way] / count:12.2f} {spent:14.2f}")
    print(f"{'sorting':45} {'':12} {statistics.median(sorting) / count * 1e6:14.2f}")
    return best


def show_columns(path: Path, count: int) -> None:
    metadata = pq.read_metadata(path)
    sizes: dict[str, int] = {}
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(number)
            sizes[chunk.path_in_schema] = sizes.get(chunk.path_in_schema, 0) + chunk.total_compressed_size
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:6]
    print("of which", ", ".join(f"{name} {size / count:.2f}" for name, size in largest))


def show_kinds(day: Day, folder: Path) -> None:
    texts = []
    for kind in SHARES:
        rows = day.rows.filter(pc.equal(day.kinds.cast(pa.string()), pa.scalar(kind)))
        values = [group.select(["value"]) for group in sort_rows(rows, METRICS)]
        texts.append(f"{kind} {write(folder / 'kind', values, None) / rows.num_rows:.2f}")
    print("values of a series alone:", ", ".join(texts))


def check_readers(path: Path, expected: pa.Table) -> None:
    """Compare what each reader makes of the file with the rows themselves, in order.

    Raises:
        SystemExit: a value differs.
    """
    connection = duckdb.connect()
    readers: dict[str, Callable[[], pa.Table]] = {
        f"pyarrow {pa.__version__}": lambda: pq.read_table(path),
        f"DuckDB {duckdb.__version__}": lambda: connection.read_parquet(str(path)).to_arrow_table(),
        f"polars {polars.__version__}": lambda: polars.read_parquet(path).to_arrow(),
    }
    for reader, read in readers.items():
        found = read()
        for field in expected.schema:
            ours, theirs = pairs(expected[field.name]), pairs(found[field.name])
            if not all(a.equals(b.cast(a.type)) for a, b in zip(ours, theirs, strict=True)):
                raise SystemExit(f"{reader} reads other values of {field.name}")
        print(f"{reader} reads it back equal")


def pairs(column: pa.ChunkedArray) -> tuple[pa.Array, ...]:
    """A column as arrays to compare; of a map, which readers give in different types, lengths, keys and values."""
    if not pa.types.is_map(column.type) and not pa.types.is_list(column.type):
        return (column,)
    lists = column.cast(pa.list_(pa.struct([("key", pa.string()), ("value", pa.string())])))
    items = pc.list_flatten(lists)
    return pc.list_value_length(lists), pc.struct_field(items, "key"), pc.struct_field(items, "value")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--servers", type=int, default=10)
    parser.add_argument("--series", type=int, default=250, help="of each server")
    parser.add_argument("--minutes", type=int, default=1440)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="leave the files in this folder")
    given = parser.parse_args()
    day = make_day(given.servers, given.series, given.minutes)
    print(f"{day.rows.num_rows:,} samples of {given.servers * given.series:,} series\n")
    with tempfile.TemporaryDirectory() as made:
        folder = given.keep or Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        path = measure(day, folder, given.rounds)
        show_columns(path, day.rows.num_rows)
        show_kinds(day, folder)
        print()
        check_readers(path, pa.concat_tables(sort_rows(day.rows, METRICS)))


if __name__ == "__main__":
    main()
