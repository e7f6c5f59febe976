"""FileSink on a file that others write, rotate, or close the descriptor of."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from backpressure.sinks import FileSink, SinkGone, StreamSink, file_lock, open_sink
from backpressure.testing import FailingSink
from tests.edges.test_sinks import Stumbling, batch_of
from tests.support.processes import ended_well, forked
from tests.support.threads import run_threads

fcntl = pytest.importorskip("fcntl", reason="this system does not fork")


def append(path: Path, text: bytes) -> None:
    with path.open("ab") as file:
        file.write(text)


# ---------------------------------------------------------------- several writers


def test_two_sinks_and_a_stranger_overwrite_nothing(tmp_path: Path) -> None:
    path = tmp_path / "app.log"
    one, two = FileSink(path, append=True), FileSink(path)
    one.send(batch_of(b"a1"))
    two.send(batch_of(b"b1", b"b2"))
    append(path, b"stranger\n")
    one.send(batch_of(b"a2"))
    two.send(batch_of(b"b3"))
    one.close()
    two.close()
    assert path.read_bytes() == b"a1\nb1\nb2\nstranger\na2\nb3\n"


class Interrupted(Stumbling):
    """Fails as Stumbling does, after another process has appended."""

    def __init__(self, path: Path, text: bytes, fail_after: int) -> None:
        super().__init__(fail_after=fail_after)
        self.path, self.text = path, text

    def __call__(self, fd: int, text: memoryview) -> int:
        if self.left == 0:
            append(self.path, self.text)
        return super().__call__(fd, text)


def test_a_cut_takes_nothing_that_others_wrote(tmp_path: Path) -> None:
    path = tmp_path / "app.log"
    sink = FileSink(path, append=True)
    sink.send(batch_of(b"zero"))
    batch = batch_of(b"one", b"two", b"three")
    # After "one\ntwo\n": whole lines, which stay, and are not written again.
    sink.writer = Interrupted(path, b"stranger\n", 8)
    with pytest.raises(OSError, match="space"):
        sink.send(batch)
    assert path.read_bytes() == b"zero\none\ntwo\nstranger\n"
    sink.send(batch_of(b"another"))
    sink.send(batch)
    sink.close()
    assert path.read_bytes() == b"zero\none\ntwo\nstranger\nanother\nthree\n"


def test_a_line_that_was_torn_comes_again_whole(tmp_path: Path) -> None:
    path = tmp_path / "app.log"
    sink = FileSink(path, append=True)
    batch = batch_of(b"one", b"two", b"three")
    sink.writer = Interrupted(path, b"\nstranger\n", 6)
    with pytest.raises(OSError, match="space"):
        sink.send(batch)
    sink.send(batch)
    sink.close()
    assert path.read_bytes() == b"one\ntw\nstranger\ntwo\nthree\n"


def test_what_stands_before_a_strangers_line_is_not_written_again(tmp_path: Path) -> None:
    path = tmp_path / "app.log"
    sink = FileSink(path, append=True)
    sink._piece = memoryview(bytearray(4))  # an event at a time
    batch = batch_of(b"one", b"two", b"six")
    written: list[int] = []

    def write(fd: int, text: memoryview) -> int:
        if len(written) == 1:
            append(path, b"stranger\n")
        if len(written) == 3:
            raise OSError(errno.ENOSPC, "no space")
        written.append(os.write(fd, text[:2] if len(written) == 2 else text))
        return written[-1]

    sink.writer = write
    with pytest.raises(OSError, match="space"):
        sink.send(batch)
    assert path.read_bytes() == b"one\nstranger\n", "what is its own at the end is cut off"
    sink.writer = os.write
    sink.send(batch)
    sink.close()
    assert path.read_bytes() == b"one\nstranger\ntwo\nsix\n"


def test_sinks_that_fail_beside_each_other_lose_and_double_nothing(tmp_path: Path) -> None:
    path = tmp_path / "app.log"

    def work(name: int) -> None:
        inner = FileSink(path, append=True)
        inner._piece = memoryview(bytearray(64))
        sink = FailingSink(inner, 0.5, seed=name)
        for number in range(60):
            batch = batch_of(*(b"%d %d %d" % (name, number, n) for n in range(8)))
            while True:
                try:
                    sink.send(batch)
                except OSError:
                    continue
                break
        sink.close()

    run_threads([partial(work, name) for name in range(3)])
    lines = path.read_bytes().splitlines()
    expected = [b"%d %d %d" % (a, b, c) for a in range(3) for b in range(60) for c in range(8)]
    assert Counter(lines) == Counter(expected)
    for name in range(3):
        mine = [line for line in lines if line.startswith(b"%d " % name)]
        assert mine == expected[name * 480 : (name + 1) * 480]


def test_a_lock_that_cannot_be_had_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_lock, "_PATIENCE", 0.01)
    path = tmp_path / "app.log"
    sink = FileSink(path, append=True)
    with path.open("ab") as stopped:
        fcntl.flock(stopped, fcntl.LOCK_EX)
        sink.send(batch_of(b"one"))
        sink.writer = Stumbling(fail_after=2)
        with pytest.raises(OSError, match="space"):
            sink.send(batch_of(b"two"))
    sink.send(batch_of(b"three"))
    with path.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)  # it is given back
    sink.close()
    assert path.read_bytes() == b"one\nthree\n"


# ---------------------------------------------------------------- rotation


def test_a_rotation_by_rename_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sink = open_sink("app.log", append=True)
    sink.send(batch_of(b"one"))
    monkeypatch.chdir("/")
    path = tmp_path / "app.log"
    path.rename(tmp_path / "app.log.1")
    sink.send(batch_of(b"two"))
    path.rename(tmp_path / "app.log.2")
    path.touch()
    sink.send(batch_of(b"three"))
    path.unlink()
    sink.send(batch_of(b"four"))
    sink.close()
    assert (tmp_path / "app.log.1").read_bytes() == b"one\n"
    assert (tmp_path / "app.log.2").read_bytes() == b"two\n"
    assert path.read_bytes() == b"four\n"


def test_a_rotation_by_copy_and_truncation_leaves_no_hole(tmp_path: Path) -> None:
    path = tmp_path / "app.log"
    sink = FileSink(path, append=True)
    for number in range(3):
        sink.send(batch_of(b"line %d" % number))
        shutil.copy(path, tmp_path / f"app.log.{number}")
        os.truncate(path, 0)
    batch = batch_of(b"last", b"line")
    sink.writer = Stumbling(fail_after=7)
    with pytest.raises(OSError, match="space"):
        sink.send(batch)
    sink.send(batch)
    sink.close()
    assert path.read_bytes() == b"last\nline\n"
    assert (tmp_path / "app.log.2").read_bytes() == b"line 2\n"


def test_a_half_batch_stays_in_the_file_it_is_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "app.log"
    sink = FileSink(path, append=True)
    batch = batch_of(b"one", b"two")
    sink.writer = Interrupted(path, b"stranger\n", 4)
    with pytest.raises(OSError, match="space"):
        sink.send(batch)
    path.rename(tmp_path / "app.log.1")
    sink.send(batch)
    sink.close()
    assert path.read_bytes() == b"one\ntwo\n"


def test_without_the_right_to_open_a_new_file_lines_go_to_the_renamed_one(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    sink = FileSink(folder / "app.log", append=True)
    folder.rename(tmp_path / "moved")
    sink.send(batch_of(b"one"))
    assert (tmp_path / "moved" / "app.log").read_bytes() == b"one\n"
    (tmp_path / "moved" / "app.log").unlink()
    with pytest.raises(FileNotFoundError):
        sink.send(batch_of(b"two"))  # it would be in a file without a name
    folder.mkdir()
    os.mkfifo(folder / "app.log")
    with pytest.raises(OSError, match="not a regular file"):
        sink.send(batch_of(b"two"))
    sink.close()


def test_an_output_that_was_not_opened_to_append_stays_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "out.log"
    sink = FileSink(path)
    sink.send(batch_of(b"one"))
    path.rename(tmp_path / "kept.log")
    sink.send(batch_of(b"two"))
    sink.close()
    assert not path.exists()
    assert (tmp_path / "kept.log").read_bytes() == b"one\ntwo\n"


def test_a_descriptor_that_others_closed_is_not_written_to(tmp_path: Path) -> None:
    path = tmp_path / "app.log"
    sink = FileSink(path, append=True)
    sink.send(batch_of(b"one"))
    os.close(sink._fd)
    with (tmp_path / "precious").open("w+b") as precious:
        assert precious.fileno() == sink._fd
        sink.send(batch_of(b"two"))
        os.close(sink._fd)
        with (tmp_path / "another").open("w+b") as another:
            assert another.fileno() == sink._fd
            sink.close()
            another.write(b"still open")
        assert precious.read() == b""
    assert path.read_bytes() == b"one\ntwo\n"
    with pytest.raises(OSError, match="closed") as caught:
        sink.send(batch_of(b"three"))
    assert caught.value.errno == errno.EBADF


# ---------------------------------------------------------------- forks


@pytest.mark.platform
@pytest.mark.parametrize("appends", [True, False])
def test_a_child_cuts_nothing_of_its_parents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, appends: bool
) -> None:
    path = tmp_path / "app.log"
    sink = FileSink(path, append=appends)
    sink.send(batch_of(b"zero"))
    batch = batch_of(b"one", b"two")
    sink.writer = Stumbling(fail_after=4)
    with monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", _refuse)
        with pytest.raises(OSError, match="space"):
            sink.send(batch)

    def child() -> None:
        sink.send(batch_of(b"child"))
        sink.writer = Stumbling(fail_after=2)
        with pytest.raises(OSError, match="space"):
            sink.send(batch_of(b"lost"))
        sink.close()

    assert ended_well(forked(child))
    assert path.read_bytes() == b"zero\none\nchild\n"
    sink.send(batch)
    sink.close()
    assert path.read_bytes() == b"zero\none\nchild\ntwo\n"


@pytest.mark.platform
def test_a_child_follows_a_rotation_and_leaves_a_renamed_output(tmp_path: Path) -> None:
    log, out = tmp_path / "app.log", tmp_path / "out.log"
    sinks = FileSink(log, append=True), FileSink(out)
    for sink in sinks:
        sink.send(batch_of(b"parent"))
    log.rename(tmp_path / "app.log.1")
    out.rename(tmp_path / "out.kept")

    def child() -> None:
        for sink in sinks:
            sink.send(batch_of(b"child"))
            sink.writer = Stumbling(fail_after=2)
            with pytest.raises(OSError, match="space"):
                sink.send(batch_of(b"xx"))

    assert ended_well(forked(child))
    assert log.read_bytes() == b"child\n"
    # Its position is shared with the parent: nothing can be cut, and nothing is.
    assert (tmp_path / "out.kept").read_bytes() == b"parent\nchild\nxx"


def _refuse(fd: int, length: int) -> None:
    raise OSError(errno.EROFS, "read-only")


# ---------------------------------------------------------------- pipes


def test_lines_of_two_writers_stay_whole_in_a_pipe() -> None:
    read_end, write_end = os.pipe()
    sinks = [StreamSink(os.dup(write_end), "pipe", shared=True) for _ in range(2)]
    os.close(write_end)
    got = bytearray()

    def read() -> None:
        while chunk := os.read(read_end, 65536):
            got.extend(chunk)

    def work(name: int) -> None:
        for _ in range(20):
            sinks[name].send(batch_of(*[b"%d" % name * 99] * 500))
        sinks[name].close()

    reader = threading.Thread(target=read)
    reader.start()
    run_threads([partial(work, name) for name in range(2)])
    reader.join(30)
    os.close(read_end)
    assert Counter(bytes(got).splitlines()) == {b"0" * 99: 10_000, b"1" * 99: 10_000}


@pytest.mark.platform
def test_a_child_does_not_finish_its_parents_torn_line() -> None:
    read_end, write_end = os.pipe()
    sink = StreamSink(write_end, "pipe")
    batch = batch_of(b"one", b"two")
    sink.writer = Stumbling(fail_after=6)
    with pytest.raises(OSError, match="space"):
        sink.send(batch)
    assert ended_well(forked(lambda: sink.send(batch_of(b"child"))))
    sink.send(batch)
    assert os.read(read_end, 100) == b"one\ntwchild\no\n"
    os.close(read_end)
    with pytest.raises(SinkGone):
        sink.send(batch)
    sink.close()
