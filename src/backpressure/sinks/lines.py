"""LineSink: writes each event and a newline to a file descriptor.

    LineSink           what both have: the bytes of a batch, and a write loop that
                       survives short writes
    ├── FileSink       a regular file (file.py): a batch whose write failed is cut off
    │                  again, so a redelivery doubles nothing
    └── StreamSink     a pipe, a terminal, stdout (stream.py): what is written cannot be
                       undone, so a redelivery goes on where the write stopped

A batch is joined piece by piece in one small buffer: that stays in the cache, and no
batch is ever copied as a whole. A piece is whole lines, and is written by one call
unless the system takes less.

Not safe for several threads: a sink belongs to the thread that delivers.
"""

from __future__ import annotations

import os
import select
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeAlias

from backpressure.base.errors import SinkGone
from backpressure.buffer.batch import Batch

__all__ = ["LineSink", "open_for_writing", "refuse_sources"]

#: Writes some of the bytes to the descriptor and returns how many, as `os.write` does.
Writer: TypeAlias = Callable[[int, memoryview], int]

# Fits into a second-level cache: the join writes it, and the system call reads it from
# there.
_PIECE_BYTES = 256 * 1024
# Seconds to sleep at a time until a non-blocking descriptor has room. Only a bound:
# room ends the sleep at once.
_ROOM_WAIT_SECONDS = 1.0


class LineSink(ABC):
    """Writes batches to the descriptor `fd`, which it owns.

    `name` stands in error messages. `writer` does the writing: tests and drills put one
    in that fails.
    """

    #: The end of a file is one place.
    max_concurrency: Final = 1
    #: A disk or a pipe that fails does so whatever is written.
    rejects_events: Final = False

    def __init__(self, fd: int, name: str, piece_bytes: int = _PIECE_BYTES) -> None:
        self.name = name
        self.writer: Writer = os.write
        self._fd = fd
        self._done = 0  # bytes of the present batch that are written
        self._end: tuple[int, int] | None = None
        self._piece = memoryview(bytearray(piece_bytes))

    def leave_open(self, priority: int, seq: int) -> None:
        """Write no newline after event `seq` of `priority`: its input had none."""
        self._end = (priority, seq)

    @abstractmethod
    def send(self, batch: Batch) -> None:
        """Write all of `batch`.

        OSError where that fails, SinkGone where it can never succeed again.
        """

    def close(self) -> None:
        """Close the descriptor.

        OSError where the system could not write what it had taken (NFS, quotas).
        """
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _pieces(self, batch: Batch, skip: int = 0) -> Iterator[memoryview]:
        """The bytes of `batch` as they stand in the output, without the first `skip`.

        Each piece is valid until the next.
        """
        count = len(batch)
        left_open = (batch.priority, batch.first_seq + count - 1) == self._end
        done = 0
        while done < count:
            events, nbytes = batch.join_into(self._piece, done)
            piece = self._piece[:nbytes]
            if not events:  # one that is larger than the piece
                events = 1
                piece = memoryview(batch[done] + b"\n")
            done += events
            if done == count and left_open:
                piece = piece[:-1]
            if skip < len(piece):
                yield piece[skip:]
                skip = 0
            else:
                skip -= len(piece)

    def _write(self, text: memoryview) -> None:
        """Write all of `text`, counting in `_done`."""
        while text:
            try:
                written = self.writer(self._fd, text)
            except BlockingIOError:
                # The descriptor is non-blocking, as a terminal is that another program
                # has set so.
                select.select([], [self._fd], [], _ROOM_WAIT_SECONDS)
                continue
            except (BrokenPipeError, ConnectionResetError) as error:
                raise SinkGone(
                    error.errno, "the reader of this pipe has closed it", self.name
                ) from error
            if written:
                self._done += written
                self._wrote(text[:written])
            text = text[written:]

    def _wrote(self, text: memoryview) -> None:  # noqa: B027 (most have nothing to note)
        """Called after each write with what it has taken; `_done` has it counted."""


def open_for_writing(path: str | os.PathLike[str], flags: int = 0) -> int:
    """Open for writing without emptying: first it must be known not to be a source."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | getattr(os, "O_BINARY", 0) | flags, 0o666)


def refuse_sources(fd: int, name: str, sources: Iterable[str]) -> None:
    """OSError where the regular file behind `fd` is one of `sources`."""
    sink = os.fstat(fd)
    if not stat.S_ISREG(sink.st_mode):
        return  # reading and writing one terminal or /dev/null is fine
    for source in sources:
        try:
            found = os.fstat(0) if source == "-" else os.stat(source)
        except OSError:
            continue  # a source that cannot be read says so itself
        if os.path.samestat(sink, found):
            shown = "stdin" if source == "-" else source
            raise OSError(
                f"{name}: this is also the source {shown}; choose another file to write to"
            )
