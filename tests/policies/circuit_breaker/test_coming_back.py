"""CircuitBreaker after an outage: the open time, canaries, probes, and the ramp."""

from __future__ import annotations

import itertools
import random

import pytest

from backpressure.policies.circuit_breaker import (
    CircuitBreaker,
    CircuitBreakerConfig,
    State,
)
from backpressure.testing import FakeClock
from tests.support.circuit_breaker import (
    Recorder,
    acquire,
    acquire_now,
    half_open,
    make,
    open_times,
    state_of,
    trip,
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


# --- canaries


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


# --- the open time


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


# --- who cannot wait


@pytest.mark.parametrize("law", ["share", "sequential"])
@pytest.mark.parametrize("canary", [True, False])
def test_who_cannot_wait_gets_a_canary_at_once(law: str, canary: bool) -> None:
    clock = FakeClock()
    changes = Recorder()
    breaker = make(clock, changes, law=law, canary=canary)
    acquire_now(breaker).ignore()  # as any other call, while it is closed
    trip(breaker)
    assert breaker.try_acquire() is None
    acquire_now(breaker).failure()
    assert breaker.state is State.OPEN
    assert breaker.retry_after() > 0.0
    assert breaker.try_acquire() is None
    acquire_now(breaker).success()
    assert state_of(breaker) is State.HALF_OPEN
    assert [new for _, new in changes.changes] == [State.OPEN, State.HALF_OPEN]
    assert breaker.metrics().probe_results == 1


def test_who_cannot_wait_gets_one_at_a_time() -> None:
    clock = FakeClock()
    breaker = make(clock)
    trip(breaker)
    first = acquire_now(breaker)
    assert breaker.try_acquire_now() is None
    before = breaker.retry_after()
    first.ignore()
    assert breaker.retry_after() == before == 8.0
    second = acquire_now(breaker)
    assert breaker.try_acquire_now() is None
    del second  # as that of a batch that is neither acked nor nacked
    acquire_now(breaker).failure()
    third = acquire_now(breaker)
    assert breaker.try_acquire_now() is None
    third.success()
    assert breaker.state is State.HALF_OPEN


def test_a_canary_that_hangs_does_not_hold_up_the_next_whose_turn_has_come() -> None:
    clock = FakeClock()
    breaker = make(clock, law="sequential", canary=True)
    trip(breaker)
    hangs = acquire_now(breaker)
    assert breaker.try_acquire_now() is None
    clock.advance(breaker.retry_after())
    acquire_now(breaker).success()
    assert breaker.state is State.HALF_OPEN
    hangs.failure()
    assert breaker.metrics().late == 1


def test_what_was_asked_for_at_once_moves_the_next_canary() -> None:
    """So that the two do not go to a dead callee at the same time; and it is no longer
    than as if that had been its turn.
    """
    clock = FakeClock()
    breaker = make(clock, law="sequential", canary=True)
    trip(breaker)
    clock.advance(0.4)
    acquire_now(breaker).failure()
    assert breaker.retry_after() == pytest.approx(0.7 + 0.04)


def test_canaries_go_less_often_the_longer_an_outage_lasts() -> None:
    clock = FakeClock()
    breaker = make(clock, law="sequential", canary=True, max_reset_timeout=30.0)
    trip(breaker)
    # After 20 seconds the time between them grows by less of the outage.
    for pause, time_to_next in ((10.0, 1.7), (10.0, 2.7), (25.0, 3.7), (250.0, 13.7), (1e6, 30.0)):
        clock.advance(pause)
        acquire_now(breaker).failure()
        assert breaker.retry_after() == pytest.approx(time_to_next)


def test_who_cannot_wait_is_refused_by_hand_and_by_the_number_of_probes() -> None:
    clock = FakeClock()
    breaker = make(clock, half_open_requests=2)
    trip(breaker)
    acquire_now(breaker).success()
    probe = acquire_now(breaker)
    assert breaker.try_acquire_now() is None
    del probe
    breaker.force_open()
    assert breaker.try_acquire_now() is None
    breaker.disable()
    assert breaker.try_acquire_now() is not None


def test_a_canary_that_was_out_when_it_closed_does_not_hold_up_the_next_outage() -> None:
    clock = FakeClock()
    breaker = make(clock)
    trip(breaker)
    out = acquire_now(breaker)
    breaker.reset()
    trip(breaker)
    assert breaker.try_acquire_now() is not None
    out.success()
    assert breaker.state is State.OPEN
