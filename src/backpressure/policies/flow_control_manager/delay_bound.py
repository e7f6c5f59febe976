"""A bound on how long what is admitted will wait: the actuator for delay.

An event is admitted only while the events that are delivered before it, of its own
priority and of more urgent ones, are so few that the sink takes them in the time that
is allowed:

- A burst may wait `_BURST` targets: all that waits is at most what the sink takes in
  that time.
- A queue that stays above the target all through an interval stands. While more is
  offered than the sink takes, each priority may then wait one target: what lies ahead
  of it is at most what the sink takes of it and of less urgent ones in that time, which
  under strict priority is all that the more urgent leave. That is Little's law, lane by
  lane. It lasts until several intervals have passed without a refusal.

CoDel tells bursts from standing queues in the same way (Nichols and Jacobson, 2012; RFC
8289), but drops what has waited; this refuses what would, and a caller can come back.
The length of a standing queue decides about delay only: as many are refused per second
with a long one. The least urgent are refused first, because all the others lie ahead of
them. Priority 1 never is, unless it is the only one: a full lane of it keeps all
others out.

`enough` events may always wait, so that the sink never runs dry. But where a priority
was refused in the last interval, those below it share only a trickle of that, as long
as so much waits at all: the sink gets all it takes from those above, and they would
wait for long.

What the sink takes is measured by what leaves the queue while at least a batch waits;
otherwise that shows only what was offered, and is a lower bound. Where the sink is not
called, or nothing was taken for an interval, it is not slow but gone, and to outlast
that is what the room is for: the bound stands aside. So it does until something was
measured, and for a consumer that comes by less often than that: such a target is out of
its reach.

Not safe for several threads: FlowControlManager calls it under its lock.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

from backpressure.base.priority import PRIORITY_LEVELS

__all__ = ["DelayBound"]

# Targets that a burst may wait, and that a queue is given to become short again. More
# makes a longer tail when an overload begins, less loses bursts: bench/overload has
# spikes of one second, and steps, for both.
_BURST = 2.3
_INTERVAL = 2.75
# Intervals without a refusal that end a standing queue: an overload with gaps is one
# overload.
_CALM = 5.0
# Part of `enough` that a priority may have while a more urgent one is refused: the sink
# needs none of it, and it is served when the buffer's patience ends; but none at all
# would be for ever. Where less waits in all the sink does need it: that one has fallen
# silent.
_TRICKLE = 0.05
# Part of an interval over which the offer is compared with what the sink takes: the end
# of a burst shows at once.
_OFFER_PART = 0.25
# The sink's rate is measured over at least this many seconds and takings: a batch more
# or less then matters little ...
_SPAN, _TAKINGS = 1.0, 4
# ... but the first seconds of a queue count from here on: without them a steep step
# would fill the lanes.
_LEAST_SPAN = 0.2


# Time, looks until then at which events had been taken, and events taken until then by
# priority.
_Sample = tuple[float, int, tuple[int, ...]]


class DelayBound:
    """Room by priority, of which there are `levels`, renewed at each look at the queue.
    `target` in seconds.
    """

    def __init__(self, target: float, now: float, levels: int = PRIORITY_LEVELS) -> None:
        self._levels = levels
        # Below this number no priority is refused.
        self._first_bound = 1 if levels > 1 else 0
        self.target = target
        self._interval = target * _INTERVAL
        #: Whether anything can be refused now.
        self.armed = False
        #: Whether the queue stands.
        self.standing = False
        #: What the sink takes of each priority and the less urgent together, in events
        #: per second; 0: not known.
        self.rates = [0.0] * levels
        self._room = [math.inf] * levels
        # When the queue was last looked at, when it was last within the target, and
        # when an event was last refused.
        self._looked_at = self._short_at = now
        self._refused_at = -math.inf
        # The same by priority. While a more urgent one is refused the sink does not
        # need a less urgent one.
        self._last_refused = [-math.inf] * levels
        # Events asked for in all, and (time, asked for until then) for a part of an
        # interval.
        self._asked = 0
        self._offers: deque[tuple[float, int]] = deque()
        self._past: deque[_Sample] = deque()
        self._takings = 0
        self._taken_at = -math.inf
        # Since when a batch or more waits throughout.
        self._busy_from: _Sample | None = None

    def look(
        self, now: float, waiting: Sequence[int], taken: Sequence[int], enough: int, calling: bool
    ) -> None:
        """Take in the queue as it is: events waiting and events taken so far, by
        priority, the most urgent first.
        """
        total = sum(waiting)
        self._looked_at = now
        self._measure(now, total >= enough / 2, tuple(taken))
        self.armed = calling and self.rates[0] > 0.0 and not self._has_stopped(now)
        if not self.armed:
            self.standing, self._short_at = False, now
            return
        outpaced = self._is_outpaced(now)
        if total <= max(self.target * self.rates[0], enough):
            self._short_at = now
        if self.standing:
            self.standing = now - self._refused_at < self._interval * _CALM
        else:
            self.standing = outpaced and now - self._short_at >= self._interval
        burst = self.target * _BURST * self.rates[0]
        ahead, least, trickle = 0, float(enough), enough * _TRICKLE
        for p, count in enumerate(waiting):
            ahead += count
            allowed = self.target * self.rates[p] if self.standing and outpaced else burst
            self._room[p] = max(allowed, least) - ahead
            if total >= trickle and now - self._last_refused[p] <= self._interval:
                least = min(least, ahead + trickle)

    def limit(self, p: int, n: int) -> int:
        """How many of n there is room for; `fill` must follow."""
        self._asked += n
        if p < self._first_bound or n <= self._room[p]:
            return n
        self._refused_at = self._last_refused[p] = self._looked_at
        return max(0, int(self._room[p]))

    def fill(self, p: int, n: int) -> None:
        """`n` more of p wait (fewer if negative), until the next look tells."""
        for q in range(p, self._levels):
            self._room[q] -= n

    def refused(self, seconds: float) -> bool:
        """Whether an event was refused in the last `seconds` before the last look."""
        return self.armed and self._looked_at - self._refused_at <= seconds

    def retry_after(self, p: int) -> float:
        """Seconds until p, whose room is used up, has some if nothing comes before it:
        not known better than to a tenth of the target, the pace of looks, and nothing
        beyond an interval, for what comes is not known.
        """
        left = max(0.0, -self._room[p]) / self.rates[p] if self.rates[p] > 0.0 else math.inf
        return min(max(0.1 * self.target, left), self._interval)

    def _is_outpaced(self, now: float) -> bool:
        """Whether of late more was asked for than the sink takes: a queue that drains
        by itself does not stand.
        """
        offers = self._offers
        offers.append((now, self._asked))
        while now - offers[0][0] > self._interval * _OFFER_PART and len(offers) > 2:
            offers.popleft()
        then, asked = offers[0]
        return self._asked - asked >= self.rates[0] * (now - then) > 0.0

    def _measure(self, now: float, busy: bool, taken: tuple[int, ...]) -> None:
        past = self._past
        if past:
            # Counters that are read one after the other may seem to go back.
            taken = tuple(map(max, taken, past[-1][2]))
            if taken != past[-1][2]:
                self._takings += 1
                self._taken_at = now
        sample = (now, self._takings, taken)
        past.append(sample)
        if self._has_stopped(now):
            past.clear()
            past.append(sample)
        while len(past) > 1 and self._counts(past[1], now, _SPAN):
            past.popleft()
        if not busy:
            self._busy_from = None
        elif self._busy_from is None:
            self._busy_from = sample
        start, full = past[0], False
        if self._busy_from is not None and self._counts(self._busy_from, now, _LEAST_SPAN):
            start, full = max(start, self._busy_from), True
        if not self._counts(start, now, _LEAST_SPAN):
            return
        rate = 0.0
        for p in range(self._levels - 1, -1, -1):
            rate += (taken[p] - start[2][p]) / (now - start[0])
            self.rates[p] = rate if full else max(rate, self.rates[p])

    def _counts(self, since: _Sample, now: float, span: float) -> bool:
        """Whether what was taken since then says something of the sink."""
        return now - since[0] >= span and self._takings - since[1] >= _TAKINGS

    def _has_stopped(self, now: float) -> bool:
        return now - self._taken_at > self._interval
