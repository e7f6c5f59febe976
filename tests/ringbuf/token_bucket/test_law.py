"""TokenBucket: the law in time, at the ends of its ranges, and across changes."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from ringbuf import TokenBucket
from tests.support.token_bucket import (
    DAY,
    INF,
    MAX_TOKENS,
    SECOND,
    bursts,
    check_wait,
    counts,
    rates,
)

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
@example(rate=1e-5, burst=40001, taken=40001, n=40001, now=0)  # 127 years
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
