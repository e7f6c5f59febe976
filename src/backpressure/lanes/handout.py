"""Handout and TakenMessages: events on their way through a consumer.

Messages are taken from a lane once, and handed out once or more: each nack leads to
another Handout of the same TakenMessages. Both are changed under the lane's lock only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ringbuf import MessageRing, Messages

if TYPE_CHECKING:
    from backpressure.lanes.lane import Lane

__all__ = ["Handout", "TakenMessages"]


class TakenMessages:
    """Messages that were taken and are still owed, and where they are kept."""

    __slots__ = ("held", "messages", "moving", "stored")

    def __init__(self, messages: Messages, held: Messages | None, stored: int = 0) -> None:
        self.messages = messages
        #: Those of them whose room in the ring is still taken; None: all are on disk.
        self.held = held
        #: How many of them, from the front, are on disk.
        self.stored = stored
        #: Being written to disk at this moment: they must not be settled meanwhile.
        self.moving = False

    def split(self, ring: MessageRing, count: int) -> tuple[TakenMessages, TakenMessages]:
        """Two in place of this one, the first of `count` messages.

        Each is settled without the other.
        """
        first, rest = self.messages[:count], self.messages[count:]
        if count <= self.stored:
            on_disk = TakenMessages(first, None, count)
            return on_disk, TakenMessages(rest, self.held, self.stored - count)
        assert self.held is not None
        mine, others = ring.split(self.held, count - self.stored)
        return TakenMessages(first, mine, self.stored), TakenMessages(rest, others)


class Handout:
    """One delivery of messages, to a consumer and back.

    It begins when a consumer gets them. A nack keeps it until they are delivered again,
    by a new Handout: a Batch of the old one, which may still exist, cannot settle the
    new one.
    """

    __slots__ = (
        *("again", "attempt", "counted", "error", "lane", "messages", "not_before", "out"),
        "taken",
    )

    def __init__(
        self, lane: Lane, taken: TakenMessages, attempt: int = 1, error: str | None = None
    ) -> None:
        self.lane = lane
        self.taken = taken
        self.messages = taken.messages
        self.attempt = attempt
        self.error = error  #: of the last nack
        self.not_before = 0.0  #: when it may be delivered again, after a nack
        #: A redelivery.
        self.again = False
        #: Whether this one, once it has failed, is an attempt.
        self.counted = True
        #: With a consumer, neither acked nor nacked.
        self.out = True

    def __lt__(self, other: Handout) -> bool:
        return self.messages.first_seq < other.messages.first_seq
