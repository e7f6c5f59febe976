"""What the command, the service and the logging handler need of a Delivery: steps, a
flush, a linger, and order through failures.
"""

from __future__ import annotations

import threading
import time

import pytest

from backpressure import (
    AlreadyDelivering,
    Batch,
    BatchRejected,
    BufferClosed,
    BufferConfig,
    BufferManager,
    SinkGone,
    SinkUnavailable,
)
from backpressure.delivery.delivery import Delivery
from backpressure.testing import FailingSink, MemorySink
from tests.support.threads import until

QUICK = BufferConfig(retry_backoff=0.001, max_retry_backoff=0.002)


class Gate(MemorySink):
    """Takes nothing before it is allowed to."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.open = threading.Event(), threading.Event()

    def send(self, batch: Batch) -> None:
        self.entered.set()
        assert self.open.wait(30)
        super().send(batch)


# ------------------------------------------------------------ by steps


def test_by_steps_each_batch_goes_out_in_the_calling_thread() -> None:
    threads: list[threading.Thread] = []
    buffer = BufferManager()
    delivery = Delivery.begin(
        buffer,
        lambda batch: threads.append(threading.current_thread()),
        by_steps=True,
        max_events=1,
    )
    assert delivery.running
    assert not delivery.step()
    buffer.add_events([b"one", b"two"])
    assert delivery.step()
    assert delivery.step(1.0)
    assert not delivery.step()
    assert threads == [threading.current_thread()] * 2
    with pytest.raises(AlreadyDelivering):
        buffer.deliver_to(MemorySink())
    assert delivery.stop()
    assert not delivery.running


def test_by_steps_a_stop_delivers_what_is_left_and_closes_the_sink() -> None:
    buffer, sink = BufferManager(QUICK), MemorySink()
    outage = [SinkUnavailable("away"), OSError("still away")]
    failing = FailingSink(sink, 1.0, error=lambda batch: outage.pop() if outage else None)
    delivery = Delivery.begin(buffer, failing, by_steps=True)
    buffer.add_events([b"one", b"two"])
    assert delivery.stop(30.0)
    assert sink.events == [b"one", b"two"]
    assert sink.closed


def test_by_steps_a_sink_that_is_gone_ends_it() -> None:
    buffer, sink = BufferManager(), MemorySink()
    delivery = Delivery.begin(
        buffer, FailingSink(sink, 1.0, error=lambda batch: SinkGone("torn down")), by_steps=True
    )
    buffer.add_events([b"one"])
    assert delivery.step()
    assert str(delivery.error) == "torn down"
    assert not delivery.running
    assert sink.closed
    assert not delivery.step()
    assert buffer.resident == 1
    assert delivery.wait(0.0)


def test_by_steps_a_closed_buffer_says_so() -> None:
    buffer = BufferManager()
    delivery = Delivery.begin(buffer, MemorySink(), by_steps=True)
    buffer.close()
    with pytest.raises(BufferClosed):
        delivery.step(1.0)


# ------------------------------------------------------------ flush


def test_a_flush_waits_for_what_is_there_and_for_no_more() -> None:
    buffer, sink = BufferManager(), Gate()
    delivery = buffer.deliver_to(sink)
    assert delivery.flush(0.0), "nothing is there"
    buffer.add_events([b"one"])
    assert sink.entered.wait(30)
    assert not delivery.flush(0.01)
    results: list[bool] = []
    waiting = threading.Thread(target=lambda: results.append(delivery.flush(None)))
    waiting.start()
    until(lambda: delivery._flushing)
    sink.open.set()
    waiting.join(30)
    assert results == [True]
    assert sink.events == [b"one"]
    assert delivery.running
    buffer.close()


def test_a_flush_asks_a_sink_that_is_back_at_once() -> None:
    config = BufferConfig(retry_backoff=3600.0, max_retry_backoff=3600.0)
    buffer, sink = BufferManager(config), MemorySink()
    outage = [OSError("away")]
    delivery = buffer.deliver_to(
        FailingSink(sink, 1.0, error=lambda batch: outage.pop() if outage else None)
    )
    buffer.add_events([b"one"])
    until(lambda: buffer.stats().retrying)
    assert delivery.flush(30.0)
    assert sink.events == [b"one"]
    buffer.close()


@pytest.mark.parametrize("by_steps", [False, True])
def test_who_hurries_has_the_sink_asked_from_then_on(by_steps: bool) -> None:
    config = BufferConfig(retry_backoff=3600.0, max_retry_backoff=3600.0)
    buffer, sink = BufferManager(config), MemorySink()
    outage = [OSError("away")] * 3
    failing = FailingSink(sink, 1.0, error=lambda batch: outage.pop() if outage else None)
    delivery = Delivery.begin(buffer, failing, by_steps=by_steps)
    buffer.add_events([b"one"])
    if by_steps:
        delivery.step(30.0)
    until(lambda: buffer.stats().retrying)
    delivery.hurry()
    delivery.hurry()

    def delivered() -> object:
        if by_steps:
            delivery.step(0.01)
        return sink.events

    until(delivered)
    assert delivery.stop(30.0)
    assert not buffer._sink.asked
    buffer.close()


def test_a_flush_ends_with_the_delivery() -> None:
    buffer = BufferManager()
    delivery = buffer.deliver_to(
        FailingSink(MemorySink(), 1.0, error=lambda batch: SinkGone("torn down"))
    )
    buffer.add_events([b"one"])
    assert not delivery.flush(None)
    buffer.close(timeout=0)


@pytest.mark.parametrize("by_steps", [False, True])
def test_a_sink_that_flushes_is_not_waited_for(by_steps: bool) -> None:
    buffer, seen = BufferManager(), []

    def send(batch: Batch) -> None:
        seen.append(delivery.flush(60.0))

    delivery = Delivery.begin(buffer, send, by_steps=by_steps)
    buffer.add_events([b"one"])
    if by_steps:
        delivery.step(30.0)
    until(lambda: seen)
    assert seen == [False]
    assert delivery.stop(30.0)
    buffer.close()


@pytest.mark.parametrize("hangs", [False, True])
def test_what_a_stop_says_of_what_stays_is_true(
    hangs: bool, caplog: pytest.LogCaptureFixture
) -> None:
    buffer, gate = BufferManager(), Gate()
    away = FailingSink(MemorySink(), 1.0)
    delivery = buffer.deliver_to(gate if hangs else away)
    buffer.add_events([b"one"])
    until(lambda: gate.entered.is_set() if hangs else away.failures)
    assert not delivery.stop(0.1)
    assert "1 events stay in the buffer" in caplog.text
    assert ("a call of the sink goes on" in caplog.text) == hangs
    gate.open.set()
    assert delivery.wait(30.0)
    buffer.close(timeout=0)


# ------------------------------------------------------------ linger


def test_events_collect_between_two_batches() -> None:
    buffer, sink = BufferManager(), MemorySink()
    delivery = Delivery.begin(buffer, sink, linger=3600.0)
    buffer.add_events([b"0"])
    until(lambda: sink.events)
    for number in range(1, 100):
        buffer.add_events([b"%d" % number])
    assert delivery.flush(30.0), "which ends the pause"
    assert len(sink.batch_ids) == 2
    buffer.add_events([b"100"])
    begun = time.monotonic()
    assert delivery.stop(30.0)
    assert time.monotonic() - begun < 20.0
    assert len(sink.events) == 101


# ------------------------------------------------------------ order


@pytest.mark.parametrize("rejects_events", [True, False])
def test_a_sink_that_rejects_no_event_gets_all_in_order_through_every_failure(
    rejects_events: bool,
) -> None:
    buffer, sink = BufferManager(QUICK), MemorySink()
    sent: list[int] = []

    def fail(batch: Batch) -> Exception | None:
        sent.append(len(batch))
        return OSError("disk") if len(sent) <= 6 else None

    failing = FailingSink(sink, 1.0, error=fail)
    failing.rejects_events = rejects_events
    lines = [b"%d" % number for number in range(64)]
    buffer.add_events(lines)
    delivery = Delivery.begin(buffer, failing)
    assert delivery.flush(30.0)
    assert sorted(sink.events) == sorted(lines)
    if rejects_events:
        assert min(sent) < 64, "it looks for an event that is at fault"
    else:
        assert sink.events == lines
        assert set(sent) == {64}
    buffer.close()


def test_what_is_rejected_is_found_all_the_same() -> None:
    buffer, sink = BufferManager(), MemorySink()
    failing = FailingSink(
        sink, 1.0, error=lambda batch: BatchRejected("bad") if b"bad" in batch.tolist() else None
    )
    failing.rejects_events = False
    with buffer.deliver_to(failing):
        buffer.add_events([b"a", b"bad", b"b"])
    assert sink.events == [b"a", b"b"]
    assert buffer.stats().dead_lettered == 1


# ------------------------------------------------------------ workers


def test_more_workers_where_they_pay() -> None:
    lock = threading.Lock()
    now = most = 0

    class Slow(MemorySink):
        def send(self, batch: Batch) -> None:
            nonlocal now, most
            with lock:
                now += 1
                most = max(most, now)
            time.sleep(0.01)
            with lock:
                now -= 1
            super().send(batch)

    buffer = BufferManager()
    delivery = buffer.deliver_to(Slow(max_concurrency=4), workers=8, max_events=1)
    buffer.add_events([b"x"] * 100_000)
    until(lambda: most >= 2)
    assert most <= delivery.stats().workers == 4
    buffer.close(timeout=0)
