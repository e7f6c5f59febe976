"""Logging through a buffer: BufferHandler takes the place of QueueHandler, BufferListener that of QueueListener.

    handler = BufferHandler(sink="app.log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.getLogger().addHandler(handler)

What a QueueHandler does not promise: memory is bounded; a call never waits longer than `timeout`, which is 0; what was refused is
counted by reason (`BufferHandler.refused`, and in `buffer.stats()`); a sink that fails gets its lines later, in order. A record
that was accepted is in the buffer when the logging call returns.

Records are formatted in the thread that logs, as with QueueHandler: arguments may change later. Each level is a priority, so
what is urgent is delivered first and survives a full buffer: lines keep their order within a level, and not between levels;
`priority=3` puts all into one line.

Forks. A child has a buffer of its own, in memory: what its parent had accepted stays the parent's, as does its directory. It is
made, and its listener started, when the child first logs. Interpreter shutdown: `logging.shutdown` closes the handler,
which delivers what is left for up to `drain_timeout` seconds.

Thread safety: any number of threads. No lock is held while a record is formatted or added.
"""

from __future__ import annotations

import copy
import logging
import os
import sys
import threading
import time
import traceback
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, TypeAlias

from backpressure.base.errors import BackpressureError, BufferClosed
from backpressure.base.priority import Priority, check_priority
from backpressure.buffer.batch import Batch
from backpressure.buffer.config import BufferConfig, Durability, WhenFull
from backpressure.buffer.from_mapping import build
from backpressure.buffer.single_events import SingleEvents
from backpressure.buffer_manager import BufferManager
from backpressure.sinks import Sink, SinkGone, open_sink

__all__ = ["BufferHandler", "BufferListener", "priority_of"]

#: Where batches go: a sink, or logging handlers that get a record for each line.
Target: TypeAlias = Sink | Sequence[logging.Handler]

_log = logging.getLogger("backpressure")

# How long the listener collects between two batches (seconds): a line is in its file before anybody looks, and thirty wake-ups a
# second cost nothing beside one for each line.
_LINGER: Final = 0.03
# How long it sleeps where there is nothing (seconds); a record wakes it.
_IDLE: Final = 1.0
# How often a listener that is stopping looks whether a failed batch is due again (seconds).
_LOOK: Final = 0.01
# A failing sink is reported once, and again when it has worked and failed anew; the first of these seconds apart at least.
_REPORT_SECONDS: Final = 60.0

# Programs replace it, to write times their own way.
_FORMAT_TIME: Final = logging.Formatter.formatTime

_LEVELS: Final = {
    Priority.CRITICAL: logging.CRITICAL,
    Priority.HIGH: logging.ERROR,
    Priority.NORMAL: logging.WARNING,
    Priority.LOW: logging.INFO,
    Priority.BACKGROUND: logging.DEBUG,
}


def priority_of(levelno: int) -> int:
    """The priority of a level: CRITICAL 1, ERROR 2, WARNING 3, INFO 4, all below 5; a level between takes the lower one's."""
    for priority, least in _LEVELS.items():
        if levelno >= least:
            return int(priority)
    return int(Priority.BACKGROUND)


