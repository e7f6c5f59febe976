"""Figures of one run beside the oracle's, and the criteria that they are judged by."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from bench.overload.kernel import Record

__all__ = ["CRITERIA", "Figures", "Summary", "Verdict", "figures", "judge", "median", "summarise"]

# Of the oracle's goodput: after convergence, and for the time to get there.
_ENOUGH, _NEAR = 0.95, 0.9
# Seconds of which goodput is the mean where its convergence is timed: shorter ones are
# all noise of batches.
_SMOOTH = 3
# From one seed to the next a p99 moves by 5 %: less than that is no difference.
_TIE = 1.05
# Permits of a half-open breaker, and its reset time: the table's.
_PROBES, _RESET = 20, 30.0
# Activations allowed for each real change.
_ACTIVATIONS = 2

CRITERIA = ("priority 1", "goodput", "delay", "activations", "leaks", "rate")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One run. Seconds, events and shares as named."""

    goodput: int  #: events delivered
    of_capacity: (
        float  #: goodput / what the sink could have taken of what was offered, second by second
    )
    settled: float  #: the worst span's goodput / the oracle's
    p50: float  #: of the delay from admission to the call that delivers, seconds
    p99: float
    p999: float
    urgent_p99: float  #: the same for priority 1
    #: seconds to within a tenth of the oracle, the longest of all changes; inf: not
    #: before the next one
    converged: float
    transitions: float  #: a minute
    activations: int
    trips: int
    false_trips: int  #: while the sink failed less than the breaker's threshold, over its window
    leaks: int  #: calls into a dead sink
    #: the most in any reset time after the first trip (after the death, where nothing
    #: trips)
    leaks_per_reset: int
    #: seconds from the sink's return until goodput is within a tenth of the oracle's; 0
    #: where it never died
    recovery: float
    lost: tuple[float, ...]  #: share of what was offered that was refused or dropped, by priority
    urgent_inversions: int
    inversions: int
    excess: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a criterion is met in one run; None: the scenario says nothing of it."""

    met: bool | None
    value: float
    #: What it was compared with.
    note: str = ""


@dataclass(frozen=True, slots=True)
class Summary:
    """A criterion over all seeds."""

    met: int  #: runs that met it
    runs: int  #: to which it applies
    median: float
    worst: float
    note: str  #: of the worst run


def figures(run: Record, oracle: Record) -> Figures:
    scenario = run.scenario
    possible = sum(min(c, d) for c, d in zip(run.capacity, run.demand, strict=True))
    after = [
        _converges(run, oracle, at, _next(scenario.changes, at, scenario.seconds))
        for at in scenario.changes
    ]
    back = [_converges(run, oracle, end, scenario.seconds) for _, end in scenario.dead]
    lost = tuple(
        (r + d) / o if o else 0.0
        for r, d, o in zip(run.refused, run.dropped, run.offered, strict=True)
    )
    return Figures(
        goodput=sum(run.goodput),
        of_capacity=sum(run.goodput) / max(1.0, possible),
        settled=min(_ratio(run, oracle, start, end) for start, end in scenario.settled),
        p50=run.delays.quantile(0.5),
        p99=run.delays.quantile(0.99),
        p999=run.delays.quantile(0.999),
        urgent_p99=run.urgent_delays.quantile(0.99),
        converged=max(after),
        transitions=len(run.transitions) * 60.0 / scenario.seconds,
        activations=len(run.activations),
        trips=len(run.trips),
        false_trips=sum(_was_healthy(run, at) for at in run.trips),
        leaks=len(run.leaks),
        leaks_per_reset=_leaks_per_reset(run),
        recovery=max(back, default=0.0),
        lost=lost,
        urgent_inversions=run.urgent_inversions,
        inversions=run.inversions,
        excess=run.excess,
    )


def judge(ours: Figures, run: Record, baselines: dict[str, Figures]) -> dict[str, Verdict]:
    """The criteria for one controller; its delay is compared with `baselines`."""
    rivals = {name: one for name, one in baselines.items() if one.goodput >= ours.goodput}
    best = min(rivals, key=lambda name: rivals[name].p99, default=None)
    delay = "no baseline has that goodput" if best is None else f"{best} {rivals[best].p99:.3g} s"
    allowed = _ACTIVATIONS * len(run.scenario.changes)
    dead = bool(run.scenario.dead)
    return {
        "priority 1": Verdict(ours.urgent_inversions == 0, ours.urgent_inversions),
        "goodput": Verdict(ours.settled >= _ENOUGH, ours.settled),
        "delay": Verdict(best is None or ours.p99 <= rivals[best].p99 * _TIE, ours.p99, delay),
        "activations": Verdict(ours.activations <= allowed, ours.activations, f"of {allowed}"),
        "leaks": Verdict(ours.leaks_per_reset <= _PROBES if dead else None, ours.leaks_per_reset),
        # Tokens are counted in floats by the meter: a hundredth of an event is
        # rounding.
        "rate": Verdict(ours.excess < 0.01, ours.excess),
    }


def summarise(runs: Sequence[dict[str, Verdict]]) -> dict[str, Summary]:
    """The verdicts of several seeds, by criterion.

    The worst run is one that failed, and else the one nearest to it.
    """
    out = {}
    for name in CRITERIA:
        verdicts = [run[name] for run in runs if run[name].met is not None]
        if not verdicts:
            out[name] = Summary(0, 0, 0.0, 0.0, "")
            continue
        least = name == "goodput"
        worst = max(verdicts, key=lambda one: (not one.met, -one.value if least else one.value))
        middle = statistics.median(one.value for one in verdicts)
        out[name] = Summary(
            sum(bool(one.met) for one in verdicts), len(verdicts), middle, worst.value, worst.note
        )
    return out


def median(runs: Sequence[Figures]) -> Figures:
    """Each figure's median over several seeds."""
    values = {
        field.name: statistics.median_high(getattr(run, field.name) for run in runs)
        for field in dataclasses.fields(Figures)
        if field.name != "lost"
    }
    lost = tuple(
        statistics.median(shares) for shares in zip(*(run.lost for run in runs), strict=True)
    )
    return Figures(lost=lost, **values)


