"""FakeClock: time that a test sets."""

from __future__ import annotations

import math
import threading

__all__ = ["FakeClock"]


class FakeClock:
    """A clock that moves only when it is told to; safe for any thread.

    >>> clock = FakeClock()
    >>> clock.advance(1.5)
    1.5
    >>> clock.now()
    1.5
    """

    __slots__ = ("_lock", "_now")

    def __init__(self, start: float = 0.0) -> None:
        """`start` is the first reading, in seconds."""
        self._lock = threading.RLock()
        self._now = _finite("start", start)

    def now(self) -> float:
        """The present reading, in seconds."""
        return self._now

    def advance(self, seconds: float) -> float:
        """Move forward by `seconds` and return the new reading.

        Raises ValueError where it is negative.
        """
        seconds = _finite("seconds", seconds)
        if seconds < 0.0:
            raise ValueError(f"seconds: must be 0 or more, not {seconds!r}; use set() to move back")
        with self._lock:
            self._now += seconds
            return self._now

    def set(self, seconds: float) -> None:
        """Jump to the reading `seconds`, also backwards.

        A test of a clock that steps back needs that.
        """
        with self._lock:
            self._now = _finite("seconds", seconds)

    def __repr__(self) -> str:
        return f"FakeClock({self._now!r})"


def _finite(name: str, value: float) -> float:
    """`value` as a finite float.

    Any other would make every later comparison meaningless.
    """
    value = float(value)
    if not math.isfinite(value):
        raise ValueError(f"{name}: must be finite, not {value!r}")
    return value
