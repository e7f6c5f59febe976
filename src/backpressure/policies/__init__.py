"""The four policies. Each stands alone, with its config and a clock; none has a thread
or does I/O.
"""

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

__all__ = [
    "AdaptiveBatchConfig",
    "AdaptiveBatchManager",
    "AdaptiveBatchMetrics",
    "BackpressureMonitor",
    "BackpressureMonitorConfig",
    "CircuitBreaker",
    "CircuitBreakerConfig",
    "CircuitBreakerMetrics",
    "EmergencyModeConfig",
    "FlowControlConfig",
    "FlowControlManager",
    "FlowControlMetrics",
    "Grant",
    "Permit",
    "Pressure",
    "State",
]
