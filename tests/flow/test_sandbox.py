from __future__ import annotations

import asyncio
import io
import re
import signal
import sys
import zipfile
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from urllib.parse import quote

import aiohttp
import orjson
import pytest

from extractor.digest import digest_rows
from extractor.sandbox import SandboxOptions, running
from extractor.sandbox.routes import ROUTES, Route

SMALL = {
    "services": 7,
    "series": 90,
    "log_lines": 12,
    "log_days": 2,
    "notifications": 45,
    "today": date(2026, 3, 10),
}
ANCHOR = 1773100800
NEXT = "X-SkySQL-Page-Token-Next"
KEY = {"X-API-Key": "any"}
Row = dict[str, object]


class Caller:
    """A client that trusts nothing: it tries again until an answer is whole and makes sense."""

    def __init__(self, url: str, session: aiohttp.ClientSession, headers: Mapping[str, str]) -> None:
        self.url, self.session, self.headers = url, session, headers

    async def get(self, path: str, /, **query: object) -> aiohttp.ClientResponse:
        params = {name: str(value) for name, value in query.items()}
        response = await self.session.get(
            self.url + path, params=params, headers=self.headers, allow_redirects=False
        )
        await response.read()
        return response

    async def json(self, path: str, /, **query: object) -> object:
        return (await self.whole(path, **query))[0]

    async def whole(self, path: str, /, **query: object) -> tuple[object, aiohttp.ClientResponse]:
        for _ in range(200):
            try:
                response = await self.get(path, **query)
                if response.status not in (429, 500, 503):
                    return orjson.loads(await response.read()), response
            except (aiohttp.ClientError, orjson.JSONDecodeError):
                continue
        raise AssertionError(f"no answer from {path}")

    async def by_token(self, path: str, /, **query: object) -> list[Row]:
        rows: list[Row] = []
        token: str | None = ""
        while token is not None:
            body, response = await self.whole(path, **query, **({"page_token": token} if token else {}))
            assert isinstance(body, list)
            rows += body
            token = response.headers.get(NEXT) or None
        return rows

    async def by_number(self, path: str, name: str, /, **query: object) -> list[Row]:
        rows: list[Row] = []
        page, pages = 1, 1
        while page <= pages:
            body = await self.json(path, page=page, **query)
            assert isinstance(body, dict)
            rows += body[name]
            page, pages = page + 1, body["pages_count"]
        return rows

    async def by_offset(self, path: str, name: str, limit: int) -> list[Row]:
        rows: list[Row] = []
        count = 1
        offset = 0
        while offset < count:
            body = await self.json(path, limit=limit, offset=offset)
            assert isinstance(body, dict)
            rows += body[name]
            offset, count = offset + limit, body["count"]
        return rows

    async def truth(self, path: str, /, **query: object) -> tuple[int, str]:
        found = (await self.json("/_sandbox/truth", path=path, **query))[path]  # type: ignore[index]
        return found["rows"], found["digest"]

    async def truth_rows(self, path: str, /, **query: object) -> list[Row]:
        response = await self.get("/_sandbox/truth" + quote(path), **{"as": "ndjson"}, **query)
        assert response.status == 200
        return [orjson.loads(line) for line in (await response.read()).splitlines()]

    async def stats(self) -> dict[str, object]:
        found = await self.json("/_sandbox/stats")
        assert isinstance(found, dict)
        return found


@asynccontextmanager
async def sandbox(**options: object) -> AsyncIterator[Caller]:
    headers = options.pop("headers", KEY)
    merged = {**SMALL, **options}
    if "variants" in merged:
        merged["variants"] = frozenset(merged["variants"])  # type: ignore[call-overload]
    opened = running(SandboxOptions(**merged))  # type: ignore[arg-type]
    async with opened as url, aiohttp.ClientSession() as session:
        yield Caller(url, session, headers)  # type: ignore[arg-type]


