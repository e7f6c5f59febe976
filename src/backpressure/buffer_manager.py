"""BufferManager: five lanes and the policies, put together.

    add_events / add_lines ──> FlowControlManager ──> lane (ring) ──> get_batch ──> sink ──> ack / nack
                                                                         │                      │
                              AdaptiveBatchManager: how many ────────────┤                      ├──> AdaptiveBatchManager
                              CircuitBreaker: whether at all ────────────┘                      ├──> CircuitBreaker
                              BackpressureMonitor <── depth, delay, latency, errors ────────────┴──> FlowControlManager
                              FlowControlManager <── queue, circuit

Each actuator has one owner: the rate is flow control's, the batch size the batch
manager's, whether the sink is called the breaker's; the monitor only measures, and its
pressure is an input to the batch size.

Thread safety. Every method may be called from any thread. The policies are evaluated by
the calls that pass by; a buffer with a directory has one thread of its own, the
spiller, and event handlers have one, which event_dispatcher.py starts when it needs it.
A forked child finds the buffer of its parent closed. No lock is held while a handler, a
sink or a source runs.
"""

from __future__ import annotations

import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal

from backpressure.base.clock import Clock, MonotonicClock
from backpressure.base.errors import BufferClosed
from backpressure.base.events import EventType, Tuned
from backpressure.base.priority import PRIORITY_LEVELS, Priority, check_priority
from backpressure.base.validation import timeout_seconds
from backpressure.base.wakeup import Wakeup
from backpressure.buffer.admission import Admission
from backpressure.buffer.batch import Batch
from backpressure.buffer.batch_hold import BatchHold
from backpressure.buffer.config import BufferConfig, WhenFull
from backpressure.buffer.disk_tier import DiskTier
from backpressure.buffer.pending_add import EventPayload, LinePayload, PendingAdd
from backpressure.buffer.reporter import EventReporter
from backpressure.buffer.scheduler import LaneScheduler
from backpressure.buffer.stats import BufferStats, sum_lanes
from backpressure.lanes.durable_lane import DurableLane
from backpressure.lanes.lane import Lane
from backpressure.policies.adaptive_batch_manager import AdaptiveBatchManager
from backpressure.policies.backpressure_monitor import BackpressureMonitor, Pressure
from backpressure.policies.circuit_breaker import CircuitBreaker, State
from backpressure.policies.flow_control_manager import FlowControlManager
from backpressure.policies.linger import FlushReason
from backpressure.spill import DeadLetterStore
from ringbuf import MessageRing

if TYPE_CHECKING:
    from backpressure.buffer.aio import AsyncBuffer

__all__ = ["BufferManager"]

# The monitor is fed with depth and delay this often (seconds): often enough to see a
# spike begin, rarely enough to cost nothing.
_TICK: Final = 0.02
# A lane filled to this share counts as the configured depth, however few events that
# are.
_HIGH_WATERMARK: Final = 0.8
# A wait for the circuit, a retry or a token looks again at least this often (seconds):
# their times move.
_LONGEST_WAIT: Final = 1.0
# Attempts that fit into the breaker's window at the longest pause, as multiples of
# those that it needs: half of the window is left for the calls themselves.
_RESULTS: Final = 2
# No wait is shorter (seconds): a time that has just come needs no finer look.
_SHORTEST_WAIT: Final = 0.001

_PRIORITIES: Final = range(1, PRIORITY_LEVELS + 1)
# What DROP_LOWEST_PRIORITY gives up at a time, at most: a fraction of a segment, so
# that no more goes than is needed.
_DROP_EVENTS: Final = 100_000
_DROP_BYTES: Final = 8 << 20


