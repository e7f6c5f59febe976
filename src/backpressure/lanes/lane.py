"""Lane: the events of one priority, as one line of sequence numbers.

    0 ......... acked ......... read ......... write          acked ≤ read ≤ write

Invariants. Events are delivered in the order of their numbers, redeliveries in their
place before anything newer; what is accepted is acked, dropped and counted, or
resident. A push takes no lock: the ring is lock-free, and its write position is the
count of what was accepted. Everything on the consumers' side is under the lane's lock,
which is held for one copy at most and never across anybody else's code.
"""

from __future__ import annotations

import heapq
import threading
from collections import Counter, deque
from types import MappingProxyType
from typing import Final

from backpressure.base.errors import BatchStateError, BufferClosed
from backpressure.base.histogram import EVENTS, SECONDS, Histogram
from backpressure.base.reasons import DropReason, RejectReason
from backpressure.lanes.stats import DiskStats, LaneStats
from ringbuf import MessageRing, Messages

__all__ = ["TakenMessages", "Handout", "Lane"]

# The time of arrival is noted this often (seconds): a finer reading of an event's age
# helps nobody …
_MARK_INTERVAL: Final = 0.01
# … and at most this many notes are kept: an old backlog is noted more coarsely.
_MAX_MARKS: Final = 1024


class TakenMessages:
    """Messages that have been taken and are still owed, and where they are kept until
    they are settled.

    One for all deliveries of the same events. Changed under the lane's lock.
    """

    __slots__ = ("held", "messages", "moving", "stored")

    def __init__(self, messages: Messages, held: Messages | None, stored: int = 0) -> None:
        self.messages = messages
        #: Those of them that the ring keeps for us; None: it keeps none, as they are on
        #: disk.
        self.held = held
        #: How many of them, from the front, are on disk.
        self.stored = stored
        #: Being written to disk at this moment: nobody may settle it meanwhile.
        self.moving = False

    def split(self, ring: MessageRing, count: int) -> tuple[TakenMessages, TakenMessages]:
        """Two in place of this one, the first for so many messages; what either settles
        the other does not wait for.
        """
        first, rest = self.messages[:count], self.messages[count:]
        if count <= self.stored:
            return TakenMessages(first, None, count), TakenMessages(
                rest, self.held, self.stored - count
            )
        assert self.held is not None
        mine, others = ring.split(self.held, count - self.stored)
        return TakenMessages(first, mine, self.stored), TakenMessages(rest, others)


