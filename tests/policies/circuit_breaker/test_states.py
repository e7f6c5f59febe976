"""CircuitBreaker: each rule by itself, and threads. test_circuit_breaker_model.py has the random histories."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import itertools
import logging
import math
import random
import sys
import threading
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backpressure.base.errors import CircuitOpenError, ConfigError
from backpressure.policies.circuit_breaker import (
    CircuitBreaker,
    CircuitBreakerConfig,
    Permit,
    State,
    fast_path,
)
from backpressure.policies.circuit_breaker.fast_path import Turnstile
from backpressure.policies.circuit_breaker.windows import CountWindow
from backpressure.testing import FakeClock
from tests.support.threads import PATIENCE, background, in_thread, run_threads


class Recorder:
    """An `on_change` that keeps what it was told."""

    def __init__(self) -> None:
        self.changes: list[tuple[State, State]] = []
        self.reasons: list[str] = []

    def __call__(self, old: State, new: State, reason: str) -> None:
        self.changes.append((old, new))
        self.reasons.append(reason)


def make(
    clock: FakeClock,
    on_change: Callable[[State, State, str], object] | None = None,
    **fields: object,
) -> CircuitBreaker:
    """A breaker without jitter, so that open times are exact; `fields` override its small config."""
    small: dict[str, object] = {
        "failure_threshold": 0.5,
        "reset_timeout": 8.0,
        "half_open_requests": 4,
        "monitoring_interval": 5.0,
        "min_requests": 4,
        "reset_timeout_jitter": 0.0,
        "probe_lease": 3.0,
        "reset_timeout_multiplier": 2.0,
        "max_reset_timeout": 80.0,
    }
    config = CircuitBreakerConfig(**{**small, **fields})  # type: ignore[arg-type]
    return CircuitBreaker(config, clock=clock, on_change=on_change)


def acquire(breaker: CircuitBreaker) -> Permit:
    permit = breaker.try_acquire()
    assert permit is not None
    return permit


def trip(breaker: CircuitBreaker) -> None:
    """From CLOSED to OPEN."""
    for _ in range(breaker.config.min_requests):
        acquire(breaker).failure()
    assert breaker.state is State.OPEN


def half_open(breaker: CircuitBreaker, clock: FakeClock) -> Permit:
    """From OPEN to HALF_OPEN; the first probe."""
    clock.advance(breaker.retry_after())
    permit = acquire(breaker)
    assert breaker.state is State.HALF_OPEN
    return permit


# --- config


def test_defaults_are_those_of_the_design() -> None:
    config = CircuitBreakerConfig()
    assert (config.failure_threshold, config.reset_timeout, config.half_open_requests) == (
        0.3,
        30.0,
        20,
    )
    assert (config.monitoring_interval, config.min_requests) == (5.0, 10)
    assert (config.slow_call_duration, config.window_size, config.ramp_up_time) == (None, None, 0.0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("failure_threshold", 0.0),
        ("failure_threshold", 1.01),
        ("failure_threshold", math.nan),
        ("failure_threshold", "0.5"),
        ("reset_timeout", 0.0),
        ("reset_timeout", math.inf),
        ("half_open_requests", 0),
        ("half_open_requests", 2.0),
        ("monitoring_interval", -1.0),
        ("min_requests", True),
        ("slow_call_duration", 0.0),
        ("slow_call_rate_threshold", 0.0),
        ("reset_timeout_multiplier", 0.9),
        ("max_reset_timeout", 29.9),
        ("reset_timeout_jitter", 1.0),
        ("probe_lease", 0.0),
        ("window_size", 9),  # fewer than min_requests could never decide
        ("window_size", 20.0),
        ("ramp_up_time", -0.1),
        ("ramp_up_time", math.inf),
        ("ignored_exceptions", [ValueError]),
        ("ignored_exceptions", (ValueError, "KeyError")),
    ],
)
def test_a_bad_field_is_named(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"^{field}: must be") as caught:
        CircuitBreakerConfig(**{field: value})  # type: ignore[arg-type]
    assert caught.value.field == field


def test_config_and_metrics_are_frozen() -> None:
    breaker = make(FakeClock())
    with pytest.raises(dataclasses.FrozenInstanceError):
        breaker.config.min_requests = 1  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        breaker.metrics().admitted = 1  # type: ignore[misc]


# --- the window


def test_opens_when_the_rate_is_reached_and_not_before_min_requests() -> None:
    changes = Recorder()
    breaker = make(FakeClock(), changes)
    for _ in range(3):
        acquire(breaker).failure()
    assert breaker.state is State.CLOSED  # all failed, but three calls decide nothing
    acquire(breaker).success()
    assert breaker.state is State.OPEN  # 3 of 4: a success may be what makes the count
    assert changes.changes == [(State.CLOSED, State.OPEN)]
    assert "3 of 4 calls failed" in changes.reasons[0]


def test_stays_closed_just_below_the_threshold_and_opens_on_it() -> None:
    breaker = make(FakeClock(), failure_threshold=0.3, min_requests=10)
    breaker.record_many(8, 2)
    assert breaker.state is State.CLOSED
    breaker.record_many(6, 4)  # 6 of 20: exactly 0.3
    assert breaker.state is State.OPEN


def spread(breaker: CircuitBreaker, clock: FakeClock, seconds: float, pattern: str) -> float:
    """A call every 10 ms whose results follow the pattern, again and again; the seconds until the breaker opened, or all."""
    for step in range(round(seconds * 100)):
        permit = breaker.try_acquire()
        if permit is None:
            return step / 100
        permit.failure() if pattern[step % len(pattern)] == "F" else permit.success()
        clock.advance(0.01)
    return seconds


def test_a_share_just_above_the_threshold_has_to_last_for_half_the_interval() -> None:
    """By chance alone a share that is judged after every call exceeds the true one now and then."""
    clock = FakeClock()
    breaker = make(clock, failure_threshold=0.3, min_requests=10)
    spread(breaker, clock, 5.0, ".")
    assert breaker.state is State.CLOSED
    # 35 %: over after some 4.3 s, when six sevenths of the window are of these, and beyond doubt 2.5 s later.
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
    # All fail: four deviations of 500 calls above 0.3 is 0.38, which is reached with 190 of them.
    assert 1.8 < spread(breaker, clock, 5.0, "F") < 2.1


def test_an_excess_that_went_away_meanwhile_does_not_count_as_lasting() -> None:
    clock = FakeClock()
    breaker = make(clock, failure_threshold=0.3, min_requests=10)
    spread(breaker, clock, 5.0, ".")
    spread(breaker, clock, 4.6, "F..F..F..F..F..F..F.")
    spread(breaker, clock, 2.0, ".")
    spread(breaker, clock, 4.6, "F..F..F..F..F..F..F.")
    assert breaker.state is State.CLOSED


def test_the_window_rolls_by_buckets() -> None:
    clock = FakeClock()
    breaker = make(clock, min_requests=1000)
    for second in range(5):
        breaker.record_many(1, 1)
        clock.set(second + 1.0)
    # At 5.0 the calls of second 0 are gone and those of seconds 1 to 4 are not: a window that was emptied
    # as a whole would show none, and one that never rolls would show ten.
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
    assert breaker.state is State.CLOSED
    breaker.record_many(0, 1)
    assert breaker.state is State.OPEN


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
    assert breaker.state is State.OPEN


def test_a_window_of_calls_opens_for_a_callee_that_is_called_rarely() -> None:
    clock = FakeClock()
    rare, by_time = make(clock, window_size=10), make(clock)
    for _ in range(4):
        acquire(rare).failure()
        acquire(by_time).failure()
        clock.advance(60.0)
    assert (rare.state, by_time.state) == (State.OPEN, State.CLOSED)


def test_whichever_window_is_the_first_opens() -> None:
    """After many good calls the last few show a failing callee long before the seconds do; and the other way round."""
    clock = FakeClock()
    changes = Recorder()
    breaker = make(clock, changes, window_size=20)
    for _ in range(1_000):
        acquire(breaker).success()
    for _ in range(9):
        acquire(breaker).failure()
    assert breaker.state is State.CLOSED
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
    assert breaker.state is State.OPEN  # 3 of 4


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


# --- without the lock


def test_calls_that_cannot_change_the_state_take_no_lock() -> None:
    breaker = make(FakeClock())

    @breaker
    def work() -> int:
        return 7

    got: list[object] = []

    def use() -> None:
        got.append(work())
        with breaker:
            pass
        acquire(breaker).success()
        got.append(breaker.call(int, "7"))

    with breaker._lock:  # would hang if it were taken
        in_thread(use)
    assert got == [7, 7]
    metrics = breaker.metrics()
    assert (metrics.admitted, metrics.succeeded, metrics.window_calls) == (4, 4, 4)


@pytest.mark.parametrize("form", ["decorator", "call", "with", "permit"])
def test_every_call_is_counted_however_many(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_path, "_TOKENS", 256)
    clock = FakeClock()
    breaker = make(clock)
    work = breaker(int)

    def one() -> None:
        if form == "decorator":
            work()
        elif form == "call":
            breaker.call(int)
        elif form == "with":
            with breaker:
                pass
        else:
            acquire(breaker).success()

    for done in range(1, 1001):
        one()
        if done in (1, 255, 256, 257, 513, 1000):
            metrics = breaker.metrics()
            assert (metrics.admitted, metrics.succeeded, metrics.window_calls) == (done, done, done)
    clock.advance(4.5)
    one()
    assert breaker.metrics().window_calls == 1001
    clock.advance(0.5)
    one()
    assert (
        breaker.metrics().window_calls == 2
    )  # the thousand are five seconds old, though none came in between


def test_successes_without_a_lock_count_against_later_failures() -> None:
    breaker = make(FakeClock())
    for _ in range(10):
        acquire(breaker).success()
    for _ in range(9):
        acquire(breaker).failure()
    assert breaker.state is State.CLOSED  # 9 of 19
    acquire(breaker).failure()
    assert breaker.state is State.OPEN


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
    assert breaker.state is State.CLOSED
    work()
    assert breaker.state is State.OPEN


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
    assert breaker.state is State.CLOSED  # 5 of 6, but nothing happens by itself
    work()
    assert breaker.state is State.OPEN


def test_the_decorator_reports_to_the_state_it_was_admitted_by() -> None:
    clock = FakeClock()
    breaker = make(clock)

    @breaker
    def work(error: Exception | None) -> None:
        trip(breaker)
        half_open(breaker, clock).success()
        for _ in range(3):
            acquire(breaker).success()
        assert breaker.state is State.CLOSED
        if error is not None:
            raise error

    work(None)
    with pytest.raises(DownError):
        work(DownError())
    assert (breaker.metrics().late, breaker.metrics().window_calls) == (2, 0)


def test_the_decorator_sees_a_coroutine_that_a_plain_function_returns() -> None:
    breaker = make(FakeClock())

    async def get() -> int:
        await asyncio.sleep(0)
        raise DownError

    @breaker
    def start() -> object:
        return get()

    async def main() -> None:
        pending = start()
        assert breaker.metrics().window_calls == 0
        with pytest.raises(DownError):
            await pending  # type: ignore[misc]

    asyncio.run(main())
    assert (breaker.metrics().succeeded, breaker.metrics().failed) == (0, 1)


def test_a_success_that_slips_by_while_a_failure_is_judged_counts_in_the_verdict(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three successes come between the moment at which the failure has counted all, and that from which none gets by."""
    breaker = make(FakeClock(), failure_threshold=0.25)
    others = [acquire(breaker) for _ in range(3)]
    shut = Turnstile.shut

    def late(self: Turnstile) -> tuple[int, int]:
        while others:
            others.pop().success()
        return shut(self)

    failing = acquire(breaker)
    monkeypatch.setattr(Turnstile, "shut", late)
    failing.failure()
    assert (breaker.metrics().succeeded, breaker.metrics().failed) == (3, 1)
    assert (
        breaker.state is State.OPEN
    )  # in whatever order they came, the last of the four was the one that trips