class BufferHandler(logging.Handler):
    """Formats records and puts them into a buffer.

    buffer: a BufferManager, which the caller owns and closes; or a BufferConfig, or its fields as a dict (the way of dictConfig),
        or None for the defaults: then the handler has one of its own, and closes it with itself.
    sink: where the handler's own BufferListener delivers: a Sink, a path ("app.log", which is added to; "-" is stdout), or
        logging handlers. None: somebody else consumes the buffer.
    priority: one for all levels, or by level (a name or a number; levels between take the lower one's), or None
        for `priority_of`.
    timeout: seconds that a call may wait for room; 0 never waits. drain_timeout: seconds that `close` may take to deliver.

    A record that is refused is counted in `refused`. One that can not be formatted, or is larger than its lane, goes to
    `handleError`, as with every handler.
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
        if (
            isinstance(timeout, bool)
            or not isinstance(timeout, (int, float))
            or not 0 <= timeout < float("inf")
        ):
            raise ValueError(f"timeout must be a number of seconds from 0 on, not {timeout!r}")
        by_level = _Priorities(priority)
        own = not isinstance(buffer, BufferManager)
        if not isinstance(buffer, (BufferManager, BufferConfig)):
            buffer = build(BufferConfig, buffer or {}, "buffer")
        target = _target(sink)
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
        self._events: SingleEvents | _AfterFork = SingleEvents(buffer, self._timeout)
        self._pid = os.getpid()
        #: The handler's own listener, or None.
        self.listener: BufferListener | None = None
        if self._target is not None:
            self.listener = BufferListener(buffer, self._target)
            self.listener.start()

    @property
    def refused(self) -> dict[str, int]:
        """Records that were not accepted, by reason: those of Admission, and "error" for what went to `handleError`."""
        with self._counting:
            return dict(self._refused)

    def setFormatter(self, fmt: logging.Formatter | None) -> None:  # noqa: N802 (logging's name)
        """As `Handler.setFormatter`."""
        super().setFormatter(fmt)
        # An exact Formatter writes the same text for every time within a second but for the milliseconds.
        plain = (
            type(fmt) is logging.Formatter
            and logging.Formatter.formatTime is _FORMAT_TIME
            and "formatTime" not in vars(fmt)
        )
        self._quick = _QuickFormat(fmt) if plain and fmt is not None and fmt.usesTime() else None

    _quick: _QuickFormat | None = None

    def format(self, record: logging.LogRecord) -> str:
        """As `Handler.format`, to the letter."""
        if self._quick is not None:
            return self._quick.format(record)
        return super().format(record)

    def handle(self, record: logging.LogRecord) -> bool:
        """As `Handler.handle`, without its lock: nothing here needs one, and a fork could leave it held."""
        if self.filters or type(self).filter is not logging.Handler.filter:
            passed: Any = self.filter(
                record
            )  # a bool, or from Python 3.12 on also a record that takes this one's place
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
                # Half of a surrogate pair has no UTF-8. A line that shows it escaped is better than none.
                escaped = text.encode("utf-8", "backslashreplace")
                reason = self._events.add(escaped, priority)
        except (
            RecursionError
        ):  # as logging's own handlers do: there is no stack left to report it with
            raise
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
        """Wait until the handler's own listener has delivered what was logged before this call, for `drain_timeout` at most."""
        if self.listener is not None and not self._closed:
            self.listener.flush(self._drain_timeout)

    def close(self) -> None:
        """Deliver what is left, for `drain_timeout` at most, and end. What is logged from now on counts as refused."""
        if not self._closed and self._pid == os.getpid():
            self._closed = True
            self._events.close()
            deadline = time.monotonic() + self._drain_timeout
            if self.listener is not None:
                self.listener.stop(self._drain_timeout)
            if self._owns:
                # A listener has had its time. Without one, somebody else consumes, and may need some.
                self.buffer.close(
                    timeout=0.0
                    if self.listener is not None
                    else max(0.0, deadline - time.monotonic())
                )
        super().close()

    # ------------------------------------------------------------ forks

    def _forked(self) -> None:
        """In the child, before anything else runs: no lock of the parent's buffer can be trusted, and no thread of it is here."""
        self._counting = threading.Lock()
        self._refused = Counter()
        self.listener = None
        self._events = _AfterFork(self)

    def _start_in_child(self) -> None:
        config = self.buffer.config
        if config.directory is not None:
            # It is the parent's: one process for one directory.
            config = replace(
                config,
                directory=None,
                durability=Durability.PROCESS,
                max_disk_bytes=None,
                max_attempts=None,
                # What it would drop of other priorities makes no room in memory.
                when_full=WhenFull.DROP_OLDEST
                if config.when_full is WhenFull.DROP_LOWEST_PRIORITY
                else config.when_full,
            )
        # Kept, so that no finaliser of what belongs to the parent runs here.
        self._parents = self.buffer
        self._start(BufferManager(config))
        # A child of multiprocessing ends without atexit, and so without logging.shutdown.
        if (util := sys.modules.get("multiprocessing.util")) is not None:
            util.Finalize(None, self.flush, exitpriority=0)


class _AfterFork:
    """Stands in for SingleEvents from a fork to the child's first record."""

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
        handler._forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


