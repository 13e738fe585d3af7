"""A month of runs, every five minutes, on one lake: what it costs as it grows, and that readers are never wrong.

    make runs-8640

The API is scripted and the clock virtual; the lake is a folder of this machine. Two readers, processes of their
own, read all the while: one by the log, whose rows must be those of the commit that it saw, and one by glob, which
must never see a sample twice or lose one. In the end the lake is compacted and old snapshots are dropped.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from extractor.batch import Stamp
from extractor.catalog import load_catalog
from extractor.commit import Update, commit, publish, roll_forward
from extractor.commitlog import CommitLog, TableState
from extractor.compaction import compact
from extractor.config import Config, load_config
from extractor.decode.json import decode_rows
from extractor.decode.openmetrics import read_metrics
from extractor.errors import LakeError
from extractor.events import Event
from extractor.expiry import expire
from extractor.fetch import Request, Response
from extractor.lake import Lake
from extractor.lane import InlineExecutor
from extractor.lease import Leases
from extractor.pipeline import World, extract
from extractor.schema import plan_schema
from extractor.stores.local import LocalStore
from extractor.upkeep import Upkeep, UpkeepReport
from extractor.write import TableWriter, WriteSettings
from tests.bench.shapes import SAMPLE_COLUMNS
from tests.laws.simulation.clock import START, LoopClock, VirtualLoop

__all__ = ("Month", "check_by_glob", "check_by_log", "read_glob")

STEP = timedelta(minutes=5)
SERIES = 40
SERVICES = 25
FIRST = START.replace(hour=0, minute=0)

CATALOGUE = (
    """
[services]
path = "/services"
key  = ["id"]

[services.columns]
id = "string"
name = "string"
nodes = "int64"
size = "string"

[metrics]
path   = "/metrics"
format = "openmetrics"
key    = ["_series", "timestamp"]
sync   = { kind = "append", cursor = "timestamp" }
"""
    + SAMPLE_COLUMNS
)


def services_at(number: int) -> bytes:
    """The services at a run: about every fortieth run something is another than before."""
    epoch = number // 40
    rows = [
        {"id": f"dbs{one:03d}", "name": f"service {one}", "nodes": 1 + (one + epoch) % 3, "size": "sky-2x8"}
        for one in range(SERVICES + epoch % 5)
    ]
    return json.dumps(rows).encode()


def metrics_at(number: int) -> bytes:
    """One scrape: each series' newest sample; of half the series that of the scrape before comes again."""
    lines = ["# TYPE cpu gauge"]
    for one in range(SERIES):
        for back in (0, 1) if one % 2 else (0,):
            moment = FIRST + STEP * (number - back)
            if number >= back:
                value = (one * 7 + (number - back) * 3) % 97 / 8
                lines.append(
                    f'cpu{{namespace="dbs{one % SERVICES:03d}",server_name="s{one}",core="{one % 4}"}} '
                    f"{value} {int(moment.timestamp() * 1000)}"
                )
    return "\n".join([*lines, ""]).encode()


def samples_at(number: int) -> pa.RecordBatch:
    """The samples of a scrape that are new in it."""
    text = "\n".join(
        line
        for line in metrics_at(number).decode().splitlines()
        if not line or line[0] == "#" or line.endswith(f" {int((FIRST + STEP * number).timestamp() * 1000)}")
    )
    (batch,) = read_metrics(io.BytesIO(f"{text}\n".encode()), body_bytes_max=1 << 20)
    return batch


