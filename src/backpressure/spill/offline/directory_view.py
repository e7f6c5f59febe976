"""A buffer's directory seen from outside.

It is read without its lock, and so beside a running owner; always in the real file
system.

A file that the owner deletes between a listing and an open makes the listing start
again. It held nothing that was still owed.
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

#: The lane number of the dead letters; the others are the priorities.
DEAD_LETTERS: Final = 0
# An owner that deletes files during each of this many listings in a row is too busy for
# its directory to be read.
_TRIES: Final = 100


class NotABuffer(Exception):
    """The path is not the directory of a buffer."""


class Owner(NamedTuple):
    """The process that has a directory open."""

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
    #: "sound", "damaged" (one copy or both are) or "missing". Then the UUID comes from
    #: the headers of the segments; it is 0 where there are none.
    manifest: str
    owner: Owner | None
    #: When a process last became the owner, as the lock file's time in ns; 0: none did.
    owned_ns: int
    lanes: tuple[LaneView, ...]  #: those that exist, the most urgent first
    dead_letters: LaneView | None
    files: Files

    def everything(self) -> tuple[LaneView, ...]:
        """The lanes, then the dead letters."""
        return self.lanes if self.dead_letters is None else (*self.lanes, self.dead_letters)

    def had_owner_since(self) -> bool:
        """Whether a process has opened the directory after this view was made."""
        return _owned_ns(self.path) != self.owned_ns


def look_at_buffer(path: str) -> BufferView:
    """The buffer's directory at `path`.

    Raises NotABuffer, FormatError for what a later release wrote, OSError.
    """
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
    owned_ns = _owned_ns(path)  # first, so that had_owner_since() misses no owner
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
    """What a lane's directory says about itself. Raises FormatError, OSError."""
    for _ in range(_TRIES):
        try:
            return recover(view.files, lane.path, lane.number, view.buffer_id)
        except FileNotFoundError:
            if not os.path.isdir(lane.path):
                raise
    return recover(view.files, lane.path, lane.number, view.buffer_id)


def find_owner(path: str) -> Owner | None:
    """The process that has the directory open, or None.

    The lock itself is tested, since a process id may belong to another process by now,
    or to another container. Where it is free, the test holds it for an instant, shared,
    so that two tests at once do not take each other for an owner.
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
