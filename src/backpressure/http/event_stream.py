"""GET /buffer/events: the buffer's events as server-sent events.

    id: 3f2a9c01-17                       the buffer's run and the event's number: what
                                          a client sends back as Last-Event-ID
    event: rate_changed                   the EventType
    data: {"type": "rate_changed", …}     the event's fields

A client that connects again with Last-Event-ID gets what it missed of the last 512
events. What it cannot get any more, or lost because it read too slowly, is announced as
`event: missed` with the number of events. In silence a comment shows that the stream
lives. A client that does not read at all is dropped after `send_timeout`. The buffer
never waits for a stream: each stream has a bounded queue of its own.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any, Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from backpressure.base.events import Event, EventType
from backpressure.buffer.aio import EventFeed
from backpressure.buffer_manager import BufferManager
from backpressure.http.config import HttpConfig
from backpressure.http.models import plain

__all__ = ["EVENT_SCHEMA", "EventStream", "Streams", "parse_id"]

# What a client waits before it connects again (milliseconds).
_RETRY_MS: Final = 2000
# Events that wait for one client.
_QUEUE: Final = 256

# One event of the stream, for the OpenAPI document: a schema cannot describe the stream
# itself.
EVENT_SCHEMA: Final = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "event": {"type": "string", "enum": [*(kind.value for kind in EventType), "missed"]},
        "data": {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": {"type": "object"},
        },
        "retry": {"type": "integer"},
    },
}


class Streams:
    """The streams of one app: how many there may be, and a way to end them."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._open: set[EventFeed] = set()

    @property
    def free(self) -> bool:
        return len(self._open) < self.limit

    @contextmanager
    def holding(self, feed: EventFeed) -> Iterator[None]:
        self._open.add(feed)
        try:
            yield
        finally:
            self._open.discard(feed)
            feed.close()

    def end(self) -> None:
        """End all of them, so that the server can stop: none ends by itself."""
        for feed in tuple(self._open):
            feed.close()


class EventStream(Response):
    """The response of one client, for as long as it lasts."""

    media_type = "text/event-stream"

    def __init__(
        self, buffer: BufferManager, config: HttpConfig, streams: Streams, since: int | None
    ) -> None:
        # Cache-Control too: a cache or a proxy that collects makes a feed useless.
        super().__init__(
            headers={"Cache-Control": "no-store, no-transform", "X-Accel-Buffering": "no"}
        )
        del self.headers["content-length"]
        self._buffer = buffer
        self._config = config
        self._streams = streams
        self._since = since

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Read before the feed begins, so that a client that loses its connection before
        # its first event misses none either.
        start = self._buffer.aio.last_event_seq if self._since is None else self._since
        feed = self._buffer.aio.events(since=start, limit=_QUEUE)
        with self._streams.holding(feed):
            writer = asyncio.create_task(self._write_stream(feed, start, send))
            listener = asyncio.create_task(_until_gone(receive))
            try:
                await asyncio.wait((writer, listener), return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (writer, listener):
                    task.cancel()
                await asyncio.gather(writer, listener, return_exceptions=True)

    async def _write_stream(self, feed: EventFeed, start: int, send: Send) -> None:
        async with asyncio.timeout(self._config.send_timeout):
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for text in self._texts(feed, start):
            # A client that does not read fills its connection, and then this waits.
            async with asyncio.timeout(self._config.send_timeout):
                await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
            # While events pour in, neither `get` nor `send` suspends: yield to others.
            await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b""})

    async def _texts(self, feed: EventFeed, start: int) -> AsyncIterator[str]:
        end = time.monotonic() + self._config.stream_seconds
        run = self._buffer.id[:8]
        announced = 0
        yield f"retry: {_RETRY_MS}\nid: {run}-{start}\n\n"
        while (left := end - time.monotonic()) > 0:
            event = await feed.get(timeout=min(self._config.heartbeat, left))
            if feed.missed > announced:
                yield f'event: missed\ndata: {{"events": {feed.missed - announced}}}\n\n'
                announced = feed.missed
            if event is not None:
                yield _frame(run, event)
            elif feed.ended:
                return
            else:
                yield ": alive\n\n"


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _frame(run: str, event: Event) -> str:
    data: dict[str, Any] = plain(event)
    return f"id: {run}-{event.seq}\nevent: {event.type.value}\ndata: {json.dumps(data)}\n\n"


def parse_id(text: str | None, buffer: BufferManager) -> int | None:
    """The `since` that a Last-Event-ID asks for.

    None without one; 0 (all that is kept) where it is of another run.
    """
    if not text:
        return None
    run, _, number = text.partition("-")
    if run != buffer.id[:8] or not number.isdecimal() or len(number) > 18:
        return 0
    return int(number)
