"""Ours: the control loop that ships, with the table's values; each ablation is one
switch. The oracle.

What BufferManager leaves to producers (a pressure that they may heed) is not simulated:
these producers heed only refusals.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from backpressure.policies.adaptive_batch_manager import AdaptiveBatchConfig, AdaptiveBatchManager
from backpressure.policies.backpressure_monitor import (
    BackpressureMonitor,
    BackpressureMonitorConfig,
    Pressure,
)
from backpressure.policies.circuit_breaker import (
    CircuitBreaker,
    CircuitBreakerConfig,
    Permit,
    State,
)
from backpressure.policies.control_loop import SHORT, ControlLoop, QueueReading
from backpressure.policies.flow_control_manager import (
    EmergencyModeConfig,
    FlowControlConfig,
    FlowControlManager,
)
from bench.overload.baselines import Base
from bench.overload.kernel import Call, LaneReadings, VirtualClock
from bench.overload.sink import KNEE, WORKERS, Condition, Outcome
from bench.overload.workload import LEVELS, Scenario

__all__ = ["ABLATIONS", "FAULT_LAWS", "Laws", "Oracle", "Ours", "breaker_config"]

# The batch size that puts all workers at the knee together.
_BEST_BATCH = KNEE // WORKERS


@dataclass(frozen=True, slots=True, kw_only=True)
class Laws:
    """Which laws are on. The defaults are BufferManager's wiring, with a target for the
    delay.
    """

    #: Of flow control, in seconds: about a batch at its target latency. None, the
    #: library's default, bounds nothing.
    delay_target: float | None = 0.3
    hold: bool = True  #: refusals for delay keep the monitor active
    #: Flow control hears that the circuit is open, and whether room is short.
    outage_aware: bool = True
    generation: bool = True
    lease: bool = True
    evidence: bool = True  #: opens the circuit; else the share of failures in a window
    canary: bool = True  #: of the breaker: single calls find out that the sink is back
    slow_calls: bool = (
        False  #: a rate of slow calls trips the breaker too; off by default in the library
    )
    all_signals: bool = True  #: else the monitor is told of the depth alone
    hysteresis: bool = True  #: and dwell, of the monitor
    adaptive_thresholds: bool = True
    adaptive_batch: bool = True
    shares: bool = True  #: else everything is admitted at one priority
    emergency: bool = True


def breaker_config(laws: Laws = Laws()) -> CircuitBreakerConfig:
    return CircuitBreakerConfig(
        law="sequential" if laws.evidence else "share",
        probe_lease=30.0 if laws.lease else 1e9,
        canary=laws.canary,
        slow_call_duration=1.0 if laws.slow_calls else None,
    )


class _HalfDeafMonitor(BackpressureMonitor):
    """A monitor that is not told everything. all_signals: of more than the depth; hold:
    that events are refused for their delay.
    """

    all_signals = hold = True

    def observe(
        self,
        *,
        depth: float | None = None,
        delay: float | None = None,
        latency: float | None = None,
        ok: int = 0,
        failed: int = 0,
        refusing: bool | None = None,
    ) -> None:
        if not self.all_signals:
            delay, latency, ok, failed = None, None, 0, 0
        super().observe(
            depth=depth,
            delay=delay,
            latency=latency,
            ok=ok,
            failed=failed,
            refusing=refusing and self.hold,
        )


class _UnawareFlowControl(FlowControlManager):
    """Flow control that does not hear that the circuit is open, or of room."""

    def observe(self, waiting: Sequence[int], taken: Sequence[int], **rest: Any) -> bool:
        return super().observe(waiting, taken, **{**rest, "calling": True, "room_short": True})


class Ours:
    """The four policies together. See `Controller` for the methods."""

    drops = False

    def __init__(
        self, scenario: Scenario, clock: VirtualClock, rng: random.Random, laws: Laws | None = None
    ) -> None:
        self.laws = laws = laws if laws is not None else Laws()
        self.clock = clock
        self.activations: list[float] = []
        self.trips: list[float] = []
        self.transitions: list[float] = []
        monitor_config = BackpressureMonitorConfig(
            queue_depth_threshold=8_000, adaptive_thresholds=laws.adaptive_thresholds
        )
        if not laws.hysteresis:
            monitor_config = dataclasses.replace(monitor_config, exit_ratio=0.99, min_dwell=0.0)
        monitor = _HalfDeafMonitor(monitor_config, clock=clock, on_change=self._pressure_changed)
        monitor.all_signals, monitor.hold = laws.all_signals, laws.hold
        flow_control = FlowControlManager if laws.outage_aware else _UnawareFlowControl
        self.loop = ControlLoop(
            CircuitBreaker(
                breaker_config(laws), clock=clock, rng=rng, on_change=self._circuit_changed
            ),
            monitor,
            AdaptiveBatchManager(
                AdaptiveBatchConfig(
                    initial_batch_size=500,
                    min_batch_size=10,
                    max_batch_size=1_000,
                    throughput_target=20_000,
                    adaptive_enabled=laws.adaptive_batch,
                ),
                clock=clock,
            ),
            flow_control(
                FlowControlConfig(
                    max_events_per_second=scenario.rate,
                    burst_size=scenario.burst,
                    delay_target=laws.delay_target,
                    emergency_mode=EmergencyModeConfig(enabled=laws.emergency),
                ),
                clock=clock,
                rng=rng,
                on_change=self._flow_changed,
            ),
            rng=rng,
        )
        # What has been admitted, less what was given back, by priority.
        self._admitted = [0] * LEVELS

    def _circuit_changed(self, old: State, new: State, reason: str) -> None:
        self.transitions.append(self.clock.t)
        if new is State.OPEN:
            self.trips.append(self.clock.t)

    def _pressure_changed(self, pressure: Pressure) -> None:
        self.transitions.append(self.clock.t)
        if pressure.active:
            self.activations.append(self.clock.t)

    def _flow_changed(self, what: str, old: float, new: float) -> None:
        if what != "rate_changed":
            self.transitions.append(self.clock.t)

    def admit(self, n: int, priority: int) -> int:
        granted = self.loop.admit(n, priority if self.laws.shares else 3).granted
        self._admitted[priority - 1] += granted
        return granted

    def give_back(self, n: int, priority: int) -> None:
        self.loop.give_back(n, priority if self.laws.shares else 3)
        self._admitted[priority - 1] -= n

    def batch_size(self) -> int:
        return self.loop.batch_size

    def acquire(self) -> Permit | None:
        return self.loop.permit()

    def release(self, permit: object) -> None:
        assert isinstance(permit, Permit)
        permit.ignore()

    def keep(self, delay: float, priority: int) -> bool:
        return True

    def ended(self, call: Call, latency: float, sojourn: float) -> None:
        permit = call.permit
        assert isinstance(permit, Permit)
        if call.outcome is Outcome.LOST:
            return
        if not self.laws.generation:
            permit._fast_path = self.loop.breaker._fast_path
        ok = call.outcome is Outcome.OK
        filled = call.n >= call.asked if call.attempt == 1 else None
        self.loop.settled(call.n, latency, ok, filled, permit)

    def tick(self, lanes: LaneReadings) -> None:
        waiting = lanes.waiting
        taken = [admitted - count for admitted, count in zip(self._admitted, waiting, strict=True)]
        reading = QueueReading(
            waiting, taken, lanes.fill, lanes.oldest, room_short=lanes.fullest > SHORT
        )
        self.loop.tick(self.clock.now(), reading)

    def backoff(self, attempt: int, rng: random.Random) -> float:
        return self.loop.backoff(attempt)

    def truth(self, condition: Condition) -> None:
        pass


class Oracle(Base):
    """Knows the sink: never calls it while it is dead, always asks for the best batch,
    and lets the lanes absorb what they can.

    It is the measure of goodput, which nothing can exceed by more than luck; it does
    not try to keep delays short.
    """

    _dead = False

    def truth(self, condition: Condition) -> None:
        self._dead = condition.dead

    def acquire(self) -> object | None:
        return None if self._dead else self

    def batch_size(self) -> int:
        return _BEST_BATCH


#: By the name in the report: one law off in turn, or on: the last, which the library
#: leaves off.
ABLATIONS: dict[str, Laws] = {
    "no delay target (the default)": Laws(delay_target=None),
    "refusals do not hold the monitor": Laws(hold=False),
    "monitor by depth only": Laws(all_signals=False),
    "no hysteresis": Laws(hysteresis=False),
    "fixed thresholds": Laws(adaptive_thresholds=False),
    "fixed batch": Laws(adaptive_batch=False),
    "no shares": Laws(shares=False),
    "no generation": Laws(generation=False),
    "no probe lease": Laws(lease=False),
    "circuit by shares": Laws(evidence=False),
    "no canary": Laws(canary=False),
    "circuit by shares, no canary": Laws(evidence=False, canary=False),
    "no emergency": Laws(emergency=False),
    "refuses and sheds in an outage": Laws(outage_aware=False),
    "slow calls trip": Laws(slow_calls=True),
}
#: Those that can only show where calls fail.
FAULT_LAWS = frozenset(
    (
        *(
            "no generation",
            "no probe lease",
            "circuit by shares",
            "no canary",
            "circuit by shares, no canary",
        ),
        *("no emergency", "refuses and sheds in an outage"),
    )
)
