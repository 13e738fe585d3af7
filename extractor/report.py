"""What a run did: one frozen value that prints as text, as JSON, and says the exit code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

__all__ = (
    "EXIT_CODES",
    "RequestFigures",
    "RunReport",
    "Status",
    "TableReport",
    "exit_code_of",
    "report_from_json",
)

Status = Literal["complete", "partial", "failed", "denied", "held", "absent", "skipped"]

EXIT_CODES: Mapping[int, str] = {
    0: "every selected endpoint complete (also when there was nothing new, or the API has no such resource)",
    1: "a fault of the program itself",
    2: "wrong usage or configuration; nothing was requested",
    3: "partial: at least one endpoint failed, was denied, is incomplete or was held back",
    4: "the key is missing, invalid, expired or revoked, or may read nothing that was selected",
    5: "another run is writing one of the selected tables",
    6: "schema drift that the policy refuses; those tables are held back",
    7: "the lake cannot be read or written, or a committed file is missing",
    8: "verify found a difference",
    9: "the run's deadline passed; complete tables are committed",
    10: "the source could not be reached at all; nothing was committed",
    130: "interrupted by SIGINT; complete tables are committed",
    143: "interrupted by SIGTERM; complete tables are committed",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TableReport:
    """One table of one account after a run.

    `rows`, `pages` and `requests` are of this run, `files` counts the files that it added; `reason` says why the
    rows are all of them (the proof), or why they are not. `is_drift_refused` marks a table that only the schema
    policy holds back.
    """

    name: str
    account: str
    status: Status
    rows: int = 0
    pages: int = 0
    requests: int = 0
    files: int = 0
    size_bytes: int = 0
    reason: str = ""
    failures: tuple[str, ...] = ()
    is_drift_refused: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestFigures:
    """How the run spoke to the server. `rate_share` is the share of the permitted rate that it used, 0 to 1."""

    sent: int = 0
    succeeded: int = 0
    retried: int = 0
    throttled: int = 0
    failed: int = 0
    received_bytes: int = 0
    rate_share: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """A run as a whole. Times are RFC 3339 UTC, `seconds` is its length."""

    run_id: str
    status: str
    exit_code: int
    lake: str
    started_at: str
    finished_at: str = ""
    seconds: float = 0.0
    tables: tuple[TableReport, ...] = ()
    requests: RequestFigures = field(default_factory=RequestFigures)
    drift: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    message: str = ""

    @property
    def rows(self) -> int:
        return sum(table.rows for table in self.tables if table.status == "complete")

    @property
    def files(self) -> int:
        return sum(table.files for table in self.tables)

    @property
    def size_bytes(self) -> int:
        return sum(table.size_bytes for table in self.tables)

    def to_json(self) -> dict[str, object]:
        """The report as JSON values, with the names of the public contract."""
        whole: dict[str, object] = asdict(self)
        whole["rows"], whole["files"], whole["bytes"] = self.rows, self.files, self.size_bytes
        return whole


def report_from_json(values: Mapping[str, object]) -> RunReport:
    """The inverse of `RunReport.to_json`; keys of later versions are passed over."""
    import msgspec

    return msgspec.convert(values, RunReport)


def exit_code_of(tables: Iterable[TableReport]) -> int:
    """The exit code of a run that went to its end: 4, 6, 3 or 0, whichever applies first."""
    statuses = [table for table in tables if table.status != "skipped"]
    if statuses and all(table.status == "denied" for table in statuses):
        return 4
    faults = [table for table in statuses if table.status not in ("complete", "absent")]
    if faults and all(table.is_drift_refused for table in faults):
        return 6
    return 3 if faults else 0
