"""Figure and Measurement: two ways to do the same work, timed turn by turn."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Figure", "Measurement", "measure"]


@dataclass(frozen=True, slots=True)
class Figure:
    """One comparison.

    `ours` and `theirs` do their work once, check it, and return the seconds that the
    timed part took.
    """

    name: str
    yardstick: str
    ours: Callable[[], float]
    theirs: Callable[[], float]
    #: How many times as long as the yardstick `ours` may take; None: only the rate
    #: counts.
    limit: float | None
    #: Events that `ours` carries; 0 where a rate would mean nothing.
    events: int
    #: How often to measure the pair.
    rounds: int
    #: Removes what the figure has made on disk.
    close: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True)
class Measurement:
    """The medians of a figure's rounds.

    `ratio` is the median of the ratios of each pair.
    """

    figure: Figure
    ours: float
    theirs: float
    ratio: float

    @property
    def rate(self) -> float:
        """Events per second."""
        return self.figure.events / self.ours

    @property
    def within(self) -> bool:
        """Whether it keeps its limit."""
        return self.figure.limit is None or self.ratio <= self.figure.limit


def measure(figure: Figure) -> Measurement:
    """Measure ours and the yardstick in turn.

    The first pair warms up and does not count.
    """
    pairs = []
    gc.collect()
    for _ in range(figure.rounds + 1):
        theirs = figure.theirs()
        pairs.append((figure.ours(), theirs))
    ours, theirs = (statistics.median(column) for column in zip(*pairs[1:], strict=True))
    return Measurement(
        figure, ours, theirs, statistics.median(one / other for one, other in pairs[1:])
    )
