"""What a sink is.

A sink takes whole batches. `send` returns when the batch is the sink's business and no
longer the buffer's, and raises where it is not: the caller then nacks the batch and it
comes again, with the same `id` and a higher `attempt`. So delivery is at least once; a
sink that can undo or recognise a batch makes it exact.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from backpressure.buffer.batch import Batch

__all__ = ["Sink"]


@runtime_checkable
class Sink(Protocol):
    """Takes batches, one at a time. Called by one thread; needs no locks of its own."""

    def send(self, batch: Batch) -> None:
        """Deliver all of `batch`, or raise. `SinkGone` says that trying again is
        useless.
        """
        ...

    def close(self) -> None:
        """Give back what the sink holds. May raise where the last of the data cannot
        be written; a second call does nothing.
        """
        ...
