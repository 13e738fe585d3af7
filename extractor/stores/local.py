"""A lake in a folder of this machine, or of a file system mounted on it."""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from extractor.errors import LakeError
from extractor.store import SCRATCH, Output, StoredFile, StoreMissing, checked_path, checked_prefix

__all__ = ("LocalStore",)

_REMEDIES = {
    errno.ENOSPC: "free some space and run again",
    errno.EDQUOT: "free some space within the quota and run again",
    errno.EROFS: "mount the file system for writing, or choose another lake",
    errno.EACCES: "give this user the right to it, or choose another lake",
    errno.EPERM: "give this user the right to it, or choose another lake",
    errno.EIO: "check the disk, then run again",
    errno.ESTALE: "mount the file system again, then run again",
    errno.EMFILE: "raise the limit of open files, or lower parquet.open_files",
    errno.ENFILE: "raise the machine's limit of open files",
    errno.ENOTDIR: "choose another lake: a file stands where a folder is needed",
    errno.EISDIR: "choose another lake: a folder stands where a file is needed",
    errno.ENAMETOOLONG: "choose a lake with a shorter path",
    errno.EXDEV: "keep the whole lake on one file system",
    errno.ENOTSUP: "choose a lake on a file system with hard links",
    errno.ENOSYS: "choose a lake on a file system with hard links",
}

_OWN = "_extractor"
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


