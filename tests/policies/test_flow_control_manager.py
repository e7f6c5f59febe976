"""FlowControlManager: the total bound, the shares, the emergency mode. Time is a FakeClock throughout."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
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
from tests.support.threads import in_thread, run_threads

LEVELS = (1, 2, 3, 4, 5)
# Added to a pause after which a token must be there: float seconds are not whole nanoseconds.
JUST = 1e-8
SHARES = {1: 0.40, 2: 0.20, 3: 0.10, 4: 0.06, 5: 0.04}


class Rig:
    """A manager, its clock, and what it announced."""

    def __init__(
        self, rate: float = 1000, burst: int = 1000, start: float = 50.0, **fields: Any
    ) -> None:
        self.clock = FakeClock(start)
        self.changes: list[tuple[str, float, float]] = []
        self.manager = FlowControlManager(
            FlowControlConfig(max_events_per_second=rate, burst_size=burst, **fields),
            clock=self.clock,
            on_change=lambda *change: self.changes.append(change),
            rng=random.Random(7),
        )
        self.admit = self.manager.admit

    @property
    def names(self) -> list[str]:
        return [name for name, _, _ in self.changes]

    def flood(self, asks: dict[int, int], ticks: int, tick: float = 0.001) -> dict[int, int]:
        """Each priority asks for so many per tick, the least urgent first; returns what each was granted."""
        granted = dict.fromkeys(asks, 0)
        for _ in range(ticks):
            for priority in sorted(asks, reverse=True):
                granted[priority] += self.admit(asks[priority], priority).granted
            self.clock.advance(tick)
        return granted

    def fail(self, failed: int = 100, ok: int = 0, reports: int = 2) -> None:
        for _ in range(reports):
            self.manager.record_outcome(ok, failed)


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


@settings(max_examples=250, deadline=None)
@given(st.lists(operations, max_size=60), st.booleans())
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


# -- shares


def test_a_flood_of_low_priority_leaves_high_demand_below_its_share_untouched() -> None:
    rig = Rig(rate=100_000, burst=10_000)
    rig.flood({5: 5000}, 200)
    rig.admit(1, 1)
    rig.flood({5: 5000}, 50)
    for _ in range(2000):
        # 39 % of the rate against a flood of fifty times the rate.
        assert rig.admit(5000, 5).granted < 5000
        assert rig.admit(39, 1) == Grant(39)
        rig.clock.advance(0.001)


def test_a_seldom_burst_of_high_priority_is_granted_in_full_at_once() -> None:
    rig = Rig(rate=100_000, burst=10_000)
    rig.admit(1, 1)
    for _ in range(5):
        rig.flood({5: 5000, 4: 5000}, 1000)
        assert rig.admit(2000, 1) == Grant(2000)


def test_a_high_priority_seen_for_the_first_time_comes_before_the_flood() -> None:
    rig = Rig(rate=100_000, burst=10_000)
    rig.flood({5: 5000}, 200)
    rig.admit(5000, 5)
    assert rig.admit(1, 1).granted == 0
    # From now on nearly all that flows in is its own.
    got = rig.flood({5: 5000, 1: 200}, 100)
    assert got[1] > 0.9 * 10_000


def test_a_reserve_that_was_used_fills_up_before_the_flood_goes_on() -> None:
    rig = Rig(rate=100_000, burst=10_000)
    rig.admit(1, 1)
    rig.flood({5: 5000}, 1000)
    assert rig.admit(2000, 1) == Grant(2000)
    got = rig.flood({5: 5000}, 10)
    assert got[5] <= 4 * 10 + 100
    # All that flowed in meanwhile, and not only the share of it.
    assert rig.admit(2000, 1).granted >= 850


def test_what_a_claim_has_grown_by_is_kept_when_the_rate_changes() -> None:
    rig = Rig(rate=100_000, burst=10_000)
    rig.flood({1: 5000, 5: 5000}, 500)
    rig.clock.advance(0.019 + JUST)
    rig.manager.set_rate(1)
    rig.admit(5000, 1)
    assert rig.admit(5000, 5).granted == 80


def test_a_flood_of_high_priority_leaves_each_other_its_share() -> None:
    rig = Rig(rate=100_000, burst=10_000)
    for low in (2, 3, 4, 5):
        rig = Rig(rate=100_000, burst=10_000)
        rig.flood({1: 5000}, 200)
        got = rig.flood({1: 5000, low: 5000}, 1000)
        assert got[low] == pytest.approx(SHARES[low] * 100_000, rel=0.02)
        assert sum(got.values()) == pytest.approx(100_000, rel=0.02)


def test_when_all_flood_each_has_its_share_and_the_rest_goes_to_the_most_urgent() -> None:
    rig = Rig(rate=100_000, burst=10_000)
    rig.flood(dict.fromkeys(LEVELS, 5000), 300)
    got = rig.flood(dict.fromkeys(LEVELS, 5000), 1000)
    assert sum(got.values()) == pytest.approx(100_000, rel=0.001)
    for priority in (2, 3, 4, 5):
        assert got[priority] == pytest.approx(SHARES[priority] * 100_000, rel=0.02)
    assert got[1] == pytest.approx(60_000, rel=0.02)


def test_idle_capacity_is_lent() -> None:
    rig = Rig(rate=100_000, burst=10_000)
    asks = {1: 10, 3: 5000, 5: 5000}
    rig.flood(asks, 300)
    got = rig.flood(asks, 1000)
    assert got[1] == 10_000
    assert got[5] == pytest.approx(4_000, rel=0.02)
    assert got[3] == pytest.approx(86_000, rel=0.01)


def test_a_reserve_does_not_cost_any_rate() -> None:
    rig = Rig(rate=100_000, burst=10_000)
    rig.admit(1, 1)
    rig.flood({5: 5000}, 300)
    # The others were active a moment ago; the flood has the whole rate all the same, if not the whole burst.
    rig.flood({1: 0, 2: 0, 3: 0, 4: 0, 5: 5000}, 300)
    got = rig.flood({1: 0, 2: 0, 3: 0, 4: 0, 5: 5000}, 1000)
    assert got[5] == pytest.approx(100_000, rel=0.001)


def test_who_has_gone_silent_reserves_nothing() -> None:
    rig = Rig(rate=1000, burst=1000)
    rig.admit(1, 1)
    rig.clock.advance(9.0)
    refused = rig.admit(1000, 5)
    assert (refused.granted, refused.reason) == (800, "share")
    rig.clock.advance(1.1)
    assert rig.admit(1000, 5).granted == 1000


def test_a_burst_too_small_to_divide_is_first_come_first_served() -> None:
    rig = Rig(rate=10, burst=4)
    rig.admit(1, 1)
    assert rig.admit(5, 5).granted == 3
    rig.clock.advance(0.1)
    assert rig.admit(1, 5).granted == 1


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 400), st.sampled_from(LEVELS), st.floats(0.0, 0.1)),
        min_size=1,
        max_size=40,
    ),
    st.sampled_from([30, 200, 1000]),
)
def test_after_retry_after_one_more_can_be_granted(
    asks: list[tuple[int, int, float]], burst: int
) -> None:
    rig = Rig(rate=1000, burst=burst)
    for n, priority, pause in asks:
        grant = rig.admit(n, priority)
        rig.clock.advance(pause)
    rig.clock.advance(0.0)
    n, priority, _ = asks[-1]
    grant = rig.admit(500, priority)
    if grant.reason is None:
        return
    # No longer than the claim of this priority needs for one event.
    assert 0.0 < grant.retry_after <= 1.0 / (SHARES[priority] * 1000) + 1e-6
    rig.clock.advance(grant.retry_after + 2e-9)
    assert rig.admit(1, priority).granted == 1


def test_retry_after_where_the_own_claim_grows_faster_than_the_pool_gets_free() -> None:
    rig = Rig(rate=1000, burst=1000)
    rig.admit(1, 5)
    rig.admit(1000, 1)
    rig.admit(1000, 5)
    # The reserve of priority 1 takes 0.2 s to fill; an event at 4 % of the rate takes 25 ms.
    assert rig.admit(1, 5).retry_after == pytest.approx(0.025)


def test_a_refusal_by_a_hair_names_the_rate_and_a_time() -> None:
    rig = Rig()
    # What a bucket shows as a float may be rounded up to the next whole token.
    rig.manager._bucket = SimpleNamespace(  # type: ignore[assignment]
        rate=1000.0,
        tokens_at=lambda now_ns: 5.0,
        acquire_up_to_at=lambda now_ns, n: min(n, 4),
        retry_after_at=lambda now_ns, n: 1e-9,
    )
    assert rig.admit(5, 1) == Grant(4, 1e-9, "rate")


def test_retry_after_is_not_too_long_either() -> None:
    rig = Rig(rate=1000, burst=100)
    retry_after = rig.admit(101, 2).retry_after
    rig.clock.advance(0.9 * retry_after)
    assert rig.admit(1, 2).granted == 0
    rig.clock.advance(0.1 * retry_after + 2e-9)
    assert rig.admit(1, 2).granted == 1


# -- give_back


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 200), st.floats(0.0, 2.0)), max_size=30),
    st.sampled_from(LEVELS),
)
def test_what_is_given_back_was_never_asked_for(
    steps: list[tuple[int, int, float]], priority: int
) -> None:
    rig, twin = Rig(rate=100, burst=300), Rig(rate=100, burst=300)
    for kept, unused, pause in steps:
        grant = rig.admit(kept + unused, priority)
        back = max(0, grant.granted - kept)
        rig.manager.give_back(back, priority)
        assert twin.admit(grant.granted - back, priority).reason is None
        for each in (rig, twin):
            each.clock.advance(pause)
        mine, its = rig.manager.metrics(), twin.manager.metrics()
        assert mine.tokens == pytest.approx(its.tokens, abs=1e-6)
        assert mine.admitted == its.admitted
        assert mine.rates == pytest.approx(its.rates)


def test_a_claim_given_back_can_be_used_again_and_by_nobody_else() -> None:
    rig = Rig(rate=100_000, burst=10_000)
    rig.flood({1: 5000, 5: 5000}, 500)
    rig.clock.advance(0.019 + JUST)
    rig.admit(5000, 1)
    for _ in range(10):
        # Twenty milliseconds at its share.
        assert rig.admit(5000, 5).granted == 80
        rig.manager.give_back(80, 5)
        assert rig.admit(5000, 1).granted == 0


@pytest.mark.parametrize(("granted", "parts"), [(500, 1), (1000, 1), (1000, 10)])
def test_giving_back_does_not_make_a_claim_larger_than_it_was(granted: int, parts: int) -> None:
    rig = Rig(rate=100_000, burst=10_000)
    rig.flood({1: 5000}, 500)
    rig.flood({1: 1, 5: 5000}, 500)
    rig.admit(5000, 5)
    rig.clock.advance(0.01 + JUST)
    assert rig.admit(granted, 5).granted >= granted - 1
    for _ in range(parts):
        rig.manager.give_back((granted - 1) // parts, 5)
    before = rig.manager.metrics().tokens
    # Ten milliseconds at its share, and no more, are kept from priority 1.
    assert before - rig.admit(5000, 1).granted == pytest.approx(40, abs=2)


def test_more_than_was_granted_can_not_be_given_back() -> None:
    rig = Rig(burst=100)
    rig.admit(60, 3)
    for n, priority in ((61, 3), (1, 4), (-1, 3)):
        with pytest.raises(ValueError, match="n must be from"):
            rig.manager.give_back(n, priority)
    rig.manager.give_back(60, 3)
    with pytest.raises(ValueError, match="n must be from"):
        rig.manager.give_back(1, 3)
    assert rig.admit(101, 3).granted == 100


def test_giving_back_never_exceeds_the_burst() -> None:
    rig = Rig(rate=1000, burst=100)
    rig.admit(100, 3)
    rig.clock.advance(60.0)
    rig.manager.give_back(100, 3)
    assert rig.admit(500, 3).granted == 100


# -- rate()


def test_rate_over_the_window_in_total_and_by_priority() -> None:
    rig = Rig(rate=1e6, burst=1_000_000, sliding_window_size=10.0)
    for _ in range(400):
        rig.admit(30, 1)
        rig.admit(10, 4)
        rig.clock.advance(0.1)
    assert rig.manager.rate() == pytest.approx(400, rel=0.02)
    assert rig.manager.rate(1) == pytest.approx(300, rel=0.02)
    assert rig.manager.rate(Priority.LOW) == pytest.approx(100, rel=0.02)
    assert rig.manager.rate(2) == 0.0
    assert rig.manager.metrics().rates == tuple(rig.manager.rate(p) for p in LEVELS)


def test_rate_before_a_whole_window_has_passed() -> None:
    rig = Rig(rate=1e6, burst=1_000_000, sliding_window_size=60.0)
    assert rig.manager.rate() == 0.0
    rig.admit(500, 1)
    # The very first moment counts as one slot, a second: not as an infinite rate.
    assert rig.manager.rate() == 500.0
    rig.clock.advance(5.0)
    assert rig.manager.rate() == 100.0


def test_rate_forgets_what_is_older_than_the_window_without_another_admit() -> None:
    rig = Rig(sliding_window_size=6.0)
    rig.clock.advance(100.0)
    rig.admit(600, 1)
    rig.clock.advance(5.8)
    assert rig.manager.rate() == pytest.approx(100, rel=0.05)
    rig.clock.advance(0.3)
    assert rig.manager.rate() == 0.0
    rig.admit(1000, 1)
    rig.clock.advance(1e12)
    assert rig.manager.rate() == 0.0


def test_refusals_are_counted_by_reason() -> None:
    rig = Rig(rate=1000, burst=1000)
    rig.admit(1, 1)
    rig.admit(900, 5)
    rig.admit(900, 1)
    assert rig.manager.metrics().refused == {"rate": 700, "share": 101, "delay": 0, "emergency": 0}
    assert rig.manager.metrics().admitted == (201, 0, 0, 0, 799)


# -- emergency


def emergency_rig(**fields: Any) -> Rig:
    """Round numbers: a thousand a second of each priority, all of which the sink can take or not."""
    return Rig(rate=100_000, burst=100_000, emergency_mode=EmergencyModeConfig(**fields))


def test_failures_at_the_trigger_begin_an_emergency_and_cut_the_rate() -> None:
    rig = emergency_rig()
    rig.fail(failed=19, ok=81, reports=5)
    assert not rig.manager.emergency
    rig.fail(failed=25, ok=75, reports=1)
    assert rig.manager.emergency
    assert rig.changes == [("emergency_entered", 0.2, 0.2)]
    metrics = rig.manager.metrics()
    assert (metrics.emergency, metrics.failure_rate) == (True, 0.2)
    assert (metrics.rate_limit, metrics.rate_in_force) == (100_000, 80_000)
    rig.admit(100_000, 1)
    rig.clock.advance(0.01 + JUST)
    assert rig.admit(5000, 1).granted == 800


def test_set_rate_in_an_emergency_keeps_the_cut() -> None:
    rig = emergency_rig()
    rig.fail()
    rig.manager.set_rate(500)
    assert rig.manager.metrics().rate_in_force == 400
    assert rig.changes[-1] == ("rate_changed", 100_000, 500)


@pytest.mark.parametrize(
    ("config", "failed", "reports"),
    [({}, 1_000_000, 1), ({}, 9, 2), ({"enabled": False}, 1_000_000, 10)],
)
def test_one_bad_batch_or_a_handful_of_events_is_no_emergency(
    config: dict[str, Any], failed: int, reports: int
) -> None:
    rig = emergency_rig(**config)
    rig.fail(failed=failed, reports=reports)
    assert not rig.manager.emergency
    assert rig.changes == []


def test_shedding_begins_with_the_least_urgent() -> None:
    rig = emergency_rig()
    for priority in LEVELS:
        rig.admit(1000, priority)
    # Accepts 1200: at K = 2, about 2400 of the 5000 may pass.
    rig.fail(failed=600, ok=600)
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
    rig.fail(failed=400, ok=400)
    assert rig.admit(500, 1) == Grant(500)
    assert rig.admit(500, 3) == Grant(500)
    assert 0 < rig.admit(500, 4).granted < 500
    assert rig.admit(500, 5).granted == 0


def test_demand_that_was_given_back_is_no_demand() -> None:
    rig = emergency_rig()
    rig.admit(50_000, 1)
    rig.manager.give_back(50_000, 1)
    rig.admit(2000, 5)
    rig.fail(failed=500, ok=1000)
    assert rig.admit(2000, 5) == Grant(2000)


def test_shed_callers_are_told_different_times() -> None:
    rig = emergency_rig()
    rig.admit(1000, 1)
    rig.fail()
    assert len({rig.admit(1000, 5).retry_after for _ in range(10)}) > 5


def test_single_events_pass_in_the_right_part_too() -> None:
    rig = emergency_rig()
    rig.admit(10_000, 1)
    rig.fail(failed=1300, ok=1250)
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
    rig.manager.record_outcome(ok, 0)
    rig.manager.record_outcome(0, 3000)
    assert rig.manager.emergency
    for ask in asks:
        grants = [rig.admit(n, priority) for priority, n in zip(LEVELS, ask, strict=True)]
        shed = [grant.reason == "emergency" for grant in grants]
        passed = [grant.granted > 0 for grant in grants]
        if True in shed:
            assert not any(passed[shed.index(True) + 1 :])
        rig.clock.advance(pause)


def test_a_probe_always_passes_and_goes_to_the_most_urgent() -> None:
    rig = emergency_rig()
    for priority in LEVELS:
        rig.admit(10_000, priority)
    rig.fail(failed=25_000)
    granted = dict.fromkeys(LEVELS, 0)
    for _ in range(600):
        for priority in LEVELS:
            granted[priority] += rig.admit(100, priority).granted
        rig.fail(failed=100, reports=1)
        rig.clock.advance(0.1)
    # A hundredth of the 50,000 that the sink was offered in the window before: 500 per 10 s.
    assert granted[1] == pytest.approx(3000, rel=0.15)
    assert [granted[priority] for priority in (2, 3, 4, 5)] == [0, 0, 0, 0]


def test_a_probe_passes_where_next_to_nothing_is_asked_for() -> None:
    rig = emergency_rig()
    rig.fail(failed=10)
    passed = 0
    for _ in range(200):
        passed += rig.admit(1, 5).granted
        rig.fail(failed=10, reports=1)
        rig.clock.advance(1.0)
    # About one per window.
    assert 15 <= passed <= 30


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
    assert rig.changes[-1] == ("emergency_left", 0.0, pytest.approx(20.0))


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
    # Nobody reports outcomes any more: nothing is shed for lack of them.
    rig.clock.advance(1.5)
    assert rig.admit(500, 5).reason is None


def test_the_rate_climbs_back_and_does_not_jump() -> None:
    rig = emergency_rig(throttle_rate=0.5)
    rig.fail()
    seen = []
    for _ in range(300):
        rig.clock.advance(1.0)
        rig.fail(failed=0, ok=1000, reports=1)
        seen.append(rig.manager.metrics().rate_in_force)
    assert seen[8] == 50_000
    assert seen[-1] == 100_000
    steps = [after / before for before, after in itertools.pairwise(seen)]
    assert max(steps) < 1.006
    assert min(steps) >= 1.0
    assert 100 < seen.index(100_000) < 200


def test_the_climb_steps_back_while_failures_are_above_half_of_the_trigger() -> None:
    rig = emergency_rig(throttle_rate=0.5)
    rig.fail()
    for _ in range(100):
        rig.clock.advance(1.0)
        rig.fail(failed=0, ok=1000, reports=1)
    before = rig.manager.metrics().rate_in_force
    assert 50_000 < before < 100_000
    for _ in range(40):
        rig.clock.advance(1.0)
        rig.fail(failed=150, ok=850, reports=1)
    assert 50_000 < rig.manager.metrics().rate_in_force < before
    for _ in range(400):
        rig.clock.advance(1.0)
        rig.fail(failed=150, ok=850, reports=1)
    assert rig.manager.metrics().rate_in_force == 50_000
    assert rig.names == ["emergency_entered", "emergency_left"]


def simulate(
    capacity: Callable[[float], float],
    *,
    seconds: int,
    lag: float = 0.0,
    throttle_rate: float = 0.8,
    offered: tuple[int, ...] = (100, 200, 300, 200, 200),
) -> tuple[Rig, list[tuple[float, float]]]:
    """A sink that takes `capacity(t)` events a second and fails the rest, `lag` seconds after admission.

    Each priority offers as many events a second as `offered` says. Returns what was admitted each second.
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
    ("capacity", "throttle_rate"), [(750, 0.8), (600, 0.5), (300, 0.8), (300, 0.2), (90, 0.8)]
)
def test_no_oscillation_before_a_sink_that_fails_above_a_capacity(
    capacity: int, throttle_rate: float, lag: float
) -> None:
    rig, sent = simulate(lambda _: capacity, seconds=500, lag=lag, throttle_rate=throttle_rate)
    # Entered once; left at most once, and never entered again.
    assert rig.names in (["emergency_entered"], ["emergency_entered", "emergency_left"])
    # The sink is used in full, and never offered more than twice what it takes once things have settled.
    late = [n for at, n in sent if at > 400]
    assert min(late) >= 0.95 * capacity
    assert sum(late) / len(late) <= 2.1 * capacity


def test_a_sink_below_its_capacity_is_no_emergency() -> None:
    rig, sent = simulate(lambda _: 1000, seconds=60)
    assert rig.changes == []
    assert sent[-1][1] == 1000


def test_a_sink_that_comes_back_gets_everything_again() -> None:
    rig, sent = simulate(lambda t: 0 if 50 <= t < 120 else 1000, seconds=260)
    assert rig.names == ["emergency_entered", "emergency_left"]
    during = [n for at, n in sent if 80 < at <= 120]
    assert 0 < sum(during) <= 0.03 * 1000 * len(during)
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
    manager.record_outcome(0, 100)
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
        (FlowControlConfig, "priority_levels", 4),
        (FlowControlConfig, "priority_levels", "5"),
        (FlowControlConfig, "emergency_mode", None),
        (EmergencyModeConfig, "enabled", "yes"),
        (EmergencyModeConfig, "trigger_threshold", 0.0),
        (EmergencyModeConfig, "trigger_threshold", 1.1),
        (EmergencyModeConfig, "throttle_rate", 0),
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
