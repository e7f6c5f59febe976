"""BufferListener: delivers what was logged, to a sink or to logging handlers."""

from __future__ import annotations

import copy
import logging
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from backpressure.base.priority import Priority
from backpressure.base.sending import sending
from backpressure.base.validation import timeout_seconds
from backpressure.buffer.batch import Batch
from backpressure.buffer_manager import BufferManager
from backpressure.delivery.delivery import Delivery
from backpressure.logging.levels import LEVELS
from backpressure.logging.reentry import here, within_buffer
from backpressure.logging.targets import Target
from backpressure.sinks import Sink

__all__ = ["BufferListener"]

_log = logging.getLogger("backpressure")

# How long the listener collects between two batches (seconds): a line is in its file
# before a reader looks, and thirty wake-ups a second cost nothing beside one for each
# line.
_LINGER: Final = 0.03
# A failing handler is reported once in so many seconds.
_REPORT_SECONDS: Final = 60.0


class BufferListener:
    """Delivers a buffer's batches in a thread of its own: to a sink, or to logging
    handlers. It is a `Delivery`, so a buffer has one at a time.

    A handler gets one record for each event: its text as `msg`, its level from its
    priority, `backpressure` as its name; so give it no formatter, or one that only adds
    to `%(message)s`. A priority that several levels share gives the most urgent of
    them, so that no handler's level hides it. What a handler or its filters raise is
    its own affair: it is reported by its `handleError`, once in a minute, counted in
    `handler_errors`, and keeps nothing from the others and from later records. A sink
    that raises gets the batch again. Only SinkGone, and the buffer's end, end the
    delivery.

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
        self._sink: _Sink | _Handlers = (
            _Handlers(target) if isinstance(target, Sequence) else _Sink(target)
        )
        self._linger = linger
        self._delivery: Delivery | None = None

    def start(self) -> None:
        """Begin; RuntimeError where it has begun already, or the buffer has another
        delivery.
        """
        if self._delivery is not None:
            raise RuntimeError("the listener has been started already")
        self._delivery = Delivery.begin(
            self._buffer,
            self._sink,
            linger=self._linger,
            # `logging.shutdown`, which comes first, closes the handler and its buffer.
            ends_buffer=False,
        )

    @property
    def error(self) -> BaseException | None:
        """What ended the delivery before its time, or None."""
        return None if self._delivery is None else self._delivery.error

    @property
    def handler_errors(self) -> int:
        """How many records a target handler raised for: it did not get them."""
        return self._sink.errors

    def flush(self, timeout: float | None = 5.0) -> bool:
        """Wait until all that is in the buffer now has been delivered, for that many
        seconds at most (None: as long as it takes); False: it was not, in that time.
        """
        seconds = timeout_seconds(timeout)
        if here.thread.within:
            return False  # the call that was interrupted would be waited for
        if self._delivery is None:
            return self._resident() == 0
        return self._delivery.flush(seconds)

    def stop(self, timeout: float | None = 5.0) -> bool:
        """Deliver what is left, for that many seconds at most (None: as long as it
        takes), close the sink, and end.

        False: something is left, or is still being sent.
        """
        seconds = timeout_seconds(timeout)
        if self._delivery is None:
            self._sink.close()
            return self._resident() == 0
        ended = self._delivery.stop(seconds)
        return (ended or not self._delivery.running) and self._resident() == 0

    def _resident(self) -> int:
        with within_buffer():
            return self._buffer.resident


class _Sink:
    """A sink as a logging thread calls it."""

    errors = 0

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.name = getattr(sink, "name", type(sink).__name__)
        self.rejects_events: bool = getattr(sink, "rejects_events", True)

    def send(self, batch: Batch) -> object:
        try:
            return self._sink.send(batch)
        except Exception:
            raise
        except BaseException as error:
            # Elsewhere the end of the program or of a task, after which a batch comes
            # again at once; in this thread it is the sink's failure.
            raise RuntimeError(f"the sink raised {_in_words(error)}") from error

    def close(self) -> None:
        self._sink.close()


class _Handlers:
    """Logging handlers as a sink, which never fails."""

    def __init__(self, handlers: Sequence[logging.Handler]) -> None:
        self._handlers = handlers
        self.name = ", ".join(handler.name or type(handler).__name__ for handler in handlers)
        self._reported: dict[int, float] = {}
        #: How many records one of them raised for.
        self.errors = 0

    def send(self, batch: Batch) -> None:
        level = LEVELS[Priority(batch.priority)]
        for event in batch:
            record = logging.LogRecord(
                "backpressure", level, "", 0, event.decode("utf-8", "replace"), None, None
            )
            for handler in self._handlers:
                if level >= handler.level:
                    try:
                        with _passed_on(handler):
                            # A handler's formatter may write into the record.
                            handler.handle(copy.copy(record))
                    except BaseException:
                        self._failed(handler, record)

    def close(self) -> None:
        """They are the application's."""

    def _failed(self, handler: logging.Handler, record: logging.LogRecord) -> None:
        """Report what is being raised as that handler's, once in a minute."""
        self.errors += 1
        now = time.monotonic()
        if now - self._reported.get(id(handler), float("-inf")) < _REPORT_SECONDS:
            return
        self._reported[id(handler)] = now
        try:
            handler.handleError(record)
        except BaseException as error:
            try:
                _log.error("%r cannot report its error: %s", handler, _in_words(error))
            except BaseException:
                pass  # there is nowhere left to say it


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


def _in_words(error: BaseException) -> str:
    if isinstance(error, OSError) and str(error):
        return str(error)
    return "".join(traceback.format_exception_only(error)).strip()
