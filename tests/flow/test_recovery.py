"""What a run leaves when something goes wrong late, and what the next one makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

import extractor
from extractor.config import Config
from extractor.errors import AuthError, LakeError
from tests.flow import own

KEY = {"SKYSQL_API_KEY": "k" * 30}

CATALOGUE = """
[parents]
path = "/parents"
key  = ["id"]

[parents.columns]
id = "int64"

[children]
path   = "/parents/{id}/children"
parent = { endpoint = "parents", params = { id = "id" } }
keep   = { id = "id" }
key    = ["id", "n"]

[children.columns]
id = "int64"
n = "int64"

[notes]
path = "/notes"
paging = { kind = "token", request_param = "t", response_header = "X-Next" }

[wide_a]
path = "/wide/a"
[wide_b]
path = "/wide/b"
[wide_c]
path = "/wide/c"
[wide_d]
path = "/wide/d"
"""


class Site:
    """A small API whose parents can change between runs."""

    def __init__(self) -> None:
        self.parents = list(range(30))

    async def answer(self, request: web.Request) -> web.Response:
        path = request.path
        if path == "/parents":
            return web.json_response([{"id": number} for number in self.parents])
        if path.endswith("/children"):
            # So few that their own fall to none is not held back by max_drop.
            return web.json_response([{"n": 1}, {"n": 2}] if path == "/parents/0/children" else [])
        if path == "/notes":
            if "t" in request.query:
                secret = "skysql.1zzz.ab12cd34." + "Q7" * 18 + ".0a1b2c3d"
                return web.json_response([{"note": secret, "conf": {"password": "hunter2"}}])
            return web.json_response([{"note": "hello", "conf": {"a": 1}}], headers={"X-Next": "2"})
        # Short in JSON, long in Arrow: a row has columns of its own kind only in the lake.
        return web.Response(
            body=b"[" + b",".join([b'{"a":1}'] * 60_000) + b"]", content_type="application/json"
        )


def configured(folder: Path, url: str, *include: str, **limits: float) -> Config:
    more = {f"limits__{name}": value for name, value in limits.items()}
    return own.configured(folder, url, CATALOGUE, run__include=include, **more)


def rows(folder: Path, table: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = extractor.Lake(str(folder / "lake")).table(table).to_arrow().to_pylist()
    return found


async def test_a_commit_whose_publication_fails_is_whole_and_published_by_the_next_run(
    tmp_path: Path,
) -> None:
    (tmp_path / "lake").mkdir()
    blocker = tmp_path / "lake" / "parents"
    blocker.write_text("in the way")
    async with own.serving(Site().answer) as url:
        config = configured(tmp_path, url, "parents")

        with pytest.raises(LakeError, match="is committed"):
            await extractor.extract(config, environment=KEY)
        blocker.unlink()
        assert len(rows(tmp_path, "parents")) == 30  # a reader of the log finds them in staging
        report = await extractor.extract(config, environment=KEY)

    assert report.exit_code == 0
    assert len(rows(tmp_path, "parents")) == 30


async def test_children_of_a_parent_that_a_check_holds_back_are_not_published(tmp_path: Path) -> None:
    site = Site()
    async with own.serving(site.answer) as url:
        config = configured(tmp_path, url, "parents", "children")
        await extractor.extract(config, environment=KEY)
        site.parents = []

        report = await extractor.extract(config, environment=KEY)

    statuses = {table.name: table.status for table in report.tables}
    assert (report.exit_code, statuses["parents"]) == (3, "held")
    assert statuses["children"] != "complete"
    assert len(rows(tmp_path, "children")) == 2


async def test_credentials_that_come_late_in_an_undeclared_column_are_redacted(tmp_path: Path) -> None:
    async with own.serving(Site().answer) as url:
        report = await extractor.extract(configured(tmp_path, url, "notes"), environment=KEY)

    landed = json.dumps([{k: str(v) for k, v in row.items()} for row in rows(tmp_path, "notes")])
    assert "hunter2" not in landed
    assert "Q7Q7" not in landed
    assert any("redacted" in line for line in report.drift)


async def test_rows_of_many_tables_beyond_the_budget_do_not_stop_the_run(tmp_path: Path) -> None:
    async with own.serving(Site().answer) as url:
        config = configured(tmp_path, url, "wide_*", "parents", "children", memory_mb=8)
        report = await extractor.extract(config, environment=KEY)

    assert report.exit_code == 0
    assert {t.name: t.rows for t in report.tables if t.name.startswith("wide")} == dict.fromkeys(
        ("wide_a", "wide_b", "wide_c", "wide_d"), 60_000
    )


async def test_a_stream_can_be_left_and_taken_again_and_raises_what_it_says(tmp_path: Path) -> None:
    async with own.serving(Site().answer) as url:
        config = configured(tmp_path, url, "parents")
        for _ in range(2):
            async for batch in extractor.stream("parents", config, environment=KEY):
                assert batch.num_rows == 30
                break
        with pytest.raises(AuthError):
            async for _batch in extractor.stream("parents", config, environment={}):
                pass
    assert callable(extractor.stream)
