"""Payloads: what one call offers to a buffer, checked before any of it is pushed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Protocol

from backpressure.base.errors import EventTooLarge, InvalidEvents
from ringbuf import MessageRing
from ringbuf._core.pinning import pins
from ringbuf._messages.gathered import Gathered, MessageTooLarge
from ringbuf._messages.lines import count_lines

__all__ = ["EventPayload", "LinePayload", "Payload"]


class Payload(Protocol):
    """Events on their way into a lane; the first part of them may already be in."""

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
        """Push up to `limit` of the remaining events; returns how many went in, and
        the number of the first.
        """
        ...


class EventPayload:
    """Events from Python objects, a numpy array or an Arrow array."""

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
            # The caller may have changed the chunk under way: nothing waits for lines
            # that are gone.
            self.remaining = count_lines(self._chunk[self.consumed :], self._final)
        return pushed, first_seq
