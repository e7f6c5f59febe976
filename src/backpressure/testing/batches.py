"""Batches for tests of sinks: real ones, out of a buffer of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from backpressure.base.errors import InvalidEvents
from backpressure.base.priority import Priority
from backpressure.base.validation import as_int
from backpressure.buffer.batch import Batch
from backpressure.buffer.config import BufferConfig
from backpressure.buffer.payload import EventPayload
from backpressure.buffer_manager import BufferManager
from backpressure.policies.circuit_breaker import CircuitBreakerConfig

__all__ = ["make_batch"]

# Beside the events themselves: framing, and room for lanes that stay empty.
_ROOM = 1 << 16
# No event of a test is larger (bytes).
_LARGEST = 1 << 30


def make_batch(
    events: Sequence[bytes | str] | Any, priority: int = Priority.NORMAL, *, attempt: int = 1
) -> Batch:
    """A batch of these events, as `get_batch` gives it; `ack` and `nack` work.

    attempt: which delivery it is to be: 2 for the first redelivery, and so on. Raises
    InvalidEvents as `add_events` does, also where there are no events.

    >>> from backpressure.testing import make_batch
    >>> batch = make_batch([b"one", "two"])
    >>> batch.tolist(), batch.attempt
    ([b'one', b'two'], 1)
    """
    if (as_int(attempt) or 0) < 1:
        raise ValueError(f"attempt must be an int from 1 on, not {attempt!r}")
    probe = EventPayload(events, _LARGEST)
    if not probe.progress.remaining:
        raise InvalidEvents("a batch has one event at least")
    room = 2 * probe.nbytes + 64 * probe.progress.remaining + _ROOM
    config = BufferConfig(
        lane_bytes=room,
        max_batch_bytes=room,
        retry_backoff=0.0,
        # However often it fails, it comes again.
        circuit_breaker=CircuitBreakerConfig(min_requests=2**31),
    )
    buffer = BufferManager(config)
    buffer.add_events(events, priority).raise_for_rejection()
    batch = buffer.get_batch(probe.progress.remaining)
    assert batch is not None, "nothing else takes from this buffer"
    batch._handout.attempt = attempt
    return batch
