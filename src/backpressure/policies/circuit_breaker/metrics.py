"""What a circuit breaker shows of itself."""

from __future__ import annotations

from dataclasses import dataclass

from backpressure.policies.circuit_breaker.state import State

__all__ = ["CircuitBreakerMetrics"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitBreakerMetrics:
    """A snapshot, taken at one moment. Counters run since the breaker was made; times
    are in seconds.
    """

    #: The state, and how many changes of state led to it (a reset of a closed breaker
    #: is one too).
    state: State
    generation: int
    #: The window of the last `monitoring_interval` as it is now: it empties while open,
    #: and starts empty when closed again.
    window_calls: int
    window_failures: int
    window_slow: int
    #: The same of the last `window_size` results; 0 where there is no such window.
    last_calls: int
    last_failures: int
    last_slow: int
    #: `window_failures` and `window_slow` as shares of `window_calls`; 0.0 where that
    #: is 0.
    failure_rate: float
    slow_call_rate: float
    #: Probes of this half-open period: still out, answered, and failed. 0 in other
    #: states.
    probes_out: int
    probe_results: int
    probe_failures: int
    #: Calls let through, and calls refused.
    admitted: int
    rejected: int
    #: Results by kind, late ones and those of `record_many` included.
    succeeded: int
    failed: int
    ignored: int
    #: Results, of any kind but ignored, that were slow; 0 while `slow_call_duration` is
    #: None.
    slow: int
    #: Successes and failures from an earlier generation, or from a probe that had lost
    #: its slot.
    late: int
    #: Reports for a permit that had its result already.
    duplicates: int
    #: Probes that lost their slot without a result: the lease was over and another
    #: wanted it, or the permit was dropped.
    lost_probes: int
    #: How often the breaker opened by itself, and by how many multiplications the next
    #: open time is longer.
    trips: int
    remembered_trips: int
    #: The length of the last open period, jitter included; 0.0 before the first.
    open_time: float
    #: The share of the calls that is admitted: 1.0 in CLOSED and DISABLED, less while
    #: ramping up, else 0.0. Probes are not a share of anything.
    admitted_share: float
    #: As `CircuitBreaker.retry_after()`.
    retry_after: float
