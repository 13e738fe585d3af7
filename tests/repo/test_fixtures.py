"""The fixtures do what the tests trust them to do."""

from __future__ import annotations

import os

import aiohttp
import aioresponses


async def test_made_up_answers_carry_status_headers_and_body(answers: aioresponses.aioresponses) -> None:
    answers.get("https://api.example/rows", status=429, body=b'[{"id": 1}]', headers={"Retry-After": "7"})

    async with aiohttp.ClientSession() as session, session.get("https://api.example/rows") as response:
        seen = (response.status, response.headers["Retry-After"], await response.read())

    assert seen == (429, "7", b'[{"id": 1}]')


async def test_made_up_answers_may_be_computed(answers: aioresponses.aioresponses) -> None:
    answers.get(
        "https://api.example/rows",
        callback=lambda url, **_: aioresponses.CallbackResult(payload={"path": url.path}),
    )

    async with aiohttp.ClientSession() as session, session.get("https://api.example/rows") as response:
        assert await response.json() == {"path": "/rows"}


def test_no_setting_of_the_caller_is_seen() -> None:
    assert {name for name in os.environ if name.startswith("SKYSQL_")} <= {"SKYSQL_EXTRACTOR_TEST_INSTALLED"}
