"""BackpressureMonitor: how its thresholds follow what is normal."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tests.support.backpressure_monitor import Rig


def test_thresholds_follow_a_normal_that_is_higher_but_only_to_twice_the_setting() -> None:
    rig = Rig(adaptive_thresholds=True)
    rig.learn_normal(latency=0.5)
    assert not rig.interval(latency=1.4).active
    rig = Rig(adaptive_thresholds=True)
    rig.learn_normal(latency=0.95)
    seen = rig.interval(latency=2.0)
    assert (seen.active, seen.threshold) == (True, 2.0)


def test_thresholds_follow_a_normal_that_is_lower_but_only_to_half_the_setting() -> None:
    rig = Rig(adaptive_thresholds=True)
    rig.learn_normal(delay=0.001)
    rig.interval(delay=0.26)
    seen = rig.interval(delay=0.26)
    assert (seen.active, seen.signal, seen.threshold) == (True, "delay", 0.25)


def test_the_depth_threshold_adapts_downwards_only() -> None:
    rig = Rig(adaptive_thresholds=True)
    rig.learn_normal(depth=900)
    rig.monitor.observe(depth=1000)
    assert rig.monitor.evaluate().threshold == 1000
    rig = Rig(adaptive_thresholds=True)
    rig.learn_normal(depth=20)
    rig.monitor.observe(depth=499)
    assert not rig.monitor.evaluate().active
    rig.monitor.observe(depth=500)
    seen = rig.monitor.evaluate()
    assert (seen.active, seen.threshold) == (True, 500)


def test_without_adaption_thresholds_stay_as_configured() -> None:
    rig = Rig(adaptive_thresholds=False)
    rig.learn_normal(intervals=50, latency=0.01, depth=1)
    assert not rig.interval(latency=0.99, depth=1).active


def test_nothing_is_learnt_while_active() -> None:
    rig = Rig(adaptive_thresholds=True)
    rig.learn_normal(intervals=20, latency=0.2)  # threshold 0.6
    for _ in range(200):
        seen = rig.interval(latency=1.9)
        assert seen.active
        assert seen.threshold == pytest.approx(0.6)


def test_nothing_is_learnt_from_the_interval_that_ends_the_activity() -> None:
    rig = Rig(adaptive_thresholds=True)
    rig.learn_normal(intervals=20, latency=0.3)
    rig.interval(latency=2.0)
    assert not rig.interval(latency=0.01).active
    assert rig.interval(latency=2.0).threshold == pytest.approx(0.9)


def test_the_normal_depth_is_that_of_the_bursts_not_of_the_moment_of_judgement() -> None:
    rig = Rig(adaptive_thresholds=True)
    for _ in range(10):
        rig.monitor.observe(depth=300)
        assert not rig.interval(depth=1).active
    rig.monitor.observe(depth=899)
    assert not rig.monitor.evaluate().active
    rig.monitor.observe(depth=901)
    assert rig.monitor.evaluate().active


@pytest.mark.parametrize("senseless", [-1e9, math.nan])
@pytest.mark.parametrize(
    ("signal", "threshold"), [("depth", 1000.0), ("delay", 0.5), ("latency", 1.0)]
)
def test_senseless_measurements_teach_nothing(
    signal: str, threshold: float, senseless: float
) -> None:
    rig = Rig(adaptive_thresholds=True)
    measured: dict[str, Any] = {signal: senseless}
    rig.learn_normal(**measured)
    measured[signal] = threshold
    rig.interval(**measured)
    seen = rig.interval(**measured)
    assert (seen.active, seen.signal, seen.threshold) == (True, signal, threshold)


def test_nothing_is_learnt_from_one_interval_or_from_idleness() -> None:
    rig = Rig(adaptive_thresholds=True)
    rig.interval(latency=0.001)
    rig.interval(latency=0.001)
    assert not rig.interval(latency=0.99).active
    rig = Rig(adaptive_thresholds=True)
    rig.learn_normal(intervals=100, depth=0, delay=0.0)
    rig.monitor.observe(depth=999)
    assert not rig.monitor.evaluate().active


def test_an_odd_interval_moves_what_is_normal_only_a_little() -> None:
    rig = Rig(adaptive_thresholds=True)
    rig.learn_normal(intervals=20, latency=0.2)
    rig.interval(latency=0.59)
    assert rig.interval(latency=5.0).threshold == pytest.approx(3 * (0.2 + 0.1 * 0.39))


def test_an_absurd_depth_that_was_gone_again_does_not_spoil_what_is_normal() -> None:
    rig = Rig(adaptive_thresholds=True)
    rig.learn_normal(depth=20)
    rig.monitor.observe(depth=math.inf)
    rig.interval(depth=20)
    rig.learn_normal(intervals=50, depth=20)
    rig.monitor.observe(depth=500)
    assert rig.monitor.evaluate().active
