"""How answers differ from what is known of a table: one value for each column concerned, and the words for it.

The decoder notes what it meets, page by page; `merged` adds that up over a run. `changes_between` compares the
columns of two runs, and `versions_of` reads the history that the lake keeps of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import orjson

from extractor.endpoint import ColumnType, ListType, MapType, Scalar, StructType, parse_type
from extractor.schema import MISSING, fit, infer_type, is_secret_name, render_type

__all__ = (
    "Drift",
    "SchemaVersion",
    "changes_between",
    "merged",
    "misfit",
    "toml_line",
    "versions_of",
    "widened",
    "with_version",
    "words",
)

Kind = Literal["column", "unknown", "misfit", "nested", "redacted"]

_VERSION = "schema:"
_LONGEST_TYPE = 400
_KEYS_SHOWN = 5
_TEXTS = frozenset({"string", "timestamp", "timestamp_naive"})
_BARE_KEY = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """What was met under one key of the answer.

    `column`: a new column was made. `unknown`: values that no column takes. `misfit`: values that do not fit their
    column. `nested`: keys inside of a value that its type lacks. `redacted`: values that look like credentials.
    """

    table: str
    column: str
    kind: Kind
    count: int = 0
    """Values concerned."""
    type: ColumnType | None = None
    """Of a new column its type, else one that would take the values."""
    current: ColumnType | None = None
    """The type that the column has."""
    keys: tuple[str, ...] = field(default=())
    """Of `nested` the paths that are new, sorted."""

    def to_json(self) -> dict[str, object]:
        """As the journal keeps it, without the table."""
        found: dict[str, object] = {"column": self.column, "kind": self.kind, "count": self.count}
        if self.type is not None:
            found["type"] = render_type(self.type)
        if self.current is not None:
            found["current"] = render_type(self.current)
        if self.keys:
            found["keys"] = list(self.keys)
        return found

    @classmethod
    def from_json(cls, table: str, found: Mapping[str, Any]) -> Drift:
        """What `to_json` gave."""
        types = {name: parse_type(found[name]) for name in ("type", "current") if name in found}
        return cls(
            table=table,
            column=found["column"],
            kind=found["kind"],
            count=found["count"],
            keys=tuple(found.get("keys", ())),
            **types,
        )


def merged(first: Drift, second: Drift) -> Drift:
    """Both as one: of the same table, column and kind."""
    return replace(
        first,
        count=first.count + second.count,
        type=_joined(first.type, second.type),
        keys=tuple(sorted({*first.keys, *second.keys})),
    )


def words(drift: Drift, *, is_refused: bool = False, is_known: bool = False, account: str = "default") -> str:
    """The line for people; `is_known` of what was met in the last run too."""
    where = f"{drift.table}.{drift.column}{'' if account == 'default' else f' ({account})'}"
    values = f"{drift.count} value{'' if drift.count == 1 else 's'}"
    rescued = "" if is_refused else " rescued"
    known = ", as in the last run" if is_known else ""
    match drift.kind:
        case "column":
            kind = f" ({render_type(drift.type)})" if drift.type is not None else ""
            return f"{where}: new column{kind}"
        case "unknown":
            return f"{where}: no column, {values}{rescued}{known}{_advice(drift, is_refused)}"
        case "misfit":
            current = f" {render_type(drift.current)}" if drift.current is not None else ""
            said = f"{values} {'does' if drift.count == 1 else 'do'} not fit{_cut(current)}"
            return f"{where}: {said}{',' if rescued else ''}{rescued}{known}{_advice(drift, is_refused)}"
        case "nested":
            shown = ", ".join(drift.keys[:_KEYS_SHOWN])
            more = f" and {len(drift.keys) - _KEYS_SHOWN} more" if len(drift.keys) > _KEYS_SHOWN else ""
            said = f"new inside of it {shown}{more} in {values}"
            return f"{where}: {said}{',' if rescued else ''}{rescued}{known}{_advice(drift, is_refused)}"
        case "redacted":
            return f"{where}: looks like a credential, {values} redacted{known}"


def _advice(drift: Drift, is_refused: bool) -> str:
    if is_refused or drift.type is None:
        return ""
    return f"; for a column of their own: {toml_line(drift.table, drift.column, drift.type)}"


def toml_line(table: str, column: str, column_type: ColumnType) -> str:
    """What to write into the endpoint's file: the table, and the line in it."""
    key = column if column and _BARE_KEY.issuperset(column) else orjson.dumps(column).decode()
    return f'[{table}.columns] {key} = "{_cut(render_type(column_type), "json")}"'


def _cut(text: str, instead: str = " its type") -> str:
    return text if len(text) <= _LONGEST_TYPE else instead


def misfit(table: str, column: str, current: ColumnType, left: Sequence[object], *, is_all: bool) -> Drift:
    """What did not fit a column; `left` is what `fit` left over of each value, `is_all` if no value fitted."""
    paths = [_new_paths(current, value) for value in left]
    is_nested = all(path is not None for path in paths)
    return Drift(
        table=table,
        column=column,
        kind="nested" if is_nested else "misfit",
        count=len(left),
        type=widened(current, left, is_all=is_all),
        current=current,
        keys=tuple(sorted(set().union(*(path or () for path in paths)))) if is_nested else (),
    )


