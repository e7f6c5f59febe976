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

__all__ = ["MAX_DEFERRED", "here", "run_deferred", "within_buffer"]

# A bound for memory. A thread is within a buffer for microseconds, or for the seconds
# in which it closes one.
MAX_DEFERRED: Final = 10_000


class _Here(threading.local):
    """Of the thread that asks."""

    #: Whether it is within a buffer.
    within = False

    def __init__(self) -> None:
        #: What it has to do when it is out.
        self.deferred: deque[Callable[[], None]] = deque()


here: Final = _Here()


@contextmanager
def within_buffer() -> Iterator[None]:
    """Records that this thread logs meanwhile are added afterwards."""
    outer = here.within
    try:
        here.within = True
        yield
    finally:
        here.within = outer
        if not outer and here.deferred:
            run_deferred()


def run_deferred() -> None:
    """Add what has waited, in order. It must not be within a buffer any more."""
    deferred = here.deferred
    while True:
        try:
            add = deferred.popleft()
        except IndexError:
            return  # also where a signal's handler was here and has added it
        add()