class Handout:
    """One handing-out of messages, from the moment they are taken until it is settled,
    and until the next one if it is nacked.

    A redelivery is a new Handout: the old one's Batch may still be around, and must not
    speak for the new one.
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
        self.error = error  #: what the last nack said
        self.not_before = 0.0
        #: A redelivery.
        self.again = False
        #: Whether this one, once it has failed, is an attempt.
        self.counted = True
        #: With a consumer, neither acked nor nacked.
        self.out = True

    def __lt__(self, other: Handout) -> bool:
        return self.messages.first_seq < other.messages.first_seq


class Lane:
    """One priority's ring, its deliveries, and its books. In memory; see
    durable_lane.py for the one with a disk tier.
    """

    def __init__(self, priority: int, ring: MessageRing) -> None:
        self.priority = priority
        self.ring = ring
        #: Deliveries whose Batch was lost: appended without the lock, by a finaliser.
        self.abandoned: deque[Handout] = deque()
        self._lock = threading.Lock()
        # One consumer at a time takes, so that batches leave in order.
        self._taking = threading.Lock()
        self._out: set[Handout] = set()
        self._retries: list[Handout] = []  # a heap by first_seq
        self._marks: deque[tuple[int, float]] = (
            deque()
        )  # (sequence number, time at which it had arrived)
        self._mark_interval = _MARK_INTERVAL
        self._closed = False
        # The books, in events. What was accepted is the ring's own count of what was
        # pushed.
        self._rejected: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self._taken = 0  # from the ring
        self._next_seq = ring.next_seq  # the number of the next event that nobody has had yet
        self._acked = 0
        self._in_flight = 0
        self._retrying = 0
        self._redelivered = 0
        self._dead_lettered = 0
        self._batches_acked = 0
        self._batches_nacked = 0
        self._queue_delay = Histogram(SECONDS)
        self._batch_latency = Histogram(SECONDS)
        self._batch_events = Histogram(EVENTS)

    # ------------------------------------------------------------ producers

    def arrived(self, first_seq: int, now: float) -> None:
        """Note that the events from `first_seq` on arrived at `now`."""
        marks = self._marks
        if marks and now - marks[-1][1] < self._mark_interval:
            return
        with self._lock:
            if not marks:
                self._mark_interval = _MARK_INTERVAL
            elif len(marks) >= _MAX_MARKS:
                self._marks = marks = deque(list(marks)[::2])
                self._mark_interval *= 2
            # Of two producers the later number may come first; the line of marks has to
            # ascend in both.
            if not marks or (first_seq > marks[-1][0] and now > marks[-1][1]):
                marks.append((first_seq, now))

    def reject(self, events: int, reason: RejectReason) -> None:
        """Count events that were offered and not accepted."""
        with self._lock:
            self._rejected[reason] += events

    def drop_oldest(self, events: int, nbytes: int, reason: DropReason = "oldest") -> int:
        """Drop about that many of the oldest events that no consumer holds; returns how
        many, 0 where that makes no room.
        """
        with self._taking:
            with self._lock:
                self._collect_abandoned()
                if self._retries and self._retries[0].messages.first_seq < self._oldest_out():
                    handout = heapq.heappop(self._retries)
                    self._retrying -= len(handout.messages)
                    self._drop(handout.taken, reason)
                    return len(handout.messages)
                if self._out:
                    # What a consumer holds is older than all that waits, and room is
                    # made from the oldest on.
                    return 0
            taken = self._fetch(max(events, 1), max(nbytes, 1))
            if taken is None:
                return 0
            with self._lock:
                self._count_taken(taken)
                self._drop(taken, reason)
            return len(taken.messages)

    # ------------------------------------------------------------ consumers

    def ready(self, now: float) -> bool:
        """Whether `next_handout` would have something."""
        if self.abandoned:
            return True
        retry_at = self.retry_at() if self._retries else None
        return retry_at <= now if retry_at is not None else self._has_waiting()

    def retry_at(self) -> float | None:
        """When the pause of the nacked batch at the front ends, or None."""
        # Without the lock: an iterator of a list bears its changing.
        front = next(iter(self._retries), None)
        return None if front is None else front.not_before

    def next_handout(self, max_events: int, max_bytes: int, now: float) -> Handout | None:
        """The oldest events that are owed to a consumer: a nacked batch as it was, else
        what waits.
        """
        with self._taking:
            with self._lock:
                self._collect_abandoned()
                if self._closed:
                    return None
                if self._retries:
                    return self._redeliver(now)
                waited = self._oldest_age(now)
            taken = self._fetch(max_events, max_bytes)
            if taken is None:
                return None
            handout = Handout(self, taken)
            with self._lock:
                self._count_taken(taken)
                self._queue_delay.record(waited)
                self._in_flight += len(taken.messages)
                self._out.add(handout)
            return handout

    def ack(self, handout: Handout, latency: float) -> None:
        events = len(handout.messages)
        while True:
            with self._lock:
                if not handout.taken.moving:
                    self._take_back(handout)
                    self._acked += events
                    self._batches_acked += 1
                    self._batch_latency.record(latency)
                    self._batch_events.record(events)
                    self._settle(handout.taken)
                    return
            # An ack that returned while its events were on their way to disk could be
            # forgotten by a crash.
            with self._taking:
                pass

    def nack(self, handout: Handout, not_before: float) -> int:
        """Owe the batch again, not before that time. Returns how many of its events
        were given up.
        """
        with self._lock:
            self._take_back(handout)
            self._batches_nacked += 1
            self._owe(handout, not_before)
        return 0

    def put_back(self, handout: Handout, not_before: float) -> None:
        """Owe the batch again, as if it had never been out: what ended this attempt
        says nothing about the batch.
        """
        with self._lock:
            self._take_back(handout)
            self._batches_nacked += 1
            handout.counted = False
            self._owe(handout, not_before)

    def discard(self, reason: DropReason) -> int:
        """Give up everything, also what is with consumers; from now on nothing is
        delivered. Returns how many events.
        """
        with self._taking:
            with self._lock:
                self._closed = True
                lost = self._in_flight + self._retrying
                for handout in (*self._out, *self._retries):
                    handout.out = False
                    self._drop(handout.taken, reason)
                self._out.clear()
                self._retries.clear()
                self._in_flight = self._retrying = 0
            while (taken := self._fetch(1 << 30, 1 << 20)) is not None:
                with self._lock:
                    self._count_taken(taken)
                    self._drop(taken, reason)
                lost += len(taken.messages)
        return lost

    # ------------------------------------------------------------ what there is

    @property
    def resident(self) -> int:
        """Events accepted and neither acked, dropped nor dead."""
        with self._lock:
            return self._waiting(self.ring.next_seq) + self._in_flight + self._retrying

    def waiting(self) -> int:
        """Events that were never delivered."""
        with self._lock:
            return self._waiting(self.ring.next_seq)

    def oldest_age(self, now: float) -> float:
        """Seconds that the oldest waiting event has waited, to the interval of the
        marks; 0.0 where none waits.
        """
        with self._lock:
            return self._oldest_age(now)

    def stats(self, now: float) -> LaneStats:
        with self._lock:
            self._collect_abandoned()
            next_seq = self.ring.next_seq  # once: producers do not stand still while we look
            accepted, waiting = self._accepted(next_seq), self._waiting(next_seq)
            return LaneStats(
                priority=self.priority,
                offered=accepted + self._rejected.total(),
                accepted=accepted,
                rejected=MappingProxyType(dict(self._rejected)),
                acked=self._acked,
                dead_lettered=self._dead_lettered,
                dropped=MappingProxyType(dict(self._dropped)),
                resident=waiting + self._in_flight + self._retrying,
                waiting=waiting,
                in_flight=self._in_flight,
                retrying=self._retrying,
                redelivered=self._redelivered,
                batches_acked=self._batches_acked,
                batches_nacked=self._batches_nacked,
                used_bytes=self.ring.used_bytes,
                capacity_bytes=self.ring.capacity_bytes,
                oldest_age=self._oldest_age(now),
                queue_delay=self._queue_delay.stats(),
                batch_latency=self._batch_latency.stats(),
                batch_events=self._batch_events.stats(),
                disk=self._disk_stats(),
            )

    # ------------------------------------------------------------ what another kind of lane does otherwise

    def _fetch(self, max_events: int, max_bytes: int) -> TakenMessages | None:
        """The oldest events that nobody has had yet; under `_taking`, and to be counted
        by `_count_taken`.
        """
        messages = self.ring.take(max_events, max_bytes)
        return TakenMessages(messages, messages) if len(messages) else None

    def _has_waiting(self) -> bool:
        # Without a lock.
        return len(self.ring) > 0

    def _count_taken(self, taken: TakenMessages) -> None:
        """Under the lock, as all that follows."""
        self._taken += len(taken.messages)
        self._next_seq = taken.messages.first_seq + len(taken.messages)

    def _settle(self, taken: TakenMessages) -> None:
        """Nothing of it is owed any more."""
        if taken.held is not None:
            self.ring.release(taken.held)

    def _waiting(self, next_seq: int) -> int:
        """Events that nobody has had, of those below `next_seq`."""
        return next_seq - self._taken

    def _accepted(self, next_seq: int) -> int:
        return next_seq

    def _disk_stats(self) -> DiskStats | None:
        return None

    # ------------------------------------------------------------ under the lock

    def _redeliver(self, now: float) -> Handout | None:
        """The nacked batch at the front, or None while it pauses: nothing newer may
        overtake it.
        """
        if self._retries[0].not_before > now:
            return None
        before = heapq.heappop(self._retries)
        attempt = before.attempt + 1 if before.counted else before.attempt
        handout = Handout(self, before.taken, attempt, before.error)
        handout.again = True
        count = len(handout.messages)
        self._retrying -= count
        self._redelivered += count
        self._in_flight += count
        self._out.add(handout)
        return handout

    def _drop(self, taken: TakenMessages, reason: DropReason) -> None:
        self._dropped[reason] += len(taken.messages)
        self._settle(taken)

    def _oldest_age(self, now: float) -> float:
        marks = self._marks
        while len(marks) > 1 and marks[1][0] <= self._next_seq:
            marks.popleft()
        if not marks or self._waiting(self.ring.next_seq) == 0:
            marks.clear()
            return 0.0
        return max(0.0, now - marks[0][1])

    def _oldest_out(self) -> float:
        return min((handout.messages.first_seq for handout in self._out), default=float("inf"))

    def _take_back(self, handout: Handout) -> None:
        if not handout.out:
            if self._closed:
                raise BufferClosed("the buffer was closed and has counted this batch as lost")
            raise BatchStateError("this batch was acked or nacked before")
        handout.out = False
        self._out.discard(handout)
        self._in_flight -= len(handout.messages)

    def _owe(self, handout: Handout, not_before: float) -> None:
        handout.not_before = not_before
        self._retrying += len(handout.messages)
        heapq.heappush(self._retries, handout)

    def _collect_abandoned(self) -> None:
        while self.abandoned:
            handout = self.abandoned.popleft()
            if handout.out:
                self._take_back(handout)
                self._batches_nacked += 1
                self._owe(handout, 0.0)
