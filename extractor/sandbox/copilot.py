"""The assistant: agents, data sources, quota and sessions."""

from __future__ import annotations

from collections.abc import Mapping

from extractor.sandbox import billing
from extractor.sandbox.rows import Row, Rows
from extractor.sandbox.world import World, instant

__all__ = ("agents", "data_source", "data_sources", "export", "quota", "session", "sessions")


def agents(world: World) -> Rows:
    """Agents, of the system and of users."""
    rows: list[Row] = [
        {
            "context_id": world.chance.uuid("context", n) if n else None,
            "created_on": _moment(world, "agent", n),
            "datasource_id": world.chance.uuid("data source", n % 2) if n else None,
            "description": ("DBA copilot", None, "Sales questions")[n],
            "id": world.chance.uuid("agent", n),
            "index_status": ("INSYNC", "OUTOFSYNC")[n % 2],
            "name": f"agent {n}",
            "status": ("DEPLOYED", "DEVELOPMENT", "RETIRED")[n],
            "type": "USER" if n else "SYSTEM",
        }
        for n in range(3)
    ]
    return world.kept("agents", lambda: world.keyed(rows, label="agent"))


def export(world: World, params: Mapping[str, str]) -> Rows | None:
    """An agent as a document: context, tables, columns."""
    found = agents(world).find("id", params["agent_id"])
    if found is None:
        return None
    tables = [_table(n) for n in range(found + 1)]
    context: Row = {"description": None, "name": f"context {found}", "tables": tables}
    return Rows.of([{"context": context, "description": "exported", "name": f"agent {found}"}])


def data_sources(world: World) -> Rows:
    """Databases that agents may ask."""
    return world.kept(
        "data sources", lambda: world.keyed([_source(world, n) for n in range(2)], label="source")
    )


def data_source(world: World, params: Mapping[str, str]) -> Rows | None:
    """A database with its schemas."""
    found = data_sources(world).find("id", params["datasource_id"])
    if found is None:
        return None
    schemas: list[Row] = [
        {"name": "shop", "tables": ["orders", "zamówienia"]},
        {"name": "empty", "tables": []},
    ]
    return Rows.of([{**_source(world, found), "schemas": schemas}])


def quota(world: World, month: str) -> list[Row]:
    """What may be asked, and what was in a month "YYYY-MM"; nothing of one in which nobody was there."""
    if month not in billing.months(world):
        return []
    asked = billing.days_billed(world, month)
    return [
        {
            "description": f"{name} a month",
            "name": name,
            "unit": "count",
            "usage": world.chance.bits(f"usage {month}", n) % 500 + asked,
            "value": 500 * (n + 1),
        }
        for n, name in enumerate(("questions", "agents", "tokens"))
    ]


def sessions(world: World) -> Rows:
    """Conversations."""
    count = 0 if "session-404" in world.options.variants else 2
    return world.kept(
        "sessions", lambda: world.keyed([_session(world, n) for n in range(count)], label="session")
    )


def session(world: World, params: Mapping[str, str]) -> Rows | None:
    """A conversation with its entries."""
    found = sessions(world).find("id", params["session_id"])
    if found is None:
        return None
    entries = [_entry(world, found * 10 + n) for n in range(found + 1)]
    return Rows.of([{**_session(world, found), "entries": entries}])


def _moment(world: World, kind: str, n: int) -> str:
    micros = world.chance.bits(f"{kind} micros", n) % 10**6
    return f"{instant(world.moment(kind, n))[:-1]}.{micros:06d}Z"


def _table(n: int) -> Row:
    columns: list[Row] = [
        {"data_role": "DIMENSION", "description": None, "name": "id", "type": "bigint"},
        {
            "data_role": None,
            "description": "when it was ordered",
            "name": "ordered_at",
            "type": "datetime(6)",
        },
    ]
    return {"columns": columns[: 1 + n], "description": f"table {n}", "name": f"orders_{n}"}


def _source(world: World, n: int) -> Row:
    return {
        "host": f"{world.service_id(n)}.sysp0000.db.skysql.example",
        "created_on": _moment(world, "data source", n),
        "id": world.chance.uuid("data source", n),
        "name": f"source {n}",
        "port": 3306,
        "type": "USER",
        "username": f"reader{n}",
    }


def _session(world: World, n: int) -> Row:
    return {
        "agent_config": {"model": "small", "limits": {"rows": 100 * n, "tables": ["orders"]}}
        if n
        else {"model": "x"},
        "agent_id": world.chance.uuid("agent", n),
        "created_on": _moment(world, "session", n),
        "id": world.chance.uuid("session", n),
        "summary": "What sold best" if n else None,
    }


def _entry(world: World, n: int) -> Row:
    return {
        "chat": {
            "prompt": "What sold\nbest in Łódź?",
            "response": {
                "col_keys": ["item", "amount"],
                "content": None if n % 2 else "The lamp.",
                "error_text": "",
                "sql_text": "select item, sum(amount) from orders group by 1 order by 2 desc limit 1",
            },
        },
        "confidence": 0.75 if n % 2 else None,
        "created_on": _moment(world, "entry", n),
        "feedback": {"stars": 5} if n % 2 else None,
        "id": world.chance.uuid("entry", n),
    }
