"""Where a data file is now: in its place, in the staging of a run that goes on, or in its grace period."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import IO, TYPE_CHECKING

from extractor.commit import old_path
from extractor.store import Store, StoreMissing, staged_path

if TYPE_CHECKING:
    from extractor.write import DataFile

__all__ = ("ASIDE", "damage_of", "open_data_file", "places")

ASIDE = "_extractor/aside"
"""Where repaired lakes keep what was taken out of them, by run; nobody reads it."""

_CHUNK_BYTES = 1 << 20


def places(path: str, publishing: Iterable[str]) -> Iterator[str]:
    """Where a data file may be. Its place comes last again: it may be moved there while the others are
    tried.
    """
    yield path
    for run_id in publishing:
        yield staged_path(run_id, path)
    yield old_path(path)
    yield path


@contextmanager
def open_data_file(store: Store, path: str, publishing: Iterable[str]) -> Iterator[IO[bytes]]:
    """The file for reading, wherever it is. Raises: StoreMissing if it is nowhere."""
    for place in places(path, publishing):
        try:
            stream = store.open_input(place)
        except StoreMissing:
            continue
        with stream:
            yield stream
        return
    raise StoreMissing(f"data file {path} is nowhere in lake {store.uri}")


def damage_of(stream: IO[bytes], file: DataFile) -> str:
    """How the bytes of an open file differ from those that were written, in words; empty if they do not.

    Reads from where the stream stands to its end, in pieces.
    """
    digest = sha256()
    size_bytes = 0
    while chunk := stream.read(_CHUNK_BYTES):
        digest.update(chunk)
        size_bytes += len(chunk)
    if size_bytes != file.size_bytes:
        return f"it has {size_bytes:,} bytes, {file.size_bytes:,} were written"
    if digest.hexdigest() != file.sha256:
        return f"its SHA-256 is {digest.hexdigest()[:12]}…, {file.sha256[:12]}… was written"
    return ""
