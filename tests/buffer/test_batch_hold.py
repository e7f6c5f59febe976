"""Batches that wait to fill, in a buffer: what makes them wait, what ends that, and
what is learnt from it.

No test sleeps: where a consumer would, a script goes on.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator

import pytest

from backpressure import (
    AdaptiveBatchConfig,
    BackpressureMonitorConfig,
    Batch,
    BufferClosed,
    BufferConfig,
    BufferManager,
    FlowControlConfig,
    Priority,
)
from backpressure.base.wakeup import Wakeup
from backpressure.testing import FakeClock

# A batch waits for so long by default (seconds).
LIMIT = AdaptiveBatchConfig().max_linger


# --- in the buffer


class Sleeper(Wakeup):
    """Where a consumer would sleep, the next step of the script runs instead, and it
    looks again.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.steps: Iterator[Callable[[], object]] = iter(())
        self.sleeps: list[float] = []
        self.notified = 0

    def wait(self, done: Callable[[], bool], timeout: float) -> None:
        assert not done(), "would not have slept"
        self.sleeps.append(timeout)
        next(self.steps)()

    def notify(self) -> None:
        super().notify()
        self.notified += 1


class Flow:
    """A buffer on a fake clock, brought into a steady flow of single events: its
    batches are one event each, then they wait.
    """

    def __init__(
        self,
        *,
        rate: float = 10_000.0,
        warm: float = 0.03,
        priority: int = Priority.NORMAL,
        real_sleep: bool = False,
        **fields: object,
    ) -> None:
        self.clock = FakeClock(100.0)
        batching = AdaptiveBatchConfig(initial_batch_size=1_000)
        settings: dict[str, object] = {"batching": batching, **fields}
        self.gathered, self.idle = Sleeper("hold"), Sleeper("ready")
        scripted = {} if real_sleep else {"hold": self.gathered, "ready": self.idle}

        def wakeup(name: str) -> Wakeup:
            return scripted.get(name) or Wakeup(name)

        self.buffer = BufferManager(
            BufferConfig(**settings),  # type: ignore[arg-type]
            clock=self.clock,
            wakeup=wakeup,
        )
        self.rate, self.priority = rate, priority
        self.out: list[Batch | None] = []  # a batch that is lost comes again
        end = self.clock.now() + warm
        while self.clock.now() < end:
            self.come()
            # The flow is seen by consumers that may wait; so that none does, each asks
            # for no more than there is.
            for patience in (1.0, 0.0):
                if (batch := self.buffer.get_batch(1, timeout=patience)) is not None:
                    batch.ack()

    def come(self, events: int = 1, nbytes: int = 10) -> None:
        """Events come in, one at a time."""
        for _ in range(events):
            self.clock.advance(1.0 / self.rate)
            assert self.buffer.add_events([b"x" * nbytes], self.priority).accepted == 1

    def get(
        self,
        *steps: Callable[[], object],
        timeout: float | None = 5.0,
        max_events: int | None = None,
    ) -> Batch | None:
        """get_batch, with what happens while it sleeps behind another batch."""
        self.gathered.steps = iter(steps)
        batch = self.buffer.get_batch(max_events, timeout=timeout)
        self.out.append(batch)
        assert next(self.gathered.steps, None) is None, "slept less often than scripted"
        return batch

    def flushes(self) -> dict[str, int]:
        """By reason, since the last call."""
        now = dict(self.buffer.stats().batching.flushes)
        before, self._before = getattr(self, "_before", {}), now
        return {
            reason: n - before.get(reason, 0)
            for reason, n in now.items()
            if n - before.get(reason, 0)
        }


@pytest.fixture
def flow() -> Flow:
    flow = Flow()
    flow.flushes()
    return flow


