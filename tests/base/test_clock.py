"""Clocks: the operating system's, and one that never steps back over one that may."""

from __future__ import annotations

import itertools
import random
import time

import pytest

from backpressure.base.clock import Clock, ForwardClock, MonotonicClock
from backpressure.testing import FakeClock


@pytest.mark.parametrize("clock", [MonotonicClock(), ForwardClock(FakeClock()), FakeClock()])
def test_what_has_now_is_a_clock(clock: Clock) -> None:
    assert isinstance(clock, Clock)
    assert clock.now() <= clock.now()


def test_a_forward_clock_follows_the_one_below() -> None:
    below = FakeClock(5.0)
    clock = ForwardClock(below)
    assert (clock.now(), clock.lag) == (5.0, 0.0)
    below.advance(2.5)
    assert (clock.now(), clock.lag) == (7.5, 0.0)


def test_a_step_back_is_time_that_stood_still() -> None:
    below = FakeClock(100.0)
    clock = ForwardClock(below)
    clock.now()
    below.set(90.0)
    assert clock.now() == 100.0
    assert clock.now() == 100.0, "a step back counts once"
    below.advance(1.0)
    assert clock.now() == 101.0
    below.set(-1000.0)
    assert clock.now() == 101.0
    assert clock.lag == 1101.0


def test_before_its_first_reading_nothing_is_a_step_back() -> None:
    below = FakeClock(100.0)
    clock = ForwardClock(below)
    below.set(-5.0)
    assert (clock.now(), clock.lag) == (-5.0, 0.0)


def test_whatever_the_clock_does_time_is_the_sum_of_its_steps_forward() -> None:
    rng = random.Random(11)
    readings = [float(rng.randrange(-1000, 1000)) for _ in range(1000)]
    below = FakeClock(readings[0])
    clock = ForwardClock(below)
    expected = clock.now()
    for before, reading in itertools.pairwise(readings):
        below.set(reading)
        expected += max(0.0, reading - before)
        now = clock.now()
        assert now == expected
        assert now - clock.lag == reading


def test_the_clock_of_the_system_is_read_as_it_is() -> None:
    """It never steps back, and every event that is admitted reads it: not one call more
    for that.
    """
    assert ForwardClock(MonotonicClock()).now is time.monotonic

    class Own(MonotonicClock):
        readings = iter((2.0, 1.0))

        def now(self) -> float:
            return next(self.readings)

    clock = ForwardClock(Own())
    assert (clock.now(), clock.now()) == (2.0, 2.0), "one that derives from it promises nothing"
