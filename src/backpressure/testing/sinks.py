"""Sinks for tests: one that keeps what it gets, and one that makes another fail."""

from __future__ import annotations

import errno
import os
import random
import threading
from typing import NoReturn

from backpressure.buffer.batch import Batch
from backpressure.sinks import LineSink, Sink

__all__ = ["FailingSink", "MemorySink"]


class MemorySink:
    """Keeps what is sent to it; safe for any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: The events in the order of their delivery, without newlines.
        self.events: list[bytes] = []
        #: The id of each batch, in the same order.
        self.batch_ids: list[str] = []
        self.closed = False

    def send(self, batch: Batch) -> None:
        events = list(batch)
        with self._lock:
            self.events += events
            self.batch_ids.append(batch.id)

    def close(self) -> None:
        self.closed = True


class FailingSink:
    """Passes on to `inner`, but fails in the share `rate` (0 to 1) of all calls.

    For one `seed` the same calls fail. Every second failure, on average, comes before
    anything is written. The others come when a part of the batch has been: that needs
    an `inner` that writes to a descriptor (a `LineSink`), and becomes the first kind
    for any other. What is raised is an OSError (EIO), as from a bad disk.
    """

    def __init__(self, inner: Sink, rate: float, *, seed: int = 0) -> None:
        if not 0.0 <= rate <= 1.0:
            raise ValueError(f"rate: must be from 0 to 1, not {rate!r}")
        self.inner = inner
        #: How many calls have failed.
        self.failures = 0
        self._rate = rate
        self._random = random.Random(seed)
        self._cut_after: int | None = None  # bytes to write before the failure; None: do not fail
        if isinstance(inner, LineSink):
            self._writer = inner.writer
            inner.writer = self._write

    def send(self, batch: Batch) -> None:
        """As `inner.send`, unless it is this call's turn to fail."""
        self._cut_after = None
        if self._random.random() < self._rate:
            if not isinstance(self.inner, LineSink) or self._random.random() < 0.5:
                self._fail()
            # Less than all, also where the last line is written without its newline.
            # One number is drawn whatever the size, so that the same calls fail however
            # the events were batched.
            self._cut_after = int(self._random.random() * (batch.nbytes + len(batch) - 1))
        self.inner.send(batch)

    def close(self) -> None:
        """Close `inner`."""
        self.inner.close()

    def _write(self, fd: int, text: memoryview) -> int:
        if self._cut_after is None:
            return self._writer(fd, text)
        if self._cut_after == 0:
            self._fail()
        written = self._writer(fd, text[: self._cut_after])
        self._cut_after -= written
        return written

    def _fail(self) -> NoReturn:
        self.failures += 1
        raise OSError(errno.EIO, f"{os.strerror(errno.EIO)} (injected)")
