"""How many events a batch should have: as many as the sink takes within the target
latency.

A sink takes about `a * n + b` seconds for n events. Larger batches spread b over more
events, and so raise throughput until a * n alone fills the target. The law, once per
`evaluation_interval`, sees events rather than batches, so that many tiny urgent batches
do not hide what becomes of the large ones:

 1. A growth that lowered throughput is taken back, and not tried again for a while.
 2. Late (the p95 exceeds the target): cut to where the fit meets the target, at most to
    half of what the batches really had; by a trial step while the sizes are too alike
    to tell a from b. Where not even the least allowed size meets the target, cut only
    down to where b takes a tenth of the time, for less costs throughput, and undo what
    is below that. Where the batches are smaller than any allowed size already, a cut
    has no effect: leave it.
 3. Under pressure capacity comes first: shrink, late or not, only where a * n binds,
    and neither shrink below nor grow beyond the size at which b takes a tenth of the
    time.
 4. Otherwise grow by a constant step while batches come out full, up to the size whose
    p95 meets the target.
 5. While events are refused because the sink takes no more, each that it could have
    taken is lost: never shrink but for lateness, and not below the size at which b
    takes a twentieth; grow by leaps, up to twice the size, already where a fifth of the
    events are in full batches. The first refusals are looked at after a tenth of the
    interval, apart from what was before them.

The size stays within [min, max], and one outlier decides nothing. Where all batches are
larger than the size, because a consumer asks for more of its own accord, the fit says
whether the size would be late. Additive increase and multiplicative decrease follow
Clipper (NSDI '17), the affine fit BentoML's dispatcher.

How long a batch may wait to fill is `linger`; whether it should is for the gate in
policies/linger.py.

Safe for any thread, for finalisers and signal handlers (see base/reentry.py).
`evaluate` is one clock reading when not due; no lock is held while
`on_change` runs.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, get_args

from backpressure.base.clock import Clock, MonotonicClock
from backpressure.base.frozen_dict import FrozenDict
from backpressure.base.reentry import Reentry, deferrable
from backpressure.base.validation import (
    check_bool,
    check_fields,
    check_number,
    check_positive,
    count,
)
from backpressure.policies.adaptive_batch_manager.affine_fit import AffineFit
from backpressure.policies.adaptive_batch_manager.samples import BatchSamples, Period
from backpressure.policies.linger import FlushReason

__all__ = ["AdaptiveBatchConfig", "AdaptiveBatchManager", "AdaptiveBatchMetrics"]

_log = logging.getLogger("backpressure")

# The share of the target that a size aims at, so that noise does not cut at once.
_HEADROOM: Final = 0.95
# The least cut while a and b are not told apart: enough for a deviation of some 5 %.
_TRIAL: Final = 0.1
# The pressure from which capacity comes first: half of the scale.
_PRESSED: Final = 0.5
# The share of b in the latency under pressure, or where the target is out of reach: a
# tenth less throughput than endless batches would have.
_OVERHEAD: Final = 0.1
# The same while events are refused: each event that the sink could have taken is lost
# then.
_REFUSING_OVERHEAD: Final = 0.05
# The share of the events in full batches that makes growth worthwhile then: larger ones
# would still be filled.
_SOME_FULL: Final = 0.2
# The part of an interval after which the first refusals are looked at: they cost events
# every second.
_HASTE: Final = 0.1
# The loss of throughput that takes a growth back (less is noise), and for how many
# evaluations none is tried after that: a minute at the default interval.
_LOWERED: Final = 0.05
_REST: Final = 6
# A change by a smaller share than this would only make noise.
_WORTHWHILE: Final = 0.02
# The longest linger as a part of the target: the wait must stay small beside what the
# sink may take.
_LINGER_SHARE: Final = 0.1
# A minute (seconds): a longer linger is a mistake in the unit.
_LONGEST_LINGER: Final = 60.0

_Step = tuple[
    float, str, str
]  # the size to have, the kind of change (a counter of the metrics), and the reason


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveBatchConfig:
    """Sizes are in events, times in seconds."""

    #: The size at the start.
    initial_batch_size: int = 50_000
    #: It never becomes less than this,
    min_batch_size: int = 1_000
    #: and never more than this.
    max_batch_size: int = 100_000
    #: The latency of the sink that 95 % of the events should see.
    target_latency: float = 0.2
    #: A step of growth as a share of `max - min` (constant, so the whole range takes
    #: ten), a cut as one of the size.
    adjustment_factor: float = 0.1
    #: Time between two changes of the size.
    evaluation_interval: float = 10.0
    #: Events per second that make the throughput half of the score full; it steers
    #: nothing.
    throughput_target: float = 2_000_000
    #: False: only `adjust` changes the size, and no batch lingers; score and metrics go
    #: on.
    adaptive_enabled: bool = True
    #: The longest that a batch waits to fill; also at most a tenth of `target_latency`.
    #: 0.0: none ever waits. 5 ms gather 50 events where 10,000 arrive a second, and
    #: hardly show beside a sink's 200 ms.
    max_linger: float = 0.005

    def __post_init__(self) -> None:
        check_fields(self, int, 1, math.inf, "min_batch_size")
        check_fields(self, int, self.min_batch_size, math.inf, "max_batch_size")
        check_fields(self, int, self.min_batch_size, self.max_batch_size, "initial_batch_size")
        check_positive(self, math.inf, "target_latency", "evaluation_interval", "throughput_target")
        check_positive(self, 0.5, "adjustment_factor")
        check_fields(self, float, 0.0, _LONGEST_LINGER, "max_linger")
        check_bool(self, "adaptive_enabled")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveBatchMetrics:
    """A snapshot. What was measured is from the last evaluation that had enough
    batches.
    """

    batch_size: int  #: now, in events
    score: float  #: as `AdaptiveBatchManager.score`
    throughput: (
        float  #: events/s of a busy sink, or of the clock where batches overlap; 0.0 at first
    )
    p95_latency: (
        float  #: seconds; 95 % of the events were in batches as fast; the slowest batch left out
    )
    filled: (
        float  #: share of the events that were in full batches, of those in batches that could tell
    )
    seconds_per_event: float  #: the fit's a
    seconds_per_batch: float  #: the fit's b; 0.0 until batches of different sizes tell it from a
    batches: int  #: recorded since the start
    events: int  #: in these
    grown: int  #: changes of the size by growth,
    cut: int  #: by being late or under pressure,
    reverted: int  #: and by taking a step back
    linger: float  #: the longest that a batch waits to fill, in seconds
    flushes: Mapping[str, int]  #: batches handed out, by reason: see `FlushReason`


class AdaptiveBatchManager:
    """Tells the batch size, and learns it from how long the sink took.

    `on_change(old, new, reason)` is called after each change, with no lock held; an
    exception out of it is logged.
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
        self._reentry = Reentry(self._start_over)
        self._lock = self._reentry.lock
        self._size = self.config.initial_batch_size
        self._samples = BatchSamples()
        self._flushes: dict[str, int] = dict.fromkeys(get_args(FlushReason), 0)
        self._refused_before = False
        self._begin(self._clock.now())
        self._fit = AffineFit()
        self._last = Period()
        self._throughput, self._score = 0.0, 1.0
        self._changes = {"grown": 0, "cut": 0, "reverted": 0}
        # Size and pace before the last step if that was growth, whether it was a leap,
        # and the size where this run of cuts began.
        self._grown_from: tuple[int, float] | None = None
        self._leapt = False
        self._cut_from: int | None = None
        self._rest = 0
        # Whether growth may leap: not after one that was taken back, as long as events
        # are refused.
        self._may_leap = True

    @property
    def batch_size(self) -> int:
        """How many events the next batch should have."""
        return self._size

    @property
    def score(self) -> float:
        """0 to 1: the mean of throughput / throughput_target and target_latency / p95,
        each at most 1.

        1.0 before the first evaluation.
        """
        return self._score

    @property
    def linger(self) -> float:
        """How long a batch that is not full may wait for more events, in seconds; 0.0:
        not at all.
        """
        cfg = self.config
        return (
            min(cfg.max_linger, _LINGER_SHARE * cfg.target_latency) if cfg.adaptive_enabled else 0.0
        )

    @deferrable
    def record(self, size: int, latency: float, filled: bool | None) -> None:
        """A batch of `size` events took the sink `latency` seconds.

        filled: whether it had as many events as the batch size asked for. None: it can
            not tell, as something else kept it smaller (a limit in bytes, a consumer
            that asked for fewer). Such batches do not let the size grow.

        Left out where there are no events, or the latency is no time (a clock stepped).
        """
        if size < 1 or not 0.0 <= latency < math.inf:
            return
        size = count("size", size)
        with self._lock:
            self._samples.add(size, latency, filled, self._size)

    @deferrable
    def flushed(self, reason: FlushReason) -> None:
        """Count a batch that is handed out, by what closed it."""
        with self._lock:
            self._flushes[reason] += 1

    def evaluate(self, pressure: float = 0.0, refusing: bool = False) -> int:
        """Reconsider the size if `evaluation_interval` has passed since the last time;
        gives the size.

        `pressure` (0 to 1) says how hard the buffer is pressed, `refusing` whether
        events are being refused because the sink takes no more: then it is reconsidered
        sooner, once. Fewer than five batches wait for the next evaluation.
        """
        if self._reentry.within():
            return self._size
        now = self._clock.now()
        if refusing and not self._refused:
            with self._lock:
                self._note_refusal(now)
        if 0.0 <= now - self._begun < self._interval:
            return self._size
        with self._lock:
            old = self._size
            reason = self._reconsider(now, pressure)
            new = self._size
        self._notify(old, new, reason)
        if self._reentry.deferred:
            self._reentry.apply()
        return new

    def adjust(self, size: int) -> None:
        """Set the size by hand; the law goes on from there. ConfigError (a ValueError)
        outside [min, max].
        """
        low, high = self.config.min_batch_size, self.config.max_batch_size
        self._adjust(int(check_number("size", size, int, low, high)))

    @deferrable
    def _adjust(self, size: int) -> None:
        with self._lock:
            old, self._size = self._size, size
            self._begin(self._clock.now())
            self._samples.clear()
            self._grown_from = self._cut_from = None
            self._rest = 0
        self._notify(old, size, "set by hand")

    def metrics(self) -> AdaptiveBatchMetrics:
        """A frozen snapshot."""
        if self._reentry.within():
            return self._metrics()
        with self._lock:
            metrics = self._metrics()
        if self._reentry.deferred:
            self._reentry.apply()
        return metrics

    # --- below: called with the lock held, but for `_notify`

    def _metrics(self) -> AdaptiveBatchMetrics:
        a, b = self._fit.line()
        return AdaptiveBatchMetrics(
            batch_size=self._size,
            score=self._score,
            throughput=self._throughput,
            p95_latency=self._last.p95,
            filled=self._last.filled,
            seconds_per_event=a,
            seconds_per_batch=b,
            batches=self._samples.batches,
            events=self._samples.events,
            linger=self.linger,
            flushes=FrozenDict(dict(self._flushes)),
            **self._changes,
        )

    def _start_over(self) -> None:
        """In a forked child, where another thread was changing this: what was measured
        is measured anew.
        """
        self._samples.clear()
        self._fit = AffineFit()
        self._begin(self._clock.now())

    def _begin(self, now: float) -> None:
        self._begun = now
        self._interval = self.config.evaluation_interval
        self._refused = False  # whether events were refused since then, as the sink takes no more
        self._events_before = self._samples.events

    def _note_refusal(self, now: float) -> None:
        """Where it is the first for an interval or more, what was measured before it
        shows nothing of the overload.
        """
        if not self._refused_before:
            self._begin(now)
            self._samples.clear()
            self._interval *= _HASTE
        self._refused = self._refused_before = True

    def _reconsider(self, now: float, pressure: float) -> str:
        """Evaluate, if it is due; the reason of a change."""
        cfg, elapsed, size = self.config, now - self._begun, self._size
        if 0.0 <= elapsed < self._interval:
            return ""  # another thread was here first
        rate = (self._samples.events - self._events_before) / elapsed if elapsed > 0.0 else 0.0
        refused = self._refused_before = self._refused
        self._begin(now)
        # A clock that stepped back just begins a new interval.
        period = self._samples.take(size) if elapsed >= 0.0 else None
        if period is None:
            return ""
        self._last = period
        self._fit.add(period)
        self._throughput = max(period.pace, rate) if period.pace < math.inf else rate
        in_time = cfg.target_latency / max(period.p95, cfg.target_latency)
        self._score = (min(1.0, self._throughput / cfg.throughput_target) + in_time) / 2.0
        if not cfg.adaptive_enabled:
            return ""

        wanted, kind, reason = self._decide(period, 1.0 if refused else pressure, refused)
        self._size = round(min(max(wanted, cfg.min_batch_size), cfg.max_batch_size))
        self._grown_from = None
        if self._size == size:
            return ""
        self._changes[kind] += 1
        if kind == "grown" and not period.beyond:
            self._grown_from = size, period.full_pace
        elif kind == "cut" and self._cut_from is None:
            self._cut_from = size
        return reason

    def _decide(self, period: Period, pressure: float, refused: bool) -> _Step:
        """The size to have, not yet an int nor within [min, max]."""
        cfg, fit, size = self.config, self._fit, self._size
        # Where events are refused some lane is full, however many batches of others are
        # not.
        full = period.filled >= (_SOME_FULL if refused else 0.5)
        self._rest = max(0, self._rest - 1)
        pressed = pressure >= _PRESSED
        self._may_leap = self._may_leap or not refused
        if self._grown_from is not None and full and not period.beyond:
            before, pace = self._grown_from
            # A leap is made as an overload begins, and so compared with another mix of
            # batches.
            if (
                period.full_pace < pace * (1.0 - _LOWERED * (2.0 if self._leapt else 1.0))
                and pace < math.inf
            ):
                self._rest, self._may_leap = _REST, False
                return before, "reverted", f"growth lowered throughput to {period.full_pace:,.0f}/s"

        ceiling = fit.size_in(_HEADROOM * cfg.target_latency / period.tail)
        reach = min(size, period.largest)  # what a cut begins from: above it nothing has been late
        # The size below which shrinking costs more than it gains.
        overhead = _REFUSING_OVERHEAD if refused else _OVERHEAD
        enough = fit.size_where(overhead) if pressed else 0.0

        p95 = period.p95
        if period.beyond:
            # No batch had this size. What the fit does not tell about it is not worth a
            # trial.
            p95 = period.tail * fit.latency_of(size) if fit.fresh else 0.0
        if p95 > cfg.target_latency:
            reason = f"p95 {p95:.3g} s is over {cfg.target_latency:.3g} s"
            if period.largest < cfg.min_batch_size and not full:
                return size, "", ""
            if not fit.fresh:
                return reach * (1.0 - max(cfg.adjustment_factor, _TRIAL)), "cut", reason
            # Without headroom: that only keeps noise from cutting a size that is met.
            met = fit.size_in(cfg.target_latency / period.tail) >= cfg.min_batch_size
            if pressed or not met:
                # Sizes that differ little tell b from the noise badly, and smaller ones
                # well.
                enough = fit.size_where(overhead, surely=True)
            if reach * (1.0 - _WORTHWHILE) <= enough:
                back = min(self._cut_from or size, enough)
                return (
                    back if back >= size * (1.0 + _WORTHWHILE) else size,
                    "reverted",
                    "overhead binds",
                )
            wanted = min(ceiling, reach * (1.0 - cfg.adjustment_factor))
            return max(wanted, reach / 2.0, enough), "cut", reason
        self._cut_from = None

        if pressed and fit.known:
            if size * (1.0 - _WORTHWHILE) > enough and not refused:
                wanted = size * (1.0 - cfg.adjustment_factor * min(pressure, 1.0))
                return max(wanted, enough), "cut", "latency binds under pressure"
            ceiling = min(ceiling, enough)
        # At most twice the size: the fit is no guide far beyond what it has seen. While
        # events are refused at once as much.
        self._leapt = refused and self._may_leap
        step = (
            size
            if self._leapt
            else min(
                size, max(1.0, cfg.adjustment_factor * (cfg.max_batch_size - cfg.min_batch_size))
            )
        )
        wanted = min(size + step, ceiling, cfg.max_batch_size)
        if (
            full
            and not self._rest
            and wanted >= min(size * (1.0 + _WORTHWHILE), cfg.max_batch_size)
        ):
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