def test_a_snapshot_shows_no_more_successes_than_admissions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where a whole call goes by between the looks at the two piles."""
    breaker = make(FakeClock())

    class Pile(list):  # type: ignore[type-arg]
        def __len__(self) -> int:
            length = super().__len__()
            if busy:
                busy.clear()
                acquire(breaker).success()
            return length

    breaker._turnstile.admissions = Pile(breaker._turnstile.admissions)
    breaker._turnstile.successes = Pile(breaker._turnstile.successes)
    for _ in range(3):
        busy = [True]
        metrics = breaker.metrics()
        assert metrics.succeeded <= metrics.admitted
        assert not busy
    assert breaker.metrics().succeeded == breaker.metrics().admitted == 3


@pytest.mark.parametrize("tokens", [1, 3, 1024])
def test_threads_lose_no_count_and_find_every_change(
    tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls from four threads, while a fifth takes snapshots, resets, and lets failures in."""
    monkeypatch.setattr(fast_path, "_TOKENS", tokens)
    clock = FakeClock()
    breaker = make(clock, min_requests=50, failure_threshold=1.0)
    work = breaker(int)
    threads, calls = 4, 3_000
    over = threading.Event()
    wrong: list[object] = []

    def hammer(number: int) -> None:
        for _ in range(calls):
            if number % 2:
                work()
            else:
                acquire(breaker).success()

    def disturb() -> None:
        for turn in itertools.count():
            if over.is_set():
                return
            metrics = breaker.metrics()
            if (
                metrics.succeeded > metrics.admitted
                or metrics.window_calls > metrics.succeeded + metrics.failed
            ):
                wrong.append(metrics)
            clock.advance(0.1)
            if turn % 3 == 0:
                breaker.reset()
            if turn % 5 == 0:
                breaker.call(int)
                with pytest.raises(DownError):
                    breaker.call(fail, DownError())

    with background(disturb, stop=over):
        run_threads([partial(hammer, number) for number in range(threads)])
    assert wrong == []
    metrics = breaker.metrics()
    assert metrics.state is State.CLOSED
    assert metrics.rejected == 0
    assert (
        metrics.admitted
        == metrics.succeeded + metrics.failed
        == threads * calls + 2 * metrics.failed
    )


