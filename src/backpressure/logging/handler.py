"""BufferHandler: puts what is logged into a buffer.

Invariants. A record is added, or counted in `refused`, or both are done by another's
call that is under way in the same thread (see reentry.py). No lock is held while a
record is formatted or added. What a handler has begun to close accepts nothing.

In a forked child the handler has a buffer, a listener and counts of its own, from the
child's first record on; nothing of the parent's buffer is touched there.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

from backpressure.base.at_exit import at_exit_of_child
from backpressure.base.errors import BackpressureError
from backpressure.base.sending import sent_buffer
from backpressure.base.validation import timeout_seconds
from backpressure.buffer.config import BufferConfig, Durability, WhenFull
from backpressure.buffer.from_mapping import build
from backpressure.buffer.single_events import SingleEventWriter
from backpressure.buffer_manager import BufferManager
from backpressure.logging.formatting import QuickFormat
from backpressure.logging.levels import Priorities
from backpressure.logging.listener import BufferListener
from backpressure.logging.reentry import (
    MAX_DEFERRED,
    ThreadState,
    here,
    run_deferred,
    within_buffer,
)
from backpressure.logging.tally import Tally
from backpressure.logging.targets import SinkArgument, open_target

__all__ = ["BufferHandler"]

_log = logging.getLogger("backpressure")

# A flush that failed and a close that follows within that time (seconds) are one end,
# which has one time to wait.
_JUST_NOW: Final = 0.1


class BufferHandler(logging.Handler):
    """Formats records and puts them into a buffer.

    buffer: a BufferManager, which the caller owns and closes; or a BufferConfig, or its
        fields as a dict (the way of dictConfig), or None for the defaults: then the
        handler has a buffer of its own, and closes it with itself.
    sink: where the handler's own BufferListener delivers: a Sink, a path ("app.log",
        which is appended to; "-" is stdout), or logging handlers, also by their names.
        A string that names a handler is that handler, and not a path; a `Path` is
        always one. None: the caller consumes the buffer.
    priority: one for all levels; or by level (a name or a number; levels between have
        the lower one's); or "level" for `priority_of`. None: one for all where a sink
        gets lines, so that a file has them in order; else "level", since a logging
        handler knows a record's level by its priority only. In a buffer with fewer
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
        sink: SinkArgument = None,
        priority: int | str | Mapping[int | str, int] | None = None,
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
        levels = config.flow_control.priority_levels
        Priorities(priority, levels)  # mistakes are named before a file is opened
        target = open_target(sink)
        super().__init__(level)
        in_order = target is not None and not isinstance(target, Sequence)
        self._priorities: Final = Priorities(priority, levels, in_order=in_order)
        self._timeout: Final = timeout
        self._drain_timeout: Final = drain_timeout
        self._owns = own
        self._target: Final = target
        self._has_own_filter: Final = type(self).filter is not logging.Handler.filter
        self._quick: QuickFormat | None = None
        # What is kept, unused, of the processes that this one was forked from: no
        # finaliser of theirs is to run here.
        self._ancestors: list[object] = []
        self._tally = Tally()
        self._closing = False
        self._closed = False
        self._flush_failed_at = -math.inf
        self._fed_back = False
        self._start(buffer if isinstance(buffer, BufferManager) else BufferManager(buffer))
        _handlers.add(self)

    def _start(self, buffer: BufferManager) -> None:
        self.buffer = buffer
        self._pid = os.getpid()
        #: The handler's own listener, or None.
        self.listener: BufferListener | None = None
        if self._target is not None:
            self.listener = BufferListener(buffer, self._target)
            self.listener.start()
        self._events: SingleEventWriter | _AfterFork = SingleEventWriter(buffer, self._timeout)
        at_exit_of_child(self._end_of_child)

    @property
    def refused(self) -> dict[str, int]:
        """Records that were not accepted, by reason.

        The reasons are those of Admission, "error" for what went to `handleError`, and
        "feedback" for what was logged while this buffer's events were being sent.
        """
        return self._tally.counts()

    # ------------------------------------------------------------ a record

    def format(self, record: logging.LogRecord) -> str:
        """As `Handler.format`, to the letter."""
        formatter = self.formatter or _no_formatter()
        quick = self._quick
        if quick is None or quick.formatter is not formatter:
            self._quick = quick = QuickFormat(formatter)
        return quick.format(record)

    def handle(self, record: logging.LogRecord) -> bool:
        """As `Handler.handle`, without its lock.

        Nothing here needs one, and a fork could leave it held.
        """
        if self.filters or self._has_own_filter:
            # A bool, or from Python 3.12 on also a record in the place of this one.
            passed: Any = self.filter(record)
            if not passed:
                return False
            record = passed if isinstance(passed, logging.LogRecord) else record
        self.emit(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        """Format the record and add it to the buffer, or count why it was refused."""
        sent = sent_buffer()
        if sent is not None and self._comes_back(sent):
            self._tally.add("feedback")
            return
        if self._closing:
            self._tally.add("closed")
            return
        try:
            text = self.format(record)
            priority = self._priorities[record.levelno]
        except RecursionError:
            raise  # as logging's own handlers do: no stack is left to report it with
        except Exception:
            self._tally.add("error")
            self.handleError(record)
            return
        thread = here.thread
        if not thread.within:
            try:
                self._add(text, priority, record, thread)
            finally:
                if thread.deferred:
                    run_deferred()
        elif len(thread.deferred) < MAX_DEFERRED:
            thread.deferred.append(partial(self._add, text, priority, record, thread))
        else:
            self._tally.add("full")

    def _add(
        self, text: str, priority: int, record: logging.LogRecord, thread: ThreadState
    ) -> None:
        reason: str | None
        try:
            thread.within = True
            if self._events.try_add(text, priority):
                return
            try:
                reason = self._events.add(text, priority)
            except BackpressureError:
                # Half of a surrogate pair has no UTF-8: the line shows it escaped.
                escaped = text.encode("utf-8", "backslashreplace")
                reason = self._events.add(escaped, priority)
        except RecursionError:
            raise
        except Exception:
            thread.within = False
            self._tally.add("error")
            self.handleError(record)
        else:
            if reason is not None:
                self._tally.add(reason)
        finally:
            thread.within = False

    def _comes_back(self, sent: str) -> bool:
        """Whether a record that is logged while that buffer's events are being sent
        would be sent by that same sink.

        Directly; or by turns: two handlers whose sinks both log would feed each other.
        """
        if self._feeds(sent):
            self._fed_back = True
        return self._fed_back

    def _feeds(self, buffer_id: str) -> bool:
        """Whether what is logged here comes into that buffer."""
        if buffer_id == self.buffer.id:
            return True
        targets = self._target if isinstance(self._target, Sequence) else ()
        return any(one._feeds(buffer_id) for one in targets if isinstance(one, BufferHandler))

    # ------------------------------------------------------------ the end

    def flush(self) -> None:
        """Wait, for `drain_timeout` at most, until what was logged is delivered.

        Only the handler's own listener is waited for, and not by a signal's handler
        that has interrupted a logging call.
        """
        if self._is_shut_down():
            # `close` comes next: it waits, and accepts nothing meanwhile.
            self._closing = True
        elif (
            self.listener is not None
            and not self._closing
            and not here.thread.within
            and not self.listener.flush(self._drain_timeout)
        ):
            self._flush_failed_at = time.monotonic()

    def _is_shut_down(self) -> bool:
        """Whether `logging.shutdown` calls: it flushes each handler, then closes it."""
        frame = sys._getframe(1)
        while frame.f_back is not None:
            frame = frame.f_back
            if frame.f_code is logging.shutdown.__code__:
                return any(one is self for one in frame.f_locals.values())
        return False

    def close(self) -> None:
        """Accept no more, deliver what is left, for `drain_timeout` at most, and end.

        What is logged from now on counts as refused ("closed"); what is not delivered
        by then is counted as dropped in the buffer's stats, and logged. Where a
        signal's handler calls this in the midst of a logging call, that call is
        completed first, and then closes.
        """
        thread = here.thread
        if thread.within:
            self._closing = True
            thread.deferred.append(self.close)
            return
        if thread.deferred:
            run_deferred()
        self._closing = True
        try:
            if not self._closed and self._pid == os.getpid():
                self._closed = True
                self._end(time.monotonic())
        finally:
            super().close()

    def _end_of_child(self) -> None:
        # multiprocessing waits for threads right after its finalisers, while all others
        # do so before atexit. They may log until then; a second wait finds none.
        threading._shutdown()  # type: ignore[attr-defined]
        self.close()

    def _end(self, now: float) -> None:
        waited = now - self._flush_failed_at < _JUST_NOW
        deadline = now if waited else now + self._drain_timeout
        try:
            if self.listener is not None:
                self.listener.stop(max(0.0, deadline - time.monotonic()))
        finally:
            if self._owns:
                # The handler's listener has had its time. Without one the caller
                # consumes, and may need some.
                left = max(0.0, deadline - time.monotonic())
                if self.listener is not None or (self._ancestors and not self._is_consumed()):
                    left = 0.0
                with within_buffer():
                    self.buffer.close(timeout=left)

    def _is_consumed(self) -> bool:
        """Whether a batch was ever taken from the buffer."""
        stats = self.buffer.stats()
        return bool(stats.acked or stats.in_flight or stats.batches_nacked)

    # ------------------------------------------------------------ forks

    def _forget_parent(self) -> None:
        """In the child, before anything else runs: forget the parent's buffer.

        Its locks may be held for ever, and its threads do not run here.
        """
        self._ancestors.append((self.buffer, self.listener, self._events))
        self._tally = Tally()
        self._flush_failed_at = -math.inf
        self._fed_back = False
        self.listener = None
        self._events = _AfterFork(self)

    def _start_in_child(self) -> None:
        config = self.buffer.config
        directory = config.directory
        if directory is not None:
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
        self._start(BufferManager(config))
        self._owns = True
        if directory is not None:
            _warn(
                "process %d is a fork: its log lines are in memory until they are sent, "
                "since the directory %s is its parent's",
                self._pid,
                directory,
            )
        elif self._target is None:
            _warn(
                "process %d is a fork: its log lines are in a buffer of its own "
                "(handler.buffer), which no consumer of its parent's reads",
                self._pid,
            )


def _no_formatter() -> logging.Formatter:
    """What logging uses where a handler has none."""
    default: logging.Formatter = vars(logging)["_defaultFormatter"]
    return default


def _warn(text: str, *arguments: object) -> None:
    try:
        _log.warning(text, *arguments)
    except Exception:
        pass  # another handler's trouble, which must not become the caller's


class _AfterFork:
    """Stands in for SingleEventWriter from a fork to the child's first record."""

    def __init__(self, handler: BufferHandler) -> None:
        self._handler = handler
        # The thread that holds it logs nothing here: it is within the buffer.
        self._lock = threading.Lock()

    def try_add(self, event: bytes | str, priority: int) -> bool:
        return False

    def add(self, event: bytes | str, priority: int) -> str | None:
        handler = self._handler
        with self._lock:
            if handler._events is self:
                handler._start_in_child()
        return handler._events.add(event, priority)


_handlers: weakref.WeakSet[BufferHandler] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    here.thread.within = False
    here.thread.deferred.clear()  # what the parent adds itself
    for handler in list(_handlers):
        handler._forget_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
