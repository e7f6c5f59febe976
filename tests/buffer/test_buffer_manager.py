"""Basic buffering: in and out, closed, from handlers and coroutines; and the books."""

from __future__ import annotations

import asyncio
import copy
import logging
import pickle
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backpressure import (
    Admission,
    BufferClosed,
    BufferConfig,
    BufferManager,
    ConfigError,
    EventTooLarge,
    EventType,
    Priority,
    WhenFull,
)
from ringbuf import MessageRing
from tests.support.buffers import EVENT, SMALL, drain

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


# ---------------------------------------------------------------- close


def test_close_counts_what_is_lost_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    buffer = BufferManager(SMALL)
    closing: list[Any] = []
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
    seen: list[Any] = []

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
    """A ring that grows whenever its position is read."""

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
    ring = lane.ring
    lane.ring = BusyRing(ring)  # type: ignore[assignment]
    for _ in range(10):
        buffer.stats().check()
    assert buffer.stats().lanes[3].accepted > 10
    lane.ring = ring
    assert len(drain(buffer)) == buffer.stats().accepted
    buffer.close()


def test_positions_are_the_numbers_that_come_next() -> None:
    with BufferManager() as buffer:
        assert buffer.positions() == (0,) * 5
        admission = buffer.add_events([b"a", b"b"], Priority.HIGH)
        assert admission.first_seq == 0
        assert buffer.positions() == (0, 2, 0, 0, 0)
        assert buffer.resident == 2
        batch = buffer.get_batch()
        assert batch is not None
        batch.ack()
        assert (buffer.positions(), buffer.resident) == ((0, 2, 0, 0, 0), 0)


def test_the_burst_is_tuned_as_the_rate_is() -> None:
    with BufferManager() as buffer:
        tuned = buffer.adjust_burst_size(1_000, by="test")
        assert (tuned.setting, tuned.old, tuned.new) == ("burst_size", 2_000_000, 1_000)
        assert buffer.stats().flow_control.burst == 1_000
        with pytest.raises(ConfigError, match="burst"):
            buffer.adjust_burst_size(0)


def test_a_loop_of_ones_own_sleeps_on_a_waiter_and_is_woken() -> None:
    with BufferManager() as buffer:
        stopping = threading.Event()
        woken = threading.Event()

        def wait() -> None:
            while not stopping.is_set():
                buffer.batch_waiter().unless(stopping.is_set).wait(60.0)
            woken.set()

        thread = threading.Thread(target=wait)
        thread.start()
        stopping.set()
        buffer.wake_waiters()
        assert woken.wait(30.0), "slept on"
        thread.join()
        assert not buffer.batch_waiter().done()
        buffer.add_events([b"x"])
        assert buffer.batch_waiter().done()
        buffer.close(timeout=0)


def test_a_caller_may_allow_less_in_a_line_than_the_lane_does() -> None:
    with BufferManager() as buffer:
        assert buffer.add_lines(b"12345\n", max_event_bytes=5).accepted == 1
        with pytest.raises(EventTooLarge) as caught:
            buffer.add_lines(b"1\n123456\n", max_event_bytes=5)
        assert (caught.value.index, caught.value.limit) == (1, 5)
        buffer.close(timeout=0)


def test_a_buffers_length_is_what_it_owes() -> None:
    with BufferManager() as buffer:
        assert len(buffer) == 0
        assert bool(buffer) is True
        buffer.add_events([b"a", b"b"])
        assert len(buffer) == 2
        assert repr(buffer) == "<BufferManager open, 2 events resident>"
        batch = buffer.get_batch(1)
        assert batch is not None
        assert len(buffer) == 2
        batch.ack()
        assert len(buffer) == 1
        buffer.close(timeout=0)
        assert repr(buffer) == "<BufferManager closed, 0 events resident>"


def test_an_admission_is_true_where_nothing_was_rejected() -> None:
    with BufferManager(BufferConfig(lane_bytes=4096)) as buffer:
        assert buffer.add_events([b"x"])
        assert buffer.add_events([])
        assert not buffer.add_events([bytes(500)] * 100)
        buffer.close(timeout=0)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_batch_has_one_holder(copied: Callable[[object], object]) -> None:
    with BufferManager() as buffer:
        buffer.add_events([b"one"])
        batch = buffer.get_batch()
        assert batch is not None
        with pytest.raises(TypeError, match="only one holder can ack it"):
            copied(batch)
        assert buffer.get_batch() is None, "a copy gave it back"
        batch.ack()


def test_an_enum_may_be_given_by_its_value() -> None:
    config = BufferConfig(when_full="drop_oldest")  # type: ignore[arg-type]
    assert config.when_full is WhenFull.DROP_OLDEST
    with pytest.raises(ConfigError, match="when_full: must be one of block, reject"):
        BufferConfig(when_full="sometimes")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="durability"):
        BufferConfig(durability=3)  # type: ignore[arg-type]
