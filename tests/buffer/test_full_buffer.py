"""What a buffer refuses, for good or for now, and what each of the ways to be full
does.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from backpressure import (
    Admission,
    BufferConfig,
    BufferManager,
    ConfigError,
    Durability,
    EventTooLarge,
    EventType,
    InvalidEvents,
    WhenFull,
)
from tests.support.buffers import EVENT, SMALL, drain

# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("bad", [0, 6, -1, 2.0, "high", True])
def test_bad_priority(bad: object) -> None:
    buffer = BufferManager(SMALL)
    with pytest.raises(InvalidEvents, match="priority"):
        buffer.add_events([b"a"], priority=bad)  # type: ignore[arg-type]
    with pytest.raises(InvalidEvents, match="priority"):
        buffer.add_lines(b"a\n", priority=bad)  # type: ignore[arg-type]
    assert buffer.stats().offered == 0


@pytest.mark.parametrize(
    "bad", [b"abc", "abc", 5, None, [1], [b"a", None], ["\ud800"], np.zeros((2, 2))]
)
def test_bad_events_change_nothing(bad: object) -> None:
    buffer = BufferManager(SMALL)
    with pytest.raises(InvalidEvents):
        buffer.add_events(bad)
    assert buffer.stats().offered == 0
    assert buffer.get_batch() is None


@pytest.mark.parametrize("bad", ["text", 5, None, memoryview(b"abcd")[::2]])
def test_bad_chunks_change_nothing(bad: object) -> None:
    buffer = BufferManager(SMALL)
    with pytest.raises(InvalidEvents):
        buffer.add_lines(bad)
    assert buffer.stats().offered == 0


def test_an_event_that_never_fits_is_told_apart_from_no_room_now() -> None:
    buffer = BufferManager(SMALL)
    with pytest.raises(EventTooLarge) as caught:
        buffer.add_events([b"fine", b"x" * 5000])
    assert (caught.value.index, caught.value.nbytes, caught.value.limit) == (1, 5000, 4096 - 24)
    with pytest.raises(EventTooLarge, match="event 2 has 5,000 bytes"):
        buffer.add_lines(b"a\nb\n" + b"x" * 5000)
    assert buffer.stats().offered == 0
    assert drain(buffer) == []


@pytest.mark.parametrize("bad", [0, -1, 1.5, True])
def test_bad_batch_size(bad: object) -> None:
    with pytest.raises(ValueError, match="max_events"):
        BufferManager(SMALL).get_batch(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lane_bytes", 100),
        ("lane_bytes", 1.5),
        ("max_batch_bytes", 0),
        ("when_full", "rejects"),
        ("durability", b"process"),
        ("sync_interval", -1),
        ("retry_backoff", float("inf")),
        ("max_retry_backoff", 0.001),
        ("circuit_breaker", None),
        ("monitor", 5),
        ("batching", "x"),
        ("flow_control", object()),
        # promises that a buffer in memory does not keep are refused, not accepted
        ("directory", ""),
        ("durability", Durability.COMMIT),
        ("max_disk_bytes", 1 << 30),
        ("max_attempts", 0),
        ("when_full", WhenFull.DROP_LOWEST_PRIORITY),
    ],
)
def test_config_errors_name_the_field(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field) as caught:
        BufferConfig(**{field: value})  # type: ignore[arg-type]
    assert caught.value.field == field


# ---------------------------------------------------------------- full


def test_reject_says_how_many_and_why() -> None:
    buffer = BufferManager(SMALL)
    admission = buffer.add_events([EVENT] * 6)
    assert admission.accepted == 4
    assert admission.rejected == 2
    assert admission.reason == "full"
    other = buffer.add_events([EVENT], priority=1)
    assert other.accepted == 1, "a full lane concerns no other"
    stats = buffer.stats()
    stats.check()
    assert stats.rejected == {"full": 2}
    assert stats.offered == 7
    lines = buffer.add_lines(b"\n".join([EVENT] * 6), priority=2)
    assert (lines.accepted, lines.consumed, lines.rejected) == (4, 4 * 1001, 2)


def test_drop_oldest_drops_from_the_front_and_counts() -> None:
    dropped: list[Any] = []
    buffer = BufferManager(BufferConfig(lane_bytes=4096, when_full=WhenFull.DROP_OLDEST))
    buffer.on(EventType.EVENTS_DROPPED, dropped.append)
    events = [b"%02d" % i + EVENT for i in range(20)]
    for event in events:
        assert buffer.add_events([event]).accepted == 1
    stats = buffer.stats()
    stats.check()
    kept = drain(buffer)
    assert kept == events[-len(kept) :]
    assert len(kept) >= 3
    assert stats.dropped == {"oldest": 20 - len(kept)}
    assert sum(event.events for event in dropped) == 20 - len(kept)
    assert {event.reason for event in dropped} == {"oldest"}


def test_drop_oldest_never_drops_what_a_consumer_holds() -> None:
    buffer = BufferManager(BufferConfig(lane_bytes=4096, when_full=WhenFull.DROP_OLDEST))
    buffer.add_events([EVENT] * 4)
    batch = buffer.get_batch(max_events=2)
    assert batch is not None
    admission = buffer.add_events([EVENT] * 3)
    assert admission.reason == "full"
    buffer.stats().check()
    assert buffer.stats().dropped.get("oldest", 0) == 0, (
        "dropping what cannot make room would be for nothing"
    )
    batch.ack()
    assert buffer.add_events([EVENT] * 2).accepted == 2


def test_block_waits_for_room() -> None:
    buffer = BufferManager(BufferConfig(lane_bytes=4096, when_full=WhenFull.BLOCK))
    events = [b"%03d" % i + EVENT for i in range(60)]
    admissions: list[Admission] = []
    producer = threading.Thread(target=lambda: admissions.append(buffer.add_events(events)))
    producer.start()
    got: list[bytes] = []
    while len(got) < len(events):
        batch = buffer.get_batch(timeout=30)
        assert batch is not None
        got += batch
        batch.ack()
    producer.join(30)
    assert got == events
    assert admissions[0].accepted == 60
    assert buffer.stats().rejected == {}


def test_a_timeout_ends_the_wait_for_room() -> None:
    buffer = BufferManager(SMALL)
    admission = buffer.add_events([EVENT] * 6, timeout=0.05)
    assert (admission.accepted, admission.rejected, admission.reason) == (4, 2, "full")
    buffer.stats().check()


def test_close_ends_the_wait_for_room() -> None:
    buffer = BufferManager(SMALL)
    admissions: list[Admission] = []
    producer = threading.Thread(
        target=lambda: admissions.append(buffer.add_events([EVENT] * 6, timeout=None))
    )
    producer.start()
    while buffer.stats().accepted < 4:
        producer.join(0.001)
    buffer.close(timeout=0)
    producer.join(30)
    assert not producer.is_alive()
    assert (admissions[0].accepted, admissions[0].rejected, admissions[0].reason) == (
        4,
        2,
        "closed",
    )
    buffer.stats().check()
    assert buffer.stats().resident == 0