def timed(row: Row, *names: str) -> Row:
    """The row with its epoch fields as times."""
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    return {key: epoch + timedelta(seconds=int(str(v))) if key in names else v for key, v in row.items()}


def by_key(rows: list[Row], key: str = "id") -> list[Row]:
    return list({row[key]: row for row in rows}.values())


async def concrete(caller: Caller, route: Route) -> tuple[str, dict[str, object]]:
    """A path of the route that exists, and the query that it demands."""
    service = (await caller.truth_rows("/provisioning/v1/services"))[0]["id"]
    log = (await caller.truth_rows("/observability/v2/logs"))[0]["id"]
    bucket = (await caller.truth_rows("/observability/v2/logs/retention"))[0]
    queries: dict[str, dict[str, object]] = {
        "/als/v1/actions": {"service_id": service},
        "/observability/v2/logs/archive": {"logIds": log},
        "/observability/v2/logs/credentials": {"provider": bucket["provider"], "region": bucket["region"]},
        "/observability/v2/logs/retention": {k: bucket[k] for k in ("bucket_name", "provider")},
        "/observability/v2/query": {"query": "mariadb_server_build"},
        "/observability/v2/query_range": {"query": "mariadb_server_build", "start": 0, "end": 60, "step": 30},
    }
    if "{" not in route.path:
        return route.path, queries.get(route.path, {})
    if route.is_secret:
        return route.path.format(service_id=service), {}
    row = (await caller.truth_rows(route.path))[0]
    names = re.findall(r"\{(\w+)\}", route.path)
    return route.path.format(**{name: quote(str(row[name]), safe="") for name in names}), {}


async def test_a_page_without_page_size_has_ten_rows() -> None:
    async with sandbox() as caller:
        response = await caller.get("/provisioning/v1/regions")

        assert len(await response.json()) == 10
        assert response.headers[NEXT]


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_tokens_lead_through_all_regions_in_either_order(order: str) -> None:
    async with sandbox() as caller:
        rows = await caller.by_token("/provisioning/v1/regions", page_order=order)

        assert Counter(str(row["provider"]) for row in rows) == {"aws": 14, "gcp": 19, "azure": 8}
        assert digest_rows(rows) == await caller.truth("/provisioning/v1/regions")


@pytest.mark.parametrize("size", ["0", "101", "many"])
async def test_a_page_size_outside_its_range_is_a_bad_request(size: str) -> None:
    async with sandbox() as caller:
        response = await caller.get("/provisioning/v1/regions", page_size=size)

        assert response.status == 400
        assert (await response.json())["code"] == 400


async def test_the_previous_token_leads_back() -> None:
    async with sandbox() as caller:
        first = await caller.get("/provisioning/v1/regions")
        second = await caller.get("/provisioning/v1/regions", page_token=first.headers[NEXT])
        again = await caller.get(
            "/provisioning/v1/regions", page_token=second.headers["X-SkySQL-Page-Token-Previous"]
        )

        assert await again.json() == await first.json()


async def test_each_route_answers_with_a_key_and_refuses_without() -> None:
    async with sandbox(variants=["roles-present"]) as caller:
        for route in ROUTES.values():
            path, query = await concrete(caller, route)
            granted = await caller.get(path, **query)
            refused = await caller.session.get(
                caller.url + path, params={k: str(v) for k, v in query.items()}
            )

            assert granted.status == (202 if path.endswith("/values") else 200), path
            assert refused.status == 401, path


async def test_each_detail_of_an_unknown_parent_is_not_found() -> None:
    async with sandbox() as caller:
        for route in ROUTES.values():
            if "{" in route.path:
                response = await caller.get(re.sub(r"\{\w+\}", "77777777", route.path))

                assert response.status == 404, route.path


