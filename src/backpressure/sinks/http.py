"""HttpSink: each batch as one POST of newline-delimited events.

A batch is delivered when the answer is 2xx. Any other answer raises an HttpSinkError,
whose status says what it means (delivery/outcomes.py): 413 that the batch is too large,
400, 422 and a few more that it is rejected, all others that the server is not
available, for the time that its Retry-After says. The header `Idempotency-Key` carries
`batch.id`, the same at every redelivery, so that a server can recognise what it already
has. Redirects are not followed: a POST that is redirected is a mistake in the URL.

An exchange ends at its deadline, whatever the server does, and where `abort` is called
meanwhile. A batch counts as taken, or not, once the head of the answer is there.

Safe for any number of threads, each of which has a connection while it sends. They are
kept between batches; a forked child makes its own.
"""

from __future__ import annotations

import gzip
import http.client
import os
import re
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final
from urllib.parse import urlsplit

import zstandard

from backpressure.base.validation import check_number
from backpressure.buffer.batch import Batch
from backpressure.delivery.outcomes import retry_after_seconds
from backpressure.sinks.http_connection import HttpConnection, connect, tls_context

__all__ = ["HttpSink", "HttpSinkError", "shown_url"]

# Bytes of the answer that go into an HttpSinkError.
_SHOWN_BYTES = 200
_MAX_CONCURRENCY: Final = 8
# The deadline of an exchange that is given none: so many times the time for one wait.
_WAITS: Final = 6
# Headers that say what the sink itself decides, with what to do instead.
_OWN_HEADERS: Final = {
    "connection": "connections are kept",
    "content-encoding": "set compression instead",
    "content-length": "it is that of each batch",
    "expect": "the body is sent at once",
    "idempotency-key": "it is the id of each batch",
    "transfer-encoding": "each batch has a Content-Length",
    "upgrade": "this is HTTP/1.1",
}
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# What a header's value may consist of: text, blanks and tabs, in Latin-1.
_HEADER_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
# What a host's name and a request's target may consist of: anything else of a target is
# to be percent-encoded.
_TARGET: Final = re.compile(r"[\x21-\x7e]+")


class HttpSinkError(OSError):
    """The server answered with an error. `status` is its code, `retry_after` the
    seconds after which it wants to be asked again, or None.
    """

    def __init__(self, status: int, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.status, *self.args), self.__dict__


