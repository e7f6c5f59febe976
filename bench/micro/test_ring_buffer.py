"""RingBuffer beside what Python has for the same: deque, SimpleQueue, and two copies;
and beside itself with more threads.

What is about threads runs on a CPython without a GIL only, and needs two processors for
itself.
"""

from __future__ import annotations

import os
import queue
import statistics
import sys
import sysconfig
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from ringbuf import RingBuffer

ROUNDS = 15
FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def ratio(ours: Callable[[], object], theirs: Callable[[], object]) -> float:
    """The median of ours / theirs, measured turn by turn."""
    seconds(ours), seconds(theirs)
    return statistics.median(seconds(ours) / seconds(theirs) for _ in range(ROUNDS))


def report(
    benchmark: BenchmarkFixture,
    ours: Callable[[], object],
    theirs: Callable[[], object],
    yardstick: str,
    limit: float,
) -> None:
    benchmark(ours)
    theirs()
    if benchmark.disabled:
        return
    measured = ratio(ours, theirs)
    benchmark.extra_info.update(yardstick=yardstick, ratio=round(measured, 3), limit=limit)
    print(f"\n{measured:.2f} times {yardstick}, at most {limit}")
    assert measured <= limit


def test_try_push(benchmark: BenchmarkFixture) -> None:
    count = 100_000
    ring = RingBuffer(count, np.int64)
    out = np.empty(count, np.int64)  # fresh memory for each round would be a tenth of the time

    def ours() -> None:
        push = ring.try_push
        for _ in range(count):
            push(5)
        assert len(ring.pop_many(out=out)) == count

    def theirs() -> None:
        things: deque[int] = deque()
        push = things.append
        for _ in range(count):
            push(5)

    report(benchmark, ours, theirs, "deque.append", 1.5)


def test_try_push_and_try_pop(benchmark: BenchmarkFixture) -> None:
    count = 50_000
    ring = RingBuffer(1024, np.int64)
    simple: queue.SimpleQueue[int] = queue.SimpleQueue()

    def ours() -> None:
        push, pop = ring.try_push, ring.try_pop
        for number in range(count):
            push(number)
            last = pop()
        assert last == count - 1

    def theirs() -> None:
        put, get = simple.put, simple.get
        for number in range(count):
            put(number)
            last = get()
        assert last == count - 1

    # Measured: 0.91. Without spare ints (see _records/numbers.pxd) it is 1.12; ints are
    # made anew before 3.12 and without a GIL.
    spares = sys.version_info >= (3, 12) and not FREE_THREADED
    report(benchmark, ours, theirs, "SimpleQueue.put and get", 1.0 if spares else 1.5)


def on_a_page(size: int) -> np.ndarray:
    """An array of bytes from the start of a page on.

    At places of its own, a few bytes apart in their pages, numpy can take ten times as
    long for a copy (measured: 184 us rather than 17), and a yardstick must not be
    short.
    """
    raw = np.zeros(size + 4096, np.uint8)
    start = -raw.ctypes.data % 4096
    return raw[start : start + size]


@pytest.mark.parametrize("size", [64])
def test_push_many_and_pop_many(benchmark: BenchmarkFixture, size: int) -> None:
    source, between, back, target = (on_a_page(4096 * size) for _ in range(4))
    source[:] = np.arange(4096 * size) % 251
    records, out = source.view(f"V{size}"), target.view(f"V{size}")
    ring = RingBuffer(8192, records.dtype)
    times = 200

    def ours() -> None:
        for _ in range(times):
            assert ring.push_many(records) == 4096
            ring.pop_many(4096, out)

    def theirs() -> None:
        for _ in range(times):
            np.copyto(between, source)
            np.copyto(back, between)

    ours()
    assert out.tobytes() == records.tobytes()
    # 0.9 of the bandwidth is 1.11 of the time.
    report(benchmark, ours, theirs, "two np.copyto", 1.11)


