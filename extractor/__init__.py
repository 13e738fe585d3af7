"""Everything that the MariaDB SkySQL API can be read for, as Parquet that is right after any crash.

    report = extractor.run(extractor.load_config())
    report = extractor.backfill("notifications", config, start=start, end=end)
    batches = extractor.stream("services", config)
    lake = extractor.Lake("lake")

Names are imported when they are first used, so that `import extractor` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from extractor.api import __version__, backfill, backfill_async, extract, run, stream
    from extractor.compaction import compact
    from extractor.config import Config, load_config
    from extractor.erasure import erase
    from extractor.expiry import expire
    from extractor.lake import Lake
    from extractor.report import RunReport

__all__ = (
    "Config",
    "Lake",
    "RunReport",
    "__version__",
    "backfill",
    "backfill_async",
    "compact",
    "erase",
    "expire",
    "extract",
    "load_config",
    "run",
    "stream",
)

_HOMES = {
    "Config": "extractor.config",
    "Lake": "extractor.lake",
    "RunReport": "extractor.report",
    "__version__": "extractor.api",
    "compact": "extractor.compaction",
    "erase": "extractor.erasure",
    "expire": "extractor.expiry",
    "backfill": "extractor.api",
    "backfill_async": "extractor.api",
    "extract": "extractor.api",
    "load_config": "extractor.config",
    "run": "extractor.api",
    "stream": "extractor.api",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'extractor' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
