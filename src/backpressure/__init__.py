"""Buffering and backpressure in process: bounded memory, priorities, adaptive batches,
a circuit breaker before the sink.

    buffer = BufferManager()
    buffer.add_lines(chunk)
    while (batch := buffer.get_batch()) is not None:
        with batch:
            sink.send(batch)

Everything public is importable from here; the sinks, sources and testing tools from
their submodules.
"""

from backpressure.base.clock import Clock, MonotonicClock
from backpressure.base.errors import (
    AlreadyDelivering,
    BackpressureError,
    BatchRejected,
    BatchStateError,
    BatchTooLarge,
    BufferClosed,
    BufferFull,
    CircuitOpenError,
    ConfigError,
    DirectoryInUse,
    DiskFailed,
    DiskFull,
    EventTooLarge,
    FormatError,
    InvalidEvents,
    NeverAdmitted,
    NotNow,
    PartialFailure,
    RateLimited,
    SinkGone,
    SinkOutcome,
    SinkUnavailable,
)
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
    Event,
    EventsDropped,
    EventType,
    RateChanged,
    SinkFailing,
    SinkRecovered,
    Tuned,
)
from backpressure.base.histogram import HistogramStats
from backpressure.base.priority import Priority
from backpressure.base.version import version as _version
from backpressure.buffer.admission import Admission
from backpressure.buffer.batch import Batch
from backpressure.buffer.config import BufferConfig, Durability, WhenFull
from backpressure.buffer.stats import BufferStats
from backpressure.buffer_manager import BufferManager
from backpressure.delivery.delivery import Delivery
from backpressure.delivery.sink import AsyncSink, Sink
from backpressure.delivery.stats import DeliveryStats
from backpressure.lanes.stats import DiskStats, LaneStats
from backpressure.policies.adaptive_batch_manager import (
    AdaptiveBatchConfig,
    AdaptiveBatchManager,
    AdaptiveBatchMetrics,
)
from backpressure.policies.backpressure_monitor import (
    BackpressureMonitor,
    BackpressureMonitorConfig,
    Pressure,
)
from backpressure.policies.circuit_breaker import (
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitBreakerMetrics,
    Permit,
    State,
)
from backpressure.policies.flow_control_manager import (
    EmergencyModeConfig,
    FlowControlConfig,
    FlowControlManager,
    FlowControlMetrics,
    Grant,
)
from backpressure.spill import SpillConfig
from ringbuf import TokenBucket

__all__ = [
    # the buffer
    "BufferManager",
    "BufferConfig",
    "WhenFull",
    "Durability",
    "Priority",
    "Admission",
    "Batch",
    "Delivery",
    "Sink",
    "AsyncSink",
    "BufferStats",
    "DeliveryStats",
    "LaneStats",
    "HistogramStats",
    "DiskStats",
    "SpillConfig",
    # the policies
    "CircuitBreaker",
    "CircuitBreakerConfig",
    "CircuitBreakerMetrics",
    "Permit",
    "State",
    "BackpressureMonitor",
    "BackpressureMonitorConfig",
    "Pressure",
    "AdaptiveBatchManager",
    "AdaptiveBatchConfig",
    "AdaptiveBatchMetrics",
    "FlowControlManager",
    "FlowControlConfig",
    "FlowControlMetrics",
    "EmergencyModeConfig",
    "Grant",
    "TokenBucket",
    "Clock",
    "MonotonicClock",
    # what it tells
    "EventType",
    "Event",
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
    "EventsDropped",
    "RateChanged",
    "SinkFailing",
    "SinkRecovered",
    "Tuned",
    # what it raises
    "BackpressureError",
    "AlreadyDelivering",
    "BatchRejected",
    "BatchStateError",
    "BatchTooLarge",
    "BufferClosed",
    "BufferFull",
    "CircuitOpenError",
    "ConfigError",
    "DirectoryInUse",
    "DiskFailed",
    "DiskFull",
    "EventTooLarge",
    "FormatError",
    "InvalidEvents",
    "NeverAdmitted",
    "NotNow",
    "PartialFailure",
    "RateLimited",
    "SinkGone",
    "SinkOutcome",
    "SinkUnavailable",
]

# What is imported by its own name: `import backpressure.http`.
_SUBMODULES = ("http", "logging", "metrics", "sinks", "sources", "spill", "testing")


def __getattr__(name: str) -> str:
    """`__version__`, looked up when it is asked for."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _version()


def __dir__() -> list[str]:
    """The public names, and no submodule that is only there because something here
    imports it.
    """
    return sorted(
        name
        for name in globals()
        if name in __all__ or name in _SUBMODULES or (name.startswith("__") and name.endswith("__"))
    )
