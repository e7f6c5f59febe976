"""CircuitBreaker: its states, what leads from one to another, and its clock.
test_model.py has the random histories.
"""

from __future__ import annotations

import dataclasses
import logging
import math

import pytest

from backpressure.base.errors import ConfigError
from backpressure.policies.circuit_breaker import (
    CircuitBreakerConfig,
    State,
)
from backpressure.testing import FakeClock
from tests.support.circuit_breaker import (
    DownError,
    Recorder,
    acquire,
    fail,
    half_open,
    make,
    open_times,
    state_of,
    trip,
)

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
    assert state_of(breaker) is State.OPEN  # only an acquire moves it
    assert breaker.retry_after() == 0.0
    assert breaker.try_acquire() is not None
    assert state_of(breaker) is State.HALF_OPEN
    assert changes.changes[-1] == (State.OPEN, State.HALF_OPEN)
    assert breaker.metrics().rejected == 2


def test_half_open_closes_when_enough_probes_succeed() -> None:
    clock = FakeClock()
    changes = Recorder()
    breaker = make(clock, changes)
    trip(breaker)
    probes = [half_open(breaker, clock), *(acquire(breaker) for _ in range(3))]
    assert breaker.try_acquire() is None
    for probe in probes[:3]:
        probe.success()
    assert state_of(breaker) is State.HALF_OPEN
    probes[3].failure()  # 1 of 4 is below 0.5
    assert state_of(breaker) is State.CLOSED
    assert changes.changes[-1] == (State.HALF_OPEN, State.CLOSED)
    assert breaker.metrics().window_calls == 0  # starts afresh


def test_half_open_reopens_as_soon_as_the_rate_can_not_pass() -> None:
    clock = FakeClock()
    breaker = make(clock)
    trip(breaker)
    probe = half_open(breaker, clock)
    probe.failure()
    assert state_of(breaker) is State.HALF_OPEN
    acquire(breaker).failure()  # 2 of 4 would be 0.5 even if the others succeed
    assert state_of(breaker) is State.OPEN


def test_the_quorum_is_the_smaller_of_min_requests_and_the_probes() -> None:
    clock = FakeClock()
    breaker = make(clock, min_requests=2, half_open_requests=6)
    trip(breaker)
    probes = [half_open(breaker, clock), *(acquire(breaker) for _ in range(5))]
    probes[0].success()
    assert state_of(breaker) is State.HALF_OPEN
    probes[1].success()
    assert state_of(breaker) is State.CLOSED
    for probe in probes[2:]:
        probe.failure()
    assert state_of(breaker) is State.CLOSED  # their generation is over
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
    assert state_of(breaker) is State.CLOSED
    assert breaker.retry_after() == 0.0


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
    assert state_of(breaker) is State.FORCED_OPEN
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
    assert state_of(breaker) is State.CLOSED


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


# --- the callback and the clock


def test_an_on_change_that_raises_is_logged_and_harms_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(old: State, new: State, reason: str) -> None:
        raise RuntimeError("no")

    breaker = make(FakeClock(), broken, min_requests=1)
    with caplog.at_level(logging.ERROR, logger="backpressure"), pytest.raises(DownError):
        breaker.call(fail, DownError())
    assert state_of(breaker) is State.OPEN
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
