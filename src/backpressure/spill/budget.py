"""DiskBudget: the room that a store has, or several share.

Each store is asked what it takes at that moment, so nothing has to be given back.

Thread safety: any thread may call any method. Stores that write at the same moment may
be over the limit by a block of each but one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from backpressure.base.errors import DiskFull

__all__ = ["DiskBudget", "OverBudget"]

# Room comes back when consumers ack (seconds).
_RETRY_AFTER: Final = 0.2


class OverBudget(DiskFull):
    """`max_disk_bytes` leaves no room for these bytes; the disk itself may."""


class DiskBudget:
    """limit: bytes that all stores together may take."""

    def __init__(self, limit: int) -> None:
        self.limit: Final = limit
        self._used: list[Callable[[], int]] = []

    def join(self, used: Callable[[], int]) -> None:
        """Count what a store takes, as `used` says."""
        self._used.append(used)

    @property
    def used(self) -> int:
        """Bytes that all stores take now."""
        return sum(used() for used in self._used)

    def check(self, nbytes: int) -> None:
        """Raise OverBudget where there is no room for so many bytes more."""
        used = self.used
        if used + nbytes > self.limit:
            raise OverBudget(
                f"the files take {used:,} bytes of max_disk_bytes ({self.limit:,}), "
                f"and {nbytes:,} more are too many",
                _RETRY_AFTER,
            )
