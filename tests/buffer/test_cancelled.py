"""What the breaker ignores is no failure: of the batch, of the sink, of the buffer."""

from __future__ import annotations

import asyncio
from concurrent.futures import CancelledError
from pathlib import Path

import pytest

from backpressure import BufferConfig, BufferManager, CircuitBreakerConfig, CircuitOpenError


class HarmlessError(Exception):
    pass


IGNORED = [
    asyncio.CancelledError(),
    KeyboardInterrupt(),
    SystemExit(1),
    GeneratorExit(),
    CancelledError(),
    HarmlessError(),
    CircuitOpenError("within", 0.001),
    ExceptionGroup("", [HarmlessError(), CircuitOpenError("within", 0.001)]),
    BaseExceptionGroup("", [asyncio.CancelledError(), ExceptionGroup("", [HarmlessError()])]),
]
COUNTED = [
    OSError(),
    TimeoutError(),
    ExceptionGroup("", [HarmlessError(), OSError()]),
    BaseExceptionGroup("", [asyncio.CancelledError(), ExceptionGroup("", [OSError()])]),
    "a message",
    None,
]


def make(directory: Path | None) -> BufferManager:
    return BufferManager(
        BufferConfig(
            directory=directory,
            lane_bytes=1 << 16,
            max_attempts=None if directory is None else 2,
            retry_backoff=0.001,
            max_retry_backoff=0.001,
            circuit_breaker=CircuitBreakerConfig(ignored_exceptions=(HarmlessError,)),
        )
    )


@pytest.mark.parametrize("error", IGNORED, ids=repr)
@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("block", [False, True])
def test_an_ignored_error_puts_the_batch_back(
    error: BaseException, on_disk: bool, block: bool, tmp_path: Path
) -> None:
    with make(tmp_path if on_disk else None) as buffer:
        buffer.add_events([b"a", b"b"], priority=5)
        buffer.add_events([b"c"], priority=5)
        seen = []
        for _ in range(6):
            batch = buffer.get_batch(max_events=2, timeout=5.0)
            assert batch is not None
            seen.append((batch.tolist(), batch.attempt, batch.id))
            if block:
                with pytest.raises(type(error)), batch:
                    raise error
            else:
                batch.nack(error)
        assert seen == [([b"a", b"b"], 1, seen[0][2])] * 6
        for events in ([b"a", b"b"], [b"c"]):
            batch = buffer.get_batch(timeout=5.0)
            assert batch is not None
            assert batch.tolist() == events
            batch.ack()
        stats = buffer.stats()
        stats.check()
        lane = stats.lanes[5]
        # Each came back as a nack, and none was an attempt.
        assert (lane.batches_nacked, lane.redelivered) == (6, 12)
        assert (stats.acked, stats.circuit_breaker.failed, stats.circuit_breaker.ignored) == (
            *(3, 0),
            6,
        )
        assert stats.flow_control.failure_rate == 0.0


@pytest.mark.parametrize("error", COUNTED, ids=repr)
def test_any_other_error_is_a_failed_attempt(error: BaseException | str | None) -> None:
    with make(None) as buffer:
        buffer.add_events([b"a"])
        for attempt in (1, 2):
            batch = buffer.get_batch(timeout=5.0)
            assert batch is not None
            assert batch.attempt == attempt
            batch.nack(error)
        stats = buffer.stats()
        assert (stats.circuit_breaker.failed, stats.flow_control.failure_rate) == (2, 1.0)
        buffer.close(0)


def test_a_cancelled_batch_is_there_at_once() -> None:
    with make(None) as buffer:
        buffer.add_events([b"a"])
        for _ in range(3):
            batch = buffer.get_batch()
            assert batch is not None
            batch.nack(asyncio.CancelledError())
        buffer.close(0)
