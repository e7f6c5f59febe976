"""A sink that writes to what a source reads is refused, by whatever name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from backpressure.service.config import (
    FileFollow,
    FileTarget,
    SinkConfig,
    StdinLines,
    StdoutTarget,
    TcpTarget,
)
from backpressure.service.own_output import followed_output, output_files


@pytest.mark.parametrize(
    ("pattern", "sink", "output"),
    [
        ("l/*.log", "l/new.log", "l/new.log"),
        ("l/*.log", "out", None),
        ("l/*.log", "link", "l/all.log"),
        ("l/*.log", "hard", "l/all.log"),
        ("link", "l/all.log", "link"),
        ("**/*.log", "l/all.log", "l/all.log"),
        ("{x,l}/all.log", "link", "l/all.log"),
    ],
)
def test_by_name_link_and_inode(
    tmp_path: Path, pattern: str, sink: str, output: str | None
) -> None:
    (tmp_path / "l").mkdir()
    (tmp_path / "l/all.log").touch()
    (tmp_path / "link").symlink_to("l/all.log")
    os.link(tmp_path / "l/all.log", tmp_path / "hard")
    source = FileFollow(path=str(tmp_path / pattern))
    found = followed_output(source, FileTarget(path=str(tmp_path / sink)))
    assert found == (None if output is None else str(tmp_path / output))


def test_stdout_and_stdin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.log"
    path.touch()
    there, fstat, stat = os.stat(path), os.fstat, os.stat
    monkeypatch.setattr(os, "fstat", lambda fd: there if fd == 1 else fstat(fd))
    monkeypatch.setattr(os, "stat", lambda one, **more: there if one == 0 else stat(one, **more))
    source = FileFollow(path=str(tmp_path / "*.log"))
    assert followed_output(source, StdoutTarget()) == str(path)
    assert followed_output(StdinLines(), StdoutTarget()) == "stdin"
    none: SinkConfig = TcpTarget(host="h", port=1)
    assert followed_output(source, none) is None
    assert output_files(none) == set()
