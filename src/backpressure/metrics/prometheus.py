"""The table for prometheus_client: a collector, and the answer to a scrape."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from backpressure.base.histogram import HistogramStats
from backpressure.base.wording import as_text
from backpressure.buffer_manager import BufferManager
from backpressure.metrics.families import FAMILIES
from backpressure.metrics.family import Family, Kind, cumulative
from backpressure.sources.base import SourceStats

if TYPE_CHECKING:
    from prometheus_client.core import Metric

__all__ = ["PART_FAILED", "SOURCE_CONNECTIONS", "SOURCE_INCIDENTS", "Collector", "exposition"]

#: Beside the table, which is of a buffer's statistics alone: name and help of what
#: `forebay serve` has.
PART_FAILED: Final = (
    "forebay_part_failed",
    "1 once this source or server of the service has ended before its time, else 0.",
)
SOURCE_CONNECTIONS: Final = (
    "backpressure_source_connections",
    "Connections of a source that are open.",
)
SOURCE_INCIDENTS: Final = (
    "backpressure_source_incidents_total",
    "What a source refused, skipped or had to wait for, by reason.",
)


class Collector:
    """Give it to `CollectorRegistry.register`.

    Needs prometheus_client, the extra `prometheus`.

    buffers: one buffer, or several by name: their series then have a label `buffer`.
        Register one collector for all of them, since a metric can be exported once
        only.
    sources: what sources have had to leave out, each by its name.
    """

    def __init__(
        self,
        buffers: BufferManager | Mapping[str, BufferManager],
        sources: Sequence[SourceStats] = (),
    ) -> None:
        self._sources: Final = sources
        named = isinstance(buffers, Mapping)
        self._extra: Final = ("buffer",) if named else ()
        self._buffers: Final = (
            # A name that is no UTF-8, as a path's may be, would break every scrape.
            {(as_text(name),): buffer for name, buffer in buffers.items()}
            if isinstance(buffers, Mapping)
            else {(): buffers}
        )

    def describe(self) -> Iterator[Metric]:
        """The metrics without values: a registry sees whether two collectors clash."""
        return (self._metric(family) for family in FAMILIES)

    def collect(self) -> Iterator[Metric]:
        """The metrics of this moment; one snapshot of each buffer."""
        snapshots = {extra: buffer.stats() for extra, buffer in self._buffers.items()}
        for family in FAMILIES:
            metric: Any = self._metric(family)
            for extra, stats in snapshots.items():
                for labels, value in family.read(stats):
                    if isinstance(value, HistogramStats):
                        metric.add_metric((*extra, *labels), cumulative(value), value.sum)
                    else:
                        metric.add_metric((*extra, *labels), float(value))
            if metric.samples:
                yield metric
        if self._sources:
            yield from self._collect_sources()

    def _collect_sources(self) -> Iterator[Metric]:
        from prometheus_client import core

        connections = core.GaugeMetricFamily(*SOURCE_CONNECTIONS, labels=("source",))
        incidents = core.CounterMetricFamily(*SOURCE_INCIDENTS, labels=("source", "reason"))
        for one in self._sources:
            connections.add_metric((as_text(one.name),), float(one.connections))
            for reason, count in one.incidents.items():
                incidents.add_metric((as_text(one.name), reason), float(count))
        yield from (connections, incidents)

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


class _Parts:
    """Which parts of the program around a buffer have failed."""

    def __init__(self, parts: Mapping[str, object]) -> None:
        self._parts = parts

    def collect(self) -> Iterator[Metric]:
        from prometheus_client import core

        metric = core.GaugeMetricFamily(*PART_FAILED, labels=("part",))
        for name, error in self._parts.items():
            metric.add_metric((as_text(name),), float(error is not None))
        yield metric


def exposition(
    buffers: BufferManager | Mapping[str, BufferManager],
    accept: str = "",
    sources: Sequence[SourceStats] = (),
    parts: Mapping[str, object] | None = None,
) -> tuple[bytes, str]:
    """Body and content type of an answer to a scrape.

    accept: the request's header; "" gives the plain text format. sources: as for
    Collector.
    parts: of the program around the buffers, by name, with what ended each before its
        time, or None.
    """
    collector = Collector(buffers, sources)
    next(collector.describe())  # says which extra is missing, if it is
    from prometheus_client import CollectorRegistry
    from prometheus_client.exposition import choose_encoder

    registry = CollectorRegistry()
    registry.register(collector)
    if parts:
        registry.register(_Parts(parts))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type
