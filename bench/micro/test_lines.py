"""Lines through a buffer, beside two copies of the same bytes: in and out.

Chunks of 1 MiB with lines like an access log's, 237 bytes on average: once as many as
no cache holds, once the same one again and again.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from backpressure import BufferManager
from backpressure.cli.bench.hot_paths import access_log
from ringbuf import MessageRing

ROUNDS = 41
#: Chunks in one measurement: a round out of cache reads others than the one before.
CHUNKS = 8
# Of 90 MB.
LINES = 400_000
#: As in newlines.pxd.
WAYS = {0: "plain", 1: "AVX2", 2: "AVX-512", 3: "NEON"}


@pytest.fixture(scope="module")
def chunks() -> list[bytes]:
    found = access_log(LINES)[:-1]
    return found[: len(found) // CHUNKS * CHUNKS]


def best_way() -> int:
    return max(way for way in WAYS if MessageRing(1)._find_lines_by(way))


class Through:
    """One buffer, and the yardstick for it."""

    def __init__(self, way: int | None = None) -> None:
        self.buffer = BufferManager()
        if way is not None:
            for lane in self.buffer._lanes:
                assert lane.ring._find_lines_by(way)
        self._there = np.zeros(1 << 20, np.uint8)
        self._back = np.zeros(1 << 20, np.uint8)

    def check(self, chunk: bytes) -> None:
        assert self.buffer.add_lines(chunk).consumed == len(chunk)
        batch = self.buffer.get_batch()
        assert batch is not None
        assert batch.join() + b"\n" == chunk
        batch.ack()
        assert self.buffer.get_batch() is None

    def ours(self, chunks: list[bytes]) -> float:
        buffer = self.buffer
        start = time.perf_counter()
        for chunk in chunks:
            buffer.add_lines(chunk)
            while (batch := buffer.get_batch()) is not None:
                batch.ack()
        return time.perf_counter() - start

    def theirs(self, chunks: list[bytes]) -> float:
        there, back = self._there, self._back
        views = [np.frombuffer(chunk, np.uint8) for chunk in chunks]
        start = time.perf_counter()
        for view in views:
            n = len(view)
            np.copyto(there[:n], view)
            np.copyto(back[:n], there[:n])
        return time.perf_counter() - start


def ratio(ours: Callable[[], float], theirs: Callable[[], float]) -> float:
    """The median of ours / theirs, measured turn by turn."""
    ours(), theirs()
    return statistics.median(ours() / theirs() for _ in range(ROUNDS))


def measured(through: Through, chunks: list[bytes], cached: bool) -> float:
    turn = iter(range(10**9))

    def some() -> list[bytes]:
        start = 0 if cached else next(turn) * CHUNKS % len(chunks)
        return chunks[:1] * CHUNKS if cached else chunks[start : start + CHUNKS]

    return ratio(lambda: through.ours(some()), lambda: through.theirs(some()))


@pytest.mark.parametrize(("cached", "limit"), [(False, 1.8), (True, 2.2)], ids=["out", "in"])
def test_lines_through_a_buffer(
    benchmark: BenchmarkFixture, chunks: list[bytes], cached: bool, limit: float
) -> None:
    through = Through()
    through.check(chunks[0])
    benchmark(through.ours, chunks[:CHUNKS])
    if benchmark.disabled:
        return
    found = measured(through, chunks, cached)
    benchmark.extra_info.update(yardstick="two np.copyto", ratio=round(found, 3), limit=limit)
    print(f"\n{found:.2f} times two np.copyto, at most {limit}")
    assert found <= limit


@pytest.mark.parametrize("cached", [False, True], ids=["out", "in"])
@pytest.mark.parametrize("way", WAYS, ids=WAYS.get)
def test_every_way_of_finding_lines(
    benchmark: BenchmarkFixture, chunks: list[bytes], way: int, cached: bool
) -> None:
    """For comparison, without a limit; the best way should be no slower than others."""
    if not MessageRing(1)._find_lines_by(way):
        pytest.skip(f"this machine has no {WAYS[way]}")
    through = Through(way)
    through.check(chunks[0])
    benchmark(through.ours, chunks[:CHUNKS])
    if benchmark.disabled:
        return
    found = measured(through, chunks, cached)
    benchmark.extra_info.update(
        yardstick="two np.copyto", ratio=round(found, 3), best=way == best_way()
    )
    print(f"\n{WAYS[way]}: {found:.2f} times two np.copyto")
