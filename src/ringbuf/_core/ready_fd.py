"""ReadyFd: a file descriptor that is readable while a ring has something, so that an event loop can wait for it without a thread.

Of a ring of one process it is an eventfd (a pipe where there is none). Of a ring in a shared file it is an epoll instance of two:
a datagram socket with an abstract name, made of the file's UUID and a number in its seat, to which a pushing process sends a byte
(both must be in the same network namespace), and a timer, for what a process did and was killed before it could say so.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket

__all__ = ["ReadyFd", "call"]


class ReadyFd:
    """One event loop's ear. `fd` is what it listens to.

    epoch: between which forks it is ours, in whatever way its user counts them. Writing eight bytes to `writer`, or letting the
    `timer` (a timerfd, which it closes) run out, makes it readable.
    """

    def __init__(
        self, epoch: int, file_uuid: bytes | None = None, seat: int = 0, timer: int = -1
    ) -> None:
        self.epoch = epoch
        self.seat = seat
        self.timer = timer
        #: What the socket's name ends with: an older one of the same seat, inherited by a forked child, is not in its way.
        self.nonce = int.from_bytes(os.urandom(8), "little") | 1
        self.fd = self.writer = -1
        self._socket: socket.socket | None = None
        if file_uuid is not None:
            self._socket = _new_socket()
            self._socket.bind(_name(file_uuid, self.nonce))
            self._both = select.epoll()
            self._both.register(self._socket, select.EPOLLIN)
            self._both.register(timer, select.EPOLLIN)
            self.fd = self._both.fileno()
        elif hasattr(os, "eventfd"):
            self.fd = self.writer = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        else:
            self.fd, self.writer = os.pipe()
            os.set_blocking(self.fd, False)
            os.set_blocking(self.writer, False)

    def clear(self) -> None:
        """Make it not readable; its timer is its user's to set."""
        source = self.fd if self._socket is None else self._socket.fileno()
        with contextlib.suppress(BlockingIOError):
            while os.read(source, 8) and self.writer != self.fd:
                pass

    def __del__(self) -> None:
        if self.timer >= 0:
            os.close(self.timer)
        if self._socket is not None:
            self._socket.close()
        else:
            for fd in {self.fd, self.writer} - {-1}:
                os.close(fd)


def call(file_uuid: bytes, nonce: int) -> None:
    """Make the ReadyFd of another process readable; if it has gone, nothing happens."""
    with _new_socket() as caller, contextlib.suppress(OSError):
        caller.sendto(b"\1", _name(file_uuid, nonce))


def _new_socket() -> socket.socket:
    return socket.socket(
        socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    )


def _name(file_uuid: bytes, nonce: int) -> bytes:
    return b"\0forebay-" + file_uuid.hex().encode() + b"-%x" % nonce
