"""The metrics: each scrape satisfies the books, and counters only grow.

Names and labels stay.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from backpressure import Batch, BatchRejected, SinkUnavailable
from backpressure.base.histogram import EVENTS, Histogram
from backpressure.buffer.config import BufferConfig, WhenFull
from backpressure.buffer.stats import BufferStats
from backpressure.buffer_manager import BufferManager
from backpressure.metrics import FAMILIES, Collector, exposition, instrument
from backpressure.policies.adaptive_batch_manager import AdaptiveBatchConfig
from backpressure.policies.circuit_breaker import CircuitBreakerConfig
from backpressure.policies.flow_control_manager import FlowControlConfig
from backpressure.testing import FakeClock
from tests.support.buffers import next_batch
from tests.support.threads import background, switching_often, until

prometheus_client = pytest.importorskip("prometheus_client")
from prometheus_client.parser import text_string_to_metric_families  # noqa: E402

PREFIX = "backpressure_buffer_"

# By name and labels.
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def make(clock: FakeClock | None = None, **fields: Any) -> BufferManager:
    return BufferManager(BufferConfig(lane_bytes=4096, **fields), clock=clock or FakeClock())


def scrape(buffers: BufferManager | Mapping[str, BufferManager]) -> Samples:
    """Sample name and labels (without the empty ones) -> value, as a Prometheus server
    would keep them.
    """
    body, content_type = exposition(buffers)
    assert content_type.startswith("text/plain")
    samples: Samples = {}
    for family in text_string_to_metric_families(body.decode()):
        for sample in family.samples:
            key = (sample.name, frozenset((k, v) for k, v in sample.labels.items() if v))
            assert key not in samples, f"{key} is there twice"
            samples[key] = sample.value
    return samples


def total(samples: Samples, name: str, **labels: str) -> float:
    """Sum of the samples of that name which have those labels."""
    return sum(
        value
        for (one, its), value in samples.items()
        if one == PREFIX + name and labels.items() <= dict(its).items()
    )


def check_books(samples: Samples) -> None:
    for level in "12345":
        of = {
            outcome: total(samples, "events_total", priority=level, outcome=outcome)
            for outcome in ("offered", "accepted", "rejected", "acked", "dead_lettered", "dropped")
        }
        resident = total(samples, "resident_events", priority=level)
        assert of["offered"] == of["accepted"] + of["rejected"]
        assert of["accepted"] == of["acked"] + of["dead_lettered"] + of["dropped"] + resident


def test_a_scrape_satisfies_both_lines_when_every_term_has_been_used() -> None:
    clock = FakeClock()
    flow = FlowControlConfig(burst_size=400, max_events_per_second=400)
    buffer = make(clock, when_full=WhenFull.DROP_OLDEST, flow_control=flow)
    buffer.add_events(
        [b"x" * 100] * 100, priority=1
    )  # more than the lane holds: the oldest are dropped
    buffer.add_events([b"y"] * 400, priority=2)  # more than the burst: refused
    next_batch(buffer, 3).ack()
    next_batch(buffer, 3).nack("no")
    clock.advance(10.0)
    held = next_batch(buffer, 3)
    next_batch(buffer, 2).nack("no")
    samples = scrape(buffer)
    check_books(samples)
    stats = buffer.stats()
    assert (
        total(samples, "events_total", outcome="dropped", reason="oldest")
        == stats.dropped["oldest"]
        > 0
    )
    refused = {
        reason: total(samples, "events_total", outcome="rejected", reason=reason)
        for reason in ("rate", "share")
    }
    assert sum(refused.values()) == sum(stats.rejected.values()) > 0
    assert total(samples, "resident_events", state="in_flight") == len(held) == 3
    assert total(samples, "resident_events", state="retrying") == 2
    assert total(samples, "events_redelivered_total") == 3
    assert total(samples, "batches_total", outcome="acked") == 1
    assert total(samples, "batches_total", outcome="nacked") == 2
    buffer.close(timeout=0)
    samples = scrape(buffer)
    check_books(samples)
    assert total(samples, "events_total", outcome="dropped", reason="closed") > 0
    assert total(samples, "resident_events") == 0
    assert total(samples, "closed") == 1


def test_every_priority_and_reason_is_there_from_the_start() -> None:
    samples = scrape(make())
    for level in "12345":
        refusals = set(make().stats().flow_control.refused)
        assert refusals == {"rate", "share", "delay", "emergency"}
        for reason in ("full", "closed", *refusals):
            assert (
                samples[
                    (
                        PREFIX + "events_total",
                        frozenset(
                            {"priority": level, "outcome": "rejected", "reason": reason}.items()
                        ),
                    )
                ]
                == 0
            )
        for reason in ("oldest", "closed"):
            assert (
                samples[
                    (
                        PREFIX + "events_total",
                        frozenset(
                            {"priority": level, "outcome": "dropped", "reason": reason}.items()
                        ),
                    )
                ]
                == 0
            )


def test_an_unknown_reason_is_counted_too() -> None:
    buffer = make()
    buffer._lanes[2].reject(7, "moon phase")  # type: ignore[arg-type]
    samples = scrape(buffer)
    assert (
        total(samples, "events_total", outcome="rejected", reason="moon phase", priority="3") == 7
    )
    check_books(samples)


def test_recovery_time_and_dead_letters_of_a_directory(tmp_path: Path) -> None:
    config = BufferConfig(directory=tmp_path / "buffer", lane_bytes=4096, max_attempts=1)
    with BufferManager(config) as buffer:
        buffer.add_events([b"one", b"two", b"three"])
        for _ in range(2):
            next_batch(buffer, 1).nack(BatchRejected("no"))
        samples = scrape(buffer)
        assert (
            total(samples, "dead_letter_events")
            == total(samples, "events_total", outcome="dead_lettered")
            == 2
        )
        assert total(samples, "recovery_seconds") == buffer.stats().recovery_seconds
        assert total(samples, "recovery_seconds") > 0
        buffer.close(timeout=0)
        assert total(scrape(buffer), "dead_letter_events") == 2
    with BufferManager(config) as buffer:
        samples = scrape(buffer)
        assert total(samples, "events_total", outcome="dead_lettered") == 0, "of this run"
        assert total(samples, "dead_letter_events") == 2
        assert buffer.dead_letters is not None
        buffer.dead_letters.purge()
        assert total(scrape(buffer), "dead_letter_events") == 0
        buffer.close(timeout=0)
    assert not [one for one in scrape(make()) if one[0] == PREFIX + "recovery_seconds"], (
        "a buffer in memory has no such series"
    )


def test_a_delivery() -> None:
    buffer = BufferManager()
    assert not [one for one in scrape(buffer) if one[0].startswith(PREFIX + "delivery_")], (
        "without a delivery there is no such series"
    )
    works, hang = threading.Event(), threading.Event()

    def send(batch: Batch) -> None:
        if not works.is_set():
            raise SinkUnavailable("maintenance")
        hang.wait(30)

    delivery = buffer.deliver_to(send)
    samples = scrape(buffer)
    assert total(samples, "delivery_running") == 1
    assert total(samples, "delivery_in_flight_limit_batches") == 1
    assert total(samples, "delivery_failing_seconds") == 0
    buffer.add_events([b"x"])
    until(lambda: delivery.stats().failures)
    samples = scrape(buffer)
    assert total(samples, "delivery_failures_total") >= 1
    assert total(samples, "delivery_failing_seconds") > 0
    works.set()
    buffer.flush()
    until(lambda: delivery.stats().in_flight)
    assert total(scrape(buffer), "delivery_in_flight_batches") == 1
    hang.set()
    assert delivery.stop(30.0)
    samples = scrape(buffer)
    assert total(samples, "delivery_batches_total") == 1
    assert total(samples, "delivery_running") == 0
    assert total(samples, "delivery_failing_seconds") == 0


def test_dead_letters_in_memory() -> None:
    buffer = BufferManager()

    def send(batch: Batch) -> None:
        raise BatchRejected("no")

    with buffer.deliver_to(send):
        buffer.add_events([b"x"])
    samples = scrape(buffer)
    assert total(samples, "dead_letter_events") == 1
    assert total(samples, "dead_letters_lost_total") == 0


def test_histograms() -> None:
    clock = FakeClock()
    buffer = make(clock)
    buffer.add_events([b"x"] * 12)
    clock.advance(0.3)
    first = next_batch(buffer, 10)
    second = next_batch(buffer, 2)
    clock.advance(2.0)
    first.ack()
    second.nack()
    clock.advance(60.0)
    next_batch(buffer).ack()
    samples = scrape(buffer)
    at = {
        name: {
            dict(labels)["le"]: value
            for (one, labels), value in samples.items()
            if one == f"{PREFIX}{name}_bucket" and ("priority", "3") in labels
        }
        for name in ("queue_delay_seconds", "batch_latency_seconds", "batch_events")
    }
    # Only an event's first delivery tells how long it was queued.
    assert (at["queue_delay_seconds"]["0.25"], at["queue_delay_seconds"]["0.5"]) == (0, 2)
    assert total(samples, "queue_delay_seconds_sum") == pytest.approx(0.6)
    assert [at["batch_latency_seconds"][bound] for bound in ("0.0001", "1.0", "2.5")] == [1, 1, 2]
    assert total(samples, "batch_latency_seconds_sum") == pytest.approx(2.0)
    assert (at["batch_events"]["1.0"], at["batch_events"]["10.0"], at["batch_events"]["+Inf"]) == (
        0,
        2,
        2,
    )
    assert total(samples, "batch_events_sum") == 12
    for name, buckets in at.items():
        counts = list(buckets.values())
        assert counts == sorted(counts), name
        assert counts[-1] == total(samples, name + "_count")


def test_histogram_bounds_and_quantiles() -> None:
    histogram = Histogram((1.0, 10.0, 100.0))
    assert histogram.stats().quantile(0.5) != histogram.stats().quantile(0.5)  # nan
    for value in (0.5, 1.0, 10.0, 10.1, 1000.0):
        histogram.record(value)
    stats = histogram.stats()
    assert stats.counts == (2, 1, 1, 1)
    assert stats.count == 5
    assert stats.sum == pytest.approx(1021.6)
    assert stats.quantile(0.2) == pytest.approx(0.5)
    assert 1.0 < stats.quantile(0.5) <= 10.0
    assert stats.quantile(1.0) == 100.0  # above the last bound only that is known
    assert list(EVENTS) == sorted(EVENTS)


def test_breaker_and_pressure() -> None:
    clock = FakeClock()
    buffer = make(
        clock,
        circuit_breaker=CircuitBreakerConfig(min_requests=2, reset_timeout=30.0),
        retry_backoff=0.0,
    )
    states = ("closed", "open", "half_open", "forced_open", "disabled")
    shown = [total(scrape(buffer), "circuit_breaker_state", state=state) for state in states]
    assert shown == [1, 0, 0, 0, 0]
    buffer.add_events([b"x"] * 4)
    for _ in range(2):
        next_batch(buffer, 1).nack("down")
    samples = scrape(buffer)
    assert [total(samples, "circuit_breaker_state", state=state) for state in states] == [
        0,
        1,
        0,
        0,
        0,
    ]
    assert total(samples, "circuit_breaker_trips_total") == 1
    assert total(samples, "circuit_breaker_calls_total", result="failed") == 2
    assert 0 < total(samples, "circuit_breaker_retry_after_seconds") <= 60
    assert buffer.get_batch() is None
    assert total(scrape(buffer), "circuit_breaker_refused_total") >= 1
    buffer.add_events([b"x" * 100] * 40)
    for _ in range(10):  # an interval of the monitor at a time
        clock.advance(5.0)
        buffer.is_backpressure_active()
    samples = scrape(buffer)
    assert total(samples, "backpressure_active") == 1
    assert total(samples, "pressure_ratio") >= 0.5
    assert total(samples, "backpressure_signal") == 1
    assert total(samples, "backpressure_seconds_total") > 0
    assert total(samples, "oldest_event_age_seconds", priority="3") >= 50
    assert total(samples, "oldest_event_age_seconds", priority="1") == 0


def test_policies() -> None:
    buffer = make(
        batching=AdaptiveBatchConfig(initial_batch_size=1234),
        flow_control=FlowControlConfig(burst_size=1000),
    )
    buffer.adjust_flow_control_rate(5e6)
    samples = scrape(buffer)
    assert total(samples, "batch_size_events") == 1234
    assert (
        total(samples, "rate_limit_events_per_second")
        == total(samples, "rate_in_force_events_per_second")
        == 5e6
    )
    assert (
        total(samples, "flow_control_burst_events")
        == total(samples, "flow_control_tokens_events")
        == 1000
    )
    assert total(samples, "emergency_active") == 0
    assert total(samples, "capacity_bytes", priority="5") >= 4096


def test_counters_never_go_back_while_threads_work_and_the_books_hold_in_each_scrape(
    in_full: bool,
) -> None:
    buffer = BufferManager(BufferConfig(lane_bytes=1 << 16, retry_backoff=0.0))
    over = threading.Event()

    def produce() -> None:
        while not over.is_set():
            buffer.add_events([b"x" * 50] * 100, priority=2)

    def consume() -> None:
        turn = 0
        while not over.is_set():
            batch = buffer.get_batch(max_events=70)
            turn += 1
            if batch is not None:
                batch.nack("no") if turn % 20 == 0 else batch.ack()

    with switching_often(), background(produce, consume, stop=over):
        before: Samples = {}
        for _ in range(60 if in_full else 12):
            samples = scrape(buffer)
            check_books(samples)
            for (name, labels), value in samples.items():
                if name.endswith(("_total", "_bucket", "_count", "_sum")):
                    assert value >= before.get((name, labels), 0.0), (name, labels)
            before = samples
    assert total(before, "events_total", outcome="acked") > 0


def test_time_under_pressure_does_not_go_back_in_the_moment_in_which_it_ends() -> None:
    clock = FakeClock(100.0)
    buffer = make(clock)
    buffer._reporter._pressed_since = 90.0
    assert buffer.stats().backpressure_seconds == 10.0
    buffer._reporter._pressed_since = (
        None  # as another thread leaves it, before it adds the ten seconds to the sum
    )
    assert buffer.stats().backpressure_seconds == 10.0


def test_without_a_disk_tier_there_is_no_series_of_it_and_with_one_there_is(tmp_path: Path) -> None:
    tier = ("disk_", "durable_", "recovered_")
    assert not [name for name, _ in scrape(make()) if name.removeprefix(PREFIX).startswith(tier)]
    buffer = BufferManager(BufferConfig(lane_bytes=4096, directory=tmp_path / "buffer"))
    buffer.add_events([b"x" * 100] * 20, priority=2)
    samples = scrape(buffer)
    check_books(samples)
    stats = buffer.stats()
    for lane in stats.lanes.values():
        level = str(lane.priority)
        assert lane.disk is not None
        assert total(samples, "durable_lag_events", priority=level) == lane.disk.unsynced
        assert total(samples, "disk_failed_syncs_total", priority=level) == 0
    assert total(samples, "durable_lag_events") > 0
    buffer.close(timeout=0)
    again = BufferManager(BufferConfig(lane_bytes=4096, directory=tmp_path / "buffer"))
    samples = scrape(again)
    check_books(samples)
    assert total(samples, "recovered_events", priority="2") == 20
    again.close(timeout=0)


def test_spilled_events_are_seen(tmp_path: Path) -> None:
    buffer = BufferManager(BufferConfig(lane_bytes=4096, directory=tmp_path / "buffer"))
    for _ in range(20):
        buffer.add_events([b"x" * 100] * 20, timeout=5.0)
    samples = scrape(buffer)
    check_books(samples)
    assert total(samples, "disk_spilled_events_total", priority="3") > 0
    assert total(samples, "disk_spilled_bytes_total") > 0
    assert total(samples, "disk_stored_bytes_total") > 0
    assert total(samples, "disk_bytes") > 0
    assert total(samples, "disk_events") > 0
    buffer.close(timeout=0)


def test_a_disk_tier_without_room_is_seen(tmp_path: Path) -> None:
    buffer = BufferManager(
        BufferConfig(lane_bytes=1 << 16, directory=tmp_path / "buffer", max_disk_bytes=1 << 20)
    )
    deadline = time.monotonic() + 30.0
    while not (refused := total(samples := scrape(buffer), "disk_refused_total", priority="3")):
        assert time.monotonic() < deadline, "the disk was never full"
        # It waits: a loop that does not would leave the spiller little of the GIL.
        buffer.add_events([os.urandom(1000)] * 20, timeout=0.1)
    assert refused > 0
    check_books(samples)
    buffer.close(timeout=0)


def snapshots(buffer: BufferManager, monkeypatch: pytest.MonkeyPatch) -> list[BufferStats]:
    """Each that is taken from now on."""
    taken: list[BufferStats] = []
    stats = buffer.stats

    def kept() -> BufferStats:
        taken.append(stats())
        return taken[-1]

    monkeypatch.setattr(buffer, "stats", kept)
    return taken


def test_one_snapshot_for_one_scrape(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = make()
    taken = snapshots(buffer, monkeypatch)
    exposition(buffer)
    assert len(taken) == 1


# ---------------------------------------------------------------- rules of the library


def test_names_units_and_help() -> None:
    names = [family.name for family in FAMILIES]
    assert len(names) == len(set(names))
    for family in FAMILIES:
        assert re.fullmatch(r"backpressure_buffer_[a-z]+(_[a-z]+)*", family.name)
        assert (family.kind == "counter") == family.name.endswith("_total"), family.name
        assert family.help.endswith(".") or family.help.endswith("else 0."), family.name
        assert "le" not in family.labels


def test_it_registers_and_a_second_one_is_refused() -> None:
    registry = prometheus_client.CollectorRegistry()
    buffer = make()
    registry.register(Collector(buffer))
    with pytest.raises(ValueError, match="Duplicated"):
        registry.register(Collector(buffer))
    buffer.add_events([b"x"])
    labels = {"priority": "3", "outcome": "accepted", "reason": ""}
    assert registry.get_sample_value("backpressure_buffer_events_total", labels) == 1


def test_several_buffers_by_name() -> None:
    audit, access = make(), make()
    audit.add_events([b"x"] * 3)
    samples = scrape({"audit": audit, "access": access})
    assert total(samples, "events_total", buffer="audit", outcome="accepted") == 3
    assert total(samples, "events_total", buffer="access", outcome="accepted") == 0


def test_a_name_that_is_no_utf_8_breaks_no_scrape() -> None:
    samples = scrape({os.fsdecode(b"audit\xff"): make()})
    assert total(samples, "events_total", buffer=r"audit\udcff", outcome="accepted") == 0


def test_openmetrics_for_a_server_that_prefers_it() -> None:
    body, content_type = exposition(make(), "application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")
    from prometheus_client.openmetrics.parser import text_string_to_metric_families as strict

    assert len(list(strict(body.decode()))) > 20


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ImportError, match=r"pip install 'forebay\[prometheus\]'"):
        exposition(make())


# ---------------------------------------------------------------- OpenTelemetry


def observed(reader: Any) -> dict[tuple[str, frozenset[tuple[str, object]]], float]:
    data = reader.get_metrics_data()
    return {
        (metric.name, frozenset(point.attributes.items())): point.value
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in metric.data.data_points
    }


@pytest.fixture
def otel() -> Iterator[tuple[Any, Any]]:
    metrics = pytest.importorskip("opentelemetry.sdk.metrics")
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    reader = InMemoryMetricReader()
    provider = metrics.MeterProvider(metric_readers=[reader])
    yield provider.get_meter("test"), reader
    provider.shutdown()


def test_opentelemetry_sees_the_same(
    otel: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    meter, reader = otel
    clock = FakeClock()
    buffer = make(clock)
    instrument(buffer, meter, {"service": "s"})
    buffer.add_events([b"x"] * 12)
    clock.advance(0.3)
    next_batch(buffer, 10).ack()
    taken = snapshots(buffer, monkeypatch)
    seen = observed(reader)
    assert len(taken) == 1, "one snapshot serves a whole cycle"

    def at(name: str, **labels: object) -> float:
        return seen[("backpressure.buffer." + name, frozenset({**labels, "service": "s"}.items()))]

    assert at("events", priority="3", outcome="accepted") == 12
    assert at("events", priority="3", outcome="rejected", reason="full") == 0
    assert at("resident_events", priority="3", state="waiting") == 2
    assert at("circuit_breaker_state", state="closed") == 1
    assert at("queue_delay.count", priority="3") == 1
    assert at("queue_delay.sum", priority="3") == pytest.approx(0.3)
    assert (
        at("queue_delay.bucket", priority="3", le="0.25"),
        at("queue_delay.bucket", priority="3", le="0.5"),
    ) == (0, 1)
    assert at("oldest_event_age", priority="3") == pytest.approx(0.3)
    next_batch(buffer).ack()
    seen = observed(reader)
    assert len(taken) == 2, "the next cycle has numbers of its own"
    assert at("events", priority="3", outcome="acked") == 12


def test_opentelemetry_names_and_units() -> None:
    dotted = {family.name: family.dotted for family in FAMILIES}
    assert dotted["backpressure_buffer_events_total"] == ("backpressure.buffer.events", "{event}")
    assert dotted["backpressure_buffer_used_bytes"] == ("backpressure.buffer.used", "By")
    assert dotted["backpressure_buffer_backpressure_seconds_total"] == (
        "backpressure.buffer.backpressure",
        "s",
    )
    assert dotted["backpressure_buffer_pressure_ratio"] == ("backpressure.buffer.pressure", "1")
    assert dotted["backpressure_buffer_resident_events"] == (
        "backpressure.buffer.resident_events",
        "{event}",
    )
    assert len(set(dotted.values())) == len(dotted)
