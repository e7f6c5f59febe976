"""One event at a time, for callers that have no batch: a logging handler, a request.

`add_events` is made for many: of one event, most of the time goes into the call itself.
Here the way in is a push into the lane's ring and little else: flow control is asked
for a few dozen events at once, and this stock of admitted ones is used up (measured:
0.6 µs instead of 4.3). Whatever is not plain success (a full lane, a rate, an event too
large, a closed buffer) goes through `add_events`, which decides and counts.

Invariants. An event is in the buffer when `add` returns None. Flow control's own count
of admitted events is ahead by at most the stock; `close` gives the rest back.

Thread safety: any number of threads, with the GIL or without it: a deque's ends are
atomic.
"""

from __future__ import annotations

from collections import deque
from itertools import repeat
from typing import TYPE_CHECKING, Final

from backpressure.base.errors import BufferClosed
from backpressure.base.priority import check_priority
from backpressure.base.validation import timeout_seconds
from backpressure.buffer.config import Durability

if TYPE_CHECKING:
    from backpressure.buffer_manager import BufferManager

__all__ = ["SingleEventWriter"]

# Asking flow control for one event costs 1.8 µs, for 64 the same.
_STOCK: Final = 64
# The stocks of all priorities together never hold back more than 2 % of the burst from
# others.
_LEAST_BURST: Final = 256


class SingleEventWriter:
    """Adds single events to `buffer`; `timeout` as for `add_events`."""

    def __init__(self, buffer: BufferManager, timeout: float | None = 0.0) -> None:
        timeout_seconds(timeout)
        config = buffer.config
        self._buffer = buffer
        self._intake = intake = buffer._intake
        self._lanes = intake.lanes
        self._timeout = timeout
        self._stock: tuple[deque[None], ...] = tuple(deque() for _ in self._lanes)
        # Each COMMIT is for add_events to wait for.
        quick = config.durability is Durability.PROCESS
        self._refill = min(_STOCK, config.flow_control.burst_size // _LEAST_BURST) if quick else 0

    def add(self, event: bytes | str, priority: int) -> str | None:
        """Add one event. None: it is in; else the reason why not, as in Admission.
        Raises InvalidEvents as `add_events` does.
        """
        intake = self._intake
        try:
            lane = self._lanes[priority - 1] if priority > 0 else None
        except (IndexError, TypeError):
            lane = None
        if lane is None:
            priority = check_priority(priority, len(self._lanes))
            lane = self._lanes[priority - 1]
        stock = self._stock[priority - 1]
        try:
            stock.pop()
        except IndexError:
            if not self._restock(stock, priority):
                return self._add_slowly(event, priority)
        try:
            pushed = not intake.closing and lane.ring.try_push(event)
        except ValueError:  # too large, or no UTF-8: add_events says it in its own words
            pushed = False
        if not pushed:
            stock.append(None)
            return self._add_slowly(event, priority)
        # Where others have pushed since, the later number serves as well: arrival is
        # noted to 10 ms.
        intake.arrived(lane, lane.ring.next_seq - 1)
        if intake.closed:
            intake.ended(lane, 1)
        return None

    def close(self) -> None:
        """Give back what was admitted and not used. `add` may still be called."""
        for index, stock in enumerate(self._stock):
            unused = 0
            while stock:
                try:
                    stock.pop()
                except IndexError:
                    break
                unused += 1
            if unused:
                self._intake.control.give_back(unused, index + 1)

    def _restock(self, stock: deque[None], priority: int) -> bool:
        """Have events admitted ahead: one for the caller, the others for the stock.
        False: flow control is not that generous.
        """
        if self._refill < 2:
            return False
        granted = self._intake.control.admit(self._refill, priority).granted
        if granted < self._refill:
            if granted:
                self._intake.control.give_back(granted, priority)
            return False
        stock.extend(repeat(None, granted - 1))
        return True

    def _add_slowly(self, event: bytes | str, priority: int) -> str | None:
        try:
            return self._buffer.add_events([event], priority, self._timeout).reason
        except BufferClosed:
            return "closed"
