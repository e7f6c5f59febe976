"""RateWindow against the list of all events, with time that jumps, stands still and
goes back, and under threads.
"""

from __future__ import annotations

import inspect
import math
import pickle
import random
import threading
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ringbuf._meters.rate_window import RateWindow
from tests.support.models import share_and_proof
from tests.support.threads import run_threads

SECOND = 1_000_000_000
#: The least width of a bucket.
MS = 1_000_000
#: Times reach this far to both sides of 0, in ns, less a bucket.
REACH = 2**62


class Model:
    """Every event that was ever counted, and the window as its docstring defines it."""

    def __init__(self, width: int, buckets: int) -> None:
        self.width = width
        self.buckets = buckets
        self.events: list[tuple[int, int]] = []
        self.earliest: int | None = None

    def see(self, now: int) -> None:
        self.earliest = now if self.earliest is None else min(now, self.earliest)

    def add(self, now: int, n: int) -> None:
        self.events.append((now, n))

    def count(self, now: int) -> Fraction:
        self.see(now)
        assert self.earliest is not None
        newest = now // self.width
        oldest = newest - self.buckets
        whole = sum(n for at, n in self.events if oldest < at // self.width <= newest)
        part = sum(n for at, n in self.events if at // self.width == oldest)
        if part == 0:
            return Fraction(whole)
        # Evenly spread from the bucket's start, or from the first use if that lies in
        # it, to its end.
        end = (oldest + 1) * self.width
        start = max(oldest * self.width, self.earliest)
        inside = end - max(start, now - self.buckets * self.width)
        return whole + Fraction(part * inside, end - start)

    def rate(self, now: int) -> Fraction:
        count = self.count(now)
        assert self.earliest is not None
        span = min(now - self.earliest, self.buckets * self.width)
        return count * SECOND / max(span, self.width)


shapes = st.tuples(
    st.one_of(
        st.integers(MS, MS + 3),
        st.sampled_from([2**20, 2**20 + 1, 2**21 - 1, SECOND, 3600 * SECOND]),
    ),
    st.one_of(st.integers(1, 5), st.integers(6, 40), st.sampled_from([14, 15, 30, 31])),
)


class WindowMachine(RuleBasedStateMachine):
    """Adds and reads in any order; samples may be late by up to a window, and far later
    ones must do no harm.
    """

    @initialize(
        shape=shapes, now=st.one_of(st.integers(-50, 50), st.integers(-REACH // 2, REACH // 4))
    )
    def make(self, shape: tuple[int, int], now: int) -> None:
        width, buckets = shape
        self.window = RateWindow(width * buckets / SECOND, buckets)
        assert self.window.seconds == width * buckets / SECOND
        self.model = Model(width, buckets)
        self.now = now

    @property
    def span(self) -> int:
        return self.model.width * self.model.buckets

    @rule(n=st.integers(0, 3))
    def add(self, n: int) -> None:
        self.model.see(self.now)
        assert self.window.add_at(self.now, n) is True
        self.model.add(self.now, n)

    @rule(n=st.integers(0, 3), share=st.fractions(0, 1, max_denominator=12))
    def add_late(self, n: int, share: Fraction) -> None:
        then = self.now - math.floor(share * self.span)
        self.model.see(then)
        assert self.window.add_at(then, n) is True
        self.model.add(then, n)

    @rule(n=st.integers(0, 3), behind=st.integers(1, 500))
    def add_far_too_late(self, n: int, behind: int) -> None:
        then = self.now - self.span - self.model.width * behind
        self.model.see(then)
        if self.window.add_at(then, n):
            self.model.add(then, n)

    def go_on(self, step: int) -> None:
        if self.now + step < REACH - self.model.width:
            self.now += step

    @rule(buckets=st.fractions(0, 3, max_denominator=12))
    def time_goes_on(self, buckets: Fraction) -> None:
        self.go_on(math.floor(buckets * self.model.width))

    @rule(windows=st.fractions(0, 3, max_denominator=12))
    def time_goes_on_for_windows(self, windows: Fraction) -> None:
        self.go_on(math.floor(windows * self.span))

    @rule(
        laps=st.one_of(st.integers(0, 40).map(lambda power: 2**power), st.integers(0, 2**40)),
        offset=st.integers(-2, 2),
    )
    def time_jumps_far(self, laps: int, offset: int) -> None:
        size = max(16, 1 << (self.model.buckets + 1).bit_length())
        self.go_on(max(0, (laps * size + offset) * self.model.width))

    @rule(back=st.fractions(0, 1, max_denominator=12))
    def read_a_bucket_late(self, back: Fraction) -> None:
        then = self.now - math.floor(back * self.model.width)
        assert self.window.count_at(then) == math.floor(self.model.count(then))

    @invariant()
    def counts_and_rates_are_those_of_the_model(self) -> None:
        if not hasattr(self, "window"):
            return
        count, rate = self.model.count(self.now), self.model.rate(self.now)
        assert self.window.count_at(self.now) == math.floor(count)
        assert self.window.rate_at(self.now) == pytest.approx(float(rate), rel=1e-12)


TestWindowMachine, TestWindowMachineInFull = share_and_proof(WindowMachine, examples=150, steps=40)


# Time


def test_a_pause_of_any_length_makes_no_old_bucket_new() -> None:
    for width, buckets, size in ((MS, 1, 16), (MS, 14, 16), (2**20, 15, 32), (SECOND, 60, 64)):
        window = RateWindow(width * buckets / SECOND, buckets)
        start = (4 * size - REACH // width) * width
        for bucket in range(size):
            assert window.add_at(start + bucket * width, 1)
        pause = 2 * size * width
        while start + 2 * pause < REACH:
            for bucket in range(size):
                assert window.count_at(start + pause + bucket * width) == 0, (pause, bucket)
            pause *= 2
        for bucket in range(size):
            assert window.add_at(start + pause + bucket * width)
            assert window.count_at(start + pause + bucket * width) == min(bucket, buckets) + 1


def test_time_that_stands_still_keeps_everything() -> None:
    window = RateWindow(1, 10)
    for _ in range(1_000):
        assert window.add_at(5 * SECOND)
    assert window.count_at(5 * SECOND) == 1_000
    assert window.rate_at(5 * SECOND) == 10_000.0


def test_a_clock_that_goes_far_back_finds_an_empty_window_and_recovers() -> None:
    window = RateWindow(10, 10)
    for second in range(100, 120):
        window.add_at(second * SECOND)
    assert window.count_at(50 * SECOND) == 0
    taken = sum(window.add_at(second * SECOND) for second in range(50, 60))
    assert window.count_at(59 * SECOND + SECOND - 1) == taken
    assert window.count_at(119 * SECOND) == 11
    window.add_at(120 * SECOND)
    assert window.count_at(120 * SECOND) == 11


def test_reading_expires_what_is_old() -> None:
    window = RateWindow(10, 10)
    window.add_at(0, 10)
    counts = [window.count_at(tenth * SECOND // 10) for tenth in range(0, 130, 5)]
    # In full for 10 s from the first use; then half of the bucket it lies in, then
    # nothing.
    assert counts == [10] * 21 + [5] + [0] * 4


def test_the_ends_of_time() -> None:
    window = RateWindow(10, 10)
    last = REACH // SECOND * SECOND - 1
    for now in (-last - 1, last):
        assert window.add_at(now, 3)
        assert window.count_at(now) == 3
    for now in (-last - 2, last + 1, -(2**63), 2**63 - 1):
        for call in (window.add_at, window.count_at, window.rate_at):
            with pytest.raises(OverflowError, match="now_ns must be from"):
                call(now)
    with pytest.raises(OverflowError):
        window.add_at(2**63)


def test_a_bucket_that_is_full_stays_full_and_harms_no_other() -> None:
    for seconds, buckets, size in ((1e-3, 1, 16), (0.01, 10, 16), (60, 60, 64), (1e8, 1, 16)):
        window = RateWindow(seconds, buckets)
        width = round(seconds * SECOND / buckets)
        window.add_at(0, 2**62 - 1)
        window.add_at(0, 2**62 - 1)
        limit = window.count_at(0)
        # As the module says: at least 16 billion a second.
        assert 16 * width <= limit < 2**62
        window.add_at(0, 1)
        assert window.count_at(0) == limit
        # The words before and after it, and its own in the next lap.
        for later in (-1, 1, size):
            window = RateWindow(seconds, buckets)
            window.add_at(0, 2**62 - 1)
            assert window.add_at(later * width, 5)
            assert window.count_at(later * width) == (limit + 5 if later == 1 else 5)


def test_full_buckets_add_up_beyond_a_word() -> None:
    window = RateWindow(1e8, 1000)
    width = 10**14
    for slot in range(1001):
        assert window.add_at(slot * width, 2**62 - 1)
    limit = RateWindow(1e8, 1000)
    limit.add_at(0, 2**62 - 1)
    full = limit.count_at(0)
    assert 500 * full > 2**64
    assert window.count_at(999 * width) == 1000 * full
    assert window.count_at(1000 * width + width // 2) == 1000 * full + full // 2
    assert window.rate_at(999 * width + width - 1) == pytest.approx(1000 * full / 1e8)


# Rates


def test_the_rate_before_a_whole_window_has_passed() -> None:
    window = RateWindow(10, 10)
    assert window.rate_at(100 * SECOND) == 0.0
    assert window.add_at(100 * SECOND)
    # Never over less than a bucket …
    assert window.rate_at(100 * SECOND) == window.rate_at(101 * SECOND) == 1.0
    # … then over the time since the first use …
    assert window.rate_at(104 * SECOND) == 0.25
    # … then over the window.
    assert window.add_at(112 * SECOND, 50)
    assert window.rate_at(112 * SECOND) == 5.0


def test_the_first_use_is_the_earliest_time_named() -> None:
    uses: list[Callable[[RateWindow], object]] = [
        lambda w: w.count_at(90 * SECOND),
        lambda w: w.rate_at(90 * SECOND),
        lambda w: w.add_at(90 * SECOND, 0),
    ]
    for early in uses:
        window = RateWindow(100, 10)
        window.add_at(100 * SECOND, 20)
        assert window.rate_at(100 * SECOND) == 2.0
        early(window)
        assert window.rate_at(110 * SECOND) == 1.0


@given(
    per_second=st.integers(1, 10_000),
    buckets=st.integers(1, 60),
    seconds=st.integers(1, 20),
    at=st.fractions(0, 3),
)
def test_an_even_flow_shows_its_rate_at_every_moment(
    per_second: int, buckets: int, seconds: int, at: Fraction
) -> None:
    window = RateWindow(seconds, buckets)
    now = math.floor((seconds + at * seconds) * SECOND)
    gap = SECOND // per_second
    # Only what a window can still see.
    first = max(0, now - 2 * seconds * SECOND) // gap
    step = max(1, (now // gap - first) // 500)
    for event in range(first // step, now // gap // step + 1):
        window.add_at(event * step * gap, step)
    true = SECOND / gap
    # The events come in lots of `step`: one lot at either end, and one that a bucket
    # has more than its neighbour.
    assert window.rate_at(now) == pytest.approx(true, abs=4 * step / seconds + 1e-9 * true)


@given(
    times=st.lists(st.integers(0, 10 * SECOND), min_size=1, max_size=60), buckets=st.integers(1, 50)
)
def test_until_a_window_has_passed_since_the_first_use_the_count_is_exact(
    times: list[int], buckets: int
) -> None:
    window = RateWindow(10, buckets)
    for now in times:
        window.add_at(now)
    assert window.count_at(min(times) + round(window.seconds * SECOND)) == len(times)


# The methods that read the clock


def test_bad_arguments_are_named() -> None:
    for seconds in (0, -1, math.nan, math.inf, 1.1e8):
        with pytest.raises(ValueError, match=r"seconds must be above 0 and at most 1e\+08"):
            RateWindow(seconds, 10)
    for buckets in (0, -1, 65_537, 10**30):
        with pytest.raises(ValueError, match=f"buckets must be from 1 to 65536, not {buckets}"):
            RateWindow(10, buckets)
    with pytest.raises(
        ValueError, match=r"a bucket must span at least 1 ms, and 0\.009 s are too few for 10"
    ):
        RateWindow(0.009, 10)
    wrong: Any
    for wrong in ("10", None, True, np.timedelta64(10, "ms")):
        with pytest.raises(TypeError, match="seconds must be a number"):
            RateWindow(wrong, 10)
    for wrong in (10.0, "10", None, True):
        with pytest.raises(TypeError, match="buckets must be an int"):
            RateWindow(10, wrong)
    window = RateWindow(10, 10)
    adds: list[Callable[[int], bool]] = [window.add, lambda n: window.add_at(0, n)]
    for add in adds:
        for n in (-1, 2**62, 10**30):
            with pytest.raises(ValueError, match=f"n must be from 0 to {2**62 - 1}, not {n}"):
                add(n)
        with pytest.raises(TypeError, match="n must be an int"):
            add(1.5)  # type: ignore[arg-type]
    for call in (window.add_at, window.count_at, window.rate_at):
        with pytest.raises(TypeError, match="integer"):
            call(0.5)  # type: ignore[arg-type]
    assert window.count_at(0) == 0


def test_it_says_what_it_is() -> None:
    window = RateWindow(seconds=1, buckets=3)
    assert window.buckets == 3
    assert window.seconds == 0.999999999
    assert repr(window) == "RateWindow(seconds=0.999999999, buckets=3)"
    assert RateWindow(66, 65_536).buckets == 65_536
    with pytest.raises(TypeError, match="live shared state"):
        pickle.dumps(window)


def test_every_timed_method_has_its_twin() -> None:
    names = {name for name, _ in inspect.getmembers(RateWindow) if not name.startswith("_")}
    timeless = {"seconds", "buckets"}
    timed = {name for name in names if not name.endswith("_at")} - timeless
    assert {f"{name}_at" for name in timed} == names - timed - timeless


def test_the_methods_with_the_own_clock() -> None:
    window = RateWindow(3600, 10)
    assert window.add()
    assert window.add(9)
    assert window.count() == 10
    assert window.rate() == 10 / 360


# Threads


@pytest.mark.threads
def test_threads_that_turn_the_same_buckets_over_lose_no_count() -> None:
    buckets, laps, threads = 14, 60, 4
    size = 16
    window = RateWindow(buckets / 1000, buckets)
    barrier = threading.Barrier(threads)
    totals = [[0] * laps for _ in range(threads)]
    seen: list[int] = []

    def worker(which: int) -> Callable[[], None]:
        def body() -> None:
            rng = random.Random(which)
            for lap in range(laps):
                barrier.wait()
                # Everyone finds the words of the lap before, and makes them anew
                # together with the others.
                slots = [lap * size + slot for slot in range(buckets)] * 3
                rng.shuffle(slots)
                for slot in slots:
                    n = rng.randrange(4)
                    assert window.add_at(slot * MS, n)
                    totals[which][lap] += n
                barrier.wait()
                if which == 0:
                    seen.append(window.count_at((lap * size + buckets - 1) * MS))

        return body

    run_threads([worker(which) for which in range(threads)])
    assert seen == [sum(totals[which][lap] for which in range(threads)) for lap in range(laps)]


@pytest.mark.threads
def test_threads_on_the_real_clock_lose_no_count() -> None:
    window = RateWindow(1_000, 50_000)
    reads: list[int] = []
    done = threading.Event()

    def add() -> None:
        for _ in range(10_000):
            assert window.add()

    def read() -> None:
        while not done.is_set():
            reads.append(window.count())

    def add_and_end() -> None:
        add()
        done.set()

    run_threads([add, add, add_and_end, read])
    assert window.count() == 30_000
    assert reads == sorted(reads)


def test_a_reader_among_adders_sees_between_the_counts_before_and_after() -> None:
    window = RateWindow(40 / 1000, 40)
    added = [0, 0]
    done = threading.Event()

    def adder(which: int) -> Callable[[], None]:
        def body() -> None:
            rng = random.Random(which)
            for _ in range(5_000):
                window.add_at(rng.randrange(40 * MS))
                added[which] += 1
            done.set()

        return body

    def reader() -> None:
        while not done.is_set():
            # An adder counts in the window first and in `added` afterwards, at most one
            # apart.
            before = sum(added)
            count = window.count_at(40 * MS - 1)
            assert before <= count <= sum(added) + 2

    run_threads([adder(0), adder(1), reader])
    assert window.count_at(40 * MS - 1) == 10_000
