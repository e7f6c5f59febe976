"""The files that processes share: what is opened and what is not, and what those leave
that are killed while they build one.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ringbuf import MessageRing, RingBuffer, SharedFileError, TokenBucket, salvage
from ringbuf._meters import bucket_file
from ringbuf._shared import shared_file
from tests.support.processes import environment, python

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="path= needs Linux"),
    pytest.mark.platform,
    pytest.mark.single_thread,
]


def fifo(path: Path) -> None:
    os.mkfifo(path)


def bound_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


def terminal(path: Path) -> None:
    path.symlink_to("/dev/ptmx")


def null(path: Path) -> None:
    path.symlink_to("/dev/null")


MAKERS: list[Callable[[Any], object]] = [
    lambda path: MessageRing(4096, path=path),
    lambda path: RingBuffer(8, "i8", path=path),
    lambda path: TokenBucket(1, 1, path=path),
]
READERS: list[Callable[[Any], object]] = [
    MessageRing.attach,
    MessageRing.look,
    MessageRing.needs_salvage,
    salvage,
    RingBuffer.attach,
    TokenBucket.attach,
]


@pytest.mark.parametrize("make", [fifo, bound_socket, terminal, null, Path.mkdir])
def test_what_can_be_no_ring_is_refused_at_once(
    tmp_path: Path, make: Callable[[Path], object], capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "odd"
    make(path)
    for use in READERS + MAKERS:
        for name in (path, os.fsencode(path)):
            if make is Path.mkdir:
                with pytest.raises(IsADirectoryError):
                    use(name)
            else:
                with pytest.raises(SharedFileError, match="not a file of ringbuf, but a "):
                    use(name)


@pytest.fixture(params=["nameless", "named"])
def building(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the file system has files without a name, and where it has not."""
    if request.param == "named":
        real = os.open

        def no_tmpfile(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
            if flags & os.O_TMPFILE == os.O_TMPFILE:
                raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), path)
            return real(path, flags, *args, **kwargs)

        monkeypatch.setattr(os, "open", no_tmpfile)
    return str(request.param)


def test_a_file_is_made_as_well_without_nameless_files(tmp_path: Path, building: str) -> None:
    with MessageRing(4096, path=tmp_path / "ring") as ring:
        ring.try_push(b"x")
        assert os.listdir(tmp_path) == ["ring"]
        assert os.stat(tmp_path / "ring").st_nlink == 1
        assert MessageRing(4096, path=tmp_path / "ring").pop_many().tolist() == [b"x"]
    with pytest.raises(FileNotFoundError):
        MessageRing(4096, path=tmp_path / "no" / "ring")
    with pytest.raises(FileExistsError):
        shared_file.SharedFile.create(tmp_path / "ring", b"msgs", {}, 4096, (0, b""))
    assert os.listdir(tmp_path) == ["ring"]


def killed_while_building(path: Path) -> None:
    """In a child, before the file has got its name."""
    pid = os.fork()
    if pid == 0:
        try:
            os.posix_fallocate = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
            MessageRing(4096, path=path)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def test_what_a_killed_maker_left_goes_with_the_next_one(tmp_path: Path, building: str) -> None:
    for name in ("ring", "other", "ring.1"):
        killed_while_building(tmp_path / name)
    left = sorted(os.listdir(tmp_path))
    assert len(left) == (3 if building == "named" else 0)
    # Names that only look like it stay, and so does what is no file.
    for strange in (
        "ring.new",
        "ring.1-0123456.new",
        "ringx.1-01234567.new",
        "ring.x-01234567.new",
    ):
        (tmp_path / strange).write_bytes(b"precious")
    os.mkfifo(tmp_path / "ring.7-01234567.new")
    (tmp_path / "ring.8-01234567.new").symlink_to(tmp_path / "ring.new")
    before = set(os.listdir(tmp_path))
    MessageRing(4096, path=tmp_path / "ring")
    gone = before - set(os.listdir(tmp_path))
    assert len(gone) == (1 if building == "named" else 0)
    assert all(name.startswith("ring.") and not name.startswith("ring.1.") for name in gone)
    assert (tmp_path / "ring.new").read_bytes() == b"precious"


