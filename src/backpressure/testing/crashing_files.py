"""A file system in memory that loses power.

It replaces `backpressure.spill.LocalFileSystem`. It tells what was made durable from
what was only written, and yields what a disk may hold after power loss, as ALICE
(Pillai et al., OSDI '14) does: un-synced writes may have reached it or not, each by
itself, whole or by sectors, and so may un-synced changes of directories.
"""

from __future__ import annotations

import errno
import os
import posixpath
import random
from collections.abc import Callable
from typing import Any, Final, TypeAlias

__all__ = ["CrashingFileSystem"]

SECTOR_BYTES: Final = 512  # what a disk writes whole or not at all


class _File:
    """A file: its content for processes, on the disk, and the changes between.

    A change is (offset, bytes), or a new size.
    """

    def __init__(self, synced: bytes = b"") -> None:
        self.live = bytearray(synced)
        self.synced = bytearray(synced)
        self.pending: list[tuple[int, bytes] | int] = []
        self.locked_by: int | None = None


class _Directory:
    """A directory: its names for processes, on the disk, and the steps between.

    A step is one or more of (name, what it names or None).
    """

    def __init__(self) -> None:
        self.live: dict[str, _Node] = {}
        self.synced: dict[str, _Node] = {}
        self.pending: list[tuple[tuple[str, _Node | None], ...]] = []

    def change(self, *step: tuple[str, _Node | None]) -> None:
        _apply_names(self.live, step)
        self.pending.append(step)


_Node: TypeAlias = _File | _Directory


class CrashingFileSystem:
    """A file system in memory. For one thread.

    capacity: bytes in all files together, beyond which a write is cut short or fails
        with ENOSPC.

    >>> disk = CrashingFileSystem()
    >>> fd = disk.open("/log", os.O_RDWR | os.O_CREAT)
    >>> disk.pwrite(fd, b"written, not synced", 0)
    19
    >>> images = [disk.image(random.Random(seed)) for seed in range(9)]
    >>> sorted({tuple(image.listdir("/")) for image in images})
    [(), ('log',)]
    """

    def __init__(self, *, capacity: int | None = None, seed: int = 0) -> None:
        self.capacity = capacity
        self._root = _Directory()
        self._descriptors: dict[int, _File] = {}
        self._next_descriptor = 3
        self._random = random.Random(seed)

    @property
    def open_descriptors(self) -> int:
        """How many are open: 0 after everything was closed."""
        return len(self._descriptors)

    def kill(self) -> None:
        """End the process: its descriptors are closed, and nothing else happens."""
        for fd in list(self._descriptors):
            self.close(fd)

    @property
    def used_bytes(self) -> int:
        """Sum of the sizes of all files that have a name."""
        return _used(self._root)

    def image(self, rng: random.Random) -> CrashingFileSystem:
        """What the disk may hold after power loss at this moment.

        In the new file system all of that is durable, and processes see it.
        """
        after = CrashingFileSystem(capacity=self.capacity, seed=rng.randrange(1 << 32))
        # All kept, all lost, an ordered part, or each by itself: chance alone would
        # seldom keep or lose all.
        fate = rng.choice((_all_kept, _none_kept, _first_ones_kept, _any_kept, _any_kept))
        after._root = _directory_after(self._root, rng, fate)
        return after

    # ------------------------------------------------------------ calls

    def open(self, path: str, flags: int) -> int:
        directory, name = self._parent(path)
        node = directory.live.get(name)
        if node is None:
            if not flags & os.O_CREAT:
                raise _error(errno.ENOENT, path)
            node = _File()
            directory.change((name, node))
        elif flags & os.O_EXCL:
            raise _error(errno.EEXIST, path)
        elif isinstance(node, _Directory):
            raise _error(errno.EISDIR, path)
        fd = self._next_descriptor
        self._next_descriptor += 1
        self._descriptors[fd] = node
        return fd

    def close(self, fd: int) -> None:
        node = self._file(fd)
        del self._descriptors[fd]
        if node.locked_by == fd:
            node.locked_by = None

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        return bytes(self._file(fd).live[offset : offset + size])

    def pwrite(self, fd: int, data: Any, offset: int) -> int:
        node = self._file(fd)
        content = bytes(data)
        if self.capacity is not None:
            growth = max(0, offset + len(content) - len(node.live))
            room = max(0, self.capacity - self.used_bytes)
            if growth > room:
                content = content[: len(content) - growth + room]
                if not content:
                    raise _error(errno.ENOSPC)
        _apply_write(node.live, offset, content)
        node.pending.append((offset, content))
        return len(content)

    def truncate(self, fd: int, size: int) -> None:
        node = self._file(fd)
        _apply_size(node.live, size)
        node.pending.append(size)

    def size(self, fd: int) -> int:
        return len(self._file(fd).live)

    def allocate(self, fd: int, size: int) -> None:
        node = self._file(fd)
        if self.capacity is not None and size - len(node.live) > self.capacity - self.used_bytes:
            raise _error(errno.ENOSPC)
        if size > len(node.live):
            self.truncate(fd, size)

    def fsync(self, fd: int) -> None:
        node = self._file(fd)
        for change in node.pending:
            _apply_change(node.synced, change)
        node.pending.clear()

    def fdatasync(self, fd: int) -> None:
        self.fsync(fd)

    def lose_unsynced(self, fd: int) -> None:
        """Do what a failed fsync does on ext4, XFS and Btrfs.

        The pages count as clean, and never reach the disk.
        """
        self._file(fd).pending.clear()

    def rename(self, old: str, new: str) -> None:
        directory, old_name = self._parent(old)
        other, new_name = self._parent(new)
        node = directory.live.get(old_name)
        if node is None:
            raise _error(errno.ENOENT, old)
        if directory is not other:
            raise _error(errno.EXDEV, new)
        directory.change((old_name, None), (new_name, node))

    def unlink(self, path: str) -> None:
        directory, name = self._parent(path)
        if name not in directory.live:
            raise _error(errno.ENOENT, path)
        directory.change((name, None))

    def mkdir(self, path: str) -> None:
        directory, name = self._parent(path)
        if name in directory.live or not name:
            raise _error(errno.EEXIST, path)
        directory.change((name, _Directory()))

    def listdir(self, path: str) -> list[str]:
        return list(self._directory(path).live)

    def sync_directory(self, path: str) -> None:
        directory = self._directory(path)
        directory.synced = dict(directory.live)
        directory.pending.clear()

    def lock(self, fd: int) -> None:
        node = self._file(fd)
        if node.locked_by is not None:
            raise BlockingIOError(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK))
        node.locked_by = fd

    def random_bytes(self, size: int) -> bytes:
        return self._random.randbytes(size)

    # ------------------------------------------------------------ for tests

    def read_file(self, path: str) -> bytes:
        """All of a file."""
        directory, name = self._parent(path)
        node = directory.live[name]
        assert isinstance(node, _File)
        return bytes(node.live)

    def write_file(self, path: str, content: bytes) -> None:
        """Put a whole file there, durably."""
        directory, name = self._parent(path)
        directory.live[name] = directory.synced[name] = _File(content)

    def _parent(self, path: str) -> tuple[_Directory, str]:
        head, name = posixpath.split(posixpath.normpath(path))
        return self._directory(head), name

    def _directory(self, path: str) -> _Directory:
        node: _Node = self._root
        for name in path.split("/"):
            if name:
                if not isinstance(node, _Directory):
                    raise _error(errno.ENOTDIR, path)
                if name not in node.live:
                    raise _error(errno.ENOENT, path)
                node = node.live[name]
        if not isinstance(node, _Directory):
            raise _error(errno.ENOTDIR, path)
        return node

    def _file(self, fd: int) -> _File:
        if fd not in self._descriptors:
            raise _error(errno.EBADF)
        return self._descriptors[fd]


