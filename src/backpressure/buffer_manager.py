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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, cast

from backpressure.base.clock import Clock, MonotonicClock
from backpressure.base.errors import (
    AlreadyDelivering,
    BufferClosed,
    InvalidEvents,
    NeverAdmitted,
    NotNow,
)
from backpressure.base.events import EventType, Tuned
from backpressure.base.priority import default_priority
from backpressure.base.reentry import acquire_within, interrupted
from backpressure.base.validation import NOT_GIVEN, NotGiven, timeout_seconds
from backpressure.base.wakeup import Waiter, Wakeup
from backpressure.buffer.admission import Admission
from backpressure.buffer.batch import Batch
from backpressure.buffer.batch_hold import BatchHold
from backpressure.buffer.config import BufferConfig, Durability, WhenFull
from backpressure.buffer.intake import FORKED, Intake
from backpressure.buffer.lane_watch import LaneWatch
from backpressure.buffer.outlet import Outlet
from backpressure.buffer.reporter import EventReporter
from backpressure.buffer.settlement import Settlement
from backpressure.buffer.single_events import Producer, open_entrance
from backpressure.buffer.sink_access import SinkAccess
from backpressure.buffer.stats import BufferStats, sum_lanes
from backpressure.lanes.age_limit import AgeLimit
from backpressure.lanes.attempts import SinkRecord
from backpressure.lanes.dead_letter_list import DeadLetterList
from backpressure.lanes.lane import Lane
from backpressure.policies.adaptive_batch_manager import AdaptiveBatchManager
from backpressure.policies.backpressure_monitor import BackpressureMonitor, Pressure
from backpressure.policies.circuit_breaker import CircuitBreaker, State
from backpressure.policies.control_loop import Backoff, ControlLoop
from backpressure.policies.flow_control_manager import FlowControlManager
from ringbuf import MessageRing
from ringbuf._messages.prepaid import Entrance, Entrances, settle_stores

if TYPE_CHECKING:
    from backpressure.buffer.aio import AsyncBuffer
    from backpressure.buffer.disk_tier import DiskTier
    from backpressure.delivery.aio_delivery import AsyncDelivery
    from backpressure.delivery.delivery import Delivery
    from backpressure.delivery.sink import Sink
    from backpressure.lanes.durable_lane import DurableLane
    from backpressure.spill.dead_letter import DeadLetter
    from backpressure.spill.dead_letters import DeadLetterStore

    D = TypeVar("D", Delivery, AsyncDelivery)

__all__ = ["BufferManager"]

# Of a lane that nothing will ever come into (bytes).
_SMALLEST_LANE: Final = 4096
# A wait of `close` looks again at least this often (seconds).
_LONGEST_WAIT: Final = 1.0
# A `close` waits that long for another thread's (seconds), also where its own timeout
# is shorter: most of them end in milliseconds.
_CLOSE_PATIENCE: Final = 5.0
# What DROP_LOWEST_PRIORITY gives up at a time, at most: a fraction of a segment, so
# that no more goes than is needed.
_DROP_EVENTS: Final = 100_000
_DROP_BYTES: Final = 8 << 20


