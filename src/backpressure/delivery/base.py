"""DeliveryBase: what threads and coroutines that deliver have in common.

It judges what comes out of the sink, settles the batch, tells how the sink does, and
knows what has to be delivered before an end.
"""

from __future__ import annotations

import inspect
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from backpressure.base.errors import BatchStateError, BufferClosed
from backpressure.base.log_limiter import LogLimiter
from backpressure.base.validation import as_int
from backpressure.base.wording import reason
from backpressure.buffer.batch import Batch
from backpressure.delivery.in_flight import InFlightLimit
from backpressure.delivery.outcomes import Meaning, Outcome, outcome_of
from backpressure.delivery.stats import DeliveryStats

if TYPE_CHECKING:
    from backpressure.buffer.outlet import Outlet
    from backpressure.buffer_manager import BufferManager

__all__ = ["ERROR_PAUSE", "IDLE", "LOOK", "DeliveryBase"]

_log = logging.getLogger("backpressure")

#: How long a worker sleeps where there is nothing (seconds); an event wakes it.
IDLE: Final = 1.0
#: How often one that is stopping looks whether all is delivered (seconds).
LOOK: Final = 0.01
#: How long one pauses after an error of the buffer's own (seconds).
ERROR_PAUSE: Final = 0.2
_TAKEN: Final = Outcome(Meaning.TAKEN)
# Of the lines that say that the sink fails, and that it works again, each comes once in
# so many seconds; what happens in between is in the events and in the stats.
_LOG_SECONDS: Final = 60.0
# After an outcome that says nothing, before the next batch: what the sink raises there
# (SystemExit, …) may come back at once, for ever.
_SHORTEST_PAUSE: Final = 0.01
_LONGEST_PAUSE: Final = 1.0
_MOST_WORKERS: Final = 1024


