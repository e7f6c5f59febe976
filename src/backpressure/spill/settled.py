"""Settled: which numbers of a lane are acked, lost or never used.

They need no delivery. Everything below `seq` is settled, and beyond it single ranges
are. Each range knows how many events it stands for, so that what is left on disk can be
counted although gaps are settled too. For one thread at a time.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

__all__ = ["Settled"]


class Settled:
    """A set of numbers: a prefix, and sorted, disjoint ranges behind it."""

    def __init__(
        self, seq: int = 0, rank: int = 0, ranges: Iterable[tuple[int, int, int]] = ()
    ) -> None:
        #: All below it is settled.
        self.seq = seq
        #: How many events were ever stored below it.
        self.rank = rank
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._events: list[int] = []
        for start, end, events in ranges:
            self.add(start, end, events)

    @property
    def events(self) -> int:
        """Events ever stored and settled."""
        return self.rank + sum(self._events)

    @property
    def end(self) -> int:
        """The number after the last settled one."""
        return self._ends[-1] if self._ends else self.seq

    def ranges(self) -> Iterator[tuple[int, int, int]]:
        """(start, end, events) of each range beyond the prefix."""
        return zip(self._starts, self._ends, self._events, strict=True)

    def __len__(self) -> int:
        """How many ranges lie beyond the prefix."""
        return len(self._starts)

    def next_open(self, seq: int) -> int:
        """The first number from `seq` on that is not settled."""
        if seq < self.seq:
            seq = self.seq
        index = bisect_right(self._starts, seq) - 1
        return self._ends[index] if index >= 0 and seq < self._ends[index] else seq

    def next_settled(self, seq: int) -> int | None:
        """Where the next range behind the open number `seq` begins."""
        index = bisect_left(self._starts, seq)
        return self._starts[index] if index < len(self._starts) else None

    def overlaps(self, start: int, end: int) -> bool:
        """Whether any number from `start` to `end` is settled already."""
        index = bisect_left(self._ends, start + 1)
        return start < self.seq or (index < len(self._starts) and self._starts[index] < end)

    def covers(self, start: int, end: int) -> bool:
        """Whether all numbers from `start` to `end` are settled."""
        return self.next_open(start) >= end

    def open_in(self, start: int, end: int) -> list[tuple[int, int]]:
        """The parts of `start` to `end` that are not settled."""
        parts = []
        while (start := self.next_open(start)) < end:
            stop = self.next_settled(start)
            stop = end if stop is None else min(stop, end)
            parts.append((start, stop))
            start = stop
        return parts

    def empty_in(self, start: int, end: int) -> int:
        """How many settled numbers from `start` to `end` carried no event.

        Those of the prefix are not known, and not counted.
        """
        return sum(
            last - first - events
            for first, last, events in self.ranges()
            if start <= first and last <= end
        )

    def events_in(self, start: int, end: int) -> int:
        """Events of the ranges that lie from `start` to `end`.

        Those of the prefix are not counted.
        """
        return sum(
            events for first, last, events in self.ranges() if start <= first and last <= end
        )

    def settle(self, start: int, end: int, events: int) -> int:
        """Settle what is open from `start` to `end`; returns as how many events.

        It counts as `events` events, but as no more than there are numbers.
        """
        taken = 0
        for part_start, part_end in self.open_in(start, end):
            part = min(events - taken, part_end - part_start)
            self.add(part_start, part_end, part)
            taken += part
        return taken

    def jump(self, seq: int) -> None:
        """Settle everything below `seq`.

        No event was stored between the ranges, or between the last one and `seq`.
        """
        assert seq >= self.end
        rank = self.events
        # Without a call from here on: no signal's handler can raise in between.
        self.seq = seq
        self.rank = rank
        self._starts, self._ends, self._events = [], [], []

    def add(self, start: int, end: int, events: int) -> None:
        """Settle numbers that are all open."""
        if start >= end:
            return
        assert not self.overlaps(start, end)
        # Ranges that touch become one, so that there are few.
        first = last = bisect_left(self._starts, start)
        if last < len(self._starts) and self._starts[last] == end:
            end, events = self._ends[last], events + self._events[last]
            last += 1
        if first > 0 and self._ends[first - 1] == start:
            first -= 1
            start, events = self._starts[first], events + self._events[first]
        # Without a call from here on: no signal's handler can raise in between.
        if start == self.seq:
            self.seq = end
            self.rank += events
            starts: tuple[int, ...] = ()
            ends: tuple[int, ...] = ()
            counts: tuple[int, ...] = ()
        else:
            starts, ends, counts = (start,), (end,), (events,)
        self._starts[first:last] = starts
        self._ends[first:last] = ends
        self._events[first:last] = counts

    def _check(self) -> None:
        before = self.seq
        for start, end, events in self.ranges():
            assert before < start < end
            assert 0 <= events <= end - start
            before = end
