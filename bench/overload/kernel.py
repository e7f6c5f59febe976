"""Virtual time: producers offer, a controller admits, lanes hold, workers call the
sink.

Event-driven, with a heap. Arrivals come as one lump per tick and priority, so a run
costs by calls and ticks, not by events. Lanes and workers follow BufferManager: the
most urgent lane first, one that was passed over 31 times before it, one lane per batch,
a nacked batch before anything newer of its lane, room freed by acks only.

Invariants, checked by `check()` every virtual second, per priority:
 1. offered = accepted + refused
 2. accepted = delivered + dropped + resident
 3. no lane holds more than its capacity; no more calls are out than there are workers
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from bench.overload.sink import WORKERS, Condition, Outcome, Sink, best_rate
from bench.overload.workload import LEVELS, TICK, Scenario

__all__ = [
    "Call",
    "Controller",
    "Delays",
    "LaneReadings",
    "Record",
    "RateMeter",
    "VirtualClock",
    "simulate",
]

# A lane passed over so often goes first once: BufferManager's patience.
_PATIENCE = 31
# A refusal of one priority and an admission of a lesser one in the same slot, of this
# many ticks, are an inversion: within one tick only the order of the calls could excuse
# it.
_SLOT_TICKS = 1


class VirtualClock:
    """What policies take for time: true virtual time, plus the scenario's steps."""

    def __init__(self) -> None:
        self.t = 0.0
        self.offset = 0.0

    def now(self) -> float:
        return self.t + self.offset


@dataclass(eq=False, slots=True)
class Call:
    """A batch on its way to the sink; events are (arrival time, count) pairs."""

    priority: int
    events: list[tuple[float, int]]
    n: int
    asked: int
    seq: int
    attempt: int = 0
    began: float = 0.0  #: by the policies' clock
    started: float = 0.0  #: true time; both of the last attempt
    oldest: float = 0.0  #: arrival of its oldest event, true time
    not_before: float = 0.0
    permit: object = None
    outcome: Outcome = Outcome.OK

    def __lt__(self, other: Call) -> bool:
        return self.seq < other.seq


class LaneReadings(NamedTuple):
    """What the lanes show at a tick."""

    waiting: list[int]  #: events, by priority
    oldest: float  #: seconds that the oldest waiting event has waited
    fill: float  #: share of the fullest lane in which events wait
    fullest: float  #: the same of all lanes
    resident: int  #: events accepted and not delivered
    busy: float  #: share of the workers that have a call out


class Controller(Protocol):
    """What a run asks.

    Priorities are 1 (most urgent) to LEVELS; times are the policies' clock.
    """

    #: Times at which it declared overload, at which its breaker opened, and of all
    #: changes of either (true time).
    activations: list[float]
    trips: list[float]
    transitions: list[float]
    #: Whether `keep` may say no.
    drops: bool

    def admit(self, n: int, priority: int) -> int: ...
    def give_back(self, n: int, priority: int) -> None: ...
    def batch_size(self) -> int: ...
    def acquire(self) -> object | None: ...
    def release(self, permit: object) -> None: ...
    def keep(self, delay: float, priority: int) -> bool: ...
    def ended(self, call: Call, latency: float, sojourn: float) -> None: ...
    def tick(self, lanes: LaneReadings) -> None: ...
    def backoff(self, attempt: int, rng: random.Random) -> float: ...
    def truth(self, condition: Condition) -> None: ...


class Delays:
    """A histogram of seconds in bins of a millisecond, weighted by events."""

    def __init__(self) -> None:
        self._bins: dict[int, int] = {}

    def add(self, seconds: float, n: int) -> None:
        place = int(seconds * 1e3)
        self._bins[place] = self._bins.get(place, 0) + n

    def quantile(self, q: float) -> float:
        """The upper edge of the bin in which the q-quantile lies.

        0.0 where nothing was added.
        """
        left = q * sum(self._bins.values())
        for place in sorted(self._bins):
            left -= self._bins[place]
            if left <= 0:
                return (place + 1) * 1e-3
        return 0.0