# --- ramping up


def closed_by_probes(
    clock: FakeClock, changes: Recorder | None = None, **fields: object
) -> CircuitBreaker:
    breaker = make(clock, changes, **{"half_open_requests": 1, "ramp_up_time": 10.0, **fields})
    trip(breaker)
    half_open(breaker, clock).success()
    assert breaker.state is State.CLOSED
    return breaker


def test_a_growing_share_is_admitted_after_closing() -> None:
    clock = FakeClock()
    breaker = closed_by_probes(clock)
    admitted = []
    for second in range(12):
        before = breaker.metrics()
        share = 0.1 + 0.9 * min(second, 10) / 10.0
        assert before.admitted_share == pytest.approx(share)
        for _ in range(1_000):
            permit = breaker.try_acquire()
            if permit is not None:
                permit.success()
            clock.advance(0.001)
        admitted.append(breaker.metrics().admitted - before.admitted)
    # The mean share of each second; a lone caller's turn comes at most once in 0.09 s.
    expected = [1_000 * min(1.0, 0.1 + 0.09 * (second + 0.5)) for second in range(12)]
    assert admitted == pytest.approx(expected, abs=3)
    assert breaker.metrics().admitted_share == 1.0
    assert breaker.metrics().rejected == pytest.approx(10_000 - sum(expected[:10]), abs=30)


def test_what_is_admitted_while_ramping_is_evenly_spread() -> None:
    clock = FakeClock()
    breaker = closed_by_probes(clock)
    clock.advance(10.0 / 9.0)  # a share of 0.2
    assert breaker.try_acquire() is not None
    pattern = "".join("x" if breaker.try_acquire() is not None else "." for _ in range(30))
    assert [len(gap) for gap in pattern.split("x")] == [5, 4, 4, 4, 4, 4]


def test_a_lone_caller_that_waits_as_told_is_admitted() -> None:
    clock = FakeClock(0.1)
    breaker = closed_by_probes(clock)
    began, gaps = clock.now(), []
    while clock.now() < began + 10.0:
        acquire(breaker).success()
        gaps.append(breaker.retry_after())
        clock.advance(gaps[-1] or 0.01)
    assert gaps[0] == pytest.approx(0.9)
    assert 0.0 in gaps  # in the end its share is a whole call
    assert all(later <= gap + 1e-9 for gap, later in itertools.pairwise(gaps))
    for _ in range(1_000):
        acquire(breaker).success()


def test_retry_after_while_ramping_never_outlasts_the_ramp() -> None:
    clock = FakeClock()
    breaker = closed_by_probes(clock, ramp_up_time=10.0)
    clock.advance(9.9999)
    acquire(breaker).success()
    assert breaker.retry_after() <= 0.0001 + 1e-9


def test_failures_while_ramping_trip_as_ever() -> None:
    clock = FakeClock()
    breaker = closed_by_probes(clock)
    while breaker.state is State.CLOSED:
        permit = breaker.try_acquire()
        if permit is not None:
            permit.failure()
    assert breaker.metrics().window_failures == 4
    assert breaker.metrics().admitted_share == 0.0
    assert breaker.retry_after() == 16.0


def test_only_probes_begin_a_ramp() -> None:
    clock = FakeClock()
    breaker = make(clock, ramp_up_time=10.0)
    for _ in range(100):
        acquire(breaker).success()
    trip_by_hand = [breaker.force_open, breaker.disable]
    for command in trip_by_hand:
        command()
        breaker.reset()
        for _ in range(100):
            acquire(breaker).success()
    ramping = closed_by_probes(clock)
    acquire(ramping).success()
    assert ramping.try_acquire() is None
    ramping.reset()
    for _ in range(100):
        acquire(ramping).success()


def test_no_ramp_by_default() -> None:
    clock = FakeClock()
    breaker = closed_by_probes(clock, ramp_up_time=0.0)
    for _ in range(100):
        acquire(breaker).success()


# --- open, half-open, closed


def test_open_refuses_until_the_open_time_is_over() -> None:
    clock = FakeClock(100.0)
    changes = Recorder()
    breaker = make(clock, changes)
    trip(breaker)
    assert breaker.try_acquire() is None
    assert breaker.retry_after() == 8.0
    clock.advance(7.5)
    assert breaker.try_acquire() is None
    assert breaker.retry_after() == 0.5
    clock.advance(0.5)
    assert breaker.state is State.OPEN  # only an acquire moves it
    assert breaker.retry_after() == 0.0
    assert breaker.try_acquire() is not None
    assert breaker.state is State.HALF_OPEN
    assert changes.changes[-1] == (State.OPEN, State.HALF_OPEN)
    assert breaker.metrics().rejected == 2


