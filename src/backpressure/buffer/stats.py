"""Frozen snapshots of a buffer: its lanes (see lanes/stats.py), their sums, and what
each policy says.

Both conservation lines hold for each priority and for the whole, at every moment.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from backpressure.base.frozen_dict import FrozenDict
from backpressure.delivery.stats import DeliveryStats
from backpressure.lanes.stats import DiskStats, LaneStats
from backpressure.policies.adaptive_batch_manager import AdaptiveBatchMetrics
from backpressure.policies.backpressure_monitor import Pressure
from backpressure.policies.circuit_breaker import CircuitBreakerMetrics
from backpressure.policies.flow_control_manager import FlowControlMetrics

__all__ = ["BufferStats", "sum_lanes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BufferStats:
    """The whole buffer at one moment: sums over the lanes, the lanes, and each policy's
    own snapshot.
    """

    at: float  #: the buffer's clock, seconds
    offered: int
    accepted: int
    rejected: Mapping[str, int]
    acked: int
    dead_lettered: int
    dropped: Mapping[str, int]
    resident: int
    waiting: int
    in_flight: int
    retrying: int
    redelivered: int
    batches_acked: int
    batches_nacked: int
    used_bytes: int
    capacity_bytes: int
    oldest_age: float
    backpressure_active: bool
    backpressure_seconds: float  #: time under backpressure so far
    circuit_trips: int  #: times that the breaker opened
    handler_errors: int  #: event handlers that raised
    #: Events not handed to handlers, because those before them took too long.
    handler_overflows: int
    closed: bool
    #: By `close()`, or by a fork: the buffer is the parent's. None: it is open.
    closed_by: Literal["close", "fork"] | None
    #: By priority. Those beyond `flow_control.priority_levels` are of a directory that
    #: was made with more, and still held something when it was opened.
    lanes: Mapping[int, LaneStats]
    disk: DiskStats | None  #: sums over the lanes; None: in memory only
    #: Given up, in this run or an earlier one of the same directory, and neither
    #: replayed nor purged.
    dead_letters: int
    #: Of these in memory, forgotten for want of room.
    dead_letters_lost: int
    delivery: DeliveryStats | None  #: of `deliver_to`; None: it was not called
    #: That opening the directory took, with all that was found there; None: in memory
    #: only.
    recovery_seconds: float | None
    pressure: Pressure
    circuit_breaker: CircuitBreakerMetrics
    batching: AdaptiveBatchMetrics
    flow_control: FlowControlMetrics

    def check(self) -> None:
        """Raise AssertionError unless both conservation lines hold, in the whole and in
        each lane.
        """
        for lane in self.lanes.values():
            lane.check()
        assert self.offered == self.accepted + sum(self.rejected.values()), self
        out = self.acked + self.dead_lettered + sum(self.dropped.values())
        assert self.accepted == out + self.resident, self


_SUMS: Final = (
    *("offered", "accepted", "acked", "dead_lettered", "resident", "waiting", "in_flight"),
    *("retrying", "redelivered", "batches_acked", "batches_nacked"),
    *("used_bytes", "capacity_bytes"),
)


def sum_lanes(lanes: Sequence[LaneStats]) -> dict[str, Any]:
    """Those fields of BufferStats that follow from the lanes, by name."""
    rejected: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    for lane in lanes:
        rejected.update(lane.rejected)
        dropped.update(lane.dropped)
    return {
        **{name: sum(getattr(lane, name) for lane in lanes) for name in _SUMS},
        "rejected": FrozenDict(dict(rejected)),
        "dropped": FrozenDict(dict(dropped)),
        "oldest_age": max(lane.oldest_age for lane in lanes),
        "lanes": FrozenDict({lane.priority: lane for lane in lanes}),
        "disk": _sum_disk_stats(lane.disk for lane in lanes),
    }


def _sum_disk_stats(parts: Iterable[DiskStats | None]) -> DiskStats | None:
    found = [part for part in parts if part is not None]
    if not found:
        return None
    names = [name for name in DiskStats.__slots__ if name != "durable_seq"]
    return DiskStats(
        durable_seq=0, **{name: sum(getattr(part, name) for part in found) for name in names}
    )
