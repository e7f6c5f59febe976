"""Tally: counts by reason, from any thread and from within itself.

A finaliser or a signal's handler may log while a count is being made, in the thread
that makes it: see base/reentry.py.
"""

from __future__ import annotations

from collections import Counter

from backpressure.base.reentry import Reentry, deferrable

__all__ = ["Tally"]


class Tally:
    """Any thread may call any method."""

    def __init__(self) -> None:
        self._reentry = Reentry(self._start_over)
        self._sums: Counter[str] = Counter()

    @deferrable
    def add(self, reason: str) -> None:
        """Count one."""
        with self._reentry.lock:
            self._sums[reason] += 1

    def counts(self) -> dict[str, int]:
        """How many were added, by reason."""
        with self._reentry.lock:
            counts = dict(self._sums)
        if self._reentry.deferred:
            self._reentry.apply()
        return counts

    def _start_over(self) -> None:
        """A forked child counts its own."""
        self._sums.clear()
