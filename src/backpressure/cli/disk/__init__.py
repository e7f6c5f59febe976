"""A buffer's directory as the commands see it that only look: without its lock, and so beside a running owner.

What an owner does meanwhile is met in one way: files that it deletes between a listing and an open are looked for again. They
held nothing that was still owed.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple
from uuid import UUID

from backpressure.base.errors import BackpressureError, DirectoryInUse
from backpressure.base.priority import PRIORITY_LEVELS
from backpressure.cli.progress import make_display
from backpressure.spill.directory import read_buffer_id
from backpressure.spill.files import READ, Files, LocalFileSystem
from backpressure.spill.recovery import Recovered, recover

if sys.platform != "win32":
    import fcntl

__all__ = [
    "BY_SIGNAL",
    "FAILED",
    "IN_USE",
    "OK",
    "USAGE",
    "BufferView",
    "LaneView",
    "NotABuffer",
    "Owner",
    "Ticker",
    "find_owner",
    "look_at_buffer",
    "look_at_lane",
    "make_parser",
    "refuse_owner",
    "run_command",
    "say",
]

OK, FAILED, USAGE, IN_USE = 0, 1, 2, 3
BY_SIGNAL: Final = 128  # the shell's convention: 130 for SIGINT

#: Number of the dead letters, beside the priorities.
DEAD_LETTERS: Final = 0
# A lane whose owner deletes files in the midst of each of so many listings is not being read but raced.
_LOOKS: Final = 100


class NotABuffer(Exception):
    """The path is not the directory of a buffer."""


class Owner(NamedTuple):
    """Who has a directory open."""

    pid: int | None  #: as the lock file says; None where it says nothing


class LaneView(NamedTuple):
    """The files of one priority, or of the dead letters."""

    number: int  #: 1 to 5, or 0 for the dead letters
    path: str

    @property
    def title(self) -> str:
        return f"priority {self.number}" if self.number else "dead letters"

    @property
    def ring_path(self) -> str:
        return os.path.join(self.path, "ring")


@dataclass(frozen=True, slots=True, kw_only=True)
class BufferView:
    """A directory at one moment."""

    path: str
    buffer_id: UUID
    #: "sound", "damaged": one copy is, or "missing": then the segments' headers say whose it is, or nothing does.
    manifest: str
    owner: Owner | None
    #: When somebody last became the owner, as the lock file's time in ns; 0: nobody ever did.
    owned_ns: int
    lanes: tuple[LaneView, ...]  #: the most urgent first; what was never made is not there
    dead_letters: LaneView | None
    files: Files

    def everything(self) -> tuple[LaneView, ...]:
        """The lanes, then the dead letters."""
        return self.lanes if self.dead_letters is None else (*self.lanes, self.dead_letters)

    def had_owner_since(self) -> bool:
        """Whether somebody has opened the directory after this look at it."""
        return _owned_ns(self.path) != self.owned_ns


def look_at_buffer(path: str) -> BufferView:
    """Raises NotABuffer, FormatError for what a later release wrote, OSError."""
    if not os.path.isdir(path):
        raise NotABuffer(f"{path} is not a directory")
    files = Files(LocalFileSystem())
    lanes = tuple(
        LaneView(priority, os.path.join(path, f"lane-{priority}"))
        for priority in range(1, PRIORITY_LEVELS + 1)
        if os.path.isdir(os.path.join(path, f"lane-{priority}"))
    )
    letters = LaneView(DEAD_LETTERS, os.path.join(path, "dead-letters"))
    has_manifest = os.path.exists(os.path.join(path, "manifest"))
    if not has_manifest and not lanes:
        raise NotABuffer(
            f"{path} is not the directory of a buffer: it has neither a manifest nor lanes"
        )
    owned_ns = _owned_ns(path)  # asked first: of who comes later had_owner_since() will tell
    found = read_buffer_id(files, path)
    buffer_id, sound = found if found is not None else (UUID(int=0), False)
    return BufferView(
        path=path,
        buffer_id=buffer_id,
        manifest="sound" if sound else "damaged" if has_manifest else "missing",
        owner=find_owner(path),
        owned_ns=owned_ns,
        lanes=lanes,
        dead_letters=letters if os.path.isdir(letters.path) else None,
        files=files,
    )


def look_at_lane(view: BufferView, lane: LaneView) -> Recovered:
    """What a lane's directory says of itself. Raises FormatError, OSError."""
    for _ in range(_LOOKS):
        try:
            return recover(view.files, lane.path, lane.number, view.buffer_id)
        except FileNotFoundError:
            if not os.path.isdir(lane.path):
                raise
    return recover(view.files, lane.path, lane.number, view.buffer_id)


