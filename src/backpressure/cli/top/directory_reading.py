"""A buffer's directory at one moment, as `forebay top DIR` needs it.

Everything is read from the files: positions of the rings, ends of the segments, acks.
The next number of a lane less that of a second ago is what it accepted; what is owed
has grown by that less what was acked, given up or dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from backpressure.cli.disk.ring_view import RingFileView, look_at_ring
from backpressure.spill.offline.directory_view import BufferView, LaneView, look_at_lane
from backpressure.spill.offline.lane_reader import (
    end_seq_of,
    owed_on_disk,
    settled_of,
    stored_events,
)
from backpressure.spill.runs import Run

__all__ = ["DirectoryReading", "LaneState"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneState:
    """One priority's files, or those of the dead letters, at one moment."""

    number: int  #: 1 to 5, or 0 for the dead letters
    ring: RingFileView | None  #: None: there is no file
    segments: int
    disk_bytes: int  #: of the segments
    disk_events: int  #: on disk, and owed
    disk_end: int  #: the number after the last one on disk
    acked_below: int  #: every event with a lower number is settled, by the record on disk
    #: When the oldest event on disk was written there, ns since 1970; 0: there is none,
    #: or it is not known.
    oldest_ns: int
    damaged_headers: int
    quarantined: int  #: files
    quarantined_bytes: int

    @property
    def next_seq(self) -> int:
        """The number that the next event gets."""
        ring = None if self.ring is None else self.ring.next_seq
        return self.disk_end if ring is None else max(ring, self.disk_end)

    @property
    def ring_waiting(self) -> int:
        """Numbers in the ring that were never taken."""
        ring = self.ring
        return (
            0
            if ring is None or ring.next_seq is None
            else max(ring.next_seq - max(ring.read_seq, self.disk_end), 0)
        )

    @property
    def ring_out(self) -> int:
        """Numbers in the ring that are with a consumer, or on their way to disk."""
        ring = self.ring
        if ring is None or ring.next_seq is None:
            return 0
        return max(ring.read_seq - max(ring.acked_seq, self.disk_end), 0)

    @property
    def owed(self) -> int:
        """Events accepted and not settled.

        A number that a killed producer took and never used counts until it is passed.
        """
        return self.ring_waiting + self.ring_out + self.disk_events


class DirectoryReading:
    """The directory at one moment, and the rates since the reading before."""

    def __init__(self, view: BufferView, at: float, before: DirectoryReading | None = None) -> None:
        """Read the files. Raises FormatError, OSError."""
        self.view = view
        self.at = at  #: seconds, of a steady clock
        self.lanes = {lane.number: _read_lane(view, lane) for lane in view.lanes}
        self.dead_letters = (
            None if view.dead_letters is None else _read_lane(view, view.dead_letters)
        )
        self._before = (
            before
            if before is not None and before.view.buffer_id == view.buffer_id and at > before.at
            else None
        )

    def rate(self, count: Callable[[LaneState], int], priority: int | None = None) -> float | None:
        """How fast a count of a lane, or of all, has grown, 1/s.

        None: there is no reading before.
        """
        if self._before is None:
            return None
        total = 0
        for lane in self.lanes.values():
            if priority in (None, lane.number):
                then = self._before.lanes.get(lane.number)
                # Another directory took the place of this one.
                if then is None or lane.next_seq < then.next_seq:
                    return None
                total += count(lane) - count(then)
        return total / (self.at - self._before.at)


def _read_lane(view: BufferView, lane: LaneView) -> LaneState:
    # The ring first: what goes to disk in between is then in both, and counted once by
    # its numbers.
    ring = look_at_ring(lane.ring_path) if lane.number else None
    found = look_at_lane(view, lane)
    owed = owed_on_disk(found)
    first = (
        next((item for item in stored_events(view, lane) if isinstance(item, Run)), None)
        if owed
        else None
    )
    end_seq = end_seq_of(found)
    return LaneState(
        number=lane.number,
        ring=ring,
        segments=len(found.segments),
        disk_bytes=sum(segment.size for segment in found.segments),
        disk_events=owed,
        disk_end=end_seq,
        acked_below=min(settled_of(found).next_open(0), end_seq),
        oldest_ns=0 if first is None else first.time_ns,
        damaged_headers=found.damaged_headers,
        quarantined=len(found.quarantined),
        quarantined_bytes=sum(size for _, size in found.quarantined),
    )
