"""Lane: the events of one priority, as one line of sequence numbers.

    0 ......... acked ......... read ......... write          acked ≤ read ≤ write

Invariants

 1. Events are delivered in the order of their numbers, and a nacked batch again before
    anything newer.
 2. What is accepted is acked, dead-lettered, dropped and counted, or resident.
 3. A push takes no lock: the ring is lock-free, and its write position is the count of
    what was accepted.
 4. Everything on the consumers' side is under the lane's lock, which is never held
    while the application's code runs.
"""

from __future__ import annotations

import heapq
import threading
from collections import Counter, deque
from typing import Final

from backpressure.base.errors import BatchStateError, BufferClosed
from backpressure.base.frozen_dict import FrozenDict
from backpressure.base.histogram import EVENTS, SECONDS, Histogram
from backpressure.base.reasons import DropReason, RejectReason
from backpressure.lanes.handout import Handout, TakenMessages
from backpressure.lanes.stats import DiskStats, LaneStats
from ringbuf import MessageRing

__all__ = ["Lane"]

# The time of arrival is noted this often (seconds): no decision needs an event's age
# more finely …
_MARK_INTERVAL: Final = 0.01
# … and at most this many notes are kept: for more waiting events they lie further
# apart.
_MAX_MARKS: Final = 1024


