"""Whoever gives up a wait for tokens is as if it had never come: a replay of what
happened without it is the model. What cannot move keeps its time, and none is lost.
"""

from __future__ import annotations

import os
import random
import threading
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
)

from ringbuf import TokenBucket
from ringbuf._meters.token_wait import TokenWait
from tests.support.models import share_and_proof
from tests.support.threads import run_threads
from tests.support.token_bucket import SECOND, check_wait

FOREVER = 1 << 62
ENDLESS = 10**12


def wait(bucket: TokenBucket, n: int = 1) -> TokenWait:
    return TokenWait(bucket, n, deadline_ns=FOREVER)


@dataclass
class Replay:
    """One line, in whole tokens: what it holds, who waits, and who has been granted."""

    burst: int
    level: int
    rate: int = 1
    time: int = 0
    issued: int = 0
    waits: list[tuple[object, int]] = field(default_factory=list)
    #: How many tokens had been issued when it had its own.
    granted: dict[object, int] = field(default_factory=dict)

    def go_on(self, time: int) -> None:
        tokens = (time - self.time) * self.rate
        self.time = time
        self.issued += tokens
        self.level += tokens
        while self.waits and self.level >= self.waits[0][1]:
            who, n = self.waits.pop(0)
            self.level -= n
            self.granted[who] = self.issued - self.level
        if not self.waits:
            self.level = min(self.level, self.burst)

    def join(self, who: object, n: int) -> None:
        self.waits.append((who, n))
        self.go_on(self.time)

    def take(self, who: object, n: int) -> None:
        assert not self.waits
        assert self.level >= n
        self.level -= n

    def set_rate(self, who: object, rate: int) -> None:
        self.rate = rate

    @property
    def tokens(self) -> int:
        return self.level - sum(n for _, n in self.waits)

    def due(self, who: object) -> int:
        """When `who`, which waits, is granted."""
        missing = -self.level
        for other, n in self.waits:
            missing += n
            if other == who:
                return self.time + -(-missing // self.rate)
        raise AssertionError("it does not wait")


class LineMachine(RuleBasedStateMachine):
    """Joins, steps and ends of waits in one process."""

    waits = Bundle("waits")

    @initialize(burst=st.integers(1, 12), share=st.fractions(0, 1))
    def make(self, burst: int, share: Any) -> None:
        self.burst = burst
        self.level = int(burst * share)
        self.now = 0
        self.count = 0
        self.history: list[tuple[int, str, object, int]] = []
        self.done: set[int] = set()
        self.bucket = TokenBucket(SECOND, burst, initial_tokens=self.level, now_ns=0)

    def replay(self, without: object = None) -> Replay:
        line = Replay(self.burst, self.level)
        for time, what, who, n in self.history:
            if who is not None and who == without:
                continue
            line.go_on(time)
            getattr(line, what)(who, n)
        line.go_on(self.now)
        return line

    def happens(self, what: str, who: object, n: int) -> None:
        self.history.append((self.now, what, who, n))

    @rule(step=st.one_of(st.integers(0, 4), st.integers(0, 60)))
    def time_goes_on(self, step: int) -> None:
        self.now += step

    @rule(rate=st.integers(1, 3))
    def set_rate(self, rate: int) -> None:
        self.bucket.set_rate_at(self.now, rate * SECOND)
        self.happens("set_rate", None, rate)

    @rule(n=st.integers(1, 12))
    def try_acquire(self, n: int) -> None:
        there = self.replay().tokens >= n
        assert self.bucket.try_acquire_at(self.now, n) is there
        if there:
            self.happens("take", None, n)

    @rule(target=waits, share=st.integers(1, 12))
    def join(self, share: int) -> Any:
        self.count += 1
        n = min(share, self.burst)
        held = (wait(self.bucket, n), self.count, n)
        self.happens("join", self.count, n)
        self.step(held)
        return held

    @rule(held=waits)
    def step(self, held: tuple[TokenWait, int, int]) -> None:
        waiting, who, _ = held
        line = self.replay()
        seconds = waiting.step_at(self.now)
        assert (seconds == 0) is (who in line.granted)
        if seconds > 0:
            check_wait(seconds, self.now, line.due(who))
        else:
            self.done.add(who)

    @rule(held=consumes(waits))
    def give_up(self, held: tuple[TokenWait, int, int]) -> None:
        waiting, who, n = held
        waiting.end_at(self.now)
        if who in self.done:
            return
        line = self.replay()
        late = line.issued - line.granted.get(who, line.issued)
        # What it left for so long that the bucket would have been full is gone.
        gone = max(0, min(n, late - (self.burst - n)))
        ideal = self.replay(without=who)
        at = next(i for i, happened in enumerate(self.history) if happened[2] == who)
        self.history[at] = (*self.history[at][:2], -who, gone)
        now = self.replay()
        assert now.tokens == ideal.tokens if gone == 0 else now.tokens <= ideal.tokens

    @invariant()
    def the_bucket_holds_what_it_does_in_the_replay(self) -> None:
        if hasattr(self, "bucket"):
            assert self.bucket.tokens_at(self.now) == self.replay().tokens


TestLine, TestLineInFull = share_and_proof(LineMachine, examples=300, steps=50)


class AroundLineMachine(RuleBasedStateMachine):
    """With Reservations, and a bucket that stands for another process: these keep their
    places while others move up around them. (The burst is never reached.)
    """

    waits = Bundle("waits")
    reservations = Bundle("reservations")

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        path = Path(self.folder.name, "bucket")
        self.here = TokenBucket(SECOND, ENDLESS, initial_tokens=0, now_ns=0, path=path)
        self.there = TokenBucket.attach(path)
        self.now = 0
        self.taken = 0
        self.waiting = 0
        self.lost = 0
        #: When they may act, and how many.
        self.reserved: list[tuple[int, int]] = []

    def teardown(self) -> None:
        self.folder.cleanup()

    @rule(step=st.integers(0, 9))
    def time_goes_on(self, step: int) -> None:
        self.now += step

    @rule(n=st.integers(1, 5))
    def try_acquire(self, n: int) -> None:
        if self.here.try_acquire_at(self.now, n):
            self.taken += n

    @rule(target=waits, here=st.booleans(), n=st.integers(1, 5))
    def join(self, here: bool, n: int) -> list[Any]:
        held = [wait(self.here if here else self.there, n), n, FOREVER]
        self.waiting += n
        self.step(held)
        return held

    @rule(held=waits)
    def step(self, held: list[Any]) -> None:
        waiting, n, due = held
        seconds = waiting.step_at(self.now)
        if seconds > 0:
            assert self.now + seconds * SECOND < due + 5, "it waits for longer than it was told"
            held[2] = self.now + seconds * SECOND
        else:
            self.taken += n
            self.waiting -= n
            held[1] = 0  # it is done

    @rule(held=consumes(waits))
    def give_up(self, held: list[Any]) -> None:
        waiting, n, _ = held
        waiting.end_at(self.now)
        self.waiting -= n

    @rule(target=reservations, n=st.integers(1, 5))
    def reserve(self, n: int) -> tuple[Any, int, int]:
        due = self.now + max(0, n - int(self.here.tokens_at(self.now)))
        self.reserved.append((due, n))
        return (self.here.reserve_at(self.now, n), due, n)

    @rule(held=consumes(reservations))
    def cancel(self, held: tuple[Any, int, int]) -> None:
        reservation, due, n = held
        back = reservation.cancel_at(self.now)
        if self.now < due:
            self.reserved.remove((due, n))
            self.lost += n - back

    @invariant()
    def no_more_is_taken_than_was_issued(self) -> None:
        acted = sum(n for due, n in self.reserved if due <= self.now)
        assert self.taken + acted <= self.now

    @invariant()
    def none_is_lost_by_a_wait(self) -> None:
        reserved = sum(n for _, n in self.reserved)
        spent = self.taken + self.waiting + self.lost + reserved
        assert self.here.tokens_at(self.now) == self.now - spent


if hasattr(os, "fork"):  # shared buckets need Linux
    TestAroundLine, TestAroundLineInFull = share_and_proof(
        AroundLineMachine, examples=300, steps=50
    )


@pytest.mark.threads
def test_threads_that_come_and_give_up_keep_the_account() -> None:
    bucket = TokenBucket(SECOND, ENDLESS, initial_tokens=0, now_ns=0)
    clock = [0]
    kept: list[int] = []

    def use() -> None:
        rng = random.Random(threading.get_ident())
        mine = 0
        waits: list[tuple[TokenWait, int]] = []
        for _ in range(6_000):
            clock[0] += rng.randrange(3)  # lost updates do no harm
            if len(waits) < 4:
                n = rng.randrange(1, 5)
                waits.append((wait(bucket, n), n))
            at = rng.randrange(len(waits))
            waiting, n = waits[at]
            if waiting.step_at(clock[0]) == 0:
                mine += n
                del waits[at]
            elif rng.random() < 0.2:
                waiting.end_at(clock[0])
                del waits[at]
        for waiting, _ in waits:
            waiting.end_at(clock[0])
        kept.append(mine)

    run_threads([use] * 4)
    assert sum(kept) > 0
    assert bucket.tokens_at(clock[0]) == clock[0] - sum(kept)
