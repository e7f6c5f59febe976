"""The sink: one pipe that takes `capacity` events a second, however many calls are out.

A call of n events takes n / capacity + CALL_OVERHEAD seconds of the pipe, after the
calls before it, and LATENCY on top. So latency is a*n + b while the pipe is free, grows
with the queue inside once calls overlap, and from KNEE events on the pipe itself slows
down, as a database does that thrashes. A call that fails is refused early and takes
nothing of the pipe.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

__all__ = [
    "CALL_OVERHEAD",
    "CALL_TIMEOUT",
    "KNEE",
    "LATENCY",
    "WORKERS",
    "Condition",
    "Outcome",
    "Sink",
    "best_rate",
]

# Seconds of the pipe that each call costs: at 500 events a call and 20,000 events a
# second, a twelfth of the capacity.
CALL_OVERHEAD = 0.002
# Seconds that a call takes beside the pipe: the network.
LATENCY = 0.01
# Events out at once from which the pipe slows down, and by how much for as many again.
KNEE = 4_000
_CONGESTION = 0.25
# A refused connection is told at once.
_REFUSAL = 0.005
# Consumers, each with one call out: at the largest batch they exceed the knee by half.
WORKERS = 6
# A worker whose call hangs is replaced after so long (seconds); the result of the call
# is never reported.
CALL_TIMEOUT = 8.0


class Outcome(Enum):
    OK = "ok"
    FAILED = "failed"
    #: The call never reports.
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Condition:
    """How the sink is now."""

    capacity: float = 20_000.0  #: events per second
    errors: float = 0.0  #: share of the calls that fail
    hangs: bool = False  #: calls never return

    @property
    def dead(self) -> bool:
        return self.hangs or self.errors >= 1.0


class Sink:
    """Takes calls; says when and how each will end.

    `at` gives its condition by true time.
    """

    def __init__(self, at: Callable[[float], Condition], rng: random.Random) -> None:
        self.at = at
        self._rng = rng
        self._free_at = 0.0
        self.out = 0

    def call(self, t: float, n: int) -> tuple[float, Outcome]:
        """When a call of n events that begins at t ends, and how.

        `done(n)` must follow at that time.
        """
        now = self.at(t)
        self.out += n
        if now.hangs:
            return t + CALL_TIMEOUT, Outcome.LOST
        noise = 0.9 + 0.2 * self._rng.random()
        if now.errors and self._rng.random() < now.errors:
            return t + _REFUSAL * noise, Outcome.FAILED
        congestion = 1.0 + _CONGESTION * max(0.0, self.out / KNEE - 1.0)
        self._free_at = (
            max(self._free_at, t) + (n / now.capacity * congestion + CALL_OVERHEAD) * noise
        )
        # One call in a hundred meets a pause of the network: a tail, which no policy
        # should take for overload.
        pause = 10.0 * LATENCY if self._rng.random() < 0.01 else 0.0
        return self._free_at + LATENCY * noise + pause, Outcome.OK

    def done(self, n: int) -> None:
        self.out -= n


def best_rate(now: Condition) -> float:
    """Events per second of the sink at the best batch size, all workers at the knee."""
    if now.dead:
        return 0.0
    n = KNEE / WORKERS
    return n / (n / now.capacity + CALL_OVERHEAD) * (1.0 - now.errors)
