"""Uploads: those that are under way, how they end, and a watchdog over their reads."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from starlette.types import Message, Receive

from backpressure.buffer_manager import BufferManager

__all__ = ["BadUpload", "ReadWatchdog", "Uploads", "UploadsClosing"]


class BadUpload(Exception):
    """The upload itself is at fault. `status` is what it is answered with.

    ends_connection: what follows on its connection may be a part of it.
    """

    def __init__(self, status: int, detail: str, *, ends_connection: bool = False) -> None:
        super().__init__(detail)
        self.status = status
        self.ends_connection = ends_connection

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.status, *self.args), self.__dict__


class UploadsClosing(Exception):
    """The server is to stop, and no more is read."""


class Uploads:
    """The uploads of one app that are under way, and a way to end them."""

    def __init__(self, buffers: Iterable[BufferManager]) -> None:
        self._buffers = tuple(buffers)
        self._open: set[ReadWatchdog] = set()
        self.closing = False

    def begin(self, longest: float) -> ReadWatchdog:
        """Count the current task's upload; it may be silent for `longest` seconds."""
        watchdog = ReadWatchdog(longest, self)
        self._open.add(watchdog)
        return watchdog

    def finish(self, watchdog: ReadWatchdog) -> None:
        """The upload of this watchdog has ended."""
        watchdog.stop()
        self._open.discard(watchdog)

    def end(self) -> None:
        """End all of them, so that the server can stop.

        Each client is told what was accepted of its upload.
        """
        self.closing = True
        for watchdog in self._open:
            watchdog.interrupt_read()
        for buffer in self._buffers:
            buffer.wake_waiters()  # and those that wait for room


class ReadWatchdog:
    """Ends an upload that is silent for too long, or that has to end.

    One timer checks now and then since when the upload has been waited for. A time-out
    around each read would cost as much as putting what was read into the buffer.
    """

    def __init__(self, longest: float, uploads: Uploads) -> None:
        self._longest = longest
        self._uploads = uploads
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._since: float | None = None  # when the read under way began
        self._timer = self._loop.call_later(longest, self._check_silence)
        self.broken = False

    async def read(self, receive: Receive) -> Message:
        """The next message.

        BadUpload where none comes in time, UploadsClosing where the server stops.
        """
        if self._uploads.closing:
            raise UploadsClosing
        self._since = self._loop.time()
        try:
            return await receive()
        except asyncio.CancelledError:
            closing = self._uploads.closing and not self.broken
            if not (self.broken or closing) or self._task is None:
                raise
            self._task.uncancel()
            if closing:
                raise UploadsClosing from None
            raise BadUpload(408, f"nothing came for {self._longest:g} s") from None
        finally:
            self._since = None

    def interrupt_read(self) -> None:
        """Let the read under way raise UploadsClosing; the next one does it itself."""
        if self._since is not None and not self.broken and self._task is not None:
            self._task.cancel()

    def stop(self) -> None:
        """Watch no longer."""
        self._timer.cancel()

    def _check_silence(self) -> None:
        now = self._loop.time()
        since = now if self._since is None else self._since
        if now - since >= self._longest and self._task is not None and not self._uploads.closing:
            self.broken = True
            self._task.cancel()
        else:
            self._timer = self._loop.call_at(since + self._longest, self._check_silence)
