"""Opening a durable lane over a file system that fails: the next opening finds all."""

from __future__ import annotations

import ast
import errno
import sys
from pathlib import Path

import pytest

import backpressure
from backpressure.base.errors import NotNow
from backpressure.lanes.durable_lane import DurableLane
from backpressure.spill import BufferDirectory, FileSystem, LocalFileSystem
from backpressure.testing import FaultyFileSystem, RecordingFileSystem
from tests.support.durable import SMALL

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="a directory needs Linux"),
    pytest.mark.platform,
]

PACKAGE = Path(backpressure.__file__).parent


def open_lane(path: Path, lane_bytes: int, fs: FileSystem) -> tuple[DurableLane, BufferDirectory]:
    directory = BufferDirectory(path, fs)
    try:
        return DurableLane(3, lane_bytes, directory, SMALL), directory
    except BaseException:
        directory.close()
        raise


def drain(lane: DurableLane) -> list[bytes]:
    events = []
    while (handout := lane.next_handout(1000, 1 << 20, 0.0)) is not None:
        events += handout.messages.tolist()
        lane.ack(handout, 0.0)
    return events


def close(lane: DurableLane, directory: BufferDirectory) -> None:
    lane.close()
    directory.close()


@pytest.mark.parametrize("call", ["unlink", "rename", "sync_directory"])
def test_a_failure_at_any_change_of_names_loses_nothing(tmp_path: Path, call: str) -> None:
    path = tmp_path / "buffer"
    lane, directory = open_lane(path, 1 << 14, LocalFileSystem())
    events = [b"%d" % number for number in range(100)]
    assert lane.ring.push_many(events) == len(events)
    close(lane, directory)
    failures = 0
    for fail_at in range(1, 30):
        # Another size each time, so that each opening moves all and makes a new ring.
        fs = FaultyFileSystem(LocalFileSystem(), fail_at=fail_at, error=errno.EIO, only={call})
        try:
            close(*open_lane(path, 1 << (15 + fail_at % 2), fs))
        except (OSError, NotNow):
            failures += 1
        if not fs.failures:
            break
    assert failures
    lane, directory = open_lane(path, 1 << 14, LocalFileSystem())
    assert drain(lane) == events
    close(lane, directory)


def test_a_lane_uses_the_file_system_of_its_directory(tmp_path: Path) -> None:
    fs = RecordingFileSystem(LocalFileSystem())
    lane, directory = open_lane(tmp_path / "buffer", 1 << 14, fs)
    lane.ring.push_many([b"one", b"two"])
    assert lane.spill(0.0)
    close(lane, directory)
    called = {(call.name, Path(call.path).name) for call in fs.calls}
    assert ("rename", "ring") in called
    assert ("unlink", "ring.new") in called
    assert any(name == "pwrite" and path.endswith(".seg") for name, path in called)


# What needs no file: names of paths, flags, this process.
HARMLESS = {"path.join", "path.dirname", "path.basename", "path.abspath", "fspath", "PathLike"}
HARMLESS |= {"getpid", "O_CREAT", "O_RDONLY", "O_RDWR", "O_EXCL"}


@pytest.mark.parametrize("folder", ["lanes", "spill"])
def test_files_py_makes_every_call_to_the_operating_system(folder: str) -> None:
    """The views in spill/offline look at the real file system, and say so."""
    found = []
    for path in (PACKAGE / folder).glob("*.py"):
        if path.name == "files.py":
            continue
        tree = ast.parse(path.read_text())
        inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and id(node) not in inner:
                name = ast.unparse(node)
                if name.startswith("os.") and name.removeprefix("os.") not in HARMLESS:
                    found.append(f"{path.name}: {name}")
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "open":
                found.append(f"{path.name}: open")
    assert not found