async def test_paths_that_the_api_never_had_are_not_found() -> None:
    async with sandbox() as caller:
        for path in ("/provisioning/v1/databases", "/provisioning/v1/users"):
            response = await caller.get(path)

            assert response.status == 404
            assert {"code", "exception", "path", "trace_id", "errors"} <= set(await response.json())


async def test_each_family_has_its_own_error_body() -> None:
    async with sandbox(headers={}) as caller:
        bodies = {}
        for path in (
            "provisioning/v1/tiers",
            "skybackup/v1/backups",
            "billing/v1/account",
            "copilot/v1/agent/",
        ):
            bodies[path.split("/")[0]] = await (await caller.get(f"/{path}")).json()
        organization = await (await caller.get("/organization/v1/users")).read()

        assert "metadata" in bodies["provisioning"]
        assert set(bodies["skybackup"]) == {"code", "exception", "path", "timestamp", "trace_id", "errors"}
        assert bodies["billing"]["err"]
        assert set(bodies["copilot"]["detail"][0]) == {"loc", "msg", "type"}
        assert organization == b""


async def test_empty_answers_take_the_form_of_their_route() -> None:
    async with sandbox(variants=["session-404", "tax-404", "organization-empty"]) as caller:
        assert (await caller.get("/organization/v1/roles")).status == 204
        assert (await caller.get("/organization/v1/users")).status == 204
        assert (await caller.get("/copilot/v1/session/")).status == 404
        assert (await caller.get("/billing/v1/tax")).status == 404
        assert await (await caller.get("/billing/v1/bills", year=1999, month=1)).read() == b"null"
        assert await caller.truth("/copilot/v1/session/") == (0, "0" * 32)


async def test_a_copilot_path_without_its_slash_redirects() -> None:
    async with sandbox() as caller:
        response = await caller.get("/copilot/v1/agent")

        assert response.status == 307
        assert response.headers["Location"] == "/copilot/v1/agent/"


async def test_a_bucket_of_one_second_refuses_what_is_over_it() -> None:
    async with sandbox(rate_limit=5, variants=["rate-headers"]) as caller:
        answers = await asyncio.gather(*(caller.get("/provisioning/v1/providers") for _ in range(20)))
        refused = [answer for answer in answers if answer.status == 429]
        stats = await caller.stats()

        assert 5 <= 20 - len(refused) <= 15
        assert {answer.headers["Retry-After"] for answer in refused} == {"1"}
        assert {answer.headers["X-RateLimit-Limit"] for answer in answers} == {"5"}
        assert (stats["answered"], stats["refused"]) == (20 - len(refused), len(refused))


async def test_a_key_is_exchanged_for_a_bearer_token() -> None:
    async with sandbox(keys=("right",), headers={"Authorization": "Token right"}) as caller:
        for path in ("/api/v1/token/", "/api/v1/token"):
            exchange = await caller.session.post(caller.url + path, headers={"Authorization": "Token right"})
            grant = await exchange.json()
            bearer = {"Authorization": f"Bearer {grant['token']}"}
            answer = await caller.session.get(f"{caller.url}/provisioning/v1/tiers", headers=bearer)
            life = datetime.fromisoformat(grant["exp"]) - datetime.fromisoformat(grant["iat"])

            assert answer.status == 200
            assert round(life.total_seconds()) == 3600
        assert (await (await caller.get("/api/v1/keyinfo/")).json())["scopes"]
        assert (await caller.stats())["tokens_issued"] == 2


async def test_a_wrong_key_gets_no_token() -> None:
    async with sandbox(keys=("right",)) as caller:
        answer = await caller.session.post(
            f"{caller.url}/api/v1/token/", headers={"Authorization": "Token wrong"}
        )

        assert answer.status == 401
        assert set(await answer.json()) == {"detail"}
        assert (await caller.get("/provisioning/v1/tiers")).status == 401


