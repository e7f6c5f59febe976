"""The follower by steps: each kind of rotation, by a clock of the test's own.

tests/torture/follow_files.py mixes them all; here each stands alone.
"""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from backpressure.sources.follower import Follower
from backpressure.sources.open_files import OpenFiles
from backpressure.sources.patterns import PathPattern
from backpressure.sources.positions import Positions

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "pread"), reason="this system has no pread"),
    pytest.mark.platform,
]


class Steps:
    """A follower, and the lines that it has put."""

    def __init__(self, pattern: Path | str, positions: Positions | None = None, **more: Any):
        self.positions = positions or Positions()
        self.now = 1000.0
        options = {"start_at_end": False, "max_line_bytes": 1000, "grace": 2.0, **more}
        self.follower = Follower(PathPattern(str(pattern)), self.positions, **options)
        self.text = b""
        self.look()

    def put(self, lines: memoryview) -> tuple[int, ...]:
        self.text += bytes(lines)
        return ()

    def look(self, seconds: float = 0.2) -> None:
        self.now += seconds
        self.follower.look(self.now)

    def read(self) -> bytes:
        """What is new since the last call."""
        before = len(self.text)
        self.follower.read(self.put, lambda: False, self.now)
        return self.text[before:]

    def rest(self) -> bytes:
        """All that comes until nothing does."""
        before = len(self.text)
        for _ in range(8):
            self.look(2.5)
            self.read()
        self.positions.commit(())
        return self.text[before:]

    def close(self) -> None:
        self.positions.commit(())
        self.follower.close()


def append(path: Path, text: bytes) -> None:
    with path.open("ab") as file:
        file.write(text)


def rotate(path: Path) -> None:
    for number in range(8, 0, -1):
        one = Path(f"{path}.{number}")
        if one.exists():
            one.rename(f"{path}.{number + 1}")
    path.rename(f"{path}.1")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.log"


def test_rotated_twice_within_the_grace(path: Path) -> None:
    path.write_bytes(b"1\n")
    steps = Steps(path)
    assert steps.read() == b"1\n"
    rotate(path)
    path.write_bytes(b"2\n")
    steps.look()
    rotate(path)
    path.write_bytes(b"3\n")
    assert steps.rest() == b"2\n3\n"


@pytest.mark.parametrize("looks", [True, False])
def test_rotated_during_an_outage_of_the_sink(path: Path, looks: bool) -> None:
    path.write_bytes(b"1\n")
    steps = Steps(path)
    for number in b"2345":
        rotate(path)
        path.write_bytes(b"%c\n" % number)
        if looks:
            steps.look()  # as the other thread does while the put waits
    if looks:
        Path(f"{path}.3").unlink()  # held open
    assert steps.rest() == b"1\n2\n3\n4\n5\n"


def test_rotated_twice_while_the_service_was_down(path: Path) -> None:
    path.write_bytes(b"1\n")
    steps = Steps(path)
    assert steps.rest() == b"1\n"
    steps.close()
    append(path, b"late\n")
    for number in b"234":
        rotate(path)
        path.write_bytes(b"%c\n" % number)
    again = Steps(path, steps.positions)
    assert again.rest() == b"late\n2\n3\n4\n"


def test_what_was_rotated_before_the_first_start_is_not_read(path: Path) -> None:
    Path(f"{path}.1").write_bytes(b"old\n")
    path.write_bytes(b"1\n")
    steps = Steps(path)
    assert steps.rest() == b"1\n"
    append(Path(f"{path}.1"), b"its writer has not reopened yet\n")
    rotate(path)
    path.write_bytes(b"2\n")
    assert sorted(steps.rest().splitlines()) == [b"2", b"its writer has not reopened yet"]


def test_other_logs_are_no_generations(path: Path) -> None:
    path.write_bytes(b"1\n")
    steps = Steps(path)
    for name in ("a-error.log", "a.log.error", "a.log.1.tmp", "ba.log.1", "a.log.swp"):
        path.with_name(name).write_bytes(b"another\n")
    path.rename(path.with_name("a.log-20261130"))
    path.write_bytes(b"2\n")
    assert steps.rest() == b"1\n2\n"


