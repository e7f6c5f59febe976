"""Delivery in threads: whatever the sink does, what was accepted is delivered."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backpressure import (
    AlreadyDelivering,
    Batch,
    BatchRejected,
    BufferClosed,
    BufferConfig,
    BufferManager,
    Delivery,
    Event,
    EventType,
    SinkGone,
    SinkUnavailable,
)
from backpressure.testing import FakeClock, MemorySink
from tests.support.buffers import numbered
from tests.support.threads import background, in_thread, until


class Switch:
    """A sink that fails while `error` is set."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error
        self.events: list[bytes] = []
        self.calls = 0
        self.closed = 0
        self.most = 0
        self._in = 0

    def send(self, batch: Batch) -> None:
        self.calls += 1
        self._in += 1
        self.most = max(self.most, self._in)
        try:
            if self.error is not None:
                raise self.error
            self.events += batch.tolist()
        finally:
            self._in -= 1

    def close(self) -> None:
        self.closed += 1


def test_it_delivers_and_ends_with_the_buffer() -> None:
    sink = Switch()
    with BufferManager() as buffer:
        delivery = buffer.deliver_to(sink)
        assert isinstance(delivery, Delivery)
        assert delivery.running
        assert buffer.delivery is delivery
        buffer.add_events(numbered(1000))
    assert sink.events == numbered(1000)
    assert sink.closed == 1
    assert not delivery.running
    assert delivery.error is None
    stats = delivery.stats()
    assert (stats.events_taken, stats.in_flight, stats.failures) == (1000, 0, 0)


