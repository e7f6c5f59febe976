"""What the tests of AdaptiveBatchManager share: a simulated sink, and its driver."""

from __future__ import annotations

import random
from collections.abc import Callable

from backpressure.policies.adaptive_batch_manager import AdaptiveBatchConfig, AdaptiveBatchManager
from backpressure.testing import FakeClock


def make(
    clock: FakeClock, on_change: Callable[[int, int, str], object] | None = None, **fields: object
) -> AdaptiveBatchManager:
    return AdaptiveBatchManager(AdaptiveBatchConfig(**fields), clock=clock, on_change=on_change)  # type: ignore[arg-type]


class Sink:
    """A sink with latency a * n + b that drives a manager in virtual time."""

    def __init__(self, a: float, b: float, *, noise: float = 0.0, seed: int = 1) -> None:
        self.a, self.b, self.noise = a, b, noise
        self.rng = random.Random(seed)

    def latency(self, size: int) -> float:
        return (self.a * size + self.b) * (1.0 + self.noise * self.rng.uniform(-1.0, 1.0))

    def run(
        self,
        manager: AdaptiveBatchManager,
        clock: FakeClock,
        evaluations: int,
        *,
        pressure: float = 0.0,
        available: int | None = None,
    ) -> list[int]:
        """One batch after the other; the size at the end of each interval.

        evaluations: how many intervals. available: events at hand.
        """
        sizes = []
        for _ in range(evaluations):
            end = clock.now() + manager.config.evaluation_interval
            while clock.now() < end:
                asked = manager.batch_size
                size = asked if available is None else min(asked, available)
                latency = self.latency(size)
                clock.advance(latency)
                manager.record(size, latency, size == asked)
                manager.evaluate(pressure)
            sizes.append(manager.batch_size)
        return sizes


def period(
    manager: AdaptiveBatchManager, clock: FakeClock, latencies: list[float], filled: bool = True
) -> int:
    """One interval with these latencies at the present size; the size after it."""
    for latency in latencies:
        manager.record(manager.batch_size, latency, filled)
    clock.advance(manager.config.evaluation_interval)
    return manager.evaluate()
