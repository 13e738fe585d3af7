"""Commits of made-up tables: states, the files that they need in staging, and the entries that come of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from extractor.commit import Update, commit, publish
from extractor.commitlog import CommitLog, LogEntry, TableState
from extractor.lease import Leases
from extractor.store import Store, staged_path
from extractor.write import DataFile
from tests.unit.lakes import NOON, Watch

LATEST = "_extractor/latest.json"


def entry_path(sequence: int) -> str:
    return f"_extractor/log/{sequence:020d}.json"


def content_of(path: str) -> bytes:
    return f"rows of {path}".encode()


def data_file(path: str) -> DataFile:
    content = content_of(path)
    return DataFile(
        path=path,
        rows=3,
        size_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        partition=tuple(
            (key, value) for key, _, value in (part.partition("=") for part in path.split("/")) if value
        ),
        content="0" * 32,
    )


def snapshot(run_id: str, *, table: str = "services", account: str = "default", parts: int = 2) -> TableState:
    folder = f"{table}/account={account}/snapshot_date=2026-11-22/run={run_id}"
    paths = [f"{folder}/part-{part:05d}.parquet" for part in range(parts)]
    return state(table, account, "snapshot", run_id, paths)


def events(run_id: str, *days: str, earlier: TableState | None = None) -> TableState:
    paths = [f"notifications/account=default/event_date={day}/{run_id}-00000.parquet" for day in days]
    kept = [file.path for file in earlier.files] if earlier is not None else []
    return state("notifications", "default", "window", run_id, [*kept, *paths])


def state(table: str, account: str, sync: str, run_id: str, paths: Sequence[str]) -> TableState:
    return TableState(
        table=table,
        account=account,
        sync=sync,
        status="complete",
        reason="end of chain seen",
        rows=3 * len(paths),
        files=tuple(data_file(path) for path in sorted(paths)),
        columns=({"name": "id", "type": "string"}, {"name": "_run_id", "type": "string"}),
        state={"cursor": f"after {run_id}", "windows": [["a", 1], ["b", None]]},
        run_id=run_id,
        proved_by=run_id,
        snapshot_at="2026-11-22T12:00:00Z",
        content="ab" * 16,
    )


def stage(store: Store, run_id: str, states: Iterable[TableState]) -> None:
    for found in states:
        for file in found.files:
            if not store.exists(file.path):
                store.put(staged_path(run_id, file.path), content_of(file.path))


def updates(log: CommitLog, *states: TableState) -> list[Update]:
    newest = log.newest()
    tables = newest.tables if newest is not None else {}
    return [
        Update(
            table=found.table,
            account=found.account,
            state=found,
            expected=tables.get((found.table, found.account)),
        )
        for found in states
    ]


def commit_run(
    store: Store,
    run_id: str,
    *states: TableState,
    clock: Watch | None = None,
    leases: Leases | None = None,
    planned: Sequence[Update] | None = None,
    is_final: bool = True,
    started_at: datetime = NOON,
    summary: Mapping[str, object] | None = None,
    status: str = "complete",
    replaced: Mapping[str, Sequence[str]] | None = None,
) -> LogEntry:
    stage(store, run_id, states)
    log = CommitLog(store)
    return commit(
        store,
        log,
        run_id=run_id,
        updates=planned if planned is not None else updates(log, *states),
        summary=summary if summary is not None else {"requests": 7},
        source={"base_url": "https://api.skysql.com"},
        started_at=started_at,
        clock=clock or Watch(),
        leases=leases,
        is_final=is_final,
        status=status,
        replaced=replaced,
    )


def whole_run(store: Store, run_id: str, *states: TableState) -> LogEntry:
    entry = commit_run(store, run_id, *states)
    publish(store, CommitLog(store), entry)
    return entry


def visible(store: Store) -> list[str]:
    return [found.path for found in store.list("") if not found.path.startswith("_extractor/")]


def staged(store: Store) -> list[str]:
    return [found.path for found in store.list("_extractor/staging")]
