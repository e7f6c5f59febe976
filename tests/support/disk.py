"""What the tests of the commands for a directory share: directories, and their use."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from backpressure import (
    BufferConfig,
    BufferManager,
    CircuitBreakerConfig,
    EmergencyModeConfig,
    FlowControlConfig,
)
from backpressure.spill import SpillConfig
from tests.support.buffers import add_all

SMALL = SpillConfig(
    segment_bytes=1 << 14, block_bytes=1 << 12, reserve_bytes=1 << 13, slowest_level=-100
)

RING_BYTES = 1 << 14

Command = tuple[int, str, str]


def open_buffer(path: Path, **changes: Any) -> BufferManager:
    # The many nacks of a test are no reason to hold anything up.
    breaker = CircuitBreakerConfig(min_requests=100_000)
    flow = FlowControlConfig(emergency_mode=EmergencyModeConfig(enabled=False))
    config = {
        "lane_bytes": RING_BYTES,
        "spill": SMALL,
        "retry_backoff": 0.0,
        "circuit_breaker": breaker,
        "flow_control": flow,
    }
    return BufferManager(
        BufferConfig(directory=path, **{**config, **changes}), rng=random.Random(1)
    )


def noise(count: int, seed: int = 0, size: int = 60) -> list[bytes]:
    """Events that hardly get smaller, so that few of them fill a segment."""
    rng = random.Random(seed)
    return [b"%06d:" % i + rng.randbytes(size).hex().encode() for i in range(count)]


def in_order(got: dict[int, list[bytes]]) -> list[bytes]:
    return [event for priority in sorted(got) for event in got[priority]]


def fingerprint(path: Path) -> dict[str, str]:
    """Every file's content."""
    return {
        str(one.relative_to(path)): hashlib.sha256(one.read_bytes()).hexdigest()
        for one in sorted(path.rglob("*"))
        if one.is_file()
    }


def segments_of(path: Path, lane: str = "lane-3") -> list[Path]:
    return sorted((path / lane).glob("*.seg"))


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(bytes(data))


def records(data: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        (size,) = struct.unpack_from("<I", data, at)
        yield data[at + 4 : at + 4 + size]
        at += 4 + size


def live_and_die(path: str) -> None:
    """Run in another process: leaves events on disk, in rings, and with consumers."""
    buffer = open_buffer(Path(path))
    add_all(buffer, noise(3000))
    buffer.add_events([b"urgent", b"more urgent"], priority=1)
    held = []
    for size, acked in ((1, True), (1, False), (5, False), (10, True)):  # of lane 1, then of lane 3
        batch = buffer.get_batch(size)
        assert batch is not None
        if acked:
            batch.ack()
        else:
            held.append(batch)
    os.kill(os.getpid(), signal.SIGKILL)
