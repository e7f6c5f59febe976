"""MessageRing, one message at a time, beside a deque of bytes."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from ringbuf import MessageRing

COUNT = 20_000
ROUNDS = 25


def seconds_of_pops(pop: Callable[[], object]) -> float:
    start = time.perf_counter()
    for _ in range(COUNT):
        pop()
    return time.perf_counter() - start


def seconds_of_appends(append: Callable[[Any], object], message: bytes) -> float:
    start = time.perf_counter()
    for _ in range(COUNT):
        append(message)
    return time.perf_counter() - start


# An event of a log is of some 100 to 300 bytes; of 64 bytes, what the call costs shows.
@pytest.mark.parametrize("size", [64, 237])
@pytest.mark.parametrize("yardstick", ["deque.append", "deque.append and popleft"])
def test_try_pop(benchmark: BenchmarkFixture, size: int, yardstick: str) -> None:
    """`deque.popleft` gives an object that is there already, and frees a pointer; here
    the bytes are made, and freed by the loop.
    """
    ring, message = MessageRing(COUNT * 512), b"x" * size
    things: deque[bytes] = deque()

    def ours() -> float:
        assert ring.push_many([message] * COUNT) == COUNT
        assert ring.try_pop() == message
        assert ring.try_push(message)
        taken = seconds_of_pops(ring.try_pop)
        assert ring.try_pop() is None
        return taken

    def theirs() -> float:
        taken = seconds_of_appends(things.append, message)
        if yardstick == "deque.append":
            things.clear()
        else:
            taken += seconds_of_pops(things.popleft)
        return taken

    benchmark(ours)
    theirs()
    if benchmark.disabled:
        return
    limit = 3.0
    measured = statistics.median(ours() / theirs() for _ in range(ROUNDS))
    benchmark.extra_info.update(yardstick=yardstick, ratio=round(measured, 3), limit=limit)
    print(f"\n{measured:.2f} times {yardstick}, at most {limit}")
    assert measured <= limit
