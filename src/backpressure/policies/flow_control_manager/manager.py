"""Decides how many of the offered events may enter now: by total rate, by priority, by
what the sink bears.

Total. One token bucket: over any span of time no more is admitted than rate * time +
burst, exactly.

Shares. Each priority has a guaranteed share of the pool and borrows what others leave:
see priority_shares.py.

Delay. While the queue stands, what would wait too long is refused, the least urgent
first: see delay_bound.py.

Prepaid. Single events are admitted ahead, some hundreds at a time: see prepaid.py.

Emergency. When the sink fails too much, demand is shed, the least urgent first: see
emergency_mode.py.

Any thread may call any method, and so may finalisers and signal handlers (see
base/reentry.py). One lock, held for microseconds; `on_change` runs after it was let go.
A call of `admit` that comes in the middle of another one gets what the bucket has.

A clock that goes back counts as one that stood
still for a moment, and goes on from there: nothing is credited twice, and nothing waits
for the clock to catch up.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from backpressure.base.clock import Clock, ForwardClock, MonotonicClock
from backpressure.base.priority import PRIORITY_LEVELS, check_priority
from backpressure.base.reasons import LIMIT_REASONS, LimitReason
from backpressure.base.reentry import Reentry, deferrable
from backpressure.base.validation import (
    as_int,
    check_bool,
    check_fields,
    check_kind,
    check_number,
    check_outcomes,
    count,
)
from backpressure.policies.flow_control_manager.delay_bound import DelayBound
from backpressure.policies.flow_control_manager.emergency_mode import (
    Change,
    EmergencyMode,
    EmergencyModeConfig,
    EmergencyState,
)
from backpressure.policies.flow_control_manager.prepaid import Prepaid, Prepayment
from backpressure.policies.flow_control_manager.priority_shares import PriorityShares
from backpressure.policies.flow_control_manager.sliding_counts import SlidingCounts
from ringbuf import TokenBucket

__all__ = ["FlowControlConfig", "FlowControlManager", "FlowControlMetrics", "Grant"]

# The admitted events are forgotten in sixtieths of their window.
_RATE_SLOTS = 60


def _check_rate(name: str, value: object) -> float:
    return math.inf if value == math.inf else check_number(name, value, float, 0, 10**12)


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowControlConfig:
    """What a FlowControlManager admits."""

    #: Events per second in total, up to 1e12, or inf for no limit; with 0 only the
    #: burst is ever admitted.
    max_events_per_second: float = 20_000_000
    #: Events that may enter at one moment.
    burst_size: int = 2_000_000
    #: Seconds over which `rate()` is measured.
    sliding_window_size: float = 60.0
    #: False: everything is granted, and counted all the same.
    throttle_enabled: bool = True
    #: How many priorities there are, 1 to 5. In a buffer each has a lane of its own.
    priority_levels: int = PRIORITY_LEVELS
    #: Seconds that an event may wait in a queue that stands; bursts may wait twice as
    #: long. What would wait longer is refused, least urgent first. None: only a full
    #: lane refuses, for who gave the memory wants it used.
    delay_target: float | None = None
    emergency_mode: EmergencyModeConfig = field(default_factory=EmergencyModeConfig)

    def __post_init__(self) -> None:
        rate = _check_rate("max_events_per_second", self.max_events_per_second)
        object.__setattr__(self, "max_events_per_second", rate)
        check_fields(self, int, 1, 2**60, "burst_size")
        check_fields(self, float, 1e-3, 86_400.0, "sliding_window_size")
        check_bool(self, "throttle_enabled")
        if self.delay_target is not None:
            check_fields(self, float, 1e-3, 86_400.0, "delay_target")
        check_fields(self, int, 1, PRIORITY_LEVELS, "priority_levels")
        check_kind(self, EmergencyModeConfig, "emergency_mode")


@dataclass(frozen=True, slots=True)
class Grant:
    """The answer to one `admit`."""

    #: How many of the events may enter, counted from the first.
    granted: int
    #: Seconds until at least one more could be granted: 0 where all were, inf where the
    #: rate is 0.
    retry_after: float = 0.0
    #: Why not all; None: all may.
    reason: LimitReason | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowControlMetrics:
    """A snapshot. Tuples have a number for each of `priority_levels`, the most urgent
    first.
    """

    #: Events per second in total: as set, and the part of that which passes where as
    #: many are offered: less in an emergency and for a while after it.
    rate_limit: float
    rate_in_force: float
    burst: int
    #: Events that could enter at this moment; inf without a limit.
    tokens: float
    emergency: bool
    #: Failed part of the outcomes in the window of the emergency mode, by events or by
    #: batches, whichever is less; 0 where there are none.
    failure_rate: float
    #: Events admitted, less those given back, since the start.
    admitted: tuple[int, ...]
    #: Events admitted per second over the sliding window.
    rates: tuple[float, ...]
    #: Events per second that the sink takes, as far as measured for `delay_target`; 0
    #: where it is not.
    sink_rate: float
    #: Whether the queue stands, so that `delay_target` holds.
    standing: bool
    #: Events refused since the start, by reason; counted again when they are offered
    #: again.
    refused: dict[str, int]


class FlowControlManager:
    """Admits events by total rate, by priority, and by what the sink bears.

    `on_change(what, old, new)` hears "rate_changed" (events per second),
    "emergency_entered" (the threshold; the failure rate) and "emergency_left" (the
    failure rate; seconds since it was entered). What it raises reaches the caller.
    `rng` spreads the `retry_after` of what is shed: not all come back at once.
    """

    def __init__(
        self,
        config: FlowControlConfig | None = None,
        *,
        clock: Clock | None = None,
        on_change: Callable[[str, float, float], object] | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.config = config = config if config is not None else FlowControlConfig()
        self._clock = ForwardClock(clock if clock is not None else MonotonicClock())
        self._now = self._clock.now
        self._on_change = on_change
        self._rng = rng if rng is not None else random.Random()
        self._reentry = reentry = Reentry(self._start_over)
        self._lock, self._within = reentry.lock, reentry.within
        self._deferred = reentry.deferred
        now = self._now()
        self._levels = levels = config.priority_levels
        self._throttled = config.throttle_enabled
        self._limit = float(config.max_events_per_second)
        self._burst = config.burst_size
        # Its burst is less by what purses hold.
        self._bucket = TokenBucket(self._limit, self._burst, now_ns=int(now * 1e9))
        self._prepaid = Prepaid()
        self._shares = PriorityShares(config.burst_size, now, levels)
        self._emergency = EmergencyMode(
            config.emergency_mode, config.sliding_window_size, now, levels
        )
        target = config.delay_target
        self._bound = (
            DelayBound(target, now, levels) if target is not None and self._throttled else None
        )
        self._window = SlidingCounts(config.sliding_window_size, _RATE_SLOTS, levels, now)
        self._admitted = [0] * levels
        # Until when nothing expires in either window.
        self._fresh_until = min(self._window.until, self._emergency.window.until)
        # Tokens that the bucket holds at least: what it held when it was last asked,
        # less what was taken since.
        self._sure = 0.0
        self._refused: dict[str, int] = dict.fromkeys(LIMIT_REASONS, 0)
        # The last full grant of each priority: callers ask for the same number again
        # and again.
        self._full = [Grant(0)] * levels

    def admit(self, n: int, priority: int) -> Grant:
        """How many of `n` events of `priority` may enter now. ValueError where n is
        negative, InvalidEvents for a priority beyond `priority_levels`.
        """
        # Also called once per event: the common case is kept short, with what it needs
        # in line.
        p = (
            priority
            if type(priority) is int and 0 < priority <= self._levels
            else check_priority(priority, self._levels)
        ) - 1
        if type(n) is not int or n < 0:
            n = count("n", n)
        if self._within():
            return self._admit_within(n, p)
        change = None
        with self._lock:
            now = self._now()
            emergency, window = self._emergency, self._window
            demand = emergency.window
            if now >= self._fresh_until:
                self._expire(now)
            demand.row[p] += n
            grant = self._full[p]
            if grant.granted != n:
                grant = self._full[p] = Grant(n)
            if self._throttled:
                if emergency.state is not EmergencyState.NORMAL:
                    change = self._step(now)
                    passed = emergency.shed(p, n, now)
                    if passed < n:
                        grant = Grant(passed, emergency.retry_after(self._rng), "emergency")
                bound = self._bound
                if bound is not None and bound.armed:
                    passed = bound.limit(p, grant.granted)
                    if passed < grant.granted:
                        # Spread, so that not all who were refused come back at once.
                        grant = Grant(
                            passed, bound.retry_after(p) * self._rng.uniform(0.5, 1.5), "delay"
                        )
                now_ns = int(now * 1e9)
                if self._sure - grant.granted < self._shares.reserve:
                    self._sure = self._bucket.tokens_at(now_ns)
                if self._sure - grant.granted >= self._shares.reserve:
                    self._bucket.try_acquire_at(now_ns, grant.granted)
                    self._shares.fill(p, now)
                else:
                    grant = self._share_out(p, grant, now, now_ns, self._sure)
                self._sure -= grant.granted
                if bound is not None and bound.armed:
                    bound.fill(p, grant.granted)
            granted = grant.granted
            if granted != n and grant.reason is not None:
                self._refused[grant.reason] += n - granted
            self._admitted[p] += granted
            window.row[p] += granted
        if change is not None:
            self._announce(change)
        if self._deferred:
            self._reentry.apply()
        return grant

    def admit_whole(self, n: int, priority: int) -> bool:
        """Admit all of `n` events of `priority` or none, for a caller that guesses how
        many it has and gives back what it did not need.

        True where the tokens suffice for all priorities, and nothing is shed or refused
        for its delay. False is no refusal and leaves no trace: the events are to be
        counted, and `admit` decides. ValueError where n is negative, InvalidEvents for
        a priority beyond `priority_levels`.
        """
        p = check_priority(priority, self._levels) - 1
        n = count("n", n)
        if self._within():
            return False
        with self._lock:
            now = self._now()
            granted = not self._throttled or self._take_whole(n, p, now)
            if granted:
                self._emergency.window.add(now, p, n)
                self._window.add(now, p, n)
                self._admitted[p] += n
        if self._deferred:
            self._reentry.apply()
        return granted

    def _admit_within(self, n: int, p: int) -> Grant:
        """As `admit`, in the middle of another call: the bucket alone can be asked."""
        grant = Grant(n)
        if self._throttled:
            now_ns = int(self._clock.glance() * 1e9)
            granted = self._bucket.acquire_up_to_at(now_ns, n)
            if granted < n:
                grant = Grant(granted, self._bucket.retry_after_at(now_ns, 1), "rate")
        self._deferred.append(functools.partial(self._book, n, p, grant.granted))
        return grant

    @deferrable
    def _book(self, n: int, p: int, granted: int) -> None:
        """Count what `_admit_within` granted."""
        with self._lock:
            now = self._now()
            self._emergency.window.add(now, p, n)
            self._window.add(now, p, granted)
            self._admitted[p] += granted
            self._refused["rate"] += n - granted
            self._sure = 0.0
            if self._bound is not None and self._bound.armed:
                self._bound.fill(p, granted)

    @deferrable
    def give_back(self, n: int, priority: int) -> None:
        """Return `n` events that were granted and not used: tokens, claim, rate and
        demand are as if they had not been asked for. ValueError where n is negative or
        more than was granted.
        """
        p = check_priority(priority, self._levels) - 1
        number = n if type(n) is int else as_int(n)
        with self._lock:
            now = self._now()
            if number is None or not 0 <= number <= self._admitted[p]:
                raise ValueError(
                    f"n must be from 0 to the {self._admitted[p]:,} granted, not {n!r}"
                )
            n = number
            self._admitted[p] -= n
            self._window.take(now, p, n)
            self._emergency.window.take(now, p, n)
            if self._throttled:
                self._bucket.give_back_at(int(now * 1e9), n)
                self._shares.give_back(p, n)
                if self._bound is not None:
                    self._bound.fill(p, -n)

    # ------------------------------------------------------------ single events

    def prepayment(self, owner: object, priority: int) -> Prepayment:
        """A purse for the single events of `owner`, with nothing in it yet: see
        `prepay`. What is in it comes back some time after the owner is gone.
        """
        p = check_priority(priority, self._levels) - 1
        prepayment = Prepayment(owner, p)
        self._prepaid.all.append(prepayment)  # atomic
        return prepayment

    def prepay(self, prepayment: Prepayment) -> None:
        """Fill a purse, if events of its priority are admitted without any ado; else
        each is for `admit`.
        """
        if self._within():
            return
        with self._lock:
            now = self._now()
            now_ns = int(now * 1e9)
            self._expire(now)
            self._book_used(prepayment)
            p = prepayment.p
            n = 0 if prepayment.ended else self._prepaid.wanted(prepayment, self._burst, now)
            if n and (not self._throttled or self._take_whole(n, p, now)):
                # At once: what is held is in the purse, also where a handler raises.
                self._prepaid.held += n
                prepayment.purse.put(n)
            self._settle_burst(now_ns)
        if self._deferred:
            self._reentry.apply()

    def recall(self, prepayment: Prepayment | None = None) -> None:
        """Take back what that purse holds, for good; None: what all of them hold, which
        may be filled again.
        """
        self._recall_prepaid(prepayment)

    @deferrable
    def _recall_prepaid(self, prepayment: Prepayment | None) -> None:
        with self._lock:
            now = self._now()
            if prepayment is None:
                self._empty_purses(now)
            else:
                prepayment.ended = True
                self._empty(prepayment, now)
                if prepayment in self._prepaid.all:
                    self._prepaid.all.remove(prepayment)
                self._settle_burst(int(now * 1e9))

    def observe(
        self,
        waiting: Sequence[int],
        taken: Sequence[int],
        *,
        enough: int,
        calling: bool = True,
        spills: bool = False,
        room_short: bool = True,
    ) -> bool:
        """Report the queue, ten times within `delay_target` or more. Returns whether
        events are refused for their delay now: a queue that is short for that reason is
        not the end of an overload. ValueError without `priority_levels` numbers each.

        waiting, taken: events that wait, and that consumers have taken so far, by
            priority, the most urgent first.
        enough: events that keep the consumers busy until the next report: two and a
            half batches.
        calling: whether the sink is being called at all, the circuit being closed. If
            not, then nothing is refused or shed for its sake: what comes may as well
            wait in the room that there is.
        spills: whether what would wait too long can be kept on disk. Then nothing is
            refused for its delay, or shed, either.
        room_short: whether what comes may find no room before the sink is well again.
            If not, then there is no emergency, however much the sink fails.
        """
        if not len(waiting) == len(taken) == self._levels:
            raise ValueError(
                f"waiting and taken must have {self._levels} numbers each, "
                f"not {len(waiting)} and {len(taken)}"
            )
        bound = self._bound
        if self._within():
            self._deferred.append(
                functools.partial(
                    self.observe,
                    tuple(waiting),
                    tuple(taken),
                    enough=enough,
                    calling=calling,
                    spills=spills,
                    room_short=room_short,
                )
            )
            return bound is not None and bound.refused(1.0)
        refusing = False
        with self._lock:
            now = self._now()
            self._book_prepaid(now)
            self._emergency.holding = spills or not calling or not room_short
            change = self._step(now) if self._emergency.holding else None
            if bound is not None:
                bound.look(now, waiting, taken, enough, calling and not spills)
                if bound.armed:
                    self._empty_purses(now)  # each event is judged
                refusing = bound.refused(1.0)
        self._announce(change)
        if self._deferred:
            self._reentry.apply()
        return refusing

    @deferrable
    def record_outcome(self, ok: int, failed: int) -> None:
        """Report how many events of a batch the sink took, and failed. The buffer's
        own refusals are no outcomes.
        """
        ok, failed = check_outcomes(ok, failed)
        with self._lock:
            now = self._now()
            self._emergency.record(now, ok, failed)
            change = self._step(now)
        self._announce(change)

    def set_rate(self, rate: float) -> None:
        """Change the total rate (events per second, 0 to 1e12, or inf) at once, or
        raise ConfigError.
        """
        self._set_rate(_check_rate("rate", rate))

    @deferrable
    def _set_rate(self, rate: float) -> None:
        with self._lock:
            old, self._limit = self._limit, float(rate)
            now = self._now()
            self._empty_purses(now)
            self._shares.settle(now, old)
            self._bucket.set_rate_at(int(now * 1e9), self._limit)
            self._sure = 0.0
        if old != rate:
            self._announce(("rate_changed", old, float(rate)))

    def set_burst(self, burst: int) -> None:
        """Change how many events may enter at one moment (1 to 2**60), or raise
        ConfigError.
        """
        self._set_burst(int(check_number("burst", burst, int, 1, 2**60)))

    @deferrable
    def _set_burst(self, burst: int) -> None:
        with self._lock:
            now = self._now()
            self._empty_purses(now)
            self._shares.settle(now, self._bucket.rate)
            self._shares.resize(burst)
            self._burst = burst
            self._settle_burst(int(now * 1e9))

    def rate(self, priority: int | None = None) -> float:
        """Admitted events per second over the sliding window, or since the start while
        that is less.
        """
        p = None if priority is None else check_priority(priority, self._levels) - 1
        if self._within():
            counts, seconds = self._window.glance(self._clock.glance())
        else:
            with self._lock:
                now = self._now()
                self._book_prepaid(now)
                counts, seconds = self._window.read(now)
            if self._deferred:
                self._reentry.apply()
        return (sum(counts) if p is None else counts[p]) / seconds

    @property
    def emergency(self) -> bool:
        """Whether the emergency mode is on. It can end by mere time, so this reads the
        clock.
        """
        if self._within():
            return self._emergency.state is EmergencyState.ACTIVE
        with self._lock:
            change = self._step(self._now())
            active = self._emergency.state is EmergencyState.ACTIVE
        self._announce(change)
        if self._deferred:
            self._reentry.apply()
        return active

    def metrics(self) -> FlowControlMetrics:
        """A snapshot of everything."""
        active = self.emergency
        if self._within():
            return self._metrics(self._clock.glance(), active, glance=True)
        with self._lock:
            now = self._now()
            self._book_prepaid(now)
            metrics = self._metrics(now, active)
        if self._deferred:
            self._reentry.apply()
        return metrics

    def _announce(self, change: Change | None) -> None:
        if change is not None and self._on_change is not None:
            self._on_change(*change)

    def _start_over(self) -> None:
        """In a forked child, where another thread was changing this: what was set and
        counted stays, what was measured is measured anew.
        """
        now = self._now()
        self._window.start_over(now)
        self._emergency.window.start_over(now)
        self._fresh_until = min(self._window.until, self._emergency.window.until)
        self._shares = PriorityShares(self._burst, now)
        if self._bound is not None:
            self._bound = DelayBound(self._bound.target, now)
        self._sure = 0.0

    # From here on: with the lock held.

    def _metrics(self, now: float, active: bool, glance: bool = False) -> FlowControlMetrics:
        counts, seconds = self._window.glance(now) if glance else self._window.read(now)
        return FlowControlMetrics(
            rate_limit=self._limit,
            rate_in_force=self._limit * self._emergency.part,
            burst=self._burst,
            tokens=self._bucket.tokens_at(int(now * 1e9)) + self._prepaid.held,
            emergency=active,
            failure_rate=self._emergency.failure_rate(now, glance),
            admitted=tuple(self._admitted),
            rates=tuple(count / seconds for count in counts),
            sink_rate=self._bound.rates[0] if self._bound is not None else 0.0,
            standing=self._bound is not None and self._bound.standing,
            refused=dict(self._refused),
        )

    def _step(self, now: float) -> Change | None:
        if not self._throttled:
            return None
        change = self._emergency.step(now)
        if change is not None and self._emergency.state is EmergencyState.ACTIVE:
            self._empty_purses(now)
        return change

    def _expire(self, now: float) -> None:
        window, demand = self._window, self._emergency.window
        window.expire(now)
        demand.expire(now)
        self._fresh_until = min(window.until, demand.until)

    def _book_used(self, prepayment: Prepayment) -> None:
        """Count what was used of a purse; nothing in the windows expires now."""
        used = prepayment.purse.used - prepayment.booked
        # At once:
        prepayment.booked += used
        self._prepaid.held -= used
        self._admitted[prepayment.p] += used
        self._window.row[prepayment.p] += used
        self._emergency.window.row[prepayment.p] += used

    def _book_prepaid(self, now: float) -> None:
        """Count what was used of all purses, and take back what nobody can use."""
        prepaid = self._prepaid
        if not prepaid.all:
            return
        self._expire(now)
        for prepayment in prepaid.all.copy():
            if prepayment.owner() is None:
                self._empty(prepayment, now)
                prepaid.all.remove(prepayment)
            else:
                self._book_used(prepayment)
        prepaid.count_held()
        self._settle_burst(int(now * 1e9))

    def _empty(self, prepayment: Prepayment, now: float) -> None:
        """Take back what a purse holds, and count what was used of it."""
        self._expire(now)
        unused = prepayment.purse.take_unused()
        self._prepaid.held -= unused
        self._book_used(prepayment)
        if unused and self._throttled:
            self._settle_burst(int(now * 1e9))
            self._bucket.give_back_at(int(now * 1e9), unused)
            self._shares.give_back(prepayment.p, unused)

    def _empty_purses(self, now: float) -> None:
        for prepayment in self._prepaid.all.copy():
            self._empty(prepayment, now)
        self._settle_burst(int(now * 1e9))

    def _settle_burst(self, now_ns: int) -> None:
        """Keep what purses hold out of the bucket.

        What they hold is told from counts of several threads: without a GIL it may be
        short by an event that a thread has in hand, even below 0.
        """
        burst = min(self._burst, max(1, self._burst - self._prepaid.held))
        if burst != self._bucket.burst:
            self._sure = 0.0
            self._bucket.set_burst_at(now_ns, burst)

    def _take_whole(self, n: int, p: int, now: float) -> bool:
        """Take n tokens where that is nothing to think about; False: none are taken."""
        bound, reserve = self._bound, self._shares.reserve
        if self._emergency.state is not EmergencyState.NORMAL or (
            bound is not None and bound.armed
        ):
            return False
        now_ns = int(now * 1e9)
        if self._sure - n < reserve:
            self._sure = self._bucket.tokens_at(now_ns)
            if self._sure - n < reserve:
                return False
        # First: where a handler raises in between, less is sure than there is.
        self._sure -= n
        self._bucket.try_acquire_at(now_ns, n)
        self._shares.fill(p, now)
        return True

    def _share_out(self, p: int, wanted: Grant, now: float, now_ns: int, tokens: float) -> Grant:
        """Grant what the shares leave of `wanted`: the pool is too low for each
        priority to be sure of its own.
        """
        rate = self._bucket.rate
        offer = min(wanted.granted, self._shares.offer(p, now, tokens, rate))
        granted = self._bucket.acquire_up_to_at(now_ns, offer)
        wait = self._shares.take(p, granted, rate)
        if granted == wanted.granted:
            return wanted
        reason: LimitReason = "rate" if granted < offer or tokens - granted < 1.0 else "share"
        return Grant(granted, max(wait, self._bucket.retry_after_at(now_ns, 1)), reason)
