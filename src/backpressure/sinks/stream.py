"""StreamSink: writes lines to what cannot be cut: a pipe, a terminal, stdout."""

from __future__ import annotations

import errno
import os
import select
import stat
import sys
from collections.abc import Iterable
from typing import Final

from backpressure.base.errors import SinkGone
from backpressure.buffer.batch import Batch
from backpressure.sinks.lines import LineSink, refuse_sources

__all__ = ["StreamSink"]

_STDOUT: Final = 1
_NEWLINE: Final = 10
# What is written to a pipe by one call stays in one piece up to this size (POSIX).
_WHOLE_BYTES: Final = getattr(select, "PIPE_BUF", 512)


class StreamSink(LineSink):
    """Writes to a descriptor that cannot be cut: a pipe, a terminal, stdout.

    Where a write failed half-way and the same batch comes again, it goes on behind the
    last byte that was written. Where another batch comes first (several priorities),
    the torn line is ended with a newline, and the torn batch comes again whole.
    """

    def __init__(
        self,
        fd: int = _STDOUT,
        name: str = "stdout",
        *,
        sources: Iterable[str] = (),
        shared: bool = False,
    ) -> None:
        """sources: as for FileSink; stdout may be redirected into one of them.

        shared: other writers have the same pipe or terminal. Lines up to PIPE_BUF
        (4,096 bytes on Linux) then stay whole; it takes more calls.
        """
        refuse_sources(fd, name, sources)
        _set_binary(fd)
        if shared and not stat.S_ISREG(os.fstat(fd).st_mode):
            super().__init__(fd, name, _WHOLE_BYTES)
        else:
            super().__init__(fd, name)
        #: Id of the batch of which only `_done` bytes are written.
        self._torn: str | None = None
        self._in_line = False  # they end within a line
        self._pid = os.getpid()

    def send(self, batch: Batch) -> None:
        if self._fd < 0:
            raise SinkGone(errno.EBADF, "this sink has been closed", self.name)
        if self._pid != os.getpid():
            # Half a batch of the parent's is the parent's to finish.
            self._pid = os.getpid()
            self._torn, self._in_line = None, False
        if self._torn != batch.id:
            if self._in_line:
                self._write(memoryview(b"\n"))
                self._in_line = False
            self._done = 0
        try:
            for piece in self._pieces(batch, self._done):
                self._write(piece)
        except BaseException as error:
            self._torn = batch.id
            if isinstance(error, OSError) and error.errno == errno.EBADF:
                raise SinkGone(error.errno, "its descriptor was closed", self.name) from error
            raise
        self._torn = None
        self._in_line = False

    def _wrote(self, text: memoryview) -> None:
        self._in_line = text[-1] != _NEWLINE

    def close(self) -> None:
        """Close the descriptor, unless it is stdout, which others may still use."""
        if self._fd != _STDOUT:
            super().close()


def _set_binary(fd: int) -> None:
    """Keep Windows from writing a carriage return before each newline."""
    if sys.platform == "win32":
        import msvcrt

        msvcrt.setmode(fd, os.O_BINARY)