def test_a_batch_gathers_what_comes_within_the_limit(flow: Flow) -> None:
    flow.come()
    batch = flow.get(lambda: flow.come(30), lambda: flow.come(25))
    assert batch is not None
    # The first came a tenth of a millisecond behind the last batch; so 5 ms end between
    # the 50th and the 56th.
    assert len(batch) == 56
    assert flow.flushes() == {"linger": 1}
    assert flow.gathered.sleeps[0] == pytest.approx(LIMIT - 1e-4)
    assert flow.gathered.sleeps[1] == pytest.approx(LIMIT - 31e-4)
    assert not flow.idle.sleeps


def test_a_lone_event_goes_at_once(flow: Flow) -> None:
    flow.clock.advance(LIMIT)
    flow.come()
    assert len(flow.get() or ()) == 1
    assert flow.flushes() == {"ready": 1}


def test_what_gathered_while_the_consumer_was_busy_goes_at_once(flow: Flow) -> None:
    flow.come(51)
    assert len(flow.get() or ()) == 51
    assert flow.flushes() == {"ready": 1}


def test_a_first_event_does_not_wait() -> None:
    flow = Flow(warm=0.0)
    flow.come()
    assert len(flow.get() or ()) == 1
    flow.come()
    assert len(flow.get() or ()) == 1  # there is no flow yet, only two events


def test_a_poll_never_waits(flow: Flow) -> None:
    flow.come()
    assert len(flow.get(timeout=0) or ()) == 1
    assert flow.flushes() == {"ready": 1}


def test_critical_events_never_wait() -> None:
    flow = Flow(priority=Priority.CRITICAL)
    flow.flushes()
    flow.come()
    assert len(flow.get() or ()) == 1
    assert flow.flushes() == {"ready": 1}


@pytest.mark.parametrize("change", [{"max_linger": 0.0}, {"adaptive_enabled": False}])
def test_a_linger_that_is_switched_off_never_waits(change: dict[str, object]) -> None:
    flow = Flow(batching=AdaptiveBatchConfig(initial_batch_size=1_000, **change))  # type: ignore[arg-type]
    flow.come()
    assert len(flow.get() or ()) == 1


def test_a_full_batch_ends_the_wait_and_its_consumer_is_woken_for_that_only(flow: Flow) -> None:
    flow.come()

    def not_yet() -> None:
        flow.gathered.notified = 0
        flow.come(18)
        assert flow.gathered.notified == 0
        flow.come()
        assert flow.gathered.notified == 1

    assert len(flow.get(not_yet, max_events=20) or ()) == 20
    assert flow.flushes() == {"size": 1}


def test_enough_bytes_end_the_wait() -> None:
    flow = Flow(max_batch_bytes=4_000)
    flow.flushes()
    flow.come(nbytes=1_000)
    flow.gathered.notified = 0

    def more() -> None:
        flow.come(2, nbytes=1_000)
        assert not flow.gathered.notified
        flow.come(2, nbytes=1_000)
        assert flow.gathered.notified

    batch = flow.get(more)
    assert batch is not None
    assert len(batch) == 4
    assert batch.filled is None
    assert flow.flushes() == {"bytes": 1}


def test_bytes_that_are_with_a_consumer_do_not_count() -> None:
    flow = Flow(max_batch_bytes=4_000)
    flow.come(10, nbytes=400)
    held = flow.get(timeout=0)
    assert held is not None
    flow.come()
    assert len(flow.get(lambda: flow.come(59)) or ()) == 60


def test_pressure_ends_the_wait() -> None:
    flow = Flow(monitor=BackpressureMonitorConfig(queue_depth_threshold=30))
    flow.flushes()
    flow.come()

    def until_pressed() -> None:
        flow.clock.advance(0.002)
        flow.come(20)
        flow.buffer.add_events([b"x"] * 20, flow.priority)
        flow.gathered.notified = 0
        assert flow.buffer.is_backpressure_active()
        assert flow.gathered.notified == 1

    assert len(flow.get(until_pressed) or ()) == 41
    assert flow.flushes() == {"pressure": 1}
    flow.come()
    assert len(flow.get() or ()) == 1  # and as long as it lasts none begins
    assert flow.flushes() == {"pressure": 1}


