"""BufferListener: delivers what was logged, to a sink or to logging handlers."""

from __future__ import annotations

import copy
import logging
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from backpressure.base.errors import BufferClosed
from backpressure.base.priority import Priority
from backpressure.base.sending import sending
from backpressure.base.validation import timeout_seconds
from backpressure.buffer.batch import Batch
from backpressure.buffer_manager import BufferManager
from backpressure.logging.levels import LEVELS
from backpressure.logging.reentry import here, within_buffer
from backpressure.logging.targets import Target
from backpressure.sinks import SinkGone

__all__ = ["BufferListener"]

_log = logging.getLogger("backpressure")

# How long the listener collects between two batches (seconds): a line is in its file
# before a reader looks, and thirty wake-ups a second cost nothing beside one for each
# line.
_LINGER: Final = 0.03
# How long it sleeps where there is nothing (seconds); a record wakes it.
_IDLE: Final = 1.0
# How often a listener that is stopping looks whether a failed batch is due again
# (seconds).
_LOOK: Final = 0.01
# How long it pauses after an error of the buffer's own (seconds).
_ERROR_PAUSE: Final = 0.2
# A failing sink is reported once, and again when it has worked and failed anew; the
# first of these seconds apart at least. A failing handler is reported once in as many.
_REPORT_SECONDS: Final = 60.0


