"""HttpSink: each batch as one POST of newline-delimited events.

A batch is delivered when the answer is 2xx; anything else raises, and the batch comes
again. The header `Idempotency-Key` carries `batch.id`, the same at every redelivery, so
that a server can recognise what it already has. Redirects are not followed: a POST that
is redirected is a mistake in the URL. The connection is kept between batches; a forked
child makes one of its own.

Not safe for several threads: a sink belongs to the thread that delivers.
"""

from __future__ import annotations

import gzip
import http.client
import ssl
import threading
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import zstandard

from backpressure.base.validation import check_number
from backpressure.buffer.batch import Batch
from backpressure.sinks.connection import ConnectionOwner

__all__ = ["HttpSink", "HttpSinkError"]

# Bytes of the answer that go into an HttpSinkError.
_SHOWN_BYTES = 200
# An answer is read to its end so that the connection can be used again. For a longer
# one a new connection costs less.
_ANSWER_BYTES = 1 << 20


class HttpSinkError(OSError):
    """The server answered with an error. `status` is its code."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.status, *self.args), self.__dict__


class HttpSink:
    """Posts to `url` (http or https).

    headers: are added to each request.
    timeout: seconds that connecting, and each wait for the peer, may take.
    compression: "none", "gzip" or "zstd", as Content-Encoding.

    Raises ValueError for what can never work.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float = 10.0,
        compression: str = "none",
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
        check_number("timeout", timeout, float, 0.001, threading.TIMEOUT_MAX)
        self._timeout = timeout
        self._compression = compression
        self._connection: http.client.HTTPConnection | None = None
        self._owner: ConnectionOwner | None = None

    def send(self, batch: Batch) -> None:
        """Post `batch`; OSError where it was not taken (HttpSinkError is one)."""
        body = batch.join(end=b"\n")
        if self._compression == "gzip":
            body = gzip.compress(body, compresslevel=1)
        elif self._compression == "zstd":
            body = zstandard.ZstdCompressor(level=1).compress(body)
        headers = {**self._headers, "Idempotency-Key": batch.id}
        if self._owner is not None and not self._owner.is_here():
            self.close()
        try:
            kept = self._connection is not None and self._connection.sock is not None
            try:
                self._post_body(body, headers)
            except (http.client.RemoteDisconnected, ConnectionError):
                # A server may end a kept connection at any time. Only then is a second
                # try worth it.
                if not kept:
                    raise
                self.close()
                self._post_body(body, headers)
        except http.client.HTTPException as error:
            self.close()
            raise OSError(f"{self.name}: {type(error).__name__}: {error}") from error
        except HttpSinkError:
            raise
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the connection; in a forked child, leave it to the parent."""
        connection, self._connection = self._connection, None
        owner, self._owner = self._owner, None
        if owner is not None and not owner.is_here():
            owner.abandon()
        elif connection is not None:
            connection.close()

    def _post_body(self, body: bytes, headers: Mapping[str, str]) -> None:
        # Where the server asked for it, the last answer's end was the connection's.
        if self._connection is None or self._connection.sock is None:
            self._connect()
        assert self._connection is not None
        self._connection.request("POST", self._path, body, dict(headers))
        answer = self._connection.getresponse()
        text = answer.read(_ANSWER_BYTES)
        if not answer.isclosed():
            self.close()
        if not 200 <= answer.status < 300:
            said = text[:_SHOWN_BYTES].decode("utf-8", "replace").strip()
            raise HttpSinkError(
                answer.status,
                f"{self.name}: {answer.status} {answer.reason}" + (f": {said}" if said else ""),
            )

    def _connect(self) -> None:
        self._owner = None
        if self._secure:
            self._connection = http.client.HTTPSConnection(
                self._host,
                self._port,
                timeout=self._timeout,
                context=ssl.create_default_context(),
            )
        else:
            self._connection = http.client.HTTPConnection(
                self._host, self._port, timeout=self._timeout
            )
        self._connection.connect()
        self._owner = ConnectionOwner(self._connection.sock)
