"""What one connection may take of the server before a request of it is complete.

uvicorn itself sets no limit there.

    requests      33 at a time on one connection
    heads         max_head_bytes at most, trailers and the framing of chunks included,
                  else 431
    time          head_timeout seconds from a connection's begin, or the first byte of a
                  further request, to the end of its head
    silence       keep_alive seconds from the end of a response to that first byte
    reading       a client that does not read what it asked for is dropped after
                  send_timeout seconds
    connections   max_connections at a time; a further one takes the place of the one
                  that has been silent for longest after a response, or gets 503

A request that offers to change the protocol (`Connection: Upgrade`, as `curl --http2`
and Java's client send it) is an ordinary request here: it may have a body, and there is
no protocol to change to. The parser takes all that follows such a head for the other
protocol, and so the body for none, or for a request of its own. A second parser
therefore gets the same head without the offer, and whatever follows it.

Anything that reaches the port can open connections and send bytes, with or without the
token. None of that may fill the memory or use up the file descriptors, which the disk
tier needs as well.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
import sys
import time
from contextlib import suppress
from typing import Any, Final

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from backpressure.base.log_limiter import LogLimiter
from backpressure.http.config import HttpConfig
from backpressure.http.guard import client_of

__all__ = ["LimitedProtocol", "limited"]

_log = logging.getLogger("backpressure")

# Requests that wait on one connection. No client pipelines as many, and one packet may
# hold thousands, each of which takes some KiB.
_MOST_PIPELINED: Final = 32
# struct linger: on, 0 s.
_NO_LINGER: Final = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)


def limited(config: HttpConfig) -> type[LimitedProtocol]:
    """The protocol class for a server with these limits."""
    return type(
        "LimitedProtocol", (LimitedProtocol,), {"limits": config, "few_lines": LogLimiter()}
    )


class _Ended(Exception):
    """Stops the parser."""


class LimitedProtocol(HttpToolsProtocol):
    """One connection. Made by the server, in its event loop."""

    limits: HttpConfig
    #: A client that sends rubbish must not fill the disk with log lines.
    few_lines: LogLimiter

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        #: Bytes since the last end of a head, of a message, or of a piece of a body.
        self._unaccounted = 0
        self._head_timer: asyncio.TimerHandle | None = None
        #: Whether the parser is between the first byte of a request and its last.
        self._in_request = False
        #: Whether the head that the parser is at the end of offers another protocol.
        self._is_offer = False
        #: Its method, and its version of HTTP.
        self._method = self._version = b""
        #: Since when nothing is under way, by the loop's clock.
        self._idle_since = 0.0
        self._send_timer: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------ connections and time

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections and not self._take_a_place():
            problem = f"more than {self.limits.max_connections} connections"
            self._answer_and_close(b"503 Service Unavailable", problem, b"retry-after: 5\r\n")
        else:
            self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        _cancel(self._send_timer)
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        # A request that was sent meanwhile may have begun already.
        if not self.transport.is_closing() and self.cycle.response_complete:
            if self._in_request:
                self._unset_keepalive_if_required()
                self._expect_head()
            else:
                self._idle_since = self.loop.time()

    def _take_a_place(self) -> bool:
        """End the connection that has been silent for longest between two requests."""
        silent = [
            one
            for one in self.connections
            if isinstance(one, LimitedProtocol) and one.timeout_keep_alive_task is not None
        ]
        if not silent:
            return False
        longest = min(silent, key=lambda one: one._idle_since)
        self.connections.discard(longest)
        longest._unset_keepalive_if_required()
        longest.transport.close()
        return True

    def _expect_head(self) -> None:
        self._stop_head_timer()
        self._head_timer = self.loop.call_later(self.limits.head_timeout, self._drop_idle_client)

    def _stop_head_timer(self) -> None:
        _cancel(self._head_timer)
        self._head_timer = None

    def _drop_idle_client(self) -> None:
        # Not logged: browsers open connections in advance, and send nothing on them.
        self.transport.abort()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._send_timer = self.loop.call_later(
            self.limits.send_timeout, self._drop_client, "the client does not read"
        )

    def resume_writing(self) -> None:
        _cancel(self._send_timer)
        super().resume_writing()

    # ------------------------------------------------------------ bytes

    def data_received(self, data: bytes) -> None:
        self._unaccounted += len(data)
        self._unset_keepalive_if_required()
        try:
            self._parse(data)
        except httptools.HttpParserError:
            self.send_400_response("")
        if self.transport.is_closing():
            return
        is_waiting = self.cycle is None or self.cycle.response_complete
        if self._unaccounted > self.limits.max_head_bytes:
            problem = f"a head of more than {self.limits.max_head_bytes:,} bytes"
            if is_waiting:
                self._answer_and_close(b"431 Request Header Fields Too Large", problem)
            else:
                self._drop_client(problem)
        elif is_waiting and self._head_timer is None and self.timeout_keep_alive_task is None:
            self._expect_head()

    def _parse(self, data: bytes) -> None:
        """Feed the parser, past the ends of heads that offer another protocol."""
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as end:
                data = data[end.args[0] :]
                self._is_offer = False
                if self.transport.is_closing():
                    return
                head = self._head_without_offer()
                self.parser = httptools.HttpRequestParser(self)
                with suppress(AttributeError):  # before httptools 0.6.3; as uvicorn does
                    self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
                self.parser.feed_data(head)
                if not data:
                    return
            else:
                return

    def _head_without_offer(self) -> bytes:
        """The head that the parser has read, as bytes that another one can read."""
        lines = [b"%s %s HTTP/%s" % (self._method, self.url, self._version)]
        lines += [b"%s: %s" % one for one in self.headers if one[0] != b"upgrade"]
        return b"\r\n".join((*lines, b"", b""))

    def on_message_begin(self) -> None:
        self._in_request = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._unaccounted = 0
        self._stop_head_timer()
        if self.parser.should_upgrade():
            self._method = self.parser.get_method()
            self._version = self.parser.get_http_version().encode()
            self._is_offer = True
            if self._method == b"CONNECT":  # it offers nothing else
                self._answer_and_close(b"405 Method Not Allowed", "no proxy")
            return
        if len(self.pipeline) >= _MOST_PIPELINED:
            self._drop_client(
                f"more than {_MOST_PIPELINED} requests before the first one was answered"
            )
            raise _Ended  # stops the parser within the bytes that it was given
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unaccounted = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unaccounted = 0
        if self._is_offer:
            return  # the parser's end, not the request's
        self._in_request = False
        super().on_message_complete()
        if self.cycle.response_complete and not self.transport.is_closing():
            # Answered before all of its body had come.
            self._stop_head_timer()
            self._idle_since = self.loop.time()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    # ------------------------------------------------------------ ends

    def send_400_response(self, msg: str) -> None:
        self._answer_and_close(b"400 Bad Request", "no HTTP")

    def _answer_and_close(self, status: bytes, problem: str, header: bytes = b"") -> None:
        if self.transport.is_closing():
            return
        self._log_problem(problem)
        self.transport.write(
            b"HTTP/1.1 "
            + status
            + b"\r\n"
            + header
            + b"content-length: 0\r\nconnection: close\r\n\r\n"
        )
        self.transport.close()

    def _drop_client(self, problem: str) -> None:
        self._log_problem(problem)
        # Otherwise the system keeps what was not read, some MiB, and tries for minutes
        # to send it.
        self.transport.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER
        )
        self.transport.abort()

    def _log_problem(self, problem: str) -> None:
        if times := self.few_lines.add(problem, 1, time.monotonic()):
            client = client_of({"client": self.client})
            _log.warning(
                "connection ended, by %s: %s (%d such since the last line)", client, problem, times
            )


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
