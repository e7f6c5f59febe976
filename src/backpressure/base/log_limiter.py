"""LogLimiter: at most one log line per kind and interval, each with the sum of what
happened since the last one.

A trip or a drop is worth a line; ten thousand of them a second are not. Nothing is lost
from the sums, only the lines are fewer.

Thread safety: any thread may call any method.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable
from typing import Final

__all__ = ["LogLimiter"]


class LogLimiter:
    """Says when a line is due, and what it has to cover."""

    def __init__(self, interval: float = 10.0) -> None:
        #: Seconds between two lines of one kind.
        self.interval: Final = interval
        self._lock = threading.Lock()
        self._next: dict[Hashable, float] = {}
        self._sums: dict[Hashable, int] = {}

    def add(self, kind: Hashable, count: int, now: float) -> int:
        """Count; the sum to log now, or 0 where no line is due yet."""
        with self._lock:
            total = self._sums.pop(kind, 0) + count
            if now >= self._next.get(kind, now):
                self._next[kind] = now + self.interval
                return total
            self._sums[kind] = total
            return 0

    def rest(self) -> dict[Hashable, int]:
        """What has been counted and not logged, by kind; counted from 0 again
        afterwards.
        """
        with self._lock:
            rest, self._sums = self._sums, {}
            return rest
