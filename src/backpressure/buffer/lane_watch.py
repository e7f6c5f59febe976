"""LaneWatch: what the lanes show, read for the control loop.

The policies have no thread: each call that passes by lets them look when it is time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from backpressure.lanes.lane import Lane
from backpressure.policies.backpressure_monitor import Pressure
from backpressure.policies.control_loop import SHORT, ControlLoop, QueueReading

__all__ = ["LaneWatch"]


class LaneWatch:
    """Reads the lanes of one buffer.

    lanes: those that take events, one for each priority.
    surplus: those that only deliver what they hold.
    spills: see `QueueReading`.
    expires: whether events can become too old.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        control: ControlLoop,
        spills: Callable[[], bool],
        surplus: Sequence[Lane] = (),
        expires: bool = False,
    ) -> None:
        self.expires: Final = expires
        self._lanes = lanes
        self._surplus = surplus
        self._control = control
        self._spills = spills

    def tick(self, now: float) -> Pressure:
        """Drop what is too old, feed the policies, and let them judge."""
        if self.expires:
            self.expire()
        return self._control.tick(now, self.read(now))

    def expire(self) -> None:
        """Drop what is too old: see `Lane.expire`."""
        for lane in (*self._lanes, *self._surplus):
            lane.expire()

    def read(self, now: float) -> QueueReading:
        """What the lanes show now."""
        delay = fill = fullest = 0.0
        all_waiting, taken = [], []
        for lane in self._lanes:
            # First: what comes in between may hide takings until the next reading, and
            # invents none.
            accepted = lane.ring.next_seq
            waiting = lane.waiting()
            all_waiting.append(waiting)
            taken.append(accepted - waiting)
            used = lane.ring.used_bytes / lane.ring.capacity_bytes
            fullest = max(fullest, used)
            if waiting:
                fill = max(fill, used)
                delay = max(delay, lane.oldest_age(now))
        beyond = 0
        for lane in self._surplus:
            if waiting := lane.waiting():
                beyond += waiting
                delay = max(delay, lane.oldest_age(now))
        spills = self._spills()
        room_short = fullest > SHORT and not spills
        return QueueReading(all_waiting, taken, fill, delay, spills, beyond, room_short)
