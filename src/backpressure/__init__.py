"""Buffering and backpressure in process: bounded memory, priorities, adaptive batches,
a circuit breaker before the sink.

    buffer = BufferManager()
    buffer.add_lines(chunk)
    while (batch := buffer.get_batch()) is not None:
        with batch:
            sink.send(batch)

Everything public is importable from here; the sinks, sources and testing tools from
their submodules. A name is imported from its module when it is first asked for.
"""

import typing

from backpressure.base.lazy import lazy_names as _lazy_names

if typing.TYPE_CHECKING:
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
    from backpressure.spill.config import SpillConfig
    from ringbuf import TokenBucket

    __version__: str

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

# The modules that define them; type checkers read the same above.
_HOMES = {
    "backpressure.base.clock": "Clock MonotonicClock",
    "backpressure.base.errors": """
        AlreadyDelivering BackpressureError BatchRejected BatchStateError BatchTooLarge
        BufferClosed BufferFull CircuitOpenError ConfigError DirectoryInUse DiskFailed DiskFull
        EventTooLarge FormatError InvalidEvents NeverAdmitted NotNow PartialFailure RateLimited
        SinkGone SinkOutcome SinkUnavailable
    """,
    "backpressure.base.events": """
        BackpressureActivated BackpressureDeactivated BatchDeadLettered BatchRedelivered
        BatchSizeChanged BufferClosing CircuitStateChanged DeliveryEnded DiskStateChanged
        EmergencyEntered EmergencyLeft Event EventsDropped EventType RateChanged SinkFailing
        SinkRecovered Tuned
    """,
    "backpressure.base.histogram": "HistogramStats",
    "backpressure.base.priority": "Priority",
    "backpressure.buffer.admission": "Admission",
    "backpressure.buffer.batch": "Batch",
    "backpressure.buffer.config": "BufferConfig Durability WhenFull",
    "backpressure.buffer.stats": "BufferStats",
    "backpressure.buffer_manager": "BufferManager",
    "backpressure.delivery.delivery": "Delivery",
    "backpressure.delivery.sink": "AsyncSink Sink",
    "backpressure.delivery.stats": "DeliveryStats",
    "backpressure.lanes.stats": "DiskStats LaneStats",
    "backpressure.policies.adaptive_batch_manager": """
        AdaptiveBatchConfig AdaptiveBatchManager AdaptiveBatchMetrics
    """,
    "backpressure.policies.backpressure_monitor": """
        BackpressureMonitor BackpressureMonitorConfig Pressure
    """,
    "backpressure.policies.circuit_breaker": """
        CircuitBreaker CircuitBreakerConfig CircuitBreakerMetrics Permit State
    """,
    "backpressure.policies.flow_control_manager": """
        EmergencyModeConfig FlowControlConfig FlowControlManager FlowControlMetrics Grant
    """,
    "backpressure.spill.config": "SpillConfig",
    "ringbuf": "TokenBucket",
}

# What is imported by its own name: `import backpressure.http`.
_SUBMODULES = ("http", "logging", "metrics", "sinks", "sources", "spill", "testing")

# A type checker would take it for leave to ask for any name.
if not typing.TYPE_CHECKING:
    _look_up = _lazy_names(__name__, _HOMES)

    def __getattr__(name: str) -> object:
        """A public name, `__version__`, or the one submodule that needs no import."""
        if name == "__version__":
            from backpressure.base.version import version

            return version()
        if name == "spill":
            import backpressure.spill

            return backpressure.spill
        return _look_up(name)


def __dir__() -> list[str]:
    """The public names, and no submodule that is only there because something here
    imports it.
    """
    others = [name for name in globals() if name.startswith("__") and name.endswith("__")]
    return sorted({*__all__, *others, *(name for name in _SUBMODULES if name in globals())})