def test_retry_after_is_long_enough_with_any_jitter() -> None:
    clock = FakeClock(0.1)
    for seed in range(200):
        config = CircuitBreakerConfig(reset_timeout=0.7, min_requests=1)
        breaker = CircuitBreaker(config, clock=clock, rng=random.Random(seed))
        acquire(breaker).failure()
        clock.advance(breaker.retry_after())
        assert breaker.try_acquire() is not None


def test_a_canary_goes_every_so_often_until_one_succeeds() -> None:
    clock = FakeClock()
    changes = Recorder()
    breaker = make(
        clock,
        changes,
        canary=True,
        reset_timeout=30.0,
        half_open_requests=20,
        reset_timeout_jitter=0.0,
    )
    trip(breaker)
    assert breaker.retry_after() == 30.0
    clock.advance(30.0)
    for number in range(5):
        assert breaker.retry_after() == 0.0
        canary = acquire(breaker)
        assert breaker.try_acquire() is None
        if number % 2:
            canary.failure()  # the others hang: one that is never answered holds up nothing
        assert (breaker.state, breaker.try_acquire()) == (State.OPEN, None)
        assert breaker.retry_after() == 1.5
        clock.advance(1.5)
    acquire(breaker).success()
    assert [new for _, new in changes.changes] == [State.OPEN, State.HALF_OPEN]
    assert breaker.metrics().probe_results == 1
    for _ in range(breaker.config.quorum - 1):
        acquire(breaker).success()
    assert changes.changes[2:] == [(State.HALF_OPEN, State.CLOSED)]
    assert breaker.metrics().trips == 1


def test_no_more_canaries_than_probes_within_a_reset_timeout() -> None:
    clock = FakeClock()
    breaker = make(clock, canary=True, reset_timeout=3.0, half_open_requests=7)
    trip(breaker)
    times, lost = [], []
    while clock.now() < 200.0:
        if (permit := breaker.try_acquire()) is not None:
            times.append(clock.now())
            lost.append(permit)
        clock.advance(0.013)
    assert len(times) > 300
    assert min(later - earlier for earlier, later in zip(times, times[7:], strict=False)) >= 3.0


def test_an_ignored_canary_was_none() -> None:
    clock = FakeClock()
    breaker = make(clock, canary=True)
    trip(breaker)
    clock.advance(breaker.retry_after())
    acquire(breaker).ignore()
    assert (breaker.state, breaker.retry_after()) == (State.OPEN, 0.0)
    acquire(breaker).success()
    assert breaker.state is State.HALF_OPEN


def test_a_canary_of_an_earlier_period_is_late() -> None:
    clock = FakeClock()
    breaker = make(clock, canary=True)
    trip(breaker)
    clock.advance(breaker.retry_after())
    early = acquire(breaker)
    breaker.reset()
    trip(breaker)
    early.success()
    assert (breaker.state, breaker.metrics().late) == (State.OPEN, 1)


def test_one_canary_closes_where_one_probe_decides() -> None:
    clock = FakeClock()
    changes = Recorder()
    breaker = make(clock, changes, canary=True, half_open_requests=1)
    trip(breaker)
    clock.advance(breaker.retry_after())
    acquire(breaker).success()
    assert [new for _, new in changes.changes] == [State.OPEN, State.HALF_OPEN, State.CLOSED]


def test_half_open_closes_when_enough_probes_succeed() -> None:
    clock = FakeClock()
    changes = Recorder()
    breaker = make(clock, changes)
    trip(breaker)
    probes = [half_open(breaker, clock), *(acquire(breaker) for _ in range(3))]
    assert breaker.try_acquire() is None
    for probe in probes[:3]:
        probe.success()
    assert breaker.state is State.HALF_OPEN
    probes[3].failure()  # 1 of 4 is below 0.5
    assert breaker.state is State.CLOSED
    assert changes.changes[-1] == (State.HALF_OPEN, State.CLOSED)
    assert breaker.metrics().window_calls == 0  # starts afresh


def test_half_open_reopens_as_soon_as_the_rate_can_not_pass() -> None:
    clock = FakeClock()
    breaker = make(clock)
    trip(breaker)
    probe = half_open(breaker, clock)
    probe.failure()
    assert breaker.state is State.HALF_OPEN
    acquire(breaker).failure()  # 2 of 4 would be 0.5 even if the others succeed
    assert breaker.state is State.OPEN


def test_the_quorum_is_the_smaller_of_min_requests_and_the_probes() -> None:
    clock = FakeClock()
    breaker = make(clock, min_requests=2, half_open_requests=6)
    trip(breaker)
    probes = [half_open(breaker, clock), *(acquire(breaker) for _ in range(5))]
    probes[0].success()
    assert breaker.state is State.HALF_OPEN
    probes[1].success()
    assert breaker.state is State.CLOSED
    for probe in probes[2:]:
        probe.failure()
    assert breaker.state is State.CLOSED  # their generation is over
    assert breaker.metrics().late == 4


def test_half_open_admits_no_more_probes_than_slots_in_the_whole_period() -> None:
    clock = FakeClock()
    breaker = make(clock, min_requests=4, half_open_requests=4)
    trip(breaker)
    half_open(breaker, clock).success()
    acquire(breaker).success()
    acquire(breaker).success()
    last = acquire(breaker)
    assert breaker.try_acquire() is None  # answered probes keep their slot
    assert breaker.retry_after() == 0.5  # one bucket, as the lease has longer to run
    clock.advance(2.75)
    assert breaker.retry_after() == 0.25
    last.success()
    assert breaker.state is State.CLOSED
    assert breaker.retry_after() == 0.0


def test_an_ignored_probe_gives_its_slot_back() -> None:
    clock = FakeClock()
    breaker = make(clock, half_open_requests=1)
    trip(breaker)
    probe = half_open(breaker, clock)
    for _ in range(10):
        assert breaker.try_acquire() is None
        probe.ignore()
        assert breaker.state is State.HALF_OPEN  # it was no success either
        probe = acquire(breaker)
    probe.success()
    assert breaker.state is State.CLOSED
    assert breaker.metrics().ignored == 10


