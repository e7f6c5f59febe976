"""What a lane's ring owes when its file comes back under another boot id.

That is after power loss, or on another host.

Such a file may hold less than was put into it. Of the lane's numbers

    0 ......... end_seq ......... settled_seq ......... next_seq ......... new ring
    [ on disk,  )[ went to disk   |====== owed =========)[ perhaps given out, and
    [ or settled)[ and is lost    |                     )[ no file knows of them )
                 [ there, or was  |
                 [ acked          |

 1. What lies below end_seq the disk holds, or knows to be settled: it is the store's.
 2. What had not been released, at the latest moment that the file knows of, is owed.
 3. What had been released is owed again if it lies below `stored_seq`: it was on disk,
    and power loss took it from there. Otherwise it was acked, dropped or dead-lettered.
 4. What is owed is delivered if its checksum proves it whole, and reported as missing
    if not, in exact ranges up to next_seq. Whether events followed that number, no file
    tells.
 5. No number is given out twice: the new ring begins further behind next_seq than any
    producer can have come.

An event that was acked shortly before may be delivered again, and reported missing if
its room in the ring was used again: the ack was only in memory.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from backpressure.base.errors import FormatError
from ringbuf import Salvage

__all__ = ["MOST_SEQ", "NUMBERS_JUMP", "RingDebt", "check_numbers", "debt_of", "implausible"]

# More numbers than a lane can give out between two moments of which the disk knows
# anything, the kernel's write-back being one for every half minute: at ten million
# events a second it is a day and a half. There is room for sixteen million such jumps.
NUMBERS_JUMP: Final = 1 << 40
# No lane comes this far, jumps included: a file with a larger number is damaged, and a
# lane that went on from there would run out of numbers.
MOST_SEQ: Final = 1 << 62


def implausible(seq: int) -> str | None:
    """What is wrong with a file that gives the next event the number `seq`, or None."""
    if seq <= MOST_SEQ:
        return None
    return f"it says that {seq:,} events were numbered, more than a lane can have counted"


def check_numbers(path: str, seq: int) -> None:
    """Raise FormatError where a file gives the next event an impossible number.

    `path` is where `seq` was read.
    """
    if wrong := implausible(seq):
        raise FormatError(path, f"{wrong}: see `forebay verify` and `forebay repair`")


class RingDebt(NamedTuple):
    """Ranges of numbers (first, after the last), ascending and disjoint."""

    whole: list[tuple[int, int]]
    missing: list[tuple[int, int]]

    @property
    def events(self) -> int:
        """How many are whole."""
        return sum(end - first for first, end in self.whole)


def debt_of(found: Salvage, end_seq: int) -> RingDebt:
    """What a salvaged ring owes beside a store that ends at `end_seq`."""
    released = min(found.stored_seq, found.settled_seq)
    debt = RingDebt([], [])
    for first, end in ((end_seq, released), (max(end_seq, found.settled_seq), found.next_seq)):
        for start, stop in found.ranges:
            start, stop = max(start, first), min(stop, end)
            if start < stop:
                if first < start:
                    debt.missing.append((first, start))
                debt.whole.append((start, stop))
                first = stop
        if first < end:
            debt.missing.append((first, end))
    return debt
