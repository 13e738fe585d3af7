"""`ddl`: the statements with which an engine reads the lake."""

from __future__ import annotations

from pathlib import Path

import click

from extractor.cli.arguments import Arguments, verb

__all__ = ("ddl",)

_ENGINES = ("duckdb", "spark", "athena", "snowflake", "bigquery")


@verb("ddl", example="skysql-extract ddl --engine duckdb --lake lake | duckdb lake.duckdb")
@click.argument("tables", nargs=-1)
@click.option("--engine", required=True, type=click.Choice(_ENGINES), help="What reads the lake.")
@click.option(
    "--location",
    default="",
    metavar="URI",
    help="Where the engine finds the lake, if not where it is here.",
)
def ddl(arguments: Arguments, tables: tuple[str, ...], engine: str, location: str) -> int:
    """Print table, current and history views for an engine, of all TABLES or of those named."""
    config = arguments.load()
    from extractor.catalog import load_catalog
    from extractor.ddl.engines import make_script
    from extractor.lake import Lake

    folders = [Path(folder) for folder in config.source.catalogs]
    endpoints = load_catalog(folders, builtin=config.source.builtin).endpoints
    script = make_script(engine, Lake(config.lake.uri), endpoints, location=location, tables=tables)
    if arguments.is_json:
        arguments.output.write_json(script.to_json())
    else:
        arguments.output.write(script.text)
    return 0
