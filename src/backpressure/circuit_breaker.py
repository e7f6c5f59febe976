"""A circuit breaker: stop calling what fails, and find out with a few probes when it works again.

    state         admits                               results of its own permits
    CLOSED        every call                           fill the rolling window, which may trip the breaker
    OPEN          none, until the open time is over    -
    HALF_OPEN     `half_open_requests` probes          decide: back to CLOSED, or OPEN again
    FORCED_OPEN   none, until `reset()`                -
    DISABLED      every call                           fill the window, and change nothing

Invariants
 1. A permit belongs to the generation of the state that gave it. Every change of state starts a new
    generation; a result from an earlier one is counted in the metrics and touches neither window nor state.
 2. A permit has one result. Any further report for it is counted as a duplicate and does nothing.
 3. In HALF_OPEN, probes that are out plus probe results never exceed `half_open_requests`. An ignored probe
    gives its slot back. A probe has a lease: once that is over and no slot is free, the next caller takes
    its slot and its result is late. So a probe that never answers can not hold the breaker in HALF_OPEN.
 4. HALF_OPEN is decided by `min(min_requests, half_open_requests)` results: enough to judge by, and
    reachable. It opens again as soon as so many of them have failed that the rate can not come out below
    its threshold.
 5. Nothing happens by itself: an open breaker becomes HALF_OPEN in the `try_acquire` that finds the open
    time over, and `state` shows OPEN until then.
 6. Time never runs backwards in here: a clock that steps back counts as one that stood still.

The open time is `reset_timeout`, multiplied on every trip that follows too soon, up to `max_reset_timeout`,
and spread by a jitter so that many breakers do not probe as one. Each `reset_timeout` spent in CLOSED
forgets one trip (the way Envoy lets the ejection time of a host decay).

Safe for any thread and any task. The lock is held for a few attribute updates, never while the caller's
function or `on_change` runs; calls of `on_change` from two threads may therefore overlap.
"""

from __future__ import annotations

import functools
import inspect
import logging
import math
import random
import threading
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from dataclasses import dataclass
from enum import Enum
from types import TracebackType
from typing import Any, Final, ParamSpec, TypeVar, cast

from backpressure.clock import Clock, MonotonicClock
from backpressure.errors import CircuitOpenError, ConfigError

__all__ = ["CircuitBreaker", "CircuitBreakerConfig", "CircuitBreakerMetrics", "Permit", "State"]

_P = ParamSpec("_P")
_R = TypeVar("_R")
_log = logging.getLogger("backpressure")

