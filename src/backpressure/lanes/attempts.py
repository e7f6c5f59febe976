"""Attempts: which failures count against a batch, and when it is halved.

A sink that fails is away, or cannot stand this batch; only what becomes of other
batches tells which. So

1. a failure counts against a batch only if the sink has taken something else since the
   failure before: an outage counts against nothing, however it shows, and an event that
   the sink cannot stand is found, however it shows;
2. a batch is halved after HALVE_AFTER counted failures, and its halves begin anew;
3. where the sink has taken nothing meanwhile there is nothing to compare with: the
   third failure in a row halves the batch too, one batch of a buffer at a time, and
   that counts against nothing. One half is compared with the other;
4. failures of a half whose sibling was taken, and of a suspect behind which others were
   taken, say nothing about the sink.

A *suspect* is what was halved, or a single event that would have been. After a failure
of it another piece of its lane is tried at once, for comparison: one that was not tried
before, or else seldom any. (What comes in meanwhile has the suspect tried again first,
so that an outage that has just ended is not taken for its fault.) If the other piece is
taken, the suspect is tried again at once: now it is taken as well, where the sink had
been away, and at most one piece has overtaken it; or it fails and is *proved* to be the
trouble, and from then on it holds up nothing while it pauses.

Pure: no lock, no clock. A batch's Attempts are changed under its lane's lock. Counts of
SinkRecord may lag where threads meet, which puts a verdict off by one attempt.
"""

from __future__ import annotations

import itertools
import weakref
from enum import Enum
from typing import Final

__all__ = ["HALVE_AFTER", "Attempts", "SinkRecord", "Verdict"]

#: Counted failures, or failures with nothing to compare with, before a batch is halved:
#: a sink that fails one call in five by itself halves one batch in a hundred.
HALVE_AFTER: Final = 3
#: A sink that rejects this many single events in a row, and takes nothing in between,
#: rejects everything.
_REJECTS_ALL: Final = 10
#: A failure that took longer (seconds) is not followed by a comparison: the sink may
#: have come back meanwhile, and the order of the lane would be lost for nothing.
_QUICK: Final = 1.0


class Verdict(Enum):
    """What a failure does to its batch."""

    AGAIN = "again"
    HALVE = "halve"
    GIVE_UP = "give_up"


class SinkRecord:
    """What the sink of one buffer has taken so far."""

    def __init__(self) -> None:
        #: How many batches, or parts of them, it has taken.
        self.taken = 0
        self._count = itertools.count(1)
        # What is halved for want of a comparison. Weak: it may be dropped unsettled.
        self._probed: weakref.ref[Attempts] | None = None
        self._rejected_in_a_row = 0

    def took(self, attempts: Attempts) -> None:
        """It took the batch with these attempts, or some of its events."""
        self.taken = next(self._count)
        self._probed = None
        self._rejected_in_a_row = 0
        if attempts.sibling is not None:
            attempts.sibling.cleared = True
            attempts.sibling = None

    def may_probe(self, attempts: Attempts) -> bool:
        """Whether nothing else is being halved for want of a comparison."""
        probed = None if self._probed is None else self._probed()
        return probed is None or probed is attempts

    def probe(self, attempts: Attempts) -> None:
        """That one is, now."""
        self._probed = weakref.ref(attempts)

    def end_probe(self, attempts: Attempts) -> bool:
        """That one is no longer; whether it was."""
        was = self._probed is not None and self._probed() is attempts
        if was:
            self._probed = None
        return was

    def rejects_all(self) -> bool:
        """Count a single event that it rejected; whether it rejects everything."""
        self._rejected_in_a_row += 1
        return self._rejected_in_a_row >= _REJECTS_ALL


