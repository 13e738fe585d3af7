"""A run that was stopped is taken up: what is asked again, what is read anew, and what is left as it was."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

import extractor
from extractor.config import Config
from extractor.pipeline import Interruption, extract
from extractor.report import RunReport
from tests.flow import own

KEY = {"SKYSQL_API_KEY": "k" * 30}
CATALOGUE = """
[long]
path   = "/long"
paging = { kind = "token", request_param = "t", response_header = "X-Next" }
key    = ["id"]

[other]
path   = "/other"
paging = { kind = "token", request_param = "t", response_header = "X-Next" }
key    = ["id"]

[numbered]
path   = "/numbered"
paging = { kind = "offset", offset_param = "offset", limit_param = "limit", limit = 2 }
key    = ["id"]

[scrapes]
path   = "/scrapes/{id}"
parent = { endpoint = "short", params = { id = "id" } }
keep   = { id = "id" }
format = "openmetrics"
paging = { kind = "token", request_param = "t", response_header = "X-Next" }
columns = { id = "string", labels = "map<string, string>", value = "float64" }

[short]
path = "/short"

[typed]
path    = "/typed"
paging  = { kind = "token", request_param = "t", response_header = "X-Next" }
key     = ["id"]
columns = { id = "int64", size = "int64" }

[below]
path   = "/long/{id}/below"
parent = { endpoint = "long", params = { id = "id" } }
keep   = { id = "id" }
"""


@dataclass
class Site:
    """An API of a few tables of rows; tells a run to end when it has answered so many requests."""

    rows: dict[str, list[int]] = field(
        default_factory=lambda: {
            "long": list(range(12)),
            "other": list(range(12)),
            "numbered": list(range(12)),
            "short": [1],
            "typed": list(range(12)),
        }
    )
    tokens: str = "a"
    """What tokens begin with; others are refused."""
    asked: list[str] = field(default_factory=list)
    stops_at: int = 0
    interruption: Interruption | None = None

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(request.path_qs)
        if len(self.asked) == self.stops_at and self.interruption is not None:
            self.interruption.set(143, "stopped")
        table = request.path.strip("/")
        if table.endswith("below"):
            return web.json_response([{"n": 1}])
        if table.startswith("scrapes"):
            number = int(table.partition("/")[2])
            # The first one names a position that repeats the key.
            headers = (
                {"X-Next": f"{KEY['SKYSQL_API_KEY']}-1"} if number == 1 and "t" not in request.query else {}
            )
            return web.Response(
                text=f'up{{n="{number}{request.query.get("t", "")[-2:]}"}} 1\n', headers=headers
            )
        rows = self.rows[table]
        if table == "numbered":
            offset = int(request.query["offset"])
            return web.json_response([{"id": row} for row in rows[offset : offset + 2]])
        if table == "short":
            return web.json_response([{"id": row} for row in rows])
        prefix, _, after = request.query.get("t", f"{self.tokens}:-1").partition(":")
        if prefix != self.tokens:
            return web.json_response({"error": "no such token"}, status=400)
        rest = [row for row in rows if row > int(after)]
        headers = {"X-Next": f"{self.tokens}:{rest[1]}"} if len(rest) > 2 else {}
        if table == "typed":
            return web.json_response(
                [{"id": row, "size": row or "none"} for row in rest[:2]], headers=headers
            )
        return web.json_response([{"id": row} for row in rest[:2]], headers=headers)

    def first_pages(self, table: str) -> int:
        """How often the table was begun."""
        return sum(path in (f"/{table}", f"/{table}?offset=0&limit=2") for path in self.asked)


def configured(folder: Path, url: str, *include: str, **more: object) -> Config:
    return own.configured(
        folder, url, CATALOGUE, **{"run__include": include, "limits__concurrency": 1, **more}
    )


async def stopped(site: Site, config: Config, *, at: int) -> RunReport:
    site.stops_at, site.interruption = len(site.asked) + at, Interruption()
    report = await extract(config, environment=KEY, interruption=site.interruption)
    assert report.exit_code == 143
    site.asked.clear()
    return report


async def run(config: Config) -> RunReport:
    return await extract(config, environment=KEY)


def ids(folder: Path, table: str, column: str = "id") -> list[Any]:
    landed = extractor.Lake(str(folder / "lake")).table(table).to_arrow()
    return sorted(landed.column(column).to_pylist())


def statuses(report: RunReport) -> dict[str, str]:
    return {table.name: table.status for table in report.tables}


async def test_chains_go_on_at_their_next_page_and_committed_tables_are_not_asked_for(tmp_path: Path) -> None:
    site = Site()
    async with own.serving(site.answer) as url:
        config = configured(tmp_path, url, "long", "other", "short")
        first = await stopped(site, config, at=7)
        assert ids(tmp_path, "short", "id") == [1]
        second = await run(config)

    assert (first.run_id, second.exit_code) == (second.run_id, 0)
    assert statuses(first)["short"] == "complete"
    assert [site.first_pages(table) for table in ("long", "other", "short")] == [0, 0, 0]
    assert len(site.asked) <= 8
    assert ids(tmp_path, "long") == ids(tmp_path, "other") == list(range(12))
    assert {table.name: table.rows for table in second.tables} == {"long": 12, "other": 12, "short": 1}
    entries = list(extractor.Lake(str(tmp_path / "lake")).log.entries())
    assert [(entry.run_part, entry.is_final) for entry in entries] == [(1, False), (2, True)]
    moments = extractor.Lake(str(tmp_path / "lake")).table("long").to_arrow().column("_snapshot_at").unique()
    assert [moment.isoformat() for moment in moments.to_pylist()] == [first.started_at]
    assert list((tmp_path / "lake" / "_extractor" / "staging").iterdir()) == []


async def test_references_are_looked_up_in_what_was_committed_before_the_stop(tmp_path: Path) -> None:
    (tmp_path / "skysql-extract.toml").write_text("[checks.long.references]\nid = 'short.id'\n")
    site = Site()
    site.rows["short"] = list(range(12))
    async with own.serving(site.answer) as url:
        config = configured(tmp_path, url, "short", "long")
        first = await stopped(site, config, at=4)
        second = await run(config)

    assert statuses(first)["short"] == "complete" != statuses(first)["long"]
    assert (first.run_id, second.exit_code) == (second.run_id, 0)
    assert ids(tmp_path, "long") == list(range(12))


async def test_what_did_not_fit_before_the_stop_is_told_after_it(tmp_path: Path) -> None:
    site = Site()
    async with own.serving(site.answer) as url:
        config = configured(tmp_path, url, "typed")
        first = await stopped(site, config, at=3)
        second = await run(config)

    assert (first.run_id, second.exit_code) == (second.run_id, 0)
    assert len(site.asked) == 3
    (line,) = second.drift
    assert line.startswith("typed.size: 1 value does not fit int64, rescued")


async def test_rows_of_an_answer_that_is_not_written_down_are_no_others(tmp_path: Path) -> None:
    site = Site()
    site.rows["short"] = [1, 2, 3, 4, 5]
    async with own.serving(site.answer) as url:
        config = configured(tmp_path, url, "short", "scrapes")
        first = await stopped(site, config, at=5)
        kept = [path.read_bytes() for path in (tmp_path / "lake").rglob("journal/*") if path.is_file()]
        second = await run(config)

    assert kept
    assert not any(KEY["SKYSQL_API_KEY"].encode() in content for content in kept)
    assert (first.run_id, second.exit_code) == (second.run_id, 0)
    landed = extractor.Lake(str(tmp_path / "lake")).table("scrapes").to_arrow()
    told = sorted((row["id"], dict(row["labels"])["n"]) for row in landed.to_pylist())
    assert told == [("1", "1"), ("1", "1-1"), ("2", "2"), ("3", "3"), ("4", "4"), ("5", "5")]
    assert "/short" not in site.asked
    assert "/scrapes/2" not in site.asked


async def test_more_pages_allowed_make_a_run_of_their_own(tmp_path: Path) -> None:
    site = Site()
    async with own.serving(site.answer) as url:
        first = await stopped(site, configured(tmp_path, url, "long"), at=3)
        second = await run(configured(tmp_path, url, "long", bounds__pages=50))

    assert first.run_id != second.run_id
    assert (second.exit_code, site.first_pages("long")) == (0, 1)
    assert ids(tmp_path, "long") == list(range(12))


async def test_a_run_may_be_stopped_again_and_again(tmp_path: Path) -> None:
    site = Site()
    async with own.serving(site.answer) as url:
        config = configured(tmp_path, url, "long", "below")
        runs = [(await stopped(site, config, at=3)).run_id for _ in range(3)]
        last = await run(config)

    assert set(runs) == {last.run_id}
    assert last.exit_code == 0
    assert ids(tmp_path, "long") == list(range(12))
    assert ids(tmp_path, "below") == sorted(str(number) for number in range(12))


async def test_a_token_that_is_refused_begins_that_chain_anew_and_no_other(tmp_path: Path) -> None:
    site = Site()
    async with own.serving(site.answer) as url:
        config = configured(tmp_path, url, "long", "numbered")
        first = await stopped(site, config, at=6)
        site.tokens = "b"
        site.rows["long"] = list(range(5, 20))
        second = await run(config)

    assert (first.run_id, second.exit_code) == (second.run_id, 0)
    assert site.first_pages("long") == 1
    assert site.first_pages("numbered") == 0
    assert ids(tmp_path, "long") == list(range(5, 20))
    assert ids(tmp_path, "numbered") == list(range(12))
    assert any("begun anew" in warning for warning in second.warnings)


async def test_rows_that_moved_between_numbered_pages_meanwhile_are_seen(tmp_path: Path) -> None:
    site = Site()
    async with own.serving(site.answer) as url:
        config = configured(tmp_path, url, "numbered")
        await stopped(site, config, at=3)
        site.rows["numbered"].remove(0)
        second = await run(config)

    assert second.exit_code == 0
    assert site.first_pages("numbered") == 1
    assert ids(tmp_path, "numbered") == list(range(1, 12))


async def test_a_table_that_another_run_has_committed_is_read_afresh(tmp_path: Path) -> None:
    site = Site()
    async with own.serving(site.answer) as url:
        config = configured(tmp_path, url, "long", "other")
        first = await stopped(site, config, at=7)
        between = await run(configured(tmp_path, url, "long"))
        site.asked.clear()
        site.rows["long"] = [3, 4]
        second = await run(config)

    assert (second.run_id, second.exit_code) == (first.run_id, 0)
    assert between.run_id != first.run_id
    assert (site.first_pages("long"), site.first_pages("other")) == (1, 0)
    assert ids(tmp_path, "long") == [3, 4]
    assert ids(tmp_path, "other") == list(range(12))


async def test_a_run_of_another_configuration_does_not_take_it_up_and_leaves_it(tmp_path: Path) -> None:
    site = Site()
    async with own.serving(site.answer) as url:
        config = configured(tmp_path, url, "long", "other")
        first = await stopped(site, config, at=5)
        another = await run(configured(tmp_path, url, "other"))
        same = await run(configured(tmp_path, url, "long", "other", checks__max_drop=0.5, limits__burst=2))

    assert another.run_id != first.run_id
    assert (same.run_id, same.exit_code) == (first.run_id, 0)


async def test_a_run_that_is_too_old_is_not_taken_up_and_removed(tmp_path: Path) -> None:
    site = Site()
    async with own.serving(site.answer) as url:
        first = await stopped(site, configured(tmp_path, url, "long"), at=3)
        second = await run(configured(tmp_path, url, "long", limits__resume_seconds=1e-9))

    assert second.run_id != first.run_id
    assert site.first_pages("long") == 1
    assert list((tmp_path / "lake" / "_extractor" / "staging").iterdir()) == []


async def test_the_journal_holds_no_key_and_of_headers_only_the_page_token(tmp_path: Path) -> None:
    site = Site()
    async with own.serving(site.answer) as url:
        await stopped(site, configured(tmp_path, url, "long"), at=3)

    content = b"".join(path.read_bytes() for path in tmp_path.rglob("journal/*"))  # noqa: ASYNC240
    assert b"x-next" in content
    assert KEY["SKYSQL_API_KEY"].encode() not in content
    assert b"content-type" not in content.lower()
    assert b"date" not in content.lower().replace(b"snapshot_date", b"")
