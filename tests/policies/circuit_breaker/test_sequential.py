"""The sequential law: who trips, how soon, and by what chance; real breakers before
virtual sinks.
"""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Iterator

import pytest

from backpressure.base.errors import ConfigError
from backpressure.buffer.config import BufferConfig
from backpressure.buffer.from_mapping import build
from backpressure.policies.circuit_breaker import CircuitBreaker, CircuitBreakerConfig, State
from backpressure.testing import FakeClock
from bench.overload.kernel import VirtualClock
from tests.support.circuit_breaker import acquire, state_of

#: As a buffer has it, with all defaults.
CONFIG = BufferConfig().circuit_breaker
SEEDS = 40
RATES = (0.5, 1.0, 2.5, 5.0, 20.0, 100.0, 1_000.0)
FLAKY = (0.05, 0.1, 0.2)
#: Calls after which a dead sink has to be found, by rate.
DEAD = {0.5: 10, 1.0: 10, 2.5: 10, 5.0: 10, 20.0: 12, 100.0: 14, 1_000.0: 18}


def sequential(clock: FakeClock, **fields: object) -> CircuitBreaker:
    """A breaker without jitter."""
    given: dict[str, object] = {
        "law": "sequential",
        "canary": True,
        "reset_timeout_jitter": 0.0,
        **fields,
    }
    return CircuitBreaker(CircuitBreakerConfig(**given), clock=clock)  # type: ignore[arg-type]


def seconds_of(rate: float) -> float:
    return 60.0 if rate >= 1_000.0 else 600.0


def calls(
    breaker: CircuitBreaker, clock: VirtualClock, rate: float, share: float, seed: int
) -> Iterator[bool]:
    """Calls at a rate of which a share fails; whether each was let through.

    With the same seed a sink that fails less does so in some of the same calls.
    """
    luck, acquire, pause = random.Random(f"{seed}/{rate}").random, breaker.try_acquire, 1.0 / rate
    while True:
        clock.t += pause
        permit = acquire()
        if permit is not None:
            if luck() < share:
                permit.failure()
            else:
                permit.success()
        yield permit is not None


def flaky(rate: float, share: float, seed: int) -> tuple[bool, float]:
    """Whether it tripped, and the share of the calls that was let through."""
    clock = VirtualClock()  # for millions of calls: no lock, no checks
    breaker = CircuitBreaker(CONFIG, clock=clock, rng=random.Random(seed))
    count = round(seconds_of(rate) * rate)
    through = sum(itertools.islice(calls(breaker, clock, rate, share, seed), count))
    return breaker.metrics().trips > 0, through / count


def found_after(rate: float, share: float, seed: int, healthy: float = 0.0) -> int:
    """Calls until it is open, after seconds of health."""
    clock = VirtualClock()
    breaker = CircuitBreaker(CONFIG, clock=clock, rng=random.Random(seed))
    for _ in itertools.islice(calls(breaker, clock, rate, 0.0, seed), round(healthy * rate)):
        pass
    for count, _ in enumerate(calls(breaker, clock, rate, share, seed), 1):
        if breaker.state is State.OPEN:
            return count
    raise AssertionError


def stays_closed(rate: float, share: float, seeds: int) -> None:
    runs = [flaky(rate, share, seed) for seed in range(seeds)]
    assert sum(tripped for tripped, _ in runs) <= 0.03 * SEEDS
    assert statistics.mean(through for _, through in runs) >= 0.99


@pytest.mark.parametrize("share", FLAKY)
@pytest.mark.parametrize("rate", [rate for rate in RATES if rate <= 5.0])
def test_a_flaky_sink_does_not_trip(rate: float, share: float) -> None:
    stays_closed(rate, share, SEEDS)


@pytest.mark.parametrize("rate", [rate for rate in RATES if rate > 5.0])
def test_a_flaky_sink_does_not_trip_under_many_calls(rate: float) -> None:
    stays_closed(rate, 0.2, 1)


