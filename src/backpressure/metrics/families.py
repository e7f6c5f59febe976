"""FAMILIES: the table of metrics, each with its name, kind, labels, reader and help."""

from __future__ import annotations

from typing import Final

from backpressure.metrics.family import Family, Kind, Read
from backpressure.metrics.readers import (
    by_priority,
    of_delivery,
    of_directory,
    of_disk,
    one_hot,
    read_batches,
    read_events,
    read_resident,
    several,
    whole,
)
from backpressure.policies.circuit_breaker import State

__all__ = ["FAMILIES"]

_SIGNALS: Final = ("depth", "delay", "latency", "error_rate", "throughput")


def _family(name: str, kind: Kind, labels: str, read: Read, text: str) -> Family:
    return Family(f"backpressure_buffer_{name}", kind, text, tuple(labels.split()), read)


FAMILIES: Final = (
    # ------------------------------------------------------------ events and batches
    _family(
        "events_total",
        "counter",
        "priority outcome reason",
        read_events,
        "Events by what became of them: offered = accepted + rejected, "
        "accepted = acked + dead_lettered + dropped + resident_events. "
        "Choose an outcome: a sum over all counts events twice.",
    ),
    _family(
        "resident_events",
        "amount",
        "priority state",
        read_resident,
        "Events accepted and not yet acked, dead or dropped: waiting in the buffer, "
        "in_flight with a consumer, or retrying after a nack.",
    ),
    _family(
        "events_redelivered_total",
        "counter",
        "priority",
        by_priority(lambda lane: lane.redelivered),
        "Events delivered a second time or more, counted each time.",
    ),
    _family(
        "batches_total",
        "counter",
        "priority outcome",
        read_batches,
        "Batches that consumers acked or nacked.",
    ),
    # ------------------------------------------------------------ memory
    _family(
        "used_bytes",
        "amount",
        "priority",
        by_priority(lambda lane: lane.used_bytes),
        "Memory of the lane that holds events, their headers included.",
    ),
    _family(
        "capacity_bytes",
        "amount",
        "priority",
        by_priority(lambda lane: lane.capacity_bytes),
        "Memory of the lane.",
    ),
    # ------------------------------------------------------------ delays
    _family(
        "oldest_event_age_seconds",
        "gauge",
        "priority",
        by_priority(lambda lane: lane.oldest_age),
        "How long the oldest event that was never delivered has waited; 0 where none waits.",
    ),
    _family(
        "queue_delay_seconds",
        "histogram",
        "priority",
        by_priority(lambda lane: lane.queue_delay),
        "Time from arrival to first delivery of the oldest event of each batch, to 10 ms.",
    ),
    _family(
        "batch_latency_seconds",
        "histogram",
        "priority",
        by_priority(lambda lane: lane.batch_latency),
        "Time that a consumer took from get_batch to the ack, for each acked batch.",
    ),
    _family(
        "batch_events",
        "histogram",
        "priority",
        by_priority(lambda lane: lane.batch_events),
        "Events in each acked batch.",
    ),
    # ------------------------------------------------------------ the monitor
    _family(
        "pressure_ratio",
        "gauge",
        "",
        whole(lambda stats: stats.pressure.pressure),
        "How badly the buffer is overloaded, from 0 to 1: a signal at its threshold makes 0.5.",
    ),
    _family(
        "backpressure_active",
        "gauge",
        "",
        whole(lambda stats: stats.backpressure_active),
        "1 while the buffer is overloaded, else 0.",
    ),
    _family(
        "backpressure_signal",
        "gauge",
        "signal",
        several(lambda stats: one_hot(_SIGNALS, stats.pressure.signal)),
        "1 for the signal that is worst now, 0 for the others.",
    ),
    _family(
        "backpressure_seconds_total",
        "counter",
        "",
        whole(lambda stats: stats.backpressure_seconds),
        "Time spent under backpressure.",
    ),
    # ------------------------------------------------------------ the circuit breaker
    _family(
        "circuit_breaker_state",
        "gauge",
        "state",
        several(
            lambda stats: one_hot(
                (state.value for state in State), stats.circuit_breaker.state.value
            )
        ),
        "1 for the state that the circuit breaker is in, 0 for the others.",
    ),
    _family(
        "circuit_breaker_trips_total",
        "counter",
        "",
        whole(lambda stats: stats.circuit_trips),
        "How often the circuit breaker opened.",
    ),
    _family(
        "circuit_breaker_calls_total",
        "counter",
        "result",
        several(
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
        whole(lambda stats: stats.circuit_breaker.rejected),
        "Looks for a batch that the circuit breaker refused.",
    ),
    _family(
        "circuit_breaker_failure_ratio",
        "gauge",
        "",
        whole(lambda stats: stats.circuit_breaker.failure_rate),
        "Failed part of the calls in the circuit breaker's window.",
    ),
    _family(
        "circuit_breaker_retry_after_seconds",
        "gauge",
        "",
        whole(lambda stats: stats.circuit_breaker.retry_after),
        "Time until the circuit breaker tries the sink again; 0 unless it is open.",
    ),
    # ---------------------------------------------------------- batching, flow control
    _family(
        "batch_size_events",
        "gauge",
        "",
        whole(lambda stats: stats.batching.batch_size),
        "The batch size that the buffer has adapted to.",
    ),
    _family(
        "batch_score_ratio",
        "gauge",
        "",
        whole(lambda stats: stats.batching.score),
        "The performance score of the present batch size.",
    ),
    _family(
        "rate_limit_events_per_second",
        "gauge",
        "",
        whole(lambda stats: stats.flow_control.rate_limit),
        "The rate that flow control admits, as it was set.",
    ),
    _family(
        "rate_in_force_events_per_second",
        "gauge",
        "",
        whole(lambda stats: stats.flow_control.rate_in_force),
        "The rate limit, less the part of the demand that is refused in an emergency "
        "and for a while after it.",
    ),
    _family(
        "flow_control_tokens_events",
        "gauge",
        "",
        whole(lambda stats: stats.flow_control.tokens),
        "Events that could enter at once; +Inf without a limit.",
    ),
    _family(
        "flow_control_burst_events",
        "gauge",
        "",
        whole(lambda stats: stats.flow_control.burst),
        "The most tokens that flow control saves up.",
    ),
    _family(
        "emergency_active",
        "gauge",
        "",
        whole(lambda stats: stats.flow_control.emergency),
        "1 while flow control sheds events because the sink fails, else 0.",
    ),
    _family(
        "emergency_failure_ratio",
        "gauge",
        "",
        whole(lambda stats: stats.flow_control.failure_rate),
        "Failed part of the delivered events, as the emergency mode sees it.",
    ),
    # ------------------------------------------------------------ the delivery
    _family(
        "delivery_running",
        "gauge",
        "",
        of_delivery(lambda delivery: delivery.running),
        "1 while the buffer delivers to its sink, 0 once that has ended.",
    ),
    _family(
        "delivery_in_flight_batches",
        "amount",
        "",
        of_delivery(lambda delivery: delivery.in_flight),
        "Batches that the sink has now.",
    ),
    _family(
        "delivery_in_flight_limit_batches",
        "gauge",
        "",
        of_delivery(lambda delivery: delivery.limit),
        "Batches that the sink is given at once at most, as many as pay.",
    ),
    _family(
        "delivery_batches_total",
        "counter",
        "",
        of_delivery(lambda delivery: delivery.batches_taken),
        "Batches that the sink took.",
    ),
    _family(
        "delivery_failures_total",
        "counter",
        "",
        of_delivery(lambda delivery: delivery.failures),
        "Calls of the sink that failed, or that it answered with a rejection.",
    ),
    _family(
        "delivery_failing_seconds",
        "gauge",
        "",
        of_delivery(lambda delivery: delivery.failing_for),
        "Time since the sink began to fail; 0 where its last answer was good.",
    ),
    _family(
        "dead_letter_events",
        "amount",
        "",
        whole(lambda stats: stats.dead_letters),
        "Dead letters that are kept: given up in this run or an earlier one, "
        "and neither replayed nor purged.",
    ),
    _family(
        "dead_letters_lost_total",
        "counter",
        "",
        whole(lambda stats: stats.dead_letters_lost),
        "Dead letters in memory that were forgotten for want of room.",
    ),
    # ------------------------------------------------------------ the buffer itself
    _family(
        "handler_errors_total",
        "counter",
        "",
        whole(lambda stats: stats.handler_errors),
        "Event handlers that raised.",
    ),
    _family(
        "handler_overflows_total",
        "counter",
        "",
        whole(lambda stats: stats.handler_overflows),
        "Events not handed to handlers, because those that were before them took too long.",
    ),
    _family(
        "closed",
        "gauge",
        "",
        whole(lambda stats: stats.closed),
        "1 once the buffer is closed, else 0.",
    ),
    # ------------------------------------------------------------ the disk tier
    _family(
        "disk_events",
        "amount",
        "priority",
        of_disk(lambda disk: disk.events),
        "Events on disk that are not settled, waiting or with consumers.",
    ),
    _family(
        "disk_bytes",
        "amount",
        "priority",
        of_disk(lambda disk: disk.used_bytes),
        "Size of the files of the disk tier, without the ring.",
    ),
    _family(
        "disk_spilled_events_total",
        "counter",
        "priority",
        of_disk(lambda disk: disk.spilled),
        "Events written to disk.",
    ),
    _family(
        "disk_spilled_bytes_total",
        "counter",
        "priority",
        of_disk(lambda disk: disk.spilled_bytes),
        "Payload of the events written to disk.",
    ),
    _family(
        "disk_stored_bytes_total",
        "counter",
        "priority",
        of_disk(lambda disk: disk.stored_bytes),
        "What that payload takes on disk, compressed.",
    ),
    _family(
        "disk_refused_total",
        "counter",
        "priority",
        of_disk(lambda disk: disk.refused_full),
        "How often the disk, or max_disk_bytes, had no room.",
    ),
    _family(
        "disk_failed_syncs_total",
        "counter",
        "priority",
        of_disk(lambda disk: disk.failed_syncs),
        "Failed syncs of the disk tier.",
    ),
    _family(
        "disk_lost_ranges_total",
        "counter",
        "priority",
        of_disk(lambda disk: disk.lost_ranges),
        "Damaged ranges passed over; their events are dropped with the reason damaged.",
    ),
    _family(
        "durable_lag_events",
        "amount",
        "priority",
        of_disk(lambda disk: disk.unsynced),
        "Events accepted and not yet safe from a loss of power.",
    ),
    _family(
        "recovered_events",
        "amount",
        "priority",
        of_disk(lambda disk: disk.recovered),
        "Events of an earlier run that were found at the start; "
        "they count as offered and accepted.",
    ),
    _family(
        "recovery_seconds",
        "gauge",
        "",
        of_directory(lambda stats: stats.recovery_seconds),
        "Time that the start took to open the directory, with all that was found there.",
    ),
)