def test_a_lane_that_is_half_full_does_not_wait() -> None:
    flow = Flow(lane_bytes=1 << 16)
    flow.flushes()
    flow.come()
    flow.gathered.notified = 0

    def fill() -> None:
        flow.come(7, nbytes=4_000)
        assert not flow.gathered.notified
        flow.come(2, nbytes=4_000)
        assert flow.gathered.notified

    assert len(flow.get(fill) or ()) == 10
    assert flow.flushes() == {"pressure": 1}


def test_close_ends_the_wait_and_forbids_others(flow: Flow) -> None:
    flow.come()
    begin: list[threading.Thread] = []

    def close() -> None:
        begin.append(threading.Thread(target=flow.buffer.close, args=(30.0,)))
        begin[0].start()
        while not flow.gathered.notified:
            begin[0].join(0.001)

    flow.gathered.notified = 0
    batch = flow.get(close)
    assert len(batch or ()) == 1
    assert flow.flushes() == {"close": 1}
    assert batch is not None
    batch.ack()
    begin[0].join(30.0)
    assert not begin[0].is_alive()
    with pytest.raises(BufferClosed):
        flow.get()


def test_flush_ends_the_wait_and_the_next_one_waits_again(flow: Flow) -> None:
    flow.come()
    assert len(flow.get(flow.buffer.flush) or ()) == 1
    assert flow.flushes() == {"flush": 1}
    assert flow.gathered.notified
    flow.come()
    assert len(flow.get(lambda: flow.come(60)) or ()) == 61
    assert flow.flushes() == {"linger": 1}


@pytest.mark.parametrize("other", [Priority.CRITICAL, Priority.BACKGROUND])
def test_an_event_of_another_priority_ends_the_wait(flow: Flow, other: Priority) -> None:
    """The consumer has something to do: the more urgent goes first, and nothing waits
    beside it.
    """
    flow.come()
    flow.gathered.notified = 0

    def another() -> None:
        flow.buffer.add_events([b"y"], other)
        assert flow.gathered.notified == 1

    first = flow.get(another)
    assert first is not None
    assert first.priority == min(other, Priority.NORMAL)
    assert flow.flushes().keys() <= {"ready", "linger"}


def test_no_batch_waits_while_another_lane_has_work(flow: Flow) -> None:
    flow.buffer.add_events([b"y"], Priority.BACKGROUND)
    flow.come()
    batch = flow.get()
    assert batch is not None
    assert batch.priority == Priority.NORMAL
    assert flow.flushes() == {"ready": 1}


def test_a_redelivered_batch_does_not_wait() -> None:
    flow = Flow(retry_backoff=LIMIT / 10)
    flow.flushes()
    flow.come()
    first = flow.get(timeout=0)
    assert first is not None
    first.nack("no")
    flow.clock.advance(LIMIT / 10)  # so that it comes right behind itself
    again = flow.get()
    assert again is not None
    assert again.attempt == 2
    assert again.filled is None
    assert flow.flushes() == {"ready": 1, "retry": 1}


def test_a_callers_timeout_ends_the_wait(flow: Flow) -> None:
    flow.come()
    batch = flow.get(lambda: threading.Event().wait(0.002), timeout=0.001)
    assert len(batch or ()) == 1
    assert flow.flushes() == {"linger": 1}


def test_a_wait_for_nothing_is_not_repeated_at_once(flow: Flow) -> None:
    flow.come()
    assert len(flow.get(lambda: flow.clock.advance(LIMIT)) or ()) == 1
    for _ in range(3):
        flow.come()
        assert len(flow.get() or ()) == 1
    assert flow.flushes() == {"linger": 1, "ready": 3}


