"""The one source of time.

Every policy takes a clock and never asks the operating system itself, so that tests and
simulations own time (`backpressure.testing.FakeClock`). Readings are float seconds from
an arbitrary start; only differences mean anything. Wall-clock time is never used for a
decision: it steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Protocol, runtime_checkable

__all__ = ["Clock", "ForwardClock", "MonotonicClock"]


@runtime_checkable
class Clock(Protocol):
    """Anything with `now()` in float seconds that does not run backwards."""

    def now(self) -> float:
        """Seconds since an arbitrary, fixed moment."""
        ...


class MonotonicClock:
    """The operating system's monotonic clock; has no state, so one may be shared by
    everything.
    """

    __slots__ = ()

    # Bound once: an attribute look-up less on a path taken for every batch.
    now = staticmethod(time.monotonic)

    def __repr__(self) -> str:
        return "MonotonicClock()"


class ForwardClock:
    """A clock that never steps back, over one that may: a step back counts as time that
    stood still, and it goes on from there.

    So nothing is credited twice, and nothing waits for the clock below to catch up.

    Not for several threads at once: its owner reads it under its own lock, and so sees
    readings in the order of their use.

    >>> from backpressure.testing import FakeClock
    >>> below = FakeClock(100.0)
    >>> clock = ForwardClock(below)
    >>> clock.now()
    100.0
    >>> below.set(40.0)
    >>> clock.now(), clock.lag
    (100.0, 60.0)
    >>> below.set(41.5)
    >>> clock.now()
    101.5
    """

    __slots__ = ("_read", "_reading", "lag", "now")

    def __init__(self, clock: Clock) -> None:
        #: Seconds that the clock below has gone back in all: it reads `now() - lag`.
        self.lag = 0.0
        self._read = clock.now
        self._reading = -math.inf
        #: The present reading, in seconds. The operating system's clock keeps the
        #: promise by itself: to look after it would cost every reading another call.
        self.now: Callable[[], float] = (
            clock.now if type(clock) is MonotonicClock else self._read_forward
        )

    def _read_forward(self) -> float:
        reading = self._read()
        if reading < self._reading:
            self.lag += self._reading - reading
        self._reading = reading
        return reading + self.lag

    def glance(self) -> float:
        """The present reading, which leaves everything as it is: for a call that comes
        in the middle of another one.
        """
        return self._read() + self.lag

    def __repr__(self) -> str:
        return f"<ForwardClock {self.lag:g} s ahead>"
