"""Code that makes a daemon closes every descriptor that it finds, and what is opened
next gets their numbers.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ringbuf import MessageRing, RingBuffer, TokenBucket
from tests.support.processes import run_python

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="path= needs Linux"),
    pytest.mark.platform,
    pytest.mark.single_thread,
]

# What a child goes on to hold when its work is done.
_kept: list[object] = []
ORDERS = [b"order %d" % i for i in range(10)]


@pytest.fixture
def ring(tmp_path: Path) -> MessageRing:
    ring = MessageRing(1 << 16, path=tmp_path / "ring")
    ring.push_many(ORDERS)
    return ring


class Child:
    """A forked child that does one thing and then waits to be killed."""

    def __init__(self, work: Callable[[], object]) -> None:
        reader, writer = os.pipe()
        keep = os.dup2(writer, 900)  # out of the way of what `work` closes
        self.pid = os.fork()
        if self.pid == 0:
            try:
                said = repr(work())
            except BaseException as error:
                said = f"{type(error).__name__}: {error}"
            os.write(keep, said.encode() + b"\n")
            signal.pause()
        os.close(writer)
        os.close(keep)
        with os.fdopen(reader, "rb") as pipe:
            self.said = pipe.readline().decode().strip()

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


@pytest.fixture
def children() -> Iterator[list[Child]]:
    children: list[Child] = []
    yield children
    for child in children:
        child.kill()


def close_all_and_open(directory: Path) -> list[int]:
    """As a daemon does; the files take the numbers of what was closed."""
    os.closerange(3, 900)
    return [
        os.open(directory / f"log-{i}-{os.getpid()}", os.O_RDWR | os.O_CREAT) for i in range(12)
    ]


def locks_of(path: Path) -> int:
    """How many locks all processes have on this file."""
    inode = f":{path.stat().st_ino} "
    return sum(inode in line for line in Path("/proc/locks").read_text().splitlines())


def test_a_daemon_takes_a_slot_of_the_ring_and_of_nothing_else(
    ring: MessageRing, tmp_path: Path, children: list[Child]
) -> None:
    held = ring.take(3)

    def work() -> list[bytes]:
        close_all_and_open(tmp_path)
        return ring.pop_many(2).tolist()

    children.append(Child(work))
    assert children[0].said == repr(ORDERS[3:5])
    assert MessageRing.look(tmp_path / "ring").participants == 2
    assert all(locks_of(log) == 0 for log in tmp_path.glob("log-*"))
    ring.release(held)
    assert ring.pop_many().tolist() == ORDERS[5:]


def test_a_process_that_closed_its_descriptors_is_not_taken_for_dead(
    ring: MessageRing, tmp_path: Path, children: list[Child]
) -> None:
    def work() -> list[bytes]:
        mine = MessageRing.attach(tmp_path / "ring")
        held = mine.take(4)
        close_all_and_open(tmp_path)
        mine.push(b"more")  # by the participant slot that it has
        _kept.append((mine, held))
        return held.tolist()

    children.append(Child(work))
    assert children[0].said == repr(ORDERS[:4])
    assert ring.take_orphaned().tolist() == []
    assert ring.pop_many().tolist() == [*ORDERS[4:], b"more"]
    children.pop().kill()
    assert ring.pop_many(timeout=5).tolist() == ORDERS[:4]


def test_what_took_the_numbers_stays_open(tmp_path: Path, children: list[Child]) -> None:
    def work() -> list[bool]:
        ring = MessageRing(1 << 16, path=tmp_path / "ring")
        records = RingBuffer(64, "i8", path=tmp_path / "records")
        bucket = TokenBucket(10, 10, path=tmp_path / "bucket")
        ring.fileno(), records.fileno(), bucket.try_acquire()
        files = close_all_and_open(tmp_path)
        if (pid := os.fork()) == 0:
            os._exit(sum(not _is_open(file) for file in files))
        _, status = os.waitpid(pid, 0)
        ring.push(b"x"), ring.pop_many(), records.push(1), records.pop()
        for one in (ring, records):
            one.close()
        del ring, records, bucket
        return [status == 0, *map(_is_open, files)]

    children.append(Child(work))
    assert children[0].said == repr([True] * 13)
    assert all(log.stat().st_size == 0 for log in tmp_path.glob("log-*"))


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


@pytest.mark.parametrize("shared", [False, True])
def test_an_event_loop_s_number_that_became_a_file_is_neither_read_nor_written(
    tmp_path: Path, shared: bool
) -> None:
    code = """
        import os, sys
        from ringbuf import MessageRing
        ring = MessageRing(1 << 16, path=sys.argv[1] or None)
        old = ring.fileno()
        assert len(ring.pop_many()) == 0
        os.closerange(3, 900)
        files = [os.open(f"{sys.argv[2]}/log-{i}", os.O_RDWR | os.O_CREAT) for i in range(12)]
        for file in files:
            os.pwrite(file, b"as it was", 0)
        ring.push_many([b"one"])
        assert ring.pop_many().tolist() == [b"one"]
        assert len(ring.pop_many()) == 0
        for file in files:
            assert os.pread(file, 99, 0) == b"as it was" and not os.lseek(file, 0, os.SEEK_CUR)
        ready = ring.fileno()
        assert ready not in files
        import select
        assert len(ring.pop_many()) == 0
        assert not select.select([ready], [], [], 0)[0]
        ring.push_many([b"two"])
        assert select.select([ready], [], [], 5)[0]
        del ring
        for file in files:
            os.fstat(file)
    """
    done = run_python(code, tmp_path / "ring" if shared else "", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_file_that_nothing_leads_to_any_more_is_said(tmp_path: Path) -> None:
    code = """
        import errno, os, sys
        from ringbuf import MessageRing
        ring = MessageRing(1 << 16, path=sys.argv[1])
        os.closerange(3, 900)
        os.unlink(sys.argv[1])
        try:
            ring.push(b"one")
        except OSError as error:
            assert error.errno == errno.ESTALE, error
            assert "other code has closed the descriptors" in str(error), error
        else:
            raise AssertionError("nothing was said")
    """
    done = run_python(code, tmp_path / "ring")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_relative_path_is_found_from_another_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, children: list[Child]
) -> None:
    monkeypatch.chdir(tmp_path)
    ring = MessageRing(1 << 16, path="ring")
    ring.push(b"here")
    monkeypatch.chdir("/")

    def work() -> list[bytes]:
        close_all_and_open(tmp_path)
        return ring.pop_many().tolist()

    children.append(Child(work))
    assert children[0].said == repr([b"here"])
