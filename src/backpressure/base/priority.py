"""Priorities: 1 is the most urgent, as in syslog."""

from __future__ import annotations

from enum import IntEnum

from backpressure.base.errors import InvalidEvents

__all__ = ["PRIORITY_LEVELS", "Priority", "check_priority"]


class Priority(IntEnum):
    """How urgent an event is. A plain int from 1 to 5 serves wherever one of these
    does.
    """

    CRITICAL = 1
    HIGH = 2
    NORMAL = 3
    LOW = 4
    BACKGROUND = 5


#: How many priorities there are; each has a lane of its own.
PRIORITY_LEVELS = len(Priority)


def check_priority(priority: int) -> int:
    """`priority` as a plain int from 1 to 5; InvalidEvents where it is none."""
    if (
        isinstance(priority, bool)
        or not isinstance(priority, int)
        or not 1 <= priority <= PRIORITY_LEVELS
    ):
        raise InvalidEvents(
            f"priority must be an int from 1 (most urgent) to {PRIORITY_LEVELS}, not {priority!r}"
        )
    return int(priority)
