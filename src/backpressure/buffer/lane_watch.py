"""LaneWatch: what the lanes show, read for the control loop.

The policies have no thread: each call that passes by lets them look when it is time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from backpressure.lanes.lane import Lane
from backpressure.policies.backpressure_monitor import Pressure
from backpressure.policies.control_loop import ControlLoop, QueueReading

__all__ = ["LaneWatch"]


class LaneWatch:
    """Reads the lanes of one buffer.

    lanes: those that take events, one for each priority.
    surplus: those that only deliver what they hold.
    spills: see `QueueReading`.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        control: ControlLoop,
        spills: Callable[[], bool],
        surplus: Sequence[Lane] = (),
    ) -> None:
        self._lanes = lanes
        self._surplus = surplus
        self._control = control
        self._spills = spills

    def tick(self, now: float) -> Pressure:
        """Feed the policies, and let them judge."""
        return self._control.tick(now, self.read(now))

    def read(self, now: float) -> QueueReading:
        """What the lanes show now."""
        delay = fill = 0.0
        all_waiting, taken = [], []
        for lane in self._lanes:
            # First: what comes in between may hide takings until the next reading, and
            # invents none.
            accepted = lane.ring.next_seq
            waiting = lane.waiting()
            all_waiting.append(waiting)
            taken.append(accepted - waiting)
            if waiting:
                fill = max(fill, lane.ring.used_bytes / lane.ring.capacity_bytes)
                delay = max(delay, lane.oldest_age(now))
        beyond = 0
        for lane in self._surplus:
            if waiting := lane.waiting():
                beyond += waiting
                delay = max(delay, lane.oldest_age(now))
        return QueueReading(all_waiting, taken, fill, delay, self._spills(), beyond)