def _next(changes: tuple[float, ...], at: float, end: float) -> float:
    return min((change for change in changes if change > at), default=end)


def _ratio(run: Record, oracle: Record, start: float, end: float) -> float:
    """Goodput over the lesser of the oracle's and the demand.

    As in `_converges`: what one has refused one cannot deliver later.
    """
    span = slice(int(start), int(end))
    return sum(run.goodput[span]) / max(1, min(sum(oracle.goodput[span]), sum(run.demand[span])))


def _converges(run: Record, oracle: Record, start: float, end: float) -> float:
    """Seconds from `start` until the goodput of `_SMOOTH` seconds is within a tenth of
    the oracle's, or inf.

    What is asked is the lesser of the oracle's goodput and the demand: working off a
    backlog that one does not have is no goal.
    """
    for second in range(int(start), int(end) - _SMOOTH + 1):
        span = slice(second, second + _SMOOTH)
        goal = min(sum(oracle.goodput[span]), sum(run.demand[span]))
        if goal and sum(run.goodput[span]) >= _NEAR * goal:
            return second - start
    return math.inf


def _was_healthy(run: Record, at: float) -> bool:
    """Whether the sink failed less than 30 % of all calls in the 5 s before.

    That is the breaker's threshold and window.
    """
    looks = [run.scenario.sink(max(0.0, at - 0.1 * k)) for k in range(50)]
    return (
        sum(1.0 if one.dead else one.errors for one in looks) / len(looks) < 0.3
        and not looks[0].dead
    )


def _leaks_per_reset(run: Record) -> int:
    """What came before the first trip was needed to find out, and is not counted.

    `leaks` has it.
    """
    most = 0
    for start, end in run.scenario.dead:
        first = min((trip for trip in run.trips if start <= trip <= end), default=start)
        leaks = [at for at in run.leaks if first < at <= end]
        for begin in range(len(leaks)):
            most = max(most, sum(at < leaks[begin] + _RESET for at in leaks[begin:]))
    return most
