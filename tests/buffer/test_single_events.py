"""One event a call: `add_event`, producers, and the coroutine."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backpressure import (
    Admission,
    BufferClosed,
    BufferConfig,
    BufferManager,
    Durability,
    EventTooLarge,
    FlowControlConfig,
    InvalidEvents,
    WhenFull,
)
from backpressure.base.clock import MonotonicClock
from backpressure.buffer.single_events import Producer
from tests.support.buffers import EVENT, SMALL, drain, drain_lanes, next_batch


class OtherClock(MonotonicClock):
    """The same time by a clock that may be moved: so every event goes the slow way."""


def both(config: BufferConfig) -> list[BufferManager]:
    return [BufferManager(config), BufferManager(config, clock=OtherClock())]


def is_quick(buffer: BufferManager, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether an event that enters does so without `add_events`."""
    asked: list[int] = []

    def add_events(*given: Any, **more: Any) -> Admission:
        asked.append(1)
        return BufferManager.add_events(buffer, *given, **more)

    with monkeypatch.context() as patch:
        patch.setattr(buffer, "add_events", add_events)
        assert buffer.add_event(b"?")
    return not asked


def test_which_ways_are_quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick, slow = both(BufferConfig())
    assert is_quick(quick, monkeypatch)
    assert not is_quick(slow, monkeypatch)
    for durability in Durability:
        with BufferManager(
            BufferConfig(directory=tmp_path / durability.name, durability=durability)
        ) as buffer:
            assert is_quick(buffer, monkeypatch) == (durability is not Durability.COMMIT)
            assert drain(buffer) == [b"?"]
    tiny = BufferManager(BufferConfig(flow_control=FlowControlConfig(burst_size=300)))
    assert not is_quick(tiny, monkeypatch)


@pytest.mark.parametrize("seed", range(6))
def test_both_ways_are_equal(seed: int) -> None:
    """Random calls of two buffers, one of which has no quick way."""
    pick = random.Random(seed)
    full = pick.choice([WhenFull.REJECT, WhenFull.DROP_OLDEST])
    buffers = both(BufferConfig(lane_bytes=4096, when_full=full))
    producers = [[buffer.producer(p) for p in (None, 1, 5)] for buffer in buffers]
    assert [one.priority for one in producers[0]] == [3, 1, 5]
    events: list[Any] = [b"", b"a", "b", "\u00e4", b"x" * 300, b"y" * 1000, EVENT, b"z" * 5000]
    wrong: list[Any] = [
        None,
        1,
        bytearray(b"a"),
        "\ud800",
        memoryview(b"a"),
        [b"a"],
        np.bytes_(b"a"),
    ]
    for _ in range(400):
        event = pick.choice(events) if pick.random() < 0.9 else pick.choice(wrong)
        priority = pick.choice([None, 1, 2, 3, 4, 5, np.int64(2), True, 0, 6, -1, 1 << 70, "1"])
        timeout = pick.choice([{}, {"timeout": 0}, {"timeout": 0.0}, {"timeout": -1.0}])
        which, most, kind = pick.randrange(3), pick.randrange(1, 9), pick.randrange(8)

        def call(
            buffer: BufferManager,
            mine: list[Producer],
            kind: int = kind,
            event: Any = event,
            priority: Any = priority,
            timeout: Any = timeout,
            which: int = which,
            most: int = most,
        ) -> Any:
            if kind < 3:
                return buffer.add_event(event, priority, **timeout)
            if kind < 6:
                return mine[which].add(event, **timeout)
            if kind == 6:
                return taken(buffer, most)
            refusal = mine[which].refusal
            return refusal and (refusal.rejected, refusal.reason)

        said = [outcome(partial(call, *one)) for one in zip(buffers, producers, strict=True)]
        assert said[0] == said[1]
        shown = [books(buffer) for buffer in buffers]
        assert shown[0] == shown[1]
    assert drain_lanes(buffers[0]) == drain_lanes(buffers[1])


