"""How much is admitted, and of whom: `FlowControlManager`, and the laws that it is made
of.
"""

from backpressure.policies.flow_control_manager.emergency_mode import EmergencyModeConfig
from backpressure.policies.flow_control_manager.manager import (
    FlowControlConfig,
    FlowControlManager,
    FlowControlMetrics,
    Grant,
)

__all__ = [
    "EmergencyModeConfig",
    "FlowControlConfig",
    "FlowControlManager",
    "FlowControlMetrics",
    "Grant",
]
