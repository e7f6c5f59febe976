"""Following files: growth, rotation in every way, restarts, hostile lines.

Positions are committed when delivered.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from backpressure.sources.file_id import Place
from backpressure.sources.follow import FollowSource
from backpressure.sources.positions import Positions
from tests.support.threads import until

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "pread"), reason="this system has no pread"),
    pytest.mark.platform,
]


class Run:
    """A source in a thread of its own, and what it has put."""

    def __init__(
        self, pattern: Path | str, positions: Positions | None = None, **options: Any
    ) -> None:
        options = {"start": "beginning", "poll": 0.005, "grace": 0.05, **options}
        self.positions = positions or Positions()
        self.source = FollowSource(str(pattern), positions=self.positions, **options)
        self.text = b""
        self.accepting = True
        self.sequence = 0
        self.puts = self.notes = 0
        note = self.positions.note

        def counted(path: str, place: Place, marks: tuple[int, ...] = ()) -> None:
            note(path, place, marks)
            self.notes += bool(marks)

        self.positions.note = counted  # type: ignore[method-assign]
        self.stopping = threading.Event()
        self.thread = threading.Thread(
            target=self.source.run, args=(self.put, self.stopping), daemon=True
        )

    def put(self, lines: memoryview) -> tuple[int, ...] | None:
        if not self.accepting:
            return None
        self.puts += 1
        self.text += bytes(lines)
        self.sequence += bytes(lines).count(b"\n") or 1
        return (0, 0, self.sequence, 0, 0)

    def deliver(self) -> None:
        """All that was put is delivered."""
        until(lambda: self.notes >= self.puts)
        self.positions.commit((0, 0, self.sequence, 0, 0))

    def __enter__(self) -> Run:
        self.thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stopping.set()
        self.thread.join(10)
        assert not self.thread.is_alive()

    def expect(self, text: bytes) -> None:
        deadline = time.monotonic() + 10
        while self.text != text:
            assert time.monotonic() < deadline, f"{self.text!r} instead of {text!r}"
            time.sleep(0.002)

    def nothing_more(self) -> None:
        before = self.text
        time.sleep(0.1)
        assert self.text == before


def append(path: Path, text: bytes) -> None:
    with path.open("ab") as file:
        file.write(text)


def test_lines_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"one\ntw")
    with Run(path) as run:
        run.expect(b"one\n")
        append(path, b"o\nthree\n")
        run.expect(b"one\ntwo\nthree\n")


def test_from_the_end_begins_with_a_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"old\nhal")
    with Run(path, start="end") as run:
        run.nothing_more()
        append(path, b"f\nnew\n")
        run.expect(b"half\nnew\n")


def test_what_appears_later_is_read_from_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    with Run(path, start="end") as run:
        run.nothing_more()
        path.write_bytes(b"one\n")
        run.expect(b"one\n")


def test_rename_and_create(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"one\n")
    with Run(path, grace=0.5) as run:
        run.expect(b"one\n")
        with path.open("ab", buffering=0) as writer:
            path.rename(tmp_path / "a.log.1")
            path.write_bytes(b"three\n")
            time.sleep(0.1)  # many looks, but the writer has not reopened yet
            writer.write(b"two\nno newline")
            run.expect(b"one\ntwo\nno newlinethree\n")


def test_a_pattern_that_finds_rotated_files_doubles_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"one\n")
    with Run(tmp_path / "a.log*") as run:
        run.expect(b"one\n")
        path.rename(tmp_path / "a.log.1")
        path.write_bytes(b"two\n")
        run.expect(b"one\ntwo\n")
        time.sleep(1.3)  # the pattern is looked up once a second
        run.nothing_more()
        (tmp_path / "a.log.other").write_bytes(b"three\n")
        run.expect(b"one\ntwo\nthree\n")


def test_copy_and_truncate(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"one\ntwo\n")
    with Run(path) as run:
        run.expect(b"one\ntwo\n")
        os.truncate(path, 0)
        append(path, b"3\n")
        run.expect(b"one\ntwo\n3\n")


def test_deleted_and_made_again(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"one\n")
    with Run(path) as run:
        run.expect(b"one\n")
        path.unlink()
        time.sleep(0.2)
        path.write_bytes(b"one\n")  # the same beginning, and likely the same inode
        run.expect(b"one\none\n")


def test_a_restart_goes_on_where_delivery_ended(tmp_path: Path) -> None:
    path, state = tmp_path / "a.log", tmp_path / "state.json"
    path.write_bytes(b"one\n")
    with Run(path, Positions(state)) as run:
        run.expect(b"one\n")
        run.deliver()
        append(path, b"two\n")
        run.expect(b"one\ntwo\n")  # accepted, and never delivered: the process dies
        run.positions.save()
    append(path, b"three\n")
    with Run(path, Positions(state), start="end") as run:
        run.expect(b"two\nthree\n")
        run.deliver()
        run.positions.save()
    with Run(path, Positions(state)) as run:
        run.nothing_more()
        assert run.text == b""


def test_a_restart_finds_the_file_that_was_rotated_meanwhile(tmp_path: Path) -> None:
    path, state = tmp_path / "a.log", tmp_path / "state.json"
    path.write_bytes(b"one\n")
    with Run(path, Positions(state)) as run:
        run.expect(b"one\n")
        run.deliver()
        run.positions.save()
    append(path, b"two\n")
    path.rename(tmp_path / "a.log.1")
    path.write_bytes(b"three\n")
    with Run(path, Positions(state), start="end") as run:
        run.expect(b"two\nthree\n")


def test_a_restart_takes_another_file_for_another_file(tmp_path: Path) -> None:
    path, state = tmp_path / "a.log", tmp_path / "state.json"
    path.write_bytes(b"first line\nsecond\n")
    with Run(path, Positions(state)) as run:
        run.expect(b"first line\nsecond\n")
        run.deliver()
        run.positions.save()
    # The same inode, as after copy and truncate, and longer than before.
    path.write_bytes(b"other line\nof\nanother\nfile\n")
    with Run(path, Positions(state), start="end") as run:
        run.expect(b"other line\nof\nanother\nfile\n")


def test_what_was_refused_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"one\n")
    with Run(path) as run:
        run.expect(b"one\n")
        run.deliver()
        run.accepting = False
        append(path, b"two\n")
        run.thread.join(10)
        assert not run.thread.is_alive(), "a service that ends takes no more"
    assert run.positions.get(str(path))
    with Run(path, run.positions) as again:
        again.expect(b"two\n")


@pytest.mark.parametrize("limit", [10, 300_000, 600_000])
def test_a_line_that_is_too_long_is_skipped_and_counted(tmp_path: Path, limit: int) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(
        b"a\n" + b"x" * limit + b"\n" + b"y" * (limit + 1) + b"\nb\n" + b"z" * (limit * 3)
    )
    with Run(path, max_line_bytes=limit) as run:
        run.expect(b"a\n" + b"x" * limit + b"\nb\n")
        append(path, b"z\nc\n")
        run.expect(b"a\n" + b"x" * limit + b"\nb\nc\n")
        assert run.source.oversized == 2


def test_a_large_file_arrives_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    text = b"".join(b"%d " % n + b"x" * (n % 3000) + b"\n" for n in range(3000))
    path.write_bytes(text)
    with Run(path) as run:
        run.expect(text)
        run.deliver()
    assert run.positions.get(str(path))[0].offset == len(text)


def test_several_files(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_bytes(b"a\n")
    (tmp_path / "b.log").write_bytes(b"b\n")
    with Run(tmp_path / "*.log") as run:
        run.expect(b"a\nb\n")
        append(tmp_path / "a.log", b"c\n")
        run.expect(b"a\nb\nc\n")


def test_what_is_no_regular_file_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    os.mkfifo(tmp_path / "pipe.log")
    (tmp_path / "directory.log").mkdir()
    (tmp_path / "z.log").write_bytes(b"z\n")
    with Run(tmp_path / "*.log") as run:
        run.expect(b"z\n")
    assert caplog.text.count("only regular files") == 2


def test_start_is_checked() -> None:
    with pytest.raises(ValueError, match="start"):
        FollowSource("x", start="middle")