def outcome(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except (InvalidEvents, EventTooLarge, ValueError, TypeError) as error:
        return type(error), str(error)


def taken(buffer: BufferManager, most: int) -> Any:
    batch = buffer.get_batch(most)
    if batch is None:
        return None
    batch.ack()
    return batch.priority, batch.tolist(), batch.first_seq


def books(buffer: BufferManager) -> Any:
    stats = buffer.stats()
    stats.check()
    flow = stats.flow_control
    return (
        stats.accepted,
        stats.rejected,
        stats.dropped,
        stats.resident,
        flow.admitted,
        flow.refused,
        flow.burst,
    )


def test_a_refusal_is_counted_once_and_has_a_reason() -> None:
    buffer = BufferManager(SMALL)
    producer = buffer.producer()
    while producer.add(EVENT):
        assert producer.refusal is None
    assert producer.refusal is not None
    assert producer.refusal.reason == "full"
    assert not buffer.add_event(EVENT)
    stats = buffer.stats()
    assert dict(stats.rejected) == {"full": 2}
    drain(buffer)
    assert producer.add(EVENT)
    assert producer.refusal.reason == "full", "it is of the last event that was refused"


def test_a_rate_of_single_events_is_kept() -> None:
    config = FlowControlConfig(max_events_per_second=0, burst_size=5_000)
    buffer = BufferManager(BufferConfig(flow_control=config))
    producers = [buffer.producer(p) for p in (1, 2, 3)]
    entered = 0
    while sum(producer.add(b"x") for producer in producers):
        entered += 1
    flow = buffer.stats().flow_control
    assert sum(flow.admitted) == buffer.stats().accepted == 5_000
    assert flow.refused["rate"] + flow.refused["share"] == sum(buffer.stats().rejected.values())
    assert producers[0].refusal is not None
    assert producers[0].refusal.reason in ("rate", "share")


def test_admissions_ahead_come_back() -> None:
    config = FlowControlConfig(max_events_per_second=0, burst_size=5_000)
    buffer = BufferManager(BufferConfig(flow_control=config))

    def tokens() -> float:
        return buffer._control.flow._bucket.tokens_at(0)

    kept = buffer.producer()
    kept.add(b"x")
    assert tokens() < 4_999
    kept.close()
    assert tokens() == 4_999
    with pytest.raises(ValueError, match="the producer is closed"):
        kept.add(b"x")
    assert kept.closed
    with buffer.producer(1) as producer:
        producer.add(b"x")
    assert tokens() == 4_998
    dropped = buffer.producer(2)
    dropped.add(b"x")
    del dropped
    gc.collect()
    buffer.stats()
    assert tokens() == 4_997
    buffer.add_event(b"x")
    assert tokens() < 4_996
    for change in (
        lambda: buffer.adjust_flow_control_rate(0.0),
        lambda: buffer.adjust_burst_size(5_000),
        lambda: buffer.close(0),
    ):
        change()
        assert tokens() == 4_996
        if not buffer.closing:
            buffer.add_event(b"x") and buffer.get_batch()
            buffer._control.flow.give_back(1, 3)


def test_a_closed_buffer_takes_none() -> None:
    buffer = BufferManager()
    producer = buffer.producer()
    assert producer.add(b"x")
    assert buffer.add_event(b"y")
    buffer.close(timeout=0)
    for add in (producer.add, buffer.add_event):
        with pytest.raises(BufferClosed):
            add(b"z")
    stats = buffer.stats()
    stats.check()
    assert stats.accepted == 2


@pytest.mark.threads
def test_what_comes_in_beside_close_is_counted() -> None:
    for _ in range(30):
        buffer = BufferManager()
        entered = [0] * 3
        begun = threading.Barrier(4)

        def add(
            which: int,
            buffer: BufferManager = buffer,
            entered: list[int] = entered,
            begun: threading.Barrier = begun,
        ) -> None:
            producer = buffer.producer(which + 1)
            begun.wait()
            try:
                while producer.add(b"x"):
                    entered[which] += 1
            except BufferClosed:
                pass

        threads = [threading.Thread(target=add, args=(i,)) for i in range(3)]
        for thread in threads:
            thread.start()
        begun.wait()
        while not sum(entered):
            pass
        buffer.close(timeout=0)
        for thread in threads:
            thread.join()
        stats = buffer.stats()
        stats.check()
        assert stats.accepted == sum(entered)
        assert stats.resident == 0


@pytest.mark.threads
def test_threads_lose_and_double_nothing() -> None:
    buffer = BufferManager()
    count, got, done = 20_000, [], threading.Event()

    def add(which: int) -> None:
        add_one: Any = buffer.add_event if which % 2 else buffer.producer().add
        for i in range(count):
            assert add_one(b"%d %d" % (which, i))

    def consume() -> None:
        while not done.is_set() or buffer.resident:
            batch = buffer.get_batch(timeout=0.01)
            if batch is not None:
                got.extend(batch.tolist())
                batch.ack()

    consumer = threading.Thread(target=consume)
    consumer.start()
    threads = [threading.Thread(target=add, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    consumer.join()
    for which in range(4):
        mine = [event for event in got if event.startswith(b"%d " % which)]
        assert mine == [b"%d %d" % (which, i) for i in range(count)]
    stats = buffer.stats()
    stats.check()
    assert stats.accepted == sum(stats.flow_control.admitted) == 4 * count


@pytest.mark.threads
@pytest.mark.parametrize("way", ["add_event", "producer"])
def test_a_sleeping_consumer_is_woken(way: str) -> None:
    buffer = BufferManager()
    add = buffer.add_event if way == "add_event" else buffer.producer().add
    add(b"first")  # what follows within the pace looks at nothing but the sleepers
    drain(buffer)
    for _ in range(50):
        got: list[Any] = []
        thread = threading.Thread(target=lambda: got.append(buffer.get_batch(timeout=20.0)))  # noqa: B023
        thread.start()
        while not buffer._ready._waiting:
            pass
        add(b"x")
        thread.join(timeout=10.0)
        assert [one.tolist() for one in got] == [[b"x"]]
        got[0].ack()


def test_a_coroutine_adds_and_wakes() -> None:
    async def main() -> None:
        buffer = BufferManager(SMALL)
        assert await buffer.aio.add_event(b"first", 2)
        next_batch(buffer).ack()
        waiting = asyncio.create_task(buffer.aio.get_batch(timeout=20.0))
        await asyncio.sleep(0)
        assert await buffer.aio.add_event("second")
        batch = await waiting
        assert batch is not None
        assert batch.tolist() == [b"second"]
        batch.ack()
        while await buffer.aio.add_event(EVENT):
            pass
        later = asyncio.create_task(buffer.aio.add_event(EVENT, timeout=20.0))
        await asyncio.sleep(0)
        assert not later.done()
        next_batch(buffer).ack()
        assert await later
        with pytest.raises(ValueError, match="timeout"):
            await buffer.aio.add_event(b"x", timeout=-1)

    asyncio.run(main())


@pytest.mark.parametrize("quick", [True, False])
def test_the_age_of_an_event_is_right(quick: bool) -> None:
    """To 10 ms and what a busy host adds, also where the lane was empty just before."""
    buffer = both(BufferConfig())[0 if quick else 1]
    for pause in (0.0, 0.003, 0.03):
        for _ in range(3):
            buffer.add_event(b"x")
            drain(buffer)
        time.sleep(pause)
        before = time.monotonic()
        buffer.add_event(b"y")
        after = time.monotonic()
        time.sleep(0.05)
        lane = buffer._intake.lanes[2]
        now = time.monotonic()
        assert now - after - 1e-3 <= lane.oldest_age(now) <= now - before + 0.012 + 0.02
        drain(buffer)


def test_single_events_become_too_old() -> None:
    buffer = BufferManager(BufferConfig(max_age=0.05))
    for _ in range(20):
        assert buffer.add_event(b"x")
    time.sleep(0.1)
    assert buffer.get_batch() is None
    assert dict(buffer.stats().dropped) == {"age": 20}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.single_thread
def test_in_a_forked_child_nothing_is_taken() -> None:
    code = """if True:
        import os
        from backpressure import BufferClosed, BufferManager
        buffer = BufferManager()
        producer = buffer.producer()
        producer.add(b"x"), buffer.add_event(b"y")
        pid = os.fork()
        if not pid:
            for add in (producer.add, buffer.add_event):
                try:
                    add(b"z")
                except BufferClosed:
                    continue
                os._exit(1)
            producer.close()
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert producer.add(b"w") and buffer.get_batch().tolist() == [b"x", b"y", b"w"]
    """
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
