"""How long a trip keeps the circuit open: growth, cap, decay and jitter.

The time is `reset_timeout`, multiplied once for each trip that is remembered, up to a
cap, and spread by a jitter so that many breakers do not probe as one. Each
`reset_timeout` spent in CLOSED forgets one trip (the way Envoy lets the ejection time
of a host decay); a probe that succeeds, among others that failed, forgets all: what
comes and goes is no longer gone, and worth another look soon. Not safe for several
threads: the circuit breaker's lock guards it.
"""

from __future__ import annotations

import math
import random

from backpressure.policies.circuit_breaker.config import CircuitBreakerConfig

__all__ = ["ResetTime"]


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

    def trip(self, healthy: float, answered: bool = False) -> float:
        """The open time of a trip after `healthy` seconds in CLOSED, or after probes of
        which some were `answered` well.
        """
        config = self._config
        remembered = 0 if answered else self.remembers(healthy)
        grown = config.reset_timeout * config.reset_timeout_multiplier**remembered
        jitter = self._rng.uniform(-config.reset_timeout_jitter, config.reset_timeout_jitter)
        self.last = min(grown, config.longest_open_time) * (1.0 + jitter)
        self._remembered = min(remembered + 1, self._most)
        return self.last

    def remembers(self, healthy: float) -> int:
        """How many trips still count after `healthy` seconds in CLOSED."""
        return max(0, self._remembered - int(healthy / self._config.reset_timeout))

    def forget(self) -> None:
        """All of them."""
        self._remembered = 0


def _steps_to(ratio: float, factor: float) -> int:
    """How many multiplications by `factor` reach `ratio`; 0 where none ever does."""
    return math.ceil(math.log(ratio) / math.log(factor)) if factor > 1.0 else 0
