"""Frozen snapshots of a lane: every term of its two conservation lines.

At every moment:

    offered  = accepted + rejected{reason}
    accepted = acked + dead_lettered + dropped{reason} + resident

`resident` is not computed from the others: it is what the lane holds (`waiting` in the
ring and on disk, `in_flight` with consumers, `retrying` after a nack), so that the
second line can fail, and a test asserts that it does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from backpressure.base.histogram import HistogramStats

__all__ = ["DiskStats", "LaneStats"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskStats:
    """The disk tier of one lane, or of all, at one moment."""

    #: Events that an earlier run had accepted, found at the start. They count as
    #: offered and accepted.
    recovered: int
    waiting: int  #: of the lane's waiting events, those on disk
    events: int  #: on disk and not settled, waiting or with consumers
    used_bytes: int  #: all files but the ring
    spilled: int  #: events written to disk since the start
    spilled_bytes: int  #: their payload
    stored_bytes: int  #: the size on disk of that payload, compressed, with headers
    #: Every accepted event below it is settled or survives power loss; of all lanes
    #: together: 0.
    durable_seq: int
    unsynced: int  #: numbers accepted and not durable yet
    lost_ranges: int  #: damaged ranges passed over; their events are in `dropped`
    failed_syncs: int
    refused_full: int  #: times that the disk, or max_disk_bytes, had no room


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneStats:
    """One lane at one moment.

    Counts are events since the start unless they say otherwise.
    """

    priority: int
    offered: int  #: given to add_events or add_lines, again at each call
    accepted: int
    #: By `RejectReason`.
    rejected: Mapping[str, int]
    acked: int
    dead_lettered: int
    #: Accepted and given up, by `DropReason`.
    dropped: Mapping[str, int]
    #: Accepted, and none of the above yet: waiting + in_flight + retrying.
    resident: int
    waiting: int  #: in the ring or on disk, and never yet delivered
    in_flight: int  #: with a consumer
    retrying: int  #: nacked, to be delivered again
    redelivered: int  #: delivered a second time or more
    batches_acked: int
    batches_nacked: int
    used_bytes: int  #: of the ring, headers included
    capacity_bytes: int  #: of the ring
    oldest_age: float  #: seconds that the oldest waiting event has waited
    #: Seconds from arrival to first delivery, to 10 ms, of each batch's oldest event.
    queue_delay: HistogramStats
    batch_latency: HistogramStats  #: seconds from get_batch to the ack, of each acked batch
    batch_events: HistogramStats  #: events in each acked batch
    disk: DiskStats | None = None  #: None: in memory only

    def check(self) -> None:
        """Raise AssertionError unless both conservation lines hold."""
        assert self.offered == self.accepted + sum(self.rejected.values()), self
        out = self.acked + self.dead_lettered + sum(self.dropped.values())
        assert self.accepted == out + self.resident, self
        assert self.resident == self.waiting + self.in_flight + self.retrying, self
        assert min(self.waiting, self.in_flight, self.retrying) >= 0, self
