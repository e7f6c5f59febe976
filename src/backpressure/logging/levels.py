"""Levels and priorities: what is urgent for `logging` is urgent for the buffer."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final

from backpressure.base.priority import (
    PRIORITY_LEVELS,
    Priority,
    check_priority,
    default_priority,
)

__all__ = ["LEVELS", "Priorities", "priority_of"]

#: The level of each priority, the most urgent first.
LEVELS: Final = {
    Priority.CRITICAL: logging.CRITICAL,
    Priority.HIGH: logging.ERROR,
    Priority.NORMAL: logging.WARNING,
    Priority.LOW: logging.INFO,
    Priority.BACKGROUND: logging.DEBUG,
}


def priority_of(levelno: int) -> int:
    """The priority of a level: CRITICAL 1, ERROR 2, WARNING 3, INFO 4, all below 5.

    A level between two has the lower one's.
    """
    for priority, least in LEVELS.items():
        if levelno >= least:
            return int(priority)
    return int(Priority.BACKGROUND)


class Priorities(dict[int, int]):
    """Priority by level number. Each level is looked up once, when it first comes.

    given: as for BufferHandler. levels: how many priorities the buffer has; one that is
        given and beyond them is refused (InvalidEvents), and where none is given the
        least urgent levels of logging share the last. in_order: None means one for all
        levels.
    """

    def __init__(
        self,
        given: int | str | Mapping[int | str, int] | None,
        levels: int = PRIORITY_LEVELS,
        *,
        in_order: bool = False,
    ) -> None:
        super().__init__()
        self._least_urgent = levels
        self._steps: list[tuple[int, int]] | None = None
        if isinstance(given, Mapping):
            numbers = {
                _level_number(level): check_priority(priority, levels)
                for level, priority in given.items()
            }
            if not numbers:
                raise ValueError("priority: an empty mapping names no priority; leave it out")
            self._steps = sorted(numbers.items(), reverse=True)
        elif isinstance(given, str):
            if given != "level":
                raise ValueError(
                    f'priority must be a number from 1 to {levels}, "level", or a mapping of '
                    f"levels, not {given!r}"
                )
        elif given is not None or in_order:
            given = default_priority(levels) if given is None else given
            self._steps = [(logging.NOTSET, check_priority(given, levels))]

    def __missing__(self, levelno: int) -> int:
        if self._steps is None:
            priority = min(priority_of(levelno), self._least_urgent)
        else:
            # Levels below the lowest that is named have its priority.
            priority = next(
                (one for least, one in self._steps if levelno >= least), self._steps[-1][1]
            )
        self[levelno] = priority
        return priority


def _level_number(level: int | str) -> int:
    if isinstance(level, int):
        return level
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ValueError(f"priority: there is no level {level!r}")
    return number