async def test_an_expired_token_is_refused_and_counted() -> None:
    async with sandbox(token_ttl=1e-9) as caller:
        exchange = await caller.session.post(
            f"{caller.url}/api/v1/token/", headers={"Authorization": "Token any"}
        )
        caller.headers = {"Authorization": f"Bearer {(await exchange.json())['token']}"}

        assert (await caller.get("/provisioning/v1/tiers")).status == 401
        assert (await caller.stats())["expired_token_requests"] == 1


async def test_a_revoked_key_is_refused_everywhere() -> None:
    async with sandbox(revoke_after=2) as caller:
        statuses = [(await caller.get("/provisioning/v1/tiers")).status for _ in range(3)]
        exchange = await caller.session.post(
            f"{caller.url}/api/v1/token/", headers={"Authorization": "Token any"}
        )

        assert statuses == [200, 200, 401]
        assert exchange.status == 401


async def test_a_denied_glob_matches_path_and_template() -> None:
    async with sandbox(deny=("/billing/*", "/provisioning/v1/services/{service_id}")) as caller:
        service = (await caller.truth_rows("/provisioning/v1/services"))[0]["id"]

        assert (await caller.get("/billing/v1/account")).status == 403
        assert (await caller.get(f"/provisioning/v1/services/{service}")).status == 403
        assert (await caller.get(f"/provisioning/v1/services/{service}/replicas")).status == 200


async def test_an_organization_has_its_own_data() -> None:
    async with sandbox() as caller:
        default = await caller.json("/provisioning/v1/services")
        caller.headers = {**KEY, "X-MDB-Org": "orgother"}
        other = await caller.json("/provisioning/v1/services")
        users = await caller.json("/organization/v1/users")
        truth = await caller.truth("/provisioning/v1/services")
        caller.headers = KEY

        assert other != default
        assert {user["org_id"] for user in users} == {"orgother"}  # type: ignore[attr-defined]
        assert truth == await caller.truth("/provisioning/v1/services", org="orgother")


async def test_equal_seeds_serve_equal_data_and_others_do_not() -> None:
    found = []
    for seed in (4, 4, 5):
        async with sandbox(seed=seed) as caller:
            found.append(await caller.json("/_sandbox/truth"))

    assert found[0] == found[1]
    assert found[0] != found[2]


async def test_a_walk_over_services_gives_the_truth() -> None:
    async with sandbox(services=31) as caller:
        rows = await caller.by_token("/provisioning/v1/services", page_size=7)
        epochs = ("created_on", "updated_on", "assigned_on", "volume_modified_on")

        assert len(rows) == 31
        assert all(len(row) == 42 for row in rows)
        assert digest_rows(timed(row, *epochs) for row in rows) == await caller.truth(
            "/provisioning/v1/services"
        )


async def test_a_walk_by_page_number_gives_the_truth_in_either_order() -> None:
    async with sandbox(services=31) as caller:
        truth = await caller.truth("/skybackup/v1/backups")

        for order in ("asc", "desc"):
            assert (
                digest_rows(await caller.by_number("/skybackup/v1/backups", "backups", order=order)) == truth
            )


async def test_backups_of_each_service_add_up_to_all_backups() -> None:
    async with sandbox() as caller:
        rows: list[Row] = []
        for service in await caller.by_token("/provisioning/v1/services"):
            rows += await caller.by_number(f"/skybackup/v1/backups/{service['id']}", "backups")

        assert digest_rows(rows) == await caller.truth("/skybackup/v1/backups")
        assert digest_rows(rows) == await caller.truth("/skybackup/v1/backups/{service_id}")


async def test_a_walk_by_offset_gives_the_truth() -> None:
    async with sandbox() as caller:
        rows = await caller.by_offset("/observability/v2/logs", "logs", 9)

        assert digest_rows(rows) == await caller.truth("/observability/v2/logs")


