"""Basic buffering: in, out, ack, nack, full, closed."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from backpressure import (
    Admission,
    BatchStateError,
    BufferClosed,
    BufferConfig,
    BufferManager,
    ConfigError,
    Durability,
    EventTooLarge,
    EventType,
    InvalidEvents,
    Priority,
    WhenFull,
)
from backpressure.testing import FakeClock
from ringbuf import MessageRing
from tests.support.buffers import drain

SMALL = BufferConfig(lane_bytes=4096)

EVENT = b"x" * 1000


# ---------------------------------------------------------------- in and out


def test_what_goes_in_comes_out_in_order() -> None:
    buffer = BufferManager(SMALL)
    assert buffer.add_events([b"a", "bé", b""]) == Admission(3, 0, None, 0.0, 0)
    assert buffer.add_lines(b"c\r\n\nd\0\xff") == Admission(3, 0, None, 0.0, 3, 7)
    assert buffer.add_events(np.array([b"e", b"f"])).first_seq == 6
    assert drain(buffer) == [b"a", "bé".encode(), b"", b"c\r", b"", b"d\0\xff", b"e", b"f"]
    stats = buffer.stats()
    stats.check()
    assert (stats.offered, stats.accepted, stats.acked, stats.resident) == (8, 8, 8, 0)


def test_lines_that_are_not_final_are_left() -> None:
    buffer = BufferManager(SMALL)
    assert buffer.add_lines(b"a\nbc", final=False) == Admission(1, 0, None, 0.0, 0, 2)
    assert buffer.add_lines(b"", final=False) == Admission(0, 0, None, 0.0, None, 0)
    assert drain(buffer) == [b"a"]


def test_the_most_urgent_goes_first_and_none_starves() -> None:
    buffer = BufferManager()
    for priority in Priority:
        buffer.add_events([b"%d" % priority] * 2, priority=priority)
    assert [int(event) for event in drain(buffer)] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]

    buffer.add_events([b"patient"], priority=Priority.BACKGROUND)
    turns = 0
    while True:
        buffer.add_events([b"urgent"] * 3, priority=1)
        batch = buffer.get_batch(max_events=1)
        assert batch is not None
        batch.ack()
        turns += 1
        if batch.priority == Priority.BACKGROUND:
            break
        assert turns < 100, "background starves"
    assert turns > 10, "urgent events do not go first"


def test_batch_shows_what_it_holds() -> None:
    buffer = BufferManager(SMALL)
    buffer.add_events([b"ab", b"", b"c"], priority=2)
    batch = buffer.get_batch()
    assert batch is not None
    assert (len(batch), batch.nbytes, batch.priority, batch.first_seq, batch.attempt) == (
        3,
        3,
        2,
        0,
        1,
    )
    assert batch[0] == b"ab"
    assert batch[1:].tolist() == [b"", b"c"]
    assert batch.tolist() == list(batch) == [b"ab", b"", b"c"]
    assert batch.join() == b"ab\n\nc"
    assert batch.join(b", ", b".") == b"ab, , c."
    assert batch.data.tobytes() == b"abc"
    assert batch.offsets.tolist() == [0, 2, 2, 3]
    assert batch.id.endswith("-2-0+3")
    assert "3 events" in repr(batch)
    batch.ack()


def test_batches_are_bounded_in_events_and_bytes() -> None:
    buffer = BufferManager(BufferConfig(lane_bytes=1 << 16, max_batch_bytes=2500))
    buffer.add_events([EVENT] * 6)
    sizes = []
    for most in (1, None, None, 100):
        batch = buffer.get_batch(most)
        assert batch is not None
        sizes.append(len(batch))
        batch.ack()
    assert sizes == [1, 2, 2, 1]


# ---------------------------------------------------------------- ack and nack


def test_a_nacked_batch_comes_again_in_its_place_after_a_growing_pause() -> None:
    clock = FakeClock()
    buffer = BufferManager(BufferConfig(retry_backoff=1.0, max_retry_backoff=4.0), clock=clock)
    buffer.add_events([b"a", b"b"])
    buffer.add_events([b"c"])
    seen = []
    for attempt in range(1, 6):
        batch = buffer.get_batch(max_events=2)
        assert batch is not None
        assert batch.tolist() == [b"a", b"b"]
        assert batch.attempt == attempt
        seen.append(batch.id)
        batch.nack(OSError("sink is down"))
        pause = min(2.0 ** (attempt - 1), 4.0)
        clock.advance(pause * 0.49)
        assert buffer.get_batch() is None, "nothing newer may overtake it, and it still pauses"
        clock.advance(pause * 0.52)
    assert len(set(seen)) == 1, "an id must survive redelivery"
    assert drain(buffer) == [b"a", b"b", b"c"]
    stats = buffer.stats()
    stats.check()
    assert (stats.redelivered, stats.batches_nacked) == (10, 5)


class Longest(random.Random):
    """The worst luck with jitter."""

    def uniform(self, a: float, b: float) -> float:
        return max(a, b)


def fail_alone(buffer: BufferManager, clock: FakeClock, seconds: float) -> int:
    """One consumer, whose sink refuses everything at once; how many batches it was given."""
    attempts, end = 0, clock.now() + seconds
    while clock.now() < end:
        batch = buffer.get_batch()
        if batch is None:
            clock.advance(0.01)
        else:
            batch.nack()
            attempts += 1
    return attempts


def test_a_lone_consumer_of_a_dead_sink_opens_the_circuit_with_all_defaults() -> None:
    """Pauses that double up to 5 s would leave the breaker's window of 5 s short of results for ever."""
    clock = FakeClock()
    buffer = BufferManager(clock=clock, rng=Longest())
    buffer.add_events([b"x"])
    attempts = fail_alone(buffer, clock, 4.0)
    assert buffer.is_circuit_breaker_open()
    assert attempts == buffer.config.circuit_breaker.min_requests
    # From then on single batches ask whether it is back, no oftener than the breaker's probes would.
    assert fail_alone(buffer, clock, 120.0) <= 20 * 4
    assert buffer.is_circuit_breaker_open()
    clock.advance(buffer.stats().circuit_breaker.retry_after + 5.0)
    batch = buffer.get_batch()
    assert batch is not None
    batch.ack()
    assert not buffer.is_circuit_breaker_open()


