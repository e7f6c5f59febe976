"""CircuitBreaker under threads: what takes no lock, what is called without it, and that
nothing is lost.
"""

from __future__ import annotations

import itertools
import random
import threading
from functools import partial

import pytest

from backpressure.policies.circuit_breaker import (
    Permit,
    State,
    fast_path,
)
from backpressure.policies.circuit_breaker.fast_path import FastPath
from backpressure.testing import FakeClock
from tests.support.circuit_breaker import DownError, acquire, fail, half_open, make, trip
from tests.support.threads import PATIENCE, background, in_thread, run_threads

# --- without the lock


def test_calls_that_cannot_change_the_state_take_no_lock() -> None:
    breaker = make(FakeClock())

    @breaker
    def work() -> int:
        return 7

    got: list[object] = []

    def use() -> None:
        got.append(work())
        with breaker:
            pass
        acquire(breaker).success()
        got.append(breaker.call(int, "7"))

    with breaker._lock:  # would hang if it were taken
        in_thread(use)
    assert got == [7, 7]
    metrics = breaker.metrics()
    assert (metrics.admitted, metrics.succeeded, metrics.window_calls) == (4, 4, 4)


@pytest.mark.parametrize("form", ["decorator", "call", "with", "permit"])
def test_every_call_is_counted_however_many(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_path, "_TOKENS", 256)
    clock = FakeClock()
    breaker = make(clock)
    work = breaker(int)

    def one() -> None:
        if form == "decorator":
            work()
        elif form == "call":
            breaker.call(int)
        elif form == "with":
            with breaker:
                pass
        else:
            acquire(breaker).success()

    for done in range(1, 1001):
        one()
        if done in (1, 255, 256, 257, 513, 1000):
            metrics = breaker.metrics()
            assert (metrics.admitted, metrics.succeeded, metrics.window_calls) == (done, done, done)
    clock.advance(4.5)
    one()
    assert breaker.metrics().window_calls == 1001
    clock.advance(0.5)
    one()
    assert (
        breaker.metrics().window_calls == 2
    )  # the thousand are five seconds old, though none came in between


