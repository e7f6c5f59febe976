"""File systems for tests: one in memory that loses power, and a wrapper that records calls or makes them fail.

They stand in for `backpressure.spill.LocalFileSystem`, and are importable from `backpressure.testing`. `CrashingFileSystem` keeps
apart what was made durable and what was only written, and yields what a disk may hold after power loss, as ALICE (Pillai et
al., OSDI '14) does: un-synced writes may have reached it or not, each by itself, whole or by sectors, and so may
un-synced changes of directories. `FaultyFileSystem` fails the k-th call, as SQLite's I/O-error tests do.
"""

from __future__ import annotations

import errno
import os
import posixpath
import random
from collections.abc import Callable, Container
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

from backpressure.spill.files import FileSystem

__all__ = ["Call", "CrashingFileSystem", "FaultyFileSystem", "PowerLoss", "RecordingFileSystem"]

SECTOR_BYTES: Final = 512  # what a disk writes whole or not at all

_T = TypeVar("_T")


class PowerLoss(BaseException):
    """Raised by a RecordingFileSystem when its time has come; no `except Exception` stops it."""


class Call(NamedTuple):
    """One call: its name, the path (also where a descriptor was given), and the other arguments."""

    name: str
    path: str
    arguments: tuple[Any, ...]


# ---------------------------------------------------------------- in memory


class _File:
    """Content as processes see it, as the disk has it for certain, and what was done since: (offset, bytes), or a new size."""

    def __init__(self, synced: bytes = b"") -> None:
        self.live = bytearray(synced)
        self.synced = bytearray(synced)
        self.pending: list[tuple[int, bytes] | int] = []
        self.locked_by: int | None = None


class _Directory:
    """Names as processes see them, as the disk has them, and what was done since: (name, what it names or None), as steps."""

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

    capacity: bytes in all files together, beyond which a write is cut short or fails with ENOSPC.

    >>> disk = CrashingFileSystem()
    >>> fd = disk.open("/log", os.O_RDWR | os.O_CREAT)
    >>> disk.pwrite(fd, b"written, not synced", 0)
    19
    >>> sorted({tuple(disk.image(random.Random(seed)).listdir("/")) for seed in range(9)})
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
        """The process dies: its descriptors are closed, and nothing else happens."""
        for fd in list(self._descriptors):
            self.close(fd)

    @property
    def used_bytes(self) -> int:
        """Sum of the sizes of all files that have a name."""
        return _used(self._root)

    def image(self, rng: random.Random) -> CrashingFileSystem:
        """What the disk may hold after power loss at this moment: all of it durable, and in a state that processes see."""
        after = CrashingFileSystem(capacity=self.capacity, seed=rng.randrange(1 << 32))
        # All kept, all lost, an ordered part, or each by itself: the first two are rare among the last, and telling.
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
        """What an fsync that fails does on ext4, XFS and Btrfs: the pages count as clean, and never reach the disk."""
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


# ---------------------------------------------------------------- around another


