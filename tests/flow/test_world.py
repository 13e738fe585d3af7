"""A run takes the world as arguments: here its store, in memory."""

from __future__ import annotations

import random
from pathlib import Path

from extractor.clock import SystemClock
from extractor.commitlog import CommitLog
from extractor.config import load_config
from extractor.pipeline import World, extract
from extractor.sandbox import SandboxOptions, running
from extractor.stores.memory import MemoryStore


async def test_a_run_writes_into_the_store_that_it_is_given(tmp_path: Path) -> None:
    store = MemoryStore()
    async with running(SandboxOptions(services=3)) as url:
        config = load_config(
            overrides={
                "source.base_url": url,
                "lake.uri": str(tmp_path / "lake"),
                "run.include": ("services", "regions"),
                "limits.requests_per_second": 200,
            },
            environment={},
            directory=tmp_path,
        )
        world = World(
            clock=SystemClock(), chance=random.random, environment={"SKYSQL_API_KEY": "k" * 30}, store=store
        )

        report = await extract(config, world=world)

    newest = CommitLog(store).newest()
    assert report.exit_code == 0
    assert newest is not None
    assert {table: ref.rows for (table, _), ref in newest.tables.items()} == {"services": 3, "regions": 41}
    assert not (tmp_path / "lake").exists()
