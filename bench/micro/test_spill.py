"""The disk tier: what it costs beside bare compression and a bare write, and how fast
it opens.

Ratios of best times, measured in turn in one thread, in time on the processor: what
neighbours do matters less. The store does what the yardstick does, and frames,
checksums and keeps the books besides; both write into the page cache.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
import zstandard
from pytest_benchmark.fixture import BenchmarkFixture

from backpressure.spill import LocalFileSystem, Run, SpillConfig, SpillStore
from backpressure.spill.blocks import Encoder, Link, narrow
from backpressure.spill.files import READ
from backpressure.spill.segments import Segment, frame_segment_header

BUFFER_ID = UUID(int=1)
ROUNDS = 15
EVENTS_AT_A_TIME = 50_000  # a spiller's and a consumer's batch


@pytest.fixture(scope="module")
def columns(access_log: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    events = access_log * 10
    offsets = np.zeros(len(events) + 1, np.int64)
    np.cumsum([len(event) for event in events], out=offsets[1:])
    return np.frombuffer(b"".join(events), np.uint8), offsets


def best(*actions: Callable[[], float], rounds: int = ROUNDS) -> list[float]:
    """The best time of each, in seconds."""
    times = [[action() for action in actions] for _ in range(rounds)]
    return [min(column) for column in zip(*times, strict=True)]


def timed(action: Callable[[], object]) -> float:
    start = time.thread_time()
    action()
    return time.thread_time() - start


def spill(path: Path, columns: tuple[np.ndarray, np.ndarray], config: SpillConfig) -> SpillStore:
    data, offsets = columns
    path.mkdir()
    store = SpillStore(path, 1, BUFFER_ID, config)
    store.append(0, data, offsets[:10_001], 0.5)  # the file is made, and zstd has its tables
    return store


def append_all(store: SpillStore, columns: tuple[np.ndarray, np.ndarray]) -> None:
    data, offsets = columns
    for first in range(0, len(offsets) - 1, EVENTS_AT_A_TIME):
        store.append(store.end_seq, data, offsets[first : first + EVENTS_AT_A_TIME + 1], 0.5)


def drain(store: SpillStore) -> int:
    seq = size = 0
    while (run := store.read(seq, EVENTS_AT_A_TIME, 16 << 20)) is not None:
        assert isinstance(run, Run)
        seq = run.end_seq
        size += run.nbytes
    return size


def raw_blocks(columns: tuple[np.ndarray, np.ndarray], config: SpillConfig) -> list[bytes]:
    """What the store hands to zstd."""
    data, offsets = columns
    blocks, at = [], 0
    while at < len(offsets) - 1:
        stop = int(np.searchsorted(offsets, offsets[at] + config.block_bytes, "right")) - 1
        body = Encoder().encode(
            data[offsets[at] : offsets[stop]].data,
            narrow(np.diff(offsets[at : stop + 1])),
            None,
        )
        blocks.append(b"".join(body.parts))
        at = stop
    return blocks


@pytest.mark.parametrize("block_bytes", [256 * 1024, 1024 * 1024])
def test_spilling_and_draining(
    benchmark: BenchmarkFixture,
    tmp_path: Path,
    columns: tuple[np.ndarray, np.ndarray],
    block_bytes: int,
) -> None:
    config = SpillConfig(block_bytes=block_bytes, segment_bytes=1 << 30)
    blocks = raw_blocks(columns, config)
    context = zstandard.ZstdCompressor(level=1)
    turn = iter(range(1000))

    def ours() -> float:
        with spill(tmp_path / f"ours{next(turn)}", columns, config) as store:
            return timed(lambda: append_all(store, columns))

    def theirs() -> float:
        fd = os.open(tmp_path / f"theirs{next(turn)}", os.O_RDWR | os.O_CREAT)
        try:

            def write_all() -> None:
                for block in blocks:
                    os.write(fd, context.compress(block))

            return timed(write_all)
        finally:
            os.close(fd)

    def draining() -> float:
        return timed(lambda: drain(store))

    with spill(tmp_path / "drained", columns, config) as store:
        append_all(store, columns)
        assert drain(store) == int(columns[1][-1] + columns[1][10_000])
        assert sum(map(len, blocks)) > int(columns[1][-1])
        if benchmark.disabled:
            ours(), theirs()
            benchmark(lambda: None)
            return
        spilled, bare, drained = best(ours, theirs, draining)
        benchmark.pedantic(draining, rounds=3)
    mb = int(columns[1][-1]) / 1e6
    benchmark.extra_info.update(
        spilling_to_bare=round(bare / spilled, 3),
        limit_spilling=0.85,
        draining_to_spilling=round(spilled / drained, 3),
        limit_draining=1.5,
        spilling_mb_s=round(mb / spilled),
        bare_mb_s=round(mb / bare),
        draining_mb_s=round(mb / drained),
    )
    print(benchmark.extra_info)
    assert bare / spilled >= 0.85
    assert spilled / drained >= 1.5


def test_opening_a_backlog_of_100_gb(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    """Less than six times as long as opening, reading and closing as many files."""
    lane = tmp_path / "lane"
    lane.mkdir()
    count = 100_000_000_000 // SpillConfig().segment_bytes
    paths = []
    for serial in range(count):
        segment = Segment(
            serial,
            serial * 1000,
            serial.to_bytes(8, "little"),
            Link(0, serial * 1000, serial * 1000),
            0,
        )
        paths.append(str(lane / segment.name))
        Path(paths[-1]).write_bytes(frame_segment_header(1, BUFFER_ID, segment))
        os.truncate(paths[-1], SpillConfig().segment_bytes if serial < count - 1 else 96)
    fs = LocalFileSystem()

    def theirs() -> float:
        def read_all() -> None:
            for path in paths:
                fd = fs.open(path, READ)
                fs.size(fd)
                fs.pread(fd, 96, 0)
                fs.close(fd)

        return timed(read_all)

    def ours() -> float:
        start = time.thread_time()
        store = SpillStore(lane, 1, BUFFER_ID)
        took = time.thread_time() - start
        assert store.stats().segments == count
        store.close()
        return took

    ours()
    if benchmark.disabled:
        benchmark(lambda: None)
        return
    opened, bare = best(ours, theirs)
    benchmark.pedantic(ours, rounds=3)
    benchmark.extra_info.update(
        segments=count,
        ratio=round(opened / bare, 2),
        limit=6.0,
        milliseconds=round(opened * 1e3, 1),
    )
    print(benchmark.extra_info)
    assert opened / bare < 6.0
