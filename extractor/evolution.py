"""What a run found of a table's columns, against the run before: in words, and as state for the run after.

The state is small and seldom changes: columns that have no value, keys whose values were rescued, keys that were
only ever null, and one entry for each change of the columns.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from extractor.commitlog import TableState
from extractor.drift import Drift, changes_between, with_version, words
from extractor.ledger import Ledger
from extractor.schema import TableSchema
from extractor.store import Store

__all__ = ("drift_lines", "filled_columns", "gone_columns", "null_keys_of", "schema_state")

_EMPTY, _RESCUED, _NULLS = "empty_columns", "rescued_keys", "null_keys"
_LINES = 20
_KEYS = 256
_RESCUING = ("unknown", "misfit", "nested")


def null_keys_of(prior: TableState | None) -> frozenset[str]:
    """The keys without a column that were null in every run so far."""
    return frozenset(_names(prior, _NULLS))


def filled_columns(store: Store, paths: Iterable[str], sources: Mapping[str, str]) -> set[str]:
    """The keys, of `sources` by column, that have a value in at least one row; reads only the ends of the files."""
    filled: set[str] = set()
    for path in paths:
        with store.open_input(path) as stream:
            metadata = pq.read_metadata(pa.PythonFile(stream, mode="r"))
        heads = [
            metadata.schema.column(number).path.partition(".")[0] for number in range(metadata.num_columns)
        ]
        for group in range(metadata.num_row_groups):
            row_group = metadata.row_group(group)
            for number, head in enumerate(heads):
                if head in sources and sources[head] not in filled:
                    column = row_group.column(number)
                    statistics = column.statistics
                    is_known = statistics is not None and statistics.has_null_count
                    # What is not counted is taken to be there.
                    if not is_known or statistics.null_count < column.num_values:
                        filled.add(sources[head])
    return filled


def gone_columns(prior: TableState | None, empty: Collection[str] | None) -> tuple[str, ...]:
    """The keys that had values when the table was last read, and have none now."""
    if prior is None or not prior.rows or empty is None:
        return ()
    known = {str(column["source"]) for column in prior.columns if column.get("live", True)}
    return tuple(sorted(known & set(empty) - _names(prior, _EMPTY)))


def drift_lines(
    ledger: Ledger,
    prior: TableState | None,
    account: str,
    *,
    schema: TableSchema | None = None,
    gone: Sequence[str] = (),
) -> tuple[str, ...]:
    """What changed since the last run, a line for each column; `schema` is the table's now."""
    where = "" if account == "default" else f" ({account})"
    known = _names(prior, _RESCUED)
    found = [
        words(drift, is_known=_is_known(drift, known), account=account) for drift in ledger.drift.values()
    ]
    met = {column for kind, column in ledger.drift if kind == "column"}
    changes = changes_between(
        prior.columns if prior is not None else (), schema.to_json() if schema is not None else ()
    )
    nulls = null_keys_of(prior) | (schema.null_keys | schema.nanos if schema is not None else frozenset())
    # A first column of a key that was only ever null is a change of the table, and no drift; nor are nanoseconds.
    expected = met | nulls
    found += [f"{ledger.table}.{column}{where}: {said}" for column, said in changes if column not in expected]
    found += [f"{ledger.table}.{column}{where}: no row has a value any more" for column in gone]
    if ledger.drift_refused:
        found.append(ledger.drift_refused)
    if len(found) > _LINES:
        found = [*found[: _LINES - 1], f"{ledger.table}{where}: and {len(found) - _LINES + 1} more"]
    return tuple(found)


def _is_known(drift: Drift, known: Collection[str]) -> bool:
    return drift.kind in _RESCUING and drift.column in known


def schema_state(
    schema: TableSchema,
    prior: TableState | None,
    ledger: Ledger,
    empty: Collection[str] | None,
    gone: Sequence[str],
    *,
    is_event: bool,
    run_id: str,
    at: str,
) -> dict[str, object]:
    """What the next run must know of the columns, and their history."""
    changes = changes_between(prior.columns if prior is not None else (), schema.to_json())
    state = with_version(prior.state if prior is not None else {}, changes, run_id=run_id, at=at)
    before = _names(prior, _EMPTY)
    if empty is None:
        still = before
    elif is_event and prior is not None:  # few rows of many were read: what had a value once has one
        still = (before & set(empty)) | set(gone)
    else:
        still = set(empty)
    rescued = {column for kind, column in ledger.drift if kind in _RESCUING}
    nulls = schema.null_keys - {field.source for field in schema.fields}
    for key, names in (
        (_EMPTY, still),
        (_RESCUED, rescued if ledger.rows else _names(prior, _RESCUED)),
        (_NULLS, nulls),
    ):
        if names:
            state[key] = sorted(names)[:_KEYS]
    return state


def _names(prior: TableState | None, key: str) -> set[str]:
    names = prior.state.get(key) if prior is not None else None
    return set(map(str, names)) if isinstance(names, list | tuple) else set()
