"""TcpSink: events as lines over one TCP connection, made again when it breaks.

TCP has no answer to a line: a batch counts as delivered when the system has taken all
of it. What the peer had not read when it died is lost, and neither side knows how much;
where that matters, use HttpSink, or a file. A batch whose write failed comes again
whole, over a new connection, so its beginning may arrive twice. A forked child makes a
connection of its own.

Not safe for several threads: a sink belongs to the thread that delivers.
"""

from __future__ import annotations

import socket
import threading
from typing import Final

from backpressure.base.validation import check_number
from backpressure.buffer.batch import Batch
from backpressure.sinks.connection import ConnectionOwner

__all__ = ["TcpSink"]

# As in LineSink: the join writes it, and the system call reads it from the cache.
_PIECE_BYTES = 256 * 1024


class TcpSink:
    """Connects to `host`:`port` with the first batch.

    timeout: seconds that connecting, and each write, may take.
    """

    #: It has one connection.
    max_concurrency: Final = 1
    #: There is no answer to a line that could reject it.
    rejects_events: Final = False

    def __init__(self, host: str, port: int, *, timeout: float = 10.0) -> None:
        self.name = f"{host}:{port}"
        self._address = (host, port)
        self._timeout = check_number("timeout", timeout, float, 0.001, threading.TIMEOUT_MAX)
        self._socket: socket.socket | None = None
        self._owner: ConnectionOwner | None = None
        self._piece = memoryview(bytearray(_PIECE_BYTES))

    def send(self, batch: Batch) -> None:
        """Write all of `batch`, or raise OSError."""
        connection = self._connection()
        done = 0
        try:
            while done < len(batch):
                events, nbytes = batch.join_into(self._piece, done)
                if events:
                    connection.sendall(self._piece[:nbytes])
                else:  # one that is larger than the piece
                    events = 1
                    connection.sendall(batch[done] + b"\n")
                done += events
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the connection; what the system has taken is still sent.

        In a forked child, leave the connection to the parent.
        """
        connection, self._socket = self._socket, None
        owner, self._owner = self._owner, None
        if owner is not None and not owner.is_here():
            owner.abandon()
        elif connection is not None:
            connection.close()

    def _connection(self) -> socket.socket:
        """The connection, made anew where there is none or the peer has ended it."""
        if self._owner is not None and not self._owner.is_here():
            self.close()
        if self._socket is not None and _peer_has_closed(self._socket):
            self.close()
        if self._socket is None:
            connection = socket.create_connection(self._address, self._timeout)
            # To notice, also while nothing is sent, that the peer has vanished.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            # The owner first: a process that is forked here finds whose it is.
            self._owner = ConnectionOwner(connection)
            self._socket = connection
        return self._socket


def _peer_has_closed(connection: socket.socket) -> bool:
    """Whether the peer has closed: a first write would still succeed, and be lost.

    What the peer sends is read and dropped.
    """
    timeout = connection.gettimeout()
    connection.settimeout(0.0)
    try:
        while connection.recv(4096):
            pass
    except (BlockingIOError, InterruptedError):
        return False
    except OSError:
        return True
    finally:
        connection.settimeout(timeout)
    return True
