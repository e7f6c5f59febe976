"""ControlLoop: what one policy tells another; each law has tests of its own."""

from __future__ import annotations

import random

import pytest

from backpressure.policies.adaptive_batch_manager import AdaptiveBatchConfig, AdaptiveBatchManager
from backpressure.policies.backpressure_monitor import (
    BackpressureMonitor,
    BackpressureMonitorConfig,
)
from backpressure.policies.circuit_breaker import CircuitBreaker, CircuitBreakerConfig, State
from backpressure.policies.control_loop import Backoff, ControlLoop, QueueReading
from backpressure.policies.flow_control_manager import FlowControlConfig, FlowControlManager
from backpressure.testing import FakeClock

IDLE = QueueReading([0] * 5, [0] * 5, fill=0.0, delay=0.0)


class Rig:
    def __init__(self, backoff: Backoff | None = None, **flow: float) -> None:
        self.clock = FakeClock(50.0)
        self.loop = ControlLoop(
            CircuitBreaker(CircuitBreakerConfig(), clock=self.clock),
            BackpressureMonitor(
                BackpressureMonitorConfig(queue_depth_threshold=1_000), clock=self.clock
            ),
            AdaptiveBatchManager(
                AdaptiveBatchConfig(initial_batch_size=1_000, min_batch_size=10), clock=self.clock
            ),
            FlowControlManager(
                FlowControlConfig(**flow),  # type: ignore[arg-type]
                clock=self.clock,
            ),
            rng=random.Random(1),
            **({} if backoff is None else {"backoff": backoff}),
        )

    def call(self, ok: bool, events: int = 100) -> None:
        permit = self.loop.permit()
        assert permit is not None
        self.loop.settled(events, 0.1, ok, True, permit)

    def tick(self, reading: QueueReading = IDLE) -> None:
        assert self.loop.due(self.clock.now())
        self.loop.tick(self.clock.now(), reading)
        assert not self.loop.due(self.clock.now())


def test_an_outcome_reaches_every_policy() -> None:
    rig = Rig()
    loop = rig.loop
    rig.call(True)
    rig.call(False)
    breaker = loop.breaker.metrics()
    assert (breaker.succeeded, breaker.failed) == (1, 1)
    assert loop.flow.metrics().failure_rate == 0.5
    rig.clock.advance(5.0)
    for _ in range(2):
        rig.call(False)
        rig.clock.advance(2.6)
        rig.tick()
    pressure = loop.monitor.evaluate()
    assert (pressure.active, pressure.signal) == (True, "error_rate")


def test_full_batches_make_the_size_grow_and_others_do_not() -> None:
    sizes = []
    for filled in (True, None):
        rig = Rig()
        for _ in range(20):
            permit = rig.loop.permit()
            assert permit is not None
            rig.loop.settled(1_000, 0.01, True, filled, permit)
        rig.clock.advance(10.0)
        rig.tick()
        sizes.append(rig.loop.batch_size)
    assert sizes[0] > sizes[1] == 1_000


def test_a_tick_is_due_fifty_times_a_second() -> None:
    rig = Rig()
    rig.tick()
    rig.clock.advance(0.019)
    assert not rig.loop.due(rig.clock.now())
    rig.clock.advance(0.002)
    rig.tick()


@pytest.mark.parametrize(("fill", "active"), [(0.79, False), (0.81, True)])
def test_a_full_lane_counts_as_depth_however_few_its_events(fill: float, active: bool) -> None:
    rig = Rig()
    rig.tick(QueueReading([3, 0, 0, 0, 0], [0] * 5, fill=fill, delay=0.0))
    assert rig.loop.monitor.active is active


def test_the_deepest_of_events_and_bytes_counts() -> None:
    rig = Rig()
    rig.tick(QueueReading([400, 0, 600, 0, 0], [0] * 5, fill=0.1, delay=0.0))
    assert rig.loop.monitor.active


def test_nothing_is_refused_for_its_delay_where_it_spills() -> None:
    for spills in (False, True):
        rig = Rig(delay_target=0.1, burst_size=100_000)
        taken = 0
        for _ in range(500):
            rig.loop.admit(400, 5)
            taken += 20
            reading = QueueReading([0, 0, 0, 0, 50_000], [0, 0, 0, 0, taken], 0.5, 5.0, spills)
            rig.tick(reading)
            rig.clock.advance(0.02)
        assert bool(rig.loop.flow.metrics().refused.get("delay")) is not spills


def test_an_open_circuit_stops_shedding() -> None:
    rig = Rig()
    for _ in range(30):
        if (permit := rig.loop.permit()) is not None:
            rig.loop.settled(100, 0.1, False, True, permit)
    assert rig.loop.breaker.state is State.OPEN
    rig.tick()
    assert rig.loop.admit(1_000, 5).granted == 1_000


def test_the_backoff_doubles_to_its_longest() -> None:
    rig = Rig(Backoff(0.01, 5.0, feeds_breaker=False))
    for attempt, longest in ((1, 0.01), (2, 0.02), (5, 0.16), (60, 5.0), (1 << 40, 5.0)):
        pauses = [rig.loop.backoff(attempt) for _ in range(200)]
        assert longest / 2 <= min(pauses) < max(pauses) <= longest


def test_while_nothing_succeeds_the_breaker_gets_its_results_in_time() -> None:
    """Ten results in a window of five seconds, with half of it for the calls."""
    rig = Rig()
    rig.call(False)
    assert max(rig.loop.backoff(30) for _ in range(200)) <= 0.25
    rig.call(True)
    assert max(rig.loop.backoff(30) for _ in range(200)) > 2.0


def test_what_is_given_back_was_never_admitted() -> None:
    rig = Rig(max_events_per_second=10.0, burst_size=100)
    assert rig.loop.admit(100, 3).granted == 100
    assert rig.loop.admit(1, 3).reason == "rate"
    rig.loop.give_back(40, 3)
    assert rig.loop.admit(100, 3).granted == 40
