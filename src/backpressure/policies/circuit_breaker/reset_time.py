"""How long a trip keeps the circuit open: growth, cap, decay and jitter.

By the law of shares the time is `reset_timeout`, multiplied once for each trip that is
remembered, up to a cap, and spread by a jitter so that many breakers do not probe as
one. Each `reset_timeout` spent in CLOSED forgets one trip (the way Envoy lets the
ejection time of a host decay); a probe that succeeds, among others that failed, forgets
all: what comes and goes is no longer gone, and worth another look soon.

By the sequential law it begins at half a second, and is then 0.7 s and a tenth of what
the outage has lasted, in its first 20 seconds, and 4 % of what follows, up to
`reset_timeout` (or `max_reset_timeout`). So whenever the callee returns, the next look
is no further away than a second and a tenth of its outage, and less after a long one;
and 20 looks at most go to a dead one within half a minute. The jitter takes from it,
and adds nothing. A probe that succeeds ends the outage.

Not safe for several threads: the circuit breaker's lock guards them.
"""

from __future__ import annotations

import math
import random
from typing import Final

from backpressure.policies.circuit_breaker.config import CircuitBreakerConfig

__all__ = ["OutageTime", "ResetTime"]

# Of the sequential law, in seconds, and as a share of the outage. The first look is the
# earliest; 0.3 s are left for the caller who has to come by.
_FIRST: Final = 0.5
_BASE: Final = 0.7
_OF_OUTAGE: Final = 0.1
_OF_LONG_OUTAGE: Final = 0.04
_LONG: Final = 20.0


class ResetTime:
    """`config` has the law, `rng` the jitter."""

    __slots__ = ("_config", "_most", "_remembered", "_rng", "last")

    def __init__(self, config: CircuitBreakerConfig, rng: random.Random) -> None:
        self._config = config
        self._rng = rng
        self._remembered = 0
        # Beyond these the cap is reached, and there is nothing left to remember.
        self._most = _steps_to(
            config.longest_open_time / config.reset_timeout, config.reset_timeout_multiplier
        )
        #: The last open time, jitter included; 0.0 before the first.
        self.last = 0.0

    def trip(self, now: float, healthy: float | None, answered: bool) -> float:
        """The open time of a trip after `healthy` seconds in CLOSED; None: after
        probes, of which some were `answered` well or none.
        """
        config = self._config
        remembered = 0 if answered else self.remembers(healthy or 0.0)
        grown = config.reset_timeout * config.reset_timeout_multiplier**remembered
        jitter = self._rng.uniform(-config.reset_timeout_jitter, config.reset_timeout_jitter)
        self.last = min(grown, config.longest_open_time) * (1.0 + jitter)
        self._remembered = min(remembered + 1, self._most)
        return self.last

    def looked(self, now: float) -> float:
        """Seconds from one canary to the next: no more of them than probes in a reset
        time.
        """
        return max(self.last, self._config.reset_timeout) / self._config.half_open_requests

    def remembers(self, healthy: float) -> int:
        """How many trips still count after `healthy` seconds in CLOSED."""
        return max(0, self._remembered - int(healthy / self._config.reset_timeout))

    def forget(self) -> None:
        """All of them."""
        self._remembered = 0


class OutageTime:
    """The sequential law's; as ResetTime."""

    __slots__ = ("_began", "_config", "_rng", "last")

    def __init__(self, config: CircuitBreakerConfig, rng: random.Random) -> None:
        self._config = config
        self._rng = rng
        self._began: float | None = None  # the outage; None: there is none
        #: The last open time, jitter included; 0.0 before the first.
        self.last = 0.0

    def trip(self, now: float, healthy: float | None, answered: bool) -> float:
        """The open time of a trip. Where no probe was answered well the outage goes on;
        else it begins.
        """
        if healthy is None and not answered:
            return self.looked(now)
        self._began = now
        return self._jittered(min(_FIRST, self._config.longest_open_time))

    def looked(self, now: float) -> float:
        """Seconds from a canary, or probes that failed, to the next."""
        lasted = now - self._began if self._began is not None else 0.0
        grown = _OF_OUTAGE * min(lasted, _LONG) + _OF_LONG_OUTAGE * max(0.0, lasted - _LONG)
        return self._jittered(min(_BASE + grown, self._config.longest_open_time))

    def remembers(self, healthy: float) -> int:
        """Trips: none, an outage is as long as it is."""
        return 0

    def forget(self) -> None:
        """The outage."""
        self._began = None

    def _jittered(self, seconds: float) -> float:
        self.last = seconds * (1.0 - self._rng.uniform(0.0, self._config.reset_timeout_jitter))
        return self.last


def _steps_to(ratio: float, factor: float) -> int:
    """How many multiplications by `factor` reach `ratio`; 0 where none ever does."""
    return math.ceil(math.log(ratio) / math.log(factor)) if factor > 1.0 else 0