class RateMeter:
    """The largest excess of what was admitted over rate * time + burst, over every span
    of time.

    It is a leaky bucket that never refuses. A clock that steps back counts as one that
    stood still.
    """

    def __init__(self, rate: float, burst: int, now: float) -> None:
        self._rate, self._burst = rate, burst
        self._level, self._last = 0.0, now
        self.excess = 0.0

    def admitted(self, n: int, now: float) -> None:
        self._level = max(0.0, self._level - self._rate * max(0.0, now - self._last)) + n
        self._last = now
        self.excess = max(self.excess, self._level - self._burst)


@dataclass(slots=True)
class Record:
    """What a run left behind.

    Lists by second hold one number per whole second; tuples of five are by priority.
    """

    scenario: Scenario
    offered: list[int] = field(default_factory=lambda: [0] * LEVELS)
    accepted: list[int] = field(default_factory=lambda: [0] * LEVELS)
    refused: list[int] = field(default_factory=lambda: [0] * LEVELS)
    delivered: list[int] = field(default_factory=lambda: [0] * LEVELS)
    dropped: list[int] = field(default_factory=lambda: [0] * LEVELS)
    resident: list[int] = field(default_factory=lambda: [0] * LEVELS)
    goodput: list[int] = field(default_factory=list)
    capacity: list[float] = field(default_factory=list)
    demand: list[int] = field(default_factory=list)
    depth: list[int] = field(default_factory=list)
    oldest: list[float] = field(default_factory=list)
    batch: list[int] = field(default_factory=list)
    delays: Delays = field(default_factory=Delays)
    urgent_delays: Delays = field(default_factory=Delays)
    #: Events of priority 1 lost in a slot in which a lesser one was admitted; and the
    #: same for any pair of priorities.
    urgent_inversions: int = 0
    inversions: int = 0
    excess: float = 0.0
    calls: int = 0
    #: When calls began that went to a dead sink.
    leaks: list[float] = field(default_factory=list)
    activations: list[float] = field(default_factory=list)
    trips: list[float] = field(default_factory=list)
    transitions: list[float] = field(default_factory=list)


class _Lane:
    """Events of one priority: what waits, what is out, what is to be redelivered."""

    def __init__(self, priority: int, capacity: int) -> None:
        self.priority, self.capacity = priority, capacity
        self.queue: deque[tuple[float, int]] = deque()
        self.waiting = self.resident = 0
        self.retries: list[Call] = []
        self.passed = 0

    def ready(self, t: float) -> bool:
        return self.retries[0].not_before <= t if self.retries else self.waiting > 0

    def push(self, t: float, n: int) -> None:
        self.queue.append((t, n))
        self.waiting += n
        self.resident += n

    def take(self, most: int) -> list[tuple[float, int]]:
        taken = []
        while most and self.queue:
            at, n = self.queue.popleft()
            if n > most:
                self.queue.appendleft((at, n - most))
                n = most
            taken.append((at, n))
            most -= n
            self.waiting -= n
        return taken


