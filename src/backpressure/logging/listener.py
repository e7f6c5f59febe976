"""BufferListener: delivers what was logged, to a sink or to logging handlers."""

from __future__ import annotations

import copy
import logging
import threading
import time
import traceback
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

from backpressure.base.errors import BufferClosed
from backpressure.base.priority import Priority
from backpressure.base.validation import timeout_seconds
from backpressure.buffer.batch import Batch
from backpressure.buffer_manager import BufferManager
from backpressure.logging.levels import LEVELS
from backpressure.sinks import Sink, SinkGone, open_sink

__all__ = ["BufferListener", "Target", "open_target"]

#: Where batches go: a sink, or logging handlers that get a record for each line.
Target: TypeAlias = Sink | Sequence[logging.Handler]

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
# A failing sink is reported once, and again when it has worked and failed anew; the
# first of these seconds apart at least.
_REPORT_SECONDS: Final = 60.0


class BufferListener:
    """Delivers a buffer's batches in a thread of its own: to a sink, or to logging
    handlers.

    A handler gets one record for each event: its text as `msg`, its level from its
    priority, `backpressure` as its name; so give it no formatter, or one that only adds
    to `%(message)s`. What one handler raises is its own affair (`handleError`) and
    keeps nothing from the others, as with QueueListener. A sink that raises gets the
    batch again.

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
        self._hurry = threading.Event()
        self._stopping = False
        self._deadline = float("inf")
        self._thread: threading.Thread | None = None
        self._reported_at = float("-inf")
        self._failing = False
        #: What ended the delivery before its time, or None.
        self.error: Exception | None = None

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
        lanes = self._buffer.stats().lanes
        goals = {priority: _settled(lane) + lane.resident for priority, lane in lanes.items()}
        deadline = time.monotonic() + seconds
        while True:
            self._hurry.set()
            lanes = self._buffer.stats().lanes
            if all(_settled(lanes[priority]) >= goal for priority, goal in goals.items()):
                return True
            if time.monotonic() >= deadline or self._thread is None or not self._thread.is_alive():
                return False
            time.sleep(0.001)

    def stop(self, timeout: float | None = 5.0) -> bool:
        """Deliver what is left, for that many seconds at most (None: as long as it
        takes), and end.

        False: something is left, or is still being sent.
        """
        seconds = timeout_seconds(timeout)
        self._deadline = time.monotonic() + seconds
        self._stopping = True
        self._hurry.set()
        self._buffer.wake_waiters()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(min(seconds, threading.TIMEOUT_MAX))
            if self._thread.is_alive():
                return False
        if not isinstance(self._target, Sequence):
            try:
                self._target.close()
            except OSError as error:
                self.error = self.error or error
        return self._buffer.resident == 0

    def _run(self) -> None:
        try:
            while not (
                self._stopping and (not self._buffer.resident or time.monotonic() >= self._deadline)
            ):
                batch = self._buffer.get_batch()
                if batch is None:
                    self._sleep()
                    continue
                self._deliver(batch)
                if self._linger and not self._stopping:
                    self._hurry.wait(self._linger)
                    self._hurry.clear()
        except BufferClosed:
            pass
        except Exception as error:
            _log.error("logging ends: %s", "".join(traceback.format_exception_only(error)).strip())
            self.error = error

    def _sleep(self) -> None:
        """Until there may be a batch, or it is time to stop."""
        longest = _LOOK if self._stopping else _IDLE
        stopping = self._stopping
        waiter = self._buffer.batch_waiter().unless(lambda: self._stopping is not stopping)
        waiter.wait(longest)

    def _deliver(self, batch: Batch) -> None:
        target = self._target
        if isinstance(target, Sequence):
            _to_handlers(batch, target)
            batch.ack()
            return
        try:
            target.send(batch)
        except Exception as error:
            batch.nack(error)
            if isinstance(error, SinkGone):
                raise
            self._report(error)
        else:
            batch.ack()
            self._failing = False

    def _report(self, error: Exception) -> None:
        """Say that the sink fails: seldom, since the report itself may come by here."""
        now = time.monotonic()
        if not self._failing and now - self._reported_at >= _REPORT_SECONDS:
            self._reported_at = now
            _log.warning("log lines wait, their sink fails: %s", error)
        self._failing = True


def _to_handlers(batch: Batch, handlers: Sequence[logging.Handler]) -> None:
    level = LEVELS[Priority(batch.priority)]
    for event in batch:
        record = logging.LogRecord(
            "backpressure", level, "", 0, event.decode("utf-8", "replace"), None, None
        )
        for handler in handlers:
            if level >= handler.level:
                # A handler's formatter may write into the record.
                handler.handle(copy.copy(record))


def _settled(lane: Any) -> int:
    return int(lane.acked + lane.dead_lettered + sum(lane.dropped.values()))


def open_target(
    sink: Sink | str | logging.Handler | Sequence[logging.Handler] | None,
) -> Target | None:
    """The target that `sink` names: see `BufferHandler`."""
    if sink is None:
        return None
    if isinstance(sink, str):
        return open_sink(sink, append=True)
    if isinstance(sink, logging.Handler):
        return (sink,)
    if isinstance(sink, (list, tuple)):
        for one in sink:
            if not isinstance(one, logging.Handler):
                raise TypeError(f"sink: a sequence must hold logging handlers, not {one!r}")
        return tuple(sink)
    if not isinstance(sink, Sink) or isinstance(sink, type):
        raise TypeError(f"sink must be a Sink, a path, or logging handlers, not {sink!r}")
    return sink
