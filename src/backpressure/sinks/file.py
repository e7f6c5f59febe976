"""FileSink: appends lines to a regular file, which others may append to as well.

Invariants.

1. Every write is an append (O_APPEND) of whole lines, so two handlers, two processes or
   a forked child overwrite nothing of each other's.
2. Where a write failed, what it left behind is cut off, so a redelivery doubles
   nothing; but only bytes that this sink wrote and that are the end of the file. If
   others have written behind them, the whole lines stay, and a redelivery goes on
   behind them.
3. A file that was opened to append to is followed by its name: after a rotation by
   rename the next batch goes to the new file. After a rotation by copy and truncation
   it goes to the new end of the same one.
   With `rotation` the sink puts the file aside itself, between two batches, while it
   has the lock; others that append by this class follow.
4. A forked child opens the file anew: a position and a lock that it shared with its
   parent would say nothing of either's lines.

Writers take turns batch by batch (`FileLock`). Of a program that appends without the
lock a line may be spoilt by half a line before it, where a write failed; and what it
appends between the look at the file's end and the cut is lost.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Final, NamedTuple

from backpressure.base.errors import SinkGone
from backpressure.base.log_limiter import LogLimiter
from backpressure.base.standard_streams import check_stdout
from backpressure.base.wording import reason
from backpressure.buffer.batch import Batch
from backpressure.sinks.file_lock import FileLock
from backpressure.sinks.file_rotation import FileRotation, RotationConfig
from backpressure.sinks.lines import LineSink, open_for_writing, refuse_sources
from backpressure.sinks.stream import StreamSink

__all__ = ["FileSink", "open_sink"]

_log = logging.getLogger("backpressure")

_NEWLINE: Final = 10
# Seconds between two messages that the file cannot be put aside.
_REFUSED_SECONDS: Final = 60.0
# Seconds that `close` waits for a file that is being compressed.
_TIDY_SECONDS: Final = 5.0
# The number of failed batches of which it is known what stands in the file: a bound for
# memory. A batch that comes again leaves the list, and each lane has few to come.
_MAX_KEPT: Final = 64


class _Tail(NamedTuple):
    """What the present batch has written to the end of the file."""

    #: Where it begins and ends. Both 0: nothing is written yet.
    start: int = 0
    end: int = 0
    #: Bytes of the batch, in whole lines, that stand in the file before `start` …
    kept_before: int = 0
    #: … and before `end`.
    kept: int = 0


class FileSink(LineSink):
    """Writes to the regular file `path`.

    append: go on behind what is there, and follow the file when it is rotated. If not,
        the file is emptied, and stays the same whatever becomes of its name.
    sources: paths (`-` is stdin) that must not be this very file. Otherwise the output
        would be read as input.
    rotation: when to put the file aside, with `append`.
    end_line: where the file ends within a line, as a killed writer may leave it, end
        that one first: the next line, which was not delivered yet, would be spoilt.

    The file is made where it is missing. Exact as long as the process lives: what a
    failed write left behind is cut off before anything else is written. OSError where
    the file cannot be opened, or is not a regular one (`open_sink` takes those too).
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        append: bool = False,
        sources: Iterable[str] = (),
        end_line: bool = False,
        rotation: RotationConfig | None = None,
    ) -> None:
        if rotation is not None and not append:
            raise ValueError("rotation needs append=True")
        name = os.fspath(path)
        # A daemon changes its working directory.
        self._path: Final = os.path.abspath(name)
        self._follow: Final = append
        self._sources: Final = tuple(one if one == "-" else os.path.abspath(one) for one in sources)
        fd = self._open(name)
        self._lock = FileLock()
        self._refusals = LogLimiter(_REFUSED_SECONDS)
        self._rotation = None if rotation is None else FileRotation(self._path, rotation)
        # An empty file is not truncated: ext4 takes a truncation to 0 for the
        # replacement of a file, and writes it out when it is closed.
        try:
            if not append and os.fstat(fd).st_size:
                os.ftruncate(fd, 0)
            if end_line:
                with self._lock.held(fd):
                    _end_last_line(name, fd)
        except BaseException:
            os.close(fd)
            raise
        super().__init__(fd, name)
        self._file = os.fstat(fd)
        self._pid = os.getpid()
        #: The position of `_fd` is the parent's as well, and tells nothing.
        self._shared = False
        self._tail = _Tail()
        #: The batch whose tail could not be cut off yet, or None.
        self._torn: str | None = None
        #: Bytes that stand in the file of batches that failed, by their id.
        self._kept: dict[str, int] = {}

    def send(self, batch: Batch) -> None:
        self._find_file()
        if self._rotation is not None:
            self._rotate(self._rotation)
        with self._lock.held(self._fd):
            # Another one may have put the file aside while this one waited.
            renamed = self._follow and self._is_renamed()
            if not renamed:
                self._send(batch)
        if renamed:
            self._find_file()
            with self._lock.held(self._fd):
                self._send(batch)

    def _send(self, batch: Batch) -> None:
        if self._torn is not None:
            self._cut_tail(self._torn)
        kept = self._kept.pop(batch.id, 0)
        self._done = kept
        self._tail = _Tail(kept_before=kept, kept=kept)
        try:
            for piece in self._pieces(batch, kept):
                self._write(piece)
        except BaseException:
            self._torn = batch.id
            try:
                self._cut_tail(batch.id)
            except OSError:
                pass  # the write's error is what counts, and the next send cuts first
            raise

    def close(self) -> None:
        if self._fd >= 0 and not self._is_open():
            self._fd = -1  # others closed it, and the number may be another file's now
        super().close()
        if self._rotation is not None:
            self._rotation.wait(_TIDY_SECONDS)

    # ------------------------------------------------------------ the end of the file

    def _wrote(self, text: memoryview) -> None:
        tail = self._tail
        # Of an append the position tells where it ended.
        end = os.lseek(self._fd, 0, os.SEEK_CUR)
        start, kept_before = tail.start, tail.kept_before
        if end - len(text) != tail.end or not tail.end:
            # The first of the batch, or others have written since.
            start, kept_before = end - len(text), tail.kept
        if text[-1] == _NEWLINE:
            kept = self._done
        else:
            newline = bytes(text).rfind(b"\n")
            kept = tail.kept if newline < 0 else self._done - len(text) + newline + 1
        self._tail = _Tail(start, end, kept_before, kept)

    def _cut_tail(self, batch_id: str) -> None:
        """Cut off what the failed batch has written, where that is the file's end."""
        tail = self._tail
        kept = tail.kept
        if not tail.end:
            pass
        elif not self._shared and os.fstat(self._fd).st_size == tail.end:
            os.ftruncate(self._fd, tail.start)
            kept = tail.kept_before
        self._torn = None
        self._done = 0
        if kept:
            self._kept[batch_id] = kept
            if len(self._kept) > _MAX_KEPT:
                del self._kept[next(iter(self._kept))]

    # ------------------------------------------------------------ which file it is

    def _rotate(self, rotation: FileRotation) -> None:
        """Put the file aside if it is time, and open the next one."""
        if not rotation.is_due(os.fstat(self._fd)):
            return
        with self._lock.held(self._fd) as held:
            if not held or self._is_renamed():
                return  # others write, or have put it aside; the next batch looks again
            if self._torn is not None:
                self._cut_tail(self._torn)
            kept, mode = self._kept, stat.S_IMODE(os.fstat(self._fd).st_mode)
            try:
                rotation.put_aside()
            except OSError as error:
                # The lines are not lost in a file that is too large.
                if self._refusals.add("rotation", 1, time.monotonic()):
                    _log.error("%s is not rotated: %s", self.name, reason(error))
                return
        self._find_file()
        if hasattr(os, "fchmod"):
            with suppress(OSError):
                os.fchmod(self._fd, mode)  # what others may not read stays so
        # Lines of a batch that failed stand in the file that was put aside.
        self._kept = kept

    def _open(self, path: str) -> int:
        """Open `path`, which must be a regular file and no source."""
        fd = open_for_writing(path, os.O_APPEND)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(f"{path}: not a regular file; open_sink() takes pipes and devices")
            refuse_sources(fd, path, self._sources)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _find_file(self) -> None:
        """Open the file anew where the descriptor does not lead to it any more."""
        if self._fd < 0:
            raise SinkGone(errno.EBADF, "this sink has been closed", self.name)
        is_open = self._is_open()
        if self._pid != os.getpid():
            self._pid = os.getpid()
            # Half a batch of the parent's is the parent's to cut.
            self._done, self._torn = 0, None
            self._tail, self._kept = _Tail(), {}
            self._lock = FileLock()
            self._shared = True
        elif is_open and not self._shared and not (self._follow and self._is_renamed()):
            return
        try:
            fd = self._open_by_name()
        except OSError:
            # Renamed, and no right to make a new one: the lines are not lost there.
            if is_open and os.fstat(self._fd).st_nlink:
                return
            raise
        if is_open:
            os.close(self._fd)
        # Half a batch that is in the old file is not in this one.
        if not os.path.samestat(self._file, fresh := os.fstat(fd)):
            self._done, self._torn = 0, None
            self._tail, self._kept = _Tail(), {}
        self._fd, self._file, self._shared = fd, fresh, False

    def _open_by_name(self) -> int:
        try:
            # Before it is opened: to open a pipe would wait for its reader.
            found = os.stat(self._path)
        except FileNotFoundError:
            if not self._follow:
                raise
        else:
            if not stat.S_ISREG(found.st_mode):
                raise OSError(f"{self._path}: not a regular file any more")
            if not self._follow and not os.path.samestat(found, self._file):
                raise OSError(f"{self._path}: another file has this name now")
        return self._open(self._path)

    def _is_open(self) -> bool:
        """Whether the descriptor still leads to the file that this sink opened.

        Code that makes a daemon closes all descriptors, and the next file that is
        opened gets the number.
        """
        try:
            return os.path.samestat(os.fstat(self._fd), self._file)
        except OSError:
            return False

    def _is_renamed(self) -> bool:
        try:
            return not os.path.samestat(os.stat(self._path), self._file)
        except FileNotFoundError:
            return True
        except OSError:
            return False  # not to be known: the file that is open serves