class BufferListener:
    """Delivers a buffer's batches in a thread of its own: to a sink, or to logging handlers.

    A handler gets one record for each event: its text as `msg`, its level from its priority, `backpressure` as its name;
    so give it no formatter, or one that only adds to `%(message)s`. What one handler raises is its own affair
    (`handleError`) and keeps nothing from the others, as with QueueListener. A sink that raises gets the batch again.

    The thread is a daemon, so that a sink that hangs does not keep the process alive; `BufferHandler.close` stops it in time.
    """

    def __init__(self, buffer: BufferManager, target: Target, *, linger: float = _LINGER) -> None:
        """`linger`: seconds between two batches, in which records collect; 0 delivers each as soon as it can."""
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

    def flush(self, timeout: float = 5.0) -> bool:
        """Wait until all that is in the buffer now has been delivered; False: it was not, in that time."""
        lanes = self._buffer.stats().lanes
        goals = {priority: _settled(lane) + lane.resident for priority, lane in lanes.items()}
        deadline = time.monotonic() + timeout
        while True:
            self._hurry.set()
            lanes = self._buffer.stats().lanes
            if all(_settled(lanes[priority]) >= goal for priority, goal in goals.items()):
                return True
            if time.monotonic() >= deadline or self._thread is None or not self._thread.is_alive():
                return False
            time.sleep(0.001)

    def stop(self, timeout: float = 5.0) -> bool:
        """Deliver what is left, for so many seconds at most, and end; False: something is left, or is still being sent."""
        self._deadline = time.monotonic() + timeout
        self._stopping = True
        self._hurry.set()
        self._buffer._ready.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)
            if self._thread.is_alive():
                return False
        if not isinstance(self._target, Sequence):
            try:
                self._target.close()
            except OSError as error:
                self.error = self.error or error
        return self._buffer._resident() == 0

    def _run(self) -> None:
        try:
            while not (
                self._stopping
                and (not self._buffer._resident() or time.monotonic() >= self._deadline)
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
        buffer = self._buffer
        longest = _LOOK if self._stopping else _IDLE
        stopping = self._stopping
        buffer._ready.wait(
            lambda: self._stopping is not stopping or buffer._deliverable(),
            min(longest, buffer._pause()),
        )

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
    level = _LEVELS[Priority(batch.priority)]
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


def _target(sink: Sink | str | logging.Handler | Sequence[logging.Handler] | None) -> Target | None:
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


class _Priorities(dict[int, int]):
    """Priority by level number; a level that comes for the first time is looked up once."""

    def __init__(self, given: int | Mapping[int | str, int] | None) -> None:
        super().__init__()
        self._steps: list[tuple[int, int]] | None = None
        if isinstance(given, Mapping):
            numbers = {
                _level_number(level): check_priority(priority) for level, priority in given.items()
            }
            if not numbers:
                raise ValueError("priority: an empty mapping names no priority; leave it out")
            self._steps = sorted(numbers.items(), reverse=True)
        elif given is not None:
            self._steps = [(logging.NOTSET, check_priority(given))]

    def __missing__(self, levelno: int) -> int:
        if self._steps is None:
            priority = priority_of(levelno)
        else:
            # Below the lowest that is named there is only the lowest.
            priority = next(
                (one for least, one in self._steps if levelno >= least), self._steps[-1][1]
            )
        self[levelno] = priority
        return priority


def _level_number(level: int | str) -> int:
    if isinstance(level, int):
        return level
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ValueError(f"priority: there is no level {level!r}")
    return number


class _QuickFormat:
    """What `logging.Formatter.format` does, with the text of the second kept: it is half of the whole work otherwise."""

    def __init__(self, formatter: logging.Formatter) -> None:
        self._formatter = formatter
        # Second, the formatter's converter and pattern, and the text; replaced whole, so any thread may read it.
        self._kept: tuple[float | None, object, str, str] = (None, None, "", "")

    def format(self, record: logging.LogRecord) -> str:
        formatter = self._formatter
        if record.exc_info or record.exc_text or record.stack_info:
            return formatter.format(record)
        record.message = record.getMessage()
        converter, datefmt = formatter.converter, formatter.datefmt
        pattern = datefmt or formatter.default_time_format
        second = record.created // 1.0
        kept_second, kept_converter, kept_pattern, text = self._kept
        if second != kept_second or converter is not kept_converter or pattern != kept_pattern:
            text = time.strftime(pattern, converter(record.created))
            # Of these two it is known that they look at whole seconds only. One's own may round what it has added to.
            if converter is time.localtime or converter is time.gmtime:
                self._kept = (second, converter, pattern, text)
        if not datefmt and formatter.default_msec_format:
            text = formatter.default_msec_format % (text, record.msecs)
        record.asctime = text
        return formatter.formatMessage(record)
