"""The table for OpenTelemetry: observable instruments."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Final

from backpressure.base.histogram import HistogramStats
from backpressure.base.wording import as_text
from backpressure.buffer.stats import BufferStats
from backpressure.buffer_manager import BufferManager
from backpressure.metrics.families import FAMILIES
from backpressure.metrics.family import Family, cumulative

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Meter, Observation

__all__ = ["instrument"]

# Seconds within which a collection cycle asks every instrument; one that asks later
# gets new numbers.
_CYCLE_SECONDS: Final = 1.0


def instrument(
    buffer: BufferManager, meter: Meter, attributes: Mapping[str, str] | None = None
) -> None:
    """Make an observable instrument of each metric.

    Needs opentelemetry-api, the extra `otel`. Names are those of Prometheus with dots,
    `backpressure.buffer.events` for `backpressure_buffer_events_total`. The API has no
    observable histograms, so each becomes the counters `….bucket` (with the attribute
    `le`), `….count` and `….sum`.

    attributes: are added to every observation; instrument several buffers with one
        meter each.
    """
    source = _Cycle(buffer)
    extra = {as_text(name): as_text(value) for name, value in (attributes or {}).items()}
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
    """One snapshot for all instruments of a collection cycle.

    It is taken anew when one of them asks a second time.
    """

    def __init__(self, buffer: BufferManager) -> None:
        self._buffer = buffer
        self._lock = threading.RLock()
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
                # A bool is an int in Python, and exporters do not take it for a number.
                yield Observation(
                    float(value) if isinstance(value, (bool, float)) else value, attributes
                )
            elif part == "bucket":
                for bound, count in cumulative(value):
                    yield Observation(int(count), {**attributes, "le": bound})
            else:
                yield Observation(value.count if part == "count" else value.sum, attributes)

    return observe
