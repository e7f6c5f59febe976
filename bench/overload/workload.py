"""Scenarios: what producers offer, what befalls the sink, and when things should have
settled.

Rates are a hundredth of the table's, and so is everything that counts events (a batch,
a burst): the laws know ratios only, and three minutes of virtual time cost half a
second. Seconds stay as they are. The sink takes 20,000 events a second.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from bench.overload.sink import Condition

__all__ = ["CAPACITY", "LEVELS", "MIX", "TICK", "Scenario", "scenarios"]

LEVELS = 5
#: Seconds between two arrivals of a priority, and the pace at which BufferManager looks
#: at its lanes.
TICK = 0.02
CAPACITY = 20_000.0
#: Parts of the load by priority, the most urgent first: nine tenths are low.
MIX = (0.02, 0.03, 0.05, 0.40, 0.50)
# A hundredth of the table's rate and burst.
_RATE, _BURST = 200_000.0, 20_000
# Five seconds of the sink's capacity in each lane.
_LANE = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One story. Times are true virtual seconds."""

    name: str
    what: str
    seconds: float
    #: Events offered per second, and how the sink is, at a time.
    demand: Callable[[float], float]
    sink: Callable[[float], Condition]
    #: When load or sink really change: the marks from which convergence is timed.
    changes: tuple[float, ...]
    #: Spans in which a controller should have converged: goodput is compared with the
    #: oracle's there.
    settled: tuple[tuple[float, float], ...]
    mix: tuple[float, ...] = MIX
    rate: float = _RATE
    burst: int = _BURST
    lane_capacity: int = _LANE
    #: (when, seconds forward): what the clock of the policies does.
    clock_steps: tuple[tuple[float, float], ...] = ()
    #: Seconds during which the sink is dead, for leaked calls and the time to recover.
    dead: tuple[tuple[float, float], ...] = ()

    @property
    def faulty(self) -> bool:
        """Whether calls ever fail or hang."""
        looks = (self.sink(0.5 * k) for k in range(round(2 * self.seconds)))
        return any(one.errors or one.hangs for one in looks)


def _steps(first: float, *later: tuple[float, float]) -> Callable[[float], float]:
    """A step function: `first`, then each value from its time on."""

    def at(t: float) -> float:
        value = first
        for since, then in later:
            if t < since:
                break
            value = then
        return value * CAPACITY

    return at


def _sink(*later: tuple[float, Condition]) -> Callable[[float], Condition]:
    healthy = Condition()

    def at(t: float) -> Condition:
        value = healthy
        for since, then in later:
            if t < since:
                break
            value = then
        return value

    return at


def _square(t: float) -> float:
    """30 s of 0.8, 30 s of 1.2 of the capacity.

    Around the depth at which the monitor activates.
    """
    return CAPACITY * (0.8 if t % 60.0 < 30.0 else 1.2)


def _lumps(calls: int) -> Callable[[float], float]:
    """About a hundred events at once, so many times a second: a call for each lump."""

    def at(t: float) -> float:
        return 0.0 if round(t / TICK) % round(1.0 / (calls * TICK)) else 100.0 / TICK

    return at


def _ramp(t: float) -> float:
    """0.5 to 2 times the capacity within a minute, and back."""
    up = min(1.0, max(0.0, (t - 30.0) / 60.0))
    down = min(1.0, max(0.0, (t - 120.0) / 60.0))
    return CAPACITY * (0.5 + 1.5 * (up - down))


def _spikes(size: float) -> Callable[[float], float]:
    """One second in twenty at `size` times the capacity."""

    def at(t: float) -> float:
        return CAPACITY * (size if t > 20.0 and t % 20.0 < 1.0 else 0.6)

    return at


def _drift(t: float) -> Condition:
    """The sink loses two thirds of its capacity in four minutes, as a disk fills up."""
    return Condition(capacity=CAPACITY * (1.0 - 0.667 * min(1.0, max(0.0, (t - 30.0) / 240.0))))


def _flapping(t: float) -> Condition:
    """Five seconds with 30 % errors, five without, for two minutes."""
    return Condition(errors=0.3 if 30.0 <= t < 150.0 and t % 10.0 < 5.0 else 0.0)


