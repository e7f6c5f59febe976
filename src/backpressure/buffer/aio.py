"""The asynchronous face of a buffer: the same buffer, awaited instead of waited for. No
thread is involved.

    async for batch in buffer.aio.batches():
        with batch:
            await send(batch)

Any number of event loops and threads may use one buffer at the same time. A coroutine
that is cancelled while it waits has taken nothing; what it had got accepted stays
accepted.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from backpressure.base.errors import BufferClosed
from backpressure.base.validation import NOT_GIVEN, NotGiven, timeout_seconds
from backpressure.buffer.admission import Admission
from backpressure.buffer.batch import Batch

if TYPE_CHECKING:
    from backpressure.base.events import Event, EventType
    from backpressure.base.wakeup import Waiter
    from backpressure.buffer.event_dispatcher import Subscription
    from backpressure.buffer.pending_add import PendingAdd
    from backpressure.buffer_manager import BufferManager
    from backpressure.delivery.aio_delivery import AsyncDelivery
    from backpressure.delivery.sink import AsyncSink

__all__ = ["AsyncBuffer", "EventFeed", "sleep_on"]


class AsyncBuffer:
    """`add_events`, `add_lines`, `get_batch` and `close` as coroutines, and batches as
    an asynchronous iterator.
    """

    def __init__(self, buffer: BufferManager) -> None:
        self._buffer = buffer
        self._try_add = buffer._try_add

    async def add_events(
        self,
        events: Sequence[bytes | str] | Any,
        priority: int | None = None,
        timeout: float | NotGiven | None = NOT_GIVEN,
        *,
        wait_for_sink: bool = False,
    ) -> Admission:
        """As `BufferManager.add_events`."""
        intake = self._buffer._intake
        seconds = intake.seconds(timeout)
        pending = intake.pending_events(events, priority, wait_for_sink and seconds > 0)
        return await self._finish(pending, seconds)

    async def add_event(
        self,
        event: bytes | str,
        priority: int | None = None,
        timeout: float | NotGiven | None = NOT_GIVEN,
    ) -> bool:
        """As `BufferManager.add_event`."""
        if timeout is not NOT_GIVEN:
            timeout_seconds(timeout)
        if self._try_add(event, priority):
            return True
        return not (await self.add_events([event], priority, timeout=timeout)).rejected

    async def add_lines(
        self,
        chunk: Any,
        priority: int | None = None,
        timeout: float | NotGiven | None = NOT_GIVEN,
        final: bool = True,
        *,
        max_event_bytes: int | None = None,
        wait_for_sink: bool = False,
        stop: Callable[[], bool] = lambda: False,
    ) -> Admission:
        """As `BufferManager.add_lines`. Waiting ends early where `stop()` holds; what
        makes it hold calls `BufferManager.wake_waiters`.
        """
        intake = self._buffer._intake
        seconds = intake.seconds(timeout)
        pending = intake.pending_lines(
            chunk, priority, final, max_event_bytes, wait_for_sink and seconds > 0
        )
        return await self._finish(pending, seconds, stop)

    async def get_batch(
        self, max_events: int | None = None, timeout: float | None = 0.0
    ) -> Batch | None:
        """As `BufferManager.get_batch`."""
        outlet = self._buffer._outlet
        seconds = timeout_seconds(timeout)
        patient = seconds > 0
        deadline = time.monotonic() + seconds
        while True:
            batch = outlet.next_batch(max_events, patient)
            if batch is not None or not patient:
                return batch
            left = deadline - time.monotonic()
            if left > 0:
                await sleep_on(outlet.batch_waiter(max_events), left)
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

    def deliver_to(
        self,
        sink: AsyncSink | Callable[[Batch], Awaitable[object]],
        concurrency: int = 1,
        max_events: int | None = None,
        classify: Callable[[BaseException], object] | None = None,
        close_sink: bool = True,
    ) -> AsyncDelivery:
        """As `BufferManager.deliver_to`, in tasks of the running event loop, from now
        on until `AsyncDelivery.stop` or the end of the buffer.

        sink: has a coroutine `send(batch)`, or is a coroutine function of a batch.
        concurrency: batches in flight at once, at most; as many of these as pay.

            async with buffer.aio.deliver_to(post, concurrency=8):
                ...

        A loop that ends cancels the tasks: what they were sending goes back into the
        buffer. `await buffer.aio.close()` delivers what is left; `buffer.close()` in
        the loop's own thread would keep it from doing so.
        """
        from backpressure.delivery.aio_delivery import AsyncDelivery

        buffer = self._buffer
        return buffer._hold_delivery(
            lambda outlet: AsyncDelivery(
                buffer,
                outlet,
                sink,
                concurrency=concurrency,
                max_events=max_events,
                classify=classify,
                close_sink=close_sink,
            )
        )

    def events(self, *types: EventType, since: int | None = None, limit: int = 256) -> EventFeed:
        """The buffer's events of these types (none named: all) from this call on, as an
        asynchronous iterator.

            async for event in buffer.aio.events(EventType.CIRCUIT_STATE_CHANGED):
                ...

        since: first what is still kept (the last 512) of the events after the one with
        that `seq`. limit: how many may wait for the reader; of more the oldest are lost
        to it, and counted in `EventFeed.missed`.
        """
        return EventFeed(self._buffer._notifications.subscribe(*types, since=since, limit=limit))

    @property
    def last_event_seq(self) -> int:
        """The number of the last event that the buffer told of; 0: none yet. To be
        given to `events` as `since`.
        """
        return self._buffer._notifications.last_seq

    async def close(self, timeout: float | None = 5.0) -> None:
        """As `BufferManager.close`, without keeping the event loop waiting."""
        timeout_seconds(timeout)  # before there is a thread
        await asyncio.to_thread(self._buffer.close, timeout)

    async def _finish(
        self, pending: PendingAdd, seconds: float, stop: Callable[[], bool] = lambda: False
    ) -> Admission:
        """Press on with an add for that long; what became of it."""
        intake = self._buffer._intake
        try:
            if not pending.advance() and seconds > 0:
                deadline = time.monotonic() + seconds
                intake.hurry_disk(pending)
                while (left := deadline - time.monotonic()) > 0:
                    await sleep_on(intake.room_waiter(pending).unless(stop), left)
                    if pending.advance() or intake.closing or stop():
                        break
                else:
                    intake.end_wait(pending)
        finally:
            # Also when cancelled: the books show what became of every event, and what
            # is in is as durable as was promised.
            admission = pending.admission()
            if intake.awaits_disk(pending):
                await _uncancelled(asyncio.to_thread(intake.wait_durable, pending))
        return admission


async def _uncancelled(work: Coroutine[Any, Any, object]) -> None:
    """Await `work` to its end; a cancellation that comes meanwhile is raised then."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    task.result()


