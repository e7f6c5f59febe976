"""Admissions ahead of the events, and the law that they keep."""

from __future__ import annotations

import random
from collections import deque

import pytest

from backpressure.policies.flow_control_manager import (
    EmergencyModeConfig,
    FlowControlConfig,
    FlowControlManager,
)
from backpressure.policies.flow_control_manager.prepaid import Prepayment
from backpressure.testing import FakeClock
from ringbuf import MessageRing
from ringbuf._messages.prepaid import Entrance, Gate


class Way:
    """A way in for single events, into a ring that has room."""

    def __init__(self, flow: FlowControlManager, priority: int) -> None:
        self.flow = flow
        self.entrance = Entrance()
        self.prepayment: Prepayment = flow.prepayment(self, priority)
        nothing: tuple[set[object], list[object]] = (set(), [])
        self.entrance._open(
            MessageRing(1 << 22),
            Gate(),
            self.prepayment.purse,
            lambda: flow.prepay(self.prepayment),
            lambda seq: None,
            nothing,
            nothing,
            1.0,
        )

    def add(self) -> bool:
        """As a buffer does: ask for the event itself where it is not plain."""
        if self.entrance.try_add(b"x"):
            return True
        return self.flow.admit(1, self.prepayment.p + 1).granted == 1


def flow_of(clock: FakeClock, rate: float, burst: int, **more: object) -> FlowControlManager:
    config = FlowControlConfig(max_events_per_second=rate, burst_size=burst, **more)  # type: ignore[arg-type]
    return FlowControlManager(config, clock=clock)


@pytest.mark.parametrize("seed", range(8))
def test_no_more_enters_than_burst_and_rate_in_any_span(seed: int) -> None:
    """However often purses are filled, emptied and left full."""
    pick, clock = random.Random(seed), FakeClock()
    burst = pick.choice([600, 2_000, 50_000])
    rate = pick.choice([0.0, 100.0, 5_000.0])
    flow = flow_of(clock, rate, burst)
    ways = [Way(flow, p) for p in (1, 2, 3, 3, 5)]
    # The most that may have entered by now if a span began at any moment before: over
    # all of them the excess is the largest drop of what a bucket holds.
    entered: deque[tuple[float, int]] = deque()
    total = 0
    for _ in range(400):
        kind = pick.randrange(10)
        if kind < 6:
            way = pick.choice(ways)
            for _ in range(pick.choice([1, 3, 40, 700])):
                total += way.add()
        elif kind < 7:
            total += flow.admit(pick.choice([1, 100, burst]), pick.randrange(1, 6)).granted
        elif kind < 8:
            flow.recall()
        elif kind < 9:
            ways[pick.randrange(5)] = Way(flow, pick.randrange(1, 6))
            flow.metrics()
        clock.advance(pick.choice([0.0, 0.0, 0.001, 0.1, 30.0]))
        entered.append((clock.now(), total))
    # A bucket of that rate and burst never runs dry over what has entered.
    level, before, so_far = float(burst), 0.0, 0
    for now, count in entered:
        level -= count - so_far
        assert level >= -1e-6
        level = min(float(burst), level + rate * (now - before))
        before, so_far = now, count
    metrics = flow.metrics()
    assert sum(metrics.admitted) == total
    assert metrics.burst == burst


def test_a_busy_way_is_filled_with_more_and_a_rare_one_with_less() -> None:
    clock = FakeClock()
    flow = flow_of(clock, 1e9, 2_000_000)
    way = Way(flow, 3)
    for _ in range(5_000):
        assert way.add()
    assert way.prepayment.stock == 512
    for _ in range(40):
        clock.advance(1.0)
        flow.recall()
        assert way.add()
    assert way.prepayment.stock == 8


def test_all_purses_together_hold_a_fiftieth_of_the_burst() -> None:
    clock = FakeClock()
    flow = flow_of(clock, 0.0, 10_000)
    ways = [Way(flow, 3) for _ in range(100)]
    for way in ways:
        assert way.add()
    assert flow._prepaid.held <= 200
    assert flow.metrics().tokens == 10_000 - 100


def test_an_emergency_takes_back_what_was_admitted_ahead() -> None:
    clock = FakeClock()
    flow = flow_of(
        clock, 1e6, 100_000, emergency_mode=EmergencyModeConfig(throttle_rate=1.0, min_samples=2)
    )
    way = Way(flow, 5)
    assert way.add()
    assert way.prepayment.purse.unused
    for _ in range(5):
        flow.record_outcome(0, 10)
    assert flow.emergency
    assert way.prepayment.purse.unused == 0
    assert not way.entrance.try_add(b"x"), "each is for admit, which sheds"


def test_what_was_used_is_demand_and_admitted() -> None:
    clock = FakeClock()
    flow = flow_of(clock, 1e6, 100_000)
    way = Way(flow, 2)
    for _ in range(100):
        assert way.add()
    assert flow.metrics().admitted == (0, 100, 0, 0, 0)
    assert flow.rate(2) == pytest.approx(100.0)
    assert flow.metrics().tokens == 99_900
