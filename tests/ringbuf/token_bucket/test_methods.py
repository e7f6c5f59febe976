"""TokenBucket: reservations, arguments, and the methods that read the clock."""

from __future__ import annotations

import inspect
import math
import pickle
import time
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from ringbuf import Reservation, TokenBucket
from tests.support.token_bucket import CREDIT, CREDIT_BURST, DAY, INF, MAX_TOKENS

# Reservations


def test_a_reservation_takes_ahead_and_a_cancel_brings_it_back_once() -> None:
    bucket = TokenBucket(10, 5, now_ns=0)
    first = bucket.reserve_at(0, 5)
    second = bucket.reserve_at(0, 5)
    assert (first.delay, second.delay) == (0.0, 0.5)
    assert bucket.tokens_at(0) == -5.0
    assert first.cancel_at(0) == 0  # its time had come at once
    assert second.cancel_at(499_999_999) == 5
    assert second.cancel_at(499_999_999) == 0
    assert bucket.reserve_at(500_000_000, 5).delay == 0.0


def test_a_cancel_keeps_the_place_of_those_behind() -> None:
    bucket = TokenBucket(1, 10, initial_tokens=0, now_ns=0)
    front = bucket.reserve_at(0, 4)
    behind = bucket.reserve_at(0, 3)
    assert front.cancel_at(0) == 1
    assert behind.delay == 7.0
    assert bucket.tokens_at(0) == -6.0
    # Part of the front one came back, and that was all of it.
    assert behind.cancel_at(0) == 3
    assert front.cancel_at(0) == 0


def test_a_cancel_never_brings_back_more_than_was_reserved() -> None:
    bucket = TokenBucket(10, 100, initial_tokens=0, now_ns=0)
    reservation = bucket.reserve_at(0, 10)
    assert bucket.give_back_at(0, 15) == 5
    assert reservation.cancel_at(0) == 10


def test_a_reservation_for_a_century_can_be_cancelled() -> None:
    bucket = TokenBucket(1 / 86_400, 10**6, initial_tokens=0, now_ns=0)
    reservation = bucket.reserve_at(0, 10**6)
    assert reservation.delay == pytest.approx(86_400e6)
    assert reservation.cancel_at(DAY) == 10**6


def test_give_back_stays_behind_reservations_and_below_the_burst() -> None:
    bucket = TokenBucket(1, 10, now_ns=0)
    assert bucket.give_back_at(0, 3) == 0
    assert bucket.try_acquire_at(0, 10)
    assert bucket.give_back_at(0, 3) == 3
    assert bucket.reserve_at(0, 8).delay == 5.0
    assert bucket.give_back_at(0, 4) == 0
    assert bucket.give_back_at(0, 7) == 2
    assert bucket.tokens_at(0) == -3.0


# The methods that read the clock