@pytest.mark.skipif(sys.platform != "linux", reason="path= needs Linux")
def test_path_against_memory(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    records = on_a_page(4096 * 64).view("V64")
    out = np.zeros_like(records)
    shared, alone = RingBuffer(8192, "V64", path=tmp_path / "ring"), RingBuffer(8192, "V64")

    def turn(ring: RingBuffer) -> Callable[[], None]:
        def work() -> None:
            for _ in range(200):
                assert ring.push_many(records) == 4096
                assert len(ring.pop_many(4096, out)) == 4096

        return work

    # 0.9 of the rate is 1.11 of the time.
    report(benchmark, turn(shared), turn(alone), "a ring in memory", 1.11)


def nothing(record: object) -> object:
    """What a push is compared with."""
    return None


def together(*works: Callable[[], object]) -> float:
    """Run each in a thread, on a processor of its own where there are enough.

    Returns the seconds that the first one took.
    """
    start = threading.Barrier(len(works))
    took = [0.0] * len(works)
    failures: list[BaseException] = []
    processors = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []

    def run(number: int) -> None:
        try:
            if len(processors) >= len(works):
                os.sched_setaffinity(0, {processors[number]})
            start.wait()
            took[number] = seconds(works[number])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    return took[0]


if FREE_THREADED:
    COUNT = 400_000

    def pusher(ring: RingBuffer) -> Callable[[], None]:
        push = ring.producer().try_push

        def work() -> None:
            for number in range(COUNT):
                while not push(number):
                    pass

        return work

    def measure(
        benchmark: BenchmarkFixture,
        ours: Callable[[], float],
        theirs: Callable[[], float],
        yardstick: str,
        limit: float,
    ) -> None:
        """`ours` and `theirs` tell the seconds for COUNT records."""
        if benchmark.disabled:
            benchmark(ours)
            return
        benchmark.pedantic(ours, rounds=3)
        theirs()
        pairs = [(ours(), theirs()) for _ in range(ROUNDS)]
        measured = statistics.median(a / b for a, b in pairs)
        rate = COUNT / statistics.median(a for a, _ in pairs) / 1e6
        benchmark.extra_info.update(
            yardstick=yardstick,
            ratio=round(measured, 3),
            limit=limit,
            million_a_second=round(rate, 1),
        )
        print(
            f"\n{measured:.2f} times {yardstick}, at most {limit}; {rate:.1f} million a second "
            "by each thread that pushes"
        )
        assert measured <= limit

    def one_alone() -> float:
        return together(pusher(RingBuffer(COUNT, "i8")))

    def test_one_thread_pushes_and_another_takes_batches(benchmark: BenchmarkFixture) -> None:
        def ours() -> float:
            ring = RingBuffer(1 << 16, "i8")

            def take() -> None:
                pop, out = ring.consumer().pop_many, np.empty(8192, "i8")
                taken = 0
                while taken < COUNT:
                    got = pop(8192, out)
                    assert not len(got) or (got[0], got[-1]) == (taken, taken + len(got) - 1)
                    taken += len(got)

            return together(pusher(ring), take)

        def theirs() -> float:
            def work() -> None:
                for number in range(COUNT):
                    while nothing(number):
                        pass

            return together(work)

        measure(benchmark, ours, theirs, "calling a function that does nothing", 2.0)

    def test_two_threads_push_into_a_ring_each(benchmark: BenchmarkFixture) -> None:
        measure(
            benchmark,
            lambda: together(pusher(RingBuffer(COUNT, "i8")), pusher(RingBuffer(COUNT, "i8"))),
            one_alone,
            "one thread alone",
            1.5,
        )

    def test_two_threads_push_into_one_ring(benchmark: BenchmarkFixture) -> None:
        def ours() -> float:
            ring = RingBuffer(2 * COUNT, "i8")
            took = together(pusher(ring), pusher(ring))
            assert len(ring) == 2 * COUNT
            return took

        # Each push moves the line of `write` from one processor to the other, which
        # takes about as long as a push: a second producer that pushes records one at a
        # time adds nothing, or little. Batches do, see below.
        measure(benchmark, ours, one_alone, "one thread alone", 4.0)

    def test_two_threads_push_batches_into_one_ring(benchmark: BenchmarkFixture) -> None:
        batch, batches = np.arange(64), COUNT // 16
        ring = RingBuffer(2 * batches * len(batch), "i8")
        # Its pages are touched before, or their faults are all that is measured.
        ring.push_many(np.zeros(ring.capacity, "i8"))
        ring.pop_many()

        def work() -> Callable[[], None]:
            push = ring.producer().push_many

            def pushing() -> None:
                for _ in range(batches):
                    assert push(batch) == len(batch)

            return pushing

        def threads(count: int) -> float:
            took = together(*(work() for _ in range(count)))
            assert len(ring.pop_many()) == count * batches * len(batch)
            return took * COUNT / (batches * len(batch))  # of as many records as `measure` counts

        measure(benchmark, lambda: threads(2), lambda: threads(1), "one thread alone", 1.5)
