"""The sequential law: open once there is enough evidence that the callee is broken
rather than flaky.

A flaky callee fails up to 2/3 of `failure_threshold` of its calls, a broken one twice
the threshold, or all. Each result is evidence for one or the other: the logarithm of
how much likelier it is where the callee is broken. It is added up, and a sum below
nothing counts as nothing (Page's CUSUM): so an hour of health weighs no more than a
success, and a callee that dies after it is found as soon as one that dies at once.
There are two sums, one against "twice the threshold" and one against "all": the first
needs 45 calls or so to find a callee that fails 60 %, and the second, which any success
ends, finds a dead one in 10, with bounds at which neither trips by chance.

**The bound.** Of a sum that opens at h, a callee right at 2/3 of the threshold opens
the circuit by chance once in exp(h) calls or less often (Lorden 1971). At the default
threshold, 20 % against 60 %, a Markov chain over the values of the sum gives it exactly
(test_sequential.py computes it): 0.155 exp(-h) for each call. It is chances per time
that matter, so h grows with the logarithm of the rate of calls: 1 in 400 within ten
minutes by Lorden's inequality, 1 in 2,500 by the chain. It is at least what ten
failures are worth at the default threshold, and at most what fifteen are (60 calls a
second and more), as the evidence that is asked for is also the delay. With a bound for
five times those chances a sink that fails right at the threshold (30 %; `flapping` in
bench/overload) tripped now and then. For "all", which is a
run of failures, chance comes nearer to exp(-h), so h is larger by as much:

    calls/s        h   60 % is found after     a dead one after
                       (median, 95 %) calls    calls
    1           12.39         30, 55                 10
    5           13.99         34, 61                 10
    20          15.38         37, 66                 11
    60 and up   16.48         40, 69                 12

`min_requests` is the least evidence: fewer results, from where the sum left nothing,
never open. Below 10 of them the bound comes down in proportion, so that whoever wants
to be rid of a callee after two failures is, and takes the false alarms.

Half-open probes are judged in the same way, by Wald's test with both errors at 5 %: at
the default threshold three failures more than there should be open again, five
successes close, and the quorum decides in any case.

Slow calls, where they are watched, are failures of their own kind, with sums and a
threshold of their own. Not safe for several threads: the circuit breaker's lock guards
it.
"""

from __future__ import annotations

import math
from typing import Final

from backpressure.policies.circuit_breaker.config import CircuitBreakerConfig
from backpressure.policies.circuit_breaker.windows import TimeWindow

__all__ = ["SequentialLaw"]

# Flaky and broken, as multiples of the threshold.
_FLAKY, _BROKEN = 2.0 / 3.0, 2.0
# What one more failure is worth at a threshold that leaves room for both (up to 1/3).
_FAILURE: Final = math.log(_BROKEN / _FLAKY)
# The bound: at least and at most; and between, the logarithm of a second's calls times
# this: 600 s with one chance in 400.
_LEAST, _MOST = 10 * _FAILURE, 15 * _FAILURE
_PER_RATE: Final = 600.0 * 400.0
# `min_requests` of which the bounds are meant.
_USUAL_REQUESTS: Final = 10
# By how much chance comes nearer to its bound for runs of failures; a little less, so
# that ten failures within a second are still enough.
_MORE_FOR_RUNS: Final = math.log(4.0)
# Wald's bound of half-open probes: 19 to 1.
_OF_PROBES: Final = math.log(19.0)
# Sums are of floats: so much less is as good as the bound.
_ROUNDING: Final = 1e-9
# A rate is told from no less than this (seconds), or the window, if that is shorter.
_SHORTEST: Final = 1.0


