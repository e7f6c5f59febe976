"""FileId and Place: which file it is, and how far it was read.

A name says little: rotation renames, and any file can have any name. An inode's number
says more, and is used again as soon as its file is deleted. So a file is known by

    inode         with its generation, where the file system tells it (ext4, XFS and
                  Btrfs do): that differs each time the number is given out
    head, tail    checksums of the first bytes, and of the last ones before the place
                  that was read: they tell a file that was written anew from one that
                  has grown, and a copy of a file from all others
    device        only where little was read: it may be another one after a reboot
"""

from __future__ import annotations

import os
import sys
import zlib
from dataclasses import dataclass
from typing import Final

__all__ = ["EVIDENCE_BYTES", "HEAD_BYTES", "TAIL_BYTES", "FileId", "Place", "inode_generation"]

#: Bytes at a file's beginning that tell it from others: more than common headers of log
#: files have.
HEAD_BYTES: Final = 1024
#: Bytes before the place that was read.
TAIL_BYTES: Final = 1024
#: With fewer bytes that agree, two files may begin alike by chance: several jobs write
#: the same first line.
EVIDENCE_BYTES: Final = 256

# FS_IOC_GETVERSION of linux/fs.h: the kernel writes an int, although the number says
# long.
_GET_VERSION: Final = 0x80087601


@dataclass(frozen=True, slots=True)
class FileId:
    """What tells a file from others.

    `head` is the CRC-32 of its first `head_bytes` bytes. generation: of the inode; 0
    where the file system does not tell it.
    """

    dev: int
    ino: int
    head: int
    head_bytes: int
    generation: int = 0

    def fits(self, fd: int) -> bool:
        """Whether the open file `fd` is this one. OSError."""
        if not self.has_inode(fd) or not self.has_head(fd):
            return False
        return os.fstat(fd).st_dev == self.dev or self.head_bytes >= EVIDENCE_BYTES

    def has_inode(self, fd: int) -> bool:
        """Whether `fd` has the same inode, as far as the file system tells."""
        if os.fstat(fd).st_ino != self.ino:
            return False
        generation = inode_generation(fd)
        return not (generation and self.generation) or generation == self.generation

    def has_head(self, fd: int) -> bool:
        """Whether the open file begins as this one does."""
        return _checksum(fd, 0, self.head_bytes) == self.head


@dataclass(frozen=True, slots=True)
class Place:
    """How far a file was read.

    tail: CRC-32 of the last TAIL_BYTES before `offset`; None: not known. mtime_ns: when
    the file had last been written then. done: it had been rotated, and was read to its
    end.
    """

    file: FileId
    offset: int
    tail: int | None = None
    mtime_ns: int = 0
    done: bool = False

    def fits(self, fd: int) -> bool:
        """Whether `fd` is that file, and what was read of it still stands there."""
        return self.file.fits(fd) and self._has_tail(fd)

    def is_copied_to(self, fd: int) -> bool:
        """Whether `fd` holds a copy of what was read, and there is enough of it to say
        so.
        """
        return self.offset >= EVIDENCE_BYTES and self.file.has_head(fd) and self._has_tail(fd)

    def _has_tail(self, fd: int) -> bool:
        if os.fstat(fd).st_size < self.offset:
            return False
        nbytes = min(self.offset, TAIL_BYTES)
        return self.tail is None or _checksum(fd, self.offset - nbytes, nbytes) == self.tail


def _checksum(fd: int, start: int, nbytes: int) -> int:
    return zlib.crc32(os.pread(fd, nbytes, start))


def inode_generation(fd: int) -> int:
    """How often the inode's number was given out, in a sense; 0: it is not known."""
    if sys.platform != "linux":
        return 0
    import fcntl

    answer = bytearray(8)
    try:
        fcntl.ioctl(fd, _GET_VERSION, answer)
    except OSError:
        return 0  # a file system without it, as tmpfs
    return int.from_bytes(answer[:4], sys.byteorder)
