"""Events: their numbers, handlers that misbehave, subscriptions, the asynchronous feed,
and what goes to the logs.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from backpressure import (
    BufferConfig,
    BufferManager,
    CircuitBreakerConfig,
    EventType,
    RateChanged,
    Tuned,
    WhenFull,
)
from backpressure.base.events import Event
from backpressure.base.log_limiter import LogLimiter
from backpressure.buffer.event_dispatcher import (
    _QUEUE,
    _RECENT,
    _WAIT_AT_ONCE,
    EventDispatcher,
    Subscription,
)
from backpressure.testing import FakeClock
from tests.support.buffers import SMALL
from tests.support.threads import run_threads, until


def change(number: int) -> RateChanged:
    return RateChanged(at=0.0, old=0, new=number)


# ---------------------------------------------------------------- numbers


def test_events_are_numbered_in_the_order_that_listeners_see() -> None:
    dispatcher = EventDispatcher()
    seen: list[Event] = []
    feed = dispatcher.subscribe(limit=5000)
    dispatcher.on(EventType.RATE_CHANGED, seen.append)
    assert change(1).seq == 0

    def emit() -> None:
        for number in range(200):
            dispatcher.emit(change(number))

    run_threads([emit] * 4)
    until(lambda: len(seen) == 800)
    assert [event.seq for event in seen] == list(range(1, 801))
    fed = [event.seq for event in iter(feed.take, None)]
    assert fed == list(range(1, 801))
    assert dispatcher.last_seq == 800


# ---------------------------------------------------------------- handlers


def test_a_prompt_handler_has_run_when_the_call_returns() -> None:
    buffer = BufferManager(SMALL)
    seen: list[Any] = []
    buffer.on(EventType.TUNED, seen.append)
    for rate in (10, 20, 30):
        buffer.adjust_flow_control_rate(rate)
        assert seen[-1].new == rate
    assert [event.old for event in seen] == [20_000_000, 10, 20]
    assert buffer._notifications._wait_budget > 0, "the handler is never reported as done"


def test_a_handler_that_blocks_delays_nobody_for_long() -> None:
    dispatcher = EventDispatcher()
    release, entered = threading.Event(), threading.Event()
    seen: list[int] = []

    def block(event: RateChanged) -> None:
        entered.set()
        assert release.wait(60)
        seen.append(event.seq)

    dispatcher.on(EventType.RATE_CHANGED, block)
    begin = time.monotonic()
    for number in range(500):
        dispatcher.emit(change(number))
    spent = time.monotonic() - begin
    # What was saved up, what the time itself has earned, and the room that a busy
    # machine needs.
    assert spent < _WAIT_AT_ONCE + 2.0
    assert entered.is_set()
    assert seen == []
    release.set()
    until(lambda: len(seen) == 500)
    assert seen == sorted(seen)


def test_what_finds_the_queue_full_is_counted_and_costs_no_memory() -> None:
    dispatcher = EventDispatcher()
    release, seen = threading.Event(), []

    def block(event: Event) -> None:
        assert release.wait(60)
        seen.append(event.seq)

    dispatcher.on(EventType.RATE_CHANGED, block)
    dispatcher.emit(change(0))
    until(lambda: not dispatcher._queue)  # the handler holds the first
    for number in range(_QUEUE + 7):
        dispatcher.emit(change(number))
    assert dispatcher.overflows == 7
    assert len(dispatcher._queue) == _QUEUE
    release.set()
    until(lambda: len(seen) == _QUEUE + 1)


def test_waiting_for_handlers_stays_within_its_budget() -> None:
    """A hundred times 5 ms would be half a second: the budget is 50 ms and a hundredth
    of the time.
    """
    dispatcher = EventDispatcher()
    dispatcher.on(EventType.RATE_CHANGED, lambda event: time.sleep(0.005))
    waited = 0.0
    original = dispatcher._wait_for

    def timed(done: threading.Lock) -> None:
        nonlocal waited
        begin = time.thread_time(), time.monotonic()
        original(done)
        waited += time.monotonic() - begin[1]

    dispatcher._wait_for = timed  # type: ignore[method-assign]
    for number in range(100):
        dispatcher.emit(change(number))
    assert waited < 0.25


def test_handlers_may_emit_and_the_thread_goes_when_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backpressure.buffer.event_dispatcher._IDLE", 0.02)
    dispatcher = EventDispatcher()
    seen: list[int] = []

    def again(event: RateChanged) -> None:
        seen.append(int(event.new))
        if event.new:
            dispatcher.emit(change(int(event.new) - 1))

    dispatcher.on(EventType.RATE_CHANGED, again)
    dispatcher.emit(change(3))
    until(lambda: seen == [3, 2, 1, 0])
    until(lambda: dispatcher._thread is None)
    dispatcher.emit(change(0))
    until(lambda: seen == [3, 2, 1, 0, 0])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.platform
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_child_gets_a_thread_of_its_own() -> None:
    dispatcher = EventDispatcher()
    seen: list[int] = []
    dispatcher.on(EventType.RATE_CHANGED, lambda event: seen.append(event.seq))
    dispatcher.emit(change(1))
    until(lambda: seen == [1])
    child = os.fork()
    if child == 0:
        code = 1
        try:
            dispatcher.emit(change(2))
            until(lambda: seen == [1, 2])
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0


def test_a_forgotten_subscription_ends_and_nobody_wants_its_events() -> None:
    dispatcher = EventDispatcher()
    assert not dispatcher.wants(EventType.EVENTS_DROPPED)
    feed = dispatcher.subscribe(EventType.EVENTS_DROPPED)
    assert dispatcher.wants(EventType.EVENTS_DROPPED)
    assert not dispatcher.wants(EventType.RATE_CHANGED)
    dispatcher.emit(change(1))
    assert feed.take() is None
    del feed
    gc.collect()
    assert not dispatcher.wants(EventType.EVENTS_DROPPED)
    dispatcher.subscribe().close()
    assert not dispatcher.wants(EventType.EVENTS_DROPPED)


# ---------------------------------------------------------------- subscriptions


def test_a_slow_reader_loses_the_oldest_and_is_told() -> None:
    dispatcher = EventDispatcher()
    feed = dispatcher.subscribe(limit=10)
    for number in range(25):
        dispatcher.emit(change(number))
    assert [event.seq for event in iter(feed.take, None)] == list(range(16, 26))
    assert feed.missed == 15


def test_who_comes_late_gets_what_is_kept() -> None:
    dispatcher = EventDispatcher()
    for number in range(_RECENT + 20):
        dispatcher.emit(change(number))
    feed = dispatcher.subscribe(since=_RECENT + 17)
    assert [event.seq for event in iter(feed.take, None)] == [
        _RECENT + 18,
        _RECENT + 19,
        _RECENT + 20,
    ]
    assert feed.missed == 0
    old = dispatcher.subscribe(since=0, limit=10 * _RECENT)
    assert [event.seq for event in iter(old.take, None)] == list(range(21, _RECENT + 21))
    assert old.missed == 20
    assert dispatcher.subscribe().take() is None
    assert dispatcher.subscribe(since=10**9).take() is None
    with pytest.raises(TypeError):
        dispatcher.subscribe("rate_changed")  # type: ignore[arg-type]


# ---------------------------------------------------------------- the asynchronous feed


def test_async_for_over_events_ends_with_the_buffer() -> None:
    async def main() -> list[Event]:
        buffer = BufferManager(SMALL)
        feed = buffer.aio.events(EventType.TUNED, EventType.BUFFER_CLOSING)
        buffer.adjust_batch_size(2000)

        def later() -> None:
            buffer.adjust_flow_control_rate(5)
            buffer.close(timeout=0)

        thread = threading.Thread(target=later)
        thread.start()
        events = [event async for event in feed]
        thread.join()
        assert feed.missed == 0
        assert await feed.get() is None
        assert [event async for event in buffer.aio.events()] == []
        return events

    events = asyncio.run(asyncio.wait_for(main(), 30))
    assert [event.type for event in events] == [
        EventType.TUNED,
        EventType.TUNED,
        EventType.BUFFER_CLOSING,
    ]
    assert events[0] == Tuned(
        at=events[0].at, seq=events[0].seq, setting="batch_size", old=50_000, new=2000, by="code"
    )


def test_a_feed_wakes_for_every_event_of_another_thread() -> None:
    """A wake-up that gets lost between two events shows as a time-out."""

    async def main() -> list[int]:
        buffer = BufferManager(SMALL)
        async with buffer.aio.events(EventType.TUNED, limit=10_000) as feed:
            thread = threading.Thread(
                target=lambda: [buffer.adjust_batch_size(1000 + n) for n in range(2000)]
            )
            thread.start()
            got: list[int] = []
            while len(got) < 2000:
                event = await feed.get(timeout=30)
                assert isinstance(event, Tuned)
                got.append(int(event.new))
            thread.join()
            assert await feed.get(timeout=0.001) is None
        assert await feed.get() is None
        return got

    assert asyncio.run(asyncio.wait_for(main(), 60)) == list(range(1000, 3000))


class _Overtaken(Subscription):
    """Its reader comes in between where a push has looked whether it is to be woken."""

    reads: Callable[[], object] | None = None
    value = False

    @property
    def _signalled(self) -> bool:
        value, reads, self.reads = self.value, self.reads, None
        if reads is not None:
            reads()
        return value

    @_signalled.setter
    def _signalled(self, value: bool) -> None:
        self.value = value


def test_a_reader_that_falls_asleep_during_a_push_is_woken_by_the_next() -> None:
    dispatcher = EventDispatcher()
    reader = _Overtaken(dispatcher, (), 10)
    woken: list[int] = []
    reader.wake = lambda: woken.append(1)
    dispatcher._add_subscription(reader, None)
    dispatcher.emit(change(1))
    assert len(woken) == 1

    def read_all() -> None:
        while reader.take() is not None:
            pass

    reader.reads = read_all
    dispatcher.emit(change(1))
    dispatcher.emit(change(1))
    assert len(woken) == 2
    assert reader.take() is not None


def test_a_feed_whose_loop_is_gone_harms_nobody() -> None:
    buffer = BufferManager(SMALL)

    async def main() -> object:
        feed = buffer.aio.events()
        assert await feed.get(timeout=0.001) is None
        return feed

    feed = asyncio.run(main())
    buffer.adjust_batch_size(2000)
    buffer.adjust_batch_size(3000)
    del feed


# ---------------------------------------------------------------- logs


def test_every_change_by_hand_is_in_the_audit_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "backpressure.audit")
    buffer = BufferManager(SMALL)
    buffer.adjust_flow_control_rate(100, by="me")
    buffer.adjust_batch_size(1234)
    buffer.reset_circuit_breaker(by="the night shift")
    with pytest.raises(ValueError, match="size"):
        buffer.adjust_batch_size(0)
    lines = [
        record.getMessage() for record in caplog.records if record.name == "backpressure.audit"
    ]
    assert lines == [
        "flow_control_rate: 20000000.0 -> 100.0, by me",
        "batch_size: 50000 -> 1234, by code",
        "circuit_breaker: CLOSED -> CLOSED, by the night shift",
    ]


def test_drops_are_logged_now_and_then_and_none_is_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = FakeClock()
    buffer = BufferManager(
        BufferConfig(lane_bytes=4096, when_full=WhenFull.DROP_OLDEST), clock=clock
    )
    for _ in range(300):
        buffer.add_events([b"x" * 1000])
        clock.advance(0.05)
    buffer.close(timeout=0)
    said = [record for record in caplog.records if "were dropped" in record.getMessage()]
    assert 2 <= len(said) <= 4
    assert sum(record.args[1] for record in said) == buffer.stats().dropped["oldest"]  # type: ignore[index,misc]


def test_trips_are_logged_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()
    config = BufferConfig(
        lane_bytes=4096,
        retry_backoff=0.0,
        circuit_breaker=CircuitBreakerConfig(min_requests=1, reset_timeout=0.1),
    )
    buffer = BufferManager(config, clock=clock)
    buffer.add_events([b"x"])
    trips = 0
    while trips < 30:
        batch = buffer.get_batch()
        if batch is not None:
            batch.nack("no")
            trips = buffer.stats().circuit_trips
        clock.advance(0.1)
        buffer.reset_circuit_breaker()
    assert 1 <= len([r for r in caplog.records if "the circuit opened" in r.getMessage()]) <= 2


def test_log_limiter() -> None:
    limiter = LogLimiter(10.0)
    assert limiter.add("a", 3, 0.0) == 3
    assert limiter.add("a", 1, 1.0) == 0
    assert limiter.add("b", 5, 1.0) == 5
    assert limiter.add("a", 2, 9.9) == 0
    assert limiter.add("a", 4, 10.0) == 7
    assert limiter.rest() == {}
    assert limiter.add("a", 4, 11.0) == 0
    assert limiter.rest() == {"a": 4}
    assert limiter.rest() == {}
