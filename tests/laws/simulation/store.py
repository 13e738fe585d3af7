"""The memory store under watch: each operation is told, and can be made to fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from extractor.errors import LakeError
from extractor.stores.memory import MemoryStore

__all__ = ("Disk",)


class Disk(MemoryStore):
    """A `MemoryStore` that calls `before_operation` with the number of each operation of the run.

    The operation with the number `fails_at` raises a LakeError: before it does anything, or, if
    `is_unanswered`, after all is done.
    """

    def __init__(self, **arguments: object) -> None:
        super().__init__(**arguments)  # type: ignore[arg-type]  # its own
        self.operations = 0
        self.fails_at = 0
        self.is_unanswered = False
        self.before_operation: Callable[[int], None] | None = None
        self.steps_after_commit: int | None = None
        """So many steps after a log entry is about to be put the power goes."""
        self.operations_after_commit: int | None = None
        """So many operations after the same moment one fails."""
        self._depth = 0

    def put_if_absent(self, path: str, content: bytes) -> bool:
        if self.steps_after_commit is not None and path.startswith("_extractor/log/"):
            self.lose_power(after_steps=self.steps_after_commit)
            self.steps_after_commit = None
        if self.operations_after_commit is not None and path.startswith("_extractor/log/"):
            self.fails_at = self.operations + 1 + self.operations_after_commit
            self.operations_after_commit = None
        return super().put_if_absent(path, content)

    @contextmanager
    def _working(self, *paths: str) -> Iterator[None]:
        is_outer = self.before_operation is not None and self._depth == 0
        if is_outer:
            self.operations += 1
            self.before_operation(self.operations)  # type: ignore[misc]  # see above
        is_failing = is_outer and self.operations == self.fails_at
        if is_failing and not self.is_unanswered:
            raise LakeError("the medium failed")
        self._depth += 1
        try:
            with super()._working(*paths):
                yield
        finally:
            self._depth -= 1
        if is_failing:
            raise LakeError("the medium gave no answer")

    @contextmanager
    def unwatched(self) -> Iterator[None]:
        """What is done inside is the judge's doing, and not counted."""
        watching, self.before_operation = self.before_operation, None
        try:
            yield
        finally:
            self.before_operation = watching
