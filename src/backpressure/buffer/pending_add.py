"""PendingAdd: one call of add_events or add_lines under way.

`advance` pushes what is admitted now and never waits. How to wait in between is for its
caller, which is a thread in `Intake` and a coroutine in `AsyncBuffer`. An add that may
wait for the sink is held where sink_wait.py says so.
"""

from __future__ import annotations

from typing import Final, Protocol

from backpressure.base.reasons import RejectReason
from backpressure.base.wakeup import Waiter
from backpressure.buffer.admission import Admission
from backpressure.buffer.payload import Payload
from backpressure.buffer.sink_wait import LONGEST, SinkWait
from backpressure.lanes.lane import Lane
from backpressure.policies.control_loop import ControlLoop
from backpressure.policies.flow_control_manager import Grant

__all__ = ["AddPort", "PendingAdd"]

# A refusal is tried again within these bounds (seconds): the time that it named may
# move, or it may have named none.
_SHORTEST_PAUSE: Final = 0.001
_LONGEST_PAUSE: Final = 1.0
# Bytes that a push needs beyond its payload, at most: for a look before a sleep.
_FRAMING: Final = 64


class AddPort(Protocol):
    """What an add needs of its buffer."""

    #: No event is accepted any more.
    closing: bool
    control: ControlLoop

    def arrived(self, lane: Lane, first_seq: int) -> None:
        """Events have come into the lane, the first with that number."""

    def tick_if_due(self) -> bool:
        """Let the policies look at the lanes if it is time; whether it was."""

    def make_room(self, lane: Lane, events: int, nbytes: int) -> bool:
        """Drop about as many of the lane's events, where `when_full` says so; whether
        that made room.
        """

    def ended(self, lane: Lane, accepted: int) -> None:
        """An add is over, and that many of its events are in the lane."""

    def room_waiter(self, pending: PendingAdd) -> Waiter:
        """What to sleep on until `pending.advance` may push something."""


class PendingAdd:
    """One call's events on their way into a lane."""

    __slots__ = (
        "_announced",
        "_held_since",
        "_lane",
        "_payload",
        "_port",
        "_reason",
        "_retry_after",
        "_sink_wait",
    )

    def __init__(
        self, port: AddPort, lane: Lane, payload: Payload, sink_wait: SinkWait | None = None
    ) -> None:
        """sink_wait: where it stops short of what the lane takes; None: nowhere."""
        self._port = port
        self._lane = lane
        self._payload = payload
        self._sink_wait = sink_wait
        # Since when it waits for the sink, by the policies' clock; None: it does not.
        self._held_since: float | None = None
        # How many of the events that are in the port was told of.
        self._announced = 0
        self._reason: RejectReason | None = None
        self._retry_after = 0.0

    @property
    def accepted(self) -> int:
        """How many of its events are in the lane."""
        return self._payload.progress.pushed

    @property
    def priority(self) -> int:
        """Of the lane that it is for."""
        return self._lane.priority

    def advance(self) -> bool:
        """Push what flow control and the lane take now; whether all is in."""
        port, lane, payload = self._port, self._lane, self._payload
        control, progress = port.control, payload.progress
        while progress.remaining:
            if port.closing:
                self._reason, self._retry_after = "closed", 0.0
                return False
            wanted = progress.remaining
            if self._sink_wait is not None:
                wanted = self._most(self._sink_wait)
                if not wanted:
                    self._reason, self._retry_after = "full", 0.0
                    return False
            if payload.is_counted:
                grant = control.admit(wanted, lane.priority)
            elif control.admit_whole(wanted, lane.priority):
                grant = Grant(wanted)
            else:
                payload.count()
                continue
            self._reason, self._retry_after = grant.reason, grant.retry_after
            if not grant.granted:
                # Room for a delay is renewed by ticks: where all consumers are busy,
                # no other call may come by.
                if grant.reason == "delay" and port.tick_if_due():
                    continue
                return False
            try:
                pushed, seq = payload.push(lane.ring, grant.granted)
            except ValueError:
                control.give_back(grant.granted, lane.priority)
                if not port.closing:
                    raise
                continue  # `close` has closed the ring of a directory meanwhile
            if pushed:
                port.arrived(lane, seq)
                self._announced = progress.pushed
            if pushed < grant.granted:
                control.give_back(grant.granted - pushed, lane.priority)
                if not progress.remaining:
                    break
                self._reason, self._retry_after = "full", 0.0
                if not port.make_room(lane, progress.remaining, payload.nbytes):
                    return False
            elif self._reason is not None:
                return False
        return True

    @property
    def held(self) -> bool:
        """Whether it waits for the sink, although the lane has room."""
        return self._held_since is not None

    def _most(self, sink_wait: SinkWait) -> int:
        """How many of the rest may go in now; 0: it is held."""
        payload, since = self._payload, self._held_since
        remaining = payload.progress.remaining
        try:
            most = sink_wait.most(remaining, payload.nbytes)
        except ValueError:
            if not self._port.closing:
                raise
            return remaining  # the ring is closed meanwhile, and the push will say so
        if most:
            self._held_since = None
        elif since is None:
            self._held_since = sink_wait.now()
        elif not 0.0 <= sink_wait.now() - since < LONGEST:
            self.stop_waiting()
            return remaining
        return most

    def stop_waiting(self) -> None:
        """Wait for the sink no longer: the rest goes in as far as there is room."""
        self._sink_wait = self._held_since = None

    def may_advance(self) -> bool:
        """Whether `advance` could push something now: for a look before a sleep."""
        if self._sink_wait is not None and self._held_since is not None:
            return self._most(self._sink_wait) > 0
        if self._reason != "full":
            return False
        ring, payload = self._lane.ring, self._payload
        needed = payload.nbytes // payload.progress.remaining + _FRAMING
        return ring.used_bytes + needed <= ring.capacity_bytes

    def pause(self) -> float:
        """Seconds until time alone could help. A lane with room says so earlier."""
        if self._sink_wait is not None and self._held_since is not None:
            return self._sink_wait.pause(self._held_since)
        if self._reason == "full":
            return _LONGEST_PAUSE
        return min(max(self._retry_after, _SHORTEST_PAUSE), _LONGEST_PAUSE)

    def admission(self) -> Admission:
        """End the add: count what was not accepted, and say what became of it all."""
        lane, progress = self._lane, self._payload.progress
        if not self._payload.is_counted:
            self._payload.count()
        accepted, rejected = progress.pushed, progress.remaining
        if accepted != self._announced:  # a signal's handler has raised in between
            self._port.arrived(lane, lane.ring.next_seq - 1)
        if rejected:
            lane.reject(rejected, self._reason or "rate")
        self._port.ended(lane, accepted)
        return Admission(
            accepted,
            rejected,
            self._reason if rejected else None,
            self._retry_after if rejected else 0.0,
            progress.first_seq if accepted else None,
            progress.consumed,
        )
