"""One event a call, in: beside `deque.append`, and in a coroutine beside
`asyncio.Queue.put_nowait`.

Each round adds the same events to both, in turn, and then checks that they are all
there, in order.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from backpressure import BufferConfig, BufferManager

EVENTS = [b"%050d" % n * 2 for n in range(50_000)]
ROUNDS = 15
THREADS = 2


def drained(buffer: BufferManager) -> list[bytes]:
    events: list[bytes] = []
    while batch := buffer.get_batch():
        with batch:
            events += batch.tolist()
    return events


def into_a_deque() -> float:
    queue: deque[bytes] = deque()
    append = queue.append
    start = time.perf_counter()
    for event in EVENTS:
        append(event)
    return time.perf_counter() - start


def compare(
    benchmark: BenchmarkFixture,
    ours: Callable[[], float],
    theirs: Callable[[], float],
    yardstick: str,
    limit: float | None,
) -> None:
    benchmark.pedantic(ours, rounds=3)
    if benchmark.disabled:
        return
    gc.collect()
    pairs = [(ours(), theirs()) for _ in range(ROUNDS + 1)][1:]
    ratio = statistics.median(one / other for one, other in pairs)
    benchmark.extra_info.update(
        yardstick=yardstick,
        ratio=round(ratio, 3),
        limit=limit,
        million_a_second=round(len(EVENTS) / min(one for one, _ in pairs) / 1e6, 1),
    )
    assert limit is None or ratio <= limit, f"{ratio:.2f} times {yardstick}"


IN_A_DIRECTORY = [
    pytest.mark.skipif(sys.platform != "linux", reason="a directory needs Linux"),
    pytest.mark.platform,
]


@pytest.mark.parametrize("way", ["buffer", "producer"])
@pytest.mark.parametrize(
    ("kept", "limit"),
    [(False, 3.5), pytest.param(True, 5.0, marks=IN_A_DIRECTORY)],
    ids=["memory", "directory"],
)
def test_add(
    benchmark: BenchmarkFixture, tmp_path: Path, kept: bool, limit: float, way: str
) -> None:
    """In a ring that stays below half full: nothing is spilled."""
    config = BufferConfig(directory=tmp_path / "buffer" if kept else None, lane_bytes=32 << 20)
    with BufferManager(config) as buffer, buffer.producer() as producer:
        add = buffer.add_event if way == "buffer" else producer.add

        def ours() -> float:
            start = time.perf_counter()
            for event in EVENTS:
                add(event)
            seconds = time.perf_counter() - start
            assert drained(buffer) == EVENTS
            return seconds

        compare(benchmark, ours, into_a_deque, "deque.append", limit)
        disk = buffer.stats().disk
        assert disk is None or disk.spilled == 0


def test_add_in_a_coroutine(benchmark: BenchmarkFixture) -> None:
    """Where it need not wait."""

    async def into(buffer: BufferManager) -> float:
        add = buffer.aio.add_event
        start = time.perf_counter()
        for event in EVENTS:
            await add(event)
        return time.perf_counter() - start

    async def into_a_queue() -> float:
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        put = queue.put_nowait
        start = time.perf_counter()
        for event in EVENTS:
            put(event)
        return time.perf_counter() - start

    with BufferManager(BufferConfig(lane_bytes=16 << 20)) as buffer:

        def ours() -> float:
            seconds = asyncio.run(into(buffer))
            assert drained(buffer) == EVENTS
            return seconds

        compare(
            benchmark, ours, lambda: asyncio.run(into_a_queue()), "asyncio.Queue.put_nowait", 1.5
        )


@pytest.mark.skipif(
    getattr(sys, "_is_gil_enabled", lambda: True)(), reason="for interpreters without a GIL"
)
def test_a_producer_for_each_thread(benchmark: BenchmarkFixture) -> None:
    """Beside a deque for each thread: the time until all of them are done."""

    def all_threads(works: list[Callable[[], object]]) -> float:
        begin = threading.Barrier(len(works) + 1)

        def run(work: Callable[[], object]) -> None:
            begin.wait()
            work()

        threads = [threading.Thread(target=run, args=(work,)) for work in works]
        for thread in threads:
            thread.start()
        begin.wait()
        start = time.perf_counter()
        for thread in threads:
            thread.join()
        return time.perf_counter() - start

    def into_a_deque_each() -> float:
        return all_threads([into_a_deque] * THREADS)

    with BufferManager(BufferConfig(lane_bytes=32 << 20)) as buffer:

        def add_all(priority: int) -> None:
            with buffer.producer(priority) as producer:
                add = producer.add
                for event in EVENTS:
                    add(event)

        def ours() -> float:
            priorities = range(1, THREADS + 1)
            seconds = all_threads([partial(add_all, one) for one in priorities])
            counts = dict.fromkeys(priorities, 0)
            while batch := buffer.get_batch():
                with batch:
                    counts[batch.priority] += len(batch)
            assert counts == dict.fromkeys(priorities, len(EVENTS))
            return seconds

        compare(benchmark, ours, into_a_deque_each, "deque.append, a deque each", 3.5)
