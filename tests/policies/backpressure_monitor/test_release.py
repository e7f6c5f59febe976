"""BackpressureMonitor: how it holds on and lets go."""

from __future__ import annotations

import pytest

from tests.support.backpressure_monitor import Rig


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
    assert (seen.active, seen.cause) == (False, "latency")
    assert seen.active_for == pytest.approx(7.0)
    assert rig.changes[-1] == seen
    assert rig.interval(latency=0.1).cause is None
    assert rig.interval(latency=0.1).active_for == 0.0


def test_an_overload_that_comes_and_goes_is_held_longer_each_time() -> None:
    """Four intervals on, four off: after a few rounds it is one activation, as it is
    one trouble.
    """
    rig = Rig(min_dwell=2.0)
    for _ in range(20):
        for latency in (2.0, 0.1):
            for _ in range(4):
                rig.interval(latency=latency)
    assert sum(change.active for change in rig.changes) <= 3
    assert rig.monitor.active
    # In peace it lets go after the longest dwell, twelve times the least, and after
    # peace the dwell is short again.
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
