"""Family: one metric, its names, and how it is read off a snapshot."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, Literal, TypeAlias

from backpressure.base.histogram import HistogramStats
from backpressure.buffer.stats import BufferStats

__all__ = ["Family", "Kind", "Read", "Reading", "cumulative"]

#: Label values, in the order of `Family.labels`, and what was read for them.
Reading: TypeAlias = tuple[tuple[str, ...], float | HistogramStats]
#: How a metric is read off a snapshot.
Read: TypeAlias = Callable[[BufferStats], Iterable[Reading]]
#: The values of an "amount" can be added up over its labels, those of a plain "gauge"
#: cannot.
Kind: TypeAlias = Literal["counter", "amount", "gauge", "histogram"]

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
    """One metric: its name in Prometheus, and how it is read off a snapshot."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...]
    read: Read

    @property
    def dotted(self) -> tuple[str, str]:
        """OpenTelemetry's name and unit.

        Its exporter to Prometheus makes the same `name` of them again.
        """
        name, unit = self.name.removesuffix("_total"), "1" if self.kind == "gauge" else ""
        for suffix in sorted(_UNITS, key=len, reverse=True):
            if name.endswith(suffix):
                unit = _UNITS[suffix]
                # A unit in braces is an annotation, which the exporter does not append.
                name = name if unit[0] == "{" else name.removesuffix(suffix)
                break
        return name.replace("backpressure_buffer_", "backpressure.buffer."), unit


def cumulative(histogram: HistogramStats) -> list[tuple[str, float]]:
    """Buckets as Prometheus has them: each bound with the count up to and with it."""
    bounds = [*(repr(float(bound)) for bound in histogram.bounds), "+Inf"]
    return list(zip(bounds, map(float, accumulate(histogram.counts)), strict=True))
