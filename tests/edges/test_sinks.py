"""The sinks: the output after failures, short writes, redeliveries, odd files."""

from __future__ import annotations

import errno
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backpressure import BufferConfig
from backpressure.buffer.batch import Batch
from backpressure.buffer_manager import BufferManager
from backpressure.sinks import FileSink, Sink, SinkGone, StreamSink, open_sink
from backpressure.testing import FailingSink, MemorySink, make_batch


def batch_of(*events: bytes, priority: int = 3, buffer: BufferManager | None = None) -> Batch:
    """A real batch of these events, with the next sequence numbers of its lane."""
    buffer = buffer or BufferManager()
    assert buffer.add_events(list(events), priority=priority).accepted == len(events)
    batch = buffer.get_batch()
    assert batch is not None
    assert list(batch) == list(events)
    return batch


class Stumbling:
    """A writer that writes at most `step` bytes and fails once.

    It fails after `fail_after` bytes.
    """

    def __init__(
        self, step: int = 1 << 30, fail_after: int | None = None, error: int = errno.ENOSPC
    ) -> None:
        self.step = step
        self.left = fail_after
        self.error = error

    def __call__(self, fd: int, text: memoryview) -> int:
        room = self.step if self.left is None else min(self.step, self.left)
        if room == 0:
            self.left = None
            raise OSError(self.error, os.strerror(self.error))
        written = os.write(fd, text[:room])
        if self.left is not None:
            self.left -= written
        return written


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:
            pass


def test_a_file_sink_writes_lines_and_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "out.log"
    path.write_bytes(b"what was there before, and longer than what comes\n")
    sink = FileSink(path)
    sink.send(batch_of(b"one", b"", b"t\x00w\xffo"))
    sink.send(batch_of(b""))
    sink.close()
    sink.close()
    assert path.read_bytes() == b"one\n\nt\x00w\xffo\n\n"


def test_a_file_sink_appends_where_asked(tmp_path: Path) -> None:
    path = tmp_path / "out.log"
    path.write_bytes(b"zero\n")
    sink = FileSink(path, append=True)
    sink.writer = Stumbling(fail_after=2)
    batch = batch_of(b"one")
    with pytest.raises(OSError, match="space"):
        sink.send(batch)
    assert path.read_bytes() == b"zero\n"  # the cut keeps what was there before
    sink.send(batch)
    sink.close()
    assert path.read_bytes() == b"zero\none\n"


