"""What a directory costs: a buffer with one against a buffer in memory, and the
durabilities against each other.

Ratios of neighbouring measurements in one process. Lines are real where a sample log is
at hand.
"""

from __future__ import annotations

import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from backpressure import BufferConfig, BufferManager, Durability

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="a directory needs Linux"),
    pytest.mark.platform,
]

CHUNK_BYTES = 256 * 1024
ROUNDS = 7


@pytest.fixture(scope="module")
def chunks(access_log: list[bytes]) -> list[bytes]:
    """Log lines in chunks that end with a line."""
    data = b"".join(line + b"\n" for line in access_log)
    parts, start = [], 0
    while start < len(data):
        end = data.rfind(b"\n", start, start + CHUNK_BYTES) + 1
        parts.append(data[start:end])
        start = end
    return parts


@contextmanager
def opened(directory: Path | None, **changes: Any) -> Iterator[BufferManager]:
    buffer = BufferManager(BufferConfig(directory=directory, **changes))
    try:
        yield buffer
    finally:
        buffer.close(timeout=0)


def through(buffer: BufferManager, chunks: list[bytes], times: int) -> int:
    """All lines in and out again, with every policy on; returns how many."""
    count = out = 0
    for _ in range(times):
        for chunk in chunks:
            count += buffer.add_lines(chunk).accepted
            while (batch := buffer.get_batch()) is not None:
                out += len(batch)
                batch.ack()
    assert out == count
    return count


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def test_process_against_memory(
    benchmark: BenchmarkFixture, chunks: list[bytes], tmp_path: Path
) -> None:
    with opened(None) as memory, opened(tmp_path / "buffer") as durable:
        through(memory, chunks, 1)
        benchmark.pedantic(through, args=(durable, chunks, 5), rounds=3)
        if benchmark.disabled:
            return
        ratios = [
            seconds(lambda: through(memory, chunks, 5))
            / seconds(lambda: through(durable, chunks, 5))
            for _ in range(ROUNDS * 3)
        ]
    ratio = statistics.median(ratios)
    benchmark.extra_info.update(ratio=round(ratio, 3), limit=0.95)
    print(f"\nPROCESS with a directory: {ratio:.2f} of memory only, at least 0.95 wanted")
    assert ratio >= 0.95


def test_checksums_against_none(
    benchmark: BenchmarkFixture, chunks: list[bytes], tmp_path: Path
) -> None:
    """What checksums for what stays cost where nothing stays.

    The three in turn, round by round, each against memory in the same round.
    """
    with (
        opened(None) as memory,
        opened(tmp_path / "with", ring_checksums=True) as sealed,
        opened(tmp_path / "without", ring_checksums=False) as plain,
    ):
        for buffer in (memory, sealed, plain):
            through(buffer, chunks, 1)
        benchmark.pedantic(through, args=(sealed, chunks, 5), rounds=3)
        if benchmark.disabled:
            return
        rounds = [
            [seconds(lambda b=buffer: through(b, chunks, 5)) for buffer in (memory, sealed, plain)]  # type: ignore[misc]
            for _ in range(ROUNDS * 3)
        ]
    with_them = statistics.median(alone / sealed for alone, sealed, _ in rounds)
    without = statistics.median(alone / plain for alone, _, plain in rounds)
    benchmark.extra_info.update(
        with_checksums=round(with_them, 3), without=round(without, 3), limit=0.95
    )
    print(
        f"\nof memory only: {with_them:.2f} with checksums, at least 0.95 wanted; {without:.2f} "
        "without"
    )
    assert with_them >= 0.95


def accept_rate(
    buffer: BufferManager, chunks: list[bytes], duration: float, threads: int = 4
) -> float:
    """Lines a second of several producers, beside a consumer that keeps up."""
    accepted, stop = [0] * threads, threading.Event()

    def consume() -> None:
        while not stop.is_set():
            batch = buffer.get_batch(timeout=0.05)
            if batch is not None:
                batch.ack()

    def produce(number: int) -> None:
        i = 0
        while not stop.is_set():
            accepted[number] += buffer.add_lines(chunks[i % len(chunks)], timeout=1.0).accepted
            i += 1

    workers = [
        threading.Thread(target=consume),
        *(threading.Thread(target=produce, args=(i,)) for i in range(threads)),
    ]
    for worker in workers:
        worker.start()
    started = time.perf_counter()
    time.sleep(duration)
    total = sum(accepted)
    elapsed = time.perf_counter() - started
    stop.set()
    for worker in workers:
        worker.join()
    return total / elapsed


