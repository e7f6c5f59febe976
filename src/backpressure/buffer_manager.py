"""BufferManager: a lane for each priority and the policies, put together.

    add_events, add_lines ──> Intake ──> lane (ring) ──> Outlet ──> get_batch
                                │                          │            │
                                └────> ControlLoop <───────┴─────── ack, nack

Here is what a user calls, and what is made at the start and ended at the end. The way
in is in buffer/intake.py, the way out in buffer/outlet.py, what the policies do to each
other in policies/control_loop.py.

Thread safety. Every method may be called from any thread. The policies are evaluated by
the calls that pass by; a buffer with a directory has one thread of its own, the
spiller, and event handlers have one, which event_dispatcher.py starts when it needs it.
A forked child finds its parent's buffer closed and empty. No lock is held while a
handler, a sink or a source runs.
"""

from __future__ import annotations

import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal

from backpressure.base.clock import Clock, MonotonicClock
from backpressure.base.errors import BufferClosed
from backpressure.base.events import EventType, Tuned
from backpressure.base.validation import NOT_GIVEN, NotGiven, timeout_seconds
from backpressure.base.wakeup import Waiter, Wakeup
from backpressure.buffer.admission import Admission
from backpressure.buffer.batch import Batch
from backpressure.buffer.batch_hold import BatchHold
from backpressure.buffer.config import BufferConfig, WhenFull
from backpressure.buffer.disk_tier import DiskTier
from backpressure.buffer.event_dispatcher import EventDispatcher
from backpressure.buffer.intake import FORKED, Intake
from backpressure.buffer.lane_watch import LaneWatch
from backpressure.buffer.outlet import Outlet
from backpressure.buffer.reporter import EventReporter
from backpressure.buffer.stats import BufferStats, sum_lanes
from backpressure.lanes.durable_lane import DurableLane
from backpressure.lanes.lane import Lane
from backpressure.policies.adaptive_batch_manager import AdaptiveBatchManager
from backpressure.policies.backpressure_monitor import BackpressureMonitor, Pressure
from backpressure.policies.circuit_breaker import CircuitBreaker, State
from backpressure.policies.control_loop import Backoff, ControlLoop
from backpressure.policies.flow_control_manager import FlowControlManager
from backpressure.spill import DeadLetterStore
from ringbuf import MessageRing

if TYPE_CHECKING:
    from backpressure.buffer.aio import AsyncBuffer

__all__ = ["BufferManager"]

# Of a lane that nothing will ever come into (bytes).
_SMALLEST_LANE: Final = 4096
# A wait of `close` looks again at least this often (seconds).
_LONGEST_WAIT: Final = 1.0
# What DROP_LOWEST_PRIORITY gives up at a time, at most: a fraction of a segment, so
# that no more goes than is needed.
_DROP_EVENTS: Final = 100_000
_DROP_BYTES: Final = 8 << 20


