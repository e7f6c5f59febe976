"""SocketSource: lines and messages from connections, over TCP or a Unix socket.

Backpressure reaches the sender: while the buffer is full nothing is read from its
connection, so its writes begin to wait.

Each connection has a thread, and there are at most `max_connections`; a further one is
closed at once. framing.py says where lines and messages end. One longer than
`max_line_bytes` is skipped. Where the system has no thread or no descriptor left, no
connection is accepted until it has. At the end no new connection is accepted, and what
the system has already received on the others is still read.

Whatever is refused, skipped or given up is in `stats` and, at a limited rate, in the
log. There is no answer to a line, so a sender cannot know what was accepted; where that
matters, send by HTTP.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
import threading
import time
from typing import Final

from backpressure.sources.base import Incidents, Put, SourceStats
from backpressure.sources.framing import FRAMINGS, FramingError, make_framing

__all__ = ["SocketSource", "tcp_listener", "unix_listener"]

_log = logging.getLogger("backpressure")

_CHUNK_BYTES = 256 * 1024
# Seconds that the accepting thread waits before it checks whether to end, or whether
# the system has what it lacked.
_ACCEPT_SECONDS = 0.2
# Seconds that the end waits for connections whose last lines are on their way into the
# buffer.
_JOIN_SECONDS = 5.0
# What `accept` says of the listener itself. Anything else is of one connection, or of a
# system that lacks something for now.
_BROKEN_LISTENER: Final = (errno.EBADF, errno.EINVAL, errno.ENOTSOCK, errno.EOPNOTSUPP)
# A peer that has vanished is noticed after 60 s of silence and four questions 15 s
# apart, instead of the system's two hours: it holds one of `max_connections`.
_KEEPALIVE: Final = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}
# Seconds after which a socket that refuses is asked again: another process may have
# made it just now, and not listen yet.
_PROBE_SECONDS: Final = 0.1


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

    A socket there that nobody listens on is replaced, if it is this user's; for
    anything else there it is an OSError.
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
        raise OSError(error.errno, f"{path}: {error.strerror or error}") from error
    return listener


def _remove_stale(path: str) -> None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise OSError(errno.EEXIST, "there is something else, which is not removed")
    if _is_listening(path):
        raise OSError(errno.EADDRINUSE, "another process listens there")
    time.sleep(_PROBE_SECONDS)
    if _is_listening(path):
        raise OSError(errno.EADDRINUSE, "another process listens there")
    if found.st_uid != os.geteuid():
        raise OSError(errno.EEXIST, "there is a socket of another user, which is not removed")
    if _same_file(path, found):
        os.unlink(path)


def _is_listening(path: str) -> bool:
    """Whether a process does. One that does and has no room now counts."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(0.0)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno == errno.EPROTOTYPE:  # a datagram socket, which is in use
                return True
            raise
    return True


def _same_file(path: str, one: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.lstat(path), one)
    except OSError:
        return False