async def test_a_log_query_by_post_means_the_same_as_by_get() -> None:
    async with sandbox() as caller:
        body = {"logType": ["audit-log", "error-log"], "limit": 5, "fromDate": "2026-03-09T00:00:00Z"}
        posted = await caller.session.post(
            f"{caller.url}/observability/v2/logs/query", json=body, headers=dict(KEY)
        )
        got = await caller.json(
            "/observability/v2/logs", logType="audit-log,error-log", limit=5, fromDate="2026-03-09T00:00:00Z"
        )

        assert await posted.json() == got
        assert {row["logType"] for row in got["logs"]} == {"audit-log", "error-log"}  # type: ignore[index, call-overload]


async def test_children_carry_the_parameters_of_their_path() -> None:
    async with sandbox() as caller:
        rows: list[Row] = []
        for user in await caller.json("/organization/v1/users"):  # type: ignore[attr-defined]
            keys = await caller.json(f"/organization/v1/users/{user['id']}/api-keys")
            rows += [{**key, "user_id": user["id"]} for key in keys]  # type: ignore[attr-defined]
        plain = [
            {k: v for k, v in timed(r, "created_date", "updated_date").items() if k != "api_key"}
            for r in rows
        ]

        assert digest_rows(plain) == await caller.truth("/organization/v1/users/{user_id}/api-keys")


async def test_bills_are_read_month_by_month() -> None:
    async with sandbox() as caller:
        months = [await caller.json("/billing/v2/bills", year=2026, month=month) for month in range(1, 5)]

        assert [bill and bill["period"] for bill in months] == [None, "2026-02", "2026-03", None]  # type: ignore[index]
        assert digest_rows(filter(None, months)) == await caller.truth("/billing/v2/bills")  # type: ignore[arg-type]


async def test_both_bounds_of_the_notification_window_are_strict() -> None:
    async with sandbox() as caller:
        path = "/notifications/v1/notifications"
        rows = await caller.by_token(path)
        stamps = sorted({int(str(row["created_on"])) for row in rows})
        low, high = stamps[3], stamps[-3]
        inside = await caller.by_token(path, created_after=low, created_before=high, page_size=3)

        assert {row["created_on"] for row in inside} == {stamp for stamp in stamps if low < stamp < high}
        assert len(rows) == 45 > len(stamps)
        assert any(stamp % 86_400 == 0 for stamp in stamps)
        assert stamps[0] > ANCHOR - 28 * 86_400
        assert digest_rows(timed(row, "created_on") for row in rows) == await caller.truth(path)


async def test_the_metrics_text_holds_the_samples_of_the_truth() -> None:
    async with sandbox() as caller:
        response = await caller.get("/observability/v2/metrics")
        text = await response.text()
        lines = [line for line in text.splitlines() if line and not line.startswith("#")]
        rows = await caller.truth_rows("/observability/v2/metrics")

        assert response.content_type == "text/plain"
        assert Counter(line.split("{")[0] for line in lines) == Counter(str(row["name"]) for row in rows)
        assert len(rows) == 90
        assert "\n\n# TYPE mariadb_" in text
        assert {"NaN", "+Inf"} <= {str(row["value"]) for row in rows}
        assert r'comment="two\nlines"' in text
        assert r'comment="Rocky \"Blue\" build"' in text


async def test_a_scrape_may_be_of_one_service_by_name() -> None:
    async with sandbox() as caller:
        name = (await caller.truth_rows("/provisioning/v1/services"))[1]["name"]
        text = await (await caller.get("/observability/v2/metrics", service=name)).text()

        assert set(re.findall(r'service_name="([^"]*)"', text)) == {name}


