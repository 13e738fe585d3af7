"""Stores by the address of the lake."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from extractor.errors import ConfigError
from extractor.store import Store
from extractor.stores.local import LocalStore

__all__ = ("open_store",)

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_OBJECT_STORES = ("abfs", "abfss", "az", "gs", "s3", "s3a")


def open_store(uri: str | Path) -> Store:
    """The store of a lake: a path or `file://` address is a folder of this machine. Touches nothing.

    Raises: ConfigError for an address of any other kind.
    """
    if isinstance(uri, Path):
        return LocalStore(uri)
    found = _SCHEME.match(uri)
    if found is None:
        if not uri.strip():
            raise ConfigError("lake.uri is empty; give a path, as in --lake lake")
        return LocalStore(Path(uri).expanduser())
    scheme = found[1].lower()
    if scheme == "file":
        return LocalStore(_file_path(uri))
    if scheme in _OBJECT_STORES:
        raise ConfigError(
            f"object stores are not supported yet ({scheme}://); give lake.uri a path on this machine"
        )
    raise ConfigError(f"lake.uri has an unknown scheme, {scheme}://; give a path on this machine")


def _file_path(uri: str) -> Path:
    parts = urlsplit(uri)
    if parts.netloc not in ("", "localhost") or parts.query or parts.fragment or not parts.path:
        raise ConfigError("lake.uri names no folder of this machine; write file:///path or just the path")
    return Path(unquote(parts.path))
