"""EventReporter: what happens in a buffer, said as events to handlers and as lines in
the log.

It decides nothing: what changes something tells it, and it knows how to say that,
how often a line is worth writing, and what has to be added up over time (trips, time
under pressure).

Thread safety: any thread may call any method. No lock is held while handlers run: see
event_dispatcher.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from backpressure.base.errors import NotNow
from backpressure.base.events import (
    BackpressureActivated,
    BackpressureDeactivated,
    BatchDeadLettered,
    BatchRedelivered,
    BatchSizeChanged,
    BufferClosing,
    CircuitStateChanged,
    DeliveryEnded,
    DiskStateChanged,
    EmergencyEntered,
    EmergencyLeft,
    EventsDropped,
    EventType,
    RateChanged,
    SinkFailing,
    SinkRecovered,
    Tuned,
)
from backpressure.base.log_limiter import LogLimiter
from backpressure.buffer.event_dispatcher import EventDispatcher
from backpressure.lanes.handout import Handout
from backpressure.policies.backpressure_monitor import Pressure
from backpressure.policies.circuit_breaker import State

__all__ = ["EventReporter"]

_log = logging.getLogger("backpressure")
# What was changed by hand, and from where: one line each, never limited.
_audit = logging.getLogger("backpressure.audit")


class EventReporter:
    """One buffer's. now: its clock, for the time that events carry."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.notifications = EventDispatcher()
        self._few_lines = LogLimiter()
        #: Times that the breaker opened.
        self.trips = 0
        self._pressed_since: float | None = None
        self._pressed_for = 0.0
        self._pressed_seen = 0.0  # what pressed_seconds() said last

    # ------------------------------------------------------------ the policies

    def pressure_changed(self, pressure: Pressure) -> None:
        now = self._now()
        if pressure.active:
            self._pressed_since = now
            self.notifications.emit(
                BackpressureActivated(
                    at=now,
                    signal=pressure.signal or "",
                    value=pressure.value,
                    threshold=pressure.threshold,
                )
            )
            return
        since, self._pressed_since = self._pressed_since, None
        active_for = 0.0 if since is None else max(0.0, now - since)
        self._pressed_for += active_for
        cause = pressure.cause or ""
        value = pressure.value if pressure.signal == cause else 0.0
        self.notifications.emit(
            BackpressureDeactivated(at=now, signal=cause, active_for=active_for, value=value)
        )

    def pressed_seconds(self, now: float) -> float:
        """Time under backpressure so far."""
        since = self._pressed_since
        # Read while another thread ends the pressure, the two parts may not fit: but a
        # counter never goes back.
        pressed = self._pressed_for + (0.0 if since is None else max(0.0, now - since))
        self._pressed_seen = pressed = max(pressed, self._pressed_seen)
        return pressed

    def circuit_changed(self, old: State, new: State, reason: str) -> None:
        if new is State.OPEN:
            self.trips += 1
            if opened := self._few_lines.add("opened", 1, self._now()):
                times = f" ({opened} times since the last such line)" if opened > 1 else ""
                _log.warning("the circuit opened: %s%s", reason, times)
        self.notifications.emit(
            CircuitStateChanged(at=self._now(), old=old.name, new=new.name, reason=reason)
        )

    def batch_size_changed(self, old: int, new: int, reason: str) -> None:
        self.notifications.emit(BatchSizeChanged(at=self._now(), old=old, new=new, reason=reason))

    def flow_changed(self, change: str, old: float, new: float) -> None:
        now = self._now()
        if change == "emergency_entered":
            self.notifications.emit(EmergencyEntered(at=now, failure_rate=new))
        elif change == "emergency_left":
            self.notifications.emit(EmergencyLeft(at=now, active_for=new))
        else:
            self.notifications.emit(RateChanged(at=now, old=old, new=new))

    def tuned(self, setting: str, old: float | str, new: float | str, by: str) -> Tuned:
        """A setting was changed by hand."""
        _audit.info("%s: %s -> %s, by %s", setting, old, new, by)
        return self.notifications.emit(
            Tuned(at=self._now(), setting=setting, old=old, new=new, by=by)
        )

    # ------------------------------------------------------------ batches and events

    def redelivered(self, handout: Handout) -> None:
        if self.notifications.wants(EventType.BATCH_REDELIVERED):
            self.notifications.emit(
                BatchRedelivered(
                    at=self._now(),
                    priority=handout.lane.priority,
                    first_seq=handout.messages.first_seq,
                    events=len(handout.messages),
                    attempt=handout.attempt,
                    error=handout.error,
                )
            )

    def dead_lettered(self, handout: Handout, indices: Sequence[int]) -> None:
        """Those events of a batch, by index, are dead letters now."""
        now, priority = self._now(), handout.lane.priority
        events = self._few_lines.add(("dead", priority), len(indices), now)
        if events:
            _log.warning(
                "priority %d: %d events are dead letters, the last one for: %s",
                priority,
                events,
                handout.error,
            )
        if not self.notifications.wants(EventType.BATCH_DEAD_LETTERED):
            return
        seqs = handout.seqs()
        stop = 0
        while stop < len(indices):
            start = stop
            first_seq = int(seqs[indices[start]])
            stop += 1
            while stop < len(indices) and int(seqs[indices[stop]]) == first_seq + stop - start:
                stop += 1
            self.notifications.emit(
                BatchDeadLettered(
                    at=now,
                    priority=priority,
                    first_seq=first_seq,
                    events=stop - start,
                    attempts=handout.attempt,
                    error=handout.error,
                )
            )

    def letters_lost(self, letters: int) -> None:
        """Dead letters were forgotten: there were more than the config allows."""
        if lost := self._few_lines.add("letters", letters, self._now()):
            _log.warning(
                "%d dead letters were forgotten, the oldest: there is room for no more "
                "(max_dead_letters, max_dead_letter_bytes)",
                lost,
            )

    def dropped(self, priority: int, events: int, reason: str) -> None:
        if reason == "oldest":
            self._log_dropped(priority, self._few_lines.add(priority, events, self._now()))
        if self.notifications.wants(EventType.EVENTS_DROPPED):
            self.notifications.emit(
                EventsDropped(at=self._now(), priority=priority, events=events, reason=reason)
            )

    def _log_dropped(self, priority: int, events: int) -> None:
        if events:
            _log.warning("lane %d is full: its %d oldest events were dropped", priority, events)

    # ------------------------------------------------------------ deliveries

    def sink_failing(self, sink: str, error: str) -> None:
        self.notifications.emit(SinkFailing(at=self._now(), sink=sink, error=error))

    def sink_recovered(self, sink: str, seconds: float) -> None:
        self.notifications.emit(SinkRecovered(at=self._now(), sink=sink, failing_for=seconds))

    def delivery_ended(self, sink: str, error: str | None) -> None:
        self.notifications.emit(DeliveryEnded(at=self._now(), sink=sink, error=error))

    # ------------------------------------------------------------ beginning and end

    def disk_changed(self, error: NotNow | None) -> None:
        self.notifications.emit(
            DiskStateChanged(at=self._now(), error=None if error is None else str(error))
        )

    def salvaged(self, priority: int, events: int) -> None:
        """Events that were in memory when the machine went down are whole."""
        _log.warning(
            "priority %d: %d events in memory when the machine went down are whole, "
            "and are delivered",
            priority,
            events,
        )

    def missing(self, priority: int, first_seq: int, end_seq: int) -> None:
        _log.error(
            "priority %d: the numbers from %d to %d were in memory when the machine went down, "
            "and are lost",
            priority,
            first_seq,
            end_seq - 1,
        )

    def recovered(self, events: int, seconds: float) -> None:
        if events:
            _log.info(
                "%d events from before are delivered first (found in %.3f s)", events, seconds
            )

    def closing(self, resident: int) -> None:
        self.notifications.emit(BufferClosing(at=self._now(), resident=resident))

    def left_in_ring(self, error: NotNow) -> None:
        _log.warning("what is left stays in the ring file, as the disk refuses: %s", error)

    def closed(self, lost: int) -> None:
        """Say what no line was due for until now, and what was lost."""
        for priority, events in self._few_lines.rest().items():
            if isinstance(priority, int):
                self._log_dropped(priority, events)
        self.notifications.end()
        if lost:
            _log.warning("buffer closed with %d events not delivered: they are lost", lost)
