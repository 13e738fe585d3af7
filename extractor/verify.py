"""Every data file read again: is it there, is it what was written and what the log says, and is nothing else there.

A file is read in pieces and decoded one row group at a time, a few files side by side. Nothing is written.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING, Literal

from extractor.commit import is_waiting
from extractor.commitlog import CommitLog, LogEntry, TableState
from extractor.places import damage_of, open_data_file
from extractor.store import Store, StoreMissing

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from extractor.write import DataFile

__all__ = ("Finding", "Known", "Target", "VerifyReport", "check_files", "read_log", "verify")

Kind = Literal["missing", "damaged", "rows", "schema", "statistics", "extra"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One file that is not as it should be.

    `missing`: it is nowhere. `damaged`: its bytes are not those that were written. `rows`, `schema`, `statistics`:
    these differ from what the log, or the file's own summary of its values, says. `extra`: no entry of the log
    names it.
    """

    kind: Kind
    path: str
    table: str
    account: str = ""
    rows: int = 0
    """Rows that it holds, as the log says."""
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What `verify` read and found. `run_id` is the run whose state it was, empty for all of them."""

    lake: str
    run_id: str
    files: int
    rows: int
    size_bytes: int
    findings: tuple[Finding, ...] = ()
    dropped: int = 0
    """Files of that state that later entries removed on purpose, and that were not looked for."""

    @property
    def exit_code(self) -> int:
        return 8 if self.findings else 0

    def to_json(self) -> dict[str, object]:
        values: dict[str, object] = asdict(self)
        values["bytes"] = values.pop("size_bytes")
        return {**values, "exit_code": self.exit_code}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A file as the log knows it, and the columns of its table."""

    file: DataFile
    table: str
    account: str
    columns: tuple[Mapping[str, object], ...] = field(repr=False)
    is_event: bool


def verify(
    store: Store, log: CommitLog, entry: LogEntry, *, everything: bool = False, workers: int | None = None
) -> VerifyReport:
    """Read the files of one state again, or those of all runs; and look for files that no entry names.

    Files that a later entry merged are looked for in those that hold their rows now; what one removed is passed
    over. Raises: LakeError if the log itself cannot be read.
    """
    newest = log.newest() or entry
    # Listed before the log is read: what is found here and committed is in the log by then.
    listed = {stored.path for table in _tables(newest) for stored in store.list(table)}
    known = read_log(log)
    wanted = known.files if everything else _files_of(log, entry)
    targets, dropped = known.follow(wanted)
    publishing = tuple((log.newest() or entry).publishing)
    findings = list(check_files(store, targets, publishing, workers=workers))
    findings = [
        found for found in findings if found.kind != "missing" or not _is_gone(log, known, found.path)
    ]
    named = known.files.keys() | known.replaced.keys() | known.rewritten.keys()
    for path in sorted(listed - named):
        findings.append(_extra(path, "no entry of the log names it"))
    back = sorted(listed & known.replaced.keys())
    findings += [
        _extra(path, "it was merged or dropped, and is back in its place")
        for path in _settled(store, log, back)
    ]
    return VerifyReport(
        lake=store.uri,
        run_id="" if everything else entry.run_id,
        files=len(targets),
        rows=sum(target.file.rows for target in targets),
        size_bytes=sum(target.file.size_bytes for target in targets),
        findings=tuple(sorted(findings, key=lambda found: (found.path, found.kind))),
        dropped=dropped,
    )


def _extra(path: str, detail: str) -> Finding:
    return Finding(kind="extra", path=path, table=path.partition("/")[0], detail=detail)


def _settled(store: Store, log: CommitLog, paths: Sequence[str]) -> list[str]:
    """Those of the paths of replaced files that do not wait to be taken away, and are still there."""
    if not paths:
        return []
    waiting: set[str] = set()
    for entry in log.backwards():
        if entry.replaced and is_waiting(store, entry):
            waiting.update(log.replacements(entry))
    return [path for path in paths if path not in waiting and store.exists(path)]


def check_files(
    store: Store, targets: Sequence[Target], publishing: Iterable[str], *, workers: int | None = None
) -> Iterator[Finding]:
    """What is wrong with each of these files, in their order; some of them are read at a time."""
    runs = tuple(publishing)
    count = workers or min(4, os.cpu_count() or 1)
    with ThreadPoolExecutor(count) as pool:
        waiting: deque[Future[Finding | None]] = deque()
        for target in targets:
            waiting.append(pool.submit(_check, store, target, runs))
            while len(waiting) > 2 * count:
                yield from _found(waiting.popleft())
        while waiting:
            yield from _found(waiting.popleft())


def _found(future: Future[Finding | None]) -> Iterator[Finding]:
    found = future.result()
    if found is not None:
        yield found


# --- the log ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """Every file that an entry names, and for those that one removed, where their rows went."""

    files: dict[str, Target]
    replaced: dict[str, tuple[str, ...]]
    rewritten: dict[str, DataFile]
    """Files that took the place of others and may be in no state."""

    def follow(self, wanted: Mapping[str, Target]) -> tuple[list[Target], int]:
        """The files that hold the rows of `wanted` now, by path, and how many of them were removed for good."""
        found: dict[str, Target] = {}
        dropped = 0
        waiting = [(path, wanted[path]) for path in sorted(wanted)]
        while waiting:
            path, origin = waiting.pop()
            if path in self.replaced:
                waiting.extend((other, origin) for other in self.replaced[path])
                dropped += not self.replaced[path]
            elif path in self.files:
                found[path] = self.files[path]
            else:
                found[path] = replace(origin, file=self.rewritten.get(path, origin.file))
        return [found[path] for path in sorted(found)], dropped


