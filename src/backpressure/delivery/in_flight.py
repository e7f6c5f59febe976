"""How many batches may be out at a sink at once: as many as pay.

More calls in flight raise the throughput of a sink up to its knee; beyond it they only
wait for each other, or get into each other's way. The law looks for the number N with
the greatest X / N ** 0.1, where X is the throughput, in events a second that succeed.
By Little's law (N = X * T) that is X ** 0.9 / T ** 0.1: Kleinrock's power of throughput
X and latency T, with nearly all of the weight on throughput. So N grows while its
marginal throughput pays, as in Protego (NSDI '23), and of numbers with like throughput
the least is best, as it has the least latency, which is Gradient2's aim. No least
latency and no best throughput is remembered: the best number moves, and such a memory
would be wrong without notice.

 1. Trials in pairs, as in PCC (NSDI '15): a span at the number in use, one at another
    number, and both again, up to four times, where that does not tell. A span begins
    when the calls that were out at the change are back. What counts is the difference
    between neighbouring spans, so a drift of the sink does not mislead for long.
 2. The noise is measured: the variance of (events / mean events - latency / mean
    latency) over calls is that of the throughput of a renewal-reward process, with
    failures (0 events) and mixed sizes in it. A trial ends as soon as the difference
    exceeds 2 standard errors for growth, 1.5 otherwise. Without a verdict the larger
    number is taken where it is ahead by one, as a sink without a corner gives no more,
    and the smaller one where it did no worse.
 3. Steps are geometric. One that pays is followed by a larger one, at most twice (down:
    a fourth); one that does not by the other direction, and by a smaller one, down to a
    quarter, or 1. Where the smallest pays in neither direction there is a rest of up to
    eight seconds, jittered so that many clients of one sink do not try in step.
 4. A latency that changes by half during a rest ends it, and an overload that the sink
    tells of shortens it: a large step down is tried first then, as it is slower. The
    throughput judges that too, so failures with other causes do not starve a sink.
 5. A latency of three times the usual, or a span that takes three times as long, halves
    the number at once: at a sink that collapses a verdict would take too long.
 6. Application-limited spans, in which fewer batches were out than might be, tell
    nothing: the number stays. So does it where the batches of one span are of another
    size: the batch size has a law of its own, which moves once in several trials. That
    law in turn leaves out what comes back while more are out for a trial (`trying`).
 7. Where a whole round of calls fails without a success the number is halved. A sink
    that returns is met gently, and doubling finds the number again.

A pure law: time comes in with each report, nothing waits, nothing is called. Safe for
any thread, for finalisers and signal handlers (see base/reentry.py).
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Final

from backpressure.base.reentry import Reentry, deferrable

__all__ = ["InFlightLimit", "InFlightMetrics"]

# The weight of latency beside throughput: a step by a factor g pays where the
# throughput rises by more than g ** this. At most 7 % of it are given for half of the
# calls.
_LATENCY_WEIGHT: Final = 0.1
# Factors of steps, and the largest one upwards: beyond it a sink might be flooded.
_FACTORS: Final = (1.25, 1.5, 2.0, 4.0)
_DOUBLING: Final = 2
# Standard errors that make a verdict: against a step or for a smaller number, for a
# larger one, those by which two pairs tell a step that pays in full, and those that let
# a larger one be taken in the end without a verdict.
_CLEAR: Final = 1.5
_CLEAR_UP: Final = 2.0
_TOLD: Final = 3.0
_LIKELY: Final = 1.0
# Spans at the other number in one trial, at most.
_PAIRS: Final = 4
# The least of a span: calls, and seconds (less is noise of the interpreter's switching
# between threads).
_FEWEST: Final = 8
_SHORTEST: Final = 0.05
# No call is quicker (seconds): squares of it stay far from 0.
_SHORTEST_CALL: Final = 1e-9
# The share of the limit that has to be out, on average, for a span to tell anything.
_BUSY: Final = 0.75
# The squared deviation assumed at first, and at least, and the weight of a new span.
_NOISE, _LEAST_NOISE, _LEARN = 0.25, 0.01, 0.3
# The change of the mean size that is another batch size rather than chance: beside
# three standard errors.
_RESIZED: Final = 0.03
# A rest: multiples of the time that the trials before it took, its bounds in seconds,
# and its jitter.
_REST: Final = 3.0
_LEAST_REST, _LONGEST_REST = 0.5, 8.0
_JITTER: Final = 0.2
# The change of latency in a rest that ends it: its logarithm, and standard errors.
_SHIFT: Final = math.log(1.5)
_SURE: Final = 4.0
# How many times slower halves the number without a verdict.
_COLLAPSE: Final = 3.0
_COLLAPSED: Final = math.log(_COLLAPSE)
# The part of a rest that is kept although the sink says that it is overloaded.
_SOONER: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class InFlightMetrics:
    """A snapshot. What was measured is from the last span that told anything."""

    limit: int  #: how many batches may be out now, trials included
    settled: int  #: the number in use, from which trials start
    most: int  #: what `limit` never exceeds
    out: int  #: batches out now
    throughput: float  #: events per second that succeeded; 0.0 at first
    latency: float  #: the mean, seconds; 0.0 at first
    noise: float  #: the standard deviation of one call's share in the throughput
    trials: int  #: since the start
    grown: int  #: of these, what raised the number
    shrunk: int  #: and what lowered it, halving by failures included


class _Span:
    """Sums over calls at one number in flight."""

    __slots__ = (
        *("area", "calls", "events", "seconds"),
        *("square_events", "square_time", "time", "together"),
    )

    def __init__(self) -> None:
        self.calls = 0
        self.seconds = 0.0  # of the clock
        self.area = 0.0  # batches out, integrated over these
        self.events = 0  # in calls that succeeded
        self.time = 0.0  # latencies
        self.square_events = 0.0
        self.square_time = 0.0
        self.together = 0.0

    def add(self, events: int, latency: float) -> None:
        self.calls += 1
        self.events += events
        self.time += latency
        self.square_events += events * events
        self.square_time += latency * latency
        self.together += events * latency

    def take_in(self, other: _Span) -> None:
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def copy(self) -> _Span:
        same = _Span()
        same.take_in(self)
        return same

    @property
    def rate(self) -> float:
        return self.events / self.seconds

    def noise(self) -> float:
        """The variance of r / mean r - t / mean t, r and t being the events and the
        latency of a call.
        """
        r, t, n = self.events / self.calls, self.time / self.calls, self.calls
        if r <= 0.0 or t <= 0.0:
            return _NOISE
        spread = self.square_events / (r * r) + self.square_time / (t * t)
        return max(_LEAST_NOISE, (spread - 2.0 * self.together / (r * t)) / (n - 1))

    def sizes(self) -> float:
        """The squared deviation of the events of a call, relative to their mean."""
        r = self.events / self.calls
        return max(0.0, self.square_events / self.calls / (r * r) - 1.0)


class InFlightLimit:
    """Tells how many batches may be out at once, and learns it from their return.

    most: the largest number (`workers`, or what the sink bounds it to); where it is 1
        there is nothing to learn, and reports cost nothing.
    rng: the source of jitter.
    """

    def __init__(self, most: int, *, rng: random.Random | None = None) -> None:
        if most < 1:
            raise ValueError(f"most must be 1 or more, not {most!r}")
        self.most: Final = most
        #: How many batches may be out at once now, from 1 to `most`; read without a
        #: lock.
        self.limit = 1
        self._rng = rng if rng is not None else random.Random()
        self._reentry = Reentry(self._start_over)
        self._lock = self._reentry.lock
        self._out = 0
        self._last = -math.inf  # the time of the last report
        self._noise = _NOISE
        self._throughput = self._latency = 0.0
        self._trials = self._grown = self._shrunk = 0
        self._failed = 0  # calls in a row
        self._settled = 1
        self._level = _DOUBLING  # the step's place in _FACTORS
        self._up = True  # the direction that is tried
        self._turned = False  # whether the other one has been, with steps of this level
        self._rest_until = self._may_wake = -math.inf
        self._looked_since = -math.inf  # when the last rest ended
        self._resting = False
        self._usual: _Span | None = None  # at the number in use, since it last changed
        self._base: _Span | None = None  # of a trial: at the number in use
        self._other: _Span | None = None  # and at the other one
        self._pairs = 0
        self._span = _Span()
        # Calls that are still to come back before the span begins, those that make it
        # complete, and seconds after which it is taking too long.
        self._unsettled, self._enough, self._overrun = 0, _FEWEST, math.inf

    @deferrable
    def started(self, now: float) -> None:
        """A batch goes out."""
        if self.most == 1:
            return
        with self._lock:
            self._pass(now)
            self._out += 1

    @deferrable
    def finished(
        self, now: float, events: int, latency: float, ok: bool, overloaded: bool = False
    ) -> None:
        """A batch came back: `events` events, `latency` seconds after it went out.

        ok: whether the sink took it; overloaded: whether the sink said that it is asked
            for too much.
        """
        if self.most == 1:
            return
        with self._lock:
            self._pass(now)
            self._out = max(0, self._out - 1)
            if ok:
                self._failed = 0
            else:
                self._failed += 1
                if self._failed >= max(_FEWEST, self._settled):
                    self._back_off()
                    return
                if overloaded and self._resting:
                    self._rest_until = min(self._rest_until, self._may_wake)
                    self._level, self._up = _DOUBLING, False
            span = self._span
            if self._unsettled:
                # Only what comes back while no more than `limit` are out.
                if self._out < self.limit:
                    self._unsettled -= 1
                    if not self._unsettled:
                        self._span = _Span()
                        return
            elif 0.0 <= latency < math.inf:
                span.add(events if ok and events > 0 else 0, max(latency, _SHORTEST_CALL))
                if span.calls >= self._enough and span.seconds >= _SHORTEST:
                    self._judge(now)
                    return
            if span.seconds > self._overrun and self._is_busy(span):
                self._cut()

    @property
    def trying(self) -> bool:
        """Whether more are out now, for a trial, than the number in use: the latency of
        what comes back tells nothing about the size of a batch.
        """
        return max(self.limit, self._out) > self._settled

    def metrics(self) -> InFlightMetrics:
        """A frozen snapshot."""
        if self._reentry.within():
            return self._metrics()
        with self._lock:
            metrics = self._metrics()
        if self._reentry.deferred:
            self._reentry.apply()
        return metrics

    # --- below: called with the lock held

    def _metrics(self) -> InFlightMetrics:
        return InFlightMetrics(
            limit=self.limit,
            settled=self._settled,
            most=self.most,
            out=self._out,
            throughput=self._throughput,
            latency=self._latency,
            noise=math.sqrt(self._noise),
            trials=self._trials,
            grown=self._grown,
            shrunk=self._shrunk,
        )

    def _start_over(self) -> None:
        """In a forked child, where another thread was changing this: nothing is out."""
        self._out = 0
        self._rest(self._last)

    def _pass(self, now: float) -> None:
        """Time passes, unless the clock stepped back."""
        elapsed = now - self._last
        self._last = now
        if 0.0 <= elapsed < math.inf:
            span = self._span
            span.seconds += elapsed
            span.area += elapsed * self._out

    def _switch(self, limit: int) -> None:
        """Measure at `limit`, once what is out now has come back."""
        changed = limit != self.limit
        self.limit = limit
        self._unsettled = limit if changed else 0
        self._measure()

    def _measure(self) -> None:
        self._span = _Span()
        self._enough = max(_FEWEST, self.limit)
        target = self._target()
        if not self._resting and target != self._settled:
            # Enough for the difference of two pairs to tell a step that pays in full.
            step = math.log(target / self._settled) / _TOLD
            self._enough = max(self._enough, math.ceil(self._noise / (step * step)))
        usual, self._overrun = self._usual, math.inf
        if usual is not None:
            calls = self._enough + max(self.limit, self._settled)
            self._overrun = max(_SHORTEST, calls * usual.time / usual.calls / self._settled)
            self._overrun *= _COLLAPSE

    def _target(self) -> int:
        """The number that the next step leads to; the present one where there is no
        room.
        """
        n, factor = self._settled, _FACTORS[self._level]
        if self._up:
            factor = min(factor, _FACTORS[_DOUBLING])
            return min(self.most, max(n + 1, round(n * factor)))
        return max(1, min(n - 1, round(n / factor)))

    def _judge(self, now: float) -> None:
        """The span is complete."""
        span = self._span
        if span.events == 0 or not self._is_busy(span):
            self._void(now)
            return
        self._noise += _LEARN * (span.noise() - self._noise)
        self._throughput, self._latency = span.rate, span.time / span.calls
        base, other = self._base, self._other
        if self.limit != self._settled:
            assert base is not None
            assert other is not None
            other.take_in(span)
            self._pairs += 1
            self._compare(now, base, other)
            return
        shift = self._shift(span)
        if shift > _COLLAPSED:
            self._cut()
        elif self._resting:
            if shift or now >= self._rest_until:
                if shift:
                    self._level, self._up = _DOUBLING, shift < 0.0
                self._resting = False
                self._looked_since = now
            self._measure()
        elif base is None or other is None:
            self._base = span
            self._try(now)
        else:
            base.take_in(span)
            self._switch(self._target())

    def _is_busy(self, span: _Span) -> bool:
        """Whether as many were out as might be."""
        return span.area >= _BUSY * self.limit * span.seconds

    def _shift(self, span: _Span) -> float:
        """The logarithm of the change of the latency at the number in use; 0.0: none
        that is certain.
        """
        usual = self._usual
        if usual is None:
            self._usual = span.copy()
            return 0.0
        shift = math.log(max(self._latency, 1e-9) * usual.calls / max(usual.time, 1e-9))
        error = math.sqrt(self._noise * (1.0 / usual.calls + 1.0 / span.calls))
        if abs(shift) > max(_SHIFT, _SURE * error):
            # A span across the change shows a part of it only: what comes next has to
            # be seen as a collapse beside the latency before, not beside its own.
            if shift < 0.0:
                self._usual = None
            return shift
        usual.take_in(span)
        return 0.0

    def _cut(self) -> None:
        """The sink has become so much slower that to ask it for a verdict takes too
        long: half, and look from there.
        """
        if self._settled > 1:
            self._shrunk += 1
        self._settled = max(1, self._settled // 2)
        self._level, self._up, self._turned = _DOUBLING, False, False
        self._start_look()

    def _start_look(self) -> None:
        """From the number in use, of which nothing is known now."""
        self._resting = False
        self._looked_since = self._last
        self._usual = self._base = self._other = None
        self._switch(self._settled)

    def _try(self, now: float) -> None:
        """Begin a trial of the next step that there is room for, or rest."""
        while True:
            target = self._target()
            if target != self._settled:
                break
            if not self._turn():
                self._rest(now)
                return
        self._trials += 1
        self._other, self._pairs = _Span(), 0
        self._switch(target)

    def _turn(self) -> bool:
        """To the next step to try: the other direction, then a smaller one; False: all
        have been.
        """
        self._up = not self._up
        if not self._turned:
            self._turned = True
            return True
        self._turned = False
        self._level = min(self._level, _DOUBLING)
        if self._level == 0:
            return False
        self._level -= 1
        return True

    def _compare(self, now: float, base: _Span, other: _Span) -> None:
        step = math.log(self.limit / self._settled)
        gain = math.log(other.rate / base.rate) - _LATENCY_WEIGHT * step
        each = 1.0 / base.calls + 1.0 / other.calls
        error = math.sqrt(self._noise * each)
        clear = abs(gain) > (_CLEAR_UP if gain > 0.0 and step > 0.0 else _CLEAR) * error
        if not clear and self._pairs < _PAIRS:
            self._switch(self._settled)
            return
        pays = gain > (0.0 if clear or step < 0.0 else _LIKELY * error)
        if pays:
            size = math.log(other.events / other.calls * base.calls / base.events)
            chance = _TOLD * math.sqrt((base.sizes() + other.sizes()) / 2.0 * each)
            if abs(size) > _RESIZED + chance:
                self._void(now)
                return
        self._other = None
        if not pays:
            self._base = None
            if self._turn():
                self._switch(self._settled)
            else:
                self._rest(now)
            return
        if self._up:
            self._grown += 1
        else:
            self._shrunk += 1
        self._settled = self.limit
        self._level = min(self._level + 1, len(_FACTORS) - 1)
        self._turned = True  # what it came from is known
        self._base, self._usual = other, other.copy()
        self._try(now)

    def _void(self, now: float) -> None:
        """The span told nothing: no verdict on the trial, and the number stays."""
        if self._other is not None:
            self._level = max(0, min(self._level, _DOUBLING) - 1)
            self._rest(now)
        else:
            self._base = None
            self._measure()

    def _back_off(self) -> None:
        """A whole round has failed."""
        self._failed = 0
        if self._settled > 1:
            self._shrunk += 1
        self._settled = max(1, self._settled // 2)
        self._level, self._up, self._turned = _DOUBLING, True, False
        self._start_look()

    def _rest(self, now: float) -> None:
        rest = min(max(_LEAST_REST, _REST * (now - self._looked_since)), _LONGEST_REST)
        rest *= self._rng.uniform(1.0 - _JITTER, 1.0 + _JITTER)
        self._rest_until, self._may_wake = now + rest, now + _SOONER * rest
        self._level, self._up, self._turned = 0, True, False
        self._resting = True
        self._usual = self._base = self._other = None
        self._switch(self._settled)
