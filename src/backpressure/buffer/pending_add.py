"""The producers' side of a buffer: what is offered, and how one offer is carried
through.

A PendingAdd is one call of add_events or add_lines. `advance` pushes what is admitted
now and never waits; how to wait between is its caller's business, which is a thread in
`BufferManager` and a coroutine in `AsyncBuffer`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from backpressure.base.errors import EventTooLarge, InvalidEvents
from backpressure.buffer.admission import Admission
from backpressure.buffer.config import WhenFull
from ringbuf import MessageRing
from ringbuf._core.pinning import pins
from ringbuf._messages.gathered import Gathered, MessageTooLarge
from ringbuf._messages.lines import count_lines

if TYPE_CHECKING:
    from backpressure.buffer_manager import BufferManager
    from backpressure.lanes.lane import Lane

__all__ = ["EventPayload", "LinePayload", "PendingAdd"]

# A refusal is tried again within these bounds (seconds): the time that it named may
# move, or it may have named none.
_SHORTEST_PAUSE: Final = 0.001
_LONGEST_PAUSE: Final = 1.0


class Payload(Protocol):
    """Events that are to be pushed, in some form; the first part of them may already be
    in.
    """

    @property
    def remaining(self) -> int:
        """Events not pushed yet."""
        ...

    @property
    def nbytes(self) -> int:
        """Their size, roughly."""
        ...

    @property
    def consumed(self) -> int:
        """Bytes of the given chunk that have been pushed; 0 where there is no chunk."""
        ...

    def push(self, ring: MessageRing, limit: int) -> tuple[int, int]:
        """Push up to `limit` of the remaining events; returns (pushed, sequence number
        of the first).
        """
        ...


class EventPayload:
    """Events from Python objects, a numpy array or an Arrow array; checked as a whole
    before any is pushed.
    """

    __slots__ = ("_done", "_gathered", "remaining")

    consumed: Final = 0

    def __init__(self, events: Sequence[bytes | str] | Any, largest: int) -> None:
        try:
            self._gathered = Gathered(events, largest)
        except MessageTooLarge as error:
            raise EventTooLarge(error.index, error.nbytes, error.limit) from None
        except (TypeError, ValueError) as error:
            raise InvalidEvents(str(error)) from error
        self._done = 0
        self.remaining = len(self._gathered)

    @property
    def nbytes(self) -> int:
        return self._gathered.nbytes * self.remaining // max(len(self._gathered), 1)

    def push(self, ring: MessageRing, limit: int) -> tuple[int, int]:
        pushed, first_seq = ring.push_gathered(self._gathered, self._done, limit)
        self._done += pushed
        self.remaining -= pushed
        return pushed, first_seq


class LinePayload:
    """The lines of a chunk."""

    __slots__ = ("_chunk", "_final", "_pins", "consumed", "remaining")

    def __init__(self, chunk: Any, final: bool, largest: int) -> None:
        try:
            self._pins = pins(chunk)
            self._chunk = memoryview(chunk).cast("B")
            self.remaining: int = count_lines(self._chunk, final, largest)
        except MessageTooLarge as error:
            raise EventTooLarge(error.index, error.nbytes, error.limit) from None
        except (TypeError, ValueError, BufferError) as error:
            raise InvalidEvents(f"chunk must be a contiguous bytes-like object: {error}") from error
        self._final = final
        self.consumed = 0

    @property
    def nbytes(self) -> int:
        return self._chunk.nbytes - self.consumed

    def push(self, ring: MessageRing, limit: int) -> tuple[int, int]:
        rest = self._chunk[self.consumed :] if self.consumed else self._chunk
        pushed, consumed, first_seq = ring.push_lines_seq(rest, self._final, limit)
        self.consumed += consumed
        self.remaining -= pushed
        if pushed < limit and not self._chunk.readonly:
            # Somebody may have changed it, who should not: nothing waits for lines that
            # are gone.
            self.remaining = count_lines(self._chunk[self.consumed :], self._final)
        return pushed, first_seq


class PendingAdd:
    """One call's events on their way into a lane."""

    __slots__ = (
        "_accepted",
        "_buffer",
        "_first_seq",
        "_lane",
        "_reason",
        "_retry_after",
        "_source",
        "end_seq",
    )

    def __init__(self, buffer: BufferManager, lane: Lane, source: Payload) -> None:
        self._buffer = buffer
        self._lane = lane
        self._source = source
        self._accepted = 0
        self._first_seq: int | None = None
        self._reason: str | None = None
        self._retry_after = 0.0
        #: The number after the last accepted event's; 0 where none was.
        self.end_seq = 0

    @property
    def priority(self) -> int:
        """Of the lane that it is for."""
        return self._lane.priority

    def advance(self) -> bool:
        """Push what flow control and the lane take now; whether all is in."""
        buffer, lane, source = self._buffer, self._lane, self._source
        while source.remaining:
            if buffer._closing:
                self._reason, self._retry_after = "closed", 0.0
                return False
            grant = buffer._flow.admit(source.remaining, lane.priority)
            self._reason, self._retry_after = grant.reason, grant.retry_after
            if not grant.granted:
                # Room for a delay is renewed by ticks: where consumers are busy, nobody
                # else might come by.
                if grant.reason == "delay" and (now := buffer._now()) >= buffer._next_tick:
                    buffer._tick(now)
                    continue
                return False
            pushed, seq = source.push(lane.ring, grant.granted)
            if pushed:
                self._accepted += pushed
                self.end_seq = seq + pushed
                if self._first_seq is None:
                    self._first_seq = seq
                buffer._arrived(lane, seq)
            if pushed < grant.granted:
                buffer._flow.give_back(grant.granted - pushed, lane.priority)
                if not source.remaining:
                    break
                self._reason, self._retry_after = "full", 0.0
                drop = buffer.config.when_full is WhenFull.DROP_OLDEST
                if not (drop and buffer._drop_oldest(lane, source.remaining, source.nbytes)):
                    return False
            elif self._reason is not None:
                return False
        return True

    def deadline(self, seconds: float) -> float:
        """Until when to press on, in `time.monotonic` seconds."""
        wait_for_room = (
            self._reason in ("full", "delay") and self._buffer.config.when_full is WhenFull.BLOCK
        )
        return float("inf") if seconds == 0 and wait_for_room else time.monotonic() + seconds

    def may_advance(self) -> bool:
        """Whether `advance` could push something now: for a look before going to sleep."""
        if self._reason != "full":
            return False
        ring, source = self._lane.ring, self._source
        return ring.used_bytes + source.nbytes // source.remaining + 64 <= ring.capacity_bytes

    def pause(self) -> float:
        """Seconds until time alone could help. A lane that gets room says so earlier."""
        if self._reason == "full":
            return _LONGEST_PAUSE
        return min(max(self._retry_after, _SHORTEST_PAUSE), _LONGEST_PAUSE)

    def admission(self) -> Admission:
        """End the offer: count what was not accepted, and say what became of it all."""
        rejected = self._source.remaining
        if rejected:
            self._lane.reject(rejected, self._reason or "rate")
        self._buffer._offer_ended(self._lane, self._accepted)
        return Admission(
            self._accepted,
            rejected,
            self._reason if rejected else None,
            self._retry_after if rejected else 0.0,
            self._first_seq,
            self._source.consumed,
        )
