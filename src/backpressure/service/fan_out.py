"""FanOut: a source's lines into the buffers of several sinks, as their routes say.

A source's position moves once each sink that is to get a line has accepted it: the
marks of all buffers stand side by side, in the order of the sinks, and all of them have
to be reached.

Who waits for whom. A sink whose `when_full` is `block` or `reject` has its sources wait
for room, and so the other sinks wait for it. One that drops never does: what flow
control does not admit to it is refused and counted, as what does not fit is dropped.
Those that drop get each chunk first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from backpressure.buffer.config import WhenFull
from backpressure.buffer_manager import BufferManager
from backpressure.service.config import Route
from backpressure.service.feed import marks_of, put_part
from backpressure.sources.base import Incidents, Marks
from backpressure.sources.line_patterns import SEARCHED_BYTES, compile_pattern
from backpressure.sources.priority_rules import PriorityRules, lines_of, parse_rule

__all__ = ["UNROUTED", "FanOut", "Way"]

#: The reason by which lines are counted that no route takes.
UNROUTED: Final = "unrouted"

_DROPPING: Final = (WhenFull.DROP_OLDEST, WhenFull.DROP_LOWEST_PRIORITY)


class Way:
    """The way to one sink: its buffer, and which lines go there."""

    def __init__(self, buffer: BufferManager, route: Route) -> None:
        self.buffer = buffer
        self.drops = buffer.config.when_full in _DROPPING
        self._sources = frozenset(route.source)
        self._priorities = frozenset(route.priority)
        self._search = None if route.match is None else compile_pattern(route.match).search

    def leads_from(self, source: str | None) -> bool:
        """Whether lines of that source can go there."""
        return not self._sources or source in self._sources

    def takes(self, priority: int) -> bool:
        """Whether lines of that priority can go there."""
        return not self._priorities or priority in self._priorities

    @property
    def picks(self) -> bool:
        """Whether it looks at each line."""
        return self._search is not None

    def fits(self, line: bytes) -> bool:
        """Whether this line goes there, by what it says."""
        return self._search is None or self._search(line, 0, SEARCHED_BYTES) is not None


class FanOut:
    """One source's way into all buffers; `put` is as Feed's.

    ways: to all sinks. source: the source's name in routes. incidents: counts the lines
        that no route takes.
    Thread safety: any number of threads.
    """

    def __init__(
        self,
        ways: Sequence[Way],
        source: str | None,
        priority: int,
        rules: Sequence[str],
        incidents: Incidents,
    ) -> None:
        self._ways = tuple(ways)
        open_ways = [(number, way) for number, way in enumerate(ways) if way.leads_from(source)]
        self._order = sorted(open_ways, key=lambda one: not one[1].drops)
        self._priority = priority
        self._rules = (
            PriorityRules([parse_rule(rule) for rule in rules], default=priority) if rules else None
        )
        self._incidents = incidents
        #: Lines that were read and that a buffer did not accept, because it was closed
        #: first; one that several did not accept counts for each.
        self.unaccepted = 0

    def put(self, lines: memoryview) -> Marks | None:
        """As `backpressure.sources.base.Put`."""
        parts: Sequence[tuple[int, memoryview | list[bytes]]]
        parts = [(self._priority, lines)] if self._rules is None else self._rules.split(lines)
        used: list[set[int]] = [set() for _ in self._ways]
        unaccepted = 0
        for priority, part in parts:
            unaccepted += self._put_part(part, priority, used)
        if unaccepted:
            self.unaccepted += unaccepted
            return None
        return tuple(
            mark
            for way, priorities in zip(self._ways, used, strict=True)
            for mark in marks_of(way.buffer, priorities)
        )

    def _put_part(self, part: memoryview | list[bytes], priority: int, used: list[set[int]]) -> int:
        """Put lines of one priority everywhere; how many were not accepted."""
        ways = [(number, way) for number, way in self._order if way.takes(priority)]
        fitting: dict[int, list[bytes]] = {}
        if all(way.picks for _, way in ways):  # none gets every line
            lines = lines_of(part) if isinstance(part, memoryview) else part
            taken = set[int]()
            for number, way in ways:
                indices = [index for index, line in enumerate(lines) if way.fits(line)]
                fitting[number] = [lines[index] for index in indices]
                taken.update(indices)
            if lost := len(lines) - len(taken):
                text = "lines that fit no sink's route are dropped"
                self._incidents.add(UNROUTED, text, count=lost)
        elif any(way.picks for _, way in ways):
            lines = lines_of(part) if isinstance(part, memoryview) else part
            for number, way in ways:
                if way.picks:
                    fitting[number] = [line for line in lines if way.fits(line)]
        unaccepted = 0
        for number, way in ways:
            chosen = fitting.get(number, part)
            if len(chosen):
                used[number].add(priority)
                timeout = 0.0 if way.drops else None
                unaccepted += put_part(way.buffer, chosen, priority, timeout=timeout)
        return unaccepted
