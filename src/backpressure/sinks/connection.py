"""ConnectionOwner: a connection is used by the process that made it, and by no other.

A forked child has its parent's socket too. If both used it, each would read the answers
to the other's requests, and an event that was refused would count as delivered.
"""

from __future__ import annotations

import os
import socket

__all__ = ["ConnectionOwner"]


class ConnectionOwner:
    """Whose `connection` it is: the process that makes this object."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._pid = os.getpid()
        self._file = _identity(connection.fileno())

    def is_here(self) -> bool:
        """Whether it is this process."""
        return self._pid == os.getpid()

    def abandon(self) -> None:
        """Close this process's descriptor, and send nothing: no end, no TLS
        close_notify. The connection stays the owner's.
        """
        fd = self._connection.detach()
        # Code that makes a daemon closes all descriptors: the number may be another
        # file's.
        if fd >= 0 and self._file is not None and _identity(fd) == self._file:
            os.close(fd)


def _identity(fd: int) -> tuple[int, int] | None:
    try:
        found = os.fstat(fd)
    except OSError:
        return None
    return found.st_dev, found.st_ino
