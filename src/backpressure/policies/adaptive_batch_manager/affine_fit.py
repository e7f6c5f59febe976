"""The line latency = a * n + b of a sink, learnt online. For one thread at a time."""

from __future__ import annotations

import math
from typing import Final

from backpressure.policies.adaptive_batch_manager.samples import Period

__all__ = ["AffineFit"]

# The weight of the past at each period: it remembers about five.
_KEEP: Final = 0.8
# The deviation of the sizes, as a share of their mean, that tells a from b despite
# ordinary noise.
_SPREAD: Final = 0.02
# Sizes this near have like latencies; where these differ by more than the factor, the
# sink has changed.
_LIKE: Final = 0.2
_CHANGED: Final = 1.25


class AffineFit:
    """latency = a * n + b with a, b >= 0, by least squares that forget exponentially.

    A period weighs 1, whatever its number of batches: else one at a fast sink washes
    out what steps taught.
    """

    __slots__ = ("_latency", "_size", "_slope", "_spread", "_together", "_weight", "fresh")

    def __init__(self) -> None:
        # Of the past: its weight, its mean size, its mean latency.
        self._weight = self._size = self._latency = 0.0
        # Weighted sums of squares: size by size, size by latency.
        self._spread = self._together = 0.0
        self._slope: float | None = None  # the last one that was told apart from b
        self.fresh = False  # whether the sizes still remembered tell a from b

    @property
    def known(self) -> bool:
        """Whether a was ever told apart from b."""
        return self._slope is not None

    def add(self, period: Period) -> None:
        """Take in one period, merging means and sums of squares (Chan, Golub and
        LeVeque, 1979).
        """
        count = len(period.kept)
        size = sum(n for n, _, _ in period.kept) / count
        latency = sum(t for _, t, _ in period.kept) / count
        like = abs(size - self._size) <= _LIKE * self._size
        if like and not self._latency / _CHANGED <= latency <= self._latency * _CHANGED:
            self._weight = self._spread = self._together = (
                0.0  # not the sink it was: its past is void
            )
        past = _KEEP * self._weight
        self._weight = past + 1.0
        more, later = size - self._size, latency - self._latency
        spread = sum((n - size) ** 2 for n, _, _ in period.kept) / count
        together = sum((n - size) * (t - latency) for n, t, _ in period.kept) / count
        self._spread = _KEEP * self._spread + spread + more * more * past / self._weight
        self._together = _KEEP * self._together + together + more * later * past / self._weight
        self._size += more / self._weight
        self._latency += later / self._weight
        self.fresh = self._spread > self._weight * (_SPREAD * self._size) ** 2
        if self.fresh:
            self._slope = max(0.0, self._together / self._spread)

    def line(self) -> tuple[float, float]:
        """a and b, by the last known slope; all is a where there is none, or where b
        would be negative.
        """
        if self._slope is None or self._slope * self._size > self._latency:
            return (self._latency / self._size if self._size else 0.0), 0.0
        return self._slope, self._latency - self._slope * self._size

    def latency_of(self, size: int) -> float:
        """How many seconds `n` events take."""
        a, b = self.line()
        return a * size + b

    def size_in(self, seconds: float) -> float:
        """How many events take that long."""
        a, b = self.line()
        if a > 0.0:
            return (seconds - b) / a
        return math.inf if b < seconds else 0.0
