"""The one source of time.

Every policy takes a clock and never asks the operating system itself, so that tests and simulations own time
(`backpressure.testing.FakeClock`). Readings are float seconds from an arbitrary start; only differences mean anything.
Wall-clock time is never used for a decision: it steps.
"""

from __future__ import annotations

import time
from typing import Protocol, runtime_checkable

__all__ = ["Clock", "MonotonicClock"]


@runtime_checkable
class Clock(Protocol):
    """Anything with `now()` in float seconds that does not run backwards."""

    def now(self) -> float:
        """Seconds since an arbitrary, fixed moment."""
        ...


class MonotonicClock:
    """The operating system's monotonic clock; has no state, so one may be shared by everything."""

    __slots__ = ()

    # Bound once: an attribute look-up less on a path taken for every batch.
    now = staticmethod(time.monotonic)

    def __repr__(self) -> str:
        return "MonotonicClock()"
