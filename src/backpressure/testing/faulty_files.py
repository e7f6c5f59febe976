"""Wrappers of a file system: one records every call, one makes chosen calls fail.

They replace `backpressure.spill.LocalFileSystem`. `FaultyFileSystem` fails the k-th
call, as SQLite's I/O-error tests do; `RecordingFileSystem` can raise PowerLoss instead
of making it.
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
    """Raised by a RecordingFileSystem at `crash_at`.

    No `except Exception` stops it.
    """


class Call(NamedTuple):
    """One call: name, path and the other arguments.

    The path is there also where a descriptor was given.
    """

    name: str
    path: str
    arguments: tuple[Any, ...]


class RecordingFileSystem:
    """Passes every call on to `inner` and keeps a record of it.

    crash_at: this call, counted from 1, and all that follow raise PowerLoss instead.
    """

    def __init__(self, inner: FileSystem, *, crash_at: int | None = None) -> None:
        self.inner = inner
        self.crash_at = crash_at
        #: Every call, failed ones included.
        self.calls: list[Call] = []
        self._paths: dict[int, str] = {}

    def _record_call(
        self, name: str, path: str, arguments: tuple[Any, ...], call: Callable[[], _T]
    ) -> _T:
        self.calls.append(Call(name, path, arguments))
        if self.crash_at is not None and len(self.calls) >= self.crash_at:
            raise PowerLoss
        return self._make_call(name, call, arguments)

    def _make_call(self, name: str, call: Callable[[], _T], arguments: tuple[Any, ...]) -> _T:
        return call()

    def _path(self, fd: int) -> str:
        return self._paths.get(fd, "?")

    def open(self, path: str, flags: int) -> int:
        fd = self._record_call("open", path, (flags,), lambda: self.inner.open(path, flags))
        self._paths[fd] = path
        return fd

    def close(self, fd: int) -> None:
        self._record_call("close", self._path(fd), (fd,), lambda: self.inner.close(fd))

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        return self._record_call(
            "pread", self._path(fd), (fd, size, offset), lambda: self.inner.pread(fd, size, offset)
        )

    def pwrite(self, fd: int, data: Any, offset: int) -> int:
        return self._record_call(
            "pwrite",
            self._path(fd),
            (fd, data, offset),
            lambda: self.inner.pwrite(fd, data, offset),
        )

    def truncate(self, fd: int, size: int) -> None:
        self._record_call(
            "truncate", self._path(fd), (fd, size), lambda: self.inner.truncate(fd, size)
        )

    def size(self, fd: int) -> int:
        return self._record_call("size", self._path(fd), (fd,), lambda: self.inner.size(fd))

    def allocate(self, fd: int, size: int) -> None:
        self._record_call(
            "allocate", self._path(fd), (fd, size), lambda: self.inner.allocate(fd, size)
        )

    def fsync(self, fd: int) -> None:
        self._record_call("fsync", self._path(fd), (fd,), lambda: self.inner.fsync(fd))

    def fdatasync(self, fd: int) -> None:
        self._record_call("fdatasync", self._path(fd), (fd,), lambda: self.inner.fdatasync(fd))

    def rename(self, old: str, new: str) -> None:
        self._record_call("rename", new, (old,), lambda: self.inner.rename(old, new))
        self._paths = {fd: new if path == old else path for fd, path in self._paths.items()}

    def unlink(self, path: str) -> None:
        self._record_call("unlink", path, (), lambda: self.inner.unlink(path))

    def mkdir(self, path: str) -> None:
        self._record_call("mkdir", path, (), lambda: self.inner.mkdir(path))

    def listdir(self, path: str) -> list[str]:
        return self._record_call("listdir", path, (), lambda: self.inner.listdir(path))

    def sync_directory(self, path: str) -> None:
        self._record_call("sync_directory", path, (), lambda: self.inner.sync_directory(path))

    def lock(self, fd: int) -> None:
        self._record_call("lock", self._path(fd), (fd,), lambda: self.inner.lock(fd))

    def random_bytes(self, size: int) -> bytes:
        return self.inner.random_bytes(size)


class FaultyFileSystem(RecordingFileSystem):
    """Fails the call number `fail_at`, counted from 1.

    only: names of the calls that count; None: all.
    sticky: whether all counted calls that follow fail too.
    error: an errno, EINTR among them. None: a write stops at half its length, without
        an error.

    A write that fails has written half before. A close that fails has closed. An fsync
    that fails loses what was not durable, where `inner` has `lose_unsynced`.
    """

    def __init__(
        self,
        inner: FileSystem,
        *,
        fail_at: int,
        error: int | None = errno.EIO,
        sticky: bool = False,
        only: Container[str] | None = None,
    ) -> None:
        super().__init__(inner)
        self.fail_at = fail_at
        self.error = error
        self.sticky = sticky
        self.only = only
        #: How many calls have failed.
        self.failures = 0
        self._count = 0

    def _make_call(self, name: str, call: Callable[[], _T], arguments: tuple[Any, ...]) -> _T:
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
