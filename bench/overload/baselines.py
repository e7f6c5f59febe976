"""Others' algorithms behind the same interface, written from their publications.

All have what every buffer has: bounded lanes, the configured rate as a token bucket,
redelivery of what failed, and a fixed batch of the table's initial size. What limits
concurrency elsewhere limits here the events inside (waiting or out), in units of one
batch: that is where an in-process buffer can refuse. A round trip is from admission to
ack. None of them knows priorities; delivery does, for all.
"""

from __future__ import annotations

import math
import random
from collections import deque

from bench.overload.kernel import Call, LaneReadings, VirtualClock
from bench.overload.sink import Condition, Outcome
from bench.overload.workload import LEVELS, Scenario

__all__ = ["BASELINES", "Base"]

# The table's values, those that count events divided by 100.
BATCH, LEAST_BATCH, LARGEST_BATCH = 500, 10, 1_000
_DEPTH, _LATENCY, _ERRORS, _INTERVAL = 8_000, 1.0, 0.1, 5.0
_RESET = 30.0
# The delay that the monitor calls overload; limits that need a bound on the round trip
# get the same.
_DELAY = 0.5
# Redelivery, in seconds: a buffer's defaults, but for what these have no part in, a
# breaker that needs results.
_BACKOFF, _MAX_BACKOFF = 0.01, 5.0


class Base:
    """A fixed batch and nothing else: rate, lanes and redelivery.

    What the others refine.
    """

    drops = False

    def __init__(self, scenario: Scenario, clock: VirtualClock, rng: random.Random) -> None:
        self.clock, self.rng = clock, rng
        self.activations: list[float] = []
        self.trips: list[float] = []
        self.transitions: list[float] = []
        self._rate, self._burst = scenario.rate, scenario.burst
        self._tokens, self._filled = float(scenario.burst), clock.now()
        self.resident = 0
        self.rate_factor = 1.0

    def admit(self, n: int, priority: int) -> int:
        now = self.clock.now()
        self._tokens += max(0.0, now - self._filled) * self._rate * self.rate_factor
        self._tokens = min(self._tokens, float(self._burst))
        self._filled = now
        granted = min(int(self._tokens), self.passes(n))
        self._tokens -= granted
        self.resident += granted
        return granted

    def give_back(self, n: int, priority: int) -> None:
        self._tokens += n
        self.resident -= n

    def passes(self, n: int) -> int:
        """How many of n the algorithm lets in."""
        return n

    def batch_size(self) -> int:
        return BATCH

    def acquire(self) -> object | None:
        return self

    def release(self, permit: object) -> None:
        """Nothing was called after all."""

    def keep(self, delay: float, priority: int) -> bool:
        """Whether events that waited so long are still delivered."""
        return True

    def ended(self, call: Call, latency: float, sojourn: float) -> None:
        """A call ended.

        `latency` is its own, `sojourn` since its oldest event was admitted.
        """

    def tick(self, lanes: LaneReadings) -> None:
        self.resident = lanes.resident

    def backoff(self, attempt: int, rng: random.Random) -> float:
        """Seconds before a failed batch goes out again."""
        return min(_BACKOFF * 2.0 ** min(attempt - 1, 60), _MAX_BACKOFF) * rng.uniform(0.5, 1.0)

    def truth(self, condition: Condition) -> None:
        """Only an oracle looks."""

    def tripped(self) -> None:
        self.trips.append(self.clock.t)
        self.transitions.append(self.clock.t)


class FixedBatch(Base):
    """No policy at all."""