@pytest.mark.parametrize("log_format", ["raw", "json"])
async def test_archives_hold_the_lines_of_the_truth(log_format: str) -> None:
    async with sandbox() as caller:
        logs = await caller.by_offset("/observability/v2/logs", "logs", 100)
        ids = ",".join(str(row["id"]) for row in logs)
        body = await (
            await caller.get("/observability/v2/logs/archive", logIds=ids, logFormat=log_format)
        ).read()
        found: dict[tuple[object, int], bytes] = {}
        with zipfile.ZipFile(io.BytesIO(body)) as bundle:
            assert [entry.filename for entry in bundle.infolist() if entry.is_dir()]
            for row in logs:
                for number, raw in enumerate(bundle.read(str(row["name"])).split(b"\n")[:-1], 1):
                    is_json = log_format == "json" and raw.startswith(b"{")
                    found[row["id"], number] = orjson.loads(raw)["log"].encode() if is_json else raw

        truth = await caller.truth_rows("/observability/v2/logs/archive")
        texts = {(row["log_id"], row["line_number"]): str(row.get("line", "")).encode() for row in truth}
        broken = [key for key, text in texts.items() if not text]
        assert len(broken) == 1
        with pytest.raises(UnicodeDecodeError):
            found.pop(broken[0]).decode()  # type: ignore[index]
        del texts[broken[0]]
        assert found == texts


async def test_continuation_lines_of_a_log_name_the_line_that_began_their_entry() -> None:
    async with sandbox(log_lines=40) as caller:
        entries: dict[object, list[Row]] = {}
        for row in await caller.truth_rows("/observability/v2/logs/archive"):
            if "slow-query-log" in str(row["member"]):
                entries.setdefault((row["log_id"], row["entry"]), []).append(row)

        for lines in entries.values():
            head, *rest = lines
            assert head["entry"] == head["line_number"]
            assert not any(row.get("timestamp") for row in rest)
            assert not any(str(row["line"]).startswith("# Time:") for row in rest)


async def test_an_invoice_is_a_pdf() -> None:
    async with sandbox() as caller:
        invoice = (await caller.json("/billing/v1/invoices"))[0]["invoice_id"]  # type: ignore[index]
        response = await caller.get(f"/public/services/bcs/invoices/{invoice}/pdf")
        body = await response.read()
        start = int(re.search(rb"startxref\n(\d+)", body)[1])  # type: ignore[index]

        assert response.content_type == "application/pdf"
        assert body.startswith(b"%PDF-")
        assert body[start:].startswith(b"xref")


async def test_an_aborted_connection_is_seen_as_such() -> None:
    async with sandbox(faults={"reset": 1.0}) as caller:
        with pytest.raises(aiohttp.ClientError):
            await caller.get("/provisioning/v1/tiers")


async def test_a_truncated_body_is_seen_as_such_with_length_and_in_chunks() -> None:
    async with sandbox(faults={"truncate": 1.0}) as caller:
        for _ in range(4):
            with pytest.raises(aiohttp.ClientPayloadError):
                await caller.get("/provisioning/v1/regions")
        with pytest.raises(aiohttp.ClientPayloadError):
            await caller.get("/observability/v2/metrics")


@pytest.mark.parametrize("kind", ["stall", "slow-drip"])
async def test_a_slow_body_begins_and_does_not_end(kind: str) -> None:
    async with (
        sandbox(faults={kind: 1.0}) as caller,
        caller.session.get(f"{caller.url}/provisioning/v1/regions?page_size=100", headers=KEY) as answer,
    ):
        first = await answer.content.readany()

        assert answer.status == 200
        assert 0 < len(first) < int(answer.headers["Content-Length"])
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(answer.content.readexactly(int(answer.headers["Content-Length"])), 0.1)


@pytest.mark.parametrize("kind", ["500", "503", "429"])
async def test_a_failing_server_says_so(kind: str) -> None:
    async with sandbox(faults={kind: 1.0}) as caller:
        response = await caller.get("/provisioning/v1/tiers")

        assert response.status == int(kind)
        assert response.headers.get("Retry-After") == ("1" if kind == "429" else None)
        assert (await caller.stats())["faults"] == {kind: 1}


