"""Adds that wait for the sink rather than spill: the law by numbers, then in a buffer.

No test sleeps: where a producer would, a script goes on.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backpressure import (
    Batch,
    BufferConfig,
    BufferManager,
    CircuitBreakerConfig,
    Durability,
    SinkGone,
    SinkUnavailable,
)
from backpressure.base.wakeup import Wakeup
from backpressure.buffer.sink_wait import FAILED, LONGEST, QUIET, SinkWait
from backpressure.lanes.lane import Lane
from backpressure.testing import FailingSink, FakeClock, MemorySink
from tests.support.buffers import crash, drain, numbered
from tests.support.durable import SMALL
from tests.support.threads import background, until

# ---------------------------------------------------------------- the law


class Numbers:
    """A lane of which only the numbers are there. Its ring has 1,600 bytes: a source
    stops at 700 of them.
    """

    def __init__(self) -> None:
        self.clock = FakeClock(100.0)
        self.takes = True
        self.capacity_bytes, self.used_bytes = 1600, 0
        self.ring = self
        self.waits = 1
        self.settled_by_sink = 0
        self.has_retries = False
        self.last_latency = 0.0
        self.law = SinkWait(cast(Lane, self), 0.5, takes=lambda now: self.takes, now=self.clock.now)

    def waiting(self) -> int:
        return self.waits

    def most(self, events: int = 10, nbytes: int = 1000) -> int:
        return self.law.most(events, nbytes)


def test_what_fits_below_the_mark_goes_in() -> None:
    lane = Numbers()
    assert lane.most(10, 700) == 10
    assert lane.most(10, 1000) == 7, "by their average size"
    lane.used_bytes = 650
    assert lane.most(10, 0) == 10
    assert lane.most(10, 1000) == 0
    assert lane.most(100, 1000) == 5


def test_it_waits_while_the_sink_settles() -> None:
    lane = Numbers()
    lane.used_bytes = 700
    for _ in range(5):
        assert lane.most() == 0
        lane.clock.advance(QUIET - 0.01)
        assert lane.most() == 0
        lane.settled_by_sink += 1


def test_nothing_settled_for_a_while_ends_the_wait_until_something_is() -> None:
    lane = Numbers()
    lane.used_bytes = 700
    assert lane.most() == 0
    lane.clock.advance(QUIET)
    assert lane.most() == 10
    assert lane.most() == 10, "also for the next"
    lane.used_bytes = 0  # it was spilled
    assert lane.most() == 7
    lane.used_bytes = 700
    assert lane.most() == 10, "and once there was room"
    lane.settled_by_sink += 1
    assert lane.most() == 0


def test_patience_begins_with_the_wait() -> None:
    lane = Numbers()
    assert lane.most() == 7
    lane.clock.advance(1000.0)
    lane.used_bytes = 700
    assert lane.most() == 0, "a sink that had nothing to do is not one that takes nothing"
    lane.clock.advance(QUIET)
    assert lane.most() == 10


def test_a_sink_whose_calls_take_long_is_given_three_of_them() -> None:
    lane = Numbers()
    lane.used_bytes, lane.last_latency = 700, 2.0
    assert lane.most() == 0
    lane.clock.advance(5.9)
    assert lane.most() == 0
    lane.clock.advance(0.1)
    assert lane.most() == 10


def test_a_batch_that_failed_shortens_it() -> None:
    lane = Numbers()
    lane.used_bytes, lane.last_latency = 700, 2.0
    assert lane.most() == 0
    lane.has_retries = True
    assert lane.most() == 0, "one that fails now and then is waited for"
    lane.clock.advance(FAILED * 1.01)
    assert lane.most() == 10


def test_a_sink_that_is_not_called_is_not_waited_for() -> None:
    lane = Numbers()
    lane.used_bytes = 700
    assert lane.most() == 0
    lane.takes = False
    assert lane.most() == 10
    lane.takes = True
    assert lane.most() == 0


def test_where_consumers_have_all_some_more_goes_in() -> None:
    lane = Numbers()
    lane.used_bytes, lane.waits = 1500, 0
    assert lane.most() == 1, "a sixteenth of the ring: 100 bytes"
    assert lane.most(1, 1500) == 1, "an event of any size"
    lane.waits = 1
    assert lane.most() == 0


def test_the_pause_is_no_longer_than_the_wait_can_be() -> None:
    lane = Numbers()
    lane.used_bytes = 700
    assert lane.most() == 0
    start = lane.clock.now()
    assert lane.law.pause(start) == QUIET
    lane.clock.advance(0.75)
    assert lane.law.pause(start) == pytest.approx(QUIET - 0.75)
    assert lane.law.pause(start + 0.75 - LONGEST) == pytest.approx(0.001), "the add's own end"
    lane.clock.advance(100.0)
    assert lane.law.pause(start) == pytest.approx(0.001)


def test_a_clock_that_steps_back_ends_the_wait() -> None:
    lane = Numbers()
    lane.used_bytes = 700
    assert lane.most() == 0
    lane.clock.set(50.0)
    assert lane.most() == 10


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("used"), st.integers(0, 1600)),
            st.tuples(st.just("waits"), st.integers(0, 1)),
            st.tuples(st.just("settle"), st.integers(1, 3)),
            st.tuples(st.just("retries"), st.booleans()),
            st.tuples(st.just("latency"), st.sampled_from([0.0, 0.5, 2.0])),
            st.tuples(st.just("takes"), st.booleans()),
            st.tuples(st.just("time"), st.sampled_from([0.05, 0.3, 1.0, 5.0])),
        ),
        max_size=60,
    )
)
def test_against_a_simple_model(actions: list[tuple[str, Any]]) -> None:
    """It waits where all four reasons hold, and patience is that of a plain timer."""
    lane = Numbers()
    timer: float | None = None
    timed = quiet_at = -1
    for name, value in actions:
        match name:
            case "used":
                lane.used_bytes = value
            case "waits":
                lane.waits = value
            case "settle":
                lane.settled_by_sink += value
            case "retries":
                lane.has_retries = value
            case "latency":
                lane.last_latency = value
            case "takes":
                lane.takes = value
            case "time":
                lane.clock.advance(value)
        got, now = lane.most(4, 400), lane.clock.now()
        below = max(0, min(4, (700 - lane.used_bytes) // 100))
        if below or not lane.takes or not lane.waits:
            timer = None
            assert got == (below or (4 if not lane.takes else 1))
            continue
        anew = timer is None or timed != lane.settled_by_sink
        if anew and lane.settled_by_sink != quiet_at:
            timer, timed = now, lane.settled_by_sink
        patience = FAILED if lane.has_retries else max(QUIET, 3 * lane.last_latency)
        if timer is not None and now - timer >= patience:
            quiet_at = timed
        assert got == (4 if lane.settled_by_sink == quiet_at else 0)


# ---------------------------------------------------------------- in a buffer

needs_linux = [
    pytest.mark.skipif(sys.platform != "linux", reason="a directory needs Linux"),
    pytest.mark.platform,
]

# A lane of 16 KiB, and lines of 100 bytes of which some 70 fit below the mark.
LANE = 1 << 14
LINES = numbered(400, 93)
CHUNK = b"".join(line + b"\n" for line in LINES)
MARK = LANE // 2


class Script(Wakeup):
    """Where a producer would sleep, the next step runs instead, and it looks again.

    After the last step comes `then`, every time; without one it is an error to sleep.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.steps: Iterator[Callable[[], object]] = iter(())
        self.then: Callable[[], object] | None = None

    def wait(self, done: Callable[[], bool], timeout: float) -> None:
        if done():
            return
        assert timeout > 0.0
        step = next(self.steps, self.then)
        assert step is not None, "it sleeps once more than the script has steps"
        step()


