"""One event a call, for hot paths that have no batch.

    buffer.add_event, producer.add ──> Entrance ──> ring
                                          │
             add_events <── whatever is not plain success

`add_events` is made for many: of one event, most of the time goes into the call itself.
Here the common case is one call of compiled code: see `ringbuf/_messages/prepaid.pyx`.
Flow control admits some hundreds of events ahead, and what has to be decided or counted
goes through `add_events`, which does both.

The quick way is for the operating system's clock: another one, which a test or a
simulation moves, is asked at each event. Nor is it for `Durability.COMMIT`, of which
each add waits for the disk.

Thread safety: any number of threads, with the GIL or without it. Without it each thread
is faster with a Producer of its own.
"""

from __future__ import annotations

from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Final, Literal

from backpressure.base.errors import BufferClosed
from backpressure.base.priority import check_priority
from backpressure.base.validation import NotGiven, timeout_seconds
from ringbuf._messages.prepaid import Entrance

if TYPE_CHECKING:
    from backpressure.buffer.admission import Admission
    from backpressure.buffer.intake import Intake
    from backpressure.buffer_manager import BufferManager

__all__ = ["Producer", "SingleEventWriter", "open_entrance"]

# An arrival is noted, and the policies look, that often (seconds). With the kernel's
# tick of a coarse clock on top of it an event's age is right to 10 ms.
_PACE: Final = 0.004


class Producer(Entrance):
    """The way of single events of one priority into a buffer; `BufferManager.producer`
    makes it.

    What flow control has admitted ahead for it goes back when it is closed, which the
    end of a `with` does, or dropped. It keeps its buffer alive.

    >>> from backpressure import BufferManager
    >>> with BufferManager() as buffer, buffer.producer(priority=2) as producer:
    ...     accepted = producer.add(b"one")
    ...     with buffer.get_batch() as batch:
    ...         print(accepted, batch.priority, batch.tolist())
    True 2 [b'one']
    """

    def __init__(self, buffer: BufferManager, priority: int) -> None:
        #: Of the events that it adds.
        self.priority: Final = priority
        #: What became of the last event that was refused; None: none was.
        self.refusal: Admission | None = None
        self._buffer: Final = buffer
        self._closed = False
        self._recall = open_entrance(self, buffer._intake, priority)

    def _add_slowly(self, event: bytes | str, timeout: float | NotGiven | None) -> bool:
        if self._closed:
            raise ValueError("the producer is closed: buffer.producer() makes another one")
        admission = self._buffer.add_events([event], self.priority, timeout=timeout)
        if admission.rejected:
            self.refusal = admission
        return not admission.rejected

    @property
    def closed(self) -> bool:
        """Whether `close` was called: then `add` raises ValueError."""
        return self._closed

    def close(self) -> None:
        """Add nothing more, and give back what was admitted ahead."""
        self._closed = True
        self._close()
        self._recall()

    def __enter__(self) -> Producer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> Literal[False]:
        self.close()
        return False


def open_entrance(entrance: Entrance, intake: Intake, priority: int) -> partial[None]:
    """Open the quick way into a lane, where there is one; returns what takes back all
    that was admitted ahead.
    """
    flow = intake.control.flow
    prepayment = flow.prepayment(entrance, priority)
    if intake.quick:
        lane = intake.lanes[priority - 1]
        entrance._open(
            lane.ring,
            intake.gate,
            prepayment.purse,
            partial(flow.prepay, prepayment),
            partial(intake.arrived_alone, lane),
            intake.ready.waiting,
            intake.hold.wakeup.waiting,
            0.0 if lane.ages else _PACE,
        )
    return partial(flow.recall, prepayment)


class SingleEventWriter:
    """Adds single events to `buffer` and says why one is refused; `timeout` as for
    `add_events`.
    """

    def __init__(self, buffer: BufferManager, timeout: float | None = 0.0) -> None:
        timeout_seconds(timeout)
        self._buffer: Final = buffer
        self._timeout: Final = timeout
        self._levels: Final = buffer.config.flow_control.priority_levels
        #: Add one event, if that takes no decision; False: nothing has changed.
        self.try_add: Final = buffer._try_add

    def add(self, event: bytes | str, priority: int) -> str | None:
        """Add one event. None: it is in; else the reason why not, as in Admission.
        Raises InvalidEvents as `add_events` does.
        """
        if priority is not None and self.try_add(event, priority):
            return None
        check_priority(priority, self._levels)  # None is none here
        try:
            return self._buffer.add_events([event], priority, timeout=self._timeout).reason
        except BufferClosed:
            return "closed"
