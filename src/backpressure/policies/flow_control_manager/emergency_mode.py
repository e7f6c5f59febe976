"""The emergency mode of flow control: shed the least urgent first, down to what the
sink accepts.

When the failed part of the sink's outcomes reaches `trigger_threshold`, the rate is cut
to `throttle_rate` of itself, and demand is shed, the least urgent first, down to what
the sink has been accepting: the adaptive throttling of "Site Reliability Engineering"
(O'Reilly 2016, chapter 21), p = max(0, (requests - K * accepts) / (requests + 1)), here
over the demand in order of priority. Priority 1 is never shed while a lower one passes;
a hundredth of what the sink was offered when it began always passes, to find out
whether the sink is back. It ends after `min_dwell` at half of the trigger, or when no
failure was seen for a sliding window. The rate then climbs back, slowly enough that a
new excess shows before it would trigger again, and steps back while failures are above
half of the trigger. A mere switch would oscillate: throttling cures the failures that
keep it on. Shedding is a refusal with a `retry_after`, never a drop. While the sink is
not called at all nothing is shed: a full lane then refuses by itself, and room is there
for that.

Not safe for several threads: FlowControlManager calls it under its lock.
"""

from __future__ import annotations

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
# Columns of the outcome window, counted from its end. Before them it has one of demand
# for each priority.
_OUTCOMES = _OK, _FAILED, _REPORTS = -3, -2, -1


@dataclass(frozen=True, kw_only=True, slots=True)
class EmergencyModeConfig:
    """When the emergency mode begins, and what it does."""

    #: False: failures never change what is admitted.
    enabled: bool = True
    #: Failed part of the outcomes at which it begins; it ends at half of that.
    trigger_threshold: float = 0.2
    #: Part of the rate that stays.
    throttle_rate: float = 0.8
    #: Seconds over which outcomes and demand are judged; several calls of a slow sink.
    window: float = 10.0
    #: Seconds that it lasts at least; after one window nothing from before its
    #: beginning counts any more.
    min_dwell: float = 10.0
    #: Events that must have an outcome, reported in two calls at least: one bad batch
    #: is not a bad sink.
    min_samples: int = 20

    def __post_init__(self) -> None:
        check_bool(self, "enabled")
        check_fields(self, float, 1e-6, 1.0, "trigger_threshold", "throttle_rate")
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
    """The estimator: outcomes and demand in, out come `cap`, a part of the rate, and
    what demand passes.
    """

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
        self.window = SlidingCounts(config.window, _OUTCOME_SLOTS, levels + len(_OUTCOMES), now)
        self.state = EmergencyState.NORMAL
        self.cap = 1.0
        #: The sink is not being called: what comes costs it nothing, so nothing is shed
        #: while there is room.
        self.holding = False
        self._passing = [1.0] * levels
        self._credit = [0.0] * levels
        self._probe = 0.0
        self._entered = self._failed_at = self._stepped = now

    def record(self, now: float, ok: int, failed: int) -> None:
        for column, count in ((_OK, ok), (_FAILED, failed), (_REPORTS, 1)):
            self.window.add(now, column, count)
        self._failed_at = now if failed else self._failed_at

    def failure_rate(self, now: float, glance: bool = False) -> float:
        """`glance`: in the middle of another call."""
        counts, _ = self.window.glance(now) if glance else self.window.read(now)
        return counts[_FAILED] / max(1, counts[_OK] + counts[_FAILED])

    def shed(self, p: int, n: int) -> int:
        """How many of n pass. Fractions are kept: of events offered one by one the
        right part passes too.
        """
        if self.holding or self._passing[p] == 1.0:
            return n
        credit = self._credit[p] + n * self._passing[p]
        self._credit[p] = credit % 1.0
        return int(credit)

    def retry_after(self, rng: random.Random) -> float:
        """Seconds until about the next step, spread over the length of one."""
        return (0.5 + rng.random()) * self._config.window / _OUTCOME_SLOTS

    def step(self, now: float) -> Change | None:
        """Look at the outcomes: at any time whether it begins, and everything else once
        per slot.
        """
        config, change = self._config, None
        rate = self.failure_rate(now)
        counts, _ = self.window.read(now)
        enough = counts[_OK] + counts[_FAILED] >= config.min_samples and counts[_REPORTS] >= 2
        elapsed = now - self._stepped
        triggered = config.enabled and enough and rate >= config.trigger_threshold
        if triggered and self.state is not EmergencyState.ACTIVE:
            self.state, self.cap, self._entered = EmergencyState.ACTIVE, config.throttle_rate, now
            self._probe = _PROBE * (counts[_OK] + counts[_FAILED])
            change = ("emergency_entered", config.trigger_threshold, rate)
        elif self.state is EmergencyState.NORMAL or elapsed < config.window / _OUTCOME_SLOTS:
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

    def _climb(self, rate: float, elapsed: float) -> None:
        # To take failures from half of the trigger to the trigger, the load has to grow
        # by more than half of the trigger. By a quarter per window an excess fills the
        # window before it could trigger.
        windows = min(elapsed / self._config.window, 100.0)  # more would only overflow
        growth = (1.0 + self._config.trigger_threshold / 4) ** windows
        if rate <= self._config.trigger_threshold / 2:
            self.cap = min(1.0, self.cap * growth)
        else:
            self.cap = max(self._config.throttle_rate, self.cap / growth)
        if self.cap == 1.0:
            self.state = EmergencyState.NORMAL

    def _plan(self, counts: list[int]) -> None:
        """Decide which part of each priority's demand passes until the next step."""
        demand = counts[: self._levels]
        requests = sum(demand)
        refusal = max(0.0, (requests - _K * counts[_OK]) / (requests + 1))
        # Silence is no evidence against the sink after an emergency; within one, the
        # sink may hang.
        silent = self.state is EmergencyState.CLIMBING and not counts[_REPORTS]
        if self.state is EmergencyState.NORMAL or refusal == 0.0 or silent:
            self._passing = [1.0] * self._levels
            return
        budget = max(self._probe, requests * (1.0 - refusal))
        for p, wanted in enumerate(demand):
            self._passing[p] = (
                0.0 if budget <= 0.0 else min(1.0, budget / wanted) if wanted else 1.0
            )
            budget -= wanted
