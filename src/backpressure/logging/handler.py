"""BufferHandler: puts what is logged into a buffer.

In a forked child it makes a buffer of its own.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from backpressure.base.errors import BackpressureError
from backpressure.base.validation import timeout_seconds
from backpressure.buffer.config import BufferConfig, Durability, WhenFull
from backpressure.buffer.from_mapping import build
from backpressure.buffer.single_events import SingleEventWriter
from backpressure.buffer_manager import BufferManager
from backpressure.logging.formatting import QuickFormat, quick_format
from backpressure.logging.levels import Priorities
from backpressure.logging.listener import BufferListener, open_target
from backpressure.sinks import Sink

__all__ = ["BufferHandler"]


class BufferHandler(logging.Handler):
    """Formats records and puts them into a buffer.

    buffer: a BufferManager, which the caller owns and closes; or a BufferConfig, or its
        fields as a dict (the way of dictConfig), or None for the defaults: then the
        handler has a buffer of its own, and closes it with itself.
    sink: where the handler's own BufferListener delivers: a Sink, a path ("app.log",
        which is appended to; "-" is stdout), or logging handlers. None: the caller
        consumes the buffer.
    priority: one for all levels, or by level (a name or a number; levels between have
        the lower one's), or None for `priority_of`. In a buffer with fewer
        priorities the least urgent levels share its last one.
    timeout: seconds that a call may wait for room; 0 never waits.
    drain_timeout: seconds that `close` may take to deliver.

    A record that is refused is counted in `refused`. One that cannot be formatted, or
    is larger than its lane, goes to `handleError`, as with every handler.
    """

    def __init__(
        self,
        buffer: BufferManager | BufferConfig | Mapping[str, Any] | None = None,
        *,
        sink: Sink | str | logging.Handler | Sequence[logging.Handler] | None = None,
        priority: int | Mapping[int | str, int] | None = None,
        level: int | str = logging.NOTSET,
        timeout: float = 0.0,
        drain_timeout: float = 5.0,
    ) -> None:
        for name, seconds in (("timeout", timeout), ("drain_timeout", drain_timeout)):
            # None would make a log call, or the end of the process, wait for ever.
            if timeout_seconds(seconds, name) == math.inf:
                raise ValueError(f"{name} must be a number of seconds from 0 on, not {seconds!r}")
        own = not isinstance(buffer, BufferManager)
        if not isinstance(buffer, (BufferManager, BufferConfig)):
            buffer = build(BufferConfig, buffer or {}, "buffer")
        config = buffer.config if isinstance(buffer, BufferManager) else buffer
        by_level = Priorities(priority, config.flow_control.priority_levels)
        target = open_target(sink)
        super().__init__(level)
        self._priorities: Final = by_level
        self._timeout: Final = timeout
        self._drain_timeout: Final = drain_timeout
        self._owns: Final = own
        self._target: Final = target
        self._counting = threading.Lock()
        self._refused: Counter[str] = Counter()
        self._closed = False
        self._start(buffer if isinstance(buffer, BufferManager) else BufferManager(buffer))
        _handlers.add(self)

    def _start(self, buffer: BufferManager) -> None:
        self.buffer = buffer
        self._events: SingleEventWriter | _AfterFork = SingleEventWriter(buffer, self._timeout)
        self._pid = os.getpid()
        #: The handler's own listener, or None.
        self.listener: BufferListener | None = None
        if self._target is not None:
            self.listener = BufferListener(buffer, self._target)
            self.listener.start()

    @property
    def refused(self) -> dict[str, int]:
        """Records that were not accepted, by reason.

        The reasons are those of Admission, and "error" for what went to `handleError`.
        """
        with self._counting:
            return dict(self._refused)

    def setFormatter(self, fmt: logging.Formatter | None) -> None:  # noqa: N802 (logging's name)
        """As `Handler.setFormatter`."""
        super().setFormatter(fmt)
        self._quick = quick_format(fmt)

    _quick: QuickFormat | None = None

    def format(self, record: logging.LogRecord) -> str:
        """As `Handler.format`, to the letter."""
        if self._quick is not None:
            return self._quick.format(record)
        return super().format(record)

    def handle(self, record: logging.LogRecord) -> bool:
        """As `Handler.handle`, without its lock.

        Nothing here needs one, and a fork could leave it held.
        """
        if self.filters or type(self).filter is not logging.Handler.filter:
            # A bool, or from Python 3.12 on also a record in the place of this one.
            passed: Any = self.filter(record)
            if not passed:
                return False
            record = passed if isinstance(passed, logging.LogRecord) else record
        self.emit(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        """Format the record and add it to the buffer, or count why it was refused."""
        try:
            text = self.format(record)
            priority = self._priorities[record.levelno]
            try:
                reason = self._events.add(text, priority)
            except BackpressureError:
                # Half of a surrogate pair has no UTF-8: the line shows it escaped.
                escaped = text.encode("utf-8", "backslashreplace")
                reason = self._events.add(escaped, priority)
        except RecursionError:
            raise  # as logging's own handlers do: no stack is left to report it with
        except Exception:
            self._count("error")
            self.handleError(record)
        else:
            if reason is not None:
                self._count(reason)

    def _count(self, reason: str) -> None:
        with self._counting:
            self._refused[reason] += 1

    def flush(self) -> None:
        """Wait, for `drain_timeout` at most, until what was logged is delivered.

        Only the handler's own listener is waited for.
        """
        if self.listener is not None and not self._closed:
            self.listener.flush(self._drain_timeout)

    def close(self) -> None:
        """Deliver what is left, for `drain_timeout` at most, and end.

        What is logged from now on counts as refused.
        """
        if not self._closed and self._pid == os.getpid():
            self._closed = True
            self._events.close()
            deadline = time.monotonic() + self._drain_timeout
            if self.listener is not None:
                self.listener.stop(self._drain_timeout)
            if self._owns:
                # The handler's listener has had its time. Without one the caller
                # consumes, and may need some.
                left = max(0.0, deadline - time.monotonic())
                self.buffer.close(timeout=0.0 if self.listener is not None else left)
        super().close()

    # ------------------------------------------------------------ forks

    def _forget_parent(self) -> None:
        """In the child, before anything else runs: forget the parent's buffer.

        Its locks may be held for ever, and its threads do not run here.
        """
        self._counting = threading.Lock()
        self._refused = Counter()
        self.listener = None
        self._events = _AfterFork(self)

    def _start_in_child(self) -> None:
        config = self.buffer.config
        if config.directory is not None:
            # The directory is the parent's: one belongs to one process.
            config = replace(
                config,
                directory=None,
                durability=Durability.PROCESS,
                max_disk_bytes=None,
                max_attempts=None,
                # In memory, dropping other priorities makes no room.
                when_full=WhenFull.DROP_OLDEST
                if config.when_full is WhenFull.DROP_LOWEST_PRIORITY
                else config.when_full,
            )
        # Kept, so that no finaliser of the parent's objects runs here.
        self._parents = self.buffer
        self._start(BufferManager(config))
        # A child of multiprocessing ends without atexit: without logging.shutdown.
        if (util := sys.modules.get("multiprocessing.util")) is not None:
            util.Finalize(None, self.flush, exitpriority=0)


class _AfterFork:
    """Stands in for SingleEventWriter from a fork to the child's first record."""

    def __init__(self, handler: BufferHandler) -> None:
        self._handler = handler
        self._lock = threading.Lock()

    def add(self, event: bytes | str, priority: int) -> str | None:
        handler = self._handler
        if handler._closed:
            return "closed"
        with self._lock:
            if handler._events is self:
                handler._start_in_child()
        return handler._events.add(event, priority)

    def close(self) -> None:
        pass


_handlers: weakref.WeakSet[BufferHandler] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for handler in list(_handlers):
        handler._forget_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
