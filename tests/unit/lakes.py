"""Small lakes for the tests of what changes them: rows by id, in tables `services`, `users` and `metrics`."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from extractor.commit import Update, clean_orphans, commit, publish
from extractor.commitlog import CommitLog, LogEntry, TableState
from extractor.config import Config, load_config
from extractor.lake import Lake
from extractor.store import Store, staged_path
from extractor.stores.memory import MemoryStore, PowerLost
from extractor.upkeep import Upkeep
from extractor.write import DataFile

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)

CATALOGUE = """
[services]
path = "/services"
key = ["id"]

[users]
path = "/users"
key = ["id"]

[bills]
path = "/bills"
sync = { kind = "window", from_param = "from", to_param = "to", format = "date", step = "1d", replace = true }

[metrics]
path = "/metrics"
format = "openmetrics"
key = ["_series", "timestamp"]
sync = { kind = "append", cursor = "timestamp" }

[notices]
path = "/notices"
key = ["id"]
sync = { kind = "window", from_param = "from", to_param = "to", format = "date", step = "1d" }

[notices.columns]
id = "string"
"""


@dataclass
class Watch:
    """A clock that is set by hand."""

    moment: datetime = NOON

    def monotonic(self) -> float:
        return self.moment.timestamp()

    def now(self) -> datetime:
        return self.moment

    def pass_seconds(self, seconds: float) -> None:
        self.moment += timedelta(seconds=seconds)

    async def sleep_until(self, deadline: float) -> None:
        raise NotImplementedError


@dataclass
class SmallLake:
    """A lake, and the clock of all who write it; each run is a minute after the last."""

    store: Store
    config: Config
    watch: Watch
    waits: list[str] = field(default_factory=list)
    starts: dict[str, datetime] = field(default_factory=dict)
    """Of each run; one that commits again has begun only once."""

    @property
    def lake(self) -> Lake:
        return Lake(self.store)

    def upkeep(self, verb: str = "compact", *, grace_seconds: float = 3600) -> Upkeep:
        """A call whose pauses move the clock, so that what waits for a dead process gets its turn."""
        return Upkeep(
            self.config,
            verb,
            store=self.store,
            clock=self.watch,
            pause=lambda seconds: self.watch.pass_seconds(30),
            note=self.waits.append,
            grace_seconds=grace_seconds,
        )

    def run(self, run_id: str, *tables: tuple[str, str, pa.Table], is_published: bool = True) -> LogEntry:
        """A run that found these rows: table, the folder below its account, rows."""
        self.watch.pass_seconds(60)
        log = self.lake.log
        newest = log.newest()
        updates = []
        for name, folder, rows in tables:
            key = (name, "default")
            known = newest.tables.get(key) if newest else None
            before = log.state_of(newest, *key).files if newest and known else ()
            part = sum(f"/{run_id}-" in file.path for file in before)
            new = self._stage(run_id, name, folder, rows, part)
            is_event = folder.startswith("event_date=")
            window = folder.partition("/")[0]
            is_windowed = window.startswith("window=")
            kept = [file for file in before if is_event or (is_windowed and f"/{window}/" not in file.path)]
            files = (*kept, new)
            state = TableState(
                table=name,
                account="default",
                sync="append"
                if name == "metrics"
                else "window"
                if is_event or "window" in folder
                else "snapshot",
                status="complete",
                reason="",
                rows=sum(file.rows for file in files),
                files=tuple(files),
                columns=(),
                state={},
                run_id=run_id,
                proved_by=run_id,
                snapshot_at=None if is_event else self.watch.now().isoformat(),
                content="",
            )
            updates.append(Update(table=name, account="default", state=state, expected=known))
        entry = commit(
            self.store,
            log,
            run_id=run_id,
            updates=updates,
            summary={},
            source={"learnt_rates": {"default": 7.0}},
            started_at=self.starts.setdefault(run_id, self.watch.now()),
            clock=self.watch,
            leases=None,
        )
        if is_published:
            publish(self.store, log, entry)
        return entry

    def _stage(self, run_id: str, name: str, folder: str, rows: pa.Table, part: int) -> DataFile:
        is_event = folder.startswith("event_date=")
        below = folder if is_event else f"{folder}/run={run_id}"
        file = f"{run_id}-{part:05d}" if is_event else "part-00000"
        path = f"{name}/account=default/{below}/{file}.parquet"
        written = io.BytesIO()
        pq.write_table(rows, written)
        content = written.getvalue()
        self.store.put(staged_path(run_id, path), content)
        partition = (("account", "default"), *(tuple(part.split("=")) for part in below.split("/")))
        return DataFile(
            path=path,
            rows=rows.num_rows,
            size_bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            partition=partition,  # type: ignore[arg-type]  # pairs
        )

    def ids(self, table: str, as_of: str | None = None) -> list[str]:
        """The ids by the log, sorted."""
        return sorted(self.lake.table(table, as_of=as_of).to_arrow()["id"].to_pylist())

    def glob_ids(self, table: str) -> list[str]:
        """The ids in all files that stand in the table's folder, sorted."""
        found: list[str] = []
        for stored in self.store.list(table):
            found += pq.read_table(io.BytesIO(self.store.read(stored.path)))["id"].to_pylist()
        return sorted(found)

    def places(self, table: str) -> list[str]:
        return [stored.path.removeprefix(f"{table}/account=default/") for stored in self.store.list(table)]

    def hidden(self, folder: str) -> list[str]:
        return [stored.path for stored in self.store.list(f"_extractor/{folder}")]

    def clean(self) -> None:
        """Remove what runs left in staging that nobody will finish."""
        clean_orphans(self.store, CommitLog(self.store), live_runs=(), resume_seconds=0)

    def rot(self, path: str) -> None:
        """Let a file hold another value than was written, in a form that every reader accepts."""
        table = pq.read_table(io.BytesIO(self.store.read(path)))
        written = io.BytesIO()
        pq.write_table(table.set_column(0, "id", pa.array(["rot"] * table.num_rows)), written)
        self.store.put(path, written.getvalue())

    def check_files(self, as_of: Sequence[str]) -> None:
        """Every file that the log names after these runs is what it says."""
        for run in as_of:
            for row in self.lake.files(as_of=run):
                content = self.store.read(row.path)
                assert hashlib.sha256(content).hexdigest() == row.sha256, row.path
                assert pq.read_metadata(io.BytesIO(content)).num_rows == row.rows, row.path


