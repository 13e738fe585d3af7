"""Where a data file is now: in its place, in the staging of a run that goes on, or in its grace period."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO

from extractor.commit import old_path
from extractor.store import Store, StoreMissing, staged_path

__all__ = ("ASIDE", "open_data_file", "places")

ASIDE = "_extractor/aside"
"""Where repaired lakes keep what was taken out of them, by run; nobody reads it."""


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