def test_a_function_is_a_sink_and_stop_leaves_the_buffer_open() -> None:
    got: list[bytes] = []
    buffer = BufferManager()
    buffer.add_events(numbered(10))
    with buffer.deliver_to(got.extend) as delivery:
        pass
    assert got == numbered(10)
    assert not delivery.running
    assert buffer.add_events([b"more"]).accepted == 1
    with buffer.deliver_to(got.extend):
        pass
    assert got == [*numbered(10), b"more"]
    buffer.close()


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a bug"),
        OSError("away"),
        SinkUnavailable("busy"),
        SystemExit(3),
        KeyboardInterrupt(),
        GeneratorExit(),
        asyncio.CancelledError(),
        ExceptionGroup("several", [OSError("one"), ValueError("two")]),
        BaseExceptionGroup("odd", [SystemExit(1)]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_it_survives_whatever_the_sink_raises(error: BaseException) -> None:
    sink = Switch(error)
    with BufferManager() as buffer:
        delivery = buffer.deliver_to(sink)
        buffer.add_events(numbered(20))
        until(lambda: sink.calls >= 4)
        assert delivery.running
        assert buffer.stats().resident == 20
        sink.error = None
    assert sink.events == numbered(20)


def test_a_sink_that_is_back_gets_what_close_has_time_for() -> None:
    """The circuit has opened, and its clock says to wait."""
    sink = Switch(OSError("away"))
    buffer = BufferManager()
    buffer.deliver_to(sink)
    buffer.add_events(numbered(100))
    until(buffer.is_circuit_breaker_open)
    sink.error = None
    stats = buffer.close(timeout=30.0)
    assert sink.events == numbered(100)
    assert not stats.dropped


def test_a_sink_that_comes_back_while_close_waits() -> None:
    sink = Switch(OSError("away"))
    buffer = BufferManager()
    buffer.deliver_to(sink)
    buffer.add_events(numbered(100))
    until(buffer.is_circuit_breaker_open)
    threading.Timer(0.5, lambda: setattr(sink, "error", None)).start()
    buffer.close(timeout=30.0)
    assert sorted(sink.events) == numbered(100)


def test_close_keeps_its_deadline_and_says_what_stays(caplog: pytest.LogCaptureFixture) -> None:
    sink = Switch(OSError("away"))
    buffer = BufferManager()
    buffer.deliver_to(sink)
    buffer.add_events(numbered(100))
    until(lambda: sink.calls > 0)
    began = time.monotonic()
    stats = buffer.close(timeout=0.3)
    assert time.monotonic() - began < 5.0
    assert stats.dropped == {"closed": 100}
    assert "100 events not delivered" in caplog.text


def test_stop_without_drain_ends_after_the_batch_that_is_being_sent() -> None:
    begun, go_on = threading.Event(), threading.Event()
    got: list[bytes] = []

    def send(batch: Batch) -> None:
        begun.set()
        go_on.wait(30.0)
        got.extend(batch)

    buffer = BufferManager()
    buffer.add_events(numbered(10))
    delivery = buffer.deliver_to(send, max_events=2)
    assert begun.wait(30.0)
    assert not delivery.stop(timeout=0.05, drain=False), "a call of the sink goes on"
    assert delivery.running
    go_on.set()
    assert delivery.wait(30.0)
    assert got == numbered(10)[:2]
    assert buffer.stats().resident == 8
    buffer.close(timeout=0)


def test_flush_asks_the_sink_at_once() -> None:
    sink = Switch(OSError("away"))
    buffer = BufferManager()
    buffer.deliver_to(sink)
    buffer.add_events([b"x"])
    until(buffer.is_circuit_breaker_open)
    # Long enough for the open time to have grown.
    until(lambda: buffer.stats().circuit_breaker.retry_after > 0.5)
    calls = sink.calls
    buffer.flush()
    until(lambda: sink.calls > calls, 0.45)
    sink.error = None
    buffer.close()
    assert sink.events == [b"x"]


def test_flush_and_stop_wait_for_what_is_there_not_for_as_much_of_what_comes() -> None:
    sink = MemorySink()
    with BufferManager() as buffer:
        buffer.add_events([b"held"])
        held = buffer.get_batch()
        assert held is not None
        delivery = buffer.deliver_to(sink)

        def add_meanwhile() -> None:
            until(lambda: buffer._sink.asked)
            buffer.add_events([b"later"])

        for end, seconds in ((delivery.flush, 0.3), (delivery.stop, 0.3)):
            with background(add_meanwhile):
                assert not end(timeout=seconds)
        assert sink.events[0] == b"later"
        held.ack()
        assert delivery.flush(timeout=0.0)
        assert delivery.stop(timeout=30.0)


@pytest.mark.parametrize("where", ["memory", "directory"])
def test_what_is_settled_is_known_event_by_event(tmp_path: Path, where: str) -> None:
    directory = tmp_path / "buffer" if where == "directory" else None
    clock = FakeClock()
    buffer = BufferManager(BufferConfig(directory=directory, retry_backoff=1.0), clock=clock)
    outlet = buffer._outlet
    assert outlet.has_settled(outlet.ends())
    buffer.add_events([b"a", b"b", b"c"])
    before = outlet.ends()
    buffer.add_events([b"d", b"e"], priority=1)
    if directory is not None:
        buffer.flush()
    first, second, third = (buffer.get_batch(2) for _ in range(3))
    assert first is not None
    assert second is not None
    assert third is not None
    assert [first.tolist(), second.tolist(), third.tolist()] == [[b"d", b"e"], [b"a", b"b"], [b"c"]]
    first.ack()
    third.ack()
    assert not outlet.has_settled(before), "with a consumer"
    second.nack(OSError("away"))
    assert not outlet.has_settled(before), "pauses"
    clock.advance(2.0)
    again = buffer.get_batch()
    assert again is not None
    again.settle(retry=[1])
    assert not outlet.has_settled(before), "a part of it"
    clock.advance(2.0)
    last = buffer.get_batch()
    assert last is not None
    last.ack()
    assert outlet.has_settled(before)
    buffer.add_events([b"f"])
    assert outlet.has_settled(before)
    assert not outlet.has_settled(outlet.ends())
    buffer.close(timeout=0)


def test_one_delivery_at_a_time() -> None:
    with BufferManager() as buffer:
        first = buffer.deliver_to(MemorySink())
        with pytest.raises(AlreadyDelivering, match="MemorySink already"):
            buffer.deliver_to(MemorySink())
        assert first.stop()
        second = buffer.deliver_to(MemorySink())
        assert second.running
    with pytest.raises(BufferClosed):
        buffer.deliver_to(MemorySink())


async def coroutine(batch: Batch) -> None: ...


class AsyncCallable:
    async def __call__(self, batch: Batch) -> None: ...


class AsyncSend:
    async def send(self, batch: Batch) -> None: ...


@pytest.mark.parametrize("sink", [coroutine, AsyncCallable(), AsyncSend()])
def test_a_coroutine_function_is_refused(sink: Any) -> None:
    with BufferManager() as buffer:
        with pytest.raises(TypeError, match="aio"):
            buffer.deliver_to(sink)
        assert buffer.delivery is None


class Future:
    def __await__(self) -> Any:
        yield


@pytest.mark.parametrize("answer", [lambda: coroutine(None), Future])  # type: ignore[arg-type]
def test_an_awaitable_that_comes_back_is_no_ack(answer: Callable[[], Any]) -> None:
    with BufferManager() as buffer:
        delivery = buffer.deliver_to(lambda batch: answer())
        buffer.add_events([b"x"])
        assert delivery.wait(30.0)
        assert isinstance(delivery.error, TypeError)
        assert buffer.stats().resident == 1
        assert buffer.stats().acked == 0
        buffer.close(timeout=0)


@pytest.mark.parametrize("sink", [None, 5, "file", MemorySink, object()])
def test_no_sink_at_all(sink: Any) -> None:
    with BufferManager() as buffer, pytest.raises(TypeError, match="send"):
        buffer.deliver_to(sink)


@pytest.mark.parametrize(
    "mistake", [{"workers": 0}, {"workers": 1.5}, {"workers": True}, {"max_events": 0}]
)
def test_mistakes_are_named(mistake: dict[str, Any]) -> None:
    (name,) = mistake
    with BufferManager() as buffer, pytest.raises(ValueError, match=name):
        buffer.deliver_to(MemorySink(), **mistake)


def test_a_sink_that_is_gone_ends_the_delivery(caplog: pytest.LogCaptureFixture) -> None:
    sink = Switch(SinkGone("the pipe has no reader"))
    seen: list[Event] = []
    buffer = BufferManager()
    buffer.on(EventType.DELIVERY_ENDED, seen.append)
    delivery = buffer.deliver_to(sink)
    buffer.add_events(numbered(3))
    assert delivery.wait(30.0)
    assert not delivery.running
    assert delivery.error is sink.error
    assert (sink.calls, sink.closed) == (1, 1)
    assert "3 events stay in the buffer: the pipe has no reader" in caplog.text
    assert [one.error for one in seen] == ["the pipe has no reader"]  # type: ignore[attr-defined]
    began = time.monotonic()
    buffer.close(timeout=60.0)
    assert time.monotonic() - began < 30.0, "nothing would come of waiting"


def test_failing_and_recovering_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "backpressure")
    sink = Switch(OSError("away"))
    seen: list[str] = []
    with BufferManager() as buffer:
        for kind in (EventType.SINK_FAILING, EventType.SINK_RECOVERED):
            buffer.on(kind, lambda event: seen.append(event.type.value))
        delivery = buffer.deliver_to(sink)
        buffer.add_events(numbered(3))
        until(lambda: sink.calls >= 5)
        stats = delivery.stats()
        assert stats.failures >= 4
        assert stats.failing_for > 0
        assert stats.last_error == "away"
        sink.error = None
        buffer.flush()
        until(lambda: len(sink.events) == 3)
        until(lambda: seen == ["sink_failing", "sink_recovered"])
    assert caplog.text.count("fails, events are kept: away") == 1
    assert caplog.text.count("works again") == 1