class HttpSink:
    """Posts to `url` (http or https).

    headers: are added to each request, or take the place of those with the same name,
        whatever its case: Content-Type is application/x-ndjson, User-Agent forebay.
    timeout: seconds that connecting, and each wait for the peer, may take.
    deadline: seconds that one exchange may take, from the connection to the answer;
        None: six times `timeout`.
    compression: "none", "gzip" or "zstd", as Content-Encoding.
    max_concurrency: how many batches a delivery may have in flight here, each over a
        connection of its own, if it has as many `workers`.

    Raises ValueError for what can never work; it begins with the parameter's name.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float = 10.0,
        deadline: float | None = None,
        compression: str = "none",
        max_concurrency: int = _MAX_CONCURRENCY,
    ) -> None:
        self._secure, self._host, self._port, self._path = _parts_of(url)
        if compression not in ("none", "gzip", "zstd"):
            raise ValueError(f"compression must be none, gzip or zstd, not {compression!r}")
        self.name = shown_url(url)
        self._headers = _merged(
            {"Content-Type": "application/x-ndjson", "User-Agent": "forebay"}, headers or {}
        )
        if compression != "none":
            self._headers["Content-Encoding"] = compression
        self._timeout = check_number("timeout", timeout, float, 0.001, threading.TIMEOUT_MAX)
        self._deadline = (
            _WAITS * self._timeout
            if deadline is None
            else check_number("deadline", deadline, float, 0.001, threading.TIMEOUT_MAX)
        )
        self._compression = compression
        check_number("max_concurrency", max_concurrency, int, 1, 1024)
        self.max_concurrency = max_concurrency
        # Reading what the system trusts takes milliseconds, so once.
        self._tls = tls_context() if self._secure else None
        # Those that no thread uses, the one that was used last at the right. Appending
        # and popping need no lock, which a fork could leave held.
        self._idle: deque[HttpConnection] = deque()
        # The sockets over which an exchange is under way, and the process that has it:
        # a forked child has nothing of its parent's to end.
        self._busy: dict[socket.socket, int] = {}
        # Replaced at each close and abort: what was in use then is neither kept nor
        # made anew.
        self._open = object()

    def send(self, batch: Batch) -> None:
        """Post `batch`; OSError where it was not taken (HttpSinkError is one)."""
        body = batch.join(end=b"\n")
        if self._compression == "gzip":
            body = gzip.compress(body, compresslevel=1)
        elif self._compression == "zstd":
            body = zstandard.ZstdCompressor(level=1).compress(body)
        headers = {**self._headers, "Idempotency-Key": batch.id}
        open_then = self._open
        deadline = time.monotonic() + self._deadline
        connection, sockets = self._kept(), _Noted(self._busy)
        is_kept = connection is not None
        try:
            try:
                if connection is None:
                    connection = self._connect(deadline, sockets)
                sockets.note(connection.socket)
                answer, content = connection.post(self._path, body, headers, deadline)
            except (http.client.RemoteDisconnected, ConnectionError):
                # A server may end a kept connection at any time. Only then is a second
                # try worth it.
                if not is_kept or connection is None or self._open is not open_then:
                    raise
                connection.close()
                connection = self._connect(deadline, sockets)
                answer, content = connection.post(self._path, body, headers, deadline)
        except BaseException as error:
            if connection is not None:
                connection.close()
            if isinstance(error, http.client.HTTPException):
                raise OSError(f"{self.name}: {type(error).__name__}: {error}") from error
            if isinstance(error, TimeoutError) and time.monotonic() >= deadline:
                raise TimeoutError(
                    f"{self.name}: no answer within {self._deadline:g} s (deadline)"
                ) from error
            raise
        finally:
            sockets.forget()
        self._keep(connection, open_then)
        if not 200 <= answer.status < 300:
            said = content[:_SHOWN_BYTES].decode("utf-8", "replace").strip()
            raise HttpSinkError(
                answer.status,
                f"{self.name}: {answer.status} {answer.reason}" + (f": {said}" if said else ""),
                retry_after_seconds(answer.getheader("Retry-After") or ""),
            )

    def abort(self) -> None:
        """End the exchanges that are under way, from any thread: each raises OSError.

        The server may have taken a batch all the same; it comes again.
        """
        self._open = object()
        for busy, pid in tuple(self._busy.items()):
            if pid == os.getpid():
                with suppress(OSError):  # it has ended just now
                    # Of the socket itself: TLS's own shutdown is its thread's.
                    socket.socket.shutdown(busy, socket.SHUT_RDWR)

    def close(self) -> None:
        """End the connections; in a forked child, leave them to the parent."""
        self._open = object()
        while (connection := self._pop()) is not None:
            connection.close()

    def _pop(self) -> HttpConnection | None:
        try:
            return self._idle.pop()
        except IndexError:
            return None

    def _kept(self) -> HttpConnection | None:
        """One that is open, this process's, and whose server has said nothing since:
        neither that it ends it, nor anything that would pass for the next answer.
        """
        while (connection := self._pop()) is not None:
            if connection.is_usable() and connection.is_quiet():
                return connection
            connection.close()
        return None

    def _keep(self, connection: HttpConnection, open_then: object) -> None:
        # Where the server asked for it, the answer's end was the connection's.
        if connection.is_usable() and self._open is open_then:
            self._idle.append(connection)
        else:
            connection.close()

    def _connect(self, deadline: float, sockets: _Noted) -> HttpConnection:
        connection = connect(
            self._host,
            self._port or (443 if self._secure else 80),
            self._tls,
            patience=self._timeout,
            deadline=deadline,
            note=sockets.note,
        )
        try:
            return HttpConnection(connection, self._host, self._port, self._tls)
        except BaseException:
            connection.close()
            raise


class _Noted:
    """The sockets of one exchange, in the list of all that are busy."""

    def __init__(self, busy: dict[socket.socket, int]) -> None:
        self._busy = busy
        self._own: list[socket.socket] = []

    def note(self, one: socket.socket) -> None:
        self._own.append(one)
        self._busy[one] = os.getpid()

    def forget(self) -> None:
        for one in self._own:
            self._busy.pop(one, None)


def shown_url(url: str) -> str:
    """`url` for people and logs: without a user, a password and a query, which often
    holds a key.
    """
    begin, slashes, rest = url.partition("://")
    host, slash, path = rest.partition("?")[0].partition("/")
    return begin.partition("?")[0] + slashes + host.rpartition("@")[2] + slash + path


def _parts_of(url: str) -> tuple[bool, str, int | None, str]:
    """Whether it is https, host, port and target. ValueError where no request can be
    made of it.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"url: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"url must be http://… or https://…, not {shown_url(url)!r}")
    if parts.username is not None or parts.password is not None:
        raise ValueError(
            "url must not hold a user or a password: put an Authorization into headers"
        )
    if port == 0:
        raise ValueError("url must not have port 0: nothing listens there")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not _TARGET.fullmatch(target):
        raise ValueError(
            f"url must have blanks and all that is not ASCII percent-encoded, as %20: "
            f"{shown_url(url)!r}"
        )
    try:
        is_host = _TARGET.fullmatch(parts.hostname.encode("idna").decode("ascii"))
    except UnicodeError:
        is_host = None
    if is_host is None:
        raise ValueError(f"url has no host that a name server knows: {shown_url(url)!r}")
    return parts.scheme == "https", parts.hostname, port, target


def _merged(own: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
    """Both, each name once: what comes later takes the place of what came before.

    ValueError where no request could be sent so; it shows no value, which may be a
    secret.
    """
    merged = {name.lower(): (name, value) for name, value in own.items()}
    for name, value in given.items():
        if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name):
            raise ValueError(f"headers: {name!r} is no name of a header")
        if instead := _OWN_HEADERS.get(name.lower()):
            raise ValueError(f"headers must not have {name}: {instead}")
        if not isinstance(value, str) or not _HEADER_VALUE.fullmatch(value):
            raise ValueError(
                f"headers: the value of {name} must be text without line ends and other "
                "control characters, in Latin-1"
            )
        merged[name.lower()] = (name, value)
    return dict(merged.values())
