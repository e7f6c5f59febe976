"""Counting what goes by, without a lock: the circuit breaker's way in and out while all
is well.

A fast path has two lists of tokens, one for calls that are let in and one for those
that succeed. A call that takes a token is counted by that. `list.pop` is atomic with
and without the GIL, so none is counted twice or left out. A call that finds a list
empty takes the lock of the fast path's owner and is counted there; the owner refills
the lists whenever it holds its lock.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from backpressure.policies.circuit_breaker.breaker import CircuitBreaker

__all__ = ["FastPath"]

# Calls that pass between two visits to the lock. With 256 the visits were a tenth of
# what a call costs, with 1,024 they are a fortieth; to empty the list when it shuts
# takes some 40 us.
_TOKENS: Final = 1024


class FastPath:
    """For one generation of the owner's state; shut at first.

    While it is shut its lists are empty: no call gets by, and a success that
    comes too late finds none and learns under the lock that its generation is over.
    Threads without the lock take tokens and read; they change nothing else.
    """

    __slots__ = (
        "_tokens",
        "admissions",
        "generation",
        "is_open",
        "owner",
        "read",
        "since",
        "successes",
        "until",
    )

    def __init__(self, owner: CircuitBreaker, generation: int) -> None:
        self.owner = owner
        self.generation = generation
        self.read = owner._read  # the clock; here it is one look-up less away from a permit
        self.is_open = False
        self._tokens = _TOKENS
        self.admissions: list[None] = []
        self.successes: list[None] = []
        # Readings of the clock between which a success may be counted here, as the
        # window's bucket is the right one.
        self.since, self.until = math.inf, -math.inf

    def open(self, since: float, until: float) -> None:
        """Let calls by, or go on doing so, while the clock reads from `since` to
        `until`.
        """
        if not self.is_open:
            self.is_open = True
            self.successes.extend([None] * self._tokens)
            self.admissions.extend([None] * self._tokens)
        self.since, self.until = since, until

    def shut(self) -> tuple[int, int]:
        """Let no call by; how many admissions and successes there were since the last
        count.
        """
        if not self.is_open:
            return 0, 0
        self.is_open = False
        self.since, self.until = math.inf, -math.inf
        succeeded = self._tokens - _empty(self.successes)
        return self._tokens - _empty(self.admissions), succeeded

    def count(self) -> tuple[int, int]:
        """How many admissions and successes there were since the last count."""
        if not self.is_open:
            return 0, 0
        # In this order, so that a reader of the counts never sees more successes than
        # admissions.
        succeeded = self._tokens - len(self.successes)
        admitted = self._tokens - len(self.admissions)
        self.admissions.extend([None] * admitted)
        self.successes.extend([None] * succeeded)
        return admitted, succeeded


def _empty(tokens: list[None]) -> int:
    """Take all that is in it, one by one as others may be taking too; how many there
    were.
    """
    count = 0
    try:
        while True:
            tokens.pop()
            count += 1
    except IndexError:
        return count
