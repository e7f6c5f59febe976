"""ReadyFd: a file descriptor that is readable while a ring has something, so that an event loop can wait for it without a thread.

Of a ring of one process it is an eventfd (a pipe where there is none). Of a ring in a shared file it is a datagram socket with an
abstract name, made of the file's UUID and the seat, to which a pushing process sends a byte; both must be in the same
network namespace.
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Final

__all__ = ["ReadyFd", "call"]

_BYTE: Final = b"\1" + bytes(7)


class ReadyFd:
    """One event loop's ear. `fd` is what it listens to."""

    def __init__(self, file_uuid: bytes | None = None, seat: int = 0, epoch: int = 0) -> None:
        self.seat = seat
        self.epoch = epoch
        self._socket: socket.socket | None = None
        self._writer = -1
        if file_uuid is not None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            self._socket.bind(_name(file_uuid, seat))
            self.fd = self._socket.fileno()
        elif hasattr(os, "eventfd"):
            self.fd = self._writer = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        else:
            self.fd, self._writer = os.pipe()
            os.set_blocking(self.fd, False)
            os.set_blocking(self._writer, False)

    def set(self) -> None:
        """Make it readable."""
        with contextlib.suppress(BlockingIOError):
            if self._socket is not None:
                self._socket.sendto(b"\1", self._socket.getsockname())
            else:
                os.write(self._writer, _BYTE if self._writer == self.fd else b"\1")

    def clear(self) -> None:
        """Make it not readable."""
        with contextlib.suppress(BlockingIOError):
            while len(os.read(self.fd, 8)) and self._writer != self.fd:
                pass

    def __del__(self) -> None:
        if self._socket is not None:
            self._socket.close()
        elif self._writer >= 0:
            for fd in {self.fd, self._writer}:
                os.close(fd)


def call(file_uuid: bytes, seat: int) -> None:
    """Make the ReadyFd of another process readable; if it has gone, nothing happens."""
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as caller,
        contextlib.suppress(OSError),
    ):
        caller.sendto(b"\1", _name(file_uuid, seat))


def _name(file_uuid: bytes, seat: int) -> bytes:
    return b"\0penstock-" + file_uuid.hex().encode() + b"-%d" % seat