class Scene:
    """A buffer with a directory, a fake clock and a script for what waits for room."""

    def __init__(self, path: Path, **changes: Any) -> None:
        self.clock = FakeClock(1000.0)
        self.room = Script("room")
        config: dict[str, Any] = {
            "lane_bytes": LANE,
            "spill": SMALL,
            "retry_backoff": 0.0,
            "circuit_breaker": CircuitBreakerConfig(min_requests=100_000),
            **changes,
        }
        self.buffer = BufferManager(
            BufferConfig(directory=path / "buffer", **config),
            clock=self.clock,
            wakeup=lambda name: self.room if name == "room" else Wakeup(name),
        )
        self.out: list[bytes] = []

    def add(
        self, *steps: Callable[[], object], then: Callable[[], object] | None = None, **more: Any
    ) -> Any:
        self.room.steps, self.room.then = iter(steps), then
        more = {"timeout": None, "wait_for_sink": True, **more}
        admission = self.buffer.add_lines(CHUNK, **more)
        assert next(self.room.steps, None) is None, "slept less often than scripted"
        return admission

    def spill(self) -> None:
        """What a producer waits for where it is not the sink."""
        until(lambda: all(lane.used_bytes < MARK for lane in self.buffer.stats().lanes.values()))

    def take(self, events: int = 30) -> None:
        batch = self.buffer.get_batch(events)
        assert batch is not None
        self.out += batch.tolist()
        batch.ack()

    def used(self, priority: int = 3) -> int:
        return self.buffer.stats().lanes[priority].used_bytes

    def spilled(self) -> int:
        disk = self.buffer.stats().disk
        assert disk is not None
        return disk.spilled

    def close(self) -> None:
        self.buffer.stats().check()
        self.buffer.close(timeout=0)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path)
    yield made
    made.close()