def test_classify_goes_before_the_table() -> None:
    asked: list[BaseException] = []

    def classify(error: BaseException) -> object:
        asked.append(error)
        return BatchRejected if isinstance(error, KeyError) else None

    def send(batch: Batch) -> None:
        if b"bad" in batch.tolist():
            raise KeyError("a field is missing")
        got.extend(batch)

    got: list[bytes] = []
    with BufferManager() as buffer:
        buffer.deliver_to(send, classify=classify)
        buffer.add_events([b"good", b"bad", b"fine"])
        until(lambda: buffer.stats().dead_lettered == 1)
        assert len(buffer.dead_letters or ()) == 1
    assert got == [b"good", b"fine"]
    assert all(isinstance(error, KeyError) for error in asked)


@pytest.mark.parametrize("answer", ["rejected", 5, ZeroDivisionError])
def test_a_classify_that_fails_loses_nothing(answer: Any, caplog: pytest.LogCaptureFixture) -> None:
    def classify(error: BaseException) -> object:
        if answer is ZeroDivisionError:
            raise ZeroDivisionError
        return answer

    sink = Switch(OSError("away"))
    with BufferManager() as buffer:
        buffer.deliver_to(sink, classify=classify)
        buffer.add_events([b"x"])
        until(lambda: sink.calls >= 2)
        sink.error = None
    assert sink.events == [b"x"]
    assert "classify failed" in caplog.text


def test_a_sink_that_settles_by_itself() -> None:
    def send(batch: Batch) -> None:
        seen.append(batch.tolist())
        batch.settle(retry=[0] if len(batch) == 3 else [])

    seen: list[list[bytes]] = []
    with BufferManager() as buffer:
        buffer.add_events([b"a", b"b", b"c"])
        buffer.deliver_to(send)
        until(lambda: buffer.stats().acked == 3)
    assert seen == [[b"a", b"b", b"c"], [b"a"]]


