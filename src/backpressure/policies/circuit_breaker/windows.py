"""Rolling windows of call results: how many of the latest calls failed, and how many
were slow.

`TimeWindow` covers the last seconds, in buckets; `CountWindow` the last
results, however old they are. Both keep running totals, so that reading a rate costs
nothing. Not safe for several threads: the circuit breaker's lock guards them.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

__all__ = ["CountWindow", "TimeWindow"]

# How finely time rolls: the window forgets in steps of a tenth, as those of Polly and
# failsafe-go do.
_BUCKETS: Final = 10


class TimeWindow:
    """Counts over the last `interval` seconds.

    What it shows is never older than `interval`, and lacks at most one bucket's width
    of it. `now` never runs backwards.
    """

    __slots__ = ("_buckets", "_index", "_width", "calls", "failed", "slow")

    def __init__(self, interval: float, now: float) -> None:
        self._width = interval / _BUCKETS
        self._index = math.floor(now / self._width)
        self._buckets = [[0, 0, 0] for _ in range(_BUCKETS)]
        self.calls = self.failed = self.slow = 0

    @property
    def until(self) -> float:
        """When the present bucket ends: `roll` does nothing before."""
        return (self._index + 1) * self._width

    @property
    def is_new(self) -> bool:
        """Whether all that it holds came within the present bucket."""
        return self.calls == self._buckets[self._index % _BUCKETS][0]

    def roll(self, now: float) -> None:
        """Drop the buckets whose time is over."""
        index = math.floor(now / self._width)
        steps = index - self._index
        if steps <= 0:
            return
        self._index = index
        for past in range(min(steps, _BUCKETS)):
            bucket = self._buckets[(index - past) % _BUCKETS]
            self.calls -= bucket[0]
            self.failed -= bucket[1]
            self.slow -= bucket[2]
            bucket[:] = (0, 0, 0)

    def add(self, calls: int, failed: int, slow: int) -> None:
        """Count results as of the last `roll`."""
        bucket = self._buckets[self._index % _BUCKETS]
        bucket[0] += calls
        bucket[1] += failed
        bucket[2] += slow
        self.calls += calls
        self.failed += failed
        self.slow += slow

    def clear(self) -> None:
        for bucket in self._buckets:
            bucket[:] = (0, 0, 0)
        self.calls = self.failed = self.slow = 0


class CountWindow:
    """Counts over the last `size` results.

    It keeps runs of like results, so a million of them at once cost no more than one.
    """

    __slots__ = ("_runs", "_size", "calls", "failed", "slow")

    def __init__(self, size: int) -> None:
        self._size = size
        self._runs: deque[tuple[int, int, int]] = (
            deque()
        )  # how many results; for each of them 1 if it failed, if it was slow
        self.calls = self.failed = self.slow = 0

    @property
    def until(self) -> float:
        """Time changes nothing here."""
        return math.inf

    def roll(self, now: float) -> None:
        """Time changes nothing here."""

    def add(self, calls: int, failed: int, slow: int) -> None:
        """Count results; of several at once the failures are taken for the latest, and
        for the slow ones as far as they go.
        """
        both = min(failed, slow)
        self._push(calls - failed - (slow - both), 0, 0)
        self._push(slow - both, 0, 1)
        self._push(failed - both, 1, 0)
        self._push(both, 1, 1)

    def clear(self) -> None:
        self._runs.clear()
        self.calls = self.failed = self.slow = 0

    def _push(self, count: int, failed: int, slow: int) -> None:
        if count == 0:
            return
        if self._runs and self._runs[-1][1:] == (failed, slow):
            self._runs[-1] = (self._runs[-1][0] + count, failed, slow)
        else:
            self._runs.append((count, failed, slow))
        self._turn(count, failed, slow)
        while (surplus := self.calls - self._size) > 0:
            oldest, failed, slow = self._runs.popleft()
            gone = min(oldest, surplus)
            if gone < oldest:
                self._runs.appendleft((oldest - gone, failed, slow))
            self._turn(-gone, failed, slow)

    def _turn(self, count: int, failed: int, slow: int) -> None:
        self.calls += count
        self.failed += count * failed
        self.slow += count * slow
