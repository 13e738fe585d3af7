"""What the console script does about the cost of its own start, and takes back before a run begins.

Only a process that is all this program's may be treated like this: nothing here is for `import extractor`.
"""

from __future__ import annotations

import gc
import sys

__all__ = ("begin_work", "start_lean")


def start_lean() -> None:
    """Imports that follow are made without garbage collection, and without numpy.

    Imported modules are no garbage, however often they are looked at. Numpy is an option of pyarrow that nothing
    here uses; where it is found, pyarrow imports pandas too, to ask of every value whether it is a Series.
    """
    gc.disable()
    # The import system's own way to say that there is no such module. One that is loaded already stays.
    sys.modules.setdefault("numpy", None)  # type: ignore[arg-type]  # the type knows modules only


def begin_work() -> None:
    """From here on garbage is collected, but nothing that is there by now: it stays until the end.

    Changes nothing where collection was not put off.
    """
    if not gc.isenabled():
        gc.freeze()
        gc.enable()
