"""What `forebay bench` measures: the hot paths, each beside a yardstick.

The yardstick does the same work without the library: a copy, a deque, `cat`. What is
timed is checked, outside of the time that counts.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np

from backpressure.buffer.config import BufferConfig
from backpressure.buffer_manager import BufferManager
from backpressure.cli.bench.measurement import Figure
from ringbuf import MessageRing, TokenBucket

__all__ = ["PER_BATCH", "PER_EVENT", "figures"]

#: The figures that the promise is about, by their names.
PER_BATCH = "add_lines, get_batch, ack: 1 MiB chunks"
PER_EVENT = "add_event, one a call"

_CHUNK = 1 << 20
_SHORT_LINES = 400_000
_LONG_LINES = 2_000_000


@lru_cache(maxsize=1)
def access_log(lines: int) -> list[bytes]:
    """Lines like those of a real access log, 237 bytes on average.

    In chunks of at most 1 MiB that end with a line.
    """
    rng = np.random.default_rng(1)
    pad = (
        b"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) "
        b"Chrome/120.0.0.0 Safari/537.36 "
    ) * 8
    block = []
    # Between the shortest and longest tenth of a real site's lines, with a tail of long
    # ones.
    for size in np.clip(rng.gamma(9.0, 26.4, min(lines, 20_000)), 80, 1200).astype(int):
        head = b'%d.%d.%d.%d - - [17/May/2015:10:05:03 +0000] "GET /page HTTP/1.1" 200 ' % tuple(
            rng.integers(1, 255, 4)
        )
        block.append(head + pad[: max(0, size - len(head))] + b"\n")
    chunks: list[bytes] = []
    parts: list[bytes] = []
    size = 0
    for number in range(lines):
        line = block[number % len(block)]
        parts.append(line)
        size += len(line)
        if size >= _CHUNK - 1200 or number == lines - 1:
            chunks.append(b"".join(parts))
            parts, size = [], 0
    return chunks


def figures(*, long: bool = False) -> list[Callable[[], Figure]]:
    """Makers of all figures.

    Each is made when it is its turn, since some hold much memory.
    """
    lines = _LONG_LINES if long else _SHORT_LINES
    makers = [
        lambda: _buffer_lines(access_log(lines)),
        lambda: _buffer_lists(access_log(lines)[:40]),
        _buffer_single,
        lambda: _push_lines(access_log(lines)[0]),
        _push_many,
        _try_acquire,
    ]
    if sys.platform != "win32":
        # The whole file also in the short form: half the time of a shorter one would be
        # Python's start.
        makers.append(lambda: _pump(access_log(lines) * (_LONG_LINES // lines)))
    return makers


def _buffer_lines(chunks: list[bytes]) -> Figure:
    lines = sum(chunk.count(b"\n") for chunk in chunks)

    def ours() -> float:
        buffer = BufferManager()
        delivered = 0
        start = time.perf_counter()
        for chunk in chunks:
            buffer.add_lines(chunk)
            while (batch := buffer.get_batch()) is not None:
                delivered += len(batch)
                batch.ack()
        seconds = time.perf_counter() - start
        stats = buffer.close(timeout=0)
        _expect(delivered == stats.acked == lines, "lines are missing")
        return seconds

    views = [np.frombuffer(chunk, np.uint8) for chunk in chunks]
    there, back = np.zeros(_CHUNK, np.uint8), np.zeros(_CHUNK, np.uint8)

    def theirs() -> float:
        start = time.perf_counter()
        for view in views:
            n = len(view)
            np.copyto(there[:n], view)
            np.copyto(back[:n], there[:n])
        seconds = time.perf_counter() - start
        _expect(back[: len(views[-1])].tobytes() == chunks[-1], "a copy is wrong")
        return seconds

    return Figure(
        PER_BATCH,
        "two np.copyto of the same",
        ours,
        theirs,
        1.8,
        lines,
        5,
    )


def _buffer_lists(chunks: list[bytes]) -> Figure:
    lists = [chunk.splitlines() for chunk in chunks]
    buffer = BufferManager()

    def ours() -> float:
        seconds = 0.0
        for events in lists:
            start = time.perf_counter()
            admission = buffer.add_events(events)
            seconds += time.perf_counter() - start
            _expect(admission.accepted == len(events), "events were refused")
            while (batch := buffer.get_batch()) is not None:
                batch.ack()
        return seconds

    def theirs() -> float:
        seconds = 0.0
        for events in lists:
            queue: deque[bytes] = deque()
            start = time.perf_counter()
            queue.extend(events)
            while queue:
                queue.popleft()
            seconds += time.perf_counter() - start
        return seconds

    return Figure(
        "add_events(list of bytes)",
        "deque.extend, popleft loop",
        ours,
        theirs,
        1.0,
        sum(map(len, lists)),
        11,
    )


def _buffer_single() -> Figure:
    events = [b"%050d" % i * 2 for i in range(50_000)]
    buffer = BufferManager(BufferConfig(lane_bytes=8 << 20))

    def ours() -> float:
        add = buffer.add_event
        start = time.perf_counter()
        for event in events:
            add(event)
        seconds = time.perf_counter() - start
        delivered: list[bytes] = []
        while (batch := buffer.get_batch()) is not None:
            delivered += batch
            batch.ack()
        _expect(delivered == events, "events are missing")
        return seconds

    def theirs() -> float:
        queue: deque[bytes] = deque()
        append = queue.append
        start = time.perf_counter()
        for event in events:
            append(event)
        return time.perf_counter() - start

    return Figure(
        PER_EVENT,
        "deque.append",
        ours,
        theirs,
        3.5,
        len(events),
        15,
        close=lambda: _end(buffer),
    )


def _end(buffer: BufferManager) -> None:
    buffer.close(timeout=0)


def _push_lines(chunk: bytes) -> Figure:
    ring = MessageRing(4 << 20)
    view = np.frombuffer(chunk, np.uint8)
    target = np.zeros(len(chunk), np.uint8)
    lines = chunk.count(b"\n")
    times = 20

    def ours() -> float:
        seconds = 0.0
        for _ in range(times):
            start = time.perf_counter()
            pushed, _ = ring.push_lines(chunk)
            seconds += time.perf_counter() - start
            _expect(pushed == lines and len(ring.pop_many()) == lines, "lines are missing")
        return seconds

    def theirs() -> float:
        seconds = 0.0
        for _ in range(times):
            start = time.perf_counter()
            np.copyto(target, view)
            seconds += time.perf_counter() - start
            ring.push_lines(chunk)  # leaves the caches as ours does
            ring.pop_many()
        return seconds

    return Figure(
        "MessageRing.push_lines: 1 MiB", "np.copyto of it", ours, theirs, 4.0, lines * times, 15
    )


def _push_many() -> Figure:
    messages = [bytes([i % 256]) * 100 for i in range(1000)]
    ring = MessageRing(1 << 20)
    times = 50

    def ours() -> float:
        seconds = 0.0
        for _ in range(times):
            start = time.perf_counter()
            pushed = ring.push_many(messages)
            seconds += time.perf_counter() - start
            _expect(pushed == 1000 and ring.pop_many()[999] == messages[999], "messages are wrong")
        return seconds

    def theirs() -> float:
        seconds = 0.0
        for _ in range(times):
            start = time.perf_counter()
            joined = b"".join(messages)
            seconds += time.perf_counter() - start
            _expect(len(joined) == 100_000, "the join is wrong")
        return seconds

    return Figure(
        "MessageRing.push_many: 1,000 of 100 B",
        'b"".join of them',
        ours,
        theirs,
        1.5,
        1000 * times,
        15,
    )


def _try_acquire() -> Figure:
    count = 100_000
    bucket = TokenBucket(1e9, 1_000_000_000)

    def loop(method: Callable[[], bool]) -> float:
        _expect(method(), "no token")
        rounds = range(count)
        start = time.perf_counter()
        for _ in rounds:
            method()
        return time.perf_counter() - start

    idle = _idle(count)

    # The loop itself is subtracted from both.
    def ours() -> float:
        return loop(bucket.try_acquire) - idle

    def theirs() -> float:
        return loop(bucket._nothing) - idle

    return Figure(
        "TokenBucket.try_acquire",
        "a compiled method that does nothing",
        ours,
        theirs,
        2.0,
        count,
        15,
    )


def _idle(count: int) -> float:
    """Seconds that an empty loop of `count` rounds takes."""
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(count):
            pass
        best = min(best, time.perf_counter() - start)
    return best


def _pump(chunks: list[bytes]) -> Figure:
    folder = tempfile.TemporaryDirectory(prefix="forebay-bench-")
    source, target = Path(folder.name, "in.log"), Path(folder.name, "out.log")
    source.write_bytes(b"".join(chunks))
    size = source.stat().st_size

    def timed(*command: str) -> float:
        target.unlink(missing_ok=True)
        start = time.perf_counter()
        subprocess.run(command, check=True)
        seconds = time.perf_counter() - start
        _expect(target.stat().st_size == size, "bytes are missing")
        return seconds

    def ours() -> float:
        return timed(
            sys.executable,
            "-m",
            "backpressure",
            "pump",
            str(source),
            "--to",
            str(target),
            "--quiet",
        )

    def theirs() -> float:
        return timed("sh", "-c", 'cat "$1" > "$2"', "sh", str(source), str(target))

    lines = sum(chunk.count(b"\n") for chunk in chunks)
    return Figure(
        "forebay pump, file to file", "cat of the same", ours, theirs, 4.0, lines, 3, folder.cleanup
    )


def _expect(holds: bool, complaint: str) -> None:
    """As assert, but also under `python -O`."""
    if not holds:
        raise RuntimeError(f"the bench measures something wrong: {complaint}")
