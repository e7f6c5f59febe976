"""Positions: how far files have been read and delivered.

They are kept across restarts in one small JSON file: the places of each followed path,
oldest file first (`file_id.py` says how a file is known), and the patterns that were
followed before, whose new files are read from their beginning.

A position is committed only when all before it is settled: after a crash reading goes
on there, so a line may come twice and none is lost, also where the buffer is in memory
only. (A buffer with a directory keeps what it has accepted, so there a position is
committed at once.)

The state file is replaced whole: written beside, every byte of it, synced, renamed. One
that cannot be read is refused with its name; it is never overwritten unread. Version 1,
with one file a path, is read; an older forebay refuses version 2 by its number.

Thread safety: any number of threads. One lock guards the positions, another one the
saving, which waits for the disk.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, TypeAlias

from backpressure.sources.base import Marks
from backpressure.sources.file_id import HEAD_BYTES, FileId, Place

__all__ = ["Positions"]

# Positions that may wait for delivery; beyond that those of one file are merged, which
# only makes them coarser.
_MOST_PENDING: Final = 4096
# Values that a state file may have: none that a system call would refuse later.
_MOST: Final = {"offset": (1 << 63) - 1, "head_bytes": HEAD_BYTES, "mtime_ns": (1 << 63) - 1}
# Seconds after which a place is dropped whose path does not exist and that no source
# asked for: its source is no longer in the configuration.
_UNCLAIMED_SECONDS: Final = 30 * 86_400

_Key: TypeAlias = tuple[str, int, int, int]


class _Pending:
    """A position that waits for delivery. place: None, the file is forgotten."""

    __slots__ = ("key", "marks", "place")

    def __init__(self, key: _Key, place: Place | None, marks: Marks) -> None:
        self.key, self.place, self.marks = key, place, marks


class Positions:
    """Places by path.

    path: the state file; None keeps them in memory only. ValueError where it is not
        one.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self._path = None if path is None else Path(path)
        self._lock = threading.Lock()
        self._saving = threading.Lock()
        self._kept: dict[str, dict[_Key, Place]] = {}
        self._patterns: set[str] = set()
        self._pending: deque[_Pending] = deque()
        self._latest: dict[_Key, _Pending] = {}
        self._changed = False
        #: When the state file was last written, as time.time_ns(); 0: never.
        self.saved_ns = 0
        if self._path is not None:
            self._load(self._path)

    def get(self, path: str) -> list[Place]:
        """The committed places of the files followed under that path, oldest first."""
        with self._lock:
            return list(self._kept.get(path, {}).values())

    def paths(self) -> list[str]:
        """All paths with a committed place."""
        with self._lock:
            return list(self._kept)

    def begin(self, pattern: str) -> bool:
        """Note that the pattern is followed from now on; whether it was before."""
        with self._lock:
            before = pattern in self._patterns
            self._patterns.add(pattern)
            self._changed |= not before
            return before

    def note(self, path: str, place: Place, marks: Marks = ()) -> None:
        """The file has been read to that place.

        It is committed once the lanes have delivered up to `marks`, and all that was
        noted before it is committed. Without marks it waits for nothing of its own.
        """
        self._add(_key(path, place.file), place, marks)

    def forget(self, path: str, file: FileId) -> None:
        """The file is gone; its place goes once all before it is committed."""
        self._add(_key(path, file), None, ())

    def commit(self, delivered: Sequence[int]) -> None:
        """Commit the positions whose marks are reached.

        delivered: for each priority, the number below which its events are settled.
        """
        with self._lock:
            while self._pending and (
                not self._pending[0].marks
                or all(
                    there >= mark
                    for there, mark in zip(delivered, self._pending[0].marks, strict=True)
                )
            ):
                one = self._pending.popleft()
                if self._latest.get(one.key) is one:
                    del self._latest[one.key]
                path = one.key[0]
                if one.place is not None:
                    self._kept.setdefault(path, {})[one.key] = one.place
                elif path in self._kept:
                    self._kept[path].pop(one.key, None)
                    if not self._kept[path]:
                        del self._kept[path]
                self._changed = True

    def save(self) -> None:
        """Write the state file where something has changed. OSError."""
        with self._saving:
            with self._lock:
                if self._path is None or not self._changed:
                    return
                self._changed = False
                state: dict[str, Any] = {
                    "version": 2,
                    "patterns": sorted(self._patterns),
                    "files": [
                        _as_entry(path, place)
                        for path, places in self._kept.items()
                        for place in places.values()
                    ],
                }
            # A line for each file: for people, and half as long as with one a value.
            lines = [
                f"{json.dumps(name)}: "
                + (
                    "[\n" + ",\n".join(map(json.dumps, value)) + "\n]"
                    if isinstance(value, list)
                    else json.dumps(value)
                )
                for name, value in state.items()
            ]
            try:
                _replace_file(self._path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())
            except BaseException:
                with self._lock:
                    self._changed = True
                raise

    def _add(self, key: _Key, place: Place | None, marks: Marks) -> None:
        with self._lock:
            latest = self._latest.get(key)
            if latest is not None and len(self._pending) >= _MOST_PENDING:
                # Its marks are those of a later time: what stands behind it waits
                # longer than need be.
                latest.place, latest.marks = place, marks or latest.marks
                return
            self._latest[key] = one = _Pending(key, place, marks)
            self._pending.append(one)

    # ------------------------------------------------------------ the state file

    def _load(self, path: Path) -> None:
        try:
            state = json.loads(path.read_bytes())
            self.saved_ns = os.stat(path).st_mtime_ns
            version = state["version"]
            if type(version) is not int or version not in (1, 2):
                raise ValueError(f"its version is {version}")
            entries = (
                [(name, one) for name, one in state["files"].items()]
                if version == 1
                else [(_popped_path(one), one) for one in state["files"]]
            )
            for name, one in entries:
                place = _as_place(name, one)
                if not _is_long_gone(name, place):
                    self._kept.setdefault(name, {})[_key(name, place.file)] = place
            for pattern in state["patterns"] if version == 2 else ():
                if not isinstance(pattern, str):
                    raise ValueError(f"a pattern is {pattern!r:.40}")
                self._patterns.add(pattern)
        except FileNotFoundError:
            if not path.parent.is_dir():
                raise ValueError(f"{path.parent}: there is no such directory") from None
        # JSON that is nested too deep is a RecursionError.
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"{path}: this is no state file of forebay ({error}); move it away to begin anew"
            ) from error


