"""What the tests of a buffer share: fill it, empty it, end it as a kill does."""

from __future__ import annotations

import os

from backpressure import Batch, BufferConfig, BufferManager
from backpressure.lanes.durable_lane import RING_NAME, DurableLane
from backpressure.lanes.ring_debt import debt_of
from ringbuf import salvage
from tests.support.threads import until

__all__ = [
    "EVENT",
    "SMALL",
    "add_all",
    "crash",
    "drain",
    "drain_lanes",
    "next_batch",
    "numbered",
    "until_proved",
]

# A buffer in which a lane is full with a handful of such events.
SMALL = BufferConfig(lane_bytes=4096)
EVENT = b"x" * 1000


def numbered(count: int, size: int = 20) -> list[bytes]:
    return [b"%06d" % i + b"x" * size for i in range(count)]


def add_all(buffer: BufferManager, events: list[bytes], priority: int = 3) -> None:
    """Also more than the ring holds."""
    while events:
        events = events[buffer.add_events(events, priority=priority, timeout=10.0).accepted :]


def next_batch(buffer: BufferManager, most: int | None = None) -> Batch:
    """A batch that is there now."""
    batch = buffer.get_batch(most)
    assert batch is not None, "no event waits"
    return batch


def drain(buffer: BufferManager, most: int | None = None) -> list[bytes]:
    """All events that wait, in the order in which they come; they are acked.

    In batches of at most `most`.
    """
    return [event for _, events in _batches(buffer, most) for event in events]


def drain_lanes(buffer: BufferManager) -> dict[int, list[bytes]]:
    """All events that wait, by priority; they are acknowledged."""
    lanes: dict[int, list[bytes]] = {}
    for priority, events in _batches(buffer, None):
        lanes.setdefault(priority, []).extend(events)
    return lanes


def _batches(buffer: BufferManager, most: int | None) -> list[tuple[int, list[bytes]]]:
    batches = []
    while (batch := buffer.get_batch(most)) is not None:
        batches.append((batch.priority, batch.tolist()))
        batch.ack()
    buffer.stats().check()
    return batches


def until_proved(buffer: BufferManager) -> None:
    """Wait until all that its rings owe has checksums: it outlives a reboot."""
    disk = buffer._disk
    assert disk is not None

    def is_proved(lane: DurableLane) -> bool:
        path = os.path.join(os.path.dirname(lane.ring.path or ""), RING_NAME)
        return not debt_of(salvage(path), lane.store.end_seq).missing

    until(lambda: all(map(is_proved, disk.lanes)))


def crash(buffer: BufferManager) -> None:
    """Leave it as the death of the process would.

    Nothing is written, nothing is told, and all its locks are gone.
    """
    disk = buffer._disk
    assert disk is not None
    buffer._intake.closing = True
    buffer._set_closed()
    buffer._let_go = True
    disk.spiller.stop()
    for lane in disk.lanes:
        lane.ring.close()
        # What it has written is in the page cache, where a dead process's is as well.
        lane.store._closed = True
    disk.directory.close()
