"""POST /events: lines out of a request's body into the buffer, as they come.

The body is never held whole: it is unpacked piece by piece, and about a quarter of a
MiB at a time goes into the lane. Where the lane or flow control takes no more, and
waiting (`timeout`) does not help, reading stops and the reply says which prefix was
accepted; while it waits, the client's connection is not read, which slows the client
down by TCP's own means.

What was accepted stays accepted whatever happens afterwards: a client whose connection
broke does not know how much that is, and by sending all of it again gets it delivered
at least once.
"""

from __future__ import annotations

import asyncio
import logging
import math
from typing import Final

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.types import Message, Receive

from backpressure.base.errors import BufferClosed, EventTooLarge
from backpressure.buffer.config import WhenFull
from backpressure.buffer_manager import BufferManager
from backpressure.http.config import HttpConfig
from backpressure.http.decompress import UNPACKERS, BadEncoding
from backpressure.http.guard import client_of
from backpressure.http.models import LONGEST_WAIT, IngestQuery, IngestReply

__all__ = ["Uploads", "ingest"]

_log = logging.getLogger("backpressure")

# Bytes that go into the lane at once. A quarter of it makes 8 MiB cost a fifth more,
# four times as much saves a tenth, and this keeps the event loop for a tenth of a
# millisecond.
_PUSH: Final = 1 << 18
# A piece of so many bytes is not copied together with what came before it: of pieces of
# 256 KiB, as uvicorn gives them to a fast client's upload, that saves a twentieth of
# the server's time; of 64 KiB the further calls cost more than the copy.
_LARGE: Final = 1 << 17
# What Retry-After says (seconds, at least and at most): it knows whole seconds only,
# and "never" is not in it.
_SOONEST: Final = 1
_LATEST: Final = 3600


