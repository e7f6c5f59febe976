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
  its entry in the books;
- what would wait for another thread does not: that thread may wait for the lock. See
  `interrupted`.

For a call that is not within another one this costs a look at the lock's owner.

A finaliser or handler may also wait for the lock of another object, which another
thread holds. That one lets go of it, unless a finaliser or handler of its own waits for
a lock held here: collections run in one thread at a time, so this takes a collection in
one thread and a signal in the main one, each under a lock that the other wants.

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

__all__ = ["Reentry", "acquire_within", "deferrable", "interrupted"]

_log = logging.getLogger("backpressure")

_P = ParamSpec("_P")


class Reentry:
    """The lock of one object, and the calls put off while it was held.

    start_over: a method of that object, called in the child of a fork at which another
        thread held the lock; it drops what may be half changed.
    outer: locks that are held around this one for longer changes: a call within one of
        them is put off as well.
    """

    __slots__ = ("__weakref__", "_applying", "_owned", "_start_over", "deferred", "lock", "within")

    def __init__(self, start_over: Callable[[], object], *outer: threading.RLock) -> None:
        #: Held for every change. A `with` takes it without another Python call.
        self.lock: Final = threading.RLock()
        self._owned: Final = [cast(Any, lock)._is_owned for lock in (self.lock, *outer)]
        #: Whether this thread holds it now, or an outer one.
        self.within: Final = _any_of(self._owned)
        #: Calls to make once it is free; `append` and `popleft` are atomic.
        self.deferred: Final[deque[Callable[[], object]]] = deque()
        self._applying = threading.RLock()
        self._start_over = weakref.WeakMethod(start_over)
        number = id(self)
        _all[number] = weakref.ref(self, lambda _: _all.pop(number, None))

    def within_or(self, other: Reentry) -> Callable[[], bool]:
        """A `within` of this one and another one at once."""
        return _any_of(self._owned + other._owned)

    def apply(self) -> None:
        """Make the calls that were put off; without the lock."""
        deferred = self.deferred
        applying = self._applying  # which a child that one of the calls forks replaces
        owned: Callable[[], bool] = cast(Any, applying)._is_owned
        # A thread that finds another one at it, or itself, leaves the rest to that one,
        # which looks again after it has let go.
        while deferred and not self.within() and not owned():
            acquired: list[bool] = []
            try:
                if not acquire_within(applying, acquired):
                    return
                while deferred:
                    deferred.popleft()()
            except Exception:
                # The caller of that is gone, and this one has nothing to do with it.
                _log.exception("a report that was put off failed")
            finally:
                if acquired:
                    applying.release()

    def mend_after_fork(self) -> None:
        """In the child, where no other thread runs."""
        self._applying = threading.RLock()
        if self.lock.acquire(blocking=False):
            self.lock.release()
            return
        cast(Any, self.lock)._at_fork_reinit()
        start_over = self._start_over()
        if start_over is not None:
            start_over()


def acquire_within(lock: threading.RLock, acquired: list[bool], seconds: float = 0.0) -> bool:
    """Acquire a lock if that takes no longer wait; whether it was.

    `acquired` has an item from then on: `finally: if acquired: lock.release()` also
    releases it where a signal's handler raises before this has returned, and must come
    to that without a call.
    """
    # One call, and not Python's: no handler comes between the acquiring and the item.
    wait = min(seconds, threading.TIMEOUT_MAX)
    acquired.extend(filter(None, map(lock.acquire, (True,), (wait,))))
    return bool(acquired)


def _any_of(owned: list[Callable[[], bool]]) -> Callable[[], bool]:
    """Whether one of these holds, by as few calls as may be: every batch asks."""
    if len(owned) == 1:
        return owned[0]
    if len(owned) == 2:
        first, second = owned
        return lambda: first() or second()

    def any_of() -> bool:
        # `any` would make a generator each time.
        for one in owned:  # noqa: SIM110
            if one():
                return True
        return False

    return any_of


def interrupted() -> Reentry | None:
    """One of the objects, of any buffer or policy, that this thread is changing: this
    call has interrupted that, and must not wait for another thread.

    For what may wait, just before it does: it looks at every lock there is.
    """
    for ref in _all_now():
        reentry = ref()
        if reentry is not None and reentry.within():
            return reentry
    return None


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


# By id. Adding to it and taking from it are atomic.
_all: Final[dict[int, weakref.ref[Reentry]]] = {}


def _all_now() -> tuple[weakref.ref[Reentry], ...]:
    while True:
        try:
            return tuple(_all.values())
        except RuntimeError:
            # Another thread has made or dropped one, or a collection has that the copy
            # itself has started.
            continue


def _mend_all() -> None:
    for ref in _all_now():
        if (reentry := ref()) is not None:
            reentry.mend_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_mend_all)
