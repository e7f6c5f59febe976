"""HttpConnection: one connection to an HTTP server, whose exchanges end in time.

Of the well-kept clients for threads (http.client, urllib3, requests, httpx) each bounds
a single wait for the peer, and none the exchange: a server that answers a byte at a
time holds it for ever. Nor does one end an exchange that another thread waits in. Both
are a matter of the socket, so http.client, which every Python has, speaks HTTP here
over a socket that knows its deadline.

    patience     seconds that one wait for the peer may take
    deadline     the time (`time.monotonic`) at which the exchange ends, whatever comes
    interrupt    any thread ends the exchange under way

Looking the host's name up is the system's business, with time-outs of its own.

Used by one thread at a time, but for `interrupt`; a forked child leaves it alone.
"""

from __future__ import annotations

import http.client
import math
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from backpressure.sinks.connection import ConnectionOwner

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["HttpConnection", "TimedSocket", "connect", "tls_context"]


class TimedSocket(socket.socket):
    """A socket each of whose waits ends after `patience` or at `deadline`."""

    patience: float = 10.0
    deadline: float = math.inf

    def set_time(self) -> None:
        """Give the next wait its time. TimeoutError: there is none left."""
        left = self.deadline - time.monotonic()
        if left <= 0.0:
            raise TimeoutError("timed out")
        self.settimeout(min(self.patience, left))

    def recv_into(self, buffer: Buffer, nbytes: int | None = None, flags: int = 0) -> int:
        """As of any socket."""
        self.set_time()
        return super().recv_into(buffer, nbytes or 0, flags)

    def sendall(self, data: Buffer, flags: int = 0) -> None:
        """As of any socket, but that the patience is for each piece that goes out."""
        with memoryview(data) as whole, whole.cast("B") as rest:
            done = 0
            while done < len(rest):
                self.set_time()
                done += self.send(rest[done:], flags)

    def is_quiet(self) -> bool:
        """Whether nothing has come since the last answer: neither its end, nor what a
        server says that has waited for too long.
        """
        self.settimeout(0.0)
        try:
            self.recv(1)
        except (BlockingIOError, InterruptedError, ssl.SSLWantReadError):
            return True
        except OSError:
            return False
        return False


class _TimedTlsSocket(TimedSocket, ssl.SSLSocket):
    pass


def tls_context() -> ssl.SSLContext:
    """One that trusts what the system trusts, and makes timed sockets."""
    context = ssl.create_default_context()
    context.sslsocket_class = _TimedTlsSocket
    return context


def connect(
    host: str,
    port: int,
    tls: ssl.SSLContext | None,
    *,
    patience: float,
    deadline: float,
    note: Callable[[socket.socket], object],
) -> TimedSocket:
    """A connected socket, by the first of the host's addresses that answers.

    note: is told of each socket before it waits, so that another thread can end it.
    """
    error: OSError | None = None
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM):
        try:
            connection = TimedSocket(family, kind, protocol)
        except OSError as wrong:  # an address of a family that this system has not
            error = wrong
            continue
        try:
            connection.patience, connection.deadline = patience, deadline
            note(connection)
            connection.set_time()
            connection.connect(address)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if tls is not None:
                secure = tls.wrap_socket(
                    connection, server_hostname=host, do_handshake_on_connect=False
                )
                assert isinstance(secure, TimedSocket)
                connection = secure
                connection.patience, connection.deadline = patience, deadline
                note(connection)
                connection.set_time()
                secure.do_handshake()
        except OSError as wrong:
            connection.close()
            error = wrong
        except BaseException:
            connection.close()
            raise
        else:
            return connection
    raise error if error is not None else OSError(f"{host}: no address")


# Seconds that the rest of an answer may take whose head is there. It is read so that
# the connection can be used again, or for a message: a new connection costs less.
_REST_SECONDS: Final = 1.0
# And its bytes, for the same reason.
_REST_BYTES: Final = 1 << 20


class HttpConnection:
    """Exchanges over a connected socket, and whose it is.

    Made when it is connected: a process that is forked never finds one whose TLS
    handshake is under way.
    """

    def __init__(
        self, connection: TimedSocket, host: str, port: int | None, tls: ssl.SSLContext | None
    ) -> None:
        self._owner = ConnectionOwner(connection)
        self.socket: Final = connection
        # Of the two it is the one that knows whether the port belongs into Host.
        self._http = (
            http.client.HTTPConnection(host, port)
            if tls is None
            else http.client.HTTPSConnection(host, port, context=tls)
        )
        self._http.sock = connection
        # It never connects by itself, which would have no deadline.
        self._http.auto_open = 0

    def is_usable(self) -> bool:
        """Whether it is this process's, and open for a further exchange."""
        return self._owner.is_here() and self._http.sock is not None

    def is_quiet(self) -> bool:
        """Whether the server has said nothing since the last answer."""
        return self.socket.is_quiet()

    def post(
        self, path: str, body: bytes, headers: Mapping[str, str], deadline: float
    ) -> tuple[http.client.HTTPResponse, bytes]:
        """Post `body`: the answer, and its content or the beginning of that.

        Whatever the server does, it ends at `deadline`, with a TimeoutError. Where the
        head of an answer is there, that is the answer, though the rest may not come.
        """
        self.socket.deadline = deadline
        self._http.request("POST", path, body, dict(headers))
        answer = self._http.getresponse()
        self.socket.deadline = min(deadline, time.monotonic() + _REST_SECONDS)
        try:
            content = answer.read(_REST_BYTES)
        except (OSError, http.client.HTTPException):
            content = b""
            self.close()
        else:
            # What came is a part of it, or, as after 103 Early Hints, another follows.
            if not answer.isclosed() or answer.status < 200:
                self.close()
        return answer, content

    def close(self) -> None:
        """End it; in a forked child, leave it to the parent."""
        if self._owner.is_here():
            self._http.close()
        else:
            self._owner.abandon()