# How finely the window rolls: it forgets in steps of a tenth, as those of Polly and failsafe-go do.
_BUCKETS: Final = 10
# What `max_reset_timeout=None` stands for, in reset_timeouts: five minutes at the default, so an outage
# that lasts the night ends within minutes of the cure.
_MAX_RESET_FACTOR: Final = 10.0
# Above this a second trip would always mean the cap; it also keeps the power far from overflow.
_LARGEST_MULTIPLIER: Final = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitBreakerConfig:
    """When to open, for how long, and how to probe. Times are in seconds, rates from 0 to 1.

    A call is slow when it took `slow_call_duration` or longer; None turns that signal off.
    """

    #: Opens when at least this share of the calls in the window failed.
    failure_threshold: float = 0.3
    #: How long the first trip keeps the breaker open, before jitter.
    reset_timeout: float = 30.0
    #: How many probes HALF_OPEN admits.
    half_open_requests: int = 20
    #: The length of the rolling window.
    monitoring_interval: float = 5.0
    #: Fewer calls than this in the window decide nothing.
    min_requests: int = 10
    slow_call_duration: float | None = None
    #: Opens when at least this share of the calls in the window was slow.
    slow_call_rate_threshold: float = 1.0
    #: The open time grows by this factor with each trip that follows too soon; 1 keeps it constant.
    reset_timeout_multiplier: float = 2.0
    #: The longest open time, before jitter. None: ten times `reset_timeout`.
    max_reset_timeout: float | None = None
    #: The open time is spread evenly over ± this fraction.
    reset_timeout_jitter: float = 0.1
    #: How long a probe may hold its slot when others want it. It should outlast the slowest call that is
    #: still healthy; 30 is 150 times the default target latency of a batch, and costs no more than one more
    #: open period.
    probe_lease: float = 30.0
    #: Exceptions that say nothing about the callee: they give the slot back and count as neither success
    #: nor failure. One that is no `Exception` (KeyboardInterrupt, CancelledError) never counts either.
    ignored_exceptions: tuple[type[BaseException], ...] = ()

    def __post_init__(self) -> None:
        _check_share("failure_threshold", self.failure_threshold)
        _check_seconds("reset_timeout", self.reset_timeout)
        _check_count("half_open_requests", self.half_open_requests)
        _check_seconds("monitoring_interval", self.monitoring_interval)
        _check_count("min_requests", self.min_requests)
        if self.slow_call_duration is not None:
            _check_seconds("slow_call_duration", self.slow_call_duration)
        _check_share("slow_call_rate_threshold", self.slow_call_rate_threshold)
        if not _is_number(self.reset_timeout_multiplier) or not (1.0 <= self.reset_timeout_multiplier <= _LARGEST_MULTIPLIER):
            raise ConfigError(
                "reset_timeout_multiplier",
                f"must be a number from 1 to {_LARGEST_MULTIPLIER:g}, not {self.reset_timeout_multiplier!r}",
            )
        if self.max_reset_timeout is not None:
            _check_seconds("max_reset_timeout", self.max_reset_timeout)
            if self.max_reset_timeout < self.reset_timeout:
                raise ConfigError(
                    "max_reset_timeout",
                    f"must be reset_timeout ({self.reset_timeout:g}) or more, not {self.max_reset_timeout!r}",
                )
        if not _is_number(self.reset_timeout_jitter) or not 0.0 <= self.reset_timeout_jitter < 1.0:
            raise ConfigError(
                "reset_timeout_jitter",
                f"must be 0 or more and less than 1, not {self.reset_timeout_jitter!r}",
            )
        _check_seconds("probe_lease", self.probe_lease)
        if not isinstance(self.ignored_exceptions, tuple) or not all(
            isinstance(kind, type) and issubclass(kind, BaseException) for kind in self.ignored_exceptions
        ):
            raise ConfigError("ignored_exceptions", f"must be a tuple of exception classes, not {self.ignored_exceptions!r}")


