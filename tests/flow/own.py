"""An API of a test's own: a server that answers as the test says, and a configuration that reads it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web

from extractor.config import Config, load_config

__all__ = ("configured", "serving")


@asynccontextmanager
async def serving(answer: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    """The URL of a server on loopback that gives every GET to `answer`."""
    app = web.Application()
    app.router.add_get("/{tail:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def configured(folder: Path, url: str, catalogue: str, **more: object) -> Config:
    """A lake in the folder, and the endpoints of `catalogue` alone; `more` has `__` for the point in a name."""
    (folder / "own").mkdir(exist_ok=True)
    (folder / "own" / "own.toml").write_text(catalogue)
    return load_config(
        overrides={
            "source.base_url": url,
            "source.builtin": False,
            "source.catalogs": (str(folder / "own"),),
            "lake.uri": str(folder / "lake"),
            "limits.requests_per_second": 1000,
            **{name.replace("__", "."): value for name, value in more.items()},
        },
        environment={},
        directory=folder,
    )
