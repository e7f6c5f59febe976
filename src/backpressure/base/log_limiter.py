"""LogLimiter: at most one log line per kind and interval, each with the sum of what
happened since the last one.

A trip or a drop is worth a line; ten thousand of them a second are not. Nothing is lost
from the sums, only the lines are fewer.

Thread safety: any thread may call any method, and so may finalisers and signal
handlers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Final

from backpressure.base.reentry import Reentry

__all__ = ["LogLimiter"]


class LogLimiter:
    """Says when a line is due, and what it has to cover."""

    def __init__(self, interval: float = 10.0) -> None:
        #: Seconds between two lines of one kind.
        self.interval: Final = interval
        self._reentry = Reentry(self._start_over)
        # What came while its own thread was counting: kind and count.
        self._late: deque[tuple[Hashable, int]] = deque()
        self._next: dict[Hashable, float] = {}
        self._sums: dict[Hashable, int] = {}

    def add(self, kind: Hashable, count: int, now: float) -> int:
        """Count; the sum to log now, or 0 where no line is due yet."""
        if self._reentry.within():
            self._late.append((kind, count))
            return 0
        with self._reentry.lock:
            self._count_late()
            total = self._sums.pop(kind, 0) + count
            if now >= self._next.get(kind, now):
                self._next[kind] = now + self.interval
                return total
            self._sums[kind] = self._sums.get(kind, 0) + total
            return 0

    def rest(self) -> dict[Hashable, int]:
        """What has been counted and not logged, by kind; counted from 0 again
        afterwards.
        """
        with self._reentry.lock:
            self._count_late()
            rest, self._sums = self._sums, {}
            return rest

    def _count_late(self) -> None:
        while self._late:
            kind, count = self._late.popleft()
            self._sums[kind] = self._sums.get(kind, 0) + count

    def _start_over(self) -> None:
        """In a forked child: what the parent has not logged yet is not the child's."""
        self._sums = {}
