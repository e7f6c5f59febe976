"""The metrics of a buffer: one table, for Prometheus and for OpenTelemetry.

    from prometheus_client import REGISTRY           # pip install 'forebay[prometheus]'
    REGISTRY.register(Collector(buffer))

    instrument(buffer, get_meter("my-service"))      # pip install 'forebay[otel]'

Everything is computed at the scrape, from one `buffer.stats()`, so that what is
exported at one moment fits together: both conservation lines (see lanes/stats.py) hold
within each scrape. Nothing here is called while events pass.

`FAMILIES` is the table. A name ends with its unit; a counter never goes back as long as
its process lives. Label values are few and known beforehand: every priority and every
reason is there from the start with 0, so that the first refusal is an increase and not
a new series that `rate()` overlooks.

Thread safety: everything may be called from any thread.
"""

from __future__ import annotations

from backpressure.metrics.families import FAMILIES
from backpressure.metrics.family import Family, Reading
from backpressure.metrics.opentelemetry import instrument
from backpressure.metrics.prometheus import Collector, exposition

__all__ = ["FAMILIES", "Collector", "Family", "Reading", "exposition", "instrument"]
