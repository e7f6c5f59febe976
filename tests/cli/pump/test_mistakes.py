"""`forebay pump` when something is wrong: command line, source, or sink."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from backpressure.cli import main
from tests.support.pump import Run, command

# ------------------------------------------------------------ what goes wrong


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.log"], "--to"),
        (["--to", "out.log"], "SOURCE"),
        (["a.log", "--to", "out.log", "--priority-by", "(=1"], "regular expression"),
        (["/dev/null", "--to", "out.log", "--priority-by", "(a+)+$=1"], "for ever"),
        (["a.log", "--to", "out.log", "--priority-by", "x=6"], "from 1 to 5"),
        (["a.log", "--to", "out.log", "--priority-by", "x=low"], "from 1 to 5"),
        (["a.log", "--to", "out.log", "--priority-by", "x"], "REGEX=N"),
        (["a.log", "--to", "out.log", "--lane-bytes", "many"], "64M"),
        (["a.log", "--to", "out.log", "--batch-size", "0"], "1 or more"),
        (["a.log", "--to", "out.log", "--rate", "0"], "above 0"),
        (["a.log", "--to", "out.log", "--rate", "nan"], "above 0"),
        (["a.log", "--to", "out.log", "--retry-for", "-1"], "0 or more"),
        (["a.log", "--to", "out.log", "--inject-failures", "1.5"], "from 0 to 1"),
    ],
)
def test_a_wrong_command_line_ends_with_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(["pump", *arguments])
    assert caught.value.code == 2
    assert message in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_config_that_the_buffer_refuses_ends_with_2(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = Run(capfd, tmp_path / "in.log", "--to", tmp_path / "out.log", "--lane-bytes", "1K")
    assert run.code == 2
    assert "lane_bytes" in run.err
    assert not (tmp_path / "out.log").exists()


def test_a_mistake_in_a_source_costs_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source, sink = tmp_path / "in.log", tmp_path / "out.log"
    source.write_bytes(b"one\n")
    sink.write_bytes(b"precious\n")
    for wrong, message in (
        (tmp_path / "missing.log", "No such file"),
        (tmp_path, "Is a directory"),
    ):
        run = Run(capfd, source, wrong, "--to", sink)
        assert run.code == 1
        assert f"{wrong}: {message}" in run.err
        assert sink.read_bytes() == b"precious\n"


def test_a_sink_that_can_not_be_opened(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "in.log"
    source.write_bytes(b"one\n")
    run = Run(capfd, source, "--to", tmp_path / "missing" / "out.log")
    assert run.code == 1
    assert "missing/out.log: No such file" in run.err


def test_a_source_is_not_overwritten(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source, link = tmp_path / "in.log", tmp_path / "link.log"
    source.write_bytes(b"one\n")
    link.symlink_to(source)
    run = Run(capfd, source, "--to", link)
    assert run.code == 1
    assert "also the source" in run.err
    assert source.read_bytes() == b"one\n"


def test_a_sink_that_never_works_is_given_up(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source, sink = tmp_path / "in.log", tmp_path / "out.log"
    source.write_bytes(b"one\ntwo\n")
    run = Run(capfd, source, "--to", sink, "--inject-failures", "1", "--retry-for", "0")
    assert run.code == 1
    assert "injected" in run.err
    assert "2 events were read and NOT delivered" in run.err
    assert run.row("not delivered") == "2"
    assert sink.read_bytes() == b""


def test_a_reader_that_leaves_ends_it_clearly() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        done = subprocess.run(
            command("-", "--to", "-"),
            input=b"one\ntwo\n",
            stdout=write_end,
            stderr=subprocess.PIPE,
            timeout=60,
        )
    finally:
        os.close(write_end)
    assert done.returncode == 1
    assert b"stdout: the reader of this pipe has closed it" in done.stderr
    assert b"2 events were read and NOT delivered" in done.stderr
    assert b"Traceback" not in done.stderr


# ------------------------------------------------------------ the command around it


@pytest.mark.parametrize("arguments", [[], ["pmup"]])
def test_an_unknown_command_ends_with_2(
    arguments: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert "usage: forebay" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["-h", "--help", "--version"])
def test_help_and_version(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([option]) == 0
    assert "forebay" in capsys.readouterr().out


def test_the_help_of_pump_tells_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["pump", "--help"])
    assert caught.value.code == 0
    help_text = capsys.readouterr().out
    for code in ("0  ", "1  ", "2  ", "130  ", "143"):
        assert code in help_text
