"""Rules REGEX=N that give lines their priority: the first that matches wins.

A rule searches the first SEARCHED_BYTES of a line (see line_patterns.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeAlias

from backpressure.base.priority import PRIORITY_LEVELS, Priority
from backpressure.sources.line_patterns import SEARCHED_BYTES, compile_pattern

__all__ = ["PriorityRules", "Rule", "lines_of", "parse_rule"]

Rule: TypeAlias = tuple[re.Pattern[bytes], int]


def parse_rule(text: str) -> Rule:
    """`REGEX=N` as a compiled pattern of bytes and a priority.

    ValueError says what is wrong with it.
    """
    pattern, equals, number = text.rpartition("=")
    if not equals:
        raise ValueError(f"{text!r} has no '=': write REGEX=N, for instance ' 50[0-9] =1'")
    if number not in {str(level) for level in range(1, PRIORITY_LEVELS + 1)}:
        raise ValueError(
            f"the priority in {text!r} must be from 1 to {PRIORITY_LEVELS}, not {number!r}"
        )
    return compile_pattern(pattern), int(number)


def lines_of(chunk: memoryview) -> list[bytes]:
    """The lines of a chunk, without their newlines."""
    lines = bytes(chunk).split(b"\n")
    if not lines[-1]:
        lines.pop()  # what follows the last newline
    return lines


class PriorityRules:
    """Splits a chunk of lines by priority.

    default: the priority of lines that no rule matches.
    Thread safety: immutable, so any thread may use it.
    """

    def __init__(self, rules: Sequence[Rule], default: int = Priority.NORMAL) -> None:
        self._default = default - 1
        self._rules = [(pattern.search, priority) for pattern, priority in rules]

    def split(self, chunk: memoryview) -> list[tuple[int, list[bytes]]]:
        """The lines of `chunk` (without newlines) by priority, the most urgent first.

        Order is kept within each.
        """
        by_priority: list[list[bytes]] = [[] for _ in range(PRIORITY_LEVELS)]
        for line in lines_of(chunk):
            for search, priority in self._rules:
                if search(line, 0, SEARCHED_BYTES):
                    by_priority[priority - 1].append(line)
                    break
            else:
                by_priority[self._default].append(line)
        return [(priority, found) for priority, found in enumerate(by_priority, 1) if found]
