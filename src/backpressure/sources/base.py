"""What a source of a service does with its lines, and how a service runs it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol, TypeAlias

__all__ = ["Marks", "Put", "ServiceSource"]

#: For each priority the sequence number up to which its lane must be delivered, so that
#: what was put is.
Marks: TypeAlias = tuple[int, ...]

#: Puts whole lines (with their newlines) into the buffer, waiting for room as long as
#: it takes; they may be overwritten after it. None: the service ends, and some or all
#: of them were not accepted.
Put: TypeAlias = Callable[[memoryview], Marks | None]


class ServiceSource(Protocol):
    """A source that runs until it is stopped, or has no more."""

    name: str

    def run(self, put: Put, stopping: threading.Event) -> None:
        """Read lines and put them, until `stopping` is set or there will never be more.
        OSError: it cannot go on.
        """
        ...