class BufferListener:
    """Delivers a buffer's batches in a thread of its own: to a sink, or to logging
    handlers.

    A handler gets one record for each event: its text as `msg`, its level from its
    priority, `backpressure` as its name; so give it no formatter, or one that only adds
    to `%(message)s`. What a handler or its filters raise is its own affair: it is
    reported by its `handleError`, once in a minute, counted in `handler_errors`, and
    keeps nothing from the others and from later records. A sink that raises gets the
    batch again. Only SinkGone, and the buffer's end, end the delivery.

    What is logged while a batch is sent, by the delivering thread or by code that
    inherits its context, does not come back into this buffer: see `BufferHandler`.

    The thread is a daemon, so that a sink that hangs does not keep the process alive;
    `BufferHandler.close` stops it in time.
    """

    def __init__(self, buffer: BufferManager, target: Target, *, linger: float = _LINGER) -> None:
        """`linger`: seconds between two batches, in which records collect; 0 delivers
        each as soon as it can.
        """
        self._buffer = buffer
        self._target = target
        self._linger = linger
        self._hurry = _Hurry()
        self._stopping = False
        self._deadline = float("inf")
        self._thread: threading.Thread | None = None
        self._reported_at = float("-inf")
        self._failing = False
        self._handlers_reported: dict[int, float] = {}
        self._target_closed = False
        #: What ended the delivery before its time, or None.
        self.error: Exception | None = None
        #: How many records a target handler raised for: it did not get them.
        self.handler_errors = 0

    def start(self) -> None:
        """Begin; RuntimeError where it has begun already."""
        if self._thread is not None:
            raise RuntimeError("the listener has been started already")
        self._thread = threading.Thread(target=self._run, name="forebay-logging", daemon=True)
        self._thread.start()

    def flush(self, timeout: float | None = 5.0) -> bool:
        """Wait until all that is in the buffer now has been delivered, for that many
        seconds at most (None: as long as it takes); False: it was not, in that time.
        """
        seconds = timeout_seconds(timeout)
        if here.within:
            return False  # the call that was interrupted would be waited for
        lanes = self._lane_stats()
        goals = {priority: _settled(lane) + lane.resident for priority, lane in lanes.items()}
        deadline = time.monotonic() + seconds
        while True:
            self._hurry.set()
            lanes = self._lane_stats()
            if all(_settled(lanes[priority]) >= goal for priority, goal in goals.items()):
                return True
            if time.monotonic() >= deadline or self._is_over():
                return False
            time.sleep(0.001)

    def stop(self, timeout: float | None = 5.0) -> bool:
        """Deliver what is left, for that many seconds at most (None: as long as it
        takes), close the sink, and end.

        False: something is left, or is still being sent.
        """
        seconds = timeout_seconds(timeout)
        self._deadline = time.monotonic() + seconds
        self._stopping = True
        self._hurry.set()
        with within_buffer():
            self._buffer.wake_waiters()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(min(seconds, threading.TIMEOUT_MAX))
            if self._thread.is_alive():
                return False
        self._close_target()
        return self._resident() == 0

    def _is_over(self) -> bool:
        """Whether no delivery is to be waited for, here."""
        thread = self._thread
        return thread is None or not thread.is_alive() or thread is threading.current_thread()

    def _lane_stats(self) -> Any:
        with within_buffer():
            return self._buffer.stats().lanes

    def _resident(self) -> int:
        with within_buffer():
            return self._buffer.resident

    def _run(self) -> None:
        while not self._stopping or (self._resident() and time.monotonic() < self._deadline):
            try:
                with within_buffer():
                    batch = self._buffer.get_batch()
                if batch is None:
                    self._sleep()
                    continue
                self._deliver(batch)
            except BufferClosed:
                break
            except SinkGone as error:
                self.error = error
                self._say(logging.ERROR, "logging ends: %s", _in_words(error))
                break
            except BaseException as error:
                # Of the buffer, or of a handler or a filter that got the buffer's own
                # lines. What was taken and not settled comes again.
                self._report(error)
                self._hurry.wait(_ERROR_PAUSE)
                continue
            if self._linger and not self._stopping:
                self._hurry.wait(self._linger)
        if self._stopping:
            self._close_target()

    def _sleep(self) -> None:
        """Until there may be a batch, or it is time to stop."""
        longest = _LOOK if self._stopping else _IDLE
        stopping = self._stopping
        with within_buffer():
            waiter = self._buffer.batch_waiter().unless(lambda: self._stopping is not stopping)
            waiter.wait(longest)

    def _deliver(self, batch: Batch) -> None:
        target = self._target
        failure: BaseException | None = None
        try:
            with sending(self._buffer.id):
                if isinstance(target, Sequence):
                    self._hand_to(batch, target)
                else:
                    target.send(batch)
        except BaseException as error:
            failure = error
        with within_buffer():
            # Acked or nacked, unless the sink has settled it.
            batch.__exit__(None if failure is None else type(failure), failure, None)
        if isinstance(failure, SinkGone):
            raise failure
        if failure is None:
            self._failing = False
        else:
            self._report(failure)

    def _report(self, error: BaseException) -> None:
        """Say that the sink fails: seldom, since the report itself may come by here."""
        now = time.monotonic()
        if not self._failing and now - self._reported_at >= _REPORT_SECONDS:
            self._reported_at = now
            self._say(logging.WARNING, "log lines wait, their sink fails: %s", _in_words(error))
        self._failing = True

    def _say(self, level: int, text: str, *arguments: object) -> None:
        """Log, whatever the handlers and filters do that are in the way."""
        try:
            _log.log(level, text, *arguments)
        except BaseException:
            if logging.raiseExceptions and sys.stderr is not None:
                try:
                    traceback.print_exc()
                except Exception:
                    pass  # there is nowhere left to say it

    def _close_target(self) -> None:
        if self._target_closed or isinstance(self._target, Sequence):
            return
        self._target_closed = True
        try:
            self._target.close()
        except Exception as error:
            self.error = self.error or error

    # ------------------------------------------------------------ logging handlers

    def _hand_to(self, batch: Batch, handlers: Sequence[logging.Handler]) -> None:
        level = LEVELS[Priority(batch.priority)]
        for event in batch:
            record = logging.LogRecord(
                "backpressure", level, "", 0, event.decode("utf-8", "replace"), None, None
            )
            for handler in handlers:
                if level >= handler.level:
                    try:
                        with _passed_on(handler):
                            # A handler's formatter may write into the record.
                            handler.handle(copy.copy(record))
                    except BaseException:
                        self._handler_failed(handler, record)

    def _handler_failed(self, handler: logging.Handler, record: logging.LogRecord) -> None:
        """Report what is being raised as that handler's, once in a minute."""
        self.handler_errors += 1
        now = time.monotonic()
        if now - self._handlers_reported.get(id(handler), float("-inf")) < _REPORT_SECONDS:
            return
        self._handlers_reported[id(handler)] = now
        try:
            handler.handleError(record)
        except BaseException as error:
            self._say(logging.ERROR, "%r cannot report its error: %s", handler, _in_words(error))


@contextmanager
def _passed_on(handler: logging.Handler) -> Iterator[None]:
    """A handler with a buffer of its own takes what is passed on to it: that was not
    logged by what sends.
    """
    if hasattr(handler, "_feeds"):
        with sending(None):
            yield
    else:
        yield


class _Hurry:
    """An event that any thread sets and one waits for, by which it is cleared.

    Unlike those of `threading` it can be set by a signal's handler that interrupts its
    setting: no Python code runs with a lock held.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def set(self) -> None:
        if self._lock.locked():
            try:
                self._lock.release()
            except RuntimeError:
                pass  # another was faster

    def wait(self, seconds: float) -> None:
        self._lock.acquire(timeout=seconds)


def _in_words(error: BaseException) -> str:
    if isinstance(error, OSError) and str(error):
        return str(error)
    return "".join(traceback.format_exception_only(error)).strip()


def _settled(lane: Any) -> int:
    return int(lane.acked + lane.dead_lettered + sum(lane.dropped.values()))
