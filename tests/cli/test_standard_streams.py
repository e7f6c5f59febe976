"""Commands whose stdin, stdout or stderr is closed, full, or a pipe that nobody reads;
and that get a signal, or no memory, before they have begun.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from backpressure.cli import main
from backpressure.cli import serve as serve_module
from backpressure.service.service import Service
from tests.support.processes import environment, forebay_command

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="for a POSIX shell"),
    pytest.mark.platform,
]


def run(redirection: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run `forebay …` with these redirections of a shell."""
    return subprocess.run(
        ["sh", "-c", f'"$@" {redirection}', "sh", *forebay_command(*arguments)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "a.log").write_text("line\n" * 1000)
    path = tmp_path / "c.toml"
    path.write_text(
        f'[buffer]\ndirectory = "{tmp_path}/buffer"\nlane_bytes = 65536\n'
        f'[[source]]\ntype = "file"\npath = "{tmp_path}/a.log"\nstart = "beginning"\n'
        '[sink]\ntype = "stdout"\n'
    )
    return path


@pytest.mark.parametrize("closed", [">&-", "<&- >&-", "<&- >&- 2>&-"])
def test_a_closed_stdout_is_refused_and_no_file_of_ours_takes_its_place(
    config: Path, closed: str
) -> None:
    result = run(closed, "serve", "--config", config)
    assert result.returncode == 1
    if "2>" not in closed:
        assert "stdout: it is closed" in result.stderr
    assert (config.parent / "buffer" / "lock").read_bytes().strip().isdigit()


@pytest.mark.parametrize("command", ["pump", "serve"])
def test_a_closed_stdin_is_refused(config: Path, tmp_path: Path, command: str) -> None:
    config.write_text(config.read_text().replace('type = "file"', 'type = "stdin"').replace(
        f'path = "{tmp_path}/a.log"\nstart = "beginning"\n', ""
    ))  # fmt: skip
    arguments: list[str | Path]
    arguments = ["--config", config] if command == "serve" else ["-", "--to", tmp_path / "out"]
    result = run("<&-", command, *arguments)
    assert result.returncode == 1
    assert "stdin: it is closed" in result.stderr


def test_pump_to_a_closed_stdout(tmp_path: Path) -> None:
    (tmp_path / "in").write_text("line\n")
    result = run(">&-", "pump", tmp_path / "in", "--to", "-", "--quiet")
    assert (result.returncode, result.stderr) == (
        1,
        "forebay: stdout: it is closed: nothing can be written to it\n",
    )


def test_a_closed_stderr_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / "in").write_text("line\n" * 10)
    result = run("2>&-", "pump", tmp_path / "in", "--to", tmp_path / "out")
    assert (result.returncode, result.stdout) == (0, "")
    assert (tmp_path / "out").read_text() == "line\n" * 10


def test_a_pipe_that_nobody_reads(config: Path) -> None:
    result = run("| true; sleep 0", "serve", "--config", config, "--check")
    assert result.stderr == ""
    (config.parent / "in").write_text("line\n" * 100_000)
    result = run("| head -1", "pump", config.parent / "in", "--to", "-", "--quiet")
    assert result.stdout == "line\n"
    assert "Traceback" not in result.stderr
    assert "the reader of this pipe has closed it" in result.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize("arguments", [("--help",), ("serve", "--check", "--config")])
def test_a_full_disk_under_stdout(config: Path, arguments: tuple[str, ...]) -> None:
    more = (config,) if len(arguments) > 1 else ()
    result = run(">/dev/full", *arguments, *more)
    assert (result.returncode, result.stderr) == (
        1,
        "forebay: stdout: No space left on device\n",
    )
    assert run("2>/dev/full", "nonsense").returncode == 2


@pytest.mark.uninstrumented
def test_too_little_memory_is_said(tmp_path: Path) -> None:
    (tmp_path / "in").write_text("line\n")
    code = (
        "import resource, sys; from backpressure.cli import main; import backpressure.cli.pump; "
        "resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30)); sys.exit(main())"
    )
    arguments = ["pump", tmp_path / "in", "--to", tmp_path / "out", "--lane-bytes", "64G"]
    result = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 1
    assert result.stderr.startswith("forebay: ")
    assert "memory" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_signal_while_all_is_opened_ends_it(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(Service):
        def __init__(self, *arguments: object) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            super().__init__(*arguments)  # type: ignore[arg-type]

        def start(self) -> None:
            raise AssertionError("it is to end")

    config.write_text(config.read_text().replace('"stdout"', f'"file"\npath = "{config}.out"'))
    monkeypatch.setattr(serve_module, "Service", Slow)
    assert main(["serve", "--config", str(config)]) == 0
    assert Path(f"{config}.out").read_bytes() == b""
