"""POST /events: one upload into a lane, line by line, as it comes.

The body is never held whole: it is unpacked piece by piece, and about a quarter of a
MiB at a time goes into the lane. Where the lane or flow control takes no more, and
waiting (`timeout`) does not help, reading stops and the reply says which prefix was
accepted. While it waits, the client's connection is not read, and TCP's flow control
slows the client down.

What was accepted stays accepted whatever happens afterwards. A client whose connection
broke does not know how much that is: where it sends all of it again, each line is
delivered at least once.
"""

from __future__ import annotations

import asyncio
import logging
import math
from typing import Annotated, Any, Final

from fastapi import FastAPI, Query, Request
from fastapi.responses import JSONResponse

from backpressure.base.errors import BufferClosed, EventTooLarge
from backpressure.base.reasons import LIMIT_REASONS
from backpressure.buffer.config import WhenFull
from backpressure.buffer_manager import BufferManager
from backpressure.http.body_length import missing_body
from backpressure.http.chosen import Buffers, Chosen
from backpressure.http.config import HttpConfig
from backpressure.http.decompress import UNPACKERS, BadEncoding
from backpressure.http.guard import INGEST_PATHS, client_of
from backpressure.http.models import LONGEST_WAIT, IngestQuery, IngestReply, ingest_query
from backpressure.http.openapi import ALWAYS, TOKEN, Responses, problems
from backpressure.http.uploads import BadUpload, ReadWatchdog, Uploads, UploadsClosing

__all__ = ["add_ingest", "ingest"]

_log = logging.getLogger("backpressure")

# Bytes that go into the lane at once, which occupies the event loop for a tenth of a
# millisecond. With a quarter of it 8 MiB cost a fifth more; four times as much saves a
# tenth.
_PUSH: Final = 1 << 18
# A piece of this many bytes or more is not copied together with what came before it.
# With pieces of 256 KiB, as uvicorn gives them for a fast client's upload, that saves a
# twentieth of the server's time; with 64 KiB the further calls cost more than the copy.
_LARGE: Final = 1 << 17
# Retry-After, at least and at most: it has whole seconds only, and no "never".
_SOONEST: Final = 1
_LATEST: Final = 3600

_REPLIES: Final[Responses] = {
    status: {"model": IngestReply, "description": description}
    for status, description in {
        400: "The body is not what Content-Encoding or Content-Length says, or broke off.",
        408: "The client stopped sending.",
        413: "The body, what it unpacks to, or a line is too large.",
        415: "Content-Encoding is neither gzip nor zstd.",
        429: "Rate limited; Retry-After says when to go on.",
        503: "The buffer is full or closed; Retry-After says when to try again.",
    }.items()
}


