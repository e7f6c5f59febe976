"""A hundred clients before one sink: their breakers trip together, and must not come
back together.

Every client calls ten times a second. The sink is gone for 40 s and comes back cold: it
takes a fifth of the load and warms up by as much in 5 s; what is beyond that fails.
Only breakers are in play, so that the spread of their probes is what is measured.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from backpressure.policies.circuit_breaker import CircuitBreaker, CircuitBreakerConfig, State
from bench.overload.kernel import VirtualClock

__all__ = ["FLEETS", "FleetFigures", "fleet"]

CLIENTS = 100
_PACE = 0.1
_LOAD = CLIENTS / _PACE
_SECONDS, _DEAD, _BACK = 300.0, 20.0, 60.0
#: The calls in a tenth of a second are counted until then.
PEAK_SECONDS = _BACK + 10.0
# What the cold sink takes, of the full load, and what it gains a second.
_COLD, _WARMING = 0.2, 0.04

#: Breakers by name: a buffer's, and with a law off in turn.
FLEETS: dict[str, CircuitBreakerConfig] = {
    "ours": CircuitBreakerConfig(law="sequential", canary=True),
    "no jitter": CircuitBreakerConfig(law="sequential", canary=True, reset_timeout_jitter=0.0),
    "by shares": CircuitBreakerConfig(canary=True),
    "no canary": CircuitBreakerConfig(),
    "none of them": CircuitBreakerConfig(reset_timeout_multiplier=1.0, reset_timeout_jitter=0.0),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetFigures:
    """Of one run."""

    #: most calls to the sink in a tenth of a second, from the first trip until the sink
    #: had been back for 10 s
    peak: int
    leaks: int  #: calls into the dead sink
    trips: int
    recovery: float  #: seconds from the sink's return until nine tenths of the load succeed
    goodput: float  #: share of all calls that succeeded


def fleet(config: CircuitBreakerConfig, seed: int = 0, seconds: float = _SECONDS) -> FleetFigures:
    """`peak` needs PEAK_SECONDS, the other figures the whole run."""
    clock = VirtualClock()
    trips: list[float] = []

    def changed(old: State, new: State, reason: str) -> None:
        if new is State.OPEN:
            trips.append(clock.t)

    breakers = [
        CircuitBreaker(config, clock=clock, rng=random.Random(f"{seed}/{k}"), on_change=changed)
        for k in range(CLIENTS)
    ]
    peak = leaks = good = 0
    recovery = float("inf")
    recent: list[int] = []
    steps = round(seconds / _PACE)
    for step in range(steps):
        clock.t = t = step * _PACE
        dead = _DEAD <= t < _BACK
        room = 0.0 if dead else _LOAD * _PACE
        if t >= _BACK:
            room *= min(1.0, _COLD + _WARMING * (t - _BACK))
        calls = ok = 0
        for k in range(CLIENTS):
            permit = breakers[(k + step) % CLIENTS].try_acquire()
            if permit is None:
                continue
            calls += 1
            if calls <= room:
                ok += 1
                permit.success(0.01)
            else:
                permit.failure()
        good += ok
        leaks += calls if dead else 0
        if trips and trips[0] + 10.0 <= t < PEAK_SECONDS:
            peak = max(peak, calls)
        recent = [*recent[-19:], ok]
        if t >= _BACK and recovery == float("inf") and sum(recent) >= 0.9 * len(recent) * CLIENTS:
            recovery = t - _BACK
    return FleetFigures(
        peak=peak,
        leaks=leaks,
        trips=len(trips),
        recovery=recovery,
        goodput=good / (steps * CLIENTS),
    )
