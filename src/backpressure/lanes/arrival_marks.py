"""ArrivalMarks: when the events of a lane arrived, about."""

from __future__ import annotations

from collections import deque
from typing import Final

__all__ = ["ArrivalMarks"]

# The time of arrival is noted this often (seconds), which with the pace of single
# events gives each an age that is right to 10 ms: no decision needs it more finely …
_INTERVAL: Final = 0.002
# … and at most this many notes are kept: for more waiting events they lie further
# apart.
_MOST: Final = 1024


class ArrivalMarks:
    """Notes that the event of a number had arrived at a time.

    Under its owner's lock, but for `is_due`.
    """

    def __init__(self) -> None:
        self._marks: deque[tuple[int, float]] = deque()
        self._interval = _INTERVAL

    def is_due(self, now: float) -> bool:
        """Whether the last note is so old that another is worth it."""
        try:
            return now - self._marks[-1][1] >= self._interval
        except IndexError:
            return True

    def note(self, first_seq: int, now: float) -> None:
        """The events from that number on arrived at `now`."""
        marks = self._marks
        if len(marks) >= _MOST:
            self._marks = marks = deque(list(marks)[::2])
            self._interval *= 2
        # Two producers may come here in the other order than they pushed; marks ascend
        # in both number and time.
        if not marks or (first_seq > marks[-1][0] and now > marks[-1][1]):
            marks.append((first_seq, now))

    def forget_before(self, seq: int) -> None:
        """No event below that number is asked about any more.

        The last note stays: what came soon after it has none of its own.
        """
        marks = self._marks
        while len(marks) > 1 and marks[1][0] <= seq:
            marks.popleft()
        if len(marks) == 1:
            self._interval = _INTERVAL

    def oldest_age(self, now: float) -> float:
        """Seconds since the oldest event that was not forgotten arrived, as fine as the
        interval.
        """
        marks = self._marks
        return max(0.0, now - marks[0][1]) if marks else 0.0
