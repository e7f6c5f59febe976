"""High volume: producers, consumers and a sink that fails, on one buffer; nothing is
lost, doubled or out of order.
"""

from __future__ import annotations

import random
import threading
from collections import defaultdict
from collections.abc import Iterator

import pytest

from backpressure import (
    BufferClosed,
    BufferConfig,
    BufferManager,
    CircuitBreakerConfig,
    EmergencyModeConfig,
    FlowControlConfig,
    WhenFull,
)
from tests.support.threads import switching_often


@pytest.fixture
def fast_switching() -> Iterator[None]:
    with switching_often():
        yield


def run(threads: list[threading.Thread], failures: list[BaseException]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), "a thread hangs"
    assert not failures, failures


@pytest.mark.usefixtures("fast_switching")
@pytest.mark.parametrize(("producers", "consumers"), [(1, 1), (4, 1), (1, 3), (3, 3)])
def test_threads_lose_nothing_and_keep_order(producers: int, consumers: int) -> None:
    """Each event carries its producer and number; a small lane makes everyone wait, and
    a fifth of the batches fails.
    """
    buffer = BufferManager(
        BufferConfig(
            lane_bytes=1 << 15,
            when_full=WhenFull.BLOCK,
            retry_backoff=0.0,
            # Failures are wanted here in any number. As many as these make an emergency
            # now and then, and producers then wait for a minute of the real clock.
            circuit_breaker=CircuitBreakerConfig(failure_threshold=1.0, min_requests=10**6),
            flow_control=FlowControlConfig(emergency_mode=EmergencyModeConfig(enabled=False)),
        )
    )
    per_producer = 9_000 // producers
    failures: list[BaseException] = []
    delivered: list[list[tuple[int, int, list[bytes]]]] = [[] for _ in range(consumers)]

    def produce(number: int) -> None:
        rng = random.Random(number)
        at = 0
        while at < per_producer:
            many = rng.randrange(1, 200)
            priority = rng.randrange(1, 6)
            events = [
                b"%d:%d" % (number, i) + b"." * rng.randrange(60)
                for i in range(at, min(at + many, per_producer))
            ]
            if rng.random() < 0.5:
                admission = buffer.add_events(events, priority=priority, timeout=None)
            else:
                admission = buffer.add_lines(b"\n".join(events), priority=priority, timeout=None)
            assert admission.rejected == 0
            at += len(events)

    def consume(number: int) -> None:
        rng = random.Random(1000 + number)
        while True:
            try:
                batch = buffer.get_batch(rng.randrange(1, 300), timeout=0.2)
            except BufferClosed:
                return
            if batch is None:
                continue
            events = batch.tolist()
            if rng.random() < 0.2:
                batch.nack("no luck")
            else:
                delivered[number].append((batch.priority, batch.first_seq, events))
                batch.ack()
            buffer.stats().check()

    def guarded(work: object, number: int) -> None:
        try:
            work(number)  # type: ignore[operator]
        except BaseException as error:
            failures.append(error)
            raise

    makers = [threading.Thread(target=guarded, args=(produce, i)) for i in range(producers)]
    takers = [threading.Thread(target=guarded, args=(consume, i)) for i in range(consumers)]
    for taker in takers:
        taker.start()
    run(makers, failures)
    stats = buffer.close(timeout=60)
    for taker in takers:
        taker.join(60)
        assert not taker.is_alive()
    assert not failures, failures
    stats.check()
    assert (stats.resident, dict(stats.dropped)) == (0, {})
    assert stats.acked == per_producer * producers
    assert stats.batches_nacked > 0

    by_lane: dict[int, list[tuple[int, list[bytes]]]] = defaultdict(list)
    for one in delivered:
        for priority, first_seq, events in one:
            by_lane[priority].append((first_seq, events))
    seen = 0
    for batches in by_lane.values():
        expected = 0
        newest = [-1] * producers
        for first_seq, events in sorted(batches):
            assert first_seq == expected, "an event is missing, or was acked twice"
            expected += len(events)
            for event in events:
                producer, number = event.rstrip(b".").split(b":")
                assert int(number) > newest[int(producer)], (
                    "a producer's events of one priority are out of order"
                )
                newest[int(producer)] = int(number)
        seen += expected
    assert seen == per_producer * producers


def test_a_million_lines_through_the_default_buffer(log_lines: bytes) -> None:
    """As the main job does it, one thread; what comes out is what went in."""
    buffer = BufferManager()
    count = log_lines.count(b"\n")
    delivered = 0
    for _ in range(1_000_000 // count):
        admission = buffer.add_lines(log_lines)
        assert (admission.accepted, admission.rejected) == (count, 0)
        out = []
        while (batch := buffer.get_batch(max_events=3_333)) is not None:
            out.append(batch.join(b"\n", b"\n"))
            delivered += len(batch)
            batch.ack()
        assert b"".join(out) == log_lines
    stats = buffer.stats()
    stats.check()
    assert stats.acked == stats.accepted == delivered == 1_000_000 // count * count
    assert stats.used_bytes == 0


def test_a_flood_beyond_all_room_is_refused_and_counted(log_lines: bytes) -> None:
    """Ten times what the lanes hold, without a consumer: memory stays what it is,
    and every line is accounted for.
    """
    buffer = BufferManager(BufferConfig(lane_bytes=1 << 20))
    lines = log_lines.count(b"\n")
    offered = 0
    for round_ in range(25):
        admission = buffer.add_lines(log_lines, priority=1 + round_ % 5)
        assert admission.accepted + admission.rejected == lines
        assert log_lines[: admission.consumed].count(b"\n") == admission.accepted
        offered += lines
    stats = buffer.stats()
    stats.check()
    assert stats.offered == offered
    assert 0 < stats.accepted < offered
    assert stats.used_bytes <= stats.capacity_bytes == 5 << 20
    assert buffer.is_backpressure_active()
    delivered = 0
    while (batch := buffer.get_batch()) is not None:
        delivered += len(batch)
        batch.ack()
    assert delivered == stats.accepted
