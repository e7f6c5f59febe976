"""Linger: whether a batch that is not full waits for more events.

A batch that leaves as soon as its first event is there costs a call of the sink, and of
the consumer, for each event of a steady trickle; one that waits is late for nothing
where no more come. The law, for each lane:

 1. Batches of one lane leave at least `limit` seconds apart, unless they are full. So
    an event that finds the lane idle leaves at once, and so does whatever gathered
    while the consumer was busy for that long: batches that gather by themselves need no
    help. Only what comes right behind another batch waits, for the rest of that time.
    (Network cards moderate their interrupts in this way; Nagle's algorithm, RFC 896,
    holds small segments for the same reason.)
 2. It waits only if enough is to be expected by then: as many events as there are, so
    that waiting saves every other call, and at least four. The rate is that of the last
    whole window, so a burst promises nothing.
 3. After an expectation that was disappointed nothing waits for a while, twice as long
    after each one. A sender that waits for its own event to be delivered looks like a
    steady flow; so it is held up for a thousandth of its time, and not at every event.

The most urgent priority has a limit of 0. Whether the buffer has a reason not to wait
(pressure, another lane, close) is its own business: this is only the law. `ArrivalRate`
estimates, `Linger` decides; neither reads a clock.
"""

from __future__ import annotations

import math
from typing import Final, Literal, TypeAlias

from backpressure.base.reentry import Reentry, deferrable

__all__ = ["ArrivalRate", "FlushReason", "Linger"]

#: What closed a batch: it has as many events as asked for ("size") or as fit ("bytes");
#: it waited to the end ("linger"); the buffer was under pressure ("pressure"), being
#: closed ("close") or flushed ("flush"); it is redelivered as it was ("retry"); or
#: there was no more, and waiting was not worth it or not allowed ("ready").
FlushReason: TypeAlias = Literal[
    "size", "bytes", "linger", "pressure", "close", "flush", "retry", "ready"
]

# The window of the rate (seconds): a few lingers long, so that what is called steady
# lasts for some.
_WINDOW: Final = 0.02
# The least that is worth a wait (events): one call instead of five.
_FEW: Final = 4
# Disappointments double the time in which nothing waits, up to limit * 2 ** this: five
# seconds at the default limit.
_MOST_MISSES: Final = 10


class ArrivalRate:
    """How many events per second came in over the last whole window, from readings of a
    count that only grows.
    """

    __slots__ = ("_count", "_rate", "_since", "next_at")

    def __init__(self) -> None:
        #: When the window ends: until then the answer stays the same.
        self.next_at = 0.0
        self._since = 0.0
        self._count = 0
        self._rate = 0.0

    def at(self, now: float, count: int) -> float:
        """`count`: all events so far. A window without a reading in it is as long as
        that took, and so shows a low rate.
        """
        elapsed = now - self._since
        if not 0.0 <= elapsed < _WINDOW:
            self._rate = (count - self._count) / elapsed if elapsed > 0.0 else 0.0
            self._since, self._count = now, count
            self.next_at = now + _WINDOW
        return self._rate


class Linger:
    """The law at the head of this file, for one lane. Safe for any thread.

    limit: seconds between two batches that are not full; 0.0: none waits.
    """

    __slots__ = (
        *("flushed", "holding", "left_at", "limit", "quiet_until"),
        *("_began", "_had", "_lock", "_misses", "_missing", "_pace", "_rate", "_reentry"),
        "__weakref__",
    )

    def __init__(self, limit: float) -> None:
        self.limit: Final = limit
        #: When the last batch left: its owner notes it, and asks `holds` only where
        #: less than `limit` has passed since …
        self.left_at = -math.inf
        #: … and this has: until then the answer is no. That keeps the usual case cheap.
        self.quiet_until = -math.inf
        #: Whether a batch is waiting now.
        self.holding = False
        #: The wait is over by order.
        self.flushed = False
        self._reentry = Reentry(self._start_over)
        self._lock = self._reentry.lock
        self._rate = ArrivalRate()
        # When the wait began, how many events were there, how many were missing, and
        # the rate expected.
        self._began = self._pace = 0.0
        self._had = self._missing = 0
        self._misses = 0

    def until(self) -> float:
        """From when on the next batch leaves in any case."""
        return self.left_at + self.limit

    def holds(self, now: float, waiting: int, asked: int, arrived: int) -> bool:
        """Whether a batch should wait. waiting: events that it would have; asked: that
        it may have; arrived: all ever.
        """
        if self._reentry.within():
            return self.holding
        with self._lock:
            holds = self._holds(now, waiting, asked, arrived)
        if self._reentry.deferred:
            self._reentry.apply()
            holds = holds and not self.flushed
        return holds

    def _holds(self, now: float, waiting: int, asked: int, arrived: int) -> bool:
        left = self.left_at + self.limit - now
        rate = self._rate.at(now, arrived)
        if not 0.0 < left <= self.limit or waiting >= asked or self.flushed:
            return False  # also where the clock stepped back
        if self.holding:
            return True
        if rate * left < max(_FEW, waiting):
            if rate * self.limit < _FEW:
                self.quiet_until = self._rate.next_at
            return False
        self.holding = True
        self._began, self._had = now, waiting
        self._pace, self._missing = rate, asked - waiting
        return True

    @deferrable
    def flush(self) -> None:
        """End a wait that is going on."""
        with self._lock:
            self.flushed = self.holding

    def _start_over(self) -> None:
        """In a forked child, where another thread was changing this."""
        self.holding = self.flushed = False
        self._rate = ArrivalRate()

    @deferrable
    def wait_ended(self, now: float, waiting: int, reason: FlushReason) -> None:
        """The wait is over, and `waiting` events were there; `reason`: why. Did as many
        come as the rate had promised?
        """
        with self._lock:
            self.holding = self.flushed = False
            expected = min(self._pace * (now - self._began), self._missing)
            if reason in ("size", "bytes"):
                self._misses = 0
            elif reason == "linger" and expected >= 1.0:
                if (waiting - self._had) * 2 >= expected:
                    self._misses = 0
                else:
                    self._misses = min(self._misses + 1, _MOST_MISSES)
                    self.quiet_until = now + self.limit * (1 << self._misses)
