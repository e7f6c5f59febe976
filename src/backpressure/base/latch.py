"""Latch: set by any thread, waited for by one, which clears it."""

from __future__ import annotations

import threading

__all__ = ["Latch"]


class Latch:
    """What is set while nobody waits ends the next wait at once; a wait clears it.

    Unlike an Event of `threading` it can be set by a signal's handler that interrupts
    its setting: no Python code runs with a lock held.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def set(self) -> None:
        """End the wait that is going on, or the next one."""
        if self._lock.locked():
            try:
                self._lock.release()
            except RuntimeError:
                pass  # another was faster

    def wait(self, seconds: float) -> bool:
        """Sleep until it is set, or for that long; whether it was set."""
        return self._lock.acquire(timeout=seconds)