def _every(start: float, end: float, step: float) -> tuple[float, ...]:
    return tuple(start + step * k for k in range(math.ceil((end - start) / step)))


DEAD = Condition(errors=1.0)
HUNG = Condition(hangs=True)
SLOW = Condition(capacity=CAPACITY * 0.2)


def scenarios() -> dict[str, Scenario]:
    """All of them, by name."""
    healthy = _sink()
    under = _steps(0.7)
    spikes = tuple(t + edge for t in _every(40.0, 160.0, 20.0) for edge in (0.0, 1.0))
    edges = _every(30.0, 240.0, 30.0)
    every = [
        Scenario(
            name="step_x2",
            what="load steps from 0.5 to 2 times the capacity for 90 s",
            seconds=180.0,
            demand=_steps(0.5, (30.0, 2.0), (120.0, 0.5)),
            sink=healthy,
            changes=(30.0, 120.0),
            settled=((10.0, 30.0), (60.0, 120.0), (150.0, 180.0)),
        ),
        Scenario(
            name="step_x10",
            what="load steps from 0.5 to 10 times the capacity for 90 s",
            seconds=180.0,
            demand=_steps(0.5, (30.0, 10.0), (120.0, 0.5)),
            sink=healthy,
            changes=(30.0, 120.0),
            settled=((10.0, 30.0), (60.0, 120.0), (150.0, 180.0)),
        ),
        Scenario(
            name="square",
            what=(
                "30 s at 0.8, 30 s at 1.2 times the capacity, in turn: the queue crosses the "
                "watermark each time"
            ),
            seconds=240.0,
            demand=_square,
            sink=healthy,
            changes=edges,
            settled=tuple((edge + 15.0, edge + 30.0) for edge in edges),
        ),
        Scenario(
            name="ramp",
            what=(
                "load climbs from 0.5 to 2 times the capacity in a minute, stays for 30 s, "
                "and falls again"
            ),
            seconds=210.0,
            demand=_ramp,
            sink=healthy,
            changes=(30.0, 120.0),
            settled=((90.0, 120.0), (190.0, 210.0)),
        ),
        Scenario(
            name="spikes_within_burst",
            what=(
                "each 20 s one second at 1.8 times the capacity, with a rate of 1.2 times and "
                "a burst of one second"
            ),
            seconds=160.0,
            demand=_spikes(1.8),
            sink=healthy,
            changes=spikes,
            settled=((20.0, 160.0),),
            rate=1.2 * CAPACITY,
            burst=int(CAPACITY),
        ),
        Scenario(
            name="spikes_beyond_burst",
            what=(
                "each 20 s one second at 6 times the capacity, with a rate of 1.2 times and a "
                "burst of one second"
            ),
            seconds=160.0,
            demand=_spikes(6.0),
            sink=healthy,
            changes=spikes,
            settled=((20.0, 160.0),),
            rate=1.2 * CAPACITY,
            burst=int(CAPACITY),
        ),
        Scenario(
            name="drift",
            what="load 0.7 of the capacity, which shrinks to a third in four minutes",
            seconds=330.0,
            demand=under,
            sink=_drift,
            changes=(30.0,),
            settled=((10.0, 30.0), (200.0, 270.0), (290.0, 330.0)),
        ),
        Scenario(
            name="brown_out",
            what="the sink is five times slower for a minute, without one error",
            seconds=180.0,
            demand=under,
            sink=_sink((30.0, SLOW), (90.0, Condition())),
            changes=(30.0, 90.0),
            settled=((10.0, 30.0), (60.0, 90.0), (130.0, 180.0)),
        ),
        Scenario(
            name="flapping",
            what="30 % of the calls fail, 5 s on, 5 s off, for two minutes",
            seconds=240.0,
            demand=under,
            sink=_flapping,
            changes=(30.0, 150.0),
            settled=((10.0, 30.0), (60.0, 150.0), (210.0, 240.0)),
        ),
        Scenario(
            name="errors_10",
            what="10 % of the calls fail for two minutes: nothing that retries do not mend",
            seconds=210.0,
            demand=under,
            sink=_sink((30.0, Condition(errors=0.1)), (150.0, Condition())),
            changes=(30.0, 150.0),
            settled=((10.0, 30.0), (60.0, 150.0), (170.0, 210.0)),
        ),
        Scenario(
            name="hung_probe",
            what=(
                "the sink is gone for 20 s; from then on, when the first probe comes, calls "
                "hang for 40 s and never report"
            ),
            seconds=240.0,
            demand=under,
            sink=_sink((30.0, DEAD), (50.0, HUNG), (90.0, Condition())),
            changes=(30.0, 90.0),
            settled=((10.0, 30.0), (180.0, 240.0)),
            dead=((30.0, 90.0),),
        ),
        Scenario(
            name="outage",
            what=(
                "the sink is gone for 40 s and comes back to a backlog in every lane, at 0.7 "
                "of its capacity"
            ),
            seconds=240.0,
            demand=under,
            sink=_sink((30.0, DEAD), (70.0, Condition())),
            changes=(30.0, 70.0),
            settled=((10.0, 30.0), (180.0, 240.0)),
            dead=((30.0, 70.0),),
        ),
        Scenario(
            name="outage_overload",
            what="as outage, at 1.5 times the capacity: no slack in which to work the backlog off",
            seconds=240.0,
            demand=_steps(1.5),
            sink=_sink((40.0, DEAD), (80.0, Condition())),
            changes=(0.0, 40.0, 80.0),
            settled=((20.0, 40.0), (180.0, 240.0)),
            dead=((40.0, 80.0),),
        ),
        *(
            Scenario(
                name=f"calls_{calls}",
                what=(
                    f"{calls} calls a second, far below the capacity; one in five fails for "
                    "three minutes, then all of them for one"
                ),
                seconds=420.0,
                demand=_lumps(calls),
                sink=_sink((30.0, Condition(errors=0.2)), (210.0, DEAD), (270.0, Condition())),
                changes=(30.0, 210.0, 270.0),
                settled=((10.0, 30.0), (40.0, 210.0), (300.0, 420.0)),
                mix=(0.0, 0.0, 1.0, 0.0, 0.0),
                dead=((210.0, 270.0),),
            )
            for calls in (1, 5)
        ),
        Scenario(
            name="capacity_down",
            what="load 1.2 times the capacity, which halves for a minute",
            seconds=180.0,
            demand=_steps(0.9, (20.0, 1.2)),
            sink=_sink((60.0, Condition(capacity=0.5 * CAPACITY)), (120.0, Condition())),
            changes=(20.0, 60.0, 120.0),
            settled=((40.0, 60.0), (90.0, 120.0), (150.0, 180.0)),
        ),
        Scenario(
            name="capacity_up",
            what="load 2 times the capacity, which grows by half for a minute",
            seconds=180.0,
            demand=_steps(0.9, (20.0, 2.0)),
            sink=_sink((60.0, Condition(capacity=1.5 * CAPACITY)), (120.0, Condition())),
            changes=(20.0, 60.0, 120.0),
            settled=((40.0, 60.0), (90.0, 120.0), (150.0, 180.0)),
        ),
        Scenario(
            name="clock_steps",
            what=(
                "load 1.1 times the capacity; the clock goes 10 s back, an hour forward, and "
                "10 s back again"
            ),
            seconds=180.0,
            demand=_steps(0.9, (20.0, 1.1)),
            sink=healthy,
            changes=(20.0,),
            settled=((40.0, 60.0), (62.0, 100.0), (102.0, 140.0), (142.0, 180.0)),
            rate=3.0 * CAPACITY,
            burst=int(CAPACITY),
            clock_steps=((60.0, -10.0), (100.0, 3600.0), (140.0, -10.0)),
        ),
        Scenario(
            name="urgent_flood",
            what="overload by a factor of 3 in which half of all is of priority 1",
            seconds=150.0,
            demand=_steps(0.5, (20.0, 3.0), (90.0, 0.5)),
            sink=healthy,
            changes=(20.0, 90.0),
            # Priority 1 alone exceeds the sink: its lane is full at the end, and takes
            # 10 s to drain.
            settled=((10.0, 20.0), (45.0, 90.0), (120.0, 150.0)),
            mix=(0.5, 0.05, 0.05, 0.2, 0.2),
        ),
    ]
    return {one.name: one for one in every}
