"""The command in this process, and directories whose owner was killed."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from backpressure.cli import main
from tests.support.disk import Command, noise
from tests.support.processes import run_python


@pytest.fixture
def forebay(capfd: pytest.CaptureFixture[str]) -> Any:
    """Runs a command line in this process: (exit code, stdout, stderr)."""

    def run(*arguments: str | Path) -> Command:
        capfd.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as error:  # argparse
            code = int(error.code or 0)
        return code, *capfd.readouterr()

    return run


@pytest.fixture(scope="session")
def a_killed_buffer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("killed") / "buffer"
    code = "import sys; from tests.support.disk import live_and_die; live_and_die(sys.argv[1])"
    assert run_python(code, path).returncode == -signal.SIGKILL
    return path


@pytest.fixture
def killed(tmp_path: Path, a_killed_buffer: Path) -> tuple[Path, list[bytes]]:
    """A directory whose owner was killed, and the events that it owes, in order."""
    path = tmp_path / "buffer"
    shutil.copytree(a_killed_buffer, path)
    events = noise(3000)
    return path, [b"more urgent", *events[:5], *events[15:]]
