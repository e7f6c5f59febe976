"""SocketSource: lines from connections, over TCP or a Unix socket.

Backpressure reaches the sender: while the buffer is full nothing is read from its
connection, so its writes begin to wait.

Each connection has a thread, and there are at most `max_connections`; a further one is
closed at once. A line ends with b"\\n" (a b"\\r" before it belongs to the line); what
comes after the last newline when the peer closes is a line too. One longer than
`max_line_bytes` is skipped and counted. At the end no new connection is accepted, and
what the system has already received on the others is still read.

There is no answer to a line, so a sender cannot know what was accepted; where that
matters, send by HTTP.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
import threading

from backpressure.sources.base import Put

__all__ = ["SocketSource", "tcp_listener", "unix_listener"]

_log = logging.getLogger("backpressure")

_CHUNK_BYTES = 256 * 1024
# Seconds that the accepting thread waits before it checks whether to end.
_ACCEPT_SECONDS = 0.2
# Seconds that the end waits for connections whose last lines are on their way into the
# buffer.
_JOIN_SECONDS = 5.0


def tcp_listener(host: str, port: int) -> socket.socket:
    """A listening TCP socket. OSError, with the address in its text."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named so that asyncio knows it as TCP, and turns off Nagle's
    # algorithm. Otherwise each answer of more than one packet waits 40 ms for the
    # client's delayed acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"{host}:{port}: {error.strerror}") from error
    return listener


def unix_listener(path: str, mode: int = 0o660) -> socket.socket:
    """A listening Unix socket at `path`.

    A stale socket there is replaced; for anything else there it is an OSError.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        # The mode is set before a client can connect: none can before listen().
        listener.bind(path)
        os.chmod(path, mode)
        listener.listen()
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"{path}: {error.strerror}") from error
    return listener


def _remove_stale(path: str) -> None:
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise OSError(errno.EEXIST, "there is something else, which is not removed")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        else:
            raise OSError(errno.EADDRINUSE, "another process listens there")


class SocketSource:
    """Lines from the connections to `listener`, which it owns.

    path: of a Unix socket, which is removed at the end.
    """

    def __init__(
        self,
        listener: socket.socket,
        name: str,
        *,
        max_connections: int = 256,
        max_line_bytes: int = 1 << 20,
        path: str | None = None,
    ) -> None:
        self.name = name
        #: Lines skipped because they were too long.
        self.oversized = 0
        #: Connections closed because there were too many.
        self.refused_connections = 0
        self._listener = listener
        self._path = path
        self._max_connections = max_connections
        self._max_line_bytes = max_line_bytes
        self._lock = threading.Lock()
        self._connections: dict[socket.socket, threading.Thread] = {}

    @property
    def address(self) -> str:
        """The address it listens on, with the port that the system chose for 0."""
        bound = self._listener.getsockname()
        return f"{bound[0]}:{bound[1]}" if isinstance(bound, tuple) else str(bound)

    def run(self, put: Put, stopping: threading.Event) -> None:
        """As ServiceSource."""
        self._listener.settimeout(_ACCEPT_SECONDS)
        try:
            while not stopping.is_set():
                try:
                    connection, _ = self._listener.accept()
                except TimeoutError:
                    continue
                except OSError as error:
                    if error.errno not in (
                        errno.EMFILE,
                        errno.ENFILE,
                        errno.ECONNABORTED,
                        errno.ENOBUFS,
                        errno.ENOMEM,
                    ):
                        raise
                    # Too many open files: others will be closed.
                    stopping.wait(_ACCEPT_SECONDS)
                    continue
                self._start_connection(connection, put)
        finally:
            self._listener.close()
            if self._path is not None:
                try:
                    os.unlink(self._path)
                except OSError:
                    pass
            self._end_connections()

    def _start_connection(self, connection: socket.socket, put: Put) -> None:
        with self._lock:
            if len(self._connections) >= self._max_connections:
                self.refused_connections += 1
                connection.close()
                return
            thread = threading.Thread(
                target=self._run_connection,
                args=(connection, put),
                name=f"forebay-{self.name}",
                daemon=True,
            )
            self._connections[connection] = thread
        connection.settimeout(None)  # it would inherit the listener's on some systems
        if connection.family != getattr(socket, "AF_UNIX", None):
            # So that a peer that vanished does not hold its place for ever.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        thread.start()

    def _end_connections(self) -> None:
        with self._lock:
            open_now = dict(self._connections)
        for connection in open_now:
            try:
                connection.shutdown(socket.SHUT_RD)
            except OSError:
                pass
        for thread in open_now.values():
            thread.join(_JOIN_SECONDS)

    def _run_connection(self, connection: socket.socket, put: Put) -> None:
        try:
            with connection:
                self._read_lines(connection, put)
        except OSError as error:
            _log.info("%s: a connection broke: %s", self.name, error.strerror or error)
        except Exception:
            _log.exception("%s: a connection failed", self.name)
        finally:
            with self._lock:
                self._connections.pop(connection, None)

    def _read_lines(self, connection: socket.socket, put: Put) -> None:
        most = self._max_line_bytes + 1
        buffer = bytearray(min(_CHUNK_BYTES, most))
        carried = 0  # buffer[:carried] begins a line
        skipping = False
        while True:
            if carried == len(buffer):
                if carried >= most:
                    self._count_oversized()
                    skipping, carried = True, 0
                else:
                    buffer.extend(bytes(min(carried, most - carried)))
            with memoryview(buffer) as view:
                got = connection.recv_into(view[carried:])
                if not got:
                    if carried and not skipping:
                        put(view[:carried])
                    return
                filled = carried + got
                start = 0
                if skipping:
                    start = buffer.find(b"\n", 0, filled) + 1
                    if not start:
                        carried = 0
                        continue
                    skipping = False
                end = buffer.rfind(b"\n", start, filled) + 1
                if end:
                    if put(view[start:end]) is None:
                        return
                    start = end
                carried = filled - start
                view[:carried] = bytes(view[start:filled])

    def _count_oversized(self) -> None:
        with self._lock:
            self.oversized += 1
        _log.warning("%s: a line has more than %d bytes: skipped", self.name, self._max_line_bytes)
