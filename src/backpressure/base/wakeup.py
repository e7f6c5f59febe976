"""Wakeup: threads and coroutines wait for a buffer to change.

While none waits, the change costs its cause nothing.

No lock is held anywhere: each sleeper has one of its own, which wakes it. So a
finaliser or a signal's handler may notify or wait at any point of another call, and a
thread that waits is registered before it looks: no notification is missed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from ringbuf._messages.prepaid import settle_stores

__all__ = ["Waiter", "Wakeup"]


class Wakeup:
    """A condition that costs its notifier nothing while none waits, and that coroutines
    can wait for as well. `name`: what it tells of, for tests and for people.
    """

    def __init__(self, name: str = "") -> None:
        self.name = name
        # Of each thread that sleeps, a lock that is taken until it is to wake. Adding
        # to the set, taking from it and copying it are atomic.
        self._waiting: set[threading.Lock] = set()
        self._listeners: list[Callable[[], object]] = []

    @property
    def waiting(self) -> tuple[set[Any], list[Any]]:
        """What is empty while none waits: for a notifier that looks there itself."""
        return self._waiting, self._listeners

    def forget_waiters(self) -> None:
        """In a forked child: what waits here is the parent's."""
        self._waiting = set()
        self._listeners = []

    def notify(self) -> None:
        """Wake all that wait."""
        if self._waiting:
            for sleeper in self._waiting.copy():
                try:
                    sleeper.release()
                except RuntimeError:
                    pass  # it was woken before
        if self._listeners:
            for listener in self._listeners.copy():
                listener()

    def wait(self, done: Callable[[], bool], timeout: float) -> None:
        """Sleep until notified, or for `timeout` seconds, unless `done()` holds
        already.
        """
        sleeper = threading.Lock()
        sleeper.acquire()
        try:
            self._waiting.add(sleeper)
            settle_stores()
            # Looked at after that: what makes it true from here on will notify.
            if not done() and timeout > 0:
                sleeper.acquire(timeout=min(timeout, threading.TIMEOUT_MAX))
        finally:
            self._waiting.discard(sleeper)

    @contextmanager
    def listening(self, listener: Callable[[], object]) -> Iterator[None]:
        """Have `listener()` called at each notify, by the notifying thread and without
        a lock.
        """
        self._listeners.append(listener)
        settle_stores()
        try:
            yield
        finally:
            if listener in self._listeners:  # a forked child has forgotten it
                self._listeners.remove(listener)


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