class _Bad(Exception):
    """The upload itself is at fault."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class _Lines:
    """Puts a stream of bytes, cut anywhere, into a lane line by line, and keeps the
    account.
    """

    def __init__(
        self, buffer: BufferManager, query: IngestQuery, max_event_bytes: int, uploads: Uploads
    ) -> None:
        self._buffer = buffer
        self._priority = query.priority
        # A buffer that blocks would wait for ever where the timeout is 0.
        blocks = buffer.config.when_full is WhenFull.BLOCK
        self._timeout = LONGEST_WAIT if blocks and query.timeout == 0 else query.timeout
        self._largest = max_event_bytes
        self._uploads = uploads
        self._held: list[bytes] = []
        self._held_bytes = 0
        self.reply = IngestReply(
            accepted=0, rejected=0, reason=None, retry_after=0.0, first_seq=None, consumed=0
        )

    async def add(self, piece: bytes) -> bool:
        """Take the next bytes; False where no more are taken."""
        if len(piece) >= _LARGE and (cut := piece.find(b"\n") + 1):
            # Only the line that began in an earlier piece has to be put together; the
            # others go in from where they are.
            if self._held_bytes:
                self._held.append(piece[:cut])
                if not await self.push(final=False):
                    return False
                return await self._put(memoryview(piece)[cut:], final=False)
            return await self._put(piece, final=False)
        self._held.append(piece)
        self._held_bytes += len(piece)
        return self._held_bytes < _PUSH or await self.push(final=False)

    async def push(self, final: bool) -> bool:
        """Put what is held into the lane; what follows the last newline only if it is
        the `final` part.
        """
        return await self._put(b"".join(self._held), final)

    async def _put(self, chunk: bytes | memoryview, final: bool) -> bool:
        """Put all of `chunk` into the lane, and hold what follows its last newline."""
        reply = self.reply
        try:
            admission = await self._buffer.aio.add_lines(
                chunk,
                self._priority,
                self._timeout,
                final,
                max_event_bytes=self._largest,
                stop=lambda: self._uploads.closing,
            )
        except EventTooLarge as error:
            raise self._too_large(
                reply.accepted + error.index + 1, error.nbytes, error.limit
            ) from None
        except BufferClosed:
            reply.reason = "closed"
            return False
        reply.accepted += admission.accepted
        reply.consumed += admission.consumed
        if reply.first_seq is None:
            reply.first_seq = admission.first_seq
        if admission.rejected:
            reply.rejected = admission.rejected
            reply.reason = admission.reason
            reply.retry_after = admission.retry_after
            return False
        rest = bytes(chunk[admission.consumed :])
        if len(rest) > self._largest:
            raise self._too_large(reply.accepted + 1, len(rest), self._largest)
        self._held, self._held_bytes = [rest], len(rest)
        return True

    def _too_large(self, line: int, nbytes: int, limit: int) -> _Bad:
        return _Bad(
            413,
            f"line {line:,} has {nbytes:,} bytes or more, and one line may have at most {limit:,}",
        )


class _Closing(Exception):
    """The server is to stop."""


class Uploads:
    """The uploads of one app that are under way, and a way to end them."""

    def __init__(self, buffer: BufferManager) -> None:
        self._buffer = buffer
        self._open: set[ReadWatchdog] = set()
        self.closing = False

    def begin(self, longest: float) -> ReadWatchdog:
        silence = ReadWatchdog(longest, self)
        self._open.add(silence)
        return silence

    def finish(self, silence: ReadWatchdog) -> None:
        silence.end()
        self._open.discard(silence)

    def end(self) -> None:
        """End all of them, as a server has to that wants to stop: each client is told
        what was accepted of its upload.
        """
        self.closing = True
        for silence in self._open:
            silence.close()
        self._buffer.wake_waiters()  # and those that wait for room


class ReadWatchdog:
    """Ends an upload that says nothing for too long, or that has to end.

    One timer looks now and then at the time since which the upload has been waited for.
    A time-out around each read would cost as much as putting what was read into the
    buffer.
    """

    def __init__(self, longest: float, uploads: Uploads) -> None:
        self._longest = longest
        self._uploads = uploads
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._since: float | None = None
        self._timer = self._loop.call_later(longest, self._look)
        self.broken = False

    async def read(self, receive: Receive) -> Message:
        """The next message; _Bad where none comes, _Closing where none is wanted any
        more.
        """
        if self._uploads.closing:
            raise _Closing
        self._since = self._loop.time()
        try:
            return await receive()
        except asyncio.CancelledError:
            closing = self._uploads.closing and not self.broken
            if not (self.broken or closing) or self._task is None:
                raise
            self._task.uncancel()
            if closing:
                raise _Closing from None
            raise _Bad(408, f"nothing came for {self._longest:g} s") from None
        finally:
            self._since = None

    def close(self) -> None:
        """Let the read that is under way raise _Closing; the next one does so by
        itself.
        """
        if self._since is not None and not self.broken and self._task is not None:
            self._task.cancel()

    def end(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        now = self._loop.time()
        since = now if self._since is None else self._since
        if now - since >= self._longest and self._task is not None and not self._uploads.closing:
            self.broken = True
            self._task.cancel()
        else:
            self._timer = self._loop.call_at(since + self._longest, self._look)


async def ingest(
    request: Request,
    query: IngestQuery,
    buffer: BufferManager,
    config: HttpConfig,
    uploads: Uploads,
) -> JSONResponse:
    """Carry one upload through, and say what became of it."""
    lines = _Lines(buffer, query, config.max_event_bytes, uploads)
    reply = lines.reply
    status, headers = 202, {}
    silence = uploads.begin(config.read_timeout)
    try:
        try:
            await _carry(request, lines, silence, config)
        except _Closing:
            reply.reason = "closed"
    except _Bad as bad:
        status, reply.reason, reply.detail = bad.status, "invalid", str(bad)
        if status == 415:
            headers["Accept-Encoding"] = "gzip, zstd"
    else:
        if reply.reason is not None:
            status = 429 if reply.reason in ("rate", "share", "delay", "emergency") else 503
            wait = _retry_after(reply, buffer)
            headers["Retry-After"] = str(wait)
            reply.detail = (
                f"line {reply.accepted + 1:,} and what follows was not accepted ({reply.reason}): "
                f"send the upload from byte {reply.consumed:,} on again, in {wait} s or later"
            )
    finally:
        uploads.finish(silence)
    if reply.retry_after is not None and not math.isfinite(reply.retry_after):
        reply.retry_after = None
    return JSONResponse(reply.model_dump(), status, headers)


async def _carry(
    request: Request, lines: _Lines, silence: ReadWatchdog, config: HttpConfig
) -> None:
    """Read the body, unpack it and put it into the buffer, until its end or a refusal;
    _Bad where it breaks a limit.
    """
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding not in UNPACKERS:
        raise _Bad(
            415, f"Content-Encoding {encoding[:100]!r} is not supported: use gzip, zstd, or none"
        )
    unpacker = UNPACKERS[encoding]()
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > config.max_body_bytes:
        raise _too_much(config)
    packed = unpacked = 0
    more = True
    try:
        while more:
            message = await silence.read(request.receive)
            if message["type"] == "http.disconnect":
                # Nobody is there to be told; the log is.
                _log.info(
                    "upload by %s broke off, %d lines accepted",
                    client_of(request.scope),
                    lines.reply.accepted,
                )
                raise _Bad(400, "the upload broke off")
            data, more = message.get("body", b""), message.get("more_body", False)
            packed += len(data)
            if packed > config.max_body_bytes:
                raise _too_much(config)
            for number, piece in enumerate(unpacker.unpack(data)):
                unpacked += len(piece)
                if unpacked > config.max_unpacked_bytes:
                    raise _Bad(
                        413,
                        f"the body unpacks to more than {config.max_unpacked_bytes:,} bytes: send it in parts",
                    )
                if number:
                    await asyncio.sleep(
                        0
                    )  # one packet can unpack to much: let others have their turn
                if not await lines.add(piece):
                    return
        unpacker.finish()
    except BadEncoding as error:
        raise _Bad(400, str(error)) from None
    await lines.push(final=True)


def _retry_after(reply: IngestReply, buffer: BufferManager) -> int:
    """Whole seconds until a retry has a chance."""
    wait = reply.retry_after or 0.0
    if reply.reason == "full":
        # There is no room before the sink is called again.
        wait = max(wait, buffer.stats().circuit_breaker.retry_after)
    return _LATEST if wait > _LATEST else max(_SOONEST, math.ceil(wait))


def _too_much(config: HttpConfig) -> _Bad:
    return _Bad(413, f"the body may have at most {config.max_body_bytes:,} bytes: send it in parts")
