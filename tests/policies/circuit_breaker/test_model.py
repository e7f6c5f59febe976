"""CircuitBreaker against a reference: the rules once more, as plainly as they can be
said, under random histories with late, duplicate, lost and dropped results.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from backpressure.base.errors import CircuitOpenError
from backpressure.policies.circuit_breaker import (
    CircuitBreaker,
    CircuitBreakerConfig,
    Permit,
    State,
    fast_path,
)
from backpressure.testing import FakeClock
from tests.support.circuit_breaker import DownError
from tests.support.models import share_and_proof


class Reference:
    """The rules once more, as plainly as they can be said: every result is kept, and
    every question scans them all.
    """

    def __init__(self, config: CircuitBreakerConfig, now: float) -> None:
        self.config = config
        self.state = State.CLOSED
        self.path = [State.CLOSED]
        self.generation = 0
        self.entered = now
        self.open_time = 0.0
        self.open_until = now
        self.over_since: float | None = None
        self.exponent = 0
        self.window: list[tuple[int, bool, bool]] = []  # (bucket number, failed, slow)
        self.ramp_end = now
        self.ramp_owed = 0.0
        self.ramp_due = now
        self.probes: dict[int, float] = {}  # permit -> taken at
        self.results: list[tuple[bool, bool]] = []
        self.late = 0
        self.outage = now
        self.canary = -1  # the latest permit that OPEN gave, of this generation
        self.due: dict[int, float] = {}  # the end of the open time when they went
        self.out: set[int] = set()  # of those, what is neither answered nor dropped
        # Results since it closed, and where several came at once the number of the
        # group: the sequential law looks at whole ones.
        self.history: list[tuple[bool, bool, int]] = []
        self.groups = 0

    def bucket(self, now: float) -> int:
        return int(now // (self.config.monitoring_interval / 10))

    def visible(self, now: float) -> list[tuple[int, bool, bool]]:
        return [entry for entry in self.window if entry[0] > self.bucket(now) - 10]

    def last(self) -> list[tuple[int, bool, bool]]:
        return [] if self.config.window_size is None else self.window[-self.config.window_size :]

    def enter(self, state: State, now: float) -> None:
        config = self.config
        if state is State.OPEN:
            if self.state is State.CLOSED:
                self.exponent = max(
                    0, self.exponent - int((now - self.entered) // config.reset_timeout)
                )
            if not all(failed for failed, _ in self.results):
                self.exponent = 0
            assert config.max_reset_timeout is not None
            if not (self.state is State.HALF_OPEN and all(failed for failed, _ in self.results)):
                self.outage = now
                first = 0.5
            else:
                first = self.next_look(now)
            self.open_time = min(
                config.max_reset_timeout,
                config.reset_timeout * config.reset_timeout_multiplier**self.exponent,
            )
            if config.law == "sequential":
                self.open_time = min(config.max_reset_timeout, first)
            self.open_until = now + self.open_time
            # 2**2 times reset_timeout is the cap of this config: beyond it there is
            # nothing left to remember.
            self.exponent = min(2, self.exponent + 1)
        if state in (State.CLOSED, State.DISABLED):
            self.window, self.over_since = [], None
            self.history = []
        self.ramp_end = now
        if self.state is State.HALF_OPEN and state is State.CLOSED:
            self.ramp_end, self.ramp_owed, self.ramp_due = now + self.config.ramp_up_time, 0.0, now
        if state is not self.state:
            self.path.append(state)
        self.state, self.entered = state, now
        self.generation += 1
        self.probes, self.results = {}, []
        self.canary = -1

    def next_look(self, now: float) -> float:
        assert self.config.max_reset_timeout is not None
        lasted = now - self.outage
        grown = 0.1 * min(lasted, 20.0) + 0.04 * max(0.0, lasted - 20.0)
        return min(self.config.max_reset_timeout, 0.7 + grown)

    def acquire(self, permit: int, now: float, at_once: bool = False) -> bool:
        if self.state is State.OPEN and not self.config.canary and now >= self.open_until:
            self.enter(State.HALF_OPEN, now)
        if self.state is State.OPEN and (
            now >= self.open_until or (at_once and self.canary not in self.out)
        ):
            self.canary = permit
            self.out.add(permit)
            self.due[permit] = self.open_until
            if self.config.canary and self.config.law == "sequential":
                self.open_time = self.next_look(now)
                self.open_until = now + self.open_time
            elif self.config.canary:
                self.open_until = (
                    now
                    + max(self.open_time, self.config.reset_timeout)
                    / self.config.half_open_requests
                )
            return True
        if self.state is State.HALF_OPEN:
            if len(self.probes) + len(self.results) >= self.config.half_open_requests:
                oldest = min(self.probes, key=lambda p: (self.probes[p], p))
                if now - self.probes[oldest] < self.config.probe_lease:
                    return False
                del self.probes[oldest]
            self.probes[permit] = now
            return True
        if self.state is State.CLOSED and now < self.ramp_end:
            return self.ramped(now)
        return self.state in (State.CLOSED, State.DISABLED)

    def share(self, now: float) -> float:
        return 0.1 + 0.9 * (now - self.entered) / self.config.ramp_up_time

    def ramped(self, now: float) -> bool:
        share = self.share(now)
        self.ramp_owed += share
        if self.ramp_owed >= 1.0 or now >= self.ramp_due:
            self.ramp_owed = max(0.0, self.ramp_owed - 1.0)
            self.ramp_due = now + self.config.ramp_up_time / 100 * (1.0 - share) / share
            return True
        return False

    def settle(self, permit: int, generation: int, outcome: str, slow: bool, now: float) -> None:
        counts = generation == self.generation and (
            self.state is not State.HALF_OPEN or permit in self.probes
        )
        self.probes.pop(permit, None)
        self.out.discard(permit)
        canary = counts and self.state is State.OPEN
        if outcome == "ignore":
            if canary:
                self.open_until = min(self.open_until, max(now, self.due[permit]))
            return
        if not counts:
            self.late += 1
        elif canary:
            if outcome == "success":
                self.enter(State.HALF_OPEN, now)
                self.results.append((False, slow))
                self.decide_half_open(now)
        elif self.state is State.HALF_OPEN:
            self.results.append((outcome == "failure", slow))
            self.decide_half_open(now)
        else:
            self.count([(outcome == "failure", slow)], now)

    def decide_half_open(self, now: float) -> None:
        quorum = min(self.config.min_requests, self.config.half_open_requests)
        missing = quorum - len(self.results)
        if self.config.law == "sequential":
            evidence = max(
                sum(self.evidence(bool(hit), kind) for hit in hits)
                for kind, hits in enumerate(zip(*self.results, strict=True))
            )
            if abs(evidence) >= math.log(19) or missing == 0:
                self.enter(State.CLOSED if evidence <= 0 else State.OPEN, now)
            return
        best = self.results + [(False, False)] * missing  # all that is missing comes out well
        if self.reached(best):
            self.enter(State.OPEN, now)
        elif missing == 0:
            self.enter(State.CLOSED, now)

    def alternative(self, kind: int) -> tuple[float, float]:
        threshold = (self.config.failure_threshold, self.config.slow_call_rate_threshold)[kind]
        return threshold * 2 / 3, min(2 * threshold, (1 + threshold) / 2)

    def evidence(self, hit: bool, kind: int, certain: bool = False) -> float:
        flaky, broken = self.alternative(kind)
        broken = 1.0 if certain else broken
        if hit:
            return math.log(broken / flaky)
        return math.log((1 - broken) / (1 - flaky)) if broken < 1 else -math.inf

    def proven(self, now: float) -> bool:
        """Whether the latest results are enough, in number and as evidence."""
        calls = len(self.visible(now))
        rate = calls / min(5.0, max(1.0, now - self.entered))
        bound = math.log(max(rate, 0.1) * 240_000)
        bound = min(15 * math.log(3), max(10 * math.log(3), bound))
        part = min(1.0, self.config.min_requests / 10)
        for kind, certain in itertools.product((0, 1), (False, True)):
            total = since = 0.0
            for index, result in enumerate(self.history):
                total += self.evidence(result[kind] is True, kind, certain)
                since += 1
                is_whole = index + 1 == len(self.history) or self.history[index + 1][2] != result[2]
                if is_whole and total <= 0:
                    total = since = 0.0
            asked = part * (bound + (math.log(4) if certain else 0.0))
            if since >= self.config.min_requests and total >= asked - 1e-6:
                return True
        return False

    def reached(self, results: list[tuple[bool, bool]], deviations: float = 0.0) -> bool:
        def beyond(count: int, threshold: float) -> bool:
            spread = deviations * math.sqrt(threshold * (1.0 - threshold) / len(results))
            return count / len(results) >= min(1.0, threshold + spread)

        failures = sum(failed for failed, _ in results)
        slow = sum(slow for _, slow in results)
        return beyond(failures, self.config.failure_threshold) or beyond(
            slow, self.config.slow_call_rate_threshold
        )

    def over(self, window: list[tuple[int, bool, bool]]) -> bool:
        return len(window) >= self.config.min_requests and self.reached(
            [(failed, slow) for _, failed, slow in window]
        )

    def time_passes(self, now: float) -> None:
        """Whatever has left the window since: a window that was found below its
        thresholds starts anew.
        """
        if not self.over(self.visible(now)):
            self.over_since = None

    def count(self, results: list[tuple[bool, bool]], now: float) -> None:
        self.window += [(self.bucket(now), failed, slow) for failed, slow in results]
        self.groups += 1
        self.history += [(failed, slow, self.groups) for failed, slow in results]
        if self.config.law == "sequential":
            if self.state is State.CLOSED and self.proven(now):
                self.enter(State.OPEN, now)
            return
        if self.state is State.CLOSED and self.over(self.visible(now)):
            seen = self.visible(now)
            self.over_since = now if self.over_since is None else self.over_since
            if (
                now - self.over_since >= self.config.monitoring_interval / 2
                or all(bucket == self.bucket(now) for bucket, _, _ in seen)
                or len(seen) < 2 * self.config.min_requests
                or self.reached([(failed, slow) for _, failed, slow in seen], deviations=4.0)
            ):
                self.enter(State.OPEN, now)
        if self.state is State.CLOSED and self.over(self.last()):
            self.enter(State.OPEN, now)


class BreakerMachine(RuleBasedStateMachine):
    """Random histories with late, duplicate and lost results; after each step breaker
    and reference must agree.
    """

    permits = Bundle("permits")
    settled = Bundle("settled")

    config = CircuitBreakerConfig(
        failure_threshold=0.4,
        reset_timeout=4.0,
        half_open_requests=3,
        monitoring_interval=5.0,
        min_requests=2,
        slow_call_duration=1.0,
        slow_call_rate_threshold=0.75,
        max_reset_timeout=16.0,
        reset_timeout_multiplier=2.0,
        reset_timeout_jitter=0.0,
        probe_lease=2.0,
        ramp_up_time=8.0,
    )

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(fast_path, "_TOKENS", 3)  # piles that run out all the time
        self.clock = FakeClock(100.0)
        self.changes: list[State] = []
        self.breaker = CircuitBreaker(
            self.config, clock=self.clock, on_change=lambda old, new, why: self.changes.append(new)
        )
        self.model = Reference(self.config, self.clock.now())
        self.taken = 0
        self.refused = 0
        # The only references to permits that are out, and when they were given.
        self.held: dict[int, tuple[Permit, float]] = {}
        self.reports = {"success": 0, "failure": 0, "ignore": 0}
        self.duplicates = 0

    def teardown(self) -> None:
        self.patch.undo()

    def is_slow(self, latency: float) -> bool:
        return (
            self.config.slow_call_duration is not None and latency >= self.config.slow_call_duration
        )

    @rule(target=permits, count=st.integers(1, 4), at_once=st.sampled_from([False] * 3 + [True]))
    def take(self, count: int, at_once: bool) -> object:
        given = []
        for _ in range(count):
            number = self.taken + self.refused
            breaker = self.breaker
            permit = breaker.try_acquire_now() if at_once else breaker.try_acquire()
            assert (permit is not None) == self.model.acquire(number, self.clock.now(), at_once)
            if permit is None:
                self.refused += 1
            else:
                assert permit.generation == self.model.generation
                self.taken += 1
                self.held[number] = permit, self.clock.now()
                given.append((number, self.model.generation))
        return multiple(*given)

    @rule(
        target=settled,
        entry=consumes(permits),
        outcome=st.sampled_from(["success", "failure", "failure", "ignore"]),
        latency=st.sampled_from([0.5, 0.5, 1.0]),
    )
    def report(self, entry: tuple[int, int], outcome: str, latency: float) -> Permit:
        number, generation = entry
        permit, given = self.held.pop(number)
        # Only a success brings its latency; for a failure the breaker measures, and
        # this one took no less than it waited.
        if outcome == "success":
            permit.success(latency)
            slow = self.is_slow(latency)
        else:
            slow = self.is_slow(self.clock.now() - given)
            getattr(permit, outcome)()
        self.reports[outcome] += 1
        self.model.settle(number, generation, outcome, slow, self.clock.now())
        return permit

    @rule(
        form=st.sampled_from(["decorator", "call", "with"]),
        count=st.integers(1, 5),
        fails=st.sampled_from([False] * 3 + [True]),
    )
    def guarded(self, form: str, count: int, fails: bool) -> None:
        """Calls through the other faces, each of which ends at once; the last one may
        fail.
        """

        def work() -> None:
            if error is not None:
                raise error

        decorated = self.breaker(work)
        for left in reversed(range(count)):
            error = DownError() if fails and not left else None
            number = self.taken + self.refused
            admitted, generation = (
                self.model.acquire(number, self.clock.now()),
                self.model.generation,
            )
            try:
                if form == "decorator":
                    decorated()
                elif form == "call":
                    self.breaker.call(work)
                else:
                    with self.breaker:
                        work()
            except CircuitOpenError:
                assert not admitted
                self.refused += 1
                continue
            except DownError:
                assert error is not None
            assert admitted
            self.taken += 1
            outcome = "success" if error is None else "failure"
            self.reports[outcome] += 1
            self.model.settle(number, generation, outcome, False, self.clock.now())

    @rule(permit=settled, outcome=st.sampled_from(["success", "failure", "ignore"]))
    def report_again(self, permit: Permit, outcome: str) -> None:
        getattr(permit, outcome)()
        self.duplicates += 1

    @rule(entry=consumes(permits))
    def lose(self, entry: tuple[int, int]) -> None:
        """It is kept, and never reported."""

    @rule(entry=consumes(permits))
    def drop(self, entry: tuple[int, int]) -> None:
        """It can never be reported."""
        number, _ = entry
        del self.held[number]
        self.model.probes.pop(number, None)
        self.model.out.discard(number)

    @rule(seconds=st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 4.75, 8.0, 20.0]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(ok=st.integers(0, 4), failed=st.integers(0, 2))
    def record_many(self, ok: int, failed: int) -> None:
        self.breaker.record_many(ok, failed)
        self.reports["success"] += ok
        self.reports["failure"] += failed
        if self.model.state in (State.CLOSED, State.DISABLED) and ok + failed:
            self.model.count([(False, False)] * ok + [(True, False)] * failed, self.clock.now())

    # By hand only now and then, as each of these cuts the history that makes the other
    # rules interesting.
    @rule(what=st.sampled_from(["reset"] * 2 + ["force_open", "disable"] + [""] * 8))
    def command(self, what: str) -> None:
        if not what:
            return
        getattr(self.breaker, what)()
        new = {"reset": State.CLOSED, "force_open": State.FORCED_OPEN, "disable": State.DISABLED}[
            what
        ]
        self.model.enter(new, self.clock.now())
        if what == "reset":
            self.model.exponent = 0
            self.model.ramp_end = self.clock.now()  # only probes begin one

    @invariant()
    def agree(self) -> None:
        now, model = self.clock.now(), self.model
        model.time_passes(now)
        metrics = self.breaker.metrics()
        assert self.breaker.state is metrics.state is model.state
        assert metrics.generation == model.generation
        seen = model.visible(now)
        assert metrics.window_calls == len(seen)
        assert metrics.window_failures == sum(failed for _, failed, _ in seen)
        assert metrics.window_slow == sum(slow for _, _, slow in seen)
        last = model.last()
        assert (metrics.last_calls, metrics.last_failures) == (
            len(last),
            sum(failed for _, failed, _ in last),
        )
        assert metrics.last_slow == sum(slow for _, _, slow in last)
        assert metrics.probes_out == len(model.probes)
        assert metrics.probe_results == len(model.results)
        assert metrics.probes_out + metrics.probe_results <= self.config.half_open_requests
        assert (metrics.admitted, metrics.rejected) == (self.taken, self.refused)
        assert (metrics.succeeded, metrics.failed, metrics.ignored) == tuple(self.reports.values())
        assert (metrics.late, metrics.duplicates) == (model.late, self.duplicates)
        if model.state is State.OPEN:
            assert metrics.open_time == model.open_time
            assert metrics.retry_after == max(0.0, model.open_until - now)
        if model.state is State.CLOSED:
            assert metrics.admitted_share == (model.share(now) if now < model.ramp_end else 1.0)
        assert [State.CLOSED, *self.changes] == model.path

    @invariant()
    def never_stuck(self) -> None:
        """Left alone, a breaker that was not forced opens up again: the longest open
        time, or a lease, is enough.
        """
        if self.model.state is State.FORCED_OPEN:
            return
        wait = self.breaker.retry_after()
        assert 0.0 <= wait <= 16.0
        if self.model.state is State.HALF_OPEN:
            assert all(
                end <= self.clock.now() + self.config.probe_lease
                for end in self.breaker._probes._out.values()
            )


class UnlockedMachine(BreakerMachine):
    """Where slow calls are not watched and there is no ramp: most calls go by without
    the lock.
    """

    config = dataclasses.replace(BreakerMachine.config, slow_call_duration=None, ramp_up_time=0.0)


class CountingMachine(BreakerMachine):
    """With a window of the last few calls, too."""

    config = dataclasses.replace(
        BreakerMachine.config, slow_call_duration=None, ramp_up_time=0.5, window_size=7
    )


class CanaryMachine(BreakerMachine):
    """With canaries, and more calls in a window than decide by their mere number."""

    config = dataclasses.replace(
        BreakerMachine.config, slow_call_rate_threshold=0.5, canary=True, ramp_up_time=0.0
    )


class SequentialMachine(BreakerMachine):
    """The other law, with all that it judges by."""

    config = dataclasses.replace(
        BreakerMachine.config, law="sequential", canary=True, ramp_up_time=0.0
    )


class UnlockedSequentialMachine(BreakerMachine):
    """The other law, on the fast path, without canaries and with more calls."""

    config = dataclasses.replace(
        BreakerMachine.config,
        law="sequential",
        failure_threshold=0.3,
        min_requests=4,
        slow_call_duration=None,
    )


TestBreakerMachine, TestBreakerMachineInFull = share_and_proof(
    BreakerMachine, examples=80, steps=60
)
TestCanaryMachine, TestCanaryMachineInFull = share_and_proof(CanaryMachine, examples=80, steps=60)
TestUnlockedMachine, TestUnlockedMachineInFull = share_and_proof(
    UnlockedMachine, examples=80, steps=60
)
TestCountingMachine, TestCountingMachineInFull = share_and_proof(
    CountingMachine, examples=80, steps=60
)
TestSequentialMachine, TestSequentialMachineInFull = share_and_proof(
    SequentialMachine, examples=80, steps=60
)
TestUnlockedSequentialMachine, TestUnlockedSequentialMachineInFull = share_and_proof(
    UnlockedSequentialMachine, examples=80, steps=60
)
