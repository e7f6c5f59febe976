"""A buffer's directory as those see it that only look: without its lock, and so beside
a running owner.

What an owner does meanwhile is met in one way: files that it deletes between a listing
and an open are looked for again. They held nothing that was still owed.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Final, NamedTuple
from uuid import UUID

from backpressure.base.priority import PRIORITY_LEVELS
from backpressure.spill.directory import read_buffer_id
from backpressure.spill.files import READ, Files, LocalFileSystem
from backpressure.spill.recovery import Recovered, recover

if sys.platform != "win32":
    import fcntl

__all__ = [
    "BufferView",
    "LaneView",
    "NotABuffer",
    "Owner",
    "describe_owner",
    "find_owner",
    "look_at_buffer",
    "look_at_lane",
]

#: Number of the dead letters, beside the priorities.
DEAD_LETTERS: Final = 0
# A lane whose owner deletes files in the midst of each of so many listings is not being
# read but raced.
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
    #: "sound", "damaged": one copy is, or "missing": then the segments' headers say
    #: whose it is, or nothing does.
    manifest: str
    owner: Owner | None
    #: When somebody last became the owner, as the lock file's time in ns; 0: nobody
    #: ever did.
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

    The lock itself is asked, since a process id may be another's by now, or of another
    container. Where nobody has it, it is held for an instant, shared, so that two that
    look do not take each other for an owner.
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


def describe_owner(owner: Owner) -> str:
    return "another process" if owner.pid is None else f"process {owner.pid}"
