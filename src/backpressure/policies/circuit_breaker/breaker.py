"""A circuit breaker: stop calling what fails, and find out with a few probes when it
works again.

    state        admits                            results of its own permits
    CLOSED       every call; while ramping up a    fill the rolling windows, or add to
                 growing share of them             the evidence: either may trip the
                                                   breaker
    OPEN         none, until the open time is      a success of a canary leads to
                 over; with `canary` then single   HALF_OPEN
                 calls; and one at once for who
                 cannot wait
    HALF_OPEN    `half_open_requests` probes       decide: CLOSED, or OPEN again
    FORCED_OPEN  none, until `reset()`             -
    DISABLED     every call                        fill the windows, change nothing

Invariants
 1. A permit belongs to the generation of the state that gave it. Every change of state
    starts a new generation; a result from an earlier one is counted in the metrics and
    touches neither window nor state.
 2. A permit has one result. Any further report for it is counted as a duplicate and
    does nothing.
 3. In HALF_OPEN, probes that are out plus probe results never exceed
    `half_open_requests`. An ignored probe gives its slot back. A probe has a lease:
    once that is over and no slot is free, the next caller takes its slot and its result
    is late. So a probe that never answers cannot hold the breaker in HALF_OPEN. One
    whose permit is dropped (a batch that is neither acked nor nacked) gives its slot
    back at once.
 4. HALF_OPEN is decided by `min(min_requests, half_open_requests)` results: enough to
    judge by, and reachable. It opens again as soon as enough of them have failed
    that the rate cannot come out below its threshold. The sequential law decides it
    sooner, either way, where the results leave no doubt.
 5. Nothing happens by itself: an open breaker becomes HALF_OPEN in the `try_acquire`
    that finds the open time over, and `state` shows OPEN until then. With `canary` that
    call only goes as one, and after it, answered or not, the next one each
    `reset_timeout / half_open_requests`; the first that succeeds counts as the first
    probe. So never more calls than probes go to a dead callee within a reset timeout,
    and its return shows within a second or two. By the sequential law the next one goes
    after the next open time. `try_acquire_now` gives one before its time, if none is
    out.
 6. Time never runs backwards in here: a clock that steps back counts as one that stood
    still.
 7. A call takes the lock unless nothing it can do would change the state: see
    fast_path.py.

Two laws say when to open and what probes have shown, the one by letter and the other
on evidence: see share.py and sequential.py. Each has its open times: see reset_time.py.

After the probes have closed it, a breaker with a `ramp_up_time` admits a share that
grows evenly from a tenth to all: every tenth call at first, every second one half-way.
A lone caller that waits `retry_after` is admitted when it comes back, however few
others ask.

A call within a call that was let through as a probe or canary of the same breaker is a
part of it: it is let through too, and the outer one decides.

Safe for any thread and any task, for finalisers and signal handlers (see
base/reentry.py), and across a fork. The lock is held for a few attribute updates, never
while the caller's function or `on_change` runs; calls of `on_change` from two threads
may therefore overlap.
"""

from __future__ import annotations

import logging
import math
import random
import weakref
from collections.abc import Callable
from typing import Final

from backpressure.base.clock import Clock, ForwardClock, MonotonicClock
from backpressure.base.reentry import Reentry, deferrable
from backpressure.base.validation import check_outcomes
from backpressure.policies.circuit_breaker.blocks import LEFT, held
from backpressure.policies.circuit_breaker.config import CircuitBreakerConfig
from backpressure.policies.circuit_breaker.fast_path import FastPath
from backpressure.policies.circuit_breaker.guard import Guard
from backpressure.policies.circuit_breaker.metrics import CircuitBreakerMetrics
from backpressure.policies.circuit_breaker.permit import (
    Canary,
    InnerPermit,
    Outcome,
    Permit,
    Probe,
    fill,
)
from backpressure.policies.circuit_breaker.probes import Probes
from backpressure.policies.circuit_breaker.ramp import Ramp
from backpressure.policies.circuit_breaker.reset_time import OutageTime, ResetTime
from backpressure.policies.circuit_breaker.sequential import SequentialLaw
from backpressure.policies.circuit_breaker.share import ShareLaw
from backpressure.policies.circuit_breaker.state import NEXT, Cause, State
from backpressure.policies.circuit_breaker.windows import CountWindow, TimeWindow

__all__ = ["CircuitBreaker"]

