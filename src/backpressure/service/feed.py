"""Feed: a source's lines into the buffer, each with its priority."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from backpressure.base.errors import BufferClosed
from backpressure.buffer.config import Durability
from backpressure.buffer_manager import BufferManager
from backpressure.sources.base import Marks
from backpressure.sources.priority_rules import PriorityRules, parse_rule
from ringbuf._messages.lines import count_lines

__all__ = ["Feed", "marks_of", "put_part", "settled_by"]


class Feed:
    """Puts a source's lines into the buffer, waiting while there is no room.

    wait_for_sink: whether it waits for a sink that takes rather than have lines go to
        disk and come back.

    Thread safety: any number of threads.
    """

    def __init__(
        self,
        buffer: BufferManager,
        priority: int,
        rules: Sequence[str],
        *,
        wait_for_sink: bool = False,
    ) -> None:
        self._buffer = buffer
        self._priority = priority
        self._wait_for_sink = wait_for_sink
        self._rules = (
            PriorityRules([parse_rule(rule) for rule in rules], default=priority) if rules else None
        )
        #: Lines that were read and not accepted, because the buffer was closed first.
        #: Followed files still have them.
        self.unaccepted = 0

    def put(self, lines: memoryview) -> Marks | None:
        """As `backpressure.sources.base.Put`."""
        buffer = self._buffer
        parts: Sequence[tuple[int, memoryview | list[bytes]]]
        parts = [(self._priority, lines)] if self._rules is None else self._rules.split(lines)
        unaccepted = 0
        for priority, part in parts:
            unaccepted += put_part(buffer, part, priority, wait_for_sink=self._wait_for_sink)
        if unaccepted:
            self.unaccepted += unaccepted
            return None
        return marks_of(buffer, {priority for priority, _ in parts})


def marks_of(buffer: BufferManager, used: Collection[int]) -> Marks:
    """How far lines of these priorities, put just now, have to be settled before a
    source may forget them.

    0: not at all, since the buffer keeps what it has accepted. With the durability
    `interval` it does so a moment later, for a loss of power.
    """
    config = buffer.config
    if not used or (config.directory is not None and config.durability is not Durability.INTERVAL):
        return (0,) * config.flow_control.priority_levels
    # Other threads may have put more meanwhile: a mark may be later than need be, and
    # is never too early.
    return tuple(
        position if priority in used else 0
        for priority, position in enumerate(buffer.positions(), start=1)
    )


def settled_by(buffer: BufferManager) -> list[int]:
    """For each priority, the number below which `marks_of` need not wait any more."""
    by_disk = buffer.config.directory is not None
    lanes = buffer.stats().lanes
    # Lanes beyond these take no lines, so no mark names them.
    return [
        lane.disk.durable_seq
        if by_disk and lane.disk is not None
        else lane.acked + lane.dead_lettered + sum(lane.dropped.values())
        for lane in (lanes[one] for one in range(1, buffer.config.flow_control.priority_levels + 1))
    ]


def put_part(
    buffer: BufferManager,
    part: memoryview | list[bytes],
    priority: int,
    *,
    timeout: float | None = None,
    wait_for_sink: bool = False,
) -> int:
    """Put lines of one priority, waiting for room.

    timeout: 0.0 waits for nothing; what the buffer refuses is in its statistics.
    Returns how many were not accepted, because the buffer was closed.
    """
    try:
        while len(part):
            if isinstance(part, list):
                admission = buffer.add_events(part, priority, timeout, wait_for_sink=wait_for_sink)
                part = part[admission.accepted :]
            else:
                admission = buffer.add_lines(part, priority, timeout, wait_for_sink=wait_for_sink)
                part = part[admission.consumed :]
            if admission.reason == "closed":
                break
            if timeout is not None and admission.rejected:
                return 0
    except BufferClosed:
        pass
    return len(part) if isinstance(part, list) else count_lines(part)
