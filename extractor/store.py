"""Where a lake lives: whole files by relative path, with one operation that only one writer can win.

Everything else in the lake is built on three promises of a store: a file is never seen half written, what a
call reported as written survives the loss of power, and `put_if_absent` lets one of many callers win.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, Protocol

from extractor.errors import LakeError

__all__ = (
    "SCRATCH",
    "STAGING",
    "Inputs",
    "Output",
    "Store",
    "StoreMissing",
    "StoredFile",
    "Unclosed",
    "checked_path",
    "checked_prefix",
    "staged_path",
)

SCRATCH = "_extractor/incoming"
"""The one folder in which a store may keep files that are not complete yet."""
STAGING = "_extractor/staging"
"""The folder of files that are complete and not yet in their place, each in that of its run."""


class StoreMissing(LakeError):
    """A file or folder that was asked for does not exist."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """A complete file; `modified_at` is the store's clock, in UTC."""

    path: str
    size_bytes: int
    modified_at: datetime


class Inputs(Protocol):
    """What only reads needs of a store."""

    def open_input(self, path: str) -> BinaryIO:
        """The file for reading, seekable; still readable when moved or removed. Raises: StoreMissing."""


class Output(Protocol):
    """A file being written: nobody sees it before `close` has returned."""

    @property
    def closed(self) -> bool: ...

    def writable(self) -> bool: ...

    def write(self, content: bytes, /) -> int:
        """Take bytes or any buffer; return how many of them were taken: all."""

    def tell(self) -> int: ...

    def flush(self) -> None:
        """Hand on what is buffered; promises nothing about durability."""

    def close(self) -> None:
        """Make the file complete, durable and visible, replacing an earlier one; a second call does nothing.

        Raises: LakeError, after which nothing of the file is left.
        """

    def abort(self) -> None:
        """Leave nothing; after `close` this does nothing."""


class Unclosed:
    """An output for Arrow to write to, whose end its owner decides."""

    closed = False

    def __init__(self, output: Output) -> None:
        self._output = output

    def write(self, content: bytes, /) -> int:
        return self._output.write(content)

    def tell(self) -> int:
        return self._output.tell()

    def flush(self) -> None:
        """What is written is whole when the owner closes it."""

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    def close(self) -> None:
        """The output is closed by its owner."""


class Store(Inputs, Protocol):
    """Files by path, as a lake needs them; synchronous, and safe to call from several threads.

    Paths are relative, with `/` between segments (see `checked_path`). What a method has done when it returns
    is durable. Every error of the medium is a LakeError in one line naming the file, the lake and a remedy;
    after one, the change may have happened or not, but never in part.
    """

    @property
    def uri(self) -> str:
        """Where the lake is, for people."""

    @property
    def has_atomic_folder_move(self) -> bool:
        """True where `move_folder` onto an absent target is one step for every reader."""

    @property
    def has_folder_exchange(self) -> bool:
        """True where `exchange_folder` works; it may have to be tried to be known."""

    def read(self, path: str) -> bytes:
        """The whole content. Raises: StoreMissing."""

    def put(self, path: str, content: bytes) -> None:
        """Write or replace the file; a reader sees the old content or the new."""

    def put_if_absent(self, path: str, content: bytes) -> bool:
        """Create the file, unless there is one; False if there is, and it then is durable.

        Of any number of concurrent callers one gets True.
        """

    def exists(self, path: str) -> bool:
        """True if `path` is a complete file; a folder is none."""

    def stat(self, path: str) -> StoredFile | None: ...

    def list(self, prefix: str) -> Iterator[StoredFile]:
        """Every file in the folder `prefix` and below it, sorted by path; `""` is the whole lake.

        A folder that does not exist has no files. Unfinished files are not seen.
        """

    def delete(self, path: str) -> None:
        """Remove the file if it is there."""

    def delete_files(self, paths: Sequence[str]) -> None:
        """Remove those files that are there, in this order; after a crash some of the last may be left."""

    def delete_folder(self, prefix: str) -> None:
        """Remove everything in and below the folder, if it is there; not in one step."""

    def move(self, source: str, target: str) -> None:
        """Give a file another path; a target with the same content is what was wanted.

        At every moment the file is found at one path or at both.
        Raises: StoreMissing if there is no source; LakeError if the target differs, and then nothing changes.
        """

    def copy_files(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Give files a second path each, source and target; what stands at a target already stays.

        Files are never changed in place, so the two may be one on the medium. Raises: StoreMissing.
        """

    def exchange_folder(self, one: str, other: str) -> None:
        """Let two folders take each other's place, in one step for every reader.

        Raises: StoreMissing if one is not there; LakeError where the medium cannot do it.
        """

    def move_folder(self, source: str, target: str) -> None:
        """Move every file below `source`; in one step if `has_atomic_folder_move` and the target is absent.

        A call that was cut off is finished by the next one. Raises: as `move`.
        """

    def open_output(self, path: str) -> Output: ...

    def local_path(self, path: str) -> Path | None:
        """Where the file is for programs that open files by name; None where there is no such thing."""

    def now(self) -> datetime:
        """The clock that stamps `modified_at`, in UTC."""

    def check_writable(self) -> None:
        """Return if the lake can be written. Raises: LakeError with the reason."""

    def withdraw(self) -> None:
        """Let a lake without files be as it was before this store wrote to it; any file that is there stays."""


def staged_path(run_id: str, path: str) -> str:
    """Where the file that will stand at `path` is while its run has not published it."""
    return f"{STAGING}/{run_id}/{path}"


def checked_path(path: str) -> str:
    """The path itself, if it is one that stays inside the lake.

    Raises: LakeError for an absolute path, an empty segment, `.`, `..`, a NUL or text that is no Unicode.
    """
    # An absolute path begins with an empty segment.
    if (
        "\0" in path
        or any(segment in ("", ".", "..") for segment in path.split("/"))
        or not _is_unicode(path)
    ):
        raise LakeError(f"not a path inside a lake: {path!r}; this is a fault of the caller")
    return path


def checked_prefix(prefix: str) -> str:
    """The folder without a slash at its end; `""` is the lake itself. Raises: as `checked_path`."""
    prefix = prefix.removesuffix("/")
    return checked_path(prefix) if prefix else ""


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
