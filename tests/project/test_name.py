"""One name everywhere, and the bytes in files that outlive it."""

from __future__ import annotations

import shutil
import subprocess
from importlib import metadata
from pathlib import Path

import pytest

from ringbuf import MessageRing
from tests.support.paths import ROOT

FORMER = "penstock"
# The magic bytes of ring files keep it, so that files of before are read; the rest
# tells what was.
MAY_SAY_IT = {
    "CHANGELOG.md",
    "src/ringbuf/_shared/shared_file.py",
    "tests/project/test_name.py",
}


def test_distribution_and_command() -> None:
    assert metadata.metadata("forebay")["Name"] == "forebay"
    [command] = [
        point for point in metadata.distribution("forebay").entry_points if point.name == "forebay"
    ]
    assert (command.group, command.value) == ("console_scripts", "backpressure.cli:main")


def test_ring_files_keep_their_magic_bytes(tmp_path: Path) -> None:
    path = tmp_path / "ring"
    MessageRing(1 << 16, path=str(path)).close()
    assert path.read_bytes()[:8] == b"PENSTOCK"


@pytest.mark.platform
@pytest.mark.skipif(
    shutil.which("git") is None or not (ROOT / ".git").exists(), reason="not a checkout of git"
)
def test_nothing_else_says_the_former_name() -> None:
    found = subprocess.run(
        ["git", "grep", "-liI", FORMER], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.splitlines()
    assert {path for path in found if not path.startswith("bench/results/")} <= MAY_SAY_IT
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert not [path for path in tracked if FORMER in path]
