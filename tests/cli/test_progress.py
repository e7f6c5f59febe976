"""What a transfer shows while it runs and at its end."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from backpressure.cli.progress import make_display
from backpressure.cli.pump.transfer import Progress
from tests.support.pump import Run


def progress_of(events: int) -> Progress:
    return Progress(
        seconds=2.0,
        events=events,
        nbytes=events * 100,
        batches=2,
        smallest_batch=1,
        largest_batch=9,
        undelivered=7,
    )


class Terminal:
    """A stderr that says that it is a terminal."""

    encoding = "utf-8"

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return True


def test_plain_lines_where_stderr_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    display = make_display(quiet=False, total_bytes=None)
    display.update(progress_of(20_000), "circuit open")
    display.finish([("events delivered", "20,000"), ("time", "2.00 s")])
    err = capsys.readouterr().err.splitlines()
    assert (
        err[0]
        == "forebay: 20,000 events, 2.0 MB, 10,000 events/s, 1.0 MB/s, 7 buffered, circuit open"
    )
    assert err[1:] == ["events delivered  20,000", "time              2.00 s"]


def test_quiet_shows_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "in.log"
    source.write_bytes(b"one\n")
    run = Run(capfd, source, "--to", tmp_path / "out.log", "--quiet")
    assert (run.code, run.out, run.err) == (0, "", "")
    assert Run(capfd, tmp_path / "missing", "--to", tmp_path / "out.log", "--quiet").err != ""


@pytest.mark.parametrize("total", [None, 0, 4_000_000])
def test_a_live_line_and_a_table_on_a_terminal(
    total: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("rich")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "150")
    monkeypatch.setenv("TERM", "xterm")
    display = make_display(quiet=False, total_bytes=total)
    display.update(progress_of(20_000), "backpressure")
    display.note("a [remark]")
    display.finish([("events delivered", "20,000")])
    assert "20,000 events, 2.0 MB" in terminal.text
    assert ("50%" in terminal.text) == bool(total)
    assert "backpressure" in terminal.text
    assert "a [remark]" in terminal.text
    assert "events delivered" in terminal.text


def test_a_terminal_without_rich_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    for name in [name for name in sys.modules if name.partition(".")[0] == "rich"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    display = make_display(quiet=False, total_bytes=None)
    display.update(progress_of(1), "")
    assert terminal.text.startswith("forebay: 1 events")
