"""Wakeup: waiting for a buffer to change, by threads and by coroutines, at no cost to
whoever changes it while nobody waits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Wakeup"]


class Wakeup:
    """A condition that costs its notifier nothing while nobody waits, and that
    coroutines can wait for as well.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._waiting = 0
        # Replaced whole and never changed in place, so `notify` reads it without a
        # lock.
        self._listeners: tuple[Callable[[], object], ...] = ()

    def notify(self) -> None:
        """Wake everyone who waits."""
        if self._waiting:
            with self._condition:
                self._condition.notify_all()
        for listener in self._listeners:
            listener()

    def wait(self, done: Callable[[], bool], timeout: float) -> None:
        """Sleep until notified, or for `timeout` seconds, unless `done()` holds
        already.
        """
        with self._condition:
            self._waiting += 1
            try:
                # Looked at after the count was raised: whoever makes it true from here
                # on will notify.
                if not done():
                    self._condition.wait(timeout)
            finally:
                self._waiting -= 1

    @contextmanager
    def listening(self, listener: Callable[[], object]) -> Iterator[None]:
        """Have `listener()` called at each notify, by the notifying thread and without
        a lock.
        """
        with self._condition:
            self._listeners = (*self._listeners, listener)
        try:
            yield
        finally:
            with self._condition:
                self._listeners = tuple(one for one in self._listeners if one is not listener)
