"""What every test may ask for: an emulator on loopback, made-up answers, the project's reference material."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import aiohttp
import aioresponses
import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says nothing of the program where machines are shared.
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")

TOP = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _no_settings_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings and the key of whoever runs the tests are not seen by any of them."""
    for name in [name for name in os.environ if name.startswith("SKYSQL_")]:
        if name != "SKYSQL_EXTRACTOR_TEST_INSTALLED":
            monkeypatch.delenv(name)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)


@pytest.fixture(scope="session")
def top() -> Path:
    """The top of the repository."""
    return TOP


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference material beside the repository; the test is skipped where there is none."""
    folder = TOP.parent / "shared"
    if not folder.is_dir():
        pytest.skip("no reference material: there is no folder ../shared beside the repository")
    return folder


@pytest.fixture
def sandbox() -> ModuleType:
    """`extractor.sandbox`: `async with sandbox.running(sandbox.SandboxOptions(...)) as url`."""
    return importlib.import_module("extractor.sandbox")


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[aioresponses.aioresponses]:
    """aioresponses, started: `answers.get(url, status=…, body=…, headers=…)`.

    Its release 0.7.9 does not know the argument `stream_writer`, which aiohttp demands since 3.14 and of
    which an answer only reads the number of bytes sent.
    """
    writer = SimpleNamespace(output_size=0)
    response = functools.partial(aiohttp.ClientResponse, stream_writer=writer)
    monkeypatch.setattr("aioresponses.core.ClientResponse", response)
    with aioresponses.aioresponses() as started:
        yield started


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave the tests that are marked `long` out unless they are asked for."""
    if os.environ.get("SKYSQL_EXTRACTOR_TEST_LONG") == "1":
        return
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.skip(reason="long; `make test-long` runs it"))
