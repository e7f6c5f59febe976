"""The emergency mode in a buffer: only where room is short, and never because of one
batch.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from backpressure import BufferConfig, BufferManager, EventType, Priority, WhenFull
from backpressure.base.events import Event
from backpressure.testing import FakeClock
from tests.support.buffers import EVENT, SMALL, add_all, next_batch

# With a thousand bytes an event: more than half of a SMALL lane.
_PAST_HALF = 3


def fail(buffer: BufferManager, clock: FakeClock, times: int) -> None:
    """Have that many batches fail, one attempt after the other."""
    for _ in range(times):
        clock.advance(0.5)
        next_batch(buffer).nack("away")


def watched(config: BufferConfig | None, clock: FakeClock) -> tuple[BufferManager, list[EventType]]:
    buffer = BufferManager(config, clock=clock)
    seen: list[EventType] = []

    def note(event: Event) -> None:
        seen.append(event.type)

    for kind in (EventType.EMERGENCY_ENTERED, EventType.EMERGENCY_LEFT):
        buffer.on(kind, note)
    return buffer, seen


def test_one_nacked_batch_is_no_emergency() -> None:
    clock = FakeClock()
    buffer, seen = watched(BufferConfig(lane_bytes=4096), clock)
    with buffer:
        add_all(buffer, [b"x" * 20] * 100)
        next_batch(buffer).nack("no")
        for _ in range(30):
            clock.advance(0.2)
            if (batch := buffer.get_batch()) is not None:
                batch.ack()
            add_all(buffer, [b"x"])
            stats = buffer.stats()
            assert not stats.flow_control.emergency
        assert seen == []
        buffer.close(timeout=0)


def test_an_outage_beside_an_empty_lane_refuses_nothing() -> None:
    """A hundred lines a second, and a sink that is away for two seconds."""
    clock = FakeClock()
    buffer, seen = watched(None, clock)
    with buffer:
        for tick in range(600):
            assert buffer.add_events([b"a line"])
            if (batch := buffer.get_batch()) is not None:
                if 100 <= tick < 300:
                    batch.nack(ConnectionRefusedError("away"))
                else:
                    batch.ack()
            clock.advance(0.01)
        assert sum(buffer.stats().rejected.values()) == 0
        assert seen == []
        buffer.close(timeout=0)


def test_a_lane_more_than_half_full_is_an_emergency_until_it_is_not() -> None:
    clock = FakeClock()
    buffer, seen = watched(SMALL, clock)
    with buffer:
        add_all(buffer, [EVENT] * _PAST_HALF, Priority.HIGH)
        fail(buffer, clock, 5)
        stats = buffer.stats()
        assert stats.flow_control.emergency
        assert seen == [EventType.EMERGENCY_ENTERED]
        # The least urgent are refused, and the most urgent are not.
        asked = [buffer.add_events([b"x"], Priority.BACKGROUND) for _ in range(20)]
        assert {one.reason for one in asked} == {None, "emergency"}
        assert buffer.add_events([b"x"], Priority.CRITICAL)
        for batch in iter(lambda: buffer.get_batch(1), None):
            batch.ack()
            clock.advance(0.1)
        stats = buffer.stats()
        assert not stats.flow_control.emergency
        assert stats.flow_control.failure_rate > 0.0
        assert seen == [EventType.EMERGENCY_ENTERED, EventType.EMERGENCY_LEFT]


def test_what_is_with_a_consumer_takes_room_too() -> None:
    clock = FakeClock()
    buffer, seen = watched(SMALL, clock)
    with buffer:
        add_all(buffer, [EVENT] * _PAST_HALF)
        fail(buffer, clock, 5)
        clock.advance(0.5)
        assert buffer.stats().waiting == 0
        next_batch(buffer).nack("away")
        assert seen == [EventType.EMERGENCY_ENTERED]
        buffer.close(timeout=0)


def test_an_open_circuit_is_no_emergency() -> None:
    clock = FakeClock()
    buffer, seen = watched(SMALL, clock)
    with buffer:
        add_all(buffer, [EVENT] * _PAST_HALF)
        fail(buffer, clock, 5)
        while not buffer.is_circuit_breaker_open():
            fail(buffer, clock, 1)
        clock.advance(0.1)
        assert buffer.get_batch() is None
        assert not buffer.stats().flow_control.emergency
        assert seen == [EventType.EMERGENCY_ENTERED, EventType.EMERGENCY_LEFT]
        assert buffer.add_events([b"x"], Priority.BACKGROUND)
        buffer.close(timeout=0)


@pytest.mark.parametrize("directory", [False, True])
def test_what_makes_room_or_takes_more_knows_no_emergency(directory: bool, tmp_path: Path) -> None:
    """A disk tier, and the room of the oldest."""
    config = (
        BufferConfig(directory=tmp_path, lane_bytes=4096)
        if directory
        else BufferConfig(lane_bytes=4096, when_full=WhenFull.DROP_OLDEST)
    )
    clock = FakeClock()
    buffer, seen = watched(config, clock)
    with buffer:
        add_all(buffer, [EVENT] * _PAST_HALF)
        fail(buffer, clock, 9)
        assert seen == []
        assert buffer.add_events([b"x"] * 10, Priority.BACKGROUND)
        buffer.close(timeout=0)
