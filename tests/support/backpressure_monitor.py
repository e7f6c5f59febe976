"""What the tests of BackpressureMonitor share. Time is a FakeClock throughout."""

from __future__ import annotations

from typing import Any

from backpressure.policies.backpressure_monitor import (
    BackpressureMonitor,
    BackpressureMonitorConfig,
    Pressure,
)
from backpressure.testing import FakeClock

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
        """One interval with `reports` made `steps` times in the course of it.

        Returns the judgement at its end.
        """
        for _ in range(steps):
            self.monitor.observe(**reports)
            self.clock.advance(1.0 / steps)
        return self.monitor.evaluate()

    def learn_normal(self, intervals: int = 10, **reports: Any) -> None:
        for _ in range(intervals):
            assert not self.interval(**reports).active
