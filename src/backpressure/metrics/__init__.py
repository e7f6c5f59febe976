"""What a monitoring system reads of a buffer: one table of metrics, for Prometheus and for OpenTelemetry.

    from prometheus_client import REGISTRY
    REGISTRY.register(Collector(buffer))                 # pip install 'forebay[prometheus]'

    instrument(buffer, get_meter("my-service"))          # pip install 'forebay[otel]'

Everything is computed when somebody looks, from one `buffer.stats()`, so that what is exported at one moment fits together:
both conservation lines (see lanes/stats.py) hold within each scrape. Nothing here is called while events pass.

`FAMILIES` is the table. A name ends with its unit; a counter never goes back as long as its process lives. Label values are
few and known beforehand: every priority and every reason is there from the start with 0, so that the first refusal is an
increase and not a new series that `rate()` overlooks.

Thread safety: everything may be called from any thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from backpressure.base.histogram import HistogramStats
from backpressure.buffer.stats import BufferStats
from backpressure.buffer_manager import BufferManager
from backpressure.lanes.stats import DiskStats, LaneStats
from backpressure.policies.circuit_breaker import State

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Meter, Observation
    from prometheus_client.core import Metric

__all__ = ["FAMILIES", "Collector", "Family", "Reading", "exposition", "instrument"]

#: Label values, in the order of `Family.labels`, and what was read for them.
Reading: TypeAlias = tuple[tuple[str, ...], float | HistogramStats]
#: "amount" is a gauge whose values can be added up over its labels; of a plain "gauge" they can not.
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
# A collection cycle asks every instrument within this time (seconds); one that asks later wants new numbers.
_CYCLE_SECONDS: Final = 1.0


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
        """OpenTelemetry's name and unit. Its exporter to Prometheus makes of these the same `name` again."""
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


# ---------------------------------------------------------------- Prometheus


class Collector:
    """Give it to `CollectorRegistry.register`. Needs prometheus_client, the extra `prometheus`.

    buffers: one buffer, or several by name: their series then have a label `buffer`. Register one collector for
    all of them, since a metric can be exported once only.
    """

    def __init__(self, buffers: BufferManager | Mapping[str, BufferManager]) -> None:
        named = isinstance(buffers, Mapping)
        self._extra: Final = ("buffer",) if named else ()
        self._buffers: Final = (
            {(name,): buffer for name, buffer in buffers.items()}
            if isinstance(buffers, Mapping)
            else {(): buffers}
        )

    def describe(self) -> Iterator[Metric]:
        """The metrics without their values: how a registry sees that two collectors would clash."""
        return (self._metric(family) for family in FAMILIES)

    def collect(self) -> Iterator[Metric]:
        """The metrics of this moment; one snapshot of each buffer."""
        snapshots = {extra: buffer.stats() for extra, buffer in self._buffers.items()}
        for family in FAMILIES:
            metric: Any = self._metric(family)
            for extra, stats in snapshots.items():
                for labels, value in family.read(stats):
                    if isinstance(value, HistogramStats):
                        metric.add_metric((*extra, *labels), _cumulative(value), value.sum)
                    else:
                        metric.add_metric((*extra, *labels), float(value))
            if metric.samples:
                yield metric

    def _metric(self, family: Family) -> Metric:
        try:
            from prometheus_client import core
        except ImportError as error:
            raise ImportError(
                "prometheus_client is not installed: pip install 'forebay[prometheus]'"
            ) from error
        kinds: dict[Kind, Any] = {
            "counter": core.CounterMetricFamily,
            "amount": core.GaugeMetricFamily,
            "gauge": core.GaugeMetricFamily,
            "histogram": core.HistogramMetricFamily,
        }
        metric: Metric = kinds[family.kind](
            family.name, family.help, labels=(*self._extra, *family.labels)
        )
        return metric


def exposition(
    buffers: BufferManager | Mapping[str, BufferManager], accept: str = ""
) -> tuple[bytes, str]:
    """Body and content type of an answer to a scrape. `accept`: the request's header, "" gives the plain text format."""
    collector = Collector(buffers)
    next(collector.describe())  # says which extra is missing, if it is
    from prometheus_client import CollectorRegistry
    from prometheus_client.exposition import choose_encoder

    registry = CollectorRegistry()
    registry.register(collector)
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


def _cumulative(histogram: HistogramStats) -> list[tuple[str, float]]:
    """Buckets as Prometheus has them: each bound with the count of all that is at most as large."""
    bounds = [*(repr(float(bound)) for bound in histogram.bounds), "+Inf"]
    return list(zip(bounds, map(float, accumulate(histogram.counts)), strict=True))


# ---------------------------------------------------------------- OpenTelemetry


def instrument(
    buffer: BufferManager, meter: Meter, attributes: Mapping[str, str] | None = None
) -> None:
    """Make an observable instrument of each metric. Needs opentelemetry-api, the extra `otel`.

    Names are those of Prometheus with dots, `backpressure.buffer.events` for `backpressure_buffer_events_total`. The API has no
    observable histograms, so each becomes the counters `….bucket` (with the attribute `le`), `….count` and `….sum`.
    attributes: are added to all that is observed; instrument several buffers with one meter each.
    """
    source = _Cycle(buffer)
    extra = dict(attributes or {})
    for family in FAMILIES:
        name, unit = family.dotted
        if family.kind == "histogram":
            for part, of_what in (("bucket", "{batch}"), ("count", "{batch}"), ("sum", unit)):
                meter.create_observable_counter(
                    f"{name}.{part}",
                    [_observer(source, family, extra, part)],
                    unit=of_what,
                    description=family.help,
                )
            continue
        create = {
            "counter": meter.create_observable_counter,
            "amount": meter.create_observable_up_down_counter,
            "gauge": meter.create_observable_gauge,
        }[family.kind]
        create(name, [_observer(source, family, extra)], unit=unit, description=family.help)


class _Cycle:
    """One snapshot for all instruments of a collection cycle: it is taken anew when one of them asks a second time."""

    def __init__(self, buffer: BufferManager) -> None:
        self._buffer = buffer
        self._lock = threading.Lock()
        self._served: set[str] = set()
        self._taken_at = 0.0
        self._stats: BufferStats | None = None

    def stats(self, asker: str) -> BufferStats:
        now = time.monotonic()
        with self._lock:
            if (
                self._stats is None
                or asker in self._served
                or now - self._taken_at > _CYCLE_SECONDS
            ):
                self._stats = self._buffer.stats()
                self._taken_at = now
                self._served.clear()
            self._served.add(asker)
            return self._stats


def _observer(
    source: _Cycle, family: Family, extra: Mapping[str, str], part: str = ""
) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observe(options: CallbackOptions) -> Iterator[Observation]:
        from opentelemetry.metrics import Observation

        for labels, value in family.read(source.stats(family.name + part)):
            attributes = {
                **extra,
                **{name: label for name, label in zip(family.labels, labels, strict=True) if label},
            }
            if not isinstance(value, HistogramStats):
                # A bool is an int to Python, and no number to an exporter.
                yield Observation(
                    float(value) if isinstance(value, (bool, float)) else value, attributes
                )
            elif part == "bucket":
                for bound, count in _cumulative(value):
                    yield Observation(int(count), {**attributes, "le": bound})
            else:
                yield Observation(value.count if part == "count" else value.sum, attributes)

    return observe
