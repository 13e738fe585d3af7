"""The Python interface: a blocking run, the same in async code, and a stream without a lake."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version

from extractor.backfilling import backfill as backfill_async
from extractor.config import Config
from extractor.events import Observer, ignore
from extractor.pipeline import extract
from extractor.report import RunReport
from extractor.streaming import stream

__all__ = ("__version__", "backfill", "backfill_async", "extract", "run", "stream")

try:
    __version__ = version("skysql-extractor")
except PackageNotFoundError:
    __version__ = "0"


def run(
    config: Config, *, key_file: str = "", observer: Observer = ignore, accept: Sequence[str] = ()
) -> RunReport:
    """Extract everything that the configuration selects into its lake, once, and say what was done.

    `accept` names tables that are published this time whatever checks or the schema policy say.

    Raises:
        ConfigError, AuthError, LakeError, SourceUnreachable: as `extract`; nothing new is in the lake then.
        RuntimeError: an event loop is running here, as in a notebook: there, `await extractor.extract(config)`.
    """
    _refuse_running_loop("extract")
    return asyncio.run(extract(config, key_file=key_file, observer=observer, accept=accept))


def backfill(
    name: str,
    config: Config,
    *,
    start: datetime,
    end: datetime,
    parallel: int = 4,
    accept: Sequence[str] = (),
    key_file: str = "",
    observer: Observer = ignore,
) -> RunReport:
    """Fill the past windows of one endpoint from `start` to before `end`, and say what was done.

    Called again after it was cut off, it goes on with what is left. `accept` names tables that are published
    although a check holds them back.

    Raises:
        ConfigError: there is no such endpoint, it has no window, or the times make none.
        AuthError, LakeError, SourceUnreachable: as `run`; what was committed before stays.
        RuntimeError: an event loop is running here: there, `await extractor.backfill_async(…)`.
    """
    _refuse_running_loop("backfill_async")
    return asyncio.run(
        backfill_async(
            name,
            config,
            start=start,
            end=end,
            parallel=parallel,
            accept=accept,
            key_file=key_file,
            observer=observer,
        )
    )


def _refuse_running_loop(instead: str) -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError(f"an event loop is running here: `await extractor.{instead}(…)` takes part in it")
