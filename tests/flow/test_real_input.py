"""What real servers wrote, through the whole of a run: sockets, decoding, Parquet."""

from __future__ import annotations

import io
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families

import extractor
from extractor.config import load_config

LOGS = {"error-log": "error.log", "audit-log": "audit.log", "slow-query-log": "slow-query.log"}


@asynccontextmanager
async def serving(real: Path) -> AsyncIterator[str]:
    """The scrape and the three logs, zipped as the API does: a folder entry, then one member a log."""

    async def metrics(request: web.Request) -> web.Response:
        return web.Response(body=(real / "metrics.prom").read_bytes(), content_type="text/plain")

    async def logs(request: web.Request) -> web.Response:
        rows = [
            {
                "id": kind,
                "name": f"shop_{kind}.log",
                "logType": kind,
                "startTime": f"{datetime.now(UTC):%FT00:00:00Z}",
            }
            for kind in LOGS
        ]
        return web.json_response({"count": len(rows), "logs": rows})

    async def archive(request: web.Request) -> web.Response:
        kind = request.query["logIds"]
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as zipped:
            zipped.mkdir("logs")
            zipped.write(real / "logs" / LOGS[kind], f"logs/shop_{kind}.log")
        return web.Response(body=packed.getvalue(), content_type="application/zip")

    app = web.Application()
    app.router.add_get("/observability/v2/metrics", metrics)
    app.router.add_get("/observability/v2/logs", logs)
    app.router.add_get("/observability/v2/logs/archive", archive)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_real_scrapes_and_logs_land_sample_by_sample_and_line_by_line(
    shared: Path, tmp_path: Path
) -> None:
    real = shared / "real-data"
    lake = tmp_path / "lake"

    async with serving(real) as url:
        config = load_config(
            overrides={
                "source.base_url": url,
                "lake.uri": str(lake),
                "run.include": ("metrics", "logs", "log_lines"),
                "run.allow": ("customer_data",),
                "limits.requests_per_second": 200,
            },
            environment={},
            directory=tmp_path,
        )
        report = await extractor.extract(config, environment={"SKYSQL_API_KEY": "k" * 30})

    assert report.exit_code == 0, report.message
    assert _landed_samples(lake) == _true_samples((real / "metrics.prom").read_text())
    assert extractor.Lake(str(lake)).table("metrics").to_arrow().num_rows == len(_landed_samples(lake))
    for kind, name in LOGS.items():
        assert _landed_lines(lake, kind) == (real / "logs" / name).read_text().splitlines()
    stamps = (
        extractor.Lake(str(lake))
        .table("log_lines")
        .to_arrow()
        .select(["line", "timestamp", "level"])
        .to_pylist()
    )
    first = next(row for row in stamps if "Starting MariaDB 10.11.19" in (row["line"] or ""))
    assert first["timestamp"] == datetime(2026, 11, 22, 10, 31, 46, tzinfo=UTC)
    assert first["level"] == "Note"


def _true_samples(text: str) -> set[tuple[object, ...]]:
    return {
        (
            sample.name,
            family.type,
            *sorted(sample.labels.items()),
            sample.value,
            round(float(sample.timestamp) * 1000),
        )
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def _landed_samples(lake: Path) -> set[tuple[object, ...]]:
    fixed = ("namespace", "server_name", "server_type", "service_name", "topology_type")
    samples = set()
    for row in extractor.Lake(str(lake)).table("metrics").to_arrow().to_pylist():
        labels = {**dict(row["labels"]), **{name: row[name] for name in fixed if row[name] is not None}}
        millis = round(row["timestamp"].timestamp() * 1000)
        samples.add((row["name"], row["type"], *sorted(labels.items()), row["value"], millis))
    return samples


def _landed_lines(lake: Path, kind: str) -> list[str]:
    rows = extractor.Lake(str(lake)).table("log_lines").to_arrow().to_pylist()
    mine = sorted((row for row in rows if row["log_id"] == kind), key=lambda row: row["line_number"])
    return [row["line"] for row in mine]
