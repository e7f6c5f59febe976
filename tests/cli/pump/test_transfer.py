"""The transfer of `forebay pump`: each line that was read is delivered or counted.

However the run ends.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backpressure.buffer.batch import Batch
from backpressure.buffer.config import BufferConfig
from backpressure.buffer_manager import BufferManager
from backpressure.cli.pump.transfer import Transfer
from backpressure.sinks import FileSink, Sink
from backpressure.sources.priority_rules import PriorityRules, parse_rule
from backpressure.testing import FailingSink, FakeClock, MemorySink


class Gate:
    """A sink that waits to be opened."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.open = threading.Event()
        self.inner = MemorySink()

    def send(self, batch: Batch) -> None:
        self.entered.set()
        assert self.open.wait(30)
        self.inner.send(batch)

    def close(self) -> None:
        pass


@pytest.fixture(params=["file", "pipe"])
def give(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[bytes], Path]]:
    """Makes a source with some content.

    A regular file, which is carried in lockstep, or a pipe, which two threads carry.
    """
    writers: list[threading.Thread] = []

    def write(path: Path, content: bytes) -> None:
        try:
            path.write_bytes(content)
        except BrokenPipeError:
            pass  # the transfer ended before it had read all

    def make(content: bytes) -> Path:
        path = tmp_path / f"{len(writers)}.log"
        if request.param == "file":
            path.write_bytes(content)
            return path
        os.mkfifo(path)
        writers.append(threading.Thread(target=write, args=(path, content)))
        writers[-1].start()
        return path

    yield make
    for writer in writers:
        writer.join(30)


def transfer_of(path: Path, sink: Sink, lane_bytes: int = 1 << 20, **options: object) -> Transfer:
    buffer = BufferManager(BufferConfig(lane_bytes=lane_bytes))
    return Transfer(buffer, [str(path)], sink, max_line_bytes=1 << 20, **options)  # type: ignore[arg-type]


def rules_for(some: bool) -> PriorityRules | None:
    return PriorityRules([parse_rule("[05]$=2")]) if some else None


def numbered(lines: int) -> bytes:
    """Lines of 100 bytes."""
    return b"".join(b"%099d\n" % number for number in range(lines))


@pytest.mark.parametrize("rules", [False, True])
def test_every_line_that_was_read_is_counted(rules: bool, give: Callable[[bytes], Path]) -> None:
    path = give(numbered(20_000))
    gate = Gate()
    transfer = transfer_of(path, gate, lane_bytes=65536, rules=rules_for(rules))
    transfer.start()
    assert gate.entered.wait(30)
    transfer.abandon()
    gate.open.set()
    assert transfer.settle(30)
    progress = transfer.progress()
    assert transfer.position is not None
    assert progress.events == len(gate.inner.events) > 0
    assert progress.events + progress.undelivered == transfer.position[1] // 100
    assert transfer.unaccepted > 0 or path.is_fifo()  # a lane holds less than a chunk of a file


@pytest.mark.parametrize("rules", [False, True])
def test_what_a_sink_that_hangs_holds_up_is_counted_too(
    rules: bool, give: Callable[[bytes], Path]
) -> None:
    gate = Gate()
    transfer = transfer_of(give(numbered(20_000)), gate, lane_bytes=65536, rules=rules_for(rules))
    transfer.start()
    assert gate.entered.wait(30)
    transfer.abandon()
    assert not transfer.settle(0.5)
    progress = transfer.progress()
    assert transfer.position is not None
    assert progress.events == 0
    assert progress.undelivered == transfer.position[1] // 100
    gate.open.set()
    assert transfer.wait(30)
    assert transfer.sink_error is None  # a batch that came too late is no error of the sink
    assert transfer.progress().undelivered == progress.undelivered


def test_stop_delivers_what_was_read_and_reads_no_more(give: Callable[[bytes], Path]) -> None:
    gate = Gate()
    transfer = transfer_of(give(numbered(50_000)), gate, lane_bytes=65536)
    transfer.start()
    assert gate.entered.wait(30)
    transfer.stop()
    gate.open.set()
    assert transfer.wait(30)
    assert transfer.settle(30)
    assert not transfer.reader.exhausted
    assert transfer.position is not None
    assert len(gate.inner.events) == transfer.position[1] // 100
    assert transfer.progress().undelivered == 0


def test_it_gives_up_when_the_sink_has_failed_for_too_long(give: Callable[[bytes], Path]) -> None:
    path = give(b"one\n")
    clock = FakeClock()
    inner = MemorySink()

    class Slow:
        calls = 0

        def send(self, batch: Batch) -> None:
            self.calls += 1
            clock.advance(10)
            raise OSError("no")

        def close(self) -> None:
            pass

    slow = Slow()
    transfer = transfer_of(path, slow, retry_for=30.0, clock=clock)
    transfer.start()
    assert transfer.wait(30)
    assert str(transfer.sink_error) == "no"
    assert slow.calls == 4  # the fourth comes 30 s after the first
    assert transfer.progress().undelivered == 1
    assert inner.events == []


def test_a_success_starts_the_patience_anew(give: Callable[[bytes], Path]) -> None:
    path = give(b"one\ntwo\nthree\n")
    clock = FakeClock()

    class EverySecond(MemorySink):
        calls = 0

        def send(self, batch: Batch) -> None:
            self.calls += 1
            clock.advance(20)
            if self.calls % 2:
                raise OSError("no")
            super().send(batch)

    sink = EverySecond()
    transfer = transfer_of(path, sink, retry_for=30.0, clock=clock, batch_size=1)
    transfer.start()
    assert transfer.wait(30)
    assert transfer.sink_error is None
    assert sink.events == [b"one", b"two", b"three"]


def test_an_error_that_is_no_failure_of_the_sink_is_not_retried(
    give: Callable[[bytes], Path],
) -> None:
    path = give(b"one\n")

    class Broken(MemorySink):
        def send(self, batch: Batch) -> None:
            raise ZeroDivisionError

    transfer = transfer_of(path, Broken())
    transfer.start()
    assert transfer.wait(30)
    assert isinstance(transfer.sink_error, ZeroDivisionError)
    assert transfer.progress().undelivered == 1


def test_a_last_line_is_never_sent_before_it_is_marked(
    give: Callable[[bytes], Path], tmp_path: Path
) -> None:
    out = tmp_path / "out.log"
    for number in range(50):
        content = b"one\n" * (number % 3) + b"two"
        sink = FileSink(out)
        transfer = transfer_of(
            give(content), FailingSink(sink, 0.3, seed=number), leave_open=sink.leave_open
        )
        transfer.start()
        assert transfer.wait(30)
        sink.close()
        assert out.read_bytes() == content
        assert transfer.progress().nbytes == len(content)
