"""What every command shares: exit codes, messages, argument types, signals."""

from __future__ import annotations

import argparse
import math
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Final, TypeVar

__all__ = [
    "BY_CTRL_C",
    "BY_SIGNAL",
    "FAILED",
    "IN_USE",
    "OK",
    "USAGE",
    "checked",
    "command_parser",
    "noted_signals",
    "number",
    "say",
    "whole_number",
]

T = TypeVar("T")

# No number here has more digits; int() refuses thousands of them in a message that
# names no argument.
_DIGITS: Final = re.compile(r"[0-9]{1,30}")

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2  # argparse's own code for a wrong command line
IN_USE: Final = 3
BY_SIGNAL: Final = 128  # plus the signal's number, which is the shell's convention
BY_CTRL_C: Final = BY_SIGNAL + signal.SIGINT


def command_parser(
    name: str, description: str, codes: Mapping[int, str], *, before: str = "", behind: str = ""
) -> argparse.ArgumentParser:
    """The parser of `forebay NAME`, whose --help ends with the exit codes.

    codes: their meanings, which may have several lines.
    before, behind: text that stands around them.
    """
    lines = [f"  {code:<5}" + text.replace("\n", "\n" + 7 * " ") for code, text in codes.items()]
    return argparse.ArgumentParser(
        prog=f"forebay {name}",
        description=description,
        epilog=before + "\n".join(["exit codes:", *lines, ""]) + behind,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def say(text: str) -> None:
    """Print a message of the command itself on stderr.

    So stdout has only what was asked for.
    """
    # Where stderr is full or gone nobody can be told, and the work goes on.
    with suppress(OSError, ValueError):
        print(f"forebay: {text}", file=sys.stderr, flush=True)


@contextmanager
def noted_signals(*names: str) -> Iterator[list[int]]:
    """A list of the signals that arrive, oldest first.

    The handler only adds to the list: an exception could break the code that it hits.

    names: as "SIGTERM"; one that the system does not have is passed over.

    Outside of the main thread nothing is noted, since only that one may have handlers.
    """
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            # None: it was not installed from Python, and cannot be put back from there.
            if handler is not None:
                signal.signal(number, handler)


# ---------------------------------------------------------------- argument types


def checked(parse: Callable[[str], T]) -> Callable[[str], T]:
    """A type for argparse that keeps the message of a ValueError of `parse`.

    argparse by itself replaces it.
    """

    def convert(text: str) -> T:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert


def whole_number(least: int) -> Callable[[str], int]:
    """A whole number, `least` or more."""

    def parse(text: str) -> int:
        if not _DIGITS.fullmatch(text) or int(text) < least:
            raise ValueError(f"{text!r} is not a whole number, {least} or more")
        return int(text)

    return checked(parse)


def number(what: str, fits: Callable[[float], bool]) -> Callable[[str], float]:
    """A finite number that `fits`, which is `what` the message asks for."""

    def parse(text: str) -> float:
        try:
            value = float(text) if text.isascii() else math.nan
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and fits(value)):
            raise ValueError(f"{text!r} is not {what}")
        return value

    return checked(parse)