class LocalStore:
    """Files below `root`, which is made by the first write.

    Needs a file system with hard links: they are what makes `put_if_absent` atomic and complete at once.
    """

    has_atomic_folder_move = True

    def __init__(self, root: Path) -> None:
        # Absolute, so that a change of working directory does not move the lake.
        self._root = Path(os.path.abspath(root))  # noqa: PTH100  # resolve() would follow links
        self.uri = str(root)
        self._can_exchange: bool | None = None
        self._made: list[Path] = []
        """The folder of the lake and those above it, as far as it was this store that made them."""

    @property
    def has_folder_exchange(self) -> bool:
        if self._can_exchange is None:
            self._can_exchange = self._try_exchange()
        return self._can_exchange

    def read(self, path: str) -> bytes:
        with self._translated("read", path):
            return self._place(path).read_bytes()

    def put(self, path: str, content: bytes) -> None:
        target = self._place(path)
        with self._translated("write", path), self._complete(content) as written:
            self._make_folder(target.parent)
            written.replace(target)
            _sync_folder(target.parent)

    def put_if_absent(self, path: str, content: bytes) -> bool:
        target = self._place(path)
        with self._translated("write", path), self._complete(content) as written:
            self._make_folder(target.parent)
            try:
                os.link(written, target)
            except FileExistsError:
                return False
            finally:
                # Also for the loser, who may act on what it finds there.
                _sync_folder(target.parent)
            return True

    def exists(self, path: str) -> bool:
        return self.stat(path) is not None

    def stat(self, path: str) -> StoredFile | None:
        place = self._place(path)
        with self._translated("read", path):
            try:
                found = place.stat()
            except (FileNotFoundError, NotADirectoryError):
                return None
            return None if place.is_dir() else _stored(path, found)

    def list(self, prefix: str) -> Iterator[StoredFile]:
        prefix = checked_prefix(prefix)
        with self._translated("list", prefix or "."):
            found = [
                stored
                for stored in self._walk(prefix)
                if prefix == SCRATCH or not stored.path.startswith(f"{SCRATCH}/")
            ]
        found.sort(key=lambda stored: stored.path)
        yield from found

    def delete(self, path: str) -> None:
        place = self._place(path)
        with self._translated("remove", path):
            try:
                place.unlink()
            except (FileNotFoundError, NotADirectoryError):
                return
            _sync_folder(place.parent)

    def delete_files(self, paths: Sequence[str]) -> None:
        folders: dict[Path, None] = {}
        for path in paths:
            place = self._place(path)
            with self._translated("remove", path), suppress(FileNotFoundError, NotADirectoryError):
                place.unlink()
                folders[place.parent] = None
        for folder in folders:
            with self._translated("remove", folder.name), suppress(FileNotFoundError):
                _sync_folder(folder)

    def delete_folder(self, prefix: str) -> None:
        place = self._place(checked_prefix(prefix))
        with self._translated("remove", prefix):
            # Another process may be removing the same folder: what is gone is gone.
            for _ in range(3):
                with suppress(FileNotFoundError):
                    shutil.rmtree(place)
                if not place.exists():
                    break
            if place.parent.exists():
                _sync_folder(place.parent)

    def move(self, source: str, target: str) -> None:
        old, new = self._place(source), self._place(target)
        with self._translated("move", source):
            if not old.is_file():
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            self._make_folder(new.parent)
            try:
                _link_or_rename(old, new)
            except FileExistsError:
                if not _same_content(old, new):
                    raise LakeError(
                        f"cannot move {source} to {target} in lake {self.uri}: another file stands there; "
                        "move that one out of the lake, then run again"
                    ) from None
            # The target first, so that no crash can lose both names.
            _sync_folder(new.parent)
            with suppress(FileNotFoundError):
                old.unlink()
            _sync_folder(old.parent)

    def copy_files(self, pairs: Sequence[tuple[str, str]]) -> None:
        folders: dict[Path, None] = {}
        for source, target in pairs:
            old, new = self._place(source), self._place(target)
            with self._translated("copy", source):
                if not old.is_file():
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
                self._make_folder(new.parent)
                try:
                    os.link(old, new)
                except FileExistsError:
                    pass
                except PermissionError:
                    # Linux lets nobody link to another user's file.
                    self._copy_content(old, new)
            folders[new.parent] = None
        for folder in folders:
            with self._translated("write", folder.name):
                _sync_folder(folder)

    def exchange_folder(self, one: str, other: str) -> None:
        first, second = self._place(checked_prefix(one)), self._place(checked_prefix(other))
        with self._translated("exchange", other):
            _exchange(first, second)
            _sync_folder(first.parent)
            _sync_folder(second.parent)

    def move_folder(self, source: str, target: str) -> None:
        old, new = self._place(checked_prefix(source)), self._place(checked_prefix(target))
        with self._translated("move", source):
            if not old.is_dir():
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            self._make_folder(new.parent)
            try:
                old.rename(new)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            else:
                _sync_folder(new.parent)
                _sync_folder(old.parent)
                return
        for stored in self.list(source):
            self.move(stored.path, target.removesuffix("/") + stored.path[len(source.removesuffix("/")) :])
        self.delete_folder(source)

    def open_input(self, path: str) -> BinaryIO:
        with self._translated("read", path):
            return self._place(path).open("rb")

    def open_output(self, path: str) -> Output:
        return _LocalOutput(self, path)

    def local_path(self, path: str) -> Path | None:
        return self._place(path)

    def now(self) -> datetime:
        """The time the file system would stamp now: on a network share that is the server's.

        Where nothing can be written it is this machine's clock.
        """
        try:
            place = self._scratch_place()
            try:
                place.touch(exist_ok=False)
                return datetime.fromtimestamp(place.stat().st_mtime, UTC)
            finally:
                place.unlink(missing_ok=True)
        except OSError:
            return datetime.fromtimestamp(time.time(), UTC)

    def check_writable(self) -> None:
        with self._translated("write", SCRATCH), self._complete(b"") as written:
            linked = written.with_suffix(".link")
            try:
                os.link(written, linked)
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
                    raise
                raise LakeError(
                    f"cannot write lake {self.uri}: its file system has no hard links, which commits need; "
                    "choose a lake on another file system"
                ) from error
            finally:
                linked.unlink(missing_ok=True)

    def withdraw(self) -> None:
        with self._translated("remove", "."):
            if any(True for _ in self._walk("")):
                return
            # Only empty folders go, so that what another process writes meanwhile stays.
            for folder, _, _ in os.walk(self._root / _OWN, topdown=False):
                _remove_empty(Path(folder))
            while self._made:
                _remove_empty(self._made.pop())

    def _try_exchange(self) -> bool:
        folders: list[Path] = []
        try:
            for _ in range(2):
                folders.append(self._scratch_place())
                folders[-1].mkdir()
            _exchange(*folders)
        except OSError:
            return False
        finally:
            for folder in folders:
                with suppress(OSError):
                    folder.rmdir()
        return True

    def _copy_content(self, old: Path, new: Path) -> None:
        place = self._scratch_place()
        try:
            shutil.copyfile(old, place)
            with place.open("rb") as written:
                os.fsync(written.fileno())
            with suppress(FileExistsError):
                os.link(place, new)
        finally:
            place.unlink(missing_ok=True)

    def _place(self, path: str) -> Path:
        return self._root / checked_path(path)

    def _scratch_place(self) -> Path:
        folder = self._root / SCRATCH
        self._make_folder(folder)
        return folder / f"{os.getpid()}-{secrets.token_hex(8)}"

    @contextmanager
    def _complete(self, content: bytes) -> Iterator[Path]:
        """A complete, durable file with this content, under a name that nobody reads and that goes."""
        place = self._scratch_place()
        try:
            with place.open("xb") as output:
                output.write(content)
                output.flush()
                os.fsync(output.fileno())
            yield place
        finally:
            with suppress(OSError):
                place.unlink()

    def _make_folder(self, folder: Path) -> None:
        if folder.is_dir():
            return
        self._make_folder(folder.parent)
        with suppress(FileExistsError):
            folder.mkdir()
            if self._root.is_relative_to(folder):
                self._made.append(folder)
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        # Also if another process made it: what stands in it must not be lost with its name.
        _sync_folder(folder.parent)

    def _walk(self, prefix: str) -> Iterator[StoredFile]:
        try:
            entries = list(os.scandir(self._root / prefix))
        except (FileNotFoundError, NotADirectoryError):
            return
        for entry in entries:
            path = f"{prefix}/{entry.name}" if prefix else entry.name
            if entry.is_dir(follow_symlinks=False):
                yield from self._walk(path)
                continue
            with suppress(FileNotFoundError):
                # What a link to a folder leads to is not of the lake: there is the link, and nothing behind it.
                yield _stored(path, entry.stat(follow_symlinks=not entry.is_dir()))

    @contextmanager
    def _translated(self, verb: str, path: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            what = (
                "its folder is gone or cannot be made; see to the file system, then run again"
                if verb == "write"
                else "there is no such file; run `skysql-extract verify` to see what is missing"
            )
            raise StoreMissing(f"cannot {verb} {path} in lake {self.uri}: {what}") from error
        except OSError as error:
            reason = error.strerror or type(error).__name__
            remedy = _REMEDIES.get(error.errno or 0, "see to the file system, then run again")
            raise LakeError(f"cannot {verb} {path} in lake {self.uri}: {reason}; {remedy}") from error


class _LocalOutput:
    """An output that is written among the unfinished files and renamed when it is complete."""

    def __init__(self, store: LocalStore, path: str) -> None:
        self._store = store
        self._path = path
        self._target = store._place(path)
        with store._translated("write", path):
            self._unfinished = store._scratch_place()
            self._file = self._unfinished.open("xb")

    @property
    def closed(self) -> bool:
        return self._file.closed

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    def write(self, content: bytes, /) -> int:
        with self._store._translated("write", self._path):
            return self._file.write(content)

    def tell(self) -> int:
        return self._file.tell()

    def flush(self) -> None:
        with self._store._translated("write", self._path):
            self._file.flush()

    def close(self) -> None:
        if self.closed:
            return
        try:
            with self._store._translated("write", self._path):
                self._file.flush()
                os.fsync(self._file.fileno())
                self._file.close()
                self._store._make_folder(self._target.parent)
                self._unfinished.replace(self._target)
                _sync_folder(self._target.parent)
        except BaseException:
            self._discard()
            raise

    def abort(self) -> None:
        if not self.closed:
            self._discard()

    def _discard(self) -> None:
        # Closing flushes, which fails again on a full disk; the file goes either way.
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            self._unfinished.unlink()


def _stored(path: str, found: os.stat_result) -> StoredFile:
    return StoredFile(
        path=path, size_bytes=found.st_size, modified_at=datetime.fromtimestamp(found.st_mtime, UTC)
    )


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
        _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems know no fsync of a folder; their renames are durable or nothing is.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _exchange(one: Path, other: Path) -> None:
    """Let two paths take each other's place in one step. Raises: OSError, ENOSYS on a system without the call."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _link_or_rename(old: Path, new: Path) -> None:
    """Link, which unlike a rename never replaces what another writer has put there."""
    try:
        os.link(old, new)
    except PermissionError:
        # Linux lets nobody link to another user's file, while renaming it is a right to the folder.
        if new.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
        old.rename(new)


def _same_content(one: Path, other: Path) -> bool:
    try:
        if one.samefile(other):
            return True
        if one.stat().st_size != other.stat().st_size:
            return False
        with one.open("rb") as left, other.open("rb") as right:
            while chunk := left.read(1 << 20):
                if chunk != right.read(len(chunk)):
                    return False
        return True
    except FileNotFoundError:
        # Another process finished the same move meanwhile.
        return other.exists()
