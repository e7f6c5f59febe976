"""Flow control with fewer priorities than five, on its own: the laws are the same."""

from __future__ import annotations

import math
from typing import Any

import pytest

from backpressure import BackpressureError, ConfigError, FlowControlConfig, InvalidEvents
from backpressure.policies.flow_control_manager.priority_shares import shares_of
from tests.support.flow_control_manager import SHARES, Rig

LEVELS = (1, 2, 3, 4, 5)


@pytest.mark.parametrize("value", [0, 6, -1, 2.0, "2", None, True, math.nan])
def test_what_is_no_number_of_levels(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"^priority_levels: must be an int from 1 to 5, not "):
        FlowControlConfig(priority_levels=value)


@pytest.mark.parametrize("levels", LEVELS)
def test_a_priority_beyond_is_refused_by_every_method(levels: int) -> None:
    rig = Rig(priority_levels=levels)
    for priority in (0, levels + 1, 6):
        for call in (
            lambda p: rig.admit(1, p),
            lambda p: rig.manager.give_back(0, p),
            lambda p: rig.manager.rate(p),
        ):
            with pytest.raises(InvalidEvents, match=r"^priority must be "):
                call(priority)
    assert issubclass(InvalidEvents, BackpressureError)
    seen = rig.manager.metrics()
    assert (seen.admitted, seen.rates) == ((0,) * levels, (0.0,) * levels)


@pytest.mark.parametrize("levels", LEVELS)
def test_shares_keep_their_proportions_and_their_sum(levels: int) -> None:
    shares = shares_of(levels)
    assert len(shares) == levels
    assert sum(shares) == pytest.approx(0.8)
    for priority, share in enumerate(shares, 1):
        assert share / shares[0] == pytest.approx(SHARES[priority] / SHARES[1])
    assert shares_of(5) == tuple(SHARES.values())


@pytest.mark.parametrize("levels", LEVELS)
def test_a_flood_from_all_sides_leaves_each_its_share(levels: int) -> None:
    rig = Rig(rate=100_000, burst=1000, priority_levels=levels)
    asks = dict.fromkeys(range(1, levels + 1), 1000)
    rig.flood(asks, 1000)
    granted = rig.flood(asks, 3000)
    total = sum(granted.values())
    assert total == pytest.approx(300_000, rel=0.01)
    for share, got in zip(shares_of(levels), granted.values(), strict=True):
        assert got >= 0.97 * share * total


@pytest.mark.parametrize(
    ("levels", "alone"), [(levels, one) for levels in LEVELS for one in range(1, levels + 1)]
)
def test_a_priority_that_is_alone_has_it_all(levels: int, alone: int) -> None:
    rig = Rig(rate=1000, burst=1000, priority_levels=levels)
    assert rig.admit(1500, alone).granted == 1000
    rig.clock.advance(0.5)
    assert rig.admit(1500, alone).granted == 500


@pytest.mark.parametrize("levels", LEVELS)
def test_an_emergency_sheds_the_least_urgent_first(levels: int) -> None:
    rig = Rig(rate=1e9, burst=1_000_000, priority_levels=levels)
    admitted = dict.fromkeys(range(1, levels + 1), 0)
    for step in range(400):
        for priority in admitted:
            granted = rig.admit(100, priority).granted
            admitted[priority] += granted if step >= 200 else 0
        rig.manager.record_outcome(20, 80)
        rig.clock.advance(0.1)
    assert rig.names[0] == "emergency_entered"
    shed = list(admitted.values())
    assert shed == sorted(shed, reverse=True)
    assert 0 < sum(shed) < 200 * 100 * levels
    assert shed[0] > 0
    assert rig.manager.metrics().refused["emergency"] > 0


@pytest.mark.parametrize("levels", LEVELS)
def test_a_delay_bound_refuses_the_least_urgent(levels: int) -> None:
    # The sink takes 1,000 a second, ten times as many are offered of the least urgent.
    rig = Rig(rate=1e9, burst=1_000_000, priority_levels=levels, delay_target=0.5)
    waiting, taken, refused = [0] * levels, [0] * levels, 0
    for _ in range(2000):
        grant = rig.admit(100, levels)
        refused += 100 - grant.granted
        assert grant.reason in (None, "delay")
        waiting[-1] += grant.granted
        part = min(10, waiting[-1])
        waiting[-1] -= part
        taken[-1] += part
        rig.clock.advance(0.01)
        rig.manager.observe(waiting, taken, enough=100)
    assert refused > 0
    assert waiting[-1] <= 2.5 * 0.5 * 1000, "what waits is taken within the bound"
    assert rig.manager.metrics().sink_rate == pytest.approx(1000, rel=0.05)


@pytest.mark.parametrize("levels", LEVELS)
def test_a_report_has_a_number_for_each(levels: int) -> None:
    rig = Rig(priority_levels=levels)
    rig.manager.observe([0] * levels, [0] * levels, enough=1)
    for wrong in (levels - 1, levels + 1):
        with pytest.raises(ValueError, match=f"must have {levels} numbers each"):
            rig.manager.observe([0] * wrong, [0] * levels, enough=1)