class _Sum:
    """Evidence that hits (failures, or slow calls) come with chance `broken` and not
    `flaky`.
    """

    __slots__ = ("_down", "_more", "_up", "evidence", "hits", "results")

    def __init__(self, flaky: float, broken: float, more: float) -> None:
        self._up = math.log(broken / flaky)
        self._down = math.log((1.0 - flaky) / (1.0 - broken)) if broken < 1.0 else math.inf
        self._more = more
        self.clear()

    def clear(self) -> None:
        self.evidence = 0.0
        #: Since it was nothing.
        self.results = self.hits = 0

    def add(self, results: int, hits: int) -> None:
        """Of several at once the hits are taken for the earliest: no other order leaves
        so little evidence.
        """
        self.evidence += self.of(results, hits)
        if self.evidence > 0.0:
            self.results += results
            self.hits += hits
        else:
            self.clear()

    def of(self, results: int, hits: int) -> float:
        """The evidence of these alone."""
        good = results - hits
        return hits * self._up - (good * self._down if good else 0.0)

    def reaches(self, bound: float, part: float) -> bool:
        return self.evidence >= part * (bound + self._more) - _ROUNDING


class _Signal:
    """One kind of hit, its threshold and its sums."""

    __slots__ = ("_many", "_sums", "_threshold", "_what")

    def __init__(self, threshold: float, what: str) -> None:
        flaky = threshold * _FLAKY
        # Where twice the threshold is no chance, or hardly another one: half-way to 1.
        broken = min(threshold * _BROKEN, (threshold + 1.0) / 2.0)
        self._threshold = threshold
        self._what = what
        self._many = _Sum(flaky, broken, 0.0)
        self._sums = (self._many, _Sum(flaky, 1.0, _MORE_FOR_RUNS))

    def clear(self) -> None:
        for one in self._sums:
            one.clear()

    def add(self, results: int, hits: int) -> None:
        for one in self._sums:
            if hits or one.evidence:
                one.add(results, hits)

    def verdict(self, bound: float, least: int) -> str | None:
        part = min(1.0, least / _USUAL_REQUESTS)
        for one in self._sums:
            if one.results >= least and one.reaches(bound, part):
                return (
                    f"{one.hits} of {one.results} calls {self._what}, threshold {self._threshold:g}"
                )
        return None

    def of_probes(self, results: int, hits: int) -> float:
        return self._many.of(results, hits)


class SequentialLaw:
    """Judges by all results since the circuit closed, each as it comes; `window` tells
    their rate.
    """

    __slots__ = ("_config", "_failures", "_signals", "_slow", "_window")

    is_calm = True  #: a success never opens, and takes from the evidence when it is counted

    def __init__(self, config: CircuitBreakerConfig, window: TimeWindow) -> None:
        self._config = config
        self._window = window
        self._failures = _Signal(config.failure_threshold, "failed")
        self._slow = _Signal(config.slow_call_rate_threshold, "were slow")

    def add(self, calls: int, failed: int, slow: int) -> None:
        """Count results; of several at once see `_Sum.add`."""
        self._failures.add(calls, failed)
        self._slow.add(calls, slow)

    def rolled(self) -> None:
        """Time alone changes no evidence."""

    def clear(self) -> None:
        """Begin anew."""
        self._failures.clear()
        self._slow.clear()

    def verdict(self, now: float, since: float) -> str | None:
        """Why it is to open, in words; None: it is not. It closed at `since`."""
        bound, least = self._bound(now - since), self._config.min_requests
        return self._failures.verdict(bound, least) or self._slow.verdict(bound, least)

    def of_probes(self, results: int, failed: int, slow: int) -> tuple[bool, str] | None:
        """Whether the probes have passed, and why; None: more are needed."""
        evidence = max(
            self._failures.of_probes(results, failed), self._slow.of_probes(results, slow)
        )
        if abs(evidence) < _OF_PROBES and results < self._config.quorum:
            return None
        passed = evidence <= 0.0
        if passed or not slow:
            return passed, f"{failed} of {results} probes failed"
        return passed, f"{failed} of {results} probes failed and {slow} were slow"

    def _bound(self, seconds: float) -> float:
        """The evidence that is asked for, at the rate of the calls within the last
        `seconds`, of which the window has as many as it is long.
        """
        interval = self._config.monitoring_interval
        span = min(interval, max(seconds, min(_SHORTEST, interval)))
        rate = max(1.0, self._window.calls) / span
        return min(_MOST, max(_LEAST, math.log(rate * _PER_RATE)))