class Lane:
    """One priority's ring, its deliveries, and its counts.

    In memory; see durable_lane.py for the one with a disk tier.
    """

    def __init__(self, priority: int, ring: MessageRing) -> None:
        self.priority = priority
        self.ring = ring
        #: Handouts whose Batch was garbage-collected unsettled: appended without the
        #: lock, by a finaliser.
        self.abandoned: deque[Handout] = deque()
        self._lock = threading.Lock()
        # One consumer at a time takes, so that batches leave in order.
        self._taking = threading.Lock()
        self._out: set[Handout] = set()
        self._retries: list[Handout] = []  # a heap by first_seq
        # (sequence number, time at which it had arrived)
        self._marks: deque[tuple[int, float]] = deque()
        self._mark_interval = _MARK_INTERVAL
        self._closed = False
        # Counts of events. What was accepted is the ring's own count of what was
        # pushed.
        self._rejected: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self._taken = 0  # from the ring
        self._next_seq = ring.next_seq  # of the next event that was never delivered
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
            # Two producers may come here in the other order than they pushed; marks
            # ascend in both number and time.
            if not marks or (first_seq > marks[-1][0] and now > marks[-1][1]):
                marks.append((first_seq, now))

    def reject(self, events: int, reason: RejectReason) -> None:
        """Count events that were offered and not accepted."""
        with self._lock:
            self._rejected[reason] += events

    def drop_oldest(self, events: int, nbytes: int, reason: DropReason = "oldest") -> int:
        """Drop about that many of the oldest events that no consumer holds.

        Returns how many were dropped, 0 where that makes no room.
        """
        with self._taking:
            with self._lock:
                self._collect_abandoned()
                if self._retries and self._retries[0].messages.first_seq < self._oldest_seq_out():
                    handout = heapq.heappop(self._retries)
                    self._retrying -= len(handout.messages)
                    self._drop_messages(handout.taken, reason)
                    return len(handout.messages)
                if self._out:
                    # What a consumer holds is older than all that waits, and room is
                    # made from the oldest on.
                    return 0
            taken = self._fetch_oldest(max(events, 1), max(nbytes, 1))
            if taken is None:
                return 0
            with self._lock:
                self._count_taken(taken)
                self._drop_messages(taken, reason)
            return len(taken.messages)

    # ------------------------------------------------------------ consumers

    def ready(self, now: float) -> bool:
        """Whether `next_handout` is worth calling.

        It may find nothing, but what waits is never overlooked.
        """
        if self.abandoned:
            return True
        retry_at = self.retry_at() if self._retries else None
        return retry_at <= now if retry_at is not None else self._has_waiting()

    def retry_at(self) -> float | None:
        """When the pause of the nacked batch at the front ends, or None."""
        # Without the lock: a list may change while it is iterated.
        front = next(iter(self._retries), None)
        return None if front is None else front.not_before

    def next_handout(self, max_events: int, max_bytes: int, now: float) -> Handout | None:
        """The oldest events that are owed and with no consumer.

        A nacked batch as it was, else what waits. None: there are none, or a nacked
        batch still pauses.
        """
        with self._taking:
            with self._lock:
                self._collect_abandoned()
                if self._closed:
                    return None
                if self._retries:
                    return self._hand_out_again(now)
                waited = self._oldest_age(now)
            taken = self._fetch_oldest(max_events, max_bytes)
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
        """The events were processed, `latency` seconds after the handout.

        Raises BatchStateError, BufferClosed.
        """
        events = len(handout.messages)
        while True:
            with self._lock:
                if not handout.taken.moving:
                    self._end_delivery(handout)
                    self._acked += events
                    self._batches_acked += 1
                    self._batch_latency.record(latency)
                    self._batch_events.record(events)
                    self._settle_messages(handout.taken)
                    return
            # An ack that returned while its events were on their way to disk could be
            # forgotten by a crash.
            with self._taking:
                pass

    def nack(self, handout: Handout, not_before: float) -> int:
        """Owe the batch again, not before that time.

        Returns how many of its events were given up instead. Raises BatchStateError,
        BufferClosed.
        """
        with self._lock:
            self._end_delivery(handout)
            self._batches_nacked += 1
            self._owe_again(handout, not_before)
        return 0

    def put_back(self, handout: Handout, not_before: float) -> None:
        """Owe the batch again, as if it had never been out.

        What ended this attempt says nothing about the batch.
        """
        with self._lock:
            self._end_delivery(handout)
            self._batches_nacked += 1
            handout.counted = False
            self._owe_again(handout, not_before)

    def discard(self, reason: DropReason) -> int:
        """Drop everything and deliver nothing from now on.

        Also what is with consumers. Returns how many events.
        """
        with self._taking:
            with self._lock:
                self._closed = True
                lost = self._in_flight + self._retrying
                for handout in (*self._out, *self._retries):
                    handout.out = False
                    self._drop_messages(handout.taken, reason)
                self._out.clear()
                self._retries.clear()
                self._in_flight = self._retrying = 0
            while (taken := self._fetch_oldest(1 << 30, 1 << 20)) is not None:
                with self._lock:
                    self._count_taken(taken)
                    self._drop_messages(taken, reason)
                lost += len(taken.messages)
        return lost

    # ------------------------------------------------------------ what there is

    @property
    def resident(self) -> int:
        """Events accepted and neither acked, dropped nor dead-lettered."""
        with self._lock:
            return self._count_waiting(self.ring.next_seq) + self._in_flight + self._retrying

    def waiting(self) -> int:
        """Events that were never delivered, in the ring and on disk."""
        with self._lock:
            return self._count_waiting(self.ring.next_seq)

    def oldest_age(self, now: float) -> float:
        """Seconds that the oldest waiting event has waited; 0.0: none waits.

        As fine as the interval of the marks.
        """
        with self._lock:
            return self._oldest_age(now)

    def stats(self, now: float) -> LaneStats:
        """A snapshot of one moment."""
        with self._lock:
            self._collect_abandoned()
            next_seq = self.ring.next_seq  # read once: producers go on meanwhile
            accepted, waiting = self._count_accepted(next_seq), self._count_waiting(next_seq)
            return LaneStats(
                priority=self.priority,
                offered=accepted + self._rejected.total(),
                accepted=accepted,
                rejected=FrozenDict(dict(self._rejected)),
                acked=self._acked,
                dead_lettered=self._dead_lettered,
                dropped=FrozenDict(dict(self._dropped)),
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

    # ------------------------------------------------------------ what DurableLane over

    def _fetch_oldest(self, max_events: int, max_bytes: int) -> TakenMessages | None:
        """The oldest events that were never delivered.

        Under `_taking`; the caller counts them with `_count_taken`.
        """
        messages = self.ring.take(max_events, max_bytes)
        return TakenMessages(messages, messages) if len(messages) else None

    def _has_waiting(self) -> bool:
        """Whether any event was never delivered. Called without a lock."""
        return len(self.ring) > 0

    def _count_taken(self, taken: TakenMessages) -> None:
        """Count what `_fetch_oldest` returned. Under the lock, as all that follows."""
        self._taken += len(taken.messages)
        self._next_seq = taken.messages.first_seq + len(taken.messages)

    def _settle_messages(self, taken: TakenMessages) -> None:
        """None of these messages is owed any more: free their room."""
        if taken.held is not None:
            self.ring.release(taken.held)

    def _count_waiting(self, next_seq: int) -> int:
        """Events below `next_seq` that were never delivered."""
        return next_seq - self._taken

    def _count_accepted(self, next_seq: int) -> int:
        """Events that were accepted, of those below `next_seq`."""
        return next_seq

    def _disk_stats(self) -> DiskStats | None:
        return None

    # ------------------------------------------------------------ under the lock

    def _hand_out_again(self, now: float) -> Handout | None:
        """The nacked batch at the front, or None while it pauses.

        Nothing newer overtakes it.
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

    def _drop_messages(self, taken: TakenMessages, reason: DropReason) -> None:
        self._dropped[reason] += len(taken.messages)
        self._settle_messages(taken)

    def _oldest_age(self, now: float) -> float:
        marks = self._marks
        while len(marks) > 1 and marks[1][0] <= self._next_seq:
            marks.popleft()
        if not marks or self._count_waiting(self.ring.next_seq) == 0:
            marks.clear()
            return 0.0
        return max(0.0, now - marks[0][1])

    def _oldest_seq_out(self) -> float:
        return min((handout.messages.first_seq for handout in self._out), default=float("inf"))

    def _end_delivery(self, handout: Handout) -> None:
        """A consumer settles it: once, and not after the end.

        Raises BatchStateError, BufferClosed.
        """
        if not handout.out:
            if self._closed:
                raise BufferClosed("the buffer was closed and has counted this batch as lost")
            raise BatchStateError("this batch was acked or nacked before")
        handout.out = False
        self._out.discard(handout)
        self._in_flight -= len(handout.messages)

    def _owe_again(self, handout: Handout, not_before: float) -> None:
        """Its messages are to be delivered again, not before that time."""
        handout.not_before = not_before
        self._retrying += len(handout.messages)
        heapq.heappush(self._retries, handout)

    def _collect_abandoned(self) -> None:
        """Nack what no consumer can settle any more."""
        while self.abandoned:
            handout = self.abandoned.popleft()
            if handout.out:
                self._end_delivery(handout)
                self._batches_nacked += 1
                self._owe_again(handout, 0.0)
