"""What a lane's ring owes when its file comes back under another boot id: after power
loss, or on another host.

Such a file may hold less than was put into it. Of the lane's numbers

    0 ........... end_seq ......... settled_seq ......... next_seq ......... first number of the new ring
    [= on disk, ==)[= went to disk =|===== owed ==========)[= perhaps given out before, by nobody known =)
       or settled)  [   and is lost |
                    [   there, or   |
                    [   was acked)

 1. what the disk holds, or holds as settled, is the disk's business: everything below
    its end_seq;
 2. what had not been released, at the latest moment that the file knows of, is owed;
 3. what had been released is owed again if it lies below `stored_seq`: it was on disk,
    and power loss took it from there. Else it was acked, dropped or given up;
 4. what is owed is delivered if its checksum proves it whole, and reported as missing
    if not. These are exact ranges, up to next_seq; whether there ever were events
    behind it, no byte on the disk tells.
 5. No number is given out twice: the new ring begins so far behind next_seq that nobody
    can have come there.

An event that was acked shortly before may come again, and be reported missing if its
place in the ring was used again: of the ack only memory knew.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from backpressure.base.errors import FormatError
from ringbuf import Salvage

__all__ = ["MOST_SEQ", "NUMBERS_JUMP", "RingDebt", "check_numbers", "debt_of", "implausible"]

# More numbers than a lane can give out between two moments of which the disk has
# anything, the kernel's write-back being one for every half minute: at ten million
# events a second it is a day and a half. There is room for sixteen million such jumps.
NUMBERS_JUMP: Final = 1 << 40
# No lane has come this far, jumps included: the file that says so says nonsense, and
# behind it numbers would end.
MOST_SEQ: Final = 1 << 62


def implausible(seq: int) -> str | None:
    """What is wrong with a file by which `seq` is the next event's number; None:
    nothing.
    """
    if seq <= MOST_SEQ:
        return None
    return f"it says that {seq:,} events were numbered, more than a lane can have counted"


def check_numbers(path: str, seq: int) -> None:
    """FormatError where what lies at `path` says that `seq` is the next event's number,
    and that can not be.
    """
    if wrong := implausible(seq):
        raise FormatError(path, f"{wrong}: see `forebay verify` and `forebay repair`")


class RingDebt(NamedTuple):
    """Ranges of numbers (first, after the last), ascending and apart from each other."""

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
