"""Timeouts: nonsense is refused at once, wherever it comes in, and before anything was
added, taken or closed.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest

from backpressure import BufferManager, InvalidEvents
from backpressure.buffer.single_events import SingleEventWriter
from backpressure.logging import BufferHandler, BufferListener
from backpressure.sinks.http import HttpSink
from backpressure.sinks.tcp import TcpSink
from backpressure.testing import MemorySink
from tests.support.buffers import EVENT, SMALL, drain

NONSENSE = (-1, -1e-9, math.nan, -math.inf, "1", b"", True, False, [1])
CALLS: list[Callable[[BufferManager, Any], object]] = [
    lambda buffer, timeout: buffer.add_events([b"a"], timeout=timeout),
    lambda buffer, timeout: buffer.add_lines(b"a", timeout=timeout),
    lambda buffer, timeout: buffer.get_batch(timeout=timeout),
    lambda buffer, timeout: buffer.close(timeout),
    lambda buffer, timeout: SingleEventWriter(buffer, timeout),
    lambda buffer, timeout: BufferListener(buffer, []).flush(timeout),
    lambda buffer, timeout: BufferListener(buffer, []).stop(timeout),
    lambda buffer, timeout: BufferHandler(buffer, timeout=timeout),
    lambda buffer, timeout: BufferHandler(buffer, drain_timeout=timeout),
    lambda buffer, timeout: TcpSink("localhost", 1, timeout=timeout),
    lambda buffer, timeout: HttpSink("http://localhost", timeout=timeout),
]
COROUTINES: list[Callable[[BufferManager, Any], Coroutine[Any, Any, object]]] = [
    lambda buffer, timeout: buffer.aio.add_events([b"a"], timeout=timeout),
    lambda buffer, timeout: buffer.aio.add_lines(b"a", timeout=timeout),
    lambda buffer, timeout: buffer.aio.get_batch(timeout=timeout),
    lambda buffer, timeout: buffer.aio.close(timeout),
    lambda buffer, timeout: buffer.aio.events().get(timeout),
]


@pytest.fixture(params=["empty", "some", "full"])
def buffer(request: pytest.FixtureRequest) -> BufferManager:
    made = BufferManager(SMALL)
    if request.param != "empty":
        made.add_events([EVENT] * (1 if request.param == "some" else 10))
    return made


def unchanged(buffer: BufferManager, before: list[int]) -> None:
    assert books(buffer) == before
    assert not buffer.closing


def books(buffer: BufferManager) -> list[int]:
    stats = buffer.stats()
    stats.check()
    return [stats.offered, stats.accepted, stats.waiting, stats.in_flight]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("timeout", NONSENSE)
def test_nonsense_is_refused(
    buffer: BufferManager, call: Callable[[BufferManager, Any], object], timeout: object
) -> None:
    before = books(buffer)
    with pytest.raises(ValueError, match="timeout"):
        call(buffer, timeout)
    unchanged(buffer, before)


@pytest.mark.parametrize("call", COROUTINES)
@pytest.mark.parametrize("timeout", NONSENSE)
def test_nonsense_is_refused_by_coroutines(
    buffer: BufferManager,
    call: Callable[[BufferManager, Any], Coroutine[Any, Any, object]],
    timeout: object,
) -> None:
    async def main() -> None:
        await call(buffer, timeout)

    before = books(buffer)
    with pytest.raises(ValueError, match="timeout"):
        asyncio.run(main())
    unchanged(buffer, before)


@pytest.mark.parametrize("timeout", [0, 0.0, -0.0, 1e-9, 3, 10**400, math.inf, None])
def test_any_number_of_seconds_is_a_timeout(timeout: float | None) -> None:
    buffer = BufferManager(SMALL)
    assert buffer.add_events([b"a"], timeout=timeout).accepted == 1
    assert buffer.add_lines(b"b\n", timeout=timeout).accepted == 1

    async def main() -> None:
        assert (await buffer.aio.add_events([b"c"], timeout=timeout)).accepted == 1
        batch = await buffer.aio.get_batch(1, timeout=timeout)
        assert batch is not None
        batch.ack()

    asyncio.run(main())
    batch = buffer.get_batch(1, timeout=timeout)
    assert batch is not None
    batch.ack()
    assert drain(buffer) == [b"c"]
    listener = BufferListener(buffer, MemorySink())
    listener.start()
    assert listener.flush(timeout)
    assert listener.stop(timeout if timeout != 0 and timeout != 1e-9 else 5.0)
    assert buffer.close(timeout).closed


@pytest.mark.parametrize("count", [1.5, "3", True, 0, -1])
def test_what_is_no_count_is_refused(count: Any) -> None:
    buffer = BufferManager(SMALL)
    buffer.add_events([b"a"])
    with pytest.raises(ValueError, match="max_events"):
        buffer.get_batch(count)
    with pytest.raises(ValueError, match="max_events"):
        asyncio.run(buffer.aio.get_batch(count))
    assert drain(buffer) == [b"a"]


def test_numbers_of_numpy_serve_as_those_of_python() -> None:
    buffer = BufferManager(SMALL)
    two: Any = np.int8(2)
    one: Any = np.uint16(1)
    zeros: list[Any] = [np.int64(0), np.float32(0), np.float64(0)]
    for zero in zeros:
        buffer.add_events([b"a", b"b"], priority=two, timeout=zero)
        batch = buffer.get_batch(one, timeout=zero)
        assert batch is not None
        assert (len(batch), batch.priority, type(batch.asked)) == (1, 2, int)
        batch.ack()
    nonsense: list[Any] = [np.bool_(True), np.float32("nan"), np.int64(-1), -(10**400)]
    for value in nonsense:
        with pytest.raises(ValueError, match="timeout"):
            buffer.add_events([b"a"], timeout=value)
        with pytest.raises(ValueError, match="max_events"):
            buffer.get_batch(value)
        with pytest.raises(InvalidEvents):
            buffer.add_events([b"a"], priority=value)