class ConsecutiveFailures(Base):
    """The breaker of pybreaker and its kin.

    Five failures in a row open it for a fixed time, then one probe decides.
    """

    def __init__(self, scenario: Scenario, clock: VirtualClock, rng: random.Random) -> None:
        super().__init__(scenario, clock, rng)
        self._in_row = 0
        self._open_until: float | None = None
        self._probing = False

    def acquire(self) -> object | None:
        if self._open_until is None:
            return self
        # One that never answers would close it for ever: its worker is replaced, and
        # the next may try.
        if self.clock.now() < self._open_until or self._probing:
            return None
        self._probing = True
        return self

    def release(self, permit: object) -> None:
        self._probing = False

    def ended(self, call: Call, latency: float, sojourn: float) -> None:
        self._probing = False
        if call.outcome is Outcome.OK:
            if self._open_until is not None:
                self.transitions.append(self.clock.t)
            self._in_row, self._open_until = 0, None
        elif call.outcome is Outcome.FAILED:
            self._in_row += 1
            if self._in_row >= 5 or self._open_until is not None:
                if self._open_until is None or self.clock.now() >= self._open_until:
                    self.tripped()
                self._open_until = self.clock.now() + _RESET


class TableThresholds(Base):
    """The table read literally: each number a switch, looked at once per interval.

    Over a threshold nothing is admitted until all are below again. A breaker by failure
    rate with a fixed reset time, which closes at the first success; emergency above 20
    % errors, at 0.8 of the rate; batches in steps of a tenth towards the target.
    """

    def __init__(self, scenario: Scenario, clock: VirtualClock, rng: random.Random) -> None:
        super().__init__(scenario, clock, rng)
        self._size = BATCH
        self._active = False
        self._looked = self._sized = clock.now()
        self._latencies: list[float] = []
        self._ok = self._failed = 0
        self._open_until: float | None = None
        self._out = 0

    def passes(self, n: int) -> int:
        return 0 if self._active else n

    def batch_size(self) -> int:
        return self._size

    def acquire(self) -> object | None:
        if self._open_until is not None:
            if self.clock.now() < self._open_until or self._out >= 20:
                return None
            self._out += 1
        return self

    def release(self, permit: object) -> None:
        self._out = max(0, self._out - 1)

    def ended(self, call: Call, latency: float, sojourn: float) -> None:
        self.release(self)
        if call.outcome is Outcome.OK:
            self._latencies.append(latency)
            self._ok += 1
            if self._open_until is not None and self.clock.now() >= self._open_until:
                self._open_until, self._ok, self._failed = None, 0, 0
                self.transitions.append(self.clock.t)
        elif call.outcome is Outcome.FAILED:
            self._failed += 1
            calls = self._ok + self._failed
            late = self._open_until is not None and self.clock.now() >= self._open_until
            if late or (self._open_until is None and calls >= 10 and self._failed / calls >= 0.3):
                self._open_until, self._out = self.clock.now() + _RESET, 0
                self.tripped()

    def tick(self, lanes: LaneReadings) -> None:
        super().tick(lanes)
        now = self.clock.now()
        if abs(now - self._sized) >= 10.0 and self._latencies:
            late = sum(self._latencies) / len(self._latencies) > 0.2
            self._size = round(
                min(max(self._size * (0.9 if late else 1.1), LEAST_BATCH), LARGEST_BATCH)
            )
            self._sized = now
        if abs(now - self._looked) < _INTERVAL:
            return
        self._looked = now
        mean = sum(self._latencies) / len(self._latencies) if self._latencies else 0.0
        rate = self._failed / max(1, self._ok + self._failed)
        active = sum(lanes.waiting) > _DEPTH or mean > _LATENCY or rate > _ERRORS
        if active != self._active:
            self.transitions.append(self.clock.t)
            if active:
                self.activations.append(self.clock.t)
        self._active = active
        self.rate_factor = 0.8 if rate > 0.2 else 1.0
        self._latencies.clear()
        self._ok = self._failed = 0


