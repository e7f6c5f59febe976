"""The directory of a buffer: the process that owns it, and the buffer that it is of.

    directory/lock          flock of the process that has the buffer open; holds its
                            process id, for people to read
              manifest      format version and UUID of the buffer, twice
              lane-1/ …     one SpillStore each, up to lane-5
              dead-letters/ one more

One process at a time owns it. The lock ends with the process, so none is ever stale.

Layout of a record in the manifest, little-endian; the second copy lies at byte 512, in
another sector

     0  8  magic "PNSTKBUF"
     8  2  version, 1
    10  2  zero
    12 16  UUID
    28  4  CRC-32 of bytes 0 to 28

Where neither copy of the manifest is sound, the UUID is taken from a segment's header,
and a new manifest is written. A directory with neither gets a new UUID.
"""

from __future__ import annotations

import os
import struct
import zlib
from types import TracebackType
from typing import Final
from uuid import UUID

from backpressure.base.errors import FormatError
from backpressure.spill.files import (
    READ,
    UNREADABLE,
    WRITE,
    Files,
    FileSystem,
    LocalFileSystem,
    refusal,
)
from backpressure.spill.segments import SEGMENT_HEADER_BYTES, parse_segment_name, segment_owner

__all__ = ["BufferDirectory", "read_buffer_id"]

VERSION: Final = 1
_MAGIC: Final = b"PNSTKBUF"
_RECORD: Final = struct.Struct("<8sHH16s")
_CRC: Final = struct.Struct("<I")
_COPY_AT: Final = 512


class BufferDirectory:
    """A directory that belongs to this process until close()."""

    def __init__(self, path: str | os.PathLike[str], fs: FileSystem | None = None) -> None:
        """Create or open it, through `fs` (None: the real one). Its parent exists.

        Raises DirectoryInUse where another process has it, FormatError where a later
        release wrote it, DiskFailed or DiskFull.
        """
        self.path = os.fspath(path)
        #: What its files, and those of its lanes, are read and written through.
        self.fs: FileSystem = fs or LocalFileSystem()
        self._files = Files(self.fs)
        self._lock_fd: int | None = None
        try:
            self._make_directory(self.path)
            self._lock_fd = self._files.open(self._join("lock"), WRITE | os.O_CREAT)
            self._files.lock(self._lock_fd, self.path)
            self._files.truncate(self._lock_fd, 0)
            self._files.write(self._lock_fd, b"%d\n" % os.getpid(), 0)
            #: Whose events these are; part of every batch's id.
            self.buffer_id: UUID = self._find_buffer_id()
        except OSError as error:
            self.close()
            raise refusal(f"cannot use {self.path}", error) from error
        except BaseException:
            self.close()
            raise

    def lane(self, name: str) -> str:
        """The path of a directory inside, which exists durably on return.

        Raises DiskFailed, DiskFull.
        """
        path = self._join(name)
        try:
            self._make_directory(path)
        except OSError as error:
            raise refusal(f"cannot make {path}", error) from error
        return path

    def has_lane(self, name: str) -> bool:
        """Whether there is a directory inside that `lane` once made.

        Raises DiskFailed, DiskFull.
        """
        try:
            return self._files.exists(self._join(name))
        except OSError as error:
            raise refusal(f"cannot read {self.path}", error) from error

    def close(self) -> None:
        """Release the lock. A second call does nothing."""
        if self._lock_fd is not None:
            self._files.close(self._lock_fd)
            self._lock_fd = None

    def __enter__(self) -> BufferDirectory:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"BufferDirectory({self.path!r})"

    def _join(self, name: str) -> str:
        return os.path.join(self.path, name)

    def _make_directory(self, path: str) -> None:
        self._files.mkdir(path)
        # Also where it existed: the process that made it may have died before this.
        self._files.sync_directory(os.path.dirname(os.path.abspath(path)))

    def _find_buffer_id(self) -> UUID:
        found = read_buffer_id(self._files, self.path)
        buffer_id, sound = (
            found
            if found is not None
            else (UUID(bytes=self._files.random_bytes(16), version=4), False)
        )
        if not sound:
            record = _RECORD.pack(_MAGIC, VERSION, 0, buffer_id.bytes)
            record = (record + _CRC.pack(zlib.crc32(record))).ljust(_COPY_AT, b"\0")
            self._files.write_new(self._join("manifest"), [record, record])
        return buffer_id


def read_buffer_id(files: Files, path: str) -> tuple[UUID, bool] | None:
    """The UUID of a buffer, and whether both copies of the manifest have it.

    None where no file has one. Raises FormatError, OSError.
    """
    unreadable: OSError | None = None
    try:
        raw = _read(files, os.path.join(path, "manifest"), 2 * _COPY_AT)
    except FileNotFoundError:
        raw = b""
    except OSError as error:
        if error.errno not in UNREADABLE:
            raise
        raw, unreadable = b"", error
    found = [
        _parse(raw[at : at + _COPY_AT], os.path.join(path, "manifest")) for at in (0, _COPY_AT)
    ]
    for buffer_id in found:
        if buffer_id is not None:
            return buffer_id, None not in found
    for name in files.listdir(path):
        if "." in name or name in ("lock", "manifest"):
            continue
        inside = os.path.join(path, name)
        try:
            names = files.listdir(inside)
        except NotADirectoryError:
            continue
        for one in names:
            if parse_segment_name(one) is not None:
                try:
                    owner = segment_owner(
                        _read(files, os.path.join(inside, one), SEGMENT_HEADER_BYTES)
                    )
                except OSError as error:
                    if error.errno not in UNREADABLE:
                        raise
                    continue
                if owner is not None:
                    return owner, False
    if unreadable is not None:
        # Perhaps it can be read another time; with a new UUID, everything here would
        # belong to another buffer.
        raise unreadable
    return None


def _read(files: Files, path: str, size: int) -> bytes:
    fd = files.open(path, READ)
    try:
        return files.read(fd, size, 0)
    finally:
        files.close(fd)


def _parse(raw: bytes, path: str) -> UUID | None:
    size = _RECORD.size
    if len(raw) < size + _CRC.size or _CRC.unpack_from(raw, size)[0] != zlib.crc32(raw[:size]):
        return None
    magic, version, _, buffer_id = _RECORD.unpack_from(raw)
    if magic != _MAGIC:
        return None
    if version != VERSION:
        raise FormatError(
            path,
            f"has format version {version}, and this release reads version {VERSION}: "
            "use a later release",
        )
    return UUID(bytes=buffer_id)
