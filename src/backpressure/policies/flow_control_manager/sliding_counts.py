"""Counts in columns over a sliding window, in slots that expire. Not safe for several
threads.
"""

from __future__ import annotations

__all__ = ["SlidingCounts"]


class SlidingCounts:
    """Counts in columns over the last `seconds`, in slots that expire whenever it is
    used.

    Who adds oftener than anything else may do so in line: to `row`, while
    `now < until`.
    """

    __slots__ = ("_closed", "_origin", "_rows", "_slot", "_width", "row", "until")

    def __init__(self, seconds: float, slots: int, columns: int, now: float) -> None:
        self._width = seconds / slots
        self._rows = [[0] * columns for _ in range(slots)]
        # The sums over all slots but that of now.
        self._closed = [0] * columns
        self._origin = now
        self._slot = 0
        #: The slot of now, and until when it is that.
        self.row = self._rows[0]
        self.until = now + self._width

    def add(self, now: float, column: int, count: int) -> None:
        if now >= self.until:
            self.expire(now)
        self.row[column] += count

    def take(self, now: float, column: int, count: int) -> None:
        """Undo the latest `count` of what was added, as far as it has not expired."""
        if now >= self.until:
            self.expire(now)
        if count <= self.row[column]:
            self.row[column] -= count
            return
        for back in range(len(self._rows)):
            row = self._rows[(self._slot - back) % len(self._rows)]
            part = min(count, row[column])
            row[column] -= part
            if back:
                self._closed[column] -= part
            count -= part
            if not count:
                return

    def read(self, now: float) -> tuple[list[int], float]:
        """The totals, and the seconds they are of: never less than one slot, so that a
        start is no spike.
        """
        if now >= self.until:
            self.expire(now)
        first = max(0, self._slot - len(self._rows) + 1)
        totals = [closed + count for closed, count in zip(self._closed, self.row, strict=True)]
        return totals, max(self._width, now - self._origin - first * self._width)

    def glance(self, now: float) -> tuple[list[int], float]:
        """As `read`, but what is too old stays: for a call in the middle of another."""
        first = max(0, self._slot - len(self._rows) + 1)
        totals = [sum(column) for column in zip(*self._rows, strict=True)]
        return totals, max(self._width, now - self._origin - first * self._width)

    def start_over(self, now: float) -> None:
        """Forget everything."""
        for row in self._rows:
            row[:] = [0] * len(row)
        self._closed = [0] * len(self._closed)
        self._origin, self._slot = now, 0
        self.row, self.until = self._rows[0], now + self._width

    def expire(self, now: float) -> None:
        """Forget what is too old by now."""
        if now < self.until:
            return
        slot = max(self._slot, int((now - self._origin) / self._width))
        self._sum(self.row, 1)
        for old in range(self._slot + 1, min(slot, self._slot + len(self._rows)) + 1):
            row = self._rows[old % len(self._rows)]
            self._sum(row, -1)
            row[:] = [0] * len(row)
        self._slot = slot
        self.row = self._rows[slot % len(self._rows)]
        # In rounding the slot may be the same one still.
        self._sum(self.row, -1)
        self.until = self._origin + (slot + 1) * self._width

    def _sum(self, row: list[int], sign: int) -> None:
        for column, count in enumerate(row):
            self._closed[column] += sign * count
