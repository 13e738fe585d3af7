"""The Python interface: a blocking run, the same in async code, and a stream without a lake."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from extractor.config import Config
from extractor.events import Observer, ignore
from extractor.pipeline import extract
from extractor.report import RunReport
from extractor.streaming import stream

__all__ = ("__version__", "extract", "run", "stream")

try:
    __version__ = version("skysql-extractor")
except PackageNotFoundError:
    __version__ = "0"


def run(
    config: Config, *, key_file: str = "", observer: Observer = ignore, accept: Sequence[str] = ()
) -> RunReport:
    """Extract everything that the configuration selects into its lake, once, and say what was done.

    `accept` names tables that are published this time whatever checks or the schema policy say. Not for use inside
    a running event loop: there, `await extract(config)`.

    Raises:
        ConfigError, AuthError, LakeError, SourceUnreachable: as `extract`; nothing new is in the lake then.
    """
    return asyncio.run(extract(config, key_file=key_file, observer=observer, accept=accept))
