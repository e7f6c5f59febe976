"""ReadyFd: a file descriptor that is readable while a ring has something, so that an
event loop can wait for it without a thread.

Of a ring of one process it is an eventfd (a pipe where there is none). Of a ring in a
shared file it is an epoll instance of two: a datagram socket with an abstract name,
made of the file's UUID and a number in the participant's slot, to which a push sends a
byte (both must be in the same network namespace), and a timer, for the pushes of
processes that were killed before they could send it.
"""

from __future__ import annotations

import os
import select
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket

__all__ = ["ReadyFd", "prefix_of"]


# Those whose numbers are other files' by now: an epoll object closes its number when it
# goes, so these stay.
_kept: list[select.epoll] = []


class ReadyFd:
    """A descriptor for event loops: `fd` is what they listen to.

    Eight bytes written to `writer`, or the `timer` (a timerfd, which this closes) that
    runs out, make it readable. It stays so until `source` has been read until it is
    empty; the timer is the caller's to set.

    Code that makes a daemon closes every descriptor that it finds. What such a number
    leads to then is not closed here; `source_id` and `writer_id` (device, inode) let
    the caller check before it reads or writes.
    """

    def __init__(
        self, file_uuid: bytes | None = None, participant: int = 0, timer: int = -1
    ) -> None:
        self.participant = participant
        self.timer = timer
        #: What the socket's name ends with: it differs from the name of an older one of
        #: the same participant that a forked child has inherited.
        self.nonce = int.from_bytes(os.urandom(8), "little") | 1
        self.fd = self.writer = self.source = -1
        self._socket: socket.socket | None = None
        if file_uuid is not None:
            self._socket = _new_socket()
            self._socket.bind(b"\0" + prefix_of(file_uuid) + b"%x" % self.nonce)
            self._both = select.epoll()
            self._both.register(self._socket, select.EPOLLIN)
            self._both.register(timer, select.EPOLLIN)
            self.fd = self._both.fileno()
            self.source = self._socket.fileno()
        elif hasattr(os, "eventfd"):
            self.fd = self.writer = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            self.source = self.fd
        else:
            self.fd, self.writer = os.pipe()
            self.source = self.fd
            os.set_blocking(self.fd, False)
            os.set_blocking(self.writer, False)
        self.source_id, self.writer_id = _id_of(self.source), _id_of(self.writer)
        self._ids = {fd: _id_of(fd) for fd in {self.fd, self.writer, self.source, timer} - {-1}}

    def __del__(self) -> None:
        ours = {fd for fd, known in getattr(self, "_ids", {}).items() if _id_of(fd) == known}
        if self._socket is not None:
            if self.source not in ours:
                self._socket.detach()
            self._socket.close()
            if self.fd not in ours:
                _kept.append(self._both)
            ours -= {self.source, self.fd}
        for fd in ours:
            os.close(fd)


def _id_of(fd: int) -> tuple[int, int]:
    """Device and inode; zeros where it leads nowhere."""
    try:
        found = os.fstat(fd)
    except OSError:
        return 0, 0
    return found.st_dev, found.st_ino


def _new_socket() -> socket.socket:
    import socket  # only rings that processes share need it

    return socket.socket(
        socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    )


def prefix_of(file_uuid: bytes) -> bytes:
    """What the abstract names of all sockets that listen for a ring in this file begin
    with; the nonce in hex follows.
    """
    return b"forebay-" + file_uuid.hex().encode() + b"-"
