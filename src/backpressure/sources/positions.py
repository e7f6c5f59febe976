"""Positions: how far files have been read and delivered.

They are kept across restarts in one small JSON file.

A position is committed only when all before it is settled: after a crash reading goes
on there, so a line may come twice and none is lost, also where the buffer is in memory
only. (A buffer with a directory keeps what it has accepted, so there a position is
committed at once.)

A file is known by device, inode and a checksum of its beginning: inodes are reused, and
any file can have any name.

The state file is replaced whole: written beside, synced, renamed. One that cannot be
read is refused with its name; it is never overwritten unread.

Thread safety: any number of threads. One lock guards the positions, another one the
saving, which waits for the disk.
"""

from __future__ import annotations

import json
import os
import threading
import zlib
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from backpressure.sources.base import Marks

__all__ = ["HEAD_BYTES", "FileId", "Positions", "head_of"]

#: Bytes at a file's beginning that tell it from others: more than common headers of log
#: files have.
HEAD_BYTES = 1024
# Positions that may wait for delivery; beyond that the newest ones are merged, which
# only makes them coarser.
_MOST_PENDING = 4096
# Values that a state file may have: none that a system call would refuse later.
_MOST = {"offset": (1 << 63) - 1, "head_bytes": HEAD_BYTES}


@dataclass(frozen=True, slots=True)
class FileId:
    """What tells a file from others.

    `head` is the CRC-32 of its first `head_bytes` bytes.
    """

    dev: int
    ino: int
    head: int
    head_bytes: int

    def fits(self, fd: int) -> bool:
        """Whether the open file `fd` is this one."""
        found = os.fstat(fd)
        return (found.st_dev, found.st_ino) == (self.dev, self.ino) and head_of(
            fd, self.head_bytes
        ) == self.head


def head_of(fd: int, nbytes: int) -> int:
    """CRC-32 of the first bytes of a file."""
    return zlib.crc32(os.pread(fd, nbytes, 0))


class Positions:
    """Positions by path.

    path: the state file; None keeps them in memory only. ValueError where it is not
        one.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self._path = None if path is None else Path(path)
        self._lock = threading.Lock()
        self._saving = threading.Lock()
        self._kept: dict[str, tuple[FileId, int]] = {}
        self._pending: deque[tuple[Marks, str, FileId, int]] = deque()
        self._changed = False
        if self._path is not None:
            self._load(self._path)

    def get(self, path: str) -> tuple[FileId, int] | None:
        """The file last read under that path, and its committed offset in bytes."""
        with self._lock:
            return self._kept.get(path)

    def note(self, path: str, file: FileId, offset: int, marks: Marks) -> None:
        """The file has been read to `offset`.

        It is committed once the lanes have delivered up to `marks`.
        """
        with self._lock:
            if len(self._pending) >= _MOST_PENDING and self._pending[-1][1] == path:
                self._pending.pop()
            self._pending.append((marks, path, file, offset))

    def commit(self, delivered: Sequence[int]) -> None:
        """Commit the positions whose marks are reached.

        delivered: for each priority, the number below which its events are settled.
        """
        with self._lock:
            while self._pending and all(
                there >= mark for there, mark in zip(delivered, self._pending[0][0], strict=True)
            ):
                _, path, file, offset = self._pending.popleft()
                self._kept[path] = (file, offset)
                self._changed = True

    def save(self) -> None:
        """Write the state file where something has changed. OSError."""
        with self._saving:
            with self._lock:
                if self._path is None or not self._changed:
                    return
                self._changed = False
                text = json.dumps(
                    {
                        "version": 1,
                        "files": {
                            path: {**asdict(file), "offset": at}
                            for path, (file, at) in self._kept.items()
                        },
                    },
                    indent=1,
                )
            try:
                _replace_file(self._path, text.encode())
            except BaseException:
                with self._lock:
                    self._changed = True
                raise

    def _load(self, path: Path) -> None:
        try:
            state = json.loads(path.read_bytes())
            if state["version"] != 1:
                raise ValueError(f"its version is {state['version']}")
            for name, one in state["files"].items():
                for what, value in one.items():
                    if type(value) is not int or not 0 <= value <= _MOST.get(what, (1 << 64) - 1):
                        raise ValueError(f"{what} of {name!r} is {value!r:.40}")
                offset = one.pop("offset")
                self._kept[name] = (FileId(**one), offset)
        except FileNotFoundError:
            if not path.parent.is_dir():
                raise ValueError(f"{path.parent}: there is no such directory") from None
        # JSON that is nested too deep is a RecursionError.
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"{path}: this is no state file of forebay ({error}); move it away to begin anew"
            ) from error


def _replace_file(path: Path, content: bytes) -> None:
    """Replace a file so that a crash leaves either the old or the new content."""
    beside = path.with_name(path.name + ".new")
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(fd, content)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.replace(beside, path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