class TestInABuffer:
    pytestmark = needs_linux

    def test_what_a_sink_takes_never_goes_to_disk(self, scene: Scene) -> None:
        def take() -> None:
            assert scene.used() < MARK
            scene.take()

        admission = scene.add(then=take)
        assert (admission.accepted, admission.rejected) == (400, 0)
        assert scene.used() < MARK
        scene.out += drain(scene.buffer)
        assert scene.out == LINES
        assert scene.spilled() == 0

    def test_by_default_nothing_waits(self, scene: Scene) -> None:
        assert scene.add(then=scene.spill, wait_for_sink=False).accepted == 400
        assert scene.spilled() > 0
        assert drain(scene.buffer) == LINES

    @pytest.mark.parametrize("timeout", [0.0, None])
    def test_the_end_of_the_time_lets_all_in_that_fits(
        self, timeout: float | None, scene: Scene
    ) -> None:
        more: dict[str, Any] = {} if timeout is None else {"timeout": timeout}
        few = CHUNK[: CHUNK.index(b"\n") + 1] * 120
        admission = scene.buffer.add_lines(few, wait_for_sink=True, **more)
        assert admission.accepted == 120, "what never waits knows no mark"

    def test_at_a_timeout_it_goes_in_as_far_as_there_is_room(self, tmp_path: Path) -> None:
        buffer = BufferManager(BufferConfig(directory=tmp_path / "b", lane_bytes=LANE, spill=SMALL))
        few = CHUNK[: CHUNK.index(b"\n") + 1] * 120
        admission = buffer.add_lines(few, timeout=0.05, wait_for_sink=True)
        assert (admission.accepted, admission.reason) == (120, None)
        assert len(drain(buffer)) == 120
        buffer.close(timeout=0)

    def test_a_sink_that_takes_nothing_is_not_waited_for(self, scene: Scene) -> None:
        begun = scene.clock.now()
        admission = scene.add(lambda: scene.clock.advance(QUIET), then=scene.spill)
        assert admission.accepted == 400
        assert scene.clock.now() == begun + QUIET
        assert scene.spilled() > 0
        assert drain(scene.buffer) == LINES

    def test_an_open_circuit_is_not_waited_for(self, scene: Scene) -> None:
        opened: list[str] = []

        def force_open() -> None:
            with scene.room.listening(lambda: opened.append("told")):
                scene.buffer._control.breaker.force_open()

        begun = scene.clock.now()
        scene.add(force_open, then=scene.spill)
        assert opened, "the producer is told"
        assert scene.clock.now() == begun

    def test_a_sink_that_asked_to_be_left_alone_is_not_waited_for(self, scene: Scene) -> None:
        def refuse() -> None:
            batch = scene.buffer.get_batch(10)
            assert batch is not None
            batch.nack(SinkUnavailable(retry_after=30.0))

        begun = scene.clock.now()
        scene.add(refuse, then=scene.spill)
        assert scene.clock.now() == begun

    def test_a_batch_that_failed_and_came_again_is_waited_for(self, scene: Scene) -> None:
        def fail() -> None:
            batch = scene.buffer.get_batch(30)
            assert batch is not None
            batch.nack(OSError("once"))
            scene.clock.advance(FAILED / 2)

        scene.add(*[fail, scene.take] * 4, then=scene.take)
        scene.out += drain(scene.buffer)
        assert scene.out == LINES
        assert scene.spilled() == 0

    def test_a_sink_that_goes_on_failing_is_not_waited_for(self, scene: Scene) -> None:
        def fail() -> None:
            batch = scene.buffer.get_batch(30)
            assert batch is not None
            batch.nack(OSError("again"))
            scene.clock.advance(FAILED / 2)

        scene.add(fail, fail, fail, then=scene.spill)
        assert scene.spilled() > 0

    def test_a_delivery_that_has_ended_is_not_waited_for(self, scene: Scene) -> None:
        def send(batch: Batch) -> None:
            raise SinkGone("no more")

        delivery = scene.buffer.deliver_to(send)
        scene.buffer.add_events([b"the one that ends it"])
        assert delivery.wait(30)
        begun = scene.clock.now()
        scene.add(then=scene.spill)
        assert scene.clock.now() == begun

    def test_whoever_closes_or_stops_has_the_rest_let_in(self, scene: Scene) -> None:
        def ask() -> None:
            asking.__enter__()

        asking = scene.buffer._outlet.asking()
        scene.add(ask, then=scene.spill)
        asking.__exit__(None, None, None)

    def test_a_close_ends_the_wait(self, tmp_path: Path) -> None:
        scene = Scene(tmp_path)
        admission = scene.add(lambda: scene.buffer.close(timeout=0))
        assert 0 < admission.accepted < 400
        assert admission.reason == "closed"
        again = Scene(tmp_path)
        assert drain(again.buffer) == LINES[: admission.accepted]
        again.close()

    def test_events_larger_than_the_room_to_the_mark_go_in(self, scene: Scene) -> None:
        large = [bytes([number]) * (LANE * 3 // 4) for number in range(3)]

        def take() -> None:
            assert scene.buffer.stats().waiting == 1
            scene.take(1)

        scene.room.steps = iter([take, take])
        assert scene.buffer.add_events(large, timeout=None, wait_for_sink=True).accepted == 3
        scene.out += drain(scene.buffer)
        assert scene.out == large

    def test_many_batches_in_flight_are_not_bounded_by_the_mark(self, scene: Scene) -> None:
        held: list[Batch] = []

        def hold() -> None:
            while (batch := scene.buffer.get_batch(20)) is not None:
                held.append(batch)

        # Each step takes all that waits, and more comes in until there is no room.
        few = b"".join(line + b"\n" for line in LINES[:130])
        scene.room.steps = iter([hold] * 100)
        assert scene.buffer.add_lines(few, timeout=None, wait_for_sink=True).accepted == 130
        assert len(held) > 3
        for batch in held:
            scene.out += batch.tolist()
            batch.ack()
        scene.out += drain(scene.buffer)
        assert scene.out == LINES[:130]

    def test_a_lane_that_a_more_urgent_one_holds_up_goes_on(self, scene: Scene) -> None:
        """What is settled elsewhere does not count: each lane is its own."""
        calls = 0

        def urgent() -> None:
            nonlocal calls
            calls += 1
            scene.buffer.add_events([b"urgent"], priority=1)
            scene.take(1)
            scene.clock.advance(0.25)

        scene.add(*[urgent] * 4, then=scene.spill, priority=5)
        assert calls == 4
        assert scene.out == [b"urgent"] * 4
        assert scene.spilled() > 0

    def test_producers_that_do_not_wait_keep_out_none_that_does(self, scene: Scene) -> None:
        """They keep the lane above its mark, and the sink takes all the while."""

        def others() -> None:
            scene.take(10)
            assert scene.buffer.add_events(LINES[:10]).accepted == 10
            scene.clock.advance(0.5)

        few = b"".join(line + b"\n" for line in LINES[:20])
        assert scene.buffer.add_events(LINES[:72]).accepted == 72
        assert scene.used() < MARK
        scene.room.steps = iter([others] * 21)
        begun = scene.clock.now()
        admission = scene.buffer.add_lines(few, timeout=None, wait_for_sink=True)
        assert admission.accepted == 20
        assert scene.clock.now() - begun == LONGEST

    @pytest.mark.parametrize("durability", [Durability.INTERVAL, Durability.COMMIT])
    def test_where_all_is_written_anyway_nothing_waits(
        self, durability: Durability, tmp_path: Path
    ) -> None:
        config = BufferConfig(
            directory=tmp_path / "b", lane_bytes=LANE, spill=SMALL, durability=durability
        )
        buffer = BufferManager(config)
        assert buffer._intake._sink_waits == []
        assert buffer.add_lines(CHUNK, timeout=30.0, wait_for_sink=True).accepted == 400
        assert drain(buffer) == LINES
        buffer.close(timeout=0)

    def test_a_kill_while_it_waits_loses_nothing_that_was_accepted(self, tmp_path: Path) -> None:
        scene = Scene(tmp_path)

        class Killed(Exception):
            pass

        def kill() -> None:
            raise Killed

        with pytest.raises(Killed):
            scene.add(scene.take, kill)
        accepted = scene.buffer.stats().accepted
        crash(scene.buffer)
        again = Scene(tmp_path)
        assert scene.out + drain(again.buffer) == LINES[:accepted]
        again.close()

    def test_with_a_delivery_and_coroutines(self, tmp_path: Path) -> None:
        sink = MemorySink()
        config = BufferConfig(directory=tmp_path / "b", lane_bytes=LANE, spill=SMALL)
        buffer = BufferManager(config)

        async def produce() -> None:
            for _ in range(20):
                admission = await buffer.aio.add_lines(CHUNK, timeout=None, wait_for_sink=True)
                assert admission.accepted == 400
                admission = await buffer.aio.add_events(LINES, timeout=None, wait_for_sink=True)
                assert admission.accepted == 400

        with buffer.deliver_to(sink):
            asyncio.run(produce())
        assert sink.events == LINES * 40
        disk = buffer.stats().disk
        assert disk is not None
        buffer.close()

    @pytest.mark.parametrize("failures", [0.0, 0.3])
    def test_several_sources_side_by_side_never_block_each_other(
        self, failures: float, tmp_path: Path
    ) -> None:
        breaker = CircuitBreakerConfig(min_requests=10, reset_timeout=0.01)
        config = BufferConfig(
            directory=tmp_path / "b",
            lane_bytes=LANE,
            spill=SMALL,
            retry_backoff=0.0,
            max_attempts=None,
            circuit_breaker=breaker,
        )
        buffer = BufferManager(config)
        memory = MemorySink()
        sink = FailingSink(memory, failures, seed=7) if failures else memory

        def source(number: int) -> None:
            for turn in range(8):
                chunk = b"".join(b"%d %d " % (number, turn) + line + b"\n" for line in LINES)
                priority = (number + turn) % 3 + 1
                admission = buffer.add_lines(chunk, priority, None, wait_for_sink=True)
                assert admission.accepted == 400

        with buffer.deliver_to(sink), background(*[partial(source, one) for one in range(3)]):
            pass
        until(lambda: not buffer.resident)
        buffer.close().check()
        assert len(set(memory.events)) == 3 * 8 * 400


def test_in_memory_it_means_nothing() -> None:
    buffer = BufferManager(BufferConfig(lane_bytes=LANE))
    admission = buffer.add_lines(CHUNK, timeout=0.0, wait_for_sink=True)
    assert admission.accepted > 120
    waited = threading.Event()
    with background(waited.set):
        assert buffer.add_events(LINES, timeout=0.01, wait_for_sink=True).rejected
    assert waited.is_set()
