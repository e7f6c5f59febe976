"""A frozen snapshot of a store."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SpillStats"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpillStats:
    """A store at one moment.

    Counts are since it was opened unless they say otherwise.
    """

    first_seq: int  #: the oldest number that is not settled
    end_seq: int  #: the number after the last one
    durable_seq: int  #: what is stored below it survives power loss
    events_on_disk: int  #: stored and neither acked nor lost, at this moment
    bytes_on_disk: int  #: all files, at this moment
    segments: int  #: files, at this moment
    acked_ranges: int  #: ranges acked out of turn, at this moment
    appended_events: int
    appended_bytes: int  #: of payload
    stored_bytes: int  #: the size on disk of that payload, with headers
    acked_events: int
    lost_events: int  #: reported as Lost
    lost_ranges: int
    torn_bytes: int  #: cut at the end of the newest file when the store was opened
    damaged_headers: int  #: of segments, found when the store was opened; cost no event
    quarantined_segments: int  #: kept aside, at this moment
    quarantined_bytes: int
    failed_syncs: int
    #: Times that the ack record could not be written; each costs redelivery at most.
    failed_acks: int
    refused_full: int  #: appends that raised DiskFull