class _Limit(Base):
    """Admits while the events inside are below a limit, in batches; acks move it."""

    limit = 20.0

    def passes(self, n: int) -> int:
        return max(0, min(n, int(self.limit * BATCH) - self.resident))

    def ended(self, call: Call, latency: float, sojourn: float) -> None:
        if call.outcome is Outcome.OK:
            inside = self.resident / BATCH
            self.resident -= call.n
            self.sample(sojourn, inside)
        else:
            self.failed()
        self.limit = min(max(self.limit, 1.0), 2_000.0)

    def sample(self, sojourn: float, inside: float) -> None:
        raise NotImplementedError

    def failed(self) -> None:
        """A call was refused."""


class Aimd(_Limit):
    """AIMD (Chiu and Jain 1989), with the parameters of Netflix' AIMDLimit."""

    def sample(self, sojourn: float, inside: float) -> None:
        if sojourn > _DELAY:
            self.limit *= 0.9
        elif inside * 2.0 >= self.limit:
            self.limit += 1.0

    def failed(self) -> None:
        self.limit *= 0.9


class Vegas(_Limit):
    """TCP Vegas (Brakmo and Peterson 1995) as a limit.

    It keeps between 3 and 6 log10(limit) batches queued.
    """

    def __init__(self, scenario: Scenario, clock: VirtualClock, rng: random.Random) -> None:
        super().__init__(scenario, clock, rng)
        self._least = math.inf
        self._until_probe = 30.0 * self.limit

    def sample(self, sojourn: float, inside: float) -> None:
        self._until_probe -= 1.0
        if self._until_probe <= 0.0:
            self._until_probe = 30.0 * self.limit * self.rng.uniform(0.5, 1.0)
            self._least = sojourn
            return
        if sojourn < self._least:
            self._least = sojourn
            return
        if inside * 2.0 < self.limit:
            return
        step = max(1.0, math.log10(self.limit))
        queued = math.ceil(self.limit * (1.0 - self._least / sojourn))
        if queued <= step:
            self.limit += 6.0 * step
        elif queued < 3.0 * step:
            self.limit += step
        elif queued > 6.0 * step:
            self.limit -= step

    def failed(self) -> None:
        self.limit -= max(1.0, math.log10(self.limit))


class Gradient2(_Limit):
    """Netflix' Gradient2: the limit follows long / short round trips.

    With a tolerance of 1.5 and room for 4 batches.
    """

    def __init__(self, scenario: Scenario, clock: VirtualClock, rng: random.Random) -> None:
        super().__init__(scenario, clock, rng)
        self._long = 0.0
        self._seen = 0

    def sample(self, sojourn: float, inside: float) -> None:
        self._seen += 1
        self._long += (sojourn - self._long) * (
            1.0 / self._seen if self._seen <= 10 else 2.0 / 601.0
        )
        if sojourn and self._long / sojourn > 2.0:
            self._long *= 0.95
        if inside < self.limit / 2.0:
            return
        gradient = max(0.5, min(1.0, 1.5 * self._long / max(sojourn, 1e-6)))
        self.limit = max(4.0, self.limit * 0.8 + (self.limit * gradient + 4.0) * 0.2)


class CoDel(Base):
    """CoDel for requests, as folly has it: overload is a minimum delay above the
    target; then what waited twice that is dropped.

    5 and 100 ms are for requests of less than a millisecond: both are ten times larger,
    as a batch takes 25 ms of the sink.
    """

    _TARGET, _SPAN = 0.05, 1.0

    def __init__(self, scenario: Scenario, clock: VirtualClock, rng: random.Random) -> None:
        super().__init__(scenario, clock, rng)
        # Each lane is a queue of its own: least delay in this span, its end, and
        # whether the last one was overload.
        self._lanes = [(math.inf, clock.now() + self._SPAN, False)] * LEVELS

    def keep(self, delay: float, priority: int) -> bool:
        now = self.clock.now()
        least, until, overloaded = self._lanes[priority - 1]
        if not until - self._SPAN <= now < until:
            before, overloaded = overloaded, self._TARGET < least < math.inf
            least, until = delay, now + self._SPAN
            if overloaded != before:
                self.transitions.append(self.clock.t)
                if overloaded:
                    self.activations.append(self.clock.t)
        self._lanes[priority - 1] = min(least, delay), until, overloaded
        return not (overloaded and delay > 2.0 * self._TARGET)


