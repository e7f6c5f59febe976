"""The health of a buffer in emergency mode."""

from __future__ import annotations

from backpressure import BufferManager, Priority
from backpressure.http.health import check_health
from backpressure.testing import FakeClock
from tests.support.buffers import EVENT, SMALL, add_all, next_batch


def test_an_emergency_is_said() -> None:
    clock = FakeClock()
    with BufferManager(SMALL, clock=clock) as buffer:
        add_all(buffer, [EVENT] * 3, Priority.HIGH)
        for _ in range(5):
            clock.advance(0.5)
            next_batch(buffer).nack("away")
        assert buffer.stats().flow_control.emergency
        assert any("emergency" in reason for reason in check_health(buffer).reasons)
        buffer.close(timeout=0)