class SocketSource:
    """Lines from the connections to `listener`, which it owns.

    framing: "auto", "newline" or "octet-counting"; see framing.py.
    idle_timeout: seconds after which a connection that sends nothing is closed; None:
        never. Time in which the buffer takes nothing does not count.
    path: of a Unix socket, which is removed at the end if it is still this one.
    """

    def __init__(
        self,
        listener: socket.socket,
        name: str,
        *,
        max_connections: int = 256,
        max_line_bytes: int = 1 << 20,
        framing: str = "auto",
        idle_timeout: float | None = None,
        path: str | None = None,
    ) -> None:
        if framing not in FRAMINGS:
            raise ValueError(f"framing must be one of {', '.join(FRAMINGS)}, not {framing!r}")
        self.name = name
        self._listener = listener
        self._path = path
        self._file = None if path is None else os.lstat(path)
        self._max_connections = max_connections
        self._max_line_bytes = max_line_bytes
        self._framing = framing
        self._idle_timeout = idle_timeout
        self._lock = threading.Lock()
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._incidents = Incidents(
            name, "too_long", "no_count", "refused", "idle", "broken", "no_thread", "no_descriptor"
        )

    @property
    def oversized(self) -> int:
        """Lines and messages skipped because they were too long."""
        return self._incidents.count("too_long")

    @property
    def refused_connections(self) -> int:
        """Connections closed because there were too many."""
        return self._incidents.count("refused")

    def stats(self) -> SourceStats:
        """Open connections, and what was left out, by reason."""
        with self._lock:
            connections = len(self._connections)
        return SourceStats(
            name=self.name, connections=connections, incidents=self._incidents.snapshot()
        )

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
                    if error.errno in _BROKEN_LISTENER:
                        raise
                    if error.errno != errno.ECONNABORTED:
                        self._incidents.add(
                            "no_descriptor", "no connection is accepted for now: %s", error.strerror
                        )
                        stopping.wait(_ACCEPT_SECONDS)
                    continue
                self._start_connection(connection, put, stopping)
        finally:
            self._listener.close()
            self._remove_path()
            self._end_connections()

    def _remove_path(self) -> None:
        if self._path is None or self._file is None or not _same_file(self._path, self._file):
            return  # another process has put its own there
        try:
            os.unlink(self._path)
        except OSError:
            pass

    def _start_connection(
        self, connection: socket.socket, put: Put, stopping: threading.Event
    ) -> None:
        with self._lock:
            is_one_too_many = len(self._connections) >= self._max_connections
        if is_one_too_many:
            self._incidents.add(
                "refused",
                "a connection was closed at once: there are %d already; raise max_connections, "
                "or set idle_timeout",
                self._max_connections,
            )
            connection.close()
            return
        while not stopping.is_set():
            thread = threading.Thread(
                target=self._run_connection,
                args=(connection, put),
                name=f"forebay-{self.name}",
                daemon=True,
            )
            with self._lock:
                self._connections[connection] = thread
            try:
                thread.start()
                return
            except RuntimeError as error:
                with self._lock:
                    del self._connections[connection]
                self._incidents.add("no_thread", "a connection waits: %s", error)
                stopping.wait(_ACCEPT_SECONDS)
        connection.close()

    def _end_connections(self) -> None:
        with self._lock:
            open_now = dict(self._connections)
        for connection in open_now:
            try:
                connection.shutdown(socket.SHUT_RD)
            except OSError:
                pass
        deadline = time.monotonic() + _JOIN_SECONDS
        for thread in open_now.values():
            thread.join(max(0.0, deadline - time.monotonic()))

    def _run_connection(self, connection: socket.socket, put: Put) -> None:
        try:
            with connection:
                connection.settimeout(self._idle_timeout)
                _keep_alive(connection)
                self._read_lines(connection, put)
        except TimeoutError:
            self._incidents.add(
                "idle", "a connection was closed that sent nothing for %g s", self._idle_timeout
            )
        except FramingError as error:
            self._incidents.add(
                "no_count", "a connection was closed whose octet-counting is broken: %s", error
            )
        except OSError as error:
            self._incidents.add("broken", "a connection broke: %s", error.strerror or error)
        except Exception:
            _log.exception("%s: a connection failed", self.name)
        finally:
            with self._lock:
                self._connections.pop(connection, None)

    def _read_lines(self, connection: socket.socket, put: Put) -> None:
        framing = make_framing(self._framing, self._max_line_bytes, self._count_oversized)
        buffer = bytearray(min(_CHUNK_BYTES, framing.room))
        carried = 0  # buffer[:carried] is not cut yet
        while True:
            if carried == len(buffer):
                buffer.extend(bytes(min(carried, framing.room - carried)))
            with memoryview(buffer) as view:
                try:
                    got = connection.recv_into(view[carried:])
                except OSError:
                    _put_rest(framing.finish(bytes(view[:carried])), put)
                    raise
            if not got:
                _put_rest(framing.finish(bytes(buffer[:carried])), put)
                return
            filled, done = carried + got, 0
            while done < filled:
                lines, after = framing.cut(buffer, done, filled)
                with lines:
                    if lines and put(lines) is None:
                        return
                if after == done:
                    break
                done = after
            carried = filled - done
            buffer[:carried] = buffer[done:filled]

    def _count_oversized(self) -> None:
        self._incidents.add(
            "too_long", "a line has more than %d bytes: skipped", self._max_line_bytes
        )


def _put_rest(rest: bytes, put: Put) -> None:
    if rest:
        put(memoryview(rest))


def _keep_alive(connection: socket.socket) -> None:
    """Have the system ask a silent peer whether it is still there."""
    if connection.family == getattr(socket, "AF_UNIX", None):
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if (option := getattr(socket, name, None)) is not None:
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
