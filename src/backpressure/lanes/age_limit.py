"""AgeLimit: which events of a lane are older than they may be.

Events have no time of their own. What is known are notes: everything below a number had
arrived by a time. So an event is at least as old as the note that covers it, and it is
dropped only where that note is too old. A note is taken at each add, after the push;
notes that lie near each other become one, of the latest time. An event may therefore
outlive the limit by a five-hundredth of it (10 ms at least), and never falls short.

Not safe for several threads: a lane calls it under its lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

__all__ = ["AgeLimit"]

# How near notes are to each other, as a part of the limit, and in seconds at least: no
# decision needs an age more finely.
_FINENESS: Final = 1 / 500
_FINEST: Final = 0.01


class AgeLimit:
    """Of one lane.

    seconds: how old an event may be.
    now: the buffer's clock.
    dropped: called with the priority and the number of events after these were dropped
        for their age, with no lock held.
    """

    __slots__ = ("_apart", "_began", "_notes", "dropped", "expired", "now", "seconds")

    def __init__(
        self,
        seconds: float,
        now: Callable[[], float],
        dropped: Callable[[int, int], object],
    ) -> None:
        self.seconds: Final = seconds
        self.now: Final = now
        self.dropped: Final = dropped
        #: Every event below it is too old, as of the last look.
        self.expired = 0
        self._apart = max(_FINENESS * seconds, _FINEST)
        # (number, time): what lies below had arrived by then.
        self._notes: deque[tuple[int, float]] = deque()
        self._began = 0.0  # the time from which on the last note was moved

    def note(self, end_seq: int, now: float) -> None:
        """All events below `end_seq` have arrived by `now`."""
        notes = self._notes
        if notes:
            last, at = notes[-1]
            if end_seq <= last:
                return
            now = max(now, at)
            if now - self._began < self._apart:
                notes[-1] = (end_seq, now)
                return
        elif end_seq <= self.expired:
            return
        notes.append((end_seq, now))
        self._began = now

    def look(self, now: float) -> int:
        """The number below which every event is too old."""
        notes = self._notes
        while notes and now - notes[0][1] > self.seconds:
            self.expired = notes.popleft()[0]
        return self.expired

    def age_of(self, seq: int, now: float) -> float:
        """How many seconds old an event is at least."""
        if seq < self.expired:
            return self.seconds
        return next((max(0.0, now - at) for end, at in self._notes if seq < end), 0.0)