async def test_garbage_never_parses() -> None:
    async with sandbox(faults={"garbage": 1.0}) as caller:
        for path in (
            "/provisioning/v1/tiers",
            "/skybackup/v1/backups",
            "/billing/v1/bills",
            "/copilot/v1/quota/",
        ):
            for _ in range(2):
                response = await caller.get(path)
                assert response.status == 200
                with pytest.raises(orjson.JSONDecodeError):
                    orjson.loads(await response.read())
        assert (await (await caller.get("/observability/v2/metrics")).read()).startswith(b"<!DOCTYPE")


async def test_a_repeated_page_is_followed_by_the_page_that_was_due() -> None:
    async with sandbox(services=31, faults={"duplicate-page": 1.0}) as caller:
        services = await caller.by_token("/provisioning/v1/services")
        backups = await caller.by_number("/skybackup/v1/backups", "backups")
        logs = await caller.by_offset("/observability/v2/logs", "logs", 50)

        assert len(services) > len(by_key(services)) == 31
        assert len(backups) > len(by_key(backups))
        assert digest_rows(by_key(backups)) == await caller.truth("/skybackup/v1/backups")
        assert digest_rows(by_key(logs)) == await caller.truth("/observability/v2/logs")


async def test_rows_that_come_in_shift_numbered_pages_and_lose_no_token_page() -> None:
    async with sandbox(services=31, faults={"row-inserted": 1.0}) as caller:
        services = {row["id"] for row in await caller.by_token("/provisioning/v1/services")}
        backups = await caller.by_number("/skybackup/v1/backups", "backups")
        at_start = await caller.truth_rows("/provisioning/v1/services", when="start")
        now = await caller.truth_rows("/provisioning/v1/services")
        first_backups = await caller.truth_rows("/skybackup/v1/backups", when="start")

        assert {row["id"] for row in at_start} < services < {row["id"] for row in now}
        assert len(backups) > len(by_key(backups))
        assert {row["id"] for row in first_backups} <= {row["id"] for row in backups}


async def test_what_came_in_has_children_that_answer() -> None:
    async with sandbox(faults={"row-inserted": 1.0}) as caller:
        service = (await caller.json("/provisioning/v1/services"))[0]["id"]  # type: ignore[index]
        topology = (await caller.json("/provisioning/v1/topologies"))[0]["name"]  # type: ignore[index]
        log = (await caller.json("/observability/v2/logs"))["logs"][0]["id"]  # type: ignore[index, call-overload]
        archive = await caller.get("/observability/v2/logs/archive", logIds=log)

        assert service not in {
            r["id"] for r in await caller.truth_rows("/provisioning/v1/services", when="start")
        }
        for child in ("replicas", "maintenance", "security/allowlist"):
            assert await caller.json(f"/provisioning/v1/services/{service}/{child}") == []
        assert await caller.json(f"/provisioning/v1/topologies/{topology}/nodes") == []
        assert await caller.json(f"/provisioning/v1/services/{service}")
        assert archive.status == 200


async def test_a_client_that_tries_again_ends_with_the_truth() -> None:
    kinds = ("reset", "truncate", "500", "503", "429", "garbage", "duplicate-page")
    async with sandbox(services=60, faults=dict.fromkeys(kinds, 0.1)) as caller:
        services = await caller.by_token("/provisioning/v1/services")
        backups = await caller.by_number("/skybackup/v1/backups", "backups")
        regions = await caller.by_token("/provisioning/v1/regions", page_size=3)
        epochs = ("created_on", "updated_on", "assigned_on", "volume_modified_on")
        faults = (await caller.stats())["faults"]

        assert set(faults) == set(kinds)  # type: ignore[call-overload]
        assert digest_rows(timed(row, *epochs) for row in by_key(services)) == await caller.truth(
            "/provisioning/v1/services"
        )
        assert digest_rows(by_key(backups)) == await caller.truth("/skybackup/v1/backups")
        assert digest_rows(by_key(regions)) == await caller.truth("/provisioning/v1/regions")