class RecordingFileSystem:
    """Passes every call on to `inner` and keeps a record of it.

    crash_at: the number of the call, from 1, instead of which PowerLoss is raised, as for all that follow.
    """

    def __init__(self, inner: FileSystem, *, crash_at: int | None = None) -> None:
        self.inner = inner
        self.crash_at = crash_at
        #: Every call, also those that failed.
        self.calls: list[Call] = []
        self._paths: dict[int, str] = {}

    def _make(self, name: str, path: str, arguments: tuple[Any, ...], call: Callable[[], _T]) -> _T:
        self.calls.append(Call(name, path, arguments))
        if self.crash_at is not None and len(self.calls) >= self.crash_at:
            raise PowerLoss
        return self._answer(name, call, arguments)

    def _answer(self, name: str, call: Callable[[], _T], arguments: tuple[Any, ...]) -> _T:
        return call()

    def _path(self, fd: int) -> str:
        return self._paths.get(fd, "?")

    def open(self, path: str, flags: int) -> int:
        fd = self._make("open", path, (flags,), lambda: self.inner.open(path, flags))
        self._paths[fd] = path
        return fd

    def close(self, fd: int) -> None:
        self._make("close", self._path(fd), (fd,), lambda: self.inner.close(fd))

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        return self._make(
            "pread", self._path(fd), (fd, size, offset), lambda: self.inner.pread(fd, size, offset)
        )

    def pwrite(self, fd: int, data: Any, offset: int) -> int:
        return self._make(
            "pwrite",
            self._path(fd),
            (fd, data, offset),
            lambda: self.inner.pwrite(fd, data, offset),
        )

    def truncate(self, fd: int, size: int) -> None:
        self._make("truncate", self._path(fd), (fd, size), lambda: self.inner.truncate(fd, size))

    def size(self, fd: int) -> int:
        return self._make("size", self._path(fd), (fd,), lambda: self.inner.size(fd))

    def allocate(self, fd: int, size: int) -> None:
        self._make("allocate", self._path(fd), (fd, size), lambda: self.inner.allocate(fd, size))

    def fsync(self, fd: int) -> None:
        self._make("fsync", self._path(fd), (fd,), lambda: self.inner.fsync(fd))

    def fdatasync(self, fd: int) -> None:
        self._make("fdatasync", self._path(fd), (fd,), lambda: self.inner.fdatasync(fd))

    def rename(self, old: str, new: str) -> None:
        self._make("rename", new, (old,), lambda: self.inner.rename(old, new))
        self._paths = {fd: new if path == old else path for fd, path in self._paths.items()}

    def unlink(self, path: str) -> None:
        self._make("unlink", path, (), lambda: self.inner.unlink(path))

    def mkdir(self, path: str) -> None:
        self._make("mkdir", path, (), lambda: self.inner.mkdir(path))

    def listdir(self, path: str) -> list[str]:
        return self._make("listdir", path, (), lambda: self.inner.listdir(path))

    def sync_directory(self, path: str) -> None:
        self._make("sync_directory", path, (), lambda: self.inner.sync_directory(path))

    def lock(self, fd: int) -> None:
        self._make("lock", self._path(fd), (fd,), lambda: self.inner.lock(fd))

    def random_bytes(self, size: int) -> bytes:
        return self.inner.random_bytes(size)


class FaultyFileSystem(RecordingFileSystem):
    """Fails the call number `fail_at`, counted from 1 among those called `only`, and with `sticky` all that follow.

    error: an errno, EINTR among them. None: a write comes to half its length, and is no error. A write that fails has written
    half before. A close that fails has closed. An fsync that fails loses what was not durable, where `inner` knows how
    (`lose_unsynced`).
    """

    def __init__(
        self, inner: FileSystem, *, fail_at: int, error: int | None = errno.EIO, sticky: bool = False,
        only: Container[str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(inner)
        self.fail_at = fail_at
        self.error = error
        self.sticky = sticky
        self.only = only
        #: How many calls have failed.
        self.failures = 0
        self._count = 0

    def _answer(self, name: str, call: Callable[[], _T], arguments: tuple[Any, ...]) -> _T:
        if self.only is not None and name not in self.only:
            return call()
        self._count += 1
        if self._count < self.fail_at or (self._count > self.fail_at and not self.sticky):
            return call()
        if self.error is None and name != "pwrite":
            return call()
        self.failures += 1
        if name == "pwrite" and self.error != errno.EINTR:
            fd, data, offset = arguments
            half: Any = self.inner.pwrite(fd, memoryview(data)[: (len(data) + 1) // 2], offset)
            if self.error is None:
                return half  # type: ignore[no-any-return]
        elif name == "close":
            call()
        elif (
            name in ("fsync", "fdatasync")
            and self.error != errno.EINTR
            and hasattr(self.inner, "lose_unsynced")
        ):
            self.inner.lose_unsynced(arguments[0])
        raise _error(self.error or errno.EIO)


def _error(number: int, path: str | None = None) -> OSError:
    return (
        OSError(number, os.strerror(number))
        if path is None
        else OSError(number, os.strerror(number), path)
    )
