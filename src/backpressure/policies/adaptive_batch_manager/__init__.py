"""How large a batch is: `AdaptiveBatchManager`, and the laws that it is made of."""

from backpressure.policies.adaptive_batch_manager.manager import (
    AdaptiveBatchConfig,
    AdaptiveBatchManager,
    AdaptiveBatchMetrics,
)

__all__ = ["AdaptiveBatchConfig", "AdaptiveBatchManager", "AdaptiveBatchMetrics"]