def test_a_bad_batch_among_good_ones_pauses_as_long_as_ever() -> None:
    clock = FakeClock()
    buffer = BufferManager(clock=clock, rng=Longest())
    attempts, began = 0, clock.now()
    for step in range(650):
        if step == 50:
            buffer.add_events([b"bad"], priority=1)
        buffer.add_events([b"good"])
        while (batch := buffer.get_batch()) is not None:
            bad = batch[0] == b"bad"
            attempts += bad
            batch.nack() if bad else batch.ack()
        clock.advance(0.1)
    assert clock.now() - began == pytest.approx(65.0)
    assert not buffer.is_circuit_breaker_open()
    assert 15 <= attempts <= 25


def test_a_longest_pause_that_was_set_is_kept_while_nothing_succeeds() -> None:
    clock = FakeClock()
    buffer = BufferManager(BufferConfig(max_retry_backoff=5.0), clock=clock, rng=Longest())
    buffer.add_events([b"x"])
    assert fail_alone(buffer, clock, 60.0) < 25
    assert not buffer.is_circuit_breaker_open()


def test_batches_out_at_the_same_time_come_back_in_order() -> None:
    clock = FakeClock()
    buffer = BufferManager(BufferConfig(retry_backoff=0.0), clock=clock)
    buffer.add_events([b"%d" % i for i in range(6)])
    out = [buffer.get_batch(max_events=2) for _ in range(3)]
    for index in (2, 0, 1):
        batch = out[index]
        assert batch is not None
        batch.nack()
    clock.advance(1)
    assert drain(buffer) == [b"%d" % i for i in range(6)]


def test_a_batch_settles_once() -> None:
    buffer = BufferManager(SMALL)
    buffer.add_events([b"a"])
    batch = buffer.get_batch()
    assert batch is not None
    batch.ack()
    for again in (batch.ack, batch.nack):
        with pytest.raises(BatchStateError, match="before"):
            again()
    stats = buffer.stats()
    stats.check()
    assert (stats.acked, stats.batches_acked, stats.batches_nacked) == (1, 1, 0)


