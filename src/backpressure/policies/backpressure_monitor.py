"""Decides whether the buffer is overloaded, and how badly. An estimator: it refuses
nothing by itself.

Five signals are judged once per `monitoring_interval`. Each becomes a severity, value /
threshold (throughput the other way round), so that one law serves all:

    signal      value over the interval                 threshold
    delay       MINIMUM age (s) of the oldest event     delay_threshold, adapted
    depth       events waiting: the latest; while hot   queue_depth_threshold,
                the maximum                             adapted downwards
    latency     median duration (s) of the sink's       latency_threshold, adapted
                calls
    error_rate  failed / (ok + failed)                  error_rate_threshold
    throughput  events delivered per second while a     half of the learnt normal
                queue grows

- The minimum delay is the idea of CoDel (Nichols and Jacobson, 2012; RFC 8289): a burst
  that drains within an interval leaves a low minimum, a standing queue does not. So
  does the median ignore a single stalled call.
- Hysteresis: a signal gets hot at severity 1 and cools below `exit_ratio`. The monitor
  is active while one is hot and until none has been for `min_dwell`. What wobbles
  between the two changes nothing.
- Damping: an activation within two dwells of the end of the last one has twice its
  dwell. So what comes and goes becomes one activation (as BGP holds down a route that
  flaps, RFC 2439).
- Fast attack: depth at its threshold activates in the very next `evaluate`. Slow
  release: a signal cools only when an interval ends, and `pressure` goes
  `recovery_factor` of the way down per interval.
- Refusals: where flow control keeps the queue short by refusing, a short queue is no
  recovery, and the monitor stays active until it was told for `min_dwell` that nothing
  is refused. Refusals never activate it.
- Silence is neither health nor fault: a hot signal that is not reported stays hot while
  events wait and cools when none do. Outcomes too few for an error rate are added to
  those of the next interval.
- What is normal is learnt only while not active, and not from idleness: overload never
  becomes the norm.
- The buffer's own refusals are no outcomes. Never report them as `failed`: refusing
  would justify itself.

Invariants: 0 <= pressure <= 1; an active Pressure names a signal. Any thread may call
any method, and so may finalisers and signal handlers (see base/reentry.py); `on_change`
runs after the lock was let go, in the thread whose `evaluate` made the change. A clock
that goes back begins the interval anew; one that jumps ends it once.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from backpressure.base.clock import Clock, MonotonicClock
from backpressure.base.reentry import Reentry, deferrable
from backpressure.base.validation import check_bool, check_fields, check_outcomes

__all__ = ["BackpressureMonitor", "BackpressureMonitorConfig", "Pressure"]

# An adapted threshold is this multiple of what is normal: less than that is everyday
# variation.
_HEADROOM = 3.0
# ... but within these factors of the configured value: a setting keeps its meaning.
_LOWEST, _HIGHEST = 0.5, 2.0
# Delivering less than half of what is normal is a fault, not variation.
_THROUGHPUT_RATIO = 0.5
# Weight of an interval in what is normal: ten intervals of memory, so that an odd one
# moves it little.
_LEARNING = 0.1
# Intervals before what was learnt is used: the first are start-up.
_TRUSTED_AFTER = 3
# A queue stands when all through the interval it held this part of the depth threshold.
_STANDING = 0.1
# Sink calls kept for the median: enough for it to be steady, and sorted in about 20
# microseconds.
_LATENCIES = 256
# An activation within `_SOON` dwells of the end of the last one is the same overload,
# that comes and goes. Its dwell is twice as long, up to `_LONGEST_DWELL` times
# `min_dwell`: a minute at the default.
_SOON = 2.0
_LONGEST_DWELL = 12.0
# `pressure` snaps to its goal from this distance: no consumer can tell the difference.
_SETTLED = 0.001


@dataclass(frozen=True, kw_only=True, slots=True)
class BackpressureMonitorConfig:
    """Thresholds of a BackpressureMonitor; times in seconds."""

    #: Events waiting at which the monitor activates at once.
    queue_depth_threshold: int = 800_000
    #: Median duration of the sink's calls.
    latency_threshold: float = 1.0
    #: Failed part of the outcomes, up to 1.
    error_rate_threshold: float = 0.1
    #: How often the signals are judged.
    monitoring_interval: float = 5.0
    #: Whether thresholds follow what is normal here; without it there is no throughput
    #: signal either.
    adaptive_thresholds: bool = True
    #: Part of the way down that `pressure` goes per interval; with 1 it drops at once.
    recovery_factor: float = 0.1
    #: The oldest event must be younger once per interval; more than two batches at
    #: their target latency.
    delay_threshold: float = 0.5
    #: A hot signal cools below this part of its threshold; a gap of 30 % is more than
    #: the usual noise.
    exit_ratio: float = 0.7
    #: How long no signal may have been hot before the monitor lets go; one default
    #: interval of evidence. Twice as long each time an overload comes back soon, up to
    #: twelve times.
    min_dwell: float = 5.0
    #: Outcomes that an error rate needs; with fewer, a failure or two would be the
    #: whole of it.
    min_samples: int = 20
    #: Judgements that `history()` keeps; an hour at the default interval.
    history_size: int = 720

    def __post_init__(self) -> None:
        check_fields(self, int, 1, 2**62, "queue_depth_threshold", "min_samples", "history_size")
        # Up to a day: beyond that a threshold never acts.
        check_fields(
            self,
            float,
            1e-3,
            86_400.0,
            "latency_threshold",
            "delay_threshold",
            "monitoring_interval",
        )
        check_fields(self, float, 0.0, 86_400.0, "min_dwell")
        check_fields(self, float, 1e-6, 1.0, "error_rate_threshold", "recovery_factor")
        check_fields(self, float, 0.01, 0.99, "exit_ratio")
        check_bool(self, "adaptive_thresholds")


@dataclass(frozen=True, kw_only=True, slots=True)
class Pressure:
    """One judgement of the monitor."""

    #: When it was made, by the monitor's clock, in seconds.
    at: float
    #: Whether the buffer is overloaded.
    active: bool = False
    #: How badly: a signal at its threshold makes 0.5, half of it or less 0, one and a
    #: half of it or more 1.
    pressure: float = 0.0
    #: The signal that is worst now, never None while active; when an activation ends,
    #: the one that began it, if measured.
    signal: str | None = None
    #: What that signal read, and the threshold in force for it, in its own unit.
    value: float = 0.0
    threshold: float = 0.0
    #: The signal that began this activation, also in the judgement that ends it;
    #: otherwise None.
    cause: str | None = None
    #: Seconds since the activation began, also in the judgement that ends it; otherwise
    #: 0.
    active_for: float = 0.0


class _Reading(NamedTuple):
    """What a signal says of one interval."""

    signal: str = ""
    value: float = 0.0
    threshold: float = 0.0
    severity: float = 0.0

    @property
    def grade(self) -> float:
        """Severity as pressure: linear, from 0 at half of the threshold to 1 at one and
        a half of it.
        """
        return min(1.0, max(0.0, self.severity - 0.5))


class BackpressureMonitor:
    """Watches five signals and says whether, and how badly, the buffer is overloaded.

    `on_change(pressure)` is called when `active` flips. What it raises, `evaluate`
    raises; the change stands.
    """

    def __init__(
        self,
        config: BackpressureMonitorConfig | None = None,
        *,
        clock: Clock | None = None,
        on_change: Callable[[Pressure], object] | None = None,
    ) -> None:
        self.config = config = config if config is not None else BackpressureMonitorConfig()
        self._now = (clock if clock is not None else MonotonicClock()).now
        self._on_change = on_change
        self._reentry = Reentry(self._start_over)
        self._lock = self._reentry.lock
        depth, errors = config.queue_depth_threshold, config.error_rate_threshold
        delay, latency = config.delay_threshold, config.latency_threshold
        self._limits = {
            "depth": _Limit(depth, depth * _LOWEST, depth),
            "delay": _Limit(delay, delay * _LOWEST, delay * _HIGHEST),
            "latency": _Limit(latency, latency * _LOWEST, latency * _HIGHEST),
            "error_rate": _Limit(errors, errors, errors),
            "throughput": _Limit(0.0, 0.0, math.inf, _THROUGHPUT_RATIO),
        }
        self._hot_at = self._since = now = self._now()
        self._hot: set[str] = set()
        # The dwell of this activation or the last one, and when that one ended.
        self._dwell, self._ended = config.min_dwell, -math.inf
        self._last, self._named = Pressure(at=now), _Reading()
        self._history: deque[Pressure] = deque(maxlen=config.history_size)
        # What was last reported of the queue, and whether that calls for a judgement at
        # once.
        self._depth, self._delay, self._alarm = 0.0, 0.0, False
        self._refusing = False
        self._latencies: deque[float] = deque(maxlen=_LATENCIES)
        # Outcomes not judged yet, over as many intervals as it takes; `_delivered` is
        # of this interval alone.
        self._ok = self._failed = self._delivered = 0
        self._start = self._due = self._delay_min = self._depth_min = self._depth_max = 0.0
        self._begin_interval(now)

    @deferrable
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
        """Report any of: events waiting; age of the oldest in seconds (0 where none
        waits); seconds that one call of the sink took; how many events the sink took,
        and failed; whether events are refused because they would wait too long, which
        holds an activation until the next report: the queue is short for that reason.

        A measurement below 0 counts as 0: counters read one after the other can yield
        that. ValueError where `ok` or `failed` is negative.
        """
        ok, failed = check_outcomes(ok, failed)
        with self._lock:
            if depth is not None:
                depth = max(0.0, depth)
                if depth >= self._limits["depth"].now and "depth" not in self._hot:
                    self._alarm = True
                self._depth = depth
                self._depth_min = min(self._depth_min, depth)
                self._depth_max = max(self._depth_max, depth)
            if delay is not None:
                self._delay = max(0.0, delay)
                self._delay_min = min(self._delay_min, self._delay)
                self._delay_seen = True
            if latency is not None:
                self._latencies.append(max(0.0, latency))
            self._ok += ok
            self._failed += failed
            self._delivered += ok
            if refusing is not None:
                self._refusing = refusing

    def evaluate(self) -> Pressure:
        """A new judgement if the interval is over or depth has crossed its threshold,
        else the last one.
        """
        now = self._now()
        if self._start <= now < self._due and not self._alarm:
            return self._last
        if self._reentry.within():
            return self._last
        with self._lock:
            before = self._last
            if (
                now < self._start
            ):  # the clock went back: what was measured stays, no time lies ahead
                self._start, self._due = now, now + self.config.monitoring_interval
                self._hot_at, self._since, self._ended = (
                    min(then, now) for then in (self._hot_at, self._since, self._ended)
                )
            if now >= self._due:
                self._judge(now, self._read(now))
                self._begin_interval(now)
            elif self._alarm and self._depth >= self._limits["depth"].now:
                # The interval goes on, and what was worst so far goes on counting.
                known = [self._named] if before.active else []
                self._judge(now, [*known, self._reading("depth", self._depth)])
            self._alarm = False
            after = self._last
        if after.active != before.active and self._on_change is not None:
            self._on_change(after)
        if self._reentry.deferred:
            self._reentry.apply()
        return after

    @property
    def active(self) -> bool:
        """Whether the last judgement was overload."""
        return self._last.active

    @property
    def pressure(self) -> float:
        """The graded pressure of the last judgement, 0 to 1."""
        return self._last.pressure

    def history(self) -> tuple[Pressure, ...]:
        """The latest judgements, oldest first; at most `history_size`."""
        if self._reentry.within():
            return tuple(self._history)
        with self._lock:
            history = tuple(self._history)
        if self._reentry.deferred:
            self._reentry.apply()
        return history

    def _start_over(self) -> None:
        """In a forked child, where another thread was changing this: what was measured
        since the last judgement is measured anew.
        """
        self._ok = self._failed = 0
        self._alarm = False
        self._begin_interval(self._now())

    # From here on: with the lock held.

    def _read(self, now: float) -> list[_Reading]:
        """What each signal that has evidence says of the interval that ends now."""
        readings = [
            self._reading("depth", self._depth_max if "depth" in self._hot else self._depth)
        ]
        if self._delay_seen:
            readings.append(self._reading("delay", self._delay_min))
        if self._latencies:
            # The lower one: more than half of the calls must be slow, and of two calls
            # both.
            latencies = sorted(self._latencies)
            median_low = latencies[(len(latencies) - 1) // 2]
            readings.append(self._reading("latency", median_low))
        if self._ok + self._failed >= self.config.min_samples:
            readings.append(self._reading("error_rate", self._failed / (self._ok + self._failed)))
            self._ok = self._failed = 0
        readings.append(self._read_throughput(now - self._start))
        return readings

    def _reading(self, signal: str, value: float) -> _Reading:
        limit = self._limits[signal].now
        return _Reading(signal, value, limit, value / limit)

    def _read_throughput(self, elapsed: float) -> _Reading:
        """Low is a fault only where events wait: behind a silent source nothing is
        delivered either.
        """
        # Less than an interval has elapsed only where a far clock loses it in rounding.
        value = self._delivered / max(elapsed, self.config.monitoring_interval)
        limit = self._limits["throughput"].now
        standing = self._depth_min >= _STANDING * self.config.queue_depth_threshold
        # Once the fault is known producers are held back: the queue need not grow for
        # it to last.
        growing = self._depth > self._depth_first or "throughput" in self._hot
        severity = limit / value if value > 0.0 else math.inf
        return _Reading(
            "throughput", value, limit, severity if limit and standing and growing else 0.0
        )

    def _judge(self, now: float, readings: list[_Reading]) -> None:
        config, interval = self.config, self.config.monitoring_interval
        last, spoke = self._last, {reading.signal for reading in readings}
        for reading in readings:
            if reading.severity >= 1.0:
                self._hot.add(reading.signal)
            elif reading.severity < config.exit_ratio:
                self._hot.discard(reading.signal)
        if self._depth == 0.0:
            self._hot &= spoke
        if self._hot or (last.active and self._refusing):
            self._hot_at = now
        active = bool(self._hot) or (last.active and now - self._hot_at < self._dwell)
        if active and not last.active:
            again = now - self._ended < _SOON * self._dwell
            self._dwell = (
                min(2.0 * self._dwell, _LONGEST_DWELL * config.min_dwell)
                if again
                else config.min_dwell
            )
        elif last.active and not active:
            self._ended = now
        if config.adaptive_thresholds and not active and not last.active:
            for signal, value, _, _ in readings:
                self._limits[signal].learn(self._depth_max if signal == "depth" else value)
        # Up at once; down by time, so that it does not matter how often a judgement is
        # made.
        pressure = max(reading.grade for reading in readings)
        if pressure < last.pressure:
            elapsed = max(0.0, now - last.at) if self._hot <= spoke else 0.0
            above = (last.pressure - pressure) * (1.0 - config.recovery_factor) ** (
                elapsed / interval
            )
            pressure += above if above > _SETTLED else 0.0
        candidates = [
            r for r in readings if (r.signal in self._hot if active else r.severity > 0.0)
        ]
        if candidates or not active:
            self._named = max(candidates, key=lambda r: r.severity, default=_Reading())
        if last.active and not active:
            self._named = next((r for r in readings if r.signal == last.cause), self._named)
        self._since = self._since if last.active else now
        self._last = Pressure(
            at=now,
            active=active,
            pressure=pressure,
            signal=self._named.signal or None,
            value=self._named.value,
            threshold=self._named.threshold,
            cause=last.cause if last.active else self._named.signal if active else None,
            active_for=max(0.0, now - self._since),
        )
        self._history.append(self._last)

    def _begin_interval(self, now: float) -> None:
        self._start, self._due = now, now + self.config.monitoring_interval
        # A queue is not empty because none was reported: it begins with what was last
        # known.
        self._depth_first = self._depth_min = self._depth_max = self._depth
        self._delay_min, self._delay_seen = self._delay, False
        self._latencies.clear()
        self._delivered = 0


class _Limit:
    """A threshold that follows what is normal, between two bounds."""

    __slots__ = ("_factor", "_highest", "_lowest", "_normal", "_seen", "now")

    def __init__(
        self, start: float, lowest: float, highest: float, factor: float = _HEADROOM
    ) -> None:
        self.now = float(start)
        self._lowest, self._highest, self._factor = lowest, highest, factor
        self._normal, self._seen = 0.0, 0

    def learn(self, value: float) -> None:
        """Take in one healthy interval. One that was idle teaches nothing, and outliers
        are cut.
        """
        if value == 0.0:
            return
        self._seen += 1
        # A plain mean at first, then one that forgets.
        self._normal += (min(value, self._highest) - self._normal) * max(
            _LEARNING, 1.0 / self._seen
        )
        if self._seen >= _TRUSTED_AFTER:
            self.now = min(max(self._factor * self._normal, self._lowest), self._highest)
