"""What the commands on a buffer's directory share: parser, exit codes, progress."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from backpressure.base.errors import BackpressureError, DirectoryInUse
from backpressure.base.wording import reason
from backpressure.cli.common import BY_CTRL_C, FAILED, IN_USE, OK, USAGE, command_parser, say
from backpressure.cli.progress import make_display, megabytes
from backpressure.spill.offline.directory_view import BufferView, NotABuffer, describe_owner
from backpressure.spill.runs import Lost

__all__ = [
    "Ticker",
    "loss_report",
    "make_parser",
    "owner_report",
    "refuse_owner",
    "run_command",
]


def refuse_owner(view: BufferView, command: str) -> None:
    """Raise DirectoryInUse if a process has the directory open."""
    if view.owner is not None:
        raise DirectoryInUse(
            f"{view.path} is in use by {describe_owner(view.owner)}: "
            f"{command} changes it, so end that one first; "
            "inspect, verify, export and dlq list work beside it"
        )


def owner_report(view: BufferView) -> dict[str, Any] | None:
    """The owner as --json shows it."""
    return None if view.owner is None else {"pid": view.owner.pid}


def loss_report(lost: Lost) -> dict[str, Any]:
    """Numbers that are lost as --json shows them, the last one included."""
    return {
        "first_seq": lost.first_seq,
        "last_seq": lost.end_seq - 1,
        "events": lost.events,
        "reason": lost.reason,
    }


def make_parser(
    name: str, description: str, *, ok: str, failed: str, changes: bool = False
) -> argparse.ArgumentParser:
    """A parser with DIR, --json and --quiet, whose help lists the exit codes."""
    codes = {
        OK: ok,
        FAILED: failed,
        USAGE: "the command line is wrong, or DIR is not the directory of a buffer; "
        "nothing was done",
    }
    if changes:
        codes[IN_USE] = "another process has the directory open; nothing was done"
    codes[BY_CTRL_C] = "ended by Ctrl-C"
    parser = command_parser(name, description, codes)
    parser.add_argument("directory", metavar="DIR", help="the directory of a buffer")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.add_argument("--quiet", action="store_true", help="show only what went wrong")
    return parser


def run_command(
    command: Callable[[argparse.Namespace], int],
    parser: argparse.ArgumentParser,
    argv: Sequence[str],
) -> int:
    """Parse, run, and turn what is raised into a message and an exit code."""
    options = parser.parse_args(argv)
    try:
        code = command(options)
        sys.stdout.flush()
        return code
    except NotABuffer as error:
        return _end_with(str(error), USAGE)
    except DirectoryInUse as error:
        return _end_with(str(error), IN_USE)
    except BackpressureError as error:
        return _end_with(str(error), FAILED)
    except BrokenPipeError:
        # The reader of stdout has closed it. What is still buffered would raise again
        # when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        return _end_with(reason(error, options.directory), FAILED)
    except KeyboardInterrupt:
        return _end_with("interrupted", BY_CTRL_C)


def _end_with(text: str, code: int) -> int:
    """Say why, and return the exit code."""
    say(text)
    return code


class Ticker:
    """Shows how far a long command is, as often as the display wants it.

    Use as a context manager.
    """

    def __init__(self, options: argparse.Namespace, total_bytes: int | None = None) -> None:
        self._display = make_display(quiet=options.quiet, total_bytes=total_bytes)
        self._total = total_bytes
        self._shown = time.monotonic()
        #: Bytes done so far.
        self.nbytes = 0

    def advance(self, nbytes: int, what: str) -> None:
        """That many bytes more are done, of what `what` names."""
        self.nbytes += nbytes
        now = time.monotonic()
        if now - self._shown >= self._display.interval:
            self._shown = now
            of = f" of {megabytes(self._total)}" if self._total else ""
            self._display.show(f"{what}: {megabytes(self.nbytes)}{of}", self.nbytes)

    def __enter__(self) -> Ticker:
        return self

    def __exit__(self, *_: Any) -> None:
        self._display.finish(())
