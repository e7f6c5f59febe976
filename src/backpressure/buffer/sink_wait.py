"""SinkWait: where a source that can wait does so, instead of filling the disk.

A lane with a disk tier spills once its ring is filled to the spiller's mark. What is
spilled while the sink takes is compressed, written, read back and unpacked, and reaches
the sink no sooner than it would have from the ring. A source that can wait loses
nothing by waiting: a file stays where it is, and the writer of a pipe or of a socket
waits as well. So an add with `wait_for_sink` stops short of the mark.

The law, for each lane:

 1. What fits below the mark goes in at once. The rest waits while the sink takes.
 2. The sink is not taking where the circuit is open, the sink has asked to be left
    alone, or its delivery has ended: then all goes in. So it does while a close, a
    stop or a flush asks the sink: before an end, lines are to be safe.
 3. Nor is it where nothing of this lane was settled for QUIET seconds, or for three
    times what the last batch took; FAILED seconds are enough while a batch that failed
    waits to be tried again. From then on nothing waits until something is settled.
 4. Where consumers have all that the lane holds, the sink would take more at once: a
    sixteenth of the ring goes in, and at least one event. So many batches in flight
    are not bounded by the mark, and neither is the size of an event.
 5. An add of which nothing went in for LONGEST seconds waits no more: producers that
    do not wait, and keep the lane above its mark, do not keep out one that does.

So a wait ends by itself, whatever the sink, its consumers and other producers do. It
refuses nothing either: where the time of the add is over first, all goes in.

Time is the policies' clock. Thread safety: any number of sources; what they note of a
lane is at worst a moment old.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from backpressure.lanes.lane import Lane

__all__ = ["FAILED", "LONGEST", "QUIET", "SinkWait"]

#: Seconds without a settled event after which the sink is not taking: longer than a
#: sink's usual hiccup (a flush, a collection, a lost packet), and a source that waits
#: for that long loses nothing.
QUIET: Final = 1.0
#: The same where a batch has failed: some of its first pauses, so that a sink which
#: fails now and then goes on being waited for.
FAILED: Final = 0.1
#: The wait of one add ends after that many seconds: long beside what a sink takes to
#: make room, and short beside what an operator takes to notice.
LONGEST: Final = 10.0
# A sink whose calls take long is given that many of them.
_CALLS: Final = 3.0
# How far below the mark a source stops, as a share of the ring: the size of events is
# an average, and several sources look at the same time.
_MARGIN: Final = 1 / 16
# Bounds for the sleep until the next look (seconds).
_SHORTEST_PAUSE: Final = 0.001
_LONGEST_PAUSE: Final = 1.0


class SinkWait:
    """Of one lane.

    mark: the share of the ring at which spilling begins.
    takes: whether, at that time, the sink is called at all (2).
    """

    __slots__ = (
        *("now", "_lane", "_limit", "_piece"),
        *("_quiet_at", "_seen", "_since", "_takes"),
    )

    def __init__(
        self,
        lane: Lane,
        mark: float,
        *,
        takes: Callable[[float], bool],
        now: Callable[[], float],
    ) -> None:
        capacity = lane.ring.capacity_bytes
        self._lane = lane
        self._limit = int(capacity * (mark - _MARGIN))
        self._piece = int(capacity * _MARGIN)
        self._takes = takes
        #: The policies' clock.
        self.now: Final = now
        # Since when sources wait and nothing was settled; None: none waits.
        self._since: float | None = None
        # How many events were settled then.
        self._seen = 0
        # The same when patience ran out; -1: it never has.
        self._quiet_at = -1

    def most(self, events: int, nbytes: int) -> int:
        """How many of the next `events`, of about `nbytes` together, may go in now.

        0: their source waits.
        """
        lane = self._lane
        if fitting := _fitting(events, nbytes, self._limit - lane.ring.used_bytes):
            self._since = None
            return fitting
        now = self.now()
        if not self._takes(now):
            self._since = None
            return events
        if not lane.waiting():
            self._since = None
            return max(_fitting(events, nbytes, self._piece), 1)
        return events if self._is_quiet(now) else 0

    def pause(self, held_since: float) -> float:
        """Seconds until time alone may end the wait of an add that began then."""
        now = self.now()
        since = self._since
        end = held_since + LONGEST
        if since is not None:
            end = min(end, since + self._patience())
        return min(max(end - now, _SHORTEST_PAUSE), _LONGEST_PAUSE)

    def _is_quiet(self, now: float) -> bool:
        """Whether nothing has been settled for too long."""
        settled, since = self._lane.settled_by_sink, self._since
        if settled == self._quiet_at:
            return True
        if since is None or settled != self._seen:
            self._since, self._seen = now, settled
        elif not 0.0 <= now - since < self._patience():  # also where the clock steps back
            self._quiet_at = settled
            return True
        return False

    def _patience(self) -> float:
        """Seconds without a settled event that the sink is given."""
        if self._lane.has_retries:
            return FAILED
        return max(QUIET, _CALLS * self._lane.last_latency)


def _fitting(events: int, nbytes: int, room: int) -> int:
    """How many of them fit there, by their average size."""
    if nbytes <= room:
        return events
    return room * events // nbytes if room > 0 else 0
