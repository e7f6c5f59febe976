"""Delivery in tasks of an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from backpressure import AlreadyDelivering, Batch, BufferManager, SinkGone
from tests.support.buffers import numbered


async def until(holds: Callable[[], object], seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.002)


class Sink:
    max_concurrency = 4

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.events: list[bytes] = []
        self.calls = self.closed = self.most = self._in = 0

    async def send(self, batch: Batch) -> None:
        self.calls += 1
        self._in += 1
        self.most = max(self.most, self._in)
        try:
            await asyncio.sleep(0.001)
            if self.error is not None:
                raise self.error
            self.events += batch.tolist()
        finally:
            self._in -= 1

    async def close(self) -> None:
        self.closed += 1


def test_it_delivers_within_its_block() -> None:
    async def main() -> None:
        sink = Sink()
        buffer = BufferManager()
        async with buffer.aio.deliver_to(sink, concurrency=8, max_events=10) as delivery:
            assert delivery.stats().workers == 4
            await buffer.aio.add_events(numbered(500))
        assert sorted(sink.events) == numbered(500)
        assert 1 <= sink.most <= 4
        assert sink.closed == 1
        assert not delivery.running
        await buffer.aio.close()

    asyncio.run(main())


def test_a_coroutine_function_and_the_buffers_end() -> None:
    async def main() -> None:
        got: list[bytes] = []

        async def send(batch: Batch) -> None:
            got.extend(batch)

        buffer = BufferManager()
        delivery = buffer.aio.deliver_to(send)
        with pytest.raises(AlreadyDelivering):
            buffer.deliver_to(lambda batch: None)
        await buffer.aio.add_events(numbered(100))
        await buffer.aio.close()
        assert await delivery.wait(30.0)
        assert got == numbered(100)

    asyncio.run(main())


@pytest.mark.parametrize(
    "error", [OSError("away"), ValueError("bug"), asyncio.CancelledError(), TimeoutError()]
)
def test_it_survives_what_the_sink_raises(error: BaseException) -> None:
    async def main() -> None:
        sink = Sink()
        sink.error = error
        buffer = BufferManager()
        delivery = buffer.aio.deliver_to(sink)
        buffer.add_events(numbered(10))
        await until(lambda: sink.calls >= 3)
        assert delivery.running
        sink.error = None
        assert await delivery.stop(30.0)
        assert sorted(sink.events) == numbered(10)
        buffer.close()

    asyncio.run(main())


def test_a_cancelled_loop_gives_the_batch_back() -> None:
    buffer = BufferManager()

    async def main() -> None:
        begun = asyncio.Event()

        async def send(batch: Batch) -> None:
            begun.set()
            await asyncio.sleep(3600)

        buffer.add_events(numbered(10))
        buffer.aio.deliver_to(send)
        await begun.wait()

    asyncio.run(main())
    stats = buffer.stats()
    assert (stats.resident, stats.in_flight, stats.retrying) == (10, 0, 10)
    assert stats.circuit_breaker.failed == 0
    got: list[bytes] = []
    with buffer:
        buffer.deliver_to(got.extend)
    assert got == numbered(10)


def test_a_stop_that_has_no_more_time_cancels_what_is_being_sent() -> None:
    async def main() -> None:
        begun = asyncio.Event()

        async def send(batch: Batch) -> None:
            begun.set()
            await asyncio.sleep(3600)

        buffer = BufferManager()
        buffer.add_events(numbered(10))
        delivery = buffer.aio.deliver_to(send)
        await begun.wait()
        assert not await delivery.stop(timeout=0.05)
        assert not delivery.running
        assert buffer.stats().resident == 10
        buffer.close(timeout=0)

    asyncio.run(main())


def test_a_plain_function_is_refused() -> None:
    async def main() -> None:
        buffer = BufferManager()
        sent: list[bytes] = []
        plain: Any = sent.extend
        delivery = buffer.aio.deliver_to(plain)
        buffer.add_events([b"x"])
        assert await delivery.wait(30.0)
        assert isinstance(delivery.error, TypeError)
        assert buffer.stats().acked == 0
        buffer.close(timeout=0)

    asyncio.run(main())
    buffer = BufferManager()
    with pytest.raises(RuntimeError, match="running event loop"):
        buffer.aio.deliver_to(Sink())
    buffer.close()


def test_a_sink_that_is_gone() -> None:
    async def main() -> None:
        sink = Sink()
        sink.error = SinkGone("closed")
        buffer = BufferManager()
        delivery = buffer.aio.deliver_to(sink)
        buffer.add_events([b"x"])
        assert await delivery.wait(30.0)
        assert delivery.error is sink.error
        assert (sink.calls, sink.closed) == (1, 1)
        buffer.close(timeout=0)

    asyncio.run(main())


def test_flush_waits_for_what_is_there_and_asks_the_sink() -> None:
    async def main() -> None:
        sink = Sink()
        sink.error = OSError("away")
        buffer = BufferManager()
        delivery = buffer.aio.deliver_to(sink)
        buffer.add_events(numbered(10))
        await until(buffer.is_circuit_breaker_open)
        assert not await delivery.flush(timeout=0.05)
        sink.error = None
        assert await delivery.flush(timeout=30.0)
        assert sorted(sink.events) == numbered(10)
        assert delivery.running
        assert await delivery.stop()
        buffer.close()

    asyncio.run(main())
