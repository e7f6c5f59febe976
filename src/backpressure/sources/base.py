"""The protocol between a service and its sources."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeAlias

from backpressure.base.log_limiter import LogLimiter

__all__ = ["Incidents", "Marks", "Put", "ServiceSource", "SourceStats"]

_log = logging.getLogger("backpressure")

#: What was put is delivered once each priority's lane is, up to this sequence number.
Marks: TypeAlias = tuple[int, ...]

#: Puts whole lines (with their newlines) into the buffer, waiting for room as long as
#: it takes; the memory may be overwritten afterwards. None: the service ends, and some
#: or all of them were not accepted.
Put: TypeAlias = Callable[[memoryview], Marks | None]


class ServiceSource(Protocol):
    """A source that runs until it is stopped, or has no more."""

    name: str

    def run(self, put: Put, stopping: threading.Event) -> None:
        """Read lines and put them, until `stopping` is set or there will be no more.

        OSError: it cannot go on.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceStats:
    """A snapshot of what a source has had to leave out, and why."""

    name: str
    #: Connections that are open now.
    connections: int = 0
    #: By reason; every reason that the source knows is there from the start.
    incidents: Mapping[str, int] = field(default_factory=dict)


class Incidents:
    """Counts what a source has to leave out, by reason, and logs it at a limited rate.

    Safe for any number of threads.
    """

    def __init__(self, name: str, *reasons: str) -> None:
        self._name: Final = name
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(reasons, 0)
        self._few_lines = LogLimiter()

    def add(self, reason: str, text: str, *args: Any, count: int = 1) -> None:
        """Count it; `text` and `args` say in the log what happened the last time."""
        with self._lock:
            self._counts[reason] += count
        if times := self._few_lines.add(reason, count, time.monotonic()):
            _log.warning(f"%s: {text} (%d such since the last line)", self._name, *args, times)

    def count(self, reason: str) -> int:
        """How many there were of that kind."""
        with self._lock:
            return self._counts[reason]

    def snapshot(self) -> dict[str, int]:
        """All of them, by reason."""
        with self._lock:
            return dict(self._counts)