def cut_off(
    folder: Path,
    fill: Callable[[SmallLake], object],
    call: Callable[[SmallLake], object],
    *,
    keep_unsynced: bool,
    every: int = 1,
) -> Iterator[SmallLake]:
    """The lake as a call leaves it that loses its power at a step, for every so many of its steps."""

    def filled() -> tuple[SmallLake, MemoryStore]:
        watch = Watch()
        store = MemoryStore(clock=watch.now)
        lake = small_lake(store, folder, watch)
        fill(lake)
        return lake, store

    lake, store = filled()
    store.steps = 0
    call(lake)
    for after_steps in range(int(keep_unsynced) % every, store.steps, every):
        lake, store = filled()
        store.lose_power(after_steps=after_steps)
        with pytest.raises(PowerLost):
            call(lake)
        store.crash(keep_unsynced=keep_unsynced)
        yield lake


def rows(run_id: str, *ids: str, **more: pa.Array) -> pa.Table:
    return pa.table(
        {"id": pa.array(ids, pa.string()), **more, "_run_id": pa.array([run_id] * len(ids), pa.string())}
    )


def small_lake(store: Store, folder: Path, watch: Watch, **settings: object) -> SmallLake:
    catalogue = folder / "catalogue"
    catalogue.mkdir(parents=True, exist_ok=True)
    (catalogue / "small.toml").write_text(CATALOGUE)
    overrides: Mapping[str, object] = {
        "source.catalogs": (str(catalogue),),
        "source.builtin": False,
        "lake.uri": str(folder / "lake"),
        **settings,
    }
    return SmallLake(store=store, config=load_config(environment={}, overrides=overrides), watch=watch)