def _end_last_line(path: str, fd: int) -> None:
    """Write a newline to `fd`, which appends to `path`, if that ends within a line."""
    size = os.fstat(fd).st_size
    if not size:
        return
    try:
        reader = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    except PermissionError:
        return  # who may only write cannot know
    try:
        os.lseek(reader, size - 1, os.SEEK_SET)
        if os.read(reader, 1) != b"\n":
            os.write(fd, b"\n")
    finally:
        os.close(reader)


def open_sink(
    path: str,
    *,
    append: bool = False,
    sources: Iterable[str] = (),
    end_line: bool = False,
    rotation: RotationConfig | None = None,
) -> LineSink:
    """The sink for `path`.

    `-` is stdout. A regular or missing file gets a FileSink, the rest a StreamSink.
    append: as for FileSink, and a pipe may have other writers too: each write is then
    small enough to stay in one piece. end_line, rotation: as for FileSink.
    """
    if path == "-":
        check_stdout()
        return StreamSink(sources=sources, shared=append)
    try:
        regular = stat.S_ISREG(os.stat(path).st_mode)
    except FileNotFoundError:
        regular = True
    if regular:
        return FileSink(path, append=append, sources=sources, end_line=end_line, rotation=rotation)
    return StreamSink(open_for_writing(path), path, shared=append)
