"""How many events a batch should have: as many as the sink takes within the target latency.

A sink takes about `a * n + b` seconds for n events. Larger batches spread b over more events, and so raise
throughput until a * n alone fills the target. The law, once per `evaluation_interval`:

 1. A growth that lowered throughput is taken back, and not tried again for a while.
 2. Late (the p95 exceeds the target): cut to where the fit meets the target, at most by half; by a trial
    step while the sizes are too alike to tell a from b. Where no allowed size meets the target a cut only
    costs throughput: undo it.
 3. Under pressure capacity comes first: shrink, late or not, only where a * n binds, and neither shrink
    below nor grow beyond the size at which b takes a tenth of the time.
 4. Otherwise grow by a constant step while batches come out full, up to the size whose p95 meets the target.

The size stays within [min, max], and one outlier decides nothing. Additive increase and multiplicative
decrease follow Clipper (NSDI '17), the affine fit BentoML's dispatcher.

Safe for any thread. `evaluate` is one clock reading when not due; no lock is held while `on_change` runs.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from backpressure.clock import Clock, MonotonicClock
from backpressure.errors import ConfigError

__all__ = ["AdaptiveBatchConfig", "AdaptiveBatchManager", "AdaptiveBatchMetrics"]

_log = logging.getLogger("backpressure")

# Batches that an evaluation looks at: six lie above their p95, and sorting them takes microseconds.
_KEPT: Final = 128
# Batches that decide anything: without the slowest, four are left.
_FEWEST: Final = 5
# The share of the target that a size aims at, so that noise does not cut at once.
_HEADROOM: Final = 0.95
# The weight of the fit's past at each evaluation: it remembers about five.
_KEEP: Final = 0.8
# The deviation of the sizes, as a share of their mean, that tells a from b despite ordinary noise.
_SPREAD: Final = 0.02
# The least cut while a and b are not told apart: enough for a deviation of some 5 %.
_TRIAL: Final = 0.1
# Sizes this near have like latencies; where these differ by more than the factor, the sink has changed.
_LIKE: Final = 0.2
_CHANGED: Final = 1.25
# The pressure from which capacity comes first: half of the scale.
_PRESSED: Final = 0.5
# The share of b in the latency under pressure: a tenth less throughput than endless batches would have.
_OVERHEAD: Final = 0.1
# The loss of throughput that takes a growth back (less is noise), and for how many evaluations none is tried
# after that: a minute at the default interval.
_LOWERED: Final = 0.05
_REST: Final = 6
# A change by a smaller share than this would only make noise.
_WORTHWHILE: Final = 0.02

_Step = tuple[float, str, str]  # the size to have, the kind of change (a counter of the metrics), and the reason


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveBatchConfig:
    """Sizes are in events, times in seconds."""

    initial_batch_size: int = 50_000
    min_batch_size: int = 1_000
    max_batch_size: int = 100_000
    #: The latency of the sink that 95 % of the batches should keep.
    target_latency: float = 0.2
    #: A step of growth as a share of `max - min` (constant, so the whole range takes ten), a cut as one of
    #: the size.
    adjustment_factor: float = 0.1
    evaluation_interval: float = 10.0
    #: Events per second that make the throughput half of the score full; it steers nothing.
    throughput_target: float = 2_000_000
    #: False: only `adjust` changes the size; score and metrics go on.
    adaptive_enabled: bool = True

    def __post_init__(self) -> None:
        _check_size("min_batch_size", self.min_batch_size, 1, math.inf)
        _check_size("max_batch_size", self.max_batch_size, self.min_batch_size, math.inf)
        _check_size("initial_batch_size", self.initial_batch_size, self.min_batch_size, self.max_batch_size)
        for field in ("target_latency", "adjustment_factor", "evaluation_interval", "throughput_target"):
            value, most = getattr(self, field), 0.5 if field == "adjustment_factor" else math.inf
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not 0.0 < value <= most or value == math.inf:
                raise ConfigError(field, f"must be finite, above 0 and at most {most:g}, not {value!r}")
        if not isinstance(self.adaptive_enabled, bool):
            raise ConfigError("adaptive_enabled", f"must be a bool, not {self.adaptive_enabled!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveBatchMetrics:
    """A snapshot. What was measured is from the last evaluation that had enough batches."""

    batch_size: int  #: now, in events
    score: float  #: as `AdaptiveBatchManager.score`
    throughput: float  #: events/s of a busy sink, or of the clock where batches overlap; 0.0 at first
    p95_latency: float  #: seconds; the slowest batch left out
    filled: float  #: share of the batches that were as large as asked
    seconds_per_event: float  #: the fit's a
    seconds_per_batch: float  #: the fit's b; 0.0 until batches of different sizes tell it from a
    batches: int  #: recorded since the start
    events: int  #: in these
    grown: int  #: changes of the size by growth,
    cut: int  #: by being late or under pressure,
    reverted: int  #: and by taking a step back


class AdaptiveBatchManager:
    """Tells the batch size, and learns it from how long the sink took.

    `on_change(old, new, reason)` is called after each change, with no lock held; an exception out of it is
    logged.
    """

    def __init__(
        self,
        config: AdaptiveBatchConfig | None = None,
        *,
        clock: Clock | None = None,
        on_change: Callable[[int, int, str], object] | None = None,
    ) -> None:
        self.config: Final = config if config is not None else AdaptiveBatchConfig()
        self._clock = clock if clock is not None else MonotonicClock()
        self._on_change = on_change
        self._lock = threading.Lock()
        self._size = self.config.initial_batch_size
        self._recent: deque[tuple[int, float, bool]] = deque(maxlen=_KEPT)  # size, latency, filled
        self._batches = self._events = 0
        self._begin(self._clock.now())
        self._fit = _AffineFit()
        self._last = _Period()
        self._throughput, self._score = 0.0, 1.0
        self._changes = {"grown": 0, "cut": 0, "reverted": 0}
        # Size and pace before the last step if that was growth, and the size where this run of cuts began.
        self._grown_from: tuple[int, float] | None = None
        self._cut_from: int | None = None
        self._rest = 0

    @property
    def batch_size(self) -> int:
        """How many events the next batch should have."""
        return self._size

    @property
    def score(self) -> float:
        """0 to 1: the mean of throughput / throughput_target and target_latency / p95, each at most 1.

        1.0 before the first evaluation.
        """
        return self._score

    def record(self, size: int, latency: float, filled: bool) -> None:
        """A batch of `size` events took the sink `latency` seconds; `filled`: it was as large as asked for.

        Left out where there are no events, or the latency is no time (a clock stepped).
        """
        if size < 1 or not 0.0 <= latency < math.inf:
            return
        with self._lock:
            self._recent.append((size, latency, filled))
            self._batches += 1
            self._events += size

    def evaluate(self, pressure: float = 0.0) -> int:
        """Reconsider the size if `evaluation_interval` has passed since the last time; gives the size.

        `pressure` (0 to 1) says how hard the buffer is pressed. Fewer than five batches wait for the next
        evaluation.
        """
        now = self._clock.now()
        if 0.0 <= now - self._begun < self.config.evaluation_interval:
            return self._size
        with self._lock:
            old = self._size
            reason = self._reconsider(now, pressure)
            new = self._size
        self._notify(old, new, reason)
        return new

    def adjust(self, size: int) -> None:
        """Set the size by hand; the law goes on from there. ConfigError (a ValueError) outside [min, max]."""
        _check_size("size", size, self.config.min_batch_size, self.config.max_batch_size)
        with self._lock:
            old, self._size = self._size, size
            self._begin(self._clock.now())
            self._recent.clear()
            self._grown_from = self._cut_from = None
            self._rest = 0
        self._notify(old, size, "set by hand")

    def metrics(self) -> AdaptiveBatchMetrics:
        """A frozen snapshot."""
        with self._lock:
            a, b = self._fit.line()
            return AdaptiveBatchMetrics(
                batch_size=self._size,
                score=self._score,
                throughput=self._throughput,
                p95_latency=self._last.p95,
                filled=self._last.filled,
                seconds_per_event=a,
                seconds_per_batch=b,
                batches=self._batches,
                events=self._events,
                **self._changes,
            )

    # --- below: called with the lock held, but for `_notify`

    def _begin(self, now: float) -> None:
        self._begun = now
        self._events_before = self._events

    def _reconsider(self, now: float, pressure: float) -> str:
        """Evaluate, if it is due; the reason of a change."""
        cfg, elapsed, size = self.config, now - self._begun, self._size
        if 0.0 <= elapsed < cfg.evaluation_interval:
            return ""  # another thread was here first
        rate = (self._events - self._events_before) / elapsed if elapsed > 0.0 else 0.0
        self._begin(now)
        # Larger batches were asked for before a cut, or by hand: they say nothing about the present size.
        batches = [batch for batch in self._recent if batch[0] <= size]
        if elapsed < 0.0 or len(batches) < _FEWEST:  # a clock that stepped back just begins a new interval
            return ""
        self._recent.clear()
        period = self._last = _Period.of(batches)
        self._fit.add(period)
        self._throughput = max(period.pace, rate) if period.pace < math.inf else rate
        in_time = cfg.target_latency / max(period.p95, cfg.target_latency)
        self._score = (min(1.0, self._throughput / cfg.throughput_target) + in_time) / 2.0
        if not cfg.adaptive_enabled:
            return ""

        wanted, kind, reason = self._decide(period, pressure)
        self._size = round(min(max(wanted, cfg.min_batch_size), cfg.max_batch_size))
        self._grown_from = None
        if self._size == size:
            return ""
        self._changes[kind] += 1
        if kind == "grown":
            self._grown_from = size, period.pace
        elif kind == "cut" and self._cut_from is None:
            self._cut_from = size
        return reason

    def _decide(self, period: _Period, pressure: float) -> _Step:
        """The size to have, not yet an int nor within [min, max]."""
        cfg, fit, size = self.config, self._fit, self._size
        full = period.filled >= 0.5
        self._rest = max(0, self._rest - 1)
        if self._grown_from is not None and full and period.pace < self._grown_from[1] * (1.0 - _LOWERED):
            self._rest = _REST
            return self._grown_from[0], "reverted", f"growth lowered throughput to {period.pace:,.0f}/s"

        ceiling = fit.size_in(_HEADROOM * cfg.target_latency / period.tail)
        enough = 0.0  # the size below which shrinking costs more than it gains
        if pressure >= _PRESSED:
            a, b = fit.line()
            enough = b / a * (1.0 / _OVERHEAD - 1.0) if a > 0.0 else math.inf

        if period.p95 > cfg.target_latency:
            reason = f"p95 {period.p95:.3g} s is over {cfg.target_latency:.3g} s"
            if not fit.fresh:
                return size * (1.0 - max(cfg.adjustment_factor, _TRIAL)), "cut", reason
            if ceiling < cfg.min_batch_size:
                enough = math.inf
            if size * (1.0 - _WORTHWHILE) <= enough:
                back = min(self._cut_from or size, enough)
                return back if back >= size * (1.0 + _WORTHWHILE) else size, "reverted", "overhead binds"
            wanted = min(ceiling, size * (1.0 - cfg.adjustment_factor))
            return max(wanted, size / 2.0, enough), "cut", reason
        self._cut_from = None

        if pressure >= _PRESSED and fit.known:
            if size * (1.0 - _WORTHWHILE) > enough:
                wanted = size * (1.0 - cfg.adjustment_factor * min(pressure, 1.0))
                return max(wanted, enough), "cut", "latency binds under pressure"
            ceiling = min(ceiling, enough)
        # At most twice the size: the fit is no guide far beyond what it has seen.
        step = min(size, max(1.0, cfg.adjustment_factor * (cfg.max_batch_size - cfg.min_batch_size)))
        wanted = min(size + step, ceiling, cfg.max_batch_size)
        if full and not self._rest and wanted >= min(size * (1.0 + _WORTHWHILE), cfg.max_batch_size):
            return wanted, "grown", "batches fill"
        return size, "", ""

    def _notify(self, old: int, new: int, reason: str) -> None:
        """Called without the lock."""
        if self._on_change is None or old == new:
            return
        try:
            self._on_change(old, new, reason)
        except Exception:
            _log.exception("on_change %r failed at %d -> %d", self._on_change, old, new)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Period:
    """What an evaluation sees. Batches slower than twice the p95 are outliers, and only in `filled`."""

    p95: float = 0.0  # seconds; never that of the slowest batch
    tail: float = 1.0  # p95 / mean latency of the filled batches, at least 1
    filled: float = 0.0  # share of the batches
    pace: float = 0.0  # events per second of the sink's time; inf where its clock is too coarse to tell
    kept: Sequence[tuple[int, float, bool]] = ()

    @classmethod
    def of(cls, batches: Sequence[tuple[int, float, bool]]) -> _Period:
        """From at least two batches."""
        slowest_last = sorted(latency for _, latency, _ in batches)
        p95 = slowest_last[min(len(batches) - 2, math.ceil(0.95 * len(batches)) - 1)]
        kept = [batch for batch in batches if batch[1] <= 2.0 * p95]
        full = [latency for _, latency, filled in kept if filled]
        busy = sum(latency for _, latency, _ in kept)
        return cls(
            p95=p95,
            tail=max(1.0, p95 * len(full) / sum(full)) if sum(full) > 0.0 else 1.0,
            filled=sum(filled for _, _, filled in batches) / len(batches),
            pace=sum(size for size, _, _ in kept) / busy if busy > 0.0 else math.inf,
            kept=kept,
        )


class _AffineFit:
    """latency = a * n + b with a, b >= 0, by least squares that forget exponentially.

    A period weighs 1, whatever its number of batches: else one at a fast sink washes out what steps taught.
    """

    __slots__ = ("_latency", "_size", "_slope", "_spread", "_together", "_weight", "fresh")

    def __init__(self) -> None:
        self._weight = self._size = self._latency = 0.0  # of the past: weight, mean size, mean latency
        self._spread = self._together = 0.0  # weighted sums of squares: size by size, size by latency
        self._slope: float | None = None  # the last one that was told apart from b
        self.fresh = False  # whether the sizes still remembered tell a from b

    @property
    def known(self) -> bool:
        """Whether a was ever told apart from b."""
        return self._slope is not None

    def add(self, period: _Period) -> None:
        """Take in one period, merging means and sums of squares (Chan, Golub and LeVeque, 1979)."""
        count = len(period.kept)
        size = sum(n for n, _, _ in period.kept) / count
        latency = sum(t for _, t, _ in period.kept) / count
        like = abs(size - self._size) <= _LIKE * self._size
        if like and not self._latency / _CHANGED <= latency <= self._latency * _CHANGED:
            self._weight = self._spread = self._together = 0.0  # not the sink it was: its past is void
        past = _KEEP * self._weight
        self._weight = past + 1.0
        more, later = size - self._size, latency - self._latency
        spread = sum((n - size) ** 2 for n, _, _ in period.kept) / count
        together = sum((n - size) * (t - latency) for n, t, _ in period.kept) / count
        self._spread = _KEEP * self._spread + spread + more * more * past / self._weight
        self._together = _KEEP * self._together + together + more * later * past / self._weight
        self._size += more / self._weight
        self._latency += later / self._weight
        self.fresh = self._spread > self._weight * (_SPREAD * self._size) ** 2
        if self.fresh:
            self._slope = max(0.0, self._together / self._spread)

    def line(self) -> tuple[float, float]:
        """a and b, by the last known slope; all is a where there is none, or where b would be negative."""
        if self._slope is None or self._slope * self._size > self._latency:
            return (self._latency / self._size if self._size else 0.0), 0.0
        return self._slope, self._latency - self._slope * self._size

    def size_in(self, seconds: float) -> float:
        """How many events take that long."""
        a, b = self.line()
        if a > 0.0:
            return (seconds - b) / a
        return math.inf if b < seconds else 0.0


def _check_size(field: str, value: int, least: int, most: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        allowed = f"from {least:,} to {most:,}" if most < math.inf else f"of at least {least:,}"
        raise ConfigError(field, f"must be an int {allowed}, not {value!r}")
