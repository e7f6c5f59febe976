"""BackpressureMonitor: what activates it, and what does not."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.backpressure_monitor import Rig


@pytest.mark.parametrize(
    ("reports", "signal", "value", "threshold"),
    [
        ({"depth": 1200}, "depth", 1200, 1000),
        ({"delay": 0.6}, "delay", 0.6, 0.5),
        ({"latency": 1.5}, "latency", 1.5, 1.0),
        ({"ok": 80, "failed": 20}, "error_rate", 0.2, 0.1),
    ],
)
def test_each_signal_alone_activates_and_names_itself(
    reports: dict[str, Any], signal: str, value: float, threshold: float
) -> None:
    rig = Rig()
    rig.interval(**reports)
    seen = rig.interval(**reports)
    assert seen.active
    assert rig.monitor.active
    assert (seen.signal, seen.cause) == (signal, signal)
    assert seen.value == pytest.approx(value)
    assert seen.threshold == pytest.approx(threshold)
    assert len(rig.changes) == 1
    assert (rig.changes[0].signal, rig.changes[0].active) == (signal, True)
    assert rig.changes[0].active_for == 0.0


@pytest.mark.parametrize(
    "reports",
    [{"depth": 999}, {"delay": 0.49}, {"latency": 0.99}, {"ok": 91, "failed": 9}],
)
def test_just_below_its_threshold_no_signal_activates(reports: dict[str, Any]) -> None:
    rig = Rig()
    for _ in range(10):
        assert not rig.interval(**reports).active
    assert rig.changes == []


def test_depth_activates_at_once_and_not_only_when_the_interval_is_over() -> None:
    rig = Rig()
    rig.monitor.observe(depth=999)
    assert not rig.monitor.evaluate().active
    rig.monitor.observe(depth=1000)
    seen = rig.monitor.evaluate()
    assert (seen.active, seen.signal, seen.at) == (True, "depth", 100.0)
    assert seen.pressure == pytest.approx(0.5)


def test_a_depth_that_fell_again_before_anyone_looked_does_not_activate() -> None:
    rig = Rig()
    rig.monitor.observe(depth=5000)
    rig.monitor.observe(depth=10)
    assert not rig.monitor.evaluate().active
    assert rig.monitor.history() == ()
    rig.clock.advance(1.0)
    assert not rig.monitor.evaluate().active


def test_depth_raises_the_pressure_at_once_while_another_signal_is_hot_and_keeps_its_cause() -> (
    None
):
    rig = Rig()
    assert rig.interval(latency=1.1).signal == "latency"
    rig.monitor.observe(depth=1400)
    seen = rig.monitor.evaluate()
    assert (seen.signal, seen.cause) == ("depth", "latency")
    assert seen.pressure == pytest.approx(0.9)
    assert len(rig.changes) == 1


def test_depth_does_not_hide_a_worse_signal() -> None:
    rig = Rig()
    rig.interval(latency=5.0)
    rig.monitor.observe(depth=1100)
    seen = rig.monitor.evaluate()
    assert (seen.signal, seen.pressure) == ("latency", 1.0)


def test_evaluate_is_the_last_judgement_until_the_interval_is_over() -> None:
    rig = Rig()
    first = rig.interval(latency=0.2)
    rig.monitor.observe(latency=9.0)
    rig.clock.advance(0.999)
    assert rig.monitor.evaluate() is first
    rig.clock.advance(0.001)
    assert rig.monitor.evaluate().signal == "latency"


def test_a_burst_shorter_than_the_interval_leaves_the_delay_signal_alone() -> None:
    rig = Rig()
    for _ in range(5):
        # Nine tenths of each interval are far over the threshold, and straddle its end.
        for step in range(10):
            rig.monitor.observe(delay=0.0 if step == 4 else 30.0)
            rig.clock.advance(0.1)
            assert not rig.monitor.evaluate().active


def test_a_delay_seen_once_per_interval_must_be_high_twice_in_a_row() -> None:
    rig = Rig()
    assert not rig.interval(steps=1, delay=0.0).active
    assert not rig.interval(steps=1, delay=2.0).active
    assert rig.interval(steps=1, delay=2.0).active


def test_latency_is_the_median_so_one_stalled_call_is_nothing() -> None:
    rig = Rig()
    for latency in (0.1, 0.1, 60.0, 60.0):
        rig.monitor.observe(latency=latency)
    rig.clock.advance(1.0)
    seen = rig.monitor.evaluate()
    assert (seen.active, seen.value) == (False, 0.1)
    for latency in (0.1, 60.0, 60.0):
        rig.monitor.observe(latency=latency)
    rig.clock.advance(1.0)
    assert rig.monitor.evaluate().value == 60.0


def test_an_error_rate_needs_min_samples_and_collects_them_over_intervals() -> None:
    rig = Rig(min_samples=20)
    for _ in range(4):
        assert not rig.interval(steps=1, failed=4).active
    seen = rig.interval(steps=1, failed=4)
    assert (seen.active, seen.signal, seen.value) == (True, "error_rate", 1.0)
    # What was judged is not judged again.
    assert not rig.interval(steps=1, ok=20).active


def test_falling_throughput_activates_while_the_queue_grows() -> None:
    rig = Rig(adaptive_thresholds=True)
    rig.learn_normal(ok=100, depth=200)
    depth = 200
    for _ in range(3):
        for _ in range(4):
            depth += 5
            rig.monitor.observe(ok=20, depth=depth)
            rig.clock.advance(0.25)
        seen = rig.monitor.evaluate()
    assert (seen.active, seen.signal) == (True, "throughput")
    assert seen.value == pytest.approx(80.0)
    assert seen.threshold == pytest.approx(200.0)
    # Producers held back: the queue no longer grows, and the fault lasts all the same.
    for _ in range(5):
        assert rig.interval(ok=20, depth=depth).active
    # Nothing waits any more: low throughput is then only a quiet source.
    rig.interval(ok=1, depth=0)
    for _ in range(3):
        seen = rig.interval(ok=1, depth=0)
    assert not seen.active


@pytest.mark.parametrize(
    ("depths", "adaptive"),
    [
        ([0, 0, 0], True),  # a source that fell silent
        ([200, 200, 200], True),  # a queue that does not grow
        ([0, 60, 90], True),  # one that grows but was near empty: the start of a burst
        ([200, 300, 400], False),  # nothing learnt
    ],
)
def test_low_throughput_without_a_standing_growing_queue_is_no_fault(
    depths: list[int], adaptive: bool
) -> None:
    rig = Rig(adaptive_thresholds=adaptive)
    rig.learn_normal(ok=100, depth=200)
    rig.interval(ok=100, depth=depths[0])
    for depth in depths:
        assert not rig.interval(ok=1, depth=depth).active
