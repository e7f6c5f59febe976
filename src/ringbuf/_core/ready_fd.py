"""ReadyFd: a file descriptor that is readable while a ring has something, so that an event loop can wait for it without a thread.

Of a ring of one process it is an eventfd (a pipe where there is none). Of a ring in a shared file it is an epoll instance of two:
a datagram socket with an abstract name, made of the file's UUID and a number in its seat, to which a pushing process sends a byte
(both must be in the same network namespace), and a timer, for what a process did and was killed before it could say so.
"""

from __future__ import annotations

import os
import select
import socket

__all__ = ["ReadyFd", "prefix_of"]


class ReadyFd:
    """One event loop's ear. `fd` is what it listens to.

    Writing eight bytes to `writer`, or letting the `timer` (a timerfd, which it closes) run out, makes it readable. When `source`
    has been read until it is empty, it is so no more; its timer is its user's to set.
    """

    def __init__(self, file_uuid: bytes | None = None, seat: int = 0, timer: int = -1) -> None:
        self.seat = seat
        self.timer = timer
        #: What the socket's name ends with: an older one of the same seat, inherited by a forked child, is not in its way.
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

    def __del__(self) -> None:
        if self.timer >= 0:
            os.close(self.timer)
        if self._socket is not None:
            self._socket.close()
        else:
            for fd in {self.fd, self.writer} - {-1}:
                os.close(fd)


def _new_socket() -> socket.socket:
    return socket.socket(
        socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    )


def prefix_of(file_uuid: bytes) -> bytes:
    """What the abstract names of all sockets that listen for a ring in this file begin with; the nonce in hex follows."""
    return b"forebay-" + file_uuid.hex().encode() + b"-"