class Attempts:
    """The failures of one batch, since it was taken from its lane or halved.

    before: of the batch that this is a half of.
    """

    __slots__ = (
        *("cleared", "compared", "counted", "failures", "proved", "sibling", "suspect"),
        *("__weakref__", "_asked", "_quick", "_alone", "_taken_before"),
    )

    def __init__(self, before: Attempts | None = None) -> None:
        self.failures = 0
        self.counted = 0
        #: The other half, while it was not taken.
        self.sibling: Attempts | None = None
        #: Its failures say nothing about the sink.
        self.cleared: bool = before is not None and before.cleared
        self.suspect = before is not None
        self.proved: bool = before is not None and before.proved
        #: What the sink had taken at the failure before; None: there was none.
        self._taken_before: int | None = None if before is None else before._taken_before
        # Failures in a row in which the sink took nothing else.
        self._alone = 0
        #: Since its last failure another piece was tried.
        self.compared = True
        self._quick = True
        self._asked = False

    def failed(
        self,
        sink: SinkRecord,
        *,
        events: int,
        seconds: float,
        comparison: bool,
        canary: bool,
        max_attempts: int | None,
    ) -> Verdict:
        """An attempt with that many events failed after that many seconds, and the
        error does not name the batch. comparison: it went out of its turn; canary: the
        circuit was open, and this was to show whether the sink is back.
        """
        others_taken = self._taken_before is not None and sink.taken != self._taken_before
        self.failures += 1
        self._alone = 1 if others_taken else self._alone + 1
        self._taken_before = sink.taken
        self._quick = seconds <= _QUICK or events == 1
        self._asked = canary
        # Not after one that was a comparison itself, or all that the lane holds would
        # follow.
        self.compared = comparison
        if others_taken:
            self.counted += 1
            if self.suspect:
                self.cleared = self.proved = True
        if events == 1 and max_attempts is not None and self.counted >= max_attempts:
            return Verdict.GIVE_UP
        least = HALVE_AFTER if max_attempts is None else min(HALVE_AFTER, max_attempts)
        if self.counted < least and not self._is_without_comparison(sink):
            return Verdict.AGAIN
        self.suspect = True
        if events == 1:
            sink.end_probe(self)  # it is found, and another may be looked for
            return Verdict.AGAIN
        if not self.cleared:
            sink.probe(self)
        return Verdict.HALVE

    def _is_without_comparison(self, sink: SinkRecord) -> bool:
        """Whether it is judged although too little counts against it."""
        if self.failures < HALVE_AFTER:
            return False
        # The sink takes others, but there are none at present; or it takes nothing.
        return self.cleared or (self._alone >= HALVE_AFTER and sink.may_probe(self))

    def halve(self, sink: SinkRecord) -> tuple[Attempts, Attempts]:
        """Those of its halves."""
        halves = Attempts(self), Attempts(self)
        halves[0].sibling, halves[1].sibling = halves[1], halves[0]
        if sink.end_probe(self):
            sink.probe(halves[0])
        return halves

    def is_due(self, sink: SinkRecord) -> bool:
        """Whether it is to be tried at once: the sink has taken something else since it
        failed, and it may have been away until then.
        """
        return self.suspect and not self.proved and self._taken_before not in (None, sink.taken)

    @property
    def is_flowed_around(self) -> bool:
        """Whether what is newer goes out while this pauses."""
        return self.suspect and self.proved

    @property
    def is_comparable(self) -> bool:
        """Whether something else may be tried while this pauses."""
        return self.suspect and self._quick

    @property
    def wants_comparison(self) -> bool:
        """Whether something else is to be tried now, though it was tried before."""
        return not self.compared and (self._asked or _is_compared(self.failures))

    @property
    def kept_it_open(self) -> bool:
        """Whether the circuit stays open for the failure of this alone, so that
        something else should be tried although it is.
        """
        return self._asked


def _is_compared(failures: int) -> bool:
    """Whether that failure is followed by a comparison with any other piece.

    The first, as the other half is there; and those after long pauses, within which a
    sink that was away has seldom come back just before the comparison.
    """
    return failures == 1 or failures >= 4
