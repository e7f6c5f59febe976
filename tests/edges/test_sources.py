"""The sources: whole lines of files and stdin, at all sizes of reads and lines."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backpressure.sources import LineChunk, LineReader, LineTooLong, check_source


def read_all(reader: LineReader) -> tuple[bytes, LineTooLong | OSError | None]:
    """All that `reader` gives, and the error that ended it."""
    got = bytearray()
    try:
        for chunk in reader:
            got += chunk.data
    except (LineTooLong, OSError) as error:
        return bytes(got), error
    return bytes(got), None


def write_files(folder: Path, contents: Sequence[bytes]) -> list[str]:
    paths = []
    for number, content in enumerate(contents):
        path = folder / f"{number}.log"
        path.write_bytes(content)
        paths.append(str(path))
    return paths


def check_chunk(chunk: LineChunk, files: dict[str, bytes]) -> None:
    """A chunk holds whole lines, and every byte is where it says."""
    data = bytes(chunk.data)
    assert data
    assert data.endswith(b"\n") != chunk.unterminated
    for position in range(len(data)):
        source, offset = chunk.locate(position)
        assert files[source][offset] == data[position]


line_bytes = st.text("ab\n", max_size=40).map(str.encode)


@given(contents=st.lists(line_bytes, max_size=5), chunk_bytes=st.integers(1, 30))
@example(contents=[b"a", b"", b"b\n", b"\n"], chunk_bytes=2)
@example(contents=[b"ab" * 8 + b"\n" + b"a"], chunk_bytes=1)
def test_the_chunks_are_the_files_one_after_the_other(
    contents: list[bytes], chunk_bytes: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        paths = write_files(Path(folder), contents)
        files = dict(zip(paths, contents, strict=True))
        reader = LineReader(paths, max_line_bytes=1000, chunk_bytes=chunk_bytes)
        got = b""
        for chunk in reader:
            check_chunk(chunk, files)
            got += bytes(chunk.data)
        assert got == b"".join(contents)
        assert reader.exhausted
        assert reader.carried_bytes == 0


@given(
    contents=st.lists(line_bytes, max_size=4),
    limit=st.integers(1, 12),
    chunk_bytes=st.integers(1, 20),
)
@example(contents=[b"abcd"], limit=4, chunk_bytes=20)
@example(contents=[b"abcde"], limit=4, chunk_bytes=1)
@example(contents=[b"abcd\nabcde\n"], limit=4, chunk_bytes=20)
@example(contents=[b"a\nabc", b"de\n"], limit=4, chunk_bytes=20)
def test_the_first_line_over_the_limit_ends_it_after_all_before_it(
    contents: list[bytes], limit: int, chunk_bytes: int
) -> None:
    stream = b"".join(contents)
    start = 0
    for line in stream.split(b"\n"):
        if len(line) > limit:
            break
        start += len(line) + 1
    too_long = start < len(stream)
    with tempfile.TemporaryDirectory() as folder:
        paths = write_files(Path(folder), contents)
        reader = LineReader(paths, max_line_bytes=limit, chunk_bytes=chunk_bytes)
        got, error = read_all(reader)
        if not too_long:
            assert error is None
            assert got == stream
            return
        assert isinstance(error, LineTooLong)
        assert got == stream[:start]
        before = sum(len(content) for content in contents[: paths.index(error.source)])
        assert before + error.offset == start
        assert error.limit == limit
        assert f"byte {error.offset:,}" in str(error)
        assert error.source in str(error)
        assert not reader.exhausted


def test_a_long_line_costs_no_more_reads_than_its_bytes_need(tmp_path: Path) -> None:
    path = tmp_path / "long.log"
    path.write_bytes(b"x" * 5_000_000 + b"\ny\n")
    reader = LineReader([str(path)], max_line_bytes=8_000_000, chunk_bytes=65536)
    chunks = [bytes(chunk.data) for chunk in reader]
    assert b"".join(chunks) == path.read_bytes()
    assert len(chunks[0]) >= 5_000_001  # the line came whole


def test_a_pipe_gives_its_lines_as_they_come() -> None:
    read_end, write_end = os.pipe()
    path = f"/dev/fd/{read_end}"
    if not os.path.exists(path):
        pytest.skip("no /dev/fd here")
    chunks = iter(LineReader([path], max_line_bytes=100))
    os.write(write_end, b"one\ntw")
    assert bytes(next(chunks).data) == b"one\n"
    os.write(write_end, b"o\n")
    assert bytes(next(chunks).data) == b"two\n"
    os.write(write_end, b"three")
    os.close(write_end)
    last = next(chunks)
    assert (bytes(last.data), last.unterminated) == (b"three", True)
    assert list(chunks) == []
    os.close(read_end)


def test_stopping_ends_a_wait_for_a_pipe_and_says_what_is_left_over() -> None:
    read_end, write_end = os.pipe()
    path = f"/dev/fd/{read_end}"
    if not os.path.exists(path):
        pytest.skip("no /dev/fd here")
    stop = threading.Event()
    reader = LineReader([path], max_line_bytes=100, stopping=stop.is_set)
    os.write(write_end, b"one\nhalf a li")
    chunks = iter(reader)
    assert bytes(next(chunks).data) == b"one\n"
    timer = threading.Timer(0.01, stop.set)
    timer.start()
    started = time.monotonic()
    assert list(chunks) == []  # nothing is written: only the stop ends this
    assert time.monotonic() - started < 5
    assert not reader.exhausted
    assert reader.carried_bytes == len(b"half a li")
    timer.join()
    os.close(write_end)
    os.close(read_end)


def test_stopping_ends_a_file_between_two_reads(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"line\n" * 100)
    seen: list[bytes] = []
    reader = LineReader(
        [str(path)], max_line_bytes=100, chunk_bytes=10, stopping=lambda: len(seen) == 3
    )
    seen.extend(bytes(chunk.data) for chunk in reader)
    assert b"".join(seen) == b"line\n" * 6
    assert not reader.exhausted


def test_a_source_that_fails_half_way_names_itself(tmp_path: Path) -> None:
    first = tmp_path / "first.log"
    first.write_bytes(b"a\nb\n")
    gone = str(tmp_path / "gone.log")
    reader = LineReader([str(first), gone], max_line_bytes=100)
    got, error = read_all(reader)
    assert got == b"a\nb\n"
    assert isinstance(error, FileNotFoundError)
    assert error.filename == gone
    assert not reader.exhausted


@pytest.mark.skipif(
    not os.path.exists("/proc/self/mem"), reason="only there such a file is at hand"
)
def test_an_error_while_reading_names_the_source() -> None:
    got, error = read_all(LineReader(["/proc/self/mem"], max_line_bytes=100))
    assert got == b""
    assert isinstance(error, OSError)
    assert error.filename == "/proc/self/mem"


def test_check_source(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"")
    check_source(str(path))
    check_source("-")
    with pytest.raises(IsADirectoryError):
        check_source(str(tmp_path))
    with pytest.raises(FileNotFoundError):
        check_source(str(tmp_path / "missing"))


def test_check_source_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"")
    monkeypatch.setattr(
        os, "access", lambda path, mode: False
    )  # root may read all, and the tests may run as root
    with pytest.raises(PermissionError, match=r"a\.log"):
        check_source(str(path))


@pytest.mark.parametrize("wrong", [{"max_line_bytes": 0}, {"max_line_bytes": 10, "chunk_bytes": 0}])
def test_sizes_must_be_positive(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="1 or more"):
        LineReader([], **wrong)
