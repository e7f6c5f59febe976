"""Wakeup: threads and coroutines wait for a buffer to change.

While none waits, the change costs its cause nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

__all__ = ["Waiter", "Wakeup"]


class Wakeup:
    """A condition that costs its notifier nothing while none waits, and that coroutines
    can wait for as well. `name`: what it tells of, for tests and for people.
    """

    def __init__(self, name: str = "") -> None:
        self.name = name
        self._condition = threading.Condition()
        self._waiting = 0
        # Replaced whole and never changed in place, so `notify` reads it without a
        # lock.
        self._listeners: tuple[Callable[[], object], ...] = ()

    def forget_waiters(self) -> None:
        """In a forked child: what waits here, or holds the lock, is the parent's."""
        self._condition = threading.Condition()
        self._waiting = 0
        self._listeners = ()

    def notify(self) -> None:
        """Wake all that wait."""
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
                # Looked at after the count was raised: what makes it true from here on
                # will notify.
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


class Waiter(NamedTuple):
    """One sleep: on what, what makes it needless, and for how long at most.

    A thread calls `wait`; a coroutine listens to `wakeup` (see `buffer/aio.py`).
    """

    wakeup: Wakeup
    #: Whether there is reason to look again; asked without a lock, before the sleep.
    done: Callable[[], bool]
    #: After that many seconds time alone may have given one.
    seconds: float

    def wait(self, most: float) -> None:
        """Sleep until notified, for `most` seconds at most."""
        self.wakeup.wait(self.done, min(self.seconds, most))

    def unless(self, stop: Callable[[], bool]) -> Waiter:
        """The same, and needless where `stop()` holds too."""
        done = self.done
        return self._replace(done=lambda: stop() or done())
