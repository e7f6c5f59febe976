"""Turns: what a lane delivers next, of nacked batches and new events.

A nacked batch goes again in its place: nothing newer overtakes it while it pauses. Two
things do, where it is a suspect (see attempts.py): what it is compared with, and, once
it is proved to be the trouble, whatever there is.

Pure: nothing is changed here, so it also serves without the lane's lock, with a copy of
its retries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from backpressure.lanes.attempts import SinkRecord
from backpressure.lanes.handout import Handout

__all__ = ["Turn", "next_turn"]

# While the sink takes nothing at all, new events are tried beside failing batches only
# up to this many: each is held in memory, and is another call to a sink that may be
# away.
_MOST_COMPARED: Final = 4


class Turn(NamedTuple):
    """What goes out next."""

    #: Whether there is anything to be delivered now.
    ready: bool
    #: The nacked batch whose turn it is; None: new events.
    retry: Handout | None = None
    #: The suspect that it is compared with, where it goes out of its turn.
    suspect: Handout | None = None
    #: Whether it should although the circuit is open: the suspect keeps it so.
    asks: bool = False
    #: When the next pause of a nacked batch that was looked at ends.
    retry_at: float | None = None


_NEW_EVENTS: Final = Turn(True)
_NOTHING: Final = Turn(False)


def next_turn(
    retries: Sequence[Handout], now: float, sink: SinkRecord, has_waiting: Callable[[], bool]
) -> Turn:
    """Of these nacked batches and, where there are any, of new events."""
    if not retries:
        return _NEW_EVENTS if has_waiting() else _NOTHING
    if len(retries) > 1:
        retries = sorted(retries)
    retry_at = math.inf
    for place, handout in enumerate(retries):
        attempts = handout.attempts
        if handout.not_before <= now or attempts.is_due(sink):
            return Turn(True, handout)
        retry_at = min(retry_at, handout.not_before)
        if attempts.is_flowed_around:
            continue
        turn = None
        if attempts.is_comparable:
            turn = _comparison(handout, retries[place + 1 :], has_waiting)
        return _NOTHING._replace(retry_at=retry_at) if turn is None else turn
    return Turn(has_waiting(), retry_at=retry_at)


def _comparison(
    suspect: Handout, behind: Sequence[Handout], has_waiting: Callable[[], bool]
) -> Turn | None:
    """What goes out while a suspect pauses. behind: the pieces after it."""
    attempts = suspect.attempts
    other = min(behind, key=lambda one: one.attempts.failures, default=None)
    untried = other is not None and not other.attempts.failures
    if not untried and len(behind) < _MOST_COMPARED and has_waiting():
        untried, other = True, None
    asks = attempts.kept_it_open
    if untried and attempts.compared:
        return Turn(True, suspect, asks=asks)
    if untried or (other is not None and attempts.wants_comparison):
        return Turn(True, other, suspect, asks=asks)
    return None
