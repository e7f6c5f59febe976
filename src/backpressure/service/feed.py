"""Feed: a source's lines into the buffer, each with its priority."""

from __future__ import annotations

from collections.abc import Sequence

from backpressure.base.errors import BufferClosed
from backpressure.buffer_manager import BufferManager
from backpressure.sources.base import Marks
from backpressure.sources.priority_rules import PriorityRules, parse_rule
from ringbuf._messages.lines import count_lines

__all__ = ["Feed"]


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
        self._durable = buffer.config.directory is not None
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
            unaccepted += self._put_part(part, priority)
        if unaccepted:
            self.unaccepted += unaccepted
            return None
        if self._durable:
            return (0,) * buffer.config.flow_control.priority_levels
        used = {priority for priority, _ in parts}
        # Other threads may have put more meanwhile: a mark may be later than need be,
        # and is never too early.
        return tuple(
            position if priority in used else 0
            for priority, position in enumerate(buffer.positions(), start=1)
        )

    def _put_part(self, part: memoryview | list[bytes], priority: int) -> int:
        """Put lines of one priority, waiting for room.

        Returns how many were not accepted, because the buffer was closed.
        """
        buffer, waits = self._buffer, self._wait_for_sink
        try:
            while len(part):
                if isinstance(part, list):
                    admission = buffer.add_events(part, priority, None, wait_for_sink=waits)
                    part = part[admission.accepted :]
                else:
                    admission = buffer.add_lines(part, priority, None, wait_for_sink=waits)
                    part = part[admission.consumed :]
                if admission.reason == "closed":
                    break
        except BufferClosed:
            pass
        return len(part) if isinstance(part, list) else count_lines(part)
