"""Ours: the real policies, wired as BufferManager wires them, with the table's values; each ablation is one switch. The oracle.

What BufferManager leaves to producers (a pressure that they may heed) is nobody's here: these producers heed only refusals.
`DelayBound` is a law that the library does not have yet: it turns the monitor's verdict into refusals. It is measured beside the
wiring as it is.
"""

from __future__ import annotations

import dataclasses
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from bench.overload.baselines import Base
from bench.overload.kernel import Call, VirtualClock
from bench.overload.sink import KNEE, WORKERS, Condition, Outcome
from bench.overload.workload import LEVELS, Scenario

from backpressure.adaptive_batch_manager import AdaptiveBatchConfig, AdaptiveBatchManager
from backpressure.backpressure_monitor import BackpressureMonitor, BackpressureMonitorConfig, Pressure
from backpressure.circuit_breaker import CircuitBreaker, CircuitBreakerConfig, Permit, State
from backpressure.flow_control_manager import EmergencyModeConfig, FlowControlConfig, FlowControlManager

__all__ = ["ABLATIONS", "Laws", "Oracle", "Ours", "breaker_config"]

# The batch size that puts all workers at the knee together.
_BEST_BATCH = KNEE // WORKERS
# Seconds of the sink's work that the delay bound lets wait: the target latency of a batch, so one full batch for each worker.
_DELAY_TARGET = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Laws:
    """Which laws are on. The defaults are BufferManager's wiring."""

    delay_bound: bool = False
    generation: bool = True
    lease: bool = True
    growth: bool = True  #: of the reset timeout
    slow_calls: bool = False  #: a rate of slow calls trips the breaker too; off by default in the library
    all_signals: bool = True  #: else the monitor is told of the depth alone
    hysteresis: bool = True  #: and dwell, of the monitor
    adaptive_thresholds: bool = True
    adaptive_batch: bool = True
    shares: bool = True  #: else everything is admitted at one priority
    emergency: bool = True


def breaker_config(laws: Laws = Laws()) -> CircuitBreakerConfig:
    return CircuitBreakerConfig(
        reset_timeout_multiplier=CircuitBreakerConfig().reset_timeout_multiplier if laws.growth else 1.0,
        probe_lease=30.0 if laws.lease else 1e9,
        slow_call_duration=1.0 if laws.slow_calls else None,
    )


class DelayBound:
    """While there is pressure, admit no more than the sink delivers within `target` seconds, the most urgent first.

    An event is let in where those that would be delivered before it, of its own priority or a more urgent one, are fewer than
    that: so a priority is refused only for what is as urgent, and what is urgent finds its queue short whatever waits below.

    It is armed by the monitor, which lets a burst pass that drains by itself, and stays so until the monitor is calm and nothing
    has been refused for `dwell` seconds: a queue that it keeps short is no proof that the load has gone. The rate is measured
    while events wait throughout. It stands aside while the circuit is not closed: to outlast an outage is what the room is for.
    """

    def __init__(self, target: float, dwell: float, batch: Callable[[], int]) -> None:
        self._target, self._dwell, self._batch = target, dwell, batch
        self.armed = False
        self._standing = False
        self._room = [0.0] * LEVELS
        self._refused_at = 0.0
        self._rate = 0.0
        # (time, delivered so far) while events wait: a second of it.
        self._past: deque[tuple[float, int]] = deque()
        self.delivered = 0

    def look(self, now: float, waiting: list[int], active: bool, closed: bool) -> None:
        past = self._past
        if not closed or not any(waiting) or (past and now < past[-1][0]):
            past.clear()
        else:
            past.append((now, self.delivered))
            while now - past[0][0] > 1.0:
                past.popleft()
            span = now - past[0][0]
            if span >= 0.5:
                self._rate = (self.delivered - past[0][1]) / span
        if active and not self.armed:
            self.armed, self._refused_at = True, now
        elif self.armed and not active and not 0.0 <= now - self._refused_at < self._dwell:
            self.armed = False
        self._standing = self.armed and closed and self._rate > 0.0
        ahead = 0
        # A batch for each worker keeps the sink busy until the next look, however slow it has become.
        most = max(self._rate * self._target, 2.0 * self._batch())
        for place, count in enumerate(waiting):
            ahead += count
            self._room[place] = most - ahead

    def passes(self, n: int, priority: int, now: float) -> int:
        if not self._standing:
            return n
        granted = max(0, min(n, int(self._room[priority - 1])))
        for place in range(priority - 1, LEVELS):
            self._room[place] -= granted
        if granted < n:
            self._refused_at = now
        return granted


