"""FlowControlManager: the total bound, its clock, threads, callbacks and config."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import partial
from typing import Any

import pytest
from hypothesis import strategies as st

from backpressure.base.errors import ConfigError, InvalidEvents
from backpressure.base.priority import Priority
from backpressure.policies.flow_control_manager import (
    EmergencyModeConfig,
    FlowControlConfig,
    FlowControlManager,
    Grant,
)
from backpressure.testing import FakeClock
from tests.support.flow_control_manager import JUST, LEVELS, Rig
from tests.support.models import given_in_part
from tests.support.threads import in_thread, run_threads

# -- the total


def test_one_priority_has_the_whole_burst_and_the_whole_rate() -> None:
    for priority in LEVELS:
        rig = Rig(rate=20_000_000, burst=2_000_000)
        assert rig.admit(2_000_000, priority) == Grant(2_000_000)
        assert rig.admit(1, priority).granted == 0
        granted = 0
        for _ in range(1000):
            rig.clock.advance(0.001)
            granted += rig.admit(1_000_000, priority).granted
        assert granted == pytest.approx(20_000_000, abs=2)


def test_what_is_granted_is_as_much_of_the_beginning_as_fits() -> None:
    rig = Rig(rate=1000, burst=100)
    grant = rig.admit(130, 3)
    assert (grant.granted, grant.reason) == (100, "rate")
    assert grant.retry_after == pytest.approx(0.001)
    assert rig.admit(5, 3) == Grant(0, grant.retry_after, "rate")
    assert rig.admit(0, 3) == Grant(0)


def test_a_plain_int_or_a_priority_will_do_and_nothing_else() -> None:
    rig = Rig()
    assert rig.admit(1, Priority.LOW).granted == 1
    for wrong in (0, 6, True, "1", 1.0):
        with pytest.raises(InvalidEvents):
            rig.admit(1, wrong)  # type: ignore[arg-type]
        with pytest.raises(InvalidEvents):
            rig.manager.give_back(0, wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="n must be 0 or more"):
        rig.admit(-1, 1)


def test_no_throttle_grants_everything_and_counts_it() -> None:
    rig = Rig(rate=1, burst=1, throttle_enabled=False)
    rig.fail(1000)
    assert rig.admit(10_000_000, 2) == Grant(10_000_000)
    rig.manager.give_back(4_000_000, 2)
    rig.clock.advance(10.0)
    assert rig.manager.rate() == pytest.approx(600_000)
    assert rig.manager.rate(2) == pytest.approx(600_000)
    assert not rig.manager.emergency
    assert rig.changes == []


def test_an_infinite_rate_has_no_limit_and_can_be_left() -> None:
    rig = Rig(rate=math.inf, burst=10)
    assert rig.admit(10**9, 1) == Grant(10**9)
    assert rig.admit(10**9, 1) == Grant(10**9)
    rig.manager.set_rate(100)
    rig.clock.advance(5.0)
    assert rig.admit(50, 1).granted == 10


def test_rate_zero_grants_the_burst_and_never_more() -> None:
    rig = Rig(rate=0, burst=10)
    assert rig.admit(20, 1) == Grant(10, math.inf, "rate")
    rig.clock.advance(1e6)
    assert rig.admit(1, 1) == Grant(0, math.inf, "rate")
    rig.manager.set_rate(1)
    rig.clock.advance(1.01)
    assert rig.admit(5, 1).granted == 1


def test_set_rate_and_set_burst_take_effect_at_once() -> None:
    rig = Rig(rate=1000, burst=100)
    assert rig.admit(100, 1).granted == 100
    rig.manager.set_rate(10_000)
    rig.clock.advance(0.001 + JUST)
    assert rig.admit(100, 1).granted == 10
    rig.manager.set_burst(1000)
    rig.clock.advance(10.0)
    assert rig.admit(5000, 1).granted == 1000
    rig.manager.set_burst(5)
    rig.clock.advance(10.0)
    assert rig.admit(5000, 1).granted == 5
    rig.manager.set_burst(200)
    rig.clock.advance(5.0)
    # The reserves follow: a fifth of the burst is kept for priority 1.
    assert rig.admit(200, 5).granted == 160
    assert rig.changes == [("rate_changed", 1000.0, 10_000.0)]
    rig.manager.set_rate(10_000)
    assert len(rig.changes) == 1


@pytest.mark.parametrize("rate", [-1, math.nan, 1e13, "5", None, True])
def test_set_rate_refuses_nonsense_and_changes_nothing(rate: Any) -> None:
    rig = Rig()
    with pytest.raises(ConfigError, match=r"^rate: must be"):
        rig.manager.set_rate(rate)
    assert rig.manager.metrics().rate_limit == 1000
    assert rig.changes == []


@pytest.mark.parametrize("burst", [0, -1, 1.5, True])
def test_set_burst_refuses_nonsense(burst: Any) -> None:
    rig = Rig()
    with pytest.raises(ConfigError, match=r"^burst: must be"):
        rig.manager.set_burst(burst)
    assert rig.manager.metrics().burst == 1000


operations = st.one_of(
    st.tuples(st.just("admit"), st.integers(0, 300), st.sampled_from(LEVELS)),
    st.tuples(st.just("admit"), st.integers(0, 300), st.sampled_from(LEVELS)),
    st.tuples(st.just("give_back"), st.floats(0.0, 1.0), st.sampled_from(LEVELS)),
    st.tuples(st.just("advance"), st.floats(0.0, 0.5), st.none()),
    st.tuples(st.just("set_rate"), st.sampled_from([0, 1, 7, 333, 1000, 12_345.5]), st.none()),
    st.tuples(st.just("set_burst"), st.sampled_from([1, 3, 20, 150, 400]), st.none()),
)


@given_in_part(250, st.lists(operations, max_size=60), st.booleans())
def test_the_total_is_that_of_an_exact_token_bucket(history: list[Any], alone: bool) -> None:
    rig = Rig(rate=333, burst=150)
    manager, clock = rig.manager, rig.clock
    level, rate, burst, last = Fraction(150), Fraction(333), 150, int(clock.now() * 1e9)
    granted = dict.fromkeys(LEVELS, 0)
    # The rate of the bucket is exact to one part in 2**63.
    tiny = Fraction(1, 10**9)
    for action, value, priority in history:
        if action == "advance":
            clock.advance(value)
        now = int(clock.now() * 1e9)
        level = min(level + rate * Fraction(now - last, 10**9), Fraction(burst))
        last = now
        if action == "admit":
            priority = 3 if alone else priority
            grant = manager.admit(value, priority)
            assert 0 <= grant.granted <= value
            level -= grant.granted
            assert level >= -tiny
            if alone:
                assert grant.granted == value or level < 1 + tiny
            assert (grant.reason is None) == (grant.granted == value)
            assert (grant.retry_after > 0.0) == (grant.granted < value)
            if grant.reason == "rate":
                assert level < 1 + tiny
            granted[priority] += grant.granted
        elif action == "give_back":
            priority = 3 if alone else priority
            n = int(granted[priority] * value)
            manager.give_back(n, priority)
            granted[priority] -= n
            level = min(level + n, Fraction(burst))
        elif action == "set_rate":
            manager.set_rate(value)
            rate = Fraction(value)
        elif action == "set_burst":
            manager.set_burst(value)
            burst = value
            level = min(level, Fraction(burst))
    metrics = manager.metrics()
    assert metrics.tokens == pytest.approx(float(level), abs=1e-6)
    assert metrics.admitted == tuple(granted[p] for p in LEVELS)


# -- admit_whole


@given_in_part(250, st.lists(operations, max_size=40), st.integers(0, 300), st.integers(0, 200))
def test_a_guess_that_is_given_back_is_as_if_the_number_had_been_known(
    history: list[Any], n: int, more: int
) -> None:
    """After any history; where it is not admitted, nothing has changed."""
    rigs = [Rig(rate=333, burst=1500, delay_target=0.5) for _ in range(2)]
    for rig in rigs:
        for action, value, priority in history:
            if action == "advance":
                rig.clock.advance(value)
            elif action == "admit":
                rig.admit(value, priority)
            elif action == "give_back":
                priority_admitted = rig.manager.metrics().admitted[priority - 1]
                rig.manager.give_back(int(priority_admitted * value), priority)
            elif action == "set_rate":
                rig.manager.set_rate(value)
            elif action == "set_burst":
                rig.manager.set_burst(value)
    guessing, knowing = (rig.manager for rig in rigs)
    if guessing.admit_whole(n + more, 3):
        guessing.give_back(more, 3)
        assert knowing.admit(n, 3).granted == n
    assert guessing.metrics() == knowing.metrics()
    for priority in LEVELS:
        assert guessing.admit(100, priority) == knowing.admit(100, priority)
        assert guessing.metrics() == knowing.metrics()


def test_a_guess_is_admitted_where_there_is_enough_for_all() -> None:
    rig = Rig(rate=100, burst=1000)
    reserve = 400
    assert rig.manager.admit_whole(1000 - reserve, 3)
    assert not rig.manager.admit_whole(1, 3)
    assert rig.manager.metrics().refused == dict.fromkeys(rig.manager.metrics().refused, 0)
    assert rig.manager.metrics().admitted == (0, 0, 600, 0, 0)
    rig.clock.advance(0.1 + JUST)
    assert rig.manager.admit_whole(10, 3)
    assert not rig.manager.admit_whole(10, 3)


def test_no_guess_is_admitted_in_an_emergency() -> None:
    rig = Rig()
    assert rig.manager.admit_whole(1, 3)
    rig.fail()
    assert rig.manager.emergency
    assert not rig.manager.admit_whole(1, 1)


def test_without_throttling_every_guess_is_admitted() -> None:
    rig = Rig(throttle_enabled=False)
    assert rig.manager.admit_whole(10**6, 3)
    assert rig.manager.metrics().admitted == (0, 0, 10**6, 0, 0)


@pytest.mark.parametrize("wrong", [-1, 1.5, True, None])
def test_admit_whole_refuses_nonsense(wrong: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        Rig().manager.admit_whole(wrong, 3)


# -- clocks, threads, callbacks, config


def test_a_clock_that_goes_back_stands_still_for_a_moment_and_goes_on_from_there() -> None:
    rig = Rig(rate=100, burst=100, start=1000.0)
    assert rig.admit(100, 3).granted == 100
    rig.clock.set(1000.5 + JUST)
    assert rig.admit(100, 3).granted == 50
    for back in (900.0, 300.0, 0.0):
        rig.clock.set(back)
        assert rig.admit(100, 3).granted == 0
        rig.manager.record_outcome(1, 1)
        assert rig.manager.rate() >= 0.0
        # ... and it does not wait until the clock has caught up.
        rig.clock.advance(0.5 + JUST)
        assert rig.admit(100, 3).granted == 50


def test_a_clock_that_jumps_far() -> None:
    rig = Rig(rate=1000, burst=100)
    rig.admit(100, 3)
    rig.fail()
    rig.clock.advance(1e9)
    assert rig.admit(1000, 3).granted == 100
    assert not rig.manager.emergency
    rig.clock.advance(1e8)
    rig.manager.record_outcome(1, 0)
    assert rig.manager.metrics().rate_in_force == 1000


def test_many_threads_together_get_the_burst_and_not_one_more() -> None:
    rig = Rig(rate=1000, burst=20_000)
    granted = []

    def ask(priority: int) -> None:
        total = 0
        for n in range(300):
            got = rig.admit(n % 50, priority).granted
            back = got // 3
            rig.manager.give_back(back, priority)
            total += got - back
        granted.append(total)

    run_threads([partial(ask, priority) for priority in LEVELS])
    assert sum(granted) + rig.admit(20_000, 1).granted + rig.manager.metrics().tokens == 20_000
    assert sum(rig.manager.metrics().admitted) == 20_000 - rig.manager.metrics().tokens


def test_on_change_runs_without_the_lock() -> None:
    clock = FakeClock()
    heard = []

    def on_change(what: str, old: float, new: float) -> None:
        in_thread(lambda: manager.admit(1, 1))
        heard.append(what)

    manager = FlowControlManager(clock=clock, on_change=on_change)
    manager.set_rate(5)
    for _ in range(5):
        manager.record_outcome(0, 100)
    clock.advance(100.0)
    # A mere look at the clock can end it: by admit as well as by the property.
    manager.admit(1, 5)
    assert heard == ["rate_changed", "emergency_entered", "emergency_left"]


def test_outcomes_can_not_be_negative() -> None:
    rig = Rig()
    for ok, failed in ((-1, 0), (0, -1)):
        with pytest.raises(ValueError, match="0 or more"):
            rig.manager.record_outcome(ok, failed)


def test_defaults() -> None:
    config = FlowControlConfig()
    assert config.max_events_per_second == 20_000_000
    assert config.burst_size == 2_000_000
    assert config.sliding_window_size == 60.0
    assert config.throttle_enabled is True
    assert config.priority_levels == 5
    assert config.emergency_mode == EmergencyModeConfig(
        enabled=True, trigger_threshold=0.2, throttle_rate=0.8
    )


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        (FlowControlConfig, "max_events_per_second", -1),
        (FlowControlConfig, "max_events_per_second", math.nan),
        (FlowControlConfig, "max_events_per_second", 1e13),
        (FlowControlConfig, "max_events_per_second", "fast"),
        (FlowControlConfig, "burst_size", 0),
        (FlowControlConfig, "burst_size", 1.5),
        (FlowControlConfig, "burst_size", True),
        (FlowControlConfig, "sliding_window_size", 0.0),
        (FlowControlConfig, "sliding_window_size", math.inf),
        (FlowControlConfig, "throttle_enabled", 1),
        (FlowControlConfig, "priority_levels", 0),
        (FlowControlConfig, "priority_levels", 6),
        (FlowControlConfig, "priority_levels", True),
        (FlowControlConfig, "priority_levels", "5"),
        (FlowControlConfig, "emergency_mode", None),
        (EmergencyModeConfig, "enabled", "yes"),
        (EmergencyModeConfig, "trigger_threshold", 0.0),
        (EmergencyModeConfig, "trigger_threshold", 1.1),
        (EmergencyModeConfig, "throttle_rate", -0.1),
        (EmergencyModeConfig, "throttle_rate", 1.1),
        (EmergencyModeConfig, "throttle_rate", math.nan),
        (EmergencyModeConfig, "window", 0.0),
        (EmergencyModeConfig, "min_dwell", -1.0),
        (EmergencyModeConfig, "min_samples", 0),
    ],
)
def test_a_field_out_of_range_is_named(config: type, field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{field}: must be ") as error:
        config(**{field: value})
    assert error.value.field == field
    assert repr(value) in str(error.value)
