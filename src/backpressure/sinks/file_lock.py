"""FileLock: writers of one file take turns, as long as all of them do.

The lock is advisory (`flock`) and belongs to the open file, so it holds between the
threads of a process as well. It makes a failed write safe to cut off: no other sink
appends between the look at the file's end and the cut. Appending alone does not need
it, which is why a lock that cannot be had is done without: a participant that is
stopped within a write must not hold up all others.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

__all__ = ["FileLock"]

# Seconds that a writer waits for the others: a batch is written in milliseconds.
_PATIENCE: Final = 1.0
# Seconds between two looks at a lock that is taken.
_LOOK: Final = 0.001


class FileLock:
    """For one sink. Not safe for several threads."""

    def __init__(self) -> None:
        self._patience = _PATIENCE

    @contextmanager
    def held(self, fd: int) -> Iterator[bool]:
        """Hold the lock of the open file `fd`, if it can be had within a second.

        Whether it is held.
        """
        taken = self._take(fd)
        try:
            yield taken
        finally:
            if taken:
                _unlock(fd)

    def _take(self, fd: int) -> bool:
        deadline = time.monotonic() + self._patience
        while True:
            try:
                taken = _try_lock(fd)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    # Not again for each batch: the holder may be stopped for hours.
                    self._patience = 0.0
                    return False
                time.sleep(_LOOK)
            except OSError:
                return False  # this file system has no such locks
            else:
                self._patience = _PATIENCE
                return taken


if sys.platform == "win32":

    def _try_lock(fd: int) -> bool:
        return False

    def _unlock(fd: int) -> None:
        pass

else:
    import fcntl

    def _try_lock(fd: int) -> bool:
        """Take the lock, or raise BlockingIOError where another has it."""
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True

    def _unlock(fd: int) -> None:
        try:
            fcntl.flock(fd, fcntl.LOCK_UN)
        except OSError:
            pass  # others closed the descriptor, and the lock with it
