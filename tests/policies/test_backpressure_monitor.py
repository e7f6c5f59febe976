"""BackpressureMonitor: what activates it, what does not, how it lets go. Time is a FakeClock throughout."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backpressure.base.errors import ConfigError
from backpressure.policies.backpressure_monitor import (
    BackpressureMonitor,
    BackpressureMonitorConfig,
    Pressure,
)
from backpressure.testing import FakeClock
from tests.support.threads import in_thread, run_threads

SIGNALS = {"depth", "delay", "latency", "error_rate", "throughput"}


class Rig:
    """A monitor of round numbers, its clock, and what it announced."""

    def __init__(self, **fields: Any) -> None:
        fields = {
            "queue_depth_threshold": 1000,
            "monitoring_interval": 1.0,
            "min_dwell": 1.0,
            "adaptive_thresholds": False,
            **fields,
        }
        self.clock = FakeClock(100.0)
        self.changes: list[Pressure] = []
        self.monitor = BackpressureMonitor(
            BackpressureMonitorConfig(**fields), clock=self.clock, on_change=self.changes.append
        )

    def interval(self, steps: int = 4, **reports: Any) -> Pressure:
        """One interval with `reports` made `steps` times in the course of it; the judgement at its end."""
        for _ in range(steps):
            self.monitor.observe(**reports)
            self.clock.advance(1.0 / steps)
        return self.monitor.evaluate()

    def learn_normal(self, intervals: int = 10, **reports: Any) -> None:
        for _ in range(intervals):
            assert not self.interval(**reports).active


# -- what activates


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


# -- hysteresis, dwell, release


def test_a_value_that_wobbles_between_exit_and_enter_never_flips() -> None:
    rig = Rig()
    for latency in [0.75, 0.99] * 10:
        rig.interval(latency=latency)
    assert rig.changes == []
    rig.interval(latency=1.0)
    for latency in [0.75, 1.2, 0.99, 0.7] * 10:
        assert rig.interval(latency=latency).active
    assert len(rig.changes) == 1
    rig.interval(latency=0.69)
    rig.interval(latency=0.69)
    assert [change.active for change in rig.changes] == [True, False]


def test_a_signal_that_never_crossed_its_threshold_does_not_hold_the_monitor() -> None:
    rig = Rig(min_dwell=0.0)
    rig.interval(depth=1500, latency=0.9)
    seen = rig.interval(depth=0, latency=0.9)
    seen = rig.interval(depth=0, latency=0.9)
    assert not seen.active


def test_dwell_counts_from_the_last_hot_judgement() -> None:
    rig = Rig(min_dwell=3.0)
    for _ in range(5):
        assert rig.interval(latency=2.0).active
    assert rig.interval(latency=0.1).active
    assert rig.interval(latency=0.1).active
    seen = rig.interval(latency=0.1)
    assert (seen.active, seen.cause, seen.active_for) == (False, "latency", pytest.approx(7.0))
    assert rig.changes[-1] == seen
    assert rig.interval(latency=0.1).cause is None
    assert rig.interval(latency=0.1).active_for == 0.0


def test_an_overload_that_comes_and_goes_is_held_longer_each_time() -> None:
    """Four intervals on, four off: after a few rounds it is one activation, as it is one trouble."""
    rig = Rig(min_dwell=2.0)
    for _ in range(20):
        for latency in (2.0, 0.1):
            for _ in range(4):
                rig.interval(latency=latency)
    assert sum(change.active for change in rig.changes) <= 3
    assert rig.monitor.active
    # In peace it lets go after the longest dwell, twelve times the least, and after peace the dwell is short again.
    for _ in range(25):
        rig.interval(latency=0.1)
    assert not rig.monitor.active
    for _ in range(50):
        rig.interval(latency=0.1)
    assert rig.interval(latency=2.0).active
    assert rig.interval(latency=0.1).active
    assert not rig.interval(latency=0.1).active


def test_overloads_far_apart_are_held_no_longer() -> None:
    rig = Rig(min_dwell=2.0)
    for _ in range(10):
        rig.interval(latency=2.0)
        for _ in range(2):
            last = rig.interval(latency=0.1)
        assert not last.active
        for _ in range(5):
            rig.interval(latency=0.1)
    assert sum(change.active for change in rig.changes) == 10


def test_a_judgement_within_the_dwell_still_names_the_signal() -> None:
    rig = Rig(min_dwell=3.0)
    rig.interval(latency=2.0)
    seen = rig.interval(latency=0.1)
    assert (seen.active, seen.signal, seen.threshold) == (True, "latency", 1.0)


def test_what_is_named_while_active_is_what_holds_it() -> None:
    rig = Rig()
    rig.interval(latency=1.0, depth=950)
    # Depth is nearer to its threshold, but has never crossed it.
    seen = rig.interval(latency=0.75, depth=950)
    assert (seen.active, seen.signal, seen.value) == (True, "latency", 0.75)


def test_depth_is_released_by_the_maximum_of_an_interval_not_by_one_low_reading() -> None:
    rig = Rig(min_dwell=0.0)
    rig.monitor.observe(depth=1000)
    assert rig.monitor.evaluate().active
    for depth in (900, 0) * 5:
        rig.monitor.observe(depth=depth)
        rig.clock.advance(0.5)
        assert rig.monitor.evaluate().active
    rig.interval(depth=0)
    assert not rig.interval(depth=0).active


def test_pressure_rises_at_once_and_falls_by_the_recovery_factor_per_interval() -> None:
    rig = Rig(recovery_factor=0.1)
    assert rig.interval(latency=1.5).pressure == 1.0
    expected = 1.0
    for _ in range(20):
        expected *= 0.9
        assert rig.interval(latency=0.1).pressure == pytest.approx(expected)
    assert rig.interval(latency=1.25).pressure == pytest.approx(0.75)
    for _ in range(100):
        last = rig.interval(latency=0.1)
    assert last.pressure == 0.0


def test_release_depends_on_time_and_not_on_how_often_evaluate_is_called() -> None:
    often, seldom = Rig(), Rig()
    for rig in (often, seldom):
        rig.interval(latency=2.0)
    for _ in range(6):
        often.interval(latency=0.1)
    seldom.monitor.observe(latency=0.1)
    seldom.clock.advance(6.0)
    assert seldom.monitor.evaluate().pressure == pytest.approx(often.monitor.pressure)


def test_a_crossing_of_the_depth_does_not_speed_up_the_release() -> None:
    rig = Rig(recovery_factor=0.5)
    rig.interval(latency=2.0)
    rig.clock.advance(0.5)
    rig.monitor.observe(depth=1000, latency=0.1)
    rig.monitor.evaluate()
    rig.clock.advance(0.5)
    # Latency has cooled, depth makes 0.5: half of the way down from 1.0 to that.
    assert rig.monitor.evaluate().pressure == pytest.approx(0.5 + 0.5 * 0.5**0.5)


def test_a_recovery_factor_of_one_releases_at_once() -> None:
    rig = Rig(recovery_factor=1.0)
    assert rig.interval(latency=2.0).pressure == 1.0
    assert rig.interval(latency=0.1).pressure == 0.0


@pytest.mark.parametrize(
    ("latency", "pressure"),
    [(0.4, 0.0), (0.5, 0.0), (0.75, 0.25), (1.0, 0.5), (1.5, 1.0), (9.0, 1.0)],
)
def test_pressure_is_linear_from_half_to_one_and_a_half_of_the_threshold(
    latency: float, pressure: float
) -> None:
    assert Rig().interval(latency=latency).pressure == pytest.approx(pressure)


def test_silence_holds_a_hot_signal_while_events_wait_and_lets_go_when_none_do() -> None:
    rig = Rig()
    # A sink that needs longer for a call than an interval reports only now and then.
    rig.interval(latency=20.0, depth=5)
    for _ in range(10):
        seen = rig.interval(depth=5)
        assert (seen.active, seen.pressure) == (True, 1.0)
    rig.interval(depth=0)
    assert not rig.interval(depth=0).active


def test_silence_lets_go_where_nobody_reports_the_depth_at_all() -> None:
    rig = Rig()
    rig.interval(latency=20.0)
    rig.interval()
    assert not rig.interval().active


# -- learning


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
        assert (seen.active, seen.threshold) == (True, pytest.approx(0.6))


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
    rig.learn_normal(**{signal: senseless})
    rig.interval(**{signal: threshold})
    seen = rig.interval(**{signal: threshold})
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


# -- clocks, threads, callbacks, history, config


def test_a_clock_that_stands_still() -> None:
    rig = Rig()
    for _ in range(100):
        rig.monitor.observe(latency=9.0, delay=9.0, ok=1, failed=50)
        assert not rig.monitor.evaluate().active
    rig.monitor.observe(depth=1000)
    assert rig.monitor.evaluate().active


def test_a_clock_that_jumps_ends_one_interval() -> None:
    rig = Rig()
    rig.interval(latency=2.0)
    rig.monitor.observe(latency=0.1)
    rig.clock.advance(1e9)
    seen = rig.monitor.evaluate()
    assert (seen.active, seen.pressure) == (False, 0.0)
    assert len(rig.monitor.history()) == 2


def test_a_clock_that_goes_back_begins_the_interval_anew() -> None:
    rig = Rig(min_dwell=2.0)
    rig.interval(latency=2.0)
    rig.monitor.observe(latency=0.1)
    rig.clock.set(5.0)
    seen = rig.monitor.evaluate()
    assert seen.active
    rig.clock.advance(0.9)
    assert rig.monitor.evaluate() is seen
    rig.clock.advance(0.1)
    seen = rig.monitor.evaluate()
    assert seen.at == 6.0
    assert 0.0 <= seen.active_for <= 1.0
    assert rig.interval(latency=0.1).active is False


def test_a_clock_that_goes_back_does_not_raise_the_pressure() -> None:
    rig = Rig()
    rig.interval(latency=1.2)
    rig.clock.set(10.0)
    rig.monitor.evaluate()
    assert rig.interval(latency=0.1).pressure == pytest.approx(0.7)
    assert rig.interval(latency=0.1).pressure == pytest.approx(0.63)


def test_a_clock_so_far_on_that_an_interval_is_lost_in_rounding() -> None:
    clock = FakeClock(1e18)
    monitor = BackpressureMonitor(clock=clock)
    monitor.observe(depth=1_000_000, delay=9.0, latency=9.0, ok=5, failed=5)
    assert monitor.evaluate().active


def test_on_change_runs_without_the_lock_and_may_use_the_monitor() -> None:
    clock = FakeClock()
    seen: list[tuple[bool, int]] = []

    def on_change(pressure: Pressure) -> None:
        monitor.observe(depth=0)
        # From another thread too: a lock held here would block it for ever.
        in_thread(lambda: monitor.observe(delay=0.0))
        seen.append((pressure.active, len(monitor.history())))

    monitor = BackpressureMonitor(clock=clock, on_change=on_change)
    monitor.observe(depth=800_000)
    monitor.evaluate()
    assert seen == [(True, 1)]


def test_what_on_change_raises_reaches_the_caller_and_the_judgement_stands() -> None:
    def on_change(pressure: Pressure) -> None:
        raise RuntimeError(pressure.signal)

    monitor = BackpressureMonitor(clock=FakeClock(), on_change=on_change)
    monitor.observe(depth=800_000)
    with pytest.raises(RuntimeError, match="depth"):
        monitor.evaluate()
    assert monitor.active
    assert monitor.evaluate().active


def test_a_depth_around_its_threshold_does_not_fill_the_history() -> None:
    rig = Rig()
    for depth in (999, 1000) * 50:
        rig.monitor.observe(depth=depth)
        rig.monitor.evaluate()
    assert len(rig.monitor.history()) == 1


def test_history_is_bounded_and_oldest_first() -> None:
    rig = Rig(history_size=3)
    for _ in range(5):
        last = rig.interval(latency=0.6)
    history = rig.monitor.history()
    assert [pressure.at for pressure in history] == [103.0, 104.0, 105.0]
    assert history[-1] is last
    assert history[-1].signal == "latency"


def test_many_threads_lose_no_outcome() -> None:
    rig = Rig(error_rate_threshold=0.5)

    def report() -> None:
        for _ in range(500):
            rig.monitor.observe(ok=1, failed=3, depth=1, delay=0.1, latency=0.1)
            rig.monitor.evaluate()

    run_threads([report] * 4)
    rig.clock.advance(1.0)
    seen = rig.monitor.evaluate()
    assert (seen.signal, seen.value) == ("error_rate", 0.75)
    assert rig.monitor._ok == rig.monitor._failed == 0
    assert len(rig.changes) == 1


def test_what_ends_names_the_signal_that_began_it_and_what_it_reads_now() -> None:
    rig = Rig()
    rig.interval(delay=0.6, latency=0.2)
    rig.interval(delay=0.6, latency=0.2)
    while rig.monitor.active:
        # The latency is nearer to its threshold by now, but it is the delay that was the fault.
        seen = rig.interval(delay=0.1, latency=0.9)
    assert (seen.cause, seen.signal, seen.value, seen.threshold) == ("delay", "delay", 0.1, 0.5)
    assert rig.changes[-1] is seen


def test_refusals_for_delay_hold_an_activation_and_make_none() -> None:
    rig = Rig()
    for _ in range(5):
        assert not rig.interval(delay=0.1, refusing=True).active
    rig.interval(delay=0.6)
    assert rig.interval(delay=0.6).active
    # Flow control has cut the queue, and goes on refusing: that is the overload still.
    for _ in range(20):
        seen = rig.interval(delay=0.1, depth=50, refusing=True)
        assert (seen.active, seen.cause) == (True, "delay")
    rig.monitor.observe(refusing=False)
    assert rig.interval(delay=0.1, depth=50).active is False
    assert len(rig.changes) == 2


def test_negative_and_senseless_measurements() -> None:
    rig = Rig()
    seen = rig.interval(depth=-5, delay=-1.0, latency=math.nan)
    assert (seen.active, seen.pressure) == (False, 0.0)
    with pytest.raises(ValueError, match="0 or more"):
        rig.monitor.observe(ok=-1)
    with pytest.raises(ValueError, match="0 or more"):
        rig.monitor.observe(failed=-1)


def test_defaults() -> None:
    config = BackpressureMonitorConfig()
    assert config.queue_depth_threshold == 800_000
    assert config.latency_threshold == 1.0
    assert config.error_rate_threshold == 0.1
    assert config.monitoring_interval == 5.0
    assert config.adaptive_thresholds is True
    assert config.recovery_factor == 0.1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("queue_depth_threshold", 0),
        ("queue_depth_threshold", 1.5),
        ("queue_depth_threshold", True),
        ("latency_threshold", 0.0),
        ("latency_threshold", math.nan),
        ("latency_threshold", "1"),
        ("delay_threshold", -1.0),
        ("error_rate_threshold", 1.01),
        ("error_rate_threshold", 0),
        ("monitoring_interval", math.inf),
        ("recovery_factor", 0.0),
        ("recovery_factor", 1.1),
        ("exit_ratio", 1.0),
        ("min_dwell", -0.1),
        ("min_samples", 0),
        ("history_size", 0),
        ("adaptive_thresholds", 1),
    ],
)
def test_a_field_out_of_range_is_named(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{field}: must be ") as error:
        BackpressureMonitorConfig(**{field: value})
    assert error.value.field == field
    assert repr(value) in str(error.value)


# -- any history at all

measurements = st.one_of(
    st.none(),
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([0.0, 0.49, 0.5, 0.99, 1.0, 2.0, 300.0, 700.0, 999.0, 1000.0, 1e9]),
)
steps = st.tuples(
    st.fixed_dictionaries(
        {
            "depth": measurements,
            "delay": measurements,
            "latency": measurements,
            "ok": st.integers(0, 10**6),
            "failed": st.integers(0, 10**6),
        }
    ),
    st.one_of(st.sampled_from([0.0, 0.1, 0.5, 1.0, 2.5, 1e6, -1.0, -1e6]), st.floats(-1e12, 1e12)),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(steps, max_size=40), st.booleans(), st.sampled_from([0.1, 1.0]))
def test_pressure_stays_in_range_and_activity_has_a_name(
    history: list[tuple[dict[str, Any], float]], adaptive: bool, recovery: float
) -> None:
    rig = Rig(adaptive_thresholds=adaptive, recovery_factor=recovery)
    was_active = False
    flips = []
    for reports, move in history:
        rig.monitor.observe(**reports)
        rig.clock.set(rig.clock.now() + move)
        seen = rig.monitor.evaluate()
        assert 0.0 <= seen.pressure <= 1.0
        assert seen.active_for >= 0.0
        if seen.active:
            assert seen.signal in SIGNALS
            assert seen.cause in SIGNALS
            assert seen.threshold > 0.0
        if seen.active != was_active:
            flips.append(seen)
        if seen.active and not was_active:
            # What activates is over its threshold (throughput: under), and says so.
            assert seen.pressure >= 0.5
            over = (
                seen.value <= seen.threshold
                if seen.signal == "throughput"
                else seen.value >= seen.threshold
            )
            assert over
        was_active = seen.active
    assert rig.changes == flips
    assert [flip.active for flip in flips] == [n % 2 == 0 for n in range(len(flips))]