def test_a_lost_probe_can_not_keep_the_breaker_half_open() -> None:
    clock = FakeClock()
    breaker = make(clock, half_open_requests=1)
    trip(breaker)
    lost = half_open(breaker, clock)
    clock.advance(2.75)
    assert breaker.try_acquire() is None
    clock.advance(0.25)
    heir = acquire(breaker)
    assert breaker.metrics().lost_probes == 1
    lost.failure()  # it lost its slot, so it decides nothing
    assert breaker.state is State.HALF_OPEN
    assert (breaker.metrics().late, breaker.metrics().probes_out) == (1, 1)
    heir.success()
    assert breaker.state is State.CLOSED


def test_a_probe_that_outlives_its_lease_still_counts_while_nobody_wants_its_slot() -> None:
    clock = FakeClock()
    breaker = make(clock, half_open_requests=1)
    trip(breaker)
    probe = half_open(breaker, clock)
    clock.advance(1000.0)
    probe.success()
    assert breaker.state is State.CLOSED


def test_a_probe_whose_permit_is_dropped_gives_its_slot_back() -> None:
    clock = FakeClock()
    breaker = make(clock, half_open_requests=1)
    trip(breaker)
    probe = half_open(breaker, clock)
    assert breaker.retry_after() == 0.5
    del probe
    assert breaker.retry_after() == 0.0
    kept = acquire(breaker)  # long before the lease is over
    assert (breaker.metrics().lost_probes, breaker.metrics().probes_out) == (1, 1)
    kept.success()
    del kept  # it was reported: no slot to give back
    assert (breaker.state, breaker.metrics().lost_probes) == (State.CLOSED, 1)


def test_a_probe_of_an_earlier_period_that_is_dropped_gives_no_slot_back() -> None:
    clock = FakeClock()
    breaker = make(clock, half_open_requests=2, min_requests=2)
    trip(breaker)
    early = half_open(breaker, clock)
    acquire(breaker).failure()
    assert breaker.state is State.OPEN
    now = half_open(breaker, clock), acquire(breaker)
    del early
    assert breaker.try_acquire() is None
    assert (breaker.metrics().probes_out, breaker.metrics().lost_probes) == (len(now), 0)


def test_a_permit_dropped_while_the_lock_is_held_takes_no_lock() -> None:
    """As a garbage collection does it that runs in the middle of a method of the breaker."""
    clock = FakeClock()
    breaker = make(clock, half_open_requests=1)
    trip(breaker)
    probes = [half_open(breaker, clock)]
    with breaker._lock:
        in_thread(probes.clear)
    assert breaker.try_acquire() is not None


# --- generations


def test_a_late_result_feeds_the_metrics_and_nothing_else() -> None:
    clock = FakeClock()
    breaker = make(clock)
    early = [acquire(breaker) for _ in range(20)]
    trip(breaker)
    for permit in early[:5]:
        permit.success()
    half_open(breaker, clock).success()
    for permit in early[5:10]:
        permit.failure()  # from CLOSED, in HALF_OPEN
    assert breaker.state is State.HALF_OPEN
    assert breaker.metrics().probe_results == 1
    for _ in range(3):
        acquire(breaker).success()
    assert breaker.state is State.CLOSED
    for permit in early[10:]:
        permit.failure()  # from the CLOSED before: same state, another generation
    metrics = breaker.metrics()
    assert (metrics.state, metrics.window_calls, metrics.late) == (State.CLOSED, 0, 20)
    assert (metrics.succeeded, metrics.failed) == (5 + 4, 4 + 5 + 10)


@pytest.mark.parametrize("first", ["success", "failure", "ignore"])
@pytest.mark.parametrize("second", ["success", "failure", "ignore"])
def test_a_second_report_does_nothing(first: str, second: str) -> None:
    breaker = make(FakeClock(), min_requests=2)
    permit = acquire(breaker)
    getattr(permit, first)()
    before = breaker.metrics()
    getattr(permit, second)()
    assert breaker.metrics() == dataclasses.replace(before, duplicates=1)


# --- the open time


def open_times(
    breaker: CircuitBreaker, clock: FakeClock, trips: int, healthy: float = 0.0
) -> list[float]:
    """Trip, close again and stay closed for `healthy` seconds, `trips` times; the open time of each."""
    times = []
    for _ in range(trips):
        trip(breaker)
        times.append(breaker.metrics().open_time)
        assert breaker.retry_after() == pytest.approx(times[-1])
        half_open(breaker, clock).success()
        for _ in range(breaker.config.quorum - 1):
            acquire(breaker).success()
        assert breaker.state is State.CLOSED
        clock.advance(healthy)
    return times


def test_the_open_time_grows_on_repeated_trips_up_to_its_cap() -> None:
    clock = FakeClock()
    breaker = make(clock, max_reset_timeout=40.0)
    assert open_times(breaker, clock, 6) == [8.0, 16.0, 32.0, 40.0, 40.0, 40.0]


def test_by_default_the_open_time_grows_by_a_quarter_up_to_twice() -> None:
    clock = FakeClock()
    breaker = CircuitBreaker(
        CircuitBreakerConfig(reset_timeout=8.0, reset_timeout_jitter=0.0), clock=clock
    )
    assert open_times(breaker, clock, 6) == [8.0, 10.0, 12.5, 15.625, 16.0, 16.0]


def test_failed_probes_lengthen_the_open_time() -> None:
    clock = FakeClock()
    breaker = make(clock)
    trip(breaker)
    for expected in (8.0, 16.0, 32.0):
        assert breaker.retry_after() == expected
        half_open(breaker, clock).failure()
        acquire(breaker).failure()
        assert breaker.state is State.OPEN


def test_a_probe_that_succeeds_among_failed_ones_starts_the_open_time_over() -> None:
    clock = FakeClock()
    breaker = make(clock)

    def probe(*succeed: bool) -> float:
        permits = [half_open(breaker, clock), *(acquire(breaker) for _ in succeed[1:])]
        for permit, ok in zip(permits, succeed, strict=True):
            permit.success() if ok else permit.failure()
        assert breaker.state is State.OPEN
        return breaker.retry_after()

    trip(breaker)
    assert [probe(False, False) for _ in range(2)] == [16.0, 32.0]
    assert [probe(True, False, False) for _ in range(2)] == [8.0, 8.0]  # it is there, if not well
    assert [probe(False, False) for _ in range(2)] == [16.0, 32.0]


