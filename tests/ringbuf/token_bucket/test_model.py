"""TokenBucket against an exact model, under random histories."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
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

from ringbuf import TokenBucket
from tests.support.models import share_and_proof
from tests.support.token_bucket import INF, SECOND, bursts, check_wait, counts, rates, steps


class Model:
    """The law of the bucket in exact fractions: tokens lie on a line, and `spent` of
    them have been taken.
    """

    def __init__(self, rate: float, burst: int, initial: int, now: int) -> None:
        self.rate = rate
        self.burst = burst
        self.anchor = now
        self.base = Fraction(initial)
        self.spent = 0

    def line(self, now: int) -> Fraction:
        """Tokens issued until `now`; constant before the anchor, so that time going
        back brings none.
        """
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
        # What is there of the next token is kept in units of what the new rate's last
        # digit issues in a ns, rounded down.
        digit = Fraction(math.ulp(rate)) if 0 < rate < INF else Fraction(0)
        unit = max(digit, Fraction(1, 2**96)) / SECOND
        whole = math.floor(self.base)
        self.base = whole + math.floor((self.base - whole) / unit) * unit

    def set_burst(self, now: int, burst: int) -> None:
        self.settle(now)
        self.burst = burst


class BucketMachine(RuleBasedStateMachine):
    """Every `_at` method against the model; time stands still, goes on, goes back."""

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
    def cancel(self, held: list[Any]) -> None:
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
