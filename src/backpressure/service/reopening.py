"""ReopeningSink: a file sink that can be opened anew between two batches."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

from backpressure.base.wording import reason
from backpressure.buffer.batch import Batch
from backpressure.sinks import Sink

__all__ = ["ReopeningSink"]

_log = logging.getLogger("backpressure")


class ReopeningSink:
    """make: opens the file. OSError where it cannot be opened the first time; later
    that is logged, and the old one stays.
    """

    max_concurrency: Final = 1

    def __init__(self, make: Callable[[], Sink]) -> None:
        self._make = make
        self._sink = make()
        self._wanted = threading.Event()
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """As the file's sink has it."""
        return str(getattr(self._sink, "name", type(self._sink).__name__))

    @property
    def rejects_events(self) -> bool:
        """As the file's sink has it."""
        return bool(getattr(self._sink, "rejects_events", True))

    def send(self, batch: Batch) -> None:
        """As the file's sink does."""
        with self._lock:
            if self._wanted.is_set():
                self._open_anew()
            self._sink.send(batch)

    def reopen(self) -> None:
        """Open the file anew: now, or before the next batch where one is being sent."""
        self._wanted.set()
        if self._lock.acquire(blocking=False):
            try:
                if self._wanted.is_set():
                    self._open_anew()
            finally:
                self._lock.release()

    def close(self) -> None:
        """Close the file."""
        self._sink.close()

    def _open_anew(self) -> None:
        self._wanted.clear()
        try:
            fresh = self._make()
        except OSError as error:
            _log.error("the sink is not opened anew: %s", reason(error))
            return
        old, self._sink = self._sink, fresh
        try:
            old.close()
        except OSError as error:
            _log.error("%s", reason(error))
