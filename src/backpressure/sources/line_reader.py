"""LineReader: newline-delimited files and stdin in large chunks of whole lines.

The sources make one stream of bytes, as with `cat`: a source that ends without a
newline goes on in the next one's first line. Only the very last line may lack its
newline.

Cost of a chunk: one read into a buffer that is used again, and one search for the last
newline. A line longer than the buffer doubles it, and each byte is searched once, so a
line of n bytes costs O(n).

Not safe for several threads; the attributes may be read by any.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import FileIO
from typing import Any

from backpressure.base.standard_streams import check_stdin

__all__ = ["LineChunk", "LineReader", "LineTooLong", "check_source"]

#: Bytes of one read: enough that the call costs nothing beside its copy, and few enough
#: to stay in the second-level cache until the lane has taken them.
CHUNK_BYTES = 1 << 20

_STDIN = 0
# Seconds to wait for a pipe or a terminal before checking whether to stop: too short to
# notice, long enough to cost nothing.
_WAIT_SECONDS = 0.05


class LineTooLong(ValueError):
    """A line has more than `limit` bytes.

    `source` and `offset` (in bytes) say where it begins.
    """

    def __init__(self, source: str, offset: int, limit: int) -> None:
        super().__init__(
            f"{source}: the line that begins at byte {offset:,} has more than {limit:,} bytes"
        )
        self.source = source
        self.offset = offset
        self.limit = limit

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.source, self.offset, self.limit), self.__dict__


@dataclass(frozen=True, slots=True)
class LineChunk:
    """Whole lines, with their newlines; valid until the next chunk is asked for."""

    data: memoryview
    #: Where the pieces of `data` come from: (position in data, source, byte offset
    #: there), ascending, the first at 0.
    origins: tuple[tuple[int, str, int], ...]
    #: The last line of all: it has no newline.
    unterminated: bool

    def locate(self, position: int) -> tuple[str, int]:
        """The source and the byte offset in it of `data[position]`."""
        start, source, offset = next(
            origin for origin in reversed(self.origins) if origin[0] <= position
        )
        return source, offset + position - start


class LineReader:
    """Iterates over `sources` (paths; `-` is stdin) as chunks of whole lines.

    stopping: is asked before each read, and while waiting for a pipe or terminal (not
        on Windows); True ends the iteration.
    chunk_bytes: how much to read at once.

    Raises OSError for a source that cannot be read, and LineTooLong for a line of more
    than `max_line_bytes` without its newline; in both cases after all lines before it.
    """

    def __init__(
        self,
        sources: Sequence[str],
        *,
        max_line_bytes: int,
        stopping: Callable[[], bool] = lambda: False,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        if max_line_bytes < 1 or chunk_bytes < 1:
            raise ValueError("max_line_bytes and chunk_bytes must be 1 or more")
        self._sources = tuple(sources)
        self._max_line_bytes = max_line_bytes
        self._stopping = stopping
        self._chunk_bytes = chunk_bytes
        #: Whether every source was read to its end.
        self.exhausted = False
        #: Bytes read of a line whose end has not come yet.
        self.carried_bytes = 0

    def __iter__(self) -> Iterator[LineChunk]:
        # The buffer never holds more than the longest line and its newline: if it is
        # full and has none, the line is too long.
        most = self._max_line_bytes + 1
        buffer = bytearray(min(self._chunk_bytes, most))
        view = memoryview(buffer)
        carried = 0  # buffer[:carried] begins a line, and holds no newline
        origins: list[tuple[int, str, int]] = []
        for source in self._sources:
            offset = 0
            origins.append((carried, source, offset))
            with _open(source) as file:
                while True:
                    if carried == len(buffer):
                        if carried == most:
                            break
                        buffer = _resized(buffer, min(2 * carried, most))
                        view = memoryview(buffer)
                    if not self._wait_readable(file):
                        return
                    count = _read(file, view[carried : carried + self._chunk_bytes], source)
                    if not count:
                        break
                    offset += count
                    filled = carried + count
                    end = buffer.rfind(b"\n", carried, filled) + 1
                    if end:
                        self.carried_bytes = filled - end
                        yield LineChunk(view[:end], tuple(origins), unterminated=False)
                        view[: filled - end] = view[end:filled]
                        filled -= end
                        origins = [(0, source, offset - filled)]
                    carried = self.carried_bytes = filled
            if carried == most:
                _, where, at = origins[0]
                raise LineTooLong(where, at, self._max_line_bytes)
        self.carried_bytes = 0
        self.exhausted = True
        if carried:
            yield LineChunk(view[:carried], tuple(origins), unterminated=True)

    def _wait_readable(self, file: FileIO) -> bool:
        """Wait until a read would not block; False: stop."""
        if sys.platform != "win32" and not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            while not self._stopping():
                if select.select([file], [], [], _WAIT_SECONDS)[0]:
                    return True
        return not self._stopping()


def check_source(source: str) -> None:
    """OSError where `source` cannot be read, found without opening or waiting."""
    if source == "-":
        check_stdin()
        return
    if stat.S_ISDIR(os.stat(source).st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), source)
    if not os.access(source, os.R_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), source)


def _open(source: str) -> FileIO:
    if source == "-":
        return FileIO(_STDIN, closefd=False)
    return FileIO(source)


def _read(file: FileIO, into: memoryview, source: str) -> int:
    """Read some bytes; 0 is the end. An OSError names the file."""
    try:
        count = file.readinto(into)
    except OSError as error:
        raise OSError(error.errno, error.strerror, source) from error
    if count is None:
        raise OSError(
            errno.EAGAIN, "this input is non-blocking; feed it through a pipe from cat", source
        )
    return count


def _resized(buffer: bytearray, size: int) -> bytearray:
    """A larger buffer with the same beginning."""
    larger = bytearray(size)
    larger[: len(buffer)] = buffer
    return larger