def read_log(log: CommitLog) -> Known:
    """What all entries together say of files."""
    known = Known(files={}, replaced={}, rewritten={})
    seen: set[str] = set()
    for entry in log.backwards():
        if entry.replaced:
            known.rewritten.update(log.replacing_files(entry))
            # A path that a later entry removed again is told by that one.
            known.replaced.update(
                (path, paths)
                for path, paths in log.replacements(entry).items()
                if path not in known.files and path not in known.replaced
            )
        for key, reference in entry.tables.items():
            if reference.digest not in seen:
                seen.add(reference.digest)
                for path, target in _targets(log.state_of(entry, *key)):
                    known.files.setdefault(path, target)
    return known


def _files_of(log: CommitLog, entry: LogEntry) -> dict[str, Target]:
    return {path: target for state in log.tables(entry) for path, target in _targets(state)}


def _targets(state: TableState) -> Iterator[tuple[str, Target]]:
    for file in state.files:
        yield (
            file.path,
            Target(
                file=file,
                table=state.table,
                account=state.account,
                columns=state.columns,
                is_event=state.is_event,
            ),
        )


def _tables(entry: LogEntry) -> list[str]:
    return sorted({table for table, _ in entry.tables})


def _is_gone(log: CommitLog, known: Known, path: str) -> bool:
    """True if an entry that was committed meanwhile removed the file."""
    for entry in log.backwards():
        if not entry.replaced:
            continue
        replacements = log.replacements(entry)
        if path in replacements and path not in known.replaced:
            return True
    return False


# --- one file -----------------------------------------------------------------------------------------------


def _check(store: Store, target: Target, publishing: tuple[str, ...]) -> Finding | None:
    def finding(kind: Kind, detail: str) -> Finding:
        file = target.file
        return Finding(
            kind=kind,
            path=file.path,
            table=target.table,
            account=target.account,
            rows=file.rows,
            detail=detail,
        )

    try:
        with open_data_file(store, target.file.path, publishing) as stream:
            damage = damage_of(stream, target.file)
            if damage:
                return finding("damaged", damage)
            stream.seek(0)
            return _check_content(stream, target, finding)
    except StoreMissing:
        return finding("missing", "it is neither in its place nor in staging")


def _check_content(
    stream: IO[bytes], target: Target, finding: Callable[[Kind, str], Finding]
) -> Finding | None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(pa.PythonFile(stream, mode="r")) as opened:
            if (wrong := _schema_fault(opened.schema_arrow, target)) is not None:
                return finding("schema", wrong)
            rows = 0
            for number in range(opened.num_row_groups):
                group = opened.read_row_group(number, use_threads=False)
                rows += group.num_rows
                if (wrong := _statistics_fault(opened.metadata.row_group(number), group)) is not None:
                    return finding("statistics", f"row group {number}: {wrong}")
            if rows != target.file.rows:
                return finding("rows", f"it has {rows:,} rows, the log says {target.file.rows:,}")
    except (OSError, pa.ArrowException) as error:
        return finding("damaged", f"it cannot be decoded: {type(error).__name__}")
    return None


def _schema_fault(schema: pa.Schema, target: Target) -> str | None:
    """What is wrong with a file's columns. A file that is older than a column does not have it."""
    if not target.columns:
        return None
    expected = _file_schema(target)
    places = {column.name: place for place, column in enumerate(expected)}
    last = -1
    for column in schema:
        place = places.get(column.name)
        if place is None:
            return f"the log knows no column {column.name}"
        if column.type != expected.field(place).type:
            return f"column {column.name} is {column.type}, the log says {expected.field(place).type}"
        if place < last:
            return f"column {column.name} stands in another order than in the log"
        last = place
    own = [name for name in expected.names if name.startswith("_") and name not in schema.names]
    return f"column {own[0]} is not there" if own else None


def _file_schema(target: Target) -> pa.Schema:
    from extractor.batch import Stamp, stamp_schema
    from extractor.endpoint import Endpoint
    from extractor.schema import plan_schema

    columns = plan_schema(Endpoint(name=target.table, path="/"), target.columns).arrow
    stamp = Stamp(
        run_id="", account="", snapshot_at=datetime.min.replace(tzinfo=UTC), is_event=target.is_event
    )
    return stamp_schema(columns, stamp)


def _statistics_fault(metadata: pq.RowGroupMetaData, group: pa.Table) -> str | None:
    """Where the file's summary of a column's values does not hold: readers skip row groups by it."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if metadata.num_rows != group.num_rows:
        return f"it has {group.num_rows:,} rows, its head says {metadata.num_rows:,}"
    for number in range(metadata.num_columns):
        chunk = metadata.column(number)
        name, summary = chunk.path_in_schema, chunk.statistics
        if summary is None or name not in group.schema.names:
            continue
        column = group.column(name)
        if pa.types.is_nested(column.type):
            continue
        if summary.has_null_count and summary.null_count != column.null_count:
            return f"column {name} has {column.null_count:,} nulls, its head says {summary.null_count:,}"
        if not summary.has_min_max:
            continue
        limits = pc.min_max(column).as_py()
        low, high = limits["min"], limits["max"]
        # NaN lies nowhere, and a column of nothing else has no limits.
        if low is None or low != low:
            continue
        if not summary.min <= low or not high <= summary.max:
            return f"column {name} has values beyond those that its head gives as the least and the greatest"
    return None
