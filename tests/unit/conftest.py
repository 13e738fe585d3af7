"""A lake that grows night by night, by the way that a run's rows take: decoded, settled, committed, published."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from extractor.batch import Stamp
from extractor.commit import Update, commit, old_path, publish
from extractor.commitlog import CommitLog, LogEntry
from extractor.config import Checks
from extractor.decode.json import decode_rows
from extractor.endpoint import Column, Endpoint, Sync, Window, parse_type
from extractor.lake import Lake
from extractor.ledger import Ledger, OpenChain, Outcome
from extractor.paging import Chain
from extractor.plan import Span
from extractor.schema import plan_schema
from extractor.settle import Reading, settle_table
from extractor.store import Store, staged_path
from extractor.stores.local import LocalStore
from extractor.stores.memory import MemoryStore
from extractor.write import TableWriter, WriteSettings
from tests.unit.lakes import SmallLake, Watch, small_lake

FIRST = datetime(2026, 3, 1, 2, tzinfo=UTC)
NIGHT = timedelta(days=1)
EVENTS = Sync(
    kind="window",
    window=Window(from_param="from", to_param="to", step="1d", lookback="1h", cursor="at"),
    cursor="at",
)
BILLS = Sync(kind="window", window=Window(from_param="y", to_param="m", step="1M", replace=True))


@dataclass
class Nights:
    """Run `night(...)` once a night; `lake` reads what came of it."""

    store: Store = field(default_factory=MemoryStore)
    types: dict[str, str] = field(default_factory=lambda: {"id": "string"})
    key: tuple[str, ...] = ("id",)
    hours: float = 24
    """From one run to the next."""
    late: dict[int, timedelta] = field(default_factory=dict)
    """How far off the clock is in some of the runs."""
    count: int = 0

    @property
    def lake(self) -> Lake:
        return Lake(self.store)

    def moment(self, number: int) -> datetime:
        """When the run of a night began; the first one is night 1."""
        return FIRST + (number - 1) * timedelta(hours=self.hours) + self.late.get(number, timedelta(0))

    def night(
        self,
        tables: Mapping[str, Sequence[Mapping[str, object]]],
        *,
        syncs: Mapping[str, Sync] | None = None,
        policy: str = "evolve",
        account: str = "default",
        moves: bool = True,
        rewrite: Callable[[pa.Table], pa.Table] | None = None,
    ) -> LogEntry:
        """Commit the rows of some tables, as the answers had them; `syncs` says which are no snapshots.

        `rewrite` changes what the files hold; the log then knows their bytes, but not what is in them.

        Rows of windows stand in the window that their `window` names, which is no column.
        """
        self.count += 1
        run_id = f"night-{self.count}"
        log = CommitLog(self.store)
        newest = log.newest()
        updates = []
        for name, rows in tables.items():
            endpoint = self.endpoint(name, (syncs or {}).get(name, Sync(kind="snapshot")))
            updates.append(self._settle(endpoint, rows, run_id, log, newest, policy, account))
        entry = commit(
            self.store,
            log,
            run_id=run_id,
            updates=[
                update if rewrite is None else self._rewritten(update, rewrite)
                for update in updates
                if update is not None
            ],
            summary={},
            source={},
            started_at=self.moment(self.count),
            clock=Watch(self.moment(self.count)),
            leases=None,
        )
        if moves:
            publish(self.store, log, entry)
        return entry

    def merge(self, name: str) -> None:
        """Put the files of a table into one, as compaction does; it counts as a night."""
        self.count += 1
        run_id = f"night-{self.count}"
        log = CommitLog(self.store)
        newest = log.newest()
        assert newest is not None
        state = log.state_of(newest, name, "default")
        sink = io.BytesIO()
        parts = [pq.read_table(io.BytesIO(self.store.read(file.path))) for file in state.files]
        pq.write_table(pa.concat_tables(parts), sink)
        content = sink.getvalue()
        merged = msgspec.structs.replace(
            state.files[0],
            path=f"{state.files[0].path.rpartition('/')[0]}/{run_id}-00000.parquet",
            rows=state.rows,
            size_bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
        )
        self.store.put(staged_path(run_id, merged.path), content)
        self._commit(
            run_id,
            [
                Update(
                    table=name,
                    account="default",
                    state=replace(state, files=(merged,), run_id=run_id),
                    expected=newest.tables[name, "default"],
                )
            ],
            replaced={file.path: (merged.path,) for file in state.files},
        )
        for file in state.files:
            self.store.delete(file.path)

    def drop(self, path: str) -> None:
        """Remove a file that is not current any more, as expiry does; it counts as a night."""
        self.count += 1
        self._commit(f"night-{self.count}", [], replaced={path: ()})
        self.store.delete(path)
        self.store.delete(old_path(path))

    def _commit(
        self, run_id: str, updates: Sequence[Update], replaced: Mapping[str, Sequence[str]] | None = None
    ) -> LogEntry:
        log = CommitLog(self.store)
        moment = self.moment(self.count)
        entry = commit(
            self.store,
            log,
            run_id=run_id,
            updates=updates,
            summary={},
            source={},
            started_at=moment,
            clock=Watch(moment),
            leases=None,
            replaced=replaced,
        )
        publish(self.store, log, entry)
        return entry

    def _rewritten(self, update: Update, change: Callable[[pa.Table], pa.Table]) -> Update:
        files = []
        for file in update.state.files:
            place = staged_path(f"night-{self.count}", file.path)
            sink = io.BytesIO()
            pq.write_table(change(pq.read_table(io.BytesIO(self.store.read(place)))), sink)
            content = sink.getvalue()
            self.store.put(place, content)
            digest = hashlib.sha256(content).hexdigest()
            files.append(msgspec.structs.replace(file, size_bytes=len(content), sha256=digest))
        return replace(update, state=replace(update.state, files=tuple(files)))

    def endpoint(self, name: str, sync: Sync) -> Endpoint:
        columns = tuple(Column(path=path, type=parse_type(text)) for path, text in self.types.items())
        return Endpoint(name=name, path=f"/{name}", key=self.key, columns=columns, sync=sync)

    def _settle(self, endpoint, rows, run_id, log, newest, policy, account):  # type: ignore[no-untyped-def]
        at = self.moment(self.count)
        expected = newest.tables.get((endpoint.name, account)) if newest is not None else None
        prior = log.state_of(newest, endpoint.name, account) if expected is not None else None
        schema = plan_schema(endpoint, prior.columns if prior is not None else (), policy=policy)
        by_window: dict[str, list[Mapping[str, object]]] = {} if endpoint.sync.window else {"": []}
        for row in rows:
            kept = {key: value for key, value in row.items() if key != "window"}
            by_window.setdefault(str(row.get("window", "")), []).append(kept)
        spans = tuple(
            Span(label=label, start=start, end=start + NIGHT)
            for label in by_window
            if label and (start := datetime.fromisoformat(f"{label}-01"[:10]).replace(tzinfo=UTC))
        )
        ledger = Ledger(table=endpoint.name)
        stamp = Stamp(run_id=run_id, account=account, snapshot_at=at, is_event=endpoint.sync.is_event)
        writer = TableWriter(
            self.store, endpoint, stamp, settings=WriteSettings(), snapshot_date=f"{at:%Y-%m-%d}"
        )
        for window, page in by_window.items():
            chain = Chain(endpoint=endpoint, base_url="http://127.0.0.1", pages_max=9)
            chain.proof = "end of chain seen"
            ledger.chains[window] = OpenChain(chain=chain, window=window)
            decoded = decode_rows([json.dumps(page).encode()], schema)
            schema = decoded.schema
            ledger.rows += decoded.batch.num_rows
            writer.add(decoded.batch, window=window, received_at=at)
        reading = Reading(
            endpoint=endpoint,
            ledger=ledger,
            outcome=Outcome(status="complete", reason="end of chain seen"),
            schema=schema,
            stamp=stamp,
            spans=spans,
            prior=prior,
            expected=expected,
            checks=Checks(unique_key=False),
            is_accepted=False,
            is_parent_whole=True,
            moment=at,
            compression="zstd",
        )
        return settle_table(self.store, reading, writer).update


@pytest.fixture(scope="session")
def nights() -> type[Nights]:
    """`nights()` is a new lake in memory; `nights(store)` one elsewhere."""
    return Nights


@pytest.fixture(scope="session")
def syncs() -> dict[str, Sync]:
    """A table of events, and one of windows that are read anew."""
    return {"notices": EVENTS, "bills": BILLS}


@pytest.fixture
def watch() -> Watch:
    """The clock of `lake`, set by hand."""
    return Watch()


@pytest.fixture(params=["local", "memory", "memory without exchange"])
def lake(request: pytest.FixtureRequest, tmp_path: Path, watch: Watch) -> SmallLake:
    """A small lake without tables, on each kind of medium."""
    store: Store = LocalStore(tmp_path / "lake")
    if request.param != "local":
        store = MemoryStore(clock=watch.now, has_folder_exchange=request.param == "memory")
    return small_lake(store, tmp_path, watch)
