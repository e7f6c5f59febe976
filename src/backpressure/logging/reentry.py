"""What a thread logs while it is within a buffer of a handler's already.

A garbage collection or a signal may run Python code at almost any point: a `__del__` or
a signal's handler that logs would come to a lane's lock that its own thread holds. Such
a record waits until the thread is out of the buffer, which is before the outer logging
call returns.

Thread safety: everything here belongs to the thread that calls.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

__all__ = ["MAX_DEFERRED", "ThreadState", "here", "run_deferred", "within_buffer"]

# A bound for memory. A thread is within a buffer for microseconds, or for the seconds
# in which it closes one.
MAX_DEFERRED: Final = 10_000


class ThreadState:
    """Of one thread, for itself alone."""

    __slots__ = ("deferred", "within")

    def __init__(self) -> None:
        #: Whether it is within a buffer.
        self.within = False
        #: What it has to do when it is out.
        self.deferred: deque[Callable[[], None]] = deque()


class _Here(threading.local):
    def __init__(self) -> None:
        #: Of the thread that asks. One look-up here, as it costs more than those there.
        self.thread: Final = ThreadState()


here: Final = _Here()


@contextmanager
def within_buffer() -> Iterator[None]:
    """Records that this thread logs meanwhile are added afterwards."""
    thread = here.thread
    outer = thread.within
    try:
        thread.within = True
        yield
    finally:
        thread.within = outer
        if not outer and thread.deferred:
            run_deferred()


def run_deferred() -> None:
    """Add what has waited, in order. It must not be within a buffer any more."""
    deferred = here.thread.deferred
    while True:
        try:
            add = deferred.popleft()
        except IndexError:
            return  # also where a signal's handler was here and has added it
        add()
