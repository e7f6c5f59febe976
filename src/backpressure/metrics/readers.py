"""How metrics are read off a snapshot: the readers of `FAMILIES`.

Label values are few and known beforehand. Each reader gives all of them from the start,
also those that count 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from backpressure.base.histogram import HistogramStats
from backpressure.base.reasons import DROP_REASONS, REJECT_REASONS
from backpressure.buffer.stats import BufferStats
from backpressure.delivery.stats import DeliveryStats
from backpressure.lanes.stats import DiskStats, LaneStats
from backpressure.metrics.family import Read, Reading

__all__ = [
    "by_priority",
    "of_delivery",
    "of_directory",
    "of_disk",
    "one_hot",
    "read_batches",
    "read_events",
    "read_resident",
    "several",
    "whole",
]


def by_priority(read: Callable[[LaneStats], float | HistogramStats]) -> Read:
    """A number of each lane."""
    return lambda stats: (((str(priority),), read(lane)) for priority, lane in stats.lanes.items())


def whole(read: Callable[[BufferStats], float]) -> Read:
    """A number of the whole buffer."""
    return lambda stats: iter([((), read(stats))])


def of_directory(read: Callable[[BufferStats], float | None]) -> Read:
    """A number of the whole buffer; no series where it has no directory."""
    return lambda stats: (((), value) for value in (read(stats),) if value is not None)


def of_delivery(read: Callable[[DeliveryStats], float]) -> Read:
    """A number of the delivery; no series where `deliver_to` was never called."""
    return lambda stats: (((), read(one)) for one in (stats.delivery,) if one is not None)


def several(read: Callable[[BufferStats], Mapping[str, float]]) -> Read:
    """Numbers by the value of one label."""
    return lambda stats: (((label,), value) for label, value in read(stats).items())


def read_events(stats: BufferStats) -> Iterator[Reading]:
    """Every term of the conservation lines that only grows."""
    for priority, lane in stats.lanes.items():
        level = str(priority)
        yield (level, "offered", ""), lane.offered
        yield (level, "accepted", ""), lane.accepted
        for reason, count in (dict.fromkeys(REJECT_REASONS, 0) | dict(lane.rejected)).items():
            yield (level, "rejected", reason), count
        yield (level, "acked", ""), lane.acked
        yield (level, "dead_lettered", ""), lane.dead_lettered
        for reason, count in (dict.fromkeys(DROP_REASONS, 0) | dict(lane.dropped)).items():
            yield (level, "dropped", reason), count


def read_resident(stats: BufferStats) -> Iterator[Reading]:
    """The events that are accepted and not settled, by state."""
    for priority, lane in stats.lanes.items():
        for state, count in (
            ("waiting", lane.waiting),
            ("in_flight", lane.in_flight),
            ("retrying", lane.retrying),
        ):
            yield (str(priority), state), count


def read_batches(stats: BufferStats) -> Iterator[Reading]:
    """Batches by how they ended."""
    for priority, lane in stats.lanes.items():
        yield (str(priority), "acked"), lane.batches_acked
        yield (str(priority), "nacked"), lane.batches_nacked


def of_disk(read: Callable[[DiskStats], float]) -> Read:
    """A number of each lane's disk tier; no series where there is none."""
    return lambda stats: (
        ((str(priority),), read(lane.disk))
        for priority, lane in stats.lanes.items()
        if lane.disk is not None
    )


def one_hot(names: Iterable[str], chosen: str | None) -> dict[str, float]:
    """1 for the chosen name, 0 for the others."""
    return {name: float(name == chosen) for name in names}