@pytest.mark.parametrize(
    ("there", "then"),
    [(None, b""), (b"", b""), (b"whole\n", b"whole\n"), (b"whole\nha", b"whole\nha\n")],
)
def test_a_line_that_a_killed_writer_left_unfinished_spoils_no_other(
    there: bytes | None, then: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "out.log"
    if there is not None:
        path.write_bytes(there)
    sink = open_sink(str(path), append=True, end_line=True)
    sink.send(make_batch([b"next"]))
    sink.close()
    assert path.read_bytes() == then + b"next\n"


@pytest.mark.parametrize("step", [1, 2, 7])
def test_short_writes_lose_nothing(tmp_path: Path, step: int) -> None:
    path = tmp_path / "out.log"
    sink = FileSink(path)
    sink.writer = Stumbling(step)
    sink.send(batch_of(b"one", b"two"))
    sink.send(batch_of(b"three"))
    sink.close()
    assert path.read_bytes() == b"one\ntwo\nthree\n"


def test_the_marked_event_gets_no_newline(tmp_path: Path) -> None:
    path = tmp_path / "out.log"
    buffer = BufferManager()
    sink = FileSink(path)
    sink.leave_open(3, 2)
    with batch_of(b"x", b"y", b"z", priority=2, buffer=buffer) as batch:
        sink.send(batch)
    with batch_of(b"a", b"b", buffer=buffer) as batch:
        sink.send(batch)
    with batch_of(b"c", buffer=buffer) as batch:
        sink.send(batch)
    sink.close()
    assert path.read_bytes() == b"x\ny\nz\na\nb\nc"


# Each batch: (its events, after how many bytes each attempt but the last fails).
events_of_a_batch = st.lists(st.sampled_from([b"", b"a", b"bc"]), min_size=1, max_size=4)
attempts = st.lists(
    st.tuples(events_of_a_batch, st.lists(st.integers(0, 6), max_size=3)), max_size=6
)


@given(
    plan=attempts,
    kind=st.sampled_from([FileSink, StreamSink]),
    step=st.integers(1, 5),
    piece=st.integers(1, 9),
)
def test_a_batch_that_failed_and_comes_again_stands_once_in_the_output(
    plan: list[tuple[list[bytes], list[int]]],
    kind: type[FileSink | StreamSink],
    step: int,
    piece: int,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "out.log")
        stream = kind is StreamSink
        sink = (
            StreamSink(os.open(path, os.O_WRONLY | os.O_CREAT), str(path))
            if stream
            else FileSink(path)
        )
        sink._piece = memoryview(bytearray(piece))
        expected = b""
        buffer = BufferManager(BufferConfig(lane_bytes=4096))
        for events, failures in plan:
            batch = batch_of(*events, buffer=buffer)
            text = b"".join(event + b"\n" for event in events)
            for fail_after in failures:
                before = path.read_bytes()
                sink.writer = Stumbling(step, fail_after)
                try:
                    sink.send(batch)
                except OSError:
                    if kind is FileSink:
                        assert path.read_bytes() == expected
                    else:
                        assert (
                            path.read_bytes()
                            == before + text[len(before) - len(expected) :][:fail_after]
                        )
                else:
                    break
            else:
                sink.writer = Stumbling(step)
                sink.send(batch)
            batch.ack()
            expected += text
            assert path.read_bytes() == expected
        sink.close()


def test_a_cut_that_failed_is_made_up_for_before_the_next_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.log"
    sink = FileSink(path)
    sink.send(batch_of(b"zero"))
    batch = batch_of(b"one")
    sink.writer = Stumbling(fail_after=2)
    with monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", _refuse)
        with pytest.raises(OSError, match="space"):  # the first error, not that of the cut
            sink.send(batch)
        assert path.read_bytes() == b"zero\non"
        with pytest.raises(OSError, match="read-only"):
            sink.send(batch)
        assert path.read_bytes() == b"zero\non"
    sink.send(batch)
    sink.close()
    assert path.read_bytes() == b"zero\none\n"


def _refuse(fd: int, length: int) -> None:
    raise OSError(errno.EROFS, "read-only")


def test_a_torn_line_is_ended_where_another_batch_comes_first(tmp_path: Path) -> None:
    path = tmp_path / "out.log"
    sink = StreamSink(os.open(path, os.O_WRONLY | os.O_CREAT), "out")
    low, high = batch_of(b"one", b"two"), batch_of(b"three")
    sink.writer = Stumbling(fail_after=6)
    with pytest.raises(OSError, match="space"):
        sink.send(low)
    sink.send(high)
    sink.send(low)
    sink.close()
    assert path.read_bytes() == b"one\ntw\nthree\none\ntwo\n"


def test_a_line_that_was_torn_and_has_been_completed_is_not_ended_again(tmp_path: Path) -> None:
    path = tmp_path / "out.log"
    sink = StreamSink(os.open(path, os.O_WRONLY | os.O_CREAT), "out")
    sink._piece = memoryview(bytearray(4))  # an event at a time
    low, high = batch_of(b"one", b"two"), batch_of(b"three")
    for _ in range(2):
        sink.writer = Stumbling(fail_after=2)
        with pytest.raises(OSError, match="space"):
            sink.send(low)
    assert path.read_bytes() == b"one\n"
    sink.send(high)
    sink.send(low)
    sink.close()
    assert path.read_bytes() == b"one\nthree\none\ntwo\n"


@pytest.mark.parametrize("fail_after", [0, 4])
def test_no_empty_line_is_made_where_no_line_is_torn(tmp_path: Path, fail_after: int) -> None:
    path = tmp_path / "out.log"
    sink = StreamSink(os.open(path, os.O_WRONLY | os.O_CREAT), "out")
    low, high = batch_of(b"one", b"two"), batch_of(b"three")
    sink.writer = Stumbling(fail_after=fail_after)
    with pytest.raises(OSError, match="space"):
        sink.send(low)
    sink.send(high)
    sink.send(low)
    sink.close()
    assert path.read_bytes() == b"one\ntwo\n"[:fail_after] + b"three\none\ntwo\n"


def test_a_pipe_without_reader_is_gone_for_good(pipe: tuple[int, int]) -> None:
    read_end, write_end = pipe
    os.close(read_end)
    sink = StreamSink(write_end, "the pipe")
    with pytest.raises(SinkGone, match="reader") as caught:
        sink.send(batch_of(b"one"))
    assert caught.value.filename == "the pipe"
    assert caught.value.errno == errno.EPIPE


def test_a_non_blocking_pipe_is_waited_for(pipe: tuple[int, int]) -> None:
    read_end, write_end = pipe
    os.set_blocking(write_end, False)
    event = b"x" * 300_000  # more than a pipe holds
    got = bytearray()

    def read() -> None:
        while len(got) < len(event) + 1:
            got.extend(os.read(read_end, 1 << 16))

    reader = threading.Thread(target=read)
    reader.start()
    StreamSink(write_end, "the pipe").send(batch_of(event))
    reader.join(10)
    assert bytes(got) == event + b"\n"


@pytest.mark.parametrize("link", [None, os.link, os.symlink])
@pytest.mark.parametrize("append", [False, True])
def test_a_source_is_refused_as_sink_and_left_alone(
    tmp_path: Path, link: Callable[[Path, Path], None] | None, append: bool
) -> None:
    source = tmp_path / "a.log"
    source.write_bytes(b"one\n")
    target = source
    if link is not None:
        target = tmp_path / "b.log"
        link(source, target)
    with pytest.raises(OSError, match="also the source"):
        open_sink(str(target), append=append, sources=["-", str(tmp_path / "missing"), str(source)])
    assert source.read_bytes() == b"one\n"


def test_stdout_is_refused_where_it_is_a_source(tmp_path: Path) -> None:
    source = tmp_path / "a.log"
    source.write_bytes(b"one\n")
    fd = os.open(source, os.O_WRONLY | os.O_APPEND)
    with pytest.raises(OSError, match="also the source"):
        StreamSink(fd, "stdout", sources=[str(source)])
    os.close(fd)


def test_open_sink_takes_what_is_no_regular_file(tmp_path: Path) -> None:
    sink = open_sink(os.devnull, sources=[os.devnull])
    assert isinstance(sink, StreamSink)
    sink.send(batch_of(b"one"))
    sink.close()
    assert isinstance(open_sink("-"), StreamSink)
    with pytest.raises(IsADirectoryError):
        open_sink(str(tmp_path))
    with pytest.raises(FileNotFoundError):
        open_sink(str(tmp_path / "missing" / "out.log"))
    with pytest.raises(OSError, match="not a regular file"):
        FileSink(os.devnull)


def test_closing_the_sink_of_stdout_leaves_stdout_open() -> None:
    StreamSink().close()
    os.fstat(1)


def test_a_memory_sink_keeps_events_and_ids() -> None:
    sink = MemorySink()
    first, second = batch_of(b"one", b"two"), batch_of(b"three")
    sink.send(first)
    sink.send(second)
    sink.close()
    assert sink.events == [b"one", b"two", b"three"]
    assert sink.batch_ids == [first.id, second.id]
    assert sink.closed
    assert isinstance(sink, Sink)
    assert isinstance(FailingSink(sink, 0.5), Sink)


def test_a_failing_sink_fails_as_often_as_it_says_and_the_same_way_each_time() -> None:
    batch = batch_of(b"one")

    def outcomes(seed: int) -> list[bool]:
        inner = MemorySink()
        sink = FailingSink(inner, 0.25, seed=seed)
        ok = []
        for _ in range(400):
            try:
                sink.send(batch)
            except OSError as error:
                assert error.errno == errno.EIO  # noqa: PT017
                ok.append(False)
            else:
                ok.append(True)
        assert len(inner.batch_ids) == sum(ok)
        assert sink.failures == 400 - sum(ok)
        return ok

    first = outcomes(1)
    assert first == outcomes(1)
    assert first != outcomes(2)
    assert (
        60 <= first.count(False) <= 140
    )  # 100 expected, and 4.6 standard deviations on either side


def test_a_failing_sink_also_cuts_writes_and_a_file_survives_it(tmp_path: Path) -> None:
    path = tmp_path / "out.log"
    inner = FileSink(path)
    longest = 0

    def watch(fd: int, text: memoryview) -> int:
        nonlocal longest
        written = os.write(fd, text)
        longest = max(longest, os.fstat(fd).st_size)
        return written

    inner.writer = watch
    sink = FailingSink(inner, 1.0)
    batch = batch_of(b"one", b"two", b"three")
    for _ in range(20):
        with pytest.raises(OSError, match="injected"):
            sink.send(batch)
        assert path.read_bytes() == b""
    assert 0 < longest < len(b"one\ntwo\nthree\n")
    assert sink.failures == 20
    sink.close()


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_the_rate_of_a_failing_sink_is_a_share(rate: float) -> None:
    with pytest.raises(ValueError, match="rate"):
        FailingSink(MemorySink(), rate)


# ---------------------------------------------------------------- what a sink says


def test_a_sink_that_was_closed_is_gone(tmp_path: Path) -> None:
    sink = FileSink(tmp_path / "out.log")
    sink.close()
    with pytest.raises(SinkGone, match="closed"):
        sink.send(make_batch([b"x"]))
    reader, writer = os.pipe()
    stream = StreamSink(writer, "pipe")
    os.close(writer)  # by others
    with pytest.raises(SinkGone, match="closed"):
        stream.send(make_batch([b"x"]))
    stream._fd = -1
    with pytest.raises(SinkGone, match="closed"):
        stream.send(make_batch([b"x"]))
    os.close(reader)


def test_files_are_called_by_one_thread_and_reject_no_event(tmp_path: Path) -> None:
    sink = FileSink(tmp_path / "out.log")
    for one in (sink, FailingSink(sink, 0.5)):
        assert one.max_concurrency == 1
        assert one.rejects_events is False
    failing = FailingSink(sink, 0.5, error=lambda batch: ValueError("no"))
    assert failing.rejects_events
    assert FailingSink(MemorySink(max_concurrency=3), 0.5).max_concurrency == 3
    sink.close()


def test_a_failing_sink_raises_what_it_is_told(tmp_path: Path) -> None:
    inner = MemorySink()
    sink = FailingSink(
        inner, 1.0, error=lambda batch: KeyError("bad") if b"bad" in batch.tolist() else None
    )
    sink.send(make_batch([b"good"]))
    with pytest.raises(KeyError):
        sink.send(make_batch([b"bad"]))
    assert (inner.events, sink.failures) == ([b"good"], 1)
