"""One record with fields in and out of a RingBuffer, beside one int: a tick of a
market, in each of the forms in which a program has it.

Only the calls are measured: the ring is emptied and filled by arrays, outside of what
counts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from ringbuf import RingBuffer

COUNT = 20_000
ROUNDS = 25
TICK = np.dtype([("time", "i8"), ("price", "f8"), ("size", "u4"), ("side", "?"), ("name", "S8")])
EQUAL = np.dtype(TICK.descr)
ROW = (1_764_500_000_000_000_000, 187.25, 300, True, b"ACME")


def view_of(rows: Any) -> memoryview:
    return memoryview(rows)


FORMS: dict[str, tuple[Callable[[], Any], float]] = {
    "void": (lambda: np.array([ROW], TICK)[0], 2.0),
    "void of an equal dtype": (lambda: np.array([ROW], EQUAL)[0], 2.0),
    "one row": (lambda: np.array([ROW], TICK), 2.0),
    "memoryview": (lambda: view_of(np.array([ROW], TICK)), 2.0),
    "tuple": (lambda: ROW, 10.0),
}


def seconds(call: Callable[[Any], object], argument: Any) -> float:
    start = time.perf_counter()
    for _ in range(COUNT):
        call(argument)
    return time.perf_counter() - start


def seconds_without(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    for _ in range(COUNT):
        call()
    return time.perf_counter() - start


def report(
    benchmark: BenchmarkFixture,
    ours: Callable[[], float],
    theirs: Callable[[], float],
    yardstick: str,
    limit: float,
) -> None:
    """`ours` and `theirs` tell the seconds that counted."""
    benchmark(ours)
    theirs()
    if benchmark.disabled:
        return
    measured = statistics.median(ours() / theirs() for _ in range(ROUNDS))
    benchmark.extra_info.update(yardstick=yardstick, ratio=round(measured, 3), limit=limit)
    print(f"\n{measured:.2f} times {yardstick}, at most {limit}")
    assert measured <= limit


def ring_of_ints() -> tuple[RingBuffer, np.ndarray[Any, Any]]:
    return RingBuffer(COUNT, "i8"), np.empty(COUNT, "i8")


@pytest.mark.parametrize("form", FORMS)
def test_try_push(benchmark: BenchmarkFixture, form: str) -> None:
    make, limit = FORMS[form]
    row = make()
    ring, out = RingBuffer(COUNT, TICK), np.empty(COUNT, TICK)
    ints, int_out = ring_of_ints()

    def ours() -> float:
        taken = seconds(ring.try_push, row)
        assert len(ring.pop_many(out=out)) == COUNT
        return taken

    def theirs() -> float:
        taken = seconds(ints.try_push, 5)
        assert len(ints.pop_many(out=int_out)) == COUNT
        return taken

    ours()
    assert out[0].item() == out[-1].item() == ROW
    report(benchmark, ours, theirs, "try_push of an int64", limit)


def test_try_pop(benchmark: BenchmarkFixture) -> None:
    ring, rows = RingBuffer(COUNT, TICK), np.array([ROW] * COUNT, TICK)
    ints, numbers = RingBuffer(COUNT, "i8"), np.arange(COUNT)

    def ours() -> float:
        assert ring.push_many(rows) == COUNT
        taken = seconds_without(ring.try_pop)
        assert ring.try_pop() is None
        return taken

    def theirs() -> float:
        assert ints.push_many(numbers) == COUNT
        taken = seconds_without(ints.try_pop)
        assert ints.try_pop() is None
        return taken

    ring.push_many(rows[:1])
    assert ring.try_pop().item() == ROW
    report(benchmark, ours, theirs, "try_pop of an int64", 3.0)


def test_rows_that_are_kept(benchmark: BenchmarkFixture) -> None:
    """As a consumer does that gathers them: none gives its memory back."""
    ring, rows = RingBuffer(COUNT, TICK), np.array([ROW] * COUNT, TICK)
    ints, numbers = RingBuffer(COUNT, "i8"), np.arange(COUNT)

    def kept(ring: RingBuffer, records: np.ndarray[Any, Any]) -> float:
        assert ring.push_many(records) == COUNT
        pop = ring.try_pop
        start = time.perf_counter()
        got = [pop() for _ in range(COUNT)]
        taken = time.perf_counter() - start
        assert got[-1] == records[-1]
        return taken

    report(
        benchmark,
        lambda: kept(ring, rows),
        lambda: kept(ints, numbers),
        "ints that are kept",
        4.0,
    )
