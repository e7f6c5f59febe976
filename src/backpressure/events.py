"""What a buffer tells about itself: typed, frozen events, and the dispatcher that hands them to handlers.

A handler is called in the thread that caused the event, after every lock has been let go. One that raises is logged and
counted (`EventDispatcher.handler_errors`), and harms neither the caller nor the handlers after it.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

__all__ = [
    "BackpressureActivated",
    "BackpressureDeactivated",
    "BatchDeadLettered",
    "BatchRedelivered",
    "BatchSizeChanged",
    "BufferClosing",
    "CircuitStateChanged",
    "DiskStateChanged",
    "EmergencyEntered",
    "EmergencyLeft",
    "Event",
    "EventDispatcher",
    "EventType",
    "EventsDropped",
    "RateChanged",
]

_log = logging.getLogger("backpressure")


class EventType(Enum):
    """The kinds of event that `buffer.on` can be asked for."""

    BACKPRESSURE_ACTIVATED = "backpressure_activated"
    BACKPRESSURE_DEACTIVATED = "backpressure_deactivated"
    CIRCUIT_STATE_CHANGED = "circuit_state_changed"
    BATCH_SIZE_CHANGED = "batch_size_changed"
    BATCH_REDELIVERED = "batch_redelivered"
    BATCH_DEAD_LETTERED = "batch_dead_lettered"
    EMERGENCY_ENTERED = "emergency_entered"
    EMERGENCY_LEFT = "emergency_left"
    RATE_CHANGED = "rate_changed"
    EVENTS_DROPPED = "events_dropped"
    DISK_STATE_CHANGED = "disk_state_changed"
    BUFFER_CLOSING = "buffer_closing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What all events have: `type`, and `at`, the buffer's clock in seconds."""

    type: EventType
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BackpressureActivated(Event):
    """`signal` ("depth", "delay", "latency", "error_rate" or "throughput") read `value` and crossed `threshold`."""

    type: EventType = EventType.BACKPRESSURE_ACTIVATED
    signal: str
    value: float
    threshold: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BackpressureDeactivated(Event):
    """Every signal that had crossed its threshold is below its exit threshold again.

    `active_for` is in seconds; `signal` had caused it, and reads `value` now (0 where it was not measured).
    """

    type: EventType = EventType.BACKPRESSURE_DEACTIVATED
    signal: str
    active_for: float
    value: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitStateChanged(Event):
    """The breaker went from `old` to `new` (names of `State`), because of `reason`."""

    type: EventType = EventType.CIRCUIT_STATE_CHANGED
    old: str
    new: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSizeChanged(Event):
    """The batch size went from `old` to `new` events, because of `reason`."""

    type: EventType = EventType.BATCH_SIZE_CHANGED
    old: int
    new: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRedelivered(Event):
    """A nacked batch of `events` events from `first_seq` goes out again, as attempt number `attempt`."""

    type: EventType = EventType.BATCH_REDELIVERED
    priority: int
    first_seq: int
    events: int
    attempt: int
    error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchDeadLettered(Event):
    """The event at `first_seq` failed `attempts` times and went to the dead letters."""

    type: EventType = EventType.BATCH_DEAD_LETTERED
    priority: int
    first_seq: int
    events: int
    attempts: int
    error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EmergencyEntered(Event):
    """Flow control entered its emergency mode at this failure rate (0 to 1)."""

    type: EventType = EventType.EMERGENCY_ENTERED
    failure_rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EmergencyLeft(Event):
    """Flow control left its emergency mode after `active_for` seconds."""

    type: EventType = EventType.EMERGENCY_LEFT
    active_for: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RateChanged(Event):
    """The admitted rate was set from `old` to `new` events per second."""

    type: EventType = EventType.RATE_CHANGED
    old: float
    new: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EventsDropped(Event):
    """`events` accepted events of `priority` were dropped to make room, because of `reason`."""

    type: EventType = EventType.EVENTS_DROPPED
    priority: int
    events: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskStateChanged(Event):
    """The disk takes no events at present (`error` says why), or does again (None)."""

    type: EventType = EventType.DISK_STATE_CHANGED
    error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BufferClosing(Event):
    """The buffer closes with `resident` events not delivered."""

    type: EventType = EventType.BUFFER_CLOSING
    resident: int


class EventDispatcher:
    """Handlers by event type. Safe for any thread; holds no lock while a handler runs."""

    __slots__ = ("_handlers", "_ids", "_lock", "handler_errors")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ids = itertools.count()
        # Replaced whole and never changed in place, so `emit` reads it without a lock.
        self._handlers: dict[EventType, tuple[tuple[int, Callable[[Event], object]], ...]] = {}
        self.handler_errors = 0

    def on(self, event_type: EventType, handler: Callable[[Event], object]) -> Callable[[], None]:
        """Call `handler(event)` for each event of that type from now on; returns a function that ends this."""
        if not isinstance(event_type, EventType):
            raise TypeError(f"event_type must be an EventType, not {event_type!r}")
        if not callable(handler):
            raise TypeError(f"handler must be callable, not {handler!r}")
        with self._lock:
            entry = (next(self._ids), handler)
            self._handlers = {**self._handlers, event_type: (*self._handlers.get(event_type, ()), entry)}

        def off() -> None:
            with self._lock:
                kept = tuple(e for e in self._handlers.get(event_type, ()) if e is not entry)
                self._handlers = {**self._handlers, event_type: kept}

        return off

    def wants(self, event_type: EventType) -> bool:
        """Whether anyone listens: lets a caller spare the making of an event."""
        return bool(self._handlers.get(event_type))

    def emit(self, event: Event) -> None:
        """Hand `event` to its handlers. Call it with no lock held."""
        for _, handler in self._handlers.get(event.type, ()):
            try:
                handler(event)
            except Exception:
                with self._lock:
                    self.handler_errors += 1
                _log.exception("handler %r for %s failed", handler, event.type.name)