class EventFeed:
    """Events as they come, for one coroutine; ends when the buffer is closed. Made by
    `AsyncBuffer.events`.

    Forgetting it is enough to end it; `close`, or its use as an (asynchronous) context
    manager, ends it at once.
    """

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription
        self._loop: asyncio.AbstractEventLoop | None = None
        self._woken = asyncio.Event()

    @property
    def missed(self) -> int:
        """Events lost so far, because they came faster than they were read."""
        return self._subscription.missed

    def close(self) -> None:
        """End it: what waits can still be read."""
        self._subscription.close()

    @property
    def ended(self) -> bool:
        """No more events will come; some may still wait to be read."""
        return self._subscription.ended

    async def get(self, timeout: float | None = None) -> Event | None:
        """The next event, or None: `timeout` seconds (None: no end) have passed, or it
        has `ended` and nothing waits.
        """
        seconds = timeout_seconds(timeout)
        try:
            async with asyncio.timeout(None if seconds == math.inf else seconds):
                return await self.__anext__()
        except (TimeoutError, StopAsyncIteration):
            return None

    def __aiter__(self) -> EventFeed:
        return self

    async def __anext__(self) -> Event:
        self._attach()
        subscription = self._subscription
        while True:
            self._woken.clear()
            ended = (
                subscription.ended
            )  # read first: an event that comes before the end is not overlooked
            event = subscription.take()
            if event is not None:
                return event
            if ended:
                raise StopAsyncIteration
            await self._woken.wait()

    async def __aenter__(self) -> EventFeed:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _attach(self) -> None:
        """Have this event loop woken."""
        if self._loop is None:
            self._loop = loop = asyncio.get_running_loop()
            woken = self._woken

            def wake() -> None:
                try:
                    loop.call_soon_threadsafe(woken.set)
                except RuntimeError:  # the loop has been closed: none waits
                    pass

            self._subscription.wake = wake


async def sleep_on(waiter: Waiter, most: float) -> None:
    """What `Waiter.wait` is, for a coroutine."""
    loop = asyncio.get_running_loop()
    woken = asyncio.Event()

    def wake() -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(woken.set)

    with waiter.wakeup.listening(wake):
        if not waiter.done():
            try:
                async with asyncio.timeout(min(waiter.seconds, most)):
                    await woken.wait()
            except TimeoutError:
                pass
