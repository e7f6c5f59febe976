"""The bound on delay: what it lets in, whom it refuses first, when it stands aside.
Time is a FakeClock throughout.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable

import pytest
from hypothesis import example
from hypothesis import strategies as st

from backpressure import BufferConfig, BufferManager, ConfigError, FlowControlConfig, WhenFull
from backpressure.base.validation import NOT_GIVEN
from backpressure.policies.flow_control_manager import FlowControlManager
from backpressure.testing import FakeClock
from tests.support.models import given_in_part

TARGET = 0.3
TICK = 0.02
BURST = 2.3 * TARGET
# Events per second that the sink of the rig takes.
RATE = 10_000.0


class Queue:
    """Five lanes before a sink that takes so much a second, the most urgent first, and
    a manager that hears of them.
    """

    def __init__(self, target: float | None = TARGET, batch: int = 200) -> None:
        self.clock = FakeClock(100.0)
        self.manager = FlowControlManager(
            FlowControlConfig(max_events_per_second=1e9, burst_size=10**8, delay_target=target),
            clock=self.clock,
            rng=random.Random(1),
        )
        self.batch = batch
        self.lanes: list[deque[tuple[float, int]]] = [deque() for _ in range(5)]
        self.taken = [0] * 5
        self.refused = [0] * 5
        self.admitted = [0] * 5
        #: (priority, seconds waited, events), as they were taken.
        self.waits: list[tuple[int, float, int]] = []
        self.calling = True
        #: Seconds for which the sink had nothing to do, in all, and in ticks in which
        #: something was refused.
        self.idle = self.starved = 0.0
        self._work = 0.0

    @property
    def waiting(self) -> list[int]:
        return [sum(n for _, n in lane) for lane in self.lanes]

    def offer(self, n: int, priority: int) -> int:
        granted = self.manager.admit(n, priority).granted
        self.refused[priority - 1] += n - granted
        self.admitted[priority - 1] += granted
        if granted:
            self.lanes[priority - 1].append((self.clock.now(), granted))
        return granted

    def run(self, seconds: float, demand: Callable[[int], float], rate: float = RATE) -> None:
        """`demand(priority)` events a second are offered, the least urgent first; the
        sink takes whole batches.
        """
        for _ in range(round(seconds / TICK)):
            refused, idle = sum(self.refused), self.idle
            for priority in range(5, 0, -1):
                if n := round(demand(priority) * TICK):
                    self.offer(n, priority)
            self._work += rate * TICK
            self._take(rate)
            if sum(self.refused) > refused:
                self.starved += self.idle - idle
            self.manager.observe(
                self.waiting, self.taken, enough=self.batch * 5 // 2, calling=self.calling
            )
            self.clock.advance(TICK)

    def _take(self, rate: float) -> None:
        for place, lane in enumerate(self.lanes):
            while lane and self._work >= 1.0:
                at, n = lane.popleft()
                part = min(n, int(self._work))
                if part < n:
                    lane.appendleft((at, n - part))
                self._work -= part
                self.taken[place] += part
                self.waits.append((place + 1, self.clock.now() - at, part))
        if not any(self.lanes):
            self.idle += self._work / rate
            self._work = 0.0

    def worst(self, priority: int) -> float:
        return max((wait for p, wait, _ in self.waits if p == priority), default=0.0)


def only(priority: int, rate: float) -> Callable[[int], float]:
    return lambda p: rate if p == priority else 0.0


def test_without_a_target_nothing_is_refused() -> None:
    queue = Queue(target=None)
    queue.run(10.0, only(3, 5 * RATE))
    assert sum(queue.refused) == 0
    assert FlowControlConfig().delay_target is None


def test_a_standing_queue_is_cut_to_the_target_and_the_sink_stays_busy() -> None:
    queue = Queue()
    queue.run(3.0, only(3, 0.5 * RATE))
    assert sum(queue.refused) == 0
    queue.run(5.0, only(3, 3 * RATE))
    assert queue.worst(3) <= 1.2 * BURST
    queue.waits.clear()
    queue.idle = 0.0
    queue.run(20.0, only(3, 3 * RATE))
    assert 0.5 * TARGET < queue.worst(3) <= 1.15 * TARGET
    assert queue.idle == 0.0
    assert sum(n for _, _, n in queue.waits) == pytest.approx(20 * RATE, rel=0.01)
    assert queue.manager.metrics().standing
    assert queue.manager.metrics().sink_rate == pytest.approx(RATE, rel=0.05)


def test_a_burst_that_drains_by_itself_passes_whole() -> None:
    queue = Queue()
    queue.run(2.0, only(3, 0.6 * RATE))
    for _ in range(5):
        queue.run(0.6, only(3, 2 * RATE))  # 0.6 s of work
        queue.run(5.0, only(3, 0.6 * RATE))
    assert sum(queue.refused) == 0
    assert 0.5 < queue.worst(3) < BURST


def test_a_burst_beyond_its_bound_loses_what_is_beyond_and_nothing_after_it() -> None:
    queue = Queue()
    queue.run(2.0, only(3, 0.6 * RATE))
    queue.run(0.6, only(3, 4 * RATE))  # 1.8 s of work, of which 0.69 may wait
    lost = sum(queue.refused)
    assert lost == pytest.approx((1.8 - BURST) * RATE, rel=0.15)
    queue.run(5.0, only(3, 0.6 * RATE))
    assert sum(queue.refused) == lost


@pytest.mark.parametrize(("seconds", "load"), [(1.1, 1.6), (1.3, 1.5)])
def test_a_burst_that_lasts_longer_than_an_interval_costs_nothing_once_it_is_over(
    seconds: float, load: float
) -> None:
    """The queue is above the target long after, and falls: to refuse would only lose
    what there is room for.
    """
    queue = Queue()
    queue.run(2.0, only(3, 0.6 * RATE))
    queue.run(seconds, only(3, load * RATE))
    queue.run(0.2, only(3, 0.6 * RATE))
    lost = sum(queue.refused)
    assert lost <= 0.2 * RATE
    queue.run(5.0, only(3, 0.6 * RATE))
    assert sum(queue.refused) == lost


def test_what_the_sink_can_take_is_not_forgotten_while_little_is_offered() -> None:
    queue = Queue()
    queue.run(3.0, only(3, 1.2 * RATE))
    queue.run(10.0, only(3, 0.1 * RATE))
    assert queue.offer(6_000, 3) == 6_000


def test_a_few_events_that_always_wait_do_not_show_what_the_sink_can_take() -> None:
    queue = Queue()
    queue.run(3.0, only(3, 1.2 * RATE))
    for _ in range(500):
        queue.taken[2] += 20
        queue.manager.observe([0, 0, 50, 0, 0], queue.taken, enough=300)
        queue.clock.advance(TICK)
    assert queue.manager.metrics().sink_rate == pytest.approx(RATE, rel=0.05)


def test_bursts_in_quick_succession_pass_as_long_as_the_queue_drains_in_between() -> None:
    queue = Queue()
    queue.run(2.0, only(3, 0.6 * RATE))
    for _ in range(4):
        queue.run(0.6, only(3, 2 * RATE))
        queue.run(1.5, only(3, 0.3 * RATE))
    assert sum(queue.refused) == 0


def test_what_is_admitted_between_two_looks_counts_for_the_less_urgent() -> None:
    queue = Queue()
    queue.run(3.0, only(3, 1.2 * RATE))
    queue.run(10.0, only(3, 0.1 * RATE))
    room = queue.offer(1_000_000, 3)
    assert room == pytest.approx(BURST * RATE, rel=0.1)
    assert queue.offer(100, 4) == queue.offer(100, 5) == 0
    assert queue.offer(100, 2) == queue.offer(100, 1) == 100


def test_a_queue_around_which_the_load_wavers_does_not_swing_between_burst_and_target() -> None:
    queue = Queue()
    rng = random.Random(2)
    queue.run(10.0, lambda p: 1.1 * RATE * rng.uniform(0.5, 1.5) if p == 3 else 0.0)
    queue.waits.clear()
    queue.run(30.0, lambda p: 1.1 * RATE * rng.uniform(0.5, 1.5) if p == 3 else 0.0)
    assert queue.worst(3) <= 1.6 * TARGET


def test_the_least_urgent_are_refused_first_and_priority_1_never() -> None:
    queue = Queue()
    queue.run(2.0, lambda p: 0.1 * RATE)
    queue.run(5.0, lambda p: 0.4 * RATE)  # the first two fit, the third half
    queue.waits.clear()
    queue.refused, queue.admitted = [0] * 5, [0] * 5
    queue.run(20.0, lambda p: 0.4 * RATE)
    lost = [refused / (0.4 * RATE * 20) for refused in queue.refused]
    assert lost[:2] == [0.0, 0.0]
    assert lost[2] == pytest.approx(0.5, abs=0.1)
    assert lost[3] > 0.9
    assert lost[4] > 0.9
    assert queue.worst(1) <= 2 * TICK
    assert queue.worst(2) <= 3 * TICK
    assert queue.worst(3) <= 1.5 * TARGET


def test_priority_1_alone_beyond_the_sink_is_admitted_and_nobody_else_is() -> None:
    queue = Queue()
    queue.run(2.0, lambda p: 0.1 * RATE)
    queue.run(10.0, lambda p: (2.0 if p == 1 else 0.1) * RATE)
    queue.refused, queue.admitted = [0] * 5, [0] * 5
    queue.run(10.0, lambda p: (2.0 if p == 1 else 0.1) * RATE)
    assert queue.refused[0] == 0
    assert queue.admitted[1:] == [0] * 4


def test_what_the_sink_does_not_need_is_refused_while_a_more_urgent_one_is() -> None:
    """It would only wait: all that the sink takes is of the more urgent. A trickle goes
    in, so that none starves for ever.
    """
    queue = Queue()
    queue.run(2.0, only(3, 0.5 * RATE))
    queue.run(4.0, lambda priority: 2 * RATE if priority in (2, 4) else 0.0)
    before = list(queue.admitted)
    queue.run(10.0, lambda priority: 2 * RATE if priority in (2, 4) else 0.0)
    admitted = [now - then for now, then in zip(queue.admitted, before, strict=True)]
    assert admitted[1] == pytest.approx(10 * RATE, rel=0.02)
    assert admitted[3] < 0.05 * RATE
    # Once the flood of the more urgent is over the sink is busy with the others at
    # once.
    queue.idle = 0.0
    queue.run(5.0, lambda priority: 2 * RATE if priority == 4 else 0.0)
    assert queue.idle < 0.9


def test_the_less_urgent_are_let_in_once_a_flood_of_more_urgent_ones_is_over() -> None:
    """Those were refused just now, but what was let in of them is gone after 0.3 s: the
    sink would have nothing to do until the interval ends.
    """
    queue = Queue()
    queue.run(2.0, only(3, 0.5 * RATE))
    queue.run(4.0, only(2, 2 * RATE))
    assert queue.refused[1] > 0
    queue.run(0.8, only(5, 1.5 * RATE))
    assert queue.waiting[1] == 0
    assert queue.starved <= 2 * TICK


def test_a_refusal_says_delay_and_when_to_come_back() -> None:
    queue = Queue()
    queue.run(2.0, only(3, 0.5 * RATE))
    queue.run(5.0, only(3, 3 * RATE))
    grants = [queue.manager.admit(100_000, 3) for _ in range(20)]
    assert {grant.reason for grant in grants} == {"delay"}
    assert all(0.0 < grant.retry_after <= 1.5 * 2.75 * TARGET for grant in grants)
    assert len({grant.retry_after for grant in grants}) > 10
    assert queue.manager.metrics().refused["delay"] > 0


def test_what_is_given_back_leaves_its_room_to_others() -> None:
    queue = Queue()
    queue.run(2.0, only(3, 0.5 * RATE))
    queue.run(5.0, only(3, 3 * RATE))
    # The queue may have dipped below what is enough: fill it up.
    queue.manager.admit(10_000, 3)
    queue.manager.give_back(150, 3)
    assert queue.manager.admit(10_000, 3).granted == 150


def test_it_follows_a_sink_that_slows_down_and_one_that_recovers() -> None:
    queue = Queue()
    queue.run(2.0, only(3, 0.5 * RATE))
    queue.run(5.0, only(3, 2 * RATE))
    queue.run(5.0, only(3, 2 * RATE), rate=RATE / 4)
    queue.waits.clear()
    queue.run(10.0, only(3, 2 * RATE), rate=RATE / 4)
    assert queue.worst(3) <= 1.4 * TARGET
    queue.run(3.0, only(3, 2 * RATE))
    taken = sum(queue.taken)
    queue.run(10.0, only(3, 2 * RATE))
    assert sum(queue.taken) - taken == pytest.approx(10 * RATE, rel=0.02)


def test_an_outage_refuses_nothing() -> None:
    """Neither while the circuit is open nor when the sink just hangs: the room is there
    to outlast that.
    """
    for calling in (False, True):
        queue = Queue()
        queue.run(2.0, only(3, 0.5 * RATE))
        queue.calling = calling
        queue.run(4 * 2.75 * TARGET, only(3, 0.5 * RATE), rate=0.0)
        refused = sum(queue.refused)
        queue.run(20.0, only(3, 0.5 * RATE), rate=0.0)
        assert sum(queue.refused) == refused
        assert refused == 0 or calling


def test_what_can_be_spilled_is_not_refused() -> None:
    queue = Queue()
    queue.run(2.0, only(3, 0.5 * RATE))
    queue.run(5.0, only(3, 3 * RATE))
    assert queue.manager.admit(100_000, 3).reason == "delay"
    queue.manager.observe(queue.waiting, queue.taken, enough=300, spills=True)
    assert queue.manager.admit(100_000, 3).granted == 100_000
    queue.manager.observe(queue.waiting, queue.taken, enough=300)
    assert queue.manager.metrics().sink_rate == pytest.approx(RATE, rel=0.05)


def test_an_open_circuit_sheds_nothing_in_an_emergency_either() -> None:
    queue = Queue(target=None)
    manager = queue.manager
    for _ in range(100):
        manager.admit(100, 5)
        manager.record_outcome(0, 100)
        queue.clock.advance(0.1)
    assert manager.emergency
    assert manager.admit(100, 5).reason == "emergency"
    manager.observe([0] * 5, [0] * 5, enough=1, calling=False)
    assert not manager.emergency
    assert manager.admit(100, 5).reason is None
    manager.observe([0] * 5, [0] * 5, enough=1, calling=True)
    queue.clock.advance(1.0)
    manager.record_outcome(0, 100)
    assert manager.admit(100, 5).reason == "emergency"


def test_a_consumer_that_comes_by_now_and_then_has_nothing_refused() -> None:
    """A consumer that takes everything each 10 s has no overloaded sink, however long
    events wait.
    """
    queue = Queue()
    for _ in range(20):
        queue.run(10.0, only(3, 100.0), rate=0.0)
        queue.run(0.2, only(3, 100.0), rate=1e6)
    assert sum(queue.refused) == 0


def test_a_slow_sink_that_takes_a_batch_now_and_then_is_measured_all_the_same() -> None:
    queue = Queue(target=20.0, batch=100)
    clock, manager = queue.clock, queue.manager
    waiting = taken = 0
    for step in range(60_000):  # 20 minutes; 100 events each 5 s are taken, 50 a second are offered
        waiting += manager.admit(1, 3).granted
        if step % 250 == 0:
            part = min(100, waiting)
            waiting, taken = waiting - part, taken + part
        manager.observe([0, 0, waiting, 0, 0], [0, 0, taken, 0, 0], enough=150)
        clock.advance(TICK)
    assert manager.metrics().sink_rate == pytest.approx(20.0, rel=0.3)
    assert waiting <= 1.5 * 20.0 * 20.0


def test_memory_does_not_grow_where_nothing_is_ever_taken() -> None:
    queue = Queue()
    queue.run(60.0, only(3, 100.0), rate=0.0)
    bound = queue.manager._bound
    assert bound is not None
    assert len(bound._past) < 100
    assert len(bound._offers) < 100


def test_it_goes_on_when_the_clock_steps() -> None:
    queue = Queue()
    queue.run(2.0, only(3, 0.5 * RATE))
    queue.run(5.0, only(3, 3 * RATE))
    for step in (-50.0, 3600.0, -50.0):
        queue.clock.set(queue.clock.now() + step)
        for lane in queue.lanes:
            for place, (at, n) in enumerate(lane):
                lane[place] = (at + step, n)
        queue.run(4.0, only(3, 3 * RATE))
        queue.waits.clear()
        queue.run(5.0, only(3, 3 * RATE))
        assert 0.5 * TARGET < queue.worst(3) <= 1.2 * TARGET


@given_in_part(
    25,
    seed=st.integers(0, 10**6),
    loads=st.lists(
        st.tuples(st.integers(1, 5), st.floats(0.0, 4.0), st.floats(0.1, 1.4)),
        min_size=3,
        max_size=12,
    ),
)
@example(
    # A flood of the most urgent, and as soon as it ends one of the least urgent.
    seed=234,
    loads=[*[(1, 0.0, 1.0)] * 3, (1, 0.0, 0.109375), (1, 0.0, 0.25), (1, 2.0, 1.0), (5, 2.0, 1.0)],
)
def test_whatever_comes_the_sink_is_not_starved_and_urgent_events_pass(
    seed: int, loads: list[tuple[int, float, float]]
) -> None:
    """The sink hardly ever runs dry in a tick in which something was refused, and
    priority 1 is never refused.

    Where a priority is refused those below it are held back for its sake; but not once
    it has fallen silent and the sink has worked off what waited.
    """
    queue = Queue()
    rng = random.Random(seed)
    queue.run(2.0, only(3, 0.8 * RATE))
    for priority, load, rate in loads:
        for _ in range(5):
            rates = dict.fromkeys(range(1, 6), 0.05 * RATE) | {priority: load * rng.random() * RATE}
            queue.run(0.2, rates.__getitem__, rate=rate * RATE)
    assert queue.starved < 0.01 * (2.0 + len(loads))
    assert queue.refused[0] == 0


def test_a_count_that_seems_to_go_back_takes_nothing_from_the_rate() -> None:
    """Waiting and accepted are read one after the other, while others push."""
    queue = Queue()
    rng = random.Random(5)
    queue.run(3.0, only(3, 1.2 * RATE))
    for _ in range(200):
        queue.taken[2] += round(RATE * TICK)
        seen = queue.taken[2] - (50_000 if rng.random() < 0.2 else 0)
        queue.manager.observe(
            [0, 0, 5_000, 0, 0], [*queue.taken[:2], seen, *queue.taken[3:]], enough=300
        )
        queue.clock.advance(TICK)
        assert queue.manager.metrics().sink_rate == pytest.approx(RATE, rel=0.1)


def test_wrong_numbers_are_told() -> None:
    with pytest.raises(ConfigError, match="delay_target"):
        FlowControlConfig(delay_target=0.0)
    with pytest.raises(ConfigError, match="delay_target"):
        FlowControlConfig(delay_target=True)
    with pytest.raises(ValueError, match="5 numbers"):
        Queue().manager.observe([0] * 4, [0] * 5, enough=1)


# -- in a buffer


def pressed(
    when_full: WhenFull = WhenFull.REJECT, target: float | None = TARGET
) -> tuple[BufferManager, FakeClock]:
    """A buffer that was offered far more than its consumer takes, for ten seconds."""
    clock = FakeClock(50.0)
    config = BufferConfig(flow_control=FlowControlConfig(delay_target=target), when_full=when_full)
    buffer = BufferManager(config, clock=clock, rng=random.Random(1))
    buffer.adjust_batch_size(1_000)
    for step in range(500):
        offer = buffer._intake.pending_events([b"event"] * (100 if step < 100 else 400), 3)
        offer.advance()  # and does not wait: this clock stands meanwhile
        offer.admission()
        batch = buffer.get_batch(200)
        if batch is not None:
            batch.ack()
        clock.advance(TICK)
    return buffer, clock


def test_a_buffer_refuses_what_would_wait_too_long() -> None:
    buffer, _ = pressed()
    stats = buffer.stats()
    stats.check()
    assert stats.rejected["delay"] > 50_000
    assert stats.waiting <= 1.2 * max(TARGET * 10_000, 1_500)
    assert stats.flow_control.standing
    admission = buffer.add_events([b"event"] * 10_000, 3)
    assert (admission.reason, admission.accepted + admission.rejected) == ("delay", 10_000)
    assert admission.retry_after > 0.0
    assert buffer.add_events([b"event"] * 10_000, 1).rejected == 0
    assert pressed(target=None)[0].stats().rejected == {}


def test_a_buffer_that_drops_the_oldest_refuses_nothing() -> None:
    assert pressed(WhenFull.DROP_OLDEST)[0].stats().rejected == {}


def test_an_offer_looks_itself_when_nobody_else_does() -> None:
    """A consumer that is busy in its sink does not tick: the producers must find out
    that the sink has stopped.
    """
    buffer, clock = pressed()
    assert buffer.add_events([b"event"] * 10_000, 3).reason == "delay"
    clock.advance(60.0)
    assert buffer.add_events([b"event"] * 10_000, 3).accepted == 10_000


def test_a_blocked_producer_waits_for_its_turn() -> None:
    buffer, clock = pressed(WhenFull.BLOCK)
    offer = buffer._intake.pending_events([b"event"] * 5_000, 3)
    assert not offer.advance()
    assert buffer._intake.seconds(NOT_GIVEN) == float("inf")
    assert 0.0 < offer.pause() <= 1.0
    for _ in range(200):
        batch = buffer.get_batch(200)
        assert batch is not None
        batch.ack()
        clock.advance(TICK)
        if offer.advance():
            break
    assert offer.admission().accepted == 5_000
