"""Admitting a growing share of calls to a callee that has just come back, by counting
and without chance.

The share grows evenly from a tenth to all. Of the calls that ask, as many are admitted
as the share says, evenly spread; and one now and then in any case, so that a lone
caller that waits as it is told gets its share of the time. Not safe for several
threads: the circuit breaker's lock guards it.
"""

from __future__ import annotations

from typing import Final

__all__ = ["Ramp"]

# The share that the ramp begins with: one call in ten shows what the callee bears, and
# does not starve its callers.
_FIRST_SHARE: Final = 0.1
# A lone caller is admitted at intervals that begin at nine of these parts of the ramp,
# and are one half-way.
_RAMP_PARTS: Final = 100


class Ramp:
    """Begins at `now` and takes `seconds`; `until` is when it is over. Time never runs
    backwards here.
    """

    __slots__ = ("_began", "_due", "_owed", "_seconds", "until")

    def __init__(self, now: float, seconds: float) -> None:
        self._began = now
        self._seconds = seconds
        self.until = now + seconds
        self._owed = 0.0  # calls to admit, as a fraction of one
        self._due = now  # when the next one is admitted, whatever is owed

    def share(self, now: float) -> float:
        return min(1.0, _FIRST_SHARE + (1.0 - _FIRST_SHARE) * (now - self._began) / self._seconds)

    def admits(self, now: float) -> bool:
        """Whether the call that asks now is admitted; it counts as asked."""
        share = self.share(now)
        self._owed += share
        if self._owed < 1.0 and now < self._due:
            return False
        self._owed = max(0.0, self._owed - 1.0)
        self._due = now + self._seconds / _RAMP_PARTS * (1.0 - share) / share
        return True

    def wait(self, now: float) -> float:
        """Seconds until a call is admitted in any case; 0.0 where the next one is."""
        if self._owed + self.share(now) >= 1.0:
            return 0.0
        return max(0.0, min(self._due, self.until) - now)
