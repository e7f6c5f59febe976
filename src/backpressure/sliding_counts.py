"""Counts in columns over a sliding window, in slots that expire. Not safe for several threads."""

from __future__ import annotations

__all__ = ["SlidingCounts"]


class SlidingCounts:
    """Counts in columns over the last `seconds`, in slots that expire whenever it is used."""

    def __init__(self, seconds: float, slots: int, columns: int, now: float) -> None:
        self._width = seconds / slots
        self._rows = [[0] * columns for _ in range(slots)]
        self._totals = [0] * columns
        self._origin = now
        self._slot = 0
        self._until = now + self._width

    def add(self, now: float, column: int, count: int) -> None:
        if now >= self._until:
            self._expire(now)
        self._rows[self._slot % len(self._rows)][column] += count
        self._totals[column] += count

    def take(self, now: float, column: int, count: int) -> None:
        """Undo the latest `count` of what was added, as far as it has not expired."""
        self._expire(now)
        for back in range(len(self._rows)):
            row = self._rows[(self._slot - back) % len(self._rows)]
            part = min(count, row[column])
            row[column] -= part
            self._totals[column] -= part
            count -= part
            if not count:
                return

    def read(self, now: float) -> tuple[list[int], float]:
        """The totals, and the seconds they are of: never less than one slot, so that a start is no spike."""
        self._expire(now)
        first = max(0, self._slot - len(self._rows) + 1)
        return self._totals, max(self._width, now - self._origin - first * self._width)

    def _expire(self, now: float) -> None:
        if now < self._until:
            return
        slot = max(self._slot, int((now - self._origin) / self._width))
        for old in range(self._slot + 1, min(slot, self._slot + len(self._rows)) + 1):
            row = self._rows[old % len(self._rows)]
            for column, count in enumerate(row):
                self._totals[column] -= count
                row[column] = 0
        self._slot = slot
        self._until = self._origin + (slot + 1) * self._width