class _Lines:
    """Puts a stream of bytes, cut anywhere, into a lane line by line.

    `reply` counts what became of them.
    """

    def __init__(
        self, buffer: BufferManager, query: IngestQuery, max_event_bytes: int, uploads: Uploads
    ) -> None:
        self._buffer = buffer
        self._priority = query.priority
        # For ever is too long for a connection.
        blocks = buffer.config.when_full is WhenFull.BLOCK
        patience = LONGEST_WAIT if blocks else 0.0
        self._timeout = patience if query.timeout is None else query.timeout
        self._largest = max_event_bytes
        self._uploads = uploads
        self._held: list[bytes] = []
        self._held_bytes = 0
        self.reply = IngestReply(
            accepted=0, rejected=0, reason=None, retry_after=0.0, first_seq=None, consumed=0
        )

    async def add(self, piece: bytes) -> bool:
        """Take the next bytes; False: the lane takes no more."""
        if len(piece) >= _LARGE and (cut := piece.find(b"\n") + 1):
            # Only the line that began in an earlier piece has to be joined; the others
            # go in from where they are.
            if self._held_bytes:
                self._held.append(piece[:cut])
                if not await self.push(final=False):
                    return False
                return await self._put_chunk(memoryview(piece)[cut:], final=False)
            return await self._put_chunk(piece, final=False)
        self._held.append(piece)
        self._held_bytes += len(piece)
        return self._held_bytes < _PUSH or await self.push(final=False)

    async def push(self, final: bool) -> bool:
        """Put what is held into the lane.

        What follows the last newline is a line only if this is the `final` part.
        """
        return await self._put_chunk(b"".join(self._held), final)

    async def _put_chunk(self, chunk: bytes | memoryview, final: bool) -> bool:
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
            raise self._line_too_large(
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
            raise self._line_too_large(reply.accepted + 1, len(rest), self._largest)
        self._held, self._held_bytes = [rest], len(rest)
        return True

    def _line_too_large(self, line: int, nbytes: int, limit: int) -> BadUpload:
        return BadUpload(
            413,
            f"line {line:,} has {nbytes:,} bytes or more, and one line may have at most {limit:,}",
        )


def add_ingest(app: FastAPI, buffers: Buffers, config: HttpConfig, uploads: Uploads) -> None:
    """Add `POST /events` to `app`."""
    levels = min(one.config.flow_control.priority_levels for one in buffers.all())
    query_of_buffer: Any = ingest_query(levels, named=bool(buffers.named))

    async def events_in(query: IngestQuery, request: Request, buffer: Chosen) -> JSONResponse:
        """Put lines into the buffer.

        Whatever the answer: exactly the first `accepted` of them were accepted.
        """
        return await ingest(request, query, buffer, config, uploads)

    # What FastAPI reads: a local name could not be found from the text of the
    # annotation.
    events_in.__annotations__["query"] = Annotated[query_of_buffer, Query()]
    path, other_path = INGEST_PATHS
    app.post(other_path, status_code=202, include_in_schema=False)(events_in)
    app.post(
        path,
        status_code=202,
        response_model=IngestReply,
        responses={**problems(401, 422), **ALWAYS, **_REPLIES},
        dependencies=[TOKEN],
        openapi_extra={
            "requestBody": {
                "description": "Lines, each one event: plain, or packed as Content-Encoding "
                "(gzip or zstd) says.",
                "content": {
                    kind: {}
                    for kind in ("text/plain", "application/x-ndjson", "application/octet-stream")
                },
            }
        },
    )(events_in)


async def ingest(
    request: Request,
    query: IngestQuery,
    buffer: BufferManager,
    config: HttpConfig,
    uploads: Uploads,
) -> JSONResponse:
    """Put one upload into the buffer, and answer what became of it."""
    lines = _Lines(buffer, query, config.max_event_bytes, uploads)
    reply = lines.reply
    status, headers = 202, {}
    watchdog = uploads.begin(config.read_timeout)
    try:
        try:
            await _put_body(request, lines, watchdog, config)
        except UploadsClosing:
            reply.reason = "closed"
    except BadUpload as bad:
        status, reply.reason, reply.detail = bad.status, "invalid", str(bad)
        if status == 415:
            headers["Accept-Encoding"] = "gzip, zstd"
        if bad.ends_connection:
            headers["Connection"] = "close"
    else:
        if reply.reason is not None:
            status = 429 if reply.reason in LIMIT_REASONS else 503
            wait = _retry_after(reply, buffer)
            headers["Retry-After"] = str(wait)
            reply.detail = (
                f"line {reply.accepted + 1:,} and what follows was not accepted ({reply.reason}): "
                f"send the upload from byte {reply.consumed:,} on again, in {wait} s or later"
            )
    finally:
        uploads.finish(watchdog)
    if reply.retry_after is not None and not math.isfinite(reply.retry_after):
        reply.retry_after = None
    return JSONResponse(reply.model_dump(), status, headers)


async def _put_body(
    request: Request, lines: _Lines, watchdog: ReadWatchdog, config: HttpConfig
) -> None:
    """Put the body into the buffer, unpacked, until its end or a refusal.

    BadUpload where it breaks a limit.
    """
    # A list, and like every list it may stand in several lines.
    given = ",".join(request.headers.getlist("content-encoding"))
    encodings = [one.strip() for one in given.lower().split(",")]
    encoding = ",".join(one for one in encodings if one not in ("", "identity"))
    if encoding not in UNPACKERS:
        raise BadUpload(
            415, f"Content-Encoding {given[:100]!r} is not supported: use gzip, zstd, or none"
        )
    unpacker = UNPACKERS[encoding]()
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > config.max_body_bytes:
        raise _body_too_large(config)
    packed = unpacked = 0
    more = True
    try:
        while more:
            message = await watchdog.read(request.receive)
            if message["type"] == "http.disconnect":
                # The reply reaches no client, so the log gets it.
                _log.info(
                    "upload by %s broke off, %d lines accepted",
                    client_of(request.scope),
                    lines.reply.accepted,
                )
                raise BadUpload(400, "the upload broke off")
            data, more = message.get("body", b""), message.get("more_body", False)
            packed += len(data)
            if packed > config.max_body_bytes:
                raise _body_too_large(config)
            for number, piece in enumerate(unpacker.unpack(data)):
                unpacked += len(piece)
                if unpacked > config.max_unpacked_bytes:
                    most = f"{config.max_unpacked_bytes:,}"
                    raise BadUpload(
                        413, f"the body unpacks to more than {most} bytes: send it in parts"
                    )
                if number:
                    await asyncio.sleep(0)  # one packet can unpack to much: yield to others
                if not await lines.add(piece):
                    return
        if problem := missing_body(request.headers.raw, packed):
            raise BadUpload(400, problem, ends_connection=True)
        unpacker.finish()
    except BadEncoding as error:
        raise BadUpload(400, str(error)) from None
    await lines.push(final=True)


def _retry_after(reply: IngestReply, buffer: BufferManager) -> int:
    """Whole seconds until a retry can succeed."""
    wait = reply.retry_after or 0.0
    if reply.reason == "full":
        # There is no room before the sink is called again.
        wait = max(wait, buffer.stats().circuit_breaker.retry_after)
    return _LATEST if wait > _LATEST else max(_SOONEST, math.ceil(wait))


def _body_too_large(config: HttpConfig) -> BadUpload:
    most = f"{config.max_body_bytes:,}"
    return BadUpload(413, f"the body may have at most {most} bytes: send it in parts")
