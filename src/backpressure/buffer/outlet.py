"""Outlet: the consumers' side of a buffer.

get_batch ──> LaneScheduler ──> BatchHold ──> ControlLoop.permit ──> lane ──> Batch
Batch.ack, Batch.nack ──> lane, ControlLoop.settled
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from backpressure.base.errors import BufferClosed
from backpressure.base.wakeup import Waiter, Wakeup
from backpressure.buffer.batch import Batch
from backpressure.buffer.batch_hold import BatchHold
from backpressure.buffer.intake import FORKED
from backpressure.buffer.lane_watch import LaneWatch
from backpressure.buffer.reporter import EventReporter
from backpressure.buffer.scheduler import LaneScheduler
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

    ready: notified by others when a batch may be ready; room: notified when an ack made
    room. buffer_id: a part of each batch's id.
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
        max_batch_bytes: int,
        buffer_id: str,
        now: Callable[[], float],
        reporter: EventReporter,
    ) -> None:
        #: Events still come in behind a batch that is not full.
        self.closing = False
        #: Nothing comes any more: where no lane has anything, `get_batch` raises.
        self.closed = False
        #: This process was forked from the one that made the buffer.
        self.forked = False
        self._control = control
        self._watch = watch
        self._hold = hold
        self._ready = ready
        self._room = room
        self._max_batch_bytes = max_batch_bytes
        self._buffer_id = buffer_id
        self._now = now
        self._reporter = reporter
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
                deadline = time.monotonic() + seconds
            left = deadline - time.monotonic()
            if left > 0:
                self.batch_waiter(max_events).wait(left)
            else:
                patient = False  # what still waits to fill goes now

    def next_batch(self, max_events: int | None, patient: bool) -> Batch | None:
        """One try, without waiting. `patient`: a batch may wait to fill."""
        if max_events is not None and (
            isinstance(max_events, bool) or not isinstance(max_events, int) or max_events < 1
        ):
            raise ValueError(f"max_events must be an int from 1 on, or None, not {max_events!r}")
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
        if permit is None:
            return None
        waiting = len(lane.ring)
        try:
            handout = lane.next_handout(asked, self._max_batch_bytes, now)
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
        elif self.closing:
            reason = "close"
        control.handed_out(hold.batch_left(lane, now, waiting, reason))
        batch = Batch(
            handout,
            self.settle,
            permit,
            buffer_id=self._buffer_id,
            asked=asked,
            filled=filled,
            taken_at=now,
        )
        if handout.again:
            self._reporter.redelivered(handout)
        return batch

    def settle(self, batch: Batch, ok: bool, error: BaseException | str | None) -> None:
        """What `Batch.ack` and `Batch.nack` call."""
        if self.forked:
            raise BufferClosed(FORKED)
        control, handout = self._control, batch._handout
        now = self._now()
        lane, events = handout.lane, len(handout.messages)
        latency = max(0.0, now - batch.taken_at)
        if ok:
            lane.ack(handout, latency)
            self._room.notify()
            control.settled(events, latency, True, batch.filled, batch.permit)
        else:
            handout.error = None if error is None else str(error) or type(error).__name__
            given_up = 0
            if isinstance(error, BaseException) and control.ignores(error):
                lane.put_back(handout, now + control.pause_after(error))
            else:
                given_up = lane.nack(handout, now + control.backoff(handout.attempt))
            if given_up:
                self._reporter.dead_lettered(handout, given_up)
                self._room.notify()
            cause = error if isinstance(error, BaseException) else None
            control.settled(events, latency, False, batch.filled, batch.permit, cause)
            self._ready.notify()
        if now >= control.next_tick:
            self._watch.tick(now)

    # ------------------------------------------------------------ waiting

    def batch_waiter(self, max_events: int | None) -> Waiter:
        """What a consumer that got nothing sleeps on."""
        if self.forked:
            return Waiter(self._ready, lambda: True, 0.0)
        left = self._hold.seconds_left()
        if left > 0.0:
            asked = max_events if max_events is not None else self._control.batch_size
            return Waiter(self._hold.wakeup, lambda: self._hold.is_over(asked), left)
        return Waiter(self._ready, self._has_work, self._pause())

    def _has_work(self) -> bool:
        """Whether a consumer has reason to look again."""
        now = self._now()
        return self.closed or (self._scheduler.any_ready(now) and self._control.retry_after() == 0)

    def _pause(self) -> float:
        """How long a consumer can sleep before time alone could give it work."""
        now = self._now()
        pause = min(_LONGEST_WAIT, self._scheduler.next_retry(now))
        if self._scheduler.any_ready(now):
            pause = min(pause, self._control.retry_after())
        return max(pause, _SHORTEST_WAIT)
