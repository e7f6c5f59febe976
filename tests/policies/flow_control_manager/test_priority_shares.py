"""FlowControlManager: what is reserved for each priority, and what is given back."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import strategies as st

from backpressure.policies.flow_control_manager import (
    Grant,
)
from tests.support.flow_control_manager import JUST, LEVELS, SHARES, Rig
from tests.support.models import given_in_part

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
    # The others were active a moment ago; the flood has the whole rate all the same, if
    # not the whole burst.
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


@given_in_part(
    150,
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
    # The reserve of priority 1 takes 0.2 s to fill; an event at 4 % of the rate takes
    # 25 ms.
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


@given_in_part(
    100,
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
