"""BackpressureMonitor: clocks, threads, callbacks, history and config; and any history
at all.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import strategies as st

from backpressure.base.errors import ConfigError
from backpressure.policies.backpressure_monitor import (
    BackpressureMonitor,
    BackpressureMonitorConfig,
    Pressure,
)
from backpressure.testing import FakeClock
from tests.support.backpressure_monitor import SIGNALS, Rig
from tests.support.models import given_in_part
from tests.support.threads import in_thread, run_threads

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
        # The latency is nearer to its threshold by now, but it is the delay that was
        # the fault.
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


@given_in_part(150, st.lists(steps, max_size=40), st.booleans(), st.sampled_from([0.1, 1.0]))
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
