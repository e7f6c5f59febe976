"""SizeLimit: how many bytes of payload the sink takes at a time, as it has shown.

What it finds too large is above the limit, what it takes is below, and the next batch
tries what lies between: so a sink with a limit of its own refuses a few batches, and
then none.
"""

from __future__ import annotations

from typing import Final

__all__ = ["SizeLimit"]

# A batch of so much of the gap between what was taken and what was refused …
_STEP: Final = 0.5
# … unless that gap is below this share of what was refused: closer does not pay.
_CLOSE: Final = 0.1


class SizeLimit:
    """most: the buffer's own limit (bytes). Safe for any thread: a race costs a batch
    that is halved, or is smaller than need be.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        #: How many bytes the next batch may have.
        self.nbytes = most
        self._refused = most + 1
        self._taken = 0

    def too_large(self, nbytes: int) -> None:
        """The sink has refused that many bytes for their size."""
        self._refused = max(1, min(nbytes, self._refused))
        if self._taken >= self._refused:
            self._taken = 0  # its limit is lower than it was
        # Half at first: what it takes is not known yet.
        self.nbytes = max(1, self._taken, self._refused // 2)

    def took(self, nbytes: int) -> None:
        """The sink has taken that many bytes."""
        if self._refused > self._most or nbytes <= self._taken:
            return
        self._taken = nbytes
        if nbytes >= self._refused:  # its limit is higher than it was
            self._refused = self._most + 1
            self.nbytes = self._most
            return
        gap = self._refused - nbytes
        if gap > _CLOSE * self._refused and nbytes * 2 > self.nbytes:
            self.nbytes = nbytes + int(gap * _STEP)
