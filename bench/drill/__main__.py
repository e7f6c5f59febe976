"""Runs a buffer through faults in real time and prints, once a second, what a scrape of its metrics says.

    python -m bench.drill                 a minute; needs the extra `prometheus`

Every number in the table is read from the exposition, as a Prometheus server would: rates are differences of two scrapes. The
sink is a file; "disk full" is the kernel's own ENOSPC, from /dev/full. At the end the books are checked, and that the file holds
every accepted event once, in order.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from backpressure.batch import Batch
from backpressure.buffer_manager import BufferManager
from backpressure.circuit_breaker import CircuitBreakerConfig
from backpressure.config import BufferConfig
from backpressure.errors import BufferClosed
from backpressure.metrics import exposition
from backpressure.sinks import FileSink, StreamSink

# Events a second, and bytes of each; a lane that holds six seconds of them.
RATE = 20_000
EVENT_BYTES = 100
LANE_BYTES = 16 << 20
PREFIX = "backpressure_buffer_"

#: Seconds, name, what the sink does, and how many times the usual rate comes in.
PHASES = (
    (5, "steady", "ok", 1.0),
    (12, "sink down", "refuses", 1.0),
    (13, "sink back", "ok", 1.0),
    (3, "burst ×10", "ok", 10.0),
    (7, "after it", "ok", 1.0),
    (8, "disk full", "full", 1.0),
    (10, "disk has room", "ok", 1.0),
)


class DrillSink:
    """A file, unless the drill says otherwise. `mode`: "ok", "refuses" or "full"."""

    def __init__(self, path: Path) -> None:
        self.mode = "ok"
        self._file = FileSink(path)
        self._full = StreamSink(os.open("/dev/full", os.O_WRONLY), "/dev/full")

    def send(self, batch: Batch) -> None:
        if self.mode == "refuses":
            raise ConnectionRefusedError(111, "Connection refused")
        (self._full if self.mode == "full" else self._file).send(batch)

    def close(self) -> None:
        self._file.close()
        self._full.close()


class Producer:
    """Offers numbered events at a rate, in steps of 10 ms, and gives up what is refused, as a log source without memory does."""

    def __init__(self, buffer: BufferManager) -> None:
        self.factor = 1.0
        self.over = threading.Event()
        self.accepted: list[range] = []
        self._buffer = buffer
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self.over.set()
        self._thread.join()

    def _run(self) -> None:
        number, due = 0, time.monotonic()
        while not self.over.is_set():
            count = int(RATE * self.factor / 100)
            events = [b"%0*d" % (EVENT_BYTES, number + n) for n in range(count)]
            admission = self._buffer.add_events(events)
            self.accepted.append(range(number, number + admission.accepted))
            number += count
            due += 0.01
            time.sleep(max(0.0, due - time.monotonic()))


def deliver(buffer: BufferManager, sink: DrillSink, over: threading.Event) -> None:
    while not over.is_set():
        try:
            batch = buffer.get_batch(timeout=0.1)
        except BufferClosed:
            return
        if batch is None:
            continue
        try:
            sink.send(batch)
        except OSError as error:
            batch.nack(error)
        else:
            batch.ack()


def scrape(buffer: BufferManager) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    samples = {}
    for family in text_string_to_metric_families(exposition(buffer)[0].decode()):
        for sample in family.samples:
            samples[sample.name, frozenset(sample.labels.items())] = sample.value
    return samples


def total(samples: dict, name: str, **labels: str) -> float:
    return sum(value for (one, its), value in samples.items() if one == PREFIX + name and labels.items() <= dict(its).items())


def chosen(samples: dict, name: str, label: str) -> str:
    """Of a one-hot metric, which label has the 1."""
    return next((dict(its)[label] for (one, its), value in samples.items() if one == PREFIX + name and value == 1), "-")


COLUMNS = ("s", "phase", "offered/s", "refused/s", "acked/s", "nacked/s", "resident", "memory", "oldest", "pressure", "signal",
           "active", "breaker", "emergency", "in force/s")  # fmt: skip


def row(second: int, phase: str, now: dict, before: dict) -> list[str]:
    def rate(name: str, **labels: str) -> float:
        return total(now, name, **labels) - total(before, name, **labels)

    memory = total(now, "used_bytes", priority="3") / total(now, "capacity_bytes", priority="3")
    return [
        str(second),
        phase,
        f"{rate('events_total', outcome='offered'):,.0f}",
        f"{rate('events_total', outcome='rejected'):,.0f}",
        f"{rate('events_total', outcome='acked'):,.0f}",
        f"{rate('batches_total', outcome='nacked'):,.0f}",
        f"{total(now, 'resident_events'):,.0f}",
        f"{memory:.0%}",
        f"{total(now, 'oldest_event_age_seconds', priority='3'):.1f} s",
        f"{total(now, 'pressure_ratio'):.2f}",
        chosen(now, "backpressure_signal", "signal"),
        "yes" if total(now, "backpressure_active") else "no",
        chosen(now, "circuit_breaker_state", "state"),
        "yes" if total(now, "emergency_active") else "no",
        f"{total(now, 'rate_in_force_events_per_second'):,.0f}",
    ]


def schedule() -> Iterator[tuple[int, str, str, float]]:
    second = 0
    for seconds, name, mode, factor in PHASES:
        for _ in range(seconds):
            second += 1
            yield second, name, mode, factor


def main() -> int:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "out.log"
        breaker = CircuitBreakerConfig(reset_timeout=2.0)
        # With the default of 5 s a single consumer hardly makes the ten failures within 5 s that the breaker wants to see.
        buffer = BufferManager(BufferConfig(lane_bytes=LANE_BYTES, max_retry_backoff=0.25, circuit_breaker=breaker))
        sink, over = DrillSink(path), threading.Event()
        consumer = threading.Thread(target=deliver, args=(buffer, sink, over), daemon=True)
        consumer.start()
        producer = Producer(buffer)
        print("| " + " | ".join(COLUMNS) + " |")
        print("|" + "---|" * len(COLUMNS))
        before, due = scrape(buffer), time.monotonic()
        for second, name, mode, factor in schedule():
            sink.mode, producer.factor = mode, factor
            due += 1.0
            time.sleep(max(0.0, due - time.monotonic()))
            now = scrape(buffer)
            print("| " + " | ".join(row(second, name, now, before)) + " |", flush=True)
            before = now
        producer.stop()
        stats = buffer.close(timeout=30.0)
        over.set()
        consumer.join()
        sink.close()
        stats.check()
        expected = [number for span in producer.accepted for number in span]
        got = [int(line) for line in path.read_bytes().splitlines()]
        whole = got == expected
        print(f"\noffered {stats.offered:,}, accepted {stats.accepted:,}, in the file {len(got):,}")
        print(f"refused: {dict(stats.rejected)}")
        print("every accepted event is in the file once, in order" if whole else "THE FILE IS NOT WHAT WAS ACCEPTED")
        return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
