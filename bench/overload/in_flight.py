"""How many calls are in flight: `InFlightLimit` against every fixed number, at sinks
whose best number is known, and moves.

The buffer always has a backlog here. A sink shares its speed between the calls that are
out (processor sharing): a call of n events is a * n + b seconds of work, times noise of
a given coefficient of variation, and a call progresses at a speed that depends on how
many are out, N. So throughput and latency both follow from the sink's shape:

    flat     min(1, best / N): beyond the best number only the latency grows
    falling  the same, divided by 1 + 0.25 (N / best - 1) beyond it, as one that
             thrashes
    soft     1 / (1 + N (N - 1) / best**2): the universal scalability law without
             contention, which has no corner

A call that fails does so after a part of its work. Judged is the goodput from 30 s
after the start, or after a change, until the next one. The best fixed number is the one
with the most goodput in that span, over all seeds, with the same batch law.
"""

from __future__ import annotations

import dataclasses
import heapq
import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from backpressure.delivery.in_flight import InFlightLimit
from backpressure.policies.adaptive_batch_manager import AdaptiveBatchConfig, AdaptiveBatchManager
from bench.overload.kernel import VirtualClock

__all__ = ["SCENARIOS", "Figures", "Record", "Scenario", "Span", "compare", "simulate"]

# Seconds after a start or a change from which the law is judged.
GRACE = 30
#: Of the best fixed number's goodput.
ENOUGH = 0.9
#: Workers: what `most` is.
MOST = 96
# Fixed numbers, as multiples of the best ones of the sink, and the largest.
_GRID = (0.75, 1.0, 1.5)
_THRASHING = 0.25
# The time that a worker takes from a batch's return to the next one's start.
_TURN = 0.0002
# Seconds between two looks at the batch size, and of which goodput is the mean where
# its convergence is timed.
_TICK = 0.02
_SMOOTH = 10

