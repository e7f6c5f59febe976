"""The directory of a buffer: one owner, one identity, durable before it is used."""

from __future__ import annotations

import errno
import os
import random
import struct
import zlib
from pathlib import Path

import pytest

from backpressure.base.errors import DirectoryInUse, DiskFailed, DiskFull, FormatError
from backpressure.spill import BufferDirectory
from backpressure.testing import CrashingFileSystem, FaultyFileSystem
from tests.support.processes import run_python


def test_it_keeps_its_id(tmp_path: Path) -> None:
    path = tmp_path / "buffer"
    with BufferDirectory(path) as directory:
        first = directory.buffer_id
        assert Path(directory.lane("lane-1")).is_dir()
        assert directory.lane("lane-1") == str(path / "lane-1")
        assert (path / "lock").read_text() == f"{os.getpid()}\n"
    with BufferDirectory(path) as directory:
        assert directory.buffer_id == first
    assert first.version == 4


def test_one_owner_at_a_time(tmp_path: Path) -> None:
    directory = BufferDirectory(tmp_path)
    with pytest.raises(DirectoryInUse, match="is locked"):
        BufferDirectory(tmp_path)
    other = "import sys; from backpressure.spill import BufferDirectory as D; D(sys.argv[1])"
    assert "DirectoryInUse" in run_python(other, tmp_path).stderr
    directory.close()
    directory.close()
    assert run_python(other, tmp_path).returncode == 0


def test_the_lock_dies_with_its_process(tmp_path: Path) -> None:
    script = (
        "import os, sys; from backpressure.spill import BufferDirectory as D; "
        "d = D(sys.argv[1]); os.kill(os.getpid(), 9)"
    )
    assert run_python(script, tmp_path).returncode == -9
    BufferDirectory(tmp_path).close()


def test_a_later_version_is_refused_and_left_untouched() -> None:
    disk = CrashingFileSystem()
    BufferDirectory("/buffer", disk).close()
    record = struct.pack("<8sHH16s", b"PNSTKBUF", 2, 0, bytes(16))
    record = (record + struct.pack("<I", zlib.crc32(record))).ljust(512, b"\0")
    disk.write_file("/buffer/manifest", record * 2)
    with pytest.raises(FormatError, match="version 2"):
        BufferDirectory("/buffer", disk)
    assert disk.read_file("/buffer/manifest") == record * 2
    assert disk.open_descriptors == 0


def test_the_id_is_durable_before_anybody_sees_it() -> None:
    for seed in range(50):
        disk = CrashingFileSystem(seed=seed)
        directory = BufferDirectory("/buffer", disk)
        directory.lane("lane-1")
        after = disk.image(random.Random(seed))
        assert "lane-1" in after.listdir("/buffer")
        with BufferDirectory("/buffer", after) as again:
            assert again.buffer_id == directory.buffer_id


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC, errno.EACCES])
def test_errors_leave_nothing_open_and_can_be_tried_again(error: int) -> None:
    fail_at = 1
    while True:
        disk = CrashingFileSystem()
        faulty = FaultyFileSystem(disk, fail_at=fail_at, error=error)
        try:
            BufferDirectory("/buffer", faulty).close()
        except (DiskFailed, DiskFull):
            pass
        if not faulty.failures:
            break
        assert disk.open_descriptors == 0
        with BufferDirectory("/buffer", faulty):
            pass
        fail_at += 1
    assert fail_at > 10


def test_a_manifest_that_can_not_be_read_is_not_written_anew() -> None:
    disk = CrashingFileSystem()
    with BufferDirectory("/buffer", disk) as directory:
        buffer_id = directory.buffer_id
    faulty = FaultyFileSystem(disk, fail_at=1, sticky=True, only={"pread"})
    with pytest.raises(DiskFailed):
        BufferDirectory("/buffer", faulty)
    with BufferDirectory("/buffer", disk) as directory:
        assert directory.buffer_id == buffer_id
