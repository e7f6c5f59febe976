"""TokenBucket under threads: no token is granted twice, and none is lost."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable

import pytest

from ringbuf import TokenBucket
from tests.support.threads import run_threads
from tests.support.token_bucket import CREDIT_BURST, SECOND


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
    if rate * (upper - before) / 1e9 < burst - burst // 2:  # never full, so nothing has flowed over
        assert total >= burst // 2 + rate * (lower - after) / 1e9 - 1
