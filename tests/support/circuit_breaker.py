"""What the tests of CircuitBreaker share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from backpressure.policies.circuit_breaker import (
    CircuitBreaker,
    CircuitBreakerConfig,
    Permit,
    State,
)
from backpressure.testing import FakeClock


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
    """A breaker without jitter, so that open times are exact.

    `fields` override its small config.
    """
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


def state_of(breaker: CircuitBreaker) -> State:
    """As it is now: mypy takes an attribute that was compared once for unchanged."""
    return breaker.state


def acquire(breaker: CircuitBreaker) -> Permit:
    permit = breaker.try_acquire()
    assert permit is not None
    return permit


def acquire_now(breaker: CircuitBreaker) -> Permit:
    permit = breaker.try_acquire_now()
    assert permit is not None
    return permit


def trip(breaker: CircuitBreaker) -> None:
    """From CLOSED to OPEN."""
    for _ in range(breaker.config.min_requests):
        acquire(breaker).failure()
    while breaker.config.is_sequential and breaker.state is not State.OPEN:
        acquire(breaker).failure()
    assert breaker.state is State.OPEN


def half_open(breaker: CircuitBreaker, clock: FakeClock) -> Permit:
    """From OPEN to HALF_OPEN; the first probe."""
    clock.advance(breaker.retry_after())
    permit = acquire(breaker)
    assert breaker.state is State.HALF_OPEN
    return permit


def open_times(
    breaker: CircuitBreaker, clock: FakeClock, trips: int, healthy: float = 0.0
) -> list[float]:
    """Trip, close again and stay closed for `healthy` seconds, `trips` times.

    Returns the open time of each.
    """
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


class DownError(Exception):
    pass


def fail(error: BaseException) -> None:
    raise error
