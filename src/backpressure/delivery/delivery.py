"""Delivery: threads that take batches out of a buffer and send them to a sink.

    get_batch ──> sink.send(batch) ──> outcomes.py ──> lane, dead letters, policies

It survives whatever the sink raises. It ends by `stop`, with the buffer, at the end of
the interpreter (both drain it), where the sink is gone for good, and where it is no
sink at all.

The threads are daemons, so that a sink that hangs does not keep the process alive. The
last one that ends closes the sink.

The command, the service and the logging handler deliver by this, too: see
`Delivery.begin`.
"""

from __future__ import annotations

import inspect
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal

from backpressure.base.at_exit import at_exit
from backpressure.base.errors import BufferClosed
from backpressure.base.sending import sending
from backpressure.base.validation import timeout_seconds
from backpressure.base.wakeup import Wakeup
from backpressure.buffer.batch import Batch
from backpressure.delivery.base import ERROR_PAUSE, IDLE, LOOK, DeliveryBase
from backpressure.delivery.outcomes import Meaning, Outcome

if TYPE_CHECKING:
    from backpressure.buffer.outlet import Outlet
    from backpressure.buffer_manager import BufferManager

__all__ = ["Delivery"]

# What the end of the interpreter waits for (seconds), as `close` does by default.
_EXIT_SECONDS: Final = 5.0


