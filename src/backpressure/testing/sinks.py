"""Sinks for tests: one that keeps what it gets, and one that makes another fail."""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Callable
from typing import NoReturn

from backpressure.buffer.batch import Batch
from backpressure.sinks import LineSink, Sink

__all__ = ["FailingSink", "MemorySink"]


class MemorySink:
    """Keeps what is sent to it; safe for any thread.

    max_concurrency: how many threads a delivery may call it by.
    """

    def __init__(self, *, max_concurrency: int = 64) -> None:
        self.max_concurrency = max_concurrency
        self._lock = threading.RLock()
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
    for any other. What is raised is an OSError (EIO), as from a bad disk; or, where
    `error` is given, what that makes of the batch, before anything is written. It
    returns None for a batch that passes after all:

    >>> from backpressure.sinks import BatchRejected
    >>> from backpressure.testing import FailingSink, MemorySink, make_batch
    >>> def reject_the_bad(batch):
    ...     return BatchRejected("no") if b"bad" in batch.tolist() else None
    >>> sink = FailingSink(MemorySink(), 1.0, error=reject_the_bad)
    >>> sink.send(make_batch([b"good"]))
    >>> sink.send(make_batch([b"good", b"bad"]))
    Traceback (most recent call last):
    ...
    backpressure.base.errors.BatchRejected: no

    Safe for as many threads as `inner`.
    """

    def __init__(
        self,
        inner: Sink,
        rate: float,
        *,
        seed: int = 0,
        error: Callable[[Batch], BaseException | None] | None = None,
    ) -> None:
        if not 0.0 <= rate <= 1.0:
            raise ValueError(f"rate: must be from 0 to 1, not {rate!r}")
        self.inner = inner
        #: How many calls have failed.
        self.failures = 0
        #: As `inner` has them.
        self.max_concurrency: int = getattr(inner, "max_concurrency", 1)
        self.rejects_events: bool = error is not None or getattr(inner, "rejects_events", True)
        self._rate = rate
        self._error = error
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._cut_after: int | None = None  # bytes to write before the failure; None: do not fail
        if isinstance(inner, LineSink):
            self._writer = inner.writer
            inner.writer = self._write

    def send(self, batch: Batch) -> None:
        """As `inner.send`, unless it is this call's turn to fail."""
        self._cut_after = None
        with self._lock:
            fails = self._random.random() < self._rate
        if fails and self._error is not None:
            error = self._error(batch)
            if error is not None:
                self._count()
                raise error
        elif fails:
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

    def _count(self) -> None:
        with self._lock:
            self.failures += 1

    def _fail(self) -> NoReturn:
        self._count()
        raise OSError(errno.EIO, f"{os.strerror(errno.EIO)} (injected)")
