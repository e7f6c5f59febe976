"""The table of metrics: `FAMILIES`, each with its name, kind and labels, and how it is
read off a snapshot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, Literal, TypeAlias

from backpressure.base.histogram import HistogramStats
from backpressure.buffer.stats import BufferStats
from backpressure.lanes.stats import DiskStats, LaneStats
from backpressure.policies.circuit_breaker import State

__all__ = ["FAMILIES", "Family", "Kind", "Reading", "cumulative"]

#: Label values, in the order of `Family.labels`, and what was read for them.
Reading: TypeAlias = tuple[tuple[str, ...], float | HistogramStats]
#: "amount" is a gauge whose values can be added up over its labels; of a plain "gauge"
#: they cannot.
Kind: TypeAlias = Literal["counter", "amount", "gauge", "histogram"]

_REJECTED: Final = ("full", "rate", "share", "delay", "emergency", "closed")
_DROPPED: Final = ("oldest", "closed", "damaged", "priority")
_SIGNALS: Final = ("depth", "delay", "latency", "error_rate", "throughput")
# How Prometheus ends a name for a unit, and how OpenTelemetry (UCUM) writes it.
_UNITS: Final = {
    "_seconds": "s",
    "_bytes": "By",
    "_ratio": "1",
    "_events": "{event}",
    "_events_per_second": "{event}/s",
}


@dataclass(frozen=True, slots=True)
class Family:
    """One metric: its name as Prometheus shows it, and how it is read off a snapshot."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...]
    read: Callable[[BufferStats], Iterable[Reading]]

    @property
    def dotted(self) -> tuple[str, str]:
        """OpenTelemetry's name and unit. Its exporter to Prometheus makes of these the
        same `name` again.
        """
        base = self.name.removesuffix("_total")
        for suffix, unit in sorted(_UNITS.items(), key=lambda item: -len(item[0])):
            if base.endswith(suffix):
                if unit[0] != "{":  # a unit in braces is a remark, and no part of the name
                    base = base.removesuffix(suffix)
                return base.replace("backpressure_buffer_", "backpressure.buffer."), unit
        return base.replace(
            "backpressure_buffer_", "backpressure.buffer."
        ), "1" if self.kind == "gauge" else ""


# ---------------------------------------------------------------- reading a snapshot


def _by_priority(
    read: Callable[[LaneStats], float | HistogramStats],
) -> Callable[[BufferStats], Iterator[Reading]]:
    return lambda stats: (((str(priority),), read(lane)) for priority, lane in stats.lanes.items())


def _whole(read: Callable[[BufferStats], float]) -> Callable[[BufferStats], Iterator[Reading]]:
    return lambda stats: iter([((), read(stats))])


def _of_directory(
    read: Callable[[BufferStats], float | None],
) -> Callable[[BufferStats], Iterator[Reading]]:
    """A number of the whole that only a buffer with a directory has."""
    return lambda stats: (((), value) for value in (read(stats),) if value is not None)


def _several(
    read: Callable[[BufferStats], Mapping[str, float]],
) -> Callable[[BufferStats], Iterator[Reading]]:
    return lambda stats: (((label,), value) for label, value in read(stats).items())


def _events(stats: BufferStats) -> Iterator[Reading]:
    """Every term of the conservation lines that only grows."""
    for priority, lane in stats.lanes.items():
        level = str(priority)
        yield (level, "offered", ""), lane.offered
        yield (level, "accepted", ""), lane.accepted
        for reason, count in (dict.fromkeys(_REJECTED, 0) | dict(lane.rejected)).items():
            yield (level, "rejected", reason), count
        yield (level, "acked", ""), lane.acked
        yield (level, "dead_lettered", ""), lane.dead_lettered
        for reason, count in (dict.fromkeys(_DROPPED, 0) | dict(lane.dropped)).items():
            yield (level, "dropped", reason), count


def _resident(stats: BufferStats) -> Iterator[Reading]:
    for priority, lane in stats.lanes.items():
        for state, count in (
            ("waiting", lane.waiting),
            ("in_flight", lane.in_flight),
            ("retrying", lane.retrying),
        ):
            yield (str(priority), state), count


def _batches(stats: BufferStats) -> Iterator[Reading]:
    for priority, lane in stats.lanes.items():
        yield (str(priority), "acked"), lane.batches_acked
        yield (str(priority), "nacked"), lane.batches_nacked


def _of_disk(read: Callable[[DiskStats], float]) -> Callable[[BufferStats], Iterator[Reading]]:
    """A number of each lane's disk tier; no series where the buffer has no directory."""
    return lambda stats: (
        ((str(priority),), read(lane.disk))
        for priority, lane in stats.lanes.items()
        if lane.disk is not None
    )