def test_retry_after_leaves_the_sink_alone() -> None:
    calls: list[float] = []

    def send(batch: Batch) -> None:
        calls.append(time.monotonic())
        if len(calls) == 1:
            raise SinkUnavailable(0.4)

    with BufferManager() as buffer:
        buffer.deliver_to(send, max_events=1)
        for priority in (1, 2, 3):
            buffer.add_events([b"x"], priority)
        until(lambda: buffer.stats().acked == 3)
    assert calls[1] - calls[0] >= 0.39


def test_workers_are_bounded_by_the_sink() -> None:
    class Slow(Switch):
        max_concurrency = 3

        def send(self, batch: Batch) -> None:
            with lock:
                self._in += 1
                self.most = max(self.most, self._in)
            time.sleep(0.005)
            with lock:
                self._in -= 1
                self.events += batch.tolist()

    lock = threading.Lock()
    for workers, most in ((8, 3), (2, 2), (1, 1)):
        sink = Slow()
        with BufferManager() as buffer:
            delivery = buffer.deliver_to(sink, workers=workers, max_events=1)
            assert delivery.stats().workers == most
            buffer.add_events(numbered(60))
        assert sorted(sink.events) == numbered(60)
        assert 1 <= sink.most <= most
    with BufferManager() as buffer:
        assert buffer.deliver_to(Switch(), workers=8).stats().workers == 1
        buffer.close(timeout=0)


def test_a_sink_may_close_its_buffer_or_stop_its_delivery() -> None:
    buffer = BufferManager()

    def send(batch: Batch) -> None:
        assert buffer.delivery is not None
        in_place.append(buffer.delivery.stop(timeout=0.0))  # type: ignore[arg-type]
        buffer.close(timeout=0.0)

    in_place: list[bool] = []
    delivery = buffer.deliver_to(send)
    buffer.add_events([b"x"])
    assert delivery.wait(30.0)
    assert in_place == [False]


def test_stop_from_several_threads() -> None:
    buffer = BufferManager()
    delivery = buffer.deliver_to(MemorySink())
    buffer.add_events(numbered(100))
    stops = [threading.Thread(target=delivery.stop) for _ in range(4)]
    for one in stops:
        one.start()
    for one in stops:
        one.join(30.0)
    assert in_thread(delivery.stop)
    assert buffer.stats().resident == 0
    buffer.close()


PROGRAM = """
    import sys, threading, time
    from backpressure import BufferConfig, BufferManager
    buffer = BufferManager(BufferConfig(directory=sys.argv[1] or None))
    class Sink:
        def send(self, batch):
            time.sleep(0.2)
            print(*(event.decode() for event in batch), flush=True)
        def close(self):
            print("closed", flush=True)
    delivery = buffer.deliver_to(Sink())
    {what}
    buffer.add_events([b"one", b"two"])
"""


@pytest.mark.parametrize("what", ["pass", "buffer = buffer"])
@pytest.mark.parametrize("directory", ["", "buffer"])
def test_the_end_of_the_interpreter_drains_it(what: str, directory: str, tmp_path: Any) -> None:
    program = textwrap.dedent(PROGRAM).format(what=what)
    path = str(tmp_path / directory) if directory else ""
    run = subprocess.run(
        [sys.executable, "-c", program, path], capture_output=True, text=True, timeout=60
    )
    assert (run.stdout, run.stderr, run.returncode) == ("one two\nclosed\n", "", 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.single_thread
def test_a_forked_child_has_no_delivery() -> None:
    from tests.support.processes import ended_well, forked

    sink = MemorySink()
    with BufferManager() as buffer:
        delivery = buffer.deliver_to(sink)

        def child() -> None:
            assert not delivery.running
            assert delivery.stop(timeout=0.0)
            assert buffer.delivery is None
            with pytest.raises(BufferClosed):
                buffer.deliver_to(MemorySink())

        ended_well(forked(child))
        buffer.add_events([b"the parent's"])
    assert sink.events == [b"the parent's"]


def test_it_runs_until_its_sink_is_closed() -> None:
    """Else another delivery could begin beside the end of this one."""
    closing, go_on = threading.Event(), threading.Event()

    class Slow(MemorySink):
        def close(self) -> None:
            closing.set()
            go_on.wait(30.0)

    buffer = BufferManager()
    delivery = buffer.deliver_to(Slow())
    assert not delivery.stop(timeout=0.05)
    assert closing.wait(30.0)
    assert delivery.running
    with pytest.raises(AlreadyDelivering):
        buffer.deliver_to(MemorySink())
    go_on.set()
    assert delivery.wait(30.0)
    buffer.close()
