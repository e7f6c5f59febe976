"""DatagramSource: one message in each datagram, as syslog over UDP (RFC 5426).

Nothing slows a sender of datagrams down: what the buffer does not take in time waits in
the socket, and what has no room there the system drops. It says how many those were
(Linux), and they are counted as "dropped". A datagram is a line as it is; one with line
ends within it is as many. One of more than `max_line_bytes` is skipped, and an empty
one is nothing.

Whatever is skipped or dropped is in `stats` and, at a limited rate, in the log.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
import threading
from typing import Final

from backpressure.sources.base import Incidents, Put, SourceStats

__all__ = ["DatagramSource", "udp_socket"]

# Seconds that it waits for a datagram before it checks whether to end.
_WAIT_SECONDS: Final = 0.2
# No datagram over IP has more bytes.
_LARGEST: Final = 1 << 16
# Bytes of datagrams that are put at once, where more have come already: as few as fit
# into the second-level cache.
_CHUNK_BYTES: Final = 256 * 1024
# What is asked for as room in the socket; the system grants what net.core.rmem_max has.
_ROOM_BYTES: Final = 8 << 20
# Linux's, which `socket` does not name: with each datagram comes how many were dropped
# before it.
_SO_RXQ_OVFL: Final = 40
_COUNTER: Final = struct.Struct("=I")
_IS_LINUX: Final = sys.platform == "linux"


def udp_socket(host: str, port: int) -> socket.socket:
    """A UDP socket with that address. OSError, with the address in its text."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_DGRAM, socket.IPPROTO_UDP)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _ROOM_BYTES)
        if _IS_LINUX:
            bound.setsockopt(socket.SOL_SOCKET, _SO_RXQ_OVFL, 1)
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise OSError(error.errno, f"{host}:{port}: {error.strerror}") from error
    return bound


class DatagramSource:
    """Lines from the datagrams to `bound`, which it owns."""

    def __init__(self, bound: socket.socket, name: str, *, max_line_bytes: int = 1 << 20) -> None:
        self.name = name
        self._socket = bound
        self._max_line_bytes = max_line_bytes
        self._piece = bytearray(_LARGEST)
        self._dropped = 0  # as the system counts them, from the socket's beginning
        self._incidents = Incidents(name, "too_long", "dropped", "broken")

    def stats(self) -> SourceStats:
        """What was left out, by reason."""
        return SourceStats(name=self.name, incidents=self._incidents.snapshot())

    def run(self, put: Put, stopping: threading.Event) -> None:
        """As ServiceSource."""
        lines = bytearray()
        try:
            while True:
                # At the end, what has come already is still taken.
                is_last = stopping.is_set()
                self._socket.settimeout(0.0 if is_last else _WAIT_SECONDS)
                try:
                    self._receive(lines)
                except (TimeoutError, BlockingIOError):
                    if is_last:
                        return
                    continue
                except OSError as error:
                    if error.errno in (errno.EBADF, errno.ENOTSOCK):
                        raise
                    self._incidents.add("broken", "no datagram for now: %s", error.strerror)
                    stopping.wait(_WAIT_SECONDS)
                    continue
                self._socket.settimeout(0.0)
                while len(lines) < _CHUNK_BYTES:
                    try:
                        self._receive(lines)
                    except OSError:
                        break  # there is none now; another error comes again
                if lines:
                    with memoryview(lines) as view:
                        if put(view) is None:
                            return
                    lines.clear()
        finally:
            self._socket.close()

    def _receive(self, lines: bytearray) -> None:
        """Add the next datagram to `lines`."""
        size, ancillary, flags, _ = self._socket.recvmsg_into(
            [self._piece], socket.CMSG_SPACE(_COUNTER.size)
        )
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, _SO_RXQ_OVFL):
                self._count_dropped(*_COUNTER.unpack_from(data))
        if size > self._max_line_bytes or flags & socket.MSG_TRUNC:
            self._incidents.add(
                "too_long", "a datagram has more than %d bytes: skipped", self._max_line_bytes
            )
        elif size:
            lines += self._piece[:size]
            if lines[-1] != 10:  # its own newline is the line's
                lines += b"\n"

    def _count_dropped(self, dropped: int) -> None:
        if more := (dropped - self._dropped) % (1 << 32):
            self._dropped = dropped
            self._incidents.add(
                "dropped",
                "the system dropped datagrams, for which there was no room; raise "
                "net.core.rmem_max",
                count=more,
            )