def test_a_maker_that_lives_is_left_alone(tmp_path: Path) -> None:
    code = """
        import errno, os, sys
        from ringbuf import MessageRing
        real_open, real_allocate = os.open, os.posix_fallocate
        def named(path, flags, *rest, **more):
            if flags & os.O_TMPFILE == os.O_TMPFILE:
                raise OSError(errno.EOPNOTSUPP, "no")
            return real_open(path, flags, *rest, **more)
        def slow(*args):
            print("building", flush=True)
            sys.stdin.readline()
            real_allocate(*args)
        os.open, os.posix_fallocate = named, slow
        try:
            MessageRing(4096, path=sys.argv[1])
            print("made")
        except FileExistsError:
            print("late")
    """
    with subprocess.Popen(
        python(code, tmp_path / "ring"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(),
        text=True,
    ) as maker:
        assert maker.stdin is not None
        assert maker.stdout is not None
        assert maker.stdout.readline() == "building\n"
        under_way = os.listdir(tmp_path)
        assert len(under_way) == 1
        ring = MessageRing(4096, path=tmp_path / "ring")
        assert set(os.listdir(tmp_path)) == {"ring", *under_way}
        ring.try_push(b"x")
        maker.stdin.write("\n")
        maker.stdin.flush()
        assert maker.stdout.readline() == "made\n"  # it attaches to the one that is there
    assert os.listdir(tmp_path) == ["ring"]


def test_a_process_that_tidies_up_and_is_stopped_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_file, "TIDYING_SECONDS", 0.05)
    bucket = TokenBucket(1, 1, path=tmp_path / "bucket")
    other = shared_file.SharedFile.attach(tmp_path / "bucket", b"tokn")
    assert other.locks.try_tidying()
    try:
        start = time.monotonic()
        with pytest.raises(TimeoutError, match="tidying up"):
            TokenBucket.attach(tmp_path / "bucket")
        with pytest.raises(TimeoutError, match="tidying up"):
            bucket.try_acquire()
        assert time.monotonic() - start < 5
    finally:
        other.locks.stop_tidying()
    assert bucket.try_acquire()
    assert not TokenBucket.attach(tmp_path / "bucket").try_acquire()


@pytest.mark.parametrize("use", MAKERS + READERS)
@pytest.mark.parametrize("empty", ["", b""])
def test_an_empty_path_is_refused(use: Callable[[Any], object], empty: Any) -> None:
    with pytest.raises(ValueError, match="path must not be empty"):
        use(empty)


@pytest.mark.parametrize("make", MAKERS)
def test_errors_name_the_path_that_was_given(
    tmp_path: Path, building: str, make: Callable[[Any], object]
) -> None:
    for path in (tmp_path / "nowhere" / "ring", tmp_path / ("x" * 300)):
        with pytest.raises(OSError, match=r"No such file|too long") as caught:
            make(path)
        assert (caught.value.filename, caught.value.filename2) == (str(path), None)


@pytest.mark.parametrize("make", MAKERS)
def test_a_link_to_nothing_gets_what_it_leads_to(
    tmp_path: Path, building: str, make: Callable[[Any], object]
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("second")
    (tmp_path / "second").symlink_to(tmp_path / "there" / "ring")
    made = [make(tmp_path / "link") for _ in range(2)]
    assert (tmp_path / "link").is_symlink()
    assert os.listdir(tmp_path / "there") == ["ring"]
    assert sorted(os.listdir(tmp_path)) == ["link", "second", "there"]
    assert {getattr(one, "path", str(tmp_path / "link")) for one in made} == {
        str(tmp_path / "link")
    }


@pytest.mark.parametrize("make", MAKERS)
def test_a_link_to_itself_is_refused(tmp_path: Path, make: Callable[[Any], object]) -> None:
    (tmp_path / "link").symlink_to("link")
    with pytest.raises(OSError, match="symbolic links") as caught:
        make(tmp_path / "link")
    assert caught.value.filename == str(tmp_path / "link")
