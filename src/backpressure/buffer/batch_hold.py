"""BatchHold: what becomes of a batch that is not full, across the lanes of a buffer.

`Linger` says whether a lane's batch is worth a wait; here is everything else that has a
say. A batch does not wait

- while another lane has something to deliver, or a nacked batch is due: no consumer
  idles beside work;
- under pressure, in a lane more than half full (producers need the room), or while the
  buffer is being closed;
- when its lane holds as many bytes as a batch may have.

So at most one lane at a time has a batch that waits. Its consumers sleep on a wakeup of
their own: not every arrival wakes them, and a producer pays for that only while
one waits. The wait is a decision by the buffer's clock; the sleep only says when
to look again.

Safe for any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from backpressure.base.priority import Priority
from backpressure.base.wakeup import Wakeup
from backpressure.policies.linger import FlushReason, Linger

if TYPE_CHECKING:
    from backpressure.lanes.lane import Lane

__all__ = ["BatchHold"]

# The part of a lane that a batch which waits may leave occupied.
_MOST_FILL: Final = 0.5


class BatchHold:
    """Decides whether a lane's next batch goes, and knows which one waits.

    limit: the longest wait in seconds; max_bytes: of a batch; now: the buffer's clock;
        pressed: whether it is under pressure.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        *,
        limit: float,
        max_bytes: int,
        now: Callable[[], float],
        pressed: Callable[[], bool],
        wakeup: Wakeup,
    ) -> None:
        self.wakeup: Final = wakeup
        self.closing = False
        self._lanes = lanes
        # By priority, one for each lane. The most urgent never wait for company.
        self._lingers = {
            lane.priority: Linger(0.0 if lane.priority == Priority.CRITICAL else limit)
            for lane in lanes
        }
        self._max_bytes = max_bytes
        self._now = now
        self._pressed = pressed
        #: The lane whose batch waits, and the fewest events that a consumer of it waits
        #: for.
        self.waiting: tuple[Lane, int] | None = None

    # ------------------------------------------------------------ consumers

    def release_reason(
        self, lane: Lane, asked: int, now: float, patient: bool
    ) -> FlushReason | None:
        """Why that lane's next batch goes, if it should turn out not to be full; None:
        it waits for more events. `patient`: its consumer allows that.
        """
        linger = self._lingers[lane.priority]
        if not patient or now - linger.left_at >= linger.limit or now < linger.quiet_until:
            return "linger" if linger.holding else "ready"
        if not linger.holds(now, lane.waiting(), asked, lane.ring.next_seq):
            return "linger" if linger.holding else "ready"
        if self._work_elsewhere(lane, now):
            return "ready"
        reason = self._hurry(lane)
        if reason is None:
            before = self.waiting
            fewest = min(asked, before[1]) if before is not None and before[0] is lane else asked
            self.waiting = (lane, fewest)
        return reason

    def batch_left(self, lane: Lane, now: float, waiting: int, reason: FlushReason) -> FlushReason:
        """A batch leaves while `waiting` events are there; the reason to be counted."""
        linger = self._lingers[lane.priority]
        if linger.holding:
            if linger.flushed and reason in ("ready", "linger"):
                reason = "flush"
            linger.wait_ended(now, waiting, reason)
            self.waiting = None
            self.wakeup.notify()  # another consumer may have waited for these
        linger.left_at = now
        return reason

    def seconds_left(self) -> float:
        """Until the wait that is going on is over; 0.0 where there is none."""
        waiting = self.waiting
        if waiting is None:
            return 0.0
        return max(0.0, self._lingers[waiting[0].priority].until() - self._now())

    def is_over(self, asked: int) -> bool:
        """Whether a consumer whose batch waits has reason to look again."""
        waiting = self.waiting
        if waiting is None:
            return True
        lane = waiting[0]
        now, linger = self._now(), self._lingers[lane.priority]
        if not linger.holding or linger.flushed or now >= linger.until():
            return True
        if lane.waiting() >= asked:
            return True
        return self._hurry(lane) is not None or self._work_elsewhere(lane, now)

    # ------------------------------------------------------------ what ends a wait

    def arrived(self, lane: Lane) -> None:
        """Events came into that lane while a batch waits."""
        waiting = self.waiting
        if waiting is None:
            return
        if lane is not waiting[0] or lane.waiting() >= waiting[1] or self._hurry(lane) is not None:
            self.wakeup.notify()

    def flush(self) -> None:
        """What waits goes at once."""
        for linger in self._lingers.values():
            linger.flush()
        self.wakeup.notify()

    def close(self) -> None:
        """What waits goes at once, and nothing waits from now on."""
        self.closing = True
        self.wakeup.notify()

    # ------------------------------------------------------------ reasons

    def _work_elsewhere(self, lane: Lane, now: float) -> bool:
        return lane.has_retries or any(
            other is not lane and other.ready(now) for other in self._lanes
        )

    def _hurry(self, lane: Lane) -> FlushReason | None:
        """What forbids a batch of that lane to wait, although it is not full."""
        if self.closing:
            return "close"
        ring = lane.ring
        used = ring.used_bytes
        if self._pressed() or used > _MOST_FILL * ring.capacity_bytes:
            return "pressure"
        # What is with consumers occupies its bytes as well.
        full = used >= self._max_bytes and used * lane.waiting() >= self._max_bytes * lane.resident
        return "bytes" if full else None