class Delivery(DeliveryBase):
    """What `BufferManager.deliver_to` returns, and holds. As a context manager it stops
    at the end of the block.
    """

    def __init__(
        self,
        buffer: BufferManager,
        outlet: Outlet,
        sink: Any,
        *,
        workers: int = 1,
        max_events: int | None = None,
        classify: Callable[[BaseException], object] | None = None,
        close_sink: bool = True,
        ends_buffer: bool = True,
        linger: float = 0.0,
        by_steps: bool = False,
    ) -> None:
        """ends_buffer: whether the end of the interpreter closes the buffer, and so
        waits for what is in it. linger: seconds that a worker waits between two
        batches, in which events collect, unless somebody stops or flushes. by_steps: it
        has no threads; what is delivered, `step` delivers.
        """
        super().__init__(
            buffer,
            outlet,
            sink,
            workers=workers,
            max_events=max_events,
            classify=classify,
            close_sink=close_sink,
            what="workers",
        )
        if _is_coroutine_function(self._send):
            raise TypeError(
                f"{self.name} is a coroutine function, which a thread cannot wait for: "
                f"use buffer.aio.deliver_to, or give a plain function"
            )
        self._ends_buffer = ends_buffer
        self._linger = linger
        self._by_steps = by_steps
        self._hurries = False
        self._until_the_end = ExitStack()
        # How many wait in `flush`.
        self._flushing = 0
        self._wakeup = Wakeup("delivery")
        self._threads: list[threading.Thread] = []
        self._working = 0
        self._over = threading.Event()
        self._sink_closed = False

    @classmethod
    def begin(cls, buffer: BufferManager, sink: Any, **options: Any) -> Delivery:
        """Make and start the one delivery of a buffer: as `deliver_to`, with the
        options of the constructor besides.
        """
        return buffer._hold_delivery(lambda outlet: cls(buffer, outlet, sink, **options))

    # ------------------------------------------------------------ seen from outside

    def start(self) -> None:
        """Begin; `deliver_to` has done so."""
        if self._ends_buffer:
            _running.add(self)
            _register()
        self._add_workers()

    def step(self, timeout: float = 0.0) -> bool:
        """Where it goes by steps: send the next batch in the calling thread, waiting
        for it for that many seconds at most; whether there was one.

        By one thread at a time. Raises BufferClosed where nothing will ever come.
        """
        if self.error is not None or self._ended:
            return False
        batch = self._outlet.get_batch(self._max_events, timeout)
        if batch is None:
            return False
        self._threads = [threading.current_thread()]
        try:
            outcome = self._deliver(batch)
        finally:
            self._threads = []
        pause = self._pause_after(outcome)
        if pause:
            self._wakeup.wait(lambda: self._stopping, pause)
        if self.error is not None:
            self._leave()
        return True

    def _step_to_the_end(self) -> None:
        try:
            while not self._ended and not self._is_over():
                self.step(LOOK)
        except BufferClosed:
            pass
        if not self._ended:
            self._leave()

    def hurry(self) -> None:
        """From now on the sink is asked whatever the circuit says, and pauses are
        short: for whoever is about to end, and has to do something else until then.
        """
        if not self._forked and not self._hurries:
            self._hurries = True
            self._until_the_end.enter_context(self._outlet.asking())

    def flush(self, timeout: float | None = 5.0) -> bool:
        """Wait until what is in the buffer now has been settled, for that many seconds
        at most (None: as long as it takes); whether it has.

        Meanwhile the sink is asked whatever the circuit says. A sink that calls this
        itself is not waited for.
        """
        seconds = timeout_seconds(timeout)
        if self._forked:
            return True
        ends = self._outlet.ends()
        if self._is_own_thread():
            return self._outlet.has_settled(ends)
        deadline = time.monotonic() + seconds
        with self._lock:
            self._flushing += 1
        try:
            with self._outlet.asking():
                self._wakeup.notify()
                self._buffer.wake_waiters()
                while not (settled := self._outlet.has_settled(ends)):
                    left = deadline - time.monotonic()
                    if left <= 0.0 or not self.running:
                        return False
                    self._outlet.room_waiter(
                        lambda: self._outlet.has_settled(ends) or not self.running
                    ).wait(min(left, IDLE))
                return settled
        finally:
            with self._lock:
                self._flushing -= 1

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the delivery has ended, for that many seconds at most (None: as
        long as it takes); whether it has.
        """
        seconds = timeout_seconds(timeout)
        if not self.running or self._is_own_thread():
            return not self.running
        return self._over.wait(min(seconds, threading.TIMEOUT_MAX))

    def stop(self, timeout: float | None = 5.0, drain: bool = True) -> bool:
        """Deliver what is in the buffer now, for that many seconds at most (None: as
        long as it takes), then end and close the sink. The buffer stays open.

        Meanwhile the sink is asked whatever the circuit says. drain: False ends with
        the batches that are being sent. Returns whether all was delivered and the sink
        is closed; what was not stays in the buffer.
        """
        seconds = timeout_seconds(timeout)
        if self._forked:
            return True
        deadline = time.monotonic() + seconds
        self._begin_stop(drain, deadline)
        self._wakeup.notify()
        with self._outlet.asking() if drain else nullcontext():
            self._buffer.wake_waiters()
            if self._is_own_thread():
                return False  # it ends when the call of the sink has returned
            if self._by_steps:
                self._step_to_the_end()
            ended = self.wait(max(0.0, deadline - time.monotonic()))
            if not ended:
                self._abort_calls()
        drained = self._drained()
        if drain and not (ended and drained):
            self._say_stopped(seconds)
        return ended and drained and self.error is None

    def end_with_buffer(self, seconds: float) -> None:
        """The buffer has been closed: wait for the end for that long at most."""
        self._deadline = 0.0
        self._stopping = True
        self._wakeup.notify()
        if not self.wait(seconds):
            self._abort_calls()

    def __enter__(self) -> Delivery:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> Literal[False]:
        self.stop()
        return False

    def _is_own_thread(self) -> bool:
        return threading.current_thread() in self._threads

    # ------------------------------------------------------------ workers

    def _add_workers(self) -> None:
        """Have one for each batch that may be in flight; those too many sleep."""
        while not self._stopping and not self._by_steps:
            with self._lock:
                number = len(self._threads)
                if number >= min(self._limit.limit, self._workers):
                    return
                thread = threading.Thread(
                    target=self._run,
                    args=(number,),
                    name=f"forebay-delivery-{number}",
                    daemon=True,
                )
                self._threads.append(thread)
                self._working += 1
            try:
                thread.start()
            except RuntimeError:
                # No thread can be had now: the others do it.
                with self._lock:
                    self._threads.remove(thread)
                    self._working -= 1
                    if not self._threads:
                        self._ended = True
                        self._over.set()
                        raise
                return

    def _run(self, number: int) -> None:
        try:
            while not self._is_over() and self.error is None:
                if number >= self._limit.limit and not self._stopping:
                    self._wakeup.wait(lambda: number < self._limit.limit or self._stopping, IDLE)
                    continue
                try:
                    batch = self._outlet.next_batch(self._max_events, not self._stopping)
                    if batch is None:
                        self._sleep()
                        continue
                    outcome = self._deliver(batch)
                except BufferClosed:
                    break
                except BaseException as error:
                    # Of the buffer itself, as where a disk fails. What was taken and
                    # not settled comes again.
                    self._say(logging.ERROR, "delivery to %s: %r", self.name, error)
                    self._wakeup.wait(lambda: self._stopping, ERROR_PAUSE)
                    continue
                pause = self._pause_after(outcome)
                if pause:
                    self._wakeup.wait(lambda: self._stopping, pause)
                elif self._linger:
                    self._wakeup.wait(lambda: self._stopping or self._flushing > 0, self._linger)
        finally:
            self._leave()

    def _sleep(self) -> None:
        """Until there may be a batch, or it is time to stop."""
        stopping = self._stopping
        waiter = self._buffer.batch_waiter(self._max_events)
        waiter.unless(lambda: self._stopping is not stopping).wait(LOOK if stopping else IDLE)

    def _deliver(self, batch: Batch) -> Outcome:
        started = time.monotonic()
        with self._lock:
            self._in_flight += 1
        self._limit.started(started)
        failure: BaseException | None = None
        try:
            with sending(self._buffer.id):
                answer = self._send(batch)
            if answer is not None and inspect.isawaitable(answer):
                failure = self._refuse_awaitable(answer)
        except BaseException as error:
            failure = error
        outcome = self._judge(failure) if self.error is None else Outcome(Meaning.GONE, failure)
        self._returned(batch, outcome, started)
        with self._lock:
            self._in_flight -= 1
        self._conclude(batch, outcome)
        if outcome.meaning is Meaning.GONE and self.error is None:
            self._give_up(failure)
        elif len(self._threads) < self._limit.limit:
            self._add_workers()
        return outcome

    def _refuse_awaitable(self, answer: Any) -> TypeError:
        """What came back has not been sent, and nothing here could wait for it."""
        close = getattr(answer, "close", None)
        if inspect.iscoroutine(answer) and close is not None:
            close()
        error = TypeError(
            f"{self.name} returned {type(answer).__name__}, which is to be awaited and a thread "
            f"cannot: use buffer.aio.deliver_to"
        )
        self._give_up(error)
        return error

    def _give_up(self, error: BaseException | None) -> None:
        self.error = error
        self._wakeup.notify()
        self._buffer.wake_waiters()

    def _leave(self) -> None:
        """A worker ends; the last one ends the delivery."""
        with self._lock:
            self._working -= 1
            if self._working > 0:
                return
        self._until_the_end.close()
        self._close_sink()
        self._ended = True
        self._say_end()
        _running.discard(self)
        self._over.set()
        self._buffer.wake_waiters()

    def _abort_calls(self) -> None:
        """The time for the end is over: a sink that can ends the calls under way."""
        abort = getattr(self._sink, "abort", None)
        if not callable(abort):
            return
        try:
            with sending(self._buffer.id):
                abort()
        except Exception as error:
            self._say(logging.ERROR, "%s cannot end its calls: %r", self.name, error)

    def _close_sink(self) -> None:
        close = getattr(self._sink, "close", None)
        if not self._closes_sink or self._sink_closed or not callable(close):
            return
        self._sink_closed = True
        try:
            with sending(self._buffer.id):
                close()
        except BaseException as error:
            self.error = self.error or error


def _is_coroutine_function(send: Any) -> bool:
    return inspect.iscoroutinefunction(send) or inspect.iscoroutinefunction(
        getattr(send, "__call__", None)  # noqa: B004 - an object whose call is async
    )


# ------------------------------------------------------------ the interpreter's end

_running: Final[weakref.WeakSet[Delivery]] = weakref.WeakSet()
_registered_in: int | None = None


def _register() -> None:
    """Once in each process: a forked child has no exit handlers of its own."""
    global _registered_in
    if _registered_in != os.getpid():
        _registered_in = os.getpid()
        at_exit(_drain_all)


def _drain_all() -> None:
    """One time for all of them."""
    deadline = time.monotonic() + _EXIT_SECONDS
    threads = []
    for delivery in list(_running):
        if delivery.running:
            left = max(0.0, deadline - time.monotonic())
            thread = threading.Thread(target=delivery._buffer.close, args=(left,), daemon=True)
            threads.append((thread, delivery))
    for thread, delivery in threads:
        try:
            thread.start()
        except RuntimeError:  # too late for new threads: one after the other
            delivery._buffer.close(max(0.0, deadline - time.monotonic()))
    for thread, _ in threads:
        if thread.ident is not None:
            thread.join(max(0.0, deadline - time.monotonic()) + 0.5)