class Ours:
    """The four policies together. See `Controller` for the methods."""

    def __init__(self, scenario: Scenario, clock: VirtualClock, rng: random.Random, laws: Laws | None = None) -> None:
        self.laws = laws = laws if laws is not None else Laws()
        self.clock = clock
        self.activations: list[float] = []
        self.trips: list[float] = []
        self.transitions: list[float] = []
        monitor = BackpressureMonitorConfig(queue_depth_threshold=8_000, adaptive_thresholds=laws.adaptive_thresholds)
        if not laws.hysteresis:
            monitor = dataclasses.replace(monitor, exit_ratio=0.99, min_dwell=0.0)
        self.breaker = CircuitBreaker(breaker_config(laws), clock=clock, rng=rng, on_change=self._circuit_changed)
        self.monitor = BackpressureMonitor(monitor, clock=clock, on_change=self._pressure_changed)
        self.batching = AdaptiveBatchManager(
            AdaptiveBatchConfig(
                initial_batch_size=500,
                min_batch_size=10,
                max_batch_size=1_000,
                throughput_target=20_000,
                adaptive_enabled=laws.adaptive_batch,
            ),
            clock=clock,
        )
        self.flow = FlowControlManager(
            FlowControlConfig(
                max_events_per_second=scenario.rate,
                burst_size=scenario.burst,
                emergency_mode=EmergencyModeConfig(enabled=laws.emergency),
            ),
            clock=clock,
            rng=rng,
            on_change=self._flow_changed,
        )
        self.bound = DelayBound(_DELAY_TARGET, monitor.min_dwell, lambda: self.batching.batch_size) if laws.delay_bound else None

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
        if self.bound is not None:
            n = self.bound.passes(n, priority, self.clock.now())
        return self.flow.admit(n, priority if self.laws.shares else 3).granted

    def give_back(self, n: int, priority: int) -> None:
        self.flow.give_back(n, priority if self.laws.shares else 3)

    def batch_size(self) -> int:
        return self.batching.batch_size

    def acquire(self) -> Permit | None:
        return self.breaker.try_acquire()

    def release(self, permit: object) -> None:
        assert isinstance(permit, Permit)
        permit.ignore()

    def keep(self, delay: float, priority: int) -> bool:
        return True

    def ended(self, call: Call, latency: float, sojourn: float) -> None:
        permit = call.permit
        assert isinstance(permit, Permit)
        if not self.laws.generation:
            permit._turnstile = self.breaker._turnstile
        everything = self.laws.all_signals
        if call.outcome is Outcome.OK:
            permit.success(latency)
            self.batching.record(call.n, latency, call.n >= call.asked)
            self.monitor.observe(latency=latency if everything else None, ok=call.n if everything else 0)
            self.flow.record_outcome(call.n, 0)
            if self.bound is not None:
                self.bound.delivered += call.n
        elif call.outcome is Outcome.FAILED:
            permit.failure()
            self.monitor.observe(failed=call.n if everything else 0)
            self.flow.record_outcome(0, call.n)

    def tick(self, waiting: list[int], oldest: float, resident: int, busy: float) -> None:
        self.monitor.observe(depth=sum(waiting), delay=oldest if self.laws.all_signals else None)
        pressure = self.monitor.evaluate()
        self.batching.evaluate(pressure.pressure)
        if self.bound is not None:
            closed = self.breaker.state is State.CLOSED
            self.bound.look(self.clock.now(), waiting, pressure.active, closed)

    def truth(self, condition: Condition) -> None:
        pass


class Oracle(Base):
    """Knows the sink: never calls it while it is dead, always asks for the best batch, and lets the lanes absorb what they can.

    It is the measure of goodput, which nothing can exceed by more than luck; it does not try to keep delays short.
    """

    _dead = False

    def truth(self, condition: Condition) -> None:
        self._dead = condition.dead

    def acquire(self) -> object | None:
        return None if self._dead else self

    def batch_size(self) -> int:
        return _BEST_BATCH


#: By the name in the report: one law off in turn, or on: the last, which the library leaves off.
ABLATIONS: dict[str, Laws] = {
    "no generation": Laws(delay_bound=True, generation=False),
    "no probe lease": Laws(delay_bound=True, lease=False),
    "no growth of reset": Laws(delay_bound=True, growth=False),
    "monitor by depth only": Laws(delay_bound=True, all_signals=False),
    "no hysteresis": Laws(delay_bound=True, hysteresis=False),
    "fixed thresholds": Laws(delay_bound=True, adaptive_thresholds=False),
    "fixed batch": Laws(delay_bound=True, adaptive_batch=False),
    "no shares": Laws(delay_bound=True, shares=False),
    "no emergency": Laws(delay_bound=True, emergency=False),
    "slow calls trip": Laws(delay_bound=True, slow_calls=True),
}
