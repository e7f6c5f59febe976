"""Intake: the producers' side of a buffer.

    add_events, add_lines ──> PendingAdd ──> ControlLoop.admit ──> lane ──> ring

A payload is checked as a whole, then pushed as far as flow control and the lane take
it; `PendingAdd` does that, and comes back to the intake once for each push (`arrived`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from backpressure.base.errors import BufferClosed
from backpressure.base.priority import check_priority, default_priority
from backpressure.base.reentry import interrupted
from backpressure.base.validation import NOT_GIVEN, NotGiven, limit, timeout_seconds
from backpressure.base.wakeup import Waiter, Wakeup
from backpressure.buffer.admission import Admission
from backpressure.buffer.batch_hold import BatchHold
from backpressure.buffer.config import WhenFull
from backpressure.buffer.lane_watch import LaneWatch
from backpressure.buffer.payload import EventPayload, LinePayload
from backpressure.buffer.pending_add import PendingAdd
from backpressure.buffer.reporter import EventReporter
from backpressure.buffer.sink_wait import SinkWait
from backpressure.lanes.lane import Lane
from backpressure.policies.control_loop import ControlLoop
from ringbuf._messages.prepaid import Gate

if TYPE_CHECKING:
    from backpressure.buffer.disk_tier import DiskTier

__all__ = ["FORKED", "Intake"]

#: What a forked child is told.
FORKED: Final = (
    "this process was forked from the one that made the buffer, and the buffer and its events "
    "stay there: make a buffer in this process"
)


class Intake:
    """Of one buffer; an `AddPort`. Safe for any thread.

    lanes: those that take events, one for each priority, the most urgent first.
    ready: notified when events came in; room: notified by others when a lane got room.
    sink_takes: whether the sink is called at all, see sink_wait.py.
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
        disk: DiskTier | None,
        when_full: WhenFull,
        now: Callable[[], float],
        sink_takes: Callable[[float], bool],
        reporter: EventReporter,
        quick: bool,
    ) -> None:
        self.lanes: Final = lanes
        self.control: ControlLoop = control
        # What a timeout that is not given comes to, in seconds.
        self._patience = math.inf if when_full is WhenFull.BLOCK else 0.0
        #: No event is accepted any more: see `shut`.
        self.closing = False
        #: Shut then: what the quick ways in look at.
        self.gate: Final = Gate()
        #: Whether there are quick ways in: see single_events.py.
        self.quick: Final = quick
        #: What the lanes hold in memory was given up: nothing may come in behind that.
        self.closed = False
        #: This process was forked from the one that made the buffer.
        self.forked = False
        self._drops = when_full is WhenFull.DROP_OLDEST
        self._watch = watch
        self.hold: Final = hold
        self.ready: Final = ready
        self._room = room
        self._disk = disk
        self._now = now
        self._reporter = reporter
        mark = None if disk is None else disk.spiller.mark
        # By lane; none where nothing is spilled because a ring fills.
        self._sink_waits: Final = (
            []
            if mark is None
            else [SinkWait(lane, mark, takes=sink_takes, now=now) for lane in lanes]
        )

    # ------------------------------------------------------------ an add begins

    def pending_events(
        self,
        events: Sequence[bytes | str] | Any,
        priority: int | None,
        wait_for_sink: bool = False,
    ) -> PendingAdd:
        """An add of events, checked and not begun."""
        lane = self._open_lane(priority)
        payload = EventPayload(events, lane.ring.max_message_bytes)
        return PendingAdd(self, lane, payload, self._sink_wait(lane) if wait_for_sink else None)

    def pending_lines(
        self,
        chunk: Any,
        priority: int | None,
        final: bool,
        max_event_bytes: int | None,
        wait_for_sink: bool = False,
    ) -> PendingAdd:
        """An add of a chunk's lines, checked and not begun. max_event_bytes: in one
        line, where the caller allows less than the lane does.
        """
        lane = self._open_lane(priority)
        allowed = limit("max_event_bytes", max_event_bytes)
        largest = lane.ring.max_message_bytes
        if allowed is not None:
            largest = min(largest, allowed)
        payload = LinePayload(chunk, final, largest)
        return PendingAdd(self, lane, payload, self._sink_wait(lane) if wait_for_sink else None)

    def _sink_wait(self, lane: Lane) -> SinkWait | None:
        """What tells an add that has time whether to wait for the sink."""
        if not self._sink_waits or interrupted() is not None:
            return None
        return self._sink_waits[lane.priority - 1]

    def open_priority(self, priority: int | None) -> int:
        """A priority, or that of events that are given none, as a plain int; raises as
        an add does.
        """
        return self._open_lane(priority).priority

    def _open_lane(self, priority: int | None) -> Lane:
        if self.closing:
            raise BufferClosed(
                FORKED if self.forked else "the buffer is closed: it accepts no more events"
            )
        levels = len(self.lanes)
        if priority is None:
            return self.lanes[default_priority(levels) - 1]
        return self.lanes[check_priority(priority, levels) - 1]

    # ------------------------------------------------------------ an add goes on

    def seconds(self, timeout: float | NotGiven | None) -> float:
        """How long an add waits for room or tokens."""
        return self._patience if timeout is NOT_GIVEN else timeout_seconds(timeout)

    def finish(self, pending: PendingAdd, seconds: float) -> Admission:
        """Press on with an add for that long, in this thread; what became of it."""
        try:
            if not pending.advance() and seconds > 0 and interrupted() is None:
                deadline = time.monotonic() + seconds
                self.hurry_disk(pending)
                while (left := deadline - time.monotonic()) > 0:
                    self.room_waiter(pending).wait(left)
                    if pending.advance() or self.closing:
                        break
                else:
                    self.end_wait(pending)
        finally:
            # Also where a signal's handler raises: the books show what became of every
            # event, and what is in is as durable as was promised.
            admission = pending.admission()
            self.wait_durable(pending)
        return admission

    def hurry_disk(self, pending: PendingAdd) -> None:
        """Have the spiller make room now, unless the add waits for the sink to do so:
        it looks by itself, but not at once.
        """
        if self._disk is not None and not pending.held:
            self._disk.spiller.wake()

    def end_wait(self, pending: PendingAdd) -> None:
        """The time of an add is over: what was to wait for the sink goes in."""
        if pending.held:
            pending.stop_waiting()
            pending.advance()

    def awaits_disk(self, pending: PendingAdd) -> bool:
        """Whether what an add brought is still to be made durable, as was promised."""
        return self._disk is not None and self._disk.commits and pending.accepted > 0

    def wait_durable(self, pending: PendingAdd) -> None:
        """Wait until what an add brought is durable, where that was promised."""
        if self._disk is not None and self.awaits_disk(pending):
            lane = self._disk.lanes[pending.priority - 1]
            # Other producers' events may lie between those of one add, so its own last
            # number is not known; this one is not below.
            self._disk.spiller.wait_durable(lane, lane.ring.next_seq)

    def room_waiter(self, pending: PendingAdd) -> Waiter:
        """What to sleep on until `pending.advance` may push something."""
        return Waiter(self._room, lambda: self.closing or pending.may_advance(), pending.pause())

    # ------------------------------------------------------------ what an add tells

    def arrived(self, lane: Lane, first_seq: int) -> None:
        """Events have come in: note when, wake the consumers, let the policies look."""
        now = self._now()
        lane.arrived(first_seq, now)
        self.ready.notify()
        if self.hold.waiting is not None:
            self.hold.arrived(lane)
        if now >= self.control.next_tick:
            self._watch.tick(now)

    def arrived_alone(self, lane: Lane, seq: int) -> None:
        """As `arrived`, for a single event, and others before it, that came by a quick
        way, which may have been let in before `shut`.
        """
        try:
            self.arrived(lane, seq)
        finally:
            if self.closed:
                self.ended(lane, 1)

    def tick_if_due(self) -> bool:
        """Let the policies look at the lanes if it is time; whether it was."""
        now = self._now()
        due = self.control.due(now)
        if due:
            self._watch.tick(now)
        return due

    def make_room(self, lane: Lane, events: int, nbytes: int) -> bool:
        """Drop what is too old, or about as many of the oldest events, where
        `when_full` says so; whether that made room.
        """
        if self._watch.expires and lane.expire():
            return True
        dropped = lane.drop_oldest(events, nbytes) if self._drops else 0
        if dropped:
            self._reporter.dropped(lane.priority, dropped, "oldest")
        return dropped > 0

    def ended(self, lane: Lane, accepted: int) -> None:
        """An add is over, and that many of its events are in the lane."""
        if self.closed and accepted and self._disk is None:
            self.discard(lane)  # close() had looked before these came in

    # ------------------------------------------------------------ the end

    def shut(self) -> None:
        """Accept no event from now on."""
        self.closing = True
        self.gate.shut()

    def discard(self, lane: Lane) -> int:
        """Give up all that a lane holds in memory; returns how many events."""
        lost = lane.discard("closed")
        if lost:
            self._reporter.dropped(lane.priority, lost, "closed")
        return lost
