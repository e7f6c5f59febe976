"""The states of a circuit, and the one table of what leads from which to which."""

from __future__ import annotations

from enum import Enum
from typing import Final

__all__ = ["NEXT", "Cause", "State"]


class State(Enum):
    """What the breaker does with calls, as the table at the head of `circuit_breaker`
    says.
    """

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"
    FORCED_OPEN = "forced_open"
    DISABLED = "disabled"


class Cause(Enum):
    """What can change the state."""

    TRIPPED = "a rate in a window reached its threshold"
    WAITED = "the open time is over and someone asks"
    ANSWERED = "a canary succeeded"
    PROBES_PASSED = "enough probes succeeded"
    PROBES_FAILED = "too many probes failed"
    RESET = "reset()"
    FORCED = "force_open()"
    DISABLED = "disable()"


# Every change of state there is. A missing pair cannot come up.
NEXT: Final[dict[tuple[State, Cause], State]] = {
    (State.CLOSED, Cause.TRIPPED): State.OPEN,
    (State.OPEN, Cause.WAITED): State.HALF_OPEN,
    (State.OPEN, Cause.ANSWERED): State.HALF_OPEN,
    (State.HALF_OPEN, Cause.PROBES_PASSED): State.CLOSED,
    (State.HALF_OPEN, Cause.PROBES_FAILED): State.OPEN,
    **{(state, Cause.RESET): State.CLOSED for state in State},
    **{(state, Cause.FORCED): State.FORCED_OPEN for state in State},
    **{(state, Cause.DISABLED): State.DISABLED for state in State},
}
