"""Accepted events a second with a directory, against durable queues for Python and
against SQLite.

Peers come with the extra `compare`. Each is used as its documentation says is fast: a
batch call or one transaction where it has one, else one put for each event. What is
accepted is on disk, or in the page cache, in all of them: it outlives the process. Our
events are put in lists of 1,000.

Ours is measured three times: fresh, right after the directory was made, when pages of
the ring's file are used for the first time; used, when the ring was filled and emptied
before; and in memory only, as what could be reached at most. SQLite is measured as it
is mostly used, synchronous=NORMAL, which syncs at its checkpoints, and with
synchronous=OFF, which promises what we do by default: that it outlives the process.
"""

from __future__ import annotations

import gc
import importlib.util
import sqlite3
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from backpressure import BufferConfig, BufferManager

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="a directory needs Linux"),
    pytest.mark.platform,
]

EVENTS = [b"%06d " % i + b"x" * 200 for i in range(100_000)]


class Ours(NamedTuple):
    """Events a second."""

    fresh: float
    used: float
    memory: float


def ours(path: Path, count: int) -> Ours:
    with BufferManager(BufferConfig(directory=path)) as durable, BufferManager() as memory:
        fresh = burst(durable, count)
        burst(durable, count), burst(memory, count)
        return Ours(fresh, burst(durable, count), burst(memory, count))


def burst(buffer: BufferManager, count: int) -> float:
    """Events a second that are accepted; then all is taken out again."""
    started = time.perf_counter()
    for start in range(0, count, 1000):
        assert buffer.add_events(EVENTS[start : start + 1000]).accepted == 1000
    rate = count / (time.perf_counter() - started)
    assert buffer.stats().resident == count
    out = 0
    while (batch := buffer.get_batch()) is not None:
        out += len(batch)
        batch.ack()
    assert out == count
    return rate


def sqlite(path: Path, count: int, synchronous: str = "NORMAL") -> float:
    database = sqlite3.connect(path)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute(f"PRAGMA synchronous={synchronous}")
    database.execute("CREATE TABLE queue (id INTEGER PRIMARY KEY, event BLOB)")
    started = time.perf_counter()
    for start in range(0, count, 10_000):
        with database:
            database.executemany(
                "INSERT INTO queue (event) VALUES (?)",
                ((event,) for event in EVENTS[start : start + 10_000]),
            )
    rate = count / (time.perf_counter() - started)
    assert database.execute("SELECT count(*) FROM queue").fetchone() == (count,)
    database.close()
    return rate


def persist_queue(path: Path, count: int) -> float:
    from persistqueue import SQLiteQueue

    queue = SQLiteQueue(str(path), auto_commit=False)
    started = time.perf_counter()
    for event in EVENTS[:count]:
        queue.put(event)
    queue.task_done()
    rate = count / (time.perf_counter() - started)
    assert queue.size == count
    queue.close()
    return rate


def litequeue(path: Path, count: int) -> float:
    from litequeue import LiteQueue

    queue = LiteQueue(str(path))
    started = time.perf_counter()
    for event in EVENTS[:count]:
        queue.put(event.decode())
    rate = count / (time.perf_counter() - started)
    assert queue.qsize() == count
    queue.conn.close()
    return rate


def diskcache(path: Path, count: int) -> float:
    from diskcache import Deque

    queue = Deque(directory=str(path))
    started = time.perf_counter()
    with queue.transact():
        for event in EVENTS[:count]:
            queue.append(event)
    rate = count / (time.perf_counter() - started)
    assert len(queue) == count
    queue.cache.close()
    return rate


PEERS: dict[str, tuple[str, Callable[[Path, int], float], int]] = {
    "persist-queue": ("persistqueue", persist_queue, 5_000),
    "litequeue": ("litequeue", litequeue, 5_000),
    "diskcache.Deque": ("diskcache", diskcache, 5_000),
}


def test_against_sqlite(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    count = 10_000 if benchmark.disabled else 100_000
    benchmark.pedantic(ours, args=(tmp_path / "ours-0", count), rounds=1)
    if benchmark.disabled:
        sqlite(tmp_path / "db-0", count)
        return
    rounds = [
        (
            ours(tmp_path / f"ours-{i}", count),
            sqlite(tmp_path / f"db-{i}", count),
            sqlite(tmp_path / f"off-{i}", count, "OFF"),
        )
        for i in range(1, 6)
    ]
    for name in Ours._fields:
        times = statistics.median(getattr(mine, name) / normal for mine, normal, _ in rounds)
        times_off = statistics.median(getattr(mine, name) / off for mine, _, off in rounds)
        rate = statistics.median(getattr(mine, name) for mine, _, _ in rounds)
        benchmark.extra_info.update(
            {f"{name}_times_sqlite": round(times, 1), f"{name}_per_second": round(rate)}
        )
        print(
            f"\naccepted, {name}: {rate / 1e6:.1f} million a second, {times:.1f} times SQLite "
            "in WAL mode with 10,000 rows a "
            f"transaction (20 wanted with a directory), {times_off:.1f} times it with "
            "synchronous=OFF"
        )


def test_against_durable_queues(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    there = {name: peer for name, peer in PEERS.items() if importlib.util.find_spec(peer[0])}
    if not there:
        pytest.skip("no peer is installed: pip install .[compare]")
    count = 10_000 if benchmark.disabled else 100_000
    benchmark.pedantic(ours, args=(tmp_path / "ours", count), rounds=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # of the peers' own
        rates = {
            name: work(tmp_path / name, 100 if benchmark.disabled else most)
            for name, (_, work, most) in there.items()
        }
        gc.collect()
    if benchmark.disabled:
        return
    mine = [ours(tmp_path / f"ours-{i}", count) for i in range(5)]
    fastest = max(rates, key=lambda name: rates[name])
    benchmark.extra_info.update({name: round(rate) for name, rate in rates.items()})
    for name in ("fresh", "used"):
        rate = statistics.median(getattr(one, name) for one in mine)
        benchmark.extra_info.update(
            {f"{name}_times": round(rate / rates[fastest]), f"{name}_per_second": round(rate)}
        )
        print(
            f"\naccepted, {name}: {rate:,.0f} a second, {rate / rates[fastest]:.0f} times "
            f"{fastest}; 100 wanted; {rates}"
        )