def _new_paths(column_type: ColumnType, left: object) -> set[str] | None:
    """The paths of the keys that the type lacks; None if anything else does not fit."""
    match column_type, left:
        case StructType(fields), dict():
            known = dict(fields)
            inner = [(key, known.get(key), value) for key, value in left.items()]
        case MapType(item), dict():
            inner = [("*", item, fit(value, item)[1]) for value in left.values()]
        case ListType(item), list():
            inner = [("[]", item, fit(value, item)[1]) for value in left]
        case _:
            return None
    found: set[str] = set()
    for key, type_, value in inner:
        if type_ is None:
            found.add(key)
        elif value is not MISSING:
            below = _new_paths(type_, value)
            if below is None:
                return None
            found |= {f"{key}.{path}" for path in below}
    return found


# --- types that would do ------------------------------------------------------------------------------------


def widened(column_type: ColumnType, values: Iterable[object], *, is_all: bool) -> ColumnType:
    """A type for the values, which do not fit; unless they are all, it also takes what fitted.

    What no such type is known for is `json`, which takes everything.
    """
    present = [value for value in values if value is not None]
    match column_type:
        case StructType(fields) if present and all(isinstance(value, dict) for value in present):
            return _wider_struct(dict(fields), present)  # type: ignore[arg-type]  # just seen to be dicts
        case ListType(item) if present and all(isinstance(value, list) for value in present):
            items = [element for value in present if isinstance(value, list) for element in value]
            return ListType(_for_values(item, items))
        case MapType(inner) if present and all(isinstance(value, dict) for value in present):
            items = [element for value in present if isinstance(value, dict) for element in value.values()]
            return MapType(_for_values(inner, items))
        case _:
            inferred = _plain(infer_type(present))
            return inferred if is_all else _joined(column_type, inferred) or Scalar("json")


def _wider_struct(fields: dict[str, ColumnType], values: Sequence[Mapping[str, object]]) -> ColumnType:
    found: dict[str, list[object]] = {}
    for value in values:
        for key, inner in value.items():
            found.setdefault(key, []).append(inner)
    for key, inners in found.items():
        if key in fields:
            fields[key] = _for_values(fields[key], inners)
        elif not is_secret_name(key) and (inferred := infer_type(inners)) is not None:
            fields[key] = inferred
    return StructType(tuple(fields.items()))


def _for_values(column_type: ColumnType, values: Sequence[object]) -> ColumnType:
    """The type itself if it takes the values, else a wider one."""
    misfits = [value for value in values if fit(value, column_type)[1] is not MISSING]
    return widened(column_type, misfits, is_all=False) if misfits else column_type


def _plain(column_type: ColumnType | None) -> ColumnType:
    return column_type if column_type is not None else Scalar("json")


def _joined(first: ColumnType | None, second: ColumnType | None) -> ColumnType | None:
    """A type for the values of both."""
    match first, second:
        case (None, other) | (other, None):
            return other
        case _ if first == second:
            return first
        case Scalar("int64" | "float64"), Scalar("int64" | "float64"):
            return Scalar("float64")
        case Scalar(ours), Scalar(theirs) if {ours, theirs} <= _TEXTS:
            return Scalar("string")
        case StructType(mine), StructType(others):
            joined = dict(mine)
            for name, inner in others:
                joined[name] = _joined(joined.get(name), inner) or inner
            return StructType(tuple(joined.items()))
        case ListType(item), ListType(other):
            return ListType(_joined(item, other) or Scalar("json"))
        case MapType(item), MapType(other):
            return MapType(_joined(item, other) or Scalar("json"))
        case _:
            return Scalar("json")


# --- from run to run ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaVersion:
    """One change of a table's columns: which run brought it, when that run began, and what it was, in words."""

    account: str
    run_id: str
    at: str
    changes: tuple[str, ...]


def changes_between(
    before: Sequence[Mapping[str, object]], after: Sequence[Mapping[str, object]]
) -> tuple[tuple[str, str], ...]:
    """What the columns of a table, as the log has them, became: the key of the answer, and in words."""
    known = {str(column["name"]) for column in before}
    types = {str(column["source"]): str(column["type"]) for column in before if column.get("live", True)}
    changes: list[tuple[str, str]] = []
    for column in after if before else ():
        name, source = str(column["name"]), str(column["source"])
        if name in known:
            continue
        if source in types:
            said = (
                f"type corrected from {_cut(types[source])} to {_cut(str(column['type']))}; "
                f"{name} has the values from now on"
            )
        else:
            origin = "" if column.get("inferred") else " from the catalogue"
            said = f"new column ({_cut(str(column['type']))}){origin}"
        changes.append((source, said))
    return tuple(changes)


def with_version(
    state: Mapping[str, object], changes: Sequence[tuple[str, str]], *, run_id: str, at: str
) -> dict[str, object]:
    """The versions that a table's state holds, and one more if there are changes: each under a key of its own."""
    versions = {key: value for key, value in state.items() if key.startswith(_VERSION)}
    if changes:
        lines = [f"{column}: {said}" for column, said in changes]
        versions[f"{_VERSION}{len(versions) + 1:05d}"] = {"run_id": run_id, "at": at, "changes": lines}
    return versions


def versions_of(account: str, state: Mapping[str, object]) -> list[SchemaVersion]:
    """The changes of a table's columns that its state tells of, oldest first."""
    found = []
    for key in sorted(key for key in state if key.startswith(_VERSION)):
        version = state[key]
        assert isinstance(version, Mapping)
        found.append(
            SchemaVersion(
                account=account,
                run_id=str(version["run_id"]),
                at=str(version["at"]),
                changes=tuple(map(str, version["changes"])),
            )
        )
    return found
