"""GET /buffer/events: server-sent events over a real connection.

Resumption, heartbeats, and clients that misbehave.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from backpressure import BufferConfig, BufferManager
from backpressure.base.events import Event
from backpressure.http import HttpConfig, create_app
from backpressure.http.event_stream import parse_id
from tests.support.http import SCOPE, serving
from tests.support.threads import until

SMALL = BufferConfig(lane_bytes=4096)


@pytest.fixture
def buffer() -> BufferManager:
    return BufferManager(SMALL)


def subscribers(buffer: BufferManager) -> int:
    return sum(ref() is not None for ref in buffer._notifications._subscriptions)


class Stream:
    """The frames of one stream, as a browser reads them."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self.start = ""

    def frame(self) -> dict[str, str]:
        """The next frame: its fields; a comment has the field ""."""
        fields: dict[str, str] = {}
        for line in self._lines:
            if not line:
                if fields:
                    return fields
                continue
            name, _, value = line.partition(":")
            assert name not in fields
            fields[name] = value.removeprefix(" ")
        raise EOFError

    def event(self) -> dict[str, Any]:
        """The next event; comments are passed over."""
        while True:
            frame = self.frame()
            if "data" in frame:
                return {**frame, "data": json.loads(frame["data"])}


@contextmanager
def streaming(address: str, **headers: str) -> Iterator[Stream]:
    with httpx.stream("GET", f"{address}/buffer/events", headers=headers, timeout=30) as reply:
        assert reply.status_code == 200
        assert reply.headers["content-type"].startswith("text/event-stream")
        assert "no-store" in reply.headers["cache-control"]
        stream = Stream(reply.iter_lines())
        first = stream.frame()
        assert first.keys() == {"retry", "id"}
        stream.start = first["id"]
        yield stream


def test_events_come_with_number_type_and_fields(buffer: BufferManager) -> None:
    buffer.adjust_batch_size(2000)  # before a client connects
    with serving(buffer) as address, streaming(address) as stream:
        buffer.adjust_flow_control_rate(float("inf"), by='a "quoted"\nline')
        changed, tuned = stream.event(), stream.event()
        assert (changed["event"], changed["data"]["new"]) == ("rate_changed", None)
        assert tuned["event"] == tuned["data"]["type"] == "tuned"
        assert tuned["data"]["by"] == 'a "quoted"\nline'
        assert tuned["id"] == f"{buffer.id[:8]}-{tuned['data']['seq']}"
        assert tuned["data"]["seq"] == 4


def test_a_client_that_connects_again_misses_nothing(buffer: BufferManager) -> None:
    with serving(buffer) as address:
        with streaming(address) as stream:
            buffer.adjust_batch_size(2000)
            stream.event()
            last = stream.event()["id"]
        for size in (3000, 4000):
            buffer.adjust_batch_size(size)
        with streaming(address, **{"Last-Event-ID": last}) as stream:
            got = [stream.event()["data"]["seq"] for _ in range(4)]
            assert got == [3, 4, 5, 6]
        with streaming(address, **{"Last-Event-ID": "of-another-run-5"}) as stream:
            assert [stream.event()["data"]["seq"] for _ in range(6)] == [1, 2, 3, 4, 5, 6]


def test_a_client_that_lost_its_connection_before_the_first_event_misses_none_either(
    buffer: BufferManager,
) -> None:
    buffer.adjust_batch_size(2000)
    with serving(buffer) as address:
        with streaming(address) as stream:
            last = stream.start
        buffer.adjust_batch_size(3000)
        with streaming(address, **{"Last-Event-ID": last}) as stream:
            assert stream.start == last
            assert [stream.event()["data"]["seq"] for _ in range(2)] == [3, 4]


def test_what_is_lost_is_announced(buffer: BufferManager) -> None:
    with serving(buffer) as address:
        for _ in range(300):
            buffer.adjust_batch_size(2000)
            buffer.adjust_batch_size(3000)
        with streaming(address, **{"Last-Event-ID": f"{buffer.id[:8]}-1"}) as stream:
            missed = stream.event()
            assert (missed["event"], "id" in missed) == ("missed", False)
            first = stream.event()["data"]["seq"]
            assert missed["data"]["events"] == first - 2


def test_silence_is_broken_by_comments_and_ended_in_time(buffer: BufferManager) -> None:
    config = HttpConfig(heartbeat=0.02, stream_seconds=0.3)
    with serving(buffer, config=config) as address, streaming(address) as stream:
        for _ in range(3):
            assert stream.frame() == {"": "alive"}
        with pytest.raises(EOFError):
            stream.event()
        until(lambda: subscribers(buffer) == 0)


