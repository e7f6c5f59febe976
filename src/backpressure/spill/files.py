"""The file system as the disk tier sees it.

It is a few plain calls, each of which a test can replace.

`FileSystem` is what can be injected; `LocalFileSystem` is the real one. `Files` is what
directories, stores and lanes call: the same calls, but whole writes and whole reads,
and a call that a signal interrupted is made again. They make no call to the operating
system elsewhere, but for the ring files, which `ringbuf` maps; the views in offline/
look at the real file system.

Files are addressed by absolute position (pread, pwrite), so threads share no file
position.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar

from backpressure.base.errors import DirectoryInUse, DiskFailed, DiskFull, NotNow

__all__ = [
    "READ",
    "WRITE",
    "CREATE",
    "FULL",
    "UNREADABLE",
    "FileSystem",
    "Files",
    "LocalFileSystem",
    "refusal",
]

READ: Final = os.O_RDONLY
WRITE: Final = os.O_RDWR
#: A new file: it must not be there yet.
CREATE: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL

#: What "no room" looks like.
FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})

#: Errors that say that these bytes cannot be read, though others may: EBADMSG is XFS
#: and ext4 for a bad checksum, EUCLEAN for structures that make no sense.
UNREADABLE: Final = frozenset(
    {errno.EIO, errno.EBADMSG, errno.EUCLEAN if hasattr(errno, "EUCLEAN") else errno.EIO}
)

_T = TypeVar("_T")

# Where this many tries in a row are interrupted, a driver is broken.
_INTERRUPTED_TRIES: Final = 100
_RETRY_AFTER_FULL: Final = 0.25  # seconds: about what a consumer needs to settle a batch
_RETRY_AFTER_ERROR: Final = 1.0  # seconds: a disk that fails needs longer


class FileSystem(Protocol):
    """Calls as POSIX defines them; each raises OSError. Paths are str."""

    def open(self, path: str, flags: int) -> int:
        """A descriptor for a regular file, mode 0o600 where it is created."""
        ...

    def close(self, fd: int) -> None: ...

    def pread(self, fd: int, size: int, offset: int) -> bytes: ...

    def pwrite(self, fd: int, data: Any, offset: int) -> int: ...

    def truncate(self, fd: int, size: int) -> None: ...

    def size(self, fd: int) -> int: ...

    def allocate(self, fd: int, size: int) -> None:
        """Reserve room on the disk for the first `size` bytes (posix_fallocate)."""
        ...

    def fsync(self, fd: int) -> None: ...

    def fdatasync(self, fd: int) -> None: ...

    def rename(self, old: str, new: str) -> None:
        """Replace `new`, in one step."""
        ...

    def unlink(self, path: str) -> None: ...

    def mkdir(self, path: str) -> None: ...

    def listdir(self, path: str) -> list[str]: ...

    def sync_directory(self, path: str) -> None:
        """fsync of a directory: the names in it, not what they name."""
        ...

    def lock(self, fd: int) -> None:
        """Take an exclusive lock, which ends with the process.

        Raises BlockingIOError where it is held already.
        """
        ...

    def random_bytes(self, size: int) -> bytes: ...


class LocalFileSystem:
    """The operating system's own calls.

    POSIX only: elsewhere there are no positioned reads and no flock.
    """

    def __init__(self) -> None:
        if sys.platform == "win32":
            raise DiskFailed("the disk tier needs a POSIX system: give directory=None")

    def open(self, path: str, flags: int) -> int:
        return os.open(path, flags, 0o600)

    def close(self, fd: int) -> None:
        os.close(fd)

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        return os.pread(fd, size, offset)

    def pwrite(self, fd: int, data: Any, offset: int) -> int:
        return os.pwrite(fd, data, offset)

    def truncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def size(self, fd: int) -> int:
        return os.fstat(fd).st_size

    def allocate(self, fd: int, size: int) -> None:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, 0, size)
        else:  # macOS
            os.pwrite(fd, bytes(size), 0)

    def fsync(self, fd: int) -> None:
        if sys.platform == "darwin":
            # There fsync lets the disk choose when to write.
            import fcntl

            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
        else:
            os.fsync(fd)

    def fdatasync(self, fd: int) -> None:
        if sys.platform == "darwin":
            self.fsync(fd)
        else:
            os.fdatasync(fd)

    def rename(self, old: str, new: str) -> None:
        os.replace(old, new)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def mkdir(self, path: str) -> None:
        os.mkdir(path, 0o700)

    def listdir(self, path: str) -> list[str]:
        return os.listdir(path)

    def sync_directory(self, path: str) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def lock(self, fd: int) -> None:
        import fcntl  # not on Windows, where this class cannot be made

        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def random_bytes(self, size: int) -> bytes:
        return os.urandom(size)


class Files:
    """A FileSystem with whole reads and writes, and no interrupted calls.

    What cannot be read is tried a second time.
    """

    def __init__(self, fs: FileSystem) -> None:
        self.fs = fs

    def open(self, path: str, flags: int) -> int:
        return _twice(self.fs.open, path, flags)

    def close(self, fd: int) -> None:
        """Close a descriptor. Never raises.

        The descriptor is gone in any case, and whether its writes succeeded fsync says.
        """
        try:
            self.fs.close(fd)
        except OSError:
            pass

    def read(self, fd: int, size: int, offset: int) -> bytes:
        """Read `size` bytes, fewer only at the end of the file."""
        data = _twice(self.fs.pread, fd, size, offset)
        if len(data) == size or not data:
            return data
        parts = [data]
        have = len(data)
        while have < size and (data := _twice(self.fs.pread, fd, size - have, offset + have)):
            parts.append(data)
            have += len(data)
        return b"".join(parts)

    def write(self, fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
        """Write all of `data`."""
        written = _again(self.fs.pwrite, fd, data, offset)
        rest = memoryview(data)
        while written < len(rest):
            more = _again(self.fs.pwrite, fd, rest[written:], offset + written)
            if more == 0:
                raise OSError(errno.EIO, "a write wrote nothing")
            written += more

    def truncate(self, fd: int, size: int) -> None:
        _again(self.fs.truncate, fd, size)

    def size(self, fd: int) -> int:
        return _again(self.fs.size, fd)

    def allocate(self, fd: int, size: int) -> None:
        _again(self.fs.allocate, fd, size)

    def fsync(self, fd: int) -> None:
        _again(self.fs.fsync, fd)

    def fdatasync(self, fd: int) -> None:
        _again(self.fs.fdatasync, fd)

    def rename(self, old: str, new: str) -> None:
        _again(self.fs.rename, old, new)

    def unlink(self, path: str) -> None:
        """Delete a file, if it exists."""
        try:
            _again(self.fs.unlink, path)
        except FileNotFoundError:
            pass

    def try_unlink(self, path: str) -> None:
        """Delete a file, if it exists and the file system lets it. Never raises."""
        try:
            self.unlink(path)
        except OSError:
            pass

    def mkdir(self, path: str) -> bool:
        """Make a directory, unless it exists; whether it is new."""
        try:
            _again(self.fs.mkdir, path)
        except FileExistsError:
            return False
        return True

    def listdir(self, path: str) -> list[str]:
        return sorted(_again(self.fs.listdir, path))

    def exists(self, path: str) -> bool:
        """Whether the directory of `path`, which is there, has that name."""
        return os.path.basename(path) in _again(self.fs.listdir, os.path.dirname(path))

    def sync_directory(self, path: str) -> None:
        _again(self.fs.sync_directory, path)

    def lock(self, fd: int, path: str) -> None:
        try:
            _again(self.fs.lock, fd)
        except BlockingIOError:
            raise DirectoryInUse(
                f"{path} is locked: another process, or another buffer in this one, "
                "uses the directory. Close that one first, or give this one a directory "
                "of its own"
            ) from None

    def random_bytes(self, size: int) -> bytes:
        return self.fs.random_bytes(size)

    def write_new(self, path: str, parts: list[bytes]) -> None:
        """Write a file durably, in one step: a crash leaves all of it or nothing.

        It is written under a temporary name, synced, renamed to `path`, and its
        directory is synced.
        """
        fresh = path + ".tmp"
        self.unlink(fresh)
        fd = self.open(fresh, CREATE)
        try:
            at = 0
            for part in parts:
                self.write(fd, part, at)
                at += len(part)
            self.fsync(fd)
        finally:
            self.close(fd)
        self.rename(fresh, path)
        self.sync_directory(os.path.dirname(path))


def refusal(what: str, error: OSError) -> NotNow:
    """DiskFull or DiskFailed, as the error of the file system says."""
    if error.errno in FULL:
        return DiskFull(f"{what}: {error.strerror}", _RETRY_AFTER_FULL)
    return DiskFailed(f"{what}: {error.strerror or error}", _RETRY_AFTER_ERROR, error.errno)


def _again(call: Callable[..., _T], *arguments: Any) -> _T:
    """Call until no signal interrupts it."""
    for _ in range(_INTERRUPTED_TRIES):
        try:
            return call(*arguments)
        except InterruptedError:
            continue
    return call(*arguments)


def _twice(call: Callable[..., _T], *arguments: Any) -> _T:
    """Call once more where something could not be read.

    A passing fault must not cost events.
    """
    try:
        return _again(call, *arguments)
    except OSError as error:
        if error.errno not in UNREADABLE:
            raise
        return _again(call, *arguments)