def _fitted(rows: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The rows with the table's columns: what they do not have is null."""
    columns = [
        rows[field.name].cast(field.type)
        if field.name in rows.schema.names
        else pa.nulls(rows.num_rows, field.type)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def rows_after(number: int) -> int:
    """How many samples there are after a run, counted from 0: each once."""
    return SERIES * (number + 1)


def number_of(moment: datetime) -> int:
    return int((moment - FIRST) / STEP)


class _Network:
    """What `World.network` makes: an API that answers from the two functions above."""

    def __init__(self, clock: LoopClock) -> None:
        self.received_bytes = 0
        self._clock = clock

    async def __aenter__(self) -> _Network:
        return self

    async def __aexit__(self, *_: object) -> None:
        return

    async def fetch(self, request: Request) -> Response:
        now = self._clock.now()
        number = number_of(now)
        body = services_at(number) if request.path == "/services" else metrics_at(number)
        self.received_bytes += len(body)
        return Response(
            status=200,
            headers={"date": format_datetime(now.replace(microsecond=0), usegmt=True)},
            body=body,
            spool=None,
            size_bytes=len(body),
            elapsed_seconds=0.0,
            received_at=now,
        )


class _VirtualStore(LocalStore):
    """A folder whose clock is the virtual one."""

    def __init__(self, root: Path, clock: LoopClock) -> None:
        super().__init__(root)
        self._clock = clock

    def now(self) -> datetime:
        return self._clock.now()


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """What a lake takes, and what its last run took."""

    runs: int
    data_files: int
    data_bytes: int
    log_files: int
    log_bytes: int
    old_files: int
    commit_seconds: float
    commit_bytes: int
    run_seconds: float


@dataclass
class Month:
    """Runs on one lake under a virtual clock."""

    folder: Path
    runs: int = 0
    is_bare: bool = False
    """True to leave the reading out, which takes most of the time."""
    clock: LoopClock = field(default_factory=lambda: LoopClock(FIRST - START))
    seconds: list[float] = field(default_factory=list)
    commit_seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        catalogue = self.folder / "catalogue"
        catalogue.mkdir(exist_ok=True)
        (catalogue / "month.toml").write_text(CATALOGUE)
        self.lake = self.folder / "lake"
        self.store = _VirtualStore(self.lake, self.clock)
        self.endpoints = load_catalog([catalogue], builtin=False).endpoints
        self.summary: Mapping[str, object] = {}
        self.config: Config = load_config(
            environment={},
            overrides={
                "source.base_url": "https://api.example.test",
                "source.builtin": False,
                "source.catalogs": (str(catalogue),),
                "lake.uri": str(self.lake),
                "limits.requests_per_second": 1000.0,
            },
        )

    def next(self) -> None:
        """One more run, of the kind that was asked for; the first one is always whole."""
        (self.run_bare if self.is_bare and self.runs else self.run)()

    def run(self) -> None:
        """One more run, five minutes after the last."""
        self.clock.idle_seconds = max(self.clock.idle_seconds, self.runs * STEP.total_seconds())
        loop = VirtualLoop(self.clock.monotonic())
        self.clock.loop = loop
        moments: dict[str, float] = {}

        def observe(event: Event) -> None:
            moments[type(event).__name__] = time.perf_counter()

        world = World(
            clock=self.clock,
            chance=lambda: 0.5,
            environment={"SKYSQL_API_KEY": "key"},
            executor=InlineExecutor(),
            store=self.store,
            network=lambda url, **given: _Network(self.clock),  # type: ignore[arg-type,return-value]
        )
        began = time.perf_counter()
        report = loop.play(extract(self.config, observer=observe, world=world))
        ended = time.perf_counter()
        self.clock.idle_seconds = loop.time()
        self.clock.loop = None
        assert report.exit_code == 0, report.message
        self.summary = report.to_json()
        self.runs += 1
        self.seconds.append(ended - began)
        # From the last table that is judged to the end: the put of the entry, and its publication.
        self.commit_seconds.append(ended - moments["TableFinished"])

    def run_bare(self) -> None:
        """As `run`, without reading and without looking for samples that came before: files and the commit."""
        self.clock.idle_seconds = max(self.clock.idle_seconds, self.runs * STEP.total_seconds())
        number, began, now = self.runs, time.perf_counter(), self.clock.now()
        log = CommitLog(self.store)
        newest = log.newest()
        run_id = f"{now:%Y%m%dT%H%M%SZ}-{number:08x}"
        leases = Leases(
            self.store,
            run_id=run_id,
            clock=self.clock,
            tables=[("metrics", "default"), ("services", "default")],
        )
        leases.acquire()
        roll_forward(self.store, log, leases)
        states: list[TableState] = []
        for name, batch in (("metrics", samples_at(number)), ("services", None)):
            reference = newest.tables[name, "default"] if newest else None
            prior = log.state_of(newest, name, "default") if newest else None
            is_same = name == "services" and number % 40 != 0 and now.hour + now.minute > 0
            if prior is not None and is_same:
                states.append(replace(prior, proved_by=run_id))
                continue
            endpoint = self.endpoints[name]
            stamp = Stamp(run_id=run_id, account="default", snapshot_at=now, is_event=name == "metrics")
            schema = plan_schema(endpoint)
            writer = TableWriter(
                self.store, endpoint, stamp, settings=WriteSettings(), snapshot_date=now.date().isoformat()
            )
            rows = batch if batch is not None else decode_rows([services_at(number)], schema).batch
            writer.add(_fitted(rows, schema.arrow), window="", received_at=now)
            staged = tuple(item.file for item in writer.finish(schema))
            files = (*(prior.files if prior and name == "metrics" else ()), *staged)
            states.append(
                TableState(
                    table=name,
                    account="default",
                    sync=endpoint.sync.kind,
                    status="complete",
                    reason="end of chain seen",
                    rows=sum(file.rows for file in files),
                    files=files,
                    columns=schema.to_json(),
                    state={},
                    run_id=run_id,
                    proved_by=run_id,
                    snapshot_at=None if name == "metrics" else now.isoformat(),
                    content="",
                )
            )
            assert reference is None or newest is not None
        committing = time.perf_counter()
        entry = commit(
            self.store,
            log,
            run_id=run_id,
            updates=[
                Update(
                    table=state.table,
                    account="default",
                    state=state,
                    expected=newest.tables[state.table, "default"] if newest else None,
                )
                for state in states
            ],
            summary=self.summary,
            source={"learnt_rates": {"default": 10.0}},
            started_at=now,
            clock=self.clock,
            leases=leases,
        )
        publish(self.store, log, entry)
        ended = time.perf_counter()
        leases.release()
        self.runs += 1
        self.clock.idle_seconds += 2
        self.seconds.append(time.perf_counter() - began)
        self.commit_seconds.append(ended - committing)

    def compact(self) -> UpkeepReport:
        return compact(self.config, upkeep=self._upkeep("compact"))

    def expire(self, **given: object) -> UpkeepReport:
        return expire(self.config, upkeep=self._upkeep("expire"), **given)  # type: ignore[arg-type]  # as given

    def _upkeep(self, verb: str) -> Upkeep:
        return Upkeep(self.config, verb, store=self.store, clock=self.clock)

    def size(self) -> Size:
        """What there is now; the times are medians of the last nine runs."""
        data = log = old = data_bytes = log_bytes = 0
        for stored in self.store.list(""):
            if stored.path.startswith("_extractor/old/"):
                old += 1
            elif stored.path.startswith("_extractor/"):
                log, log_bytes = log + 1, log_bytes + stored.size_bytes
            else:
                data, data_bytes = data + 1, data_bytes + stored.size_bytes
        before = {stored.path for stored in self.store.list("_extractor")}
        self.next()
        written = [stored for stored in self.store.list("_extractor") if stored.path not in before]
        wrote = [stored for stored in written if "/log/" in stored.path or "/lists/" in stored.path]
        return Size(
            runs=self.runs - 1,
            data_files=data,
            data_bytes=data_bytes,
            log_files=log,
            log_bytes=log_bytes,
            old_files=old,
            commit_seconds=sorted(self.commit_seconds[-9:])[len(self.commit_seconds[-9:]) // 2],
            commit_bytes=sum(stored.size_bytes for stored in wrote),
            run_seconds=sorted(self.seconds[-9:])[len(self.seconds[-9:]) // 2],
        )


# --- readers ------------------------------------------------------------------------------------------------


def check_by_log(lake: Path) -> int:
    """Read the metrics of the newest commit: they must be those of its run, each once; gives the rows."""
    reader = Lake(LocalStore(lake))
    entry = reader.entry()
    table = reader.table("metrics", as_of=entry.run_id)
    # As-of a run is its last entry: the newest one that this reader has seen, or one that came since.
    expected = rows_after(
        number_of(datetime.strptime(entry.run_id[:16], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC))
    )
    found = table.to_arrow().select(["_series", "timestamp"])
    assert found.num_rows == expected, f"{found.num_rows} rows by the log, {expected} are right"
    assert found.group_by(["_series", "timestamp"]).aggregate([]).num_rows == expected, "a sample twice"
    return expected


def read_glob(lake: Path) -> pa.Table:
    """All samples that a glob finds. Raises: FileNotFoundError where files were exchanged meanwhile."""
    parts = [
        pq.ParquetFile(path).read(columns=["_series", "timestamp"], use_threads=False)
        for path in sorted((lake / "metrics").glob("account=*/event_date=*/*.parquet"))
    ]
    schema = pa.schema([("_series", pa.int64()), ("timestamp", pa.timestamp("us", "UTC"))])
    return pa.concat_tables([schema.empty_table(), *parts])


def check_by_glob(lake: Path, seen: int) -> int:
    """Read by glob: no sample twice, and none less than before; gives the rows. Raises: as `read_glob`."""
    found = read_glob(lake)
    distinct = found.group_by(["_series", "timestamp"]).aggregate([]).num_rows
    assert distinct == found.num_rows, f"{found.num_rows - distinct} samples twice by glob"
    assert distinct >= seen, f"{seen} rows before, {distinct} now"
    return distinct


def _read_on(kind: str, lake: Path) -> None:
    """Read until told to stop by the end of stdin, resting three times as long as each reading took."""
    import threading

    is_over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), is_over.set()), daemon=True).start()
    readings = again = rows = 0
    while not is_over.is_set():
        began = time.perf_counter()
        if (lake / "_extractor/latest.json").exists():
            try:
                rows = check_by_log(lake) if kind == "log" else check_by_glob(lake, rows)
                readings += 1
            except FileNotFoundError:
                again += 1
            except LakeError as error:
                # An hour of the virtual clock is a moment: grace periods end while this reads.
                if "grace period is over" not in error.message:
                    raise
                again += 1
        is_over.wait(min(30.0, 0.05 + 3 * (time.perf_counter() - began)))
    print(json.dumps({"readings": readings, "again": again, "rows": rows}))


@contextmanager
def reading(kind: str, lake: Path) -> Iterator[dict[str, int]]:
    """A reader at work; what it has to say is in the mapping afterwards. Raises: AssertionError if it failed."""
    told: dict[str, int] = {}
    reader = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.runs", "--read", kind, "--lake", str(lake)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield told
    finally:
        out, errors = reader.communicate("", timeout=300)
    assert reader.returncode == 0, f"the reader by {kind} failed:\n{errors}"
    told.update(json.loads(out))


# --- the table ----------------------------------------------------------------------------------------------

_HEAD = (
    f"{'':34} {'runs':>6} {'data files':>10} {'data MB':>8} {'log files':>9} {'log MB':>7} {'old files':>9} "
    f"{'run ms':>7} {'commit ms':>9} {'commit kB':>9}"
)


def show(what: str, size: Size) -> None:
    print(
        f"{what:34} {size.runs:6,} {size.data_files:10,} {size.data_bytes / 1e6:8.2f} {size.log_files:9,} "
        f"{size.log_bytes / 1e6:7.2f} {size.old_files:9,} {size.run_seconds * 1e3:7.0f} "
        f"{size.commit_seconds * 1e3:9.0f} {size.commit_bytes / 1e3:9.1f}",
        flush=True,
    )


def play(folder: Path, runs: int, marks: Sequence[int], *, is_bare: bool) -> None:
    """The month itself, with its table."""
    month = Month(folder, is_bare=is_bare)
    print(_HEAD)
    with ExitStack() as stack:
        by_log = stack.enter_context(reading("log", month.lake))
        by_glob = stack.enter_context(reading("glob", month.lake))
        began = time.perf_counter()
        while month.runs < runs:
            if month.runs in marks:
                show("", month.size())
            else:
                month.next()
        show("before compact", month.size())
        report = month.compact()
        show(f"after compact ({report.seconds:.1f} s of the virtual clock)", month.size())
        report = month.expire(keep_last=10)
        show("after expire --keep-last 10", month.size())
        for _ in range(13):
            month.next()
        show("after their grace period", month.size())
        print(f"\n{time.perf_counter() - began:,.0f} s in all")
    print(
        f"by the log: {by_log['readings']} readings, each right, {by_log['again']} begun anew after a grace period"
    )
    print(
        f"by glob: {by_glob['readings']} readings without a sample twice or lost, {by_glob['again']} begun anew"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=8640)
    parser.add_argument("--marks", type=int, nargs="*", default=[10, 100, 1000, 4000])
    parser.add_argument(
        "--bare", action="store_true", help="no reading, only files and commits: ten times as fast"
    )
    parser.add_argument("--keep", type=Path, help="leave the lake in this folder")
    parser.add_argument("--read", choices=["log", "glob"], help=argparse.SUPPRESS)
    parser.add_argument("--lake", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.read:
        _read_on(given.read, given.lake)
        return
    with tempfile.TemporaryDirectory() as made:
        play(given.keep or Path(made), given.runs, given.marks, is_bare=given.bare)


if __name__ == "__main__":
    main()