def test_streams_are_limited_and_let_go(buffer: BufferManager) -> None:
    with serving(buffer, config=HttpConfig(max_streams=2)) as address:
        with streaming(address), streaming(address):
            refused = httpx.get(f"{address}/buffer/events")
            assert (refused.status_code, "2 event streams" in refused.json()["detail"]) == (
                503,
                True,
            )
            assert "retry-after" in refused.headers
        until(lambda: subscribers(buffer) == 0)
        with streaming(address):
            assert subscribers(buffer) == 1


def test_a_stream_ends_with_its_buffer(buffer: BufferManager) -> None:
    with serving(buffer) as address, streaming(address) as stream:
        buffer.close(timeout=0)
        assert stream.event()["event"] == "buffer_closing"
        with pytest.raises(EOFError):
            stream.event()


def test_a_client_that_does_not_read_harms_only_itself_and_is_dropped(
    buffer: BufferManager,
) -> None:
    """It harms only itself.

    Events go on at their pace, other clients see all of them, and the server drops it
    in the end.
    """
    with serving(buffer, config=HttpConfig(send_timeout=0.5)) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.connect((host, int(port)))
            deaf.sendall(f"GET /buffer/events HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            until(lambda: subscribers(buffer) == 1)
            own = buffer._notifications._subscriptions[0]()
            assert own is not None
            slowest = 0.0
            with streaming(address) as stream:

                def tell() -> bool:
                    """Write until it is dropped.

                    50 KB a time, soon more than the way to it can hold.
                    """
                    nonlocal slowest
                    begin = time.monotonic()
                    buffer.adjust_batch_size(2000, by="x" * 50_000)
                    slowest = max(slowest, time.monotonic() - begin)
                    while stream.event()["event"] != "tuned":
                        pass
                    return own.ended

                until(tell)
            # Its time-out of half a second dropped it, and no other waited that long
            # for it.
            assert slowest < 0.4
            assert len(own._pending) <= 256
            until(lambda: subscribers(buffer) == 0)


def test_emitting_costs_the_same_with_any_listener(buffer: BufferManager) -> None:
    """An emitter never waits for a subscription.

    Also where the loop that reads it is busy with something else.
    """
    entered, leave = threading.Event(), threading.Event()

    async def busy() -> None:
        feed = buffer.aio.events()
        assert await feed.get(timeout=0.001) is None
        entered.set()
        assert leave.wait(30)  # the loop does nothing else
        feed.close()

    thread = threading.Thread(target=lambda: asyncio.run(busy()))
    thread.start()
    assert entered.wait(30)
    begin = time.monotonic()
    for _ in range(1000):
        buffer.adjust_batch_size(2000)
    assert time.monotonic() - begin < 5
    leave.set()
    thread.join(30)


def test_a_torrent_leaves_others_their_turn(buffer: BufferManager) -> None:
    """Neither `get` nor `send` has to wait here.

    Without a pause nothing else would run until the last event is sent.
    """
    for _ in range(125):
        buffer.adjust_batch_size(2000)
        buffer.adjust_batch_size(3000)
    app = create_app(buffer)
    frames = turns = 0

    async def send(message: Any) -> None:
        nonlocal frames
        frames += message["type"] == "http.response.body"

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def main() -> None:
        nonlocal turns
        serving = asyncio.create_task(app(scope(f"{buffer.id[:8]}-250"), receive, send))
        while frames < 250:
            turns += frames > 0
            await asyncio.sleep(0)
        serving.cancel()

    asyncio.run(asyncio.wait_for(main(), 30))
    assert turns > 100


def scope(last_event_id: str = "") -> dict[str, Any]:
    headers = [(b"host", b"localhost"), (b"last-event-id", last_event_id.encode())]
    return {**SCOPE, "method": "GET", "path": "/buffer/events", "headers": headers}


def test_last_event_id(buffer: BufferManager) -> None:
    run = buffer.id[:8]
    assert parse_id(None, buffer) is None
    assert parse_id("", buffer) is None
    assert parse_id(f"{run}-17", buffer) == 17
    for other in ("17", "x-17", f"{run}-", f"{run}-x", f"{run}--1", f"{run}-{'9' * 40}", "\n"):
        assert parse_id(other, buffer) == 0


def test_a_client_that_goes_away_before_the_first_byte_leaves_nothing(
    buffer: BufferManager,
) -> None:
    app = create_app(buffer)
    sent: list[Any] = []

    async def receive() -> dict[str, str]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(asyncio.wait_for(app(scope(), receive, send), 30))
    assert subscribers(buffer) == 0
    assert isinstance(buffer.adjust_batch_size(2000), Event)
