"""A few nights; `make nights` plays a month of them, without crashes and with."""

from __future__ import annotations

from pathlib import Path

from tests.nights.play import play

TABLES = (
    "services",
    "users",
    "backups",
    "bills",
    "invoices",
    "quota",
    "notifications",
    "logs",
    "log_lines",
    "metrics",
)


async def test_after_each_night_the_lake_equals_the_account_and_only_open_windows_were_read(
    tmp_path: Path,
) -> None:
    nights = [night async for night in play(4, tmp_path, seed=2, clock_back_on=3, include=TABLES, services=1)]

    assert [night.wrong for night in nights] == [{}] * 4
    assert [night.status for night in nights] == ["complete"] * 4
    assert all(night.window_requests <= night.window_pages for night in nights[1:])