_Fate: TypeAlias = Callable[[random.Random, int], list[float]]


def _all_kept(rng: random.Random, count: int) -> list[float]:
    return [1.0] * count


def _none_kept(rng: random.Random, count: int) -> list[float]:
    return [0.0] * count


def _first_ones_kept(rng: random.Random, count: int) -> list[float]:
    kept = rng.randint(0, count)
    return [1.0] * kept + [rng.random()] * (count > kept) + [0.0] * (count - kept - 1)


def _any_kept(rng: random.Random, count: int) -> list[float]:
    return [rng.choice((0.0, 1.0, rng.random())) for _ in range(count)]


def _directory_after(before: _Directory, rng: random.Random, fate: _Fate) -> _Directory:
    names = dict(before.synced)
    for step, kept in zip(before.pending, fate(rng, len(before.pending)), strict=True):
        if kept >= 0.5:  # a change of a directory has happened or has not
            _apply_names(names, step)
    after = _Directory()
    for name, node in names.items():
        copy: _Node = (
            _directory_after(node, rng, fate)
            if isinstance(node, _Directory)
            else _file_after(node, rng, fate)
        )
        after.live[name] = after.synced[name] = copy
    return after


def _file_after(before: _File, rng: random.Random, fate: _Fate) -> _File:
    content = bytearray(before.synced)
    for change, kept in zip(before.pending, fate(rng, len(before.pending)), strict=True):
        if kept == 1.0:
            _apply_change(content, change)
        elif kept > 0.0 and isinstance(change, tuple):
            offset, data = change
            first = offset // SECTOR_BYTES
            for sector in range(first, (offset + len(data) - 1) // SECTOR_BYTES + 1):
                if rng.random() < kept:
                    start = max(sector * SECTOR_BYTES, offset)
                    stop = min((sector + 1) * SECTOR_BYTES, offset + len(data))
                    _apply_write(content, start, data[start - offset : stop - offset])
    return _File(bytes(content))


def _apply_change(content: bytearray, change: tuple[int, bytes] | int) -> None:
    if isinstance(change, int):
        _apply_size(content, change)
    else:
        _apply_write(content, *change)


def _apply_write(content: bytearray, offset: int, data: bytes) -> None:
    if offset > len(content):
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(data)] = data


def _apply_size(content: bytearray, size: int) -> None:
    if size < len(content):
        del content[size:]
    else:
        content.extend(bytes(size - len(content)))


def _apply_names(names: dict[str, _Node], step: tuple[tuple[str, _Node | None], ...]) -> None:
    for name, node in step:
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


def _used(directory: _Directory) -> int:
    return sum(
        _used(node) if isinstance(node, _Directory) else len(node.live)
        for node in directory.live.values()
    )


def _error(number: int, path: str | None = None) -> OSError:
    return (
        OSError(number, os.strerror(number))
        if path is None
        else OSError(number, os.strerror(number), path)
    )