def test_with_acks_and_an_exception_nacks() -> None:
    clock = FakeClock()
    buffer = BufferManager(SMALL, clock=clock)
    buffer.add_events([b"a"])
    batch = buffer.get_batch()
    assert batch is not None
    with pytest.raises(OSError, match="down"), batch:
        raise OSError("down")
    clock.advance(10)
    again = buffer.get_batch()
    assert again is not None
    assert again.attempt == 2
    with again:
        pass
    assert buffer.stats().acked == 1
    buffer.add_events([b"b"])
    third = buffer.get_batch()
    assert third is not None
    with third:
        third.ack()  # settled inside: the end of the block changes nothing
    assert buffer.stats().acked == 2


def test_a_settled_batch_does_not_speak_for_its_redelivery() -> None:
    """The old object may live longer than the pause, or be collected while its events are out again."""
    clock = FakeClock()
    buffer = BufferManager(SMALL, clock=clock)
    buffer.add_events([b"a"])
    old = buffer.get_batch()
    assert old is not None
    old.nack()
    clock.advance(10)
    new = buffer.get_batch()
    assert new is not None
    assert (old.attempt, new.attempt) == (1, 2)
    with pytest.raises(BatchStateError):
        old.ack()
    del old
    gc.collect()
    assert buffer.get_batch() is None, "its events are out"
    assert buffer.stats().in_flight == 1
    new.ack()
    assert buffer.stats().acked == 1


def test_a_lost_batch_is_delivered_again() -> None:
    buffer = BufferManager(SMALL)
    buffer.add_events([b"a", b"b"])
    batch = buffer.get_batch()
    assert batch is not None
    del batch
    gc.collect()
    buffer.stats().check()
    assert buffer.stats().retrying == 2
    assert drain(buffer) == [b"a", b"b"]


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("bad", [0, 6, -1, 2.0, "high", None, True])
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
        ("when_full", "reject"),
        ("durability", "process"),
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
        ("max_attempts", 3),
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
    dropped = []
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
        "dropping what can not make room would be for nothing"
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


# ---------------------------------------------------------------- close


def test_close_counts_what_is_lost_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    buffer = BufferManager(SMALL)
    closing = []
    buffer.on(EventType.BUFFER_CLOSING, closing.append)
    buffer.add_events([b"a", b"b", b"c"])
    held = buffer.get_batch(max_events=1)
    assert held is not None
    with caplog.at_level(logging.WARNING, "backpressure"):
        stats = buffer.close(timeout=0)
    stats.check()
    assert (stats.dropped, stats.resident, stats.closed) == ({"closed": 3}, 0, True)
    assert "3 events not delivered" in caplog.text
    assert closing[0].resident == 3
    with pytest.raises(BufferClosed):
        held.ack()
    with pytest.raises(BufferClosed):
        buffer.add_events([b"d"])
    with pytest.raises(BufferClosed):
        buffer.get_batch()
    assert buffer.close().dropped == {"closed": 3}


def test_close_waits_for_consumers() -> None:
    buffer = BufferManager(SMALL)
    buffer.add_events([b"a", b"b"])
    got: list[bytes] = []

    def consume() -> None:
        try:
            while True:
                batch = buffer.get_batch(max_events=1, timeout=None)
                assert batch is not None
                got.extend(batch)
                batch.ack()
        except BufferClosed:
            pass

    consumer = threading.Thread(target=consume)
    consumer.start()
    stats = buffer.close(timeout=30)
    consumer.join(30)
    assert not consumer.is_alive()
    assert got == [b"a", b"b"]
    assert stats.dropped == {}


def test_get_batch_wakes_for_events() -> None:
    buffer = BufferManager(SMALL)
    threading.Timer(0.05, lambda: buffer.add_events([b"a"])).start()
    batch = buffer.get_batch(timeout=30)
    assert batch is not None
    batch.ack()
    assert buffer.get_batch(timeout=0.01) is None


