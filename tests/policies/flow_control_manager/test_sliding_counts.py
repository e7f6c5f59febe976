"""FlowControlManager: the rates and the refusals that it reports."""

from __future__ import annotations

import pytest

from backpressure.base.priority import Priority
from tests.support.flow_control_manager import LEVELS, Rig


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
