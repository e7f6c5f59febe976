"""BufferHandler beside QueueHandler + QueueListener: the same records, the same
formatter, the same file.

What counts is the whole way: from `handle` until the last line is in the file. Both
sides get the same records, made beforehand: what Logger itself does (finding the
caller, making the record) takes both the same time, and would only hide the difference.
`test_whole_call` has it in.

As is usual, QueueListener's handler has the formatter; `QueueHandler`
merges the message into the record. Each round checks that both files hold the same
lines.
"""

from __future__ import annotations

import gc
import logging
import logging.handlers
import queue
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from backpressure.buffer.config import BufferConfig
from backpressure.buffer_manager import BufferManager
from backpressure.logging import BufferHandler

RECORDS = 20_000
ROUNDS = 7
FORMATTER = logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s")


def records() -> list[logging.LogRecord]:
    made = [
        logging.LogRecord(
            "app.users",
            logging.INFO,
            __file__,
            1,
            "user %d logged in from %s",
            (n, "10.0.0.1"),
            None,
        )
        for n in range(RECORDS)
    ]
    for n, record in enumerate(made):  # as if a second held 10,000 of them
        record.created = 1.7e9 + n * 1e-4
        record.msecs = float(int(record.created * 1e3) % 1000)
    return made


def theirs(path: Path, feed: Callable[[logging.Handler], None]) -> float:
    target = logging.FileHandler(path, "w")
    target.setFormatter(FORMATTER)
    lines: queue.Queue[logging.LogRecord] = queue.Queue(-1)
    handler = logging.handlers.QueueHandler(lines)
    listener = logging.handlers.QueueListener(lines, target)
    listener.start()
    begun = time.perf_counter()
    feed(handler)
    listener.stop()
    taken = time.perf_counter() - begun
    target.close()
    return taken


def ours(path: Path, feed: Callable[[logging.Handler], None]) -> float:
    path.unlink(missing_ok=True)
    handler = BufferHandler(BufferConfig(), sink=str(path))
    handler.setFormatter(FORMATTER)
    begun = time.perf_counter()
    feed(handler)
    handler.close()
    taken = time.perf_counter() - begun
    assert handler.refused == {}
    return taken


def through_handle(handler: logging.Handler) -> None:
    for record in records_once:
        handler.handle(record)


def through_logger(handler: logging.Handler) -> None:
    logger = logging.Logger("app.users")
    logger.addHandler(handler)
    for n in range(RECORDS):
        logger.info("user %d logged in from %s", n, "10.0.0.1")


records_once: list[logging.LogRecord] = []


def compare(tmp_path: Path, feed: Callable[[logging.Handler], None]) -> tuple[float, float, float]:
    """Seconds of both for all records, and the median of the ratios of each pair."""
    pairs = []
    for _ in range(ROUNDS + 1):
        # QueueHandler copies each record and leaves it as it was but for its message.
        records_once[:] = records()
        gc.collect()
        slow = theirs(tmp_path / "theirs.log", feed)
        records_once[:] = records()
        gc.collect()
        pairs.append((ours(tmp_path / "ours.log", feed), slow))
        a, b = (tmp_path / "ours.log").read_bytes(), (tmp_path / "theirs.log").read_bytes()
        assert a.count(b"\n") == b.count(b"\n") == RECORDS
        if feed is through_handle:
            assert a == b
    quick, slow = (statistics.median(column) for column in zip(*pairs[1:], strict=True))
    return quick, slow, statistics.median(slow / quick for quick, slow in pairs[1:])


@pytest.mark.parametrize(
    ("feed", "least"), [(through_handle, 3.0), (through_logger, 1.0)], ids=["handler", "whole_call"]
)
def test_beside_queue_handler(
    benchmark: BenchmarkFixture,
    tmp_path: Path,
    feed: Callable[[logging.Handler], None],
    least: float,
) -> None:
    records_once[:] = records()
    benchmark.pedantic(ours, args=(tmp_path / "ours.log", feed), rounds=3)
    if benchmark.disabled:
        return
    quick, slow, ratio = compare(tmp_path, feed)
    benchmark.extra_info.update(
        ours_per_second=round(RECORDS / quick),
        theirs_per_second=round(RECORDS / slow),
        ratio=round(ratio, 2),
        at_least=least,
    )
    assert ratio >= least, f"only {ratio:.2f} times QueueHandler + QueueListener"


class Nothing(logging.Handler):
    """A handler that does nothing: what is left is the work of Logger."""

    def handle(self, record: logging.LogRecord) -> bool:
        return True


def each_call(handler: logging.Handler) -> float:
    """Seconds for one record."""
    begun = time.perf_counter()
    through_logger(handler)
    return (time.perf_counter() - begun) / RECORDS


@pytest.mark.parametrize(
    ("pattern", "most"),
    [(None, 0.22), ("%(asctime)s %(levelname)s %(name)s %(message)s", None)],
    ids=["message", "time, level, name"],
)
def test_what_it_adds_to_a_record(
    benchmark: BenchmarkFixture, pattern: str | None, most: float | None
) -> None:
    """Of a call of a logger whose handler does nothing, the part that is added."""
    with BufferManager(BufferConfig(lane_bytes=64 << 20)) as buffer:
        handler, nothing = BufferHandler(buffer), Nothing()
        handler.setFormatter(logging.Formatter(pattern))

        def check() -> None:
            lines: list[bytes] = []
            while batch := buffer.get_batch():
                with batch:
                    lines += batch.tolist()
            assert len(lines) == RECORDS
            assert lines[-1].endswith(b"user %d logged in from 10.0.0.1" % (RECORDS - 1))

        benchmark.pedantic(each_call, args=(handler,), rounds=1)
        check()
        if benchmark.disabled:
            return
        pairs = []
        for _ in range(4 * ROUNDS):
            gc.collect()
            least = each_call(nothing)
            pairs.append((each_call(handler) - least, least))
            check()
    added = statistics.median(one for one, _ in pairs)
    ratio = statistics.median(one / least for one, least in pairs)
    benchmark.extra_info.update(
        added_ns=round(added * 1e9),
        beside_ns=round(statistics.median(least for _, least in pairs) * 1e9),
        ratio=round(ratio, 3),
        at_most=most,
    )
    assert most is None or ratio <= most, f"{ratio:.2f} of the call of a handler that does nothing"