# ---------------------------------------------------------------- handlers


def test_a_handler_that_raises_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    buffer = BufferManager(SMALL)
    seen = []

    def broken(event: object) -> None:
        raise RuntimeError("handler is broken")

    buffer.on(EventType.RATE_CHANGED, broken)
    off = buffer.on(EventType.RATE_CHANGED, seen.append)
    buffer.adjust_flow_control_rate(1000)
    off()
    buffer.adjust_flow_control_rate(2000)
    assert [(event.old, event.new) for event in seen] == [(20_000_000, 1000)]
    assert buffer.stats().handler_errors == 2
    assert "handler is broken" in caplog.text
    with pytest.raises(TypeError):
        buffer.on("rate_changed", seen.append)  # type: ignore[arg-type]


def test_a_handler_may_call_the_buffer() -> None:
    """No lock is held while it runs: otherwise this hangs."""
    buffer = BufferManager(SMALL)
    seen = []
    buffer.on(EventType.RATE_CHANGED, lambda event: seen.append(buffer.stats().offered))
    buffer.on(EventType.BUFFER_CLOSING, lambda event: seen.append(buffer.stats().offered))
    buffer.add_events([b"a"])
    buffer.adjust_flow_control_rate(10)
    buffer.close(timeout=0)
    assert seen == [1, 1]


# ---------------------------------------------------------------- asyncio


def test_the_asynchronous_face() -> None:
    async def main() -> list[bytes]:
        buffer = BufferManager(SMALL)
        got: list[bytes] = []

        async def consume() -> None:
            async for batch in buffer.aio.batches():
                got.extend(batch)
                batch.ack()

        consumer = asyncio.create_task(consume())
        events = [b"%03d" % i + EVENT for i in range(40)]
        admission = await buffer.aio.add_events(events, timeout=30)
        assert admission.accepted == 40
        assert (await buffer.aio.add_lines(b"x\ny\n", timeout=30)).consumed == 4
        await buffer.aio.close(timeout=30)
        await asyncio.wait_for(consumer, 30)
        assert buffer.stats().dropped == {}
        assert got == [*events, b"x", b"y"]
        assert await BufferManager(SMALL).aio.get_batch(timeout=0.01) is None
        return got

    assert len(asyncio.run(main())) == 42


def test_a_cancelled_wait_leaves_the_books_right() -> None:
    async def main() -> None:
        buffer = BufferManager(SMALL)
        task = asyncio.create_task(buffer.aio.add_events([EVENT] * 6, timeout=None))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        stats = buffer.stats()
        stats.check()
        assert (stats.accepted, stats.rejected) == (4, {"full": 2})
        getter = asyncio.create_task(buffer.aio.get_batch(timeout=None))
        batch = await getter
        assert batch is not None
        assert len(batch) == 4

    asyncio.run(main())


# ---------------------------------------------------------------- the books


class BusyRing:
    """A ring into which somebody pushes whenever anybody looks how far it has come."""

    def __init__(self, ring: MessageRing) -> None:
        self._ring = ring

    @property
    def next_seq(self) -> int:
        self._ring.try_push(b"one more")
        return self._ring.next_seq

    def __getattr__(self, name: str) -> object:
        return getattr(self._ring, name)


on_linux = [
    pytest.mark.skipif(sys.platform != "linux", reason="a directory needs Linux"),
    pytest.mark.platform,
]


@pytest.mark.parametrize("in_a_directory", [False, pytest.param(True, marks=on_linux)])
def test_the_books_balance_while_producers_go_on(tmp_path: Path, in_a_directory: bool) -> None:
    buffer = BufferManager(
        BufferConfig(lane_bytes=1 << 16, directory=tmp_path / "buffer" if in_a_directory else None)
    )
    lane = buffer._lanes[2]
    lane.ring = BusyRing(lane.ring)  # type: ignore[assignment]
    for _ in range(10):
        buffer.stats().check()
    assert buffer.stats().lanes[3].accepted > 10
    lane.ring = lane.ring._ring
    assert len(drain(buffer)) == buffer.stats().accepted
    buffer.close()