def find_owner(path: str) -> Owner | None:
    """The process that has the directory open, or None.

    The lock itself is asked, since a process id may be another's by now, or of another container. Where nobody has it, it is
    held for an instant, shared, so that two that look do not take each other for an owner.
    """
    try:
        fd = os.open(os.path.join(path, "lock"), READ)
    except FileNotFoundError:
        return None
    try:
        text = os.pread(fd, 32, 0).strip()
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return Owner(int(text) if text.isdigit() else None)
        return None
    finally:
        os.close(fd)


def _owned_ns(path: str) -> int:
    try:
        return os.stat(os.path.join(path, "lock")).st_mtime_ns
    except FileNotFoundError:
        return 0


def refuse_owner(view: BufferView, command: str) -> None:
    """Raise DirectoryInUse if somebody has the directory."""
    if view.owner is not None:
        raise DirectoryInUse(
            f"{view.path} is in use by {describe_owner(view.owner)}: {command} changes it, so end that one first; "
            f"inspect, verify, export and dlq list work beside it"
        )


def describe_owner(owner: Owner) -> str:
    return "another process" if owner.pid is None else f"process {owner.pid}"


# ---------------------------------------------------------------- around every command

_EXIT_CODES: Final = """\
exit codes:
  {ok}
  {failed}
  2    the command line is wrong, or DIR is not the directory of a buffer; nothing was done{in_use}
  130  ended by Ctrl-C
"""


def make_parser(
    name: str, description: str, *, ok: str, failed: str, changes: bool = False
) -> argparse.ArgumentParser:
    """A parser with DIR, --json and --quiet, whose help tells the exit codes."""
    in_use = "\n  3    another process has the directory open; nothing was done" if changes else ""
    parser = argparse.ArgumentParser(
        prog=f"forebay {name}",
        description=description,
        epilog=_EXIT_CODES.format(ok=f"0    {ok}", failed=f"1    {failed}", in_use=in_use),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
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
        return _end(str(error), USAGE)
    except DirectoryInUse as error:
        return _end(str(error), IN_USE)
    except BackpressureError as error:
        return _end(str(error), FAILED)
    except BrokenPipeError:
        # Whoever reads has enough. What is still in the buffers would raise again at the exit of the interpreter.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        return _end(f"{error.filename or options.directory}: {error.strerror or error}", FAILED)
    except KeyboardInterrupt:
        return _end("interrupted", BY_SIGNAL + signal.SIGINT)


def say(text: str) -> None:
    print(f"forebay: {text}", file=sys.stderr, flush=True)


def _end(text: str, code: int) -> int:
    say(text)
    return code


class Ticker:
    """Shows how far a long command is, as often as the display likes it. Use as a context manager."""

    def __init__(self, options: argparse.Namespace, total_bytes: int | None = None) -> None:
        self._display = make_display(quiet=options.quiet, total_bytes=total_bytes)
        self._total = total_bytes
        self._shown = time.monotonic()
        #: What was done before what advance() speaks of.
        self.nbytes = 0

    def advance(self, nbytes: int, what: str) -> None:
        """So many bytes more are done."""
        self.nbytes += nbytes
        now = time.monotonic()
        if now - self._shown >= self._display.interval:
            self._shown = now
            of = f" of {self._total / 1e6:,.1f} MB" if self._total else " MB"
            self._display.show(f"{what}: {self.nbytes / 1e6:,.1f}{of}", self.nbytes)

    def __enter__(self) -> Ticker:
        return self

    def __exit__(self, *_: Any) -> None:
        self._display.finish(())
