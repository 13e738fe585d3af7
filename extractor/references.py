"""After all tables of a run are settled: does each value that refers to another table stand there?

What is looked up is the state that would be committed: rows of this run where the other table is published, else
those that stand. A table that fails is held back, and so are its children; tables that refer to it are then looked
at again, as its last state stays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from extractor.checks import dangling, target_of
from extractor.commitlog import TableState
from extractor.config import Checks
from extractor.settle import Settled
from extractor.store import Store, staged_path
from extractor.write import DataFile

__all__ = ("Referring", "hold_back_dangling")


@dataclass(frozen=True, slots=True, kw_only=True)
class Referring:
    """What must be known of a run to look its references up."""

    run_id: str
    checks_of: Callable[[str], Checks]
    parents: Mapping[str, str]
    """The parent of each table that has one."""
    accepted: frozenset[str]
    standing: Callable[[str, str], TableState | None]
    """What the lake has of a table and account."""
    place_of: Callable[[str], str]
    """Where in the store a file of the lake is."""
    is_there: Callable[[str], bool]
    """Whether the store has a file."""


def hold_back_dangling(store: Store, settled: Sequence[Settled], referring: Referring) -> list[Settled]:
    """The tables, in their order, those held back whose references lead nowhere, and their children.

    Raises:
        LakeError: a file cannot be read.
    """
    found = list(settled)
    while True:  # each round but the last holds a table back
        now = {(item.report.name, item.report.account): item for item in found}
        held = {
            number: reason
            for number, item in enumerate(found)
            if item.update is not None and (reason := _reason(store, item, now, referring))
        }
        if not held:
            return found
        for number, reason in held.items():
            found[number] = _held(found[number], reason)


def _reason(store: Store, item: Settled, now: Mapping[tuple[str, str], Settled], referring: Referring) -> str:
    name, account = item.report.name, item.report.account
    parent = now.get((referring.parents.get(name, ""), account))
    if parent is not None and parent.report.status == "held":
        return f"its parent is held: {parent.report.reason}"
    if name in referring.accepted:
        return ""
    reasons = []
    for column, target in referring.checks_of(name).references.items():
        other, wanted = target_of(target)
        told = f"checks.{name}.references.{column} = {target}"
        targets, target_column = _rows_of(now.get((other, account)), other, account, wanted, referring)
        if targets is None:
            reasons.append(f"nothing stands of table {other} to look {column} up in ({told})")
            continue
        missing, examples = dangling(store, *_new_rows(item, column, referring), targets, target_column)
        if missing:
            values = f"{missing} value{'' if missing == 1 else 's'}"
            reasons.append(f"{values} of {column} not in {target}, such as {', '.join(examples)} ({told})")
    return f"{'; '.join(reasons)}; publish once with --accept {name}" if reasons else ""


def _new_rows(item: Settled, column: str, referring: Referring) -> tuple[tuple[str, ...], str]:
    """Where the rows are that are to be published, and the column in them.

    Of a table that only grows these are the new ones: others may refer to what is gone since.
    """
    assert item.update is not None
    state = item.update.state
    is_event = any(name == "event_date" for file in state.files for name, _ in file.partition)
    files = [file for file in state.files if not is_event or _is_of(file, referring.run_id)]
    return tuple(_place(file, referring) for file in files), _column(state, column)


def _rows_of(
    item: Settled | None, table: str, account: str, column: str, referring: Referring
) -> tuple[tuple[str, ...] | None, str]:
    """Where the rows of the other table are, None if it has none, and the column in them."""
    is_published = item is not None and item.update is not None
    state = item.update.state if item and item.update and is_published else referring.standing(table, account)
    if state is None:
        return None, column
    return tuple(_place(file, referring) for file in state.files), _column(state, column)


def _column(state: TableState, source: str) -> str:
    """The column that holds a key of the answer now."""
    for field in state.columns:
        if field["source"] == source and field.get("live", True):
            return str(field["name"])
    return source


def _is_of(file: DataFile, run_id: str) -> bool:
    folder, _, name = file.path.rpartition("/")
    return name.startswith(f"{run_id}-") or folder.endswith(f"/run={run_id}")


def _place(file: DataFile, referring: Referring) -> str:
    staged = staged_path(referring.run_id, file.path)
    # A run that commits more than once has published what it committed before.
    is_staged = _is_of(file, referring.run_id) and referring.is_there(staged)
    return staged if is_staged else referring.place_of(file.path)


def _held(item: Settled, reason: str) -> Settled:
    report = replace(item.report, status="held", reason=reason, rows=0, files=0, size_bytes=0)
    return replace(item, report=report, update=None)