Shape = Literal["flat", "falling", "soft"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    name: str
    what: str
    shape: Shape
    seconds: float
    #: The sink's best number of calls in flight, each from its time on.
    best: tuple[tuple[float, int], ...]
    #: What the work is multiplied by, each from its time on.
    slower: tuple[tuple[float, float], ...] = ((0.0, 1.0),)
    #: Work of a call of n events: per_event * n + per_call seconds.
    per_event: float = 0.0004
    per_call: float = 0.01
    #: The work's coefficient of variation.
    variation: float = 0.5
    #: Shares of the calls that fail, and of these that the sink calls overload.
    failures: float = 0.05
    overloaded: float = 0.0
    #: The batch law; None: batches of `events`.
    batches: AdaptiveBatchConfig | None = None
    events: int = 100
    most: int = MOST

    @property
    def changes(self) -> list[float]:
        return sorted({at for at, _ in (*self.best, *self.slower)})

    @property
    def spans(self) -> list[tuple[int, int]]:
        """In which the law is judged, seconds."""
        ends = [*self.changes[1:], self.seconds]
        return [(int(a) + GRACE, int(b)) for a, b in zip(self.changes, ends, strict=True)]

    @property
    def grid(self) -> list[int]:
        """The fixed numbers that are tried."""
        numbers = {round(k * best) for k in _GRID for _, best in self.best}
        return sorted({min(self.most, max(1, one)) for one in numbers} | {self.most})


class _Sink:
    """Processor sharing: progress is the same for all calls that are out."""

    def __init__(self, scenario: Scenario, rng: random.Random) -> None:
        self.scenario = scenario
        self.rng = rng
        self.progress = 0.0
        self.calls: list[tuple[float, int, int, float, bool]] = []
        self._count = 0
        self._sigma = math.sqrt(math.log1p(scenario.variation**2))
        self._mean = -(self._sigma**2) / 2.0

    def speeds(self, best: int) -> list[float]:
        """By how many calls are out."""
        numbers = range(1, self.scenario.most + 1)
        return [0.0, *(_speed(self.scenario.shape, n, best) for n in numbers)]

    def call(self, t: float, n: int, slower: float) -> None:
        s, rng = self.scenario, self.rng
        work = (s.per_event * n + s.per_call) * slower
        work *= rng.lognormvariate(self._mean, self._sigma)
        failed = rng.random() < s.failures
        if failed:
            work *= rng.random()
        self._count += 1
        heapq.heappush(self.calls, (self.progress + work, self._count, n, t, failed))


def _speed(shape: Shape, n: int, best: int) -> float:
    if shape == "soft":
        return 1.0 / (1.0 + n * (n - 1) / best**2)
    if n <= best:
        return 1.0
    speed = best / n
    if shape == "falling":
        speed /= 1.0 + _THRASHING * (n / best - 1.0)
    return speed


@dataclass(slots=True)
class Record:
    """One run, second by second."""

    goodput: list[float]  #: events
    limits: list[int]  #: the number in use, trials left out
    latencies: list[float]  #: the sum
    calls: list[int]

    def latency(self, start: int, end: int) -> float:
        """The mean."""
        return sum(self.latencies[start:end]) / max(1, sum(self.calls[start:end]))


def _at(steps: Sequence[tuple[float, float]], t: float) -> float:
    return [value for since, value in steps if since <= t][-1]


def simulate(scenario: Scenario, seed: int, fixed: int | None = None) -> Record:
    """Run the law, or a fixed number of calls."""
    rng = random.Random(f"in flight/{scenario.name}/{seed}")
    sink = _Sink(scenario, rng)
    calls = sink.calls
    law = InFlightLimit(scenario.most, rng=random.Random(seed)) if fixed is None else None
    clock = VirtualClock()
    batching = (
        AdaptiveBatchManager(scenario.batches, clock=clock)
        if scenario.batches is not None
        else None
    )
    seconds = int(scenario.seconds)
    record = Record([0.0] * seconds, [0] * seconds, [0.0] * seconds, [0] * seconds)
    idle: list[float] = []  # when workers that turn are back, in this order
    changes = [*scenario.changes, math.inf]
    speeds = sink.speeds(scenario.best[0][1])
    slower = 1.0
    tick = 0.0 if batching is not None else math.inf
    t = 0.0
    second = 0
    limit = fixed if fixed is not None else 1
    while True:
        if law is not None:
            limit = law.limit
        out = len(calls)
        while out + len(idle) < limit:
            idle.append(t + _TURN)
        # The next event: whichever of the four is first.
        before, t = t, min(changes[0], tick)
        speed = speeds[out]
        if out:
            end = before + max(0.0, calls[0][0] - sink.progress) / speed
            t = min(t, end)
        if idle and out < limit and idle[0] < t:
            t = idle[0]
        while second <= t and second < seconds:
            record.limits[second] = limit if law is None else law.metrics().settled
            second += 1
        if t >= seconds:
            return record
        sink.progress += (t - before) * speed
        clock.t = t
        if t == changes[0]:
            changes.pop(0)
            speeds = sink.speeds(int(_at(scenario.best, t)))
            slower = _at(scenario.slower, t)
        elif t == tick and batching is not None:
            tick += _TICK
            batching.evaluate()
        elif idle and out < limit and t == idle[0]:
            idle.pop(0)
            sink.call(t, scenario.events if batching is None else batching.batch_size, slower)
            if law is not None:
                law.started(t)
        else:
            _, _, n, began, failed = heapq.heappop(calls)
            latency = t - began
            place = int(t)
            if not failed:
                record.goodput[place] += n
                if batching is not None and not (law is not None and law.trying):
                    batching.record(n, latency, True)
            record.latencies[place] += latency
            record.calls[place] += 1
            if law is not None:
                overloaded = failed and rng.random() < scenario.overloaded
                law.finished(t, n, latency, not failed, overloaded)


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One span of a scenario; lists have a value for each seed."""

    start: int
    end: int
    sink: int  #: the sink's best number, by its shape
    fixed: int  #: the best fixed number
    goodput: list[float]  #: / that of the best fixed number, over all seeds
    latency: list[float]  #: the same of the mean latency
    number: list[float]  #: the mean of what was in use
    #: Seconds from the change until the goodput of ten seconds is 0.9 of the best fixed
    #: number's; inf: not before the next change.
    converged: list[float]

    @property
    def met(self) -> int:
        """Seeds with which it was."""
        return sum(one >= ENOUGH for one in self.goodput)


@dataclass(frozen=True, slots=True)
class Figures:
    scenario: Scenario
    spans: list[Span]

    @property
    def met(self) -> bool:
        return all(span.met == len(span.goodput) for span in self.spans)


def compare(
    scenario: Scenario, seeds: Sequence[int], fixed_seeds: Sequence[int] | None = None
) -> Figures:
    """The law beside fixed numbers, with the same seeds, or some of them: nothing
    hangs on a fixed number's luck but the noise of the calls of a span.
    """
    ours = [simulate(scenario, seed) for seed in seeds]
    fixed = {
        n: [simulate(scenario, seed, n) for seed in (fixed_seeds or seeds)] for n in scenario.grid
    }
    spans = []
    for start, end in scenario.spans:
        means = {
            n: statistics.mean(sum(run.goodput[start:end]) for run in runs)
            for n, runs in fixed.items()
        }
        best = max(means, key=lambda n: means[n])
        latency = statistics.mean(run.latency(start, end) for run in fixed[best])
        rate = means[best] / (end - start)
        spans.append(
            Span(
                start=start,
                end=end,
                sink=int(_at(scenario.best, start)),
                fixed=best,
                goodput=[sum(run.goodput[start:end]) / means[best] for run in ours],
                latency=[run.latency(start, end) / latency for run in ours],
                number=[statistics.mean(run.limits[start:end]) for run in ours],
                converged=[_converged(run, start - GRACE, end, rate) for run in ours],
            )
        )
    return Figures(scenario, spans)


def _converged(run: Record, start: int, end: int, rate: float) -> float:
    for second in range(start, end - _SMOOTH + 1):
        if sum(run.goodput[second : second + _SMOOTH]) >= ENOUGH * rate * _SMOOTH:
            return second - start
    return math.inf


_MOVES = ((0.0, 8), (120.0, 32), (240.0, 4))
_BATCHES = AdaptiveBatchConfig(
    initial_batch_size=500, min_batch_size=10, max_batch_size=1_000, throughput_target=20_000
)


def _scenarios() -> list[Scenario]:
    every: list[Scenario] = []
    shapes: tuple[Shape, ...] = ("flat", "falling", "soft")
    for shape in shapes:
        every += [
            Scenario(
                name=f"{shape}_{best}",
                what=f"best number {best}",
                shape=shape,
                seconds=120.0,
                best=((0.0, best),),
            )
            for best in (1, 8, 64)
        ]
        what = "best number 8, from 120 s on 32, from 240 s on 4"
        every.append(
            Scenario(name=f"{shape}_moves", what=what, shape=shape, seconds=360.0, best=_MOVES)
        )
    both = [
        dataclasses.replace(
            one,
            name=f"{one.name}_both_laws",
            what=f"{one.what}; the batch size has its law",
            per_event=0.0002,
            batches=_BATCHES,
        )
        for one in every
    ]
    moves = next(one for one in every if one.name == "falling_moves")
    other = [
        Scenario(
            name="slower",
            what="best number 16; calls take five times as long from 120 to 240 s",
            shape="falling",
            seconds=360.0,
            best=((0.0, 16),),
            slower=((0.0, 1.0), (120.0, 5.0), (240.0, 1.0)),
        ),
        dataclasses.replace(
            moves,
            name="blames_overload",
            what=f"{moves.what}; a fifth of the calls fail, and the sink calls that overload",
            failures=0.2,
            overloaded=1.0,
        ),
        dataclasses.replace(
            moves,
            name="ten_times_faster",
            what="best number 8, from 60 s on 32, from 120 s on 4; calls of 5 ms",
            seconds=180.0,
            best=((0.0, 8), (60.0, 32), (120.0, 4)),
            per_event=0.00004,
            per_call=0.001,
        ),
    ]
    return [*every, *both, *other]


#: By name.
SCENARIOS = {one.name: one for one in _scenarios()}
