"""Wrappers of a file system: one records every call, one makes chosen calls fail.

They stand in for `backpressure.spill.LocalFileSystem`. `FaultyFileSystem` fails the
k-th call, as SQLite's I/O-error tests do; `RecordingFileSystem` can end with PowerLoss
instead of one.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Container
from typing import Any, NamedTuple, TypeVar

from backpressure.spill.files import FileSystem

__all__ = ["Call", "FaultyFileSystem", "PowerLoss", "RecordingFileSystem"]

_T = TypeVar("_T")


class PowerLoss(BaseException):
    """Raised by a RecordingFileSystem when its time has come; no `except Exception`
    stops it.
    """


class Call(NamedTuple):
    """One call: its name, the path (also where a descriptor was given), and the other
    arguments.
    """

    name: str
    path: str
    arguments: tuple[Any, ...]


class RecordingFileSystem:
    """Passes every call on to `inner` and keeps a record of it.

    crash_at: the number of the call, from 1, instead of which PowerLoss is raised, as
        for all that follow.
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
    """Fails the call number `fail_at`, counted from 1 among those called `only`, and
    with `sticky` all that follow.

    error: an errno, EINTR among them. None: a write comes to half its length, and is no
    error. A write that fails has written half before. A close that fails has closed. An
    fsync that fails loses what was not durable, where `inner` knows how
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
        number = self.error or errno.EIO
        raise OSError(number, os.strerror(number))
