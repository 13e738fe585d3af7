"""What is too large for memory goes to a file for a while; when that fails, it is no fault of the answer."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from extractor.errors import LakeError

__all__ = ("spooling",)


@contextmanager
def spooling(what: str) -> Iterator[None]:
    """Faults of the disk under `what` as one line with a remedy.

    Raises: LakeError. Asking the server again would not help.
    """
    try:
        yield
    except OSError as error:
        # Not the error's own words: Arrow's go on for several lines.
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "free some space" if is_full else "see to the folder"
        raise LakeError(f"{what} could not be kept on disk: {reason}; {remedy} and run again") from error
