"""Sinks that write each event and a newline to a file descriptor.

    LineSink           what both have: the bytes of a batch, and a write loop that
                       survives short writes
    ├── FileSink       a regular file: a batch whose write failed is cut off again, so a
    │                  redelivery doubles nothing
    └── StreamSink     a pipe, a terminal, stdout: what is written cannot be undone, so
                       a redelivery goes on where the write stopped

A batch is joined piece by piece in one small buffer: that stays in the cache, and no
batch is ever copied as a whole.

Not safe for several threads: a sink belongs to the thread that delivers.
"""

from __future__ import annotations

import os
import select
import stat
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

from backpressure.base.errors import SinkGone
from backpressure.buffer.batch import Batch

__all__ = ["FileSink", "LineSink", "StreamSink", "open_sink"]

#: Writes some of the bytes to the descriptor and returns how many, as `os.write` does.
Writer: TypeAlias = Callable[[int, memoryview], int]

_STDOUT = 1
_NEWLINE = 10
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

    def __init__(self, fd: int, name: str) -> None:
        self.name = name
        self.writer: Writer = os.write
        self._fd = fd
        self._done = 0  # bytes of the present batch that are written
        self._end: tuple[int, int] | None = None
        self._piece = memoryview(bytearray(_PIECE_BYTES))

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
            except BrokenPipeError as error:
                raise SinkGone(
                    error.errno, "the reader of this pipe has closed it", self.name
                ) from error
            self._done += written
            text = text[written:]


class FileSink(LineSink):
    """Writes to the regular file `path`.

    It is made where it is missing, and emptied unless `append`. Exact as long as the
    process lives: what a failed write left behind is cut off before anything else is
    written. OSError where the file cannot be opened, or is not a regular one
    (`open_sink` takes those too).
    """

    def __init__(
        self, path: str | os.PathLike[str], *, append: bool = False, sources: Iterable[str] = ()
    ) -> None:
        """sources: paths (`-` is stdin) that must not be this very file.

        Otherwise the output would be read as input.
        """
        fd = _open_for_writing(path)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(
                    f"{os.fspath(path)}: not a regular file; open_sink() takes pipes and devices"
                )
            _refuse_sources(fd, os.fspath(path), sources)
            # An empty file is not truncated: ext4 takes a truncation to 0 for the
            # replacement of a file, and writes it out when it is closed.
            if not append and os.fstat(fd).st_size:
                os.ftruncate(fd, 0)
            # The length of the file without what a failed write left.
            self._good = os.lseek(fd, 0, os.SEEK_END)
        except BaseException:
            os.close(fd)
            raise
        super().__init__(fd, os.fspath(path))

    def send(self, batch: Batch) -> None:
        if self._done:
            self._cut_off_batch()  # it did not succeed after the failed write
        try:
            for piece in self._pieces(batch):
                self._write(piece)
        except BaseException:
            try:
                self._cut_off_batch()
            except OSError:
                pass  # the write's error is what counts, and the next send cuts first
            raise
        self._good += self._done
        self._done = 0

    def _cut_off_batch(self) -> None:
        """Make the file end where the present batch began."""
        os.ftruncate(self._fd, self._good)
        os.lseek(self._fd, self._good, os.SEEK_SET)
        self._done = 0


class StreamSink(LineSink):
    """Writes to a descriptor that cannot be cut: a pipe, a terminal, stdout.

    Where a write failed half-way and the same batch comes again, it goes on behind the
    last byte that was written. Where another batch comes first (several priorities),
    the torn line is ended with a newline, and the torn batch comes again whole.
    """

    def __init__(
        self, fd: int = _STDOUT, name: str = "stdout", *, sources: Iterable[str] = ()
    ) -> None:
        """sources: as for FileSink; stdout may be redirected into one of them."""
        _refuse_sources(fd, name, sources)
        _set_binary(fd)
        super().__init__(fd, name)
        #: Id of the batch of which only `_done` bytes are written.
        self._torn: str | None = None
        self._in_line = False  # they end within a line

    def send(self, batch: Batch) -> None:
        if self._torn != batch.id:
            if self._in_line:
                self._write(memoryview(b"\n"))
                self._in_line = False
            self._done = 0
        try:
            for piece in self._pieces(batch, self._done):
                begun = self._done
                try:
                    self._write(piece)
                finally:
                    if self._done > begun:
                        self._in_line = piece[self._done - begun - 1] != _NEWLINE
        except BaseException:
            self._torn = batch.id
            raise
        self._torn = None
        self._in_line = False

    def close(self) -> None:
        """Close the descriptor, unless it is stdout, which others may still use."""
        if self._fd != _STDOUT:
            super().close()


def open_sink(path: str, *, append: bool = False, sources: Iterable[str] = ()) -> LineSink:
    """The sink for `path`.

    `-` is stdout. A regular or missing file gets a FileSink, the rest a StreamSink.
    """
    if path == "-":
        return StreamSink(sources=sources)
    try:
        regular = stat.S_ISREG(os.stat(path).st_mode)
    except FileNotFoundError:
        regular = True
    if regular:
        return FileSink(path, append=append, sources=sources)
    return StreamSink(_open_for_writing(path), path)


def _open_for_writing(path: str | os.PathLike[str]) -> int:
    """Open for writing without emptying: first it must be known not to be a source."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)


def _refuse_sources(fd: int, name: str, sources: Iterable[str]) -> None:
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


def _set_binary(fd: int) -> None:
    """Keep Windows from writing a carriage return before each newline."""
    if sys.platform == "win32":
        import msvcrt

        msvcrt.setmode(fd, os.O_BINARY)
