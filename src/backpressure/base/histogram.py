"""Histogram: counts of values between fixed bounds, the way Prometheus keeps them.

ringbuf.LatencyHistogram resolves to 1 %, in thousands of buckets. What leaves the
process needs the same few bounds for ever, exact at each of them, and few enough to be
a handful of series: that is this one. It is written under its owner's lock, once for
each batch, and read as a frozen snapshot.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Final

__all__ = ["EVENTS", "SECONDS", "Histogram", "HistogramStats"]

#: Bounds for times (s), about three to each factor of ten: from a batch for a local
#: file to a sink that was down for an hour.
SECONDS: Final = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 3600.0),
)
#: Bounds for batch sizes (events): from a single one to beyond the largest default
#: batch.
EVENTS: Final = (1.0, 10.0, 100.0, 500.0, 1e3, 2.5e3, 5e3, 1e4, 2.5e4, 5e4, 1e5, 2.5e5)


@dataclass(frozen=True, slots=True, kw_only=True)
class HistogramStats:
    """One histogram at one moment."""

    bounds: tuple[float, ...]  #: upper bounds, ascending; a value on a bound lies below it
    #: Values between each bound and the one before it, and at last those above all.
    counts: tuple[int, ...]
    sum: float  #: of all values

    @property
    def count(self) -> int:
        """How many values."""
        return sum(self.counts)

    def quantile(self, q: float) -> float:
        """The value below which the share `q` (0 to 1) lies: interpolated within its
        bucket, nan where there are no values.
        """
        rank = q * self.count
        below = 0.0
        low = 0.0
        for bound, count in zip(self.bounds, self.counts, strict=False):
            if count and below + count >= rank:
                return low + (bound - low) * (rank - below) / count
            below += count
            low = bound
        return low if self.count else float("nan")


class Histogram:
    """Not safe for several threads: the owner's lock makes it so."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def record(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def stats(self) -> HistogramStats:
        return HistogramStats(bounds=self._bounds, counts=tuple(self._counts), sum=self._sum)
