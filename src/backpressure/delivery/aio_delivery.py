"""AsyncDelivery: tasks of one event loop that take batches out of a buffer and send
them to an asynchronous sink. Its twin for threads is delivery.py.

A task that is cancelled in the midst of a call gives its batch back, as if it had never
been sent: nothing is lost where a loop ends without `stop`.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import Callable
from contextlib import nullcontext
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal

from backpressure.base.errors import BufferClosed
from backpressure.base.sending import sending
from backpressure.base.validation import timeout_seconds
from backpressure.buffer.aio import sleep_on
from backpressure.buffer.batch import Batch
from backpressure.delivery.base import ERROR_PAUSE, IDLE, LOOK, DeliveryBase
from backpressure.delivery.outcomes import Meaning, Outcome

if TYPE_CHECKING:
    from backpressure.buffer.outlet import Outlet
    from backpressure.buffer_manager import BufferManager

__all__ = ["AsyncDelivery"]


class AsyncDelivery(DeliveryBase):
    """What `buffer.aio.deliver_to` returns. As an asynchronous context manager it stops
    at the end of the block.
    """

    def __init__(
        self,
        buffer: BufferManager,
        outlet: Outlet,
        sink: Any,
        *,
        concurrency: int = 1,
        max_events: int | None = None,
        classify: Callable[[BaseException], object] | None = None,
        close_sink: bool = True,
    ) -> None:
        super().__init__(
            buffer,
            outlet,
            sink,
            workers=concurrency,
            max_events=max_events,
            classify=classify,
            close_sink=close_sink,
            what="concurrency",
        )
        try:
            self._loop: Final = asyncio.get_running_loop()
        except RuntimeError:
            raise RuntimeError(
                "buffer.aio.deliver_to needs a running event loop: call it in a coroutine, or use "
                "buffer.deliver_to"
            ) from None
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._over = asyncio.Event()

    # ------------------------------------------------------------ seen from outside

    def start(self) -> None:
        """Begin; `deliver_to` has done so."""
        self._add_workers()

    async def wait(self, timeout: float | None = None) -> bool:
        """As `Delivery.wait`."""
        seconds = timeout_seconds(timeout)
        if self.running:
            try:
                async with asyncio.timeout(None if seconds == float("inf") else seconds):
                    await self._over.wait()
            except TimeoutError:
                pass
        return not self.running

    async def stop(self, timeout: float | None = 5.0, drain: bool = True) -> bool:
        """As `Delivery.stop`. What is still being sent at the end of that time is
        cancelled, and goes back into the buffer.
        """
        seconds = timeout_seconds(timeout)
        if self._forked:
            return True
        deadline = time.monotonic() + seconds
        self._begin_stop(drain, deadline)
        self._wake_tasks()
        with self._outlet.asking() if drain else nullcontext():
            self._buffer.wake_waiters()
            ended = await self.wait(max(0.0, deadline - time.monotonic()))
            if not ended:
                for task in tuple(self._tasks):
                    task.cancel()
                ended = await self.wait(1.0)
        drained = self._drained()
        if drain and not (ended and drained):
            self._say_stopped(seconds)
        return ended and drained and self.error is None

    async def flush(self, timeout: float | None = 5.0) -> bool:
        """As `Delivery.flush`."""
        seconds = timeout_seconds(timeout)
        if self._forked:
            return True
        ends = self._outlet.ends()
        deadline = time.monotonic() + seconds
        with self._outlet.asking():
            self._wake_tasks()
            self._buffer.wake_waiters()
            while not (settled := self._outlet.has_settled(ends)):
                left = deadline - time.monotonic()
                if left <= 0.0 or not self.running:
                    return False
                waiter = self._outlet.room_waiter(
                    lambda: self._outlet.has_settled(ends) or not self.running
                )
                await sleep_on(waiter, min(left, IDLE))
            return settled

    def end_with_buffer(self, seconds: float) -> None:
        """The buffer has been closed, from any thread: the tasks find that out, and
        the loop is not waited for.
        """
        self._deadline = 0.0
        self._stopping = True
        self._wake_tasks()

    async def __aenter__(self) -> AsyncDelivery:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> Literal[False]:
        await self.stop()
        return False

    # ------------------------------------------------------------ tasks

    def _wake_tasks(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._changed.set)
        except RuntimeError:  # the loop has been closed, and its tasks with it
            pass

    def _add_workers(self) -> None:
        while not self._stopping and len(self._tasks) < min(self._limit.limit, self._workers):
            task = self._loop.create_task(
                self._run(len(self._tasks)), name=f"forebay-delivery-{len(self._tasks)}"
            )
            self._tasks.add(task)
            task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.error = self.error or error
        if not self._tasks and not self._ended:
            self._ended = True
            if self._closes_sink and not self._loop.is_closed():
                closing = self._loop.create_task(self._close_sink())
                closing.add_done_callback(lambda _: self._over.set())
                # Held: a loop keeps tasks weakly.
                self._closing = closing
            else:
                self._over.set()
            self._say_end()

    async def _close_sink(self) -> None:
        close = getattr(self._sink, "aclose", None) or getattr(self._sink, "close", None)
        if not callable(close):
            return
        try:
            with sending(self._buffer.id):
                answer = close()
                if inspect.isawaitable(answer):
                    await answer
        except Exception as error:
            self.error = self.error or error

    async def _run(self, number: int) -> None:
        while not self._is_over() and self.error is None:
            if number >= self._limit.limit and not self._stopping:
                await self._pause(IDLE)
                continue
            try:
                batch = self._outlet.next_batch(self._max_events, not self._stopping)
                if batch is None:
                    await self._sleep()
                    continue
                outcome = await self._deliver(batch)
            except BufferClosed:
                break
            except Exception as error:
                # Of the buffer itself, as where a disk fails. What was taken and not
                # settled comes again.
                self._say(logging.ERROR, "delivery to %s: %r", self.name, error)
                await self._pause(ERROR_PAUSE)
                continue
            pause = self._pause_after(outcome)
            if pause:
                await self._pause(pause)

    async def _pause(self, seconds: float) -> None:
        self._changed.clear()
        if self._stopping:
            return
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            pass

    async def _sleep(self) -> None:
        """Until there may be a batch, or it is time to stop."""
        stopping = self._stopping
        waiter = self._buffer.batch_waiter(self._max_events)
        await sleep_on(
            waiter.unless(lambda: self._stopping is not stopping), LOOK if stopping else IDLE
        )

    async def _deliver(self, batch: Batch) -> Outcome:
        started = time.monotonic()
        self._in_flight += 1
        self._limit.started(started)
        failure: BaseException | None = None
        try:
            with sending(self._buffer.id):
                answer = self._send(batch)
                if inspect.isawaitable(answer):
                    await answer
                else:
                    failure = self._refuse_plain()
        except BaseException as error:
            failure = error
        self._in_flight -= 1
        outcome = self._judge(failure) if self.error is None else Outcome(Meaning.GONE, failure)
        self._returned(batch, outcome, started)
        self._conclude(batch, outcome)
        if isinstance(failure, (asyncio.CancelledError, KeyboardInterrupt, SystemExit)):
            task = asyncio.current_task()
            if not isinstance(failure, asyncio.CancelledError) or (task and task.cancelling()):
                raise failure  # of this task; a cancellation within the sink is its own
        if outcome.meaning is Meaning.GONE and self.error is None:
            self._give_up(failure)
        elif len(self._tasks) < self._limit.limit:
            self._add_workers()
        return outcome

    def _refuse_plain(self) -> TypeError:
        """A plain function has run, and has kept the event loop waiting."""
        error = TypeError(
            f"{self.name} is no coroutine function: use buffer.deliver_to, whose threads do not "
            f"keep the event loop waiting"
        )
        self._give_up(error)
        return error

    def _give_up(self, error: BaseException | None) -> None:
        self.error = error
        self._changed.set()
        self._buffer.wake_waiters()
