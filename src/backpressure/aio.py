"""The asynchronous face of a buffer: the same buffer, awaited instead of waited for. No thread is involved.

    async for batch in buffer.aio.batches():
        with batch:
            await send(batch)

Any number of event loops and threads may use one buffer at the same time. A coroutine that is cancelled while it waits has
taken nothing; what it had got accepted stays accepted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any

from backpressure.admission import Admission
from backpressure.batch import Batch
from backpressure.errors import BufferClosed
from backpressure.priority import Priority

if TYPE_CHECKING:
    from backpressure.buffer_manager import BufferManager
    from backpressure.intake import Offer
    from backpressure.wakeup import Wakeup

__all__ = ["AsyncBuffer"]


class AsyncBuffer:
    """`add_events`, `add_lines`, `get_batch` and `close` as coroutines, and batches as an asynchronous iterator."""

    def __init__(self, buffer: BufferManager) -> None:
        self._buffer = buffer

    async def add_events(
        self, events: Sequence[bytes | str] | Any, priority: int = Priority.NORMAL, timeout: float | None = 0.0
    ) -> Admission:
        """As `BufferManager.add_events`."""
        return await self._wait_for(self._buffer._offer_events(events, priority), timeout)

    async def add_lines(
        self, chunk: Any, priority: int = Priority.NORMAL, timeout: float | None = 0.0, final: bool = True
    ) -> Admission:
        """As `BufferManager.add_lines`."""
        return await self._wait_for(self._buffer._offer_lines(chunk, priority, final), timeout)

    async def get_batch(self, max_events: int | None = None, timeout: float | None = 0.0) -> Batch | None:
        """As `BufferManager.get_batch`."""
        buffer = self._buffer
        patient = timeout != 0
        deadline = float("inf") if timeout is None else time.monotonic() + timeout
        while True:
            batch = buffer._next_batch(max_events, patient)
            if batch is not None or not patient:
                return batch
            left = deadline - time.monotonic()
            if left > 0:
                wakeup, done, pause = buffer._rest(max_events)
                await _sleep(wakeup, done, min(left, pause))
            else:
                patient = False  # what still waits to fill goes now

    async def batches(self, max_events: int | None = None) -> AsyncIterator[Batch]:
        """Batches as they become ready, until the buffer is closed and empty."""
        while True:
            try:
                batch = await self.get_batch(max_events, timeout=None)
            except BufferClosed:
                return
            if batch is not None:
                yield batch

    async def close(self, timeout: float | None = 5.0) -> None:
        """As `BufferManager.close`, without keeping the event loop waiting."""
        await asyncio.to_thread(self._buffer.close, timeout)

    async def _wait_for(self, offer: Offer, timeout: float | None) -> Admission:
        buffer = self._buffer
        try:
            if not offer.advance():
                deadline = offer.deadline(timeout)
                while (left := deadline - time.monotonic()) > 0:
                    await _sleep(buffer._room, lambda: buffer._closing or offer.may_advance(), min(left, offer.pause()))
                    if offer.advance() or buffer._closing:
                        break
        finally:
            # Also when cancelled: the books must show what became of every event.
            admission = offer.admission()
        disk = buffer._disk
        if disk is not None and disk.commits and offer.end_seq:
            await asyncio.to_thread(disk.spiller.wait_durable, disk.lanes[offer.priority - 1], offer.end_seq)
        return admission


async def _sleep(wakeup: Wakeup, done: Callable[[], bool], timeout: float) -> None:
    """Wait until `wakeup` is notified, or for `timeout` seconds, unless `done()` holds already."""
    loop = asyncio.get_running_loop()
    woken = asyncio.Event()

    def wake() -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(woken.set)

    with wakeup.listening(wake):
        if not done():
            try:
                async with asyncio.timeout(timeout):
                    await woken.wait()
            except TimeoutError:
                pass