def test_health_forgets_trips_one_for_each_reset_timeout() -> None:
    clock = FakeClock()
    breaker = make(clock)
    assert open_times(breaker, clock, 4) == [8.0, 16.0, 32.0, 64.0]
    assert breaker.metrics().remembered_trips == 4
    clock.advance(16.0)  # two reset timeouts of health
    assert breaker.metrics().remembered_trips == 2
    clock.advance(7.9)  # not quite a third
    assert open_times(breaker, clock, 1, healthy=1e6) == [32.0]
    assert open_times(breaker, clock, 1) == [8.0]


def test_a_long_outage_is_forgotten_as_soon_as_one_that_just_reached_the_cap() -> None:
    clock = FakeClock()
    breaker = make(clock)
    open_times(breaker, clock, 50)
    assert breaker.metrics().remembered_trips == 4  # 8 * 2**4 is beyond the cap of 80
    clock.advance(4 * 8.0)
    assert open_times(breaker, clock, 1) == [8.0]


def test_enough_health_between_trips_never_lets_the_open_time_grow() -> None:
    clock = FakeClock()
    assert open_times(make(clock), clock, 5, healthy=8.0) == [8.0] * 5


def test_a_multiplier_of_one_keeps_the_open_time() -> None:
    clock = FakeClock()
    assert open_times(make(clock, reset_timeout_multiplier=1.0), clock, 4) == [8.0] * 4


def test_jitter_spreads_the_open_time_within_its_fraction() -> None:
    first = []
    for seed in range(300):
        config = CircuitBreakerConfig(reset_timeout=10.0, reset_timeout_jitter=0.2)
        breaker = CircuitBreaker(config, clock=FakeClock(), rng=random.Random(seed))
        trip(breaker)
        first.append(breaker.retry_after())
    assert 8.0 <= min(first) < 8.2
    assert 11.8 < max(first) <= 12.0
    again = CircuitBreaker(config, clock=FakeClock(), rng=random.Random(299))
    trip(again)
    assert again.retry_after() == first[-1]  # all of the chance comes from the injected generator


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
    assert breaker.state is State.OPEN
    assert "2 of 4 calls were slow" in changes.reasons[0]
    assert breaker.metrics().slow == 2


def test_slow_probes_reopen() -> None:
    clock = FakeClock()
    breaker = make(clock, slow_call_duration=1.0, slow_call_rate_threshold=0.5)
    trip(breaker)
    half_open(breaker, clock).success(latency=2.0)
    acquire(breaker).success(latency=2.0)
    assert breaker.state is State.OPEN


def test_slow_calls_are_off_by_default() -> None:
    breaker = make(FakeClock())
    for _ in range(100):
        acquire(breaker).success(latency=1e9)
    assert breaker.state is State.CLOSED
    assert breaker.metrics().slow == 0


# --- record_many


def test_record_many_trips_only_a_closed_breaker() -> None:
    clock = FakeClock()
    breaker = make(clock)
    breaker.record_many(0, 4)
    assert breaker.state is State.OPEN
    breaker.record_many(0, 100)
    half_open(breaker, clock)
    breaker.record_many(0, 100)
    assert breaker.state is State.HALF_OPEN
    breaker.record_many(100, 0)
    assert breaker.state is State.HALF_OPEN
    assert (breaker.metrics().succeeded, breaker.metrics().failed) == (100, 204)


def test_record_many_of_nothing_decides_nothing() -> None:
    clock = FakeClock()
    breaker = make(clock)
    breaker.record_many(4, 0)
    clock.advance(1.0)
    breaker.record_many(1, 3)
    clock.advance(4.0)  # leaves 3 of 4 failed, but no result says so
    breaker.record_many(0, 0)
    assert breaker.state is State.CLOSED


@pytest.mark.parametrize("counts", [(-1, 0), (0, -1)])
def test_record_many_refuses_negative_counts(counts: tuple[int, int]) -> None:
    breaker = make(FakeClock())
    before = breaker.metrics()
    with pytest.raises(ValueError, match="0 or more"):
        breaker.record_many(*counts)
    assert breaker.metrics() == before


# --- by hand


def test_force_open_refuses_until_reset() -> None:
    clock = FakeClock()
    changes = Recorder()
    breaker = make(clock, changes)
    permit = acquire(breaker)
    breaker.force_open()
    clock.advance(1e9)
    assert breaker.try_acquire() is None
    assert breaker.retry_after() == 8.0
    permit.success()
    assert breaker.state is State.FORCED_OPEN
    breaker.reset()
    assert breaker.try_acquire() is not None
    assert changes.changes == [(State.CLOSED, State.FORCED_OPEN), (State.FORCED_OPEN, State.CLOSED)]


def test_disabled_admits_all_and_only_counts() -> None:
    breaker = make(FakeClock())
    trip(breaker)
    breaker.disable()
    for _ in range(100):
        acquire(breaker).failure()
    breaker.record_many(0, 100)
    metrics = breaker.metrics()
    assert (metrics.state, metrics.window_failures, metrics.failure_rate) == (
        State.DISABLED,
        200,
        1.0,
    )
    breaker.reset()
    acquire(breaker).failure()  # would trip if the window were still full
    assert breaker.state is State.CLOSED


def test_reset_closes_and_forgets_the_window_and_the_trips() -> None:
    clock = FakeClock()
    changes = Recorder()
    breaker = make(clock, changes)
    assert open_times(breaker, clock, 3) == [8.0, 16.0, 32.0]
    trip(breaker)
    breaker.reset()
    assert (breaker.state, breaker.metrics().window_calls) == (State.CLOSED, 0)
    assert open_times(breaker, clock, 1) == [8.0]
    told = len(changes.changes)
    acquire(breaker).failure()
    early = acquire(breaker)
    breaker.reset()  # CLOSED already: the window starts anew, and there is no news
    assert len(changes.changes) == told
    early.failure()
    assert (breaker.metrics().window_calls, breaker.metrics().late) == (0, 1)


# --- guarded calls


class DownError(Exception):
    pass


class NotFoundError(Exception):
    pass


def fail(error: BaseException) -> None:
    raise error


def test_call_reports_the_result() -> None:
    breaker = make(FakeClock(), min_requests=2)
    assert breaker.call(divmod, 7, 2) == (3, 1)
    with pytest.raises(DownError):
        breaker.call(fail, DownError())
    assert breaker.state is State.OPEN
    with pytest.raises(CircuitOpenError) as caught:
        breaker.call(divmod, 7, 2)
    assert caught.value.retry_after == 8.0
    assert (breaker.metrics().succeeded, breaker.metrics().failed) == (1, 1)


