"""What the tests of FlowControlManager share. Time is a FakeClock throughout."""

from __future__ import annotations

import random
from typing import Any

from backpressure.policies.flow_control_manager import (
    FlowControlConfig,
    FlowControlManager,
)
from backpressure.testing import FakeClock

LEVELS = (1, 2, 3, 4, 5)

# Added to a pause after which a token must be there: float seconds are not whole
# nanoseconds.
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
        """Each priority asks for its number per tick, the least urgent first.

        Returns what each was granted.
        """
        granted = dict.fromkeys(asks, 0)
        for _ in range(ticks):
            for priority in sorted(asks, reverse=True):
                granted[priority] += self.admit(asks[priority], priority).granted
            self.clock.advance(tick)
        return granted

    def fail(self, failed: int = 100, ok: int = 0, reports: int = 5) -> None:
        for _ in range(reports):
            self.manager.record_outcome(ok, failed)
