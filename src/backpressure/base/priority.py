"""Priorities: 1 is the most urgent, as in syslog."""

from __future__ import annotations

from enum import IntEnum

from backpressure.base.errors import InvalidEvents
from backpressure.base.validation import as_int

__all__ = ["PRIORITY_LEVELS", "Priority", "check_priority", "default_priority"]


class Priority(IntEnum):
    """How urgent an event is. A plain int from 1 to 5 serves wherever one of these
    does.
    """

    CRITICAL = 1
    HIGH = 2
    NORMAL = 3
    LOW = 4
    BACKGROUND = 5


#: How many priorities there can be. A buffer has a lane for each of its
#: `flow_control.priority_levels`, which are these or fewer.
PRIORITY_LEVELS = len(Priority)


def check_priority(priority: int, levels: int = PRIORITY_LEVELS) -> int:
    """`priority` as a plain int from 1 to `levels`; InvalidEvents where it is none."""
    number = as_int(priority)
    if number is None or not 1 <= number <= levels:
        allowed = f"an int from 1 (most urgent) to {levels}" if levels > 1 else "1"
        why = "" if levels == PRIORITY_LEVELS else f" (priority_levels is {levels})"
        raise InvalidEvents(f"priority must be {allowed}{why}, not {priority!r}")
    return number


def default_priority(levels: int) -> int:
    """The priority of events that are given none, where there are that many."""
    return min(int(Priority.NORMAL), levels)