def bare_append_rate(path: Path, chunks: list[bytes], duration: float) -> float:
    """Lines a second of a bare append + fdatasync loop, in groups of about 5 ms."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    lines = [chunk.count(b"\n") for chunk in chunks]
    total = i = 0
    started = last = time.perf_counter()
    while time.perf_counter() - started < duration:
        os.write(fd, chunks[i % len(chunks)])
        total += lines[i % len(chunks)]
        i += 1
        if time.perf_counter() - last >= 0.005:
            os.fdatasync(fd)
            last = time.perf_counter()
    os.fdatasync(fd)
    elapsed = time.perf_counter() - started
    os.close(fd)
    return total / elapsed


def test_commit_against_process(
    benchmark: BenchmarkFixture, chunks: list[bytes], tmp_path: Path
) -> None:
    duration = 0.05 if benchmark.disabled else 2.0

    def measure() -> tuple[float, float, float]:
        with opened(tmp_path / "process") as buffer:
            process = accept_rate(buffer, chunks, duration)
        with opened(
            tmp_path / "commit", durability=Durability.COMMIT, sync_interval=0.005
        ) as buffer:
            commit = accept_rate(buffer, chunks, duration)
        return commit, process, bare_append_rate(tmp_path / "bare", chunks, duration)

    runs = [benchmark.pedantic(measure, rounds=1)]
    if benchmark.disabled:
        return
    runs += [measure() for _ in range(2)]
    of_process = statistics.median(commit / process for commit, process, _ in runs)
    of_bare = statistics.median(commit / bare for commit, _, bare in runs)
    benchmark.extra_info.update(of_process=round(of_process, 3), of_bare=round(of_bare, 3))
    print(
        f"\nCOMMIT, groups of 5 ms: {of_process:.2f} of PROCESS (0.5 wanted where the disk "
        "allows), "
        f"{of_bare:.2f} of a bare append + fdatasync loop (else 0.8 wanted)"
    )


def test_commit_of_lists_against_pwrite(
    benchmark: BenchmarkFixture, access_log: list[bytes], tmp_path: Path
) -> None:
    """COMMIT of one producer: each list is durable when its add returns.

    The yardstick writes the same bytes in the same groups to a file that grows as well,
    and syncs each with fdatasync.
    """
    lists = [access_log[start : start + 1000] for start in range(0, len(access_log), 1000)]
    bytes_of = [b"".join(events) for events in lists]

    def bare() -> None:
        fd = os.open(tmp_path / "bare", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        at = 0
        for data in bytes_of:
            at += os.pwrite(fd, data, at)
            os.fdatasync(fd)
        os.close(fd)
        assert at == sum(map(len, bytes_of))

    with opened(tmp_path / "buffer", durability=Durability.COMMIT) as buffer:

        def commit() -> None:
            for events in lists:
                assert buffer.add_events(events).accepted == len(events)

        def deliver() -> list[bytes]:
            out: list[bytes] = []
            while (batch := buffer.get_batch()) is not None:
                out += batch.tolist()
                batch.ack()
            return out

        commit()
        disk = buffer.stats().disk
        assert disk is not None
        assert (disk.unsynced, disk.spilled) == (0, len(access_log))
        assert deliver() == access_log
        benchmark.pedantic(commit, rounds=1)
        deliver()
        if benchmark.disabled:
            return
        ratios = []
        for _ in range(ROUNDS):
            ratios.append(seconds(commit) / seconds(bare))
            deliver()
    ratio = statistics.median(ratios)
    benchmark.extra_info.update(yardstick="pwrite and fdatasync", ratio=round(ratio, 3), limit=2.0)
    print(f"\nCOMMIT of lists of 1,000: {ratio:.2f} times pwrite and fdatasync, at most 2 wanted")
    assert ratio <= 2.0


def test_add_latency_beside_a_writer(
    benchmark: BenchmarkFixture, chunks: list[bytes], tmp_path: Path
) -> None:
    """p99.9 of add_events, alone and while a writer loads the same disk.

    Calls of 100 lines. Reported, not judged.
    """
    events = chunks[0].split(b"\n")[:100]
    count = 200 if benchmark.disabled else 20_000

    def latencies(buffer: BufferManager) -> list[float]:
        taken = []
        for i in range(count):
            taken.append(seconds(lambda: buffer.add_events(events)))
            if i % 50 == 49:
                while (batch := buffer.get_batch()) is not None:
                    batch.ack()
        return sorted(taken)

    def hammer(stop: threading.Event) -> None:
        block = os.urandom(1 << 20)
        fd = os.open(tmp_path / "hammer", os.O_WRONLY | os.O_CREAT)
        i = 0
        while not stop.is_set():
            os.pwrite(fd, block, (i % 256) << 20)
            os.fdatasync(fd)
            i += 1
        os.close(fd)

    with opened(tmp_path / "buffer") as buffer:
        alone = benchmark.pedantic(latencies, args=(buffer,), rounds=1)
        stop = threading.Event()
        writer = threading.Thread(target=hammer, args=(stop,))
        writer.start()
        beside = latencies(buffer)
        stop.set()
        writer.join()
    at = int(count * 0.999)
    benchmark.extra_info.update(
        p999_alone_us=round(alone[at] * 1e6), p999_beside_us=round(beside[at] * 1e6)
    )
    print(
        f"\np99.9 of add_events: {alone[at] * 1e6:.0f} us alone, {beside[at] * 1e6:.0f} us "
        "beside a writer"
    )
