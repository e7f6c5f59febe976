"""Positions of followed files: committed when delivered; never half a state file."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from backpressure.sources.file_id import EVIDENCE_BYTES, FileId, Place
from backpressure.sources.positions import Positions
from tests.torture.fuzz_files import check

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "pread"), reason="this system has no pread"),
    pytest.mark.platform,
]


def make_place(offset: int, number: int = 1) -> Place:
    return Place(FileId(1, number, 2, 3), offset)


def test_positions_are_committed_in_order_and_only_when_delivered(tmp_path: Path) -> None:
    positions = Positions(tmp_path / "state")
    positions.note("a", make_place(10), (0, 0, 5, 0, 0))
    positions.note("a", make_place(20), (7, 0, 0, 0, 0))  # urgent, delivered first
    positions.note("b", make_place(5, 2), (0, 0, 6, 0, 0))
    positions.commit((7, 0, 4, 0, 0))
    assert positions.get("a") == [], "what lies before it has not been delivered"
    positions.save()
    assert not (tmp_path / "state").exists(), "nothing has changed"
    positions.commit((7, 0, 5, 0, 0))
    assert positions.get("a") == [make_place(20)]
    positions.save()
    assert Positions(tmp_path / "state").get("a") == [make_place(20)]
    assert Positions(tmp_path / "state").get("b") == []


def test_several_files_of_a_path_in_their_order_and_forgotten() -> None:
    positions = Positions()
    for number in (3, 1, 2):
        positions.note("a", make_place(0, number))
    positions.forget("a", make_place(0, 1).file)
    positions.note("a", make_place(7, 3), (5,))
    assert positions.get("a") == []
    positions.commit((4,))
    assert positions.get("a") == [make_place(0, 3), make_place(0, 2)]
    positions.commit((5,))
    assert positions.get("a") == [make_place(7, 3), make_place(0, 2)]
    positions.forget("a", make_place(0, 3).file)
    positions.forget("a", make_place(0, 2).file)
    positions.commit((5,))
    assert positions.paths() == []


@pytest.mark.parametrize("files", [1, 300])
def test_positions_that_wait_are_bounded(files: int) -> None:
    positions = Positions()
    for number in range(20_000):
        positions.note("a", make_place(number, number % files), (number, 0, 0, 0, 0))
    assert len(positions._pending) <= 4096 + files
    positions.commit((19_998 - files, 0, 0, 0, 0))
    assert all(place.offset <= 19_998 - files for place in positions.get("a"))
    positions.commit((19_999, 0, 0, 0, 0))
    assert max(place.offset for place in positions.get("a")) == 19_999


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"version": 3, "files": []}',
        b'{"version": 1, "files": {"a": {"dev": 1}}}',
        b'{"version": 2, "patterns": [], "files": {}, "more": 1}'[:-2],
        b'{"version": 2, "patterns": [1], "files": []}',
        b'{"version": 2, "files": []}',
        b"\xff",
    ],
)
def test_a_state_file_that_is_none_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "state"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="state"):
        Positions(path)
    assert path.read_bytes() == content


def test_version_1_is_read(tmp_path: Path) -> None:
    state = {"version": 1, "files": {"a": {"dev": 1, "ino": 2, "head": 3, "head_bytes": 4}}}
    state["files"]["a"]["offset"] = 50  # type: ignore[index]
    (tmp_path / "state").write_text(json.dumps(state))
    positions = Positions(tmp_path / "state")
    assert positions.get("a") == [Place(FileId(1, 2, 3, 4), 50)]
    assert not positions.begin("a")


def saved(path: Path) -> Positions:
    positions = Positions(path)
    positions.note("a", make_place(10), (1,))
    positions.commit((1,))
    positions.save()
    positions.note("a", make_place(20), (2,))
    positions.commit((2,))
    return positions


def test_a_save_that_fails_leaves_the_old_one_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    positions = saved(tmp_path / "state")

    def fail(fd: int) -> None:
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="no space"):
            positions.save()
    assert Positions(tmp_path / "state").get("a") == [make_place(10)]
    assert [path.name for path in tmp_path.iterdir()] == ["state"], "half of one takes room"
    positions.save()
    assert Positions(tmp_path / "state").get("a") == [make_place(20)]


@pytest.mark.parametrize("room", [0, 1, 30])
def test_a_full_disk_takes_a_part_and_replaces_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    positions = saved(tmp_path / "state")
    write, left = os.write, [room]

    def partial(fd: int, data: memoryview) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, "no space")
        count = write(fd, data[: left[0]])
        left[0] -= count
        return count

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", partial)
        with pytest.raises(OSError, match="no space"):
            positions.save()
    assert Positions(tmp_path / "state").get("a") == [make_place(10)]


def test_a_write_that_takes_little_at_a_time_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:7]))
    saved(tmp_path / "state").save()
    assert Positions(tmp_path / "state").get("a") == [make_place(20)]


def test_a_state_file_in_no_directory(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such directory"):
        Positions(tmp_path / "nowhere" / "state")


def test_a_place_fits_its_file_and_a_copy(tmp_path: Path) -> None:
    path, copy = tmp_path / "f", tmp_path / "g"
    text = b"".join(b"%04d a line\n" % number for number in range(400))
    path.write_bytes(text)
    from backpressure.sources.followed_file import FollowedFile

    fd = os.open(path, os.O_RDONLY)
    file = FollowedFile(fd, str(path), 3000, 0.0)
    place = file.place
    assert place.fits(fd)
    copy.write_bytes(text)
    other = os.open(copy, os.O_RDONLY)
    try:
        assert place.is_copied_to(other)
        assert not place.fits(other), "another inode"
        copy.write_bytes(text[:2999] + b"#" + text[3000:])
        assert not place.is_copied_to(other), "another tail"
        copy.write_bytes(b"#" + text[1:])
        assert not place.is_copied_to(other), "another head"
        path.write_bytes(text[:2999])
        assert not place.fits(fd), "too short"
        path.write_bytes(text[:3000])
        assert place.fits(fd)
        file.begin_at(EVIDENCE_BYTES - 1)
        copy.write_bytes(text)
        assert not file.place.is_copied_to(other), "too little to tell"
    finally:
        os.close(fd)
        os.close(other)


@pytest.mark.parametrize(
    "change",
    [
        {"offset": -1},
        {"offset": 1 << 70},
        {"offset": 1.5},
        {"offset": "7"},
        {"head": None},
        {"head_bytes": 1 << 40},
        {"ino": [1]},
        {"done": 1},
        {"path": 1},
        {"mtime_ns": 1 << 64},
        {"more": 1},
    ],
    ids=str,
)
def test_a_state_file_that_says_what_cannot_be_is_refused_by_its_name(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    state = tmp_path / "state"
    positions = Positions(state)
    place = Place(FileId(1, (1 << 64) - 1, 3, 4), 50)
    positions.note("a.log", place, (0,))
    positions.commit((1,))
    positions.save()
    assert Positions(state).get("a.log") == [place]
    content = json.loads(state.read_bytes())
    content["files"][0] |= change
    state.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"state: this is no state file of forebay"):
        Positions(state)


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"a":' * 100_000, b"1" * 10_000, b"\xff"])
def test_a_state_file_that_is_no_text_of_ours_is_refused_by_its_name(
    tmp_path: Path, content: bytes
) -> None:
    state = tmp_path / "state"
    state.write_bytes(content)
    with pytest.raises(ValueError, match=r"state: this is no state file of forebay"):
        Positions(state)


@pytest.mark.skipif(sys.platform != "linux", reason="the fuzzer bounds memory as Linux does")
def test_state_files_are_refused_or_do_no_harm(in_full: bool) -> None:
    check("state", in_full)
