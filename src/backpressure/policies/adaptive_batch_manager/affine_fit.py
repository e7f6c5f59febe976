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
# Sizes that lie among those remembered, this many deviations or this share of the mean
# away from it, have the latency that these tell; where it differs by more than the
# factor, the sink has changed.
_AMONG: Final = 2.0
_LIKE: Final = 0.2
_CHANGED: Final = 1.25
# How many standard errors are doubt: one time in fifty, noise alone is more.
_SURE: Final = 2.0


class AffineFit:
    """latency = a * n + b with a, b >= 0, by least squares that forget exponentially.

    A period weighs 1, whatever its number of batches: else one at a fast sink washes
    out what steps taught.
    """

    __slots__ = (
        *("_batches", "_latency", "_scatter", "_size", "_slope", "_spread", "_together"),
        *("_weight", "fresh"),
    )

    def __init__(self) -> None:
        # Of the past: its weight, its mean size, its mean latency.
        self._weight = self._size = self._latency = 0.0
        # Weighted sums of squares: size by size, size by latency, latency by latency.
        self._spread = self._together = self._scatter = 0.0
        self._batches = 0.0  # how many batches these are of
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
        if self._weight and self._has_changed(size, latency):
            self._weight = self._batches = self._spread = self._together = self._scatter = 0.0
            self._slope = None  # what the other sink took tells nothing about this one
        past = _KEEP * self._weight
        self._weight = past + 1.0
        more, later = size - self._size, latency - self._latency
        spread = sum((n - size) ** 2 for n, _, _ in period.kept) / count
        together = sum((n - size) * (t - latency) for n, t, _ in period.kept) / count
        scatter = sum((t - latency) ** 2 for _, t, _ in period.kept) / count
        self._batches = _KEEP * self._batches + count
        self._scatter = _KEEP * self._scatter + scatter + later * later * past / self._weight
        self._spread = _KEEP * self._spread + spread + more * more * past / self._weight
        self._together = _KEEP * self._together + together + more * later * past / self._weight
        self._size += more / self._weight
        self._latency += later / self._weight
        self.fresh = self._spread > self._weight * (_SPREAD * self._size) ** 2
        if self.fresh:
            self._slope = max(0.0, self._together / self._spread)

    def _has_changed(self, size: float, latency: float) -> bool:
        """Whether that is not the sink it was."""
        deviation = math.sqrt(self._spread / self._weight)
        if abs(size - self._size) > max(_LIKE * self._size, _AMONG * deviation):
            return False  # the line is no guide beyond what it has seen
        expected = self.latency_of(size) if self._slope is not None else self._latency
        return not expected / _CHANGED <= latency <= expected * _CHANGED

    def line(self) -> tuple[float, float]:
        """a and b, by the last known slope; all is a where there is none, or where b
        would be negative.
        """
        if self._slope is None or self._slope * self._size > self._latency:
            return (self._latency / self._size if self._size else 0.0), 0.0
        return self._slope, self._latency - self._slope * self._size

    def latency_of(self, size: float) -> float:
        """How many seconds `size` events take."""
        a, b = self.line()
        return a * size + b

    def size_where(self, overhead: float, *, surely: bool = False) -> float:
        """At how many events b is that share (0 to 1) of what they take.

        surely: at least, as far as the noise lets b be told.
        """
        a, b = self.line()
        if surely and self.fresh:
            a += _SURE * self._error(a)
            b = max(0.0, self._latency - a * self._size)
        return b / a * (1.0 / overhead - 1.0) if a > 0.0 else math.inf

    def _error(self, slope: float) -> float:
        """The standard error of the slope."""
        unexplained = max(0.0, self._scatter - slope * self._together)
        return math.sqrt(unexplained / (self._spread * self._batches))

    def size_in(self, seconds: float) -> float:
        """How many events take that long."""
        a, b = self.line()
        if a > 0.0:
            return (seconds - b) / a
        return math.inf if b < seconds else 0.0