@pytest.mark.single_thread
@pytest.mark.proof
@pytest.mark.parametrize("share", FLAKY)
@pytest.mark.parametrize("rate", RATES)
def test_a_flaky_sink_does_not_trip_in_full(rate: float, share: float) -> None:
    """What trips where a tenth fails trips with the same seed where a fifth does: of
    many calls a fourth of the seeds are enough for the lesser shares.
    """
    stays_closed(rate, share, SEEDS if rate <= 20.0 or share == max(FLAKY) else SEEDS // 4)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("healthy", [0.0, 1.0, 60.0])
def test_a_dead_sink_is_found_within_a_few_calls(rate: float, healthy: float) -> None:
    assert 10 <= found_after(rate, 1.0, 0, healthy) <= DEAD[rate]


def test_an_hour_of_health_dulls_nothing() -> None:
    for rate in (1.0, 5.0, 20.0):
        assert found_after(rate, 1.0, 0, 3_600.0) <= DEAD[rate]


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("healthy", [0.0, 5.0])
def test_a_sink_that_fails_most_calls_is_found_within_80(rate: float, healthy: float) -> None:
    found = sorted(found_after(rate, 0.6, seed, healthy) for seed in range(SEEDS))
    assert found[SEEDS // 2 - 1] <= 45
    assert found[math.ceil(0.95 * SEEDS) - 1] <= 80


# --- by what chance


class Chain:
    """The chance of each value of the sum, in steps of a fiftieth, below `bound`."""

    STEP = 0.02

    def __init__(self, bound: float, share: float) -> None:
        self.share = share
        self.up = round(math.log(3.0) / self.STEP)
        self.down = round(math.log(2.0) / self.STEP)
        self.left = [1.0] + [0.0] * (round(bound / self.STEP) - 1)

    def call(self) -> float:
        """The chance that it has not tripped after one more call."""
        before, share, up, down = self.left, self.share, self.up, self.down
        good = [(1.0 - share) * one for one in before]
        after = [sum(good[: down + 1]), *good[down + 1 :], *([0.0] * down)][: len(before)]
        for index in range(up, len(before)):
            after[index] += share * before[index - up]
        self.left = after
        return sum(after)


@pytest.mark.parametrize(
    ("bound", "median", "most"),
    [(12.39, 30, 55), (13.99, 34, 61), (15.38, 37, 66), (16.48, 40, 69)],
)
def test_the_figures_at_the_head_of_the_module(bound: float, median: int, most: int) -> None:
    broken = Chain(bound, 0.6)
    left = [broken.call() for _ in range(80)]
    assert next(n for n, one in enumerate(left, 1) if one <= 0.5) == pytest.approx(median, abs=1)
    assert next(n for n, one in enumerate(left, 1) if one <= 0.05) == pytest.approx(most, abs=1)
    chain = Chain(bound, 0.2)
    for _ in range(400):  # until what came before is forgotten
        before = chain.call()
    chance = (before - chain.call()) / before
    # Of differences of numbers near 1, so no more than that is left of it.
    assert chance == pytest.approx(0.155 * math.exp(-bound), rel=0.1)


def test_the_evidence_that_is_asked_for_grows_with_the_rate() -> None:
    """Of two failures for each success, as of no other sequence, the count shows it."""
    found = []
    for rate in (1.0, 5.0, 20.0, 100.0, 10_000.0):
        clock = FakeClock()
        breaker = sequential(clock)
        for _ in range(round(30 * min(rate, 100.0))):
            clock.advance(1.0 / rate)
            acquire(breaker).success()
        for count in itertools.count(1):
            clock.advance(1.0 / rate)
            permit = acquire(breaker)
            permit.failure() if count % 3 else permit.success()
            if breaker.state is State.OPEN:
                found.append(count)
                break
    assert found == sorted(found)
    assert found[0] < found[-2] == found[-1]


# --- what is evidence


def test_min_requests_is_the_least_evidence() -> None:
    for least in (1, 2, 5, 10, 30, 100):
        breaker = sequential(FakeClock(), min_requests=least)
        for _ in range(least):
            assert breaker.state is State.CLOSED
            acquire(breaker).failure()
        assert state_of(breaker) is State.OPEN


def test_one_that_is_never_to_open_never_does() -> None:
    breaker = sequential(FakeClock(), min_requests=2**31)
    breaker.record_many(0, 1_000_000)
    assert breaker.state is State.CLOSED


@pytest.mark.parametrize("threshold", [1e-6, 0.01, 0.1, 1 / 3, 0.5, 0.75, 0.9, 1.0])
def test_any_threshold_finds_a_dead_sink_and_bears_a_flaky_one(threshold: float) -> None:
    clock = FakeClock()
    breaker = sequential(clock, failure_threshold=threshold)
    rng = random.Random(1)
    for _ in range(3_000):
        clock.advance(0.2)
        permit = acquire(breaker)
        permit.failure() if rng.random() < threshold * 2 / 3 else permit.success()
    assert breaker.state is State.CLOSED
    failures = 0
    while state_of(breaker) is State.CLOSED:
        clock.advance(0.2)
        acquire(breaker).failure()
        failures += 1
    assert failures <= 40


def test_successes_that_no_lock_saw_count_before_the_failure_after_them() -> None:
    """In bulk, and as if each had been counted when it came."""
    for seed in range(20):
        rng = random.Random(seed)
        clock = FakeClock()
        by_call, counted = sequential(clock), sequential(clock, slow_call_duration=1e6)
        while by_call.state is State.CLOSED:
            clock.advance(0.01)
            if rng.random() < 0.55:
                for one in (by_call, counted):
                    acquire(one).failure()
            else:
                for _ in range(rng.randint(1, 2)):
                    acquire(by_call).success()  # on the fast path
                    acquire(counted).success()  # under the lock, as slow calls are watched
            assert state_of(by_call) is counted.state


def test_many_results_at_once_are_taken_in_the_order_that_blames_least() -> None:
    breaker = sequential(FakeClock())
    for _ in range(50):
        breaker.record_many(15, 9)  # nine failures in a row, in some order
    assert breaker.state is State.CLOSED
    breaker.record_many(10, 30)
    assert state_of(breaker) is State.OPEN


def test_slow_calls_are_evidence_of_their_own() -> None:
    clock = FakeClock()
    breaker = sequential(clock, slow_call_duration=1.0, slow_call_rate_threshold=0.3)
    rng = random.Random(1)
    for _ in range(1_000):
        clock.advance(1.0)
        acquire(breaker).success(2.0 if rng.random() < 0.2 else 0.1)
    assert breaker.state is State.CLOSED
    for _ in range(10):
        clock.advance(1.0)
        acquire(breaker).success(2.0)
    assert state_of(breaker) is State.OPEN


def test_what_was_before_a_reset_is_no_evidence() -> None:
    breaker = sequential(FakeClock())
    for _ in range(9):
        acquire(breaker).failure()
    breaker.reset()
    for _ in range(9):
        acquire(breaker).failure()
    assert breaker.state is State.CLOSED


# --- coming back


def open_one(clock: FakeClock, **fields: object) -> CircuitBreaker:
    breaker = sequential(clock, **fields)
    for _ in range(10):
        acquire(breaker).failure()
    assert breaker.state is State.OPEN
    return breaker


def test_the_open_time_begins_at_half_a_second_and_grows_to_the_reset_timeout() -> None:
    clock = FakeClock()
    breaker = open_one(clock)
    waits = []
    while clock.now() < 900.0:
        waits.append(breaker.retry_after())
        clock.advance(waits[-1])
        canary = acquire(breaker)
        assert breaker.try_acquire() is None  # a single one
        canary.failure()
    assert waits[0] == 0.5
    assert waits == pytest.approx(sorted(waits))
    assert waits[-1] == 30.0
    assert breaker.metrics().open_time == 30.0
    within = [sum(waits[:n]) for n in range(1, len(waits)) if sum(waits[:n]) <= 30.0]
    assert len(within) <= breaker.config.half_open_requests


@pytest.mark.parametrize("outage", [0.1, 1.0, 5.0, 30.0, 120.0, 290.0])
def test_a_sink_that_returns_is_in_use_soon(outage: float) -> None:
    for seed in range(20):
        rng = random.Random(seed)
        clock = FakeClock()
        breaker = CircuitBreaker(CONFIG, clock=clock, rng=rng)
        for _ in range(10):
            acquire(breaker).failure()
        back = clock.now() + outage * rng.uniform(0.9, 1.0)
        while True:
            permit = breaker.try_acquire()
            if permit is None:
                clock.advance(max(breaker.retry_after(), 0.001))
            elif clock.now() < back:
                permit.failure()
            else:
                permit.success()
                break
        assert clock.now() - back <= 1.0 + min(back, 20.0) / 10.0 + max(0.0, back - 20.0) / 25.0
        assert breaker.state is State.HALF_OPEN
        for _ in range(4):
            acquire(breaker).success()
        assert state_of(breaker) is State.CLOSED


def test_a_flaky_sink_that_returns_is_mostly_let_back_in() -> None:
    closed = 0
    for seed in range(200):
        rng = random.Random(seed)
        clock = FakeClock()
        breaker = open_one(clock)
        clock.advance(0.5)
        acquire(breaker).success()
        while breaker.state is State.HALF_OPEN:
            permit = acquire(breaker)
            permit.failure() if rng.random() < 0.2 else permit.success()
        closed += state_of(breaker) is State.CLOSED
    assert closed >= 180


def test_probes_that_fail_after_a_lucky_canary_open_again_and_the_outage_begins_anew() -> None:
    clock = FakeClock()
    breaker = open_one(clock)
    for _ in range(20):
        clock.advance(breaker.retry_after())
        acquire(breaker).failure()
    assert breaker.metrics().open_time > 2.0
    clock.advance(breaker.retry_after())
    acquire(breaker).success()
    assert breaker.state is State.HALF_OPEN
    failures = 0
    while state_of(breaker) is State.HALF_OPEN:
        acquire(breaker).failure()
        failures += 1
    assert failures <= 4
    assert breaker.retry_after() == 0.5


def test_without_canaries_probes_that_all_fail_go_on_with_the_outage() -> None:
    clock = FakeClock()
    breaker = open_one(clock, canary=False)
    waits = []
    for _ in range(5):
        waits.append(breaker.retry_after())
        clock.advance(waits[-1])
        probe = acquire(breaker)
        assert breaker.state is State.HALF_OPEN
        probe.failure()
        while state_of(breaker) is State.HALF_OPEN:
            acquire(breaker).failure()
    assert waits[0] == 0.5
    assert waits == sorted(set(waits))


def test_a_short_reset_timeout_bounds_the_first_open_time_too() -> None:
    assert open_one(FakeClock(), reset_timeout=0.05).retry_after() == 0.05


def test_a_longest_open_time_that_was_given_stays() -> None:
    clock = FakeClock()
    breaker = open_one(clock, reset_timeout=1.0, max_reset_timeout=3.0)
    for _ in range(100):
        clock.advance(breaker.retry_after())
        acquire(breaker).failure()
    assert breaker.retry_after() == 3.0


# --- which law


def test_a_bare_breaker_goes_by_shares_and_a_buffer_by_evidence() -> None:
    bare = CircuitBreakerConfig()
    assert (bare.law, bare.canary, bare.is_sequential) == (None, None, False)
    for config in (
        BufferConfig(),
        BufferConfig(circuit_breaker=CircuitBreakerConfig(min_requests=3)),
    ):
        breaker = config.circuit_breaker
        assert (breaker.law, breaker.canary) == ("sequential", True)
    given = CircuitBreakerConfig(law="share", canary=False, min_requests=3)
    assert BufferConfig(circuit_breaker=given).circuit_breaker is given
    half = BufferConfig(circuit_breaker=CircuitBreakerConfig(canary=False)).circuit_breaker
    assert (half.law, half.canary) == ("sequential", False)


def test_a_file_can_say_which_law() -> None:
    config = build(BufferConfig, {"circuit_breaker": {"law": "share", "min_requests": 3}})
    assert (config.circuit_breaker.law, config.circuit_breaker.canary) == ("share", True)
    with pytest.raises(ConfigError, match=r"circuit_breaker\.law: must be 'share', 'sequential'"):
        build(BufferConfig, {"circuit_breaker": {"law": "shares"}})
