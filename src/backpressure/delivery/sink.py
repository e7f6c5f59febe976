"""What a sink is.

A sink takes whole batches. `send` returns when the batch is the sink's business and no
longer the buffer's, and raises where it is not; outcomes.py says what each exception
means. The batch then comes again, with the same `id` and a higher `attempt`. So
delivery is at least once; a sink that can undo or recognise a batch makes it exact.

A sink that several threads (or tasks) may call at once has `max_concurrency`, the
number of calls that it takes; one without is called once at a time.

A sink whose failures are never the fault of an event, as a file's, says so by
`rejects_events = False`: then no batch is taken apart to find one, and events arrive in
their order through every failure.

A sink whose calls can be ended from another thread has `abort()`: it is called where
the time given to an end is over, and the calls under way then raise.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from backpressure.buffer.batch import Batch

__all__ = ["AsyncSink", "Sink"]


@runtime_checkable
class Sink(Protocol):
    """Takes batches. It needs no locks of its own, unless it has a `max_concurrency`
    above 1.
    """

    def send(self, batch: Batch) -> object:
        """Deliver all of `batch`, or raise. What it returns is not looked at, but for
        an awaitable, which is a mistake.
        """
        ...

    def close(self) -> None:
        """Give back what the sink holds. May raise where the last of the data cannot
        be written; a second call does nothing.
        """
        ...


@runtime_checkable
class AsyncSink(Protocol):
    """Takes batches, in coroutines. Its `close` may be a coroutine or not."""

    async def send(self, batch: Batch) -> object:
        """Deliver all of `batch`, or raise."""
        ...

    def close(self) -> object:
        """Give back what the sink holds; a second call does nothing."""
        ...
