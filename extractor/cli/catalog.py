"""`catalog`: the endpoints that can be read, and how they compare with an OpenAPI file."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import click

from extractor.cli.arguments import Arguments, verb
from extractor.cli.layout import columns_text, count_text

if TYPE_CHECKING:
    from extractor.catalog import Catalog
    from extractor.config import Config
    from extractor.endpoint import ColumnType, Endpoint

__all__ = ("catalog", "endpoint_json", "type_text")

_HEADS = ("name", "path", "format", "paging", "sync", "key", "parent", "class", "tags", "origin", "enabled")


@verb(
    "catalog",
    selects=True,
    example="skysql-extract catalog --tag billing\nskysql-extract catalog services\n"
    "skysql-extract catalog --against openapi.yaml",
)
@click.argument("name", required=False)
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    metavar="SPEC",
    help="Compare with this OpenAPI file; 3 if GETs lack.",
)
def catalog(arguments: Arguments, name: str | None, against: Path | None) -> int:
    """List the endpoints that can be read.

    Path, paging, sync, key, parent, class, tags and origin of each; with NAME, all about one and its columns.
    """
    from extractor.catalog import load_catalog

    config = arguments.load()
    folders = [Path(folder) for folder in config.source.catalogs]
    known = load_catalog(folders, builtin=config.source.builtin)
    if against is not None:
        return _compare(arguments, known, against)
    if name is not None:
        endpoint = _named(known, name)
        if arguments.is_json:
            arguments.output.write_json([endpoint_json(endpoint)])
        else:
            arguments.output.write(_detail_text(endpoint))
        return 0
    chosen = _selected(known, config)
    if arguments.is_json:
        arguments.output.write_json([endpoint_json(endpoint) for endpoint in chosen])
    else:
        table = columns_text(_HEADS, [_cells(endpoint) for endpoint in chosen])
        arguments.output.write(f"{table}\n\n{count_text(len(chosen), 'endpoint')}")
    return 0


def _compare(arguments: Arguments, known: Catalog, against: Path) -> int:
    from extractor.catalog import compare, read_specification

    comparison = compare(known, read_specification(against))
    if arguments.is_json:
        arguments.output.write_json(comparison.to_json())
    else:
        arguments.output.write("\n".join(comparison.lines()))
    if comparison.lacking:
        missing = count_text(len(comparison.lacking), "GET")
        first = comparison.lacking[0].path
        arguments.output.complain(
            f"the catalogue lacks {missing} of {against}, first {first}; "
            "add them in a folder of source.catalogs"
        )
    return 3 if comparison.lacking else 0


def _named(known: Catalog, name: str) -> Endpoint:
    if name not in known.endpoints:
        raise _unknown("endpoint", name, known.endpoints)
    return known.endpoints[name]


def _unknown(noun: str, name: str, known: Iterable[str]) -> click.UsageError:
    import difflib

    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
    advice = f"did you mean {close[0]}?" if close else "see skysql-extract catalog"
    return click.UsageError(f"there is no {noun} {name!r}; {advice}")


def _selected(known: Catalog, config: Config) -> list[Endpoint]:
    """What the selection leaves, endpoints that are off included: here one looks, nothing is requested."""
    for glob in config.run.include:
        if not any(fnmatchcase(name, glob) for name in known.endpoints):
            raise _unknown("endpoint", glob, known.endpoints)
    tags = {tag for endpoint in known.endpoints.values() for tag in endpoint.tags}
    for tag in config.run.tags:
        if tag not in tags:
            raise _unknown("tag", tag, tags)

    def matches(name: str, globs: Iterable[str]) -> bool:
        return any(fnmatchcase(name, glob) for glob in globs)

    return [
        endpoint
        for name, endpoint in known.endpoints.items()
        if matches(name, config.run.include)
        and not matches(name, config.run.exclude)
        and (not config.run.tags or set(config.run.tags) & set(endpoint.tags))
    ]


# --- as JSON ------------------------------------------------------------------------------------------------


def endpoint_json(endpoint: Endpoint) -> dict[str, object]:
    """One endpoint as JSON values, with the names of an endpoint file."""
    import msgspec

    parent = endpoint.parent
    window = endpoint.sync.window
    return {
        "name": endpoint.name,
        "path": endpoint.path,
        "method": endpoint.method,
        "params": dict(endpoint.params),
        "format": endpoint.format,
        "records": endpoint.records,
        "paging": msgspec.to_builtins(endpoint.paging),
        "sync": endpoint.sync.kind,
        "window": msgspec.to_builtins(window) if window else None,
        "key": list(endpoint.key),
        "parent": msgspec.to_builtins(parent) if parent else None,
        "keep": dict(endpoint.keep),
        "empty_on": list(endpoint.empty_on),
        "columns": {
            column.path: {"type": type_text(column.type) if column.type else "", "class": column.class_}
            for column in endpoint.columns
        },
        "class": endpoint.class_,
        "tags": list(endpoint.tags),
        "origin": endpoint.origin,
        "enabled": endpoint.enabled,
        "note": endpoint.note,
        "file": endpoint.file,
    }


def type_text(column_type: ColumnType) -> str:
    """A column type as an endpoint file writes it: the inverse of `parse_type`."""
    from extractor.endpoint import ListType, MapType, Scalar

    match column_type:
        case Scalar(name):
            return name
        case ListType(item):
            return f"list<{type_text(item)}>"
        case MapType(value):
            return f"map<string, {type_text(value)}>"
        case _:
            fields = (f"{name}: {type_text(kind)}" for name, kind in column_type.fields)
            return f"struct<{', '.join(fields)}>"


# --- as text ------------------------------------------------------------------------------------------------


def _cells(endpoint: Endpoint) -> tuple[str, ...]:
    paging = _paging_kind(endpoint)
    return (
        endpoint.name,
        endpoint.path if endpoint.method == "GET" else f"{endpoint.method} {endpoint.path}",
        "" if endpoint.format == "json" else endpoint.format,
        "" if paging == "none" else paging,
        endpoint.sync.kind,
        ",".join(endpoint.key),
        endpoint.parent.endpoint if endpoint.parent else "",
        endpoint.class_,
        ",".join(endpoint.tags),
        endpoint.origin,
        "" if endpoint.enabled else "off",
    )


def _paging_kind(endpoint: Endpoint) -> str:
    return str(endpoint.paging.__struct_config__.tag)


def _detail_text(endpoint: Endpoint) -> str:
    """Everything about one endpoint, one line a fact, then its columns."""
    facts: list[tuple[str, str]] = []
    for key, value in endpoint_json(endpoint).items():
        if key == "columns" or value in (None, "", [], {}):
            continue
        facts.append((key, _fact_text(value)))
    lines = [columns_text(("name", "value"), facts).partition("\n")[2]]
    columns = [
        (column.path, type_text(column.type) if column.type else "", column.class_)
        for column in endpoint.columns
    ]
    if columns:
        lines += ["", columns_text(("column", "type", "class"), columns)]
    return "\n".join(lines)


def _fact_text(value: object) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case dict():
            return ", ".join(
                f"{key} = {_fact_text(inner)}" for key, inner in value.items() if inner not in (None, "", [])
            )
        case list() | tuple():
            return ", ".join(_fact_text(inner) for inner in value)
        case _:
            return str(value)
