"""Descriptors 0, 1 and 2, which a process may be started without.

The next files that are opened would get these numbers, and what is printed, or sent to
stdout, would be written into them: a lock file, a segment. So a command first fills
them, by `fill`, with /dev/null opened the wrong way round: a read or write there is an
error, rather than nothing.
"""

from __future__ import annotations

import errno
import os
import sys

__all__ = ["check_stdin", "check_stdout", "fill"]


def fill() -> None:
    """Fill those of 0, 1 and 2 that are closed."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            # The lowest free number is this one: those below it are open.
            os.open(os.devnull, os.O_WRONLY if fd == 0 else os.O_RDONLY)
            os.set_inheritable(fd, True)
    # Python has None for a stream that was closed, and print(file=None) is stdout.
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (for the whole run)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def check_stdin() -> None:
    """OSError where nothing can be read from stdin."""
    if not _allows(0, os.O_RDONLY):
        raise OSError(errno.EBADF, "it is closed: nothing can be read from it", "stdin")


def check_stdout() -> None:
    """OSError where nothing can be written to stdout."""
    if not _allows(1, os.O_WRONLY):
        raise OSError(errno.EBADF, "it is closed: nothing can be written to it", "stdout")


if sys.platform == "win32":

    def _allows(fd: int, mode: int) -> bool:
        return True

else:
    import fcntl

    def _allows(fd: int, mode: int) -> bool:
        """Whether the descriptor is open, for reading or for writing."""
        try:
            flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        except OSError:
            return False
        return flags & os.O_ACCMODE in (mode, os.O_RDWR)
