"""Admissions ahead of the events: what flow control has granted to single events.

To ask for one event costs what asking for hundreds does. So a way in for single events
has a purse, which is filled with a few hundred admissions at a time, and each event
takes one out.

What is held (in purses, or used and not booked yet) counts within the burst: the bucket
holds at most the burst less that. So whatever lay in purses when it began, in any span
of time no more events enter than the burst and what the rate brings meanwhile.

All of them together hold at most a fiftieth of the burst, and one that is filled rarely
has little. What was used is booked (as admitted, as demand) at each look at the queue;
what is unused comes back when its owner is gone, and all of it when the rate or the
burst is changed, when an emergency begins, and where `delay_target` may refuse some.

Not safe for several threads: FlowControlManager calls it under its lock. The purses
are, and events go on to come in.
"""

from __future__ import annotations

import weakref
from typing import Final

from ringbuf._messages.prepaid import Purse

__all__ = ["Prepaid", "Prepayment"]

# The part of the burst that all purses together hold, at most.
_MOST_HELD: Final = 0.02
# Of one purse: an event's part of the cost of filling it is next to nothing then ...
_MOST: Final = 512
# ... and never more than this part of the burst.
_PART: Final = 256
# What a purse is filled with first. It doubles where the next filling comes within
# _OFTEN seconds, and is halved where it comes after _RARELY.
_FIRST: Final = 8
_OFTEN, _RARELY = 0.02, 0.5


class Prepayment:
    """One purse, and how it is filled. owner: who uses it; not kept alive."""

    __slots__ = ("booked", "ended", "filled_at", "owner", "p", "purse", "stock")

    def __init__(self, owner: object, p: int) -> None:
        self.purse: Final = Purse()
        self.owner: Final = weakref.ref(owner)
        #: The priority less 1.
        self.p: Final = p
        #: How many of those that were used are counted as admitted.
        self.booked = 0
        #: Nothing more is put into it.
        self.ended = False
        self.stock = _FIRST
        self.filled_at = 0.0


class Prepaid:
    """The purses of one FlowControlManager."""

    def __init__(self) -> None:
        self.all: list[Prepayment] = []
        #: Admissions in purses, and used ones that are not booked yet.
        self.held = 0

    def count_held(self) -> None:
        """Count anew: an exception of a signal's handler may have come between a change
        of a purse and its entry here.
        """
        self.held = sum(one.purse.unused + one.purse.used - one.booked for one in self.all)

    def wanted(self, prepayment: Prepayment, burst: int, now: float) -> int:
        """How many admissions that purse should get now; 0 where the burst is too small
        for any.
        """
        most = min(_MOST, burst // _PART, int(burst * _MOST_HELD) - self.held)
        since = now - prepayment.filled_at
        prepayment.filled_at = now
        if since < _OFTEN:
            prepayment.stock = min(2 * prepayment.stock, _MOST)
        elif since > _RARELY:
            prepayment.stock = max(prepayment.stock // 2, _FIRST)
        stock = min(prepayment.stock, most)
        return stock if stock > 1 else 0
