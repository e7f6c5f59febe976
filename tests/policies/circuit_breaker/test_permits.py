"""Permits of CircuitBreaker: each is settled once, late ones decide nothing, lost and
dropped ones give their slot back.
"""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from functools import partial

import pytest

from backpressure.policies.circuit_breaker import (
    CircuitBreaker,
    Permit,
    State,
)
from backpressure.testing import FakeClock
from tests.support.circuit_breaker import DownError, acquire, half_open, make, state_of, trip
from tests.support.threads import PATIENCE, run_threads

# --- lost and dropped probes


def test_an_ignored_probe_gives_its_slot_back() -> None:
    clock = FakeClock()
    breaker = make(clock, half_open_requests=1)
    trip(breaker)
    probe = half_open(breaker, clock)
    for _ in range(10):
        assert breaker.try_acquire() is None
        probe.ignore()
        assert state_of(breaker) is State.HALF_OPEN  # it was no success either
        probe = acquire(breaker)
    probe.success()
    assert state_of(breaker) is State.CLOSED
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
    assert state_of(breaker) is State.HALF_OPEN
    assert (breaker.metrics().late, breaker.metrics().probes_out) == (1, 1)
    heir.success()
    assert state_of(breaker) is State.CLOSED


def test_a_probe_that_outlives_its_lease_still_counts_while_nobody_wants_its_slot() -> None:
    clock = FakeClock()
    breaker = make(clock, half_open_requests=1)
    trip(breaker)
    probe = half_open(breaker, clock)
    clock.advance(1000.0)
    probe.success()
    assert state_of(breaker) is State.CLOSED


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
    assert state_of(breaker) is State.OPEN
    now = half_open(breaker, clock), acquire(breaker)
    del early
    assert breaker.try_acquire() is None
    assert (breaker.metrics().probes_out, breaker.metrics().lost_probes) == (len(now), 0)


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
    assert state_of(breaker) is State.HALF_OPEN
    assert breaker.metrics().probe_results == 1
    for _ in range(3):
        acquire(breaker).success()
    assert state_of(breaker) is State.CLOSED
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


# --- blocks


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
