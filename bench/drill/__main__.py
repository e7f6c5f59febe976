"""Runs a buffer through faults in real time and prints, once a second, what a scrape of
its metrics says.

    python -m bench.drill                 in memory: sink down, burst, sink's disk full;
                                          a minute; needs the extra `prometheus`
    python -m bench.drill --directory     with a disk tier of at most 16 MiB, which
                                          fills while the sink is down

Every number in the table is read from the exposition, as a Prometheus server would:
rates are differences of two scrapes. The sink is a file; "disk full" is the kernel's
own ENOSPC, from /dev/full. At the end the books are checked, and that the file holds
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
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from backpressure.base.errors import BufferClosed
from backpressure.buffer.batch import Batch
from backpressure.buffer.config import BufferConfig
from backpressure.buffer_manager import BufferManager
from backpressure.metrics import exposition
from backpressure.policies.circuit_breaker import CircuitBreakerConfig
from backpressure.policies.flow_control_manager import EmergencyModeConfig, FlowControlConfig
from backpressure.sinks import FileSink, StreamSink

# Events a second, and bytes of each; a lane that holds six seconds of them.
RATE = 20_000
EVENT_BYTES = 100
LANE_BYTES = 16 << 20
# The disk tier may take this much: half a minute of them, which are hexadecimal digits
# and so half as large when compressed.
DISK_BYTES = 16 << 20
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
DISK_PHASES = (
    (3, "steady", "ok", 1.0),
    (32, "sink down", "refuses", 1.0),
    (10, "sink back", "ok", 1.0),
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
    """Offers numbered events at a rate, in steps of 10 ms.

    It gives up what is refused, as a log source without memory does.
    """

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
            events = [self._event(number + n) for n in range(count)]
            admission = self._buffer.add_events(events)
            self.accepted.append(range(number, number + admission.accepted))
            number += count
            due += 0.01
            time.sleep(max(0.0, due - time.monotonic()))

    def _event(self, number: int) -> bytes:
        return (b"%012d " % number + os.urandom(EVENT_BYTES // 2).hex().encode())[:EVENT_BYTES]


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


# By name and labels.
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(buffer: BufferManager) -> Samples:
    samples: Samples = {}
    for family in text_string_to_metric_families(exposition(buffer)[0].decode()):
        for sample in family.samples:
            samples[sample.name, frozenset(sample.labels.items())] = sample.value
    return samples


def total(samples: Samples, name: str, **labels: str) -> float:
    return sum(
        value
        for (one, its), value in samples.items()
        if one == PREFIX + name and labels.items() <= dict(its).items()
    )


def chosen(samples: Samples, name: str, label: str) -> str:
    """Of a one-hot metric, which label has the 1."""
    return next(
        (
            dict(its)[label]
            for (one, its), value in samples.items()
            if one == PREFIX + name and value == 1
        ),
        "-",
    )


COLUMNS = (
    "s", "phase", "offered/s", "refused/s", "acked/s", "nacked/s", "resident", "memory", "oldest",
    "pressure", "signal", "active", "breaker", "emergency", "in force/s",
)  # fmt: skip


def row(second: int, phase: str, now: Samples, before: Samples) -> list[str]:
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


def disk_row(now: Samples, before: Samples) -> list[str]:
    spilled, refused = (
        total(now, name) - total(before, name)
        for name in ("disk_spilled_events_total", "disk_refused_total")
    )
    return [
        f"{spilled:,.0f}",
        f"{total(now, 'disk_events'):,.0f}",
        f"{total(now, 'disk_bytes') / 1e6:.1f} MB",
        f"{refused:,.0f}",
    ]


def schedule(
    phases: tuple[tuple[int, str, str, float], ...],
) -> Iterator[tuple[int, str, str, float]]:
    second = 0
    for seconds, name, mode, factor in phases:
        for _ in range(seconds):
            second += 1
            yield second, name, mode, factor


def main() -> int:
    durable = "--directory" in sys.argv[1:]
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "out.log"
        breaker = CircuitBreakerConfig(reset_timeout=2.0)
        # With the default of 5 s a single consumer hardly makes the ten failures within
        # 5 s that the breaker wants to see.
        tier: dict[str, Any] = {}
        if durable:
            # What is to be kept on disk must not be shed for the sink's sake before
            # there is no room.
            flow = FlowControlConfig(emergency_mode=EmergencyModeConfig(enabled=False))
            tier = {
                "directory": Path(directory) / "buffer",
                "max_disk_bytes": DISK_BYTES,
                "flow_control": flow,
            }
        buffer = BufferManager(
            BufferConfig(
                lane_bytes=LANE_BYTES, max_retry_backoff=0.25, circuit_breaker=breaker, **tier
            )
        )
        sink, over = DrillSink(path), threading.Event()
        consumer = threading.Thread(target=deliver, args=(buffer, sink, over), daemon=True)
        consumer.start()
        producer = Producer(buffer)
        columns = (*COLUMNS, "spilled/s", "on disk", "files", "no room") if durable else COLUMNS
        print("| " + " | ".join(columns) + " |")
        print("|" + "---|" * len(columns))
        before, due = scrape(buffer), time.monotonic()
        for second, name, mode, factor in schedule(DISK_PHASES if durable else PHASES):
            sink.mode, producer.factor = mode, factor
            due += 1.0
            time.sleep(max(0.0, due - time.monotonic()))
            now = scrape(buffer)
            cells = row(second, name, now, before) + (disk_row(now, before) if durable else [])
            print("| " + " | ".join(cells) + " |", flush=True)
            before = now
        producer.stop()
        stats = buffer.close(timeout=30.0)
        over.set()
        consumer.join()
        sink.close()
        stats.check()
        expected = [number for span in producer.accepted for number in span]
        got = [int(line[:12]) for line in path.read_bytes().splitlines()]
        whole = got == expected
        print(f"\noffered {stats.offered:,}, accepted {stats.accepted:,}, in the file {len(got):,}")
        print(f"refused: {dict(stats.rejected)}")
        print(
            "every accepted event is in the file once, in order"
            if whole
            else "THE FILE IS NOT WHAT WAS ACCEPTED"
        )
        return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