def test_bad_arguments_are_named() -> None:
    bucket = TokenBucket(1, 5, now_ns=0)
    for rate in (-1, -0.5, math.nan, -INF, 1.1e12):
        with pytest.raises(
            ValueError, match="rate must be from 0 to 1e\\+12 tokens per second, or inf"
        ):
            TokenBucket(rate, 5)
        with pytest.raises(ValueError, match="rate must be"):
            bucket.set_rate_at(0, rate)
    for burst in (-1, MAX_TOKENS + 1, 10**30):
        with pytest.raises(
            ValueError, match=f"burst must be from 0 to {MAX_TOKENS} tokens, not {burst}"
        ):
            TokenBucket(1, burst)
        with pytest.raises(ValueError, match="burst must be"):
            bucket.set_burst_at(0, burst)
    for initial in (-1, 6, 10**30):
        with pytest.raises(
            ValueError, match=rf"initial_tokens must be from 0 to burst \(5\), not {initial}"
        ):
            TokenBucket(1, 5, initial_tokens=initial)
    calls: list[Callable[[int], object]] = [
        bucket.try_acquire, bucket.acquire_up_to, bucket.retry_after, bucket.reserve,
        bucket.give_back,
        lambda n: bucket.try_acquire_at(0, n), lambda n: bucket.acquire_up_to_at(0, n),
        lambda n: bucket.retry_after_at(0, n), lambda n: bucket.reserve_at(0, n),
        lambda n: bucket.give_back_at(0, n),
    ]  # fmt: skip
    for call in calls:
        for n in (-1, MAX_TOKENS + 1, 10**30):
            with pytest.raises(ValueError, match=f"n must be from 0 to {MAX_TOKENS}, not {n}"):
                call(n)
        for wrong in (1.0, "1", None, True):
            with pytest.raises(TypeError, match="n must be an int"):
                call(wrong)  # type: ignore[arg-type]
    unlike: Any
    for unlike in ("fast", "5", b"5", None, 1j, True, np.True_, np.timedelta64(5, "s")):
        with pytest.raises(TypeError, match="rate must be a number"):
            TokenBucket(unlike, 5)
        with pytest.raises(TypeError, match="rate must be a number"):
            bucket.set_rate_at(0, unlike)
    for wrong in (5.0, "5", None, True):
        with pytest.raises(TypeError, match="burst must be an int"):
            TokenBucket(1, wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="burst must be an int"):
            bucket.set_burst_at(0, wrong)  # type: ignore[arg-type]
    for wrong in (3.0, "3", True):
        with pytest.raises(TypeError, match="initial_tokens must be an int"):
            TokenBucket(1, 5, initial_tokens=wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        bucket.try_acquire_at(0.5)  # type: ignore[arg-type]
    with pytest.raises(OverflowError):
        bucket.try_acquire_at(2**63)
    with pytest.raises(TypeError, match=r"TokenBucket\.reserve"):
        Reservation()
    assert bucket.acquire_up_to_at(0, 10) == 5


def test_numbers_may_be_of_any_kind() -> None:
    class Number:
        def __index__(self) -> int:
            return 5

    bucket = TokenBucket(np.float32(2), Number(), initial_tokens=3, now_ns=0)
    assert (bucket.rate, bucket.burst, bucket.tokens_at(0)) == (2.0, 5, 3.0)
    bucket.set_rate_at(0, Number())
    bucket.set_burst_at(0, np.int8(4))
    assert (bucket.rate, bucket.burst) == (5.0, 4)
    with pytest.raises(ValueError, match=r"burst \(5\), not 6"):
        TokenBucket(Fraction(1, 2), Number(), initial_tokens=6)


def test_it_can_not_be_pickled_and_shows_itself() -> None:
    bucket = TokenBucket(0, 5, initial_tokens=2)
    with pytest.raises(TypeError, match="live shared state"):
        pickle.dumps(bucket)
    with pytest.raises(TypeError, match="pickle"):
        pickle.dumps(bucket.reserve(0))
    assert repr(bucket) == "TokenBucket(rate=0.0, burst=5, tokens=2.0)"
    assert repr(bucket.reserve(1)) == "Reservation(delay=0.0)"


def test_every_timed_method_has_its_twin() -> None:
    names = {name for name, _ in inspect.getmembers(TokenBucket) if not name.startswith("_")}
    # What waits has steps that take the time: see test_acquire.py.
    timeless = {"rate", "burst", "path", "attach", "acquire", "aio"}
    timed = {name for name in names if not name.endswith("_at")} - timeless
    assert {f"{name}_at" for name in timed} == names - timed - timeless


# With its own clock


def test_the_methods_with_the_own_clock_reach_the_same_tokens() -> None:
    bucket = TokenBucket(0, 10)
    assert bucket.try_acquire()
    assert bucket.try_acquire(2)
    assert bucket.acquire_up_to(3) == 3
    assert bucket.tokens == 4.0
    assert bucket.give_back(1) == 1
    assert bucket.retry_after(5) == 0.0
    assert bucket.retry_after(6) == INF
    assert bucket.reserve(5).delay == 0.0
    assert not bucket.try_acquire()
    bucket.set_rate(1 / 3600)
    assert 3590 < bucket.retry_after() <= 3600
    reservation = bucket.reserve(2)
    assert 7190 < reservation.delay <= 7200
    assert reservation.cancel() == 2
    bucket.set_burst(0)
    assert bucket.retry_after() == INF


@pytest.mark.parametrize("burst", [100, CREDIT_BURST - 1, CREDIT_BURST, 3 * CREDIT_BURST])
def test_one_at_a_time_grants_every_token_once(burst: int) -> None:
    bucket = TokenBucket(0, burst)
    granted = 0
    while bucket.try_acquire():
        granted += 1
    assert granted == burst
    assert not bucket.try_acquire()


def test_a_change_of_rate_or_burst_ends_the_credit() -> None:
    bucket = TokenBucket(0, CREDIT_BURST)
    assert bucket.try_acquire()
    bucket.set_burst(0)
    assert not bucket.try_acquire()
    bucket = TokenBucket(0, CREDIT_BURST)
    assert bucket.try_acquire(CREDIT_BURST - CREDIT)
    bucket.set_rate(1e-9)
    assert sum(bucket.try_acquire() for _ in range(2 * CREDIT)) == CREDIT
    bucket = TokenBucket(0, CREDIT_BURST)
    assert bucket.try_acquire(5)
    assert bucket.try_acquire(7)
    bucket.set_burst(CREDIT_BURST - 20)
    assert bucket.acquire_up_to(CREDIT_BURST) == CREDIT_BURST - 20


def spin(seconds: float) -> None:
    """Wait without sleeping, for spans that a sleep would overshoot a hundredfold."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def test_what_was_taken_on_credit_counts_for_the_burst_after_it() -> None:
    rate, burst = 1e6, CREDIT_BURST
    for taken in (1, CREDIT - 1, CREDIT):
        bucket = TokenBucket(rate, burst)
        assert bucket.try_acquire()  # leaves a credit
        spin(100e-6)  # flows over by more than a credit
        started = time.perf_counter_ns()
        granted = sum(bucket.try_acquire() for _ in range(taken))
        # A refusal between must not make it forgotten.
        granted += burst * bucket.try_acquire(burst) + bucket.acquire_up_to(2 * burst)
        ended = time.perf_counter_ns()
        # One more for the fraction beyond a full bucket that has a credit, one for the
        # two clocks' readings.
        assert burst - CREDIT <= granted <= burst + rate * (ended - started) / 1e9 + 2


def test_after_a_pause_a_burst_lacks_a_credit_at_most_and_a_whole_one_comes_soon() -> None:
    rate, burst = 1e9, CREDIT_BURST
    for taken in range(0, CREDIT + 2, 3):
        bucket = TokenBucket(rate, burst)
        for _ in range(1 + taken):
            assert bucket.try_acquire()
        spin(4 * burst / rate)
        assert burst - CREDIT <= bucket.acquire_up_to(2 * burst) <= burst
        for _ in range(1 + taken):
            while not bucket.try_acquire():
                pass
        tries = 0
        spin(4 * burst / rate)
        while not bucket.try_acquire(burst):
            spin(bucket.retry_after(burst))
            tries += 1
        assert tries <= 2
