"""TokenBucket against an exact model, at the ends of its ranges, and under threads."""

from __future__ import annotations

import inspect
import itertools
import math
import pickle
import random
import sys
import threading
import time
from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from ringbuf import Reservation, TokenBucket
from tests.support.models import share_and_proof

SECOND = 1_000_000_000
DAY = 86_400 * SECOND
MAX_TOKENS = (2**63 - 1) // 2
CREDIT = 32
#: The smallest burst whose bucket lends a credit.
CREDIT_BURST = CREDIT << 10
INF = math.inf


class Model:
    """The law of the bucket in exact fractions: tokens lie on a line, and `spent` of them have been taken."""

    def __init__(self, rate: float, burst: int, initial: int, now: int) -> None:
        self.rate = rate
        self.burst = burst
        self.anchor = now
        self.base = Fraction(initial)
        self.spent = 0

    def line(self, now: int) -> Fraction:
        """Tokens issued until `now`; constant before the anchor, so that time going back brings none."""
        if self.rate == INF:
            return self.base
        return self.base + Fraction(self.rate) * max(0, now - self.anchor) / SECOND

    def level(self, now: int) -> Fraction:
        return min(self.line(now) - self.spent, Fraction(self.burst))

    def available(self, now: int) -> int:
        return math.floor(self.level(now))

    def settle(self, now: int) -> None:
        """From now on a new law: what has flowed over is gone, what is there stays."""
        line = self.line(now)
        self.anchor = max(self.anchor, now)
        if self.rate == INF or line - self.spent >= self.burst:
            line = Fraction(math.floor(line))
            self.spent = int(line) - self.burst
        self.base = line

    def take(self, now: int, n: int) -> None:
        if n > 0:
            if self.line(now) - self.spent > self.burst:
                self.settle(now)
            self.spent += n

    def acquire(self, now: int, n: int) -> bool:
        if self.rate == INF:
            return True
        granted = n == 0 or n <= self.available(now)
        if self.available(now) < 0:
            granted = n == 0
        if granted:
            self.take(now, n)
        return granted

    def acquire_up_to(self, now: int, n: int) -> int:
        if self.rate == INF:
            return n
        if n > 0 and self.line(now) - self.spent > self.burst:
            self.settle(now)
        taken = max(0, min(n, self.available(now)))
        self.take(now, taken)
        return taken

    def due(self, now: int, missing: int) -> float | int:
        """The first ns at which `missing` more tokens will have been issued."""
        if missing <= 0:
            return now
        if self.rate == 0:
            return INF
        target = math.floor(self.line(now)) + missing
        return self.anchor + math.ceil((target - self.base) * SECOND / Fraction(self.rate))

    def due_for(self, now: int, n: int) -> float | int:
        if self.rate == INF or n == 0:
            return now
        if n > self.burst:
            return INF
        return self.due(now, n - self.available(now))

    def give_back(self, now: int, n: int) -> int:
        if self.rate == INF:
            return n
        available = self.available(now)
        back = max(0, min(n, self.burst - available) if available >= 0 else n + available)
        self.spent -= back
        return back

    def set_rate(self, now: int, rate: float) -> None:
        self.settle(now)
        self.rate = rate
        # What is there of the next token is kept in units of what the new rate's last digit issues in a ns, rounded down.
        digit = Fraction(math.ulp(rate)) if 0 < rate < INF else Fraction(0)
        unit = max(digit, Fraction(1, 2**96)) / SECOND
        whole = math.floor(self.base)
        self.base = whole + math.floor((self.base - whole) / unit) * unit

    def set_burst(self, now: int, burst: int) -> None:
        self.settle(now)
        self.burst = burst


def check_wait(seconds: float, now: int, due: float | int) -> None:
    """A wait of `seconds` from `now` must reach `due` (ns), and overshoot by no more than some ns and a float's rounding."""
    if due == INF:
        assert seconds == INF
        return
    wait = due - now
    if wait > 4 * 10**18:
        assert seconds == pytest.approx(wait / SECOND, rel=1e-12)
        return
    waited = math.ceil(Fraction(seconds) * SECOND)
    assert wait <= waited <= wait + 4 + wait // 2**48, (wait, waited)