class _Run:
    def __init__(
        self, scenario: Scenario, controller: Controller, clock: VirtualClock, seed: int
    ) -> None:
        # Each part draws from a source of its own, so that all controllers meet the
        # same load and the same luck.
        self.load_rng, self.sink_rng, self.rng = (
            random.Random(f"{seed}/{part}") for part in ("load", "sink", "kernel")
        )
        self.scenario, self.controller, self.clock = scenario, controller, clock
        self.sink = Sink(scenario.sink, self.sink_rng)
        self.lanes = [_Lane(p, scenario.lane_capacity) for p in range(1, LEVELS + 1)]
        self.idle = WORKERS
        self.ends: list[tuple[float, int, Call]] = []
        self.order = itertools.count()
        self.record = Record(scenario)
        self.meter = RateMeter(scenario.rate, scenario.burst, clock.now())
        self.fractions = [0.0] * LEVELS
        self.slot_lost, self.slot_admitted = [0] * LEVELS, [0] * LEVELS
        self.second_done = self.second_offered = 0
        self.second_oldest = 0.0
        self.places = list(range(LEVELS))

    def go(self) -> Record:
        steps = deque(scenario_steps(self.scenario))
        ticks = round(self.scenario.seconds / TICK)
        per_second = round(1.0 / TICK)
        for tick in range(ticks):
            t = tick * TICK
            while self.ends and self.ends[0][0] <= t:
                end, _, call = heapq.heappop(self.ends)
                self.clock.t = end
                self._end(call)
                self._dispatch()
            self.clock.t = t
            while steps and steps[0][0] <= t:
                self.clock.offset += steps.popleft()[1]
            self._tick(t)
            if (tick + 1) % _SLOT_TICKS == 0:
                self._close_slot()
            if (tick + 1) % per_second == 0:
                self._close_second(t)
        record, controller = self.record, self.controller
        for _, _, call in self.ends:
            self._count_delay(call)
        record.excess = self.meter.excess
        record.resident = [lane.resident for lane in self.lanes]
        record.activations, record.trips = controller.activations, controller.trips
        record.transitions = controller.transitions
        self.check()
        return record

    def _tick(self, t: float) -> None:
        controller, places = self.controller, self.places
        controller.truth(self.sink.at(t))
        total = self.scenario.demand(t) * TICK * (0.8 + 0.4 * self.load_rng.random())
        self.load_rng.shuffle(places)
        for place in places:
            exact = total * self.scenario.mix[place] + self.fractions[place]
            n = int(exact)
            self.fractions[place] = exact - n
            if n:
                self._offer(t, place, n)
        oldest = max((t - lane.queue[0][0] for lane in self.lanes if lane.queue), default=0.0)
        resident = sum(lane.resident for lane in self.lanes)
        fill = max(
            (lane.resident / lane.capacity for lane in self.lanes if lane.waiting), default=0.0
        )
        fullest = max(lane.resident / lane.capacity for lane in self.lanes)
        waiting = [lane.waiting for lane in self.lanes]
        busy = 1.0 - self.idle / WORKERS
        controller.tick(LaneReadings(waiting, oldest, fill, fullest, resident, busy))
        self._dispatch()
        self.second_oldest = max(self.second_oldest, oldest)

    def _offer(self, t: float, place: int, n: int) -> None:
        controller, record, lane = self.controller, self.record, self.lanes[place]
        granted = controller.admit(n, place + 1)
        assert 0 <= granted <= n
        accepted = min(granted, lane.capacity - lane.resident)
        if accepted < granted:
            controller.give_back(granted - accepted, place + 1)
        if accepted:
            lane.push(t, accepted)
            self.meter.admitted(accepted, self.clock.now())
        record.offered[place] += n
        record.accepted[place] += accepted
        record.refused[place] += n - accepted
        self.second_offered += n
        self.slot_admitted[place] += accepted
        self.slot_lost[place] += n - accepted

    def _dispatch(self) -> None:
        t = self.clock.t
        while self.idle:
            lane = self._choose(t)
            if lane is None:
                return
            permit = self.controller.acquire()
            if permit is None:
                return
            call = self._take(lane, t)
            if call is None:  # all of it was dropped
                self.controller.release(permit)
                continue
            call.permit, call.began, call.started = permit, self.clock.now(), t
            call.attempt += 1
            end, call.outcome = self.sink.call(t, call.n)
            self.record.calls += 1
            if call.outcome is not Outcome.OK and self.sink.at(t).dead:
                self.record.leaks.append(t)
            self.idle -= 1
            heapq.heappush(self.ends, (end, next(self.order), call))

    def _choose(self, t: float) -> _Lane | None:
        chosen: _Lane | None = None
        for lane in self.lanes:
            if not lane.ready(t):
                continue
            if chosen is None:
                chosen = lane
                continue
            lane.passed += 1
            if lane.passed > _PATIENCE:
                chosen = lane
                break
        if chosen is not None:
            chosen.passed = 0
        return chosen

    def _take(self, lane: _Lane, t: float) -> Call | None:
        if lane.retries:
            return heapq.heappop(lane.retries)
        asked = self.controller.batch_size()
        kept = lane.take(asked)
        if self.controller.drops:
            kept = self._drop(lane, t, kept)
        if not kept:
            return None
        total = sum(n for _, n in kept)
        return Call(lane.priority, kept, total, asked, next(self.order), oldest=kept[0][0])

    def _drop(
        self, lane: _Lane, t: float, events: list[tuple[float, int]]
    ) -> list[tuple[float, int]]:
        """What the controller keeps of the events; the rest is counted as dropped."""
        kept = [(at, n) for at, n in events if self.controller.keep(t - at, lane.priority)]
        lost = sum(n for _, n in events) - sum(n for _, n in kept)
        lane.resident -= lost
        self.record.dropped[lane.priority - 1] += lost
        self.slot_lost[lane.priority - 1] += lost
        return kept

    def _end(self, call: Call) -> None:
        lane, t = self.lanes[call.priority - 1], self.clock.t
        self.idle += 1
        self.sink.done(call.n)
        if call.outcome is Outcome.OK:
            self._count_delay(call)
            lane.resident -= call.n
            self.record.delivered[call.priority - 1] += call.n
            self.second_done += call.n
        else:
            pause = self.controller.backoff(call.attempt, self.rng)
            call.not_before = t + pause if call.outcome is Outcome.FAILED else t
            heapq.heappush(lane.retries, call)
        self.controller.ended(call, max(0.0, self.clock.now() - call.began), t - call.oldest)

    def _count_delay(self, call: Call) -> None:
        """Until the call that delivers: one into a dead sink ends no waiting."""
        record = self.record
        for at, n in call.events:
            record.delays.add(call.started - at, n)
            if call.priority == 1:
                record.urgent_delays.add(call.started - at, n)

    def _close_slot(self) -> None:
        lesser = 0
        for place in range(LEVELS - 1, -1, -1):
            wrong = min(self.slot_lost[place], lesser)
            self.record.inversions += wrong
            if place == 0:
                self.record.urgent_inversions += wrong
            lesser += self.slot_admitted[place]
        self.slot_lost, self.slot_admitted = [0] * LEVELS, [0] * LEVELS

    def _close_second(self, t: float) -> None:
        record = self.record
        record.goodput.append(self.second_done)
        record.demand.append(self.second_offered)
        record.capacity.append(best_rate(self.sink.at(t)))
        record.depth.append(sum(lane.waiting for lane in self.lanes))
        record.oldest.append(self.second_oldest)
        record.batch.append(self.controller.batch_size())
        self.second_done = self.second_offered = 0
        self.second_oldest = 0.0
        self.check()

    def check(self) -> None:
        record = self.record
        for place, lane in enumerate(self.lanes):
            assert record.offered[place] == record.accepted[place] + record.refused[place]
            assert (
                record.accepted[place]
                == record.delivered[place] + record.dropped[place] + lane.resident
            )
            assert 0 <= lane.waiting <= lane.resident <= lane.capacity
            assert lane.waiting == sum(n for _, n in lane.queue)
        assert 0 <= self.idle <= WORKERS
        assert self.idle + len(self.ends) == WORKERS


def scenario_steps(scenario: Scenario) -> list[tuple[float, float]]:
    """The clock's steps in order: (true time, seconds forward)."""
    return sorted(scenario.clock_steps)


def simulate(scenario: Scenario, make: Make, seed: int = 0) -> Record:
    """Run a scenario under the controller that `make(scenario, clock, rng)` gives."""
    clock = VirtualClock()
    controller = make(scenario, clock, random.Random(f"{seed}/policies"))
    return _Run(scenario, controller, clock, seed).go()


class Make(Protocol):
    def __call__(
        self, scenario: Scenario, clock: VirtualClock, rng: random.Random, /
    ) -> Controller: ...