def _key(path: str, file: FileId) -> _Key:
    return path, file.dev, file.ino, file.generation


def _as_entry(path: str, place: Place) -> dict[str, Any]:
    own = {name: getattr(place, name) for name in ("offset", "tail", "mtime_ns")}
    return {"path": path, **asdict(place.file), **own, **({"done": True} if place.done else {})}


def _popped_path(entry: Any) -> str:
    path = entry.pop("path")
    if not isinstance(path, str):
        raise ValueError(f"a path is {path!r:.40}")
    return path


def _as_place(path: str, entry: Mapping[str, Any]) -> Place:
    values = dict(entry)
    done = values.pop("done", False)
    if type(done) is not bool:
        raise ValueError(f"done of {path!r} is {done!r:.40}")
    for what, value in values.items():
        if what == "tail" and value is None:
            continue
        if type(value) is not int or not 0 <= value <= _MOST.get(what, (1 << 64) - 1):
            raise ValueError(f"{what} of {path!r} is {value!r:.40}")
    offset, tail = values.pop("offset"), values.pop("tail", None)
    mtime_ns = values.pop("mtime_ns", 0)
    return Place(FileId(**values), offset, tail, mtime_ns, done)


def _is_long_gone(path: str, place: Place) -> bool:
    age = time.time() - place.mtime_ns / 1e9
    try:
        return place.mtime_ns > 0 and age > _UNCLAIMED_SECONDS and not os.path.lexists(path)
    except ValueError:  # a NUL in the path
        raise ValueError(f"{path!r:.40} is no path") from None


def _replace_file(path: Path, content: bytes) -> None:
    """Replace a file so that a crash, or a full disk, leaves either the old or the new
    content.
    """
    beside = path.with_name(path.name + ".new")
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        try:
            rest = memoryview(content)
            while rest:
                # On a full disk a part is written, and only the next call fails.
                rest = rest[os.write(fd, rest) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(beside)  # half of it helps nobody, and takes room
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