def _family(
    name: str, kind: Kind, labels: str, read: Callable[[BufferStats], Iterable[Reading]], text: str
) -> Family:
    return Family(f"backpressure_buffer_{name}", kind, text, tuple(labels.split()), read)


FAMILIES: Final = (
    _family(
        "events_total",
        "counter",
        "priority outcome reason",
        _events,
        "Events by what became of them: offered = accepted + rejected, "
        "accepted = acked + dead_lettered + dropped + resident_events. Choose an outcome: a sum over all counts events twice.",
    ),
    _family(
        "resident_events",
        "amount",
        "priority state",
        _resident,
        "Events accepted and not yet acked, dead or dropped: waiting in the buffer, in_flight with a consumer, "
        "or retrying after a nack.",
    ),
    _family(
        "events_redelivered_total",
        "counter",
        "priority",
        _by_priority(lambda lane: lane.redelivered),
        "Events delivered a second time or more, counted each time.",
    ),
    _family(
        "batches_total",
        "counter",
        "priority outcome",
        _batches,
        "Batches that consumers acked or nacked.",
    ),
    _family(
        "used_bytes",
        "amount",
        "priority",
        _by_priority(lambda lane: lane.used_bytes),
        "Memory of the lane that holds events, their headers included.",
    ),
    _family(
        "capacity_bytes",
        "amount",
        "priority",
        _by_priority(lambda lane: lane.capacity_bytes),
        "Memory of the lane.",
    ),
    _family(
        "oldest_event_age_seconds",
        "gauge",
        "priority",
        _by_priority(lambda lane: lane.oldest_age),
        "How long the oldest event that was never delivered has waited; 0 where none waits.",
    ),
    _family(
        "queue_delay_seconds",
        "histogram",
        "priority",
        _by_priority(lambda lane: lane.queue_delay),
        "Time from arrival to first delivery of the oldest event of each batch, to 10 ms.",
    ),
    _family(
        "batch_latency_seconds",
        "histogram",
        "priority",
        _by_priority(lambda lane: lane.batch_latency),
        "Time that a consumer took from get_batch to the ack, for each acked batch.",
    ),
    _family(
        "batch_events",
        "histogram",
        "priority",
        _by_priority(lambda lane: lane.batch_events),
        "Events in each acked batch.",
    ),
    _family(
        "pressure_ratio",
        "gauge",
        "",
        _whole(lambda stats: stats.pressure.pressure),
        "How badly the buffer is overloaded, from 0 to 1: a signal at its threshold makes 0.5.",
    ),
    _family(
        "backpressure_active",
        "gauge",
        "",
        _whole(lambda stats: stats.backpressure_active),
        "1 while the buffer is overloaded, else 0.",
    ),
    _family(
        "backpressure_signal",
        "gauge",
        "signal",
        _several(lambda stats: _one_hot(_SIGNALS, stats.pressure.signal)),
        "1 for the signal that is worst now, 0 for the others.",
    ),
    _family(
        "backpressure_seconds_total",
        "counter",
        "",
        _whole(lambda stats: stats.backpressure_seconds),
        "Time spent under backpressure.",
    ),
    _family(
        "circuit_breaker_state",
        "gauge",
        "state",
        _several(
            lambda stats: _one_hot(
                (state.value for state in State), stats.circuit_breaker.state.value
            )
        ),
        "1 for the state that the circuit breaker is in, 0 for the others.",
    ),
    _family(
        "circuit_breaker_trips_total",
        "counter",
        "",
        _whole(lambda stats: stats.circuit_trips),
        "How often the circuit breaker opened.",
    ),
    _family(
        "circuit_breaker_calls_total",
        "counter",
        "result",
        _several(
            lambda stats: {
                name: getattr(stats.circuit_breaker, name)
                for name in ("succeeded", "failed", "ignored")
            }
        ),
        "Batches handed out, by how they ended for the circuit breaker.",
    ),
    _family(
        "circuit_breaker_refused_total",
        "counter",
        "",
        _whole(lambda stats: stats.circuit_breaker.rejected),
        "Looks for a batch that the circuit breaker refused.",
    ),
    _family(
        "circuit_breaker_failure_ratio",
        "gauge",
        "",
        _whole(lambda stats: stats.circuit_breaker.failure_rate),
        "Failed part of the calls in the circuit breaker's window.",
    ),
    _family(
        "circuit_breaker_retry_after_seconds",
        "gauge",
        "",
        _whole(lambda stats: stats.circuit_breaker.retry_after),
        "Time until the circuit breaker tries the sink again; 0 unless it is open.",
    ),
    _family(
        "batch_size_events",
        "gauge",
        "",
        _whole(lambda stats: stats.batching.batch_size),
        "The batch size that the buffer has adapted to.",
    ),
    _family(
        "batch_score_ratio",
        "gauge",
        "",
        _whole(lambda stats: stats.batching.score),
        "The performance score of the present batch size.",
    ),
    _family(
        "rate_limit_events_per_second",
        "gauge",
        "",
        _whole(lambda stats: stats.flow_control.rate_limit),
        "The rate that flow control admits, as it was set.",
    ),
    _family(
        "rate_in_force_events_per_second",
        "gauge",
        "",
        _whole(lambda stats: stats.flow_control.rate_in_force),
        "The rate that flow control admits at this moment: less than set in an emergency and for a while after it.",
    ),
    _family(
        "flow_control_tokens_events",
        "gauge",
        "",
        _whole(lambda stats: stats.flow_control.tokens),
        "Events that could enter at once; +Inf without a limit.",
    ),
    _family(
        "flow_control_burst_events",
        "gauge",
        "",
        _whole(lambda stats: stats.flow_control.burst),
        "The most tokens that flow control saves up.",
    ),
    _family(
        "emergency_active",
        "gauge",
        "",
        _whole(lambda stats: stats.flow_control.emergency),
        "1 while flow control sheds events because the sink fails, else 0.",
    ),
    _family(
        "emergency_failure_ratio",
        "gauge",
        "",
        _whole(lambda stats: stats.flow_control.failure_rate),
        "Failed part of the delivered events, as the emergency mode sees it.",
    ),
    _family(
        "handler_errors_total",
        "counter",
        "",
        _whole(lambda stats: stats.handler_errors),
        "Event handlers that raised.",
    ),
    _family(
        "handler_overflows_total",
        "counter",
        "",
        _whole(lambda stats: stats.handler_overflows),
        "Events not handed to handlers, because those that were before them took too long.",
    ),
    _family(
        "closed",
        "gauge",
        "",
        _whole(lambda stats: stats.closed),
        "1 once the buffer is closed, else 0.",
    ),
    _family(
        "disk_events",
        "amount",
        "priority",
        _of_disk(lambda disk: disk.events),
        "Events on disk that are not settled, waiting or with consumers.",
    ),
    _family(
        "disk_bytes",
        "amount",
        "priority",
        _of_disk(lambda disk: disk.used_bytes),
        "Size of the files of the disk tier, without the ring.",
    ),
    _family(
        "disk_spilled_events_total",
        "counter",
        "priority",
        _of_disk(lambda disk: disk.spilled),
        "Events written to disk.",
    ),
    _family(
        "disk_spilled_bytes_total",
        "counter",
        "priority",
        _of_disk(lambda disk: disk.spilled_bytes),
        "Payload of the events written to disk.",
    ),
    _family(
        "disk_stored_bytes_total",
        "counter",
        "priority",
        _of_disk(lambda disk: disk.stored_bytes),
        "What that payload takes on disk, compressed.",
    ),
    _family(
        "disk_refused_total",
        "counter",
        "priority",
        _of_disk(lambda disk: disk.refused_full),
        "How often the disk, or max_disk_bytes, had no room.",
    ),
    _family(
        "disk_failed_syncs_total",
        "counter",
        "priority",
        _of_disk(lambda disk: disk.failed_syncs),
        "Failed syncs of the disk tier.",
    ),
    _family(
        "disk_lost_ranges_total",
        "counter",
        "priority",
        _of_disk(lambda disk: disk.lost_ranges),
        "Damaged ranges passed over; their events are dropped with the reason damaged.",
    ),
    _family(
        "durable_lag_events",
        "amount",
        "priority",
        _of_disk(lambda disk: disk.unsynced),
        "Events accepted and not yet safe from a loss of power.",
    ),
    _family(
        "recovered_events",
        "amount",
        "priority",
        _of_disk(lambda disk: disk.recovered),
        "Events of an earlier run that were found at the start; they count as offered and accepted.",
    ),
    _family(
        "recovery_seconds",
        "gauge",
        "",
        _of_directory(lambda stats: stats.recovery_seconds),
        "Time that the start took to open the directory, with all that was found there.",
    ),
    _family(
        "dead_letter_events",
        "amount",
        "",
        _of_directory(lambda stats: stats.dead_letters),
        "Dead letters that are kept: given up in this run or an earlier one, and neither replayed nor purged.",
    ),
)


def _one_hot(names: Iterable[str], chosen: str | None) -> dict[str, float]:
    return {name: float(name == chosen) for name in names}


def cumulative(histogram: HistogramStats) -> list[tuple[str, float]]:
    """Buckets as Prometheus has them: each bound with the count of all that is at most
    as large.
    """
    bounds = [*(repr(float(bound)) for bound in histogram.bounds), "+Inf"]
    return list(zip(bounds, map(float, accumulate(histogram.counts)), strict=True))