@pytest.mark.parametrize(
    "error", [NotFoundError(), KeyboardInterrupt(), asyncio.CancelledError(), SystemExit()]
)
def test_ignored_errors_count_neither_way_and_give_the_slot_back(error: BaseException) -> None:
    clock = FakeClock()
    breaker = make(clock, half_open_requests=1, ignored_exceptions=(NotFoundError,))
    with pytest.raises(type(error)):
        breaker.call(fail, error)
    assert breaker.metrics().window_calls == 0
    trip(breaker)
    clock.advance(8.0)
    for _ in range(3):
        with pytest.raises(type(error)), breaker:
            raise error
        assert breaker.state is State.HALF_OPEN
    assert breaker.metrics().ignored == 4


@pytest.mark.parametrize("watched", [None, 10.0])
@pytest.mark.parametrize("form", ["decorator", "call", "with"])
def test_errors_come_out_as_they_are(form: str, watched: float | None) -> None:
    """Nothing of how the breaker works shows in them: with the lock (where slow calls are watched) or without."""
    seen: list[BaseException | None] = []
    breaker = make(
        FakeClock(),
        lambda *change: seen.append(sys.exception()),
        min_requests=1,
        slow_call_duration=watched,
    )
    guarded = breaker(fail)

    def use(error: Exception) -> None:
        if form == "decorator":
            guarded(error)
        elif form == "call":
            breaker.call(fail, error)
        else:
            with breaker:
                fail(error)

    error = DownError()
    with pytest.raises(DownError) as caught:
        use(error)
    assert caught.value is error
    assert error.__context__ is None
    assert seen == [error]
    with pytest.raises(CircuitOpenError) as refused:
        use(error)
    assert refused.value.__context__ is None
    breaker.reset()
    assert seen == [error, None]


def test_a_change_found_by_an_acquire_is_told_outside_any_handler() -> None:
    clock = FakeClock()
    seen: list[BaseException | None] = []
    breaker = make(clock, lambda *change: seen.append(sys.exception()))
    trip(breaker)
    half_open(breaker, clock)
    assert seen == [None, None]


def test_the_decorator_guards_plain_functions_and_methods() -> None:
    breaker = make(FakeClock(), min_requests=2)

    class Client:
        @breaker
        def get(self, key: str, *, error: Exception | None = None) -> str:
            """Get."""
            if error is not None:
                raise error
            return key

    client = Client()
    assert client.get("a") == "a"
    assert (Client.get.__name__, Client.get.__doc__) == ("get", "Get.")
    with pytest.raises(DownError):
        client.get("a", error=DownError())
    with pytest.raises(CircuitOpenError):
        client.get("a")


def test_the_decorator_guards_async_functions() -> None:
    breaker = make(FakeClock(), min_requests=2)

    @breaker
    async def get(error: BaseException | None = None) -> int:
        await asyncio.sleep(0)
        if error is not None:
            raise error
        return 1

    async def main() -> None:
        assert await get() == 1
        with pytest.raises(asyncio.CancelledError):
            await get(asyncio.CancelledError())
        with pytest.raises(TypeError):
            await get(1, 2)  # type: ignore[call-arg]  # never started, yet it must not keep its permit
        assert breaker.state is State.OPEN
        with pytest.raises(CircuitOpenError):
            await get()

    assert inspect.iscoroutinefunction(get)
    asyncio.run(main())
    metrics = breaker.metrics()
    assert (metrics.succeeded, metrics.failed, metrics.ignored) == (1, 1, 1)


def test_call_waits_for_the_end_of_a_coroutine() -> None:
    breaker = make(FakeClock(), min_requests=2)

    async def get(error: Exception | None = None) -> int:
        await asyncio.sleep(0)
        if error is not None:
            raise error
        return 1

    async def main() -> None:
        good, bad = breaker.call(get), breaker.call(get, DownError())
        assert (breaker.metrics().admitted, breaker.metrics().window_calls) == (2, 0)
        results = await asyncio.gather(good, bad, return_exceptions=True)
        assert results[0] == 1
        assert isinstance(results[1], DownError)

    asyncio.run(main())
    assert breaker.state is State.OPEN


def test_generators_can_not_be_decorated() -> None:
    breaker = make(FakeClock())

    def plain() -> object:
        yield 1

    async def asynchronous() -> object:
        yield 1

    for function in (plain, asynchronous):
        with pytest.raises(TypeError, match="generator"):
            breaker(function)


def test_with_blocks_nest() -> None:
    outer, inner = make(FakeClock()), make(FakeClock())
    with outer as a, inner as b, outer as c:
        assert len({a, b, c}) == 3
        with pytest.raises(DownError), inner:
            raise DownError
        assert inner.metrics().failed == 1
        assert outer.metrics().succeeded == 0
    assert (outer.metrics().succeeded, outer.metrics().failed) == (2, 0)
    assert (inner.metrics().succeeded, inner.metrics().failed) == (1, 1)
    assert (outer.metrics().duplicates, inner.metrics().duplicates) == (0, 0)


def test_a_permit_settled_inside_its_block_is_left_alone() -> None:
    breaker = make(FakeClock())
    with breaker as permit:
        permit.ignore()
    assert (breaker.metrics().ignored, breaker.metrics().succeeded) == (1, 0)


def test_blocks_left_out_of_order_settle_the_permit_of_their_own_breaker() -> None:
    first, second = make(FakeClock()), make(FakeClock())

    def block(breaker: CircuitBreaker) -> object:
        with breaker:
            yield

    a, b = block(first), block(second)
    next(a)  # type: ignore[call-overload]
    next(b)  # type: ignore[call-overload]
    with pytest.raises(DownError):
        a.throw(DownError())  # type: ignore[attr-defined]
    assert (first.metrics().failed, second.metrics().failed) == (1, 0)
    assert next(b, None) is None  # type: ignore[call-overload]
    assert second.metrics().succeeded == 1