@pytest.mark.parametrize("text", [b"other\n", b"longer than before\nand more\n", b"x\n"])
def test_written_anew_in_place(path: Path, text: bytes) -> None:
    path.write_bytes(b"first\n")
    steps = Steps(path)
    assert steps.read() == b"first\n"
    path.write_bytes(text)
    assert steps.rest() == text
    steps.close()
    path.write_bytes(b"#" + text)
    assert Steps(path, steps.positions).rest() == b"#" + text


def test_written_anew_with_the_same_head(path: Path) -> None:
    head = b"".join(b"# header %d\n" % number for number in range(200))
    path.write_bytes(head + b"first\n")
    steps = Steps(path)
    steps.rest()
    path.write_bytes(head + b"other\nand more\n")
    assert steps.rest() == head + b"other\nand more\n"


def test_a_copy_has_what_was_not_read_before_the_truncation(path: Path) -> None:
    lines = [b"line %04d\n" % number for number in range(100)]
    path.write_bytes(b"".join(lines[:50]))
    steps = Steps(path)
    steps.read()
    append(path, b"".join(lines[50:60]))
    Path(f"{path}.1").write_bytes(path.read_bytes())
    os.truncate(path, 0)
    append(path, b"".join(lines[60:]))
    assert steps.rest() == b"".join(lines[50:])


def test_the_hole_that_a_writer_leaves_behind_a_truncation_is_no_line(path: Path) -> None:
    with path.open("wb", buffering=0) as writer:  # without O_APPEND
        writer.write(b"one\n" * 1000)
        steps = Steps(path)
        steps.read()
        os.truncate(path, 0)
        writer.write(b"two\n")
        assert steps.rest() == b"two\n"