def test_a_second_consumer_with_a_smaller_wish_takes_what_the_first_waits_for(flow: Flow) -> None:
    flow.come()
    taken: list[int] = []

    def other() -> None:
        flow.come(9)
        flow.gathered.notified = 0
        flow.out.append(flow.buffer.get_batch(10, timeout=5.0))
        taken.append(len(flow.out[-1] or ()))
        assert flow.gathered.notified  # the first has to look again, and finds nothing

    flow.idle.steps = iter([flow.come])
    assert len(flow.get(other, lambda: flow.come(60)) or ()) == 61
    assert taken == [10]
    assert len(flow.idle.sleeps) == 1
    assert flow.flushes() == {"size": 1, "linger": 1}


def test_of_two_consumers_the_one_that_wants_less_is_woken_for_its_own_number(flow: Flow) -> None:
    flow.come()
    taken: list[int] = []

    def other() -> None:
        flow.out.append(flow.buffer.get_batch(20, timeout=5.0))
        taken.append(len(flow.out[-1] or ()))

    def enough_for_the_first() -> None:
        flow.gathered.notified = 0
        flow.come(4)
        assert flow.gathered.notified == 1

    # In one thread the second looks first, and is content with nothing less than its
    # own wish.
    assert (
        len(flow.get(other, enough_for_the_first, lambda: flow.come(20), max_events=5) or ()) == 5
    )
    assert taken == [20]
    assert flow.flushes() == {"size": 2}


def test_an_open_circuit_does_not_make_a_consumer_spin(flow: Flow) -> None:
    flow.come()
    flow.buffer._control.breaker.force_open()
    slept: list[str] = []
    flow.idle.steps = iter([lambda: slept.append("idle"), flow.buffer.reset_circuit_breaker])

    def over() -> None:
        slept.append("gathered")
        flow.clock.advance(LIMIT)

    assert len(flow.get(over) or ()) == 1
    assert slept == ["gathered", "idle"]


def test_the_asynchronous_face_waits_as_well() -> None:
    flow = Flow(real_sleep=True)
    flow.flushes()

    async def run() -> int:
        buffer = flow.buffer
        flow.come()
        getting = asyncio.create_task(buffer.aio.get_batch(20, timeout=60.0))
        while buffer._hold.waiting is None:
            await asyncio.sleep(0)
        flow.come(18)
        await asyncio.sleep(0)
        assert not getting.done()
        flow.come()
        batch = await getting
        assert await buffer.aio.get_batch(timeout=0) is None
        flow.come()
        late = await buffer.aio.get_batch(
            timeout=0.001
        )  # the buffer's clock stands, so only this can end the wait
        assert len(late or ()) == 1
        return len(batch or ())

    assert asyncio.run(run()) == 20
    assert flow.flushes() == {"size": 1, "linger": 1}


# --- what a batch says of itself, and what is learnt from it


def test_reasons_and_what_each_tells_the_batch_manager() -> None:
    buffer = BufferManager(
        BufferConfig(
            max_batch_bytes=1_000,
            batching=AdaptiveBatchConfig(initial_batch_size=10, min_batch_size=1),
            flow_control=FlowControlConfig(throttle_enabled=False),
        )
    )
    for events, nbytes, asked, reason, filled in (
        (10, 10, None, "size", True),
        (9, 10, None, "ready", False),
        (9, 10, 9, "size", None),  # it asked for fewer than the size
        (9, 10, 12, "ready", False),
        (11, 10, 12, "ready", True),  # more than the size
        (12, 10, 12, "size", True),
        (8, 200, None, "bytes", None),
    ):
        buffer.add_events([b"x" * nbytes] * events)
        before = buffer.stats().batching.flushes
        with buffer.get_batch(asked) or pytest.fail("no batch") as batch:
            after = buffer.stats().batching.flushes
            assert {name: n - before[name] for name, n in after.items() if n != before[name]} == {
                reason: 1
            }
            assert batch.filled is filled
            assert len(batch) == (5 if reason == "bytes" else events)
    buffer.close(timeout=0)
