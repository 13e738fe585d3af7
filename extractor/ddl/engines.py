"""The engines, and the whole script for one of them: statements, what they follow, and what to know of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Protocol, cast

import msgspec

from extractor.ddl import athena, bigquery, duckdb, snowflake, spark
from extractor.ddl.dialect import Statement
from extractor.ddl.shape import TableShape, check_location, shapes_of
from extractor.endpoint import Endpoint
from extractor.errors import ConfigError
from extractor.lake import Lake
from extractor.store import Store

__all__ = ("ENGINES", "Script", "make_script")


class _Engine(Protocol):
    """What the module of an engine holds."""

    FOLLOWS: str
    NOTES: tuple[str, ...]

    def statements(self, shape: TableShape, location: str, tables: Sequence[str]) -> Iterator[Statement]: ...


ENGINES = ("duckdb", "spark", "athena", "snowflake", "bigquery")

_MODULES: Mapping[str, ModuleType] = {
    "duckdb": duckdb,
    "spark": spark,
    "athena": athena,
    "snowflake": snowflake,
    "bigquery": bigquery,
}
_PLACES: Mapping[str, tuple[str, ...]] = {
    "athena": ("s3://",),
    "snowflake": ("s3://", "gs://", "gcs://", "azure://", "abfs://", "abfss://"),
    "bigquery": ("gs://",),
}
"""Where an engine can read: elsewhere the script is of no use."""
_SETUP: Mapping[str, Callable[[str], Iterable[Statement]]] = {"snowflake": snowflake.setup}


class Script(msgspec.Struct, frozen=True, kw_only=True):
    """All statements for one engine over one lake, as of one run."""

    engine: str
    location: str
    run_id: str
    sequence: int
    follows: str
    """What follows new runs by itself, and what to do for the rest."""
    notes: tuple[str, ...]
    setup: tuple[Statement, ...]
    tables: tuple[tuple[TableShape, tuple[Statement, ...]], ...]

    @property
    def statements(self) -> Iterator[Statement]:
        yield from self.setup
        for _, statements in self.tables:
            yield from statements

    @property
    def text(self) -> str:
        """The script as a file for the engine's own shell."""
        heads = [
            f"{self.engine}: lake {self.location} after run {self.run_id} (entry {self.sequence})",
            self.follows,
            *self.notes,
        ]
        lines = [f"-- {' '.join(head.split())}" for head in heads]
        return "\n\n".join(["\n".join(lines), *(statement.sql for statement in self.statements)])

    def to_json(self) -> dict[str, object]:
        """The script as JSON values."""
        return {
            "engine": self.engine,
            "location": self.location,
            "run_id": self.run_id,
            "sequence": self.sequence,
            "follows": self.follows,
            "notes": list(self.notes),
            "setup": [msgspec.structs.asdict(statement) for statement in self.setup],
            "tables": [
                {
                    "name": shape.name,
                    "sync": shape.kind,
                    "partitions": list(shape.partitions),
                    "statements": [msgspec.structs.asdict(statement) for statement in statements],
                }
                for shape, statements in self.tables
            ],
        }


def _address(store: Store) -> str:
    """The lake as others find it, whatever their working directory is."""
    local = store.local_path("_extractor")
    return store.uri if local is None else str(local.parent.resolve())


def make_script(
    engine: str,
    lake: Lake,
    endpoints: Mapping[str, Endpoint],
    *,
    location: str = "",
    tables: Sequence[str] = (),
) -> Script:
    """The statements for one engine; `location` is where the engine finds the lake, if not where it is.

    Raises:
        ConfigError: an unknown engine or table, or a place that the engine cannot read.
        LakeError: nothing was committed, or the log cannot be read.
    """
    if engine not in _MODULES:
        raise ConfigError(f"--engine {engine}: the engines are {', '.join(ENGINES)}")
    place = location or _address(lake.store)
    places = _PLACES.get(engine)
    if places is not None and not place.startswith(places):
        raise ConfigError(
            f"{engine} reads {' or '.join(places)} only, and the lake is {place}; "
            f"say where a copy of it is: --location {places[0]}BUCKET/lake"
        )
    check_location(place)
    module = cast(_Engine, _MODULES[engine])
    entry, shapes = shapes_of(lake, endpoints, tables)
    names = sorted({table for table, _ in entry.tables})
    return Script(
        engine=engine,
        location=place,
        run_id=entry.run_id,
        sequence=entry.sequence,
        follows=module.FOLLOWS,
        notes=module.NOTES,
        setup=tuple(_SETUP[engine](place)) if engine in _SETUP else (),
        tables=tuple((shape, tuple(module.statements(shape, place, names))) for shape in shapes),
    )
