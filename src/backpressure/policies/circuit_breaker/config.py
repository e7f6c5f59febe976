"""What the circuit breaker is told: when to open, for how long, how to probe, how to
come back.
"""

from __future__ import annotations

import math
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Final, Literal, get_args

from backpressure.base.errors import CircuitOpenError, ConfigError
from backpressure.base.validation import check_bool, check_fields

__all__ = ["CircuitBreakerConfig"]

# What `max_reset_timeout=None` stands for by shares, in reset_timeouts. A dead callee
# costs a few probes for each open time, so longer ones save little, while its return
# goes unseen for up to one of them: in the outage of bench/overload a cap of ten came
# back 57 s late, none at all 25 s.
_MAX_RESET_FACTOR: Final = 2.0
# Times and shares that are still meant; less or more is a mistake in the unit. A lease
# of 30 years stands for none.
_SHORTEST, _LONGEST, _LEAST_SHARE = 1e-6, 1e9, 1e-6
# Above this a second trip would always mean the cap; it also keeps the power far from
# overflow.
_LARGEST_MULTIPLIER: Final = 100.0

_Law = Literal["share", "sequential"]

# Errors that say that a call was not made, or not waited for.
_NOT_CALLED: Final = (CircuitOpenError, CancelledError)


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitBreakerConfig:
    """When to open, for how long, and how to probe. Times are in seconds, rates from 0
    to 1.
    """

    #: When it opens. "share": as soon as that share of the calls in a window failed, as
    #: the fields below say, by the letter; a callee that fails one call in five reaches
    #: it by chance now and then. "sequential": once the evidence is enough that the
    #: callee fails twice `failure_threshold` of its calls, or all, and not 2/3 of it or
    #: less; a dead one is found within 10 calls, or a few more where they are many. See
    #: sequential.py. None: "share"; in a `BufferConfig`, "sequential".
    law: _Law | None = None
    #: "share": opens when at least this share of the calls in a window failed: at once
    #: where it is far more, else once it has been for half of `monitoring_interval`.
    failure_threshold: float = 0.3
    #: "share": how long the first trip keeps the breaker open, before jitter.
    #: "sequential": the longest open time; the first is half a second, and the others
    #: grow with the outage, by a tenth of it.
    reset_timeout: float = 30.0
    #: How many probes HALF_OPEN admits.
    half_open_requests: int = 20
    #: The length of the rolling window. "sequential" judges by no window, and takes the
    #: rate of the calls from it.
    monitoring_interval: float = 5.0
    #: Fewer calls than this in a window decide nothing; "sequential": fewer than this
    #: since the first failure that is held against the callee, and with less than 10 a
    #: part of the evidence is enough.
    min_requests: int = 10
    #: "share": a second window beside that of seconds: the last results, however old.
    #: Whichever reaches a threshold first opens. It finds a dead callee sooner under
    #: many calls (after 43 of them instead of 173, in the outage of bench/overload with
    #: 100) and at all under few, where no interval ever holds `min_requests`. None: no
    #: such window, as it also takes a hiccup of that many calls for an outage, and 100
    #: quick calls are a fraction of a second.
    window_size: int | None = None
    #: A call that takes as long or longer is slow. None: no call is.
    slow_call_duration: float | None = None
    #: Opens when at least this share of the calls in a window was slow.
    slow_call_rate_threshold: float = 1.0
    #: "share": the open time grows by this factor with each trip that follows too soon;
    #: 1 keeps it constant. A quarter is more than the jitter, so growth is growth, and
    #: at the first failed probes it delays the next look by no more than that.
    reset_timeout_multiplier: float = 1.25
    #: The longest open time, before jitter. None: twice `reset_timeout`; "sequential":
    #: no more than `reset_timeout`.
    max_reset_timeout: float | None = None
    #: The open time is spread evenly over ± this fraction; "sequential": it is up to
    #: this fraction shorter.
    reset_timeout_jitter: float = 0.1
    #: How long a probe may hold its slot when others want it. It should outlast the
    #: slowest call that is still healthy; 30 is 150 times the default target latency of
    #: a batch, and costs no more than one more open period.
    probe_lease: float = 30.0
    #: How long after closing not every call is admitted; 0: all at once. The probes
    #: have shown that the callee answers, and where batch size and rate adapt by
    #: themselves a third hand on the load only delays it (bench/overload: 2 to 12 s):
    #: so it is off by default. Where many clients share a callee that comes back cold,
    #: its warm-up time is right.
    ramp_up_time: float = 0.0
    #: After the open time, before HALF_OPEN: one call every
    #: `reset_timeout / half_open_requests`, until one succeeds. So the return of the
    #: callee is seen within a second or two for as many calls into a dead one as probes
    #: would be, and one that hangs holds up nothing. "sequential": one call, and after
    #: each another, longer open time. False: HALF_OPEN at once, whose failed probes
    #: begin another, longer open time. None: False; in a `BufferConfig`, True.
    canary: bool | None = None
    #: Exceptions that say nothing about the callee: they give the slot back and count
    #: as neither success nor failure. Besides these, what is no `Exception`
    #: (KeyboardInterrupt, asyncio's CancelledError), the CancelledError of an
    #: executor's future, and the CircuitOpenError of a breaker within: the callee was
    #: not called. A group of exceptions counts if one of its leaves does.
    ignored_exceptions: tuple[type[BaseException], ...] = ()

    def __post_init__(self) -> None:
        check_fields(
            self, float, _LEAST_SHARE, 1.0, "failure_threshold", "slow_call_rate_threshold"
        )
        check_fields(
            self, float, _SHORTEST, _LONGEST, "reset_timeout", "monitoring_interval", "probe_lease"
        )
        check_fields(self, float, 0.0, _LONGEST, "ramp_up_time")
        check_fields(self, int, 1, 2**31, "half_open_requests", "min_requests")
        check_fields(self, float, 1.0, _LARGEST_MULTIPLIER, "reset_timeout_multiplier")
        check_fields(self, float, 0.0, 0.99, "reset_timeout_jitter")
        if self.canary is not None:
            check_bool(self, "canary")
        if self.law is not None and self.law not in get_args(_Law):
            raise ConfigError("law", f"must be 'share', 'sequential' or None, not {self.law!r}")
        if self.window_size is not None:
            # A smaller one could never decide.
            check_fields(self, int, self.min_requests, 2**31, "window_size")
        if self.slow_call_duration is not None:
            check_fields(self, float, _SHORTEST, _LONGEST, "slow_call_duration")
        if self.max_reset_timeout is not None:
            check_fields(self, float, self.reset_timeout, _LONGEST, "max_reset_timeout")
        if not isinstance(self.ignored_exceptions, tuple) or not all(
            isinstance(kind, type) and issubclass(kind, BaseException)
            for kind in self.ignored_exceptions
        ):
            raise ConfigError(
                "ignored_exceptions",
                f"must be a tuple of exception classes, not {self.ignored_exceptions!r}",
            )

    def ignores(self, error: BaseException) -> bool:
        """Whether `error` says nothing about the callee: see `ignored_exceptions`."""
        if isinstance(error, self.ignored_exceptions):
            return True
        if isinstance(error, BaseExceptionGroup):
            return all(map(self.ignores, error.exceptions))
        return not isinstance(error, Exception) or isinstance(error, _NOT_CALLED)

    @property
    def longest_open_time(self) -> float:
        """What `max_reset_timeout` comes to."""
        if self.max_reset_timeout is not None:
            return self.max_reset_timeout
        return self.reset_timeout * (1.0 if self.is_sequential else _MAX_RESET_FACTOR)

    @property
    def is_sequential(self) -> bool:
        """What `law` comes to."""
        return self.law == "sequential"

    @property
    def quorum(self) -> int:
        """How many probe results decide HALF_OPEN: enough to judge by, reachable."""
        return min(self.min_requests, self.half_open_requests)

    def over(self, failed: int, slow: int, of: int, deviations: float = 0.0) -> str | None:
        """Which threshold these shares of `of` calls reach, in words; None where they
        reach none.

        deviations: by how many standard deviations, of the share of `of` calls at the
            threshold, they must exceed it.
        """
        spread = deviations / math.sqrt(of)
        if failed / of >= _raised(self.failure_threshold, spread):
            return f"{failed} of {of} calls failed, threshold {self.failure_threshold:g}"
        # Where slow calls are not watched none is counted, and no threshold is 0.
        if slow / of >= _raised(self.slow_call_rate_threshold, spread):
            return f"{slow} of {of} calls were slow, threshold {self.slow_call_rate_threshold:g}"
        return None


def _raised(threshold: float, spread: float) -> float:
    """A threshold `spread` standard deviations of one call higher. All calls failing
    always reach it.
    """
    return min(1.0, threshold + spread * math.sqrt(threshold * (1.0 - threshold)))
