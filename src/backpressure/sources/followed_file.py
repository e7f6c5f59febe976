"""FollowedFile: one file that is read as it grows, by whatever name it has.

Invariants.

1. `offset` is the number of bytes that were put or skipped; it is at the start of a
   line, unless `skipping` one that is too long, or what a rotated file ended with was
   taken without its newline.
2. `head` and `tail` are the first bytes, read or only looked at, and those before
   `offset`.
   Every read begins with the tail, in one call with what follows: what does not stand
   behind these bytes is never taken for their continuation.

Not safe for several threads: its follower has a lock.
"""

from __future__ import annotations

import os
import time
import zlib
from typing import Final

from backpressure.sources.file_id import (
    EVIDENCE_BYTES,
    HEAD_BYTES,
    TAIL_BYTES,
    FileId,
    Place,
    inode_generation,
)

__all__ = ["FollowedFile", "LineSkipped", "Rewritten"]

_CHUNK_BYTES: Final = 256 * 1024
# A time stamp of the file system stands still for some milliseconds, in which a write
# does not show: one that is younger than this (seconds) is not proof that nothing has
# changed.
_UNSETTLED_SECONDS: Final = 1.0


class Rewritten(Exception):
    """What was read does not stand in the file any more."""


class LineSkipped(Exception):
    """A line is longer than it may be; it begins at `offset`."""

    def __init__(self, offset: int) -> None:
        super().__init__(offset)
        self.offset = offset


