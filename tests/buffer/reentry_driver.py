"""A program that calls every public method of a buffer from within others of the same
thread: `python -m tests.buffer.reentry_driver gc|signal [directory]`.

`gc`: from finalisers, at every allocation that can start a collection. `signal`: from a
signal's handler, at any instruction of the main thread, and from within each other.
Another thread uses the buffer all the while. What hangs is ended with the tracebacks of
all threads; at the end the books must balance.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from backpressure import (
    Admission,
    Batch,
    BatchRejected,
    BatchStateError,
    BufferClosed,
    BufferConfig,
    BufferManager,
    NotNow,
)
from backpressure.base.events import EventType
from backpressure.buffer.aio import AsyncBuffer
from backpressure.policies.circuit_breaker import CircuitBreakerConfig
from backpressure.policies.flow_control_manager import FlowControlConfig

_SECONDS = 2.0
_HUNG = 90.0
_PERIOD = 0.0007  # from a handler's begin, and from its end, to the next signal
_DEEPEST = 3  # calls within calls
_OTHERS = 4  # the priority of what another thread adds, and of single events
_LATEST = 30  # collections: about as many as a call starts

# They wait in an event loop.
_FOR_A_LOOP = {"AsyncBuffer.batches", "AsyncBuffer.close"}
# They begin threads, or tasks: see tests/delivery.
_WITH_THREADS = {"BufferManager.deliver_to", "AsyncBuffer.deliver_to"}
# They end the buffer: the last calls.
_LAST = {"BufferManager.close", "BufferManager.__enter__", "BufferManager.__exit__"}
_SPECIAL = {"__bool__", "__enter__", "__exit__", "__getitem__", "__iter__", "__len__", "__repr__"}


def public(*classes: type) -> set[str]:
    """The names of their methods and properties, with that of the class."""
    return {
        f"{one.__name__}.{name}"
        for one in classes
        for name in vars(one)
        if name in _SPECIAL or not name.startswith("_")
    }


def first_step(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine that does not wait returns."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waits")


class _Here(threading.local):
    depth = 0  # of calls within calls, in this thread


class Driver:
    def __init__(self, directory: str | None) -> None:
        self.buffer = buffer = BufferManager(
            BufferConfig(
                directory=directory,
                lane_bytes=1 << 14,
                max_attempts=2,
                retry_backoff=0.0,
                circuit_breaker=CircuitBreakerConfig(reset_timeout=0.01),
                flow_control=FlowControlConfig(max_events_per_second=1e6, burst_size=100_000),
            )
        )
        self.offered: list[int] = []
        self.made: Counter[str] = Counter()
        self.within: Counter[str] = Counter()
        self.here = _Here()
        self.held: list[Batch] = []
        # Calls from within, of all threads. (A list's append is atomic, whatever
        # interrupts.)
        self.begun: list[None] = []
        self.ended: list[None] = []
        self.over = False
        self.random = random.Random(1)
        # A replay of dead letters adds as well.
        add_events = buffer.add_events

        def add(events: Any, priority: int | None = None, **settings: Any) -> Admission:
            admission = add_events(events, priority, **settings)
            if priority != _OTHERS:
                self.add(admission)
            return admission

        buffer.add_events = add  # type: ignore[assignment, method-assign]
        letters = buffer.dead_letters
        aio = buffer.aio
        self.calls: dict[str, Callable[[], object]] = {
            "BufferManager.add_events": lambda: buffer.add_events([b"event"] * 5),
            "BufferManager.add_events, waiting": lambda: buffer.add_events(
                [bytes(900)] * 20, 5, timeout=0.001
            ),
            "BufferManager.add_event": lambda: buffer.add_event(b"one", _OTHERS),
            "BufferManager.producer": lambda: self.with_producer(),
            "BufferManager.add_lines": lambda: self.add(buffer.add_lines(b"a\nb\nc", 2)),
            "BufferManager.add_lines, for the sink": lambda: self.add(
                buffer.add_lines(bytes(900) * 10, 2, 0.001, wait_for_sink=True)
            ),
            "BufferManager.get_batch": lambda: self.hold(buffer.get_batch(3)),
            "BufferManager.get_batch, waiting": lambda: self.hold(buffer.get_batch(timeout=0.001)),
            "BufferManager.batch_waiter": lambda: buffer.batch_waiter().wait(0.001),
            "BufferManager.wake_waiters": buffer.wake_waiters,
            "BufferManager.delivery": lambda: buffer.delivery,
            "BufferManager.replay_dead_letters": buffer.replay_dead_letters,
            "BufferManager.is_backpressure_active": buffer.is_backpressure_active,
            "BufferManager.is_circuit_breaker_open": buffer.is_circuit_breaker_open,
            "BufferManager.adjust_flow_control_rate": lambda: buffer.adjust_flow_control_rate(
                self.random.uniform(1e5, 1e6)
            ),
            "BufferManager.adjust_batch_size": lambda: buffer.adjust_batch_size(
                self.random.randint(1000, 9000)
            ),
            "BufferManager.adjust_burst_size": lambda: buffer.adjust_burst_size(
                self.random.randint(10_000, 100_000)
            ),
            "BufferManager.reset_circuit_breaker": buffer.reset_circuit_breaker,
            "BufferManager.on": self.listen,
            "BufferManager.closing": lambda: buffer.closing,
            "BufferManager.resident": lambda: buffer.resident,
            "BufferManager.positions": buffer.positions,
            "BufferManager.aio": lambda: buffer.aio,
            "BufferManager.stats": buffer.stats,
            "BufferManager.flush": buffer.flush,
            "BufferManager.dead_letters": lambda: buffer.dead_letters,
            "BufferManager.__len__": lambda: len(buffer),
            "BufferManager.__bool__": lambda: bool(buffer),
            "BufferManager.__repr__": lambda: repr(buffer),
            "AsyncBuffer.add_events": lambda: self.add(first_step(aio.add_events([b"event"]))),
            "AsyncBuffer.add_event": lambda: first_step(aio.add_event(b"one", _OTHERS)),
            "AsyncBuffer.add_lines": lambda: self.add(first_step(aio.add_lines(b"a\nb"))),
            "AsyncBuffer.get_batch": lambda: self.hold(first_step(aio.get_batch())),
            "AsyncBuffer.events": self.subscribe,
            "AsyncBuffer.last_event_seq": lambda: aio.last_event_seq,
            "Batch.ack": lambda: self.settle(Batch.ack),
            "Batch.nack": lambda: self.settle(lambda batch: batch.nack("no")),
            "Batch, an error that counts for nothing": lambda: self.settle(
                lambda batch: batch.nack(KeyboardInterrupt())
            ),
            "Batch.settle": lambda: self.settle(
                lambda batch: batch.settle(retry=range(1, len(batch)), reject=[0])
            ),
            "Batch, rejected": lambda: self.settle(lambda batch: batch.nack(BatchRejected("no"))),
            "Batch, dropped": lambda: self.settle(lambda batch: None),
            "Batch.__enter__": lambda: self.settle(Batch.__enter__),
            "Batch.__exit__": lambda: self.settle(lambda one: one.__exit__(None, None, None)),
        }
        assert letters is not None
        self.letters = letters
        self.kind = kind = type(letters).__name__
        self.calls |= {
            f"{kind}.letters": lambda: list(letters.letters()),
            f"{kind}.add": lambda: letters.add([]),
            f"{kind}.replay": lambda: letters.replay(lambda letter: None),
            f"{kind}.purge": lambda: letters.purge(),
            f"{kind}.__len__": lambda: len(letters),
            f"{kind}.__repr__": lambda: repr(letters),
        }
        self.names = list(self.calls)

    def unused(self) -> set[str]:
        """Public methods that no call here stands for."""
        classes = [BufferManager, AsyncBuffer, type(self.letters)]
        called = set(self.calls) | _FOR_A_LOOP | _LAST | _WITH_THREADS
        return {name for name in public(*classes) if name not in called} - {self.kind + ".close"}

    # ------------------------------------------------------------ the calls

    def add(self, admission: Any) -> None:
        self.offered.append(admission.accepted + admission.rejected)

    def with_producer(self) -> None:
        with self.buffer.producer(_OTHERS) as producer:
            producer.add(b"one")

    def hold(self, batch: Batch | None) -> None:
        if batch is not None:
            self.held.append(batch)

    def settle(self, settle: Callable[[Batch], object]) -> None:
        try:
            batch = self.held.pop()
        except IndexError:
            return
        with contextlib.suppress(BatchStateError):
            settle(batch)

    def listen(self) -> None:
        off = self.buffer.on(EventType.TUNED, lambda event: self.buffer.stats())
        self.buffer.adjust_batch_size(self.random.randint(1000, 9000))
        off()

    def subscribe(self) -> None:
        feed = self.buffer.aio.events(EventType.TUNED, since=0, limit=4)
        self.buffer.adjust_batch_size(self.random.randint(1000, 9000))
        feed._subscription.take()
        feed.close()

    # ------------------------------------------------------------ from where

    def call(self, name: str) -> None:
        with contextlib.suppress(NotNow, BufferClosed):
            self.calls[name]()
        self.made[name] += 1

    def call_within(self, *_: object) -> None:
        here = self.here
        if here.depth >= _DEEPEST:
            return
        here.depth += 1
        self.begun.append(None)
        try:
            if not self.over:
                name = self.random.choice(self.names)
                self.call(name)
                self.within[name] += 1
        finally:
            self.ended.append(None)
            here.depth -= 1

    def end(self) -> None:
        """No further calls from within; those of other threads have returned.

        A finaliser runs in any thread, the buffer's own included: a batch that it takes
        after the last look at `held` is one that nobody settles.
        """
        self.over = True
        while len(self.ended) < len(self.begun):
            time.sleep(0.001)

    def run(self, ring: Callable[[], object]) -> None:
        """Call everything, and `ring` before each call, until all was called within."""
        end = time.monotonic() + _SECONDS
        while time.monotonic() < end or len(self.within) < len(self.names):
            watch()
            for name in self.names:
                ring()
                self.call(name)

    def use(self, stop: threading.Event) -> None:
        """What the other thread does."""
        buffer = self.buffer
        while not stop.is_set():
            with contextlib.suppress(NotNow, BufferClosed):
                buffer.add_events([b"other"], _OTHERS)
                batch = buffer.get_batch(5)
                if batch is not None:
                    batch.ack()
                buffer.stats()


class Gone:
    """A cycle, whose finaliser makes the call after `collections` more collections: so
    it comes anywhere in what is done meanwhile.
    """

    def __init__(self, call: Callable[[], object], collections: int = 0) -> None:
        self.call = call
        self.left = collections
        self.me = self

    def __del__(self) -> None:
        if self.left:
            Gone(self.call, self.left - 1)
        else:
            self.call()


def collect_often() -> None:
    """A collection wherever an allocation can start one.

    Without a GIL, the threshold grows with the number of live objects, unless that of
    the next generation is 0: as long as calls leave no garbage, no collection comes.
    """
    gc.set_threshold(1, 0 if not getattr(sys, "_is_gil_enabled", lambda: True)() else 10)


def watch() -> None:
    """From now on it hangs if it does not come here again for a while."""
    faulthandler.dump_traceback_later(_HUNG, exit=True)


def main(how: str, directory: str | None = None) -> None:
    watch()
    raised: list[BaseException | None] = []
    sys.unraisablehook = lambda unraisable: raised.append(unraisable.exc_value)
    driver = Driver(directory)
    buffer = driver.buffer
    assert not driver.unused(), f"call these as well: {driver.unused()}"
    stop = threading.Event()
    other = threading.Thread(target=driver.use, args=(stop,))
    other.start()
    if how == "gc":
        collect_often()
        driver.run(lambda: Gone(driver.call_within, driver.random.randrange(_LATEST)))
    else:
        # One at a time: on a busy host a periodic timer would leave time for nothing
        # else.
        def ring(*_: object) -> None:
            signal.setitimer(signal.ITIMER_REAL, _PERIOD)
            driver.call_within()
            signal.setitimer(signal.ITIMER_REAL, _PERIOD)

        signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, _PERIOD)
        driver.run(lambda: None)
    # And the end, from within.
    closed = False

    def close(*_: object) -> None:
        nonlocal closed
        if not closed:
            closed = True
            buffer.__enter__().__exit__(None, None, None) if how == "gc" else buffer.close(0.2)

    end = driver.made.total() + 2000
    if how == "gc":
        Gone(close)
    else:
        signal.signal(signal.SIGALRM, close)
        signal.setitimer(signal.ITIMER_REAL, _PERIOD)
    while driver.made.total() < end or not closed:
        watch()
        driver.call(driver.random.choice(driver.names))
    signal.setitimer(signal.ITIMER_REAL, 0)
    gc.set_threshold(700)
    stop.set()
    other.join()
    driver.end()
    driver.held.clear()
    buffer.close(timeout=0)
    stats = buffer.stats()
    stats.check()
    assert stats.closed
    assert not raised, raised
    offered = sum(lane.offered for number, lane in stats.lanes.items() if number != _OTHERS)
    assert offered == sum(driver.offered)
    if directory is None:
        assert stats.resident == 0
    print(how, directory is not None, "ok", driver.made.total(), driver.within.total())


if __name__ == "__main__":
    main(*sys.argv[1:])
