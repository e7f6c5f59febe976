"""What an evaluation of the batch size sees: the batches since the last one, weighed by
their events.

A mixed load has many tiny urgent batches beside few large ones. By batches, the tiny
ones would hide that the large ones are full, or late; so shares and percentiles here
are of events. The tiny ones are also kept apart, as otherwise they would soon wash the
large ones out of what is kept.

Not safe for several threads: AdaptiveBatchManager calls it under its lock.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, TypeAlias

__all__ = ["FEWEST", "BatchSamples", "Period", "Sample"]

# Batches of each kind that are kept at least, where there are more: six lie above the
# p95 of these, and sorting them takes microseconds. They are spread evenly over the
# interval: the latest alone would not show a burst at its beginning.
_KEPT: Final = 128
# Batches that decide anything: without the slowest, four are left.
FEWEST: Final = 5
# Batches of less than this part of the batch size are the tiny ones: too small to tell
# whether the size is right.
_TINY: Final = 8

#: Events, seconds, and whether the batch was full; None: it could not tell.
Sample: TypeAlias = tuple[int, float, bool | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """What the batches of one interval show. Outliers (see `BatchSamples.take`) are
    only in `filled`.
    """

    p95: float = (
        0.0  # seconds; 95 % of the events were in batches as fast as that; never the slowest batch
    )
    tail: float = 1.0  # p95 / mean latency of the full batches, at least 1
    filled: float = 0.0  # the part of the events that was in full batches, of those that can tell
    pace: float = (
        0.0  # events per second of the sink's time; inf where its clock is too coarse to tell
    )
    full_pace: float = (
        math.inf
    )  # the same of full batches alone, which does not depend on the mix; inf where there are none
    largest: int = 0  # events in the largest batch
    beyond: bool = (
        False  # the batches were larger than the batch size: they do not show how it does itself
    )
    kept: Sequence[Sample] = ()


class BatchSamples:
    """Collects batches, and makes a Period of them."""

    __slots__ = ("_events", "_kinds", "batches", "events")

    def __init__(self) -> None:
        # Tiny batches, and all others; how many events there were altogether.
        self._kinds = (_Spread(), _Spread())
        self._events = [0, 0]
        #: All since the start.
        self.batches = self.events = 0

    def clear(self) -> None:
        self._kinds = (_Spread(), _Spread())
        self._events = [0, 0]

    def add(self, size: int, latency: float, filled: bool | None, batch_size: int) -> None:
        """`batch_size`: the present one. Whatever is larger would have filled it, also
        if still more was asked for.
        """
        kind = size * _TINY >= batch_size
        self._kinds[kind].add(
            (size, latency, filled if size <= batch_size or filled is None else True)
        )
        self._events[kind] += size
        self.events += size
        self.batches += 1

    def take(self, batch_size: int) -> Period | None:
        """The period, and begin the next one; None: too few batches, which stay for the
        next time.

        Batches larger than the size were asked for before a cut, or explicitly: they
        are only looked at where there are not enough others. An outlier is slower than
        twice the p95, a larger batch in proportion (b >= 0).
        """
        # The weight of an event: a kind counts with all its events, however many of its
        # batches are kept.
        weights = [
            events / held if (held := sum(size for size, _, _ in kind.kept)) else 0.0
            for kind, events in zip(self._kinds, self._events, strict=True)
        ]
        everything = [
            (sample, weight)
            for kind, weight in zip(self._kinds, weights, strict=True)
            for sample in kind.kept
        ]
        batches = [one for one in everything if one[0][0] <= batch_size]
        if beyond := len(batches) < FEWEST:
            batches = everything
        if len(batches) < FEWEST:
            return None

        told = sum(size * weight for (size, _, filled), weight in batches if filled is not None)
        batches.sort(key=lambda one: one[0][1])
        below = list(accumulate(size * weight for (size, _, _), weight in batches))
        place = bisect_left(below, 0.95 * below[-1])
        at, p95, _ = batches[min(place, len(batches) - 2)][0]
        kept = [one for one in batches if one[0][1] <= 2.0 * p95 * max(1.0, one[0][0] / at)]
        # Those that another limit closed are as large as they get, too.
        limited = [sample for sample, _ in kept if sample[2] is not False]
        weighted = sum(size * latency for size, latency, _ in limited)
        busy = sum(latency * weight for (_, latency, _), weight in kept)
        full_busy = sum(latency for _, latency, filled in limited if filled)
        period = Period(
            p95=p95,
            tail=max(1.0, p95 * sum(size for size, _, _ in limited) / weighted)
            if weighted > 0.0
            else 1.0,
            filled=sum(size * weight for (size, _, filled), weight in batches if filled) / told
            if told
            else 0.0,
            pace=sum(size * weight for (size, _, _), weight in kept) / busy
            if busy > 0.0
            else math.inf,
            full_pace=sum(size for size, _, filled in limited if filled) / full_busy
            if full_busy > 0.0
            else math.inf,
            largest=max(size for (size, _, _), _ in batches),
            beyond=beyond,
            kept=[sample for sample, _ in kept],
        )
        self.clear()
        return period


class _Spread:
    """Some of what is added, evenly spread: every one at first, every second one once
    there are too many, and so on.
    """

    __slots__ = ("_every", "_skip", "kept")

    def __init__(self) -> None:
        self.kept: list[Sample] = []
        self._every = 1
        self._skip = 0  # how many to leave out before the next one

    def add(self, sample: Sample) -> None:
        if self._skip:
            self._skip -= 1
            return
        self._skip = self._every - 1
        self.kept.append(sample)
        if len(self.kept) == 2 * _KEPT:
            del self.kept[
                1::2
            ]  # this last one too: the next one comes where the wider steps have it
            self._every *= 2
