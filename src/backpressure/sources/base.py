"""The protocol between a service and its sources."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol, TypeAlias

__all__ = ["Marks", "Put", "ServiceSource"]

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
