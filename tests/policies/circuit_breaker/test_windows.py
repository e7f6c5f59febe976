"""CircuitBreaker: what counts as too many failures, by seconds, by calls, by their
length, and all at once.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backpressure.policies.circuit_breaker import (
    CircuitBreaker,
    State,
)
from backpressure.policies.circuit_breaker.windows import CountWindow
from backpressure.testing import FakeClock
from tests.support.circuit_breaker import Recorder, acquire, half_open, make, state_of, trip

# --- the window


def test_opens_when_the_rate_is_reached_and_not_before_min_requests() -> None:
    changes = Recorder()
    breaker = make(FakeClock(), changes)
    for _ in range(3):
        acquire(breaker).failure()
    assert state_of(breaker) is State.CLOSED  # all failed, but three calls decide nothing
    acquire(breaker).success()
    assert state_of(breaker) is State.OPEN  # 3 of 4: a success may be what makes the count
    assert changes.changes == [(State.CLOSED, State.OPEN)]
    assert "3 of 4 calls failed" in changes.reasons[0]


def test_stays_closed_just_below_the_threshold_and_opens_on_it() -> None:
    breaker = make(FakeClock(), failure_threshold=0.3, min_requests=10)
    breaker.record_many(8, 2)
    assert state_of(breaker) is State.CLOSED
    breaker.record_many(6, 4)  # 6 of 20: exactly 0.3
    assert state_of(breaker) is State.OPEN


def spread(breaker: CircuitBreaker, clock: FakeClock, seconds: float, pattern: str) -> float:
    """A call every 10 ms whose results follow the pattern, again and again; the seconds
    until the breaker opened, or all.
    """
    for step in range(round(seconds * 100)):
        permit = breaker.try_acquire()
        if permit is None:
            return step / 100
        permit.failure() if pattern[step % len(pattern)] == "F" else permit.success()
        clock.advance(0.01)
    return seconds


def test_a_share_just_above_the_threshold_has_to_last_for_half_the_interval() -> None:
    """By chance alone a share that is judged after every call exceeds the true one now
    and then.
    """
    clock = FakeClock()
    breaker = make(clock, failure_threshold=0.3, min_requests=10)
    spread(breaker, clock, 5.0, ".")
    assert state_of(breaker) is State.CLOSED
    # 35 %: over after some 4.3 s, when six sevenths of the window are of these, and
    # beyond doubt 2.5 s later.
    opened = spread(breaker, clock, 20.0, "F..F..F..F..F..F..F.")
    assert 6.0 < opened < 7.5


def test_a_callee_that_fails_right_at_the_threshold_for_one_interval_is_not_gone() -> None:
    rng = random.Random(4)
    clock = FakeClock()
    breaker = make(clock, failure_threshold=0.3, min_requests=10)
    for _ in range(50):
        spread(breaker, clock, 5.0, ".")
        spread(breaker, clock, 5.0, "".join("F" if rng.random() < 0.3 else "." for _ in range(500)))
    assert (breaker.state, breaker.metrics().trips) == (State.CLOSED, 0)


def test_a_share_far_above_the_threshold_opens_at_once() -> None:
    clock = FakeClock()
    breaker = make(clock, failure_threshold=0.3, min_requests=10)
    spread(breaker, clock, 5.0, ".")
    # All fail: four deviations of 500 calls above 0.3 is 0.38, which is reached with
    # 190 of them.
    assert 1.8 < spread(breaker, clock, 5.0, "F") < 2.1


def test_an_excess_that_went_away_meanwhile_does_not_count_as_lasting() -> None:
    clock = FakeClock()
    breaker = make(clock, failure_threshold=0.3, min_requests=10)
    spread(breaker, clock, 5.0, ".")
    spread(breaker, clock, 4.6, "F..F..F..F..F..F..F.")
    spread(breaker, clock, 2.0, ".")
    spread(breaker, clock, 4.6, "F..F..F..F..F..F..F.")
    assert state_of(breaker) is State.CLOSED


def test_the_window_rolls_by_buckets() -> None:
    clock = FakeClock()
    breaker = make(clock, min_requests=1000)
    for second in range(5):
        breaker.record_many(1, 1)
        clock.set(second + 1.0)
    # At 5.0 the calls of second 0 are gone and those of seconds 1 to 4 are not: a
    # window that was emptied as a whole would show none, and one that never rolls would
    # show ten.
    assert breaker.metrics().window_calls == 8
    clock.set(6.4)
    assert breaker.metrics().window_calls == 6
    clock.set(8.9)
    assert (breaker.metrics().window_calls, breaker.metrics().failure_rate) == (2, 0.5)
    clock.set(9.0)
    assert (breaker.metrics().window_calls, breaker.metrics().failure_rate) == (0, 0.0)


def test_old_failures_do_not_trip() -> None:
    clock = FakeClock()
    breaker = make(clock)
    breaker.record_many(0, 3)
    clock.advance(5.0)
    breaker.record_many(0, 3)
    assert state_of(breaker) is State.CLOSED
    breaker.record_many(0, 1)
    assert state_of(breaker) is State.OPEN


def test_reading_the_rate_expires_old_calls_too() -> None:
    clock = FakeClock()
    breaker = make(clock, min_requests=100)
    breaker.record_many(1, 9)
    assert breaker.metrics().failure_rate == 0.9
    clock.advance(1e9)
    assert breaker.metrics().failure_rate == 0.0


def last(breaker: CircuitBreaker) -> tuple[int, int]:
    metrics = breaker.metrics()
    return metrics.last_calls, metrics.last_failures


def test_a_window_of_calls_rolls_call_by_call_and_time_does_not_empty_it() -> None:
    clock = FakeClock()
    breaker = make(clock, window_size=10, min_requests=10, failure_threshold=0.5)
    breaker.record_many(0, 4)
    breaker.record_many(6, 0)
    clock.advance(80_000.0)
    assert (last(breaker), breaker.metrics().window_calls) == ((10, 4), 0)
    acquire(breaker).success()  # pushes the oldest failure out
    assert last(breaker) == (10, 3)
    for _ in range(3):
        acquire(breaker).failure()  # each pushes out an old one
        assert last(breaker) == (10, 3)
    acquire(breaker).failure()  # from here on they push out successes
    assert (breaker.state, last(breaker)) == (State.CLOSED, (10, 4))
    acquire(breaker).failure()
    assert state_of(breaker) is State.OPEN


def test_a_window_of_calls_opens_for_a_callee_that_is_called_rarely() -> None:
    clock = FakeClock()
    rare, by_time = make(clock, window_size=10), make(clock)
    for _ in range(4):
        acquire(rare).failure()
        acquire(by_time).failure()
        clock.advance(60.0)
    assert (rare.state, by_time.state) == (State.OPEN, State.CLOSED)


def test_whichever_window_is_the_first_opens() -> None:
    """After many good calls the last few show a failing callee long before the seconds
    do; and the other way round.
    """
    clock = FakeClock()
    changes = Recorder()
    breaker = make(clock, changes, window_size=20)
    for _ in range(1_000):
        acquire(breaker).success()
    for _ in range(9):
        acquire(breaker).failure()
    assert state_of(breaker) is State.CLOSED
    acquire(breaker).failure()
    assert (breaker.state, changes.reasons) == (
        State.OPEN,
        ["10 of 20 calls failed, threshold 0.5"],
    )

    breaker = make(clock, changes, window_size=1_000)
    breaker.record_many(1_000, 0)
    clock.advance(5.0)
    for _ in range(4):
        acquire(breaker).failure()
    assert (breaker.state, changes.reasons[1:]) == (
        State.OPEN,
        ["4 of 4 calls failed, threshold 0.5"],
    )


def test_a_success_finds_that_the_window_of_calls_is_full_enough() -> None:
    clock = FakeClock()
    breaker = make(clock, window_size=10)
    for _ in range(3):
        acquire(breaker).failure()
        clock.advance(60.0)
    assert breaker.metrics().window_calls == 0
    acquire(breaker).success()
    assert state_of(breaker) is State.OPEN  # 3 of 4


def test_a_window_of_calls_starts_afresh_with_the_circuit() -> None:
    clock = FakeClock()
    breaker = make(clock, window_size=100, half_open_requests=1)
    breaker.record_many(0, 4)
    assert last(breaker) == (4, 4)
    half_open(breaker, clock).success()
    assert (breaker.state, last(breaker)) == (State.CLOSED, (0, 0))


def test_a_window_of_calls_takes_a_million_at_once() -> None:
    clock = FakeClock()
    breaker = make(clock, window_size=100, min_requests=100)
    breaker.record_many(10**6, 0)
    breaker.record_many(10**6, 49)
    assert (breaker.state, last(breaker)) == (State.CLOSED, (100, 49))
    assert (breaker.metrics().window_calls, breaker.metrics().window_failures) == (
        2 * 10**6 + 49,
        49,
    )


@given(
    size=st.integers(1, 6),
    adds=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.booleans()), max_size=20),
)
def test_a_window_of_calls_is_the_last_so_many_results(
    size: int, adds: list[tuple[int, int, bool]]
) -> None:
    window = CountWindow(size)
    results: list[tuple[int, int]] = []
    for ok, failed, slow in adds:
        if ok + failed == 1:  # only a single result can be slow
            window.add(1, failed, int(slow))
            results.append((failed, int(slow)))
        else:
            window.add(ok + failed, failed, 0)
            results += [(0, 0)] * ok + [(1, 0)] * failed
        last = results[-size:]
        assert (
            (window.calls, window.failed, window.slow)
            == (len(last), *map(sum, zip(*last, strict=True)))
            if last
            else True
        )
    window.clear()
    assert (window.calls, window.failed, window.slow) == (0, 0, 0)


# --- successes, which take no lock


def test_successes_without_a_lock_count_against_later_failures() -> None:
    breaker = make(FakeClock())
    for _ in range(10):
        acquire(breaker).success()
    for _ in range(9):
        acquire(breaker).failure()
    assert state_of(breaker) is State.CLOSED  # 9 of 19
    acquire(breaker).failure()
    assert state_of(breaker) is State.OPEN


def test_a_success_after_few_failures_may_still_trip() -> None:
    clock = FakeClock()
    breaker = make(clock)
    work = breaker(int)
    breaker.record_many(4, 0)
    clock.advance(2.5)
    breaker.record_many(0, 3)
    clock.advance(
        2.5
    )  # the successes are out of the window: three failed calls, and one more makes enough
    assert state_of(breaker) is State.CLOSED
    work()
    assert state_of(breaker) is State.OPEN


def test_a_success_finds_that_the_rate_rose_as_others_left_the_window() -> None:
    clock = FakeClock()
    breaker = make(clock)
    work = breaker(int)
    breaker.record_many(6, 0)
    clock.advance(2.5)
    breaker.record_many(0, 5)
    work()
    clock.advance(2.5)
    assert breaker.metrics().window_failures == 5
    assert state_of(breaker) is State.CLOSED  # 5 of 6, but nothing happens by itself
    work()
    assert state_of(breaker) is State.OPEN


# --- slow calls


def test_slow_calls_trip_where_they_are_watched() -> None:
    clock = FakeClock()
    changes = Recorder()
    breaker = make(clock, changes, slow_call_duration=1.0, slow_call_rate_threshold=0.5)
    acquire(breaker).success(latency=0.99)
    acquire(breaker).success(latency=0.1)
    acquire(breaker).success(latency=1.0)
    permit = acquire(breaker)
    clock.advance(1.5)
    permit.success()  # no latency given: the time since the permit
    assert state_of(breaker) is State.OPEN
    assert "2 of 4 calls were slow" in changes.reasons[0]
    assert breaker.metrics().slow == 2


def test_slow_probes_reopen() -> None:
    clock = FakeClock()
    breaker = make(clock, slow_call_duration=1.0, slow_call_rate_threshold=0.5)
    trip(breaker)
    half_open(breaker, clock).success(latency=2.0)
    acquire(breaker).success(latency=2.0)
    assert state_of(breaker) is State.OPEN


def test_slow_calls_are_off_by_default() -> None:
    breaker = make(FakeClock())
    for _ in range(100):
        acquire(breaker).success(latency=1e9)
    assert state_of(breaker) is State.CLOSED
    assert breaker.metrics().slow == 0


# --- record_many


def test_record_many_trips_only_a_closed_breaker() -> None:
    clock = FakeClock()
    breaker = make(clock)
    breaker.record_many(0, 4)
    assert state_of(breaker) is State.OPEN
    breaker.record_many(0, 100)
    half_open(breaker, clock)
    breaker.record_many(0, 100)
    assert state_of(breaker) is State.HALF_OPEN
    breaker.record_many(100, 0)
    assert state_of(breaker) is State.HALF_OPEN
    assert (breaker.metrics().succeeded, breaker.metrics().failed) == (100, 204)


def test_record_many_of_nothing_decides_nothing() -> None:
    clock = FakeClock()
    breaker = make(clock)
    breaker.record_many(4, 0)
    clock.advance(1.0)
    breaker.record_many(1, 3)
    clock.advance(4.0)  # leaves 3 of 4 failed, but no result says so
    breaker.record_many(0, 0)
    assert state_of(breaker) is State.CLOSED


@pytest.mark.parametrize("counts", [(-1, 0), (0, -1)])
def test_record_many_refuses_negative_counts(counts: tuple[int, int]) -> None:
    breaker = make(FakeClock())
    before = breaker.metrics()
    with pytest.raises(ValueError, match="0 or more"):
        breaker.record_many(*counts)
    assert breaker.metrics() == before