async def test_each_variant_changes_what_it_names() -> None:
    variants = [
        "token-end-empty",
        "restores-array",
        "schedules-need-service",
        "string-error-timestamp",
        "observability-400",
        "log-bare-types",
        "metrics-space",
        "duplicate-samples",
        "extra-fields",
        "missing-fields",
        "write-scopes",
        "keyinfo-exp-null",
    ]
    async with sandbox(variants=variants) as caller:
        service = (await caller.truth_rows("/provisioning/v1/services"))[1]["id"]
        tiers = await caller.get("/provisioning/v1/tiers")
        restores = await caller.json("/skybackup/v1/restores", service_id=service)
        text = await (await caller.get("/observability/v2/metrics")).text()
        lines = [line for line in text.splitlines() if line and not line.startswith("#")]
        keyinfo = await caller.session.get(
            f"{caller.url}/api/v1/keyinfo/", headers={"Authorization": "Token any"}
        )
        refused = await caller.session.get(f"{caller.url}/observability/v2/metrics")
        claims = await keyinfo.json()

        assert tiers.headers[NEXT] == ""
        assert "key" in restores[0]  # type: ignore[index]
        assert "backup_id" not in restores[0]  # type: ignore[index]
        assert (await caller.get("/skybackup/v1/backups/schedules")).status == 400
        assert isinstance((await (await caller.get("/provisioning/v1/no")).json())["timestamp"], str)
        assert isinstance(await caller.json("/observability/v2/logs/types"), list)
        assert text.startswith("#TYPE ")
        assert len(lines) > len(set(lines)) == 90
        assert refused.status == 400
        assert {len(row) for row in await caller.by_token("/provisioning/v1/services")} > {44}
        assert claims["exp"] is None
        assert "skysql::database::write" in claims["scopes"]


async def test_an_archive_of_today_grows_while_it_is_listed() -> None:
    async with sandbox(variants=["growing-archive"]) as caller:
        before = await caller.truth("/observability/v2/logs/archive")
        await caller.get("/observability/v2/logs")

        assert (await caller.truth("/observability/v2/logs/archive"))[0] > before[0]


async def test_a_skewed_clock_shows_in_the_date_header() -> None:
    async with sandbox(clock_skew=-86_400) as caller:
        response = await caller.get("/provisioning/v1/tiers")
        shown = datetime.strptime(response.headers["Date"], "%a, %d %b %Y %H:%M:%S GMT").replace(tzinfo=UTC)

        assert abs((datetime.now(UTC) - timedelta(days=1) - shown).total_seconds()) < 60


async def test_statistics_start_anew_when_asked() -> None:
    async with sandbox() as caller:
        await caller.get("/provisioning/v1/tiers")
        before = await caller.stats()
        await caller.session.post(f"{caller.url}/_sandbox/reset-stats")
        after = await caller.stats()

        assert (before["requests"], after["requests"]) == (1, 0)
        assert before["paths"] == {"/provisioning/v1/tiers": 1}


async def test_secrets_have_no_truth() -> None:
    async with sandbox() as caller:
        truth = await caller.json("/_sandbox/truth")
        invites = await caller.truth_rows("/organization/v1/invites")

        assert isinstance(truth, dict)
        assert not [path for path in truth if path.endswith("/credentials")]
        assert not [1 for row in invites for invitee in row["invitees"] if "url" in invitee]  # type: ignore[attr-defined]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_the_program_with_zero(number: signal.Signals) -> None:
    program = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "extractor.sandbox", "--port", "0", stdout=asyncio.subprocess.PIPE
    )
    assert program.stdout is not None
    line = (await program.stdout.readline()).decode()
    program.send_signal(number)

    assert re.fullmatch(r"http://127\.0\.0\.1:\d+\n", line)
    assert await program.wait() == 0
