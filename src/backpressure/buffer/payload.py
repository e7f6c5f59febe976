"""Payloads: what one call offers to a buffer, checked before any of it is pushed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Protocol

from backpressure.base.errors import EventTooLarge, InvalidEvents
from ringbuf import MessageRing
from ringbuf._core.pinning import pins
from ringbuf._messages.gathered import Gathered, MessageTooLarge, PushProgress
from ringbuf._messages.lines import count_lines, expect_lines

__all__ = ["EventPayload", "LinePayload", "Payload"]


class Payload(Protocol):
    """Events on their way into a lane; the first part of them may already be in."""

    @property
    def progress(self) -> PushProgress:
        """What is in and what is not, whatever interrupts a push."""
        ...

    @property
    def is_counted(self) -> bool:
        """Whether `progress.remaining` is certain: if not, it is a guess, which is
        above 0 as long as there may be events.
        """
        ...

    @property
    def nbytes(self) -> int:
        """Their size, roughly."""
        ...

    def count(self) -> None:
        """Make `progress.remaining` certain."""

    def push(self, ring: MessageRing, limit: int) -> tuple[int, int]:
        """Push up to `limit` of the remaining events; returns how many went in, and
        the number of the first.
        """
        ...


class EventPayload:
    """Events from Python objects, a numpy array or an Arrow column."""

    __slots__ = ("_gathered", "progress")

    is_counted = True

    def __init__(self, events: Sequence[bytes | str] | Any, largest: int) -> None:
        try:
            self._gathered = Gathered(events, largest)
        except MessageTooLarge as error:
            raise EventTooLarge(error.index, error.nbytes, error.limit) from None
        except (TypeError, ValueError) as error:
            raise InvalidEvents(str(error)) from error
        self.progress: Final = PushProgress(len(self._gathered))

    @property
    def nbytes(self) -> int:
        return self._gathered.nbytes * self.progress.remaining // max(len(self._gathered), 1)

    def count(self) -> None:
        pass

    def push(self, ring: MessageRing, limit: int) -> tuple[int, int]:
        progress = self.progress
        return ring.push_gathered(self._gathered, progress.pushed, limit, progress)


class LinePayload:
    """The lines of a chunk.

    Those of a large chunk are not counted before they are pushed: a guess serves to
    have them admitted, and most chunks are in by one push of that many.
    """

    __slots__ = ("_chunk", "_final", "_pins", "is_counted", "progress")

    def __init__(self, chunk: Any, final: bool, largest: int) -> None:
        try:
            self._pins = pins(chunk)
            self._chunk = memoryview(chunk).cast("B")
            lines, self.is_counted = expect_lines(self._chunk, final, largest)
        except MessageTooLarge as error:
            raise EventTooLarge(error.index, error.nbytes, error.limit) from None
        except (TypeError, ValueError, BufferError) as error:
            raise InvalidEvents(f"chunk must be a contiguous bytes-like object: {error}") from error
        self._final = final
        self.progress: Final = PushProgress(lines)

    @property
    def nbytes(self) -> int:
        return self._chunk.nbytes - self.progress.consumed

    def count(self) -> None:
        progress = self.progress
        rest = self._chunk[progress.consumed :]
        # In this order, so that it is done again where a signal's handler raises.
        progress.remaining = count_lines(rest, self._final) if rest else 0
        self.is_counted = True

    def push(self, ring: MessageRing, limit: int) -> tuple[int, int]:
        progress = self.progress
        rest = self._chunk[progress.consumed :] if progress.consumed else self._chunk
        pushed, _, first_seq = ring.push_lines_seq(rest, self._final, limit, progress)
        if not self.is_counted or (pushed < limit and not self._chunk.readonly):
            # The caller may have changed the chunk under way: nothing waits for lines
            # that are gone.
            self.count()
        return pushed, first_seq
