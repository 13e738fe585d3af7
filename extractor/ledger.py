"""What is known of one table while it is read, and what that makes of it in the end.

Rows in are rows out or rows rejected with a reason; a table is called complete only with a proof.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from extractor.drift import Drift, merged
from extractor.paging import Chain
from extractor.plan import PageRequest
from extractor.report import Status

__all__ = ("Ledger", "OpenChain", "Outcome", "Resumed")

_FAILURES_KEPT = 20


@dataclass(slots=True, kw_only=True)
class Resumed:
    """What an earlier process read of a chain. Its rows wait: they count once the server lets the chain go on.

    A page that is named by its number is asked for again first, as rows may have moved since: `last` is the
    fingerprint that it must have, and `following` the page after it. `asked` is the page that is asked for first.
    """

    pages: int
    asked: PageRequest
    following: PageRequest
    last: bytes | None = None
    places: tuple[tuple[str, int, int, int], ...] = ()
    """Where the rows are in the journal: segment, offset, first row and number of rows."""


@dataclass(slots=True, kw_only=True)
class OpenChain:
    """One chain of pages: its paging state and the pages that are not decoded yet."""

    chain: Chain
    window: str
    first: PageRequest | None = None
    parent: str = ""
    """The parent's row that it was asked for, where the state remembers those."""
    undecoded: int = 0
    failure: str = ""
    resumed: Resumed | None = None
    """Of a chain that goes on where an earlier process stopped, until its next page is taken."""

    @property
    def is_complete(self) -> bool:
        return not self.failure and self.chain.is_ended and self.undecoded == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a table: `status`, and the proof or the reason."""

    status: Status
    reason: str


@dataclass(slots=True, kw_only=True)
class Ledger:
    """Counts and chains of one table of one account."""

    table: str
    chains: dict[str, OpenChain] = field(default_factory=dict)
    requests: int = 0
    pages: int = 0
    rows: int = 0
    largest_page: int = 0
    """Rows of the fullest page."""
    denied: str = ""
    drift_refused: str = ""
    absent: int = 0
    parents: int = 0
    """Rows of the parent that were turned into requests."""
    parents_without_value: int = 0
    parents_unchanged: int = 0
    """Rows of the parent that were asked for before, and are as they were."""
    failures: list[str] = field(default_factory=list)
    failure_count: int = 0
    drift: dict[tuple[str, str], Drift] = field(default_factory=dict)
    """By kind and column."""
    notes: dict[str, int] = field(default_factory=dict)

    def fail(self, chain: OpenChain, reason: str) -> None:
        """A chain is given up; it counts once, whatever else goes wrong with it."""
        if chain.failure:
            return
        chain.failure = reason
        self.failure_count += 1
        if len(self.failures) < _FAILURES_KEPT and reason not in self.failures:
            self.failures.append(reason)

    def count_page(self, rows: int) -> None:
        """A page is decoded, and its rows are with the sink."""
        self.pages += 1
        self.rows += rows
        self.largest_page = max(self.largest_page, rows)

    def note_drift(self, drifts: Iterable[Drift]) -> None:
        for drift in drifts:
            before = self.drift.get((drift.kind, drift.column))
            self.drift[drift.kind, drift.column] = merged(before, drift) if before is not None else drift

    def note(self, line: str) -> None:
        self.notes[line] = self.notes.get(line, 0) + 1

    @property
    def longest_chain(self) -> int:
        """Pages of the longest chain: so many must be read one after the other where nothing can be guessed."""
        return max((chain.chain.pages for chain in self.chains.values()), default=0)

    @property
    def is_any_complete(self) -> bool:
        """True if there may be rows to commit."""
        return any(chain.is_complete for chain in self.chains.values())

    @property
    def total(self) -> int | None:
        """Rows that the server says there are, over all chains; None where it does not say."""
        totals = [chain.chain.total for chain in self.chains.values()]
        return sum(total for total in totals if total is not None) if totals and None not in totals else None

    def cut_windows(self) -> frozenset[str]:
        """The windows of which some chain did not see its end."""
        return frozenset(chain.window for chain in self.chains.values() if not chain.is_complete)

    def complete_windows(self) -> frozenset[str]:
        """The windows whose every chain saw its end."""
        states: dict[str, bool] = {}
        for chain in self.chains.values():
            states[chain.window] = states.get(chain.window, True) and chain.is_complete
        return frozenset(window for window, is_complete in states.items() if is_complete)

    def outcome(self, parent: Outcome | None, *, had_rows: bool) -> Outcome:
        """Judge the table; `parent` is its parent's outcome, `had_rows` whether the lake holds rows of it."""
        if self.denied:
            return Outcome(status="denied", reason=self.denied)
        if self.drift_refused:
            return Outcome(status="held", reason=self.drift_refused)
        if not self.chains:
            return self._unasked(parent)
        # A page that came makes of a later 404 a chain that was cut off.
        if self.absent and not self.pages and self.absent == self.failure_count == len(self.chains):
            if had_rows:
                return Outcome(
                    status="failed", reason="the API has no such resource any more, but the lake has rows"
                )
            return Outcome(status="absent", reason="the API has no such resource (404)")
        if self.failure_count:
            what = f"{self.failure_count} of {len(self.chains)} requests failed: {self.failures[0]}"
            return Outcome(status="partial" if self.is_any_complete else "failed", reason=what)
        open_chains = [chain for chain in self.chains.values() if not chain.is_complete]
        if open_chains:
            return Outcome(
                status="partial", reason=f"{len(open_chains)} of {len(self.chains)} chains were cut off"
            )
        if self.parents_without_value:
            return Outcome(
                status="partial", reason=f"{self.parents_without_value} rows of its parent name no value"
            )
        if parent is not None and parent.status != "complete":
            status: Status = "held" if parent.status == "held" else "partial"
            return Outcome(status=status, reason=f"its parent is {parent.status}: {parent.reason}")
        return Outcome(status="complete", reason=self._proof())

    def _unasked(self, parent: Outcome | None) -> Outcome:
        if parent is None:
            return Outcome(status="failed", reason="it was never asked for")
        if parent.status == "complete" and self.parents_without_value:
            return Outcome(
                status="partial", reason=f"{self.parents_without_value} rows of its parent name no value"
            )
        if parent.status == "complete" and self.parents_unchanged:
            return Outcome(
                status="complete", reason=f"none of {self.parents_unchanged} rows of its parent has changed"
            )
        if parent.status == "complete":
            return Outcome(status="complete", reason="its parent has no rows")
        if parent.status == "absent":
            return Outcome(status="absent", reason="its parent is absent")
        # What is held when a table is judged here is held by the schema policy, and then so are its children.
        status: Status = parent.status if parent.status in ("denied", "held") else "failed"
        return Outcome(
            status=status, reason=f"never asked for, as its parent is {parent.status}: {parent.reason}"
        )

    def _proof(self) -> str:
        proofs = sorted({chain.chain.proof for chain in self.chains.values()})
        kinds = sorted({proof.partition(":")[0] for proof in proofs})
        if len(self.chains) == 1:
            return proofs[0]
        return f"{len(self.chains)} chains: {', '.join(kinds)}"
