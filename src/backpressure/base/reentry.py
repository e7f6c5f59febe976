"""Reentry: what becomes of a call that comes while its own thread is changing the same
object.

A finaliser runs wherever a collection starts, and a signal's handler between any two
instructions of the main thread. Where one of them calls an object whose lock its own
thread holds, it can neither wait for the lock, which would be for ever, nor change a
state that is half changed already. So such a call is told apart, by the lock's owner,
and:

- a report (a result, a measurement, a setting) is put off until the lock has been let
  go: see `deferrable`;
- a reading gives the numbers as they stand: each is right by itself, and two of them
  may be from before and after the change;
- an admission is answered from the state as it stands, changes nothing, and puts off
  its entry in the books.

For a call that is not within another one this costs a look at the lock's owner.

After a fork a lock that another thread held would never be let go in the child, and
what that thread was changing would stay half changed. Both are mended in the child: the
lock is free again, and the object starts over with what was under way.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, Concatenate, Final, ParamSpec, Protocol, TypeVar, cast

__all__ = ["Reentry", "deferrable"]

_log = logging.getLogger("backpressure")

_P = ParamSpec("_P")


class Reentry:
    """The lock of one object, and the calls put off while it was held.

    start_over: a method of that object, called in the child of a fork at which another
        thread held the lock; it drops what may be half changed.
    """

    __slots__ = ("__weakref__", "_applying", "_start_over", "deferred", "lock", "within")

    def __init__(self, start_over: Callable[[], object]) -> None:
        #: Held for every change. A `with` takes it without another Python call.
        self.lock: Final = threading.RLock()
        #: Whether this thread holds it now.
        self.within: Final[Callable[[], bool]] = cast(Any, self.lock)._is_owned
        #: Calls to make once it is free; `append` and `popleft` are atomic.
        self.deferred: Final[deque[Callable[[], object]]] = deque()
        self._applying = threading.Lock()
        self._start_over = weakref.WeakMethod(start_over)
        _all.add(self)

    def apply(self) -> None:
        """Make the calls that were put off; without the lock."""
        deferred = self.deferred
        # Who finds another one at it leaves the rest to it: it looks again after it has
        # let go.
        while deferred and not self.within() and self._applying.acquire(blocking=False):
            try:
                while deferred:
                    deferred.popleft()()
            except Exception:
                # The caller of that is gone, and this one has nothing to do with it.
                _log.exception("a report that was put off failed")
            finally:
                self._applying.release()

    def mend_after_fork(self) -> None:
        """In the child, where no other thread runs."""
        self._applying = threading.Lock()
        if self.lock.acquire(blocking=False):
            self.lock.release()
            return
        cast(Any, self.lock)._at_fork_reinit()
        start_over = self._start_over()
        if start_over is not None:
            start_over()


class _Reentrant(Protocol):
    _reentry: Reentry


_S = TypeVar("_S", bound=_Reentrant)


def deferrable(
    report: Callable[Concatenate[_S, _P], None],
) -> Callable[Concatenate[_S, _P], None]:
    """Decorate a method that takes its object's lock and returns nothing: a call within
    a change is made after it.
    """

    @functools.wraps(report)
    def call(self: _S, /, *args: _P.args, **kwargs: _P.kwargs) -> None:
        reentry = self._reentry
        if reentry.within():
            reentry.deferred.append(functools.partial(call, self, *args, **kwargs))
            return
        report(self, *args, **kwargs)
        if reentry.deferred:
            reentry.apply()

    return call


_all: Final[weakref.WeakSet[Reentry]] = weakref.WeakSet()


def _mend_all() -> None:
    for reentry in tuple(_all):
        reentry.mend_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_mend_all)