class State(Enum):
    """What the breaker does with calls, as the table at the head of this module says."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"
    FORCED_OPEN = "forced_open"
    DISABLED = "disabled"


class _Cause(Enum):
    """What can change the state."""

    TRIPPED = "a rate in the window reached its threshold"
    WAITED = "the open time is over and someone asks"
    PROBES_PASSED = "enough probes succeeded"
    PROBES_FAILED = "too many probes failed"
    RESET = "reset()"
    FORCED = "force_open()"
    DISABLED = "disable()"


# The state machine: every change of state there is. A pair that is missing can not come up.
_NEXT: Final[dict[tuple[State, _Cause], State]] = {
    (State.CLOSED, _Cause.TRIPPED): State.OPEN,
    (State.OPEN, _Cause.WAITED): State.HALF_OPEN,
    (State.HALF_OPEN, _Cause.PROBES_PASSED): State.CLOSED,
    (State.HALF_OPEN, _Cause.PROBES_FAILED): State.OPEN,
    **{(state, _Cause.RESET): State.CLOSED for state in State},
    **{(state, _Cause.FORCED): State.FORCED_OPEN for state in State},
    **{(state, _Cause.DISABLED): State.DISABLED for state in State},
}


class _Outcome(Enum):
    OK = "ok"
    FAILED = "failed"
    IGNORED = "ignored"


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitBreakerMetrics:
    """A snapshot, taken at one moment. Counters run since the breaker was made; times are in seconds."""

    #: The state, and how many changes of state led to it (a reset of a closed breaker is one too).
    state: State
    generation: int
    #: The rolling window as it is now: it empties while open, and starts empty when closed again.
    window_calls: int
    window_failures: int
    window_slow: int
    #: `window_failures` and `window_slow` as shares of `window_calls`; 0.0 where that is 0.
    failure_rate: float
    slow_call_rate: float
    #: Probes of this half-open period: still out, answered, and failed. 0 in other states.
    probes_out: int
    probe_results: int
    probe_failures: int
    #: Calls let through, and calls refused.
    admitted: int
    rejected: int
    #: Results by kind, late ones and those of `record_many` included.
    succeeded: int
    failed: int
    ignored: int
    #: Results, of any kind but ignored, that were slow; 0 while `slow_call_duration` is None.
    slow: int
    #: Successes and failures from an earlier generation, or from a probe that had lost its slot.
    late: int
    #: Reports for a permit that had its result already.
    duplicates: int
    #: Probes whose lease was over and whose slot went to another.
    lost_probes: int
    #: How often the breaker opened by itself, and by how many multiplications the next open time is longer.
    trips: int
    remembered_trips: int
    #: The length of the last open period, jitter included; 0.0 before the first.
    open_time: float
    #: As `CircuitBreaker.retry_after()`.
    retry_after: float


class Permit:
    """Leave for one call. Report its result once, from any thread; a second report does nothing.

    `generation` is that of the state which gave it.
    """

    __slots__ = ("_breaker", "_done", "_since", "generation")

    def __init__(self, breaker: CircuitBreaker, generation: int, since: float) -> None:
        self._breaker = breaker
        self._done = False
        self._since = since
        self.generation = generation

    def success(self, latency: float | None = None) -> None:
        """The call succeeded. `latency` is in seconds; None takes the time since the permit was given."""
        self._breaker._settle(self, _Outcome.OK, latency)

    def failure(self, error: BaseException | None = None) -> None:
        """The call failed; or `ignore()`, where the config ignores `error` or it is not an `Exception`."""
        ignored = error is not None and (
            not isinstance(error, Exception) or isinstance(error, self._breaker.config.ignored_exceptions)
        )
        self._breaker._settle(self, _Outcome.IGNORED if ignored else _Outcome.FAILED, None)

    def ignore(self) -> None:
        """The call says nothing about the callee, or was never made: gives the slot back."""
        self._breaker._settle(self, _Outcome.IGNORED, None)

    def __repr__(self) -> str:
        return f"<Permit generation={self.generation} {'settled' if self._done else 'out'}>"


# The permits of the `with` blocks that surround this point of this thread or task, innermost last. A tuple
# that is replaced, so a task that inherits the context can not disturb its parent. One variable for all
# breakers: a context keeps every variable that was ever set in it, so one for each breaker would leak.
_held: ContextVar[tuple[Permit, ...]] = ContextVar("backpressure_permits", default=())

_Change = tuple[State, State, str]


class CircuitBreaker:
    """Admits or refuses calls by how earlier ones went.

    `clock` gives the time, `rng` the jitter. `on_change(old, new, reason)` is called after every change of
    state, in the thread that caused it, with no lock held; an exception out of it is logged.

    As a context manager (`with`, `async with`) and as a decorator of a plain or `async` function it raises
    CircuitOpenError instead of admitting, and reports by the exception that leaves the block. A timeout
    that should count as a failure belongs inside the block: from outside it arrives as a cancellation,
    which is ignored.
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
        self._clock = clock if clock is not None else MonotonicClock()
        self._rng = rng if rng is not None else random.Random()
        self._on_change = on_change
        self._lock = threading.Lock()

        cfg = self.config
        self._longest = cfg.max_reset_timeout or cfg.reset_timeout * _MAX_RESET_FACTOR
        self._most_trips = _steps_to(self._longest / cfg.reset_timeout, cfg.reset_timeout_multiplier)
        self._quorum = min(cfg.min_requests, cfg.half_open_requests)

        self._reading = self._clock.now()
        self._lag = 0.0
        self._state = State.CLOSED
        self._generation = 0
        self._since = self._reading  # when the present state was entered
        self._open_time = self._open_until = 0.0
        self._remembered = 0
        self._window = _Window(cfg.monitoring_interval, self._reading)
        # To the end of its lease; the oldest comes first, as all leases are equally long.
        self._probes: dict[Permit, float] = {}
        self._probe_results = self._probe_failures = self._probe_slow = 0

        self._admitted = self._rejected = 0
        self._succeeded = self._failed = self._ignored = self._slow = 0
        self._late = self._duplicates = self._lost = self._trips = 0

    # --- permits

    def try_acquire(self) -> Permit | None:
        """Leave for one call, or None where the breaker lets nothing through now (see `retry_after`)."""
        change: _Change | None = None
        permit: Permit | None = None
        with self._lock:
            now = self._now()
            if self._state is State.OPEN and now >= self._open_until:
                change = self._go(_Cause.WAITED, now, "the open time is over")
            state = self._state
            if state is State.CLOSED or state is State.DISABLED:
                permit = Permit(self, self._generation, now)
            elif state is State.HALF_OPEN and self._free_slot(now):
                permit = Permit(self, self._generation, now)
                self._probes[permit] = now + self.config.probe_lease
            if permit is None:
                self._rejected += 1
            else:
                self._admitted += 1
        if change is not None:
            self._notify(change)
        return permit

    def retry_after(self) -> float:
        """Seconds until it is worth asking again; 0.0 where a call would be admitted now.

        Exact while OPEN. With every probe slot taken it is the time to the end of the oldest lease, at most
        one bucket of the window, as probes mostly answer long before. FORCED_OPEN has no known end:
        `reset_timeout`, as a pace to poll at.
        """
        with self._lock:
            return self._wait(self._now())

    def record_many(self, ok: int, failed: int) -> None:
        """Count results of calls without a permit, such as the parts of a batch; ValueError if negative.

        They can trip a closed breaker. In other states they feed the metrics only: probes alone decide
        HALF_OPEN.
        """
        if ok < 0 or failed < 0:
            raise ValueError(f"ok and failed must be 0 or more, not {ok!r} and {failed!r}")
        change: _Change | None = None
        with self._lock:
            now = self._now()
            self._succeeded += ok
            self._failed += failed
            if self._state is State.CLOSED or self._state is State.DISABLED:
                change = self._count(now, ok + failed, failed, 0)
        if change is not None:
            self._notify(change)

    # --- calls

    def call(self, fn: Callable[_P, _R], /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """`fn(*args, **kwargs)` under a permit, its result reported; CircuitOpenError where there is none.

        Where `fn` is an `async` function the permit is taken now, and the result reported when the
        coroutine ends.
        """
        permit = self._acquire()
        try:
            result = fn(*args, **kwargs)
        except BaseException as error:
            permit.failure(error)
            raise
        if isinstance(result, Coroutine):
            return cast(_R, _guarded(permit, result))
        permit.success()
        return result

    def __call__(self, fn: Callable[_P, _R]) -> Callable[_P, _R]:
        """Decorate a plain or `async` function; TypeError for a generator, which works after it returned."""
        if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
            raise TypeError(f"a generator can not be guarded as a call; use `with breaker:` inside {fn!r}")
        if inspect.iscoroutinefunction(fn):

            @functools.wraps(fn)
            async def call_async(*args: _P.args, **kwargs: _P.kwargs) -> Any:
                async with self:
                    return await fn(*args, **kwargs)

            return cast(Callable[_P, _R], call_async)

        @functools.wraps(fn)
        def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            return self.call(fn, *args, **kwargs)

        return call

    def __enter__(self) -> Permit:
        permit = self._acquire()
        _held.set((*_held.get(), permit))
        return permit

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        held = _held.get()
        # The innermost permit of this breaker; not always the last one, as generators may leave out of order.
        for place in range(len(held) - 1, -1, -1):
            permit = held[place]
            if permit._breaker is self:
                _held.set(held[:place] + held[place + 1 :])
                if error is None:
                    permit.success()
                else:
                    permit.failure(error)
                return
        # Entered in another context, as some test frameworks split fixtures: that permit's lease runs out.

    async def __aenter__(self) -> Permit:
        return self.__enter__()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.__exit__(kind, error, trace)

    # --- by hand

    def reset(self) -> None:
        """To CLOSED with an empty window and all trips forgotten; also ends FORCED_OPEN and DISABLED."""
        self._command(_Cause.RESET, "reset by hand")

    def force_open(self) -> None:
        """Refuse every call until `reset()`."""
        self._command(_Cause.FORCED, "forced open by hand")

    def disable(self) -> None:
        """Admit every call, whatever happens, until `reset()`; results are still counted."""
        self._command(_Cause.DISABLED, "disabled by hand")

    # --- reading

    @property
    def state(self) -> State:
        """The state. OPEN stays OPEN until an acquire finds the open time over: reading changes nothing."""
        return self._state

    def metrics(self) -> CircuitBreakerMetrics:
        """A frozen snapshot; what is too old for the window is dropped first."""
        with self._lock:
            now = self._now()
            window = self._window
            window.roll(now)
            return CircuitBreakerMetrics(
                state=self._state,
                generation=self._generation,
                window_calls=window.calls,
                window_failures=window.failed,
                window_slow=window.slow,
                failure_rate=window.failed / window.calls if window.calls else 0.0,
                slow_call_rate=window.slow / window.calls if window.calls else 0.0,
                probes_out=len(self._probes),
                probe_results=self._probe_results,
                probe_failures=self._probe_failures,
                admitted=self._admitted,
                rejected=self._rejected,
                succeeded=self._succeeded,
                failed=self._failed,
                ignored=self._ignored,
                slow=self._slow,
                late=self._late,
                duplicates=self._duplicates,
                lost_probes=self._lost,
                trips=self._trips,
                remembered_trips=self._remembers(now),
                open_time=self._open_time,
                retry_after=self._wait(now),
            )

    def __repr__(self) -> str:
        return f"<CircuitBreaker {self._state.name} generation={self._generation}>"

    # --- below: what is called with the lock held, except where it says otherwise

    def _now(self) -> float:
        """The clock, made to never run backwards. Read under the lock: readings are in the order of use."""
        reading = self._clock.now()
        if reading < self._reading:
            self._lag += self._reading - reading
        self._reading = reading
        return reading + self._lag

    def _free_slot(self, now: float) -> bool:
        """Whether one more probe may go out; takes the slot of the oldest one if its lease is over."""
        if self._probe_results + len(self._probes) < self.config.half_open_requests:
            return True
        # With fewer results than slots, which holds until HALF_OPEN is decided, a full house has a probe out.
        oldest = next(iter(self._probes))
        if now < self._probes[oldest]:
            return False
        del self._probes[oldest]
        self._lost += 1
        return True

    def _wait(self, now: float) -> float:
        if self._state is State.OPEN:
            return max(0.0, self._open_until - now)
        if self._state is State.FORCED_OPEN:
            return self.config.reset_timeout
        if self._state is State.HALF_OPEN and self._probe_results + len(self._probes) >= self.config.half_open_requests:
            return max(0.0, min(next(iter(self._probes.values())) - now, self._window.width))
        return 0.0

    def _count(self, now: float, calls: int, failed: int, slow: int) -> _Change | None:
        """Take results that the present state is judged by, and change it where they decide."""
        if self._state is State.HALF_OPEN:
            self._probe_results += calls
            self._probe_failures += failed
            self._probe_slow += slow
            # Shares of the whole quorum, not of what is in so far: this reopens once no further success
            # could help.
            why = self._over(self._probe_failures, self._probe_slow, self._quorum)
            if why is not None:
                return self._go(_Cause.PROBES_FAILED, now, f"probes: {why}")
            if self._probe_results >= self._quorum:
                return self._go(
                    _Cause.PROBES_PASSED,
                    now,
                    f"{self._probe_failures} of {self._probe_results} probes failed",
                )
            return None
        window = self._window
        window.add(now, calls, failed, slow)
        if self._state is State.CLOSED and window.calls >= self.config.min_requests:
            why = self._over(window.failed, window.slow, window.calls)
            if why is not None:
                return self._go(_Cause.TRIPPED, now, why)
        return None

    def _over(self, failed: int, slow: int, of: int) -> str | None:
        """Which threshold these shares reach, in words; None where they reach none."""
        cfg = self.config
        if failed / of >= cfg.failure_threshold:
            return f"{failed} of {of} calls failed, threshold {cfg.failure_threshold:g}"
        # Where slow calls are not watched none is counted, and no threshold is 0.
        if slow / of >= cfg.slow_call_rate_threshold:
            return f"{slow} of {of} calls were slow, threshold {cfg.slow_call_rate_threshold:g}"
        return None

    def _go(self, cause: _Cause, now: float, reason: str) -> _Change:
        """Change state by the table, and set up what the new state starts with."""
        old = self._state
        new = _NEXT[old, cause]
        cfg = self.config
        if new is State.OPEN:
            remembered = self._remembers(now)
            grown = cfg.reset_timeout * cfg.reset_timeout_multiplier**remembered
            jitter = self._rng.uniform(-cfg.reset_timeout_jitter, cfg.reset_timeout_jitter)
            self._open_time = min(grown, self._longest) * (1.0 + jitter)
            self._open_until = now + self._open_time
            self._remembered = min(remembered + 1, self._most_trips)
            self._trips += 1
        elif new is State.CLOSED or new is State.DISABLED:
            self._window.clear()
            if cause is _Cause.RESET:
                self._remembered = 0
        self._probes.clear()
        self._probe_results = self._probe_failures = self._probe_slow = 0
        self._state = new
        self._generation += 1
        self._since = now
        return old, new, reason

    def _remembers(self, now: float) -> int:
        """How many trips still count: each `reset_timeout` spent in CLOSED forgets one."""
        if self._state is not State.CLOSED:
            return self._remembered
        return max(0, self._remembered - int((now - self._since) / self.config.reset_timeout))

    def _settle(self, permit: Permit, outcome: _Outcome, latency: float | None) -> None:
        """Take the result of a permit. Takes the lock itself."""
        change: _Change | None = None
        with self._lock:
            if permit._done:
                self._duplicates += 1
                return
            permit._done = True
            now = self._now()
            held_slot = self._probes.pop(permit, None) is not None
            if outcome is _Outcome.IGNORED:
                self._ignored += 1
                return
            failed = 1 if outcome is _Outcome.FAILED else 0
            self._failed += failed
            self._succeeded += 1 - failed
            slow = 0
            limit = self.config.slow_call_duration
            if limit is not None and (latency if latency is not None else now - permit._since) >= limit:
                slow = 1
                self._slow += 1
            if permit.generation != self._generation or (self._state is State.HALF_OPEN and not held_slot):
                self._late += 1
                return
            change = self._count(now, 1, failed, slow)
        if change is not None:
            self._notify(change)

    def _acquire(self) -> Permit:
        """A permit, or CircuitOpenError. Called without the lock."""
        permit = self.try_acquire()
        if permit is None:
            raise CircuitOpenError(f"the circuit breaker is {self._state.name} and lets no call through", self.retry_after())
        return permit

    def _command(self, cause: _Cause, reason: str) -> None:
        """Called without the lock."""
        with self._lock:
            change = self._go(cause, self._now(), reason)
        self._notify(change)

    def _notify(self, change: _Change) -> None:
        """Called without the lock. A new generation of the same state is no news."""
        old, new, reason = change
        if self._on_change is None or old is new:
            return
        try:
            self._on_change(old, new, reason)
        except Exception:
            # It must not turn the caller's finished call into a failed one.
            _log.exception("on_change %r failed at %s -> %s", self._on_change, old.name, new.name)


class _Window:
    """Counts over the last `interval` seconds, in `_BUCKETS` buckets.

    What it shows is never older than `interval`, and lacks at most one bucket's width of it. `now` never
    runs backwards.
    """

    __slots__ = ("_buckets", "_index", "calls", "failed", "slow", "width")

    def __init__(self, interval: float, now: float) -> None:
        self.width = interval / _BUCKETS
        self._index = math.floor(now / self.width)
        self._buckets = [[0, 0, 0] for _ in range(_BUCKETS)]
        self.calls = self.failed = self.slow = 0

    def roll(self, now: float) -> None:
        """Drop the buckets whose time is over."""
        index = math.floor(now / self.width)
        steps = index - self._index
        if steps <= 0:
            return
        self._index = index
        for past in range(min(steps, _BUCKETS)):
            bucket = self._buckets[(index - past) % _BUCKETS]
            self.calls -= bucket[0]
            self.failed -= bucket[1]
            self.slow -= bucket[2]
            bucket[:] = (0, 0, 0)

    def add(self, now: float, calls: int, failed: int, slow: int) -> None:
        self.roll(now)
        bucket = self._buckets[self._index % _BUCKETS]
        bucket[0] += calls
        bucket[1] += failed
        bucket[2] += slow
        self.calls += calls
        self.failed += failed
        self.slow += slow

    def clear(self) -> None:
        for bucket in self._buckets:
            bucket[:] = (0, 0, 0)
        self.calls = self.failed = self.slow = 0


async def _guarded(permit: Permit, work: Coroutine[Any, Any, _R]) -> _R:
    """Await `work` and report how it went."""
    try:
        result = await work
    except BaseException as error:
        permit.failure(error)
        raise
    permit.success()
    return result


def _steps_to(ratio: float, factor: float) -> int:
    """How many multiplications by `factor` reach `ratio`; 0 where none ever does."""
    return math.ceil(math.log(ratio) / math.log(factor)) if factor > 1.0 else 0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_share(field: str, value: float) -> None:
    if not _is_number(value) or not 0.0 < value <= 1.0:
        raise ConfigError(field, f"must be more than 0 and at most 1, not {value!r}")


def _check_seconds(field: str, value: float) -> None:
    if not _is_number(value) or not value > 0.0:
        raise ConfigError(field, f"must be a number of seconds above 0, not {value!r}")


def _check_count(field: str, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(field, f"must be an int of at least 1, not {value!r}")
