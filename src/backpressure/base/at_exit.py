"""at_exit: have something done before the interpreter ends.

A child of multiprocessing ends without `atexit` and `logging.shutdown`: there its own
finalisers are used, behind all others.
"""

from __future__ import annotations

import atexit
import sys
from collections.abc import Callable
from typing import Final

__all__ = ["at_exit", "at_exit_of_child"]

# multiprocessing's queues have -5, and are still used by what ends before.
_LAST: Final = -100


def at_exit(end: Callable[[], object]) -> None:
    """Call `end()` at the end of this process, unless it is killed."""
    if not at_exit_of_child(end):
        atexit.register(end)


def at_exit_of_child(end: Callable[[], object]) -> bool:
    """The same in a child of multiprocessing, and only there; whether this is one."""
    util, process = map(sys.modules.get, ("multiprocessing.util", "multiprocessing.process"))
    if util is None or process is None or process.parent_process() is None:
        return False
    util.Finalize(None, end, exitpriority=_LAST)
    return True
