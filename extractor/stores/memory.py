"""A lake in memory, which can lose power: for tests, and for those who write code that must survive it."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from threading import RLock
from typing import BinaryIO

from extractor.errors import LakeError
from extractor.store import Output, StoredFile, StoreMissing, checked_path, checked_prefix

__all__ = ("MemoryStore", "PowerLost")


class PowerLost(BaseException):
    """The power went in the middle of an operation; until `MemoryStore.crash` no other one works.

    Not an Exception: code that recovers from errors cannot run when the machine is off.
    """


class MemoryStore:
    """Files in a dictionary, in two layers: what everybody sees, and what was synced.

    Each operation is a number of steps, as on a disk: a change is visible first and durable a step later.
    `steps` counts them. `clock` gives `now` and the times of files.
    """

    has_atomic_folder_move = True

    def __init__(
        self,
        *,
        uri: str = "memory://lake",
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        has_folder_exchange: bool = True,
    ) -> None:
        self.uri = uri
        self.has_folder_exchange = has_folder_exchange
        self.steps = 0
        self._clock = clock
        self._last_step: int | None = None
        self._is_off = False
        self._lock = RLock()
        self._visible: dict[str, tuple[bytes, datetime]] = {}
        self._synced: dict[str, tuple[bytes, datetime]] = {}

    def lose_power(self, *, after_steps: int) -> None:
        """Let the power go after so many more steps: the operation then under way raises PowerLost."""
        self.steps, self._last_step = 0, after_steps

    def crash(self, *, keep_unsynced: bool = False) -> None:
        """Lose the power and come back: what was not synced is gone, or by chance was written all the same.

        From now on the power stays, and steps count from 0.
        """
        with self._lock:
            if keep_unsynced:
                self._synced = dict(self._visible)
            self._visible = dict(self._synced)
            self._last_step, self._is_off, self.steps = None, False, 0

    def read(self, path: str) -> bytes:
        with self._working(path):
            return self._found(path)[0]

    def put(self, path: str, content: bytes) -> None:
        with self._working(path):
            self._step()
            self._write(path, content)

    def put_if_absent(self, path: str, content: bytes) -> bool:
        with self._working(path):
            self._step()
            if path in self._visible:
                self._synced[path] = self._visible[path]
                return False
            self._write(path, content)
            return True

    def exists(self, path: str) -> bool:
        return self.stat(path) is not None

    def stat(self, path: str) -> StoredFile | None:
        with self._working(path):
            found = self._visible.get(path)
            return None if found is None else _stored(path, found)

    def list(self, prefix: str) -> Iterator[StoredFile]:
        prefix = checked_prefix(prefix)
        with self._working():
            found = [_stored(path, self._visible[path]) for path in self._below(prefix)]
        yield from found

    def delete(self, path: str) -> None:
        with self._working(path):
            if path in self._visible:
                self._step()
                del self._visible[path]
                self._step()
                self._synced.pop(path, None)

    def delete_files(self, paths: Sequence[str]) -> None:
        for path in paths:
            self.delete(path)

    def delete_folder(self, prefix: str) -> None:
        for path in self._below(checked_path(checked_prefix(prefix))):
            self.delete(path)

    def move(self, source: str, target: str) -> None:
        with self._working(source, target):
            content, modified_at = self._found(source)
            standing = self._visible.get(target)
            if standing is not None and standing[0] != content:
                raise LakeError(
                    f"cannot move {source} to {target} in lake {self.uri}: another file stands there; "
                    "move that one out of the lake, then run again"
                )
            self._step()
            self._visible[target] = (content, modified_at)
            self._step()
            self._synced[target] = (content, modified_at)
            if source == target:
                return
            self._step()
            del self._visible[source]
            self._step()
            self._synced.pop(source, None)

    def copy_files(self, pairs: Sequence[tuple[str, str]]) -> None:
        for source, target in pairs:
            with self._working(source, target):
                found = self._found(source)
                if target not in self._visible:
                    self._step()
                    self._visible[target] = found
                self._step()
                self._synced[target] = self._visible[target]

    def exchange_folder(self, one: str, other: str) -> None:
        one, other = checked_path(checked_prefix(one)), checked_path(checked_prefix(other))
        with self._working():
            if not self.has_folder_exchange:
                raise LakeError(f"cannot exchange {one} and {other} in lake {self.uri}: not supported")
            paths = {path: other + path[len(one) :] for path in self._below(one)}
            paths |= {path: one + path[len(other) :] for path in self._below(other)}
            for folder in (one, other):
                if not self._below(folder):
                    raise self._missing(folder)
            self._step()
            moved = {target: self._visible.pop(path) for path, target in paths.items()}
            self._visible.update(moved)
            self._step()
            for path in paths:
                self._synced.pop(path, None)
            self._synced.update(moved)

    def move_folder(self, source: str, target: str) -> None:
        source, target = checked_path(checked_prefix(source)), checked_path(checked_prefix(target))
        with self._working():
            paths = self._below(source)
            if not paths:
                raise self._missing(source)
            if self._below(target):
                for path in paths:
                    self.move(path, target + path[len(source) :])
                return
            self._step()
            moved = {target + path[len(source) :]: self._visible.pop(path) for path in paths}
            self._visible.update(moved)
            self._step()
            for path in paths:
                self._synced.pop(path, None)
            self._synced.update(moved)

    def open_input(self, path: str) -> BinaryIO:
        return io.BytesIO(self.read(path))

    def open_output(self, path: str) -> Output:
        with self._working(path):
            return _MemoryOutput(self, path)

    def local_path(self, path: str) -> Path | None:
        checked_path(path)
        return None

    def now(self) -> datetime:
        return self._clock()

    def check_writable(self) -> None:
        with self._working():
            return

    def withdraw(self) -> None:
        with self._working():
            return  # there are no folders that could be left

    @contextmanager
    def _working(self, *paths: str) -> Iterator[None]:
        for path in paths:
            checked_path(path)
        with self._lock:
            if self._is_off:
                raise PowerLost("the power is off")
            yield

    def _step(self) -> None:
        if self.steps == self._last_step:
            self._is_off = True
            raise PowerLost(f"the power went after {self.steps} steps")
        self.steps += 1

    def _write(self, path: str, content: bytes) -> None:
        self._visible[path] = (bytes(content), self._clock())
        self._step()
        self._synced[path] = self._visible[path]

    def _found(self, path: str) -> tuple[bytes, datetime]:
        try:
            return self._visible[path]
        except KeyError:
            raise self._missing(path) from None

    def _below(self, prefix: str) -> Sequence[str]:
        start = f"{prefix}/" if prefix else ""
        with self._lock:
            return sorted(path for path in self._visible if path.startswith(start))

    def _missing(self, path: str) -> StoreMissing:
        return StoreMissing(
            f"cannot read {path} in lake {self.uri}: there is no such file; "
            "run `skysql-extract verify` to see what is missing"
        )


class _MemoryOutput:
    """An output that becomes a file when it is closed."""

    def __init__(self, store: MemoryStore, path: str) -> None:
        self._store = store
        self._path = path
        self._content = io.BytesIO()
        self.closed = False

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    def write(self, content: bytes, /) -> int:
        return self._content.write(content)

    def tell(self) -> int:
        return self._content.tell()

    def flush(self) -> None:
        return

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._store.put(self._path, self._content.getvalue())

    def abort(self) -> None:
        self.closed = True


def _stored(path: str, found: tuple[bytes, datetime]) -> StoredFile:
    content, modified_at = found
    return StoredFile(path=path, size_bytes=len(content), modified_at=modified_at)