def test_a_new_file_with_the_inode_and_the_first_line_of_another(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_bytes(b"job started\n")
    steps = Steps(path.with_name("*.log"))
    assert steps.rest() == b"job started\n"
    path.unlink()
    steps.rest()
    other = path.with_name("b.log")
    other.write_bytes(b"job started\nresult 42\n")
    assert steps.rest() == b"job started\nresult 42\n"
    assert {Path(one).name for one in steps.positions.paths()} == {"b.log"}, "it is pruned"


def test_an_inode_that_was_reused_while_the_service_was_down(path: Path) -> None:
    """By hand, since no file system does it on demand: the state has the new inode."""
    path.write_bytes(b"job started\n")
    steps = Steps(path.with_name("*.log"))
    steps.rest()
    steps.close()
    path.rename(path.with_name("b.log"))
    for one in steps.positions._kept[str(path)].values():
        object.__setattr__(one.file, "generation", 0)
    append(path.with_name("b.log"), b"result 42\n")
    again = Steps(path.with_name("*.log"), steps.positions)
    assert again.rest() == b"job started\nresult 42\n"


@pytest.mark.parametrize("call", ["stat", "fstat", "pread", "open"])
@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.ESTALE, errno.ENFILE])
def test_any_error_is_trouble_for_now(
    path: Path, call: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_bytes(b"before\n")
    steps = Steps(path.with_name("*.log"))
    assert steps.read() == b"before\n"
    append(path, b"after\n")
    path.with_name("b.log").write_bytes(b"new\n")

    def fail(*arguments: object, **named: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        for _ in range(3):
            steps.look(1.5)
            steps.read()
    assert sorted(steps.rest().split() or steps.text.split()[1:]) in (
        [b"after", b"new"],
        [b"after"],
        [b"new"],
    )
    assert sorted(steps.text.split()) == [b"after", b"before", b"new"]


def test_a_directory_that_goes_away_and_comes_back(path: Path, tmp_path: Path) -> None:
    directory = tmp_path / "d"
    directory.mkdir()
    (directory / "a.log").write_bytes(b"before\n")
    steps = Steps(directory / "a.log")
    steps.rest()
    directory.rename(tmp_path / "e")
    directory.touch()
    steps.rest()
    directory.unlink()
    (tmp_path / "e").rename(directory)
    append(directory / "a.log", b"after\n")
    assert steps.rest() == b"after\n"


def test_a_new_file_that_came_while_the_service_was_down_is_read_whole(path: Path) -> None:
    path.write_bytes(b"old\n")
    steps = Steps(path.with_name("*.log"), start_at_end=True)
    assert steps.rest() == b""
    steps.close()
    append(path, b"behind the end\n")
    path.with_name("b.log").write_bytes(b"new\n")
    again = Steps(path.with_name("*.log"), steps.positions, start_at_end=True)
    assert again.rest() == b"behind the end\nnew\n"


def test_more_files_than_may_be_open(tmp_path: Path) -> None:
    open_files = OpenFiles(5)
    for number in range(40):
        (tmp_path / f"{number:02}.log").write_bytes(b"%d\n" % number)
    steps = Steps(tmp_path / "*.log", open_files=open_files)
    assert steps.rest() == b"".join(b"%d\n" % number for number in range(40))
    assert open_files._open <= 5
    append(tmp_path / "07.log", b"again\n")
    (tmp_path / "08.log").rename(tmp_path / "08.log.1")
    (tmp_path / "08.log").write_bytes(b"next\n")
    append(tmp_path / "08.log.1", b"late\n")
    assert steps.rest() == b"again\nlate\nnext\n"
    steps.close()
    assert open_files._open == 0


def test_what_is_missed_is_said(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "backpressure")
    path.write_bytes(b"1\n")
    steps = Steps(path)
    steps.rest()
    steps.close()
    path.unlink()
    path.with_name("a.log.1.gz").write_bytes(b"?")
    path.write_bytes(b"2\n")
    assert Steps(path, steps.positions).rest() == b"2\n"
    assert "is gone, or was written anew" in caplog.text
    assert "delaycompress" in caplog.text
    caplog.clear()
    Steps(path.with_name("none*"))
    assert "no file matches" in caplog.text


def test_what_the_sink_writes_is_not_followed(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.write_bytes(b"1\n")
    out = path.with_name("out.log")
    out.write_bytes(b"1\n")
    found = out.stat()
    steps = Steps(path.with_name("*.log"), avoid=lambda: {(found.st_dev, found.st_ino)})
    assert steps.rest() == b"1\n"
    assert caplog.text.count("what the sink writes to") == 1


# ---------------------------------------------------------------- patterns


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.log", "a.log b.log"),
        ("{a,b}.log", "a.log b.log"),
        ("{a,c}.{log,txt}", "a.log c.txt"),
        ("**/*.log", "a.log b.log d/a.log d/e/b.log"),
        ("**", "a.log b.log c.txt d/a.log d/e/b.log {x}.log"),
        ("d/**/*.log", "d/a.log d/e/b.log"),
        ("[ab].log", "a.log b.log"),
        ("[!a].log", "b.log"),
        ("?.txt", "c.txt"),
        ("{x}.log", "{x}.log"),
        (".*", ".hidden.log"),
        ("{a,{b,d/a}}.log", "a.log b.log d/a.log"),
    ],
)
def test_patterns(tmp_path: Path, pattern: str, found: str) -> None:
    names = ("a.log", "b.log", "c.txt", ".hidden.log", "d/a.log", "d/e/b.log", "{x}.log")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    if pattern in ("*.log", "**/*.log", "?.txt"):
        (tmp_path / "{x}.log").unlink()
    one = PathPattern(str(tmp_path / pattern))
    files = [path for path in one.find() if os.path.isfile(path)]
    assert [os.path.relpath(path, tmp_path) for path in files] == found.split()
    for name in names:
        if (tmp_path / name).exists():
            assert one.matches(str(tmp_path / name)) == (name in found.split()), name


def test_patterns_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert PathPattern("~/a.log").find() == [str(tmp_path / "a.log")]
    for text in ("", "a\0b", "~nobody-of-that-name/x", "{a,b}" * 12):
        with pytest.raises(ValueError, match=r"empty|NUL|no such home|alternatives"):
            PathPattern(text)
