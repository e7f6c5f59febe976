"""Tally: counts by reason, from any thread and from within itself.

A finaliser or a signal's handler may log while a count is being made, in the thread
that makes it: to add takes no lock.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from typing import Final

__all__ = ["Tally"]

# This number is kept one by one before they are summed up.
_FOLD_AT: Final = 1000


class Tally:
    """Any thread may call any method."""

    def __init__(self) -> None:
        self._new: deque[str] = deque()
        self._sums: Counter[str] = Counter()
        # Re-entrant: what comes by while its own thread sums up goes on without it.
        self._lock = threading.RLock()
        self._folding = False

    def add(self, reason: str) -> None:
        """Count one."""
        self._new.append(reason)
        if len(self._new) >= _FOLD_AT:
            self._fold()

    def counts(self) -> dict[str, int]:
        """How many were added, by reason."""
        with self._lock:
            self._fold()
            return dict(self._sums + Counter(self._new))

    def _fold(self) -> None:
        with self._lock:
            if self._folding:
                return
            self._folding = True
            try:
                while self._new:
                    self._sums[self._new[0]] += 1
                    self._new.popleft()
            finally:
                self._folding = False
