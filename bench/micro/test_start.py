"""What it takes to begin: the import, and a buffer in memory."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from backpressure import BufferConfig, BufferManager

ROUNDS = 15
#: As bytecode, which a user's second start finds.
ENVIRONMENT = {
    name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"
}


def run(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, check=True)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def best(*works: Callable[[], object]) -> list[float]:
    """The least seconds of each, measured turn by turn."""
    for work in works:
        work()
    found = [[seconds(work) for work in works] for _ in range(ROUNDS)]
    return [min(column) for column in zip(*found, strict=True)]


# The second is what a program does next, and has no limit: it compares commits.
@pytest.mark.parametrize(
    ("code", "limit"),
    [("import backpressure", 1.3), ("from backpressure import BufferManager", None)],
    ids=["package", "buffer"],
)
def test_import(benchmark: BenchmarkFixture, code: str, limit: float | None) -> None:
    run(f"{code}; from backpressure import BufferManager; BufferManager().close()")
    benchmark.pedantic(run, args=(code,), rounds=3)
    if benchmark.disabled:
        return
    ours, theirs, python = best(lambda: run(code), lambda: run("import numpy"), lambda: run("pass"))
    ratio = ours / theirs
    benchmark.extra_info.update(yardstick="import numpy", ratio=round(ratio, 3), limit=limit)
    more = (ours - python) / (theirs - python)
    print(f"\n{code}: {ratio:.2f} times import numpy; {more:.2f} without Python's own start")
    assert limit is None or ratio <= limit


def made(config: BufferConfig) -> None:
    buffer = BufferManager(config)
    assert len(buffer) == 0


def test_buffer_in_memory(benchmark: BenchmarkFixture) -> None:
    """A millisecond, however much memory its lanes may use one day."""
    usual, small = BufferConfig(), BufferConfig(lane_bytes=4096)
    with BufferManager(usual) as buffer:
        buffer.add_events([b"event"])
        batch = buffer.get_batch()
        assert batch is not None
        assert batch.tolist() == [b"event"]
        batch.ack()
    benchmark(made, usual)
    if benchmark.disabled:
        return
    ours, theirs = best(lambda: made(usual), lambda: made(small))
    benchmark.extra_info.update(
        yardstick="one with lanes of 4 KiB", ratio=round(ours / theirs, 3), limit=2.0
    )
    print(f"\n{ours * 1e3:.2f} ms, {ours / theirs:.2f} times a buffer with lanes of 4 KiB")
    assert ours <= 2.0 * theirs
    assert ours <= 0.001
