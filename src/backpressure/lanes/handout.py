"""Handout and TakenMessages: events on their way through a consumer.

Messages are taken from a lane once, and handed out once or more: each nack leads to
another Handout of the same TakenMessages. Both are changed under the lane's lock only.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Protocol

import numpy as np

from backpressure.lanes.attempts import Attempts
from ringbuf import MessageRing, Messages

if TYPE_CHECKING:
    import numpy.typing as npt

    from backpressure.lanes.lane import Lane

__all__ = ["Handout", "Holder", "TakenMessages"]


class TakenMessages:
    """Messages that were taken and are still owed, and where they are kept."""

    __slots__ = ("held", "messages", "stored", "written")

    def __init__(
        self,
        messages: Messages,
        held: list[Messages],
        stored: int = 0,
        written: Sequence[tuple[int, int]] = (),
    ) -> None:
        self.messages = messages
        #: Those of them whose room in the ring is still taken, in pieces; none: all are
        #: on disk.
        self.held = held
        #: How many of them, from the front, are on disk.
        self.stored = stored
        #: What was read from disk, block by block: the number after its last event, and
        #: the time in ns since 1970 by which all had arrived; 0: not known.
        self.written = written

    def cut(self, ring: MessageRing, stops: Sequence[int]) -> list[TakenMessages]:
        """Some in place of this one: those up to each of these counts, which ascend,
        and the rest. Each is settled without the others.
        """
        # An error may come in between, so this one still has all that is split. The
        # last first: what is split next is at the front.
        before = len(self.messages) - sum(map(len, self.held))
        for stop in reversed(stops):
            self.pieces_of(ring, stop - before)
        cut = []
        start = index = 0
        for stop in (*stops, len(self.messages)):
            first, in_ring = index, stop - max(start, before)
            while in_ring > 0:
                in_ring -= len(self.held[index])
                index += 1
            stored = min(stop, self.stored) - min(start, self.stored)
            held = self.held[first:index]
            cut.append(TakenMessages(self.messages[start:stop], held, stored, self.written))
            start = stop
        return cut

    def pieces_of(self, ring: MessageRing, count: int) -> int:
        """How many pieces the first `count` messages in the ring are, which are split
        from the others.
        """
        held = self.held
        for index, piece in enumerate(held):
            if count <= 0:
                return index
            if count < len(piece):
                # In a single statement, and without Python's calls: where a signal's
                # handler raises, the pieces are still known.
                held[index : index + 1] = chain.from_iterable(map(ring.split, (piece,), (count,)))
                return index + 1
            count -= len(piece)
        return len(held)


class Holder(Protocol):
    """Who has a delivery: its end, before the events are settled, abandons them."""

    _handout: Handout


class Handout:
    """One delivery of messages, to a consumer and back.

    It begins when a consumer gets them. A nack keeps it until they are delivered again,
    by a new Handout: a Batch of the old one, which may still exist, cannot settle the
    new one.

    parts: the messages, in order; more than one where they do not follow each other,
        since those between were settled.
    """

    __slots__ = (
        *("again", "attempt", "attempts", "comparison", "counted", "error", "lane"),
        *("messages", "not_before", "out", "parts", "settling"),
    )

    def __init__(
        self,
        lane: Lane,
        parts: tuple[TakenMessages, ...],
        attempt: int = 1,
        error: str | None = None,
        attempts: Attempts | None = None,
    ) -> None:
        self.lane = lane
        self.parts = parts
        self.messages = parts[0].messages if len(parts) == 1 else _joined(parts)
        self.attempt = attempt
        self.error = error  #: of the last nack
        self.attempts = Attempts() if attempts is None else attempts
        self.not_before = 0.0  #: when it may be delivered again, after a nack
        #: A redelivery.
        self.again = False
        #: It went out of its turn, to be compared with what failed before it.
        self.comparison = False
        #: Whether this one, once it has failed, is an attempt.
        self.counted = True
        #: With a consumer, neither acked nor nacked.
        self.out = True
        #: A consumer is settling it, and writes dead letters first.
        self.settling = False

    def keep(self, parts: tuple[TakenMessages, ...]) -> None:
        """Have these messages from now on."""
        self.parts = parts
        self.messages = parts[0].messages if len(parts) == 1 else _joined(parts)

    def __lt__(self, other: Handout) -> bool:
        return self.messages.first_seq < other.messages.first_seq

    @property
    def follows_itself(self) -> bool:
        """Whether its messages follow each other."""
        first, last = self.parts[0].messages, self.parts[-1].messages
        return last.first_seq + len(last) - first.first_seq == len(self.messages)

    def seqs(self) -> npt.NDArray[np.uint64]:
        """Each message's number."""
        return np.concatenate(
            [
                np.arange(len(part.messages), dtype=np.uint64) + np.uint64(part.messages.first_seq)
                for part in self.parts
            ]
        )

    def cut(self, ring: MessageRing, stops: Sequence[int]) -> list[list[TakenMessages]]:
        """Its parts in stretches of messages, each up to one of these indices.

        They ascend, and the last is the number of messages. Each part of the result is
        settled without the others.
        """
        stretches: list[list[TakenMessages]] = [[] for _ in stops]
        number = start = 0
        for part in self.parts:
            end = start + len(part.messages)
            first = number
            while stops[number] < end:
                number += 1
            pieces = [part]
            if number > first:
                pieces = part.cut(ring, [stop - start for stop in stops[first:number]])
            for stretch, piece in zip(stretches[first : number + 1], pieces, strict=True):
                stretch.append(piece)
            if stops[number] == end:
                number += 1
            start = end
        return stretches


def _joined(parts: Sequence[TakenMessages]) -> Messages:
    """A copy of messages that do not follow each other, as one."""
    offsets = [np.zeros(1, np.int64)]
    end = 0
    for part in parts:
        own = part.messages.offsets
        offsets.append(own[1:] - own[0] + end)
        end = int(offsets[-1][-1])
    data = np.concatenate(
        [
            part.messages.data[int(part.messages.offsets[0]) : int(part.messages.offsets[-1])]
            for part in parts
        ]
    )
    return Messages.from_columns(data, np.concatenate(offsets), parts[0].messages.first_seq)