class BufferManager:
    """A bounded buffer between producers and a sink, with backpressure, priorities,
    adaptive batches and a circuit breaker.

    config: None means all defaults: in memory only, 64 MiB for each of the five
        priorities.
    clock: what the policies take for time; waiting (`timeout`) is always in real
        seconds.
    rng: the source of jitter.

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
    ) -> None:
        self.config: Final = config if config is not None else BufferConfig()
        clock = clock if clock is not None else MonotonicClock()
        rng = rng if rng is not None else random.Random()
        self._now: Final = clock.now
        self._rng = rng
        self._reporter = EventReporter(clock.now)
        self._events = self._reporter.events
        self._breaker = CircuitBreaker(
            self.config.circuit_breaker, clock=clock, rng=rng, on_change=self._circuit_changed
        )
        self._monitor = BackpressureMonitor(
            self.config.monitor, clock=clock, on_change=self._pressure_changed
        )
        self._batching = AdaptiveBatchManager(
            self.config.batching, clock=clock, on_change=self._reporter.batch_size_changed
        )
        self._flow = FlowControlManager(
            self.config.flow_control, clock=clock, rng=rng, on_change=self._reporter.flow_changed
        )
        self._ready = Wakeup()
        self._room = Wakeup()
        self._disk: DiskTier | None = None
        self._lanes: tuple[Lane, ...]
        if self.config.directory is None:
            buffer_id = os.urandom(16).hex()
            self._lanes = tuple(
                Lane(priority, MessageRing(self.config.lane_bytes)) for priority in _PRIORITIES
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
        self._scheduler: Final = LaneScheduler(self._lanes)
        self._hold: Final = BatchHold(
            self._lanes,
            limit=self._batching.linger,
            max_bytes=self.config.max_batch_bytes,
            now=clock.now,
            pressed=lambda: self._monitor.active,
        )
        self._next_tick = 0.0
        self._closing = False
        self._closed = False
        self._close_lock = threading.Lock()
        _buffers.add(self)
        if self._disk is not None:
            for lane in self._disk.lanes:
                if lane.salvaged:
                    self._reporter.salvaged(lane.priority, lane.salvaged)
                for first_seq, end_seq in lane.missing:
                    self._reporter.missing(lane.priority, first_seq, end_seq)
            self._reporter.recovered(self._resident(), self._disk.recovery_seconds)
            self._disk.spiller.start()

    # ------------------------------------------------------------ producers

    def add_events(
        self,
        events: Sequence[bytes | str] | Any,
        priority: int = Priority.NORMAL,
        timeout: float | None = 0.0,
    ) -> Admission:
        """Offer events; returns how many were accepted, always a prefix of what was
        given.

        events: a sequence of bytes or str (which are kept as UTF-8), a 1-D numpy array
            (one item, one event), or an Arrow binary or string array.
        priority: a Priority, or an int from 1 (most urgent) to 5.
        timeout: seconds to wait for room or tokens. 0 never waits, None waits as long
            as needed.

        Raises InvalidEvents (EventTooLarge for an event that its lane can never hold)
        and BufferClosed; in both cases nothing was accepted.
        """
        seconds = timeout_seconds(timeout)
        return self._wait_for(self._offer_events(events, priority), seconds)

    def add_lines(
        self,
        chunk: Any,
        priority: int = Priority.NORMAL,
        timeout: float | None = 0.0,
        final: bool = True,
    ) -> Admission:
        r"""Offer the lines of a chunk of bytes, each without its newline (b"\n") as one
        event.

        chunk: anything with a contiguous buffer: bytes, bytearray, memoryview, mmap, a
            numpy array. It must not be changed until the call returns.
        final: whether a last piece without a newline is an event too; if not, it is not
            consumed.
        priority, timeout, errors: as for `add_events`. `consumed` of the Admission
            tells how many bytes of the chunk were taken.
        """
        seconds = timeout_seconds(timeout)
        return self._wait_for(self._offer_lines(chunk, priority, final), seconds)

    def _offer_events(self, events: Sequence[bytes | str] | Any, priority: int) -> PendingAdd:
        lane = self._lane(priority)
        return PendingAdd(self, lane, EventPayload(events, lane.ring.max_message_bytes))

    def _offer_lines(
        self, chunk: Any, priority: int, final: bool, largest: int | None = None
    ) -> PendingAdd:
        """`largest`: bytes in one line, where the caller allows less than the lane
        does.
        """
        lane = self._lane(priority)
        limit = lane.ring.max_message_bytes
        return PendingAdd(
            self, lane, LinePayload(chunk, final, limit if largest is None else min(largest, limit))
        )

    def _lane(self, priority: int) -> Lane:
        if self._closing:
            raise BufferClosed("the buffer is closed: it accepts no more events")
        return self._lanes[check_priority(priority) - 1]

    def _wait_for(self, offer: PendingAdd, seconds: float) -> Admission:
        """Press on with an offer for that long."""
        if offer.advance():
            return self._committed(offer)
        deadline = offer.deadline(seconds)
        if self._disk is not None:
            self._disk.spiller.wake()  # it looks by itself, but not at once
        while (left := deadline - time.monotonic()) > 0:
            self._room.wait(lambda: self._closing or offer.may_advance(), min(left, offer.pause()))
            if offer.advance() or self._closing:
                break
        return self._committed(offer)

    def _committed(self, offer: PendingAdd) -> Admission:
        """End an offer, and wait until what it brought is durable if that was promised."""
        admission = offer.admission()
        if self._disk is not None and self._disk.commits and offer.end_seq:
            self._disk.spiller.wait_durable(self._disk.lanes[offer.priority - 1], offer.end_seq)
        return admission

    def _arrived(self, lane: Lane, first_seq: int) -> None:
        """Events have come in: note when, wake the consumers, let the policies look."""
        now = self._now()
        lane.arrived(first_seq, now)
        self._ready.notify()
        if self._hold.waiting is not None:
            self._hold.arrived(lane)
        if now >= self._next_tick:
            self._tick(now)

    def _offer_ended(self, lane: Lane, accepted: int) -> None:
        if self._closed and accepted and self._disk is None:
            self._discard(lane)  # close() had looked before these came in

    def _drop_oldest(self, lane: Lane, events: int, nbytes: int) -> bool:
        """Make room by dropping; whether that made any."""
        dropped = lane.drop_oldest(events, nbytes)
        if dropped:
            self._reporter.dropped(lane.priority, dropped, "oldest")
        return dropped > 0

    # ------------------------------------------------------------ consumers

    def get_batch(self, max_events: int | None = None, timeout: float | None = 0.0) -> Batch | None:
        """The next batch, or None: nothing is ready within `timeout`, the circuit is
        open, or a nacked batch still pauses.

        max_events: at most so many; None leaves it to the adaptive batch size. A
            redelivered batch keeps its size.
        timeout: seconds to wait. 0 never waits, None waits until there is a batch or
            the buffer is closed and empty. Within it, a batch that is not full may wait
            for more events, for `stats().batching.linger` seconds at most and only
            behind another one, in a steady flow; CRITICAL events never do.

        The most urgent priority goes first; one that has been passed over 31 times goes
        before it, once. Raises BufferClosed when the buffer has been closed and has
        nothing more to deliver.
        """
        seconds = timeout_seconds(timeout)
        patient = seconds > 0
        deadline: float | None = None
        while True:
            batch = self._next_batch(max_events, patient)
            if batch is not None or not patient:
                return batch
            if deadline is None:
                deadline = time.monotonic() + seconds
            left = deadline - time.monotonic()
            if left > 0:
                wakeup, done, pause = self._rest(max_events)
                wakeup.wait(done, min(left, pause))
            else:
                patient = False  # what still waits to fill goes now

    def _next_batch(self, max_events: int | None, patient: bool) -> Batch | None:
        """One try of `get_batch`; `patient`: a batch may wait to fill."""
        if max_events is not None and (
            isinstance(max_events, bool) or not isinstance(max_events, int) or max_events < 1
        ):
            raise ValueError(f"max_events must be an int from 1 on, or None, not {max_events!r}")
        now = self._now()
        if now >= self._next_tick:
            self._tick(now)
        lane = self._scheduler.choose(now)
        if lane is None:
            if self._closed:
                raise BufferClosed("the buffer is closed and has nothing more to deliver")
            return None
        size = self._batching.batch_size
        asked = max_events if max_events is not None else size
        linger = self._hold.lingers[lane.priority - 1]
        reason: FlushReason = "linger" if linger.holding else "ready"
        if patient and now - linger.left_at < linger.limit and now >= linger.quiet_until:
            why = self._hold.decide(lane, asked, now)
            if why is None:
                return None
            reason = why
        permit = self._breaker.try_acquire()
        if permit is None:
            return None
        waiting = len(lane.ring)
        try:
            handout = lane.next_handout(asked, self.config.max_batch_bytes, now)
        except BaseException:
            permit.ignore()
            raise
        if handout is None:  # another consumer was faster
            permit.ignore()
            return None
        count = len(handout.messages)
        filled: bool | None = count >= size
        if handout.attempt > 1:
            reason, filled = "retry", None
        elif count >= asked:
            reason, filled = "size", filled or None
        elif count < waiting:
            reason, filled = "bytes", filled or None
        elif self._closing:
            reason = "close"
        if linger.holding:
            reason = self._hold.ends(lane, now, waiting, reason)
        linger.left_at = now
        self._batching.flushed(reason)
        batch = Batch(
            handout,
            self._settle,
            permit,
            buffer_id=self.id,
            asked=asked,
            filled=filled,
            taken_at=now,
        )
        if handout.attempt > 1:
            self._reporter.redelivered(handout)
        return batch

    def _rest(self, max_events: int | None) -> tuple[Wakeup, Callable[[], bool], float]:
        """What a consumer that got nothing sleeps on, what ends that, and the seconds
        until time alone could end it.
        """
        left = self._hold.left()
        if left > 0.0:
            asked = max_events if max_events is not None else self._batching.batch_size
            return self._hold.wakeup, lambda: self._hold.over(asked), left
        return self._ready, self._deliverable, self._pause()

    def _deliverable(self) -> bool:
        """Whether a consumer has reason to look again: for a look before going to
        sleep.
        """
        now = self._now()
        return self._closed or (self._scheduler.any_ready(now) and self._breaker.retry_after() == 0)

    def _pause(self) -> float:
        """How long a consumer can sleep before time alone could give it something to
        do.
        """
        now = self._now()
        pause = min(_LONGEST_WAIT, self._scheduler.next_retry(now))
        if self._scheduler.any_ready(now):
            pause = min(pause, self._breaker.retry_after())
        return max(pause, _SHORTEST_WAIT)

    def _settle(self, batch: Batch, ok: bool, error: BaseException | str | None) -> None:
        """What `Batch.ack` and `Batch.nack` call."""
        now = self._now()
        handout = batch._handout
        lane, events = handout.lane, len(handout.messages)
        latency = max(0.0, now - batch.taken_at)
        if ok:
            lane.ack(handout, latency)
            self._room.notify()
            batch.permit.success(latency)
            self._batching.record(events, latency, batch.filled)
            self._monitor.observe(latency=latency, ok=events)
            self._flow.record_outcome(events, 0)
        else:
            handout.error = None if error is None else str(error) or type(error).__name__
            given_up = lane.nack(handout, now + self._backoff(handout.attempt))
            if given_up:
                self._reporter.dead_lettered(handout, given_up)
                self._room.notify()
            batch.permit.failure(error if isinstance(error, BaseException) else None)
            self._monitor.observe(failed=events)
            self._flow.record_outcome(0, events)
            self._ready.notify()
        if now >= self._next_tick:
            self._tick(now)

    def _backoff(self, attempt: int) -> float:
        """Seconds before the next attempt: doubling, capped, and jittered by half so
        that many buffers do not march in step.

        While nothing succeeds it is for the breaker to say how long the sink is left
        alone, and it needs results to open: with longer pauses a lone consumer would
        never bring it as many in one window as it asks for.
        """
        config = self.config
        longest = config.longest_backoff
        if config.max_retry_backoff is None:
            seen = self._breaker.metrics()
            if seen.state is State.CLOSED and seen.window_calls == seen.window_failures:
                breaker = config.circuit_breaker
                longest = max(
                    config.retry_backoff,
                    min(longest, breaker.monitoring_interval / (_RESULTS * breaker.min_requests)),
                )
        pause = min(config.retry_backoff * 2.0 ** min(attempt - 1, 60), longest)
        return pause * self._rng.uniform(0.5, 1.0)

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
        for other in reversed(self._lanes[lane.priority :]):
            dropped = other.drop_oldest(_DROP_EVENTS, _DROP_BYTES, "priority")
            if dropped:
                self._reporter.dropped(other.priority, dropped, "priority")
                return True
        return False

    def _left_behind(self) -> None:
        """In a forked child: the directory, the threads and the events are the
        parent's.
        """
        if self._disk is not None:
            self._closing = self._closed = True
            self._disk.directory.close()

    # ------------------------------------------------------------ policies

    def _tick(self, now: float) -> Pressure:
        """Feed the monitor with what the lanes show, and let the policies look."""
        self._next_tick = now + _TICK
        depth = 0.0
        delay = 0.0
        fill = 0.0
        queue, taken = [], []
        for lane in self._lanes:
            accepted = (
                lane.ring.next_seq
            )  # first: what comes in between may hide takings until the next tick, and invents none
            waiting = lane.waiting()
            queue.append(waiting)
            taken.append(accepted - waiting)
            if waiting:
                depth += waiting
                fill = max(fill, lane.ring.used_bytes / lane.ring.capacity_bytes)
                delay = max(delay, lane.oldest_age(now))
        # Large events fill a lane long before they are many.
        depth = max(depth, fill / _HIGH_WATERMARK * self.config.monitor.queue_depth_threshold)
        # Two or three batches in reach keep several consumers busy until the next look.
        # Who drops the oldest wants nothing refused.
        refusing = self._flow.observe(
            queue,
            taken,
            enough=self._batching.batch_size * 5 // 2,
            calling=self._breaker.state is State.CLOSED,
            spills=(self._disk is not None and self._disk.spiller.error is None)
            or self.config.when_full is WhenFull.DROP_OLDEST,
        )
        self._monitor.observe(depth=depth, delay=delay, refusing=refusing)
        pressure = self._monitor.evaluate()
        self._batching.evaluate(pressure.pressure, refusing)
        return pressure

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
        return self._tick(self._now()).active

    def is_circuit_breaker_open(self) -> bool:
        """Whether the sink is not being called at all."""
        return self._breaker.state in (State.OPEN, State.FORCED_OPEN)

    def adjust_flow_control_rate(self, rate: float, *, by: str = "code") -> Tuned:
        """Set the admitted rate (events per second) at once. `by`: who, for the log and
        the event, which is returned.
        """
        old = self._flow.metrics().rate_limit
        self._flow.set_rate(rate)
        return self._reporter.tuned("flow_control_rate", old, float(rate), by)

    def adjust_batch_size(self, size: int, *, by: str = "code") -> Tuned:
        """Set the batch size (events) at once; the adaptive law goes on from there.
        `by`: as above.
        """
        old = self._batching.batch_size
        self._batching.adjust(size)
        return self._reporter.tuned("batch_size", old, size, by)

    def reset_circuit_breaker(self, *, by: str = "code") -> Tuned:
        """Close the circuit and forget its failures. `by`: as above."""
        old = self._breaker.state
        self._breaker.reset()
        return self._reporter.tuned("circuit_breaker", old.name, State.CLOSED.name, by)

    def on(self, event_type: EventType, handler: Callable[[Any], object]) -> Callable[[], None]:
        """Call `handler(event)` at each event of that type; returns a function that
        ends this.

        Handlers run one after another in a thread of their own, outside of every lock.
        One that returns promptly has run when the call that caused the event returns;
        one that blocks delays nobody for long: see event_dispatcher.py. One that raises
        is logged and counted.
        """
        return self._events.on(event_type, handler)

    @property
    def closing(self) -> bool:
        """Whether `close` was called: no event is accepted any more."""
        return self._closing

    @cached_property
    def aio(self) -> AsyncBuffer:
        """The same buffer for coroutines."""
        from backpressure.buffer.aio import AsyncBuffer

        return AsyncBuffer(self)

    def stats(self) -> BufferStats:
        """A frozen snapshot of everything: see `BufferStats`."""
        now = self._now()
        return BufferStats(
            at=now,
            **sum_lanes([lane.stats(now) for lane in self._lanes]),
            backpressure_active=self._monitor.active,
            backpressure_seconds=self._reporter.pressed_seconds(now),
            circuit_trips=self._reporter.trips,
            handler_errors=self._events.handler_errors,
            handler_overflows=self._events.overflows,
            closed=self._closed,
            pressure=self._monitor.evaluate(),
            circuit_breaker=self._breaker.metrics(),
            batching=self._batching.metrics(),
            flow_control=self._flow.metrics(),
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
        self._hold.flush()
        if self._disk is not None and not self._closed:
            self._disk.flush()
            self._ready.notify()

    @property
    def dead_letters(self) -> DeadLetterStore | None:
        """The events that were given up after `max_attempts`; None in memory only."""
        return None if self._disk is None else self._disk.dead_letters

    def close(self, timeout: float | None = 5.0) -> BufferStats:
        """Accept no more, wait up to `timeout` seconds (None: as long as it takes) for
        the consumers to finish, then end.

        What has not been acked by then stays in the directory and is delivered at the
        next start; in memory only it is counted as dropped ("closed") and logged.
        Returns the last stats. A second call only returns them.
        """
        seconds = timeout_seconds(timeout)
        self._closing = True
        self._room.notify()
        self._hold.close()
        with self._close_lock:
            if self._closed:
                return self.stats()
            resident = self._resident()
            self._reporter.closing(resident)
            if resident and seconds > 0:
                deadline = time.monotonic() + seconds
                while self._resident() and (left := deadline - time.monotonic()) > 0:
                    self._room.wait(lambda: not self._resident(), min(left, _LONGEST_WAIT))
            self._closed = True
            lost = 0
            if self._disk is None:
                lost = sum(self._discard(lane) for lane in self._lanes)
            else:
                for error in self._disk.close():
                    self._reporter.left_in_ring(error)
        self._ready.notify()
        self._reporter.closed(lost)
        return self.stats()

    def _discard(self, lane: Lane) -> int:
        lost = lane.discard("closed")
        if lost:
            self._reporter.dropped(lane.priority, lost, "closed")
        return lost

    def _resident(self) -> int:
        return sum(lane.resident for lane in self._lanes)

    def __enter__(self) -> BufferManager:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> Literal[False]:
        # After an exception nobody is likely to consume: do not keep it waiting.
        self.close() if error is None else self.close(timeout=0)
        return False

    def __repr__(self) -> str:
        state = "closed" if self._closed else "closing" if self._closing else "open"
        return f"<BufferManager {state}, {self._resident()} events resident>"


_buffers: weakref.WeakSet[BufferManager] = weakref.WeakSet()


def _leave_behind_all() -> None:
    for buffer in list(_buffers):
        buffer._left_behind()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_behind_all)
