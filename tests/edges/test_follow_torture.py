"""A share of the torture of followed files under pytest; also on ext4, which gives an
inode out again at once.

`python -m tests.torture.follow_files` does more.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.torture.follow_files import one_life

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "pread"), reason="this system has no pread"),
    pytest.mark.platform,
]


def first_seed() -> int:
    return 1 if os.environ.get("CI") else int.from_bytes(os.urandom(4), "little")


def test_no_complete_line_is_lost(tmp_path: Path, in_full: bool) -> None:
    first = first_seed()
    lines = sum(one_life(seed, tmp_path) for seed in range(first, first + (200 if in_full else 30)))
    assert lines > (4000 if in_full else 500), "so few lines prove nothing"


# Each of these lost something once.
@pytest.mark.parametrize("seed", [24, 111, 113, 150, 161, 189, 224, 326, 1013, 1284, 1696, 1743])
def test_lives_that_once_lost_something(tmp_path: Path, seed: int) -> None:
    one_life(seed, tmp_path)


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[Path]:
    image, where = tmp_path / "image", tmp_path / "ext4"
    if not hasattr(os, "geteuid") or os.geteuid() or not shutil.which("mkfs.ext4"):
        pytest.skip("to mount a file takes root and mkfs.ext4")
    where.mkdir()
    with image.open("wb") as file:
        file.truncate(32 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    mounted = subprocess.run(["mount", "-o", "loop", image, where], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a file cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield where
    finally:
        subprocess.run(["umount", "-l", where], check=True)


def test_no_complete_line_is_lost_where_inodes_are_reused(ext4: Path) -> None:
    first = first_seed()
    assert sum(one_life(seed, ext4) for seed in range(first, first + 30)) > 500
