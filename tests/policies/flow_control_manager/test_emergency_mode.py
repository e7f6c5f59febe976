"""FlowControlManager in an emergency: when it begins and ends, what is shed, and how
the rate climbs back.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backpressure.policies.flow_control_manager import (
    EmergencyModeConfig,
    Grant,
)
from tests.support.flow_control_manager import LEVELS, Rig


def emergency_rig(**fields: Any) -> Rig:
    """Round numbers: a thousand a second of each priority, all of which the sink can
    take or not.
    """
    return Rig(rate=100_000, burst=100_000, emergency_mode=EmergencyModeConfig(**fields))


def test_failures_at_the_trigger_begin_an_emergency_and_shed_as_much() -> None:
    rig = emergency_rig()
    rig.admit(1000, 3)
    rig.fail(failed=19, ok=81)
    assert not rig.manager.emergency
    rig.fail(failed=25, ok=75, reports=1)
    assert rig.manager.emergency
    assert rig.changes == [("emergency_entered", 0.2, 0.2)]
    metrics = rig.manager.metrics()
    assert (metrics.emergency, metrics.failure_rate) == (True, 0.2)
    assert (metrics.rate_limit, metrics.rate_in_force) == (100_000, 80_000)
    assert rig.admit(1000, 3).granted == 800


def test_set_rate_in_an_emergency_keeps_the_cut() -> None:
    rig = emergency_rig()
    rig.fail()
    rig.manager.set_rate(500)
    assert rig.manager.metrics().rate_in_force == 400
    assert rig.changes[-1] == ("rate_changed", 100_000, 500)


@pytest.mark.parametrize("throttle_rate", [0.0, 0.3, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("order", [LEVELS, LEVELS[::-1]])
def test_no_larger_part_than_the_throttle_rate_is_refused(
    throttle_rate: float, order: tuple[int, ...]
) -> None:
    """Before a dead sink, the other part passes, and goes to the most urgent."""
    rig = emergency_rig(throttle_rate=throttle_rate)
    asked = 0
    granted = dict.fromkeys(LEVELS, 0)
    for tick in range(600):
        for priority in order:
            n = rig.admit(10, priority).granted
            if tick >= 300:
                asked += 10
                granted[priority] += n
        rig.fail(failed=10, reports=1)
        rig.clock.advance(0.1)
    passed = sum(granted.values())
    assert rig.manager.metrics().refused == {
        "rate": 0,
        "share": 0,
        "delay": 0,
        "emergency": 600 * 50 - sum(rig.manager.metrics().admitted),
    }
    assert passed == pytest.approx((1.0 - throttle_rate) * asked, rel=0.03)
    left = passed
    for priority in LEVELS:
        assert granted[priority] == pytest.approx(min(left, asked / 5), rel=0.05, abs=100)
        left -= granted[priority]


@pytest.mark.parametrize("throttle_rate", [0.3, 0.8])
def test_the_part_passes_when_other_priorities_ask_than_did(throttle_rate: float) -> None:
    rig = emergency_rig(throttle_rate=throttle_rate)
    for _ in range(300):
        rig.admit(100, 1)
        rig.fail(failed=20, reports=1)
        rig.clock.advance(0.1)
    # From one moment to the next the urgent ask for nothing any more.
    granted = 0
    for _ in range(30):
        granted += rig.admit(100, 5).granted
        rig.fail(failed=20, reports=1)
        rig.clock.advance(0.1)
    assert granted >= 0.9 * (1.0 - throttle_rate) * 3000


def test_where_all_may_be_refused_a_probe_still_passes() -> None:
    rig = emergency_rig(throttle_rate=1.0)
    for priority in LEVELS:
        rig.admit(10_000, priority)
    rig.fail(failed=10_000)
    granted = dict.fromkeys(LEVELS, 0)
    for _ in range(600):
        for priority in LEVELS:
            granted[priority] += rig.admit(100, priority).granted
        rig.fail(failed=100, reports=1)
        rig.clock.advance(0.1)
    # A hundredth of the 50,000 that the sink was offered in the window before: 500 per
    # 10 s.
    assert granted[1] == pytest.approx(3000, rel=0.15)
    assert [granted[priority] for priority in (2, 3, 4, 5)] == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("config", "outcomes"),
    [
        ({}, [(0, 1_000_000)]),
        ({}, [(0, 100)] * 4),
        ({}, [(0, 100), *[(1, 0)] * 4]),
        ({}, [(0, 100), *[(100, 0)] * 20]),
        # Neither many events nor many batches alone.
        ({}, [(1, 0)] * 20 + [(0, 10_000)] * 4),
        ({}, [(10_000, 0)] * 2 + [(0, 1)] * 20),
        ({"enabled": False}, [(0, 1_000_000)] * 10),
        ({"min_samples": 20}, [(0, 100)] * 19),
    ],
)
def test_one_bad_batch_or_a_handful_of_events_is_no_emergency(
    config: dict[str, Any], outcomes: list[tuple[int, int]]
) -> None:
    rig = emergency_rig(**config)
    for ok, failed in outcomes:
        rig.manager.record_outcome(ok, failed)
        assert not rig.manager.emergency
    assert rig.changes == []


def test_outcomes_of_nothing_are_no_batches() -> None:
    rig = emergency_rig()
    rig.fail(failed=100, reports=4)
    rig.fail(failed=0, reports=10)
    assert not rig.manager.emergency
    rig.fail(failed=100, reports=1)
    assert rig.manager.emergency


def observe(rig: Rig, *, room_short: bool, **rest: Any) -> None:
    rig.manager.observe([0] * 5, [0] * 5, enough=1, room_short=room_short, **rest)


def test_an_emergency_holds_only_where_room_is_short() -> None:
    rig = emergency_rig()
    observe(rig, room_short=False)
    rig.fail()
    assert not rig.manager.emergency
    assert rig.admit(1000, 5) == Grant(1000)
    assert rig.changes == []
    observe(rig, room_short=True)
    assert rig.manager.emergency
    assert rig.admit(1000, 5).reason == "emergency"
    rig.clock.advance(3.0)
    # The room is back: what would be shed now would be lost for nothing.
    observe(rig, room_short=False)
    assert rig.names == ["emergency_entered", "emergency_left"]
    assert rig.changes[-1][2] == pytest.approx(3.0)
    assert not rig.manager.emergency
    assert rig.manager.metrics().rate_in_force == 100_000
    assert rig.admit(1000, 5) == Grant(1000)
    # Room that is short now and then is not one emergency after the other.
    observe(rig, room_short=True)
    rig.fail()
    assert not rig.manager.emergency
    rig.clock.advance(7.0)
    rig.fail()
    assert rig.manager.emergency


def test_a_climb_is_over_where_there_is_room() -> None:
    rig = emergency_rig()
    rig.fail()
    for _ in range(15):
        rig.clock.advance(1.0)
        rig.fail(failed=0, ok=1000, reports=1)
    assert rig.names == ["emergency_entered", "emergency_left"]
    assert rig.manager.metrics().rate_in_force < 85_000
    observe(rig, room_short=False)
    assert rig.manager.metrics().rate_in_force == 100_000
    assert rig.names == ["emergency_entered", "emergency_left"]


def test_shedding_begins_with_the_least_urgent() -> None:
    rig = emergency_rig()
    for priority in LEVELS:
        rig.admit(1000, priority)
    # Accepts 1200: at K = 2, about 2400 of the 5000 may pass.
    rig.fail(failed=240, ok=240)
    grants = {priority: rig.admit(1000, priority) for priority in LEVELS}
    assert [grants[p].granted for p in (1, 2)] == [1000, 1000]
    assert 300 < grants[3].granted < 500
    assert [grants[p].granted for p in (4, 5)] == [0, 0]
    for priority in (3, 4, 5):
        assert grants[priority].reason == "emergency"
        assert 0.0 < grants[priority].retry_after < 2.0
    assert rig.manager.metrics().refused["emergency"] == 3000 - grants[3].granted


def test_an_urgent_priority_that_asks_anew_is_not_shed() -> None:
    rig = emergency_rig()
    rig.admit(1000, 2)
    rig.admit(1000, 4)
    rig.fail(failed=160, ok=160)
    assert rig.admit(500, 1) == Grant(500)
    assert rig.admit(500, 3) == Grant(500)
    assert 0 < rig.admit(500, 4).granted < 500
    assert rig.admit(500, 5).granted == 0


def test_demand_that_was_given_back_is_no_demand() -> None:
    rig = emergency_rig()
    rig.admit(50_000, 1)
    rig.manager.give_back(50_000, 1)
    rig.admit(2000, 5)
    rig.fail(failed=100, ok=400)
    # A fifth is shed in any case; of 52,000 next to nothing would pass.
    assert rig.admit(2000, 5).granted == 1600


def test_shed_callers_are_told_different_times() -> None:
    rig = emergency_rig()
    rig.admit(1000, 1)
    rig.fail()
    assert len({rig.admit(1000, 5).retry_after for _ in range(10)}) > 5


def test_single_events_pass_in_the_right_part_too() -> None:
    rig = emergency_rig()
    rig.admit(10_000, 1)
    rig.fail(failed=520, ok=500)
    # Accepts 2500 of 10,000: half may pass.
    assert sum(rig.admit(1, 1).granted for _ in range(1000)) == pytest.approx(500, abs=2)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, 3000), min_size=5, max_size=5),
    st.integers(0, 3000),
    st.lists(st.lists(st.integers(1, 2000), min_size=5, max_size=5), max_size=6),
    st.sampled_from([0.0, 0.3, 1.0, 2.5]),
)
def test_a_priority_is_never_shed_while_a_lower_one_passes(
    demand: list[int], ok: int, asks: list[list[int]], pause: float
) -> None:
    rig = Rig(rate=1e9, burst=10**9)
    for priority, n in zip(LEVELS, demand, strict=True):
        rig.admit(n, priority)
    for _ in range(5):
        rig.manager.record_outcome(ok // 5, 3000 // 5)
    assert rig.manager.emergency
    for ask in asks:
        grants = [rig.admit(n, priority) for priority, n in zip(LEVELS, ask, strict=True)]
        shed = [grant.reason == "emergency" for grant in grants]
        passed = [grant.granted > 0 for grant in grants]
        if True in shed:
            assert not any(passed[shed.index(True) + 1 :])
        rig.clock.advance(pause)


@pytest.mark.parametrize(("throttle_rate", "least", "most"), [(1.0, 15, 30), (0.8, 38, 42)])
def test_something_passes_where_next_to_nothing_is_asked_for(
    throttle_rate: float, least: int, most: int
) -> None:
    rig = emergency_rig(throttle_rate=throttle_rate)
    rig.fail(failed=10)
    passed = 0
    for _ in range(200):
        passed += rig.admit(1, 5).granted
        rig.fail(failed=10, reports=1)
        rig.clock.advance(1.0)
    # About one per window, or a fifth.
    assert least <= passed <= most


def test_it_ends_at_half_of_the_trigger_but_not_before_the_dwell() -> None:
    rig = emergency_rig(min_dwell=20.0)
    rig.fail()
    for _ in range(19):
        rig.clock.advance(1.0)
        rig.fail(failed=0, ok=1000, reports=1)
        assert rig.manager.emergency
    rig.clock.advance(1.0)
    rig.fail(failed=0, ok=1000, reports=1)
    assert not rig.manager.emergency
    *change, seconds = rig.changes[-1]
    assert change == ["emergency_left", 0.0]
    assert seconds == pytest.approx(20.0)


def test_it_does_not_end_between_half_of_the_trigger_and_the_trigger() -> None:
    rig = emergency_rig()
    rig.fail()
    for _ in range(200):
        rig.clock.advance(1.0)
        rig.fail(failed=11, ok=89, reports=1)
        assert rig.manager.emergency
    rig.clock.advance(1.0)
    for _ in range(12):
        rig.clock.advance(1.0)
        rig.fail(failed=9, ok=91, reports=1)
    assert not rig.manager.emergency


def test_silence_ends_it_after_a_sliding_window_and_not_before() -> None:
    rig = Rig(sliding_window_size=60.0)
    rig.fail()
    rig.clock.advance(59.0)
    assert rig.manager.emergency
    rig.clock.advance(1.5)
    assert not rig.manager.emergency
    assert rig.names == ["emergency_entered", "emergency_left"]
    # No outcomes are reported any more: nothing is shed for lack of them.
    rig.clock.advance(1.5)
    assert rig.admit(500, 5).reason is None


def test_the_rate_climbs_back_and_does_not_jump() -> None:
    rig = emergency_rig()
    rig.fail()
    seen = []
    for _ in range(300):
        rig.clock.advance(1.0)
        rig.fail(failed=0, ok=1000, reports=1)
        seen.append(rig.manager.metrics().rate_in_force)
    assert seen[8] == 80_000
    assert seen[-1] == 100_000
    steps = [after / before for before, after in itertools.pairwise(seen)]
    assert max(steps) < 1.006
    assert min(steps) >= 1.0
    assert 40 < seen.index(100_000) < 80


def test_the_climb_steps_back_while_failures_are_above_half_of_the_trigger() -> None:
    rig = emergency_rig()
    rig.fail()
    for _ in range(40):
        rig.clock.advance(1.0)
        rig.fail(failed=0, ok=1000, reports=1)
    before = rig.manager.metrics().rate_in_force
    assert 80_000 < before < 100_000
    for _ in range(40):
        rig.clock.advance(1.0)
        rig.fail(failed=150, ok=850, reports=1)
    assert 80_000 < rig.manager.metrics().rate_in_force < before
    for _ in range(400):
        rig.clock.advance(1.0)
        rig.fail(failed=150, ok=850, reports=1)
    assert rig.manager.metrics().rate_in_force == 80_000
    assert rig.names == ["emergency_entered", "emergency_left"]


def simulate(
    capacity: Callable[[float], float],
    *,
    seconds: int,
    lag: float = 0.0,
    throttle_rate: float = 0.8,
    offered: tuple[int, ...] = (100, 200, 300, 200, 200),
) -> tuple[Rig, list[tuple[float, float]]]:
    """A sink that takes `capacity(t)` events a second and fails the rest, `lag` seconds
    after admission.

    Each priority offers as many events a second as `offered` says. Returns what was
    admitted each second.
    """
    rig = Rig(
        rate=1000,
        burst=200,
        start=0.0,
        emergency_mode=EmergencyModeConfig(throttle_rate=throttle_rate),
    )
    waiting: list[tuple[float, int]] = []
    sent = []
    for _ in range(seconds):
        total = 0
        for _ in range(10):
            now = rig.clock.now()
            admitted = sum(
                rig.admit(n // 10, p).granted for n, p in zip(offered, LEVELS, strict=True)
            )
            waiting.append((now + lag, admitted))
            total += admitted
            while waiting and waiting[0][0] <= now:
                batch = waiting.pop(0)[1]
                ok = min(batch, round(capacity(now) / 10))
                rig.manager.record_outcome(ok, batch - ok)
            rig.clock.advance(0.1)
        sent.append((rig.clock.now(), float(total)))
    return rig, sent


@pytest.mark.parametrize("lag", [0.0, 6.0])
@pytest.mark.parametrize(
    ("capacity", "throttle_rate"), [(750, 0.8), (600, 0.5), (300, 0.8), (300, 0.5), (90, 0.95)]
)
def test_no_oscillation_before_a_sink_that_fails_above_a_capacity(
    capacity: int, throttle_rate: float, lag: float
) -> None:
    rig, sent = simulate(lambda _: capacity, seconds=500, lag=lag, throttle_rate=throttle_rate)
    # Entered once; left at most once, and never entered again.
    assert rig.names in (["emergency_entered"], ["emergency_entered", "emergency_left"])
    # The sink is used in full, and never offered more than twice what it takes once
    # things have settled, or the part that always passes.
    late = [n for at, n in sent if at > 400]
    assert min(late) >= 0.95 * capacity
    assert sum(late) / len(late) <= max(2.1 * capacity, 1.01 * 1000 * (1.0 - throttle_rate))


def test_a_sink_below_its_capacity_is_no_emergency() -> None:
    rig, sent = simulate(lambda _: 1000, seconds=60)
    assert rig.changes == []
    assert sent[-1][1] == 1000


def test_a_sink_that_comes_back_gets_everything_again() -> None:
    rig, sent = simulate(lambda t: 0 if 50 <= t < 120 else 1000, seconds=260)
    assert rig.names == ["emergency_entered", "emergency_left"]
    during = [n for at, n in sent if 80 < at <= 120]
    assert sum(during) == pytest.approx(0.2 * 1000 * len(during), rel=0.03)
    assert [n for at, n in sent if at > 220] == [1000.0] * 40
    assert rig.manager.metrics().rate_in_force == 1000


def test_a_sink_that_fails_a_third_whatever_the_load_is_not_starved() -> None:
    clockwork = random.Random(3)
    rig = Rig(rate=1000, burst=200)
    got = 0
    for _ in range(1000):
        n = sum(rig.admit(20, p).granted for p in LEVELS)
        failed = sum(clockwork.random() < 0.33 for _ in range(n))
        rig.manager.record_outcome(n - failed, failed)
        got += n
        rig.clock.advance(0.1)
    assert rig.names == ["emergency_entered"]
    assert got >= 0.95 * 0.8 * 1000 * 100