rates = st.one_of(
    st.sampled_from([0.0, INF, 1 / 86_400, 0.1, 1 / 3, 1.0, 10.0, 1e3, 30e6, 1e9, 1e10]),
    st.integers(1, 10**10).map(float),
    st.floats(1 / 86_400, 1e10),
)
bursts = st.one_of(st.integers(0, 5), st.integers(0, 10**6), st.integers(0, 10**12))
counts = st.one_of(st.integers(0, 5), st.integers(0, 10**4), st.integers(0, 10**12))
# ns that a machine's clock may move in one step, up to 11 days.
steps = st.one_of(
    st.integers(0, 20),
    st.sampled_from([SECOND, SECOND // 2, SECOND // 10, DAY]),
    st.integers(0, 10**9),
    st.integers(0, 10**15),
)


class BucketMachine(RuleBasedStateMachine):
    """Every `_at` method against the model; time stands still, goes on, and goes back."""

    reservations = Bundle("reservations")

    @initialize(
        rate=rates,
        burst=bursts,
        share=st.one_of(st.none(), st.fractions(0, 1)),
        now=st.one_of(st.just(0), st.integers(-(10**18), 10**18)),
    )
    def make(self, rate: float, burst: int, share: Fraction | None, now: int) -> None:
        initial = None if share is None else math.floor(burst * share)
        self.now = now
        self.bucket = TokenBucket(rate, burst, initial_tokens=initial, now_ns=now)
        self.model = Model(rate, burst, burst if initial is None else initial, now)

    @rule(step=steps)
    def time_goes_on(self, step: int) -> None:
        self.now += step

    @rule(step=steps)
    def time_goes_back(self, step: int) -> None:
        self.now -= step

    @precondition(lambda self: 0 < self.model.rate < INF)
    @rule(n=counts, early=st.integers(-1, 1))
    def time_goes_to_a_token(self, n: int, early: int) -> None:
        due = self.model.due_for(self.now, min(n, self.model.burst))
        if due - self.now < 10**15:
            self.now = int(due) - early

    @rule(n=counts)
    def try_acquire(self, n: int) -> None:
        assert self.bucket.try_acquire_at(self.now, n) is self.model.acquire(self.now, n)

    @rule(early=st.integers(-1, 1))
    def try_acquire_at_the_edge(self, early: int) -> None:
        n = max(0, self.model.available(self.now) - early)
        assert self.bucket.try_acquire_at(self.now, n) is self.model.acquire(self.now, n)

    @rule(n=counts)
    def acquire_up_to(self, n: int) -> None:
        assert self.bucket.acquire_up_to_at(self.now, n) == self.model.acquire_up_to(self.now, n)

    @rule(n=counts)
    def retry_after(self, n: int) -> None:
        check_wait(
            self.bucket.retry_after_at(self.now, n), self.now, self.model.due_for(self.now, n)
        )

    @rule(target=reservations, n=counts)
    def reserve(self, n: int) -> object:
        reservation = self.bucket.reserve_at(self.now, n)
        due = self.model.due_for(self.now, n)
        check_wait(reservation.delay, self.now, due)
        if due == INF or self.model.rate == INF or n == 0:
            return multiple()
        self.model.take(self.now, n)
        delay = reservation.delay
        return [
            reservation,
            n,
            self.model.spent,
            self.now + int(delay * 1e9) if delay * 1e9 + self.now <= 9e18 else INF,
        ]

    @rule(held=reservations)
    def cancel(self, held: list) -> None:
        reservation, n, end, due = held
        back = max(0, min(n, n - (self.model.spent - end))) if self.now < due else 0
        assert reservation.cancel_at(self.now) == back
        if back:
            self.model.spent -= back
            held[1] = 0

    @rule(n=counts)
    def give_back(self, n: int) -> None:
        assert self.bucket.give_back_at(self.now, n) == self.model.give_back(self.now, n)

    @rule(rate=rates)
    def set_rate(self, rate: float) -> None:
        self.bucket.set_rate_at(self.now, rate)
        self.model.set_rate(self.now, rate)
        assert self.bucket.rate == rate

    @rule(burst=bursts)
    def set_burst(self, burst: int) -> None:
        self.bucket.set_burst_at(self.now, burst)
        self.model.set_burst(self.now, burst)
        assert self.bucket.burst == burst

    @invariant()
    def tokens_are_those_of_the_model(self) -> None:
        if not hasattr(self, "model"):
            return
        tokens = self.bucket.tokens_at(self.now)
        if self.model.rate == INF:
            assert tokens == INF
        else:
            assert tokens == pytest.approx(float(self.model.level(self.now)), rel=1e-12, abs=1e-9)


TestBucketMachine, TestBucketMachineInFull = share_and_proof(BucketMachine, examples=300, steps=40)


# The law in time


@pytest.mark.parametrize("rate", [*range(1, 60), 1_000, 86_400, 30_000_000, 10**9, 10**10])
def test_a_whole_second_brings_a_whole_second_of_tokens(rate: int) -> None:
    bucket = TokenBucket(rate, 10**12, initial_tokens=0, now_ns=0)
    assert bucket.acquire_up_to_at(SECOND - 1, 10**12) == rate * (SECOND - 1) // SECOND
    assert bucket.acquire_up_to_at(SECOND, 10**12) == rate - rate * (SECOND - 1) // SECOND
    assert bucket.acquire_up_to_at(3 * SECOND, 10**12) == 2 * rate


@pytest.mark.parametrize("rate", [30_000_000, 29_999_999, 10**10, 7])
def test_months_bring_exactly_what_the_rate_says(rate: int) -> None:
    rng = random.Random(rate)
    bucket = TokenBucket(rate, 10**17, initial_tokens=0, now_ns=0)
    now = granted = 0
    while now < 180 * DAY:
        now += rng.choice(
            [1, 33, 1_000, rng.randrange(SECOND), rng.randrange(DAY), rng.randrange(3 * DAY)]
        )
        granted += bucket.acquire_up_to_at(now, 10**17)
        assert granted == rate * now // SECOND


def test_a_rate_of_one_a_day() -> None:
    bucket = TokenBucket(1 / 86_400, 1, now_ns=0)
    # 24 ns over a day, because 1 / 86,400 as a float falls short by a hundredth of one.
    granted = [hour for hour in range(24 * 10) if bucket.try_acquire_at(hour * (3600 * SECOND + 1))]
    assert granted == list(range(0, 24 * 10, 24))


def test_ten_billion_a_second_for_29_years() -> None:
    bucket = TokenBucket(1e10, 10**6, now_ns=0)
    later = 29 * 365 * DAY
    assert bucket.acquire_up_to_at(later, 10**9) == 10**6
    assert bucket.acquire_up_to_at(later + 1_000, 10**9) == 10_000


def test_the_smallest_rates_and_the_largest() -> None:
    never = TokenBucket(5e-324, 10, initial_tokens=0, now_ns=0)
    assert never.retry_after_at(0) == INF
    rare = TokenBucket(1e-12, 10, initial_tokens=0, now_ns=0)
    assert rare.retry_after_at(0) == pytest.approx(1e12)
    assert rare.rate == 1e-12
    most = TokenBucket(1e12, 10**15, initial_tokens=0, now_ns=0)
    assert most.acquire_up_to_at(SECOND, 10**15) == 10**12


def test_a_full_bucket_keeps_no_fraction_of_a_token() -> None:
    bucket = TokenBucket(1, 1, now_ns=0)
    assert bucket.try_acquire_at(100 * SECOND + 999_999_999)
    assert bucket.retry_after_at(100 * SECOND + 999_999_999) == 1.0
    assert not bucket.try_acquire_at(101 * SECOND)
    assert bucket.try_acquire_at(101 * SECOND + 999_999_999)


@given(
    rate=st.one_of(st.sampled_from([1 / 86_400, 1.0, 3.0, 30e6, 1e10]), st.floats(1e-5, 1e10)),
    burst=st.one_of(st.integers(1, 5), st.integers(1, 10**7)),
    calls=st.lists(
        st.tuples(st.one_of(st.integers(0, 50), st.integers(0, 10**12)), counts),
        min_size=2,
        max_size=25,
    ),
)
@example(rate=1.0, burst=1, calls=[(100_900_000_000, 1), (100_000_000, 1)])
def test_no_span_of_time_grants_more_than_rate_and_burst(
    rate: float, burst: int, calls: list[tuple[int, int]]
) -> None:
    bucket = TokenBucket(rate, burst, now_ns=0)
    now = 0
    grants: list[tuple[int, int]] = []
    for step, n in calls:
        now += step
        grants.append((now, bucket.acquire_up_to_at(now, n)))
    for first in range(len(grants)):
        total = 0
        for then, granted in grants[first:]:
            total += granted
            assert total <= Fraction(rate) * (then - grants[first][0]) / SECOND + burst


@given(
    rate=st.floats(0.1, 1e10),
    burst=st.integers(1, 10**6),
    times=st.lists(st.integers(0, 100 * SECOND), min_size=1, max_size=40),
)
def test_time_that_goes_to_and_fro_credits_nothing_twice(
    rate: float, burst: int, times: list[int]
) -> None:
    bucket = TokenBucket(rate, burst, now_ns=0)
    granted = sum(bucket.acquire_up_to_at(now, MAX_TOKENS) for now in times)
    assert granted <= burst + Fraction(rate) * max(times) / SECOND


@given(rate=rates, burst=bursts, back=st.integers(1, 10**12))
def test_a_clock_that_went_back_neither_crashes_nor_grants(
    rate: float, burst: int, back: int
) -> None:
    assume(rate < INF)
    bucket = TokenBucket(rate, burst, now_ns=0)
    assert bucket.acquire_up_to_at(10**12, MAX_TOKENS) == burst
    assert bucket.acquire_up_to_at(10**12 - back, MAX_TOKENS) == 0
    assert bucket.tokens_at(10**12 - back) <= 0
    check_wait(
        bucket.retry_after_at(10**12 - back), 10**12 - back,
        INF if rate == 0 or burst == 0 else 10**12 + math.ceil(SECOND / Fraction(rate)),
    )  # fmt: skip


@given(
    rate=st.one_of(st.floats(1e-5, 1e10), st.integers(1, 10**10).map(float)),
    burst=st.integers(1, 10**7),
    taken=st.integers(0, 10**7),
    n=st.integers(1, 10**7),
    now=st.integers(0, 10**12),
)
def test_retry_after_is_enough_and_no_more(
    rate: float, burst: int, taken: int, n: int, now: int
) -> None:
    assume(n <= burst)
    bucket = TokenBucket(rate, burst, now_ns=0)
    bucket.acquire_up_to_at(now, taken)
    wait = bucket.retry_after_at(now, n)
    if wait == 0.0:
        assert bucket.try_acquire_at(now, n)
        return
    assume(wait < 9e9)  # int64 ns end there
    waited = math.ceil(Fraction(wait) * SECOND)
    # Some ns, and for waits of weeks a float's rounding.
    slack = 5 + waited // 2**48
    assert not bucket.try_acquire_at(now + waited - slack, n)
    assert bucket.try_acquire_at(now + waited, n)


# Refusals, edges, changes


def test_refused_requests_change_nothing() -> None:
    for asked in (True, False):
        bucket = TokenBucket(10, 10, initial_tokens=3, now_ns=0)
        if asked:
            for now in (0, 10 * DAY):
                assert not bucket.try_acquire_at(now, 11)
                assert bucket.reserve_at(now, 11).delay == INF
            assert not bucket.try_acquire_at(0, 4)
        # Also a request from a clock that was ahead for a moment.
        assert bucket.tokens_at(0) == 3.0
        assert bucket.acquire_up_to_at(100_000_000, 100) == 4


def test_rate_zero_grants_the_initial_tokens_only() -> None:
    bucket = TokenBucket(0, 5, initial_tokens=3, now_ns=0)
    assert bucket.acquire_up_to_at(0, 2) == 2
    assert bucket.acquire_up_to_at(10**18, 10) == 1
    assert bucket.retry_after_at(10**18) == INF
    assert bucket.reserve_at(10**18).delay == INF
    assert bucket.rate == 0


def test_rate_inf_grants_everything() -> None:
    bucket = TokenBucket(INF, 0, now_ns=0)
    assert bucket.try_acquire_at(0, 10**15)
    assert bucket.acquire_up_to_at(0, 10**15) == 10**15
    assert bucket.retry_after_at(0, 10**15) == 0.0
    assert bucket.reserve_at(0, 10**15).delay == 0.0
    assert bucket.tokens_at(0) == bucket.rate == INF
    bucket.set_burst_at(0, 7)
    bucket.set_rate_at(0, 1)
    assert bucket.acquire_up_to_at(0, 10) == 7  # it ends as a full bucket
    assert bucket.acquire_up_to_at(0, 10) == 0


def test_burst_zero_grants_nothing() -> None:
    bucket = TokenBucket(1e9, 0, now_ns=0)
    assert bucket.try_acquire_at(0, 0)
    assert not bucket.try_acquire_at(DAY)
    assert bucket.acquire_up_to_at(DAY, 5) == 0
    assert bucket.retry_after_at(DAY) == bucket.reserve_at(DAY).delay == INF


def test_burst_is_not_the_initial_fill() -> None:
    assert TokenBucket(1, 5, now_ns=0).tokens_at(0) == 5.0
    assert TokenBucket(1, 5, initial_tokens=0, now_ns=0).tokens_at(0) == 0.0
    assert TokenBucket(1, 5, initial_tokens=5, now_ns=0).tokens_at(0) == 5.0


def test_a_change_settles_at_the_old_rate_first() -> None:
    bucket = TokenBucket(1, 100, initial_tokens=0, now_ns=0)
    bucket.set_rate_at(2 * SECOND + SECOND // 2, 100)
    assert bucket.tokens_at(2 * SECOND + SECOND // 2) == 2.5
    assert bucket.acquire_up_to_at(2 * SECOND + SECOND // 2 + 5_000_000, 100) == 3
    bucket.set_rate_at(3 * SECOND, 0)
    assert bucket.tokens_at(DAY) == 49.5
    bucket.set_burst_at(DAY, 20)
    bucket.set_burst_at(DAY, 1000)
    assert bucket.tokens_at(DAY) == 20.0


def test_many_changes_do_not_drift() -> None:
    rng = random.Random(7)
    bucket = TokenBucket(30_000_000, 10**17, initial_tokens=0, now_ns=0)
    now, rate, issued = 0, 30_000_000, Fraction(0)
    for _ in range(5_000):
        step = rng.randrange(10 * SECOND)
        now += step
        issued += Fraction(rate * step, SECOND)
        rate = rng.choice([rng.randrange(1, 1_000), rng.randrange(10**10)])
        bucket.set_rate_at(now, rate)
    # Integer rates leave integer numbers of 10**-9 tokens, and those are kept exactly.
    assert bucket.acquire_up_to_at(now, 10**17) == math.floor(issued)


def test_the_ends_of_the_counts() -> None:
    bucket = TokenBucket(1, MAX_TOKENS, now_ns=0)
    assert bucket.try_acquire_at(0, MAX_TOKENS)
    assert not bucket.try_acquire_at(0)
    assert bucket.give_back_at(0, MAX_TOKENS) == MAX_TOKENS
    for _ in range(3):
        assert bucket.give_back_at(0, MAX_TOKENS) == 0
    assert bucket.acquire_up_to_at(0, MAX_TOKENS) == MAX_TOKENS
    assert bucket.reserve_at(0, MAX_TOKENS).delay == pytest.approx(MAX_TOKENS)
    assert bucket.reserve_at(0, MAX_TOKENS).delay == INF  # the line has no room for more debt
    assert bucket.tokens_at(0) == pytest.approx(-MAX_TOKENS)


def test_the_ends_of_time() -> None:
    for first, last in ((-(2**63), -1), (0, 2**63 - 1)):
        bucket = TokenBucket(1, 5, now_ns=first)
        assert bucket.acquire_up_to_at(last, 10) == 5
        assert bucket.acquire_up_to_at(first, 10) == 0
        assert bucket.reserve_at(first).delay == pytest.approx((last - first) / SECOND)
        assert bucket.reserve_at(last).delay == 2.0


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


# The face


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
        bucket.try_acquire, bucket.acquire_up_to, bucket.retry_after, bucket.reserve, bucket.give_back,
        lambda n: bucket.try_acquire_at(0, n), lambda n: bucket.acquire_up_to_at(0, n),
        lambda n: bucket.retry_after_at(0, n), lambda n: bucket.reserve_at(0, n), lambda n: bucket.give_back_at(0, n),
    ]  # fmt: skip
    for call in calls:
        for n in (-1, MAX_TOKENS + 1, 10**30):
            with pytest.raises(ValueError, match=f"n must be from 0 to {MAX_TOKENS}, not {n}"):
                call(n)
        for wrong in (1.0, "1", None):
            with pytest.raises(TypeError, match="integer"):
                call(wrong)  # type: ignore[arg-type]
    for wrong in ("fast", None, 1j):
        with pytest.raises((TypeError, ValueError)):
            TokenBucket(wrong, 5)  # type: ignore[arg-type]
    for wrong in (5.0, "5", None):
        with pytest.raises(TypeError, match="integer"):
            TokenBucket(1, wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        bucket.try_acquire_at(0.5)  # type: ignore[arg-type]
    with pytest.raises(OverflowError):
        bucket.try_acquire_at(2**63)
    with pytest.raises(TypeError, match=r"TokenBucket\.reserve"):
        Reservation()
    assert bucket.acquire_up_to_at(0, 10) == 5


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
    timeless = {"rate", "burst", "path", "attach"}
    faces = {name for name in names if not name.endswith("_at")} - timeless
    assert {f"{name}_at" for name in faces} == names - faces - timeless


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
        # One more for the fraction beyond a full bucket that has a credit, one for the two clocks' readings.
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


# Threads


def run_threads(work: list[Callable[[], None]]) -> None:
    """Run each at the same time, with thread switches as often as they can be had."""
    barrier = threading.Barrier(len(work))
    errors: list[BaseException] = []

    def body(job: Callable[[], None]) -> None:
        barrier.wait()
        try:
            job()
        except BaseException as error:
            errors.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=body, args=(job,)) for job in work]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    if errors:
        raise errors[0]


@pytest.mark.threads
@pytest.mark.parametrize("burst", [40_000, CREDIT_BURST - 1])
def test_threads_together_get_what_is_there(burst: int) -> None:
    bucket = TokenBucket(1e6, burst, now_ns=0)
    now = 7 * SECOND
    granted: list[int] = []

    def one_by_one() -> None:
        mine = 0
        while bucket.try_acquire_at(now):
            mine += 1
        granted.append(mine)

    def in_parts() -> None:
        rng = random.Random(1)
        mine = 0
        while part := bucket.acquire_up_to_at(now, rng.randrange(1, 9)):
            mine += part
        granted.append(mine)

    run_threads([one_by_one, in_parts, one_by_one, in_parts])
    assert sum(granted) == burst
    assert bucket.tokens_at(now) == 0.0


@pytest.mark.threads
def test_threads_with_reservations_and_changes_keep_the_account() -> None:
    bucket = TokenBucket(1e6, 60_000, now_ns=0)
    kept: list[int] = []
    done = threading.Event()

    def use() -> None:
        rng = random.Random(threading.get_ident())
        mine = 0
        for _ in range(3_000):
            n = rng.randrange(1, 6)
            mine += bucket.acquire_up_to_at(0, n)
            reservation = bucket.reserve_at(0, n)
            mine += n - reservation.cancel_at(0)
            if bucket.try_acquire_at(0, n):
                mine += n - bucket.give_back_at(0, n)
        kept.append(mine)

    def change() -> None:
        rates = itertools.cycle([3.0, 1e10, 1 / 86_400, 0.0])
        while not done.is_set():
            bucket.set_rate_at(0, next(rates))
            bucket.set_burst_at(0, random.choice([60_000, 10**6]))

    def use_and_end(left: list[int] = [2]) -> None:  # noqa: B006 - counts the users down
        try:
            use()
        finally:
            left.pop() if len(left) > 1 else done.set()

    run_threads([use_and_end, use, change])
    done.set()
    assert bucket.tokens_at(0) == 60_000 - sum(kept)


def test_a_reservation_that_many_cancel_comes_back_once() -> None:
    for _ in range(50):
        bucket = TokenBucket(1, 100, initial_tokens=0, now_ns=0)
        reservation = bucket.reserve_at(0, 10)
        back: list[int] = []
        run_threads([lambda r=reservation, b=back: b.append(r.cancel_at(0)) for _ in range(4)])  # type: ignore[misc]
        assert sorted(back) == [0, 0, 0, 10]
        assert bucket.tokens_at(0) == 0.0


@pytest.mark.threads
@pytest.mark.parametrize("burst", [1_000, 2 * CREDIT_BURST])
def test_threads_on_the_real_clock_stay_within_rate_and_burst_and_get_all_of_it(burst: int) -> None:
    rate = 400_000.0
    before = time.perf_counter_ns()
    bucket = TokenBucket(rate, burst, initial_tokens=burst // 2)
    after = time.perf_counter_ns()
    granted: list[int] = []
    most: list[int] = []

    def use(work: Callable[[], int]) -> Callable[[], None]:
        def body() -> None:
            mine = longest = 0
            end = last = time.perf_counter_ns()
            end += 60_000_000
            while last < end:
                mine += work()
                now = time.perf_counter_ns()
                longest = max(longest, now - last)
                last = now
            granted.append(mine)
            most.append(longest)

        return body

    run_threads(
        [
            use(bucket.try_acquire),
            use(lambda: bucket.acquire_up_to(3)),
            use(lambda: bucket.acquire_up_to(50)),
        ]
    )
    lower = time.perf_counter_ns()
    granted.append(bucket.acquire_up_to(10**9))
    upper = time.perf_counter_ns()
    total = sum(granted)
    assert total <= burst // 2 + rate * (upper - before) / 1e9 + 1
    if burst > 2 * CREDIT_BURST - 1:  # never full in 60 ms, so nothing has flowed over
        assert total >= burst // 2 + rate * (lower - after) / 1e9 - 1