class DeliveryBase:
    """One delivery from a buffer to a sink; what does not depend on who waits how."""

    def __init__(
        self,
        buffer: BufferManager,
        outlet: Outlet,
        sink: Any,
        *,
        workers: int,
        max_events: int | None,
        classify: Callable[[BaseException], object] | None,
        close_sink: bool,
        what: str,
    ) -> None:
        """what: the parameter's name for `workers`, for errors."""
        self._buffer = buffer
        self._outlet = outlet
        self._sink = sink
        self._send = _send_of(sink)
        self._few_lines = LogLimiter()
        self.name: Final = _name_of(sink)
        number = as_int(workers)
        if number is None or not 1 <= number <= _MOST_WORKERS:
            raise ValueError(f"{what} must be an int from 1 to {_MOST_WORKERS}, not {workers!r}")
        if max_events is not None and (as_int(max_events) or 0) < 1:
            raise ValueError(f"max_events must be an int from 1 on, or None, not {max_events!r}")
        if classify is not None and not callable(classify):
            raise TypeError(f"classify must be a function of an exception, not {classify!r}")
        most = _max_concurrency(sink)
        if number > most:
            _log.info(
                "%s=%d: the sink %s takes %d at a time, by its max_concurrency%s",
                what,
                number,
                self.name,
                most,
                "" if hasattr(sink, "max_concurrency") else ", which it does not have (1)",
            )
        self._workers = min(number, most)
        self._max_events = max_events
        self._classify = classify
        self._closes_sink = close_sink
        outlet.sink.keeps_order = getattr(sink, "rejects_events", True) is False
        self._limit = InFlightLimit(self._workers)
        self._forked = False
        self._ended = False
        #: What ended the delivery before its time, or None.
        self.error: BaseException | None = None
        # What has to be settled before a stop has drained: see `Outlet.has_settled`.
        self._ends: Sequence[int] | None = None
        self._stopping = False
        self._deadline = float("inf")
        # Of what follows, and of an implementation's own; never held across other code.
        self._lock = threading.RLock()
        self._in_flight = self._batches_taken = self._events_taken = self._failures = 0
        self._ignored_in_a_row = 0
        self._failing_since: float | None = None
        self._last_error: str | None = None
        self._failure_logged_at = float("-inf")
        self._spell_logged = False

    # ------------------------------------------------------------ seen from outside

    @property
    def running(self) -> bool:
        """Whether it delivers, or will as soon as there is something."""
        return not self._ended and not self._forked

    @property
    def gave_up(self) -> bool:
        """Whether an error has ended it: nothing is to be waited for."""
        return self._ended and self.error is not None

    def stats(self) -> DeliveryStats:
        """A frozen snapshot."""
        since = self._failing_since
        return DeliveryStats(
            sink=self.name,
            running=self.running,
            workers=self._workers,
            limit=self._limit.limit,
            in_flight=self._in_flight,
            batches_taken=self._batches_taken,
            events_taken=self._events_taken,
            failures=self._failures,
            failing_for=0.0 if since is None else max(0.0, time.monotonic() - since),
            last_error=self._last_error,
            error=None if self.error is None else reason(self.error),
        )

    def leave_to_parent(self) -> None:
        """In a forked child: threads, sink and events are the parent's."""
        self._forked = True

    def __repr__(self) -> str:
        state = "running" if self.running else "ended"
        return f"<{type(self).__name__} to {self.name}, {state}>"

    # ------------------------------------------------------------ one batch

    def _judge(self, error: BaseException | None) -> Outcome:
        """What the end of a call to the sink means."""
        if error is None:
            return _TAKEN
        ignores = self._outlet.settlement.ignores
        if self._classify is not None:
            try:
                said = self._classify(error)
                if isinstance(said, type) and issubclass(said, BaseException):
                    said = said()
                if isinstance(said, BaseException):
                    if said is not error and said.__cause__ is None:
                        said.__cause__ = error
                    return outcome_of(said, ignores)
                if said is not None:
                    raise TypeError(f"classify must return an exception or None, not {said!r}")
            except Exception:
                if failed := self._few_lines.add("classify", 1, time.monotonic()):
                    _log.exception(
                        "classify failed (%d times since the last line); the errors are judged "
                        "without it",
                        failed,
                    )
        return outcome_of(error, ignores)

    def _returned(self, batch: Batch, outcome: Outcome, started: float) -> None:
        """Tell the law that the sink is done with the batch, begun at that time."""
        now = time.monotonic()
        batch.trial = self._limit.trying
        self._limit.finished(
            now,
            len(batch),
            now - started,
            not outcome.fails,
            outcome.meaning is Meaning.UNAVAILABLE,
        )

    def _conclude(self, batch: Batch, outcome: Outcome) -> None:
        """Settle the batch, unless the sink has, and note how the sink does."""
        events, meaning = len(batch), outcome.meaning
        settled = batch.settled
        if not settled:
            try:
                self._outlet.settlement.conclude(batch, outcome)
            except (BatchStateError, BufferClosed):
                pass  # settled or given up in between
        with self._lock:
            if meaning is Meaning.TAKEN and not settled:
                self._batches_taken += 1
                self._events_taken += events
            elif meaning not in (Meaning.IGNORED, Meaning.TAKEN):
                self._failures += 1
                self._last_error = _in_words(outcome.error)
        if outcome.fails:
            self._note_failure()
        elif meaning not in (Meaning.IGNORED, Meaning.GONE):
            self._note_answer()

    def _pause_after(self, outcome: Outcome) -> float:
        """Seconds to wait before the next batch."""
        if outcome.meaning is not Meaning.IGNORED:
            self._ignored_in_a_row = 0
            return 0.0
        self._ignored_in_a_row += 1
        return float(min(_LONGEST_PAUSE, _SHORTEST_PAUSE * 2.0 ** min(self._ignored_in_a_row, 10)))

    def _note_failure(self) -> None:
        now = time.monotonic()
        with self._lock:
            if self._failing_since is not None:
                return
            self._failing_since = now
            says = self._spell_logged = now - self._failure_logged_at >= _LOG_SECONDS
            if says:
                self._failure_logged_at = now
        self._outlet.reporter.sink_failing(self.name, self._last_error or "")
        if says:
            self._say(
                logging.WARNING,
                "the sink %s fails, events are kept: %s",
                self.name,
                self._last_error,
            )

    def _note_answer(self) -> None:
        with self._lock:
            since, self._failing_since = self._failing_since, None
            said = self._spell_logged
        if since is None:
            return
        seconds = time.monotonic() - since
        self._outlet.reporter.sink_recovered(self.name, seconds)
        if said:
            self._say(logging.WARNING, "the sink %s works again, after %.1f s", self.name, seconds)

    def _say(self, level: int, text: str, *arguments: object) -> None:
        """Log, whatever handlers and filters do that are in the way."""
        try:
            _log.log(level, text, *arguments)
        except BaseException:
            pass  # there is nowhere left to say it, and events are to be delivered

    # ------------------------------------------------------------ the end

    def _begin_stop(self, drain: bool, deadline: float) -> None:
        """From now on: deliver what is there, or nothing more."""
        self._ends = self._outlet.ends() if drain else None
        self._deadline = deadline
        self._stopping = True

    def _drained(self) -> bool:
        """Whether all that was there when the stop began has been settled."""
        return self._ends is None or self._outlet.has_settled(self._ends)

    def _is_over(self) -> bool:
        """Whether a stop ends the delivery now."""
        if not self._stopping:
            return False
        return time.monotonic() >= self._deadline or self._drained()

    def _say_stopped(self, seconds: float) -> None:
        """A stop that was to drain has not, in that time."""
        self._say(
            logging.WARNING,
            "delivery to %s stopped after %.1f s: %d events stay in the buffer%s",
            self.name,
            seconds,
            self._buffer.resident,
            ", and a call of the sink goes on" if self._in_flight else "",
        )

    def _say_end(self) -> None:
        if self.error is not None:
            self._say(
                logging.ERROR,
                "delivery to %s ends, %d events stay in the buffer: %s",
                self.name,
                self._buffer.resident,
                _in_words(self.error),
            )
        self._outlet.reporter.delivery_ended(
            self.name, None if self.error is None else _in_words(self.error)
        )


def _in_words(error: object) -> str:
    if isinstance(error, BaseException):
        text = reason(error)
        name = type(error).__name__
        return text if isinstance(error, OSError) or text == name else f"{name}: {text}"
    return "no error was named" if error is None else str(error)


def _send_of(sink: Any) -> Callable[[Batch], Any]:
    if inspect.isclass(sink):
        raise TypeError(f"{sink.__name__} is a class: give a sink made of it, with send(batch)")
    send = getattr(sink, "send", None)
    if callable(send):
        return send  # type: ignore[no-any-return]
    if callable(sink):
        return sink  # type: ignore[no-any-return]
    raise TypeError(
        f"a sink has a method send(batch), or is a function that takes a batch: {sink!r} is neither"
    )


def _name_of(sink: Any) -> str:
    name = getattr(sink, "name", None)
    if isinstance(name, str) and name:
        return name
    name = getattr(sink, "__qualname__", None)
    return name if isinstance(name, str) else type(sink).__name__


def _max_concurrency(sink: Any) -> int:
    given = getattr(sink, "max_concurrency", 1)
    most = as_int(given)
    if most is None or most < 1:
        raise ValueError(f"max_concurrency of a sink must be an int from 1 on, not {given!r}")
    return most