class BufferManager:
    """A bounded buffer between producers and a sink, with backpressure, priorities,
    adaptive batches and a circuit breaker.

    config: None means all defaults: in memory only, five priorities, and 64 MiB for
        each of them.
    clock: what the policies take for time; waiting (`timeout`) is always in real
        seconds.
    rng: the source of jitter.
    wakeup: makes what consumers ("ready", "hold") and producers ("room") sleep on; for
        tests that follow a script instead of sleeping.

    >>> with BufferManager() as buffer:
    ...     admission = buffer.add_events([b"one", "two"])
    ...     batch = buffer.get_batch()
    ...     print(admission.accepted, batch.tolist())
    ...     batch.ack()
    2 [b'one', b'two']
    """

    def __init__(
        self,
        config: BufferConfig | None = None,
        *,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        wakeup: Callable[[str], Wakeup] = Wakeup,
    ) -> None:
        self.config: Final = config if config is not None else BufferConfig()
        clock = clock if clock is not None else MonotonicClock()
        rng = rng if rng is not None else random.Random()
        self._now: Final = clock.now
        self._reporter = EventReporter(clock.now)
        self._notifications = self._reporter.notifications
        self._ready, self._room = wakeup("ready"), wakeup("room")
        self._control = self._make_control(clock, rng)
        self._disk: DiskTier | None = None
        levels = self.config.flow_control.priority_levels
        # One for each priority, and behind these the surplus ones of a directory that
        # was made with more: they deliver what they hold, and take nothing.
        self._lanes: tuple[Lane, ...]
        if self.config.directory is None:
            buffer_id = os.urandom(16).hex()
            self._lanes = tuple(
                Lane(priority, MessageRing(self.config.lane_bytes))
                for priority in range(1, levels + 1)
            )
        else:
            self._disk = DiskTier(
                self.config.directory,
                self.config,
                make_room=self._drop_less_urgent,
                moved=self._spilled,
                failed=self._reporter.disk_changed,
            )
            buffer_id = self._disk.directory.buffer_id.hex
            self._lanes = tuple(self._disk.lanes)
        #: Whose batches these are: part of each batch's id. Of a buffer with a
        #: directory it outlives the process.
        self.id: Final = buffer_id
        # Those that take events: their index is their priority less 1.
        self._open_lanes: Final = self._lanes[:levels]
        self._watch: Final = LaneWatch(
            self._open_lanes, self._control, self._spills, surplus=self._lanes[levels:]
        )
        self._hold: Final = BatchHold(
            self._lanes,
            limit=self._control.batching.linger,
            max_bytes=self.config.max_batch_bytes,
            now=clock.now,
            pressed=lambda: self._control.monitor.active,
            wakeup=wakeup("hold"),
        )
        self._intake: Final = Intake(
            self._open_lanes,
            control=self._control,
            watch=self._watch,
            hold=self._hold,
            ready=self._ready,
            room=self._room,
            disk=self._disk,
            when_full=self.config.when_full,
            now=clock.now,
            reporter=self._reporter,
        )
        self._outlet: Final = Outlet(
            self._lanes,
            control=self._control,
            watch=self._watch,
            hold=self._hold,
            ready=self._ready,
            room=self._room,
            max_batch_bytes=self.config.max_batch_bytes,
            buffer_id=buffer_id,
            now=clock.now,
            reporter=self._reporter,
        )
        self._closed = self._forked = False
        self._close_lock = threading.Lock()
        _buffers.add(self)
        if self._disk is not None:
            for lane in self._disk.lanes:
                if lane.salvaged:
                    self._reporter.salvaged(lane.priority, lane.salvaged)
                for first_seq, end_seq in lane.missing:
                    self._reporter.missing(lane.priority, first_seq, end_seq)
            self._reporter.recovered(self.resident, self._disk.recovery_seconds)
            self._disk.spiller.start()

    def _make_control(self, clock: Clock, rng: random.Random) -> ControlLoop:
        config, reporter = self.config, self._reporter
        return ControlLoop(
            CircuitBreaker(
                config.circuit_breaker, clock=clock, rng=rng, on_change=self._circuit_changed
            ),
            BackpressureMonitor(config.monitor, clock=clock, on_change=self._pressure_changed),
            AdaptiveBatchManager(
                config.batching, clock=clock, on_change=reporter.batch_size_changed
            ),
            FlowControlManager(
                config.flow_control, clock=clock, rng=rng, on_change=reporter.flow_changed
            ),
            rng=rng,
            backoff=Backoff(
                config.retry_backoff, config.longest_backoff, config.max_retry_backoff is None
            ),
        )

    # ------------------------------------------------------------ producers

    def add_events(
        self,
        events: Sequence[bytes | str] | Any,
        priority: int | None = None,
        timeout: float | NotGiven | None = NOT_GIVEN,
    ) -> Admission:
        """Offer events; returns how many were accepted, always a prefix of what was
        given.

        events: a sequence of bytes or str (which are kept as UTF-8), a 1-D numpy array
            (one item, one event), or an Arrow binary or string array.
        priority: a Priority, or an int from 1 (most urgent) to the number of
            priorities, `flow_control.priority_levels`. None: NORMAL, or the least
            urgent where there are fewer than three.
        timeout: seconds to wait for room or tokens. 0 never waits, None waits as long
            as needed. Not given: None with `when_full=BLOCK`, else 0.

        Raises InvalidEvents (EventTooLarge for an event that its lane can never hold)
        and BufferClosed; in both cases nothing was accepted.
        """
        intake = self._intake
        seconds = intake.seconds(timeout)
        return intake.finish(intake.pending_events(events, priority), seconds)

    def add_lines(
        self,
        chunk: Any,
        priority: int | None = None,
        timeout: float | NotGiven | None = NOT_GIVEN,
        final: bool = True,
        *,
        max_event_bytes: int | None = None,
    ) -> Admission:
        r"""Offer the lines of a chunk of bytes, each without its newline (b"\n") as one
        event.

        chunk: anything with a contiguous buffer: bytes, bytearray, memoryview, mmap, a
            numpy array. It must not be changed until the call returns.
        final: whether a last piece without a newline is an event too; if not, it is not
            consumed.
        max_event_bytes: in one line, where less is allowed than the lane can hold.
        priority, timeout, errors: as for `add_events`. `consumed` of the Admission
            tells how many bytes of the chunk were taken.
        """
        intake = self._intake
        seconds = intake.seconds(timeout)
        pending = intake.pending_lines(chunk, priority, final, max_event_bytes)
        return intake.finish(pending, seconds)

    # ------------------------------------------------------------ consumers

    def get_batch(self, max_events: int | None = None, timeout: float | None = 0.0) -> Batch | None:
        """The next batch, or None: nothing is ready within `timeout`, the circuit is
        open, or a nacked batch still pauses.

        max_events: at most that many; None leaves it to the adaptive batch size. A
            redelivered batch keeps its size.
        timeout: seconds to wait. 0 never waits, None waits until there is a batch or
            the buffer is closed and empty. Within it, a batch that is not full may wait
            for more events, for `stats().batching.linger` seconds at most and only
            behind another one, in a steady flow; CRITICAL events never do.

        The most urgent priority goes first; one that has been passed over 31 times goes
        before it, once. Raises BufferClosed when the buffer has been closed and has
        nothing more to deliver.
        """
        return self._outlet.get_batch(max_events, timeout_seconds(timeout))

    def batch_waiter(self, max_events: int | None = None) -> Waiter:
        """What to sleep on until `get_batch(max_events)` may have something: for a loop
        that has other reasons to wake, and calls `wake_waiters` for these.
        """
        return self._outlet.batch_waiter(max_events)

    def wake_waiters(self) -> None:
        """Have all that wait for a batch or for room look again whether they still
        should.
        """
        self._ready.notify()
        self._room.notify()
        self._hold.wakeup.notify()

    # ------------------------------------------------------------ the disk tier

    def _spilled(self) -> None:
        """Called by the spiller when it has moved something: rings have room, and
        consumers that it held up can go on.
        """
        self._room.notify()
        self._ready.notify()

    def _drop_less_urgent(self, lane: DurableLane) -> bool:
        """Make room on the disk for a lane by dropping the oldest of the least urgent
        one; whether that made any.
        """
        if self.config.when_full is not WhenFull.DROP_LOWEST_PRIORITY:
            return False
        for other in reversed(self._lanes):
            if other.priority <= lane.priority:
                break
            dropped = other.drop_oldest(_DROP_EVENTS, _DROP_BYTES, "priority")
            if dropped:
                self._reporter.dropped(other.priority, dropped, "priority")
                return True
        return False

    def _leave_to_parent(self) -> None:
        """In a forked child: the events, the directory and the threads are the
        parent's, and its threads may have held any lock. What is left here is a closed
        buffer with nothing in it.
        """
        self._forked = True
        self._intake.forked = self._outlet.forked = True
        self._intake.closing = self._outlet.closing = True
        self._set_closed()
        self._close_lock = threading.Lock()
        for wakeup in (self._ready, self._room, self._hold.wakeup):
            wakeup.forget_waiters()
        self._notifications = EventDispatcher()
        self._notifications.end()
        if self._disk is not None:
            self._disk.directory.close()

    @cached_property
    def _empty(self) -> BufferManager:
        """In a forked child: whose stats stand for the parent's buffer."""
        config = self.config
        empty = BufferManager(
            BufferConfig(
                lane_bytes=_SMALLEST_LANE,
                circuit_breaker=config.circuit_breaker,
                monitor=config.monitor,
                batching=config.batching,
                flow_control=config.flow_control,
            )
        )
        empty.close(timeout=0)
        return empty

    # ------------------------------------------------------------ policies

    def _spills(self) -> bool:
        """Whether what would wait too long has somewhere to go: the disk, or the room
        of the oldest.
        """
        disk = self._disk
        return self.config.when_full is WhenFull.DROP_OLDEST or (
            disk is not None and disk.spiller.error is None
        )

    def _pressure_changed(self, pressure: Pressure) -> None:
        self._hold.wakeup.notify()
        self._reporter.pressure_changed(pressure)

    def _circuit_changed(self, old: State, new: State, reason: str) -> None:
        self._reporter.circuit_changed(old, new, reason)
        self._ready.notify()

    # ------------------------------------------------------------ seen and tuned

    def is_backpressure_active(self) -> bool:
        """Whether the monitor sees the buffer under pressure now: a producer that can
        slow down should.
        """
        return not self._forked and self._watch.tick(self._now()).active

    def is_circuit_breaker_open(self) -> bool:
        """Whether the sink is not being called at all."""
        return self._control.breaker.state in (State.OPEN, State.FORCED_OPEN)

    def adjust_flow_control_rate(self, rate: float, *, by: str = "code") -> Tuned:
        """Set the admitted rate (events per second) at once. `by`: who, for the log and
        the event, which is returned.
        """
        self._check_own()
        old = self._control.flow.metrics().rate_limit
        self._control.flow.set_rate(rate)
        return self._reporter.tuned("flow_control_rate", old, float(rate), by)

    def adjust_batch_size(self, size: int, *, by: str = "code") -> Tuned:
        """Set the batch size (events) at once; the adaptive law goes on from there.
        `by`: as above.
        """
        self._check_own()
        old = self._control.batching.batch_size
        self._control.batching.adjust(size)
        return self._reporter.tuned("batch_size", old, size, by)

    def adjust_burst_size(self, events: int, *, by: str = "code") -> Tuned:
        """Set how many events may enter at one moment. `by`: as above."""
        self._check_own()
        old = self._control.flow.metrics().burst
        self._control.flow.set_burst(events)
        return self._reporter.tuned("burst_size", old, events, by)

    def reset_circuit_breaker(self, *, by: str = "code") -> Tuned:
        """Close the circuit and forget its failures. `by`: as above."""
        self._check_own()
        old = self._control.breaker.state
        self._control.breaker.reset()
        return self._reporter.tuned("circuit_breaker", old.name, State.CLOSED.name, by)

    def _check_own(self) -> None:
        if self._forked:
            raise BufferClosed(FORKED)

    def on(self, event_type: EventType, handler: Callable[[Any], object]) -> Callable[[], None]:
        """Call `handler(event)` at each event of that type; returns a function that
        ends this.

        Handlers run one after another in a thread of their own, outside of every lock.
        One that returns promptly has run when the call that caused the event returns;
        one that blocks delays the caller for 50 ms at most: see event_dispatcher.py.
        One that raises is logged and counted.
        """
        return self._notifications.on(event_type, handler)

    @property
    def closing(self) -> bool:
        """Whether `close` was called: no event is accepted any more."""
        return self._intake.closing

    @property
    def resident(self) -> int:
        """How many accepted events are not acked, dropped or given up yet."""
        return 0 if self._forked else sum(lane.resident for lane in self._lanes)

    def positions(self) -> tuple[int, ...]:
        """The number that each priority's next event gets, the most urgent first: what
        was added before this call has lower ones.
        """
        if self._forked:
            return (0,) * len(self._open_lanes)
        return tuple(lane.ring.next_seq for lane in self._open_lanes)

    @cached_property
    def aio(self) -> AsyncBuffer:
        """The same buffer for coroutines."""
        from backpressure.buffer.aio import AsyncBuffer

        return AsyncBuffer(self)

    def stats(self) -> BufferStats:
        """A frozen snapshot of everything: see `BufferStats`."""
        now = self._now()
        if self._forked:
            return replace(self._empty.stats(), at=now, closed_by="fork")
        return BufferStats(
            at=now,
            **sum_lanes([lane.stats(now) for lane in self._lanes]),
            backpressure_active=self._control.monitor.active,
            backpressure_seconds=self._reporter.pressed_seconds(now),
            circuit_trips=self._reporter.trips,
            handler_errors=self._notifications.handler_errors,
            handler_overflows=self._notifications.overflows,
            closed=self._closed,
            closed_by="close" if self._closed else None,
            pressure=self._control.monitor.evaluate(),
            circuit_breaker=self._control.breaker.metrics(),
            batching=self._control.batching.metrics(),
            flow_control=self._control.flow.metrics(),
            dead_letters=None if self.dead_letters is None else len(self.dead_letters),
            recovery_seconds=None if self._disk is None else self._disk.recovery_seconds,
        )

    # ------------------------------------------------------------ the end

    def flush(self) -> None:
        """Write all that is owed to disk and sync it, whatever the durability: it
        survives power loss when this returns.

        In memory only nothing is written. A batch that waits to fill goes out at once.
        Raises DiskFull or DiskFailed; the same call may be tried again.
        """
        if self._forked:
            return
        self._hold.flush()
        if self._disk is not None and not self._closed:
            self._disk.flush()
            self._ready.notify()

    @property
    def dead_letters(self) -> DeadLetterStore | None:
        """The events that were given up after `max_attempts`; None in memory only, and
        in a forked child.
        """
        return None if self._disk is None or self._forked else self._disk.dead_letters

    def close(self, timeout: float | None = 5.0) -> BufferStats:
        """Accept no more, wait up to `timeout` seconds (None: as long as it takes) for
        the consumers to finish, then end.

        What has not been acked by then stays in the directory and is delivered at the
        next start; in memory only it is counted as dropped ("closed") and logged.
        Returns the last stats. A second call only returns them.
        """
        seconds = timeout_seconds(timeout)
        if self._forked:
            return self.stats()
        self._intake.closing = self._outlet.closing = True
        self._room.notify()
        self._hold.close()
        with self._close_lock:
            if self._closed:
                return self.stats()
            resident = self.resident
            self._reporter.closing(resident)
            if resident and seconds > 0:
                deadline = time.monotonic() + seconds
                while self.resident and (left := deadline - time.monotonic()) > 0:
                    self._room.wait(lambda: not self.resident, min(left, _LONGEST_WAIT))
            self._set_closed()
            lost = 0
            if self._disk is None:
                lost = sum(self._intake.discard(lane) for lane in self._lanes)
            else:
                for error in self._disk.close():
                    self._reporter.left_in_ring(error)
        self._ready.notify()
        self._reporter.closed(lost)
        return self.stats()

    def _set_closed(self) -> None:
        self._closed = self._intake.closed = self._outlet.closed = True

    def __len__(self) -> int:
        """How many events are resident; a buffer without any is true all the same."""
        return self.resident

    def __bool__(self) -> Literal[True]:
        return True

    def __enter__(self) -> BufferManager:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> Literal[False]:
        # After an exception no consumer is likely to come: it is not kept waiting.
        self.close() if error is None else self.close(timeout=0)
        return False

    def __repr__(self) -> str:
        if self._forked:
            return "<BufferManager of the parent process>"
        state = "closed" if self._closed else "closing" if self.closing else "open"
        return f"<BufferManager {state}, {self.resident} events resident>"


_buffers: weakref.WeakSet[BufferManager] = weakref.WeakSet()


def _leave_all_to_parent() -> None:
    for buffer in list(_buffers):
        buffer._leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_all_to_parent)