class BbrStyle(Base):
    """The limiter of aegis and go-zero.

    While the resource is busy, refuse beyond most passed x least round trip.
    """

    _BUCKET, _BUCKETS = 0.1, 100

    def __init__(self, scenario: Scenario, clock: VirtualClock, rng: random.Random) -> None:
        super().__init__(scenario, clock, rng)
        self._past: deque[tuple[int, float]] = deque(
            maxlen=self._BUCKETS
        )  # events passed, mean round trip
        self._passed, self._time, self._acks = 0, 0.0, 0
        self._until = clock.now() + self._BUCKET
        self._busy = 0.0
        self._dropped_at = -math.inf

    def passes(self, n: int) -> int:
        now = self.clock.now()
        busy = self._busy >= 0.8
        if not busy and not 0.0 <= now - self._dropped_at < 1.0:
            self._dropped_at = -math.inf
        hot = busy or self._dropped_at > -math.inf
        if not hot or not self._past:
            return n
        most = max(passed for passed, _ in self._past)
        least = min(trip for _, trip in self._past)
        room = int(most / self._BUCKET * least) - self.resident
        if busy and room < n and self._dropped_at == -math.inf:
            self._dropped_at = now
        return max(0, min(n, room))

    def ended(self, call: Call, latency: float, sojourn: float) -> None:
        if call.outcome is not Outcome.OK:
            return
        self.resident -= call.n
        self._passed += call.n
        self._time += sojourn
        self._acks += 1
        now = self.clock.now()
        if not self._until - self._BUCKET <= now < self._until:
            self._past.append((self._passed, self._time / self._acks))
            self._passed, self._time, self._acks = 0, 0.0, 0
            self._until = now + self._BUCKET

    def tick(self, lanes: LaneReadings) -> None:
        super().tick(lanes)
        # The resource is the sink: busy as far as workers are. The weight is that of
        # go-zero's CPU reading.
        self._busy += (lanes.busy - self._busy) * 0.05


class SreThrottling(Base):
    """Adaptive throttling (Site Reliability Engineering, chapter 21).

    Refuse with p = (requests - K accepts) / (requests + 1).
    """

    _SPAN, _K = 120, 2.0

    def __init__(self, scenario: Scenario, clock: VirtualClock, rng: random.Random) -> None:
        super().__init__(scenario, clock, rng)
        self._seconds: deque[list[int]] = deque([[0, 0]], maxlen=self._SPAN)  # requests, accepts
        self._requests = self._accepts = 0
        self._until = clock.now() + 1.0
        self._fraction = 0.0

    def passes(self, n: int) -> int:
        now = self.clock.now()
        if not self._until - 1.0 <= now < self._until:
            if len(self._seconds) == self._SPAN:
                self._requests -= self._seconds[0][0]
                self._accepts -= self._seconds[0][1]
            self._seconds.append([0, 0])
            self._until = now + 1.0
        refusal = max(0.0, (self._requests - self._K * self._accepts) / (self._requests + 1))
        self._requests += n
        self._seconds[-1][0] += n
        exact = n * (1.0 - refusal) + self._fraction
        self._fraction = exact % 1.0
        return int(exact)

    def ended(self, call: Call, latency: float, sojourn: float) -> None:
        if call.outcome is Outcome.OK:
            self._accepts += call.n
            self._seconds[-1][1] += call.n


#: By the name in the report.
BASELINES: dict[str, type[Base]] = {
    "table": TableThresholds,
    "consecutive": ConsecutiveFailures,
    "fixed batch": FixedBatch,
    "AIMD": Aimd,
    "Vegas": Vegas,
    "Gradient2": Gradient2,
    "CoDel": CoDel,
    "BBR-style": BbrStyle,
    "SRE": SreThrottling,
}
