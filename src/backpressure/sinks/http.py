"""HttpSink: each batch as one POST of newline-delimited events.

A batch is delivered when the answer is 2xx. Any other answer raises an HttpSinkError,
whose status says what it means (delivery/outcomes.py): 413 that the batch is too large,
400, 422 and a few more that it is rejected, all others that the server is not
available, for the time that its Retry-After says. The header `Idempotency-Key` carries
`batch.id`, the same at every redelivery, so that a server can recognise what it already
has. Redirects are not followed: a POST that is redirected is a mistake in the URL.

Safe for any number of threads, each of which has a connection while it sends. They are
kept between batches; a forked child makes its own.
"""

from __future__ import annotations

import gzip
import http.client
import ssl
import threading
from collections import deque
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import zstandard

from backpressure.base.validation import check_number
from backpressure.buffer.batch import Batch
from backpressure.delivery.outcomes import retry_after_seconds
from backpressure.sinks.connection import ConnectionOwner

__all__ = ["HttpSink", "HttpSinkError"]

# Bytes of the answer that go into an HttpSinkError.
_SHOWN_BYTES = 200
# An answer is read to its end so that the connection can be used again. For a longer
# one a new connection costs less.
_ANSWER_BYTES = 1 << 20
_MAX_CONCURRENCY: Final = 8


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

    headers: are added to each request.
    timeout: seconds that connecting, and each wait for the peer, may take.
    compression: "none", "gzip" or "zstd", as Content-Encoding.
    max_concurrency: how many batches a delivery may have in flight here, each over a
        connection of its own, if it has as many `workers`.

    Raises ValueError for what can never work.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float = 10.0,
        compression: str = "none",
        max_concurrency: int = _MAX_CONCURRENCY,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url must be http://… or https://…, not {url!r}")
        if parts.username is not None or parts.password is not None:
            raise ValueError(
                "url must not hold a user or a password: put an Authorization into headers"
            )
        if compression not in ("none", "gzip", "zstd"):
            raise ValueError(f"compression must be none, gzip or zstd, not {compression!r}")
        self.name = url
        self._secure = parts.scheme == "https"
        self._host, self._port = parts.hostname, parts.port
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._headers = {
            "Content-Type": "application/x-ndjson",
            "User-Agent": "forebay",
            **(headers or {}),
        }
        if compression != "none":
            self._headers["Content-Encoding"] = compression
        self._timeout = check_number("timeout", timeout, float, 0.001, threading.TIMEOUT_MAX)
        self._compression = compression
        check_number("max_concurrency", max_concurrency, int, 1, 1024)
        self.max_concurrency = max_concurrency
        # Those that no thread uses, the one that was used last at the right. Appending
        # and popping need no lock, which a fork could leave held.
        self._idle: deque[_Connection] = deque()
        # Replaced at each close: what was in use then is not kept.
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
        kept = self._kept()
        connection = kept
        try:
            try:
                if connection is None:
                    connection = self._connect()
                self._post_body(connection, body, headers)
            except (http.client.RemoteDisconnected, ConnectionError):
                # A server may end a kept connection at any time. Only then is a second
                # try worth it.
                if kept is None:
                    raise
                kept.close()
                connection = self._connect()
                self._post_body(connection, body, headers)
        except http.client.HTTPException as error:
            if connection is not None:
                connection.close()
            raise OSError(f"{self.name}: {type(error).__name__}: {error}") from error
        except HttpSinkError:
            assert connection is not None
            self._keep(connection, open_then)
            raise
        except BaseException:
            if connection is not None:
                connection.close()
            raise
        self._keep(connection, open_then)

    def close(self) -> None:
        """End the connections; in a forked child, leave them to the parent."""
        self._open = object()
        while (connection := self._pop()) is not None:
            connection.close()

    def _pop(self) -> _Connection | None:
        try:
            return self._idle.pop()
        except IndexError:
            return None

    def _kept(self) -> _Connection | None:
        """One that is open, and this process's."""
        while (connection := self._pop()) is not None:
            if connection.is_usable():
                return connection
            connection.close()
        return None

    def _keep(self, connection: _Connection, open_then: object) -> None:
        # Where the server asked for it, the answer's end was the connection's.
        if connection.is_usable() and self._open is open_then:
            self._idle.append(connection)
        else:
            connection.close()

    def _post_body(self, connection: _Connection, body: bytes, headers: Mapping[str, str]) -> None:
        answer = connection.post(self._path, body, headers)
        text = answer.read(_ANSWER_BYTES)
        if not answer.isclosed():
            connection.close()
        if not 200 <= answer.status < 300:
            said = text[:_SHOWN_BYTES].decode("utf-8", "replace").strip()
            raise HttpSinkError(
                answer.status,
                f"{self.name}: {answer.status} {answer.reason}" + (f": {said}" if said else ""),
                retry_after_seconds(answer.getheader("Retry-After") or ""),
            )

    def _connect(self) -> _Connection:
        connection = (
            http.client.HTTPSConnection(
                self._host,
                self._port,
                timeout=self._timeout,
                context=ssl.create_default_context(),
            )
            if self._secure
            else http.client.HTTPConnection(self._host, self._port, timeout=self._timeout)
        )
        try:
            connection.connect()
        except BaseException:
            connection.close()
            raise
        return _Connection(connection)


class _Connection:
    """A connection and whose it is. Made when it is connected: a process that is forked
    never finds one whose TLS handshake is under way.
    """

    def __init__(self, connection: http.client.HTTPConnection) -> None:
        self._owner = ConnectionOwner(connection.sock)
        self._connection = connection

    def is_usable(self) -> bool:
        return self._owner.is_here() and self._connection.sock is not None

    def post(self, path: str, body: bytes, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        self._connection.request("POST", path, body, dict(headers))
        return self._connection.getresponse()

    def close(self) -> None:
        """End it; in a forked child, leave it to the parent."""
        if self._owner.is_here():
            self._connection.close()
        else:
            self._owner.abandon()
