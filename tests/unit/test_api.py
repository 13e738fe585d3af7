from __future__ import annotations

from datetime import UTC, datetime

import pytest

import extractor
from extractor.config import Config


async def test_what_blocks_says_what_to_call_where_an_event_loop_is_running() -> None:
    with pytest.raises(RuntimeError, match=r"`await extractor\.extract\(…\)`"):
        extractor.run(Config())
    with pytest.raises(RuntimeError, match=r"`await extractor\.backfill_async\(…\)`"):
        extractor.backfill(
            "billing_usage",
            Config(),
            start=datetime(2026, 1, 1, tzinfo=UTC),
            end=datetime(2026, 2, 1, tzinfo=UTC),
        )