def test_concurrent_tasks_keep_their_permits_apart() -> None:
    breaker = make(FakeClock(), min_requests=1000)
    given: list[Permit] = []

    async def one(number: int) -> None:
        async with breaker as permit:
            given.append(permit)
            await asyncio.sleep(0)
            async with breaker as nested:
                given.append(nested)
                for _ in range(number % 5):
                    await asyncio.sleep(0)
            assert nested._done
            assert not permit._done  # the inner block ended its own permit, whatever the others do
            await asyncio.sleep(0)
            if number % 2:
                raise DownError

    async def main() -> None:
        async with breaker as parent:  # the tasks inherit the context with this permit on it
            await asyncio.gather(*(one(n) for n in range(20)), return_exceptions=True)
            assert not parent._done

    asyncio.run(main())
    assert len(set(given)) == 40
    metrics = breaker.metrics()
    assert (metrics.succeeded, metrics.failed, metrics.duplicates) == (20 + 10 + 1, 10, 0)


def test_concurrent_threads_keep_their_permits_apart() -> None:
    breaker = make(FakeClock(), min_requests=1000)
    meet = threading.Barrier(4)

    def one(number: int) -> None:
        try:
            with breaker:
                meet.wait(PATIENCE)  # all are inside before any leaves
                with breaker:
                    meet.wait(PATIENCE)
                if number % 2:
                    raise DownError
        except DownError:
            pass

    run_threads([partial(one, number) for number in range(4)])
    metrics = breaker.metrics()
    assert (metrics.succeeded, metrics.failed, metrics.duplicates) == (6, 2, 0)


# --- the callback and the clock


def test_on_change_runs_without_the_lock() -> None:
    clock = FakeClock()
    seen: list[State] = []

    def look(old: State, new: State, reason: str) -> None:
        # This takes the lock: with it held, it would hang.
        seen.append(in_thread(lambda: breaker.metrics().state))

    breaker = make(clock, look, half_open_requests=1)
    trip(breaker)
    half_open(breaker, clock).success()
    breaker.record_many(0, 10)
    breaker.reset()
    assert seen == [State.OPEN, State.HALF_OPEN, State.CLOSED, State.OPEN, State.CLOSED]


def test_no_lock_is_held_across_the_call() -> None:
    breaker = make(FakeClock())
    got: list[bool] = []

    def other() -> None:
        got.append(breaker.try_acquire() is not None)

    def work() -> None:
        in_thread(other)

    breaker.call(work)
    with breaker:
        work()
    assert got == [True, True]


def test_an_on_change_that_raises_is_logged_and_harms_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(old: State, new: State, reason: str) -> None:
        raise RuntimeError("no")

    breaker = make(FakeClock(), broken, min_requests=1)
    with caplog.at_level(logging.ERROR, logger="backpressure"), pytest.raises(DownError):
        breaker.call(fail, DownError())
    assert breaker.state is State.OPEN
    assert "CLOSED -> OPEN" in caplog.text


def test_a_clock_that_steps_back_counts_as_one_that_stood_still() -> None:
    clock = FakeClock(1000.0)
    breaker = make(clock)
    trip(breaker)
    clock.advance(3.0)
    assert breaker.retry_after() == 5.0
    clock.set(0.0)
    assert breaker.retry_after() == 5.0  # not 1005
    clock.advance(4.0)
    assert breaker.try_acquire() is None
    clock.advance(1.0)
    assert breaker.try_acquire() is not None


def test_a_clock_that_steps_back_is_noticed_without_the_lock_too() -> None:
    clock = FakeClock(1000.0)
    breaker = make(clock)
    work = breaker(int)
    work()
    clock.set(0.0)
    work()
    for _ in range(9):
        clock.advance(0.5)
        work()
    assert breaker.metrics().window_calls == 11
    clock.advance(0.5)
    assert breaker.metrics().window_calls == 9  # those two at once, as no time passed between them


def test_a_clock_that_steps_back_and_forth_between_two_calls_has_moved_on() -> None:
    clock = FakeClock(1000.0)
    breaker = make(clock)
    work = breaker(int)
    work()
    clock.set(0.0)
    breaker.retry_after()  # notices it, and has no reason to look at the window
    clock.set(1000.1)
    work()
    assert breaker.metrics().window_calls == 1


def test_a_clock_that_steps_back_counts_no_call_twice() -> None:
    clock = FakeClock(1000.0)
    breaker = make(clock, min_requests=100)
    breaker.record_many(1, 1)
    clock.set(10.0)
    breaker.record_many(1, 1)
    assert breaker.metrics().window_calls == 4
    clock.advance(5.0)
    assert breaker.metrics().window_calls == 0


# --- threads


@pytest.mark.parametrize("slots", [1, 5])
def test_half_open_never_admits_more_probes_than_slots_under_threads(slots: int) -> None:
    """Eight threads ask at once, in many rounds; some probes are ignored, and only then may others go out."""
    clock = FakeClock()
    breaker = make(clock, half_open_requests=slots, min_requests=slots, max_reset_timeout=8.0)
    threads, rounds = 8, 60
    meet = threading.Barrier(threads)
    won: list[list[Permit]] = [[] for _ in range(threads)]
    ignored: list[int] = [0] * threads
    wrong: list[str] = []

    def check() -> None:
        permits = [permit for mine in won for permit in mine]
        if len(permits) != slots:
            wrong.append(f"{len(permits)} probes for {slots} slots")
        for permit in permits:
            permit.failure()
        if breaker.state is not State.OPEN:
            wrong.append(f"state {breaker.state}")
        clock.advance(8.0)

    def ask(number: int) -> None:
        chance = random.Random(number)
        for _ in range(rounds):
            won[number] = []
            ignored[number] = 0
            if meet.wait(PATIENCE) == 0 and breaker.metrics().probes_out > slots:
                wrong.append("too many out")
            for _ in range(20):
                permit = breaker.try_acquire()
                if permit is None:
                    continue
                out = breaker.metrics().probes_out
                if out > slots:
                    wrong.append(f"{out} probes out")
                if chance.random() < 0.3:
                    permit.ignore()
                else:
                    won[number].append(permit)
            permit = breaker.try_acquire()  # whoever ignored its last one leaves a slot: fill up
            while permit is not None:
                won[number].append(permit)
                permit = breaker.try_acquire()
            if meet.wait(PATIENCE) == 0:
                check()
            meet.wait(PATIENCE)

    trip(breaker)
    clock.advance(8.0)
    run_threads([partial(ask, number) for number in range(threads)])
    assert wrong == []
    metrics = breaker.metrics()
    assert metrics.trips == rounds + 1
    assert metrics.admitted == metrics.succeeded + metrics.failed + metrics.ignored
