"""Outlet: the consumers' side of a buffer.

get_batch ──> LaneScheduler ──> BatchHold ──> ControlLoop.permit ──> lane ──> Batch

What becomes of the batch is in settlement.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from backpressure.base.errors import BufferClosed
from backpressure.base.reentry import interrupted
from backpressure.base.validation import limit
from backpressure.base.wakeup import Waiter, Wakeup
from backpressure.buffer.batch import Batch
from backpressure.buffer.batch_hold import BatchHold
from backpressure.buffer.intake import FORKED
from backpressure.buffer.lane_watch import LaneWatch
from backpressure.buffer.reporter import EventReporter
from backpressure.buffer.scheduler import LaneScheduler
from backpressure.buffer.settlement import Settlement
from backpressure.buffer.sink_access import ASKING_WAIT, SinkAccess
from backpressure.lanes.lane import Lane
from backpressure.policies.control_loop import ControlLoop

__all__ = ["Outlet"]

# A wait for the circuit, a retry or a token looks again at least this often (seconds):
# their times move.
_LONGEST_WAIT: Final = 1.0
# No wait is shorter (seconds): a time that has just come needs no finer look.
_SHORTEST_WAIT: Final = 0.001
_EMPTY: Final = "the buffer is closed and has nothing more to deliver"


class Outlet:
    """Of one buffer. Safe for any thread.

    ready: notified by others when a batch may be ready; room: when a batch was settled.
    buffer_id: a part of each batch's id.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        *,
        control: ControlLoop,
        watch: LaneWatch,
        hold: BatchHold,
        ready: Wakeup,
        room: Wakeup,
        sink: SinkAccess,
        settlement: Settlement,
        buffer_id: str,
        now: Callable[[], float],
        reporter: EventReporter,
    ) -> None:
        #: How the sink is called, and what becomes of its batches.
        self.sink: Final = sink
        self.settlement: Final = settlement
        self.reporter: Final = reporter
        #: Nothing comes any more: where no lane has anything, `get_batch` raises.
        self.closed = False
        #: This process was forked from the one that made the buffer.
        self.forked = False
        self._control = control
        self._watch = watch
        self._hold = hold
        self._ready = ready
        self._room = room
        self._lanes = lanes
        self._buffer_id = buffer_id
        self._now = now
        self._scheduler = LaneScheduler(lanes)

    def get_batch(self, max_events: int | None, seconds: float) -> Batch | None:
        """The next batch within that time, waiting in this thread."""
        patient = seconds > 0
        deadline: float | None = None
        while True:
            batch = self.next_batch(max_events, patient)
            if batch is not None or not patient:
                return batch
            if deadline is None:
                if interrupted() is not None:
                    patient = False
                    continue
                deadline = time.monotonic() + seconds
            left = deadline - time.monotonic()
            if left > 0:
                self.batch_waiter(max_events).wait(left)
            else:
                patient = False  # what still waits to fill goes now

    def next_batch(self, max_events: int | None, patient: bool) -> Batch | None:
        """One try, without waiting. `patient`: a batch may wait to fill."""
        max_events = limit("max_events", max_events)
        if self.forked:
            raise BufferClosed(FORKED)
        try:
            return self._take_batch(max_events, patient)
        except ValueError:
            # `close` closes a directory's rings, also while they are looked at.
            if not self.closed:
                raise
        raise BufferClosed(_EMPTY)

    def _take_batch(self, max_events: int | None, patient: bool) -> Batch | None:
        control, hold = self._control, self._hold
        now = self._now()
        if now >= control.next_tick:
            self._watch.tick(now)
        elif self._watch.expires:
            self._watch.expire()
        sink = self.sink
        if now < sink.away_until and sink.left_alone(now):
            return None
        lane = self._scheduler.choose(now)
        if lane is None:
            if self.closed:
                raise BufferClosed(_EMPTY)
            return None
        size = control.batch_size
        asked = max_events if max_events is not None else size
        reason = hold.release_reason(lane, asked, now, patient)
        if reason is None:
            return None
        permit = control.permit()
        if permit is None and (sink.asked or lane.asks(now)):
            permit = control.ask()
        if permit is None:
            return None
        sink.handed_out()
        waiting = len(lane.ring)
        batch = Batch(self.settlement, permit, buffer_id=self._buffer_id, asked=asked, taken_at=now)
        try:
            handout = lane.next_handout(asked, sink.size.nbytes, now, batch)
        except BaseException:
            permit.ignore()
            raise
        if handout is None:  # another consumer was faster
            permit.ignore()
            return None
        count = len(handout.messages)
        filled: bool | None = count >= size
        if handout.again:
            reason, filled = "retry", None
        elif count >= asked:
            reason, filled = "size", filled or None
        elif count < waiting:
            reason, filled = "bytes", filled or None
        elif sink.closing:
            reason = "close"
        batch.filled = filled
        control.handed_out(hold.batch_left(lane, now, waiting, reason))
        if handout.again:
            self.reporter.redelivered(handout)
        return batch

    # ------------------------------------------------------------ asking

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Within this the sink is asked whatever the circuit says, with no pauses, and
        no batch waits to fill at the begin.
        """
        with self.sink.asking():
            self._hold.flush()
            self.hurry()
            yield

    def ask_once(self) -> None:
        """Let one batch go out at once whatever the circuit says; end all pauses."""
        self._hold.flush()
        self.sink.ask_once()
        self.hurry()

    def hurry(self) -> None:
        """End all pauses: whoever calls has no time to wait for them."""
        now = self._now()
        for lane in self._lanes:
            lane.hurry(now)
        self.sink.end_pauses()
        self._ready.notify()
        self._room.notify()  # a producer may be waiting for the sink

    # ------------------------------------------------------------ what is settled

    def ends(self) -> tuple[int, ...]:
        """Of each lane, the number that its next event gets."""
        return tuple(lane.ring.next_seq for lane in self._lanes)

    def has_settled(self, ends: Sequence[int]) -> bool:
        """Whether all that was in the lanes when these were their ends is settled."""
        return all(lane.owed_from() >= end for lane, end in zip(self._lanes, ends, strict=True))

    # ------------------------------------------------------------ waiting

    def batch_waiter(self, max_events: int | None) -> Waiter:
        """What a consumer that got nothing sleeps on."""
        max_events = limit("max_events", max_events)
        if self.forked:
            return Waiter(self._ready, lambda: True, 0.0)
        left = self._hold.seconds_left()
        if left > 0.0:
            asked = max_events if max_events is not None else self._control.batch_size
            return Waiter(self._hold.wakeup, lambda: self._hold.is_over(asked), left)
        return Waiter(self._ready, self._has_work, self._pause())

    def room_waiter(self, done: Callable[[], bool]) -> Waiter:
        """What to sleep on until events have been settled, for whoever looks by itself
        whether they have.
        """
        return Waiter(self._room, done, _LONGEST_WAIT)

    def _has_work(self) -> bool:
        """Whether a consumer has reason to look again."""
        now = self._now()
        if self.closed:
            return True
        if self.sink.left_alone(now):
            return False
        return self._scheduler.any_ready(now) and self._control.retry_after() == 0

    def _pause(self) -> float:
        """How long a consumer can sleep before time alone could give it work."""
        now = self._now()
        pause = min(_LONGEST_WAIT, self._scheduler.next_retry(now))
        if self.sink.asked:
            pause = min(pause, ASKING_WAIT)
        elif self.sink.left_alone(now):
            pause = min(_LONGEST_WAIT, self.sink.away_until - now)
        elif self._scheduler.any_ready(now):
            pause = min(pause, self._control.retry_after())
            if self._scheduler.any_asks(now):
                pause = min(pause, ASKING_WAIT)
        return max(pause, _SHORTEST_WAIT)