_log = logging.getLogger("backpressure")

# Of probes that are out most answer long before their lease ends: ask again after this
# part of the interval.
_GLANCES: Final = 10

_Change = tuple[State, State, str]


class CircuitBreaker(Guard):
    """Admits or refuses calls by how earlier ones went.

    `clock` gives the time, `rng` the jitter. `on_change(old, new, reason)` is called
    after every change of state, in the thread that caused it, with no lock held; an
    exception out of it is logged.

    As a context manager (`with`, `async with`) and as a decorator of a plain or `async`
    function it raises CircuitOpenError instead of admitting, and reports by the
    exception that leaves the block; where a function returns an awaitable or a future,
    by how that ends. A timeout that should count as a failure belongs
    inside the block: from outside it arrives as a cancellation, which is ignored.
    """

    def __init__(
        self,
        config: CircuitBreakerConfig | None = None,
        *,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        on_change: Callable[[State, State, str], object] | None = None,
    ) -> None:
        self.config: Final = config if config is not None else CircuitBreakerConfig()
        clock = clock if clock is not None else MonotonicClock()
        # Bound once: an attribute look-up less for every call.
        self._read = clock.now
        self._clock: Final = ForwardClock(clock)
        self._on_change = on_change
        self._reentry = reentry = Reentry(self._start_over)
        self._lock = reentry.lock

        cfg = self.config
        self._state = State.CLOSED
        self._since = now = self._clock.now()  # when the present state was entered
        self._open_until = 0.0
        rng = rng if rng is not None else random.Random()
        self._reset_time: ResetTime | OutageTime = (
            OutageTime(cfg, rng) if cfg.is_sequential else ResetTime(cfg, rng)
        )
        self._set_law(now)
        self._canary: weakref.ref[Canary] | None = None  # the latest
        self._probes = Probes(cfg.half_open_requests, cfg.probe_lease)
        self._ramp: Ramp | None = None
        # One for each generation; changed under the lock, read without it.
        self._fast_path = FastPath(self, generation=0)

        self._admitted = self._rejected = 0
        self._succeeded = self._failed = self._ignored = self._slow = 0
        self._late = self._duplicates = self._trips = 0
        self._set_fast_path(now)

    # --- permits

    def try_acquire(self) -> Permit | None:
        """Leave for one call, or None where the breaker lets nothing through now (see
        `retry_after`).
        """
        fast_path = self._fast_path
        try:
            fast_path.admissions.pop()
        except IndexError:
            pass  # `_admit` from in here would have this as the context of errors in `on_change`
        else:
            permit = Permit()  # filled in here, as one call more would cost a tenth of all
            permit._answer = [None]
            permit._fast_path = fast_path
            return permit
        return self._admit()

    def try_acquire_now(self) -> Permit | None:
        """As `try_acquire`, but OPEN gives a canary at once, whatever is left of the
        open time, and with any config: for who cannot wait, as a flush or a close with
        a deadline.

        One at a time: None while a canary is out that is neither answered nor dropped,
        unless its turn has come. Its success leads to HALF_OPEN, as that of any canary.
        FORCED_OPEN refuses this too, and HALF_OPEN keeps its number of probes.
        """
        fast_path = self._fast_path
        try:
            fast_path.admissions.pop()
        except IndexError:
            pass
        else:
            return fill(Permit(), fast_path)
        return self._admit(now_or_never=True)

    def retry_after(self) -> float:
        """Seconds until it is worth asking again; 0.0 where a call would be admitted
        now.

        Exact while OPEN; while ramping up, as long as no other caller asks before. With
        every probe slot taken it is the time to the end of the oldest lease, at most a
        tenth of `monitoring_interval`, as probes mostly answer long before. FORCED_OPEN
        has no known end: `reset_timeout`, as a pace to poll at.
        """
        if self._reentry.within():
            return self._wait(self._clock.glance())
        with self._lock:
            now = self._now()
            self._probes.collect()
            wait = self._wait(now)
        if self._reentry.deferred:
            self._reentry.apply()
        return wait

    def record_many(self, ok: int, failed: int) -> None:
        """Count results of calls without a permit, such as the parts of a batch;
        ValueError if negative.

        They can trip a closed breaker. In other states they feed the metrics only:
        probes alone decide HALF_OPEN.
        """
        ok, failed = check_outcomes(ok, failed)
        if ok or failed:
            self._record_many(ok, failed)

    # --- by hand

    def reset(self) -> None:
        """To CLOSED with an empty window and all trips forgotten; also ends FORCED_OPEN
        and DISABLED.
        """
        self._command(Cause.RESET, "reset by hand")

    def force_open(self) -> None:
        """Refuse every call until `reset()`."""
        self._command(Cause.FORCED, "forced open by hand")

    def disable(self) -> None:
        """Admit every call, whatever happens, until `reset()`; results are still
        counted.
        """
        self._command(Cause.DISABLED, "disabled by hand")

    # --- reading

    @property
    def state(self) -> State:
        """The state. OPEN stays OPEN until an acquire finds the open time over: reading
        changes nothing.
        """
        return self._state

    def metrics(self) -> CircuitBreakerMetrics:
        """A frozen snapshot; what is too old for the window is dropped first."""
        if self._reentry.within():
            return self._metrics(self._clock.glance())
        with self._lock:
            now = self._catch_up()
            self._set_fast_path(now)
            metrics = self._metrics(now)
        if self._reentry.deferred:
            self._reentry.apply()
        return metrics

    def __repr__(self) -> str:
        return f"<CircuitBreaker {self._state.name} generation={self._fast_path.generation}>"

    # --- below: what is called with the lock held

    def _set_law(self, now: float) -> None:
        """Begin anew to count results, and to judge by them."""
        cfg = self.config
        self._window = TimeWindow(cfg.monitoring_interval, now)
        self._last = CountWindow(cfg.window_size) if cfg.window_size is not None else None
        self._law: ShareLaw | SequentialLaw = (
            SequentialLaw(cfg, self._window)
            if cfg.is_sequential
            else ShareLaw(cfg, self._window, self._last)
        )
        # What each result is added to.
        self._counts = tuple(
            one for one in (self._window, self._last, self._law) if one is not None
        )

    def _metrics(self, now: float) -> CircuitBreakerMetrics:
        window, last, probes = self._window, self._last, self._probes
        return CircuitBreakerMetrics(
            state=self._state,
            generation=self._fast_path.generation,
            window_calls=window.calls,
            window_failures=window.failed,
            window_slow=window.slow,
            last_calls=last.calls if last is not None else 0,
            last_failures=last.failed if last is not None else 0,
            last_slow=last.slow if last is not None else 0,
            failure_rate=window.failed / window.calls if window.calls else 0.0,
            slow_call_rate=window.slow / window.calls if window.calls else 0.0,
            probes_out=probes.out,
            probe_results=probes.results,
            probe_failures=probes.failed,
            admitted=self._admitted,
            rejected=self._rejected,
            succeeded=self._succeeded,
            failed=self._failed,
            ignored=self._ignored,
            slow=self._slow,
            late=self._late,
            duplicates=self._duplicates,
            lost_probes=probes.lost,
            trips=self._trips,
            remembered_trips=self._reset_time.remembers(self._healthy(now)),
            open_time=self._reset_time.last,
            admitted_share=self._share(now),
            retry_after=self._wait(now),
        )

    def _now(self) -> float:
        """The clock, made to never run backwards. Read under the lock: readings are in
        the order of use.
        """
        clock = self._clock
        lag = clock.lag
        now = clock.now()
        if clock.lag != lag:
            self._fast_path.until = -math.inf  # it has to be told anew
        return now

    def _catch_up(self) -> float:
        """The time, and the windows and probes as of it, with all that went through the
        fast path.
        """
        now = self._now()
        self._take(self._fast_path.count())
        self._window.roll(now)
        self._law.rolled()
        self._probes.collect()
        if self._ramp is not None and now >= self._ramp.until:
            self._ramp = None
        return now

    def _take(self, passed: tuple[int, int]) -> None:
        """Count what went through the fast path."""
        admitted, succeeded = passed
        self._admitted += admitted
        self._succeeded += succeeded
        if succeeded:
            self._add(succeeded, 0, 0)

    def _add(self, calls: int, failed: int, slow: int) -> None:
        for one in self._counts:
            one.add(calls, failed, slow)

    def _set_fast_path(self, now: float) -> None:
        """Have it open exactly while no success could change the state or needs to be
        timed.
        """
        watched = self._ramp is not None or self.config.slow_call_duration is not None
        if self._state is not State.CLOSED or watched or not self._law.is_calm:
            self._take(self._fast_path.shut())
        else:
            lag = self._clock.lag  # the fast path reads the clock as it is
            self._fast_path.open(now - lag, self._window.until - lag)

    def _share(self, now: float) -> float:
        if self._state is State.CLOSED:
            return self._ramp.share(now) if self._ramp is not None else 1.0
        return 1.0 if self._state is State.DISABLED else 0.0

    def _wait(self, now: float) -> float:
        if self._state is State.OPEN:
            return max(0.0, self._open_until - now)
        if self._state is State.FORCED_OPEN:
            return self.config.reset_timeout
        if self._state is State.HALF_OPEN:
            return self._probes.wait(now, self.config.monitoring_interval / _GLANCES)
        if self._ramp is not None:
            return self._ramp.wait(now)
        return 0.0

    def _judge(self, now: float) -> _Change | None:
        """Trip where the law says so. Called after results, in CLOSED and DISABLED."""
        if self._state is not State.CLOSED:
            return None
        if not self._law.is_calm:
            self._take(
                self._fast_path.shut()
            )  # so that no success slips by between the verdict and what it rests on
        why = self._law.verdict(now, self._since)
        return self._go(Cause.TRIPPED, now, why) if why is not None else None

    def _judge_probes(self, now: float) -> _Change | None:
        """Leave HALF_OPEN where its results decide."""
        probes = self._probes
        verdict = self._law.of_probes(probes.results, probes.failed, probes.slow)
        if verdict is None:
            return None
        passed, why = verdict
        return self._go(Cause.PROBES_PASSED if passed else Cause.PROBES_FAILED, now, why)

    def _go(self, cause: Cause, now: float, reason: str) -> _Change:
        """Change state by the table, and set up what the new state starts with."""
        old = self._state
        new = NEXT[old, cause]
        self._take(self._fast_path.shut())
        ramps = cause is Cause.PROBES_PASSED and self.config.ramp_up_time > 0.0
        self._ramp = Ramp(now, self.config.ramp_up_time) if ramps else None
        if new is State.OPEN:
            answered = self._probes.failed < self._probes.results
            healthy = now - self._since if old is State.CLOSED else None
            self._open_until = now + self._reset_time.trip(now, healthy, answered)
            self._trips += 1
        elif new is State.CLOSED or new is State.DISABLED:
            for one in self._counts:
                one.clear()
            if cause is Cause.RESET:
                self._reset_time.forget()
        self._canary = None
        self._probes.clear()
        self._state = new
        self._fast_path = FastPath(self, self._fast_path.generation + 1)
        self._since = now
        return old, new, reason

    def _is_canary_out(self) -> bool:
        canary = self._canary() if self._canary is not None else None
        return canary is not None and not canary._done

    def _send_canary(self, now: float) -> Permit:
        canary = fill(Canary(), self._fast_path, now)
        canary._due = self._open_until
        self._canary = weakref.ref(canary)
        if self.config.canary:
            # Whatever becomes of it: answered or not, the next one has its time.
            self._open_until = now + self._reset_time.looked(now)
        return canary

    def _healthy(self, now: float) -> float:
        """Seconds spent in CLOSED until now; 0.0 in other states."""
        return now - self._since if self._state is State.CLOSED else 0.0

    def _is_within_call(self) -> bool:
        """Whether this is called within a call that was let through in this generation,
        and has neither been answered nor lost its slot.
        """
        permit = held.get()
        while permit is not None:
            if permit._frame is not LEFT and permit._fast_path is self._fast_path:
                number = permit._number
                if not permit._done and (number is None or self._probes.has(number)):
                    return True
            permit = permit._outer
        return False

    # --- below: what takes the lock itself

    def _admit(self, *, now_or_never: bool = False) -> Permit | None:
        """As `try_acquire`, or `try_acquire_now`, under the lock."""
        if self._reentry.within():
            return self._admit_within()
        change: _Change | None = None
        permit: Permit | None = None
        with self._lock:
            now = self._catch_up()
            if self._state is State.OPEN:
                waited = now >= self._open_until
                if waited and not self.config.canary:
                    change = self._go(Cause.WAITED, now, "the open time is over")
                elif waited or (now_or_never and not self._is_canary_out()):
                    permit = self._send_canary(now)
            self._set_fast_path(now)
            state = self._state
            if state is State.HALF_OPEN:
                number = self._probes.take(now)
                if number is not None:
                    probe = Probe()
                    probe._number = number
                    permit = fill(probe, self._fast_path, now)
            elif state is State.DISABLED or (
                state is State.CLOSED and (self._ramp is None or self._ramp.admits(now))
            ):
                permit = fill(Permit(), self._fast_path, now)
            if permit is None and self._is_within_call():
                permit = fill(InnerPermit(), self._fast_path, now)
            if permit is None:
                self._rejected += 1
            else:
                self._admitted += 1
        if change is not None:
            self._notify(change)
        if self._reentry.deferred:
            self._reentry.apply()
        return permit

    def _admit_within(self) -> Permit | None:
        """As `try_acquire`, within a change: by the state as it stands."""
        state = self._state
        if state is State.DISABLED or (state is State.CLOSED and self._ramp is None):
            self._reentry.deferred.append(self._count_admitted)
            return fill(Permit(), self._fast_path, self._clock.glance())
        self._reentry.deferred.append(self._count_rejected)
        return None

    @deferrable
    def _count_admitted(self) -> None:
        with self._lock:
            self._admitted += 1

    @deferrable
    def _count_rejected(self) -> None:
        with self._lock:
            self._rejected += 1

    @deferrable
    def _record_many(self, ok: int, failed: int) -> None:
        change: _Change | None = None
        with self._lock:
            now = self._catch_up()
            self._succeeded += ok
            self._failed += failed
            if self._state is State.CLOSED or self._state is State.DISABLED:
                self._add(ok + failed, failed, 0)
                change = self._judge(now)
            self._set_fast_path(now)
        if change is not None:
            self._notify(change)

    @deferrable
    def _settle(self, permit: Permit, outcome: Outcome, latency: float | None) -> None:
        """Take the first result of a permit."""
        opened: _Change | None = None
        change: _Change | None = None
        with self._lock:
            now = self._catch_up()
            held_slot = permit._number is not None and self._probes.give_back(permit._number)
            canary = self._state is State.OPEN and permit._fast_path is self._fast_path
            if outcome is Outcome.IGNORED:
                self._ignored += 1
                if canary and isinstance(permit, Canary):
                    # Another one may go as soon as this one might have.
                    self._open_until = min(self._open_until, max(now, permit._due))
                return
            failed = 1 if outcome is Outcome.FAILED else 0
            self._failed += failed
            self._succeeded += 1 - failed
            slow = 0
            limit = self.config.slow_call_duration
            if (
                limit is not None
                and (latency if latency is not None else now - permit._since) >= limit
            ):
                slow = 1
                self._slow += 1
            if isinstance(permit, InnerPermit):
                return
            if permit._fast_path is not self._fast_path or (
                self._state is State.HALF_OPEN and not held_slot
            ):
                self._late += 1
                return
            if canary and not failed:
                opened = self._go(Cause.ANSWERED, now, "a canary succeeded")
                self._probes.count(failed, slow)
                change = self._judge_probes(now)
            elif canary:
                pass  # the next one has its time already
            elif self._state is State.HALF_OPEN:
                self._probes.count(failed, slow)
                change = self._judge_probes(now)
            else:
                self._add(1, failed, slow)
                change = self._judge(now)
            self._set_fast_path(now)
        for each in (opened, change):
            if each is not None:
                self._notify(each)

    @deferrable
    def _repeated(self) -> None:
        """Count one more result of a permit that had its result."""
        with self._lock:
            self._duplicates += 1

    @deferrable
    def _command(self, cause: Cause, reason: str) -> None:
        with self._lock:
            now = self._catch_up()
            change = self._go(cause, now, reason)
            self._set_fast_path(now)
        self._notify(change)

    def _start_over(self) -> None:
        """Begin a generation of the same state: another thread was changing it when
        this process was forked, and is not here to go on.
        """
        now = self._now()
        cfg = self.config
        self._set_law(now)
        self._canary = None
        self._probes = Probes(cfg.half_open_requests, cfg.probe_lease)
        self._ramp = None
        self._fast_path = FastPath(self, self._fast_path.generation + 1)
        self._set_fast_path(now)

    # --- below: what is called without it

    def _notify(self, change: _Change) -> None:
        """A new generation of the same state is no news."""
        old, new, reason = change
        if self._on_change is None or old is new:
            return
        try:
            self._on_change(old, new, reason)
        except Exception:
            # It must not turn the caller's finished call into a failed one.
            _log.exception("on_change %r failed at %s -> %s", self._on_change, old.name, new.name)
