"""What the commands share: exit codes, messages, argument types, signals."""

from __future__ import annotations

import argparse
import ast
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import backpressure.cli
from backpressure.base.wording import reason
from backpressure.cli import _COMMANDS, main
from backpressure.cli.common import (
    BY_CTRL_C,
    FAILED,
    IN_USE,
    OK,
    USAGE,
    checked,
    command_parser,
    noted_signals,
    number,
    say,
    whole_number,
)

SOURCES = Path(backpressure.cli.__file__).parent


def test_exit_codes_are_a_promise() -> None:
    """Scripts depend on the numbers."""
    assert (OK, FAILED, USAGE, IN_USE, BY_CTRL_C) == (0, 1, 2, 3, 130)


def test_a_meaning_may_have_several_lines() -> None:
    assert command_parser("x", "", {0: "done", 130: "ended,\nby a key"}).epilog == (
        "exit codes:\n  0    done\n  130  ended,\n       by a key\n"
    )


@pytest.mark.parametrize("command", ["dlq list" if name == "dlq" else name for name in _COMMANDS])
def test_every_help_tells_the_exit_codes(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), "--help"])
    assert ended.value.code == OK
    told = capsys.readouterr().out.partition("exit codes:\n")[2]
    for code in (OK, FAILED, USAGE):
        assert f"  {code}    " in told


def names_defined_twice(names: set[str]) -> Iterator[str]:
    for path in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id in names:
                yield f"{path}: {node.id}"


def test_no_command_has_exit_codes_of_its_own() -> None:
    codes = {"OK", "FAILED", "USAGE", "IN_USE", "BY_SIGNAL", "BY_CTRL_C"}
    defined = list(names_defined_twice(codes))
    assert len(defined) == len(codes), defined


def test_messages_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    say("what went wrong")
    assert capsys.readouterr() == ("", "forebay: what went wrong\n")


# ------------------------------------------------------------ exceptions in words


@pytest.mark.parametrize(
    ("error", "where", "text"),
    [
        (
            OSError(2, "No such file or directory", "a.log"),
            None,
            "a.log: No such file or directory",
        ),
        (
            OSError(2, "No such file or directory", b"a.log"),
            None,
            "a.log: No such file or directory",
        ),
        (
            OSError(2, "No such file or directory", "a.log"),
            "dir",
            "a.log: No such file or directory",
        ),
        (OSError(9, "Bad file descriptor", 7), None, "7: Bad file descriptor"),
        (OSError(28, "No space left on device"), None, "No space left on device"),
        (OSError(28, "No space left on device"), "dir", "dir: No space left on device"),
        (OSError("it broke"), None, "it broke"),
        (OSError("it broke"), "dir", "dir: it broke"),
        (ValueError("no number"), None, "no number"),
        (TimeoutError(), None, "TimeoutError"),
    ],
)
def test_reasons(error: BaseException, where: str | None, text: str) -> None:
    assert reason(error, where) == text


# ------------------------------------------------------------ arguments

POSITIVE = number("a number above 0", lambda value: value > 0)


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (whole_number(0), "0", 0),
        (whole_number(1), "12", 12),
        (POSITIVE, "0.5", 0.5),
        (POSITIVE, "1e3", 1000.0),
        (checked(int), "7", 7),
    ],
)
def test_arguments(kind: Callable[[str], object], text: str, value: object) -> None:
    assert kind(text) == value


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (whole_number(0), "-1", "'-1' is not a whole number, 0 or more"),
        (whole_number(1), "0", "'0' is not a whole number, 1 or more"),
        (whole_number(1), "1.5", "'1.5' is not a whole number"),
        (POSITIVE, "0", "'0' is not a number above 0"),
        (POSITIVE, "nan", "'nan' is not a number above 0"),
        (POSITIVE, "inf", "'inf' is not a number above 0"),
        (POSITIVE, "many", "'many' is not a number above 0"),
        (checked(int), "x", "invalid literal"),
    ],
)
def test_refused_arguments(kind: Callable[[str], object], text: str, message: str) -> None:
    """argparse shows the words of this exception only."""
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        kind(text)


# ------------------------------------------------------------ signals


def test_signals_are_noted_and_their_handlers_come_back() -> None:
    # What this process was started with may ignore it, as in the background of a shell.
    at_start = signal.signal(signal.SIGINT, signal.default_int_handler)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with noted_signals("SIGINT", "SIGTERM", "SIGNOWHERE") as signals:
            assert signals == []
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
            assert signals == [signal.SIGTERM, signal.SIGINT]
        assert signal.getsignal(signal.SIGTERM) is before
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, at_start)


def test_only_the_main_thread_has_handlers() -> None:
    noted: list[list[int]] = []

    def run() -> None:
        with noted_signals("SIGTERM") as signals:
            noted.append(signals)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert noted == [[]]
    assert signal.getsignal(signal.SIGTERM) is before