class BufferManager(Entrances):
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
        record = SinkRecord()
        if self.config.directory is None:
            buffer_id = os.urandom(16).hex()
            self._letters: DeadLetterList | DeadLetterStore = DeadLetterList(
                self._reporter.letters_lost,
                most_letters=self.config.effective_max_dead_letters,
                most_bytes=self.config.effective_max_dead_letter_bytes,
            )
            self._lanes = tuple(
                Lane(priority, MessageRing(self.config.lane_bytes), record, self._age_limit())
                for priority in range(1, levels + 1)
            )
        else:
            # A buffer in memory loads none of it.
            from backpressure.buffer.disk_tier import DiskTier

            self._disk = DiskTier(
                self.config.directory,
                self.config,
                sink=record,
                make_room=self._drop_less_urgent,
                moved=self._spilled,
                failed=self._reporter.disk_changed,
                letters_lost=self._reporter.letters_lost,
                age=self._age_limit,
            )
            buffer_id = self._disk.directory.buffer_id.hex
            assert self._disk.dead_letters is not None
            self._letters = self._disk.dead_letters
            self._lanes = tuple(self._disk.lanes)
        #: Whose batches these are: part of each batch's id. Of a buffer with a
        #: directory it outlives the process.
        self.id: Final = buffer_id
        # Those that take events: their index is their priority less 1.
        self._open_lanes: Final = self._lanes[:levels]
        self._watch: Final = LaneWatch(
            self._open_lanes,
            self._control,
            self._spills,
            surplus=self._lanes[levels:],
            expires=self.config.max_age is not None,
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
            sink_takes=self._sink_takes,
            reporter=self._reporter,
            quick=type(clock) is MonotonicClock
            and wakeup is Wakeup
            and self.config.durability is not Durability.COMMIT,
        )
        self._open_quick_ways()
        self._sink: Final = SinkAccess(record, self.config.max_batch_bytes)
        self._settlement: Final = Settlement(
            control=self._control,
            watch=self._watch,
            ready=self._ready,
            room=self._room,
            sink=self._sink,
            dead_letters=self._letters,
            max_attempts=self.config.max_attempts,
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
            sink=self._sink,
            settlement=self._settlement,
            buffer_id=buffer_id,
            now=clock.now,
            reporter=self._reporter,
        )
        self._delivery: Delivery | AsyncDelivery | None = None
        self._closed = self._forked = False
        # `close` came to its end, and no exception ended it before.
        self._let_go = False
        self._close_lock = threading.RLock()
        self._delivery_lock = threading.RLock()
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

    def _open_quick_ways(self) -> None:
        """Of single events: see buffer/single_events.py."""
        entrances = tuple(Entrance() for _ in self._open_lanes)
        for priority, entrance in enumerate(entrances, 1):
            open_entrance(entrance, self._intake, priority)
        self._open_entrances(entrances, entrances[default_priority(len(entrances)) - 1])

    # ------------------------------------------------------------ producers

    def add_events(
        self,
        events: Sequence[bytes | str] | Any,
        priority: int | None = None,
        timeout: float | NotGiven | None = NOT_GIVEN,
        *,
        wait_for_sink: bool = False,
    ) -> Admission:
        """Offer events; returns how many were accepted, always a prefix of what was
        given.

        events: a sequence of bytes or str (which are kept as UTF-8); a 1-D numpy array
            of bytes (NULs at the end are padding, as numpy reads an item), void,
            records, objects or StringDType; or an Arrow column of binary or string, as
            an array or a stream (pyarrow, polars, pandas), which is read to its end
            first. All else is refused, with a hint, and never taken apart: a dict, a
            table, an iterator, one buffer, numbers, nulls and masked items.
        priority: a Priority, or an int from 1 (most urgent) to the number of
            priorities, `flow_control.priority_levels`. None: NORMAL, or the least
            urgent where there are fewer than three.
        timeout: seconds to wait for room or tokens. 0 never waits, None waits as long
            as needed. Not given: None with `when_full=BLOCK`, else 0.
        wait_for_sink: for producers that lose nothing by waiting. While the sink takes,
            wait for it within `timeout` rather than fill the lane so far that events go
            to disk and come back. Nothing is refused for that. See sink_wait.py. It
            means nothing in memory only, and with a durability that writes all to disk.

        Raises InvalidEvents (EventTooLarge for an event that its lane can never hold)
        and BufferClosed; in both cases nothing was accepted.
        """
        intake = self._intake
        seconds = intake.seconds(timeout)
        pending = intake.pending_events(events, priority, wait_for_sink and seconds > 0)
        return intake.finish(pending, seconds)

    def add_lines(
        self,
        chunk: Any,
        priority: int | None = None,
        timeout: float | NotGiven | None = NOT_GIVEN,
        final: bool = True,
        *,
        max_event_bytes: int | None = None,
        wait_for_sink: bool = False,
    ) -> Admission:
        r"""Offer the lines of a chunk of bytes, each without its newline (b"\n") as one
        event.

        chunk: anything with a contiguous buffer: bytes, bytearray, memoryview, mmap, a
            numpy array. It must not be changed until the call returns.
        final: whether a last piece without a newline is an event too; if not, it is not
            consumed.
        max_event_bytes: in one line, where less is allowed than the lane can hold.
        priority, timeout, wait_for_sink, errors: as for `add_events`. `consumed` of the
            Admission tells how many bytes of the chunk were taken.
        """
        intake = self._intake
        seconds = intake.seconds(timeout)
        pending = intake.pending_lines(
            chunk, priority, final, max_event_bytes, wait_for_sink and seconds > 0
        )
        return intake.finish(pending, seconds)

    def _add_slowly(
        self, event: bytes | str, priority: int | None, timeout: float | NotGiven | None
    ) -> bool:
        """What `add_event` does where it is not plain that the event may enter."""
        return not self.add_events([event], priority, timeout=timeout).rejected

    def producer(self, priority: int | None = None) -> Producer:
        """A way in for single events of one priority: `producer.add(event)`.

        For one thread it is the fastest, on an interpreter without a GIL above all; any
        thread may use it. priority: as for `add_events`, which also says what is
        raised.
        """
        return Producer(self, self._intake.open_priority(priority))

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

    def _age_limit(self) -> AgeLimit | None:
        """What `max_age` means for one lane."""
        seconds = self.config.max_age
        return None if seconds is None else AgeLimit(seconds, self._now, self._expired)

    def _expired(self, priority: int, events: int) -> None:
        """Called by a lane that has dropped what was too old."""
        self._reporter.dropped(priority, events, "age")
        self._room.notify()

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
        self._intake.forked = self._outlet.forked = self._settlement.forked = True
        self._intake.closing = self._sink.closing = True
        self._intake.gate.shut()
        self._set_closed()
        self._close_lock = threading.RLock()
        self._delivery_lock = threading.RLock()
        if self._delivery is not None:
            self._delivery.leave_to_parent()
            self._delivery = None
        for wakeup in (self._ready, self._room, self._hold.wakeup):
            wakeup.forget_waiters()
        self._notifications.leave_to_parent()
        # A child that had one and is itself forked: that one stays here.
        self.__dict__.pop("_empty", None)
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

    def _sink_takes(self, now: float) -> bool:
        """Whether the sink is called at all, for producers that could wait for it. Not
        where it is asked out of turn: whoever does that is about to end.
        """
        sink, delivery = self._sink, self._delivery
        return (
            not self.is_circuit_breaker_open()
            and now >= sink.away_until
            and not sink.asked
            and (delivery is None or delivery.running)
        )

    def _pressure_changed(self, pressure: Pressure) -> None:
        self._hold.wakeup.notify()
        self._reporter.pressure_changed(pressure)

    def _circuit_changed(self, old: State, new: State, reason: str) -> None:
        self._reporter.circuit_changed(old, new, reason)
        self._ready.notify()
        self._room.notify()  # a producer may be waiting for the sink

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
        return self._reporter.tuned("batch_size", old, int(size), by)

    def adjust_burst_size(self, events: int, *, by: str = "code") -> Tuned:
        """Set how many events may enter at one moment. `by`: as above."""
        self._check_own()
        old = self._control.flow.metrics().burst
        self._control.flow.set_burst(events)
        return self._reporter.tuned("burst_size", old, int(events), by)

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
            dead_letters=len(self._letters),
            dead_letters_lost=self._letters.lost,
            delivery=None if self._delivery is None else self._delivery.stats(),
            recovery_seconds=None if self._disk is None else self._disk.recovery_seconds,
        )

    # ------------------------------------------------------------ the end

    def flush(self) -> None:
        """Write all that is owed now to disk and sync it, whatever the durability: it
        survives power loss when this returns.

        In memory only nothing is written. A batch that waits to fill goes out at once,
        one that failed is tried again, and where the circuit is open the sink is asked
        whether it is back. Raises DiskFull or DiskFailed; the same call may be tried
        again. In a finaliser or a signal's handler that has interrupted a call of its
        own thread, it is made after that.
        """
        if self._forked:
            return
        if (reentry := interrupted()) is not None:
            self._hold.flush()
            reentry.deferred.append(self.flush)
            return
        self._outlet.ask_once()
        if self._disk is not None and not self._closed:
            try:
                self._disk.flush()
            except BufferClosed:
                assert self._closed  # meanwhile: as where this is called after it
            self._ready.notify()

    @property
    def dead_letters(self) -> DeadLetterStore | DeadLetterList | None:
        """The events that were given up. In memory only the newest are kept, see
        `stats().dead_letters_lost`; None in a forked child.
        """
        return None if self._forked else self._letters

    def replay_dead_letters(self, letters: Iterable[DeadLetter] | None = None) -> int:
        """Add dead letters (None: all) anew to the lanes that they come from, and
        forget them as dead letters; returns how many.

        One that no lane can ever hold stays a dead letter. Where one is refused for
        want of room or tokens, that one and those after it stay.
        """
        self._check_own()
        levels = len(self._open_lanes)
        replayed = 0

        def add(letter: DeadLetter) -> None:
            nonlocal replayed
            priority = min(letter.priority, levels)
            self.add_events([letter.event], priority, timeout=0.0).raise_for_rejection()
            replayed += 1

        # What ends a replay has taken its letter from here: the next goes on behind it.
        left = iter(self._letters.letters() if letters is None else letters)
        while True:
            try:
                self._letters.replay(add, left)
            except NotNow:
                return replayed
            except (NeverAdmitted, InvalidEvents):
                continue
            except ValueError:
                # That one was purged or replayed from elsewhere meanwhile.
                if letters is not None:
                    raise
                continue
            return replayed

    # ------------------------------------------------------------ delivery

    def deliver_to(
        self,
        sink: Sink | Callable[[Batch], object],
        workers: int = 1,
        max_events: int | None = None,
        classify: Callable[[BaseException], object] | None = None,
        close_sink: bool = True,
    ) -> Delivery:
        """Deliver to `sink`, in threads of its own, from now on until `Delivery.stop`,
        the end of this buffer, or of the interpreter.

        sink: has `send(batch)`, or is a function that takes a batch. What it returns
            from is delivered; what it raises says what becomes of the batch, see
            delivery/outcomes.py. It is not called by two threads at once, unless it has
            a `max_concurrency` above 1.
        workers: batches in flight at once, at most; as many of these as pay. Order
            within a priority holds at 1.
        max_events: in a batch; None leaves it to the adaptive batch size.
        classify: is asked first what an exception out of the sink means. It returns
            None, or one to be judged in its place: `BatchRejected()`,
            `SinkUnavailable(30.0)`, …
        close_sink: whether `sink.close()` is called at the end.

        Raises AlreadyDelivering, BufferClosed, TypeError, ValueError; then nothing has
        begun.

        >>> received = []
        >>> with BufferManager() as buffer:
        ...     delivery = buffer.deliver_to(lambda batch: received.extend(batch))
        ...     admission = buffer.add_events([b"one", b"two"])
        >>> received
        [b'one', b'two']
        """
        from backpressure.delivery.delivery import Delivery

        return self._hold_delivery(
            lambda outlet: Delivery(
                self,
                outlet,
                sink,
                workers=workers,
                max_events=max_events,
                classify=classify,
                close_sink=close_sink,
            )
        )

    def _hold_delivery(self, make: Callable[[Outlet], D]) -> D:
        """Make the one delivery of this buffer."""
        self._check_own()
        with self._delivery_lock:
            if self._sink.closing:
                raise BufferClosed("the buffer is closed: it delivers nothing more")
            before = self._delivery
            if before is not None and before.running:
                raise AlreadyDelivering(
                    f"the buffer delivers to {before.name} already: stop that delivery first, or "
                    f"make another buffer for the other sink"
                )
            delivery = make(self._outlet)
            self._delivery = delivery
        delivery.start()
        return delivery

    @property
    def delivery(self) -> Delivery | AsyncDelivery | None:
        """What `deliver_to` returned last, or None."""
        return None if self._forked else self._delivery

    # ------------------------------------------------------------ the end

    def close(self, timeout: float | None = 5.0) -> BufferStats:
        """Accept no more, wait up to `timeout` seconds (None: as long as it takes) for
        the consumers to finish, then end.

        Meanwhile the sink is asked whatever the circuit says, so that one that is back
        gets what it can take. What has not been acked by then stays in the directory
        and is delivered at the next start; in memory only it is counted as dropped
        ("closed") and logged. A delivery ends with the buffer, and closes its sink
        within the same time. Returns the last stats; a second call only these. While
        another thread closes, it waits for that one: for its own timeout, and for some
        seconds at least. In a finaliser or a signal's handler that has interrupted a
        call of its own thread, nothing is accepted from now on, and the rest is done
        after that call, unless another thread is at it.
        """
        return self._close(timeout_seconds(timeout), waits=True)

    def _close(self, seconds: float, *, waits: bool) -> BufferStats:
        """waits: for another thread that is closing."""
        if self._forked:
            return self.stats()
        deadline = time.monotonic() + seconds
        self._intake.shut()
        self._sink.closing = True
        self._room.notify()
        self._hold.close()
        if (reentry := interrupted()) is not None:
            # Whoever makes the call later may be what the other thread waits for.
            reentry.deferred.append(partial(self._close, seconds, waits=False))
            return self.stats()
        if cast(Any, self._close_lock)._is_owned():
            return self.stats()  # within the close that this has interrupted
        self._outlet.hurry()
        if self._disk is not None and self._disk.spiller.is_this_thread():
            waits = False  # a finaliser there: whoever closes waits for that thread
        patience = max(seconds, _CLOSE_PATIENCE) if waits else 0.0
        acquired: list[bool] = []
        try:
            if not acquire_within(self._close_lock, acquired, patience) or self._let_go:
                return self.stats()
            self._reporter.closing(self.resident)
            delivery = self._delivery
            self._wait_for_consumers(delivery, deadline)
            self._set_closed()
            # Whoever pushes from here on sees that, or is seen by what looks here.
            settle_stores()
            self._control.flow.recall()
            lost = 0
            if self._disk is None:
                lost = sum(self._intake.discard(lane) for lane in self._lanes)
            else:
                for error in self._disk.close():
                    self._reporter.left_in_ring(error)
            self._let_go = True
        finally:
            if acquired:
                self._close_lock.release()
        self._ready.notify()
        if delivery is not None:
            delivery.end_with_buffer(max(0.0, deadline - time.monotonic()))
        self._reporter.closed(lost)
        return self.stats()

    def _wait_for_consumers(
        self, delivery: Delivery | AsyncDelivery | None, deadline: float
    ) -> None:
        while not self._closed and self.resident and (left := deadline - time.monotonic()) > 0:
            if delivery is not None and delivery.gave_up:
                break  # nothing more will come of waiting
            self._room.wait(lambda: not self.resident, min(left, _LONGEST_WAIT))

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
        # After an exception no consumer is likely to come, but for a delivery.
        delivery = self._delivery
        consumed = delivery is not None and delivery.running
        self.close() if error is None or consumed else self.close(timeout=0)
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