class FollowedFile:
    """fd: open to read; it is this object's from now on.

    name: where it was found. now: seconds of the follower's clock.
    """

    __slots__ = (
        "_clean",
        "_restarted",
        "_seen",
        "at_path",
        "caught_up",
        "dev",
        "done",
        "fd",
        "generation",
        "head",
        "ino",
        "mtime_ns",
        "name",
        "offset",
        "quiet_since",
        "retry_at",
        "size",
        "skipping",
        "tail",
    )

    def __init__(self, fd: int, name: str, offset: int, now: float) -> None:
        found = os.fstat(fd)
        self.fd: int | None = fd
        self.name = name
        self.dev, self.ino = found.st_dev, found.st_ino
        self.generation = inode_generation(fd)
        self.head = os.pread(fd, HEAD_BYTES, 0)
        self.begin_at(offset)
        #: At the last look.
        self.size = found.st_size
        #: When it had been written last, while it had its name, of all that was read:
        #: what other files of that name hold was written later.
        self.mtime_ns = found.st_mtime_ns
        #: Whether it has the name that is followed.
        self.at_path = True
        #: Since when there is no news, or it has not had its name.
        self.quiet_since = now
        #: Whether it was rotated and has been read to its end. What is still written to
        #: it is read all the same.
        self.done = False
        #: Whether all that was there at the last look has been read.
        self.caught_up = False
        self.skipping = False
        #: When it is looked at again, after trouble or because it is done.
        self.retry_at = float("-inf")
        self._seen: tuple[int, int, int] | None = None
        self._clean = False
        self._restarted = False

    def begin_at(self, offset: int) -> None:
        """Read from there, which is the start of a line."""
        assert self.fd is not None
        nbytes = min(offset, TAIL_BYTES)
        self.offset = offset
        self.tail = os.pread(self.fd, nbytes, offset - nbytes)

    # ------------------------------------------------------------ what it is

    @property
    def place(self) -> Place:
        """How far it was read, for the state file."""
        file = FileId(
            self.dev, self.ino, zlib.crc32(self.head), len(self.head), generation=self.generation
        )
        return Place(file, self.offset, zlib.crc32(self.tail), self.mtime_ns, self.done)

    def has_inode_of(self, found: os.stat_result) -> bool:
        """Whether this is its stat; of one that is not open, another file may have the
        number by now.
        """
        return (found.st_dev, found.st_ino) == (self.dev, self.ino)

    def leave(self, now: float) -> None:
        """It has lost its name: its writer may go on for a while."""
        if self.at_path:
            self.at_path = False
            self.quiet_since = max(self.quiet_since, now)

    def come_back(self) -> None:
        """It has its name again."""
        self.at_path, self.done, self.retry_at = True, False, float("-inf")

    # ------------------------------------------------------------ what is new

    def is_unchanged(self, found: os.stat_result) -> bool:
        """Whether nothing was written since all was read, by its stat."""
        return self._clean and self.caught_up and self._seen == _stamp(found)

    def watch(self, found: os.stat_result) -> None:
        """Note how the file begins, while nothing of it is read yet: where it is copied
        and truncated meanwhile, that is all that tells.
        """
        if self.fd is not None and len(self.head) < min(found.st_size, EVIDENCE_BYTES):
            head = os.pread(self.fd, HEAD_BYTES, 0)
            if head.startswith(self.head):
                self.head = head

    def look(self, found: os.stat_result, now: float) -> None:
        """Note a stat of the file; Rewritten where what was read has gone."""
        if found.st_size < self.offset or not self._has_head():
            raise Rewritten
        if found.st_size != self.size or self._seen is None:
            self.size = found.st_size
            self.quiet_since = max(self.quiet_since, now if self._seen else self.quiet_since)
        self.caught_up = False
        self._seen = _stamp(found)
        self._clean = time.time() - found.st_mtime_ns / 1e9 > _UNSETTLED_SECONDS

    def next_lines(self, longest: int) -> bytes | None:
        """The next whole lines from the offset on; None: no more for now.

        LineSkipped, once, for a line of more than `longest` bytes, of which b"" comes
        for each part that is passed over. Rewritten: it is another file's content.
        """
        most = longest + 1
        want = min(_CHUNK_BYTES, most)
        while True:
            read = self._read(want)
            if self._restarted and read[:1] == b"\0":
                # A writer without O_APPEND goes on where it was before the truncation,
                # and leaves a hole before that.
                self.took(read[: len(read) - len(read.lstrip(b"\0"))])
                continue
            self._restarted = self._restarted and not read
            if self.skipping:
                end = read.find(b"\n") + 1
                self.took(read[:end] if end else read)
                self.skipping = not end
                if read:
                    return b""
                self._reached_end()
                return None
            end = read.rfind(b"\n") + 1
            if end:
                return read[:end]
            if len(read) < want:
                self._reached_end()  # within a line or not
                return None
            if want == most:
                self.skipping = True
                raise LineSkipped(self.offset)
            want = min(want * 2, most)

    def last_line(self, longest: int) -> bytes:
        """What stands behind the last newline."""
        return b"" if self.skipping else self._read(longest)

    def took(self, data: bytes) -> None:
        """These bytes, from the offset on, were put or passed over."""
        if len(self.head) < HEAD_BYTES and self.offset <= len(self.head):
            self.head += data[len(self.head) - self.offset : HEAD_BYTES - self.offset]
        self.tail = data[-TAIL_BYTES:] if len(data) >= TAIL_BYTES else (self.tail + data)
        self.tail = self.tail[-TAIL_BYTES:]
        self.offset += len(data)
        self._confirm()

    def restart(self, now: float) -> None:
        """Read from the beginning."""
        self.offset, self.head, self.tail = 0, b"", b""
        self.skipping = self.caught_up = self.done = self._clean = False
        self._restarted, self._seen = True, None
        self.quiet_since = max(self.quiet_since, now)

    # ------------------------------------------------------------ its descriptor

    @property
    def can_be_closed(self) -> bool:
        """Whether it is open, and nothing is under way in it."""
        return self.fd is not None and self.caught_up and not self.skipping

    def close(self) -> None:
        """Close it; `reopen` goes on."""
        fd, self.fd = self.fd, None
        if fd is not None:
            os.close(fd)

    def reopen(self, fd: int, name: str) -> None:
        """Go on with this descriptor, which must lead to the file."""
        self.fd, self.name = fd, name
        self.dev = os.fstat(fd).st_dev

    def _reached_end(self) -> None:
        self.caught_up = True
        self._confirm()

    def _confirm(self) -> None:
        """What was read up to here is this file's: it had its name then."""
        if self._seen is not None and self.at_path:
            self.mtime_ns = self._seen[1]

    def _read(self, nbytes: int) -> bytes:
        assert self.fd is not None
        before = len(self.tail)
        read = os.pread(self.fd, before + nbytes, self.offset - before)
        if read[:before] != self.tail:
            raise Rewritten
        return read[before:]

    def _has_head(self) -> bool:
        assert self.fd is not None
        return os.pread(self.fd, len(self.head), 0) == self.head


def _stamp(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns
