"""The emergency mode of flow control: shed the least urgent first, down to what the
sink accepts.

It begins when the failed part of the sink's outcomes reaches `trigger_threshold`. That
part is counted by batches and by events, and the smaller of the two counts: neither one
large batch nor many tiny ones are an emergency.

Demand is then shed, the least urgent first, down to what the sink has been accepting:
the adaptive throttling of "Site Reliability Engineering" (O'Reilly 2016, chapter 21),
p = max(0, (requests - K * accepts) / (requests + 1)), here over the demand in order of
priority. The part that is refused is at least `trigger_threshold`, so that a sink that
is beyond its capacity by less than K gets well, and never larger than `throttle_rate`.
Priority 1 is never shed while a lower one passes. Where all may be refused, a hundredth
of what the sink was offered when it began still passes, to find out whether the sink is
back.

It ends after `min_dwell` at half of the trigger, or when no failure was seen for a
sliding window. What passes then climbs back, slowly enough that a new excess shows
before it would trigger again, and steps back while failures are above half of the
trigger. A mere switch would oscillate: throttling cures the failures that keep it on.
Shedding is a refusal with a `retry_after`, never a drop.

All of this holds only where room is short. Elsewhere what comes can wait until the sink
is well: the mode does not begin, and one that has begun is over at once. It begins once
per `min_dwell` at most.

Not safe for several threads: FlowControlManager calls it under its lock.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from enum import Enum

from backpressure.base.priority import PRIORITY_LEVELS
from backpressure.base.validation import check_bool, check_fields
from backpressure.policies.flow_control_manager.sliding_counts import SlidingCounts

__all__ = ["Change", "EmergencyMode", "EmergencyModeConfig", "EmergencyState"]

#: What happened, and its old and new value: see FlowControlManager.
Change = tuple[str, float, float]

# K of the adaptive throttling, as its authors chose it: a sink that fails half of
# everything whatever the load is still used in full, and one beyond its capacity is
# offered at most twice what it takes.
_K = 2.0
# The part of what the sink was offered when an emergency began that passes in any case.
_PROBE = 0.01
# The outcomes are forgotten in tenths of their window, the pace of control as well.
_OUTCOME_SLOTS = 10
# Columns of the outcome window, counted from its end: events by outcome, batches, the
# failed parts of these, and how many have one. Before them it has one of demand for
# each priority.
_OUTCOMES = _OK, _FAILED, _BATCHES, _FAILED_PARTS, _FAILING = -5, -4, -3, -2, -1
# The failed part of a batch is kept as a whole number of these: columns hold ints.
_PARTS = 1_000
# Of several batches that fail, one may be the trouble itself.
_FEWEST_FAILING = 2
# Windows within which an excess over the part that always passes is made up for. Less
# lets more pass than that, more makes a change of the demand's mix wait longer.
_MADE_UP = 0.25


@dataclass(frozen=True, kw_only=True, slots=True)
class EmergencyModeConfig:
    """When the emergency mode begins, and what it does."""

    #: False: failures never change what is admitted.
    enabled: bool = True
    #: Failed part of the outcomes at which it begins; it ends at half of that.
    trigger_threshold: float = 0.2
    #: The largest part of the demand that is refused, the least urgent first: with 0.8
    #: a fifth always passes.
    throttle_rate: float = 0.8
    #: Seconds over which outcomes and demand are judged; several calls of a slow sink.
    window: float = 10.0
    #: Seconds that it lasts at least; after one window nothing from before its
    #: beginning counts any more.
    min_dwell: float = 10.0
    #: Batches that must have an outcome within the window, and two of them a failure:
    #: one bad batch is not a bad sink.
    min_samples: int = 5

    def __post_init__(self) -> None:
        check_bool(self, "enabled")
        check_fields(self, float, 1e-6, 1.0, "trigger_threshold")
        check_fields(self, float, 0.0, 1.0, "throttle_rate")
        check_fields(self, float, 1e-3, 86_400.0, "window")
        check_fields(self, float, 0.0, 86_400.0, "min_dwell")
        check_fields(self, int, 1, 2**62, "min_samples")


class EmergencyState(Enum):
    """NORMAL -> ACTIVE, the emergency -> CLIMBING, the rate comes back -> NORMAL, or
    ACTIVE again.
    """

    NORMAL = 0
    ACTIVE = 1
    CLIMBING = 2


class EmergencyMode:
    """The estimator: outcomes and demand in, out comes what of the demand passes."""

    def __init__(
        self,
        config: EmergencyModeConfig,
        idle_after: float,
        now: float,
        levels: int = PRIORITY_LEVELS,
    ) -> None:
        self._config = config
        self._levels = levels
        self._idle_after = idle_after
        # Rounded: 1.0 - 0.8 is less than a fifth.
        self._least = round(1.0 - config.throttle_rate, 12)
        self.window = SlidingCounts(config.window, _OUTCOME_SLOTS, levels + len(_OUTCOMES), now)
        self.state = EmergencyState.NORMAL
        #: The part of the demand that passes.
        self.part = 1.0
        #: There is room for what comes, or the sink is not called: nothing is shed.
        self.holding = False
        # The largest part that passes, and what it begins with.
        self._cap, self._first_cap = 1.0, max(self._least, 1.0 - config.trigger_threshold)
        self._passing = [1.0] * levels
        self._credit = [0.0] * levels
        self._shed_at = [-math.inf] * levels
        # Events that must still pass for the least part; below 0, those that have
        # passed beyond it.
        self._owed = self._most_owed = 0.0
        self._probe = 0.0
        self._entered = -math.inf
        self._failed_at = self._stepped = now

    def record(self, now: float, ok: int, failed: int) -> None:
        """One batch has ended."""
        if not ok + failed:
            return
        window = self.window
        window.add(now, _OK, ok)
        window.add(now, _BATCHES, 1)
        if failed:
            window.add(now, _FAILED, failed)
            window.add(now, _FAILED_PARTS, round(_PARTS * failed / (ok + failed)))
            window.add(now, _FAILING, 1)
            self._failed_at = now

    def failure_rate(self, now: float, glance: bool = False) -> float:
        """The failed part of the outcomes. `glance`: in the middle of another call."""
        counts, _ = self.window.glance(now) if glance else self.window.read(now)
        return _failed_part(counts)

    def shed(self, p: int, n: int, now: float) -> int:
        """How many of n pass. Fractions are kept: of events offered one by one the
        right part passes too.
        """
        if self.holding:
            return n
        credit = self._credit[p] + n * self._passing[p]
        passed = int(credit)
        self._credit[p] = credit - passed
        share = n * self._least
        self._owed = min(self._owed + share, max(self._most_owed, share, 1.0))
        if passed < n:
            # The plan is made from what was asked for of late: who is more urgent may
            # have ceased to ask.
            if self._owed - passed >= 1.0 and not self._shed_above(p, now):
                passed = min(n, int(self._owed))
            if passed < n:
                self._shed_at[p] = now
        self._owed = max(self._owed - passed, -self._most_owed)
        return passed

    def retry_after(self, rng: random.Random) -> float:
        """Seconds until about the next step, spread over the length of one."""
        return (0.5 + rng.random()) * self._slot

    def step(self, now: float) -> Change | None:
        """Look at the outcomes: at any time whether it begins or has no reason any
        more, and everything else once per slot.
        """
        config, change = self._config, None
        if self.holding:
            return self._end(now)
        counts, _ = self.window.read(now)
        rate = _failed_part(counts)
        elapsed = now - self._stepped
        triggered = (
            config.enabled
            and rate >= config.trigger_threshold
            and counts[_BATCHES] >= config.min_samples
            and counts[_FAILING] >= min(_FEWEST_FAILING, config.min_samples)
        )
        if triggered and self._may_begin(now):
            self.state, self._entered = EmergencyState.ACTIVE, now
            self._cap = self._first_cap
            self._probe = _PROBE * (counts[_OK] + counts[_FAILED])
            self._owed = 0.0
            change = ("emergency_entered", config.trigger_threshold, rate)
        elif self.state is EmergencyState.NORMAL or elapsed < self._slot:
            return None
        elif self.state is EmergencyState.ACTIVE:
            calm = counts[_OK] > 0 and rate <= config.trigger_threshold / 2
            over = calm and now - self._entered >= config.min_dwell
            if over or now - self._failed_at >= self._idle_after:
                self.state = EmergencyState.CLIMBING
                change = ("emergency_left", rate, now - self._entered)
        else:
            self._climb(rate, elapsed)
        self._stepped = now
        self._plan(counts)
        return change

    @property
    def _slot(self) -> float:
        return self._config.window / _OUTCOME_SLOTS

    def _may_begin(self, now: float) -> bool:
        """Room that is short again and again is one emergency, not many."""
        if self.state is EmergencyState.NORMAL:
            return now - self._entered >= self._config.min_dwell
        return self.state is EmergencyState.CLIMBING

    def _end(self, now: float) -> Change | None:
        """There is room: what is shed now would be lost for nothing."""
        before, self.state = self.state, EmergencyState.NORMAL
        self._cap = self.part = 1.0
        self._passing = [1.0] * self._levels
        if before is EmergencyState.ACTIVE:
            return ("emergency_left", self.failure_rate(now), now - self._entered)
        return None

    def _shed_above(self, p: int, now: float) -> bool:
        """Whether a more urgent priority was shed of late."""
        return any(now - at <= self._slot for at in self._shed_at[:p])

    def _climb(self, rate: float, elapsed: float) -> None:
        # To take failures from half of the trigger to the trigger, the load has to grow
        # by more than half of the trigger. By a quarter per window an excess fills the
        # window before it could trigger.
        windows = min(elapsed / self._config.window, 100.0)  # more would only overflow
        growth = (1.0 + self._config.trigger_threshold / 4) ** windows
        if rate <= self._config.trigger_threshold / 2:
            self._cap = min(1.0, self._cap * growth)
        else:
            self._cap = max(self._first_cap, self._cap / growth)
        if self._cap == 1.0:
            self.state = EmergencyState.NORMAL

    def _plan(self, counts: list[int]) -> None:
        """Decide which part of each priority's demand passes until the next step."""
        demand = counts[: self._levels]
        requests = sum(demand)
        refusal = max(0.0, (requests - _K * counts[_OK]) / (requests + 1))
        # Silence is no evidence against the sink after an emergency; within one, the
        # sink may hang.
        silent = self.state is EmergencyState.CLIMBING and not counts[_BATCHES]
        self.part = 1.0 if silent else max(self._least, min(self._cap, 1.0 - refusal))
        self._most_owed = _MADE_UP * self._least * requests
        if self.part == 1.0:
            self._passing = [1.0] * self._levels
            return
        budget = max(self._probe, requests * self.part)
        for p, wanted in enumerate(demand):
            self._passing[p] = (
                0.0 if budget <= 0.0 else min(1.0, budget / wanted) if wanted else 1.0
            )
            budget -= wanted


def _failed_part(counts: list[int]) -> float:
    """Of the outcomes in the window, by events or by batches, whichever is less."""
    return min(
        counts[_FAILED] / max(1, counts[_OK] + counts[_FAILED]),
        counts[_FAILED_PARTS] / max(1, _PARTS * counts[_BATCHES]),
    )
