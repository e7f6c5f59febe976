"""What a buffer tells about itself: typed, frozen events. `event_dispatcher.py` carries
them to those that listen.
"""

from __future__ import annotations

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
    "DeliveryEnded",
    "DiskStateChanged",
    "EmergencyEntered",
    "EmergencyLeft",
    "Event",
    "EventType",
    "EventsDropped",
    "RateChanged",
    "SinkFailing",
    "SinkRecovered",
    "Tuned",
]


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
    SINK_FAILING = "sink_failing"
    SINK_RECOVERED = "sink_recovered"
    DELIVERY_ENDED = "delivery_ended"
    BUFFER_CLOSING = "buffer_closing"
    TUNED = "tuned"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What all events have: `type`; `at`, the buffer's clock in seconds; and `seq`,
    their number.

    Events are numbered 1, 2, … as they are emitted, so that a listener sees what it
    missed; 0: not emitted yet.
    """

    type: EventType
    at: float
    seq: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BackpressureActivated(Event):
    """`signal` ("depth", "delay", "latency", "error_rate" or "throughput") read `value`
    and crossed `threshold`.
    """

    type: EventType = EventType.BACKPRESSURE_ACTIVATED
    signal: str
    value: float
    threshold: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BackpressureDeactivated(Event):
    """Every signal that had crossed its threshold is below its exit threshold again.

    `active_for` is in seconds; `signal` had caused it, and reads `value` now (0 where
    it was not measured).
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
    """A nacked batch of `events` events from `first_seq` goes out again, as attempt
    number `attempt`.
    """

    type: EventType = EventType.BATCH_REDELIVERED
    priority: int
    first_seq: int
    events: int
    attempt: int
    error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchDeadLettered(Event):
    """`events` events from `first_seq` on became dead letters at attempt number
    `attempts`: the sink rejected them, or they had failed too often.
    """

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
    """`events` accepted events of `priority` were dropped to make room, because of
    `reason`.
    """

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
class SinkFailing(Event):
    """The sink of a delivery has begun to fail, with `error`."""

    type: EventType = EventType.SINK_FAILING
    sink: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkRecovered(Event):
    """The sink of a delivery takes batches again, `failing_for` seconds after it had
    begun to fail.
    """

    type: EventType = EventType.SINK_RECOVERED
    sink: str
    failing_for: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryEnded(Event):
    """A delivery has ended; because of `error`, or as it was told to (None)."""

    type: EventType = EventType.DELIVERY_ENDED
    sink: str
    error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BufferClosing(Event):
    """The buffer closes with `resident` events not delivered."""

    type: EventType = EventType.BUFFER_CLOSING
    resident: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned(Event):
    """A setting was changed by hand: "flow_control_rate", "burst_size", "batch_size" or
    "circuit_breaker" (a reset).

    `old` and `new` are events per second, events, or names of `State`. `by` says from
    where, as "code" or "http 127.0.0.1:50312".
    """

    type: EventType = EventType.TUNED
    setting: str
    old: float | str
    new: float | str
    by: str