def test_a_success_that_slips_by_while_a_failure_is_judged_counts_in_the_verdict(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three successes come between the moment at which the failure has counted all, and
    that from which none gets by.
    """
    breaker = make(FakeClock(), failure_threshold=0.25)
    others = [acquire(breaker) for _ in range(3)]
    shut = FastPath.shut

    def late(self: FastPath) -> tuple[int, int]:
        while others:
            others.pop().success()
        return shut(self)

    failing = acquire(breaker)
    monkeypatch.setattr(FastPath, "shut", late)
    failing.failure()
    assert (breaker.metrics().succeeded, breaker.metrics().failed) == (3, 1)
    assert (
        breaker.state is State.OPEN
    )  # in whatever order they came, the last of the four was the one that trips


def test_a_snapshot_shows_no_more_successes_than_admissions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where a whole call goes by between the looks at the two piles."""
    breaker = make(FakeClock())

    class Pile(list):  # type: ignore[type-arg]
        def __len__(self) -> int:
            length = super().__len__()
            if busy:
                busy.clear()
                acquire(breaker).success()
            return length

    breaker._fast_path.admissions = Pile(breaker._fast_path.admissions)
    breaker._fast_path.successes = Pile(breaker._fast_path.successes)
    for _ in range(3):
        busy = [True]
        metrics = breaker.metrics()
        assert metrics.succeeded <= metrics.admitted
        assert not busy
    assert breaker.metrics().succeeded == breaker.metrics().admitted == 3


@pytest.mark.parametrize("tokens", [1, 3, 1024])
def test_threads_lose_no_count_and_find_every_change(
    tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls from four threads, while a fifth takes snapshots, resets, and lets failures
    in.
    """
    monkeypatch.setattr(fast_path, "_TOKENS", tokens)
    clock = FakeClock()
    breaker = make(clock, min_requests=50, failure_threshold=1.0)
    work = breaker(int)
    threads, calls = 4, 3_000
    over = threading.Event()
    wrong: list[object] = []

    def hammer(number: int) -> None:
        for _ in range(calls):
            if number % 2:
                work()
            else:
                acquire(breaker).success()

    def disturb() -> None:
        for turn in itertools.count():
            if over.is_set():
                return
            metrics = breaker.metrics()
            if (
                metrics.succeeded > metrics.admitted
                or metrics.window_calls > metrics.succeeded + metrics.failed
            ):
                wrong.append(metrics)
            clock.advance(0.1)
            if turn % 3 == 0:
                breaker.reset()
            if turn % 5 == 0:
                breaker.call(int)
                with pytest.raises(DownError):
                    breaker.call(fail, DownError())

    with background(disturb, stop=over):
        run_threads([partial(hammer, number) for number in range(threads)])
    assert wrong == []
    metrics = breaker.metrics()
    assert metrics.state is State.CLOSED
    assert metrics.rejected == 0
    assert (
        metrics.admitted
        == metrics.succeeded + metrics.failed
        == threads * calls + 2 * metrics.failed
    )


def test_a_permit_dropped_while_the_lock_is_held_takes_no_lock() -> None:
    """As a garbage collection does it that runs in the middle of a method of the
    breaker.
    """
    clock = FakeClock()
    breaker = make(clock, half_open_requests=1)
    trip(breaker)
    probes = [half_open(breaker, clock)]
    with breaker._lock:
        in_thread(probes.clear)
    assert breaker.try_acquire() is not None


# --- what is called without the lock


def test_on_change_runs_without_the_lock() -> None:
    clock = FakeClock()
    seen: list[State] = []

    def look(old: State, new: State, reason: str) -> None:
        # This takes the lock: with it held, it would hang.
        seen.append(in_thread(lambda: breaker.metrics().state))

    breaker = make(clock, look, half_open_requests=1)
    trip(breaker)
    half_open(breaker, clock).success()
    breaker.record_many(0, 10)
    breaker.reset()
    assert seen == [State.OPEN, State.HALF_OPEN, State.CLOSED, State.OPEN, State.CLOSED]


def test_no_lock_is_held_across_the_call() -> None:
    breaker = make(FakeClock())
    got: list[bool] = []

    def other() -> None:
        got.append(breaker.try_acquire() is not None)

    def work() -> None:
        in_thread(other)

    breaker.call(work)
    with breaker:
        work()
    assert got == [True, True]


# --- threads


@pytest.mark.parametrize("slots", [1, 5])
def test_half_open_never_admits_more_probes_than_slots_under_threads(slots: int) -> None:
    """Eight threads ask at once, in many rounds; some probes are ignored, and only then
    may others go out.
    """
    clock = FakeClock()
    breaker = make(clock, half_open_requests=slots, min_requests=slots, max_reset_timeout=8.0)
    threads, rounds = 8, 60
    meet = threading.Barrier(threads)
    won: list[list[Permit]] = [[] for _ in range(threads)]
    ignored: list[int] = [0] * threads
    wrong: list[str] = []

    def check() -> None:
        permits = [permit for mine in won for permit in mine]
        if len(permits) != slots:
            wrong.append(f"{len(permits)} probes for {slots} slots")
        for permit in permits:
            permit.failure()
        if breaker.state is not State.OPEN:
            wrong.append(f"state {breaker.state}")
        clock.advance(8.0)

    def ask(number: int) -> None:
        chance = random.Random(number)
        for _ in range(rounds):
            won[number] = []
            ignored[number] = 0
            if meet.wait(PATIENCE) == 0 and breaker.metrics().probes_out > slots:
                wrong.append("too many out")
            for _ in range(20):
                permit = breaker.try_acquire()
                if permit is None:
                    continue
                out = breaker.metrics().probes_out
                if out > slots:
                    wrong.append(f"{out} probes out")
                if chance.random() < 0.3:
                    permit.ignore()
                else:
                    won[number].append(permit)
            permit = breaker.try_acquire()  # an ignored one left a slot: fill up
            while permit is not None:
                won[number].append(permit)
                permit = breaker.try_acquire()
            if meet.wait(PATIENCE) == 0:
                check()
            meet.wait(PATIENCE)

    trip(breaker)
    clock.advance(8.0)
    run_threads([partial(ask, number) for number in range(threads)])
    assert wrong == []
    metrics = breaker.metrics()
    assert metrics.trips == rounds + 1
    assert metrics.admitted == metrics.succeeded + metrics.failed + metrics.ignored
