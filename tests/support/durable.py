"""A buffer with a directory, small enough that all that can happen happens soon."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from backpressure import BufferConfig, BufferManager, CircuitBreakerConfig
from backpressure.spill import SpillConfig

SMALL = SpillConfig(segment_bytes=1 << 16, block_bytes=1 << 12, reserve_bytes=1 << 13)


def open_buffer(path: Path, **changes: Any) -> BufferManager:
    # Enough of a sample that no test trips the breaker.
    breaker = CircuitBreakerConfig(min_requests=100_000)
    config = {
        "lane_bytes": 1 << 14,
        "spill": SMALL,
        "retry_backoff": 0.0,
        "circuit_breaker": breaker,
        **changes,
    }
    return BufferManager(BufferConfig(directory=path / "buffer", **config), rng=random.Random(1))
